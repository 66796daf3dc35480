//! AES-128 in counter mode: as a cipher, as a stream of junk, and as a source of choices (minion-spec 3.1.2).

use std::convert::Infallible;

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use rand::rand_core::{TryCryptoRng, TryRng};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Octets in an AES key (minion-spec 3.1.2).
pub const KEY_LEN: usize = 16;

/// An AES-128 key. Overwritten when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct StreamKey([u8; KEY_LEN]);

impl StreamKey {
    /// The key with these octets.
    pub fn new(octets: [u8; KEY_LEN]) -> Self {
        Self(octets)
    }

    /// The octets, for those who must store or compare them.
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    fn cipher(&self) -> Ctr128BE<Aes128> {
        // The counter starts at zero for each key: no key is used for two streams (minion-spec 3.1.2).
        Ctr128BE::new((&self.0).into(), &[0; KEY_LEN].into())
    }
}

/// Encrypts or decrypts `data` in place with the part of the key stream that begins `start` octets in.
pub fn crypt(key: &StreamKey, start: u64, data: &mut [u8]) {
    let mut cipher = key.cipher();
    if start != 0 {
        cipher.seek(start);
    }
    cipher.apply_keystream(data);
}

/// The first `len` octets of the key stream: what the specification calls PRNG(key, len).
pub fn prng(key: &StreamKey, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    crypt(key, 0, &mut out);
    out
}

/// The endless key stream of one key as a random generator.
///
/// This is how a SURB's secrets follow from its seed (E2E-spec 4), and how recorded randomness is replayed in tests.
pub struct CounterRng {
    cipher: Ctr128BE<Aes128>,
}

impl CounterRng {
    /// The stream of `key` from its beginning.
    pub fn new(key: &StreamKey) -> Self {
        Self { cipher: key.cipher() }
    }
}

impl TryRng for CounterRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut octets = [0; 4];
        self.try_fill_bytes(&mut octets)?;
        Ok(u32::from_be_bytes(octets))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut octets = [0; 8];
        self.try_fill_bytes(&mut octets)?;
        Ok(u64::from_be_bytes(octets))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.fill(0);
        self.cipher.apply_keystream(out);
        Ok(())
    }
}

impl TryCryptoRng for CounterRng {}
