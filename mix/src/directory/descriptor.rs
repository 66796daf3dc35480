//! Server descriptors: what one mix promises for some days, signed by its identity key (dir-spec 3).
//!
//! Reading and checking; `fields` writes them. Whether a descriptor is in force is asked with a time handed in.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::info::{Document, Entry, InvalidInfo, Limits, Section};
use super::nickname::Nickname;
use super::policy::{InvalidRule, Policy, Rule, Verdict};
use super::value::{self, InvalidEntry, InvalidValue, any, maybe, required, words};
use crate::crypto::pk::{PACKET_KEY_LEN, PublicKey};
use crate::crypto::{Digest, KeyId, sha1};
use crate::packet::build::Hop;
use crate::packet::{HostName, HostRoute};

/// The version of descriptors on the wire (dir-spec A.1; the body of the specification says 1.0).
pub(super) const DESCRIPTOR_VERSION: &str = "0.2";
/// The version of all other sections on the wire.
pub(super) const SECTION_VERSION: &str = "0.1";
/// The one packet format that is spoken (minion-spec 3.2).
pub const PACKET_VERSION: &str = "0.3";
/// The one version of MMTP that is spoken (minion-spec 4).
pub const MMTP_VERSION: &str = "0.3";

/// How much of a descriptor is read. A real one has 2 KB; `Testing` may repeat the server's whole configuration.
pub const DESCRIPTOR_LIMITS: Limits = Limits { len: 64 * 1024, lines: 1024, line_len: 16 * 1024 };

/// Octets of the smallest and largest modulus of an identity key (dir-spec 3).
pub(super) const IDENTITY_KEY_LEN: std::ops::RangeInclusive<usize> = 2048 / 8..=4096 / 8;
/// Characters of the longest `Contact` (dir-spec 3).
pub(super) const MAX_CONTACT: usize = 256;
/// Characters of the longest `Comments` (dir-spec 3 says fewer than 1024, the reference takes 1024).
pub(super) const MAX_COMMENTS: usize = 1024;
/// Characters of the longest `Contact-Fingerprint` (dir-spec 3).
pub(super) const MAX_CONTACT_FINGERPRINT: usize = 128;
/// `Maximum-Size` counts in these (E2E-spec 3).
const KILOBYTE: u64 = 1024;
/// How far ahead of ours the clock of a mix may be.
pub const CLOCK_SKEW: Duration = Duration::from_secs(10 * 60);

/// Why a descriptor was refused. Blames the mix that wrote it, or whoever changed it on the way.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidDescriptor {
    /// Not of the exchange format.
    #[error(transparent)]
    Info(#[from] InvalidInfo),
    /// The first section must be `Server`.
    #[error("does not begin with a Server section")]
    NoServerSection,
    /// An entry or section that is missing, doubled or without meaning.
    #[error(transparent)]
    Entry(#[from] InvalidEntry),
    /// Only descriptors of version 0.2 are understood.
    #[error("descriptor version other than 0.2")]
    Version,
    /// Identity keys have 2048 to 4096 bits.
    #[error("identity key of {bits} bits; it must have 2048 to 4096")]
    IdentityKeySize {
        /// What was found.
        bits: u32,
    },
    /// Packet keys have 2048 bits.
    #[error("packet key of {bits} bits; it must have 2048")]
    PacketKeySize {
        /// What was found.
        bits: u32,
    },
    /// Ends before it begins.
    #[error("valid until a date that is not after the first")]
    NeverValid,
    /// The text was changed after its digest was taken.
    #[error("the digest is not that of the text")]
    Digest,
    /// The signature was not made by the identity key.
    #[error("the signature was not made by the identity key")]
    Signature,
    /// The identity key signed something else.
    #[error("the signature is one of another text")]
    SignedDigest,
    /// Comes from a clock that is ahead.
    #[error("published in the future")]
    PublishedInFuture,
}

impl InvalidDescriptor {
    /// Whether someone other than the mix must have had a hand in it: no honest mix publishes such a descriptor, and no
    /// honest directory lists one (dir-spec 2.3).
    pub fn is_forgery(&self) -> bool {
        matches!(self, Self::Digest | Self::Signature | Self::SignedDigest)
    }
}

/// A descriptor whose digest and signature are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    text: String,
    digest: Digest,
    key_id: KeyId,
    server: Server,
    incoming: Option<Incoming>,
    outgoing: Option<Outgoing>,
    smtp: Option<Delivery>,
    mbox: Option<Delivery>,
    fragmented: Option<u64>,
}

/// What stands in the `Server` section.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    nickname: Nickname,
    identity: PublicKey,
    digest: Digest,
    signature: Vec<u8>,
    published: SystemTime,
    valid_after: SystemTime,
    valid_until: SystemTime,
    contact: String,
    contact_fingerprint: Option<String>,
    comments: Option<String>,
    packet_key: PublicKey,
    packet_versions: Vec<String>,
    software: Option<String>,
    secure: Option<bool>,
    why_insecure: Option<String>,
}

/// How a mix is reached (section `Incoming/MMTP`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Where it listens.
    pub host: HostName,
    /// The TCP port. Zero is taken, as in the reference, but nobody listens there.
    pub port: u16,
    /// The versions of MMTP that it accepts.
    pub protocols: Vec<String>,
    /// Whose connections it takes. The port of a rule is the mix's own.
    pub policy: Policy,
}

/// How a mix reaches others (section `Outgoing/MMTP`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The versions of MMTP that it speaks.
    pub protocols: Vec<String>,
    /// Whom it connects to.
    pub policy: Policy,
}

/// What a mix delivers out of the network (sections `Delivery/SMTP`, `Delivery/MBOX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Octets of the largest message delivered.
    pub max_size: u64,
    /// Whether the sender may choose the address in `From`.
    pub allow_from: bool,
    /// Octets of the largest message with attachments, if any are delivered. An entry of ours (`MIME-Maximum-Size`), over
    /// which others read; it means something for e-mail alone.
    pub mime: Option<u64>,
}

impl Descriptor {
    /// Reads a descriptor and checks all that can be checked without a clock.
    ///
    /// # Errors
    /// [`InvalidDescriptor`], all variants but [`InvalidDescriptor::PublishedInFuture`].
    pub fn parse(text: &str) -> Result<Self, InvalidDescriptor> {
        let document = Document::read(text, &DESCRIPTOR_LIMITS)?;
        let sections = recognized(document.sections()?)?;
        let server = sections.first().filter(|section| section.name == "Server");
        let server = Server::read(server.ok_or(InvalidDescriptor::NoServerSection)?)?;
        let digest = digest_of(&document);
        server.check(digest)?;
        let find = |name| sections.iter().find(|section| section.name == name);
        let delivery = |name| find(name).map(Delivery::read).transpose();
        let (incoming, outgoing) = (find(INCOMING), find(OUTGOING));
        Ok(Self {
            digest,
            key_id: server.identity.key_id(),
            server,
            incoming: incoming.map(Incoming::read).transpose()?,
            outgoing: outgoing.map(Outgoing::read).transpose()?,
            smtp: delivery(SMTP)?,
            mbox: delivery(MBOX)?,
            fragmented: find(FRAGMENTED).map(max_fragments).transpose()?,
            text: document.into_string(),
        })
    }

    /// Refuses a descriptor that claims to have been published more than ten minutes after `now`.
    ///
    /// # Errors
    /// [`InvalidDescriptor::PublishedInFuture`].
    pub fn check_published(&self, now: SystemTime) -> Result<(), InvalidDescriptor> {
        if self.server.published > now + CLOCK_SKEW { Err(InvalidDescriptor::PublishedInFuture) } else { Ok(()) }
    }

    /// What people call the mix.
    pub fn nickname(&self) -> &Nickname {
        &self.server.nickname
    }

    /// The key that names the mix for ever.
    pub fn identity(&self) -> &PublicKey {
        &self.server.identity
    }

    /// The digest of the identity key.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// The digest of the canonical text without digest and signature.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// When it was made.
    pub fn published(&self) -> SystemTime {
        self.server.published
    }

    /// The midnight from which it holds.
    pub fn valid_after(&self) -> SystemTime {
        self.server.valid_after
    }

    /// The midnight up to which it holds, and with which it ends.
    pub fn valid_until(&self) -> SystemTime {
        self.server.valid_until
    }

    /// Encrypts subheaders for the mix.
    pub fn packet_key(&self) -> &PublicKey {
        &self.server.packet_key
    }

    /// How the operator is reached.
    pub fn contact(&self) -> &str {
        &self.server.contact
    }

    /// The fingerprint of the operator's OpenPGP key.
    pub fn contact_fingerprint(&self) -> Option<&str> {
        self.server.contact_fingerprint.as_deref()
    }

    /// What the operator wants people to read.
    pub fn comments(&self) -> Option<&str> {
        self.server.comments.as_deref()
    }

    /// What the mix runs. For people only (dir-spec 3).
    pub fn software(&self) -> Option<&str> {
        self.server.software.as_deref()
    }

    /// Whether the mix says of itself that it runs in no insecure mode.
    pub fn secure_configuration(&self) -> Option<bool> {
        self.server.secure
    }

    /// Why it does, when it does.
    pub fn why_insecure(&self) -> Option<&str> {
        self.server.why_insecure.as_deref()
    }

    /// The packet formats that the mix understands.
    pub fn packet_versions(&self) -> &[String] {
        &self.server.packet_versions
    }

    /// Whether the mix understands the packets that are made here.
    pub fn supports_packets(&self) -> bool {
        self.server.packet_versions.iter().any(|version| version == PACKET_VERSION)
    }

    /// How the mix is reached, when it says so.
    pub fn incoming(&self) -> Option<&Incoming> {
        self.incoming.as_ref()
    }

    /// How the mix reaches others, when it says so.
    pub fn outgoing(&self) -> Option<&Outgoing> {
        self.outgoing.as_ref()
    }

    /// Routing info that leads to the mix; `None` when it takes no connections.
    pub fn route(&self) -> Option<HostRoute> {
        let Incoming { host, port, .. } = self.incoming.as_ref()?;
        Some(HostRoute { host: host.clone(), port: *port, key_id: self.key_id })
    }

    /// The mix as a stop on a path; `None` when it takes no connections.
    pub fn hop(&self) -> Option<Hop> {
        Some(Hop { packet_key: self.server.packet_key.clone(), route: self.route()? })
    }

    /// Whether the mix takes packets and passes them on.
    pub fn can_relay(&self) -> bool {
        self.incoming.is_some() && self.outgoing.is_some()
    }

    /// Whether we ourselves can hand packets to the mix: a path can start there.
    pub fn can_start(&self) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| incoming.protocols.iter().any(|version| version == MMTP_VERSION))
    }

    /// Whether the mix and `next` have a version of MMTP in common, and no rule of either forbids it (path-spec 2.3). A mix
    /// always reaches itself.
    ///
    /// Rules are of addresses: they are asked where a mix is named by one. A host name would have to be looked up, which
    /// would tell whoever answers what path is being made.
    pub fn can_relay_to(&self, next: &Self) -> bool {
        let reaches = || {
            let (outgoing, incoming) = (self.outgoing.as_ref()?, next.incoming.as_ref()?);
            let common = outgoing.protocols.iter().any(|version| incoming.protocols.contains(version));
            let allowed =
                |policy: &Policy, mix: &Self| mix.address().is_none_or(|address| policy.allows(address, incoming.port));
            Some(common && allowed(&outgoing.policy, next) && allowed(&incoming.policy, self))
        };
        self.key_id == next.key_id || reaches().unwrap_or(false)
    }

    /// Where it is, when it says so by address and not by name.
    fn address(&self) -> Option<IpAddr> {
        self.incoming.as_ref()?.host.as_str().parse().ok()
    }

    /// What it delivers by SMTP, when it does.
    pub fn smtp(&self) -> Option<&Delivery> {
        self.smtp.as_ref()
    }

    /// What it delivers to its own users, when it does.
    pub fn mbox(&self) -> Option<&Delivery> {
        self.mbox.as_ref()
    }

    /// The most fragments of one message that it puts together, when it does so at all.
    pub fn fragmented(&self) -> Option<u64> {
        self.fragmented
    }

    /// The canonical text: what a directory lists.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it holds at `when`.
    pub fn is_valid_at(&self, when: SystemTime) -> bool {
        self.server.valid_after <= when && when <= self.server.valid_until
    }

    /// Whether it holds all the time between the two.
    pub fn is_valid_during(&self, from: SystemTime, until: SystemTime) -> bool {
        self.server.valid_after <= from && until <= self.server.valid_until
    }

    /// Whether it holds no more at `when`.
    pub fn is_expired_at(&self, when: SystemTime) -> bool {
        self.server.valid_until < when
    }

    /// Whether `others` leave it nothing to say: each moment of its lifetime is past, or within the lifetime of a
    /// descriptor of the same mix that was published later (dir-spec 3.2).
    pub fn is_superseded_by<'a>(&self, others: impl IntoIterator<Item = &'a Self>, now: SystemTime) -> bool {
        let newer = |other: &&Self| other.key_id == self.key_id && other.server.published > self.server.published;
        let mut covers: Vec<_> =
            others.into_iter().filter(newer).map(|other| (other.valid_after(), other.valid_until())).collect();
        covers.sort();
        let mut uncovered_from = self.valid_after().max(now);
        for (from, until) in covers {
            if from <= uncovered_from {
                uncovered_from = uncovered_from.max(until);
            }
        }
        uncovered_from >= self.valid_until()
    }
}

const INCOMING: &str = "Incoming/MMTP";
const OUTGOING: &str = "Outgoing/MMTP";
const SMTP: &str = "Delivery/SMTP";
const MBOX: &str = "Delivery/MBOX";
const FRAGMENTED: &str = "Delivery/Fragmented";
/// How large a message with attachments may be: the entry of ours in `Delivery/SMTP`.
pub(super) const MIME_MAX_SIZE: &str = "MIME-Maximum-Size";

/// The digest that is signed (dir-spec 2.5).
pub(super) fn digest_of(document: &Document) -> Digest {
    sha1(&[document.without_values_of(["Digest", "Signature"]).as_bytes()])
}

/// Drops sections of versions that are not understood (dir-spec 2.2) and refuses sections that appear twice.
fn recognized(mut sections: Vec<Section<'_>>) -> Result<Vec<Section<'_>>, InvalidDescriptor> {
    let versioned = [INCOMING, OUTGOING, SMTP, MBOX, FRAGMENTED];
    let understood = |section: &Section<'_>| {
        !versioned.contains(&section.name) || section.all("Version").all(|entry| entry.value == SECTION_VERSION)
    };
    sections.retain(understood);
    value::no_duplicates(&sections)?;
    Ok(sections)
}

impl Server {
    fn read(section: &Section<'_>) -> Result<Self, InvalidDescriptor> {
        if required(section, "Descriptor-Version", any)? != DESCRIPTOR_VERSION {
            return Err(InvalidDescriptor::Version);
        }
        let within = |max| move |text: &str| value::free_text(text, max);
        Ok(Self {
            nickname: required(section, "Nickname", value::nickname)?,
            identity: required(section, "Identity", value::key)?,
            digest: required(section, "Digest", value::digest)?,
            signature: required(section, "Signature", value::base64)?,
            published: required(section, "Published", value::time)?,
            valid_after: required(section, "Valid-After", value::date)?,
            valid_until: required(section, "Valid-Until", value::date)?,
            contact: required(section, "Contact", within(MAX_CONTACT))?,
            contact_fingerprint: maybe(section, "Contact-Fingerprint", within(MAX_CONTACT_FINGERPRINT))?,
            comments: maybe(section, "Comments", within(MAX_COMMENTS))?,
            packet_key: required(section, "Packet-Key", value::key)?,
            packet_versions: required(section, "Packet-Versions", words)?,
            software: maybe(section, "Software", any)?,
            secure: maybe(section, "Secure-Configuration", value::boolean)?,
            why_insecure: maybe(section, "Why-Insecure", any)?,
        })
    }

    /// Checks what needs more than one entry: sizes, dates, digest, signature.
    fn check(&self, digest: Digest) -> Result<(), InvalidDescriptor> {
        if self.digest != digest {
            return Err(InvalidDescriptor::Digest);
        }
        if !IDENTITY_KEY_LEN.contains(&self.identity.modulus_len()) {
            return Err(InvalidDescriptor::IdentityKeySize { bits: self.identity.bits() });
        }
        if self.packet_key.modulus_len() != PACKET_KEY_LEN {
            return Err(InvalidDescriptor::PacketKeySize { bits: self.packet_key.bits() });
        }
        if self.valid_until <= self.valid_after {
            return Err(InvalidDescriptor::NeverValid);
        }
        let signed = self.identity.check_signature(&self.signature).map_err(|_| InvalidDescriptor::Signature)?;
        if signed == digest.0 { Ok(()) } else { Err(InvalidDescriptor::SignedDigest) }
    }
}

impl Incoming {
    fn read(section: &Section<'_>) -> Result<Self, InvalidDescriptor> {
        required(section, "Version", any)?;
        // Nobody uses it since 0.0.8, but what does not parse is refused there.
        each(section, "IP", |address| value::ipv4(address).map(|_| ()))?;
        Ok(Self {
            host: required(section, "Hostname", value::host)?,
            port: required(section, "Port", value::port)?,
            protocols: required(section, "Protocols", words)?,
            policy: policy(section)?,
        })
    }
}

impl Outgoing {
    fn read(section: &Section<'_>) -> Result<Self, InvalidDescriptor> {
        required(section, "Version", any)?;
        Ok(Self { protocols: required(section, "Protocols", words)?, policy: policy(section)? })
    }
}

/// Checks all entries of `key`, which may be there more than once.
fn each(
    section: &Section<'_>,
    key: &'static str,
    check: impl Fn(&str) -> Result<(), InvalidValue>,
) -> Result<(), InvalidEntry> {
    section.all(key).try_for_each(|Entry { value, line, .. }| {
        check(value).map_err(|why| InvalidEntry::Value { key, line: *line, why })
    })
}

/// The rules of a section in their order, which is what they mean.
fn policy(section: &Section<'_>) -> Result<Policy, InvalidEntry> {
    let rule = |entry: &Entry<'_>| {
        let (key, verdict) = match entry.key {
            "Allow" => ("Allow", Verdict::Allow),
            "Deny" => ("Deny", Verdict::Deny),
            _ => return None,
        };
        let refused = |why: InvalidRule| InvalidEntry::Value { key, line: entry.line, why: why.into() };
        Some(Rule::published(verdict, entry.value).map_err(refused))
    };
    Ok(Policy::new(section.entries.iter().filter_map(rule).collect::<Result<_, _>>()?))
}

impl Delivery {
    fn read(section: &Section<'_>) -> Result<Self, InvalidDescriptor> {
        required(section, "Version", any)?;
        Ok(Self {
            max_size: u64::from(required(section, "Maximum-Size", value::number)?) * KILOBYTE,
            allow_from: required(section, "Allow-From", value::boolean)?,
            mime: maybe(section, MIME_MAX_SIZE, value::number)?.map(|kilobytes| u64::from(kilobytes) * KILOBYTE),
        })
    }

    /// `Maximum-Size`: whole kilobytes.
    pub(super) fn kilobytes(self) -> u64 {
        self.max_size / KILOBYTE
    }

    /// `MIME-Maximum-Size`, if there is one.
    pub(super) fn mime_kilobytes(self) -> Option<u64> {
        self.mime.map(|octets| octets / KILOBYTE)
    }
}

fn max_fragments(section: &Section<'_>) -> Result<u64, InvalidDescriptor> {
    required(section, "Version", any)?;
    Ok(required(section, "Maximum-Fragments", value::number)?.into())
}
