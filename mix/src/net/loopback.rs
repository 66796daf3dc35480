//! Addresses that only this machine can connect to: where the doors without TLS may listen.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A loopback address and a port.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SocketAddr", into = "SocketAddr")]
pub struct LoopbackAddress(SocketAddr);

/// Others could reach the address.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("{address} is not a loopback address; without TLS, passwords and mail would cross the network in the clear")]
pub struct NotLoopback {
    /// What was set.
    pub address: SocketAddr,
}

impl LoopbackAddress {
    /// 127.0.0.1 and `port`; 0 is any free one.
    pub fn ipv4(port: u16) -> Self {
        Self(SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

impl TryFrom<SocketAddr> for LoopbackAddress {
    type Error = NotLoopback;

    fn try_from(address: SocketAddr) -> Result<Self, NotLoopback> {
        // An IPv4 loopback address in IPv6 form is one too.
        if address.ip().to_canonical().is_loopback() { Ok(Self(address)) } else { Err(NotLoopback { address }) }
    }
}

impl From<LoopbackAddress> for SocketAddr {
    fn from(address: LoopbackAddress) -> Self {
        address.0
    }
}

impl fmt::Debug for LoopbackAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_others_can_reach_is_refused() {
        for text in ["0.0.0.0:25", "192.0.2.1:25", "[::]:25", "[2001:db8::1]:25", "[::ffff:192.0.2.1]:25"] {
            let address = text.parse().unwrap();
            assert_eq!(LoopbackAddress::try_from(address), Err(NotLoopback { address }));
        }
        for text in ["127.0.0.1:0", "127.3.2.1:25", "[::1]:25", "[::ffff:127.0.0.1]:25"] {
            assert!(LoopbackAddress::try_from(text.parse::<SocketAddr>().unwrap()).is_ok(), "{text}");
        }
    }
}
