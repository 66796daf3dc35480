//! Lets packets out of the pool, some at a time (minion-spec 3.2.5.2; which ones is `batch`'s to say).
//!
//! All that leaves this mix leaves by this clock: the batch, the dummies in it, the padding of idle links, and what could
//! not be handed over before.

use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::clock::World;
use super::counters::Counters;
use super::dummies::Dummies;
use super::durable;
use crate::batch::Pool;
use crate::crypto::KeyId;
use crate::store::queue::outgoing;
use crate::store::queue::pool::{self, PoolId, Released};
use crate::store::{Db, StoreError};

/// Who is to know that something left the pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Bells {
    /// So many batches have left since the start. There may be packets for other mixes, and it is time to try again what
    /// waits for another try.
    pub(super) firings: watch::Sender<u64>,
    /// There are messages to deliver.
    pub(super) exit: watch::Sender<()>,
    /// There are packets for this mix itself.
    pub(super) incoming: Arc<Notify>,
}

/// When packets leave, and which.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rhythm {
    pub(super) pool: Pool,
    pub(super) interval: Duration,
}

/// The service that mixes.
pub(super) struct Mixing {
    pub(super) db: Db,
    /// May change at any time; what holds at the end of an interval counts.
    pub(super) rhythm: watch::Receiver<Rhythm>,
    /// This mix, whose own packets never touch the network. `None` for a gateway that is no mix.
    pub(super) own: Option<KeyId>,
    /// What leaves beside packets of people. `None` for a gateway that is no mix, and for a mix without a network.
    pub(super) dummies: Option<Dummies>,
    pub(super) bells: Bells,
    pub(super) counters: Counters,
}

impl Mixing {
    /// Mixes once in each interval until stopped.
    pub(super) async fn run(mut self, world: World, stop: CancellationToken) {
        let mut changes = self.rhythm.clone();
        let mut interval = changes.borrow_and_update().interval;
        let mut ticks = from_now_on(interval);
        self.plan(interval, &world);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = next_dummy(self.dummies.as_ref()) => {
                    if let Some(dummies) = &mut self.dummies {
                        dummies.make_next(&self.db, &world).await;
                    }
                    continue;
                }
                Ok(()) = changes.changed() => {
                    let new = changes.borrow_and_update().interval;
                    // A change of the rule alone does not delay what has gathered.
                    if std::mem::replace(&mut interval, new) != new {
                        ticks = from_now_on(new);
                    }
                    continue;
                }
                () = stop.cancelled() => return,
            }
            match self.mix(&world).await {
                Ok(released) => self.ring(released),
                Err(e) => error!(error = %e, "the pool cannot be mixed"),
            }
            // Whether a batch left or not: what waits for another try goes now or at the end of an interval to come.
            self.bells.firings.send_modify(|firings| *firings += 1);
            self.plan(interval, &world);
            durable::wipe(&self.db).await;
        }
    }

    fn plan(&mut self, interval: Duration, world: &World) {
        if let Some(dummies) = &mut self.dummies {
            dummies.plan(interval, &mut world.dice());
        }
    }

    /// Lets out what leaves now, dummies and padding with it, in one step.
    pub(super) async fn mix(&mut self, world: &World) -> Result<Released, StoreError> {
        let mut dice = world.dice();
        let ids = durable::read(&self.db, pool::ids).await?;
        let is_dummy = |id: &PoolId| self.dummies.as_ref().is_some_and(|dummies| dummies.is_ready(*id));
        let (dummies, others): (Vec<_>, Vec<_>) = ids.into_iter().partition(is_dummy);
        let Rhythm { pool, interval } = self.rhythm.borrow().clone();
        let mut leaving = pool.leave(&others, &mut dice);
        // Each batch has its dummies, even if it has nothing else: else they would tell when it has (design paper).
        leaving.extend(dummies);
        leaving.shuffle(&mut dice);
        let idle = self.dummies.as_ref().map(|dummies| dummies.padding(interval, world.now(), &mut dice));
        let (idle, own) = (idle.unwrap_or_default(), self.own);
        if leaving.is_empty() && idle.is_empty() {
            return Ok(Released::default());
        }
        let step = move |tx: &crate::store::Tx<'_>| {
            let released = pool::release(tx, &leaving, own.as_ref())?;
            idle.iter().try_for_each(|mix| outgoing::pad_if_idle(tx, mix).map(|_| ()))?;
            Ok(released)
        };
        let released = durable::write(&self.db, step).await?;
        if let Some(dummies) = &mut self.dummies {
            dummies.left();
        }
        Ok(released)
    }

    fn ring(&self, released: Released) {
        let Released { relays, deliveries, own } = released;
        if relays + deliveries + own == 0 {
            return;
        }
        debug!(packets = relays + deliveries + own, "mixed");
        self.counters.mixed(relays);
        if deliveries > 0 {
            self.bells.exit.send_replace(());
        }
        if own > 0 {
            self.bells.incoming.notify_one();
        }
    }
}

async fn next_dummy(dummies: Option<&Dummies>) {
    match dummies {
        Some(dummies) => dummies.next_due().await,
        None => std::future::pending().await,
    }
}

/// The first end of an interval is one interval away: nothing has gathered yet.
fn from_now_on(interval: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::DynamicPool;
    use crate::packet::{HostName, HostRoute, NextHop, PACKET_LEN, Packet};
    use crate::store::NODE_SCHEMAS;
    use crate::store::queue::pool::PoolItem;

    fn relay(key_id: KeyId) -> PoolItem {
        let next = NextHop::Host(HostRoute { host: HostName::parse("a.example").unwrap(), port: 1, key_id });
        PoolItem::Relay { next, packet: Packet::from_bytes(&[5; PACKET_LEN]).unwrap() }
    }

    fn mixing(home: &tempfile::TempDir, pool: Pool) -> Mixing {
        Mixing {
            db: Db::open(&home.path().join("node/node.db"), &NODE_SCHEMAS).unwrap(),
            rhythm: watch::channel(Rhythm { pool, interval: Duration::from_secs(600) }).1,
            own: Some(KeyId([1; 20])),
            dummies: None,
            bells: Bells::default(),
            counters: Counters::default(),
        }
    }

    #[tokio::test]
    async fn pool_keeps_its_minimum() {
        let home = tempfile::tempdir().unwrap();
        let mut mixing = mixing(&home, Pool::Cottrell(DynamicPool::new(5, 1.0).unwrap()));
        for _ in 0..8 {
            mixing.db.write(|tx| pool::insert(tx, &relay(KeyId([2; 20])))).unwrap();
        }
        let released = mixing.mix(&World::real()).await.unwrap();
        assert_eq!((released.relays, released.own), (3, 0));
        assert_eq!(mixing.db.read(pool::count).unwrap(), 5);
        assert_eq!(mixing.db.read(outgoing::count).unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn interval_and_rule_can_change_while_the_service_runs() {
        let home = tempfile::tempdir().unwrap();
        let mut mixing = mixing(&home, Pool::Timed);
        let ten_hours = Duration::from_secs(36_000);
        let (change, rhythm) = watch::channel(Rhythm { pool: Pool::Timed, interval: ten_hours });
        mixing.rhythm = rhythm;
        let (db, mut firings) = (mixing.db.clone(), mixing.bells.firings.subscribe());
        for _ in 0..3 {
            db.write(|tx| pool::insert(tx, &relay(KeyId([2; 20])))).unwrap();
        }
        let stop = CancellationToken::new();
        let service = tokio::spawn(mixing.run(World::real(), stop.clone()));
        tokio::task::yield_now().await;
        let pool = Pool::Cottrell(DynamicPool::new(1, 1.0).unwrap());
        change.send_replace(Rhythm { pool, interval: Duration::from_secs(60) });
        let begun = Instant::now();
        firings.changed().await.unwrap();
        assert!(begun.elapsed() < ten_hours, "the new interval, not the old");
        assert_eq!(db.read(outgoing::count).unwrap(), 2, "the new rule keeps one");
        stop.cancel();
        service.await.unwrap();
    }

    #[tokio::test]
    async fn packets_for_the_node_itself_go_back_to_the_incoming_and_ring_there() {
        let home = tempfile::tempdir().unwrap();
        let mut mixing = mixing(&home, Pool::Timed);
        mixing.db.write(|tx| pool::insert(tx, &relay(KeyId([1; 20])))).unwrap();
        let released = mixing.mix(&World::real()).await.unwrap();
        mixing.ring(released);
        mixing.bells.incoming.notified().await;
        assert_eq!(mixing.db.read(outgoing::count).unwrap(), 0, "never on the network");
    }
}
