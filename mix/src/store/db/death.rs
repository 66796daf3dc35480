//! Lets a database die at a commit, as a kill of the process would: what was committed is on disk, what was not is gone, and
//! nobody hears anything any more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Connection, held};

/// When a commit is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// It does not come about.
    BeforeCommit,
    /// It does, but nobody hears of it.
    AfterCommit,
}

/// The death of one database.
#[derive(Debug)]
pub(crate) struct Death {
    moment: Moment,
    /// Commits that are left.
    left: Mutex<u64>,
}

impl Death {
    /// Whether it has come.
    pub(crate) fn has_come(&self) -> bool {
        *held(&self.left) == 0
    }
}

static PLANNED: Mutex<BTreeMap<PathBuf, Arc<Death>>> = Mutex::new(BTreeMap::new());

/// Lets the database at `path`, not open yet, die at its commit of this number, from 1.
pub(crate) fn plan(path: &Path, commit: u64, moment: Moment) -> Arc<Death> {
    let death = Arc::new(Death { moment, left: Mutex::new(commit) });
    held(&PLANNED).insert(path.to_owned(), Arc::clone(&death));
    death
}

/// Lets the database at `path` live on when it is opened again.
pub(crate) fn cancel(path: &Path) {
    held(&PLANNED).remove(path);
}

pub(super) fn is_dead(writer: &Connection) -> bool {
    planned(writer).is_some_and(|death| death.has_come())
}

pub(super) fn strikes(writer: &Connection, moment: Moment) -> bool {
    let Some(death) = planned(writer).filter(|death| death.moment == moment) else { return false };
    let mut left = held(&death.left);
    *left = left.saturating_sub(1);
    *left == 0
}

fn planned(writer: &Connection) -> Option<Arc<Death>> {
    held(&PLANNED).get(Path::new(writer.path()?)).cloned()
}
