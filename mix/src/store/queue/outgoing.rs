//! Packets on their way to the next mix, grouped by mix, and padding of links beside them.
//!
//! Retries belong to the mix, never to a packet: a packet with a time of its own would leave alone, and could be told
//! from the others of its batch. When the next one is due is not kept: `node::outgoing` counts batches.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::packet::{NextHop, Packet};
use crate::store::db::{Row, Slot, StoreError, Tx, View, params, row_id, sql_limit};
use crate::store::{next_hop, packet_in};

row_id! {
    /// A mix that packets wait for.
    DestinationId
}
row_id! {
    /// An outgoing packet, or padding.
    OutgoingId
}

/// A mix that packets wait for, or padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Destination {
    /// Its row. Lives as long as anything waits for it.
    pub id: DestinationId,
    /// How to reach it.
    pub next: NextHop,
    /// Failed attempts since the last packet that it took.
    pub attempts: u32,
}

/// Prints no address.
impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("id", &self.id).field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

/// What goes over a link.
#[derive(Clone, PartialEq, Eq)]
pub enum Cargo {
    /// A packet (SEND).
    Packet(Packet),
    /// Padding (JUNK). Its octets are made when it is sent.
    Junk,
}

/// Prints nothing of a packet.
impl fmt::Debug for Cargo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packet(_) => "Packet(..)",
            Self::Junk => "Junk",
        })
    }
}

/// Puts packets behind the others for their mix, several in one step. If that is waiting to be tried again they wait with
/// the others.
#[derive(Default)]
pub(super) struct Enqueue {
    /// The destinations of this step: it is asked for each once.
    known: HashMap<NextHop, i64>,
}

impl Enqueue {
    /// The packet in `slot`.
    pub(super) fn push(&mut self, tx: &Tx<'_>, next: &NextHop, slot: Slot) -> Result<OutgoingId, StoreError> {
        let destination = match self.known.get(next) {
            Some(destination) => *destination,
            None => {
                let (destination, _) = put_destination(tx, next)?;
                self.known.insert(next.clone(), destination);
                destination
            }
        };
        let sql = "INSERT INTO outgoing (destination, slot) VALUES (?1, ?2)";
        tx.insert(sql, params![destination, slot.0]).map(OutgoingId)
    }
}

/// The row of a mix, and whether nothing had waited for it.
fn put_destination(tx: &Tx<'_>, next: &NextHop) -> Result<(i64, bool), StoreError> {
    let (routing_type, info) = next.to_routing();
    let found = tx.first(
        "SELECT id FROM destination WHERE routing_type = ?1 AND routing_info = ?2",
        params![routing_type.0, info],
        |row| Ok(row.get(0)?),
    )?;
    if let Some(id) = found {
        return Ok((id, false));
    }
    let sql = "INSERT INTO destination (routing_type, routing_info) VALUES (?1, ?2)";
    Ok((tx.insert(sql, params![routing_type.0, info])?, true))
}

/// Puts padding for a mix into the queue, if nothing waits for it. Says whether it did.
///
/// # Errors
/// What the database says.
pub fn pad_if_idle(tx: &Tx<'_>, next: &NextHop) -> Result<bool, StoreError> {
    let (destination, idle) = put_destination(tx, next)?;
    if idle {
        tx.insert("INSERT INTO outgoing (destination) VALUES (?1)", params![destination])?;
    }
    Ok(idle)
}

/// The mixes that anything waits for.
///
/// # Errors
/// What the database says.
pub fn destinations(view: &View<'_>) -> Result<Vec<Destination>, StoreError> {
    view.all("SELECT id, routing_type, routing_info, attempts FROM destination ORDER BY id", &[], destination)
}

/// What waits for one mix behind `after`, in the order in which the pool released it, at most `limit`. Begin with `None`.
///
/// # Errors
/// What the database says.
pub fn cargo_for(
    view: &View<'_>,
    destination: DestinationId,
    after: Option<OutgoingId>,
    limit: usize,
) -> Result<Vec<(OutgoingId, Cargo)>, StoreError> {
    view.all(
        "SELECT id, slot FROM outgoing WHERE destination = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
        params![destination.0, after.map_or(0, |after| after.0), sql_limit(limit)],
        |row| {
            let slot: Option<i64> = row.get(1)?;
            let packet = slot.map(|slot| packet_in(view, Slot(slot))).transpose()?;
            Ok((OutgoingId(row.get(0)?), packet.map_or(Cargo::Junk, Cargo::Packet)))
        },
    )
}

/// How much waits for one mix, padding included. Counts no further than `limit`.
///
/// # Errors
/// What the database says.
pub fn count_for(view: &View<'_>, destination: DestinationId, limit: usize) -> Result<u64, StoreError> {
    view.count(
        "SELECT count(*) FROM (SELECT 1 FROM outgoing WHERE destination = ?1 LIMIT ?2)",
        params![destination.0, sql_limit(limit)],
    )
}

/// How many packets wait, for all mixes. Padding does not count.
///
/// # Errors
/// What the database says.
pub fn count(view: &View<'_>) -> Result<u64, StoreError> {
    view.count("SELECT count(*) FROM outgoing WHERE slot IS NOT NULL", &[])
}

/// Forgets what its mix has acknowledged; its failed attempts are forgotten with it.
///
/// # Errors
/// What the database says.
pub fn sent(tx: &Tx<'_>, ids: &[OutgoingId]) -> Result<(), StoreError> {
    let mut destinations = HashSet::new();
    for id in ids {
        destinations.extend(drop_cargo(tx, *id)?.map(|(destination, _)| destination));
    }
    for destination in destinations {
        tx.execute("UPDATE destination SET attempts = 0 WHERE id = ?1 AND attempts > 0", params![destination])?;
        drop_if_empty(tx, destination)?;
    }
    Ok(())
}

/// Counts an attempt that failed. A mix that nothing waits for any more is passed over.
///
/// # Errors
/// What the database says.
pub fn failed(tx: &Tx<'_>, destination: DestinationId) -> Result<(), StoreError> {
    tx.execute("UPDATE destination SET attempts = attempts + 1 WHERE id = ?1", params![destination.0])?;
    Ok(())
}

/// Drops all that waits for a mix, and says how many packets it was. Padding does not count.
///
/// # Errors
/// What the database says.
pub fn give_up(tx: &Tx<'_>, destination: DestinationId) -> Result<u64, StoreError> {
    let ids = tx.all("SELECT id FROM outgoing WHERE destination = ?1", params![destination.0], |row| {
        Ok(OutgoingId(row.get(0)?))
    })?;
    let mut dropped = 0;
    for id in ids {
        dropped += u64::from(matches!(drop_cargo(tx, id)?, Some((_, true))));
    }
    drop_if_empty(tx, destination.0)?;
    Ok(dropped)
}

/// Whose it was, and whether it was a packet.
fn drop_cargo(tx: &Tx<'_>, id: OutgoingId) -> Result<Option<(i64, bool)>, StoreError> {
    let row = tx.first("DELETE FROM outgoing WHERE id = ?1 RETURNING destination, slot", params![id.0], |row| {
        Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?.map(Slot)))
    })?;
    let Some((destination, slot)) = row else { return Ok(None) };
    if let Some(slot) = slot {
        tx.leave(slot)?;
    }
    Ok(Some((destination, slot.is_some())))
}

fn drop_if_empty(tx: &Tx<'_>, destination: i64) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM destination WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM outgoing WHERE destination = ?1)",
        params![destination],
    )?;
    Ok(())
}

fn destination(row: &Row<'_>) -> Result<Destination, StoreError> {
    Ok(Destination { id: DestinationId(row.get(0)?), next: next_hop(row, 1, 2)?, attempts: row.get(3)? })
}
