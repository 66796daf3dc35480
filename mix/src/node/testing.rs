//! What the tests of the services share.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::World;
use super::config::NetworkConfig;
use super::network::Network;
use crate::crypto::KeyId;
use crate::crypto::pk::PrivateKey;
use crate::directory::{Descriptor, DescriptorFields, DirectoryFields, Policy, Status, Voter};
use crate::net::listen::{ListenConfig, MmtpListener, PacketSink, Refused};
use crate::net::tls::LinkIdentity;
use crate::packet::build::Hop;
use crate::packet::{HostName, HostRoute, Packet};

/// Longer than anything here takes on a busy machine, shorter than the time limits of a connection.
pub(super) const PATIENCE: Duration = Duration::from_secs(25);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Noon of some day.
pub(super) fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + 19_631 * DAY + DAY / 2
}

/// A world where it is noon, with dice that begin anew for each who asks.
pub(super) fn noon_world(seed: u64) -> World {
    println!("seed {seed:#x}");
    let asked = Mutex::new(StdRng::seed_from_u64(seed));
    World::new(noon, move || {
        use rand::RngExt;
        let next: u64 = asked.lock().unwrap().random();
        Box::new(StdRng::seed_from_u64(next))
    })
}

/// The key of a mix or directory server, for identity and packets; the same in every run.
pub(super) fn key(number: u64) -> PrivateKey {
    static MADE: LazyLock<Mutex<BTreeMap<u64, PrivateKey>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap();
    let make = || PrivateKey::generate(2048, &mut StdRng::seed_from_u64(number)).unwrap();
    made.entry(number).or_insert_with(make).clone()
}

pub(super) fn key_id(number: u64) -> KeyId {
    key(number).public_key().key_id()
}

/// The mix with this key as a stop on a path, at this port of this machine.
pub(super) fn hop(number: u64, port: u16) -> Hop {
    let route = HostRoute { host: HostName::parse("127.0.0.1").unwrap(), port, key_id: key_id(number) };
    Hop { packet_key: key(number).public_key(), route }
}

fn descriptor(number: u64) -> Arc<Descriptor> {
    let midnight = noon() - DAY / 2;
    let fields = DescriptorFields {
        nickname: format!("Mix{number}").parse().unwrap(),
        published: midnight - DAY,
        valid_after: midnight - DAY,
        valid_until: midnight + 4 * DAY,
        contact: "nobody".to_owned(),
        contact_fingerprint: None,
        comments: None,
        packet_key: key(number).public_key(),
        software: "mixgate".to_owned(),
        why_insecure: None,
        listens_at: Some((HostName::parse("127.0.0.1").unwrap(), 48099)),
        takes_from: Policy::default(),
        connects: true,
        connects_to: Policy::default(),
        smtp: None,
        mbox: None,
        fragmented: None,
    };
    Arc::new(fields.sign(&key(number), &mut StdRng::seed_from_u64(1)).unwrap())
}

/// A network of the mixes with these keys, kept in `home` as by an earlier run.
pub(super) fn network(home: &Path, mixes: impl IntoIterator<Item = u64>, world: &World) -> Network {
    let (server, midnight) = (key(0), noon() - DAY / 2);
    let descriptors: Vec<_> = mixes.into_iter().map(descriptor).collect();
    let fields = DirectoryFields {
        status: Status::Consensus,
        valid_after: midnight,
        valid_until: midnight + DAY,
        recommended: descriptors.iter().map(|mix| mix.nickname().clone()).collect(),
        voters: vec![Voter { key_id: key_id(0), url: "http://dir.example/".to_owned() }],
        client_versions: Vec::new(),
        server_versions: Vec::new(),
        descriptors,
    };
    let file = home.join("directory");
    std::fs::write(&file, fields.sign(&server, &mut StdRng::seed_from_u64(1)).unwrap()).unwrap();
    let config = NetworkConfig { directory_key: key_id(0).to_string(), ..NetworkConfig::default() };
    Network::new(config, file, world.clone()).unwrap()
}

/// A mix that takes everything and keeps nothing.
pub(super) struct Taking;

impl PacketSink for Taking {
    async fn store(&self, _: Packet) -> Result<(), Refused> {
        Ok(())
    }

    async fn forget(&self, _: Packet) -> Result<(), Refused> {
        Ok(())
    }
}

/// Runs the listener of the mix with this key until `stop`, and gives its port.
pub(super) async fn listening(number: u64, sink: impl PacketSink, stop: &CancellationToken) -> u16 {
    let nickname = "Mix".parse().unwrap();
    let link = LinkIdentity::new(&key(number), &nickname, SystemTime::now(), &mut World::real().dice()).unwrap();
    let (_, link) = watch::channel(Arc::new(link));
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = MmtpListener::bind(anywhere, link, ListenConfig::default(), Arc::new(sink)).await.unwrap();
    let port = listener.local_addr().port();
    tokio::spawn(listener.run(stop.clone()));
    port
}

/// What an observer sees of one connection: type and length of the TLS records in either direction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) there: Vec<(u8, usize)>,
    pub(super) back: Vec<(u8, usize)>,
}

/// Relays one connection to `mix` and looks on.
pub(super) async fn observed(listener: &TcpListener, mix: u16) -> Seen {
    let (near, _) = listener.accept().await.unwrap();
    let far = TcpStream::connect(("127.0.0.1", mix)).await.unwrap();
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    let (there, back) = tokio::join!(copied(from_near, to_far), copied(from_far, to_near));
    Seen { there: records(&there), back: records(&back) }
}

async fn copied(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 65536]);
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        all.extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    // The peer may have hung up first.
    let _ = to.shutdown().await;
    all
}

fn records(mut octets: &[u8]) -> Vec<(u8, usize)> {
    let mut records = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = octets {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        records.push((*kind, len));
        octets = &rest[len..];
    }
    records
}
