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
            durable::wipe(&self.db).await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::DynamicPool;
    use crate::packet::{HostName, HostRoute, NextHop, PACKET_LEN, Packet};
    use crate::store::NODE_SCHEMAS;
    use crate::store::queue::outgoing;
    use crate::store::queue::pool::PoolItem;

    fn relay(key_id: KeyId) -> PoolItem {
        let next = NextHop::Host(HostRoute { host: HostName::parse("a.example").unwrap(), port: 1, key_id });
        PoolItem::Relay { next, packet: Packet::from_bytes(&[5; PACKET_LEN]).unwrap() }
    }

    fn mixing(home: &tempfile::TempDir, pool: Pool) -> Mixing {
        Mixing {
            db: Db::open(&home.path().join("node/node.db"), &NODE_SCHEMAS).unwrap(),
            pool,
            interval: Duration::from_secs(600),
            own: Some(KeyId([1; 20])),
            bells: Bells::default(),
            counters: Counters::default(),
        }
    }

    #[tokio::test]
    async fn pool_keeps_its_minimum() {
        let home = tempfile::tempdir().unwrap();
        let mixing = mixing(&home, Pool::Cottrell(DynamicPool::new(5, 1.0).unwrap()));
        for _ in 0..8 {
            mixing.db.write(|tx| pool::insert(tx, &relay(KeyId([2; 20])))).unwrap();
        }
        let released = mixing.mix(World::real().dice()).await.unwrap();
        assert_eq!((released.relays, released.own), (3, 0));
        assert_eq!(mixing.db.read(pool::count).unwrap(), 5);
        assert_eq!(mixing.db.read(outgoing::count).unwrap(), 3);
    }

    #[tokio::test]
    async fn packets_for_the_node_itself_go_back_to_the_incoming_and_ring_there() {
        let home = tempfile::tempdir().unwrap();
        let mixing = mixing(&home, Pool::Timed);
        mixing.db.write(|tx| pool::insert(tx, &relay(KeyId([1; 20])))).unwrap();
        let released = mixing.mix(World::real().dice()).await.unwrap();
        mixing.ring(released);
        mixing.bells.incoming.notified().await;
        assert_eq!(mixing.db.read(outgoing::count).unwrap(), 0, "never on the network");
    }
}
