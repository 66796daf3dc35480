//! The layers and how they are laid on each other; the only file that names figment.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use figment::error::{Actual, Error, Kind};
use figment::providers::{Format, Serialized, Toml};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{BadSetting, ConfError};
use crate::origin::{Loaded, Origin, Origins};
use crate::place::Places;
use crate::show::MASK;

pub(crate) use figment::value::{Dict, Value};

/// What a variable must begin with to be a setting.
pub const ENVIRONMENT_PREFIX: &str = "MIXGATE_";

/// Keys that are suggested for one, at most.
const MOST_SUGGESTED: usize = 6;

/// What stands between the levels of a key in a variable's name: one underscore may be part of a key.
const LEVEL_SEPARATOR: &str = "__";

/// Reads the configuration: the type's defaults, then `file`, then the variables of `env` that begin with
/// [`ENVIRONMENT_PREFIX`] (`MIXGATE_GATEWAY__SMTP__LISTEN` is `gateway.smtp.listen`), then `overrides` (dotted key,
/// value). The later wins. `reserved` are whole names of variables with the prefix that are not settings.
///
/// Values of variables and overrides are read as TOML would (`5`, `true`, `["a", "b"]`), and as plain text where that
/// does not fit, so that a password of digits needs no quotes.
///
/// # Errors
/// [`ConfError`], which names the place to edit.
pub fn load<C>(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    reserved: &[&str],
    overrides: &[(String, String)],
) -> Result<C, ConfError>
where
    C: Serialize + DeserializeOwned + Default,
{
    load_traced(file, env, reserved, overrides).map(|loaded| loaded.settings)
}

/// [`load`], and where each value came from.
///
/// # Errors
/// [`ConfError`], which names the place to edit.
pub fn load_traced<C>(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    reserved: &[&str],
    overrides: &[(String, String)],
) -> Result<Loaded<C>, ConfError>
where
    C: Serialize + DeserializeOwned + Default,
{
    let text = match file {
        Some(path) => fs::read_to_string(path).map_err(|source| ConfError::Unreadable { path: path.into(), source })?,
        None => String::new(),
    };
    let settings = from_environment(env, reserved).into_iter().chain(overrides.iter().map(Setting::from_override));
    load_layers(file, &text, settings.collect())
}

/// [`load_traced`] with the file read already.
pub(crate) fn load_layers<C>(
    file: Option<&Path>,
    text: &str,
    mut settings: Vec<Setting>,
) -> Result<Loaded<C>, ConfError>
where
    C: Serialize + DeserializeOwned + Default,
{
    let path = file.unwrap_or(Path::new("-"));
    let syntax = |(line, problem)| ConfError::Syntax { path: path.into(), line, problem };
    let places = Places::parse(text).map_err(syntax)?;
    let file_layer: Dict = Toml::from_str(text).map_err(|error| syntax((1, error.to_string())))?;
    let defaults = tree::<C>()?;

    // Whether `0123` is a number or a password only the type can say: read as a number first, and once more as text.
    let mut complaints: BTreeMap<usize, Error> = BTreeMap::new();
    loop {
        let mut figment = Figment::from(Serialized::defaults(&defaults)).merge(Layer(file_layer.clone()));
        for setting in &settings {
            figment = figment.merge(Layer(setting.nested()));
        }
        let error = match figment.extract::<C>() {
            Ok(configuration) => {
                let origins = origins(file, &places, settings);
                return Ok(Loaded { settings: configuration, origins });
            }
            Err(error) => error,
        };
        let blamed = blamed(&settings, &places, &error.path);
        if let Some(index) = blamed
            && let Some(setting) = settings.get_mut(index)
            && setting.read_as_text()
        {
            complaints.insert(index, error);
            continue;
        }
        let error = blamed.and_then(|index| complaints.remove(&index)).unwrap_or(error);
        let merged = figment.data().ok().and_then(|data| found(data.get(&Profile::Default)?, &error.path));
        let problem = problem(&error, merged.as_ref(), &defaults);
        let setting = blamed.and_then(|index| settings.into_iter().nth(index));
        return Err(blame(setting, file.map(|path| (path, &places)), &error, problem));
    }
}

/// The value at a path, through tables by name and through lists by number.
fn found(tree: &Dict, path: &[String]) -> Option<Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(tree.get(first)?, |value, part| match value {
            Value::Dict(_, table) => table.get(part),
            Value::Array(_, list) => list.get(part.parse::<usize>().ok()?),
            _ => None,
        })
        .cloned()
}

/// A configuration as keys and values back into its type.
pub(crate) fn typed<C: DeserializeOwned>(tree: Dict) -> Result<C, String> {
    Figment::from(Layer(tree)).extract::<C>().map_err(|error| error.to_string())
}

/// The defaults of `C`, keys without a value included.
pub(crate) fn tree<C: Serialize + Default>() -> Result<Dict, ConfError> {
    tree_of(&C::default())
}

/// A configuration as keys and values.
pub(crate) fn tree_of<C: Serialize>(configuration: &C) -> Result<Dict, ConfError> {
    let broken = |expected: String| ConfError::Defaults {
        key: String::new(),
        problem: BadSetting::Wrong { found: "a configuration".into(), expected },
    };
    let value = Value::serialize(configuration).map_err(|error| broken(error.to_string()))?;
    value.into_dict().ok_or_else(|| broken("expected a table".into()))
}

/// A TOML text as keys and values.
pub(crate) fn parse(text: &str) -> Result<Dict, String> {
    Toml::from_str(text).map_err(|error| error.to_string())
}

/// Where the values of these layers come from.
fn origins(file: Option<&Path>, places: &Places, settings: Vec<Setting>) -> Origins {
    let set = settings.into_iter().map(|Setting { variable, path, .. }| {
        let origin = variable.map_or(Origin::CommandLine, Origin::Environment);
        (path, origin)
    });
    let lines = file.map(|path| (path.to_owned(), places.lines()));
    Origins::new(lines, set.collect())
}

/// One variable, or one override.
pub(crate) struct Setting {
    variable: Option<String>,
    path: Vec<String>,
    text: String,
    value: Value,
}

impl Setting {
    fn new(variable: Option<String>, path: Vec<String>, text: String) -> Self {
        let value = read(&text);
        Self { variable, path, text, value }
    }

    fn from_override((key, value): &(String, String)) -> Self {
        Self::new(None, key.split('.').map(str::to_owned).collect(), value.clone())
    }

    /// `path` over `value`, as tables in tables.
    fn nested(&self) -> Dict {
        let mut value = self.value.clone();
        for part in self.path.iter().rev() {
            value = Value::from(Dict::from([(part.clone(), value)]));
        }
        value.into_dict().unwrap_or_default()
    }

    /// Falls back from a number or a list to the text as it stands; false when it was text already.
    fn read_as_text(&mut self) -> bool {
        if self.value.as_str() == Some(&self.text) {
            return false;
        }
        self.value = Value::from(self.text.as_str());
        true
    }
}

/// A value as TOML has it, or the text as it stands. figment reads more than TOML (`[a, b]`), but counts letters of a text in
/// quotes as octets: it breaks down at an escape behind a letter that is not ASCII, with some of the text on the terminal, or
/// loses what is before it.
fn read(text: &str) -> Value {
    if text.contains('"') && text.contains('\\') {
        let toml = text.trim().parse().map(|value| of_toml(&value));
        return toml.unwrap_or_else(|_| Value::from(text));
    }
    text.parse().unwrap_or_else(|_| Value::from(text))
}

fn of_toml(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::from(text.value().as_str()),
        toml_edit::Value::Integer(number) => Value::from(*number.value()),
        toml_edit::Value::Float(number) => Value::from(*number.value()),
        toml_edit::Value::Boolean(truth) => Value::from(*truth.value()),
        toml_edit::Value::Datetime(time) => Value::from(time.value().to_string()),
        toml_edit::Value::Array(list) => Value::from(list.iter().map(of_toml).collect::<Vec<_>>()),
        toml_edit::Value::InlineTable(table) => {
            let table = table.iter().map(|(key, value)| (key.to_owned(), of_toml(value)));
            Value::from(table.collect::<Dict>())
        }
    }
}

/// In order of the names, so that the same variables always give the same outcome.
fn from_environment(env: impl Iterator<Item = (String, String)>, reserved: &[&str]) -> Vec<Setting> {
    let mut settings: Vec<Setting> = env
        .filter(|(variable, _)| !reserved.contains(&variable.as_str()))
        .filter_map(|(variable, text)| {
            let levels = variable.strip_prefix(ENVIRONMENT_PREFIX)?.split(LEVEL_SEPARATOR);
            let path = levels.map(str::to_ascii_lowercase).collect();
            Some(Setting::new(Some(variable), path, text))
        })
        .collect();
    settings.sort_by(|a, b| a.variable.cmp(&b.variable));
    settings
}

/// Which setting is at fault for an error at `path`, if it is not the file: the last that set the key or a table
/// around it; else, where the file does not have the key, the last that set something below it.
fn blamed(settings: &[Setting], places: &Places, path: &[String]) -> Option<usize> {
    let above = settings.iter().rposition(|setting| path.starts_with(&setting.path));
    let in_file = || matches!(places.find(path), Some((_, true)));
    above.or_else(|| if in_file() { None } else { settings.iter().rposition(|it| it.path.starts_with(path)) })
}

/// Names the place to edit.
fn blame(setting: Option<Setting>, file: Option<(&Path, &Places)>, error: &Error, problem: BadSetting) -> ConfError {
    if let Some(Setting { variable, path, .. }) = setting {
        return match variable {
            Some(variable) => ConfError::Environment { variable, problem: problem.in_variables() },
            None => ConfError::Override { key: path.join("."), problem },
        };
    }
    let key = error.path.join(".");
    let place = file.and_then(|(path, places)| Some((PathBuf::from(path), places.find(&error.path)?.0)));
    let Some((path, line)) = place else { return ConfError::Defaults { key, problem } };
    match problem {
        BadSetting::Unknown { key, nearest } => ConfError::UnknownKey { path, line, key, nearest },
        BadSetting::Wrong { found, expected } => ConfError::WrongValue { path, line, key, found, expected },
        BadSetting::Missing { key } => ConfError::MissingKey { path, line, key },
    }
}

impl BadSetting {
    /// Keys that may be meant, as variables are called.
    fn in_variables(self) -> Self {
        let named =
            |key: String| format!("{ENVIRONMENT_PREFIX}{}", key.to_ascii_uppercase().replace('.', LEVEL_SEPARATOR));
        match self {
            Self::Unknown { key, nearest } => Self::Unknown { key, nearest: nearest.into_iter().map(named).collect() },
            other => other,
        }
    }
}

/// What figment said, in the operator's words.
fn problem(error: &Error, value: Option<&Value>, defaults: &Dict) -> BadSetting {
    let key = error.path.join(".");
    let found = match (&error.kind, value) {
        // A type that reads its list itself says which element it does not take.
        (Kind::InvalidValue(Actual::Str(text), _), Some(Value::Array(..))) if !may_hold_secrets(&key) => {
            format!("a list with the text {:?}", without_credentials(text))
        }
        (_, Some(value)) => describe(&key, value),
        (_, None) => "absent".to_owned(),
    };
    let expected = match &error.kind {
        Kind::UnknownField(_, siblings) => {
            return BadSetting::Unknown { key, nearest: nearest(&error.path, siblings, defaults) };
        }
        Kind::MissingField(name) => {
            let whole: Vec<&str> = error.path.iter().map(String::as_str).chain([name.as_ref()]).collect();
            return BadSetting::Missing { key: whole.join(".") };
        }
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) | Kind::InvalidLength(_, expected) => {
            format!("expected {}", plain_words(expected))
        }
        Kind::UnknownVariant(_, variants) => {
            let names: Vec<String> = variants.iter().map(|name| format!("`{name}`")).collect();
            format!("expected one of {}", names.join(", "))
        }
        // The owner's own sentence, or one of figment's rare ones.
        other => other.to_string(),
    };
    BadSetting::Wrong { found, expected }
}

/// Rust's names of numbers mean nothing to an operator.
fn plain_words(expected: &str) -> String {
    match expected {
        "u8" => format!("a whole number from 0 to {}", u8::MAX),
        "u16" => format!("a whole number from 0 to {}", u16::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" | "usize" => "a whole number, not below 0".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a nonzero u16" => format!("a whole number from 1 to {}", u16::MAX),
        "a nonzero u32" => format!("a whole number from 1 to {}", u32::MAX),
        "a nonzero u64" | "a nonzero usize" => "a whole number above 0".into(),
        "a boolean" => "`true` or `false`".into(),
        "a sequence" => "a list".into(),
        "a duration" => "a time such as \"15 minutes\"".into(),
        other => other.strip_prefix("struct ").map_or_else(|| other.to_owned(), |_| "a table".to_owned()),
    }
}

/// Whether the value of a key may be a secret, by its name.
pub(crate) fn is_secret(key: &str) -> bool {
    let name = key.rsplit('.').find(|part| part.parse::<usize>().is_err()).unwrap_or(key);
    ["password", "passphrase", "secret"].iter().any(|word| name.contains(word))
}

/// As [`is_secret`], and where somebody may have written accounts with their passwords into one text.
fn may_hold_secrets(key: &str) -> bool {
    let name = key.rsplit('.').find(|part| part.parse::<usize>().is_err()).unwrap_or(key);
    is_secret(key) || name == "identities"
}

/// A text, with who logs in masked where it is a URL that says so.
pub(crate) fn without_credentials(text: &str) -> Cow<'_, str> {
    let masked = text.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (_, host) = authority.rsplit_once('@')?;
        Some(format!("{scheme}://{MASK}@{host}{path}"))
    });
    masked.map_or(Cow::Borrowed(text), Cow::Owned)
}

/// A value as an error shows it. What may be a secret is not shown.
fn describe(key: &str, value: &Value) -> String {
    let secret = may_hold_secrets(key);
    match value {
        Value::Dict(..) => "a table".into(),
        Value::Array(..) => "a list".into(),
        Value::Empty(..) => "absent".into(),
        Value::String(..) | Value::Char(..) if secret => "a text (not shown)".into(),
        Value::Num(..) if secret => "a number (not shown)".into(),
        Value::String(_, text) => format!("the text {:?}", without_credentials(text)),
        Value::Char(_, letter) => format!("the text \"{letter}\""),
        Value::Bool(_, truth) => format!("`{truth}`"),
        Value::Num(_, number) => match (number.to_i128(), number.to_u128(), number.to_f64()) {
            (Some(number), ..) => format!("the number {number}"),
            (_, Some(number), _) => format!("the number {number}"),
            (_, _, Some(number)) => format!("the number {number}"),
            _ => "a number".into(),
        },
    }
}

/// The known keys that were probably meant: those that differ least, by their name alone or as a whole, where a dot is
/// as good as an underscore. Of those that differ as little, the ones in or nearest to the section where the key stands.
fn nearest(path: &[String], siblings: &[&str], defaults: &Dict) -> Vec<String> {
    let Some((name, section)) = path.split_last() else { return Vec::new() };
    let mut known = Vec::new();
    all_keys(defaults, &mut Vec::new(), &mut known);
    known.extend(siblings.iter().map(|last| [section, &[(*last).to_owned()]].concat()));
    let whole = |key: &[String]| key.join("_");
    let rank = |key: &Vec<String>| {
        let by_name = key.last().map_or(usize::MAX, |last| edits(name, last));
        let shared = key.iter().zip(section).take_while(|(one, other)| one == other).count();
        (by_name.min(edits(&whole(path), &whole(key))), Reverse(shared))
    };
    let Some(best) = known.iter().map(rank).min().filter(|best| best.0 <= 1 + name.chars().count() / 4) else {
        return Vec::new();
    };
    let mut meant: Vec<String> = known.iter().filter(|key| rank(key) == best).map(|key| key.join(".")).collect();
    meant.sort();
    meant.dedup();
    // More is no help.
    if meant.len() > MOST_SUGGESTED { Vec::new() } else { meant }
}

fn all_keys(table: &Dict, above: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    for (key, value) in table {
        above.push(key.clone());
        found.push(above.clone());
        if let Some(table) = value.as_dict() {
            all_keys(table, above, found);
        }
        above.pop();
    }
}

/// Insertions, removals and replacements between two words (Levenshtein), row by row.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (done, letter) in from.chars().enumerate() {
        let mut next = vec![done + 1];
        for ((pair, other), left_count) in row.windows(2).zip(&to).zip(0..) {
            let &[diagonal, above] = pair else { continue };
            let left = next.get(left_count).copied().unwrap_or(usize::MAX - 1);
            next.push((above + 1).min(left + 1).min(diagonal + usize::from(letter != *other)));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

/// One layer of keys and values.
struct Layer(Dict);

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named("settings")
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::edits;

    #[test]
    fn edits_are_counted_letter_by_letter() {
        assert_eq!(edits("listen", "listen"), 0);
        assert_eq!(edits("lisen", "listen"), 1);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
