//! The key of one identity's reply blocks, from which the secrets of all of them follow (E2E-spec 2.2.5).
//!
//! A reply block made with it carries its state with it: the decoding handle is a seed, and whoever holds the key
//! knows from the handle which secrets the mixes will use. Nothing but the key has to be kept.

use rand::CryptoRng;

use super::hash::DIGEST_LEN;
use super::keyset::Keyset;
use super::stream::CounterRng;
use crate::secret::Secret;

/// Octets in a key that is made here. Keys from elsewhere should have at least as many (E2E-spec A.2).
pub const SURB_KEY_LEN: usize = 20;

/// Octets in a seed: it travels as the decoding handle.
pub const SEED_LEN: usize = 20;
const _: () = assert!(SEED_LEN == DIGEST_LEN);

/// The secret of one identity's reply blocks. Overwritten when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SurbKey(Secret<Vec<u8>>);

impl SurbKey {
    /// The key with these octets, of any count.
    pub fn new(octets: Vec<u8>) -> Self {
        Self(Secret::new(octets))
    }

    /// A fresh key of 20 octets.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut octets = vec![0; SURB_KEY_LEN];
        rng.fill_bytes(&mut octets);
        Self::new(octets)
    }

    /// The octets, for the keyring that stores them.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// Draws seeds until one validates: 256 of them on average, 20 octets each from `rng` with the top bit cleared.
    pub fn new_seed(&self, rng: &mut impl CryptoRng) -> [u8; SEED_LEN] {
        loop {
            let mut seed = [0; SEED_LEN];
            rng.fill_bytes(&mut seed);
            seed[0] &= 0x7f;
            if self.validates(&seed) {
                return seed;
            }
        }
    }

    /// Whether `seed` may be one of this key's. It is always so for its own, and for one in 256 of all others; so the
    /// recipient of a reply need not try every key on the whole payload.
    pub fn validates(&self, seed: &[u8; SEED_LEN]) -> bool {
        Keyset::new(self.material(seed).expose()).purpose(b"Validate").0.ends_with(&[0])
    }

    /// The stream that the secrets of the reply block with this seed are taken from, 16 octets each: those of the
    /// mixes from the last to the first, then the one that the block itself carries.
    pub fn secrets(&self, seed: &[u8; SEED_LEN]) -> CounterRng {
        CounterRng::new(&Keyset::new(self.material(seed).expose()).stream_key(b"Generate"))
    }

    /// `seed | key`: what the derivation of keys takes for a master secret.
    fn material(&self, seed: &[u8; SEED_LEN]) -> Secret<Vec<u8>> {
        Secret::new([&seed[..], self.expose()].concat())
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::SurbKey;
    use crate::crypto::CounterRng;
    use crate::crypto::stream::StreamKey;

    #[test]
    fn drawn_seeds_validate_under_their_own_key() {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        let key = SurbKey::random(&mut rng);
        for _ in 0..8 {
            let seed = key.new_seed(&mut rng);
            assert!(key.validates(&seed));
            assert!(seed[0] < 0x80, "the top bit is clear, as in an RSA ciphertext");
        }
    }

    #[test]
    fn secrets_depend_on_seed_and_key() {
        let first = |key: &[u8], seed| {
            let mut secret = [0; 16];
            SurbKey::new(key.to_vec()).secrets(seed).fill_bytes(&mut secret);
            secret
        };
        assert_eq!(first(b"a key", &[1; 20]), first(b"a key", &[1; 20]));
        assert_ne!(first(b"a key", &[1; 20]), first(b"a key", &[2; 20]));
        assert_ne!(first(b"a key", &[1; 20]), first(b"another", &[1; 20]));
    }

    #[test]
    fn key_prints_nothing_of_itself() {
        assert_eq!(format!("{:?}", SurbKey::new(b"hunter2".to_vec())), "SurbKey(Secret(..))");
    }
}
