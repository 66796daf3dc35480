//! Two mixes on loopback, from MMTP in to MMTP out, everything durable, beside the bare RSA rate of all cores in the same
//! run; then what a mix needs of memory while a hundred thousand packets wait in its pool.
//!
//! `cargo bench -p mix --bench node_throughput`. All of it shares the machine: whoever sends, both mixes, and whoever takes
//! what comes out. The databases lie in the folder for temporary files, or in the one that `MIX_BENCH_HOME` names.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use mix::crypto::KeyId;
use mix::crypto::pk::{PacketKey, PrivateKey};
use mix::net::connect::{ConnectConfig, Outcome, Unit, deliver};
use mix::net::listen::{ListenConfig, MmtpListener, PacketSink, Refused};
use mix::net::sockets::Inherited;
use mix::net::tls::LinkIdentity;
use mix::node::config::{MixRule, MixingConfig, NetworkConfig, NodeConfig};
use mix::node::{Counters, Node, Parts, RunningNode, World};
use mix::packet::build::{self, Exit, Hop};
use mix::packet::{HostName, HostRoute, NextHop, PACKET_LEN, Packet, Payload, RoutingType};
use mix::store::queue::pool::{self, PoolItem};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Packets, and how often each passes a mix: so often that who sends and who takes them costs little beside the mixes.
const PACKETS: usize = 24_000;
const MIXES: usize = 12;
/// Packets in one connection of the senders: sixteen connections at a time.
const TOGETHER: usize = PACKETS / 16;
/// Packets that wait while memory is looked at.
const WAITING: usize = 100_000;

/// Whoever takes what comes out.
#[derive(Default)]
struct Count(AtomicUsize);

impl PacketSink for Count {
    async fn store(&self, _: Packet) -> Result<(), Refused> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn forget(&self, _: Packet) -> Result<(), Refused> {
        Ok(())
    }
}

async fn start(home: &Path, interval: Duration, minimum: usize, stop: &CancellationToken) -> RunningNode {
    let rule = if minimum == 0 { MixRule::Timed } else { MixRule::Cottrell };
    let mut config = NodeConfig {
        home: home.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        host: "127.0.0.1".into(),
        mixing: MixingConfig { interval, rule, minimum, ..MixingConfig::default() },
        ..NodeConfig::default()
    };
    config.stats.enabled = false;
    let parts = Parts {
        world: World::real(),
        counters: Counters::default(),
        mailboxes: None,
        network: NetworkConfig::default(),
        directory: None,
        passphrase: None,
        sockets: Inherited::default(),
        stop: stop.clone(),
    };
    Node::start(&config, parts).await.unwrap()
}

/// A listener that only counts, as a stop on a path.
async fn sink(count: &Arc<Count>, stop: &CancellationToken) -> Hop {
    let mut rng = StdRng::seed_from_u64(3);
    let key = PrivateKey::generate(2048, &mut rng).unwrap();
    let link = LinkIdentity::new(&key, &"Sink".parse().unwrap(), SystemTime::now(), &mut rng).unwrap();
    let (_, link) = watch::channel(Arc::new(link));
    let address: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = MmtpListener::bind(address, link, ListenConfig::default(), Arc::clone(count)).await.unwrap();
    let port = listener.local_addr().port();
    tokio::spawn(listener.run(stop.clone()));
    let route = HostRoute { host: HostName::parse("127.0.0.1").unwrap(), port, key_id: key.public_key().key_id() };
    Hop { packet_key: key.public_key(), route }
}

/// Builds on all cores: packets to and fro between the two, swapped half way; what comes out of the last mix goes to
/// `last`.
fn packets(first: &Hop, second: &Hop, last: &Hop) -> Vec<Packet> {
    let cores = thread::available_parallelism().unwrap().get();
    let mixes: Vec<_> = [first, second].into_iter().cycle().take(MIXES).chain([last]).cloned().collect();
    let (leg1, leg2) = mixes.split_at(MIXES / 2);
    thread::scope(|scope| {
        let build = |core: usize| {
            let mut rng = StdRng::seed_from_u64(core as u64);
            let exit = Exit { exit_type: RoutingType::MBOX, address: b"frida".to_vec() };
            let one = |_| build::forward(&Payload::random(&mut rng), &exit, leg1, leg2, &mut rng).unwrap();
            (0..PACKETS / cores).map(one).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..cores).map(|core| scope.spawn(move || build(core))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Operations a second, on all cores at the same time.
fn bare_rsa_rate() -> f64 {
    let mut rng = StdRng::seed_from_u64(1);
    let private = PrivateKey::generate(2048, &mut rng).unwrap();
    let sealed: [u8; 256] = private.public_key().encrypt(&[7; 128], &mut rng).unwrap().try_into().unwrap();
    let (cores, each) = (thread::available_parallelism().unwrap().get(), 15_000);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let key = PacketKey::new(&private).unwrap();
                (0..each).for_each(|_| drop(std::hint::black_box(key.decrypt(&sealed).unwrap())));
            });
        }
    });
    (cores * each) as f64 / began.elapsed().as_secs_f64()
}

async fn through_two_mixes(home: &Path) -> f64 {
    let stop = CancellationToken::new();
    let count = Arc::new(Count::default());
    let last = sink(&count, &stop).await;
    let interval = Duration::from_millis(500);
    let (a, b) = (start(&home.join("a"), interval, 0, &stop).await, start(&home.join("b"), interval, 0, &stop).await);
    let packets = packets(&a.descriptor().hop().unwrap(), &b.descriptor().hop().unwrap(), &last);
    let next = NextHop::Host(a.descriptor().route().unwrap());
    let all = packets.len();
    let (began, used) = (Instant::now(), processor_time());
    let mut senders = JoinSet::new();
    let mut packets = packets.into_iter().map(|packet| Unit::packet((), packet));
    for _ in 0..all.div_ceil(TOGETHER) {
        let units = packets.by_ref().take(TOGETHER).collect();
        let (next, stop) = (next.clone(), stop.clone());
        senders.spawn(async move {
            let delivery = deliver(&next, units, &ConnectConfig::default(), SystemTime::now(), &stop).await;
            let all = delivery.outcomes.iter().all(|((), outcome)| *outcome == Outcome::Delivered);
            assert!(all, "{:?}", delivery.failure);
        });
    }
    senders.join_all().await;
    let taken = began.elapsed();
    while count.0.load(Ordering::Relaxed) < all {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = began.elapsed();
    let each = (processor_time() - used) / (MIXES * all) as f64;
    println!("{all} packets: taken in {taken:.2?}, through {MIXES} mixes each in {took:.2?}");
    println!("processor time for each packet and mix, sender and taker included: {:.0} us", each * 1e6);
    stop.cancel();
    a.ended().await;
    b.ended().await;
    (MIXES * all) as f64 / took.as_secs_f64()
}

/// Seconds of processor time that this process has used, in it and in the system for it.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in hundredths.
    fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// Resident memory in MB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

/// What a mix needs while so many packets wait, after it has mixed a few times.
async fn memory(home: &Path) -> u64 {
    let stop = CancellationToken::new();
    let mix = start(&home.join("full"), Duration::from_millis(500), WAITING, &stop).await;
    let host = HostName::parse("127.0.0.1").unwrap();
    let next = NextHop::Host(HostRoute { host, port: 1, key_id: KeyId([9; 20]) });
    for first in (0..WAITING).step_by(1000) {
        let next = next.clone();
        mix.db
            .write(move |tx| {
                (first..first + 1000).try_for_each(|number| {
                    let mut octets = vec![0; PACKET_LEN];
                    octets[..8].copy_from_slice(&number.to_be_bytes());
                    let packet = Packet::from_bytes(&octets).expect("a packet's length");
                    pool::insert(tx, &PoolItem::Relay { next: next.clone(), packet }).map(|_| ())
                })
            })
            .unwrap();
    }
    let mut most = 0;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(resident());
    }
    assert_eq!(mix.db.read(pool::count).unwrap(), WAITING as u64);
    stop.cancel();
    mix.ended().await;
    most
}

fn main() {
    mix::node::memory::keep_freed();
    let folder = std::env::var_os("MIX_BENCH_HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    let home = tempfile::tempdir_in(folder).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let asked =
        |part: &str| !std::env::args().skip(1).any(|arg| ["memory", "throughput"].contains(&&*arg) && arg != part);
    if asked("memory") {
        let memory = runtime.block_on(memory(home.path()));
        println!("{WAITING} packets wait: {memory} MB resident. Asked: under 300 MB.");
    }
    if asked("throughput") {
        // Before and after: other users of the machine come and go.
        let before = bare_rsa_rate();
        let rate = runtime.block_on(through_two_mixes(home.path()));
        let bare = f64::midpoint(before, bare_rsa_rate());
        println!("bare RSA-2048 private operations, all cores: {bare:.0}/s");
        println!("packets through a mix, all of this process: {rate:.0}/s, {:.2} of it. Asked: half.", rate / bare);
    }
}
