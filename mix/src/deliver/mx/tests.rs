use std::net::Ipv4Addr;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;

use super::testing::{At, Zone, name_server};
use super::*;
use crate::deliver::smtp::tests::{Manners, all, self_signed, server_on};

/// What a server has heard.
type Hears = UnboundedReceiver<String>;

/// The address of the first, the second, ... server of a test.
fn address(number: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, number])
}

/// Servers at one port of 127.0.0.1, 127.0.0.2 and so on.
async fn servers<const N: usize>(manners: [Manners; N]) -> (u16, [Hears; N]) {
    let first = TcpListener::bind((address(1), 0)).await.unwrap();
    let port = first.local_addr().unwrap().port();
    let mut listeners = vec![first];
    for number in 2..=u8::try_from(N).unwrap() {
        listeners.push(TcpListener::bind((address(number), port)).await.unwrap());
    }
    let hears: Vec<_> =
        listeners.into_iter().zip(manners).map(|(listener, manners)| server_on(listener, manners)).collect();
    (port, hears.try_into().unwrap())
}

fn answers(to: &'static str, with: &'static str) -> Manners {
    Manners { refuse: Some((to, with)), ..Manners::default() }
}

/// Web servers that have no policy.
fn no_policies() -> Arc<Policies> {
    Arc::new(Policies::new(Box::new(|_, _| Box::pin(async { None })), None))
}

/// Web servers that have this one.
fn policies(text: &'static str) -> Arc<Policies> {
    Arc::new(Policies::new(Box::new(move |_, _| Box::pin(async move { Some(text.to_owned()) })), None))
}

fn return_address() -> Mailbox {
    Mailbox::parse("nobody@exit.example").unwrap()
}

async fn config(zone: Zone, port: u16) -> MxConfig {
    let (names, _) = name_server(zone).await;
    let inside = (1..10).map(address).collect();
    MxConfig { name_servers: vec![names], port, inside, timeout: Duration::from_secs(20), ..MxConfig::default() }
}

async fn deliver_by(config: &MxConfig, policies: Arc<Policies>, to: &str) -> Result<(), NotOffered> {
    let (from, to) = (return_address(), Mailbox::parse(to).unwrap());
    let exit = MxExit::new(config, &from, policies).unwrap();
    let conversation = exit.offer(&from, &to, &mut StdRng::seed_from_u64(1)).await?;
    conversation.hand_over(b"Subject: x\r\n\r\ntext\r\n").await.unwrap();
    Ok(())
}

/// A mail to bob at `b.example`.
async fn deliver(zone: Zone, port: u16) -> Result<(), NotOffered> {
    deliver_by(&config(zone, port).await, no_policies(), "bob@b.example").await
}

fn has_mail(hears: &mut Hears) -> bool {
    all(hears).iter().any(|said| said.starts_with("Subject: x"))
}

/// Two servers, of which the first is preferred.
fn two() -> Zone {
    vec![
        ("b.example", At::Mx(20, "second.example")),
        ("b.example", At::Mx(10, "first.example")),
        ("first.example", At::Address(address(1))),
        ("second.example", At::Address(address(2))),
    ]
}

#[tokio::test]
async fn mail_goes_to_the_server_that_the_domain_prefers() {
    let (port, [mut first, mut second]) = servers([Manners::default(), Manners::default()]).await;
    deliver(two(), port).await.unwrap();
    let said = all(&mut first);
    for expected in ["EHLO exit.example", "MAIL FROM:<nobody@exit.example>", "RCPT TO:<bob@b.example>"] {
        assert!(said.iter().any(|line| line == expected), "{expected}: {said:?}");
    }
    assert!(said.iter().any(|line| line.starts_with("Subject: x\r\n\r\ntext\r\n")), "{said:?}");
    assert_eq!(all(&mut second), Vec::<String>::new());
}

#[tokio::test]
async fn server_that_turns_us_away_before_it_hears_of_a_recipient_makes_it_the_turn_of_the_next() {
    for (command, answer) in [
        ("greeting", "421 busy"),
        ("greeting", "554 go away"),
        ("greeting", "nonsense"),
        ("EHLO", "450 later"),
        ("MAIL", "451 later"),
        ("MAIL", "550 not you"),
        ("RCPT", "421 closing"),
        ("DATA", "421 closing"),
    ] {
        let (port, [_first, mut second]) = servers([answers(command, answer), Manners::default()]).await;
        assert_eq!(deliver(two(), port).await, Ok(()), "{command} {answer}");
        assert!(has_mail(&mut second), "{command} {answer}");
    }
}

#[tokio::test]
async fn what_a_server_says_of_the_recipient_is_not_asked_again_of_the_next() {
    for (command, answer, expected) in [
        ("RCPT", "550 <bob@b.example>: no such user", NotOffered::Refused { code: 550 }),
        ("RCPT", "450 greylisted", NotOffered::NotNow { code: 450 }),
        ("DATA", "554 no", NotOffered::Refused { code: 554 }),
    ] {
        let (port, [_first, mut second]) = servers([answers(command, answer), Manners::default()]).await;
        let outcome = deliver(two(), port).await;
        assert_eq!(outcome, Err(expected), "{command} {answer}");
        assert!(!outcome.unwrap_err().to_string().contains("bob"));
        assert_eq!(all(&mut second), Vec::<String>::new());
    }
}

#[tokio::test]
async fn domain_none_of_whose_servers_is_there_is_away() {
    let (port, [_first, _second]) = servers([answers("greeting", "421 busy"), answers("MAIL", "450 later")]).await;
    assert_eq!(deliver(two(), port).await, Err(NotOffered::Away));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert_eq!(deliver(two(), nobody).await, Err(NotOffered::Away));
    let nameless = vec![("b.example", At::Mx(10, "gone.example"))];
    assert_eq!(deliver(nameless, port).await, Err(NotOffered::Away), "its server may come back");
}

#[tokio::test]
async fn mail_is_refused_where_no_server_that_answers_ever_takes_any_of_ours() {
    for (command, answer, code) in [
        ("greeting", "554 no mail from you", 554),
        ("EHLO", "521 nor from anybody", 521),
        ("MAIL", "550 not you", 550),
        ("MAIL", "530 log in first", 530),
    ] {
        let (port, [mut first]) = servers([answers(command, answer)]).await;
        // Of the second, whom nobody ever reaches, nothing is known.
        assert_eq!(deliver(two(), port).await, Err(NotOffered::Refused { code }), "{command} {answer}");
        assert!(!all(&mut first).iter().any(|line| line.starts_with("RCPT")), "{command} {answer}");
    }
}

#[tokio::test]
async fn mail_waits_where_one_server_has_not_refused_it_for_good() {
    for (command, answer) in [("greeting", "421 busy"), ("MAIL", "451 later"), ("greeting", "nonsense")] {
        let refuses = answers("greeting", "554 no mail from you");
        let (port, _hears) = servers([refuses, answers(command, answer)]).await;
        assert_eq!(deliver(two(), port).await, Err(NotOffered::Away), "{command} {answer}");
    }
}

#[tokio::test]
async fn refusal_of_a_server_that_has_not_proven_itself_is_not_believed_where_the_domain_asks_for_proof() {
    let (port, _hears) = servers([answers("greeting", "554 no mail from you"), Manners::default()]).await;
    let config = config(two_with_policy(), port).await;
    let outcome = deliver_by(&config, policies(ENFORCED), "bob@b.example").await;
    assert_eq!(outcome, Err(NotOffered::Away), "anybody on the way can say so");
}

#[tokio::test]
async fn server_that_falls_silent_in_the_handshake_gets_its_mail_in_the_clear() {
    let silent = || Manners { hang_at: Some("handshake"), offers_tls: true, ..Manners::default() };
    let (port, [mut hears]) = servers([silent()]).await;
    let config = MxConfig { timeout: Duration::from_secs(4), ..config(two(), port).await };
    assert_eq!(deliver_by(&config, no_policies(), "bob@b.example").await, Ok(()));
    assert!(has_mail(&mut hears));
    let (port, [mut first, _second]) = servers([silent(), silent()]).await;
    let config = MxConfig { timeout: Duration::from_secs(1), ..self::config(two_with_policy(), port).await };
    assert_eq!(deliver_by(&config, policies(ENFORCED), "bob@b.example").await, Err(NotOffered::Away));
    assert!(!all(&mut first).iter().any(|line| line.contains("MAIL")), "the domain wants TLS");
}

#[tokio::test]
async fn server_that_hangs_leaves_time_for_the_next() {
    for command in ["greeting", "MAIL", "RCPT"] {
        let hangs = Manners { hang_at: Some(command), ..Manners::default() };
        let (port, [_first, mut second]) = servers([hangs, Manners::default()]).await;
        let config = MxConfig { timeout: Duration::from_secs(2), ..config(two(), port).await };
        assert_eq!(deliver_by(&config, no_policies(), "bob@b.example").await, Ok(()), "{command}");
        assert!(has_mail(&mut second), "{command}");
    }
}

#[tokio::test]
async fn silence_about_a_recipient_is_told_from_a_domain_that_is_away() {
    for (command, expected) in [("greeting", NotOffered::Away), ("RCPT", NotOffered::Unanswered)] {
        let hangs = Manners { hang_at: Some(command), ..Manners::default() };
        let (port, _hears) = servers([hangs]).await;
        let zone = vec![("b.example", At::Address(address(1)))];
        let config = MxConfig { timeout: Duration::from_millis(600), ..config(zone, port).await };
        assert_eq!(deliver_by(&config, no_policies(), "bob@b.example").await, Err(expected), "{command}");
    }
}

#[tokio::test]
async fn domain_without_named_servers_takes_its_mail_itself() {
    let (port, [mut hears]) = servers([Manners::default()]).await;
    deliver(vec![("b.example", At::Address(address(1)))], port).await.unwrap();
    assert!(has_mail(&mut hears));
}

#[tokio::test]
async fn aliases_are_followed() {
    let (port, [mut hears]) = servers([Manners::default()]).await;
    let zone = vec![
        ("b.example", At::Alias("other.example")),
        ("other.example", At::Mx(10, "alias.example")),
        ("alias.example", At::Alias("mx.example")),
        ("mx.example", At::Address(address(1))),
    ];
    deliver(zone, port).await.unwrap();
    assert!(has_mail(&mut hears));
}

#[tokio::test]
async fn domain_that_takes_no_mail_or_is_not_there_gets_none_ever() {
    let (port, [mut hears]) = servers([Manners::default()]).await;
    for zone in [
        vec![("b.example", At::Mx(0, ".")), ("b.example", At::Address(address(1)))],
        vec![("other.example", At::Address(address(1)))],
        vec![("b.example", At::Nothing)],
    ] {
        let label = format!("{zone:?}");
        assert_eq!(deliver(zone, port).await, Err(NotOffered::NoMail), "{label}");
    }
    let odd = config(two(), port).await;
    for to in ["bob@b_x.example", "bob@b!x.example", &format!("bob@{}.example", "x".repeat(64)), "bob@-\u{7e}.example"]
    {
        assert_eq!(deliver_by(&odd, no_policies(), to).await, Err(NotOffered::NoMail), "{to}");
    }
    assert_eq!(all(&mut hears), Vec::<String>::new());
}

#[tokio::test]
async fn name_service_that_has_no_answer_loses_no_mail() {
    let (port, [_hears]) = servers([Manners::default()]).await;
    assert_eq!(deliver(vec![("b.example", At::Fails)], port).await, Err(NotOffered::Away));
    let without_mx = vec![("b.example", At::Mx(1, "mx.example")), ("mx.example", At::Fails)];
    assert_eq!(deliver(without_mx, port).await, Err(NotOffered::Away));
    let hangs = config(vec![("b.example", At::Hangs)], port).await;
    let hangs = MxConfig { timeout: Duration::from_millis(300), ..hangs };
    assert_eq!(deliver_by(&hangs, no_policies(), "bob@b.example").await, Err(NotOffered::Away));
}

#[tokio::test]
async fn nobody_inside_is_called_by_what_strangers_write_into_a_name_service() {
    let (port, [mut hears]) = servers([Manners::default()]).await;
    for there in [IpAddr::from(Ipv4Addr::LOCALHOST), "::ffff:127.0.0.1".parse().unwrap(), "::1".parse().unwrap()] {
        let zone = vec![("b.example", At::Mx(10, "mx.example")), ("mx.example", At::Address(there))];
        let closed = MxConfig { inside: Vec::new(), ..config(zone.clone(), port).await };
        assert_eq!(deliver_by(&closed, no_policies(), "bob@b.example").await, Err(NotOffered::Away), "{there}");
        let other = MxConfig { inside: vec![address(2)], ..config(zone, port).await };
        assert_eq!(deliver_by(&other, no_policies(), "bob@b.example").await, Err(NotOffered::Away), "{there}");
    }
    assert_eq!(all(&mut hears), Vec::<String>::new());
}

#[tokio::test]
async fn server_is_called_from_the_address_of_its_kind_that_is_set() {
    let listener = TcpListener::bind((address(1), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let zone = vec![("b.example", At::Address(address(1)))];
    let bind = vec!["::1".parse().unwrap(), address(7)];
    let config = MxConfig { bind, ..config(zone, port).await };
    // Whoever calls is let in, and finds the line cut.
    let called = async { listener.accept().await.unwrap().1.ip() };
    let (from, outcome) = tokio::join!(called, deliver_by(&config, no_policies(), "bob@b.example"));
    assert_eq!((from, outcome), (address(7), Err(NotOffered::Away)));
}

#[tokio::test]
async fn server_of_another_kind_than_the_address_that_is_set_is_not_called() {
    let (port, [mut hears]) = servers([Manners::default()]).await;
    for there in [address(1), "::ffff:127.0.0.1".parse().unwrap()] {
        let config = config(vec![("b.example", At::Address(there))], port).await;
        let bound = MxConfig { bind: vec!["::1".parse().unwrap()], ..config.clone() };
        assert_eq!(deliver_by(&bound, no_policies(), "bob@b.example").await, Err(NotOffered::Away), "{there}");
        assert_eq!(all(&mut hears), Vec::<String>::new());
        let bound = MxConfig { bind: vec!["::ffff:127.0.0.7".parse().unwrap()], ..config };
        assert_eq!(deliver_by(&bound, no_policies(), "bob@b.example").await, Ok(()), "{there}");
        assert!(has_mail(&mut hears));
    }
}

#[tokio::test]
async fn address_that_this_machine_does_not_have_is_told_from_a_domain_that_is_away() {
    let (port, [mut hears]) = servers([Manners::default()]).await;
    let zone = vec![("b.example", At::Address(address(1)))];
    let config = MxConfig { bind: vec!["192.0.2.1".parse().unwrap()], ..config(zone, port).await };
    assert_eq!(deliver_by(&config, no_policies(), "bob@b.example").await, Err(NotOffered::NotFromHere));
    assert_eq!(all(&mut hears), Vec::<String>::new());
}

#[test]
fn servers_of_one_preference_come_in_any_order_and_never_before_those_that_are_preferred() {
    let exchange = |preference, name| Exchange { preference, host: Some(HostName::parse(name).unwrap()) };
    let mut firsts = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let all = vec![exchange(20, "c"), exchange(10, "a"), exchange(10, "b")];
        let hosts = in_order(all, &mut StdRng::seed_from_u64(seed)).unwrap();
        assert_eq!(hosts[2].as_str(), "c", "seed {seed}");
        firsts.insert(hosts[0].as_str().to_owned());
    }
    assert_eq!(firsts.len(), 2);
}

#[tokio::test]
async fn domain_with_many_servers_has_few_of_them_tried() {
    let names: Vec<&'static str> = (0..20_u8).map(|i| &*format!("mx{i}.example").leak()).collect();
    let mut zone = Zone::new();
    for name in &names {
        zone.push(("b.example", At::Mx(10, name)));
        zone.extend((1..10).map(|number| (*name, At::Address(address(number)))));
    }
    let (port, mut hears) = servers([(); 9].map(|()| answers("MAIL", "450 later"))).await;
    let (name_server, asked) = name_server(zone).await;
    let inside = (1..10).map(address).collect();
    let config = MxConfig { name_servers: vec![name_server], port, inside, ..MxConfig::default() };
    assert_eq!(deliver_by(&config, no_policies(), "bob@b.example").await, Err(NotOffered::Away));
    let asked = asked.lock().unwrap().keys().filter(|name| name.starts_with("mx")).count();
    assert!(asked <= MAX_HOSTS, "{asked} hosts");
    let heard = hears.each_mut().map(|hears| all(hears).iter().filter(|line| line.starts_with("MAIL")).count());
    assert_eq!(heard.iter().sum::<usize>(), MAX_ADDRESSES);
    assert_eq!(
        heard[MAX_ADDRESSES_OF_HOST..],
        [0; 9 - MAX_ADDRESSES_OF_HOST],
        "more addresses than are tried of a host"
    );
}

#[tokio::test]
async fn tls_is_spoken_where_it_is_offered_and_done_without_where_it_fails() {
    let manners = Manners { offers_tls: true, tls: Some(self_signed("another.example")), ..Manners::default() };
    let zone = || vec![("b.example", At::Address(address(1)))];
    let (port, [mut hears]) = servers([manners]).await;
    deliver(zone(), port).await.unwrap();
    assert!(all(&mut hears).iter().any(|line| line == "+RCPT TO:<bob@b.example>"));
    for manners in [Manners { offers_tls: true, ..Manners::default() }, answers("STARTTLS", "454 not now")] {
        let (port, [mut hears]) = servers([Manners { offers_tls: true, ..manners }]).await;
        deliver(zone(), port).await.unwrap();
        assert!(all(&mut hears).iter().any(|line| line == "RCPT TO:<bob@b.example>"));
    }
}

const ENFORCED: &str = "version: STSv1\nmode: enforce\nmx: first.example\nmax_age: 86400\n";

/// [`two`], with a policy at its web server.
fn two_with_policy() -> Zone {
    let mut zone = two();
    zone.push(("_mta-sts.b.example", At::Text(&["v=STSv1; ", "id=1"])));
    zone.push(("mta-sts.b.example", At::Address(address(9))));
    zone
}

#[tokio::test]
async fn server_that_breaks_an_enforced_policy_hears_of_no_mail() {
    let good_name = || Manners { offers_tls: true, tls: Some(self_signed("first.example")), ..Manners::default() };
    let no_tls = || Manners { offers_tls: true, ..Manners::default() };
    for first in [good_name(), no_tls(), Manners::default()] {
        let (port, [mut first, mut second]) = servers([first, good_name()]).await;
        let config = config(two_with_policy(), port).await;
        let outcome = deliver_by(&config, policies(ENFORCED), "bob@b.example").await;
        assert_eq!(outcome, Err(NotOffered::Away));
        let said = all(&mut first);
        assert!(said.iter().any(|line| line.starts_with("EHLO")), "it was called: {said:?}");
        assert!(!said.iter().any(|line| line.contains("MAIL")), "{said:?}");
        assert_eq!(all(&mut second), Vec::<String>::new(), "the policy does not name it");
    }
}

#[tokio::test]
async fn policy_that_is_tried_out_or_not_looked_at_holds_up_no_mail() {
    let testing = "version: STSv1\nmode: testing\nmx: first.example\nmax_age: 86400\n";
    for (policy, mta_sts) in [(testing, true), (ENFORCED, false)] {
        let (port, [mut first, _second]) = servers([Manners::default(), Manners::default()]).await;
        let config = MxConfig { mta_sts, ..config(two_with_policy(), port).await };
        assert_eq!(deliver_by(&config, policies(policy), "bob@b.example").await, Ok(()), "{policy}");
        assert!(has_mail(&mut first), "{policy}");
    }
}

#[tokio::test]
async fn web_server_of_a_domain_is_not_called_inside_either() {
    let (port, [mut first, _second]) = servers([Manners::default(), Manners::default()]).await;
    let config = config(two_with_policy(), port).await;
    let config = MxConfig { inside: vec![address(1), address(2)], ..config };
    let never: Arc<Policies> = Arc::new(Policies::new(Box::new(|_, _| panic!("called")), None));
    deliver_by(&config, never, "bob@b.example").await.unwrap();
    assert!(has_mail(&mut first));
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_by_name() {
    let refused = |change: fn(&mut MxConfig)| {
        let mut config = MxConfig { name_servers: vec![([127, 0, 0, 1], 53).into()], ..MxConfig::default() };
        change(&mut config);
        MxExit::new(&config, &return_address(), no_policies()).err()
    };
    assert!(refused(|_| {}).is_none());
    assert!(matches!(refused(|config| config.hello = Some("a b".into())), Some(InvalidMx::Hello)));
    assert!(matches!(refused(|config| config.port = 0), Some(InvalidMx::Port)));
    for two in [["192.0.2.1", "192.0.2.2"], ["192.0.2.1", "::ffff:192.0.2.1"], ["2001:db8::1", "2001:db8::2"]] {
        let bind: Vec<IpAddr> = two.map(|address| address.parse().unwrap()).to_vec();
        let config = MxConfig { name_servers: vec![([127, 0, 0, 1], 53).into()], bind, ..MxConfig::default() };
        let refused = MxExit::new(&config, &return_address(), no_policies()).err();
        assert!(matches!(refused, Some(InvalidMx::Bind)), "{two:?}");
    }
}

#[tokio::test]
async fn same_settings_are_the_same_way() {
    let config = MxConfig { name_servers: vec![([127, 0, 0, 1], 53).into()], ..MxConfig::default() };
    let exit = |config: &MxConfig| MxExit::new(config, &return_address(), no_policies()).unwrap();
    assert!(exit(&config).is(&exit(&config)));
    assert!(!exit(&config).is(&exit(&MxConfig { port: 26, ..config.clone() })));
}
