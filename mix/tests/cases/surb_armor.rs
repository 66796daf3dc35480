//! The reply blocks of text_formats.json: in text armour, and binary.

use mix::packet::Surb;
use mix::payload::armor::{Found, InvalidArmor, surb_to_text, surbs_from_text};
use serde_json::Value;

use super::exit_and_armor::{has_other_armor, same_flaw, stricter};
use crate::{Tally, b64, both_refuse, ensure, ensure_eq, hex, list, text, to_hex, we_differ, we_refuse, we_take};

/// Runs the part `surb_parse`.
pub fn run(part: &Value, tally: &mut Tally) {
    for case in list(part) {
        tally.case(text(&case["label"]), || reply_blocks(case));
    }
}

fn reply_blocks(case: &Value) -> Result<(), String> {
    let Some(input) = case.get("input") else {
        let octets = b64(&case["input_b64"]);
        let row = octets.first().is_some_and(u8::is_ascii_whitespace).then_some("form feed between reply blocks");
        return check(case, Surb::parse_many(&octets), row);
    };
    let input = text(input);
    let found = surbs_from_text(input.as_bytes());
    if let Ok(found) = &found {
        // Of several in one armour the last counts.
        if input.matches("Version: ").count() == input.matches("-----BEGIN ").count() {
            let known_version = input.contains("Version: 0.2\n") || input.contains("Version: 0.2\r\n");
            ensure!(found.iter().all(|found| found.item.known_version == known_version), "the version is told wrongly");
        }
        for Found { item, .. } in found {
            let again = surbs_from_text(surb_to_text(&item.surb).as_bytes()).map_err(|e| e.to_string())?;
            ensure!(again.len() == 1 && again[0].item.surb == item.surb, "another block when written and read again");
        }
    }
    let others = has_other_armor(input.as_bytes(), "TYPE III REPLY BLOCK").then_some("armour of other kinds");
    check(case, found.map(|found| found.into_iter().map(|found| found.item.surb).collect()), others)
}

/// Compares with the verdict of the reference.
fn check<E: Into<InvalidArmor>>(case: &Value, ours: Result<Vec<Surb>, E>, row: Option<&str>) -> Result<(), String> {
    match (case["error"].as_str(), ours.map_err(Into::into)) {
        (Some(theirs), Err(ours)) => both_refuse(theirs, same_flaw(theirs, &ours), &ours),
        (Some(theirs), Ok(_)) => we_take(row, theirs),
        (None, Err(ours)) => we_refuse(stricter(&ours), &ours),
        (None, Ok(ours)) if row.is_some() && ours.len() != list(&case["result"]).len() => {
            row.into_iter().for_each(we_differ);
            Ok(())
        }
        (None, Ok(ours)) => {
            ensure_eq!(ours.len(), list(&case["result"]).len(), "reply blocks");
            ours.iter().zip(list(&case["result"])).try_for_each(|(surb, expected)| reply_block(surb, expected))
        }
    }
}

fn reply_block(surb: &Surb, expected: &Value) -> Result<(), String> {
    let (routing_type, info) = surb.swap_routing();
    ensure_eq!(Some(u64::from(surb.use_by)), expected["expires"].as_u64(), "expiry");
    let (theirs, lower) = (hex(&expected["routing_info_hex"]), |octets: &[u8]| octets.to_ascii_lowercase());
    if info != theirs {
        // Port and key id are no letters, so only the host may differ, and only in its capitals.
        ensure!(
            info.get(..22) == theirs.get(..22) && info.get(22..).map(lower) == theirs.get(22..).map(lower),
            "routing info"
        );
        we_differ("capitals in the host of a reply block");
    } else {
        ensure_eq!(surb.digest().to_string(), text(&expected["hex_digest"]), "digest");
    }
    ensure_eq!(Some(u64::from(routing_type.0)), expected["routing_type"].as_u64(), "routing type");
    ensure_eq!(to_hex(surb.key.expose()), text(&expected["shared_key_hex"]), "key");
    Ok(())
}
