//! One process for each home: whoever comes second is refused before it touches anything.
//!
//! The databases have locks of their own (`mix::store::db`); this one comes before keys are read or made, and whether
//! it is free tells other commands whether the process has ended.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use mix::store::StoreError;
use mix::store::db::private_folder;

use crate::Config;

/// How long to try: a command that looks whether a process runs holds the lock for a moment.
const PATIENCE: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(20);

/// Why a home cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("a process runs in {} already", home.display())]
    Taken {
        /// Which home.
        home: PathBuf,
    },
    /// The folder is not private, or cannot be made.
    #[error(transparent)]
    Folder(#[from] StoreError),
    /// The file cannot be used.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The homes of a process. The system gives them back with the process, however it ends.
#[derive(Debug)]
pub struct Lock {
    _files: Vec<File>,
}

impl Lock {
    /// Takes the homes of all roles that `config` enables.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(config: &Config) -> Result<Self, LockError> {
        let roles = [
            (config.gateway.enabled, &config.gateway.home),
            (config.node.enabled, &config.node.home),
            (config.directory.enabled, &config.directory.home),
        ];
        let mut homes = BTreeSet::new();
        for (_, home) in roles.iter().filter(|(enabled, _)| *enabled) {
            private_folder(home)?;
            // Two roles may share a folder, under two names too.
            let at_home = |source| LockError::File { path: home.to_path_buf(), source };
            homes.insert(fs::canonicalize(home).map_err(at_home)?);
        }
        let files = homes.iter().map(|home| take(home)).collect::<Result<_, _>>()?;
        Ok(Self { _files: files })
    }

    /// Takes a home that is there.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn of_home(home: &Path) -> Result<Self, LockError> {
        Ok(Self { _files: vec![take(home)?] })
    }
}

fn take(home: &Path) -> Result<File, LockError> {
    let path = home.join("lock");
    let failed = |source| LockError::File { path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => thread::sleep(AGAIN),
            Err(TryLockError::WouldBlock) => return Err(LockError::Taken { home: home.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

/// Whether a process runs in `home`.
///
/// # Errors
/// [`LockError::File`].
pub fn is_taken(home: &Path) -> Result<bool, LockError> {
    let path = home.join("lock");
    let failed = |source| LockError::File { path: path.clone(), source };
    let file = match OpenOptions::new().write(true).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(failed(source)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(home: &Path) -> Config {
        let mut config = Config::default();
        config.node.enabled = true;
        config.node.home = home.join("node");
        config
    }

    #[test]
    fn second_process_is_refused_and_the_home_is_free_after_the_first() {
        let home = tempfile::tempdir().unwrap();
        let config = config(home.path());
        assert!(!is_taken(&config.node.home).unwrap());
        let first = Lock::take(&config).unwrap();
        assert!(is_taken(&config.node.home).unwrap());
        let refused = Lock::take(&config).unwrap_err();
        assert!(matches!(&refused, LockError::Taken { home } if home.ends_with("node")), "{refused:?}");
        drop(first);
        assert!(!is_taken(&config.node.home).unwrap());
        Lock::take(&config).unwrap();
    }

    #[test]
    fn roles_of_one_process_may_share_a_home() {
        let home = tempfile::tempdir().unwrap();
        let mut config = config(home.path());
        config.gateway.enabled = true;
        config.gateway.home = home.path().join("node/../node");
        Lock::take(&config).unwrap();
    }
}
