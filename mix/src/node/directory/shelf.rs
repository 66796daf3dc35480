//! What a directory server has accepted: descriptors as files, and who owns which nickname.
//!
//! Under the home: `descriptors/` lists what is published, `pending/` what waits for the operator, one file for each
//! descriptor, called after its digest; `names` has a line `FINGERPRINT nickname` for each mix ever accepted. A nickname
//! stays with its identity key when all its descriptors have expired: else whoever waited for that day could take it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::crypto::{Digest, KeyId};
use crate::directory::descriptor::DESCRIPTOR_LIMITS;
use crate::directory::{Descriptor, InvalidDescriptor, Nickname};

/// Descriptors of one mix that are kept at a time: two weeks of keys in advance, changed a few times (dir-spec 6).
const MAX_PER_MIX: usize = 32;
/// Descriptors of unknown mixes that wait for the operator.
const MAX_PENDING: usize = 256;

/// Who is listed without asking.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    /// Everyone.
    pub(super) accept_unknown: bool,
    /// These.
    pub(super) approved: BTreeSet<KeyId>,
    /// As many mixes as this, and no more.
    pub(super) max_mixes: usize,
}

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is listed from now on.
    Accepted,
    /// It was listed before.
    Known,
    /// It waits for the operator.
    Waiting,
}

/// Why an upload was refused. The words go to the uploader.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Not a descriptor, or one that was tampered with.
    #[error("The descriptor is invalid: {0}.")]
    Invalid(#[from] InvalidDescriptor),
    /// Too late.
    #[error("The descriptor has expired; perhaps a clock is wrong.")]
    Expired,
    /// Somebody else has the nickname.
    #[error("The nickname belongs to another identity key.")]
    NicknameTaken,
    /// The mix has another nickname.
    #[error("This identity key has another nickname.")]
    Renamed,
    /// The mix published too much.
    #[error("Too many descriptors of this mix are in force.")]
    TooMany,
    /// The directory lists as many mixes as its operator wants, or too many wait.
    #[error("The directory is full.")]
    Full,
    /// The disk failed. Not the uploader's fault.
    #[error("The directory server has a fault; try again later.")]
    Storage(#[from] ShelfError),
}

/// A file or folder that cannot be used. The operator must mend it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct ShelfError {
    /// Which.
    pub path: PathBuf,
    /// What the system says, or what is wrong with the content.
    pub why: io::Error,
}

/// The files, and what is in them.
#[derive(Debug)]
pub(super) struct Shelf {
    home: PathBuf,
    policy: Policy,
    names: BTreeMap<KeyId, Nickname>,
    listed: BTreeMap<Digest, Arc<Descriptor>>,
    pending: BTreeMap<Digest, Arc<Descriptor>>,
}

impl Shelf {
    /// Opens the shelf under `home`, makes what is missing, and lists what waited and is now approved.
    pub(super) fn open(home: &Path, policy: Policy, now: SystemTime) -> Result<Self, ShelfError> {
        for folder in [home.to_owned(), home.join(LISTED), home.join(PENDING)] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(|why| ShelfError { path: folder, why })?;
        }
        let mut shelf = Self {
            names: read_names(&home.join(NAMES))?,
            listed: read_descriptors(&home.join(LISTED))?,
            pending: read_descriptors(&home.join(PENDING))?,
            home: home.to_owned(),
            policy,
        };
        // The operator may have moved a file there by hand: that is an approval too.
        let by_hand: Vec<_> = shelf.listed.values().cloned().collect();
        for descriptor in by_hand {
            if shelf.may_own(&descriptor).is_err() {
                let path = shelf.path(LISTED, descriptor.digest());
                return Err(invalid(&path, "its nickname and its identity key belong to other mixes"));
            }
            shelf.remember(&descriptor)?;
        }
        shelf.promote()?;
        shelf.prune(now)?;
        Ok(shelf)
    }

    /// Judges an uploaded text, and keeps it durably when it is good.
    pub(super) fn take(&mut self, text: &str, now: SystemTime) -> Result<Verdict, Refusal> {
        let descriptor = Descriptor::parse(text)?;
        descriptor.check_published(now)?;
        if descriptor.is_expired_at(now) {
            return Err(Refusal::Expired);
        }
        self.may_own(&descriptor)?;
        let digest = descriptor.digest();
        if self.listed.contains_key(&digest) {
            return Ok(Verdict::Known);
        }
        self.prune(now)?;
        if self.is_known(&descriptor) {
            return self.list(Arc::new(descriptor), now);
        }
        if self.pending.contains_key(&digest) {
            return Ok(Verdict::Waiting);
        }
        if self.pending.len() >= MAX_PENDING {
            return Err(Refusal::Full);
        }
        write_durably(&self.path(PENDING, digest), descriptor.text().as_bytes())?;
        self.pending.insert(digest, Arc::new(descriptor));
        Ok(Verdict::Waiting)
    }

    /// What the directory lists.
    pub(super) fn listed(&self) -> Vec<Arc<Descriptor>> {
        self.listed.values().cloned().collect()
    }

    /// Takes away what has expired or is superseded (dir-spec 7.1).
    pub(super) fn prune(&mut self, now: SystemTime) -> Result<(), ShelfError> {
        let all: Vec<_> = self.listed.values().cloned().collect();
        let superseded = |one: &Descriptor| one.is_superseded_by(all.iter().map(Arc::as_ref), now);
        let gone: Vec<_> = all.iter().filter(|one| superseded(one)).map(|one| one.digest()).collect();
        for digest in gone {
            remove(&self.path(LISTED, digest))?;
            self.listed.remove(&digest);
        }
        let expired: Vec<_> =
            self.pending.values().filter(|one| one.is_expired_at(now)).map(|one| one.digest()).collect();
        for digest in expired {
            remove(&self.path(PENDING, digest))?;
            self.pending.remove(&digest);
        }
        Ok(())
    }

    fn list(&mut self, descriptor: Arc<Descriptor>, now: SystemTime) -> Result<Verdict, Refusal> {
        let key_id = descriptor.key_id();
        let same_mix = self.listed.values().filter(|other| other.key_id() == key_id).count();
        if same_mix >= MAX_PER_MIX {
            return Err(Refusal::TooMany);
        }
        if !self.names.contains_key(&key_id) && self.names.len() >= self.policy.max_mixes {
            return Err(Refusal::Full);
        }
        // The name first: a crash in between leaves a name without descriptors, never the other way round.
        self.remember(&descriptor)?;
        write_durably(&self.path(LISTED, descriptor.digest()), descriptor.text().as_bytes())?;
        self.listed.insert(descriptor.digest(), descriptor);
        self.prune(now)?;
        Ok(Verdict::Accepted)
    }

    /// Lists what waited and need not wait any more.
    fn promote(&mut self) -> Result<(), ShelfError> {
        let waiting: Vec<_> = self.pending.values().filter(|one| self.is_known(one)).cloned().collect();
        for descriptor in waiting {
            let digest = descriptor.digest();
            if self.may_own(&descriptor).is_ok() {
                self.remember(&descriptor)?;
                write_durably(&self.path(LISTED, digest), descriptor.text().as_bytes())?;
                self.listed.insert(digest, descriptor);
            }
            remove(&self.path(PENDING, digest))?;
            self.pending.remove(&digest);
        }
        Ok(())
    }

    fn is_known(&self, descriptor: &Descriptor) -> bool {
        let key_id = descriptor.key_id();
        self.policy.accept_unknown || self.names.contains_key(&key_id) || self.policy.approved.contains(&key_id)
    }

    /// A nickname never changes hands, and a mix never changes its nickname (dir-spec 3.1).
    fn may_own(&self, descriptor: &Descriptor) -> Result<(), Refusal> {
        let (key_id, nickname) = (descriptor.key_id(), descriptor.nickname());
        match self.names.get(&key_id) {
            Some(own) if own == nickname => Ok(()),
            Some(_) => Err(Refusal::Renamed),
            None if self.names.values().any(|other| other == nickname) => Err(Refusal::NicknameTaken),
            None => Ok(()),
        }
    }

    fn remember(&mut self, descriptor: &Descriptor) -> Result<(), ShelfError> {
        if self.names.insert(descriptor.key_id(), descriptor.nickname().clone()).is_some() {
            return Ok(());
        }
        let line = |(key_id, nickname): (&KeyId, &Nickname)| format!("{key_id} {nickname}\n");
        let lines: String = self.names.iter().map(line).collect();
        let written = write_durably(&self.home.join(NAMES), lines.as_bytes());
        if written.is_err() {
            self.names.remove(&descriptor.key_id());
        }
        written
    }

    fn path(&self, folder: &str, digest: Digest) -> PathBuf {
        self.home.join(folder).join(digest.to_string())
    }
}

const LISTED: &str = "descriptors";
const PENDING: &str = "pending";
const NAMES: &str = "names";
/// Ends the names of files that are being written.
const UNFINISHED: &str = "unfinished";

fn invalid(path: &Path, why: &str) -> ShelfError {
    ShelfError { path: path.to_owned(), why: io::Error::new(io::ErrorKind::InvalidData, why) }
}

fn read_names(path: &Path) -> Result<BTreeMap<KeyId, Nickname>, ShelfError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(why) => return Err(ShelfError { path: path.to_owned(), why }),
    };
    let entry = |line: &str| {
        let (fingerprint, nickname) = line.split_once(' ')?;
        Some((KeyId::from_fingerprint(fingerprint)?, nickname.trim().parse().ok()?))
    };
    text.lines().map(|line| entry(line).ok_or_else(|| invalid(path, "a line is not FINGERPRINT nickname"))).collect()
}

fn read_descriptors(folder: &Path) -> Result<BTreeMap<Digest, Arc<Descriptor>>, ShelfError> {
    let at_folder = |why| ShelfError { path: folder.to_owned(), why };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(at_folder)? {
        let path = entry.map_err(at_folder)?.path();
        if path.extension().is_some_and(|extension| extension == UNFINISHED) {
            remove(&path)?;
            continue;
        }
        let mut text = String::new();
        let at_file = |why| ShelfError { path: path.clone(), why };
        let limit = DESCRIPTOR_LIMITS.len as u64 + 1;
        File::open(&path).map_err(at_file)?.take(limit).read_to_string(&mut text).map_err(at_file)?;
        let descriptor = Descriptor::parse(&text).map_err(|why| invalid(&path, &why.to_string()))?;
        if path.file_name().is_none_or(|name| *name != *descriptor.digest().to_string()) {
            return Err(invalid(&path, "must be called after the digest of its descriptor"));
        }
        found.insert(descriptor.digest(), Arc::new(descriptor));
    }
    Ok(found)
}

/// Writes a file so that after a crash it is there whole or not at all.
fn write_durably(path: &Path, content: &[u8]) -> Result<(), ShelfError> {
    let unfinished = path.with_extension(UNFINISHED);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        // The rename is durable when the folder is.
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(|why| ShelfError { path: path.to_owned(), why })
}

fn remove(path: &Path) -> Result<(), ShelfError> {
    match fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(ShelfError { path: path.to_owned(), why }),
        _ => Ok(()),
    }
}
