//! The database: one SQLite file per role, one writer that commits in groups.
//!
//! The only file that names `rusqlite`. Tables belong to the files beside this one and to other crates; each brings its
//! own [`Schema`]. A step is a function on [`Tx`]: it is durable when [`Db::write`] returns, and what fails rolls back
//! alone. What is deleted is overwritten (`secure_delete`), and gone from the write-ahead log too after
//! [`Db::checkpoint`].

use std::any::Any;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OpenFlags};
pub use rusqlite::{Row, ToSql, params};

/// Steps that may share one commit. Bounds how long the first of them waits for the flush: 256 packets are 8 MiB.
const MAX_GROUP: usize = 256;
/// How long SQLite waits for a lock. Only a checkpoint and a reader can meet: other processes are refused at the door.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Pages in the write-ahead log before SQLite copies them into the file: 16 MiB. The default, 4 MiB, is 60 packets and
/// would add a second flush to every few groups.
const CHECKPOINT_PAGES: u32 = 4096;
/// Statements kept prepared per connection; there are fewer different ones than this.
const CACHED_STATEMENTS: usize = 256;
/// Reading connections kept open between reads. More are opened when more threads read at once, and closed after.
const IDLE_READERS: usize = 4;

/// The tables of one owner, which may be another crate:
///
/// ```
/// use mix::store::db::{Db, Schema, StoreError, params};
///
/// const LETTERS: Schema = Schema { name: "letters", version: 1, sql: "CREATE TABLE letter (text TEXT NOT NULL)" };
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
            let result = writer.and_then(|writer| in_savepoint(writer, step));
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
        run(&reader, "BEGIN")?;
        let result = look(&View(&reader));
        // A reader that cannot end its transaction, or whose `look` panicked, is dropped and with it its transaction.
        run(&reader, "COMMIT")?;
        if let Some(idle) = held(&self.0.readers).as_mut()
            && idle.len() < IDLE_READERS
        {
            idle.push(reader);
        }
        result
    }

    /// Copies the write-ahead log into the file and cuts it to nothing, after the steps queued before: what was deleted
    /// is then in neither. (The blocks that the file system gets back are not overwritten.)
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
pub struct View<'c>(&'c Connection);

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
        let mut statement = self.0.prepare_cached(sql)?;
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
        let mut statement = self.0.prepare_cached(sql)?;
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
}

/// A step under way: sees what it changes itself, and all of it becomes durable or none.
pub struct Tx<'c>(View<'c>);

impl Tx<'_> {
    /// Runs a statement and says how many rows it changed.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn execute(&self, sql: &str, params: &[&dyn ToSql]) -> Result<usize, StoreError> {
        Ok(self.0.0.prepare_cached(sql)?.execute(params)?)
    }

    /// Inserts one row and gives its id.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn insert(&self, sql: &str, params: &[&dyn ToSql]) -> Result<i64, StoreError> {
        Ok(self.0.0.prepare_cached(sql)?.insert(params)?)
    }
}

impl<'c> Deref for Tx<'c> {
    type Target = View<'c>;

    fn deref(&self) -> &View<'c> {
        &self.0
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
    #[error("a step panicked: {message}")]
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

/// What to do about a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// Try again later.
    Unavailable,
    /// The operator must mend folder, disk, or version first.
    Operator,
    /// Ours.
    Bug,
}

impl StoreError {
    /// What to do about it.
    pub fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Full | Self::Busy | Self::Undone | Self::Closed => StoreErrorKind::Unavailable,
            Self::Open { .. }
            | Self::Folder { .. }
            | Self::Locked { .. }
            | Self::SchemaVersion { .. }
            | Self::Corrupt { .. } => StoreErrorKind::Operator,
            Self::Sqlite { source } if source.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) => {
                StoreErrorKind::Operator
            }
            Self::Missing { .. } | Self::Panicked { .. } | Self::Nested | Self::Sqlite { .. } => StoreErrorKind::Bug,
        }
    }

    /// What the other steps of a group hear when this failure undid them too.
    fn echo(&self) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Busy => Self::Busy,
            Self::Corrupt { what } => Self::Corrupt { what },
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

/// A step as the writer sees it. Given the reason why it cannot run instead of the connection, it only answers. Says what
/// the rest of the group must hear if its failure undid them too, and how to tell its caller.
type Step = Box<dyn FnOnce(Result<&Connection, StoreError>) -> (Option<StoreError>, Answer) + Send>;
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

enum Job {
    Step(Step),
    Checkpoint(SyncSender<Result<(), StoreError>>),
}

/// The writer thread. Ends when the last sender is gone and the queue is empty; the lock is released after the file is
/// closed.
fn write_until_closed(writer: Connection, queue: &Receiver<Job>, lock: File) {
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(job) = next {
            next = match job {
                Job::Step(step) => write_group(&writer, step, queue),
                Job::Checkpoint(tell) => {
                    // Who asked may have stopped listening.
                    let _ = tell.send(checkpoint(&writer));
                    None
                }
            };
        }
    }
    // Nobody is left to tell. What is not copied now stays in the write-ahead log and is read from there next time.
    let _ = checkpoint(&writer);
    drop(writer);
    drop(lock);
}

/// Runs `first` and the steps that wait behind it in one transaction, then tells their callers. Gives back the job that
/// ended the group without being a step.
fn write_group(writer: &Connection, first: Step, queue: &Receiver<Job>) -> Option<Job> {
    if let Err(refused) = run(writer, "BEGIN IMMEDIATE") {
        tell(vec![first(Err(refused)).1], None);
        return None;
    }
    let mut answers = Vec::new();
    let mut next = Some(first);
    let mut other = None;
    let mut failure = None;
    while let Some(step) = next.take() {
        let (echo, answer) = step(Ok(writer));
        answers.push(answer);
        if writer.is_autocommit() {
            // Some failures, a full disk among them, undo the whole transaction and not the step alone.
            failure = Some(echo.unwrap_or(StoreError::Undone));
        } else if answers.len() < MAX_GROUP {
            match queue.try_recv() {
                Ok(Job::Step(step)) => next = Some(step),
                Ok(job) => other = Some(job),
                Err(_) => {}
            }
        }
    }
    tell(answers, failure.or_else(|| commit(writer).err()));
    other
}

fn tell(answers: Vec<Answer>, failure: Option<StoreError>) {
    for answer in answers {
        let group = failure.as_ref().map_or(Ok(()), |failure| Err(failure.echo()));
        // A panic here is the callback's own affair: the step is settled, and the other callers wait.
        let _ = catch_unwind(AssertUnwindSafe(|| answer(group)));
    }
}

fn in_savepoint<T>(writer: &Connection, step: impl FnOnce(&Tx<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
    run(writer, "SAVEPOINT step")?;
    // Whatever the step left half done is rolled back with its savepoint; what it owned went with the panic.
    let result = catch_unwind(AssertUnwindSafe(|| step(&Tx(View(writer)))))
        .unwrap_or_else(|panic| Err(StoreError::Panicked { message: panic_message(panic.as_ref()) }));
    if result.is_err() && !writer.is_autocommit() && run(writer, "ROLLBACK TO step").is_err() {
        // It must not be committed: the group goes with it. If this fails as well, the commit will.
        let _ = run(writer, "ROLLBACK");
    }
    if !writer.is_autocommit() {
        run(writer, "RELEASE step")?;
    }
    result
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

fn commit(writer: &Connection) -> Result<(), StoreError> {
    run(writer, "COMMIT").inspect_err(|_| {
        if !writer.is_autocommit() {
            // If this fails too, the next BEGIN says so.
            let _ = run(writer, "ROLLBACK");
        }
    })
}

fn checkpoint(writer: &Connection) -> Result<(), StoreError> {
    let busy: bool = writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy { Err(StoreError::Busy) } else { Ok(()) }
}

fn run(connection: &Connection, sql: &str) -> Result<(), StoreError> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// A lock whose last holder panicked is as good as any: nothing that it guards is ever half changed.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes `folder`, or refuses one that anybody else may look into.
///
/// # Errors
/// [`StoreError::Open`], [`StoreError::Folder`].
pub fn private_folder(folder: &Path) -> Result<(), StoreError> {
    let open = |source| StoreError::Open { path: folder.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(open)?;
    let mode = folder.metadata().map_err(open)?.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let why = format!("has mode {mode:04o}, which lets others than its owner in; it holds keys and mail: chmod 700 it");
    Err(StoreError::Folder { path: folder.to_owned(), why })
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
    for &Schema { name, version: known, sql } in schemas {
        let look = View(&tx);
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::mpsc::channel;

    use super::{Db, Schema, StoreError, StoreErrorKind, Tx, View, day_end, instant, params, seconds};
    use crate::store::testing::{as_after_a_kill, fresh, hour, private_folder, reopened};

    const NOTES: Schema = Schema {
        name: "notes",
        version: 1,
        sql: "
            CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, octets BLOB);
            CREATE TABLE reply (note INTEGER NOT NULL REFERENCES note (id) DEFERRABLE INITIALLY DEFERRED);
        ",
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
        assert_eq!(result.unwrap_err().kind(), StoreErrorKind::Bug);
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
        assert_eq!(result.unwrap_err().kind(), StoreErrorKind::Unavailable);
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
            assert_eq!(refused.kind(), StoreErrorKind::Operator);
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
        let letters = Schema { name: "letters", version: 1, sql: "CREATE TABLE letter (text TEXT)" };
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
}
