//! Where the services get time and chance from. Both are handed in, so that a test can hold the clock still and a
//! simulation can repeat its dice.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{CryptoRng, SeedableRng};
use tokio::time::Instant;

/// A source of randomness that a service can own.
pub type Dice = Box<dyn CryptoRng + Send>;

/// Time and chance.
#[derive(Clone)]
pub struct World {
    now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    dice: Arc<dyn Fn() -> Dice + Send + Sync>,
}

impl World {
    /// The system's clock and its random generator.
    pub fn real() -> Self {
        Self::new(SystemTime::now, || Box::new(StdRng::from_rng(&mut rand::rng())))
    }

    /// Time from `now`, and a generator from `dice` for each service that asks.
    pub fn new(
        now: impl Fn() -> SystemTime + Send + Sync + 'static,
        dice: impl Fn() -> Dice + Send + Sync + 'static,
    ) -> Self {
        Self { now: Arc::new(now), dice: Arc::new(dice) }
    }

    /// The present.
    pub fn now(&self) -> SystemTime {
        (self.now)()
    }

    /// A generator for one service or task.
    pub fn dice(&self) -> Dice {
        (self.dice)()
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World(..)")
    }
}

/// By how much a clock that was just met, or that just jumped, may be wrong without harm.
pub const CLOCK_MARGIN: Duration = Duration::from_secs(48 * 3600);
/// A clock is steady when it has gone with the time that passes for so long.
const STEADY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// By how much a clock may be corrected between two looks and still be steady.
const STEADY: Duration = Duration::from_secs(600);

/// Whether the clock can be believed, where something is lost for good if it cannot.
#[derive(Debug)]
pub(super) struct Steadiness {
    last: (SystemTime, Instant),
    since: Instant,
}

impl Steadiness {
    /// Of a clock that was just met.
    pub(super) fn new(now: SystemTime) -> Self {
        let instant = Instant::now();
        Self { last: (now, instant), since: instant }
    }

    /// Whether the clock, which shows `now`, has gone evenly for long enough.
    pub(super) fn look(&mut self, now: SystemTime) -> bool {
        let instant = Instant::now();
        let (before, at) = self.last;
        let expected = before + (instant - at);
        let off = now.duration_since(expected).unwrap_or_else(|early| early.duration());
        if off > STEADY {
            self.since = instant;
        }
        self.last = (now, instant);
        instant - self.since >= STEADY_AFTER
    }
}

/// A clock that is set once and goes evenly from then on, whatever the system's does: for what is put off within this
/// process, and must neither be hurried nor held up when somebody sets the clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Even {
    began: (SystemTime, Instant),
}

impl Even {
    /// Shows `now` now.
    pub(super) fn set(now: SystemTime) -> Self {
        Self { began: (now, Instant::now()) }
    }

    /// What it shows.
    pub(super) fn now(&self) -> SystemTime {
        let (began, at) = self.began;
        began + at.elapsed()
    }
}
