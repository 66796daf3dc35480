use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::SystemTime;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::batch::Pool;
use crate::crypto::KeyId;
use crate::directory::Policy;
use crate::net::connect::ConnectConfig;
use crate::net::listen::{PacketSink, Refused};
use crate::net::resolve::{ResolveConfig, Resolver};
use crate::node::retry::{RetrySchedule, RetryStep};
use crate::node::testing::{PATIENCE, Taking, key_id, listening, observed};
use crate::packet::{HostName, HostRoute, PACKET_LEN, Packet};
use crate::store::queue::pool::{self, PoolItem};
use crate::store::{NODE_SCHEMAS, Tx};

const INTERVAL: Duration = Duration::from_secs(900);
const DAY: i64 = 24 * 3600;

/// A queue, and what drives it.
struct Bench {
    outgoing: Outgoing,
    fire: watch::Sender<u64>,
    /// Seconds by which the clock is wrong.
    skew: Arc<AtomicI64>,
    _home: tempfile::TempDir,
}

fn bench(retry: Vec<RetryStep>) -> Bench {
    let home = tempfile::tempdir().unwrap();
    let config = OutgoingConfig { retry: RetrySchedule::new(retry), ..OutgoingConfig::default() };
    let skew = Arc::new(AtomicI64::new(0));
    let clock = Arc::clone(&skew);
    let now = move || {
        let skew = clock.load(Ordering::Relaxed);
        let by = Duration::from_secs(skew.unsigned_abs());
        if skew < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
    };
    let (fire, firings) = watch::channel(0);
    let outgoing = Outgoing {
        db: Db::open(&home.path().join("node/node.db"), &NODE_SCHEMAS).unwrap(),
        config: watch::channel(config).1,
        rhythm: watch::channel(Rhythm { pool: Pool::Timed, interval: INTERVAL }).1,
        connect: Connector::fixed(OutgoingConfig::default().terms(None, None)),
        firings,
        network: None,
        counters: Counters::default(),
        world: World::new(now, || World::real().dice()),
        stop: CancellationToken::new(),
    };
    Bench { outgoing, fire, skew, _home: home }
}

/// So many tries, one with each batch.
fn tries(count: u32) -> Vec<RetryStep> {
    vec![RetryStep { every: INTERVAL, during: INTERVAL * count }]
}

fn host(port: u16, key_id: KeyId) -> NextHop {
    named("127.0.0.1", port, key_id)
}

fn named(host: &str, port: u16, key_id: KeyId) -> NextHop {
    NextHop::Host(HostRoute { host: HostName::parse(host).unwrap(), port, key_id })
}

/// A mix that nobody runs.
fn away() -> NextHop {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    host(free.local_addr().unwrap().port(), KeyId([3; 20]))
}

impl Bench {
    /// Puts packets into the queue as a batch does, each with its number in its first octets.
    fn queue(&self, next: &NextHop, packets: usize) {
        let next = next.clone();
        let step = move |tx: &Tx<'_>| {
            let insert = |number: usize| {
                let mut octets = [5; PACKET_LEN];
                octets[..8].copy_from_slice(&number.to_be_bytes());
                let packet = Packet::from_bytes(&octets).unwrap();
                pool::insert(tx, &PoolItem::Relay { next: next.clone(), packet })
            };
            let ids = (0..packets).map(insert).collect::<Result<Vec<_>, _>>()?;
            pool::release(tx, &ids, None)
        };
        self.outgoing.db.write(step).unwrap();
    }

    fn pad(&self, next: &NextHop) {
        let next = next.clone();
        assert!(self.outgoing.db.write(move |tx| outgoing::pad_if_idle(tx, &next)).unwrap());
    }

    fn fire(&self) {
        self.fire.send_modify(|firings| *firings += 1);
    }

    fn waiting(&self) -> u64 {
        self.outgoing.db.read(outgoing::count).unwrap()
    }

    fn destinations(&self) -> Vec<Destination> {
        self.outgoing.db.read(outgoing::destinations).unwrap()
    }

    fn counts(&self) -> crate::node::Counts {
        self.outgoing.counters.snapshot()
    }

    /// Waits until something is so.
    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let poll = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(PATIENCE, poll).await.is_ok(), "never: {what}; {:?}", self.counts());
    }
}

/// Runs an honest mix until `stop`.
async fn honest_mix(stop: &CancellationToken) -> NextHop {
    host(listening(1, Taking, stop).await, key_id(1))
}

/// Hosts that take connections and never answer, and how many connections they hold.
async fn tarpits(count: u8) -> (Vec<NextHop>, Arc<Mutex<Vec<TcpStream>>>) {
    let held = Arc::new(Mutex::new(Vec::new()));
    let mut hosts = Vec::new();
    for number in 0..count {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        hosts.push(host(listener.local_addr().unwrap().port(), KeyId([number; 20])));
        let held = Arc::clone(&held);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                held.lock().unwrap().push(stream);
            }
        });
    }
    (hosts, held)
}

#[tokio::test]
async fn mix_that_is_away_is_tried_again_with_a_later_batch_and_all_its_packets() {
    let bench = bench(vec![RetryStep { every: INTERVAL * 3, during: INTERVAL * 3 }]);
    bench.queue(&away(), 3);
    let destination = bench.destinations().remove(0);
    assert_eq!(bench.outgoing.serve(destination, &Seats::new(8), true).await.unwrap(), Served::Later(3));
    assert_eq!(bench.waiting(), 3, "nothing is lost");
    assert_eq!(bench.counts().unreachable, 1, "one attempt for all packets");
    assert_eq!((bench.counts().attempted, bench.counts().connected), (1, 0));
}

/// A mix that answers nothing until more packets are on their way than go over one connection without an answer.
#[derive(Clone)]
struct Patient {
    taken: Arc<Mutex<Vec<[u8; 8]>>>,
    under_way: watch::Sender<usize>,
}

impl PacketSink for Patient {
    async fn store(&self, packet: Packet) -> Result<(), Refused> {
        self.taken.lock().unwrap().push(*packet.as_bytes().first_chunk().unwrap());
        self.under_way.send_modify(|count| *count += 1);
        self.under_way.subscribe().wait_for(|count| *count > WINDOW).await.unwrap();
        Ok(())
    }

    async fn forget(&self, _: Packet) -> Result<(), Refused> {
        Err(Refused)
    }
}

#[tokio::test]
async fn many_packets_go_over_several_connections_each_of_them_once() {
    let stop = CancellationToken::new();
    let mix = Patient { taken: Arc::default(), under_way: watch::channel(0).0 };
    let next = host(listening(1, mix.clone(), &stop).await, key_id(1));
    let bench = bench(tries(3));
    bench.queue(&next, 3 * LOAD);
    let destination = bench.destinations().remove(0);
    let seats = Seats::new(8);
    let served = timeout(PATIENCE, bench.outgoing.serve(destination, &seats, true)).await;
    assert_eq!(served.expect("more than one connection").unwrap(), Served::Taken);
    assert_eq!((bench.waiting(), bench.counts().relayed), (0, 3 * LOAD as u64));
    let crate::node::Counts { attempted, connected, .. } = bench.counts();
    assert!(attempted > 1 && attempted == connected, "{attempted} attempts, {connected} connections");
    let mut taken = mix.taken.lock().unwrap().clone();
    taken.sort_unstable();
    assert_eq!(taken, (0..3 * LOAD).map(usize::to_be_bytes).collect::<Vec<_>>());
    assert_eq!(seats.take_free(9).len(), 8, "all seats are given back");
}

/// A mix without room.
#[derive(Clone, Default)]
struct Rejecting(Arc<AtomicUsize>);

impl PacketSink for Rejecting {
    async fn store(&self, _: Packet) -> Result<(), Refused> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(Refused)
    }

    async fn forget(&self, _: Packet) -> Result<(), Refused> {
        Err(Refused)
    }
}

#[tokio::test]
async fn mix_that_has_no_room_is_not_given_all_that_waits_for_it() {
    let stop = CancellationToken::new();
    let mix = Rejecting::default();
    let next = host(listening(1, mix.clone(), &stop).await, key_id(1));
    let bench = bench(tries(3));
    bench.queue(&next, 6 * LOAD);
    let served = bench.outgoing.serve(bench.destinations().remove(0), &Seats::new(8), true).await;
    assert_eq!(served.unwrap(), Served::Later(1));
    assert_eq!(bench.waiting(), 6 * LOAD as u64);
    let offered = mix.0.load(Ordering::Relaxed);
    assert!(offered <= (MORE_CONNECTIONS + 1) * (WINDOW + 1), "{offered} packets were offered");
}

#[tokio::test]
async fn no_seat_is_taken_for_a_second_connection_that_somebody_may_need_and_strangers_have_one_each() {
    let seats = Seats::new(3);
    let _others = seats.take_free(2);
    assert_eq!(seats.take_free(3).len(), 1);
    let stop = CancellationToken::new();
    let mix = Patient { taken: Arc::default(), under_way: watch::channel(WINDOW).0 };
    let next = host(listening(1, mix.clone(), &stop).await, key_id(1));
    let bench = bench(tries(3));
    bench.queue(&next, 3 * LOAD);
    let served = bench.outgoing.serve(bench.destinations().remove(0), &Seats::new(8), false).await;
    assert_eq!(served.unwrap(), Served::Taken);
    let in_order = (0..3 * LOAD).map(usize::to_be_bytes).collect::<Vec<_>>();
    assert_eq!(*mix.taken.lock().unwrap(), in_order, "one connection keeps the order");
}

#[tokio::test]
async fn packets_are_dropped_and_counted_when_the_schedule_is_over() {
    let bench = bench(Vec::new());
    bench.queue(&away(), 2);
    let destination = bench.destinations().remove(0);
    assert_eq!(bench.outgoing.serve(destination, &Seats::new(8), true).await.unwrap(), Served::GivenUp);
    assert_eq!((bench.counts().expired, bench.waiting()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn name_service_that_is_down_is_a_mix_that_is_away_and_asked_again_with_the_next_try() {
    let mut bench = bench(tries(5));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let resolver = Resolver::asking(ResolveConfig::default(), move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Err(std::io::Error::other("name service down")) })
    });
    bench.outgoing.connect = Connector::new(ConnectConfig::default(), resolver);
    bench.queue(&named("mix.example", 48099, KeyId([3; 20])), 3);
    for tried in 1..=2 {
        let destination = bench.destinations().remove(0);
        assert_eq!(bench.outgoing.serve(destination, &Seats::new(8), true).await.unwrap(), Served::Later(1));
        assert_eq!(bench.waiting(), 3, "nothing is lost");
        assert_eq!(bench.counts().unreachable, tried);
        assert_eq!(asked.load(Ordering::Relaxed) as u64, tried, "the failure is not remembered for so long");
        tokio::time::sleep(INTERVAL).await;
    }
}

#[tokio::test]
async fn slow_name_server_keeps_no_seat_from_others() {
    let mut bench = bench(tries(5));
    let resolver = Resolver::asking(ResolveConfig::default(), |_| Box::pin(std::future::pending()));
    bench.outgoing.connect = Connector::new(ConnectConfig::default(), resolver);
    // More than there are seats for strangers.
    for number in 0..20 {
        bench.queue(&named("mix.slow.example", 48099, KeyId([number; 20])), 1);
    }
    let stop = bench.outgoing.stop.clone();
    bench.queue(&honest_mix(&stop).await, 1);
    let running = tokio::spawn(bench.outgoing.clone().run());
    bench.fire();
    bench.until("a packet of another", |bench| bench.counts().relayed == 1).await;
    assert_eq!(bench.counts().unreachable, 0, "the name server is slow still");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn destination_that_the_rules_deny_is_counted_and_tried_again_like_one_that_is_away() {
    let mut bench = bench(tries(5));
    let policy = Policy::new(vec!["allow 192.0.2.1".parse().unwrap()]);
    bench.outgoing.connect = bench.outgoing.connect.clone().with_policy(policy);
    bench.queue(&away(), 2);
    let destination = bench.destinations().remove(0);
    assert_eq!(bench.outgoing.serve(destination, &Seats::new(8), true).await.unwrap(), Served::Later(1));
    assert_eq!((bench.counts().unreachable, bench.counts().denied), (1, 1));
    assert_eq!(bench.waiting(), 2, "nothing is lost");
}

/// The rounds of one destination that answers as told: the batches that it was tried with.
fn tried_with(bench: &Bench, round: &mut Round, batches: std::ops::Range<u64>, served: Served) -> Vec<u64> {
    let try_with = |firing: u64| {
        round.firing = firing;
        let due = round.due(bench.destinations(), &bench.outgoing);
        for (Destination { id, next, .. }, _) in &due {
            round.ended(Ended { id: *id, next: next.clone(), firing, served }, None);
        }
        !due.is_empty()
    };
    batches
        .filter({
            let mut try_with = try_with;
            move |firing| try_with(*firing)
        })
        .collect()
}

#[tokio::test]
async fn retry_waits_for_its_batch() {
    let bench = bench(Vec::new());
    bench.queue(&away(), 1);
    let mut round = Round::default();
    assert_eq!(tried_with(&bench, &mut round, 0..12, Served::Later(4)), [0, 4, 8]);
}

#[tokio::test]
async fn attempt_that_outlasts_an_interval_is_followed_by_the_next_batch() {
    let bench = bench(Vec::new());
    bench.queue(&away(), 1);
    let mut round = Round::default();
    let (destination, _) = round.due(bench.destinations(), &bench.outgoing).remove(0);
    round.firing = 2;
    assert!(round.due(bench.destinations(), &bench.outgoing).is_empty(), "one connection at a time");
    round.ended(Ended { id: destination.id, next: destination.next, firing: 0, served: Served::Later(1) }, None);
    assert!(round.due(bench.destinations(), &bench.outgoing).is_empty(), "not before the next batch");
    assert_eq!(tried_with(&bench, &mut round, 3..4, Served::Later(9)), [3]);
}

#[tokio::test]
async fn start_goes_on_with_what_had_begun_and_leaves_retries_to_the_first_batch() {
    let bench = bench(Vec::new());
    let (begun, failing) = (away(), away());
    bench.queue(&failing, 1);
    let id = bench.destinations()[0].id;
    bench.outgoing.db.write(move |tx| outgoing::failed(tx, id)).unwrap();
    bench.queue(&begun, 1);
    let mut round = Round::default();
    let due = round.due(bench.destinations(), &bench.outgoing);
    assert_eq!(due.into_iter().map(|(to, _)| to.next).collect::<Vec<_>>(), [begun]);
    round.firing = 1;
    let due = round.due(bench.destinations(), &bench.outgoing);
    assert_eq!(due.into_iter().map(|(to, _)| to.next).collect::<Vec<_>>(), [failing]);
}

#[tokio::test]
async fn jumps_of_the_clock_neither_drop_a_packet_nor_hasten_or_delay_a_try() {
    let bench = bench(tries(3));
    bench.queue(&away(), 5);
    let service = tokio::spawn(bench.outgoing.clone().run());
    for (attempt, jump) in [(1, 0), (2, 2 * DAY), (3, -2 * DAY), (4, 300 * DAY)] {
        assert_eq!(bench.counts().expired, 0, "before attempt {attempt}");
        assert_eq!(bench.waiting(), 5);
        bench.skew.store(jump, Ordering::Relaxed);
        // A batch that leaves while the attempt before it is still being noted is not waited for.
        let tried = |bench: &Bench| bench.counts().unreachable == attempt || (bench.fire(), false).1;
        bench.until("an attempt with one of the next batches", tried).await;
    }
    bench.until("the end of the schedule", |bench| bench.counts().expired == 5).await;
    assert_eq!((bench.waiting(), bench.counts().unreachable), (0, 4));
    bench.outgoing.stop.cancel();
    service.await.unwrap();
}

#[tokio::test]
async fn sixteen_tarpits_do_not_keep_an_honest_mix_from_its_packets() {
    let bench = bench(tries(9));
    let stop = bench.outgoing.stop.clone();
    let honest = honest_mix(&stop).await;
    bench.queue(&honest, 1);
    let service = tokio::spawn(bench.outgoing.clone().run());
    bench.until("the honest mix proves itself", |bench| bench.counts().relayed == 1).await;
    let (hosts, held) = tarpits(16).await;
    hosts.iter().for_each(|host| bench.queue(host, 1));
    bench.fire();
    let seats = OutgoingConfig::default().connections;
    bench.until("the tarpits take what they can", |_| held.lock().unwrap().len() == seats / STRANGERS).await;
    bench.queue(&honest, 100);
    bench.fire();
    bench.until("the honest mix is served", |bench| bench.counts().relayed == 101).await;
    assert_eq!(held.lock().unwrap().len(), seats / STRANGERS, "half of the seats, and no more");
    stop.cancel();
    service.await.unwrap();
}

#[tokio::test]
async fn stranger_is_served_when_the_tarpits_before_it_have_had_their_time() {
    let mut bench = bench(tries(9));
    let config = OutgoingConfig { handshake_timeout: Duration::from_secs(2), ..OutgoingConfig::default() };
    bench.outgoing.connect = Connector::fixed(config.terms(None, None));
    let stop = bench.outgoing.stop.clone();
    let (hosts, _held) = tarpits(16).await;
    hosts.iter().for_each(|host| bench.queue(host, 1));
    let honest = honest_mix(&stop).await;
    bench.queue(&honest, 1);
    let service = tokio::spawn(bench.outgoing.clone().run());
    bench.until("the stranger is served", |bench| bench.counts().relayed == 1).await;
    stop.cancel();
    service.await.unwrap();
}

#[test]
fn standing_is_proved_where_nobody_is_listed_and_lost_by_a_failure() {
    let (one, other) = (host(1, KeyId([1; 20])), host(1, KeyId([2; 20])));
    let mut standing = Standing::default();
    assert!(!standing.is_good(&one, None));
    standing.taken(one.clone(), None);
    assert!(standing.is_good(&one, None) && !standing.is_good(&other, None));
    standing.failed(one.clone(), None);
    assert!(!standing.is_good(&one, None));
}

#[test]
fn listed_mix_is_in_good_standing_until_it_fails_and_no_stranger_ever_is() {
    let key = KeyId([1; 20]);
    let (mix, elsewhere) = (host(1, key), host(2, key));
    let listed = HashSet::from([mix.clone()]);
    let mut standing = Standing::default();
    assert!(standing.is_good(&mix, Some(&listed)));
    // The key of a listed mix with another's address is another's; neither does its failure speak against the mix.
    standing.taken(elsewhere.clone(), Some(&listed));
    assert!(!standing.is_good(&elsewhere, Some(&listed)));
    standing.failed(elsewhere, Some(&listed));
    assert!(standing.is_good(&mix, Some(&listed)));
    standing.failed(mix.clone(), Some(&listed));
    assert!(!standing.is_good(&mix, Some(&listed)));
    standing.taken(mix.clone(), Some(&listed));
    assert!(standing.is_good(&mix, Some(&listed)));
}

#[test]
fn memory_of_strangers_is_bounded() {
    let mut standing = Standing::default();
    for number in 0..REMEMBERED as u64 + 100 {
        let mut key_id = [0; 20];
        key_id[..8].copy_from_slice(&number.to_be_bytes());
        standing.taken(host(1, KeyId(key_id)), None);
    }
    assert_eq!(standing.acknowledged.len(), REMEMBERED);
}

#[tokio::test]
async fn padding_looks_on_the_wire_as_a_packet_does() {
    let bench = bench(Vec::new());
    let honest = honest_mix(&bench.outgoing.stop).await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let by_way_of = host(listener.local_addr().unwrap().port(), honest.key_id());
    let mut seen = Vec::new();
    for is_junk in [false, true, false, true] {
        if is_junk {
            bench.pad(&by_way_of)
        } else {
            bench.queue(&by_way_of, 1)
        }
        let (destination, seats) = (bench.destinations().remove(0), Seats::new(8));
        let (served, observed) = timeout(PATIENCE, async {
            tokio::join!(bench.outgoing.serve(destination, &seats, true), observed(&listener, honest.port()))
        })
        .await
        .expect("both end");
        assert_eq!(served.unwrap(), Served::Taken);
        seen.push(observed);
    }
    assert_eq!((bench.counts().relayed, bench.counts().junk), (2, 2));
    let octets: usize = seen[0].there.iter().map(|(_, len)| len).sum();
    assert!(octets > crate::mmtp::frame::UNIT_LEN, "one unit has gone over: {octets}");
    assert_eq!(seen[0], seen[2], "connections with a packet look alike");
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[3]);
}

#[tokio::test]
async fn padding_that_was_not_taken_is_tried_again_as_packets_are_and_counts_for_none() {
    let bench = bench(tries(1));
    bench.pad(&away());
    let serve = async || {
        let destination = bench.destinations().remove(0);
        bench.outgoing.serve(destination, &Seats::new(8), true).await.unwrap()
    };
    assert_eq!(serve().await, Served::Later(1));
    assert_eq!(serve().await, Served::GivenUp);
    assert_eq!((bench.counts().expired, bench.destinations().len()), (0, 0));
}
