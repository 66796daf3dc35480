//! The keys of a node, kept as files under its home (dir-spec 3, minion-spec 4.1).
//!
//! `identity.key` names the node for ever. Packet keys are called after the days between which they are valid, as in
//! `packet-2026-11-24-2026-12-24.key`. All are PKCS#8 in DER form. Link keys live in memory only (`net::tls`).

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rand::CryptoRng;

use crate::crypto::pk::{InvalidKey, PrivateKey};
use crate::directory::date::{format_date, midnight, parse_date};
use crate::store::StoreError;
use crate::store::db::private_folder;

/// Bits of new identity keys. Clients accept 2048 to 4096 (dir-spec 2).
const IDENTITY_BITS: u32 = 2048;
/// Bits of packet keys (minion-spec 3.2.1).
const PACKET_KEY_BITS: u32 = 2048;
/// How long an expired packet key still opens packets: what was built before it expired may arrive after.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// A start makes the next packet key when less than this part of the lifetime is left. Keys are made at starts only, and
/// reply blocks, which live for a week, use no mix whose key ends before they do: a key of 30 days must not be used up.
const RENEWED_AT: u32 = 2;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Why the keys could not be had. The operator must mend the folder.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file or folder cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A key file does not hold a key.
    #[error("{} holds no usable key", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: InvalidKey,
    },
    /// Others can read the folder.
    #[error(transparent)]
    Folder(#[from] StoreError),
    /// Others can read a key file.
    #[error("{} can be read by others; take their permission away (chmod 600)", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
    },
    /// A key could not be made.
    #[error("making a key")]
    Generation(#[source] InvalidKey),
    /// The clock shows a time that no calendar has.
    #[error("the clock shows no date of the calendar")]
    Clock,
}

/// A packet key and the days between which descriptors name it.
#[derive(Debug)]
pub struct DatedKey {
    /// The key.
    pub key: PrivateKey,
    /// Midnight of the first day.
    pub valid_after: SystemTime,
    /// The midnight that ends it.
    pub valid_until: SystemTime,
    path: PathBuf,
}

/// All keys of a node.
#[derive(Debug)]
pub struct NodeKeys {
    /// Names the node and signs for it.
    pub identity: PrivateKey,
    /// The newest first; the first is the one that the descriptor names. Never empty.
    pub packet_keys: Vec<DatedKey>,
    /// Keys that were erased at this start, with them their replay logs are to go.
    pub erased: Vec<PrivateKey>,
}

impl NodeKeys {
    /// Loads the keys under `folder`, makes what is missing or, of packet keys, soon will be, and erases packet keys whose
    /// time and overlap are over.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load_or_make(
        folder: &Path,
        lifetime: Duration,
        now: SystemTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, KeyError> {
        private_folder(folder)?;
        let identity = load_or_make_identity(folder, rng)?;
        let mut packet_keys = load_packet_keys(folder)?;
        let left = (lifetime / RENEWED_AT).max(OVERLAP);
        let current = |key: &DatedKey| key.valid_after <= now && now + left < key.valid_until;
        if !packet_keys.iter().any(current) {
            packet_keys.push(make_packet_key(folder, lifetime, now, rng)?);
        }
        packet_keys.sort_by_key(|key| std::cmp::Reverse(key.valid_until));
        let (packet_keys, old): (_, Vec<_>) = packet_keys.into_iter().partition(|key| now < key.valid_until + OVERLAP);
        let erased = old.into_iter().map(erase).collect::<Result<_, _>>()?;
        Ok(Self { identity, packet_keys, erased })
    }
}

/// Loads the identity key under `folder`, or makes one.
///
/// # Errors
/// [`KeyError`].
pub fn load_or_make_identity(folder: &Path, rng: &mut impl CryptoRng) -> Result<PrivateKey, KeyError> {
    private_folder(folder)?;
    let path = folder.join("identity.key");
    if path.exists() {
        return read_key(&path);
    }
    let key = PrivateKey::generate(IDENTITY_BITS, rng).map_err(KeyError::Generation)?;
    write_key(&path, &key)?;
    Ok(key)
}

fn load_packet_keys(folder: &Path) -> Result<Vec<DatedKey>, KeyError> {
    let at_folder = |source| KeyError::File { path: folder.to_owned(), source };
    let mut keys = Vec::new();
    for entry in fs::read_dir(folder).map_err(at_folder)? {
        let path = entry.map_err(at_folder)?.path();
        if let Some((valid_after, valid_until)) = dates_of(&path) {
            keys.push(DatedKey { key: read_key(&path)?, valid_after, valid_until, path });
        }
    }
    Ok(keys)
}

/// The dates in the name of a packet key file.
fn dates_of(path: &Path) -> Option<(SystemTime, SystemTime)> {
    let name = path.file_name()?.to_str()?;
    let dates = name.strip_prefix("packet-")?.strip_suffix(".key")?;
    let (from, until) = dates.split_at_checked("2026-11-24".len())?;
    let day = |text: &str| parse_date(&text.replace('-', "/"));
    Some((day(from)?, day(until.strip_prefix('-')?)?))
}

fn make_packet_key(
    folder: &Path,
    lifetime: Duration,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<DatedKey, KeyError> {
    let key = PrivateKey::generate(PACKET_KEY_BITS, rng).map_err(KeyError::Generation)?;
    let valid_after = midnight(now).ok_or(KeyError::Clock)?;
    // The first and the last day count in full: descriptors know dates only (dir-spec 2).
    let valid_until = midnight(valid_after + lifetime.max(DAY) + DAY).ok_or(KeyError::Clock)?;
    let day = |time| format_date(time).map(|date| date.replace('/', "-")).ok_or(KeyError::Clock);
    let path = folder.join(format!("packet-{}-{}.key", day(valid_after)?, day(valid_until)?));
    write_key(&path, &key)?;
    Ok(DatedKey { key, valid_after, valid_until, path })
}

fn erase(old: DatedKey) -> Result<PrivateKey, KeyError> {
    fs::remove_file(&old.path).map_err(|source| KeyError::File { path: old.path.clone(), source })?;
    Ok(old.key)
}

fn read_key(path: &Path) -> Result<PrivateKey, KeyError> {
    let at_path = |source| KeyError::File { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(at_path)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned() });
    }
    let der = zeroize::Zeroizing::new(fs::read(path).map_err(at_path)?);
    PrivateKey::from_der(&der).map_err(|source| KeyError::Invalid { path: path.to_owned(), source })
}

/// Writes to a temporary name first: a crash leaves the whole key or none.
fn write_key(path: &Path, key: &PrivateKey) -> Result<(), KeyError> {
    let write = || {
        let temporary = path.with_extension("new");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&key.to_pkcs8_der())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    };
    write().map_err(|source| KeyError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pk::PacketKey;

    fn made_in(folder: &Path, now: SystemTime) -> NodeKeys {
        NodeKeys::load_or_make(folder, 30 * DAY, now, &mut rand::rng()).unwrap()
    }

    #[test]
    fn keys_are_the_same_after_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("keys");
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY + DAY / 2;
        let first = made_in(&folder, now);
        let second = made_in(&folder, now + 3 * DAY);
        assert_eq!(first.identity.public_key(), second.identity.public_key());
        assert_eq!(second.packet_keys.len(), 1);
        assert_eq!(first.packet_keys[0].key.public_key(), second.packet_keys[0].key.public_key());
        assert_eq!(first.packet_keys[0].valid_until, second.packet_keys[0].valid_until);
    }

    #[test]
    fn old_packet_key_overlaps_with_the_new_and_is_then_erased() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("keys");
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let first = made_in(&folder, now).packet_keys[0].key.public_key();
        let overlapping = made_in(&folder, now + 30 * DAY + DAY / 2);
        assert_eq!(overlapping.packet_keys.len(), 2);
        assert_eq!(overlapping.packet_keys[1].key.public_key(), first);
        let later = made_in(&folder, now + 33 * DAY);
        assert_eq!(later.packet_keys.len(), 1);
        assert_eq!(later.erased[0].public_key(), first);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "identity and one packet key");
    }

    #[test]
    fn restart_in_the_second_half_makes_a_new_packet_key_beside_the_old() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("keys");
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let first = made_in(&folder, now);
        let on_day_14 = made_in(&folder, now + 14 * DAY);
        assert_eq!(on_day_14.packet_keys.len(), 1, "more than half is left");
        let on_day_16 = made_in(&folder, now + 16 * DAY);
        let [newest, oldest] = &on_day_16.packet_keys[..] else { panic!("both are loaded") };
        assert_eq!(oldest.key.public_key(), first.packet_keys[0].key.public_key());
        assert!(oldest.valid_until < newest.valid_until, "the first is the one that the descriptor names");
        assert_eq!(newest.valid_after, now + 16 * DAY);
        for dated in &on_day_16.packet_keys {
            assert_opens(dated);
        }
        assert_eq!(made_in(&folder, now + 16 * DAY).packet_keys.len(), 2, "the new one is new enough");
    }

    /// A packet built for the public key is opened by the loaded one.
    fn assert_opens(dated: &DatedKey) {
        let packet_key = PacketKey::new(&dated.key).unwrap();
        let sealed = dated.key.public_key().encrypt(b"subheader", &mut rand::rng()).unwrap();
        assert_eq!(packet_key.decrypt(sealed.as_slice().try_into().unwrap()).unwrap().as_slice(), b"subheader");
    }

    #[test]
    fn key_that_others_can_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("keys");
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        made_in(&folder, now);
        let path = folder.join("identity.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = NodeKeys::load_or_make(&folder, DAY, now, &mut rand::rng()).unwrap_err();
        assert!(matches!(refused, KeyError::Exposed { path: found } if found == path));
    }

    #[test]
    fn key_file_without_a_key_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("keys");
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        made_in(&folder, now);
        fs::write(folder.join("identity.key"), b"nonsense").unwrap();
        let refused = NodeKeys::load_or_make(&folder, DAY, now, &mut rand::rng()).unwrap_err();
        assert!(matches!(refused, KeyError::Invalid { source: InvalidKey::Encoding, .. }));
    }
}
