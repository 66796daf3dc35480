//! What the stores ask of the file system beside SQLite: how much room there is, octets of a file, and what became of a
//! call. `db` says when there is no room left; here one can ask before.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use rustix::buffer::spare_capacity;

use super::db::StoreError;

/// Octets that whoever runs this process may still write to the file system of `folder`.
///
/// # Errors
/// What the system says.
pub fn free_space(folder: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(folder)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// What the system says about a file beside the database.
pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full,
        _ => StoreError::File { path: path.to_owned(), source: Arc::new(source) },
    }
}

/// The octets of `file` from `offset` on, `len` of them. The buffer is not filled with zeros before.
///
/// # Errors
/// What the system says; [`ErrorKind::UnexpectedEof`] when there are fewer.
pub(super) fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut octets = Vec::with_capacity(len);
    while octets.len() < len {
        let so_far = octets.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut octets), offset.saturating_add(so_far)) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // An allocator may have given more.
    octets.truncate(len);
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_that_of_the_file_system_and_a_folder_that_is_not_there_has_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_space(folder.path()).unwrap() > 0);
        let missing = free_space(&folder.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn octets_are_read_where_they_lie_and_no_fewer_than_asked_for() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"0123456789").unwrap();
        assert_eq!(read_at(&file, 3, 4).unwrap(), b"3456");
        assert_eq!(read_at(&file, 10, 0).unwrap(), b"");
        assert_eq!(read_at(&file, 7, 4).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn full_disk_is_called_so() {
        let full = failed(Path::new("run"))(ErrorKind::StorageFull.into());
        assert!(matches!(full, StoreError::Full), "{full:?}");
        let other = failed(Path::new("run"))(ErrorKind::PermissionDenied.into());
        assert!(matches!(&other, StoreError::File { path, .. } if path == Path::new("run")), "{other:?}");
    }
}
