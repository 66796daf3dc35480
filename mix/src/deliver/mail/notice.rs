//! What stands above each message, such as a disclaimer: from the settings, or from a file of the operator's, with a few words
//! of the node's filled in. It is read and filled in once, and is the same for all mails.

use super::MailConfig;
use crate::deliver::list::{self, ListError};

/// Octets of a notice, at most: each mail has all of it.
pub const MAX_LEN: usize = 64 * 1024;
/// Characters of an unknown word that an error shows.
const SHOWN_LEN: usize = 40;

/// What a notice can say of the node.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// What people call it.
    pub nickname: &'a str,
    /// Where it is.
    pub host: &'a str,
    /// How its operator is reached.
    pub contact: &'a str,
}

/// No mail can go out under such a notice. The operator must mend it.
#[derive(Debug, thiserror::Error)]
pub enum NoticeError {
    /// Which of them is meant?
    #[error("notice and notice_file are both set: leave one of them out")]
    Both,
    /// The text in the settings.
    #[error("notice")]
    Inline(#[source] InvalidNotice),
    /// The file.
    #[error("notice_file")]
    File(#[from] ListError<InvalidNotice>),
}

/// Why a text is no notice. Blames whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNotice {
    /// Each mail would have all of it.
    #[error("found more than {MAX_LEN} octets, expected a shorter text")]
    TooLong,
    /// Mail programs would have to guess.
    #[error("line {line}: found octets that are no UTF-8 behind the first {offset} of the text, expected UTF-8")]
    Encoding {
        /// The line, from 1.
        line: usize,
        /// Octets before it.
        offset: usize,
    },
    /// It shows nothing, and servers and terminals may take it for something to do.
    #[error("line {line}: found the control character U+{code:04X}, expected text, tabs and line ends (LF or CRLF)")]
    Control {
        /// The line, from 1.
        line: usize,
        /// Its number in Unicode.
        code: u32,
    },
    /// A brace that no other one closes in its line.
    #[error("line {line}: found a brace without the one that closes it; a brace itself is written {{{{")]
    Brace {
        /// The line, from 1.
        line: usize,
    },
    /// No such word is known.
    #[error(
        "line {line}: found {{{word}}}, expected one of {{nickname}}, {{host}}, {{contact}}, {{abuse}}, {{return_address}}; a brace itself is written {{{{"
    )]
    Placeholder {
        /// The line, from 1.
        line: usize,
        /// What stands between the braces.
        word: String,
    },
    /// The word stands for a setting that says nothing.
    #[error("line {line}: found {{{word}}}, expected node.smtp.mail.{word} to be set")]
    Unset {
        /// The line, from 1.
        line: usize,
        /// What stands between the braces.
        word: &'static str,
    },
}

impl MailConfig {
    /// What stands above each message, if the settings say so. Reads the file.
    ///
    /// # Errors
    /// [`NoticeError`].
    pub fn notice(&self, about: &About<'_>) -> Result<Option<String>, NoticeError> {
        match (&self.notice, &self.notice_file) {
            (Some(_), Some(_)) => Err(NoticeError::Both),
            (Some(text), None) => self.filled_in(text.as_bytes(), about).map(Some).map_err(NoticeError::Inline),
            (None, Some(path)) => Ok(Some(list::read(path, MAX_LEN, |octets| self.filled_in(octets, about))?)),
            (None, None) => Ok(None),
        }
    }

    /// What stands above messages for users of the node where the settings say nothing. As in the reference: whoever has an
    /// address in a table that he may never have seen is told who put it there, and how to get it out.
    pub fn notice_for_users(&self, about: &About<'_>) -> String {
        format!(
            "This message is anonymous. It came through the remailer {}\n({}), whose operator cannot tell who wrote it, and has set \
             it up\nto deliver such messages to you. If you want no more of them, write to\n{}\nand you will be taken off its list.",
            about.nickname,
            about.host,
            self.abuse.as_deref().unwrap_or(about.contact)
        )
    }

    fn filled_in(&self, octets: &[u8], about: &About<'_>) -> Result<String, InvalidNotice> {
        let text = as_text(octets)?;
        let values = [
            ("nickname", Some(about.nickname)),
            ("host", Some(about.host)),
            ("contact", Some(about.contact)),
            ("abuse", self.abuse.as_deref()),
            ("return_address", self.return_address.as_ref().map(|mailbox| mailbox.as_str())),
        ];
        let (mut filled, mut rest) = (String::with_capacity(text.len()), text);
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            if let Some(after) = after.strip_prefix('{') {
                filled.push('{');
                rest = after;
                continue;
            }
            let line = line_at(text.as_bytes(), text.len() - after.len());
            let closed = after.split_once('}').filter(|(word, _)| !word.contains(['{', '\n']));
            let (word, after) = closed.ok_or(InvalidNotice::Brace { line })?;
            let unknown = || InvalidNotice::Placeholder { line, word: word.chars().take(SHOWN_LEN).collect() };
            let (word, value) = values.into_iter().find(|(known, _)| *known == word).ok_or_else(unknown)?;
            filled.push_str(value.ok_or(InvalidNotice::Unset { line, word })?);
            rest = after;
        }
        Ok(filled + rest)
    }
}

/// The text as a mail can show it.
fn as_text(octets: &[u8]) -> Result<&str, InvalidNotice> {
    if octets.len() > MAX_LEN {
        return Err(InvalidNotice::TooLong);
    }
    let text = std::str::from_utf8(octets).map_err(|why| {
        let offset = why.valid_up_to();
        InvalidNotice::Encoding { line: line_at(octets, offset), offset }
    })?;
    // Some editors begin a file with it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (at, c) in text.char_indices() {
        // Alone, some software takes a CR for a line end and some does not.
        let is_shown = match c {
            '\r' => text.as_bytes().get(at + 1) == Some(&b'\n'),
            c => matches!(c, '\n' | '\t') || !c.is_control(),
        };
        if !is_shown {
            return Err(InvalidNotice::Control { line: line_at(text.as_bytes(), at), code: c.into() });
        }
    }
    Ok(text)
}

/// The line, from 1, of what is behind so many octets.
fn line_at(octets: &[u8], offset: usize) -> usize {
    octets.iter().take(offset).filter(|octet| **octet == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ABOUT: About<'_> = About { nickname: "Alice", host: "mix.example", contact: "alice@mix.example" };

    fn config() -> MailConfig {
        MailConfig { abuse: Some("abuse@mix.example".into()), ..MailConfig::default() }
    }

    fn inline(text: &str) -> Result<Option<String>, InvalidNotice> {
        MailConfig { notice: Some(text.into()), ..config() }.notice(&ABOUT).map_err(|why| match why {
            NoticeError::Inline(why) => why,
            other => panic!("{other}"),
        })
    }

    fn from_file(octets: &[u8]) -> Result<Option<String>, InvalidNotice> {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notice");
        fs::write(&path, octets).unwrap();
        MailConfig { notice_file: Some(path.clone()), ..config() }.notice(&ABOUT).map_err(|why| match why {
            NoticeError::File(ListError::Invalid { path: named, source }) if named == path => source,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn words_of_the_node_are_filled_in_from_settings_and_file_alike() {
        let text = "Grüße von {nickname} ({host}):\r\n\t{contact}, {abuse} {{nickname}} }\n";
        let filled = "Grüße von Alice (mix.example):\r\n\talice@mix.example, abuse@mix.example {nickname}} }\n";
        assert_eq!(inline(text), Ok(Some(filled.into())));
        assert_eq!(from_file(text.as_bytes()), Ok(Some(filled.into())));
        assert_eq!(from_file(b"\xef\xbb\xbfx\n"), Ok(Some("x\n".into())));
        assert_eq!(from_file(b""), Ok(Some(String::new())));
        assert_eq!(config().notice(&ABOUT).unwrap(), None);
    }

    #[test]
    fn each_flaw_is_named_with_its_line() {
        let placeholder = |word: &str| InvalidNotice::Placeholder { line: 2, word: word.into() };
        for (text, expected) in [
            ("a\n{nick}", placeholder("nick")),
            ("a\n{}", placeholder("")),
            ("a\n{ nickname }", placeholder(" nickname ")),
            ("a\nb {", InvalidNotice::Brace { line: 2 }),
            ("a\n{nick\nname}", InvalidNotice::Brace { line: 2 }),
            ("a\n{nick{name}", InvalidNotice::Brace { line: 2 }),
            ("a\n{return_address}", InvalidNotice::Unset { line: 2, word: "return_address" }),
            ("a\nb\rc", InvalidNotice::Control { line: 2, code: 0x0d }),
            ("a\nb\r", InvalidNotice::Control { line: 2, code: 0x0d }),
            ("a\nb\0", InvalidNotice::Control { line: 2, code: 0 }),
            ("a\n\u{1b}[2J", InvalidNotice::Control { line: 2, code: 0x1b }),
            ("a\n\u{85}", InvalidNotice::Control { line: 2, code: 0x85 }),
            (&"x".repeat(MAX_LEN + 1), InvalidNotice::TooLong),
        ] {
            assert_eq!(inline(text), Err(expected.clone()));
            assert_eq!(from_file(text.as_bytes()), Err(expected));
        }
        assert_eq!(from_file(b"gr\n\xfc\xdf"), Err(InvalidNotice::Encoding { line: 2, offset: 3 }));
        assert_eq!(inline(&"x".repeat(MAX_LEN)).unwrap().map(|text| text.len()), Some(MAX_LEN));
        let said = placeholder("nick").to_string();
        assert!(said.starts_with("line 2: found {nick}, expected one of {nickname}, {host}, "), "{said}");
    }

    #[test]
    fn two_notices_and_a_file_that_is_not_there_are_refused() {
        let both = MailConfig { notice: Some("x".into()), notice_file: Some("/nowhere".into()), ..config() };
        assert!(matches!(both.notice(&ABOUT), Err(NoticeError::Both)));
        let nowhere = MailConfig { notice_file: Some("/nowhere/notice".into()), ..config() };
        assert!(matches!(nowhere.notice(&ABOUT), Err(NoticeError::File(ListError::Unreadable { .. }))));
    }

    #[test]
    fn users_are_told_who_delivers_to_them_and_whom_to_ask() {
        let notice = config().notice_for_users(&ABOUT);
        for told in ["anonymous", "Alice\n(mix.example)", "\nabuse@mix.example\n"] {
            assert!(notice.contains(told), "{notice}");
        }
        assert!(MailConfig::default().notice_for_users(&ABOUT).contains("\nalice@mix.example\n"));
    }
}
