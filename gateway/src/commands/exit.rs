//! `mixgate exit`: what the operator of an exit asks of it.

use clap::{Args, Subcommand};
use mix::deliver::dkim::Signer;

use super::{Configured, Failed, opt_out, say};

/// Who gets no mail from an exit, and how its mail is signed
#[derive(Args, Debug)]
pub(super) struct ExitArguments {
    #[command(subcommand)]
    command: ExitCommand,
}

#[derive(Subcommand, Debug)]
enum ExitCommand {
    OptOut(opt_out::OptOutArguments),
    /// Print what the DNS must say of the key of node.smtp.dkim: the name and the text of a TXT record
    ///
    /// Example: mixgate exit dkim-record --config node.toml
    DkimRecord(Configured),
}

pub(super) async fn exit(arguments: ExitArguments) -> Result<(), Failed> {
    match arguments.command {
        ExitCommand::OptOut(arguments) => opt_out::run(arguments).await,
        ExitCommand::DkimRecord(configured) => dkim_record(&configured),
    }
}

fn dkim_record(configured: &Configured) -> Result<(), Failed> {
    let config = configured.load()?.node.smtp.dkim;
    let signer = Signer::new(&config)
        .map_err(|why| Failed::configuration(anyhow::Error::from(why).context("node.smtp.dkim")))?;
    let none = || Failed::configuration(anyhow::anyhow!("node.smtp.dkim: no key is set"));
    let (name, text) = signer.ok_or_else(none)?.record();
    say(&format!("{name}. IN TXT {}", strings(&text)))
}

/// The text as strings of at most 255 octets each, which is what a record has (RFC 1035 3.3).
fn strings(text: &str) -> String {
    let strings = text.as_bytes().chunks(255).map(|string| format!("\"{}\"", String::from_utf8_lossy(string)));
    strings.collect::<Vec<_>>().join(" ")
}
