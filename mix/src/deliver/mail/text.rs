//! A text as the body of a mail, or a part of one (RFC 2045 6).

use super::MAX_LINE_LEN;

/// Lines of quoted-printable have at most 76 characters, the `=` at a soft line break included (RFC 2045 6.7).
pub(super) const QUOTED_PRINTABLE_LINE_LEN: usize = 76;

/// The headers that say how the text is written, and the text.
pub(super) fn write_text(mail: &mut String, text: &str) {
    let (encoding, body) = transfer_encode(text);
    mail.push_str("Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: ");
    mail.push_str(encoding);
    mail.push_str("\r\n\r\n");
    mail.push_str(&body);
}

/// The same for armour, whose lines stay as they are.
pub(super) fn write_armour(mail: &mut String, armour: &str) {
    mail.push_str("Content-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n\r\n");
    mail.extend(as_it_is(armour));
}

/// Whether SMTP takes a text as it is.
pub(super) fn is_plain(text: &str) -> bool {
    // A CR alone is the end of a line for some servers, behind which a command may stand.
    text.is_ascii() && text.lines().all(|line| line.len() <= MAX_LINE_LEN && !line.contains(['\r', '\0']))
}

fn as_it_is(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| [line, "\r\n"])
}

/// As it is where SMTP allows, else as quoted-printable. A text always ends its last line.
fn transfer_encode(text: &str) -> (&'static str, String) {
    if is_plain(text) {
        return ("7bit", as_it_is(text).collect());
    }
    let mut encoded = String::with_capacity(text.len() * 3 / 2);
    for line in text.lines() {
        quoted_printable(line, &mut encoded);
        encoded.push_str("\r\n");
    }
    ("quoted-printable", encoded)
}

/// One line of text as lines of at most 76 characters (RFC 2045 6.7).
fn quoted_printable(line: &str, encoded: &mut String) {
    let mut width = 0;
    let last = line.len().saturating_sub(1);
    for (index, octet) in line.bytes().enumerate() {
        // A blank at the end of a line may get lost on its way.
        let literal = match octet {
            b' ' | b'\t' => index != last,
            b'=' => false,
            other => other.is_ascii_graphic(),
        };
        let piece = if literal { char::from(octet).to_string() } else { format!("={octet:02X}") };
        if width + piece.len() > QUOTED_PRINTABLE_LINE_LEN - 1 {
            encoded.push_str("=\r\n");
            width = 0;
        }
        width += piece.len();
        encoded.push_str(&piece);
    }
}
