//! One module per vector file; which part of a file goes where is decided here.

pub mod crypto;

use serde_json::Value;

use crate::Tally;

/// Runs all parts of the file called `name`.
pub fn run(name: &str, file: &Value, tally: &mut Tally) {
    match name {
        "crypto.json" => crypto::run(file, tally),
        _ => tally.case("file", || Err(format!("no runner knows {name}"))),
    }
}
