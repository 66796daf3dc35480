//! `mixgate node init`: keys and a commented configuration for a new node. Never overwrites anything.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use mix::crypto::Passphrase;
use mix::directory::Nickname;
use mix::node::World;
use mix::node::config::NodeConfig;
use mix::node::describe;
use mix::node::keys::{KeyPlan, Keyring};
use mix::packet::HostName;
use mix::store::db::private_folder;

use super::super::Failed;
use super::super::configured::Configured;
use crate::passphrase::{NoPassphrase, PassphraseSource};

/// What a new configuration is made of.
const TEMPLATE: &str = include_str!("../../../../conf/node.toml");

/// Make the keys and the configuration of a new node
///
/// Nothing that is there is changed: of a node that has both, it says so.
#[derive(Args, Debug)]
pub(in crate::commands) struct InitArguments {
    /// Where the node keeps keys and queues; made for its owner alone [default: node, beside the configuration]
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    home: Option<PathBuf>,
    /// The configuration file to write, or the one to make keys for [default: node.toml in the home]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What people call the node: a letter, then letters, digits and hyphens, 24 at most
    #[arg(long, value_name = "NAME")]
    nickname: Option<Nickname>,
    /// The name or IPv4 address that others connect to
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// How its operator is reached; published
    #[arg(long, value_name = "ADDRESS")]
    contact: Option<String>,
    /// Base URL of the directory server
    #[arg(long, value_name = "URL")]
    directory: Option<String>,
    /// Fingerprint of the directory server
    #[arg(long, value_name = "FINGERPRINT")]
    directory_key: Option<String>,
    /// Seal the private keys with a passphrase
    #[arg(long)]
    sealed: bool,
    #[command(flatten)]
    passphrase: PassphraseSource,
}

pub(super) fn run(arguments: InitArguments) -> Result<(), Failed> {
    let home = arguments.home.as_deref().map(std::path::absolute).transpose()?;
    let file = match (&arguments.config, &home) {
        (Some(file), _) => std::path::absolute(file)?,
        (None, Some(home)) => home.join("node.toml"),
        (None, None) => return Err(anyhow::anyhow!("--home or --config says where").into()),
    };
    let mut said = Vec::new();
    let mut passphrase = None;
    if file.exists() {
        said.push(format!("{} exists: left as it is.", file.display()));
    } else {
        let beside = || file.parent().unwrap_or(Path::new("/")).join("node");
        let home = home.clone().unwrap_or_else(beside);
        // Before anything is made: whoever mistypes begins anew.
        let text = configuration(&arguments, &home)?;
        passphrase = new_passphrase(arguments.sealed, &arguments)?;
        private_folder(&home).context("the home of the node")?;
        write_new(&file, &text)?;
        said.push(format!("{} is the configuration. Edit the lines marked <--.", file.display()));
    }
    let config = Configured::file(file.clone()).load()?.told_of_each_other().node;
    if let Some(home) = home.filter(|home| std::path::absolute(&config.home).ok().as_ref() != Some(home)) {
        let there = config.home.display();
        return Err(anyhow::anyhow!("{} has its home at {there}, not at {}", file.display(), home.display()).into());
    }
    let identity = config.home.join("keys/identity.key");
    if identity.exists() {
        said.push(format!("{} exists: no keys are made.", identity.display()));
    } else {
        if passphrase.is_none() {
            passphrase = new_passphrase(config.keys.sealed, &arguments)?;
        }
        let made = make_keys(&config, passphrase)?;
        let keys = config.home.join("keys");
        said.push(format!("{} holds the keys. Keep a copy of identity.key: it is the node.", keys.display()));
        said.push(format!("Fingerprint of {}: {made}", config.nickname));
    }
    said.push(format!("Start the node by: mixgate run --config {}", file.display()));
    said.push(format!("Its descriptor:    mixgate node descriptor --config {}", file.display()));
    writeln!(std::io::stdout(), "{}", said.join("\n"))?;
    Ok(())
}

fn new_passphrase(sealed: bool, arguments: &InitArguments) -> Result<Option<Passphrase>, Failed> {
    if !sealed && arguments.passphrase.is_given() {
        return Err(Failed::configuration(NoPassphrase::NotSealed));
    }
    sealed.then(|| arguments.passphrase.read_new()).transpose().map_err(Failed::configuration)
}

/// Makes the identity key, the first packet keys and their descriptors; returns the fingerprint.
fn make_keys(config: &NodeConfig, passphrase: Option<Passphrase>) -> Result<String, Failed> {
    let plan = KeyPlan::new(&config.keys).map_err(Failed::configuration)?;
    let world = World::real();
    let (now, mut dice) = (world.now(), world.dice());
    let mut keyring = Keyring::open(&config.home.join("keys"), &plan, passphrase, &mut dice)?;
    keyring.make_ahead(&plan, now, &mut dice)?;
    // That mail can be delivered is not proven yet, and need not be for users of a gateway.
    let mut stated = config.clone();
    stated.smtp.enabled = false;
    stated.mbox.enabled &= config.mbox.address_file.is_none();
    describe::describe(&stated, config.listen.port(), &keyring, now, &mut dice)?;
    Ok(keyring.identity().public_key().fingerprint())
}

/// The template with what is known filled in.
fn configuration(arguments: &InitArguments, home: &Path) -> anyhow::Result<String> {
    let home = home.to_str().context("the home of the node must have a name that is text")?;
    if let Some(host) = &arguments.host {
        HostName::parse(host).with_context(|| format!("--host {host}"))?;
    }
    let mut text = String::new();
    let known = [
        ("directory", arguments.directory.clone()),
        ("directory_key", arguments.directory_key.clone()),
        ("nickname", arguments.nickname.as_ref().map(ToString::to_string)),
        ("contact", arguments.contact.clone()),
        ("host", arguments.host.clone()),
    ];
    for line in TEMPLATE.lines() {
        let value = known.iter().find(|(key, _)| line.split(" = ").next() == Some(*key));
        match value {
            Some((key, Some(value))) => text += &format!("{key} = {}\n", quoted(value)?),
            _ => text += &format!("{line}\n"),
        }
        if line == "enabled = true" {
            text += &format!("home = {}\n", quoted(home)?);
        }
    }
    if arguments.sealed {
        text += "\n[node.keys]\nsealed = true\n";
    }
    Ok(text)
}

/// A text as TOML has it.
fn quoted(text: &str) -> anyhow::Result<String> {
    ensure!(!text.chars().any(char::is_control), "{text:?} has characters that no setting has");
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// Writes a file that is not there yet, for its owner alone.
fn write_new(file: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        opened.write_all(text.as_bytes())?;
        opened.sync_all()
    };
    write().with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_to_be_edited_has_an_option() {
        let marked =
            TEMPLATE.lines().filter(|line| line.contains("# <--")).map(|line| line.split(" = ").next().unwrap());
        assert_eq!(marked.collect::<Vec<_>>(), ["directory", "directory_key", "nickname", "contact", "host"]);
        assert_eq!(TEMPLATE.lines().filter(|line| *line == "enabled = true").count(), 1);
    }

    #[test]
    fn quotes_and_backslashes_are_text_and_lines_are_refused() {
        assert_eq!(quoted(r#"a "b" \c"#).unwrap(), r#""a \"b\" \\c""#);
        assert!(quoted("a\nb").is_err());
    }
}
