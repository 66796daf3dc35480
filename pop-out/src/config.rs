//! The section `[pop]`: where mail clients fetch their mail.

use std::num::NonZeroU16;
use std::time::Duration;

use mix::net::loopback::LoopbackAddress;
use serde::{Deserialize, Deserializer, Serialize, de};

/// The shortest time that a silent client must be given (RFC 1939, section 3).
pub const MIN_IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// How the POP3 server listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PopConfig {
    /// Address and port. On this machine only: passwords and mail would cross a network in the clear.
    pub listen: LoopbackAddress,
    /// How long a client may be silent, or take nothing of what it is sent, before its session ends. At least ten
    /// minutes, as RFC 1939 demands.
    #[serde(serialize_with = "humantime_serde::serialize", deserialize_with = "idle_timeout")]
    pub idle_timeout: Duration,
    /// How many connections are served at once; who comes then is turned away. A mail client holds a few.
    pub max_connections: NonZeroU16,
    /// Text that grows more than twentyfold when inflated may have been made to exhaust the reader's computer. Up to so many
    /// octets it is shown all the same, beyond it stays compressed. Whoever knows a mailbox can fill it by so much with
    /// each packet.
    pub inflate_max: usize,
}

impl Default for PopConfig {
    fn default() -> Self {
        Self {
            listen: LoopbackAddress::ipv4(20110),
            idle_timeout: MIN_IDLE_TIMEOUT,
            max_connections: NonZeroU16::new(64).expect("64 is not zero"),
            inflate_max: 1 << 20,
        }
    }
}

/// Why a setting was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidPopConfig {
    /// Clients would be cut off sooner than the protocol allows.
    #[error("{} seconds; RFC 1939 demands at least 10 minutes", found.as_secs())]
    IdleTimeout {
        /// What was set.
        found: Duration,
    },
}

fn idle_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let found: Duration = humantime_serde::deserialize(deserializer)?;
    checked_idle_timeout(found).map_err(de::Error::custom)
}

fn checked_idle_timeout(found: Duration) -> Result<Duration, InvalidPopConfig> {
    if found >= MIN_IDLE_TIMEOUT { Ok(found) } else { Err(InvalidPopConfig::IdleTimeout { found }) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde::de::value::{Error, MapDeserializer};

    use super::*;

    fn read(settings: &[(&'static str, &'static str)]) -> Result<PopConfig, Error> {
        let settings = settings.iter().copied();
        PopConfig::deserialize(MapDeserializer::<_, Error>::new(settings))
    }

    #[test]
    fn defaults_are_what_the_documentation_says() {
        let config = read(&[]).unwrap();
        assert_eq!(config, PopConfig::default());
        assert_eq!(SocketAddr::from(config.listen).to_string(), "127.0.0.1:20110");
        assert_eq!(config.idle_timeout, Duration::from_secs(600));
    }

    #[test]
    fn settings_are_read_in_friendly_words() {
        let config = read(&[("listen", "[::1]:110"), ("idle_timeout", "1 hour 30 minutes")]).unwrap();
        assert_eq!(SocketAddr::from(config.listen).to_string(), "[::1]:110");
        assert_eq!(config.idle_timeout, Duration::from_secs(5400));
    }

    #[test]
    fn idle_timeout_below_the_standard_is_refused() {
        let found = Duration::from_secs(599);
        assert_eq!(checked_idle_timeout(found), Err(InvalidPopConfig::IdleTimeout { found }));
        let refused = read(&[("idle_timeout", "9 minutes")]).unwrap_err();
        assert_eq!(refused.to_string(), "540 seconds; RFC 1939 demands at least 10 minutes");
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(read(&[("ilde_timeout", "10 minutes")]).unwrap_err().to_string().contains("unknown field"));
    }
}
