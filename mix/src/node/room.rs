//! Whether there is room for packets of others: below a reserve of disk space they are answered REJECTED, and their
//! senders keep them (minion-spec 4).
//!
//! The reserve is for what the node has taken already. To go on it must write: replay entries, a packet's way from queue
//! to queue, messages put together from fragments, and the log of the database, 16 MiB before it is copied. So packets
//! are refused while all of that still fits, and the services behind them never see a full disk, unless somebody else
//! fills it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::store::Db;
use crate::store::db::SLOT_LEN;

/// How often the disk is asked. In the meantime a network of a gigabit brings 250 MB, about the default reserve.
const CHECK: Duration = Duration::from_secs(2);

/// What is known of the disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Room(Arc<AtomicU8>);

/// There is room, for all that is known.
const OPEN: u8 = 0;
/// There is less than the reserve.
const LOW: u8 = 1;
/// The store has refused a packet. It is not asked again before the next check.
const REFUSED: u8 = 2;
/// The store has refused a packet, and may be asked again.
const DOUBTFUL: u8 = 3;

impl Room {
    /// Whether a packet may be taken.
    pub fn is_there(&self) -> bool {
        matches!(self.0.load(Ordering::Relaxed), OPEN | DOUBTFUL)
    }

    /// The store did not take a packet, for this reason.
    pub fn refused(&self, why: impl fmt::Display) {
        // Said once, not for each packet, and not again until one was taken.
        if self.0.swap(REFUSED, Ordering::Relaxed) == OPEN {
            warn!(error = %why, "packets are refused: the store does not take them");
        }
    }

    /// The store took a packet.
    pub fn taken(&self) {
        let was = self.0.compare_exchange(DOUBTFUL, OPEN, Ordering::Relaxed, Ordering::Relaxed);
        if was.is_ok() {
            info!("packets are taken again");
        }
    }

    /// Asks from time to time, and when `reserve` changes, until stopped, for how many octets there is room, and keeps
    /// `reserve` of them free.
    pub(super) async fn watch(
        self,
        room: impl Fn() -> io::Result<u64> + Send + Sync + 'static,
        mut reserve: watch::Receiver<u64>,
        stop: CancellationToken,
    ) {
        let room = Arc::new(room);
        loop {
            let (room, wanted) = (Arc::clone(&room), *reserve.borrow_and_update());
            // A disk that hangs must not hang the network.
            match tokio::task::spawn_blocking(move || room()).await {
                Ok(free) => self.look(free, wanted),
                Err(_) => return,
            }
            tokio::select! {
                () = tokio::time::sleep(CHECK) => {}
                Ok(()) = reserve.changed() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn look(&self, free: io::Result<u64>, reserve: u64) {
        let low = free.as_ref().is_ok_and(|free| *free < reserve);
        let next = |now| match (now, low) {
            (OPEN | REFUSED | DOUBTFUL, true) => Some(LOW),
            (LOW, false) => Some(OPEN),
            (REFUSED, false) => Some(DOUBTFUL),
            _ => None,
        };
        match (self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next), low) {
            (Ok(_), true) => warn!(reserve, "packets are refused: less disk space is free than node.disk_reserve"),
            (Ok(LOW), false) => info!("packets are taken again: there is disk space"),
            _ => {}
        }
    }
}

/// For how many octets there is room, where the disk has so many free. Packets that have left leave their slots to others:
/// else a flood would close a node for good. Slots are of no use to all else that is written, so that half of the reserve
/// must be free on the disk itself.
pub(super) fn room_for(free: u64, reserve: u64, db: &Db) -> u64 {
    let slots = db.free_slots().saturating_mul(SLOT_LEN as u64);
    if free < reserve / 2 { free } else { free.saturating_add(slots) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{PACKET_LEN, Packet};
    use crate::store::NODE_SCHEMAS;
    use crate::store::disk::free_space;
    use crate::store::queue::incoming;
    use crate::store::testing::fresh;

    const RESERVE: u64 = 1000;

    fn full() -> io::Error {
        io::ErrorKind::StorageFull.into()
    }

    #[test]
    fn below_the_reserve_there_is_no_room_and_above_it_there_is_again() {
        let room = Room::default();
        assert!(room.is_there(), "nothing is known yet");
        room.look(Ok(RESERVE - 1), RESERVE);
        assert!(!room.is_there());
        room.taken();
        assert!(!room.is_there(), "a packet that was on its way says nothing of the reserve");
        room.look(Ok(RESERVE), RESERVE);
        assert!(room.is_there());
    }

    #[test]
    fn store_that_refuses_is_asked_again_after_the_next_look_at_the_disk() {
        let room = Room::default();
        room.refused(full());
        assert!(!room.is_there());
        room.look(Ok(RESERVE), RESERVE);
        assert!(room.is_there(), "one packet tries");
        room.refused(full());
        assert!(!room.is_there());
        room.look(Ok(RESERVE), RESERVE);
        room.taken();
        assert!(room.is_there());
        assert_eq!(room.0.load(Ordering::Relaxed), OPEN);
    }

    #[test]
    fn disk_that_cannot_be_asked_refuses_nothing() {
        let room = Room::default();
        room.look(Err(full()), RESERVE);
        assert!(room.is_there(), "the store will say");
    }

    #[tokio::test(start_paused = true)]
    async fn the_disk_is_asked_every_two_seconds_until_the_node_stops() {
        let folder = tempfile::tempdir().unwrap();
        let (room, stop) = (Room::default(), CancellationToken::new());
        let path = folder.path().to_owned();
        let reserve = watch::channel(u64::MAX).1;
        let watch = tokio::spawn(room.clone().watch(move || free_space(&path), reserve, stop.clone()));
        let noticed = async {
            while room.is_there() {
                tokio::time::sleep(CHECK).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), noticed).await.expect("no disk has so much room");
        stop.cancel();
        watch.await.unwrap();
    }

    #[test]
    fn disk_that_a_flood_has_filled_has_room_again_when_the_flood_has_gone() {
        const PACKETS: u64 = 100;
        let (folder, db) = fresh(&NODE_SCHEMAS);
        let flooded = PACKETS * PACKET_LEN as u64;
        let disk = flooded + RESERVE / 2;
        let free = || disk - std::fs::metadata(folder.path().join("store.packets")).unwrap().len();
        let flood: Vec<_> = (0..PACKETS)
            .map(|_| db.write(|tx| incoming::push(tx, &Packet::from_bytes(&[7; PACKET_LEN]).unwrap())).unwrap())
            .collect();
        assert_eq!(room_for(free(), RESERVE, &db), RESERVE / 2);
        db.write(move |tx| flood.iter().try_for_each(|id| incoming::discard(tx, *id).map(|_| ()))).unwrap();
        assert_eq!(room_for(free(), RESERVE, &db), disk);
        db.checkpoint().unwrap();
        assert_eq!(room_for(free(), RESERVE, &db), disk);
        // What is no packet needs room of its own.
        assert_eq!(room_for(free() - 1, RESERVE, &db), RESERVE / 2 - 1);
    }
}
