//! What an exit makes of a payload, who has no keys (E2E-spec 2.3).
//!
//! Writing it as text is `armor`'s, delivering it `crate::deliver`'s.

use std::fmt;

use super::compress::{InvalidCompression, decompress, expansion_limit};
use super::decode::{Content, InvalidPayload};
use super::headers::{self, MessageHeaders};
use crate::packet::build::Exit;
use crate::packet::{Handle, Payload, RoutingType};

/// What is to be delivered.
#[derive(Clone, PartialEq, Eq)]
pub enum ExitContent {
    /// A message that was in the clear.
    Plain {
        /// Its headers.
        headers: MessageHeaders,
        /// Its text, in whatever encoding.
        body: Vec<u8>,
    },
    /// A message that would grow suspiciously; its recipient decides.
    Overcompressed {
        /// As it came.
        compressed: Vec<u8>,
    },
    /// A reply, an encrypted forward message, or junk.
    Encrypted {
        /// Without it the recipient can't decode.
        handle: Handle,
        /// As it came.
        payload: Payload,
    },
    /// One fragment; its recipient reassembles.
    Fragment {
        /// As it came, header included.
        payload: Payload,
    },
}

/// Prints which it is.
impl fmt::Debug for ExitContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain { .. } => "Plain(..)",
            Self::Overcompressed { .. } => "Overcompressed(..)",
            Self::Encrypted { .. } => "Encrypted(..)",
            Self::Fragment { .. } => "Fragment(..)",
        })
    }
}

/// Why an exit drops a payload. Blames its sender.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum Undeliverable {
    /// Encrypted, but nobody can decode it.
    #[error("an encrypted payload without a decoding handle")]
    MissingHandle,
    /// The checksum holds, the rest does not.
    #[error(transparent)]
    Payload(#[from] InvalidPayload),
    /// Not compressed as all messages are.
    #[error(transparent)]
    Compression(InvalidCompression),
    /// A reassembled message that ends within its exit address.
    #[error("a reassembled message of {len} octets is cut short")]
    Truncated {
        /// Octets found.
        len: usize,
    },
}

impl ExitContent {
    /// What to deliver for the payload of one packet.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn from_payload(handle: Option<Handle>, payload: Payload) -> Result<Self, Undeliverable> {
        match Content::read(payload.as_bytes()) {
            Ok(Content::Singleton { compressed }) => Self::from_compressed(compressed),
            Ok(Content::Fragment(_)) => Ok(Self::Fragment { payload }),
            Err(InvalidPayload::Checksum) => {
                let handle = handle.ok_or(Undeliverable::MissingHandle)?;
                Ok(Self::Encrypted { handle, payload })
            }
            Err(invalid) => Err(invalid.into()),
        }
    }

    /// Where to deliver a message that the exit has reassembled, and its compressed text: routing type | length |
    /// address | compressed text. The type comes first, unlike in E2E-spec 2.2.2.1, and the text alone is compressed,
    /// since the reference does so.
    ///
    /// # Errors
    /// [`Undeliverable::Truncated`].
    pub fn split_reassembled(message: &[u8]) -> Result<(Exit, &[u8]), Undeliverable> {
        let cut = Undeliverable::Truncated { len: message.len() };
        let (exit_type, rest) = message.split_first_chunk().ok_or(cut)?;
        let (len, rest) = rest.split_first_chunk().ok_or(cut)?;
        let (address, compressed) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len))).ok_or(cut)?;
        let exit = Exit { exit_type: RoutingType(u16::from_be_bytes(*exit_type)), address: address.to_vec() };
        Ok((exit, compressed))
    }

    /// What to deliver for the compressed text of a whole message.
    ///
    /// # Errors
    /// [`Undeliverable::Compression`].
    pub fn from_compressed(compressed: Vec<u8>) -> Result<Self, Undeliverable> {
        match decompress(&compressed, expansion_limit(compressed.len())) {
            Ok(message) => {
                let (headers, body) = headers::parse(&message);
                Ok(Self::Plain { headers, body: body.to_vec() })
            }
            Err(InvalidCompression::Overcompressed { .. }) => Ok(Self::Overcompressed { compressed }),
            Err(invalid) => Err(Undeliverable::Compression(invalid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ExitContent, Undeliverable};
    use crate::crypto::CounterRng;
    use crate::crypto::stream::{StreamKey, prng};
    use crate::packet::build::Exit;
    use crate::packet::{Payload, RoutingType};
    use crate::payload::compress::{InvalidCompression, compress};
    use crate::payload::encode::encode;
    use crate::payload::fragment::Reassembly;
    use crate::payload::headers::MessageHeaders;
    use crate::payload::{Capacity, Content, InvalidPayload};

    fn rng() -> CounterRng {
        CounterRng::new(&StreamKey::new([3; 16]))
    }

    /// As an exit does with a message that it has put together.
    fn delivered(message: &[u8]) -> Result<(Exit, ExitContent), Undeliverable> {
        let (exit, compressed) = ExitContent::split_reassembled(message)?;
        Ok((exit, ExitContent::from_compressed(compressed.to_vec())?))
    }

    #[test]
    fn reassembled_message_says_where_it_goes() {
        let exit = Exit { exit_type: RoutingType::SMTP, address: b"frag@example.com".to_vec() };
        let body = prng(&StreamKey::new([9; 16]), 60_000);
        let message = [b"SUBJECT:hello\n\n", &body[..]].concat();
        let payloads = encode(&message, Capacity::Plain, Some(&exit), &mut rng()).unwrap();
        let mut reassembly = None;
        for payload in &payloads {
            let Content::Fragment(fragment) = Content::read(payload.as_bytes()).unwrap() else { panic!() };
            let reassembly = reassembly.get_or_insert_with(|| Reassembly::new(&fragment, 100_000).unwrap());
            reassembly.add(fragment).unwrap();
        }
        let headers = MessageHeaders { subject: Some("hello".to_owned()), ..MessageHeaders::default() };
        assert_eq!(delivered(&reassembly.unwrap().finish().unwrap()), Ok((exit, ExitContent::Plain { headers, body })));
    }

    #[test]
    fn reassembled_message_that_ends_in_its_address_is_refused() {
        for message in [&b""[..], b"\x01", b"\x01\x00\x00", b"\x01\x00\x00\x02a"] {
            let cut = Undeliverable::Truncated { len: message.len() };
            assert_eq!(delivered(message), Err(cut));
        }
        let bare = delivered(b"\x01\x00\x00\x01a");
        assert_eq!(bare, Err(Undeliverable::Compression(InvalidCompression::Header)));
    }

    #[test]
    fn bomb_inside_a_reassembled_message_stays_compressed() {
        let compressed = compress(&[0; 50_000]);
        let message = [b"\x01\x01\x00\x01a", &compressed[..]].concat();
        let (exit, content) = delivered(&message).unwrap();
        assert_eq!(exit.exit_type, RoutingType::MBOX);
        assert_eq!(content, ExitContent::Overcompressed { compressed });
    }

    #[test]
    fn what_nobody_can_decode_is_dropped() {
        let junk = Payload::random(&mut rng());
        assert_eq!(ExitContent::from_payload(None, junk), Err(Undeliverable::MissingHandle));
    }

    #[test]
    fn impossible_size_under_a_good_checksum_is_dropped() {
        let payloads = encode(b"text", Capacity::Plain, None, &mut rng()).unwrap();
        let mut octets = payloads[0].as_bytes().to_vec();
        octets[0] = 0x7f;
        let dropped = ExitContent::from_payload(None, Payload::from_bytes(&octets).unwrap());
        assert!(matches!(dropped, Err(Undeliverable::Payload(InvalidPayload::Size { .. }))));
    }

    proptest! {
        #[test]
        fn arbitrary_reassembled_messages_do_no_harm(message in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = delivered(&message);
        }
    }
}
