//! Mail that waits since its recipient, a domain or all have had enough: it is tried again when its time has come, or when the
//! operator lets more through.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{ExitService, Ways, durable, queue};
use crate::deliver::limits::LimitsConfig;
use crate::store::queue::ExitId;

/// Deliveries that are remembered to wait for a limit: a megabyte. Others wait until their time has come.
const MAX_WAITING: usize = 65_536;

/// Which deliveries wait for a limit. In memory alone, as what the limits have counted.
#[derive(Clone, Default)]
pub(in crate::node) struct OverLimits(Arc<Mutex<BTreeSet<ExitId>>>);

impl OverLimits {
    fn ids(&self) -> MutexGuard<'_, BTreeSet<ExitId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, id: ExitId) {
        let mut ids = self.ids();
        if ids.len() < MAX_WAITING {
            ids.insert(id);
        }
    }

    pub(super) fn remove(&self, id: ExitId) {
        self.ids().remove(&id);
    }

    fn take(&self) -> Vec<ExitId> {
        std::mem::take(&mut *self.ids()).into_iter().collect()
    }
}

impl Ways {
    /// The limits of all mail. `None`: none is delivered.
    pub(super) fn limits(&self) -> Option<LimitsConfig> {
        self.of_mail().into_iter().flatten().next().map(|way| way.limits.clone())
    }
}

impl ExitService {
    /// Limits that are wider than those that were `known` have what waits for them tried at once.
    pub(super) async fn look_at_the_limits(&self, known: &mut Option<LimitsConfig>) {
        let Some(limits) = self.ways.borrow().limits() else { return };
        let before = known.replace(limits.clone());
        if before.is_some_and(|before| limits.are_wider_than(&before)) {
            let (waiting, now): (_, SystemTime) = (self.over_limits.take(), self.even.now());
            durable::note(&self.db, &self.stop, move |tx| queue::bring_to(tx, &waiting, now)).await;
            self.bell.send_replace(());
        }
    }
}
