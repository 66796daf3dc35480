//! A message that leaves the network, written as a mail (E2E-spec 3.2.3, 3.3.3; RFC 5322, 2045, 2047).
//!
//! Text goes out as readable UTF-8, with its attachments if it has some (`multipart`); what cannot be shown as text goes
//! out in armour, with a sentence that says why, and always as it is: where the words above it need an encoding, it is a part
//! of its own.
//! Headers come in the order of the reference; what a stranger puts into one never becomes another header. Handing the
//! mail to a server is `smtp`'s.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::lines::{field, fold, message_ids, phrase, unstructured};
use self::text::{is_plain, write_text};
use super::opt_out::Offer;
use crate::path::Mailbox;
use crate::payload::entity::Entity;
use crate::payload::words::{encoded, sender_name, shown};

mod lines;
mod multipart;
pub mod notice;
mod text;

/// No line of a mail may be longer (RFC 5322 2.1.1).
const MAX_LINE_LEN: usize = 998;

/// How the mails of an exit look. What is `None` by default appears in no mail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MailConfig {
    /// Who the mails come from, and where bounces and complaints go. An exit needs one.
    #[serde(with = "mailbox_text")]
    pub return_address: Option<Mailbox>,
    /// Whether a sender may choose the name in the From line.
    pub allow_from: bool,
    /// What stands before such a name, lest anybody take it for the person of that name.
    pub from_tag: String,
    /// The subject of messages that bring none.
    pub subject: String,
    /// The X-Abuse line: whom to tell.
    pub abuse: Option<String>,
    /// The Comments line.
    pub comments: Option<String>,
    /// What stands above each message, such as a disclaimer.
    pub notice: Option<String>,
    /// The file that says so in its place.
    pub notice_file: Option<PathBuf>,
}

impl Default for MailConfig {
    fn default() -> Self {
        Self {
            return_address: None,
            allow_from: true,
            from_tag: "[Anon]".into(),
            subject: "Type III Anonymous Message".into(),
            abuse: None,
            comments: None,
            notice: None,
            notice_file: None,
        }
    }
}

/// A mailbox as the settings have it.
pub(crate) mod mailbox_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::path::Mailbox;

    pub(crate) fn serialize<S: Serializer>(mailbox: &Option<Mailbox>, to: S) -> Result<S::Ok, S::Error> {
        mailbox.as_ref().map(Mailbox::as_str).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Mailbox>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| Mailbox::parse(&text).map_err(D::Error::custom)).transpose()
    }
}

/// Mails from nobody cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("return_address is not set: an exit that delivers mail needs one")]
pub struct NoReturnAddress;

/// What the sender of a message wants in the headers of the mail (E2E-spec 3.2.2).
#[derive(Clone, Copy, Default)]
pub struct Heading<'a> {
    /// The subject; encoded words (RFC 2047) are read, and written anew.
    pub subject: Option<&'a str>,
    /// The name in the From line, read so too; left out when it has one of `"[]:`.
    pub from: Option<&'a str>,
    /// A message id.
    pub in_reply_to: Option<&'a str>,
    /// Message ids.
    pub references: Option<&'a str>,
}

/// What the mail says. `Debug` shows the kind alone.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    /// Text; see [`as_text`].
    Text(&'a str),
    /// Text and attachments.
    Attachments(&'a Entity),
    /// Text that says that it has attachments, and has them in a way that nobody writes.
    Malformed(&'a str),
    /// Octets that are no text, in armour.
    Binary {
        /// The armour.
        armour: &'a str,
    },
    /// One of several parts of a message, in armour.
    Fragment {
        /// The armour.
        armour: &'a str,
    },
    /// A payload that only its recipient can open, in armour.
    Encrypted {
        /// The armour.
        armour: &'a str,
    },
    /// Compressed so far that the exit did not inflate it, in armour.
    Overcompressed {
        /// The armour.
        armour: &'a str,
    },
}

impl fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text(_) => "Text(..)",
            Self::Attachments(_) => "Attachments(..)",
            Self::Malformed(_) => "Malformed(..)",
            Self::Binary { .. } => "Binary(..)",
            Self::Fragment { .. } => "Fragment(..)",
            Self::Encrypted { .. } => "Encrypted(..)",
            Self::Overcompressed { .. } => "Overcompressed(..)",
        })
    }
}

impl<'a> Content<'a> {
    /// Whether it is for programs that read armour.
    fn is_armour(self) -> bool {
        match self {
            Self::Binary { .. } | Self::Fragment { .. } | Self::Encrypted { .. } | Self::Overcompressed { .. } => true,
            Self::Text(_) | Self::Attachments(_) | Self::Malformed(_) => false,
        }
    }

    /// What the recipient is told of the armour, and what follows.
    fn parts(self) -> (Option<&'static str>, &'a str) {
        match self {
            Self::Text(text) => (None, text),
            Self::Attachments(entity) => (None, entity.text()),
            Self::Malformed(text) => (
                Some(
                    "The message below was to bring attachments, but it is not as such messages are, so it comes as it\n\
                     was sent.",
                ),
                text,
            ),
            Self::Binary { armour } => (
                Some("The message below is not text, so it comes in Base64. Decode it to have it as it was sent."),
                armour,
            ),
            Self::Fragment { armour } => (
                Some(
                    "The message below is one of several parts of a longer one. Keep it until the others are here, which\n\
                     come in mails of their own, and then put them together with your Type III software.",
                ),
                armour,
            ),
            Self::Encrypted { armour } => (
                Some(
                    "The message below can be read with a key only: it is an answer to one of your reply blocks, or\n\
                     encrypted to you, or junk. Open it with your Type III software.",
                ),
                armour,
            ),
            Self::Overcompressed { armour } => (
                Some(
                    "The message below is compressed (zlib) so strongly that inflating it might do harm, so that is\n\
                     left to you. Take care.",
                ),
                armour,
            ),
        }
    }
}

/// The octets as text that a mail can show: UTF-8, no control characters but tabs and line ends (LF or CRLF).
pub fn as_text(octets: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(octets).ok()?;
    let shown = |(index, c): (usize, char)| match c {
        '\n' | '\t' => true,
        // Alone, some software takes it for a line end and some does not.
        '\r' => octets.get(index + 1) == Some(&b'\n'),
        _ => !c.is_control(),
    };
    text.char_indices().all(shown).then_some(text)
}

/// A mail as [`MailWriter`] writes it, with LF at the end of each line, as files and programs of a machine have it.
pub fn with_line_feeds(mail: &[u8]) -> Vec<u8> {
    let end = |at: usize| mail.get(at..).is_some_and(|rest| rest.starts_with(b"\r\n"));
    mail.iter().enumerate().filter(|(at, _)| !end(*at)).map(|(_, octet)| *octet).collect()
}

/// Writes the mails of one exit.
#[derive(Clone, Debug)]
pub struct MailWriter {
    config: MailConfig,
    return_address: Mailbox,
    /// What stands above each message.
    notice: Option<String>,
    /// How recipients ask for no more mail.
    opt_out: Option<Offer>,
}

impl MailWriter {
    /// A writer with the exit's settings. Above its messages stands what [`MailWriter::under`] says alone: what the settings
    /// say of it may be in a file.
    ///
    /// # Errors
    /// [`NoReturnAddress`].
    pub fn new(config: MailConfig) -> Result<Self, NoReturnAddress> {
        let return_address = config.return_address.clone().ok_or(NoReturnAddress)?;
        Ok(Self { config, return_address, notice: None, opt_out: None })
    }

    /// The same, whose messages have a notice above them.
    #[must_use]
    pub fn under(self, notice: Option<String>) -> Self {
        Self { notice, ..self }
    }

    /// The same, whose mails say how to get no more of them.
    #[must_use]
    pub fn offering(self, opt_out: Option<Offer>) -> Self {
        Self { opt_out, ..self }
    }

    /// Who the mails come from: also the sender of their envelope.
    pub fn return_address(&self) -> &Mailbox {
        &self.return_address
    }

    /// The mail: ASCII alone, lines that end with CRLF and have at most 998 octets.
    pub fn write(
        &self,
        to: &Mailbox,
        heading: Heading,
        content: Content,
        now: SystemTime,
        rng: &mut impl rand::CryptoRng,
    ) -> Vec<u8> {
        let mut mail = self.headers(to, heading);
        mail.push_str(&field("Date", &date(now)));
        mail.push_str(&field("Message-ID", &message_id(self.return_address.domain(), rng)));
        mail.push_str("MIME-Version: 1.0\r\n");
        let (explanation, message) = content.parts();
        let above = self.above(to, explanation);
        match content {
            Content::Attachments(entity) => multipart::write(&mut mail, &(above + message), entity.files()),
            // Whoever decodes it cuts it out of the mail as it lies there.
            _ if content.is_armour() && !is_plain(&above) => multipart::write_armour(&mut mail, &above, message),
            _ => write_text(&mut mail, &(above + message)),
        }
        mail.into_bytes()
    }

    /// The headers that the reference has, in its order.
    fn headers(&self, to: &Mailbox, heading: Heading) -> String {
        let config = &self.config;
        let subject = heading.subject.map(shown).filter(|subject| !subject.is_empty());
        let mut headers = field("To", to.as_str());
        headers.push_str(&self.from(heading.from));
        headers.push_str(&unstructured("Subject", &subject.unwrap_or_else(|| shown(&config.subject))));
        headers.push_str(&message_ids("In-Reply-To", heading.in_reply_to));
        headers.push_str(&message_ids("References", heading.references));
        headers.push_str("X-Anonymous: yes\r\n");
        for (name, value) in [("X-Abuse", &config.abuse), ("Comments", &config.comments)] {
            if let Some(value) = value {
                headers.push_str(&unstructured(name, &shown(value)));
            }
        }
        headers.push_str(&self.opt_out.as_ref().map(|offer| offer.headers(to)).unwrap_or_default());
        headers
    }

    /// `"[Anon] name" <mailbox>`, or the mailbox alone.
    fn from(&self, name: Option<&str>) -> String {
        let name = name.filter(|_| self.config.allow_from).and_then(sender_name);
        let Some(name) = name else { return field("From", self.return_address.as_str()) };
        let tag = shown(&self.config.from_tag);
        let named = |phrase: &str| format!("{phrase} <{}>", self.return_address);
        let phrase = phrase(&tag, &name);
        fold("From", &named(&phrase))
            .or_else(|| fold("From", &named(&encoded(&format!("{tag} {name}")))))
            .expect("words of at most 75 characters and a mailbox: both fit a line")
    }

    /// What stands above the message: notice, how to opt out, explanation.
    fn above(&self, to: &Mailbox, explanation: Option<&str>) -> String {
        let opt_out = self.opt_out.as_ref().map(|offer| offer.sentence(to));
        let mut body = String::new();
        for above in [self.notice.as_deref(), opt_out.as_deref(), explanation].into_iter().flatten() {
            let above = above.trim_end();
            if !above.is_empty() {
                body.push_str(above);
                body.push_str("\n\n");
            }
        }
        body
    }
}

/// In UTC, so that it says nothing of where the exit is.
fn date(now: SystemTime) -> String {
    let now = Timestamp::try_from(now).expect("a clock between the years -9999 and 9999");
    now.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

/// 128 random bits: no counter, no time, no host name.
fn message_id(domain: &str, rng: &mut impl rand::CryptoRng) -> String {
    let mut octets = [0; 16];
    rng.fill_bytes(&mut octets);
    format!("<{:032x}@{domain}>", u128::from_be_bytes(octets))
}

#[cfg(test)]
mod tests;
