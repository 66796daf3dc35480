//! Packets that were opened and wait for their batch.

use std::fmt;

use super::{exit, incoming, outgoing};
use crate::crypto::KeyId;
use crate::packet::{Handle, NextHop, Packet, Payload, RoutingType};
use crate::store::db::{Row, Slot, StoreError, Tx, View, octets, params, row_id};
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
            let slot = tx.put(packet.as_bytes())?;
            let (routing_type, info) = next.to_routing();
            tx.insert(
                "INSERT INTO pool (routing_type, routing_info, slot) VALUES (?1, ?2, ?3)",
                params![routing_type.0, info, slot.0],
            )
        }
        PoolItem::Deliver { exit_type, address, handle, payload } => {
            let slot = tx.put(payload.as_bytes())?;
            tx.insert(
                "INSERT INTO pool (routing_type, routing_info, handle, slot) VALUES (?1, ?2, ?3, ?4)",
                params![exit_type.0, address, handle.map(|handle| handle.0), slot.0],
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

/// Lets a batch go: packets for other mixes become outgoing, payloads enter the exit queue, and packets whose next mix
/// is `own` come in again. Within a destination they leave in the order of `ids`, so shuffle these first. Ids that are no
/// longer in the pool are passed over: a batch that was released and not noted is not released twice.
///
/// # Errors
/// What the database says.
pub fn release(tx: &Tx<'_>, ids: &[PoolId], own: Option<&KeyId>) -> Result<Released, StoreError> {
    let mut released = Released::default();
    let mut queues = outgoing::Enqueue::default();
    for id in ids {
        let Some(leaving) = tx.first(
            "DELETE FROM pool WHERE id = ?1 RETURNING routing_type, routing_info, handle, slot",
            params![id.0],
            leaving,
        )?
        else {
            continue;
        };
        match leaving {
            // There is no sense in waiting for a connection to oneself.
            Leaving::Relay { next, slot } if Some(&next.key_id()) == own => {
                incoming::enqueue(tx, slot)?;
                released.own += 1;
            }
            Leaving::Relay { next, slot } => {
                queues.push(tx, &next, slot)?;
                released.relays += 1;
            }
            Leaving::Deliver { exit_type, address, handle, slot } => {
                exit::enqueue_payload(tx, exit_type, &address, handle, slot)?;
                released.deliveries += 1;
            }
        }
    }
    Ok(released)
}

enum Leaving {
    Relay { next: NextHop, slot: Slot },
    Deliver { exit_type: RoutingType, address: Vec<u8>, handle: Option<Handle>, slot: Slot },
}

fn leaving(row: &Row<'_>) -> Result<Leaving, StoreError> {
    let (routing_type, slot) = (routing_type(row, 0)?, Slot(row.get(3)?));
    if !routing_type.is_exit() {
        return Ok(Leaving::Relay { next: next_hop(row, 0, 1)?, slot });
    }
    let handle = crate::store::handle(row, 2)?;
    Ok(Leaving::Deliver { exit_type: routing_type, address: octets(row, 1)?.to_vec(), handle, slot })
}
