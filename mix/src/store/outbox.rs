//! What the user sends: mails that were accepted, then the packets made of them, until the first mix has them.
//!
//! Cutting a mail into packets and choosing their paths is `crate::node`'s sender; mail that is not the user's own
//! is `queue`'s.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::db::{Row, Schema, StoreError, Tx, View, day_end, instant, params, row_id, seconds, sql_limit};
use super::{packet, routing_type};
use crate::crypto::sha1;
use crate::packet::{NextHop, Packet, RoutingType};

/// The tables of this file.
pub const SCHEMA: Schema = Schema {
    name: "outbox",
    version: 1,
    sql: "
        CREATE TABLE outbox (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            identity TEXT NOT NULL,
            routing_type INTEGER NOT NULL,
            routing_info BLOB NOT NULL,
            via TEXT,
            reply_blocks INTEGER NOT NULL,
            accepted INTEGER NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            next_attempt INTEGER NOT NULL DEFAULT 0,
            why TEXT,
            message BLOB NOT NULL
        );
        CREATE INDEX outbox_by_time ON outbox (next_attempt, id);
        CREATE TABLE injection (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            routing_type INTEGER NOT NULL,
            routing_info BLOB NOT NULL,
            octets BLOB NOT NULL
        );
    ",
    slots: &[],
};

/// How mail clients call the mails that they handed in. By them the sender knows what a report is about, and his client names
/// them when he follows his own mail up: then they must not travel, for they tell host, domain or program.
pub const IDS: Schema = Schema {
    name: "outbox ids",
    version: 1,
    sql: "
        ALTER TABLE outbox ADD COLUMN message_id TEXT;
        CREATE TABLE own_id (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            digest BLOB NOT NULL UNIQUE
        );
    ",
    slots: &[],
};

/// Message-ids that are remembered; some megabytes. The oldest make room.
const OWN_IDS: i64 = if cfg!(test) { 3 } else { 100_000 };

row_id! {
    /// A mail in the outbox.
    MailId
}
row_id! {
    /// A packet on its way to its first mix.
    InjectionId
}

/// Where a mail leaves the network.
#[derive(Clone, PartialEq, Eq)]
pub struct OutboxExit {
    /// How the exit delivers it.
    pub routing_type: RoutingType,
    /// To whom: the exit address.
    pub info: Vec<u8>,
    /// The exit that the user asked for by nickname.
    pub via: Option<String>,
}

/// A mail that was accepted from the user, for one recipient.
#[derive(Clone, PartialEq, Eq)]
pub struct Mail {
    /// Who sends it.
    pub identity: String,
    /// Where it leaves the network.
    pub exit: OutboxExit,
    /// Headers and body, as E2E-spec encodes them before compression. The mails of one submission share them.
    pub message: Arc<[u8]>,
    /// How many reply blocks go with it.
    pub reply_blocks: u8,
    /// When the door said yes; kept by the day.
    pub accepted: SystemTime,
    /// How the mail client calls it, with the brackets. Never travels.
    pub message_id: Option<String>,
}

/// Prints neither sender, recipient nor text.
impl fmt::Debug for OutboxExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OutboxExit(..)")
    }
}

/// Prints neither sender, recipient nor text.
impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mail(..)")
    }
}

/// A mail in the outbox.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its row.
    pub id: MailId,
    /// How often packing it was postponed.
    pub attempts: u32,
    /// The mail.
    pub mail: Mail,
}

/// A packet on its way to its first mix.
#[derive(Clone, Debug)]
pub struct Injection {
    /// Its row.
    pub id: InjectionId,
    /// The first mix.
    pub next: NextHop,
    /// The packet.
    pub packet: Packet,
}

/// How much waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Mails not yet packed.
    pub mails: u64,
    /// Packets not yet with their first mix.
    pub packets: u64,
}

/// Takes mails in: all or none of them, so that a mail to several recipients is accepted for all when the door says so.
///
/// # Errors
/// What the database says.
pub fn push(tx: &Tx<'_>, mails: &[Mail]) -> Result<Vec<MailId>, StoreError> {
    mails.iter().map(|mail| push_one(tx, mail)).collect()
}

fn push_one(tx: &Tx<'_>, mail: &Mail) -> Result<MailId, StoreError> {
    if let Some(message_id) = &mail.message_id {
        remember(tx, message_id)?;
    }
    let OutboxExit { routing_type, info, via } = &mail.exit;
    tx.insert(
        "INSERT INTO outbox (identity, routing_type, routing_info, via, reply_blocks, accepted, message, message_id)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            mail.identity,
            routing_type.0,
            info,
            via,
            mail.reply_blocks,
            day_end(mail.accepted),
            &*mail.message,
            mail.message_id
        ],
    )
    .map(MailId)
}

fn remember(tx: &Tx<'_>, message_id: &str) -> Result<(), StoreError> {
    let digest = sha1(&[message_id.as_bytes()]).0;
    // The mails of one submission share it.
    if !is_own(tx, message_id)? {
        let newest = tx.insert("INSERT INTO own_id (digest) VALUES (?1)", params![digest])?;
        tx.execute("DELETE FROM own_id WHERE id <= ?1", params![newest - OWN_IDS])?;
    }
    Ok(())
}

/// Whether a mail that is called so was handed in here, by whichever identity: to name the mail of another would show that
/// both are one person's.
///
/// # Errors
/// What the database says.
pub fn is_own(view: &View<'_>, message_id: &str) -> Result<bool, StoreError> {
    view.exists("SELECT 1 FROM own_id WHERE digest = ?1", params![sha1(&[message_id.as_bytes()]).0])
}

/// The mails that are due, at most `limit`.
///
/// # Errors
/// What the database says.
pub fn next(view: &View<'_>, now: SystemTime, limit: usize) -> Result<Vec<Waiting>, StoreError> {
    view.all(
        "SELECT id, attempts, identity, routing_type, routing_info, via, message, reply_blocks, accepted, message_id
            FROM outbox WHERE next_attempt <= ?1 ORDER BY next_attempt, id LIMIT ?2",
        params![seconds(now), sql_limit(limit)],
        waiting,
    )
}

fn waiting(row: &Row<'_>) -> Result<Waiting, StoreError> {
    let exit = OutboxExit { routing_type: routing_type(row, 3)?, info: row.get(4)?, via: row.get(5)? };
    let mail = Mail {
        identity: row.get(2)?,
        exit,
        message: row.get(6)?,
        reply_blocks: row.get(7)?,
        accepted: instant(row.get(8)?),
        message_id: row.get(9)?,
    };
    Ok(Waiting { id: MailId(row.get(0)?), attempts: row.get(1)?, mail })
}

/// Puts the packets of a mail in its place. Says false, and takes none, when the mail is gone: it was packed before.
///
/// # Errors
/// What the database says.
pub fn packed(tx: &Tx<'_>, id: MailId, packets: &[(NextHop, Packet)]) -> Result<bool, StoreError> {
    if !fail(tx, id)? {
        return Ok(false);
    }
    for (next, packet) in packets {
        let (routing_type, info) = next.to_routing();
        tx.insert(
            "INSERT INTO injection (routing_type, routing_info, octets) VALUES (?1, ?2, ?3)",
            params![routing_type.0, info, packet.as_bytes()],
        )?;
    }
    Ok(true)
}

/// Leaves a mail for later, `why` being for the user's eyes: say nothing there that he does not know.
///
/// # Errors
/// [`StoreError::Missing`]; what the database says.
pub fn postpone(tx: &Tx<'_>, id: MailId, when: SystemTime, why: &str) -> Result<(), StoreError> {
    let changed = tx.execute(
        "UPDATE outbox SET attempts = attempts + 1, next_attempt = ?2, why = ?3 WHERE id = ?1",
        params![id.0, seconds(when), why],
    )?;
    if changed == 0 { Err(StoreError::Missing { what: "mail in the outbox" }) } else { Ok(()) }
}

/// When the next mail is due, if there is one.
///
/// # Errors
/// What the database says.
pub fn next_due(view: &View<'_>) -> Result<Option<SystemTime>, StoreError> {
    view.first("SELECT next_attempt FROM outbox ORDER BY next_attempt LIMIT 1", &[], |row| Ok(instant(row.get(0)?)))
}

/// Makes all mails due: what stood in their way may be gone.
///
/// # Errors
/// What the database says.
pub fn hasten(tx: &Tx<'_>) -> Result<(), StoreError> {
    tx.execute("UPDATE outbox SET next_attempt = 0", &[]).map(|_| ())
}

/// Takes a mail out unsent. Says whether it was there.
///
/// # Errors
/// What the database says.
pub fn fail(tx: &Tx<'_>, id: MailId) -> Result<bool, StoreError> {
    Ok(tx.execute("DELETE FROM outbox WHERE id = ?1", params![id.0])? > 0)
}

/// The packets that have waited longest, at most `limit`. Those of one mail have ids in a row: shuffle before sending.
///
/// # Errors
/// What the database says.
pub fn injection_batch(view: &View<'_>, limit: usize) -> Result<Vec<Injection>, StoreError> {
    view.all(
        "SELECT id, routing_type, routing_info, octets FROM injection ORDER BY id LIMIT ?1",
        params![sql_limit(limit)],
        injection,
    )
}

/// Forgets packets that their first mix has, or the own pool. After a crash between handing over and this step a packet
/// is handed over again. That is harmless: it is the same packet, and the first mix's replay log drops it.
///
/// # Errors
/// What the database says.
pub fn injected(tx: &Tx<'_>, ids: &[InjectionId]) -> Result<(), StoreError> {
    for id in ids {
        tx.execute("DELETE FROM injection WHERE id = ?1", params![id.0])?;
    }
    Ok(())
}

/// How much waits.
///
/// # Errors
/// What the database says.
pub fn counts(view: &View<'_>) -> Result<Counts, StoreError> {
    Ok(Counts {
        mails: view.count("SELECT count(*) FROM outbox", &[])?,
        packets: view.count("SELECT count(*) FROM injection", &[])?,
    })
}

fn injection(row: &Row<'_>) -> Result<Injection, StoreError> {
    Ok(Injection { id: InjectionId(row.get(0)?), next: super::next_hop(row, 1, 2)?, packet: packet(row, 3)? })
}

#[cfg(test)]
mod tests {
    use super::{
        Counts, IDS, Mail, MailId, OutboxExit, SCHEMA, counts, fail, injected, injection_batch, is_own, next, packed,
        postpone, push,
    };
    use crate::packet::RoutingType;
    use crate::store::db::params;
    use crate::store::testing::{as_after_a_kill, fresh, hop, hour, packet, reopened};
    use crate::store::{Schema, StoreError};

    fn mail(to: &str) -> Mail {
        Mail {
            identity: "mark".to_owned(),
            exit: OutboxExit { routing_type: RoutingType::SMTP, info: to.into(), via: Some("Exit".to_owned()) },
            message: b"SUBJECT:Hello\n\nWorld".as_slice().into(),
            reply_blocks: 2,
            accepted: hour(24),
            message_id: Some("<1@laptop>".to_owned()),
        }
    }

    const SCHEMAS: [Schema; 2] = [SCHEMA, IDS];

    #[test]
    fn mail_waits_through_a_restart() {
        let (folder, db) = fresh(&SCHEMAS);
        db.write(|tx| push(tx, &[mail("a@example.org")])).unwrap();
        let db = reopened(folder.path(), db, &SCHEMAS);
        let waiting = db.read(|view| next(view, hour(0), 10)).unwrap();
        let [only] = waiting.as_slice() else { panic!("one mail: {waiting:?}") };
        assert_eq!(only.attempts, 0);
        assert_eq!(only.mail, Mail { accepted: hour(48), ..mail("a@example.org") });
        assert_eq!(format!("{:?}", only.mail), "Mail(..)");
    }

    #[test]
    fn mail_of_an_older_version_waits_on_and_is_read() {
        let (folder, db) = fresh(&[SCHEMA]);
        db.write(|tx| {
            tx.insert(
                "INSERT INTO outbox (identity, routing_type, routing_info, reply_blocks, accepted, message)
                    VALUES ('mark', 256, ?1, 1, 0, ?2)",
                params![b"a@example.org", b"\nx"],
            )
        })
        .unwrap();
        let db = reopened(folder.path(), db, &SCHEMAS);
        let waiting = db.read(|view| next(view, hour(0), 10)).unwrap();
        assert_eq!((waiting.len(), &waiting[0].mail.message_id), (1, &None));
    }

    #[test]
    fn own_message_ids_are_known_after_the_mail_has_gone_until_many_others_came() {
        let (_folder, db) = fresh(&SCHEMAS);
        let called = |id: &str| Mail { message_id: Some(id.to_owned()), ..mail("a@example.org") };
        let known = |id: &str| db.read(|view| is_own(view, id)).unwrap();
        let both = [called("<1@laptop>"), called("<1@laptop>")];
        let ids = db.write(move |tx| push(tx, &both)).unwrap();
        db.write(move |tx| ids.iter().try_for_each(|id| fail(tx, *id).map(drop))).unwrap();
        assert!(known("<1@laptop>") && !known("<2@laptop>"));
        for id in ["<2@laptop>", "<3@laptop>", "<4@laptop>"] {
            let one = [called(id)];
            db.write(move |tx| push(tx, &one)).unwrap();
        }
        assert!(!known("<1@laptop>") && known("<2@laptop>") && known("<4@laptop>"));
    }

    #[test]
    fn mail_to_several_is_accepted_for_all_or_none() {
        let (_folder, db) = fresh(&SCHEMAS);
        let refused: Result<(), _> = db.write(|tx| {
            push(tx, &[mail("a@example.org"), mail("b@example.org")])?;
            Err(StoreError::Full)
        });
        assert!(matches!(refused, Err(StoreError::Full)));
        assert_eq!(db.read(counts).unwrap(), Counts { mails: 0, packets: 0 });
        let ids = db.write(|tx| push(tx, &[mail("a@example.org"), mail("b@example.org")])).unwrap();
        assert_eq!(ids.len(), 2);
        assert_eq!(db.read(counts).unwrap(), Counts { mails: 2, packets: 0 });
    }

    #[test]
    fn packets_take_the_place_of_their_mail_once() {
        let (folder, db) = fresh(&SCHEMAS);
        let ids = db.write(|tx| push(tx, &[mail("a@example.org")])).unwrap();
        let id = ids[0];
        let packets = || vec![(hop("one.example.org"), packet(1)), (hop("two.example.org"), packet(2))];
        assert!(db.write(move |tx| packed(tx, id, &packets())).unwrap());
        assert!(!db.write(move |tx| packed(tx, id, &packets())).unwrap());
        let (_copy, db) = as_after_a_kill(folder.path(), &SCHEMAS);
        assert_eq!(db.read(counts).unwrap(), Counts { mails: 0, packets: 2 });
        let batch = db.read(|view| injection_batch(view, 10)).unwrap();
        let found: Vec<_> = batch.iter().map(|injection| (injection.next.clone(), injection.packet.clone())).collect();
        assert_eq!(found, packets());
    }

    #[test]
    fn injected_packets_are_forgotten() {
        let (_folder, db) = fresh(&SCHEMAS);
        let id = db.write(|tx| push(tx, &[mail("a@example.org")])).unwrap()[0];
        let hop = hop("one.example.org");
        db.write(move |tx| packed(tx, id, &[(hop.clone(), packet(1)), (hop, packet(2))])).unwrap();
        let first = db.read(|view| injection_batch(view, 1)).unwrap()[0].id;
        db.write(move |tx| injected(tx, &[first])).unwrap();
        let left = db.read(|view| injection_batch(view, 10)).unwrap();
        assert_eq!(left.iter().map(|injection| injection.packet.clone()).collect::<Vec<_>>(), [packet(2)]);
    }

    #[test]
    fn postponed_mail_waits_for_its_time() {
        let (_folder, db) = fresh(&SCHEMAS);
        let id = db.write(|tx| push(tx, &[mail("a@example.org")])).unwrap()[0];
        db.write(move |tx| postpone(tx, id, hour(2), "no path to the exit")).unwrap();
        assert!(db.read(|view| next(view, hour(1), 10)).unwrap().is_empty());
        assert_eq!(db.read(|view| next(view, hour(2), 10)).unwrap()[0].attempts, 1);
        assert!(db.write(move |tx| fail(tx, id)).unwrap());
        assert!(!db.write(move |tx| fail(tx, id)).unwrap());
        let refused = db.write(|tx| postpone(tx, MailId(404), hour(2), "")).unwrap_err();
        assert!(matches!(refused, StoreError::Missing { .. }));
    }
}
