//! Sub-keys of a shared secret, one per purpose (minion-spec 3.1.3, 3.2.2).

use rand::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::hash::{DIGEST_LEN, Digest, sha1};
use super::lioness::LionessKeys;
use super::stream::{KEY_LEN, StreamKey};

/// Octets in a shared secret (minion-spec 3.2.1).
pub const SECRET_LEN: usize = KEY_LEN;

/// What a sender and one mix share for one packet: 16 octets. Overwritten when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SharedSecret([u8; SECRET_LEN]);

impl SharedSecret {
    /// The secret with these octets.
    pub fn new(octets: [u8; SECRET_LEN]) -> Self {
        Self(octets)
    }

    /// A fresh secret.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut octets = [0; SECRET_LEN];
        rng.fill_bytes(&mut octets);
        Self(octets)
    }

    /// The octets, for the subheader or SURB that carries them.
    pub fn expose(&self) -> &[u8; SECRET_LEN] {
        &self.0
    }

    /// The keys that follow from this secret.
    pub fn keyset(&self) -> Keyset<'_> {
        Keyset::new(&self.0)
    }
}

impl std::fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

/// All keys that follow from one master secret: each is SHA-1(master | purpose), cut to length (minion-spec 3.1.3).
#[derive(Clone, Copy)]
pub struct Keyset<'a> {
    master: &'a [u8],
}

impl<'a> Keyset<'a> {
    /// The keys of `master`: a shared secret, a digest, or the word WHITEN.
    pub fn new(master: &'a [u8]) -> Self {
        Self { master }
    }

    /// Decrypts the rest of the header that the mix read ("HEADER SECRET KEY").
    pub fn header_key(&self) -> StreamKey {
        self.stream_key(b"HEADER SECRET KEY")
    }

    /// Generates the junk that a mix appends to the header ("RANDOM JUNK").
    pub fn junk_key(&self) -> StreamKey {
        self.stream_key(b"RANDOM JUNK")
    }

    /// Encrypts the header that a mix does not read ("HEADER ENCRYPT").
    pub fn header_encrypt_keys(&self) -> LionessKeys {
        self.lioness_keys(b"HEADER ENCRYPT")
    }

    /// Encrypts the payload at one mix ("PAYLOAD ENCRYPT").
    pub fn payload_encrypt_keys(&self) -> LionessKeys {
        self.lioness_keys(b"PAYLOAD ENCRYPT")
    }

    /// Hides the second header at the swap point ("HIDE HEADER"); the master is the digest of the payload.
    pub fn hide_header_keys(&self) -> LionessKeys {
        self.lioness_keys(b"HIDE HEADER")
    }

    /// Hides the payload at the swap point ("HIDE PAYLOAD"); the master is the digest of the second header.
    pub fn hide_payload_keys(&self) -> LionessKeys {
        self.lioness_keys(b"HIDE PAYLOAD")
    }

    /// What the replay log remembers of a packet ("REPLAY PREVENTION").
    pub fn replay_hash(&self) -> Digest {
        self.purpose(b"REPLAY PREVENTION")
    }

    /// Handed to the delivery module ("APPLICATION KEY").
    pub fn application_key(&self) -> StreamKey {
        self.stream_key(b"APPLICATION KEY")
    }

    /// Encrypts the payload of an encrypted forward message ("END-TO-END ENCRYPT"; E2E-spec 2.3).
    pub fn end_to_end_keys(&self) -> LionessKeys {
        self.lioness_keys(b"END-TO-END ENCRYPT")
    }

    /// SHA-1(master | purpose), whole. For purposes beyond those named above.
    pub fn purpose(&self, purpose: &[u8]) -> Digest {
        sha1(&[self.master, purpose])
    }

    /// The AES key for `purpose`: the first 16 octets of its digest.
    pub fn stream_key(&self, purpose: &[u8]) -> StreamKey {
        let Digest(octets) = self.purpose(purpose);
        let (key, _) = octets.split_first_chunk().expect("20 octets: Digest");
        StreamKey::new(*key)
    }

    /// The four LIONESS keys for `purpose`: its digest with 0, 1, 2, 3 mixed into the last octet (minion-spec 3.1.3).
    pub fn lioness_keys(&self, purpose: &[u8]) -> LionessKeys {
        let Digest(first) = self.purpose(purpose);
        LionessKeys::new([0, 1, 2, 3].map(|n| {
            let mut key = first;
            key[DIGEST_LEN - 1] ^= n;
            key
        }))
    }
}
