//! A mix, and what a gateway has in common with it: the services that own time and retry, one task per file.
//!
//! The way of a packet: `incoming` → pool → `mixing` → `outgoing` or `exit`. The way of the user's own mail: outbox →
//! `sender` → pool. `network` knows who the mixes are, `directory` is the server that says so.

#[cfg(test)]
mod adversity;
pub mod by_hand;
mod changes;
pub mod clock;
pub mod config;
mod control;
pub mod counters;
#[cfg(test)]
mod deaths;
pub mod describe;
pub mod directory;
mod dummies;
pub mod durable;
mod exit;
pub mod incoming;
pub mod keys;
mod link;
pub mod memory;
mod mixing;
pub mod network;
pub mod opt_outs;
mod outgoing;
pub mod publish;
pub mod retry;
pub mod room;
mod rotation;
pub mod sender;
mod start;
pub mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use clock::World;
pub use control::{KeyTimes, NodeControl, NodeStatus, Progress, Queues};
pub use counters::{Counters, Counts};
pub use exit::MailDelivery;
pub use opt_outs::NotOptedOut;
pub use publish::Publication;
pub use rotation::Discarded;
pub use start::{NO_DUMMIES, Node, NodeError, Parts, RunningNode, Sending, check, weaknesses};
