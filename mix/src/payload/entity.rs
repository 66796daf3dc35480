//! A message with attachments: an extension of ours to E2E-spec 3.1.2, written down in `mix/INTEROP.md`.
//!
//! The header CONTENT-TYPE of the message says that its body is a multipart (RFC 2046 5.1): the text, then files. There is
//! one way to write each, and nothing in it that the text and the files do not say themselves: no file names, no other
//! headers, a boundary drawn from the text. What is written in any other way is not read. Only an exit whose descriptor
//! says so is sent such a message (`path::valid`); how it writes the mail is `deliver::mail`'s.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::headers::{self, InvalidHeader, MessageHeaders};
use crate::crypto::sha1;

/// Files of one message: more than anybody attaches, and few enough to be read at a glance.
pub const MAX_FILES: usize = 100;
/// Digits of base64 on a line (RFC 2045 6.8).
const LINE_LEN: usize = 76;
/// Octets on such a line.
const LINE_OCTETS: usize = LINE_LEN / 4 * 3;

/// Before and after the boundary in CONTENT-TYPE.
const TYPE: (&str, &str) = ("multipart/mixed; boundary=\"", "\"");
/// The headers of the text, and the empty line behind them.
const TEXT_HEAD: &str = "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n";
/// Before the type of a file.
const FILE_TYPE: &str = "Content-Type: ";
/// Behind the type of a file of text.
const UTF_8: &str = "; charset=utf-8";
/// The other headers of a file, and the empty line behind them.
const FILE_HEAD: &str = "Content-Transfer-Encoding: base64\nContent-Disposition: attachment\n\n";

/// The types that travel, and the ends of file names that stand for them; mail programs that have no type for a file say
/// `application/octet-stream`. All others become that too: an unusual type tells its sender from others.
const TYPES: &[(&str, &[&str])] = &[
    ("application/octet-stream", &["bin"]),
    ("application/epub+zip", &["epub"]),
    ("application/gzip", &["gz", "tgz"]),
    ("application/json", &["json"]),
    ("application/msword", &["doc"]),
    ("application/pdf", &["pdf"]),
    ("application/postscript", &["ps", "eps"]),
    ("application/rtf", &["rtf"]),
    ("application/vnd.ms-excel", &["xls"]),
    ("application/vnd.ms-powerpoint", &["ppt"]),
    ("application/vnd.oasis.opendocument.presentation", &["odp"]),
    ("application/vnd.oasis.opendocument.spreadsheet", &["ods"]),
    ("application/vnd.oasis.opendocument.text", &["odt"]),
    ("application/vnd.openxmlformats-officedocument.presentationml.presentation", &["pptx"]),
    ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", &["xlsx"]),
    ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", &["docx"]),
    ("application/x-7z-compressed", &["7z"]),
    ("application/x-bzip2", &["bz2"]),
    ("application/x-tar", &["tar"]),
    ("application/x-xz", &["xz"]),
    ("application/xml", &["xml"]),
    ("application/zip", &["zip"]),
    ("audio/aac", &["aac"]),
    ("audio/flac", &["flac"]),
    ("audio/mp4", &["m4a"]),
    ("audio/mpeg", &["mp3"]),
    ("audio/ogg", &["ogg", "oga"]),
    ("audio/opus", &["opus"]),
    ("audio/wav", &["wav"]),
    ("image/avif", &["avif"]),
    ("image/bmp", &["bmp"]),
    ("image/gif", &["gif"]),
    ("image/heic", &["heic"]),
    ("image/jpeg", &["jpg", "jpeg"]),
    ("image/png", &["png"]),
    ("image/svg+xml", &["svg"]),
    ("image/tiff", &["tif", "tiff"]),
    ("image/webp", &["webp"]),
    ("text/csv", &["csv"]),
    ("text/html", &["html", "htm"]),
    ("text/markdown", &["md"]),
    ("text/plain", &["txt", "log"]),
    ("text/x-patch", &["patch", "diff"]),
    ("video/mp4", &["mp4", "m4v"]),
    ("video/mpeg", &["mpg", "mpeg"]),
    ("video/ogg", &["ogv"]),
    ("video/quicktime", &["mov"]),
    ("video/webm", &["webm"]),
    ("video/x-msvideo", &["avi"]),
];

/// What a file is, as far as anybody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType {
    name: &'static str,
    extension: &'static str,
}

impl FileType {
    /// Octets of which nothing is said: `application/octet-stream`.
    pub const OCTETS: Self = Self { name: "application/octet-stream", extension: "bin" };

    /// The type of that name, such as `image/png`, in either case, if it is one that travels.
    pub fn named(name: &str) -> Option<Self> {
        Self::find(|known, _| known.eq_ignore_ascii_case(name))
    }

    /// The type of files whose names end so, such as `png`, in either case, if it is one that travels.
    pub fn of_extension(extension: &str) -> Option<Self> {
        Self::find(|_, extensions| extensions.iter().any(|known| known.eq_ignore_ascii_case(extension)))
    }

    fn find(is: impl Fn(&str, &[&str]) -> bool) -> Option<Self> {
        let (name, extensions) = TYPES.iter().find(|(name, extensions)| is(name, extensions))?;
        Some(Self { name, extension: extensions.first()? })
    }

    /// Such as `image/png`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// How names of such files end, without the dot.
    pub fn extension(self) -> &'static str {
        self.extension
    }

    /// Whether such files are text, and so are in a charset.
    pub fn is_text(self) -> bool {
        self.name.starts_with("text/")
    }

    /// As the Content-Type of a part has it. Text is UTF-8: see [`File::new`].
    pub fn value(self) -> String {
        format!("{}{}", self.name, if self.is_text() { UTF_8 } else { "" })
    }
}

/// A file that goes with a text.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    file_type: FileType,
    octets: Vec<u8>,
}

/// Prints its type alone.
impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({}, ..)", self.file_type.name)
    }
}

impl File {
    /// A file of that type. Text that is not UTF-8 is octets of which nothing is said: no reader shall take it for what it
    /// is not.
    pub fn new(file_type: FileType, octets: Vec<u8>) -> Self {
        let mislabelled = file_type.is_text() && std::str::from_utf8(&octets).is_err();
        Self { file_type: if mislabelled { FileType::OCTETS } else { file_type }, octets }
    }

    /// What it is.
    pub fn file_type(&self) -> FileType {
        self.file_type
    }

    /// What is in it.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }
}

/// A text with files.
#[derive(Clone, PartialEq, Eq)]
pub struct Entity {
    text: String,
    files: Vec<File>,
}

/// Prints how many files there are.
impl fmt::Debug for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entity({} files)", self.files.len())
    }
}

/// Why a message is none with attachments, though it may say so. Blames whoever wrote it.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidEntity {
    /// Another type than the one that there is.
    #[error("CONTENT-TYPE is not multipart/mixed with a boundary and nothing else")]
    Type,
    /// The text has other characters than a mail can show, or lines that do not end in LF.
    #[error("the text is not lines of UTF-8 without control characters")]
    Text,
    /// The boundary is not the one that the text makes, or is not where it must be.
    #[error("a part does not begin or end with the boundary that the text makes")]
    Boundary,
    /// Other headers than those that there are, or in another order.
    #[error("a part has other headers than attachments have")]
    Head,
    /// Another type than the list has.
    #[error("an attachment is of a type that does not travel")]
    FileType,
    /// A file of text that is not UTF-8.
    #[error("an attachment is said to be UTF-8 and is not")]
    Charset,
    /// Not base64, or in other lines than of 76 digits.
    #[error("an attachment is not base64 in lines of {LINE_LEN} digits")]
    Base64,
    /// Without files it is no more than a text.
    #[error("a message with attachments that has none")]
    NoFiles,
    /// More files than anybody attaches.
    #[error("more than {MAX_FILES} attachments")]
    TooManyFiles,
}

impl Entity {
    /// The text, in lines that end in LF or empty, with its files.
    ///
    /// # Errors
    /// [`InvalidEntity::Text`], [`InvalidEntity::NoFiles`], [`InvalidEntity::TooManyFiles`].
    pub fn new(text: String, files: Vec<File>) -> Result<Self, InvalidEntity> {
        let legible = |c: char| matches!(c, '\n' | '\t') || !c.is_control();
        if !text.chars().all(legible) || !(text.is_empty() || text.ends_with('\n')) {
            return Err(InvalidEntity::Text);
        }
        match files.len() {
            0 => Err(InvalidEntity::NoFiles),
            1..=MAX_FILES => Ok(Self { text, files }),
            _ => Err(InvalidEntity::TooManyFiles),
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The files, in their order.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The same with more text behind its own.
    ///
    /// # Errors
    /// [`InvalidEntity::Text`].
    pub fn with_more_text(mut self, more: &str) -> Result<Self, InvalidEntity> {
        self.text.push_str(more);
        Self::new(self.text, self.files)
    }

    /// The message: headers, CONTENT-TYPE among them, and body.
    ///
    /// # Errors
    /// [`InvalidHeader`].
    pub fn message(&self, headers: MessageHeaders) -> Result<Vec<u8>, InvalidHeader> {
        let boundary = boundary(&self.text);
        let content_type = Some(format!("{}{boundary}{}", TYPE.0, TYPE.1));
        let mut message = headers::encode(&MessageHeaders { content_type, ..headers })?;
        let mut say = |parts: &[&str]| parts.iter().for_each(|part| message.extend_from_slice(part.as_bytes()));
        say(&["--", &boundary, "\n", TEXT_HEAD, &self.text]);
        for file in &self.files {
            say(&["\n--", &boundary, "\n", FILE_TYPE, &file.file_type.value(), "\n", FILE_HEAD]);
            say(&[base64_lines(&file.octets, "\n").trim_end_matches('\n')]);
        }
        say(&["\n--", &boundary, "--\n"]);
        Ok(message)
    }

    /// Reads the body of a message whose header CONTENT-TYPE has this value. What is read is written as it was read: there
    /// is no other way to write it.
    ///
    /// # Errors
    /// [`InvalidEntity`].
    pub fn parse(content_type: &str, body: &[u8]) -> Result<Self, InvalidEntity> {
        let named = content_type.strip_prefix(TYPE.0).and_then(|rest| rest.strip_suffix(TYPE.1));
        let named = named.ok_or(InvalidEntity::Type)?;
        let body = std::str::from_utf8(body).map_err(|_| InvalidEntity::Text)?;
        let rest = body.strip_prefix("--").and_then(|rest| rest.strip_prefix(named)).ok_or(InvalidEntity::Boundary)?;
        let rest = rest.strip_prefix('\n').ok_or(InvalidEntity::Boundary)?;
        let rest = rest.strip_prefix(TEXT_HEAD).ok_or(InvalidEntity::Head)?;
        let delimiter = format!("\n--{named}");
        let (text, mut rest) = rest.split_once(&delimiter).ok_or(InvalidEntity::Boundary)?;
        if boundary(text) != named {
            return Err(InvalidEntity::Boundary);
        }
        let mut files = Vec::new();
        while rest != "--\n" {
            if files.len() == MAX_FILES {
                return Err(InvalidEntity::TooManyFiles);
            }
            let part = rest.strip_prefix('\n').ok_or(InvalidEntity::Boundary)?;
            let (part, after) = part.split_once(&delimiter).ok_or(InvalidEntity::Boundary)?;
            files.push(file(part)?);
            rest = after;
        }
        Self::new(text.to_owned(), files)
    }
}

/// One file, from its headers to before the line end of the boundary behind it.
fn file(part: &str) -> Result<File, InvalidEntity> {
    let part = part.strip_prefix(FILE_TYPE).ok_or(InvalidEntity::Head)?;
    let (value, part) = part.split_once('\n').ok_or(InvalidEntity::Head)?;
    let name = value.strip_suffix(UTF_8).unwrap_or(value);
    let file_type = FileType::named(name).filter(|found| found.name == name).ok_or(InvalidEntity::FileType)?;
    if file_type.value() != value {
        return Err(InvalidEntity::Head);
    }
    // The line end behind the last digit is the boundary's.
    let digits = part.strip_prefix(FILE_HEAD).ok_or(InvalidEntity::Head)?;
    let octets = STANDARD.decode(digits.replace('\n', "")).map_err(|_| InvalidEntity::Base64)?;
    if base64_lines(&octets, "\n").trim_end_matches('\n') != digits {
        return Err(InvalidEntity::Base64);
    }
    let file = File::new(file_type, octets);
    if file.file_type == file_type { Ok(file) } else { Err(InvalidEntity::Charset) }
}

/// A boundary that no line of `text` has and that says nothing that the text does not: its digest. Base64 has none of its
/// characters `=_` in a row.
pub fn boundary(text: &str) -> String {
    format!("=_{}", sha1(&[text.as_bytes()]))
}

/// The octets in base64, in lines of 76 digits that end so (RFC 2045 6.8).
pub fn base64_lines(octets: &[u8], line_end: &str) -> String {
    let lines = octets.len().div_ceil(LINE_OCTETS);
    let mut encoded = String::with_capacity(lines * (LINE_LEN + line_end.len()));
    for line in octets.chunks(LINE_OCTETS) {
        STANDARD.encode_string(line, &mut encoded);
        encoded.push_str(line_end);
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entity(text: &str, files: &[(&str, &[u8])]) -> Entity {
        let file = |(name, octets): &(&str, &[u8])| File::new(FileType::named(name).unwrap(), octets.to_vec());
        Entity::new(text.to_owned(), files.iter().map(file).collect()).unwrap()
    }

    fn written(entity: &Entity) -> (String, String) {
        let message = entity.message(MessageHeaders::default()).unwrap();
        let (headers, body) = headers::parse(&message);
        (headers.content_type.unwrap(), String::from_utf8(body.to_vec()).unwrap())
    }

    fn read(content_type: &str, body: &str) -> Result<Entity, InvalidEntity> {
        Entity::parse(content_type, body.as_bytes())
    }

    #[test]
    fn there_is_one_way_to_write_a_text_with_files() {
        let entity =
            entity("Gr\u{fc}\u{df}e\n", &[("text/csv", b"a,b\n"), ("image/png", &[0xff; 58]), ("video/mp4", b"")]);
        let subject = MessageHeaders { subject: Some("three".to_owned()), ..MessageHeaders::default() };
        let message = String::from_utf8(entity.message(subject).unwrap()).unwrap();
        // Its digits are what sha1sum says of the text.
        let boundary = "=_5a191a0335e2b973d41ef6b86539b995fe4e525e";
        let full_line = "/".repeat(76);
        assert_eq!(
            message,
            format!(
                "CONTENT-TYPE:multipart/mixed; boundary=\"{boundary}\"\nSUBJECT:three\n\n--{boundary}\n\
                 Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nGr\u{fc}\u{df}e\n\n\
                 --{boundary}\nContent-Type: text/csv; charset=utf-8\nContent-Transfer-Encoding: base64\n\
                 Content-Disposition: attachment\n\nYSxiCg==\n\
                 --{boundary}\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\
                 Content-Disposition: attachment\n\n{full_line}\n/w==\n\
                 --{boundary}\nContent-Type: video/mp4\nContent-Transfer-Encoding: base64\n\
                 Content-Disposition: attachment\n\n\n--{boundary}--\n"
            )
        );
    }

    #[test]
    fn more_text_changes_text_and_boundary_alone() {
        let before = entity("text\n", &[("image/png", b"x")]);
        let after = before.clone().with_more_text("\nmore\n").unwrap();
        assert_eq!((after.text(), after.files()), ("text\n\nmore\n", before.files()));
        let (content_type, body) = written(&after);
        assert_ne!(content_type, written(&before).0);
        assert_eq!(read(&content_type, &body), Ok(after));
        assert_eq!(before.with_more_text("no line"), Err(InvalidEntity::Text));
    }

    #[test]
    fn types_outside_the_list_do_not_travel() {
        assert_eq!(FileType::named("IMAGE/PNG").unwrap().name(), "image/png");
        assert_eq!(FileType::of_extension("JPEG").unwrap().extension(), "jpg");
        for name in ["message/rfc822", "multipart/mixed", "text/vcard", "image/x-canary", ""] {
            assert_eq!(FileType::named(name), None, "{name}");
        }
        assert_eq!(FileType::of_extension("canary"), None);
        for (name, extensions) in TYPES {
            assert!(!extensions.is_empty() && name.bytes().all(|c| !c.is_ascii_uppercase()), "{name}");
        }
    }

    #[test]
    fn text_that_is_not_utf_8_is_octets() {
        let csv = FileType::named("text/csv").unwrap();
        assert_eq!(File::new(csv, b"caf\xe9".to_vec()).file_type(), FileType::OCTETS);
        assert_eq!(File::new(csv, "caf\u{e9}".into()).file_type(), csv);
    }

    #[test]
    fn entity_that_is_written_in_another_way_is_refused_by_name() {
        let (content_type, body) = written(&entity("text\n", &[("text/csv", b"a,b\n"), ("image/png", &[0xff; 58])]));
        assert!(read(&content_type, &body).is_ok());
        let boundary = boundary("text\n");
        let changed = |from: &str, to: &str| {
            assert!(body.contains(from), "{from}");
            read(&content_type, &body.replacen(from, to, 1))
        };
        use InvalidEntity as Not;
        for (from, to, why) in [
            ("text\n", "text\r\n", Not::Boundary),
            ("text\n", "other\n", Not::Boundary),
            ("Content-Type: text/plain; charset=utf-8", "Content-Type: text/html; charset=utf-8", Not::Head),
            ("8bit\n", "8bit\nContent-ID: <canary@x>\n", Not::Head),
            ("base64\n", "base64\nContent-Description: canary\n", Not::Head),
            ("attachment\n", "attachment; filename=canary.csv\n", Not::Head),
            ("image/png", "image/png; name=canary.png", Not::FileType),
            ("image/png", "message/rfc822", Not::FileType),
            ("image/png", "multipart/mixed; boundary=x", Not::FileType),
            ("image/png", "Image/PNG", Not::FileType),
            ("image/png", "image/png; charset=utf-8", Not::Head),
            ("text/csv; charset=utf-8", "text/csv", Not::Head),
            ("YSxiCg==", "/w==", Not::Charset),
            ("YSxiCg==", "YSxiCg=", Not::Base64),
            ("YSxiCg==", "YSxiCh==", Not::Base64),
            ("YSxiCg==", "YSxi\nCg==", Not::Base64),
            ("YSxiCg==", " YSxiCg==", Not::Base64),
            ("YSxiCg==", "YSxiCg==\n", Not::Base64),
            ("YSxiCg==", "YSxiCg==\n.\nMAIL FROM:<x@example.org>", Not::Base64),
            ("/w==\n", "/w==\n--", Not::Boundary),
        ] {
            assert_eq!(changed(from, to), Err(why), "{from:?} -> {to:?}");
        }
        let end = format!("--{boundary}--\n");
        assert_eq!(changed(&end, ""), Err(Not::Boundary), "cut off");
        assert_eq!(changed(&end, &format!("{end}epilogue\n")), Err(Not::Boundary));
        assert_eq!(read(&content_type, &format!("preamble\n{body}")), Err(Not::Boundary));
        assert_eq!(Entity::parse(&content_type, b"\xff"), Err(Not::Text));
        for other in ["text/html", "multipart/mixed", "multipart/mixed; boundary=\"x\"; charset=x", ""] {
            assert_eq!(read(other, &body), Err(Not::Type), "{other}");
        }
        for other in ["multipart/mixed; boundary=\"\"", "multipart/mixed; boundary=\"x\""] {
            assert_eq!(read(other, &body), Err(Not::Boundary), "{other}");
        }
    }

    #[test]
    fn control_characters_and_lines_without_end_are_no_text() {
        let file = || vec![File::new(FileType::OCTETS, Vec::new())];
        for text in ["no end", "bell\u{7}\n", "cr\r\n", "c1\u{85}\n"] {
            assert_eq!(Entity::new(text.to_owned(), file()), Err(InvalidEntity::Text), "{text:?}");
            let boundary = boundary(text);
            let content_type = format!("{}{boundary}\"", TYPE.0);
            let body = format!(
                "--{boundary}\n{TEXT_HEAD}{text}\n--{boundary}\n{FILE_TYPE}image/png\n{FILE_HEAD}\n--{boundary}--\n"
            );
            assert_eq!(read(&content_type, &body), Err(InvalidEntity::Text), "{text:?}");
        }
        assert!(Entity::new(String::new(), file()).is_ok());
    }

    #[test]
    fn none_or_too_many_files_are_refused() {
        let files = |count| vec![File::new(FileType::OCTETS, Vec::new()); count];
        let new = |count| Entity::new("x\n".to_owned(), files(count));
        assert_eq!(new(0), Err(InvalidEntity::NoFiles));
        assert_eq!(new(MAX_FILES + 1), Err(InvalidEntity::TooManyFiles));
        let (content_type, body) = written(&new(MAX_FILES).unwrap());
        assert_eq!(read(&content_type, &body).map(|entity| entity.files().len()), Ok(MAX_FILES));
        let boundary = boundary("x\n");
        let part = format!("--{boundary}\n{FILE_TYPE}image/png\n{FILE_HEAD}\n");
        let more = body.replacen(&format!("--{boundary}--"), &format!("{part}--{boundary}--"), 1);
        assert_eq!(read(&content_type, &more), Err(InvalidEntity::TooManyFiles));
        let none = format!("--{boundary}\n{TEXT_HEAD}x\n\n--{boundary}--\n");
        assert_eq!(read(&content_type, &none), Err(InvalidEntity::NoFiles));
    }

    #[test]
    fn nothing_of_it_is_printed() {
        let entity = entity("secret\n", &[("text/plain", b"secret")]);
        assert_eq!(format!("{entity:?} {:?}", entity.files()[0]), "Entity(1 files) File(text/plain, ..)");
    }

    prop_compose! {
        fn any_file()(index in 0..TYPES.len(), octets in prop::collection::vec(any::<u8>(), 0..200)) -> File {
            File::new(FileType::named(TYPES[index].0).unwrap(), octets)
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(lines in prop::collection::vec("[^\\p{C}]{0,30}|--=_|--|", 0..5),
                                   files in prop::collection::vec(any_file(), 1..4)) {
            let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
            let entity = Entity::new(text, files).unwrap();
            let (content_type, body) = written(&entity);
            prop_assert_eq!(read(&content_type, &body), Ok(entity));
        }

        /// Whatever is read was written in the one way that there is, so that nothing hides in it.
        #[test]
        fn what_is_read_is_written_so(at in any::<prop::sample::Index>(), octet in any::<u8>(), insert in any::<bool>()) {
            let (content_type, body) = written(&entity("text\n", &[("text/csv", b"a,b\n"), ("image/png", &[7; 60])]));
            let mut octets = body.into_bytes();
            let at = at.index(octets.len());
            if insert { octets.insert(at, octet) } else { octets[at] = octet }
            if let Ok(read) = Entity::parse(&content_type, &octets) {
                let (again, body) = written(&read);
                prop_assert_eq!((again, body.into_bytes()), (content_type, octets));
            }
        }

        #[test]
        fn arbitrary_octets_do_no_harm(content_type in any::<String>(), octets in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Entity::parse(&content_type, &octets);
            let _ = Entity::parse("multipart/mixed; boundary=\"x\"", &[b"--x\n", TEXT_HEAD.as_bytes(), &octets].concat());
        }
    }
}
