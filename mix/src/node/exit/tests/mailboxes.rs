//! Users of the node by the operator's table: at an address, in a folder, and those of the gateway before them.

use std::fs;
use std::path::Path;

use super::limits::two_an_hour;
use super::*;
use crate::deliver::maildir::{Maildir, MaildirConfig};
use crate::deliver::mbox::AddressTable;
use crate::store::testing::Heard;

impl Exited {
    /// The exit with these users, whose mail leaves by `mail`; mail for anybody is not delivered.
    fn with_users(mut self, table: &str, mail: Arc<SmtpWay>) -> Self {
        let table = AddressTable::parse(table.as_bytes(), "alpha.mbox.alt").unwrap();
        let smtp_retry = mail.retry.clone();
        let elsewhere = Some(Elsewhere { table, kept: Arc::clone(&mail), mail, told: Mutex::default() });
        let mbox = MboxWay { mailboxes: Some(self.mailbox.clone()), max_size: 100_000, elsewhere };
        let ways = Ways { smtp_retry, mbox: Some(Arc::new(mbox)), smtp: None, ..self.service.ways.borrow().clone() };
        self.service.ways = watch::channel(ways).1;
        self
    }
}

fn hourly(way: SmtpWay) -> Arc<SmtpWay> {
    let hour = Duration::from_secs(3600);
    Arc::new(SmtpWay { retry: RetrySchedule::new(vec![RetryStep { every: hour, during: 3 * hour }]), ..way })
}

fn into(folder: &Path) -> WayOut {
    WayOut::Maildir(Maildir::new(&MaildirConfig { path: Some(folder.to_owned()) }).unwrap())
}

/// The only file in a folder of a Maildir.
fn only(folder: &Path) -> String {
    let [mail] = fs::read_dir(folder).unwrap().collect::<Vec<_>>().try_into().unwrap();
    fs::read_to_string(mail.unwrap().path()).unwrap()
}

#[tokio::test]
async fn user_at_an_address_gets_mail_though_the_exit_delivers_to_nobody_else() {
    let out = tempfile::tempdir().unwrap();
    let mail = out.path().join("mail");
    let exited =
        exit().with_users("eve: eve@home.example\n", hourly(SmtpWay { out: into(&mail), ..smtp_way(1000, 0) }));
    exited.queue(RoutingType::MBOX, "eve", b"SUBJECT:Words\n\ntext");
    exited.queue(RoutingType::SMTP, "eve@home.example", b"\nby e-mail");
    let service = tokio::spawn(exited.service.clone().run());
    until("mail for eve", || exited.service.counters.snapshot().delivered == 1).await;
    exited.service.stop.cancel();
    service.await.unwrap();
    let text = only(&mail.join("new"));
    let envelope = "Return-Path: <nobody@exit.example>\nX-Original-To: eve@home.example\n";
    let headers = "To: eve@home.example\nFrom: nobody@exit.example\nSubject: Words\nX-Anonymous: yes\n";
    assert!(text.starts_with(&(envelope.to_owned() + headers)), "{text}");
    assert!(text.ends_with("\ntext\n"), "{text}");
}

#[tokio::test]
async fn user_of_the_gateway_comes_before_the_table_and_whoever_is_in_neither_gets_nothing() {
    let home = tempfile::tempdir().unwrap();
    let table = format!("frida: {}\n", home.path().join("frida").display());
    let exited = exit().with_users(&table, hourly(smtp_way(1000, 0)));
    exited.queue(RoutingType::MBOX, "frida", b"\ntext");
    for nobody in ["Frida", "nobody", "nobody@home.example", ""] {
        exited.queue(RoutingType::MBOX, nobody, b"\ntext");
    }
    exited.deliver_all().await;
    assert_eq!(exited.mailbox.messages(), [b"\ntext"]);
    let counts = exited.service.counters.snapshot();
    assert_eq!((counts.delivered, counts.undeliverable), (1, 4));
    assert!(!home.path().join("frida").exists());
}

#[tokio::test]
async fn user_with_a_folder_gets_mail_there_once_however_often_it_is_tried() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("eve");
    let exited = exit().with_users(&format!("eve: {}\n", folder.display()), hourly(smtp_way(100_000, 0)));
    exited.queue(RoutingType::MBOX, "eve", b"\ntext");
    // Noise: a text that repeats itself so much would stay compressed, and be short enough.
    let mut noise = vec![b'\n'; 100_002];
    exited.service.world.dice().fill_bytes(&mut noise[1..]);
    exited.queue(RoutingType::MBOX, "eve", &noise);
    // What the process did before it died: all but the note in the database.
    let verdict = exited.service.mailbox(exited.due().remove(0)).await;
    assert!(matches!(verdict, Verdict::Delivered));
    exited.deliver_all().await;
    let counts = exited.service.counters.snapshot();
    assert_eq!((counts.delivered, counts.undeliverable), (1, 1), "the other one is too long");
    let text = only(&folder.join("new"));
    let head = "Return-Path: <nobody@exit.example>\nX-Original-To: eve@alpha.mbox.alt\nTo: eve@alpha.mbox.alt\nFrom: ";
    assert!(text.starts_with(head) && text.ends_with("\ntext\n"), "{text}");
}

#[tokio::test]
async fn whoever_is_to_have_no_mail_has_none_in_a_folder_and_the_limit_for_a_recipient_holds_there() {
    let home = tempfile::tempdir().unwrap();
    let line = |name: &str| format!("{name}: {}\n", home.path().join(name).display());
    let table = ["eve", "ann", "bob", "dan"].map(line).concat();
    let refusals = Refusals::parse(b"Deny address ann@alpha.mbox.alt\n").unwrap();
    // Two for the domain would be too few.
    let limits = LimitsConfig { per_domain: two_an_hour().per_recipient, ..two_an_hour() };
    let exited = exit().with_users(&table, hourly(SmtpWay { refusals, limits, ..smtp_way(1000, 0) }));
    exited.service.db.write(|tx| opt_outs::add(tx, "bob@alpha.mbox.alt")).unwrap();
    for name in ["eve", "eve", "eve", "ann", "bob", "dan"] {
        exited.queue(RoutingType::MBOX, name, b"\ntext");
    }
    exited.deliver_all().await;
    let counts = exited.service.counters.snapshot();
    assert_eq!((counts.delivered, counts.refused, counts.opted_out, counts.limited), (3, 1, 1, 1));
    let in_folder = |name: &str| fs::read_dir(home.path().join(name).join("new")).map_or(0, Iterator::count);
    assert_eq!(["eve", "ann", "bob", "dan"].map(in_folder), [2, 0, 0, 1]);
    assert_eq!(exited.attempts(), [1], "it waits for its place");
}

#[tokio::test]
async fn folder_that_takes_no_mail_is_said_once_without_its_name_and_mail_waits() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("eve");
    fs::write(&folder, "in the way").unwrap();
    let exited = exit().with_users(&format!("eve: {}\n", folder.display()), hourly(smtp_way(1000, 0)));
    exited.queue(RoutingType::MBOX, "eve", b"\ntext");
    exited.queue(RoutingType::MBOX, "eve", b"\nmore");
    let warned = Arc::new(AtomicUsize::new(0));
    let later = |hours: u64| SystemTime::now() + Duration::from_secs(hours * 3600);
    {
        let _heard = tracing::subscriber::set_default(Heard(Arc::clone(&warned)));
        exited.deliver_all().await;
    }
    assert_eq!((warned.load(Ordering::SeqCst), exited.attempts()), (1, vec![1, 1]));
    fs::remove_file(&folder).unwrap();
    let due = exited.service.db.read(|view| queue::due(view, later(2), 10)).unwrap();
    exited.service.deliver_all(due).await;
    assert_eq!(exited.service.counters.snapshot().delivered, 2);
    assert_eq!(fs::read_dir(folder.join("new")).unwrap().count(), 2);
}

#[tokio::test]
async fn mail_server_of_users_that_hangs_holds_up_nobody_who_has_mail_here() {
    let (hanging, calls) = exit_to(Server::Hangs).await;
    let mail = hanging.service.ways.borrow().smtp.clone().unwrap();
    let exited = exit().with_users("eve: eve@home.example\n", mail);
    for _ in 0..3 * LOAD {
        exited.queue(RoutingType::MBOX, "eve", b"\ntext");
    }
    let service = tokio::spawn(exited.service.clone().run());
    until("a call at the mail server", || calls.load(Ordering::Relaxed) > 0).await;
    exited.queue(RoutingType::MBOX, "frida", b"\ntext");
    exited.ring();
    until("mail for frida", || exited.mailbox.messages().len() == 1).await;
    exited.service.stop.cancel();
    service.await.unwrap();
    assert_eq!(exited.attempts(), [0; 3 * LOAD]);
}

#[tokio::test]
async fn mail_for_users_waits_with_all_other_mail_while_the_server_is_away() {
    let (busy, calls) = exit_to(Server::Busy).await;
    let mail = busy.service.ways.borrow().smtp.clone().unwrap();
    let exited = exit().with_users("eve: eve@home.example\n", mail);
    for _ in 0..3 * LOAD {
        exited.queue(RoutingType::MBOX, "eve", b"\ntext");
    }
    let by_mail = || exited.service.db.read(|view| queue::next_due_of(view, Which::House, &[])).unwrap().is_none();
    exited.service.deliver_all(exited.due()).await;
    assert!(by_mail(), "all of it leaves as mail");
    let service = tokio::spawn(exited.service.clone().run());
    until("one failure for all", || exited.attempts() == [1; 3 * LOAD]).await;
    assert!(calls.load(Ordering::Relaxed) <= DELIVERIES);
    exited.service.stop.cancel();
    service.await.unwrap();
}

/// A node that runs, whose users may change: eve's mail is found to wait by this table at first.
async fn waits_by(table: &str) -> (Exited, watch::Sender<Ways>, Arc<SmtpWay>, tokio::task::JoinHandle<()>) {
    let (busy, _) = exit_to(Server::Busy).await;
    let mail = busy.service.ways.borrow().smtp.clone().unwrap();
    let mut exited = exit().with_users(table, Arc::clone(&mail));
    let (change, ways) = watch::channel(exited.service.ways.borrow().clone());
    exited.service.ways = ways;
    exited.queue(RoutingType::MBOX, "eve", b"\ntext");
    let service = tokio::spawn(exited.service.clone().run());
    until("a failure", || exited.attempts().iter().any(|attempts| *attempts > 0)).await;
    (exited, change, mail, service)
}

#[tokio::test]
async fn mail_that_waits_for_a_user_goes_at_once_where_she_has_it_since_a_reload() {
    let home = tempfile::tempdir().unwrap();
    let at = |folder: &str| format!("eve: {}\n", home.path().join(folder).display());
    fs::write(home.path().join("blocked"), "in the way").unwrap();
    for (before, after) in [
        ("eve: eve@home.example\n".to_owned(), at("eve")),
        (at("blocked"), at("other")),
        (at("blocked"), "eve: eve@home.example\n".to_owned()),
    ] {
        let (exited, change, mail, service) = waits_by(&before).await;
        // The same server for all who are at an address: that alone would have nothing tried at once.
        let mail = if after.contains('@') {
            let folder = home.path().join("as mail");
            hourly(SmtpWay { out: into(&folder), ..smtp_way(1000, 0) })
        } else {
            mail
        };
        let after_all = exit().with_users(&after, mail);
        change.send_modify(|ways| ways.mbox.clone_from(&after_all.service.ways.borrow().mbox));
        until("mail for eve", || exited.service.counters.snapshot().delivered == 1).await;
        exited.service.stop.cancel();
        service.await.unwrap();
    }
    for folder in ["eve", "other", "as mail"] {
        only(&home.path().join(folder).join("new"));
    }
}

#[tokio::test]
async fn mail_that_waits_for_a_user_goes_where_she_has_it_since_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let (exited, _, mail, service) = waits_by("eve: eve@home.example\n").await;
    exited.service.stop.cancel();
    service.await.unwrap();
    let folder = home.path().join("eve");
    let mut exited = exited.with_users(&format!("eve: {}\n", folder.display()), mail);
    exited.service.stop = CancellationToken::new();
    let service = tokio::spawn(exited.service.clone().run());
    until("mail for eve", || exited.service.counters.snapshot().delivered == 1).await;
    exited.service.stop.cancel();
    service.await.unwrap();
    only(&folder.join("new"));
}

#[tokio::test]
async fn mail_that_is_under_way_to_an_address_goes_into_the_folder_at_its_next_try() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("eve");
    let exited = exit().with_users(&format!("eve: {}\n", folder.display()), hourly(smtp_way(1000, 0)));
    exited.queue(RoutingType::MBOX, "eve", b"\ntext");
    let id = exited.due()[0].id;
    exited.service.db.write(move |tx| crate::store::queue::users::leaves_by_mail(tx, id, true)).unwrap();
    exited.service.deliver_all(exited.due()).await;
    let of = |which| exited.service.db.read(move |view| queue::next_due_of(view, which, &[])).unwrap().is_some();
    assert_eq!((of(Which::Mail), of(Which::House)), (false, true), "the places of e-mail may be held");
    exited.deliver_all().await;
    only(&folder.join("new"));
}

#[tokio::test]
async fn user_who_is_taken_off_the_table_gets_no_mail_that_waited() {
    let (busy, _) = exit_to(Server::Busy).await;
    let mail = busy.service.ways.borrow().smtp.clone().unwrap();
    let exited = exit().with_users("eve: eve@home.example\n", Arc::clone(&mail));
    exited.queue(RoutingType::MBOX, "eve", b"\ntext");
    exited.service.deliver_all(exited.due()).await;
    assert_eq!(exited.attempts(), [0]);
    let exited = exited.with_users("bob: bob@home.example\n", mail);
    exited.deliver_all().await;
    assert_eq!((exited.attempts(), exited.service.counters.snapshot().undeliverable), (vec![], 1));
}
