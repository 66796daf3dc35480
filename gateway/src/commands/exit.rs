//! `mixgate exit`: what the operator of an exit asks of it.

use clap::{Args, Subcommand};

use super::{Failed, opt_out};

/// Who gets no mail from an exit
#[derive(Args, Debug)]
pub(super) struct ExitArguments {
    #[command(subcommand)]
    command: ExitCommand,
}

#[derive(Subcommand, Debug)]
enum ExitCommand {
    OptOut(opt_out::OptOutArguments),
}

pub(super) async fn exit(arguments: ExitArguments) -> Result<(), Failed> {
    match arguments.command {
        ExitCommand::OptOut(arguments) => opt_out::run(arguments).await,
    }
}
