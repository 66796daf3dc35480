//! The private keys of a node, kept as files under its home (dir-spec 3, 6; minion-spec 4.1).
//!
//! `identity.key` names the node for ever. Packet keys are called after the days between which they are valid, as in
//! `packet-2026-11-24-2026-12-24.key`. All are PKCS#8 in DER form, or that sealed with a passphrase (`crypto::sealed`).
//! Beside each packet key lie its descriptor (`describe`) and what became of it (`publish`). Link keys live in memory only.
//!
//! The next packet key begins in the middle of the last one's life, so that two are valid at a time: reply blocks hold for
//! a week, and go through mixes only whose key ends after them. With one key after the other, no mix of a network that
//! began on one day could be used in the last week of its keys.
//!
//! A key goes in steps: the name, the octets, the file, and only then what is remembered of its packets. Whoever has no
//! key opens no packet, so at no point of it can a packet pass twice. When keys come and go is `rotation`'s.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::CryptoRng;
use tracing::info;
use zeroize::Zeroizing;

use super::config::KeysConfig;
use crate::crypto::pk::{InvalidKey, PrivateKey};
use crate::crypto::sealed::{self, Passphrase, SealError};
use crate::crypto::{Digest, KeyId};
use crate::directory::date::{format_date, midnight, parse_date};
use crate::store::StoreError;
use crate::store::db::{own_uid, private_folder};

/// Bits of packet keys (minion-spec 3.2.1).
const PACKET_KEY_BITS: u32 = 2048;
/// Bits that an identity key may have (dir-spec 3).
const IDENTITY_BITS: std::ops::RangeInclusive<u32> = 2048..=4096;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The shortest life of a key, as in the reference: descriptors know dates only.
const MIN_LIFETIME: Duration = DAY;
/// The longest. What is remembered of packets grows for as long.
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);
/// The overlap is between these, as in the reference.
const OVERLAP: std::ops::RangeInclusive<Duration> = Duration::from_secs(6 * 3600)..=Duration::from_secs(72 * 3600);
/// How far ahead keys must at least be made: directories take two days and a half to spread them (dir-spec 6).
const MIN_AHEAD: Duration = Duration::from_secs(60 * 3600);
/// Keys that may be there ahead at a time: directory servers keep 32 descriptors of a mix, old ones among them.
const MAX_AHEAD_KEYS: u32 = 24;
/// By how much a clock that was just met, or that just jumped, may be wrong without harm.
pub const CLOCK_MARGIN: Duration = Duration::from_secs(48 * 3600);

/// What keys are sealed for (`crypto::sealed`).
const IDENTITY: &str = "identity key";
const PACKET: &str = "packet key";

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
    /// A key file belongs to somebody else, who can read it whatever its mode says.
    #[error("{} belongs to user {owner}; it must belong to the user of this process (chown)", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A key file is a symbolic link, a pipe or the like: who can change where it leads can change the key.
    #[error("{} is no regular file; put the key itself there", path.display())]
    NoFile {
        /// Which.
        path: PathBuf,
    },
    /// A key does not open.
    #[error("{} cannot be opened", path.display())]
    Sealed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: SealError,
    },
    /// A key is sealed, and there is no passphrase.
    #[error("{} is sealed: set node.keys.sealed and give the passphrase", path.display())]
    NoPassphrase {
        /// Which.
        path: PathBuf,
    },
    /// Packet keys are there and the identity key is not. A new one would be another node.
    #[error("{} is gone, though packet keys are there; restore it, or move all keys away to become a new node", path.display())]
    IdentityGone {
        /// Where it should be.
        path: PathBuf,
    },
    /// A key could not be made.
    #[error("making a key")]
    Generation(#[source] InvalidKey),
    /// A key could not be sealed.
    #[error("sealing a key")]
    Sealing(#[source] SealError),
    /// The clock shows a time that no calendar has.
    #[error("the clock shows no date of the calendar")]
    Clock,
}

/// Settings of `[node.keys]` that make no sense. The operator must mend them.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidKeys {
    /// Too short or too long.
    #[error("node.keys.lifetime must be from 1 day to 366 days")]
    Lifetime,
    /// Too short or too long.
    #[error("node.keys.overlap must be from 6 hours to 72 hours")]
    Overlap,
    /// New keys would begin before clients can know them.
    #[error("node.keys.ahead must be at least 60 hours: new keys take so long to reach all clients")]
    AheadShort,
    /// Too many keys.
    #[error(
        "node.keys.ahead asks for more than {MAX_AHEAD_KEYS} keys at a time; make it shorter, or node.keys.lifetime longer"
    )]
    AheadLong,
    /// No size that clients take.
    #[error("node.keys.identity_bits must be from 2048 to 4096")]
    IdentityBits,
}

/// When keys begin, end and are made: what `[node.keys]` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPlan {
    /// Days between which descriptors name a key.
    lifetime: u32,
    /// Days from the beginning of one key to that of the next.
    every: u32,
    overlap: Duration,
    ahead: Duration,
    identity_bits: u32,
}

impl KeyPlan {
    /// Reads the settings.
    ///
    /// # Errors
    /// [`InvalidKeys`], which names the one that is wrong.
    pub fn new(config: &KeysConfig) -> Result<Self, InvalidKeys> {
        let KeysConfig { lifetime, overlap, ahead, identity_bits, .. } = *config;
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&lifetime) {
            return Err(InvalidKeys::Lifetime);
        }
        if !OVERLAP.contains(&overlap) {
            return Err(InvalidKeys::Overlap);
        }
        if ahead < MIN_AHEAD {
            return Err(InvalidKeys::AheadShort);
        }
        if !IDENTITY_BITS.contains(&identity_bits) {
            return Err(InvalidKeys::IdentityBits);
        }
        let hours = u32::try_from(lifetime.as_secs().div_ceil(HOUR.as_secs())).map_err(|_| InvalidKeys::Lifetime)?;
        let lifetime = hours.div_ceil(24);
        let every = (lifetime / 2).max(1);
        if ahead > DAY * every * MAX_AHEAD_KEYS {
            return Err(InvalidKeys::AheadLong);
        }
        Ok(Self { lifetime, every, overlap, ahead, identity_bits })
    }

    /// Until when a key opens packets.
    pub fn opens_until(&self, key: &DatedKey) -> SystemTime {
        key.valid_until + self.overlap
    }

    /// Whether the time of a key is over, so that it is to be erased. A clock that is not steady is believed with
    /// [`CLOCK_MARGIN`] only: a key that was erased while the clock was wrong would be missed when it is right again.
    pub fn is_over(&self, key: &DatedKey, now: SystemTime, steady: bool) -> bool {
        self.opens_until(key) + if steady { Duration::ZERO } else { CLOCK_MARGIN } <= now
    }

    /// When the next packet key is to begin, if it is to be made by now.
    fn next_beginning(&self, keys: &[Arc<DatedKey>], now: SystemTime) -> Result<Option<SystemTime>, KeyError> {
        let today = midnight(now).ok_or(KeyError::Clock)?;
        if !keys.iter().any(|key| key.valid_after <= now && now < key.valid_until) {
            return Ok(Some(today));
        }
        // Keys beyond are from a time when the clock was wrong. They hold nobody up.
        let horizon = now + self.ahead;
        let newest = keys.iter().map(|key| key.valid_after).filter(|begins| *begins <= horizon).max().unwrap_or(today);
        let next = (newest + DAY * self.every).max(today);
        Ok((next <= horizon).then_some(next))
    }
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
    id: Digest,
}

impl DatedKey {
    fn new(key: PrivateKey, valid_after: SystemTime, valid_until: SystemTime, path: PathBuf) -> Self {
        let KeyId(id) = key.public_key().key_id();
        Self { key, valid_after, valid_until, path, id: Digest(id) }
    }

    /// SHA-1 of the public half: names what is remembered of its packets.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Where the descriptor that names it is kept.
    pub(super) fn descriptor_file(&self) -> PathBuf {
        self.path.with_extension(DESCRIPTOR)
    }
}

/// Ends the names of packet keys.
const KEY: &str = "key";
/// Ends the names of descriptors, beside their keys.
pub(super) const DESCRIPTOR: &str = "descriptor";
/// Ends the names of notes of what became of descriptors.
pub(super) const PUBLISHED: &str = "published";
/// Ends the names of files that are being written.
const NEW: &str = "new";
/// Ends the names of keys that are being erased.
const GONE: &str = "gone";

/// The private keys of a node, in memory and on disk.
#[derive(Debug)]
pub struct Keyring {
    folder: PathBuf,
    passphrase: Option<Passphrase>,
    identity: PrivateKey,
    /// The first to begin comes first.
    packet_keys: Vec<Arc<DatedKey>>,
}

impl Keyring {
    /// Loads the keys under `folder`, makes the identity key if there is none, and finishes what a crash left half done.
    /// With a passphrase all keys are sealed with it; those that are not yet are from now on.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(
        folder: &Path,
        plan: &KeyPlan,
        passphrase: Option<Passphrase>,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, KeyError> {
        private_folder(folder)?;
        clear_leftovers(folder)?;
        let named = packet_key_files(folder)?;
        let identity = folder.join("identity.key");
        if !named.is_empty() && !exists(&identity)? {
            return Err(KeyError::IdentityGone { path: identity });
        }
        let identity = load_or_make_identity(folder, plan.identity_bits, passphrase.as_ref(), rng)?;
        let mut packet_keys = Vec::with_capacity(named.len());
        for PacketKeyFile { path, valid_after, valid_until } in named {
            let key = read_key(&path, PACKET, passphrase.as_ref(), rng)?;
            packet_keys.push(Arc::new(DatedKey::new(key, valid_after, valid_until, path)));
        }
        packet_keys.sort_by_key(|key| (key.valid_after, key.valid_until));
        Ok(Self { folder: folder.to_owned(), passphrase, identity, packet_keys })
    }

    /// Names the node and signs for it.
    pub fn identity(&self) -> &PrivateKey {
        &self.identity
    }

    /// All packet keys that are on disk; the first to begin comes first.
    pub fn packet_keys(&self) -> &[Arc<DatedKey>] {
        &self.packet_keys
    }

    /// Makes the packet keys that `plan` wants to be there at `now`, and says how many.
    ///
    /// # Errors
    /// [`KeyError`]; what was made before stays.
    pub fn make_ahead(&mut self, plan: &KeyPlan, now: SystemTime, rng: &mut impl CryptoRng) -> Result<usize, KeyError> {
        let mut made = 0;
        while let Some(valid_after) = plan.next_beginning(&self.packet_keys, now)? {
            let key = PrivateKey::generate(PACKET_KEY_BITS, rng).map_err(KeyError::Generation)?;
            let valid_until = valid_after + DAY * plan.lifetime;
            let day = |time| format_date(time).ok_or(KeyError::Clock);
            let path = self.folder.join(format!("packet-{}-{}.{KEY}", day(valid_after)?, day(valid_until)?));
            write_key(&path, &key, PACKET, self.passphrase.as_ref(), rng)?;
            self.packet_keys.push(Arc::new(DatedKey::new(key, valid_after, valid_until, path)));
            self.packet_keys.sort_by_key(|key| (key.valid_after, key.valid_until));
            made += 1;
        }
        Ok(made)
    }

    /// Erases a packet key, its descriptor with it. Nobody may open packets with it any more by then; forget what is
    /// remembered of its packets after.
    ///
    /// # Errors
    /// [`KeyError::File`]; try again.
    pub fn erase(&mut self, key: &Digest) -> Result<(), KeyError> {
        let Some(index) = self.packet_keys.iter().position(|dated| dated.id() == *key) else { return Ok(()) };
        let path = &self.packet_keys[index].path;
        let gone = path.with_extension(GONE);
        // By its name first: half a key would be an error at the next start. What an earlier try has done is done.
        if exists(path)? {
            rename(path, &gone)?;
        }
        if exists(&gone)? {
            shred(&gone)?;
        }
        for extension in [DESCRIPTOR, PUBLISHED] {
            remove(&path.with_extension(extension))?;
        }
        self.packet_keys.remove(index);
        Ok(())
    }
}

/// Loads the identity key under `folder`, or makes one of so many bits. With a passphrase it is sealed, or will be.
///
/// # Errors
/// [`KeyError`].
pub fn load_or_make_identity(
    folder: &Path,
    bits: u32,
    passphrase: Option<&Passphrase>,
    rng: &mut impl CryptoRng,
) -> Result<PrivateKey, KeyError> {
    private_folder(folder)?;
    let path = folder.join("identity.key");
    if exists(&path)? {
        return read_key(&path, IDENTITY, passphrase, rng);
    }
    let key = PrivateKey::generate(bits, rng).map_err(KeyError::Generation)?;
    write_key(&path, &key, IDENTITY, passphrase, rng)?;
    // Whoever starts a program in another folder than before would be somebody else without a word.
    info!(path = %path.display(), "there was no identity key here: a new one is made, and with it a new identity");
    Ok(key)
}

/// A packet key by the name of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PacketKeyFile {
    pub(super) path: PathBuf,
    pub(super) valid_after: SystemTime,
    pub(super) valid_until: SystemTime,
}

/// The packet keys under `folder`, not opened.
pub(super) fn packet_key_files(folder: &Path) -> Result<Vec<PacketKeyFile>, KeyError> {
    let mut found = Vec::new();
    for path in files(folder)? {
        if let Some((valid_after, valid_until)) = dates_of(&path) {
            found.push(PacketKeyFile { path, valid_after, valid_until });
        }
    }
    Ok(found)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, KeyError> {
    let at_folder = |source| KeyError::File { path: folder.to_owned(), source };
    let entries = fs::read_dir(folder).map_err(at_folder)?;
    entries.map(|entry| Ok(entry.map_err(at_folder)?.path())).collect()
}

/// The dates in the name of a packet key file.
fn dates_of(path: &Path) -> Option<(SystemTime, SystemTime)> {
    let name = path.file_name()?.to_str()?;
    let dates = name.strip_prefix("packet-")?.strip_suffix(".key")?;
    let (from, until) = dates.split_at_checked("2026-11-24".len())?;
    let (from, until) = (parse_date(from)?, parse_date(until.strip_prefix('-')?)?);
    (from < until).then_some((from, until))
}

/// Finishes what a crash interrupted: keys half written were never used, keys half erased are to go.
fn clear_leftovers(folder: &Path) -> Result<(), KeyError> {
    for path in files(folder)? {
        let ends = |extension: &str| path.extension().is_some_and(|found| found == extension);
        if ends(NEW) || ends(GONE) {
            shred(&path)?;
        } else if (ends(DESCRIPTOR) || ends(PUBLISHED)) && !exists(&path.with_extension(KEY))? {
            remove(&path)?;
        }
    }
    Ok(())
}

fn read_key(
    path: &Path,
    purpose: &str,
    passphrase: Option<&Passphrase>,
    rng: &mut impl CryptoRng,
) -> Result<PrivateKey, KeyError> {
    let at_path = |source| KeyError::File { path: path.to_owned(), source };
    let found = fs::symlink_metadata(path).map_err(at_path)?;
    if !found.is_file() {
        return Err(KeyError::NoFile { path: path.to_owned() });
    }
    if found.uid() != own_uid() {
        return Err(KeyError::Foreign { path: path.to_owned(), owner: found.uid() });
    }
    if found.mode() & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned() });
    }
    let octets = Zeroizing::new(fs::read(path).map_err(at_path)?);
    let parse =
        |der: &[u8]| PrivateKey::from_der(der).map_err(|source| KeyError::Invalid { path: path.to_owned(), source });
    match (sealed::is_sealed(&octets), passphrase) {
        (false, None) => parse(&octets),
        (true, None) => Err(KeyError::NoPassphrase { path: path.to_owned() }),
        (true, Some(passphrase)) => {
            let opened = sealed::open(&octets, purpose, passphrase);
            parse(&opened.map_err(|source| KeyError::Sealed { path: path.to_owned(), source })?)
        }
        (false, Some(_)) => {
            let key = parse(&octets)?;
            write_key(path, &key, purpose, passphrase, rng)?;
            info!(file = %path.display(), "a private key that was not sealed is sealed from now on");
            Ok(key)
        }
    }
}

fn write_key(
    path: &Path,
    key: &PrivateKey,
    purpose: &str,
    passphrase: Option<&Passphrase>,
    rng: &mut impl CryptoRng,
) -> Result<(), KeyError> {
    let der = key.to_pkcs8_der();
    let octets = match passphrase {
        None => der,
        Some(passphrase) => Zeroizing::new(sealed::seal(&der, purpose, passphrase, rng).map_err(KeyError::Sealing)?),
    };
    // What the file held until now is overwritten once the new one is in its place: it may be a key that was not sealed.
    let old = OpenOptions::new().write(true).open(path).ok();
    replace(path, &octets)?;
    old.map_or(Ok(()), |old| overwrite(&old)).map_err(|source| KeyError::File { path: path.to_owned(), source })
}

/// Writes a file for its owner alone, to another name first: a crash leaves the old one, or none, or the new one.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    // The whole name and more: what lies beside a key may be written at the same time.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".");
    temporary.push(NEW);
    let temporary = PathBuf::from(temporary);
    remove(&temporary)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|source| KeyError::File { path: path.to_owned(), source })?;
    rename(&temporary, path)
}

fn rename(from: &Path, to: &Path) -> Result<(), KeyError> {
    let renamed = fs::rename(from, to).and_then(|()| sync_folder(to));
    renamed.map_err(|source| KeyError::File { path: from.to_owned(), source })
}

/// Overwrites a file and removes it. (What a file system or a disk keeps of old blocks is out of reach.)
fn shred(path: &Path) -> Result<(), KeyError> {
    let shredded = OpenOptions::new().write(true).open(path).and_then(|file| overwrite(&file));
    shredded.map_err(|source| KeyError::File { path: path.to_owned(), source })?;
    remove(path)
}

fn overwrite(mut file: &File) -> io::Result<()> {
    let len = file.metadata()?.len();
    io::copy(&mut io::Read::take(io::repeat(0), len), &mut file)?;
    file.sync_all()
}

fn remove(path: &Path) -> Result<(), KeyError> {
    match fs::remove_file(path).and_then(|()| sync_folder(path)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KeyError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn sync_folder(of: &Path) -> io::Result<()> {
    of.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn exists(path: &Path) -> Result<bool, KeyError> {
    // A link that leads nowhere exists too, and is refused when it is read.
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(KeyError::File { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
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
        let of =
            |time: SystemTime| (time.duration_since(day(0)).unwrap().as_secs() / DAY.as_secs()).try_into().unwrap();
        keyring.packet_keys().iter().map(|key| (of(key.valid_after), of(key.valid_until))).collect()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = files(folder)
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
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
}
