//! The POP3 server over real sockets: what Python's poplib sees, what strangers can do, who is let in when.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of which clippy does not see the tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mix::store::Db;
use pop_out::maildir::Maildirs;
use pop_out::maildrop::{self, Store};
use pop_out::pop3::{Accounts, Letter, Listed, Mailbox, MailboxError, Maildrops, Uidl};
use pop_out::server::{Limits, Server};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The mails that tell a right server from a wrong one, as stored and as sent.
const MAILS: [(&[u8], &[u8]); 6] = [
    (b"A: 1\r\n\r\nplain\r\n", b"A: 1\r\n\r\nplain\r\n"),
    (b"A: 1\r\n\r\n.\r\n..\r\n.dotted line\r\n.", b"A: 1\r\n\r\n.\r\n..\r\n.dotted line\r\n.\r\n"),
    (b"A: 1\n\nno final newline", b"A: 1\r\n\r\nno final newline\r\n"),
    (b"A: 1\r\n\r\n", b"A: 1\r\n\r\n"),
    (b"A: 1\r\n\r\nGr\xfc\xdfe \xff\r\n", b"A: 1\r\n\r\nGr\xfc\xdfe \xff\r\n"),
    (b"A: no body at all\r\n", b"A: no body at all\r\n"),
];

struct OnePassword;

impl Accounts for OnePassword {
    fn check(&self, user: &str, password: &str) -> bool {
        ["alice", "bob"].contains(&user) && password == "secret"
    }
}

/// A server under test; stopped when dropped.
struct Running {
    runtime: Option<Runtime>,
    stop: CancellationToken,
    served: Option<JoinHandle<()>>,
    address: SocketAddr,
}

fn limits() -> Limits {
    let (minute, no_time) = (Duration::from_secs(60), Duration::ZERO);
    Limits { idle_timeout: minute, login_timeout: minute, max_connections: 8, wrong_password_delay: no_time }
}

fn start<M: Maildrops>(maildrops: M, limits: Limits) -> Running {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = runtime.spawn(Server::new(OnePassword, maildrops, limits).serve(listener, stop.clone()));
    Running { runtime: Some(runtime), stop, served: Some(served), address }
}

impl Drop for Running {
    /// Hangs when the server does not stop.
    fn drop(&mut self) {
        self.stop.cancel();
        let (runtime, served) = (self.runtime.take().unwrap(), self.served.take().unwrap());
        let ended = runtime.block_on(served);
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// A client that speaks by hand.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(server: &Running) -> Self {
        let stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(BufReader::new(stream))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn say(&mut self, line: &str) -> String {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
        self.line()
    }

    fn log_in(server: &Running, user: &str) -> (Self, String) {
        let mut client = Self::connect(server);
        assert_eq!(client.line(), "+OK POP3 server ready\r\n");
        client.say(&format!("USER {user}"));
        let answer = client.say("PASS secret");
        (client, answer)
    }
}

/// Comes in once the connection before is seen to be gone.
fn log_in_after_loss(server: &Running, user: &str) -> Client {
    loop {
        let (client, answer) = Client::log_in(server, user);
        if answer.starts_with("+OK") {
            return client;
        }
        assert!(answer.starts_with("-ERR [IN-USE]"), "{answer}");
    }
}

fn fill(path: &Path) -> Db {
    let db = Db::open(path, &[maildrop::SCHEMA]).unwrap();
    for (number, (stored, _)) in MAILS.iter().enumerate() {
        let uidl = Uidl::parse(&format!("mail-{number}")).unwrap();
        db.write(move |tx| maildrop::add(tx, "alice", &uidl, &Letter::new(stored.to_vec()))).unwrap();
    }
    db
}

fn run_poplib(server: &Running) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client.py");
    let sent = MAILS.iter().map(|(_, sent)| sent.iter().map(|octet| format!("{octet:02x}")).collect::<String>());
    let output = Command::new("python3")
        .arg(script)
        .arg(server.address.port().to_string())
        .args(sent)
        .output()
        .expect("python3 runs: it is the client under test");
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, "done\n", "{wrong}");
}

#[test]
fn poplib_reads_and_removes_mail_from_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("private/db");
    let db = fill(&path);
    run_poplib(&start(Store::new(db.clone()), limits()));
    db.close();
    // What is left is left under the same names after a restart.
    let server = start(Store::new(Db::open(&path, &[maildrop::SCHEMA]).unwrap()), limits());
    let (mut client, _) = Client::log_in(&server, "alice");
    assert_eq!(client.say("UIDL 1"), "+OK 1 mail-1\r\n");
    assert_eq!(client.say("UIDL 2"), "+OK 2 mail-3\r\n");
}

#[test]
fn poplib_reads_and_removes_mail_from_a_maildir() {
    let folder = tempfile::tempdir().unwrap();
    let alice = folder.path().join("alice");
    for name in ["new", "cur"] {
        std::fs::create_dir_all(alice.join(name)).unwrap();
    }
    for (number, (stored, _)) in MAILS.iter().enumerate() {
        let name = if number % 2 == 0 {
            format!("new/170000000{number}.M.host")
        } else {
            format!("cur/170000000{number}.M.host:2,S")
        };
        std::fs::write(alice.join(name), stored).unwrap();
    }
    run_poplib(&start(Maildirs::new(folder.path()), limits()));
    let left =
        std::fs::read_dir(alice.join("new")).unwrap().count() + std::fs::read_dir(alice.join("cur")).unwrap().count();
    assert_eq!(left, 4);
}

#[test]
fn maildrop_is_for_one_session_and_free_after_quit_or_loss() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(Store::new(fill(&folder.path().join("private/db"))), limits());
    let (mut first, answer) = Client::log_in(&server, "alice");
    assert!(answer.starts_with("+OK"), "{answer}");
    let (mut second, answer) = Client::log_in(&server, "alice");
    assert_eq!(answer, "-ERR [IN-USE] another session has this maildrop\r\n");
    let (_bob, answer) = Client::log_in(&server, "bob");
    assert_eq!(answer, "+OK 0 messages (0 octets)\r\n");
    first.say("DELE 1");
    assert_eq!(first.say("QUIT"), "+OK bye\r\n");
    // At once: the maildrop was free before QUIT was answered.
    second.say("USER alice");
    assert!(second.say("PASS secret").starts_with("+OK 5 messages"));
    second.say("DELE 1");
    drop(second);
    let mut third = log_in_after_loss(&server, "alice");
    assert!(third.say("STAT").starts_with("+OK 5 "));
}

#[test]
fn silent_client_is_cut_off_and_removes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { idle_timeout: Duration::from_secs(1), ..limits() };
    let server = start(Store::new(fill(&folder.path().join("private/db"))), limits);
    let (mut silent, _) = Client::log_in(&server, "alice");
    silent.say("DELE 1");
    assert_eq!(silent.line(), "");
    let mut next = log_in_after_loss(&server, "alice");
    assert!(next.say("STAT").starts_with("+OK 6 "));
}

#[test]
fn client_that_does_not_log_in_is_cut_off_though_it_talks() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { login_timeout: Duration::from_secs(1), ..limits() };
    let server = start(Store::new(fill(&folder.path().join("private/db"))), limits);
    let mut stranger = Client::connect(&server);
    let (mut alice, _) = Client::log_in(&server, "alice");
    // Until the server closes, which the next line it is sent may answer with a reset.
    while stranger.0.get_mut().write_all(b"CAPA\r\n").is_ok() && stranger.0.read(&mut [0; 512]).is_ok_and(|len| len > 0)
    {
    }
    assert_eq!(alice.say("NOOP"), "+OK here\r\n");
}

#[test]
fn one_client_too_many_is_turned_away_and_served_later() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { max_connections: 1, ..limits() };
    let server = start(Store::new(fill(&folder.path().join("private/db"))), limits);
    let (mut first, _) = Client::log_in(&server, "alice");
    assert_eq!(Client::connect(&server).line(), "-ERR [SYS/TEMP] too many connections\r\n");
    first.say("QUIT");
    assert_eq!(first.line(), "");
    loop {
        let greeting = Client::connect(&server).line();
        if greeting == "+OK POP3 server ready\r\n" {
            break;
        }
        assert_eq!(greeting, "-ERR [SYS/TEMP] too many connections\r\n");
    }
}

#[test]
fn nonsense_ends_its_own_connection_only() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(Store::new(fill(&folder.path().join("private/db"))), limits());
    let (mut alice, _) = Client::log_in(&server, "alice");
    let noise: Vec<u8> = (0_u32..5000).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    for nonsense in [&noise[..], b"\x16\x03\x01\x02\x00\x01\x00", &[b'A'; 3000], b"USER al", b""] {
        let mut stranger = Client::connect(&server);
        stranger.line();
        // The server may close before it has read all of it.
        let _ = stranger.0.get_mut().write_all(nonsense);
        let _ = stranger.0.get_mut().shutdown(std::net::Shutdown::Write);
        let _ = stranger.0.read_to_end(&mut Vec::new());
    }
    assert_eq!(alice.say("NOOP"), "+OK here\r\n");
    assert!(Client::log_in(&server, "bob").1.starts_with("+OK"));
}

#[test]
fn pipelined_commands_are_answered_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(Store::new(fill(&folder.path().join("private/db"))), limits());
    let mut client = Client::connect(&server);
    let commands = b"USER alice\r\nPASS secret\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n";
    client.0.get_mut().write_all(commands).unwrap();
    let mut said = String::new();
    client.0.read_to_string(&mut said).unwrap();
    let answers = "+OK POP3 server ready\r\n+OK send PASS\r\n+OK 6 messages (117 octets)\r\n+OK 15 octets\r\n\
         A: 1\r\n\r\nplain\r\n.\r\n+OK message 1 goes when you quit\r\n+OK bye\r\n";
    assert_eq!(said, answers);
}

#[test]
fn stopping_server_closes_idle_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(Store::new(fill(&folder.path().join("private/db"))), limits());
    let (mut client, _) = Client::log_in(&server, "alice");
    drop(server);
    assert_eq!(client.line(), "");
}

/// A maildrop whose disk failed, or whose code did.
#[derive(Clone, Copy)]
struct Failing {
    listing: bool,
    panics: bool,
}

impl Maildrops for Failing {
    type Mailbox = Self;

    fn open(&self, _user: &str) -> Result<Self, MailboxError> {
        Ok(*self)
    }
}

impl Mailbox for Failing {
    fn list(&self) -> Result<Vec<Listed>, MailboxError> {
        let uidl = Uidl::parse("x").unwrap();
        if self.listing { Ok(vec![Listed { uidl, size: 1 }]) } else { self.fail() }
    }

    fn fetch(&self, _uidl: &Uidl) -> Result<Option<Letter>, MailboxError> {
        self.fail()
    }

    fn delete(&self, _uidls: &[Uidl]) -> Result<(), MailboxError> {
        self.fail()
    }
}

impl Failing {
    fn fail<T>(&self) -> Result<T, MailboxError> {
        assert!(!self.panics, "as the test demands");
        Err(MailboxError::Folder { path: "x".into(), source: std::io::ErrorKind::Other.into() })
    }
}

#[test]
fn failing_disk_is_a_temporary_error_and_never_an_empty_maildrop() {
    for panics in [false, true] {
        let server = start(Failing { listing: false, panics }, limits());
        assert_eq!(Client::log_in(&server, "alice").1, "-ERR [SYS/TEMP] the maildrop cannot be read now\r\n");
        // The claim went with the failure.
        assert_eq!(Client::log_in(&server, "alice").1, "-ERR [SYS/TEMP] the maildrop cannot be read now\r\n");
        let server = start(Failing { listing: true, panics }, limits());
        let (mut client, _) = Client::log_in(&server, "alice");
        assert_eq!(client.say("RETR 1"), "-ERR [SYS/TEMP] the message cannot be read now\r\n");
        client.say("DELE 1");
        assert_eq!(client.say("QUIT"), "-ERR [SYS/TEMP] some deleted messages not removed\r\n");
        assert!(Client::log_in(&server, "alice").1.starts_with("+OK 1 "));
    }
}
