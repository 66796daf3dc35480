//! The exit queue by the operator's hand: what waits, and what becomes of it.
//!
//! Nothing here shows whom a delivery is for, what it says, or when it came. The operator knows it by a label, which is
//! drawn when it is first listed and says nothing; `exit` has the steps of the service that delivers.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use super::exit::{ExitId, give_up};
use crate::packet::RoutingType;
use crate::store::db::{Row, StoreError, Tx, View, instant, params, seconds, sql_limit};
use crate::store::routing_type;

/// Octets of a label: among a million deliveries no two are alike, but for one case in ten million.
const LABEL_LEN: usize = 8;

/// What the operator knows a delivery by: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label([u8; LABEL_LEN]);

/// Not what a label looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 16 hexadecimal digits")]
pub struct InvalidLabel;

impl Label {
    /// The label of these octets.
    pub fn new(octets: [u8; LABEL_LEN]) -> Self {
        Self(octets)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        if text.len() != 2 * LABEL_LEN || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(InvalidLabel);
        }
        u64::from_str_radix(text, 16).map(|number| Self(number.to_be_bytes())).map_err(|_| InvalidLabel)
    }
}

/// Which deliveries the operator means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// All that wait now; none that come later.
    All,
    /// Those of them of this exit type.
    Of(RoutingType),
    /// A single one.
    One(Label),
}

impl Chosen {
    /// The first three parameters of the statements below: all, or of a type, or with a label.
    fn parts(self) -> (bool, Option<u16>, Option<[u8; LABEL_LEN]>) {
        match self {
            Self::All => (true, None, None),
            Self::Of(exit_type) => (false, Some(exit_type.0), None),
            Self::One(label) => (false, None, Some(label.0)),
        }
    }
}

/// A delivery as the operator may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its row.
    pub id: ExitId,
    /// What it is known by, if it was listed before.
    pub label: Option<Label>,
    /// How to deliver it.
    pub exit_type: RoutingType,
    /// Octets of a message that was put together from fragments. `None`: it is the payload of one packet.
    pub message_len: Option<u64>,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next, unless it is held.
    pub next_attempt: SystemTime,
    /// Whether it is held.
    pub held: bool,
}

/// How many deliveries of one type are in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// How to deliver them.
    pub exit_type: RoutingType,
    /// Whether they are held.
    pub held: bool,
    /// Whether they are to be tried now.
    pub due: bool,
    /// How many there are.
    pub count: u64,
}

/// What waits, at most `limit`: first what is held, then what is tried next.
///
/// # Errors
/// What the database says.
pub fn list(view: &View<'_>, limit: usize) -> Result<Vec<Waiting>, StoreError> {
    view.all(
        "SELECT id, label, exit_type, length(message), attempts, next_attempt, held
            FROM exit ORDER BY held DESC, next_attempt, id LIMIT ?1",
        params![sql_limit(limit)],
        waiting,
    )
}

fn waiting(row: &Row<'_>) -> Result<Waiting, StoreError> {
    Ok(Waiting {
        id: ExitId(row.get(0)?),
        label: row.get::<_, Option<_>>(1)?.map(Label),
        exit_type: routing_type(row, 2)?,
        message_len: row.get::<_, Option<i64>>(3)?.map(|len| u64::try_from(len).unwrap_or(0)),
        attempts: row.get(4)?,
        next_attempt: instant(row.get(5)?),
        held: row.get(6)?,
    })
}

/// What a delivery is known by from now on: `fresh`, unless it has a label already. `None` when it is gone.
///
/// # Errors
/// What the database says.
pub fn label(tx: &Tx<'_>, id: ExitId, fresh: Label) -> Result<Option<Label>, StoreError> {
    tx.execute("UPDATE exit SET label = ?2 WHERE id = ?1 AND label IS NULL", params![id.0, fresh.0])?;
    let known =
        tx.first("SELECT label FROM exit WHERE id = ?1", params![id.0], |row| Ok(row.get::<_, Option<_>>(0)?))?;
    Ok(known.flatten().map(Label))
}

/// How many wait, by type and state.
///
/// # Errors
/// What the database says.
pub fn counts(view: &View<'_>, now: SystemTime) -> Result<Vec<Count>, StoreError> {
    view.all(
        "SELECT exit_type, held, next_attempt <= ?1 AND held = 0 AS due, count(*)
            FROM exit GROUP BY exit_type, held, due ORDER BY exit_type, held, due DESC",
        params![seconds(now)],
        |row| {
            let count = u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0);
            Ok(Count { exit_type: routing_type(row, 0)?, held: row.get(1)?, due: row.get(2)?, count })
        },
    )
}

/// Whether a delivery is known by this label.
///
/// # Errors
/// What the database says.
pub fn is_there(view: &View<'_>, label: Label) -> Result<bool, StoreError> {
    view.exists("SELECT 1 FROM exit WHERE label = ?1", params![label.0])
}

/// Holds those chosen, or releases them, and says how many were not so before. What is held is not tried, and spends none
/// of its tries, until it is released, through each restart.
///
/// # Errors
/// What the database says.
pub fn hold(tx: &Tx<'_>, chosen: Chosen, held: bool) -> Result<u64, StoreError> {
    let (all, exit_type, label) = chosen.parts();
    let changed = tx.execute(
        "UPDATE exit SET held = ?4 WHERE held <> ?4 AND (?1 OR exit_type = ?2 OR label = ?3)",
        params![all, exit_type, label, held],
    )?;
    Ok(changed as u64)
}

/// Makes those chosen due at `now`, but for what is held, and says how many are. The tries that they have had stay counted.
///
/// # Errors
/// What the database says.
pub fn flush(tx: &Tx<'_>, chosen: Chosen, now: SystemTime) -> Result<u64, StoreError> {
    let (all, exit_type, label) = chosen.parts();
    let due = tx.execute(
        "UPDATE exit SET next_attempt = min(next_attempt, ?4)
            WHERE held = 0 AND (?1 OR exit_type = ?2 OR label = ?3)",
        params![all, exit_type, label, seconds(now)],
    )?;
    Ok(due as u64)
}

/// Drops those chosen up to the row `last`, held or not, at most `limit`, and says how many.
///
/// # Errors
/// What the database says.
pub fn drop(tx: &Tx<'_>, chosen: Chosen, last: ExitId, limit: usize) -> Result<u64, StoreError> {
    let (all, exit_type, label) = chosen.parts();
    let gone = tx.all(
        "SELECT id FROM exit WHERE id <= ?4 AND (?1 OR exit_type = ?2 OR label = ?3) LIMIT ?5",
        params![all, exit_type, label, last.0, sql_limit(limit)],
        |row| Ok(ExitId(row.get(0)?)),
    )?;
    for id in &gone {
        give_up(tx, *id)?;
    }
    Ok(gone.len() as u64)
}

/// The delivery that came last, if any waits.
///
/// # Errors
/// What the database says.
pub fn last(view: &View<'_>) -> Result<Option<ExitId>, StoreError> {
    view.first("SELECT id FROM exit ORDER BY id DESC LIMIT 1", &[], |row| Ok(ExitId(row.get(0)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Db;
    use crate::store::Schema;
    use crate::store::queue::exit::{self, Which, count, due, insert_message, next_due, postpone, postpone_all};
    use crate::store::queue::{BY_HAND, SCHEMA, left};
    use crate::store::testing::{fresh, hour, reopened};

    const SCHEMAS: [Schema; 2] = [SCHEMA, BY_HAND];
    const SMTP: RoutingType = RoutingType::SMTP;

    fn message(db: &Db, exit_type: RoutingType) -> ExitId {
        db.write(move |tx| insert_message(tx, exit_type, b"frida@example.org", b"text")).unwrap()
    }

    fn labelled(db: &Db, id: ExitId, number: u8) -> Label {
        db.write(move |tx| label(tx, id, Label([number; LABEL_LEN]))).unwrap().unwrap()
    }

    fn due_ids(db: &Db, hours: u64) -> Vec<ExitId> {
        db.read(|view| due(view, hour(hours), 10)).unwrap().iter().map(|item| item.id).collect()
    }

    #[test]
    fn held_delivery_is_not_due_and_spends_no_try_until_it_is_released_through_a_restart() {
        let (folder, db) = fresh(&SCHEMAS);
        let (held, other) = (message(&db, SMTP), message(&db, SMTP));
        let label = labelled(&db, held, 1);
        assert_eq!(db.write(move |tx| hold(tx, Chosen::One(label), true)).unwrap(), 1);
        assert_eq!(db.write(move |tx| hold(tx, Chosen::One(label), true)).unwrap(), 0, "it is held already");
        let db = reopened(folder.path(), db, &SCHEMAS);
        assert_eq!(due_ids(&db, 1), [other]);
        for _ in 0..3 {
            db.write(|tx| postpone_all(tx, Which::Mail, &[], hour(1), hour(0), 2)).unwrap();
        }
        assert_eq!((db.read(count).unwrap(), db.read(next_due).unwrap()), (1, None), "the other one was given up");
        assert_eq!(db.write(|tx| flush(tx, Chosen::All, hour(1))).unwrap(), 0);
        assert_eq!(db.write(move |tx| hold(tx, Chosen::One(label), false)).unwrap(), 1);
        let released = db.read(|view| due(view, hour(1), 10)).unwrap();
        assert_eq!(released.iter().map(|item| (item.id, item.attempts)).collect::<Vec<_>>(), [(held, 0)]);
    }

    #[test]
    fn what_is_chosen_is_one_a_type_or_all() {
        let (_folder, db) = fresh(&SCHEMAS);
        let ids = [message(&db, SMTP), message(&db, RoutingType::MBOX), message(&db, SMTP)];
        let one = labelled(&db, ids[2], 3);
        for (chosen, left) in [
            (Chosen::One(one), vec![ids[0], ids[1]]),
            (Chosen::One(Label([9; LABEL_LEN])), ids.to_vec()),
            (Chosen::Of(SMTP), vec![ids[1]]),
            (Chosen::Of(RoutingType::FRAGMENT), ids.to_vec()),
            (Chosen::All, vec![]),
        ] {
            db.write(move |tx| hold(tx, chosen, true)).unwrap();
            assert_eq!(due_ids(&db, 0), left, "{chosen:?}");
            db.write(move |tx| hold(tx, chosen, false)).unwrap();
            assert_eq!(due_ids(&db, 0), ids, "{chosen:?}");
        }
    }

    #[test]
    fn flushed_delivery_is_due_and_its_tries_stay_counted() {
        let (_folder, db) = fresh(&SCHEMAS);
        let (first, second) = (message(&db, SMTP), message(&db, RoutingType::MBOX));
        db.write(move |tx| postpone(tx, first, hour(7))).unwrap();
        db.write(move |tx| postpone(tx, second, hour(7))).unwrap();
        assert_eq!(db.write(|tx| flush(tx, Chosen::Of(SMTP), hour(1))).unwrap(), 1);
        let due = db.read(|view| due(view, hour(1), 10)).unwrap();
        assert_eq!(due.iter().map(|item| (item.id, item.attempts)).collect::<Vec<_>>(), [(first, 1)]);
    }

    #[test]
    fn dropped_delivery_is_gone_held_or_not_and_what_came_later_stays() {
        let (_folder, db) = fresh(&SCHEMAS);
        for _ in 0..3 {
            message(&db, SMTP);
        }
        db.write(|tx| hold(tx, Chosen::All, true)).unwrap();
        let last = db.read(last).unwrap().unwrap();
        let later = message(&db, SMTP);
        assert_eq!(db.write(move |tx| drop(tx, Chosen::All, last, 2)).unwrap(), 2);
        assert_eq!(db.write(move |tx| drop(tx, Chosen::All, last, 2)).unwrap(), 1);
        assert_eq!(db.write(move |tx| drop(tx, Chosen::All, last, 2)).unwrap(), 0);
        assert_eq!(due_ids(&db, 0), [later]);
        // A delivery under way may end after that.
        assert!(!db.write(|tx| exit::delivered(tx, ExitId(1))).unwrap());
        assert!(!db.write(|tx| postpone(tx, ExitId(1), hour(1))).unwrap());
        assert!(db.read(|view| left::waits(view, SMTP)).unwrap());
    }

    #[test]
    fn label_is_given_once_and_reads_back() {
        let (_folder, db) = fresh(&SCHEMAS);
        let id = message(&db, SMTP);
        assert_eq!(db.read(|view| list(view, 10)).unwrap()[0].label, None);
        let label = labelled(&db, id, 0xAB);
        assert_eq!(label.to_string(), "abababababababab");
        assert_eq!(label.to_string().parse(), Ok(label));
        assert_eq!(labelled(&db, id, 1), label);
        assert!(db.read(|view| is_there(view, label)).unwrap());
        assert_eq!(db.write(move |tx| super::label(tx, ExitId(99), label)).unwrap(), None);
        for wrong in ["", "abababababababa", "abababababababag", "+bababababababab", "ababababababababab"] {
            assert_eq!(wrong.parse::<Label>(), Err(InvalidLabel), "{wrong}");
        }
    }

    #[test]
    fn what_is_held_comes_first_and_counts_are_by_type_and_state() {
        let (_folder, db) = fresh(&SCHEMAS);
        let ids = [message(&db, SMTP), message(&db, SMTP), message(&db, SMTP), message(&db, RoutingType::MBOX)];
        db.write(move |tx| postpone(tx, ids[1], hour(7))).unwrap();
        let label = labelled(&db, ids[2], 1);
        db.write(move |tx| hold(tx, Chosen::One(label), true)).unwrap();
        let listed = db.read(|view| list(view, 3)).unwrap();
        assert_eq!(listed.iter().map(|it| it.id).collect::<Vec<_>>(), [ids[2], ids[0], ids[3]]);
        assert_eq!((listed[0].held, listed[0].message_len, listed[1].held), (true, Some(4), false));
        let counts = db.read(|view| counts(view, hour(1))).unwrap();
        let of = |exit_type, held, due| Count { exit_type, held, due, count: 1 };
        assert_eq!(
            counts,
            [of(SMTP, false, true), of(SMTP, false, false), of(SMTP, true, false), of(RoutingType::MBOX, false, true)]
        );
    }
}
