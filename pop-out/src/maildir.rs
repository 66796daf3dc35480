//! Mail in Maildir folders, as a mail transfer agent leaves it: for mailboxes outside the gateway's database.
//!
//! Only `new/` and `cur/` are looked at, and nothing is moved between them: which mail is new is the client's to know.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::pop3::{Letter, Listed, Mailbox, MailboxError, Maildrops, Uidl};

/// A folder of Maildir folders, one for each user.
#[derive(Clone, Debug)]
pub struct Maildirs {
    root: PathBuf,
}

impl Maildirs {
    /// Those in the folder `root`, each under the name of its user.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl Maildrops for Maildirs {
    type Mailbox = Maildir;

    /// A folder that is not there yet is an empty maildrop: the first mail makes it.
    fn open(&self, user: &str) -> Result<Maildir, MailboxError> {
        // A name that leads elsewhere must not, whatever the accounts allow.
        if user.is_empty() || user.starts_with('.') || user.contains(['/', '\0']) {
            return Err(failed(&self.root)(ErrorKind::InvalidInput.into()));
        }
        Ok(Maildir::new(self.root.join(user)))
    }
}

/// One Maildir folder.
#[derive(Clone, Debug)]
pub struct Maildir {
    folder: PathBuf,
}

impl Maildir {
    /// The folder that holds `new/` and `cur/`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The files by unique-id: the part of the name that stays when flags change. Names begin with the time, so that this
    /// order is the order of arrival.
    fn files(&self) -> Result<BTreeMap<Uidl, PathBuf>, MailboxError> {
        let mut files = BTreeMap::new();
        for folder in ["new", "cur"].map(|name| self.folder.join(name)) {
            let Some(entries) = unless_missing(fs::read_dir(&folder)).map_err(failed(&folder))? else { continue };
            for entry in entries {
                let entry = entry.map_err(failed(&folder))?;
                if let Some(uidl) = unique_part(&entry.file_name())
                    && entry.file_type().map_err(failed(&folder))?.is_file()
                {
                    files.insert(uidl, entry.path());
                }
            }
        }
        Ok(files)
    }
}

impl Mailbox for Maildir {
    fn list(&self) -> Result<Vec<Listed>, MailboxError> {
        let mut listed = Vec::new();
        for (uidl, path) in self.files()? {
            // Another program may have moved or removed it since.
            if let Some(octets) = unless_missing(fs::read(&path)).map_err(failed(&path))? {
                let size = u64::try_from(Letter::length_of(&octets)).unwrap_or(u64::MAX);
                listed.push(Listed { uidl, size });
            }
        }
        Ok(listed)
    }

    fn fetch(&self, uidl: &Uidl) -> Result<Option<Letter>, MailboxError> {
        let Some(path) = self.files()?.remove(uidl) else { return Ok(None) };
        Ok(unless_missing(fs::read(&path)).map_err(failed(&path))?.map(Letter::new))
    }

    fn delete(&self, uidls: &[Uidl]) -> Result<(), MailboxError> {
        let mut files = self.files()?;
        for path in uidls.iter().filter_map(|uidl| files.remove(uidl)) {
            unless_missing(fs::remove_file(&path)).map_err(failed(&path))?;
        }
        // A file is gone for good when its folder is on disk.
        for folder in ["new", "cur"].map(|name| self.folder.join(name)) {
            let synced = File::open(&folder).and_then(|folder| folder.sync_all());
            unless_missing(synced).map_err(failed(&folder))?;
        }
        Ok(())
    }
}

/// The file name up to its flags, as a unique-id. Files whose name begins with a dot are no mail.
fn unique_part(name: &OsStr) -> Option<Uidl> {
    let unique = name.as_bytes().split(|octet| *octet == b':').next()?;
    (!unique.is_empty() && !unique.starts_with(b".")).then(|| Uidl::of(unique))
}

fn unless_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> MailboxError {
    move |source| MailboxError::Folder { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maildir(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Maildir) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["new", "cur", "tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for (name, octets) in files {
            fs::write(folder.path().join(name), octets).unwrap();
        }
        let maildir = Maildir::new(folder.path());
        (folder, maildir)
    }

    fn names(maildir: &Maildir) -> Vec<(String, u64)> {
        maildir.list().unwrap().into_iter().map(|listed| (listed.uidl.to_string(), listed.size)).collect()
    }

    #[test]
    fn mail_of_both_folders_is_listed_with_the_size_it_is_sent_in() {
        let (_folder, maildir) = maildir(&[
            ("cur/1.a.host:2,S", b"A: 1\n\nno end"),
            ("new/2.b.host", b"A: 1\r\n\r\nend\r\n"),
            ("new/.hidden", b"no mail"),
            ("tmp/3.c.host", b"not delivered yet"),
        ]);
        assert_eq!(names(&maildir), [("1.a.host".to_owned(), 16), ("2.b.host".to_owned(), 13)]);
        let letter = maildir.fetch(&Uidl::parse("1.a.host").unwrap()).unwrap().unwrap();
        assert_eq!(letter.as_bytes(), b"A: 1\r\n\r\nno end\r\n");
    }

    #[test]
    fn unique_id_stays_when_the_mail_is_read_and_moved() {
        let (folder, maildir) = maildir(&[("new/1.a", b"x")]);
        let before = names(&maildir);
        fs::rename(folder.path().join("new/1.a"), folder.path().join("cur/1.a:2,RS")).unwrap();
        assert_eq!(names(&maildir), before);
    }

    #[test]
    fn deletion_removes_these_files_and_no_others() {
        let (folder, maildir) = maildir(&[("new/1.a", b"x"), ("cur/2.b:2,", b"y")]);
        maildir.delete(&[Uidl::parse("2.b").unwrap(), Uidl::parse("gone").unwrap()]).unwrap();
        assert!(folder.path().join("new/1.a").exists());
        assert!(!folder.path().join("cur/2.b:2,").exists());
        assert_eq!(maildir.fetch(&Uidl::parse("2.b").unwrap()).unwrap(), None);
    }

    #[test]
    fn folder_that_is_not_there_yet_is_an_empty_maildrop() {
        let folder = tempfile::tempdir().unwrap();
        let mailbox = Maildirs::new(folder.path()).open("alice").unwrap();
        assert_eq!(mailbox.list().unwrap(), []);
        mailbox.delete(&[]).unwrap();
    }

    #[test]
    fn user_names_that_lead_elsewhere_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for user in ["", ".", "..", "../alice", "a/b", "/etc", "a\0b"] {
            let refused = Maildirs::new(folder.path()).open(user);
            assert!(
                matches!(refused, Err(MailboxError::Folder { source, .. }) if source.kind() == ErrorKind::InvalidInput)
            );
        }
    }
}
