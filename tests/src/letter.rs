//! Reads mails, with Python's `email`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

/// Where the text of a delivered mail ends: what follows is a reply block.
const REPLY_BLOCK: &str = "-----BEGIN TYPE III REPLY BLOCK-----";

/// A mail as its reader sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Letter {
    /// The recipient's address.
    pub to: String,
    /// The whole From, decoded.
    pub from: String,
    /// The subject, decoded.
    pub subject: String,
    /// What the headers say of the body: type and charset.
    pub content_type: (String, Option<String>),
    /// The text, decoded, lines ending with LF.
    pub text: String,
    /// What is attached.
    pub files: Vec<Attached>,
}

/// A file of a mail.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Attached {
    /// What it is called.
    pub name: String,
    /// What its headers say that it is: type and charset.
    pub content_type: (String, Option<String>),
    /// Its octets, in base64.
    pub base64: String,
    /// The names of its headers.
    pub headers: Vec<String>,
}

impl Letter {
    /// The text that somebody wrote, without the reply block behind it.
    pub fn body(&self) -> &str {
        let text = self.text.split(REPLY_BLOCK).next().unwrap_or_default();
        if self.has_reply_block() { text.strip_suffix('\n').unwrap_or(text) } else { text }
    }

    /// Whether it can be answered.
    pub fn has_reply_block(&self) -> bool {
        self.text.contains(REPLY_BLOCK)
    }
}

/// Reads a list of files, or one mail; prints a list.
const READER: &str = r#"
import base64, email, email.policy, json, sys

def attached(part):
    kind = (part.get_content_type(), part.get_content_charset())
    octets = base64.b64encode(part.get_payload(decode=True) or b"").decode()
    return dict(name=part.get_filename() or "", content_type=kind, base64=octets, headers=part.keys())

def letter(octets):
    mail = email.message_from_bytes(octets, policy=email.policy.default)
    body = mail.get_body(("plain", "html"))
    text = body.get_content() if body is not None else ""
    to = mail["to"].addresses[0].addr_spec if mail["to"] and mail["to"].addresses else ""
    kind = (mail.get_content_type(), mail.get_content_charset())
    return dict(to=to, **{"from": str(mail["from"])}, subject=str(mail["subject"]), content_type=kind,
                text=text.replace("\r\n", "\n"), files=[attached(part) for part in mail.iter_attachments()])

names = json.load(sys.stdin)
json.dump([letter(open(name, "rb").read()) for name in names], sys.stdout)
"#;

/// Reads the mails in these files.
///
/// # Panics
/// When Python is not there or cannot read one of them.
pub fn letters(files: &[PathBuf]) -> Vec<Letter> {
    if files.is_empty() {
        return Vec::new();
    }
    let mut python = Command::new("python3")
        .args(["-c", READER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed: .ci/run sees to it");
    python.stdin.take().unwrap().write_all(&serde_json::to_vec(files).unwrap()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "reading mails with Python: {}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Reads one mail.
///
/// # Panics
/// As [`letters`].
pub fn letter(octets: &[u8]) -> Letter {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), octets).unwrap();
    letters(&[file.path().to_owned()]).pop().unwrap()
}
