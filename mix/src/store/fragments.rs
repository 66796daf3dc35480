//! Fragments that wait for the rest of their message (E2E-spec 2.4).
//!
//! A scope is one identity of the user, or the exit. Each has its own messages: whoever sends half of a message to one
//! pseudonym and half to another learns nothing, since neither half completes the other.
//! How fragments become chunks, and chunks a message, is `crate::payload`'s; this file only knows when there are enough.

use std::fmt;
use std::time::SystemTime;

use super::db::{Row, Schema, StoreError, Tx, View, day_end, instant, octets, params, row_id, seconds, sql_limit};
use crate::crypto::{Digest, sha1};
use crate::payload::fragment::{Fragment, Fragmentation, MessageId, Reassembly};

/// The tables of this file. Dates are kept by the day.
pub const SCHEMA: Schema = Schema {
    name: "fragments",
    version: 1,
    sql: "
        CREATE TABLE fragmented (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            scope TEXT NOT NULL,
            message_id BLOB NOT NULL,
            message_len INTEGER NOT NULL,
            capacity INTEGER NOT NULL,
            k INTEGER NOT NULL,
            n INTEGER NOT NULL,
            chunks INTEGER NOT NULL,
            have INTEGER NOT NULL DEFAULT 0,
            stored INTEGER NOT NULL DEFAULT 0,
            since INTEGER NOT NULL,
            UNIQUE (scope, message_id)
        );
        CREATE INDEX fragmented_ready ON fragmented (scope) WHERE have = k * chunks;
        CREATE TABLE fragment (
            id INTEGER PRIMARY KEY,
            message INTEGER NOT NULL REFERENCES fragmented (id),
            chunk INTEGER NOT NULL,
            position INTEGER NOT NULL,
            digest BLOB NOT NULL,
            octets BLOB NOT NULL,
            UNIQUE (message, chunk, position)
        );
        CREATE TABLE fragmented_done (
            scope TEXT NOT NULL,
            message_id BLOB NOT NULL,
            done INTEGER NOT NULL,
            PRIMARY KEY (scope, message_id)
        ) WITHOUT ROWID;
    ",
    slots: &[],
};

/// What each scope has, so that nobody need count it for each fragment, and which ids to forget first. A table of its own,
/// filled from what is there: a database of an earlier build goes on with its fragments.
pub const ROOM: Schema = Schema {
    name: "fragment room",
    version: 1,
    sql: "
        CREATE TABLE fragment_room (
            scope TEXT PRIMARY KEY,
            stored INTEGER NOT NULL DEFAULT 0,
            done INTEGER NOT NULL DEFAULT 0
        ) WITHOUT ROWID;
        INSERT INTO fragment_room (scope, stored) SELECT scope, sum(stored) FROM fragmented GROUP BY scope;
        INSERT INTO fragment_room (scope, done) SELECT scope, count(*) FROM fragmented_done WHERE true GROUP BY scope
            ON CONFLICT (scope) DO UPDATE SET done = excluded.done;
        CREATE INDEX fragmented_done_by_day ON fragmented_done (scope, done);
    ",
    slots: &[],
};

/// Ids of messages that are done, remembered in each scope at most: some hundred megabytes. Strangers name as many as they
/// send packets; beyond it the oldest are forgotten, and a late fragment of theirs waits in vain until it is given up.
const REMEMBERED: u64 = if cfg!(test) { 50 } else { 1_000_000 };

row_id! {
    /// A message of which fragments wait.
    FragmentedId
}

/// How a message was cut; all its fragments agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Octets of the message.
    pub message_len: u32,
    /// Octets of it in each fragment: tells encrypted forward from plain.
    pub capacity: u32,
    /// Fragments of a chunk that are enough to have it all.
    pub k: u32,
    /// Fragments made of a chunk.
    pub n: u32,
    /// Chunks.
    pub chunks: u32,
}

/// What a fragment says of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FragmentFacts {
    /// Names the message.
    pub message_id: Digest,
    /// Counts through all chunks: chunk × n + position.
    pub index: u32,
    /// How the message was cut.
    pub shape: Shape,
}

/// Prints no message id.
impl fmt::Debug for FragmentFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FragmentFacts(..)")
    }
}

/// What became of a fragment. Except for the first, it was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addition {
    /// It was stored.
    Added {
        /// Its message.
        message: FragmentedId,
        /// Whether there are now enough of each chunk.
        ready: bool,
        /// Incomplete messages that were given up to make room for it.
        displaced: u32,
    },
    /// It is here already.
    Duplicate,
    /// Its chunk has enough.
    Unneeded,
    /// Its message was completed, given up or rejected before.
    AlreadyDone,
    /// It contradicts the others of its message. None of them can be trusted: all are gone, and the message is
    /// rejected from now on.
    Mismatch,
    /// Its scope will never have room for its message, or has none until messages that are ready are taken out.
    OverLimit,
}

/// Fragments enough for a message.
#[derive(Clone)]
pub struct ReadyMessage {
    /// Its row.
    pub id: FragmentedId,
    /// Names the message.
    pub message_id: Digest,
    /// How it was cut.
    pub shape: Shape,
    /// For each chunk in order, k fragments: position within the chunk, and octets.
    pub chunks: Vec<Vec<(u32, Vec<u8>)>>,
}

impl Shape {
    /// The shape of a message that was cut so.
    pub fn of(fragmentation: &Fragmentation) -> Self {
        let capacity = fragmentation.capacity().fragment_len();
        Self {
            message_len: fragmentation.message_len(),
            capacity: u32::try_from(capacity).expect("less than a packet"),
            k: fragmentation.k(),
            n: fragmentation.n(),
            chunks: fragmentation.chunks(),
        }
    }
}

impl FragmentFacts {
    /// What `fragment` says of itself.
    pub fn of(fragment: &Fragment) -> Self {
        Self {
            message_id: Digest(fragment.message_id().0),
            index: fragment.index(),
            shape: Shape::of(&fragment.fragmentation()),
        }
    }
}

impl ReadyMessage {
    /// Puts the message together, unwhitened: compressed text, for an exit with an address before it. Takes a while for
    /// large messages, so not within a step.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when what was stored does not make a message.
    pub fn reassemble(self) -> Result<Vec<u8>, StoreError> {
        let corrupt = || StoreError::Corrupt { what: "stored fragments that make no message" };
        let Shape { message_len, n, .. } = self.shape;
        let mut reassembly = None;
        for (chunk, fragments) in (0..).zip(self.chunks) {
            for (position, octets) in fragments {
                let id = MessageId(self.message_id.0);
                let fragment = Fragment::new(chunk * n + position, id, message_len, octets).map_err(|_| corrupt())?;
                let reassembly = match &mut reassembly {
                    Some(reassembly) => reassembly,
                    none => none.insert(Reassembly::new(&fragment, message_len).map_err(|_| corrupt())?),
                };
                reassembly.add(fragment).map_err(|_| corrupt())?;
            }
        }
        reassembly.and_then(|reassembly| reassembly.finish().ok()).ok_or_else(corrupt)
    }
}

/// Prints nothing of it.
impl fmt::Debug for ReadyMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadyMessage(..)")
    }
}

/// A message of which fragments wait, for the user's eyes.
#[derive(Clone)]
pub struct Partial {
    /// Its row.
    pub id: FragmentedId,
    /// Names the message.
    pub message_id: Digest,
    /// How it was cut.
    pub shape: Shape,
    /// Fragments here, of k × chunks that are needed.
    pub have: u32,
    /// The end of the day on which the first came.
    pub since: SystemTime,
}

/// Prints no message id.
impl fmt::Debug for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partial").field("have", &self.have).finish_non_exhaustive()
    }
}

/// Stores a fragment, while all that `scope` stores stays within `limit` octets. Where there is no room left, the oldest
/// incomplete messages give up theirs: whoever floods the scope must go on doing so, or it would be closed for as long as
/// fragments are kept.
///
/// # Errors
/// What the database says.
pub fn add(
    tx: &Tx<'_>,
    scope: &str,
    facts: &FragmentFacts,
    data: &[u8],
    now: SystemTime,
    limit: u64,
) -> Result<Addition, StoreError> {
    if is_done(tx, scope, &facts.message_id)? {
        return Ok(Addition::AlreadyDone);
    }
    let known = tx.first(
        "SELECT id, message_len, capacity, k, n, chunks FROM fragmented WHERE scope = ?1 AND message_id = ?2",
        params![scope, facts.message_id.0],
        |row| Ok((FragmentedId(row.get(0)?), shape(row, 1)?)),
    )?;
    let agrees = known.is_none_or(|(_, shape)| shape == facts.shape);
    let Some(place) = facts.shape.place(facts.index).filter(|_| agrees) else {
        reject_by_id(tx, scope, &facts.message_id, now)?;
        return Ok(Addition::Mismatch);
    };
    if let Some((message, shape)) = known
        && let Some(refusal) = refusal(tx, message, &shape, place, data)?
    {
        if refusal == Addition::Mismatch {
            reject_by_id(tx, scope, &facts.message_id, now)?;
        }
        return Ok(refusal);
    }
    let own = known.map(|(message, _)| message);
    let Some(displaced) = make_room(tx, scope, own, &facts.shape, Room { len: data.len(), limit }, now)? else {
        return Ok(Addition::OverLimit);
    };
    let message = match known {
        Some((message, _)) => message,
        None => begin(tx, scope, facts, now)?,
    };
    store(tx, scope, message, place, data)?;
    let ready = tx.exists("SELECT 1 FROM fragmented WHERE id = ?1 AND have = k * chunks", params![message.0])?;
    Ok(Addition::Added { message, ready, displaced })
}

/// Where a fragment belongs: the chunk, and its position within.
#[derive(Clone, Copy)]
struct Place {
    chunk: u32,
    position: u32,
}

impl Shape {
    fn place(&self, index: u32) -> Option<Place> {
        let chunk = index.checked_div(self.n)?;
        let possible = chunk < self.chunks && (1..=self.n).contains(&self.k);
        possible.then_some(Place { chunk, position: index % self.n })
    }

    /// Fragments that are needed, of all that exist.
    fn needed(&self) -> u64 {
        u64::from(self.k) * u64::from(self.chunks)
    }
}

/// Why a fragment of a known message is not stored, if it is not.
fn refusal(
    view: &View<'_>,
    message: FragmentedId,
    shape: &Shape,
    place: Place,
    data: &[u8],
) -> Result<Option<Addition>, StoreError> {
    let twin: Option<[u8; 20]> = view.first(
        "SELECT digest FROM fragment WHERE message = ?1 AND chunk = ?2 AND position = ?3",
        params![message.0, place.chunk, place.position],
        |row| Ok(row.get(0)?),
    )?;
    if twin.is_some_and(|twin| Digest(twin) == sha1(&[data])) {
        return Ok(Some(Addition::Duplicate));
    }
    let in_chunk =
        view.count("SELECT count(*) FROM fragment WHERE message = ?1 AND chunk = ?2", params![message.0, place.chunk])?;
    // A complete chunk is not looked at again: what comes late, or is sent to do harm, changes nothing.
    let unneeded = in_chunk >= u64::from(shape.k);
    Ok(if unneeded { Some(Addition::Unneeded) } else { twin.map(|_| Addition::Mismatch) })
}

/// What a fragment needs, of what there is in all.
struct Room {
    len: usize,
    limit: u64,
}

/// Makes room for a fragment of the message `own`, which is not among those that are displaced; says how many were. `None`
/// when there is no room for its whole message, or none that could be made.
fn make_room(
    tx: &Tx<'_>,
    scope: &str,
    own: Option<FragmentedId>,
    shape: &Shape,
    room: Room,
    now: SystemTime,
) -> Result<Option<u32>, StoreError> {
    let len = u64::try_from(room.len).unwrap_or(u64::MAX);
    if shape.needed().saturating_mul(len) > room.limit {
        return Ok(None);
    }
    let mut displaced = 0;
    loop {
        let stored = tx.count("SELECT stored FROM fragment_room WHERE scope = ?1", params![scope])?;
        if stored.saturating_add(len) <= room.limit {
            return Ok(Some(displaced));
        }
        let oldest = tx.first(
            "SELECT id FROM fragmented WHERE scope = ?1 AND id != ?2 AND have < k * chunks ORDER BY id LIMIT 1",
            params![scope, own.map_or(0, |own| own.0)],
            |row| Ok(FragmentedId(row.get(0)?)),
        )?;
        let Some(oldest) = oldest else { return Ok(None) };
        complete(tx, oldest, now)?;
        displaced += 1;
    }
}

fn begin(tx: &Tx<'_>, scope: &str, facts: &FragmentFacts, now: SystemTime) -> Result<FragmentedId, StoreError> {
    let Shape { message_len, capacity, k, n, chunks } = facts.shape;
    tx.insert(
        "INSERT INTO fragmented (scope, message_id, message_len, capacity, k, n, chunks, since)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![scope, facts.message_id.0, message_len, capacity, k, n, chunks, day_end(now)],
    )
    .map(FragmentedId)
}

fn store(tx: &Tx<'_>, scope: &str, message: FragmentedId, place: Place, data: &[u8]) -> Result<(), StoreError> {
    let len = i64::try_from(data.len()).unwrap_or(i64::MAX);
    tx.insert(
        "INSERT INTO fragment (message, chunk, position, digest, octets) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![message.0, place.chunk, place.position, sha1(&[data]).0, data],
    )?;
    tx.execute("UPDATE fragmented SET have = have + 1, stored = stored + ?2 WHERE id = ?1", params![message.0, len])?;
    tx.execute(
        "INSERT INTO fragment_room (scope, stored) VALUES (?1, ?2)
            ON CONFLICT (scope) DO UPDATE SET stored = stored + excluded.stored",
        params![scope, len],
    )?;
    Ok(())
}

/// The messages of a scope behind `after` that have fragments enough, in order, at most `limit`. Begin with `None`. After a
/// start there may be some that [`Addition::Added`] announced to a process that is gone.
///
/// # Errors
/// What the database says.
pub fn ready(
    view: &View<'_>,
    scope: &str,
    after: Option<FragmentedId>,
    limit: usize,
) -> Result<Vec<FragmentedId>, StoreError> {
    view.all(
        "SELECT id FROM fragmented WHERE scope = ?1 AND have = k * chunks AND id > ?2 ORDER BY id LIMIT ?3",
        params![scope, after.map_or(0, |after| after.0), sql_limit(limit)],
        |row| Ok(FragmentedId(row.get(0)?)),
    )
}

/// The fragments of a message, if there are enough. Putting them together takes time: do it between this and the step
/// that calls [`complete`], not in a step.
///
/// # Errors
/// What the database says.
pub fn load(view: &View<'_>, message: FragmentedId) -> Result<Option<ReadyMessage>, StoreError> {
    let head = view.first(
        "SELECT message_id, message_len, capacity, k, n, chunks FROM fragmented
            WHERE id = ?1 AND have = k * chunks",
        params![message.0],
        |row| Ok((Digest(row.get(0)?), shape(row, 1)?)),
    )?;
    let Some((message_id, shape)) = head else { return Ok(None) };
    let rows = view.all(
        "SELECT chunk, position, octets FROM fragment WHERE message = ?1 ORDER BY chunk, position",
        params![message.0],
        |row| Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?, octets(row, 2)?.to_vec())),
    )?;
    let mut chunks: Vec<Vec<(u32, Vec<u8>)>> = Vec::new();
    let mut last = None;
    for (chunk, position, octets) in rows {
        match chunks.last_mut() {
            Some(fragments) if last == Some(chunk) => fragments.push((position, octets)),
            _ => chunks.push(vec![(position, octets)]),
        }
        last = Some(chunk);
    }
    Ok(Some(ReadyMessage { id: message, message_id, shape, chunks }))
}

/// Deletes the fragments of a message and takes no more of it: it was put together, or cannot be, or the user gave it
/// up. Says whether it was there; if not, it was completed before, and what was made of it must not be used twice.
///
/// # Errors
/// What the database says.
pub fn complete(tx: &Tx<'_>, message: FragmentedId, now: SystemTime) -> Result<bool, StoreError> {
    let named =
        tx.first("SELECT scope, message_id, stored FROM fragmented WHERE id = ?1", params![message.0], |row| {
            Ok((row.get::<_, String>(0)?, Digest(row.get(1)?), row.get::<_, i64>(2)?))
        })?;
    let Some((scope, message_id, stored)) = named else { return Ok(false) };
    tx.execute("UPDATE fragment_room SET stored = stored - ?2 WHERE scope = ?1", params![scope, stored])?;
    tx.execute("DELETE FROM fragment WHERE message = ?1", params![message.0])?;
    tx.execute("DELETE FROM fragmented WHERE id = ?1", params![message.0])?;
    remember(tx, &scope, &message_id, now)?;
    Ok(true)
}

/// The messages of a scope that wait for more, oldest first.
///
/// # Errors
/// What the database says.
pub fn list(view: &View<'_>, scope: &str) -> Result<Vec<Partial>, StoreError> {
    view.all(
        "SELECT id, message_id, message_len, capacity, k, n, chunks, have, since FROM fragmented
            WHERE scope = ?1 ORDER BY since, id",
        params![scope],
        |row| {
            Ok(Partial {
                id: FragmentedId(row.get(0)?),
                message_id: Digest(row.get(1)?),
                shape: shape(row, 2)?,
                have: row.get(7)?,
                since: instant(row.get(8)?),
            })
        },
    )
}

/// Gives up, in all scopes, the messages whose first fragment came on a day before `before`, and says how many.
///
/// # Errors
/// What the database says.
pub fn expire(tx: &Tx<'_>, before: SystemTime, now: SystemTime) -> Result<usize, StoreError> {
    let old = tx.all("SELECT id FROM fragmented WHERE since <= ?1", params![seconds(before)], |row| {
        Ok(FragmentedId(row.get(0)?))
    })?;
    for message in &old {
        complete(tx, *message, now)?;
    }
    Ok(old.len())
}

/// Forgets the ids of messages that were done on a day before `before`, and says how many. Fragments of them that come
/// later are stored as new ones.
///
/// # Errors
/// What the database says.
pub fn prune(tx: &Tx<'_>, before: SystemTime) -> Result<usize, StoreError> {
    let forgotten = tx.execute("DELETE FROM fragmented_done WHERE done <= ?1", params![seconds(before)])?;
    if forgotten > 0 {
        tx.execute(
            "UPDATE fragment_room SET done =
                (SELECT count(*) FROM fragmented_done WHERE fragmented_done.scope = fragment_room.scope)",
            &[],
        )?;
    }
    Ok(forgotten)
}

fn is_done(view: &View<'_>, scope: &str, message_id: &Digest) -> Result<bool, StoreError> {
    view.exists("SELECT 1 FROM fragmented_done WHERE scope = ?1 AND message_id = ?2", params![scope, message_id.0])
}

/// Also for messages of which nothing was stored yet.
fn reject_by_id(tx: &Tx<'_>, scope: &str, message_id: &Digest, now: SystemTime) -> Result<(), StoreError> {
    let known = tx.first(
        "SELECT id FROM fragmented WHERE scope = ?1 AND message_id = ?2",
        params![scope, message_id.0],
        |row| Ok(FragmentedId(row.get(0)?)),
    )?;
    match known {
        Some(message) => complete(tx, message, now).map(|_| ()),
        None => remember(tx, scope, message_id, now),
    }
}

fn remember(tx: &Tx<'_>, scope: &str, message_id: &Digest, now: SystemTime) -> Result<(), StoreError> {
    let new = tx.execute(
        "INSERT OR IGNORE INTO fragmented_done (scope, message_id, done) VALUES (?1, ?2, ?3)",
        params![scope, message_id.0, day_end(now)],
    )?;
    if new == 0 {
        return Ok(());
    }
    tx.execute(
        "INSERT INTO fragment_room (scope, done) VALUES (?1, 1) ON CONFLICT (scope) DO UPDATE SET done = done + 1",
        params![scope],
    )?;
    if tx.count("SELECT done FROM fragment_room WHERE scope = ?1", params![scope])? <= REMEMBERED {
        return Ok(());
    }
    tx.execute(
        "DELETE FROM fragmented_done WHERE scope = ?1 AND message_id =
            (SELECT message_id FROM fragmented_done WHERE scope = ?1 ORDER BY done LIMIT 1)",
        params![scope],
    )?;
    tx.execute("UPDATE fragment_room SET done = done - 1 WHERE scope = ?1", params![scope])?;
    Ok(())
}

fn shape(row: &Row<'_>, column: usize) -> Result<Shape, StoreError> {
    Ok(Shape {
        message_len: row.get(column)?,
        capacity: row.get(column + 1)?,
        k: row.get(column + 2)?,
        n: row.get(column + 3)?,
        chunks: row.get(column + 4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        Addition, FragmentFacts, FragmentedId, REMEMBERED, ROOM, SCHEMA, Shape, add, complete, expire, list, load,
        prune, ready,
    };
    use crate::store::testing::{digest, fresh, hour, reopened};
    use crate::store::{Db, Schema};

    const SHAPE: Shape = Shape { message_len: 70, capacity: 20, k: 2, n: 3, chunks: 2 };
    const LIMIT: u64 = 1000;
    const SCHEMAS: [Schema; 2] = [SCHEMA, ROOM];

    fn facts(message: &str, index: u32) -> FragmentFacts {
        FragmentFacts { message_id: digest(message), index, shape: SHAPE }
    }

    fn data(index: u32) -> Vec<u8> {
        vec![u8::try_from(index).unwrap(); 20]
    }

    fn put(db: &Db, scope: &'static str, message: &'static str, index: u32) -> Addition {
        db.write(move |tx| add(tx, scope, &facts(message, index), &data(index), hour(0), LIMIT)).unwrap()
    }

    fn id(addition: Addition) -> FragmentedId {
        match addition {
            Addition::Added { message, .. } => message,
            other => panic!("not added: {other:?}"),
        }
    }

    #[test]
    fn message_is_ready_when_each_chunk_has_enough_even_across_a_restart() {
        let (folder, db) = fresh(&SCHEMAS);
        let message = id(put(&db, "mark", "m", 4));
        for index in [0, 2] {
            assert_eq!(put(&db, "mark", "m", index), Addition::Added { message, ready: false, displaced: 0 });
        }
        assert_eq!(put(&db, "mark", "m", 1), Addition::Unneeded);
        assert_eq!(put(&db, "mark", "m", 0), Addition::Duplicate);
        let db = reopened(folder.path(), db, &SCHEMAS);
        assert!(db.read(move |view| load(view, message)).unwrap().is_none());
        assert_eq!(db.read(|view| list(view, "mark")).unwrap()[0].have, 3);
        assert_eq!(put(&db, "mark", "m", 5), Addition::Added { message, ready: true, displaced: 0 });
        assert_eq!(db.read(|view| ready(view, "mark", None, 10)).unwrap(), [message]);
        assert!(db.read(|view| ready(view, "sam", None, 10)).unwrap().is_empty());
        let whole = db.read(move |view| load(view, message)).unwrap().unwrap();
        assert!(db.write(move |tx| complete(tx, message, hour(0))).unwrap());
        assert_eq!((whole.message_id, whole.shape), (digest("m"), SHAPE));
        assert_eq!(whole.chunks, [vec![(0, data(0)), (2, data(2))], vec![(1, data(4)), (2, data(5))]]);
        assert_eq!(put(&db, "mark", "m", 1), Addition::AlreadyDone);
        assert!(!db.write(move |tx| complete(tx, message, hour(0))).unwrap());
    }

    #[test]
    fn halves_sent_to_two_identities_never_make_a_whole() {
        let (_folder, db) = fresh(&SCHEMAS);
        for (scope, index) in [("mark", 0), ("mark", 1), ("sam", 3), ("sam", 4)] {
            assert!(matches!(put(&db, scope, "m", index), Addition::Added { ready: false, .. }));
        }
    }

    #[test]
    fn fragment_that_contradicts_the_others_brings_the_message_down() {
        let other_shape = FragmentFacts { shape: Shape { message_len: 71, ..SHAPE }, ..facts("m", 1) };
        let contradictions = [(other_shape, data(1)), (facts("m", 6), data(6)), (facts("m", 0), data(9))];
        for (contradiction, octets) in contradictions {
            let (_folder, db) = fresh(&SCHEMAS);
            put(&db, "mark", "m", 0);
            put(&db, "mark", "bystander", 0);
            let result = db.write(move |tx| add(tx, "mark", &contradiction, &octets, hour(0), LIMIT)).unwrap();
            assert_eq!(result, Addition::Mismatch);
            assert_eq!(put(&db, "mark", "m", 1), Addition::AlreadyDone);
            let left = db.read(|view| list(view, "mark")).unwrap();
            assert_eq!(left.iter().map(|partial| partial.message_id).collect::<Vec<_>>(), [digest("bystander")]);
        }
    }

    #[test]
    fn fragment_of_a_complete_chunk_brings_nothing_down_whatever_it_holds() {
        let (_folder, db) = fresh(&SCHEMAS);
        put(&db, "mark", "m", 0);
        put(&db, "mark", "m", 1);
        let result = db.write(move |tx| add(tx, "mark", &facts("m", 0), &data(9), hour(0), LIMIT)).unwrap();
        assert_eq!(result, Addition::Unneeded);
        assert_eq!(db.read(|view| list(view, "mark")).unwrap()[0].have, 2);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let (_folder, db) = fresh(&SCHEMAS);
        let shapes =
            [Shape { n: 0, ..SHAPE }, Shape { k: 0, ..SHAPE }, Shape { k: 4, ..SHAPE }, Shape { chunks: 0, ..SHAPE }];
        for (count, shape) in shapes.into_iter().enumerate() {
            let facts = FragmentFacts { message_id: digest(&count.to_string()), index: 0, shape };
            let result = db.write(move |tx| add(tx, "mark", &facts, &data(0), hour(0), LIMIT)).unwrap();
            assert_eq!(result, Addition::Mismatch, "{shape:?}");
        }
    }

    #[test]
    fn scope_takes_no_more_than_its_limit_and_the_oldest_incomplete_message_makes_room() {
        let (_folder, db) = fresh(&SCHEMAS);
        let put = |scope: &'static str, message: &'static str, index, limit| {
            db.write(move |tx| add(tx, scope, &facts(message, index), &data(index), hour(0), limit)).unwrap()
        };
        // Four fragments of 20 octets are needed: below 80 the message could never be whole.
        assert_eq!(put("mark", "m", 0, 79), Addition::OverLimit);
        for index in [0, 1, 3] {
            assert!(matches!(put("mark", "m", index, 80), Addition::Added { .. }));
        }
        assert!(matches!(put("mark", "other", 0, 80), Addition::Added { displaced: 0, .. }));
        assert!(matches!(put("sam", "m", 4, 80), Addition::Added { .. }));
        assert!(matches!(put("mark", "m", 4, 80), Addition::Added { ready: true, displaced: 1, .. }));
        assert_eq!(put("mark", "other", 1, 80), Addition::AlreadyDone);
        // What is ready is no longer anybody's to displace.
        assert_eq!(put("mark", "third", 0, 80), Addition::OverLimit);
    }

    #[test]
    fn message_that_stays_incomplete_is_given_up_and_later_forgotten() {
        let (_folder, db) = fresh(&SCHEMAS);
        put(&db, "mark", "m", 0);
        assert_eq!(db.write(|tx| expire(tx, hour(23), hour(60))).unwrap(), 0);
        assert_eq!(db.write(|tx| expire(tx, hour(24), hour(60))).unwrap(), 1);
        assert_eq!(put(&db, "mark", "m", 1), Addition::AlreadyDone);
        assert_eq!(db.write(|tx| prune(tx, hour(71))).unwrap(), 0);
        assert_eq!(db.write(|tx| prune(tx, hour(72))).unwrap(), 1);
        assert!(matches!(put(&db, "mark", "m", 1), Addition::Added { .. }));
    }

    /// What the scope is said to have: octets, and ids that are done.
    fn room(db: &Db, scope: &'static str) -> (u64, u64) {
        let of = |sql: &'static str| db.read(|view| view.count(sql, &[&scope])).unwrap();
        (of("SELECT stored FROM fragment_room WHERE scope = ?1"), of("SELECT done FROM fragment_room WHERE scope = ?1"))
    }

    #[test]
    fn what_a_scope_has_is_known_through_all_that_happens_to_it() {
        let (_folder, db) = fresh(&SCHEMAS);
        for (scope, message, index) in [("mark", "m", 0), ("mark", "m", 1), ("mark", "n", 0), ("sam", "m", 0)] {
            put(&db, scope, message, index);
        }
        assert_eq!((room(&db, "mark"), room(&db, "sam")), ((60, 0), (20, 0)));
        put(&db, "mark", "m", 0);
        let other = FragmentFacts { shape: Shape { message_len: 71, ..SHAPE }, ..facts("n", 1) };
        db.write(move |tx| add(tx, "mark", &other, &data(1), hour(0), LIMIT)).unwrap();
        assert_eq!(room(&db, "mark"), (40, 1));
        db.write(|tx| expire(tx, hour(24), hour(60))).unwrap();
        assert_eq!((room(&db, "mark"), room(&db, "sam")), ((0, 2), (0, 1)));
        db.write(|tx| prune(tx, hour(48))).unwrap();
        assert_eq!((room(&db, "mark"), room(&db, "sam")), ((0, 1), (0, 1)));
    }

    #[test]
    fn ids_of_messages_that_are_done_are_remembered_up_to_their_number_and_the_oldest_are_forgotten() {
        let (_folder, db) = fresh(&SCHEMAS);
        let reject = |number: u64, hours| {
            let shape = Shape { n: 0, ..SHAPE };
            let facts = FragmentFacts { message_id: digest(&number.to_string()), index: 0, shape };
            db.write(move |tx| add(tx, "mark", &facts, &data(0), hour(hours), LIMIT)).unwrap()
        };
        let known = || db.read(|view| view.count("SELECT count(*) FROM fragmented_done", &[])).unwrap();
        assert_eq!(reject(0, 0), Addition::Mismatch);
        for number in 1..REMEMBERED {
            reject(number, 24);
        }
        assert_eq!((known(), reject(0, 24)), (REMEMBERED, Addition::AlreadyDone));
        reject(REMEMBERED, 24);
        assert_eq!((known(), room(&db, "mark").1), (REMEMBERED, REMEMBERED));
        assert_eq!(reject(0, 24), Addition::Mismatch, "the oldest is forgotten");
        assert_eq!(known(), REMEMBERED);
    }

    #[test]
    fn database_of_an_earlier_build_goes_on_with_its_fragments() {
        let (folder, db) = fresh(&[SCHEMA]);
        let step = |tx: &crate::store::Tx<'_>| {
            tx.insert(
                "INSERT INTO fragmented (scope, message_id, message_len, capacity, k, n, chunks, have, stored, since)
                    VALUES ('mark', x'01', 70, 20, 2, 3, 2, 1, 20, 0)",
                &[],
            )?;
            tx.execute("INSERT INTO fragmented_done (scope, message_id, done) VALUES ('sam', x'02', 0)", &[])?;
            tx.execute("INSERT INTO fragmented_done (scope, message_id, done) VALUES ('mark', x'03', 0)", &[])
        };
        db.write(step).unwrap();
        let db = reopened(folder.path(), db, &SCHEMAS);
        assert_eq!((room(&db, "mark"), room(&db, "sam")), ((20, 1), (0, 1)));
    }
}
