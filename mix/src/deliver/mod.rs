//! Leaving the network: what an exit hands to people outside it.
//!
//! `mail` writes a message as a mail, which `dkim` signs; `smtp` gives the mail to a server, through the proxy of `socks`
//! where there is one, `mx` to a server of the recipient's domain, `sendmail` to a program, `maildir` puts it into a folder;
//! `mbox` knows the exit's own users, `refusals` who gets no mail, `opt_out` how somebody asks for that
//! and `limits` who has had enough for now. When to deliver, and how often to try again, is `crate::node`'s to say.

pub mod dkim;
pub mod limits;
pub mod list;
pub mod mail;
pub mod maildir;
pub mod mbox;
pub mod mx;
pub mod opt_out;
pub mod refusals;
pub mod sendmail;
pub mod smtp;
pub mod socks;
