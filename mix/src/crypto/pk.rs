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
use rsa::pkcs1::der::Decode as _;
use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey, EncodeRsaPrivateKey, EncodeRsaPublicKey, RsaPublicKeyRef};
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey};
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
        // The size first: the library has limits of its own, and would not say that it was the size.
        let parts = RsaPublicKeyRef::from_der(der).map_err(|_| InvalidKey::Encoding)?;
        checked_size(bits(parts.modulus.as_bytes()))?;
        rsa::PublicKey::from_pkcs1_der(der).map(Self).map_err(|_| InvalidKey::Encoding)
    }

    /// The SubjectPublicKeyInfo in DER (RFC 5280 4.1), as DKIM has it.
    pub fn to_spki_der(&self) -> Vec<u8> {
        let document = self.0.to_public_key_der().expect("a public key that was made or read can be written");
        document.as_bytes().to_vec()
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
        self.key_id().to_string()
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
    /// [`InvalidKey::Encoding`] for anything but one whole key of 1024 bits or more, [`InvalidKey::ModulusSize`] for
    /// more than 4096.
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
        self.0.pkcs1v15_sign_with_rng::<sha2::Sha256, _>(rng, content).map_err(|_| RsaError::Fault)
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
    /// Kept, because each packet asks for it.
    id: Digest,
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
        let KeyId(id) = public.key_id();
        Ok(Self { backend, public, id: Digest(id) })
    }

    /// The public half, as descriptors carry it.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// SHA-1 of the public half: names the replay log that goes with this key.
    pub fn id(&self) -> Digest {
        self.id
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

/// Bits of a number without leading zero octets.
fn bits(number: &[u8]) -> u32 {
    let unused = number.first().map_or(0, |first| first.leading_zeros());
    u32::try_from(8 * number.len()).map_or(u32::MAX, |bits| bits - unused)
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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::{InvalidKey, PACKET_KEY_LEN, PacketKey, PrivateKey, PublicKey, RsaError};
    use crate::crypto::CounterRng;
    use crate::crypto::stream::StreamKey;

    fn rng() -> CounterRng {
        CounterRng::new(&StreamKey::new([1; 16]))
    }

    static KEYS: LazyLock<[PrivateKey; 2]> = LazyLock::new(|| {
        let mut rng = rng();
        [1024, 2048].map(|bits| PrivateKey::generate(bits, &mut rng).unwrap())
    });

    /// An element of DER: tag, length in its shortest form, content.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let len = match u16::try_from(content.len()).unwrap().to_be_bytes() {
            [0, len @ 0..0x80] => vec![len],
            [0, len] => vec![0x81, len],
            [high, low] => vec![0x82, high, low],
        };
        [&[tag][..], &len, content].concat()
    }

    /// The PKCS#1 form of a public key with an odd modulus of `len` octets.
    fn public_der(len: usize) -> Vec<u8> {
        let modulus = der(0x02, &[&[0][..], &vec![0xff; len]].concat());
        der(0x30, &[modulus, der(0x02, &[1, 0, 1])].concat())
    }

    #[test]
    fn octets_that_are_no_key_are_refused() {
        let whole = KEYS[0].public_key().to_der();
        let (_, cut) = whole.split_last().unwrap();
        for octets in [&b""[..], b"hunter2", cut, &[&whole[..], &[0]].concat()] {
            assert_eq!(PublicKey::from_der(octets).unwrap_err(), InvalidKey::Encoding);
            assert_eq!(PrivateKey::from_der(octets).unwrap_err(), InvalidKey::Encoding);
        }
        assert_eq!(PrivateKey::from_der(&whole).unwrap_err(), InvalidKey::Encoding, "the public half");
    }

    #[test]
    fn keys_too_small_or_too_large_are_refused() {
        for bits in [0, 512, 1023, 4097] {
            assert_eq!(PrivateKey::generate(bits, &mut rng()).unwrap_err(), InvalidKey::ModulusSize { bits });
        }
        for (len, bits) in [(1, 8), (64, 512), (127, 1016), (513, 4104), (2000, 16_000)] {
            assert_eq!(PublicKey::from_der(&public_der(len)), Err(InvalidKey::ModulusSize { bits }));
        }
        assert!(PublicKey::from_der(&public_der(128)).is_ok() && PublicKey::from_der(&public_der(512)).is_ok());
    }

    #[test]
    fn packet_key_of_another_size_is_refused() {
        assert_eq!(PacketKey::new(&KEYS[0]).unwrap_err(), InvalidKey::PacketKeySize { bits: 1024 });
    }

    #[test]
    fn packet_key_keeps_the_id_of_its_public_half() {
        let key = PacketKey::new(&KEYS[1]).unwrap();
        assert_eq!(key.id().0, KEYS[1].public_key().key_id().0);
    }

    #[test]
    fn more_than_fits_a_block_is_refused() {
        let refusal = |len, capacity| Err(RsaError::TooLong { len, capacity });
        for (key, capacity) in KEYS.iter().zip([86, 214]) {
            let public = key.public_key();
            assert!(public.encrypt(&vec![1; capacity], &mut rng()).is_ok());
            assert_eq!(public.encrypt(&vec![1; capacity + 1], &mut rng()), refusal(capacity + 1, capacity));
            assert_eq!(key.sign(&vec![1; capacity + 1], &mut rng()), refusal(capacity + 1, capacity));
        }
    }

    #[test]
    fn block_for_another_key_does_not_open() {
        let block = KEYS[1].public_key().encrypt(b"text", &mut rng()).unwrap();
        let other = PrivateKey::generate(2048, &mut CounterRng::new(&StreamKey::new([2; 16]))).unwrap();
        assert_eq!(other.decrypt(&block), Err(RsaError::BadPadding));
        let block: [u8; PACKET_KEY_LEN] = block.try_into().unwrap();
        assert_eq!(PacketKey::new(&other).unwrap().decrypt(&block), Err(RsaError::BadPadding));
        assert_eq!(*PacketKey::new(&KEYS[1]).unwrap().decrypt(&block).unwrap(), b"text");
    }

    #[test]
    fn block_of_another_length_or_beyond_the_modulus_does_not_open() {
        let key = &KEYS[1];
        for block in [&[][..], &[1; 255], &[1; 257], &[0xff; PACKET_KEY_LEN]] {
            assert_eq!(key.decrypt(block), Err(RsaError::BadPadding));
            assert_eq!(key.public_key().check_signature(block), Err(RsaError::BadPadding));
        }
        let backend = PacketKey::new(key).unwrap();
        assert_eq!(backend.decrypt(&[0xff; PACKET_KEY_LEN]), Err(RsaError::BadPadding));
    }

    #[test]
    fn signature_opens_under_its_own_key_alone() {
        let signature = KEYS[1].sign(b"a digest", &mut rng()).unwrap();
        assert_eq!(KEYS[1].public_key().check_signature(&signature), Ok(b"a digest".to_vec()));
        let mut changed = signature.clone();
        changed[255] ^= 1;
        assert_eq!(KEYS[1].public_key().check_signature(&changed), Err(RsaError::BadPadding));
        assert_eq!(KEYS[0].public_key().check_signature(&signature), Err(RsaError::BadPadding));
    }
}
