//! Packets that were received and not opened yet.

use super::pool::{self, PoolItem};
use crate::crypto::Digest;
use crate::packet::Packet;
use crate::store::db::{Slot, StoreError, Tx, View, params, row_id, sql_limit};
use crate::store::packet_in;
use crate::store::replay::ReplayLog;

row_id! {
    /// A packet that was received and not opened yet. Later packets have higher numbers, and none comes twice.
    IncomingId
}

/// What becomes of a packet that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It was a dummy (DROP).
    Drop,
    /// It waits for its batch.
    Pool(PoolItem),
}

/// Whether a packet went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It did.
    Admitted,
    /// One like it had been here before; it is gone.
    Replayed,
}

/// Takes a packet in. Say RECEIVED when it is durable, not before (minion-spec 4.2).
///
/// # Errors
/// What the database says.
pub fn push(tx: &Tx<'_>, packet: &Packet) -> Result<IncomingId, StoreError> {
    let slot = tx.put(packet.as_bytes())?;
    enqueue(tx, slot)
}

/// Takes in a packet that lies in a slot already.
pub(super) fn enqueue(tx: &Tx<'_>, slot: Slot) -> Result<IncomingId, StoreError> {
    tx.insert("INSERT INTO incoming (slot) VALUES (?1)", params![slot.0]).map(IncomingId)
}

/// The packets behind `after`, in order, at most `limit`. Begin with `None`. What `at_hand` has is not read.
///
/// # Errors
/// What the database says.
pub fn load(
    view: &View<'_>,
    after: Option<IncomingId>,
    limit: usize,
    mut at_hand: impl FnMut(IncomingId) -> Option<Packet>,
) -> Result<Vec<(IncomingId, Packet)>, StoreError> {
    view.all(
        "SELECT id, slot FROM incoming WHERE id > ?1 ORDER BY id LIMIT ?2",
        params![after.map_or(0, |after| after.0), sql_limit(limit)],
        |row| {
            let id = IncomingId(row.get(0)?);
            let packet = at_hand(id).map_or_else(|| packet_in(view, Slot(row.get(1)?)), Ok)?;
            Ok((id, packet))
        },
    )
}

/// One packet, if it waits still.
///
/// # Errors
/// What the database says.
pub fn packet(view: &View<'_>, id: IncomingId) -> Result<Option<Packet>, StoreError> {
    view.first("SELECT slot FROM incoming WHERE id = ?1", params![id.0], |row| packet_in(view, Slot(row.get(0)?)))
}

/// How many packets wait.
///
/// # Errors
/// What the database says.
pub fn count(view: &View<'_>) -> Result<u64, StoreError> {
    view.count("SELECT count(*) FROM incoming", &[])
}

/// Ends with a packet that was opened with the packet key of this digest: remembers it in the replay log, takes it out,
/// and puts what became of it into the pool. Of two packets with one `replay_hash` only the first goes on, whatever
/// the caller checked before.
///
/// # Errors
/// [`StoreError::Missing`] when there is no such packet; what the database says.
pub fn finish(
    tx: &Tx<'_>,
    log: &ReplayLog,
    id: IncomingId,
    packet_key: &Digest,
    replay_hash: &Digest,
    next: &Next,
) -> Result<Admission, StoreError> {
    if !discard(tx, id)? {
        return Err(StoreError::Missing { what: "incoming packet" });
    }
    if !log.remember(tx, packet_key, replay_hash)? {
        return Ok(Admission::Replayed);
    }
    if let Next::Pool(item) = next {
        pool::insert(tx, item)?;
    }
    Ok(Admission::Admitted)
}

/// Takes out a packet that cannot be opened. Says whether it was there.
///
/// # Errors
/// What the database says.
pub fn discard(tx: &Tx<'_>, id: IncomingId) -> Result<bool, StoreError> {
    let sql = "DELETE FROM incoming WHERE id = ?1 RETURNING slot";
    let slot = tx.first(sql, params![id.0], |row| Ok(Slot(row.get(0)?)))?;
    let Some(slot) = slot else { return Ok(false) };
    tx.leave(slot)?;
    Ok(true)
}
