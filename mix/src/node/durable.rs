//! The stores are synchronous; the services are not. This is the bridge.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::store::{Db, StoreError, Tx, View};

/// How long to wait before what the store refused is tried again (disk full).
const PAUSE: Duration = Duration::from_secs(1);

/// Runs `step` on the database's writer thread; returns when it is durable.
///
/// # Errors
/// As [`Db::write`].
pub async fn write<T: Send + 'static>(
    db: &Db,
    step: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (tell, told) = oneshot::channel();
    db.submit(step, move |result| {
        // Nobody listens any more when the task that asked was stopped; the step is durable all the same.
        let _ = tell.send(result);
    });
    told.await.unwrap_or(Err(StoreError::Closed))
}

/// Looks at the database on a thread that may wait.
///
/// # Errors
/// As [`Db::read`].
pub async fn read<T: Send + 'static>(
    db: &Db,
    look: impl FnOnce(&View<'_>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let db = db.clone();
    spawn_blocking(move || db.read(look)).await.unwrap_or(Err(StoreError::Closed))
}

/// As [`write()`], but tried again until the store takes it: for what has happened outside already, and would happen twice
/// if it were not noted. `None` when stopped before.
pub async fn note<T: Send + 'static>(
    db: &Db,
    stop: &CancellationToken,
    step: impl Fn(&Tx<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
) -> Option<T> {
    loop {
        match write(db, step.clone()).await {
            Ok(value) => return Some(value),
            Err(e) => error!(error = %e, "the store does not take what must be noted; trying again"),
        }
        stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await?;
    }
}

/// Empties the write-ahead log, which still holds what was deleted, and in which order it came and went.
pub async fn wipe(db: &Db) {
    let db = db.clone();
    match spawn_blocking(move || db.checkpoint()).await {
        Ok(Ok(())) => {}
        // Somebody is reading; the next time will do.
        Ok(Err(e)) => debug!(error = %e, "the write-ahead log was not emptied"),
        Err(e) => error!(panicked = e.is_panic(), "the write-ahead log was not emptied"),
    }
}
