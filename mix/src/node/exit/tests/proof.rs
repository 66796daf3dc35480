//! What an exit proves of its way out, and when it says that it can deliver.

use std::fs;
use std::path::Path;

use super::*;
use crate::deliver::maildir::{Maildir, MaildirConfig};
use crate::deliver::mbox::AddressTable;
use crate::deliver::mx::testing::{At, name_server};
use crate::deliver::mx::{MxConfig, MxExit, Policies};
use crate::deliver::sendmail::{Sendmail, SendmailConfig};
use crate::deliver::smtp::tests::{Manners, all, server_on};
use crate::node::config::NodeConfig;
use crate::node::exit::way::Unproven;
use crate::node::exit::word::News;
use crate::store::testing::Heard;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A prover of this way, and the end from which the way is changed.
fn prover(way: Option<SmtpWay>) -> (Prover, watch::Sender<Ways>) {
    let ways = Ways { smtp: way.map(Arc::new), ..exit().service.ways.borrow().clone() };
    let (change, ways) = watch::channel(ways);
    let began = (SystemTime::UNIX_EPOCH + 20_000 * DAY, tokio::time::Instant::now());
    let world = World::new(move || began.0 + began.1.elapsed(), || World::real().dice());
    (Prover::new(ways, world, CancellationToken::new()), change)
}

fn by(out: WayOut) -> Option<SmtpWay> {
    Some(SmtpWay { out, ..smtp_way(1000, 0) })
}

fn to_folder(path: &Path) -> WayOut {
    WayOut::Maildir(Maildir::new(&MaildirConfig { path: Some(path.to_owned()) }).unwrap())
}

fn to_server(port: u16) -> WayOut {
    let from = smtp_way(1000, 0).writer.return_address().clone();
    WayOut::SmartHost(Box::new(SmtpExit::new(&SmtpExitConfig { port, ..SmtpExitConfig::default() }, &from).unwrap()))
}

fn offers(standing: &watch::Receiver<Standing>) -> bool {
    let config = NodeConfig { smtp: on(), ..NodeConfig::default() };
    standing.borrow().states(Arc::new(config)).smtp.enabled
}

fn proven(standing: &Standing) -> bool {
    matches!(standing.report(true), MailDelivery::Proven { .. })
}

fn on() -> crate::node::config::SmtpDeliveryConfig {
    crate::node::config::SmtpDeliveryConfig { enabled: true, ..Default::default() }
}

/// Lets time pass in small steps, so that each task has its turn.
async fn pass(time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(MINUTE.min(end - tokio::time::Instant::now())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn exit_offers_delivery_after_a_proof_and_not_before() {
    let home = tempfile::tempdir().unwrap();
    let (mut prover, _change) = prover(by(to_folder(&home.path().join("mail"))));
    let standing = prover.standing();
    assert!(!offers(&standing));
    assert_eq!(standing.borrow().report(true), MailDelivery::Unproven);
    prover.begin().await;
    assert!(offers(&standing));
    assert!(matches!(standing.borrow().report(true), MailDelivery::Proven { .. }));
    assert_eq!(standing.borrow().report(false), MailDelivery::Off);
    assert_eq!(fs::read_dir(home.path().join("mail/new")).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn folder_that_cannot_be_written_any_more_is_found_within_a_day_said_once_and_offered_again_within_the_hour() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail");
    let (mut prover, _change) = prover(by(to_folder(&path)));
    let (standing, stop) = (prover.standing(), prover.stop.clone());
    prover.begin().await;
    let MailDelivery::Proven { since } = standing.borrow().report(true) else { panic!("not proven") };
    let said = Arc::new(AtomicUsize::new(0));
    let guard = tracing::subscriber::set_default(Heard(Arc::clone(&said)));
    let service = tokio::spawn(prover.run());
    pass(DAY + MINUTE).await;
    assert_eq!(standing.borrow().report(true), MailDelivery::Proven { since }, "it is the same as yesterday");
    fs::remove_dir_all(&path).unwrap();
    fs::write(&path, "no folder").unwrap();
    pass(DAY + MINUTE).await;
    assert!(!offers(&standing));
    let MailDelivery::Failing { since: failing, why } = standing.borrow().report(true) else { panic!("not failing") };
    assert!(why.starts_with("node.smtp.maildir.path: "), "{why}");
    assert!(failing > since + DAY);
    pass(2 * DAY).await;
    let still = standing.borrow().report(true);
    assert!(matches!(still, MailDelivery::Failing { since, .. } if since == failing), "{still:?}");
    assert_eq!(said.load(Ordering::SeqCst), 1);
    drop(guard);
    fs::remove_file(&path).unwrap();
    pass(60 * MINUTE).await;
    assert!(offers(&standing));
    stop.cancel();
    service.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reload_has_what_failed_proven_again_and_another_way_anew() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("sendmail");
    let command = || {
        let command = vec![program.to_str().unwrap().to_owned()];
        by(WayOut::Sendmail(Sendmail::new(&SendmailConfig { command, ..SendmailConfig::default() }).unwrap()))
    };
    let (mut prover, change) = prover(command());
    let mut standing = prover.standing();
    prover.begin().await;
    assert!(!offers(&standing));
    let stop = prover.stop.clone();
    let service = tokio::spawn(prover.run());
    std::os::unix::fs::symlink("/bin/true", &program).unwrap();
    let began = tokio::time::Instant::now();
    change.send_modify(|ways| ways.smtp = command().map(Arc::new));
    standing.wait_for(proven).await.unwrap();
    // What was proven of a program says nothing of a folder.
    let path = home.path().join("mail");
    fs::write(&path, "no folder").unwrap();
    let folder = by(to_folder(&path)).map(Arc::new);
    change.send_modify(|ways| ways.smtp.clone_from(&folder));
    let ways = change.borrow().clone();
    standing.wait_for(|standing| standing.is_about(&ways)).await.unwrap();
    assert!(!offers(&standing));
    change.send_modify(|ways| ways.smtp = None);
    let ways = change.borrow().clone();
    standing.wait_for(|standing| standing.is_about(&ways)).await.unwrap();
    assert_eq!(standing.borrow().report(true), MailDelivery::Unproven);
    assert!(began.elapsed() < MINUTE, "all of it at once");
    stop.cancel();
    service.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn server_that_restarts_costs_a_proven_exit_nothing_and_one_that_stays_away_does() {
    let (mut prover, _change) = prover(by(to_folder(Path::new("/nowhere"))));
    let (standing, way) = (prover.standing(), prover.ways.borrow().smtp.clone().unwrap());
    prover.mail.succeeded(&way);
    for failures in 1..3 {
        prover.mail.failed(&way, Unproven::too_slow());
        assert!(offers(&standing), "{failures}");
        assert_eq!(prover.mail.due - tokio::time::Instant::now(), 5 * MINUTE);
    }
    prover.mail.failed(&way, Unproven::too_slow());
    assert!(!offers(&standing));
    assert_eq!(prover.mail.due - tokio::time::Instant::now(), 60 * MINUTE);
    // What was never proven has no such credit.
    let other = Arc::new(by(to_folder(Path::new("/elsewhere"))).unwrap());
    prover.mail.succeeded(&way);
    prover.mail.failed(&other, Unproven::too_slow());
    assert!(!offers(&standing));
}

#[tokio::test(start_paused = true)]
async fn start_does_not_wait_for_a_server_that_hangs() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut prover, _change) = prover(by(to_server(listener.local_addr().unwrap().port())));
    let began = tokio::time::Instant::now();
    prover.begin().await;
    assert!(began.elapsed() <= Duration::from_secs(11));
    assert_eq!(prover.standing().borrow().report(true), MailDelivery::Unproven);
}

#[tokio::test]
async fn server_is_proven_by_what_it_would_take_and_gets_no_mail() {
    for (server, expected) in [
        (Server::Takes, None),
        (Server::Busy, Some(("node.smtp.server: ", true))),
        (Server::HangsUp, Some(("node.smtp.server: ", true))),
        (Server::Locked, Some(("node.smtp.server.user: ", false))),
    ] {
        let (exited, calls) = exit_to(server).await;
        let way = exited.service.ways.borrow().smtp.clone().unwrap();
        let proof = way.out.prove(way.writer.return_address(), &way.proof_address, World::real().dice()).await;
        let said = proof.err().map(|why| (why.fault.to_string(), why.passes));
        match (&said, expected) {
            (None, None) => {}
            (Some((why, passes)), Some((key, expected))) => {
                assert!(why.starts_with(key) && *passes == expected, "{why} {passes}");
            }
            _ => panic!("{said:?}, expected {expected:?}"),
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn mailbox_that_the_server_does_not_take_mail_for_is_said_by_its_key_and_not_by_name() {
    let (exited, _) = exit_to(Server::Takes).await;
    let way = exited.service.ways.borrow().smtp.clone().unwrap();
    let grey = Mailbox::parse("grey@exit.example").unwrap();
    let why = way.out.prove(way.writer.return_address(), &grey, World::real().dice()).await.unwrap_err();
    assert_eq!(why.fault.to_string(), "node.smtp.server: the mail server refused the mail for now (450)");
    assert!(why.passes);
}

#[tokio::test]
async fn server_of_a_domain_that_is_asked_for_a_proof_is_not_told_that_a_mail_comes() {
    let here = std::net::IpAddr::from([127, 0, 0, 1]);
    let listener = tokio::net::TcpListener::bind((here, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut hears = server_on(listener, Manners::default());
    let (names, _) = name_server(vec![("b.example", At::Address(here))]).await;
    let config = MxConfig { name_servers: vec![names], port, inside: vec![here], ..MxConfig::default() };
    let (from, to) = (Mailbox::parse("nobody@exit.example").unwrap(), Mailbox::parse("postmaster@b.example").unwrap());
    let policies = Arc::new(Policies::new(Box::new(|_, _| Box::pin(async { None })), None));
    let way = WayOut::Mx(Box::new(MxExit::new(&config, &from, policies).unwrap()));
    assert!(way.prove(&from, &to, World::real().dice()).await.is_ok());
    let said = all(&mut hears);
    let commands: Vec<_> = said.iter().filter_map(|line| line.split_ascii_whitespace().next()).collect();
    assert_eq!(commands, ["EHLO", "MAIL", "RCPT", "QUIT"]);
}

/// A mail server that may be there or not, at the port that it was given.
struct Switched(u16, Option<tokio::task::JoinHandle<()>>);

impl Switched {
    async fn on(&mut self) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", self.0)).await.unwrap();
        self.0 = listener.local_addr().unwrap().port();
        self.1 = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Server::Takes.serve(stream));
            }
        }));
    }

    async fn off(&mut self) {
        let server = self.1.take().unwrap();
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
    }
}

#[tokio::test(start_paused = true)]
async fn server_that_deliveries_find_away_is_no_longer_offered_within_minutes_and_mail_goes_when_it_is_there_again() {
    let mut server = Switched(0, None);
    server.on().await;
    let (prover, change) = prover(by(to_server(server.0)));
    let mut exited = exit();
    (exited.service.ways, exited.service.word) = (prover.ways.clone(), prover.word());
    let hours = Duration::from_secs(7 * 3600);
    let retry = RetrySchedule::new(vec![RetryStep { every: hours, during: 20 * hours }]);
    let way = SmtpWay { out: to_server(server.0), retry, ..smtp_way(1000, 0) };
    change.send_modify(|ways| ways.smtp = Some(Arc::new(way)));
    let (standing, stop) = (prover.standing(), prover.stop.clone());
    let proofs = tokio::spawn(prover.run());
    let service = tokio::spawn(exited.service.clone().run());
    until("a proof", || offers(&standing)).await;
    server.off().await;
    let said = Arc::new(AtomicUsize::new(0));
    let guard = tracing::subscriber::set_default(Heard(Arc::clone(&said)));
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    exited.ring();
    until("a failure", || exited.attempts() == [1]).await;
    assert!(offers(&standing), "it may be a restart");
    pass(11 * MINUTE).await;
    assert!(!offers(&standing), "it is none");
    assert_eq!(said.load(Ordering::SeqCst), 1);
    assert_eq!(exited.attempts(), [1], "no proof costs a mail a try");
    drop(guard);
    server.on().await;
    pass(61 * MINUTE).await;
    assert!(offers(&standing));
    until("mail for bob", || exited.service.counters.snapshot().delivered == 1).await;
    stop.cancel();
    exited.service.stop.cancel();
    proofs.await.unwrap();
    service.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn delivery_that_fails_has_a_proof_made_at_once_and_one_that_always_does_has_few() {
    let home = tempfile::tempdir().unwrap();
    let (prover, _change) = prover(by(to_folder(&home.path().join("mail"))));
    let (word, stop) = (prover.word(), prover.stop.clone());
    let mut heard = word.listen();
    let mut standing = prover.standing();
    let service = tokio::spawn(prover.run());
    standing.wait_for(proven).await.unwrap();
    let began = tokio::time::Instant::now();
    let mut waited = Vec::new();
    for _ in 0..3 {
        word.mail_is_away.send_replace(());
        heard.changed().await.unwrap();
        assert_eq!(heard.look(), Some(News::Again));
        waited.push(began.elapsed().as_secs() / 60);
    }
    assert_eq!(waited, [0, 5, 10], "minutes");
    pass(DAY + MINUTE).await;
    assert_eq!(heard.look(), None, "a proof that nothing was in doubt for wakes no mail");
    stop.cancel();
    service.await.unwrap();
}

#[tokio::test]
async fn mail_that_waits_for_a_time_of_its_own_is_not_woken() {
    let (exited, _) = exit_to(Server::Takes).await;
    let mut heard = exited.service.word.listen();
    exited.queue(RoutingType::SMTP, "grey@example.org", b"\ntext");
    exited.deliver_all().await;
    let schedule = exited.service.ways.borrow().smtp_retry.clone();
    let until = exited.service.server().is_away(&schedule, SystemTime::now() + MINUTE);
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    let put_off = move |tx: &Tx<'_>| queue::postpone_all(tx, Which::Mail, &[], SystemTime::now(), until, 3);
    exited.service.db.write(put_off).unwrap();
    assert_eq!(exited.due().len(), 0);
    exited.service.word.mail_is_there(false);
    exited.service.hear(&mut heard).await;
    assert_eq!(exited.due().iter().map(|item| &item.address[..3]).collect::<Vec<_>>(), [b"bob"]);
    // Of what an earlier run has put off nobody knows why.
    exited.service.word.mail_is_there(true);
    exited.service.hear(&mut heard).await;
    assert_eq!(exited.due().len(), 2);
}

/// A prover of users by this table, whose mail to an address leaves into a folder.
fn prover_of_users(table: &str, out: &Path) -> Prover {
    let (prover, change) = prover(None);
    let table = AddressTable::parse(table.as_bytes(), "alpha.mbox.alt").unwrap();
    let mail = Arc::new(by(to_folder(out)).unwrap());
    let elsewhere = Some(Elsewhere { table, kept: Arc::clone(&mail), mail, told: Mutex::default() });
    change.send_modify(|ways| ways.mbox = Some(Arc::new(MboxWay { mailboxes: None, max_size: 1000, elsewhere })));
    prover
}

fn offers_users(standing: &watch::Receiver<Standing>) -> bool {
    let mut config = NodeConfig::default();
    config.mbox.enabled = true;
    standing.borrow().states(Arc::new(config)).mbox.enabled
}

#[tokio::test(start_paused = true)]
async fn folder_that_takes_no_mail_is_said_once_by_its_line_and_none_that_does_takes_the_offer_back() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    let table = format!("eve: {}\nbob: {}\n", path("eve").display(), path("bob").display());
    fs::write(path("eve"), "in the way").unwrap();
    let mut prover = prover_of_users(&table, Path::new("/nowhere"));
    let standing = prover.standing();
    assert!(!offers_users(&standing));
    assert_eq!(standing.borrow().report_users(true), MailDelivery::Off, "nothing is known of them");
    let said = Arc::new(AtomicUsize::new(0));
    let _guard = tracing::subscriber::set_default(Heard(Arc::clone(&said)));
    for _ in 0..2 {
        prover.begin().await;
        assert!(offers_users(&standing));
        assert!(matches!(standing.borrow().report_users(true), MailDelivery::Proven { .. }));
        assert_eq!(said.load(Ordering::SeqCst), 1);
    }
    assert_eq!(standing.borrow().report_users(false), MailDelivery::Off);
    fs::remove_dir_all(path("bob")).unwrap();
    fs::write(path("bob"), "in the way").unwrap();
    for _ in 0..2 {
        prover.begin().await;
        assert!(!offers_users(&standing));
        let report = standing.borrow().report_users(true);
        let expected = "node.mbox.address_file: no folder takes mail";
        assert!(matches!(&report, MailDelivery::Failing { why, .. } if why == expected), "{report:?}");
        assert_eq!(said.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn users_are_offered_delivery_when_both_their_addresses_and_their_folders_are_proven() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    let (good, bad) = (path("good"), path("bad"));
    fs::write(&bad, "in the way").unwrap();
    for (folder, out, expected) in [
        (&good, &good, None),
        (&good, &bad, Some("node.smtp.maildir.path: ")),
        (&bad, &good, Some("node.mbox.address_file: the folder in line 2 takes no mail")),
    ] {
        let table = format!("eve: eve@home.example\nbob: {}\n", folder.display());
        let mut prover = prover_of_users(&table, out);
        prover.begin().await;
        let standing = prover.standing();
        assert_eq!(offers_users(&standing), expected.is_none(), "{expected:?}");
        let report = standing.borrow().report_users(true);
        match (&report, expected) {
            (MailDelivery::Proven { .. }, None) => {}
            (MailDelivery::Failing { why, .. }, Some(expected)) => assert!(why.starts_with(expected), "{why}"),
            _ => panic!("{report:?}, expected {expected:?}"),
        }
    }
}
