//! routing.json: routing types, routing info, subheaders.

use mix::crypto::keyset::SharedSecret;
use mix::crypto::{Digest, KeyId};
use mix::packet::routing::InvalidRouting;
use mix::packet::subheader::{self, Subheader, underflow_len};
use mix::packet::{HostName, HostRoute, Ipv4Route, RoutingType};
use mix::path::address::{ExitAddress, Mailbox};
use serde_json::Value;

use crate::{Tally, ensure, ensure_eq, hex, list, text, to_hex};

pub fn run(file: &Value, tally: &mut Tally) {
    for (part, value) in file.as_object().unwrap() {
        match part.as_str() {
            "types" => {
                for (name, number) in value.as_object().unwrap() {
                    tally.case(name, || type_case(name, number.as_u64().unwrap() as u16));
                }
            }
            "pack" => list(value).iter().for_each(|case| tally.case("pack", || pack_case(case))),
            "parse" => list(value).iter().for_each(|case| tally.case("parse", || parse_case(case))),
            "subheader" => list(value).iter().for_each(|case| tally.case("subheader", || subheader_case(case))),
            "note" | "notes" => {}
            other => tally.case(other, || Err("unknown kind of case".into())),
        }
    }
}

fn type_case(name: &str, number: u16) -> Result<(), String> {
    let ours = match name {
        "DROP" => RoutingType::DROP,
        "FWD_IPV4" => RoutingType::FWD_IPV4,
        "SWAP_FWD_IPV4" => RoutingType::SWAP_FWD_IPV4,
        "FWD_HOST" => RoutingType::FWD_HOST,
        "SWAP_FWD_HOST" => RoutingType::SWAP_FWD_HOST,
        "MIN_EXIT" => RoutingType::MIN_EXIT,
        "MAX_EXIT" => RoutingType(u16::MAX),
        "SMTP" => RoutingType::SMTP,
        "MBOX" => RoutingType::MBOX,
        "FRAGMENT" => RoutingType::FRAGMENT,
        "PING" => RoutingType::PING,
        // No exit ever delivered news; the number is an exit type like any other.
        "NEWS" => RoutingType(0x0104),
        other => return Err(format!("unknown type {other}")),
    };
    ensure_eq!(ours, RoutingType(number), "number");
    Ok(())
}

fn pack_case(case: &Value) -> Result<(), String> {
    let key_id = KeyId(hex(&case["keyid_hex"]).try_into().unwrap());
    let port = u16::try_from(case["port"].as_u64().unwrap()).unwrap();
    let packed = match text(&case["kind"]) {
        "host" => {
            let host = HostName::parse(text(&case["host_in"])).unwrap();
            ensure_eq!(host.as_str(), text(&case["host_out"]), "host");
            HostRoute { host, port, key_id }.to_bytes()
        }
        "ipv4" => Ipv4Route { address: text(&case["ip"]).parse().unwrap(), port, key_id }.to_bytes(),
        other => return Err(format!("unknown kind {other}")),
    };
    ensure_eq!(to_hex(&packed), text(&case["packed_hex"]), "packed");
    Ok(())
}

fn parse_case(case: &Value) -> Result<(), String> {
    let input = hex(&case["input_hex"]);
    let as_text = || String::from_utf8(input.clone()).map_err(|e| e.to_string());
    let repacked = match text(&case["kind"]) {
        "host" => HostRoute::parse(&input).map(|route| route.to_bytes()).map_err(|e| refusal(e, case)),
        "ipv4" => Ipv4Route::parse(&input).map(|route| route.to_bytes()).map_err(|e| refusal(e, case)),
        "smtp" => Mailbox::parse(&as_text()?).map(|mailbox| mailbox.as_str().into()).map_err(|_| Ok(())),
        "mbox" if input.is_empty() => ExitAddress::parse("mbox:").map(|a| a.routing().1).map_err(|_| Ok(())),
        // Any other octets name a user of the exit; only the exit knows which do.
        "mbox" => Ok(input.clone()),
        other => return Err(format!("unknown kind {other}")),
    };
    match (case["ok"].as_bool().unwrap(), repacked) {
        (true, Ok(repacked)) => ensure_eq!(to_hex(&repacked), text(&case["repacked_hex"]), "repacked"),
        (false, Err(verdict)) => verdict?,
        (_, ours) => return Err(format!("we have {ours:?}, the reference {}", case["ok"])),
    }
    Ok(())
}

/// Whether our refusal has the reason of the reference's.
fn refusal(ours: InvalidRouting, case: &Value) -> Result<(), String> {
    let theirs = text(&case["error"]);
    let expected = match ours {
        InvalidRouting::Length { .. } => theirs.contains("too short") || theirs.contains("wrong length"),
        InvalidRouting::HostName => theirs.contains("Nonsensical hostname"),
        _ => false,
    };
    ensure!(expected, "we say {ours}, the reference {theirs}");
    Ok(())
}

fn subheader_case(case: &Value) -> Result<(), String> {
    let info = hex(&case["routing_info_hex"]);
    let secret = SharedSecret::new(hex(&case["secret_hex"]).try_into().unwrap());
    let digest = Digest(hex(&case["digest_hex"]).try_into().unwrap());
    let routing_type = RoutingType(case["routing_type"].as_u64().unwrap() as u16);
    ensure_eq!(underflow_len(info.len()) as u64, case["underflow_len"].as_u64().unwrap(), "underflow");
    let underflow = vec![0xAA; underflow_len(info.len())];
    let packed = subheader::pack(&secret, &digest, routing_type, &info, &underflow);
    ensure_eq!(to_hex(&packed[..packed.len() - underflow.len()]), text(&case["packed_hex"]), "packed");
    let parsed = Subheader::parse(&packed).map_err(|e| e.to_string())?;
    let overflow = &info[info.len() - parsed.overflow_len()..];
    ensure_eq!(to_hex(overflow), text(&case["overflow_hex"]), "overflow");
    ensure_eq!(parsed.split_inner(), (&info[..info.len() - overflow.len()], &underflow[..]), "parsed");
    ensure_eq!((parsed.secret, parsed.digest, parsed.routing_type), (secret, digest, routing_type), "fields");
    Ok(())
}
