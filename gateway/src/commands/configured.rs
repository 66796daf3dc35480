//! Where the configuration of a command comes from.

use std::ffi::OsString;
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
    /// The configuration file (TOML); conf/ has commented examples. Without it ~/.config/mixgate/mixgate.toml is read, or
    /// else /etc/mixgate/mixgate.toml
    #[arg(short, long, env = "MIXGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one option, as in --set node.nickname=Thomas. May be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// What the command itself sets, over all.
    #[arg(skip)]
    forced: Vec<(String, String)>,
}

/// Where a configuration file is looked for that nobody has named: the user's first, then the system's.
fn usual_places(config: Option<OsString>, home: Option<OsString>) -> Vec<PathBuf> {
    let of_the_user = match config.filter(|folder| Path::new(folder).is_absolute()) {
        Some(folder) => Some(PathBuf::from(folder)),
        None => home.filter(|folder| !folder.is_empty()).map(|folder| Path::new(&folder).join(".config")),
    };
    of_the_user.into_iter().chain([PathBuf::from("/etc")]).map(|folder| folder.join("mixgate/mixgate.toml")).collect()
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl Configured {
    /// A file without settings that come before it.
    pub(super) fn file(config: PathBuf) -> Self {
        Self { config: Some(config), settings: Vec::new(), forced: Vec::new() }
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
        let file = self.path()?;
        let as_written = self.load_as(Some(&file), &self.settings)?;
        if self.forced.is_empty() {
            return Ok(as_written);
        }
        self.load_as(Some(&file), &[&self.settings[..], &self.forced].concat())
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
        for file in [self.path().ok(), None] {
            if let Ok(Loaded { settings, origins }) = self.load_as::<Homes>(file.as_deref(), &self.settings)
                && origins.of("node.home") != Origin::Default
            {
                return Ok((settings.node.home, Some(wrong)));
            }
        }
        let advice = "and so it is not known which node is meant; --set node.home=DIR says it";
        Err(Failed::configuration(anyhow::anyhow!("{wrong} ({advice})")))
    }

    /// The file that was named, or the first there is where one is looked for.
    fn path(&self) -> Result<PathBuf, Failed> {
        if let Some(named) = &self.config {
            return Ok(named.clone());
        }
        let places = usual_places(std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME"));
        if let Some(found) = places.iter().find(|place| place.exists()) {
            return Ok(found.clone());
        }
        let places = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" nor ");
        Err(Failed::configuration(anyhow::anyhow!(
            "there is no configuration file: neither {places}; name one with --config"
        )))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_the_user_comes_before_that_of_the_system() {
        let places = |config: Option<&str>, home: Option<&str>| {
            let places = usual_places(config.map(Into::into), home.map(Into::into));
            places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>()
        };
        let system = "/etc/mixgate/mixgate.toml";
        assert_eq!(places(None, Some("/home/frida")), ["/home/frida/.config/mixgate/mixgate.toml", system]);
        assert_eq!(places(Some("/cfg"), Some("/home/frida")), ["/cfg/mixgate/mixgate.toml", system]);
        // What is not absolute is to be ignored (XDG Base Directory Specification).
        assert_eq!(places(Some("cfg"), Some("/home/frida")), ["/home/frida/.config/mixgate/mixgate.toml", system]);
        assert_eq!(places(None, Some("")), [system]);
        assert_eq!(places(None, None), [system]);
    }
}
