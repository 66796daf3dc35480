//! The settings of this door.

use std::time::Duration;

use mix::net::loopback::LoopbackAddress;
use mix::settings;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::InvalidConfig;
use crate::policy::{Attachments, Policy};

/// The section of the settings about mail that comes in from the user's mail client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmtpConfig {
    /// Where mail clients connect to. A loopback address: there is no TLS at this door, so passwords would cross any
    /// other network in the clear.
    pub listen: LoopbackAddress,
    /// Octets of a mail as the client sends it, attachments included.
    #[serde(deserialize_with = "mail_size")]
    pub max_size: u64,
    /// Recipients of one mail. Each is sent a message of its own.
    #[serde(deserialize_with = "some")]
    pub max_recipients: u64,
    /// Reply blocks that go with each mail, so that its recipient can answer. Each adds about 3 KB of text, and a
    /// number other than the default tells this user's mails from those of others.
    pub reply_blocks: u8,
    /// A text that shrinks to less than a twentieth is handed over compressed by the exits, which few can read: it is refused.
    /// Up to so many octets it is sent all the same, where all exits are known to inflate as much (`node.smtp.inflate_max`
    /// of their operators).
    pub inflate_max: usize,
    /// What becomes of attachments.
    pub attachments: Attachments,
    /// How long a client may be silent. RFC 5321 4.5.3.2 asks for five minutes.
    #[serde(with = "mix::settings::time")]
    pub idle_timeout: Duration,
    /// How long a client may stay connected.
    #[serde(with = "mix::settings::time")]
    pub session_timeout: Duration,
    /// Clients served at the same time; further ones are told to come again. Each may occupy several times `max_size`
    /// octets of memory.
    #[serde(deserialize_with = "some")]
    pub max_connections: u64,
}

impl Default for SmtpConfig {
    fn default() -> Self {
        Self {
            listen: LoopbackAddress::ipv4(20025),
            max_size: 20_000_000,
            max_recipients: 50,
            reply_blocks: 1,
            inflate_max: 0,
            attachments: Attachments::default(),
            idle_timeout: Duration::from_secs(5 * 60),
            session_timeout: Duration::from_secs(60 * 60),
            max_connections: 16,
        }
    }
}

/// How long a client may stay before it has said who it is. Mail programs know that at once; whoever does not could
/// otherwise keep all places taken, one word an hour.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// No mail with a line of text in it is smaller.
const LEAST_MAX_SIZE: u64 = 1000;
/// What mail-parser can address is 4 GiB; a mail is held in memory several times over.
const MOST_MAX_SIZE: u64 = 500_000_000;

/// What can be held in memory at a time, of recipients as of clients.
const MOST: u64 = 10_000;

fn mail_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    settings::between(deserializer, LEAST_MAX_SIZE, MOST_MAX_SIZE)
}

fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    settings::between(deserializer, 1, MOST)
}

impl SmtpConfig {
    /// The limits, checked.
    ///
    /// # Errors
    /// [`InvalidConfig::Limit`], [`InvalidConfig::Timeout`].
    pub fn policy(&self) -> Result<Policy, InvalidConfig> {
        Ok(Policy {
            max_size: within("max_size", self.max_size, LEAST_MAX_SIZE, MOST_MAX_SIZE)?,
            max_recipients: within("max_recipients", self.max_recipients, 1, MOST)?,
            reply_blocks: self.reply_blocks,
            inflate_max: self.inflate_max,
            attachments: self.attachments,
            idle_timeout: at_least_a_second("idle_timeout", self.idle_timeout)?,
            session_timeout: at_least_a_second("session_timeout", self.session_timeout)?,
            login_timeout: LOGIN_TIMEOUT,
            max_connections: within("max_connections", self.max_connections, 1, MOST)?,
        })
    }
}

fn within(key: &'static str, found: u64, least: u64, most: u64) -> Result<usize, InvalidConfig> {
    let limit = InvalidConfig::Limit { key, found, least, most };
    if (least..=most).contains(&found) { usize::try_from(found).map_err(|_| limit) } else { Err(limit) }
}

fn at_least_a_second(key: &'static str, found: Duration) -> Result<Duration, InvalidConfig> {
    if found < Duration::from_secs(1) { Err(InvalidConfig::Timeout { key }) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_settings_that_work() {
        assert!(SmtpConfig::default().policy().is_ok());
    }

    #[test]
    fn limit_out_of_bounds_is_refused_by_its_name() {
        let refused = |change: fn(&mut SmtpConfig)| {
            let mut config = SmtpConfig::default();
            change(&mut config);
            config.policy().expect_err("refused")
        };
        let key = |refused| match refused {
            InvalidConfig::Limit { key, .. } | InvalidConfig::Timeout { key } => key,
        };
        assert_eq!(key(refused(|c| c.max_size = 10)), "max_size");
        assert_eq!(key(refused(|c| c.max_size = u64::MAX)), "max_size");
        assert_eq!(key(refused(|c| c.max_recipients = 0)), "max_recipients");
        assert_eq!(key(refused(|c| c.max_connections = 0)), "max_connections");
        assert_eq!(refused(|c| c.idle_timeout = Duration::ZERO), InvalidConfig::Timeout { key: "idle_timeout" });
        assert_eq!(refused(|c| c.session_timeout = Duration::ZERO), InvalidConfig::Timeout { key: "session_timeout" });
    }
}
