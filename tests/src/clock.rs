//! A date of the test's own for the processes that it starts, by Debian's `faketime`: a library that goes before the
//! system's and says another date. It moves the calendar alone; how long something takes is measured by a clock that is
//! left as it is.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::says_what_is_missing;

/// Where Debian has it; the loader knows what `$LIB` is here. The one for programs of several threads.
const LIBRARY: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";
/// How long a process goes on by what it has read, in seconds.
const REREAD: &str = "1";

/// The date of some processes. It goes on evenly, and can be set while they run.
#[derive(Debug)]
pub struct Clock {
    /// Holds by how many seconds it differs from the system's.
    file: PathBuf,
}

impl Clock {
    /// A clock that shows `date`, in a file of `folder`; none where there is no such library, which is said with `what` is
    /// not tested then.
    ///
    /// # Panics
    /// When it cannot be written, or is missing and must not be.
    pub fn set_to(date: SystemTime, folder: &std::path::Path, what: &str) -> Option<Self> {
        let clock = Self { file: folder.join("clock") };
        clock.set(date);
        let mut shown = Command::new("date");
        clock.shown_to(&mut shown).arg("+%s");
        let shown = String::from_utf8(shown.output().unwrap().stdout).unwrap();
        let expected = date.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let works = shown.trim().parse::<u64>().is_ok_and(|shown| shown.abs_diff(expected) < 60);
        if !works {
            says_what_is_missing(&format!("faketime ({what})"));
        }
        works.then_some(clock)
    }

    /// Sets it. Processes see it within a second.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn set(&self, date: SystemTime) {
        let now = SystemTime::now();
        let offset = match date.duration_since(now) {
            Ok(ahead) => format!("+{}\n", ahead.as_secs()),
            Err(behind) => format!("-{}\n", behind.duration().as_secs()),
        };
        // Whole or not at all: it may be read at any time.
        let new = self.file.with_extension("new");
        fs::write(&new, offset).unwrap();
        fs::rename(&new, &self.file).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
    }

    /// Lets a program go by it.
    pub fn shown_to<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env("LD_PRELOAD", LIBRARY)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_CACHE_DURATION", REREAD)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }
}
