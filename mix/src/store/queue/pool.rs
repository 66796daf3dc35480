//! Packets that were opened and wait for their batch.

use std::fmt;

use super::{drop_content, exit, outgoing, put_content};
use crate::crypto::KeyId;
use crate::packet::{Handle, NextHop, Packet, Payload, RoutingType};
use crate::store::db::{Row, StoreError, Tx, View, octets, params, row_id};
use crate::store::{next_hop, routing_type};

row_id! {
    /// A packet in the pool.
    PoolId
}

/// What waits for its batch.
#[derive(Clone, PartialEq, Eq)]
pub enum PoolItem {
    /// A packet for another mix.
    Relay {
        /// Which mix.
        next: NextHop,
        /// The packet as that mix gets it.
        packet: Packet,
    },
    /// A payload that leaves the network here.
    Deliver {
        /// How to deliver it.
        exit_type: RoutingType,
        /// To whom.
        address: Vec<u8>,
        /// The decoding handle; FRAGMENT has none.
        handle: Option<Handle>,
        /// The payload, still encoded.
        payload: Payload,
    },
}

/// Prints neither destination nor content.
impl fmt::Debug for PoolItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay { .. } => "Relay(..)",
            Self::Deliver { .. } => "Deliver(..)",
        })
    }
}

/// What left the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Packets now outgoing.
    pub relays: u64,
    /// Payloads now in the exit queue.
    pub deliveries: u64,
    /// Packets back among the incoming, since their next mix is this one.
    pub own: u64,
}

/// Puts something into the pool.
///
/// # Errors
/// What the database says.
pub fn insert(tx: &Tx<'_>, item: &PoolItem) -> Result<PoolId, StoreError> {
    match item {
        PoolItem::Relay { next, packet } => {
            let content = put_content(tx, packet.as_bytes())?;
            let (routing_type, info) = next.to_routing();
            tx.insert(
                "INSERT INTO pool (routing_type, routing_info, next_key_id, content) VALUES (?1, ?2, ?3, ?4)",
                params![routing_type.0, info, next.key_id().0, content],
            )
        }
        PoolItem::Deliver { exit_type, address, handle, payload } => {
            let content = put_content(tx, payload.as_bytes())?;
            tx.insert(
                "INSERT INTO pool (routing_type, routing_info, handle, content) VALUES (?1, ?2, ?3, ?4)",
                params![exit_type.0, address, handle.map(|handle| handle.0), content],
            )
        }
    }
    .map(PoolId)
}

/// How many wait.
///
/// # Errors
/// What the database says.
pub fn count(view: &View<'_>) -> Result<u64, StoreError> {
    view.count("SELECT count(*) FROM pool", &[])
}

/// All that wait, in the order in which they came.
///
/// # Errors
/// What the database says.
pub fn ids(view: &View<'_>) -> Result<Vec<PoolId>, StoreError> {
    view.all("SELECT id FROM pool ORDER BY id", &[], |row| Ok(PoolId(row.get(0)?)))
}

/// Those whose next mix has this identity key: our own, if it is ours. There is no sense in waiting for a connection
/// to oneself; [`release`] hands them back to the incoming queue.
///
/// # Errors
/// What the database says.
pub fn relays_to(view: &View<'_>, key_id: &KeyId) -> Result<Vec<PoolId>, StoreError> {
    view.all("SELECT id FROM pool WHERE next_key_id = ?1 ORDER BY id", params![key_id.0], |row| Ok(PoolId(row.get(0)?)))
}

/// Lets a batch go: packets for other mixes become outgoing, payloads enter the exit queue, and packets whose next mix
/// is `own` come in again. Within a destination they leave in the order of `ids`, so shuffle these first. Ids that are no
/// longer in the pool are passed over: a batch that was released and not noted is not released twice.
///
/// # Errors
/// What the database says.
pub fn release(tx: &Tx<'_>, ids: &[PoolId], own: Option<&KeyId>) -> Result<Released, StoreError> {
    let mut released = Released::default();
    for id in ids {
        let Some(leaving) = tx.first(
            "SELECT routing_type, routing_info, next_key_id, handle, content FROM pool WHERE id = ?1",
            params![id.0],
            leaving,
        )?
        else {
            continue;
        };
        tx.execute("DELETE FROM pool WHERE id = ?1", params![id.0])?;
        match leaving {
            Leaving::Relay { next, content } if Some(&next.key_id()) == own => {
                tx.execute("INSERT INTO incoming (octets) SELECT octets FROM content WHERE id = ?1", params![content])?;
                drop_content(tx, content)?;
                released.own += 1;
            }
            Leaving::Relay { next, content } => {
                outgoing::enqueue(tx, &next, content)?;
                released.relays += 1;
            }
            Leaving::Deliver { exit_type, address, handle, content } => {
                exit::enqueue_payload(tx, exit_type, &address, handle, content)?;
                released.deliveries += 1;
            }
        }
    }
    Ok(released)
}

enum Leaving {
    Relay { next: NextHop, content: i64 },
    Deliver { exit_type: RoutingType, address: Vec<u8>, handle: Option<Handle>, content: i64 },
}

fn leaving(row: &Row<'_>) -> Result<Leaving, StoreError> {
    let content = row.get(4)?;
    let relays: Option<[u8; 20]> = row.get(2)?;
    if relays.is_some() {
        return Ok(Leaving::Relay { next: next_hop(row, 0, 1)?, content });
    }
    Ok(Leaving::Deliver {
        exit_type: routing_type(row, 0)?,
        address: octets(row, 1)?.to_vec(),
        handle: crate::store::handle(row, 3)?,
        content,
    })
}
