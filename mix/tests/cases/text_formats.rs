//! text_formats.json: descriptors and directories.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::time::{Duration, SystemTime};

use mix::crypto::{KeyId, sha1};
use mix::directory::info::InvalidInfo;
use mix::directory::{
    Descriptor, Directory, InvalidDescriptor, InvalidDirectory, InvalidEntry, InvalidValue, Nickname, Trust,
};
use serde_json::Value;

use crate::{Tally, b64, both_refuse, ensure, ensure_eq, list, text, to_hex, we_differ, we_refuse, we_take};

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
    let seconds = entry.as_f64().expect("seconds since 1970");
    SystemTime::UNIX_EPOCH + Duration::from_millis((seconds * 1000.0).round() as u64)
}

fn key_id(fingerprint: &Value) -> KeyId {
    KeyId(crate::hex(fingerprint).try_into().expect("20 octets"))
}

fn descriptor(case: &Value, now: SystemTime) -> Result<(), String> {
    let source = text(&case["text"]);
    let outcome = Descriptor::parse(source).and_then(|found| found.check_published(now).map(|()| found));
    let found = match (case["accepted"] == true, outcome) {
        (false, Err(ours)) => {
            let theirs = case["error"].as_str().unwrap_or_default();
            return both_refuse(theirs, same_descriptor_cause(theirs, &ours), &ours);
        }
        (true, Err(ours)) => return we_refuse(stricter_descriptor(&ours, source), &ours),
        (false, Ok(_)) => return we_take(laxer(source), case["error"].as_str().unwrap_or_default()),
        (true, Ok(found)) => found,
    };
    ensure_eq!(found.nickname().as_str(), text(&case["nickname"]), "nickname");
    ensure_eq!(found.digest().to_string(), text(&case["digest_hex"]), "digest");
    ensure_eq!(to_hex(&found.key_id().0), text(&case["keyid_hex"]), "key id");
    ensure_eq!(to_hex(&sha1(&[&found.packet_key().to_der()]).0), text(&case["packet_key_sha1_hex"]), "packet key");
    ensure_eq!(found.published(), at(&case["published"]), "published");
    ensure_eq!(found.valid_after(), at(&case["valid_after"]), "valid after");
    ensure_eq!(found.valid_until(), at(&case["valid_until"]), "valid until");
    ensure_eq!(found.is_valid_at(now), case["valid_at_now"], "valid now");
    ensure_eq!(found.is_expired_at(now), case["expired_at_now"], "expired now");
    let later = now + Duration::from_secs(60 * 24 * 3600);
    ensure_eq!(found.is_expired_at(later), case["expired_at_plus_60d"], "expired in sixty days");
    // The reference makes an empty item of nothing between two commas.
    let versions: Vec<_> = list(&case["packet_versions"]).iter().map(text).filter(|item| !item.is_empty()).collect();
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

/// The row of INTEROP.md for a flaw that the reference does not mind.
fn stricter_descriptor(ours: &InvalidDescriptor, source: &str) -> Option<&'static str> {
    match ours {
        InvalidDescriptor::Info(why) => stricter_text(why),
        InvalidDescriptor::Entry(why) => stricter_entry(why, source),
        InvalidDescriptor::NoServerSection => Some("first section of a descriptor"),
        _ => None,
    }
}

fn stricter_text(ours: &InvalidInfo) -> Option<&'static str> {
    match ours {
        InvalidInfo::TooLong { .. } | InvalidInfo::TooManyLines { .. } | InvalidInfo::LineTooLong { .. } => {
            Some("limits of text")
        }
        InvalidInfo::EmptyLine { .. } => Some("lines of nothing but blanks"),
        InvalidInfo::Character { .. } => Some("vertical tabs"),
        _ => None,
    }
}

fn stricter_entry(ours: &InvalidEntry, source: &str) -> Option<&'static str> {
    let InvalidEntry::Value { why, .. } = ours else { return None };
    match why {
        InvalidValue::Base64 | InvalidValue::Digest => Some("base64 of keys and signatures"),
        InvalidValue::Key(_) => Some("keys in DER form"),
        InvalidValue::Number { .. } => Some("ports and numbers"),
        InvalidValue::Ipv4 | InvalidValue::AddressPattern(_) => Some("addresses and address patterns"),
        InvalidValue::Date | InvalidValue::Time if has_impossible_day(source) => Some("days"),
        _ => None,
    }
}

/// Whether a day stands in the text that no calendar has, but some month.
fn has_impossible_day(source: &str) -> bool {
    let long = ["01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12"];
    let day = |month: &str, day: &str| ["-", "/"].iter().any(|sep| source.contains(&format!("{sep}{month}{sep}{day}")));
    long.iter().any(|month| match *month {
        "02" => ["29", "30", "31"].iter().any(|d| day(month, d)),
        "04" | "06" | "09" | "11" => day(month, "31"),
        _ => false,
    })
}

/// The row of INTEROP.md for what we take and the reference does not, decided by what the text is.
fn laxer(source: &str) -> Option<&'static str> {
    if has_four_decimals(source) {
        Some("decimals of a second")
    } else if repeats(source) {
        Some("repeated lines that nobody reads")
    } else {
        None
    }
}

fn has_four_decimals(source: &str) -> bool {
    let published = source.lines().find_map(|line| line.trim().strip_prefix("Published:"));
    published.and_then(|time| time.rsplit_once('.')).is_some_and(|(_, decimals)| decimals.trim().len() == 4)
}

/// Whether a section is there twice, or a key twice in its section. Where it matters we refuse it too.
fn repeats(source: &str) -> bool {
    let (mut seen, mut section) = (BTreeSet::new(), String::new());
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    source.lines().map(str::trim).any(|line| match line.split_once(':') {
        Some((key, _)) if !line.starts_with('[') => !seen.insert(format!("{section}:{}", key.trim())),
        _ => {
            section = line.split(']').next().unwrap_or_default().replace(['[', ' ', '\t'], "");
            if section == "Server" {
                seen.clear();
            }
            section != "Signed-Directory" && !seen.insert(section.clone())
        }
    })
}

/// Whether our refusal has the cause of the reference's, where its words are known. Of several flaws in one text either
/// names the one that it looks for first: ours what the digest shows, and what the reference does not mind.
fn same_descriptor_cause(theirs: &str, ours: &InvalidDescriptor) -> Option<bool> {
    use InvalidDescriptor as E;
    let theirs = theirs.strip_prefix("ConfigError: ").unwrap_or(theirs);
    let words = ours.to_string();
    let same = match theirs {
        "Invalid digest" => *ours == E::Digest,
        "Signed digest is incorrect" => *ours == E::SignedDigest,
        "Invalid signature" => matches!(ours, E::Signature | E::SignedDigest),
        "Invalid length on packet key" => matches!(ours, E::PacketKeySize { .. }),
        "Invalid length on identity key" => matches!(ours, E::IdentityKeySize { .. }),
        "Server is never valid" => *ours == E::NeverValid,
        "Server published in the future" => *ours == E::PublishedInFuture,
        "Invalid characters in file" | "File is empty" => matches!(ours, E::Info(_) | E::NoServerSection),
        "Section [Server] not found." => *ours == E::NoServerSection,
        _ if theirs.starts_with("Unrecognized descriptor version") => *ours == E::Version,
        _ if theirs.starts_with("Missing entry") => words.contains(" has no "),
        _ if theirs.starts_with("Duplicate") => matches!(ours, E::Entry(_)),
        _ if theirs.contains(" not allowed at line ") || theirs.starts_with("Bad ") => {
            match theirs.split_once(" at line ") {
                Some((_, line)) => words.contains(&format!("line {line}")),
                None => return None,
            }
        }
        _ if theirs.contains("too long") => matches!(ours, E::Entry(InvalidEntry::Value { .. })),
        // Python shows the message as a list of letters.
        _ if theirs.starts_with("('") => matches!(ours, E::Entry(InvalidEntry::Value { .. })),
        _ => return None,
    };
    let other_flaw = matches!(ours, E::Digest | E::NoServerSection | E::Entry(_) | E::Info(_) | E::NeverValid);
    Some(same || other_flaw)
}

fn directory(case: &Value, fingerprints: &[KeyId], now: SystemTime) -> Result<(), String> {
    let source = inflated(case)?;
    let anyone = Trust::new(fingerprints.iter().copied(), 1).map_err(|why| why.to_string())?;
    let theirs = case["error"].as_str().unwrap_or_default();
    let found = match (case["accepted"] == true, Directory::parse(&source, &anyone, now)) {
        (false, Err(ours)) => return both_refuse(theirs, same_directory_cause(theirs, &ours), &ours),
        (true, Err(ours)) => return we_refuse(stricter_directory(&ours, &source), &ours),
        (false, Ok(found)) => return we_take(laxer_directory(&found, &source), theirs),
        (true, Ok(found)) => found,
    };
    for (_, why) in found.skipped() {
        we_refuse(stricter_descriptor(why, &source), why)?;
    }
    let ours: Vec<_> = found.descriptors().iter().map(|descriptor| descriptor.nickname().to_string()).collect();
    let theirs: Vec<_> = list(&case["servers"]).iter().map(text).collect();
    if has_blanks_in_brackets(&source) && ours != theirs {
        we_differ("blanks within brackets");
        return Ok(());
    }
    ensure_eq!(ours.len() + found.skipped().len(), theirs.len(), "mixes");
    ensure!(!found.skipped().is_empty() || ours == theirs, "we have {ours:?}, the reference {theirs:?}");
    same_head(case, &found, now)?;
    ensure_eq!(found.signers().iter().copied().collect::<Vec<_>>(), signers(case, &found, &source), "signers");
    // One more signature than there is must not be enough.
    let needed = found.signers().len() + 1;
    if let Ok(more) = Trust::new(fingerprints.iter().copied(), needed) {
        let why = Directory::parse(&source, &more, now).err();
        let refused = match why {
            Some(InvalidDirectory::Untrusted { signers, needed: asked }) => signers + 1 == needed && asked == needed,
            // A signature of another text is named before the count.
            Some(InvalidDirectory::Digest { .. } | InvalidDirectory::Signature { .. }) => true,
            _ => false,
        };
        ensure!(refused, "{why:?} with one signature too few");
    }
    ensure!(Directory::parse(found.text(), &anyone, now).is_ok(), "the canonical text is no directory");
    Ok(())
}

fn same_head(case: &Value, found: &Directory, now: SystemTime) -> Result<(), String> {
    let ours: BTreeSet<_> = found.recommended().iter().map(|name| name.as_str().to_ascii_lowercase()).collect();
    // The reference keeps words that are no nicknames, and makes one empty name of an empty list.
    let is_name = |name: &&str| name.parse::<Nickname>().is_ok();
    let theirs: BTreeSet<_> = list(&case["recommended"]).iter().map(text).filter(is_name).map(str::to_owned).collect();
    ensure_eq!(ours, theirs, "recommended");
    if !case["valid_after"].is_null() {
        let (from, until) = (at(&case["valid_after"]), at(&case["valid_until"]));
        ensure_eq!((found.valid_after(), found.valid_until()), (from, until), "days");
        ensure_eq!(found.is_valid_at(now), from <= now && now < until, "in force");
    }
    Ok(())
}

fn signers(case: &Value, found: &Directory, source: &str) -> Vec<KeyId> {
    let mut signers: BTreeSet<_> = match case["kind"].as_str() {
        Some("ServerDirectory") => [key_id(&case["identity_fingerprint"])].into(),
        _ => list(&case["good_signers"]).iter().map(|signer| key_id(&signer[0])).collect(),
    };
    // The reference counts those alone that the directory itself lists as voters, in capitals; and of two signatures of
    // one key the last alone. Here trust is the caller's to say, and one good signature is enough.
    if case["kind"] != "ServerDirectory" {
        let listed = |signer: &KeyId| source.contains(&format!("Voting-Server: {signer} "));
        let several = source.matches("[Signed-Directory]").count() > 1;
        let may_differ = |signer: &&KeyId| several || !listed(signer);
        let others: Vec<_> =
            found.signers().iter().filter(may_differ).filter(|signer| !signers.contains(signer)).copied().collect();
        if !others.is_empty() {
            we_differ("signer that is no voter");
            signers.extend(others);
        }
    }
    signers.into_iter().collect()
}

/// The row of INTEROP.md for a flaw that the reference does not mind.
fn stricter_directory(ours: &InvalidDirectory, source: &str) -> Option<&'static str> {
    use InvalidDirectory as E;
    match ours {
        E::Digest { .. } | E::Signature { .. } | E::Unsigned | E::Untrusted { .. }
            if !source.starts_with("[Directory]") =>
        {
            Some("who signed a directory of version 0.3")
        }
        E::TooManySignatures => Some("more signatures than are checked"),
        E::IsVote => Some("vote in place of a directory"),
        E::NicknameConflict { .. } => Some("two identity keys under one nickname, or two nicknames of one key"),
        E::Info(why) => stricter_text(why),
        E::Entry(why) => stricter_entry(why, source),
        _ => None,
    }
}

/// The row of INTEROP.md for a directory that the reference refuses.
fn laxer_directory(found: &Directory, source: &str) -> Option<&'static str> {
    let signatures = source.split("[Directory-Info]").next().unwrap_or_default();
    if source.trim_start().starts_with("[Directory]") && !source.starts_with("[Directory]\n") {
        Some("CRLF in a directory of version 0.2")
    } else if has_blanks_in_brackets(source) {
        Some("blanks within brackets")
    } else if source.lines().any(|line| line.starts_with("Voting-Server:") && line.contains('\t')) {
        Some("voter whose URL stands behind a tab")
    } else if source.split_once("[Directory-Info]").is_some_and(|(_, body)| body.contains("[Signed-Directory]")) {
        Some("signature within what is signed")
    } else if signatures.lines().any(|line| !line.starts_with("Directory-") && !line.starts_with('[')) {
        Some("other keys beside a signature")
    } else if !found.skipped().is_empty() {
        Some("one malformed descriptor in a directory")
    } else {
        laxer(source)
    }
}

fn has_blanks_in_brackets(source: &str) -> bool {
    let header = |line: &str| Some(line.trim().strip_prefix('[')?.split_once(']')?.0.to_owned());
    source.lines().filter_map(header).any(|name| name.trim() != name)
}

/// Whether our refusal has the cause of the reference's, where its words are known. A flaw of the signatures comes first
/// with us, whatever else is wrong.
fn same_directory_cause(theirs: &str, ours: &InvalidDirectory) -> Option<bool> {
    use InvalidDirectory as E;
    let theirs = theirs.strip_prefix("ConfigError: ").unwrap_or(theirs);
    let same = match theirs {
        "Invalid digest" => {
            matches!(ours, E::Digest { .. } | E::Descriptor { why: InvalidDescriptor::Digest, .. })
        }
        "Invalid signature" => matches!(ours, E::Signature { .. } | E::Descriptor { .. }),
        "Directory is never valid" => *ours == E::NeverValid,
        "Directory published in the future" => *ours == E::PublishedInFuture,
        "Missing [Directory-Info] section" => matches!(ours, E::MissingSection { .. } | E::Info(_)),
        "Invalid characters in file" => matches!(ours, E::Info(_)),
        "ValueError: substring not found" => matches!(ours, E::MissingSection { .. } | E::Info(_)),
        _ if theirs.starts_with("Unrecognized directory version")
            || theirs.starts_with("Unrecognized descriptor version") =>
        {
            matches!(ours, E::Version)
        }
        _ if theirs.starts_with("Missing entry") || theirs.starts_with("Unrecognized 'status'") => {
            matches!(ours, E::Entry(_))
        }
        _ if theirs.starts_with("Duplicate") => matches!(ours, E::Entry(_) | E::UnsignedSection { .. }),
        _ if theirs.contains(" at line ") => matches!(ours, E::Info(_)),
        _ => return None,
    };
    let signatures = matches!(
        ours,
        E::Digest { .. }
            | E::Signature { .. }
            | E::Unsigned
            | E::Untrusted { .. }
            | E::UnsignedSection { .. }
            | E::IsVote
    );
    Some(same || signatures || matches!(ours, E::Entry(_) | E::Info(_) | E::MissingSection { .. } | E::Version))
}

fn inflated(case: &Value) -> Result<String, String> {
    ensure_eq!(text(&case["text_encoding"]), "zlib", "encoding");
    let mut out = String::new();
    let octets = b64(&case["text_b64"]);
    flate2::read::ZlibDecoder::new(&octets[..]).read_to_string(&mut out).map_err(|e| e.to_string())?;
    Ok(out)
}
