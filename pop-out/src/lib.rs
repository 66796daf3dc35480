//! The door that mail leaves by: what arrived for the user's identities is decoded, put into their maildrops, and read
//! from there over POP3.
//!
//! How it arrived is not known here, nor who may log in: the gateway hands both in.

pub mod collector;
pub mod config;
pub mod maildir;
pub mod maildrop;
pub mod open;
pub mod pop3;
pub mod render;
pub mod report;
pub mod server;
