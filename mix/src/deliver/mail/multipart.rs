//! A text and its attachments, or armour, as the body of a mail (RFC 2045, 2046 5.1.3, 2183).
//!
//! Of a file its type and its octets are the sender's; its name is a number, and there are no other headers. Reading what a
//! sender wrote is `payload::entity`'s.

use super::lines::{field, fold};
use super::text::{self, write_text};
use crate::payload::entity::{File, base64_lines, boundary};

/// Writes the headers that say what the body is, and the body: the text, which has the exit's own words in it by now, then
/// the files.
pub(super) fn write(mail: &mut String, text: &str, files: &[File]) {
    let boundary = begin(mail, text);
    for (index, file) in files.iter().enumerate() {
        // The line end before a boundary is the boundary's.
        mail.push_str(&format!("\r\n--{boundary}\r\n"));
        let (file_type, number) = (file.file_type(), index + 1);
        let name = format!("\"attachment-{number}.{}\"", file_type.extension());
        mail.push_str(&field("Content-Type", &format!("{};\r\n name={name}", file_type.value())));
        mail.push_str(&field("Content-Transfer-Encoding", "base64"));
        mail.push_str(&field("Content-Disposition", &format!("attachment; filename={name}")));
        mail.push_str("\r\n");
        mail.push_str(&base64_lines(file.octets(), "\r\n"));
    }
    mail.push_str(&format!("\r\n--{boundary}--\r\n"));
}

/// The same of the exit's own words and armour, whose lines are lines of the mail.
pub(super) fn write_armour(mail: &mut String, text: &str, armour: &str) {
    // No line of armour is a boundary: those that begin with hyphens go on with more of them.
    let boundary = begin(mail, text);
    mail.push_str(&format!("\r\n--{boundary}\r\n"));
    text::write_armour(mail, armour);
    mail.push_str(&format!("\r\n--{boundary}--\r\n"));
}

/// The headers, and the text as the first part. Returns what stands between parts.
fn begin(mail: &mut String, text: &str) -> String {
    // Of the text before it is encoded: quoted-printable has no `=_`, and as it is it does not have its own digest.
    let boundary = boundary(text);
    let content_type = format!("multipart/mixed; boundary=\"{boundary}\"");
    mail.push_str(&fold("Content-Type", &content_type).expect("two words, each shorter than a line"));
    mail.push_str(&format!("\r\n--{boundary}\r\n"));
    write_text(mail, text);
    boundary
}

#[cfg(test)]
mod tests {
    use mail_parser::{Message, MessageParser, MimeHeaders as _};
    use proptest::prelude::*;

    use super::*;
    use crate::payload::entity::{Entity, FileType};

    fn file(name: &str, octets: &[u8]) -> File {
        File::new(FileType::named(name).unwrap(), octets.to_vec())
    }

    fn written(text: &str, files: &[File]) -> String {
        let mut mail = "MIME-Version: 1.0\r\n".to_owned();
        write(&mut mail, text, files);
        assert!(mail.is_ascii() && !mail.replace("\r\n", "").contains(['\r', '\n']), "{mail:?}");
        assert!(mail.split("\r\n").all(|line| line.len() <= super::super::MAX_LINE_LEN), "{mail}");
        mail
    }

    fn text_of(mail: &Message<'_>) -> String {
        mail.body_text(0).unwrap().replace("\r\n", "\n")
    }

    #[test]
    fn text_and_files_arrive_octet_by_octet_under_names_of_the_exit() {
        let text = "Gr\u{fc}\u{df}e = \u{20ac}\n.\n\n";
        let files =
            [file("text/csv", "\u{20ac},2\r\n".as_bytes()), file("image/png", &[0; 100]), file("video/mp4", b"")];
        let mail = written(text, &files);
        let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
        assert_eq!(text_of(&parsed), text);
        let found: Vec<_> =
            parsed.attachments().map(|part| (part.attachment_name().unwrap(), part.contents())).collect();
        let expected: Vec<_> = ["attachment-1.csv", "attachment-2.png", "attachment-3.mp4"]
            .into_iter()
            .zip(files.iter().map(File::octets))
            .collect();
        assert_eq!(found, expected);
        let boundary = boundary(text);
        let after_text = mail.split_once(&format!("\r\n\r\n--{boundary}\r\nContent-Type: text/csv;")).unwrap().1;
        assert_eq!(
            after_text,
            format!(
                " charset=utf-8;\r\n name=\"attachment-1.csv\"\r\nContent-Transfer-Encoding: base64\r\n\
                 Content-Disposition: attachment; filename=\"attachment-1.csv\"\r\n\r\n4oKsLDINCg==\r\n\r\n\
                 --{boundary}\r\nContent-Type: image/png;\r\n name=\"attachment-2.png\"\r\n\
                 Content-Transfer-Encoding: base64\r\n\
                 Content-Disposition: attachment; filename=\"attachment-2.png\"\r\n\r\n{}\r\n{}==\r\n\r\n\
                 --{boundary}\r\nContent-Type: video/mp4;\r\n name=\"attachment-3.mp4\"\r\n\
                 Content-Transfer-Encoding: base64\r\n\
                 Content-Disposition: attachment; filename=\"attachment-3.mp4\"\r\n\r\n\r\n--{boundary}--\r\n",
                "A".repeat(76),
                "A".repeat(58)
            )
        );
    }

    #[test]
    fn text_that_looks_like_a_boundary_is_text() {
        for text in
            ["--=_\n", "--=_0000000000000000000000000000000000000000--\nContent-Type: text/html\n\n<p>\n", "--\n"]
        {
            let mail = written(text, &[file("image/png", b"x")]);
            let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
            assert_eq!((text_of(&parsed).as_str(), parsed.attachment_count()), (text, 1));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_attached_arrives(
            lines in prop::collection::vec("[^\\p{C}]{0,90}|--=_|\\.|From x", 1..5),
            octets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..4),
        ) {
            let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
            let files: Vec<_> = octets.iter().map(|octets| file("application/pdf", octets)).collect();
            let entity = Entity::new(text.clone(), files).unwrap();
            let mail = written(entity.text(), entity.files());
            let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
            prop_assert_eq!(text_of(&parsed), text);
            let found: Vec<_> = parsed.attachments().map(|part| part.contents().to_vec()).collect();
            prop_assert_eq!(found, octets);
        }
    }
}
