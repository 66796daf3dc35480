//! Starts the network of the demonstration, says where everything is, and shows what it does.

use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mix::deliver::limits::LimitsConfig;
use mix::directory::Directory;
use mix::net::loopback::LoopbackAddress;
use mix::node::config::{DummiesConfig, MixRule, MixingConfig, NetworkConfig, NodeConfig, OutgoingConfig};
use mix::node::directory::DirectoryConfig;
use mix::node::retry::{RetrySchedule, RetryStep};
use mix::node::{Counts, World};
use mix::path::Mailbox;
use mix::store::outbox;
use mix::store::queue::pool;
use pop_out::maildir::Maildirs;
use pop_out::maildrop;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::outside::Outside;
use super::state::{NodeState, State, loopback, replace_file};
use crate::config::{Config, GatewayConfig, IdentityConfig, Password};
use crate::{Gateway, Running};

/// The pseudonym of the demonstration.
const USER: &str = "alice";
/// The user of the outside world's mailbox.
const OUTSIDE_USER: &str = "outside";
/// The largest message that the exits take.
const MAX_SIZE: u64 = 10 * 1024 * 1024;
/// How long the mixes may take to be listed.
const LISTING: Duration = Duration::from_secs(60);
/// How often the live line looks whether anything has changed.
const LIVE: Duration = Duration::from_secs(1);

/// What the command line says about the network.
#[derive(Debug)]
pub(crate) struct Options {
    /// How many mixes.
    pub(crate) nodes: usize,
    /// Port of the gateway's SMTP door; 0 for any.
    pub(crate) smtp: u16,
    /// Port of the gateway's POP3 door; 0 for any.
    pub(crate) pop3: u16,
    /// The mix interval.
    pub(crate) interval: Duration,
    /// The folder to keep everything in; a temporary one if there is none.
    pub(crate) home: Option<PathBuf>,
}

/// A network that runs.
pub(crate) struct Demo {
    state: State,
    home: PathBuf,
    /// The directory, then the mixes; the first mix is also the gateway.
    directory: Running,
    nodes: Vec<Running>,
    outside: Outside,
    outside_pop3: SocketAddr,
    stop: CancellationToken,
    /// Removed when dropped.
    _temporary: Option<tempfile::TempDir>,
}

impl Demo {
    /// Starts everything; returns when a mail would find its way.
    pub(crate) async fn start(options: Options) -> anyhow::Result<Self> {
        let (home, temporary) = home(options.home.as_deref())?;
        let state = State::load_or_make(&home, options.nodes)?;
        let stop = CancellationToken::new();
        let (outside, outside_pop3) = start_outside(&home, &state, &stop).await?;
        let directory =
            Gateway::start(directory_config(&home, &state)).await.context("starting the directory server")?;
        let served = directory.directory.clone().context("starting the directory server")?;
        let network = NetworkConfig {
            directory: served.url,
            directory_key: served.key_id.to_string(),
            refresh: Duration::from_secs(10),
            retry: Duration::from_secs(1),
        };
        let mut nodes = Vec::new();
        for (i, node) in state.nodes.iter().enumerate() {
            let mut config = Config { network: network.clone(), ..Config::default() };
            config.node = node_config(&home, &state, node, i, options.interval);
            if i == 0 {
                config.gateway = gateway_config(&home, &state, &options)?;
            }
            nodes.push(Gateway::start(config).await.with_context(|| format!("starting the mix {}", node.nickname))?);
        }
        let demo = Self { state, home, directory, nodes, outside, outside_pop3, stop, _temporary: temporary };
        demo.listed().await?;
        Ok(demo)
    }

    /// Waits until the gateway knows all mixes.
    async fn listed(&self) -> anyhow::Result<()> {
        let network = self.gateway().network.clone().context("the gateway has no network")?;
        let wanted = self.nodes.len();
        let complete = |directory: Arc<Directory>| directory.live(World::real().now()).len() >= wanted;
        let poll = async {
            while !network.directory().is_some_and(complete) {
                // A failure is tried again until the time is over.
                let _ = network.refresh().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(LISTING, poll).await.context("the directory does not list all mixes")
    }

    /// The process that is gateway and mix.
    pub(super) fn gateway(&self) -> &Running {
        self.nodes.first().expect("at least two mixes: checked by the command line")
    }

    /// Where a mail client hands mail in.
    pub(super) fn smtp(&self) -> SocketAddr {
        self.gateway().smtp.expect("the gateway is enabled in the first mix")
    }

    /// Where a mail client fetches mail.
    pub(super) fn pop3(&self) -> SocketAddr {
        self.gateway().pop3.expect("the gateway is enabled in the first mix")
    }

    /// User name and password for both.
    pub(super) fn login(&self) -> (&'static str, &str) {
        (USER, &self.state.password)
    }

    /// Where the exits deliver.
    pub(super) fn outside(&self) -> &Outside {
        &self.outside
    }

    /// The user's own address in the network: mail to it comes back.
    pub(super) fn address(&self) -> String {
        let nickname = self.state.nodes.first().map_or("", |node| &node.nickname);
        format!("{USER}@{}.{}", nickname.to_lowercase(), smtp_in::recipient::MBOX_DOMAIN)
    }

    /// Writes where everything is to `file`: whole, or not at all. The README documents the format.
    pub(crate) fn announce(&self, file: &Path) -> anyhow::Result<()> {
        let (user, password) = self.login();
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .zip(&self.state.nodes)
            .map(|(running, node)| {
                json!({
                    "nickname": node.nickname,
                    "mmtp": running.mmtp.map(|address| address.to_string()),
                    "identity": running.descriptor.as_ref().map(|descriptor| descriptor.key_id().to_string()),
                    "home": node_home(&self.home, node),
                })
            })
            .collect();
        let ready = json!({
            "pid": std::process::id(),
            "smtp": self.smtp().to_string(),
            "pop3": self.pop3().to_string(),
            "user": user,
            "password": password,
            "address": self.address(),
            "outside": {
                "maildir": self.outside.maildir,
                "smtp": self.outside.smtp.to_string(),
                "pop3": self.outside_pop3.to_string(),
                "user": OUTSIDE_USER,
                "password": self.state.outside_password,
            },
            "nodes": nodes,
            "directory": directory_url(&self.state),
        });
        replace_file(file, format!("{ready}\n").as_bytes()).with_context(|| format!("writing {}", file.display()))
    }

    /// Removes what an earlier run has announced: whoever waits for `file` shall not read of ports that are gone.
    pub(crate) fn unannounce(file: &Path) -> anyhow::Result<()> {
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("removing {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Says what to type into a mail client.
    pub(crate) fn explain(&self) {
        let (user, password) = self.login();
        let text = format!(
            "A network of {} mixes is up on this machine. In Thunderbird, set up an account by hand:

    your name, address    anything, and {address}
    incoming server       POP3, {}, port {}
    outgoing server       SMTP, {}, port {}
    connection security   none (it is this machine)
    authentication        password, transmitted insecurely
    user name, password   {user}, {password}

Mail to any address ends in {}.
Mail to {address} goes through the mixes and comes back to you.
Ctrl-C ends it.
",
            self.nodes.len(),
            self.pop3().ip(),
            self.pop3().port(),
            self.smtp().ip(),
            self.smtp().port(),
            self.outside.maildir.join("new").display(),
            address = self.address(),
        );
        // Whoever has closed the output does not want to read it; the network goes on.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// Shows what happens, as counts, until a service ends that should not.
    pub(crate) async fn watch(&mut self) -> anyhow::Result<()> {
        let terminal = std::io::stdout().is_terminal();
        let mut shown = String::new();
        loop {
            let line = self.live_line();
            if line != shown {
                show(&line, terminal, shown.len());
                shown = line;
            }
            tokio::select! {
                () = tokio::time::sleep(LIVE) => {}
                () = self.service_ended() => bail!("a service has ended that should not; see the lines above"),
            }
        }
    }

    /// Returns when a service of any role has ended or failed.
    async fn service_ended(&mut self) {
        let all = self.nodes.iter_mut().chain([&mut self.directory]);
        let mut services: Vec<_> = all.map(|running| Box::pin(running.service_ended())).collect();
        std::future::poll_fn(|context| {
            let ended = services.iter_mut().any(|service| service.as_mut().poll(context).is_ready());
            if ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn live_line(&self) -> String {
        let mut counts = Counts::default();
        self.nodes.iter().for_each(|node| counts += node.counts());
        let mail = self.gateway().mail.as_ref();
        let waiting = mail.and_then(|db| db.read(outbox::counts).ok()).map_or(0, |counts| counts.mails);
        let maildrop = mail.and_then(|db| db.read(|view| maildrop::list(view, USER)).ok()).map_or(0, |list| list.len());
        let pools: u64 =
            self.nodes.iter().filter_map(|node| node.pool()).filter_map(|db| db.read(pool::count).ok()).sum();
        format!(
            "mails taken {} | packed {} | in the pools {pools} | relayed {} | delivered {} | in your maildrop {maildrop}",
            counts.packed + waiting,
            counts.packed,
            counts.relayed,
            counts.delivered,
        )
    }

    /// Stops everything, and removes what is temporary.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        for node in self.nodes {
            node.stop().await;
        }
        self.directory.stop().await;
    }
}

/// One line that is written over on a terminal, one below the other elsewhere.
fn show(line: &str, terminal: bool, last_len: usize) {
    let mut out = std::io::stdout();
    // An output that is gone is no reason to stop.
    let _ = if terminal { write!(out, "\r{line:last_len$}") } else { writeln!(out, "{line}") };
    let _ = out.flush();
}

/// The folder given, or a temporary one that goes away at the end. Private: keys and mail are in it.
fn home(given: Option<&Path>) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    let (home, temporary) = match given {
        Some(folder) => (std::path::absolute(folder)?, None),
        None => {
            let folder = tempfile::Builder::new().prefix("mixgate-demo-").tempdir().context("a temporary folder")?;
            (folder.path().join("home"), Some(folder))
        }
    };
    mix::store::db::private_folder(&home)?;
    Ok((home, temporary))
}

async fn start_outside(home: &Path, state: &State, stop: &CancellationToken) -> anyhow::Result<(Outside, SocketAddr)> {
    let address = loopback(state.outside_smtp);
    let listener = TcpListener::bind(address).with_context(|| format!("listening at {address} (outside world)"))?;
    let maildir = home.join("outside").join(OUTSIDE_USER);
    let outside = Outside::start(listener, &maildir).context("starting the outside world")?;
    let pop3 = tokio::net::TcpListener::bind(loopback(0)).await.context("listening for POP3 (outside world)")?;
    let pop3_address = pop3.local_addr()?;
    let account = IdentityConfig {
        name: OUTSIDE_USER.into(),
        password: Password::new(state.outside_password.clone()),
        ..IdentityConfig::default()
    };
    let accounts = crate::accounts::Accounts::new(&[account]);
    let limits = (&pop_out::config::PopConfig::default()).into();
    let server = pop_out::server::Server::new(accounts, Maildirs::new(home.join("outside")), limits);
    tokio::spawn(server.serve(pop3, stop.clone()));
    Ok((outside, pop3_address))
}

fn directory_url(state: &State) -> String {
    format!("http://{}/", loopback(state.directory))
}

fn directory_config(home: &Path, state: &State) -> Config {
    let directory = DirectoryConfig {
        enabled: true,
        home: home.join("directory"),
        listen: loopback(state.directory),
        url: directory_url(state),
        accept_unknown: true,
        ..DirectoryConfig::default()
    };
    Config { directory, ..Config::default() }
}

fn node_home(home: &Path, node: &NodeState) -> PathBuf {
    home.join("nodes").join(&node.nickname)
}

fn node_config(home: &Path, state: &State, node: &NodeState, i: usize, interval: Duration) -> NodeConfig {
    // Try again soon: on loopback a mix is away only while the demonstration is.
    let retry =
        RetrySchedule::new(vec![RetryStep { every: Duration::from_secs(2), during: Duration::from_secs(24 * 3600) }]);
    let mut config = NodeConfig {
        enabled: true,
        nickname: node.nickname.clone(),
        home: node_home(home, node),
        listen: loopback(node.port).into(),
        host: "127.0.0.1".into(),
        // So few packets would never leave a pool that keeps 45.
        mixing: MixingConfig { interval, rule: MixRule::Binomial, minimum: 0, rate: 0.65 },
        // At an interval of seconds they would be most of what the live line counts, and of what the machine does.
        dummies: DummiesConfig { enabled: false, ..DummiesConfig::default() },
        outgoing: OutgoingConfig { retry: retry.clone(), ..OutgoingConfig::default() },
        ..NodeConfig::default()
    };
    config.fragments.enabled = true;
    config.fragments.max_size = MAX_SIZE;
    config.mbox.enabled = i == 0;
    config.mbox.max_size = MAX_SIZE;
    // The last two are the exits.
    config.smtp.enabled = i + 2 >= state.nodes.len();
    config.smtp.max_size = MAX_SIZE;
    config.smtp.mime_max_size = MAX_SIZE;
    // Nobody floods anybody here.
    config.smtp.inflate_max = MAX_SIZE;
    config.smtp.limits = LimitsConfig::none();
    config.smtp.retry = retry;
    config.smtp.server.host = "127.0.0.1".into();
    config.smtp.server.port = state.outside_smtp;
    config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
    config
}

fn gateway_config(home: &Path, state: &State, options: &Options) -> anyhow::Result<GatewayConfig> {
    let Some(first) = state.nodes.first() else { bail!("a network needs mixes") };
    let mut config = GatewayConfig {
        enabled: true,
        home: home.join("gateway"),
        identities: vec![IdentityConfig {
            name: USER.into(),
            password: Password::new(state.password.clone()),
            reply_to: format!("mbox:{USER}@{}", first.nickname),
        }],
        ..GatewayConfig::default()
    };
    config.smtp.listen = LoopbackAddress::ipv4(options.smtp);
    // As the exits of this network do.
    config.smtp.inflate_max = usize::try_from(MAX_SIZE).expect("ten million");
    config.pop.listen = LoopbackAddress::ipv4(options.pop3);
    // Nobody floods anybody here.
    config.pop.inflate_max = usize::try_from(MAX_SIZE).expect("ten million");
    Ok(config)
}
