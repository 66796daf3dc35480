//! Each domain as a destination of its own, and several recipients of one message.

use std::collections::BTreeSet;

use super::limits::two_an_hour;
use super::*;
use crate::deliver::mx::testing::{At, Zone, name_server};
use crate::deliver::mx::{MxConfig, MxExit, Policies};
use crate::node::by_hand::{Change, Chosen};

/// The mail server of the domain `{name}.example`, and of all domains below that.
type Domain = (&'static str, Server);

/// An exit that delivers to servers of these domains, and how often each was called. Any other domain is not there.
async fn exit_to_domains(domains: &[Domain], change: impl FnOnce(&mut SmtpWay)) -> (Exited, Vec<Arc<AtomicUsize>>) {
    let mut exited = exit();
    let (mut port, mut zone, mut calls) = (0, Zone::new(), Vec::new());
    for (number, (domain, server)) in (1_u8..).zip(domains) {
        let address = std::net::IpAddr::from([127, 0, 0, number]);
        let listener = tokio::net::TcpListener::bind((address, port)).await.unwrap();
        port = listener.local_addr().unwrap().port();
        zone.push((domain, At::Address(address)));
        let (counter, server) = (Arc::new(AtomicUsize::new(0)), *server);
        calls.push(Arc::clone(&counter));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(server.serve(stream));
            }
        });
    }
    let (names, _) = name_server(zone).await;
    let inside = (1..20).map(|number| std::net::IpAddr::from([127, 0, 0, number])).collect();
    let config = MxConfig { name_servers: vec![names], port, inside, ..MxConfig::default() };
    let mut way = smtp_way(1000, 0);
    let hour = Duration::from_secs(3600);
    way.retry = RetrySchedule::new(vec![RetryStep { every: hour, during: 3 * hour }]);
    let policies = Arc::new(Policies::new(Box::new(|_, _| Box::pin(async { None })), None));
    way.out = WayOut::Mx(Box::new(MxExit::new(&config, way.writer.return_address(), policies).unwrap()));
    change(&mut way);
    let (ways, smtp_retry) = (exited.service.ways.borrow().clone(), way.retry.clone());
    exited.service.ways = watch::channel(Ways { smtp: Some(Arc::new(way)), smtp_retry, ..ways }).1;
    (exited, calls)
}

impl Exited {
    fn to(&self, address: &str) {
        self.queue(RoutingType::SMTP, address, b"\ntext");
        self.ring();
    }

    fn delivered(&self) -> u64 {
        self.service.counters.snapshot().delivered
    }

    /// Who waits, with the tries of each.
    fn waiting(&self) -> Vec<(String, u32)> {
        let all = SystemTime::now() + Duration::from_secs(30 * 24 * 3600);
        let due = self.service.db.read(|view| queue::due(view, all, 1000)).unwrap();
        let mut waiting: Vec<_> =
            due.iter().map(|item| (String::from_utf8(item.address.clone()).unwrap(), item.attempts)).collect();
        waiting.sort();
        waiting
    }

    fn start(&self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(self.service.clone().run())
    }

    async fn end(&self, service: tokio::task::JoinHandle<()>) {
        self.service.stop.cancel();
        service.await.unwrap();
    }
}

fn called(calls: &Arc<AtomicUsize>) -> usize {
    calls.load(Ordering::Relaxed)
}

#[tokio::test]
async fn domain_that_is_away_puts_off_its_own_mail_alone() {
    let domains = [("busy.example", Server::Busy), ("there.example", Server::Takes)];
    let (exited, calls) = exit_to_domains(&domains, |_| {}).await;
    for name in ["a", "b", "c", "d", "e"] {
        exited.to(&format!("{name}@busy.example"));
    }
    exited.to("ann@there.example");
    let service = exited.start();
    until("mail for ann", || exited.delivered() == 1).await;
    until("one failure for the domain", || exited.waiting().iter().all(|(_, tries)| *tries == 1)).await;
    let before = called(&calls[0]);
    assert!(before <= DELIVERIES_OF_OWNER, "{before}");
    exited.to("f@BUSY.example");
    exited.to("bob@there.example");
    until("mail for bob", || exited.delivered() == 2).await;
    let waits = || exited.service.db.read(|view| queue::due(view, SystemTime::now(), 10)).unwrap().is_empty();
    until("what comes later waits for its domain", waits).await;
    assert_eq!(called(&calls[0]), before, "it was not called");
    assert!(exited.waiting().contains(&("f@BUSY.example".into(), 0)), "and that was no try");
    assert_eq!(format!("{:?}", exited.service.domains()), "Domains(1 away)");
    exited.end(service).await;
}

#[tokio::test]
async fn domain_that_is_there_again_is_called_when_its_time_has_come() {
    let (mut exited, calls) = exit_to_domains(&[("busy.example", Server::Busy)], |_| {}).await;
    exited.to("ann@busy.example");
    for (hours, tries) in [(0, 1), (2, 2), (5, 3)] {
        exited.service.even = Even::set(SystemTime::now() + Duration::from_secs(hours * 3600));
        let service = exited.start();
        until("a failure", || exited.waiting() == [("ann@busy.example".into(), tries)]).await;
        exited.end(service).await;
        exited.service.stop = CancellationToken::new();
        assert_eq!(called(&calls[0]), tries as usize);
    }
    exited.service.even = Even::set(SystemTime::now() + Duration::from_secs(9 * 3600));
    let service = exited.start();
    until("the end of its schedule", || exited.service.counters.snapshot().undeliverable == 1).await;
    exited.end(service).await;
    assert_eq!(exited.waiting(), []);
}

#[tokio::test]
async fn domains_that_hang_have_few_of_the_places_whatever_they_are_called() {
    let names = ["1.hangs.example", "2.hangs.example", "3.hangs.example", "hangs.example"];
    let mut domains: Vec<Domain> = names.map(|name| (name, Server::Hangs)).to_vec();
    domains.push(("there.example", Server::Takes));
    let (exited, calls) = exit_to_domains(&domains, |_| {}).await;
    for number in 0..2 * DELIVERIES_APART {
        exited.queue(RoutingType::SMTP, &format!("{number}@{}", names[number % names.len()]), b"\ntext");
    }
    exited.queue(RoutingType::SMTP, "ann@there.example", b"\ntext");
    let service = exited.start();
    until("mail for ann", || exited.delivered() == 1).await;
    exited.to("bob@there.example");
    until("mail for bob", || exited.delivered() == 2).await;
    let hang: usize = calls.iter().take(names.len()).map(called).sum();
    assert!(hang <= DELIVERIES_OF_OWNER, "{hang}");
    exited.end(service).await;
    assert_eq!(exited.waiting().len(), 2 * DELIVERIES_APART, "the stop loses nothing");
}

#[tokio::test]
async fn mail_for_a_domain_that_is_not_there_is_dropped() {
    let (exited, _) = exit_to_domains(&[("there.example", Server::Takes)], |_| {}).await;
    exited.to("ann@gone.example");
    let service = exited.start();
    until("it is dropped", || exited.service.counters.snapshot().undeliverable == 1).await;
    exited.end(service).await;
    assert_eq!(exited.waiting(), []);
}

#[tokio::test]
async fn mail_of_another_way_waits_until_what_is_under_way_has_ended() {
    let (mut exited, calls) = exit_to_domains(&[("hangs.example", Server::Hangs)], |_| {}).await;
    let (change, ways) = watch::channel(exited.service.ways.borrow().clone());
    exited.service.ways = ways;
    exited.to("ann@hangs.example");
    let service = exited.start();
    until("a call", || called(&calls[0]) == 1).await;
    let (other, at_the_server) = exit_to(Server::Takes).await;
    change.send_modify(|ways| ways.smtp.clone_from(&other.service.ways.borrow().smtp));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(called(&at_the_server), 0, "else she might have it twice");
    exited.end(service).await;
}

#[tokio::test]
async fn each_of_several_recipients_gets_a_mail_that_names_no_other() {
    let home = tempfile::tempdir().unwrap();
    let maildir = crate::deliver::maildir::MaildirConfig { path: Some(home.path().join("mail")) };
    let maildir = crate::deliver::maildir::Maildir::new(&maildir).unwrap();
    let (exited, _) = exit_by(Server::Takes, |way| way.out = WayOut::Maildir(maildir)).await;
    exited.to("ann@x.example\0bob@y.example\0eve@x.example");
    let service = exited.start();
    until("three mails", || exited.delivered() == 3).await;
    exited.end(service).await;
    let mut recipients = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for file in std::fs::read_dir(home.path().join("mail/new")).unwrap() {
        let mail = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let named: Vec<_> = ["ann@", "bob@", "eve@"].into_iter().filter(|name| mail.contains(name)).collect();
        assert_eq!(named.len(), 1, "{mail}");
        recipients.insert(named[0].to_owned());
        ids.extend(mail.lines().find(|line| line.starts_with("Message-ID:")).map(str::to_owned));
    }
    assert_eq!((recipients.len(), ids.len()), (3, 3));
}

#[tokio::test]
async fn what_is_dropped_by_hand_while_it_becomes_several_leaves_no_copies() {
    let (exited, _) = exit_to_domains(&[("x.example", Server::Takes)], |_| {}).await;
    exited.to("ann@x.example\0bob@x.example");
    // More than are dropped in one step, and before the one for two in the queue.
    let many = |tx: &Tx<'_>| {
        (0..1200).try_for_each(|_| queue::insert_message(tx, RoutingType::SMTP, b"eve@x.example", b"text").map(drop))
    };
    exited.service.db.write(many).unwrap();
    let two = exited.due().remove(0);
    exited.service.db.write(|tx| tx.execute("UPDATE exit SET id = 5000 WHERE id = 1", &[])).unwrap();
    let by_hand = exited.service.by_hand();
    let dropped = async { by_hand.change(Chosen::All, Change::Drop).await.unwrap() };
    let split = async {
        // The first step has been made, and not the last.
        while exited.service.db.read(queue::count).unwrap() == 1201 {
            tokio::task::yield_now().await;
        }
        let recipients = Mailbox::parse_list(&two.address).unwrap();
        exited.service.split(ExitId(5000), recipients).await
    };
    let (dropped, _) = tokio::join!(dropped, split);
    assert_eq!((dropped, exited.waiting()), (1201, vec![]));
}

#[tokio::test]
async fn recipient_who_has_his_mail_gets_it_no_second_time_when_another_is_refused_for_now() {
    let domains = [("x.example", Server::Takes), ("busy.example", Server::Busy)];
    let (mut exited, calls) = exit_to_domains(&domains, |_| {}).await;
    exited.to("ann@x.example\0bob@busy.example\0grey@x.example");
    let service = exited.start();
    until("mail for ann", || exited.delivered() == 1).await;
    let two = [("bob@busy.example".to_owned(), 1), ("grey@x.example".to_owned(), 1)];
    until("two wait", || exited.waiting() == two).await;
    exited.end(service).await;
    let before = called(&calls[0]);
    exited.service.stop = CancellationToken::new();
    exited.service.even = Even::set(SystemTime::now() + Duration::from_secs(2 * 3600));
    let service = exited.start();
    until("both are tried again", || exited.waiting().iter().all(|(_, tries)| *tries == 2)).await;
    exited.end(service).await;
    assert_eq!((exited.delivered(), called(&calls[0])), (1, before + 1), "grey alone");
}

#[tokio::test]
async fn refusals_and_limits_count_for_each_recipient() {
    let refusals = Refusals::parse(b"Deny address eve@x.example\n").unwrap();
    let change = |way: &mut SmtpWay| {
        way.refusals = refusals;
        way.limits = two_an_hour();
    };
    let (exited, _) = exit_to_domains(&[("x.example", Server::Takes)], change).await;
    for others in ["", "\0bob@x.example", "\0bob@x.example"] {
        exited.to(&format!("ann@x.example{others}\0eve@x.example"));
    }
    let service = exited.start();
    until("all are judged", || {
        let counts = exited.service.counters.snapshot();
        (counts.delivered, counts.refused, counts.limited) == (4, 3, 1)
    })
    .await;
    exited.end(service).await;
    assert_eq!(exited.waiting(), [("ann@x.example".to_owned(), 1)]);
}

#[tokio::test]
async fn list_of_recipients_that_is_none_is_dropped_before_any_server_is_called() {
    let (exited, calls) = exit_to_domains(&[("x.example", Server::Takes)], |_| {}).await;
    let nine = (0..9).map(|number| format!("{number}@x.example")).collect::<Vec<_>>().join("\0");
    let lists =
        ["b@x.example\0a@x.example", "a@x.example\0a@x.example", "a@x.example\0", "a@x.example,b@x.example", &nine];
    for list in lists {
        exited.to(list);
    }
    let service = exited.start();
    until("all are dropped", || exited.service.counters.snapshot().undeliverable == lists.len() as u64).await;
    exited.end(service).await;
    assert_eq!((called(&calls[0]), exited.waiting()), (0, vec![]));
}
