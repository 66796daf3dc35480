//! What the tests of the stores share.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::{Db, Schema};
use crate::crypto::{Digest, KeyId, sha1};
use crate::packet::{HostName, HostRoute, NextHop, PACKET_LEN, PAYLOAD_LEN, Packet, Payload};

/// Counts the warnings. Nothing else may be said at level info or above.
pub(crate) struct Heard(pub(crate) Arc<AtomicUsize>);

impl Subscriber for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        assert_eq!(*event.metadata().level(), Level::WARN);
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// An empty folder that nobody else can look into.
pub(crate) fn private_folder() -> TempDir {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap()
}

/// A database in a folder of its own, which goes with the first value.
pub(crate) fn fresh(schemas: &[Schema]) -> (TempDir, Db) {
    let folder = private_folder();
    let db = Db::open(&folder.path().join("store.db"), schemas).unwrap();
    (folder, db)
}

/// The same database, opened again after a stop.
pub(crate) fn reopened(folder: &Path, db: Db, schemas: &[Schema]) -> Db {
    drop(db);
    Db::open(&folder.join("store.db"), schemas).unwrap()
}

/// A database as a kill at this moment would leave it: a copy of the file, its write-ahead log and its slots.
pub(crate) fn as_after_a_kill(folder: &Path, schemas: &[Schema]) -> (TempDir, Db) {
    let copy = private_folder();
    for name in ["store.db", "store.db-wal", "store.packets"] {
        if folder.join(name).exists() {
            std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
        }
    }
    // What lies beside it, if anything does.
    if let Ok(runs) = std::fs::read_dir(folder.join("store.replay")) {
        DirBuilder::new().mode(0o700).create(copy.path().join("store.replay")).unwrap();
        for run in runs.map(|run| run.unwrap().path()) {
            std::fs::copy(&run, copy.path().join("store.replay").join(run.file_name().unwrap())).unwrap();
        }
    }
    let db = Db::open(&copy.path().join("store.db"), schemas).unwrap();
    (copy, db)
}

pub(crate) fn packet(fill: u8) -> Packet {
    Packet::from_bytes(&[fill; PACKET_LEN]).unwrap()
}

pub(crate) fn payload(fill: u8) -> Payload {
    Payload::from_bytes(&[fill; PAYLOAD_LEN]).unwrap()
}

pub(crate) fn digest(word: &str) -> Digest {
    sha1(&[word.as_bytes()])
}

pub(crate) fn hop(host: &str) -> NextHop {
    let key_id = KeyId(digest(host).0);
    NextHop::Host(HostRoute { host: HostName::parse(host).unwrap(), port: 48099, key_id })
}

/// An hour of some day in 2026.
pub(crate) fn hour(hours: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_478_400 + hours * 3600)
}
