use super::*;
use crate::net::addresses::{Access, ListenAddresses};
use crate::net::bandwidth::BandwidthConfig;
use crate::net::loopback::LoopbackAddress;
use crate::node::config::{DummiesConfig, MixingConfig};
use crate::node::{NotOptedOut, Progress, Publication};

fn with(mixing: MixingConfig) -> NodeConfig {
    NodeConfig { mixing, ..NodeConfig::default() }
}

#[test]
fn defaults_are_not_insecure() {
    assert_eq!(weaknesses(&NodeConfig::default()), [""; 0]);
}

#[test]
fn what_a_start_would_refuse_is_refused_by_the_check() {
    let refused = |change: fn(&mut NodeConfig)| {
        let mut config = NodeConfig { nickname: "Alice".into(), ..NodeConfig::default() };
        check(&config, false).unwrap();
        change(&mut config);
        check(&config, false).unwrap_err()
    };
    // The rule is for the usual port alone.
    let access = refused(|config| {
        config.listen = "0.0.0.0:4711".parse().unwrap();
        config.incoming.access = Access::try_from(vec!["allow *".to_owned()]).unwrap();
    });
    assert!(matches!(access, NodeError::Access { port: 4711 }), "{access:?}");
    type Change = fn(&mut NodeConfig);
    let too_long: [(Change, &str, usize); 3] = [
        (|config| config.contact = "x".repeat(257), "node.contact", 256),
        (|config| config.contact_fingerprint = "0".repeat(129), "node.contact_fingerprint", 128),
        (|config| config.comments = "x".repeat(1025), "node.comments", 1024),
    ];
    for (change, expected, max) in too_long {
        let why = refused(change);
        let NodeError::Text { key, source } = why else { panic!("{why:?}") };
        assert_eq!((key, source), (expected, InvalidText::TooLong { max }));
    }
    let unwritable: [Change; 2] =
        [|config| config.comments = "two\nlines".into(), |config| config.comments = "gr\u{fc}n".into()];
    for change in unwritable {
        let why = refused(change);
        let as_expected = matches!(why, NodeError::Text { key: "node.comments", source: InvalidText::Unwritable });
        assert!(as_expected, "{why:?}");
    }
}

#[test]
fn key_to_mend_is_named() {
    let limit = |average, spike| NodeConfig { bandwidth: BandwidthConfig { average, spike }, ..Default::default() };
    for (config, key) in [
        (limit(8192, 0), "node.bandwidth.average"),
        (limit(0, 8192), "node.bandwidth.spike"),
        (limit(1 << 20, 1), "node.bandwidth.spike"),
    ] {
        assert_eq!(bandwidth(&config).unwrap_err().key(), Some(key));
    }
    assert_eq!(NodeError::Access { port: 5000 }.key(), Some("node.incoming.access"));
    let text = NodeError::Text { key: "node.comments", source: InvalidText::Unwritable };
    assert_eq!(text.key(), Some("node.comments"));
}

#[tokio::test]
async fn longest_texts_that_the_check_takes_are_taken_by_a_start() {
    let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let mut config = NodeConfig { home: home.path().join("node"), ..NodeConfig::default() };
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    config.contact = "x".repeat(256);
    config.contact_fingerprint = "0".repeat(128);
    config.comments = "x".repeat(1024);
    let running = started(&config, &stop).await;
    assert_eq!(running.descriptor().comments(), Some(config.comments.as_str()));
    stop.cancel();
    running.ended().await;
}

#[test]
fn each_setting_that_weakens_is_named() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let default = MixingConfig::default;
    for (mixing, why) in [
        (MixingConfig { rule: MixRule::Timed, ..default() }, "Mix algorithm is not secure"),
        (MixingConfig { minimum: 4, ..default() }, "MixPoolMinSize is too small"),
        (MixingConfig { rule: MixRule::Cottrell, minimum: 0, ..default() }, "MixPoolMinSize is too small"),
        (MixingConfig { rate: 0.81, ..default() }, "MixPoolRate is too high"),
        (MixingConfig { interval: minutes(14), ..default() }, "Mix interval under 15 minutes"),
    ] {
        assert_eq!(weaknesses(&with(mixing)), [why]);
    }
    for dummies in [
        DummiesConfig { enabled: false, ..DummiesConfig::default() },
        DummiesConfig { drop_mean: 0.0, ..DummiesConfig::default() },
    ] {
        let config = NodeConfig { dummies, ..NodeConfig::default() };
        assert_eq!(weaknesses(&config), ["Dummies are not sent"]);
        let told = NodeConfig { elsewhere: vec!["Dummies are not sent"], ..config };
        assert_eq!(weaknesses(&told), ["Dummies are not sent"], "once");
    }
    let dummies = DummiesConfig { junk_period: Duration::ZERO, ..DummiesConfig::default() };
    assert_eq!(weaknesses(&NodeConfig { dummies, ..NodeConfig::default() }), ["Idle links are not padded"]);
}

#[test]
fn several_reasons_are_all_named_and_what_a_timed_pool_does_not_use_is_not() {
    let interval = Duration::from_secs(60);
    let mixing = MixingConfig { rule: MixRule::Timed, interval, minimum: 0, rate: 1.0 };
    let expected = ["Log is too verbose", "Mix algorithm is not secure", "Mix interval under 15 minutes"];
    let config = NodeConfig { elsewhere: vec!["Log is too verbose"], ..with(mixing) };
    assert_eq!(weaknesses(&config), expected);
}

async fn node(home: &tempfile::TempDir, stop: &CancellationToken) -> (NodeConfig, RunningNode) {
    let mut config = NodeConfig { home: home.path().join("node"), ..NodeConfig::default() };
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    let running = started(&config, stop).await;
    (config, running)
}

pub(super) async fn started(config: &NodeConfig, stop: &CancellationToken) -> RunningNode {
    Node::start(config, parts(stop)).await.unwrap()
}

pub(super) fn parts(stop: &CancellationToken) -> Parts {
    Parts {
        world: World::real(),
        counters: Counters::default(),
        mailboxes: None,
        network: NetworkConfig::default(),
        directory: None,
        passphrase: None,
        sockets: Inherited::default(),
        stop: stop.clone(),
    }
}

#[tokio::test]
async fn node_listens_at_all_its_addresses_and_publishes_its_rules_and_the_first_port() {
    let home = tempfile::tempdir().unwrap();
    let listen = ["127.0.0.1:0", "[::1]:0"].map(|address| address.parse().unwrap()).to_vec();
    let rules = ["deny 192.0.2.7", "deny 2001:db8::/32", "allow * 1-65535"].map(str::to_owned).to_vec();
    let mut config = NodeConfig {
        home: home.path().join("node"),
        listen: ListenAddresses::try_from(listen).unwrap(),
        ..NodeConfig::default()
    };
    config.incoming.access = Access::try_from(rules).unwrap();
    let stop = CancellationToken::new();
    let node = started(&config, &stop).await;
    let [v4, v6] = node.addresses[..] else { panic!("{:?}", node.addresses) };
    assert!(v4.is_ipv4() && v6.is_ipv6() && node.address == v4);
    for address in [v4, v6] {
        tokio::net::TcpStream::connect(address).await.unwrap();
    }
    let descriptor = node.descriptor();
    let incoming = descriptor.incoming().unwrap();
    assert_eq!(incoming.port, v4.port());
    assert_eq!(incoming.policy.rules().len(), 2, "without the rule of IPv6");
    assert!(descriptor.text().contains("\nDeny: 192.0.2.7\nAllow: * 1-65535\n[Outgoing/MMTP]\n"));
    stop.cancel();
    node.ended().await;
}

#[test]
fn rules_that_let_nobody_in_at_a_port_of_the_node_are_refused_by_name() {
    let mut config = NodeConfig::default();
    config.incoming.access = Access::try_from(vec!["allow *".to_owned()]).unwrap();
    let at = |ports: &[u16]| ports.iter().map(|port| SocketAddr::from(([0, 0, 0, 0], *port))).collect::<Vec<_>>();
    assert!(check_access(&config, &at(&[48099])).is_ok());
    let refused = check_access(&config, &at(&[48099, 5000])).unwrap_err();
    assert!(matches!(refused, NodeError::Access { port: 5000 }) && refused.is_configuration(), "{refused:?}");
}

#[test]
fn bandwidth_that_would_starve_its_links_is_refused_by_name_and_fewer_links_need_less() {
    let mut config = NodeConfig { bandwidth: BandwidthConfig { average: 8192, spike: 0 }, ..NodeConfig::default() };
    let refused = bandwidth(&config).unwrap_err();
    let too_little = InvalidBandwidth::TooLittle { average: 8192, links: 272, needed: 30_639 };
    assert!(matches!(refused, NodeError::Bandwidth(why) if why == too_little), "{refused:?}");
    assert!(refused.is_configuration());
    config.incoming.max_connections = 32;
    assert!(bandwidth(&config).unwrap().is_some());
    config.bandwidth = BandwidthConfig::default();
    assert!(bandwidth(&config).unwrap().is_none(), "off by default");
}

#[tokio::test]
async fn others_get_on_while_settings_are_read_anew() {
    let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let (mut config, running) = node(&home, &stop).await;
    let list = home.path().join("refusals");
    let patterns: String = (0..300).map(|number| format!("Deny pattern /^[a-z]+{number}x@/\n")).collect();
    std::fs::write(&list, patterns).unwrap();
    config.smtp.enabled = true;
    config.smtp.mail.return_address = crate::path::Mailbox::parse("nobody@exit.example").ok();
    config.smtp.refusals = Some(list);
    // On the only thread of this test, on which patterns would be compiled.
    let other = tokio::spawn(async {});
    running.control.apply(&config).await.unwrap();
    assert!(other.is_finished());
    stop.cancel();
    running.ended().await;
}

#[tokio::test]
async fn settings_change_while_the_node_runs_and_wrong_ones_change_nothing() {
    let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let (mut config, running) = node(&home, &stop).await;
    let changes = &running.control.0.changes;
    let rhythm = changes.rhythm.subscribe();
    config.mixing.rule = MixRule::Timed;
    config.mixing.interval = Duration::from_secs(2000);
    config.fragments.keep = Duration::from_secs(77);
    running.control.apply(&config).await.unwrap();
    let expected = Rhythm { pool: Pool::Timed, interval: Duration::from_secs(2000) };
    assert_eq!(*rhythm.borrow(), expected);
    assert_eq!(changes.ways.subscribe().borrow().fragments.keep, Duration::from_secs(77));
    config.fragments.keep = Duration::from_secs(78);
    config.mixing = MixingConfig { rule: MixRule::Binomial, rate: 2.0, ..config.mixing };
    assert!(matches!(running.control.apply(&config).await, Err(NodeError::Mixing(_))));
    assert_eq!(*rhythm.borrow(), expected);
    assert_eq!(changes.ways.subscribe().borrow().fragments.keep, Duration::from_secs(77));
    assert_eq!(running.control.publish_again().await, Publication::Nowhere);
    stop.cancel();
    running.ended().await;
}

#[tokio::test]
async fn worker_that_hangs_and_store_that_is_gone_are_no_progress() {
    let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let (_, running) = node(&home, &stop).await;
    let control = running.control.clone();
    let mut seen = Progress::default();
    assert!(control.progress(&mut seen).await && control.progress(&mut seen).await, "idle is no harm");
    let working = control.0.counters.working();
    assert!(control.progress(&mut seen).await, "it has begun");
    assert!(!control.progress(&mut seen).await, "it has not moved");
    control.0.counters.beat();
    assert!(control.progress(&mut seen).await, "it moves");
    drop(working);
    assert!(control.progress(&mut seen).await && control.progress(&mut seen).await, "idle again");
    stop.cancel();
    running.ended().await;
    assert!(!control.progress(&mut seen).await, "the store is closed");
}

#[test]
fn list_of_refusals_with_a_mistake_is_refused_by_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("refusals");
    let mut config = NodeConfig { nickname: "Alice".into(), ..NodeConfig::default() };
    config.smtp.enabled = true;
    config.smtp.mail.return_address = crate::path::Mailbox::parse("nobody@exit.example").ok();
    config.smtp.refusals = Some(list.clone());
    let missing = check(&config, false).unwrap_err();
    assert!(matches!(missing, NodeError::Refusals(ListError::Unreadable { .. })), "{missing:?}");
    std::fs::write(&list, "Deny user bob\nDeny host example.org\n").unwrap();
    let refused = check(&config, false).unwrap_err();
    assert!(refused.is_configuration());
    assert_eq!(refused.key(), Some("node.smtp.refusals"));
    let said = crate::node::network::describe(&refused);
    let kinds = "`address`, `user`, `onehost`, `allhosts`, `pattern`";
    let expected = format!("node.smtp.refusals: {}: line 2: found `host`, expected one of {kinds}", list.display());
    assert_eq!(said, expected);
    std::fs::write(&list, "Deny user bob\n").unwrap();
    check(&config, false).unwrap();
    std::fs::write(&list, "Deny user\n").unwrap();
    config.smtp.enabled = false;
    check(&config, false).unwrap();
}

#[test]
fn page_for_opting_out_without_a_link_to_it_is_refused_and_so_is_the_reverse() {
    let mut config = NodeConfig { nickname: "Alice".into(), ..NodeConfig::default() };
    config.smtp.enabled = true;
    config.smtp.mail.return_address = crate::path::Mailbox::parse("nobody@exit.example").ok();
    let (url, listen) = (Some("https://exit.example/opt-out".to_owned()), Some(LoopbackAddress::ipv4(0)));
    for (url, listen, half) in
        [(None, None, false), (url.clone(), None, true), (None, listen, true), (url.clone(), listen, false)]
    {
        (config.smtp.opt_out.url, config.smtp.opt_out.listen) = (url, listen);
        let refused = check(&config, false).err();
        assert_eq!(refused.as_ref().is_some_and(|why| matches!(why, NodeError::HalfPage)), half, "{refused:?}");
        assert_eq!(refused.as_ref().and_then(NodeError::key), half.then_some("node.smtp.opt_out"));
    }
}

#[tokio::test]
async fn token_opts_its_own_mailbox_out_and_the_operator_undoes_it() {
    let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let (_, running) = node(&home, &stop).await;
    let control = running.control.clone();
    let bob = crate::path::Mailbox::parse("bob@example.org").unwrap();
    let token = control.0.opt_out_key.token(&bob).to_string();
    let refused = control.opt_out(&token, "eve@example.org").await.unwrap_err();
    assert!(matches!(refused, NotOptedOut::Token(_)), "{refused:?}");
    let refused = control.opt_out(&token, "nobody").await.unwrap_err();
    assert!(matches!(refused, NotOptedOut::Address(_)), "{refused:?}");
    assert!(control.may_opt_out(&token, "bob@example.org").is_ok());
    let list = async || control.opted_out(String::new()).await.unwrap();
    assert_eq!(list().await, [""; 0]);
    control.opt_out(&token.to_ascii_uppercase(), "Bob@Example.org").await.unwrap();
    control.opt_out(&token, "bob@example.org").await.unwrap();
    assert_eq!(list().await, ["bob@example.org"]);
    assert!(control.undo_opt_out(&bob).await.unwrap());
    assert!(!control.undo_opt_out(&bob).await.unwrap());
    assert_eq!(list().await, [""; 0]);
    stop.cancel();
    running.ended().await;
}
