//! Packets of 32 KB: two headers and a payload (minion-spec 3.2, 3.3).
//!
//! `build` makes them, `unwrap` takes one layer off, `surb` is the reply block that carries a ready-made second
//! header. What is inside a payload is `crate::payload`'s.

pub mod build;
pub mod header;
pub mod routing;
pub mod subheader;
pub mod surb;
pub mod unwrap;

use std::fmt;

pub use routing::{HostName, HostRoute, Ipv4Route, NextHop, RoutingType};
pub use surb::Surb;

use crate::crypto::{DIGEST_LEN, Digest, sha1};

/// Octets in a packet (minion-spec 3.2).
pub const PACKET_LEN: usize = 32 * 1024;
/// Octets in each of the two headers (minion-spec 3.2).
pub const HEADER_LEN: usize = 2048;
/// Octets in a payload (minion-spec 3.2).
pub const PAYLOAD_LEN: usize = 28 * 1024;
/// Octets in a decoding handle (E2E-spec 1).
pub const HANDLE_LEN: usize = 20;
const _: () = assert!(2 * HEADER_LEN + PAYLOAD_LEN == PACKET_LEN);

/// One header of 2048 octets, encrypted for the mixes of one leg.
pub type Header = [u8; HEADER_LEN];

/// A packet as it travels: header 1 | header 2 | payload, 32768 octets.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet(Box<[u8; PACKET_LEN]>);

impl Packet {
    /// Takes 32768 octets as a packet.
    ///
    /// # Errors
    /// [`InvalidPacket::Length`] for any other count.
    pub fn from_bytes(octets: &[u8]) -> Result<Self, InvalidPacket> {
        Self::from_box(octets.into())
    }

    /// As [`Packet::from_bytes`], of octets that need not be copied.
    ///
    /// # Errors
    /// [`InvalidPacket::Length`].
    pub fn from_box(octets: Box<[u8]>) -> Result<Self, InvalidPacket> {
        octets.try_into().map(Self).map_err(|octets| InvalidPacket::Length { len: octets.len() })
    }

    /// Puts a packet together.
    pub fn from_parts(header1: &Header, header2: &Header, payload: &Payload) -> Self {
        let mut octets = Vec::with_capacity(PACKET_LEN);
        octets.extend_from_slice(header1);
        octets.extend_from_slice(header2);
        octets.extend_from_slice(payload.as_bytes());
        Self(octets.into_boxed_slice().try_into().expect("2048 + 2048 + 28672 octets: asserted above"))
    }

    /// The octets as they go over the wire.
    pub fn as_bytes(&self) -> &[u8; PACKET_LEN] {
        &self.0
    }

    /// SHA-1 of the whole packet.
    pub fn digest(&self) -> Digest {
        sha1(&[&self.0[..]])
    }

    /// Header 1, header 2, payload.
    pub fn parts(&self) -> (&Header, &Header, &[u8; PAYLOAD_LEN]) {
        let (header1, rest) = self.0.split_first_chunk().expect("32768 octets: Packet");
        let (header2, payload) = rest.split_first_chunk().expect("30720 octets left: Packet");
        (header1, header2, payload.try_into().expect("28672 octets left: Packet"))
    }

    /// As [`Packet::parts`], to be changed in place.
    fn parts_mut(&mut self) -> (&mut Header, &mut Header, &mut [u8; PAYLOAD_LEN]) {
        let (header1, rest) = self.0.split_first_chunk_mut().expect("32768 octets: Packet");
        let (header2, payload) = rest.split_first_chunk_mut().expect("30720 octets left: Packet");
        (header1, header2, payload.try_into().expect("28672 octets left: Packet"))
    }
}

/// Prints nothing of the content: two packets must not be linked through a log.
impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Packet(..)")
    }
}

/// The end-to-end part of a packet: 28672 octets.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Box<[u8; PAYLOAD_LEN]>);

impl Payload {
    /// Takes 28672 octets as a payload.
    ///
    /// # Errors
    /// [`InvalidPacket::PayloadLength`] for any other count.
    pub fn from_bytes(octets: &[u8]) -> Result<Self, InvalidPacket> {
        Self::from_box(octets.into())
    }

    /// As [`Payload::from_bytes`], of octets that need not be copied.
    ///
    /// # Errors
    /// [`InvalidPacket::PayloadLength`].
    pub fn from_box(octets: Box<[u8]>) -> Result<Self, InvalidPacket> {
        octets.try_into().map(Self).map_err(|octets| InvalidPacket::PayloadLength { len: octets.len() })
    }

    /// Random octets: the payload of a DROP packet (E2E-spec 3.1).
    pub fn random(rng: &mut impl rand::CryptoRng) -> Self {
        let mut octets = vec![0; PAYLOAD_LEN];
        rng.fill_bytes(&mut octets);
        Self(octets.into_boxed_slice().try_into().expect("28672 octets: made above"))
    }

    /// The octets.
    pub fn as_bytes(&self) -> &[u8; PAYLOAD_LEN] {
        &self.0
    }

    /// The octets, to be encrypted in place.
    pub fn as_mut_bytes(&mut self) -> &mut [u8; PAYLOAD_LEN] {
        &mut self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Payload(..)")
    }
}

/// A decoding handle: 20 octets that tell the recipient how to decode (E2E-spec 1). The top bit is zero.
/// Whoever links two sightings of one handle links two people, so it is never printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub [u8; HANDLE_LEN]);
const _: () = assert!(HANDLE_LEN == DIGEST_LEN);

impl Handle {
    /// A fresh handle: takes 20 octets from `rng` and clears the top bit, as for RSA ciphertexts (E2E-spec 2.3).
    pub fn random(rng: &mut impl rand::CryptoRng) -> Self {
        let mut octets = [0; HANDLE_LEN];
        rng.fill_bytes(&mut octets);
        octets[0] &= 0x7f;
        Self(octets)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle(..)")
    }
}

/// Why octets from a stranger are not a packet that this mix can serve. All variants blame the sender of the bytes;
/// the packet is dropped and nobody is told which it was.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidPacket {
    /// A packet has exactly 32768 octets.
    #[error("packet of {len} octets; it must have 32768")]
    Length {
        /// Octets found.
        len: usize,
    },
    /// A payload has exactly 28672 octets.
    #[error("payload of {len} octets; it must have 28672")]
    PayloadLength {
        /// Octets found.
        len: usize,
    },
    /// No packet key opens the first subheader.
    #[error("the subheader opens under none of this mix's packet keys")]
    WrongKey,
    /// The RSA block opened to another length than 214 octets.
    #[error("encrypted subheader holds {len} octets; it must hold 214")]
    SubheaderLength {
        /// Octets found.
        len: usize,
    },
    /// Only packet format 0.3 is spoken.
    #[error("packet format {major}.{minor}; only 0.3 is understood")]
    Version {
        /// Major number found.
        major: u8,
        /// Minor number found.
        minor: u8,
    },
    /// The header is not the one that the subheader was made for.
    #[error("the digest of the header does not match its subheader")]
    HeaderDigest,
    /// The routing info claims more octets than the header has.
    #[error("routing info of {len} octets overruns the header")]
    RoutingInfoOverrun {
        /// Octets claimed.
        len: usize,
    },
    /// Below 0x0100, and neither DROP nor a known way to relay.
    #[error("routing type {0} is unknown")]
    UnknownRoutingType(RoutingType),
    /// The routing info does not parse as its type demands.
    #[error("routing info: {0}")]
    RoutingInfo(#[from] routing::InvalidRouting),
}
