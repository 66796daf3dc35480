//! Mixes for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::crypto::pk::PrivateKey;
use crate::directory::{Delivery, Descriptor, DescriptorFields, Nickname, Policy};
use crate::packet::HostName;

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// 1 October 2023, some minutes past midnight.
pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(19_631 * 86_400 + 999)
}

/// The mixes that [`mix`] knows.
pub(super) const NICKNAMES: [&str; 8] = ["A", "B", "C", "D", "E", "F", "G", "H"];

/// A mix that can do everything, for some days.
pub(super) fn mix(nickname: &str) -> Arc<Descriptor> {
    static MADE: LazyLock<Mutex<BTreeMap<String, Arc<Descriptor>>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap();
    Arc::clone(made.entry(nickname.to_owned()).or_insert_with(|| mix_with(nickname, |_| {})))
}

/// The same, with changes.
pub(super) fn mix_with(nickname: &str, change: impl FnOnce(&mut DescriptorFields)) -> Arc<Descriptor> {
    let key = key(nickname);
    let midnight = now() - Duration::from_secs(999);
    let delivery = Delivery { max_size: 128 * 1024, allow_from: true, mime: None };
    let mut fields = DescriptorFields {
        nickname: nickname.parse().unwrap(),
        published: midnight - DAY,
        valid_after: midnight,
        valid_until: midnight + DAY * 4,
        contact: "nobody".to_owned(),
        contact_fingerprint: None,
        comments: None,
        packet_key: key.public_key(),
        software: "mixgate".to_owned(),
        why_insecure: None,
        listens_at: Some((HostName::parse("mix.example").unwrap(), 48099)),
        takes_from: Policy::default(),
        connects: true,
        connects_to: Policy::default(),
        smtp: Some(delivery),
        mbox: Some(delivery),
        fragmented: Some(100),
    };
    change(&mut fields);
    Arc::new(fields.sign(&key, &mut StdRng::seed_from_u64(1)).unwrap())
}

pub(super) fn names(nicknames: &[&str]) -> BTreeSet<Nickname> {
    nicknames.iter().map(|nickname| nickname.parse().unwrap()).collect()
}

/// One identity key per nickname, the same in every run; made once.
fn key(nickname: &str) -> PrivateKey {
    static MADE: LazyLock<Mutex<BTreeMap<String, PrivateKey>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap();
    let seed = nickname.bytes().map(u64::from).sum();
    let make = || PrivateKey::generate(2048, &mut StdRng::seed_from_u64(seed)).unwrap();
    made.entry(nickname.to_owned()).or_insert_with(make).clone()
}
