//! `mixgate run`: the roles that a configuration enables, until the process is asked to end.

use clap::Args;
use mix::node::World;

use super::configured::Configured;
use super::{Failed, StopSignals};
use crate::passphrase::PassphraseSource;
use crate::{Gateway, log};

/// Start the roles that a configuration file enables: gateway, node, directory
///
/// Settings come from, the later before the earlier: defaults, the file, environment variables such as
/// MIXGATE_NODE__NICKNAME, and --set. Where node.keys.sealed is true, the passphrase is read from --passphrase-fd,
/// --passphrase-file or the variable MIXGATE_PASSPHRASE, else asked for on the terminal.
#[derive(Args, Debug)]
pub(super) struct RunArguments {
    #[command(flatten)]
    configured: Configured,
    #[command(flatten)]
    passphrase: PassphraseSource,
}

pub(super) async fn run(arguments: RunArguments) -> Result<(), Failed> {
    let config = arguments.configured.load()?;
    let sealed = config.node.enabled && config.node.keys.sealed;
    let passphrase = sealed.then(|| arguments.passphrase.read()).transpose().map_err(Failed::configuration)?;
    log::init(config.log.level);
    let mut signals = StopSignals::listen()?;
    let started = Gateway::start_sealed(config, World::real(), passphrase).await;
    let mut running =
        started.map_err(|e| if e.is_configuration() { Failed::configuration(e) } else { Failed::from(e) })?;
    let ended = tokio::select! {
        () = signals.asked() => Ok(()),
        () = running.service_ended() => Err(anyhow::anyhow!("a service has ended that should not; see the log").into()),
    };
    tracing::info!("stopping");
    tokio::select! {
        () = running.stop() => ended,
        // Whoever asks twice does not want to wait. What was accepted is on disk.
        () = signals.asked() => ended,
    }
}
