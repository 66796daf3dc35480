//! FRAGMENT: fragments that wait for the others of their message, and are put together (E2E-spec 2.4).

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tracing::error;

use super::{ExitService, LOAD, Queued, queue};
use crate::node::clock::CLOCK_MARGIN;
use crate::node::config::FragmentsConfig;
use crate::node::durable;
use crate::payload::Content as Decoded;
use crate::payload::exit::ExitContent;
use crate::store::StoreError;
use crate::store::fragments::{self, Addition, FragmentedId};
use crate::store::queue::ExitItem;

/// How long the ids of completed and rejected messages are remembered, so that late fragments find no new message.
const REMEMBER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Whose fragments: those that the exit puts together itself.
pub(super) const SCOPE: &str = "exit";

impl ExitService {
    /// Keeps a fragment, and puts its message together if it was the last that was needed.
    pub(super) async fn fragment(&self, item: ExitItem) {
        let id = item.id;
        let config = self.ways.borrow().fragments.clone();
        let (facts, data) = match fragment_of(&item, &config) {
            Some(fragment) => fragment,
            None => return self.give_up(id).await,
        };
        let (now, limit) = (self.world.now(), config.max_stored);
        let addition = durable::note(&self.db, &self.stop, move |tx| {
            let addition = fragments::add(tx, SCOPE, &facts, &data, now, limit)?;
            queue::delivered(tx, id)?;
            Ok(addition)
        });
        match addition.await {
            Some(Addition::Added { ready, displaced, .. }) => {
                self.some_ready.fetch_or(ready, Ordering::Relaxed);
                self.counters.undeliverable(displaced.into());
            }
            Some(Addition::Mismatch | Addition::OverLimit) => self.counters.undeliverable(1),
            Some(Addition::Duplicate | Addition::Unneeded | Addition::AlreadyDone) | None => {}
        }
    }

    pub(super) async fn reassemble_ready(&self) {
        let ready = durable::read(&self.db, |view| fragments::ready(view, SCOPE, None, LOAD)).await;
        let ready = ready.unwrap_or_else(|e| {
            error!(error = %e, "the fragments cannot be read");
            Vec::new()
        });
        // There may be more than were read.
        self.some_ready.fetch_or(ready.len() == LOAD, Ordering::Relaxed);
        for message in ready {
            if let Err(e) = self.reassemble(message).await {
                error!(error = %e, "a message cannot be put together");
                // Not at once: the loop comes by again in a minute at the latest.
                self.some_ready.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Puts a message together and queues it for delivery, in the step that forgets its fragments.
    async fn reassemble(&self, id: FragmentedId) -> Result<(), StoreError> {
        let loaded = durable::read(&self.db, move |view| fragments::load(view, id)).await?;
        let Some(ready) = loaded else { return Ok(()) };
        let decoded = spawn_blocking(move || {
            let message = ready.reassemble().ok()?;
            let (exit, compressed) = ExitContent::split_reassembled(&message).ok()?;
            Some((exit, compressed.to_vec()))
        })
        .await;
        let now = self.world.now();
        let decoded = decoded.map_err(|_| StoreError::Corrupt { what: "fragments that could not be worked on" })?;
        let Some((exit, compressed)) = decoded else {
            self.counters.undeliverable(1);
            return durable::write(&self.db, move |tx| fragments::complete(tx, id, now)).await.map(|_| ());
        };
        durable::write(&self.db, move |tx| {
            // False when another task was faster: then the message is queued already.
            if fragments::complete(tx, id, now)? {
                queue::insert_message(tx, exit.exit_type, &exit.address, &compressed)?;
            }
            Ok(())
        })
        .await?;
        self.bell.send_replace(());
        Ok(())
    }

    pub(super) async fn expire(&self, steady: bool) {
        let now = self.world.now();
        let margin = if steady { Duration::ZERO } else { CLOCK_MARGIN };
        let before = |age: Duration| now.checked_sub(age.saturating_add(margin)).unwrap_or(SystemTime::UNIX_EPOCH);
        let (old, forgotten) = (before(self.ways.borrow().fragments.keep), before(REMEMBER));
        let expired = durable::write(&self.db, move |tx| {
            fragments::prune(tx, forgotten)?;
            fragments::expire(tx, old, now)
        });
        match expired.await {
            Ok(count) => self.counters.undeliverable(count as u64),
            Err(e) => error!(error = %e, "old fragments cannot be removed"),
        }
    }
}

/// The fragment in a payload, unless its message has more of them than the descriptor allows.
fn fragment_of(item: &ExitItem, config: &FragmentsConfig) -> Option<(fragments::FragmentFacts, Vec<u8>)> {
    let Queued::Payload { payload, .. } = &item.content else { return None };
    let Ok(Decoded::Fragment(fragment)) = Decoded::read(payload.as_bytes()) else { return None };
    let wanted = u64::from(fragment.fragmentation().fragments()) <= config.most_fragments();
    wanted.then(|| (fragments::FragmentFacts::of(&fragment), fragment.octets().to_vec()))
}
