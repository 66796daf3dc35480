//! SHA-1, the only hash of the Type III formats (minion-spec 3.1.1).

use std::fmt;

use sha1::{Digest as _, Sha1};

/// Octets in a digest (minion-spec 3.1.1).
pub const DIGEST_LEN: usize = 20;

/// A SHA-1 digest: 20 octets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; DIGEST_LEN]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Lower-case hexadecimal, 40 characters.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// Names a mix for ever: the SHA-1 of the PKCS#1 form of its public identity key (minion-spec 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; DIGEST_LEN]);

impl KeyId {
    /// Reads a fingerprint: 40 hexadecimal digits of either case.
    pub fn from_fingerprint(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16)?.try_into().ok()).collect::<Option<_>>()?;
        let octets: Vec<u8> =
            digits.chunks(2).map(|pair| pair.iter().fold(0, |octet, digit| octet << 4 | digit)).collect();
        (digits.len() == 2 * DIGEST_LEN).then(|| octets.try_into().ok().map(Self)).flatten()
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The fingerprint: 40 hexadecimal digits, upper case as in directories and in the reference, which compares texts.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02X}"))
    }
}

/// The SHA-1 of the concatenation of `parts`.
pub fn sha1(parts: &[&[u8]]) -> Digest {
    let mut hasher = Sha1::new();
    for part in parts {
        hasher.update(part);
    }
    Digest(hasher.finalize().into())
}

/// The SHA-1 of octets that several ends may follow. They are hashed once.
#[derive(Clone)]
pub struct Prefix(Sha1);

impl Prefix {
    /// Hashes what all have in common.
    pub fn new(octets: &[u8]) -> Self {
        Self(Sha1::new_with_prefix(octets))
    }

    /// The SHA-1 of the prefix and `end`.
    pub fn followed_by(&self, end: &[u8]) -> Digest {
        Digest(self.0.clone().chain_update(end).finalize().into())
    }
}
