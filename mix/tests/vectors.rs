//! What the reference implementation computed, case by case.
//!
//! Runs every case of every file in `tests/vectors/`, or in the folder that the variable `MIX_VECTORS` names, and
//! prints for each file how many cases ran and passed. A case of a kind that is not known here fails, and so does a
//! file in which nothing ran.

#![allow(unreachable_pub, reason = "a test is a crate of its own; its modules only share")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    clippy::print_stdout,
    reason = "a vector that is not what it should be ends its case, and the tally is printed"
)]

mod cases;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use base64::Engine as _;
use serde_json::Value;

/// Counts the cases of one file.
#[derive(Default)]
pub struct Tally {
    ran: usize,
    failures: Vec<String>,
}

impl Tally {
    /// Runs one case and remembers how it ended; a panic is a failure.
    pub fn case(&mut self, name: &str, check: impl FnOnce() -> Result<(), String>) {
        self.ran += 1;
        let outcome = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|_| Err("panicked".to_owned()));
        if let Err(why) = outcome {
            self.failures.push(format!("{name}: {why}"));
        }
    }
}

/// Ends the case with a failure unless the two are equal.
#[macro_export]
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $what:expr) => {
        match (&$left, &$right) {
            (left, right) => {
                if left != right {
                    return Err(format!("{}: we have {left:?}, the reference {right:?}", $what));
                }
            }
        }
    };
}

/// Ends the case with a failure unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err(format!($($why)+));
        }
    };
}

/// The octets of a hexadecimal entry.
pub fn hex(entry: &Value) -> Vec<u8> {
    let digits = text(entry);
    assert!(digits.len().is_multiple_of(2), "odd number of hexadecimal digits");
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

/// The octets of a base64 entry.
pub fn b64(entry: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(text(entry)).unwrap()
}

/// A text entry.
pub fn text(entry: &Value) -> &str {
    entry.as_str().unwrap_or_else(|| panic!("not a text: {entry}"))
}

/// The entries of a list.
pub fn list(entry: &Value) -> &[Value] {
    entry.as_array().unwrap_or_else(|| panic!("not a list: {entry}"))
}

/// Lower-case hexadecimal digits of octets.
pub fn to_hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn folder() -> PathBuf {
    std::env::var_os("MIX_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors"), PathBuf::from)
}

fn files() -> BTreeMap<String, Value> {
    let folder = folder();
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            (name, value)
        })
        .collect()
}

#[test]
fn every_case_of_the_reference_holds() {
    let files = files();
    assert!(!files.is_empty(), "no vector files in {}", folder().display());
    let mut failures = Vec::new();
    for (name, file) in &files {
        let mut tally = Tally::default();
        cases::run(name, file, &mut tally);
        println!("{name}: {} cases ran, {} passed", tally.ran, tally.ran - tally.failures.len());
        if tally.ran == 0 {
            failures.push(format!("{name}: nothing ran"));
        }
        failures.extend(tally.failures.iter().map(|failure| format!("{name}: {failure}")));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
