//! LIONESS: a wide-block cipher, so that one changed bit spoils the whole block (minion-spec 3.1.2).

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::hash::{DIGEST_LEN, Digest, sha1};
use super::stream::{self, KEY_LEN, StreamKey};

/// The four 20-octet keys of one LIONESS permutation. Overwritten when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct LionessKeys([[u8; DIGEST_LEN]; 4]);

impl LionessKeys {
    /// The permutation with these keys, in the order K1 to K4.
    pub fn new(keys: [[u8; DIGEST_LEN]; 4]) -> Self {
        Self(keys)
    }

    /// Encrypts `block` in place.
    ///
    /// # Panics
    /// When `block` has 20 octets or fewer: LIONESS is not defined there. Callers hold blocks of fixed, larger sizes.
    pub fn encrypt(&self, block: &mut [u8]) {
        let [k1, k2, k3, k4] = &self.0;
        let (left, right) = halves(block);
        stream_round(k1, left, right);
        hash_round(k2, left, right);
        stream_round(k3, left, right);
        hash_round(k4, left, right);
    }

    /// Undoes [`LionessKeys::encrypt`].
    ///
    /// # Panics
    /// As `encrypt`.
    pub fn decrypt(&self, block: &mut [u8]) {
        let [k1, k2, k3, k4] = &self.0;
        let (left, right) = halves(block);
        hash_round(k4, left, right);
        stream_round(k3, left, right);
        hash_round(k2, left, right);
        stream_round(k1, left, right);
    }
}

fn halves(block: &mut [u8]) -> (&mut [u8; DIGEST_LEN], &mut [u8]) {
    assert!(block.len() > DIGEST_LEN, "LIONESS needs more than {DIGEST_LEN} octets");
    block.split_first_chunk_mut().expect("longer than a digest: asserted above")
}

/// right ^= stream keyed with the digest of (key | left | key).
fn stream_round(key: &[u8; DIGEST_LEN], left: &[u8; DIGEST_LEN], right: &mut [u8]) {
    let Digest(octets) = sha1(&[key, left, key]);
    let (stream_key, _) = octets.split_first_chunk::<KEY_LEN>().expect("20 octets: Digest");
    stream::crypt(&StreamKey::new(*stream_key), 0, right);
}

/// left ^= digest of (key | right | key).
fn hash_round(key: &[u8; DIGEST_LEN], left: &mut [u8; DIGEST_LEN], right: &[u8]) {
    let Digest(mask) = sha1(&[key, right, key]);
    left.iter_mut().zip(mask).for_each(|(octet, mask)| *octet ^= mask);
}
