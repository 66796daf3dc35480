//! The command line. One file for each command.

mod config;
mod configured;
mod demo;
mod exit;
mod node;
mod opt_out;
mod run;

use std::fmt;
use std::future::poll_fn;
use std::io::Write as _;
use std::process::ExitCode;
use std::task::{Context, Poll};

use clap::{Parser, Subcommand};
use mix::net::sockets::Inherited;
use mixgate_conf::Origins;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::{NotAsked, Why};
use crate::lock::LockError;
use crate::start::StartError;
use crate::systemd::SocketError;
pub(crate) use configured::Configured;

/// The command did what it should.
const DONE: u8 = 0;
/// It failed.
const FAILED: u8 = 1;
/// No process runs, so there is nothing to ask (as init scripts say it).
const NOT_RUNNING: u8 = 3;
/// A process runs already.
const RUNS_ALREADY: u8 = 4;
/// The process did not answer, or did not end, in time.
const NO_ANSWER: u8 = 5;
/// The process speaks another version of the control protocol.
const OTHER_VERSION: u8 = 6;
/// The process is another user's, or could be.
const NOT_OURS: u8 = 7;
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
    Node(node::NodeArguments),
    Exit(exit::ExitArguments),
    Config(config::ConfigCommand),
    Demo(demo::DemoArguments),
}

/// Runs the program.
pub fn main() -> ExitCode {
    mix::node::memory::keep_freed();
    // Before there are threads: taking sockets over changes the environment.
    let sockets = crate::systemd::sockets();
    let Arguments { command } = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(FAILED, &anyhow::Error::from(e).context("starting the runtime")),
    };
    let ended = match command {
        Command::Run(arguments) => runtime.block_on(with_sockets(sockets, |it| run::run(arguments, it))),
        Command::Node(arguments) => runtime.block_on(with_sockets(sockets, |it| node::node(arguments, it))),
        Command::Exit(arguments) => runtime.block_on(exit::exit(arguments)),
        Command::Config(arguments) => config::run(arguments),
        Command::Demo(arguments) => runtime.block_on(demo::run(arguments)),
    };
    // Sockets of the outside world that nobody closes must not hold the process up.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::from(DONE),
        Err(Failed { code, error }) => fail(code, &error),
    }
}

async fn with_sockets<F: Future<Output = Result<(), Failed>>>(
    sockets: Result<Inherited, SocketError>,
    command: impl FnOnce(Inherited) -> F,
) -> Result<(), Failed> {
    command(sockets.map_err(Failed::configuration)?).await
}

/// Why a command failed, and how the process ends.
#[derive(Debug)]
pub(crate) struct Failed {
    code: u8,
    error: anyhow::Error,
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { code: FAILED, error: error.into() }
    }
}

/// With the causes, in one line.
impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl Failed {
    fn configuration(error: impl Into<anyhow::Error>) -> Self {
        Self { code: BAD_CONFIGURATION, error: error.into() }
    }

    /// A start that failed; with the place of the key that must be mended, where there is one.
    pub(crate) fn start(error: StartError, origins: &Origins) -> Self {
        let code = match &error {
            second if second.is_second() => RUNS_ALREADY,
            broken if broken.is_configuration() => BAD_CONFIGURATION,
            _ => FAILED,
        };
        let place = error.key().filter(|_| code == BAD_CONFIGURATION).and_then(|key| origins.place_of(key));
        let error = anyhow::Error::from(error);
        // Place and sentence in one line, as the errors of the file itself.
        let error = match place {
            Some(place) => anyhow::anyhow!("{place}: {error:#}"),
            None => error,
        };
        Self { code, error }
    }
}

impl Failed {
    fn locked(error: LockError) -> Self {
        let code = if matches!(error, LockError::Taken { .. }) { RUNS_ALREADY } else { FAILED };
        Self { code, error: error.into() }
    }

    fn not_asked(error: NotAsked) -> Self {
        let code = match &error {
            NotAsked::NotRunning { .. } => NOT_RUNNING,
            NotAsked::NoAnswer { .. } => NO_ANSWER,
            NotAsked::Version { .. } => OTHER_VERSION,
            NotAsked::NotOurs { .. } => NOT_OURS,
            NotAsked::Refused(refusal) => match refusal.why {
                Why::Configuration => BAD_CONFIGURATION,
                Why::Version => OTHER_VERSION,
                Why::Request | Why::Failed => FAILED,
            },
        };
        Self { code, error: error.into() }
    }
}

/// Lines on standard output.
fn say(text: &str) -> Result<(), Failed> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// A line on standard error, of a command that goes on.
#[expect(clippy::print_stderr, reason = "this is where errors go")]
fn warn(text: &str) {
    eprintln!("mixgate: {text}");
}

/// One line on standard error, the causes behind it.
#[expect(clippy::print_stderr, reason = "this is where errors go")]
fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("mixgate: {error:#}");
    ExitCode::from(code)
}

/// The signals that ask the process to end: from here on they do not simply kill it.
pub(crate) struct StopSignals(Vec<Signal>);

impl StopSignals {
    /// Listens for Ctrl-C and for what service managers send.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Self::of([SignalKind::interrupt(), SignalKind::terminate()])
    }

    /// Listens for the end of the terminal too.
    fn listen_at_terminal() -> std::io::Result<Self> {
        Self::of([SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()])
    }

    fn of<const N: usize>(kinds: [SignalKind; N]) -> std::io::Result<Self> {
        kinds.into_iter().map(signal).collect::<Result<_, _>>().map(Self)
    }

    /// Returns when one of them comes.
    pub(crate) async fn asked(&mut self) {
        let any = |context: &mut Context<'_>| {
            if self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        };
        poll_fn(any).await;
    }
}
