use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::store::db::{Db, Schema};
use crate::store::replay::testing::{entry, files, holds_just, opened, remember, seen};
use crate::store::replay::{ReplayLog, SCHEMA};
use crate::store::testing::{Heard, as_after_a_kill, digest, fresh, reopened};

/// Fails each commit of a step that registers a run, as long as there is a row in `broken`.
const BROKEN: Schema = Schema {
    name: "broken",
    version: 1,
    sql: "
        CREATE TABLE broken (id INTEGER PRIMARY KEY);
        CREATE TABLE checked (id INTEGER REFERENCES broken (id) DEFERRABLE INITIALLY DEFERRED);
        CREATE TRIGGER break_commit AFTER INSERT ON replay_run WHEN EXISTS (SELECT 1 FROM broken)
        BEGIN INSERT INTO checked (id) VALUES (-1); END;
    ",
    slots: &[],
};

/// A log of 25 entries under one key, that may have ten in its table.
fn too_many(schemas: &[Schema]) -> (tempfile::TempDir, Db, ReplayLog) {
    let (folder, db) = fresh(schemas);
    let log = opened(&db, 10).unwrap();
    remember(&db, &log, digest("key"), 0..25).unwrap();
    (folder, db, log)
}

/// A log with two runs that are to be merged.
fn two_runs() -> (tempfile::TempDir, Db, ReplayLog) {
    let (folder, db, log) = too_many(&[SCHEMA]);
    log.tidy_up().unwrap();
    remember(&db, &log, digest("key"), 25..50).unwrap();
    flush(&log.handle.log, &mut held(&log.handle.log.upkeep), digest("key")).unwrap();
    assert_eq!(files(&db).len(), 2);
    (folder, db, log)
}

/// What the next process finds.
fn comes_back(db: &Db, entries: u64, runs: usize) {
    let log = opened(db, 10).unwrap();
    assert_eq!(files(db).len(), runs, "no file that is nobody's");
    assert!(holds_just(db, &log, digest("key"), 0..entries));
    log.tidy_up().unwrap();
    assert!(holds_just(db, &log, digest("key"), 0..entries));
    assert_eq!(log.count(&digest("key")).unwrap(), entries);
    assert_eq!(files(db).len(), log.handle.log.shelf.of(&digest("key")).len());
}

#[test]
fn kill_before_the_commit_of_a_flush_leaves_the_entries_in_the_table() {
    let (folder, db, log) = too_many(&[SCHEMA]);
    let here = folder.path().to_owned();
    let (inner, runs) = (Arc::clone(&log.handle.log), held(&log.handle.log.upkeep).folder().unwrap());
    let (_copy, killed) = db
        .write(move |tx| {
            flush_step(tx, &inner, &runs, RunId(1), &digest("key"))?;
            Ok(as_after_a_kill(&here, &[SCHEMA]))
        })
        .unwrap();
    assert_eq!(files(&killed).len(), 1, "it was there when the kill came");
    comes_back(&killed, 25, 0);
}

#[test]
fn kill_after_the_commit_of_a_flush_leaves_the_entries_in_the_run() {
    let (folder, _db, log) = too_many(&[SCHEMA]);
    log.tidy_up().unwrap();
    let (_copy, killed) = as_after_a_kill(folder.path(), &[SCHEMA]);
    comes_back(&killed, 25, 1);
}

#[test]
fn kill_before_the_commit_of_a_merge_leaves_what_was_there_before() {
    let (folder, db, log) = two_runs();
    let here = folder.path().to_owned();
    let (_, inputs) = due_merge(&log.handle.log).unwrap();
    let runs = held(&log.handle.log.upkeep).folder().unwrap();
    let merged = merge::merged(&runs, RunId(3), (digest("key"), &inputs), Filter::new(1), &|| true);
    let output = merged.unwrap().unwrap();
    let (_copy, killed) = db
        .write(move |tx| {
            merge_step(tx, &output, &inputs)?;
            Ok(as_after_a_kill(&here, &[SCHEMA]))
        })
        .unwrap();
    assert_eq!(files(&killed).len(), 3);
    comes_back(&killed, 50, 2);
    // And after it, with the old files still there.
    let (_copy, killed) = as_after_a_kill(folder.path(), &[SCHEMA]);
    assert_eq!(files(&killed).len(), 3);
    comes_back(&killed, 50, 1);
}

#[test]
fn kill_after_a_merge_leaves_one_run() {
    let (folder, db, log) = two_runs();
    log.tidy_up().unwrap();
    assert_eq!(files(&db).len(), 1);
    let (_copy, killed) = as_after_a_kill(folder.path(), &[SCHEMA]);
    comes_back(&killed, 50, 1);
}

#[test]
fn kill_while_a_key_is_forgotten_leaves_files_that_the_next_start_wipes() {
    let (folder, db, _log) = two_runs();
    let (copy, killed) = as_after_a_kill(folder.path(), &[SCHEMA]);
    killed.write(|tx| tx.execute("DELETE FROM replay_run", &[])).unwrap();
    fs::write(copy.path().join("store.replay/77.run"), "half of a run").unwrap();
    fs::write(copy.path().join("store.replay/note"), "not ours").unwrap();
    fs::write(copy.path().join("elsewhere"), "not ours").unwrap();
    std::os::unix::fs::symlink(copy.path().join("elsewhere"), copy.path().join("store.replay/78.run")).unwrap();
    let log = opened(&killed, 10).unwrap();
    assert_eq!(files(&killed), [copy.path().join("store.replay/note")]);
    assert_eq!(fs::read(copy.path().join("elsewhere")).unwrap(), b"not ours", "what a link leads to stays");
    assert_eq!(log.packet_keys().unwrap(), []);
    assert_eq!(files(&db).len(), 2);
}

#[test]
fn what_is_wiped_is_overwritten() {
    let (folder, db, log) = two_runs();
    let file = files(&db).remove(0);
    // A second name, to see what became of the octets.
    let second = folder.path().join("second name");
    fs::hard_link(&file, &second).unwrap();
    let before = fs::read(&second).unwrap();
    assert!(before.iter().any(|octet| *octet != 0));
    log.tidy_up().unwrap();
    assert!(!file.exists());
    assert_eq!(fs::read(&second).unwrap(), vec![0; before.len()]);
}

#[test]
fn flush_that_is_not_committed_is_undone_when_the_doubt_is_over() {
    let (folder, db, log) = too_many(&[SCHEMA, BROKEN]);
    db.write(|tx| tx.insert("INSERT INTO broken (id) VALUES (1)", &[])).unwrap();
    let failed = log.tidy_up();
    assert!(matches!(failed, Err(StoreError::Sqlite { .. })), "{failed:?}");
    assert!(holds_just(&db, &log, digest("key"), 0..25));
    // As long as nobody knows, the file stays: should the commit come to life after a crash, it would be missed.
    assert!(log.tidy_up().is_err());
    assert_eq!(files(&db).len(), 1);
    db.write(|tx| tx.execute("DELETE FROM broken", &[])).unwrap();
    let first = files(&db);
    log.tidy_up().unwrap();
    assert_eq!(files(&db).len(), 1);
    assert_ne!(files(&db), first, "the first try is wiped, the second has come about");
    assert!(holds_just(&db, &log, digest("key"), 0..25));
    drop(log);
    comes_back(&reopened(folder.path(), db, &[SCHEMA, BROKEN]), 25, 1);
}

#[test]
fn merge_that_is_not_committed_is_undone_when_the_doubt_is_over() {
    let (folder, db, log) = too_many(&[SCHEMA, BROKEN]);
    log.tidy_up().unwrap();
    remember(&db, &log, digest("key"), 25..50).unwrap();
    flush(&log.handle.log, &mut held(&log.handle.log.upkeep), digest("key")).unwrap();
    db.write(|tx| tx.insert("INSERT INTO broken (id) VALUES (1)", &[])).unwrap();
    assert!(log.tidy_up().is_err());
    assert_eq!(files(&db).len(), 3);
    assert!(holds_just(&db, &log, digest("key"), 0..50));
    db.write(|tx| tx.execute("DELETE FROM broken", &[])).unwrap();
    log.tidy_up().unwrap();
    assert_eq!(files(&db).len(), 1, "the first try is wiped, the second has come about");
    assert!(holds_just(&db, &log, digest("key"), 0..50));
    drop(log);
    comes_back(&reopened(folder.path(), db, &[SCHEMA, BROKEN]), 50, 1);
}

#[test]
fn step_that_was_committed_after_all_counts_when_the_doubt_is_over() {
    let (folder, db, log) = two_runs();
    let inner = &log.handle.log;
    let mut upkeep = held(&inner.upkeep);
    // A flush.
    let newest = inner.shelf.of(&digest("key")).remove(1);
    upkeep.doubt = Some(Doubt { output: newest, inputs: Vec::new() });
    settle(inner, &mut upkeep).unwrap();
    assert_eq!(inner.shelf.of(&digest("key")).len(), 2);
    // A merge.
    let (packet_key, inputs) = due_merge(inner).unwrap();
    let (id, runs) = (upkeep.next_id(), upkeep.folder().unwrap());
    let merged = merge::merged(&runs, id, (packet_key, &inputs), Filter::new(1), &|| true);
    let output = Arc::new(merged.unwrap().unwrap());
    let (come, gone) = (Arc::clone(&output), inputs.clone());
    db.write(move |tx| merge_step(tx, &come, &gone)).unwrap();
    upkeep.doubt = Some(Doubt { output, inputs });
    turn(inner, &mut upkeep).unwrap();
    drop((upkeep, runs));
    assert_eq!(files(&db).len(), 1);
    assert!(holds_just(&db, &log, digest("key"), 0..50));
    drop(log);
    comes_back(&reopened(folder.path(), db, &[SCHEMA]), 50, 1);
}

#[test]
fn run_that_cannot_be_written_leaves_the_entries_in_the_table_and_is_said_once() {
    let (folder, db, log) = too_many(&[SCHEMA]);
    // Writing fails as on a full disk, and for the superuser too: there is no folder.
    let (runs, away) = (folder.path().join("store.replay"), folder.path().join("away"));
    fs::rename(&runs, &away).unwrap();
    let said = Arc::new(AtomicUsize::new(0));
    tracing::subscriber::with_default(Heard(Arc::clone(&said)), || {
        for from in 25..35 {
            one_turn(&log.handle.log);
            assert_eq!(remember(&db, &log, digest("key"), from..from + 1).unwrap(), 1, "the mix goes on");
        }
    });
    assert_eq!(said.load(Ordering::SeqCst), 1);
    assert!(holds_just(&db, &log, digest("key"), 0..35));
    assert_eq!(log.handle.log.shelf.of(&digest("key")).len(), 0);
    fs::rename(&away, &runs).unwrap();
    one_turn(&log.handle.log);
    assert_eq!(log.handle.log.shelf.of(&digest("key")).len(), 1);
    assert!(holds_just(&db, &log, digest("key"), 0..35));
}

#[test]
fn table_that_has_grown_becomes_runs_of_bounded_length() {
    let (_folder, db) = fresh(&[SCHEMA]);
    let log = opened(&db, 10).unwrap();
    remember(&db, &log, digest("key"), 0..100).unwrap();
    let inner = &log.handle.log;
    flush(inner, &mut held(&inner.upkeep), digest("key")).unwrap();
    assert_eq!(inner.shelf.of(&digest("key")).iter().map(|run| run.len()).collect::<Vec<_>>(), [40]);
    assert!(inner.table.full().is_some(), "there are more");
    log.tidy_up().unwrap();
    assert!(holds_just(&db, &log, digest("key"), 0..100));
}

#[test]
fn step_that_is_undone_makes_no_run_of_too_few_entries() {
    let (_folder, db) = fresh(&[SCHEMA]);
    let log = opened(&db, 10).unwrap();
    let writing = log.clone();
    let undone: Result<(), _> = db.write(move |tx| {
        (0..20).try_for_each(|number| writing.remember(tx, &digest("key"), &entry(number)).map(|_| ()))?;
        Err(StoreError::Busy)
    });
    assert!(matches!(undone, Err(StoreError::Busy)));
    log.tidy_up().unwrap();
    assert_eq!(files(&db), [] as [PathBuf; 0]);
    assert!(!seen(&log, digest("key"), entry(0)));
}
