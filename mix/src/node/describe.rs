//! What a node says of itself: a descriptor for each packet key, from the settings (dir-spec 3, 6).
//!
//! A descriptor that says what the settings say is kept as it is, text and signature. When they say something else it is
//! signed again, with the same keys. `publish` hands it to the directory server.
//!
//! Of two descriptors of a key the one that was published later counts, in whole seconds. So one that replaces another
//! states at least the second after it, and whoever has it made waits for that second before anybody is told: however
//! often settings change, none is from the future. Only where a clock was set back, by less than others put up with, can
//! the kept one be ahead of it; then the new one is too, by no more.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::CryptoRng;

use super::config::NodeConfig;
use super::keys::{DESCRIPTOR, DatedKey, KeyError, Keyring, PUBLISHED, packet_key_files, replace};
use super::publish::Published;
use super::start::{NodeError, weaknesses};
use crate::directory::descriptor::{CLOCK_SKEW, Delivery, Descriptor};
use crate::directory::fields::DescriptorFields;
use crate::packet::HostName;

/// The descriptor in force, under the home of the node: to be handed to any Type III client.
const CURRENT: &str = "descriptor";

/// The descriptors of a node at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Those in force and those to come, the first to begin first. Never empty.
    pub all: Vec<Stated>,
    /// The one in force: of several, the last to begin.
    pub current: Arc<Descriptor>,
}

/// A descriptor, and where is noted what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// The descriptor.
    pub descriptor: Arc<Descriptor>,
    /// The note (`publish`).
    pub(super) note: PathBuf,
}

/// What the settings say, without keys and dates.
///
/// `port` is the one that the node listens at.
///
/// # Errors
/// [`NodeError::Nickname`], [`NodeError::Host`].
fn fields(
    config: &NodeConfig,
    port: u16,
    key: &DatedKey,
    published: SystemTime,
) -> Result<DescriptorFields, NodeError> {
    let host = HostName::parse(&config.host).map_err(NodeError::Host)?;
    let smtp = &config.smtp;
    let smtp = Delivery { max_size: smtp.max_size, allow_from: smtp.mail.allow_from, mime: smtp.mime() };
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let insecurities = weaknesses(config);
    // Those of a gateway always do; others get mail as anybody does.
    let users_see_names = config.mbox.address_file.is_none() || config.smtp.mail.allow_from;
    let mbox = Delivery { max_size: config.mbox.max_size, allow_from: users_see_names, mime: None };
    Ok(DescriptorFields {
        nickname: config.nickname.parse()?,
        published,
        valid_after: key.valid_after,
        valid_until: key.valid_until,
        contact: config.contact.clone(),
        contact_fingerprint: text(&config.contact_fingerprint),
        comments: text(&config.comments),
        packet_key: key.key.public_key(),
        software: concat!("mixgate ", env!("CARGO_PKG_VERSION")).to_owned(),
        why_insecure: (!insecurities.is_empty()).then(|| insecurities.join(", ")),
        listens_at: Some((host, if config.port == 0 { port } else { config.port })),
        takes_from: config.incoming.access.policy().clone(),
        connects: true,
        connects_to: config.outgoing.access.policy().clone(),
        smtp: config.smtp.enabled.then_some(smtp),
        mbox: config.mbox.enabled.then_some(mbox),
        fragmented: config.fragments.enabled.then(|| config.fragments.most_fragments()),
    })
}

/// The descriptors of all keys that are not expired, as `config` wants them: kept or signed anew, and on disk.
///
/// # Errors
/// [`NodeError`]: settings that no descriptor can say, or a disk that does not take it.
pub fn describe(
    config: &NodeConfig,
    port: u16,
    keyring: &Keyring,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<Descriptors, NodeError> {
    let mut all = Vec::new();
    for key in keyring.packet_keys().iter().filter(|key| now < key.valid_until) {
        let descriptor = Arc::new(describe_key(config, port, keyring, key, now, rng)?);
        all.push(Stated { descriptor, note: key.descriptor_file().with_extension(PUBLISHED) });
    }
    let begun = all.iter().rfind(|stated| stated.descriptor.is_valid_at(now));
    let current = begun.or(all.first()).map(|stated| Arc::clone(&stated.descriptor));
    let current = current.ok_or(NodeError::Keys(KeyError::Clock))?;
    let path = config.home.join(CURRENT);
    if fs::read_to_string(&path).ok().as_deref() != Some(current.text()) {
        replace(&path, current.text().as_bytes())?;
    }
    Ok(Descriptors { all, current })
}

fn describe_key(
    config: &NodeConfig,
    port: u16,
    keyring: &Keyring,
    key: &DatedKey,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<Descriptor, NodeError> {
    let kept = kept(&key.descriptor_file());
    let mut published = now;
    if let Some(kept) = kept {
        let same = fields(config, port, key, kept.published())?;
        // One from a clock that was ahead would be refused as long as that time has not come.
        if same.digest(&keyring.identity().public_key())? == kept.digest() && kept.published() <= now + CLOCK_SKEW {
            return Ok(kept);
        }
        if kept.published() <= now + CLOCK_SKEW {
            published = published.max(kept.published() + Duration::from_secs(1));
        }
    }
    let descriptor = fields(config, port, key, published)?.sign(keyring.identity(), rng)?;
    replace(&key.descriptor_file(), descriptor.text().as_bytes())?;
    Ok(descriptor)
}

fn kept(path: &Path) -> Option<Descriptor> {
    Descriptor::parse(&fs::read_to_string(path).ok()?).ok()
}

/// Whether `config` says things that a descriptor can say. Changes nothing.
///
/// # Errors
/// As [`describe`].
pub(super) fn check(
    config: &NodeConfig,
    port: u16,
    keyring: &Keyring,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<(), NodeError> {
    for key in keyring.packet_keys().iter().take(1) {
        fields(config, port, key, now)?.sign(keyring.identity(), rng)?;
    }
    Ok(())
}

/// What can be known of a packet key without opening it: beside a node that runs, and without its passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReport {
    /// Midnight of the first day.
    pub valid_after: SystemTime,
    /// The midnight that ends it.
    pub valid_until: SystemTime,
    /// The descriptor that names it, if there is one.
    pub descriptor: Option<Descriptor>,
    /// What became of the descriptor.
    pub published: Published,
}

/// The packet keys under the home of a node, the first to begin first. Only looks.
///
/// # Errors
/// [`KeyError::File`] when there are none, or they cannot be looked at.
pub fn report(home: &Path) -> Result<Vec<KeyReport>, KeyError> {
    let mut keys = packet_key_files(&home.join("keys"))?;
    keys.sort_by_key(|key| (key.valid_after, key.valid_until));
    let reports = keys.into_iter().map(|key| {
        let descriptor = kept(&key.path.with_extension(DESCRIPTOR));
        let published = descriptor
            .as_ref()
            .map_or(Published::No, |descriptor| Published::read(&key.path.with_extension(PUBLISHED), descriptor));
        KeyReport { valid_after: key.valid_after, valid_until: key.valid_until, descriptor, published }
    });
    Ok(reports.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::config::KeysConfig;
    use crate::node::keys::KeyPlan;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn day(days: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY + days * DAY
    }

    struct Node {
        home: tempfile::TempDir,
        keyring: Keyring,
        config: NodeConfig,
    }

    /// A node whose keys of the first 45 days are made.
    fn node() -> Node {
        let home = tempfile::tempdir().unwrap();
        let plan = KeyPlan::new(&KeysConfig::default()).unwrap();
        let mut keyring = Keyring::open(&home.path().join("keys"), &plan, None, &mut rand::rng()).unwrap();
        for now in [day(0), day(1)] {
            keyring.make_ahead(&plan, now, &mut rand::rng()).unwrap();
        }
        let config = NodeConfig { nickname: "Alice".into(), home: home.path().into(), ..NodeConfig::default() };
        Node { home, keyring, config }
    }

    impl Node {
        fn describe(&self, now: SystemTime) -> Descriptors {
            describe(&self.config, 48099, &self.keyring, now, &mut rand::rng()).unwrap()
        }
    }

    #[test]
    fn each_key_has_a_descriptor_and_the_one_in_force_lies_in_the_home() {
        let node = node();
        let in_home = || fs::read_to_string(node.home.path().join("descriptor")).unwrap();
        let first = node.describe(day(1));
        assert_eq!(first.all.len(), 2);
        assert_eq!(first.current, first.all[0].descriptor);
        assert_eq!(in_home(), first.current.text());
        let later = node.describe(day(15));
        assert_eq!(later.all, first.all, "nothing is signed again");
        assert_eq!(later.current, later.all[1].descriptor);
        assert_eq!(in_home(), later.current.text());
        assert_eq!(node.describe(day(30)).all.len(), 1, "the first has expired");
    }

    #[test]
    fn settings_that_change_are_stated_with_the_same_keys_and_others_change_nothing() {
        let mut node = node();
        let before = node.describe(day(1));
        node.config.outgoing.connections = 3;
        node.config.keys.ahead = 20 * DAY;
        assert_eq!(node.describe(day(2)), before);
        type Change = (&'static str, fn(&mut NodeConfig));
        let changes: [Change; 9] = [
            ("contact", |config| config.contact = "alice@example.org".into()),
            ("contact_fingerprint", |config| config.contact_fingerprint = "0123 4567".into()),
            ("comments", |config| config.comments = "a comment".into()),
            ("host", |config| config.host = "mix.example".into()),
            ("port", |config| config.port = 4711),
            ("smtp", |config| config.smtp.enabled = true),
            ("attachments", |config| config.smtp.mime_max_size = 1 << 20),
            ("fragments", |config| config.fragments.enabled = true),
            ("mixing", |config| config.mixing.minimum = 3),
        ];
        let mut last = before;
        for (name, change) in changes {
            change(&mut node.config);
            // Two changes within a second: the later is the one that counts.
            let next = node.describe(day(2));
            for (old, new) in last.all.iter().zip(&next.all) {
                assert_ne!(old.descriptor, new.descriptor, "{name}");
                assert_eq!(old.descriptor.packet_key(), new.descriptor.packet_key(), "{name}");
                assert_eq!(old.descriptor.valid_until(), new.descriptor.valid_until(), "{name}");
                assert!(new.descriptor.published() > old.descriptor.published(), "{name}");
                assert!(old.descriptor.is_superseded_by([&*new.descriptor], day(2)), "{name}");
            }
            last = next;
        }
    }

    #[test]
    fn descriptor_from_a_clock_that_was_ahead_is_signed_again() {
        let node = node();
        let ahead = node.describe(day(3));
        let back = node.describe(day(1));
        assert!(back.all.iter().all(|stated| stated.descriptor.published() == day(1)));
        assert_ne!(back.all[0].descriptor, ahead.all[0].descriptor);
        assert!(back.all[0].descriptor.check_published(day(1)).is_ok());
    }

    #[test]
    fn report_needs_no_key_and_says_what_is_there() {
        let node = node();
        node.describe(day(1));
        let reports = report(node.home.path()).unwrap();
        let found: Vec<_> = reports.iter().map(|report| (report.valid_after, report.published.clone())).collect();
        assert_eq!(found, [(day(0), Published::No), (day(15), Published::No)]);
        let descriptor = reports[0].descriptor.as_ref().unwrap();
        assert_eq!(descriptor.key_id(), node.keyring.identity().public_key().key_id());
        assert!(matches!(report(&node.home.path().join("nowhere")), Err(KeyError::File { .. })));
    }

    #[test]
    fn damaged_descriptor_is_made_anew() {
        let node = node();
        let before = node.describe(day(1));
        fs::write(node.keyring.packet_keys()[0].descriptor_file(), "nonsense").unwrap();
        let after = node.describe(day(2));
        assert_eq!(after.all[0].descriptor.published(), day(2));
        assert_eq!(after.all[1], before.all[1]);
    }
}
