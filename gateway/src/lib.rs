//! The assembly: one process that plays whichever of the roles gateway, node and directory its configuration enables.
//!
//! `mixgate run` and `mixgate demo` both end in [`Gateway::start`], and so do the tests.

pub mod accounts;
pub mod commands;
pub mod config;
mod demo;
mod doors;
pub mod log;
pub mod passphrase;
mod start;

pub use config::Config;
pub use start::{Gateway, Running, StartError};
