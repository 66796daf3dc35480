//! Hands packets to the next mix, and tries again when it cannot be reached.
//!
//! Retries are per destination, never per packet: else a packet that was late once could be told from others. They are
//! counted in batches and not by the clock, so that what is tried again leaves together with a batch, and that no jump of
//! the clock brings anything forward, puts it off, or has it given up. Packets are given up after so many failures as the
//! schedule has tries, whatever the date.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{AcquireError, Mutex, Semaphore, SemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::clock::World;
use super::config::OutgoingConfig;
use super::counters::Counters;
use super::durable;
use super::mixing::Rhythm;
use super::network::Network;
use crate::mmtp::frame::WINDOW;
use crate::net::connect::{self, Connector, Outcome, Undelivered, Unit};
use crate::net::resolve::Asker;
use crate::packet::NextHop;
use crate::store::queue::outgoing::{self, Destination};
use crate::store::queue::{DestinationId, OutgoingId};
use crate::store::{Db, StoreError};

/// Packets that are worth a connection. Of so many more another one is opened beside it, where seats are free: an answer
/// takes two flushes of the other side's disk, and no more than a window of packets is under way in each.
const LOAD: usize = 64;
/// Connections to one mix beside the first.
const MORE_CONNECTIONS: usize = 3;
/// Packets read at once, for all connections to one mix: a megabyte.
const READ: usize = 32;
/// How soon the queue is read again when it could not be.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// One seat of so many may be taken by mixes that are not in good standing. Anybody can write packets whose next mix is a
/// host of his that takes a connection and never answers; if such hosts could take every seat, nobody else would get his
/// packets. Half, since on a start without a directory all mixes are strangers, and the honest among them want seats too.
const STRANGERS: usize = 2;
/// Mixes whose standing is remembered: more than a directory lists. Strangers must not fill the memory.
const REMEMBERED: usize = 4096;

/// The service that connects to other mixes.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) db: Db,
    /// Schedule and number of connections may change at any time.
    pub(super) config: watch::Receiver<OutgoingConfig>,
    /// The schedule is rounded to its interval.
    pub(super) rhythm: watch::Receiver<Rhythm>,
    pub(super) connect: Connector,
    /// Batches that have left since the start.
    pub(super) firings: watch::Receiver<u64>,
    /// Who is listed is in good standing from the start. `None`: nobody is.
    pub(super) network: Option<Network>,
    pub(super) counters: Counters,
    pub(super) world: World,
    pub(super) stop: CancellationToken,
}

/// How serving a destination ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// It has acknowledged all, or enough for one connection.
    Taken,
    /// It did not take everything. Try again so many batches after the one that it was tried with.
    Later(u64),
    /// It did not, and all that waited for it was dropped.
    GivenUp,
    /// The process ends.
    Stopped,
}

impl Outgoing {
    /// Serves the queue until stopped.
    pub(super) async fn run(mut self) {
        let mut connections_at_a_time = self.config.borrow().connections;
        let seats = Arc::new(Seats::new(connections_at_a_time));
        let mut round = Round::default();
        let mut connections = JoinSet::new();
        while !self.stop.is_cancelled() {
            round.firing = *self.firings.borrow_and_update();
            let wanted = self.config.borrow_and_update().connections;
            seats.change(std::mem::replace(&mut connections_at_a_time, wanted), wanted);
            let unread = match durable::read(&self.db, outgoing::destinations).await {
                Ok(destinations) => {
                    for (destination, good) in round.due(destinations, &self) {
                        let (this, seats, firing) = (self.clone(), Arc::clone(&seats), round.firing);
                        connections.spawn(async move { this.serve_seated(destination, good, firing, &seats).await });
                    }
                    false
                }
                Err(e) => {
                    error!(error = %e, "the outgoing packets cannot be read");
                    true
                }
            };
            tokio::select! {
                Ok(()) = self.firings.changed() => {}
                Ok(()) = self.config.changed() => {}
                Some(ended) = connections.join_next() => match ended {
                    Ok(ended) => round.ended(ended, self.listed().as_ref()),
                    Err(e) => {
                        error!(panicked = e.is_panic(), "a connection failed");
                        round.one_failed(connections.is_empty());
                    }
                },
                () = tokio::time::sleep(READ_AGAIN), if unread => {}
                () = self.stop.cancelled() => {}
            }
        }
        while connections.join_next().await.is_some() {}
    }

    /// How the mixes are reached that the directory in force lists, if one is.
    fn listed(&self) -> Option<HashSet<NextHop>> {
        self.network.as_ref().and_then(Network::routes)
    }

    async fn serve_seated(&self, destination: Destination, good: bool, firing: u64, seats: &Seats) -> Ended {
        let (id, next) = (destination.id, destination.next.clone());
        // Before a seat is taken: a slow name server must not hold up those whose address is known.
        let served = match self.stop.run_until_cancelled(self.connect.prepare(&next, asker(good))).await {
            None => Ok(Served::Stopped),
            Some(Err(why)) => self.not_reached(id, destination.attempts, Some(&why)).await,
            Some(Ok(())) => match seats.take(good).await {
                Err(_) => Ok(Served::Stopped),
                Ok(_seat) => self.serve(destination, seats, good).await,
            },
        };
        let served = served.unwrap_or_else(|e| {
            error!(error = %e, "the outgoing packets cannot be served");
            Served::Later(1)
        });
        Ended { id, next, firing, served }
    }

    /// Hands over what waits for one destination, or counts the failure.
    async fn serve(&self, destination: Destination, seats: &Seats, good: bool) -> Result<Served, StoreError> {
        let (id, next) = (destination.id, &destination.next);
        let most = LOAD * (MORE_CONNECTIONS + 1);
        let waiting = durable::read(&self.db, move |view| outgoing::count_for(view, id, most)).await?;
        let more = usize::try_from(waiting).unwrap_or(most).saturating_sub(1) / LOAD;
        let more_seats = if good { seats.take_free(more) } else { Vec::new() };
        let load = Load::new(self, id);
        let (tell, told) = unbounded_channel();
        let (now, asker) = (self.world.now(), asker(good));
        let mut connections = JoinSet::new();
        for _ in 0..=more_seats.len() {
            let (this, next) = (self.clone(), next.clone());
            let mut hold = Hold { load: load.clone(), settled: tell.clone(), counters: self.counters.clone() };
            connections.spawn(async move { this.connect.hand_over((&next, asker), &mut hold, now, &this.stop).await });
        }
        self.counters.attempted(connections.len() as u64);
        drop(tell);
        // Ends when the connections have: their ends of the channel go with them.
        let sum = self.settle(told).await;
        let mut failures = Vec::new();
        while let Some(ended) = connections.join_next().await {
            match ended {
                Ok(ended) => failures.extend(ended.err()),
                Err(e) => {
                    error!(panicked = e.is_panic(), "a connection failed");
                    return Ok(Served::Later(1));
                }
            }
        }
        drop(more_seats);
        if self.stop.is_cancelled() {
            return Ok(Served::Stopped);
        }
        let all_asked_for = load.ended()?;
        if !sum.refused && (failures.is_empty() || all_asked_for) {
            return Ok(Served::Taken);
        }
        // A connection has its time and its number of packets. What is left goes into the next, when all others have had
        // their turn; but who says no, or hangs up after a few, is not called again before the next batch.
        let over = |failure: &Undelivered| matches!(failure, Undelivered::LifetimeOver | Undelivered::Closed);
        if failures.iter().all(over) && !sum.rejected && sum.packets >= WINDOW {
            return Ok(Served::Taken);
        }
        // Whoever took something has no failures behind him.
        let before = if sum.packets > 0 { 0 } else { destination.attempts };
        self.not_reached(id, before, failures.first()).await
    }

    /// Forgets what was taken, several at a time, until the connections have ended.
    async fn settle(&self, mut told: UnboundedReceiver<Settled>) -> Sum {
        let mut sum = Sum::default();
        let mut settled = Vec::new();
        while told.recv_many(&mut settled, LOAD).await > 0 {
            let mut taken = Vec::new();
            let mut padding = 0;
            for Settled { id, junk, outcome } in settled.drain(..) {
                sum.rejected |= outcome == Outcome::Rejected;
                if outcome == Outcome::Delivered {
                    taken.push(id);
                    padding += usize::from(junk);
                } else {
                    sum.refused = true;
                }
            }
            if !taken.is_empty() {
                sum.packets += taken.len() - padding;
                self.counters.relayed((taken.len() - padding) as u64);
                self.counters.junk(padding as u64);
                durable::note(&self.db, &self.stop, move |tx| outgoing::sent(tx, &taken)).await;
            }
        }
        sum
    }

    async fn not_reached(
        &self,
        id: DestinationId,
        before: u32,
        why: Option<&Undelivered>,
    ) -> Result<Served, StoreError> {
        // Neither which mix nor how many packets: at this level the log is kept.
        debug!(why = ?why.map(ToString::to_string), "a mix was not reached");
        self.counters.unreachable(1);
        self.counters.denied(matches!(why, Some(Undelivered::Denied)).into());
        self.put_off(id, before).await
    }

    /// After one more failure than `before`.
    async fn put_off(&self, id: DestinationId, before: u32) -> Result<Served, StoreError> {
        let interval = self.rhythm.borrow().interval;
        let wait = self.config.borrow().retry.intervals_after(before.saturating_add(1), interval);
        match wait {
            Some(batches) => {
                durable::write(&self.db, move |tx| outgoing::failed(tx, id)).await?;
                Ok(Served::Later(batches))
            }
            None => {
                let dropped = durable::write(&self.db, move |tx| outgoing::give_up(tx, id)).await?;
                self.counters.expired(dropped);
                Ok(Served::GivenUp)
            }
        }
    }
}

/// Whose names are looked up before those of strangers.
fn asker(good: bool) -> Asker {
    if good { Asker::Known } else { Asker::Stranger }
}

/// What became of one unit.
#[derive(Debug)]
struct Settled {
    id: OutgoingId,
    junk: bool,
    outcome: Outcome,
}

/// What became of all that was handed to one destination.
#[derive(Debug, Default)]
struct Sum {
    /// Packets that it has acknowledged.
    packets: usize,
    /// It has not acknowledged everything.
    refused: bool,
    /// It has said so.
    rejected: bool,
}

/// What waits for one destination, for all connections to it: each unit is given to one of them, in order. Read some at
/// a time, as the mix takes them. Clones share it.
#[derive(Clone)]
struct Load {
    unsent: Arc<Mutex<Unsent>>,
    /// The mix has not taken something. It is given no more: it has no room, or means ill.
    refused: Arc<AtomicBool>,
}

struct Unsent {
    db: Db,
    world: World,
    destination: DestinationId,
    read: VecDeque<(OutgoingId, outgoing::Cargo)>,
    /// The last that was read.
    after: Option<OutgoingId>,
    /// Nothing is left, or it cannot be read.
    end: Option<Result<(), StoreError>>,
}

impl Load {
    fn new(outgoing: &Outgoing, destination: DestinationId) -> Self {
        let (db, world) = (outgoing.db.clone(), outgoing.world.clone());
        let unsent = Unsent { db, world, destination, read: VecDeque::new(), after: None, end: None };
        Self { unsent: Arc::new(Mutex::new(unsent)), refused: Arc::default() }
    }

    /// Whether everything was given to a connection. The connections must have ended.
    fn ended(self) -> Result<bool, StoreError> {
        let unsent = Arc::into_inner(self.unsent).expect("all others went with the connections").into_inner();
        unsent.end.transpose().map(|end| end.is_some())
    }
}

impl Unsent {
    async fn next(&mut self) -> Option<(OutgoingId, outgoing::Cargo)> {
        if self.read.is_empty() && self.end.is_none() {
            let (destination, after) = (self.destination, self.after);
            let read = durable::read(&self.db, move |view| outgoing::cargo_for(view, destination, after, READ)).await;
            match read {
                Ok(read) if read.is_empty() => self.end = Some(Ok(())),
                Ok(read) => {
                    self.after = read.last().map(|(id, _)| *id);
                    self.read = read.into();
                }
                Err(e) => self.end = Some(Err(e)),
            }
        }
        self.read.pop_front()
    }
}

/// One connection's hold.
struct Hold {
    load: Load,
    settled: UnboundedSender<Settled>,
    counters: Counters,
}

impl connect::Cargo for Hold {
    /// And whether it is padding.
    type Id = (OutgoingId, bool);

    fn reached(&mut self) {
        self.counters.connected(1);
    }

    async fn next(&mut self) -> Option<Unit<Self::Id>> {
        if self.load.refused.load(Ordering::Relaxed) {
            return None;
        }
        let mut unsent = self.load.unsent.lock().await;
        let (id, cargo) = unsent.next().await?;
        Some(match cargo {
            outgoing::Cargo::Packet(packet) => Unit::packet((id, false), packet),
            outgoing::Cargo::Junk => Unit::junk((id, true), &mut unsent.world.dice()),
        })
    }

    fn settled(&mut self, (id, junk): Self::Id, outcome: Outcome) {
        if outcome == Outcome::Rejected {
            self.load.refused.store(true, Ordering::Relaxed);
        }
        // The other end waits until this one goes.
        let _ = self.settled.send(Settled { id, junk, outcome });
    }
}

/// A destination that was served with the batch of that number.
#[derive(Debug)]
struct Ended {
    id: DestinationId,
    next: NextHop,
    firing: u64,
    served: Served,
}

/// Who is served, who waits for which batch, and who has proved himself.
#[derive(Debug, Default)]
struct Round {
    /// Batches since the start.
    firing: u64,
    busy: HashSet<DestinationId>,
    /// The batch with which a destination is tried again.
    waits: HashMap<DestinationId, u64>,
    standing: Standing,
}

impl Round {
    /// Those to serve now, in any order, and whether they are in good standing. They are busy from here on.
    fn due(&mut self, mut destinations: Vec<Destination>, outgoing: &Outgoing) -> Vec<(Destination, bool)> {
        let waiting: HashSet<_> = destinations.iter().map(|destination| destination.id).collect();
        self.waits.retain(|id, _| waiting.contains(id));
        // What the last run had begun to hand over goes on at once; what it was to try again waits for a batch.
        let due = |destination: &Destination| match self.waits.get(&destination.id) {
            Some(batch) => *batch <= self.firing,
            None => destination.attempts == 0 || self.firing > 0,
        };
        destinations.retain(|destination| !self.busy.contains(&destination.id) && due(destination));
        // Where they come one after the other, the order would tell padding from packets and old from new.
        destinations.shuffle(&mut outgoing.world.dice());
        self.busy.extend(destinations.iter().map(|destination| destination.id));
        let listed = outgoing.listed();
        let with_standing = |destination: Destination| {
            let good = self.standing.is_good(&destination.next, listed.as_ref());
            (destination, good)
        };
        destinations.into_iter().map(with_standing).collect()
    }

    fn ended(&mut self, ended: Ended, listed: Option<&HashSet<NextHop>>) {
        let Ended { id, next, firing, served } = ended;
        self.busy.remove(&id);
        self.waits.remove(&id);
        match served {
            Served::Taken => self.standing.taken(next, listed),
            // An attempt may outlast an interval; the next one leaves with a batch all the same.
            Served::Later(batches) => {
                self.waits.insert(id, firing.saturating_add(batches).max(self.firing + 1));
                self.standing.failed(next, listed);
            }
            Served::GivenUp => self.standing.failed(next, listed),
            Served::Stopped => {}
        }
    }

    /// Which one it was cannot be known: all that do not run any more are tried with the next batch.
    fn one_failed(&mut self, none_runs: bool) {
        if none_runs {
            let next = self.firing + 1;
            self.waits.extend(self.busy.drain().map(|id| (id, next)));
        }
    }
}

/// Which mixes have proved themselves in this process. Where a directory says who the mixes are, those that it lists are
/// in good standing until they fail; where none does, those that have acknowledged a packet and not failed since.
#[derive(Debug, Default)]
struct Standing {
    acknowledged: HashSet<NextHop>,
    failed: HashSet<NextHop>,
}

impl Standing {
    /// With a directory, an acknowledgement alone is nothing: who wants all seats can give some.
    fn is_good(&self, next: &NextHop, listed: Option<&HashSet<NextHop>>) -> bool {
        match listed {
            Some(listed) => listed.contains(next) && !self.failed.contains(next),
            None => self.acknowledged.contains(next),
        }
    }

    fn taken(&mut self, next: NextHop, listed: Option<&HashSet<NextHop>>) {
        self.failed.remove(&next);
        if listed.is_none_or(|listed| listed.contains(&next)) && self.acknowledged.len() < REMEMBERED {
            self.acknowledged.insert(next);
        }
    }

    fn failed(&mut self, next: NextHop, listed: Option<&HashSet<NextHop>>) {
        self.acknowledged.remove(&next);
        if listed.is_some_and(|listed| listed.contains(&next)) && self.failed.len() < REMEMBERED {
            self.failed.insert(next);
        }
    }
}

/// The right to connections at a time: to all of them, and within these to those for strangers.
#[derive(Debug)]
struct Seats {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Seats {
    fn new(connections: usize) -> Self {
        let [all, strangers] = Self::numbers(connections).map(|number| Arc::new(Semaphore::new(number)));
        Self { all, strangers }
    }

    fn numbers(connections: usize) -> [usize; 2] {
        let all = connections.max(STRANGERS);
        [all, all / STRANGERS]
    }

    /// There are more seats, or fewer: connections that are there keep theirs, and whoever waits behind waits until there
    /// are no more than that.
    fn change(&self, from: usize, to: usize) {
        let seats = [&self.all, &self.strangers].into_iter();
        for (seats, (from, to)) in seats.zip(Self::numbers(from).into_iter().zip(Self::numbers(to))) {
            seats.add_permits(to.saturating_sub(from));
            let fewer = u32::try_from(from.saturating_sub(to)).unwrap_or(u32::MAX);
            if fewer > 0 {
                let seats = Arc::clone(seats);
                // Seats that are taken are taken away when they are given back.
                tokio::spawn(async move {
                    if let Ok(taken) = seats.acquire_many_owned(fewer).await {
                        taken.forget();
                    }
                });
            }
        }
    }

    /// Seats that nobody waits for, at most so many.
    fn take_free(&self, most: usize) -> Vec<SemaphorePermit<'_>> {
        (0..most).map_while(|_| self.all.try_acquire().ok()).collect()
    }

    /// Waits for a seat, behind those who came before.
    async fn take(&self, good: bool) -> Result<(Option<SemaphorePermit<'_>>, SemaphorePermit<'_>), AcquireError> {
        // First the strangers' own: none of them shall stand in the way of others while he waits for it.
        let stranger = if good { None } else { Some(self.strangers.acquire().await?) };
        Ok((stranger, self.all.acquire().await?))
    }
}

#[cfg(test)]
mod tests;
