//! How much room the disk has. `db` says when there is none left; here one can ask before.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::buffer::spare_capacity;

/// Octets that whoever runs this process may still write to the file system of `folder`.
///
/// # Errors
/// What the system says.
pub fn free_space(folder: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(folder)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The octets of `file` from `offset` on, `len` of them. The buffer is not filled with zeros before.
///
/// # Errors
/// What the system says; [`io::ErrorKind::UnexpectedEof`] when there are fewer.
pub(super) fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut octets = Vec::with_capacity(len);
    while octets.len() < len {
        let so_far = octets.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut octets), offset.saturating_add(so_far)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
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
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn octets_are_read_where_they_lie_and_no_fewer_than_asked_for() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"0123456789").unwrap();
        assert_eq!(read_at(&file, 3, 4).unwrap(), b"3456");
        assert_eq!(read_at(&file, 10, 0).unwrap(), b"");
        assert_eq!(read_at(&file, 7, 4).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
