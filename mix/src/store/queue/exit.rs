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

/// The deliveries to try now, at most `limit`.
///
/// # Errors
/// What the database says.
pub fn due(view: &View<'_>, now: SystemTime, limit: usize) -> Result<Vec<ExitItem>, StoreError> {
    view.all(
        "SELECT id, attempts, exit_type, address, handle, slot, message
            FROM exit WHERE next_attempt <= ?1 ORDER BY next_attempt, id LIMIT ?2",
        params![seconds(now), sql_limit(limit)],
        |row| item(view, row),
    )
}

/// Which deliveries are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those of this type.
    Of(RoutingType),
    /// Those of all others.
    NotOf(RoutingType),
}

impl Which {
    fn parts(self) -> (u16, bool) {
        match self {
            Self::Of(exit_type) => (exit_type.0, true),
            Self::NotOf(exit_type) => (exit_type.0, false),
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
    let (exit_type, is_so) = which.parts();
    view.all(
        "SELECT id, attempts, exit_type, address, handle, slot, message
            FROM exit WHERE next_attempt <= ?1 AND (exit_type = ?3) = ?4
                AND id NOT IN (SELECT value FROM json_each(?5))
            ORDER BY next_attempt, id LIMIT ?2",
        params![seconds(now), sql_limit(limit), exit_type, is_so, as_json(under_way)],
        |row| item(view, row),
    )
}

/// When the next delivery of some types is due, if any waits that is not `under_way`.
///
/// # Errors
/// What the database says.
pub fn next_due_of(view: &View<'_>, which: Which, under_way: &[ExitId]) -> Result<Option<SystemTime>, StoreError> {
    let (exit_type, is_so) = which.parts();
    view.first(
        "SELECT next_attempt FROM exit WHERE (exit_type = ?1) = ?2 AND id NOT IN (SELECT value FROM json_each(?3))
            ORDER BY next_attempt LIMIT 1",
        params![exit_type, is_so, as_json(under_way)],
        |row| Ok(instant(row.get(0)?)),
    )
}

/// Any number of rows as one parameter.
fn as_json(ids: &[ExitId]) -> String {
    let numbers: Vec<String> = ids.iter().map(|id| id.0.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

/// When the next delivery is due, if any waits.
///
/// # Errors
/// What the database says.
pub fn next_due(view: &View<'_>) -> Result<Option<SystemTime>, StoreError> {
    view.first("SELECT next_attempt FROM exit ORDER BY next_attempt LIMIT 1", &[], |row| Ok(instant(row.get(0)?)))
}

/// Leaves all that is due of a type until `next_attempt`, as after an attempt that failed; drops what has failed more than
/// `tries` times by then, and says how many.
///
/// # Errors
/// What the database says.
pub fn postpone_all(
    tx: &Tx<'_>,
    exit_type: RoutingType,
    now: SystemTime,
    next_attempt: SystemTime,
    tries: u32,
) -> Result<u64, StoreError> {
    tx.execute(
        "UPDATE exit SET attempts = attempts + 1, next_attempt = ?3 WHERE exit_type = ?1 AND next_attempt <= ?2",
        params![exit_type.0, seconds(now), seconds(next_attempt)],
    )?;
    let over = "SELECT id FROM exit WHERE exit_type = ?1 AND attempts > ?2";
    let over = tx.all(over, params![exit_type.0, tries], |row| Ok(ExitId(row.get(0)?)))?;
    over.iter().try_for_each(|id| give_up(tx, *id).map(drop))?;
    Ok(over.len() as u64)
}

/// Makes all of a type due at `now`. The attempts that it has had stay counted.
///
/// # Errors
/// What the database says.
pub fn try_now(tx: &Tx<'_>, exit_type: RoutingType, now: SystemTime) -> Result<(), StoreError> {
    let bring = "UPDATE exit SET next_attempt = ?2 WHERE exit_type = ?1 AND next_attempt > ?2";
    tx.execute(bring, params![exit_type.0, seconds(now)]).map(drop)
}

/// How many deliveries wait.
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

/// Leaves a delivery until `next_attempt`, after an attempt that failed.
///
/// # Errors
/// [`StoreError::Missing`]; what the database says.
pub fn postpone(tx: &Tx<'_>, id: ExitId, next_attempt: SystemTime) -> Result<(), StoreError> {
    let changed = tx.execute(
        "UPDATE exit SET attempts = attempts + 1, next_attempt = ?2 WHERE id = ?1",
        params![id.0, seconds(next_attempt)],
    )?;
    if changed == 0 { Err(StoreError::Missing { what: "delivery" }) } else { Ok(()) }
}

/// Drops what cannot be delivered. Says whether it was there.
///
/// # Errors
/// What the database says.
pub fn give_up(tx: &Tx<'_>, id: ExitId) -> Result<bool, StoreError> {
    delivered(tx, id)
}

fn item(view: &View<'_>, row: &Row<'_>) -> Result<ExitItem, StoreError> {
    let content = match row.get::<_, Option<i64>>(5)? {
        Some(slot) => ExitContent::Payload { handle: handle(row, 4)?, payload: payload_in(view, Slot(slot))? },
        None => ExitContent::Message(octets(row, 6)?.to_vec()),
    };
    Ok(ExitItem {
        id: ExitId(row.get(0)?),
        attempts: row.get(1)?,
        exit_type: routing_type(row, 2)?,
        address: octets(row, 3)?.to_vec(),
        content,
    })
}
