//! `mixgate node`: a mix and what its operator asks of it. A command of more than a few lines has a file of its own.

mod check;
mod descriptor;
mod init;
mod keys;
mod running;

use std::path::Path;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use mix::net::sockets::Inherited;
use mix::node::describe::{self, KeyReport};

use super::run::RunArguments;
use super::{Configured, Failed, run};

/// Prepare and start a node, and ask and tell the one that runs
///
/// stop, reload, status, stats, republish and keys --discard-ahead talk to the process whose node has the same node.home,
/// through a socket in that folder. It must be of the same user.
#[derive(Args, Debug)]
pub(super) struct NodeArguments {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Subcommand, Debug)]
enum NodeCommand {
    Init(init::InitArguments),
    /// Start the node, whatever node.enabled says, and what else the configuration enables
    ///
    /// Stays in the foreground. Under systemd, with Type=notify-reload:
    ///
    ///   [Service]
    ///   Type=notify-reload
    ///   ExecStart=/usr/local/bin/mixgate node start --config /etc/mixgate.toml
    ///   WatchdogSec=5min
    ///   Restart=on-failure
    ///   RestartPreventExitStatus=78
    ///
    /// Ports may be held open by a socket unit with ListenStream= as in node.listen.
    ///
    /// Example: mixgate node start --config node.toml
    #[command(verbatim_doc_comment)]
    Start(RunArguments),
    /// End the process and wait until it has ended
    ///
    /// Ends with 0 when it has, with 3 when none was running, with 5 when it is there still after 70 seconds. Of a
    /// configuration that is wrong it takes node.home, if that is written there.
    ///
    /// Example: mixgate node stop --config node.toml
    Stop(Configured),
    /// Have the process read its configuration again, as SIGHUP does
    ///
    /// Prints which keys have changed and which wait for a restart. A configuration that is wrong changes nothing and is
    /// named with file, line and key. Returns when the descriptor says what is set; ends with 1 when that cannot be
    /// signed. What stood on the command line of the process comes before the file still.
    ///
    /// Example: mixgate node reload --config node.toml
    Reload(Configured),
    /// Print what the process says of itself: addresses, keys, publication, queues, warnings
    ///
    /// Numbers of packets are rounded up to thousands, none included.
    ///
    /// Example: mixgate node status --config node.toml
    Status(running::OutputArguments),
    /// Print the statistics of the interval under way, rounded up to thousands
    ///
    /// They change at the ends of slices of a 96th of the interval (a quarter of an hour of a day). Reports on whole
    /// intervals are in the file `statistics` in node.home.
    ///
    /// Example: mixgate node stats --config node.toml
    Stats(running::OutputArguments),
    /// Upload the descriptor to the directory server now
    ///
    /// Example: mixgate node republish --config node.toml
    Republish(Configured),
    /// Look at a configuration without starting anything
    ///
    /// Ends with 0 when a start would take it, with 78 when it must be mended. Warns of what is allowed and unwise;
    /// warnings alone end with 0.
    ///
    /// Example: mixgate node check --config node.toml
    Check(Configured),
    Descriptor(descriptor::DescriptorArguments),
    Keys(keys::KeysArguments),
}

pub(super) async fn node(arguments: NodeArguments, sockets: Inherited) -> Result<(), Failed> {
    match arguments.command {
        NodeCommand::Init(arguments) => init::run(arguments),
        NodeCommand::Descriptor(arguments) => descriptor::run(&arguments),
        NodeCommand::Keys(arguments) => keys::run(&arguments).await,
        NodeCommand::Start(arguments) => run::run(arguments.with_node(), sockets).await,
        NodeCommand::Stop(arguments) => running::stop(&arguments).await,
        NodeCommand::Reload(arguments) => running::reload(&arguments).await,
        NodeCommand::Status(arguments) => running::status(&arguments).await,
        NodeCommand::Stats(arguments) => running::stats(&arguments).await,
        NodeCommand::Republish(arguments) => running::republish(&arguments).await,
        NodeCommand::Check(arguments) => check::run(&arguments),
    }
}

/// The packet keys of the node at `home`: there is at least one.
fn reports(home: &Path) -> anyhow::Result<Vec<KeyReport>> {
    let none = || format!("{} has no keys yet: run mixgate node init, or start the node", home.display());
    let reports = describe::report(home).with_context(none)?;
    if reports.is_empty() { Err(anyhow::anyhow!(none())) } else { Ok(reports) }
}
