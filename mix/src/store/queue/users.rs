//! The exit queue where it holds mail for users of the node: whose mail leaves as e-mail, and what becomes of it when they have
//! it elsewhere.
//!
//! The rest of the queue is `exit`'s, and who the users are `crate::node`'s.

use std::time::SystemTime;

use crate::packet::RoutingType;
use crate::store::db::{StoreError, Tx, View, octets, params, seconds};
use crate::store::queue::exit::{ExitId, as_json};

/// Notes whether a delivery leaves as e-mail, whatever its type: as long as it does, it is among [`Which::Mail`].
///
/// [`Which::Mail`]: super::exit::Which::Mail
///
/// # Errors
/// What the database says.
pub fn leaves_by_mail(tx: &Tx<'_>, id: ExitId, by_mail: bool) -> Result<(), StoreError> {
    tx.execute("UPDATE exit SET by_mail = ?2 WHERE id = ?1", params![id.0, by_mail]).map(drop)
}

/// A user for whom mail waits.
#[derive(Clone, PartialEq, Eq)]
pub struct Awaiting {
    /// The name, as it came.
    pub name: Vec<u8>,
    /// Whether some of it was found to leave as e-mail.
    pub by_mail: bool,
}

/// For whom mail waits.
///
/// # Errors
/// What the database says.
pub fn awaiting(view: &View<'_>) -> Result<Vec<Awaiting>, StoreError> {
    view.all(
        "SELECT address, max(by_mail) FROM exit WHERE exit_type = ?1 GROUP BY address",
        params![RoutingType::MBOX.0],
        |row| Ok(Awaiting { name: octets(row, 0)?.to_vec(), by_mail: row.get(1)? }),
    )
}

/// Has all mail for a user due at `now`, and by the way that will be found for it; but for what is `under_way`. The attempts
/// that it has had stay counted.
///
/// # Errors
/// What the database says.
pub fn find_anew(tx: &Tx<'_>, name: &[u8], under_way: &[ExitId], now: SystemTime) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE exit SET by_mail = 0, next_attempt = min(next_attempt, ?3)
            WHERE exit_type = ?1 AND address = ?2 AND id NOT IN (SELECT value FROM json_each(?4))",
        params![RoutingType::MBOX.0, name, seconds(now), as_json(under_way)],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Db;
    use crate::store::queue::exit::{Which, due_of, insert_message, postpone};
    use crate::store::queue::{BY_HAND, SCHEMA};
    use crate::store::testing::{fresh, hour};

    fn due(db: &Db, which: Which, hours: u64) -> Vec<ExitId> {
        let due = db.read(move |view| due_of(view, which, &[], hour(hours), 9)).unwrap();
        due.iter().map(|item| item.id).collect()
    }

    #[test]
    fn mail_of_a_user_is_found_a_way_anew_and_that_of_others_and_what_is_under_way_stays() {
        let (_folder, db) = fresh(&[SCHEMA, BY_HAND]);
        let ids = ["eve", "eve", "bob"].map(|name| {
            db.write(move |tx| {
                let id = insert_message(tx, RoutingType::MBOX, name.as_bytes(), b"text")?;
                leaves_by_mail(tx, id, true)?;
                postpone(tx, id, hour(7))?;
                Ok(id)
            })
            .unwrap()
        });
        db.write(|tx| insert_message(tx, RoutingType::SMTP, b"eve", b"text")).unwrap();
        let awaiting: Vec<_> = db.read(awaiting).unwrap().into_iter().map(|it| (it.name, it.by_mail)).collect();
        assert_eq!(awaiting, [(b"bob".to_vec(), true), (b"eve".to_vec(), true)]);
        let [first, under_way, bob] = ids;
        db.write(move |tx| find_anew(tx, b"eve", &[under_way], hour(1))).unwrap();
        assert_eq!(due(&db, Which::House, 1), [first]);
        assert_eq!(due(&db, Which::Mail, 7)[1..], [under_way, bob]);
        let attempts = db.read(|view| due_of(view, Which::House, &[], hour(1), 9)).unwrap()[0].attempts;
        assert_eq!(attempts, 1);
    }
}
