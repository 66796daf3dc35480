//! The few headers that a sender may set on a mail that leaves the network (E2E-spec 3.1.2, 3.2.2).
//!
//! They stand before the body, inside the compressed text: `NAME:value` lines in alphabetical order, then an empty
//! line. Values are printable ASCII. What is not is carried as encoded words of RFC 2047, see [`encode_word`]; whoever
//! makes a mail of it reads them, see `super::words`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Longest value of a header, so that mails keep to RFC 2822 (E2E-spec 3.1.2).
pub const VALUE_LEN_MAX: usize = 900;

/// Would let a sender write more than a name into the From line of an exit (E2E-spec 3.2.2).
pub(super) const FORBIDDEN_IN_FROM: [char; 4] = ['"', '[', ']', ':'];

/// Octets of text in one encoded word: 60 characters of base64, so that the word has no more than 75 (RFC 2047, 2).
const WORD_TEXT_LEN: usize = 45;

/// What the sender of a mail may say in its headers. Empty is as good as absent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct MessageHeaders {
    /// What the body is, if it is more than a text (`super::entity`): an extension of ours.
    pub content_type: Option<String>,
    /// Subject.
    pub subject: Option<String>,
    /// The name in From; never an address.
    pub from: Option<String>,
    /// In-Reply-To: a message id.
    pub in_reply_to: Option<String>,
    /// References: message ids.
    pub references: Option<String>,
}

/// Prints nothing of the values.
impl fmt::Debug for MessageHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageHeaders(..)")
    }
}

/// Why headers cannot be sent. The message's author is to blame, who may be told.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidHeader {
    /// Only printable ASCII travels.
    #[error("{name} has characters that are not printable ASCII")]
    NotPrintable {
        /// The header.
        name: &'static str,
    },
    /// Longer than an exit would take.
    #[error("{name} has {len} characters; 900 are allowed")]
    TooLong {
        /// The header.
        name: &'static str,
        /// Characters found.
        len: usize,
    },
    /// From is a name, not an address.
    #[error("FROM has the character {found:?}, which is not allowed in a name")]
    NotAName {
        /// The first such character.
        found: char,
    },
}

/// Writes the headers and the empty line; the body follows.
///
/// # Errors
/// [`InvalidHeader`]. See [`encode_word`] for values that are not ASCII or too long.
pub fn encode(headers: &MessageHeaders) -> Result<Vec<u8>, InvalidHeader> {
    // Alphabetical order, as from every client (E2E-spec 3.1.2).
    let values = [
        ("CONTENT-TYPE", &headers.content_type),
        ("FROM", &headers.from),
        ("IN-REPLY-TO", &headers.in_reply_to),
        ("REFERENCES", &headers.references),
        ("SUBJECT", &headers.subject),
    ];
    if let Some(found) = headers.from.iter().flat_map(|from| from.chars()).find(|c| FORBIDDEN_IN_FROM.contains(c)) {
        return Err(InvalidHeader::NotAName { found });
    }
    let mut encoded = Vec::new();
    for (name, value) in values {
        let Some(value) = value.as_deref().filter(|value| !value.is_empty()) else { continue };
        if !value.bytes().all(is_printable) {
            return Err(InvalidHeader::NotPrintable { name });
        }
        if value.len() > VALUE_LEN_MAX {
            return Err(InvalidHeader::TooLong { name, len: value.len() });
        }
        encoded.extend_from_slice(format!("{name}:{value}\n").as_bytes());
    }
    encoded.push(b'\n');
    Ok(encoded)
}

/// Takes the headers off a message, and returns its body.
///
/// As lenient as the reference: when the header block does not end properly, the whole message is the body, though
/// what was understood before is kept; too long and unknown headers are left out, of repeated ones the last counts.
/// A FROM that could pass for more than a name is left out too.
pub fn parse(message: &[u8]) -> (MessageHeaders, &[u8]) {
    let mut headers = MessageHeaders::default();
    let mut rest = message;
    loop {
        if let Some(body) = rest.strip_prefix(b"\n") {
            return (headers, body);
        }
        let Some((name, value, after)) = header_line(rest) else { return (headers, message) };
        rest = after;
        if value.len() > VALUE_LEN_MAX {
            continue;
        }
        match name {
            b"CONTENT-TYPE" => headers.content_type = Some(value.to_owned()),
            b"FROM" if !value.contains(FORBIDDEN_IN_FROM) => headers.from = Some(value.to_owned()),
            b"IN-REPLY-TO" => headers.in_reply_to = Some(value.to_owned()),
            b"REFERENCES" => headers.references = Some(value.to_owned()),
            b"SUBJECT" => headers.subject = Some(value.to_owned()),
            _ => {}
        }
    }
}

/// Name, value and the rest, if `text` begins with a whole header line.
fn header_line(text: &[u8]) -> Option<(&[u8], &str, &[u8])> {
    let end = text.iter().position(|octet| *octet == b'\n')?;
    let (line, rest) = (text.get(..end)?, text.get(end + 1..)?);
    let colon = line.iter().position(|octet| *octet == b':')?;
    let (name, value) = (line.get(..colon)?, line.get(colon + 1..)?);
    let proper = !name.is_empty() && name.iter().all(u8::is_ascii_graphic) && value.iter().copied().all(is_printable);
    Some((name, std::str::from_utf8(value).ok().filter(|_| proper)?, rest))
}

fn is_printable(octet: u8) -> bool {
    (0x20..=0x7e).contains(&octet)
}

/// Makes any text a value that [`encode`] takes. Control characters become spaces, spaces at both ends go. What is
/// then printable ASCII stays as it is; all else becomes encoded words in UTF-8 (RFC 2047). Text that is too long ends
/// at the last word that fits.
pub fn encode_word(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let clean = clean.trim();
    // What looks like an encoded word already must be encoded, or it would be shown as something else.
    if clean.bytes().all(is_printable) && !clean.contains("=?") {
        cut_at_word(clean).to_owned()
    } else {
        encoded_words(clean)
    }
}

/// No more than 900 characters of ASCII text: up to a space, when there is one.
fn cut_at_word(text: &str) -> &str {
    match text.split_at_checked(VALUE_LEN_MAX) {
        None | Some((_, "")) => text,
        Some((head, rest)) if rest.starts_with(' ') => head.trim_end(),
        Some((head, _)) => head.rsplit_once(' ').map_or(head, |(words, _)| words.trim_end()),
    }
}

fn encoded_words(text: &str) -> String {
    let mut value = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        // Each word holds whole characters (RFC 2047, 5).
        let end = (0..=rest.len().min(WORD_TEXT_LEN)).rev().find(|end| rest.is_char_boundary(*end));
        let (head, after) = rest.split_at(end.unwrap_or(rest.len()));
        let word = format!("=?UTF-8?B?{}?=", STANDARD.encode(head));
        let space = usize::from(!value.is_empty());
        if value.len() + space + word.len() > VALUE_LEN_MAX {
            break;
        }
        if space == 1 {
            value.push(' ');
        }
        value.push_str(&word);
        rest = after;
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{InvalidHeader, MessageHeaders, VALUE_LEN_MAX, encode, encode_word, parse};

    fn subject(text: &str) -> MessageHeaders {
        MessageHeaders { subject: Some(text.to_owned()), ..MessageHeaders::default() }
    }

    fn from(text: &str) -> MessageHeaders {
        MessageHeaders { from: Some(text.to_owned()), ..MessageHeaders::default() }
    }

    #[test]
    fn header_that_would_start_another_line_is_refused() {
        assert_eq!(encode(&subject("a\nBcc: b")), Err(InvalidHeader::NotPrintable { name: "SUBJECT" }));
    }

    #[test]
    fn from_is_a_name_not_an_address_line() {
        for found in ['"', '[', ']', ':'] {
            assert_eq!(encode(&from(&format!("a{found}b"))), Err(InvalidHeader::NotAName { found }));
            assert_eq!(parse(format!("FROM:a{found}b\n\n").as_bytes()).0, MessageHeaders::default());
        }
    }

    #[test]
    fn long_header_is_refused_when_written_and_left_out_when_read() {
        let long = "x".repeat(VALUE_LEN_MAX + 1);
        assert_eq!(encode(&subject(&long)), Err(InvalidHeader::TooLong { name: "SUBJECT", len: 901 }));
        assert_eq!(parse(format!("SUBJECT:{long}\n\nbody").as_bytes()), (MessageHeaders::default(), &b"body"[..]));
    }

    #[test]
    fn empty_message_has_an_empty_body() {
        assert_eq!(parse(b""), (MessageHeaders::default(), &b""[..]));
    }

    #[test]
    fn text_that_is_not_ascii_travels_as_encoded_words() {
        assert_eq!(encode_word("Grüße"), "=?UTF-8?B?R3LDvMOfZQ==?=");
        assert_eq!(encode_word("  plain\ttext\r\n"), "plain text");
        assert_eq!(encode_word("=?x"), "=?UTF-8?B?PT94?=");
        assert_eq!(encode_word(""), "");
    }

    #[test]
    fn long_text_ends_at_the_last_word_that_fits() {
        assert_eq!(encode_word(&"word ".repeat(300)), format!("{}word", "word ".repeat(179)));
        assert_eq!(encode_word(&"x".repeat(1000)), "x".repeat(900));
        let words = encode_word(&"ü".repeat(1000));
        assert!(words.len() <= VALUE_LEN_MAX && words.split(' ').all(|word| word.len() <= 75 && word.ends_with("?=")));
    }

    proptest! {
        #[test]
        fn any_text_can_be_made_a_header(text in any::<String>()) {
            let headers = subject(&encode_word(&text));
            let encoded = encode(&headers).unwrap();
            let (parsed, body) = parse(&encoded);
            prop_assert_eq!(parsed.subject.unwrap_or_default(), headers.subject.unwrap_or_default());
            prop_assert_eq!(body, b"");
        }

        #[test]
        fn arbitrary_octets_do_no_harm(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let (_, body) = parse(&octets);
            prop_assert!(octets.ends_with(body));
        }
    }
}
