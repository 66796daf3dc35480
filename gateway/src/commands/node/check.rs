//! `mixgate node check`: would this configuration start, and is it wise?

use mix::directory::Descriptor;
use mix::node::config::NodeConfig;

use super::{Configured, Failed};
use crate::check::{Warning, check, switched_off, warnings};
use crate::commands::say;

/// What a start would put an end to, as far as the files of the node tell. It may be a node that has none yet.
fn since_the_last_start(node: &NodeConfig) -> Vec<Warning> {
    let said = std::fs::read_to_string(node.home.join("descriptor")).ok();
    let said = said.and_then(|text| Descriptor::parse(&text).ok());
    said.map_or_else(Vec::new, |said| switched_off(node, &said))
}

pub(super) fn run(arguments: &Configured) -> Result<(), Failed> {
    // As it is written; but who asks about a node that is not enabled means it as `node start` does.
    let mut loaded = arguments.load_traced()?;
    let settings = &mut loaded.settings;
    settings.node.enabled |= !settings.gateway.enabled && !settings.directory.enabled;
    let (settings, origins) = (&loaded.settings, &loaded.origins);
    check(settings).map_err(|e| Failed::start(e, origins))?;
    let mut warnings = warnings(settings, Some(origins));
    if settings.node.enabled {
        warnings.extend(since_the_last_start(&settings.node));
    }
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
