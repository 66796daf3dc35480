//! The deliveries of a lane that are under way beside each other. Each ends when it ends: one that a slow server draws out
//! keeps its own place and no other.

use std::collections::{HashMap, VecDeque};

use tokio::task::{Id, JoinError, JoinSet};
use tracing::error;

use crate::store::queue::{ExitId, ExitItem};

/// Deliveries at a time.
pub(super) const DELIVERIES: usize = 8;

/// What is under way, and what was read for the next places.
#[derive(Default)]
pub(super) struct Places {
    deliveries: JoinSet<()>,
    /// What each of them delivers.
    items: HashMap<Id, ExitId>,
    read: VecDeque<ExitItem>,
}

impl Places {
    /// Whether another delivery may begin.
    pub(super) fn has_room(&self) -> bool {
        self.deliveries.len() < DELIVERIES
    }

    /// What is under way.
    pub(super) fn under_way(&self) -> Vec<ExitId> {
        self.items.values().copied().collect()
    }

    /// Keeps what was read until there is a place for it.
    pub(super) fn keep(&mut self, read: Vec<ExitItem>) {
        self.read.extend(read);
    }

    /// Forgets what was read and not begun: it stays where it was.
    pub(super) fn forget(&mut self) {
        self.read.clear();
    }

    /// Begins what was read, as far as there are places.
    pub(super) fn begin<D: Future<Output = ()> + Send + 'static>(&mut self, deliver: impl Fn(ExitItem) -> D) {
        while self.has_room()
            && let Some(item) = self.read.pop_front()
        {
            let id = item.id;
            let delivery = self.deliveries.spawn(deliver(item));
            self.items.insert(delivery.id(), id);
        }
    }

    /// Waits for the end of one; for ever when there is none.
    pub(super) async fn one_ended(&mut self) {
        match self.deliveries.join_next_with_id().await {
            Some(ended) => self.ended(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits for the end of all.
    pub(super) async fn all_ended(&mut self) {
        while let Some(ended) = self.deliveries.join_next_with_id().await {
            self.ended(ended);
        }
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let delivery = match ended {
            Ok((delivery, ())) => delivery,
            Err(e) => {
                error!(panicked = e.is_panic(), "a delivery failed");
                e.id()
            }
        };
        self.items.remove(&delivery);
    }
}
