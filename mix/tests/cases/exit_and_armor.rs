//! exit_and_armor.json: what an exit hands to the recipient, text armour, message headers.

use mix::crypto::stream::{StreamKey, prng};
use mix::crypto::{CounterRng, sha1};
use mix::packet::surb::InvalidSurb;
use mix::packet::{Handle, Payload};
use mix::payload::armor::{ArmoredMessage, Found, InvalidArmor, message_to_text, messages_from_text};
use mix::payload::compress::decompress;
use mix::payload::encode::encode;
use mix::payload::headers::{self, InvalidHeader, MessageHeaders};
use mix::payload::{Capacity, Content, ExitContent};
use serde_json::Value;

use crate::{Tally, b64, both_refuse, ensure, ensure_eq, hex, list, text, to_hex, we_differ, we_refuse, we_take};

/// Runs all parts of the file.
pub fn run(file: &Value, tally: &mut Tally) {
    for (name, part) in file.as_object().expect("parts by name") {
        if !["armor_parse", "delivery", "encode_mail_headers"].contains(&name.as_str()) {
            tally.fail(name, "no runner knows this part");
            continue;
        }
        for (number, case) in list(part).iter().enumerate() {
            let check = match name.as_str() {
                "armor_parse" => armor,
                "delivery" => delivery,
                _ => encode_headers,
            };
            let label = case.get("label").map_or("", text);
            tally.case(&format!("{name} {number} {label}"), || check(case));
        }
    }
}

/// The vectors write octets above 0x7f as the characters of the same number.
fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("one octet")).collect()
}

fn armor(case: &Value) -> Result<(), String> {
    let input = octets(text(&case["input"]));
    let others = has_other_armor(&input, "TYPE III ANONYMOUS MESSAGE");
    match (case["error"].as_str(), messages_from_text(&input)) {
        (Some(theirs), Err(ours)) => both_refuse(theirs, same_flaw(theirs, &ours), &ours),
        (Some(theirs), Ok(_)) => we_take(others.then_some(OTHER_ARMOR).or(two_types(&input)), theirs),
        (None, Err(ours)) => we_refuse(stricter(&ours).or(others.then_some(OTHER_ARMOR)), &ours),
        // What stands within a block of another kind is read here and passed over there.
        (None, Ok(ours)) if others && ours.len() != list(&case["result"]).len() => {
            we_differ(OTHER_ARMOR);
            Ok(())
        }
        // The last counts here; there any makes it base64.
        (None, Ok(ours)) => same_messages(case, &ours).or_else(|why| two_types(&input).map(we_differ).ok_or(why)),
    }
}

fn two_types(text: &[u8]) -> Option<&'static str> {
    let count = |word: &[u8]| text.windows(word.len()).filter(|window| *window == word).count();
    (count(b"Message-type:") > count(b"-----BEGIN ")).then_some("several Message-types in one armour")
}

const OTHER_ARMOR: &str = "armour of other kinds";

/// Whether a BEGIN line of another kind is in the text.
pub fn has_other_armor(text: &[u8], kind: &str) -> bool {
    let ours = format!("{kind}-----");
    let kinds = text.split(|octet| *octet == b'\n').filter_map(|line| line.strip_prefix(b"-----BEGIN "));
    kinds.into_iter().any(|other| !other.starts_with(ours.as_bytes()))
}

/// The row of INTEROP.md for a flaw that the reference does not mind.
pub fn stricter(ours: &InvalidArmor) -> Option<&'static str> {
    match ours {
        InvalidArmor::Base64 { .. } | InvalidArmor::Handle => Some("characters that are not base64 in armour"),
        InvalidArmor::Header { .. } => Some("line before the first empty line without a colon"),
        InvalidArmor::CutByGateway { .. } => Some("armour that a gateway has cut before its first line"),
        InvalidArmor::UnexpectedHandle => Some("Decoding-handle on a message that is not encrypted"),
        InvalidArmor::Surb(InvalidSurb::Trailing { .. }) => Some("octets behind a reply block"),
        InvalidArmor::Surb(InvalidSurb::Truncated { .. }) => Some("reply block that is cut short"),
        InvalidArmor::Surb(InvalidSurb::FirstHop(_)) => Some("reply block that begins without a swap"),
        _ => None,
    }
}

/// Whether our refusal has the cause of the reference's. Of several flaws in one text either may name the first it meets.
pub fn same_flaw(theirs: &str, ours: &InvalidArmor) -> Option<bool> {
    use InvalidArmor as E;
    let same = match theirs {
        // Of another kind: theirs to say, since it reads no further. We do.
        _ if theirs.contains("find end line for") && !theirs.contains("for 'type iii ") => true,
        _ if theirs.contains("find end line") => matches!(ours, E::NoEnd { .. }),
        _ if theirs.contains("Bad header for") => matches!(ours, E::Header { .. }),
        // It decodes before it looks at the type.
        _ if theirs.contains("Incorrect padding") => matches!(ours, E::Base64 { .. } | E::Handle | E::MessageType),
        _ if theirs.contains("Unknown message type") => *ours == E::MessageType,
        _ if theirs.contains("Impossible tag length") => *ours == E::Handle,
        _ if theirs.contains("must be string or buffer, not None") => *ours == E::MissingHandle,
        _ if theirs.contains("to be truncated by") => matches!(ours, E::CutByGateway { .. }),
        _ if theirs.contains("Unrecognized version on reply block") => {
            matches!(ours, E::Surb(InvalidSurb::Version { .. }))
        }
        _ if theirs.contains("extra data") => {
            matches!(ours, E::Surb(InvalidSurb::Trailing { .. } | InvalidSurb::Truncated { .. }))
        }
        _ if theirs.contains("Reply block too short") => matches!(ours, E::Surb(InvalidSurb::Truncated { .. })),
        _ if theirs.contains("Misformatted reply block") => matches!(ours, E::Surb(_)),
        _ => return None,
    };
    Some(same || stricter(ours).is_some())
}

fn same_messages(case: &Value, ours: &[Found<ArmoredMessage>]) -> Result<(), String> {
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
        content_type: None,
    }
}

fn parse_headers(case: &Value) -> Result<(), String> {
    let input = hex(&case["input_hex"]);
    let (headers, body) = headers::parse(&input);
    let mut expected = headers_of(&case["headers"]);
    if expected.from.as_ref().is_some_and(|from| from.contains(['"', '[', ']', ':'])) {
        we_differ("FROM with one of \"[]:");
        ensure!(headers.from != expected.from, "a FROM that is no name");
        expected.from.clone_from(&headers.from);
    }
    ensure!(headers == expected, "other headers");
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
        content_type: None,
    };
    let theirs = case["error"].as_str();
    match (theirs, headers::encode(&headers)) {
        (None, Ok(ours)) => ensure_eq!(to_hex(&ours), text(&case["output_hex"]), "headers"),
        (None, Err(ours)) => return we_refuse(None, &ours),
        (Some(theirs), Ok(_)) => return we_take(None, theirs),
        (Some(theirs), Err(ours)) => {
            let not_a_name = matches!(ours, InvalidHeader::NotAName { .. });
            let agreed = match theirs {
                _ if theirs.starts_with("MixError") => Some(not_a_name),
                _ if theirs.starts_with("ParseError") => Some(!not_a_name),
                _ => None,
            };
            return both_refuse(theirs, agreed, &ours);
        }
    }
    Ok(())
}
