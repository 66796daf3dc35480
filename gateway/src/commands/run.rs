//! `mixgate run`: the roles that a configuration enables, until the process is asked to end.

use std::path::PathBuf;

use clap::Args;

use super::{Failed, StopSignals};
use crate::{Config, Gateway, log};

/// Variables with our prefix that are no settings: the options of the command line that may stand in them.
const RESERVED: [&str; 1] = ["MIXGATE_CONFIG"];

/// Start the roles that a configuration file enables: gateway, node, directory
///
/// Settings come from, the later before the earlier: defaults, the file, environment variables such as
/// MIXGATE_NODE__NICKNAME, and --set.
#[derive(Args, Debug)]
pub(super) struct RunArguments {
    /// The configuration file (TOML). conf/ has commented examples
    #[arg(short, long, env = "MIXGATE_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Set one option, as in --set node.nickname=Thomas. May be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

pub(super) async fn run(arguments: RunArguments) -> Result<(), Failed> {
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let loaded = mixgate_conf::load::<Config>(Some(&arguments.config), environment, &RESERVED, &arguments.settings);
    let config = loaded.map_err(Failed::configuration)?;
    log::init(config.log.level);
    let mut signals = StopSignals::listen()?;
    let started = Gateway::start(config).await;
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
