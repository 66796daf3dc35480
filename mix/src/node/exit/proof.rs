//! An exit proves to itself that it can hand mail over, before its descriptor says so, and each day from then on.
//!
//! A proof goes as far as a mail would, up to the mail itself (`way`). While none has succeeded, or after one that failed,
//! the descriptor leaves the delivery out: `rotation` signs another with the same keys. What is in the network by then comes
//! all the same, and is tried as long as any other mail.
//!
//! A reload that names another way has it proven at once; until that proof ends, what was known of the one before is stated.
//! What passes by itself, such as a server that restarts, has another try or two before an exit that was proven takes its
//! word back: clients learn of each change a day later. What the operator must mend is believed at once.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::way::Unproven;
use super::{SmtpWay, Ways};
use crate::node::clock::World;
use crate::node::config::NodeConfig;

/// How long what was proven is believed.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
/// How soon a proof that failed is followed by another, at first.
const SOON: Duration = Duration::from_secs(5 * 60);
/// Proofs in a row that fail until the next one waits for longer, and until what passes by itself is no longer expected to.
const PATIENCE: u32 = 3;
/// How long it waits then.
const LATER: Duration = Duration::from_secs(3600);
/// A proof that takes longer has failed, whatever the settings grant to a mail.
const LONGEST: Duration = Duration::from_secs(600);
/// How long a start waits for the first proof: else each restart would sign a descriptor without the delivery, and a moment
/// later one with it. A mix behind a mail server that hangs starts all the same.
const AT_THE_START: Duration = Duration::from_secs(10);

/// Whether e-mail can be delivered, as far as this node has proven it to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MailDelivery {
    /// It is switched off.
    #[default]
    Off,
    /// The first proof is not done yet.
    Unproven,
    /// It can, and the descriptor says so.
    Proven {
        /// Since when each proof has succeeded.
        since: SystemTime,
    },
    /// It cannot, and the descriptor does not offer it.
    Failing {
        /// Since when.
        since: SystemTime,
        /// What keeps it from that: `key: why`. Names no mail and nobody.
        why: String,
    },
}

/// What came of the proofs so far.
#[derive(Clone, Default)]
pub(in crate::node) struct Standing {
    /// The way that the last of them was about; `None` where e-mail is not delivered.
    about: Option<Arc<SmtpWay>>,
    /// Since when it is proven, or is not, and then why.
    found: Option<(SystemTime, Result<(), String>)>,
}

impl Standing {
    /// Whether the descriptor may offer the delivery.
    pub(super) fn offers(&self) -> bool {
        matches!(self.found, Some((_, Ok(()))))
    }

    /// Whether what is known is known of this way.
    pub(in crate::node) fn is_about(&self, way: Option<&SmtpWay>) -> bool {
        match (way, self.about.as_deref()) {
            (Some(way), Some(about)) => way.is_proven_as(about),
            (None, None) => true,
            _ => false,
        }
    }

    /// For the operator; `is_on` as the settings have it.
    pub(in crate::node) fn report(&self, is_on: bool) -> MailDelivery {
        match &self.found {
            _ if !is_on => MailDelivery::Off,
            None => MailDelivery::Unproven,
            Some((since, Ok(()))) => MailDelivery::Proven { since: *since },
            Some((since, Err(why))) => MailDelivery::Failing { since: *since, why: why.clone() },
        }
    }

    /// The settings as the descriptor is to state them: without a delivery that is not proven.
    pub(in crate::node) fn states(&self, config: Arc<NodeConfig>) -> Arc<NodeConfig> {
        if !config.smtp.enabled || self.offers() {
            return config;
        }
        let mut config = NodeConfig::clone(&config);
        config.smtp.enabled = false;
        Arc::new(config)
    }
}

/// The service that proves it.
pub(in crate::node) struct Prover {
    pub(super) ways: watch::Receiver<Ways>,
    standing: watch::Sender<Standing>,
    world: World,
    pub(super) stop: CancellationToken,
    /// Proofs of this way in a row that have failed.
    failures: u32,
    /// When the next one is due.
    pub(super) due: Instant,
    /// What the operator was told.
    told: Option<String>,
}

impl Prover {
    /// Has proven nothing yet.
    pub(in crate::node) fn new(ways: watch::Receiver<Ways>, world: World, stop: CancellationToken) -> Self {
        let (standing, due) = (watch::Sender::default(), Instant::now());
        Self { ways, standing, world, stop, failures: 0, due, told: None }
    }

    /// What came of the proofs, now and later.
    pub(in crate::node) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// The first proof of a start, if it ends in time. Else it begins anew with the service.
    pub(in crate::node) async fn begin(&mut self) {
        let way = self.ways.borrow().smtp.clone();
        if let Some(way) = way {
            let _ = timeout(AT_THE_START, self.prove(&way)).await;
        }
    }

    /// Proves what is due until stopped.
    pub(in crate::node) async fn run(mut self) {
        let (mut ways, stop) = (self.ways.clone(), self.stop.clone());
        loop {
            let way = ways.borrow_and_update().smtp.clone();
            tokio::select! {
                () = self.attend(way) => {}
                changed = ways.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Proves this way whenever that is due; never returns, and may be dropped at any moment.
    async fn attend(&mut self, way: Option<Arc<SmtpWay>>) {
        let Some(way) = way else {
            self.told = None;
            self.standing.send_replace(Standing::default());
            return pending().await;
        };
        let (known, offers) = {
            let standing = self.standing.borrow();
            (standing.is_about(Some(&way)), standing.offers())
        };
        // A reload may be what was missing, though it is outside of the settings.
        if !known || !offers {
            self.failures = 0;
            self.due = Instant::now();
        }
        loop {
            sleep_until(self.due).await;
            self.prove(&way).await;
        }
    }

    async fn prove(&mut self, way: &Arc<SmtpWay>) {
        let proof =
            timeout(LONGEST, way.out.prove(way.writer.return_address(), &way.proof_address, self.world.dice())).await;
        match proof.unwrap_or_else(|_| Err(Unproven::too_slow())) {
            Ok(()) => self.succeeded(way),
            Err(why) => self.failed(way, why),
        }
    }

    pub(super) fn succeeded(&mut self, way: &Arc<SmtpWay>) {
        self.failures = 0;
        self.due = Instant::now() + AGAIN;
        if self.told.take().is_some() {
            info!("mail can be handed over again, as a proof shows: the descriptor offers it");
        }
        let now = self.world.now();
        self.standing.send_modify(|standing| {
            let since = match &standing.found {
                Some((since, Ok(()))) if standing.is_about(Some(way)) => *since,
                _ => now,
            };
            *standing = Standing { about: Some(Arc::clone(way)), found: Some((since, Ok(()))) };
        });
    }

    pub(super) fn failed(&mut self, way: &Arc<SmtpWay>, why: Unproven) {
        self.failures = self.failures.saturating_add(1);
        self.due = Instant::now() + if self.failures < PATIENCE { SOON } else { LATER };
        let proven = self.standing.borrow().offers() && self.standing.borrow().is_about(Some(way));
        if proven && why.passes && self.failures < PATIENCE {
            debug!("a proof that mail can be handed over has failed, and may pass");
            return;
        }
        let (why, now) = (why.fault.to_string(), self.world.now());
        if self.told.as_ref() != Some(&why) {
            warn!(
                error = why,
                "no mail can be handed over, as a proof shows: the descriptor does not offer it until it can"
            );
            self.told = Some(why.clone());
        }
        self.standing.send_modify(|standing| {
            let since = match &standing.found {
                Some((since, Err(_))) if standing.is_about(Some(way)) => *since,
                _ => now,
            };
            *standing = Standing { about: Some(Arc::clone(way)), found: Some((since, Err(why))) };
        });
    }
}
