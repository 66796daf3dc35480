//! Text armour, after OpenPGP's: what an exit hands over by mail, and reply blocks (E2E-spec 3.1.1).
//!
//! There is no CRC-24 line: the reference has none. Blocks of other kinds, and the text around blocks, are passed over.
//! Base64 is read strictly, where the reference skips what is not base64.

use std::fmt;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::exit::ExitContent;
use crate::packet::surb::{InvalidSurb, Surb};
use crate::packet::{HANDLE_LEN, Handle};

/// What stands between BEGIN or END and the dashes around messages.
const MESSAGE: &str = "TYPE III ANONYMOUS MESSAGE";
/// What stands between BEGIN or END and the dashes around reply blocks.
const REPLY_BLOCK: &str = "TYPE III REPLY BLOCK";
/// Version of the armour of reply blocks. What is inside says 0.1.
const SURB_ARMOR_VERSION: &str = "0.2";
/// Characters in a line of base64.
const LINE_LEN: usize = 64;

/// The longest armour of a reply block whose first mix has a host name of the DNS, at most 253 octets. Whoever writes
/// reply blocks below a text has to know how much room to leave before they are made.
pub const MAX_SURB_TEXT_LEN: usize = 3500;

/// A message as an exit hands it over.
#[derive(Clone, PartialEq, Eq)]
pub enum ArmoredMessage {
    /// "plaintext": text, its dashes escaped.
    Text(Vec<u8>),
    /// "binary": a message in the clear that is not text.
    Binary(Vec<u8>),
    /// "overcompressed": compressed text that grows suspiciously.
    Overcompressed(Vec<u8>),
    /// "fragment": the payload of a fragment.
    Fragment(Vec<u8>),
    /// "encrypted": a payload for whoever can decode it.
    Encrypted {
        /// How to decode it.
        handle: Handle,
        /// The payload; of any length as far as the armour goes.
        payload: Vec<u8>,
    },
}

/// Prints which it is.
impl fmt::Debug for ArmoredMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArmoredMessage({}, ..)", self.message_type())
    }
}

/// Something found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// What was found.
    pub item: T,
    /// Where: from the BEGIN line to the END line, both included. So it can be cut out.
    pub range: Range<usize>,
}

/// A reply block found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArmoredSurb {
    /// The reply block.
    pub surb: Surb,
    /// Whether the armour said "Version: 0.2". If not it deserves a warning; the block has a version of its own.
    pub known_version: bool,
}

/// Why armour is not readable. Blames whoever wrote or garbled the text.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidArmor {
    /// A BEGIN line without its END line.
    #[error("{kind}: there is no END line")]
    NoEnd {
        /// What stands in the BEGIN line.
        kind: &'static str,
    },
    /// Between the BEGIN line and the empty line only "Name: value" is allowed.
    #[error("{kind}: a line before the first empty line is not a header")]
    Header {
        /// What stands in the BEGIN line.
        kind: &'static str,
    },
    /// Other characters than base64 has, or a wrong count of them.
    #[error("{kind}: not base64")]
    Base64 {
        /// What stands in the BEGIN line.
        kind: &'static str,
    },
    /// A mail gateway wrote "[...]" in place of the rest.
    #[error("{kind}: a gateway has cut it short")]
    CutByGateway {
        /// What stands in the BEGIN line.
        kind: &'static str,
    },
    /// None of the five known Message-types.
    #[error("unknown Message-type")]
    MessageType,
    /// An encrypted message without a decoding handle cannot be decoded.
    #[error("an encrypted message without a Decoding-handle")]
    MissingHandle,
    /// Only encrypted messages have a decoding handle.
    #[error("a message that is not encrypted has a Decoding-handle")]
    UnexpectedHandle,
    /// A decoding handle that is not 20 octets of base64.
    #[error("not a Decoding-handle")]
    Handle,
    /// What is in the armour is not a reply block.
    #[error(transparent)]
    Surb(#[from] InvalidSurb),
}

impl ArmoredMessage {
    /// The value of Message-type.
    fn message_type(&self) -> &'static str {
        match self {
            Self::Text(_) => "plaintext",
            Self::Binary(_) => "binary",
            Self::Overcompressed(_) => "overcompressed",
            Self::Fragment(_) => "fragment",
            Self::Encrypted { .. } => "encrypted",
        }
    }

    /// The octets inside.
    pub fn contents(&self) -> &[u8] {
        match self {
            Self::Text(contents)
            | Self::Binary(contents)
            | Self::Overcompressed(contents)
            | Self::Fragment(contents)
            | Self::Encrypted { payload: contents, .. } => contents,
        }
    }

    /// The armour with all in it. Octets, since the encoding of plaintext is its sender's affair.
    pub fn to_text(&self) -> Vec<u8> {
        let message_type = ("Message-type", self.message_type().to_owned());
        match self {
            Self::Text(text) => armored(MESSAGE, &[message_type], &dash_escaped(text)),
            Self::Encrypted { handle: Handle(octets), payload } => {
                armored(MESSAGE, &[message_type, ("Decoding-handle", STANDARD.encode(octets))], &base64_lines(payload))
            }
            _ => armored(MESSAGE, &[message_type], &base64_lines(self.contents())),
        }
    }

    fn from_block(block: &Block<'_>) -> Result<Self, InvalidArmor> {
        let message_type = block.header("Message-type").unwrap_or(b"plaintext");
        let handle = block.header("Decoding-handle").map(parse_handle).transpose()?;
        if handle.is_some() && message_type != b"encrypted" {
            return Err(InvalidArmor::UnexpectedHandle);
        }
        match message_type {
            b"plaintext" => Ok(Self::Text(dash_unescaped(block.body))),
            b"binary" => block.base64().map(Self::Binary),
            b"overcompressed" => block.base64().map(Self::Overcompressed),
            b"fragment" => block.base64().map(Self::Fragment),
            b"encrypted" => {
                let handle = handle.ok_or(InvalidArmor::MissingHandle)?;
                Ok(Self::Encrypted { handle, payload: block.base64()? })
            }
            _ => Err(InvalidArmor::MessageType),
        }
    }
}

/// What the recipient of `content` gets to read.
pub fn message_to_text(content: &ExitContent) -> Vec<u8> {
    let message = match content {
        ExitContent::Plain { body, .. } if is_text(body) => ArmoredMessage::Text(body.clone()),
        ExitContent::Plain { body, .. } => ArmoredMessage::Binary(body.clone()),
        ExitContent::Overcompressed { compressed } => ArmoredMessage::Overcompressed(compressed.clone()),
        ExitContent::Encrypted { handle, payload } => {
            ArmoredMessage::Encrypted { handle: *handle, payload: payload.as_bytes().to_vec() }
        }
        ExitContent::Fragment { payload } => ArmoredMessage::Fragment(payload.as_bytes().to_vec()),
    };
    message.to_text()
}

/// All messages in a text.
///
/// # Errors
/// The first [`InvalidArmor`] met.
pub fn messages_from_text(text: &[u8]) -> Result<Vec<Found<ArmoredMessage>>, InvalidArmor> {
    blocks(text, MESSAGE)?
        .into_iter()
        .map(|block| Ok(Found { item: ArmoredMessage::from_block(&block)?, range: block.range }))
        .collect()
}

/// The armour of one reply block. For several write one after the other.
pub fn surb_to_text(surb: &Surb) -> String {
    let version = ("Version", SURB_ARMOR_VERSION.to_owned());
    let text = armored(REPLY_BLOCK, &[version], &base64_lines(&surb.to_bytes()));
    String::from_utf8(text).expect("ASCII headers and base64")
}

/// All reply blocks in a text.
///
/// # Errors
/// The first [`InvalidArmor`] met.
pub fn surbs_from_text(text: &[u8]) -> Result<Vec<Found<ArmoredSurb>>, InvalidArmor> {
    let found = |block: Block<'_>| {
        let surb = Surb::parse(&block.base64()?)?;
        let known_version = block.header("Version") == Some(SURB_ARMOR_VERSION.as_bytes());
        Ok(Found { item: ArmoredSurb { surb, known_version }, range: block.range })
    };
    blocks(text, REPLY_BLOCK)?.into_iter().map(found).collect()
}

/// Whether a body needs no base64: printable ASCII, white space, and the octets of other character sets, as the
/// reference has it. It takes 0x80 to 0xFE, but not 0xFF.
pub fn is_text(body: &[u8]) -> bool {
    body.iter().all(|octet| matches!(octet, b'\t' | b'\n' | 0x0b | b'\r' | 0x20..=0x7e | 0x80..=0xfe))
}

/// Names and values, in order. Octets: a comment may be of any character set.
type Headers<'a> = Vec<(&'a [u8], &'a [u8])>;

/// Headers and body between a BEGIN and an END line.
struct Block<'a> {
    kind: &'static str,
    headers: Headers<'a>,
    body: &'a [u8],
    range: Range<usize>,
}

impl<'a> Block<'a> {
    /// The value of a header; of several the last, as in the reference.
    fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers.iter().rev().find(|(found, _)| *found == name.as_bytes()).map(|(_, value)| *value)
    }

    fn base64(&self) -> Result<Vec<u8>, InvalidArmor> {
        if self.body.split(|octet| *octet == b'\n').any(|line| line.starts_with(b"[...]")) {
            return Err(InvalidArmor::CutByGateway { kind: self.kind });
        }
        let characters: Vec<u8> = self.body.iter().copied().filter(|octet| !octet.is_ascii_whitespace()).collect();
        STANDARD.decode(characters).map_err(|_| InvalidArmor::Base64 { kind: self.kind })
    }
}

/// All blocks of one kind. One pass: text from strangers may have many BEGIN lines.
fn blocks<'a>(text: &'a [u8], kind: &'static str) -> Result<Vec<Block<'a>>, InvalidArmor> {
    let mut blocks = Vec::new();
    let mut begun: Option<(usize, usize)> = None;
    let mut position = 0;
    for line in text.split_inclusive(|octet| *octet == b'\n') {
        let (start, end) = (position, position + line.len());
        position = end;
        match begun {
            None if is_boundary(line, "BEGIN", kind) => begun = Some((start, end)),
            Some((block_start, inside)) if is_boundary(line, "END", kind) => {
                let (headers, body) = parse_inside(text.get(inside..start).unwrap_or_default(), kind)?;
                blocks.push(Block { kind, headers, body, range: block_start..end });
                begun = None;
            }
            _ => {}
        }
    }
    if begun.is_some() { Err(InvalidArmor::NoEnd { kind }) } else { Ok(blocks) }
}

/// `-----BEGIN kind-----` and nothing but spaces, tabs and a line end.
fn is_boundary(line: &[u8], word: &str, kind: &str) -> bool {
    line.strip_prefix(b"-----")
        .and_then(|rest| rest.strip_prefix(word.as_bytes()))
        .and_then(|rest| rest.strip_prefix(b" "))
        .and_then(|rest| rest.strip_prefix(kind.as_bytes()))
        .and_then(|rest| rest.strip_prefix(b"-----"))
        .map(|rest| rest.strip_suffix(b"\n").unwrap_or(rest))
        .map(|rest| rest.strip_suffix(b"\r").unwrap_or(rest))
        .is_some_and(|rest| rest.iter().all(|octet| b" \t".contains(octet)))
}

/// The headers up to an empty line, and the body after it.
fn parse_inside<'a>(inside: &'a [u8], kind: &'static str) -> Result<(Headers<'a>, &'a [u8]), InvalidArmor> {
    let mut headers = Vec::new();
    let mut rest = inside;
    for line in inside.split_inclusive(|octet| *octet == b'\n') {
        rest = rest.get(line.len()..).unwrap_or_default();
        if line.iter().all(is_blank) {
            break;
        }
        headers.push(header(line).ok_or(InvalidArmor::Header { kind })?);
    }
    Ok((headers, rest))
}

/// `Name: value`, the value up to its line end with all its blanks, as the reference reads it.
fn header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, value) = line.split_at_checked(line.iter().position(|octet| *octet == b':')?)?;
    let value = value.strip_prefix(b": ")?.split(|octet| b"\r\n".contains(octet)).next()?;
    (!name.is_empty() && !name.iter().any(is_blank) && !value.is_empty()).then_some((name, value))
}

/// White space of ASCII, vertical tabs too. What other character sets have ends no header.
fn is_blank(octet: &u8) -> bool {
    octet.is_ascii_whitespace() || *octet == 0x0b
}

fn parse_handle(value: &[u8]) -> Result<Handle, InvalidArmor> {
    let octets = STANDARD.decode(value).map_err(|_| InvalidArmor::Handle)?;
    <[u8; HANDLE_LEN]>::try_from(octets).map(Handle).map_err(|_| InvalidArmor::Handle)
}

fn armored(kind: &str, headers: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("-----BEGIN {kind}-----\n").into_bytes();
    for (name, value) in headers {
        text.extend_from_slice(format!("{name}: {value}\n").as_bytes());
    }
    text.push(b'\n');
    text.extend_from_slice(body);
    // The body alone counts: without one an empty line stands for it, as from every exit.
    if !body.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(format!("-----END {kind}-----\n").as_bytes());
    text
}

fn base64_lines(octets: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(octets.len() / 3 * 4 + octets.len() / 48 + 8);
    for line in STANDARD.encode(octets).as_bytes().chunks(LINE_LEN) {
        lines.extend_from_slice(line);
        lines.push(b'\n');
    }
    lines
}

/// `- ` before each line that begins with a dash, so that no line looks like a boundary.
fn dash_escaped(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|octet| *octet == b'\n') {
        if line.starts_with(b"-") {
            escaped.extend_from_slice(b"- ");
        }
        escaped.extend_from_slice(line);
    }
    escaped
}

fn dash_unescaped(text: &[u8]) -> Vec<u8> {
    let mut unescaped = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|octet| *octet == b'\n') {
        unescaped.extend_from_slice(line.strip_prefix(b"- ").unwrap_or(line));
    }
    unescaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        ArmoredMessage, InvalidArmor, MAX_SURB_TEXT_LEN, MESSAGE, messages_from_text, surb_to_text, surbs_from_text,
    };
    use crate::crypto::KeyId;
    use crate::crypto::keyset::SharedSecret;
    use crate::packet::surb::{InvalidSurb, Surb};
    use crate::packet::{HEADER_LEN, Handle, HostName, HostRoute, NextHop};

    fn armored(headers: &str, body: &str) -> String {
        format!("-----BEGIN {MESSAGE}-----\n{headers}\n{body}-----END {MESSAGE}-----\n")
    }

    fn refused(text: &str) -> InvalidArmor {
        messages_from_text(text.as_bytes()).unwrap_err()
    }

    fn surb() -> Surb {
        let host = HostName::parse("mix.example.net").unwrap();
        Surb {
            header: Box::new([7; HEADER_LEN]),
            use_by: 1_795_395_600,
            first_hop: NextHop::Host(HostRoute { host, port: 48099, key_id: KeyId([1; 20]) }),
            key: SharedSecret::new([2; 16]),
        }
    }

    #[test]
    fn longest_reply_block_fits_the_room_left_for_it() {
        let host = HostName::parse(&[63, 63, 63, 61].map(|len| "x".repeat(len)).join(".")).unwrap();
        let first_hop = NextHop::Host(HostRoute { host, port: 48099, key_id: KeyId([1; 20]) });
        let longest = surb_to_text(&Surb { first_hop, ..surb() }).len();
        assert!((MAX_SURB_TEXT_LEN - 300..=MAX_SURB_TEXT_LEN - 1).contains(&longest), "{longest}");
    }

    #[test]
    fn each_flaw_of_the_armour_is_refused_by_name() {
        let base64 = "Message-type: binary\n";
        assert_eq!(refused(&format!("-----BEGIN {MESSAGE}-----\n")), InvalidArmor::NoEnd { kind: MESSAGE });
        assert_eq!(refused(&armored("Message-type\n", "")), InvalidArmor::Header { kind: MESSAGE });
        assert_eq!(refused(&armored("Message type: binary\n", "")), InvalidArmor::Header { kind: MESSAGE });
        assert_eq!(refused(&armored(base64, "!!!!YWJj\n")), InvalidArmor::Base64 { kind: MESSAGE });
        assert_eq!(refused(&armored(base64, "YWJ\n")), InvalidArmor::Base64 { kind: MESSAGE });
        assert_eq!(refused(&armored(base64, "YWJj\n[...]\n")), InvalidArmor::CutByGateway { kind: MESSAGE });
        assert_eq!(refused(&armored("Message-type: weird\n", "")), InvalidArmor::MessageType);
        assert_eq!(refused(&armored("Message-type: encrypted\n", "")), InvalidArmor::MissingHandle);
        let short = "Message-type: encrypted\nDecoding-handle: AAAA\n";
        assert_eq!(refused(&armored(short, "")), InvalidArmor::Handle);
        let spurious = "Message-type: binary\nDecoding-handle: AQEBAQEBAQEBAQEBAQEBAQEBAQE=\n";
        assert_eq!(refused(&armored(spurious, "")), InvalidArmor::UnexpectedHandle);
    }

    #[test]
    fn reply_blocks_are_found_where_they_are_and_can_be_cut_out() {
        let text = format!("Dear friend,\n{0}\n{0}Yours\n", surb_to_text(&surb()));
        let found = surbs_from_text(text.as_bytes()).unwrap();
        assert!(found.iter().all(|found| found.item.surb == surb() && found.item.known_version));
        let mut left = text.into_bytes();
        found.iter().rev().for_each(|found| drop(left.drain(found.range.clone())));
        assert_eq!(left, b"Dear friend,\n\nYours\n");
    }

    #[test]
    fn unknown_version_of_the_armour_is_told_but_not_refused() {
        let text = surb_to_text(&surb()).replace("Version: 0.2", "Version: 0.9");
        let found = surbs_from_text(text.as_bytes()).unwrap();
        assert!(!found[0].item.known_version);
    }

    #[test]
    fn octets_behind_a_reply_block_are_refused() {
        // Reading them over would let two blocks differ that are one to the log of used reply blocks.
        let octets = [surb().to_bytes(), b"XX".to_vec()].concat();
        let body = String::from_utf8(super::base64_lines(&octets)).unwrap();
        let text = armored("Version: 0.2\n", &body).replace(MESSAGE, super::REPLY_BLOCK);
        assert_eq!(surbs_from_text(text.as_bytes()), Err(InvalidArmor::Surb(InvalidSurb::Trailing { len: 2 })));
    }

    #[test]
    fn empty_text_still_has_a_line_of_its_own() {
        let empty = ArmoredMessage::Text(Vec::new()).to_text();
        assert_eq!(String::from_utf8(empty).unwrap(), armored("Message-type: plaintext\n", "\n"));
    }

    #[test]
    fn headers_end_at_blanks_of_ascii_and_keep_their_values_whole() {
        let one = |headers: &str| {
            messages_from_text(armored(headers, "YWJj\n").as_bytes()).map(|found| found[0].item.clone())
        };
        let binary = ArmoredMessage::Binary(b"abc".to_vec());
        assert_eq!(one("Message-type: binary\n \t\u{b}\u{c}\r\n"), Ok(binary.clone()));
        assert_eq!(one("Message-type: binary\r\n"), Ok(binary.clone()));
        assert_eq!(one("Comment: \u{a0}\nMessage-type: binary\n"), Ok(binary));
        assert_eq!(one("\u{a0}\nMessage-type: binary\n"), Err(InvalidArmor::Header { kind: MESSAGE }));
        assert_eq!(one("Message-type: binary \n"), Err(InvalidArmor::MessageType));
        assert_eq!(one("Message-type: \n"), Err(InvalidArmor::Header { kind: MESSAGE }));
    }

    #[test]
    fn boundary_with_more_than_blanks_behind_it_is_none() {
        let odd_end =
            armored("", "hello\n").replace(&format!("END {MESSAGE}-----\n"), &format!("END {MESSAGE}-----\u{c}\n"));
        assert_eq!(refused(&odd_end), InvalidArmor::NoEnd { kind: MESSAGE });
        let blanks = armored("", "hello\n").replace("-----\n", "----- \t\r\n");
        assert_eq!(messages_from_text(blanks.as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn armour_of_others_without_an_end_does_not_hide_ours() {
        let text = format!("-----BEGIN PGP SIGNED MESSAGE-----\n\nhi\n{}", armored("", "hello\n"));
        assert_eq!(messages_from_text(text.as_bytes()).unwrap()[0].item, ArmoredMessage::Text(b"hello\n".to_vec()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn message_comes_back(contents in prop::collection::vec(any::<u8>(), 0..500), handle: [u8; 20]) {
            let messages = [
                ArmoredMessage::Binary(contents.clone()),
                ArmoredMessage::Overcompressed(contents.clone()),
                ArmoredMessage::Fragment(contents.clone()),
                ArmoredMessage::Encrypted { handle: Handle(handle), payload: contents },
            ];
            for message in messages {
                let text = message.to_text();
                let found = messages_from_text(&text).unwrap();
                prop_assert_eq!(&found[0].item, &message);
                prop_assert_eq!(&found[0].range, &(0..text.len()));
            }
        }

        #[test]
        fn text_comes_back_whatever_dashes_it_has(text in "([- a\r\n]|-----END TYPE III ANONYMOUS MESSAGE-----\n){0,40}\n") {
            let message = ArmoredMessage::Text(text.into_bytes());
            let found = messages_from_text(&message.to_text()).unwrap();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&found[0].item, &message);
        }

        #[test]
        fn arbitrary_text_does_no_harm(pieces in prop::collection::vec(prop_oneof![
            Just(format!("-----BEGIN {MESSAGE}-----\n")),
            Just(format!("-----END {MESSAGE}-----\n")),
            Just("Message-type: binary\n".to_owned()),
            Just("\n".to_owned()),
            ".{0,20}",
        ], 0..12)) {
            let text = pieces.concat();
            let _ = messages_from_text(text.as_bytes());
            let _ = surbs_from_text(text.as_bytes());
        }
    }
}
