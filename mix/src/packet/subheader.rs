//! The subheader that one mix reads (minion-spec 3.2.1): what to do with the packet, and the secret to do it with.
//!
//! It travels as one RSA block of 256 octets that holds 214. What of the routing info does not fit there overflows
//! into the rest of the header; what room it leaves is filled with the beginning of that rest.

use std::fmt;

use super::routing::RoutingType;
use super::{HEADER_LEN, InvalidPacket};
use crate::crypto::keyset::{SECRET_LEN, SharedSecret};
use crate::crypto::pk::{OAEP_OVERHEAD, PACKET_KEY_LEN};
use crate::crypto::{DIGEST_LEN, Digest};

/// The packet format spoken here, 0.3 (minion-spec 3.2.1).
pub const VERSION: [u8; 2] = [0, 3];
/// Fixed part of a subheader: version, secret, digest, length and type of the routing info (minion-spec 3.2.1).
pub const MIN_SUBHEADER_LEN: usize = 2 + SECRET_LEN + DIGEST_LEN + 2 + 2;
/// Octets of an encrypted subheader: one RSA block (minion-spec 3.2.1).
pub const ENC_SUBHEADER_LEN: usize = PACKET_KEY_LEN;
/// Octets that the RSA block holds.
pub const MAX_SUBHEADER_LEN: usize = ENC_SUBHEADER_LEN - OAEP_OVERHEAD;
/// Octets of routing info that fit into the RSA block.
pub const MAX_INNER_INFO_LEN: usize = MAX_SUBHEADER_LEN - MIN_SUBHEADER_LEN;
/// Octets of the header after the first encrypted subheader.
pub const HEADER_REST_LEN: usize = HEADER_LEN - ENC_SUBHEADER_LEN;
/// Octets that a mix takes off the header beside the routing info, and so the junk that it appends beside it.
pub const SUBHEADER_OVERHEAD: usize = OAEP_OVERHEAD + MIN_SUBHEADER_LEN;
const _: () = assert!(MIN_SUBHEADER_LEN == 42 && MAX_SUBHEADER_LEN == 214 && MAX_INNER_INFO_LEN == 172);

/// A decrypted subheader, as far as the RSA block holds it.
pub struct Subheader {
    /// What the sender shares with this mix.
    pub secret: SharedSecret,
    /// SHA-1 of the rest of the header, as this mix sees it.
    pub digest: Digest,
    /// What to do with the packet.
    pub routing_type: RoutingType,
    /// Octets of the whole routing info.
    pub info_len: usize,
    /// The 172 octets after the fixed part: routing info, then, if that is shorter, the beginning of the next header.
    inner: [u8; MAX_INNER_INFO_LEN],
}

/// Prints nothing of it: the routing info says where the packet goes.
impl fmt::Debug for Subheader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subheader(..)")
    }
}

impl Subheader {
    /// Reads the content of an RSA block.
    ///
    /// # Errors
    /// [`InvalidPacket::SubheaderLength`] for all but 214 octets, [`InvalidPacket::Version`] for all but 0.3,
    /// [`InvalidPacket::RoutingInfoOverrun`] when the routing info claims more than the header can hold.
    pub fn parse(octets: &[u8]) -> Result<Self, InvalidPacket> {
        let wrong_len = || InvalidPacket::SubheaderLength { len: octets.len() };
        let octets: &[u8; MAX_SUBHEADER_LEN] = octets.try_into().map_err(|_| wrong_len())?;
        let (&[major, minor], rest) = octets.split_first_chunk::<2>().ok_or_else(wrong_len)?;
        if [major, minor] != VERSION {
            return Err(InvalidPacket::Version { major, minor });
        }
        let (secret, rest) = rest.split_first_chunk::<SECRET_LEN>().ok_or_else(wrong_len)?;
        let (digest, rest) = rest.split_first_chunk::<DIGEST_LEN>().ok_or_else(wrong_len)?;
        let (info_len, rest) = rest.split_first_chunk::<2>().ok_or_else(wrong_len)?;
        let (routing_type, rest) = rest.split_first_chunk::<2>().ok_or_else(wrong_len)?;
        let info_len = usize::from(u16::from_be_bytes(*info_len));
        // The reference reads on into its own junk here; no sender can mean that.
        if info_len > MAX_INNER_INFO_LEN + HEADER_REST_LEN {
            return Err(InvalidPacket::RoutingInfoOverrun { len: info_len });
        }
        Ok(Self {
            secret: SharedSecret::new(*secret),
            digest: Digest(*digest),
            routing_type: RoutingType(u16::from_be_bytes(*routing_type)),
            info_len,
            inner: rest.try_into().map_err(|_| wrong_len())?,
        })
    }

    /// The part of the routing info that the RSA block holds, and the beginning of the next header behind it.
    pub fn split_inner(&self) -> (&[u8], &[u8]) {
        self.inner.split_at(self.info_len.min(MAX_INNER_INFO_LEN))
    }

    /// Octets of routing info that overflowed into the rest of the header.
    pub fn overflow_len(&self) -> usize {
        self.info_len.saturating_sub(MAX_INNER_INFO_LEN)
    }
}

/// Octets of the next header that go into the RSA block behind routing info of `info_len` octets.
pub fn underflow_len(info_len: usize) -> usize {
    MAX_INNER_INFO_LEN.saturating_sub(info_len)
}

/// The 214 octets to encrypt: the fixed part, up to 172 octets of `info`, then `underflow`.
///
/// `underflow` has [`underflow_len`] octets, so that the sum is always the same.
pub fn pack(
    secret: &SharedSecret,
    digest: &Digest,
    routing_type: RoutingType,
    info: &[u8],
    underflow: &[u8],
) -> zeroize::Zeroizing<Vec<u8>> {
    let len = u16::try_from(info.len()).expect("fits a header of 2048 octets: checked by `header::fits`");
    let (inner, _) = info.split_at(info.len().min(MAX_INNER_INFO_LEN));
    zeroize::Zeroizing::new(
        [&VERSION[..], secret.expose(), &digest.0, &len.to_be_bytes(), &routing_type.0.to_be_bytes(), inner, underflow]
            .concat(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subheader(version: [u8; 2], info_len: u16) -> Vec<u8> {
        let mut octets = vec![0; MAX_SUBHEADER_LEN];
        octets[..2].copy_from_slice(&version);
        octets[38..40].copy_from_slice(&info_len.to_be_bytes());
        octets
    }

    #[test]
    fn subheader_of_another_length_is_refused() {
        for len in [0, 41, 42, 213, 215] {
            assert_eq!(Subheader::parse(&vec![0; len]).unwrap_err(), InvalidPacket::SubheaderLength { len });
        }
    }

    #[test]
    fn subheader_of_another_version_is_refused() {
        for [major, minor] in [[0, 2], [0, 4], [1, 3], [255, 255]] {
            let found = Subheader::parse(&subheader([major, minor], 0)).unwrap_err();
            assert_eq!(found, InvalidPacket::Version { major, minor });
        }
    }

    #[test]
    fn routing_info_longer_than_the_header_is_refused() {
        assert_eq!(Subheader::parse(&subheader(VERSION, 1964)).unwrap().overflow_len(), 1792);
        let found = Subheader::parse(&subheader(VERSION, 1965)).unwrap_err();
        assert_eq!(found, InvalidPacket::RoutingInfoOverrun { len: 1965 });
    }

    #[test]
    fn short_routing_info_leaves_room_for_the_next_header() {
        let parsed = Subheader::parse(&subheader(VERSION, 30)).unwrap();
        let (info, underflow) = parsed.split_inner();
        assert_eq!((info.len(), underflow.len(), underflow_len(30)), (30, 142, 142));
    }
}
