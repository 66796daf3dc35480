//! What the user is to be told: of mail that came to nothing, and of other things that only he can see to.
//!
//! A notice waits here until it lies in the maildrop of its identity as a mail. Whoever finds out puts it, in the step in
//! which what it is about happens, so that a crash neither loses nor repeats it.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::db::{Row, Schema, StoreError, Tx, View, day_end, instant, params, row_id, seconds, sql_limit};

/// The tables of this file.
pub const SCHEMA: Schema = Schema {
    name: "notices",
    version: 1,
    sql: "
        CREATE TABLE notice (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            identity TEXT NOT NULL,
            subject TEXT NOT NULL,
            text TEXT NOT NULL,
            recipient TEXT,
            status TEXT,
            accepted INTEGER,
            message_id TEXT,
            original_subject TEXT
        );
        CREATE TABLE notice_said (
            identity TEXT NOT NULL,
            kind TEXT NOT NULL,
            said INTEGER NOT NULL,
            PRIMARY KEY (identity, kind)
        ) WITHOUT ROWID;
    ",
    slots: &[],
};

row_id! {
    /// A notice that waits.
    NoticeId
}

/// A mail that one recipient does not get, as a delivery report has it (RFC 3464).
#[derive(Clone, PartialEq, Eq)]
pub struct Undelivered {
    /// Who does not get it, as the sender wrote it.
    pub recipient: String,
    /// Why, as an enhanced status code (RFC 3463), such as `4.4.7`. One that begins with 4 is not the last word.
    pub status: String,
    /// When the door said yes; kept by the day.
    pub accepted: SystemTime,
    /// The Message-ID that the mail client gave it, with its brackets.
    pub message_id: Option<String>,
    /// Its subject.
    pub subject: Option<String>,
}

/// Something to be told.
#[derive(Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is about, in a few words.
    pub subject: String,
    /// For people. Lines are broken where it becomes a mail; a line feed ends a paragraph.
    pub text: String,
    /// The mail that it is about, of a delivery report.
    pub undelivered: Option<Undelivered>,
}

/// Prints neither recipient nor subject.
impl fmt::Debug for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Undelivered(..)")
    }
}

/// Prints none of what is told.
impl fmt::Debug for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notice(..)")
    }
}

/// A notice that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its row.
    pub id: NoticeId,
    /// Who is to be told.
    pub identity: String,
    /// What.
    pub notice: Notice,
}

/// Tells an identity something.
///
/// # Errors
/// What the database says.
pub fn put(tx: &Tx<'_>, identity: &str, notice: &Notice) -> Result<(), StoreError> {
    let Notice { subject, text, undelivered } = notice;
    let about = undelivered.as_ref();
    tx.insert(
        "INSERT INTO notice (identity, subject, text, recipient, status, accepted, message_id, original_subject)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            identity,
            subject,
            text,
            about.map(|it| &it.recipient),
            about.map(|it| &it.status),
            about.map(|it| day_end(it.accepted)),
            about.and_then(|it| it.message_id.as_ref()),
            about.and_then(|it| it.subject.as_ref()),
        ],
    )
    .map(drop)
}

/// Tells an identity something of one `kind` unless it has been told that before: ever, or within `again_after`. Says whether
/// it is told now.
///
/// # Errors
/// What the database says.
pub fn put_once(
    tx: &Tx<'_>,
    identity: &str,
    kind: &str,
    notice: &Notice,
    now: SystemTime,
    again_after: Option<Duration>,
) -> Result<bool, StoreError> {
    let said =
        tx.first("SELECT said FROM notice_said WHERE identity = ?1 AND kind = ?2", params![identity, kind], |row| {
            Ok(instant(row.get(0)?))
        })?;
    // A clock that was ahead for a while must not silence it for years.
    let is_recent = |said: SystemTime| match again_after {
        None => true,
        Some(pause) => now.duration_since(said).map_or_else(|e| e.duration() < pause, |since| since < pause),
    };
    if said.is_some_and(is_recent) {
        return Ok(false);
    }
    tx.execute(
        "INSERT INTO notice_said (identity, kind, said) VALUES (?1, ?2, ?3)
            ON CONFLICT (identity, kind) DO UPDATE SET said = excluded.said",
        params![identity, kind, seconds(now)],
    )?;
    put(tx, identity, notice)?;
    Ok(true)
}

/// Forgets that something was told: what it was about is over, and may begin anew.
///
/// # Errors
/// What the database says.
pub fn is_over(tx: &Tx<'_>, identity: &str, kind: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM notice_said WHERE identity = ?1 AND kind = ?2", params![identity, kind]).map(drop)
}

/// The notices that wait, oldest first, at most `limit`.
///
/// # Errors
/// What the database says.
pub fn next(view: &View<'_>, limit: usize) -> Result<Vec<Waiting>, StoreError> {
    view.all(
        "SELECT id, identity, subject, text, recipient, status, accepted, message_id, original_subject
            FROM notice ORDER BY id LIMIT ?1",
        params![sql_limit(limit)],
        waiting,
    )
}

fn waiting(row: &Row<'_>) -> Result<Waiting, StoreError> {
    let recipient: Option<String> = row.get(4)?;
    let undelivered = match recipient {
        None => None,
        Some(recipient) => Some(Undelivered {
            recipient,
            status: row.get(5)?,
            accepted: instant(row.get(6)?),
            message_id: row.get(7)?,
            subject: row.get(8)?,
        }),
    };
    let notice = Notice { subject: row.get(2)?, text: row.get(3)?, undelivered };
    Ok(Waiting { id: NoticeId(row.get(0)?), identity: row.get(1)?, notice })
}

/// Takes a notice out: it is in the maildrop, in the same step. Says whether it was there.
///
/// # Errors
/// What the database says.
pub fn taken(tx: &Tx<'_>, id: NoticeId) -> Result<bool, StoreError> {
    Ok(tx.execute("DELETE FROM notice WHERE id = ?1", params![id.0])? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{fresh, hour, reopened};

    fn notice(text: &str) -> Notice {
        Notice { subject: "News".into(), text: text.into(), undelivered: None }
    }

    fn report() -> Notice {
        let undelivered = Undelivered {
            recipient: "bob@example.org".into(),
            status: "5.4.7".into(),
            accepted: hour(23),
            message_id: Some("<1@here>".into()),
            subject: None,
        };
        Notice { undelivered: Some(undelivered), ..notice("gone") }
    }

    #[test]
    fn notices_come_back_as_they_were_put_until_they_are_taken() {
        let (folder, db) = fresh(&[SCHEMA]);
        db.write(|tx| put(tx, "alice", &notice("one"))).unwrap();
        db.write(|tx| put(tx, "bob", &report())).unwrap();
        let db = reopened(folder.path(), db, &[SCHEMA]);
        let waiting = db.read(|view| next(view, 10)).unwrap();
        assert_eq!(waiting.iter().map(|it| it.identity.as_str()).collect::<Vec<_>>(), ["alice", "bob"]);
        assert_eq!(waiting[0].notice, notice("one"));
        let told = waiting[1].notice.undelivered.clone().unwrap();
        let put = report().undelivered.unwrap();
        assert_eq!(told.accepted, hour(24), "days alone are kept");
        assert_eq!(Undelivered { accepted: put.accepted, ..told }, put);
        let id = waiting[0].id;
        assert!(db.write(move |tx| taken(tx, id)).unwrap());
        assert!(!db.write(move |tx| taken(tx, id)).unwrap());
        assert_eq!(db.read(|view| next(view, 10)).unwrap().len(), 1);
    }

    #[test]
    fn one_kind_is_told_once_to_each_identity_until_it_is_over_or_time_has_passed() {
        let (_folder, db) = fresh(&[SCHEMA]);
        let day = Some(Duration::from_secs(24 * 3600));
        let told = |identity: &'static str, kind: &'static str, at, again| {
            db.write(move |tx| put_once(tx, identity, kind, &notice(kind), at, again)).unwrap()
        };
        assert!(told("alice", "zone", hour(0), None));
        assert!(!told("alice", "zone", hour(10_000), None));
        assert!(told("bob", "zone", hour(0), None) && told("alice", "signature", hour(0), None));
        assert!(told("alice", "dead", hour(0), day));
        assert!(!told("alice", "dead", hour(23), day));
        assert!(told("alice", "dead", hour(24), day));
        db.write(|tx| is_over(tx, "alice", "dead")).unwrap();
        assert!(told("alice", "dead", hour(25), day));
        assert!(told("alice", "dead", hour(0), day), "the clock was set back by more than a day");
        assert_eq!(db.read(|view| next(view, 100)).unwrap().len(), 7);
    }
}
