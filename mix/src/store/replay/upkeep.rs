//! What is done behind the packets' back: entries leave the table for runs, runs become fewer, files go.
//!
//! One at a time does any of it, with [`Upkeep`] in hand. Everything that changes what the log consists of is a step of
//! the database, and files follow the database: a run is durable before the step that registers it, and is overwritten only
//! after the step that takes it off has been committed. So whatever a crash leaves, the registered runs are whole, and all
//! others are to be wiped.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::filter::{Filter, blocks_for};
use super::run::{Folder, Run, RunId, Writer};
use super::{Log, Plan, merge};
use crate::crypto::Digest;
use crate::store::db::{StoreError, Tx, View, held, params, sql_limit};
use crate::store::disk::{failed, free_space};

/// Of what is free on the disk, the part that a merge may take: the packets need room too.
const SHARE_OF_FREE: u64 = 2;
/// As many times the planned length goes into one run at most, should the table have grown beyond it: the step holds up
/// others, and what it reads is in memory.
const LONGEST: usize = 4;

/// What only one at a time may do.
pub(super) struct Upkeep {
    /// Gone when the log is closed.
    folder: Option<Arc<Folder>>,
    /// The number of the last run.
    last: RunId,
    doubt: Option<Doubt>,
    /// Files that are nobody's any more.
    retired: Vec<PathBuf>,
    /// Whether a failure was said, and nothing has succeeded since.
    failing: bool,
}

/// A step that may or may not have been committed: the database said no, but a commit that fails halfway can come to life
/// when the write-ahead log is read again after a crash.
struct Doubt {
    output: Arc<Run>,
    inputs: Vec<Arc<Run>>,
}

impl Upkeep {
    pub(super) fn new(folder: Folder, last: RunId) -> Self {
        Self { folder: Some(Arc::new(folder)), last, doubt: None, retired: Vec::new(), failing: false }
    }

    /// Lets go of the folder.
    pub(super) fn close(&mut self) {
        self.folder = None;
    }

    fn folder(&self) -> Result<Arc<Folder>, StoreError> {
        self.folder.clone().ok_or(StoreError::Closed)
    }

    fn next_id(&mut self) -> RunId {
        self.last = RunId(self.last.0.saturating_add(1));
        self.last
    }

    fn retire(&mut self, runs: &[Arc<Run>]) {
        self.retired.extend(runs.iter().map(|run| run.path().to_owned()));
    }
}

/// The entries of each packet key that may be in the table: all that are, and those of steps that were undone. Who asks for
/// one of the many others need not look into the table.
pub(super) struct Table {
    plan: Plan,
    keys: Mutex<HashMap<Digest, Rows>>,
}

struct Rows {
    hashes: HashSet<Digest>,
    /// With more than these, they become a run.
    most: usize,
}

impl Table {
    pub(super) fn new(plan: Plan) -> Self {
        Self { plan, keys: Mutex::default() }
    }

    /// Notes one more, and says whether there are too many.
    pub(super) fn add(&self, packet_key: &Digest, hash: &Digest) -> bool {
        let mut keys = held(&self.keys);
        let rows = keys.entry(*packet_key).or_insert_with(|| Rows { hashes: HashSet::new(), most: self.plan.most });
        rows.hashes.insert(*hash);
        rows.hashes.len() > rows.most
    }

    /// Which of these may be in the table.
    pub(super) fn may_hold(&self, packets: &[(Digest, Digest)]) -> Vec<bool> {
        let keys = held(&self.keys);
        let may_hold = |(packet_key, hash)| keys.get(packet_key).is_some_and(|rows| rows.hashes.contains(hash));
        packets.iter().map(|(packet_key, hash)| may_hold((packet_key, hash))).collect()
    }

    /// Reads anew what there is. What leaves the table must be found elsewhere by now.
    pub(super) fn read(&self, view: &View<'_>, packet_key: &Digest) -> Result<(), StoreError> {
        let sql = "SELECT hash FROM replay WHERE packet_key = ?1";
        let hashes = view.all(sql, params![packet_key.0], |row| Ok(Digest(row.get(0)?)))?;
        let rows = Rows { hashes: hashes.into_iter().collect(), most: self.plan.most };
        held(&self.keys).insert(*packet_key, rows);
        Ok(())
    }

    /// Waits with the next try until there are some more: each would hold up the packets. Without a clock, since a packet
    /// is what costs room.
    fn postpone(&self, packet_key: &Digest) {
        if let Some(rows) = held(&self.keys).get_mut(packet_key) {
            rows.most = rows.hashes.len().max(self.plan.most) + self.plan.most / 8;
        }
    }

    fn forget(&self, packet_key: &Digest) {
        held(&self.keys).remove(packet_key);
    }

    fn full(&self) -> Option<Digest> {
        held(&self.keys).iter().find(|(_, rows)| rows.hashes.len() > rows.most).map(|(key, _)| *key)
    }
}

/// Wakes the thread.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<Rung>,
    changed: Condvar,
}

#[derive(Default)]
struct Rung {
    due: bool,
    stopped: bool,
}

impl Bell {
    pub(super) fn ring(&self) {
        if !std::mem::replace(&mut self.state().due, true) {
            self.changed.notify_one();
        }
    }

    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_one();
    }

    fn has_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Whether there is something to do; false when there will be nothing any more.
    fn wait(&self) -> bool {
        let waiting = self.changed.wait_while(self.state(), |rung| !rung.due && !rung.stopped);
        let mut rung = waiting.unwrap_or_else(PoisonError::into_inner);
        rung.due = false;
        !rung.stopped
    }

    fn state(&self) -> MutexGuard<'_, Rung> {
        held(&self.state)
    }
}

/// The thread: does what is due whenever the bell rings.
pub(super) fn run(log: &Arc<Log>) {
    while log.bell.wait() {
        one_turn(log);
    }
}

/// Does what is due. What cannot be done stays as it is, which costs speed and room and no packet, so it is said once.
pub(super) fn one_turn(log: &Arc<Log>) {
    let mut upkeep = held(&log.upkeep);
    match turn(log, &mut upkeep) {
        // A turn with nothing to do proves nothing.
        Ok(done) => upkeep.failing &= !done,
        // The end of the process is no failure.
        Err(StoreError::Closed) => {}
        Err(e) => {
            if !std::mem::replace(&mut upkeep.failing, true) {
                warn!(error = %with_sources(&e), "the replay log cannot be tidied up; trying again later");
            }
        }
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Does all that is due, and says whether anything was.
///
/// # Errors
/// What could not be done first; it ends the turn.
pub(super) fn turn(log: &Arc<Log>, upkeep: &mut Upkeep) -> Result<bool, StoreError> {
    settle(log, upkeep)?;
    // Old files are the least of it: what cannot be wiped does not hold up the rest.
    let mut wiped = wipe_retired(upkeep);
    let mut done = false;
    loop {
        if log.bell.has_stopped() {
            return Err(StoreError::Closed);
        }
        if let Some(packet_key) = log.table.full() {
            flush(log, upkeep, packet_key)?;
        } else if let Some((packet_key, inputs)) = due_merge(log) {
            merge(log, upkeep, packet_key, inputs)?;
            wiped = wipe_retired(upkeep).and(wiped);
        } else {
            return wiped.map(|()| done);
        }
        done = true;
    }
}

/// Finds out what became of a step in doubt. It is no doubt any more when a later commit stands in the write-ahead log.
fn settle(log: &Arc<Log>, upkeep: &mut Upkeep) -> Result<(), StoreError> {
    let Some(doubt) = upkeep.doubt.take() else { return Ok(()) };
    let (inner, output) = (Arc::clone(log), Arc::clone(&doubt.output));
    let registered = log.db.write(move |tx| {
        let registered = tx.exists("SELECT 1 FROM replay_run WHERE id = ?1", params![output.id().0])?;
        if !registered {
            // Changes nothing, but a commit without a change would write nothing over the one in doubt.
            register(tx, &output)?;
            unregister(tx, std::slice::from_ref(&output))?;
        }
        inner.table.read(tx, output.packet_key())?;
        Ok(registered)
    });
    let output = [Arc::clone(&doubt.output)];
    match registered {
        Ok(true) => {
            let gone: Vec<_> = doubt.inputs.iter().chain(&output).cloned().collect();
            log.shelf.replace(&gone, Some(doubt.output));
            upkeep.retire(&doubt.inputs);
        }
        Ok(false) => {
            log.shelf.replace(&output, None);
            upkeep.retire(&output);
        }
        Err(e) => {
            upkeep.doubt = Some(doubt);
            return Err(e);
        }
    }
    Ok(())
}

/// Writes the entries of a packet key that are in the table into a run: one step, so that each entry is in the one or in
/// the other whatever happens.
fn flush(log: &Arc<Log>, upkeep: &mut Upkeep, packet_key: Digest) -> Result<(), StoreError> {
    let (id, folder, inner) = (upkeep.next_id(), upkeep.folder()?, Arc::clone(log));
    let flushed = log.db.write(move |tx| flush_step(tx, &inner, &folder, id, &packet_key));
    flushed.inspect_err(|_| {
        upkeep.doubt = log.shelf.get(id).map(|output| Doubt { output, inputs: Vec::new() });
        log.table.postpone(&packet_key);
    })
}

/// The step of [`flush`]. On the shelf the run stands before the commit, and stays there if that fails, until the doubt
/// is settled: an entry that is in both places is found as well as any.
pub(super) fn flush_step(
    tx: &Tx<'_>,
    log: &Log,
    folder: &Folder,
    id: RunId,
    packet_key: &Digest,
) -> Result<(), StoreError> {
    let limit = log.plan.most.saturating_mul(LONGEST);
    let hashes = tx.all(
        "SELECT hash FROM replay WHERE packet_key = ?1 ORDER BY hash LIMIT ?2",
        params![packet_key.0, sql_limit(limit)],
        |row| Ok(Digest(row.get(0)?)),
    )?;
    if hashes.len() > log.plan.most {
        let blocks = blocks_for(hashes.len() as u64, log.shelf.blocks(&[]), log.plan.blocks);
        let mut writer = Writer::create(folder, id, *packet_key, Filter::new(blocks))?;
        hashes.iter().try_for_each(|hash| writer.push(hash))?;
        let run = Arc::new(writer.finish()?);
        log.shelf.replace(&[], Some(Arc::clone(&run)));
        register(tx, &run)?;
        if let Some(last) = hashes.last() {
            tx.execute("DELETE FROM replay WHERE packet_key = ?1 AND hash <= ?2", params![packet_key.0, last.0])?;
        }
    }
    // Here, on the writer's thread, between what came before and what comes after.
    log.table.read(tx, packet_key)
}

fn due_merge(log: &Log) -> Option<(Digest, Vec<Arc<Run>>)> {
    log.shelf.packet_keys().into_iter().find_map(|packet_key| {
        let runs = log.shelf.of(&packet_key);
        let lens: Vec<u64> = runs.iter().map(|run| run.len()).collect();
        let due = merge::due(&lens);
        (due > 0).then(|| (packet_key, runs.into_iter().skip(lens.len() - due).collect()))
    })
}

/// Makes one run of several. The output takes their place on the shelf after the commit; until then they are there, and
/// both hold the same entries.
fn merge(log: &Arc<Log>, upkeep: &mut Upkeep, packet_key: Digest, inputs: Vec<Arc<Run>>) -> Result<(), StoreError> {
    let (id, folder) = (upkeep.next_id(), upkeep.folder()?);
    let entries = inputs.iter().map(|run| run.len()).sum::<u64>();
    let needed = entries.saturating_mul(crate::crypto::DIGEST_LEN as u64);
    let free = free_space(folder.path()).map_err(failed(folder.path()))?;
    if needed > free / SHARE_OF_FREE {
        return Err(StoreError::Full);
    }
    // Until the inputs are gone, there is memory for both.
    let filter = Filter::new(blocks_for(entries, log.shelf.blocks(&inputs), log.plan.blocks));
    let go_on = || !log.bell.has_stopped();
    let output = merge::merged(&folder, id, (packet_key, &inputs), filter, &go_on)?.ok_or(StoreError::Closed)?;
    let output = Arc::new(output);
    let (come, gone) = (Arc::clone(&output), inputs.clone());
    if let Err(e) = log.db.write(move |tx| merge_step(tx, &come, &gone)) {
        upkeep.doubt = Some(Doubt { output, inputs });
        return Err(e);
    }
    log.shelf.replace(&inputs, Some(output));
    upkeep.retire(&inputs);
    Ok(())
}

/// The step of [`merge`].
pub(super) fn merge_step(tx: &Tx<'_>, output: &Run, inputs: &[Arc<Run>]) -> Result<(), StoreError> {
    register(tx, output)?;
    unregister(tx, inputs)
}

fn register(tx: &Tx<'_>, run: &Run) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO replay_run (id, packet_key, checksum) VALUES (?1, ?2, ?3)",
        params![run.id().0, run.packet_key().0, run.checksum().0],
    )?;
    Ok(())
}

fn unregister(tx: &Tx<'_>, runs: &[Arc<Run>]) -> Result<(), StoreError> {
    for run in runs {
        if tx.execute("DELETE FROM replay_run WHERE id = ?1", params![run.id().0])? == 0 {
            return Err(StoreError::Missing { what: "run of the replay log" });
        }
    }
    Ok(())
}

/// Overwrites what is nobody's any more.
fn wipe_retired(upkeep: &mut Upkeep) -> Result<(), StoreError> {
    while wipe_one(upkeep)? {}
    Ok(())
}

/// Whether there was one.
fn wipe_one(upkeep: &mut Upkeep) -> Result<bool, StoreError> {
    let folder = upkeep.folder()?;
    let Some(path) = upkeep.retired.last() else { return Ok(false) };
    folder.wipe(path)?;
    upkeep.retired.pop();
    Ok(true)
}

/// Forgets some entries of a packet key; says whether there are more.
pub(super) fn forget_some(
    log: &Arc<Log>,
    upkeep: &mut Upkeep,
    packet_key: Digest,
    limit: usize,
) -> Result<bool, StoreError> {
    upkeep.folder()?;
    settle(log, upkeep)?;
    let sql =
        "DELETE FROM replay WHERE packet_key = ?1 AND hash IN (SELECT hash FROM replay WHERE packet_key = ?1 LIMIT ?2)";
    let gone = log.db.write(move |tx| tx.execute(sql, params![packet_key.0, sql_limit(limit)]))?;
    if gone == limit {
        return Ok(true);
    }
    log.table.forget(&packet_key);
    let runs = log.shelf.of(&packet_key);
    if !runs.is_empty() {
        // All at once, though they are wiped one by one: there are a dozen rows.
        log.db.write(move |tx| tx.execute("DELETE FROM replay_run WHERE packet_key = ?1", params![packet_key.0]))?;
        log.shelf.replace(&runs, None);
        upkeep.retire(&runs);
    }
    wipe_one(upkeep)?;
    Ok(!upkeep.retired.is_empty())
}

#[cfg(test)]
mod tests;
