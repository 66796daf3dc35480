//! crypto.json: the primitives.

use mix::crypto::keyset::Keyset;
use mix::crypto::lioness::LionessKeys;
use mix::crypto::pk::{PacketKey, PrivateKey, PublicKey, RsaError};
use mix::crypto::stream::{StreamKey, crypt, prng};
use mix::crypto::{CounterRng, sha1};
use rand::{Rng, TryCryptoRng, TryRng};
use serde_json::Value;

use crate::{Tally, b64, ensure, ensure_eq, hex, list, text, to_hex};

pub fn run(file: &Value, tally: &mut Tally) {
    for (part, value) in file.as_object().unwrap() {
        match part.as_str() {
            "sha1" => list(value).iter().for_each(|case| sha1_case(case, tally)),
            "aes_ctr" => list(&value["cases"]).iter().for_each(|case| ctr_case(case, tally)),
            "prng" => tally.case("prng", || prng_case(value)),
            "aes_counter_prng" => tally.case("counter prng", || counter_prng_case(value)),
            "keyset" => list(value).iter().for_each(|case| keyset_case(case, tally)),
            "hide_keys" => tally.case("hide keys", || hide_keys_case(value)),
            "lioness" => list(value).iter().for_each(|case| lioness_case(case, tally)),
            "whiten" => list(value).iter().for_each(|case| whiten_case(case, tally)),
            "whiten_keys_hex" => tally.case("whitening keys", || whiten_keys_case(value)),
            "rsa_oaep" => list(value).iter().for_each(|case| rsa_cases(case, tally)),
            "oaep_parameter" => tally.case("OAEP label", || {
                ensure_eq!(mix::crypto::pk::OAEP_LABEL, text(value).as_bytes(), "label");
                Ok(())
            }),
            "notes" => {}
            other => tally.case(other, || Err("unknown kind of case".into())),
        }
    }
}

/// Gives out recorded octets, then panics: a builder must not take more than was recorded.
pub struct Recorded(std::collections::VecDeque<u8>);

impl Recorded {
    pub fn new(parts: &[Vec<u8>]) -> Self {
        Self(parts.concat().into())
    }

    pub fn is_used_up(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryRng for Recorded {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut octets = [0; 4];
        self.try_fill_bytes(&mut octets).map(|()| u32::from_be_bytes(octets))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut octets = [0; 8];
        self.try_fill_bytes(&mut octets).map(|()| u64::from_be_bytes(octets))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        assert!(out.len() <= self.0.len(), "more randomness taken than the reference took");
        let given = self.0.drain(..out.len());
        out.iter_mut().zip(given).for_each(|(to, from)| *to = from);
        Ok(())
    }
}

impl TryCryptoRng for Recorded {}

pub fn stream_key(entry: &Value) -> StreamKey {
    StreamKey::new(hex(entry).try_into().unwrap())
}

fn lioness_keys(entry: &Value) -> LionessKeys {
    let keys: Vec<[u8; 20]> = list(entry).iter().map(|key| hex(key).try_into().unwrap()).collect();
    LionessKeys::new(keys.try_into().unwrap())
}

fn number(entry: &Value) -> usize {
    entry.as_u64().unwrap() as usize
}

fn sha1_case(case: &Value, tally: &mut Tally) {
    tally.case("sha1", || {
        let known = ["input_hex", "input_is", "input_prng_key_hex", "length", "digest_hex"];
        let unknown = case.as_object().unwrap().keys().find(|key| !known.contains(&key.as_str()));
        ensure!(unknown.is_none(), "unknown entry {unknown:?}");
        ensure_eq!(sha1(&[&hex(&case["input_hex"])]).to_string(), text(&case["digest_hex"]), "digest");
        Ok(())
    });
}

fn ctr_case(case: &Value, tally: &mut Tally) {
    tally.case("aes_ctr", || {
        let mut data = hex(&case["plaintext_hex"]);
        crypt(&stream_key(&case["key_hex"]), case["start_byte_index"].as_u64().unwrap(), &mut data);
        ensure_eq!(to_hex(&data), text(&case["ciphertext_hex"]), "ciphertext");
        Ok(())
    });
}

fn prng_case(value: &Value) -> Result<(), String> {
    let stream = prng(&stream_key(&value["key_hex"]), 100_000);
    ensure_eq!(to_hex(&stream[..256]), text(&value["first_256_hex"]), "first 256");
    ensure_eq!(to_hex(&stream[1000..1064]), text(&value["at_1000_len_64_hex"]), "64 at 1000");
    ensure_eq!(sha1(&[&stream]).to_string(), text(&value["sha1_of_first_100000_hex"]), "first 100000");
    Ok(())
}

/// The reference's way to draw an integer below `max`, on our stream: rejection of the uneven rest.
fn get_int(rng: &mut CounterRng, max: u32) -> u32 {
    let cutoff = 0x7fff_ffff - 0x7fff_ffff % max;
    loop {
        let drawn = rng.next_u32() & 0x7fff_ffff;
        if drawn < cutoff {
            return drawn % max;
        }
    }
}

fn shuffle(rng: &mut CounterRng, len: u32, picks: u32) -> Vec<u64> {
    let mut items: Vec<u64> = (0..u64::from(len)).collect();
    for i in 0..(if picks == len { len - 1 } else { picks }) {
        let other = i + get_int(rng, len - i);
        items.swap(i as usize, other as usize);
    }
    items.truncate(picks as usize);
    items
}

fn counter_prng_case(value: &Value) -> Result<(), String> {
    let mut rng = CounterRng::new(&stream_key(&value["seed_hex"]));
    for (max, expected) in list(&value["getInt_of"]).iter().zip(list(&value["getInt"])) {
        ensure_eq!(u64::from(get_int(&mut rng, number(max) as u32)), expected.as_u64().unwrap(), "getInt");
    }
    let mut octets = [0; 3];
    rng.fill_bytes(&mut octets);
    ensure_eq!(to_hex(&octets), text(&value["then_getBytes3_hex"]), "three octets");
    let numbers = |entry: &Value| list(entry).iter().map(|n| n.as_u64().unwrap()).collect::<Vec<_>>();
    ensure_eq!(shuffle(&mut rng, 12, 12), numbers(&value["then_shuffle_range12"]), "shuffle of 12");
    ensure_eq!(shuffle(&mut rng, 30, 5), numbers(&value["then_shuffle_range30_first5"]), "5 of 30");
    Ok(())
}

fn keyset_case(case: &Value, tally: &mut Tally) {
    let master = hex(&case["master_hex"]);
    for mode in list(&case["modes"]) {
        tally.case(text(&mode["mode"]), || {
            let keyset = Keyset::new(&master);
            let purpose = text(&mode["mode"]).as_bytes();
            ensure_eq!(keyset.purpose(purpose).to_string(), text(&mode["key20_hex"]), "20 octets");
            ensure_eq!(to_hex(keyset.stream_key(purpose).expose()), text(&mode["key16_hex"]), "16 octets");
            let mut ours = [7; 64];
            let mut theirs = [7; 64];
            keyset.lioness_keys(purpose).encrypt(&mut ours);
            lioness_keys(&mode["lioness_hex"]).encrypt(&mut theirs);
            ensure_eq!(ours, theirs, "LIONESS keys");
            Ok(())
        });
    }
}

fn same_permutation(ours: &LionessKeys, theirs: &LionessKeys) -> Result<(), String> {
    let (mut left, mut right) = ([9; 99], [9; 99]);
    ours.encrypt(&mut left);
    theirs.encrypt(&mut right);
    ensure_eq!(left, right, "LIONESS keys");
    Ok(())
}

fn hide_keys_case(value: &Value) -> Result<(), String> {
    let payload = prng(&stream_key(&value["payload_prng_key_hex"]), 28672);
    let header = prng(&stream_key(&value["header_prng_key_hex"]), 2048);
    let from_payload = sha1(&[&payload]);
    let from_header = sha1(&[&header]);
    same_permutation(&Keyset::new(&from_payload.0).hide_header_keys(), &lioness_keys(&value["keys_from_payload_hex"]))?;
    same_permutation(&Keyset::new(&from_header.0).hide_payload_keys(), &lioness_keys(&value["keys_from_header_hex"]))
}

fn lioness_case(case: &Value, tally: &mut Tally) {
    tally.case("lioness", || {
        let keys = lioness_keys(&case["keys_hex"]);
        let plain = prng(&stream_key(&case["plaintext_prng_key_hex"]), number(&case["length"]));
        ensure_eq!(sha1(&[&plain]).to_string(), text(&case["plaintext_sha1_hex"]), "plaintext");
        let mut block = plain.clone();
        keys.encrypt(&mut block);
        ensure_eq!(sha1(&[&block]).to_string(), text(&case["ciphertext_sha1_hex"]), "ciphertext");
        if let Some(whole) = case.get("ciphertext_hex") {
            ensure_eq!(to_hex(&block), text(whole), "ciphertext");
        }
        keys.decrypt(&mut block);
        ensure_eq!(block, plain, "decrypted");
        keys.decrypt(&mut block);
        ensure_eq!(sha1(&[&block]).to_string(), text(&case["decrypt_of_plaintext_sha1_hex"]), "decrypted plaintext");
        Ok(())
    });
}

fn whiten_keys() -> LionessKeys {
    Keyset::new(b"WHITEN").lioness_keys(b"WHITEN")
}

fn whiten_keys_case(value: &Value) -> Result<(), String> {
    same_permutation(&whiten_keys(), &lioness_keys(value))
}

fn whiten_case(case: &Value, tally: &mut Tally) {
    tally.case("whiten", || {
        let mut block = prng(&stream_key(&case["prng_key_hex"]), number(&case["length"]));
        whiten_keys().encrypt(&mut block);
        ensure_eq!(to_hex(&block[..block.len().min(32)]), text(&case["whitened_head32_hex"]), "first 32");
        ensure_eq!(sha1(&[&block]).to_string(), text(&case["whitened_sha1_hex"]), "whitened");
        Ok(())
    });
}

fn rsa_cases(case: &Value, tally: &mut Tally) {
    let name = |what: &str| format!("RSA {} {what}", case["bits"]);
    let private = PrivateKey::from_der(&b64(&case["private_der_b64"])).unwrap();
    let public = private.public_key();
    tally.case(&name("key"), || {
        ensure_eq!(u64::from(public.bits()), case["bits"].as_u64().unwrap(), "bits");
        ensure_eq!(public.to_der(), b64(&case["public_der_b64"]), "public DER");
        ensure_eq!(private.to_pkcs1_der().to_vec(), b64(&case["private_der_b64"]), "private DER");
        ensure_eq!(public.fingerprint(), text(&case["fingerprint"]), "fingerprint");
        ensure_eq!(PublicKey::from_der(&public.to_der()), Ok(public.clone()), "public key read back");
        ensure_eq!(PrivateKey::from_der(&private.to_pkcs8_der()).unwrap().public_key(), public, "PKCS#8 read back");
        Ok(())
    });
    for entry in list(&case["enc"]) {
        tally.case(&name("encrypt"), || {
            let (message, expected) = (hex(&entry["message_hex"]), hex(&entry["ciphertext_hex"]));
            let ours = public.encrypt(&message, &mut Recorded::new(&[hex(&entry["seed_hex"])])).unwrap();
            ensure_eq!(ours, expected, "ciphertext");
            ensure_eq!(private.decrypt(&expected).unwrap().to_vec(), message, "decrypted");
            if let Ok(key) = PacketKey::new(&private) {
                let block = expected.as_slice().try_into().unwrap();
                ensure_eq!(key.decrypt(block).unwrap().to_vec(), message, "decrypted as packet key");
            }
            Ok(())
        });
    }
    for entry in list(&case["sig"]) {
        tally.case(&name("sign"), || {
            let (message, expected) = (hex(&entry["message_hex"]), hex(&entry["signature_hex"]));
            ensure_eq!(public.check_signature(&expected), Ok(message.clone()), "signature");
            // Blinding takes randomness behind the seed; it does not change the result.
            let mut rng = Recorded::new(&[hex(&entry["seed_hex"]), prng(&StreamKey::new([1; 16]), 1 << 16)]);
            ensure_eq!(private.sign(&message, &mut rng).unwrap(), expected, "signed");
            Ok(())
        });
    }
    for entry in list(&case["bad"]) {
        tally.case(&name(text(&entry["label"])), || {
            let ciphertext = hex(&entry["ciphertext_hex"]);
            let packet_key = PacketKey::new(&private).ok();
            let fast = packet_key.and_then(|key| Some(key.decrypt(ciphertext.as_slice().try_into().ok()?)));
            if text(&entry["label"]).starts_with("zero-length message") {
                // A defect of the reference: the empty message is as good as any other.
                ensure_eq!(private.decrypt(&ciphertext).map(|plain| plain.len()), Ok(0), "empty message");
                return Ok(());
            }
            ensure!(!entry["error"].is_null(), "a bad ciphertext without an error");
            ensure_eq!(private.decrypt(&ciphertext).map(|plain| plain.len()), Err(RsaError::BadPadding), "verdict");
            ensure!(fast.is_none_or(|verdict| verdict.is_err()), "the packet key opens it");
            Ok(())
        });
    }
}
