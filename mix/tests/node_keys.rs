//! A node that runs, beside a directory server: what it publishes, and what it publishes when its settings change.

// Helpers of tests are outside clippy's leave for tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mix::crypto::Passphrase;
use mix::crypto::pk::PrivateKey;
use mix::directory::signed::Trust;
use mix::directory::{Descriptor, Directory};
use mix::net::fetch::{FetchLimits, fetch_directory};
use mix::node::config::{NetworkConfig, NodeConfig};
use mix::node::describe::report;
use mix::node::directory::{DirectoryConfig, DirectoryServer, Running};
use mix::node::keys::{InvalidKeys, KeyError};
use mix::node::publish::Published;
use mix::node::{Counters, Node, NodeError, Parts, Publication, RunningNode, World};
use mix::store::StoreError;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Some day, in the afternoon.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY + DAY * 2 / 3
}

fn world() -> World {
    let real = World::real();
    World::new(now, move || real.dice())
}

struct House {
    folder: tempfile::TempDir,
    directory: Running,
    url: String,
    stop: CancellationToken,
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let config = DirectoryConfig {
            enabled: true,
            home: folder.path().join("directory"),
            url: url.clone(),
            accept_unknown: true,
            ..DirectoryConfig::default()
        };
        let key = PrivateKey::generate(2048, &mut world().dice()).unwrap();
        let stop = CancellationToken::new();
        let directory = DirectoryServer::start(&config, listener, key, now, stop.clone()).unwrap();
        Self { folder, directory, url, stop }
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    fn config(&self) -> NodeConfig {
        let mut config = NodeConfig {
            nickname: "Alice".into(),
            home: self.home(),
            listen: "127.0.0.1:0".parse().unwrap(),
            port: 48099,
            ..NodeConfig::default()
        };
        // Two keys at once.
        config.keys.ahead = 20 * DAY;
        config
    }

    async fn node(&self, config: &NodeConfig, passphrase: Option<&str>) -> Result<Up, NodeError> {
        let stop = CancellationToken::new();
        let parts = Parts {
            world: world(),
            counters: Counters::default(),
            mailboxes: None,
            network: NetworkConfig {
                directory: self.url.clone(),
                retry: Duration::from_millis(100),
                ..NetworkConfig::default()
            },
            directory: None,
            passphrase: passphrase.and_then(|text| Passphrase::new(text.into())),
            sockets: mix::net::sockets::Inherited::default(),
            stop: stop.clone(),
        };
        Ok(Up { node: Node::start(config, parts).await?, stop })
    }

    /// What the directory lists of the node, the first to begin first.
    async fn listed(&self) -> Vec<Arc<Descriptor>> {
        let text = fetch_directory(&format!("{}current.gz", self.url), &FetchLimits::default()).await.unwrap();
        let trust = Trust::majority([self.directory.key_id()]).unwrap();
        let directory = Directory::parse(&text, &trust, now()).unwrap();
        let mut listed = directory.descriptors().to_vec();
        listed.sort_by_key(|descriptor| descriptor.valid_after());
        listed
    }

    /// Waits until the directory lists what the node says.
    async fn until_listed(&self, node: &RunningNode) -> Vec<Arc<Descriptor>> {
        for _ in 0..600 {
            let said: Vec<_> = node.descriptors().borrow().all.iter().map(|it| Arc::clone(&it.descriptor)).collect();
            if self.listed().await == said {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the directory does not list what the node says");
    }

    async fn until_noted(&self) {
        let url = self.url.clone();
        for _ in 0..600 {
            let reports = report(&self.home()).unwrap();
            if reports.iter().all(|report| report.published == Published::Yes { url: url.clone() }) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("what became of the descriptors is not noted");
    }
}

/// A node that is up.
struct Up {
    node: RunningNode,
    stop: CancellationToken,
}

impl Up {
    async fn ended(self) {
        self.stop.cancel();
        self.node.ended().await;
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_of_all_keys_are_published_and_settings_that_change_are_stated_with_the_same_keys() {
    let house = House::new().await;
    let config = house.config();
    let up = house.node(&config, None).await.unwrap();
    let node = &up.node;
    let first = house.until_listed(node).await;
    assert_eq!(first.len(), 2);
    assert_eq!(first[1].valid_after(), first[0].valid_after() + 15 * DAY);
    assert_eq!(text_of(&house.home().join("descriptor")), first[0].text());
    house.until_noted().await;

    // What no descriptor states changes none.
    let mut changed = config.clone();
    changed.outgoing.connections = 3;
    node.control.reconfigure(&changed).unwrap();
    changed.contact = "alice@example.org".into();
    node.control.reconfigure(&changed).unwrap();
    let mut descriptors = node.descriptors();
    descriptors.wait_for(|said| said.current.text().contains("Contact: alice@example.org")).await.unwrap();
    let second = house.until_listed(node).await;
    let keys = |of: &[Arc<Descriptor>]| of.iter().map(|it| it.packet_key().key_id()).collect::<Vec<_>>();
    assert_eq!(keys(&first), keys(&second));
    assert_eq!(text_of(&house.home().join("descriptor")), second[0].text());
    house.until_noted().await;

    // What cannot be said changes nothing.
    for (refused, expected) in [
        (NodeConfig { nickname: "Bob".into(), ..changed.clone() }, "node.nickname cannot change from Alice"),
        (NodeConfig { host: "no host".into(), ..changed.clone() }, "node.host"),
        (NodeConfig { contact: "two\nlines".into(), ..changed.clone() }, "the descriptor"),
    ] {
        let why = node.control.reconfigure(&refused).unwrap_err().to_string();
        assert!(why.contains(expected), "{why}");
    }
    assert_eq!(node.descriptor(), second[0]);

    // Notes that are taken away come back when all is published again.
    for report in std::fs::read_dir(house.home().join("keys")).unwrap() {
        let path = report.unwrap().path();
        if path.extension().is_some_and(|it| it == "published") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert!(report(&house.home()).unwrap().iter().all(|report| report.published == Published::No));
    assert_eq!(node.control.publish_again().await, Publication::Listed);
    house.until_noted().await;
    up.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptor_is_the_same_after_a_restart_unless_the_settings_have_changed() {
    let house = House::new().await;
    let mut config = house.config();
    let mut texts = Vec::new();
    for contact in ["alice@example.org", "alice@example.org", "bob@example.org"] {
        config.contact = contact.into();
        let up = house.node(&config, None).await.unwrap();
        texts.push(up.node.descriptor());
        up.ended().await;
    }
    assert_eq!(texts[0].text(), texts[1].text());
    assert_ne!(texts[1].text(), texts[2].text());
    assert_eq!(texts[1].packet_key(), texts[2].packet_key());
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_keys_need_their_passphrase_and_settings_that_make_no_sense_are_named() {
    let house = House::new().await;
    let mut config = house.config();
    config.keys.sealed = true;
    let refused = house.node(&config, None).await.err().unwrap();
    assert!(matches!(refused, NodeError::NoPassphrase) && refused.is_configuration());
    let up = house.node(&config, Some("open sesame")).await.unwrap();
    house.until_listed(&up.node).await;
    up.ended().await;
    let refused = house.node(&config, Some("open barley")).await.err().unwrap();
    assert!(matches!(refused, NodeError::Keys(KeyError::Sealed { .. })) && refused.is_configuration());
    config.keys.sealed = false;
    let refused = house.node(&config, None).await.err().unwrap();
    assert!(matches!(refused, NodeError::Keys(KeyError::NoPassphrase { .. })));
    config.keys.overlap = DAY * 4;
    let refused = house.node(&config, None).await.err().unwrap();
    assert!(matches!(refused, NodeError::KeyPlan(InvalidKeys::Overlap)) && refused.is_configuration());
    assert!(refused.to_string().starts_with("node.keys.overlap"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_process_is_refused_before_it_touches_the_keys_of_the_first() {
    let house = House::new().await;
    let config = house.config();
    let up = house.node(&config, None).await.unwrap();
    let half_written = house.home().join("keys/packet-2030-01-01-2030-01-31.key.new");
    std::fs::write(&half_written, "half a key").unwrap();
    let refused = house.node(&config, None).await.err().unwrap();
    assert!(matches!(refused, NodeError::Store(StoreError::Locked { .. })), "{refused:?}");
    assert_eq!(text_of(&half_written), "half a key");
    up.ended().await;
}
