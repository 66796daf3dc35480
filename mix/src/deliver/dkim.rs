//! Signs the mail of an exit for the domain that it comes from (RFC 6376): by RSA with SHA-256, relaxed in headers and body.
//!
//! RSA alone: receivers that know Ed25519 (RFC 8463) take RSA too, and most know nothing else. There is no time in a signature:
//! the Date of the mail says as much, and a mail may wait for days. To keep the keys apart, the key is one of its own, and
//! not the identity key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::CryptoRng;
use serde::{Deserialize, Serialize};

use crate::crypto::mac::sha256;
use crate::crypto::pk::{InvalidKey, PrivateKey};
use crate::packet::HostName;
use crate::secret::Secret;

/// What is signed, where it is there. From is named twice, so that nobody adds another (RFC 6376 8.15).
const SIGNED: [&str; 14] = [
    "From",
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "X-Anonymous",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
];
/// Octets of a file with a key, at most: ten keys of 4096 bits.
const KEY_FILE_MAX: u64 = 32 * 1024;
/// Bits of a key that is made here: receivers need not know longer ones (RFC 8301 3.2), and the record of a longer one is too
/// long for the forms of some who sell names.
const MADE_BITS: u32 = 2048;
/// Characters of a key in a line of a PEM file (RFC 7468 2).
const PEM_LINE_LEN: usize = 64;
/// Receivers take no shorter key for one (RFC 8301 3.2).
const LEAST_BITS: u32 = 1024;
/// Characters of a signature in a line.
const LINE_LEN: usize = 72;

/// Section `[node.smtp.dkim]`. Without a domain nothing is signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DkimConfig {
    /// Whose mail it is: the domain of the return address, or one above it.
    pub domain: Option<String>,
    /// Which of the keys of that domain: the record is at `SELECTOR._domainkey.DOMAIN`.
    pub selector: Option<String>,
    /// The private key, in PEM.
    pub key_file: Option<PathBuf>,
}

/// Why no mail can be signed so. Blames the settings.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDkim {
    /// Some of the three are missing.
    #[error("domain, selector and key_file belong together: set all, or none")]
    Part,
    /// No record can be there.
    #[error("{key}: not a name of the DNS")]
    Name {
        /// The setting.
        key: &'static str,
    },
    /// There is nothing to make a key for.
    #[error("no key is set: set domain, selector and key_file")]
    NoKey,
    /// The key.
    #[error("key_file: {}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BadKeyFile,
    },
}

/// What is wrong with the file of a key.
#[derive(Debug, thiserror::Error)]
pub enum BadKeyFile {
    /// Nobody has made it yet.
    #[error("there is no such file; mixgate exit dkim-key makes one")]
    Missing,
    /// It can't be read.
    #[error("reading it")]
    Read(#[source] io::Error),
    /// A new one can't be put there.
    #[error("making it, in a folder that must be there")]
    Make(#[source] io::Error),
    /// No key is so long.
    #[error("longer than {KEY_FILE_MAX} octets")]
    TooLong,
    /// It holds something else.
    #[error(
        "there is no private RSA key in PEM in it, as mixgate exit dkim-key or openssl genrsa makes it, without a passphrase"
    )]
    NoKey,
    /// It is no RSA key that can be used.
    #[error("the key in it cannot be used: an RSA key of {LEAST_BITS} to 4096 bits is wanted")]
    Key(#[source] InvalidKey),
}

/// Signs for one domain.
#[derive(Clone)]
pub struct Signer {
    domain: String,
    selector: String,
    key: Arc<PrivateKey>,
}

impl Signer {
    /// The one that the settings name, if they name one. Reads the key.
    ///
    /// # Errors
    /// [`InvalidDkim`].
    pub fn new(config: &DkimConfig) -> Result<Option<Self>, InvalidDkim> {
        let Some((domain, selector, path)) = names(config)? else { return Ok(None) };
        let key = read_key(path).map_err(|source| InvalidDkim::KeyFile { path: path.to_owned(), source })?;
        Ok(Some(Self { domain, selector, key: Arc::new(key) }))
    }

    /// As [`Signer::new`], with a new key where the settings name a file that is not there; says whether it was made. A file
    /// that is there, whatever is in it, is never written to.
    ///
    /// # Errors
    /// [`InvalidDkim`].
    pub fn make(config: &DkimConfig, rng: &mut impl CryptoRng) -> Result<(Self, bool), InvalidDkim> {
        let (_, _, path) = names(config)?.ok_or(InvalidDkim::NoKey)?;
        let made = make_key(path, rng).map_err(|source| InvalidDkim::KeyFile { path: path.to_owned(), source })?;
        Ok((Self::new(config)?.ok_or(InvalidDkim::NoKey)?, made))
    }

    /// The mail with its signature above it. It has CRLF at the end of each line, as `mail::MailWriter` writes it. Where the
    /// machine miscalculates it stays unsigned, which is better than lost.
    pub fn sign(&self, mail: Vec<u8>, rng: &mut impl CryptoRng) -> Vec<u8> {
        let (head, body) = split(&mail);
        let fields = fields(head);
        let is_there = |name: &&str| fields.iter().any(|field| is_named(field, name));
        let signed: Vec<&str> = SIGNED.into_iter().filter(is_there).collect();
        let unsigned = format!(
            "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d={}; s={};\r\n h={};\r\n bh={};\r\n b=",
            self.domain,
            self.selector,
            signed.join(":"),
            BASE64.encode(sha256(&relaxed_body(body)))
        );
        let mut data = Vec::new();
        for (at, name) in signed.iter().enumerate() {
            // Of several of a name the last comes first (RFC 6376 5.4.2); beyond those that are there, none is signed.
            let before = signed.iter().take(at).filter(|other| *other == name).count();
            if let Some(field) = fields.iter().rev().filter(|field| is_named(field, name)).nth(before) {
                data.extend(relaxed_field(field));
                data.extend(b"\r\n");
            }
        }
        data.extend(relaxed_field(unsigned.as_bytes()));
        let Ok(signature) = self.key.sign_certificate(&data, rng) else { return mail };
        let signature = BASE64.encode(signature);
        let lines: Vec<_> = signature.as_bytes().chunks(LINE_LEN).map(String::from_utf8_lossy).collect();
        [unsigned.as_bytes(), lines.join("\r\n ").as_bytes(), b"\r\n", &mail].concat()
    }

    /// Where the DNS must have the public key, and what it must say there: name and text of a TXT record.
    pub fn record(&self) -> (String, String) {
        let key = BASE64.encode(self.key.public_key().to_spki_der());
        (format!("{}._domainkey.{}", self.selector, self.domain), format!("v=DKIM1; k=rsa; p={key}"))
    }
}

/// Domain, selector and file, where they are set.
fn names(config: &DkimConfig) -> Result<Option<(String, String, &Path)>, InvalidDkim> {
    let (domain, selector, path) = match (&config.domain, &config.selector, &config.key_file) {
        (None, None, None) => return Ok(None),
        (Some(domain), Some(selector), Some(path)) => (domain, selector, path),
        _ => return Err(InvalidDkim::Part),
    };
    let name =
        |key, text: &String| HostName::parse(text).map(|name| name.to_string()).map_err(|_| InvalidDkim::Name { key });
    Ok(Some((name("domain", domain)?, name("selector", selector)?, path)))
}

/// Makes a key where there is no file yet; says whether it did.
fn make_key(path: &Path, rng: &mut impl CryptoRng) -> Result<bool, BadKeyFile> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(e) => return Err(BadKeyFile::Make(e)),
    };
    let key = PrivateKey::generate(MADE_BITS, rng).map_err(BadKeyFile::Key);
    let written = key.and_then(|key| {
        let pem = pem(&key);
        file.write_all(pem.expose().as_bytes()).and_then(|()| file.sync_all()).map_err(BadKeyFile::Make)
    });
    if let Err(why) = written {
        // Half a key would be in the way of the next try.
        let _ = fs::remove_file(path);
        return Err(why);
    }
    Ok(true)
}

/// The key in PKCS#8 as a PEM file has it.
fn pem(key: &PrivateKey) -> Secret<String> {
    let der = key.to_pkcs8_der();
    // It must not grow, and leave a copy behind.
    let mut base64 = Secret::new(String::with_capacity(der.len() * 2));
    BASE64.encode_string(&der[..], base64.expose_mut());
    let mut pem = Secret::new(String::with_capacity(der.len() * 2 + 128));
    let text = pem.expose_mut();
    text.push_str("-----BEGIN PRIVATE KEY-----\n");
    for (at, character) in base64.expose().chars().enumerate() {
        if at > 0 && at.is_multiple_of(PEM_LINE_LEN) {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str("\n-----END PRIVATE KEY-----\n");
    pem
}

fn read_key(path: &Path) -> Result<PrivateKey, BadKeyFile> {
    let mut pem = Secret::new(Vec::with_capacity(usize::try_from(KEY_FILE_MAX).unwrap_or_default() + 1));
    let file = File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => BadKeyFile::Missing,
        _ => BadKeyFile::Read(e),
    })?;
    file.take(KEY_FILE_MAX + 1).read_to_end(pem.expose_mut()).map_err(BadKeyFile::Read)?;
    if pem.expose().len() as u64 > KEY_FILE_MAX {
        return Err(BadKeyFile::TooLong);
    }
    let text = std::str::from_utf8(pem.expose()).map_err(|_| BadKeyFile::NoKey)?;
    let der = ["PRIVATE KEY", "RSA PRIVATE KEY"].into_iter().find_map(|label| {
        let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
        let (inside, _) = rest.split_once(&format!("-----END {label}-----"))?;
        let mut base64 = Secret::new(String::with_capacity(inside.len()));
        base64.expose_mut().extend(inside.split_whitespace());
        BASE64.decode(base64.expose()).ok().map(Secret::new)
    });
    PrivateKey::from_der(der.ok_or(BadKeyFile::NoKey)?.expose()).map_err(BadKeyFile::Key)
}

/// Headers and body.
fn split(mail: &[u8]) -> (&[u8], &[u8]) {
    let end = mail.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = mail.split_at(end.map_or(mail.len(), |end| end + 2));
    (head, body.strip_prefix(b"\r\n").unwrap_or(body))
}

/// The headers, each with the lines that it goes on in, without its last end of line.
fn fields(head: &[u8]) -> Vec<Vec<u8>> {
    let mut fields: Vec<Vec<u8>> = Vec::new();
    for line in lines(head) {
        match fields.last_mut() {
            Some(field) if line.starts_with(b" ") || line.starts_with(b"\t") => {
                field.extend(b"\r\n");
                field.extend(line);
            }
            _ => fields.push(line.to_vec()),
        }
    }
    fields
}

/// Lines without their ends, and without the nothing behind the last end.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|two| two == b"\r\n");
        let (line, after) = rest.split_at(end.unwrap_or(rest.len()));
        lines.push(line);
        rest = after.strip_prefix(b"\r\n").unwrap_or(after);
    }
    lines
}

fn is_named(field: &[u8], name: &str) -> bool {
    let end = field.iter().position(|octet| *octet == b':').unwrap_or(field.len());
    field.split_at(end).0.trim_ascii_end().eq_ignore_ascii_case(name.as_bytes())
}

/// A header in its relaxed form, without an end of line (RFC 6376 3.4.2).
fn relaxed_field(field: &[u8]) -> Vec<u8> {
    let end = field.iter().position(|octet| *octet == b':').unwrap_or(field.len());
    let (name, value) = field.split_at(end);
    let value: Vec<u8> = value.iter().skip(1).copied().filter(|octet| !b"\r\n".contains(octet)).collect();
    let mut relaxed = name.trim_ascii_end().to_ascii_lowercase();
    relaxed.push(b':');
    relaxed.extend(one_blank(&value).trim_ascii());
    relaxed
}

/// The body in its relaxed form (RFC 6376 3.4.4).
fn relaxed_body(body: &[u8]) -> Vec<u8> {
    let mut relaxed = Vec::new();
    let mut empty = 0;
    for line in lines(body) {
        let line = one_blank(line);
        let line = line.strip_suffix(b" ").unwrap_or(&line);
        if line.is_empty() {
            empty += 1;
            continue;
        }
        // Empty lines at the end do not count.
        relaxed.extend(b"\r\n".repeat(std::mem::take(&mut empty)));
        relaxed.extend(line);
        relaxed.extend(b"\r\n");
    }
    relaxed
}

/// Each run of blanks and tabs as one blank.
fn one_blank(text: &[u8]) -> Vec<u8> {
    let mut one: Vec<u8> = Vec::with_capacity(text.len());
    for octet in text {
        match octet {
            b' ' | b'\t' if one.last() == Some(&b' ') => {}
            b' ' | b'\t' => one.push(b' '),
            other => one.push(*other),
        }
    }
    one
}

#[cfg(test)]
mod tests;
