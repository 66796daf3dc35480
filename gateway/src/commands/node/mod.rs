//! `mixgate node …`: what an operator does with a node. One file for each command.

mod descriptor;
mod init;
mod keys;

use std::path::Path;

use anyhow::Context as _;
use clap::Subcommand;
use mix::node::describe::{self, KeyReport};

use super::Failed;

/// Prepare a node, and look at its keys
#[derive(Subcommand, Debug)]
pub(super) enum NodeCommand {
    Init(init::InitArguments),
    Descriptor(descriptor::DescriptorArguments),
    Keys(keys::KeysArguments),
}

pub(super) fn run(command: NodeCommand) -> Result<(), Failed> {
    match command {
        NodeCommand::Init(arguments) => init::run(arguments),
        NodeCommand::Descriptor(arguments) => descriptor::run(&arguments),
        NodeCommand::Keys(arguments) => keys::run(&arguments),
    }
}

/// The packet keys of the node at `home`: there is at least one.
fn reports(home: &Path) -> anyhow::Result<Vec<KeyReport>> {
    let none = || format!("{} has no keys yet: run mixgate node init, or start the node", home.display());
    let reports = describe::report(home).with_context(none)?;
    if reports.is_empty() { Err(anyhow::anyhow!(none())) } else { Ok(reports) }
}
