//! Connections that have handed over a mail and are kept for the next one: a call, a greeting and a login for each mail cost the
//! server more than the mail.
//!
//! Kept is only what has just taken a mail. What was refused something ends: servers count such things by the connection, and
//! a stranger has chosen the recipient.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{AsyncSmtpConnection, quit};

/// Mails by one connection, at most: as many as servers are glad to take. Some end it earlier, and no mail is the worse for it.
pub(super) const MAILS: u32 = 100;
/// How long one waits for the next mail. Those of a batch come at once, and who takes few at a time has places for others.
pub(super) const IDLE: Duration = Duration::from_secs(2);

/// Those to one server.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The one that has waited longest is the first.
    idle: Vec<Idle>,
    /// Whether somebody sees to it that none waits for too long.
    is_watched: bool,
    /// No more mail is to come.
    is_closed: bool,
}

struct Idle {
    connection: AsyncSmtpConnection,
    mails: u32,
    since: Instant,
}

impl Kept {
    /// The connection that has waited shortest, and how many mails it has taken.
    pub(super) fn take(&self) -> Option<(AsyncSmtpConnection, u32)> {
        self.state().idle.pop().map(|idle| (idle.connection, idle.mails))
    }

    /// Keeps a connection that has taken so many mails, or ends it.
    pub(super) async fn keep(&self, connection: AsyncSmtpConnection, mails: u32) {
        if let Some(mut connection) = self.put(connection, mails) {
            quit(&mut connection).await;
        }
    }

    /// Gives back what is not to be kept.
    fn put(&self, connection: AsyncSmtpConnection, mails: u32) -> Option<AsyncSmtpConnection> {
        let mut state = self.state();
        if state.is_closed || mails >= MAILS {
            return Some(connection);
        }
        state.idle.push(Idle { connection, mails, since: Instant::now() });
        if !mem::replace(&mut state.is_watched, true) {
            tokio::spawn(self.clone().watch());
        }
        None
    }

    /// Ends all that wait, and all that would from now on.
    pub(super) async fn close(&self) {
        let idle = {
            let mut state = self.state();
            state.is_closed = true;
            mem::take(&mut state.idle)
        };
        end(idle).await;
    }

    /// Ends each that has waited for too long, until none waits. What a reload leaves behind ends so, too.
    async fn watch(self) {
        while let Some(next) = self.next_end() {
            sleep_until(next).await;
            end(self.over()).await;
        }
    }

    /// When the next one has waited for too long. Without any nobody watches any more.
    fn next_end(&self) -> Option<Instant> {
        let mut state = self.state();
        let next = state.idle.first().map(|idle| idle.since + IDLE);
        state.is_watched = next.is_some();
        next
    }

    fn over(&self) -> Vec<Idle> {
        let (now, mut state) = (Instant::now(), self.state());
        let over = state.idle.iter().take_while(|idle| idle.since + IDLE <= now).count();
        state.idle.drain(..over).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says good-bye to all of them at once.
async fn end(idle: Vec<Idle>) {
    let mut ends = JoinSet::new();
    for Idle { mut connection, .. } in idle {
        ends.spawn(async move { quit(&mut connection).await });
    }
    ends.join_all().await;
}
