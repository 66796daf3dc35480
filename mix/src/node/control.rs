//! What the operator may ask of a node that runs, and what of it may change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;

use super::by_hand::ExitQueue;
use super::changes::{Changes, check_access};
use super::clock::World;
use super::config::{NetworkConfig, NodeConfig};
use super::counters::Counters;
use super::describe::{self, Descriptors};
use super::durable;
use super::exit::{MailDelivery, Standing};
use super::keys::KeyPlan;
use super::publish::{Desk, Publication};
use super::rotation::{self, Discarded, SharedKeyring, Wish};
use super::start::NodeError;
use super::stats::{Clerk, Report, rounded};
use crate::crypto::KeyId;
use crate::deliver::opt_out::OptOutKey;
use crate::directory::{Descriptor, Nickname};
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
    pub(super) descriptors: watch::Receiver<Arc<Descriptors>>,
    pub(super) db: Db,
    pub(super) counters: Counters,
    pub(super) world: World,
    pub(super) desk: Arc<Desk>,
    pub(super) statistics: Clerk,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) opt_out_key: OptOutKey,
    pub(super) changes: Changes,
    pub(super) exit_queue: ExitQueue,
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
    /// Whether e-mail is delivered, and can be.
    pub mail_delivery: MailDelivery,
    /// Whether the descriptor offers it.
    pub offers_mail: bool,
    /// Whether mail for users of the node can be whose mail goes elsewhere, where there are any.
    pub user_delivery: MailDelivery,
    /// Whether the descriptor offers delivery to users, of whom some may have mail here.
    pub offers_users: bool,
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
        let Inner { addresses, descriptors, db, desk, standing, changes, .. } = &*self.0;
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
            mail_delivery: standing.borrow().report(changes.settings.borrow().smtp.enabled),
            user_delivery: standing.borrow().report_users(changes.settings.borrow().mbox.enabled),
            offers_mail: descriptor.smtp().is_some(),
            offers_users: descriptor.mbox().is_some(),
            queues,
        }
    }

    /// Whether the node delivers to a user of this name whose mail goes elsewhere than to a gateway in this process.
    pub fn has_user(&self, name: &str) -> bool {
        self.0.changes.ways.borrow().mbox.as_ref().is_some_and(|mbox| mbox.knows(name))
    }

    /// What waits for delivery, for the operator's hand.
    pub fn exit_queue(&self) -> ExitQueue {
        self.0.exit_queue.clone()
    }

    /// What may be shown of the statistics; `None` when none are kept.
    pub fn report(&self) -> Option<Report> {
        self.0.statistics.report()
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
    /// moment.
    ///
    /// # Errors
    /// [`NodeError`] for settings that cannot be taken; nothing changes then. The nickname is one of them.
    pub fn reconfigure(&self, config: &NodeConfig) -> Result<(), NodeError> {
        self.check(config)?;
        self.describe(config);
        Ok(())
    }

    fn check(&self, config: &NodeConfig) -> Result<(), NodeError> {
        let Inner { keyring, world, addresses, .. } = &*self.0;
        KeyPlan::new(&config.keys)?;
        let known = self.descriptor().nickname().clone();
        if config.nickname.parse::<Nickname>()? != known {
            return Err(NodeError::Renamed { known });
        }
        check_access(config, addresses)?;
        let port = addresses.first().map_or(0, SocketAddr::port);
        describe::check(config, port, &rotation::held(keyring), world.now(), &mut world.dice())
    }

    fn describe(&self, config: &NodeConfig) {
        let settings = &self.0.changes.settings;
        // Its folder was chosen at the start.
        let home = settings.borrow().home.clone();
        settings.send_replace(Arc::new(NodeConfig { home, ..config.clone() }));
    }

    /// Returns when keys and descriptors are as the settings in force want them, those of a [`NodeControl::apply`] before;
    /// and so when it is proven whether mail can be delivered as they say, or not.
    ///
    /// # Errors
    /// Why they are not; it is tried again each minute.
    pub async fn settled(&self) -> Result<(), NodeError> {
        let ways = self.0.changes.ways.borrow().clone();
        // Nobody proves anything any more when the node is stopping.
        let _ = self.0.standing.clone().wait_for(|standing| standing.is_about(&ways)).await;
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

    /// Lets all that can change while the node runs be as in `config`: whose connections are taken, and their limits; how
    /// mixes are reached, and how fast; when packets leave and which, and what beside them; the reserve of disk space; the
    /// schedules of retries; which deliveries there are and how; the statistics; and all of [`NodeControl::reconfigure`].
    /// The rest of `config` is not looked at: home, name, ports, what the system holds for a connection, and how keys are
    /// kept.
    ///
    /// # Errors
    /// [`NodeError`], as at a start; nothing has changed then.
    pub async fn apply(&self, config: &NodeConfig) -> Result<(), NodeError> {
        // Lists are read and their patterns compiled, which may take seconds.
        let (inner, settings) = (Arc::clone(&self.0), config.clone());
        let made = spawn_blocking(move || inner.changes.make(&settings)).await;
        let made = made.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
        self.check(config)?;
        self.0.changes.take(config, made);
        self.describe(config);
        Ok(())
    }

    /// Publishes at another directory server from now on, or nowhere. Who the mixes are is [`Network::apply`]'s.
    ///
    /// [`Network::apply`]: super::network::Network::apply
    pub fn apply_network(&self, network: &NetworkConfig) {
        self.0.changes.network.send_if_modified(|old| std::mem::replace(old, network.clone()) != *network);
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

fn queues(view: &View<'_>) -> Result<Queues, StoreError> {
    Ok(Queues {
        incoming: rounded(incoming::count(view)?),
        pool: rounded(pool::count(view)?),
        outgoing: rounded(outgoing::count(view)?),
        exit: rounded(exit::count(view)?),
    })
}
