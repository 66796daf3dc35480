//! text_formats.json: descriptors and directories.

use std::io::Read as _;
use std::time::{Duration, SystemTime};

use mix::crypto::{KeyId, sha1};
use mix::directory::{Descriptor, Directory, InvalidDescriptor, InvalidDirectory, Trust};
use serde_json::Value;

use crate::{Tally, b64, ensure, ensure_eq, list, text, to_hex};

/// What the reference takes and we refuse, because it is a defect: no such port, no such day.
const STRICTER_DESCRIPTORS: [&str; 3] = ["port 65536", "port -1", "Valid-After '2026-02-30'"];
/// What the reference takes and we refuse: nobody who is trusted signed it, or it is not for clients.
const STRICTER_DIRECTORIES: [&str; 4] =
    ["v0.3 info tampered", "v0.3 signature garbage", "v0.3 no signatures", "v0.3 vote"];
/// What the reference refuses and we take: it looks for the header with one kind of line end only.
const LAXER_DIRECTORIES: [&str; 1] = ["v0.2 crlf"];

/// Runs all parts of the file.
pub fn run(file: &Value, tally: &mut Tally) {
    for (name, part) in file.as_object().expect("parts by name") {
        match name.as_str() {
            "descriptors" => descriptors(part, tally),
            "directories" => directories(part, tally),
            "surb_parse" => super::surb_armor::run(part, tally),
            other => tally.case(other, || Err("no runner knows this part".to_owned())),
        }
    }
}

/// Descriptors.
pub fn descriptors(part: &Value, tally: &mut Tally) {
    let now = at(&part["now"]);
    for case in list(&part["cases"]) {
        tally.case(text(&case["label"]), || descriptor(case, now));
    }
}

/// Directories.
pub fn directories(part: &Value, tally: &mut Tally) {
    let now = at(&part["now"]);
    let fingerprints: Vec<_> = list(&part["fingerprints"]).iter().map(key_id).collect();
    for case in list(&part["cases"]) {
        tally.case(text(&case["label"]), || directory(case, &fingerprints, now));
    }
}

fn at(entry: &Value) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(entry.as_u64().expect("seconds since 1970"))
}

fn key_id(fingerprint: &Value) -> KeyId {
    KeyId(crate::hex(fingerprint).try_into().expect("20 octets"))
}

fn descriptor(case: &Value, now: SystemTime) -> Result<(), String> {
    let label = text(&case["label"]);
    let outcome = Descriptor::parse(text(&case["text"])).and_then(|found| found.check_published(now).map(|()| found));
    let accepted = case["accepted"] == true && !STRICTER_DESCRIPTORS.contains(&label);
    let found = match outcome {
        Err(_) if !accepted => return refusal_names_the_cause(case, outcome),
        Err(why) => return Err(format!("refused: {why}")),
        Ok(_) if !accepted => return Err("accepted".to_owned()),
        Ok(found) => found,
    };
    ensure_eq!(found.nickname().as_str(), text(&case["nickname"]), "nickname");
    ensure_eq!(found.digest().to_string(), text(&case["digest_hex"]), "digest");
    ensure_eq!(found.key_id().to_string(), text(&case["keyid_hex"]), "key id");
    ensure_eq!(to_hex(&sha1(&[&found.packet_key().to_der()]).0), text(&case["packet_key_sha1_hex"]), "packet key");
    ensure_eq!(found.published(), at(&case["published"]), "published");
    ensure_eq!(found.valid_after(), at(&case["valid_after"]), "valid after");
    ensure_eq!(found.valid_until(), at(&case["valid_until"]), "valid until");
    ensure_eq!(found.is_valid_at(now), case["valid_at_now"], "valid now");
    ensure_eq!(found.is_expired_at(now), case["expired_at_now"], "expired now");
    let later = now + Duration::from_secs(60 * 24 * 3600);
    ensure_eq!(found.is_expired_at(later), case["expired_at_plus_60d"], "expired in sixty days");
    let versions: Vec<_> = list(&case["packet_versions"]).iter().map(text).collect();
    ensure_eq!(found.packet_versions(), versions, "packet versions");
    ensure_eq!(found.supports_packets(), case["supports_packet_version"], "supports our packets");
    route_and_capabilities(case, &found)?;
    // What was read is written in the same words, and means the same.
    ensure!(Descriptor::parse(found.text()).as_ref() == Ok(&found), "the canonical text is another descriptor");
    Ok(())
}

fn route_and_capabilities(case: &Value, found: &Descriptor) -> Result<(), String> {
    // Host names are compared and sent in lower case; the reference lowers them only in routing info.
    let host = case["hostname"].as_str().map(str::to_ascii_lowercase);
    ensure_eq!(found.incoming().map(|incoming| incoming.host.as_str().to_owned()), host, "host");
    ensure_eq!(found.incoming().map(|incoming| u64::from(incoming.port)), case["port"].as_u64(), "port");
    ensure_eq!(
        found.route().map(|route| to_hex(&route.to_bytes())),
        case["routing_info_hex"].as_str().map(str::to_owned),
        "routing info"
    );
    ensure_eq!(found.smtp().map(|smtp| smtp.max_size / 1024), case["smtp_max"].as_u64(), "SMTP maximum");
    let allow_from = case["smtp_allow_from"].as_u64().map(|flag| flag == 1);
    ensure_eq!(found.smtp().map(|smtp| smtp.allow_from), allow_from, "SMTP From");
    ensure_eq!(found.mbox().map(|mbox| mbox.max_size / 1024), case["mbox_max"].as_u64(), "MBOX maximum");
    ensure_eq!(found.fragmented(), case["frag_max"].as_u64(), "fragments");
    let reachable = found.incoming().is_some();
    let capabilities = [
        ("mbox", found.mbox().is_some()),
        ("smtp", found.smtp().is_some()),
        ("relay", found.can_relay()),
        ("frag", found.fragmented().is_some()),
    ];
    let ours: Vec<_> = capabilities.into_iter().filter(|(_, has)| *has && reachable).map(|(name, _)| name).collect();
    let theirs: Vec<_> = list(&case["caps"]).iter().map(text).collect();
    ensure_eq!(ours, theirs, "capabilities");
    Ok(())
}

/// The same cause as the reference names, where it names one that is ours too.
fn refusal_names_the_cause(case: &Value, outcome: Result<Descriptor, InvalidDescriptor>) -> Result<(), String> {
    let why = outcome.expect_err("refused");
    let words = why.to_string();
    let reference = case["error"].as_str().unwrap_or_default();
    let same = match reference.strip_prefix("ConfigError: ").unwrap_or(reference) {
        "Invalid digest" => why == InvalidDescriptor::Digest,
        "Signed digest is incorrect" => why == InvalidDescriptor::SignedDigest,
        "Invalid length on packet key" => matches!(why, InvalidDescriptor::PacketKeySize { .. }),
        "Server is never valid" => why == InvalidDescriptor::NeverValid,
        "Server published in the future" => why == InvalidDescriptor::PublishedInFuture,
        cause if cause.starts_with("Unrecognized descriptor version") => why == InvalidDescriptor::Version,
        // Which of many missing entries is named is no more than the order of looking.
        cause if cause.starts_with("Missing entry") && text(&case["label"]) == "only header" => {
            words.contains("has no")
        }
        cause if cause.starts_with("Missing entry") => {
            words.ends_with(&format!("has no {}", cause.split(' ').nth(2).unwrap_or_default()))
        }
        cause if cause.starts_with("Duplicate") => matches!(why, InvalidDescriptor::Entry(_)),
        cause => match cause.split_once(" at line ") {
            Some((_, line)) => words.contains(&format!("line {line}")),
            None => true,
        },
    };
    ensure!(same, "refused as {why:?}, by the reference as {reference:?}");
    Ok(())
}

fn directory(case: &Value, fingerprints: &[KeyId], now: SystemTime) -> Result<(), String> {
    let label = text(&case["label"]);
    let source = inflated(case)?;
    let anyone = Trust::new(fingerprints.iter().copied(), 1).map_err(|why| why.to_string())?;
    let outcome = Directory::parse(&source, &anyone, now);
    let refused = case["accepted"] != true && !LAXER_DIRECTORIES.contains(&label);
    if refused || STRICTER_DIRECTORIES.contains(&label) {
        let why = outcome.err().ok_or("accepted")?;
        return directory_refusal(label, &why);
    }
    let found = outcome.map_err(|why| format!("refused: {why}"))?;
    ensure!(found.skipped().is_empty(), "descriptors were left out: {:?}", found.skipped());
    if LAXER_DIRECTORIES.contains(&label) {
        ensure_eq!(found.descriptors().len(), 4, "descriptors");
        return Ok(());
    }
    let names: Vec<_> = found.descriptors().iter().map(|descriptor| descriptor.nickname().to_string()).collect();
    ensure_eq!(names, list(&case["servers"]).iter().map(text).collect::<Vec<_>>(), "mixes");
    let recommended: Vec<_> = found.recommended().iter().map(|name| name.as_str().to_ascii_lowercase()).collect();
    // The reference makes one empty name of an empty list.
    let theirs: Vec<_> = list(&case["recommended"]).iter().map(text).filter(|name| !name.is_empty()).collect();
    ensure_eq!(recommended, theirs, "recommended");
    ensure_eq!(found.signers().iter().copied().collect::<Vec<_>>(), signers(case), "signers");
    if case["valid_after"].is_u64() {
        ensure_eq!(found.valid_after(), at(&case["valid_after"]), "valid after");
        ensure_eq!(found.valid_until(), at(&case["valid_until"]), "valid until");
        ensure_eq!(found.is_valid_at(now), label != "v0.2 expired", "in force");
    }
    // One more signature than there is must not be enough.
    if let Ok(more) = Trust::new(fingerprints.iter().copied(), found.signers().len() + 1) {
        let needed = found.signers().len() + 1;
        let why = Directory::parse(&source, &more, now).err();
        ensure_eq!(
            why,
            Some(InvalidDirectory::Untrusted { signers: needed - 1, needed }),
            "with one signature too few"
        );
    }
    ensure!(Directory::parse(found.text(), &anyone, now).is_ok(), "the canonical text is no directory");
    Ok(())
}

fn signers(case: &Value) -> Vec<KeyId> {
    let mut signers: Vec<_> = match case["kind"].as_str() {
        Some("ServerDirectory") => vec![key_id(&case["identity_fingerprint"])],
        _ => list(&case["good_signers"]).iter().map(|signer| key_id(&signer[0])).collect(),
    };
    signers.sort();
    signers
}

fn directory_refusal(label: &str, why: &InvalidDirectory) -> Result<(), String> {
    let expected = match label {
        "v0.2 recommended list changed" | "v0.2 descriptor tampered" | "v0.2 descriptor removed" | "v0.2 truncated" => {
            matches!(why, InvalidDirectory::Digest { .. })
        }
        "v0.3 tampered (all digests mismatch)" | "v0.3 info tampered" => matches!(why, InvalidDirectory::Digest { .. }),
        "v0.2 signature garbage" | "v0.3 signature garbage" => matches!(why, InvalidDirectory::Signature { .. }),
        "v0.2 no signature line" => matches!(why, InvalidDirectory::Entry(_)),
        "v0.2 well signed but one descriptor has bad digest" => {
            matches!(why, InvalidDirectory::Descriptor { why: InvalidDescriptor::Digest, .. })
        }
        "v0.2 published in the future" => *why == InvalidDirectory::PublishedInFuture,
        "v0.2 version 0.9" => *why == InvalidDirectory::Version,
        "v0.2 1024-bit key" => *why == InvalidDirectory::IdentityKeySize { bits: 1024 },
        "v0.3 vote" => *why == InvalidDirectory::IsVote,
        "v0.3 no signatures" => *why == InvalidDirectory::Unsigned,
        "not a directory" => matches!(why, InvalidDirectory::Info(_) | InvalidDirectory::MissingSection { .. }),
        _ => return Err(format!("no expectation for a refusal: {why:?}")),
    };
    ensure!(expected, "refused as {why:?}");
    Ok(())
}

fn inflated(case: &Value) -> Result<String, String> {
    ensure_eq!(text(&case["text_encoding"]), "zlib", "encoding");
    let mut out = String::new();
    let octets = b64(&case["text_b64"]);
    flate2::read::ZlibDecoder::new(&octets[..]).read_to_string(&mut out).map_err(|e| e.to_string())?;
    Ok(out)
}
