//! Directories: which mixes there are, and who vouches for it (dir-spec 4).
//!
//! Reads versions 0.2 (one signature) and 0.3 (many), writes 0.3. The reference takes a directory of version 0.3 whoever
//! signed it, or nobody; here the caller says whom it trusts, and a directory that too few of them signed is refused
//! before its descriptors are looked at. How directory servers agree is `vote`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use rand::CryptoRng;

use super::date;
use super::descriptor::{CLOCK_SKEW, Descriptor, IDENTITY_KEY_LEN, InvalidDescriptor};
use super::fields::Unsignable;
use super::info::{self, Document, InvalidInfo, Limits, Section, Writer};
use super::nickname::Nickname;
use super::value::{self, InvalidEntry, InvalidValue, any, maybe, required, to_base64, words};
use crate::crypto::pk::{PrivateKey, PublicKey};
use crate::crypto::{Digest, KeyId, sha1};

/// The version that is written.
const VERSION: &str = "0.3";
/// The version of before 0.0.8, with one signature.
const OLD_VERSION: &str = "0.2";

/// How much of a directory is read: room for 8000 mixes. The longest line lists the recommended ones.
pub const DIRECTORY_LIMITS: Limits = Limits { len: 16 * 1024 * 1024, lines: 512 * 1024, line_len: 256 * 1024 };

/// The most signatures of one directory: each costs a public operation, and more than these many servers do not vote.
const MAX_SIGNATURES: usize = 64;

/// Why a directory was refused. Blames its signers, or whoever changed it on the way.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidDirectory {
    /// Not of the exchange format.
    #[error(transparent)]
    Info(#[from] InvalidInfo),
    /// An entry or section that is missing, doubled or without meaning.
    #[error(transparent)]
    Entry(#[from] InvalidEntry),
    /// A mandatory section is not there.
    #[error("has no section {section}")]
    MissingSection {
        /// Which.
        section: &'static str,
    },
    /// A section that no signature covers.
    #[error("the section on line {line} stands where no signature covers it")]
    UnsignedSection {
        /// Where.
        line: usize,
    },
    /// Versions 0.2 and 0.3 are understood.
    #[error("directory version other than 0.2 and 0.3")]
    Version,
    /// Only directory servers use votes (dir-spec 4.1).
    #[error("a vote, not a directory for clients")]
    IsVote,
    /// Directory servers vote with votes only (dir-spec 7.3).
    #[error("not a vote")]
    NotVote,
    /// Ends before it begins.
    #[error("valid until a date that is not after the first")]
    NeverValid,
    /// Comes from a clock that is ahead.
    #[error("published in the future")]
    PublishedInFuture,
    /// Identity keys have 2048 to 4096 bits.
    #[error("directory identity key of {bits} bits; it must have 2048 to 4096")]
    IdentityKeySize {
        /// What was found.
        bits: u32,
    },
    /// Nobody signed.
    #[error("not signed by anyone")]
    Unsigned,
    /// More signatures than are checked.
    #[error("more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
    /// A trusted key signed another text than this.
    #[error("the signature of {signer} is one of another text")]
    Digest {
        /// Whose it claims to be.
        signer: KeyId,
    },
    /// The signature was not made by the key that it names.
    #[error("the signature that names {signer} is not its own")]
    Signature {
        /// Whose it claims to be.
        signer: KeyId,
    },
    /// Signed, but by too few of those who are trusted.
    #[error("signed by {signers} trusted directory servers; {needed} are needed")]
    Untrusted {
        /// How many trusted keys signed.
        signers: usize,
        /// How many must.
        needed: usize,
    },
    /// Lists a forged descriptor: a sign that the directory server fails or lies (dir-spec 2.3).
    #[error("descriptor on line {line}: {why}")]
    Descriptor {
        /// Where it begins.
        line: usize,
        /// Why.
        why: InvalidDescriptor,
    },
    /// One nickname for two identities, or two for one.
    #[error("nickname {nickname} and its identity key do not belong to each other alone")]
    NicknameConflict {
        /// Which.
        nickname: Nickname,
    },
}

/// Whose signatures count, and how many it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    signers: BTreeSet<KeyId>,
    threshold: usize,
}

/// A threshold that nobody can reach, or that everybody does.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error(
    "{threshold} signatures of {signers} trusted directory servers: must be at least one and no more than there are"
)]
pub struct InvalidThreshold {
    /// Signatures asked for.
    pub threshold: usize,
    /// Servers trusted.
    pub signers: usize,
}

impl Trust {
    /// Trusts what at least `threshold` of `signers` signed.
    ///
    /// # Errors
    /// [`InvalidThreshold`] for none, or more than there are.
    pub fn new(signers: impl IntoIterator<Item = KeyId>, threshold: usize) -> Result<Self, InvalidThreshold> {
        let signers: BTreeSet<_> = signers.into_iter().collect();
        if (1..=signers.len()).contains(&threshold) {
            Ok(Self { signers, threshold })
        } else {
            Err(InvalidThreshold { threshold, signers: signers.len() })
        }
    }

    /// Trusts what more than half of `signers` signed (dir-spec 8).
    ///
    /// # Errors
    /// [`InvalidThreshold`] when there are no signers.
    pub fn majority(signers: impl IntoIterator<Item = KeyId>) -> Result<Self, InvalidThreshold> {
        let signers: BTreeSet<_> = signers.into_iter().collect();
        let threshold = signers.len() / 2 + 1;
        Self::new(signers, threshold)
    }

    /// The trusted keys that signed `digest`, when they are enough.
    fn check(&self, signatures: &[Signature], digest: Digest) -> Result<BTreeSet<KeyId>, InvalidDirectory> {
        if signatures.is_empty() {
            return Err(InvalidDirectory::Unsigned);
        }
        let (mut signers, mut refusal) = (BTreeSet::new(), None);
        for signature in signatures {
            // Others are not looked at: anyone could add them on the way.
            if self.signers.contains(&signature.signer) && !signers.contains(&signature.signer) {
                match signature.check(digest) {
                    Ok(signer) => drop(signers.insert(signer)),
                    Err(why) => refusal = Some(why),
                }
            }
        }
        let untrusted = InvalidDirectory::Untrusted { signers: signers.len(), needed: self.threshold };
        if signers.len() >= self.threshold { Ok(signers) } else { Err(refusal.unwrap_or(untrusted)) }
    }
}

/// What a directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// What the directory servers agreed on: for clients.
    Consensus,
    /// What one of them wants: for the others.
    Vote,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Consensus => "consensus",
            Self::Vote => "vote",
        }
    }
}

/// A directory server that votes: its identity and where it publishes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Voter {
    /// The digest of its identity key.
    pub key_id: KeyId,
    /// The URL base, ending with a slash (dir-spec 5.1).
    pub url: String,
}

/// What a directory says of itself, before the descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: Status,
    pub(super) valid_after: SystemTime,
    pub(super) valid_until: SystemTime,
    pub(super) recommended: BTreeSet<Nickname>,
    pub(super) voters: Vec<Voter>,
    pub(super) client_versions: Vec<String>,
    pub(super) server_versions: Vec<String>,
}

/// A directory that trusted servers signed.
#[derive(Clone, Debug)]
pub struct Directory {
    text: String,
    signers: BTreeSet<KeyId>,
    head: Head,
    descriptors: Vec<Arc<Descriptor>>,
    skipped: Vec<(usize, InvalidDescriptor)>,
}

impl Directory {
    /// Reads a directory for clients: signed by those who are trusted, and no vote. Whether it is in force is asked with
    /// [`Directory::is_valid_at`]: yesterday's is better than none.
    ///
    /// Descriptors that are malformed are skipped and counted, so that no operator can take the directory from everyone;
    /// a forged one makes the whole directory invalid (dir-spec 2.3). The reference refuses both.
    ///
    /// # Errors
    /// [`InvalidDirectory`].
    pub fn parse(text: &str, trust: &Trust, now: SystemTime) -> Result<Self, InvalidDirectory> {
        match read(text, trust, now)? {
            directory if directory.head.status == Status::Consensus => Ok(directory),
            _ => Err(InvalidDirectory::IsVote),
        }
    }

    /// The midnight from which it is in force.
    pub fn valid_after(&self) -> SystemTime {
        self.head.valid_after
    }

    /// The midnight up to which it is in force.
    pub fn valid_until(&self) -> SystemTime {
        self.head.valid_until
    }

    /// Whether it is in force at `when`.
    pub fn is_valid_at(&self, when: SystemTime) -> bool {
        self.head.valid_after <= when && when < self.head.valid_until
    }

    /// The trusted keys that signed it.
    pub fn signers(&self) -> &BTreeSet<KeyId> {
        &self.signers
    }

    /// The directory servers that took part. Empty for version 0.2.
    pub fn voters(&self) -> &[Voter] {
        &self.head.voters
    }

    /// The nicknames that its signers hold to be reliable and trustworthy.
    pub fn recommended(&self) -> &BTreeSet<Nickname> {
        &self.head.recommended
    }

    /// Whether its signers hold the mix to be reliable and trustworthy.
    pub fn is_recommended(&self, descriptor: &Descriptor) -> bool {
        self.head.recommended.contains(descriptor.nickname())
    }

    /// The versions of the reference's client that are up to date.
    pub fn client_versions(&self) -> &[String] {
        &self.head.client_versions
    }

    /// The versions of the reference's server that are up to date.
    pub fn server_versions(&self) -> &[String] {
        &self.head.server_versions
    }

    /// All descriptors, in the order of the directory. A mix may have several.
    pub fn descriptors(&self) -> &[Arc<Descriptor>] {
        &self.descriptors
    }

    /// The descriptors that were left out: on which line each begins, and why.
    pub fn skipped(&self) -> &[(usize, InvalidDescriptor)] {
        &self.skipped
    }

    /// For each mix the descriptor that counts at `now`: of those that hold, the one published last (dir-spec 3.2).
    /// Sorted by nickname.
    pub fn live(&self, now: SystemTime) -> Vec<Arc<Descriptor>> {
        self.newest(|descriptor| descriptor.is_valid_at(now))
    }

    /// As [`Directory::live`], of those that hold all the time between the two.
    pub fn live_during(&self, from: SystemTime, until: SystemTime) -> Vec<Arc<Descriptor>> {
        self.newest(|descriptor| descriptor.is_valid_during(from, until))
    }

    /// The descriptor of `nickname` that counts at `now`.
    pub fn by_nickname(&self, nickname: &Nickname, now: SystemTime) -> Option<Arc<Descriptor>> {
        self.newest(|descriptor| descriptor.nickname() == nickname && descriptor.is_valid_at(now)).pop()
    }

    /// The canonical text, signatures included: what is stored and read again.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    fn newest(&self, wanted: impl Fn(&Descriptor) -> bool) -> Vec<Arc<Descriptor>> {
        let mut newest: BTreeMap<&Nickname, &Arc<Descriptor>> = BTreeMap::new();
        for descriptor in self.descriptors.iter().filter(|descriptor| wanted(descriptor)) {
            let kept = newest.entry(descriptor.nickname()).or_insert(descriptor);
            // Two published in one second: the digest decides, so that all clients decide alike.
            if (descriptor.published(), descriptor.digest()) > (kept.published(), kept.digest()) {
                *kept = descriptor;
            }
        }
        newest.into_values().cloned().collect()
    }
}

/// Reads a directory or vote that `trust` is satisfied with.
pub(super) fn read(text: &str, trust: &Trust, now: SystemTime) -> Result<Directory, InvalidDirectory> {
    let document = Document::read(text, &DIRECTORY_LIMITS)?;
    let text = document.as_str();
    let (front, servers) = text.split_at(start_of(text, "[Server]").unwrap_or(text.len()));
    let sections = info::sections(front, 1)?;
    let (signers, head) = if text.starts_with("[Directory]\n") {
        let signers = old_signatures(&document, &sections, trust)?;
        (signers, old_head(&sections, now)?)
    } else {
        let signers = trust.check(&signatures(&sections)?, body_digest(text)?)?;
        (signers, head(&sections)?)
    };
    if head.valid_until <= head.valid_after {
        return Err(InvalidDirectory::NeverValid);
    }
    let (descriptors, skipped) = descriptors(servers, front.lines().count() + 1, now)?;
    check_nicknames(&descriptors)?;
    Ok(Directory { signers, head, descriptors, skipped, text: document.into_string() })
}

/// Where the first line equal to `header` begins.
fn start_of(canonical: &str, header: &str) -> Option<usize> {
    let mut start = 0;
    for line in canonical.split_inclusive('\n') {
        if line.trim_end() == header {
            return Some(start);
        }
        start += line.len();
    }
    None
}

/// The part of a canonical directory that is signed: all from `Directory-Info` on.
pub(super) fn body(canonical: &str) -> Result<&str, InvalidDirectory> {
    let missing = InvalidDirectory::MissingSection { section: INFO };
    let start = start_of(canonical, "[Directory-Info]").ok_or(missing)?;
    Ok(canonical.split_at(start).1)
}

fn body_digest(canonical: &str) -> Result<Digest, InvalidDirectory> {
    Ok(sha1(&[body(canonical)?.as_bytes()]))
}

const INFO: &str = "Directory-Info";
const SOFTWARE: &str = "Recommended-Software";
const SIGNATURE: &str = "Signed-Directory";

/// One signature of a directory, not checked yet.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    signer: KeyId,
    identity: PublicKey,
    digest: Digest,
    octets: Vec<u8>,
}

impl Signature {
    fn read(section: &Section<'_>, keys: [&'static str; 3]) -> Result<Self, InvalidDirectory> {
        let [identity, digest, signature] = keys;
        let identity = required(section, identity, value::key)?;
        if !IDENTITY_KEY_LEN.contains(&identity.modulus_len()) {
            return Err(InvalidDirectory::IdentityKeySize { bits: identity.bits() });
        }
        Ok(Self {
            signer: identity.key_id(),
            identity,
            digest: required(section, digest, value::digest)?,
            octets: required(section, signature, value::base64)?,
        })
    }

    /// Whose it claims to be.
    pub(super) fn signer(&self) -> KeyId {
        self.signer
    }

    fn check(&self, digest: Digest) -> Result<KeyId, InvalidDirectory> {
        let signer = self.signer;
        if self.digest != digest {
            return Err(InvalidDirectory::Digest { signer });
        }
        match self.identity.check_signature(&self.octets) {
            Ok(signed) if signed == digest.0 => Ok(signer),
            Ok(_) => Err(InvalidDirectory::Digest { signer }),
            Err(_) => Err(InvalidDirectory::Signature { signer }),
        }
    }

    /// The section that carries it.
    pub(super) fn text(&self) -> String {
        let mut writer = Writer::default();
        writer.section(SIGNATURE);
        let entries = [
            ("Directory-Identity", to_base64(&self.identity.to_der())),
            ("Directory-Digest", to_base64(&self.digest.0)),
            ("Directory-Signature", to_base64(&self.octets)),
        ];
        entries.iter().for_each(|(key, value)| writer.entry(key, value).expect("base64 fits a line"));
        writer.finish()
    }

    /// Signs the body of a directory.
    pub(super) fn make(body: &str, key: &PrivateKey, rng: &mut impl CryptoRng) -> Result<Self, Unsignable> {
        let digest = sha1(&[body.as_bytes()]);
        let identity = key.public_key();
        Ok(Self { signer: identity.key_id(), digest, octets: key.sign(&digest.0, rng)?, identity })
    }
}

/// The signatures of a directory of version 0.3, which stand before all that they cover.
fn signatures(sections: &[Section<'_>]) -> Result<Vec<Signature>, InvalidDirectory> {
    let before: Vec<_> = sections.iter().take_while(|section| section.name != INFO).collect();
    if let Some(other) = before.iter().find(|section| section.name != SIGNATURE) {
        return Err(InvalidDirectory::UnsignedSection { line: other.line });
    }
    if before.len() > MAX_SIGNATURES {
        return Err(InvalidDirectory::TooManySignatures);
    }
    let keys = ["Directory-Identity", "Directory-Digest", "Directory-Signature"];
    before.into_iter().map(|section| Signature::read(section, keys)).collect()
}

/// The signatures of canonical text that `trust` counts, and the body below them.
pub(super) fn trusted_signatures(text: &str, trust: &Trust) -> Result<(Vec<Signature>, String), InvalidDirectory> {
    let document = Document::read(text, &DIRECTORY_LIMITS)?;
    let body = body(document.as_str())?;
    let front = document.as_str().split_at(document.as_str().len() - body.len()).0;
    let mut signatures = signatures(&info::sections(front, 1)?)?;
    let signers = trust.check(&signatures, sha1(&[body.as_bytes()]))?;
    let digest = sha1(&[body.as_bytes()]);
    signatures.retain(|signature| signers.contains(&signature.signer) && signature.check(digest).is_ok());
    Ok((signatures, body.to_owned()))
}

fn section<'s, 'a>(sections: &'s [Section<'a>], name: &'static str) -> Result<&'s Section<'a>, InvalidDirectory> {
    let mut found = sections.iter().filter(|section| section.name == name);
    match (found.next(), found.next()) {
        (Some(section), None) => Ok(section),
        (None, _) => Err(InvalidDirectory::MissingSection { section: name }),
        (Some(_), Some(_)) => Err(InvalidEntry::DuplicateSection { section: name.to_owned() }.into()),
    }
}

fn head(sections: &[Section<'_>]) -> Result<Head, InvalidDirectory> {
    let info = section(sections, INFO)?;
    if required(info, "Version", any)? != VERSION {
        return Err(InvalidDirectory::Version);
    }
    let (client_versions, server_versions) = software(sections)?;
    Ok(Head {
        status: required(info, "Status", status)?,
        valid_after: required(info, "Valid-After", value::date)?,
        valid_until: required(info, "Valid-Until", value::date)?,
        recommended: required(info, "Recommended-Servers", nicknames)?,
        voters: voters(info)?,
        client_versions,
        server_versions,
    })
}

/// Versions of client and server that are up to date: none where the section is not there, which the reference allows.
fn software(sections: &[Section<'_>]) -> Result<(Vec<String>, Vec<String>), InvalidDirectory> {
    if !sections.iter().any(|section| section.name == SOFTWARE) {
        return Ok(Default::default());
    }
    let software = section(sections, SOFTWARE)?;
    let versions = |key| maybe(software, key, words).map(Option::unwrap_or_default);
    Ok((versions("MixminionClient")?, versions("MixminionServer")?))
}

fn status(text: &str) -> Result<Status, InvalidValue> {
    [Status::Consensus, Status::Vote].into_iter().find(|status| status.word() == text).ok_or(InvalidValue::Word)
}

/// What is no nickname is nobody's, so it is left out: one odd word must not take the directory from everyone.
fn nicknames(text: &str) -> Result<BTreeSet<Nickname>, InvalidValue> {
    Ok(value::list(text).filter_map(|word| value::nickname(word).ok()).collect())
}

fn voters(info: &Section<'_>) -> Result<Vec<Voter>, InvalidEntry> {
    const KEY: &str = "Voting-Server";
    let voters: Result<Vec<_>, _> = info
        .all(KEY)
        .map(|entry| voter(entry.value).map_err(|why| InvalidEntry::Value { key: KEY, line: entry.line, why }))
        .collect();
    voters.and_then(|voters| match voters.is_empty() {
        true => Err(InvalidEntry::Missing { line: info.line, key: KEY }),
        false => Ok(voters),
    })
}

fn voter(text: &str) -> Result<Voter, InvalidValue> {
    let (fingerprint, url) = text.split_once([' ', '\t']).ok_or(InvalidValue::Voter)?;
    Ok(Voter { key_id: value::fingerprint(fingerprint)?, url: url.trim().to_owned() })
}

/// Checks the one signature of version 0.2, which covers all of the text but its own digest and signature.
fn old_signatures(
    document: &Document,
    sections: &[Section<'_>],
    trust: &Trust,
) -> Result<BTreeSet<KeyId>, InvalidDirectory> {
    let keys = ["DirectoryIdentity", "DirectoryDigest", "DirectorySignature"];
    let signature = Signature::read(section(sections, "Signature")?, keys)?;
    let digest = sha1(&[document.without_values_of(["DirectoryDigest", "DirectorySignature"]).as_bytes()]);
    trust.check(&[signature], digest)
}

fn old_head(sections: &[Section<'_>], now: SystemTime) -> Result<Head, InvalidDirectory> {
    let info = section(sections, "Directory")?;
    if required(info, "Version", any)? != OLD_VERSION {
        return Err(InvalidDirectory::Version);
    }
    if required(info, "Published", value::time)? > now + CLOCK_SKEW {
        return Err(InvalidDirectory::PublishedInFuture);
    }
    let (client_versions, server_versions) = software(sections)?;
    Ok(Head {
        status: Status::Consensus,
        valid_after: required(info, "Valid-After", value::date)?,
        valid_until: required(info, "Valid-Until", value::date)?,
        recommended: required(info, "Recommended-Servers", nicknames)?,
        voters: Vec::new(),
        client_versions,
        server_versions,
    })
}

/// Descriptors that count, and those that were left out with their lines.
type Sorted = (Vec<Arc<Descriptor>>, Vec<(usize, InvalidDescriptor)>);

fn descriptors(servers: &str, first_line: usize, now: SystemTime) -> Result<Sorted, InvalidDirectory> {
    let (mut descriptors, mut skipped) = (Vec::new(), Vec::new());
    let (mut rest, mut line) = (servers, first_line);
    while !rest.is_empty() {
        let own = rest.find("\n[Server]\n").map_or(rest.len(), |end| end + 1);
        let (text, following) = rest.split_at(own);
        let checked = Descriptor::parse(text).and_then(|found| found.check_published(now).map(|()| found));
        match checked {
            Ok(descriptor) => descriptors.push(Arc::new(descriptor)),
            Err(why) if why.is_forgery() => return Err(InvalidDirectory::Descriptor { line, why }),
            Err(why) => skipped.push((line, why)),
        }
        line += text.lines().count();
        rest = following;
    }
    Ok((descriptors, skipped))
}

/// One nickname for each identity, one identity for each nickname (dir-spec 4.1).
fn check_nicknames(descriptors: &[Arc<Descriptor>]) -> Result<(), InvalidDirectory> {
    let (mut names, mut identities) = (BTreeMap::new(), BTreeMap::new());
    for descriptor in descriptors {
        let (nickname, key_id) = (descriptor.nickname(), descriptor.key_id());
        let same_name = *names.entry(key_id).or_insert(nickname) == nickname;
        if !same_name || *identities.entry(nickname).or_insert(key_id) != key_id {
            return Err(InvalidDirectory::NicknameConflict { nickname: nickname.clone() });
        }
    }
    Ok(())
}

/// What a directory or vote is to say. Signing makes text of it.
#[derive(Clone, Debug)]
pub struct DirectoryFields {
    /// For clients, or for the other directory servers.
    pub status: Status,
    /// The day on which it is in force.
    pub valid_after: SystemTime,
    /// The day whose midnight ends it: mostly the next.
    pub valid_until: SystemTime,
    /// The mixes held to be reliable and trustworthy.
    pub recommended: BTreeSet<Nickname>,
    /// The directory servers that vote; at least one.
    pub voters: Vec<Voter>,
    /// Up-to-date versions of the reference's client.
    pub client_versions: Vec<String>,
    /// Up-to-date versions of the reference's server.
    pub server_versions: Vec<String>,
    /// The descriptors.
    pub descriptors: Vec<Arc<Descriptor>>,
}

impl DirectoryFields {
    /// The text with the signature of `key`.
    ///
    /// # Errors
    /// [`Unsignable`]: a URL or version that does not fit its line, a date outside the calendar.
    pub fn sign(&self, key: &PrivateKey, rng: &mut impl CryptoRng) -> Result<String, Unsignable> {
        let body = self.body()?;
        let signature = Signature::make(&body, key, rng)?;
        Ok(signature.text() + &body)
    }

    /// What is signed, all lists in the order of dir-spec 4.1: equal fields give equal octets.
    ///
    /// # Errors
    /// As [`DirectoryFields::sign`].
    pub fn body(&self) -> Result<String, Unsignable> {
        let day = |time| date::format_date(time).ok_or(Unsignable::Date);
        let mut writer = Writer::default();
        writer.section(INFO);
        writer.entry("Version", VERSION)?;
        writer.entry("Status", self.status.word())?;
        writer.entry("Valid-After", &day(self.valid_after)?)?;
        writer.entry("Valid-Until", &day(self.valid_until)?)?;
        let recommended: BTreeSet<_> = self.recommended.iter().map(|name| name.as_str().to_ascii_lowercase()).collect();
        writer.entry("Recommended-Servers", &recommended.into_iter().collect::<Vec<_>>().join(", "))?;
        let voters: BTreeSet<_> = self.voters.iter().collect();
        for Voter { key_id, url } in voters {
            writer.entry("Voting-Server", &format!("{key_id} {url}"))?;
        }
        writer.section(SOFTWARE);
        writer.entry("MixminionClient", &sorted_versions(&self.client_versions).join(", "))?;
        writer.entry("MixminionServer", &sorted_versions(&self.server_versions).join(", "))?;
        let mut descriptors: Vec<_> = self.descriptors.iter().collect();
        descriptors.sort_by_key(|descriptor| rank(descriptor));
        descriptors.dedup_by_key(|descriptor| descriptor.digest());
        let texts = descriptors.iter().map(|descriptor| descriptor.text());
        Ok(std::iter::once(writer.finish().as_str()).chain(texts).collect())
    }
}

/// Descriptors are sorted by nickname, then by first day, then by digest (dir-spec 4.1).
pub(super) fn rank(descriptor: &Descriptor) -> (&Nickname, SystemTime, Digest) {
    (descriptor.nickname(), descriptor.valid_after(), descriptor.digest())
}

/// Versions in ascending order, those that are no version numbers last.
pub(super) fn sorted_versions(versions: &[String]) -> Vec<String> {
    let mut sorted = versions.to_vec();
    sorted.sort_by(|a, b| version_rank(a).cmp(&version_rank(b)));
    sorted.dedup();
    sorted
}

/// `0.0.8alpha3` and the like as numbers that order them: alpha, beta, pre, rc, release.
fn version_rank(version: &str) -> (bool, [u32; 5], &str) {
    let unknown = (true, [0; 5], version);
    let mut parts = version.splitn(3, '.');
    let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else { return unknown };
    let (sub, status) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
    let (stage, patch) = status.split_at(status.find(|c: char| c.is_ascii_digit()).unwrap_or(status.len()));
    let stage = match stage {
        "alpha" => 0,
        "beta" => 50,
        "pre" => 98,
        "rc" => 99,
        "" | "." | "p" => 100,
        _ => return unknown,
    };
    // No patch level at all comes before patch level 0.
    let patch = if patch.is_empty() { Ok(0) } else { patch.parse::<u32>().map(|patch| patch.saturating_add(1)) };
    match (major.parse(), minor.parse(), sub.parse(), patch) {
        (Ok(major), Ok(minor), Ok(sub), Ok(patch)) => (false, [major, minor, sub, stage, patch], version),
        _ => unknown,
    }
}
