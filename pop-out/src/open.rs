//! From what an exit delivered to a message of one of the user's identities (E2E-spec 2.3.1).
//!
//! Keeping fragments and mail is `collector`'s, writing mail `render`'s. Nothing is thrown away here: what cannot be
//! read is handed on in armour.
//!
//! Two identities of one user must not be seen to be one (E2E-spec 2.2.5). A reply belongs to the identity whose key
//! opened it, whoever's mailbox it came to. When that was another's, a malicious exit may have carried it there to see
//! whether the user notices; the mail says so, and such fragments never meet those that came the right way.

use mix::crypto::surb_key::SurbKey;
use mix::packet::{Handle, Payload};
use mix::payload::armor::ArmoredMessage;
use mix::payload::compress::{InvalidCompression, decompress, expansion_limit};
use mix::payload::decode::{DecodingKeys, OpenedWith, Undecodable, decode};
use mix::payload::{Content, Fragment, InvalidPayload};
use mix::store::fragments::ReadyMessage;
use mix::store::inbox::{Arrival, Arrived};
use mix::store::keyring::Identity;

/// Longest message put together of fragments, compressed: 16 MiB, 600 packets. It is held in memory as a whole.
pub const MAX_FRAGMENTED_LEN: u32 = 16 << 20;
/// Longest text that is inflated: 64 MiB. What is longer stays compressed, for the user to decide.
pub const MAX_TEXT_LEN: usize = 64 << 20;

/// Between the names in the scope of fragments that went astray. Names have no control characters.
const ASTRAY: char = '\n';

/// Whose it is, and by whose mailbox it came.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The identity whose maildrop it goes to.
    pub identity: String,
    /// The identity whose mailbox it came to, when that is another.
    pub astray: Option<String>,
}

/// Prints no names.
impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Owner(..)")
    }
}

impl Owner {
    fn new(identity: &str, mailbox: &str) -> Self {
        let astray = (identity != mailbox).then(|| mailbox.to_owned());
        Self { identity: identity.to_owned(), astray }
    }

    /// Every owner that what comes for these identities can have.
    pub fn all(keyring: &[Identity]) -> impl Iterator<Item = Self> {
        keyring.iter().flat_map(|owner| keyring.iter().map(|mailbox| Self::new(&owner.name, &mailbox.name)))
    }

    /// The scope that its fragments are kept in: the identity's name, unless they went astray.
    pub fn scope(&self) -> String {
        match &self.astray {
            None => self.identity.clone(),
            Some(mailbox) => format!("{}{ASTRAY}{mailbox}", self.identity),
        }
    }
}

/// What was inside.
#[derive(Clone, PartialEq, Eq)]
pub enum Opened {
    /// A message, headers and body.
    Message(Vec<u8>),
    /// A part of one.
    Fragment(Fragment),
    /// Nothing that can be read.
    Unreadable(Unreadable),
}

/// Prints which it is.
impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Message(_) => "Message(..)",
            Self::Fragment(_) => "Fragment(..)",
            Self::Unreadable(_) => "Unreadable(..)",
        })
    }
}

/// Why something cannot be read. The texts are for the user.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum Why {
    /// Junk, or made for a key that is gone.
    #[error("It was encrypted for none of your identities' keys.")]
    NoKey,
    /// The checksum holds, and what is under it is impossible.
    #[error("It was opened, but what came out is no message: {0}.")]
    Payload(InvalidPayload),
    /// The text is not compressed as all messages are.
    #[error("It was opened, but its text does not decompress: {0}.")]
    Compression(InvalidCompression),
    /// The text would grow suspiciously.
    #[error(
        "Decompressed it would grow enormously. Messages are made so to exhaust the reader's computer. \
         Decompress it only if you trust its sender."
    )]
    Overcompressed,
    /// The message of a fragment is longer than is put together here.
    #[error("It is a fragment of a message that is too long to be put together here.")]
    TooLong,
    /// There is no room for the fragment.
    #[error("It is a fragment, and too many others wait already for the rest of their messages.")]
    NoRoom,
    /// It had to make room.
    #[error("Some messages that waited for the rest of their fragments had to make room for newer ones, and are lost.")]
    Displaced,
    /// A fragment that contradicts others.
    #[error(
        "It is a fragment that contradicts the others of its message. They were made so; all of them are discarded."
    )]
    Mismatch,
    /// The fragments are all there and yet no message.
    #[error("Its fragments are all here, but do not make a message.")]
    Fragments,
}

/// What could not be read, and why.
#[derive(Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Why.
    pub why: Why,
    /// All of it, in armour. Empty when there is nothing left to show.
    pub armored: Vec<u8>,
}

/// Prints why.
impl std::fmt::Debug for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unreadable").field("why", &self.why).finish_non_exhaustive()
    }
}

impl Unreadable {
    fn new(why: Why, message: &ArmoredMessage) -> Self {
        Self { why, armored: message.to_text() }
    }

    /// A fragment that is not kept.
    pub fn fragment(why: Why, fragment: &Fragment) -> Self {
        Self::new(why, &ArmoredMessage::Fragment(fragment.to_payload().as_bytes().to_vec()))
    }
}

/// Opens an arrival with the keys of all identities. What would grow more than is natural is inflated up to `inflate_max`
/// octets.
pub fn open(arrived: &Arrived, keyring: &[Identity], inflate_max: usize) -> (Owner, Opened) {
    match &arrived.arrival {
        Arrival::Message(message) => {
            (Owner::new(&arrived.identity, &arrived.identity), Opened::Message(message.clone()))
        }
        Arrival::Payload { handle, payload } => {
            let (owner, content) = decoded(&arrived.identity, handle.as_ref(), payload, keyring);
            let opened = content.and_then(|content| opened(content, inflate_max));
            (owner, opened.unwrap_or_else(Opened::Unreadable))
        }
    }
}

fn decoded(
    mailbox: &str,
    handle: Option<&Handle>,
    payload: &Payload,
    keyring: &[Identity],
) -> (Owner, Result<Content, Unreadable>) {
    let surb_keys: Vec<SurbKey> = keyring.iter().map(|identity| identity.surb_key.clone()).collect();
    let decoded = match decode(payload, handle, &DecodingKeys { surb_keys: &surb_keys, private_keys: &[] }) {
        Ok(decoded) => decoded,
        Err(undecodable) => {
            let why = match undecodable {
                Undecodable::NoKey => Why::NoKey,
                Undecodable::Damaged(invalid) => Why::Payload(invalid),
            };
            let unreadable = Unreadable::new(why, &unopened(handle, payload));
            return (Owner::new(mailbox, mailbox), Err(unreadable));
        }
    };
    let opener = match decoded.opened_with {
        OpenedWith::SurbKey(place) => keyring.get(place).map(|identity| identity.name.as_str()),
        // In the clear, or with a key that was not handed over.
        OpenedWith::Nothing | OpenedWith::PrivateKey(_) => None,
    };
    let owner = Owner::new(opener.unwrap_or(mailbox), mailbox);
    (owner, Ok(decoded.content))
}

fn opened(content: Content, inflate_max: usize) -> Result<Opened, Unreadable> {
    match content {
        Content::Singleton { compressed } => inflate(compressed, inflate_max).map(Opened::Message),
        Content::Fragment(fragment) if fragment.fragmentation().message_len() > MAX_FRAGMENTED_LEN => {
            Err(Unreadable::fragment(Why::TooLong, &fragment))
        }
        Content::Fragment(fragment) => Ok(Opened::Fragment(fragment)),
    }
}

fn unopened(handle: Option<&Handle>, payload: &Payload) -> ArmoredMessage {
    let payload = payload.as_bytes().to_vec();
    match handle {
        Some(handle) => ArmoredMessage::Encrypted { handle: *handle, payload },
        None => ArmoredMessage::Binary(payload),
    }
}

fn inflate(compressed: Vec<u8>, inflate_max: usize) -> Result<Vec<u8>, Unreadable> {
    let limit = expansion_limit(compressed.len()).max(inflate_max).min(MAX_TEXT_LEN);
    decompress(&compressed, limit).map_err(|invalid| match invalid {
        InvalidCompression::Overcompressed { .. } => {
            Unreadable::new(Why::Overcompressed, &ArmoredMessage::Overcompressed(compressed))
        }
        invalid => Unreadable::new(Why::Compression(invalid), &ArmoredMessage::Binary(compressed)),
    })
}

/// Puts a message together: headers and body. Takes time, and memory for all of it.
///
/// # Errors
/// Why it cannot be read.
pub fn reassemble(ready: ReadyMessage, inflate_max: usize) -> Result<Vec<u8>, Unreadable> {
    let compressed = ready.reassemble().map_err(|_| Unreadable { why: Why::Fragments, armored: Vec::new() })?;
    inflate(compressed, inflate_max)
}
