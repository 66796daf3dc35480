//! The demonstration: a directory, some mixes, a gateway and an outside world, all on loopback, in one process but over
//! real sockets. It fills the configuration that `mixgate run` reads from files, and starts it the same way.

mod correspondent;
mod network;
mod outside;
mod pop3;
mod state;
mod story;

pub(crate) use network::{Demo, Options};
pub(crate) use story::Story;
