//! Settings as an operator meets them: four layers, and errors that say where to look.

// Helpers of tests are outside clippy's leave for tests.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use mixgate_conf::{BadSetting, ConfError, Loaded, MASK, Origin, Shown, changes, check_shipped, load, load_traced};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    name: String,
    door: Door,
    peers: Vec<Peer>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Door {
    listen: String,
    port: u16,
    password: Option<String>,
    mode: Mode,
    tags: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peer {
    host: String,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Open,
    Shut,
}

impl Default for Settings {
    fn default() -> Self {
        Self { name: "nobody".into(), door: Door::default(), peers: Vec::new() }
    }
}

impl Default for Door {
    fn default() -> Self {
        Self { listen: "127.0.0.1".into(), port: 2525, password: None, mode: Mode::Shut, tags: vec!["a".into()] }
    }
}

struct Given {
    directory: tempfile::TempDir,
    env: Vec<(String, String)>,
    overrides: Vec<(String, String)>,
}

impl Given {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("mixgate.toml"), text).unwrap();
        Self { directory, env: Vec::new(), overrides: Vec::new() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mixgate.toml")
    }

    fn env(mut self, variable: &str, value: &str) -> Self {
        self.env.push((variable.into(), value.into()));
        self
    }

    fn option(mut self, key: &str, value: &str) -> Self {
        self.overrides.push((key.into(), value.into()));
        self
    }

    fn load(&self) -> Result<Settings, ConfError> {
        load(Some(&self.path()), self.env.iter().cloned(), &["MIXGATE_CONFIG"], &self.overrides)
    }

    fn traced(&self) -> Loaded<Settings> {
        load_traced(Some(&self.path()), self.env.iter().cloned(), &["MIXGATE_CONFIG"], &self.overrides).unwrap()
    }

    fn error(&self) -> ConfError {
        self.load().unwrap_err()
    }
}

#[test]
fn without_a_file_the_defaults_hold() {
    let settings: Settings = load(None, std::iter::empty(), &[], &[]).unwrap();
    assert_eq!(settings, Settings::default());
}

#[test]
fn each_layer_wins_over_the_one_below() {
    let given = Given::new("name = \"file\"\n[door]\nport = 1\nlisten = \"file\"\nmode = \"open\"\n")
        .env("MIXGATE_DOOR__PORT", "2")
        .env("MIXGATE_DOOR__LISTEN", "env")
        .env("HOME", "/nowhere")
        .env("MIXGATE_CONFIG", "elsewhere.toml")
        .option("door.listen", "option");
    let settings = given.load().unwrap();
    assert_eq!(settings.name, "file");
    assert_eq!(settings.door.mode, Mode::Open);
    assert_eq!(settings.door.port, 2);
    assert_eq!(settings.door.listen, "option");
    assert_eq!(settings.door.tags, ["a"]);
}

#[test]
fn text_that_looks_like_a_number_or_a_list_stays_text_where_text_is_wanted() {
    let given = Given::new("")
        .env("MIXGATE_DOOR__PASSWORD", "0123")
        .env("MIXGATE_NAME", "[Anon]")
        .env("MIXGATE_DOOR__TAGS", "[b, c]")
        .option("door.listen", "true");
    let settings = given.load().unwrap();
    assert_eq!(settings.door.password.as_deref(), Some("0123"));
    assert_eq!(settings.name, "[Anon]");
    assert_eq!(settings.door.tags, ["b", "c"]);
    assert_eq!(settings.door.listen, "true");
}

#[test]
fn unknown_key_is_named_with_file_line_and_the_nearest_known_one() {
    let given = Given::new("name = \"x\"\n\n[door]\nport = 1\nlisten_on = 4\nlisen = \"y\"\n");
    // Tables are read in the order of their keys: `lisen` is met first.
    match given.error() {
        ConfError::UnknownKey { path, line, key, nearest } => {
            assert_eq!((path, line, key.as_str()), (given.path(), 6, "door.lisen"));
            assert_eq!(*nearest, ["door.listen"]);
        }
        other => panic!("{other:?}"),
    }
    let shown = given.error().to_string();
    assert!(shown.ends_with("mixgate.toml:6: unknown key `door.lisen`; did you mean `door.listen`?"), "{shown}");
}

#[test]
fn unknown_key_of_another_section_is_suggested_there() {
    let error = Given::new("password = \"x\"\n").error();
    assert!(matches!(&error, ConfError::UnknownKey { line: 1, nearest, .. } if *nearest == ["door.password"]));
}

#[test]
fn wrong_value_is_named_with_what_was_found_and_expected() {
    let given = Given::new("[door]\n# comment\nport = 70000\n");
    match given.error() {
        ConfError::WrongValue { path, line, key, found, expected } => {
            assert_eq!((path, line, key.as_str()), (given.path(), 3, "door.port"));
            assert_eq!(found, "the number 70000");
            assert_eq!(expected, "expected a whole number from 0 to 65535");
        }
        other => panic!("{other:?}"),
    }
    let error = Given::new("door.mode = \"ajar\"\n").error();
    assert!(
        matches!(&error, ConfError::WrongValue { line: 1, found, expected, .. }
            if found == "the text \"ajar\"" && expected == "expected one of `open`, `shut`"),
        "{error:?}"
    );
    let error = Given::new("door = 5\n").error();
    assert!(
        matches!(&error, ConfError::WrongValue { line: 1, expected, .. } if expected == "expected a table"),
        "{error:?}"
    );
}

#[test]
fn wrong_secret_is_not_shown() {
    let error = Given::new("[door]\npassword = 1234\n").error();
    assert!(matches!(&error, ConfError::WrongValue { found, .. } if found == "a number (not shown)"), "{error:?}");
}

#[test]
fn text_in_quotes_is_read_whole_whatever_letters_stand_before_an_escape() {
    for (written, read) in [
        (r#""Gr\u00fc\u00dfe\r\nx""#, "Gr\u{fc}\u{df}e\r\nx"),
        ("\"Gr\u{fc}\u{df}e\\r\\nx\"", "Gr\u{fc}\u{df}e\r\nx"),
        ("\"\u{e9}\u{e9}\\t!\"", "\u{e9}\u{e9}\t!"),
        (" \"\u{e9}\\\"\" ", "\u{e9}\""),
        // No TOML: the text as it stands.
        ("\"\u{e9}\\x\"", "\"\u{e9}\\x\""),
        ("\u{e9}\\t\"", "\u{e9}\\t\""),
    ] {
        let settings = Given::new("").env("MIXGATE_DOOR__PASSWORD", written).option("name", written).load().unwrap();
        assert_eq!((settings.door.password.as_deref(), settings.name.as_str()), (Some(read), read));
    }
    let tags = Given::new("").option("door.tags", "[\"\u{e9}\\n\", \"b\"]").load().unwrap().door.tags;
    assert_eq!(tags, ["\u{e9}\n", "b"]);
}

#[test]
fn secret_in_quotes_is_shown_by_no_error() {
    for written in ["{ p\u{e4}ss = \"p\u{e4}ssw\u{f6}rt\\n\" }", "[\"p\u{e4}ssw\u{f6}rt\\n\", [\"ssw\"]]"] {
        let settings = Given::new("").env("MIXGATE_DOOR__PASSWORD", written).load().unwrap();
        assert_eq!(settings.door.password.as_deref(), Some(written));
        let error = Given::new("").env("MIXGATE_DOOR__PASSWORD__X", written).error();
        assert!(!format!("{error} {error:?}").contains("ssw"), "{error}");
    }
}

#[test]
fn errors_inside_a_list_of_tables_name_the_line_in_it() {
    let text = "[[peers]]\nhost = \"a\"\nport = 1\n\n[[peers]]\nhost = \"b\"\n";
    let error = Given::new(text).error();
    assert!(matches!(&error, ConfError::MissingKey { line: 5, key, .. } if key == "peers.1.port"), "{error:?}");
    let error = Given::new(&format!("{text}port = \"x\"\n")).error();
    assert!(matches!(&error, ConfError::WrongValue { line: 7, key, .. } if key == "peers.1.port"), "{error:?}");
    let error = Given::new(&format!("{text}port = 2\nprot = 3\n")).error();
    assert!(matches!(&error, ConfError::UnknownKey { line: 8, key, .. } if key == "peers.1.prot"), "{error:?}");
    let error = Given::new("[door]\ntags = [\n  \"a\",\n  5,\n]\n").error();
    assert!(matches!(&error, ConfError::WrongValue { line: 4, key, .. } if key == "door.tags.1"), "{error:?}");
}

#[test]
fn unknown_variable_is_an_error_that_names_it() {
    let error = Given::new("").env("MIXGATE_DOOR__PROT", "5").error();
    match &error {
        ConfError::Environment { variable, problem: BadSetting::Unknown { key, nearest } } => {
            assert_eq!(variable, "MIXGATE_DOOR__PROT");
            assert_eq!(key, "door.prot");
            assert_eq!(*nearest, ["MIXGATE_DOOR__PORT"]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        error.to_string(),
        "environment variable MIXGATE_DOOR__PROT: no such key `door.prot`; did you mean `MIXGATE_DOOR__PORT`?"
    );
    let error = Given::new("").env("MIXGATE_", "5").error();
    assert!(matches!(error, ConfError::Environment { problem: BadSetting::Unknown { .. }, .. }));
}

#[test]
fn wrong_variable_is_blamed_even_where_the_file_has_the_key_too() {
    let error = Given::new("[door]\nport = 1\n").env("MIXGATE_DOOR__PORT", "70000").error();
    match error {
        ConfError::Environment { variable, problem: BadSetting::Wrong { found, expected } } => {
            assert_eq!(variable, "MIXGATE_DOOR__PORT");
            assert_eq!(expected, "expected a whole number from 0 to 65535");
            assert!(found.contains("70000"), "{found}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_option_of_the_command_line_is_named() {
    let error = Given::new("").option("door.mode", "ajar").error();
    assert!(matches!(&error, ConfError::Override { key, problem: BadSetting::Wrong { .. } } if key == "door.mode"));
    let error = Given::new("").option("dor.mode", "open").error();
    assert!(
        matches!(&error, ConfError::Override { problem: BadSetting::Unknown { nearest, .. }, .. } if *nearest == ["door"])
    );
}

#[test]
fn broken_toml_is_named_with_its_line() {
    let error = Given::new("name = \"x\"\n[door\nport = 1\n").error();
    assert!(matches!(error, ConfError::Syntax { line: 2, .. }), "{error:?}");
    let error = Given::new("name = \"x\"\nname = \"y\"\n").error();
    assert!(matches!(error, ConfError::Syntax { line: 2, .. }), "{error:?}");
}

#[test]
fn file_that_is_not_there_is_an_error() {
    let path = Given::new("").path().join("nothing.toml");
    let error = load::<Settings>(Some(&path), std::iter::empty(), &[], &[]).unwrap_err();
    assert!(matches!(error, ConfError::Unreadable { .. }));
}

const SHIPPED: &str = r#"
# Settings of nobody.
#name = "nobody"

[door]
# Where to listen. The port = the usual one.
# listen = "127.0.0.1"
port = 2525
# Asked of every caller:
#: password = "correct horse"
#mode = "shut"
#tags = ["a"]

#: [[peers]]
#: host = "example.org"
#: port = 5
"#;

#[test]
fn shipped_file_with_every_option_passes() {
    check_shipped::<Settings>(SHIPPED).unwrap();
}

#[track_caller]
fn assert_complaint(from: &str, to: &str, complaint: &str) {
    assert!(SHIPPED.contains(from));
    let complaints = check_shipped::<Settings>(&SHIPPED.replace(from, to)).unwrap_err();
    assert!(complaints.iter().any(|it| it.contains(complaint)), "{complaints:?}");
}

#[test]
fn shipped_file_that_lies_is_found_out() {
    assert_complaint("#mode = \"shut\"", "", "`door.mode` is missing");
    assert_complaint("#: password = \"correct horse\"", "", "`door.password` is missing");
    assert_complaint("port = 2525", "port = 25", "`door.port`: the file says");
    assert_complaint("#tags", "#tegs", "`door.tegs` is not an option");
    assert_complaint("#: password", "#password", "`door.password` has no default");
    assert_complaint("#mode", "#: mode", "`door.mode` has a default, so it is no example");
    assert_complaint("#: port = 5", "#: port = \"x\"", "peers.0.port");
    assert_complaint("[door]", "[door", "TOML");
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Lenient {
    a: u8,
}

#[test]
fn type_that_takes_unknown_keys_is_found_out() {
    let complaints = check_shipped::<Lenient>("a = 0\n").unwrap_err();
    assert_eq!(complaints, ["section [] takes keys that it does not know"]);
}

#[test]
fn each_kind_of_mistake_is_named_in_each_layer_with_what_was_expected() {
    for (key, value, expected) in [
        ("door.port", "\"x\"", "expected a whole number from 0 to 65535"),
        ("door.port", "70000", "expected a whole number from 0 to 65535"),
        ("door.port", "-1", "expected a whole number from 0 to 65535"),
        ("door.mode", "\"ajar\"", "expected one of `open`, `shut`"),
        ("door.tags", "5", "expected a list"),
        ("door", "5", "expected a table"),
    ] {
        let found_in = |given: Given| {
            let shown = given.error().to_string();
            assert!(shown.contains(expected), "{key}: {shown}");
            shown
        };
        let shown = found_in(Given::new(&format!("\n{key} = {value}\n")));
        assert!(shown.contains("mixgate.toml:2: "), "{shown}");
        let variable = format!("MIXGATE_{}", key.to_ascii_uppercase().replace('.', "__"));
        let shown = found_in(Given::new("").env(&variable, value));
        assert!(shown.starts_with(&format!("environment variable {variable}: ")), "{shown}");
        let shown = found_in(Given::new("").option(key, value));
        assert!(shown.starts_with(&format!("command line: `{key}`: ")), "{shown}");
    }
}

#[test]
fn each_value_knows_where_it_came_from() {
    let given = Given::new("name = \"x\"\n[door]\ntags = [\n\"a\"]\nport = 1\n[[peers]]\nhost = \"a\"\nport = 2\n")
        .env("MIXGATE_DOOR__PORT", "2")
        .option("door.mode", "open");
    let Loaded { origins, .. } = given.traced();
    let line = |line| Origin::File { path: given.path(), line };
    assert_eq!(origins.of("name"), line(1));
    assert_eq!(origins.of("door.tags"), line(3));
    assert_eq!(origins.of("door.port"), Origin::Environment("MIXGATE_DOOR__PORT".into()));
    assert_eq!(origins.of("door.mode"), Origin::CommandLine);
    assert_eq!(origins.of("door.listen"), Origin::Default);
    assert_eq!(origins.of("peers"), line(6));
    assert_eq!(origins.of("peers.0.port"), line(8));
    assert_eq!(origins.place_of("door.listen"), Some(line(2)), "the section around it");
    assert_eq!(origins.place_of("elsewhere.entirely"), None);
}

#[test]
fn settings_in_force_are_shown_and_can_be_read_again() {
    let text = "name = \"a \\\"quoted\\\"\\n\\u0001 \\\\ name\"\n[door]\npassword = \"open sesame\"\n[[peers]]\nhost = \"a\"\nport = 2\n";
    let given = Given::new(text);
    let shown = Shown::of(&given.traced()).unwrap();
    let toml = shown.toml();
    assert!(!toml.contains("sesame") && toml.contains(MASK), "{toml}");
    assert!(toml.contains(&format!("port = 2525  # {}\n", Origin::Default)), "{toml}");
    let again = Given::new(&toml).load().unwrap();
    let mut expected = given.load().unwrap();
    expected.door.password = Some(MASK.into());
    assert_eq!(again, expected);
    let bare = Shown::of(&Given::new("").traced()).unwrap().toml();
    assert!(bare.contains("# password has no value  # default\n"), "{bare}");
    assert_eq!(Given::new(&bare).load().unwrap(), Settings::default());
}

#[test]
fn changes_are_taken_where_they_may_be_and_named_where_not() {
    let old = Given::new("name = \"old\"\n[door]\nport = 1\n").load().unwrap();
    let text =
        "name = \"new\"\n[door]\nport = 2\nmode = \"open\"\npassword = \"x\"\n[[peers]]\nhost = \"a\"\nport = 1\n";
    let new = Given::new(text).load().unwrap();
    let taken = changes(&old, &new, |key| key.starts_with("door.") && key != "door.port").unwrap();
    assert_eq!(taken.changed, ["door.mode", "door.password"]);
    assert_eq!(taken.kept, ["door.port", "name", "peers"]);
    let mut expected = old.clone();
    expected.door.mode = Mode::Open;
    expected.door.password = Some("x".into());
    assert_eq!(taken.settings, expected);
    // And back to no value at all.
    let back = changes(&expected, &old, |_| true).unwrap();
    assert_eq!(back.settings, old);
    let none = changes(&old, &old, |_| true).unwrap();
    assert!(none.changed.is_empty() && none.kept.is_empty());
}

/// A list that its type reads by itself.
#[derive(Debug, Default, Serialize)]
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::{Error as _, Unexpected};
        let words = Vec::<String>::deserialize(deserializer)?;
        match words.iter().find(|word| word.contains(' ')) {
            Some(word) => Err(D::Error::invalid_value(Unexpected::Str(word), &"single words")),
            None => Ok(Self(words)),
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Speech {
    words: Words,
}

#[test]
fn element_that_a_list_does_not_take_is_shown() {
    let given = Given::new("words = [\"one\", \"two three\"]\n");
    let error = load::<Speech>(Some(&given.path()), std::iter::empty(), &[], &[]).unwrap_err();
    assert!(
        matches!(&error, ConfError::WrongValue { line: 1, found, expected, .. }
            if found == "a list with the text \"two three\"" && expected == "expected single words"),
        "{error:?}"
    );
}
