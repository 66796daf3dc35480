use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::advance;

use super::*;
use crate::crypto::pk::PrivateKey;
use crate::store::db::params;
use crate::store::testing::{fresh, hour, reopened};
use crate::store::{Db, policies};

const ENFORCED: &str = "version: STSv1\nmode: enforce\nmx: mx.b.example\nmax_age: 604800\n";
const TESTING: &str = "version: STSv1\nmode: testing\nmx: mx.b.example\nmax_age: 604800\n";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The web servers of all domains: what they say, if anything, and how often they are asked.
#[derive(Clone, Default)]
struct Web {
    text: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
    /// Where it is there, they answer when it says so.
    answers: Option<Arc<Notify>>,
}

impl Web {
    fn says(text: &str) -> Self {
        let web = Self::default();
        web.say(Some(text));
        web
    }

    fn say(&self, text: Option<&str>) {
        *self.text.lock().unwrap() = text.map(str::to_owned);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn policies(&self, shelf: Option<Shelf>) -> Policies {
        let web = self.clone();
        let fetch: Fetch = Box::new(move |host, addresses| {
            assert!(host.as_str().starts_with("mta-sts."));
            assert_eq!(addresses, [IpAddr::from([192, 0, 2, 1])]);
            web.asked.fetch_add(1, Ordering::Relaxed);
            let web = web.clone();
            Box::pin(async move {
                if let Some(answers) = web.answers {
                    answers.notified().await;
                }
                web.text.lock().unwrap().clone()
            })
        });
        Policies::new(fetch, shelf)
    }
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

async fn enforced(policies: &Policies, domain: &str, record: Option<&str>) -> bool {
    let texts: Vec<_> = record.map(|id| format!("v=STSv1; id={id}")).into_iter().collect();
    let found = policies.of(&host(domain), &texts, async |_| vec![IpAddr::from([192, 0, 2, 1])]).await;
    found.is_some_and(|policy| policy.is_enforced())
}

/// Lets all fetches under way go as far as they can.
async fn settle(policies: &Policies) {
    let mut under_way: Vec<_> = policies.desk.known().values().filter_map(Known::under_way).collect();
    for fetch in &mut under_way {
        let _ = fetch.changed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn policy_is_fetched_once_for_each_version() {
    let web = Web::says(ENFORCED);
    let policies = web.policies(None);
    assert!(!enforced(&policies, "b.example", None).await, "without a record nobody is asked");
    assert_eq!(web.asked(), 0);
    assert!(enforced(&policies, "b.example", Some("1")).await);
    assert!(enforced(&policies, "b.example", Some("1")).await);
    assert_eq!(web.asked(), 1);
    web.say(Some(TESTING));
    assert!(!enforced(&policies, "b.example", Some("2")).await);
    assert_eq!(web.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn policy_holds_without_its_record_and_its_web_server_until_its_time_is_over() {
    let web = Web::says(ENFORCED);
    let policies = web.policies(None);
    assert!(enforced(&policies, "b.example", Some("1")).await);
    web.say(None);
    advance(7 * DAY - Duration::from_secs(1)).await;
    assert!(enforced(&policies, "b.example", None).await, "no record");
    assert!(enforced(&policies, "b.example", Some("2")).await, "no web server");
    advance(Duration::from_secs(2)).await;
    assert!(!enforced(&policies, "b.example", Some("2")).await);
    assert!(!enforced(&policies, "b.example", None).await);
}

#[tokio::test(start_paused = true)]
async fn policy_that_is_not_to_be_had_is_not_asked_for_with_each_mail() {
    let web = Web::default();
    let policies = web.policies(None);
    for _ in 0..3 {
        assert!(!enforced(&policies, "b.example", Some("1")).await);
    }
    assert_eq!(web.asked(), 1);
    web.say(Some("no policy"));
    advance(ASK_AGAIN).await;
    assert!(!enforced(&policies, "b.example", Some("1")).await);
    web.say(Some(ENFORCED));
    advance(ASK_AGAIN).await;
    assert!(enforced(&policies, "b.example", Some("1")).await);
    assert_eq!(web.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn new_version_that_was_not_to_be_had_is_asked_for_again_while_the_old_one_holds() {
    let web = Web::says(ENFORCED);
    let policies = web.policies(None);
    assert!(enforced(&policies, "b.example", Some("1")).await);
    web.say(None);
    for _ in 0..3 {
        assert!(enforced(&policies, "b.example", Some("2")).await);
    }
    assert_eq!(web.asked(), 2);
    web.say(Some(TESTING));
    advance(ASK_AGAIN).await;
    assert!(!enforced(&policies, "b.example", Some("2")).await, "the new one");
    assert_eq!(web.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn policy_in_use_is_fetched_again_after_a_day_and_no_mail_waits_for_it() {
    let answers = Arc::new(Notify::new());
    let web = Web { answers: Some(Arc::clone(&answers)), ..Web::says(ENFORCED) };
    let policies = web.policies(None);
    answers.notify_one();
    assert!(enforced(&policies, "b.example", Some("1")).await);
    advance(DAY).await;
    web.say(Some(TESTING));
    for _ in 0..3 {
        assert!(enforced(&policies, "b.example", Some("1")).await, "what is known until there is more");
    }
    answers.notify_one();
    settle(&policies).await;
    assert_eq!(web.asked(), 2);
    assert!(!enforced(&policies, "b.example", Some("1")).await, "what was fetched meanwhile");
    assert_eq!(web.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn policy_in_use_never_ends_while_its_web_server_is_there_and_is_kept_while_it_is_not() {
    let web = Web::says(&ENFORCED.replace("604800", "7200"));
    let policies = web.policies(None);
    let hour = Duration::from_secs(3600);
    for _ in 0..5 {
        assert!(enforced(&policies, "b.example", Some("1")).await);
        settle(&policies).await;
        advance(hour).await;
    }
    assert_eq!(web.asked(), 5, "at half of its time");
    web.say(None);
    assert!(enforced(&policies, "b.example", Some("1")).await);
    settle(&policies).await;
    advance(ASK_AGAIN).await;
    web.say(Some(ENFORCED));
    assert!(enforced(&policies, "b.example", Some("1")).await);
    settle(&policies).await;
    assert_eq!(web.asked(), 7);
    advance(3 * DAY).await;
    assert!(enforced(&policies, "b.example", None).await, "the one that was fetched at last");
}

#[tokio::test(start_paused = true)]
async fn mails_at_one_time_wait_for_one_fetch_and_none_goes_without() {
    let answers = Arc::new(Notify::new());
    let web = Web { answers: Some(Arc::clone(&answers)), ..Web::says(ENFORCED) };
    let policies = web.policies(None);
    let later = async {
        while web.asked() == 0 {
            tokio::task::yield_now().await;
        }
        answers.notify_one();
    };
    let mail = || enforced(&policies, "b.example", Some("1"));
    let (first, second, third, ()) = tokio::join!(mail(), mail(), mail(), later);
    assert!(first && second && third);
    assert_eq!(web.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn mail_that_gives_up_undoes_no_fetch() {
    let answers = Arc::new(Notify::new());
    let web = Web { answers: Some(Arc::clone(&answers)), ..Web::says(ENFORCED) };
    let policies = web.policies(None);
    let mail = tokio::time::timeout(Duration::from_secs(1), enforced(&policies, "b.example", Some("1")));
    assert!(mail.await.is_err(), "it waits for the fetch");
    answers.notify_one();
    settle(&policies).await;
    assert!(enforced(&policies, "b.example", Some("1")).await);
    assert_eq!(web.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn web_server_at_no_address_that_may_be_called_is_not_asked() {
    let web = Web::says(ENFORCED);
    let policies = web.policies(None);
    let texts = ["v=STSv1; id=1".to_owned()];
    assert!(policies.of(&host("b.example"), &texts, async |_| Vec::new()).await.is_none());
    assert_eq!(web.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn strangers_fill_no_memory_with_policies_and_what_is_in_use_stays() {
    let web = Web::says(ENFORCED);
    let policies = web.policies(None);
    for i in 0..3 * MAX_KNOWN {
        advance(Duration::from_secs(1)).await;
        assert!(enforced(&policies, &format!("{i}.example"), Some("1")).await);
        advance(Duration::from_secs(1)).await;
        assert!(enforced(&policies, "b.example", Some("1")).await);
    }
    assert_eq!(format!("{policies:?}"), format!("Policies({MAX_KNOWN})"));
    assert_eq!(web.asked(), 3 * MAX_KNOWN + 1);
}

/// A node whose policies are on disk.
struct Node {
    folder: TempDir,
    db: Option<Db>,
    identity: PrivateKey,
}

impl Node {
    fn new() -> Self {
        let (folder, db) = fresh(&[policies::SCHEMA]);
        let identity = PrivateKey::generate(2048, &mut StdRng::seed_from_u64(1)).unwrap();
        Self { folder, db: Some(db), identity }
    }

    /// Starts at this time, again where it has been started.
    fn start(&mut self, web: &Web, now: SystemTime) -> Policies {
        let db = reopened(self.folder.path(), self.db.take().unwrap(), &[policies::SCHEMA]);
        self.db = Some(db.clone());
        let shelf = Shelf::of(&self.identity, db, move || now, Box::new(StdRng::seed_from_u64(2)));
        web.policies(Some(shelf))
    }

    /// Waits until all that was said is on disk.
    fn written(&self) -> u64 {
        self.db.as_ref().unwrap().write(|tx| tx.count("SELECT count(*) FROM policies", params![])).unwrap()
    }
}

#[tokio::test]
async fn policy_is_known_after_a_restart_without_its_record_and_its_web_server() {
    let mut node = Node::new();
    let web = Web::says(ENFORCED);
    let policies = node.start(&web, hour(0));
    assert!(enforced(&policies, "b.example", Some("1")).await);
    assert_eq!(node.written(), 1);
    drop(policies);
    web.say(None);
    let policies = node.start(&web, hour(20));
    assert!(enforced(&policies, "b.example", None).await, "no record");
    assert!(enforced(&policies, "b.example", Some("1")).await);
    assert_eq!(web.asked(), 1, "it is fresh");
    assert!(!enforced(&policies, "c.example", None).await);
    drop(policies);
    let policies = node.start(&web, hour(7 * 24 - 1));
    assert!(enforced(&policies, "b.example", Some("1")).await, "it is old, and its web server is away");
    settle(&policies).await;
    assert_eq!(web.asked(), 2);
    drop(policies);
    let policies = node.start(&web, hour(7 * 24));
    assert!(!enforced(&policies, "b.example", None).await, "its time is over");
    drop(policies);
    let policies = node.start(&web, hour(0) - 30 * DAY);
    assert!(enforced(&policies, "b.example", None).await, "the clock was set back");
}

#[tokio::test]
async fn database_tells_nobody_whom_the_exit_writes_to() {
    let mut node = Node::new();
    let web = Web::says(ENFORCED);
    let policies = node.start(&web, hour(0));
    for domain in ["b.example", "c.example"] {
        assert!(enforced(&policies, domain, Some("1")).await);
    }
    assert_eq!(node.written(), 2);
    let mut octets = Vec::new();
    for file in std::fs::read_dir(node.folder.path()).unwrap() {
        octets.extend(std::fs::read(file.unwrap().path()).unwrap());
    }
    assert!(octets.windows(8).any(|part| part == b"policies"), "these are the files");
    for trace in [&b"example"[..], b"STSv1", b"enforce"] {
        assert!(!octets.windows(trace.len()).any(|part| part == trace), "{}", String::from_utf8_lossy(trace));
    }
    let lengths = "SELECT count(DISTINCT length(policy)) FROM policies";
    assert_eq!(node.db.as_ref().unwrap().read(|view| view.count(lengths, &[])).unwrap(), 1);
    drop(policies);
    node.identity = PrivateKey::generate(2048, &mut StdRng::seed_from_u64(3)).unwrap();
    let policies = node.start(&web, hour(1));
    assert!(!enforced(&policies, "b.example", None).await, "another node can make nothing of it");
}

#[tokio::test]
async fn new_version_takes_the_place_of_the_one_on_disk() {
    let mut node = Node::new();
    let web = Web::says(ENFORCED);
    let policies = node.start(&web, hour(0));
    assert!(enforced(&policies, "b.example", Some("1")).await);
    web.say(Some(TESTING));
    assert!(!enforced(&policies, "b.example", Some("2")).await);
    assert_eq!(node.written(), 1);
    drop(policies);
    let policies = node.start(&web, hour(1));
    assert!(!enforced(&policies, "b.example", Some("2")).await);
    assert_eq!(web.asked(), 2, "it is the version of the record");
}
