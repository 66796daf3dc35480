//! Files of the operator that are read whole: a limit for each, and nothing that might never end.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The octets of an ordinary file, up to one more than `most`; `None` when it is something else.
///
/// # Errors
/// What the system says.
pub(super) fn read(path: &Path, most: usize) -> io::Result<Option<Vec<u8>>> {
    // Before it is opened: to open a pipe takes until somebody writes into it.
    if !path.metadata()?.is_file() {
        return Ok(None);
    }
    let mut octets = Vec::new();
    let most = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(most).read_to_end(&mut octets)?;
    Ok(Some(octets))
}
