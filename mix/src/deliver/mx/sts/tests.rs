use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::advance;

use super::*;

const ENFORCED: &str = "version: STSv1\nmode: enforce\nmx: mx.example\nmax_age: 86400\n";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn refused(text: &str) -> InvalidPolicy {
    Policy::parse(text).unwrap_err()
}

#[test]
fn policy_is_read_whatever_its_line_ends_and_the_keys_that_nobody_knows() {
    let text = "version: STSv1\r\nmode:testing\r\n\r\nnew_key: x\r\nmx: MX1.Example\r\nmx: *.example.net\r\nmax_age: 604800\r\n";
    let policy = Policy::parse(text).unwrap();
    assert_eq!(policy.mode, Mode::Testing);
    assert_eq!(policy.patterns, ["mx1.example", "*.example.net"]);
    assert_eq!(policy.max_age, 7 * DAY);
    assert!(!policy.is_enforced());
    assert!(Policy::parse(ENFORCED).unwrap().is_enforced());
    assert_eq!(Policy::parse("version: STSv1\nmode: none\nmax_age: 0").unwrap().mode, Mode::None);
}

#[test]
fn text_that_is_no_policy_is_refused() {
    for text in ["", "mode: enforce\nversion: STSv1\n", "version: STSv2\n", "<html>"] {
        assert_eq!(refused(text), InvalidPolicy::Version, "{text}");
    }
    assert_eq!(refused("version: STSv1\nmode: Enforced\nmx: a\nmax_age: 1"), InvalidPolicy::Mode);
    assert_eq!(refused("version: STSv1\nmx: a\nmax_age: 1"), InvalidPolicy::Mode);
    for age in ["", "max_age: ", "max_age: -1", "max_age: +1", "max_age: a day"] {
        assert_eq!(refused(&format!("version: STSv1\nmode: enforce\nmx: a\n{age}")), InvalidPolicy::MaxAge, "{age}");
    }
    assert_eq!(refused("version: STSv1\nmode: enforce\nmx:\nmax_age: 1"), InvalidPolicy::NoServer);
}

#[test]
fn policy_holds_for_a_year_at_the_most() {
    for age in ["31557601", "99999999999999999999999999"] {
        let policy = Policy::parse(&format!("version: STSv1\nmode: none\nmax_age: {age}")).unwrap();
        assert_eq!(policy.max_age, Duration::from_secs(MAX_AGE), "{age}");
    }
}

#[test]
fn star_stands_for_one_label_and_no_more() {
    let policy = Policy::parse("version: STSv1\nmode: enforce\nmx: mail.example\nmx: *.b.example\nmax_age: 1").unwrap();
    for name in ["mail.example", "MAIL.example", "a.b.example"] {
        assert!(policy.names(&host(name)), "{name}");
    }
    for name in ["b.example", "a.a.b.example", "ab.example", "x.mail.example", "example"] {
        assert!(!policy.names(&host(name)), "{name}");
    }
}

#[test]
fn record_is_one_of_its_kind_with_a_version() {
    let id = |texts: &[&str]| {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        policy_id(&texts).map(str::to_owned)
    };
    assert_eq!(id(&["v=spf1 -all", "v=STSv1; id=20260101T00;"]).as_deref(), Some("20260101T00"));
    assert_eq!(id(&["v=STSv1;id=1"]).as_deref(), Some("1"));
    for texts in [
        &[][..],
        &["v=STSv1; id=1", "v=STSv1; id=2"],
        &["v=STSv1"],
        &["v=STSv1;"],
        &["v=STSv1; id="],
        &["v=STSv1; id=a-b"],
        &["v=STSv10; id=1"],
        &["id=1; v=STSv1"],
        &["v=STSv1; id=012345678901234567890123456789012"],
    ] {
        assert_eq!(id(texts), None, "{texts:?}");
    }
}

/// Policies that come from a web server which has this text, or none, and counts who asks.
fn served(text: Arc<Mutex<Option<String>>>) -> (Policies, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let fetch: Fetch = Box::new(move |host, addresses| {
        assert!(host.as_str().starts_with("mta-sts."));
        assert_eq!(addresses, [IpAddr::from([192, 0, 2, 1])]);
        counted.fetch_add(1, Ordering::Relaxed);
        let text = text.lock().unwrap().clone();
        Box::pin(async move { text })
    });
    (Policies::new(fetch), asked)
}

fn serving(text: &str) -> Arc<Mutex<Option<String>>> {
    Arc::new(Mutex::new(Some(text.to_owned())))
}

async fn enforced(policies: &Policies, domain: &str, record: Option<&str>) -> bool {
    let texts: Vec<_> = record.map(|id| format!("v=STSv1; id={id}")).into_iter().collect();
    let found = policies.of(&host(domain), &texts, async |_: HostName| vec![IpAddr::from([192, 0, 2, 1])]).await;
    found.is_some_and(|policy| policy.is_enforced())
}

#[tokio::test(start_paused = true)]
async fn policy_is_fetched_once_for_each_version() {
    let text = serving(ENFORCED);
    let (policies, asked) = served(Arc::clone(&text));
    assert!(!enforced(&policies, "b.example", None).await, "without a record nobody is asked");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    assert!(enforced(&policies, "b.example", Some("1")).await);
    assert!(enforced(&policies, "b.example", Some("1")).await);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    *text.lock().unwrap() = Some(ENFORCED.replace("enforce", "testing"));
    assert!(!enforced(&policies, "b.example", Some("2")).await);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn policy_holds_without_its_record_and_its_web_server_until_its_time_is_over() {
    let text = serving(ENFORCED);
    let (policies, _) = served(Arc::clone(&text));
    assert!(enforced(&policies, "b.example", Some("1")).await);
    *text.lock().unwrap() = None;
    advance(DAY - Duration::from_secs(1)).await;
    assert!(enforced(&policies, "b.example", None).await, "no record");
    assert!(enforced(&policies, "b.example", Some("2")).await, "no web server");
    advance(Duration::from_secs(2)).await;
    assert!(!enforced(&policies, "b.example", Some("2")).await);
    assert!(!enforced(&policies, "b.example", None).await);
}

#[tokio::test(start_paused = true)]
async fn policy_that_is_not_to_be_had_is_not_asked_for_with_each_mail() {
    let text = Arc::new(Mutex::new(None));
    let (policies, asked) = served(Arc::clone(&text));
    for _ in 0..3 {
        assert!(!enforced(&policies, "b.example", Some("1")).await);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    *text.lock().unwrap() = Some("no policy".to_owned());
    advance(ASK_AGAIN).await;
    assert!(!enforced(&policies, "b.example", Some("1")).await);
    *text.lock().unwrap() = Some(ENFORCED.to_owned());
    advance(ASK_AGAIN).await;
    assert!(enforced(&policies, "b.example", Some("1")).await);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn web_server_at_no_address_that_may_be_called_is_not_asked() {
    let (policies, asked) = served(serving(ENFORCED));
    let texts = ["v=STSv1; id=1".to_owned()];
    assert!(policies.of(&host("b.example"), &texts, async |_: HostName| Vec::new()).await.is_none());
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn strangers_fill_no_memory_with_policies() {
    let (policies, _) = served(serving(ENFORCED));
    for i in 0..3 * MAX_KNOWN {
        assert!(enforced(&policies, &format!("{i}.example"), Some("1")).await);
    }
    assert_eq!(format!("{policies:?}"), format!("Policies({MAX_KNOWN})"));
}
