//! How directory servers agree on one directory: votes, their tabulation, the collecting of signatures (dir-spec 7).
//!
//! Pure functions over texts; who fetches and publishes them, and when, is decided above. A mix, a recommendation or a
//! version is taken when more than half of all voters want it. The reference is content with half when their number is
//! even, so that two halves of a clique could each carry its own will.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::CryptoRng;

use super::date;
use super::descriptor::Descriptor;
use super::fields::Unsignable;
use super::nickname::Nickname;
use super::signed::{
    self, Directory, DirectoryFields, InvalidDirectory, Signature, Status, Trust, Voter, rank, sorted_versions,
};
use crate::crypto::pk::PrivateKey;
use crate::crypto::{Digest, KeyId};

/// The time for which one directory is in force (dir-spec 4.1).
pub const DIRECTORY_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A descriptor that begins later than this after the directory is not listed (dir-spec 7.3).
const MAX_WAIT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The servers that vote, as all of them must know them (dir-spec 7.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clique {
    voters: BTreeSet<Voter>,
}

/// Why a vote does not count. Blames the server that cast it, or its settings.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidVote {
    /// Not a directory that one of the clique signed.
    #[error(transparent)]
    Directory(#[from] InvalidDirectory),
    /// A vote has one signature.
    #[error("signed by {count}; a vote has one signature")]
    Signatures {
        /// How many there are.
        count: usize,
    },
    /// Names other voters than we know.
    #[error("its voters are not ours")]
    Voters,
    /// For another day.
    #[error("not for the day that is voted on")]
    Day,
    /// The descriptors or versions are not in the order of dir-spec 4.1.
    #[error("not in the order of the specification")]
    Order,
}

/// A clique that nobody is in, or a server that is in it twice.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("a voting clique needs at least one server, and each only once")]
pub struct InvalidClique;

impl Clique {
    /// The clique of these servers.
    ///
    /// # Errors
    /// [`InvalidClique`] for nobody, or for one identity with two URLs.
    pub fn new(voters: impl IntoIterator<Item = Voter>) -> Result<Self, InvalidClique> {
        let voters: BTreeSet<_> = voters.into_iter().collect();
        let keys: BTreeSet<_> = voters.iter().map(|voter| voter.key_id).collect();
        if keys.is_empty() || keys.len() != voters.len() { Err(InvalidClique) } else { Ok(Self { voters }) }
    }

    /// Its members, sorted.
    pub fn voters(&self) -> impl Iterator<Item = &Voter> {
        self.voters.iter()
    }

    /// Whether `count` is more than half of the members, those who did not vote included.
    fn is_majority(&self, count: usize) -> bool {
        2 * count > self.voters.len()
    }

    /// Trusts what any one of them signed.
    fn any(&self) -> Trust {
        Trust::new(self.voters.iter().map(|voter| voter.key_id), 1).expect("at least one voter: Clique::new")
    }
}

/// What one server wants, checked to be worth counting.
#[derive(Clone, Debug)]
pub struct Vote {
    voter: KeyId,
    directory: Directory,
}

impl Vote {
    /// Reads a vote for the day that begins with `valid_after`.
    ///
    /// # Errors
    /// [`InvalidVote`] for each of the checks of dir-spec 7.3.
    pub fn parse(text: &str, clique: &Clique, valid_after: SystemTime, now: SystemTime) -> Result<Self, InvalidVote> {
        let directory = signed::read(text, &clique.any(), now)?;
        let head = directory.head();
        if head.status != Status::Vote {
            return Err(InvalidDirectory::NotVote.into());
        }
        let (signatures, _) = signed::trusted_signatures(directory.text(), &clique.any())?;
        let [signature] = &signatures[..] else {
            return Err(InvalidVote::Signatures { count: signatures.len() });
        };
        if !head.voters.iter().eq(&clique.voters) {
            return Err(InvalidVote::Voters);
        }
        if head.valid_after != valid_after || head.valid_until != valid_after + DIRECTORY_LIFETIME {
            return Err(InvalidVote::Day);
        }
        let in_order = |versions: &[String]| sorted_versions(versions) == versions;
        let ranked = directory.descriptors().is_sorted_by(|a, b| rank(a) <= rank(b));
        if !ranked || !in_order(&head.client_versions) || !in_order(&head.server_versions) {
            return Err(InvalidVote::Order);
        }
        Ok(Self { voter: signature.signer(), directory })
    }

    /// Who cast it.
    pub fn voter(&self) -> KeyId {
        self.voter
    }
}

/// What the clique agreed on: the consensus for the day that begins with `valid_after`, to be signed by each member.
/// Equal votes give equal results, in whatever order they come (dir-spec 7.3). Of two votes of one server the later in
/// `votes` is dropped.
///
/// # Errors
/// [`Unsignable::Date`] for a day outside the calendar.
pub fn tabulate(votes: &[Vote], clique: &Clique, valid_after: SystemTime) -> Result<DirectoryFields, Unsignable> {
    let valid_after = date::midnight(valid_after).ok_or(Unsignable::Date)?;
    let mut by_voter: BTreeMap<KeyId, &Directory> = BTreeMap::new();
    for vote in votes {
        by_voter.entry(vote.voter).or_insert(&vote.directory);
    }
    let directories: Vec<_> = by_voter.into_values().collect();
    let versions = |of: fn(&Directory) -> &[String]| {
        agreed(clique, directories.iter().map(|directory| of(directory).iter().cloned().collect()))
    };
    Ok(DirectoryFields {
        status: Status::Consensus,
        valid_after,
        valid_until: valid_after + DIRECTORY_LIFETIME,
        recommended: agreed(clique, directories.iter().map(|directory| directory.recommended().clone())),
        voters: clique.voters.iter().cloned().collect(),
        client_versions: versions(Directory::client_versions).into_iter().collect(),
        server_versions: versions(Directory::server_versions).into_iter().collect(),
        descriptors: listed(&directories, clique, valid_after),
    })
}

/// The items that more than half of the clique have in their sets.
fn agreed<T: Ord>(clique: &Clique, sets: impl Iterator<Item = BTreeSet<T>>) -> BTreeSet<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for item in sets.flatten() {
        *counts.entry(item).or_default() += 1;
    }
    counts.into_iter().filter(|(_, count)| clique.is_majority(*count)).map(|(item, _)| item).collect()
}

/// The descriptors of the mixes that more than half list, under one nickname each.
fn listed(directories: &[&Directory], clique: &Clique, valid_after: SystemTime) -> Vec<Arc<Descriptor>> {
    let identities =
        |directory: &&Directory| directory.descriptors().iter().map(|descriptor| descriptor.key_id()).collect();
    let wanted = agreed(clique, directories.iter().map(identities));
    let mut names: BTreeMap<KeyId, BTreeSet<Nickname>> = BTreeMap::new();
    let mut known: BTreeMap<KeyId, BTreeMap<Digest, &Arc<Descriptor>>> = BTreeMap::new();
    for descriptor in directories.iter().flat_map(|directory| directory.descriptors()) {
        names.entry(descriptor.key_id()).or_default().insert(descriptor.nickname().clone());
        known.entry(descriptor.key_id()).or_default().insert(descriptor.digest(), descriptor);
    }
    let one_name = |key_id: &KeyId| names.get(key_id).is_some_and(|names| names.len() == 1);
    let of_wanted = known.iter().filter(|(key_id, _)| wanted.contains(key_id) && one_name(key_id));
    of_wanted.flat_map(|(_, found)| in_force(found, valid_after)).collect()
}

/// Those of one mix's descriptors that are worth listing on that day.
fn in_force(found: &BTreeMap<Digest, &Arc<Descriptor>>, valid_after: SystemTime) -> Vec<Arc<Descriptor>> {
    let all = || found.values().map(|descriptor| descriptor.as_ref());
    found
        .values()
        .filter(|descriptor| descriptor.valid_until() > valid_after)
        .filter(|descriptor| descriptor.valid_after() <= valid_after + MAX_WAIT)
        .filter(|descriptor| !descriptor.is_superseded_by(all(), valid_after))
        .map(|descriptor| Arc::clone(descriptor))
        .collect()
}

/// What comes of collecting signatures (dir-spec 7.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collected {
    /// The own directory with all good signatures of the clique, sorted by signer.
    pub text: String,
    /// Who signed it.
    pub signers: BTreeSet<KeyId>,
    /// Which of the others, counted from zero, signed a different directory: the clique has come apart, and the operator
    /// should know. Those that are no directories at all are among them.
    pub different: Vec<usize>,
}

/// Adds to the own signed directory the signatures that others made of the same text.
///
/// # Errors
/// [`InvalidDirectory`] when the own directory is not signed by one of the clique.
pub fn collect_signatures(own: &str, others: &[&str], clique: &Clique) -> Result<Collected, InvalidDirectory> {
    let (own, body) = signed::trusted_signatures(own, &clique.any())?;
    let mut by_signer: BTreeMap<KeyId, Signature> = BTreeMap::new();
    let mut different = Vec::new();
    let mut keep = |signatures: Vec<Signature>| {
        for signature in signatures {
            by_signer.entry(signature.signer()).or_insert(signature);
        }
    };
    keep(own);
    for (index, other) in others.iter().enumerate() {
        match signed::trusted_signatures(other, &clique.any()) {
            Ok((signatures, same)) if same == body => keep(signatures),
            _ => different.push(index),
        }
    }
    let signatures: String = by_signer.values().map(Signature::text).collect();
    Ok(Collected { text: signatures + &body, signers: by_signer.into_keys().collect(), different })
}

/// Writes and signs the vote of one server, for the day in `wanted`; its voters are those of the clique.
///
/// # Errors
/// As [`DirectoryFields::sign`].
pub fn cast(
    wanted: &DirectoryFields,
    clique: &Clique,
    key: &PrivateKey,
    rng: &mut impl CryptoRng,
) -> Result<String, Unsignable> {
    let valid_after = date::midnight(wanted.valid_after).ok_or(Unsignable::Date)?;
    let vote = DirectoryFields {
        status: Status::Vote,
        valid_after,
        valid_until: valid_after + DIRECTORY_LIFETIME,
        voters: clique.voters.iter().cloned().collect(),
        ..wanted.clone()
    };
    vote.sign(key, rng)
}
