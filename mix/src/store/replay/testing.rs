//! Logs that are cut up smaller than those of a mix.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Claim, PLAN, Plan, ReplayLog};
use crate::crypto::{Digest, sha1};
use crate::store::db::{Db, StoreError, held};

static PLANNED: Mutex<BTreeMap<PathBuf, usize>> = Mutex::new(BTreeMap::new());

/// Lets the log of the database at `path`, not open yet, have no more than so many entries in its table.
pub(crate) fn flush_beyond(path: &Path, most: usize) {
    held(&PLANNED).insert(path.to_owned(), most);
}

pub(super) fn plan_for(db: &Db) -> Plan {
    held(&PLANNED).get(db.path()).map_or(PLAN, |most| Plan { most: *most, ..PLAN })
}

/// A log that nobody tidies up but the test.
pub(super) fn opened(db: &Db, most: usize) -> Result<ReplayLog, StoreError> {
    ReplayLog::open_as(db, Plan { most, thread: false, ..PLAN })
}

/// The packet of a number.
pub(super) fn entry(number: u64) -> Digest {
    sha1(&[b"packet", &number.to_be_bytes()])
}

/// Remembers packets in one step; says how many were new.
pub(super) fn remember(db: &Db, log: &ReplayLog, packet_key: Digest, numbers: Range<u64>) -> Result<usize, StoreError> {
    let log = log.clone();
    db.write(move |tx| {
        let mut new = 0;
        for number in numbers {
            new += usize::from(log.remember(tx, &packet_key, &entry(number))?);
        }
        Ok(new)
    })
}

/// Whether a packet was here before.
pub(crate) fn seen(log: &ReplayLog, packet_key: Digest, hash: Digest) -> bool {
    log.look(&[(packet_key, hash)]).unwrap()[0]
}

/// The right to let one packet pass.
pub(super) fn claim(log: &ReplayLog, packet_key: Digest, hash: Digest) -> Option<Claim> {
    log.claim(&[(packet_key, hash)]).unwrap().remove(0)
}

/// Whether a log holds these packets and no others near them, looked at from both sides.
pub(super) fn holds_just(db: &Db, log: &ReplayLog, packet_key: Digest, numbers: Range<u64>) -> bool {
    let seen = |number| seen(log, packet_key, entry(number));
    let beyond = numbers.end..numbers.end + 50;
    numbers.clone().all(seen) && !beyond.clone().any(seen) && remember(db, log, packet_key, numbers).unwrap() == 0
}

/// The files of the runs.
pub(super) fn files(db: &Db) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(db.path().with_extension("replay")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}
