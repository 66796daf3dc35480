//! Deliveries that go on beside each other, however long one of them takes: one that a slow server draws out keeps its own
//! place and no other.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};
use tracing::error;

use super::{
    DELIVERIES, DELIVERIES_APART, DELIVERIES_OF_OWNER, ExitService, LOAD, Lane, RetrySchedule, Verdict, queue,
};
use crate::node::durable;
use crate::path::Mailbox;
use crate::store::StoreError;
use crate::store::queue::{ExitId, apart};

/// What is being delivered. It stays in the queue for so long.
#[derive(Default)]
pub(super) struct UnderWay {
    tasks: JoinSet<()>,
    deliveries: HashMap<Id, ExitId>,
}

impl UnderWay {
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// What is under way.
    pub(super) fn ids(&self) -> Vec<ExitId> {
        self.deliveries.values().copied().collect()
    }

    /// Begins what is due and has a place. Says whether there was any.
    pub(super) async fn begin(&mut self, exit: &ExitService, lane: Lane) -> bool {
        let places = exit.places(lane).saturating_sub(self.tasks.len()).min(LOAD);
        if places == 0 || exit.holds(lane).is_some() {
            return false;
        }
        let (now, apart, under_way) = (exit.even.now(), exit.goes_apart(lane), self.ids());
        let due = durable::read(&exit.db, move |view| {
            if apart {
                apart::due_apart(view, now, &under_way, DELIVERIES_OF_OWNER, places)
            } else {
                queue::due_of(view, lane.which(), &under_way, now, places)
            }
        });
        let due = due.await.unwrap_or_else(|e| {
            error!(error = %e, "the exit queue cannot be read");
            Vec::new()
        });
        let any = !due.is_empty();
        for item in due {
            let (id, exit) = (item.id, exit.clone());
            exit.under_way().insert(id);
            let task = self.tasks.spawn(async move { exit.deliver(item).await });
            self.deliveries.insert(task.id(), id);
        }
        any
    }

    /// Waits until one of them has ended; `None` where there is none. Nothing is lost if it is not waited for to the end.
    pub(super) async fn one_ends(&mut self) -> Option<()> {
        let task = match self.tasks.join_next_with_id().await? {
            Ok((task, ())) => task,
            Err(e) => {
                error!(panicked = e.is_panic(), "a delivery failed");
                e.id()
            }
        };
        self.deliveries.remove(&task);
        Some(())
    }

    /// Waits until all have ended.
    pub(super) async fn end(&mut self) {
        while self.one_ends().await.is_some() {}
    }
}

impl ExitService {
    /// Deliveries at a time.
    fn places(&self, lane: Lane) -> usize {
        if self.goes_apart(lane) { DELIVERIES_APART } else { DELIVERIES }
    }

    /// Whether another delivery may begin.
    pub(super) fn has_places(&self, lane: Lane, under_way: &UnderWay) -> bool {
        under_way.tasks.len() < self.places(lane)
    }

    /// Ends the connections that were kept for more mail.
    pub(super) async fn leave_servers(&self) {
        let ways = self.ways.borrow().of_mail();
        let ends: JoinSet<()> = ways.into_iter().flatten().map(|way| async move { way.out.close().await }).collect();
        ends.join_all().await;
    }

    /// Makes it a delivery for each of its recipients.
    pub(super) async fn split(&self, id: ExitId, recipients: Vec<Mailbox>) -> Verdict {
        let _nothing_is_dropped_meanwhile = self.dropping.lock().await;
        match durable::write(&self.db, move |tx| apart::split(tx, id, &recipients)).await {
            // Or the operator has dropped it meanwhile.
            Ok(()) | Err(StoreError::Missing { .. }) => Verdict::Untried,
            Err(e) => {
                error!(error = %e, "a message for several cannot be made one for each");
                Verdict::Later(RetrySchedule::every_minute_for_a_day())
            }
        }
    }
}
