//! The command line. One file for each command.

mod configured;
mod demo;
mod node;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The command did what it should.
const DONE: u8 = 0;
/// It failed.
const FAILED: u8 = 1;
/// The configuration must be mended first (sysexits.h: EX_CONFIG).
const BAD_CONFIGURATION: u8 = 78;

/// Anonymous mail with the mail client you already have: a gateway, mix, exit and directory server of the Type III
/// (Mixminion) remailer network.
#[derive(Parser, Debug)]
#[command(name = "mixgate", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::RunArguments),
    Demo(demo::DemoArguments),
    /// Prepare a node, and look at its keys
    #[command(subcommand)]
    Node(node::NodeCommand),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(FAILED, &anyhow::Error::from(e).context("starting the runtime")),
    };
    let ended = match command {
        Command::Run(arguments) => runtime.block_on(run::run(arguments)),
        Command::Demo(arguments) => runtime.block_on(demo::run(arguments)),
        Command::Node(command) => node::run(command),
    };
    // Sockets of the outside world that nobody closes must not hold the process up.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::from(DONE),
        Err(Failed { code, error }) => fail(code, &error),
    }
}

/// Why a command failed, and how the process ends.
#[derive(Debug)]
struct Failed {
    code: u8,
    error: anyhow::Error,
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { code: FAILED, error: error.into() }
    }
}

impl Failed {
    fn configuration(error: impl Into<anyhow::Error>) -> Self {
        Self { code: BAD_CONFIGURATION, error: error.into() }
    }
}

/// One line on standard error, the causes behind it.
#[expect(clippy::print_stderr, reason = "this is where errors go")]
fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("mixgate: {error:#}");
    ExitCode::from(code)
}

/// The signals that ask the process to end: from here on they do not simply kill it.
struct StopSignals([Signal; 3]);

impl StopSignals {
    /// Listens for Ctrl-C, for what service managers send, and for the end of the terminal.
    fn listen() -> std::io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    /// Returns when one of them comes.
    async fn asked(&mut self) {
        let Self([interrupt, terminate, hangup]) = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
