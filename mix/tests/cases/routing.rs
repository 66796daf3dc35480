//! routing.json: routing types, routing info, subheaders.

use mix::crypto::keyset::SharedSecret;
use mix::crypto::{Digest, KeyId};
use mix::packet::routing::InvalidRouting;
use mix::packet::subheader::{self, Subheader, underflow_len};
use mix::packet::{HostName, HostRoute, InvalidPacket, Ipv4Route, RoutingType};
use mix::path::address::{ExitAddress, InvalidAddress, Mailbox};
use serde_json::Value;

use crate::{Tally, both_refuse, ensure_eq, hex, list, text, to_hex, we_refuse, we_take};

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
    let as_text = || String::from_utf8(input.clone()).map_err(|_| Refused::NoText);
    let repacked = match text(&case["kind"]) {
        "host" => HostRoute::parse(&input).map(|route| route.to_bytes()).map_err(Refused::Routing),
        "ipv4" => Ipv4Route::parse(&input).map(|route| route.to_bytes()).map_err(Refused::Routing),
        "smtp" => as_text().and_then(|text| Mailbox::parse(&text).map_err(Refused::Mailbox)).map(|m| m.as_str().into()),
        "mbox" if input.is_empty() => ExitAddress::parse("mbox:").map(|a| a.routing().1).map_err(Refused::Mailbox),
        // Any other octets name a user of the exit; only the exit knows which do.
        "mbox" => Ok(input.clone()),
        other => return Err(format!("unknown kind {other}")),
    };
    match (case["ok"].as_bool().unwrap(), repacked) {
        (true, Ok(repacked)) => {
            ensure_eq!(to_hex(&repacked), text(&case["repacked_hex"]), "repacked");
            Ok(())
        }
        (true, Err(ours)) => {
            let row = match ours {
                Refused::Mailbox(InvalidAddress::LeadingPipe) => Some("mailbox that begins with a pipe sign"),
                Refused::Mailbox(InvalidAddress::LongMailbox { .. }) => Some("mailbox longer than mail servers take"),
                _ => None,
            };
            we_refuse(row, &ours)
        }
        (false, Ok(_)) => we_take(None, text(&case["error"])),
        (false, Err(ours)) => both_refuse(text(&case["error"]), same_reason(&ours, text(&case["error"])), &ours),
    }
}

/// Why routing info or an address was refused.
#[derive(Debug)]
enum Refused {
    Routing(InvalidRouting),
    Mailbox(InvalidAddress),
    NoText,
}

/// Whether our refusal has the reason of the reference's.
fn same_reason(ours: &Refused, theirs: &str) -> Option<bool> {
    Some(match theirs {
        _ if theirs.contains("too short") || theirs.contains("wrong length") => {
            matches!(ours, Refused::Routing(InvalidRouting::Length { .. }))
        }
        _ if theirs.contains("Nonsensical hostname") => matches!(ours, Refused::Routing(InvalidRouting::HostName)),
        _ if theirs.contains("mailbox") => matches!(ours, Refused::Mailbox(_) | Refused::NoText),
        _ => return None,
    })
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
    let parsed = match Subheader::parse(&packed) {
        // The reference finds that out when it takes the rest from the header.
        Err(InvalidPacket::RoutingInfoOverrun { .. }) if info.len() > mix::packet::HEADER_LEN => {
            return we_refuse(Some("routing info longer than the header"), &info.len());
        }
        parsed => parsed.map_err(|e| e.to_string())?,
    };
    let overflow = &info[info.len() - parsed.overflow_len()..];
    ensure_eq!(to_hex(overflow), text(&case["overflow_hex"]), "overflow");
    ensure_eq!(parsed.split_inner(), (&info[..info.len() - overflow.len()], &underflow[..]), "parsed");
    ensure_eq!((parsed.secret, parsed.digest, parsed.routing_type), (secret, digest, routing_type), "fields");
    Ok(())
}
