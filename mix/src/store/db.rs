//! The database: one SQLite file per role, one writer that commits in groups.
//!
//! The only file that names `rusqlite`. Tables belong to the files beside this one and to other crates; each brings its
//! own [`Schema`]. A step is a function on [`Tx`]: it is durable when [`Db::write`] returns, and what fails rolls back
//! alone. Packets lie in a file of slots beside it, and belong to steps as rows do ([`Tx::put`]). What is deleted is
//! overwritten (`secure_delete`), and gone from the write-ahead log and from the slots too after [`Db::checkpoint`].

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OpenFlags};
pub use rusqlite::{Row, ToSql, params};

use self::writer::{Job, Writer, write_until_closed};
pub use super::slots::{SLOT_LEN, Slot};
use super::slots::{SlotFile, Slots};

/// How long SQLite waits for a lock. Only a checkpoint and a reader can meet: other processes are refused at the door.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Pages in the write-ahead log before SQLite copies them into the file: 16 MiB. The default, 4 MiB, is 60 packets and
/// would add a second flush to every few groups.
const CHECKPOINT_PAGES: u32 = 4096;
/// Statements kept prepared per connection; there are fewer different ones than this.
const CACHED_STATEMENTS: usize = 256;
/// Reading connections kept open between reads. More are opened when more threads read at once, and closed after.
const IDLE_READERS: usize = 16;

/// The tables of one owner, which may be another crate:
///
/// ```
/// use mix::store::db::{Db, Schema, StoreError, params};
///
/// const LETTERS: Schema =
///     Schema { name: "letters", version: 1, sql: "CREATE TABLE letter (text TEXT NOT NULL)", slots: &[] };
///
/// let folder = tempfile::tempdir().unwrap();
/// let db = Db::open(&folder.path().join("private/letters.db"), &[LETTERS])?;
/// db.write(|tx| tx.insert("INSERT INTO letter (text) VALUES (?1)", params!["Dear all"]))?;
/// assert_eq!(db.read(|view| view.count("SELECT count(*) FROM letter", &[]))?, 1);
/// # Ok::<(), StoreError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Under this name the version is recorded.
    pub name: &'static str,
    /// Raised with every change of `sql`.
    pub version: u32,
    /// Statements that create the tables; run once, in the transaction that records the version.
    pub sql: &'static str,
    /// Queries that give the slots that the rows name, one column each. Empty: they name none.
    pub slots: &'static [&'static str],
}

/// A handle on the database; clones share it. When the last one goes, what was queued is written, the write-ahead log
/// is emptied and the lock released.
#[derive(Clone)]
pub struct Db(Arc<Shared>);

struct Shared {
    path: PathBuf,
    jobs: Mutex<Option<Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    writer_id: ThreadId,
    /// `None` once closed.
    readers: Mutex<Option<Vec<Connection>>>,
    slots: Option<Arc<SlotFile>>,
}

impl Db {
    /// Opens the database at `path`, makes it and its folder if they are missing, and creates the tables that it lacks.
    ///
    /// # Errors
    /// [`StoreError::Folder`] when others may look into the folder, [`StoreError::Locked`] when the database is open
    /// already, here or in another process, [`StoreError::SchemaVersion`], [`StoreError::Open`], [`StoreError::Corrupt`]
    /// and what else SQLite says.
    pub fn open(path: &Path, schemas: &[Schema]) -> Result<Self, StoreError> {
        private_folder(match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        })?;
        let lock = lock(path)?;
        private_file(path)?;
        let mut writer = connect(path)?;
        install(&mut writer, schemas)?;
        let slots = open_slots(path, &writer, schemas)?;
        let slot_file = slots.as_ref().map(|slots| Arc::clone(slots.file()));
        let writer = Writer { connection: writer, slots: slots.map(RefCell::new), failing: false, last_group: 0 };
        let (jobs, queue) = channel();
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || write_until_closed(writer, &queue, lock))
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        Ok(Self(Arc::new(Shared {
            path: path.to_owned(),
            jobs: Mutex::new(Some(jobs)),
            writer_id: thread.thread().id(),
            writer: Mutex::new(Some(thread)),
            readers: Mutex::new(Some(Vec::new())),
            slots: slot_file,
        })))
    }

    /// Runs `step` on the writer thread and returns when it is durable. Steps queued at the same time share one commit,
    /// each in its own savepoint: one that fails or panics rolls back alone.
    ///
    /// # Errors
    /// The step's own; [`StoreError::Panicked`], [`StoreError::Closed`]; [`StoreError::Nested`] from within a step,
    /// which would wait for itself; and when the commit fails, its error, for every step of the group.
    pub fn write<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if thread::current().id() == self.0.writer_id {
            return Err(StoreError::Nested);
        }
        let (tell, told) = sync_channel(1);
        self.submit(step, move |result| {
            // Nobody can have stopped listening: the caller waits on the next line.
            let _ = tell.send(result);
        });
        told.recv().unwrap_or(Err(StoreError::Closed))
    }

    /// As [`Db::write`], but returns at once and calls `done` from the writer thread after the commit (or here, when
    /// the database is closed). The queue of waiting steps has no limit of its own: who submits limits how many of its
    /// steps are under way.
    pub fn submit<T: 'static>(
        &self,
        step: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        let job = Job::Step(Box::new(move |writer| {
            let result = writer.and_then(|writer| writer.in_savepoint(step));
            let echo = result.as_ref().err().map(StoreError::echo);
            (echo, Box::new(move |group| done(result.and_then(|value| group.map(|()| value)))))
        }));
        if let Err(Job::Step(step)) = self.0.send(job) {
            let (_, answer) = step(Err(StoreError::Closed));
            answer(Ok(()));
        }
    }

    /// Runs `look` on a view of what is committed; it does not change while `look` runs and never waits for a step.
    ///
    /// # Errors
    /// Those of `look`; [`StoreError::Closed`], and what SQLite says.
    pub fn read<T>(&self, look: impl FnOnce(&View<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let idle = held(&self.0.readers).as_mut().ok_or(StoreError::Closed)?.pop();
        let reader = match idle {
            Some(reader) => reader,
            None => {
                let reader = connect(&self.0.path)?;
                reader.pragma_update(None, "query_only", true)?;
                reader
            }
        };
        let slots = self.0.slots.as_deref();
        let _reading = slots.map(SlotFile::begin_read);
        run(&reader, "BEGIN")?;
        let result = look(&View { connection: &reader, slots });
        // A reader that cannot end its transaction, or whose `look` panicked, is dropped and with it its transaction.
        run(&reader, "COMMIT")?;
        if let Some(idle) = held(&self.0.readers).as_mut()
            && idle.len() < IDLE_READERS
        {
            idle.push(reader);
        }
        result
    }

    /// Copies the write-ahead log into the file and cuts it to nothing, and overwrites the slots that were left, after the
    /// steps queued before: what was deleted is then in none of them. (The blocks that the file system gets back are not overwritten.)
    ///
    /// # Errors
    /// [`StoreError::Busy`] when a read lasts longer than SQLite waits; [`StoreError::Closed`], [`StoreError::Nested`].
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        if thread::current().id() == self.0.writer_id {
            return Err(StoreError::Nested);
        }
        let (tell, told) = sync_channel(1);
        self.0.send(Job::Checkpoint(tell)).map_err(|_| StoreError::Closed)?;
        told.recv().unwrap_or(Err(StoreError::Closed))
    }

    /// Slots that the next octets may take without a larger file.
    pub fn free_slots(&self) -> u64 {
        self.0.slots.as_ref().map_or(0, |slots| slots.free())
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether this is the thread that runs steps: whoever waits here for a step waits for ever.
    pub(super) fn is_on_writer_thread(&self) -> bool {
        thread::current().id() == self.0.writer_id
    }

    /// Writes what is queued, empties the write-ahead log and closes the file, for all handles. Later calls on them
    /// say [`StoreError::Closed`]. Closing twice does nothing.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Shared {
    /// Gives the job back when the database is closed.
    fn send(&self, job: Job) -> Result<(), Job> {
        match held(&self.jobs).as_ref() {
            Some(jobs) => jobs.send(job).map_err(|refused| refused.0),
            None => Err(job),
        }
    }

    fn close(&self) {
        // Readers first: SQLite removes the write-ahead log when its last connection closes.
        held(&self.readers).take();
        held(&self.jobs).take();
        // The last handle may have been held by a step, and go on the writer's own thread. It ends by itself then.
        if thread::current().id() != self.writer_id
            && let Some(writer) = held(&self.writer).take()
        {
            // A panic there was reported when it happened, and there is nothing left to save.
            let _ = writer.join();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Db").field(&self.0.path).finish()
    }
}

/// What is committed, to look at. Statements stay prepared: write their text as a constant, values as parameters.
pub struct View<'c> {
    connection: &'c Connection,
    slots: Option<&'c SlotFile>,
}

impl View<'_> {
    /// The rows, each made into a value.
    ///
    /// # Errors
    /// Those of `make`, and what SQLite says.
    pub fn all<T>(
        &self,
        sql: &str,
        params: &[&dyn ToSql],
        mut make: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        let mut values = Vec::new();
        while let Some(row) = rows.next()? {
            values.push(make(row)?);
        }
        Ok(values)
    }

    /// The first row, if there is one.
    ///
    /// # Errors
    /// Those of `make`, and what SQLite says.
    pub fn first<T>(
        &self,
        sql: &str,
        params: &[&dyn ToSql],
        make: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        rows.next()?.map(make).transpose()
    }

    /// Whether there is a row.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn exists(&self, sql: &str, params: &[&dyn ToSql]) -> Result<bool, StoreError> {
        self.first(sql, params, |_| Ok(())).map(|row| row.is_some())
    }

    /// The number that a `SELECT count(*)` or `sum(…)` gives; nothing counts as zero.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn count(&self, sql: &str, params: &[&dyn ToSql]) -> Result<u64, StoreError> {
        let number: Option<i64> = self.first(sql, params, |row| Ok(row.get::<_, Option<i64>>(0)?))?.flatten();
        Ok(number.map_or(0, |number| u64::try_from(number).unwrap_or(0)))
    }

    /// The first octets, `len` of them, of a slot that a row of this view names.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the database has no such slot; what the system says.
    pub fn slot(&self, slot: Slot, len: usize) -> Result<Box<[u8]>, StoreError> {
        let slots = self.slots.ok_or(StoreError::Corrupt { what: "a slot in a database without slots" })?;
        Ok(slots.read(slot, len).map_err(slots.failed())?.into_boxed_slice())
    }
}

/// A step under way: sees what it changes itself, and all of it becomes durable or none.
pub struct Tx<'c> {
    view: View<'c>,
    slots: Option<&'c RefCell<Slots>>,
}

impl Tx<'_> {
    /// Runs a statement and says how many rows it changed.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn execute(&self, sql: &str, params: &[&dyn ToSql]) -> Result<usize, StoreError> {
        Ok(self.view.connection.prepare_cached(sql)?.execute(params)?)
    }

    /// Inserts one row and gives its id.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn insert(&self, sql: &str, params: &[&dyn ToSql]) -> Result<i64, StoreError> {
        Ok(self.view.connection.prepare_cached(sql)?.insert(params)?)
    }

    /// Puts octets into a slot, at most [`SLOT_LEN`]; a row must name it. It is given back with the step.
    ///
    /// # Errors
    /// What the system says.
    pub fn put(&self, octets: &[u8]) -> Result<Slot, StoreError> {
        let mut slots = self.slots()?.borrow_mut();
        slots.put(octets).map_err(slots.file().failed())
    }

    /// The row that named a slot is deleted: its octets are gone when this step is durable, and overwritten soon.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the database has no slots.
    pub fn leave(&self, slot: Slot) -> Result<(), StoreError> {
        self.slots()?.borrow_mut().leave(slot);
        Ok(())
    }

    /// Lets the disk be full when so many slots are in use.
    #[cfg(test)]
    pub(crate) fn allow_slots(&self, most: Option<i64>) -> Result<(), StoreError> {
        self.slots()?.borrow_mut().allow(most);
        Ok(())
    }

    fn slots(&self) -> Result<&RefCell<Slots>, StoreError> {
        self.slots.ok_or(StoreError::Corrupt { what: "a slot in a database without slots" })
    }
}

impl<'c> Deref for Tx<'c> {
    type Target = View<'c>;

    fn deref(&self) -> &View<'c> {
        &self.view
    }
}

/// Names one kind of row, so that the id of a packet cannot be taken for the id of a destination.
macro_rules! row_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub i64);
    };
}
pub(crate) use row_id;

/// An instant as it is stored: whole seconds since 1970. Finer ones would only help to link what comes in with what
/// goes out.
pub fn seconds(instant: SystemTime) -> i64 {
    let seconds = instant.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// The instant of stored seconds.
pub fn instant(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

const SECONDS_PER_DAY: i64 = 24 * 60 * 60;

/// The midnight (UTC) after an instant, as stored: for records that are kept by the day, so that the hour of an arrival
/// cannot be read from a seized file. Rounded up, so that nothing is forgotten too early.
pub fn day_end(instant: SystemTime) -> i64 {
    let days = seconds(instant) / SECONDS_PER_DAY;
    days.saturating_add(1).saturating_mul(SECONDS_PER_DAY)
}

/// The octets in a column, where they lie.
///
/// # Errors
/// [`StoreError::Corrupt`] when there is something else.
pub fn octets<'r>(row: &'r Row<'_>, column: usize) -> Result<&'r [u8], StoreError> {
    row.get_ref(column)?.as_blob().map_err(|_| StoreError::Corrupt { what: "a value that is no octets" })
}

/// A limit as SQL takes it.
pub fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file, its folder or its lock cannot be made or opened.
    #[error("opening {}", path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file beside the database cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// The folder does not keep the file private.
    #[error("folder {} {why}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it, and what would mend it.
        why: String,
    },
    /// Somebody has the database open.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// The tables were made by another version of the program, and this one knows no way from there.
    #[error("the tables of {name} have version {found}; this program knows version {known}")]
    SchemaVersion {
        /// Whose tables.
        name: &'static str,
        /// The version in the file.
        found: u32,
        /// The version of this program.
        known: u32,
    },
    /// No space left.
    #[error("no space left for the database")]
    Full,
    /// What is stored cannot have been stored.
    #[error("the database is damaged: {what}")]
    Corrupt {
        /// What was found.
        what: &'static str,
    },
    /// A lock was held longer than the store waits.
    #[error("the database stays locked")]
    Busy,
    /// A step shared its transaction with one whose failure undid them all.
    #[error("undone by the failure of another step")]
    Undone,
    /// The database was closed.
    #[error("the database is closed")]
    Closed,
    /// The row that a step works on is not there.
    #[error("no such {what}")]
    Missing {
        /// What kind of row.
        what: &'static str,
    },
    /// A step panicked, and was rolled back.
    #[error("a step panicked")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// A step called [`Db::write`], which would wait for itself.
    #[error("a step waits for another step")]
    Nested,
    /// Whatever else SQLite says: a broken constraint, a wrong statement, a failing disk.
    #[error("SQLite: {source}")]
    Sqlite {
        /// What it says.
        source: Arc<rusqlite::Error>,
    },
}

impl StoreError {
    /// What the other steps of a group hear when this failure undid them too.
    fn echo(&self) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Busy => Self::Busy,
            Self::Corrupt { what } => Self::Corrupt { what },
            Self::File { path, source } => Self::File { path: path.clone(), source: Arc::clone(source) },
            Self::Sqlite { source } => Self::Sqlite { source: Arc::clone(source) },
            _ => Self::Undone,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => return Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => return Self::Busy,
            Some(ErrorCode::DatabaseCorrupt) => return Self::Corrupt { what: "SQLite finds the file malformed" },
            Some(ErrorCode::NotADatabase) => return Self::Corrupt { what: "the file is not a database" },
            _ => {}
        }
        match source {
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..) => Self::Corrupt { what: "a value of the wrong type or length" },
            source => Self::Sqlite { source: Arc::new(source) },
        }
    }
}

fn run(connection: &Connection, sql: &str) -> Result<(), StoreError> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// A lock whose last holder panicked is as good as any: nothing that it guards is ever half changed.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes `folder`, or refuses one that anybody else may look into. A symbolic link is judged by where it leads.
///
/// # Errors
/// [`StoreError::Open`], [`StoreError::Folder`].
pub fn private_folder(folder: &Path) -> Result<(), StoreError> {
    let open = |source| StoreError::Open { path: folder.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(open)?;
    let found = folder.metadata().map_err(open)?;
    match exposure(found.mode(), found.uid(), own_uid()) {
        None => Ok(()),
        Some(why) => Err(StoreError::Folder { path: folder.to_owned(), why }),
    }
}

/// Who else than this process could look into a folder, and what to do about it.
fn exposure(mode: u32, owner: u32, own: u32) -> Option<String> {
    let mode = mode & 0o777;
    if owner != own {
        // Its owner can look into it whatever the mode says.
        return Some(format!(
            "belongs to user {owner}, and this process is user {own}; it holds keys and mail: chown it"
        ));
    }
    (mode & 0o077 != 0).then(|| {
        format!("has mode {mode:04o}, which lets others than its owner in; it holds keys and mail: chmod 700 it")
    })
}

/// The user that this process acts as.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Takes the lock file beside the database. Not the database itself: closing any handle on that would drop the locks
/// that SQLite holds on it. The system releases this one with the process, however that ends.
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let beside = PathBuf::from(beside);
    let open = |source| StoreError::Open { path: beside.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&beside).map_err(open)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(open(source)),
    }
}

/// Makes the file before SQLite would, with a mode of its own choice; the write-ahead log inherits it.
fn private_file(path: &Path) -> Result<(), StoreError> {
    let open = |source| StoreError::Open { path: path.to_owned(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(open)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(open)
}

/// The slots beside the database at `path`, if any of these tables name some.
fn open_slots(path: &Path, writer: &Connection, schemas: &[Schema]) -> Result<Option<Slots>, StoreError> {
    let queries: Vec<_> = schemas.iter().flat_map(|schema| schema.slots).collect();
    if queries.is_empty() {
        return Ok(None);
    }
    let path = path.with_extension("packets");
    private_file(&path)?;
    let open = |source| StoreError::Open { path: path.clone(), source };
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(open)?;
    // A power cut must not leave rows without the file whose slots they name.
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(open)?;
    let mut used = HashSet::new();
    for query in queries {
        let named = View { connection: writer, slots: None }.all(query, &[], |row| Ok(Slot(row.get(0)?)))?;
        for slot in named {
            if !used.insert(slot) {
                return Err(StoreError::Corrupt { what: "two rows that name one slot" });
            }
        }
    }
    Slots::open(path, file, &used).map(Some)
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    // Without SQLITE_OPEN_URI: a path that begins with "file:" is a path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    // What a savepoint may have to restore would otherwise be written to the system's folder for temporary files.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

/// Creates what is missing, or refuses a file that another version made. There has been no other version yet to come
/// from; the first change of a schema brings its own way.
fn install(writer: &mut Connection, schemas: &[Schema]) -> Result<(), StoreError> {
    let tx = writer.transaction()?;
    tx.execute_batch("CREATE TABLE IF NOT EXISTS schema_version (name TEXT PRIMARY KEY, version INTEGER NOT NULL)")?;
    for &Schema { name, version: known, sql, .. } in schemas {
        let look = View { connection: &tx, slots: None };
        let found = look.first("SELECT version FROM schema_version WHERE name = ?1", params![name], |row| {
            Ok(row.get::<_, u32>(0)?)
        })?;
        match found {
            Some(found) if found == known => {}
            Some(found) => return Err(StoreError::SchemaVersion { name, found, known }),
            None => {
                tx.execute_batch(sql)?;
                tx.execute("INSERT INTO schema_version (name, version) VALUES (?1, ?2)", params![name, known])?;
            }
        }
    }
    tx.commit()?;
    Ok(())
}

mod writer;

#[cfg(test)]
pub(crate) mod death;
#[cfg(test)]
mod tests;
