//! The header lines of a mail: what a stranger wrote becomes part of one line and never begins another (RFC 5322 2.2, 2047).
//! What it says is `payload::words`'.

use super::MAX_LINE_LEN;
use crate::payload::words::{encoded, is_message_ids, is_plain};

/// Lines of a header are folded where they would grow beyond this (RFC 5322 2.1.1).
pub(super) const FOLD_AT: usize = 78;

/// A header whose value is our own and short.
pub(super) fn field(name: &str, value: &str) -> String {
    format!("{name}: {value}\r\n")
}

/// A header of free text in one line: as it is where it can stand so, else in encoded words.
pub(super) fn unstructured(name: &str, value: &str) -> String {
    let folded = if is_plain(value) { fold(name, value) } else { None };
    folded.or_else(|| fold(name, &encoded(value))).expect("words of at most 75 characters fit a line")
}

/// In-Reply-To and References: message ids or nothing.
pub(super) fn message_ids(name: &str, value: Option<&str>) -> String {
    let ids = value.filter(|ids| is_message_ids(ids));
    ids.and_then(|ids| fold(name, ids)).unwrap_or_default()
}

/// The name of a mailbox (RFC 5322 phrase): quoted, or in encoded words, which within quotes would be no more than strange
/// text (RFC 2047 5). The tag stays readable to those who know no encoded words.
pub(super) fn phrase(tag: &str, name: &str) -> String {
    match (is_plain(tag), is_plain(name)) {
        (true, true) => quoted(&format!("{tag} {name}")),
        (true, false) if !tag.is_empty() => format!("{} {}", quoted(tag), encoded(name)),
        _ => encoded(format!("{tag} {name}").trim()),
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.trim().replace('\\', "\\\\").replace('"', "\\\""))
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
