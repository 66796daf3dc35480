//! Starts and stops the services of a node, and those that carry a gateway's own packets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::by_hand::ExitQueue;
use super::changes::{
    Changes, Deliveries, addresses, bandwidth, check_access, policies, refusals, rhythm, set_notice, way_out,
};
use super::clock::{Even, World};
use super::config::{MixRule, NetworkConfig, NodeConfig, OutgoingConfig};
use super::control::{Inner, NodeControl};
use super::counters::Counters;
use super::describe::Descriptors;
use super::dummies::Dummies;
use super::exit::{Domains, ExitService, MessageIds, OverLimits, Prover, Word};
use super::incoming::{self, Incoming, PacketKeys, Worker};
use super::keys::{InvalidKeys, KeyError, KeyPlan, Keyring};
use super::link;
use super::mixing::{Bells, Mixing, Rhythm};
use super::network::Network;
use super::outgoing::Outgoing;
use super::publish::{Desk, Publication, Publisher};
use super::room::room_for;
use super::rotation::{Office, Rotation};
use super::stats::Clerk;
use crate::batch::{InvalidPool, Pool};
use crate::crypto::pk::InvalidKey;
use crate::crypto::{KeyId, Passphrase};
use crate::deliver::dkim::{InvalidDkim, Signer};
use crate::deliver::limits::Limits;
use crate::deliver::list::ListError;
use crate::deliver::mail::NoReturnAddress;
use crate::deliver::mail::notice::NoticeError;
use crate::deliver::maildir::InvalidMaildir;
use crate::deliver::mbox::{AddressesError, LocalMailboxes};
use crate::deliver::mx::{InvalidMx, Shelf};
use crate::deliver::opt_out::OptOutKey;
use crate::deliver::refusals::InvalidRefusals;
use crate::deliver::sendmail::InvalidSendmail;
use crate::deliver::smtp::InvalidSmtpExit;
use crate::directory::descriptor::Descriptor;
use crate::directory::fields::{InvalidText, Text, Unsignable};
use crate::directory::nickname::{InvalidNickname, Nickname};
use crate::net::bandwidth::InvalidBandwidth;
use crate::net::connect::Connector;
use crate::net::descriptors::{self, TooFew};
use crate::net::listen::{ListenError, MmtpListener};
use crate::net::resolve::Resolver;
use crate::net::sockets::Inherited;
use crate::net::tls::{IdentityError, LinkIdentity};
use crate::packet::HostName;
use crate::packet::routing::InvalidRouting;
use crate::store::disk::free_space;
use crate::store::inbox::Arrival;
use crate::store::replay::ReplayLog;
use crate::store::{Db, NODE_SCHEMAS, StoreError};

/// A pool that keeps fewer is emptied by a handful of packets. The reference's limit.
const LEAST_MINIMUM: usize = 5;
/// Of a pool that gives more at a time, whoever floods it may be sure that what he is after came out.
const HIGHEST_RATE: f64 = 0.8;
/// Within less, too few packets come together. The reference's limit is 30 minutes, with a pool that keeps 6 and not 45.
const LEAST_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// What a descriptor says of a node that sends no dummies.
pub const NO_DUMMIES: &str = "Dummies are not sent";

/// Statistics of shorter intervals show when something happened (REFERENCE: "StatsInterval is too short").
const SHORT_STATS: Duration = Duration::from_secs(2 * 3600);

/// Why a node could not be started. The operator must mend what is named.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// `node.nickname`.
    #[error("node.nickname")]
    Nickname(#[from] InvalidNickname),
    /// `node.host`.
    #[error("node.host")]
    Host(#[source] InvalidRouting),
    /// `node.mixing`.
    #[error("node.mixing")]
    Mixing(#[from] InvalidPool),
    /// The keys.
    #[error("the keys of the node")]
    Keys(#[from] KeyError),
    /// A packet key that the backend does not take.
    #[error("the packet key")]
    PacketKey(#[from] InvalidKey),
    /// The queues.
    #[error("the queues of the node")]
    Store(#[from] StoreError),
    /// The certificates.
    #[error("the link identity")]
    Link(#[from] IdentityError),
    /// The port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// `node.incoming.access`.
    #[error("node.incoming.access allows nobody at port {port}; a rule that names no port is for 48099 alone")]
    Access {
        /// Where nobody could come in.
        port: u16,
    },
    /// `node.incoming.max_connections`.
    #[error("node.incoming.max_connections")]
    Descriptors(#[from] TooFew),
    /// `node.bandwidth`.
    #[error("node.bandwidth")]
    Bandwidth(#[from] InvalidBandwidth),
    /// What people are told.
    #[error("{key}")]
    Text {
        /// The setting.
        key: &'static str,
        /// What is wrong.
        source: InvalidText,
    },
    /// What the descriptor would say.
    #[error("the descriptor")]
    Descriptor(#[from] Unsignable),
    /// Delivery by SMTP lacks its sender.
    #[error("node.smtp.mail")]
    ReturnAddress(#[from] NoReturnAddress),
    /// What stands above each message.
    #[error("node.smtp.mail")]
    Notice(#[from] NoticeError),
    /// Delivery by SMTP.
    #[error("node.smtp.server")]
    Smtp(#[from] InvalidSmtpExit),
    /// Delivery to the servers of each domain.
    #[error("node.smtp.mx")]
    Mx(#[from] InvalidMx),
    /// Delivery by a program.
    #[error("node.smtp.sendmail")]
    Sendmail(#[from] InvalidSendmail),
    /// Delivery into a folder.
    #[error("node.smtp.maildir")]
    Maildir(#[from] InvalidMaildir),
    /// The list of whom not to deliver to.
    #[error("node.smtp.refusals")]
    Refusals(#[from] ListError<InvalidRefusals>),
    /// The key that mail is signed by.
    #[error("node.smtp.dkim")]
    Dkim(#[from] InvalidDkim),
    /// A page that nothing leads to, or links that lead nowhere.
    #[error(
        "node.smtp.opt_out: url and listen belong together: the page at url is what the web server there gets at listen. Set both, or neither"
    )]
    HalfPage,
    /// The users of the node.
    #[error("node.mbox.address_file")]
    Addresses(#[from] AddressesError),
    /// `node.mbox.enabled` without users.
    #[error(
        "node.mbox is enabled, but there is neither a gateway in this process whose identities could get the mail, nor node.mbox.address_file"
    )]
    NoMailboxes,
    /// Messages are taken whose fragments there is no room for.
    #[error(
        "node.fragments.max_size must not be above node.fragments.max_stored: all fragments of a message must be there"
    )]
    Fragments,
    /// `node.keys`.
    #[error(transparent)]
    KeyPlan(#[from] InvalidKeys),
    /// A disk that takes nothing more, or a worker that has failed.
    #[error(
        "a packet key whose time is over cannot be erased: what it opened last is not written yet. Look for a full disk; it is tried again"
    )]
    KeyInHand,
    /// `node.keys.sealed` without a passphrase.
    #[error("node.keys.sealed is true, but no passphrase was given")]
    NoPassphrase,
    /// A name that changes while the node runs.
    #[error("node.nickname cannot change from {known} while the node runs: directories bind it to the identity key")]
    Renamed {
        /// What the node is called.
        known: Nickname,
    },
}

impl NodeError {
    /// Whether it is the configuration that must be mended, and not a port, a disk or the like.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Nickname(_)
            | Self::Host(_)
            | Self::Mixing(_)
            | Self::Access { .. }
            | Self::Descriptors(_)
            | Self::Bandwidth(_)
            | Self::Text { .. }
            | Self::Descriptor(_)
            | Self::ReturnAddress(_)
            | Self::Notice(_)
            | Self::Smtp(_)
            | Self::Mx(_)
            | Self::Sendmail(_)
            | Self::Maildir(_)
            | Self::Refusals(_)
            | Self::Dkim(_)
            | Self::HalfPage
            | Self::Addresses(_)
            | Self::Fragments
            | Self::KeyPlan(_)
            | Self::NoPassphrase
            | Self::Renamed { .. }
            | Self::NoMailboxes => true,
            // What was given for the keys, or that nothing was, and not the keys.
            Self::Keys(why) => why.is_passphrase(),
            Self::PacketKey(_) | Self::Store(_) | Self::Link(_) | Self::Listen(_) | Self::KeyInHand => false,
        }
    }
}

impl NodeError {
    /// The key that must be mended, where it is a single one.
    pub fn key(&self) -> Option<&'static str> {
        Some(match self {
            Self::Nickname(_) => "node.nickname",
            Self::Host(_) => "node.host",
            Self::KeyPlan(_) | Self::NoPassphrase => "node.keys",
            Self::Renamed { .. } => "node.nickname",
            Self::Mixing(_) => "node.mixing.rate",
            Self::Text { key, .. } => key,
            Self::Access { .. } => "node.incoming.access",
            Self::Descriptors(_) => "node.incoming.max_connections",
            Self::Bandwidth(InvalidBandwidth::TooLittle { .. }) => "node.bandwidth.average",
            Self::Bandwidth(_) => "node.bandwidth.spike",
            Self::ReturnAddress(_) => "node.smtp.mail",
            Self::Notice(NoticeError::Inline(_)) => "node.smtp.mail.notice",
            Self::Notice(NoticeError::Both | NoticeError::File(_)) => "node.smtp.mail.notice_file",
            Self::Smtp(_) => "node.smtp.server",
            Self::Mx(_) => "node.smtp.mx",
            Self::Sendmail(_) => "node.smtp.sendmail.command",
            Self::Maildir(_) => "node.smtp.maildir.path",
            Self::Refusals(_) => "node.smtp.refusals",
            Self::Dkim(_) => "node.smtp.dkim",
            Self::HalfPage => "node.smtp.opt_out",
            Self::NoMailboxes => "node.mbox.enabled",
            Self::Addresses(_) => "node.mbox.address_file",
            Self::Fragments => "node.fragments.max_size",
            _ => return None,
        })
    }
}

/// What a node is given beside its settings.
#[derive(Clone)]
pub struct Parts {
    /// Time and chance.
    pub world: World,
    /// What is counted.
    pub counters: Counters,
    /// Users of this node, when it keeps mail for a gateway.
    pub mailboxes: Option<Arc<dyn LocalMailboxes<Arrival>>>,
    /// Where to publish the descriptor; an empty URL publishes nowhere.
    pub network: NetworkConfig,
    /// Who the mixes are. Somebody else keeps it fresh. A node without it relays, and sends no dummies.
    pub directory: Option<Network>,
    /// What the private keys are sealed with, where `node.keys.sealed` says that they are.
    pub passphrase: Option<Passphrase>,
    /// Sockets that a service manager holds open.
    pub sockets: Inherited,
    /// Cancelled to stop the node.
    pub stop: CancellationToken,
}

/// A mix.
#[derive(Debug)]
pub struct Node;

/// A node that runs.
#[derive(Debug)]
pub struct RunningNode {
    /// Where it listens; the first place, if there are several.
    pub address: SocketAddr,
    /// All places where it listens.
    pub addresses: Vec<SocketAddr>,
    /// Its queues: whoever puts a packet into the pool sends through this node.
    pub db: Db,
    /// What its operator may ask and change.
    pub control: NodeControl,
    pub(super) replay: ReplayLog,
    tasks: JoinSet<()>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl RunningNode {
    /// What it says of itself now.
    pub fn descriptor(&self) -> Arc<Descriptor> {
        self.control.descriptor()
    }

    /// All that it says of itself, now and later; changes when keys or settings do.
    pub fn descriptors(&self) -> watch::Receiver<Arc<Descriptors>> {
        self.control.descriptors()
    }

    /// Returns when a service has ended, or failed; before the node is asked to stop, none should.
    pub async fn service_ended(&mut self) {
        report(self.tasks.join_next().await);
    }

    /// Waits until all services have ended; they do when the token of [`Parts`] is cancelled.
    pub async fn ended(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            report(Some(ended));
        }
        let (threads, replay) = (self.threads, self.replay);
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| {
                if thread.join().is_err() {
                    error!("a worker of the node failed");
                }
            });
            replay.close();
        });
        // A worker that failed has been reported by now.
        let _ = joined.await;
        self.db.close();
    }
}

/// Says that a service failed; never with what words, which may be a mail's.
fn report(ended: Option<Result<(), tokio::task::JoinError>>) {
    if let Some(Err(e)) = ended {
        error!(panicked = e.is_panic(), "a service of the node failed");
    }
}

impl Node {
    /// Starts all services of a node; returns when it takes packets.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn start(config: &NodeConfig, parts: Parts) -> Result<RunningNode, NodeError> {
        Self::start_asking(config, parts, None).await
    }

    /// As [`Node::start`]; names of hosts are looked up by `resolver`, if there is one, and not by the system's.
    pub(super) async fn start_asking(
        config: &NodeConfig,
        parts: Parts,
        resolver: Option<Resolver>,
    ) -> Result<RunningNode, NodeError> {
        let Parts { world, counters, mailboxes, network, directory, passphrase, sockets, stop } = parts;
        check(config, mailboxes.is_some())?;
        let nickname: Nickname = config.nickname.parse()?;
        let Opened { db, keyring, replay } = Opened::open(config, passphrase, &world)?;
        let identity = keyring.identity().clone();
        let own = identity.public_key().key_id();
        let message_ids = MessageIds::of(&identity);
        let opt_out_key = OptOutKey::of(&identity);
        let clock = world.clone();
        let policies = policies(Some(Shelf::of(&identity, db.clone(), move || clock.now(), world.dice())));
        let deliveries = Deliveries { mailboxes, message_ids, opt_out_key: opt_out_key.clone(), policies };
        let changes = Changes::new(config, network, deliveries, resolver)?;

        let incoming = Incoming::new(db.clone(), counters.clone());
        let link = LinkIdentity::new(&identity, &nickname, world.now(), &mut world.dice())?;
        let (renew, link) = watch::channel(Arc::new(link));
        let (terms, sink) = (changes.incoming.subscribe(), Arc::new(incoming.clone()));
        let listener = MmtpListener::bind_in(&sockets, config.listen.clone(), link, terms, sink).await?;
        let (address, addresses) = (listener.local_addr(), listener.local_addrs());
        check_access(config, &addresses)?;
        let mut prover = Prover::new(changes.ways.subscribe(), world.clone(), stop.clone());
        prover.begin().await;
        let standing = prover.standing();
        let rotation = Rotation::start(Office {
            keyring,
            replay: replay.clone(),
            db: db.clone(),
            config: changes.settings.subscribe(),
            port: address.port(),
            world: world.clone(),
            stop: stop.clone(),
            directory: directory.clone(),
            standing: standing.clone(),
        })?;
        let wishes = rotation.wishes.clone();

        let (keyring, descriptors) = (Arc::clone(&rotation.keyring), rotation.descriptors.subscribe());
        let bells = Bells { incoming: Arc::clone(&incoming.bell), ..Bells::default() };
        let (db, counters, world, stop) = (db.clone(), counters.clone(), world.clone(), stop.clone());
        let mut crew = Crew { db, counters, world, stop, changes: &changes, tasks: JoinSet::new() };
        let threads = crew.unwrap(&incoming, Arc::clone(&rotation.live), replay.clone());
        crew.tasks.spawn(listener.run(crew.stop.clone()));
        crew.watch_the_disk(&incoming, config.home.clone());
        crew.tasks.spawn(rotation.run());
        crew.tasks.spawn(link::run(renew, identity, nickname.clone(), crew.world.clone(), crew.stop.clone()));
        let exit_queue = crew.deliver(&bells, prover.word());
        crew.tasks.spawn(prover.run());
        let desk = crew.publish(descriptors.clone());
        let statistics = crew.count(config);
        crew.carry(own, bells, directory);
        info!(%nickname, key = %own, listen = listed(&addresses), "the node is up");
        let Crew { db, counters, world, tasks, .. } = crew;
        let inner = Inner {
            addresses: addresses.clone(),
            keyring,
            wishes,
            descriptors,
            db: db.clone(),
            counters,
            world,
            desk,
            statistics,
            standing,
            opt_out_key,
            changes,
            exit_queue,
        };
        Ok(RunningNode { address, addresses, db, control: NodeControl(Arc::new(inner)), replay, tasks, threads })
    }
}

/// Where the queues of the node at `home` lie.
pub(super) fn database(home: &Path) -> PathBuf {
    home.join("node.db")
}

/// What lies in the home of a node.
struct Opened {
    db: Db,
    keyring: Keyring,
    replay: ReplayLog,
}

impl Opened {
    fn open(config: &NodeConfig, passphrase: Option<Passphrase>, world: &World) -> Result<Self, NodeError> {
        let plan = KeyPlan::new(&config.keys)?;
        let passphrase = match (config.keys.sealed, passphrase) {
            (true, None) => return Err(NodeError::NoPassphrase),
            (sealed, passphrase) => passphrase.filter(|_| sealed),
        };
        // The lock first: whoever finishes what a crash left of the keys must be the only one at them.
        let db = Db::open(&database(&config.home), &NODE_SCHEMAS)?;
        let keyring = Keyring::open(&config.home.join("keys"), &plan, passphrase, &mut world.dice())?;
        let replay = ReplayLog::open(&db)?;
        Ok(Self { db, keyring, replay })
    }
}

/// The services of a node as they are started, and what most of them share.
struct Crew<'c> {
    db: Db,
    counters: Counters,
    world: World,
    stop: CancellationToken,
    changes: &'c Changes,
    tasks: JoinSet<()>,
}

impl Crew<'_> {
    /// Workers who unwrap what comes; their threads end with the service that feeds them.
    fn unwrap(&mut self, incoming: &Incoming, keys: PacketKeys, replay: ReplayLog) -> Vec<std::thread::JoinHandle<()>> {
        let (db, counters, stop) = (self.db.clone(), self.counters.clone(), self.stop.clone());
        let (threads, feeder) = incoming::start(incoming, Worker { db, keys, replay, counters, stop });
        self.tasks.spawn(async move {
            if let Err(e) = feeder.await {
                error!(panicked = e.is_panic(), "the feeder of the workers failed");
            }
        });
        threads
    }

    fn watch_the_disk(&mut self, incoming: &Incoming, home: PathBuf) {
        let (store, reserve) = (self.db.clone(), self.changes.reserve.subscribe());
        let room = move || Ok(room_for(free_space(&home)?, *reserve.borrow(), &store));
        self.tasks.spawn(incoming.room().clone().watch(room, self.changes.reserve.subscribe(), self.stop.clone()));
    }

    fn deliver(&mut self, bells: &Bells, word: Word) -> ExitQueue {
        let service = ExitService {
            db: self.db.clone(),
            bell: bells.exit.clone(),
            counters: self.counters.clone(),
            world: self.world.clone(),
            even: Even::set(self.world.now()),
            stop: self.stop.clone(),
            ways: self.changes.ways.subscribe(),
            server: Arc::default(),
            domains: Arc::new(Mutex::new(Domains::new(&mut self.world.dice()))),
            limits: Arc::new(Mutex::new(Limits::new(&mut self.world.dice()))),
            over_limits: OverLimits::default(),
            earlier: Arc::default(),
            dropping: Arc::default(),
            under_way: Arc::default(),
            being_tried: Arc::default(),
            word,
            some_ready: Arc::new(true.into()),
        };
        let by_hand = service.by_hand();
        self.tasks.spawn(service.run());
        by_hand
    }

    fn publish(&mut self, descriptors: watch::Receiver<Arc<Descriptors>>) -> Arc<Desk> {
        let network = self.changes.network.subscribe();
        let desk = Arc::new(Desk::new(Publication::before(&network.borrow().directory)));
        let publisher = Publisher { descriptors, desk: Arc::clone(&desk), network, stop: self.stop.clone() };
        self.tasks.spawn(publisher.run());
        desk
    }

    fn count(&mut self, config: &NodeConfig) -> Clerk {
        let clerk = Clerk::new(&config.stats, config.home.clone(), self.counters.clone(), self.world.clone());
        self.tasks.spawn(clerk.clone().run(self.changes.stats.subscribe(), self.stop.clone()));
        clerk
    }

    fn carry(&mut self, own: KeyId, bells: Bells, directory: Option<Network>) {
        let changes = self.changes;
        let dummies =
            |known: &Network| Dummies::new(changes.dummies.subscribe(), known.clone(), own, self.counters.clone());
        let carry = Carry {
            db: self.db.clone(),
            rhythm: changes.rhythm.subscribe(),
            own: Some(own),
            dummies: directory.as_ref().map(dummies),
            directory,
            config: changes.outgoing.subscribe(),
            connect: Connector::on(changes.reach.subscribe()),
        };
        carry.spawn(&mut self.tasks, bells, self.counters.clone(), self.world.clone(), self.stop.clone());
    }
}

/// Carries a gateway's own packets to their first mixes where the process is no mix itself.
#[derive(Debug)]
pub struct Sending {
    tasks: JoinSet<()>,
}

impl Sending {
    /// Lets the packets in the pool of `db` out, all of them in random order at the end of each interval.
    pub fn start(db: Db, interval: Duration, outgoing: OutgoingConfig, parts: Parts) -> Self {
        let mut tasks = JoinSet::new();
        let Parts { world, counters, directory, stop, .. } = parts;
        // Nothing of these changes while the gateway runs.
        let carry = Carry {
            db,
            rhythm: watch::channel(Rhythm { pool: Pool::Timed, interval }).1,
            own: None,
            // They would come from a user as regularly as from a mix, and say that there is one.
            dummies: None,
            directory,
            connect: Connector::fixed(outgoing.terms(None, None)),
            config: watch::channel(outgoing).1,
        };
        carry.spawn(&mut tasks, Bells::default(), counters, world, stop);
        Self { tasks }
    }

    /// As [`RunningNode::service_ended`].
    pub async fn service_ended(&mut self) {
        report(self.tasks.join_next().await);
    }

    /// As [`RunningNode::ended`].
    pub async fn ended(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What mixes and connects.
struct Carry {
    db: Db,
    rhythm: watch::Receiver<Rhythm>,
    own: Option<KeyId>,
    dummies: Option<Dummies>,
    directory: Option<Network>,
    config: watch::Receiver<OutgoingConfig>,
    connect: Connector,
}

impl Carry {
    fn spawn(self, tasks: &mut JoinSet<()>, bells: Bells, counters: Counters, world: World, stop: CancellationToken) {
        let Self { db, rhythm, own, dummies, directory, config, connect } = self;
        let outgoing = Outgoing {
            db: db.clone(),
            config,
            rhythm: rhythm.clone(),
            connect,
            firings: bells.firings.subscribe(),
            network: directory,
            counters: counters.clone(),
            world: world.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(outgoing.run());
        tasks.spawn(Mixing { db, rhythm, own, dummies, bells, counters }.run(world, stop));
    }
}

/// Addresses, for the log.
fn listed(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ")
}

/// Why the configuration is insecure, in the words that the descriptor publishes: the reference's where it has some, in
/// its order.
pub fn weaknesses(config: &NodeConfig) -> Vec<&'static str> {
    let NodeConfig { mixing, dummies, .. } = config;
    let pooled = mixing.rule != MixRule::Timed;
    let own = [
        (config.stats.enabled && config.stats.interval < SHORT_STATS, "StatsInterval is too short"),
        (!pooled, "Mix algorithm is not secure"),
        (pooled && mixing.minimum < LEAST_MINIMUM, "MixPoolMinSize is too small"),
        (pooled && mixing.rate > HIGHEST_RATE, "MixPoolRate is too high"),
        (mixing.interval < LEAST_INTERVAL, "Mix interval under 15 minutes"),
        (!dummies.enabled || dummies.drop_mean == 0.0, NO_DUMMIES),
        (dummies.enabled && dummies.junk_period.is_zero(), "Idle links are not padded"),
    ];
    // An alpha version calls itself one, as the reference's all do.
    let alpha = !env!("CARGO_PKG_VERSION_PRE").is_empty();
    let alpha = alpha.then_some("Software is alpha");
    let own = own.into_iter().filter_map(|(is_so, why)| (is_so && !config.elsewhere.contains(&why)).then_some(why));
    alpha.into_iter().chain(config.elsewhere.iter().copied()).chain(own).collect()
}

/// Looks at the settings of a node as its start does, without a port or a key, and on disk at the list of refusals, the
/// table of users, the notice and the certificates for the mail server alone: of a Maildir that others can write only the start knows.
///
/// # Errors
/// [`NodeError`] for which [`NodeError::is_configuration`] is true.
pub fn check(config: &NodeConfig, has_mailboxes: bool) -> Result<(), NodeError> {
    let _: Nickname = config.nickname.parse()?;
    HostName::parse(&config.host).map_err(NodeError::Host)?;
    rhythm(config)?;
    bandwidth(config)?;
    check_descriptors(config)?;
    check_access(config, config.listen.as_slice())?;
    check_texts(config)?;
    KeyPlan::new(&config.keys)?;
    if config.fragments.enabled && config.fragments.max_size > config.fragments.max_stored {
        return Err(NodeError::Fragments);
    }
    let users = if config.mbox.enabled { addresses(config)? } else { None };
    if config.mbox.enabled && !has_mailboxes && users.is_none() {
        return Err(NodeError::NoMailboxes);
    }
    if config.smtp.enabled || users.is_some() {
        way_out(&config.smtp, &policies(None))?;
        set_notice(config)?;
        refusals(&config.smtp)?;
        Signer::new(&config.smtp.dkim)?;
        let opt_out = &config.smtp.opt_out;
        if opt_out.url.is_some() != opt_out.listen.is_some() {
            return Err(NodeError::HalfPage);
        }
    }
    Ok(())
}

/// Whether the system gives as many file descriptors as the connections of this node may take.
fn check_descriptors(config: &NodeConfig) -> Result<(), TooFew> {
    let coming = config.incoming.max_connections;
    // Some of them may be about to leave (net/seats), and a lookup opens a connection or two.
    let going = config.outgoing.connections.saturating_add(config.outgoing.lookups.saturating_mul(2));
    descriptors::check(coming.saturating_add(coming.div_ceil(4)).saturating_add(going))
}

/// What the descriptor would say to people.
fn check_texts(config: &NodeConfig) -> Result<(), NodeError> {
    for (kind, key, text) in [
        (Text::Contact, "node.contact", &config.contact),
        (Text::ContactFingerprint, "node.contact_fingerprint", &config.contact_fingerprint),
        (Text::Comments, "node.comments", &config.comments),
    ] {
        kind.check(text).map_err(|source| NodeError::Text { key, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod reloads;
#[cfg(test)]
mod tests;
