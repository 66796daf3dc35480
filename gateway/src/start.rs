//! Puts the roles together, in the order in which they need each other, and takes them apart again.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mix::crypto::{KeyId, Passphrase};
use mix::directory::Descriptor;
use mix::net::loopback::LoopbackAddress;
use mix::net::sockets::{Exposed, Inherited, NotOpened};
use mix::node::config::KeysConfig;
use mix::node::directory::{DirectoryError, DirectoryServer};
use mix::node::durable;
use mix::node::keys::{self, KeyError};
use mix::node::network::{InvalidNetwork, Network};
use mix::node::sender::{Sender, Style};
use mix::node::{Counters, Counts, Node, NodeControl, NodeError, Parts, Progress, RunningNode, Sending, World};
use mix::path::{ExitAddress, InvalidAddress, InvalidPathSpec};
use mix::store::db::private_folder;
use mix::store::inbox::{self, Arrival};
use mix::store::queue;
use mix::store::{Db, GATEWAY_SCHEMAS, StoreError, fragments, keyring};
use pop_out::collector;
use pop_out::maildrop;
use smtp_in::error::NotServing;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::accounts::Accounts;
use crate::check::{check, check_aside, reply_addresses};
use crate::config::{Config, GatewayConfig};
use crate::doors::{Inbox, KnownExits, WatchedOutbox};
use crate::lock::LockError;
use crate::metrics;
use crate::opt_out;
use crate::systemd::SocketError;

/// The longest time between two looks at the inbox.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How often what has become old is removed.
const CLEANING: Duration = Duration::from_secs(3600);
/// How long the fragments of an incomplete answer are kept: whoever answers may do so over weeks. After that they make
/// room for others, or strangers could fill it for ever.
const KEEP_INCOMPLETE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long is remembered what has arrived, so that it does not arrive twice.
const REMEMBER: Duration = Duration::from_secs(60 * 24 * 3600);

/// Why a process could not be started. The operator must mend what is named.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing to do.
    #[error("no role is enabled: set gateway.enabled, node.enabled or directory.enabled")]
    NoRole,
    /// A port.
    #[error("listening at {address} ({role})")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What for.
        role: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A socket of the service manager that others can reach, for a door that is for this machine alone.
    #[error("{key}")]
    Exposed {
        /// The setting of the door.
        key: &'static str,
        /// Which.
        source: Exposed,
    },
    /// The directory server.
    #[error("the directory server")]
    Directory(#[from] DirectoryError),
    /// Its key.
    #[error("the key of the directory server")]
    DirectoryKey(#[from] KeyError),
    /// The node.
    #[error("the node")]
    Node(#[from] NodeError),
    /// `[network]`.
    #[error("network")]
    Network(#[from] InvalidNetwork),
    /// A gateway without a directory knows no mixes.
    #[error("network.directory must name a directory server: a gateway needs to know who the mixes are")]
    NoDirectory,
    /// A gateway that nobody can log in to.
    #[error("gateway.identities: a gateway needs at least one identity, or nobody can send or fetch")]
    NoIdentity,
    /// The database of the gateway.
    #[error("the mail of the gateway")]
    Store(#[from] StoreError),
    /// `gateway.sender`.
    #[error("gateway.sender.path or gateway.sender.reply_path")]
    Path(#[from] InvalidPathSpec),
    /// `gateway.smtp`.
    #[error("gateway.smtp")]
    Smtp(#[from] NotServing),
    /// An identity that nobody could log in as.
    #[error("gateway.identities: {name:?} needs a name and a password of its own")]
    Identity {
        /// Which.
        name: String,
    },
    /// Where answers to an identity arrive.
    #[error("gateway.identities: reply_to of {name}")]
    ReplyTo {
        /// Which.
        name: String,
        /// What is wrong.
        source: InvalidAddress,
    },
    /// Nobody keeps the answers.
    #[error(
        "gateway.identities: reply_to of {name}: answers arrive at the node in this process alone; enable [node] and [node.mbox] and name it: mbox:{name}@{node}"
    )]
    NoMailbox {
        /// Whose.
        name: String,
        /// What the node in this process is called.
        node: String,
    },
    /// Metrics of nothing.
    #[error("metrics.listen: these are the statistics of a node, and node.enabled is false")]
    NoMetrics,
    /// A home is not to be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Sockets of the service manager that fit nothing.
    #[error(transparent)]
    Sockets(#[from] SocketError),
}

impl StartError {
    /// Whether it is the configuration that must be mended, and not a port, a disk or the like.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::NoRole
            | Self::Network(_)
            | Self::NoDirectory
            | Self::NoIdentity
            | Self::Path(_)
            | Self::Identity { .. }
            | Self::ReplyTo { .. }
            | Self::NoMailbox { .. }
            | Self::NoMetrics
            | Self::Sockets(_)
            | Self::Exposed { .. }
            | Self::Smtp(NotServing::Config(_) | NotServing::Exposed(_)) => true,
            Self::Directory(e) => !matches!(e, DirectoryError::Files(_) | DirectoryError::Listener(_)),
            Self::Node(e) => e.is_configuration(),
            Self::Listen { .. }
            | Self::DirectoryKey(_)
            | Self::Store(_)
            | Self::Lock(_)
            | Self::Smtp(NotServing::Listen { .. }) => false,
        }
    }

    /// Whether another process is there already.
    pub fn is_second(&self) -> bool {
        matches!(
            self,
            Self::Lock(LockError::Taken { .. })
                | Self::Store(StoreError::Locked { .. })
                | Self::Node(NodeError::Store(StoreError::Locked { .. }))
        )
    }

    /// The key that must be mended, where it is a single one.
    pub fn key(&self) -> Option<&'static str> {
        Some(match self {
            Self::Network(_) => "network.directory_key",
            Self::NoDirectory => "network.directory",
            Self::NoIdentity => "gateway.identities",
            Self::Path(_) => "gateway.sender",
            Self::Smtp(NotServing::Config(_)) => "gateway.smtp",
            Self::Smtp(NotServing::Exposed(_)) => "gateway.smtp.listen",
            Self::Exposed { key, .. } => key,
            Self::Identity { .. } | Self::ReplyTo { .. } | Self::NoMailbox { .. } => "gateway.identities",
            Self::NoMetrics => "metrics.listen",
            Self::Node(node) => node.key()?,
            Self::Directory(DirectoryError::Fingerprint { .. }) => "directory.approved",
            Self::Directory(DirectoryError::Nickname { .. }) => "directory.not_recommended",
            Self::Directory(DirectoryError::Url { .. }) => "directory.url",
            _ => return None,
        })
    }
}

/// The process. See [`Gateway::start`].
#[derive(Debug)]
pub struct Gateway;

/// A directory server that runs.
#[derive(Clone, Debug)]
pub struct RunningDirectory {
    /// Its base URL.
    pub url: String,
    /// Who signs: what goes into `network.directory_key` of others.
    pub key_id: KeyId,
}

/// A process that runs. Dropping it stops it without waiting; [`Running::stop`] waits.
#[derive(Debug)]
pub struct Running {
    /// Where mail clients hand mail in.
    pub smtp: Option<SocketAddr>,
    /// Where mail clients fetch mail.
    pub pop3: Option<SocketAddr>,
    /// Where other mixes hand packets in.
    pub mmtp: Option<SocketAddr>,
    /// What the node said of itself when it started.
    pub descriptor: Option<Arc<Descriptor>>,
    /// The directory server.
    pub directory: Option<RunningDirectory>,
    /// Who the mixes are, for those who send.
    pub network: Option<Network>,
    /// The gateway's mail: outbox, inbox, maildrops.
    pub mail: Option<Db>,
    counters: Counters,
    accounts: Option<Accounts>,
    reply_to: watch::Sender<BTreeMap<String, ExitAddress>>,
    world: World,
    stop: CancellationToken,
    node: Option<RunningNode>,
    sending: Option<Sending>,
    directory_server: Option<mix::node::directory::Running>,
    tasks: JoinSet<()>,
}

impl Gateway {
    /// Starts the roles that `config` enables; returns when all of them serve.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        Self::start_in(config, World::real()).await
    }

    /// As [`Gateway::start`], with time and chance from `world`.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_in(config: Config, world: World) -> Result<Running, StartError> {
        Self::start_on(config, world, None, Inherited::default()).await
    }

    /// As [`Gateway::start_in`], with the passphrase of private keys that are sealed, and on sockets that were open before.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_on(
        config: Config,
        world: World,
        passphrase: Option<Passphrase>,
        sockets: Inherited,
    ) -> Result<Running, StartError> {
        check(&config)?;
        let mut running = Running {
            smtp: None,
            pop3: None,
            mmtp: None,
            descriptor: None,
            directory: None,
            network: None,
            mail: None,
            counters: Counters::default(),
            accounts: None,
            reply_to: watch::channel(BTreeMap::new()).0,
            world: world.clone(),
            stop: CancellationToken::new(),
            node: None,
            sending: None,
            directory_server: None,
            tasks: JoinSet::new(),
        };
        match running.start_roles(config, world, passphrase, sockets).await {
            Ok(()) => Ok(running),
            Err(e) => {
                running.stop().await;
                Err(e)
            }
        }
    }
}

/// What the gateway's parts share.
struct Mailroom {
    db: Db,
    accounts: Accounts,
    inbox_bell: Arc<Notify>,
}

impl Running {
    /// What has been done since the start, in numbers.
    pub fn counts(&self) -> Counts {
        self.counters.snapshot()
    }

    /// The queues of the node, if this process is one.
    pub fn pool(&self) -> Option<&Db> {
        self.node.as_ref().map(|node| &node.db)
    }

    /// What the operator may ask of the node and change, if this process is one.
    pub fn node(&self) -> Option<NodeControl> {
        self.node.as_ref().map(|node| node.control.clone())
    }

    /// Lets what can change while the process runs be as in `config`: what [`NodeControl::apply`] says of the node, who
    /// the mixes are, and the identities.
    ///
    /// # Errors
    /// [`StartError`], as at a start. What is wrong with the settings is found before anything changes.
    pub async fn apply(&self, config: &Config) -> Result<(), StartError> {
        check_aside(config).await?;
        // What can fail comes first. A key more in the keyring is no harm.
        if let Some(mail) = &self.mail {
            for identity in &config.gateway.identities {
                let (name, now, mut dice) = (identity.name.clone(), self.world.now(), self.world.dice());
                durable::write(mail, move |tx| keyring::ensure(tx, &name, now, &mut dice).map(|_| ())).await?;
            }
        }
        let accounts = self.accounts.as_ref();
        let reply_to = accounts.map(|_| reply_addresses(&config.gateway.identities, &config.node)).transpose()?;
        if let Some(node) = &self.node {
            node.control.apply(&config.clone().told_of_each_other().node).await?;
            node.control.apply_network(&config.network);
        }
        if let Some(network) = &self.network {
            network.apply(&config.network)?;
        }
        if let (Some(accounts), Some(reply_to)) = (accounts, reply_to) {
            accounts.replace(&config.gateway.identities);
            self.reply_to.send_replace(reply_to);
        }
        Ok(())
    }

    /// Whether all that runs makes progress, compared with what was seen before.
    pub async fn progress(&self, before: &mut Progress) -> bool {
        let mail = match &self.mail {
            Some(mail) => durable::read(mail, |_| Ok(())).await.is_ok(),
            None => true,
        };
        match &self.node {
            Some(node) => node.control.progress(before).await && mail,
            None => mail,
        }
    }

    /// Returns when a service of any role has ended, or failed, which none should before [`Running::stop`].
    pub async fn service_ended(&mut self) {
        let Self { tasks, node, sending, .. } = self;
        tokio::select! {
            Some(ended) = tasks.join_next() => report(ended),
            () = async {
                match node {
                    Some(node) => node.service_ended().await,
                    None => pending().await,
                }
            } => {}
            () = async {
                match sending {
                    Some(sending) => sending.service_ended().await,
                    None => pending().await,
                }
            } => {}
        }
    }

    /// Stops all roles and waits until they have: what was taken is on disk.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            report(ended);
        }
        if let Some(sending) = self.sending.take() {
            sending.ended().await;
        }
        if let Some(node) = self.node.take() {
            node.ended().await;
        }
        if let Some(server) = self.directory_server.take()
            && let Err(e) = server.stopped().await
        {
            error!(error = %e, "the directory server failed");
        }
        if let Some(mail) = self.mail.take() {
            mail.close();
        }
    }

    async fn start_roles(
        &mut self,
        config: Config,
        world: World,
        passphrase: Option<Passphrase>,
        sockets: Inherited,
    ) -> Result<(), StartError> {
        let config = config.told_of_each_other();
        if config.directory.enabled {
            self.start_directory(&config, &world, &sockets).await?;
        }
        self.network = network(&config, &world)?;
        let mailroom = if config.gateway.enabled { Some(mailroom(&config.gateway, &world)?) } else { None };
        if mailroom.is_some() {
            self.reply_to.send_replace(reply_addresses(&config.gateway.identities, &config.node)?);
        }
        let parts = Parts {
            world: world.clone(),
            counters: self.counters.clone(),
            mailboxes: mailroom.as_ref().map(|mailroom| mailboxes(mailroom, &world)),
            network: config.network.clone(),
            directory: self.network.clone(),
            passphrase,
            sockets: sockets.clone(),
            stop: self.stop.clone(),
        };
        if config.node.enabled {
            let node = Node::start(&config.node, parts.clone()).await?;
            self.mmtp = Some(node.address);
            self.descriptor = Some(node.descriptor());
            self.start_metrics(&config, &node, &sockets).await?;
            self.start_opt_out(&config, &node, &sockets).await?;
            self.node = Some(node);
        }
        if let Some(network) = &self.network {
            self.tasks.spawn(network.clone().run(self.stop.clone()));
        }
        if let Some(mailroom) = mailroom {
            self.start_gateway(&config.gateway, mailroom, parts).await?;
        }
        match sockets.left() {
            left if left.is_empty() => Ok(()),
            addresses => Err(SocketError::Left { addresses }.into()),
        }
    }

    async fn start_metrics(
        &mut self,
        config: &Config,
        node: &RunningNode,
        sockets: &Inherited,
    ) -> Result<(), StartError> {
        let Some(address) = config.metrics.listen else { return Ok(()) };
        let listener = bind_loopback(sockets, address, "metrics", "metrics.listen").await?;
        self.tasks.spawn(metrics::serve(listener, node.control.clone(), self.stop.clone()));
        Ok(())
    }

    /// The page by which recipients of mail opt out.
    async fn start_opt_out(
        &mut self,
        config: &Config,
        node: &RunningNode,
        sockets: &Inherited,
    ) -> Result<(), StartError> {
        let smtp = &config.node.smtp;
        let Some(address) = smtp.opt_out.listen.filter(|_| smtp.enabled) else { return Ok(()) };
        let listener = bind_loopback(sockets, address, "opting out", "node.smtp.opt_out.listen").await?;
        self.tasks.spawn(opt_out::serve(listener, node.control.clone(), self.stop.clone()));
        Ok(())
    }

    async fn start_directory(&mut self, config: &Config, world: &World, sockets: &Inherited) -> Result<(), StartError> {
        let directory = &config.directory;
        let key =
            keys::load_or_make_identity(&directory.home, KeysConfig::default().identity_bits, None, &mut world.dice())?;
        let listener = bind(sockets, directory.listen, "directory").await?;
        let now = world.clone();
        let server = DirectoryServer::start(directory, listener, key, move || now.now(), self.stop.child_token())?;
        let url = directory.url.clone();
        info!(address = %server.address(), key = %server.key_id(), "the directory server is up");
        self.directory = Some(RunningDirectory { url, key_id: server.key_id() });
        self.directory_server = Some(server);
        Ok(())
    }

    async fn start_gateway(
        &mut self,
        config: &GatewayConfig,
        mailroom: Mailroom,
        parts: Parts,
    ) -> Result<(), StartError> {
        let network = self.network.clone().ok_or(StartError::NoDirectory)?;
        let sender = &config.sender;
        let style = Style::new(&sender.path, &sender.reply_path, sender.reply_block_lifetime)?;
        let outbox_bell = Arc::new(Notify::new());
        self.open_doors(config, &mailroom, &parts, &style, &outbox_bell).await?;
        let Mailroom { db, accounts, inbox_bell } = mailroom;
        self.accounts = Some(accounts);
        let (inflate_max, world) = (config.pop.inflate_max, parts.world.clone());
        self.tasks.spawn(collect(db.clone(), inflate_max, inbox_bell, world.clone(), self.stop.clone()));
        let pool = match &self.node {
            // Own mail goes through the own pool, and leaves in batches with the packets of others.
            Some(node) => node.db.clone(),
            None => {
                self.sending = Some(Sending::start(db.clone(), sender.interval, sender.outgoing.clone(), parts));
                db.clone()
            }
        };
        let sender = Sender {
            db: db.clone(),
            pool,
            network,
            style,
            reply_to: self.reply_to.subscribe(),
            give_up: sender.give_up,
            bell: outbox_bell,
            counters: self.counters.clone(),
            world,
            stop: self.stop.clone(),
        };
        self.tasks.spawn(sender.run());
        self.mail = Some(db);
        info!("the gateway is up");
        Ok(())
    }

    /// Where mail clients hand mail in and fetch it. Either both open, or none.
    async fn open_doors(
        &mut self,
        config: &GatewayConfig,
        mailroom: &Mailroom,
        parts: &Parts,
        style: &Style,
        outbox_bell: &Arc<Notify>,
    ) -> Result<(), StartError> {
        let Mailroom { db, accounts, .. } = mailroom;
        let pop3 = bind_loopback(&parts.sockets, config.pop.listen, "POP3", "gateway.pop.listen").await?;
        let house = smtp_in::policy::House {
            exits: Arc::new(KnownExits {
                network: self.network.clone().ok_or(StartError::NoDirectory)?,
                world: parts.world.clone(),
                own: self.node().map(|node| (node, accounts.clone())),
                style: style.clone(),
                reply_to: (config.smtp.reply_blocks > 0).then(|| self.reply_to.subscribe()),
            }),
            accounts: Arc::new(accounts.clone()),
            outbox: Arc::new(WatchedOutbox { db: db.clone(), bell: Arc::clone(outbox_bell) }),
        };
        let door = smtp_in::server::Server::bind_in(&parts.sockets, &config.smtp, house).await?;
        self.smtp = Some(door.address());
        self.pop3 = local_address(&pop3, "POP3")?;
        self.tasks.spawn(door.run(self.stop.clone()));
        let maildrops = maildrop::Store::new(db.clone());
        let door = pop_out::server::Server::new(accounts.clone(), maildrops, (&config.pop).into());
        self.tasks.spawn(door.serve(pop3, self.stop.clone()));
        Ok(())
    }
}

/// Who the mixes are, for those who send: gateways, and nodes for their dummies. A node may do without, and be told later.
fn network(config: &Config, world: &World) -> Result<Option<Network>, StartError> {
    let Config { network, gateway, node, .. } = config;
    let home = match (gateway.enabled, node.enabled) {
        (true, _) => &gateway.home,
        (false, true) => &node.home,
        (false, false) => return Ok(None),
    };
    private_folder(home)?;
    Ok(Some(Network::new(network.clone(), home.join("directory"), world.clone())?))
}

/// Says that a service failed; never with what words, which may be a mail's.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(e) = ended {
        error!(panicked = e.is_panic(), "a service failed");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Opens the gateway's database and makes a key for each identity that has none.
fn mailroom(config: &GatewayConfig, world: &World) -> Result<Mailroom, StartError> {
    let schemas: Vec<_> =
        GATEWAY_SCHEMAS.into_iter().chain([queue::SCHEMA, queue::BY_HAND, maildrop::SCHEMA]).collect();
    let db = Db::open(&config.home.join("gateway.db"), &schemas)?;
    for identity in &config.identities {
        let (name, now, mut dice) = (identity.name.clone(), world.now(), world.dice());
        db.write(move |tx| keyring::ensure(tx, &name, now, &mut dice))?;
    }
    Ok(Mailroom { db, accounts: Accounts::new(&config.identities), inbox_bell: Arc::new(Notify::new()) })
}

fn mailboxes(mailroom: &Mailroom, world: &World) -> Arc<dyn mix::deliver::mbox::LocalMailboxes<Arrival>> {
    Arc::new(Inbox {
        db: mailroom.db.clone(),
        accounts: mailroom.accounts.clone(),
        bell: Arc::clone(&mailroom.inbox_bell),
        world: world.clone(),
    })
}

/// Moves what arrives into the maildrops, decoded, and removes what has become old.
async fn collect(db: Db, inflate_max: usize, bell: Arc<Notify>, world: World, stop: CancellationToken) {
    let mut cleaning = interval(CLEANING);
    while !stop.is_cancelled() {
        let (mail, now, mut dice) = (db.clone(), world.now(), world.dice());
        let collected =
            tokio::task::spawn_blocking(move || collector::run_once(&mail, inflate_max, now, &mut dice)).await;
        match collected {
            Ok(Ok(0)) => {}
            // What was decoded stands in the log of the database as it came.
            Ok(Ok(_)) => durable::wipe(&db).await,
            Ok(Err(e)) => error!(error = %e, "what arrived cannot be put into the maildrops"),
            Err(e) => error!(panicked = e.is_panic(), "what arrived cannot be opened"),
        }
        tokio::select! {
            () = bell.notified() => {}
            _ = cleaning.tick() => clean(&db, &world).await,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Removes fragments whose message never became complete, and what was remembered of old arrivals.
async fn clean(db: &Db, world: &World) {
    let now = world.now();
    let before = |age| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    let (incomplete, remembered) = (before(KEEP_INCOMPLETE), before(REMEMBER));
    let cleaned = durable::write(db, move |tx| {
        fragments::expire(tx, incomplete, now)?;
        fragments::prune(tx, remembered)?;
        inbox::prune(tx, remembered)
    });
    if let Err(e) = cleaned.await {
        error!(error = %e, "old fragments cannot be removed");
    }
    durable::wipe(db).await;
}

async fn bind(sockets: &Inherited, address: SocketAddr, role: &'static str) -> Result<TcpListener, StartError> {
    sockets.bind(address).await.map_err(|source| StartError::Listen { address, role, source })
}

/// As [`bind`], for a door without TLS; `key` is its setting.
async fn bind_loopback(
    sockets: &Inherited,
    address: LoopbackAddress,
    role: &'static str,
    key: &'static str,
) -> Result<TcpListener, StartError> {
    sockets.bind_loopback(address).await.map_err(|why| match why {
        NotOpened::Exposed(source) => StartError::Exposed { key, source },
        NotOpened::System(source) => StartError::Listen { address: address.into(), role, source },
    })
}

fn local_address(listener: &TcpListener, role: &'static str) -> Result<Option<SocketAddr>, StartError> {
    let unknown = |source| StartError::Listen { address: SocketAddr::from(([127, 0, 0, 1], 0)), role, source };
    listener.local_addr().map(Some).map_err(unknown)
}
