//! The assembly: one process that plays whichever of the roles gateway, node and directory its configuration enables.
//!
//! `mixgate run` and `mixgate demo` both end in [`Gateway::start`], and so do the tests.

pub mod accounts;
pub mod check;
pub mod commands;
pub mod config;
pub mod control;
mod demo;
mod doors;
pub mod lock;
pub mod log;
mod metrics;
mod opt_out;
pub mod passphrase;
mod queue;
mod service;
mod start;
mod status;
pub mod systemd;

pub use config::Config;
pub use start::{Gateway, Running, StartError};
