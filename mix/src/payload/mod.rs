//! What payloads carry: messages of any length, end to end (E2E-spec).
//!
//! `encode` makes payloads of a message, `decode` reads them with the recipient's keys, `exit` as an exit does without
//! any, and `armor` writes what an exit hands over as text; `entity` is a message with attachments, and `words` what
//! strangers write into headers. How payloads travel is `crate::packet`'s, which also encrypts those of encrypted forward
//! messages; storing fragments until there are enough is `store::fragments`'.

pub mod armor;
pub mod compress;
pub mod decode;
pub mod encode;
pub mod entity;
pub mod exit;
pub mod fec;
pub mod fragment;
pub mod headers;
pub mod words;

pub use decode::{Content, InvalidPayload};
pub use encode::EncodedPayload;
pub use exit::ExitContent;
pub use fragment::{Fragment, MessageId};
pub use headers::MessageHeaders;

use crate::crypto::DIGEST_LEN;
use crate::packet::PAYLOAD_LEN;
use crate::packet::build::ENCRYPTED_FORWARD_LEN;

/// Octets before the content of a singleton: flag and size (2), digest (E2E-spec 2.2.1.2).
pub const SINGLETON_HEADER_LEN: usize = 2 + DIGEST_LEN;

/// Octets before the content of a fragment: flag and index (3), digest, message id, size (4) (E2E-spec 2.2.1.2).
pub const FRAGMENT_HEADER_LEN: usize = 3 + DIGEST_LEN + fragment::MESSAGE_ID_LEN + 4;
const _: () = assert!(SINGLETON_HEADER_LEN == 22 && FRAGMENT_HEADER_LEN == 47);

/// How much room the way of sending leaves in each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capacity {
    /// Plaintext forward messages and replies: all 28672 octets.
    Plain,
    /// Encrypted forward messages: 38 octets fewer, for OAEP and the session key (E2E-spec 2.2.3).
    EncryptedForward,
}

impl Capacity {
    /// Octets of a payload, its header included.
    pub fn payload_len(self) -> usize {
        match self {
            Self::Plain => PAYLOAD_LEN,
            Self::EncryptedForward => ENCRYPTED_FORWARD_LEN,
        }
    }

    /// Octets that a singleton holds.
    pub fn singleton_len(self) -> usize {
        self.payload_len() - SINGLETON_HEADER_LEN
    }

    /// Octets that a fragment holds.
    pub fn fragment_len(self) -> usize {
        self.payload_len() - FRAGMENT_HEADER_LEN
    }

    /// The capacity whose payloads have `len` octets.
    pub fn of_payload_len(len: usize) -> Option<Self> {
        [Self::Plain, Self::EncryptedForward].into_iter().find(|capacity| capacity.payload_len() == len)
    }

    /// The capacity whose fragments hold `len` octets.
    pub fn of_fragment_len(len: usize) -> Option<Self> {
        [Self::Plain, Self::EncryptedForward].into_iter().find(|capacity| capacity.fragment_len() == len)
    }
}
