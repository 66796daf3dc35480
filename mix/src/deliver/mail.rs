//! A message that leaves the network, written as a mail (E2E-spec 3.2.3, 3.3.3; RFC 5322, 2045, 2047).
//!
//! Text goes out as readable UTF-8, with its attachments if it has some (`multipart`); what cannot be shown as text goes
//! out in armour, with a sentence that says why.
//! Headers come in the order of the reference; what a stranger puts into one never becomes another header. Handing the
//! mail to a server is `smtp`'s.

use std::fmt;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::opt_out::Offer;
use crate::path::Mailbox;
use crate::payload::entity::Entity;

mod multipart;

/// Lines of a header are folded where they would grow beyond this (RFC 5322 2.1.1).
const FOLD_AT: usize = 78;
/// No line of a mail may be longer (RFC 5322 2.1.1).
const MAX_LINE_LEN: usize = 998;
/// An encoded word has at most 75 characters (RFC 2047 2).
const MAX_WORD_LEN: usize = 75;
/// Octets per encoded word that we make: `=?utf-8?B?` + 52 digits + `?=` still fits a line behind `In-Reply-To: `.
const WORD_OCTETS: usize = 39;
const _: () = assert!(10 + WORD_OCTETS.div_ceil(3) * 4 + 2 <= MAX_WORD_LEN);
/// Lines of quoted-printable have at most 76 characters, the `=` at a soft line break included (RFC 2045 6.7).
const QUOTED_PRINTABLE_LINE_LEN: usize = 76;

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
    /// What stands before each message, such as a disclaimer.
    pub notice: Option<String>,
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
    /// The subject.
    pub subject: Option<&'a str>,
    /// The name in the From line; left out when it has one of `"[]:`.
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
            Self::Encrypted { .. } => "Encrypted(..)",
            Self::Overcompressed { .. } => "Overcompressed(..)",
        })
    }
}

impl<'a> Content<'a> {
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
    /// How recipients ask for no more mail.
    opt_out: Option<Offer>,
}

impl MailWriter {
    /// A writer with the exit's settings.
    ///
    /// # Errors
    /// [`NoReturnAddress`].
    pub fn new(config: MailConfig) -> Result<Self, NoReturnAddress> {
        let return_address = config.return_address.clone().ok_or(NoReturnAddress)?;
        Ok(Self { config, return_address, opt_out: None })
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
        match content {
            Content::Attachments(entity) => multipart::write(&mut mail, &self.body(to, content), entity.files()),
            _ => write_text(&mut mail, &self.body(to, content)),
        }
        mail.into_bytes()
    }

    /// The headers that the reference has, in its order.
    fn headers(&self, to: &Mailbox, heading: Heading) -> String {
        let config = &self.config;
        let subject = heading.subject.map(one_line).filter(|subject| !subject.is_empty());
        let mut headers = field("To", to.as_str());
        headers.push_str(&self.from(heading.from));
        headers.push_str(&unstructured("Subject", &subject.unwrap_or_else(|| one_line(&config.subject))));
        headers.push_str(&message_ids("In-Reply-To", heading.in_reply_to));
        headers.push_str(&message_ids("References", heading.references));
        headers.push_str("X-Anonymous: yes\r\n");
        for (name, value) in [("X-Abuse", &config.abuse), ("Comments", &config.comments)] {
            if let Some(value) = value {
                headers.push_str(&unstructured(name, &one_line(value)));
            }
        }
        headers.push_str(&self.opt_out.as_ref().map(|offer| offer.headers(to)).unwrap_or_default());
        headers
    }

    /// `"[Anon] name" <mailbox>`, or the mailbox alone.
    fn from(&self, name: Option<&str>) -> String {
        let name = name.filter(|_| self.config.allow_from).and_then(sender_name);
        let Some(name) = name else { return field("From", self.return_address.as_str()) };
        let tag = one_line(&self.config.from_tag);
        let named = |phrase: &str| format!("{phrase} <{}>", self.return_address);
        let phrase = phrase(&tag, &name);
        fold("From", &named(&phrase))
            .or_else(|| fold("From", &named(&words(&format!("{tag} {name}")))))
            .expect("words of at most 75 characters and a mailbox: both fit a line")
    }

    /// Notice, how to opt out, explanation, message.
    fn body(&self, to: &Mailbox, content: Content) -> String {
        let (explanation, message) = content.parts();
        let opt_out = self.opt_out.as_ref().map(|offer| offer.sentence(to));
        let mut body = String::new();
        for above in [self.config.notice.as_deref(), opt_out.as_deref(), explanation].into_iter().flatten() {
            body.push_str(above.trim_end());
            body.push_str("\n\n");
        }
        body.push_str(message);
        body
    }
}

/// The name that a sender chose, unless E2E-spec 3.2.2 forbids it: a colon or brackets could pass for a tag or a mailbox.
fn sender_name(name: &str) -> Option<String> {
    let words: Vec<String> = one_line(name).split_whitespace().map(str::to_owned).collect();
    let name = words.join(" ");
    if name.is_empty() || name.contains(['"', '[', ']', ':']) { None } else { Some(name) }
}

/// A header whose value is our own and short.
fn field(name: &str, value: &str) -> String {
    format!("{name}: {value}\r\n")
}

/// Controls become spaces: no value of a header can begin a line.
fn one_line(value: &str) -> String {
    let spaced: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    spaced.trim().to_owned()
}

/// A header of free text: as it is where it is ASCII (encoded words included), else in encoded words.
fn unstructured(name: &str, value: &str) -> String {
    let plain = value.is_ascii() && value.split(' ').all(|token| !token.contains("=?") || is_encoded_word(token));
    let folded = if plain { fold(name, value) } else { None };
    folded.or_else(|| fold(name, &words(value))).expect("words of at most 75 characters fit a line")
}

/// In-Reply-To and References: message ids or nothing.
fn message_ids(name: &str, value: Option<&str>) -> String {
    let ids = value.map(one_line).filter(|ids| !ids.is_empty() && ids.is_ascii());
    ids.and_then(|ids| fold(name, &ids)).unwrap_or_default()
}

/// The name of a mailbox (RFC 5322 phrase). ASCII is quoted, encoded words stand unquoted, since within quotes they
/// would be no more than strange text (RFC 2047 5).
fn phrase(tag: &str, name: &str) -> String {
    let plain = |token: &str| token.is_ascii() && !token.contains("=?");
    if name.split(' ').all(plain) && plain(tag) {
        return quoted(&format!("{tag} {name}"));
    }
    let tag_part = match tag {
        "" => String::new(),
        tag if plain(tag) => quoted(tag) + " ",
        tag => words(tag) + " ",
    };
    if !name.split(' ').all(|token| plain(token) || is_encoded_word(token)) {
        return format!("{tag_part}{}", words(name));
    }
    let tokens = name.split(' ').filter(|token| !token.is_empty());
    let parts: Vec<String> = tokens.map(|token| if plain(token) { quoted(token) } else { token.to_owned() }).collect();
    format!("{tag_part}{}", parts.join(" "))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.trim().replace('\\', "\\\\").replace('"', "\\\""))
}

/// `=?charset?encoding?text?=`, well formed and without a hidden line end (RFC 2047 2). What only looks like one is
/// encoded once more, so that readers see it as it is.
fn is_encoded_word(token: &str) -> bool {
    let inner = token.strip_prefix("=?").and_then(|rest| rest.strip_suffix("?="));
    let mut parts = inner.unwrap_or_default().split('?');
    let (Some(charset), Some(encoding), Some(text), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_charset =
        !charset.is_empty() && charset.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.:+*".contains(&c));
    let hides_line_end = match encoding {
        "B" | "b" => STANDARD_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_or(true, |octets| octets.iter().any(|octet| b"\r\n\0".contains(octet))),
        "Q" | "q" => {
            let lower = text.to_ascii_lowercase();
            ["=0d", "=0a", "=00"].iter().any(|hidden| lower.contains(hidden))
        }
        _ => true,
    };
    token.len() <= MAX_WORD_LEN && text.bytes().all(|c| c.is_ascii_graphic()) && is_charset && !hides_line_end
}

/// The text in encoded words of UTF-8, a space between each; readers drop those spaces (RFC 2047 6.2).
fn words(text: &str) -> String {
    let mut words = Vec::new();
    let mut piece = String::new();
    for c in text.chars() {
        if piece.len() + c.len_utf8() > WORD_OCTETS {
            words.push(word(&piece));
            piece.clear();
        }
        piece.push(c);
    }
    if !piece.is_empty() {
        words.push(word(&piece));
    }
    words.join(" ")
}

fn word(piece: &str) -> String {
    format!("=?utf-8?B?{}?=", STANDARD.encode(piece))
}

/// The header, broken before spaces so that unfolding gives the value back. `None` when a single word is longer than a
/// line may be.
fn fold(name: &str, value: &str) -> Option<String> {
    let mut folded = String::new();
    let mut line = format!("{name}:");
    let mut blank = true;
    for token in value.split(' ') {
        if !token.is_empty() && !blank && line.len() + 1 + token.len() > FOLD_AT {
            folded.push_str(&line);
            folded.push_str("\r\n");
            line.clear();
        }
        line.push(' ');
        line.push_str(token);
        blank = blank && token.is_empty();
        if line.len() > MAX_LINE_LEN {
            return None;
        }
    }
    Some(folded + &line + "\r\n")
}

/// The headers that say how the text is written, and the text.
fn write_text(mail: &mut String, text: &str) {
    let (encoding, body) = transfer_encode(text);
    mail.push_str("Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: ");
    mail.push_str(encoding);
    mail.push_str("\r\n\r\n");
    mail.push_str(&body);
}

/// As it is where SMTP allows, else as quoted-printable. A text always ends its last line.
fn transfer_encode(text: &str) -> (&'static str, String) {
    // A CR alone is the end of a line for some servers, behind which a command may stand.
    let is_plain = |line: &str| line.len() <= MAX_LINE_LEN && !line.contains(['\r', '\0']);
    if text.is_ascii() && text.lines().all(is_plain) {
        return ("7bit", text.lines().flat_map(|line| [line, "\r\n"]).collect());
    }
    let mut encoded = String::with_capacity(text.len() * 3 / 2);
    for line in text.lines() {
        quoted_printable(line, &mut encoded);
        encoded.push_str("\r\n");
    }
    ("quoted-printable", encoded)
}

/// One line of text as lines of at most 76 characters (RFC 2045 6.7).
fn quoted_printable(line: &str, encoded: &mut String) {
    let mut width = 0;
    let last = line.len().saturating_sub(1);
    for (index, octet) in line.bytes().enumerate() {
        // A blank at the end of a line may get lost on its way.
        let literal = match octet {
            b' ' | b'\t' => index != last,
            b'=' => false,
            other => other.is_ascii_graphic(),
        };
        let piece = if literal { char::from(octet).to_string() } else { format!("={octet:02X}") };
        if width + piece.len() > QUOTED_PRINTABLE_LINE_LEN - 1 {
            encoded.push_str("=\r\n");
            width = 0;
        }
        width += piece.len();
        encoded.push_str(&piece);
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
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use mail_parser::{HeaderValue, MessageParser};

    use super::*;
    use crate::crypto::CounterRng;
    use crate::crypto::pk::PrivateKey;
    use crate::crypto::stream::StreamKey;
    use crate::deliver::opt_out::OptOutKey;

    fn config() -> MailConfig {
        let return_address = Some(Mailbox::parse("nobody@exit.example").unwrap());
        MailConfig { return_address, ..MailConfig::default() }
    }

    fn write_with(config: MailConfig, heading: Heading, content: Content) -> String {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        let to = Mailbox::parse("bob@example.org").unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_795_395_600);
        let mail = MailWriter::new(config).unwrap().write(&to, heading, content, now, &mut rng);
        let mail = String::from_utf8(mail).unwrap();
        assert!(mail.is_ascii());
        assert!(!mail.replace("\r\n", "").contains(['\r', '\n']), "{mail:?}");
        assert!(mail.split("\r\n").all(|line| line.len() <= MAX_LINE_LEN), "{mail}");
        mail
    }

    fn write(heading: Heading, content: Content) -> String {
        write_with(config(), heading, content)
    }

    fn body_of(mail: &str) -> String {
        let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
        parsed.body_text(0).unwrap().into_owned()
    }

    fn subject_of(subject: &str) -> (String, String) {
        let mail = write(Heading { subject: Some(subject), ..Heading::default() }, Content::Text("x"));
        let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
        (parsed.subject().unwrap().to_owned(), mail)
    }

    fn from_of(name: &str) -> (Option<String>, String) {
        let mail = write(Heading { from: Some(name), ..Heading::default() }, Content::Text("x"));
        let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
        let from = parsed.from().unwrap().first().unwrap();
        assert_eq!(parsed.from().unwrap().iter().count(), 1);
        assert_eq!(from.address(), Some("nobody@exit.example"));
        let line = mail.split("\r\n").find(|line| line.starts_with("From: ")).unwrap();
        (from.name().map(str::to_owned), line.to_owned())
    }

    #[test]
    fn ascii_text_goes_out_as_it_is_under_the_headers_of_the_reference() {
        let heading = Heading {
            subject: Some("A subject"),
            from: Some("Some Body"),
            in_reply_to: Some("<a@b>"),
            references: Some("<a@b> <c@d>"),
        };
        let config = MailConfig {
            abuse: Some("abuse@exit.example".into()),
            comments: Some("See https://exit.example".into()),
            notice: Some("Nobody knows the sender.".into()),
            ..config()
        };
        let mail = write_with(config, heading, Content::Text("Hello\n.\nFrom me\n"));
        let (before, after) = mail.split_once("Message-ID: <").unwrap();
        let (id, after) = after.split_once('>').unwrap();
        assert_eq!(
            before,
            "To: bob@example.org\r\nFrom: \"[Anon] Some Body\" <nobody@exit.example>\r\nSubject: A subject\r\n\
             In-Reply-To: <a@b>\r\nReferences: <a@b> <c@d>\r\nX-Anonymous: yes\r\nX-Abuse: abuse@exit.example\r\n\
             Comments: See https://exit.example\r\nDate: Mon, 23 Nov 2026 01:00:00 +0000\r\n"
        );
        assert_eq!((id.len(), id.split_once('@').unwrap().1), (32 + 1 + "exit.example".len(), "exit.example"));
        assert_eq!(
            after,
            "\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
             Nobody knows the sender.\r\n\r\nHello\r\n.\r\nFrom me\r\n"
        );
    }

    #[test]
    fn mail_says_how_to_get_no_more_of_them_above_the_message_and_to_programs() {
        let key = OptOutKey::of(&PrivateKey::generate(1024, &mut rand::rng()).unwrap());
        let to = Mailbox::parse("bob@example.org").unwrap();
        let offer = Offer::new(key, Some("https://exit.example/o".into()), None).unwrap();
        let (headers, sentence) = (offer.headers(&to), offer.sentence(&to));
        let config = MailConfig { notice: Some("Nobody knows the sender.".into()), ..config() };
        let writer = MailWriter::new(config).unwrap().offering(Some(offer));
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        let mail = writer.write(&to, Heading::default(), Content::Text("Hello\n"), UNIX_EPOCH, &mut rng);
        let mail = String::from_utf8(mail).unwrap();
        assert!(mail.contains(&format!("\r\nX-Anonymous: yes\r\n{headers}Date: ")), "{mail}");
        assert!(
            mail.ends_with(&format!("\r\n\r\nNobody knows the sender.\r\n\r\n{sentence}\r\n\r\nHello\r\n")),
            "{mail}"
        );
        let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
        let url = format!("https://exit.example/o?token={}", &sentence.split_once("token=").unwrap().1);
        assert!(
            matches!(parsed.header("List-Unsubscribe"), Some(HeaderValue::Address(found))
            if found.first().and_then(|link| link.address.as_deref()) == Some(url.as_str())),
            "{mail}"
        );
    }

    #[test]
    fn message_without_headers_gets_the_defaults() {
        let mail = write(Heading::default(), Content::Text("x\n"));
        let expected = "To: bob@example.org\r\nFrom: nobody@exit.example\r\nSubject: Type III Anonymous Message\r\n\
                        X-Anonymous: yes\r\nDate: ";
        assert!(mail.starts_with(expected), "{mail}");
        let (subject, _) = subject_of(" \t ");
        assert_eq!(subject, "Type III Anonymous Message");
    }

    #[test]
    fn utf8_text_arrives_byte_for_byte() {
        let texts = [
            "Grüße aus Köln = \u{20ac} 5\n\n  indented\t\ntrailing blanks  \n.\n..\nFrom x\n",
            "没有名字的信\n",
            &format!("{}\n{}\n", "é".repeat(3000), "a ".repeat(500)),
            &format!("{}\n", "x".repeat(999)),
        ];
        for text in texts {
            let mail = write(Heading::default(), Content::Text(text));
            assert!(mail.contains("Content-Transfer-Encoding: quoted-printable\r\n"));
            let (_, body) = mail.split_once("\r\n\r\n").unwrap();
            assert!(body.split("\r\n").all(|line| line.len() <= QUOTED_PRINTABLE_LINE_LEN));
            assert_eq!(body_of(&mail).replace("\r\n", "\n"), text);
        }
    }

    #[test]
    fn line_ends_of_either_kind_become_one_kind() {
        let mail = write(Heading::default(), Content::Text("a\r\nb\nc"));
        assert!(mail.ends_with("\r\n\r\na\r\nb\r\nc\r\n"));
    }

    #[test]
    fn only_what_a_mail_can_show_is_text() {
        assert_eq!(as_text("Grüße\r\n\ttab\n".as_bytes()), Some("Grüße\r\n\ttab\n"));
        assert_eq!(as_text(b""), Some(""));
        for octets in [&b"caf\xe9"[..], b"a\0b", b"bell\x07", b"lone\rcr", b"cr at end\r", b"\x1b[2J", b"\xc2\x85"] {
            assert_eq!(as_text(octets), None, "{octets:?}");
        }
    }

    #[test]
    fn armour_comes_with_a_sentence_that_says_why() {
        let armour = "-----BEGIN TYPE III ANONYMOUS MESSAGE-----\n";
        for (content, words) in [
            (Content::Binary { armour }, "is not text"),
            (Content::Encrypted { armour }, "with a key only"),
            (Content::Overcompressed { armour }, "compressed"),
        ] {
            let mail = write(Heading::default(), content);
            let (explanation, rest) =
                body_of(&mail).split_once("\r\n\r\n").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
            assert!(explanation.contains(words), "{explanation}");
            assert_eq!(rest.replace("\r\n", "\n"), armour);
        }
    }

    #[test]
    fn non_ascii_subject_goes_out_in_encoded_words_and_comes_back_whole() {
        let subject = "Grüße, ".repeat(40) + "Ende 没有 \u{1f980}";
        let (back, mail) = subject_of(&subject);
        assert_eq!(back, subject);
        assert!(mail.split("\r\n").all(|line| line.len() <= FOLD_AT));
    }

    #[test]
    fn long_subject_is_folded_and_unfolds_to_itself() {
        let subject = "word  and ".repeat(60).trim_end().to_owned();
        let (_, mail) = subject_of(&subject);
        let (_, rest) = mail.split_once("Subject: ").unwrap();
        let (folded, _) = rest.split_once("\r\nX-Anonymous").unwrap();
        assert!(folded.split("\r\n").all(|line| line.len() <= FOLD_AT && !line.trim().is_empty()));
        assert_eq!(folded.replace("\r\n", ""), subject);
        // A word longer than any line has no place to fold.
        let (back, _) = subject_of(&"x".repeat(1500));
        assert_eq!(back, "x".repeat(1500));
    }

    #[test]
    fn encoded_words_of_the_sender_are_passed_on() {
        let (back, mail) = subject_of("Re: =?iso-8859-1?Q?Gr=FC=DFe?= =?utf-8?B?w7w=?=");
        assert!(mail.contains("Subject: Re: =?iso-8859-1?Q?Gr=FC=DFe?= =?utf-8?B?w7w=?=\r\n"));
        assert_eq!(back, "Re: Grüßeü");
        let (name, line) = from_of("Dr. =?utf-8?Q?J=C3=B6rg?= X");
        assert_eq!(line, "From: \"[Anon]\" \"Dr.\" =?utf-8?Q?J=C3=B6rg?= \"X\" <nobody@exit.example>");
        assert!(name.unwrap().contains("Jörg"));
    }

    #[test]
    fn words_that_hide_a_line_end_are_shown_as_they_are() {
        for hidden in ["=?utf-8?Q?a=0D=0ABcc:x?=", "=?utf-8?B?YQ0KYg==?=", "=?utf-8?X?a?=", "=?utf-8?Q?a?b?=", "=?"] {
            let (back, mail) = subject_of(hidden);
            assert_eq!(back, hidden);
            assert!(!mail.contains(&format!("Subject: {hidden}\r\n")));
            if !hidden.contains(':') {
                assert_eq!(from_of(hidden).0.unwrap().replace("[Anon] ", ""), hidden);
            }
        }
    }

    #[test]
    fn names_are_tagged_quoted_and_encoded() {
        assert_eq!(from_of("Jörg Müller").0.unwrap(), "[Anon] Jörg Müller");
        assert_eq!(from_of(" a  b\\c\t").1, "From: \"[Anon] a b\\\\c\" <nobody@exit.example>");
        assert_eq!(from_of("bob@example.com <x>").0.unwrap(), "[Anon] bob@example.com <x>");
        assert!(from_of(&"n".repeat(1200)).0.unwrap().ends_with("nnn"));
        let config_without_tag = MailConfig { from_tag: String::new(), ..config() };
        for (name, shown) in [("Joe", "From: \"Joe\" <"), ("=?utf-8?Q?J=C3=B6rg?=", "From: =?utf-8?Q?J=C3=B6rg?= <")] {
            let heading = Heading { from: Some(name), ..Heading::default() };
            assert!(write_with(config_without_tag.clone(), heading, Content::Text("x")).contains(shown));
        }
        let config = MailConfig { allow_from: false, ..config() };
        let mail = write_with(config, Heading { from: Some("Joe"), ..Heading::default() }, Content::Text("x"));
        assert!(mail.contains("\r\nFrom: nobody@exit.example\r\n"));
    }

    #[test]
    fn name_with_a_forbidden_character_is_left_out() {
        for name in ["Bob\" <bob@example.com>", "x]", "[Friend]", "a: b", " "] {
            assert_eq!(from_of(name).1, "From: nobody@exit.example", "{name}");
        }
    }

    #[test]
    fn no_value_begins_a_header_of_its_own() {
        let evil = "x\r\nBcc: eve@example.com\r\n\r\nbody\nX: y\u{85}\0";
        let heading =
            Heading { subject: Some(evil), from: Some(evil), in_reply_to: Some(evil), references: Some(evil) };
        let mail = write(heading, Content::Text("text\n"));
        let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
        assert_eq!(parsed.bcc().map(|_| ()), None);
        assert!(matches!(parsed.header("X"), None | Some(HeaderValue::Empty)));
        assert_eq!(parsed.body_text(0).unwrap(), "text\r\n");
        assert!(mail.split("\r\n").all(|line| !line.starts_with("Bcc") && !line.starts_with("body")));
    }

    #[test]
    fn line_end_of_half_a_kind_is_encoded() {
        for text in ["a\r.\r\nb\n", "a\r", "\0"] {
            let mail = write(Heading::default(), Content::Text(text));
            assert!(!mail.replace("\r\n", "").contains(['\r', '\n', '\0']), "{mail:?}");
        }
    }

    #[test]
    fn message_ids_that_are_none_are_left_out() {
        let long = format!("<{}@x>", "y".repeat(1000));
        let heading = Heading { in_reply_to: Some("<é@x>"), references: Some(&long), ..Heading::default() };
        let mail = write(heading, Content::Text("x"));
        assert!(!mail.contains("In-Reply-To") && !mail.contains("References"));
    }

    #[test]
    fn writer_without_return_address_is_refused() {
        assert_eq!(MailWriter::new(MailConfig::default()).unwrap_err(), NoReturnAddress);
    }

    #[test]
    fn settings_are_read_as_an_operator_writes_them() {
        let json = r#"{"return_address": "nobody@exit.example", "abuse": "x", "from_tag": "[A]"}"#;
        let read: MailConfig = serde_json::from_str(json).unwrap();
        let expected = MailConfig { abuse: Some("x".into()), from_tag: "[A]".into(), ..config() };
        assert_eq!(read, expected);
        assert_eq!(serde_json::from_str::<MailConfig>(&serde_json::to_string(&expected).unwrap()).unwrap(), expected);
        assert!(serde_json::from_str::<MailConfig>(r#"{"return_address": "nobody"}"#).is_err());
        assert!(serde_json::from_str::<MailConfig>(r#"{"subjet": "x"}"#).is_err());
    }

    #[test]
    fn nothing_of_a_message_is_printed() {
        assert_eq!(format!("{:?}", Content::Text("secret")), "Text(..)");
    }
}
