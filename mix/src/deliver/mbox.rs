//! The exit's own users (exit type MBOX, E2E-spec 3.2): in this process, or by a table of the operator's elsewhere.
//!
//! The table is an address file of the reference (`name: user@host`), with folders of this machine besides. Who has a
//! mailbox in this process is not in it. Writing and sending the mail is `mail`'s and `smtp`'s, a folder is `maildir`'s.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use super::list::{self, ListError};
use super::maildir::{InvalidMaildir, Maildir, MaildirConfig, NotKept};
use crate::crypto::Digest;
use crate::path::{InvalidAddress, Mailbox};

/// Octets of a table: some fifty thousand users. It is held in memory whole.
pub const MAX_LEN: usize = 4 * 1024 * 1024;

/// Mailboxes in this process, such as the gateway's.
///
/// `A` is what arrives: the message as the exit decoded it.
pub trait LocalMailboxes<A: ?Sized>: Send + Sync {
    /// Whether there is a mailbox of `name`: it comes before an address of this name.
    fn has(&self, name: &str) -> bool;

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

/// Where the mail of a user goes.
#[derive(Clone, PartialEq, Eq)]
pub enum Destination {
    /// To an address, as e-mail.
    Mail(Mailbox),
    /// Into a folder of this machine.
    Folder(Folder),
}

/// A maildrop of this machine.
#[derive(Clone, PartialEq, Eq)]
pub struct Folder {
    /// The folder.
    pub maildir: Maildir,
    /// Whom the mail says that it is for.
    pub to: Mailbox,
    /// The line of the table, from 1: a log may name it.
    pub line: usize,
}

/// Prints no address.
impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mail(_) => "Mail(..)",
            Self::Folder(_) => "Folder(..)",
        })
    }
}

/// Users that have their mail delivered elsewhere: name → destination. `Debug` shows the count alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AddressTable(BTreeMap<String, Destination>);

/// A table of addresses cannot be used. The operator must mend it. Holds no name, so that it may be logged.
#[derive(Debug, thiserror::Error)]
pub enum AddressesError {
    /// The file itself.
    #[error(transparent)]
    List(#[from] ListError<InvalidTable>),
    /// A folder that it names is not as it must be.
    #[error("{}: line {line}", path.display())]
    Folder {
        /// Which file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        source: InvalidMaildir,
    },
}

/// Why a table of addresses was refused. Blames the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTable {
    /// It costs memory.
    #[error("found more than {MAX_LEN} octets, expected a shorter table")]
    TooLong,
    /// Neither empty nor a comment nor a user.
    #[error("line {line}: expected `name: user@host` or `name: /path/of/a/Maildir`")]
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
    /// Mail in a folder says whom it is for.
    #[error("line {line}: the name of a user with a folder must do before an @")]
    Name {
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
    /// Reads the table in a file; see [`AddressTable::parse`].
    ///
    /// # Errors
    /// [`ListError`]. Its folders are not looked at.
    pub fn read(path: &Path, domain: &str) -> Result<Self, ListError<InvalidTable>> {
        list::read(path, MAX_LEN, |octets| Self::parse(octets, domain))
    }

    /// Reads lines of `name: user@host`, `name = user@host` or `name: /path/of/a/Maildir`; behind these only a comment may
    /// stand. Empty lines and those that begin with `#` say nothing. Mail in a folder says that it is for the name at
    /// `domain`.
    ///
    /// # Errors
    /// [`InvalidTable`]. Of two lines with one name the reference takes the last.
    pub fn parse(octets: &[u8], domain: &str) -> Result<Self, InvalidTable> {
        if octets.len() > MAX_LEN {
            return Err(InvalidTable::TooLong);
        }
        let mut table = BTreeMap::new();
        for (line, entry) in (1..).zip(octets.split(|octet| *octet == b'\n')) {
            let entry = std::str::from_utf8(entry).map_err(|_| InvalidTable::Form { line })?.trim();
            if entry.is_empty() || entry.starts_with('#') {
                continue;
            }
            let (name, destination) = user(line, entry, domain)?;
            if table.insert(name.to_owned(), destination).is_some() {
                return Err(InvalidTable::Duplicate { line });
            }
        }
        Ok(Self(table))
    }

    /// Where mail for `name` goes.
    pub fn find(&self, name: &str) -> Option<&Destination> {
        self.0.get(name)
    }

    /// Makes what is missing of the folders. Says of which lines it could not, for now.
    ///
    /// # Errors
    /// The line and [`InvalidMaildir`] of one that others can write.
    pub fn prepare(&self) -> Result<Vec<usize>, (usize, InvalidMaildir)> {
        let mut missing = Vec::new();
        for destination in self.0.values() {
            let Destination::Folder(Folder { maildir, line, .. }) = destination else { continue };
            match maildir.prepare() {
                Ok(()) => {}
                Err(NotKept::Invalid(why)) => return Err((*line, why)),
                Err(NotKept::File { .. }) => missing.push(*line),
            }
        }
        Ok(missing)
    }

    /// Whether there is somebody whose mail goes to an address.
    pub fn has_addresses(&self) -> bool {
        self.0.values().any(|destination| matches!(destination, Destination::Mail(_)))
    }

    /// The maildrops of this machine.
    pub fn maildrops(&self) -> impl Iterator<Item = &Folder> {
        self.0.values().filter_map(|destination| match destination {
            Destination::Folder(folder) => Some(folder),
            Destination::Mail(_) => None,
        })
    }

    /// The folders of those.
    pub fn folders(&self) -> impl Iterator<Item = &Maildir> {
        self.maildrops().map(|folder| &folder.maildir)
    }
}

fn user<'e>(line: usize, entry: &'e str, domain: &str) -> Result<(&'e str, Destination), InvalidTable> {
    let form = || InvalidTable::Form { line };
    let (name, value) = entry.split_once([':', '=']).ok_or_else(form)?;
    let (name, value) = (name.trim_end(), value.trim_start());
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(form());
    }
    let (value, rest) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
    let rest = rest.trim_start();
    if value.is_empty() || !(rest.is_empty() || rest.starts_with('#')) {
        return Err(form());
    }
    if !value.starts_with('/') {
        let mailbox = Mailbox::parse(value).map_err(|source| InvalidTable::Address { line, source })?;
        return Ok((name, Destination::Mail(mailbox)));
    }
    let to = Mailbox::parse(&format!("{name}@{domain}")).map_err(|source| InvalidTable::Name { line, source })?;
    let maildir = Maildir::new(&MaildirConfig { path: Some(value.into()) }).map_err(|_| form())?;
    Ok((name, Destination::Folder(Folder { maildir, to, line })))
}

impl fmt::Debug for AddressTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AddressTable({} names)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn parse(text: &str) -> Result<AddressTable, InvalidTable> {
        AddressTable::parse(text.as_bytes(), "alpha.mbox.alt")
    }

    fn mail(text: &str) -> Destination {
        Destination::Mail(Mailbox::parse(text).unwrap())
    }

    #[test]
    fn table_finds_a_user_by_name() {
        let table =
            parse("# users\n\nfrida: frida@example.org\r\n bob = b@c.example # Bob\n\teve:/var/mail/eve\n").unwrap();
        assert_eq!(table.find("frida"), Some(&mail("frida@example.org")));
        assert_eq!(table.find("bob"), Some(&mail("b@c.example")));
        assert_eq!(table.find("Frida"), None);
        let Some(Destination::Folder(folder)) = table.find("eve") else { panic!("a folder") };
        assert_eq!((folder.to.as_str(), folder.line), ("eve@alpha.mbox.alt", 5));
        assert_eq!(format!("{table:?} {:?}", table.find("eve")), "AddressTable(3 names) Some(Folder(..))");
    }

    #[test]
    fn wrong_line_is_named() {
        for form in ["\nfrida\n", "\n: a@b.c", "\na b: a@b.c", "\na:", "\na: b@c.d e@f.g", "\na: /x y", "\na: /x = /y"]
        {
            assert_eq!(parse(form), Err(InvalidTable::Form { line: 2 }), "{form}");
        }
        assert_eq!(AddressTable::parse(b"a: b@c.d\n\xff: b@c.d", "x.y"), Err(InvalidTable::Form { line: 2 }));
        let source = InvalidAddress::Mailbox;
        for address in ["a: b@c@d", "a: Maildir", "a: ./Maildir"] {
            assert_eq!(parse(address), Err(InvalidTable::Address { line: 1, source: source.clone() }), "{address}");
        }
        assert_eq!(parse("grüße: /var/mail/x"), Err(InvalidTable::Name { line: 1, source }));
        assert_eq!(parse("a: b@c.d\na: e@f.g"), Err(InvalidTable::Duplicate { line: 2 }));
        assert_eq!(AddressTable::parse(&vec![b'\n'; MAX_LEN + 1], "x.y"), Err(InvalidTable::TooLong));
    }

    #[test]
    fn what_is_no_file_is_refused_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let read = |path: &Path| AddressTable::read(path, "x.y").unwrap_err();
        assert!(matches!(read(folder.path()), ListError::NoFile { path } if path == folder.path()));
        let missing = folder.path().join("users");
        assert!(matches!(read(&missing), ListError::Unreadable { path, .. } if path == missing));
        fs::write(&missing, "frida").unwrap();
        let wrong = read(&missing);
        assert!(matches!(&wrong, ListError::Invalid { source: InvalidTable::Form { line: 1 }, .. }), "{wrong:?}");
        assert!(!format!("{wrong} {wrong:?}").contains("frida"));
    }

    #[test]
    fn folders_are_made_and_one_that_others_can_write_is_named_by_its_line() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name).display().to_string();
        fs::write(path("file"), "").unwrap();
        let table = format!("a: {}\nb: {}\nc: x@y.z\n", path("mail"), path("file/mail"));
        assert_eq!(parse(&table).unwrap().prepare().unwrap(), [2], "nobody makes a folder in a file");
        assert!(home.path().join("mail/new").is_dir());
        fs::set_permissions(path("mail"), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = parse(&table).unwrap().prepare().unwrap_err();
        assert!(matches!(refused, (1, InvalidMaildir::Shared { mode: 0o777, .. })), "{refused:?}");
    }
}
