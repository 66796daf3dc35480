//! Why this door refuses: replies to the mail client, and errors to whoever starts the server.
//!
//! What is wrong with one address is `recipient`'s to say, with one mail `scrub`'s; here are the replies to them.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;

use mix::net::sockets::Exposed;
use mix::payload::entity::InvalidEntity;
use mix::payload::headers::InvalidHeader;
use mix::store::StoreError;

use crate::policy::NoExit;
use crate::recipient::InvalidRecipient;
use crate::scrub::NoLetter;

/// A reply: three digits, an enhanced status code (RFC 3463) and a line for people. Reads as one line; the only reply of
/// several lines, to EHLO, is the session's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three digits (RFC 5321 4.2).
    pub code: u16,
    /// The enhanced status code; replies that go on (3xx) and greetings have none (RFC 2034 3).
    pub status: Option<&'static str>,
    /// For people. Never holds what the client sent: it could be another client's log line.
    pub text: Cow<'static, str>,
}

impl Reply {
    /// A reply with an enhanced status code.
    pub fn new(code: u16, status: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, status: Some(status), text: text.into() }
    }

    /// A reply without one.
    pub fn bare(code: u16, text: &'static str) -> Self {
        Self { code, status: None, text: text.into() }
    }

    /// The line as it goes over the wire.
    pub fn line(&self) -> String {
        match self.status {
            Some(status) => format!("{} {status} {}\r\n", self.code, self.text),
            None => format!("{} {}\r\n", self.code, self.text),
        }
    }
}

/// Why a whole mail was refused after its last line.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Nothing in it that may travel, or nothing legible.
    #[error(transparent)]
    Letter(#[from] NoLetter),
    /// It has attachments that never travel, and its sender wants all of them sent or nothing.
    #[error(
        "an attachment of the mail never travels: no mail, card, calendar, key or signature does, nor what cannot be read"
    )]
    Attachment,
    /// No exit takes it for one of its recipients.
    #[error(transparent)]
    Exit(#[from] NoExit),
    /// What is left of it has headers that cannot travel.
    #[error(transparent)]
    Header(#[from] InvalidHeader),
    /// What is left of it is no text with attachments.
    #[error(transparent)]
    Entity(#[from] InvalidEntity),
    /// Exits would hand it over compressed, in armour, since nobody can tell it from a mail bomb (E2E-spec 2.3.2).
    #[error("the text repeats itself so much that its recipient would get it compressed and could not read it")]
    Overcompressed,
    /// It could not be made durable.
    #[error("storing the mail")]
    Store(#[source] StoreError),
    /// Reading it panicked. Ours; and it would again.
    #[error("reading the mail failed")]
    Crashed,
    /// Storing it panicked. Ours; but the mail is not to blame.
    #[error("storing the mail failed")]
    StoreCrashed,
}

impl Refused {
    /// The reply to the end of DATA.
    pub fn reply(&self) -> Reply {
        match self {
            Self::Letter(why) => why.into(),
            Self::Attachment => Reply::new(554, "5.6.1", self.to_string()),
            Self::Exit(why) => why.into(),
            Self::Header(_) | Self::Entity(_) | Self::Overcompressed => Reply::new(554, "5.6.0", self.to_string()),
            Self::Store(StoreError::Full) => Reply::new(452, "4.3.1", "no space left for mail, try again later"),
            Self::Store(_) | Self::StoreCrashed => {
                Reply::new(451, "4.3.0", "the mail could not be stored, try again later")
            }
            // A client that hears 4xx sends the same mail again and again.
            Self::Crashed => Reply::new(554, "5.3.0", "the mail could not be read"),
        }
    }
}

impl From<&NoLetter> for Reply {
    fn from(why: &NoLetter) -> Self {
        let (code, status) = match why {
            NoLetter::NoText | NoLetter::Encrypted | NoLetter::Charset | NoLetter::Forwarded => (554, "5.6.1"),
            NoLetter::TransferEncoding | NoLetter::Boundary | NoLetter::HeadersTooLong | NoLetter::TooManyParts => {
                (554, "5.6.0")
            }
            NoLetter::TooLong { .. } => (552, "5.3.4"),
        };
        Self::new(code, status, why.to_string())
    }
}

impl From<&NoExit> for Reply {
    fn from(why: &NoExit) -> Self {
        match why {
            NoExit::NoNetwork => Self::new(451, "4.4.0", why.to_string()),
            NoExit::Unsupported => Self::new(550, "5.4.4", why.to_string()),
            NoExit::Attachments => Self::new(554, "5.6.1", why.to_string()),
            NoExit::TooLarge { .. } | NoExit::AttachmentsTooLarge { .. } => Self::new(552, "5.3.4", why.to_string()),
            NoExit::NoWay(_) => Self::new(451, "4.4.4", why.to_string()),
        }
    }
}

impl From<&InvalidRecipient> for Reply {
    fn from(why: &InvalidRecipient) -> Self {
        let status = match why {
            InvalidRecipient::NotAscii => "5.6.7",
            InvalidRecipient::Form(_)
            | InvalidRecipient::Empty
            | InvalidRecipient::LocalTooLong
            | InvalidRecipient::Label => "5.1.3",
            InvalidRecipient::NoServer | InvalidRecipient::Server(_) | InvalidRecipient::Alt => "5.1.2",
        };
        Self::new(553, status, why.to_string())
    }
}

/// Why a setting is not one that the server can run with. Blames whoever wrote the settings.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidConfig {
    /// A limit that lets nothing through, or too much for the memory of any machine.
    #[error("{key} = {found} is not between {least} and {most}")]
    Limit {
        /// Which setting.
        key: &'static str,
        /// What it says.
        found: u64,
        /// The least it may say.
        least: u64,
        /// The most it may say.
        most: u64,
    },
    /// A client would be cut off before it could say a word.
    #[error("{key} must be at least one second")]
    Timeout {
        /// Which setting.
        key: &'static str,
    },
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum NotServing {
    /// The settings forbid it.
    #[error("settings of smtp-in")]
    Config(#[from] InvalidConfig),
    /// The socket that was handed over for this door is for others too.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The system does not give the address.
    #[error("listening on {address} for mail clients")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}
