//! Whole stories over loopback sockets, with a clock that the test turns.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::crypto::CounterRng;
use crate::crypto::stream::StreamKey;
use crate::directory::{Descriptor, DescriptorFields, Directory, Policy, Trust};
use crate::net::fetch::{FetchError, FetchLimits, Uploaded, fetch_directory, upload_descriptor};
use crate::packet::HostName;

/// 2026-11-20, a midnight.
const DAY0: u64 = 1_795_132_800;
const DAY: u64 = 24 * 3600;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn rng(seed: u8) -> CounterRng {
    CounterRng::new(&StreamKey::new([seed; 16]))
}

/// Making keys is slow, so all tests share these. The first is the directory's.
static KEYS: LazyLock<Vec<PrivateKey>> =
    LazyLock::new(|| (0..4).map(|seed| PrivateKey::generate(2048, &mut rng(seed)).unwrap()).collect());

fn descriptor(nickname: &str, key: usize, first_day: u64, days: u64) -> Descriptor {
    let fields = DescriptorFields {
        nickname: nickname.parse().unwrap(),
        published: at(DAY0 + first_day * DAY),
        valid_after: at(DAY0 + first_day * DAY),
        valid_until: at(DAY0 + (first_day + days) * DAY),
        contact: "ops@mix.example".to_owned(),
        contact_fingerprint: None,
        comments: None,
        packet_key: KEYS[3].public_key(),
        software: "mixgate".to_owned(),
        why_insecure: None,
        listens_at: Some((HostName::parse("mix.example").unwrap(), 48099)),
        takes_from: Policy::default(),
        connects: true,
        connects_to: Policy::default(),
        smtp: None,
        mbox: None,
        fragmented: None,
    };
    fields.sign(&KEYS[key], &mut rng(9)).unwrap()
}

/// A directory server under test.
struct Stage {
    running: Running,
    clock: Arc<AtomicU64>,
    shutdown: CancellationToken,
}

impl Stage {
    async fn start(home: &Path, change: impl FnOnce(&mut DirectoryConfig)) -> Self {
        let mut config = DirectoryConfig { home: home.to_owned(), ..DirectoryConfig::default() };
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let clock = Arc::new(AtomicU64::new(DAY0 + 3600));
        let (shutdown, hands) = (CancellationToken::new(), Arc::clone(&clock));
        let now = move || at(hands.load(Ordering::SeqCst));
        let running = DirectoryServer::start(&config, listener, KEYS[0].clone(), now, shutdown.clone()).unwrap();
        Self { running, clock, shutdown }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.running.address())
    }

    async fn upload(&self, text: &str) -> Result<Uploaded, String> {
        let outcome = upload_descriptor(&self.url("upload"), text).await;
        outcome.map_err(|why| match why {
            FetchError::Refused { message } => message,
            other => panic!("{other:?}"),
        })
    }

    async fn directory(&self) -> Directory {
        let text = fetch_directory(&self.url("current.gz"), &FetchLimits::default()).await.unwrap();
        let trust = Trust::new([self.running.key_id()], 1).unwrap();
        Directory::parse(&text, &trust, at(self.clock.load(Ordering::SeqCst))).unwrap()
    }

    async fn names(&self) -> Vec<String> {
        self.directory().await.descriptors().iter().map(|found| found.nickname().to_string()).collect()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.stopped().await.unwrap();
    }

    /// Sends octets as they are and returns the whole answer.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.running.address()).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn post(&self, kind: &str, body: &str) -> String {
        let length = body.len();
        let head = format!(
            "POST /upload HTTP/1.1\r\nhost: d\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
        );
        self.raw(&[head.as_bytes(), body.as_bytes()].concat()).await
    }
}

fn open(config: &mut DirectoryConfig) {
    config.accept_unknown = true;
}

#[tokio::test]
async fn an_uploaded_descriptor_is_published_and_still_there_after_a_restart() {
    let home = TempDir::new().unwrap();
    let stage = Stage::start(home.path(), open).await;
    assert!(stage.names().await.is_empty());
    let alice = descriptor("Alice", 1, 0, 30);
    assert_eq!(stage.upload(alice.text()).await, Ok(Uploaded::Accepted));
    assert_eq!(stage.upload(alice.text()).await, Ok(Uploaded::Accepted), "a second time does no harm");
    stage.stop().await;
    let stage = Stage::start(home.path(), |_| ()).await;
    let found = stage.directory().await;
    assert_eq!(found.descriptors(), [Arc::new(alice.clone())]);
    assert!(found.is_recommended(&alice));
    assert_eq!((found.valid_after(), found.valid_until()), (at(DAY0), at(DAY0 + DAY)));
    let update = descriptor("Alice", 1, 0, 40);
    assert_eq!(stage.upload(update.text()).await, Ok(Uploaded::Accepted), "known mixes need no approval");
    stage.stop().await;
}

#[tokio::test]
async fn an_unknown_mix_waits_until_its_fingerprint_is_approved() {
    let home = TempDir::new().unwrap();
    let stage = Stage::start(home.path(), |_| ()).await;
    let alice = descriptor("Alice", 1, 0, 30);
    for _ in 0..2 {
        let Ok(Uploaded::Waiting { message }) = stage.upload(alice.text()).await else { panic!("must wait") };
        assert_ne!(message, "Accepted.");
    }
    assert!(stage.names().await.is_empty());
    stage.stop().await;
    let approve = |config: &mut DirectoryConfig| config.approved = vec![alice.identity().fingerprint()];
    let stage = Stage::start(home.path(), approve).await;
    assert_eq!(stage.names().await, ["Alice"]);
    assert_eq!(std::fs::read_dir(home.path().join("pending")).unwrap().count(), 0);
    stage.stop().await;
}

#[tokio::test]
async fn a_nickname_never_changes_hands_even_when_its_owner_is_gone() {
    let home = TempDir::new().unwrap();
    let stage = Stage::start(home.path(), open).await;
    stage.upload(descriptor("Alice", 1, 0, 2).text()).await.unwrap();
    let taken = Err("The nickname belongs to another identity key.".to_owned());
    assert_eq!(stage.upload(descriptor("ALICE", 2, 0, 30).text()).await, taken);
    let renamed = Err("This identity key has another nickname.".to_owned());
    assert_eq!(stage.upload(descriptor("Bob", 1, 0, 30).text()).await, renamed);
    stage.clock.store(DAY0 + 5 * DAY, Ordering::SeqCst);
    assert!(stage.names().await.is_empty(), "expired");
    assert_eq!(stage.upload(descriptor("alice", 2, 0, 30).text()).await, taken);
    stage.stop().await;
    let stage = Stage::start(home.path(), open).await;
    assert_eq!(stage.upload(descriptor("alice", 2, 0, 30).text()).await, taken);
    assert_eq!(stage.upload(descriptor("Bob", 2, 0, 30).text()).await, Ok(Uploaded::Accepted));
    stage.stop().await;
}

#[tokio::test]
async fn each_descriptor_that_is_not_good_is_refused_with_a_reason() {
    let home = TempDir::new().unwrap();
    let stage = Stage::start(home.path(), |config| {
        open(config);
        config.max_mixes = 1;
    })
    .await;
    stage.clock.store(DAY0 + 10 * DAY, Ordering::SeqCst);
    let refused = |outcome: Result<Uploaded, String>| outcome.unwrap_err();
    let good = descriptor("Alice", 1, 0, 30);
    let tampered = good.text().replace("48099", "48098");
    assert!(refused(stage.upload(&tampered).await).contains("the digest is not that of the text"));
    let old = descriptor("Alice", 1, 0, 5);
    assert!(refused(stage.upload(old.text()).await).contains("expired"));
    let early = descriptor("Alice", 1, 12, 30);
    assert!(refused(stage.upload(early.text()).await).contains("published in the future"));
    assert!(refused(stage.upload("[Server]\n").await).contains("has no Descriptor-Version"));
    assert!(refused(stage.upload("").await).contains("does not begin with a Server section"));
    assert_eq!(stage.upload(good.text()).await, Ok(Uploaded::Accepted));
    assert_eq!(refused(stage.upload(descriptor("Bob", 2, 0, 30).text()).await), "The directory is full.");
    assert_eq!(stage.names().await, ["Alice"]);
    stage.stop().await;
}

#[tokio::test]
async fn answers_have_the_exact_form_that_the_reference_reads() {
    let home = TempDir::new().unwrap();
    let stage = Stage::start(home.path(), open).await;
    // What curl sends with --data-binary: not a form, though it says so.
    let answer = stage.post("application/x-www-form-urlencoded", descriptor("Alice", 1, 0, 30).text()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nStatus: 1\nMessage: Accepted.\n"), "{answer}");
    let answer = stage.post("application/x-www-form-urlencoded", "other=1").await;
    assert!(answer.contains("\r\n\r\nStatus: 0\nMessage: No descriptor found"), "{answer}");
    let answer = stage.post("text/plain", &"x".repeat(MAX_UPLOAD + 1)).await;
    assert!(answer.contains("\r\n\r\nStatus: 0\nMessage: The upload broke off or is too long."), "{answer}");
    let answer = stage.raw(b"GET / HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("Mixes listed: 1\n") && answer.contains(&KEYS[0].public_key().fingerprint()), "{answer}");
    let answer = stage.raw(b"GET /upload HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    stage.stop().await;
}

#[tokio::test]
async fn each_day_has_its_directory_though_nobody_uploads() {
    let home = TempDir::new().unwrap();
    let stage = Stage::start(home.path(), open).await;
    stage.upload(descriptor("Alice", 1, 0, 30).text()).await.unwrap();
    let first = stage.directory().await;
    stage.clock.store(DAY0 + DAY - 1, Ordering::SeqCst);
    assert_eq!(stage.directory().await.text(), first.text(), "not signed anew for each who asks");
    stage.clock.store(DAY0 + DAY, Ordering::SeqCst);
    let second = stage.directory().await;
    assert_eq!((second.valid_after(), second.valid_until()), (at(DAY0 + DAY), at(DAY0 + 2 * DAY)));
    assert_eq!(second.descriptors(), first.descriptors());
    stage.stop().await;
}

#[tokio::test]
async fn mixes_that_are_not_recommended_are_listed_all_the_same() {
    let home = TempDir::new().unwrap();
    let stage = Stage::start(home.path(), |config| {
        open(config);
        config.not_recommended = vec!["alice".to_owned()];
    })
    .await;
    let (alice, bob) = (descriptor("Alice", 1, 0, 30), descriptor("Bob", 2, 0, 30));
    stage.upload(alice.text()).await.unwrap();
    stage.upload(bob.text()).await.unwrap();
    let found = stage.directory().await;
    assert!(!found.is_recommended(&alice) && found.is_recommended(&bob));
    assert_eq!(found.descriptors().len(), 2);
    stage.stop().await;
}

#[tokio::test]
async fn files_are_for_the_owner_alone_and_damage_is_named_at_the_start() {
    let home = TempDir::new().unwrap();
    let stage = Stage::start(&home.path().join("dir"), open).await;
    let alice = descriptor("Alice", 1, 0, 30);
    stage.upload(alice.text()).await.unwrap();
    stage.stop().await;
    let folder = home.path().join("dir");
    let file = folder.join("descriptors").join(alice.digest().to_string());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&file), mode(&folder.join("names"))), (0o700, 0o600, 0o600));
    std::fs::write(folder.join("descriptors/half.unfinished"), "[Serv").unwrap();
    let config = DirectoryConfig { home: folder.clone(), ..DirectoryConfig::default() };
    Office::open(&config, KEYS[0].clone(), at(DAY0)).map(drop).expect("what a crash left half written is thrown away");
    std::fs::write(&file, "[Server]\n").unwrap();
    let why = Office::open(&config, KEYS[0].clone(), at(DAY0)).map(drop).unwrap_err();
    assert!(matches!(&why, DirectoryError::Files(ShelfError { path, .. }) if *path == file), "{why:?}");
}

#[test]
fn settings_that_cannot_be_meant_are_refused_by_name() {
    let home = TempDir::new().unwrap();
    let refused = |change: fn(&mut DirectoryConfig)| {
        let mut config = DirectoryConfig { home: home.path().to_owned(), ..DirectoryConfig::default() };
        change(&mut config);
        Office::open(&config, KEYS[0].clone(), at(DAY0)).map(drop).unwrap_err()
    };
    let fingerprint = refused(|config| config.approved = vec!["12".to_owned()]);
    assert!(matches!(fingerprint, DirectoryError::Fingerprint { .. }));
    let nickname = refused(|config| config.not_recommended = vec!["not one".to_owned()]);
    assert!(matches!(nickname, DirectoryError::Nickname { .. }));
    for url in ["dir.example", "http://dir.example", "http://dir example/"] {
        let mut config = DirectoryConfig { home: home.path().to_owned(), ..DirectoryConfig::default() };
        config.url = url.to_owned();
        let why = Office::open(&config, KEYS[0].clone(), at(DAY0)).map(drop).unwrap_err();
        assert!(matches!(why, DirectoryError::Url { .. }), "{url}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_only_waits_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut guard = Guard::new(listener, BOUNDS);
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut connection, _) = axum::serve::Listener::accept(&mut guard).await;
    let outcome = connection.read_u8().await.unwrap_err();
    assert_eq!(outcome.kind(), io::ErrorKind::TimedOut);
    drop(connection);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn host_that_takes_all_it_can_keeps_nobody_else_out() {
    let home = tempfile::tempdir().unwrap();
    let stage = Stage::start(home.path(), |_| ()).await;
    // Four hosts of this machine take all seats and say nothing.
    let mut held = Vec::new();
    for host in 2..=5 {
        for _ in 0..70 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
            held.push(socket.connect(stage.running.address()).await.unwrap());
        }
    }
    assert!(stage.names().await.is_empty(), "the honest host is served");
    stage.stop().await;
}

#[tokio::test]
async fn words_of_a_panic_are_not_reported() {
    let task = tokio::spawn(async { panic!("what a client sent") });
    let running = Running { address: ([127, 0, 0, 1], 1).into(), key_id: KEYS[0].public_key().key_id(), task };
    let DirectoryError::Listener(why) = running.stopped().await.unwrap_err() else { panic!("another error") };
    assert_eq!(why.to_string(), "the service panicked");
}
