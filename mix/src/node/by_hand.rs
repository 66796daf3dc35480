//! The exit queue by the operator's hand, in a node that runs and beside one that does not.
//!
//! What is shown tells of no recipient, no content and no arrival: sizes are rounded up to powers of two, and waits to
//! quarters of an hour, since the first try of a delivery was when it came. Deliveries that are under way go on; what they
//! find changed at their end is no error.

use std::cmp::Reverse;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::clock::{Even, World};
use super::counters::Counters;
use super::durable;
use super::exit::{Domains, MailServer};
use crate::packet::RoutingType;
use crate::store::queue::exit;
use crate::store::queue::hand::{self, Count, Waiting};
pub use crate::store::queue::hand::{Chosen, InvalidLabel, Label};
use crate::store::{Db, NODE_SCHEMAS, StoreError};

/// Deliveries listed at a time: an answer of the control socket has at most a megabyte, and a screen has fewer.
const LISTED: usize = 1000;
/// Deliveries dropped in one step: others wait for the writer too.
const DROPPED: usize = 500;
/// Waits are shown in whole ones of these.
const WAIT_STEP: Duration = Duration::from_secs(15 * 60);
/// The least size that is shown: a packet's.
const LEAST_SIZE: u64 = 32 * 1024;

/// What is to become of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// They are not tried until they are released.
    Hold,
    /// They are tried again when it is their time.
    Release,
    /// They are given up.
    Drop,
    /// They are tried now, unless they are held.
    Flush,
}

/// What a delivery waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// To be tried now.
    Due,
    /// For its next try.
    Waiting,
    /// To be released.
    Held,
}

/// A delivery as it may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What it is known by.
    pub label: Label,
    /// How to deliver it.
    pub exit_type: RoutingType,
    /// Octets, rounded up to a power of two, a packet at least.
    pub size: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// How long until the next try, rounded up to quarters of an hour. `None`: it is due, or held.
    pub wait: Option<Duration>,
    /// What it waits for.
    pub state: State,
}

/// What waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// In order: held, due, waiting; a thousand at most.
    pub deliveries: Vec<Listed>,
    /// How many there are beside these.
    pub more: u64,
}

/// How many deliveries of one type are in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// How to deliver them.
    pub exit_type: RoutingType,
    /// What they wait for.
    pub state: State,
    /// How many there are.
    pub count: u64,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum NotChanged {
    /// It was delivered or dropped, or never there.
    #[error("no delivery {0} waits: it is over, or was never there")]
    NotThere(Label),
    /// The store.
    #[error("the exit queue")]
    Store(#[from] StoreError),
}

/// The exit queue of a node.
#[derive(Clone)]
pub struct ExitQueue {
    db: Db,
    world: World,
    even: Even,
    running: Option<Running>,
}

/// What the service that delivers is told by.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) bell: watch::Sender<()>,
    pub(super) server: Arc<Mutex<MailServer>>,
    pub(super) domains: Arc<Mutex<Domains>>,
    pub(super) dropping: Arc<Dropping>,
    pub(super) counters: Counters,
}

/// Held for as long as something is dropped, which takes many steps: what is there at the first is gone after the last.
pub(super) type Dropping = tokio::sync::Mutex<()>;

impl ExitQueue {
    /// Whether a node has run at `home`.
    pub fn is_at(home: &Path) -> bool {
        super::start::database(home).exists()
    }

    /// That of the node at `home`, which must not run: whoever calls has its lock.
    ///
    /// # Errors
    /// [`StoreError`], as [`Db::open`].
    pub fn open(home: &Path, world: World) -> Result<Self, StoreError> {
        let db = Db::open(&super::start::database(home), &NODE_SCHEMAS)?;
        let even = Even::set(world.now());
        Ok(Self { db, world, even, running: None })
    }

    /// That of the service that delivers, whose clock this is.
    pub(super) fn of(db: Db, world: World, even: Even, running: Running) -> Self {
        Self { db, world, even, running: Some(running) }
    }

    /// What waits. Labels what has no label yet.
    ///
    /// # Errors
    /// What the database says.
    pub async fn list(&self) -> Result<Listing, StoreError> {
        let look = |view: &crate::store::View<'_>| Ok((hand::list(view, LISTED)?, exit::count(view)?));
        let (waiting, all) = durable::read(&self.db, look).await?;
        let mut dice = self.world.dice();
        let mut draw = || {
            let mut octets = [0; 8];
            dice.fill_bytes(&mut octets);
            Label::new(octets)
        };
        let fresh: Vec<_> = waiting.into_iter().map(|it| (it, draw())).collect();
        let label = move |tx: &crate::store::Tx<'_>| {
            let mut labelled = Vec::new();
            for (it, fresh) in fresh {
                let known = it.label.map_or_else(|| hand::label(tx, it.id, fresh), |known| Ok(Some(known)))?;
                // It may be over by now.
                labelled.extend(known.map(|label| (label, it)));
            }
            Ok(labelled)
        };
        let labelled = durable::write(&self.db, label).await?;
        let now = self.even.now();
        let more = all.saturating_sub(labelled.len() as u64);
        let mut deliveries: Vec<_> = labelled.into_iter().map(|(label, it)| listed(label, it, now)).collect();
        // By what is shown alone: the order of the rows is that in which they came.
        deliveries.sort_by_key(|it| (it.state != State::Held, it.wait, Reverse(it.attempts), it.label));
        Ok(Listing { deliveries, more })
    }

    /// How many wait, by type and state.
    ///
    /// # Errors
    /// What the database says.
    pub async fn counts(&self) -> Result<Vec<Counted>, StoreError> {
        let now = self.even.now();
        let counts = durable::read(&self.db, move |view| hand::counts(view, now)).await?;
        let counted = |Count { exit_type, held, due, count }| Counted { exit_type, state: state(held, due), count };
        Ok(counts.into_iter().map(counted).collect())
    }

    /// Changes those chosen, and says how many: of those to be held or released, how many were not so before. In a node
    /// that runs, those to be tried are tried at once, even if the mail server was away.
    ///
    /// # Errors
    /// [`NotChanged`].
    pub async fn change(&self, chosen: Chosen, change: Change) -> Result<u64, NotChanged> {
        if let Chosen::One(label) = chosen
            && !durable::read(&self.db, move |view| hand::is_there(view, label)).await?
        {
            return Err(NotChanged::NotThere(label));
        }
        let now = self.even.now();
        Ok(match change {
            Change::Hold => durable::write(&self.db, move |tx| hand::hold(tx, chosen, true)).await?,
            Change::Release => {
                let released = durable::write(&self.db, move |tx| hand::hold(tx, chosen, false)).await?;
                self.ring();
                released
            }
            Change::Flush => {
                let due = durable::write(&self.db, move |tx| hand::flush(tx, chosen, now)).await?;
                if let Some(running) = &self.running {
                    running.server.lock().unwrap_or_else(PoisonError::into_inner).is_there();
                    running.domains.lock().unwrap_or_else(PoisonError::into_inner).forget();
                }
                self.ring();
                due
            }
            Change::Drop => self.drop_all(chosen).await?,
        })
    }

    async fn drop_all(&self, chosen: Chosen) -> Result<u64, StoreError> {
        let _nothing_is_split_meanwhile = match &self.running {
            Some(running) => Some(running.dropping.lock().await),
            None => None,
        };
        let Some(last) = durable::read(&self.db, hand::last).await? else { return Ok(0) };
        let mut dropped = 0;
        loop {
            let more = durable::write(&self.db, move |tx| hand::drop(tx, chosen, last, DROPPED)).await?;
            dropped += more;
            if let Some(running) = &self.running {
                running.counters.undeliverable(more);
            }
            if more < DROPPED as u64 {
                return Ok(dropped);
            }
        }
    }

    fn ring(&self) {
        if let Some(running) = &self.running {
            running.bell.send_replace(());
        }
    }
}

impl std::fmt::Debug for ExitQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExitQueue(..)")
    }
}

fn state(held: bool, due: bool) -> State {
    match (held, due) {
        (true, _) => State::Held,
        (false, true) => State::Due,
        (false, false) => State::Waiting,
    }
}

fn listed(label: Label, it: Waiting, now: SystemTime) -> Listed {
    let left = it.next_attempt.duration_since(now).ok().filter(|left| !left.is_zero());
    let state = state(it.held, left.is_none());
    let steps =
        left.filter(|_| state == State::Waiting).map(|left| left.as_secs().div_ceil(WAIT_STEP.as_secs()).max(1));
    Listed {
        label,
        exit_type: it.exit_type,
        size: it.message_len.unwrap_or(0).max(LEAST_SIZE).next_power_of_two(),
        attempts: it.attempts,
        wait: steps.map(|steps| WAIT_STEP.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))),
        state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing::{noon, noon_world};
    use crate::store::queue::exit::{due, insert_message, postpone};

    fn queue() -> (tempfile::TempDir, ExitQueue) {
        let home = tempfile::tempdir().unwrap();
        let queue = ExitQueue::open(&home.path().join("node"), noon_world(0x6861_6e64)).unwrap();
        (home, queue)
    }

    fn message(queue: &ExitQueue, len: usize) {
        queue.db.write(move |tx| insert_message(tx, RoutingType::SMTP, b"bob@example.org", &vec![0; len])).unwrap();
    }

    #[tokio::test]
    async fn listing_tells_neither_when_a_delivery_came_nor_how_long_it_is() {
        let (_home, queue) = queue();
        for len in [1, 33_000, 1_000_000] {
            message(&queue, len);
        }
        let ids: Vec<_> = queue.db.read(|view| due(view, noon(), 9)).unwrap().iter().map(|item| item.id).collect();
        let waits = [(ids[0], 61), (ids[1], 1000), (ids[2], 7 * 3600)];
        for (id, seconds) in waits {
            let until = noon() + Duration::from_secs(seconds);
            queue.db.write(move |tx| postpone(tx, id, until)).unwrap();
        }
        let Listing { deliveries, more } = queue.list().await.unwrap();
        let shown: Vec<_> = deliveries.iter().map(|it| (it.size >> 10, it.wait.unwrap().as_secs() / 60)).collect();
        assert_eq!((shown, more), (vec![(32, 15), (64, 30), (1024, 420)], 0));
        assert!(deliveries.iter().all(|it| it.attempts == 1 && it.state == State::Waiting));
        assert_eq!(queue.list().await.unwrap().deliveries, deliveries, "the labels stay");
        // Alike in all that is shown, they stand in the order of their labels, which is by chance.
        for id in ids {
            queue.db.write(move |tx| postpone(tx, id, noon() + Duration::from_secs(3600))).unwrap();
        }
        let labels: Vec<_> = queue.list().await.unwrap().deliveries.iter().map(|it| it.label).collect();
        assert!(labels.is_sorted(), "{labels:?}");
    }

    #[tokio::test]
    async fn delivery_that_is_not_there_is_named_and_no_other_changes() {
        let (_home, queue) = queue();
        message(&queue, 1);
        let known = queue.list().await.unwrap().deliveries[0].label;
        let unknown: Label = "0123456789abcdef".parse().unwrap();
        for change in [Change::Hold, Change::Release, Change::Drop, Change::Flush] {
            let refused = queue.change(Chosen::One(unknown), change).await.unwrap_err();
            assert!(matches!(refused, NotChanged::NotThere(label) if label == unknown), "{refused:?}");
        }
        assert_eq!(queue.change(Chosen::One(known), Change::Hold).await.unwrap(), 1);
        assert_eq!(queue.change(Chosen::One(known), Change::Drop).await.unwrap(), 1);
        assert!(matches!(queue.change(Chosen::One(known), Change::Drop).await, Err(NotChanged::NotThere(_))));
    }

    #[tokio::test]
    async fn all_are_dropped_however_many_and_more_than_a_screen_are_counted() {
        let (_home, queue) = queue();
        let many = LISTED + 7;
        let insert = move |tx: &crate::store::Tx<'_>| {
            (0..many).try_for_each(|_| insert_message(tx, RoutingType::MBOX, b"frida", b"text").map(drop))
        };
        queue.db.write(insert).unwrap();
        let Listing { deliveries, more } = queue.list().await.unwrap();
        assert_eq!((deliveries.len(), more), (LISTED, 7));
        assert_eq!(queue.change(Chosen::Of(RoutingType::SMTP), Change::Drop).await.unwrap(), 0);
        let all = Counted { exit_type: RoutingType::MBOX, state: State::Due, count: many as u64 };
        assert_eq!(queue.counts().await.unwrap(), [all]);
        assert_eq!(queue.change(Chosen::All, Change::Drop).await.unwrap(), many as u64);
        assert_eq!(queue.counts().await.unwrap(), []);
        assert_eq!(queue.change(Chosen::All, Change::Drop).await.unwrap(), 0);
    }
}
