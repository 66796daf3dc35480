//! The network: TLS links between mixes, the listener that takes packets, the client that hands them on.
//!
//! What is said over a link is `crate::mmtp`'s; here are the sockets, the time limits and the proof of who is there.

pub mod addresses;
pub mod bandwidth;
pub mod connect;
pub mod descriptors;
pub mod fetch;
pub mod guard;
pub mod listen;
pub mod loopback;
pub mod resolve;
pub(crate) mod seats;
pub mod sockets;
pub mod tls;
pub mod trouble;
mod writing;
