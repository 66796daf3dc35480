//! What proofs and deliveries tell each other of the way that e-mail leaves by, and of the folders of users.
//!
//! A delivery that fails puts a way in doubt: a proof is due. A proof that succeeds after that has the mail tried that waits
//! for the way. Each such try counts as any other, so it must not come of every proof: what waits for a time of its own
//! keeps it, and a server that proves well and takes no mail is believed a few times only.

use std::collections::BTreeSet;
use std::mem;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

use super::{ExitService, Which, queue};
use crate::node::durable;

/// The ends of it.
#[derive(Clone, Default)]
pub(in crate::node) struct Word {
    /// Rung when no mail is taken.
    pub(super) mail_is_away: watch::Sender<()>,
    /// Rung when a folder of a user takes none.
    pub(super) folder_is_away: watch::Sender<()>,
    shown: watch::Sender<Shown>,
}

/// What proofs of the way of e-mail have shown.
#[derive(Clone, Copy, Default)]
struct Shown {
    /// How often that it is there, where that was in doubt.
    again: u64,
    /// Whether it came to be there, in a process that began without it.
    at_last: bool,
}

/// What proofs have shown since somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It is there, where that was in doubt.
    Again,
    /// It is, for the first time in this process, and was not at first.
    AtLast,
}

/// What somebody has heard of that.
pub(super) struct Heard {
    shown: watch::Receiver<Shown>,
    before: Shown,
}

impl Word {
    /// A proof shows that mail is taken, which was in doubt; and that for the first time in this process, if it is `at_last`.
    pub(super) fn mail_is_there(&self, at_last: bool) {
        self.shown.send_modify(|shown| {
            shown.again += 1;
            shown.at_last |= at_last;
        });
    }

    /// What comes from now on is news.
    pub(super) fn listen(&self) -> Heard {
        let shown = self.shown.subscribe();
        let before = *shown.borrow();
        Heard { shown, before }
    }
}

impl Heard {
    /// Waits for news.
    pub(super) async fn changed(&mut self) -> Result<(), RecvError> {
        self.shown.changed().await
    }

    /// What is new.
    pub(super) fn look(&mut self) -> Option<News> {
        let shown = *self.shown.borrow_and_update();
        let before = mem::replace(&mut self.before, shown);
        (shown.again != before.again).then_some(if shown.at_last == before.at_last {
            News::Again
        } else {
            News::AtLast
        })
    }
}

impl ExitService {
    /// What waits for a way that is there again, as a proof has shown, is tried now.
    pub(super) async fn hear(&self, heard: &mut Heard) {
        let (Some(news), now) = (heard.look(), self.even.now()) else { return };
        if news == News::AtLast {
            // What an earlier run has put off, nobody remembers why. That is so once in a process.
            self.server().is_there();
            self.domains().forget();
            durable::note(&self.db, &self.stop, move |tx| queue::try_now(tx, Which::Mail, now)).await;
            return;
        }
        // Away domains may have been so for what has kept the proof from succeeding, too.
        let until: BTreeSet<SystemTime> = self.server().wakes().into_iter().chain(self.domains().wake()).collect();
        durable::note(&self.db, &self.stop, move |tx| {
            until.iter().try_for_each(|until| queue::try_what_waits(tx, Which::Mail, *until, now))
        })
        .await;
    }
}
