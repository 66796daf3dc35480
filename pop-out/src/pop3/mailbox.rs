//! What POP3 asks of the place where the mail lies, and of the list of those who may read it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use mix::crypto::{DIGEST_LEN, Digest, sha1};
use mix::store::StoreError;
use rand::CryptoRng;

use super::Letter;

/// Who may log in.
pub trait Accounts: Send + Sync + 'static {
    /// Whether this is the password of `user`. May be slow: it is called off the async threads.
    fn check(&self, user: &str, password: &str) -> bool;
}

/// The maildrops of all users. Its functions may wait for the disk: they are called off the async threads.
pub trait Maildrops: Send + Sync + 'static {
    /// One of them.
    type Mailbox: Mailbox;

    /// The maildrop of `user`, whose password was right. Keeping others out of it meanwhile is the server's.
    ///
    /// # Errors
    /// When the place cannot be reached now.
    fn open(&self, user: &str) -> Result<Self::Mailbox, MailboxError>;
}

/// One maildrop. Its functions may wait for the disk: they are called off the async threads.
pub trait Mailbox: Send + Sync + 'static {
    /// What lies in it, oldest first.
    ///
    /// # Errors
    /// When it cannot be read.
    fn list(&self) -> Result<Vec<Listed>, MailboxError>;

    /// One mail, or none when it is gone.
    ///
    /// # Errors
    /// When it cannot be read.
    fn fetch(&self, uidl: &Uidl) -> Result<Option<Letter>, MailboxError>;

    /// Removes these; durable when it returns. What is gone already is no error.
    ///
    /// # Errors
    /// When not all of them are gone for good.
    fn delete(&self, uidls: &[Uidl]) -> Result<(), MailboxError>;
}

/// One mail of a maildrop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub uidl: Uidl,
    /// Its length as a [`Letter`].
    pub size: u64,
}

/// What a maildrop failed at. The client hears only that it shall try again.
#[derive(Debug, thiserror::Error)]
pub enum MailboxError {
    /// The database.
    #[error("the database of the maildrops")]
    Store {
        /// What it says.
        #[from]
        source: StoreError,
    },
    /// A folder of mail.
    #[error("the mail folder {}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A stored unique-id is none.
    #[error("a stored unique-id that is none")]
    InvalidUidl,
}

/// A unique-id: 1 to 70 printable ASCII characters without space (RFC 1939, section 7). Names one mail of a maildrop for
/// ever.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uidl(String);

/// Longest unique-id (RFC 1939, section 7).
const MAX_UIDL_LEN: usize = 70;
/// Octets in a random one: 20 hexadecimal digits. Two of a maildrop never meet.
const RANDOM_UIDL_OCTETS: usize = 10;

impl Uidl {
    /// A fresh one. Random, because a digest of the text would give two equal mails one name, and a count would tell
    /// how much mail there was.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut octets = [0; RANDOM_UIDL_OCTETS];
        rng.fill_bytes(&mut octets);
        Self(hexadecimal(&octets))
    }

    /// Reads one, if `name` is one.
    pub fn parse(name: &str) -> Option<Self> {
        let fits = (1..=MAX_UIDL_LEN).contains(&name.len()) && name.bytes().all(|octet| octet.is_ascii_graphic());
        fits.then(|| Self(name.to_owned()))
    }

    /// The one that follows from any octets: themselves where they are one, else their digest.
    pub fn of(name: &[u8]) -> Self {
        let readable = std::str::from_utf8(name).ok().and_then(Self::parse);
        readable.unwrap_or_else(|| {
            let Digest(octets) = sha1(&[name]);
            const _: () = assert!(2 * DIGEST_LEN <= MAX_UIDL_LEN);
            Self(hexadecimal(&octets))
        })
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn hexadecimal(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

impl fmt::Display for Uidl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Uidl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_ids_are_printable_and_short() {
        assert!(Uidl::parse("").is_none());
        assert!(Uidl::parse("a b").is_none());
        assert!(Uidl::parse("a\r").is_none());
        assert!(Uidl::parse(&"x".repeat(71)).is_none());
        assert_eq!(Uidl::parse(&"x".repeat(70)).unwrap().as_str().len(), 70);
    }

    #[test]
    fn names_that_are_no_unique_ids_become_digests() {
        assert_eq!(Uidl::of(b"1700000000.M1P2.host").as_str(), "1700000000.M1P2.host");
        assert_eq!(Uidl::of(b"a b").as_str().len(), 40);
        assert_ne!(Uidl::of(b"a b"), Uidl::of(b"a c"));
        assert_eq!(Uidl::of(b"a b"), Uidl::of(b"a b"));
    }
}
