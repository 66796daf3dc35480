//! Hands packets to the next mix, and tries again when it cannot be reached.
//!
//! Retries are per destination, never per packet: else a packet that was late once could be told from others.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::clock::World;
use super::config::OutgoingConfig;
use super::counters::Counters;
use super::durable;
use crate::net::connect::{self, ConnectConfig, Outcome, Undelivered, Unit};
use crate::store::queue::outgoing::{self, Destination};
use crate::store::queue::{DestinationId, OutgoingId};
use crate::store::{Db, StoreError};

/// Packets handed over in one connection, and in memory at a time: two megabytes.
const LOAD: usize = 64;
/// The longest time between two looks at the queue: clocks jump, and a bell may ring while nobody listens.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The service that connects to other mixes.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) db: Db,
    pub(super) config: OutgoingConfig,
    pub(super) connect: ConnectConfig,
    pub(super) bell: Arc<Notify>,
    pub(super) counters: Counters,
    pub(super) world: World,
    pub(super) stop: CancellationToken,
}

impl Outgoing {
    /// Serves the queue until stopped.
    pub(super) async fn run(self) {
        let seats = Arc::new(Semaphore::new(self.config.connections.max(1)));
        let mut busy = HashSet::new();
        let mut connections = JoinSet::new();
        while !self.stop.is_cancelled() {
            let now = self.world.now();
            match durable::read(&self.db, move |view| outgoing::due_destinations(view, now)).await {
                Ok(due) => {
                    for destination in due.into_iter().filter(|destination| destination.packets > 0) {
                        if busy.insert(destination.id) {
                            let (this, seats) = (self.clone(), Arc::clone(&seats));
                            connections.spawn(async move { this.serve_seated(destination, &seats).await });
                        }
                    }
                }
                Err(e) => error!(error = %e, "the outgoing packets cannot be read"),
            }
            tokio::select! {
                () = self.bell.notified() => {}
                Some(ended) = connections.join_next() => match ended {
                    Ok(destination) => drop(busy.remove(&destination)),
                    // Which one it was cannot be known; all that do not run any more are looked at again.
                    Err(_) if connections.is_empty() => busy.clear(),
                    Err(_) => {}
                },
                () = tokio::time::sleep(self.until_next_due().await) => {}
                () = self.stop.cancelled() => {}
            }
        }
        while connections.join_next().await.is_some() {}
    }

    async fn until_next_due(&self) -> Duration {
        let next = durable::read(&self.db, outgoing::next_due).await.ok().flatten();
        let wait = next.and_then(|next| next.duration_since(self.world.now()).ok());
        // What is due already is being served, or was just looked at.
        wait.map_or(LOOK_AGAIN, |wait| wait.clamp(Duration::from_millis(50), LOOK_AGAIN))
    }

    async fn serve_seated(&self, destination: Destination, seats: &Semaphore) -> DestinationId {
        let id = destination.id;
        if let Ok(_seat) = seats.acquire().await
            && let Err(e) = self.serve(destination).await
        {
            error!(error = %e, "the outgoing packets cannot be served");
        }
        id
    }

    /// Hands over all that waits for one destination, or postpones it.
    async fn serve(&self, destination: Destination) -> Result<(), StoreError> {
        let id = destination.id;
        loop {
            let packets = durable::read(&self.db, move |view| outgoing::packets_for(view, id, LOAD)).await?;
            if packets.is_empty() {
                return Ok(());
            }
            let units = packets.into_iter().map(|(id, packet)| Unit::packet(id, packet)).collect();
            let delivery =
                connect::deliver(&destination.next, units, &self.connect, self.world.now(), &self.stop).await;
            let (taken, refused): (Vec<_>, Vec<_>) =
                delivery.outcomes.into_iter().partition(|(_, outcome)| *outcome == Outcome::Delivered);
            let progress = !taken.is_empty();
            self.forget(taken.into_iter().map(|(id, _)| id).collect()).await;
            if self.stop.is_cancelled() {
                return Ok(());
            }
            // A connection has its time; what is left goes into the next.
            if progress && matches!(delivery.failure, Some(Undelivered::LifetimeOver)) {
                continue;
            }
            if !refused.is_empty() {
                // Neither which mix nor how many packets: at this level the log is kept.
                debug!(why = ?delivery.failure.map(|why| why.to_string()), "a mix was not reached");
                self.counters.unreachable(1);
                return self.postpone(&destination).await;
            }
        }
    }

    async fn forget(&self, taken: Vec<OutgoingId>) {
        if !taken.is_empty() {
            self.counters.relayed(taken.len() as u64);
            durable::note(&self.db, &self.stop, move |tx| outgoing::sent(tx, &taken)).await;
        }
    }

    async fn postpone(&self, destination: &Destination) -> Result<(), StoreError> {
        let (id, now) = (destination.id, self.world.now());
        let first = destination.first_attempt.unwrap_or(now);
        match self.config.retry.next_attempt(first, now) {
            Some(next) => durable::write(&self.db, move |tx| outgoing::postpone(tx, id, now, next)).await,
            None => {
                let dropped = durable::write(&self.db, move |tx| outgoing::give_up(tx, id)).await?;
                self.counters.expired(dropped);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::crypto::KeyId;
    use crate::node::retry::{RetrySchedule, RetryStep};
    use crate::packet::{HostName, HostRoute, NextHop, PACKET_LEN, Packet};
    use crate::store::NODE_SCHEMAS;
    use crate::store::queue::pool::{self, PoolItem};

    fn outgoing(home: &tempfile::TempDir, retry: Vec<RetryStep>) -> Outgoing {
        Outgoing {
            db: Db::open(&home.path().join("node/node.db"), &NODE_SCHEMAS).unwrap(),
            config: OutgoingConfig { retry: RetrySchedule::new(retry), ..OutgoingConfig::default() },
            connect: ConnectConfig::default(),
            bell: Arc::default(),
            counters: Counters::default(),
            world: World::real(),
            stop: CancellationToken::new(),
        }
    }

    /// A port where nobody listens.
    fn closed_port() -> u16 {
        TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
    }

    impl Outgoing {
        fn queue(&self, port: u16, packets: usize) {
            let key_id = KeyId([3; 20]);
            let next = NextHop::Host(HostRoute { host: HostName::parse("127.0.0.1").unwrap(), port, key_id });
            let packet = Packet::from_bytes(&[5; PACKET_LEN]).unwrap();
            let item = PoolItem::Relay { next, packet };
            let step = move |tx: &crate::store::Tx<'_>| {
                let ids = (0..packets).map(|_| pool::insert(tx, &item)).collect::<Result<Vec<_>, _>>()?;
                pool::release(tx, &ids, None)
            };
            self.db.write(step).unwrap();
        }

        fn due(&self) -> Vec<Destination> {
            let now = self.world.now();
            self.db.read(|view| outgoing::due_destinations(view, now)).unwrap()
        }
    }

    #[tokio::test]
    async fn mix_that_is_away_is_tried_again_later_with_all_its_packets() {
        let home = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let outgoing = outgoing(&home, vec![RetryStep { every: hour, during: hour }]);
        outgoing.queue(closed_port(), 3);
        let destination = outgoing.due().remove(0);
        assert_eq!(destination.packets, 3);
        outgoing.serve(destination).await.unwrap();
        assert!(outgoing.due().is_empty(), "not before an hour is over");
        assert_eq!(outgoing.db.read(outgoing::count).unwrap(), 3, "nothing is lost");
        assert_eq!(outgoing.counters.snapshot().unreachable, 1, "one attempt for all packets");
    }

    #[tokio::test]
    async fn packets_are_dropped_and_counted_when_the_schedule_is_over() {
        let home = tempfile::tempdir().unwrap();
        let outgoing = outgoing(&home, Vec::new());
        outgoing.queue(closed_port(), 2);
        outgoing.serve(outgoing.due().remove(0)).await.unwrap();
        assert_eq!(outgoing.counters.snapshot().expired, 2);
        assert_eq!(outgoing.db.read(outgoing::count).unwrap(), 0);
    }
}
