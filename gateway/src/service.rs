//! A process from its start to its end: signals, the control socket, the service manager.
//!
//! SIGTERM, SIGINT and `stop` end it; SIGHUP and `reload` read the configuration again. What can change at once is
//! [`can_change`]'s to say.

use std::time::{Duration, SystemTime};

use mix::crypto::Passphrase;
use mix::net::descriptors;
use mix::net::sockets::Inherited;
use mix::node::{Discarded, NodeControl, NotOptedOut, Progress, World};
use mix::path::Mailbox;
use mix::store::StoreError;
use mixgate_conf::{Loaded, Origins};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::check::{Warning, warnings};
use crate::commands::{Configured, Failed, StopSignals};
use crate::control::{Ask, Asked, ControlSocket, Refusal, Why};
use crate::lock::Lock;
use crate::queue::AskQueue;
use crate::start::{Gateway, Running};
use crate::status::{DiscardedKeys, PacketKey, Stats, Status, publication};
use crate::{Config, log, systemd};

/// How long a stop may take: packets and mails under way are finished, or tried again after the next start. What was
/// accepted is on disk.
pub(crate) const STOP_BOUND: Duration = Duration::from_secs(60);
/// How long whoever asks for an upload waits for it; it goes on without them.
const UPLOAD_BOUND: Duration = Duration::from_secs(60);
/// How long a reload waits until keys and descriptors are as the settings want them; they become so without it too.
const SETTLING_BOUND: Duration = Duration::from_secs(10);
/// Requests that wait for the service.
const REQUESTS: usize = 8;

/// Keys, or sections, that can change while the process runs: all of a node but what is bound to a socket that is open
/// (`node.listen`, `node.incoming.max_unsent`), to a folder, to the name that directories know, and to how its keys were
/// read. A gateway changes its identities alone, and a directory server nothing.
const CHANGEABLE: [&str; 28] = [
    "log.level",
    IDENTITIES,
    "network",
    "node.contact",
    "node.contact_fingerprint",
    "node.comments",
    "node.host",
    "node.port",
    "node.disk_reserve",
    "node.keys.lifetime",
    "node.keys.overlap",
    "node.keys.ahead",
    "node.mixing",
    "node.dummies",
    "node.incoming.access",
    "node.incoming.max_connections",
    "node.incoming.max_connections_per_address",
    "node.incoming.handshake_timeout",
    "node.incoming.idle_timeout",
    "node.incoming.max_lifetime",
    "node.incoming.max_packets",
    "node.incoming.stop_timeout",
    "node.outgoing",
    "node.bandwidth",
    "node.smtp",
    "node.mbox",
    "node.fragments",
    "node.stats",
];
/// The keys that hold passwords.
const IDENTITIES: &str = "gateway.identities";
const PASSWORD: &str = "node.smtp.server.password";

/// A key within those that is bound to a socket all the same.
const FIXED: &str = "node.smtp.opt_out.listen";

/// Whether a key takes effect without a restart.
fn can_change(key: &str) -> bool {
    let within =
        |section: &&str| key.strip_prefix(*section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    key != FIXED && CHANGEABLE.iter().any(within)
}

/// What came of a reload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    /// Keys that are now as the configuration says.
    pub(crate) changed: Vec<String>,
    /// Keys that differ, and wait for a restart.
    pub(crate) restart: Vec<String>,
    /// Why the descriptors do not say yet what is set.
    pub(crate) unsaid: Option<String>,
}

/// Runs the roles of `loaded` until the process is asked to end, or a service does.
pub(crate) async fn run(
    arguments: Configured,
    loaded: Loaded<Config>,
    passphrase: Option<Passphrase>,
    sockets: Inherited,
) -> Result<(), Failed> {
    let Loaded { settings: config, origins } = loaded;
    log::init(config.log.level);
    descriptors::raise();
    let mut signals = StopSignals::listen()?;
    let hangup = signal(SignalKind::hangup())?;
    let lock = Lock::take(&config).map_err(|e| Failed::start(e.into(), &origins))?;
    let started = tokio::select! {
        started = Gateway::start_on(config.clone(), World::real(), passphrase, sockets) => started,
        () = signals.asked() => return Ok(()),
    };
    let running = started.map_err(|e| Failed::start(e, &origins))?;
    let mut service = Service::new(arguments, config, origins, running, hangup);
    service.warn();
    systemd::ready();
    let ended = service.serve(&mut signals).await;
    systemd::stopping();
    info!("stopping");
    service.stop(&mut signals).await;
    // The system releases it with the process: whoever waits for the lock waits for the very end.
    std::mem::forget(lock);
    ended
}

/// The process.
struct Service {
    arguments: Configured,
    /// What is in force, which a reload changes in part.
    config: Config,
    origins: Origins,
    /// What was last said to be unwise.
    warned: Vec<Warning>,
    running: Running,
    since: SystemTime,
    hangup: Signal,
    requests: mpsc::Receiver<Asked>,
    watchdog: Option<Interval>,
    progress: Progress,
    stop: CancellationToken,
}

impl Service {
    fn new(arguments: Configured, config: Config, origins: Origins, running: Running, hangup: Signal) -> Self {
        let stop = CancellationToken::new();
        let (asked, requests) = mpsc::channel(REQUESTS);
        if config.node.enabled {
            match ControlSocket::open(&config.node.home) {
                Ok(socket) => drop(tokio::spawn(socket.run(asked, stop.clone()))),
                Err(e) => warn!(error = %e, "no control socket: other commands cannot talk to this process"),
            }
        }
        let watchdog = systemd::watchdog().map(|period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        let (since, progress) = (SystemTime::now(), Progress::default());
        let warned = Vec::new();
        Self { arguments, config, origins, warned, running, since, hangup, requests, watchdog, progress, stop }
    }

    /// Returns when it is time to end.
    async fn serve(&mut self, signals: &mut StopSignals) -> Result<(), Failed> {
        loop {
            tokio::select! {
                () = signals.asked() => return Ok(()),
                () = self.running.service_ended() => {
                    return Err(anyhow::anyhow!("a service has ended that should not; see the log").into());
                }
                _ = self.hangup.recv() => drop(self.reload().await),
                () = tick(&mut self.watchdog) => {
                    if self.running.progress(&mut self.progress).await {
                        systemd::alive();
                    } else {
                        warn!("nothing moves: the service manager is not told that this process lives");
                    }
                }
                Some(Asked { ask, answer }) = self.requests.recv() => {
                    let done = match ask {
                        Ask::Stop => {
                            // Whoever asked may be gone.
                            let _ = answer.send(Ok(true.into()));
                            return Ok(());
                        }
                        Ask::Reload => self.reload().await.and_then(|done| json(&done)),
                        Ask::Status => self.status().await,
                        Ask::Stats => self.stats(),
                        Ask::Republish => {
                            // Nobody else waits for the directory server.
                            drop(tokio::spawn(republish(self.running.node(), answer)));
                            continue;
                        }
                        Ask::OptOut { .. } | Ask::OptedOut { .. } | Ask::UndoOptOut { .. } => {
                            // The database may be busy.
                            drop(tokio::spawn(opt_outs(self.running.node(), ask, answer)));
                            continue;
                        }
                        Ask::Discard => {
                            // Keys take their time.
                            drop(tokio::spawn(discard(self.running.node(), answer)));
                            continue;
                        }
                        Ask::Queue(ask) => {
                            // There may be much of it.
                            drop(tokio::spawn(queue(self.running.node(), ask, answer)));
                            continue;
                        }
                    };
                    let _ = answer.send(done);
                }
            }
        }
    }

    /// Reads the configuration again. What is wrong with it is said, and changes nothing.
    async fn reload(&mut self) -> Result<Reloaded, Refusal> {
        systemd::reloading();
        let reloaded = self.try_reload().await;
        match &reloaded {
            Ok(Reloaded { changed, restart, unsaid }) => {
                info!(changed = changed.join(" "), "the configuration was read again");
                self.warn();
                if let Some(why) = unsaid {
                    warn!(why, "the descriptors do not say yet what is set");
                }
                if !restart.is_empty() {
                    warn!(keys = restart.join(" "), "these keys differ too, and wait for a restart");
                }
            }
            Err(refusal) => warn!(error = %refusal, "the configuration was not taken: all stays as it is"),
        }
        systemd::ready();
        reloaded
    }

    /// Says what of the settings in force is allowed and unwise, if it was not so when that was last said.
    fn warn(&mut self) {
        let warnings = warnings(&self.config, Some(&self.origins));
        for warning in warnings.iter().filter(|warning| !self.warned.contains(warning)) {
            warn!(key = warning.key, "{}", warning.text);
        }
        self.warned = warnings;
    }

    async fn try_reload(&mut self) -> Result<Reloaded, Refusal> {
        let refusal = |failed: Failed| Refusal::new(Why::Configuration, failed.to_string());
        let Loaded { settings: new, origins } = self.arguments.load_traced().map_err(refusal)?;
        // All of it must be fit for a start: else the next one would find what nobody was told now.
        crate::check::check_aside(&new).await.map_err(|e| refusal(Failed::start(e, &origins)))?;
        let mut changes = mixgate_conf::changes(&self.config, &new, can_change)
            .map_err(|e| Refusal::new(Why::Failed, e.to_string()))?;
        // Passwords are not written out, so they are neither compared nor taken there.
        if self.config.gateway.identities != new.gateway.identities
            && !changes.changed.iter().any(|it| it == IDENTITIES)
        {
            changes.changed.push(IDENTITIES.to_owned());
        }
        changes.settings.gateway.identities = new.gateway.identities;
        let (old, new) = (&self.config.node.smtp.server.password, new.node.smtp.server.password);
        if *old != new && !changes.changed.iter().any(|it| it == PASSWORD) {
            changes.changed.push(PASSWORD.to_owned());
        }
        changes.settings.node.smtp.server.password = new;
        self.running.apply(&changes.settings).await.map_err(|e| refusal(Failed::start(e, &origins)))?;
        log::set_level(changes.settings.log.level);
        self.config = changes.settings;
        self.origins = origins;
        Ok(Reloaded { changed: changes.changed, restart: changes.kept, unsaid: self.settle().await })
    }

    /// Waits until keys and descriptors are as the settings want them; says why they are not.
    async fn settle(&self) -> Option<String> {
        let node = self.running.node()?;
        match timeout(SETTLING_BOUND, node.settled()).await {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(format!("{:#}", anyhow::Error::from(e))),
            Err(_) => Some("it takes longer than ten seconds, and goes on".to_owned()),
        }
    }

    async fn status(&self) -> Result<Value, Refusal> {
        let node = self.running.node().ok_or_else(no_node)?;
        let directory = self.running.network.as_ref().and_then(|network| network.valid_until());
        let mut warnings = warnings(&self.config, Some(&self.origins));
        if self.config.node.dummies.enabled && self.running.network.is_some() && directory.is_none() {
            let text = "no directory signed with it is in force, and so no dummies are sent".to_owned();
            warnings.push(Warning { key: "network.directory_key", text });
        }
        let warnings = warnings.into_iter().map(|warning| format!("{}: {}", warning.key, warning.text)).collect();
        json(&Status::of(node.status().await, self.since, directory, warnings))
    }

    fn stats(&self) -> Result<Value, Refusal> {
        let node = self.running.node().ok_or_else(no_node)?;
        let report = node.report();
        let report = report.ok_or_else(|| Refusal::new(Why::Failed, "none are kept: node.stats.enabled is false"))?;
        json(&Stats::of(&report))
    }

    async fn stop(self, signals: &mut StopSignals) {
        self.stop.cancel();
        tokio::select! {
            () = self.running.stop() => {}
            () = tokio::time::sleep(STOP_BOUND) => {
                warn!("what is under way takes too long; it is tried again after the next start");
            }
            // Whoever asks twice does not want to wait. What was accepted is on disk.
            () = signals.asked() => {}
        }
    }
}

async fn tick(watchdog: &mut Option<Interval>) {
    match watchdog {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}

/// One upload serves all who ask before it is done.
async fn republish(node: Option<NodeControl>, mut answer: oneshot::Sender<Result<Value, Refusal>>) {
    let uploaded = async {
        let Some(node) = node else { return Err(no_node()) };
        match timeout(UPLOAD_BOUND, node.publish_again()).await {
            Ok(said) => Ok(publication(said).into()),
            Err(_) => {
                Err(Refusal::new(Why::Failed, "the directory server has not answered for a minute; the upload goes on"))
            }
        }
    };
    tokio::select! {
        said = uploaded => {
            // Whoever asked may be gone.
            let _ = answer.send(said);
        }
        () = answer.closed() => {}
    }
}

/// Discards the packet keys that have not begun, whether anybody waits for it or not.
async fn discard(node: Option<NodeControl>, answer: oneshot::Sender<Result<Value, Refusal>>) {
    let discarded = match node {
        None => Err(no_node()),
        Some(node) => match node.discard_keys_ahead().await {
            Ok(Discarded { gone, made }) => {
                let days = |keys: Vec<_>| keys.into_iter().map(PacketKey::of).collect();
                json(&DiscardedKeys { gone: days(gone), made: days(made) })
            }
            Err(e) => Err(Refusal::new(Why::Failed, format!("{:#}", anyhow::Error::from(e)))),
        },
    };
    // Whoever asked may be gone.
    let _ = answer.send(discarded);
}

/// Notes, lists and undoes who has opted out, whether anybody waits for it or not.
async fn opt_outs(node: Option<NodeControl>, ask: Ask, answer: oneshot::Sender<Result<Value, Refusal>>) {
    let failed = |e: StoreError| Refusal::new(Why::Failed, e.to_string());
    let request = |e: String| Refusal::new(Why::Request, e);
    let done = match (node, ask) {
        (None, _) => Err(no_node()),
        (Some(node), Ask::OptOut { token, address }) => match node.opt_out(&token, &address).await {
            Ok(()) => Ok(true.into()),
            Err(NotOptedOut::Store(e)) => Err(failed(e)),
            Err(e @ NotOptedOut::Full) => Err(Refusal::new(Why::Failed, e.to_string())),
            Err(e) => Err(request(format!("{:#}", anyhow::Error::from(e)))),
        },
        (Some(node), Ask::OptedOut { after }) => {
            node.opted_out(after).await.map_err(failed).and_then(|mailboxes| json(&mailboxes))
        }
        (Some(node), Ask::UndoOptOut { address }) => match Mailbox::parse(&address) {
            Ok(mailbox) => node.undo_opt_out(&mailbox).await.map(Value::Bool).map_err(failed),
            Err(e) => Err(request(e.to_string())),
        },
        (Some(_), _) => Err(request("this is not about opting out".to_owned())),
    };
    let _ = answer.send(done);
}

/// Does what the operator asks of the exit queue, whether anybody waits for it or not.
async fn queue(node: Option<NodeControl>, ask: AskQueue, answer: oneshot::Sender<Result<Value, Refusal>>) {
    let done = match node {
        None => Err(no_node()),
        Some(node) => ask.of(&node.exit_queue()).await.map_err(|e| Refusal::new(Why::Failed, format!("{e:#}"))),
    };
    // Whoever asked may be gone.
    let _ = answer.send(done);
}

fn no_node() -> Refusal {
    Refusal::new(Why::Failed, "this process is no node")
}

fn json(done: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(done).map_err(|e| Refusal::new(Why::Failed, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::{CHANGEABLE, can_change};
    use crate::Config;

    /// All settings of the program.
    fn keys() -> Vec<String> {
        let mut keys = Vec::new();
        below("", &serde_json::to_value(Config::default()).unwrap(), &mut keys);
        keys.sort();
        keys
    }

    fn below(above: &str, value: &serde_json::Value, keys: &mut Vec<String>) {
        match value.as_object() {
            Some(section) => section.iter().for_each(|(name, value)| {
                let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
                below(&key, value, keys);
            }),
            None => keys.push(above.to_owned()),
        }
    }

    #[test]
    fn what_a_port_or_a_folder_is_bound_to_waits_for_a_restart() {
        let fixed: Vec<_> = keys().into_iter().filter(|key| !can_change(key)).collect();
        let of_the_node: Vec<_> = fixed.iter().filter(|key| key.starts_with("node.")).collect();
        let expected = [
            "node.enabled",
            "node.home",
            "node.incoming.max_unsent",
            "node.keys.identity_bits",
            "node.keys.sealed",
            "node.listen",
            "node.nickname",
            "node.smtp.opt_out.listen",
        ];
        assert_eq!(of_the_node, expected.each_ref());
        let others = fixed.iter().filter(|key| !key.starts_with("node."));
        assert!(others.clone().all(|key| ["gateway.", "directory.", "metrics."].iter().any(|it| key.starts_with(it))));
        assert!(!can_change("node.mixingx"));
        for key in CHANGEABLE {
            assert!(
                keys().iter().any(|known| known == key || known.starts_with(&format!("{key}."))),
                "{key} is no setting"
            );
        }
    }
}
