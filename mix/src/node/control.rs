//! What the operator may ask of a node that runs, and what of it may change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};

use super::clock::World;
use super::config::{NodeConfig, OutgoingConfig, StatsConfig};
use super::counters::Counters;
use super::describe::{self, Descriptors};
use super::durable;
use super::exit::{MessageIds, Ways};
use super::keys::KeyPlan;
use super::mixing::Rhythm;
use super::publish::{Desk, Publication};
use super::rotation::{self, Discarded, SharedKeyring, Wish};
use super::start::{NodeError, rhythm, ways};
use super::stats::{Report, Statistics, rounded};
use crate::crypto::KeyId;
use crate::deliver::mbox::LocalMailboxes;
use crate::directory::{Descriptor, Nickname};
use crate::store::inbox::Arrival;
use crate::store::queue::{exit, incoming, outgoing, pool};
use crate::store::{Db, StoreError, View};

/// How long the store may take to show that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// A handle on a node that runs; clones share it.
#[derive(Clone)]
pub struct NodeControl(pub(super) Arc<Inner>);

pub(super) struct Inner {
    /// Never empty; the first is the one that others are told.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) keyring: SharedKeyring,
    pub(super) wishes: mpsc::Sender<Wish>,
    pub(super) config: watch::Sender<Arc<NodeConfig>>,
    pub(super) descriptors: watch::Receiver<Arc<Descriptors>>,
    pub(super) db: Db,
    pub(super) counters: Counters,
    pub(super) world: World,
    pub(super) mailboxes: Option<Arc<dyn LocalMailboxes<Arrival>>>,
    pub(super) message_ids: MessageIds,
    pub(super) desk: Arc<Desk>,
    pub(super) statistics: Option<Statistics>,
    pub(super) changes: Changes,
}

/// The ends from which services get what changes.
pub(super) struct Changes {
    pub(super) rhythm: watch::Sender<Rhythm>,
    pub(super) outgoing: watch::Sender<OutgoingConfig>,
    pub(super) ways: watch::Sender<Ways>,
    pub(super) stats: watch::Sender<StatsConfig>,
}

/// The days between which a packet key is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTimes {
    /// From this midnight on.
    pub valid_after: SystemTime,
    /// Until this one.
    pub valid_until: SystemTime,
}

/// How many packets wait, rounded up to thousands, none included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// To be unwrapped.
    pub incoming: u64,
    /// In the pool.
    pub pool: u64,
    /// For other mixes.
    pub outgoing: u64,
    /// For delivery.
    pub exit: u64,
}

/// What a node says of itself to its operator.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// What people call it.
    pub nickname: String,
    /// The digest of its identity key.
    pub key_id: KeyId,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// Where others connect to: host and port.
    pub published: Option<String>,
    /// The newest first.
    pub packet_keys: Vec<KeyTimes>,
    /// What the directory server last said.
    pub publication: Publication,
    /// What waits; `None` when the store does not say.
    pub queues: Option<Queues>,
}

/// What a watchdog saw of the workers, to compare the next look with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// `None`: no worker had anything to do.
    pulse: Option<u64>,
}

impl NodeControl {
    /// What it says of itself.
    pub async fn status(&self) -> NodeStatus {
        let Inner { addresses, descriptors, db, desk, .. } = &*self.0;
        let all = Arc::clone(&descriptors.borrow());
        let descriptor = &all.current;
        let times = |stated: &describe::Stated| KeyTimes {
            valid_after: stated.descriptor.valid_after(),
            valid_until: stated.descriptor.valid_until(),
        };
        let published = descriptor.route().map(|route| format!("{}:{}", route.host, route.port));
        let queues = durable::read(db, queues).await.ok();
        NodeStatus {
            nickname: descriptor.nickname().to_string(),
            key_id: descriptor.key_id(),
            addresses: addresses.clone(),
            published,
            packet_keys: all.all.iter().rev().map(times).collect(),
            publication: desk.publication(),
            queues,
        }
    }

    /// What may be shown of the statistics; `None` when none are kept.
    pub fn report(&self) -> Option<Report> {
        self.0.statistics.as_ref().map(Statistics::report)
    }

    /// What it says of itself to others now.
    pub fn descriptor(&self) -> Arc<Descriptor> {
        Arc::clone(&self.0.descriptors.borrow().current)
    }

    /// All that it says of itself, now and later; changes when keys or settings do.
    pub fn descriptors(&self) -> watch::Receiver<Arc<Descriptors>> {
        self.0.descriptors.clone()
    }

    /// Takes other settings for keys and descriptors: those that the descriptors state are signed and published again,
    /// with the same keys, if they have changed; `node.keys` holds for keys to come, its overlap for all, and whether
    /// keys are sealed is a matter of the start. Signs a descriptor for the check, so call it where that may take a
    /// moment. Rules about addresses are obeyed, and so published, as they were at the start.
    ///
    /// # Errors
    /// [`NodeError`] for settings that cannot be taken; nothing changes then. The nickname is one of them.
    pub fn reconfigure(&self, config: &NodeConfig) -> Result<(), NodeError> {
        KeyPlan::new(&config.keys)?;
        let known = self.descriptor().nickname().clone();
        if config.nickname.parse::<Nickname>()? != known {
            return Err(NodeError::Renamed { known });
        }
        let Inner { keyring, world, addresses, .. } = &*self.0;
        let port = addresses.first().map_or(0, SocketAddr::port);
        describe::check(config, port, &rotation::held(keyring), world.now(), &mut world.dice())?;
        let start = Arc::clone(&self.0.config.borrow());
        // Its folder was chosen at the start; and rules are published as its sockets obey them, which is since then.
        let (home, incoming) = (start.home.clone(), start.incoming.clone());
        let mut config = NodeConfig { home, incoming, ..config.clone() };
        config.outgoing.access = start.outgoing.access.clone();
        self.0.config.send_replace(Arc::new(config));
        Ok(())
    }

    /// Returns when keys and descriptors are as the settings in force want them, those of a [`NodeControl::apply`] before.
    ///
    /// # Errors
    /// Why they are not; it is tried again each minute.
    pub async fn settled(&self) -> Result<(), NodeError> {
        self.wish(Wish::Look).await
    }

    /// Erases the packet keys that have not begun, and their descriptors, and makes others by the settings in force.
    ///
    /// # Errors
    /// [`NodeError`]; what is missing then is made within a minute.
    pub async fn discard_keys_ahead(&self) -> Result<Discarded, NodeError> {
        self.wish(Wish::DiscardAhead).await
    }

    async fn wish<T>(&self, wish: impl FnOnce(oneshot::Sender<Result<T, NodeError>>) -> Wish) -> Result<T, NodeError> {
        let (answer, answered) = oneshot::channel();
        // Nobody answers when the node is stopping.
        let stopping = || NodeError::Store(StoreError::Closed);
        self.0.wishes.send(wish(answer)).await.map_err(|_| stopping())?;
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Uploads the descriptors again and returns what the directory server said.
    pub async fn publish_again(&self) -> Publication {
        self.0.desk.publish_again().await
    }

    /// Lets all that can change while the node runs be as in `config`: when packets leave and which, the schedules of
    /// retries, how mail is delivered, how long fragments are kept, the interval of the statistics, and all of
    /// [`NodeControl::reconfigure`]. The rest of
    /// `config` is not looked at; who calls knows what it was.
    ///
    /// # Errors
    /// [`NodeError`], as at a start; nothing has changed then.
    pub fn apply(&self, config: &NodeConfig) -> Result<(), NodeError> {
        let Inner { mailboxes, message_ids, changes, .. } = &*self.0;
        let (rhythm, ways) = (rhythm(config)?, ways(config, mailboxes.clone(), message_ids)?);
        self.reconfigure(config)?;
        changes.rhythm.send_if_modified(|old| replace(old, rhythm));
        changes.outgoing.send_if_modified(|old| replace(old, config.outgoing.clone()));
        changes.stats.send_if_modified(|old| replace(old, config.stats.clone()));
        changes.ways.send_replace(ways);
        Ok(())
    }

    /// Whether the node does what it should: its store answers, and none of its workers has been at one
    /// thing since `before`. A store that refuses to write for want of space is no reason to kill the process; one that
    /// does not answer is.
    pub async fn progress(&self, before: &mut Progress) -> bool {
        let Inner { db, counters, .. } = &*self.0;
        // An empty step: it waits its turn behind all others, and writes nothing.
        let answers = tokio::time::timeout(SIGN_OF_LIFE, durable::write(db, |_| Ok(()))).await;
        let now = Progress { pulse: counters.pulse() };
        let stuck = now.pulse.is_some() && now == std::mem::replace(before, now);
        let answers = !matches!(answers, Err(_) | Ok(Err(StoreError::Closed)));
        answers && !stuck
    }
}

impl std::fmt::Debug for NodeControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NodeControl").field(&self.0.addresses).finish()
    }
}

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}

fn queues(view: &View<'_>) -> Result<Queues, StoreError> {
    Ok(Queues {
        incoming: rounded(incoming::count(view)?),
        pool: rounded(pool::count(view)?),
        outgoing: rounded(outgoing::count(view)?),
        exit: rounded(exit::count(view)?),
    })
}
