//! A mix dies at each commit of a packet's life, before it and after it, and goes on at the next start.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::config::{MixRule, MixingConfig, NetworkConfig, NodeConfig};
use super::testing::{PATIENCE, hop, listening};
use super::{Counters, Node, Parts, RunningNode, World};
use crate::crypto::Digest;
use crate::deliver::mbox::{LocalMailboxes, NotDelivered};
use crate::net::connect::{ConnectConfig, Outcome, Unit, deliver};
use crate::net::listen::{PacketSink, Refused};
use crate::net::sockets::Inherited;
use crate::packet::build::{self, Exit, Hop};
use crate::packet::{NextHop, Packet, Payload, RoutingType};
use crate::store::Db;
use crate::store::db::death::{self, Moment};
use crate::store::inbox::Arrival;
use crate::store::queue::{exit, incoming, outgoing, pool};
use crate::store::replay;

/// Packets of each kind.
const EACH: usize = 3;
const SEED: u64 = 0x6465_6174_6873;

/// What left the mix: packets by their octets, deliveries by their keys, and how often each.
#[derive(Clone, Default)]
struct Left(Arc<Mutex<BTreeMap<Vec<u8>, usize>>>);

impl Left {
    fn note(&self, what: &[u8]) {
        *self.0.lock().unwrap().entry(what.to_vec()).or_default() += 1;
    }

    fn different(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn all(&self) -> usize {
        self.0.lock().unwrap().values().sum()
    }
}

impl PacketSink for Left {
    async fn store(&self, packet: Packet) -> Result<(), Refused> {
        self.note(packet.as_bytes());
        Ok(())
    }

    async fn forget(&self, _: Packet) -> Result<(), Refused> {
        Ok(())
    }
}

impl LocalMailboxes<Arrival> for Left {
    fn has(&self, _: &str) -> bool {
        true
    }

    fn deliver(&self, _: &str, key: &Digest, _: &Arrival) -> Result<(), NotDelivered> {
        self.note(&key.0);
        Ok(())
    }
}

/// The world around the mix: the next one, and its own users.
struct Around {
    relayed: Left,
    delivered: Left,
    counters: Counters,
    stop: CancellationToken,
}

impl Around {
    async fn start(&self, home: &Path) -> RunningNode {
        let mut config = NodeConfig {
            home: home.to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            mixing: MixingConfig {
                interval: Duration::from_millis(20),
                rule: MixRule::Timed,
                ..MixingConfig::default()
            },
            ..NodeConfig::default()
        };
        config.mbox.enabled = true;
        config.stats.enabled = false;
        let parts = Parts {
            world: World::real(),
            counters: self.counters.clone(),
            mailboxes: Some(Arc::new(self.delivered.clone())),
            network: NetworkConfig::default(),
            directory: None,
            passphrase: None,
            sockets: Inherited::default(),
            stop: self.stop.clone(),
        };
        Node::start(&config, parts).await.unwrap()
    }

    fn is_through(&self) -> bool {
        self.relayed.different() == EACH && self.delivered.different() == EACH
    }
}

/// Packets for the next mix and for users of this one.
fn packets(mix: &Hop, next: &Hop) -> Vec<Packet> {
    let mut dice = StdRng::seed_from_u64(SEED);
    let exit = Exit { exit_type: RoutingType::MBOX, address: b"frida".to_vec() };
    let (own, both) = ([mix.clone()], [mix.clone(), next.clone()]);
    let mut packet =
        |leg1: &[Hop], leg2: &[Hop]| build::forward(&Payload::random(&mut dice), &exit, leg1, leg2, &mut dice).unwrap();
    // One more hop of the mix itself, which never touches the network; and the swap point at the next mix.
    (0..EACH).flat_map(|_| [packet(&own, &own), packet(&both, &own)]).collect()
}

/// Hands packets to the mix; returns those that it has not said RECEIVED to.
async fn hand_over(node: &RunningNode, packets: &[Packet], stop: &CancellationToken) -> Vec<Packet> {
    let units = packets.iter().cloned().enumerate().map(|(i, packet)| Unit::packet(i, packet)).collect();
    let next = NextHop::Host(node.descriptor().route().unwrap());
    let delivery = deliver(&next, units, &ConnectConfig::default(), SystemTime::now(), stop).await;
    let open = delivery.outcomes.into_iter().filter(|(_, outcome)| *outcome != Outcome::Delivered);
    open.map(|(i, _)| packets[i].clone()).collect()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let poll = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(PATIENCE, poll).await.is_ok(), "never: {what}");
}

fn waiting(db: &Db) -> u64 {
    let counts = [incoming::count, pool::count, outgoing::count, exit::count];
    counts.into_iter().map(|count| db.read(count).unwrap()).sum()
}

fn copied_keys(from: &Path, home: &Path) {
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(home).unwrap();
    let keys = home.join("keys");
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&keys).unwrap();
    for entry in std::fs::read_dir(from.join("keys")).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, keys.join(file.file_name().unwrap())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mix_that_dies_at_any_commit_loses_nothing_and_lets_nothing_pass_twice() {
    println!("seed {SEED:#x}");
    let folder = tempfile::tempdir().unwrap();
    // Its keys are made once.
    let template = folder.path().join("template");
    let first = Around {
        relayed: Left::default(),
        delivered: Left::default(),
        counters: Counters::default(),
        stop: CancellationToken::new(),
    };
    first.start(&template).await;
    first.stop.cancel();
    for moment in [Moment::BeforeCommit, Moment::AfterCommit] {
        let mut commit = 1;
        while dies_and_goes_on(folder.path(), &template, commit, moment).await {
            commit += 1;
        }
        println!("{moment:?}: it has died at each of {} commits", commit - 1);
        assert!(commit > 6, "a life of fewer commits than a packet has steps");
    }
}

/// Whether it died at that commit at all.
async fn dies_and_goes_on(folder: &Path, template: &Path, commit: u64, moment: Moment) -> bool {
    let home = folder.join(format!("{moment:?}-{commit}"));
    copied_keys(template, &home);
    let around = Around {
        relayed: Left::default(),
        delivered: Left::default(),
        counters: Counters::default(),
        stop: CancellationToken::new(),
    };
    let outlives = CancellationToken::new();
    let next = hop(2, listening(2, around.relayed.clone(), &outlives).await);
    let case = format!("{moment:?} of commit {commit}");

    let path = home.join("node.db");
    // So that entries become runs, and runs are merged, in so short a life.
    replay::testing::flush_beyond(&path, 1);
    let death = death::plan(&path, commit, moment);
    let node = around.start(&home).await;
    let mix = node.descriptor().hop().unwrap();
    let packets = packets(&mix, &next);
    let in_time = CancellationToken::new();
    let handing_over = hand_over(&node, &packets, &in_time);
    let end = async {
        until(&format!("{case}: death, or the end of the work"), || {
            death.has_come() || (around.is_through() && waiting(&node.db) == 0)
        })
        .await;
        in_time.cancel();
    };
    let (unanswered, ()) = tokio::join!(handing_over, end);
    let died = death.has_come();
    around.stop.cancel();
    node.ended().await;
    death::cancel(&path);

    let around = Around { stop: CancellationToken::new(), counters: Counters::default(), ..around };
    let node = around.start(&home).await;
    // Whoever got no answer tries again.
    assert_eq!(hand_over(&node, &unanswered, &outlives).await, [], "{case}");
    until(&format!("{case}: all has left"), || around.is_through() && waiting(&node.db) == 0).await;
    // What was handed over twice is the same packet, which the next mix drops, or the same delivery, which is known by its
    // key. What is different would be another.
    let left = (around.relayed.all(), around.delivered.all());
    assert!(left.0 <= 2 * EACH && left.1 <= 2 * EACH, "{case}: {left:?}");

    // Nothing of it passes again.
    let before = around.counters.snapshot().replayed;
    assert_eq!(hand_over(&node, &packets, &outlives).await, [], "{case}");
    let all = packets.len() as u64;
    until(&format!("{case}: all are known"), || around.counters.snapshot().replayed == before + all).await;
    until(&format!("{case}: nothing waits"), || waiting(&node.db) == 0).await;
    assert_eq!((around.relayed.all(), around.delivered.all()), left, "{case}");
    let runs = home.join("node.replay");
    until(&format!("{case}: entries lie in runs"), || std::fs::read_dir(&runs).unwrap().next().is_some()).await;
    around.stop.cancel();
    node.ended().await;
    outlives.cancel();
    died
}
