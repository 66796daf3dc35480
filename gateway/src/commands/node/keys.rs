//! `mixgate node keys`: which keys a node has, and what became of their descriptors. Looks at files alone, and so works
//! beside a node that runs, and without a passphrase. To discard keys it asks the process, where one runs.

use std::io::Write as _;
use std::time::SystemTime;

use clap::Args;
use mix::directory::Descriptor;
use mix::directory::date::format_date;
use mix::node::describe::KeyReport;
use mix::node::keys;
use mix::node::publish::Published;
use serde_json::{Value, json};

use super::super::configured::Configured;
use super::super::{Failed, say};
use super::running;
use crate::Config;
use crate::lock::Lock;
use crate::status::{DiscardedKeys, PacketKey};

/// List the keys of a node: from when to when, which is in use, which are published
///
/// With --discard-ahead, the keys that have not begun are erased with their descriptors, for instance those of a
/// node.keys.lifetime that was a mistake. A node that runs makes others at once by the settings in force, and publishes
/// them; another one does at its next start. Clients that know a descriptor of a key that is gone go on using it on the
/// days that it names, and their packets are lost, until a directory has told them of the new ones: so discard keys
/// days before they begin. Keys that are in use, or were, stay.
///
/// Example: mixgate node keys --config node.toml
#[derive(Args, Debug)]
pub(in crate::commands) struct KeysArguments {
    #[command(flatten)]
    configured: Configured,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Erase the keys that have not begun, and say which
    #[arg(long, conflicts_with = "json")]
    discard_ahead: bool,
}

pub(super) async fn run(arguments: &KeysArguments) -> Result<(), Failed> {
    let config = arguments.configured.load()?;
    let reports = super::reports(&config.node.home)?;
    if arguments.discard_ahead {
        return discard_ahead(&config).await;
    }
    let now = SystemTime::now();
    let text = if arguments.json { format!("{}\n", as_json(&reports, now)) } else { as_table(&reports, now) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

async fn discard_ahead(config: &Config) -> Result<(), Failed> {
    let home = &config.node.home;
    let (gone, made) = match running::discard(home).await? {
        Some(DiscardedKeys { gone, made }) => (gone, Some(made)),
        None => {
            // Between the question and the answer a process may have started: nothing is touched then.
            let _lock = Lock::of_home(home)?;
            let gone = keys::discard_ahead(&home.join("keys"), SystemTime::now())?;
            (gone.into_iter().map(PacketKey::of).collect(), None)
        }
    };
    for PacketKey { valid_after, valid_until } in &gone {
        say(&format!("discarded: {valid_after} to {valid_until}"))?;
    }
    for PacketKey { valid_after, valid_until } in made.iter().flatten() {
        say(&format!("made: {valid_after} to {valid_until}"))?;
    }
    match (gone.is_empty(), made) {
        (true, _) => say("no key waited for its time"),
        (false, Some(made)) if made.is_empty() => say("the next key is made when its time comes near"),
        (false, Some(_)) => Ok(()),
        (false, None) => say("the next start of the node makes others"),
    }
}

/// What a packet key is good for at present.
fn uses(reports: &[KeyReport], now: SystemTime) -> Vec<&'static str> {
    let current = reports.iter().rposition(|report| report.valid_after <= now && now < report.valid_until);
    let word = |(index, report): (usize, &KeyReport)| {
        if report.valid_after > now {
            "future"
        } else if Some(index) == current {
            "current"
        } else {
            // Not erased yet: it still opens packets.
            "old"
        }
    };
    reports.iter().enumerate().map(word).collect()
}

fn latest(reports: &[KeyReport]) -> Option<&Descriptor> {
    reports.iter().rev().find_map(|report| report.descriptor.as_ref())
}

fn fingerprint(descriptor: &Descriptor) -> String {
    descriptor.key_id().to_string()
}

fn as_table(reports: &[KeyReport], now: SystemTime) -> String {
    let mut text = latest(reports).map_or_else(String::new, |descriptor| {
        format!("{}, identity key {}\n\n", descriptor.nickname(), fingerprint(descriptor))
    });
    text += "valid after  valid until  use      published\n";
    for (report, used) in reports.iter().zip(uses(reports, now)) {
        let day = |time| format_date(time).unwrap_or_default();
        let published = match &report.published {
            Published::No => "no".to_owned(),
            Published::Waiting { url } => format!("waits for the operator of {url}"),
            Published::Yes { url } => format!("yes, at {url}"),
        };
        text += &format!("{:<11}  {:<11}  {used:<7}  {published}\n", day(report.valid_after), day(report.valid_until));
    }
    text
}

fn as_json(reports: &[KeyReport], now: SystemTime) -> Value {
    let keys = reports.iter().zip(uses(reports, now)).map(|(report, used)| {
        let (published, directory) = match &report.published {
            Published::No => ("no", None),
            Published::Waiting { url } => ("waiting", Some(url)),
            Published::Yes { url } => ("yes", Some(url)),
        };
        json!({
            "valid_after": format_date(report.valid_after),
            "valid_until": format_date(report.valid_until),
            "use": used,
            "published": published,
            "directory": directory,
            "descriptor": report.descriptor.as_ref().map(|descriptor| descriptor.digest().to_string()),
        })
    });
    json!({
        "nickname": latest(reports).map(|descriptor| descriptor.nickname().as_str()),
        "identity": latest(reports).map(fingerprint),
        "keys": keys.collect::<Vec<_>>(),
    })
}
