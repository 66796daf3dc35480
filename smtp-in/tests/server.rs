//! The server over real sockets, with a real database.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mix::path::address::ExitAddress;
use mix::store::outbox::{self, Mail};
use mix::store::{Db, StoreError};
use smtp_in::{Accounts, Asked, Exits, House, NoExit, Outbox, Server, SmtpConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Network;

impl Exits for Network {
    fn accepts(&self, _: &str, to: &ExitAddress, Asked { len, attachments }: Asked) -> Result<(), NoExit> {
        let panics = matches!(to, ExitAddress::Smtp(mailbox) if mailbox.domain() == "panic.example");
        if attachments {
            return Err(NoExit::Attachments);
        }
        assert!(!panics || len == 0, "a mail that cannot be read");
        if len > 50_000 { Err(NoExit::TooLarge { limit: 50_000 }) } else { Ok(()) }
    }

    fn largest(&self) -> u64 {
        1 << 20
    }
}

struct Alice;

impl Accounts for Alice {
    fn check(&self, user: &str, password: &str) -> bool {
        assert!(user != "panic", "an account that cannot be looked up");
        user == "alice" && password == "sesame"
    }
}

/// An outbox on a full disk.
struct Full;

impl Outbox for Full {
    fn keep(&self, _: Vec<Mail>) -> Result<(), StoreError> {
        Err(StoreError::Full)
    }

    fn is_own(&self, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }
}

/// An outbox that never gets there.
struct Broken;

impl Outbox for Broken {
    fn keep(&self, mails: Vec<Mail>) -> Result<(), StoreError> {
        assert!(mails.is_empty(), "an outbox that panics");
        Ok(())
    }

    fn is_own(&self, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }
}

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn start(outbox: Arc<dyn Outbox>, change: fn(&mut SmtpConfig)) -> Running {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = SmtpConfig { listen: any.try_into().expect("loopback"), ..SmtpConfig::default() };
    change(&mut config);
    let house = House { exits: Arc::new(Network), accounts: Arc::new(Alice), outbox };
    let server = Server::bind(&config, house).await.expect("a free port");
    let (address, stop) = (server.address(), CancellationToken::new());
    let task = tokio::spawn(server.run(stop.clone()));
    Running { address, stop, task }
}

fn database(folder: &Path) -> Db {
    Db::open(&folder.join("private").join("gateway.db"), &[outbox::SCHEMA, outbox::IDS]).expect("a new database")
}

async fn waiting(db: &Db) -> Vec<Mail> {
    let db = db.clone();
    let read = move || db.read(|view| outbox::next(view, SystemTime::now(), 100));
    let waiting = tokio::task::spawn_blocking(read).await.expect("a read").expect("mails");
    waiting.into_iter().map(|waiting| waiting.mail).collect()
}

struct Client(TcpStream);

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let mut client = Self(TcpStream::connect(address).await.expect("a connection"));
        assert_eq!(client.hear().await, "220");
        client
    }

    async fn welcome(address: SocketAddr) -> Self {
        let mut client = Self::connect(address).await;
        assert_eq!(client.say("EHLO c").await, "250");
        assert_eq!(client.say("AUTH PLAIN AGFsaWNlAHNlc2FtZQ==").await, "235");
        client
    }

    /// The code of the next reply; nothing when the connection is closed.
    async fn hear(&mut self) -> String {
        let mut heard = Vec::new();
        let ended = |heard: &[u8]| {
            let mut lines = heard.split_inclusive(|&octet| octet == b'\n');
            lines.next_back().is_some_and(|line| line.ends_with(b"\n") && line.get(3) == Some(&b' '))
        };
        while !ended(&heard) {
            match self.0.read_u8().await {
                Ok(octet) => heard.push(octet),
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(heard.get(..3).unwrap_or_default()).into_owned()
    }

    async fn say(&mut self, line: &str) -> String {
        self.0.write_all(format!("{line}\r\n").as_bytes()).await.expect("sent");
        self.hear().await
    }

    async fn mail(&mut self, text: &str) -> String {
        assert_eq!(self.say("MAIL FROM:<>").await, "250");
        assert_eq!(self.say("RCPT TO:<bob@example.org>").await, "250");
        assert_eq!(self.say("RCPT TO:<frida@gamma.mbox.alt>").await, "250");
        assert_eq!(self.say("DATA").await, "354");
        self.say(&format!("{text}\r\n.")).await
    }
}

#[tokio::test]
async fn mail_is_in_the_outbox_when_the_client_hears_250() {
    let folder = tempfile::tempdir().expect("a folder");
    let db = database(folder.path());
    let server = start(Arc::new(db.clone()), |_| {}).await;
    let mut client = Client::welcome(server.address).await;
    assert_eq!(client.mail("From: Alice <alice@example.net>\r\nSubject: x\r\n\r\nhi").await, "250");
    let mails = waiting(&db).await;
    assert_eq!(mails.len(), 2);
    for mail in &mails {
        assert_eq!(&*mail.message, b"FROM:Alice\nSUBJECT:x\n\nhi\n");
        assert_eq!((mail.identity.as_str(), mail.reply_blocks), ("alice", 1));
    }
    assert_eq!(mails[1].exit.via.as_deref(), Some("gamma"));
    // And after the process is gone.
    assert_eq!(client.say("QUIT").await, "221");
    server.stop.cancel();
    server.task.await.expect("stopped");
    db.close();
    assert_eq!(waiting(&database(folder.path())).await.len(), 2);
}

#[tokio::test]
async fn mail_that_is_not_stored_is_not_accepted() {
    let server = start(Arc::new(Full), |_| {}).await;
    let mut client = Client::welcome(server.address).await;
    assert_eq!(client.mail("\r\nhi").await, "452");
    assert_eq!(client.say("NOOP").await, "250");
    let server = start(Arc::new(Broken), |_| {}).await;
    let mut client = Client::welcome(server.address).await;
    assert_eq!(client.mail("\r\nhi").await, "451");
    assert_eq!(client.mail("\r\nhi").await, "451");
}

#[tokio::test]
async fn mail_that_makes_its_reader_panic_is_refused_for_good() {
    let server = start(Arc::new(Full), |_| {}).await;
    let mut client = Client::welcome(server.address).await;
    assert_eq!(client.say("MAIL FROM:<>").await, "250");
    assert_eq!(client.say("RCPT TO:<bob@panic.example>").await, "250");
    assert_eq!(client.say("DATA").await, "354");
    assert_eq!(client.say("\r\nhi\r\n.").await, "554");
    assert_eq!(client.say("NOOP").await, "250");
}

#[tokio::test]
async fn mail_that_cannot_travel_is_refused_and_not_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let db = database(folder.path());
    let server = start(Arc::new(db.clone()), |_| {}).await;
    let mut client = Client::welcome(server.address).await;
    assert_eq!(client.mail("Content-Type: image/png\r\n\r\nx").await, "554");
    assert_eq!(client.mail(&format!("\r\n{}", "word word\r\n".repeat(6000))).await, "552");
    assert!(waiting(&db).await.is_empty());
    assert_eq!(client.mail("\r\nhi").await, "250");
}

#[tokio::test]
async fn account_that_cannot_be_looked_up_is_nobodys_guess() {
    let server = start(Arc::new(Full), |_| {}).await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(client.say("EHLO c").await, "250");
    assert_eq!(client.say("AUTH PLAIN AHBhbmljAHg=").await, "454");
    assert_eq!(client.say("AUTH PLAIN AGFsaWNlAHNlc2FtZQ==").await, "235");
}

#[tokio::test]
async fn garbage_ends_in_an_error_and_others_are_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(Arc::new(database(folder.path())), |_| {}).await;
    let mut other = Client::welcome(server.address).await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        &[0; 100_000],
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100),
        b"EHLO c\r\nMAIL FROM:<",
    ] {
        let mut client = Client::connect(server.address).await;
        client.0.write_all(garbage).await.expect("sent");
        client.0.shutdown().await.expect("shut");
        let mut heard = Vec::new();
        client.0.read_to_end(&mut heard).await.expect("closed in order");
        assert!(heard.is_empty() || heard.starts_with(b"5") || heard.starts_with(b"250"), "{heard:?}");
        assert_eq!(other.say("NOOP").await, "250");
    }
    assert_eq!(other.mail("\r\nhi").await, "250");
}

#[tokio::test]
async fn client_that_hangs_up_in_the_middle_of_a_mail_has_sent_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let db = database(folder.path());
    let server = start(Arc::new(db.clone()), |_| {}).await;
    let mut client = Client::welcome(server.address).await;
    client.0.write_all(b"MAIL FROM:<>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nhi\r\n.\r").await.expect("sent");
    drop(client);
    server.stop.cancel();
    server.task.await.expect("stopped");
    assert!(waiting(&db).await.is_empty());
}

#[tokio::test]
async fn one_client_too_many_is_told_to_come_again() {
    let server = start(Arc::new(Full), |config| config.max_connections = 1).await;
    let mut first = Client::connect(server.address).await;
    let mut second = Client(TcpStream::connect(server.address).await.expect("a connection"));
    assert_eq!(second.hear().await, "421");
    assert_eq!(second.hear().await, "");
    assert_eq!(first.say("QUIT").await, "221");
    assert_eq!(first.hear().await, "");
    // The place is free as soon as the server has seen us go.
    drop(first);
    let mut code = String::new();
    while code != "220" {
        code = Client(TcpStream::connect(server.address).await.expect("a connection")).hear().await;
        assert!(code == "220" || code == "421", "{code}");
    }
}

#[tokio::test]
async fn silent_client_is_sent_away() {
    let server = start(Arc::new(Full), |config| config.idle_timeout = Duration::from_secs(1)).await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(client.hear().await, "421");
    assert_eq!(client.hear().await, "");
}

#[tokio::test(start_paused = true)]
async fn client_that_does_not_say_who_it_is_is_sent_away_in_a_minute() {
    let server = start(Arc::new(Full), |_| {}).await;
    let began = tokio::time::Instant::now();
    let mut stranger = Client::connect(server.address).await;
    assert_eq!(stranger.hear().await, "421");
    assert_eq!(began.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn client_that_reads_nothing_does_not_hold_up_the_end() {
    let server = start(Arc::new(Full), |_| {}).await;
    let client = Client::welcome(server.address).await;
    // Until the server takes no more, since its answers are not taken.
    let help = b"HELP\r\n".repeat(1000);
    let pushed = async {
        loop {
            client.0.writable().await.expect("a connection");
            match client.0.try_write(&help) {
                Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(3), pushed).await;
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(30), server.task).await.expect("in time").expect("stopped");
}

#[tokio::test]
async fn client_that_stays_too_long_is_sent_away_though_it_talks() {
    let server = start(Arc::new(Full), |config| config.session_timeout = Duration::from_secs(1)).await;
    let mut client = Client::connect(server.address).await;
    let mut code = "250".to_owned();
    while code == "250" {
        code = client.say("NOOP").await;
    }
    assert_eq!(code, "421");
}

#[tokio::test]
async fn server_that_stops_says_so() {
    let server = start(Arc::new(Full), |_| {}).await;
    let mut client = Client::welcome(server.address).await;
    server.stop.cancel();
    assert_eq!(client.hear().await, "421");
    drop(client);
    server.task.await.expect("stopped");
    assert!(TcpStream::connect(server.address).await.is_err());
}
