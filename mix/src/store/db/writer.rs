//! The writer thread of a database: steps that wait at the same time share one commit, and slots that were left are
//! overwritten in between.

use std::any::Any;
use std::cell::RefCell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use tracing::warn;

#[cfg(test)]
use super::death;
use super::{Connection, Slots, StoreError, Tx, View, run};

/// Steps that may share one commit. Bounds how long the first of them waits for the flush: 256 packets are 8 MiB.
const MAX_GROUP: usize = 256;
/// After a group of so many steps more are on their way, and the next group waits [`GATHER`] for them: a flush costs as
/// much for one step as for many. A step that comes alone never waits.
const GATHERS_AFTER: usize = 8;
const GATHER: Duration = Duration::from_millis(3);
/// How long the writer waits for the next step before it overwrites slots that were left. Under load the next packets do.
const WIPE_AFTER: Duration = Duration::from_secs(1);
/// Commits after which it overwrites them though steps keep coming.
const COMMITS_BEFORE_WIPE: u32 = 256;
/// Slots overwritten before the writer looks whether a step waits: two megabytes.
const WIPED_AT_ONCE: usize = 64;
/// Slots overwritten at the end of a process: 256 megabytes. The next start does the rest.
const WIPED_AT_END: usize = 8192;

/// What the writer thread has.
pub(super) struct Writer {
    pub(super) connection: Connection,
    /// Borrowed for no longer than a call.
    pub(super) slots: Option<RefCell<Slots>>,
    /// Slots could not be overwritten the last time.
    pub(super) failing: bool,
    /// Steps that shared the last commit.
    pub(super) last_group: usize,
}

/// A step as the writer sees it. Given the reason why it cannot run instead of the connection, it only answers. Says what
/// the rest of the group must hear if its failure undid them too, and how to tell its caller.
pub(super) type Step = Box<dyn FnOnce(Result<&Writer, StoreError>) -> (Option<StoreError>, Answer) + Send>;
pub(super) type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

pub(super) enum Job {
    Step(Step),
    Checkpoint(SyncSender<Result<(), StoreError>>),
}

/// The writer thread. Ends when the last sender is gone and the queue is empty; the lock is released after the file is
/// closed.
pub(super) fn write_until_closed(mut writer: Writer, queue: &Receiver<Job>, lock: File) {
    let mut commits = 0;
    let mut wipe_after = WIPE_AFTER;
    loop {
        let first =
            if writer.has_stale_slots() { queue.recv_timeout(wipe_after) } else { queue.recv().map_err(Into::into) };
        match first {
            Ok(first) => {
                let mut next = Some(first);
                while let Some(job) = next {
                    next = match job {
                        Job::Step(step) => {
                            commits += 1;
                            write_group(&mut writer, step, queue)
                        }
                        Job::Checkpoint(tell) => {
                            writer.wipe_between_steps(tell, queue);
                            None
                        }
                    };
                }
                if commits >= COMMITS_BEFORE_WIPE {
                    commits = 0;
                    // What cannot be overwritten now is tried again with the next commits.
                    let _ = writer.wipe(WIPED_AT_ONCE);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let all = writer.wipe(WIPED_AT_ONCE).map_or(true, |wiped| wiped < WIPED_AT_ONCE);
                wipe_after = if all { WIPE_AFTER } else { Duration::ZERO };
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // Nobody is left to tell. What is not copied now stays in the write-ahead log and is read from there next time.
    let _ = writer.wipe(WIPED_AT_END);
    let _ = checkpoint(&writer.connection);
    drop(writer);
    drop(lock);
}

/// Runs `first` and the steps that wait behind it in one transaction, then tells their callers. Gives back the job that
/// ended the group without being a step.
fn write_group(writer: &mut Writer, first: Step, queue: &Receiver<Job>) -> Option<Job> {
    if writer.last_group >= GATHERS_AFTER {
        thread::sleep(GATHER);
    }
    if let Err(refused) = begin(&writer.connection) {
        tell(vec![first(Err(refused)).1], None);
        return None;
    }
    let mut answers = Vec::new();
    let mut next = Some(first);
    let mut other = None;
    let mut failure = None;
    while let Some(step) = next.take() {
        let (echo, answer) = step(Ok(&*writer));
        answers.push(answer);
        if writer.connection.is_autocommit() {
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
    let failure = failure.or_else(|| writer.commit().err());
    if let Some(slots) = &writer.slots {
        let mut slots = slots.borrow_mut();
        if failure.is_some() { slots.abandon() } else { slots.committed() }
    }
    writer.last_group = answers.len();
    tell(answers, failure);
    other
}

fn tell(answers: Vec<Answer>, failure: Option<StoreError>) {
    for answer in answers {
        let group = failure.as_ref().map_or(Ok(()), |failure| Err(failure.echo()));
        // A panic here is the callback's own affair: the step is settled, and the other callers wait.
        let _ = catch_unwind(AssertUnwindSafe(|| answer(group)));
    }
}

impl Writer {
    pub(super) fn in_savepoint<T>(&self, step: impl FnOnce(&Tx<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let Self { connection, slots, .. } = self;
        run(connection, "SAVEPOINT step")?;
        let mark = slots.as_ref().map(|slots| (slots, slots.borrow().mark()));
        let file = slots.as_ref().map(|slots| Arc::clone(slots.borrow().file()));
        let tx = Tx { view: View { connection, slots: file.as_deref() }, slots: slots.as_ref() };
        // Whatever the step left half done is rolled back with its savepoint; what it owned went with the panic.
        let result = catch_unwind(AssertUnwindSafe(|| step(&tx)))
            .unwrap_or_else(|panic| Err(StoreError::Panicked { message: panic_message(panic.as_ref()) }));
        if result.is_err() {
            if let Some((slots, mark)) = mark {
                slots.borrow_mut().roll_back(mark);
            }
            if !connection.is_autocommit() && run(connection, "ROLLBACK TO step").is_err() {
                // It must not be committed: the group goes with it. If this fails as well, the commit will.
                let _ = run(connection, "ROLLBACK");
            }
        }
        if !connection.is_autocommit() {
            run(connection, "RELEASE step")?;
        }
        result
    }

    /// The octets first: no row may name a slot that a crash left empty.
    fn commit(&self) -> Result<(), StoreError> {
        let put = self.slots.as_ref().map_or(Ok(()), |slots| {
            let slots = slots.borrow();
            slots.sync().map_err(slots.file().failed())
        });
        if let Err(e) = put {
            // If this fails, the commit would have, and the next BEGIN says so.
            let _ = run(&self.connection, "ROLLBACK");
            return Err(e);
        }
        commit(&self.connection)
    }

    fn has_stale_slots(&self) -> bool {
        self.stale_slots() > 0
    }

    fn stale_slots(&self) -> usize {
        self.slots.as_ref().map_or(0, |slots| slots.borrow().stale())
    }

    fn wipe(&mut self, limit: usize) -> Result<usize, StoreError> {
        let Some(slots) = &mut self.slots else { return Ok(0) };
        let slots = slots.get_mut();
        let wiped = slots.wipe(limit).map_err(slots.file().failed());
        // Said once, and not again until it went well.
        match &wiped {
            Err(e) if !self.failing => warn!(error = %e, "packets that have left are not overwritten yet"),
            _ => {}
        }
        self.failing = wiped.is_err();
        wiped
    }

    /// Overwrites the slots that have been left by now, some at a time, and does in between what waits; then empties the
    /// write-ahead log, and tells those who have asked for it by then.
    fn wipe_between_steps(&mut self, tell: SyncSender<Result<(), StoreError>>, queue: &Receiver<Job>) {
        let mut askers = vec![tell];
        let mut left = self.stale_slots();
        let mut wiped = Ok(0);
        while left > 0 {
            wiped = self.wipe(WIPED_AT_ONCE.min(left));
            match wiped {
                // Those that somebody reads come later.
                Ok(0) | Err(_) => break,
                Ok(some) => left -= some,
            }
            let mut next = queue.try_recv().ok();
            while let Some(job) = next.take() {
                match job {
                    Job::Step(step) => next = write_group(self, step, queue),
                    Job::Checkpoint(tell) => askers.push(tell),
                }
            }
        }
        let done = checkpoint(&self.connection).and(wiped.map(|_| ()));
        for asker in askers {
            // Who asked may have stopped listening.
            let _ = asker.send(done.as_ref().map_or_else(|e| Err(e.echo()), |()| Ok(())));
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

fn begin(writer: &Connection) -> Result<(), StoreError> {
    #[cfg(test)]
    if death::is_dead(writer) {
        return Err(StoreError::Closed);
    }
    run(writer, "BEGIN IMMEDIATE")
}

fn commit(writer: &Connection) -> Result<(), StoreError> {
    #[cfg(test)]
    if death::strikes(writer, death::Moment::BeforeCommit) {
        run(writer, "ROLLBACK")?;
        return Err(StoreError::Closed);
    }
    run(writer, "COMMIT").inspect_err(|_| {
        if !writer.is_autocommit() {
            // If this fails too, the next BEGIN says so.
            let _ = run(writer, "ROLLBACK");
        }
    })?;
    #[cfg(test)]
    if death::strikes(writer, death::Moment::AfterCommit) {
        return Err(StoreError::Closed);
    }
    Ok(())
}

fn checkpoint(writer: &Connection) -> Result<(), StoreError> {
    let busy: bool = writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy { Err(StoreError::Busy) } else { Ok(()) }
}
