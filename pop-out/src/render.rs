//! Makes mail (RFC 5322) of what was decoded (E2E-spec 3.2.3).
//!
//! The sender of a message is a stranger: what he says in it becomes a name, a subject, references or a body, and
//! nothing else. Text that looks like armour, reply blocks among it, stays as it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mail_builder::MessageBuilder;
use mail_builder::headers::HeaderType;
use mail_builder::headers::address::Address;
use mail_builder::headers::content_type::ContentType;
use mail_builder::headers::date::Date;
use mail_builder::headers::message_id::MessageId;
use mail_builder::headers::raw::Raw;
use mail_builder::mime::MimePart;
use mix::payload::MessageHeaders;
use mix::payload::words::{encoded, is_message_ids, is_plain, sender_name, shown};
use mix::store::keyring::LOCAL_DOMAIN;
use rand::CryptoRng;

use crate::pop3::Letter;

/// Whom nobody can answer: the address of everyone who sent no reply block. RFC 9476 keeps `.alt` out of the DNS.
pub const ANONYMOUS_ADDRESS: &str = "anonymous@nym.alt";
/// Subject of mail that has none (E2E-spec 3.2.3).
pub const DEFAULT_SUBJECT: &str = "Type III Anonymous Message";

/// Dates name the hour. The minute would help whoever reads the disk later to tell which packet it was.
const DATE_GRAIN: Duration = Duration::from_secs(60 * 60);
/// Characters in a line that this program writes.
const LINE_LEN: usize = 72;
/// What the subject of a mail begins with that came to the mailbox of another identity.
const ASTRAY_MARK: &str = "[to another identity!]";
/// Octets in message ids and boundaries: nobody meets one twice.
const RANDOM_LEN: usize = 16;

/// What goes onto the envelope of a mail.
#[derive(Clone, Copy)]
pub struct Envelope<'a> {
    /// The identity that it is for.
    pub identity: &'a str,
    /// The identity whose mailbox it came to, when that is another (E2E-spec 2.2.5).
    pub astray: Option<&'a str>,
    /// Now.
    pub date: SystemTime,
}

/// Prints no name.
impl std::fmt::Debug for Envelope<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Envelope(..)")
    }
}

/// A mail with these headers and this body. A body that is no text comes as an attachment, octet by octet.
pub fn mail(envelope: &Envelope<'_>, headers: &MessageHeaders, body: &[u8], rng: &mut impl CryptoRng) -> Letter {
    let subject =
        headers.subject.as_deref().map(|subject| clean(&shown(subject))).filter(|subject| !subject.is_empty());
    let from = headers.from.as_deref().and_then(sender_name);
    let mut builder = begin(envelope, from.as_deref(), subject.as_deref().unwrap_or(DEFAULT_SUBJECT), rng);
    for (name, ids) in [("In-Reply-To", &headers.in_reply_to), ("References", &headers.references)] {
        if let Some(ids) = ids.as_deref().map(clean).filter(|ids| is_message_ids(ids)) {
            builder = builder.header(name, Raw::new(ids));
        }
    }
    let part = match text(body) {
        Some(text) => MimePart::new("text/plain", text.to_owned()),
        None => attached("This message is no text. It is attached as it came.\n", body, rng),
    };
    finish(builder.body(part))
}

/// A mail from this program, about something that arrived and could not be made a mail; `armored` is all of it.
pub fn notice(envelope: &Envelope<'_>, subject: &str, why: &str, armored: &str, rng: &mut impl CryptoRng) -> Letter {
    let builder = begin(envelope, None, subject, rng);
    // In short lines of ASCII the armour needs no encoding, and can be cut out of the mail as it lies there.
    finish(builder.body(MimePart::new("text/plain", format!("{}\n\n{armored}", wrapped(why)))))
}

pub(crate) fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= LINE_LEN => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

fn begin(
    envelope: &Envelope<'_>,
    from: Option<&str>,
    subject: &str,
    rng: &mut impl CryptoRng,
) -> MessageBuilder<'static> {
    let subject = match envelope.astray {
        Some(_) => format!("{ASTRAY_MARK} {subject}"),
        None => subject.to_owned(),
    };
    let builder = MessageBuilder::new()
        .header("From", sender(from))
        .header("To", recipient(envelope.identity))
        .header("Subject", unstructured(&subject))
        .header("Date", Date::new(rounded(envelope.date)))
        .header("Message-ID", MessageId::new(format!("{}@{LOCAL_DOMAIN}", random_name(rng))))
        .header("X-Anonymous", Raw::new("yes"));
    match envelope.astray {
        Some(mailbox) => builder.header("X-Mixgate-Warning", unstructured(&astray_warning(mailbox))),
        None => builder,
    }
}

fn astray_warning(mailbox: &str) -> String {
    format!(
        "this reply came to the mailbox of {}. Whoever carried it there may want to see whether both identities are \
         yours: do not let it be noticed that you have read it",
        clean(mailbox)
    )
}

pub(crate) fn finish(builder: MessageBuilder<'_>) -> Letter {
    let mut octets = Vec::new();
    builder.serialize(&mut octets);
    Letter::new(octets)
}

/// A name is quoted, so that it can be nothing but a name, or in encoded words (RFC 2047) of this program.
fn sender(name: Option<&str>) -> HeaderType<'static> {
    match name {
        Some(name) if is_plain(name) => Address::new_address(Some(name.to_owned()), ANONYMOUS_ADDRESS).into(),
        Some(name) => Raw::new(format!("{} <{ANONYMOUS_ADDRESS}>", encoded(name))).into(),
        None => Address::from(ANONYMOUS_ADDRESS).into(),
    }
}

pub(crate) fn recipient(identity: &str) -> Address<'static> {
    let atom = |octet: u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&octet);
    let plain = identity.split('.').all(|word| !word.is_empty() && word.bytes().all(atom));
    let local_part = if plain { identity } else { "identity" };
    Address::new_address(Some(clean(identity)), format!("{local_part}@{LOCAL_DOMAIN}"))
}

/// Free text: as it is where it can stand so, else in encoded words.
pub(crate) fn unstructured(value: &str) -> Raw<'static> {
    Raw::new(if is_plain(value) { value.to_owned() } else { encoded(value) })
}

/// No control characters, no space at the ends, single spaces between (E2E-spec 3.2.3).
pub(crate) fn clean(value: &str) -> String {
    let words = value.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// The body, if it is text: UTF-8 without control characters but for tabs and line ends, so that nothing is lost in
/// making the line ends those of mail.
fn text(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    lines.flat_map(str::chars).all(|c| c == '\t' || !c.is_control()).then_some(text)
}

/// The boundary is made here: the one that mail-builder makes tells the nanosecond.
fn attached(note: &'static str, octets: &[u8], rng: &mut impl CryptoRng) -> MimePart<'static> {
    let content_type = ContentType::new("multipart/mixed").attribute("boundary", format!("={}=", random_name(rng)));
    let attachment = MimePart::new("application/octet-stream", octets.to_vec()).attachment("message.bin");
    MimePart::new(content_type, vec![MimePart::new("text/plain", note), attachment])
}

pub(crate) fn random_name(rng: &mut impl CryptoRng) -> String {
    let mut octets = [0; RANDOM_LEN];
    rng.fill_bytes(&mut octets);
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

pub(crate) fn rounded(date: SystemTime) -> i64 {
    let since = date.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(since - since % DATE_GRAIN.as_secs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use mail_parser::{MessageParser, MimeHeaders};
    use mix::crypto::CounterRng;
    use mix::crypto::stream::StreamKey;
    use proptest::prelude::*;

    use super::*;

    const SENT: Duration = Duration::from_secs(1_700_003_661);

    fn render(headers: &MessageHeaders, body: &[u8]) -> Vec<u8> {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        let envelope = Envelope { identity: "alice", astray: None, date: UNIX_EPOCH + SENT };
        mail(&envelope, headers, body, &mut rng).as_bytes().to_vec()
    }

    fn header_block(octets: &[u8]) -> String {
        let text = String::from_utf8_lossy(octets);
        text.split("\r\n\r\n").next().unwrap().replace("\r\n ", " ").replace("\r\n\t", " ")
    }

    fn header_names(octets: &[u8]) -> Vec<String> {
        let block = header_block(octets);
        block.split("\r\n").map(|line| line.split(':').next().unwrap().to_owned()).collect()
    }

    fn subject(text: &str) -> MessageHeaders {
        MessageHeaders { subject: Some(text.to_owned()), ..MessageHeaders::default() }
    }

    fn from(text: &str) -> MessageHeaders {
        MessageHeaders { from: Some(text.to_owned()), ..MessageHeaders::default() }
    }

    #[test]
    fn mail_without_headers_gets_all_that_a_mail_needs() {
        let octets = render(&MessageHeaders::default(), b"Hello\n\n.\nthere\n");
        let (head, body) = octets.split_at(octets.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4);
        assert_eq!(body, b"Hello\r\n\r\n.\r\nthere\r\n");
        let head = String::from_utf8(head.to_vec()).unwrap();
        let (before_id, after) = head.split_once("Message-ID: <").unwrap();
        let (id, after_id) = after.split_once("@mixgate.alt>").unwrap();
        assert_eq!(id.len(), 32);
        assert_eq!(
            before_id,
            "From: <anonymous@nym.alt>\r\nTo: \"alice\" <alice@mixgate.alt>\r\n\
             Subject: Type III Anonymous Message\r\nDate: Tue, 14 Nov 2023 23:00:00 +0000\r\n"
        );
        assert!(after_id.starts_with("\r\nX-Anonymous: yes\r\nMIME-Version: 1.0\r\n"), "{after_id}");
    }

    #[test]
    fn headers_of_the_message_are_kept() {
        let headers = MessageHeaders {
            subject: Some("  Re:  the   plan ".to_owned()),
            from: Some("Lance Cottrell".to_owned()),
            in_reply_to: Some("<a@b>".to_owned()),
            references: Some("<c@d>  <a@b>".to_owned()),
            // Exits send none to mailboxes: whoever makes one up gets what he wrote as text.
            content_type: Some("text/html".to_owned()),
        };
        let head = header_block(&render(&headers, b"x"));
        for line in [
            "From: \"Lance Cottrell\" <anonymous@nym.alt>\r\n",
            "Subject: Re: the plan\r\n",
            "In-Reply-To: <a@b>\r\n",
            "References: <c@d> <a@b>\r\n",
        ] {
            assert!(head.contains(line), "{head}");
        }
        assert!(!head.contains("text/html"), "{head}");
    }

    #[test]
    fn encoded_words_are_shown_as_what_they_mean() {
        let octets = render(
            &MessageHeaders {
                from: Some("=?UTF-8?B?R3LDvMOfZQ==?=".to_owned()),
                ..subject("=?UTF-8?B?R3LDvMOfZQ==?=")
            },
            b"x",
        );
        let parsed = MessageParser::new().parse(&octets).unwrap();
        assert_eq!(parsed.subject(), Some("Grüße"));
        let sender = parsed.from().unwrap().first().unwrap().clone();
        assert_eq!((sender.name(), sender.address()), (Some("Grüße"), Some(ANONYMOUS_ADDRESS)));
    }

    #[test]
    fn encoded_words_hide_nothing_that_is_forbidden_in_the_clear() {
        for name in ["=?utf-8?Q?=5BFriend=5D?=", "=?utf-8?Q?=22_=3Cceo=40bank.example=3E=3A?="] {
            assert!(header_block(&render(&from(name), b"x")).starts_with("From: <anonymous@nym.alt>\r\n"), "{name}");
        }
        let octets = render(
            &MessageHeaders {
                from: Some("=?utf-8?Q?Bob_=E2=80=AEmoc?=".to_owned()),
                ..subject("=?utf-8?Q?a=0D=0ABcc:x?= =?utf-8?Q?=FF?=")
            },
            b"x",
        );
        let parsed = MessageParser::new().parse(&octets).unwrap();
        assert_eq!(parsed.from().unwrap().first().unwrap().name(), Some("Bob moc"));
        assert_eq!(parsed.subject(), Some("a Bcc:x =?utf-8?Q?=FF?="));
    }

    #[test]
    fn long_subjects_are_folded_and_come_out_whole() {
        let text = "word ".repeat(179) + "word";
        let octets = render(&subject(&text), b"x");
        assert!(octets.split(|octet| *octet == b'\n').all(|line| line.len() < 100));
        assert_eq!(MessageParser::new().parse(&octets).unwrap().subject(), Some(text.as_str()));
    }

    #[test]
    fn strangers_cannot_add_headers_or_addresses() {
        let plain = header_names(&render(&MessageHeaders::default(), b"x"));
        for evil in [
            "a\r\nBcc: eve@example.org",
            "a\n\nbody",
            "a\" <eve@example.org>, \"b",
            "eve@example.org>",
            "a, eve@example.org",
            "=?UTF-8?Q?a?= <eve@example.org>,",
            "=?UTF-8?Q?a<eve@example.org>,?=",
            "=?x?=",
            "(comment",
            "\0\u{7f}\u{85}\u{2028}",
        ] {
            let octets = render(&MessageHeaders { subject: Some(evil.into()), ..from(evil) }, b"x");
            assert_eq!(header_names(&octets), plain, "{evil:?}");
            let parsed = MessageParser::new().parse(&octets).unwrap();
            let senders: Vec<_> =
                parsed.from().unwrap().iter().map(|sender| sender.address().map(str::to_owned)).collect();
            assert_eq!(senders, [Some(ANONYMOUS_ADDRESS.to_owned())], "{evil:?}");
            let headers = MessageHeaders { in_reply_to: Some(evil.into()), references: Some(evil.into()), ..from("a") };
            assert_eq!(header_names(&render(&headers, b"x")), plain, "{evil:?}");
        }
    }

    #[test]
    fn identities_that_are_no_local_part_are_named_beside_the_address() {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        for identity in ["Alice B", "ä", "a@b", "a..b", ""] {
            let envelope = Envelope { identity, astray: None, date: UNIX_EPOCH };
            let letter = mail(&envelope, &MessageHeaders::default(), b"x", &mut rng);
            let parsed = MessageParser::new().parse(letter.as_bytes()).unwrap();
            assert_eq!(parsed.to().unwrap().first().unwrap().address(), Some("identity@mixgate.alt"), "{identity}");
        }
    }

    #[test]
    fn text_in_any_script_stays_text() {
        for body in ["Zwölf Boxkämpfer\n\n.\n..\nfrom\n", "日本語\n", "x", "", "trailing space \n", "\ttab\n", "=3D\n"]
        {
            let octets = render(&MessageHeaders::default(), body.as_bytes());
            let parsed = MessageParser::new().parse(&octets).unwrap();
            let shown = parsed.body_text(0).unwrap_or_default().replace("\r\n", "\n");
            assert_eq!(shown.trim_end_matches('\n'), body.trim_end_matches('\n'));
        }
    }

    #[test]
    fn octets_that_are_no_text_survive_as_an_attachment() {
        let all: Vec<u8> = (0..=255).collect();
        for body in [&all[..], b"\0", b"\xff\n", b"a\rb", b"\x1b[31m"] {
            let octets = render(&MessageHeaders::default(), body);
            let parsed = MessageParser::new().parse(&octets).unwrap();
            let attachment = parsed.attachment(0).unwrap();
            assert_eq!(attachment.contents(), body);
            assert_eq!(attachment.attachment_name(), Some("message.bin"));
            assert!(parsed.body_text(0).unwrap().contains("no text"));
        }
    }

    #[test]
    fn mail_that_went_astray_says_so_where_it_is_seen() {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        let envelope = Envelope { identity: "alice", astray: Some("bob\r\nBcc: eve"), date: UNIX_EPOCH };
        let letter = mail(&envelope, &subject("=?UTF-8?B?R3LDvMOfZQ==?="), b"x", &mut rng);
        let parsed = MessageParser::new().parse(letter.as_bytes()).unwrap();
        assert_eq!(parsed.subject(), Some("[to another identity!] Grüße"));
        let head = header_block(letter.as_bytes());
        assert!(head.contains("X-Mixgate-Warning: this reply came to the mailbox of bob Bcc: eve."), "{head}");
    }

    #[test]
    fn notice_carries_all_that_came() {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        let envelope = Envelope { identity: "alice", astray: None, date: UNIX_EPOCH };
        let letter = notice(&envelope, "Unreadable", "It is unreadable.", "-----BEGIN\nabc\n-----END\n", &mut rng);
        let parsed = MessageParser::new().parse(letter.as_bytes()).unwrap();
        assert_eq!(parsed.subject(), Some("Unreadable"));
        assert!(parsed.body_text(0).unwrap().replace("\r\n", "\n").contains("It is unreadable.\n\n-----BEGIN\nabc\n"));
    }

    proptest! {
        #[test]
        fn no_body_gets_lost(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let octets = render(&MessageHeaders::default(), &body);
            let parsed = MessageParser::new().parse(&octets).unwrap();
            match text(&body) {
                Some(text) => {
                    let shown = parsed.body_text(0).unwrap_or_default().replace("\r\n", "\n");
                    let sent = text.replace("\r\n", "\n");
                    prop_assert_eq!(shown.trim_end_matches('\n'), sent.trim_end_matches('\n'));
                }
                None => prop_assert_eq!(parsed.attachment(0).unwrap().contents(), &body[..]),
            }
        }

        #[test]
        fn no_header_becomes_two(value in any::<String>()) {
            let plain = header_names(&render(&MessageHeaders::default(), b"x"));
            let octets = render(&MessageHeaders { subject: Some(value.clone()), ..from(&value) }, b"x");
            prop_assert_eq!(header_names(&octets), plain);
            let parsed = MessageParser::new().parse(&octets).unwrap();
            prop_assert_eq!(parsed.from().unwrap().first().unwrap().address(), Some(ANONYMOUS_ADDRESS));
        }
    }
}
