//! `paths_addresses.json`: host names, mailboxes, exit addresses, path specifications, the prefix of reassembled messages.

use mix::packet::HostName;
use mix::path::{ExitAddress, InvalidAddress, InvalidPathSpec, Mailbox, PathElement, PathKind, PathSpec};
use serde_json::Value;

use crate::{Tally, ensure, ensure_eq, hex, list, text};

/// Runs every part.
pub fn run(file: &Value, tally: &mut Tally) {
    for (part, cases) in file.as_object().expect("parts by name") {
        let check: fn(&Value) -> Result<(), String> = match part.as_str() {
            "hostname" => host_name,
            "mailbox" => mailbox,
            "parse_address" => address,
            "parse_path" => path,
            "server_side_fragment_prefix" => fragment_prefix,
            _ => |_| Err("no runner knows this part".to_owned()),
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
    let mailbox = Mailbox::parse(text(&case["s"]));
    if case["s"] == "|a@b.c" {
        // A defect of the reference: mail software may run it as a command.
        ensure_eq!(case["ok"], true, "the reference accepts it");
        ensure_eq!(mailbox, Err(InvalidAddress::LeadingPipe), "refused here");
        return Ok(());
    }
    ensure_eq!(mailbox.is_ok(), case["ok"] == true, "accepted");
    Ok(())
}

fn address(case: &Value) -> Result<(), String> {
    let address = ExitAddress::parse(text(&case["address"]));
    if case["last_hop"] == "some.where@else" {
        // The reference takes any text for a server and fails once it looks it up; here it must be a nickname.
        ensure!(matches!(address, Err(InvalidAddress::Server(_))), "the server is no nickname: {address:?}");
        return Ok(());
    }
    if case.get("error").is_some() {
        ensure!(address.is_err(), "accepted, but the reference refuses it");
        return Ok(());
    }
    let address = address.map_err(|e| format!("refused: {e}"))?;
    let (routing_type, info) = address.routing();
    ensure_eq!(u64::from(routing_type.0), case["exit_type"], "exit type");
    ensure_eq!(info, text(&case["exit_info"]).as_bytes(), "exit info");
    ensure_eq!(address.server().map(mix::directory::Nickname::as_str), case["last_hop"].as_str(), "last hop");
    ensure_eq!(!routing_type.has_handle(), case["suppress_tag"] == 1, "no decoding handle");
    Ok(())
}

fn path(case: &Value) -> Result<(), String> {
    let kind = match (case["is_reply"] == 1, case["is_surb"] == 1) {
        (false, false) => PathKind::Forward,
        (true, false) => PathKind::Reply,
        (false, true) => PathKind::Surb,
        (true, true) => return Err("both reply and SURB".to_owned()),
    };
    let spec = PathSpec::parse(text(&case["spec"]), kind);
    match (case.get("error"), spec) {
        (Some(error), Err(ours)) => same_refusal(text(&case["spec"]), text(error), &ours),
        (Some(error), Ok(_)) => Err(format!("accepted, but the reference says {error}")),
        (None, Err(ours)) => Err(format!("refused: {ours}")),
        (None, Ok(spec)) => same_path(case, &spec),
    }
}

fn same_refusal(spec: &str, error: &str, ours: &InvalidPathSpec) -> Result<(), String> {
    use InvalidPathSpec as E;
    let same = match error {
        "UIError: Can't specify swap point with replies" => matches!(ours, E::SwapPointInReply),
        "UIError: Only one ':' is permitted in a single path" => matches!(ours, E::SecondSwapPoint { .. }),
        "UIError: Invalid path" => matches!(ours, E::EmptyElement { .. }),
        "UIError: Mismatched quotes in path." => matches!(ours, E::OpenQuote { .. }),
        "UIError: Invalid quotes in path." => matches!(ours, E::AfterQuote { .. }),
        "UIError: * without a number is no longer supported." => matches!(ours, E::BareStar { .. }),
        "UIError: The path must have at least 1 hop" => matches!(ours, E::TooShort { needed: 1, .. }),
        // It counts elements before it looks at the legs; to name the empty leg says more.
        "UIError: The path must have at least 2 hops" if spec == "~0" => matches!(ours, E::AboutNone { element: 1 }),
        "UIError: The path must have at least 2 hops" => {
            matches!(ours, E::TooShort { needed: 2, .. } | E::EmptyLeg { .. })
        }
        // Defects of the reference: it breaks down. Here each has its name.
        "AssertionError: " if spec == "~1" => matches!(ours, E::TooShort { hops: 1, needed: 2 }),
        "AssertionError: " if spec == "~0" => matches!(ours, E::AboutNone { element: 1 }),
        "ValueError: invalid literal for int() with base 10: '2x'"
        | "ValueError: invalid literal for int() with base 10: '3z'" => matches!(ours, E::Number { element: 1 }),
        _ => false,
    };
    ensure!(same, "we say {ours:?}, the reference {error}");
    Ok(())
}

fn same_path(case: &Value, spec: &PathSpec) -> Result<(), String> {
    let (first, second) = spec.elements();
    ensure_eq!(shown(first), trimmed(&case["path1"]), "first leg");
    ensure_eq!(shown(second), trimmed(&case["path2"]), "second leg");
    ensure_eq!(spec.splits_at_middle(), case["late_split"] == 1, "divided at the middle");
    ensure_eq!(spec.to_string(), without_spaces(text(&case["str"])), "shown again");
    Ok(())
}

/// The elements in the words of the reference.
fn shown(elements: &[PathElement]) -> Vec<String> {
    let one = |element: &PathElement| match element {
        PathElement::Named(nickname) => format!("ServerPathElement('{nickname}')"),
        PathElement::File(name) => format!("ServerPathElement('{name}')"),
        PathElement::Random(0) => "RandomServersPathElement(approx=None)".to_owned(),
        PathElement::Random(hops) => format!("RandomServersPathElement(n={hops})"),
        PathElement::About(hops) => format!("RandomServersPathElement(approx={hops})"),
    };
    elements.iter().map(one).collect()
}

/// The reference keeps the spaces around separators and then finds no mix called ` A `; path-spec 3.1 ignores them.
fn trimmed(elements: &Value) -> Vec<String> {
    list(elements).iter().map(|element| text(element).replace("(' ", "('").replace(" ')", "')")).collect()
}

fn without_spaces(path: &str) -> String {
    path.split(',').map(str::trim).collect::<Vec<_>>().join(",")
}

fn fragment_prefix(case: &Value) -> Result<(), String> {
    let routing_type = case["routing_type"].as_u64().ok_or("a routing type")?;
    let address = format!("0x{routing_type:04x}:{}", text(&case["routing_info"]));
    let address = ExitAddress::parse(&address).map_err(|e| format!("refused: {e}"))?;
    ensure_eq!(address.fragment_prefix(), hex(&case["prefix_hex"]), "prefix");
    Ok(())
}
