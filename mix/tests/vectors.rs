//! What the reference implementation computed, case by case.
//!
//! Runs every case of every file in `tests/vectors/`, or in the folder that the variable `MIX_VECTORS` names, and
//! prints for each file how many cases ran and passed. A case is judged by its verdict and values, never by its label: so
//! files that the reference makes with another seed pass too. What may differ is decided by our own named error, or by
//! what the input is, and has its row in INTEROP.md; how often each did is printed. A case of a kind that is not known
//! here fails, and so does a part or entry that nobody reads, a part that is missing or empty, and a file in which nothing
//! ran. A folder named by `MIX_VECTORS` may leave out whole files.

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
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;

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

    /// Counts a case that cannot even run.
    pub fn fail(&mut self, name: &str, why: &str) {
        self.case(name, || Err(why.to_owned()));
    }
}

/// What differed and may, or could not be compared, with its count: since the last file.
static REMARKS: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

fn remark(what: String) {
    let mut remarks = REMARKS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *remarks.entry(what).or_default() += 1;
}

/// Both refuse. `agreed` says whether for one cause, if the words of the reference are known; else they are counted.
pub fn both_refuse(theirs: &str, agreed: Option<bool>, ours: &impl Debug) -> Result<(), String> {
    match agreed {
        Some(true) => Ok(()),
        Some(false) => Err(format!("we say {ours:?}, the reference {theirs}")),
        None => {
            remark(format!("both refuse, the reference in words that are not compared: {theirs:.60}"));
            Ok(())
        }
    }
}

/// We refuse what the reference takes: only where INTEROP.md has a row for it.
pub fn we_refuse(row: Option<&str>, ours: &impl Debug) -> Result<(), String> {
    let row = row.ok_or_else(|| format!("we say {ours:?}, the reference takes it"))?;
    remark(format!("stricter than the reference: {row}"));
    Ok(())
}

/// We take what the reference refuses: only where INTEROP.md has a row for it.
pub fn we_take(row: Option<&str>, theirs: &str) -> Result<(), String> {
    let row = row.ok_or_else(|| format!("we take it, the reference says {theirs}"))?;
    remark(format!("laxer than the reference: {row}"));
    Ok(())
}

/// We read another value than the reference: only where INTEROP.md has a row for it.
pub fn we_differ(row: &str) {
    remark(format!("read in another way than by the reference: {row}"));
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

/// Whether these are our own vectors, which are complete.
pub fn is_own_folder() -> bool {
    std::env::var_os("MIX_VECTORS").is_none()
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
    for name in cases::FILES.iter().filter(|name| !files.contains_key(**name)) {
        println!("{name}: not there");
        if is_own_folder() {
            failures.push(format!("{name}: not there"));
        }
    }
    for (name, file) in &files {
        let mut tally = Tally::default();
        cases::run(name, file, &mut tally);
        println!("{name}: {} cases ran, {} passed", tally.ran, tally.ran - tally.failures.len());
        let remarks = std::mem::take(&mut *REMARKS.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        remarks.iter().for_each(|(what, count)| println!("    {what}: {count}"));
        if tally.ran == 0 {
            failures.push(format!("{name}: nothing ran"));
        }
        failures.extend(tally.failures.iter().map(|failure| format!("{name}: {failure}")));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
