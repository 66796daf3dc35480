//! When to try again what failed: a schedule of steps, each with its own rhythm (REFERENCE: "every 1 hour for 1 day,
//! 7 hours for 5 days").

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// One step of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryStep {
    /// Time between two attempts.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// How long this rhythm lasts.
    #[serde(with = "humantime_serde", rename = "for")]
    pub during: Duration,
}

/// Steps, one after the other, counted from the first failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RetrySchedule(Vec<RetryStep>);

impl RetrySchedule {
    /// A schedule of these steps.
    pub fn new(steps: Vec<RetryStep>) -> Self {
        Self(steps)
    }

    /// Once a minute for a day: for what lies in the same process, and fails only with the disk.
    pub fn every_minute_for_a_day() -> Self {
        Self(vec![RetryStep { every: Duration::from_secs(60), during: Duration::from_secs(24 * 3600) }])
    }

    /// When to try again after a failure at `now`, the first having been at `first`. `None`: never, the schedule is
    /// over.
    pub fn next_attempt(&self, first: SystemTime, now: SystemTime) -> Option<SystemTime> {
        let elapsed = now.duration_since(first).unwrap_or_default();
        let mut end = Duration::ZERO;
        for step in &self.0 {
            end += step.during;
            if elapsed < end {
                return Some(now + step.every.min(end - elapsed));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_goes_from_step_to_step_and_ends() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let schedule = RetrySchedule::new(vec![
            RetryStep { every: minutes(10), during: minutes(25) },
            RetryStep { every: minutes(60), during: minutes(120) },
        ]);
        let first = SystemTime::UNIX_EPOCH + minutes(1000);
        let after =
            |elapsed| schedule.next_attempt(first, first + minutes(elapsed)).map(|next| next - minutes(elapsed));
        assert_eq!(after(0), Some(first + minutes(10)));
        assert_eq!(after(20), Some(first + minutes(5)));
        assert_eq!(after(25), Some(first + minutes(60)));
        assert_eq!(after(100), Some(first + minutes(45)));
        assert_eq!(after(145), None);
    }

    #[test]
    fn clock_that_went_back_counts_as_no_time() {
        let schedule =
            RetrySchedule::new(vec![RetryStep { every: Duration::from_secs(5), during: Duration::from_secs(9) }]);
        let first = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let now = first - Duration::from_secs(100);
        assert_eq!(schedule.next_attempt(first, now), Some(now + Duration::from_secs(5)));
    }
}
