//! The service manager: says when the program is ready, reloads, stops and lives, and takes over the sockets that it
//! holds open (sd_notify(3), sd_listen_fds(3)). Without a service manager none of this does anything.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use listenfd::ListenFd;
use mix::net::sockets::Inherited;
use sd_notify::NotifyState;
use tracing::warn;

/// Why the sockets cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// What was handed over is no TCP socket that listens.
    #[error("socket {number} of the service manager is not a TCP socket that listens")]
    Unfit {
        /// Which, from 1.
        number: usize,
        /// What the system says.
        source: io::Error,
    },
    /// No door listens at its address.
    #[error("the service manager holds a socket at {}, where nothing of this configuration listens", list(addresses))]
    Left {
        /// Its address, and those of others like it.
        addresses: Vec<SocketAddr>,
    },
}

fn list(addresses: &[SocketAddr]) -> String {
    let mut text = String::new();
    for address in addresses {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing into a text does not fail.
        let _ = write!(text, "{separator}{address}");
    }
    text
}

/// Takes over the sockets that the environment announces. Call it before there are threads: it changes the
/// environment, so that no other program takes the announcement for its own.
///
/// # Errors
/// [`SocketError::Unfit`].
pub fn sockets() -> Result<Inherited, SocketError> {
    let mut announced = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..announced.len() {
        let unfit = |source| SocketError::Unfit { number: index + 1, source };
        sockets.extend(announced.take_tcp_listener(index).map_err(unfit)?);
    }
    Ok(Inherited::new(sockets))
}

/// The program is up.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The program reads its configuration again; [`ready`] says that it is done.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(e) => warn!(error = %e, "the service manager was not told of the reload"),
    }
}

/// The program ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The program lives.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often the service manager wants to hear that the program lives; `None` when it does not.
pub fn watchdog() -> Option<Duration> {
    // As sd_watchdog_enabled(3) advises: twice in the time that it waits.
    sd_notify::watchdog_enabled().map(|patience| patience / 2).filter(|period| !period.is_zero())
}

fn tell(news: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(news) {
        warn!(error = %e, "the service manager does not listen");
    }
}
