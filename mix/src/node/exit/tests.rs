use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::task::JoinSet;

use super::*;
use crate::crypto::stream::{StreamKey, prng};
use crate::deliver::mail::MailConfig;
use crate::deliver::mbox::{LocalMailboxes, NotDelivered};
use crate::deliver::smtp::{SmtpExit, SmtpExitConfig};
use crate::node::retry::RetryStep;
use crate::packet::build::Exit;
use crate::packet::{Handle, Payload};
use crate::payload::compress::compress;
use crate::payload::entity::{File, FileType};
use crate::payload::{Capacity, encode};
use crate::store::NODE_SCHEMAS;
use crate::store::queue::pool::{self, PoolItem};

mod apart;
mod hostile;
mod hostile_fragments;
mod kept;
mod limits;
mod mailboxes;
mod policies;
mod proof;
mod ways;

/// What the mailbox of `frida` got, each with its delivery key.
#[derive(Default)]
struct Recorder(Mutex<Vec<(Digest, Arrival)>>);

impl LocalMailboxes<Arrival> for Recorder {
    fn has(&self, name: &str) -> bool {
        name == "frida"
    }

    fn deliver(&self, name: &str, key: &Digest, arrival: &Arrival) -> Result<(), NotDelivered> {
        if name != "frida" {
            return Err(NotDelivered::UnknownName);
        }
        self.0.lock().unwrap().push((*key, arrival.clone()));
        Ok(())
    }
}

impl Recorder {
    fn messages(&self) -> Vec<Vec<u8>> {
        let arrived = self.0.lock().unwrap();
        let message = |arrival: &Arrival| match arrival {
            Arrival::Message(message) => message.clone(),
            Arrival::Payload { .. } => panic!("a payload"),
        };
        arrived.iter().map(|(_, arrival)| message(arrival)).collect()
    }
}

struct Exited {
    service: ExitService,
    mailbox: Arc<Recorder>,
    _home: tempfile::TempDir,
}

fn ways(mailboxes: Arc<dyn LocalMailboxes<Arrival>>, max_size: u64) -> watch::Receiver<Ways> {
    let fragments = FragmentsConfig { enabled: true, max_size: 200_000, ..FragmentsConfig::default() };
    let mbox = Some(Arc::new(MboxWay { mailboxes: Some(mailboxes), max_size, elsewhere: None }));
    watch::channel(Ways { smtp: None, smtp_retry: RetrySchedule::new(Vec::new()), mbox, fragments }).1
}

fn exit() -> Exited {
    let home = tempfile::tempdir().unwrap();
    let mailbox = Arc::new(Recorder::default());
    let service = ExitService {
        db: Db::open(&home.path().join("node/node.db"), &NODE_SCHEMAS).unwrap(),
        bell: watch::Sender::default(),
        counters: Counters::default(),
        world: World::real(),
        even: Even::set(SystemTime::now()),
        stop: CancellationToken::new(),
        ways: ways(mailbox.clone(), 100_000),
        server: Arc::default(),
        domains: Arc::new(Mutex::new(Domains::new(&mut World::real().dice()))),
        limits: Arc::new(Mutex::new(Limits::new(&mut World::real().dice()))),
        over_limits: OverLimits::default(),
        earlier: Arc::default(),
        dropping: Arc::default(),
        under_way: Arc::default(),
        being_tried: Arc::default(),
        word: Word::default(),
        some_ready: Arc::default(),
    };
    Exited { service, mailbox, _home: home }
}

impl ExitService {
    /// One try of each, beside each other.
    async fn deliver_all(&self, due: Vec<ExitItem>) {
        let mut deliveries = JoinSet::new();
        for item in due {
            let this = self.clone();
            deliveries.spawn(async move { this.deliver(item).await });
        }
        deliveries.join_all().await;
    }
}

impl Exited {
    fn queue(&self, exit_type: RoutingType, name: &str, message: &[u8]) {
        let (name, compressed) = (name.as_bytes().to_vec(), compress(message));
        let queued = move |tx: &Tx<'_>| queue::insert_message(tx, exit_type, &name, &compressed);
        self.service.db.write(queued).unwrap();
    }

    fn queue_payload(&self, exit_type: RoutingType, handle: Option<Handle>, payload: Payload) {
        let item = PoolItem::Deliver { exit_type, address: Vec::new(), handle, payload };
        let step = move |tx: &Tx<'_>| {
            let id = pool::insert(tx, &item)?;
            pool::release(tx, &[id], None)
        };
        self.service.db.write(step).unwrap();
    }

    fn due(&self) -> Vec<ExitItem> {
        let now = self.service.world.now();
        self.service.db.read(|view| queue::due(view, now, 1000)).unwrap()
    }

    async fn deliver_all(&self) {
        while !self.due().is_empty() {
            self.service.deliver_all(self.due()).await;
            self.service.reassemble_ready().await;
        }
    }
}

/// How the mail server of a test behaves. It counts who connects.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    /// Takes connections and says nothing.
    Hangs,
    /// Says nothing any more where the mail itself is to come.
    HangsInData,
    /// Says that it has too much to do.
    Busy,
    /// Is gone when it hears of a recipient.
    HangsUp,
    /// Wants a login first.
    Locked,
    /// Takes all mail, but that for `grey`, whom it refuses for now, and never says so for `slow`.
    Takes,
}

impl Server {
    async fn serve(self, stream: tokio::net::TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let greeting = match self {
            Self::Hangs => return std::future::pending().await,
            Self::Busy => "421 too busy",
            Self::HangsInData | Self::HangsUp | Self::Locked | Self::Takes => "220 hello",
        };
        stream.write_all(format!("{greeting}\r\n").as_bytes()).await?;
        let (mut line, mut in_data) = (String::new(), false);
        while stream.read_line(&mut line).await? > 0 {
            if line.starts_with("RCPT") && line.contains("slow") {
                return std::future::pending().await;
            }
            if self == Self::HangsUp && line.starts_with("RCPT") {
                return Ok(());
            }
            let answer = match line.split_ascii_whitespace().next().unwrap_or_default() {
                "." => "250 taken",
                _ if in_data => "",
                "MAIL" if self == Self::Locked => "530 authentication required",
                "DATA" => "354 go on",
                "RCPT" if line.contains("grey") => "450 later",
                _ => "250 ok",
            };
            in_data = (in_data || line.starts_with("DATA")) && !line.starts_with(".\r");
            if self == Self::HangsInData && answer == "250 taken" {
                return std::future::pending().await;
            }
            if !answer.is_empty() {
                stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
            }
            line.clear();
        }
        Ok(())
    }
}

/// An exit whose mail server is at hand, and how often that was called.
async fn exit_to(server: Server) -> (Exited, Arc<AtomicUsize>) {
    exit_by(server, |_| {}).await
}

/// As [`exit_to`], by a way that is changed like this.
async fn exit_by(server: Server, change: impl FnOnce(&mut SmtpWay)) -> (Exited, Arc<AtomicUsize>) {
    let mut exited = exit();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(server.serve(stream));
        }
    });
    let mut way = smtp_way(1000, 0);
    let hour = Duration::from_secs(3600);
    way.retry = RetrySchedule::new(vec![RetryStep { every: hour, during: 3 * hour }]);
    let config = SmtpExitConfig { port, ..SmtpExitConfig::default() };
    way.out = WayOut::SmartHost(Box::new(SmtpExit::new(&config, way.writer.return_address()).unwrap()));
    change(&mut way);
    let (ways, smtp_retry) = (exited.service.ways.borrow().clone(), way.retry.clone());
    exited.service.ways = watch::channel(Ways { smtp: Some(Arc::new(way)), smtp_retry, ..ways }).1;
    (exited, calls)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let poll = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::node::testing::PATIENCE, poll).await.unwrap_or_else(|_| panic!("never: {what}"));
}

impl Exited {
    fn attempts(&self) -> Vec<u32> {
        let all = SystemTime::now() + Duration::from_secs(30 * 24 * 3600);
        let due = self.service.db.read(|view| queue::due(view, all, 1000)).unwrap();
        due.iter().map(|item| item.attempts).collect()
    }

    fn ring(&self) {
        self.service.bell.send_replace(());
    }
}

#[tokio::test]
async fn stop_does_not_wait_for_a_mail_server_that_has_been_given_nothing() {
    let (exited, calls) = exit_to(Server::Hangs).await;
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    let service = tokio::spawn(exited.service.clone().run());
    until("a call at the mail server", || calls.load(Ordering::Relaxed) > 0).await;
    exited.service.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), service).await.expect("at once").unwrap();
    assert_eq!(exited.attempts(), [0], "it is tried again, as if it had not been");
}

#[tokio::test]
async fn mail_that_is_being_handed_over_at_the_stop_is_waited_for() {
    let (exited, _) = exit_to(Server::HangsInData).await;
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    let (due, service) = (exited.due(), exited.service.clone());
    let delivery = tokio::spawn(async move { service.deliver_all(due).await });
    // Long enough for it to be at the mail, and of no consequence if not.
    tokio::time::sleep(Duration::from_millis(300)).await;
    exited.service.stop.cancel();
    let ended = tokio::time::timeout(GRACE / 10, delivery).await;
    assert!(ended.is_err(), "its answer may come");
}

#[tokio::test]
async fn mail_server_that_hangs_holds_up_mail_alone() {
    let (exited, calls) = exit_to(Server::Hangs).await;
    for _ in 0..3 * LOAD {
        exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    }
    exited.queue(RoutingType::MBOX, "frida", b"\ntext");
    let service = tokio::spawn(exited.service.clone().run());
    until("a call at the mail server", || calls.load(Ordering::Relaxed) > 0).await;
    until("mail for frida", || exited.mailbox.messages().len() == 1).await;
    exited.queue(RoutingType::MBOX, "frida", b"\nmore");
    exited.ring();
    until("more mail for frida", || exited.mailbox.messages().len() == 2).await;
    exited.service.stop.cancel();
    service.await.unwrap();
}

#[tokio::test]
async fn recipient_whose_mail_takes_long_holds_one_place_and_no_other_mail() {
    let (exited, _) = exit_to(Server::Takes).await;
    for _ in 1..DELIVERIES {
        exited.queue(RoutingType::SMTP, "slow@example.org", b"\ntext");
    }
    for _ in 0..3 * LOAD {
        exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    }
    let service = tokio::spawn(exited.service.clone().run());
    until("all other mail", || exited.attempts().len() == DELIVERIES - 1).await;
    // And what comes while they wait.
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\nmore");
    exited.ring();
    until("one more", || exited.attempts().len() == DELIVERIES - 1).await;
    exited.service.stop.cancel();
    service.await.unwrap();
}

#[tokio::test]
async fn mail_server_that_is_away_puts_off_all_mail_and_no_other() {
    let (exited, calls) = exit_to(Server::Busy).await;
    for _ in 0..3 * LOAD {
        exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    }
    let service = tokio::spawn(exited.service.clone().run());
    until("one failure for all", || exited.attempts().iter().all(|attempts| *attempts == 1)).await;
    let before = calls.load(Ordering::Relaxed);
    assert!(before <= DELIVERIES, "{before}");
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\nlater");
    exited.queue(RoutingType::MBOX, "frida", b"\ntext");
    exited.ring();
    until("mail for frida", || exited.mailbox.messages().len() == 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(calls.load(Ordering::Relaxed), before, "what comes later waits with the others");
    exited.service.stop.cancel();
    service.await.unwrap();
}

/// An exit with two mails, of which the first is under way when the second finds the server away; and what that answers when
/// it is let go on.
async fn under_way_meanwhile(answer: &'static str) -> Exited {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (exited, _) = exit_by(Server::Takes, |way| {
        let config = SmtpExitConfig { port, ..SmtpExitConfig::default() };
        way.out = WayOut::SmartHost(Box::new(SmtpExit::new(&config, way.writer.return_address()).unwrap()));
    })
    .await;
    let (first, others) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let (asked, go_on) = (Arc::clone(&first), Arc::clone(&others));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            stream.write_all(b"220 hello\r\n").await?;
            let mut line = String::new();
            while stream.read_line(&mut line).await? > 0 {
                let is_recipient = line.starts_with("RCPT");
                if is_recipient {
                    asked.fetch_add(1, Ordering::Relaxed);
                    go_on.notified().await;
                }
                let answer = if is_recipient { answer } else { "250 ok" };
                stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
                line.clear();
            }
            Ok::<(), std::io::Error>(())
        });
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(Server::Busy.serve(stream));
        }
    });
    exited.queue(RoutingType::SMTP, "ann@example.org", b"\ntext");
    let (due, service) = (exited.due(), exited.service.clone());
    let delivery = tokio::spawn(async move { service.deliver_all(due).await });
    until("the first is under way", || first.load(Ordering::Relaxed) == 1).await;
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    exited.queue(RoutingType::SMTP, "eve@example.org", b"\ntext");
    exited.service.deliver(exited.due().remove(1)).await;
    others.notify_one();
    delivery.await.unwrap();
    exited
}

#[tokio::test]
async fn mail_under_way_loses_one_try_when_another_finds_the_server_away_meanwhile() {
    // Put off by itself, or found away too: the connection ends without an answer.
    for answer in ["450 later", "421 too busy"] {
        let exited = under_way_meanwhile(answer).await;
        assert_eq!(exited.attempts(), [1, 1, 1], "{answer}");
        assert!(exited.due().is_empty() && exited.service.being_tried().is_empty(), "{answer}");
    }
}

#[tokio::test]
async fn mail_waits_until_the_login_is_mended_and_the_operator_is_told_once() {
    let (exited, _) = exit_to(Server::Locked).await;
    for _ in 0..LOAD {
        exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    }
    let service = tokio::spawn(exited.service.clone().run());
    until("one failure for all", || exited.attempts() == [1; LOAD]).await;
    assert!(exited.service.server().told.as_ref().is_some_and(|told| told.starts_with("node.smtp.server.user: ")));
    exited.service.stop.cancel();
    service.await.unwrap();
    let mut server = MailServer::default();
    assert!(server.tells("login"));
    assert!(!server.tells("login"), "it was said");
    assert!(server.tells("folder"), "something else");
    server.is_there();
    assert!(server.tells("folder"), "it had worked again");
}

#[tokio::test]
async fn mail_that_waits_for_a_server_is_tried_at_once_when_it_is_another_and_no_sooner() {
    let (mut exited, calls) = exit_to(Server::Busy).await;
    let (change, ways) = watch::channel(exited.service.ways.borrow().clone());
    exited.service.ways = ways;
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    let service = tokio::spawn(exited.service.clone().run());
    until("a failure", || exited.attempts() == [1]).await;
    let before = calls.load(Ordering::Relaxed);
    change.send_modify(|ways| ways.smtp_retry = RetrySchedule::every_minute_for_a_day());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(calls.load(Ordering::Relaxed), before, "it is the same server");
    let (other, _) = exit_to(Server::Takes).await;
    change.send_modify(|ways| ways.smtp.clone_from(&other.service.ways.borrow().smtp));
    until("mail for bob", || exited.service.counters.snapshot().delivered == 1).await;
    exited.service.stop.cancel();
    service.await.unwrap();
}

#[tokio::test]
async fn what_comes_while_its_delivery_is_off_waits_until_it_is_on() {
    let (mut exited, _) = exit_to(Server::Takes).await;
    let on = exited.service.ways.borrow().clone();
    let fragments = FragmentsConfig { enabled: false, ..on.fragments.clone() };
    let smtp_retry = on.smtp.as_ref().unwrap().retry.clone();
    exited.service.ways = watch::channel(Ways { smtp: None, smtp_retry, mbox: None, fragments }).1;
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    exited.queue(RoutingType::MBOX, "frida", b"\ntext");
    exited.queue_payload(RoutingType::FRAGMENT, None, Payload::random(&mut exited.service.world.dice()));
    exited.deliver_all().await;
    assert_eq!(exited.attempts(), [1, 1, 1]);
    assert_eq!(exited.service.counters.snapshot().undeliverable, 0);
    exited.service.ways = watch::channel(on).1;
    let later = SystemTime::now() + Duration::from_secs(2 * 3600);
    let due = exited.service.db.read(|view| queue::due(view, later, 10)).unwrap();
    exited.service.deliver_all(due).await;
    let counts = exited.service.counters.snapshot();
    assert_eq!((counts.delivered, counts.undeliverable), (2, 1), "the noise was no fragment");
}

#[tokio::test]
async fn strangers_fill_no_disk_with_what_there_is_no_way_for() {
    let (mut exited, _) = exit_to(Server::Takes).await;
    let on = exited.service.ways.borrow().clone();
    let (fragments, smtp_retry) = (on.fragments.clone(), on.smtp.as_ref().unwrap().retry.clone());
    exited.service.ways = watch::channel(Ways { smtp: None, smtp_retry, mbox: None, fragments }).1;
    for _ in 0..WAITING + 7 {
        exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
        exited.queue(RoutingType::MBOX, "frida", b"\ntext");
    }
    let later = SystemTime::now() + Duration::from_secs(2 * 3600);
    for item in exited.service.db.read(|view| queue::due(view, later, 1000)).unwrap() {
        exited.service.deliver(item).await;
    }
    let left = |exit_type| exited.service.db.read(|view| queue::count_of(view, exit_type, 1000)).unwrap();
    assert_eq!((left(RoutingType::SMTP), left(RoutingType::MBOX)), (WAITING, WAITING));
    assert_eq!(exited.service.counters.snapshot().undeliverable, 14);
}

#[tokio::test]
async fn recipient_who_is_refused_for_now_puts_off_nobody_else() {
    let (exited, _) = exit_to(Server::Takes).await;
    exited.queue(RoutingType::SMTP, "grey@example.org", b"\ntext");
    let service = tokio::spawn(exited.service.clone().run());
    until("a failure", || exited.attempts() == [1]).await;
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    exited.ring();
    until("mail for bob", || exited.service.counters.snapshot().delivered == 1).await;
    exited.service.stop.cancel();
    service.await.unwrap();
    assert_eq!(exited.attempts(), [1]);
}

#[tokio::test]
async fn same_text_sent_twice_arrives_twice_under_two_keys() {
    let exited = exit();
    exited.queue(RoutingType::MBOX, "frida", b"\nsame");
    exited.queue(RoutingType::MBOX, "frida", b"\nsame");
    exited.deliver_all().await;
    let arrived = exited.mailbox.0.lock().unwrap();
    assert_eq!(arrived.len(), 2);
    assert_ne!(arrived[0].0, arrived[1].0, "the second would be taken for the first, tried again");
}

#[tokio::test]
async fn delivery_tried_again_has_the_key_of_the_first_try() {
    let exited = exit();
    exited.queue(RoutingType::MBOX, "frida", b"\ntext");
    let due = || exited.due().remove(0);
    assert_eq!(delivery_key(&due()), delivery_key(&due()));
}

#[tokio::test]
async fn message_for_nobody_is_dropped_and_counted() {
    let exited = exit();
    exited.queue(RoutingType::MBOX, "nobody", b"\ntext");
    exited.queue(RoutingType::SMTP, "frida@example.org", b"\nno mail server is configured");
    exited.queue(RoutingType(0x1234), "frida", b"\nno such exit type");
    exited.deliver_all().await;
    assert_eq!(exited.service.counters.snapshot().undeliverable, 3);
    assert_eq!(exited.mailbox.messages(), Vec::<Vec<u8>>::new());
}

#[tokio::test]
async fn message_larger_than_the_mailbox_takes_is_dropped() {
    let exited = exit();
    exited.queue(RoutingType::MBOX, "frida", &[b'a'; 100_001]);
    exited.queue(RoutingType::MBOX, "frida", &[b'a'; 100_000]);
    exited.deliver_all().await;
    assert_eq!(exited.mailbox.messages(), vec![vec![b'a'; 100_000]]);
    assert_eq!(exited.service.counters.snapshot().undeliverable, 1);
}

#[tokio::test]
async fn fragments_in_any_order_become_one_message() {
    let exited = exit();
    let mut dice = exited.service.world.dice();
    let noise = Payload::random(&mut dice);
    let message = [b"\n", &noise.as_bytes()[..], &noise.as_bytes()[..], b"end"].concat();
    let frida = Exit { exit_type: RoutingType::MBOX, address: b"frida".to_vec() };
    let payloads = encode::encode(&message, Capacity::Plain, Some(&frida), &mut dice).unwrap();
    assert!(payloads.len() > 2);
    for payload in payloads.into_iter().rev() {
        exited.queue_payload(RoutingType::FRAGMENT, None, payload.into_payload().unwrap());
    }
    exited.deliver_all().await;
    assert_eq!(exited.mailbox.messages(), vec![message]);
}

/// A message of noise of so many octets as fragments, and what is left of the exit queue when they are delivered.
async fn fragmented(exited: &Exited, len: usize) -> Vec<Vec<u8>> {
    let mut dice = exited.service.world.dice();
    let mut message = vec![b'\n'; len];
    dice.fill_bytes(&mut message[1..]);
    let frida = Exit { exit_type: RoutingType::MBOX, address: b"frida".to_vec() };
    for payload in encode::encode(&message, Capacity::Plain, Some(&frida), &mut dice).unwrap() {
        exited.queue_payload(RoutingType::FRAGMENT, None, payload.into_payload().unwrap());
    }
    exited.deliver_all().await;
    exited.mailbox.messages()
}

#[tokio::test]
async fn exit_puts_together_as_many_fragments_as_its_descriptor_says() {
    let mut exited = exit();
    exited.service.ways = ways(exited.mailbox.clone(), 1 << 20);
    // The limit of 200,000 octets is seven blocks, cut as eight: eleven fragments, and so is what is a little longer.
    assert_eq!(fragmented(&exited, 220_000).await.len(), 1);
    assert_eq!(fragmented(&exited, 230_000).await.len(), 1, "sixteen blocks: beyond what the descriptor says");
}

#[tokio::test]
async fn payload_that_is_no_fragment_is_dropped_where_fragments_are_expected() {
    let exited = exit();
    let payload = Payload::random(&mut exited.service.world.dice());
    exited.queue_payload(RoutingType::FRAGMENT, None, payload);
    exited.deliver_all().await;
    assert_eq!(exited.service.counters.snapshot().undeliverable, 1);
}

#[tokio::test]
async fn fragment_with_an_address_is_dropped_as_by_the_reference() {
    let exited = exit();
    let body = prng(&StreamKey::new([3; 16]), 60_000);
    let exit = Exit { exit_type: RoutingType::MBOX, address: b"frida".to_vec() };
    let payloads = encode::encode(&body, Capacity::Plain, Some(&exit), &mut exited.service.world.dice()).unwrap();
    let count = payloads.len() as u64;
    for payload in payloads {
        let (exit_type, payload) = (RoutingType::FRAGMENT, Payload::from_bytes(payload.as_bytes()).unwrap());
        let item = PoolItem::Deliver { exit_type, address: b"frida".to_vec(), handle: None, payload };
        let step = move |tx: &Tx<'_>| pool::insert(tx, &item).and_then(|id| pool::release(tx, &[id], None));
        exited.service.db.write(step).unwrap();
    }
    exited.deliver_all().await;
    assert_eq!(exited.mailbox.messages(), [b""; 0]);
    assert_eq!(exited.service.counters.snapshot().undeliverable, count);
}

fn smtp_way(max_size: u64, inflate_max: u64) -> SmtpWay {
    let mail = MailConfig { return_address: Mailbox::parse("nobody@exit.example").ok(), ..MailConfig::default() };
    let writer = MailWriter::new(mail).unwrap();
    let out = WayOut::SmartHost(Box::new(SmtpExit::new(&SmtpExitConfig::default(), writer.return_address()).unwrap()));
    let message_ids = MessageIds(Arc::new(Secret::new([7; DIGEST_LEN])));
    let (retry, refusals, limits) = (RetrySchedule::new(Vec::new()), Refusals::default(), LimitsConfig::none());
    let proof_address = writer.return_address().clone();
    SmtpWay {
        writer,
        out,
        proof_address,
        max_size,
        mime: None,
        inflate_max,
        retry,
        message_ids,
        refusals,
        limits,
        dkim: None,
    }
}

fn written(way: &SmtpWay, len: usize) -> Option<String> {
    let message = [b"\n".to_vec(), b"aaaaaaaa\n".repeat(len / 9)].concat();
    let to = Mailbox::parse("bob@example.org").unwrap();
    let world = World::real();
    let mail = write_mail(way, &to, Queued::Message(compress(&message)), world.now(), &mut world.dice())?;
    Some(String::from_utf8(mail).unwrap())
}

#[tokio::test]
async fn mail_handed_over_twice_has_one_message_id_and_another_mail_has_another() {
    let exited = exit();
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\nsame");
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\nsame");
    let (way, now) = (smtp_way(1000, 0), exited.service.world.now());
    let ids = || {
        let written = |item: ExitItem| {
            let to = Mailbox::parse("bob@example.org").unwrap();
            let mut dice = way.message_ids.dice(&delivery_key(&item));
            String::from_utf8(write_mail(&way, &to, item.content, now, &mut dice).unwrap()).unwrap()
        };
        let id = |mail: String| mail.lines().find(|line| line.starts_with("Message-ID:")).map(str::to_owned).unwrap();
        exited.due().into_iter().map(written).map(id).collect::<Vec<_>>()
    };
    let first = ids();
    assert_eq!(first, ids());
    assert_ne!(first[0], first[1]);
}

#[test]
fn overcompressed_message_is_text_up_to_the_limit_and_armour_beyond() {
    let way = smtp_way(1 << 20, 100_000);
    assert!(written(&way, 90_000).unwrap().contains("\r\naaaaaaaa\r\n"));
    assert!(written(&way, 110_000).unwrap().contains("Message-type: overcompressed"));
}

#[test]
fn message_larger_than_the_exit_takes_is_dropped() {
    let way = smtp_way(100_000, u64::MAX);
    assert!(written(&way, 100_000).is_some());
    assert_eq!(written(&way, 110_000), None);
    assert_eq!(written(&way, 30_000_000), None);
}

/// A message with an attachment, as an exit that takes so much of them writes it.
fn attached(mime: Option<u64>, change: impl FnOnce(String) -> String) -> Option<String> {
    let file = File::new(FileType::named("image/png").unwrap(), b"a picture".to_vec());
    let entity = Entity::new("text\n".to_owned(), vec![file]).unwrap();
    let message = String::from_utf8(entity.message(MessageHeaders::default()).unwrap()).unwrap();
    let (to, world) = (Mailbox::parse("bob@example.org").unwrap(), World::real());
    let queued = Queued::Message(compress(change(message).as_bytes()));
    let way = SmtpWay { mime, ..smtp_way(1000, 0) };
    let mail = write_mail(&way, &to, queued, world.now(), &mut world.dice())?;
    Some(String::from_utf8(mail).unwrap())
}

#[test]
fn attachments_are_delivered_where_the_exit_says_so_and_are_text_elsewhere() {
    let same = |message| message;
    let mail = attached(Some(2000), same).unwrap();
    assert!(mail.contains("filename=\"attachment-1.png\"") && mail.contains("\r\nYSBwaWN0dXJl\r\n"), "{mail}");
    let text = attached(None, same).unwrap();
    assert!(
        text.contains("\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n--=_")
    );
    assert!(!text.contains("CONTENT-TYPE") && text.contains("\r\ntext\r\n"), "{text}");
    let beyond = attached(Some(100), same).unwrap();
    assert!(beyond.contains("Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n--=_"));
}

#[test]
fn attachments_that_are_none_come_as_text_with_an_explanation() {
    let mail = attached(Some(2000), |message| message.replace("attachment\n", "attachment; filename=x\n")).unwrap();
    let (_, body) = mail.split_once("\r\n\r\n").unwrap();
    assert!(body.starts_with("The message below was to bring attachments"), "{body}");
    assert!(body.contains("filename=x\r\n") && !mail.contains("attachment-1"), "{mail}");
    let binary = attached(Some(2000), |message| message.replace("text\n", "te\0xt\n")).unwrap();
    assert!(binary.contains("is not text, so it comes in Base64"), "{binary}");
}

#[test]
fn limit_of_attachments_is_not_that_of_text() {
    let long = |len: usize| {
        let file = File::new(FileType::OCTETS, prng(&StreamKey::new([7; 16]), len));
        let entity = Entity::new("text\n".to_owned(), vec![file]).unwrap();
        compress(&entity.message(MessageHeaders::default()).unwrap())
    };
    let (to, world) = (Mailbox::parse("bob@example.org").unwrap(), World::real());
    let way = SmtpWay { mime: Some(50_000), ..smtp_way(1000, 0) };
    let write = |message| write_mail(&way, &to, Queued::Message(message), world.now(), &mut world.dice());
    assert!(write(long(30_000)).is_some());
    assert_eq!(write(long(40_000)), None, "54 KB in base64");
    let text = [b"\n", &vec![b'x'; 2000][..]].concat();
    assert_eq!(write(compress(&text)), None, "text beyond its own limit");
}

#[tokio::test]
async fn what_cannot_be_delivered_now_is_postponed_and_given_up_at_the_end_of_the_schedule() {
    /// A mailbox whose disk is full.
    struct Full;
    impl LocalMailboxes<Arrival> for Full {
        fn has(&self, _: &str) -> bool {
            true
        }

        fn deliver(&self, _: &str, _: &Digest, _: &Arrival) -> Result<(), NotDelivered> {
            Err(NotDelivered::Unavailable("full".into()))
        }
    }
    let Exited { mut service, _home, .. } = exit();
    service.ways = ways(Arc::new(Full), 1000);
    let began = service.world.now();
    service.db.write(|tx| queue::insert_message(tx, RoutingType::MBOX, b"frida", &compress(b"\ntext"))).unwrap();
    let due_at = |service: &ExitService, now| service.db.read(|view| queue::due(view, now, 10)).unwrap();
    service.deliver_all(due_at(&service, began)).await;
    assert!(due_at(&service, began + Duration::from_secs(30)).is_empty(), "postponed for a minute");
    let jumped = began + Duration::from_secs(48 * 3600);
    service.world = World::new(move || jumped, || World::real().dice());
    service.deliver_all(due_at(&service, jumped)).await;
    assert_eq!(service.db.read(queue::count).unwrap(), 1, "a clock that jumps two days loses nothing");
    // Once a minute for a day: 1440 tries after the first. Two have failed; after 1437 more, the last but one is due.
    let later = jumped + Duration::from_secs(60);
    let id = due_at(&service, later)[0].id;
    service.db.write(move |tx| (3..24 * 60).try_for_each(|_| queue::postpone(tx, id, later).map(drop))).unwrap();
    service.deliver_all(due_at(&service, later)).await;
    assert_eq!(service.counters.snapshot().undeliverable, 0);
    service.deliver_all(due_at(&service, later + Duration::from_secs(60))).await;
    assert_eq!(service.counters.snapshot().undeliverable, 1);
    assert_eq!(service.db.read(queue::count).unwrap(), 0);
}
