//! The log of reply blocks that were used: one is good for one packet (minion-spec 3.3.2; E2E-spec 1).
//!
//! A second packet through the same block would be dropped by its first mix, and link both to one sender.

use std::time::SystemTime;

use super::db::{Schema, StoreError, Tx, View, day_end, params, seconds};
use crate::crypto::Digest;

/// The tables of this file.
pub const SCHEMA: Schema = Schema {
    name: "surbs",
    version: 1,
    sql: "CREATE TABLE used_surb (digest BLOB PRIMARY KEY, expires INTEGER NOT NULL) WITHOUT ROWID",
    slots: &[],
};

/// Remembers that the reply block with this digest is used. Says false when it was used before: do not use it then.
///
/// # Errors
/// What the database says.
pub fn mark_used(tx: &Tx<'_>, digest: &Digest, expires: SystemTime) -> Result<bool, StoreError> {
    let inserted = tx.execute(
        "INSERT OR IGNORE INTO used_surb (digest, expires) VALUES (?1, ?2)",
        params![digest.0, day_end(expires)],
    )?;
    Ok(inserted > 0)
}

/// Whether the reply block with this digest was used.
///
/// # Errors
/// What the database says.
pub fn is_used(view: &View<'_>, digest: &Digest) -> Result<bool, StoreError> {
    view.exists("SELECT 1 FROM used_surb WHERE digest = ?1", params![digest.0])
}

/// Forgets the reply blocks that expired before the day of `now`, and says how many: nobody can use those.
///
/// # Errors
/// What the database says.
pub fn prune(tx: &Tx<'_>, now: SystemTime) -> Result<usize, StoreError> {
    tx.execute("DELETE FROM used_surb WHERE expires <= ?1", params![seconds(now)])
}

#[cfg(test)]
mod tests {
    use super::{SCHEMA, is_used, mark_used, prune};
    use crate::store::testing::{digest, fresh, hour, reopened};

    #[test]
    fn reply_block_is_used_once_even_after_a_restart() {
        let (folder, db) = fresh(&[SCHEMA]);
        assert!(db.write(|tx| mark_used(tx, &digest("block"), hour(30))).unwrap());
        let db = reopened(folder.path(), db, &[SCHEMA]);
        assert!(!db.write(|tx| mark_used(tx, &digest("block"), hour(30))).unwrap());
        assert!(db.read(|view| is_used(view, &digest("block"))).unwrap());
        assert!(!db.read(|view| is_used(view, &digest("other"))).unwrap());
    }

    #[test]
    fn reply_block_is_remembered_until_it_has_expired() {
        let (_folder, db) = fresh(&[SCHEMA]);
        db.write(|tx| mark_used(tx, &digest("block"), hour(30))).unwrap();
        assert_eq!(db.write(|tx| prune(tx, hour(30))).unwrap(), 0);
        assert_eq!(db.write(|tx| prune(tx, hour(48))).unwrap(), 1);
    }
}
