//! Single-use reply blocks: a ready-made second header and how to reach its first mix (minion-spec 3.3.2).
//!
//! Making one is `build::reply_block`; text armour is `payload::armor`.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::routing::{InvalidRouting, NextHop, RoutingType};
use super::{HEADER_LEN, Header};
use crate::crypto::keyset::{SECRET_LEN, SharedSecret};
use crate::crypto::{Digest, sha1};

const MAGIC: &[u8; 4] = b"SURB";
/// Binary format of reply blocks (the reference writes 0.1; its text armour says 0.2).
const VERSION: [u8; 2] = [0, 1];
/// Octets before the routing info: magic, version, expiry, header, length, type, key (minion-spec 3.3.2).
const FIXED_LEN: usize = 4 + 2 + 4 + HEADER_LEN + 2 + 2 + SECRET_LEN;
const _: () = assert!(FIXED_LEN == 2078);

/// A single-use reply block.
#[derive(Clone, PartialEq, Eq)]
pub struct Surb {
    /// The second header of the packet that will use this block.
    pub header: Box<Header>,
    /// When the mixes on it may forget their keys, in seconds since 1970.
    pub use_by: u32,
    /// The first mix on it, always reached with a swap.
    pub first_hop: NextHop,
    /// Encrypts the payload, so that the swap point does not read it.
    pub key: SharedSecret,
}

/// Why octets are not a reply block. Blames whoever made them.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidSurb {
    /// Fewer octets than the fixed part, or than the routing info that it announces.
    #[error("a reply block of {len} octets is cut short")]
    Truncated {
        /// Octets found.
        len: usize,
    },
    /// Octets after the end.
    #[error("{len} octets follow the reply block")]
    Trailing {
        /// Octets too many.
        len: usize,
    },
    /// Does not begin with SURB.
    #[error("not a reply block")]
    Magic,
    /// Only 0.1 is understood.
    #[error("reply block format {major}.{minor}; only 0.1 is understood")]
    Version {
        /// Major number found.
        major: u8,
        /// Minor number found.
        minor: u8,
    },
    /// The first mix must be reached with a swap: SWAP_FWD_HOST or SWAP_FWD_IPV4.
    #[error("first hop: {0}")]
    FirstHop(#[from] InvalidRouting),
}

impl Surb {
    /// Reads one reply block that fills `octets` exactly.
    ///
    /// # Errors
    /// [`InvalidSurb`]; stricter than the reference, which lets octets follow.
    pub fn parse(octets: &[u8]) -> Result<Self, InvalidSurb> {
        match Self::parse_prefix(octets)? {
            (surb, []) => Ok(surb),
            (_, rest) => Err(InvalidSurb::Trailing { len: rest.len() }),
        }
    }

    /// Reads several reply blocks, one after the other, white space between them allowed (as the reference's files).
    ///
    /// # Errors
    /// The first [`InvalidSurb`] met.
    pub fn parse_many(octets: &[u8]) -> Result<Vec<Self>, InvalidSurb> {
        let mut surbs = Vec::new();
        let mut rest = octets.trim_ascii_start();
        while !rest.is_empty() {
            let (surb, after) = Self::parse_prefix(rest)?;
            surbs.push(surb);
            rest = after.trim_ascii_start();
        }
        Ok(surbs)
    }

    fn parse_prefix(octets: &[u8]) -> Result<(Self, &[u8]), InvalidSurb> {
        let cut = || InvalidSurb::Truncated { len: octets.len() };
        let (fixed, rest) = octets.split_first_chunk::<FIXED_LEN>().ok_or_else(cut)?;
        let (magic, fixed) = fixed.split_first_chunk::<4>().ok_or_else(cut)?;
        if magic != MAGIC {
            return Err(InvalidSurb::Magic);
        }
        let (&[major, minor], fixed) = fixed.split_first_chunk::<2>().ok_or_else(cut)?;
        if [major, minor] != VERSION {
            return Err(InvalidSurb::Version { major, minor });
        }
        let (use_by, fixed) = fixed.split_first_chunk::<4>().ok_or_else(cut)?;
        let (header, fixed) = fixed.split_first_chunk::<HEADER_LEN>().ok_or_else(cut)?;
        let (len, fixed) = fixed.split_first_chunk::<2>().ok_or_else(cut)?;
        let (routing_type, key) = fixed.split_first_chunk::<2>().ok_or_else(cut)?;
        let key: &[u8; SECRET_LEN] = key.try_into().map_err(|_| cut())?;
        let len = usize::from(u16::from_be_bytes(*len));
        let (info, after) = rest.split_at_checked(len).ok_or_else(cut)?;
        let routing_type = RoutingType(u16::from_be_bytes(*routing_type));
        if !routing_type.is_swap() {
            return Err(InvalidRouting::NotRelay(routing_type).into());
        }
        let surb = Self {
            header: Box::new(*header),
            use_by: u32::from_be_bytes(*use_by),
            first_hop: NextHop::parse(routing_type, info)?,
            key: SharedSecret::new(*key),
        };
        Ok((surb, after))
    }

    /// The binary form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (routing_type, info) = self.swap_routing();
        let len =
            u16::try_from(info.len()).expect("a host name that was read from a length of two octets, or fits a header");
        [
            &MAGIC[..],
            &VERSION,
            &self.use_by.to_be_bytes(),
            &self.header[..],
            &len.to_be_bytes(),
            &routing_type.0.to_be_bytes(),
            self.key.expose(),
            &info,
        ]
        .concat()
    }

    /// Routing type and info that the last mix of the first leg gets: the swap to the first mix of this block.
    pub fn swap_routing(&self) -> (RoutingType, Vec<u8>) {
        match &self.first_hop {
            NextHop::Host(route) => (RoutingType::SWAP_FWD_HOST, route.to_bytes()),
            NextHop::Ipv4(route) => (RoutingType::SWAP_FWD_IPV4, route.to_bytes()),
        }
    }

    /// SHA-1 of the binary form: under this name the SURB log remembers that it was used.
    pub fn digest(&self) -> Digest {
        sha1(&[&self.to_bytes()])
    }

    /// The instant of `use_by`.
    pub fn expires(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::from(self.use_by))
    }
}

/// Prints nothing that would recognise the block again.
impl fmt::Debug for Surb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Surb(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::{FIXED_LEN, InvalidSurb, Surb};
    use crate::crypto::KeyId;
    use crate::crypto::keyset::SharedSecret;
    use crate::packet::routing::InvalidRouting;
    use crate::packet::{HEADER_LEN, HostName, HostRoute, NextHop, RoutingType};

    fn surb() -> Vec<u8> {
        let host = HostName::parse("mix.example.net").unwrap();
        let route = HostRoute { host, port: 48_099, key_id: KeyId([1; 20]) };
        let (header, key) = (Box::new([2; HEADER_LEN]), SharedSecret::new([3; 16]));
        Surb { header, use_by: 2_000_000_000, first_hop: NextHop::Host(route), key }.to_bytes()
    }

    /// The reply block with these octets at `place`.
    fn changed(place: usize, octets: &[u8]) -> Vec<u8> {
        let mut surb = surb();
        surb.splice(place..place + octets.len(), octets.iter().copied());
        surb
    }

    const LEN_PLACE: usize = 10 + HEADER_LEN;
    const TYPE_PLACE: usize = LEN_PLACE + 2;

    #[test]
    fn reply_block_cut_short_is_refused() {
        let surb = surb();
        for len in [0, 4, FIXED_LEN - 1, FIXED_LEN, surb.len() - 1] {
            assert_eq!(Surb::parse(&surb[..len]), Err(InvalidSurb::Truncated { len }));
        }
    }

    #[test]
    fn octets_behind_a_reply_block_are_refused() {
        assert_eq!(Surb::parse(&[surb(), b"\n\n\n".to_vec()].concat()), Err(InvalidSurb::Trailing { len: 3 }));
    }

    #[test]
    fn several_reply_blocks_are_read_up_to_the_first_bad_one() {
        let two = [surb(), b"\n\n".to_vec(), surb()].concat();
        assert_eq!(Surb::parse_many(&two).unwrap().len(), 2);
        assert_eq!(Surb::parse_many(&[two, changed(0, b"BRUS")].concat()), Err(InvalidSurb::Magic));
        assert_eq!(Surb::parse_many(b" \n"), Ok(Vec::new()));
    }

    #[test]
    fn something_else_is_not_taken_for_a_reply_block() {
        assert_eq!(Surb::parse(&changed(0, b"SURV")), Err(InvalidSurb::Magic));
    }

    #[test]
    fn reply_block_of_another_version_is_refused() {
        assert_eq!(Surb::parse(&changed(4, &[0, 2])), Err(InvalidSurb::Version { major: 0, minor: 2 }));
        assert_eq!(Surb::parse(&changed(4, &[1, 1])), Err(InvalidSurb::Version { major: 1, minor: 1 }));
    }

    #[test]
    fn reply_block_that_does_not_begin_with_a_swap_is_refused() {
        for routing_type in [RoutingType::DROP, RoutingType::FWD_HOST, RoutingType::FWD_IPV4, RoutingType::SMTP] {
            let refusal = InvalidSurb::FirstHop(InvalidRouting::NotRelay(routing_type));
            assert_eq!(Surb::parse(&changed(TYPE_PLACE, &routing_type.0.to_be_bytes())), Err(refusal));
        }
    }

    #[test]
    fn reply_block_whose_first_mix_has_no_possible_place_is_refused() {
        let refused = |why| Err(InvalidSurb::FirstHop(why));
        assert_eq!(Surb::parse(&changed(FIXED_LEN + 22, b".")), refused(InvalidRouting::HostName));
        assert_eq!(Surb::parse(&changed(TYPE_PLACE, &[0, 2])), refused(InvalidRouting::Length { len: 37 }));
        let mut short = changed(LEN_PLACE, &[0, 22]);
        short.truncate(FIXED_LEN + 22);
        assert_eq!(Surb::parse(&short), refused(InvalidRouting::Length { len: 22 }));
    }
}
