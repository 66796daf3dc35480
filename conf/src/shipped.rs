//! Proof that a shipped file says the truth: every option, each with its true default.
//!
//! How a shipped file is written, line by line:
//! - `key = value` or `#key = value` or `# key = value`: an option and its default. Commented out or not is all one.
//! - `#: key = value` and `#: [section]`: an example for an option that has no default.
//! - `[section]`, or commented out as the options in it.
//! - any other line that begins with `#`: prose. Prose has no `word =` at its beginning.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::load::{Dict, Value, load_layers, parse, tree, tree_of};

/// A key that no configuration has, to see whether a section refuses it.
const NO_SUCH_KEY: &str = "no_such_key_at_all";

/// Checks that `text` lists every option of `C` with its true default, no other, examples only where there is no
/// default, and that each section of `C` refuses unknown keys.
///
/// # Errors
/// All that is wrong, a sentence each.
pub fn check_shipped<C>(text: &str) -> Result<(), Vec<String>>
where
    C: Serialize + DeserializeOwned + Default,
{
    let mut wrong = Vec::new();
    let shipped = uncomment(text);
    match (parse(&shipped.defaults), parse(&shipped.everything), tree::<C>()) {
        (Ok(listed), Ok(everything), Ok(defaults)) => {
            compare_keys(&listed, &everything, &defaults, &mut wrong);
            compare_values::<C>(&shipped, &mut wrong);
            probe_sections::<C>(&defaults, &mut wrong);
        }
        (listed, everything, defaults) => {
            wrong.extend([listed, everything].into_iter().filter_map(Result::err));
            wrong.extend(defaults.err().map(|error| error.to_string()));
        }
    }
    wrong.dedup();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// A shipped file as it would be with its options switched on.
struct Uncommented {
    /// Options with a default.
    defaults: String,
    /// The examples too.
    everything: String,
}

fn uncomment(text: &str) -> Uncommented {
    let mut shipped = Uncommented { defaults: String::new(), everything: String::new() };
    for line in text.lines() {
        let (line, example) = match line.trim_start().strip_prefix('#') {
            None => (line, false),
            Some(rest) => match rest.strip_prefix(':') {
                Some(example) => (example.trim_start(), true),
                None if is_option(rest.trim_start()) => (rest.trim_start(), false),
                None => ("", false),
            },
        };
        // Empty lines are kept, so that a complaint about syntax names the line of the shipped file.
        shipped.everything.push_str(line);
        shipped.everything.push('\n');
        shipped.defaults.push_str(if example { "" } else { line });
        shipped.defaults.push('\n');
    }
    shipped
}

/// Whether a commented line is an option, and not prose.
fn is_option(line: &str) -> bool {
    let bare = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '"'))
    };
    let section = line.trim_end().trim_matches(['[', ']']);
    (line.starts_with('[') && line.trim_end().ends_with(']') && bare(section))
        || line.split_once('=').is_some_and(|(key, _)| bare(key.trim_end()))
}

fn compare_keys(listed: &Dict, everything: &Dict, defaults: &Dict, wrong: &mut Vec<String>) {
    let (listed, everything, defaults) = (leaves(listed), leaves(everything), leaves(defaults));
    for (key, default) in &defaults {
        let below = format!("{key}.");
        let shown = |keys: &BTreeMap<String, Value>| keys.keys().any(|it| it == key || it.starts_with(&below));
        let open = is_open(default);
        if !shown(&everything) {
            wrong.push(format!("`{key}` is missing"));
        } else if !open && !shown(&listed) {
            wrong.push(format!("`{key}` has a default, so it is no example"));
        } else if matches!(default, Value::Empty(..)) && shown(&listed) {
            wrong.push(format!("`{key}` has no default, so it must be an example (`#: {key} = …`)"));
        }
    }
    for key in everything.keys() {
        // Below an option without default, or an empty list or table, the type decides, when the text is loaded.
        let known = defaults
            .iter()
            .any(|(known, default)| key == known || (is_open(default) && key.starts_with(&format!("{known}."))));
        if !known {
            wrong.push(format!("`{key}` is not an option"));
        }
    }
}

/// Whether the defaults say nothing of what may stand there.
fn is_open(default: &Value) -> bool {
    match default {
        Value::Empty(..) => true,
        Value::Dict(_, table) => table.is_empty(),
        Value::Array(_, list) => list.is_empty(),
        _ => false,
    }
}

fn compare_values<C>(shipped: &Uncommented, wrong: &mut Vec<String>)
where
    C: Serialize + DeserializeOwned + Default,
{
    let place = Some(Path::new("shipped file"));
    if let Err(error) = load_layers::<C>(place, &shipped.everything, Vec::new()) {
        wrong.push(error.to_string());
    }
    let loaded = load_layers::<C>(place, &shipped.defaults, Vec::new()).and_then(|loaded| tree_of(&loaded.settings));
    match (loaded, tree::<C>()) {
        (Ok(loaded), Ok(defaults)) => {
            let loaded = leaves(&loaded);
            for (key, default) in leaves(&defaults) {
                if matches!(default, Value::Empty(..)) {
                    continue;
                }
                if loaded.get(&key) != Some(&default) {
                    wrong.push(format!("`{key}`: the file says {:?}, the default is {default:?}", loaded.get(&key)));
                }
            }
        }
        (Err(error), _) | (_, Err(error)) => wrong.push(error.to_string()),
    }
}

/// Puts a made-up key into each section.
fn probe_sections<C>(defaults: &Dict, wrong: &mut Vec<String>)
where
    C: Serialize + DeserializeOwned + Default,
{
    let mut sections = vec![String::new()];
    collect_sections(defaults, "", &mut sections);
    for section in sections {
        let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let text = format!("{header}{NO_SUCH_KEY} = [[]]\n");
        if load_layers::<C>(Some(Path::new("probe")), &text, Vec::new()).is_ok() {
            wrong.push(format!("section [{section}] takes keys that it does not know"));
        }
    }
}

fn collect_sections(table: &Dict, above: &str, sections: &mut Vec<String>) {
    for (key, value) in table {
        if let Some(inner) = value.as_dict().filter(|inner| !inner.is_empty()) {
            let section = join(above, key);
            collect_sections(inner, &section, sections);
            sections.push(section);
        }
    }
}

/// Keys, sections included, with all values that are not tables of their own.
pub(crate) fn leaves(table: &Dict) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    collect_leaves(table, "", &mut found);
    found
}

fn collect_leaves(table: &Dict, above: &str, found: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let key = join(above, key);
        match value.as_dict() {
            Some(inner) if !inner.is_empty() => collect_leaves(inner, &key, found),
            _ => {
                found.insert(key, value.clone());
            }
        }
    }
}

fn join(above: &str, key: &str) -> String {
    if above.is_empty() { key.to_owned() } else { format!("{above}.{key}") }
}
