//! A mail in the form that POP3 sends: lines that end in CRLF (RFC 1939, section 3; RFC 5322, section 2.3).
//!
//! What a line says is of no interest here.

use std::fmt;

/// A mail whose every line feed follows a carriage return and which ends in both, unless it is empty. Its length is the
/// size that STAT and LIST announce (RFC 1939, section 11): the octets of RETR before dots are stuffed, without the
/// line that ends the answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Letter(Vec<u8>);

impl Letter {
    /// Takes octets as they are stored and makes their line ends whole. Nothing else is touched: a carriage return by
    /// itself is content.
    pub fn new(octets: Vec<u8>) -> Self {
        if length(&octets) == octets.len() { Self(octets) } else { Self(with_whole_line_ends(&octets)) }
    }

    /// The length that [`Letter::new`] would come to.
    pub fn length_of(octets: &[u8]) -> usize {
        length(octets)
    }

    /// The octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Header, blank line and the first `lines` lines of the body (TOP; RFC 1939, section 7). All of it when the body has
    /// fewer, or when there is no blank line and so no body.
    pub fn top(&self, lines: usize) -> &[u8] {
        let mut rest = self.0.split_inclusive(|octet| *octet == b'\n');
        let header: usize = rest.by_ref().take_while(|line| *line != b"\r\n").map(<[u8]>::len).sum();
        // Past the end when there was no blank line: `min` cuts it.
        let header = header.saturating_add(2).min(self.0.len());
        let body: usize = rest.take(lines).map(<[u8]>::len).sum();
        self.0.get(..header + body).unwrap_or(&self.0)
    }
}

/// Prints nothing of the text.
impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Letter(..)")
    }
}

/// Appends `lines` with a second dot before each that begins with one, then the line that ends a multi-line answer
/// (RFC 1939, section 3). `lines` are whole.
pub(super) fn stuff(lines: &[u8], out: &mut Vec<u8>) {
    out.reserve(lines.len() + 3);
    for line in lines.split_inclusive(|octet| *octet == b'\n') {
        if line.first() == Some(&b'.') {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out.extend_from_slice(b".\r\n");
}

fn length(octets: &[u8]) -> usize {
    lines(octets).map(|line| line.len() + 2).sum()
}

fn with_whole_line_ends(octets: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(length(octets));
    for line in lines(octets) {
        whole.extend_from_slice(line);
        whole.extend_from_slice(b"\r\n");
    }
    whole
}

/// The lines, without their ends.
fn lines(octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    octets.split_inclusive(|octet| *octet == b'\n').map(|line| match line {
        [content @ .., b'\r', b'\n'] | [content @ .., b'\n'] => content,
        unfinished => unfinished,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stuffed(lines: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        stuff(lines, &mut out);
        out
    }

    #[test]
    fn line_ends_are_made_whole_and_nothing_else_is_touched() {
        let cases: [(&[u8], &[u8]); 9] = [
            (b"", b""),
            (b"\n", b"\r\n"),
            (b"a\nb\r\nc", b"a\r\nb\r\nc\r\n"),
            (b"a\r\n", b"a\r\n"),
            (b"a\rb\n", b"a\rb\r\n"),
            (b"a\r\r\n", b"a\r\r\n"),
            (b"\xff\x00.\n", b"\xff\x00.\r\n"),
            (b"\n\n", b"\r\n\r\n"),
            (b"a\r", b"a\r\r\n"),
        ];
        for (stored, sent) in cases {
            assert_eq!(Letter::new(stored.to_vec()).as_bytes(), sent);
        }
    }

    #[test]
    fn every_line_that_begins_with_a_dot_gets_another() {
        assert_eq!(stuffed(b".\r\n..\r\n.dotted line\r\na.b\r\n"), b"..\r\n...\r\n..dotted line\r\na.b\r\n.\r\n");
        assert_eq!(stuffed(b""), b".\r\n");
    }

    #[test]
    fn top_gives_header_blank_line_and_so_many_lines() {
        let letter = Letter::new(b"A: 1\r\nB: 2\r\n\r\none\r\n\r\nthree\r\n".to_vec());
        assert_eq!(letter.top(0), b"A: 1\r\nB: 2\r\n\r\n");
        assert_eq!(letter.top(1), b"A: 1\r\nB: 2\r\n\r\none\r\n");
        assert_eq!(letter.top(2), b"A: 1\r\nB: 2\r\n\r\none\r\n\r\n");
        assert_eq!(letter.top(3), letter.as_bytes());
        assert_eq!(letter.top(usize::MAX), letter.as_bytes());
    }

    #[test]
    fn top_of_a_mail_without_body_is_all_of_it() {
        for text in ["A: 1\r\n", "A: 1\r\n\r\n", "\r\n", ""] {
            assert_eq!(Letter::new(text.into()).top(5), text.as_bytes());
            assert_eq!(Letter::new(text.into()).top(0), text.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn announced_length_is_the_length_sent(octets in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), any::<u8>()], 0..200)) {
            let letter = Letter::new(octets.clone());
            prop_assert_eq!(letter.len(), Letter::length_of(&octets));
            prop_assert_eq!(Letter::new(letter.as_bytes().to_vec()), letter);
        }

        #[test]
        fn a_client_that_removes_the_dots_has_the_mail(octets in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), any::<u8>()], 0..200)) {
            let letter = Letter::new(octets);
            let sent = stuffed(letter.as_bytes());
            let mut read = Vec::new();
            for line in sent.split_inclusive(|octet| *octet == b'\n') {
                if line == b".\r\n" { break; }
                read.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            }
            prop_assert_eq!(&read, letter.as_bytes());
        }
    }
}
