//! One module per vector file; which part of a file goes where is decided here.

pub mod crypto;
pub mod exit_and_armor;
pub mod packets;
pub mod paths_addresses;
pub mod payloads;
pub mod routing;
pub mod shape;
pub mod surb_armor;
pub mod text_formats;

use serde_json::Value;

use crate::Tally;

/// The vector files.
pub const FILES: [&str; 7] = [
    "crypto.json",
    "exit_and_armor.json",
    "packets.json",
    "paths_addresses.json",
    "payloads.json",
    "routing.json",
    "text_formats.json",
];

/// Runs all parts of the file called `name`.
pub fn run(name: &str, file: &Value, tally: &mut Tally) {
    shape::check(name, file, tally);
    match name {
        "crypto.json" => crypto::run(file, tally),
        "exit_and_armor.json" => exit_and_armor::run(file, tally),
        "packets.json" => packets::run(file, tally),
        "paths_addresses.json" => paths_addresses::run(file, tally),
        "payloads.json" => payloads::run(file, tally),
        "routing.json" => routing::run(file, tally),
        "text_formats.json" => text_formats::run(file, tally),
        _ => tally.case("file", || Err(format!("no runner knows {name}"))),
    }
}
