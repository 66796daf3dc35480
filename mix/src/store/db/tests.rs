use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::channel;

use super::{Db, Schema, StoreError, Tx, View, day_end, exposure, instant, own_uid, params, seconds};
use crate::store::testing::{as_after_a_kill, fresh, hour, private_folder, reopened};

const NOTES: Schema = Schema {
    name: "notes",
    version: 1,
    sql: "
        CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, octets BLOB);
        CREATE TABLE reply (note INTEGER NOT NULL REFERENCES note (id) DEFERRABLE INITIALLY DEFERRED);
    ",
    slots: &[],
};

fn note(tx: &Tx<'_>, text: &str) -> Result<i64, StoreError> {
    tx.insert("INSERT INTO note (text) VALUES (?1)", params![text])
}

fn notes(view: &View<'_>) -> Result<Vec<String>, StoreError> {
    view.all("SELECT text FROM note ORDER BY id", &[], |row| Ok(row.get(0)?))
}

type TestStep = fn(&Tx<'_>) -> Result<i64, StoreError>;

/// Runs the steps in one group: the writer is kept busy until all are queued.
fn in_one_group(db: &Db, steps: Vec<TestStep>) -> Vec<Result<i64, StoreError>> {
    let (go, wait) = channel::<()>();
    let (tell, told) = channel();
    db.submit(move |_| wait.recv().map_err(|_| StoreError::Closed), |_| {});
    let count = steps.len();
    for (place, step) in steps.into_iter().enumerate() {
        let tell = tell.clone();
        db.submit(step, move |result| tell.send((place, result)).unwrap());
    }
    go.send(()).unwrap();
    let mut results: Vec<_> = told.iter().take(count).collect();
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let (folder, db) = fresh(&[NOTES]);
    db.write(|tx| note(tx, "kept")).unwrap();
    let db = reopened(folder.path(), db, &[NOTES]);
    assert_eq!(db.read(notes).unwrap(), ["kept"]);
}

#[test]
fn what_was_written_is_there_after_a_kill_and_what_was_under_way_is_not() {
    let (folder, db) = fresh(&[NOTES]);
    db.write(|tx| note(tx, "durable")).unwrap();
    let here = folder.path().to_owned();
    let seen = db.write(move |tx| {
        note(tx, "under way")?;
        let (_copy, killed) = as_after_a_kill(&here, &[NOTES]);
        killed.read(notes)
    });
    assert_eq!(seen.unwrap(), ["durable"]);
    let (_copy, killed) = as_after_a_kill(folder.path(), &[NOTES]);
    assert_eq!(killed.read(notes).unwrap(), ["durable", "under way"]);
}

#[test]
fn failing_step_rolls_back_alone() {
    let (_folder, db) = fresh(&[NOTES]);
    let results = in_one_group(
        &db,
        vec![
            |tx| note(tx, "first"),
            |tx| {
                note(tx, "second")?;
                note(tx, "first")
            },
            |tx| note(tx, "third"),
        ],
    );
    assert!(matches!(results.as_slice(), [Ok(_), Err(StoreError::Sqlite { .. }), Ok(_)]), "{results:?}");
    assert_eq!(db.read(notes).unwrap(), ["first", "third"]);
}

#[test]
fn steps_queued_together_share_one_commit() {
    let (_folder, db) = fresh(&[NOTES]);
    let reader = db.clone();
    let (go, wait) = channel::<()>();
    let (tell, told) = channel();
    db.submit(
        move |tx| {
            wait.recv().unwrap();
            note(tx, "first")
        },
        |_| {},
    );
    db.submit(
        move |tx| Ok((notes(tx)?, reader.read(notes)?)),
        move |result: Result<_, StoreError>| tell.send(result).unwrap(),
    );
    go.send(()).unwrap();
    let (seen_by_the_group, committed) = told.recv().unwrap().unwrap();
    assert_eq!(seen_by_the_group, ["first"]);
    assert!(committed.is_empty());
}

#[test]
fn panicking_step_is_undone_and_the_writer_lives_on() {
    let (_folder, db) = fresh(&[NOTES]);
    let result: Result<(), _> = db.write(|tx| {
        note(tx, "half done")?;
        panic!("spilled ink")
    });
    assert!(matches!(&result, Err(StoreError::Panicked { message }) if message == "spilled ink"), "{result:?}");
    db.write(|tx| note(tx, "after")).unwrap();
    assert_eq!(db.read(notes).unwrap(), ["after"]);
}

#[test]
fn panicking_callback_harms_nobody_else() {
    let (_folder, db) = fresh(&[NOTES]);
    db.submit(|tx| note(tx, "kept"), |_| panic!("spilled ink"));
    db.write(|tx| note(tx, "after")).unwrap();
    assert_eq!(db.read(notes).unwrap(), ["kept", "after"]);
}

#[test]
fn failing_commit_fails_every_step_of_its_group() {
    let (_folder, db) = fresh(&[NOTES]);
    let results = in_one_group(
        &db,
        vec![
            |tx| note(tx, "innocent"),
            // The constraint is deferred: it fails at the commit and not before.
            |tx| tx.insert("INSERT INTO reply (note) VALUES (404)", &[]),
        ],
    );
    assert!(
        matches!(results.as_slice(), [Err(StoreError::Sqlite { .. }), Err(StoreError::Sqlite { .. })]),
        "{results:?}"
    );
    db.write(|tx| note(tx, "after")).unwrap();
    assert_eq!(db.read(notes).unwrap(), ["after"]);
}

#[test]
fn full_disk_is_named_and_not_fatal() {
    let (_folder, db) = fresh(&[NOTES]);
    let result = db.write(|tx| {
        let pages = tx.count("PRAGMA page_count", &[])?;
        tx.first(&format!("PRAGMA max_page_count = {pages}"), &[], |_| Ok(()))?;
        tx.insert("INSERT INTO note (text, octets) VALUES ('large', zeroblob(100000))", &[])
    });
    assert!(matches!(result, Err(StoreError::Full)), "{result:?}");
    db.write(|tx| tx.first("PRAGMA max_page_count = 100000", &[], |_| Ok(()))).unwrap();
    db.write(|tx| note(tx, "after")).unwrap();
    assert_eq!(db.read(notes).unwrap(), ["after"]);
}

#[test]
fn step_that_ends_the_transaction_undoes_its_group_and_nothing_is_half_done() {
    let (_folder, db) = fresh(&[NOTES]);
    let results = in_one_group(
        &db,
        vec![|tx| note(tx, "innocent"), |tx| Ok(i64::try_from(tx.execute("ROLLBACK", &[])?).unwrap())],
    );
    assert!(matches!(results.as_slice(), [Err(StoreError::Undone), _]), "{results:?}");
    db.write(|tx| note(tx, "after")).unwrap();
    assert_eq!(db.read(notes).unwrap(), ["after"]);
}

#[test]
fn step_within_a_step_is_refused_instead_of_waiting_for_itself() {
    let (_folder, db) = fresh(&[NOTES]);
    let inner = db.clone();
    let result = db.write(move |_| inner.write(|tx| note(tx, "inner")));
    assert!(matches!(result, Err(StoreError::Nested)), "{result:?}");
    let inner = db.clone();
    let result = db.write(move |_| inner.checkpoint());
    assert!(matches!(result, Err(StoreError::Nested)), "{result:?}");
}

#[test]
fn closed_database_says_so() {
    let (folder, db) = fresh(&[NOTES]);
    let other = db.clone();
    db.write(|tx| note(tx, "kept")).unwrap();
    db.close();
    db.close();
    assert!(matches!(other.write(|tx| note(tx, "late")), Err(StoreError::Closed)));
    assert!(matches!(other.read(notes), Err(StoreError::Closed)));
    assert!(matches!(other.checkpoint(), Err(StoreError::Closed)));
    assert!(!folder.path().join("store.db-wal").exists());
    assert_eq!(Db::open(&folder.path().join("store.db"), &[NOTES]).unwrap().read(notes).unwrap(), ["kept"]);
}

#[test]
fn last_handle_may_go_within_a_step() {
    let (_folder, db) = fresh(&[NOTES]);
    let (go, wait) = channel::<()>();
    let (tell, told) = channel();
    let inner = db.clone();
    db.submit(
        move |tx| {
            wait.recv().unwrap();
            drop(inner);
            note(tx, "kept")
        },
        move |result| tell.send(result.is_ok()).unwrap(),
    );
    // This handle goes while the step holds the last one.
    drop(db);
    go.send(()).unwrap();
    assert!(told.recv().unwrap());
}

#[test]
fn second_opener_is_refused_until_the_first_is_done() {
    let (folder, db) = fresh(&[NOTES]);
    let path = folder.path().join("store.db");
    let second = Db::open(&path, &[NOTES]);
    assert!(matches!(&second, Err(StoreError::Locked { path: locked }) if *locked == path), "{second:?}");
    drop(db);
    Db::open(&path, &[NOTES]).unwrap();
}

#[test]
fn folder_that_others_can_look_into_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for mode in [0o755, 0o750, 0o701, 0o770] {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        let refused = Db::open(&folder.path().join("store.db"), &[]).unwrap_err();
        assert!(matches!(&refused, StoreError::Folder { path, .. } if path == folder.path()), "{refused:?}");
        assert!(refused.to_string().contains(&format!("{mode:04o}")), "{refused}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn missing_folder_is_made_and_all_in_it_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/store.db");
    let db = Db::open(&path, &[NOTES]).unwrap();
    db.write(|tx| note(tx, "private")).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap().path();
        assert_eq!(mode(&entry), 0o600, "{entry:?}");
    }
}

#[test]
fn file_left_open_to_others_is_closed_to_them() {
    let (folder, db) = fresh(&[NOTES]);
    let path = folder.path().join("store.db");
    drop(db);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let _db = Db::open(&path, &[NOTES]).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn file_that_is_no_database_is_called_damaged() {
    let folder = private_folder();
    let path = folder.path().join("store.db");
    fs::write(&path, [b'x'; 4096]).unwrap();
    let refused = Db::open(&path, &[NOTES]);
    assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
}

#[test]
fn tables_of_another_version_are_refused_by_name() {
    let (folder, db) = fresh(&[Schema { version: 2, ..NOTES }]);
    drop(db);
    let refused = Db::open(&folder.path().join("store.db"), &[NOTES]);
    assert!(matches!(refused, Err(StoreError::SchemaVersion { name: "notes", found: 2, known: 1 })), "{refused:?}");
}

#[test]
fn tables_of_a_new_owner_are_added_to_an_old_file() {
    let (folder, db) = fresh(&[NOTES]);
    db.write(|tx| note(tx, "kept")).unwrap();
    let letters = Schema { name: "letters", version: 1, sql: "CREATE TABLE letter (text TEXT)", slots: &[] };
    let db = reopened(folder.path(), db, &[NOTES, letters]);
    db.write(|tx| tx.insert("INSERT INTO letter (text) VALUES ('new')", &[])).unwrap();
    assert_eq!(db.read(notes).unwrap(), ["kept"]);
}

#[test]
fn deleted_text_is_in_no_file_after_a_checkpoint() {
    let marker = "the marker that must not be found again";
    let found = |folder: &Path| {
        fs::read_dir(folder).unwrap().any(|entry| {
            let octets = fs::read(entry.unwrap().path()).unwrap();
            octets.windows(marker.len()).any(|window| window == marker.as_bytes())
        })
    };
    let (folder, db) = fresh(&[NOTES]);
    // Long enough for overflow pages, so that whole pages are freed.
    let long = marker.repeat(1000);
    db.write(move |tx| note(tx, &long)).unwrap();
    db.checkpoint().unwrap();
    assert!(found(folder.path()), "the test would find it");
    db.write(|tx| tx.execute("DELETE FROM note", &[])).unwrap();
    db.checkpoint().unwrap();
    assert!(!found(folder.path()));
}

#[test]
fn reader_cannot_write() {
    let (_folder, db) = fresh(&[NOTES]);
    let refused = db.read(|view| view.first("INSERT INTO note (text) VALUES ('no') RETURNING id", &[], |_| Ok(())));
    assert!(matches!(refused, Err(StoreError::Sqlite { .. })), "{refused:?}");
}

#[test]
fn value_of_the_wrong_type_is_called_damage() {
    let (_folder, db) = fresh(&[NOTES]);
    db.write(|tx| note(tx, "text")).unwrap();
    let read = db.read(|view| view.first("SELECT text FROM note", &[], |row| Ok(row.get::<_, i64>(0)?)));
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
}

#[test]
fn many_threads_write_and_read_at_once() {
    let (_folder, db) = fresh(&[NOTES]);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let db = &db;
            scope.spawn(move || {
                for n in 0..20 {
                    let text = format!("{thread}-{n}");
                    let mine = text.clone();
                    db.write(move |tx| note(tx, &mine)).unwrap();
                    assert!(db.read(notes).unwrap().contains(&text));
                }
            });
        }
    });
    assert_eq!(db.read(notes).unwrap().len(), 160);
}

#[test]
fn instants_are_kept_by_the_second_and_days_are_rounded_up() {
    assert_eq!(instant(seconds(hour(5))), hour(5));
    assert_eq!(instant(day_end(hour(0))), hour(24));
    assert_eq!(instant(day_end(hour(23))), hour(24));
    assert_eq!(seconds(std::time::UNIX_EPOCH - std::time::Duration::from_secs(1)), 0);
}

#[test]
fn folder_of_somebody_else_is_refused_whatever_its_mode() {
    assert_eq!(exposure(0o40700, 1000, 1000), None);
    let why = exposure(0o40700, 1001, 1000).unwrap();
    assert!(why.contains("user 1001") && why.contains("user 1000") && why.contains("chown"), "{why}");
    if own_uid() != 0 {
        println!("only root can give folders away: not tried");
        return;
    }
    let folder = private_folder();
    std::os::unix::fs::chown(folder.path(), Some(1), None).unwrap();
    let refused = super::private_folder(folder.path()).unwrap_err();
    assert!(matches!(&refused, StoreError::Folder { path, .. } if path == folder.path()), "{refused:?}");
}

#[test]
fn link_to_a_folder_is_judged_by_where_it_leads() {
    let folder = private_folder();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    fs::create_dir(&target).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    for (mode, good) in [(0o700, true), (0o750, false), (0o705, false)] {
        fs::set_permissions(&target, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(super::private_folder(&link).is_ok(), good, "{mode:o}");
    }
    fs::remove_dir(&target).unwrap();
    assert!(matches!(super::private_folder(&link), Err(StoreError::Open { .. })));
}
