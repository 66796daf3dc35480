//! POP3 (RFC 1939), as far as a mail client needs it to read a maildrop.
//!
//! `session` is the protocol as a step machine, `crate::server` the loop that drives it over a socket. Where the mail
//! lies is not known here: a maildrop is whatever implements [`Maildrops`] and [`Mailbox`].

pub mod command;
mod letter;
mod mailbox;
pub mod session;

pub use letter::Letter;
pub use mailbox::{Accounts, Listed, Mailbox, MailboxError, Maildrops, Uidl};
