//! payloads.json: compression, the erasure code, singletons, fragmented messages, parsing.

use mix::crypto::stream::{StreamKey, prng};
use mix::crypto::{CounterRng, sha1};
use mix::packet::RoutingType;
use mix::packet::build::Exit;
use mix::payload::compress::{InvalidCompression, compress, decompress, expansion_limit};
use mix::payload::encode::{count, encode};
use mix::payload::fec::ErasureCode;
use mix::payload::fragment::{Addition, Fragmentation, InvalidFragment, Reassembly};
use mix::payload::{Capacity, Content, EncodedPayload, ExitContent, Fragment, InvalidPayload};
use serde_json::Value;

use crate::{Tally, b64, both_refuse, ensure, ensure_eq, hex, list, text, to_hex, we_refuse, we_take};

/// Runs all parts of the file.
pub fn run(file: &Value, tally: &mut Tally) {
    for (name, part) in file.as_object().expect("parts by name") {
        match name.as_str() {
            "compress" => each(part, "label", tally, compression),
            "uncompress" => each(part, "label", tally, inflation),
            "zlib_bomb_limit" => each(part, "zero_bytes", tally, bomb_limit),
            "fec" => each(part, "k", tally, erasure_code),
            "fragmentation_params" => each(part, "length", tally, fragmentation),
            "singleton" => each(part, "id", tally, singleton),
            "fragmented" => each(part, "id", tally, fragmented),
            "parse" => parsing(part, tally),
            other => tally.case(other, || Err("no runner knows this part".to_owned())),
        }
    }
}

/// A part is a list of cases, or has one next to its note.
fn each(part: &Value, name: &str, tally: &mut Tally, check: fn(&Value) -> Result<(), String>) {
    for case in list(part.get("cases").unwrap_or(part)) {
        tally.case(&case[name].to_string(), || check(case));
    }
}

fn number(entry: &Value) -> usize {
    entry.as_u64().expect("a number").try_into().expect("fits")
}

fn stream(key: &Value) -> StreamKey {
    StreamKey::new(hex(key).try_into().expect("16 octets"))
}

fn capacity(overhead: &Value) -> Capacity {
    match number(overhead) {
        0 => Capacity::Plain,
        38 => Capacity::EncryptedForward,
        other => unreachable!("no capacity has an overhead of {other}"),
    }
}

/// The message, given as text or as the beginning of a key stream.
fn message(case: &Value) -> Vec<u8> {
    let message = match case.get("message") {
        Some(given) => text(given).as_bytes().to_vec(),
        None => prng(&stream(&case["message_prng_key_hex"]), number(&case["message_len"])),
    };
    assert_eq!(to_hex(&sha1(&[&message]).0), text(&case["message_sha1_hex"]), "the message itself");
    message
}

fn compression(case: &Value) -> Result<(), String> {
    let input = case.get("input_b64").map_or_else(|| vec![0; number(&case["length"])], b64);
    let compressed = compress(&input);
    ensure_eq!(to_hex(&compressed), to_hex(&b64(&case["compressed_b64"])), "compressed");
    ensure_eq!(decompress(&compressed, input.len()), Ok(input), "inflated");
    Ok(())
}

fn inflation(case: &Value) -> Result<(), String> {
    let limit = case["max_length"].as_u64().map_or(0, |limit| limit.try_into().expect("fits"));
    // No limit at all, and one of nothing, are the same to the reference.
    let limit = if limit == 0 { 1 << 20 } else { limit };
    let ours = decompress(&b64(&case["input_b64"]), limit);
    let (theirs, ours) = match (case["error"].as_str(), ours) {
        (None, ours) => {
            ensure_eq!(ours, Ok(b64(&case["output_b64"])), "inflated");
            return Ok(());
        }
        (Some(theirs), Ok(_)) => return we_take(None, theirs),
        (Some(theirs), Err(ours)) => (theirs, ours),
    };
    let expected = match theirs {
        _ if theirs.starts_with("CompressedDataTooLong") => Some(InvalidCompression::Overcompressed { limit }),
        _ if theirs.starts_with("ParseError: Error in compressed data") => Some(InvalidCompression::Corrupt),
        "ParseError: Invalid zlib header" => Some(InvalidCompression::Header),
        _ => None,
    };
    both_refuse(theirs, expected.map(|expected| expected == ours), &ours)
}

fn bomb_limit(case: &Value) -> Result<(), String> {
    let compressed = compress(&vec![0; number(&case["zero_bytes"])]);
    ensure_eq!(compressed.len(), number(&case["compressed_len"]), "compressed length");
    let limit = expansion_limit(compressed.len());
    ensure_eq!(limit, number(&case["limit"]), "limit");
    let ours = decompress(&compressed, limit).map(|text| text.len());
    match case["error"].as_str() {
        None => ensure_eq!(ours, Ok(number(&case["result_len"])), "inflated length"),
        Some(theirs) => {
            let known = theirs.starts_with("CompressedDataTooLong");
            let overcompressed = ours == Err(InvalidCompression::Overcompressed { limit });
            ensure!(ours.is_err(), "{theirs}");
            return both_refuse(theirs, known.then_some(overcompressed), &ours);
        }
    }
    Ok(())
}

fn erasure_code(case: &Value) -> Result<(), String> {
    let code = ErasureCode::new(number(&case["k"]), number(&case["n"])).map_err(|e| e.to_string())?;
    let data: Vec<Vec<u8>> = list(&case["blocks_hex"]).iter().map(hex).collect();
    let blocks: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let encoded: Vec<Vec<u8>> = list(&case["encoded_hex"]).iter().map(hex).collect();
    ensure_eq!(encoded.len(), code.n(), "blocks");
    for (index, expected) in encoded.iter().enumerate() {
        ensure_eq!(code.encode(index, &blocks).as_ref(), Ok(expected), format!("block {index}"));
    }
    for subset in list(&case["decodable_subsets"]) {
        let received: Vec<(usize, &[u8])> =
            list(subset).iter().map(number).map(|index| (index, encoded[index].as_slice())).collect();
        ensure_eq!(code.decode(&received), Ok(data.concat()), format!("data from {subset}"));
    }
    Ok(())
}

fn fragmentation(case: &Value) -> Result<(), String> {
    let length = number(&case["length"]).try_into().expect("32 bits");
    let capacity = capacity(&case["overhead"]);
    let ours = Fragmentation::new(length, capacity);
    if case.get("error").is_some() {
        ensure_eq!(ours, Err(InvalidFragment::MessageLen { len: length }), "refusal");
        return Ok(());
    }
    let ours = ours.map_err(|e| e.to_string())?;
    ensure_eq!(capacity.fragment_len(), number(&case["capacity"]), "capacity");
    ensure_eq!(ours.k() as usize, number(&case["k"]), "K");
    ensure_eq!(ours.n() as usize, number(&case["n"]), "N");
    ensure_eq!(ours.chunks() as usize, number(&case["n_chunks"]), "chunks");
    ensure_eq!(ours.padded_len() - length as usize, number(&case["padding"]), "padding");
    Ok(())
}

fn singleton(case: &Value) -> Result<(), String> {
    let message = message(case);
    let capacity = capacity(&case["overhead"]);
    let mut rng = CounterRng::new(&stream(&case["padding_prng_key_hex"]));
    let payloads = encode(&message, capacity, None, &mut rng).map_err(|e| e.to_string())?;
    let [payload] = payloads.as_slice() else { return Err(format!("{} payloads", payloads.len())) };
    ensure_eq!(count(&message, capacity, None), Ok(1), "count");
    let octets = payload.as_bytes();
    ensure_eq!(octets.len(), number(&case["payload_len"]), "length");
    ensure_eq!(to_hex(&octets[..64]), text(&case["payload_head64_hex"]), "head");
    ensure_eq!(to_hex(&octets[2..22]), text(&case["data_hash_hex"]), "digest");
    ensure_eq!(to_hex(&sha1(&[octets]).0), text(&case["payload_sha1_hex"]), "payload");
    if let Some(whole) = case.get("payload_b64") {
        ensure_eq!(octets, b64(whole).as_slice(), "payload");
    }
    let Ok(Content::Singleton { compressed }) = Content::read(octets) else { return Err("does not read".to_owned()) };
    ensure_eq!(compressed.len(), number(&case["size_field"]), "size");
    ensure!(decompress(&compressed, message.len()).as_ref() == Ok(&message), "another message comes out");
    Ok(())
}

fn fragmented(case: &Value) -> Result<(), String> {
    let message = message(case);
    let capacity = capacity(&case["overhead"]);
    let exit = exit_of_prefix(&hex(&case["prefix_hex"]));
    ensure_eq!(count(&message, capacity, exit.as_ref()), Ok(list(&case["fragments"]).len()), "count");
    let mut rng = CounterRng::new(&stream(&case["common_seed_hex"]));
    let payloads = encode(&message, capacity, exit.as_ref(), &mut rng).map_err(|e| e.to_string())?;
    check_payloads(case, &payloads)?;
    for dropped in list(&case["drop_sets"]) {
        let dropped: Vec<usize> = list(dropped).iter().map(number).collect();
        let reassembled = reassemble(&payloads, &dropped)?;
        ensure_eq!(reassembled.len(), number(&case["compressed_plus_prefix_len"]), "reassembled length");
        let digest = to_hex(&sha1(&[&reassembled]).0);
        ensure_eq!(digest, text(&case["compressed_plus_prefix_sha1_hex"]), "reassembled");
        check_delivery(&reassembled, exit.as_ref(), &message)?;
    }
    Ok(())
}

/// The exit that the octets before the compressed text name.
fn exit_of_prefix(prefix: &[u8]) -> Option<Exit> {
    let (exit_type, rest) = prefix.split_first_chunk()?;
    let (_, address) = rest.split_first_chunk::<2>()?;
    Some(Exit { exit_type: RoutingType(u16::from_be_bytes(*exit_type)), address: address.to_vec() })
}

fn check_payloads(case: &Value, payloads: &[EncodedPayload]) -> Result<(), String> {
    ensure_eq!(payloads.len(), list(&case["fragments"]).len(), "fragments");
    for (payload, expected) in payloads.iter().zip(list(&case["fragments"])) {
        let octets = payload.as_bytes();
        ensure_eq!(to_hex(&octets[..47]), text(&expected["header47_hex"]), "header");
        ensure_eq!(to_hex(&sha1(&[octets]).0), text(&expected["payload_sha1_hex"]), "payload");
        let fragment = read_fragment(octets)?;
        ensure_eq!(fragment.index() as usize, number(&expected["index"]), "index");
        ensure_eq!(fragment.fragmentation().message_len() as usize, number(&expected["msg_len"]), "message length");
        ensure_eq!(to_hex(&fragment.message_id().0), text(&case["message_id_hex"]), "message id");
        ensure_eq!(fragment.octets().len(), number(&case["fragment_capacity"]), "capacity");
        ensure_eq!(fragment.fragmentation().k() as usize, number(&case["k"]), "K");
        ensure_eq!(fragment.fragmentation().n() as usize, number(&case["n"]), "N");
        ensure_eq!(fragment.fragmentation().chunks() as usize, number(&case["n_chunks"]), "chunks");
        ensure_eq!(fragment.fragmentation().padded_len(), number(&case["padded_len"]), "padded length");
        ensure_eq!(fragment.to_payload().as_bytes(), octets, "payload written again");
    }
    for (payload, expected) in payloads.iter().zip(case.get("fragments_b64").map_or(&[][..], list)) {
        ensure!(payload.as_bytes() == b64(expected), "the payload differs");
    }
    Ok(())
}

fn read_fragment(octets: &[u8]) -> Result<Fragment, String> {
    match Content::read(octets) {
        Ok(Content::Fragment(fragment)) => Ok(fragment),
        other => Err(format!("{other:?} instead of a fragment")),
    }
}

/// Puts the message together without the dropped fragments, the last first.
fn reassemble(payloads: &[EncodedPayload], dropped: &[usize]) -> Result<Vec<u8>, String> {
    let mut reassembly: Option<Reassembly> = None;
    for (_, payload) in payloads.iter().enumerate().rev().filter(|(index, _)| !dropped.contains(index)) {
        let fragment = read_fragment(payload.as_bytes())?;
        let reassembly = match &mut reassembly {
            Some(reassembly) => reassembly,
            None => reassembly.insert(Reassembly::new(&fragment, 1_000_000).map_err(|e| e.to_string())?),
        };
        ensure_eq!(reassembly.add(fragment), Ok(Addition::Stored), "addition");
    }
    reassembly.ok_or("all dropped")?.finish().map_err(|unfinished| format!("{unfinished:?}"))
}

/// The reassembled octets lead to the message: with an address at the exit, without at the recipient.
fn check_delivery(reassembled: &[u8], exit: Option<&Exit>, message: &[u8]) -> Result<(), String> {
    let Some(exit) = exit else {
        ensure!(decompress(reassembled, message.len()).is_ok_and(|text| text == message), "another message comes out");
        return Ok(());
    };
    let (found, compressed) = ExitContent::split_reassembled(reassembled).map_err(|e| e.to_string())?;
    let content = ExitContent::from_compressed(compressed.to_vec()).map_err(|e| e.to_string())?;
    ensure!(found == *exit, "another exit address comes out");
    let ExitContent::Plain { body, .. } = content else { return Err(format!("{content:?}")) };
    ensure!(message.ends_with(&body), "another body comes out");
    Ok(())
}

fn parsing(part: &Value, tally: &mut Tally) {
    let base = b64(&part["base_payload_b64"]);
    for case in list(&part["cases"]) {
        tally.case(text(&case["label"]), || parse(case, &base));
    }
}

/// The reference checks the checksum apart from parsing; we check it first, since nothing else in a payload can be
/// believed without it.
fn parse(case: &Value, base: &[u8]) -> Result<(), String> {
    let mut octets = base.to_vec();
    let head = hex(&case["head64_hex"]);
    octets[..head.len()].copy_from_slice(&head);
    octets.truncate(number(&case["length"]));
    let checksum_holds = case["checksum_ok"] == 1;
    // Where the hash is bad, one octet of what is under it was changed: in the head that is given, or behind it.
    if !checksum_holds
        && !matches!(Content::read(&octets), Err(InvalidPayload::Checksum | InvalidPayload::Length { .. }))
    {
        octets.last_mut().map(|octet| *octet ^= 1).ok_or("empty")?;
    }
    match (case["error"].as_str(), Content::read(&octets)) {
        (Some(theirs), Err(ours)) => {
            let expected = match theirs {
                "ParseError: Payload has bad length" => Some(matches!(ours, InvalidPayload::Length { .. })),
                _ if !checksum_holds => Some(ours == InvalidPayload::Checksum),
                "ParseError: Payload has invalid size field" => Some(matches!(ours, InvalidPayload::Size { .. })),
                "ParseError: Payload has an invalid size field" => Some(matches!(ours, InvalidPayload::Fragment(_))),
                _ => None,
            };
            both_refuse(theirs, expected, &ours)
        }
        (None, Err(ours)) if !checksum_holds => both_refuse("checksum", Some(ours == InvalidPayload::Checksum), &ours),
        (None, Err(InvalidPayload::Fragment(InvalidFragment::Index { .. }))) => {
            we_refuse(Some("fragment with an index that its message cannot have"), &"Index")
        }
        (None, Err(ours)) => we_refuse(None, &ours),
        (Some(theirs), Ok(_)) => we_take(None, theirs),
        (None, Ok(_)) if !checksum_holds => Err("a payload whose checksum is wrong is read".to_owned()),
        (None, Ok(ours)) => {
            let ours = match ours {
                Content::Singleton { compressed } => format!("singleton size={}", compressed.len()),
                Content::Fragment(fragment) => {
                    format!("fragment idx={} msglen={}", fragment.index(), fragment.fragmentation().message_len())
                }
            };
            ensure_eq!(ours, text(&case["parse"]), "content");
            Ok(())
        }
    }
}
