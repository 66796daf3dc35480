//! `mixgate node check`: would this configuration start, and is it wise?

use super::{Configured, Failed};
use crate::check::{check, warnings};
use crate::commands::say;

pub(super) fn run(arguments: &Configured) -> Result<(), Failed> {
    // As it is written; but who asks about a node that is not enabled means it as `node start` does.
    let mut loaded = arguments.load_traced()?;
    let settings = &mut loaded.settings;
    settings.node.enabled |= !settings.gateway.enabled && !settings.directory.enabled;
    let origins = &loaded.origins;
    check(&loaded.settings).map_err(|e| Failed::start(e, origins))?;
    let warnings = warnings(&loaded.settings, Some(origins));
    for warning in &warnings {
        say(&format!("warning: {}: {}: {}", origins.of(warning.key), warning.key, warning.text))?;
    }
    let count = warnings.len();
    say(&match count {
        0 => "the configuration is sound".to_owned(),
        1 => "the configuration can be used; 1 warning".to_owned(),
        _ => format!("the configuration can be used; {count} warnings"),
    })
}
