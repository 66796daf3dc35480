//! Stories of the whole log. What a crash or a failure leaves is told in `upkeep`, damage in `run`.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::testing::{claim, entry, files, holds_just, opened, remember, seen};
use super::{PLAN, Plan, ReplayLog, SCHEMA, Verdicts};
use crate::crypto::{DIGEST_LEN, Digest};
use crate::packet::unwrap::{Novelty, ReplayLog as _};
use crate::store::StoreError;
use crate::store::testing::{digest, fresh, reopened};

#[test]
fn replayed_packet_is_refused_after_a_restart() {
    let (folder, db) = fresh(&[SCHEMA]);
    let log = ReplayLog::open(&db).unwrap();
    assert_eq!(remember(&db, &log, digest("key"), 0..1).unwrap(), 1);
    drop(log);
    let db = reopened(folder.path(), db, &[SCHEMA]);
    let log = ReplayLog::open(&db).unwrap();
    assert_eq!(remember(&db, &log, digest("key"), 0..1).unwrap(), 0);
    assert!(claim(&log, digest("key"), entry(0)).is_none());
}

#[test]
fn two_copies_opened_at_the_same_time_pass_once() {
    let (_folder, db) = fresh(&[SCHEMA]);
    let log = ReplayLog::open(&db).unwrap();
    let barrier = Barrier::new(4);
    let claims: Vec<_> = std::thread::scope(|scope| {
        let open = || {
            barrier.wait();
            claim(&log, digest("key"), digest("packet"))
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(claims.len(), 1);
}

#[test]
fn packet_whose_processing_failed_may_come_again() {
    let (_folder, db) = fresh(&[SCHEMA]);
    let log = ReplayLog::open(&db).unwrap();
    let first = claim(&log, digest("key"), digest("packet"));
    assert!(first.is_some());
    drop(first);
    assert!(claim(&log, digest("key"), digest("packet")).is_some());
}

#[test]
fn finished_packet_is_refused_after_its_claim_is_gone() {
    let (_folder, db) = fresh(&[SCHEMA]);
    let log = ReplayLog::open(&db).unwrap();
    let first = claim(&log, digest("key"), digest("packet")).unwrap();
    let (key, hash) = (digest("key"), digest("packet"));
    let writing = log.clone();
    assert!(db.write(move |tx| writing.remember(tx, &key, &hash)).unwrap());
    drop(first);
    assert!(claim(&log, digest("key"), digest("packet")).is_none());
}

#[test]
fn packets_opened_together_are_admitted_once_each_and_only_in_their_turn() {
    let (_folder, db) = fresh(&[SCHEMA]);
    let log = ReplayLog::open(&db).unwrap();
    let packets = [("key", "packet"), ("key", "packet"), ("other key", "packet"), ("key", "another")];
    let packets = packets.map(|(key, packet)| (digest(key), digest(packet)));
    let mut verdicts = Verdicts::new(log.claim(&packets).unwrap());
    let mut admit = |(key, packet)| verdicts.admit(&digest(key), &digest(packet));
    assert_eq!(admit(("key", "packet")).unwrap(), Novelty::New);
    assert_eq!(admit(("key", "packet")).unwrap(), Novelty::Replay);
    assert_eq!(admit(("other key", "packet")).unwrap(), Novelty::New);
    assert!(matches!(admit(("key", "packet that nobody asked about")), Err(StoreError::Missing { .. })));
    assert!(matches!(admit(("key", "another")), Err(StoreError::Missing { .. })), "it was the turn of this one before");
    assert!(claim(&log, digest("key"), digest("packet")).is_none(), "its claim is kept");
    drop(verdicts);
    assert!(claim(&log, digest("key"), digest("packet")).is_some());
    assert_eq!(remember(&db, &log, digest("key"), 0..1).unwrap(), 1);
    db.close();
    assert!(matches!(log.claim(&[(digest("key"), entry(0))]), Err(StoreError::Closed)));
}

#[test]
fn entries_are_found_wherever_they_lie_and_after_a_restart() {
    let (folder, db) = fresh(&[SCHEMA]);
    let log = opened(&db, 100).unwrap();
    for step in 0..42_u64 {
        assert_eq!(remember(&db, &log, digest("key"), step * 30..step * 30 + 30).unwrap(), 30);
        log.tidy_up().unwrap();
    }
    let runs: Vec<u64> = log.handle.log.shelf.of(&digest("key")).iter().map(|run| run.len()).collect();
    assert!(runs.windows(2).all(|pair| pair[0] >= 2 * pair[1]), "{runs:?}");
    assert!(runs.iter().sum::<u64>() < 1260, "some are in the table: {runs:?}");
    assert!(runs.len() > 1, "{runs:?}");
    assert_eq!(files(&db).len(), runs.len(), "what was merged is gone");
    assert!(holds_just(&db, &log, digest("key"), 0..1260));
    assert_eq!(log.count(&digest("key")).unwrap(), 1260);
    drop(log);
    let db = reopened(folder.path(), db, &[SCHEMA]);
    let log = opened(&db, 100).unwrap();
    assert!(holds_just(&db, &log, digest("key"), 0..1260));
    assert!(!seen(&log, digest("other key"), entry(0)));
}

#[test]
fn folder_and_files_are_private_and_say_nothing_but_a_number() {
    let (folder, db) = fresh(&[SCHEMA]);
    let log = opened(&db, 10).unwrap();
    remember(&db, &log, digest("key"), 0..11).unwrap();
    log.tidy_up().unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join("store.replay")), 0o700);
    assert_eq!(files(&db), [folder.path().join("store.replay/1.run")]);
    assert_eq!(mode(&files(&db)[0]), 0o600);
}

#[test]
fn folder_that_others_can_look_into_is_refused_by_name() {
    let (folder, db) = fresh(&[SCHEMA]);
    drop(ReplayLog::open(&db).unwrap());
    let runs = folder.path().join("store.replay");
    fs::set_permissions(&runs, fs::Permissions::from_mode(0o750)).unwrap();
    let refused = ReplayLog::open(&db);
    assert!(matches!(&refused, Err(StoreError::Folder { path, .. }) if *path == runs), "{refused:?}");
}

#[test]
fn second_log_of_a_database_is_refused_until_the_first_is_closed() {
    let (folder, db) = fresh(&[SCHEMA]);
    let log = ReplayLog::open(&db).unwrap();
    let second = ReplayLog::open(&db);
    let runs = folder.path().join("store.replay");
    assert!(matches!(&second, Err(StoreError::Locked { path }) if *path == runs), "{second:?}");
    log.close();
    ReplayLog::open(&db).unwrap();
    assert!(matches!(log.tidy_up(), Err(StoreError::Closed)));
    assert!(matches!(log.forget_some(&digest("key"), 1), Err(StoreError::Closed)));
}

#[test]
fn last_handle_may_go_within_a_step() {
    let (_folder, db) = fresh(&[SCHEMA]);
    let log = ReplayLog::open(&db).unwrap();
    assert!(
        db.write(move |tx| {
            let new = log.remember(tx, &digest("key"), &entry(0))?;
            drop(log);
            Ok(new)
        })
        .unwrap()
    );
}

#[test]
fn forgotten_key_leaves_no_file_and_takes_nothing_from_another() {
    let (folder, db) = fresh(&[SCHEMA]);
    let log = opened(&db, 10).unwrap();
    assert_eq!(log.packet_keys().unwrap(), []);
    for (key, entries) in [("old key", 300), ("new key", 200), ("key without a run", 3)] {
        for from in (0..entries).step_by(20) {
            remember(&db, &log, digest(key), from..entries.min(from + 20)).unwrap();
            log.tidy_up().unwrap();
        }
    }
    remember(&db, &log, digest("old key"), 300..309).unwrap();
    let mut keys = [digest("old key"), digest("new key"), digest("key without a run")];
    keys.sort();
    assert_eq!(log.packet_keys().unwrap(), keys);
    let of_others = log.handle.log.shelf.of(&digest("new key")).len();
    assert!(files(&db).len() > of_others);

    let mut steps = 0;
    while log.forget_some(&digest("old key"), 4).unwrap() {
        steps += 1;
    }
    assert!(steps > 2, "in small steps: {steps}");
    assert!(!log.forget_some(&digest("key without a run"), 4).unwrap());
    assert_eq!(files(&db).len(), of_others);
    assert_eq!(log.packet_keys().unwrap(), [digest("new key")]);
    assert_eq!(log.count(&digest("old key")).unwrap(), 0);
    assert!(!(0..309).any(|number| seen(&log, digest("old key"), entry(number))));
    assert!(holds_just(&db, &log, digest("new key"), 0..200));
    drop(log);
    let db = reopened(folder.path(), db, &[SCHEMA]);
    let log = opened(&db, 10).unwrap();
    assert_eq!(log.packet_keys().unwrap(), [digest("new key")]);
    assert!(holds_just(&db, &log, digest("new key"), 0..200));
}

/// Hashes that agree in the first eight octets, so that all fences are equal, and in those that choose a block.
#[test]
fn ground_hashes_are_told_apart() {
    let (_folder, db) = fresh(&[SCHEMA]);
    let log = opened(&db, 100).unwrap();
    let ground = |number: u32| {
        let mut hash = [7; DIGEST_LEN];
        hash[16..].copy_from_slice(&number.to_be_bytes());
        Digest(hash)
    };
    for from in (0..4000).step_by(200) {
        let writing = log.clone();
        // Each second number, so that there is something between them.
        let step = move |tx: &crate::store::Tx<'_>| {
            (from..from + 200).try_for_each(|i| writing.remember(tx, &digest("key"), &ground(2 * i)).map(|_| ()))
        };
        db.write(step).unwrap();
        log.tidy_up().unwrap();
    }
    assert!(log.handle.log.shelf.of(&digest("key")).iter().any(|run| run.len() > 1000), "several pages");
    for number in 0..8010 {
        let there = number % 2 == 0 && number < 8000;
        assert_eq!(seen(&log, digest("key"), ground(number)), there, "{number}");
    }
    for hash in [[0; DIGEST_LEN], [0xff; DIGEST_LEN]] {
        assert!(!seen(&log, digest("key"), Digest(hash)));
    }
}

#[test]
fn looks_miss_nothing_while_entries_move() {
    const SEED: u64 = 0x7265_706c_6179;
    println!("seed {SEED:#x}");
    const STEP: u64 = 16;
    const STEPS: u64 = 150;
    let (_folder, db) = fresh(&[SCHEMA]);
    let log = ReplayLog::open_as(&db, Plan { most: 64, ..PLAN }).unwrap();
    let (written, over) = ([AtomicU64::new(0), AtomicU64::new(0)], AtomicBool::new(false));
    let keys = [digest("key 0"), digest("key 1")];
    std::thread::scope(|scope| {
        let (db, log, written, over) = (&db, &log, &written, &over);
        let writers: Vec<_> = (0..2)
            .map(|at: usize| {
                scope.spawn(move || {
                    for step in 0..STEPS {
                        let numbers = step * STEP..(step + 1) * STEP;
                        assert_eq!(remember(db, log, keys[at], numbers.clone()).unwrap() as u64, STEP);
                        written[at].store(numbers.end, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for thread in 0..3 {
            scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(SEED + thread);
                while !over.load(Ordering::SeqCst) {
                    let at = dice.random_range(0..2);
                    let there = written[at].load(Ordering::SeqCst);
                    if there > 0 {
                        let number = dice.random_range(0..there);
                        assert!(seen(log, keys[at], entry(number)), "{number} of {there}");
                        assert!(claim(log, keys[at], entry(number)).is_none());
                    }
                    assert!(!seen(log, keys[at], entry(u64::MAX - there)));
                }
            });
        }
        // Also when a writer has failed, or the lookers would go on for ever.
        let failed = writers.into_iter().filter_map(|writer| writer.join().err()).count();
        over.store(true, Ordering::SeqCst);
        assert_eq!(failed, 0);
    });
    log.tidy_up().unwrap();
    for key in keys {
        assert!(holds_just(&db, &log, key, 0..STEP * STEPS));
        assert_eq!(log.count(&key).unwrap(), STEP * STEPS);
        let runs = log.handle.log.shelf.of(&key);
        assert!(runs.iter().any(|run| run.len() > 1000), "there were merges");
    }
}

/// What may happen to a log.
#[derive(Clone, Debug)]
enum Act {
    Remember { key: u8, numbers: Vec<u64> },
    TidyUp,
    Restart,
    Forget { key: u8 },
}

fn act() -> impl Strategy<Value = Act> {
    let key = || 0..2_u8;
    prop_oneof![
        6 => (key(), prop::collection::vec(0..300_u64, 1..60)).prop_map(|(key, numbers)| Act::Remember { key, numbers }),
        4 => Just(Act::TidyUp),
        1 => Just(Act::Restart),
        1 => key().prop_map(|key| Act::Forget { key }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn log_answers_as_a_set_would(acts in prop::collection::vec(act(), 1..25)) {
        let (folder, mut db) = fresh(&[SCHEMA]);
        let mut log = opened(&db, 8).unwrap();
        let mut set = HashSet::new();
        let key = |key: u8| digest(&format!("key {key}"));
        for act in acts {
            match act {
                Act::Remember { key: of, numbers } => {
                    let (writing, of_step) = (log.clone(), numbers.clone());
                    let step = move |tx: &crate::store::Tx<'_>| {
                        of_step.iter().map(|number| writing.remember(tx, &key(of), &entry(*number))).collect()
                    };
                    let new: Vec<bool> = db.write(step).unwrap();
                    let expected: Vec<bool> = numbers.into_iter().map(|number| set.insert((of, number))).collect();
                    prop_assert_eq!(new, expected);
                }
                Act::TidyUp => log.tidy_up().unwrap(),
                Act::Restart => {
                    drop(log);
                    db = reopened(folder.path(), db, &[SCHEMA]);
                    log = opened(&db, 8).unwrap();
                }
                Act::Forget { key: of } => {
                    while log.forget_some(&key(of), 5).unwrap() {}
                    set.retain(|(other, _)| *other != of);
                }
            }
            for number in 0..300 {
                for of in 0..2 {
                    prop_assert_eq!(seen(&log, key(of), entry(number)), set.contains(&(of, number)));
                }
            }
        }
        let all = log.count(&key(0)).unwrap() + log.count(&key(1)).unwrap();
        prop_assert_eq!(all, set.len() as u64);
    }
}
