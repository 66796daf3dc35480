//! Services together: what the network sees of a mix, whatever comes in.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::sync::RwLock;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::config::{MixRule, MixingConfig, NetworkConfig, NodeConfig};
use super::incoming::{self, Incoming, Worker};
use super::testing::{PATIENCE, hop, key, listening, observed};
use super::{Counters, Counts, Node, Parts, World};
use crate::crypto::pk::PacketKey;
use crate::net::connect::{ConnectConfig, Outcome, Unit, deliver};
use crate::packet::build::{self, Exit, Hop};
use crate::packet::{HostName, HostRoute, NextHop, PACKET_LEN, Packet, Payload, RoutingType};
use crate::store::queue::pool::{self, PoolItem};
use crate::store::queue::{self, outgoing};
use crate::store::replay::ReplayLog;
use crate::store::{Db, NODE_SCHEMAS};

const SEED: u64 = 0x616e_7377_6572_7301;

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let poll = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, poll).await.is_ok(), "never: {what}");
}

/// A packet for a user of the last of these mixes; in it, all of them are passed.
fn to_a_user(leg1: &[Hop], leg2: &[Hop], dice: &mut StdRng) -> Packet {
    let exit = Exit { exit_type: RoutingType::MBOX, address: b"frida".to_vec() };
    build::forward(&Payload::random(dice), &exit, leg1, leg2, dice).unwrap()
}

/// Packets of all fates, each with its name.
fn fates(mix: &Hop) -> Vec<(&'static str, Packet)> {
    println!("seed {SEED:#x}");
    let mut dice = StdRng::seed_from_u64(SEED);
    let leg = std::slice::from_ref(mix);
    let good = to_a_user(leg, leg, &mut dice);
    let changed = |at: usize| {
        let mut octets = good.as_bytes().to_vec();
        octets[at] ^= 1;
        Packet::from_bytes(&octets).unwrap()
    };
    vec![
        ("good", good.clone()),
        ("replayed", good.clone()),
        ("dummy", build::dummy(leg, &[], &mut dice).unwrap()),
        ("undecryptable", changed(100)),
        ("header changed behind the subheader", changed(1000)),
        ("noise", Packet::from_bytes(&[7; PACKET_LEN]).unwrap()),
    ]
}

#[tokio::test]
async fn every_packet_is_answered_alike_and_before_anybody_has_looked_at_it() {
    let home = tempfile::tempdir().unwrap();
    let db = Db::open(&home.path().join("node/node.db"), &NODE_SCHEMAS).unwrap();
    let (counters, stop) = (Counters::default(), CancellationToken::new());
    let incoming = Incoming::new(db.clone(), counters.clone());
    let port = listening(1, incoming.clone(), &stop).await;
    let mix = hop(1, port);
    let fates = fates(&mix);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let by_way_of = HostRoute { port: listener.local_addr().unwrap().port(), ..mix.route };

    // The workers are held back: they have not even been started.
    let mut seen = Vec::new();
    for (fate, packet) in &fates {
        let (next, connect) = (NextHop::Host(by_way_of.clone()), ConnectConfig::default());
        let units = vec![Unit::packet((), packet.clone())];
        let exchange = async {
            tokio::join!(
                deliver(&next, units, &connect, std::time::SystemTime::now(), &stop),
                observed(&listener, port)
            )
        };
        let (delivery, observed) = timeout(PATIENCE, exchange).await.expect("both end");
        assert_eq!(delivery.outcomes, [((), Outcome::Delivered)], "{fate}: {:?}", delivery.failure);
        seen.push((fate, observed));
    }
    for (fate, observed) in &seen[1..] {
        assert_eq!(*observed, seen[0].1, "{fate} looks like the good one");
    }
    let all = fates.len() as u64;
    assert_eq!(db.read(queue::incoming::count).unwrap(), all, "all on disk");
    assert_eq!(db.read(pool::count).unwrap(), 0);
    let taken = Counts { connections: all, received: all, ..Counts::default() };
    assert_eq!(counters.snapshot(), taken, "nobody has looked");

    let worker = Worker {
        db: db.clone(),
        keys: Arc::new(RwLock::new(vec![Arc::new(PacketKey::new(&key(1)).unwrap())])),
        replay: ReplayLog::open(&db).unwrap(),
        counters: counters.clone(),
        stop: stop.clone(),
    };
    let (threads, feeder) = incoming::start(&incoming, worker);
    until("the workers find out", || db.read(queue::incoming::count).unwrap() == 0).await;
    let expected = Counts { replayed: 1, dropped: 1, invalid: 3, ..taken };
    assert_eq!(counters.snapshot(), expected);
    assert_eq!(db.read(pool::count).unwrap(), 1);
    stop.cancel();
    feeder.await.unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[tokio::test]
async fn packets_for_the_node_itself_never_touch_the_network() {
    let home = tempfile::tempdir().unwrap();
    let (counters, stop) = (Counters::default(), CancellationToken::new());
    let config = NodeConfig {
        home: home.path().join("node"),
        listen: "127.0.0.1:0".parse().unwrap(),
        mixing: MixingConfig { interval: Duration::from_millis(50), rule: MixRule::Timed, ..MixingConfig::default() },
        ..NodeConfig::default()
    };
    let parts = Parts {
        world: World::real(),
        counters: counters.clone(),
        mailboxes: None,
        network: NetworkConfig::default(),
        directory: None,
        passphrase: None,
        sockets: crate::net::sockets::Inherited::default(),
        stop: stop.clone(),
    };
    let node = Node::start(&config, parts).await.unwrap();
    let why = "Mix algorithm is not secure, Mix interval under 15 minutes";
    assert_eq!(node.descriptor().why_insecure(), Some(why));
    // Whoever would connect to the node by its route would come here.
    let trap = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let route = HostRoute {
        host: HostName::parse("127.0.0.1").unwrap(),
        port: trap.local_addr().unwrap().port(),
        key_id: node.descriptor().key_id(),
    };
    let own = Hop { packet_key: node.descriptor().packet_key().clone(), route: route.clone() };
    let leg = std::slice::from_ref(&own);
    println!("seed {SEED:#x}");
    let mut dice = StdRng::seed_from_u64(SEED);
    // As its gateway puts them into the pool: a message and a dummy that pass the node twice, and a dummy that ends here.
    let exit = Exit { exit_type: RoutingType::DROP, address: Vec::new() };
    let twice = build::forward(&Payload::random(&mut dice), &exit, leg, leg, &mut dice).unwrap();
    let once = build::dummy(leg, &[], &mut dice).unwrap();
    let exit = Exit { exit_type: RoutingType(0x1234), address: Vec::new() };
    let message = build::forward(&Payload::random(&mut dice), &exit, leg, leg, &mut dice).unwrap();
    for packet in [message, twice, once] {
        let item = PoolItem::Relay { next: NextHop::Host(route.clone()), packet };
        node.db.write(move |tx| pool::insert(tx, &item)).unwrap();
    }
    // Nobody knows this exit type, so the message is undeliverable: but that is found out at the exit.
    until("all have ended here", || {
        let counts = counters.snapshot();
        (counts.dropped, counts.undeliverable) == (2, 1)
    })
    .await;
    let expected = Counts { dropped: 2, undeliverable: 1, ..Counts::default() };
    assert_eq!(counters.snapshot(), expected, "nothing came or went by the network");
    assert_eq!(node.db.read(outgoing::destinations).unwrap(), []);
    assert!(timeout(Duration::ZERO, trap.accept()).await.is_err(), "nobody has connected");
    stop.cancel();
    node.ended().await;
}
