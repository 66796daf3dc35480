//! `mixgate node descriptor`: what a node says of itself, to be handed to any Type III client.

use std::io::Write as _;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::Args;

use super::super::Failed;
use super::super::configured::Configured;

/// Print the descriptor of a node, whether it runs or not
///
/// It can be given to any Type III client, and to an operator of a directory server.
#[derive(Args, Debug)]
pub(in crate::commands) struct DescriptorArguments {
    #[command(flatten)]
    configured: Configured,
    /// Print those that will be in force later too
    #[arg(long)]
    all: bool,
}

pub(super) fn run(arguments: &DescriptorArguments) -> Result<(), Failed> {
    let config = arguments.configured.load()?;
    let now = SystemTime::now();
    let reports = super::reports(&config.node.home)?;
    let descriptors = reports.iter().filter_map(|report| report.descriptor.as_ref());
    let in_time: Vec<_> = descriptors.filter(|descriptor| !descriptor.is_expired_at(now)).collect();
    let current = in_time.iter().rposition(|descriptor| descriptor.is_valid_at(now));
    let current = current.with_context(|| {
        format!("no descriptor under {} is in force: start the node, which makes one", config.node.home.display())
    })?;
    let last = if arguments.all { in_time.len() } else { current + 1 };
    let mut out = std::io::stdout();
    for descriptor in in_time.get(current..last).unwrap_or_default() {
        out.write_all(descriptor.text().as_bytes())?;
    }
    Ok(())
}
