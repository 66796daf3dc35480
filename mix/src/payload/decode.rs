//! From a payload to its content, with the keys of its recipient (E2E-spec 2.3.1).
//!
//! What an exit makes of it, who has no keys, is `exit`'s.

use std::fmt;

use rand::Rng as _;

use super::fragment::{Fragment, InvalidFragment, MESSAGE_ID_LEN, MessageId};
use super::{Capacity, SINGLETON_HEADER_LEN};
use crate::crypto::keyset::{SECRET_LEN, SharedSecret};
use crate::crypto::pk::PrivateKey;
use crate::crypto::surb_key::SurbKey;
use crate::crypto::{DIGEST_LEN, sha1};
use crate::packet::{Handle, Payload};

/// Top bit of the first octet: clear in singletons, set in fragments (E2E-spec 2.2.1.2).
pub(super) const FRAGMENT_FLAG: u8 = 0x80;

/// Secrets that a reply can have gone through: 16 mixes, and the reply block's own (minion-spec 3.2.2).
const REPLY_SECRETS_MAX: usize = 17;

/// What is in a payload that is readable.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// A whole message, compressed.
    Singleton {
        /// To be given to [`super::compress::decompress`].
        compressed: Vec<u8>,
    },
    /// A part of a message.
    Fragment(Fragment),
}

/// Prints which it is.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Singleton { .. } => "Singleton(..)",
            Self::Fragment(_) => "Fragment(..)",
        })
    }
}

/// Why octets are not a readable payload. Blames whoever made them, except for [`InvalidPayload::Checksum`], which is
/// what encrypted payloads look like.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidPayload {
    /// Neither 28672 nor 28634 octets.
    #[error("payload of {len} octets; it must have 28672 or 28634")]
    Length {
        /// Octets found.
        len: usize,
    },
    /// Encrypted, or damaged on the way.
    #[error("the checksum of the payload does not hold")]
    Checksum,
    /// A singleton that says it holds more than it can.
    #[error("a singleton of {size} octets holds at most {room}")]
    Size {
        /// Octets stated.
        size: usize,
        /// Octets that there are.
        room: usize,
    },
    /// Not a possible fragment.
    #[error(transparent)]
    Fragment(#[from] InvalidFragment),
}

impl Content {
    /// Reads a payload that is in the clear, of either capacity.
    ///
    /// # Errors
    /// [`InvalidPayload`].
    pub fn read(octets: &[u8]) -> Result<Self, InvalidPayload> {
        let len = InvalidPayload::Length { len: octets.len() };
        Capacity::of_payload_len(octets.len()).ok_or(len)?;
        let (first, _) = octets.split_first().ok_or(len)?;
        if first & FRAGMENT_FLAG == 0 { Self::read_singleton(octets) } else { Self::read_fragment(octets) }
    }

    fn read_singleton(octets: &[u8]) -> Result<Self, InvalidPayload> {
        let len = InvalidPayload::Length { len: octets.len() };
        let (header, content) = octets.split_first_chunk::<SINGLETON_HEADER_LEN>().ok_or(len)?;
        let (size, digest) = header.split_first_chunk().ok_or(len)?;
        if sha1(&[content]).0 != *digest {
            return Err(InvalidPayload::Checksum);
        }
        let size = usize::from(u16::from_be_bytes(*size));
        let compressed = content.get(..size).ok_or(InvalidPayload::Size { size, room: content.len() })?;
        Ok(Self::Singleton { compressed: compressed.to_vec() })
    }

    fn read_fragment(octets: &[u8]) -> Result<Self, InvalidPayload> {
        let len = InvalidPayload::Length { len: octets.len() };
        let (&[high, middle, low], rest) = octets.split_first_chunk().ok_or(len)?;
        let (digest, rest) = rest.split_first_chunk::<DIGEST_LEN>().ok_or(len)?;
        if sha1(&[rest]).0 != *digest {
            return Err(InvalidPayload::Checksum);
        }
        let (message_id, rest) = rest.split_first_chunk::<MESSAGE_ID_LEN>().ok_or(len)?;
        let (message_len, rest) = rest.split_first_chunk().ok_or(len)?;
        let index = u32::from_be_bytes([0, high & !FRAGMENT_FLAG, middle, low]);
        let fragment = Fragment::new(index, MessageId(*message_id), u32::from_be_bytes(*message_len), rest.to_vec())?;
        Ok(Self::Fragment(fragment))
    }
}

/// What a recipient may open payloads with.
#[derive(Clone, Copy, Debug, Default)]
pub struct DecodingKeys<'a> {
    /// Keys of the reply blocks of its identities.
    pub surb_keys: &'a [SurbKey],
    /// Keys that encrypted forward messages are encrypted to.
    pub private_keys: &'a [PrivateKey],
}

/// A payload that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What was in it.
    pub content: Content,
    /// With what. The user must be told which identity a reply came to, or its correspondents could find out that two
    /// identities are one (E2E-spec 2.2.5).
    pub opened_with: OpenedWith,
}

/// What opened a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenedWith {
    /// Nothing: a plaintext forward message, that others may have read too.
    Nothing,
    /// A reply, and the place of its key in [`DecodingKeys::surb_keys`].
    SurbKey(usize),
    /// An encrypted forward message, and the place of its key in [`DecodingKeys::private_keys`].
    PrivateKey(usize),
}

/// Why a payload was not decoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum Undecodable {
    /// Junk, or for other keys.
    #[error("the message is for none of the keys at hand")]
    NoKey,
    /// It was opened, but what came out is no payload.
    #[error("the message is damaged: {0}")]
    Damaged(#[from] InvalidPayload),
}

/// Reads a payload: in the clear if it is, else as a reply, else as an encrypted forward message. Without a handle
/// only the first is possible.
///
/// # Errors
/// [`Undecodable`].
pub fn decode(payload: &Payload, handle: Option<&Handle>, keys: &DecodingKeys<'_>) -> Result<Decoded, Undecodable> {
    match Content::read(payload.as_bytes()) {
        Err(InvalidPayload::Checksum) => {}
        in_the_clear => return Ok(Decoded { content: in_the_clear?, opened_with: OpenedWith::Nothing }),
    }
    let handle = handle.ok_or(Undecodable::NoKey)?;
    for (place, key) in keys.surb_keys.iter().enumerate().filter(|(_, key)| key.validates(&handle.0)) {
        match open_reply(payload, handle, key) {
            // One in 256 keys validates by chance: no reason to give up.
            Err(InvalidPayload::Checksum) => {}
            opened => return Ok(Decoded { content: opened?, opened_with: OpenedWith::SurbKey(place) }),
        }
    }
    for (place, key) in keys.private_keys.iter().enumerate() {
        if let Some(octets) = open_encrypted_forward(payload, handle, key) {
            return Ok(Decoded { content: Content::read(&octets)?, opened_with: OpenedWith::PrivateKey(place) });
        }
    }
    Err(Undecodable::NoKey)
}

/// Redoes what the mixes on the reply block undid, one by one, until it reads: the handle does not tell how many there
/// were.
fn open_reply(payload: &Payload, handle: &Handle, key: &SurbKey) -> Result<Content, InvalidPayload> {
    let mut secrets = key.secrets(&handle.0);
    let mut octets = payload.as_bytes().to_vec();
    for _ in 0..REPLY_SECRETS_MAX {
        let mut secret = [0; SECRET_LEN];
        secrets.fill_bytes(&mut secret);
        SharedSecret::new(secret).keyset().payload_encrypt_keys().encrypt(&mut octets);
        match Content::read(&octets) {
            Err(InvalidPayload::Checksum) => {}
            opened => return opened,
        }
    }
    Err(InvalidPayload::Checksum)
}

/// RSA for as much of (handle | payload) as the key takes, LIONESS for the rest (E2E-spec 2.2.3). Nothing when it is
/// not for this key.
fn open_encrypted_forward(payload: &Payload, handle: &Handle, key: &PrivateKey) -> Option<Vec<u8>> {
    let encrypted = [&handle.0[..], payload.as_bytes()].concat();
    let (rsa_part, rest) = encrypted.split_at_checked(key.public_key().modulus_len())?;
    let opened = key.decrypt(rsa_part).ok()?;
    let (secret, beginning) = opened.split_first_chunk::<SECRET_LEN>()?;
    let mut rest = rest.to_vec();
    SharedSecret::new(*secret).keyset().end_to_end_keys().decrypt(&mut rest);
    Some([beginning, &rest].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Content, Decoded, DecodingKeys, InvalidPayload, OpenedWith, Undecodable, decode};
    use crate::crypto::CounterRng;
    use crate::crypto::keyset::{SECRET_LEN, SharedSecret};
    use crate::crypto::stream::StreamKey;
    use crate::crypto::surb_key::SurbKey;
    use crate::packet::{Handle, PAYLOAD_LEN, Payload};
    use crate::payload::Capacity;
    use crate::payload::encode::encode;
    use crate::payload::fragment::InvalidFragment;

    fn rng() -> CounterRng {
        CounterRng::new(&StreamKey::new([3; 16]))
    }

    fn payload(message: &[u8]) -> Payload {
        encode(message, Capacity::Plain, None, &mut rng()).unwrap().remove(0).into_payload().unwrap()
    }

    /// What arrives after a reply block of `hops` mixes.
    fn reply(message: &[u8], handle: &Handle, key: &SurbKey, hops: usize) -> Payload {
        let mut stream = key.secrets(&handle.0);
        let mut secrets = vec![[0; SECRET_LEN]; hops + 1];
        secrets.iter_mut().for_each(|secret| stream.fill_bytes(secret));
        let mut payload = payload(message);
        for secret in secrets.into_iter().rev() {
            SharedSecret::new(secret).keyset().payload_encrypt_keys().decrypt(payload.as_mut_bytes());
        }
        payload
    }

    #[test]
    fn reply_opens_with_the_key_of_its_identity_and_says_which() {
        let keys = [SurbKey::random(&mut rng()), SurbKey::new(b"the other identity's".to_vec())];
        let handle = Handle(keys[1].new_seed(&mut rng()));
        let keys = DecodingKeys { surb_keys: &keys, private_keys: &[] };
        for hops in [1, 16] {
            let arrived = reply(b"an answer", &handle, &keys.surb_keys[1], hops);
            let Decoded { content, opened_with } = decode(&arrived, Some(&handle), &keys).unwrap();
            assert_eq!(opened_with, OpenedWith::SurbKey(1));
            assert_eq!(content, Content::read(payload(b"an answer").as_bytes()).unwrap());
        }
        let too_far = reply(b"an answer", &handle, &keys.surb_keys[1], 17);
        assert_eq!(decode(&too_far, Some(&handle), &keys), Err(Undecodable::NoKey));
    }

    #[test]
    fn payload_in_the_clear_needs_neither_key_nor_handle() {
        let decoded = decode(&payload(b"text"), None, &DecodingKeys::default()).unwrap();
        assert_eq!(decoded.opened_with, OpenedWith::Nothing);
    }

    #[test]
    fn payload_of_others_is_not_decoded() {
        let junk = Payload::random(&mut rng());
        assert_eq!(decode(&junk, None, &DecodingKeys::default()), Err(Undecodable::NoKey));
        assert_eq!(decode(&junk, Some(&Handle([0; 20])), &DecodingKeys::default()), Err(Undecodable::NoKey));
    }

    #[test]
    fn payload_that_says_it_holds_more_than_it_can_is_damaged() {
        let mut octets = payload(b"text").as_bytes().to_vec();
        octets[..2].copy_from_slice(&[0x7f, 0xff]);
        let why = InvalidPayload::Size { size: 0x7fff, room: 28_650 };
        let payload = Payload::from_bytes(&octets).unwrap();
        assert_eq!(decode(&payload, None, &DecodingKeys::default()), Err(Undecodable::Damaged(why)));
    }

    #[test]
    fn fragment_beyond_the_end_of_its_message_is_refused() {
        let noise = Payload::random(&mut rng());
        let mut octets = encode(noise.as_bytes(), Capacity::Plain, None, &mut rng()).unwrap()[0].as_bytes().to_vec();
        octets[2] = 3;
        assert_eq!(
            Content::read(&octets),
            Err(InvalidPayload::Fragment(InvalidFragment::Index { index: 3, fragments: 3 }))
        );
    }

    #[test]
    fn payload_of_any_other_length_is_refused() {
        for len in [0, 1, 28_633, 28_671, 28_673] {
            assert_eq!(Content::read(&vec![0; len]), Err(InvalidPayload::Length { len }));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn arbitrary_payloads_do_no_harm(start in prop::collection::vec(any::<u8>(), 60), handle: [u8; 20]) {
            let mut octets = vec![0; PAYLOAD_LEN];
            octets[..60].copy_from_slice(&start);
            let keys = [SurbKey::new(vec![1; 20])];
            let keys = DecodingKeys { surb_keys: &keys, private_keys: &[] };
            let _ = decode(&Payload::from_bytes(&octets).unwrap(), Some(&Handle(handle)), &keys);
        }
    }
}
