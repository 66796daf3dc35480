//! Opens, as their recipients, the replies and encrypted forward messages that the reference sent (packets.json).

use base64::Engine as _;
use mix::crypto::SurbKey;
use mix::crypto::pk::PrivateKey;
use mix::packet::{Handle, Payload};
use mix::payload::compress::{decompress, expansion_limit};
use mix::payload::decode::{Decoded, DecodingKeys, OpenedWith, Undecodable, decode};
use mix::payload::{Content, InvalidPayload};
use serde_json::Value;

fn packets() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/packets.json");
    serde_json::from_slice(&std::fs::read(path).expect("the vector file")).expect("JSON")
}

fn cases<'a>(file: &'a Value, part: &str) -> &'a [Value] {
    file[part].as_array().filter(|cases| !cases.is_empty()).expect("cases")
}

fn b64(entry: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(entry.as_str().expect("base64")).expect("base64")
}

fn hex(entry: &Value) -> Vec<u8> {
    let digits = entry.as_str().expect("hexadecimal").as_bytes();
    let value = |digit: &u8| u8::try_from(char::from(*digit).to_digit(16).expect("a digit")).expect("below 16");
    digits.chunks(2).map(|pair| pair.iter().fold(0, |octet, digit| octet << 4 | value(digit))).collect()
}

fn handle(entry: &Value) -> Handle {
    Handle(hex(entry).try_into().expect("20 octets"))
}

fn payload(entry: &Value) -> Payload {
    Payload::from_bytes(&b64(entry)).expect("28 KiB")
}

fn message(decoded: &Decoded) -> Vec<u8> {
    let Content::Singleton { compressed } = &decoded.content else { unreachable!("all are singletons") };
    decompress(compressed, expansion_limit(compressed.len())).expect("compressed text")
}

#[test]
fn replies_of_the_reference_open_with_the_key_of_their_reply_block() {
    let file = packets();
    // The others are reached by building and relaying only.
    let arrived = cases(&file, "reply").iter().filter(|case| case["delivered_payload_b64"].is_string());
    let mut opened = 0;
    for case in arrived {
        let keys = [SurbKey::new(b"of another identity".to_vec()), SurbKey::new(hex(&case["surb"]["user_key_hex"]))];
        let keys = DecodingKeys { surb_keys: &keys, private_keys: &[] };
        let arrived = payload(&case["delivered_payload_b64"]);
        let handle = handle(&case["delivered_tag_hex"]);
        let decoded = decode(&arrived, Some(&handle), &keys).expect("a reply");
        assert_eq!(decoded.opened_with, OpenedWith::SurbKey(1));
        assert_eq!(message(&decoded), case["reply_message"].as_str().expect("text").as_bytes());
        let others = DecodingKeys { surb_keys: &keys.surb_keys[..1], private_keys: &[] };
        assert_eq!(decode(&arrived, Some(&handle), &others), Err(Undecodable::NoKey));
        opened += 1;
    }
    assert!(opened > 0, "no reply was opened");
}

#[test]
fn encrypted_forward_messages_of_the_reference_open_with_keys_of_any_size() {
    let file = packets();
    let parts = cases(&file, "encrypted_forward");
    let keys: Vec<PrivateKey> = parts
        .iter()
        .map(|case| PrivateKey::from_der(&b64(&case["user_key_private_der_b64"])).expect("a key"))
        .collect();
    let keys = DecodingKeys { surb_keys: &[], private_keys: &keys };
    for (place, case) in parts.iter().enumerate() {
        let mut arrived = payload(&case["e2e_encoded_payload_b64"]);
        let handle = handle(&case["tag_hex"]);
        let decoded = decode(&arrived, Some(&handle), &keys).expect("an encrypted forward message");
        assert_eq!(decoded.opened_with, OpenedWith::PrivateKey(place));
        assert_eq!(message(&decoded), case["message"].as_str().expect("text").as_bytes());
        // Damage after the RSA block: it opens, but what comes out is no payload.
        arrived.as_mut_bytes()[20_000] ^= 1;
        let damaged = Err(Undecodable::Damaged(InvalidPayload::Checksum));
        assert_eq!(decode(&arrived, Some(&handle), &keys), damaged);
    }
}
