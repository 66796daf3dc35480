//! The harness of the stories in `tests/tests`: starts the program as its users do, and talks to it as their programs do.
//!
//! Nothing here knows the inside of the house: [`program`] runs the binary, [`clock`] shows it another date, [`roles`] writes
//! its files, [`demo`] reads the file of `--ready`, [`smtp`] and [`pop3`] are sockets with lines on them, [`sink`] and
//! [`strict`] are mail servers of our own, [`peers`] are those of others, [`names`] is a name service that leads to them,
//! [`hostile`] is what strangers write, and [`letter`] reads mails with Python's `email`, which shares no line with the
//! programs under test.
//!
//! Everything that is waited for has a bound, and ends the test with the name of what did not come.

// Helpers of tests are outside clippy's leave for tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

pub mod clock;
pub mod demo;
pub mod hostile;
pub mod letter;
pub mod mails;
pub mod names;
pub mod peers;
pub mod pop3;
pub mod program;
pub mod roles;
pub mod sink;
pub mod smtp;
pub mod strict;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that is not said to take longer. Machines that test are slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How often is looked whether it has come.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Looks until `look` finds something.
///
/// # Panics
/// After `bound`, with the name of what did not come.
pub fn until<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < bound, "did not come within {bound:?}: {what}");
        thread::sleep(LOOK_AGAIN);
    }
}

/// Set where everything that tests can use must be there, as in `.ci/run`.
const COMPLETE: &str = "TESTS_COMPLETE";

/// Whether a program that not every machine has is here. Says so when it is not: what it would have shown is not shown.
///
/// # Panics
/// When it is not, and the variable TESTS_COMPLETE says that it must be.
pub fn has(program: &str) -> bool {
    let here = Command::new(program).arg("--version").stdin(Stdio::null()).output().is_ok();
    if !here {
        says_what_is_missing(&format!("the program {program}"));
    }
    here
}

/// For what tests must do without.
///
/// # Panics
/// When the variable TESTS_COMPLETE says that it must be there.
pub fn says_what_is_missing(what: &str) {
    assert!(std::env::var_os(COMPLETE).is_none(), "missing: {what}");
    // Past the test runner, which swallows what a test that passes prints.
    let _ = writeln!(std::io::stderr().lock(), "NOT TESTED, since it is missing here: {what}. .ci/run installs it");
}
