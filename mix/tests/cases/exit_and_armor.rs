//! exit_and_armor.json: what an exit hands to the recipient, text armour, message headers.

use mix::crypto::stream::{StreamKey, prng};
use mix::crypto::{CounterRng, sha1};
use mix::packet::{Handle, Payload};
use mix::payload::armor::{ArmoredMessage, InvalidArmor, message_to_text, messages_from_text};
use mix::payload::compress::decompress;
use mix::payload::encode::encode;
use mix::payload::headers::{self, InvalidHeader, MessageHeaders};
use mix::payload::{Capacity, Content, ExitContent};
use serde_json::Value;

use crate::{Tally, b64, ensure, ensure_eq, hex, list, text, to_hex};

/// What the reference takes and we refuse: it skips what is not base64.
const STRICTER_ARMOR: &str = "bad base64";

/// Runs all parts of the file.
pub fn run(file: &Value, tally: &mut Tally) {
    for (name, part) in file.as_object().expect("parts by name") {
        for (number, case) in list(part).iter().enumerate() {
            let check = match name.as_str() {
                "armor_parse" => armor,
                "delivery" => delivery,
                "encode_mail_headers" => encode_headers,
                _ => unknown,
            };
            let label = case.get("label").map_or("", text);
            tally.case(&format!("{name} {number} {label}"), || check(case));
        }
    }
}

fn unknown(_: &Value) -> Result<(), String> {
    Err("no runner knows this part".to_owned())
}

/// The vectors write octets above 0x7f as the characters of the same number.
fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("one octet")).collect()
}

fn armor(case: &Value) -> Result<(), String> {
    let ours = messages_from_text(&octets(text(&case["input"])));
    if text(&case["label"]) == STRICTER_ARMOR {
        ensure!(case["error"].is_null(), "the reference does not take it after all");
        ensure!(matches!(ours, Err(InvalidArmor::Base64 { .. })), "{ours:?} instead of a refusal");
        return Ok(());
    }
    if let Some(error) = case["error"].as_str() {
        let as_expected = match text(&case["label"]) {
            "missing end" | "quoted" => matches!(ours, Err(InvalidArmor::NoEnd { .. })),
            "unknown type" => ours == Err(InvalidArmor::MessageType),
            "enc missing handle" => ours == Err(InvalidArmor::MissingHandle),
            "enc short handle" => ours == Err(InvalidArmor::Handle),
            other => return Err(format!("unknown flaw {other}")),
        };
        ensure!(as_expected, "we have {ours:?}, the reference {error}");
        return Ok(());
    }
    let ours = ours.map_err(|e| e.to_string())?;
    ensure_eq!(ours.len(), list(&case["result"]).len(), "messages");
    for (found, expected) in ours.iter().zip(list(&case["result"])) {
        let (message_type, handle) = match &found.item {
            ArmoredMessage::Text(_) => ("TXT", None),
            ArmoredMessage::Binary(_) => ("BIN", None),
            ArmoredMessage::Overcompressed(_) => ("LONG", None),
            ArmoredMessage::Fragment(_) => ("FRAG", None),
            ArmoredMessage::Encrypted { handle, .. } => ("ENC", Some(to_hex(&handle.0))),
        };
        ensure_eq!(message_type, text(&expected["type"]), "type");
        ensure_eq!(handle.as_deref(), expected["tag_hex"].as_str(), "handle");
        ensure_eq!(to_hex(found.item.contents()), text(&expected["contents_hex"]), "contents");
    }
    Ok(())
}

fn delivery(case: &Value) -> Result<(), String> {
    if let Some(case) = case.get("parse_headers") {
        return parse_headers(case);
    }
    if case.get("tag_hex").is_some() {
        return encrypted(case);
    }
    if case["is_fragment"] == 1 {
        let payload = Payload::from_bytes(&b64(&case["payload_b64"])).map_err(|e| e.to_string())?;
        let content = ExitContent::from_payload(None, payload.clone()).map_err(|e| e.to_string())?;
        ensure_eq!(content, ExitContent::Fragment { payload }, "content");
        return check_head(case, &message_to_text(&content));
    }
    plain(case)
}

fn stream(key: &Value) -> StreamKey {
    StreamKey::new(hex(key).try_into().expect("16 octets"))
}

fn encrypted(case: &Value) -> Result<(), String> {
    ensure_eq!(text(&case["type"]), "enc", "type");
    let handle = Handle(hex(&case["tag_hex"]).try_into().expect("20 octets"));
    let payload = Payload::from_bytes(&prng(&stream(&case["payload_prng_key_hex"]), 28_672)).expect("28 KiB");
    let content = ExitContent::from_payload(Some(handle), payload.clone()).map_err(|e| e.to_string())?;
    ensure_eq!(content, ExitContent::Encrypted { handle, payload }, "content");
    check_head(case, &message_to_text(&content))
}

/// Long texts are given by their beginning and their digest.
fn check_head(case: &Value, ours: &[u8]) -> Result<(), String> {
    let head = octets(text(&case["text_encoded_head"]));
    ensure!(ours.starts_with(&head), "the armour begins in another way");
    ensure_eq!(to_hex(&sha1(&[ours]).0), text(&case["text_encoded_sha1_hex"]), "armour");
    Ok(())
}

/// From headers and body to the payload, and from that to what the exit hands over.
fn plain(case: &Value) -> Result<(), String> {
    let armour = octets(text(&case["text_encoded"]));
    let encoded_headers = headers::encode(&headers_of(&case["headers_in"])).map_err(|e| e.to_string())?;
    ensure_eq!(to_hex(&encoded_headers), text(&case["encoded_headers_hex"]), "headers");
    let message = match &case["body_b64"] {
        // The bomb is given in its armour only.
        Value::Null => inflated(&armour)?,
        body => [encoded_headers, b64(body)].concat(),
    };
    let mut rng = CounterRng::new(&stream(&case["payload_padding_prng_key_hex"]));
    let mut payloads = encode(&message, Capacity::Plain, None, &mut rng).map_err(|e| e.to_string())?;
    ensure_eq!(payloads.len(), 1, "payloads");
    let payload = payloads.remove(0).into_payload().map_err(|e| e.to_string())?;
    ensure_eq!(to_hex(&sha1(&[payload.as_bytes()]).0), text(&case["payload_sha1_hex"]), "payload");
    let Ok(Content::Singleton { compressed }) = Content::read(payload.as_bytes()) else {
        return Err("not a singleton".to_owned());
    };
    let content = ExitContent::from_payload(Some(Handle([0; 20])), payload).map_err(|e| e.to_string())?;
    match text(&case["type"]) {
        "plain" => {
            let expected =
                ExitContent::Plain { headers: headers_of(&case["headers_out"]), body: b64(&case["body_b64"]) };
            ensure!(content == expected, "other headers or another body come out");
        }
        "long" => ensure_eq!(content, ExitContent::Overcompressed { compressed }, "content"),
        other => return Err(format!("unknown type {other}")),
    }
    ensure_eq!(to_hex(&message_to_text(&content)), to_hex(&armour), "armour");
    Ok(())
}

fn inflated(armour: &[u8]) -> Result<Vec<u8>, String> {
    let found = messages_from_text(armour).map_err(|e| e.to_string())?;
    let [found] = found.as_slice() else { return Err("not one message".to_owned()) };
    decompress(found.item.contents(), 1 << 24).map_err(|e| e.to_string())
}

/// The headers that mails may have. All others must be left out (E2E-spec 3.1.2), and we do it while parsing.
fn headers_of(map: &Value) -> MessageHeaders {
    let value = |name| map.get(name).map(|value| text(value).to_owned());
    MessageHeaders {
        subject: value("SUBJECT"),
        from: value("FROM"),
        in_reply_to: value("IN-REPLY-TO"),
        references: value("REFERENCES"),
    }
}

fn parse_headers(case: &Value) -> Result<(), String> {
    let input = hex(&case["input_hex"]);
    let (headers, body) = headers::parse(&input);
    ensure!(headers == headers_of(&case["headers"]), "other headers");
    ensure_eq!(to_hex(body), text(&case["body_hex"]), "body");
    Ok(())
}

fn encode_headers(case: &Value) -> Result<(), String> {
    let value = |name| case["args"].get(name).map(|value| text(value).to_owned());
    let headers = MessageHeaders {
        subject: value("subject"),
        from: value("fromAddr"),
        in_reply_to: value("inReplyTo"),
        references: value("references"),
    };
    let ours = headers::encode(&headers);
    match case.get("error").map(text) {
        None => ensure_eq!(ours.map(|ours| to_hex(&ours)), Ok(text(&case["output_hex"]).to_owned()), "headers"),
        Some("MixError") => ensure!(matches!(ours, Err(InvalidHeader::NotAName { .. })), "{ours:?}"),
        Some("ParseError") => {
            ensure!(matches!(ours, Err(InvalidHeader::NotPrintable { .. } | InvalidHeader::TooLong { .. })), "{ours:?}")
        }
        Some(other) => return Err(format!("unknown verdict {other}")),
    }
    Ok(())
}
