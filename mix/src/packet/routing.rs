//! Where a packet goes next: routing types and routing info (minion-spec 3.2.3, 3.2.4).

use std::fmt;
use std::net::Ipv4Addr;

use crate::crypto::{DIGEST_LEN, KeyId};

/// A routing type: an open number, since new exit types appear without the mixes between knowing them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoutingType(pub u16);

impl RoutingType {
    /// Discard the packet: a dummy.
    pub const DROP: Self = Self(0x0000);
    /// Relay to an IPv4 address. Understood, never generated: hosts took its place in 0.0.6.
    pub const FWD_IPV4: Self = Self(0x0001);
    /// Swap the headers, then as [`RoutingType::FWD_IPV4`].
    pub const SWAP_FWD_IPV4: Self = Self(0x0002);
    /// Relay to a host name.
    pub const FWD_HOST: Self = Self(0x0003);
    /// Swap the headers, then as [`RoutingType::FWD_HOST`].
    pub const SWAP_FWD_HOST: Self = Self(0x0004);
    /// The first of the exit types.
    pub const MIN_EXIT: Self = Self(0x0100);
    /// Deliver as e-mail; the exit address is a mailbox.
    pub const SMTP: Self = Self(0x0100);
    /// Deliver to one of the exit's own users; the exit address is a name.
    pub const MBOX: Self = Self(0x0101);
    /// Reassemble, then deliver to the address found inside; no exit address, no handle.
    pub const FRAGMENT: Self = Self(0x0103);
    /// A pinger's probe.
    pub const PING: Self = Self(0x0105);

    /// Whether the packet leaves the network here.
    pub fn is_exit(self) -> bool {
        self >= Self::MIN_EXIT
    }

    /// Whether the mix is the swap point of the packet.
    pub fn is_swap(self) -> bool {
        matches!(self, Self::SWAP_FWD_IPV4 | Self::SWAP_FWD_HOST)
    }

    /// Whether the routing info of this type begins with a decoding handle: all exit types but FRAGMENT, whose handle
    /// would have no reader, and PING (minion-spec 3.2.3).
    pub fn has_handle(self) -> bool {
        self.is_exit() && self != Self::FRAGMENT && self != Self::PING
    }
}

impl fmt::Display for RoutingType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:04X}", self.0)
    }
}

impl fmt::Debug for RoutingType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why routing info was refused. Blames whoever built the packet.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidRouting {
    /// FWD_HOST needs port, key id and at least one octet of host; FWD_IPV4 exactly 26 octets.
    #[error("{len} octets are the wrong length")]
    Length {
        /// Octets found.
        len: usize,
    },
    /// Characters or dots that no host name has.
    #[error("not a plausible host name")]
    HostName,
    /// Not a type that relays.
    #[error("{0} is not a type that relays")]
    NotRelay(RoutingType),
    /// Exit info of a type that needs a handle is shorter than one.
    #[error("{len} octets are too short for a decoding handle")]
    MissingHandle {
        /// Octets found.
        len: usize,
    },
}

/// A host name as routing info has it: letters, digits, dots and hyphens, kept in lower case, as all writers write it.
/// May be an IPv4 address in dotted form. A reply block whose first host was put into capitals on the way is thereby still
/// the same block to the log of used ones, under another digest than the reference gives it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    /// Reads a host name.
    ///
    /// # Errors
    /// [`InvalidRouting::HostName`] when it is empty, has other characters, starts with a dot or has two in a row.
    pub fn parse(name: &str) -> Result<Self, InvalidRouting> {
        let plausible = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.' || c == b'-')
            && !name.is_empty()
            && !name.starts_with('.')
            && !name.contains("..");
        if plausible { Ok(Self(name.to_ascii_lowercase())) } else { Err(InvalidRouting::HostName) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How to reach a mix by host name: port (2 octets) | key id (20) | host (minion-spec 3.2.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostRoute {
    /// Where it listens.
    pub host: HostName,
    /// The TCP port.
    pub port: u16,
    /// Who must answer there.
    pub key_id: KeyId,
}

impl HostRoute {
    /// Reads the routing info of FWD_HOST.
    ///
    /// # Errors
    /// [`InvalidRouting::Length`] below 23 octets, [`InvalidRouting::HostName`].
    pub fn parse(info: &[u8]) -> Result<Self, InvalidRouting> {
        let len = info.len();
        let (port, rest) = info.split_first_chunk().ok_or(InvalidRouting::Length { len })?;
        let (key_id, host) = rest.split_first_chunk::<DIGEST_LEN>().ok_or(InvalidRouting::Length { len })?;
        if host.is_empty() {
            return Err(InvalidRouting::Length { len });
        }
        let host = std::str::from_utf8(host).map_err(|_| InvalidRouting::HostName)?;
        Ok(Self { host: HostName::parse(host)?, port: u16::from_be_bytes(*port), key_id: KeyId(*key_id) })
    }

    /// The routing info.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.port.to_be_bytes()[..], &self.key_id.0, self.host.as_str().as_bytes()].concat()
    }
}

/// How to reach a mix by address: IPv4 (4 octets) | port (2) | key id (20) (minion-spec 3.2.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Route {
    /// The address.
    pub address: Ipv4Addr,
    /// The TCP port.
    pub port: u16,
    /// Who must answer there.
    pub key_id: KeyId,
}

/// Octets of the routing info of FWD_IPV4.
const IPV4_ROUTE_LEN: usize = 4 + 2 + DIGEST_LEN;

impl Ipv4Route {
    /// Reads the routing info of FWD_IPV4.
    ///
    /// # Errors
    /// [`InvalidRouting::Length`] for all but 26 octets.
    pub fn parse(info: &[u8]) -> Result<Self, InvalidRouting> {
        let whole: &[u8; IPV4_ROUTE_LEN] = info.try_into().map_err(|_| InvalidRouting::Length { len: info.len() })?;
        let (address, rest) = whole.split_first_chunk::<4>().expect("26 octets");
        let (port, key_id) = rest.split_first_chunk::<2>().expect("22 octets left");
        Ok(Self {
            address: Ipv4Addr::from(*address),
            port: u16::from_be_bytes(*port),
            key_id: KeyId(key_id.try_into().expect("20 octets left")),
        })
    }

    /// The routing info.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.address.octets()[..], &self.port.to_be_bytes(), &self.key_id.0].concat()
    }
}

/// The next mix of a packet in transit, by either way to name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NextHop {
    /// By host name.
    Host(HostRoute),
    /// By IPv4 address.
    Ipv4(Ipv4Route),
}

impl NextHop {
    /// Reads routing info as the routing type demands.
    ///
    /// # Errors
    /// [`InvalidRouting::NotRelay`] for types that do not relay; else as [`HostRoute::parse`], [`Ipv4Route::parse`].
    pub fn parse(routing_type: RoutingType, info: &[u8]) -> Result<Self, InvalidRouting> {
        match routing_type {
            RoutingType::FWD_HOST | RoutingType::SWAP_FWD_HOST => HostRoute::parse(info).map(Self::Host),
            RoutingType::FWD_IPV4 | RoutingType::SWAP_FWD_IPV4 => Ipv4Route::parse(info).map(Self::Ipv4),
            other => Err(InvalidRouting::NotRelay(other)),
        }
    }

    /// Who must answer there.
    pub fn key_id(&self) -> KeyId {
        match self {
            Self::Host(route) => route.key_id,
            Self::Ipv4(route) => route.key_id,
        }
    }

    /// Host name or address, to be resolved and connected to.
    pub fn host(&self) -> String {
        match self {
            Self::Host(route) => route.host.to_string(),
            Self::Ipv4(route) => route.address.to_string(),
        }
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Host(route) => route.port,
            Self::Ipv4(route) => route.port,
        }
    }

    /// The routing type (without swap) and routing info that name this hop.
    pub fn to_routing(&self) -> (RoutingType, Vec<u8>) {
        match self {
            Self::Host(route) => (RoutingType::FWD_HOST, route.to_bytes()),
            Self::Ipv4(route) => (RoutingType::FWD_IPV4, route.to_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{HostName, HostRoute, InvalidRouting, Ipv4Route, NextHop, RoutingType};

    #[test]
    fn names_that_no_host_has_are_refused() {
        for name in ["", ".", ".example.net", "a..b", "a b", "a_b", "a/b", "a:1", "a\0", "m\u{fc}nchen.example"] {
            assert_eq!(HostName::parse(name), Err(InvalidRouting::HostName), "{name:?}");
        }
        for name in ["a", "A.Example.net", "192.0.2.1", "example.net.", "xn--mnchen-3ya.example"] {
            assert_eq!(HostName::parse(name).unwrap().as_str(), name.to_ascii_lowercase());
        }
    }

    #[test]
    fn host_routing_info_without_a_host_is_refused() {
        for len in [0, 1, 2, 21, 22] {
            assert_eq!(HostRoute::parse(&vec![b'a'; len]), Err(InvalidRouting::Length { len }));
        }
        assert_eq!(HostRoute::parse(&[b'a'; 23]).unwrap().host.as_str(), "a");
    }

    #[test]
    fn host_routing_info_with_an_impossible_name_is_refused() {
        for host in [&b"a b"[..], b"..", b"\xff\xfe"] {
            assert_eq!(HostRoute::parse(&[&[0; 22], host].concat()), Err(InvalidRouting::HostName));
        }
    }

    #[test]
    fn ipv4_routing_info_of_another_length_is_refused() {
        for len in [0, 25, 27] {
            assert_eq!(Ipv4Route::parse(&vec![0; len]), Err(InvalidRouting::Length { len }));
        }
        assert_eq!(Ipv4Route::parse(&[1; 26]).unwrap().address.octets(), [1; 4]);
    }

    #[test]
    fn types_that_do_not_relay_name_no_next_hop() {
        for routing_type in [RoutingType::DROP, RoutingType(5), RoutingType::SMTP, RoutingType(u16::MAX)] {
            assert_eq!(NextHop::parse(routing_type, &[1; 26]), Err(InvalidRouting::NotRelay(routing_type)));
        }
    }
}
