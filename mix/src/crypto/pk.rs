//! RSA with OAEP padding and the Type III label (minion-spec 3.1.4).
//!
//! Two backends behind one face. aws-lc-rs does the private operation on packets, which decides how many packets a
//! mix can carry. The `rsa` crate does all else: it has keys of any size, it takes its randomness from outside, and
//! it alone has the raw operation that the signatures need. Those are not PKCS#1 signatures: a digest is OAEP-padded,
//! with the same label as for encryption, and put through the private operation.

use std::fmt;

use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use rand::CryptoRng;
use rand::rngs::SysRng;
use rsa::BoxedUint;
use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey, EncodeRsaPrivateKey, EncodeRsaPublicKey};
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rsa::traits::PublicKeyParts;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use super::hash::{DIGEST_LEN, Digest, KeyId, sha1};

/// The OAEP label of all Type III encryption and signatures (minion-spec 3.1.4): a sentence of Thomas Paine's.
pub const OAEP_LABEL: &[u8] = b"He who would make his own liberty secure, must guard even his enemy from oppression.";

/// Octets that OAEP takes of each RSA block: two digests, a zero octet and the separator.
pub const OAEP_OVERHEAD: usize = 2 * DIGEST_LEN + 2;

/// Octets of a packet key's modulus (minion-spec 3.2.1: RSA of 2048 bits).
pub const PACKET_KEY_LEN: usize = 256;

/// Smallest and largest modulus taken from strangers, in bits. Below, factoring is cheap; above, checking one
/// signature would keep a core busy for longer than it takes to ask for it.
const MODULUS_BITS: std::ops::RangeInclusive<u32> = 1024..=4096;

/// Why an RSA operation or key was refused. All but [`InvalidKey::Generation`] blame the bytes that came in.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidKey {
    /// Not the DER form of a PKCS#1 or PKCS#8 RSA key.
    #[error("not an RSA key in DER form (PKCS#1 or PKCS#8)")]
    Encoding,
    /// The modulus is too small to be safe or too large to be served.
    #[error("RSA modulus of {bits} bits; between 1024 and 4096 are accepted")]
    ModulusSize {
        /// What was found.
        bits: u32,
    },
    /// Packet keys have one size, because subheaders have (minion-spec 3.2.1).
    #[error("packet key of {bits} bits; it must have 2048")]
    PacketKeySize {
        /// What was found.
        bits: u32,
    },
    /// The local random generator or backend failed to make a key.
    #[error("an RSA key could not be generated")]
    Generation,
}

/// What went wrong in encrypting, decrypting, signing or checking. One word for all of decryption: telling strangers
/// which step failed is how padding oracles begin.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum RsaError {
    /// The ciphertext or signature does not open under this key.
    #[error("does not open under this RSA key")]
    BadPadding,
    /// The plaintext does not fit the modulus.
    #[error("{len} octets do not fit an RSA block of {capacity}")]
    TooLong {
        /// Octets given.
        len: usize,
        /// Octets that fit.
        capacity: usize,
    },
    /// The private operation did not verify (a fault of the machine, not of the peer).
    #[error("the RSA private operation failed its own check")]
    Fault,
}

/// A public RSA key of 1024 to 4096 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(rsa::PublicKey);

impl PublicKey {
    /// Reads the PKCS#1 DER form, the one that descriptors carry.
    ///
    /// # Errors
    /// [`InvalidKey::Encoding`] for anything but one whole key, [`InvalidKey::ModulusSize`] for sizes not accepted.
    pub fn from_der(der: &[u8]) -> Result<Self, InvalidKey> {
        let key = rsa::PublicKey::from_pkcs1_der(der).map_err(|_| InvalidKey::Encoding)?;
        checked_size(key.n().bit_width_vartime())?;
        Ok(Self(key))
    }

    /// The PKCS#1 DER form.
    pub fn to_der(&self) -> Vec<u8> {
        self.0.to_pkcs1_der().expect("a public key that was read can be written").into_vec()
    }

    /// Octets of the modulus, and of each block encrypted with this key.
    pub fn modulus_len(&self) -> usize {
        self.0.size()
    }

    /// Bits of the modulus.
    pub fn bits(&self) -> u32 {
        self.0.n().bit_width_vartime()
    }

    /// Whether the public exponent is 65537, the only one that descriptors and directories may carry (dir-spec 3).
    pub fn has_exponent_65537(&self) -> bool {
        let octets = self.0.e().to_be_bytes();
        octets.iter().skip_while(|octet| **octet == 0).eq(&[1, 0, 1])
    }

    /// SHA-1 of the DER form: for an identity key, the name of the mix.
    pub fn key_id(&self) -> KeyId {
        let Digest(octets) = sha1(&[&self.to_der()]);
        KeyId(octets)
    }

    /// The key id as the reference prints it: 40 upper-case hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        self.key_id().to_string().to_uppercase()
    }

    /// Encrypts up to `modulus_len() - 42` octets; takes one seed of 20 octets from `rng`.
    ///
    /// # Errors
    /// [`RsaError::TooLong`] when the plaintext does not fit.
    pub fn encrypt(&self, plaintext: &[u8], rng: &mut impl CryptoRng) -> Result<Vec<u8>, RsaError> {
        let padded = pad(plaintext, self.modulus_len(), rng)?;
        let result = rsa::hazmat::rsa_encrypt(&self.0, &self.to_uint(&padded)).map_err(|_| RsaError::Fault)?;
        Ok(left_padded(&result, self.modulus_len()))
    }

    /// Opens a signature and returns what was signed, mostly a digest. The caller compares.
    ///
    /// # Errors
    /// [`RsaError::BadPadding`] when the signature was not made by this key.
    pub fn check_signature(&self, signature: &[u8]) -> Result<Vec<u8>, RsaError> {
        if signature.len() != self.modulus_len() {
            return Err(RsaError::BadPadding);
        }
        let value = self.to_uint(signature);
        if value >= *self.0.n().as_ref() {
            return Err(RsaError::BadPadding);
        }
        let padded = rsa::hazmat::rsa_encrypt(&self.0, &value).map_err(|_| RsaError::BadPadding)?;
        unpad(&left_padded(&padded, self.modulus_len())).map(|data| data.to_vec())
    }

    /// The key as the `rsa` crate has it, for checks that Type III shares with X.509 (`net::tls`).
    pub fn as_rsa(&self) -> &rsa::PublicKey {
        &self.0
    }

    fn to_uint(&self, octets: &[u8]) -> BoxedUint {
        BoxedUint::from_be_slice(octets, self.0.n_bits_precision()).expect("as long as the modulus: both callers")
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, {} bits)", self.key_id(), self.bits())
    }
}

/// A private RSA key: an identity key, a link key, the key of an encrypted forward message. Zeroized by its owner,
/// the `rsa` crate, when dropped; never printed.
#[derive(Clone)]
pub struct PrivateKey(rsa::PrivateKey);

impl PrivateKey {
    /// Makes a new key with exponent 65537.
    ///
    /// # Errors
    /// [`InvalidKey::ModulusSize`] outside 1024 to 4096 bits; [`InvalidKey::Generation`] when the backend gives up.
    pub fn generate(bits: u32, rng: &mut impl CryptoRng) -> Result<Self, InvalidKey> {
        checked_size(bits)?;
        // The library refuses new keys below 2048 bits; only tests and old formats want them.
        rsa::PrivateKey::new_unchecked(rng, bits as usize).map(Self).map_err(|_| InvalidKey::Generation)
    }

    /// Reads PKCS#8 or PKCS#1 DER.
    ///
    /// # Errors
    /// As [`PublicKey::from_der`].
    pub fn from_der(der: &[u8]) -> Result<Self, InvalidKey> {
        let key = rsa::PrivateKey::from_pkcs8_der(der)
            .or_else(|_| rsa::PrivateKey::from_pkcs1_der(der))
            .map_err(|_| InvalidKey::Encoding)?;
        checked_size(key.n().bit_width_vartime())?;
        Ok(Self(key))
    }

    /// The PKCS#8 DER form: the one that is kept on disk and that TLS takes.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let document = self.0.to_pkcs8_der().expect("a private key that was made or read can be written");
        Zeroizing::new(document.as_bytes().to_vec())
    }

    /// The PKCS#1 DER form, the one of the reference.
    pub fn to_pkcs1_der(&self) -> Zeroizing<Vec<u8>> {
        let document = self.0.to_pkcs1_der().expect("a private key that was made or read can be written");
        Zeroizing::new(document.as_bytes().to_vec())
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.to_public_key())
    }

    /// Decrypts one block. Blinded; slower than [`PacketKey`], but of any size.
    ///
    /// # Errors
    /// [`RsaError::BadPadding`] when the block was not made for this key.
    pub fn decrypt(&self, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, RsaError> {
        let public = self.public_key();
        if ciphertext.len() != public.modulus_len() {
            return Err(RsaError::BadPadding);
        }
        // Blinding does not change the result, so it may come from the system and not from the caller's stream.
        let padded = rsa::hazmat::rsa_decrypt_and_check(&self.0, Some(&mut SysRng), &public.to_uint(ciphertext))
            .map_err(|_| RsaError::BadPadding)?;
        // Not the library's own OAEP: as of 0.10.0 it accepts blocks whose first octet is not zero.
        unpad(&left_padded(&padded, public.modulus_len()))
    }

    /// Signs `data`, mostly a digest; takes one seed of 20 octets, then blinding, from `rng`.
    ///
    /// # Errors
    /// [`RsaError::TooLong`] when the data does not fit; [`RsaError::Fault`] when the machine miscalculates.
    pub fn sign(&self, data: &[u8], rng: &mut impl CryptoRng) -> Result<Vec<u8>, RsaError> {
        let public = self.public_key();
        let padded = pad(data, public.modulus_len(), rng)?;
        let result = rsa::hazmat::rsa_decrypt_and_check(&self.0, Some(rng), &public.to_uint(&padded))
            .map_err(|_| RsaError::Fault)?;
        Ok(left_padded(&result, public.modulus_len()))
    }

    /// Signs a certificate as X.509 has it: PKCS#1 v1.5 with SHA-256, blinded from `rng`. For `net::tls` alone; all
    /// else in Type III is [`PrivateKey::sign`].
    ///
    /// # Errors
    /// [`RsaError::Fault`] when the machine miscalculates.
    pub fn sign_certificate(&self, content: &[u8], rng: &mut impl CryptoRng) -> Result<Vec<u8>, RsaError> {
        self.0.pkcs1v15_sign_with_rng::<rsa::sha2::Sha256, _>(rng, content).map_err(|_| RsaError::Fault)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, ..)", self.public_key().key_id())
    }
}

/// A private packet key of 2048 bits, ready for the hot path.
pub struct PacketKey {
    backend: OaepPrivateDecryptingKey,
    public: PublicKey,
}

impl PacketKey {
    /// Loads `key` into the fast backend.
    ///
    /// # Errors
    /// [`InvalidKey::PacketKeySize`] when it has not 2048 bits.
    pub fn new(key: &PrivateKey) -> Result<Self, InvalidKey> {
        let public = key.public_key();
        if public.modulus_len() != PACKET_KEY_LEN {
            return Err(InvalidKey::PacketKeySize { bits: public.bits() });
        }
        let backend = PrivateDecryptingKey::from_pkcs8(&key.to_pkcs8_der()).map_err(|_| InvalidKey::Encoding)?;
        let backend = OaepPrivateDecryptingKey::new(backend).map_err(|_| InvalidKey::Encoding)?;
        Ok(Self { backend, public })
    }

    /// The public half, as descriptors carry it.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Decrypts one encrypted subheader.
    ///
    /// # Errors
    /// [`RsaError::BadPadding`] when it was not made for this key.
    pub fn decrypt(&self, ciphertext: &[u8; PACKET_KEY_LEN]) -> Result<Zeroizing<Vec<u8>>, RsaError> {
        let mut plaintext = Zeroizing::new(vec![0; self.backend.min_output_size()]);
        let len = self
            .backend
            .decrypt(&OAEP_SHA1_MGF1SHA1, ciphertext, &mut plaintext, Some(OAEP_LABEL))
            .map_err(|_| RsaError::BadPadding)?
            .len();
        plaintext.truncate(len);
        Ok(plaintext)
    }
}

impl fmt::Debug for PacketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketKey(..)")
    }
}

fn checked_size(bits: u32) -> Result<(), InvalidKey> {
    if MODULUS_BITS.contains(&bits) { Ok(()) } else { Err(InvalidKey::ModulusSize { bits }) }
}

fn left_padded(value: &BoxedUint, len: usize) -> Vec<u8> {
    let octets = value.to_be_bytes();
    let excess = octets.len().saturating_sub(len);
    let mut out = vec![0; len.saturating_sub(octets.len())];
    out.extend_from_slice(&octets[excess..]);
    out
}

/// OAEP (PKCS#1 2.2, 7.1.1) to the length of the modulus: 00 | masked seed | masked (label digest | 00… | 01 | data).
fn pad(data: &[u8], len: usize, rng: &mut impl CryptoRng) -> Result<Zeroizing<Vec<u8>>, RsaError> {
    let capacity = len - OAEP_OVERHEAD;
    if data.len() > capacity {
        return Err(RsaError::TooLong { len: data.len(), capacity });
    }
    let mut padded = Zeroizing::new(vec![0; len]);
    let (seed, block) = padded[1..].split_at_mut(DIGEST_LEN);
    rng.fill_bytes(seed);
    block[..DIGEST_LEN].copy_from_slice(&sha1(&[OAEP_LABEL]).0);
    let data_start = block.len() - data.len();
    block[data_start - 1] = 1;
    block[data_start..].copy_from_slice(data);
    mask(seed, block);
    mask(block, seed);
    Ok(padded)
}

/// Undoes [`pad`]. Looks at every octet whatever it finds, so that timing does not tell which check failed.
fn unpad(padded: &[u8]) -> Result<Zeroizing<Vec<u8>>, RsaError> {
    let mut padded = Zeroizing::new(padded.to_vec());
    let (zero, rest) = padded.split_first_mut().ok_or(RsaError::BadPadding)?;
    let (seed, block) = rest.split_at_mut_checked(DIGEST_LEN).ok_or(RsaError::BadPadding)?;
    mask(block, seed);
    mask(seed, block);
    let (label, rest) = block.split_first_chunk::<DIGEST_LEN>().ok_or(RsaError::BadPadding)?;
    let mut valid = zero.ct_eq(&0) & label.ct_eq(&sha1(&[OAEP_LABEL]).0);
    let mut searching = Choice::from(1);
    let mut data_start = 0u32;
    for (position, octet) in (1u32..).zip(rest) {
        let separator = octet.ct_eq(&1);
        data_start.conditional_assign(&position, searching & separator);
        valid &= !searching | separator | octet.ct_eq(&0);
        searching &= !separator;
    }
    valid &= !searching;
    if bool::from(valid) {
        let (_, data) = rest.split_at(data_start as usize);
        Ok(Zeroizing::new(data.to_vec()))
    } else {
        Err(RsaError::BadPadding)
    }
}

/// MGF1 with SHA-1 (PKCS#1 2.2, B.2.1): mixes a stream that follows from `seed` into `out`.
fn mask(seed: &[u8], out: &mut [u8]) {
    for (counter, chunk) in (0u32..).zip(out.chunks_mut(DIGEST_LEN)) {
        let Digest(stream) = sha1(&[seed, &counter.to_be_bytes()]);
        chunk.iter_mut().zip(stream).for_each(|(octet, mask)| *octet ^= mask);
    }
}
