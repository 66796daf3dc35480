//! The runs that are looked into.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::run::{Run, RunId};
use crate::crypto::Digest;
use crate::store::db::StoreError;

/// All runs, from the oldest to the newest. Whoever looks keeps them from changing: when [`Shelf::replace`] has returned,
/// nobody looks into what it took away, and it may be overwritten.
#[derive(Default)]
pub(super) struct Shelf(RwLock<Vec<Arc<Run>>>);

impl Shelf {
    /// Whether an entry is in a run.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn holds(&self, packet_key: &Digest, hash: &Digest) -> Result<bool, StoreError> {
        // The oldest first: it has at least half of all entries.
        for run in self.runs().iter().filter(|run| run.packet_key() == packet_key) {
            if run.holds(hash)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The runs of a packet key, from the oldest to the newest.
    pub(super) fn of(&self, packet_key: &Digest) -> Vec<Arc<Run>> {
        self.runs().iter().filter(|run| run.packet_key() == packet_key).cloned().collect()
    }

    pub(super) fn get(&self, id: RunId) -> Option<Arc<Run>> {
        self.runs().iter().find(|run| run.id() == id).cloned()
    }

    /// The packet keys that have runs, each once for every run.
    pub(super) fn packet_keys(&self) -> Vec<Digest> {
        self.runs().iter().map(|run| *run.packet_key()).collect()
    }

    /// Blocks of all filters but those of `without`.
    pub(super) fn blocks(&self, without: &[Arc<Run>]) -> usize {
        self.runs().iter().filter(|run| !among(without, run)).map(|run| run.blocks()).sum()
    }

    /// Takes `gone` away and puts `come` in their place, at once.
    pub(super) fn replace(&self, gone: &[Arc<Run>], come: Option<Arc<Run>>) {
        let mut runs = self.runs_mut();
        runs.retain(|run| !among(gone, run));
        runs.extend(come);
    }

    fn runs(&self) -> RwLockReadGuard<'_, Vec<Arc<Run>>> {
        // Nothing panics while it is half changed.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn runs_mut(&self) -> RwLockWriteGuard<'_, Vec<Arc<Run>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn among(runs: &[Arc<Run>], run: &Run) -> bool {
    runs.iter().any(|other| other.id() == run.id())
}
