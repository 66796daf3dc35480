//! The stores are synchronous; the services are not. This is the bridge.

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use crate::store::{Db, StoreError, Tx, View};

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
