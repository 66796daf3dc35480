//! Where a passphrase comes from: a file descriptor, a file, the environment, or the terminal. Never from the command line,
//! which every user of the machine can read; and nobody is asked where no terminal is.
//!
//! The variable stays in the environment of the process: taking it out is not safe while other threads may look, and the
//! system shows the first environment of a process to its user anyway. The other ways leave nothing behind.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use mix::crypto::Passphrase;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, geteuid, getpid, pidfd_getfd, pidfd_open};
use zeroize::Zeroizing;

/// The variable that may hold a passphrase.
pub const VARIABLE: &str = "MIXGATE_PASSPHRASE";
/// Octets of the longest passphrase. More is another kind of file.
const MAX_LEN: usize = 4096;

/// Where the command line says that the passphrase is.
#[derive(Args, Clone, Debug, Default)]
pub struct PassphraseSource {
    /// Read the passphrase of sealed keys from this open file descriptor, to its end
    #[arg(long, value_name = "N", conflicts_with = "passphrase_file")]
    passphrase_fd: Option<u32>,
    /// Read the passphrase of sealed keys from this file, which nobody else may be able to read
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Why there is no passphrase. The operator must mend what is named.
#[derive(Debug, thiserror::Error)]
pub enum NoPassphrase {
    /// Nothing holds one, and nobody can be asked.
    #[error(
        "the keys are sealed, and there is no passphrase: give it by --passphrase-fd, --passphrase-file or {VARIABLE}, or start from a terminal"
    )]
    Nowhere,
    /// Others can read the file.
    #[error("{} can be read by others (mode {mode:04o}); chmod 600 it, and think of another passphrase", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file is somebody else's, who can read it whatever its mode says.
    #[error("{} belongs to user {owner}; it must belong to the user of this process (chown)", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A file or descriptor cannot be read.
    #[error("reading the passphrase from {from}")]
    Unreadable {
        /// Which.
        from: String,
        /// What the system says.
        source: io::Error,
    },
    /// Nothing there.
    #[error("the passphrase from {from} is empty")]
    Empty {
        /// Where it was looked for.
        from: String,
    },
    /// Too much there.
    #[error("the passphrase from {from} is longer than {MAX_LEN} octets")]
    TooLong {
        /// Where it was looked for.
        from: String,
    },
    /// Two different answers.
    #[error("the two passphrases differ")]
    Differ,
    /// A passphrase for keys that stay in the clear.
    #[error(
        "a passphrase is given, but node.keys.sealed is false, and the keys would lie on the disk in the clear: set it to true"
    )]
    NotSealed,
}

impl PassphraseSource {
    /// Whether the command line or the environment gives one, without asking anybody.
    pub fn is_given(&self) -> bool {
        self.passphrase_fd.is_some() || self.passphrase_file.is_some() || std::env::var_os(VARIABLE).is_some()
    }

    /// The passphrase of keys that are there.
    ///
    /// # Errors
    /// [`NoPassphrase`].
    pub fn read(&self) -> Result<Passphrase, NoPassphrase> {
        self.given()?.map_or_else(|| ask("Passphrase of the keys: "), Ok)
    }

    /// A passphrase for keys that are to be made: on a terminal it is asked for twice.
    ///
    /// # Errors
    /// [`NoPassphrase`].
    pub fn read_new(&self) -> Result<Passphrase, NoPassphrase> {
        if let Some(given) = self.given()? {
            return Ok(given);
        }
        let first = ask("New passphrase for the keys: ")?;
        if ask("The same once more: ")? == first { Ok(first) } else { Err(NoPassphrase::Differ) }
    }

    /// What needs nobody to be asked.
    fn given(&self) -> Result<Option<Passphrase>, NoPassphrase> {
        if let Some(number) = self.passphrase_fd {
            return from_descriptor(number).map(Some);
        }
        if let Some(path) = &self.passphrase_file {
            return from_file(path).map(Some);
        }
        std::env::var_os(VARIABLE).map(from_variable).transpose()
    }
}

fn from_descriptor(number: u32) -> Result<Passphrase, NoPassphrase> {
    let from = format!("file descriptor {number}");
    match open_descriptor(number) {
        Ok(file) => from_open_file(file, from),
        Err(source) => Err(NoPassphrase::Unreadable { from, source }),
    }
}

/// What this process has open under a number: to take the number for a file would need a promise that nobody here can
/// give, so the system is asked for another descriptor of the same.
fn open_descriptor(number: u32) -> io::Result<File> {
    if number == 0 {
        return io::stdin().as_fd().try_clone_to_owned().map(File::from);
    }
    let foreign = i32::try_from(number).map_err(|_| io::Error::from(Errno::BADF))?;
    let own = pidfd_open(getpid(), PidfdFlags::empty());
    match own.and_then(|own| pidfd_getfd(own, foreign, PidfdGetfdFlags::empty())) {
        Ok(descriptor) => Ok(descriptor.into()),
        Err(Errno::BADF) => Err(Errno::BADF.into()),
        // Some containers forbid the call, and systems before Linux 5.6 have none. By its name, it is opened once more,
        // which not every descriptor lets its owner do.
        Err(_) => open_by_name(number),
    }
}

/// The file, pipe or terminal that is open under a number, opened once more. A file is read from where it stands.
fn open_by_name(number: u32) -> io::Result<File> {
    let mut file = File::open(format!("/proc/self/fd/{number}"))?;
    if file.metadata()?.is_file() {
        let facts = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
        let place = facts.lines().find_map(|line| line.strip_prefix("pos:")?.trim().parse().ok());
        file.seek(SeekFrom::Start(place.ok_or(io::ErrorKind::InvalidData)?))?;
    }
    Ok(file)
}

fn from_file(path: &Path) -> Result<Passphrase, NoPassphrase> {
    let from = path.display().to_string();
    match File::open(path).and_then(|file| Ok((file.metadata()?, file))) {
        Ok((found, file)) => {
            only_ours(path, found.uid(), found.mode() & 0o777).and_then(|()| from_open_file(file, from))
        }
        Err(source) => Err(NoPassphrase::Unreadable { from, source }),
    }
}

fn only_ours(path: &Path, owner: u32, mode: u32) -> Result<(), NoPassphrase> {
    let path = || path.to_owned();
    if owner != geteuid().as_raw() {
        return Err(NoPassphrase::Foreign { path: path(), owner });
    }
    if mode & 0o077 != 0 { Err(NoPassphrase::Exposed { path: path(), mode }) } else { Ok(()) }
}

fn from_open_file(file: File, from: String) -> Result<Passphrase, NoPassphrase> {
    let mut octets = Zeroizing::new(Vec::with_capacity(MAX_LEN + 2));
    // Two more for the end of the line, one to see that there is too much.
    match file.take(MAX_LEN as u64 + 3).read_to_end(&mut octets) {
        Ok(_) => one_line(&octets, from),
        Err(source) => Err(NoPassphrase::Unreadable { from, source }),
    }
}

fn from_variable(value: OsString) -> Result<Passphrase, NoPassphrase> {
    one_line(&Zeroizing::new(value.into_vec()), VARIABLE.to_owned())
}

fn ask(prompt: &str) -> Result<Passphrase, NoPassphrase> {
    if !io::stdin().is_terminal() {
        return Err(NoPassphrase::Nowhere);
    }
    let from = "the terminal".to_owned();
    match rpassword::prompt_password(prompt) {
        Ok(answer) => one_line(Zeroizing::new(answer).as_bytes(), from),
        Err(source) => Err(NoPassphrase::Unreadable { from, source }),
    }
}

/// A passphrase without the end of its line, which editors add.
fn one_line(octets: &[u8], from: String) -> Result<Passphrase, NoPassphrase> {
    let octets = octets.strip_suffix(b"\n").unwrap_or(octets);
    let octets = octets.strip_suffix(b"\r").unwrap_or(octets);
    if octets.len() > MAX_LEN {
        return Err(NoPassphrase::TooLong { from });
    }
    Passphrase::new(octets.to_vec()).ok_or(NoPassphrase::Empty { from })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PassphraseSource) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (folder, PassphraseSource { passphrase_fd: None, passphrase_file: Some(path) })
    }

    #[test]
    fn the_end_of_the_line_does_not_count_and_all_else_does() {
        let words = Passphrase::new(b" open sesame ".to_vec()).unwrap();
        for content in [&b" open sesame "[..], b" open sesame \n", b" open sesame \r\n"] {
            let (_folder, source) = file(content, 0o400);
            assert_eq!(source.read().unwrap(), words);
            assert_eq!(source.read_new().unwrap(), words);
        }
    }

    #[test]
    fn file_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o660] {
            let (_folder, source) = file(b"open sesame", mode);
            assert!(matches!(source.read(), Err(NoPassphrase::Exposed { mode: found, .. }) if found == mode));
        }
    }

    #[test]
    fn file_of_another_user_is_refused() {
        let (_folder, source) = file(b"open sesame", 0o600);
        let path = source.passphrase_file.unwrap();
        let ours = fs::metadata(&path).unwrap().uid();
        assert!(only_ours(&path, ours, 0o600).is_ok());
        let refused = only_ours(&path, ours + 1, 0o600);
        assert!(matches!(refused, Err(NoPassphrase::Foreign { owner, .. }) if owner == ours + 1));
    }

    #[test]
    fn file_that_is_opened_once_more_is_read_from_where_it_stands() {
        use std::os::fd::AsRawFd as _;

        let (_folder, source) = file(b"first\nopen sesame\n", 0o600);
        let mut open = File::open(source.passphrase_file.unwrap()).unwrap();
        open.seek(SeekFrom::Start(6)).unwrap();
        let again = open_by_name(open.as_raw_fd().try_into().unwrap()).unwrap();
        let words = Passphrase::new(b"open sesame".to_vec()).unwrap();
        assert_eq!(from_open_file(again, "it".to_owned()).unwrap(), words);
    }

    #[test]
    fn nothing_and_too_much_are_refused_by_name() {
        for content in [&b""[..], b"\n", b"\r\n"] {
            let (_folder, source) = file(content, 0o600);
            assert!(matches!(source.read(), Err(NoPassphrase::Empty { .. })), "{content:?}");
        }
        let (_folder, longest) = file(&[b'x'; MAX_LEN], 0o600);
        assert!(longest.read().is_ok());
        let (_folder, longer) = file(&[b'x'; MAX_LEN + 1], 0o600);
        assert!(matches!(longer.read(), Err(NoPassphrase::TooLong { .. })));
        let nowhere = PassphraseSource { passphrase_fd: None, passphrase_file: Some("/nowhere/at/all".into()) };
        assert!(matches!(nowhere.read(), Err(NoPassphrase::Unreadable { from, .. }) if from == "/nowhere/at/all"));
        let closed = PassphraseSource { passphrase_fd: Some(987_654), passphrase_file: None };
        assert!(matches!(closed.read(), Err(NoPassphrase::Unreadable { from, .. }) if from.contains("987654")));
    }

    fn from_fd(fd: &impl std::os::fd::AsRawFd) -> Result<Passphrase, NoPassphrase> {
        let passphrase_fd = Some(fd.as_raw_fd().try_into().unwrap());
        PassphraseSource { passphrase_fd, passphrase_file: None }.read()
    }

    #[test]
    fn descriptor_is_read_whatever_is_behind_it() {
        use std::io::Write as _;
        use std::os::unix::net::UnixStream;

        let words = Passphrase::new(b"open sesame".to_vec()).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"open sesame\n").unwrap();
        drop(writer);
        assert_eq!(from_fd(&reader).unwrap(), words, "a pipe");
        let (reader, mut writer) = UnixStream::pair().unwrap();
        writer.write_all(b"open sesame\n").unwrap();
        drop(writer);
        assert_eq!(from_fd(&reader).unwrap(), words, "a socket");
        // A file without a name, that nobody may open again, of which the first line is read.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        let mut file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        file.write_all(b"first\nopen sesame\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        fs::remove_file(&path).unwrap();
        file.seek(SeekFrom::Start(6)).unwrap();
        assert_eq!(from_fd(&file).unwrap(), words, "from where it stands");
    }
}
