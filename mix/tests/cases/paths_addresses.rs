//! `paths_addresses.json`: host names, mailboxes, exit addresses, path specifications, the prefix of reassembled messages.

use mix::packet::HostName;
use mix::path::{ExitAddress, InvalidAddress, InvalidPathSpec, Mailbox, PathElement, PathKind, PathSpec};
use serde_json::Value;

use crate::{Tally, both_refuse, ensure_eq, hex, list, text, we_differ, we_refuse, we_take};

/// Runs every part.
pub fn run(file: &Value, tally: &mut Tally) {
    for (part, cases) in file.as_object().expect("parts by name") {
        let check: fn(&Value) -> Result<(), String> = match part.as_str() {
            "hostname" => host_name,
            "mailbox" => mailbox,
            "parse_address" => address,
            "parse_path" => path,
            "server_side_fragment_prefix" => fragment_prefix,
            _ => {
                tally.fail(part, "no runner knows this part");
                continue;
            }
        };
        for (index, case) in list(cases).iter().enumerate() {
            tally.case(&format!("{part}[{index}] {case}"), || check(case));
        }
    }
}

fn host_name(case: &Value) -> Result<(), String> {
    ensure_eq!(HostName::parse(text(&case["s"])).is_ok(), case["ok"] == true, "accepted");
    Ok(())
}

fn mailbox(case: &Value) -> Result<(), String> {
    match (case["ok"] == true, Mailbox::parse(text(&case["s"]))) {
        (true, Err(ours)) => we_refuse(stricter(&ours), &ours),
        (false, Ok(_)) => we_take(None, "it is no mailbox"),
        _ => Ok(()),
    }
}

/// The row of INTEROP.md for an address that the reference takes.
fn stricter(ours: &InvalidAddress) -> Option<&'static str> {
    match ours {
        InvalidAddress::LeadingPipe => Some("mailbox that begins with a pipe sign"),
        InvalidAddress::TooLong { .. } => Some("address longer than a header"),
        InvalidAddress::LongMailbox { .. } => Some("mailbox longer than mail servers take"),
        InvalidAddress::Server(_) => Some("server of an mbox address"),
        InvalidAddress::ControlCharacter => Some("control characters in the name of a user"),
        InvalidAddress::ExitType(_) => Some("types below 0x0100 as exit types"),
        InvalidAddress::DropData => Some("data for nobody"),
        _ => None,
    }
}

fn address(case: &Value) -> Result<(), String> {
    let written = text(&case["address"]);
    let address = match (case["error"].as_str(), ExitAddress::parse(written)) {
        (Some(_), Err(_)) => return Ok(()),
        (Some(theirs), Ok(_)) => return we_take(None, theirs),
        // By its number the reference takes any text for a mailbox or user.
        (None, Err(InvalidAddress::Mailbox | InvalidAddress::EmptyName | InvalidAddress::NumericDomain))
            if written.starts_with("0x") =>
        {
            return we_refuse(Some("numbered exit type with an impossible address"), &written);
        }
        (None, Err(ours)) => return we_refuse(numbered(written, &ours).or(stricter(&ours)), &ours),
        (None, Ok(address)) => address,
    };
    let (routing_type, info) = address.routing();
    ensure_eq!(u64::from(routing_type.0), case["exit_type"], "exit type");
    ensure_eq!(info, text(&case["exit_info"]).as_bytes(), "exit info");
    ensure_eq!(address.server().map(mix::directory::Nickname::as_str), case["last_hop"].as_str(), "last hop");
    // The reference gives a handle to all types that are written as numbers, though some have none.
    if routing_type.has_handle() || !written.starts_with("0x") {
        ensure_eq!(!routing_type.has_handle(), case["suppress_tag"] == 1, "no decoding handle");
    }
    Ok(())
}

/// The reference reads Python's numbers, which may have a sign and blanks.
fn numbered(written: &str, ours: &InvalidAddress) -> Option<&'static str> {
    let odd = *ours == InvalidAddress::Number && written.to_ascii_lowercase().starts_with("0x");
    odd.then_some("numbered exit type of other characters than four digits")
}

fn path(case: &Value) -> Result<(), String> {
    let kind = match (case["is_reply"] == 1, case["is_surb"] == 1) {
        (false, false) => PathKind::Forward,
        (true, false) => PathKind::Reply,
        (false, true) => PathKind::Surb,
        (true, true) => return Err("both reply and SURB".to_owned()),
    };
    let spec = PathSpec::parse(text(&case["spec"]), kind);
    // Quoted words are names here; there they may still mean random mixes, or the swap point.
    let quoted = ['"', '\''].iter().any(|mark| {
        ["*", "~", "?", "<", " ", "\t"].iter().any(|word| text(&case["spec"]).contains(&format!("{mark}{word}")))
    });
    // What has blanks at its separators is another path to the reference.
    let row = match quoted {
        true => Some("words in quotation marks"),
        false => has_blank_at_separator(text(&case["spec"])).then_some(SPACES),
    };
    same_outcome(case, spec).or_else(|why| row.map(we_differ).ok_or(why))
}

fn same_outcome(case: &Value, spec: Result<PathSpec, InvalidPathSpec>) -> Result<(), String> {
    match (case["error"].as_str(), spec) {
        (Some(theirs), Err(_)) if theirs.contains("Invalid quotes") && has_blank_at_separator(text(&case["spec"])) => {
            we_differ(SPACES);
            Ok(())
        }
        (Some(theirs), Err(ours)) => both_refuse(theirs, same_refusal(theirs, &ours), &ours),
        (Some(theirs), Ok(_)) => {
            let blanks = theirs.contains("Invalid quotes") && has_blank_at_separator(text(&case["spec"]));
            we_take(blanks.then_some(SPACES), theirs)
        }
        (None, Err(ours)) => we_refuse(stricter_path(&ours, text(&case["spec"])), &ours),
        (None, Ok(spec)) => same_path(case, &spec),
    }
}

const SPACES: &str = "spaces around separators";

/// Whether a space or tab stands at either end, or next to a comma or colon.
fn has_blank_at_separator(spec: &str) -> bool {
    let blank = |c: char| c == ' ' || c == '\t';
    spec.split([',', ':']).any(|part| part.starts_with(blank) || part.ends_with(blank))
}

/// The row of INTEROP.md for a path that the reference takes.
fn stricter_path(ours: &InvalidPathSpec, spec: &str) -> Option<&'static str> {
    use InvalidPathSpec as E;
    match ours {
        E::Word { .. } => Some("odd characters in a path"),
        E::Number { .. } => Some("* or ~ before other characters than digits"),
        E::TooMany { .. } => Some("more mixes than any packet holds"),
        E::AboutNone { .. } => Some("about no mixes"),
        E::EmptyLeg { .. } if spec.contains("*0") => Some("leg of no mixes"),
        E::TooShort { hops: 1, needed: 2 } if spec.contains('~') => Some("forward path of about one mix"),
        // Once the blanks are off, nothing is left, or quotation marks begin, or a word means something.
        _ if has_blank_at_separator(spec) => Some(SPACES),
        _ => None,
    }
}

/// Whether our refusal has the cause of the reference's. Of several flaws either names the one that it looks for first.
fn same_refusal(theirs: &str, ours: &InvalidPathSpec) -> Option<bool> {
    use InvalidPathSpec as E;
    let same = match theirs {
        "UIError: Can't specify swap point with replies" => matches!(ours, E::SwapPointInReply),
        "UIError: Only one ':' is permitted in a single path" => matches!(ours, E::SecondSwapPoint { .. }),
        "UIError: Invalid path" => matches!(ours, E::EmptyElement { .. }),
        "UIError: Mismatched quotes in path." => {
            matches!(ours, E::OpenQuote { .. } | E::AfterQuote { .. } | E::EmptyElement { .. })
        }
        "UIError: Invalid quotes in path." => matches!(ours, E::AfterQuote { .. }),
        "UIError: * without a number is no longer supported." => matches!(ours, E::BareStar { .. }),
        "UIError: The path must have at least 1 hop" => matches!(ours, E::TooShort { needed: 1, .. }),
        "UIError: The path must have at least 2 hops" => {
            matches!(ours, E::TooShort { needed: 2, .. } | E::EmptyLeg { .. })
        }
        "UIError: Each leg of the path must have at least 1 hop" => matches!(ours, E::EmptyLeg { .. }),
        // It breaks down. Here each has its name.
        _ if theirs.starts_with("AssertionError") => {
            matches!(ours, E::TooShort { .. } | E::AboutNone { .. } | E::EmptyLeg { .. })
        }
        _ if theirs.starts_with("ValueError: invalid literal for int()") => matches!(ours, E::Number { .. }),
        _ => return None,
    };
    Some(same || !matches!(ours, E::TooShort { .. }))
}

fn same_path(case: &Value, spec: &PathSpec) -> Result<(), String> {
    let (first, second) = spec.elements();
    ensure_eq!(spec.splits_at_middle(), case["late_split"] == 1, "divided at the middle");
    ensure_eq!(shown(first), theirs(&case["path1"]), "first leg");
    ensure_eq!(shown(second), theirs(&case["path2"]), "second leg");
    // Shown again it must be the same path; in the same words, where these need no quotation marks and have no blanks.
    let again = spec.to_string();
    ensure_eq!(PathSpec::parse(&again, spec.kind()).as_ref(), Ok(spec), "read again");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-./*?~,:".contains(c);
    if text(&case["spec"]).chars().all(plain) && !case["str"].as_str().unwrap_or("STR-CRASH").starts_with("STR-CRASH") {
        ensure_eq!(again, text(&case["str"]), "shown again");
    }
    Ok(())
}

/// The elements: `=` and a name, or `*` and `~` with a number.
fn shown(elements: &[PathElement]) -> Vec<String> {
    let one = |element: &PathElement| match element {
        PathElement::Named(nickname) => format!("={nickname}"),
        PathElement::File(name) => format!("={name}"),
        PathElement::Random(hops) => format!("*{hops}"),
        PathElement::About(hops) => format!("~{hops}"),
    };
    elements.iter().map(one).collect()
}

/// The same of what the reference shows: Python's words for objects and texts.
fn theirs(elements: &Value) -> Vec<String> {
    // A trailing comma is allowed, and so are blanks behind it.
    list(elements).iter().map(|element| one_of_theirs(text(element))).filter(|element| element != "=").collect()
}

fn one_of_theirs(element: &str) -> String {
    let inside = |prefix| element.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(')'));
    if let Some(hops) = inside("RandomServersPathElement(n=") {
        return format!("*{hops}");
    }
    if let Some(hops) = inside("RandomServersPathElement(approx=") {
        return if hops == "None" { "*0".to_owned() } else { format!("~{hops}") };
    }
    let name = inside("ServerPathElement(").map_or_else(|| element.to_owned(), unquoted);
    // The reference keeps the spaces around separators and then finds no mix of that name; path-spec 3.1 ignores them,
    // and what is left may be quoted, or mean random mixes.
    match name.trim_matches([' ', '\t']) {
        bare if bare == name => format!("={name}"),
        "?" => "*1".to_owned(),
        bare if bare.starts_with(['*', '~']) => bare.to_owned(),
        bare => format!("={}", bare.trim_matches(['\'', '"'])),
    }
}

/// The text of Python's quoted form.
fn unquoted(quoted: &str) -> String {
    let inner = &quoted[1..quoted.len() - 1];
    let mut characters = inner.chars();
    let mut plain = String::new();
    while let Some(c) = characters.next() {
        match (c, c == '\\') {
            (_, true) => match characters.next() {
                Some('x') => {
                    let digits: String = characters.by_ref().take(2).collect();
                    plain.push(char::from(u8::from_str_radix(&digits, 16).unwrap()));
                }
                Some('t') => plain.push('\t'),
                Some('n') => plain.push('\n'),
                Some('r') => plain.push('\r'),
                other => plain.extend(other),
            },
            (c, false) => plain.push(c),
        }
    }
    plain
}

fn fragment_prefix(case: &Value) -> Result<(), String> {
    let routing_type = case["routing_type"].as_u64().ok_or("a routing type")?;
    let address = format!("0x{routing_type:04x}:{}", text(&case["routing_info"]));
    let address = ExitAddress::parse(&address).map_err(|e| format!("refused: {e}"))?;
    ensure_eq!(address.fragment_prefix(), hex(&case["prefix_hex"]), "prefix");
    Ok(())
}
