//! Packets on their way to the next mix, grouped by mix.
//!
//! Retries belong to the mix, never to a packet: a packet with a time of its own would leave alone, and could be told
//! from the others of its batch.

use std::fmt;
use std::time::SystemTime;

use super::drop_content;
use crate::packet::{NextHop, Packet};
use crate::store::db::{Row, StoreError, Tx, View, instant, params, row_id, seconds, sql_limit};
use crate::store::{next_hop, packet};

row_id! {
    /// A mix that packets wait for.
    DestinationId
}
row_id! {
    /// An outgoing packet.
    OutgoingId
}

/// A mix that packets wait for.
#[derive(Clone, PartialEq, Eq)]
pub struct Destination {
    /// Its row. Lives as long as packets wait for it.
    pub id: DestinationId,
    /// How to reach it.
    pub next: NextHop,
    /// Failed attempts since the last packet that it took.
    pub attempts: u32,
    /// The first of these.
    pub first_attempt: Option<SystemTime>,
    /// How many packets wait.
    pub packets: u64,
}

/// Prints no address.
impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("id", &self.id).field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

/// Puts octets that lie in `content` behind the others for their mix. If that is waiting to be tried again they wait
/// with the others.
pub(super) fn enqueue(tx: &Tx<'_>, next: &NextHop, content: i64) -> Result<OutgoingId, StoreError> {
    let (routing_type, info) = next.to_routing();
    tx.execute(
        "INSERT OR IGNORE INTO destination (routing_type, routing_info) VALUES (?1, ?2)",
        params![routing_type.0, info],
    )?;
    tx.insert(
        "INSERT INTO outgoing (destination, content)
            SELECT id, ?3 FROM destination WHERE routing_type = ?1 AND routing_info = ?2",
        params![routing_type.0, info, content],
    )
    .map(OutgoingId)
}

/// The mixes to connect to now.
///
/// # Errors
/// What the database says.
pub fn due_destinations(view: &View<'_>, now: SystemTime) -> Result<Vec<Destination>, StoreError> {
    view.all(
        "SELECT id, routing_type, routing_info, attempts, first_attempt,
                (SELECT count(*) FROM outgoing WHERE destination = destination.id)
            FROM destination WHERE next_attempt <= ?1 ORDER BY next_attempt, id",
        params![seconds(now)],
        destination,
    )
}

/// When the next mix is due, if packets wait for any.
///
/// # Errors
/// What the database says.
pub fn next_due(view: &View<'_>) -> Result<Option<SystemTime>, StoreError> {
    view.first("SELECT next_attempt FROM destination ORDER BY next_attempt LIMIT 1", &[], |row| {
        Ok(instant(row.get(0)?))
    })
}

/// The packets for one mix, in the order in which the pool released them, at most `limit`.
///
/// # Errors
/// What the database says.
pub fn packets_for(
    view: &View<'_>,
    destination: DestinationId,
    limit: usize,
) -> Result<Vec<(OutgoingId, Packet)>, StoreError> {
    view.all(
        "SELECT outgoing.id, octets FROM outgoing JOIN content ON content.id = outgoing.content
            WHERE destination = ?1 ORDER BY outgoing.id LIMIT ?2",
        params![destination.0, sql_limit(limit)],
        |row| Ok((OutgoingId(row.get(0)?), packet(row, 1)?)),
    )
}

/// How many packets wait, for all mixes.
///
/// # Errors
/// What the database says.
pub fn count(view: &View<'_>) -> Result<u64, StoreError> {
    view.count("SELECT count(*) FROM outgoing", &[])
}

/// Forgets packets that their mix has acknowledged; its failed attempts are forgotten with them.
///
/// # Errors
/// What the database says.
pub fn sent(tx: &Tx<'_>, ids: &[OutgoingId]) -> Result<(), StoreError> {
    let mut settled = None;
    for id in ids {
        let Some(destination) = drop_packet(tx, *id)? else { continue };
        if settled != Some(destination) {
            tx.execute(
                "UPDATE destination SET attempts = 0, first_attempt = NULL, next_attempt = 0 WHERE id = ?1",
                params![destination],
            )?;
            settled = Some(destination);
        }
        drop_if_empty(tx, destination)?;
    }
    Ok(())
}

/// Leaves a mix alone until `next_attempt`, with all that waits for it, after an attempt that failed at `now`.
///
/// # Errors
/// What the database says. A mix that nothing waits for any more is passed over.
pub fn postpone(
    tx: &Tx<'_>,
    destination: DestinationId,
    now: SystemTime,
    next_attempt: SystemTime,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE destination
            SET attempts = attempts + 1, first_attempt = coalesce(first_attempt, ?2), next_attempt = ?3 WHERE id = ?1",
        params![destination.0, seconds(now), seconds(next_attempt)],
    )?;
    Ok(())
}

/// Drops all that waits for a mix, and says how much it was.
///
/// # Errors
/// What the database says.
pub fn give_up(tx: &Tx<'_>, destination: DestinationId) -> Result<u64, StoreError> {
    let ids = tx.all("SELECT id FROM outgoing WHERE destination = ?1", params![destination.0], |row| {
        Ok(OutgoingId(row.get(0)?))
    })?;
    let mut dropped = 0;
    for id in ids {
        dropped += u64::from(drop_packet(tx, id)?.is_some());
    }
    drop_if_empty(tx, destination.0)?;
    Ok(dropped)
}

fn drop_packet(tx: &Tx<'_>, id: OutgoingId) -> Result<Option<i64>, StoreError> {
    let row = tx.first("SELECT destination, content FROM outgoing WHERE id = ?1", params![id.0], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    })?;
    let Some((destination, content)) = row else { return Ok(None) };
    tx.execute("DELETE FROM outgoing WHERE id = ?1", params![id.0])?;
    drop_content(tx, content)?;
    Ok(Some(destination))
}

fn drop_if_empty(tx: &Tx<'_>, destination: i64) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM destination WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM outgoing WHERE destination = ?1)",
        params![destination],
    )?;
    Ok(())
}

fn destination(row: &Row<'_>) -> Result<Destination, StoreError> {
    let packets: i64 = row.get(5)?;
    Ok(Destination {
        id: DestinationId(row.get(0)?),
        next: next_hop(row, 1, 2)?,
        attempts: row.get(3)?,
        first_attempt: row.get::<_, Option<i64>>(4)?.map(instant),
        packets: packets.unsigned_abs(),
    })
}
