//! Who has asked an exit for no more mail.
//!
//! The mailboxes are kept as they are, in the database of the node, whose folder is its owner's alone: the operator must be
//! able to see and undo what was asked. To keep them as keyed codes would hide them from nobody, for the key lies beside
//! them. When somebody asked is not kept.

use super::db::{Schema, StoreError, Tx, View, params, sql_limit};

/// The table of this file.
pub const SCHEMA: Schema = Schema {
    name: "opt_outs",
    version: 1,
    sql: "CREATE TABLE opt_outs (mailbox TEXT PRIMARY KEY) WITHOUT ROWID;",
    slots: &[],
};

/// Mailboxes at most, some megabytes. Whoever owns a domain has any number of them, and can have a mail sent to each.
pub const MOST: u64 = if cfg!(test) { 20 } else { 100_000 };

/// What became of a mailbox that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is there now.
    New,
    /// It was there.
    Known,
    /// There is no room for another.
    Full,
}

/// Keeps a mailbox, as it is compared (`deliver::opt_out::normalised`).
///
/// # Errors
/// What the database says.
pub fn add(tx: &Tx<'_>, mailbox: &str) -> Result<Kept, StoreError> {
    if contains(tx, mailbox)? {
        return Ok(Kept::Known);
    }
    if tx.count("SELECT COUNT(*) FROM opt_outs", params![])? >= MOST {
        return Ok(Kept::Full);
    }
    tx.execute("INSERT INTO opt_outs (mailbox) VALUES (?1)", params![mailbox])?;
    Ok(Kept::New)
}

/// Forgets a mailbox; says whether it was there.
///
/// # Errors
/// What the database says.
pub fn remove(tx: &Tx<'_>, mailbox: &str) -> Result<bool, StoreError> {
    Ok(tx.execute("DELETE FROM opt_outs WHERE mailbox = ?1", params![mailbox])? > 0)
}

/// Whether a mailbox is there, as it is compared.
///
/// # Errors
/// What the database says.
pub fn contains(view: &View<'_>, mailbox: &str) -> Result<bool, StoreError> {
    view.exists("SELECT 1 FROM opt_outs WHERE mailbox = ?1", params![mailbox])
}

/// Those behind `after` in the order of their octets, so many at most.
///
/// # Errors
/// What the database says.
pub fn list(view: &View<'_>, after: &str, limit: usize) -> Result<Vec<String>, StoreError> {
    view.all(
        "SELECT mailbox FROM opt_outs WHERE mailbox > ?1 ORDER BY mailbox LIMIT ?2",
        params![after, sql_limit(limit)],
        |row| Ok(row.get(0)?),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{fresh, reopened};

    #[test]
    fn who_opted_out_is_known_after_a_restart_and_until_that_is_undone() {
        let (folder, db) = fresh(&[SCHEMA]);
        assert_eq!(db.write(|tx| add(tx, "bob@example.org")).unwrap(), Kept::New);
        assert_eq!(db.write(|tx| add(tx, "bob@example.org")).unwrap(), Kept::Known);
        let db = reopened(folder.path(), db, &[SCHEMA]);
        let is_there = |mailbox: &'static str| db.read(|view| contains(view, mailbox)).unwrap();
        assert!(is_there("bob@example.org") && !is_there("eve@example.org"));
        assert!(db.write(|tx| remove(tx, "bob@example.org")).unwrap());
        assert!(!db.write(|tx| remove(tx, "bob@example.org")).unwrap());
        assert!(!is_there("bob@example.org"));
    }

    #[test]
    fn list_has_an_end_and_is_read_in_parts() {
        let (_folder, db) = fresh(&[SCHEMA]);
        for n in 0..MOST {
            assert_eq!(db.write(move |tx| add(tx, &format!("{n:02}@example.org"))).unwrap(), Kept::New);
        }
        assert_eq!(db.write(|tx| add(tx, "more@example.org")).unwrap(), Kept::Full);
        assert_eq!(db.write(|tx| add(tx, "07@example.org")).unwrap(), Kept::Known, "it is one of them all the same");
        let mut all: Vec<String> = Vec::new();
        loop {
            let after = all.last().cloned().unwrap_or_default();
            match db.read(|view| list(view, &after, 7)).unwrap() {
                more if more.is_empty() => break,
                more => all.extend(more),
            }
        }
        assert_eq!(all.len() as u64, MOST);
        assert!(all.is_sorted());
    }
}
