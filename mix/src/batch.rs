//! Batching: which of the pooled messages leave the mix now (minion-spec 3.2.5.2, A.1).
//!
//! Three kinds of pool as pure functions of (pool, dice). When a batch is due is `node::mixing`'s to say, and where the
//! pool is kept, `store::queue`'s.

use rand::seq::SliceRandom;
use rand::{CryptoRng, RngExt};

/// A way to choose the messages of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pool {
    /// All leave.
    Timed,
    /// As many as [`DynamicPool::batch_size`] says leave, each as likely as any other.
    Cottrell(DynamicPool),
    /// Each leaves by its own dice, so that as many leave on average as in [`Pool::Cottrell`]; the size of a batch no
    /// longer tells the size of the pool.
    Binomial(DynamicPool),
}

/// What a dynamic pool holds back: messages stay behind so that whoever floods the mix can't empty it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DynamicPool {
    min: usize,
    rate: f64,
}

/// Why a pool cannot work so. Blames the settings.
#[derive(Debug, thiserror::Error, PartialEq, Clone, Copy)]
pub enum InvalidPool {
    /// No message would ever leave, or more than there are.
    #[error("the rate of a pool is a fraction above 0 and at most 1, not {rate}")]
    Rate {
        /// The fraction given.
        rate: f64,
    },
}

impl DynamicPool {
    /// A pool that never holds fewer than `min` messages after a batch and never gives more than the fraction `rate` of
    /// them at a time, but for a single one.
    ///
    /// # Errors
    /// [`InvalidPool::Rate`] unless 0 < `rate` ≤ 1.
    pub fn new(min: usize, rate: f64) -> Result<Self, InvalidPool> {
        // Written so that NaN fails it too.
        if rate > 0.0 && rate <= 1.0 { Ok(Self { min, rate }) } else { Err(InvalidPool::Rate { rate }) }
    }

    /// How many of `len` messages leave, exactly or on average: none of up to `min`, else the fraction `rate`, rounded
    /// down, but at least one and no more than leave `min` behind.
    pub fn batch_size(&self, len: usize) -> usize {
        let sendable = len.saturating_sub(self.min);
        // A pool is far smaller than 2^52 messages of 32 KB: exact as f64, and the product fits back.
        let share = (len as f64 * self.rate) as usize;
        sendable.min(share.max(1))
    }
}

impl Pool {
    /// The messages that leave now, in the order in which they do: shuffled, whatever order `ids` came in.
    pub fn leave<T: Clone>(&self, ids: &[T], rng: &mut impl CryptoRng) -> Vec<T> {
        let mut leaving = ids.to_vec();
        leaving.shuffle(rng);
        match self {
            Self::Timed => {}
            Self::Cottrell(pool) => leaving.truncate(pool.batch_size(ids.len())),
            Self::Binomial(pool) => {
                let batch_size = pool.batch_size(ids.len());
                // Whole numbers: the probability is batch_size / len and not a float near it.
                leaving.retain(|_| rng.random_range(0..ids.len()) < batch_size);
            }
        }
        leaving
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const SEED: u64 = 0x6d69_7867_6174_6501;

    fn dynamic(min: usize, rate: f64) -> DynamicPool {
        DynamicPool::new(min, rate).unwrap()
    }

    /// How often each of `len` messages left in `rounds` batches, and the sizes of the batches.
    fn simulate(pool: Pool, len: usize, rounds: usize) -> (Vec<f64>, Vec<f64>) {
        println!("seed {SEED:#x}");
        let mut rng = StdRng::seed_from_u64(SEED);
        let ids: Vec<usize> = (0..len).collect();
        let mut left = vec![0.0; len];
        let mut sizes = Vec::new();
        for _ in 0..rounds {
            let batch = pool.leave(&ids, &mut rng);
            sizes.push(batch.len() as f64);
            batch.iter().for_each(|&id| left[id] += 1.0);
        }
        (left, sizes)
    }

    /// Within 6 standard deviations of a binomial distribution.
    fn assert_plausible(count: f64, trials: f64, p: f64) {
        let sigma = (trials * p * (1.0 - p)).sqrt();
        assert!((count - trials * p).abs() <= 6.0 * sigma, "{count} of {trials} at {p}");
    }

    #[test]
    fn rate_that_is_no_fraction_is_refused() {
        for rate in [0.0, -0.1, 1.01, f64::INFINITY] {
            assert_eq!(DynamicPool::new(5, rate), Err(InvalidPool::Rate { rate }));
        }
        assert!(matches!(DynamicPool::new(5, f64::NAN), Err(InvalidPool::Rate { .. })));
    }

    #[test]
    fn dynamic_pool_keeps_its_minimum_and_gives_at_least_one_above_it() {
        let pool = dynamic(6, 0.7);
        let sizes: Vec<usize> = [0, 1, 6, 7, 8, 10, 20, 21, 100].into_iter().map(|len| pool.batch_size(len)).collect();
        // 20: 14 of 14; 21: 14.7 down to 14 of 15.
        assert_eq!(sizes, [0, 0, 0, 1, 2, 4, 14, 14, 70]);
        assert_eq!(dynamic(0, 0.01).batch_size(3), 1);
        assert_eq!(dynamic(0, 1.0).batch_size(3), 3);
    }

    #[test]
    fn timed_pool_sends_everything_in_any_order() {
        let mut rng = StdRng::seed_from_u64(SEED);
        let ids: Vec<usize> = (0..50).collect();
        let mut batch = Pool::Timed.leave(&ids, &mut rng);
        assert_ne!(batch, ids, "seed {SEED:#x}");
        batch.sort_unstable();
        assert_eq!(batch, ids);
    }

    #[test]
    fn empty_pool_sends_nothing() {
        let mut rng = StdRng::seed_from_u64(SEED);
        for pool in [Pool::Timed, Pool::Cottrell(dynamic(0, 1.0)), Pool::Binomial(dynamic(0, 1.0))] {
            assert!(pool.leave::<u8>(&[], &mut rng).is_empty());
        }
    }

    #[test]
    fn every_message_is_as_likely_to_leave_first() {
        println!("seed {SEED:#x}");
        let mut rng = StdRng::seed_from_u64(SEED);
        let ids: Vec<usize> = (0..8).collect();
        let mut first = [0.0; 8];
        for _ in 0..8000 {
            first[Pool::Timed.leave(&ids, &mut rng)[0]] += 1.0;
        }
        first.iter().for_each(|&count| assert_plausible(count, 8000.0, 1.0 / 8.0));
    }

    #[test]
    fn cottrell_pool_sends_batches_of_one_size_and_every_message_as_often() {
        let (left, sizes) = simulate(Pool::Cottrell(dynamic(5, 0.6)), 30, 5000);
        assert!(sizes.iter().all(|&size| size == 18.0));
        left.iter().for_each(|&count| assert_plausible(count, 5000.0, 18.0 / 30.0));
    }

    #[test]
    fn binomial_pool_sends_batches_of_that_size_on_average_and_every_message_as_often() {
        let (left, sizes) = simulate(Pool::Binomial(dynamic(5, 0.6)), 30, 5000);
        left.iter().for_each(|&count| assert_plausible(count, 5000.0, 18.0 / 30.0));
        assert_plausible(sizes.iter().sum(), 5000.0 * 30.0, 18.0 / 30.0);
        // The variance of a binomial distribution, 30·0.6·0.4 = 7.2; its own standard error here is about 0.14.
        let variance = sizes.iter().map(|size| (size - 18.0).powi(2)).sum::<f64>() / 5000.0;
        assert!((variance - 7.2).abs() < 0.9, "{variance}");
    }

    #[test]
    fn binomial_pool_below_its_minimum_sends_nothing() {
        let (_, sizes) = simulate(Pool::Binomial(dynamic(5, 0.6)), 5, 100);
        assert!(sizes.iter().all(|&size| size == 0.0));
    }
}
