//! Puts mails into a Maildir, from which the operator's own programs read them or take them on.
//!
//! A mail is whole or it is not there, and it is on disk before anybody hears that it was taken. Its file is named by
//! whoever delivers it, the same at each try: so a mail that was delivered before a crash is found, and not put there again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::mail::with_line_feeds;
use crate::crypto::{DIGEST_LEN, Digest, sha1};
use crate::path::Mailbox;
use crate::store::db::own_uid;

/// What lies in `tmp` for longer is of a process that was killed, as all programs for Maildirs have it.
const LEFT_BEHIND: Duration = Duration::from_secs(36 * 3600);

/// Where mail is put.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaildirConfig {
    /// The folder that has, or gets, `tmp`, `new` and `cur`.
    pub path: Option<PathBuf>,
}

/// Why no mail is put there. Blames the settings, and what the operator has made of the folder.
#[derive(Debug, thiserror::Error)]
pub enum InvalidMaildir {
    /// There is no folder to put mail into.
    #[error("path: none is set")]
    NoPath,
    /// Its owner could put a folder of his in its place.
    #[error("{} belongs to user {owner}, and this process is user {own}: chown it, or run the node as user {owner}", path.display())]
    Foreign {
        /// Which folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who the process is.
        own: u32,
    },
    /// Others could put a folder of theirs in its place.
    #[error("{} has mode {mode:04o}, which lets others than its owner write: chmod go-w it", path.display())]
    Shared {
        /// Which folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Why a mail was not put there. Nothing in it tells who was to have it.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    /// The folder is not as it must be.
    #[error(transparent)]
    Invalid(#[from] InvalidMaildir),
    /// The system refuses: no room, no rights, no disk.
    #[error("{}: {source}", path.display())]
    File {
        /// The folder where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Whether somebody has tried to put a mail into a Maildir before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// Nobody has.
    Never,
    /// He may have died after it.
    Perhaps,
}

/// A Maildir.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maildir {
    path: PathBuf,
}

impl Maildir {
    /// The one that the settings name; looks at nothing yet.
    ///
    /// # Errors
    /// [`InvalidMaildir::NoPath`].
    pub fn new(config: &MaildirConfig) -> Result<Self, InvalidMaildir> {
        let path = config.path.clone().filter(|path| path != Path::new("")).ok_or(InvalidMaildir::NoPath)?;
        Ok(Self { path })
    }

    /// Makes the folders that are missing.
    ///
    /// # Errors
    /// [`NotKept`]; [`InvalidMaildir::Shared`] in it when others can write into one of them.
    pub fn prepare(&self) -> Result<(), NotKept> {
        folder(&self.path)?;
        ["tmp", "new", "cur"].into_iter().try_for_each(|name| folder(&self.path.join(name)))
    }

    /// Puts a mail there, as [`dressed`] writes it, and returns when it is on disk. It changes nothing when a mail of this
    /// name lies there already, read or not, if it may have been `tried`.
    ///
    /// # Errors
    /// [`NotKept`].
    pub fn keep(&self, name: &Digest, mail: &[u8], tried: Tried) -> Result<(), NotKept> {
        self.prepare()?;
        let name = name.to_string();
        let [tmp, new] = ["tmp", "new"].map(|folder| self.path.join(folder));
        if let Some(folder) = self.find(&name, tried)? {
            // Whoever put it there may have died before this.
            return sync(&folder);
        }
        let unfinished = tmp.join(&name);
        let put = write(&unfinished, mail)
            .map_err(failed(&tmp))
            .and_then(|()| fs::rename(&unfinished, new.join(&name)).map_err(failed(&new)));
        if put.is_err() {
            // It would take room on a disk that may be full.
            let _ = fs::remove_file(&unfinished);
        }
        put?;
        sync(&new)
    }

    /// Does what it takes to put a mail there, with an empty file that no reader of Maildirs looks at: its name begins with a
    /// dot in `new`. It is gone at the end.
    ///
    /// # Errors
    /// [`NotKept`], as [`Maildir::keep`].
    pub fn prove(&self) -> Result<(), NotKept> {
        self.prove_as("proof")
    }

    /// As [`Maildir::prove`], where another proof of the same folder may go on.
    ///
    /// # Errors
    /// [`NotKept`], as [`Maildir::keep`].
    pub fn prove_as(&self, name: &str) -> Result<(), NotKept> {
        self.prepare()?;
        let [tmp, new] = ["tmp", "new"].map(|folder| self.path.join(folder));
        // In `tmp` it has a name that is cleared away with those of mails, should the process be killed here.
        let (unfinished, put) = (tmp.join(sha1(&[name.as_bytes()]).to_string()), new.join(format!(".{name}")));
        let done = write(&unfinished, b"")
            .map_err(failed(&tmp))
            .and_then(|()| fs::rename(&unfinished, &put).map_err(failed(&new)))
            .and_then(|()| sync(&new));
        let _ = fs::remove_file(&unfinished);
        let removed = fs::remove_file(&put);
        done.and_then(|()| removed.map_err(failed(&new)))
    }

    /// Which folder has the mail of this name. Readers move it from `new` to `cur`, so this is the order to look in; there
    /// its name goes on with its flags, or with what a server notes of it, so all of the folder is looked through: it may
    /// hold all mail of years.
    fn find(&self, name: &str, tried: Tried) -> Result<Option<PathBuf>, NotKept> {
        let [new, cur] = ["new", "cur"].map(|folder| self.path.join(folder));
        if new.join(name).try_exists().map_err(failed(&new))? {
            return Ok(Some(new));
        }
        if tried == Tried::Never {
            return Ok(None);
        }
        for entry in fs::read_dir(&cur).map_err(failed(&cur))? {
            let entry = entry.map_err(failed(&cur))?;
            if entry.file_name().as_encoded_bytes().starts_with(name.as_bytes()) {
                return Ok(Some(cur));
            }
        }
        Ok(None)
    }

    /// Removes what processes that were killed have left unfinished. Files of other programs stay.
    ///
    /// # Errors
    /// [`NotKept::File`].
    pub fn remove_leftovers(&self, now: SystemTime) -> Result<(), NotKept> {
        let tmp = self.path.join("tmp");
        let failed = |source| failed(&tmp)(source);
        for entry in fs::read_dir(&tmp).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let found = entry.metadata().map_err(failed)?;
            let age = now.duration_since(found.modified().map_err(failed)?).unwrap_or_default();
            if found.is_file() && age > LEFT_BEHIND && is_a_name(entry.file_name().as_encoded_bytes()) {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// The mail as it lies on disk: its envelope above it, and lines that end with LF.
pub fn dressed(from: &Mailbox, to: &Mailbox, mail: &[u8]) -> Vec<u8> {
    // Not Delivered-To: that says that the mail has arrived, and a mail server to which a program hands it on would refuse
    // it as one that goes in a circle.
    let mut dressed = format!("Return-Path: <{from}>\nX-Original-To: {to}\n").into_bytes();
    dressed.extend(with_line_feeds(mail));
    dressed
}

fn is_a_name(name: &[u8]) -> bool {
    name.len() == 2 * DIGEST_LEN && name.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// That others than the process and the superuser can change what is in a folder.
fn refuse(path: &Path, mode: u32, owner: u32, own: u32) -> Result<(), InvalidMaildir> {
    let path = path.to_owned();
    if owner != own && owner != 0 {
        // He can put a link in the place of `new` whatever the mode says, and the superuser's process would follow it.
        return Err(InvalidMaildir::Foreign { path, owner, own });
    }
    if mode & 0o022 == 0 { Ok(()) } else { Err(InvalidMaildir::Shared { path, mode }) }
}

/// Makes the folder unless it is there, and sees to it that its owner alone can write, and is no stranger.
fn folder(path: &Path) -> Result<(), NotKept> {
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => Err(failed(path)(ErrorKind::NotADirectory.into())),
        Ok(found) => refuse(path, found.mode() & 0o7777, found.uid(), own_uid()).map_err(NotKept::from),
        Err(e) if e.kind() == ErrorKind::NotFound => make(path),
        Err(e) => Err(failed(path)(e)),
    }
}

/// Makes the folder and what is missing above it, each on disk before the next: else mail could be lost with a folder far
/// above it.
fn make(path: &Path) -> Result<(), NotKept> {
    let above = path.parent().filter(|above| *above != Path::new("")).unwrap_or(Path::new("."));
    if !above.try_exists().map_err(failed(above))? {
        make(above)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        // Another delivery was faster.
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(failed(path)(e)),
        _ => {}
    }
    sync(above)
}

fn write(path: &Path, octets: &[u8]) -> io::Result<()> {
    // A process that was killed may have left it. A new file follows no link.
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(octets)?;
    file.sync_all()
}

fn sync(folder: &Path) -> Result<(), NotKept> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))
}

/// What the system says, with the folder alone: the name of a file is of one mail.
fn failed(folder: &Path) -> impl Fn(io::Error) -> NotKept {
    |source| NotKept::File { path: folder.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const MAIL: &[u8] = b"Subject: x\r\n\r\none\r\n\r\ntwo\r\n";

    struct Kept {
        maildir: Maildir,
        home: tempfile::TempDir,
    }

    fn maildir() -> Kept {
        let home = tempfile::tempdir().unwrap();
        let maildir = Maildir::new(&MaildirConfig { path: Some(home.path().join("mail")) }).unwrap();
        Kept { maildir, home }
    }

    impl Kept {
        fn path(&self, name: &str) -> PathBuf {
            self.home.path().join("mail").join(name)
        }

        fn names(&self, folder: &str) -> Vec<String> {
            let entries = fs::read_dir(self.path(folder)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }

        fn count(&self) -> [usize; 3] {
            ["tmp", "new", "cur"].map(|folder| self.names(folder).len())
        }
    }

    fn name(of: &[u8]) -> Digest {
        sha1(&[of])
    }

    #[test]
    fn mail_lies_in_new_with_its_envelope_and_is_its_owners_alone() {
        let kept = maildir();
        let (from, to) = (Mailbox::parse("nobody@exit.example").unwrap(), Mailbox::parse("bob@example.org").unwrap());
        kept.maildir.keep(&name(b"1"), &dressed(&from, &to, MAIL), Tried::Perhaps).unwrap();
        assert_eq!(kept.count(), [0, 1, 0]);
        let path = kept.path("new").join(name(b"1").to_string());
        let text = fs::read_to_string(&path).unwrap();
        let envelope = "Return-Path: <nobody@exit.example>\nX-Original-To: bob@example.org\n";
        assert_eq!(text, format!("{envelope}Subject: x\n\none\n\ntwo\n"));
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
        for folder in ["", "tmp", "new", "cur"] {
            assert_eq!(fs::metadata(kept.path(folder)).unwrap().mode() & 0o777, 0o700, "{folder}");
        }
    }

    #[test]
    fn mail_that_lies_there_is_not_delivered_twice_and_another_is() {
        let kept = maildir();
        kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap();
        kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap();
        assert_eq!(kept.count(), [0, 1, 0]);
        kept.maildir.keep(&name(b"2"), MAIL, Tried::Perhaps).unwrap();
        assert_eq!(kept.count(), [0, 2, 0]);
    }

    #[test]
    fn mail_that_a_reader_has_moved_and_flagged_is_not_delivered_twice() {
        for flags in ["", ":2,", ":2,RS", ",S=27:2,S"] {
            let kept = maildir();
            kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap();
            let read = kept.path("cur").join(format!("{}{flags}", name(b"1")));
            fs::rename(kept.path("new").join(name(b"1").to_string()), read).unwrap();
            kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap();
            assert_eq!(kept.count(), [0, 0, 1], "{flags}");
        }
    }

    #[test]
    fn mail_that_a_killed_process_left_half_is_delivered_whole() {
        let kept = maildir();
        kept.maildir.prepare().unwrap();
        let half = kept.path("tmp").join(name(b"1").to_string());
        fs::write(&half, b"Subj").unwrap();
        kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap();
        assert_eq!(kept.count(), [0, 1, 0]);
        assert_eq!(fs::read(kept.path("new").join(name(b"1").to_string())).unwrap(), MAIL);
    }

    #[test]
    fn old_leftovers_are_removed_and_young_ones_and_those_of_others_stay() {
        let kept = maildir();
        kept.maildir.prepare().unwrap();
        let [mine, other] = [name(b"1").to_string(), "1700000000.M1P2.host".to_owned()];
        for name in [&mine, &other] {
            fs::write(kept.path("tmp").join(name), b"Subj").unwrap();
        }
        let hours = |hours: u64| SystemTime::now() + Duration::from_secs(hours * 3600);
        kept.maildir.remove_leftovers(hours(35)).unwrap();
        assert_eq!(kept.count(), [2, 0, 0]);
        kept.maildir.remove_leftovers(hours(37)).unwrap();
        assert_eq!(kept.names("tmp"), [other]);
    }

    #[test]
    fn folder_that_others_can_write_is_refused_by_name() {
        for shared in ["", "tmp", "new", "cur"] {
            for mode in [0o770, 0o707] {
                let kept = maildir();
                kept.maildir.prepare().unwrap();
                fs::set_permissions(kept.path(shared), Permissions::from_mode(mode)).unwrap();
                let refused = kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap_err();
                let is_it = matches!(&refused, NotKept::Invalid(InvalidMaildir::Shared { path, mode: found })
                    if *path == kept.path(shared) && *found == mode);
                assert!(is_it, "{shared}: {refused:?}");
                assert_eq!(kept.count(), [0, 0, 0]);
            }
        }
    }

    #[test]
    fn folder_of_another_user_is_refused_by_name() {
        let path = Path::new("/var/mail/eve");
        for (owner, own, refused) in [(7, 7, false), (0, 7, false), (0, 0, false), (7, 0, true), (7, 8, true)] {
            let said = refuse(path, 0o700, owner, own);
            let is_it =
                matches!(&said, Err(InvalidMaildir::Foreign { path: it, owner: of, .. }) if it == path && *of == owner);
            assert_eq!((is_it, said.is_err()), (refused, refused), "{owner} {own}: {said:?}");
        }
    }

    #[test]
    fn superuser_puts_no_mail_into_the_folder_of_another_user() {
        let kept = maildir();
        kept.maildir.prepare().unwrap();
        // Who may do no such thing has no such folder.
        if std::os::unix::fs::chown(kept.path("new"), Some(own_uid() + 1), None).is_ok() {
            let refused = kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap_err();
            assert!(matches!(refused, NotKept::Invalid(InvalidMaildir::Foreign { .. })), "{refused:?}");
            assert_eq!(kept.count(), [0, 0, 0]);
        }
    }

    #[test]
    fn folders_above_are_made_too_for_their_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b/mail");
        Maildir::new(&MaildirConfig { path: Some(path.clone()) }).unwrap().prepare().unwrap();
        for folder in ["a", "a/b", "a/b/mail", "a/b/mail/cur"] {
            assert_eq!(fs::metadata(home.path().join(folder)).unwrap().mode() & 0o777, 0o700, "{folder}");
        }
    }

    #[test]
    fn read_mail_is_looked_through_for_what_may_have_been_tried_and_for_no_other() {
        let kept = maildir();
        kept.maildir.prepare().unwrap();
        let read = |folder: &str| fs::write(kept.path(folder).join(name(b"1").to_string()), MAIL).unwrap();
        read("cur");
        kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap();
        assert_eq!(kept.count(), [0, 0, 1]);
        kept.maildir.keep(&name(b"1"), MAIL, Tried::Never).unwrap();
        assert_eq!(kept.count(), [0, 1, 1], "nobody looked");
    }

    #[test]
    fn maildir_without_a_path_is_refused() {
        for path in [None, Some(PathBuf::new())] {
            assert!(matches!(Maildir::new(&MaildirConfig { path }), Err(InvalidMaildir::NoPath)));
        }
    }

    #[test]
    fn what_the_system_refuses_names_the_folder_and_no_mail() {
        let kept = maildir();
        kept.maildir.prepare().unwrap();
        // Not even the superuser writes through a file.
        fs::remove_dir(kept.path("new")).unwrap();
        fs::write(kept.path("new"), b"").unwrap();
        let refused = kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap_err();
        let is_it = matches!(&refused, NotKept::File { path, source }
            if *path == kept.path("new") && source.kind() == ErrorKind::NotADirectory);
        assert!(is_it, "{refused:?}");
        assert!(!refused.to_string().contains(&name(b"1").to_string()), "{refused}");
        assert_eq!(kept.names("tmp"), Vec::<String>::new());
        fs::remove_file(kept.path("new")).unwrap();
        kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap();
    }

    #[test]
    fn proof_leaves_nothing_and_fails_where_a_mail_would() {
        let kept = maildir();
        kept.maildir.prove().unwrap();
        assert_eq!(kept.count(), [0, 0, 0]);
        // What a process that was killed has left is in nobody's way.
        fs::write(kept.path("new").join(".proof"), b"").unwrap();
        kept.maildir.prove().unwrap();
        assert_eq!(kept.count(), [0, 0, 0]);
        fs::set_permissions(kept.path("new"), Permissions::from_mode(0o777)).unwrap();
        let refused = kept.maildir.prove().unwrap_err();
        assert!(matches!(refused, NotKept::Invalid(InvalidMaildir::Shared { .. })), "{refused:?}");
        for hindered in ["tmp", "new"] {
            let kept = maildir();
            kept.maildir.prepare().unwrap();
            let name = if hindered == "tmp" { sha1(&[b"proof"]).to_string() } else { ".proof".into() };
            // A folder of its name hinders it, as a full disk would.
            fs::create_dir(kept.path(hindered).join(name)).unwrap();
            let refused = kept.maildir.prove().unwrap_err();
            assert!(matches!(&refused, NotKept::File { path, .. } if *path == kept.path(hindered)), "{refused:?}");
        }
    }

    #[test]
    fn mail_that_cannot_be_put_into_new_leaves_nothing_unfinished() {
        let kept = maildir();
        kept.maildir.prepare().unwrap();
        // A folder of its name hinders the unfinished file, as a full disk would.
        let hindrance = kept.path("tmp").join(name(b"1").to_string());
        fs::create_dir(&hindrance).unwrap();
        let refused = kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap_err();
        assert!(matches!(&refused, NotKept::File { path, .. } if *path == kept.path("tmp")), "{refused:?}");
        fs::remove_dir(hindrance).unwrap();
        kept.maildir.keep(&name(b"1"), MAIL, Tried::Perhaps).unwrap();
        assert_eq!(kept.count(), [0, 1, 0]);
    }
}
