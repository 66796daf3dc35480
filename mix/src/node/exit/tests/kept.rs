//! Mail by connections that are kept: what the server does with them costs no mail a try.

use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::deliver::smtp::tests::{Manners, all, server_on};

/// The way to a server at hand, and what it hears.
async fn way_to(manners: Manners) -> (Arc<SmtpWay>, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = SmtpExitConfig { port: listener.local_addr().unwrap().port(), ..SmtpExitConfig::default() };
    let mut way = smtp_way(1000, 0);
    let hour = Duration::from_secs(3600);
    way.retry = RetrySchedule::new(vec![RetryStep { every: hour, during: 3 * hour }]);
    way.out = WayOut::SmartHost(Box::new(SmtpExit::new(&config, way.writer.return_address()).unwrap()));
    (Arc::new(way), server_on(listener, manners))
}

/// An exit by this way, and what changes it.
fn exit_by(way: &Arc<SmtpWay>) -> (Exited, watch::Sender<Ways>) {
    let mut exited = exit();
    let ways = exited.service.ways.borrow().clone();
    let (change, ways) = watch::channel(Ways { smtp: Some(Arc::clone(way)), smtp_retry: way.retry.clone(), ..ways });
    exited.service.ways = ways;
    (exited, change)
}

impl Exited {
    /// Has so many more mails delivered by the service, and none of them tried a second time.
    async fn deliver_more(&self, mails: u64) {
        let before = self.service.counters.snapshot().delivered;
        for _ in 0..mails {
            self.queue(RoutingType::SMTP, "bob@example.org", b"\ntext");
        }
        self.ring();
        until("all mail", || self.service.counters.snapshot().delivered == before + mails).await;
        assert_eq!(self.service.server().failures, 0, "the server was there all the time");
    }

    async fn stop(&self, service: tokio::task::JoinHandle<()>) {
        self.service.stop.cancel();
        service.await.unwrap();
        assert_eq!(self.service.db.read(queue::count).unwrap(), 0);
    }
}

fn count(said: &[String], begins: &str) -> usize {
    said.iter().filter(|line| line.starts_with(begins)).count()
}

#[tokio::test]
async fn many_mails_go_by_few_connections_and_the_stop_says_good_bye_to_all() {
    let (way, mut hears) = way_to(Manners::default()).await;
    let (exited, _change) = exit_by(&way);
    let service = tokio::spawn(exited.service.clone().run());
    exited.deliver_more(40).await;
    exited.stop(service).await;
    let said = all(&mut hears);
    let calls = count(&said, "EHLO");
    assert!(calls <= DELIVERIES, "{calls}");
    assert_eq!((count(&said, "To: "), count(&said, "QUIT")), (40, calls));
}

#[tokio::test]
async fn server_that_ends_each_connection_after_two_mails_gets_each_mail_once_and_at_its_first_try() {
    for later in [
        Manners { hangs_up_at: Some("MAIL"), ..Manners::default() },
        Manners { refuse: Some(("MAIL", "421 too many mails")), ..Manners::default() },
        Manners { refuse: Some(("RCPT", "452 too many mails")), ..Manners::default() },
    ] {
        let (way, mut hears) = way_to(Manners { later: Some((2, Box::new(later))), ..Manners::default() }).await;
        let (exited, _change) = exit_by(&way);
        let service = tokio::spawn(exited.service.clone().run());
        exited.deliver_more(20).await;
        exited.stop(service).await;
        let said = all(&mut hears);
        assert_eq!(count(&said, "To: "), 20);
        assert!((10..=20).contains(&count(&said, "EHLO")), "{}", count(&said, "EHLO"));
    }
}

#[tokio::test]
async fn reload_that_names_another_server_uses_no_connection_of_the_one_before() {
    let (first, mut hears_first) = way_to(Manners::default()).await;
    let (second, mut hears_second) = way_to(Manners::default()).await;
    let (exited, change) = exit_by(&first);
    let service = tokio::spawn(exited.service.clone().run());
    exited.deliver_more(1).await;
    change.send_modify(|ways| ways.smtp = Some(second));
    drop(first);
    exited.deliver_more(1).await;
    exited.stop(service).await;
    assert_eq!((count(&all(&mut hears_second), "To: "), count(&all(&mut hears_first), "To: ")), (1, 1));
}
