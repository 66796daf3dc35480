//! The header lines of a mail: what a stranger wrote becomes part of one line and never begins another (RFC 5322 2.2, 2047).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::MAX_LINE_LEN;

/// Lines of a header are folded where they would grow beyond this (RFC 5322 2.1.1).
pub(super) const FOLD_AT: usize = 78;
/// An encoded word has at most 75 characters (RFC 2047 2).
const MAX_WORD_LEN: usize = 75;
/// Octets per encoded word that we make: `=?utf-8?B?` + 52 digits + `?=` still fits a line behind `In-Reply-To: `.
const WORD_OCTETS: usize = 39;
const _: () = assert!(10 + WORD_OCTETS.div_ceil(3) * 4 + 2 <= MAX_WORD_LEN);

/// The name that a sender chose, unless E2E-spec 3.2.2 forbids it: a colon or brackets could pass for a tag or a mailbox.
pub(super) fn sender_name(name: &str) -> Option<String> {
    let words: Vec<String> = one_line(name).split_whitespace().map(str::to_owned).collect();
    let name = words.join(" ");
    if name.is_empty() || name.contains(['"', '[', ']', ':']) { None } else { Some(name) }
}

/// A header whose value is our own and short.
pub(super) fn field(name: &str, value: &str) -> String {
    format!("{name}: {value}\r\n")
}

/// Controls become spaces: no value of a header can begin a line.
pub(super) fn one_line(value: &str) -> String {
    let spaced: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    spaced.trim().to_owned()
}

/// A header of free text: as it is where it is ASCII (encoded words included), else in encoded words.
pub(super) fn unstructured(name: &str, value: &str) -> String {
    let plain = value.is_ascii() && value.split(' ').all(|token| !token.contains("=?") || is_encoded_word(token));
    let folded = if plain { fold(name, value) } else { None };
    folded.or_else(|| fold(name, &words(value))).expect("words of at most 75 characters fit a line")
}

/// In-Reply-To and References: message ids or nothing.
pub(super) fn message_ids(name: &str, value: Option<&str>) -> String {
    let ids = value.map(one_line).filter(|ids| !ids.is_empty() && ids.is_ascii());
    ids.and_then(|ids| fold(name, &ids)).unwrap_or_default()
}

/// The name of a mailbox (RFC 5322 phrase). ASCII is quoted, encoded words stand unquoted, since within quotes they
/// would be no more than strange text (RFC 2047 5).
pub(super) fn phrase(tag: &str, name: &str) -> String {
    let plain = |token: &str| token.is_ascii() && !token.contains("=?");
    if name.split(' ').all(plain) && plain(tag) {
        return quoted(&format!("{tag} {name}"));
    }
    let tag_part = match tag {
        "" => String::new(),
        tag if plain(tag) => quoted(tag) + " ",
        tag => words(tag) + " ",
    };
    if !name.split(' ').all(|token| plain(token) || is_encoded_word(token)) {
        return format!("{tag_part}{}", words(name));
    }
    let tokens = name.split(' ').filter(|token| !token.is_empty());
    let parts: Vec<String> = tokens.map(|token| if plain(token) { quoted(token) } else { token.to_owned() }).collect();
    format!("{tag_part}{}", parts.join(" "))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.trim().replace('\\', "\\\\").replace('"', "\\\""))
}

/// `=?charset?encoding?text?=`, well formed and without a hidden line end (RFC 2047 2). What only looks like one is
/// encoded once more, so that readers see it as it is.
fn is_encoded_word(token: &str) -> bool {
    let inner = token.strip_prefix("=?").and_then(|rest| rest.strip_suffix("?="));
    let mut parts = inner.unwrap_or_default().split('?');
    let (Some(charset), Some(encoding), Some(text), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_charset =
        !charset.is_empty() && charset.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.:+*".contains(&c));
    let hides_line_end = match encoding {
        "B" | "b" => STANDARD_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_or(true, |octets| octets.iter().any(|octet| b"\r\n\0".contains(octet))),
        "Q" | "q" => {
            let lower = text.to_ascii_lowercase();
            ["=0d", "=0a", "=00"].iter().any(|hidden| lower.contains(hidden))
        }
        _ => true,
    };
    token.len() <= MAX_WORD_LEN && text.bytes().all(|c| c.is_ascii_graphic()) && is_charset && !hides_line_end
}

/// The text in encoded words of UTF-8, a space between each; readers drop those spaces (RFC 2047 6.2).
pub(super) fn words(text: &str) -> String {
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

fn word(piece: &str) -> String {
    format!("=?utf-8?B?{}?=", STANDARD.encode(piece))
}

/// The header, broken before spaces so that unfolding gives the value back. `None` when a single word is longer than a
/// line may be.
pub(super) fn fold(name: &str, value: &str) -> Option<String> {
    let mut folded = String::new();
    let mut line = format!("{name}:");
    let mut blank = true;
    for token in value.split(' ') {
        if !token.is_empty() && !blank && line.len() + 1 + token.len() > FOLD_AT {
            folded.push_str(&line);
            folded.push_str("\r\n");
            line.clear();
        }
        line.push(' ');
        line.push_str(token);
        blank = blank && token.is_empty();
        if line.len() > MAX_LINE_LEN {
            return None;
        }
    }
    Some(folded + &line + "\r\n")
}
