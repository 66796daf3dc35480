//! The maildrops of the user's identities: what was decoded, until the mail client has removed it.
//!
//! Making mail of what arrived is `collector`'s.

use mix::store::db::{octets, params};
use mix::store::{Db, Schema, StoreError, Tx, View};

use crate::pop3::{Letter, Listed, Mailbox, MailboxError, Maildrops, Uidl};

/// The tables of this file. The octets come last, so that a list is made without reading over them.
pub const SCHEMA: Schema = Schema {
    name: "maildrop",
    version: 1,
    sql: "
        CREATE TABLE maildrop (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            identity TEXT NOT NULL,
            uidl TEXT NOT NULL,
            size INTEGER NOT NULL,
            octets BLOB NOT NULL,
            UNIQUE (identity, uidl)
        );
        CREATE INDEX maildrop_by_identity ON maildrop (identity, id);
    ",
    slots: &[],
};

/// Puts a mail into the maildrop of `identity`.
///
/// # Errors
/// What the database says.
pub fn add(tx: &Tx<'_>, identity: &str, uidl: &Uidl, letter: &Letter) -> Result<(), StoreError> {
    let size = i64::try_from(letter.len()).unwrap_or(i64::MAX);
    tx.insert(
        "INSERT INTO maildrop (identity, uidl, size, octets) VALUES (?1, ?2, ?3, ?4)",
        params![identity, uidl.as_str(), size, letter.as_bytes()],
    )?;
    Ok(())
}

/// What lies in the maildrop of `identity`, oldest first.
///
/// # Errors
/// [`StoreError::Corrupt`] for a unique-id that is none; what the database says.
pub fn list(view: &View<'_>, identity: &str) -> Result<Vec<Listed>, StoreError> {
    view.all("SELECT uidl, size FROM maildrop WHERE identity = ?1 ORDER BY id", params![identity], |row| {
        let uidl: String = row.get(0)?;
        let uidl = Uidl::parse(&uidl).ok_or(StoreError::Corrupt { what: "a unique-id that is none" })?;
        let size: i64 = row.get(1)?;
        Ok(Listed { uidl, size: u64::try_from(size).unwrap_or(0) })
    })
}

/// One mail of `identity`, or none when it is gone.
///
/// # Errors
/// What the database says.
pub fn fetch(view: &View<'_>, identity: &str, uidl: &Uidl) -> Result<Option<Letter>, StoreError> {
    view.first(
        "SELECT octets FROM maildrop WHERE identity = ?1 AND uidl = ?2",
        params![identity, uidl.as_str()],
        |row| Ok(Letter::new(octets(row, 0)?.to_vec())),
    )
}

/// Removes mails of `identity`: all or, when the step fails, none.
///
/// # Errors
/// What the database says.
pub fn delete(tx: &Tx<'_>, identity: &str, uidls: &[Uidl]) -> Result<(), StoreError> {
    for uidl in uidls {
        tx.execute("DELETE FROM maildrop WHERE identity = ?1 AND uidl = ?2", params![identity, uidl.as_str()])?;
    }
    Ok(())
}

/// The maildrops of a database, for the POP3 server.
#[derive(Clone, Debug)]
pub struct Store {
    db: Db,
}

impl Store {
    /// Those in `db`, which was opened with [`SCHEMA`].
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

impl Maildrops for Store {
    type Mailbox = StoredMaildrop;

    fn open(&self, user: &str) -> Result<StoredMaildrop, MailboxError> {
        Ok(StoredMaildrop { db: self.db.clone(), identity: user.to_owned() })
    }
}

/// The maildrop of one identity.
pub struct StoredMaildrop {
    db: Db,
    identity: String,
}

/// Prints no name.
impl std::fmt::Debug for StoredMaildrop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoredMaildrop(..)")
    }
}

impl Mailbox for StoredMaildrop {
    fn list(&self) -> Result<Vec<Listed>, MailboxError> {
        Ok(self.db.read(|view| list(view, &self.identity))?)
    }

    fn fetch(&self, uidl: &Uidl) -> Result<Option<Letter>, MailboxError> {
        Ok(self.db.read(|view| fetch(view, &self.identity, uidl))?)
    }

    fn delete(&self, uidls: &[Uidl]) -> Result<(), MailboxError> {
        let (identity, uidls) = (self.identity.clone(), uidls.to_vec());
        self.db.write(move |tx| delete(tx, &identity, &uidls))?;
        // The mails are gone already; this wipes them from the write-ahead log too. If a reader is in the way the next
        // checkpoint will do it.
        if let Err(error) = self.db.checkpoint() {
            tracing::debug!(error = &error as &dyn std::error::Error, "removed mail stays in the log for now");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mix::crypto::CounterRng;
    use mix::crypto::stream::StreamKey;

    use super::*;

    fn letter(text: &str) -> Letter {
        Letter::new(text.into())
    }

    fn put(db: &Db, identity: &'static str, uidl: &'static str, text: &'static str) {
        db.write(move |tx| add(tx, identity, &Uidl::parse(uidl).unwrap(), &letter(text))).unwrap();
    }

    fn names(mailbox: &StoredMaildrop) -> Vec<(String, u64)> {
        mailbox.list().unwrap().into_iter().map(|listed| (listed.uidl.to_string(), listed.size)).collect()
    }

    #[test]
    fn mail_keeps_order_size_and_unique_id_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private/db");
        let mut rng = CounterRng::new(&StreamKey::new([1; 16]));
        let uidls = [Uidl::random(&mut rng), Uidl::random(&mut rng)];
        assert_eq!(uidls[0].as_str().len(), 20);
        let db = Db::open(&path, &[SCHEMA]).unwrap();
        for (uidl, text) in uidls.clone().into_iter().zip(["second name, first mail\n", "b"]) {
            db.write(move |tx| add(tx, "alice", &uidl, &letter(text))).unwrap();
        }
        let before = names(&Store::new(db.clone()).open("alice").unwrap());
        assert_eq!(before, [(uidls[0].to_string(), 25), (uidls[1].to_string(), 3)]);
        db.close();
        let db = Db::open(&path, &[SCHEMA]).unwrap();
        assert_eq!(names(&Store::new(db).open("alice").unwrap()), before);
    }

    #[test]
    fn an_identity_sees_and_removes_its_own_mail_only() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("private/db"), &[SCHEMA]).unwrap();
        put(&db, "alice", "one", "for alice");
        put(&db, "bob", "one", "for bob, under the same unique-id");
        put(&db, "bob", "two", "for bob");
        let store = Store::new(db);
        let (alice, bob) = (store.open("alice").unwrap(), store.open("bob").unwrap());
        let one = Uidl::parse("one").unwrap();
        assert_eq!(alice.fetch(&one).unwrap(), Some(letter("for alice")));
        assert_eq!(alice.fetch(&Uidl::parse("two").unwrap()).unwrap(), None);
        alice.delete(&[one.clone(), Uidl::parse("two").unwrap()]).unwrap();
        assert!(alice.list().unwrap().is_empty());
        assert_eq!(alice.fetch(&one).unwrap(), None);
        assert_eq!(names(&bob).len(), 2);
    }

    #[test]
    fn removed_mail_is_wiped_from_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private/db");
        let db = Db::open(&path, &[SCHEMA]).unwrap();
        put(&db, "alice", "one", "an unmistakable phrase");
        Store::new(db).open("alice").unwrap().delete(&[Uidl::parse("one").unwrap()]).unwrap();
        for entry in std::fs::read_dir(folder.path().join("private")).unwrap() {
            let octets = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!octets.windows(12).any(|window| window == b"unmistakable"));
        }
    }

    #[test]
    fn closed_database_is_an_error_and_no_empty_maildrop() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("private/db"), &[SCHEMA]).unwrap();
        let mailbox = Store::new(db.clone()).open("alice").unwrap();
        db.close();
        assert!(matches!(mailbox.list(), Err(MailboxError::Store { source: StoreError::Closed })));
    }
}
