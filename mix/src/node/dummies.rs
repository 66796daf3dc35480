//! What a mix sends to be taken for packets of people: dummies in its batches and padding on idle links (design paper,
//! "Dummy policy"; minion-spec 4, JUNK).
//!
//! A dummy is a forward packet like any other until its last mix finds DROP in it. It enters the pool at a moment of its
//! own, so that neither on disk nor in time the making of dummies goes before a batch. That it must leave with the next
//! batch is known in memory alone; after a crash it is a packet like all others, and leaves when chance says so.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::future::pending;
use std::time::{Duration, SystemTime};

use rand::seq::IndexedRandom;
use rand::{CryptoRng, RngExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error};

use super::clock::{Dice, World};
use super::config::DummiesConfig;
use super::counters::Counters;
use super::durable;
use super::network::Network;
use super::sender::{TRANSIT, hops};
use crate::crypto::KeyId;
use crate::directory::Directory;
use crate::packet::{NextHop, Packet, build};
use crate::path::ExitAddress;
use crate::path::select::{Path, PathRequest, select};
use crate::path::spec::{PathKind, PathSpec};
use crate::path::valid::{BlockLists, Exit, Mixes, Target};
use crate::store::queue::PoolId;
use crate::store::queue::pool::{self, PoolItem};
use crate::store::{Db, StoreError};

/// The longest way of a dummy; each length from one mix on is as likely (design paper, "Dummy policy").
const MAX_HOPS: usize = 4;
/// More dummies are not made for one batch, whatever the dice say: a hundred times the largest mean.
const MAX_DUMMIES: usize = 100 * DummiesConfig::DROP_MEAN_MAX as usize;

/// Makes the dummies of one mix, and says which links to pad.
pub(super) struct Dummies {
    /// May change at any time.
    config: watch::Receiver<DummiesConfig>,
    network: Network,
    own: KeyId,
    counters: Counters,
    /// When to make those for the next batch, the earliest first.
    due: VecDeque<Instant>,
    /// Made, in the pool, and to leave with the next batch.
    ready: HashSet<PoolId>,
}

impl Dummies {
    /// For the mix with this identity key.
    pub(super) fn new(
        config: watch::Receiver<DummiesConfig>,
        network: Network,
        own: KeyId,
        counters: Counters,
    ) -> Self {
        Self { config, network, own, counters, due: VecDeque::new(), ready: HashSet::new() }
    }

    /// What is wanted now; `None` when nothing is.
    fn wanted(&self) -> Option<DummiesConfig> {
        Some(self.config.borrow().clone()).filter(|config| config.enabled)
    }

    /// Draws how many dummies leave with the batch at the end of the interval that begins now, and when each is made.
    pub(super) fn plan(&mut self, interval: Duration, dice: &mut Dice) {
        let now = Instant::now();
        let mean = self.wanted().map_or(0.0, |config| config.drop_mean);
        let moments = (0..geometric(mean, dice)).map(|_| now + interval.mul_f64(dice.random::<f64>()));
        self.due.extend(moments);
        self.due.make_contiguous().sort_unstable();
    }

    /// Returns when it is time to make one; never, if there are enough.
    pub(super) async fn next_due(&self) {
        match self.due.front() {
            Some(moment) => sleep_until(*moment).await,
            None => pending().await,
        }
    }

    /// Makes the dummy that is due, if the directory has a path for it, and puts it into the pool.
    pub(super) async fn make_next(&mut self, db: &Db, world: &World) {
        self.due.pop_front();
        let (Some(_), Some(directory)) = (self.wanted(), self.network.directory()) else { return };
        let (own, now, dice) = (self.own, world.now(), world.dice());
        let made = tokio::task::spawn_blocking(move || make(&directory, &own, now, dice)).await;
        let (next, packet) = match made {
            Ok(Some(dummy)) => dummy,
            Ok(None) => return debug!("no dummy: the directory has no path for it"),
            Err(e) => return error!(panicked = e.is_panic(), "a dummy could not be made"),
        };
        match self.pool(db, next, packet).await {
            Ok(id) => {
                self.ready.insert(id);
                self.counters.dummies(1);
            }
            Err(e) => error!(error = %e, "the store does not take a dummy"),
        }
    }

    async fn pool(&self, db: &Db, next: NextHop, packet: Packet) -> Result<PoolId, StoreError> {
        durable::write(db, move |tx| pool::insert(tx, &PoolItem::Relay { next, packet })).await
    }

    /// Whether this is a dummy that leaves with the next batch.
    pub(super) fn is_ready(&self, id: PoolId) -> bool {
        self.ready.contains(&id)
    }

    /// They have left.
    pub(super) fn left(&mut self) {
        self.ready.clear();
    }

    /// Links to pad, those of them that are idle: each with the probability that makes it one in each period.
    pub(super) fn padding(&self, interval: Duration, now: SystemTime, dice: &mut Dice) -> Vec<NextHop> {
        let period = self.wanted().map_or(Duration::ZERO, |config| config.junk_period);
        let Some(directory) = self.network.directory().filter(|_| !period.is_zero()) else { return Vec::new() };
        let peers = peers(&directory, &self.own, now);
        let probability = interval.div_duration_f64(period).min(1.0);
        peers.into_iter().filter(|_| dice.random_bool(probability)).collect()
    }
}

/// How often a coin falls on its one side before it falls on the other, when that is `mean` times on average.
fn geometric(mean: f64, dice: &mut impl CryptoRng) -> usize {
    let again = mean / (1.0 + mean);
    (0..MAX_DUMMIES).take_while(|_| dice.random_bool(again)).count()
}

/// The other mixes of a directory that take connections.
fn peers(directory: &Directory, own: &KeyId, now: SystemTime) -> BTreeSet<NextHop> {
    let others = directory.live(now).into_iter().filter(|mix| mix.key_id() != *own);
    others.filter_map(|mix| mix.route()).map(NextHop::Host).collect()
}

/// A dummy and its first mix. `None` when there is no other mix that takes it.
fn make(directory: &Directory, own: &KeyId, now: SystemTime, mut dice: Dice) -> Option<(NextHop, Packet)> {
    let longest = dice.random_range(1..=MAX_HOPS);
    // Where mixes are few, a way may be too long for all of them, and a shorter one not.
    let path = (1..=longest).rev().find_map(|hops| path(directory, own, hops, now, &mut dice))?;
    let (leg1, leg2) = (hops(&path.leg1).ok()?, hops(&path.leg2).ok()?);
    let next = NextHop::Host(leg1.first()?.route.clone());
    Some((next, build::dummy(&leg1, &leg2, &mut dice).ok()?))
}

/// A path as that of a mail, of so many mixes, the first of them not we.
fn path(directory: &Directory, own: &KeyId, hops: usize, now: SystemTime, dice: &mut Dice) -> Option<Path> {
    // A mix that was renamed is listed under two names for a while.
    let ours = directory.descriptors().iter().filter(|mix| mix.key_id() == *own);
    let entries = ours.map(|mix| mix.nickname().clone()).collect();
    let mixes = Mixes::of(directory, BlockLists { entries, ..BlockLists::default() });
    let exit =
        Exit { address: &ExitAddress::Drop, message_size: 0, from: false, reassembled: false, attachments: false };
    let valid_until = now + TRANSIT;
    if hops < 2 {
        // No path of a mail is so short: there is nothing for `select` to do.
        let all = mixes.choosable(now, valid_until).into_iter();
        let fit: Vec<_> = all.filter(|mix| mix.can_start() && mixes.may_enter(mix)).collect();
        return Some(Path { leg1: vec![fit.choose(dice).copied()?.clone()], leg2: Vec::new() });
    }
    let spec = PathSpec::parse(&format!("*{hops}"), PathKind::Forward).ok()?;
    let files = std::collections::BTreeMap::new();
    let request = PathRequest { spec: &spec, target: Target::Exit(exit), packets: 1, valid_until, files: &files };
    select(&mixes, &request, now, dice).ok()?.pop()
}

#[cfg(test)]
mod tests;
