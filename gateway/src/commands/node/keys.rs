//! `mixgate node keys`: which keys a node has, and what became of their descriptors. Looks at files alone, and so works
//! beside a node that runs, and without a passphrase.

use std::io::Write as _;
use std::time::SystemTime;

use clap::Args;
use mix::directory::Descriptor;
use mix::directory::date::format_date;
use mix::node::describe::KeyReport;
use mix::node::publish::Published;
use serde_json::{Value, json};

use super::super::Failed;
use super::super::configured::Configured;

/// List the keys of a node: from when to when, which is in use, which are published
#[derive(Args, Debug)]
pub(in crate::commands) struct KeysArguments {
    #[command(flatten)]
    configured: Configured,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &KeysArguments) -> Result<(), Failed> {
    let config = arguments.configured.load()?;
    let reports = super::reports(&config.node.home)?;
    let now = SystemTime::now();
    let text = if arguments.json { format!("{}\n", as_json(&reports, now)) } else { as_table(&reports, now) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
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
    descriptor.key_id().to_string().to_uppercase()
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
