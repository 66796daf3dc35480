//! `mixgate run`: the roles that a configuration enables, until the process is asked to end.

use clap::Args;
use mix::net::sockets::Inherited;

use super::{Configured, Failed};
use crate::passphrase::{NoPassphrase, PassphraseSource};
use crate::service;

/// Start the roles that a configuration file enables: gateway, node, directory
///
/// Settings come from, the later before the earlier: defaults, the file, environment variables such as
/// MIXGATE_NODE__NICKNAME, and --set. Where node.keys.sealed is true, the passphrase is read from --passphrase-fd,
/// --passphrase-file or the variable MIXGATE_PASSPHRASE, else asked for on the terminal.
///
/// SIGTERM and Ctrl-C end the program within a minute: what is under way is finished, the rest waits on disk. SIGHUP
/// reads the configuration again and says in the log which keys wait for a restart.
///
/// Example: mixgate run --config mixgate.toml --set log.level=debug
#[derive(Args, Debug)]
pub(super) struct RunArguments {
    #[command(flatten)]
    configured: Configured,
    #[command(flatten)]
    passphrase: PassphraseSource,
}

impl RunArguments {
    /// With the role of a node, whatever the configuration says.
    pub(super) fn with_node(self) -> Self {
        Self { configured: self.configured.with("node.enabled", "true"), ..self }
    }
}

pub(super) async fn run(arguments: RunArguments, sockets: Inherited) -> Result<(), Failed> {
    let loaded = arguments.configured.load_traced()?;
    let node = &loaded.settings.node;
    let sealed = node.enabled && node.keys.sealed;
    if !sealed && arguments.passphrase.is_given() {
        return Err(Failed::configuration(NoPassphrase::NotSealed));
    }
    let passphrase = sealed.then(|| arguments.passphrase.read()).transpose().map_err(Failed::configuration)?;
    service::run(arguments.configured, loaded, passphrase, sockets).await
}
