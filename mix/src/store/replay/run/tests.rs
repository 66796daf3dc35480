use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::testing::{digest, private_folder};

fn folder() -> (TempDir, Folder) {
    let home = private_folder();
    let folder = Folder::open(&home.path().join("store.db")).unwrap();
    (home, folder)
}

fn sorted(entries: u64) -> Vec<Digest> {
    let mut hashes: Vec<_> = (0..entries).map(|i| digest(&format!("{i}"))).collect();
    hashes.sort();
    hashes
}

fn written(folder: &Folder, id: i64, packet_key: &str, hashes: &[Digest]) -> Run {
    let mut writer = Writer::create(folder, RunId(id), digest(packet_key), Filter::new(3)).unwrap();
    hashes.iter().for_each(|hash| writer.push(hash).unwrap());
    writer.finish().unwrap()
}

fn registered(run: &Run) -> Registered {
    Registered { id: run.id, packet_key: run.packet_key, checksum: run.checksum }
}

fn all(run: &Run) -> Vec<Digest> {
    let mut entries = run.entries();
    std::iter::from_fn(|| entries.next().unwrap()).collect()
}

/// What is wrong with a run, in the words that the operator reads.
fn refusal(folder: &Folder, registered: &Registered) -> String {
    Run::open(folder, registered).err().expect("refused").to_string()
}

#[test]
fn run_of_any_length_holds_what_was_written_and_nothing_else() {
    let (_home, folder) = folder();
    for (id, len) in [0_u64, 1, 203, 204, 205, 408, 3264, 3265, 10_000].into_iter().enumerate() {
        let hashes = sorted(len);
        let run = written(&folder, id as i64, "key", &hashes);
        let again = Run::open(&folder, &registered(&run)).unwrap();
        for run in [&run, &again] {
            assert_eq!((run.len(), run.blocks(), run.packet_key()), (len, 3, &digest("key")));
            assert_eq!(all(run), hashes, "{len}");
            assert!(hashes.iter().all(|hash| run.holds(hash).unwrap()), "{len}");
            assert!(!(0..500).any(|i| run.holds(&digest(&format!("not {i}"))).unwrap()), "{len}");
        }
        assert_eq!(run.fences, again.fences);
    }
}

#[test]
fn damage_is_refused_by_name() {
    let (_home, folder) = folder();
    let run = written(&folder, 1, "key", &sorted(1000));
    let whole = fs::read(run.path()).unwrap();
    let after = |octets: &[u8]| {
        fs::write(run.path(), octets).unwrap();
        refusal(&folder, &registered(&run))
    };
    let flipped = |at: usize| {
        let mut octets = whole.clone();
        octets[at] ^= 0x10;
        octets
    };
    assert_eq!(after(&whole[..0]), WRONG_LENGTH.to_string());
    assert_eq!(after(&whole[..PAGE_LEN]), WRONG_LENGTH.to_string());
    assert_eq!(after(&whole[..whole.len() - 1]), WRONG_LENGTH.to_string());
    assert_eq!(after(&[whole.as_slice(), &[0]].concat()), WRONG_LENGTH.to_string());
    assert_eq!(after(&vec![0; whole.len()]), NO_RUN.to_string());
    assert_eq!(after(&flipped(0)), NO_RUN.to_string(), "magic");
    assert_eq!(after(&flipped(11)), NO_RUN.to_string(), "version");
    assert_eq!(after(&flipped(12)), OTHER_KEY.to_string());
    // Fewer entries in as many pages; an entry; zeros behind the entries; the filter; its zeros; checksum; its zeros.
    let filter = PAGE_LEN * (1 + 1000_usize.div_ceil(PER_PAGE));
    let fields = [32 + 7, 44, FIELDS_LEN, FIELDS_LEN + DIGEST_LEN, PAGE_LEN - 1, PAGE_LEN, 2 * PAGE_LEN - 1];
    for at in fields.into_iter().chain([2 * PAGE_LEN - 20, filter, filter + 3 * BLOCK_LEN, whole.len() - 1]) {
        assert_eq!(after(&flipped(at)), CHANGED.to_string(), "octet {at}");
    }
    fs::write(run.path(), &whole).unwrap();
    Run::open(&folder, &registered(&run)).unwrap();
    fs::remove_file(run.path()).unwrap();
    assert_eq!(refusal(&folder, &registered(&run)), MISSING.to_string());
}

#[test]
fn run_in_the_place_of_another_is_refused_by_name() {
    let (_home, folder) = folder();
    let run = written(&folder, 1, "key", &sorted(10));
    // Whole, of the same key, and older: as out of a backup.
    let older = written(&folder, 2, "key", &sorted(9));
    let others = written(&folder, 3, "other key", &sorted(10));
    fs::copy(older.path(), run.path()).unwrap();
    assert_eq!(refusal(&folder, &registered(&run)), CHANGED.to_string());
    fs::copy(others.path(), run.path()).unwrap();
    assert_eq!(refusal(&folder, &registered(&run)), OTHER_KEY.to_string());
}

#[test]
fn run_that_is_whole_and_out_of_order_is_refused_by_name() {
    let (_home, folder) = folder();
    let hashes = sorted(2);
    let mut writer = Writer::create(&folder, RunId(1), digest("key"), Filter::new(0)).unwrap();
    writer.push(&hashes[1]).unwrap();
    assert!(matches!(writer.push(&hashes[1]), Err(StoreError::Corrupt { .. })), "twice");
    let refused = writer.push(&hashes[0]).unwrap_err();
    assert_eq!(refused.to_string(), UNSORTED.to_string());
    writer.last = None;
    writer.push(&hashes[0]).unwrap();
    let run = writer.finish().unwrap();
    assert_eq!(refusal(&folder, &registered(&run)), UNSORTED.to_string());
}

#[test]
fn octets_that_changed_after_the_start_do_not_pass_on() {
    let (_home, folder) = folder();
    let run = written(&folder, 1, "key", &sorted(1000));
    let mut octets = fs::read(run.path()).unwrap();
    octets[PAGE_LEN + 3] ^= 1;
    fs::write(run.path(), octets).unwrap();
    let mut entries = run.entries();
    let refused = std::iter::from_fn(|| entries.next().transpose()).find_map(Result::err);
    assert_eq!(refused.unwrap().to_string(), CHANGED.to_string());
}

#[test]
fn unfinished_run_leaves_no_file() {
    let (_home, folder) = folder();
    let mut writer = Writer::create(&folder, RunId(1), digest("key"), Filter::new(0)).unwrap();
    sorted(10_000).iter().for_each(|hash| writer.push(hash).unwrap());
    assert_eq!(folder.runs().unwrap(), [folder.place(RunId(1))]);
    drop(writer);
    assert_eq!(folder.runs().unwrap(), [] as [PathBuf; 0]);
}

#[test]
fn file_that_is_there_is_not_written_over() {
    let (_home, folder) = folder();
    fs::write(folder.place(RunId(1)), "there").unwrap();
    let refused = Writer::create(&folder, RunId(1), digest("key"), Filter::new(0)).err().unwrap();
    let there = matches!(&refused, StoreError::File { path, source }
        if *path == folder.place(RunId(1)) && source.kind() == ErrorKind::AlreadyExists);
    assert!(there, "{refused:?}");
    assert_eq!(fs::read(folder.place(RunId(1))).unwrap(), b"there");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bit_is_refused_wherever_it_is(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let (_home, folder) = folder();
        let run = written(&folder, 1, "key", &sorted(300));
        let mut octets = fs::read(run.path()).unwrap();
        let at = at.index(octets.len());
        octets[at] ^= 1 << bit;
        fs::write(run.path(), octets).unwrap();
        let refused = Run::open(&folder, &registered(&run)).err();
        prop_assert!(matches!(refused, Some(StoreError::Corrupt { .. })), "{:?}", refused);
    }
}
