//! The replay log at ten thousand, a million and ten million entries: what one more costs, and a look for one.
//!
//! `cargo bench -p mix --bench replay`. Beside them, in the same run, the bare RSA-2048 private operation that each packet
//! costs anyway. The database lies in the folder for temporary files, or in the one that `MIX_BENCH_HOME` names.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mix::crypto::pk::{PacketKey, PrivateKey};
use mix::crypto::{Digest, sha1};
use mix::store::replay::ReplayLog;
use mix::store::{Db, NODE_SCHEMAS};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Entries at which is measured.
const SIZES: [u64; 3] = [10_000, 1_000_000, 10_000_000];
/// Entries in one commit: as many as the workers bring when there is much to do.
const COMMIT: u64 = 256;
/// Entries, and looks, that are measured at each size.
const MEASURED: u64 = 25_600;

fn entry(number: u64) -> Digest {
    sha1(&[b"packet", &number.to_be_bytes()])
}

/// Writes the entries `from..to`, a commit for each [`COMMIT`] of them.
fn fill(db: &Db, log: &ReplayLog, key: Digest, from: u64, to: u64) -> Duration {
    let began = Instant::now();
    for first in (from..to).step_by(usize::try_from(COMMIT).unwrap()) {
        let (last, log) = ((first + COMMIT).min(to), log.clone());
        db.write(move |tx| {
            for number in first..last {
                assert!(log.remember(tx, &key, &entry(number))?, "each is new");
            }
            Ok(())
        })
        .unwrap();
    }
    began.elapsed()
}

/// Looks for entries that are there and for as many that are not, all over the log.
fn look(log: &ReplayLog, key: Digest, size: u64) -> Duration {
    let began = Instant::now();
    for i in 0..MEASURED {
        let there = i % 2 == 0;
        let number = if there { i.wrapping_mul(7_919_777) % size } else { u64::MAX - i };
        assert_eq!(log.seen(&key, &entry(number)).unwrap(), there);
    }
    began.elapsed()
}

/// Resident memory in MB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

fn bare_rsa() -> Duration {
    let mut rng = StdRng::seed_from_u64(1);
    let private = PrivateKey::generate(2048, &mut rng).unwrap();
    let sealed: [u8; 256] = private.public_key().encrypt(&[7; 128], &mut rng).unwrap().try_into().unwrap();
    let key = PacketKey::new(&private).unwrap();
    let times = 2000;
    let began = Instant::now();
    for _ in 0..times {
        std::hint::black_box(key.decrypt(&sealed).unwrap());
    }
    began.elapsed() / times
}

fn main() {
    let folder = std::env::var_os("MIX_BENCH_HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    let home = tempfile::tempdir_in(folder).unwrap();
    let path = home.path().join("node/node.db");
    let db = Db::open(&path, &NODE_SCHEMAS).unwrap();
    let log = ReplayLog::open(&db).unwrap();
    let key = sha1(&[b"packet key"]);
    let bare = bare_rsa();
    println!("bare RSA-2048 private operation: {:.1} us", bare.as_secs_f64() * 1e6);
    println!(
        "{:>10} {:>14} {:>8} {:>14} {:>8} {:>12} {:>10}",
        "entries", "one more, us", "x RSA", "a look, us", "x RSA", "resident MB", "file MB"
    );
    let mut size = 0;
    for wanted in SIZES {
        fill(&db, &log, key, size, wanted);
        db.checkpoint().unwrap();
        let looked = look(&log, key, wanted);
        let written = fill(&db, &log, key, wanted, wanted + MEASURED);
        size = wanted + MEASURED;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / MEASURED as f64;
        let ratio = |time: Duration| each(time) / (bare.as_secs_f64() * 1e6);
        println!(
            "{wanted:>10} {:>14.1} {:>8.2} {:>14.1} {:>8.2} {:>12} {:>10}",
            each(written),
            ratio(written),
            each(looked),
            ratio(looked),
            resident(),
            std::fs::metadata(&path).unwrap().len() >> 20,
        );
    }
}
