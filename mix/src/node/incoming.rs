//! From the wire to the pool: packets are stored, then unwrapped on worker threads.
//!
//! What an observer can time is over when the packet is on disk: a packet is answered alike whether it is good, a
//! replay, or nonsense, since nobody has looked at it by then.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Notify, RwLock, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::counters::Counters;
use super::durable;
use super::room::Room;
use crate::crypto::Digest;
use crate::crypto::pk::PacketKey;
use crate::net::listen::{PacketSink, Refused};
use crate::packet::unwrap::{self, NotAdmitted, Outcome};
use crate::packet::{InvalidPacket, Packet};
use crate::store::queue::IncomingId;
use crate::store::queue::incoming::{self, Admission, Next};
use crate::store::queue::pool::PoolItem;
use crate::store::replay::{Claim, ReplayLog, Verdicts};
use crate::store::{Db, StoreError};

/// Packets that one worker takes at once. They share one commit; more would keep the first waiting for the last.
const BATCH: usize = 32;
/// Packets read ahead of the workers: two megabytes.
const READ_AHEAD: usize = 2 * BATCH;
/// Packets that need not be read from the disk again, since they have just been written to it: eight megabytes.
const AT_HAND: usize = 256;
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
    at_hand: AtHand,
    counters: Counters,
    room: Room,
}

/// Packets that were stored and not yet handed to a worker. Those that it has no place for are read from the disk.
#[derive(Clone, Debug, Default)]
struct AtHand(Arc<Mutex<Stored>>);

#[derive(Debug, Default)]
struct Stored {
    packets: HashMap<IncomingId, Packet>,
    /// The last that was asked for: nobody asks for those before it any more.
    passed: Option<IncomingId>,
}

impl AtHand {
    fn put(&self, id: IncomingId, packet: Packet) {
        let mut stored = self.stored();
        if stored.packets.len() < AT_HAND && stored.passed.is_none_or(|passed| passed < id) {
            stored.packets.insert(id, packet);
        }
    }

    fn take(&self, id: IncomingId) -> Option<Packet> {
        let mut stored = self.stored();
        stored.passed = Some(id);
        stored.packets.remove(&id)
    }

    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Incoming {
    /// Stores into `db`.
    pub fn new(db: Db, counters: Counters) -> Self {
        Self { db, bell: Arc::new(Notify::new()), at_hand: AtHand::default(), counters, room: Room::default() }
    }

    /// Whether it takes packets.
    pub fn room(&self) -> &Room {
        &self.room
    }
}

impl PacketSink for Incoming {
    fn arrived(&self) {
        self.counters.connections(1);
    }

    async fn store(&self, packet: Packet) -> Result<(), Refused> {
        self.check_room().await?;
        let (tell, told) = oneshot::channel();
        let (bell, at_hand, counters) = (Arc::clone(&self.bell), self.at_hand.clone(), self.counters.clone());
        // The bell is rung from the writer thread: the connection may be gone by then, the packet is not.
        self.db.submit(
            move |tx| incoming::push(tx, &packet).map(|id| (id, packet)),
            move |stored| {
                let stored = stored.map(|(id, packet)| {
                    counters.received(1);
                    at_hand.put(id, packet);
                    bell.notify_one();
                });
                let _ = tell.send(stored);
            },
        );
        self.taken(told).await
    }

    async fn forget(&self, junk: Packet) -> Result<(), Refused> {
        self.check_room().await?;
        let (tell, told) = oneshot::channel();
        // Written and committed as a packet is, in the same queue behind the same others, but that it is gone again.
        self.db.submit(
            move |tx| incoming::push(tx, &junk).and_then(|id| incoming::discard(tx, id)),
            move |stored| {
                let _ = tell.send(stored);
            },
        );
        self.taken(told).await
    }
}

impl Incoming {
    /// Padding is refused with the packets: refused alone, they could be told from it. A refusal waits for its turn in the
    /// same queue as what is taken, behind the same others. What remains different is that it writes nothing, so that a
    /// commit of refusals alone does not wait for the disk, which has no room: who times a link to a full mix may learn
    /// that it is full, which the mix tells everybody who asks, and nothing of a packet.
    async fn check_room(&self) -> Result<(), Refused> {
        if self.room.is_there() {
            return Ok(());
        }
        // Whatever the store says, the answer is the same.
        let _ = durable::write(&self.db, |_| Ok(())).await;
        self.counters.rejected(1);
        Err(Refused)
    }

    /// Whether the store took it, once it is durable.
    async fn taken<T>(&self, told: oneshot::Receiver<Result<T, StoreError>>) -> Result<(), Refused> {
        match told.await.unwrap_or(Err(StoreError::Closed)) {
            Ok(_) => {
                self.room.taken();
                Ok(())
            }
            Err(e) => {
                self.room.refused(e);
                self.counters.rejected(1);
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

/// Threads for each core: while one waits for the disk, another has the core.
const THREADS_PER_CORE: usize = 2;

/// Starts the threads, and the task that feeds them. The threads end when the task does.
pub(super) fn start(incoming: &Incoming, worker: Worker) -> (Vec<thread::JoinHandle<()>>, tokio::task::JoinHandle<()>) {
    let (feed, fed) = channel(READ_AHEAD);
    let fed = Arc::new(Mutex::new(fed));
    let worker = Arc::new(worker);
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (0..cores * THREADS_PER_CORE)
        .map(|_| {
            let (worker, fed) = (Arc::clone(&worker), Arc::clone(&fed));
            thread::spawn(move || worker.run(&fed))
        })
        .collect();
    let feeder = tokio::spawn(feed_workers(worker.db.clone(), incoming.clone(), feed, worker.stop.clone()));
    (threads, feeder)
}

/// Reads the incoming packets in the order in which they came, and hands each to the workers once.
async fn feed_workers(db: Db, from: Incoming, feed: Sender<(IncomingId, Packet)>, stop: CancellationToken) {
    let Incoming { bell, at_hand, .. } = from;
    let mut after = None;
    loop {
        let at_hand = at_hand.clone();
        match durable::read(&db, move |view| incoming::load(view, after, READ_AHEAD, |id| at_hand.take(id))).await {
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
            let _working = self.counters.working();
            let (ids, packets): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            self.unwrap_guarded(&ids, packets, &|ids, packets| self.unwrap(ids, packets));
        }
    }

    /// Whatever happens to one packet, the thread goes on, and so do the others of its batch. The packet itself stays among
    /// the incoming and comes again at the next start, perhaps of a better program.
    fn unwrap_guarded(&self, ids: &[IncomingId], packets: Vec<Packet>, unwrap: &dyn Fn(&[IncomingId], Vec<Packet>)) {
        if catch_unwind(AssertUnwindSafe(|| unwrap(ids, packets))).is_ok() {
            return;
        }
        if ids.len() < 2 {
            error!("a packet could not be unwrapped");
            self.counters.invalid(1);
            return;
        }
        for id in ids {
            match self.db.read(|view| incoming::packet(view, *id)) {
                Ok(Some(packet)) => self.unwrap_guarded(&[*id], vec![packet], unwrap),
                // It was done before the panic.
                Ok(None) => {}
                Err(e) => error!(error = %e, "a packet waits for the next start"),
            }
        }
    }

    /// Unwraps a batch and writes all that follows from it in one step.
    fn unwrap(&self, ids: &[IncomingId], packets: Vec<Packet>) {
        let keys = self.keys.blocking_read().clone();
        let keys: Vec<&PacketKey> = keys.iter().map(Arc::as_ref).collect();
        let opened = unwrap::open_all(packets, &keys);
        let asked: Vec<_> = opened.iter().flatten().map(|opened| (opened.packet_key(), opened.replay_hash())).collect();
        // Else the process ends before the store could say which packets are new: they stay among the incoming.
        let Some(claims) = self.claim(&asked) else { return };
        let mut verdicts = Verdicts::new(claims);
        let mut findings = Vec::with_capacity(ids.len());
        for (&id, opened) in ids.iter().zip(opened) {
            let finding = opened
                .map_or_else(|invalid| Some(self.useless(id, invalid)), |opened| self.admit(id, opened, &mut verdicts));
            findings.extend(finding);
        }
        self.write(Arc::new(findings));
        // Only now may another copy of these packets look into the replay log: it will find them there.
        drop(verdicts);
    }

    /// Asks the replay log until it answers: these packets were answered RECEIVED. `None` when the process ends before.
    fn claim(&self, packets: &[(Digest, Digest)]) -> Option<Vec<Option<Claim>>> {
        loop {
            match self.replay.claim(packets) {
                Ok(claims) => return Some(claims),
                Err(e) => error!(error = %e, "packets wait: the replay log cannot be read"),
            }
            self.counters.beat();
            if self.stop.is_cancelled() {
                return None;
            }
            thread::sleep(STORE_PAUSE);
        }
    }

    fn useless(&self, id: IncomingId, _: InvalidPacket) -> Finding {
        // Which refusal it was is not said: it would tell the sender's packet from others.
        self.counters.invalid(1);
        Finding::Useless { id }
    }

    /// `None` for a packet that the replay log was not asked about, which cannot be: it stays among the incoming.
    fn admit(&self, id: IncomingId, opened: unwrap::Opened<'_>, verdicts: &mut Verdicts) -> Option<Finding> {
        let admitted = match opened.admit(verdicts) {
            Ok(admitted) => admitted,
            Err(NotAdmitted::Replay) => {
                self.counters.replayed(1);
                return Some(Finding::Useless { id });
            }
            Err(NotAdmitted::Log(e)) => {
                error!(error = %e, "a packet waits for the next start");
                return None;
            }
        };
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
            let (step, log) = (Arc::clone(&findings), self.replay.clone());
            match self.db.write(move |tx| step.iter().try_for_each(|finding| record(tx, &log, finding))) {
                Ok(()) => return,
                Err(e) => {
                    self.counters.beat();
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

fn record(tx: &crate::store::Tx<'_>, log: &ReplayLog, finding: &Finding) -> Result<(), StoreError> {
    match finding {
        Finding::Useless { id } => incoming::discard(tx, *id).map(|_| ()),
        Finding::Admitted { id, packet_key, replay_hash, next } => {
            match incoming::finish(tx, log, *id, packet_key, replay_hash, next)? {
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

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::crypto::KeyId;
    use crate::crypto::pk::PrivateKey;
    use crate::node::World;
    use crate::packet::build::{Exit, Hop, forward};
    use crate::packet::{HostName, HostRoute, PACKET_LEN, Payload, RoutingType};
    use crate::store::NODE_SCHEMAS;
    use crate::store::disk::free_space;
    use crate::store::queue::pool;

    struct Mix {
        worker: Worker,
        hop: Hop,
        home: tempfile::TempDir,
    }

    fn open(home: &tempfile::TempDir) -> Db {
        Db::open(&home.path().join("node/node.db"), &NODE_SCHEMAS).unwrap()
    }

    fn mix() -> Mix {
        let key = PrivateKey::generate(2048, &mut World::real().dice()).unwrap();
        let route = HostRoute { host: HostName::parse("a.example").unwrap(), port: 1, key_id: KeyId([1; 20]) };
        let hop = Hop { packet_key: key.public_key(), route };
        let home = tempfile::tempdir().unwrap();
        let db = open(&home);
        let worker = Worker {
            db: db.clone(),
            keys: Arc::new(RwLock::new(vec![Arc::new(PacketKey::new(&key).unwrap())])),
            replay: ReplayLog::open(&db).unwrap(),
            counters: Counters::default(),
            stop: CancellationToken::new(),
        };
        Mix { worker, hop, home }
    }

    impl Mix {
        fn packet(&self, exit_type: RoutingType) -> Packet {
            let mut dice = World::real().dice();
            let payload = Payload::random(&mut dice);
            let exit = Exit { exit_type, address: b"frida".to_vec() };
            let leg = std::slice::from_ref(&self.hop);
            forward(&payload, &exit, leg, leg, &mut dice).unwrap()
        }

        /// Stores the packets as the listener does, and unwraps them in one batch.
        fn unwrap(&self, packets: Vec<Packet>) {
            let push = |packet: Packet| {
                let stored = packet.clone();
                (self.worker.db.write(move |tx| incoming::push(tx, &stored)).unwrap(), packet)
            };
            let (ids, packets): (Vec<_>, Vec<_>) = packets.into_iter().map(push).unzip();
            self.worker.unwrap(&ids, packets);
        }

        fn waiting(&self) -> (u64, u64) {
            let count =
                |count: fn(&crate::store::View<'_>) -> Result<u64, StoreError>| self.worker.db.read(count).unwrap();
            (count(incoming::count), count(pool::count))
        }
    }

    #[tokio::test]
    async fn refusal_comes_behind_what_was_queued_before_as_an_acceptance_does() {
        let mix = mix();
        let incoming = Incoming::new(mix.worker.db.clone(), Counters::default());
        incoming.room().refused("the disk is full");
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let blocks = move |_: &crate::store::Tx<'_>| {
            // Ends with the other end.
            let _ = wait.recv();
            Ok(())
        };
        mix.worker.db.submit(blocks, |_| ());
        let packet = || Packet::from_bytes(&[7; PACKET_LEN]).unwrap();
        let (mut packets, mut padding) = (Box::pin(incoming.store(packet())), Box::pin(incoming.forget(packet())));
        let moment = Duration::from_millis(100);
        assert!(tokio::time::timeout(moment, &mut packets).await.is_err(), "an answer before its turn");
        assert!(tokio::time::timeout(moment, &mut padding).await.is_err(), "an answer before its turn");
        drop(go);
        assert_eq!((packets.await, padding.await), (Err(Refused), Err(Refused)));
        assert_eq!(incoming.counters.snapshot().rejected, 2);
        assert_eq!(mix.waiting(), (0, 0));
    }

    #[test]
    fn good_packet_goes_from_the_incoming_to_the_pool() {
        let mix = mix();
        mix.unwrap(vec![mix.packet(RoutingType::MBOX)]);
        assert_eq!(mix.waiting(), (0, 1));
    }

    #[test]
    fn replayed_packet_is_dropped_in_one_batch_in_the_next_and_after_a_restart() {
        let mut mix = mix();
        let packet = mix.packet(RoutingType::MBOX);
        mix.unwrap(vec![packet.clone(), packet.clone()]);
        assert_eq!(mix.waiting(), (0, 1));
        mix.unwrap(vec![packet.clone()]);
        assert_eq!(mix.waiting(), (0, 1));
        assert_eq!(mix.worker.counters.snapshot().replayed, 2);
        mix.worker.replay.close();
        mix.worker.db.close();
        mix.worker.db = open(&mix.home);
        mix.worker.replay = ReplayLog::open(&mix.worker.db).unwrap();
        mix.unwrap(vec![packet]);
        assert_eq!(mix.waiting(), (0, 1));
        assert_eq!(mix.worker.counters.snapshot().replayed, 3);
    }

    #[test]
    fn nonsense_is_dropped_beside_good_packets() {
        let mix = mix();
        let nonsense = Packet::from_bytes(&[7; PACKET_LEN]).unwrap();
        mix.unwrap(vec![nonsense.clone(), mix.packet(RoutingType::MBOX), nonsense]);
        assert_eq!(mix.waiting(), (0, 1));
        assert_eq!(mix.worker.counters.snapshot().invalid, 2);
    }

    #[test]
    fn packet_that_cannot_be_worked_on_stays_behind_alone() {
        let mix = mix();
        let packets = [(); 4].map(|()| mix.packet(RoutingType::MBOX));
        let push = |packet: &Packet| {
            let stored = packet.clone();
            (mix.worker.db.write(move |tx| incoming::push(tx, &stored)).unwrap(), packet.clone())
        };
        let (ids, batch): (Vec<_>, Vec<_>) = packets.iter().map(push).unzip();
        mix.worker.unwrap_guarded(&ids, batch, &|ids, batch| {
            assert!(batch.iter().all(|packet| *packet != packets[2]), "a bug of ours");
            mix.worker.unwrap(ids, batch);
        });
        assert_eq!(mix.waiting(), (1, 3));
        assert_eq!(mix.worker.counters.snapshot().invalid, 1);
    }

    /// Lets the disk be full, or not.
    fn fill_disk(db: &Db, full: bool) {
        db.write(move |tx| tx.allow_slots(full.then_some(0))).unwrap();
    }

    #[tokio::test]
    async fn full_disk_rejects_packets_loses_none_and_takes_them_again_when_there_is_room() {
        let Mix { worker, hop: _, home } = mix();
        let incoming = Incoming::new(worker.db.clone(), Counters::default());
        let packet = || Packet::from_bytes(&[7; PACKET_LEN]).unwrap();
        assert_eq!(incoming.store(packet()).await, Ok(()));
        fill_disk(&worker.db, true);
        assert_eq!(incoming.store(packet()).await, Err(Refused));
        fill_disk(&worker.db, false);
        assert_eq!(
            incoming.store(packet()).await,
            Err(Refused),
            "the store is not asked before the disk was looked at"
        );
        let counts = incoming.counters.snapshot();
        assert_eq!((counts.received, counts.rejected), (1, 2));
        assert_eq!(worker.db.read(incoming::count).unwrap(), 1, "what was taken is there");

        // Below the reserve for a moment, then not any more.
        let watched = |reserve| {
            let (room, stop) = (incoming.room().clone(), CancellationToken::new());
            let home = home.path().to_owned();
            let watching = tokio::spawn(room.watch(move || free_space(&home), watch::channel(reserve).1, stop.clone()));
            async move {
                stop.cancel();
                watching.await.unwrap();
            }
        };
        watched(u64::MAX).await;
        assert_eq!(incoming.store(packet()).await, Err(Refused));
        watched(0).await;
        assert_eq!(incoming.store(packet()).await, Ok(()));
        assert_eq!(worker.db.read(incoming::count).unwrap(), 2);
    }

    #[test]
    fn packets_at_hand_are_bounded_and_none_is_kept_that_nobody_asks_for() {
        let at_hand = AtHand::default();
        let packet = |octet| Packet::from_bytes(&[octet; PACKET_LEN]).unwrap();
        at_hand.put(IncomingId(1), packet(1));
        assert_eq!(at_hand.take(IncomingId(1)), Some(packet(1)));
        assert_eq!(at_hand.take(IncomingId(2)), None);
        // It was read from the disk before its writer came here.
        at_hand.put(IncomingId(2), packet(2));
        assert!(at_hand.stored().packets.is_empty());
        (3..1000).for_each(|id| at_hand.put(IncomingId(id), packet(3)));
        assert_eq!(at_hand.stored().packets.len(), AT_HAND);
    }

    #[tokio::test]
    async fn packets_left_from_the_last_run_are_unwrapped_at_the_start() {
        let Mix { worker, hop, home } = mix();
        let mix = Mix { worker, hop, home };
        let packets: Vec<Packet> = (0..3).map(|_| mix.packet(RoutingType::MBOX)).collect();
        for packet in packets {
            mix.worker.db.write(move |tx| incoming::push(tx, &packet)).unwrap();
        }
        let (db, stop) = (mix.worker.db.clone(), mix.worker.stop.clone());
        let incoming = Incoming::new(db.clone(), Counters::default());
        let (threads, feeder) = start(&incoming, mix.worker);
        let unwrapped = async {
            while db.read(pool::count).unwrap() < 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), unwrapped).await.expect("three packets in the pool");
        stop.cancel();
        feeder.await.unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
