//! From the wire to the pool: packets are stored, then unwrapped on worker threads.
//!
//! What an observer can time is over when the packet is on disk: a packet is answered alike whether it is good, a
//! replay, or nonsense, since nobody has looked at it by then.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Notify, RwLock, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::counters::Counters;
use super::durable;
use crate::crypto::Digest;
use crate::crypto::pk::PacketKey;
use crate::net::listen::{PacketSink, Refused};
use crate::packet::unwrap::{self, NotAdmitted, Outcome};
use crate::packet::{InvalidPacket, Packet};
use crate::store::queue::IncomingId;
use crate::store::queue::incoming::{self, Admission, Next};
use crate::store::queue::pool::PoolItem;
use crate::store::replay::{Claim, ReplayLog};
use crate::store::{Db, StoreError};

/// Packets that one worker takes at once. They share one commit; more would keep the first waiting for the last.
const BATCH: usize = 32;
/// Packets read ahead of the workers: two megabytes.
const READ_AHEAD: usize = 2 * BATCH;
/// How long a worker waits before it tries again what the store refused (disk full).
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The packet keys that open packets at present, newest first.
pub type PacketKeys = Arc<RwLock<Vec<Arc<PacketKey>>>>;

/// Stores what arrives.
#[derive(Clone, Debug)]
pub struct Incoming {
    db: Db,
    /// Rung when there are new packets among the incoming.
    pub(super) bell: Arc<Notify>,
    counters: Counters,
}

impl Incoming {
    /// Stores into `db`.
    pub fn new(db: Db, counters: Counters) -> Self {
        Self { db, bell: Arc::new(Notify::new()), counters }
    }
}

impl PacketSink for Incoming {
    async fn store(&self, packet: Packet) -> Result<(), Refused> {
        let (tell, told) = oneshot::channel();
        let (bell, counters) = (Arc::clone(&self.bell), self.counters.clone());
        // The bell is rung from the writer thread: the connection may be gone by then, the packet is not.
        self.db.submit(
            move |tx| incoming::push(tx, &packet),
            move |stored| {
                if stored.is_ok() {
                    counters.received(1);
                    bell.notify_one();
                }
                let _ = tell.send(stored);
            },
        );
        match told.await.unwrap_or(Err(StoreError::Closed)) {
            Ok(_) => Ok(()),
            Err(e) => {
                warn!(error = %e, "packets are refused: the store does not take them");
                Err(Refused)
            }
        }
    }
}

/// One thread that unwraps packets.
pub(super) struct Worker {
    pub(super) db: Db,
    pub(super) keys: PacketKeys,
    pub(super) replay: ReplayLog,
    pub(super) counters: Counters,
    pub(super) stop: CancellationToken,
}

/// Starts a thread for each core, and the task that feeds them. The threads end when the task does.
pub(super) fn start(incoming: &Incoming, worker: Worker) -> (Vec<thread::JoinHandle<()>>, tokio::task::JoinHandle<()>) {
    let (feed, fed) = channel(READ_AHEAD);
    let fed = Arc::new(Mutex::new(fed));
    let worker = Arc::new(worker);
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (0..cores)
        .map(|_| {
            let (worker, fed) = (Arc::clone(&worker), Arc::clone(&fed));
            thread::spawn(move || worker.run(&fed))
        })
        .collect();
    let feeder = tokio::spawn(feed_workers(worker.db.clone(), Arc::clone(&incoming.bell), feed, worker.stop.clone()));
    (threads, feeder)
}

/// Reads the incoming packets in the order in which they came, and hands each to the workers once.
async fn feed_workers(db: Db, bell: Arc<Notify>, feed: Sender<(IncomingId, Packet)>, stop: CancellationToken) {
    let mut after = None;
    loop {
        match durable::read(&db, move |view| incoming::load(view, after, READ_AHEAD)).await {
            Ok(packets) if packets.is_empty() => {
                if stop.run_until_cancelled(bell.notified()).await.is_none() {
                    return;
                }
            }
            Ok(packets) => {
                for (id, packet) in packets {
                    let sent = stop.run_until_cancelled(feed.send((id, packet))).await;
                    if !matches!(sent, Some(Ok(()))) {
                        return;
                    }
                    after = Some(id);
                }
            }
            Err(e) => {
                error!(error = %e, "the incoming packets cannot be read");
                if stop.run_until_cancelled(tokio::time::sleep(STORE_PAUSE)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// What is to be written about one packet.
enum Finding {
    /// It opened and was admitted.
    Admitted { id: IncomingId, packet_key: Digest, replay_hash: Digest, next: Next },
    /// It is of no use.
    Useless { id: IncomingId },
}

impl Worker {
    fn run(&self, fed: &Mutex<Receiver<(IncomingId, Packet)>>) {
        while let Some(batch) = next_batch(fed) {
            self.unwrap(batch);
        }
    }

    /// Unwraps a batch and writes all that follows from it in one step.
    fn unwrap(&self, batch: Vec<(IncomingId, Packet)>) {
        let (ids, packets): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let keys = self.keys.blocking_read().clone();
        let keys: Vec<&PacketKey> = keys.iter().map(Arc::as_ref).collect();
        let mut claims = Vec::new();
        let mut findings = Vec::with_capacity(ids.len());
        for (id, opened) in ids.into_iter().zip(unwrap::open_all(&packets, &keys)) {
            let finding = opened
                .map_or_else(|invalid| Some(self.useless(id, invalid)), |opened| self.admit(id, opened, &mut claims));
            findings.extend(finding);
        }
        self.write(Arc::new(findings));
        // Only now may another copy of these packets look into the replay log: it will find them there.
        drop(claims);
    }

    fn useless(&self, id: IncomingId, _: InvalidPacket) -> Finding {
        // Which refusal it was is not said: it would tell the sender's packet from others.
        self.counters.invalid(1);
        Finding::Useless { id }
    }

    /// `None` when the store cannot say whether the packet is new: it stays among the incoming until the next start.
    fn admit(&self, id: IncomingId, opened: unwrap::Opened<'_>, claims: &mut Vec<Claim>) -> Option<Finding> {
        let mut gate = self.replay.gate();
        let admitted = match opened.admit(&mut gate) {
            Ok(admitted) => admitted,
            Err(NotAdmitted::Replay) => {
                self.counters.replayed(1);
                return Some(Finding::Useless { id });
            }
            Err(NotAdmitted::Log(e)) => {
                error!(error = %e, "the replay log cannot be read");
                return None;
            }
        };
        claims.extend(gate.into_claims());
        let (packet_key, replay_hash) = (admitted.packet_key(), admitted.replay_hash());
        let next = match admitted.process() {
            Ok(Outcome::Drop) => {
                self.counters.dropped(1);
                Next::Drop
            }
            Ok(Outcome::Relay { next, packet }) => Next::Pool(PoolItem::Relay { next, packet }),
            Ok(Outcome::Exit { exit_type, address, handle, payload }) => {
                Next::Pool(PoolItem::Deliver { exit_type, address, handle, payload })
            }
            Err(_) => {
                self.counters.invalid(1);
                // Nonsense, but admitted: it stays in the replay log.
                Next::Drop
            }
        };
        Some(Finding::Admitted { id, packet_key, replay_hash, next })
    }

    /// Writes the findings; goes on trying while the store cannot, since these packets were answered RECEIVED.
    fn write(&self, findings: Arc<Vec<Finding>>) {
        loop {
            let step = Arc::clone(&findings);
            match self.db.write(move |tx| step.iter().try_for_each(|finding| record(tx, finding))) {
                Ok(()) => return,
                Err(e) => {
                    error!(error = %e, "packets wait: the store does not take what was made of them");
                    if self.stop.is_cancelled() {
                        return;
                    }
                    thread::sleep(STORE_PAUSE);
                }
            }
        }
    }
}

fn record(tx: &crate::store::Tx<'_>, finding: &Finding) -> Result<(), StoreError> {
    match finding {
        Finding::Useless { id } => incoming::discard(tx, *id).map(|_| ()),
        Finding::Admitted { id, packet_key, replay_hash, next } => {
            match incoming::finish(tx, *id, packet_key, replay_hash, next)? {
                // The step itself is the last judge: whatever was in memory, a replay entry is written once.
                Admission::Admitted | Admission::Replayed => Ok(()),
            }
        }
    }
}

/// One packet, and those that are there already. `None` when there will be no more.
fn next_batch(fed: &Mutex<Receiver<(IncomingId, Packet)>>) -> Option<Vec<(IncomingId, Packet)>> {
    let mut fed = fed.lock().unwrap_or_else(PoisonError::into_inner);
    let mut batch = vec![fed.blocking_recv()?];
    while batch.len() < BATCH {
        match fed.try_recv() {
            Ok(packet) => batch.push(packet),
            Err(_) => break,
        }
    }
    Some(batch)
}
