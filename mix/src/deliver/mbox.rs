//! The exit's own users (exit type MBOX, E2E-spec 3.2): in this process, or elsewhere by mail.
//!
//! Who they are is the operator's to say. Writing and sending the mail is `mail`'s and `smtp`'s.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use crate::crypto::Digest;
use crate::path::{InvalidAddress, Mailbox};

/// Mailboxes in this process, such as the gateway's.
///
/// `A` is what arrives: the message as the exit decoded it.
pub trait LocalMailboxes<A: ?Sized>: Send + Sync {
    /// Puts `arrival` into the mailbox of `name`, and returns when it is on disk. The exit delivers again when it is not
    /// sure, always with the same `delivery_key`: the second time changes nothing and is no error.
    ///
    /// # Errors
    /// [`NotDelivered`].
    fn deliver(&self, name: &str, delivery_key: &Digest, arrival: &A) -> Result<(), NotDelivered>;
}

/// Why a local mailbox did not take a message. Holds no name, so that it may be logged.
#[derive(Debug, thiserror::Error)]
pub enum NotDelivered {
    /// No user is called so: drop the message.
    #[error("no such user")]
    UnknownName,
    /// Try again later.
    #[error("the mailbox is not available")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}

/// Users that have their mail delivered elsewhere: name → mailbox. `Debug` shows the count alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AddressTable(BTreeMap<String, Mailbox>);

/// Why a table of addresses was refused. Blames the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTable {
    /// Neither empty nor a comment nor `name: user@host`.
    #[error("line {line}: expected `name: user@host`")]
    Form {
        /// The line, from 1.
        line: usize,
    },
    /// What is behind the colon is no mailbox.
    #[error("line {line}")]
    Address {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        source: InvalidAddress,
    },
    /// One of two lines would be without effect.
    #[error("line {line}: this name is in the table already")]
    Duplicate {
        /// The line, from 1.
        line: usize,
    },
}

impl AddressTable {
    /// Reads lines of `name: user@host` or `name = user@host`. Empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// [`InvalidTable`].
    pub fn parse(text: &str) -> Result<Self, InvalidTable> {
        let mut table = BTreeMap::new();
        for (line, entry) in (1..).zip(text.lines().map(str::trim)) {
            if entry.is_empty() || entry.starts_with('#') {
                continue;
            }
            let (name, mailbox) = entry.split_once([':', '=']).ok_or(InvalidTable::Form { line })?;
            let (name, mailbox) = (name.trim_end(), mailbox.trim_start());
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(InvalidTable::Form { line });
            }
            let mailbox = Mailbox::parse(mailbox).map_err(|source| InvalidTable::Address { line, source })?;
            if table.insert(name.to_owned(), mailbox).is_some() {
                return Err(InvalidTable::Duplicate { line });
            }
        }
        Ok(Self(table))
    }

    /// Where mail for `name` goes.
    pub fn find(&self, name: &str) -> Option<&Mailbox> {
        self.0.get(name)
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for AddressTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AddressTable({} names)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_finds_a_user_by_name() {
        let table = AddressTable::parse("# users\n\nfrida: frida@example.org\r\n bob = b@c.example \n").unwrap();
        assert_eq!(table.find("frida").unwrap().as_str(), "frida@example.org");
        assert_eq!(table.find("bob").unwrap().as_str(), "b@c.example");
        assert_eq!(table.find("Frida"), None);
        assert_eq!(format!("{table:?}"), "AddressTable(2 names)");
        assert!(AddressTable::default().is_empty());
    }

    #[test]
    fn wrong_line_is_named() {
        assert_eq!(AddressTable::parse("\nfrida\n"), Err(InvalidTable::Form { line: 2 }));
        assert_eq!(AddressTable::parse(": a@b.c"), Err(InvalidTable::Form { line: 1 }));
        assert_eq!(AddressTable::parse("a b: a@b.c"), Err(InvalidTable::Form { line: 1 }));
        let source = InvalidAddress::Mailbox;
        assert_eq!(AddressTable::parse("a: b@c@d"), Err(InvalidTable::Address { line: 1, source }));
        assert_eq!(AddressTable::parse("a: b@c.d\na: e@f.g"), Err(InvalidTable::Duplicate { line: 2 }));
    }
}
