//! The Mixminion Transfer Protocol, by which packets go from mix to mix (minion-spec 4), as two step machines:
//! octets in, steps out.
//!
//! `server` takes packets, `client` sends them, `frame` is what both have in common. There is no socket, no TLS and no
//! clock here: those are `crate::net`'s, which drives these machines, as do their tests.

pub mod client;
pub mod frame;
pub mod server;

pub use client::ClientSession;
pub use frame::PeerMisbehaved;
pub use server::{ServerSession, Ticket};
