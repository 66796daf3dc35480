//! Where the configuration of a command comes from.

use std::path::PathBuf;

use clap::Args;
use mixgate_conf::Loaded;

use super::Failed;
use crate::{Config, passphrase};

/// Variables with our prefix that are no settings.
const RESERVED: [&str; 2] = ["MIXGATE_CONFIG", passphrase::VARIABLE];

/// A file, and settings that come before it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Configured {
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

    /// These, and one option more.
    pub(super) fn with(&self, key: &str, value: &str) -> Self {
        let mut more = self.clone();
        more.settings.push((key.to_owned(), value.to_owned()));
        more
    }

    /// Reads it: defaults, file, environment, command line.
    ///
    /// # Errors
    /// What must be mended first.
    pub(super) fn load(&self) -> Result<Config, Failed> {
        self.load_traced().map(|loaded| loaded.settings)
    }

    /// [`Configured::load`], and where each value came from.
    ///
    /// # Errors
    /// As [`Configured::load`].
    pub(crate) fn load_traced(&self) -> Result<Loaded<Config>, Failed> {
        // The passphrase is not copied to where nobody would overwrite it.
        let harmless = std::env::vars_os().filter(|(name, _)| name != passphrase::VARIABLE);
        let environment =
            harmless.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let loaded = mixgate_conf::load_traced(Some(&self.config), environment, &RESERVED, &self.settings);
        loaded.map_err(Failed::configuration)
    }
}
