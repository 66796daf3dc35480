//! The replay log: a mix lets no packet pass twice (minion-spec 3.2.5, 5.4).
//!
//! What is remembered of a packet is the hash that its shared secret gives; it is forgotten together with the packet key
//! that opened the packet, since no packet can be opened twice without the key.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::db::{Db, Schema, StoreError, Tx, held, params, sql_limit};
use crate::crypto::Digest;
use crate::packet::unwrap::{self, Novelty};

/// The tables of this file. One b-tree, no row ids: nothing says in which order packets came.
pub const SCHEMA: Schema = Schema {
    name: "replay",
    version: 1,
    sql: "
        CREATE TABLE replay (
            packet_key BLOB NOT NULL,
            hash BLOB NOT NULL,
            PRIMARY KEY (packet_key, hash)
        ) WITHOUT ROWID;
    ",
    slots: &[],
};

/// The replay log as the worker threads see it; clones share it. Two copies of a packet that are opened at the same time
/// are told apart by claims.
#[derive(Clone, Debug)]
pub struct ReplayLog {
    db: Db,
    claims: Claims,
}

/// Packets that were admitted and are not finished yet, by packet key and hash.
type Claims = Arc<Mutex<HashSet<(Digest, Digest)>>>;

/// The right to let one packet pass. Ends when dropped.
pub struct Claim {
    packet: (Digest, Digest),
    claims: Claims,
}

impl ReplayLog {
    /// The log in `db`.
    ///
    /// # Errors
    /// What the database says.
    pub fn open(db: &Db) -> Result<Self, StoreError> {
        Ok(Self { db: db.clone(), claims: Claims::default() })
    }

    /// Remembers a packet that was opened with the packet key of this digest. Says false when it was here before. The
    /// last word: [`ReplayLog::claim`] only spares the work on packets that will be dropped.
    ///
    /// # Errors
    /// What the database says.
    pub fn remember(&self, tx: &Tx<'_>, packet_key: &Digest, hash: &Digest) -> Result<bool, StoreError> {
        let sql = "INSERT OR IGNORE INTO replay (packet_key, hash) VALUES (?1, ?2)";
        Ok(tx.execute(sql, params![packet_key.0, hash.0])? > 0)
    }

    /// Whether a packet was here before.
    ///
    /// # Errors
    /// What the database says.
    pub fn seen(&self, packet_key: &Digest, hash: &Digest) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM replay WHERE packet_key = ?1 AND hash = ?2";
        self.db.read(|view| view.exists(sql, params![packet_key.0, hash.0]))
    }

    /// Forgets some packets of a packet key that is destroyed, no more than `limit`, so that a log of millions does not
    /// hold up the steps of others. Says whether there may be more. Destroy the key first: with it, each of them could
    /// come again.
    ///
    /// # Errors
    /// What the database says.
    pub fn forget_some(&self, packet_key: &Digest, limit: usize) -> Result<bool, StoreError> {
        let (packet_key, limit_of_sql) = (*packet_key, sql_limit(limit));
        let sql = "DELETE FROM replay
                   WHERE packet_key = ?1 AND hash IN (SELECT hash FROM replay WHERE packet_key = ?1 LIMIT ?2)";
        Ok(self.db.write(move |tx| tx.execute(sql, params![packet_key.0, limit_of_sql]))? == limit)
    }

    /// The packet keys of which packets are remembered. Looks at one entry of each.
    ///
    /// # Errors
    /// What the database says.
    pub fn packet_keys(&self) -> Result<Vec<Digest>, StoreError> {
        self.db.read(|view| {
            let mut found: Vec<Digest> = Vec::new();
            loop {
                let after = found.last().map_or(&[][..], |last| &last.0);
                let sql = "SELECT min(packet_key) FROM replay WHERE packet_key > ?1";
                let next = view.first(sql, params![after], |row| Ok(row.get::<_, Option<_>>(0)?))?;
                match next.flatten() {
                    Some(next) => found.push(Digest(next)),
                    None => return Ok(found),
                }
            }
        })
    }

    /// How many packets of a packet key are remembered.
    ///
    /// # Errors
    /// What the database says.
    pub fn count(&self, packet_key: &Digest) -> Result<u64, StoreError> {
        self.db.read(|view| view.count("SELECT count(*) FROM replay WHERE packet_key = ?1", params![packet_key.0]))
    }

    /// The right to let this packet pass, to be kept until `queue::incoming::finish` is durable. `None` when it was here
    /// before, or another thread has it in hand: if that thread fails, its copy is still among the incoming and comes
    /// again, so that dropping this one loses nothing.
    ///
    /// # Errors
    /// What the database says.
    pub fn claim(&self, packet_key: &Digest, hash: &Digest) -> Result<Option<Claim>, StoreError> {
        let packet = (*packet_key, *hash);
        // Claim first, then look: whoever had the claim before has written before it let go.
        if !held(&self.claims).insert(packet) {
            return Ok(None);
        }
        let claim = Claim { packet, claims: Arc::clone(&self.claims) };
        Ok((!self.seen(packet_key, hash)?).then_some(claim))
    }

    /// What `unwrap::Opened::admit` asks about one packet.
    pub fn gate(&self) -> Gate<'_> {
        Gate { log: self, claims: Vec::new() }
    }
}

/// The replay log for one packet, or for several that are finished in one step.
#[derive(Debug)]
pub struct Gate<'l> {
    log: &'l ReplayLog,
    claims: Vec<Claim>,
}

impl Gate<'_> {
    /// The claims on what was admitted.
    pub fn into_claims(self) -> Vec<Claim> {
        self.claims
    }
}

impl unwrap::ReplayLog for Gate<'_> {
    type Error = StoreError;

    fn admit(&mut self, packet_key: &Digest, replay_hash: &Digest) -> Result<Novelty, StoreError> {
        match self.log.claim(packet_key, replay_hash)? {
            Some(claim) => {
                self.claims.push(claim);
                Ok(Novelty::New)
            }
            None => Ok(Novelty::Replay),
        }
    }
}

impl Claim {
    /// The digest of the packet key.
    pub fn packet_key(&self) -> &Digest {
        &self.packet.0
    }

    /// What is remembered of the packet.
    pub fn hash(&self) -> &Digest {
        &self.packet.1
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
mod tests {
    use std::sync::Barrier;

    use super::{ReplayLog, SCHEMA};
    use crate::packet::unwrap::{Novelty, ReplayLog as _};
    use crate::store::testing::{digest, fresh, reopened};
    use crate::store::{Db, StoreError};

    /// Remembers packets in one step; says how many were new.
    fn remember(db: &Db, log: &ReplayLog, key: &str, packets: &[&str]) -> usize {
        let (log, key) = (log.clone(), digest(key));
        let packets: Vec<_> = packets.iter().map(|packet| digest(packet)).collect();
        let new = db.write(move |tx| packets.iter().map(|hash| log.remember(tx, &key, hash)).collect());
        new.map(|new: Vec<bool>| new.into_iter().filter(|new| *new).count()).unwrap()
    }

    #[test]
    fn replayed_packet_is_refused_after_a_restart() {
        let (folder, db) = fresh(&[SCHEMA]);
        let log = ReplayLog::open(&db).unwrap();
        assert_eq!(remember(&db, &log, "key", &["packet"]), 1);
        drop(log);
        let db = reopened(folder.path(), db, &[SCHEMA]);
        let log = ReplayLog::open(&db).unwrap();
        assert_eq!(remember(&db, &log, "key", &["packet"]), 0);
        assert!(log.claim(&digest("key"), &digest("packet")).unwrap().is_none());
    }

    #[test]
    fn two_copies_opened_at_the_same_time_pass_once() {
        let (_folder, db) = fresh(&[SCHEMA]);
        let log = ReplayLog::open(&db).unwrap();
        let barrier = Barrier::new(4);
        let claims: Vec<_> = std::thread::scope(|scope| {
            let open = || {
                barrier.wait();
                log.claim(&digest("key"), &digest("packet")).unwrap()
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
        let claim = log.claim(&digest("key"), &digest("packet")).unwrap();
        assert!(claim.is_some());
        drop(claim);
        assert!(log.claim(&digest("key"), &digest("packet")).unwrap().is_some());
    }

    #[test]
    fn finished_packet_is_refused_after_its_claim_is_gone() {
        let (_folder, db) = fresh(&[SCHEMA]);
        let log = ReplayLog::open(&db).unwrap();
        let claim = log.claim(&digest("key"), &digest("packet")).unwrap().unwrap();
        let (key, hash) = (*claim.packet_key(), *claim.hash());
        let writing = log.clone();
        assert!(db.write(move |tx| writing.remember(tx, &key, &hash)).unwrap());
        drop(claim);
        assert!(log.claim(&digest("key"), &digest("packet")).unwrap().is_none());
    }

    #[test]
    fn gate_admits_a_packet_once_and_hands_its_claim_over() {
        let (_folder, db) = fresh(&[SCHEMA]);
        let log = ReplayLog::open(&db).unwrap();
        let mut gate = log.gate();
        assert_eq!(gate.admit(&digest("key"), &digest("packet")).unwrap(), Novelty::New);
        assert_eq!(gate.admit(&digest("key"), &digest("packet")).unwrap(), Novelty::Replay);
        assert_eq!(gate.admit(&digest("other key"), &digest("packet")).unwrap(), Novelty::New);
        assert_eq!(gate.into_claims().len(), 2);
        db.close();
        assert!(matches!(log.gate().admit(&digest("key"), &digest("packet")), Err(StoreError::Closed)));
    }

    #[test]
    fn packets_are_forgotten_in_small_steps_with_their_packet_key_and_no_other() {
        let (_folder, db) = fresh(&[SCHEMA]);
        let log = ReplayLog::open(&db).unwrap();
        assert_eq!(log.packet_keys().unwrap(), []);
        remember(&db, &log, "old key", &["1", "2", "3", "4", "5"]);
        remember(&db, &log, "new key", &["1"]);
        let mut keys = [digest("old key"), digest("new key")];
        keys.sort();
        assert_eq!(log.packet_keys().unwrap(), keys);
        let step = || log.forget_some(&digest("old key"), 2).unwrap();
        assert_eq!([step(), step(), step(), step()], [true, true, false, false]);
        assert_eq!(log.packet_keys().unwrap(), [digest("new key")]);
        assert_eq!((log.count(&digest("old key")).unwrap(), log.count(&digest("new key")).unwrap()), (0, 1));
    }
}
