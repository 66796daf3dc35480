//! Files of the operator that are read whole: a limit for each, and nothing that might never end.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// A file cannot be used. The operator must mend it. What `I` finds wrong in it names nobody, so that it may be logged.
#[derive(Debug, thiserror::Error)]
pub enum ListError<I: Error + 'static> {
    /// It is not there, or not to be read.
    #[error("{}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A folder, or what might never end.
    #[error("{}: found something else, expected an ordinary file", path.display())]
    NoFile {
        /// Which.
        path: PathBuf,
    },
    /// It says something else.
    #[error("{}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: I,
    },
}

/// What `parse` makes of the octets of an ordinary file. It gets up to one more than `most`.
///
/// # Errors
/// [`ListError`].
pub(super) fn read<T, I: Error + 'static>(
    path: &Path,
    most: usize,
    parse: impl FnOnce(&[u8]) -> Result<T, I>,
) -> Result<T, ListError<I>> {
    let octets = octets(path, most).map_err(|source| ListError::Unreadable { path: path.into(), source })?;
    let octets = octets.ok_or_else(|| ListError::NoFile { path: path.into() })?;
    parse(&octets).map_err(|source| ListError::Invalid { path: path.into(), source })
}

/// `None` when it is no ordinary file.
fn octets(path: &Path, most: usize) -> io::Result<Option<Vec<u8>>> {
    // Before it is opened: to open a pipe takes until somebody writes into it.
    if !path.metadata()?.is_file() {
        return Ok(None);
    }
    let mut octets = Vec::new();
    let most = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(most).read_to_end(&mut octets)?;
    Ok(Some(octets))
}
