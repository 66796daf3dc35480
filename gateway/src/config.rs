//! All settings of a process: the sections of the crates below, side by side.

use std::path::PathBuf;

use mix::net::loopback::LoopbackAddress;
use mix::node::NO_DUMMIES;
use mix::node::config::{NetworkConfig, NodeConfig, SenderConfig};
use mix::node::directory::DirectoryConfig;
pub use mix::settings::Password;
use pop_out::config::PopConfig;
use serde::{Deserialize, Serialize};
use smtp_in::config::SmtpConfig;

/// The whole configuration. A role that is not enabled takes no part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is logged.
    pub log: LogConfig,
    /// How this process learns who the mixes are.
    pub network: NetworkConfig,
    /// Role: mail of people with an ordinary mail client.
    pub gateway: GatewayConfig,
    /// Role: a mix, perhaps an exit.
    pub node: NodeConfig,
    /// Role: a directory server.
    pub directory: DirectoryConfig,
    /// The statistics of the node for a program that draws them.
    pub metrics: MetricsConfig,
}

/// Section `[metrics]`: the rounded statistics of the node over HTTP, in the text format of Prometheus.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where. Loopback only. `None`: nowhere.
    pub listen: Option<LoopbackAddress>,
}

impl Config {
    /// With what a section must know of another: a node says in its descriptor that the log is too verbose, in the
    /// reference's words, and that it sends no dummies where it is told of no mixes.
    #[must_use]
    pub fn told_of_each_other(mut self) -> Self {
        self.node.elsewhere = match self.log.level {
            LogLevel::Debug => vec!["Log is too verbose"],
            LogLevel::Error | LogLevel::Warn | LogLevel::Info => Vec::new(),
        };
        if self.no_mixes().is_some() {
            self.node.elsewhere.push(NO_DUMMIES);
        }
        self
    }

    /// The key for want of which this process learns of no mixes, and what is wrong with it.
    pub(crate) fn no_mixes(&self) -> Option<(&'static str, &'static str)> {
        let NetworkConfig { directory, directory_key, .. } = &self.network;
        if directory.is_empty() {
            Some(("network.directory", "no directory server is named"))
        } else if directory_key.is_empty() {
            Some(("network.directory_key", "empty: no directory is trusted"))
        } else if directory_key.bytes().all(|digit| digit == b'0') {
            Some(("network.directory_key", "stands for the one to be filled in: no directory is trusted"))
        } else {
            None
        }
    }
}

/// Section `[log]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// How much: error, warn, info or debug. At no level does a line link what comes in to what goes out.
    pub level: LogLevel,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: LogLevel::Info }
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What must be mended.
    Error,
    /// What may have to be.
    Warn,
    /// Start, stop, and what an operator wants to know.
    Info,
    /// Each step, without who and what.
    Debug,
}

impl From<LogLevel> for tracing::level_filters::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
        }
    }
}

/// Section `[gateway]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Whether this process serves mail clients.
    pub enabled: bool,
    /// Where it keeps outbox, keyring and maildrops. Nobody else may read this folder.
    pub home: PathBuf,
    /// The pseudonyms: one identity, one account.
    pub identities: Vec<IdentityConfig>,
    /// The door that mail enters by.
    pub smtp: SmtpConfig,
    /// The door that mail leaves by.
    pub pop: PopConfig,
    /// How mail becomes packets.
    pub sender: SenderConfig,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            home: "gateway".into(),
            identities: Vec::new(),
            smtp: SmtpConfig::default(),
            pop: PopConfig::default(),
            sender: SenderConfig::default(),
        }
    }
}

/// One of `[[gateway.identities]]`: a pseudonym with an account of its own.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// The user name, for SMTP and POP3.
    #[serde(deserialize_with = "mix::settings::something")]
    pub name: String,
    /// The password, for both.
    pub password: Password,
    /// Where answers arrive: the exit address that goes into reply blocks, as `mbox:NAME@NICKNAME`. Empty: mail of this
    /// identity carries no reply blocks.
    #[serde(default, deserialize_with = "mix::settings::exit_address")]
    pub reply_to: String,
}

/// Prints no password.
impl std::fmt::Debug for IdentityConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityConfig").field("name", &self.name).finish_non_exhaustive()
    }
}
