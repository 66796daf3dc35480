//! Where the services get time and chance from. Both are handed in, so that a test can hold the clock still and a
//! simulation can repeat its dice.

use std::sync::Arc;
use std::time::SystemTime;

use rand::rngs::StdRng;
use rand::{CryptoRng, SeedableRng};

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
