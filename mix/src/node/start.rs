//! Starts and stops the services of a node, and those that carry a gateway's own packets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::clock::{Even, World};
use super::config::{MboxDeliveryConfig, MixRule, NetworkConfig, NodeConfig, OutgoingConfig, SmtpDeliveryConfig};
use super::control::{Changes, Inner, NodeControl};
use super::counters::Counters;
use super::describe::Descriptors;
use super::dummies::Dummies;
use super::exit::{ExitService, MboxWay, MessageIds, SmtpWay, Ways};
use super::incoming::{self, Incoming, Worker};
use super::keys::{InvalidKeys, KeyError, KeyPlan, Keyring};
use super::link;
use super::mixing::{Bells, Mixing, Rhythm};
use super::network::Network;
use super::outgoing::Outgoing;
use super::publish::{Desk, Publication, Publisher};
use super::room::room_for;
use super::rotation::{Office, Rotation};
use super::stats::Statistics;
use crate::batch::{InvalidPool, Pool};
use crate::crypto::pk::InvalidKey;
use crate::crypto::{KeyId, Passphrase};
use crate::deliver::mail::{MailWriter, NoReturnAddress};
use crate::deliver::mbox::LocalMailboxes;
use crate::deliver::smtp::{InvalidSmtpExit, SmtpExit};
use crate::directory::descriptor::Descriptor;
use crate::directory::fields::{InvalidText, Text, Unsignable};
use crate::directory::nickname::{InvalidNickname, Nickname};
use crate::net::bandwidth::{Bandwidth, InvalidBandwidth};
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
    /// `node.mixing.interval` is zero.
    #[error("node.mixing.interval must be longer than nothing")]
    Interval,
    /// `node.stats.interval` is zero.
    #[error("node.stats.interval must be longer than nothing")]
    StatsInterval,
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
    /// Delivery by SMTP.
    #[error("node.smtp.server")]
    Smtp(#[from] InvalidSmtpExit),
    /// `node.mbox.enabled` without a gateway in the same process.
    #[error("node.mbox is enabled, but there is no gateway in this process whose identities could get the mail")]
    NoMailboxes,
    /// Messages are taken whose fragments there is no room for.
    #[error(
        "node.fragments.max_size must not be above node.fragments.max_stored: all fragments of a message must be there"
    )]
    Fragments,
    /// `node.keys`.
    #[error(transparent)]
    KeyPlan(#[from] InvalidKeys),
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
            | Self::Interval
            | Self::Access { .. }
            | Self::Bandwidth(_)
            | Self::Text { .. }
            | Self::StatsInterval
            | Self::Descriptor(_)
            | Self::ReturnAddress(_)
            | Self::Smtp(_)
            | Self::Fragments
            | Self::KeyPlan(_)
            | Self::NoPassphrase
            | Self::Renamed { .. }
            | Self::NoMailboxes => true,
            // What was given for the keys, or that nothing was, and not the keys.
            Self::Keys(why) => why.is_passphrase(),
            Self::PacketKey(_) | Self::Store(_) | Self::Link(_) | Self::Listen(_) => false,
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
            Self::Bandwidth(InvalidBandwidth::TooLittle { .. }) => "node.bandwidth.average",
            Self::Bandwidth(_) => "node.bandwidth.spike",
            Self::Interval => "node.mixing.interval",
            Self::StatsInterval => "node.stats.interval",
            Self::ReturnAddress(_) => "node.smtp.mail",
            Self::Smtp(_) => "node.smtp.server",
            Self::NoMailboxes => "node.mbox.enabled",
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
        let bandwidth = bandwidth(config)?;
        let plan = KeyPlan::new(&config.keys)?;
        let passphrase = match (config.keys.sealed, passphrase) {
            (true, None) => return Err(NodeError::NoPassphrase),
            (sealed, passphrase) => passphrase.filter(|_| sealed),
        };
        let mut dice = world.dice();
        // The lock first: whoever finishes what a crash left of the keys must be the only one at them.
        let db = Db::open(&config.home.join("node.db"), &NODE_SCHEMAS)?;
        let keyring = Keyring::open(&config.home.join("keys"), &plan, passphrase, &mut dice)?;
        let identity = keyring.identity().clone();
        let replay = ReplayLog::open(&db)?;

        let (change_rhythm, rhythm) = watch::channel(rhythm(config)?);
        let (change_outgoing, outgoing) = watch::channel(config.outgoing.clone());
        let message_ids = MessageIds::of(&identity);
        let (change_ways, ways) = watch::channel(ways(config, mailboxes.clone(), &message_ids)?);
        let (change_stats, stats) = watch::channel(config.stats.clone());

        let incoming = Incoming::new(db.clone(), counters.clone());
        let link = LinkIdentity::new(&identity, &nickname, world.now(), &mut dice)?;
        let (renew, link) = watch::channel(Arc::new(link));
        let listener = MmtpListener::bind_in(
            &sockets,
            config.listen.clone(),
            link,
            config.incoming.clone(),
            Arc::new(incoming.clone()),
        )
        .await?;
        let listener = listener.with_bandwidth(bandwidth.clone());
        let addresses = listener.local_addrs();
        check_access(config, &addresses)?;
        let address = listener.local_addr();
        let (settings, in_force) = watch::channel(Arc::new(config.clone()));
        let rotation = Rotation::start(Office {
            keyring,
            replay: replay.clone(),
            db: db.clone(),
            config: in_force,
            port: address.port(),
            world: world.clone(),
            stop: stop.clone(),
            directory: directory.clone(),
        })?;
        let (keyring, descriptors) = (Arc::clone(&rotation.keyring), rotation.descriptors.subscribe());
        let wishes = rotation.wishes.clone();

        let bells = Bells { incoming: Arc::clone(&incoming.bell), ..Bells::default() };
        let own = identity.public_key().key_id();
        let mut tasks = JoinSet::new();
        let worker = Worker {
            db: db.clone(),
            keys: Arc::clone(&rotation.live),
            replay: replay.clone(),
            counters: counters.clone(),
            stop: stop.clone(),
        };
        let (threads, feeder) = incoming::start(&incoming, worker);
        tasks.spawn(async move {
            if let Err(e) = feeder.await {
                error!(panicked = e.is_panic(), "the feeder of the workers failed");
            }
        });
        tasks.spawn(listener.run(stop.clone()));
        let (home, store) = (config.home.clone(), db.clone());
        let room = move || Ok(room_for(free_space(&home)?, &store));
        tasks.spawn(incoming.room().clone().watch(room, config.disk_reserve, stop.clone()));
        tasks.spawn(rotation.run());
        tasks.spawn(link::run(renew, identity, nickname.clone(), world.clone(), stop.clone()));
        let service = ExitService {
            db: db.clone(),
            bell: Arc::clone(&bells.exit),
            counters: counters.clone(),
            world: world.clone(),
            even: Even::set(world.now()),
            stop: stop.clone(),
            ways,
            left: Arc::default(),
            some_ready: Arc::new(true.into()),
        };
        tasks.spawn(service.run());
        let asked = !network.directory.is_empty();
        let desk = Arc::new(Desk::new(if asked { Publication::Pending } else { Publication::Nowhere }));
        if asked {
            let publisher = Publisher {
                descriptors: descriptors.clone(),
                desk: Arc::clone(&desk),
                url: network.directory,
                retry: network.retry,
                stop: stop.clone(),
            };
            tasks.spawn(publisher.run());
        }
        let statistics =
            config.stats.enabled.then(|| Statistics::open(&config.stats, &config.home, world.now(), &mut dice));
        if let Some(statistics) = statistics.clone() {
            tasks.spawn(statistics.run(stats, counters.clone(), world.clone(), stop.clone()));
        }
        let dummies = directory.as_ref().filter(|_| config.dummies.enabled);
        let dummies = dummies.map(|known| Dummies::new(config.dummies.clone(), known.clone(), own, counters.clone()));
        let carry = Carry { db: db.clone(), rhythm, own: Some(own), dummies, directory, bandwidth, resolver };
        carry.spawn(&mut tasks, bells, outgoing, counters.clone(), world.clone(), stop);
        info!(%nickname, key = %own, listen = listed(&addresses), "the node is up");
        let control = NodeControl(Arc::new(Inner {
            addresses: addresses.clone(),
            keyring,
            wishes,
            config: settings,
            descriptors,
            db: db.clone(),
            counters,
            world,
            mailboxes,
            message_ids,
            desk,
            statistics,
            changes: Changes {
                rhythm: change_rhythm,
                outgoing: change_outgoing,
                ways: change_ways,
                stats: change_stats,
            },
        }));
        Ok(RunningNode { address, addresses, db, control, replay, tasks, threads })
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
        let (_, rhythm) = watch::channel(Rhythm { pool: Pool::Timed, interval });
        let (_, outgoing) = watch::channel(outgoing);
        // No dummies: they would come from a user as regularly as from a mix, and say that there is one.
        let carry = Carry { db, rhythm, own: None, dummies: None, directory, bandwidth: None, resolver: None };
        carry.spawn(&mut tasks, Bells::default(), outgoing, counters, world, stop);
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
    bandwidth: Option<Bandwidth>,
    /// `None`: the system's.
    resolver: Option<Resolver>,
}

impl Carry {
    fn spawn(
        self,
        tasks: &mut JoinSet<()>,
        bells: Bells,
        config: watch::Receiver<OutgoingConfig>,
        counters: Counters,
        world: World,
        stop: CancellationToken,
    ) {
        let Self { db, rhythm, own, dummies, directory, bandwidth, resolver } = self;
        let connect = config.borrow().connector(resolver, bandwidth);
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

/// The limit for all links of the node, of which each must get a packet through before anybody gives it up.
fn bandwidth(config: &NodeConfig) -> Result<Option<Bandwidth>, NodeError> {
    let links = config.incoming.max_connections.saturating_add(config.outgoing.connections);
    let patience = config.incoming.idle_timeout.min(config.outgoing.progress_timeout);
    Ok(config.bandwidth.limit(links, patience)?)
}

/// Rules that let nobody in at a port of this node were not meant so.
fn check_access(config: &NodeConfig, addresses: &[SocketAddr]) -> Result<(), NodeError> {
    let policy = config.incoming.access.policy();
    // Which port 0 becomes is seen at the start.
    match addresses.iter().map(SocketAddr::port).find(|port| *port != 0 && !policy.opens(*port)) {
        Some(port) => Err(NodeError::Access { port }),
        None => Ok(()),
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

/// Looks at the settings of a node as its start does, without a disk, a port or a key.
///
/// # Errors
/// [`NodeError`] for which [`NodeError::is_configuration`] is true.
pub fn check(config: &NodeConfig, has_mailboxes: bool) -> Result<(), NodeError> {
    let _: Nickname = config.nickname.parse()?;
    HostName::parse(&config.host).map_err(NodeError::Host)?;
    rhythm(config)?;
    bandwidth(config)?;
    check_access(config, config.listen.as_slice())?;
    check_texts(config)?;
    if config.stats.interval.is_zero() {
        return Err(NodeError::StatsInterval);
    }
    KeyPlan::new(&config.keys)?;
    if config.fragments.enabled && config.fragments.max_size > config.fragments.max_stored {
        return Err(NodeError::Fragments);
    }
    if config.smtp.enabled {
        mail_server(&config.smtp)?;
    }
    if config.mbox.enabled && !has_mailboxes {
        return Err(NodeError::NoMailboxes);
    }
    Ok(())
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

/// When packets leave, and which.
pub(super) fn rhythm(config: &NodeConfig) -> Result<Rhythm, NodeError> {
    let (pool, interval) = (config.mixing.pool()?, config.mixing.interval);
    if interval.is_zero() {
        return Err(NodeError::Interval);
    }
    Ok(Rhythm { pool, interval })
}

/// How messages are delivered.
pub(super) fn ways(
    config: &NodeConfig,
    mailboxes: Option<Arc<dyn LocalMailboxes<Arrival>>>,
    message_ids: &MessageIds,
) -> Result<Ways, NodeError> {
    let smtp = config.smtp.enabled.then(|| smtp_way(&config.smtp, message_ids.clone())).transpose()?.map(Arc::new);
    let mbox = match (config.mbox.enabled, mailboxes) {
        (false, _) => None,
        (true, None) => return Err(NodeError::NoMailboxes),
        (true, Some(mailboxes)) => Some(Arc::new(mbox_way(&config.mbox, mailboxes))),
    };
    Ok(Ways { smtp, smtp_retry: config.smtp.retry.clone(), mbox, fragments: config.fragments.clone() })
}

fn mail_server(config: &SmtpDeliveryConfig) -> Result<(MailWriter, SmtpExit), NodeError> {
    let writer = MailWriter::new(config.mail.clone())?;
    let server = SmtpExit::new(&config.server, writer.return_address())?;
    Ok((writer, server))
}

fn smtp_way(config: &SmtpDeliveryConfig, message_ids: MessageIds) -> Result<SmtpWay, NodeError> {
    let (writer, server) = mail_server(config)?;
    let SmtpDeliveryConfig { max_size, inflate_max, ref retry, .. } = *config;
    Ok(SmtpWay { writer, server, max_size, inflate_max, retry: retry.clone(), message_ids })
}

fn mbox_way(config: &MboxDeliveryConfig, mailboxes: Arc<dyn LocalMailboxes<Arrival>>) -> MboxWay {
    MboxWay { mailboxes, max_size: config.max_size }
}

#[cfg(test)]
mod reloads;
#[cfg(test)]
mod tests;
