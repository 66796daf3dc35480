//! The replay log at ten thousand, a million and ten million entries: what one more costs, and a look for one.
//!
//! `cargo bench -p mix --bench replay`. The way of a mix: entries are written in steps of the database, each durable when
//! it returns, while the log's own thread flushes and merges. What that costs is in all figures: at each size twice two
//! flushes' worth is written, in steps of 32 as a worker brings them alone and of 256 as they share a commit when there is
//! much to do, and the clock stops when nothing is left to flush or merge. In between the log is filled in longer steps;
//! `cpu` is what the whole process took for one of these entries, merges of the way up to that size included. `worst` is
//! the longest that a step of 32 took: it waited for a flush. Half of the looks are for entries that are there, all over
//! the log, half for others; nobody writes meanwhile. Files are in the system's cache, as far as it keeps them.
//!
//! Beside them, in the same run, the bare RSA-2048 private operation that each packet costs anyway. The database lies in
//! the folder for temporary files, or in the one that `MIX_BENCH_HOME` names.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mix::crypto::pk::{PacketKey, PrivateKey};
use mix::crypto::{Digest, sha1};
use mix::store::replay::ReplayLog;
use mix::store::{Db, NODE_SCHEMAS};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Entries at which is measured.
const SIZES: [u64; 3] = [10_000, 1_000_000, 10_000_000];
/// Entries in one step: a worker's batch, and a commit that many share.
const STEPS: [u64; 2] = [32, 256];
/// Entries in one step while the log is filled.
const FILL: u64 = 4096;
/// Entries that are measured at each size, for each length of a step.
const WRITTEN: u64 = 65_536;
/// Looks that are measured at each size.
const LOOKS: u64 = 100_000;
/// Of `/proc/self/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

fn entry(number: u64) -> Digest {
    sha1(&[b"packet", &number.to_be_bytes()])
}

/// Writes the entries `from..to` in steps, and waits until nothing is left to do for them. Gives the time of all, and of
/// the longest step.
fn fill(db: &Db, log: &ReplayLog, key: Digest, (from, to): (u64, u64), step: u64) -> (Duration, Duration) {
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    for first in (from..to).step_by(usize::try_from(step).unwrap()) {
        let (last, log) = ((first + step).min(to), log.clone());
        let began = Instant::now();
        db.write(move |tx| {
            for number in first..last {
                assert!(log.remember(tx, &key, &entry(number))?, "each is new");
            }
            Ok(())
        })
        .unwrap();
        longest = longest.max(began.elapsed());
    }
    log.tidy_up().unwrap();
    (began.elapsed(), longest)
}

/// Looks for entries that are there and for as many that are not.
fn look(log: &ReplayLog, key: Digest, size: u64) -> Duration {
    let began = Instant::now();
    for i in 0..LOOKS {
        let there = i % 2 == 0;
        let number = if there { i.wrapping_mul(7_919_777) % size } else { u64::MAX - i };
        assert_eq!(log.look(&[(key, entry(number))]).unwrap(), [there]);
    }
    began.elapsed()
}

/// Resident memory in MB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

/// What all threads of this process have taken.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND)
}

/// Length of a file, or of all files in a folder, in MB.
fn megabytes(path: &Path) -> u64 {
    let len = |path: &Path| std::fs::metadata(path).unwrap().len();
    let sum = if path.is_dir() {
        std::fs::read_dir(path).unwrap().map(|entry| len(&entry.unwrap().path())).sum()
    } else {
        len(path)
    };
    sum >> 20
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
    let micros = |time: Duration, entries: u64| time.as_secs_f64() * 1e6 / entries as f64;
    let bare = micros(bare_rsa(), 1);
    println!("bare RSA-2048 private operation: {bare:.1} us");
    println!(
        "{:>10} {:>12} {:>6} {:>13} {:>6} {:>9} {:>8} {:>6} {:>8} {:>9} {:>6} {:>8}",
        "entries",
        "by 32, us",
        "x RSA",
        "by 256, us",
        "x RSA",
        "worst ms",
        "look us",
        "x RSA",
        "cpu us",
        "memory MB",
        "db MB",
        "runs MB"
    );
    let mut size = 0;
    for wanted in SIZES {
        let before = cpu();
        fill(&db, &log, key, (size, wanted), FILL);
        let took = micros(cpu() - before, wanted - size);
        db.checkpoint().unwrap();
        let looked = micros(look(&log, key, wanted), LOOKS);
        size = wanted;
        let written = STEPS.map(|step| {
            let (all, longest) = fill(&db, &log, key, (size, size + WRITTEN), step);
            size += WRITTEN;
            (micros(all, WRITTEN), longest)
        });
        let [(by_32, longest), (by_256, _)] = written;
        println!(
            "{wanted:>10} {by_32:>12.1} {:>6.2} {by_256:>13.1} {:>6.2} {:>9.0} {looked:>8.1} {:>6.2} {took:>8.1} {:>9} {:>6} {:>8}",
            by_32 / bare,
            by_256 / bare,
            longest.as_secs_f64() * 1e3,
            looked / bare,
            resident(),
            megabytes(&path),
            megabytes(&path.with_extension("replay")),
        );
    }
    // A start reads all runs.
    log.close();
    let began = Instant::now();
    let log = ReplayLog::open(&db).unwrap();
    println!("opening the log of {size} entries: {:.2} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let mut steps = 1;
    while log.forget_some(&key, 4096).unwrap() {
        steps += 1;
    }
    println!("forgetting them: {:.2} s in {steps} steps", began.elapsed().as_secs_f64());
}
