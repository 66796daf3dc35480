use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::crypto::pk::PacketKey;

fn day(days: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY + days * DAY
}

fn plan() -> KeyPlan {
    KeyPlan::new(&KeysConfig::default()).unwrap()
}

fn opened(folder: &Path, passphrase: Option<&str>) -> Result<Keyring, KeyError> {
    let passphrase = passphrase.and_then(|text| Passphrase::new(text.into()));
    Keyring::open(folder, &plan(), passphrase, &mut rand::rng())
}

fn made_in(folder: &Path, now: SystemTime) -> Keyring {
    let mut keyring = opened(folder, None).unwrap();
    keyring.make_ahead(&plan(), now, &mut rand::rng()).unwrap();
    keyring
}

/// First and last day of each key.
fn days(keyring: &Keyring) -> Vec<(u32, u32)> {
    let of = |time: SystemTime| (time.duration_since(day(0)).unwrap().as_secs() / DAY.as_secs()).try_into().unwrap();
    keyring.packet_keys().iter().map(|key| (of(key.valid_after), of(key.valid_until))).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        files(folder).unwrap().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("keys");
    (home, folder)
}

#[test]
fn keys_are_the_same_after_a_restart() {
    let (_home, folder) = folder();
    let first = made_in(&folder, day(0) + DAY / 2);
    let second = made_in(&folder, day(0) + DAY / 2);
    assert_eq!(first.identity().public_key(), second.identity().public_key());
    assert_eq!(days(&second), [(0, 30)]);
    assert_eq!(first.packet_keys()[0].id(), second.packet_keys()[0].id());
}

#[test]
fn next_key_begins_in_the_middle_of_the_last_and_is_made_two_weeks_before() {
    let (_home, folder) = folder();
    assert_eq!(days(&made_in(&folder, day(0) + DAY / 2)), [(0, 30)]);
    assert_eq!(days(&made_in(&folder, day(1) - HOUR)), [(0, 30)]);
    assert_eq!(days(&made_in(&folder, day(1))), [(0, 30), (15, 45)]);
    assert_eq!(days(&made_in(&folder, day(15))), [(0, 30), (15, 45)]);
    assert_eq!(days(&made_in(&folder, day(16))), [(0, 30), (15, 45), (30, 60)]);
}

#[test]
fn node_that_was_off_for_long_has_keys_from_today_on() {
    let (_home, folder) = folder();
    made_in(&folder, day(0));
    let later = made_in(&folder, day(100) + DAY / 2);
    assert_eq!(days(&later), [(0, 30), (100, 130)]);
    assert!(plan().is_over(&later.packet_keys()[0], day(100), false));
}

#[test]
fn keys_that_a_wrong_clock_made_hold_nobody_up() {
    let (_home, folder) = folder();
    made_in(&folder, day(0));
    // Two years ahead, and back.
    made_in(&folder, day(730));
    assert_eq!(days(&made_in(&folder, day(1))), [(0, 30), (15, 45), (730, 760)]);
    // Two days back from the first day.
    let before = made_in(&folder, day(0) - 2 * DAY);
    assert!(before.packet_keys().iter().any(|key| key.valid_after <= day(0) - 2 * DAY));
}

#[test]
fn at_each_hour_a_key_lasts_two_weeks_more_whatever_the_lifetime() {
    for lifetime in [1, 2, 7, 30, 45, 366] {
        let config = KeysConfig { lifetime: DAY * lifetime, ..KeysConfig::default() };
        let plan = KeyPlan::new(&config).unwrap();
        let mut keys: Vec<Arc<DatedKey>> = Vec::new();
        let key = PrivateKey::generate(1024, &mut rand::rng()).unwrap();
        for hour in 0..24 * 60 {
            let now = day(0) + HOUR * hour + HOUR / 2;
            while let Some(valid_after) = plan.next_beginning(&keys, now).unwrap() {
                let valid_until = valid_after + DAY * plan.lifetime;
                keys.push(Arc::new(DatedKey::new(key.clone(), valid_after, valid_until, PathBuf::new())));
            }
            let covered = |at: SystemTime| keys.iter().any(|key| key.valid_after <= at && at < key.valid_until);
            assert!((0..=14).all(|ahead| covered(now + DAY * ahead)), "lifetime {lifetime}, hour {hour}");
            let left = |key: &Arc<DatedKey>| key.valid_until.duration_since(now).ok();
            let longest = keys.iter().filter(|key| key.valid_after <= now).filter_map(left).max().unwrap();
            assert!(longest + DAY > DAY * lifetime / 2, "lifetime {lifetime}, hour {hour}: {longest:?}");
        }
        assert!(keys.len() <= 2 + 60_usize.div_ceil((lifetime as usize / 2).max(1)) + 14, "{}", keys.len());
    }
}

/// Makes keys hour by hour for `hours`, with the lifetime of days that `lifetime` gives for each, and tells of each hour
/// that has no key made in time: now, at the end of each of 14 days, and for reply blocks.
fn gaps(hours: u32, lifetime: impl Fn(u32) -> u32) -> Vec<String> {
    let (mut keys, mut made): (Vec<Arc<DatedKey>>, Vec<SystemTime>) = (Vec::new(), Vec::new());
    let key = PrivateKey::generate(1024, &mut rand::rng()).unwrap();
    let mut found = Vec::new();
    let (mut least, mut changed) = (u32::MAX, 0);
    for hour in 0..hours {
        let now = day(0) + HOUR * hour + HOUR / 2;
        let plan = KeyPlan::new(&KeysConfig { lifetime: DAY * lifetime(hour), ..KeysConfig::default() }).unwrap();
        while let Some(valid_after) = plan.next_beginning(&keys, now).unwrap() {
            let valid_until = valid_after + DAY * plan.lifetime;
            keys.push(Arc::new(DatedKey::new(key.clone(), valid_after, valid_until, PathBuf::new())));
            made.push(now);
        }
        // Clients know a key that was made 60 hours ago, or at the start.
        let known = |made: SystemTime, at: SystemTime| made + MIN_AHEAD <= at || made < day(0) + HOUR;
        let known_at = |at: SystemTime| {
            let mut dated = keys.iter().zip(&made);
            dated.any(|(key, made)| key.valid_after <= at && at < key.valid_until && known(*made, at))
        };
        let missing = (0..=14).filter(|ahead| !known_at(now + DAY * *ahead)).map(|ahead| format!("{ahead} days on"));
        found.extend(missing.map(|when| format!("hour {hour}: no key {when}")));
        if hour == 0 || lifetime(hour) != lifetime(hour - 1) {
            changed = hour;
        }
        // What the plan before has left may hold for three weeks.
        least = if hour > changed + 24 * 21 { lifetime(hour) } else { least.min(lifetime(hour)) };
        let left = |key: &Arc<DatedKey>| key.valid_until.duration_since(now).ok();
        let longest = keys.iter().filter(|key| key.valid_after <= now).filter_map(left).max();
        if longest.is_none_or(|longest| longest + DAY <= DAY * least / 2) {
            found.push(format!("hour {hour}: the last key ends in {longest:?}"));
        }
    }
    found
}

#[test]
fn at_each_hour_a_key_that_clients_know_is_valid_for_two_weeks_more_when_the_lifetime_changes() {
    for (before, after) in
        [(1, 30), (1, 2), (2, 366), (7, 30), (10, 45), (30, 366), (366, 30), (30, 1), (45, 2), (14, 15)]
    {
        for at in [0, 1, 5, 24 * 9 + 7, 24 * 20, 24 * 31 + 23] {
            let found = gaps(24 * 80, |hour| if hour <= at { before } else { after });
            assert!(found.is_empty(), "{before} days, after hour {at} {after}: {found:#?}");
        }
    }
    let found = gaps(24 * 80, |hour| if hour / 30 % 2 == 0 { 1 } else { 30 });
    assert!(found.is_empty(), "to and fro: {found:#?}");
}

#[test]
fn lifetime_that_is_raised_makes_a_long_key_behind_the_short_ones_before_they_end() {
    let (_home, folder) = folder();
    let plan = |lifetime| KeyPlan::new(&KeysConfig { lifetime: DAY * lifetime, ..KeysConfig::default() }).unwrap();
    let mut keyring = opened(&folder, None).unwrap();
    keyring.make_ahead(&plan(1), day(0) + HOUR, &mut rand::rng()).unwrap();
    assert_eq!(days(&keyring).last(), Some(&(14, 15)));
    keyring.make_ahead(&plan(30), day(1) + HOUR, &mut rand::rng()).unwrap();
    assert_eq!(days(&keyring)[14..], [(14, 15), (15, 45)]);
}

#[test]
fn hole_between_keys_of_a_wrong_clock_is_filled_before_it_comes() {
    let (_home, folder) = folder();
    let plan = KeyPlan::new(&KeysConfig { lifetime: DAY, ahead: MIN_AHEAD, ..KeysConfig::default() }).unwrap();
    let mut keyring = opened(&folder, None).unwrap();
    // The clock was ten days ahead; then the node was off until two days before that.
    for now in [day(0), day(10), day(8)] {
        keyring.make_ahead(&plan, now, &mut rand::rng()).unwrap();
    }
    assert_eq!(days(&keyring)[3..], [(8, 9), (9, 10), (10, 11), (11, 12), (12, 13)]);
}

#[test]
fn key_that_is_over_goes_with_its_descriptor_and_leaves_nothing() {
    let (_home, folder) = folder();
    made_in(&folder, day(0));
    let mut keyring = made_in(&folder, day(1));
    let first = Arc::clone(&keyring.packet_keys()[0]);
    fs::write(first.descriptor_file(), "text").unwrap();
    assert!(!plan().is_over(&first, day(31) - HOUR, true));
    assert!(plan().is_over(&first, day(31), true));
    assert!(!plan().is_over(&first, day(33) - HOUR, false), "a clock that may be wrong");
    assert!(plan().is_over(&first, day(33), false));
    keyring.erase(&first.id()).unwrap();
    assert_eq!(days(&keyring), [(15, 45)]);
    assert_eq!(names(&folder).len(), 2, "identity and one packet key: {:?}", names(&folder));
    keyring.erase(&first.id()).unwrap();
}

#[test]
fn erasing_that_a_crash_interrupted_is_finished_at_the_next_start() {
    let (_home, folder) = folder();
    made_in(&folder, day(0));
    let keyring = made_in(&folder, day(1));
    let [first, second] = keyring.packet_keys() else { panic!("two keys") };
    fs::write(first.descriptor_file(), "text").unwrap();
    // After the first step; then in the middle of the second.
    let gone = first.path.with_extension(GONE);
    fs::rename(&first.path, &gone).unwrap();
    OpenOptions::new().write(true).open(&gone).unwrap().write_all(&[0; 100]).unwrap();
    // And a key that was being written.
    fs::write(folder.join("packet-2030-01-01-2030-01-31.key.new"), b"half a key").unwrap();
    let again = opened(&folder, None).unwrap();
    assert_eq!(again.packet_keys().len(), 1);
    assert_eq!(again.packet_keys()[0].id(), second.id());
    assert_eq!(names(&folder).len(), 2, "{:?}", names(&folder));
}

#[test]
fn erasing_that_failed_half_way_can_be_tried_again() {
    let (_home, folder) = folder();
    let mut keyring = made_in(&folder, day(0));
    let first = Arc::clone(&keyring.packet_keys()[0]);
    let count = keyring.packet_keys().len();
    // As a disk leaves it that fails after the first step.
    fs::rename(&first.path, first.path.with_extension(GONE)).unwrap();
    keyring.erase(&first.id()).unwrap();
    assert_eq!(keyring.packet_keys().len(), count - 1);
    assert!(!first.path.with_extension(GONE).exists());
}

#[test]
fn erased_key_is_overwritten_before_it_is_removed() {
    let (home, folder) = folder();
    let mut keyring = made_in(&folder, day(0));
    let first = Arc::clone(&keyring.packet_keys()[0]);
    // A second name of the same octets shows what became of them.
    let witness = home.path().join("witness");
    fs::hard_link(&first.path, &witness).unwrap();
    keyring.erase(&first.id()).unwrap();
    let left = fs::read(&witness).unwrap();
    assert!(left.len() > 1000 && left.iter().all(|octet| *octet == 0));
}

#[test]
fn keys_are_sealed_in_place_when_a_passphrase_comes_and_open_with_it_alone() {
    let (home, folder) = folder();
    let plain = made_in(&folder, day(0));
    let witness = home.path().join("witness");
    fs::hard_link(folder.join("identity.key"), &witness).unwrap();
    let sealed = opened(&folder, Some("open sesame")).unwrap();
    assert_eq!(sealed.identity().public_key(), plain.identity().public_key());
    assert!(fs::read(&witness).unwrap().iter().all(|octet| *octet == 0), "the plain key is overwritten");
    for path in [folder.join("identity.key"), plain.packet_keys()[0].path.clone()] {
        assert!(sealed::is_sealed(&fs::read(&path).unwrap()), "{}", path.display());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let again = opened(&folder, Some("open sesame")).unwrap();
    assert_eq!(again.packet_keys()[0].id(), plain.packet_keys()[0].id());
    let wrong = opened(&folder, Some("open barley")).unwrap_err();
    assert!(matches!(wrong, KeyError::Sealed { source: SealError::Passphrase, .. }), "{wrong:?}");
    let none = opened(&folder, None).unwrap_err();
    assert!(matches!(none, KeyError::NoPassphrase { .. }), "{none:?}");
}

#[test]
fn sealed_keys_cannot_change_places() {
    let (_home, folder) = folder();
    let mut keyring = opened(&folder, Some("open sesame")).unwrap();
    keyring.make_ahead(&plan(), day(0), &mut rand::rng()).unwrap();
    fs::copy(&keyring.packet_keys()[0].path, folder.join("identity.key")).unwrap();
    let refused = opened(&folder, Some("open sesame")).unwrap_err();
    assert!(matches!(refused, KeyError::Sealed { source: SealError::Passphrase, .. }), "{refused:?}");
}

#[test]
fn key_that_is_written_now_is_sealed_too_and_opens_packets() {
    let (_home, folder) = folder();
    let mut keyring = opened(&folder, Some("open sesame")).unwrap();
    keyring.make_ahead(&plan(), day(1), &mut rand::rng()).unwrap();
    let again = opened(&folder, Some("open sesame")).unwrap();
    for dated in again.packet_keys() {
        assert!(sealed::is_sealed(&fs::read(&dated.path).unwrap()));
        let packet_key = PacketKey::new(&dated.key).unwrap();
        let block = dated.key.public_key().encrypt(b"subheader", &mut rand::rng()).unwrap();
        assert_eq!(packet_key.decrypt(block.as_slice().try_into().unwrap()).unwrap().as_slice(), b"subheader");
    }
}

#[test]
fn key_that_others_can_read_is_refused() {
    let (_home, folder) = folder();
    made_in(&folder, day(0));
    let path = folder.join("identity.key");
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = opened(&folder, None).unwrap_err();
        assert!(matches!(refused, KeyError::Exposed { path: found } if found == path), "{mode:o}");
    }
}

#[test]
fn folder_that_others_can_enter_is_refused() {
    let (_home, folder) = folder();
    made_in(&folder, day(0));
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
    let refused = opened(&folder, None).unwrap_err();
    assert!(matches!(&refused, KeyError::Folder(StoreError::Folder { .. })), "{refused:?}");
    assert!(refused.to_string().contains("0750"), "{refused}");
}

#[test]
fn key_that_is_a_link_is_refused() {
    let (home, folder) = folder();
    made_in(&folder, day(0));
    let path = folder.join("identity.key");
    let elsewhere = home.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    let refused = opened(&folder, None).unwrap_err();
    assert!(matches!(refused, KeyError::NoFile { path: found } if found == path));
}

#[test]
fn key_of_somebody_else_is_refused() {
    if own_uid() != 0 {
        println!("only root can give files away: not tried");
        return;
    }
    let (_home, folder) = folder();
    made_in(&folder, day(0));
    let path = folder.join("identity.key");
    std::os::unix::fs::chown(&path, Some(1), None).unwrap();
    let refused = opened(&folder, None).unwrap_err();
    assert!(matches!(refused, KeyError::Foreign { path: found, owner: 1 } if found == path));
}

#[test]
fn key_file_without_a_key_is_refused() {
    let (_home, folder) = folder();
    made_in(&folder, day(0));
    fs::write(folder.join("identity.key"), b"nonsense").unwrap();
    let refused = opened(&folder, None).unwrap_err();
    assert!(matches!(refused, KeyError::Invalid { source: InvalidKey::Encoding, .. }));
}

#[test]
fn identity_that_is_gone_is_not_made_anew() {
    let (_home, folder) = folder();
    made_in(&folder, day(0));
    let path = folder.join("identity.key");
    fs::remove_file(&path).unwrap();
    let refused = opened(&folder, None).unwrap_err();
    assert!(matches!(refused, KeyError::IdentityGone { path: found } if found == path));
}

#[test]
fn settings_out_of_bounds_are_named() {
    let refused = |change: fn(&mut KeysConfig)| {
        let mut config = KeysConfig::default();
        change(&mut config);
        KeyPlan::new(&config).unwrap_err()
    };
    assert_eq!(refused(|keys| keys.lifetime = DAY - HOUR), InvalidKeys::Lifetime);
    assert_eq!(refused(|keys| keys.lifetime = 367 * DAY), InvalidKeys::Lifetime);
    assert_eq!(refused(|keys| keys.overlap = 5 * HOUR), InvalidKeys::Overlap);
    assert_eq!(refused(|keys| keys.overlap = 73 * HOUR), InvalidKeys::Overlap);
    assert_eq!(refused(|keys| keys.ahead = 59 * HOUR), InvalidKeys::AheadShort);
    assert_eq!(refused(|keys| keys.ahead = 361 * DAY), InvalidKeys::AheadLong);
    assert_eq!(refused(|keys| keys.identity_bits = 1024), InvalidKeys::IdentityBits);
    for error in [InvalidKeys::Lifetime, InvalidKeys::Overlap, InvalidKeys::AheadShort, InvalidKeys::AheadLong] {
        assert!(error.to_string().starts_with("node.keys."), "{error}");
    }
}
