//! What must survive a crash: the queues, logs and keys of a role, in one SQLite database each.
//!
//! `db` alone speaks to SQLite; the other files bring their tables as a [`db::Schema`] and their steps as functions on
//! [`db::Tx`], so that several steps make one transaction. No clock here and no dice: both are handed in. What the
//! octets mean is floor 0's, when to retry or to give up is `crate::node`'s.

pub mod db;
pub mod disk;
pub mod fragments;
pub mod inbox;
pub mod keyring;
pub mod notices;
pub mod opt_outs;
pub mod outbox;
pub mod policies;
pub mod queue;
pub mod replay;
mod slots;
pub mod surbs;

pub use db::{Db, Schema, StoreError, Tx, View};

/// The tables of a node's database.
pub const NODE_SCHEMAS: [Schema; 7] = [
    queue::SCHEMA,
    queue::BY_HAND,
    replay::SCHEMA,
    fragments::SCHEMA,
    fragments::ROOM,
    opt_outs::SCHEMA,
    policies::SCHEMA,
];
/// The tables of a gateway's database, but for what other crates bring.
pub const GATEWAY_SCHEMAS: [Schema; 8] = [
    keyring::SCHEMA,
    outbox::SCHEMA,
    outbox::IDS,
    inbox::SCHEMA,
    surbs::SCHEMA,
    fragments::SCHEMA,
    fragments::ROOM,
    notices::SCHEMA,
];

use db::{Row, Slot};

use crate::packet::{Handle, NextHop, PACKET_LEN, PAYLOAD_LEN, Packet, Payload, RoutingType};

/// The packet in a column, not copied more than once.
fn packet(row: &Row<'_>, column: usize) -> Result<Packet, StoreError> {
    Packet::from_bytes(db::octets(row, column)?)
        .map_err(|_| StoreError::Corrupt { what: "a stored packet of the wrong length" })
}

fn payload(row: &Row<'_>, column: usize) -> Result<Payload, StoreError> {
    Payload::from_bytes(db::octets(row, column)?)
        .map_err(|_| StoreError::Corrupt { what: "a stored payload of the wrong length" })
}

/// The packet in a slot.
fn packet_in(view: &View<'_>, slot: Slot) -> Result<Packet, StoreError> {
    Ok(Packet::from_box(view.slot(slot, PACKET_LEN)?).expect("a packet's length: asked for above"))
}

/// The payload in a slot.
fn payload_in(view: &View<'_>, slot: Slot) -> Result<Payload, StoreError> {
    Ok(Payload::from_box(view.slot(slot, PAYLOAD_LEN)?).expect("a payload's length: asked for above"))
}

fn handle(row: &Row<'_>, column: usize) -> Result<Option<Handle>, StoreError> {
    Ok(row.get::<_, Option<_>>(column)?.map(Handle))
}

fn routing_type(row: &Row<'_>, column: usize) -> Result<RoutingType, StoreError> {
    Ok(RoutingType(row.get(column)?))
}

fn next_hop(row: &Row<'_>, type_column: usize, info_column: usize) -> Result<NextHop, StoreError> {
    NextHop::parse(routing_type(row, type_column)?, db::octets(row, info_column)?)
        .map_err(|_| StoreError::Corrupt { what: "stored routing info that leads nowhere" })
}

#[cfg(test)]
pub(crate) mod testing;
