//! The door that mail enters by: an SMTP submission server for the user's own mail client.
//!
//! `session` is the protocol as a step machine, `server` the socket loop that drives it. `recipient` says where an
//! address leads, `scrub` (with `charset` and `html`) what of a mail may travel, `intake` makes the two into what `mix::store::outbox`
//! keeps, `policy` has the limits and what the house must provide. Packing and sending is `mix`'s.

mod charset;
mod data;
mod html;
mod intake;

pub mod config;
pub mod error;
pub mod policy;
pub mod recipient;
pub mod scrub;
pub mod server;
pub mod session;

pub use config::SmtpConfig;
pub use policy::{Accounts, Asked, Attachments, Exits, House, NoExit, Outbox, Policy};
pub use server::Server;
