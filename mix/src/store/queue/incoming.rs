//! Packets that were received and not opened yet.

use super::pool::{self, PoolItem};
use crate::crypto::Digest;
use crate::packet::Packet;
use crate::store::db::{StoreError, Tx, View, params, row_id, sql_limit};
use crate::store::{packet, replay};

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
    tx.insert("INSERT INTO incoming (octets) VALUES (?1)", params![packet.as_bytes()]).map(IncomingId)
}

/// The packets behind `after`, in order, at most `limit`. Begin with `None`.
///
/// # Errors
/// What the database says.
pub fn load(view: &View<'_>, after: Option<IncomingId>, limit: usize) -> Result<Vec<(IncomingId, Packet)>, StoreError> {
    view.all(
        "SELECT id, octets FROM incoming WHERE id > ?1 ORDER BY id LIMIT ?2",
        params![after.map_or(0, |after| after.0), sql_limit(limit)],
        |row| Ok((IncomingId(row.get(0)?), packet(row, 1)?)),
    )
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
    id: IncomingId,
    packet_key: &Digest,
    replay_hash: &Digest,
    next: &Next,
) -> Result<Admission, StoreError> {
    if !discard(tx, id)? {
        return Err(StoreError::Missing { what: "incoming packet" });
    }
    if !replay::remember(tx, packet_key, replay_hash)? {
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
    Ok(tx.execute("DELETE FROM incoming WHERE id = ?1", params![id.0])? > 0)
}
