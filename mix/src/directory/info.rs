//! The text format of descriptors and directories: sections in brackets, lines of `Key: value` (dir-spec 2.1).
//!
//! Reads the grammar and nothing more: which sections and keys mean something is decided by `descriptor` and `signed`.
//! As lax as the reference on blanks, since one odd line must not take a directory from everyone; writes no such line.

use std::fmt::Write as _;

/// How much text is read before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets in all.
    pub len: usize,
    /// Lines in all.
    pub lines: usize,
    /// Octets in one line.
    pub line_len: usize,
}

/// Why a text is not of the exchange format. Blames whoever wrote it.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidInfo {
    /// More octets than the limit.
    #[error("text of {len} octets; at most {max} are read")]
    TooLong {
        /// Octets found.
        len: usize,
        /// Octets allowed.
        max: usize,
    },
    /// More lines than the limit.
    #[error("more than {max} lines")]
    TooManyLines {
        /// Lines allowed.
        max: usize,
    },
    /// A line with more octets than the limit.
    #[error("line {line} is longer than {max} octets")]
    LineTooLong {
        /// Where.
        line: usize,
        /// Octets allowed.
        max: usize,
    },
    /// A character that is neither printing ASCII nor a space or tab.
    #[error("line {line} has a character that is not printing ASCII")]
    Character {
        /// Where.
        line: usize,
    },
    /// Nothing on a line, or a comment: descriptors have neither.
    #[error("line {line} is empty or a comment")]
    EmptyLine {
        /// Where.
        line: usize,
    },
    /// Begins as a section header but is none.
    #[error("line {line} is not a section header")]
    SectionHeader {
        /// Where.
        line: usize,
    },
    /// Not of the form `Key: value`.
    #[error("line {line} is not an entry")]
    Entry {
        /// Where.
        line: usize,
    },
    /// An entry before the first section header.
    #[error("line {line} belongs to no section")]
    NoSection {
        /// Where.
        line: usize,
    },
}

/// A text in its one canonical form: no space or tab at either end of a line, each line ended by one NL. This is the form
/// that digests are taken over (dir-spec 2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document(String);

impl Document {
    /// Puts `text` into canonical form; CR, NL and CR-NL all end lines.
    ///
    /// # Errors
    /// [`InvalidInfo`] for what breaks a limit, is not printing ASCII, or is an empty line or a comment.
    pub fn read(text: &str, limits: &Limits) -> Result<Self, InvalidInfo> {
        if text.len() > limits.len {
            return Err(InvalidInfo::TooLong { len: text.len(), max: limits.len });
        }
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut canonical = String::with_capacity(text.len() + 1);
        for (index, raw) in text.strip_suffix('\n').unwrap_or(&text).split('\n').enumerate() {
            let line = index + 1;
            if text.is_empty() {
                break;
            } else if line > limits.lines {
                return Err(InvalidInfo::TooManyLines { max: limits.lines });
            } else if raw.len() > limits.line_len {
                return Err(InvalidInfo::LineTooLong { line, max: limits.line_len });
            } else if !raw.bytes().all(|c| c == b'\t' || (b' '..=b'~').contains(&c)) {
                return Err(InvalidInfo::Character { line });
            }
            let trimmed = raw.trim_matches([' ', '\t']);
            if trimmed.is_empty() || trimmed.starts_with('#') {
                return Err(InvalidInfo::EmptyLine { line });
            }
            canonical.push_str(trimmed);
            canonical.push('\n');
        }
        Ok(Self(canonical))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes the canonical text out.
    pub fn into_string(self) -> String {
        self.0
    }

    /// The sections, in order.
    ///
    /// # Errors
    /// [`InvalidInfo`] for a line that is neither a section header nor an entry of a section.
    pub fn sections(&self) -> Result<Vec<Section<'_>>, InvalidInfo> {
        sections(&self.0, 1)
    }

    /// The text with the values of the first two lines of these keys blanked, as digests are taken (dir-spec 2.5).
    pub fn without_values_of(&self, keys: [&str; 2]) -> String {
        let mut left = keys.len();
        let mut stub = String::with_capacity(self.0.len());
        for line in self.0.split_inclusive('\n') {
            let unsigned = line.split_once(':').filter(|(key, _)| left > 0 && keys.contains(key));
            match unsigned {
                Some((key, _)) => {
                    left -= 1;
                    stub.push_str(key);
                    stub.push_str(":\n");
                }
                None => stub.push_str(line),
            }
        }
        stub
    }
}

/// The sections of canonical text whose first line has the number `first_line` in the whole.
pub(super) fn sections(canonical: &str, first_line: usize) -> Result<Vec<Section<'_>>, InvalidInfo> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    for (index, text) in canonical.lines().enumerate() {
        let line = first_line + index;
        if text.starts_with('[') {
            let name = section_name(text).ok_or(InvalidInfo::SectionHeader { line })?;
            sections.push(Section { name, line, entries: Vec::new() });
        } else {
            let entry = text.split_once(':').filter(|(key, _)| !key.is_empty());
            let (key, value) = entry.ok_or(InvalidInfo::Entry { line })?;
            let section = sections.last_mut().ok_or(InvalidInfo::NoSection { line })?;
            section.entries.push(Entry { key: key.trim_end_matches(BLANKS), value: value.trim_matches(BLANKS), line });
        }
    }
    Ok(sections)
}

const BLANKS: [char; 2] = [' ', '\t'];

/// The word between the brackets. Blanks around it, and all that follows the first closing bracket, mean nothing, as in
/// the reference.
fn section_name(header: &str) -> Option<&str> {
    let name = header.strip_prefix('[')?.split_once(']')?.0.trim_matches(BLANKS);
    Some(name).filter(|name| !name.is_empty() && !name.contains(BLANKS))
}

/// One or more printing characters other than colon and brackets: what is written.
fn is_identifier(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|c| c.is_ascii_graphic() && !b":[]".contains(&c))
}

/// A section: a name and the entries below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// What stands between the brackets.
    pub name: &'a str,
    /// Where the header stands.
    pub line: usize,
    /// The entries, in order.
    pub entries: Vec<Entry<'a>>,
}

impl<'a> Section<'a> {
    /// All entries of `key`, in order.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &Entry<'a>> {
        self.entries.iter().filter(move |entry| entry.key == key)
    }
}

/// One line `Key: value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What stands before the colon.
    pub key: &'a str,
    /// What stands behind it, without spaces around.
    pub value: &'a str,
    /// Where it stands.
    pub line: usize,
}

/// A value that can't be written: it would break its line or lose its spaces.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
#[error("the value of {key} must be one line of printing ASCII without spaces at its ends")]
pub struct Unwritable {
    /// The key it was meant for.
    pub key: String,
}

/// Whether an entry can have this value.
pub(super) fn is_writable(value: &str) -> bool {
    value.bytes().all(|c| (b' '..=b'~').contains(&c)) && value.trim() == value
}

/// Writes canonical text.
#[derive(Debug, Default)]
pub struct Writer(String);

impl Writer {
    /// Begins a section.
    pub fn section(&mut self, name: &str) {
        debug_assert!(is_identifier(name), "section names are constants");
        writeln!(self.0, "[{name}]").expect("a String takes all");
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// [`Unwritable`] when the value holds a line break, other non-printing characters, or begins or ends with a space:
    /// the text would be read back as another one.
    pub fn entry(&mut self, key: &str, value: &str) -> Result<(), Unwritable> {
        debug_assert!(is_identifier(key), "keys are constants");
        if !is_writable(value) {
            return Err(Unwritable { key: key.to_owned() });
        }
        let space = if value.is_empty() { "" } else { " " };
        writeln!(self.0, "{key}:{space}{value}").expect("a String takes all");
        Ok(())
    }

    /// Adds an entry when there is a value.
    ///
    /// # Errors
    /// As [`Writer::entry`].
    pub fn optional(&mut self, key: &str, value: Option<&str>) -> Result<(), Unwritable> {
        value.map_or(Ok(()), |value| self.entry(key, value))
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { len: 200, lines: 6, line_len: 40 };

    fn refused(text: &str) -> InvalidInfo {
        match Document::read(text, &LIMITS) {
            Ok(document) => document.sections().expect_err("must be refused"),
            Err(error) => error,
        }
    }

    #[test]
    fn all_line_ends_and_outer_spaces_become_one_form() {
        let document = Document::read("[A]\r\n  Key:\tv w \rOther:\n[B]", &LIMITS).unwrap();
        assert_eq!(document.as_str(), "[A]\nKey:\tv w\nOther:\n[B]\n");
        let sections = document.sections().unwrap();
        let [a, b] = &sections[..] else { panic!("two sections") };
        assert_eq!((a.name, a.line, b.name, b.line, b.entries.len()), ("A", 1, "B", 4, 0));
        let entries: Vec<_> = a.entries.iter().map(|entry| (entry.key, entry.value, entry.line)).collect();
        assert_eq!(entries, [("Key", "v w", 2), ("Other", "", 3)]);
    }

    #[test]
    fn nothing_is_a_document_without_sections() {
        assert_eq!(Document::read("", &LIMITS).unwrap().sections(), Ok(vec![]));
    }

    #[test]
    fn each_line_that_is_no_line_of_the_grammar_is_refused_by_name_and_place() {
        assert_eq!(refused("[A]\n\nK: v\n"), InvalidInfo::EmptyLine { line: 2 });
        assert_eq!(refused("[A]\nK: v\n  "), InvalidInfo::EmptyLine { line: 3 });
        assert_eq!(refused("[A]\n# remark\n"), InvalidInfo::EmptyLine { line: 2 });
        assert_eq!(refused("\n"), InvalidInfo::EmptyLine { line: 1 });
        assert_eq!(refused("[A\n"), InvalidInfo::SectionHeader { line: 1 });
        assert_eq!(refused("[A B]\n"), InvalidInfo::SectionHeader { line: 1 });
        assert_eq!(refused("[]\n"), InvalidInfo::SectionHeader { line: 1 });
        assert_eq!(refused("[A]\nno colon\n"), InvalidInfo::Entry { line: 2 });
        assert_eq!(refused("[A]\n: v\n"), InvalidInfo::Entry { line: 2 });
        assert_eq!(refused("K: v\n"), InvalidInfo::NoSection { line: 1 });
        assert_eq!(refused("[A]\nK: \u{e4}\n"), InvalidInfo::Character { line: 2 });
        assert_eq!(refused("[A]\nK: \u{b}\n"), InvalidInfo::Character { line: 2 });
    }

    #[test]
    fn blanks_within_brackets_or_before_the_colon_and_a_tail_behind_the_bracket_mean_nothing() {
        let document = Document::read("[ A\t] tail\nKey : v\nTwo words: w\n[B[:]]\n", &LIMITS).unwrap();
        let sections = document.sections().unwrap();
        let names: Vec<_> = sections.iter().map(|section| section.name).collect();
        let keys: Vec<_> = sections[0].entries.iter().map(|entry| (entry.key, entry.value)).collect();
        assert_eq!((&names[..], &keys[..]), (&["A", "B[:"][..], &[("Key", "v"), ("Two words", "w")][..]));
    }

    #[test]
    fn text_beyond_a_limit_is_refused() {
        assert_eq!(refused(&"x".repeat(201)), InvalidInfo::TooLong { len: 201, max: 200 });
        assert_eq!(refused(&format!("[A]\nK: {}\n", "v".repeat(38))), InvalidInfo::LineTooLong { line: 2, max: 40 });
        assert_eq!(refused(&"[A]\n".repeat(7)), InvalidInfo::TooManyLines { max: 6 });
    }

    #[test]
    fn only_the_first_two_unsigned_values_are_blanked() {
        let document = Document::read("[A]\nS: 1\nX: 2\nD: 3\nS: 4\n", &LIMITS).unwrap();
        assert_eq!(document.without_values_of(["D", "S"]), "[A]\nS:\nX: 2\nD:\nS: 4\n");
    }

    #[test]
    fn a_value_that_would_forge_another_line_is_not_written() {
        let mut writer = Writer::default();
        writer.section("A");
        assert_eq!(writer.entry("K", "v\n[B]"), Err(Unwritable { key: "K".to_owned() }));
        assert_eq!(writer.entry("K", " v"), Err(Unwritable { key: "K".to_owned() }));
        writer.entry("K", "v").unwrap();
        writer.optional("L", None).unwrap();
        writer.entry("M", "").unwrap();
        assert_eq!(writer.finish(), "[A]\nK: v\nM:\n");
    }
}
