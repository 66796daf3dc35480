//! The reply blocks of text_formats.json: in text armour, and binary.

use mix::packet::Surb;
use mix::packet::surb::InvalidSurb;
use mix::payload::armor::{InvalidArmor, surb_to_text, surbs_from_text};
use serde_json::Value;

use crate::{Tally, b64, ensure, ensure_eq, list, text, to_hex};

/// Runs the part `surb_parse`.
pub fn run(part: &Value, tally: &mut Tally) {
    for case in list(part) {
        tally.case(text(&case["label"]), || reply_blocks(case));
    }
}

fn reply_blocks(case: &Value) -> Result<(), String> {
    let Some(input) = case.get("input") else { return check(case, Surb::parse_many(&b64(&case["input_b64"]))) };
    let input = text(input);
    let found = surbs_from_text(input.as_bytes());
    if let Ok(found) = &found {
        let known_version = input.contains("Version: 0.2\n");
        ensure!(found.iter().all(|found| found.item.known_version == known_version), "the version is told wrongly");
    }
    check(case, found.map(|found| found.into_iter().map(|found| found.item.surb).collect()))?;
    if case["error"].is_null() && text(&case["label"]) == "three ascii" {
        let again: String = surbs_from_text(input.as_bytes())
            .map_err(|e| e.to_string())?
            .iter()
            .map(|found| surb_to_text(&found.item.surb))
            .collect();
        ensure_eq!(again, input, "written again");
    }
    Ok(())
}

/// Compares with the verdict of the reference, or with ours where its verdict is a defect.
fn check<E: Into<InvalidArmor>>(case: &Value, ours: Result<Vec<Surb>, E>) -> Result<(), String> {
    let ours = ours.map_err(Into::into);
    let label = text(&case["label"]);
    let refusal = match label {
        "ascii bad magic" => Some(InvalidArmor::Surb(InvalidSurb::Magic)),
        "binary surb version 0.2" => Some(InvalidArmor::Surb(InvalidSurb::Version { major: 0, minor: 2 })),
        "truncated" | "truncated routing info (reference accepts?)" => {
            ensure!(case["error"].is_string(), "the reference takes it after all");
            ensure!(matches!(ours, Err(InvalidArmor::Surb(InvalidSurb::Truncated { .. }))), "{ours:?}");
            return Ok(());
        }
        "missing end" => Some(InvalidArmor::NoEnd { kind: "TYPE III REPLY BLOCK" }),
        // A defect of the reference: two texts would be one reply block to it. ("bad base64" has none after all.)
        "extra trailing data (reference accepts?)" => {
            ensure!(matches!(ours, Err(InvalidArmor::Surb(InvalidSurb::Trailing { .. }))), "{ours:?}");
            return Ok(());
        }
        _ => None,
    };
    if let Some(refusal) = refusal {
        ensure_eq!(ours, Err(refusal), "refusal");
        return Ok(());
    }
    ensure!(case["error"].is_null(), "no runner knows this flaw");
    let ours = ours.map_err(|e| e.to_string())?;
    ensure_eq!(ours.len(), list(&case["result"]).len(), "reply blocks");
    ours.iter().zip(list(&case["result"])).try_for_each(|(surb, expected)| reply_block(surb, expected))
}

fn reply_block(surb: &Surb, expected: &Value) -> Result<(), String> {
    let (routing_type, info) = surb.swap_routing();
    ensure_eq!(Some(u64::from(surb.use_by)), expected["expires"].as_u64(), "expiry");
    ensure_eq!(surb.digest().to_string(), text(&expected["hex_digest"]), "digest");
    ensure_eq!(Some(u64::from(routing_type.0)), expected["routing_type"].as_u64(), "routing type");
    ensure_eq!(to_hex(&info), text(&expected["routing_info_hex"]), "routing info");
    ensure_eq!(to_hex(surb.key.expose()), text(&expected["shared_key_hex"]), "key");
    Ok(())
}
