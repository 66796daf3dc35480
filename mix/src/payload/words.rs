//! What a header says that a stranger wrote: encoded words are read here (RFC 2047), and nothing that is shown of them
//! breaks a line, turns the display, or passes for a tag.
//!
//! Encoded words that are handed on as they are say whatever a mail program makes of them, which nobody has looked at: brackets
//! and quotes that a name must not have, a charset that the words are not in, a line end. So whoever writes a mail reads them
//! first, and writes his own.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::headers::FORBIDDEN_IN_FROM;

/// Octets of text in one encoded word: `=?utf-8?B?` + 52 digits + `?=` still fits a line of 78 behind `In-Reply-To: `.
const WORD_OCTETS: usize = 39;
// RFC 2047 2.
const _: () = assert!(10 + WORD_OCTETS.div_ceil(3) * 4 + 2 <= 75);

/// The octets from 0x80 to 0x9F in windows-1252; the five that it leaves open are replaced by U+FFFD.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{fffd}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{fffd}', 'Ž', '\u{fffd}', '\u{fffd}',
    '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{fffd}', 'ž', 'Ÿ',
];

/// The value as people read it: encoded words decoded, in one line, without what only turns or hides other characters, and
/// without blanks at its ends. Words that say nothing in a charset known here stay as they were written.
pub fn shown(value: &str) -> String {
    let (mut text, mut blanks, mut behind_a_word) = (String::new(), String::new(), false);
    for (index, token) in in_a_line(value).split(' ').enumerate() {
        blanks.push_str(if index > 0 { " " } else { "" });
        if token.is_empty() {
            continue;
        }
        let word = decoded(token);
        // Blanks between two words are there for the words' sake (RFC 2047 6.2).
        if !(behind_a_word && word.is_some()) {
            text.push_str(&blanks);
        }
        blanks.clear();
        behind_a_word = word.is_some();
        text.push_str(word.as_deref().unwrap_or(token));
    }
    in_a_line(&text).trim().to_owned()
}

/// The name that the sender of a message chose, as people read it, unless E2E-spec 3.2.2 forbids it: quotes, brackets or a
/// colon could pass for a tag or a mailbox.
pub fn sender_name(from: &str) -> Option<String> {
    let name = shown(from).split_whitespace().collect::<Vec<_>>().join(" ");
    (!name.is_empty() && !name.contains(FORBIDDEN_IN_FROM)).then_some(name)
}

/// Whether a text can stand in a header as it is. What looks like an encoded word would be shown as something else.
pub fn is_plain(text: &str) -> bool {
    text.bytes().all(|octet| (0x20..=0x7e).contains(&octet)) && !text.contains("=?")
}

/// The text in encoded words of UTF-8, a space between each; readers drop those spaces (RFC 2047 6.2).
pub fn encoded(text: &str) -> String {
    let word = |piece: &str| format!("=?utf-8?B?{}?=", STANDARD.encode(piece));
    let mut words = Vec::new();
    let mut piece = String::new();
    for c in text.chars() {
        if piece.len() + c.len_utf8() > WORD_OCTETS {
            words.push(word(&piece));
            piece.clear();
        }
        piece.push(c);
    }
    if !piece.is_empty() {
        words.push(word(&piece));
    }
    words.join(" ")
}

/// What In-Reply-To and References may say: one message id or several, `<left@right>`, a space between two. Nothing in them
/// begins a comment or a quotation.
pub fn is_message_ids(value: &str) -> bool {
    let proper =
        |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_graphic() && !b"<>()\"\\".contains(&c));
    value.split(' ').all(|id| {
        let inner = id.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
        inner.and_then(|inner| inner.split_once('@')).is_some_and(|(left, right)| proper(left) && proper(right))
    })
}

/// Controls and line ends become spaces; what has no shape of its own is left out.
fn in_a_line(text: &str) -> String {
    let ends_a_line = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    text.chars().filter(|c| !is_shapeless(*c)).map(|c| if ends_a_line(c) { ' ' } else { c }).collect()
}

/// Format characters (Unicode's Cf) that are not seen, of which some turn the direction of others. The two joiners are not
/// among them: Persian and the scripts of India need them.
fn is_shapeless(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
    )
}

/// The text of an encoded word: `=?charset?encoding?text?=`, well formed, and in the charset that it names.
fn decoded(token: &str) -> Option<String> {
    let mut parts = token.strip_prefix("=?")?.strip_suffix("?=")?.split('?');
    let (charset, encoding, text) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let octets = match encoding {
        "B" | "b" => STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()?,
        "Q" | "q" => unquoted(text)?,
        _ => return None,
    };
    // A language may stand behind it (RFC 2231 5).
    let charset = charset.split_once('*').map_or(charset, |(charset, _)| charset);
    match charset.to_ascii_lowercase().as_str() {
        "utf-8" | "utf8" => String::from_utf8(octets).ok(),
        "us-ascii" | "ascii" => String::from_utf8(octets).ok().filter(|text| text.is_ascii()),
        "iso-8859-1" | "latin1" => Some(octets.into_iter().map(char::from).collect()),
        "iso-8859-15" | "latin9" => Some(octets.into_iter().map(latin_9).collect()),
        "windows-1252" | "cp1252" => Some(octets.into_iter().map(windows_1252).collect()),
        _ => None,
    }
}

/// The encoding Q (RFC 2047 4.2).
fn unquoted(text: &str) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        octets.push(match octet {
            b'_' => b' ',
            b'=' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            other if other.is_ascii_graphic() => other,
            _ => return None,
        });
    }
    Some(octets)
}

fn windows_1252(octet: u8) -> char {
    let above = octet.checked_sub(0x80).and_then(|index| WINDOWS_1252.get(usize::from(index)));
    above.copied().unwrap_or(char::from(octet))
}

/// ISO 8859-15: the first Latin alphabet, but for eight characters.
fn latin_9(octet: u8) -> char {
    match octet {
        0xa4 => '€',
        0xa6 => 'Š',
        0xa8 => 'š',
        0xb4 => 'Ž',
        0xb8 => 'ž',
        0xbc => 'Œ',
        0xbd => 'œ',
        0xbe => 'Ÿ',
        other => char::from(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_read_in_the_charsets_that_mail_programs_write() {
        for (written, read) in [
            ("Re: =?iso-8859-1?Q?Gr=FC=DFe?= =?utf-8?B?w7w=?=  x", "Re: Grüßeü  x"),
            ("=?UTF-8*de?q?a_b=5F?=", "a b_"),
            ("=?us-ascii?Q?plain?=", "plain"),
            ("=?ISO-8859-15?Q?=A4=A6=A8=B4=B8=BC=BD=BE=E9?=", "€ŠšŽžŒœŸé"),
            ("=?windows-1252?Q?=80=93=9F=81=E9?=", "€“Ÿ\u{fffd}é"),
            ("=?utf-8?B?w7w?=", "ü"),
            ("=?utf-8?Q??=", ""),
            ("  a  b ", "a  b"),
        ] {
            assert_eq!(shown(written), read, "{written}");
        }
    }

    #[test]
    fn words_that_are_not_what_they_say_stay_as_they_were_written() {
        for written in [
            "=?utf-8?Q?=FF=FE?=",
            "=?us-ascii?Q?=FC?=",
            "=?utf-7?Q?+AA0ACg-Bcc:x?=",
            "=?koi8-r?B?8NLJ18XU?=",
            "=?utf-8?X?a?=",
            "=?utf-8?Q?a?b?=",
            "=?utf-8?Q?a=4?=",
            "=?utf-8?Q?=+1?=",
            "=?utf-8?Q?ü?=",
            "=?utf-8?B?!?=",
            "=?",
            "=?utf-8?=",
            "a=?utf-8?Q?b?=",
        ] {
            assert_eq!(shown(written), written);
        }
    }

    #[test]
    fn nothing_that_is_shown_breaks_a_line_or_turns_the_display() {
        for (written, read) in [
            ("=?utf-8?Q?a=0D=0ABcc:x?=", "a  Bcc:x"),
            ("=?utf-8?B?YQ0KYg==?=", "a  b"),
            ("=?iso-8859-1?Q?a=1B[2J=08=85b?=", "a [2J  b"),
            ("=?utf-8?Q?Bob_=E2=80=AEmoc.elpmaxe?=", "Bob moc.elpmaxe"),
            ("a\u{2028}b\u{200f}\u{feff}\u{e0041}", "a b"),
            ("نامه\u{200c}ها", "نامه\u{200c}ها"),
        ] {
            assert_eq!(shown(written), read, "{written:?}");
        }
    }

    #[test]
    fn name_is_looked_at_as_it_is_read() {
        for hidden in [
            "=?utf-8?Q?=5BFriend=5D?=",
            "=?utf-8?Q?=22_=3Cceo=40bank.example=3E=3A?=",
            "=?utf-8?B?Wzpd?=",
            "a =?iso-8859-1?Q?=3A?=",
            "=?utf-8?Q?=E2=80=8B?=",
            "[Friend]",
            " ",
        ] {
            assert_eq!(sender_name(hidden), None, "{hidden}");
        }
        assert_eq!(sender_name(" Dr.  =?utf-8?Q?J=C3=B6rg?=").as_deref(), Some("Dr. Jörg"));
    }

    #[test]
    fn message_ids_are_nothing_else() {
        for ids in ["<a@b>", "<a@b> <c.d+e@[1.2.3.4]>"] {
            assert!(is_message_ids(ids), "{ids}");
        }
        for other in
            ["", "not an id (", "<a@b>  <c@d>", "<a>", "<@b>", "<a@>", "<a@b>,", "<a@b(>", "<\"a\"@b>", "<é@b>"]
        {
            assert!(!is_message_ids(other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn words_that_are_written_here_are_read_here(text in any::<String>()) {
            let text = shown(&text);
            let words = encoded(&text);
            prop_assert!(words.is_ascii() && words.split(' ').all(|word| word.len() <= 75));
            prop_assert_eq!(shown(&words), text);
        }

        #[test]
        fn whatever_is_written_is_shown_in_one_line(value in "(=\\?(utf-8|iso-8859-1|x)\\?[BQ]\\?)?[ -~]{0,40}(\\?=)?|.{0,40}") {
            let text = shown(&value);
            prop_assert!(!text.chars().any(|c| c.is_control() || is_shapeless(c)));
            prop_assert!(sender_name(&value).is_none_or(|name| !name.contains(FORBIDDEN_IN_FROM)));
        }
    }
}
