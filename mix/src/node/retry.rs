//! When to try again what failed: a schedule of steps, each with its own rhythm (REFERENCE: "every 1 hour for 1 day,
//! 7 hours for 5 days").
//!
//! Failures are counted, not hours. A clock that jumps two days ahead, or a machine that was switched off for a week, makes
//! the next try come at once; it uses up no other, and nothing is given up for it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings;

/// One step of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryStep {
    /// Time between two attempts.
    #[serde(with = "settings::time")]
    pub every: Duration,
    /// How long this rhythm lasts.
    #[serde(with = "settings::time", rename = "for")]
    pub during: Duration,
}

impl RetryStep {
    /// How many tries fit. None in a step that does not wait between them.
    fn tries(&self) -> u32 {
        if self.every.is_zero() {
            return 0;
        }
        u32::try_from(self.during.as_nanos().div_ceil(self.every.as_nanos())).unwrap_or(u32::MAX)
    }
}

/// Steps, one after the other, counted from the first failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RetrySchedule(#[serde(deserialize_with = "settings::one_or_more")] Vec<RetryStep>);

impl RetrySchedule {
    /// A schedule of these steps.
    pub fn new(steps: Vec<RetryStep>) -> Self {
        Self(steps)
    }

    /// The steps.
    pub fn steps(&self) -> &[RetryStep] {
        &self.0
    }

    /// Once a minute for a day: for what lies in the same process, and fails only with the disk.
    pub fn every_minute_for_a_day() -> Self {
        Self(vec![RetryStep { every: Duration::from_secs(60), during: Duration::from_secs(24 * 3600) }])
    }

    /// How many tries it has.
    pub fn tries(&self) -> u32 {
        self.0.iter().map(RetryStep::tries).fold(0, u32::saturating_add)
    }

    /// How long to wait after so many failures in a row; 1 is the first. `None`: for ever, the schedule is over.
    pub fn wait_after(&self, failures: u32) -> Option<Duration> {
        let mut before = failures.saturating_sub(1);
        for step in &self.0 {
            let Some(later) = before.checked_sub(step.tries()) else {
                return Some(step.every.min(step.during.saturating_sub(step.every.saturating_mul(before))));
            };
            before = later;
        }
        None
    }

    /// The same schedule for somebody who can act at the ends of intervals only: as [`RetrySchedule::wait_after`], counted
    /// in intervals. Each rhythm is rounded up to whole ones, so a step has fewer tries then and lasts about as long.
    pub fn intervals_after(&self, failures: u32, interval: Duration) -> Option<u64> {
        let whole = |time: Duration| time.as_nanos().div_ceil(interval.as_nanos().max(1)).max(1);
        let round = |step: &RetryStep| RetryStep {
            every: interval.saturating_mul(u32::try_from(whole(step.every)).unwrap_or(u32::MAX)),
            during: step.during,
        };
        // A step that does not wait stays one that has no tries.
        let rounded = self.0.iter().filter(|step| !step.every.is_zero()).map(round).collect();
        let wait = Self(rounded).wait_after(failures)?;
        Some(u64::try_from(whole(wait)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(n: u64) -> Duration {
        Duration::from_secs(60 * n)
    }

    fn schedule(steps: &[(u64, u64)]) -> RetrySchedule {
        let step = |&(every, during): &(u64, u64)| RetryStep { every: minutes(every), during: minutes(during) };
        RetrySchedule::new(steps.iter().map(step).collect())
    }

    #[test]
    fn schedule_goes_from_step_to_step_and_ends() {
        let schedule = schedule(&[(10, 25), (60, 120)]);
        let waits: Vec<_> = (1..=6).map(|failures| schedule.wait_after(failures)).collect();
        let expected = [Some(10), Some(10), Some(5), Some(60), Some(60), None].map(|wait| wait.map(minutes));
        assert_eq!(waits, expected);
        assert_eq!(schedule.tries(), 5);
    }

    #[test]
    fn waits_add_up_to_the_length_of_the_schedule() {
        let schedule = schedule(&[(5, 60), (60, 24 * 60), (7 * 60, 5 * 24 * 60)]);
        let total: Duration = (1..).map_while(|failures| schedule.wait_after(failures)).sum();
        assert_eq!(total, minutes(60 + 24 * 60 + 5 * 24 * 60));
    }

    #[test]
    fn rhythms_are_rounded_up_to_whole_intervals_and_last_as_long() {
        let schedule = schedule(&[(5, 60), (20, 60), (60, 120)]);
        let waits: Vec<_> = (1..).map_while(|failures| schedule.intervals_after(failures, minutes(15))).collect();
        // Every 15 for 60; every 30 for 60; every 60 for 120.
        assert_eq!(waits, [1, 1, 1, 1, 2, 2, 4, 4]);
        let few: Vec<_> = (1..).map_while(|failures| schedule.intervals_after(failures, minutes(100))).collect();
        assert_eq!(few, [1, 1, 1, 1], "each step has a try at least, and each try an interval of its own");
    }

    #[test]
    fn schedule_of_nothing_never_tries_again() {
        assert_eq!(schedule(&[]).wait_after(1), None);
        assert_eq!(schedule(&[(0, 60)]).wait_after(1), None);
        assert_eq!(schedule(&[(0, 60)]).intervals_after(1, minutes(15)), None);
    }

    #[test]
    fn rhythm_without_a_pause_is_refused() {
        let read = |every: &str| {
            let fields = [("every", every), ("for", "1 hour")].into_iter();
            RetryStep::deserialize(serde::de::value::MapDeserializer::<_, serde::de::value::Error>::new(fields))
        };
        let refused = read("0 minutes").unwrap_err().to_string();
        assert!(refused.starts_with("expected a time longer than nothing"), "{refused}");
        assert_eq!(read("5 minutes").unwrap(), RetryStep { every: minutes(5), during: minutes(60) });
    }
}
