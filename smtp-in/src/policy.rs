//! What the door demands of a mail, and what the house must provide to it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mix::node::sender::NoWay;
use mix::path::address::ExitAddress;
use mix::store::outbox::{self, Mail};
use mix::store::{Db, StoreError};
use serde::{Deserialize, Serialize};

/// The limits of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Octets of a mail as the client sends it, attachments included; announced as SIZE.
    pub max_size: usize,
    /// Recipients of one mail.
    pub max_recipients: usize,
    /// Reply blocks that go with each mail.
    pub reply_blocks: u8,
    /// Octets of a text that shrinks to less than a twentieth, beyond which it is refused: exits would hand it over compressed.
    pub inflate_max: usize,
    /// What becomes of attachments.
    pub attachments: Attachments,
    /// How long a client may be silent, or leave a reply unread.
    pub idle_timeout: Duration,
    /// How long a client may stay at all: one that sends an octet a minute is never silent.
    pub session_timeout: Duration,
    /// How long a client may stay before it has said who it is.
    pub login_timeout: Duration,
    /// Clients served at the same time.
    pub max_connections: usize,
}

/// What becomes of attachments. Files travel with the octets that they have: what is written in them is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachments {
    /// They travel where an exit delivers them; where none does, the text goes without them and says so.
    #[default]
    Send,
    /// None travels; the text says how many there were.
    Drop,
    /// They travel where an exit delivers them; where none does, or one of them never travels, the mail is refused.
    Refuse,
}

/// What exits are asked about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Octets of headers, text, attachments and reply blocks, uncompressed.
    pub len: usize,
    /// Whether it has attachments.
    pub attachments: bool,
}

impl Asked {
    /// A message without attachments.
    pub fn text(len: usize) -> Self {
        Self { len, attachments: false }
    }
}

/// The exits, as far as the directory of the day knows them.
pub trait Exits: Send + Sync {
    /// Whether some exit delivers such a message of the account `identity` to `to`, and paths lead there and, for its reply
    /// blocks, back. Asked with a text of 0 octets when the recipient is named, and of the message after the mail has come. Called between two reads of a socket: it must look something up, not go
    /// and ask.
    ///
    /// # Errors
    /// [`NoExit`], by what stands in the way.
    fn accepts(&self, identity: &str, to: &ExitAddress, message: Asked) -> Result<(), NoExit>;

    /// Octets of the longest message without attachments that any exit takes, reply blocks included.
    fn largest(&self) -> u64;
}

/// Why no exit delivers a message to an address.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum NoExit {
    /// No directory that is valid today: nobody can say which exits there are.
    #[error("the network is not known yet, try again later")]
    NoNetwork,
    /// No exit of the network delivers to addresses of this kind, or the one that is named does not exist.
    #[error("no exit of the network delivers to this address")]
    Unsupported,
    /// Too long for all exits that would.
    #[error("the text is too long: exits take at most {limit} octets")]
    TooLarge {
        /// What they take; in a reply to a client, what is left of it for headers and text.
        limit: u64,
    },
    /// Exits are there, but none that states that it delivers attachments to such an address.
    #[error("no exit of the network delivers attachments to this address; send the text without them")]
    Attachments,
    /// Too long with its attachments for all exits that deliver some.
    #[error(
        "text and attachments are too long: exits take at most {limit} octets, and a file becomes longer by a third"
    )]
    AttachmentsTooLarge {
        /// What they take; in a reply to a client, what is left of it for headers, text and attachments.
        limit: u64,
    },
    /// Exits are there, but no path to them or back. The settings of the sender or the mixes of the day may be to blame.
    #[error(transparent)]
    NoWay(#[from] NoWay),
}

/// Who may send: each pseudonym of the user is an account.
pub trait Accounts: Send + Sync {
    /// Whether `password` is that of `user`, in a time that does not depend on either. May take long; it is called away
    /// from the sockets.
    fn check(&self, user: &str, password: &str) -> bool;
}

/// Where accepted mail is kept until it is sent.
pub trait Outbox: Send + Sync {
    /// Keeps all of `mails` or none, and returns when they would survive a crash. May block.
    ///
    /// # Errors
    /// What the store says; the mail client then hears that it must try again.
    fn keep(&self, mails: Vec<Mail>) -> Result<(), StoreError>;

    /// Whether a mail whose Message-ID this is was handed in here before. May block.
    ///
    /// # Errors
    /// As [`Outbox::keep`].
    fn is_own(&self, message_id: &str) -> Result<bool, StoreError>;
}

impl Outbox for Db {
    fn keep(&self, mails: Vec<Mail>) -> Result<(), StoreError> {
        self.write(move |tx| outbox::push(tx, &mails)).map(drop)
    }

    fn is_own(&self, message_id: &str) -> Result<bool, StoreError> {
        self.read(|view| outbox::is_own(view, message_id))
    }
}

/// What the house provides to its door.
#[derive(Clone)]
pub struct House {
    /// The exits of the network.
    pub exits: Arc<dyn Exits>,
    /// Who may send.
    pub accounts: Arc<dyn Accounts>,
    /// Where accepted mail goes.
    pub outbox: Arc<dyn Outbox>,
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("House(..)")
    }
}
