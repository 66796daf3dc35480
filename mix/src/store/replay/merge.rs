//! Which runs become one, and how.
//!
//! A look asks every run of a packet key, so there must be few; a run is rewritten whole, so it must not be often. Each run
//! is kept at least twice as long as the next newer one: ten million entries lie in nine runs at most, and each of them was
//! written as often.

use std::sync::Arc;

use super::filter::Filter;
use super::run::{Folder, Run, RunId, Writer};
use crate::crypto::Digest;
use crate::store::db::StoreError;

/// Entries between two questions whether to go on: a few milliseconds.
const ASKED_AFTER: u64 = 1 << 16;

/// How many of the newest runs are to be one, given the lengths of all from the oldest to the newest: those that would be
/// merged one after the other, while the newest is more than half as long as the one before it. In one go each entry is
/// written once. Nought, or at least two.
pub(super) fn due(lens: &[u64]) -> usize {
    let mut newest = 0_u64;
    let taken = lens.iter().rev().take_while(|len| {
        let taken = newest == 0 || newest > **len / 2;
        newest = newest.saturating_add(**len);
        taken
    });
    Some(taken.count()).filter(|runs| *runs > 1).unwrap_or_default()
}

/// Writes the entries of all `inputs`, which are of one packet key, into a new run. `None` when `go_on` says no in between;
/// then nothing is left of it.
///
/// # Errors
/// As [`Writer`] and `Entries`.
pub(super) fn merged(
    folder: &Folder,
    id: RunId,
    (packet_key, inputs): (Digest, &[Arc<Run>]),
    filter: Filter,
    go_on: &dyn Fn() -> bool,
) -> Result<Option<Run>, StoreError> {
    let mut output = Writer::create(folder, id, packet_key, filter)?;
    let mut heads = Vec::with_capacity(inputs.len());
    for input in inputs {
        let mut entries = input.entries();
        if let Some(first) = entries.next()? {
            heads.push((first, entries));
        }
    }
    let mut last = None;
    let mut passed = 0_u64;
    // There are a dozen at most, and mostly two.
    while let Some(least) = (0..heads.len()).min_by_key(|at| heads.get(*at).map(|(hash, _)| *hash))
        && let Some((hash, entries)) = heads.get_mut(least)
    {
        // The same entry may be in two runs when a commit was in doubt.
        if last != Some(*hash) {
            output.push(hash)?;
        }
        last = Some(*hash);
        match entries.next()? {
            Some(next) => *hash = next,
            None => drop(heads.swap_remove(least)),
        }
        passed += 1;
        if passed.is_multiple_of(ASKED_AFTER) && !go_on() {
            return Ok(None);
        }
    }
    output.finish().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{digest, private_folder};

    #[test]
    fn newest_runs_are_merged_until_each_is_twice_as_long_as_the_next() {
        assert_eq!(due(&[]), 0);
        assert_eq!(due(&[10]), 0);
        assert_eq!(due(&[20, 10]), 0);
        assert_eq!(due(&[19, 10]), 2);
        assert_eq!(due(&[100, 10, 10]), 2);
        assert_eq!(due(&[64, 32, 16, 8, 8]), 5);
        assert_eq!(due(&[1000, 32, 16, 8, 8]), 4);
        assert_eq!(due(&[3, 200, 10]), 0, "what is long enough is left alone");
        assert_eq!(due(&[u64::MAX, u64::MAX]), 2);
    }

    #[test]
    fn ten_million_entries_lie_in_few_runs_and_each_was_written_few_times() {
        let (mut lens, mut written, mut most) = (Vec::new(), 0_u64, 0);
        for _ in 0..10_000_000 / 32_768 {
            lens.push(32_768);
            let newest = lens.split_off(lens.len() - due(&lens));
            written += newest.iter().sum::<u64>();
            lens.extend(Some(newest.iter().sum::<u64>()).filter(|len| *len > 0));
            most = most.max(lens.len());
        }
        assert!(most <= 9, "{most}");
        assert!(written <= 9 * 10_000_000, "{written}");
    }

    fn run(folder: &Folder, id: i64, numbers: impl Iterator<Item = u32>) -> Arc<Run> {
        let mut hashes: Vec<_> = numbers.map(|number| digest(&format!("{number}"))).collect();
        hashes.sort();
        let mut writer = Writer::create(folder, RunId(id), digest("key"), Filter::new(2)).unwrap();
        hashes.iter().for_each(|hash| writer.push(hash).unwrap());
        Arc::new(writer.finish().unwrap())
    }

    #[test]
    fn entries_of_all_are_in_the_one_and_those_of_two_are_there_once() {
        let home = private_folder();
        let folder = Folder::open(&home.path().join("store.db")).unwrap();
        let inputs = [run(&folder, 1, 0..5000), run(&folder, 2, 4000..6000), run(&folder, 3, 0..0)];
        let output = merged(&folder, RunId(4), (digest("key"), &inputs), Filter::new(0), &|| true).unwrap().unwrap();
        assert_eq!(output.len(), 6000);
        assert!((0..6000).all(|number| output.holds(&digest(&format!("{number}"))).unwrap()));
        assert!(!(6000..7000).any(|number| output.holds(&digest(&format!("{number}"))).unwrap()));
    }

    #[test]
    fn merge_that_is_stopped_leaves_no_file() {
        let home = private_folder();
        let folder = Folder::open(&home.path().join("store.db")).unwrap();
        let inputs = [run(&folder, 1, 0..40_000), run(&folder, 2, 40_000..80_000)];
        let output = merged(&folder, RunId(3), (digest("key"), &inputs), Filter::new(0), &|| false).unwrap();
        assert!(output.is_none());
        assert_eq!(folder.runs().unwrap().len(), 2);
    }
}
