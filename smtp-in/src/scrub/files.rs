//! Which parts of a mail are files that may travel with its text, and what of them: octets, and a type from a list.
//!
//! Names, dates, descriptions and identifiers stay behind. So do parts that mail programs add by themselves and that tell
//! who wrote the mail, and all that is a mail or a multipart in itself. What is inside a file is its author's to watch.

use mail_parser::{HeaderName, HeaderValue};
use mix::payload::entity::{File, FileType, MAX_FILES};

use super::{Kind, MAX_DEPTH, MAX_PARTS, NoLetter, Part};
use crate::charset;

/// Types that never travel, beside mails and multiparts: cards, calendars, keys, signatures, and what Outlook and
/// Macintoshes keep about a file. Each names its author, or where the file was.
const NEVER: [&str; 17] = [
    "application/applefile",
    "application/ics",
    "application/mac-binhex40",
    "application/ms-tnef",
    "application/pgp-keys",
    "application/pgp-signature",
    "application/pkcs7-mime",
    "application/pkcs7-signature",
    "application/vnd.ms-outlook",
    "application/vnd.ms-tnef",
    "application/x-pkcs7-mime",
    "application/x-pkcs7-signature",
    "text/calendar",
    "text/directory",
    "text/rfc822-headers",
    "text/vcard",
    "text/x-vcard",
];
/// How the names of such files end, where a mail program did not know what they are.
const NEVER_NAMED: [&str; 9] = ["eml", "ics", "mbox", "msg", "p7c", "p7m", "p7s", "vcf", "vcs"];
/// Types of text that do not name their charset themselves: they can be put into another.
const WITHOUT_CHARSET: [&str; 4] = ["text/csv", "text/markdown", "text/plain", "text/x-patch"];

/// The files of a mail.
#[derive(Default)]
pub(super) struct Files {
    parts: usize,
    /// Those that may travel.
    pub(super) found: Vec<File>,
    /// How many others there are.
    pub(super) left_out: usize,
}

impl Files {
    /// Looks everywhere but behind the first part of a signed mail, and of what belongs to a page.
    pub(super) fn of(root: &Part<'_>) -> Result<Self, NoLetter> {
        let mut files = Self::default();
        files.look(root, 0, true)?;
        Ok(files)
    }

    /// `alone`: the part is no other form of a text, nor does it belong to one, so that what is not text is a file.
    fn look(&mut self, part: &Part<'_>, depth: usize, alone: bool) -> Result<(), NoLetter> {
        self.parts += 1;
        if self.parts > MAX_PARTS || depth > MAX_DEPTH {
            return Err(NoLetter::TooManyParts);
        }
        if part.is_attachment() {
            self.take(part);
            return Ok(());
        }
        match part.kind(false) {
            Kind::AllOf { .. } => self.look_into(part, depth, |_| true),
            Kind::Alternative => self.look_into(part, depth, |_| false),
            // A signature fits nothing that travels, and pictures are a page's; but some programs put files there too.
            Kind::FirstOf => self.look_into(part, depth, |at| at == 0 && alone),
            Kind::Other if alone => {
                self.take(part);
                Ok(())
            }
            Kind::Plain | Kind::OtherText | Kind::Html | Kind::Encrypted | Kind::Forwarded | Kind::Other => Ok(()),
        }
    }

    fn look_into(&mut self, part: &Part<'_>, depth: usize, alone: impl Fn(usize) -> bool) -> Result<(), NoLetter> {
        let parts = match part.parts() {
            Ok(parts) => parts,
            Err(NoLetter::TooManyParts) => return Err(NoLetter::TooManyParts),
            // The text was found elsewhere. What is here nobody can tell.
            Err(_) => {
                self.left_out += 1;
                return Ok(());
            }
        };
        // Of a signed mail the first part is what was signed.
        let signed = part.is_signed();
        for (at, octets) in parts.into_iter().enumerate().take(if signed { 1 } else { MAX_PARTS }) {
            match Part::read(octets) {
                Ok(part) => self.look(&part, depth + 1, alone(at))?,
                Err(_) => self.left_out += 1,
            }
        }
        Ok(())
    }

    fn take(&mut self, part: &Part<'_>) {
        match file(part).filter(|_| self.found.len() < MAX_FILES) {
            Some(file) => self.found.push(file),
            None => self.left_out += 1,
        }
    }
}

/// The file, if it may travel and can be read.
fn file(part: &Part<'_>) -> Option<File> {
    let stated = part.media_type();
    let name = name(part).unwrap_or_default();
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let in_itself = stated.starts_with("message/") || stated.starts_with("multipart/");
    if in_itself || NEVER.contains(&&*stated) || NEVER_NAMED.iter().any(|never| never.eq_ignore_ascii_case(extension)) {
        return None;
    }
    let octets = part.octets().ok()?.into_owned();
    let known = FileType::named(&stated).filter(|known| *known != FileType::OCTETS);
    let file_type = known.or_else(|| FileType::of_extension(extension)).unwrap_or(FileType::OCTETS);
    let charset = part.attribute("charset").unwrap_or_default();
    Some(File::new(file_type, in_utf8(file_type, octets, charset)))
}

/// The octets, put into UTF-8 where they are text of another charset that is named and read for certain. Of others, what they
/// are is not guessed: they travel as they are, and `File` says of them that they are octets.
fn in_utf8(file_type: FileType, octets: Vec<u8>, charset: &str) -> Vec<u8> {
    if !WITHOUT_CHARSET.contains(&file_type.name()) || charset.is_empty() || std::str::from_utf8(&octets).is_ok() {
        return octets;
    }
    let text = charset::decode(charset, &octets).filter(|text| !text.contains(char::REPLACEMENT_CHARACTER));
    text.map_or(octets, String::into_bytes)
}

/// What the sender calls the file.
fn name<'p>(part: &'p Part<'_>) -> Option<&'p str> {
    let disposition = part.header(&HeaderName::ContentDisposition).and_then(HeaderValue::as_content_type);
    disposition.and_then(|shown| shown.attribute("filename")).or_else(|| part.attribute("name"))
}
