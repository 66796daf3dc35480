//! Reaches a server through a SOCKS5 proxy (RFC 1928); the only file that names tokio-socks.
//!
//! A name is looked up by the proxy and by nobody on this side: who watches this machine does not learn it.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_socks::tcp::Socks5Stream;

use crate::packet::HostName;

/// Where a proxy is, written as `host:port`. It wants no login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Proxy {
    /// An IPv6 address without its brackets.
    host: String,
    port: u16,
}

/// Why a text names no proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected host and port of a SOCKS5 proxy, such as \"127.0.0.1:9050\"")]
pub struct InvalidProxy;

impl FromStr for Proxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let (host, port) = text.rsplit_once(':').ok_or(InvalidProxy)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(InvalidProxy)?;
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match in_brackets {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => HostName::parse(host).is_ok(),
        };
        if !is_host {
            return Err(InvalidProxy);
        }
        Ok(Self { host: in_brackets.unwrap_or(host).to_owned(), port })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl TryFrom<String> for Proxy {
    type Error = InvalidProxy;

    fn try_from(text: String) -> Result<Self, InvalidProxy> {
        text.parse()
    }
}

impl From<Proxy> for String {
    fn from(proxy: Proxy) -> Self {
        proxy.to_string()
    }
}

/// Why there is no way through: the proxy is away, or says so.
#[derive(Debug, thiserror::Error)]
#[error("through the SOCKS5 proxy")]
pub struct NoWayThrough(#[from] tokio_socks::Error);

impl Proxy {
    /// A connection to `host`, a name or an address. Without a time limit of its own.
    ///
    /// # Errors
    /// [`NoWayThrough`].
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, NoWayThrough> {
        let through = Socks5Stream::connect((self.host.as_str(), self.port), (host, port)).await?;
        Ok(through.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_is_read_and_written_as_host_and_port() {
        for text in ["127.0.0.1:9050", "localhost:1080", "proxy.example:1", "[::1]:9050"] {
            assert_eq!(text.parse::<Proxy>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn text_that_names_no_proxy_is_refused() {
        for text in ["", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", ":9050", "::1:9050", "[localhost]:1", "a b:1"] {
            assert_eq!(text.parse::<Proxy>(), Err(InvalidProxy), "{text}");
        }
        assert_eq!("socks5://127.0.0.1:9050".parse::<Proxy>(), Err(InvalidProxy));
    }
}
