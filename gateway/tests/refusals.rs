//! Starts that are refused, each by its own name, whoever's fault it is.

// Helpers of tests are outside clippy's leave for tests.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use mix::deliver::list::ListError;
use mix::deliver::maildir::InvalidMaildir;
use mix::deliver::mbox::{AddressesError, InvalidTable};
use mix::deliver::mx::InvalidMx;
use mix::deliver::sendmail::InvalidSendmail;
use mix::net::loopback::LoopbackAddress;
use mix::net::sockets::Inherited;
use mix::node::config::Way;
use mix::node::directory::DirectoryError;
use mix::node::keys::KeyError;
use mix::node::network::InvalidNetwork;
use mix::node::{NodeError, World};
use mix::path::Mailbox;
use mix::store::StoreError;
use mixgate::config::{IdentityConfig, Password};
use mixgate::{Config, Gateway, StartError};
use smtp_in::error::{InvalidConfig, NotServing};
use tempfile::TempDir;

/// A gateway and a node that would start.
fn good(home: &Path) -> Config {
    let mut config = Config::default();
    config.network.directory = "http://127.0.0.1:9/".into();
    config.network.directory_key = "0".repeat(40);
    config.gateway.enabled = true;
    config.gateway.home = home.join("gateway");
    config.gateway.smtp.listen = LoopbackAddress::ipv4(0);
    config.gateway.pop.listen = LoopbackAddress::ipv4(0);
    config.gateway.identities = vec![IdentityConfig {
        name: "alice".into(),
        password: Password::new("secret".into()),
        reply_to: "mbox:alice@Own".into(),
    }];
    config.node.enabled = true;
    config.node.nickname = "Own".into();
    config.node.home = home.join("node");
    config.node.listen = "127.0.0.1:0".parse().unwrap();
    config.node.mbox.enabled = true;
    config
}

/// What the start says after this change, and whether it blames the configuration.
async fn refused(change: impl FnOnce(&mut Config)) -> (StartError, bool) {
    let home = TempDir::new().unwrap();
    let mut config = good(home.path());
    change(&mut config);
    refused_as_it_is(config).await
}

async fn refused_as_it_is(config: Config) -> (StartError, bool) {
    match Gateway::start(config).await {
        Ok(_) => panic!("started"),
        Err(why) => {
            let blames_configuration = why.is_configuration();
            (why, blames_configuration)
        }
    }
}

#[tokio::test]
async fn what_the_others_change_would_start() {
    let home = TempDir::new().unwrap();
    Gateway::start(good(home.path())).await.unwrap().stop().await;
}

#[tokio::test]
async fn settings_of_the_gateway_are_refused_by_name() {
    let nothing = refused(|config| (config.gateway.enabled, config.node.enabled) = (false, false)).await;
    assert!(matches!(nothing, (StartError::NoRole, true)), "{nothing:?}");
    let nowhere = refused(|config| config.network.directory.clear()).await;
    assert!(matches!(nowhere, (StartError::NoDirectory, true)), "{nowhere:?}");
    let nobody = refused(|config| config.gateway.identities.clear()).await;
    assert!(matches!(nobody, (StartError::NoIdentity, true)), "{nobody:?}");
    let key = refused(|config| config.network.directory_key = "0".repeat(39)).await;
    assert!(matches!(key, (StartError::Network(InvalidNetwork::DirectoryKey), true)), "{key:?}");
    let path = refused(|config| config.gateway.sender.path = "a,,b".into()).await;
    assert!(matches!(path, (StartError::Path(_), true)), "{path:?}");
    let size = refused(|config| config.gateway.smtp.max_size = 10).await;
    let limit = |why: &StartError| matches!(why, StartError::Smtp(NotServing::Config(InvalidConfig::Limit { .. })));
    assert!(limit(&size.0) && size.1, "{size:?}");
}

#[tokio::test]
async fn identities_are_refused_by_name() {
    let nameless = refused(|config| config.gateway.identities[0].name.clear()).await;
    assert!(matches!(nameless, (StartError::Identity { .. }, true)), "{nameless:?}");
    let open = refused(|config| config.gateway.identities[0].password = Password::default()).await;
    assert!(matches!(&open, (StartError::Identity { name }, true) if name == "alice"), "{open:?}");
    let twice = refused(|config| {
        let again = config.gateway.identities[0].clone();
        config.gateway.identities.push(again);
    });
    let twice = twice.await;
    assert!(matches!(&twice, (StartError::Identity { name }, true) if name == "alice"), "{twice:?}");
    let no_address = refused(|config| config.gateway.identities[0].reply_to = "mbox:@".into()).await;
    assert!(matches!(&no_address, (StartError::ReplyTo { name, .. }, true) if name == "alice"), "{no_address:?}");
    for elsewhere in ["mbox:alice@Other", "alice@example.org"] {
        let lost = refused(|config| config.gateway.identities[0].reply_to = elsewhere.into()).await;
        assert!(matches!(&lost, (StartError::NoMailbox { name, .. }, true) if name == "alice"), "{lost:?}");
    }
    let unkept = refused(|config| config.node.mbox.enabled = false).await;
    assert!(matches!(unkept, (StartError::NoMailbox { .. }, true)), "{unkept:?}");
}

#[tokio::test]
async fn settings_of_the_node_are_refused_by_name() {
    let node = |why: &StartError, is: fn(&NodeError) -> bool| matches!(why, StartError::Node(e) if is(e));
    let nickname = refused(|config| {
        config.node.nickname = "9lives".into();
        config.gateway.identities[0].reply_to.clear();
    });
    let nickname = nickname.await;
    assert!(node(&nickname.0, |e| matches!(e, NodeError::Nickname(_))) && nickname.1, "{nickname:?}");
    let host = refused(|config| config.node.host = "not a host".into()).await;
    assert!(node(&host.0, |e| matches!(e, NodeError::Host(_))) && host.1, "{host:?}");
    let rate = refused(|config| config.node.mixing.rate = 1.5).await;
    assert!(node(&rate.0, |e| matches!(e, NodeError::Mixing(_))) && rate.1, "{rate:?}");
    let sender = refused(|config| config.node.smtp.enabled = true).await;
    assert!(node(&sender.0, |e| matches!(e, NodeError::ReturnAddress(_))) && sender.1, "{sender:?}");
    let server = refused(|config| {
        config.node.smtp.enabled = true;
        config.node.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
        config.node.smtp.server.hello = Some("not a host".into());
    });
    let server = server.await;
    assert!(node(&server.0, |e| matches!(e, NodeError::Smtp(_))) && server.1, "{server:?}");
    let exit_by = |way: Way, change: fn(&mut Config)| {
        refused(move |config| {
            config.node.smtp.enabled = true;
            config.node.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
            config.node.smtp.way = way;
            change(config);
        })
    };
    let servers = exit_by(Way::Mx, |config| {
        config.node.smtp.mx.name_servers = vec![([127, 0, 0, 1], 53).into()];
        config.node.smtp.mx.port = 0;
    });
    let servers = servers.await;
    assert!(node(&servers.0, |e| matches!(e, NodeError::Mx(InvalidMx::Port))) && servers.1, "{servers:?}");
    let program = exit_by(Way::Sendmail, |config| config.node.smtp.sendmail.command.clear()).await;
    let no_program = |e: &NodeError| matches!(e, NodeError::Sendmail(InvalidSendmail::NoProgram));
    assert!(node(&program.0, no_program) && program.1, "{program:?}");
    let folder = exit_by(Way::Maildir, |config| config.node.smtp.maildir.path = None).await;
    let no_path = |e: &NodeError| matches!(e, NodeError::Maildir(InvalidMaildir::NoPath));
    assert!(node(&folder.0, no_path) && folder.1, "{folder:?}");
    let open = exit_by(Way::Maildir, |config| {
        let path = config.node.home.with_file_name("mail");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        config.node.smtp.maildir.path = Some(path);
    });
    let open = open.await;
    let shared = |e: &NodeError| matches!(e, NodeError::Maildir(InvalidMaildir::Shared { mode: 0o770, .. }));
    assert!(node(&open.0, shared) && open.1, "{open:?}");
    let nobody = refused(|config| config.gateway.enabled = false).await;
    assert!(node(&nobody.0, |e| matches!(e, NodeError::NoMailboxes)) && nobody.1, "{nobody:?}");
    let users = |text: &'static str, change: fn(&mut Config)| {
        refused(move |config| {
            let path = config.node.home.with_file_name("users");
            fs::write(&path, text).unwrap();
            config.node.mbox.address_file = Some(path);
            change(config);
        })
    };
    let wrong = users("eve: eve@home.example\nfrida\n", |_| {}).await;
    let form = |e: &NodeError| {
        let NodeError::Addresses(AddressesError::List(ListError::Invalid { source, .. })) = e else { return false };
        *source == InvalidTable::Form { line: 2 }
    };
    assert!(node(&wrong.0, form) && wrong.1, "{wrong:?}");
    assert_eq!(wrong.0.key(), Some("node.mbox.address_file"));
    let from_nobody = users("eve: eve@home.example\n", |_| {}).await;
    assert!(node(&from_nobody.0, |e| matches!(e, NodeError::ReturnAddress(_))) && from_nobody.1, "{from_nobody:?}");
    let folder = users("", |config| {
        config.node.smtp.mail.return_address = Mailbox::parse("nobody@exit.example").ok();
        let shared = config.node.home.with_file_name("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o770)).unwrap();
        let path = config.node.home.with_file_name("users");
        fs::write(path, format!("# users\neve: {}\n", shared.display())).unwrap();
    });
    let folder = folder.await;
    let second = |e: &NodeError| matches!(e, NodeError::Addresses(AddressesError::Folder { line: 2, .. }));
    assert!(node(&folder.0, second) && folder.1, "{folder:?}");
}

#[tokio::test]
async fn settings_of_the_directory_are_refused_by_name() {
    let directory = |change: fn(&mut Config)| {
        refused(move |config| {
            config.gateway.enabled = false;
            config.node.enabled = false;
            config.directory.enabled = true;
            config.directory.home = config.node.home.join("directory");
            config.directory.listen = "127.0.0.1:0".parse().unwrap();
            change(config);
        })
    };
    let url = directory(|config| config.directory.url = "directory.example".into()).await;
    assert!(matches!(url, (StartError::Directory(DirectoryError::Url { .. }), true)), "{url:?}");
    let approved = directory(|config| config.directory.approved = vec!["all".into()]).await;
    assert!(matches!(approved, (StartError::Directory(DirectoryError::Fingerprint { .. }), true)), "{approved:?}");
    let exposed = directory(|config| {
        fs::create_dir_all(&config.directory.home).unwrap();
        fs::set_permissions(&config.directory.home, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(config.directory.home.join("identity.key"), "no key").unwrap();
    });
    let exposed = exposed.await;
    assert!(matches!(exposed, (StartError::DirectoryKey(KeyError::Exposed { .. }), false)), "{exposed:?}");
}

#[tokio::test]
async fn what_is_wrong_with_the_machine_is_not_blamed_on_the_configuration() {
    let home = TempDir::new().unwrap();
    let config = good(home.path());
    let running = Gateway::start(config.clone()).await.unwrap();
    let taken = refused_as_it_is(config.clone()).await;
    assert!(matches!(taken, (StartError::Store(StoreError::Locked { .. }), false)), "{taken:?}");
    let (smtp, mmtp) = (running.smtp.unwrap(), running.mmtp.unwrap());
    let door = refused(|config| config.gateway.smtp.listen = LoopbackAddress::ipv4(smtp.port())).await;
    assert!(matches!(door, (StartError::Smtp(NotServing::Listen { .. }), false)), "{door:?}");
    let port = refused(|config| config.node.listen = mmtp.into()).await;
    assert!(matches!(port, (StartError::Node(NodeError::Listen(_)), false)), "{port:?}");
    running.stop().await;

    let key = config.node.home.join("keys").join("identity.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = refused_as_it_is(config.clone()).await;
    assert!(matches!(exposed, (StartError::Node(NodeError::Keys(KeyError::Exposed { .. })), false)), "{exposed:?}");
    fs::set_permissions(&config.gateway.home, fs::Permissions::from_mode(0o755)).unwrap();
    let open = refused_as_it_is(config).await;
    assert!(matches!(open, (StartError::Store(StoreError::Folder { .. }), false)), "{open:?}");
}

#[tokio::test]
async fn socket_for_all_addresses_opens_no_door_that_has_no_tls() {
    type Set = fn(&mut Config, LoopbackAddress);
    let doors: [(&str, Set); 3] = [
        ("gateway.smtp.listen", |config, address| config.gateway.smtp.listen = address),
        ("gateway.pop.listen", |config, address| config.gateway.pop.listen = address),
        ("metrics.listen", |config, address| config.metrics.listen = Some(address)),
    ];
    for (key, set) in doors {
        let home = TempDir::new().unwrap();
        let mut config = good(home.path());
        let socket = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        set(&mut config, LoopbackAddress::ipv4(socket.local_addr().unwrap().port()));
        let why = Gateway::start_on(config, World::real(), None, Inherited::new(vec![socket])).await.unwrap_err();
        assert!(
            matches!(&why, StartError::Exposed { .. } | StartError::Smtp(NotServing::Exposed(_))),
            "{key}: {why:?}"
        );
        assert_eq!((why.key(), why.is_configuration()), (Some(key), true));
    }
}

/// What loading this file says.
fn complaint(text: &str) -> String {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("bad.toml");
    fs::write(&file, text).unwrap();
    match mixgate_conf::load::<Config>(Some(&file), std::iter::empty(), &[], &[]) {
        Ok(_) => panic!("taken: {text}"),
        Err(why) => why.to_string(),
    }
}

#[test]
fn what_cannot_be_meant_is_refused_by_file_line_and_key() {
    for (section, setting) in [
        ("network", "directory = \"127.0.0.1:9\""),
        ("network", "directory_key = \"0123\""),
        ("network", "refresh = \"0s\""),
        ("network", "retry = \"0s\""),
        ("gateway.smtp", "max_size = 10"),
        ("gateway.smtp", "max_recipients = 0"),
        ("gateway.smtp", "attachments = \"sometimes\""),
        ("gateway.smtp", "session_timeout = \"500000000000 years\""),
        ("gateway.pop", "idle_timeout = \"1 minute\""),
        ("gateway.sender", "path = \"a,,b\""),
        ("gateway.sender", "reply_path = \"\""),
        ("gateway.sender", "interval = \"0s\""),
        ("gateway.sender", "reply_block_lifetime = \"500 years\""),
        ("gateway.sender.outgoing", "retry = []"),
        ("gateway.sender.outgoing", "connections = 0"),
        ("node", "nickname = \"9lives\""),
        ("node", "host = \"not a host\""),
        ("node", "listen = \"nowhere\""),
        ("node.keys", "lifetime = \"500000000000 years\""),
        ("node.mixing", "interval = \"0s\""),
        ("node.mixing", "rule = 7"),
        ("node.mixing", "rule = \"stop-and-go\""),
        ("node.mixing", "rate = 1.5"),
        ("node.outgoing", "retry = [{ every = \"0s\", for = \"1 day\" }]"),
        ("node.smtp", "way = \"pigeon\""),
        ("node.smtp", "max_size = 1023"),
        ("node.smtp", "mime_max_size = 1000"),
        ("node.smtp.mx", "timeout = \"0s\""),
        ("node.smtp.mx", "name_servers = [\"127.0.0.1\"]"),
        ("node.smtp.mx", "inside = [\"10.0.0.0/8\"]"),
        ("node.smtp.server", "timeout = \"0s\""),
        ("node.smtp.sendmail", "timeout = \"0s\""),
        ("node.smtp.sendmail", "command = \"/usr/sbin/sendmail\""),
        ("node.smtp.server", "tls = \"sometimes\""),
        ("node.smtp.server", "password = \"\""),
        ("node.smtp.server", "bind = \"mail.example\""),
        ("node.smtp.server", "socks = \"127.0.0.1\""),
        ("node.smtp.mail", "return_address = \"nobody\""),
        ("node.fragments", "keep = \"0s\""),
        ("node.mbox", "max_size = 0"),
        ("directory", "url = \"directory.example\""),
        ("directory", "approved = [\"all\"]"),
        ("directory", "not_recommended = [\"9lives\"]"),
    ] {
        let said = complaint(&format!("[{section}]\n{setting}\n"));
        let key = format!("{section}.{}", setting.split(' ').next().unwrap());
        assert!(said.contains("bad.toml:2: ") && said.contains(&key), "{section}, {setting}: {said}");
    }
    let number = complaint("[node.smtp.server]\npassword = 12345\n");
    assert!(number.contains("node.smtp.server.password") && !number.contains("12345"), "{number}");
    let identity = complaint("[[gateway.identities]]\nname = \"alice\"\npassword = 12345\n");
    assert!(identity.contains("bad.toml:3: ") && identity.contains("password"), "{identity}");
    assert!(!identity.contains("absent") && !identity.contains("12345"), "{identity}");
    for text in ["identities = \"alice:hunter2\"", "identities = [\"hunter2\"]"] {
        let said = complaint(&format!("[gateway]\n{text}\n"));
        assert!(said.contains("bad.toml:2: ") && !said.contains("hunter2"), "{said}");
    }
    for incomplete in ["name = \"alice\"", "password = \"secret\"", "name = \"\"\npassword = \"secret\""] {
        let said = complaint(&format!("[[gateway.identities]]\n{incomplete}\n"));
        assert!(said.contains("bad.toml:") && said.contains("gateway.identities"), "{incomplete}: {said}");
    }
}
