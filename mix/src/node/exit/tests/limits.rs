//! Who gets no mail, and who has had enough.

use super::*;
use crate::deliver::limits::MailLimit;
use crate::deliver::maildir::{Maildir, MaildirConfig};

#[tokio::test]
async fn mail_for_whoever_is_refused_is_dropped_before_any_server_is_called_and_other_mail_is_not() {
    let list = b"Deny allhosts example.org\nAllow address bob@example.org\n";
    let refusals = Refusals::parse(list).unwrap();
    let (exited, calls) = exit_by(Server::Takes, |way| way.refusals = refusals).await;
    let service = tokio::spawn(exited.service.clone().run());
    exited.queue(RoutingType::SMTP, "eve@mail.example.org", b"\ntext");
    exited.queue(RoutingType::SMTP, "Ann@EXAMPLE.org", b"\ntext");
    exited.ring();
    let counts = || exited.service.counters.snapshot();
    until("both are dropped", || counts().undeliverable == 2).await;
    assert_eq!((counts().refused, counts().delivered, calls.load(Ordering::Relaxed)), (2, 0, 0));
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    exited.queue(RoutingType::SMTP, "eve@example.net", b"\ntext");
    exited.ring();
    until("mail for bob and eve", || counts().delivered == 2).await;
    exited.service.stop.cancel();
    service.await.unwrap();
    assert_eq!((counts().refused, counts().undeliverable), (2, 2));
    // The second may have gone by the connection of the first.
    assert!((1..=2).contains(&calls.load(Ordering::Relaxed)), "{calls:?}");
    assert_eq!(exited.attempts(), [0; 0]);
}

/// Two mails an hour to each recipient.
pub(super) fn two_an_hour() -> LimitsConfig {
    let per_recipient = MailLimit { mails: 2, per: Duration::from_secs(3600) };
    LimitsConfig { per_recipient, ..LimitsConfig::none() }
}

#[tokio::test]
async fn mail_over_a_limit_waits_and_passes_when_its_time_has_come() {
    let (mut exited, _) = exit_by(Server::Takes, |way| way.limits = two_an_hour()).await;
    for _ in 0..3 {
        exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    }
    exited.queue(RoutingType::SMTP, "eve@example.org", b"\ntext");
    exited.deliver_all().await;
    let counts = || exited.service.counters.snapshot();
    assert_eq!((counts().delivered, counts().limited, counts().undeliverable), (3, 1, 0));
    assert_eq!(exited.attempts(), [1], "it waits by the schedule");
    let later = SystemTime::now() + Duration::from_secs(3601);
    exited.service.even = Even::set(later);
    let due = exited.service.db.read(|view| queue::due(view, later, 10)).unwrap();
    exited.service.deliver_all(due).await;
    let counts = exited.service.counters.snapshot();
    assert_eq!((counts.delivered, counts.limited, counts.undeliverable), (4, 1, 0));
}

#[tokio::test]
async fn mail_that_waits_for_a_limit_is_tried_at_once_when_that_is_raised_and_other_mail_is_not() {
    let home = tempfile::tempdir().unwrap();
    let maildir = Maildir::new(&MaildirConfig { path: Some(home.path().join("mail")) }).unwrap();
    let (hour, mut exited) = (Duration::from_secs(3600), exit());
    let retry = RetrySchedule::new(vec![RetryStep { every: hour, during: 3 * hour }]);
    // The same way each time: another would have all mail tried at once.
    let ways = |mails| {
        let limits = LimitsConfig { per_recipient: MailLimit { mails, per: hour }, ..LimitsConfig::none() };
        let out = WayOut::Maildir(maildir.clone());
        let way = SmtpWay { out, limits, retry: retry.clone(), ..smtp_way(1000, 0) };
        Ways { smtp: Some(Arc::new(way)), smtp_retry: retry.clone(), ..exit().service.ways.borrow().clone() }
    };
    let (change, receiver) = watch::channel(ways(2));
    exited.service.ways = receiver;
    for to in ["bob@example.org", "bob@example.org", "bob@example.org", "ann@example.org"] {
        exited.queue(RoutingType::SMTP, to, b"\ntext");
    }
    let (ann, later) = (exited.due()[3].id, SystemTime::now() + hour);
    exited.service.db.write(move |tx| queue::postpone(tx, ann, later)).unwrap();
    let service = tokio::spawn(exited.service.clone().run());
    let counts = || exited.service.counters.snapshot();
    until("two wait", || (counts().delivered, exited.attempts()) == (2, vec![1, 1])).await;
    change.send_replace(ways(1));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((counts().delivered, counts().limited), (2, 1), "nothing is tried for a limit that is lowered");
    change.send_replace(ways(3));
    until("mail for bob", || counts().delivered == 3).await;
    exited.service.stop.cancel();
    service.await.unwrap();
    assert_eq!(exited.attempts(), [1], "ann waits as before");
}

#[tokio::test]
async fn mail_over_a_limit_waits_for_its_place_longer_than_the_schedule_says() {
    let per_recipient = MailLimit { mails: 1, per: Duration::from_secs(2 * 3600) };
    let limits = LimitsConfig { per_recipient, ..LimitsConfig::none() };
    let (exited, _) = exit_by(Server::Takes, |way| way.limits = limits).await;
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    exited.deliver_all().await;
    let due_in = |minutes: u64| {
        let then = SystemTime::now() + Duration::from_secs(60 * minutes);
        exited.service.db.read(|view| queue::due(view, then, 10)).unwrap().len()
    };
    assert_eq!((due_in(118), due_in(121)), (0, 1));
}

#[tokio::test]
async fn mail_that_is_over_its_limit_at_the_end_of_the_schedule_is_dropped() {
    let (exited, calls) = exit_by(Server::Takes, |way| way.limits = two_an_hour()).await;
    for _ in 0..3 {
        exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
    }
    exited.deliver_all().await;
    let all = SystemTime::now() + Duration::from_secs(30 * 24 * 3600);
    for _ in 0..3 {
        let due = exited.service.db.read(|view| queue::due(view, all, 10)).unwrap();
        exited.service.deliver_all(due).await;
    }
    let counts = exited.service.counters.snapshot();
    assert_eq!((counts.delivered, counts.limited, counts.undeliverable), (2, 4, 1));
    assert_eq!(exited.attempts(), [0; 0]);
    assert!((1..=2).contains(&calls.load(Ordering::Relaxed)), "{calls:?}");
}

#[tokio::test]
async fn mail_that_the_server_did_not_take_counts_towards_no_limit() {
    let (exited, calls) = exit_by(Server::Takes, |way| way.limits = two_an_hour()).await;
    for _ in 0..3 {
        // One after the other: each has its place for as long as it is tried.
        exited.queue(RoutingType::SMTP, "grey@example.org", b"\ntext");
        exited.deliver_all().await;
    }
    assert_eq!((exited.service.counters.snapshot().limited, calls.load(Ordering::Relaxed)), (0, 3));
}

#[tokio::test]
async fn mail_that_had_no_answer_counts_since_the_recipient_may_have_it() {
    let (exited, calls) = exit_by(Server::HangsUp, |way| way.limits = two_an_hour()).await;
    for _ in 0..3 {
        exited.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
        exited.deliver_all().await;
    }
    assert_eq!((exited.service.counters.snapshot().limited, calls.load(Ordering::Relaxed)), (1, 2));
}

#[tokio::test]
async fn whoever_has_opted_out_gets_no_mail_until_that_is_undone_and_others_do() {
    let (exited, calls) = exit_to(Server::Takes).await;
    exited.service.db.write(|tx| opt_outs::add(tx, "bob@example.org")).unwrap();
    for to in ["Bob@Example.org", "bob+x@example.org", "eve@example.org"] {
        exited.queue(RoutingType::SMTP, to, b"\ntext");
    }
    exited.deliver_all().await;
    let counts = exited.service.counters.snapshot();
    assert_eq!((counts.delivered, counts.undeliverable, counts.opted_out, counts.refused), (1, 2, 2, 0));
    assert_eq!(calls.load(Ordering::Relaxed), 1, "nobody outside hears of it");
    exited.service.db.write(|tx| opt_outs::remove(tx, "bob@example.org")).unwrap();
    exited.queue(RoutingType::SMTP, "Bob@Example.org", b"\ntext");
    exited.deliver_all().await;
    assert_eq!(exited.service.counters.snapshot().delivered, 2);
}
