//! Two mixes over the loopback: TLS, MMTP, limits; and a peer that runs OpenSSL with the keys and signatures of the
//! reference.
//!
//! Needs the command `openssl`, version 1.1.1 or later. Time limits are real, hence short where they must expire and
//! long where they must not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests, and what only tests call")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use mix::crypto::pk::{PrivateKey, PublicKey};
use mix::crypto::stream::StreamKey;
use mix::crypto::{CounterRng, Digest, KeyId};
use mix::mmtp::server::Step;
use mix::mmtp::{PeerMisbehaved, ServerSession};
use mix::net::connect::{ConnectConfig, Delivery, Outcome, Undelivered, Unit, deliver};
use mix::net::listen::{ListenConfig, MmtpListener, PacketSink, Refused};
use mix::net::tls::{LinkError, LinkIdentity, client_config};
use mix::packet::{HostName, HostRoute, Ipv4Route, NextHop, PACKET_LEN, Packet};
use rand::{Rng, RngExt};
use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// For limits that must expire.
const SHORT: Duration = Duration::from_millis(300);

static ALICE: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate(2048, &mut seeded(1)).unwrap());
static BOB: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate(2048, &mut seeded(2)).unwrap());
static ALICES_LINK: LazyLock<Arc<LinkIdentity>> = LazyLock::new(|| link_identity(3));

fn seeded(seed: u8) -> CounterRng {
    CounterRng::new(&StreamKey::new([seed; 16]))
}

fn link_identity(seed: u8) -> Arc<LinkIdentity> {
    let nickname = "Alice".parse().unwrap();
    Arc::new(LinkIdentity::new(&ALICE, &nickname, SystemTime::now(), &mut seeded(seed)).unwrap())
}

fn alice() -> KeyId {
    ALICE.public_key().key_id()
}

/// Packets that differ from one another.
fn packets(count: u32) -> Vec<Packet> {
    (0..count)
        .map(|number| {
            let mut octets = vec![0x5a; PACKET_LEN];
            octets[..4].copy_from_slice(&number.to_be_bytes());
            Packet::from_bytes(&octets).unwrap()
        })
        .collect()
}

fn units(packets: &[Packet]) -> Vec<Unit<usize>> {
    packets.iter().cloned().enumerate().map(|(number, packet)| Unit::packet(number, packet)).collect()
}

/// A store whose disk takes packets when the gate is open, and refuses those in `refused`.
struct Disk {
    gate: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
    stored: Mutex<Vec<Digest>>,
    refused: HashSet<Digest>,
}

impl Disk {
    fn new(open: bool, refused: HashSet<Digest>) -> Arc<Self> {
        Arc::new(Self {
            gate: watch::Sender::new(open),
            waiting: watch::Sender::new(0),
            stored: Mutex::default(),
            refused,
        })
    }

    fn stored(&self) -> Vec<Digest> {
        self.stored.lock().unwrap().clone()
    }
}

impl PacketSink for Disk {
    async fn store(&self, packet: Packet) -> Result<(), Refused> {
        self.waiting.send_modify(|count| *count += 1);
        self.gate.subscribe().wait_for(|open| *open).await.unwrap();
        if self.refused.contains(&packet.digest()) {
            return Err(Refused);
        }
        self.stored.lock().unwrap().push(packet.digest());
        Ok(())
    }

    async fn forget(&self, _: Packet) -> Result<(), Refused> {
        self.waiting.send_modify(|count| *count += 1);
        self.gate.subscribe().wait_for(|open| *open).await.unwrap();
        Ok(())
    }
}

/// A listener at work.
struct Running {
    address: SocketAddr,
    identity: watch::Sender<Arc<LinkIdentity>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(disk: &Arc<Disk>, config: ListenConfig) -> Self {
        let (identity, receiver) = watch::channel(Arc::clone(&ALICES_LINK));
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = MmtpListener::bind(any_port, receiver, config, Arc::clone(disk)).await.unwrap();
        let stop = CancellationToken::new();
        Self { address: listener.local_addr(), identity, task: tokio::spawn(listener.run(stop.clone())), stop }
    }

    async fn stopped(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("the listener stops").unwrap();
    }
}

fn next_hop(address: SocketAddr, key_id: KeyId) -> NextHop {
    NextHop::Ipv4(Ipv4Route { address: Ipv4Addr::LOCALHOST, port: address.port(), key_id })
}

async fn deliver_to(address: SocketAddr, key_id: KeyId, units: Vec<Unit<usize>>) -> Delivery<usize> {
    let config = ConnectConfig::default();
    let next = next_hop(address, key_id);
    let stop = CancellationToken::new();
    timeout(PATIENCE, deliver(&next, units, &config, SystemTime::now(), &stop)).await.expect("it ends")
}

fn outcomes(delivery: &Delivery<usize>) -> Vec<Outcome> {
    let (ids, outcomes): (Vec<usize>, Vec<Outcome>) = delivery.outcomes.iter().copied().unzip();
    assert_eq!(ids, (0..ids.len()).collect::<Vec<_>>(), "the order in which they were given");
    outcomes
}

/// A TLS link to a listener of Alice's, on which anything can be said.
async fn raw_link(address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(client_config(alice(), SystemTime::now())).connect(name, stream).await
}

/// Reads until the other side hangs up, in whatever manner; gives what came before.
async fn until_closed(mut link: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = timeout(PATIENCE, link.read_to_end(&mut all)).await.expect("the other side hangs up");
    all
}

#[tokio::test]
async fn fifty_packets_are_pipelined_and_stored_before_they_are_answered() {
    let disk = Disk::new(false, HashSet::new());
    let running = Running::start(&disk, ListenConfig::default()).await;
    let packets = packets(50);

    // The disk is stuck: the window fills, nothing is answered.
    let stop = CancellationToken::new();
    let window_full = async {
        disk.waiting.subscribe().wait_for(|waiting| *waiting == 16).await.unwrap();
        stop.cancel();
    };
    let (next, config) = (next_hop(running.address, alice()), ConnectConfig::default());
    let (delivery, ()) = timeout(PATIENCE, async {
        tokio::join!(deliver(&next, units(&packets), &config, SystemTime::now(), &stop), window_full)
    })
    .await
    .expect("the window fills");
    assert_eq!(outcomes(&delivery), [Outcome::Unanswered; 50]);
    assert!(matches!(delivery.failure, Some(Undelivered::Stopped)), "{:?}", delivery.failure);

    // The disk works: everything is answered, and everything that is answered is there.
    disk.gate.send_replace(true);
    let delivery = deliver_to(running.address, alice(), units(&packets)).await;
    assert!(delivery.failure.is_none(), "{:?}", delivery.failure);
    assert_eq!(outcomes(&delivery), [Outcome::Delivered; 50]);
    let stored: HashSet<Digest> = disk.stored().into_iter().collect();
    assert_eq!(stored, packets.iter().map(Packet::digest).collect());
    running.stopped().await;
}

#[tokio::test]
async fn junk_is_answered_and_not_stored_and_refusals_are_told() {
    let packets = packets(3);
    let disk = Disk::new(true, HashSet::from([packets[1].digest()]));
    let running = Running::start(&disk, ListenConfig::default()).await;
    let units = vec![
        Unit::packet(0, packets[0].clone()),
        Unit::junk(1, &mut seeded(9)),
        Unit::packet(2, packets[1].clone()),
        Unit::packet(3, packets[2].clone()),
    ];
    let delivery = deliver_to(running.address, alice(), units).await;
    assert!(delivery.failure.is_none(), "{:?}", delivery.failure);
    use Outcome::{Delivered, Rejected};
    assert_eq!(outcomes(&delivery), [Delivered, Delivered, Rejected, Delivered]);
    let stored: HashSet<Digest> = disk.stored().into_iter().collect();
    assert_eq!(stored, HashSet::from([packets[0].digest(), packets[2].digest()]));
    running.stopped().await;
}

#[tokio::test]
async fn host_names_are_resolved_and_each_address_is_tried() {
    let disk = Disk::new(true, HashSet::new());
    let running = Running::start(&disk, ListenConfig::default()).await;
    let host = HostName::parse("localhost").unwrap();
    let next = NextHop::Host(HostRoute { host, port: running.address.port(), key_id: alice() });
    let stop = CancellationToken::new();
    let delivery = deliver(&next, units(&packets(1)), &ConnectConfig::default(), SystemTime::now(), &stop).await;
    assert!(delivery.failure.is_none(), "{:?}", delivery.failure);
    running.stopped().await;
}

#[tokio::test]
async fn wrong_key_id_is_refused_before_any_packet_is_sent() {
    let disk = Disk::new(true, HashSet::new());
    let running = Running::start(&disk, ListenConfig::default()).await;
    let bob = BOB.public_key().key_id();
    let delivery = deliver_to(running.address, bob, units(&packets(3))).await;
    match delivery.failure {
        Some(Undelivered::Link(error)) => assert_eq!(error, LinkError::WrongPeer { expected: bob, found: alice() }),
        ref other => panic!("expected a wrong peer, found {other:?}"),
    }
    assert_eq!(outcomes(&delivery), [Outcome::Unanswered; 3]);
    assert_eq!(*disk.waiting.borrow(), 0);
    running.stopped().await;
}

#[tokio::test]
async fn expired_link_is_refused_by_name() {
    let disk = Disk::new(true, HashSet::new());
    let running = Running::start(&disk, ListenConfig::default()).await;
    let later = SystemTime::now() + Duration::from_secs(27 * 3600);
    let stop = CancellationToken::new();
    let next = next_hop(running.address, alice());
    let delivery = deliver(&next, units(&packets(1)), &ConnectConfig::default(), later, &stop).await;
    assert!(matches!(delivery.failure, Some(Undelivered::Link(LinkError::Expired))), "{:?}", delivery.failure);
    running.stopped().await;
}

#[tokio::test]
async fn nobody_at_the_address_is_a_failure_to_connect() {
    // Held so that no other test gets the port, but nobody listens.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let delivery = deliver_to(socket.local_addr().unwrap(), alice(), units(&packets(1))).await;
    assert!(matches!(delivery.failure, Some(Undelivered::Connect { .. })), "{:?}", delivery.failure);
}

/// A peer of Alice's name that agrees on the version, answers `answered` packets, then does as told.
async fn half_hearted_peer(answered: usize, hang_up: bool) -> (SocketAddr, JoinHandle<()>) {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (stream, _) = socket.accept().await.unwrap();
        let mut link = TlsAcceptor::from(ALICES_LINK.server_config()).accept(stream).await.unwrap();
        let mut session = ServerSession::new();
        let mut buffer = vec![0; 4096];
        let (mut taken, mut said) = (0, 0);
        'link: loop {
            let count = link.read(&mut buffer).await.unwrap_or(0);
            if count == 0 {
                return;
            }
            let mut input = &buffer[..count];
            loop {
                match session.step(&mut input).unwrap() {
                    Step::Send(octets) => {
                        link.write_all(&octets).await.unwrap();
                        link.flush().await.unwrap();
                        said += 1;
                    }
                    Step::Packet(ticket, _) if taken < answered => {
                        taken += 1;
                        session.received(ticket);
                    }
                    Step::Packet(..) => {
                        assert_eq!(said, 1 + answered, "the version and the answers");
                        break 'link;
                    }
                    Step::Junk(ticket, _) => session.received(ticket),
                    Step::Receive | Step::Wait => break,
                }
            }
        }
        if !hang_up {
            std::future::pending::<()>().await;
        }
        // Hangs up in good order: a socket that is closed with octets unread takes back what it has just said.
        let _ = link.shutdown().await;
        while link.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    });
    (address, task)
}

#[tokio::test]
async fn what_was_answered_before_the_connection_died_is_known() {
    let (address, peer) = half_hearted_peer(5, true).await;
    let delivery = deliver_to(address, alice(), units(&packets(20))).await;
    assert_eq!(outcomes(&delivery), [[Outcome::Delivered; 5].as_slice(), &[Outcome::Unanswered; 15]].concat());
    let failure = delivery.failure;
    assert!(matches!(failure, Some(Undelivered::Closed | Undelivered::Broken { .. })), "{failure:?}");
    peer.await.unwrap();
}

#[tokio::test]
async fn stalling_server_times_out() {
    let (address, peer) = half_hearted_peer(2, false).await;
    let config = ConnectConfig { progress_timeout: SHORT, ..ConnectConfig::default() };
    let next = next_hop(address, alice());
    let stop = CancellationToken::new();
    let delivery =
        timeout(PATIENCE, deliver(&next, units(&packets(20)), &config, SystemTime::now(), &stop)).await.unwrap();
    assert_eq!(outcomes(&delivery), [[Outcome::Delivered; 2].as_slice(), &[Outcome::Unanswered; 18]].concat());
    assert!(matches!(delivery.failure, Some(Undelivered::Stalled)), "{:?}", delivery.failure);
    peer.abort();
}

#[tokio::test]
async fn nothing_more_is_sent_over_a_connection_that_has_lasted_its_time() {
    let disk = Disk::new(true, HashSet::new());
    let running = Running::start(&disk, ListenConfig::default()).await;
    let config = ConnectConfig { max_lifetime: Duration::ZERO, ..ConnectConfig::default() };
    let next = next_hop(running.address, alice());
    let stop = CancellationToken::new();
    let delivery = deliver(&next, units(&packets(2)), &config, SystemTime::now(), &stop).await;
    assert_eq!(outcomes(&delivery), [Outcome::Unanswered; 2]);
    assert!(matches!(delivery.failure, Some(Undelivered::LifetimeOver)), "{:?}", delivery.failure);
    running.stopped().await;
}

#[tokio::test]
async fn server_that_never_shakes_hands_times_out() {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let config = ConnectConfig { handshake_timeout: SHORT, ..ConnectConfig::default() };
    let next = next_hop(socket.local_addr().unwrap(), alice());
    let stop = CancellationToken::new();
    let delivery =
        timeout(PATIENCE, deliver(&next, units(&packets(1)), &config, SystemTime::now(), &stop)).await.unwrap();
    assert!(matches!(delivery.failure, Some(Undelivered::HandshakeTimeout)), "{:?}", delivery.failure);
}

#[tokio::test]
async fn server_of_another_protocol_is_named() {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let peer = tokio::spawn(async move {
        let (stream, _) = socket.accept().await.unwrap();
        let mut link = TlsAcceptor::from(ALICES_LINK.server_config()).accept(stream).await.unwrap();
        link.write_all(b"220 mail.example ready\r\n").await.unwrap();
        link.flush().await.unwrap();
        until_closed(link).await
    });
    let delivery = deliver_to(address, alice(), units(&packets(1))).await;
    let failure = delivery.failure;
    assert!(matches!(failure, Some(Undelivered::Misbehaved(PeerMisbehaved::VersionLine))), "{failure:?}");
    assert!(peer.await.unwrap().len() <= 10, "no more than the version line was said");
}

#[tokio::test]
async fn stalling_clients_are_closed_while_others_are_served() {
    let disk = Disk::new(true, HashSet::new());
    // The honest peer is under the same limits, and the machine may be busy.
    let limit = Duration::from_secs(3);
    let config = ListenConfig { handshake_timeout: limit, idle_timeout: limit, ..ListenConfig::default() };
    let running = Running::start(&disk, config).await;
    let no_handshake = TcpStream::connect(running.address).await.unwrap();
    let no_word = raw_link(running.address).await.unwrap();
    let mut half_a_packet = raw_link(running.address).await.unwrap();
    half_a_packet.write_all(b"MMTP 0.3\r\nSEND\r\n").await.unwrap();
    half_a_packet.write_all(&[7; 10_000]).await.unwrap();
    half_a_packet.flush().await.unwrap();

    let delivery = deliver_to(running.address, alice(), units(&packets(20))).await;
    assert_eq!(outcomes(&delivery), [Outcome::Delivered; 20]);
    assert_eq!(until_closed(no_handshake).await, b"");
    assert_eq!(until_closed(no_word).await, b"");
    assert_eq!(until_closed(half_a_packet).await, b"MMTP 0.3\r\n");
    assert_eq!(disk.stored().len(), 20);
    running.stopped().await;
}

#[tokio::test]
async fn random_and_truncated_octets_end_in_a_closed_connection_while_others_are_served() {
    let disk = Disk::new(true, HashSet::new());
    let running = Running::start(&disk, ListenConfig::default()).await;
    let address = running.address;
    let honest = tokio::spawn(async move { deliver_to(address, alice(), units(&packets(50))).await });

    for seed in 0..12u8 {
        println!("seed {seed}");
        let mut rng = seeded(seed);
        let mut octets = vec![0; rng.random_range(1..60_000)];
        rng.fill_bytes(&mut octets);
        let agreed = seed % 3 != 0;
        if seed % 4 == 0 {
            // Below TLS.
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(&octets).await;
            let _ = stream.shutdown().await;
            until_closed(stream).await;
            continue;
        }
        let (reader, mut writer) = tokio::io::split(raw_link(address).await.unwrap());
        if agreed {
            writer.write_all(b"MMTP 0.3\r\n").await.unwrap();
        }
        if seed % 2 == 0 {
            // A unit that is cut off, or whose digest is wrong.
            let unit = [b"SEND\r\n".to_vec(), vec![seed; PACKET_LEN], vec![seed; 20]].concat();
            octets = unit[..rng.random_range(1..=unit.len())].to_vec();
        }
        let said = tokio::spawn(until_closed(reader));
        // The other side may hang up before it has read everything.
        let _ = writer.write_all(&octets).await;
        let _ = writer.shutdown().await;
        let said = said.await.unwrap();
        assert!(said.is_empty() || said == b"MMTP 0.3\r\n", "seed {seed}: an answer was given");
    }

    let delivery = timeout(PATIENCE, honest).await.unwrap().unwrap();
    assert_eq!(outcomes(&delivery), [Outcome::Delivered; 50]);
    assert_eq!(disk.stored().len(), 50, "nothing of the noise was stored");
    running.stopped().await;
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_at_once_and_seats_come_free() {
    let disk = Disk::new(true, HashSet::new());
    let config = ListenConfig { max_connections: 2, ..ListenConfig::default() };
    let running = Running::start(&disk, config).await;
    let first = raw_link(running.address).await.unwrap();
    let second = raw_link(running.address).await.unwrap();
    assert!(raw_link(running.address).await.is_err());
    drop((first, second));
    // The listener learns of it a little later.
    let served = async {
        while deliver_to(running.address, alice(), units(&packets(1))).await.failure.is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, served).await.expect("the seats come free");
    running.stopped().await;
}

#[tokio::test]
async fn packets_taken_before_the_stop_are_still_answered() {
    let disk = Disk::new(false, HashSet::new());
    let running = Running::start(&disk, ListenConfig::default()).await;
    let address = running.address;
    let delivery = tokio::spawn(async move { deliver_to(address, alice(), units(&packets(3))).await });
    disk.waiting.subscribe().wait_for(|waiting| *waiting == 3).await.unwrap();
    running.stop.cancel();
    disk.gate.send_replace(true);
    let delivery = delivery.await.unwrap();
    assert_eq!(outcomes(&delivery), [Outcome::Delivered; 3]);
    assert!(delivery.failure.is_none(), "{:?}", delivery.failure);
    running.stopped().await;
}

#[tokio::test]
async fn new_link_identity_serves_the_next_connection_under_the_same_key_id() {
    let disk = Disk::new(true, HashSet::new());
    let running = Running::start(&disk, ListenConfig::default()).await;
    let shown = |link: &TlsStream<TcpStream>| link.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let old = raw_link(running.address).await.unwrap();
    let replacement = link_identity(4);
    running.identity.send_replace(Arc::clone(&replacement));
    let new = raw_link(running.address).await.unwrap();
    assert_eq!(shown(&old), ALICES_LINK.certificates()[0].to_vec());
    assert_eq!(shown(&new), replacement.certificates()[0].to_vec());
    assert_ne!(shown(&old), shown(&new));
    running.stopped().await;
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of OpenSSL's.
struct OpenSsl {
    _process: Killed,
    address: SocketAddr,
}

impl OpenSsl {
    /// Starts `openssl s_server` with these options, at the security level that lets the keys of the reference pass.
    fn start(folder: &Path, options: &[&str]) -> Self {
        let mut process = Command::new("openssl")
            .current_dir(folder)
            .args(["s_server", "-accept", "127.0.0.1:0", "-cipher", "DEFAULT@SECLEVEL=0"])
            .args(options)
            .args(["-cert", "link.pem", "-key", "link.key", "-cert_chain", "identity.pem"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        // It tells its port in a line like `ACCEPT 127.0.0.1:40123`.
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let accept = lines.find_map(|line| line.unwrap().strip_prefix("ACCEPT ").map(str::to_owned));
        let port = accept.as_deref().and_then(|accept| accept.rsplit_once(':')).unwrap().1.parse().unwrap();
        // Goes on reading, lest the pipe fill up.
        std::thread::spawn(move || lines.for_each(drop));
        Self { _process: Killed(process), address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) }
    }

    async fn handshake(&self, expected: KeyId) -> Result<ProtocolVersion, LinkError> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::IpAddress(self.address.ip().into());
        let connector = TlsConnector::from(client_config(expected, SystemTime::now()));
        match timeout(PATIENCE, connector.connect(name, stream)).await.expect("OpenSSL answers") {
            Ok(link) => Ok(link.get_ref().1.protocol_version().unwrap()),
            Err(error) => Err(LinkError::find(&error).unwrap_or_else(|| panic!("not the verifier's word: {error:?}"))),
        }
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output();
    let output = output.expect("openssl is installed");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes what a mix of the reference shows: a link key of RSA-1024, both certificates signed with SHA-1. Returns its
/// key id as OpenSSL writes the identity key.
fn reference_chain(folder: &Path) -> KeyId {
    chain(folder, 1024, "sha1")
}

fn chain(folder: &Path, link_bits: u32, digest: &str) -> KeyId {
    let identity = "-keyout identity.key -out identity.pem -days 1 -subj /CN=Old";
    openssl(folder, &format!("req -x509 -newkey rsa:2048 -nodes -{digest} {identity}"));
    let link = "-keyout link.key -out link.csr -subj /CN=Old<MMTP>";
    openssl(folder, &format!("req -new -newkey rsa:{link_bits} -nodes -{digest} {link}"));
    let issuer = "-CA identity.pem -CAkey identity.key -days 1 -set_serial 7";
    openssl(folder, &format!("x509 -req -in link.csr -{digest} {issuer} -out link.pem"));
    openssl(folder, "rsa -in identity.key -RSAPublicKey_out -outform DER -out identity.der");
    PublicKey::from_der(&std::fs::read(folder.join("identity.der")).unwrap()).unwrap().key_id()
}

#[tokio::test]
async fn openssl_with_the_keys_and_signatures_of_the_reference_is_accepted_by_key_id() {
    let folder = tempfile::tempdir().unwrap();
    let old = reference_chain(folder.path());
    for (option, version) in [("-tls1_2", ProtocolVersion::TLSv1_2), ("-tls1_3", ProtocolVersion::TLSv1_3)] {
        let server = OpenSsl::start(folder.path(), &[option]);
        assert_eq!(server.handshake(old).await, Ok(version));
        let wrong = LinkError::WrongPeer { expected: alice(), found: old };
        assert_eq!(server.handshake(alice()).await, Err(wrong));
    }
}

#[tokio::test]
async fn openssl_may_sign_with_any_of_the_four_digests_and_both_paddings() {
    for digest in ["sha1", "sha256", "sha384", "sha512"] {
        let folder = tempfile::tempdir().unwrap();
        let key_id = chain(folder.path(), 2048, digest);
        let pkcs1 = format!("RSA+{}", digest.to_uppercase());
        let pss = format!("rsa_pss_rsae_{digest}");
        let schemes = if digest == "sha1" { vec![pkcs1] } else { vec![pkcs1, pss] };
        for scheme in schemes {
            let server = OpenSsl::start(folder.path(), &["-tls1_2", "-sigalgs", &scheme]);
            assert_eq!(server.handshake(key_id).await, Ok(ProtocolVersion::TLSv1_2), "{scheme}");
        }
    }
}

#[tokio::test]
async fn openssl_whose_link_key_is_signed_by_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let old = reference_chain(folder.path());
    // Same names, same kind of keys, but the identity key that is shown has not signed the link key.
    let other = tempfile::tempdir().unwrap();
    reference_chain(other.path());
    for file in ["link.pem", "link.key"] {
        std::fs::copy(other.path().join(file), folder.path().join(file)).unwrap();
    }
    let server = OpenSsl::start(folder.path(), &["-tls1_3"]);
    assert_eq!(server.handshake(old).await, Err(LinkError::LeafSignature));
}

#[tokio::test]
async fn openssl_client_hands_over_a_packet_in_both_versions() {
    let disk = Disk::new(true, HashSet::new());
    let running = Running::start(&disk, ListenConfig::default()).await;
    let packet = &packets(1)[0];
    let unit = mix::mmtp::frame::Command::Send.unit(packet);
    let received = mix::crypto::sha1(&[packet.as_bytes(), b"RECEIVED"]);
    let expected = [b"MMTP 0.3\r\nRECEIVED\r\n".as_slice(), &received.0].concat();
    for version in ["-tls1_2", "-tls1_3"] {
        let mut client = Killed(
            Command::new("openssl")
                .args(["s_client", "-quiet", version, "-connect", &running.address.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("openssl is installed"),
        );
        let (mut input, mut output) = (client.0.stdin.take().unwrap(), client.0.stdout.take().unwrap());
        let octets = [b"MMTP 0.3\r\n".as_slice(), &unit].concat();
        let mut said = vec![0; expected.len()];
        let talk = tokio::task::spawn_blocking(move || {
            input.write_all(&octets).unwrap();
            output.read_exact(&mut said).unwrap();
            // Only now: at the end of its input it would say goodbye.
            drop(input);
            said
        });
        let said = timeout(PATIENCE, talk).await.expect("it is answered").unwrap();
        assert_eq!(said, expected, "{version}");
    }
    assert_eq!(disk.stored(), [packet.digest(); 2]);
    running.stopped().await;
}
