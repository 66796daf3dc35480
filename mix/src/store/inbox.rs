//! What arrived for the user's identities and was not looked at yet.
//!
//! Decoding it and putting it into a maildrop belongs to the door that mail leaves by; its steps join
//! [`taken`] in one transaction.

use std::fmt;
use std::time::SystemTime;

use super::db::{Row, Schema, StoreError, Tx, View, day_end, params, row_id, sql_limit};
use super::{handle, payload};
use crate::crypto::Digest;
use crate::packet::{Handle, Payload};

/// The tables of this file. A delivery key is remembered longer than its arrival is kept, or a mailbox that shows a
/// letter twice would deliver it twice.
pub const SCHEMA: Schema = Schema {
    name: "inbox",
    version: 1,
    sql: "
        CREATE TABLE inbox (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            identity TEXT NOT NULL,
            handle BLOB,
            payload BLOB,
            message BLOB
        );
        CREATE TABLE inbox_seen (delivery_key BLOB PRIMARY KEY, seen INTEGER NOT NULL) WITHOUT ROWID;
    ",
    slots: &[],
};

row_id! {
    /// An arrival.
    ArrivalId
}

/// What an exit delivered.
#[derive(Clone, PartialEq, Eq)]
pub enum Arrival {
    /// A payload, still encoded.
    Payload {
        /// The decoding handle that came with it; plaintext has none.
        handle: Option<Handle>,
        /// The payload.
        payload: Payload,
    },
    /// A whole message, headers and body as E2E-spec encodes them.
    Message(Vec<u8>),
}

/// Prints nothing of it.
impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Arrival(..)")
    }
}

/// An arrival and whom it is for.
#[derive(Clone)]
pub struct Arrived {
    /// Its row.
    pub id: ArrivalId,
    /// Whom it is for.
    pub identity: String,
    /// What arrived.
    pub arrival: Arrival,
}

/// Prints no name.
impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Arrived").field(&self.id).finish()
    }
}

/// Takes an arrival in, once: says false, and does nothing, for a delivery key that was seen before, even if the arrival
/// was taken since.
///
/// # Errors
/// What the database says.
pub fn put(
    tx: &Tx<'_>,
    delivery_key: &Digest,
    identity: &str,
    arrival: &Arrival,
    now: SystemTime,
) -> Result<bool, StoreError> {
    let fresh = tx.execute(
        "INSERT OR IGNORE INTO inbox_seen (delivery_key, seen) VALUES (?1, ?2)",
        params![delivery_key.0, day_end(now)],
    )?;
    if fresh == 0 {
        return Ok(false);
    }
    match arrival {
        Arrival::Payload { handle, payload } => tx.insert(
            "INSERT INTO inbox (identity, handle, payload) VALUES (?1, ?2, ?3)",
            params![identity, handle.map(|handle| handle.0), payload.as_bytes()],
        ),
        Arrival::Message(message) => {
            tx.insert("INSERT INTO inbox (identity, message) VALUES (?1, ?2)", params![identity, message])
        }
    }?;
    Ok(true)
}

/// The arrivals that wait behind `after`, oldest first, at most `limit`. Begin with `None`.
///
/// # Errors
/// What the database says.
pub fn next(view: &View<'_>, after: Option<ArrivalId>, limit: usize) -> Result<Vec<Arrived>, StoreError> {
    view.all(
        "SELECT id, identity, message, handle, payload FROM inbox WHERE id > ?1 ORDER BY id LIMIT ?2",
        params![after.map_or(0, |after| after.0), sql_limit(limit)],
        arrived,
    )
}

/// Takes an arrival out; its delivery key stays. Says whether it was there.
///
/// # Errors
/// What the database says.
pub fn taken(tx: &Tx<'_>, id: ArrivalId) -> Result<bool, StoreError> {
    Ok(tx.execute("DELETE FROM inbox WHERE id = ?1", params![id.0])? > 0)
}

/// How many arrivals wait.
///
/// # Errors
/// What the database says.
pub fn count(view: &View<'_>) -> Result<u64, StoreError> {
    view.count("SELECT count(*) FROM inbox", &[])
}

/// Forgets the delivery keys of the days before `before`, and says how many.
///
/// # Errors
/// What the database says.
pub fn prune(tx: &Tx<'_>, before: SystemTime) -> Result<usize, StoreError> {
    tx.execute("DELETE FROM inbox_seen WHERE seen <= ?1", params![super::db::seconds(before)])
}

fn arrived(row: &Row<'_>) -> Result<Arrived, StoreError> {
    let message: Option<Vec<u8>> = row.get(2)?;
    let arrival = match message {
        Some(message) => Arrival::Message(message),
        None => Arrival::Payload { handle: handle(row, 3)?, payload: payload(row, 4)? },
    };
    Ok(Arrived { id: ArrivalId(row.get(0)?), identity: row.get(1)?, arrival })
}

#[cfg(test)]
mod tests {
    use super::{Arrival, SCHEMA, count, next, prune, put, taken};
    use crate::packet::Handle;
    use crate::store::testing::{digest, fresh, hour, payload, reopened};

    #[test]
    fn arrivals_come_back_as_they_were_put() {
        let (folder, db) = fresh(&[SCHEMA]);
        let arrivals = [
            Arrival::Payload { handle: Some(Handle([7; 20])), payload: payload(1) },
            Arrival::Payload { handle: None, payload: payload(2) },
            Arrival::Message(b"text".to_vec()),
        ];
        for (key, arrival) in ["a", "b", "c"].into_iter().zip(arrivals.clone()) {
            assert!(db.write(move |tx| put(tx, &digest(key), "mark", &arrival, hour(0))).unwrap());
        }
        let db = reopened(folder.path(), db, &[SCHEMA]);
        let found = db.read(|view| next(view, None, 10)).unwrap();
        assert!(found.iter().all(|arrived| arrived.identity == "mark"));
        assert_eq!(found.into_iter().map(|arrived| arrived.arrival).collect::<Vec<_>>(), arrivals);
    }

    #[test]
    fn letter_fetched_twice_arrives_once_even_after_it_was_taken() {
        let (_folder, db) = fresh(&[SCHEMA]);
        let fetch = |at| {
            db.write(move |tx| put(tx, &digest("letter"), "mark", &Arrival::Message(b"text".to_vec()), at)).unwrap()
        };
        assert!(fetch(hour(0)));
        assert!(!fetch(hour(1)));
        let id = db.read(|view| next(view, None, 10)).unwrap()[0].id;
        assert!(db.write(move |tx| taken(tx, id)).unwrap());
        assert!(!db.write(move |tx| taken(tx, id)).unwrap());
        assert!(!fetch(hour(2)));
        assert_eq!(db.read(count).unwrap(), 0);
        assert_eq!(db.write(|tx| prune(tx, hour(23))).unwrap(), 0);
        assert_eq!(db.write(|tx| prune(tx, hour(24))).unwrap(), 1);
        assert!(fetch(hour(25)));
    }
}
