//! Where the configuration of a command comes from.

use std::path::{Path, PathBuf};

use clap::Args;
use mixgate_conf::{Loaded, Origin};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Failed;
use crate::{Config, passphrase};

/// Variables with our prefix that are no settings.
const RESERVED: [&str; 2] = ["MIXGATE_CONFIG", passphrase::VARIABLE];

/// Where the node lives, and nothing else of a configuration.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Homes {
    node: Home,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Home {
    home: PathBuf,
}

/// A file, and settings that come before it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Configured {
    /// The configuration file (TOML). conf/ has commented examples
    #[arg(short, long, env = "MIXGATE_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Set one option, as in --set node.nickname=Thomas. May be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// What the command itself sets, over all.
    #[arg(skip)]
    forced: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl Configured {
    /// A file without settings that come before it.
    pub(super) fn file(config: PathBuf) -> Self {
        Self { config, settings: Vec::new(), forced: Vec::new() }
    }

    /// These, and one option that the command sets. What the configuration says of it must make sense all the same.
    pub(super) fn with(&self, key: &str, value: &str) -> Self {
        let mut more = self.clone();
        more.forced.push((key.to_owned(), value.to_owned()));
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
        let as_written = self.load_as(Some(&self.config), &self.settings)?;
        if self.forced.is_empty() {
            return Ok(as_written);
        }
        self.load_as(Some(&self.config), &[&self.settings[..], &self.forced].concat())
    }

    /// Where the node lives; and what is wrong with the rest of the configuration, where something is. Then the home must
    /// be written: with another misspelt, the default is another node's, or nobody's.
    ///
    /// # Errors
    /// What must be mended first.
    pub(super) fn home(&self) -> Result<(PathBuf, Option<Failed>), Failed> {
        let wrong = match self.load() {
            Ok(config) => return Ok((config.node.home, None)),
            Err(wrong) => wrong,
        };
        for file in [Some(self.config.as_path()), None] {
            if let Ok(Loaded { settings, origins }) = self.load_as::<Homes>(file, &self.settings)
                && origins.of("node.home") != Origin::Default
            {
                return Ok((settings.node.home, Some(wrong)));
            }
        }
        let advice = "and so it is not known which node is meant; --set node.home=DIR says it";
        Err(Failed::configuration(anyhow::anyhow!("{wrong} ({advice})")))
    }

    /// All settings, or some of them.
    fn load_as<C: Serialize + DeserializeOwned + Default>(
        &self,
        file: Option<&Path>,
        settings: &[(String, String)],
    ) -> Result<Loaded<C>, Failed> {
        // The passphrase is not copied to where nobody would overwrite it.
        let harmless = std::env::vars_os().filter(|(name, _)| name != passphrase::VARIABLE);
        let environment =
            harmless.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let loaded = mixgate_conf::load_traced(file, environment, &RESERVED, settings);
        loaded.map_err(Failed::configuration)
    }
}
