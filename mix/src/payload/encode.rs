//! From a message to its payloads (E2E-spec 2.2.1).
//!
//! Encrypting the payloads of encrypted forward messages is `packet::build`'s.

use std::fmt;

use rand::CryptoRng;

use super::compress::compress;
use super::fragment::{self, Fragmentation};
use super::{Capacity, SINGLETON_HEADER_LEN};
use crate::crypto::{Digest, sha1};
use crate::packet::build::Exit;
use crate::packet::{InvalidPacket, Payload};

/// A payload of either capacity, as it is before encryption.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedPayload(Vec<u8>);

impl EncodedPayload {
    pub(super) fn from_octets(octets: Vec<u8>) -> Self {
        debug_assert!(Capacity::of_payload_len(octets.len()).is_some());
        Self(octets)
    }

    /// The octets: 28672, or 28634 to be encrypted forward.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The payload of a packet, when it needs no encryption.
    ///
    /// # Errors
    /// [`InvalidPacket::PayloadLength`] when it was made to be encrypted forward.
    pub fn into_payload(self) -> Result<Payload, InvalidPacket> {
        Payload::from_bytes(&self.0)
    }
}

/// Prints nothing of the content.
impl fmt::Debug for EncodedPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncodedPayload(..)")
    }
}

/// Why a message cannot be sent. Its author is to blame.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum Unencodable {
    /// The size field of fragments has 32 bits.
    #[error("a message of {len} octets is too long, even compressed")]
    TooLong {
        /// Octets after compression.
        len: usize,
    },
    /// The exit address goes before the message with a length of 16 bits.
    #[error("an exit address of {len} octets is too long")]
    AddressTooLong {
        /// Octets found.
        len: usize,
    },
}

/// A compressed message of which it is known how many payloads it needs.
pub struct Encoding {
    compressed: Vec<u8>,
    capacity: Capacity,
    /// None for a singleton.
    fragmentation: Option<Fragmentation>,
}

/// Prints nothing of the content.
impl fmt::Debug for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoding({} payloads)", self.count())
    }
}

impl Encoding {
    /// Compresses `message`: its headers, see [`super::headers::encode`], and its body. If it has to be fragmented and
    /// the exit is to reassemble it, `reassembled_for` says what the exit does then.
    ///
    /// # Errors
    /// [`Unencodable`].
    pub fn new(message: &[u8], capacity: Capacity, reassembled_for: Option<&Exit>) -> Result<Self, Unencodable> {
        let mut compressed = compress(message);
        if compressed.len() <= capacity.singleton_len() {
            return Ok(Self { compressed, capacity, fragmentation: None });
        }
        if let Some(exit) = reassembled_for {
            // After compression and with the type first: here the reference differs from E2E-spec 2.2.2.1.
            compressed.splice(..0, exit_prefix(exit)?);
        }
        let len = u32::try_from(compressed.len()).map_err(|_| Unencodable::TooLong { len: compressed.len() })?;
        let fragmentation = Fragmentation::new(len, capacity).expect("more than a singleton holds, so two fragments");
        Ok(Self { compressed, capacity, fragmentation: Some(fragmentation) })
    }

    /// Payloads of the message: as many packets, or reply blocks, are needed.
    pub fn count(&self) -> usize {
        self.fragmentation
            .map_or(1, |fragmentation| usize::try_from(fragmentation.fragments()).expect("fits: it can be in memory"))
    }

    /// The payloads: one, or fragments in order; whoever sends them mixes that up. Takes from `rng` the padding of a
    /// singleton, or the message id and then the padding.
    pub fn payloads(self, rng: &mut impl CryptoRng) -> Vec<EncodedPayload> {
        match &self.fragmentation {
            None => vec![singleton(&self.compressed, self.capacity, rng)],
            Some(fragmentation) => fragment::split(self.compressed, fragmentation, rng),
        }
    }
}

/// The payloads of `message`, see [`Encoding`].
///
/// # Errors
/// [`Unencodable`].
pub fn encode(
    message: &[u8],
    capacity: Capacity,
    reassembled_for: Option<&Exit>,
    rng: &mut impl CryptoRng,
) -> Result<Vec<EncodedPayload>, Unencodable> {
    Ok(Encoding::new(message, capacity, reassembled_for)?.payloads(rng))
}

/// How many payloads `message` needs.
///
/// # Errors
/// [`Unencodable`].
pub fn count(message: &[u8], capacity: Capacity, reassembled_for: Option<&Exit>) -> Result<usize, Unencodable> {
    Encoding::new(message, capacity, reassembled_for).map(|encoding| encoding.count())
}

/// Routing type | length of the address | address.
fn exit_prefix(exit: &Exit) -> Result<Vec<u8>, Unencodable> {
    let len = exit.address.len();
    let len = u16::try_from(len).map_err(|_| Unencodable::AddressTooLong { len })?;
    Ok([&exit.exit_type.0.to_be_bytes()[..], &len.to_be_bytes(), &exit.address].concat())
}

/// Size, the top bit clear | digest of all that follows | compressed text | padding.
fn singleton(compressed: &[u8], capacity: Capacity, rng: &mut impl CryptoRng) -> EncodedPayload {
    let size = u16::try_from(compressed.len()).expect("at most 28650: it fits a singleton");
    let mut payload = vec![0; capacity.payload_len()];
    let (header, content) = payload.split_at_mut(SINGLETON_HEADER_LEN);
    let (text, padding) = content.split_at_mut(compressed.len());
    text.copy_from_slice(compressed);
    rng.fill_bytes(padding);
    let Digest(digest) = sha1(&[content]);
    header.copy_from_slice(&[&size.to_be_bytes()[..], &digest].concat());
    EncodedPayload(payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Unencodable, count, encode};
    use crate::crypto::CounterRng;
    use crate::crypto::stream::{StreamKey, prng};
    use crate::packet::RoutingType;
    use crate::packet::build::Exit;
    use crate::payload::compress::decompress;
    use crate::payload::{Capacity, Content, InvalidPayload};

    fn rng() -> CounterRng {
        CounterRng::new(&StreamKey::new([3; 16]))
    }

    /// Octets that do not compress.
    fn noise(len: usize) -> Vec<u8> {
        prng(&StreamKey::new([9; 16]), len)
    }

    #[test]
    fn one_payload_as_long_as_the_compressed_text_fits() {
        // Stored blocks: 6 octets of zlib around, 5 for each block.
        let longest = |capacity: Capacity| capacity.singleton_len() - 16;
        for capacity in [Capacity::Plain, Capacity::EncryptedForward] {
            assert_eq!(count(&noise(longest(capacity)), capacity, None), Ok(1));
            assert_eq!(count(&noise(longest(capacity) + 1), capacity, None), Ok(3));
        }
    }

    #[test]
    fn address_too_long_for_its_length_field_is_refused() {
        let exit = Exit { exit_type: RoutingType::SMTP, address: vec![b'a'; 65_536] };
        let refused = encode(&noise(40_000), Capacity::Plain, Some(&exit), &mut rng());
        assert_eq!(refused, Err(Unencodable::AddressTooLong { len: 65_536 }));
    }

    #[test]
    fn payload_to_be_encrypted_forward_is_not_sent_as_it_is() {
        let mut payloads = encode(b"text", Capacity::EncryptedForward, None, &mut rng()).unwrap();
        assert!(payloads.remove(0).into_payload().is_err());
        let mut payloads = encode(b"text", Capacity::Plain, None, &mut rng()).unwrap();
        assert!(payloads.remove(0).into_payload().is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn short_message_comes_back(message in prop::collection::vec(any::<u8>(), 0..5000)) {
            for capacity in [Capacity::Plain, Capacity::EncryptedForward] {
                let payloads = encode(&message, capacity, None, &mut rng()).unwrap();
                let Content::Singleton { compressed } = Content::read(payloads[0].as_bytes()).unwrap() else { panic!() };
                prop_assert_eq!(decompress(&compressed, message.len()).unwrap(), message.clone());
            }
        }

        #[test]
        fn one_flipped_bit_spoils_the_checksum(at in 1usize..28_672, bit in 0u32..8, long: bool) {
            let message = if long { noise(40_000) } else { b"text".to_vec() };
            let payloads = encode(&message, Capacity::Plain, None, &mut rng()).unwrap();
            let mut octets = payloads[0].as_bytes().to_vec();
            // The size or index before the digest is not under it, as the formats have it.
            let at = at.max(if long { 3 } else { 2 });
            octets[at] ^= 1 << bit;
            prop_assert_eq!(Content::read(&octets), Err(InvalidPayload::Checksum));
        }
    }
}
