//! Places of one length for octets, in a file beside the database.
//!
//! A packet that went through SQLite would be written to its log, to its pages, and over both again with zeros, once for
//! each queue that it passes. In its slot it is written once and stays there; the queues hand on the slot's number. What `db`
//! sees to:
//! - Octets are on disk before the row that names their slot is ([`Slots::sync`] comes before the commit).
//! - A slot is taken again when the row is gone for good and nobody can still see it: a reader sees what was
//!   committed when it began ([`Reading`]).
//! - What was left is overwritten, by the next octets or, when none come soon, with zeros.
//!
//! Which slots are in use is known from the rows alone: a slot that none names is free.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::db::StoreError;
use super::disk;

/// Octets in a slot: a packet (minion-spec 3.2). What is shorter is filled up with zeros.
pub const SLOT_LEN: usize = 32 * 1024;

/// Free slots at the end of the file before it is cut: 64 MiB. Less would be written again with the next batch.
const WORTH_CUTTING: i64 = 2048;

/// The number of a slot; a column of a row holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub i64);

impl Slot {
    fn offset(self) -> io::Result<u64> {
        let slot = u64::try_from(self.0).map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(slot.saturating_mul(SLOT_LEN as u64))
    }
}

/// The file, as readers see it.
#[derive(Debug)]
pub(super) struct SlotFile {
    path: PathBuf,
    file: File,
    /// Slots that the writer has counted as free.
    free: AtomicU64,
    eras: Mutex<Eras>,
}

/// An era ends with each commit. What is readable in one was committed in it or before.
#[derive(Debug, Default)]
struct Eras {
    now: u64,
    /// How many reads that began in an era still go on.
    reads: BTreeMap<u64, usize>,
}

/// A read under way. While it lasts, slots that were in use when it began keep their octets.
#[derive(Debug)]
pub(super) struct Reading<'f> {
    file: &'f SlotFile,
    era: u64,
}

impl SlotFile {
    /// A read begins. Before its transaction does: then it sees this era or a later one.
    pub(super) fn begin_read(&self) -> Reading<'_> {
        let mut eras = self.eras();
        let era = eras.now;
        *eras.reads.entry(era).or_default() += 1;
        Reading { file: self, era }
    }

    /// What the system says of it, as an error of the store.
    pub(super) fn failed(&self) -> impl FnOnce(io::Error) -> StoreError {
        |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                StoreError::Corrupt { what: "a slot beyond the end of the file of packets" }
            }
            _ => disk::failed(&self.path)(source),
        }
    }

    /// Slots that nobody has, as of the last commit.
    pub(super) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// The first octets of a slot, `len` of them.
    pub(super) fn read(&self, slot: Slot, len: usize) -> io::Result<Vec<u8>> {
        disk::read_at(&self.file, slot.offset()?, len)
    }

    fn write(&self, slot: Slot, octets: &[u8]) -> io::Result<()> {
        self.file.write_all_at(octets, slot.offset()?)
    }

    /// The era of the oldest read that goes on; without one, the present era.
    fn oldest_read(&self) -> u64 {
        let eras = self.eras();
        eras.reads.keys().next().copied().unwrap_or(eras.now)
    }

    fn eras(&self) -> MutexGuard<'_, Eras> {
        self.eras.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut eras = self.file.eras();
        if let Some(reads) = eras.reads.get_mut(&self.era) {
            *reads -= 1;
            if *reads == 0 {
                eras.reads.remove(&self.era);
            }
        }
    }
}

/// Who has which slot. The writer's alone.
#[derive(Debug)]
pub(super) struct Slots {
    file: Arc<SlotFile>,
    /// Slots in the file.
    len: i64,
    /// Free, and nothing but zeros, or never written. The lowest is taken first, so that the end of the file falls free.
    clean: BTreeSet<Slot>,
    /// Free since an era began, in that order, and not overwritten yet.
    stale: VecDeque<(u64, Slot)>,
    /// Taken since the last commit.
    taken: Vec<Slot>,
    /// Left since the last commit.
    left: Vec<Slot>,
    /// Taken for a commit that failed. The disk may have it all the same, and a start would find it; the next commit
    /// takes its place.
    doubtful: Vec<Slot>,
    #[cfg(test)]
    most: Option<i64>,
}

/// How far a group of steps had come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    taken: usize,
    left: usize,
}

impl Slots {
    /// The slots in `file`, which lies at `path`, of which these are in use.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the file ends before a slot that is in use; what the system says.
    pub(super) fn open(path: PathBuf, file: File, used: &HashSet<Slot>) -> Result<Self, StoreError> {
        let octets = file.metadata().map_err(disk::failed(&path))?.len();
        let len = i64::try_from(octets.div_ceil(SLOT_LEN as u64)).unwrap_or(i64::MAX);
        let file = Arc::new(SlotFile { path, file, free: AtomicU64::new(0), eras: Mutex::default() });
        if used.iter().any(|slot| !(0..len).contains(&slot.0)) {
            return Err(file.failed()(io::ErrorKind::UnexpectedEof.into()));
        }
        // Whether they were overwritten before the last stop is not known.
        let stale = (0..len).map(Slot).filter(|slot| !used.contains(slot)).map(|slot| (0, slot)).collect();
        let slots = Self {
            file,
            len,
            clean: BTreeSet::new(),
            stale,
            taken: Vec::new(),
            left: Vec::new(),
            doubtful: Vec::new(),
            #[cfg(test)]
            most: None,
        };
        slots.count();
        Ok(slots)
    }

    /// The file.
    pub(super) fn file(&self) -> &Arc<SlotFile> {
        &self.file
    }

    /// Writes octets into a slot that nobody has. On disk they are after [`Slots::sync`].
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn put(&mut self, octets: &[u8]) -> io::Result<Slot> {
        debug_assert!(octets.len() <= SLOT_LEN, "longer than a slot");
        let len = self.len;
        let slot = self.take_free();
        // Noted first: a slot that is half written is given back by the roll-back.
        self.taken.push(slot);
        let written = self.fill(slot, octets);
        if written.is_err() && self.len > len {
            // The disk had no room for it: it is no slot, or those that are free would never be tried before it again.
            self.taken.pop();
            self.len = len;
        }
        written.map(|()| slot)
    }

    fn fill(&self, slot: Slot, octets: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if self.most.is_some_and(|most| slot.0 >= most) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write(slot, octets)?;
        let missing = SLOT_LEN.saturating_sub(octets.len());
        if missing > 0 {
            let end = slot.offset()?.saturating_add(octets.len() as u64);
            self.file.file.write_all_at(&vec![0; missing], end)?;
        }
        Ok(())
    }

    /// The row that named it is gone, once this is committed.
    pub(super) fn leave(&mut self, slot: Slot) {
        self.left.push(slot);
    }

    /// Brings to disk what was put since the last commit.
    ///
    /// # Errors
    /// What the system says. Roll back then: what was put must be written anew, the system may have forgotten it.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.taken.is_empty() { Ok(()) } else { self.file.file.sync_data() }
    }

    /// Where a step begins.
    pub(super) fn mark(&self) -> Mark {
        Mark { taken: self.taken.len(), left: self.left.len() }
    }

    /// What was done since `mark` was undone.
    pub(super) fn roll_back(&mut self, mark: Mark) {
        self.left.truncate(mark.left);
        // No row that anybody saw has ever named these.
        let taken = self.taken.split_off(mark.taken.min(self.taken.len()));
        self.stale.extend(taken.into_iter().map(|slot| (0, slot)));
    }

    /// The commit failed.
    pub(super) fn abandon(&mut self) {
        self.left.clear();
        self.doubtful.append(&mut self.taken);
    }

    /// All since the last commit is durable.
    pub(super) fn committed(&mut self) {
        // A commit that has written nothing has taken nobody's place.
        if !self.taken.is_empty() || !self.left.is_empty() {
            self.stale.extend(self.doubtful.drain(..).map(|slot| (0, slot)));
        }
        self.taken.clear();
        if !self.left.is_empty() {
            let mut eras = self.file.eras();
            eras.now += 1;
            let now = eras.now;
            drop(eras);
            self.stale.extend(self.left.drain(..).map(|slot| (now, slot)));
        }
        self.count();
    }

    fn count(&self) {
        self.file.free.store((self.stale.len() + self.clean.len()) as u64, Ordering::Relaxed);
    }

    /// How many slots wait to be overwritten.
    pub(super) fn stale(&self) -> usize {
        self.stale.len()
    }

    /// Overwrites at most `limit` slots that were left, but none that somebody may still read, and cuts the file when
    /// enough of its end is free. Says how many it were.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn wipe(&mut self, limit: usize) -> io::Result<usize> {
        let oldest = self.file.oldest_read();
        let free = self.stale.iter().take_while(|(since, _)| *since <= oldest);
        let slots: Vec<_> = free.take(limit).map(|(_, slot)| *slot).collect();
        if !slots.is_empty() {
            slots.iter().try_for_each(|slot| self.file.write(*slot, &[0; SLOT_LEN]))?;
            self.file.file.sync_data()?;
            self.stale.drain(..slots.len());
            self.clean.extend(&slots);
        }
        if self.stale.is_empty() {
            self.cut()?;
        }
        self.count();
        Ok(slots.len())
    }

    /// Gives the end of the file back if it is free. There is nothing in it to overwrite.
    fn cut(&mut self) -> io::Result<()> {
        let mut end = self.len;
        while end > 0 && self.clean.contains(&Slot(end - 1)) {
            end -= 1;
        }
        if self.len - end >= WORTH_CUTTING {
            self.file.file.set_len(Slot(end).offset()?)?;
            self.clean.split_off(&Slot(end));
            self.len = end;
        }
        Ok(())
    }

    fn take_free(&mut self) -> Slot {
        let oldest = self.file.oldest_read();
        // Those first that would have to be overwritten anyway; of these the last, which the processor has at hand still,
        // unless somebody may read it. The first are overwritten when their time comes.
        let is_free = |stale: Option<&(u64, Slot)>| stale.is_some_and(|(since, _)| *since <= oldest);
        let stale = if is_free(self.stale.back()) {
            self.stale.pop_back()
        } else if is_free(self.stale.front()) {
            self.stale.pop_front()
        } else {
            None
        };
        if let Some((_, slot)) = stale {
            return slot;
        }
        if let Some(slot) = self.clean.pop_first() {
            return slot;
        }
        self.len += 1;
        Slot(self.len - 1)
    }

    /// Lets the disk be full when so many slots are in use.
    #[cfg(test)]
    pub(super) fn allow(&mut self, most: Option<i64>) {
        self.most = most;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::Db;
    use crate::store::db::{Schema, Tx, View, params};
    use crate::store::testing::{as_after_a_kill, fresh, reopened};

    const CRATES: [Schema; 1] = [Schema {
        name: "crates",
        version: 1,
        sql: "CREATE TABLE crate (slot INTEGER NOT NULL)",
        slots: &["SELECT slot FROM crate"],
    }];

    fn fill(tx: &Tx<'_>, octet: u8) -> Result<Slot, StoreError> {
        let slot = tx.put(&[octet; SLOT_LEN])?;
        tx.execute("INSERT INTO crate (slot) VALUES (?1)", params![slot.0])?;
        Ok(slot)
    }

    fn clear(tx: &Tx<'_>, slot: Slot) -> Result<(), StoreError> {
        tx.execute("DELETE FROM crate WHERE slot = ?1", params![slot.0])?;
        tx.leave(slot)
    }

    /// The first octet of each crate.
    fn crates(view: &View<'_>) -> Result<Vec<u8>, StoreError> {
        view.all("SELECT slot FROM crate ORDER BY slot", &[], |row| {
            let octets = view.slot(Slot(row.get(0)?), SLOT_LEN)?;
            assert!(octets.iter().all(|octet| Some(octet) == octets.first()), "two of them in one slot");
            Ok(octets[0])
        })
    }

    fn file(folder: &Path) -> Vec<u8> {
        std::fs::read(folder.join("store.packets")).unwrap()
    }

    fn slots_with(folder: &Path, octet: u8) -> usize {
        file(folder).chunks(SLOT_LEN).filter(|slot| slot.contains(&octet)).count()
    }

    #[test]
    fn octets_are_there_after_a_restart_and_after_a_kill() {
        let (folder, db) = fresh(&CRATES);
        for octet in 1..=3 {
            db.write(move |tx| fill(tx, octet)).unwrap();
        }
        let (_copy, killed) = as_after_a_kill(folder.path(), &CRATES);
        assert_eq!(killed.read(crates).unwrap(), [1, 2, 3]);
        assert_eq!(reopened(folder.path(), db, &CRATES).read(crates).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn slot_of_a_step_that_fails_or_panics_is_free_again() {
        let (folder, db) = fresh(&CRATES);
        db.write(|tx| fill(tx, 1)).unwrap();
        let failed = db.write(|tx| fill(tx, 2).and(Err::<(), _>(StoreError::Missing { what: "luck" })));
        assert!(matches!(failed, Err(StoreError::Missing { .. })), "{failed:?}");
        let failed = db.write(|tx| fill(tx, 3).map(|_| panic!("spilled ink")));
        assert!(matches!(failed, Err::<(), _>(StoreError::Panicked { .. })), "{failed:?}");
        db.write(|tx| fill(tx, 4)).unwrap();
        assert_eq!(db.read(crates).unwrap(), [1, 4]);
        assert_eq!(file(folder.path()).len(), 2 * SLOT_LEN);
    }

    #[test]
    fn slot_that_a_failed_step_had_left_keeps_its_octets() {
        let (_folder, db) = fresh(&CRATES);
        let slot = db.write(|tx| fill(tx, 1)).unwrap();
        let failed = db.write(move |tx| clear(tx, slot).and(Err::<(), _>(StoreError::Missing { what: "luck" })));
        assert!(failed.is_err());
        db.write(|tx| fill(tx, 2)).unwrap();
        db.checkpoint().unwrap();
        assert_eq!(db.read(crates).unwrap(), [1, 2]);
    }

    #[test]
    fn slot_of_a_commit_that_failed_is_left_alone_until_another_takes_its_place() {
        let (folder, db) = fresh(&CRATES);
        db.write(|tx| {
            tx.execute("CREATE TABLE tag (crate INTEGER REFERENCES name DEFERRABLE INITIALLY DEFERRED)", &[])
        })
        .unwrap();
        db.write(|tx| tx.execute("CREATE TABLE name (id INTEGER PRIMARY KEY)", &[])).unwrap();
        // The constraint is deferred: it fails at the commit and not before.
        let failed = db.write(|tx| fill(tx, 7).and_then(|_| tx.execute("INSERT INTO tag (crate) VALUES (404)", &[])));
        assert!(matches!(failed, Err(StoreError::Sqlite { .. })), "{failed:?}");
        // Nor by one that writes nothing.
        db.write(|_| Ok(())).unwrap();
        db.checkpoint().unwrap();
        assert_eq!(slots_with(folder.path(), 7), 1);
        db.write(|tx| fill(tx, 8)).unwrap();
        db.checkpoint().unwrap();
        assert_eq!(slots_with(folder.path(), 7), 0);
        assert_eq!(db.read(crates).unwrap(), [8]);
    }

    #[test]
    fn slot_left_is_not_taken_within_the_same_commit() {
        let (folder, db) = fresh(&CRATES);
        let slot = db.write(|tx| fill(tx, 1)).unwrap();
        let other = db.write(move |tx| clear(tx, slot).and_then(|()| fill(tx, 2))).unwrap();
        assert_ne!(other, slot);
        assert_eq!(db.write(|tx| fill(tx, 3)).unwrap(), slot);
        assert_eq!(file(folder.path()).len(), 2 * SLOT_LEN);
    }

    #[test]
    fn reader_sees_what_was_there_when_it_began_whatever_is_put_meanwhile() {
        let (_folder, db) = fresh(&CRATES);
        let slot = db.write(|tx| fill(tx, 1)).unwrap();
        db.read(|view| {
            assert_eq!(crates(view)?, [1]);
            db.write(move |tx| clear(tx, slot)).unwrap();
            for octet in 2..9 {
                assert_ne!(db.write(move |tx| fill(tx, octet)).unwrap(), slot);
            }
            assert_eq!(crates(view)?, [1]);
            Ok(())
        })
        .unwrap();
        assert_eq!(db.write(|tx| fill(tx, 9)).unwrap(), slot);
    }

    #[test]
    fn many_readers_and_writers_never_see_the_octets_of_others() {
        let (_folder, db) = fresh(&CRATES);
        std::thread::scope(|scope| {
            for octet in 1..=4 {
                let db = &db;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let slot = db.write(move |tx| fill(tx, octet)).unwrap();
                        let mine = db.read(|view| view.slot(slot, SLOT_LEN)).unwrap();
                        assert!(mine.iter().all(|found| *found == octet));
                        db.read(crates).unwrap();
                        db.write(move |tx| clear(tx, slot)).unwrap();
                    }
                });
            }
        });
        assert_eq!(db.read(crates).unwrap(), [0; 0]);
    }

    #[test]
    fn octets_that_were_left_are_in_the_file_no_more_after_a_checkpoint() {
        let (folder, db) = fresh(&CRATES);
        let slots: Vec<_> = (0..3).map(|_| db.write(|tx| fill(tx, 7)).unwrap()).collect();
        assert_eq!(slots_with(folder.path(), 7), 3, "the test would find them");
        db.write(move |tx| slots.into_iter().try_for_each(|slot| clear(tx, slot))).unwrap();
        db.checkpoint().unwrap();
        assert_eq!(slots_with(folder.path(), 7), 0);
    }

    #[test]
    fn octets_that_were_left_are_overwritten_when_nothing_else_happens() {
        let (folder, db) = fresh(&CRATES);
        let slot = db.write(|tx| fill(tx, 7)).unwrap();
        db.write(|tx| fill(tx, 8)).unwrap();
        db.write(move |tx| clear(tx, slot)).unwrap();
        let overwritten = || slots_with(folder.path(), 7) == 0;
        assert!((0..6000).any(|_| overwritten() || {
            std::thread::sleep(std::time::Duration::from_millis(10));
            false
        }));
        assert_eq!(db.read(crates).unwrap(), [8]);
    }

    #[test]
    fn octets_that_a_kill_left_behind_are_overwritten_after_the_next_start() {
        let (folder, db) = fresh(&CRATES);
        let slot = db.write(|tx| fill(tx, 7)).unwrap();
        db.write(|tx| fill(tx, 8)).unwrap();
        let last = db.write(|tx| fill(tx, 7)).unwrap();
        db.write(move |tx| clear(tx, slot).and_then(|()| clear(tx, last))).unwrap();
        let (copy, db) = as_after_a_kill(folder.path(), &CRATES);
        assert_eq!(slots_with(copy.path(), 7), 2, "the end of the file too is overwritten before it is given back");
        db.checkpoint().unwrap();
        assert_eq!(slots_with(copy.path(), 7), 0);
        assert_eq!(db.read(crates).unwrap(), [8]);
    }

    #[test]
    fn slot_that_somebody_still_reads_is_not_overwritten() {
        let mut slots = Slots::open(PathBuf::new(), tempfile::tempfile().unwrap(), &HashSet::new()).unwrap();
        let slot = slots.put(&[7; SLOT_LEN]).unwrap();
        slots.committed();
        let file = Arc::clone(slots.file());
        let reading = file.begin_read();
        slots.leave(slot);
        slots.committed();
        let later = file.begin_read();
        assert_eq!(slots.wipe(9).unwrap(), 0);
        drop(reading);
        assert_eq!(slots.wipe(9).unwrap(), 1, "who began later does not see it");
        drop(later);
        assert_eq!(slots.stale(), 0);
    }

    #[test]
    fn shorter_octets_leave_nothing_of_those_before_them() {
        let (folder, db) = fresh(&CRATES);
        let slot = db.write(|tx| fill(tx, 7)).unwrap();
        db.write(move |tx| clear(tx, slot)).unwrap();
        let short = db.write(|tx| tx.put(&[8; 100])).unwrap();
        assert_eq!(short, slot);
        assert_eq!(slots_with(folder.path(), 7), 0);
        assert_eq!(&*db.read(|view| view.slot(short, 101)).unwrap(), [&[8; 100][..], &[0]].concat());
    }

    #[test]
    fn end_of_the_file_is_given_back_when_enough_of_it_is_free() {
        let (folder, db) = fresh(&CRATES);
        let many = WORTH_CUTTING + 10;
        let slots = db.write(move |tx| (0..many).map(|_| fill(tx, 7)).collect::<Result<Vec<_>, _>>()).unwrap();
        let kept = slots[1];
        db.write(move |tx| slots.iter().filter(|slot| **slot != kept).try_for_each(|slot| clear(tx, *slot))).unwrap();
        db.checkpoint().unwrap();
        assert_eq!(file(folder.path()).len(), 2 * SLOT_LEN);
        assert_eq!(db.read(crates).unwrap(), [7]);
        db.write(|tx| fill(tx, 8)).unwrap();
        db.write(|tx| fill(tx, 9)).unwrap();
        assert_eq!(db.read(crates).unwrap(), [8, 7, 9]);
    }

    #[test]
    fn full_disk_takes_nothing_and_is_forgotten_when_there_is_room_again() {
        let (_folder, db) = fresh(&CRATES);
        db.write(|tx| fill(tx, 1)).unwrap();
        db.write(|tx| tx.allow_slots(Some(1))).unwrap();
        let full = db.write(|tx| fill(tx, 2)).unwrap_err();
        assert!(matches!(full, StoreError::Full), "{full:?}");
        db.write(|tx| tx.allow_slots(None)).unwrap();
        db.write(|tx| fill(tx, 3)).unwrap();
        assert_eq!(db.read(crates).unwrap(), [1, 3]);
    }

    #[test]
    fn full_disk_takes_as_many_as_have_left() {
        let (folder, db) = fresh(&CRATES);
        let slots = db.write(|tx| (0..5).map(|octet| fill(tx, octet)).collect::<Result<Vec<_>, _>>()).unwrap();
        db.write(|tx| tx.allow_slots(Some(5))).unwrap();
        db.write(move |tx| slots.iter().skip(3).try_for_each(|slot| clear(tx, *slot))).unwrap();
        for _ in 0..3 {
            let full = db.write(|tx| (5..8).try_for_each(|octet| fill(tx, octet).map(|_| ())));
            assert!(matches!(full, Err(StoreError::Full)), "two have left, three do not fit: {full:?}");
        }
        db.write(|tx| (5..7).try_for_each(|octet| fill(tx, octet).map(|_| ()))).unwrap();
        let mut all = db.read(crates).unwrap();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 5, 6]);
        db.checkpoint().unwrap();
        assert_eq!(file(folder.path()).len(), 5 * SLOT_LEN);
    }

    #[test]
    fn file_of_slots_that_is_gone_is_called_damage() {
        let (folder, db) = fresh(&CRATES);
        db.write(|tx| fill(tx, 1)).unwrap();
        drop(db);
        std::fs::remove_file(folder.path().join("store.packets")).unwrap();
        let refused = Db::open(&folder.path().join("store.db"), &CRATES);
        assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    }

    #[test]
    fn database_without_slots_has_no_file_for_them_and_says_so() {
        let (folder, db) = fresh(&[]);
        assert!(!folder.path().join("store.packets").exists());
        let refused = db.write(|tx| tx.put(&[1]));
        assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    }
}
