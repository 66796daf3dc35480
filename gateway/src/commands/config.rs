//! `mixgate config`: what is set, and where.

use std::io::Write as _;

use clap::{Args, Subcommand};
use mixgate_conf::Shown;

use super::{Configured, Failed};

/// Look at the configuration
#[derive(Args, Debug)]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    command: Look,
}

#[derive(Subcommand, Debug)]
enum Look {
    /// Print all settings in force, each with where it came from
    ///
    /// The output is TOML and can be read again, but for passwords, which are masked. Where a value came from stands
    /// behind it: default, file and line, environment variable, or command line.
    ///
    /// Example: mixgate config show --config mixgate.toml | grep -v '# default'
    Show {
        #[command(flatten)]
        config: Configured,
        /// Print JSON: an object of dotted keys, each with `value` and `from`
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(arguments: ConfigCommand) -> Result<(), Failed> {
    let Look::Show { config, json } = arguments.command;
    let shown = Shown::of(&config.load_traced()?)?;
    let text = if json { serde_json::to_string_pretty(&shown.entries())? + "\n" } else { shown.toml() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
