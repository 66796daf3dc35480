//! A mix that is attacked over real sockets: floods, peers that stop in the middle, peers that never end, and rules about
//! who may come in. Whatever they do, an honest peer hands its packets over.
//!
//! Attackers come from 127.0.0.2, honest peers from 127.0.0.1. Time limits are real, hence short where they must expire
//! and long where they must not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and what only tests call")]

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use mix::crypto::pk::PrivateKey;
use mix::crypto::stream::StreamKey;
use mix::crypto::{CounterRng, KeyId};
use mix::mmtp::frame::Command;
use mix::net::addresses::Access;
use mix::net::connect::{ConnectConfig, Connector, Delivery, Outcome, Undelivered, Unit, deliver};
use mix::net::listen::{ListenConfig, MmtpListener, PacketSink, Refused};
use mix::net::resolve::{ResolveConfig, Resolver};
use mix::net::tls::{LinkIdentity, client_config};
use mix::packet::{Ipv4Route, NextHop, PACKET_LEN, Packet};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// For limits that must expire, and under which an honest peer on a busy machine must still get through.
const SHORT: Duration = Duration::from_secs(3);
/// Where attackers come from.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

static ALICE: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate(2048, &mut seeded(1)).unwrap());
static ALICES_LINK: LazyLock<Arc<LinkIdentity>> = LazyLock::new(|| {
    let nickname = "Alice".parse().unwrap();
    Arc::new(LinkIdentity::new(&ALICE, &nickname, SystemTime::now(), &mut seeded(3)).unwrap())
});

fn seeded(seed: u8) -> CounterRng {
    CounterRng::new(&StreamKey::new([seed; 16]))
}

fn alice() -> KeyId {
    ALICE.public_key().key_id()
}

/// A store that counts.
#[derive(Default)]
struct Disk(AtomicUsize);

impl PacketSink for Disk {
    async fn store(&self, _: Packet) -> Result<(), Refused> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn forget(&self, _: Packet) -> Result<(), Refused> {
        Ok(())
    }
}

/// A listener at work.
struct Running {
    address: SocketAddr,
    disk: Arc<Disk>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Kept: the listener takes its identity from it.
    _identity: watch::Sender<Arc<LinkIdentity>>,
}

impl Running {
    async fn start(config: ListenConfig) -> Self {
        let (identity, receiver) = watch::channel(Arc::clone(&ALICES_LINK));
        let (disk, stop) = (Arc::<Disk>::default(), CancellationToken::new());
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = MmtpListener::bind(any_port, receiver, config, Arc::clone(&disk)).await.unwrap();
        let address = listener.local_addr();
        Self { address, disk, task: tokio::spawn(listener.run(stop.clone())), stop, _identity: identity }
    }

    fn next_hop(&self) -> NextHop {
        NextHop::Ipv4(Ipv4Route { address: Ipv4Addr::LOCALHOST, port: self.address.port(), key_id: alice() })
    }

    async fn deliver(&self, count: usize) -> Delivery<usize> {
        let (config, stop) = (ConnectConfig::default(), CancellationToken::new());
        let next = self.next_hop();
        let delivery = deliver(&next, units(count), &config, SystemTime::now(), &stop);
        timeout(PATIENCE, delivery).await.expect("it ends")
    }

    /// An honest peer hands over three packets.
    async fn serves_the_honest(&self) {
        let delivery = self.deliver(3).await;
        assert!(delivery.failure.is_none(), "{:?}", delivery.failure);
        assert!(delivery.outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Delivered), "{delivery:?}");
    }

    /// A TCP connection of an attacker's, which has room for few octets that it does not read.
    async fn attack(&self) -> TcpStream {
        self.attack_from(ATTACKER).await
    }

    async fn attack_from(&self, attacker: Ipv4Addr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind((attacker, 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    async fn attack_over_tls(&self) -> TlsStream<TcpStream> {
        let name = ServerName::IpAddress(self.address.ip().into());
        let connector = TlsConnector::from(client_config(alice(), SystemTime::now()));
        connector.connect(name, self.attack().await).await.unwrap()
    }

    async fn stopped(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("the listener stops").unwrap();
    }
}

fn units(count: usize) -> Vec<Unit<usize>> {
    (0..count).map(|number| Unit::packet(number, Packet::from_bytes(&[number as u8; PACKET_LEN]).unwrap())).collect()
}

/// Reads until the other side hangs up, in whatever manner; gives what came before.
async fn until_closed(mut link: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = timeout(PATIENCE, link.read_to_end(&mut all)).await.expect("the other side hangs up");
    all
}

/// Says `octets` again and again until the other side hangs up; gives how often that was.
async fn flood(mut link: impl tokio::io::AsyncWrite + Unpin, octets: &[u8]) -> usize {
    let mut times = 0;
    let flood = async {
        while link.write_all(octets).await.is_ok() && link.flush().await.is_ok() {
            times += 1;
        }
    };
    timeout(PATIENCE, flood).await.expect("the other side hangs up");
    times
}

#[tokio::test]
async fn ten_thousand_idle_connections_of_one_address_keep_nobody_else_out() {
    let config = ListenConfig::default();
    let seats = config.max_connections_per_address;
    let running = Running::start(config).await;
    let mut seated = Vec::new();
    let mut refused = VecDeque::new();
    for number in 0..10_000 {
        let connection = running.attack().await;
        if number < seats {
            seated.push(connection);
        } else {
            refused.push_back(connection);
        }
        // As many as a process has file descriptors for, under the usual limits. Each was hung up on by then.
        if refused.len() > 400 {
            assert_eq!(until_closed(refused.pop_front().unwrap()).await, b"");
        }
        if number % 3000 == 2999 {
            running.serves_the_honest().await;
        }
    }
    for connection in refused {
        assert_eq!(until_closed(connection).await, b"");
    }
    let still_open = |connection: &TcpStream| matches!(connection.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
    assert!(seated.iter().all(still_open), "the first have their seats until the handshake is too late");
    running.serves_the_honest().await;
    running.stopped().await;
}

#[tokio::test]
async fn few_attackers_who_take_all_seats_give_one_to_a_newcomer() {
    // So that nobody leaves by himself.
    let config = ListenConfig { handshake_timeout: 10 * PATIENCE, ..ListenConfig::default() };
    let running = Running::start(config.clone()).await;
    let mut seated = Vec::new();
    for number in 0..config.max_connections {
        let attacker = Ipv4Addr::new(127, 0, 0, 2 + (number % 4) as u8);
        seated.push(running.attack_from(attacker).await);
    }
    running.serves_the_honest().await;
    let mut oldest: JoinSet<_> = seated.drain(..4).map(until_closed).collect();
    assert_eq!(oldest.join_next().await.unwrap().unwrap(), b"", "the oldest of one of them had to go");
    running.stopped().await;
}

#[tokio::test]
async fn peer_that_does_not_read_its_answers_delays_neither_others_nor_the_stop() {
    let config = ListenConfig { max_unsent: 4096, stop_timeout: SHORT, ..ListenConfig::default() };
    let running = Running::start(config).await;
    let mut link = running.attack_over_tls().await;
    link.write_all(b"MMTP 0.3\r\n").await.unwrap();
    let unit = Command::Send.unit(&Packet::from_bytes(&[5; PACKET_LEN]).unwrap());
    let attack = tokio::spawn(async move { flood(link, &unit).await });
    for _ in 0..20 {
        running.serves_the_honest().await;
    }
    let disk = Arc::clone(&running.disk);
    running.stopped().await;
    let said = timeout(PATIENCE, attack).await.expect("it is cut off").unwrap();
    let taken = disk.0.load(Ordering::Relaxed) - 20 * 3;
    // The system holds some answers on either side, and some packets in between.
    assert!(taken <= said + 1 && taken < 4000, "{taken} packets were taken, {said} said");
}

/// The beginning of a TLS record that is the beginning of a ClientHello of 16 megabytes.
const ENDLESS_HELLO: [u8; 9] = [22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];

#[tokio::test]
async fn handshake_that_stops_in_the_middle_ends_at_its_time_limit() {
    let config = ListenConfig { handshake_timeout: SHORT, ..ListenConfig::default() };
    let running = Running::start(config).await;
    let mut half_open = Vec::new();
    for len in 0..ENDLESS_HELLO.len() {
        let mut connection = running.attack().await;
        connection.write_all(&ENDLESS_HELLO[..len]).await.unwrap();
        half_open.push(connection);
    }
    running.serves_the_honest().await;
    for connection in half_open {
        until_closed(connection).await;
    }
    running.stopped().await;
}

#[tokio::test]
async fn endless_handshake_is_hung_up_on() {
    let running = Running::start(ListenConfig::default()).await;
    let mut connection = running.attack().await;
    connection.write_all(&ENDLESS_HELLO).await.unwrap();
    connection.write_all(&vec![0; 0x4000 - 4]).await.unwrap();
    let record = [&[22, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
    let said = flood(connection, &record).await;
    // What the system holds on either side may be said in vain.
    assert!(said < 4096, "{said} records");
    running.serves_the_honest().await;
    running.stopped().await;
}

#[tokio::test]
async fn version_line_that_never_ends_is_hung_up_on_however_fast_it_comes() {
    let config = ListenConfig { handshake_timeout: SHORT, ..ListenConfig::default() };
    let running = Running::start(config).await;
    let (fast_reader, fast_writer) = tokio::io::split(running.attack_over_tls().await);
    let fast = tokio::spawn(async move { flood(fast_writer, &[b'M'; 1024]).await });
    let (slow_reader, mut slow_writer) = tokio::io::split(running.attack_over_tls().await);
    let slow = tokio::spawn(async move {
        while slow_writer.write_all(b"M").await.is_ok() && slow_writer.flush().await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
    });
    running.serves_the_honest().await;
    assert_eq!(until_closed(fast_reader).await, b"");
    assert_eq!(until_closed(slow_reader).await, b"");
    timeout(PATIENCE, async { tokio::join!(fast, slow) }).await.expect("both are hung up on").0.unwrap();
    running.stopped().await;
}

#[tokio::test]
async fn whoever_the_rules_deny_is_hung_up_on_before_tls() {
    let rules = ["deny 127.0.0.2", "allow 127.0.0.0/8 1-65535"].map(str::to_owned).to_vec();
    let config = ListenConfig { access: Access::try_from(rules).unwrap(), ..ListenConfig::default() };
    let running = Running::start(config).await;
    assert_eq!(until_closed(running.attack().await).await, b"");
    running.serves_the_honest().await;
    running.stopped().await;
}

#[tokio::test]
async fn destination_that_the_rules_deny_is_never_connected_to() {
    let running = Running::start(ListenConfig::default()).await;
    let rules = ["deny 127.0.0.1", "allow * 1-65535"].map(|rule| rule.parse().unwrap()).to_vec();
    let connector = Connector::new(ConnectConfig::default(), Resolver::system(ResolveConfig::default()));
    let connector = connector.with_policy(mix::directory::Policy::new(rules));
    let (next, stop) = (running.next_hop(), CancellationToken::new());
    let delivery = connector.deliver(&next, units(2), SystemTime::now(), &stop).await;
    assert!(matches!(delivery.failure, Some(Undelivered::Denied)), "{:?}", delivery.failure);
    assert!(delivery.outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Unanswered));
    running.stopped().await;
}

#[tokio::test]
async fn connection_ends_in_good_order_after_its_number_of_packets() {
    let config = ListenConfig { max_packets: 5, ..ListenConfig::default() };
    let running = Running::start(config).await;
    let delivery = running.deliver(12).await;
    let outcomes: Vec<_> = delivery.outcomes.iter().map(|(_, outcome)| *outcome).collect();
    assert_eq!(outcomes, [[Outcome::Delivered; 5].as_slice(), &[Outcome::Unanswered; 7]].concat());
    assert!(matches!(delivery.failure, Some(Undelivered::Closed)), "{:?}", delivery.failure);
    assert_eq!(running.disk.0.load(Ordering::Relaxed), 5);
    running.stopped().await;
}
