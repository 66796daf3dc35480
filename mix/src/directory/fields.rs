//! Making descriptors: from what a mix knows of itself to signed text (dir-spec 3, 6).

use std::time::SystemTime;

use rand::CryptoRng;

use super::date;
use super::descriptor::{
    DESCRIPTOR_LIMITS, DESCRIPTOR_VERSION, Delivery, Descriptor, InvalidDescriptor, MAX_COMMENTS, MAX_CONTACT,
    MAX_CONTACT_FINGERPRINT, MIME_MAX_SIZE, MMTP_VERSION, PACKET_VERSION, SECTION_VERSION, digest_of,
};
use super::info::{Document, Unwritable, Writer, is_writable};
use super::nickname::Nickname;
use super::policy::{Policy, Verdict};
use super::value::to_base64;
use crate::crypto::Digest;
use crate::crypto::pk::{PrivateKey, PublicKey, RsaError};
use crate::packet::HostName;

/// What a mix says about itself. Signing makes a [`Descriptor`] of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorFields {
    /// What people call the mix.
    pub nickname: Nickname,
    /// Now, when the descriptor is made.
    pub published: SystemTime,
    /// The first day; its midnight counts.
    pub valid_after: SystemTime,
    /// The day whose midnight ends it.
    pub valid_until: SystemTime,
    /// How the operator is reached: at most 256 characters.
    pub contact: String,
    /// The fingerprint of the operator's OpenPGP key: at most 128 characters.
    pub contact_fingerprint: Option<String>,
    /// What people should read: at most 1024 characters.
    pub comments: Option<String>,
    /// The public half of the packet key: 2048 bits.
    pub packet_key: PublicKey,
    /// What the mix runs.
    pub software: String,
    /// Why the mix is insecure; `None` claims a secure configuration.
    pub why_insecure: Option<String>,
    /// Where the mix listens; `None` when it takes no connections.
    pub listens_at: Option<(HostName, u16)>,
    /// Whose connections it takes. Rules of IPv6 are not published.
    pub takes_from: Policy,
    /// Whether the mix connects to others.
    pub connects: bool,
    /// Whom it connects to. Rules of IPv6 are not published.
    pub connects_to: Policy,
    /// What it delivers by SMTP. Sizes are published in whole kilobytes, rounded down.
    pub smtp: Option<Delivery>,
    /// What it delivers to its own users.
    pub mbox: Option<Delivery>,
    /// The most fragments of one message that it puts together.
    pub fragmented: Option<u64>,
}

/// Why a descriptor could not be made. Blames the fields.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum Unsignable {
    /// A text that does not fit one line.
    #[error(transparent)]
    Text(#[from] Unwritable),
    /// A time before 1970 or after the year 9999.
    #[error("a date outside the calendar")]
    Date,
    /// The private operation failed.
    #[error(transparent)]
    Rsa(#[from] RsaError),
    /// What came out would be refused by everyone.
    #[error(transparent)]
    Invalid(#[from] InvalidDescriptor),
}

/// What a mix says to people; each is free text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// [`DescriptorFields::contact`].
    Contact,
    /// [`DescriptorFields::contact_fingerprint`].
    ContactFingerprint,
    /// [`DescriptorFields::comments`].
    Comments,
}

/// Why a text would be refused by everyone.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidText {
    /// More characters than the specification allows.
    #[error("longer than {max} characters")]
    TooLong {
        /// Characters allowed.
        max: usize,
    },
    /// The exchange format has no place for it.
    #[error("must be one line of printing ASCII without spaces at its ends")]
    Unwritable,
}

impl Text {
    /// Whether a descriptor can say `text` here: needs no key.
    ///
    /// # Errors
    /// [`InvalidText`].
    pub fn check(self, text: &str) -> Result<(), InvalidText> {
        let max = match self {
            Self::Contact => MAX_CONTACT,
            Self::ContactFingerprint => MAX_CONTACT_FINGERPRINT,
            Self::Comments => MAX_COMMENTS,
        };
        if !is_writable(text) {
            Err(InvalidText::Unwritable)
        } else if text.len() > max {
            Err(InvalidText::TooLong { max })
        } else {
            Ok(())
        }
    }
}

impl DescriptorFields {
    /// Writes the descriptor, signs it with `identity`, and reads it back with all checks.
    ///
    /// # Errors
    /// [`Unsignable`]: text that breaks its line, a date outside the calendar, or what [`Descriptor::parse`] refuses.
    pub fn sign(&self, identity: &PrivateKey, rng: &mut impl CryptoRng) -> Result<Descriptor, Unsignable> {
        let digest = self.digest(&identity.public_key())?;
        let signature = identity.sign(&digest.0, rng)?;
        let text = self.text(&identity.public_key(), &to_base64(&digest.0), &to_base64(&signature))?;
        Ok(Descriptor::parse(&text)?)
    }

    /// The digest that a descriptor of `identity` with exactly these fields has. A descriptor with that digest says
    /// nothing else, and need not be signed again.
    ///
    /// # Errors
    /// [`Unsignable`]: text that breaks its line, or a date outside the calendar.
    pub fn digest(&self, identity: &PublicKey) -> Result<Digest, Unsignable> {
        let unsigned = self.text(identity, "", "")?;
        let document = Document::read(&unsigned, &DESCRIPTOR_LIMITS).map_err(InvalidDescriptor::from)?;
        Ok(digest_of(&document))
    }

    /// The text, in the order of the reference, with these values for `Digest` and `Signature`.
    fn text(&self, identity: &PublicKey, digest: &str, signature: &str) -> Result<String, Unsignable> {
        let mut writer = Writer::default();
        self.write_server(&mut writer, identity, (digest, signature))?;
        if let Some((host, port)) = &self.listens_at {
            writer.section("Incoming/MMTP");
            writer.entry("Version", SECTION_VERSION)?;
            writer.entry("Hostname", host.as_str())?;
            writer.entry("Port", &port.to_string())?;
            writer.entry("Protocols", MMTP_VERSION)?;
            write_policy(&mut writer, &self.takes_from)?;
        }
        if self.connects {
            writer.section("Outgoing/MMTP");
            writer.entry("Version", SECTION_VERSION)?;
            writer.entry("Protocols", MMTP_VERSION)?;
            write_policy(&mut writer, &self.connects_to)?;
        }
        for (name, delivery) in [("Delivery/MBOX", self.mbox), ("Delivery/SMTP", self.smtp)] {
            if let Some(delivery) = delivery {
                writer.section(name);
                writer.entry("Version", SECTION_VERSION)?;
                writer.entry("Maximum-Size", &delivery.kilobytes().to_string())?;
                writer.entry("Allow-From", if delivery.allow_from { "yes" } else { "no" })?;
                let mime = delivery.mime_kilobytes().map(|kilobytes| kilobytes.to_string());
                writer.optional(MIME_MAX_SIZE, mime.as_deref())?;
            }
        }
        if let Some(fragments) = self.fragmented {
            writer.section("Delivery/Fragmented");
            writer.entry("Version", SECTION_VERSION)?;
            writer.entry("Maximum-Fragments", &fragments.to_string())?;
        }
        Ok(writer.finish())
    }

    fn write_server(
        &self,
        writer: &mut Writer,
        identity: &PublicKey,
        (digest, signature): (&str, &str),
    ) -> Result<(), Unsignable> {
        let day = |time| date::format_date(time).ok_or(Unsignable::Date);
        writer.section("Server");
        writer.entry("Descriptor-Version", DESCRIPTOR_VERSION)?;
        writer.entry("Nickname", self.nickname.as_str())?;
        writer.entry("Identity", &to_base64(&identity.to_der()))?;
        writer.entry("Digest", digest)?;
        writer.entry("Signature", signature)?;
        writer.entry("Published", &date::format_time(self.published).ok_or(Unsignable::Date)?)?;
        writer.entry("Valid-After", &day(self.valid_after)?)?;
        writer.entry("Valid-Until", &day(self.valid_until)?)?;
        writer.entry("Packet-Key", &to_base64(&self.packet_key.to_der()))?;
        writer.entry("Packet-Versions", PACKET_VERSION)?;
        writer.entry("Software", &self.software)?;
        writer.entry("Secure-Configuration", if self.why_insecure.is_none() { "yes" } else { "no" })?;
        writer.entry("Contact", &self.contact)?;
        writer.optional("Why-Insecure", self.why_insecure.as_deref())?;
        writer.optional("Contact-Fingerprint", self.contact_fingerprint.as_deref())?;
        writer.optional("Comments", self.comments.as_deref())?;
        Ok(())
    }
}

fn write_policy(writer: &mut Writer, policy: &Policy) -> Result<(), Unsignable> {
    policy.published().iter().try_for_each(|(verdict, pattern)| {
        let key = match verdict {
            Verdict::Allow => "Allow",
            Verdict::Deny => "Deny",
        };
        Ok(writer.entry(key, pattern)?)
    })
}
