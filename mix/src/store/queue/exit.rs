//! What leaves the network here and was not delivered yet.
//!
//! How to deliver is `crate::deliver`'s.

use std::fmt;
use std::time::SystemTime;

use crate::packet::{Handle, Payload, RoutingType};
use crate::store::db::{Row, Slot, StoreError, Tx, View, instant, octets, params, row_id, seconds, sql_limit};
use crate::store::{handle, payload_in, routing_type};

row_id! {
    /// A delivery.
    ExitId
}

/// A delivery that waits.
#[derive(Clone, PartialEq, Eq)]
pub struct ExitItem {
    /// Its row.
    pub id: ExitId,
    /// How often it was tried.
    pub attempts: u32,
    /// How to deliver it.
    pub exit_type: RoutingType,
    /// Whether it was found to leave as e-mail, whatever its type ([`leaves_by_mail`](super::users::leaves_by_mail)).
    pub by_mail: bool,
    /// To whom.
    pub address: Vec<u8>,
    /// What to deliver.
    pub content: ExitContent,
}

/// What to deliver.
#[derive(Clone, PartialEq, Eq)]
pub enum ExitContent {
    /// The payload of one packet, still encoded.
    Payload {
        /// The decoding handle; FRAGMENT has none.
        handle: Option<Handle>,
        /// The payload.
        payload: Payload,
    },
    /// A message that was put together from fragments, still compressed.
    Message(Vec<u8>),
}

/// Prints neither address nor content.
impl fmt::Debug for ExitItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExitItem").field("id", &self.id).field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

/// Prints nothing of it.
impl fmt::Debug for ExitContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExitContent(..)")
    }
}

pub(super) fn enqueue_payload(
    tx: &Tx<'_>,
    exit_type: RoutingType,
    address: &[u8],
    handle: Option<Handle>,
    slot: Slot,
) -> Result<ExitId, StoreError> {
    tx.insert(
        "INSERT INTO exit (exit_type, address, handle, slot) VALUES (?1, ?2, ?3, ?4)",
        params![exit_type.0, address, handle.map(|handle| handle.0), slot.0],
    )
    .map(ExitId)
}

/// Puts a message that was put together from fragments into the queue. It has been through the pool, piece by piece.
///
/// # Errors
/// What the database says.
pub fn insert_message(
    tx: &Tx<'_>,
    exit_type: RoutingType,
    address: &[u8],
    compressed: &[u8],
) -> Result<ExitId, StoreError> {
    tx.insert(
        "INSERT INTO exit (exit_type, address, message) VALUES (?1, ?2, ?3)",
        params![exit_type.0, address, compressed],
    )
    .map(ExitId)
}

/// The deliveries to try now, at most `limit`. What is held is not among them, here and below.
///
/// # Errors
/// What the database says.
pub fn due(view: &View<'_>, now: SystemTime, limit: usize) -> Result<Vec<ExitItem>, StoreError> {
    view.all(
        "SELECT id, attempts, exit_type, address, handle, slot, message, by_mail
            FROM exit WHERE held = 0 AND next_attempt <= ?1 ORDER BY next_attempt, id LIMIT ?2",
        params![seconds(now), sql_limit(limit)],
        |row| item(view, row),
    )
}

/// Which deliveries are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that leave as e-mail: of type SMTP, or found to.
    Mail,
    /// All others.
    House,
    /// Those of this type, whichever way they leave by.
    Of(RoutingType),
}

/// The parameters of a condition `(exit_type = … OR (with_mail AND by_mail)) = is_so`.
struct Parts {
    exit_type: u16,
    with_mail: bool,
    is_so: bool,
}

impl Which {
    fn parts(self) -> Parts {
        let smtp = RoutingType::SMTP.0;
        match self {
            Self::Mail => Parts { exit_type: smtp, with_mail: true, is_so: true },
            Self::House => Parts { exit_type: smtp, with_mail: true, is_so: false },
            Self::Of(exit_type) => Parts { exit_type: exit_type.0, with_mail: false, is_so: true },
        }
    }
}

/// As [`due`], of some types, without those that are `under_way`.
///
/// # Errors
/// What the database says.
pub fn due_of(
    view: &View<'_>,
    which: Which,
    under_way: &[ExitId],
    now: SystemTime,
    limit: usize,
) -> Result<Vec<ExitItem>, StoreError> {
    let Parts { exit_type, with_mail, is_so } = which.parts();
    view.all(
        "SELECT id, attempts, exit_type, address, handle, slot, message, by_mail
            FROM exit WHERE held = 0 AND next_attempt <= ?1 AND (exit_type = ?3 OR (?5 AND by_mail)) = ?4
                AND id NOT IN (SELECT value FROM json_each(?6))
            ORDER BY next_attempt, id LIMIT ?2",
        params![seconds(now), sql_limit(limit), exit_type, is_so, with_mail, as_json(under_way)],
        |row| item(view, row),
    )
}

/// When the next delivery of some types is due, if any waits that is not `under_way`.
///
/// # Errors
/// What the database says.
pub fn next_due_of(view: &View<'_>, which: Which, under_way: &[ExitId]) -> Result<Option<SystemTime>, StoreError> {
    let Parts { exit_type, with_mail, is_so } = which.parts();
    view.first(
        "SELECT next_attempt FROM exit WHERE held = 0 AND (exit_type = ?1 OR (?3 AND by_mail)) = ?2
                AND id NOT IN (SELECT value FROM json_each(?4))
            ORDER BY next_attempt LIMIT 1",
        params![exit_type, is_so, with_mail, as_json(under_way)],
        |row| Ok(instant(row.get(0)?)),
    )
}

/// Any number of rows as one parameter.
pub(super) fn as_json(ids: &[ExitId]) -> String {
    let numbers: Vec<String> = ids.iter().map(|id| id.0.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

/// When the next delivery is due, if any waits.
///
/// # Errors
/// What the database says.
pub fn next_due(view: &View<'_>) -> Result<Option<SystemTime>, StoreError> {
    let next = "SELECT next_attempt FROM exit WHERE held = 0 ORDER BY next_attempt LIMIT 1";
    view.first(next, &[], |row| Ok(instant(row.get(0)?)))
}

/// Leaves all that is due of these until `next_attempt`, as after an attempt that failed, but for what is `being_tried`:
/// that has an attempt of its own. Drops what has failed more than `tries` times by then, and says how many.
///
/// # Errors
/// What the database says.
pub fn postpone_all(
    tx: &Tx<'_>,
    which: Which,
    being_tried: &[ExitId],
    now: SystemTime,
    next_attempt: SystemTime,
    tries: u32,
) -> Result<u64, StoreError> {
    let Parts { exit_type, with_mail, is_so } = which.parts();
    let being_tried = as_json(being_tried);
    tx.execute(
        "UPDATE exit SET attempts = attempts + 1, next_attempt = ?3
            WHERE held = 0 AND (exit_type = ?1 OR (?4 AND by_mail)) = ?5 AND next_attempt <= ?2
                AND id NOT IN (SELECT value FROM json_each(?6))",
        params![exit_type, seconds(now), seconds(next_attempt), with_mail, is_so, being_tried],
    )?;
    let over = tx.all(
        "SELECT id FROM exit WHERE held = 0 AND (exit_type = ?1 OR (?3 AND by_mail)) = ?4 AND attempts > ?2
            AND id NOT IN (SELECT value FROM json_each(?5))",
        params![exit_type, tries, with_mail, is_so, being_tried],
        |row| Ok(ExitId(row.get(0)?)),
    )?;
    over.iter().try_for_each(|id| give_up(tx, *id).map(drop))?;
    Ok(over.len() as u64)
}

/// Makes all of these due at `now`, held or not. The attempts that it has had stay counted.
///
/// # Errors
/// What the database says.
pub fn try_now(tx: &Tx<'_>, which: Which, now: SystemTime) -> Result<(), StoreError> {
    let Parts { exit_type, with_mail, is_so } = which.parts();
    let bring = "UPDATE exit SET next_attempt = ?2
        WHERE (exit_type = ?1 OR (?3 AND by_mail)) = ?4 AND next_attempt > ?2";
    tx.execute(bring, params![exit_type, seconds(now), with_mail, is_so]).map(drop)
}

/// Makes those of these due at `now` that were put off until `until`, as all are that wait for one who is away. What is held
/// waits for the operator. The attempts that it has had stay counted.
///
/// # Errors
/// What the database says.
pub fn try_what_waits(tx: &Tx<'_>, which: Which, until: SystemTime, now: SystemTime) -> Result<(), StoreError> {
    let Parts { exit_type, with_mail, is_so } = which.parts();
    let bring = "UPDATE exit SET next_attempt = ?2
        WHERE held = 0 AND next_attempt = ?5 AND ?5 > ?2 AND (exit_type = ?1 OR (?3 AND by_mail)) = ?4";
    tx.execute(bring, params![exit_type, seconds(now), with_mail, is_so, seconds(until)]).map(drop)
}

/// Makes these due at `now`, held or not. The attempts that they have had stay counted.
///
/// # Errors
/// What the database says.
pub fn bring_to(tx: &Tx<'_>, ids: &[ExitId], now: SystemTime) -> Result<(), StoreError> {
    let bring = "UPDATE exit SET next_attempt = ?2
        WHERE id IN (SELECT value FROM json_each(?1)) AND next_attempt > ?2";
    tx.execute(bring, params![as_json(ids), seconds(now)]).map(drop)
}

/// How many deliveries wait, held or not.
///
/// # Errors
/// What the database says.
pub fn count(view: &View<'_>) -> Result<u64, StoreError> {
    view.count("SELECT count(*) FROM exit", &[])
}

/// How many deliveries of a type wait. Counts no further than `limit`.
///
/// # Errors
/// What the database says.
pub fn count_of(view: &View<'_>, exit_type: RoutingType, limit: u64) -> Result<u64, StoreError> {
    view.count(
        "SELECT count(*) FROM (SELECT 1 FROM exit WHERE exit_type = ?1 LIMIT ?2)",
        params![exit_type.0, i64::try_from(limit).unwrap_or(i64::MAX)],
    )
}

/// Forgets what was delivered. Says whether it was there.
///
/// # Errors
/// What the database says.
pub fn delivered(tx: &Tx<'_>, id: ExitId) -> Result<bool, StoreError> {
    let slot = tx.first("SELECT slot FROM exit WHERE id = ?1", params![id.0], |row| Ok(row.get::<_, Option<_>>(0)?))?;
    let Some(slot) = slot else { return Ok(false) };
    tx.execute("DELETE FROM exit WHERE id = ?1", params![id.0])?;
    slot.map_or(Ok(()), |slot| tx.leave(Slot(slot)))?;
    Ok(true)
}

/// Leaves a delivery until `next_attempt`, after an attempt that failed. Says whether it was there: the operator may have
/// dropped it meanwhile.
///
/// # Errors
/// What the database says.
pub fn postpone(tx: &Tx<'_>, id: ExitId, next_attempt: SystemTime) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE exit SET attempts = attempts + 1, next_attempt = ?2 WHERE id = ?1",
        params![id.0, seconds(next_attempt)],
    )?;
    Ok(changed > 0)
}

/// Drops what cannot be delivered. Says whether it was there.
///
/// # Errors
/// What the database says.
pub fn give_up(tx: &Tx<'_>, id: ExitId) -> Result<bool, StoreError> {
    delivered(tx, id)
}

pub(super) fn item(view: &View<'_>, row: &Row<'_>) -> Result<ExitItem, StoreError> {
    let content = match row.get::<_, Option<i64>>(5)? {
        Some(slot) => ExitContent::Payload { handle: handle(row, 4)?, payload: payload_in(view, Slot(slot))? },
        None => ExitContent::Message(octets(row, 6)?.to_vec()),
    };
    Ok(ExitItem {
        id: ExitId(row.get(0)?),
        attempts: row.get(1)?,
        exit_type: routing_type(row, 2)?,
        by_mail: row.get(7)?,
        address: octets(row, 3)?.to_vec(),
        content,
    })
}
