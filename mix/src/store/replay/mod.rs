//! The replay log: a mix lets no packet pass twice (minion-spec 3.2.5, 5.4).
//!
//! What is remembered of a packet is the hash that its shared secret gives; it is forgotten together with the packet key
//! that opened the packet, since no packet can be opened twice without the key.
//!
//! The newest entries of each packet key lie in a table of the database, so that an entry is part of the packet's
//! transaction. When there are many, they become a *run*, a file of sorted entries beside the database (`run`), and runs
//! become fewer (`merge`); `upkeep` does both behind the packets' back. So the table stays small however long the log is,
//! and one more entry and a look for one cost the same in a log of ten thousand and of ten million. Which entries the table
//! has is known in memory too, so that a look for a packet that is new reads nothing. Within a run nothing
//! says in which order packets came. That a newer run holds newer packets is accepted: it tells tens of thousands from tens
//! of thousands.

mod filter;
mod merge;
mod run;
mod shelf;
mod upkeep;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use self::filter::MAX_BLOCKS;
use self::run::{Folder, Registered, Run, RunId};
use self::shelf::Shelf;
use self::upkeep::{Bell, Table, Upkeep};
use super::db::{Db, Schema, StoreError, Tx, View, held, params};
use super::disk::failed;
use crate::crypto::Digest;
use crate::packet::unwrap::{self, Novelty};

/// The tables of this folder. The entries are one b-tree without row ids: nothing says in which order packets came.
pub const SCHEMA: Schema = Schema {
    name: "replay",
    version: 2,
    sql: "
        CREATE TABLE replay (
            packet_key BLOB NOT NULL,
            hash BLOB NOT NULL,
            PRIMARY KEY (packet_key, hash)
        ) WITHOUT ROWID;
        -- Files beside the database.
        CREATE TABLE replay_run (id INTEGER PRIMARY KEY, packet_key BLOB NOT NULL, checksum BLOB NOT NULL);
    ",
    slots: &[],
};

/// Entries of a packet key in the table, before they become a run. They are a megabyte and a half, which SQLite keeps in
/// memory; moving them holds up the packets for a fraction of a second. With fewer, more often and more runs; with more,
/// longer.
const MOST: usize = 32_768;

/// How a log is cut up. Tests take less.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// As [`MOST`].
    most: usize,
    /// As [`MAX_BLOCKS`].
    blocks: usize,
    /// Whether a thread looks after it.
    thread: bool,
}

const PLAN: Plan = Plan { most: MOST, blocks: MAX_BLOCKS, thread: true };

/// The replay log as the worker threads see it; clones share it. Two copies of a packet that are opened at the same time
/// are told apart by claims. A thread tidies it up until the last handle is gone, or the log is closed.
#[derive(Clone, Debug)]
pub struct ReplayLog {
    handle: Arc<Handle>,
    claims: Claims,
}

/// What the clones share. Its end is the thread's.
struct Handle {
    log: Arc<Log>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread shares too.
struct Log {
    db: Db,
    plan: Plan,
    table: Table,
    shelf: Shelf,
    upkeep: Mutex<Upkeep>,
    bell: Bell,
}

/// Packets that were admitted and are not finished yet, by packet key and hash.
type Claims = Arc<Mutex<HashSet<(Digest, Digest)>>>;

/// The right to let one packet pass. Ends when dropped.
pub struct Claim {
    packet: (Digest, Digest),
    claims: Claims,
}

impl ReplayLog {
    /// The log in `db` and in the folder beside it. Reads all runs, and wipes what a crash has left.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a run is missing or damaged: through a hole in the log, packets would pass a second
    /// time. [`StoreError::Locked`] when the log is open already; what the database and the system say.
    pub fn open(db: &Db) -> Result<Self, StoreError> {
        Self::open_as(db, plan_for(db))
    }

    fn open_as(db: &Db, plan: Plan) -> Result<Self, StoreError> {
        let folder = Folder::open(db.path())?;
        let table = Table::new(plan);
        let registered = db.read(|view| {
            packet_keys(view)?.iter().try_for_each(|packet_key| table.read(view, packet_key))?;
            registered(view)
        })?;
        let shelf = Shelf::default();
        for registered in &registered {
            shelf.replace(&[], Some(Arc::new(Run::open(&folder, registered)?)));
        }
        let known: HashSet<_> = registered.iter().map(|run| folder.place(run.id)).collect();
        folder.runs()?.iter().filter(|run| !known.contains(*run)).try_for_each(|run| folder.wipe(run))?;
        let last = registered.iter().map(|run| run.id).max().unwrap_or(RunId(0));
        let log = Arc::new(Log {
            db: db.clone(),
            plan,
            table,
            shelf,
            upkeep: Mutex::new(Upkeep::new(folder, last)),
            bell: Bell::default(),
        });
        let thread = plan.thread.then(|| {
            let log = Arc::clone(&log);
            // What the last process left undone.
            log.bell.ring();
            thread::Builder::new().name("replay-upkeep".to_owned()).spawn(move || upkeep::run(&log))
        });
        let thread = thread.transpose().map_err(failed(db.path()))?;
        Ok(Self { handle: Arc::new(Handle { log, thread: Mutex::new(thread) }), claims: Claims::default() })
    }

    /// Remembers a packet that was opened with the packet key of this digest. Says false when it was here before. The
    /// last word: [`ReplayLog::claim`] only spares the work on packets that will be dropped.
    ///
    /// # Errors
    /// What the database says, and the system about a run.
    pub fn remember(&self, tx: &Tx<'_>, packet_key: &Digest, hash: &Digest) -> Result<bool, StoreError> {
        let log = &self.handle.log;
        // Runs before the table, other than in `seen`: entries leave the table on this very thread, and a run is taken
        // away without another in its place only when all its entries are in the table, or nobody has the key any more.
        if log.shelf.holds(packet_key, hash)? {
            return Ok(false);
        }
        let sql = "INSERT OR IGNORE INTO replay (packet_key, hash) VALUES (?1, ?2)";
        let new = tx.execute(sql, params![packet_key.0, hash.0])? > 0;
        if new && log.table.add(packet_key, hash) {
            log.bell.ring();
        }
        Ok(new)
    }

    /// Forgets some packets of a packet key that is destroyed, no more than `limit` of the table or one run, so that a
    /// log of millions does not hold up the steps of others. Says whether there are more. Destroy the key first: with it,
    /// each of them could come again. Waits for a merge that is under way.
    ///
    /// # Errors
    /// What the database says, and the system about a run.
    pub fn forget_some(&self, packet_key: &Digest, limit: usize) -> Result<bool, StoreError> {
        let log = &self.handle.log;
        upkeep::forget_some(log, &mut held(&log.upkeep), *packet_key, limit)
    }

    /// The packet keys of which packets are remembered.
    ///
    /// # Errors
    /// What the database says.
    pub fn packet_keys(&self) -> Result<Vec<Digest>, StoreError> {
        let log = &self.handle.log;
        let mut found = log.db.read(packet_keys)?;
        found.extend(log.shelf.packet_keys());
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// How many packets of a packet key are remembered. While entries become a run, they may count twice.
    ///
    /// # Errors
    /// What the database says.
    pub fn count(&self, packet_key: &Digest) -> Result<u64, StoreError> {
        let log = &self.handle.log;
        let in_table = log.db.read(|view| rows(view, packet_key))?;
        Ok(in_table as u64 + log.shelf.of(packet_key).iter().map(|run| run.len()).sum::<u64>())
    }

    /// Does now what the thread would do in its own time, and returns when nothing is left to do.
    ///
    /// # Errors
    /// What the database says, and the system about a run.
    pub fn tidy_up(&self) -> Result<(), StoreError> {
        let log = &self.handle.log;
        upkeep::turn(log, &mut held(&log.upkeep)).map(|_| ())
    }

    /// Ends the thread, and lets the next log have the folder. Close the database after.
    pub fn close(&self) {
        self.handle.close();
    }

    /// The right to let each of these packets pass, to be kept until `queue::incoming::finish` is durable; a packet is named
    /// by the digest of the packet key that opened it and its replay hash. `None` when it was here before, or another
    /// thread has it in hand: if that thread fails, its copy is still among the incoming and comes again, so that dropping
    /// this one loses nothing.
    ///
    /// # Errors
    /// What the database says, and the system about a run; then nothing is claimed.
    pub fn claim(&self, packets: &[(Digest, Digest)]) -> Result<Vec<Option<Claim>>, StoreError> {
        // Claim first, then look: whoever had the claim before has written before it let go.
        let claim = |packet: &(Digest, Digest)| {
            let is_ours = held(&self.claims).insert(*packet);
            is_ours.then(|| Claim { packet: *packet, claims: Arc::clone(&self.claims) })
        };
        let mut claims: Vec<_> = packets.iter().map(claim).collect();
        for (claim, seen) in claims.iter_mut().zip(self.look(packets)?) {
            if seen {
                *claim = None;
            }
        }
        Ok(claims)
    }

    /// Which of these packets were here before.
    ///
    /// # Errors
    /// What the database says, and the system about a run.
    pub fn look(&self, packets: &[(Digest, Digest)]) -> Result<Vec<bool>, StoreError> {
        // The table first, then the runs. An entry that is not in the table any more left it by a commit, and the run
        // that holds it stood on the shelf before; whatever took that run away since has put one with the same entries in
        // its place at the same moment. In the other order it could move from the one to the other between the looks.
        let log = &self.handle.log;
        let mut seen = log.table.may_hold(packets);
        if seen.contains(&true) {
            let sql = "SELECT 1 FROM replay WHERE packet_key = ?1 AND hash = ?2";
            log.db.read(|view| {
                for (seen, (packet_key, hash)) in seen.iter_mut().zip(packets).filter(|(seen, _)| **seen) {
                    *seen = view.exists(sql, params![packet_key.0, hash.0])?;
                }
                Ok(())
            })?;
        }
        for (seen, (packet_key, hash)) in seen.iter_mut().zip(packets) {
            *seen = *seen || log.shelf.holds(packet_key, hash)?;
        }
        Ok(seen)
    }
}

/// The packet keys that have entries in the table.
fn packet_keys(view: &View<'_>) -> Result<Vec<Digest>, StoreError> {
    view.all("SELECT DISTINCT packet_key FROM replay", &[], |row| Ok(Digest(row.get(0)?)))
}

/// How many entries of a packet key are in the table.
fn rows(view: &View<'_>, packet_key: &Digest) -> Result<usize, StoreError> {
    let rows = view.count("SELECT count(*) FROM replay WHERE packet_key = ?1", params![packet_key.0])?;
    Ok(usize::try_from(rows).unwrap_or(usize::MAX))
}

/// The runs that make up the log with the table, from the oldest to the newest.
fn registered(view: &View<'_>) -> Result<Vec<Registered>, StoreError> {
    view.all("SELECT id, packet_key, checksum FROM replay_run ORDER BY id", &[], |row| {
        Ok(Registered { id: RunId(row.get(0)?), packet_key: Digest(row.get(1)?), checksum: Digest(row.get(2)?) })
    })
}

#[cfg(not(test))]
fn plan_for(_: &Db) -> Plan {
    PLAN
}

#[cfg(test)]
use testing::plan_for;

impl Handle {
    fn close(&self) {
        self.log.bell.stop();
        // A step of the database may hold the last handle. The thread may wait for that step, and ends by itself after it.
        if self.log.db.is_on_writer_thread() {
            return;
        }
        if let Some(thread) = held(&self.thread).take() {
            // A panic there was reported when it happened.
            let _ = thread.join();
        }
        held(&self.log.upkeep).close();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Log").field(&self.log.db).finish()
    }
}

/// What the log has said about packets that were opened together: `unwrap::Opened::admit` asks here.
#[derive(Debug, Default)]
pub struct Verdicts(VecDeque<Option<Claim>>, Vec<Claim>);

impl Verdicts {
    /// Those of these claims. The packets must be admitted in the same order.
    pub fn new(claims: Vec<Option<Claim>>) -> Self {
        Self(claims.into(), Vec::new())
    }

    /// The claims on what was admitted.
    pub fn into_claims(self) -> Vec<Claim> {
        self.1
    }
}

impl unwrap::ReplayLog for Verdicts {
    type Error = StoreError;

    /// [`StoreError::Missing`] for a packet that was not asked about, or not in its turn.
    fn admit(&mut self, packet_key: &Digest, replay_hash: &Digest) -> Result<Novelty, StoreError> {
        match self.0.pop_front() {
            Some(Some(claim)) if claim.packet == (*packet_key, *replay_hash) => {
                self.1.push(claim);
                Ok(Novelty::New)
            }
            Some(None) => Ok(Novelty::Replay),
            _ => Err(StoreError::Missing { what: "word of the replay log on a packet" }),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        held(&self.claims).remove(&self.packet);
    }
}

/// Prints nothing that would recognise the packet.
impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claim(..)")
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
