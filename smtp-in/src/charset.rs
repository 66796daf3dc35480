//! Text in any charset as UTF-8: as it was meant, or not at all.
//!
//! The tables are mail-parser's. What it does not read right is read here (UTF-7, UTF-16 without a mark) or refused
//! (what it has a name but no table for): a text that arrives garbled says something its author did not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use mail_parser::decoders::charsets::map::charset_decoder;

const ESC: u8 = 0x1b;
const SHIFT_OUT: u8 = 0x0e;

/// How a charset is read.
#[derive(Clone, Copy)]
enum Reading {
    Utf8,
    /// ASCII, or nothing was said.
    Undeclared,
    Utf7,
    /// Big-endian unless a mark says otherwise (RFC 2781 4.3).
    Utf16,
    /// ISO-2022-JP and its kin, which share their beginning.
    Japanese,
    Table(fn(&[u8]) -> String),
    /// Octets that look like ASCII and are not.
    Disguised,
    Unknown,
}

impl Reading {
    fn of(name: &str) -> Self {
        let name = name.trim().to_ascii_lowercase().replace('_', "-");
        let table = match name.as_str() {
            "" | "us-ascii" | "ascii" | "ansi-x3.4-1968" => return Self::Undeclared,
            "utf-8" | "utf8" | "unicode-1-1-utf-8" => return Self::Utf8,
            "utf-7" | "utf7" | "csutf7" | "unicode-1-1-utf-7" | "unicode-2-0-utf-7" => return Self::Utf7,
            "utf-16" | "utf16" | "csutf16" => return Self::Utf16,
            "iso-2022-jp" | "csiso2022jp" | "cp50220" | "cp50221" | "cp50222" => return Self::Japanese,
            japanese if japanese.starts_with("iso-2022-jp-") => return Self::Japanese,
            "hz" | "hz-gb-2312" | "iso-2022-kr" | "csiso2022kr" | "replacement" | "utf-7-imap" => {
                return Self::Disguised;
            }
            chinese if chinese.starts_with("iso-2022-cn") => return Self::Disguised,
            "cp932" | "windows-932" => "shift_jis",
            "cp949" | "ms949" | "uhc" | "euckr" => "euc-kr",
            "cp950" | "ms950" | "big5-tw" | "windows-950" => "big5",
            "gb18030-2000" | "gb18030-2022" => "gb18030",
            "euc-cn" | "euccn" | "eucgb2312-cn" => "gbk",
            "eucjp" | "ujis" => "euc-jp",
            "cp874" => "windows-874",
            other => other,
        };
        charset_decoder(table.as_bytes()).map_or(Self::Unknown, Self::Table)
    }
}

/// `octets` as text, or nothing when they are not text of the charset `name`. An empty name is none.
pub(crate) fn decode(name: &str, octets: &[u8]) -> Option<String> {
    if octets.is_empty() {
        return Some(String::new());
    }
    let text = match Reading::of(name) {
        Reading::Utf8 => String::from_utf8_lossy(octets).into_owned(),
        Reading::Undeclared => undeclared(octets)?,
        Reading::Utf7 => utf7(octets)?,
        Reading::Utf16 => match without_odd_line_end(octets) {
            [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes)?,
            [0xfe, 0xff, rest @ ..] | rest => utf16(rest, u16::from_be_bytes)?,
        },
        Reading::Japanese => japanese(octets)?,
        Reading::Table(decode) => decode(octets),
        Reading::Disguised => return None,
        Reading::Unknown => plain_ascii(octets)?,
    };
    is_readable(&text).then_some(text)
}

/// Whether mail-parser, which decodes the words of headers, reads the charset as this file does.
pub(crate) fn is_read_alike(name: &str) -> bool {
    match Reading::of(name) {
        Reading::Utf8 | Reading::Undeclared => true,
        Reading::Japanese | Reading::Table(_) => charset_decoder(name.as_bytes()).is_some(),
        Reading::Utf7 | Reading::Utf16 | Reading::Disguised | Reading::Unknown => false,
    }
}

/// A damaged character is shown as such; of a text with more damage than sense nothing can be known.
fn is_readable(text: &str) -> bool {
    let seen = text.chars().filter(|c| !c.is_whitespace() && !c.is_control());
    let (damaged, whole) = seen.fold((0_usize, 0_usize), |(damaged, whole), c| {
        if c == char::REPLACEMENT_CHARACTER { (damaged + 1, whole) } else { (damaged, whole + 1) }
    });
    damaged <= whole
}

/// What is UTF-8 where ASCII was promised can hardly be anything else; what is not is read as Windows has it, as most
/// mail programs do.
fn undeclared(octets: &[u8]) -> Option<String> {
    if switches_charset(octets) {
        return japanese(octets);
    }
    match std::str::from_utf8(octets) {
        Ok(text) => Some(text.to_owned()),
        Err(_) => charset_decoder(b"windows-1252").map(|decode| decode(octets)),
    }
}

/// Whether it has the sequences of ISO 2022, which change what the octets behind them mean. Those that colour a
/// terminal are not among them.
fn switches_charset(octets: &[u8]) -> bool {
    octets.contains(&SHIFT_OUT)
        || octets.windows(2).any(|pair| matches!(pair, [ESC, next] if b"$()*+-./NO".contains(next)))
}

/// What only the larger ones of the family have is not read, and must not be taken for something else.
fn japanese(octets: &[u8]) -> Option<String> {
    let decode = charset_decoder(b"iso-2022-jp")?;
    Some(decode(octets)).filter(|text| !text.contains(char::REPLACEMENT_CHARACTER))
}

/// Whatever the charset is: almost all begin with ASCII.
fn plain_ascii(octets: &[u8]) -> Option<String> {
    let plain = |&octet: &u8| matches!(octet, b' '..=b'~' | b'\t' | b'\n' | b'\r' | 0x0c);
    let text = octets.iter().all(plain).then_some(octets)?;
    std::str::from_utf8(text).ok().map(str::to_owned)
}

/// RFC 2152: ASCII, and runs of UTF-16 in base64 between `+` and whatever is not base64.
fn utf7(octets: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(octets.len());
    let mut rest = octets;
    while let Some((&octet, after)) = rest.split_first() {
        rest = after;
        match octet {
            b'+' => {
                let is_base64 = |octet: &u8| octet.is_ascii_alphanumeric() || b"+/".contains(octet);
                let len = rest.iter().position(|octet| !is_base64(octet)).unwrap_or(rest.len());
                let (run, after) = rest.split_at(len);
                let closed = after.strip_prefix(b"-");
                match (run, closed) {
                    ([], Some(_)) => text.push('+'),
                    ([], None) => return None,
                    _ => text.push_str(&utf16(&STANDARD_NO_PAD.decode(run).ok()?, u16::from_be_bytes)?),
                }
                rest = closed.unwrap_or(after);
            }
            ascii if ascii.is_ascii() => text.push(char::from(ascii)),
            _ => return None,
        }
    }
    Some(text)
}

/// A line end of one octet behind a text of two each was put there on the way.
fn without_odd_line_end(octets: &[u8]) -> &[u8] {
    if octets.len().is_multiple_of(2) { octets } else { octets.strip_suffix(b"\n").unwrap_or(octets) }
}

fn utf16(octets: &[u8], unit: fn([u8; 2]) -> u16) -> Option<String> {
    let (units, []) = octets.as_chunks::<2>() else { return None };
    char::decode_utf16(units.iter().copied().map(unit)).collect::<Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn utf_7_is_read_to_the_last_character() {
        let read = |text: &str| decode("UTF-7", text.as_bytes());
        assert_eq!(read("Hi +AOQ and +AOQ-b").as_deref(), Some("Hi \u{e4} and \u{e4}b"));
        assert_eq!(read("1 +- 1 +AD0-2").as_deref(), Some("1 + 1 =2"));
        assert_eq!(read("gr+APw-n\r\n+2D3eAA").as_deref(), Some("gr\u{fc}n\r\n\u{1f600}"));
        assert_eq!(read("+ZeVnLIqe.").as_deref(), Some("\u{65e5}\u{672c}\u{8a9e}."));
        assert_eq!(read("a--b").as_deref(), Some("a--b"));
    }

    #[test]
    fn broken_utf_7_is_not_read() {
        for broken in ["1 + 1", "+A", "+AOQA-", "+2D0-", "+AOR-", "+AOQK-", "caf\u{e9}"] {
            assert_eq!(decode("utf-7", broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn utf_16_is_big_endian_unless_marked() {
        assert_eq!(decode("utf-16", b"\0h\0i").as_deref(), Some("hi"));
        assert_eq!(decode("utf-16", b"\xff\xfeh\0i\0").as_deref(), Some("hi"));
        assert_eq!(decode("UTF-16", b"\xfe\xff\0h\0i\n").as_deref(), Some("hi"));
        assert_eq!(decode("utf-16le", b"h\0i\0").as_deref(), Some("hi"));
        assert_eq!(decode("utf-16", b"\0h\0"), None);
        assert_eq!(decode("utf-16", b"\xd8\0\0h"), None);
    }

    #[test]
    fn charsets_that_only_look_like_ascii_are_not_read() {
        let korean = b"\x1b$)C\x0e>H3g\x0f".as_slice();
        let chinese = b"\x1b$)A\x0eDc:C\x0f".as_slice();
        for (name, octets) in [
            ("iso-2022-kr", korean),
            ("csISO2022KR", korean),
            ("iso-2022-cn", chinese),
            ("ISO-2022-CN-EXT", chinese),
            ("hz-gb-2312", b"~{Dc:C~}"),
            ("hz", b"~{Dc:C~}"),
            ("replacement", b"text"),
            ("x-unknown", korean),
            ("x-unknown", b"h\0i\0"),
            ("", korean),
            ("us-ascii", chinese),
            ("x-unknown", "caf\u{e9}".as_bytes()),
        ] {
            assert_eq!(decode(name, octets), None, "{name}");
        }
        assert_eq!(decode("x-unknown", b"plain\r\n").as_deref(), Some("plain\r\n"));
    }

    #[test]
    fn family_of_iso_2022_jp_is_read_as_far_as_it_is_shared() {
        for name in ["iso-2022-jp", "ISO-2022-JP-1", "iso-2022-jp-2", "iso-2022-jp-3", "iso-2022-jp-ms", "cp50221", ""]
        {
            assert_eq!(decode(name, b"\x1b$BF|K\\\x1b(B").as_deref(), Some("\u{65e5}\u{672c}"), "{name}");
            // JIS X 0212, which the larger ones have.
            assert_eq!(decode(name, b"\x1b$(D0!\x1b(B"), None, "{name}");
        }
    }

    #[test]
    fn names_that_windows_has_for_a_charset_are_known() {
        assert_eq!(decode("cp932", b"\x82\xa0").as_deref(), Some("\u{3042}"));
        assert_eq!(decode("cp936", b"\xc4\xe3").as_deref(), Some("\u{4f60}"));
        assert_eq!(decode("cp949", b"\xb0\xa1").as_deref(), Some("\u{ac00}"));
        assert_eq!(decode("cp950", b"\xa7\x41").as_deref(), Some("\u{4f60}"));
    }

    #[test]
    fn text_with_more_damage_than_sense_is_not_read() {
        assert_eq!(decode("utf-8", b"a\xffb").as_deref(), Some("a\u{fffd}b"));
        assert_eq!(decode("utf-8", b"\xe4\xf6\xfc\n"), None);
        assert_eq!(decode("", b"").as_deref(), Some(""));
    }

    proptest! {
        #[test]
        fn utf_7_of_any_text_is_that_text(text in any::<String>()) {
            let run = STANDARD_NO_PAD.encode(text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>());
            let encoded = if run.is_empty() { String::new() } else { format!("+{run}-") };
            prop_assert_eq!(utf7(encoded.as_bytes()), Some(text));
        }
    }
}
