//! Whole nodes in a world that goes wrong: the disk is full, the clock jumps, names are not found, peers hang up in the
//! middle, a key is replaced while packets come.
//!
//! Clock and timers stand still, but for what a test lets pass. Sockets, the database and the workers are real, and take
//! their own time; so tokio must not do what it does with a paused clock by itself, which is to go on to the next timer as
//! soon as all tasks wait: each handshake would be over its time limit at once. It does not while a blocking task runs,
//! and [`World`] has one that runs as long as the story. What comes about by itself is waited for, with a bound, by a clock
//! that nobody has paused.

mod clock;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, advance};
use tokio_util::sync::CancellationToken;

use super::config::{MixRule, MixingConfig, NetworkConfig, NodeConfig};
use super::testing::PATIENCE;
use super::{Counters, Counts, Node, Parts, RunningNode};
use crate::crypto::Digest;
use crate::deliver::mbox::{LocalMailboxes, NotDelivered};
use crate::directory::date::format_date;
use crate::mmtp::frame::UNIT_LEN;
use crate::net::connect::{ConnectConfig, Outcome, Unit, deliver};
use crate::net::resolve::{ResolveConfig, Resolver};
use crate::net::sockets::Inherited;
use crate::packet::build::{self, Exit, Hop};
use crate::packet::{HostName, HostRoute, NextHop, Packet, Payload, RoutingType};
use crate::payload::{Capacity, encode};
use crate::store::Db;
use crate::store::inbox::Arrival;
use crate::store::queue::{exit, incoming, outgoing, pool};

const SEED: u64 = 0x6164_7665_7273;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const TWO_DAYS: i64 = 2 * 24 * 3600;

/// The default one: nothing passes a node but when a test lets so much time pass.
const INTERVAL: Duration = Duration::from_secs(15 * 60);
/// More batches than any of these stories has.
const ENOUGH: usize = 20;
/// What has not moved for so long has come to rest, or is waited for in vain. Too short, it makes stories longer, not wrong.
const REST: Duration = Duration::from_millis(150);

/// Midnight of some day.
fn day(days: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY + days * DAY
}

/// Time, which passes when it is told to. Each node may have another idea of the date.
struct World {
    began: (SystemTime, Instant),
    dice: StdRng,
    outlives: CancellationToken,
    /// Holds time still until it is dropped.
    _still: mpsc::Sender<()>,
}

/// Seconds by which the clock of one node is wrong.
type Skew = Arc<AtomicI64>;

impl World {
    /// In a runtime whose clock is paused.
    fn new(now: SystemTime) -> Self {
        println!("seed {SEED:#x}");
        let (still, dropped) = mpsc::channel();
        drop(spawn_blocking(move || dropped.recv()));
        Self {
            began: (now, Instant::now()),
            dice: StdRng::seed_from_u64(SEED),
            outlives: CancellationToken::new(),
            _still: still,
        }
    }

    fn clock(&self, skew: &Skew) -> super::World {
        let ((began, at), skew) = (self.began, Arc::clone(skew));
        let now = move || {
            let (now, skew) = (began + at.elapsed(), skew.load(Ordering::Relaxed));
            let by = Duration::from_secs(skew.unsigned_abs());
            if skew < 0 { now - by } else { now + by }
        };
        super::World::new(now, || super::World::real().dice())
    }

    /// The right time.
    fn now(&self) -> SystemTime {
        let (began, at) = self.began;
        began + at.elapsed()
    }

    /// Lets time pass up to a moment.
    async fn pass_until(&self, then: SystemTime) {
        advance(then.duration_since(self.now()).unwrap()).await;
    }

    /// A packet for the user of the mix that is last.
    fn packet(&mut self, leg1: &[Hop], leg2: &[Hop]) -> Packet {
        let payload = Payload::random(&mut self.dice);
        let exit = Exit { exit_type: RoutingType::MBOX, address: b"frida".to_vec() };
        build::forward(&payload, &exit, leg1, leg2, &mut self.dice).unwrap()
    }

    fn packets(&mut self, count: usize, leg1: &[Hop], leg2: &[Hop]) -> Vec<Packet> {
        (0..count).map(|_| self.packet(leg1, leg2)).collect()
    }

    /// Lets batches leave these mixes until something is so.
    async fn batches_until(&self, what: &str, mixes: &[&Mix], is_so: impl Fn() -> bool) {
        for _ in 0..ENOUGH {
            if rests_or(mixes, &is_so).await {
                return;
            }
            advance(INTERVAL).await;
        }
        let seen: Vec<_> = mixes.iter().map(|mix| (mix.counts(), mix.queues())).collect();
        panic!("never: {what}; {seen:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.outlives.cancel();
    }
}

/// Waits until something is so; without any time that passes.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        moment().await;
    }
}

/// Of the time that is not paused.
async fn moment() {
    spawn_blocking(|| std::thread::sleep(Duration::from_millis(2))).await.unwrap();
}

/// Waits until nothing moves in these mixes; says early whether something is so.
async fn rests_or(mixes: &[&Mix], is_so: &impl Fn() -> bool) -> bool {
    let seen = || mixes.iter().map(|mix| (mix.counts(), mix.queues())).collect::<Vec<_>>();
    let begun = std::time::Instant::now();
    let (mut last, mut since) = (seen(), std::time::Instant::now());
    while since.elapsed() < REST || mixes.iter().any(|mix| mix.queues()[0] > 0) {
        assert!(begun.elapsed() < PATIENCE, "it never rests: {last:?}");
        if is_so() {
            return true;
        }
        moment().await;
        let now = seen();
        if now != last {
            (last, since) = (now, std::time::Instant::now());
        }
    }
    is_so()
}

/// The users of a node: what they got, and how often.
#[derive(Clone, Default)]
struct Users {
    got: Arc<Mutex<BTreeMap<Vec<u8>, usize>>>,
    /// Whether their mailboxes cannot be had.
    away: Arc<AtomicBool>,
}

impl LocalMailboxes<Arrival> for Users {
    fn has(&self, _: &str) -> bool {
        true
    }

    fn deliver(&self, _: &str, _: &Digest, arrival: &Arrival) -> Result<(), NotDelivered> {
        if self.away.load(Ordering::Relaxed) {
            return Err(NotDelivered::Unavailable("away".into()));
        }
        let octets = match arrival {
            Arrival::Payload { payload, .. } => payload.as_bytes().to_vec(),
            Arrival::Message(message) => message.clone(),
        };
        *self.got.lock().unwrap().entry(octets).or_default() += 1;
        Ok(())
    }
}

impl Users {
    /// How many different messages came, and how many in all.
    fn got(&self) -> (usize, usize) {
        let got = self.got.lock().unwrap();
        (got.len(), got.values().sum())
    }
}

/// A node that runs.
struct Mix {
    node: RunningNode,
    users: Users,
    counters: Counters,
    skew: Skew,
    clock: super::World,
    stop: CancellationToken,
}

/// A name service that can be told what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// All are this machine.
    Known,
    /// It says that it cannot say.
    Down,
    /// It says nothing.
    Silent,
}

/// Settings that are the defaults, but for where it lives, and for a mailbox.
fn config(home: &Path) -> NodeConfig {
    let mut config = NodeConfig {
        home: home.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        mixing: MixingConfig { interval: INTERVAL, rule: MixRule::Timed, ..MixingConfig::default() },
        ..NodeConfig::default()
    };
    config.host = "127.0.0.1".to_owned();
    config.mbox.enabled = true;
    config.mbox.max_size = 1 << 20;
    config.fragments.enabled = true;
    config.stats.enabled = false;
    config
}

impl Mix {
    async fn start(world: &World, config: &NodeConfig) -> Self {
        Self::start_for(Users::default(), world, config, &watch::channel(Names::Known).1).await
    }

    async fn start_asking(world: &World, config: &NodeConfig, names: &watch::Receiver<Names>) -> Self {
        Self::start_for(Users::default(), world, config, names).await
    }

    /// Ends it, and starts it again with these settings.
    async fn restarted(self, world: &World, config: &NodeConfig) -> Self {
        let users = self.users.clone();
        self.end().await;
        Self::start_for(users, world, config, &watch::channel(Names::Known).1).await
    }

    async fn start_for(users: Users, world: &World, config: &NodeConfig, names: &watch::Receiver<Names>) -> Self {
        let names = names.clone();
        let resolver = Resolver::asking(ResolveConfig::default(), move |_| {
            let mut names = names.clone();
            Box::pin(async move {
                // As the system's own resolver, which gives up some day.
                let asked = *names.borrow_and_update();
                match asked {
                    Names::Known => return Ok(vec![IpAddr::from(Ipv4Addr::LOCALHOST)]),
                    Names::Down => {}
                    Names::Silent => drop(names.changed().await),
                }
                Err(std::io::Error::other("no name service"))
            })
        });
        let (counters, skew) = (Counters::default(), Skew::default());
        let (clock, stop) = (world.clock(&skew), CancellationToken::new());
        let parts = Parts {
            world: clock.clone(),
            counters: counters.clone(),
            mailboxes: Some(Arc::new(users.clone())),
            network: NetworkConfig::default(),
            directory: None,
            passphrase: None,
            sockets: Inherited::default(),
            stop: stop.clone(),
        };
        let node = Node::start_asking(config, parts, Some(resolver)).await.unwrap();
        Self { node, users, counters, skew, clock, stop }
    }

    async fn end(self) {
        self.stop.cancel();
        self.node.ended().await;
    }

    fn db(&self) -> &Db {
        &self.node.db
    }

    fn counts(&self) -> Counts {
        self.counters.snapshot()
    }

    /// Packets that wait: incoming, in the pool, outgoing, to be delivered.
    fn queues(&self) -> [u64; 4] {
        [incoming::count, pool::count, outgoing::count, exit::count].map(|count| self.db().read(count).unwrap())
    }

    fn waiting(&self) -> u64 {
        self.queues().iter().sum()
    }

    /// The mix as a stop on a path.
    fn hop(&self) -> Hop {
        self.node.descriptor().hop().unwrap()
    }

    /// The mix as others know it that find it at this port of that host.
    fn hop_at(&self, host: &str, port: u16) -> Hop {
        let Hop { packet_key, route } = self.hop();
        Hop { packet_key, route: HostRoute { host: HostName::parse(host).unwrap(), port, ..route } }
    }

    /// Hands packets to the mix in one connection, by a clock that goes as its own; says what became of them.
    async fn offer(&self, to: &HostRoute, packets: &[Packet]) -> Vec<Outcome> {
        let units = packets.iter().cloned().enumerate().map(|(i, packet)| Unit::packet(i, packet)).collect();
        let next = NextHop::Host(to.clone());
        let never = CancellationToken::new();
        let delivery = deliver(&next, units, &ConnectConfig::default(), self.clock.now(), &never).await;
        delivery.outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Hands packets to the mix, as often as it takes.
    async fn take(&self, packets: &[Packet]) {
        self.take_at(&self.hop().route, packets).await;
    }

    async fn take_at(&self, to: &HostRoute, packets: &[Packet]) {
        let begun = std::time::Instant::now();
        let mut left = packets.to_vec();
        for attempt in 1.. {
            let outcomes = self.offer(to, &left).await;
            let left_over = left.into_iter().zip(outcomes).filter(|(_, outcome)| *outcome != Outcome::Delivered);
            left = left_over.map(|(packet, _)| packet).collect();
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{} packets are never taken", left.len());
            // Time for whatever looks from time to time; what it does then takes the time of the wall.
            if attempt <= ENOUGH {
                advance(MINUTE).await;
            }
            rests_or(&[], &|| false).await;
        }
    }

    /// Sets the clock of the node.
    fn jump(&self, seconds: i64) {
        self.skew.fetch_add(seconds, Ordering::Relaxed);
    }

    /// All packets again: nothing of them passes.
    async fn knows_all(&self, packets: &[Packet]) {
        rests_or(&[self], &|| false).await;
        let (before, got, waiting) = (self.counts().replayed, self.users.got(), self.waiting());
        self.take(packets).await;
        let all = packets.len() as u64;
        until("all are known", || self.counts().replayed == before + all).await;
        rests_or(&[self], &|| false).await;
        advance(INTERVAL).await;
        rests_or(&[self], &|| false).await;
        assert_eq!((self.waiting(), self.users.got()), (waiting, got));
    }
}

/// Lets the disk have room for so many packets, or for all.
fn let_grow(db: &Db, packets: Option<i64>) {
    db.write(move |tx| tx.allow_slots(packets)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn full_disk_is_answered_rejected_and_whatever_was_taken_or_refused_arrives_once() {
    let home = tempfile::tempdir().unwrap();
    let mut world = World::new(day(0) + 12 * HOUR);
    let mix = Mix::start(&world, &config(&home.path().join("node"))).await;
    let hop = [mix.hop()];
    let packets = world.packets(12, &hop, &hop);
    // Room for a few packets and not for all; whether for what the workers make of them, too, is luck.
    let_grow(mix.db(), Some(5));
    let outcomes = mix.offer(&hop[0].route, &packets).await;
    let count = |wanted| outcomes.iter().filter(|outcome| **outcome == wanted).count();
    let (taken, rejected) = (count(Outcome::Delivered), count(Outcome::Rejected));
    assert!(taken > 0 && rejected > 0, "{outcomes:?}");
    assert_eq!(taken + rejected, packets.len(), "each has its answer: {outcomes:?}");
    assert_eq!((mix.counts().received, mix.counts().rejected), (taken as u64, rejected as u64));
    // Padding is refused with the packets, or it could be told from them.
    let junk = vec![Unit::junk((), &mut world.dice)];
    let next = NextHop::Host(hop[0].route.clone());
    let padded = deliver(&next, junk, &ConnectConfig::default(), world.now(), &CancellationToken::new()).await;
    assert_eq!(padded.outcomes, [((), Outcome::Rejected)]);
    // Batches go by, and the disk stays full.
    for _ in 0..3 {
        rests_or(&[], &|| false).await;
        advance(INTERVAL).await;
    }
    assert_eq!(mix.counts().received, taken as u64);
    let got = mix.users.got();
    assert!(got.0 == got.1 && got.0 as u64 + mix.waiting() >= taken as u64, "nothing is lost: {got:?}");

    // Somebody makes room.
    let_grow(mix.db(), None);
    let refused: Vec<_> = packets.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Outcome::Rejected).collect();
    let refused: Vec<_> = refused.into_iter().map(|(packet, _)| packet.clone()).collect();
    advance(MINUTE).await;
    mix.take(&refused).await;
    let all = packets.len();
    world.batches_until("all have arrived", &[&mix], || mix.users.got().0 == all && mix.waiting() == 0).await;
    assert_eq!(mix.users.got(), (all, all), "each once");
    let Counts { received, replayed, invalid, undeliverable, delivered, .. } = mix.counts();
    assert_eq!((received, replayed, invalid, undeliverable, delivered), (all as u64, 0, 0, 0, all as u64));
    mix.knows_all(&packets).await;
    mix.end().await;
}

/// A way to a mix that breaks as told.
struct Door {
    port: u16,
    breaks: Arc<Mutex<VecDeque<Break>>>,
    /// Lets on what a [`Break::Hold`] holds.
    go: Arc<Semaphore>,
}

/// How a connection ends: by a reset, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    /// As soon as it is there.
    AtOnce,
    /// After so many octets from the caller.
    There(usize),
    /// After so many octets from the mix.
    Back(usize),
    /// When the mix has a packet, and its answer is on the way.
    BeforeTheAnswer,
    /// Not at all; but it stands still after so many octets from the caller.
    Hold(usize),
}

impl Door {
    async fn to(mix: u16, breaks: &[Break], world: &World) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let breaks = Arc::new(Mutex::new(breaks.iter().copied().collect::<VecDeque<_>>()));
        let go = Arc::new(Semaphore::new(0));
        let (to_come, gate, stop) = (Arc::clone(&breaks), Arc::clone(&go), world.outlives.clone());
        tokio::spawn(async move {
            while let Some(Ok((near, _))) = stop.run_until_cancelled(listener.accept()).await {
                let next = to_come.lock().unwrap().pop_front();
                tokio::spawn(through(near, mix, next, Arc::clone(&gate)));
            }
        });
        Self { port, breaks, go }
    }

    /// Breaks that are still to come.
    fn left(&self) -> usize {
        self.breaks.lock().unwrap().len()
    }
}

async fn through(mut near: TcpStream, mix: u16, how: Option<Break>, go: Arc<Semaphore>) {
    let mut far = TcpStream::connect(("127.0.0.1", mix)).await.unwrap();
    let whole = how != Some(Break::AtOnce) && copied(&mut near, &mut far, how, &go).await;
    if !whole {
        near.set_zero_linger().unwrap();
        far.set_zero_linger().unwrap();
    }
}

/// Whether it came to its own end.
async fn copied(near: &mut TcpStream, far: &mut TcpStream, how: Option<Break>, go: &Semaphore) -> bool {
    let (mut there, mut back) = (0, 0);
    let (mut out, mut home) = (vec![0; 16384], vec![0; 16384]);
    loop {
        tokio::select! {
            read = near.read(&mut out) => {
                let Ok(count @ 1..) = read else { return true };
                there += count;
                match how {
                    Some(Break::There(most)) if there >= most => return false,
                    Some(Break::Hold(most)) if there >= most => drop(go.acquire().await.unwrap()),
                    _ => {}
                }
                if far.write_all(&out[..count]).await.is_err() {
                    return true;
                }
            }
            read = far.read(&mut home) => {
                let Ok(count @ 1..) = read else { return true };
                back += count;
                match how {
                    Some(Break::Back(most)) if back >= most => return false,
                    // The handshake has far fewer octets than a packet.
                    Some(Break::BeforeTheAnswer) if there > UNIT_LEN => return false,
                    _ => {}
                }
                if near.write_all(&home[..count]).await.is_err() {
                    return true;
                }
            }
        }
    }
}

/// One of each kind: before, in and after the handshake, within a packet, and when it has been taken.
const BREAKS: [Break; 6] = [
    Break::AtOnce,
    Break::There(600),
    Break::Back(600),
    Break::There(UNIT_LEN),
    Break::BeforeTheAnswer,
    Break::There(3 * UNIT_LEN),
];

#[tokio::test(start_paused = true)]
async fn peers_that_reset_anywhere_cost_no_packet_and_make_none_twice() {
    let home = tempfile::tempdir().unwrap();
    let mut world = World::new(day(0) + 12 * HOUR);
    let first = Mix::start(&world, &config(&home.path().join("first"))).await;
    let last = Mix::start(&world, &config(&home.path().join("last"))).await;
    let into = Door::to(first.node.address.port(), &BREAKS, &world).await;
    let between = Door::to(last.node.address.port(), &BREAKS, &world).await;
    let leg1 = [first.hop_at("127.0.0.1", into.port)];
    let leg2 = [last.hop_at("127.0.0.1", between.port)];
    let packets = world.packets(8, &leg1, &leg2);
    let all = packets.len() as u64;

    first.take_at(&leg1[0].route, &packets).await;
    assert_eq!(into.left(), 0, "all has broken that was to break");
    rests_or(&[&first], &|| false).await;
    let Counts { connections, received, replayed, invalid, .. } = first.counts();
    assert!(connections > BREAKS.len() as u64, "{connections}: after each break another");
    assert!(received > all, "what was taken and not answered came again");
    assert_eq!((replayed, invalid), (received - all, 0), "and was known");
    assert_eq!(first.queues()[1], all, "all are in the pool, each once");

    world.batches_until("all have arrived", &[&first, &last], || last.users.got().0 as u64 == all).await;
    world.batches_until("nothing waits", &[&first, &last], || first.waiting() + last.waiting() == 0).await;
    assert_eq!(last.users.got(), (packets.len(), packets.len()), "each once");
    assert_eq!(between.left(), 0);
    let Counts { mixed, relayed, unreachable, expired, .. } = first.counts();
    assert_eq!((mixed, relayed, unreachable, expired), (all, all, BREAKS.len() as u64, 0));
    let Counts { received, replayed, invalid, delivered, .. } = last.counts();
    assert!(received > all);
    assert_eq!((replayed, invalid, delivered), (received - all, 0, all));
    first.knows_all(&packets).await;
    first.end().await;
    last.end().await;
}

#[tokio::test(start_paused = true)]
async fn name_service_that_is_down_or_silent_holds_up_its_names_alone_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut world = World::new(day(0) + 12 * HOUR);
    let (say, names) = watch::channel(Names::Down);
    let first = Mix::start_asking(&world, &config(&home.path().join("first")), &names).await;
    let last = Mix::start(&world, &config(&home.path().join("last"))).await;
    let port = last.node.address.port();
    let (own, by_name, by_address) =
        ([first.hop()], [last.hop_at("mix.example", port)], [last.hop_at("127.0.0.1", port)]);
    let mut packets = world.packets(3, &own, &by_name);
    packets.extend(world.packets(2, &own, &by_address));
    packets.extend(world.packets(2, &own, &own));
    first.take(&packets).await;

    // Whoever is known by an address, or lives here, gets his.
    let two_each = || (first.users.got().0, last.users.got().0, first.queues()) == (2, 2, [0, 0, 3, 0]);
    world.batches_until("all that needs no name", &[&first, &last], two_each).await;
    assert!(first.counts().unreachable >= 1, "{:?}", first.counts());

    // A name service that says nothing is waited for, and not for ever.
    say.send_replace(Names::Silent);
    advance(INTERVAL).await;
    rests_or(&[&first], &|| false).await;
    let silent = first.counts().unreachable;
    advance(MINUTE).await;
    until("an end of the patience", || first.counts().unreachable == silent + 1).await;
    assert_eq!((first.queues()[2], first.counts().expired), (3, 0), "nothing is lost");

    say.send_replace(Names::Known);
    world.batches_until("all have arrived", &[&first, &last], || last.users.got().0 == 5).await;
    world.batches_until("nothing waits", &[&first, &last], || first.waiting() + last.waiting() == 0).await;
    assert_eq!((first.users.got(), last.users.got()), ((2, 2), (5, 5)), "each once");
    assert_eq!((first.counts().relayed, first.counts().expired), (5, 0));
    first.end().await;
    last.end().await;
}

#[tokio::test(start_paused = true)]
async fn key_that_is_replaced_in_the_middle_of_a_burst_costs_nothing_and_is_forgotten_after_the_overlap() {
    let home = tempfile::tempdir().unwrap();
    let mut world = World::new(day(0) + 12 * HOUR);
    let config = config(&home.path().join("node"));
    let mix = Mix::start(&world, &config).await;
    // Two weeks before it begins, the second is made.
    world.pass_until(day(2)).await;
    until("the keys that are made ahead", || mix.node.descriptors().borrow().all.len() == 2).await;
    let both = Arc::clone(&mix.node.descriptors().borrow());
    let [old, new] = &both.all[..] else { panic!("two keys") };
    let (old, new) = (&old.descriptor, &new.descriptor);
    assert_eq!((new.valid_after(), old.valid_until()), (day(15), day(30)));
    let id = |key: &crate::directory::Descriptor| Digest(key.packet_key().key_id().0);
    let (old_id, new_id) = (id(old), id(new));
    let remembered = |key: Digest| mix.node.replay.count(&key).unwrap();
    let (old, new) = ([old.hop().unwrap()], [new.hop().unwrap()]);

    // Ten seconds before the second begins. Half of the first connection is over when it stands still; it does at midnight.
    world.pass_until(day(15) - HOUR).await;
    let door = Door::to(mix.node.address.port(), &[Break::Hold(5 * UNIT_LEN)], &world).await;
    let by_the_door = HostRoute { port: door.port, ..mix.hop().route };
    let first = world.packets(12, &old, &old);
    // The certificate is renewed at the first look after two weeks that went by at once.
    mix.take(&world.packets(1, &old, &old)).await;
    world.pass_until(day(15) - Duration::from_secs(10)).await;
    let before = mix.counts().received;
    let burst = mix.take_at(&by_the_door, &first);
    let midnight = async {
        until("a part of the burst", || mix.counts().received > before).await;
        assert_eq!(mix.hop().packet_key, old[0].packet_key);
        world.pass_until(day(15)).await;
        until("the new key", || mix.hop().packet_key == new[0].packet_key).await;
        assert!(mix.counts().received < before + 12, "in the middle");
        door.go.add_permits(1);
    };
    tokio::join!(burst, midnight);
    // The burst goes on, with packets of those who know the new key and of those who do not.
    let mut second = world.packets(6, &new, &old);
    second.extend(world.packets(6, &new, &new));
    second.extend(world.packets(6, &old, &new));
    mix.take(&second).await;
    world.batches_until("all have arrived", &[&mix], || mix.users.got().0 == 31).await;
    world.batches_until("nothing waits", &[&mix], || mix.waiting() == 0).await;
    assert_eq!(mix.users.got(), (31, 31), "each once");
    assert_eq!((mix.counts().invalid, mix.counts().replayed), (0, 0));
    // Each passes the mix twice.
    assert_eq!((remembered(old_id), remembered(new_id)), (2 * 13 + 12, 12 + 12));
    let all = [first, second].concat();
    mix.knows_all(&all).await;

    // To the last second of the overlap the old key opens packets, and knows those that it has opened.
    world.pass_until(day(31) - 2 * HOUR).await;
    mix.knows_all(&all[..4]).await;
    world.pass_until(day(31) - Duration::from_secs(1)).await;
    mix.take(&world.packets(1, &old, &new)).await;
    rests_or(&[&mix], &|| false).await;
    assert_eq!((mix.counts().invalid, mix.queues()[1]), (0, 1));
    // Then it is gone, with all that was remembered of its packets, and those are refused as any other nonsense.
    world.pass_until(day(31)).await;
    until("an end of the memory", || remembered(old_id) == 0).await;
    let names = std::fs::read_dir(config.home.join("keys")).unwrap().map(|entry| entry.unwrap().file_name());
    let first_day = format!("packet-{}-", format_date(day(0)).unwrap());
    assert!(!names.into_iter().any(|name| name.to_str().unwrap().starts_with(&first_day)), "its files are gone");
    let too_late = [world.packets(3, &old, &new), all[..3].to_vec()].concat();
    mix.take(&too_late).await;
    until("six that open under no key", || mix.counts().invalid == 6).await;
    world.batches_until("what came in time", &[&mix], || mix.users.got().0 == 32 && mix.waiting() == 0).await;
    assert_eq!(mix.users.got(), (32, 32), "each once");
    assert_eq!(remembered(new_id), 12 + 12 + 1, "the other key knows its own still");
    assert_eq!(mix.counts().undeliverable, 0);
    mix.end().await;
}

#[tokio::test(start_paused = true)]
async fn mail_that_waits_when_its_delivery_is_switched_off_is_delivered_when_it_is_on_again() {
    let home = tempfile::tempdir().unwrap();
    let mut world = World::new(day(3) + 12 * HOUR);
    let on = config(&home.path().join("node"));
    let mut off = on.clone();
    off.mbox.enabled = false;
    let mix = Mix::start(&world, &on).await;
    let hop = [mix.hop()];
    mix.users.away.store(true, Ordering::Relaxed);
    mix.take(&world.packets(2, &hop, &hop)).await;
    world.batches_until("two that wait", &[&mix], || mix.queues() == [0, 0, 0, 2]).await;

    let mix = mix.restarted(&world, &off).await;
    mix.users.away.store(false, Ordering::Relaxed);
    // What comes now may have been sent before anybody knew that it is off.
    let hop = [mix.hop()];
    mix.take(&world.packets(1, &hop, &hop)).await;
    world.batches_until("three that wait", &[&mix], || mix.queues() == [0, 0, 0, 3]).await;
    for _ in 0..8 {
        advance(INTERVAL).await;
        rests_or(&[&mix], &|| false).await;
    }
    assert_eq!((mix.counts().undeliverable, mix.queues()), (0, [0, 0, 0, 3]), "they wait");

    let mix = mix.restarted(&world, &on).await;
    world.batches_until("all three", &[&mix], || mix.waiting() == 0).await;
    assert_eq!((mix.users.got(), mix.counts().undeliverable), ((3, 3), 0));

    // Switched off for longer than the schedule lasts, a day for the users of a gateway, it is dropped and counted.
    mix.users.away.store(true, Ordering::Relaxed);
    mix.take(&world.packets(1, &[mix.hop()], &[mix.hop()])).await;
    world.batches_until("one that waits", &[&mix], || mix.queues() == [0, 0, 0, 1]).await;
    let mix = mix.restarted(&world, &off).await;
    let id = mix.db().read(|view| exit::due(view, day(1000), 1)).unwrap()[0].id;
    let again = mix.clock.now();
    mix.db().write(move |tx| (2..24 * 60).try_for_each(|_| exit::postpone(tx, id, again).map(drop))).unwrap();
    for _ in 0..8 {
        advance(MINUTE).await;
        rests_or(&[&mix], &|| false).await;
    }
    assert_eq!((mix.counts().undeliverable, mix.waiting()), (1, 0));
    mix.end().await;
}
