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

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::CryptoRng;
use tracing::info;
use zeroize::Zeroizing;

use super::clock::CLOCK_MARGIN;
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

impl KeyError {
    /// Whether it is the passphrase that is wrong or missing. (Or a sealed file was changed: nobody can tell.)
    pub fn is_passphrase(&self) -> bool {
        matches!(self, Self::Sealed { source: SealError::Passphrase, .. } | Self::NoPassphrase { .. })
    }
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
    ///
    /// Looks at the keys that follow each other from now on without a hole. The next begins `every` days after the last of
    /// them, and no later than that many days before all of them have ended: keys that were made by a plan of shorter
    /// lives end before that. No two begin on one day. So at each time up to `ahead` a key is there.
    fn next_beginning(&self, keys: &[Arc<DatedKey>], now: SystemTime) -> Result<Option<SystemTime>, KeyError> {
        let today = midnight(now).ok_or(KeyError::Clock)?;
        let horizon = now + self.ahead;
        let (mut newest, mut covered) = (None, now);
        // Keys beyond the horizon, or a hole, are from a time when the clock was wrong. They hold nobody up.
        while let Some(key) = keys
            .iter()
            .filter(|key| key.valid_after <= covered.min(horizon) && now < key.valid_until)
            .max_by_key(|key| key.valid_after)
            .filter(|key| newest.is_none_or(|newest| newest < key.valid_after))
        {
            newest = Some(key.valid_after);
            let ends = keys.iter().filter(|other| other.valid_after <= key.valid_after).map(|other| other.valid_until);
            covered = ends.fold(covered, SystemTime::max);
        }
        let Some(newest) = newest else { return Ok(Some(today)) };
        let half = DAY * self.every;
        let next = (newest + half).min(covered - half).max(newest + DAY).max(today);
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
        erase_files(&self.packet_keys[index].path)?;
        self.packet_keys.remove(index);
        Ok(())
    }

    /// Erases the packet keys that begin after `now` and are not among those that have `begun` before the clock went back,
    /// and says their days.
    ///
    /// # Errors
    /// As [`Keyring::erase`].
    pub(super) fn discard_ahead(
        &mut self,
        now: SystemTime,
        begun: &BTreeSet<Digest>,
    ) -> Result<Vec<(SystemTime, SystemTime)>, KeyError> {
        let is_ahead = |key: &&Arc<DatedKey>| key.valid_after > now && !begun.contains(&key.id());
        let ahead: Vec<_> = self.packet_keys.iter().filter(is_ahead).cloned().collect();
        for key in &ahead {
            self.erase(&key.id())?;
        }
        Ok(ahead.iter().map(|key| (key.valid_after, key.valid_until)).collect())
    }
}

/// Removes the packet keys under `folder` that begin after `now`, with what lies beside them, and says their days. For a
/// node that does not run: nothing is opened, so no passphrase is needed.
///
/// # Errors
/// [`KeyError`].
pub fn discard_ahead(folder: &Path, now: SystemTime) -> Result<Vec<(SystemTime, SystemTime)>, KeyError> {
    let mut ahead = packet_key_files(folder)?;
    ahead.retain(|key| key.valid_after > now);
    ahead.sort_by_key(|key| (key.valid_after, key.valid_until));
    for key in &ahead {
        erase_files(&key.path)?;
    }
    Ok(ahead.into_iter().map(|key| (key.valid_after, key.valid_until)).collect())
}

/// Erases a packet key and what lies beside it.
fn erase_files(path: &Path) -> Result<(), KeyError> {
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
    Ok(())
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
mod tests;
