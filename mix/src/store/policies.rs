//! What the domains that an exit writes to promise of their mail servers (RFC 8461), over a restart.
//!
//! Nobody can read from it who had mail: a row stands under a keyed code of the domain, and what it says is sealed under a key
//! that follows from the domain too. Both keys are others' business, as is what the octets say. Days alone are in the clear.

use std::time::{Duration, SystemTime};

use super::db::{Schema, StoreError, Tx, View, day_end, octets, params, seconds};

/// The table of this file.
pub const SCHEMA: Schema = Schema {
    name: "policies",
    version: 1,
    sql: "CREATE TABLE policies (
            domain BLOB PRIMARY KEY,
            policy BLOB NOT NULL,
            -- The ends of the day on which it ends, and of the last on which somebody asked for it.
            until INTEGER NOT NULL,
            used INTEGER NOT NULL
        ) WITHOUT ROWID;",
    slots: &[],
};

/// Policies at most: of some hundred octets each, and of those who are unkind 64 megabytes in all.
pub const MOST: u64 = if cfg!(test) { 8 } else { 4096 };
/// How long one that has ended stays: a clock that is ahead for a while must not make us forget.
const STAYS: Duration = Duration::from_secs(2 * 24 * 3600);
/// Octets of the code of a domain.
pub const CODE_LEN: usize = 32;

/// Keeps the policy of a domain in the place of the one before it. Beyond [`MOST`] the one that was not asked for longest
/// goes.
///
/// # Errors
/// What the database says.
pub fn keep(
    tx: &Tx<'_>,
    domain: &[u8; CODE_LEN],
    policy: &[u8],
    until: SystemTime,
    now: SystemTime,
) -> Result<(), StoreError> {
    let ended = now.checked_sub(STAYS).unwrap_or(SystemTime::UNIX_EPOCH);
    tx.execute("DELETE FROM policies WHERE until <= ?1", params![seconds(ended)])?;
    tx.execute(
        "INSERT INTO policies (domain, policy, until, used) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (domain) DO UPDATE SET policy = excluded.policy, until = excluded.until, used = excluded.used",
        params![domain, policy, day_end(until), day_end(now)],
    )?;
    let many = tx.count("SELECT count(*) FROM policies", params![])?.saturating_sub(MOST);
    if many > 0 {
        tx.execute(
            "DELETE FROM policies WHERE domain IN
                (SELECT domain FROM policies WHERE domain != ?1 ORDER BY used, until LIMIT ?2)",
            params![domain, i64::try_from(many).unwrap_or(i64::MAX)],
        )?;
    }
    Ok(())
}

/// Notes that somebody asks for the policy of a domain. A day has one such note.
///
/// # Errors
/// What the database says.
pub fn used(tx: &Tx<'_>, domain: &[u8; CODE_LEN], now: SystemTime) -> Result<(), StoreError> {
    tx.execute("UPDATE policies SET used = ?2 WHERE domain = ?1 AND used < ?2", params![domain, day_end(now)])?;
    Ok(())
}

/// What is kept of a domain.
///
/// # Errors
/// What the database says.
pub fn find(view: &View<'_>, domain: &[u8; CODE_LEN]) -> Result<Option<Vec<u8>>, StoreError> {
    view.first("SELECT policy FROM policies WHERE domain = ?1", params![domain], |row| Ok(octets(row, 0)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::db::Db;
    use crate::store::testing::{fresh, hour, reopened};

    fn code(number: u8) -> [u8; CODE_LEN] {
        [number; CODE_LEN]
    }

    fn kept(db: &Db, number: u8, until: u64, now: u64) {
        db.write(move |tx| keep(tx, &code(number), &[number], hour(until), hour(now))).unwrap();
    }

    fn there(db: &Db) -> Vec<u8> {
        (0..u8::MAX).filter(|number| db.read(|view| find(view, &code(*number))).unwrap().is_some()).collect()
    }

    #[test]
    fn policy_is_there_after_a_restart_and_the_next_takes_its_place() {
        let (folder, db) = fresh(&[SCHEMA]);
        kept(&db, 1, 100, 0);
        let db = reopened(folder.path(), db, &[SCHEMA]);
        assert_eq!(db.read(|view| find(view, &code(1))).unwrap(), Some(vec![1]));
        db.write(|tx| keep(tx, &code(1), b"new", hour(100), hour(1))).unwrap();
        assert_eq!(db.read(|view| find(view, &code(1))).unwrap(), Some(b"new".to_vec()));
        assert_eq!(there(&db), [1]);
    }

    #[test]
    fn one_that_was_not_asked_for_longest_makes_room() {
        let (_folder, db) = fresh(&[SCHEMA]);
        let most = u8::try_from(MOST).unwrap();
        for number in 0..most {
            kept(&db, number, 10_000, 0);
        }
        db.write(|tx| used(tx, &code(0), hour(48))).unwrap();
        // The new ones end first, and are none the less not the ones that go.
        kept(&db, most, 100, 48);
        kept(&db, most + 1, 100, 48);
        assert_eq!(there(&db).len(), usize::from(most));
        assert!([0, most, most + 1].iter().all(|number| there(&db).contains(number)), "{:?}", there(&db));
    }

    #[test]
    fn one_that_has_ended_goes_when_no_clock_can_be_to_blame() {
        let (_folder, db) = fresh(&[SCHEMA]);
        kept(&db, 1, 24, 0);
        kept(&db, 2, 1000, 60);
        assert_eq!(there(&db), [1, 2]);
        kept(&db, 3, 1000, 24 + 24 + 49);
        assert_eq!(there(&db), [2, 3]);
    }
}
