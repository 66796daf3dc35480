//! The Type III (Mixminion) core: packets, payloads, paths, directories, stores, network, node.
//!
//! Four floors, arrows only downwards (ARCHITECTURE.md): the pure formats, the stores, the network, the services.
//! The feature `node`, on by default, brings floors 2 and 3 with tokio and TLS; without it floors 0 and 1 remain.

// Floor 0: pure. No clock, no global randomness, no files, no sockets.
pub mod batch;
pub mod crypto;
pub mod directory;
pub mod mmtp;
pub mod packet;
pub mod path;
pub mod payload;
pub mod secret;

// Floor 1: stores, synchronous; and what settings may say.
#[cfg(feature = "node")]
pub mod settings;
pub mod store;

// Floor 2: network and delivery.
#[cfg(feature = "node")]
pub mod deliver;
#[cfg(feature = "node")]
pub mod net;

// Floor 3: services.
#[cfg(feature = "node")]
pub mod node;
