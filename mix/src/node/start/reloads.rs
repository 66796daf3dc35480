//! What of a running node changes when its settings do: each group of them, without a restart.

use std::fs::Permissions;
use std::future::pending;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::deliver::mail::notice::NoticeError;
use crate::deliver::mail::{Content, Heading};
use crate::deliver::mbox::NotDelivered;
use crate::deliver::mx::MxConfig;
use crate::deliver::mx::testing::{At, name_server};
use crate::deliver::smtp::tests::{Manners, server_on};
use crate::net::addresses::Access;
use crate::net::connect::{ConnectConfig, Outcome, Unit, deliver};
use crate::net::listen::{PacketSink, Refused};
use crate::node::MailDelivery;
use crate::node::by_hand::{Change, Chosen};
use crate::node::config::{DummiesConfig, Way};
use crate::node::retry::{RetrySchedule, RetryStep};
use crate::node::testing::{PATIENCE, Taking, hop, listening, network, noon_world};
use crate::packet::{HostRoute, NextHop, PACKET_LEN, Packet, Payload, RoutingType};
use crate::path::Mailbox;
use crate::payload::compress::compress;
use crate::store::Tx;
use crate::store::queue::exit;
use crate::store::queue::pool::{self, PoolItem};

/// Longer than nothing takes on a busy machine, and short enough to wait for it.
const MOMENT: Duration = Duration::from_millis(200);

/// A node of one test.
struct Story {
    config: NodeConfig,
    running: RunningNode,
    counters: Counters,
    stop: CancellationToken,
    _home: tempfile::TempDir,
}

impl Story {
    async fn begin(change: impl FnOnce(&mut NodeConfig), more: impl FnOnce(&mut Parts)) -> Self {
        let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let mut config = NodeConfig { home: home.path().join("node"), ..NodeConfig::default() };
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0)).into();
        config.mixing.rule = MixRule::Timed;
        config.mixing.interval = Duration::from_millis(20);
        change(&mut config);
        let mut parts = tests::parts(&stop);
        more(&mut parts);
        let counters = parts.counters.clone();
        let running = Node::start(&config, parts).await.unwrap();
        Self { config, running, counters, stop, _home: home }
    }

    /// The operator changes the settings while the node runs.
    async fn reload(&mut self, change: impl FnOnce(&mut NodeConfig)) {
        change(&mut self.config);
        self.running.control.apply(&self.config).await.unwrap();
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.ended().await;
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let poll = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn access(rules: &[&str]) -> Access {
    Access::try_from(rules.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

fn packet() -> Packet {
    Packet::from_bytes(&[5; PACKET_LEN]).unwrap()
}

/// Whether the other side has hung up, or does within some time.
async fn hangs_up(stream: &mut TcpStream, within: Duration) -> bool {
    timeout(within, stream.read(&mut [0])).await.is_ok()
}

/// Whether whoever connects now is let in.
async fn is_let_in(address: SocketAddr) -> bool {
    !hangs_up(&mut TcpStream::connect(address).await.unwrap(), MOMENT).await
}

#[tokio::test]
async fn rules_hold_for_newcomers_and_for_those_who_are_there_and_are_published() {
    let mut story = Story::begin(|_| {}, |_| {}).await;
    let address = story.running.address;
    let mut there = TcpStream::connect(address).await.unwrap();
    assert!(is_let_in(address).await);
    let mut descriptors = story.running.descriptors();
    story.reload(|config| config.incoming.access = access(&["deny 127.0.0.1", "allow * 1-65535"])).await;
    assert!(!is_let_in(address).await);
    assert!(hangs_up(&mut there, PATIENCE).await, "whoever was there");
    timeout(PATIENCE, descriptors.changed()).await.unwrap().unwrap();
    assert!(story.running.descriptor().text().contains("\nDeny: 127.0.0.1\n"));
    story.reload(|config| config.incoming.access = Access::default()).await;
    assert!(is_let_in(address).await);
    // Nobody would come in any more: nothing of it is taken.
    let mut nobody = story.config.clone();
    nobody.incoming.access = access(&["allow *"]);
    assert!(matches!(story.running.control.apply(&nobody).await, Err(NodeError::Access { .. })));
    assert!(is_let_in(address).await);
    story.end().await;
}

#[tokio::test]
async fn limits_that_are_lowered_hold_for_newcomers() {
    let mut story = Story::begin(|_| {}, |_| {}).await;
    let address = story.running.address;
    let mut there = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    assert!(is_let_in(address).await);
    story.reload(|config| config.incoming.max_connections_per_address = 2).await;
    assert!(!is_let_in(address).await);
    for stream in &mut there {
        assert!(!hangs_up(stream, MOMENT).await, "they have their seats");
    }
    story.reload(|config| config.incoming.max_connections_per_address = 3).await;
    assert!(is_let_in(address).await);
    story.end().await;
}

#[tokio::test]
async fn mix_that_the_rules_forbade_is_reached_when_they_do_not_any_more() {
    let denied = access(&["deny 127.0.0.1", "allow * 1-65535"]);
    let retry = RetryStep { every: Duration::from_millis(20), during: Duration::from_secs(3600) };
    let changed = |config: &mut NodeConfig| {
        (config.outgoing.access, config.outgoing.retry) = (denied, RetrySchedule::new(vec![retry]));
    };
    let mut story = Story::begin(changed, |_| {}).await;
    let port = listening(2, Taking, &story.stop).await;
    let next = NextHop::Host(hop(2, port).route);
    story.running.db.write(move |tx| pool::insert(tx, &PoolItem::Relay { next, packet: packet() })).unwrap();
    let counters = story.counters.clone();
    until("a try that the rules forbid", || counters.snapshot().denied > 0).await;
    story.reload(|config| config.outgoing.access = Access::default()).await;
    until("the packet", || counters.snapshot().relayed == 1).await;
    story.end().await;
}

/// A mix that takes packets and never says so; it says when it has heard of the first.
struct Silent(watch::Sender<bool>);

impl PacketSink for Silent {
    async fn store(&self, _: Packet) -> Result<(), Refused> {
        self.0.send_replace(true);
        pending().await
    }

    async fn forget(&self, _: Packet) -> Result<(), Refused> {
        pending().await
    }
}

#[tokio::test]
async fn link_to_a_mix_that_the_rules_forbid_from_now_on_is_cut() {
    let mut story = Story::begin(|_| {}, |_| {}).await;
    let (has_it, mut heard) = watch::channel(false);
    let mix = SocketAddr::from(([127, 0, 0, 1], listening(2, Silent(has_it), &story.stop).await));
    // Between them stands who sees the node hang up.
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let next = NextHop::Host(hop(2, between.local_addr().unwrap().port()).route);
    let link = tokio::spawn(async move {
        let (near, _) = between.accept().await.unwrap();
        let (mut from_node, mut to_node) = near.into_split();
        let (mut from_mix, mut to_mix) = TcpStream::connect(mix).await.unwrap().into_split();
        tokio::select! {
            _ = tokio::io::copy(&mut from_node, &mut to_mix) => {}
            _ = tokio::io::copy(&mut from_mix, &mut to_node) => panic!("the mix hung up"),
        }
    });
    story.running.db.write(move |tx| pool::insert(tx, &PoolItem::Relay { next, packet: packet() })).unwrap();
    timeout(PATIENCE, heard.wait_for(|has_it| *has_it)).await.unwrap().unwrap();
    assert!(!link.is_finished());
    story.reload(|config| config.outgoing.access = access(&["deny 127.0.0.1", "allow * 1-65535"])).await;
    timeout(PATIENCE, link).await.expect("the node hangs up").unwrap();
    let counters = story.counters.clone();
    until("it is counted", || counters.snapshot().denied > 0).await;
    assert_eq!(counters.snapshot().relayed, 0);
    story.end().await;
}

#[tokio::test]
async fn dummies_begin_and_end() {
    let home = tempfile::tempdir().unwrap();
    let world = noon_world(0x7265_6c6f_6164);
    let known = network(home.path(), 2..=5, &world);
    let dummies = |config: &mut NodeConfig| config.dummies.enabled = false;
    let mut story = Story::begin(dummies, |parts| (parts.world, parts.directory) = (world, Some(known))).await;
    let noon = story.counters.clone();
    tokio::time::sleep(MOMENT).await;
    assert_eq!(noon.snapshot().dummies, 0);
    // All others are away; the dummies wait for them.
    story
        .reload(|config| config.dummies = DummiesConfig { enabled: true, drop_mean: 20.0, ..DummiesConfig::default() })
        .await;
    until("a dummy", || noon.snapshot().dummies > 0).await;
    story.reload(|config| config.dummies.enabled = false).await;
    tokio::time::sleep(MOMENT).await;
    let made = noon.snapshot().dummies;
    tokio::time::sleep(MOMENT).await;
    assert_eq!(noon.snapshot().dummies, made);
    story.end().await;
}

/// What a node answers to one packet.
async fn offered(story: &Story) -> Outcome {
    let descriptor = story.running.descriptor();
    let route = HostRoute { port: story.running.address.port(), ..descriptor.route().unwrap().clone() };
    let (next, now) = (NextHop::Host(route), World::real().now());
    let units = vec![Unit::packet(0, packet())];
    let delivery = deliver(&next, units, &ConnectConfig::default(), now, &CancellationToken::new()).await;
    delivery.outcomes[0].1
}

#[tokio::test]
async fn reserve_of_disk_space_is_kept_from_the_reload_on() {
    let mut story = Story::begin(|_| {}, |_| {}).await;
    assert_eq!(offered(&story).await, Outcome::Delivered);
    story.reload(|config| config.disk_reserve = u64::MAX).await;
    let counters = story.counters.clone();
    let refused = async { while offered(&story).await != Outcome::Rejected {} };
    timeout(PATIENCE, refused).await.expect("no disk has so much room");
    assert!(counters.snapshot().rejected > 0);
    story.reload(|config| config.disk_reserve = 0).await;
    let taken = async { while offered(&story).await != Outcome::Delivered {} };
    timeout(PATIENCE, taken).await.expect("there is room again");
    story.end().await;
}

#[tokio::test]
async fn bandwidth_is_limited_and_free_again() {
    let mut story = Story::begin(|_| {}, |_| {}).await;
    let limits = |story: &Story| {
        let changes = &story.running.control.0.changes;
        let (incoming, reach) = (changes.incoming.borrow().bandwidth.clone(), changes.reach.borrow().bandwidth.clone());
        [incoming, reach].map(|limit| limit.is_some())
    };
    assert_eq!(limits(&story), [false, false]);
    story.reload(|config| config.bandwidth.average = 1 << 20).await;
    assert_eq!(limits(&story), [true, true], "both ways share it");
    let mut too_little = story.config.clone();
    too_little.bandwidth.average = 1;
    assert!(matches!(story.running.control.apply(&too_little).await, Err(NodeError::Bandwidth(_))));
    story.reload(|config| config.bandwidth.average = 0).await;
    assert_eq!(limits(&story), [false, false]);
    story.end().await;
}

#[tokio::test]
async fn directory_server_is_named_and_forgotten() {
    let story = Story::begin(|_| {}, |_| {}).await;
    let control = story.running.control.clone();
    assert_eq!(control.publish_again().await, Publication::Nowhere);
    // Nobody listens there.
    let directory = "http://127.0.0.1:1/".to_owned();
    control.apply_network(&NetworkConfig { directory, ..NetworkConfig::default() });
    let failing = async {
        while control.status().await.publication != Publication::Failing {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, failing).await.expect("it is asked");
    control.apply_network(&NetworkConfig::default());
    let nowhere = async {
        while control.status().await.publication != Publication::Nowhere {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, nowhere).await.expect("nobody is asked any more");
    story.end().await;
}

#[tokio::test]
async fn statistics_begin_and_end() {
    let mut story = Story::begin(|config| config.stats.enabled = false, |_| {}).await;
    let control = story.running.control.clone();
    assert!(control.report().is_none());
    story.counters.received(50_000);
    story.reload(|config| config.stats.enabled = true).await;
    until("a report", || control.report().is_some()).await;
    let report = control.report().unwrap();
    assert!(report.figures.contains(&("received", 1000)), "what was not counted stays so: {report:?}");
    story.reload(|config| config.stats.enabled = false).await;
    until("no report", || control.report().is_none()).await;
    assert!(story.config.home.join("statistics.state").exists(), "kept at the end");
    story.end().await;
}

/// The mailbox of `frida`, which may be away.
#[derive(Default)]
struct Frida {
    away: AtomicBool,
    got: Mutex<usize>,
}

impl LocalMailboxes<Arrival> for Frida {
    fn has(&self, _: &str) -> bool {
        true
    }

    fn deliver(&self, _: &str, _: &crate::crypto::Digest, _: &Arrival) -> Result<(), NotDelivered> {
        if self.away.load(Ordering::Relaxed) {
            return Err(NotDelivered::Unavailable("away".into()));
        }
        *self.got.lock().unwrap() += 1;
        Ok(())
    }
}

#[tokio::test]
async fn mail_that_waits_when_its_delivery_is_switched_off_is_kept_and_so_is_what_leaves_the_pool_then() {
    let frida = Arc::new(Frida::default());
    frida.away.store(true, Ordering::Relaxed);
    let (mailboxes, on) = (frida.clone(), |config: &mut NodeConfig| config.mbox.enabled = true);
    let mut story = Story::begin(on, |parts| parts.mailboxes = Some(mailboxes)).await;
    let db = story.running.db.clone();
    let comes = || {
        let payload = Payload::random(&mut World::real().dice());
        let (exit_type, address) = (RoutingType::MBOX, b"frida".to_vec());
        let item = PoolItem::Deliver { exit_type, address, handle: None, payload };
        db.write(move |tx| pool::insert(tx, &item)).unwrap();
    };
    comes();
    until("a mail that waits", || db.read(exit::count).unwrap() == 1).await;
    story.reload(|config| config.mbox.enabled = false).await;
    comes();
    let counters = story.counters.clone();
    until("both wait", || db.read(exit::count).unwrap() == 2).await;
    frida.away.store(false, Ordering::Relaxed);
    story.reload(|config| config.mbox.enabled = true).await;
    comes();
    until("what comes now", || *frida.got.lock().unwrap() >= 1).await;
    assert_eq!(counters.snapshot().undeliverable, 0);
    story.end().await;
}

#[tokio::test]
async fn users_are_read_at_each_reload_and_a_table_with_a_mistake_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (table, mail) = (folder.path().join("users"), folder.path().join("mail"));
    std::fs::write(&table, "eve: eve@home.example\n").unwrap();
    let (named, way) = (table.clone(), mail.clone());
    let mut story = Story::begin(
        |config| {
            // Nobody else is delivered to, and there is no gateway.
            (config.mbox.enabled, config.mbox.address_file) = (true, Some(named));
            (config.smtp.way, config.smtp.maildir.path) = (Way::Maildir, Some(way));
            config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
        },
        |_| {},
    )
    .await;
    let has = |story: &Story, name: &str| story.running.control.has_user(name);
    assert!(has(&story, "eve") && !has(&story, "frida"));
    assert!(story.running.descriptor().mbox().is_some() && story.running.descriptor().smtp().is_none());
    std::fs::write(&table, "frida: frida@home.example\n").unwrap();
    story.reload(|_| {}).await;
    assert!(!has(&story, "eve") && has(&story, "frida"));
    std::fs::write(&table, "eve\n").unwrap();
    assert!(matches!(story.running.control.apply(&story.config).await, Err(NodeError::Addresses(_))));
    assert!(!has(&story, "eve") && has(&story, "frida"));
    let compressed = compress(b"\ntext");
    let queued = move |tx: &Tx<'_>| exit::insert_message(tx, RoutingType::MBOX, b"frida", &compressed);
    story.running.db.write(queued).unwrap();
    // By hand, for the bell rings when a batch leaves the pool.
    let flushed = story.running.control.exit_queue().change(Chosen::All, Change::Flush).await.unwrap();
    assert_eq!(flushed, 1);
    until("mail for frida", || std::fs::read_dir(mail.join("new")).is_ok_and(|new| new.count() == 1)).await;
    story.end().await;
}

#[tokio::test]
async fn notice_is_read_at_each_reload_and_one_with_a_mistake_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (table, notice) = (folder.path().join("users"), folder.path().join("notice"));
    std::fs::write(&table, "eve: eve@home.example\n").unwrap();
    let mut story = Story::begin(
        |config| {
            config.contact = "operator@exit.example".into();
            (config.mbox.enabled, config.mbox.address_file) = (true, Some(table));
            (config.smtp.enabled, config.smtp.way) = (true, Way::Maildir);
            config.smtp.maildir.path = Some(folder.path().join("mail"));
            config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
        },
        |_| {},
    )
    .await;
    let ways = story.running.control.0.changes.ways.subscribe();
    let bodies = || {
        let (ways, mut dice) = (ways.borrow(), World::real().dice());
        let elsewhere = ways.mbox.as_ref().unwrap().elsewhere.as_ref().unwrap();
        [ways.smtp.as_ref().unwrap(), &elsewhere.mail, &elsewhere.kept].map(|way| {
            let to = Mailbox::parse("eve@home.example").unwrap();
            let mail =
                way.writer.write(&to, Heading::default(), Content::Text("text\n"), World::real().now(), &mut dice);
            String::from_utf8(mail).unwrap().split_once("\r\n\r\n").unwrap().1.to_owned()
        })
    };
    let [anybody, at_an_address, in_a_folder] = bodies();
    assert_eq!(anybody, "text\r\n");
    assert!(at_an_address.contains("remailer Unnamed") && at_an_address.contains("\r\noperator@exit.example\r\n"));
    assert_eq!(at_an_address, in_a_folder);
    std::fs::write(&notice, "From {nickname}\n").unwrap();
    story.reload(|config| config.smtp.mail.notice_file = Some(notice.clone())).await;
    assert_eq!(bodies(), ["From Unnamed\r\n\r\ntext\r\n"; 3]);
    std::fs::write(&notice, "From {nick}\n").unwrap();
    let refused = story.running.control.apply(&story.config).await.unwrap_err();
    assert!(matches!(&refused, NodeError::Notice(NoticeError::File(_))), "{refused:?}");
    assert_eq!(refused.key(), Some("node.smtp.mail.notice_file"));
    assert!(matches!(check(&story.config, false), Err(NodeError::Notice(NoticeError::File(_)))));
    assert_eq!(bodies(), ["From Unnamed\r\n\r\ntext\r\n"; 3]);
    story.reload(|config| (config.smtp.mail.notice, config.smtp.mail.notice_file) = (Some(String::new()), None)).await;
    assert_eq!(bodies(), ["text\r\n"; 3]);
    story.end().await;
}

#[tokio::test]
async fn mail_leaves_by_another_way_after_a_reload_and_a_folder_that_others_can_write_changes_nothing() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut story = Story::begin(
        |config| {
            config.smtp.enabled = true;
            config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
            config.smtp.server.port = nobody;
        },
        |_| {},
    )
    .await;
    let compressed = compress(b"\ntext");
    let queued = move |tx: &Tx<'_>| exit::insert_message(tx, RoutingType::SMTP, b"bob@example.org", &compressed);
    story.running.db.write(queued).unwrap();
    let mail = story.config.home.with_file_name("mail");
    std::fs::create_dir(&mail).unwrap();
    std::fs::set_permissions(&mail, Permissions::from_mode(0o777)).unwrap();
    story.config.smtp.way = Way::Maildir;
    story.config.smtp.maildir.path = Some(mail.clone());
    let refused = story.running.control.apply(&story.config).await.unwrap_err();
    let is_it = matches!(&refused, NodeError::Maildir(InvalidMaildir::Shared { path, mode: 0o777 }) if *path == mail);
    assert!(is_it, "{refused:?}");
    assert!(!mail.join("new").exists());
    std::fs::set_permissions(&mail, Permissions::from_mode(0o700)).unwrap();
    story.reload(|_| {}).await;
    let new = mail.join("new");
    until("mail for bob", || std::fs::read_dir(&new).is_ok_and(|new| new.count() == 1)).await;
    story.end().await;
}

#[tokio::test]
async fn mail_leaves_to_the_servers_of_each_domain_after_a_reload_and_settings_that_cannot_be_change_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    let mut hears = server_on(listener, Manners::default());
    let (names, _) = name_server(vec![("b.example", At::Address(here.ip()))]).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut story = Story::begin(
        |config| {
            config.smtp.enabled = true;
            config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
            config.smtp.server.port = nobody;
        },
        |_| {},
    )
    .await;
    let compressed = compress(b"\ntext");
    let queued = move |tx: &Tx<'_>| exit::insert_message(tx, RoutingType::SMTP, b"bob@b.example", &compressed);
    story.running.db.write(queued).unwrap();
    story.config.smtp.way = Way::Mx;
    story.config.smtp.mx =
        MxConfig { name_servers: vec![names], port: 0, inside: vec![here.ip()], ..MxConfig::default() };
    let refused = story.running.control.apply(&story.config).await.unwrap_err();
    assert!(matches!(refused, NodeError::Mx(InvalidMx::Port)), "{refused:?}");
    assert_eq!(refused.key(), Some("node.smtp.mx"));
    story.reload(|config| config.smtp.mx.port = here.port()).await;
    let arrived = async {
        while let Some(said) = hears.recv().await {
            if said.starts_with("RCPT TO:<bob@b.example>") {
                return;
            }
        }
        panic!("the server is gone");
    };
    timeout(PATIENCE, arrived).await.expect("mail for bob");
    story.end().await;
}

#[tokio::test]
async fn list_of_refusals_is_read_at_each_reload_and_one_with_a_mistake_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("refusals");
    std::fs::write(&list, "Deny user bob\n").unwrap();
    let named = list.clone();
    let mut story = Story::begin(
        |config| {
            config.smtp.enabled = true;
            config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
            config.smtp.refusals = Some(named);
        },
        |_| {},
    )
    .await;
    let ways = story.running.control.0.changes.ways.subscribe();
    let refuses = |to: &str| ways.borrow().smtp.as_ref().unwrap().refusals.refuse(&Mailbox::parse(to).unwrap());
    assert_eq!((refuses("bob@x.y"), refuses("eve@x.y")), (true, false));
    std::fs::write(&list, "Deny user eve\n").unwrap();
    story.reload(|_| {}).await;
    assert_eq!((refuses("bob@x.y"), refuses("eve@x.y")), (false, true));
    std::fs::write(&list, "Deny everybody\n").unwrap();
    assert!(matches!(story.running.control.apply(&story.config).await, Err(NodeError::Refusals(_))));
    assert_eq!((refuses("bob@x.y"), refuses("eve@x.y")), (false, true));
    story.end().await;
}

#[tokio::test]
async fn delivery_is_offered_when_it_is_proven_and_withdrawn_with_the_same_keys_when_it_is_not() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let mail = folder.path().join("mail");
    let mut story = Story::begin(
        |config| {
            config.smtp.enabled = true;
            config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
            config.smtp.server.port = nobody;
        },
        |_| {},
    )
    .await;
    let before = story.running.descriptor();
    assert!(before.smtp().is_none(), "nobody is there");
    let status = story.running.control.status().await.mail_delivery;
    assert!(
        matches!(&status, MailDelivery::Failing { why, .. } if why.starts_with("node.smtp.server: ")),
        "{status:?}"
    );
    story
        .reload(|config| {
            config.smtp.way = Way::Maildir;
            config.smtp.maildir.path = Some(mail);
        })
        .await;
    story.running.control.settled().await.unwrap();
    let proven = story.running.descriptor();
    assert!(proven.smtp().is_some());
    assert_eq!(proven.packet_key(), before.packet_key());
    let status = story.running.control.status().await.mail_delivery;
    assert!(matches!(status, MailDelivery::Proven { .. }), "{status:?}");
    story.reload(|config| config.smtp.way = Way::Smarthost).await;
    story.running.control.settled().await.unwrap();
    let withdrawn = story.running.descriptor();
    assert!(withdrawn.smtp().is_none() && withdrawn.packet_key() == before.packet_key());
    assert!(withdrawn.published() > proven.published());
    // What is in the network by then comes all the same, and waits for its next try.
    let compressed = compress(b"\ntext");
    let queued = move |tx: &Tx<'_>| exit::insert_message(tx, RoutingType::SMTP, b"bob@example.org", &compressed);
    story.running.db.write(queued).unwrap();
    story.reload(|config| config.smtp.way = Way::Maildir).await;
    let new = folder.path().join("mail/new");
    until("mail for bob", || std::fs::read_dir(&new).is_ok_and(|new| new.count() == 1)).await;
    story.reload(|config| config.smtp.enabled = false).await;
    story.running.control.settled().await.unwrap();
    assert_eq!(story.running.control.status().await.mail_delivery, MailDelivery::Off);
    story.end().await;
}

#[tokio::test]
async fn attachments_are_delivered_and_stated_from_a_reload_on() {
    let folder = tempfile::tempdir().unwrap();
    let mail = folder.path().join("mail");
    let mut story = Story::begin(
        |config| {
            config.smtp.enabled = true;
            config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
            config.smtp.way = Way::Maildir;
            config.smtp.maildir.path = Some(mail);
        },
        |_| {},
    )
    .await;
    story.running.control.settled().await.unwrap();
    let (ways, control) = (story.running.control.0.changes.ways.subscribe(), story.running.control.clone());
    let delivered = || ways.borrow().smtp.as_ref().unwrap().mime;
    let stated = || control.descriptor().smtp().unwrap().mime;
    assert_eq!((delivered(), stated()), (None, None));
    for mime in [Some(1 << 20), None] {
        story.reload(|config| config.smtp.mime_max_size = mime.unwrap_or(0)).await;
        assert_eq!(delivered(), mime);
        until("a descriptor that says so", || stated() == mime).await;
    }
    story.end().await;
}

/// A port where nobody is.
fn nobody() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn mail_that_waits_for_a_server_is_tried_at_once_when_a_proof_finds_it_there_again() {
    let port = nobody();
    let mut story = Story::begin(
        |config| {
            config.smtp.enabled = true;
            config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
            config.smtp.server.port = port;
        },
        |_| {},
    )
    .await;
    let compressed = compress(b"\ntext");
    let queued = move |tx: &Tx<'_>| exit::insert_message(tx, RoutingType::SMTP, b"bob@b.example", &compressed);
    story.running.db.write(queued).unwrap();
    story.running.control.exit_queue().change(Chosen::All, Change::Flush).await.unwrap();
    let in_a_month = std::time::SystemTime::now() + 30 * 24 * Duration::from_secs(3600);
    let db = story.running.db.clone();
    let attempts = || db.read(|view| exit::due(view, in_a_month, 10)).unwrap().first().map(|item| item.attempts);
    until("a failure", || attempts() == Some(1)).await;
    let mut hears = server_on(TcpListener::bind(("127.0.0.1", port)).await.unwrap(), Manners::default());
    story.reload(|_| {}).await;
    let arrived = async { while hears.recv().await.is_some_and(|said| !said.starts_with("RCPT TO:<bob@")) {} };
    timeout(PATIENCE, arrived).await.expect("mail for bob, hours before its time");
    story.end().await;
}

#[tokio::test]
async fn users_elsewhere_are_offered_delivery_when_it_is_proven_and_those_of_the_gateway_always() {
    let folder = tempfile::tempdir().unwrap();
    let (table, mail) = (folder.path().join("users"), folder.path().join("mail"));
    std::fs::write(&table, "eve: eve@home.example\n").unwrap();
    let port = nobody();
    let by = |config: &mut NodeConfig| {
        (config.mbox.enabled, config.mbox.address_file) = (true, Some(table.clone()));
        config.smtp.server.port = port;
        config.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
        config.fragments.enabled = true;
    };
    let mut story = Story::begin(by, |_| {}).await;
    assert!(story.running.descriptor().mbox().is_none(), "nobody is there");
    assert!(story.running.descriptor().fragmented().is_some(), "as ever");
    story
        .reload(|config| {
            config.smtp.way = Way::Maildir;
            config.smtp.maildir.path = Some(mail.clone());
        })
        .await;
    story.running.control.settled().await.unwrap();
    assert!(story.running.descriptor().mbox().is_some());
    // A folder of a user's own, where there is none.
    std::fs::write(&table, format!("eve: {}\n", table.display())).unwrap();
    story.reload(|_| {}).await;
    story.running.control.settled().await.unwrap();
    assert!(story.running.descriptor().mbox().is_none());
    std::fs::write(&table, format!("eve: {}\nbob: {}\n", table.display(), mail.display())).unwrap();
    story.reload(|_| {}).await;
    story.running.control.settled().await.unwrap();
    assert!(story.running.descriptor().mbox().is_some(), "bob has one that takes mail");
    story.end().await;
    std::fs::write(&table, "eve: eve@home.example\n").unwrap();
    let story = Story::begin(by, |parts| parts.mailboxes = Some(Arc::new(Frida::default()))).await;
    assert!(story.running.descriptor().mbox().is_some(), "frida has mail here");
    story.end().await;
}
