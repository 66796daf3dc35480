//! The mail between DATA and its end (RFC 5321 4.5.2): takes the stuffed dots out, keeps to the limits, finds the end.
//!
//! The only end is CRLF.CRLF. Lines that end in a bare CR or LF are text like any other (curl sends files as they are),
//! and a dot between two of those is a dot: whoever reads the mail after us sees the one mail that we saw.

/// Longest line kept. RFC 5321 4.5.3.1.6 has 1000 octets; programs send whole paragraphs or HTML pages on one line, and
/// such mails are as good as others. A line is not something that travels: it only bounds what one may be.
pub(crate) const MAX_LINE_LEN: usize = 64 * 1024;

/// A mail as it comes in.
pub(crate) struct Data {
    octets: Vec<u8>,
    max_size: usize,
    line_len: usize,
    at: At,
    refused: Option<BadData>,
}

/// Why a mail is refused once it has ended.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub(crate) enum BadData {
    /// Longer than the limit.
    #[error("the mail is longer than {limit} octets")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// It has a line that is longer than any should be.
    #[error("a line of the mail is longer than {MAX_LINE_LEN} octets")]
    LineTooLong,
}

/// What was read last.
#[derive(Clone, Copy)]
enum At {
    LineStart,
    Text,
    Cr,
    Dot,
    DotCr,
}

impl Data {
    pub(crate) fn new(max_size: usize) -> Self {
        // The CRLF of the DATA command counts as the one before the mail: a dot may follow at once.
        Self { octets: Vec::new(), max_size, line_len: 0, at: At::LineStart, refused: None }
    }

    /// Takes octets off the front of `input` up to the end of the mail. Says how many, and whether that was the end.
    pub(crate) fn take(&mut self, input: &[u8]) -> (usize, bool) {
        for (i, &octet) in input.iter().enumerate() {
            if self.take_one(octet) {
                return (i + 1, true);
            }
        }
        (input.len(), false)
    }

    /// The mail, after its end.
    ///
    /// # Errors
    /// [`BadData`], by the limit that it broke first.
    pub(crate) fn finish(self) -> Result<Vec<u8>, BadData> {
        match self.refused {
            None => Ok(self.octets),
            Some(why) => Err(why),
        }
    }

    fn take_one(&mut self, octet: u8) -> bool {
        self.at = match (self.at, octet) {
            (At::LineStart, b'.') => At::Dot,
            (At::Dot, b'\r') => At::DotCr,
            (At::DotCr, b'\n') => return true,
            (At::DotCr, other) => {
                // The dot was stuffed after all, and the CR is the first octet of the line.
                self.keep(b'\r');
                self.keep(other);
                if other == b'\r' { At::Cr } else { At::Text }
            }
            (At::Cr, b'\n') => {
                self.keep(b'\n');
                At::LineStart
            }
            (_, b'\r') => {
                self.keep(b'\r');
                At::Cr
            }
            (_, other) => {
                self.keep(other);
                At::Text
            }
        };
        false
    }

    /// A refused mail is read to its end, since only there the client listens; but it is not kept.
    fn keep(&mut self, octet: u8) {
        if self.refused.is_some() {
            return;
        }
        self.line_len = if octet == b'\n' { 0 } else { self.line_len + 1 };
        if self.octets.len() == self.max_size {
            self.refuse(BadData::TooLarge { limit: self.max_size });
        } else if self.line_len > MAX_LINE_LEN {
            self.refuse(BadData::LineTooLong);
        } else {
            self.octets.push(octet);
        }
    }

    fn refuse(&mut self, why: BadData) {
        self.octets = Vec::new();
        self.refused = Some(why);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn received(input: &[u8]) -> Option<(Result<Vec<u8>, BadData>, usize)> {
        let mut data = Data::new(1 << 20);
        let (taken, ended) = data.take(input);
        ended.then(|| (data.finish(), taken))
    }

    fn mail(input: &[u8]) -> Vec<u8> {
        let (mail, taken) = received(input).expect("an end");
        assert_eq!(taken, input.len());
        mail.unwrap()
    }

    #[test]
    fn stuffed_dots_are_taken_out() {
        assert_eq!(mail(b"..\r\n..a\r\n.b\r\na.\r\n.\r\n"), b".\r\n.a\r\nb\r\na.\r\n");
    }

    #[test]
    fn empty_mail_ends_at_once() {
        assert_eq!(mail(b".\r\n"), b"");
    }

    /// The spellings of "end of data" that some mail server or other has fallen for.
    const NO_ENDS: [&[u8]; 14] = [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\r.\n",
        b"\n.\r",
        b"\r\n.\r\r\n",
        b"\r\n.\0\r\n",
        b"\r\n\0.\r\n",
        b"\r\n. \r\n",
        b"\r\r\n\n.\r\n",
        b"\x85.\x85",
    ];

    #[test]
    fn only_crlf_dot_crlf_ends_the_mail() {
        for no_end in NO_ENDS {
            let input = [b"text", no_end, b"MAIL FROM:<evil@example.org>\r\n"].concat();
            assert!(received(&input).is_none(), "{no_end:?}");
            let whole = mail(&[&input, &b"\r\n.\r\n"[..]].concat());
            assert!(whole.ends_with(b"MAIL FROM:<evil@example.org>\r\n\r\n"), "{no_end:?}");
        }
    }

    #[test]
    fn mail_above_the_limit_is_swallowed_and_refused() {
        let mut data = Data::new(10);
        assert_eq!(data.take(b"12345678\r\n.\r\n"), (13, true));
        assert_eq!(data.finish(), Ok(b"12345678\r\n".to_vec()));
        let mut data = Data::new(10);
        assert_eq!(data.take(b"123456789\r\n.\r\nRSET"), (14, true));
        assert_eq!(data.finish(), Err(BadData::TooLarge { limit: 10 }));
    }

    #[test]
    fn line_above_the_limit_is_refused() {
        let line = vec![b'x'; MAX_LINE_LEN - 1];
        let whole = [&line, &b"\r\n"[..], &line, b"\r\n.\r\n"].concat();
        assert_eq!(mail(&whole).len(), 2 * (MAX_LINE_LEN + 1));
        let whole = [&line, &b"xx\r\n.\r\n"[..]].concat();
        assert_eq!(received(&whole).unwrap().0, Err(BadData::LineTooLong));
    }

    proptest! {
        #[test]
        fn what_is_stuffed_comes_out_whole_however_it_is_cut(
            text in proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'\r'), Just(b'\n'), any::<u8>()], 0..200),
            cut in 1..20usize,
        ) {
            let text = [&text[..], b"\r\n"].concat();
            let mut stuffed = Vec::new();
            for (i, &octet) in text.iter().enumerate() {
                if octet == b'.' && (i == 0 || text[..i].ends_with(b"\r\n")) {
                    stuffed.push(b'.');
                }
                stuffed.push(octet);
            }
            stuffed.extend_from_slice(b".\r\n");
            let mut data = Data::new(1 << 20);
            let mut ended = false;
            for chunk in stuffed.chunks(cut) {
                prop_assert!(!ended);
                let (taken, end) = data.take(chunk);
                prop_assert_eq!(taken, chunk.len());
                ended = end;
            }
            prop_assert!(ended);
            prop_assert_eq!(data.finish().unwrap(), text);
        }
    }
}
