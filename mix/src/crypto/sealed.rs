//! Private keys at rest, sealed with a passphrase: Argon2id makes a key of it (RFC 9106), XChaCha20-Poly1305 seals with that.
//!
//! The container, integers with the most significant octet first:
//!
//! ```text
//! magic "MIXGSEAL" (8) | version (1) | memory in KiB (4) | passes (4) | lanes (4) | salt (16) | nonce (24) | ciphertext, tag (16)
//! ```
//!
//! All before the ciphertext is authenticated, and so is a purpose that is not written: a sealed identity key put in the
//! place of a sealed packet key does not open. Whoever holds the file can try passphrases; each try costs the memory and
//! the passes. Where the passphrase comes from, and the files, are others' business.
//!
//! What is no private key is sealed without a container, under a key that somebody has ([`seal_with`]).

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::CryptoRng;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// What every container begins with. No DER begins so.
const MAGIC: &[u8; 8] = b"MIXGSEAL";
/// The one version there is.
const VERSION: u8 = 1;
/// Octets of the salt (RFC 9106, 3.1).
const SALT_LEN: usize = 16;
/// Octets of the nonce: long enough to be drawn at random.
const NONCE_LEN: usize = 24;
/// Octets of the tag.
const TAG_LEN: usize = 16;
/// Octets of a key of XChaCha20-Poly1305.
pub const KEY_LEN: usize = 32;
/// Octets before the ciphertext.
const HEADER_LEN: usize = MAGIC.len() + 1 + 3 * 4 + SALT_LEN + NONCE_LEN;

/// The most memory that a container may ask for, in KiB: a file that somebody has changed shall not take the machine down.
const MAX_MEMORY: u32 = 256 * 1024;
/// The most passes that a container may ask for.
const MAX_PASSES: u32 = 16;
/// The most lanes that a container may ask for.
const MAX_LANES: u32 = 16;

/// A passphrase. Overwritten when dropped, never printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passphrase(Secret<Vec<u8>>);

impl Passphrase {
    /// Takes charge of a passphrase; its octets count as they are. `None` for an empty one, which would protect nothing.
    pub fn new(octets: Vec<u8>) -> Option<Self> {
        (!octets.is_empty()).then(|| Self(Secret::new(octets)))
    }
}

/// What a try of a passphrase costs (RFC 9106, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for Cost {
    /// What RFC 9106, 4 recommends where two gigabytes are too much: 64 MiB, three passes, four lanes.
    fn default() -> Self {
        Self { memory: 64 * 1024, passes: 3, lanes: 4 }
    }
}

/// Why a container does not open, or could not be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum SealError {
    /// No container at all.
    #[error("it is not sealed")]
    NotSealed,
    /// Too short to be one, or its costs are none.
    #[error("the sealed file is damaged")]
    Damaged,
    /// Made by a later version of this program.
    #[error("it is sealed in format {found}; this program knows format {VERSION}")]
    Version {
        /// What was found.
        found: u8,
    },
    /// Opening it would cost more than is ever asked for.
    #[error(
        "opening it would take {} MiB of memory and {} passes; somebody has changed it", .cost.memory / 1024, .cost.passes
    )]
    TooCostly {
        /// What it asks for.
        cost: Cost,
    },
    /// Another passphrase sealed it, or it was changed. Nobody can tell which.
    #[error("the passphrase is wrong, or the file is damaged")]
    Passphrase,
    /// This machine could not do it.
    #[error("there is not enough memory to seal or open it")]
    Memory,
}

/// Whether these octets are a container, of whatever version.
pub fn is_sealed(octets: &[u8]) -> bool {
    octets.starts_with(MAGIC)
}

/// Seals `content` for `purpose` at the default cost, with salt and nonce from `rng`.
///
/// # Errors
/// [`SealError::Memory`].
pub fn seal(
    content: &[u8],
    purpose: &str,
    passphrase: &Passphrase,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    seal_at(Cost::default(), content, purpose, passphrase, rng)
}

/// As [`seal`], at another cost.
///
/// # Errors
/// [`SealError::TooCostly`] and [`SealError::Damaged`] for costs that [`open`] would not take; [`SealError::Memory`].
pub fn seal_at(
    cost: Cost,
    content: &[u8],
    purpose: &str,
    passphrase: &Passphrase,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    let mut salt = [0; SALT_LEN];
    let mut nonce = [0; NONCE_LEN];
    rng.fill_bytes(&mut salt);
    rng.fill_bytes(&mut nonce);
    let cipher = cipher(cost, &salt, passphrase)?;
    let mut sealed = Vec::with_capacity(HEADER_LEN + content.len() + TAG_LEN);
    sealed.extend_from_slice(MAGIC);
    sealed.push(VERSION);
    for part in [cost.memory, cost.passes, cost.lanes] {
        sealed.extend_from_slice(&part.to_be_bytes());
    }
    sealed.extend_from_slice(&salt);
    sealed.extend_from_slice(&nonce);
    let aad = authenticated(&sealed, purpose);
    let ciphertext = cipher.encrypt(&XNonce::from(nonce), Payload { msg: content, aad: &aad });
    sealed.extend_from_slice(&ciphertext.map_err(|_| SealError::Memory)?);
    Ok(sealed)
}

/// Opens what [`seal`] made for the same purpose.
///
/// # Errors
/// [`SealError`].
pub fn open(sealed: &[u8], purpose: &str, passphrase: &Passphrase) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let rest = sealed.strip_prefix(MAGIC).ok_or(SealError::NotSealed)?;
    let (&version, rest) = rest.split_first().ok_or(SealError::Damaged)?;
    if version != VERSION {
        return Err(SealError::Version { found: version });
    }
    let (header, ciphertext) = sealed.split_at_checked(HEADER_LEN).ok_or(SealError::Damaged)?;
    let (memory, rest) = number(rest)?;
    let (passes, rest) = number(rest)?;
    let (lanes, rest) = number(rest)?;
    let (salt, rest) = rest.split_first_chunk::<SALT_LEN>().ok_or(SealError::Damaged)?;
    let nonce = rest.first_chunk::<NONCE_LEN>().ok_or(SealError::Damaged)?;
    let cipher = cipher(Cost { memory, passes, lanes }, salt, passphrase)?;
    let aad = authenticated(header, purpose);
    let opened = cipher.decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad: &aad });
    opened.map(Zeroizing::new).map_err(|_| SealError::Passphrase)
}

/// Seals `content` under a key that somebody has, with a nonce from `rng`: `nonce (24) | ciphertext, tag (16)`.
///
/// # Errors
/// [`SealError::Memory`].
pub fn seal_with(key: &[u8; KEY_LEN], content: &[u8], rng: &mut impl CryptoRng) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE_LEN];
    rng.fill_bytes(&mut nonce);
    let cipher = XChaCha20Poly1305::new(&(*key).into());
    let ciphertext = cipher.encrypt(&XNonce::from(nonce), content).map_err(|_| SealError::Memory)?;
    Ok([&nonce[..], &ciphertext].concat())
}

/// Opens what [`seal_with`] made under the same key. `None`: another key sealed it, or it was changed.
pub fn open_with(key: &[u8; KEY_LEN], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let cipher = XChaCha20Poly1305::new(&(*key).into());
    cipher.decrypt(&XNonce::from(*nonce), ciphertext).ok().map(Zeroizing::new)
}

fn number(octets: &[u8]) -> Result<(u32, &[u8]), SealError> {
    let (number, rest) = octets.split_first_chunk().ok_or(SealError::Damaged)?;
    Ok((u32::from_be_bytes(*number), rest))
}

fn authenticated(header: &[u8], purpose: &str) -> Vec<u8> {
    [header, purpose.as_bytes()].concat()
}

fn cipher(cost: Cost, salt: &[u8; SALT_LEN], passphrase: &Passphrase) -> Result<XChaCha20Poly1305, SealError> {
    if cost.memory > MAX_MEMORY || cost.passes > MAX_PASSES || cost.lanes > MAX_LANES {
        return Err(SealError::TooCostly { cost });
    }
    let Cost { memory, passes, lanes } = cost;
    let params = Params::new(memory, passes, lanes, Some(KEY_LEN)).map_err(|_| SealError::Damaged)?;
    let mut key = Zeroizing::new([0; KEY_LEN]);
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase.0.expose(), salt, &mut *key).map_err(|_| SealError::Memory)?;
    XChaCha20Poly1305::new_from_slice(&*key).map_err(|_| SealError::Memory)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::CounterRng;
    use crate::crypto::stream::StreamKey;

    /// As little as Argon2 takes: for tests alone.
    const LITTLE: Cost = Cost { memory: 8, passes: 1, lanes: 1 };

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.into()).unwrap()
    }

    fn sealed(cost: Cost) -> Vec<u8> {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        seal_at(cost, b"a private key", "packet key", &passphrase("open sesame"), &mut rng).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_with_its_passphrase_and_purpose_alone() {
        let sealed = sealed(LITTLE);
        assert!(is_sealed(&sealed));
        assert!(!sealed.windows(7).any(|part| part == b"private"));
        assert_eq!(open(&sealed, "packet key", &passphrase("open sesame")).unwrap().as_slice(), b"a private key");
        assert_eq!(open(&sealed, "packet key", &passphrase("open barley")), Err(SealError::Passphrase));
        assert_eq!(open(&sealed, "identity key", &passphrase("open sesame")), Err(SealError::Passphrase));
    }

    #[test]
    fn default_cost_is_what_the_rfc_recommends() {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        let made = seal(b"x", "packet key", &passphrase("open sesame"), &mut rng).unwrap();
        assert_eq!(made[9..21], [0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4]);
        assert_eq!(open(&made, "packet key", &passphrase("open sesame")).unwrap().as_slice(), b"x");
    }

    #[test]
    fn what_is_no_container_and_what_is_cut_short_is_named() {
        let (whole, word) = (sealed(LITTLE), passphrase("open sesame"));
        assert_eq!(open(b"\x30\x82", "packet key", &word), Err(SealError::NotSealed));
        for len in MAGIC.len()..HEADER_LEN {
            assert_eq!(open(&whole[..len], "packet key", &word), Err(SealError::Damaged), "{len}");
        }
        assert_eq!(open(&whole[..HEADER_LEN], "packet key", &word), Err(SealError::Passphrase));
        let mut later = whole;
        later[8] = 2;
        assert_eq!(open(&later, "packet key", &word), Err(SealError::Version { found: 2 }));
    }

    #[test]
    fn costs_that_would_exhaust_the_machine_are_refused_before_anything_is_spent() {
        for (place, cost) in [
            (9, Cost { memory: 0xff00_0008, ..LITTLE }),
            (13, Cost { passes: 0xff00_0001, ..LITTLE }),
            (17, Cost { lanes: 0xff00_0001, ..LITTLE }),
        ] {
            let mut hostile = sealed(LITTLE);
            hostile[place] = 0xff;
            assert_eq!(open(&hostile, "packet key", &passphrase("x")), Err(SealError::TooCostly { cost }));
        }
        let mut no_memory = sealed(LITTLE);
        no_memory[12] = 7;
        assert_eq!(open(&no_memory, "packet key", &passphrase("x")), Err(SealError::Damaged));
    }

    #[test]
    fn what_is_sealed_under_a_key_opens_with_that_key_alone_and_unchanged() {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        let (key, other) = ([1; KEY_LEN], [2; KEY_LEN]);
        let sealed = seal_with(&key, b"a private word", &mut rng).unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"private"));
        assert_eq!(open_with(&key, &sealed).unwrap().as_slice(), b"a private word");
        assert_eq!(open_with(&other, &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open_with(&key, &changed), None, "octet {at}");
            assert_eq!(open_with(&key, &sealed[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn empty_passphrase_is_none_and_none_is_printed() {
        assert_eq!(Passphrase::new(Vec::new()), None);
        assert!(!format!("{:?}", passphrase("open sesame")).contains("sesame"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn flipped_bit_is_refused(bit in 0..8 * (HEADER_LEN + 13 + TAG_LEN)) {
            let mut damaged = sealed(LITTLE);
            damaged[bit / 8] ^= 1 << (bit % 8);
            // Passes and lanes stay small enough for a test; the rest is refused by its size.
            prop_assume!(open_cost(&damaged) <= 64 * 16);
            prop_assert!(open(&damaged, "packet key", &passphrase("open sesame")).is_err());
        }
    }

    /// Memory times passes, for containers that would be opened.
    fn open_cost(sealed: &[u8]) -> u64 {
        let part = |at: usize| u64::from(u32::from_be_bytes(sealed[at..at + 4].try_into().unwrap()));
        if part(9) > MAX_MEMORY.into() || part(13) > MAX_PASSES.into() { 0 } else { part(9) * part(13) }
    }
}
