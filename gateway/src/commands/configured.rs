//! Where the configuration of a command comes from.

use std::path::PathBuf;

use clap::Args;

use super::Failed;
use crate::{Config, passphrase};

/// Variables with our prefix that are no settings.
const RESERVED: [&str; 2] = ["MIXGATE_CONFIG", passphrase::VARIABLE];

/// A file, and settings that come before it.
#[derive(Args, Debug)]
pub(super) struct Configured {
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

impl Configured {
    /// A file without settings that come before it.
    pub(super) fn file(config: PathBuf) -> Self {
        Self { config, settings: Vec::new() }
    }

    /// Reads it: defaults, file, environment, command line.
    ///
    /// # Errors
    /// What must be mended first.
    pub(super) fn load(&self) -> Result<Config, Failed> {
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        mixgate_conf::load(Some(&self.config), environment, &RESERVED, &self.settings).map_err(Failed::configuration)
    }
}
