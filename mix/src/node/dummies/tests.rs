use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::LazyLock;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::batch::{DynamicPool, Pool};
use crate::crypto::Digest;
use crate::crypto::pk::PacketKey;
use crate::node::mixing::{Bells, Mixing, Rhythm};
use crate::node::testing::{hop, key, key_id, network, noon, noon_world};
use crate::packet::unwrap::{self, Novelty, Outcome, ReplayLog};
use crate::packet::{PACKET_LEN, RoutingType};
use crate::store::NODE_SCHEMAS;
use crate::store::queue::outgoing::{self, Cargo};

const SEED: u64 = 0x6475_6d6d_6965_7301;
const INTERVAL: Duration = Duration::from_secs(900);

/// Of the mixes 1 to 5. We are mix 1.
static PACKET_KEYS: LazyLock<BTreeMap<KeyId, PacketKey>> =
    LazyLock::new(|| (1..=5).map(|number| (key_id(number), PacketKey::new(&key(number)).unwrap())).collect());

/// Has seen nothing.
struct Fresh;

impl ReplayLog for Fresh {
    type Error = Infallible;

    fn admit(&mut self, _: &Digest, _: &Digest) -> Result<Novelty, Infallible> {
        Ok(Novelty::New)
    }
}

/// Carries a packet to its end: the mixes that it passed.
fn walk(mut next: NextHop, mut packet: Packet) -> Vec<KeyId> {
    let mut passed = Vec::new();
    loop {
        passed.push(next.key_id());
        let keys = [&PACKET_KEYS[&next.key_id()]];
        let admitted = unwrap::open(&packet, &keys).unwrap().admit(&mut Fresh).unwrap();
        match admitted.process().unwrap() {
            Outcome::Drop => return passed,
            Outcome::Relay { next: behind, packet: relayed } => (next, packet) = (behind, relayed),
            Outcome::Exit { .. } => panic!("a dummy left the network"),
        }
    }
}

/// Within 6 standard deviations of a binomial distribution.
fn assert_plausible(count: usize, trials: usize, p: f64) {
    let (count, trials) = (count as f64, trials as f64);
    let sigma = (trials * p * (1.0 - p)).sqrt();
    assert!((count - trials * p).abs() <= 6.0 * sigma, "{count} of {trials} at {p}");
}

fn dummies(home: &tempfile::TempDir, mixes: std::ops::RangeInclusive<u64>, config: DummiesConfig) -> Dummies {
    let network = network(home.path(), mixes, &noon_world(SEED));
    Dummies::new(watch::channel(config).1, network, key_id(1), Counters::default())
}

fn mixing(home: &tempfile::TempDir, pool: Pool, dummies: Dummies) -> Mixing {
    Mixing {
        db: Db::open(&home.path().join("node/node.db"), &NODE_SCHEMAS).unwrap(),
        rhythm: watch::channel(Rhythm { pool, interval: INTERVAL }).1,
        own: Some(key_id(1)),
        counters: dummies.counters.clone(),
        dummies: Some(dummies),
        bells: Bells::default(),
    }
}

fn without_junk() -> DummiesConfig {
    DummiesConfig { junk_period: Duration::ZERO, ..DummiesConfig::default() }
}

fn relay(fill: u8) -> PoolItem {
    let next = NextHop::Host(hop(2, 48099).route);
    PoolItem::Relay { next, packet: Packet::from_bytes(&[fill; PACKET_LEN]).unwrap() }
}

#[test]
fn number_of_dummies_is_geometric() {
    println!("seed {SEED:#x}");
    let mut dice = StdRng::seed_from_u64(SEED);
    let drawn: Vec<_> = (0..20_000).map(|_| geometric(8.0, &mut dice)).collect();
    // Mean 8, so a variance of 8·9, and 1/9, 8/81, … for 0, 1, …
    let mean = drawn.iter().sum::<usize>() as f64 / 20_000.0;
    assert!((mean - 8.0).abs() < 6.0 * (72.0_f64 / 20_000.0).sqrt(), "{mean}");
    for number in 0..6 {
        let p = (8.0_f64 / 9.0).powi(number) / 9.0;
        assert_plausible(drawn.iter().filter(|&&n| n == number as usize).count(), 20_000, p);
    }
    assert!((0..100).all(|_| geometric(0.0, &mut dice) == 0));
}

#[test]
fn way_of_a_dummy_has_one_to_four_mixes_and_never_begins_with_us() {
    let home = tempfile::tempdir().unwrap();
    let world = noon_world(SEED);
    let directory = network(home.path(), 1..=5, &world).directory().unwrap();
    let trials = 400;
    let (mut by_len, mut by_first, mut through_us) = ([0; 5], BTreeMap::<KeyId, usize>::new(), 0);
    for _ in 0..trials {
        let (next, packet) = make(&directory, &key_id(1), noon(), world.dice()).unwrap();
        let passed = walk(next, packet);
        assert!(passed.windows(2).all(|pair| pair[0] != pair[1]), "twice in a row");
        by_len[passed.len()] += 1;
        *by_first.entry(passed[0]).or_default() += 1;
        through_us += usize::from(passed.contains(&key_id(1)));
    }
    by_len[1..].iter().for_each(|&count| assert_plausible(count, trials, 0.25));
    assert!(!by_first.contains_key(&key_id(1)));
    (2..=5).for_each(|number| assert_plausible(by_first[&key_id(number)], trials, 0.25));
    assert!(through_us > 0, "later we are a mix like all others");
}

#[test]
fn few_mixes_make_short_ways_and_none_makes_no_dummy() {
    let home = tempfile::tempdir().unwrap();
    let world = noon_world(SEED);
    let make_in = |mixes: std::ops::RangeInclusive<u64>| {
        let directory = network(home.path(), mixes, &world).directory().unwrap();
        make(&directory, &key_id(1), noon(), world.dice())
    };
    for _ in 0..20 {
        let (next, packet) = make_in(2..=2).unwrap();
        assert_eq!(walk(next, packet), [key_id(2)], "we are not listed, so there is nobody else");
        let (next, packet) = make_in(1..=2).unwrap();
        assert_eq!(walk(next, packet)[0], key_id(2));
    }
    assert!(make_in(1..=1).is_none());
}

#[test]
fn dummy_of_one_leg_is_as_any_packet_and_dropped_at_its_end() {
    let mut dice = StdRng::seed_from_u64(SEED);
    let leg: Vec<_> = (2..=4).map(|number| hop(number, 48099)).collect();
    let packet = build::dummy(&leg, &[], &mut dice).unwrap();
    let passed = walk(NextHop::Host(leg[0].route.clone()), packet);
    assert_eq!(passed, [key_id(2), key_id(3), key_id(4)]);
    assert_eq!(build::dummy(&[], &[], &mut dice), Err(build::Unbuildable::EmptyLeg));
    assert_eq!(RoutingType::DROP, RoutingType(0));
}

#[tokio::test]
async fn dummies_are_made_at_any_moment_of_the_interval() {
    let home = tempfile::tempdir().unwrap();
    let mut dummies = dummies(&home, 1..=5, DummiesConfig { drop_mean: 500.0, ..without_junk() });
    let begun = Instant::now();
    let mut dice = noon_world(SEED).dice();
    while dummies.due.len() < 4000 {
        dummies.plan(INTERVAL, &mut dice);
    }
    assert!(dummies.due.iter().is_sorted());
    let passed: Vec<_> = dummies.due.iter().map(|due| due.duration_since(begun).as_secs_f64() / 900.0).collect();
    for quarter in [0.25, 0.5, 0.75] {
        assert_plausible(passed.iter().filter(|&&part| part < quarter).count(), passed.len(), quarter);
    }
}

#[tokio::test]
async fn dummies_leave_with_the_batch_whatever_the_pool_keeps() {
    let home = tempfile::tempdir().unwrap();
    let mut mixing =
        mixing(&home, Pool::Binomial(DynamicPool::new(45, 0.65).unwrap()), dummies(&home, 1..=5, without_junk()));
    let world = noon_world(SEED);
    for fill in 0..45 {
        mixing.db.write(move |tx| pool::insert(tx, &relay(fill))).unwrap();
    }
    let dummies = mixing.dummies.as_mut().unwrap();
    for _ in 0..5 {
        dummies.due.push_back(Instant::now());
        dummies.make_next(&mixing.db, &world).await;
    }
    assert_eq!(mixing.db.read(pool::count).unwrap(), 50);
    assert_eq!(mixing.mix(&world).await.unwrap().relays, 5);
    assert_eq!(mixing.db.read(pool::count).unwrap(), 45);
    assert_eq!(mixing.counters.snapshot().dummies, 5);
    assert_eq!(mixing.mix(&world).await.unwrap().relays, 0, "they leave once");
}

#[tokio::test]
async fn dummies_stand_anywhere_among_the_packets_of_their_batch() {
    let home = tempfile::tempdir().unwrap();
    let mut mixing = mixing(&home, Pool::Timed, dummies(&home, 1..=5, without_junk()));
    let world = noon_world(SEED);
    let (rounds, each) = (60, 10);
    let mut first_half = 0;
    for _ in 0..rounds {
        for fill in 0..2 * each {
            let id = mixing.db.write(move |tx| pool::insert(tx, &relay(fill))).unwrap();
            // The later half of the pool are dummies, as far as the pool is concerned.
            if fill >= each {
                mixing.dummies.as_mut().unwrap().ready.insert(id);
            }
        }
        assert_eq!(mixing.mix(&world).await.unwrap().relays, u64::from(2 * each));
        let to = mixing.db.read(outgoing::destinations).unwrap()[0].id;
        let cargo = mixing.db.read(|view| outgoing::cargo_for(view, to, None, 100)).unwrap();
        let is_dummy = |cargo: &Cargo| matches!(cargo, Cargo::Packet(packet) if packet.as_bytes()[0] >= each);
        first_half += cargo.iter().take(usize::from(each)).filter(|(_, cargo)| is_dummy(cargo)).count();
        mixing.db.write(move |tx| outgoing::give_up(tx, to)).unwrap();
    }
    assert_plausible(first_half, rounds * usize::from(each), 0.5);
}

#[tokio::test(start_paused = true)]
async fn idle_node_sends_its_dummies_and_nothing_between_batches() {
    let home = tempfile::tempdir().unwrap();
    let pool = Pool::Binomial(DynamicPool::new(45, 0.65).unwrap());
    let mixing = mixing(&home, pool, dummies(&home, 1..=5, without_junk()));
    let (db, counters, stop) = (mixing.db.clone(), mixing.counters.clone(), CancellationToken::new());
    let mut firings = mixing.bells.firings.subscribe();
    let service = tokio::spawn(mixing.run(noon_world(SEED), stop.clone()));
    let mut left = 0;
    while counters.snapshot().dummies < 40 {
        tokio::select! {
            biased;
            // The release is durable before the bell rings, and none comes before the next interval is over.
            Ok(()) = firings.changed() => left = db.read(outgoing::count).unwrap(),
            () = tokio::time::sleep(INTERVAL / 10) => {}
        }
    }
    stop.cancel();
    service.await.unwrap();
    assert!(left > 0);
    let (waiting, gone) = (db.read(pool::count).unwrap(), db.read(outgoing::count).unwrap());
    assert_eq!(waiting + gone, counters.snapshot().dummies);
    assert_eq!(gone, counters.snapshot().mixed, "by a batch and by no other way");
}

#[test]
fn padding_goes_to_each_other_mix_as_often_as_was_set() {
    let home = tempfile::tempdir().unwrap();
    let asked = |config, rounds: usize| {
        let dummies = dummies(&home, 1..=5, config);
        let mut dice = noon_world(SEED).dice();
        let mut counts = BTreeMap::<KeyId, usize>::new();
        for _ in 0..rounds {
            dummies
                .padding(INTERVAL, noon(), &mut dice)
                .iter()
                .for_each(|to| *counts.entry(to.key_id()).or_default() += 1);
        }
        counts
    };
    // A quarter of an hour, once in an hour.
    let counts = asked(DummiesConfig::default(), 2000);
    assert!(!counts.contains_key(&key_id(1)), "never to ourselves");
    (2..=5).for_each(|number| assert_plausible(counts[&key_id(number)], 2000, 0.25));
    let counts = asked(DummiesConfig { junk_period: INTERVAL / 2, ..DummiesConfig::default() }, 3);
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [3; 4]);
    assert!(asked(without_junk(), 100).is_empty());
}

#[tokio::test]
async fn padding_leaves_with_the_batch_to_those_who_get_no_packet() {
    let home = tempfile::tempdir().unwrap();
    let config = DummiesConfig { junk_period: INTERVAL, ..DummiesConfig::default() };
    let mut mixing = mixing(&home, Pool::Timed, dummies(&home, 1..=5, config));
    mixing.db.write(|tx| pool::insert(tx, &relay(7))).unwrap();
    let released = mixing.mix(&noon_world(SEED)).await.unwrap();
    assert_eq!(released.relays, 1);
    let mut seen = BTreeMap::new();
    for to in mixing.db.read(outgoing::destinations).unwrap() {
        let cargo = mixing.db.read(|view| outgoing::cargo_for(view, to.id, None, 10)).unwrap();
        assert_eq!(cargo.len(), 1);
        seen.insert(to.next.key_id(), matches!(cargo[0].1, Cargo::Junk));
    }
    let expected = (2..=5).map(|number| (key_id(number), number != 2)).collect();
    assert_eq!(seen, expected);
}
