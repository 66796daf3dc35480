//! A configuration as it is in force, with where each value came from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::ConfError;
use crate::load::{Dict, Value, is_secret, tree_of, without_credentials};
use crate::origin::{Loaded, Origin};

/// What stands in place of a secret.
pub const MASK: &str = "********";

/// A configuration to look at. Secrets are masked.
#[derive(Clone, Debug)]
pub struct Shown {
    values: Dict,
    origins: BTreeMap<String, Origin>,
}

impl Shown {
    /// What is in force in `loaded`.
    ///
    /// # Errors
    /// [`ConfError::Defaults`] when the type makes no table.
    pub fn of<C: Serialize>(loaded: &Loaded<C>) -> Result<Self, ConfError> {
        let mut values = tree_of(&loaded.settings)?;
        let mut origins = BTreeMap::new();
        visit(&mut values, "", &mut |key, value| {
            origins.insert(key.to_owned(), loaded.origins.of(key));
            mask(key, value);
        });
        Ok(Self { values, origins })
    }

    /// As TOML that can be read again; what has no value is a comment. A list of tables stands in one line.
    pub fn toml(&self) -> String {
        let mut text = String::new();
        self.section(&self.values, "", &mut text);
        text
    }

    fn section(&self, table: &Dict, above: &str, text: &mut String) {
        let (sections, keys): (Vec<_>, Vec<_>) =
            table.iter().partition(|(_, value)| matches!(value, Value::Dict(_, inner) if !inner.is_empty()));
        if !above.is_empty() && !keys.is_empty() {
            text.push_str(&format!("\n[{above}]\n"));
        }
        for (name, value) in keys {
            let origin = self.origins.get(&join(above, name)).unwrap_or(&Origin::Default);
            match value {
                Value::Empty(..) => text.push_str(&format!("# {name} has no value  # {origin}\n")),
                value => text.push_str(&format!("{name} = {}  # {origin}\n", literal(value))),
            }
        }
        for (name, value) in sections {
            if let Some(inner) = value.as_dict() {
                self.section(inner, &join(above, name), text);
            }
        }
    }

    /// Dotted keys, each with its value and where it came from.
    pub fn entries(&self) -> impl Serialize {
        let mut values = self.values.clone();
        let mut entries = BTreeMap::new();
        visit(&mut values, "", &mut |key, value| {
            entries.insert(key.to_owned(), value.clone());
        });
        let origins = &self.origins;
        let entries = entries.into_iter().map(|(key, value)| {
            let from = origins.get(&key).unwrap_or(&Origin::Default).to_string();
            (key, Entry { value, from })
        });
        entries.collect::<BTreeMap<_, _>>()
    }
}

/// One value to look at.
#[derive(Serialize)]
struct Entry {
    value: Value,
    from: String,
}

fn visit(table: &mut Dict, above: &str, look: &mut impl FnMut(&str, &mut Value)) {
    for (name, value) in table.iter_mut() {
        let key = join(above, name);
        match value {
            Value::Dict(_, inner) if !inner.is_empty() => visit(inner, &key, look),
            value => look(&key, value),
        }
    }
}

/// Masks what may be a secret, in lists of tables too, and who logs in by a URL. An empty one is none, and shows that it is missing.
fn mask(key: &str, value: &mut Value) {
    match value {
        Value::Array(_, list) => list.iter_mut().for_each(|value| mask(key, value)),
        Value::Dict(_, table) => table.iter_mut().for_each(|(name, value)| mask(name, value)),
        Value::Empty(..) => {}
        value if is_secret(key) && value.as_str() != Some("") => *value = Value::from(MASK),
        value => {
            if let Some(Cow::Owned(masked)) = value.as_str().map(without_credentials) {
                *value = Value::from(masked);
            }
        }
    }
}

/// A value as TOML writes it, in one line.
fn literal(value: &Value) -> String {
    match value {
        Value::String(_, text) => quoted(text),
        Value::Char(_, letter) => quoted(&letter.to_string()),
        Value::Bool(_, truth) => truth.to_string(),
        Value::Num(_, number) => match (number.to_i128(), number.to_u128(), number.to_f64()) {
            (Some(number), ..) => number.to_string(),
            (_, Some(number), _) => number.to_string(),
            // With its point: TOML tells whole numbers from others.
            (_, _, number) => format!("{:?}", number.unwrap_or_default()),
        },
        Value::Empty(..) => quoted(""),
        Value::Dict(_, table) => {
            let inner = table.iter().filter(|(_, value)| !matches!(value, Value::Empty(..)));
            let inner: Vec<String> = inner.map(|(name, value)| format!("{name} = {}", literal(value))).collect();
            if inner.is_empty() { "{}".into() } else { format!("{{ {} }}", inner.join(", ")) }
        }
        Value::Array(_, list) => format!("[{}]", list.iter().map(literal).collect::<Vec<_>>().join(", ")),
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            letter if letter.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(letter))),
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

fn join(above: &str, key: &str) -> String {
    if above.is_empty() { key.to_owned() } else { format!("{above}.{key}") }
}
