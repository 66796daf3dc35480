//! What of a mail may travel: subject, the sender's name, the threading headers, the text, and of files their octets
//! (`files`). Everything else is dropped, since everything else tells who wrote it where, when and with which program.
//!
//! Pure: octets of a mail in, a [`Letter`] out. Header fields, encoded words and base64 are mail-parser's work, charsets
//! are `charset`'s; the tree of parts is walked here, since mail-parser descends into forwarded mails as deep as their
//! author likes, and a stranger's mail must not choose the depth of our stack. How a letter is written for the network is
//! `intake`'s and `mix::payload`'s.

use std::borrow::Cow;
use std::fmt;

use mail_parser::decoders::base64::base64_decode;
use mail_parser::decoders::quoted_printable::quoted_printable_decode_char;
use mail_parser::{ContentType, GetHeader as _, Header, HeaderName, HeaderValue, MessageParser};
use mix::payload::entity::File;
use mix::payload::headers::VALUE_LEN_MAX;
use mix::store::keyring::LOCAL_DOMAIN;

use crate::{charset, html};

mod files;

use files::Files;

/// Octets of the header section of a mail or part. Mail servers stop at 64 to 256 KiB.
const MAX_HEADERS_LEN: usize = 256 * 1024;
/// Parts of a mail, at all depths. Mail programs make a handful.
const MAX_PARTS: usize = 1000;
/// Multiparts within multiparts. Mail programs make three or four.
const MAX_DEPTH: usize = 20;
/// Kinds of text that are for programs. `rfc822-headers` comes with reports that mail was not delivered, and has all that
/// must not travel.
const NOT_PROSE: [&str; 9] =
    ["calendar", "css", "directory", "javascript", "rfc822-headers", "rtf", "vcard", "x-vcard", "xml"];
/// Octets of one message-id. RFC 5322 2.1.1 has no longer lines.
const MAX_ID_LEN: usize = 250;

/// What is left of a mail.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Letter {
    /// One line.
    pub subject: Option<String>,
    /// The name beside the address in From, which says nothing of the address. One line.
    pub from_name: Option<String>,
    /// A message-id in its angle brackets.
    pub in_reply_to: Option<String>,
    /// Message-ids in their angle brackets, a space between them. None that the sender's own program made, as far as it shows.
    pub references: Option<String>,
    /// How the sender's program calls this mail, in angle brackets. Never travels: by it the sender knows what a report is about.
    pub message_id: Option<String>,
    /// The text, in lines that end in LF. Empty only where there are files.
    pub text: String,
    /// The files that came along and may travel, where an exit delivers them.
    pub files: Vec<File>,
    /// How many came along that never travel, or cannot be read.
    pub left_out: usize,
}

/// Prints nothing of it.
impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Letter(..)")
    }
}

/// Why nothing of a mail can travel. Told to its author as it stands here.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum NoLetter {
    /// Only attachments that do not travel, or nothing at all.
    #[error("the mail has no readable text, and nothing else of it would travel")]
    NoText,
    /// The text is in a part that only its recipient can read, but the parts do not travel.
    #[error("the text is in an encrypted part, which does not travel; put the encrypted text inline instead")]
    Encrypted,
    /// In a charset that nobody knows or that is not read here, or not in the one it says.
    #[error("the text is in a charset that cannot be read here; send it as UTF-8")]
    Charset,
    /// A mail inside the mail, shown as a part of the text. What it holds would be missing.
    #[error("a mail inside the mail does not travel; forward it as text, or as an attachment to drop it")]
    Forwarded,
    /// HTML that becomes more text than anybody takes.
    #[error("the text is too long: there is room for {limit} octets")]
    TooLong {
        /// What there is room for.
        limit: usize,
    },
    /// Not base64 although it says so, or in an encoding nobody knows.
    #[error("the transfer encoding of the text is broken or unknown")]
    TransferEncoding,
    /// A multipart whose parts cannot be told apart.
    #[error("the mail is a multipart without its boundary")]
    Boundary,
    /// More header than any mail has.
    #[error("the header section is longer than {MAX_HEADERS_LEN} octets")]
    HeadersTooLong,
    /// More parts, or deeper ones, than any mail program makes.
    #[error("the mail has more than {MAX_PARTS} parts, or parts more than {MAX_DEPTH} deep")]
    TooManyParts,
}

/// Takes from `mail` what may travel. HTML is made into at most `room` octets of text: it can say little in many words,
/// and what it becomes can be many times as long.
///
/// # Errors
/// [`NoLetter`], by what stands in the way.
pub fn scrub(mail: &[u8], room: usize) -> Result<Letter, NoLetter> {
    let root = Part::read(mail)?;
    let found = Walk { parts: 0, room }.look(&root, Place::ROOT)?;
    let Files { found: files, left_out, .. } = Files::of(&root)?;
    let text = match found {
        Some(Found { text, .. }) => text,
        None if files.is_empty() => return Err(NoLetter::NoText),
        None => String::new(),
    };
    let message_id = root.ids(&HeaderName::MessageId).into_iter().next();
    let own = root.own_domains(message_id.as_deref());
    let others = |name| root.ids(&name).into_iter().filter(|id| !own.contains(&domain(id)));
    Ok(Letter {
        subject: root.subject(),
        from_name: root.sender_name(),
        in_reply_to: others(HeaderName::InReplyTo).next(),
        references: first_and_last(&others(HeaderName::References).collect::<Vec<_>>()),
        message_id,
        text,
        files,
        left_out,
    })
}

/// A mail or one of its parts: fields and body.
struct Part<'m> {
    headers: Vec<Header<'static>>,
    /// What `headers` was read from.
    fields: Vec<u8>,
    body: &'m [u8],
}

/// How to look for text in a part.
enum Kind {
    Plain,
    /// Any other text: shown as it stands (RFC 2046 4.1.4).
    OtherText,
    Html,
    /// The same in several forms.
    Alternative,
    /// The body and what belongs to it: pictures, or a signature.
    FirstOf,
    /// One after the other.
    AllOf {
        digest: bool,
    },
    Encrypted,
    /// A mail.
    Forwarded,
    Other,
}

impl<'m> Part<'m> {
    fn read(octets: &'m [u8]) -> Result<Self, NoLetter> {
        let (fields, body) = split_headers(octets)?;
        let parser = MessageParser::new()
            .with_mime_headers()
            .header_text(HeaderName::Subject)
            .header_address(HeaderName::From)
            .header_id(HeaderName::MessageId)
            .header_id(HeaderName::InReplyTo)
            .header_id(HeaderName::References)
            .default_header_ignore();
        // The parser wants to see the end of the fields, which a cut-off mail has not.
        let fields = [fields, b"\r\n\r\n"].concat();
        let message = parser.parse_headers(&fields);
        let root = message.and_then(|message| message.parts.into_iter().next());
        let headers = root.map(|root| root.headers.into_iter().map(Header::into_owned).collect());
        Ok(Self { headers: headers.unwrap_or_default(), fields, body })
    }

    fn header(&self, name: &HeaderName<'_>) -> Option<&HeaderValue<'static>> {
        self.headers.header_value(name)
    }

    /// The value of a field before anything was decoded.
    fn raw(&self, name: &HeaderName<'_>) -> &[u8] {
        let header = self.headers.iter().rev().find(|header| header.name == *name);
        let range = header.map(|header| header.offset_start as usize..header.offset_end as usize);
        range.and_then(|range| self.fields.get(range)).unwrap_or_default()
    }

    /// The subject. What cannot be read here travels as it was written: its recipient's program may know more charsets.
    fn subject(&self) -> Option<String> {
        let raw = self.raw(&HeaderName::Subject);
        let read = self.header(&HeaderName::Subject).and_then(HeaderValue::as_text);
        match read.filter(|text| is_legible(raw, text)) {
            Some(text) => one_line(text),
            None => charset::decode("", raw).as_deref().and_then(one_line),
        }
    }

    /// The name beside the first address. Programs that know no name put the address there, which must not travel, nor
    /// may anything that could turn out to be one when somebody else reads it.
    fn sender_name(&self) -> Option<String> {
        let from = self.header(&HeaderName::From).and_then(HeaderValue::as_address);
        let name = from.and_then(|from| from.first()).and_then(|address| address.name())?;
        if name.contains('@') || name.contains("=?") || !is_legible(self.raw(&HeaderName::From), name) {
            return None;
        }
        // Characters that FROM must not have (E2E-spec 3.2.2).
        one_line(&name.replace(['"', '[', ']', ':'], ""))
    }

    fn ids(&self, name: &HeaderName<'_>) -> Vec<String> {
        self.header(name).map(ids).unwrap_or_default()
    }

    /// What stands behind the @ of ids that the sender's own programs make, in small letters: his host or the domain of his
    /// address, whichever the program takes, and what this program takes. Whoever follows his own mail up would tell them.
    fn own_domains(&self, message_id: Option<&str>) -> Vec<String> {
        let from = self.header(&HeaderName::From).and_then(HeaderValue::as_address);
        let addresses = from.into_iter().flat_map(|from| from.iter()).filter_map(|one| one.address());
        let of_addresses = addresses.filter_map(|address| Some(address.rsplit_once('@')?.1.to_lowercase()));
        of_addresses.chain(message_id.map(domain)).chain([LOCAL_DOMAIN.to_owned()]).collect()
    }

    fn content_type(&self) -> Option<&ContentType<'static>> {
        self.header(&HeaderName::ContentType).and_then(HeaderValue::as_content_type)
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.content_type().and_then(|content_type| content_type.attribute(name))
    }

    /// Whether it is a file that came along: everything that is not to be shown inline (RFC 2183 2.8).
    fn is_attachment(&self) -> bool {
        let disposition = self.header(&HeaderName::ContentDisposition).and_then(HeaderValue::as_content_type);
        disposition.is_some_and(|shown| !shown.ctype().eq_ignore_ascii_case("inline"))
    }

    fn kind(&self, in_digest: bool) -> Kind {
        if self.content_type().is_none() && in_digest {
            // The parts of a digest are mails unless they say otherwise (RFC 2046 5.1.5).
            return Kind::Forwarded;
        }
        let media_type = self.media_type();
        match media_type.split_once('/').unwrap_or_default() {
            // Without a subtype it is broken, and stands for the default (RFC 2045 5.2).
            ("text", "plain" | "") | ("", _) => Kind::Plain,
            ("text", "html" | "x-amp-html") => Kind::Html,
            ("text", subtype) if NOT_PROSE.contains(&subtype) => Kind::Other,
            ("text", _) => Kind::OtherText,
            ("multipart", "alternative") => Kind::Alternative,
            ("multipart", "related" | "signed") => Kind::FirstOf,
            ("multipart", "encrypted") | ("application", "pkcs7-mime" | "x-pkcs7-mime") => Kind::Encrypted,
            ("multipart", "digest") => Kind::AllOf { digest: true },
            ("multipart", _) => Kind::AllOf { digest: false },
            ("message", "rfc822" | "global" | "news") => Kind::Forwarded,
            _ => Kind::Other,
        }
    }

    /// What it says that it is, in small letters; the default where it says nothing (RFC 2045 5.2).
    fn media_type(&self) -> String {
        let Some(content_type) = self.content_type() else { return "text/plain".to_owned() };
        format!("{}/{}", content_type.ctype(), content_type.subtype().unwrap_or_default()).to_ascii_lowercase()
    }

    fn is_signed(&self) -> bool {
        self.media_type() == "multipart/signed"
    }

    /// The parts of a multipart. One with nothing in it has none: Outlook Express for Macintosh gave a multipart and the
    /// one around it the same boundary, so that the inner one's parts turn up in the outer.
    fn parts(&self) -> Result<Vec<&'m [u8]>, NoLetter> {
        if self.body.trim_ascii().is_empty() {
            return Ok(Vec::new());
        }
        let boundary = self.attribute("boundary").map(str::trim_end).unwrap_or_default();
        split_parts(self.body, boundary.as_bytes())
    }

    /// The body as text: transfer encoding and charset taken off.
    fn text(&self) -> Result<String, NoLetter> {
        self.text_in(&self.octets()?, "")
    }

    /// The body as HTML, which may name its charset itself.
    fn html(&self) -> Result<String, NoLetter> {
        let octets = self.octets()?;
        self.text_in(&octets, &html::charset(&octets).unwrap_or_default())
    }

    fn text_in(&self, octets: &[u8], otherwise: &str) -> Result<String, NoLetter> {
        let charset = self.attribute("charset").filter(|name| !name.trim().is_empty()).unwrap_or(otherwise);
        charset::decode(charset, octets).ok_or(NoLetter::Charset)
    }

    fn octets(&self) -> Result<Cow<'m, [u8]>, NoLetter> {
        let encoding = self.header(&HeaderName::ContentTransferEncoding).and_then(HeaderValue::as_text);
        match encoding.unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "" | "7bit" | "8bit" | "binary" => Ok(self.body.into()),
            "quoted-printable" => Ok(quoted_printable(self.body).into()),
            "base64" => base64_decode(self.body).map(Cow::Owned).ok_or(NoLetter::TransferEncoding),
            _ => Err(NoLetter::TransferEncoding),
        }
    }
}

/// The text of a part.
struct Found {
    text: String,
    /// Written as text, not made of HTML.
    plain: bool,
}

impl Found {
    fn new(text: &str, flowed: bool, plain: bool) -> Option<Self> {
        let text = tidy(text, flowed);
        (!text.is_empty()).then_some(Self { text, plain })
    }
}

/// Where in the tree of parts.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    in_digest: bool,
}

impl Place {
    const ROOT: Self = Self { depth: 0, in_digest: false };
}

struct Walk {
    parts: usize,
    /// Octets that HTML may become.
    room: usize,
}

impl Walk {
    fn look(&mut self, part: &Part<'_>, at: Place) -> Result<Option<Found>, NoLetter> {
        self.parts += 1;
        if self.parts > MAX_PARTS || at.depth > MAX_DEPTH {
            return Err(NoLetter::TooManyParts);
        }
        if part.is_attachment() {
            return Ok(None);
        }
        let below = Place { depth: at.depth + 1, in_digest: false };
        match part.kind(at.in_digest) {
            Kind::Plain => {
                let flowed = part.attribute("format").is_some_and(|format| format.eq_ignore_ascii_case("flowed"));
                Ok(Found::new(&part.text()?, flowed, true))
            }
            Kind::OtherText => Ok(Found::new(&part.text()?, false, false)),
            Kind::Html => {
                let text = html::to_text(&part.html()?, self.room).ok_or(NoLetter::TooLong { limit: self.room })?;
                Ok(Found::new(&text, false, false))
            }
            Kind::Alternative => self.best_of(part, below),
            Kind::FirstOf => self.first_of(part, below),
            Kind::AllOf { digest } => self.all_of(part, Place { in_digest: digest, ..below }),
            Kind::Encrypted => Err(NoLetter::Encrypted),
            Kind::Forwarded => Err(NoLetter::Forwarded),
            Kind::Other => Ok(None),
        }
    }

    /// The first that was written as text, else the last, which is the richest (RFC 2046 5.1.4). One that cannot be read
    /// does no harm while another can.
    fn best_of(&mut self, part: &Part<'_>, at: Place) -> Result<Option<Found>, NoLetter> {
        let mut best = Ok(None);
        for octets in part.parts()? {
            match self.look(&Part::read(octets)?, at) {
                Ok(Some(found)) if found.plain => return Ok(Some(found)),
                Ok(Some(found)) => best = Ok(Some(found)),
                Err(NoLetter::TooManyParts) => return Err(NoLetter::TooManyParts),
                Err(why) if matches!(best, Ok(None)) => best = Err(why),
                Ok(None) | Err(_) => {}
            }
        }
        best
    }

    fn first_of(&mut self, part: &Part<'_>, at: Place) -> Result<Option<Found>, NoLetter> {
        for octets in part.parts()? {
            if let Some(found) = self.look(&Part::read(octets)?, at)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// All texts in their order, a blank line between them. One that cannot be read stops the mail: half a mail could
    /// mean something else.
    fn all_of(&mut self, part: &Part<'_>, at: Place) -> Result<Option<Found>, NoLetter> {
        let mut all: Option<Found> = None;
        for octets in part.parts()? {
            let Some(found) = self.look(&Part::read(octets)?, at)? else { continue };
            match &mut all {
                None => all = Some(found),
                Some(all) => {
                    all.text.push('\n');
                    all.text.push_str(&found.text);
                    all.plain |= found.plain;
                }
            }
        }
        Ok(all)
    }
}

/// Cuts a mail into fields and body. The fields end with an empty line, or before the first line that cannot be one of
/// theirs: programs that send nothing but a text do not always send the empty line.
fn split_headers(octets: &[u8]) -> Result<(&[u8], &[u8]), NoLetter> {
    let mut rest = octets;
    // The line that mail boxes put between mails is not one of the mail's.
    if octets.starts_with(b"From ") || octets.starts_with(b">From ") {
        rest = split_line(rest).1;
    }
    let fields = rest;
    loop {
        let len = fields.len() - rest.len();
        if len > MAX_HEADERS_LEN {
            return Err(NoLetter::HeadersTooLong);
        }
        let (line, after) = split_line(rest);
        let goes_on = len > 0 && (line.starts_with(b" ") || line.starts_with(b"\t"));
        if line.trim_ascii().is_empty() && !goes_on {
            return Ok((fields.split_at(len).0, after));
        }
        if !goes_on && !is_field(line) {
            return Ok((fields.split_at(len).0, rest));
        }
        rest = after;
    }
}

/// A name of printable ASCII, then a colon.
fn is_field(line: &[u8]) -> bool {
    let colon = line.iter().position(|&octet| octet == b':');
    let name = colon.and_then(|colon| line.get(..colon)).map(<[u8]>::trim_ascii_end).unwrap_or_default();
    !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}

/// A line with its end, and what follows.
fn split_line(octets: &[u8]) -> (&[u8], &[u8]) {
    let len = octets.iter().position(|&octet| octet == b'\n').map_or(octets.len(), |lf| lf + 1);
    octets.split_at(len)
}

/// Cuts a multipart at its delimiter lines (RFC 2046 5.1.1). Without the closing one it ends where the body does.
fn split_parts<'m>(body: &'m [u8], boundary: &[u8]) -> Result<Vec<&'m [u8]>, NoLetter> {
    if boundary.is_empty() {
        return Err(NoLetter::Boundary);
    }
    let mut parts = Vec::new();
    let mut part: Option<&[u8]> = None;
    let mut rest = body;
    while !rest.is_empty() {
        let (line, after) = split_line(rest);
        let delimiter = line.strip_prefix(b"--").and_then(|line| line.strip_prefix(boundary)).map(<[u8]>::trim_ascii);
        if let Some(tail @ (b"" | b"--")) = delimiter {
            if let Some(part) = part {
                parts.push(without_line_end(part.split_at(part.len() - rest.len()).0));
            }
            part = tail.is_empty().then_some(after);
            if part.is_none() {
                break;
            }
            if parts.len() == MAX_PARTS {
                return Err(NoLetter::TooManyParts);
            }
        }
        rest = after;
    }
    parts.extend(part);
    if parts.is_empty() { Err(NoLetter::Boundary) } else { Ok(parts) }
}

/// The line end before a delimiter belongs to the delimiter.
fn without_line_end(octets: &[u8]) -> &[u8] {
    octets.strip_suffix(b"\r\n").or_else(|| octets.strip_suffix(b"\n")).unwrap_or(octets)
}

/// Undoes quoted-printable (RFC 2045 6.7). What was not encoded as it should be stands for itself: refusing a text for
/// one stray `=` would help nobody.
fn quoted_printable(body: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(body.len());
    for line in body.split_inclusive(|&octet| octet == b'\n') {
        // White space at the end was added on the way.
        let mut rest = line.trim_ascii_end();
        let soft = rest.strip_suffix(b"=");
        rest = soft.unwrap_or(rest);
        while let Some((&octet, after)) = rest.split_first() {
            let encoded = match (octet, after) {
                (b'=', [high, low, after @ ..]) => {
                    quoted_printable_decode_char(*high, *low).map(|octet| (octet, after))
                }
                _ => None,
            };
            let (octet, after) = encoded.unwrap_or((octet, after));
            octets.push(octet);
            rest = after;
        }
        if soft.is_none() && line.ends_with(b"\n") {
            octets.push(b'\n');
        }
    }
    octets
}

/// Text as it travels: lines end in LF, the last one too; no control characters but tabs; no blank lines around it.
/// Empty when there is nothing to read. Lines stay as they were broken, since the recipient's program cannot be told that
/// they may be joined; what format=flowed (RFC 3676) put on their ends is taken off.
fn tidy(text: &str, flowed: bool) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut tidy = String::with_capacity(text.len() + 1);
    for line in text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r')) {
        let line = if flowed { unstuffed(line) } else { line };
        tidy.extend(line.chars().filter(|&c| c == '\t' || !c.is_control()));
        // Nothing before the first line with something on it.
        if !tidy.is_empty() {
            tidy.push('\n');
        }
    }
    tidy.truncate(tidy.trim_end().len());
    if tidy.trim_start().is_empty() {
        return String::new();
    }
    tidy.push('\n');
    tidy
}

fn unstuffed(line: &str) -> &str {
    let line = line.strip_prefix(' ').unwrap_or(line);
    if line == "-- " { line } else { line.trim_end_matches(' ') }
}

/// A header's text on one line; `None` when nothing is left.
fn one_line(text: &str) -> Option<String> {
    let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    (!line.is_empty()).then_some(line)
}

/// Whether `text` is what the field `raw` was meant to say: mail-parser puts something in place of all that it does not
/// know.
fn is_legible(raw: &[u8], text: &str) -> bool {
    !text.contains(char::REPLACEMENT_CHARACTER)
        && !raw.contains(&b'\x1b')
        && encoded_charsets(raw).all(charset::is_read_alike)
}

/// The charsets of the encoded words in a field (RFC 2047 2, with the languages of RFC 2231 5 left aside).
fn encoded_charsets(raw: &[u8]) -> impl Iterator<Item = &str> {
    let begins = |(at, pair): (usize, &[u8])| if pair == b"=?" { raw.get(at + 2..) } else { None };
    raw.windows(2).enumerate().filter_map(begins).filter_map(|word| {
        let mut fields = word.splitn(3, |&octet| octet == b'?');
        let (name, encoding) = (fields.next()?, fields.next()?);
        let name = name.split(|&octet| octet == b'*').next()?;
        matches!(encoding, b"B" | b"b" | b"Q" | b"q").then(|| std::str::from_utf8(name).unwrap_or("not ASCII"))
    })
}

/// The well-formed message-ids of a header, in their brackets. Others would be noise to the programs that look for them.
fn ids(value: &HeaderValue<'_>) -> Vec<String> {
    let list = match value {
        HeaderValue::Text(one) => std::slice::from_ref(one),
        HeaderValue::TextList(many) => many,
        _ => &[],
    };
    let well_formed = |id: &&str| {
        let graphic = id.bytes().all(|octet| octet.is_ascii_graphic() && !b"<>".contains(&octet));
        let sides = id.split_once('@').is_some_and(|(left, right)| !left.is_empty() && !right.is_empty());
        graphic && sides && id.len() <= MAX_ID_LEN
    };
    list.iter().map(|id| id.trim()).filter(well_formed).map(|id| format!("<{id}>")).collect()
}

/// What stands behind the @ of a message-id in its brackets, in small letters.
fn domain(id: &str) -> String {
    let (_, right) = id.trim_end_matches('>').rsplit_once('@').unwrap_or_default();
    right.to_lowercase()
}

/// As many as a header can carry: the first, which began the thread, and the last ones.
fn first_and_last(ids: &[String]) -> Option<String> {
    let (first, rest) = ids.split_first()?;
    let mut len = first.len();
    let fits = |id: &&String| {
        len += 1 + id.len();
        len <= VALUE_LEN_MAX
    };
    let kept = rest.iter().rev().take_while(fits).count();
    let (_, last) = rest.split_at(rest.len() - kept);
    let words: Vec<&str> = std::iter::once(first).chain(last).map(String::as_str).collect();
    Some(words.join(" "))
}
