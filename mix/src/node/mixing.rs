//! Lets packets out of the pool, some at a time (minion-spec 5; which ones is `batch`'s to say).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::clock::{Dice, World};
use super::counters::Counters;
use super::durable;
use crate::batch::Pool;
use crate::crypto::KeyId;
use crate::store::queue::pool::{self, Released};
use crate::store::{Db, StoreError};

/// Who is to know that something left the pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Bells {
    /// There are packets for other mixes.
    pub(super) outgoing: Arc<Notify>,
    /// There are messages to deliver.
    pub(super) exit: Arc<Notify>,
    /// There are packets for this mix itself.
    pub(super) incoming: Arc<Notify>,
}

/// The service that mixes.
pub(super) struct Mixing {
    pub(super) db: Db,
    pub(super) pool: Pool,
    pub(super) interval: Duration,
    /// This mix, whose own packets never touch the network. `None` for a gateway that is no mix.
    pub(super) own: Option<KeyId>,
    pub(super) bells: Bells,
    pub(super) counters: Counters,
}

impl Mixing {
    /// Mixes once in each interval until stopped.
    pub(super) async fn run(self, world: World, stop: CancellationToken) {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is immediate, and nothing has gathered yet.
        ticks.tick().await;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.mix(world.dice()).await {
                Ok(released) => self.ring(released),
                Err(e) => error!(error = %e, "the pool cannot be mixed"),
            }
        }
    }

    async fn mix(&self, mut dice: Dice) -> Result<Released, StoreError> {
        let ids = durable::read(&self.db, pool::ids).await?;
        let leaving = self.pool.leave(&ids, &mut dice);
        if leaving.is_empty() {
            return Ok(Released::default());
        }
        let own = self.own;
        durable::write(&self.db, move |tx| pool::release(tx, &leaving, own.as_ref())).await
    }

    fn ring(&self, released: Released) {
        let Released { relays, deliveries, own } = released;
        if relays + deliveries + own == 0 {
            return;
        }
        debug!(packets = relays + deliveries + own, "mixed");
        self.counters.mixed(relays);
        if relays > 0 {
            self.bells.outgoing.notify_one();
        }
        if deliveries > 0 {
            self.bells.exit.notify_one();
        }
        if own > 0 {
            self.bells.incoming.notify_one();
        }
    }
}
