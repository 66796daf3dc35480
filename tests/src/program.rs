//! The program as a process: started, watched, asked to stop, killed.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::{PATIENCE, until};

/// How long the program may take from SIGTERM to its end.
pub const STOPPING: Duration = Duration::from_secs(30);

/// The binary under test. Cargo puts it one folder above the tests.
///
/// # Panics
/// When it is not there.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().and_then(Path::parent).unwrap().join("mixgate-tested");
    assert!(binary.exists(), "{} is not built: run the tests with cargo", binary.display());
    binary
}

/// A command of the program, free of whatever this environment says about it.
pub fn command() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MIXGATE_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A process that runs. It is killed when it is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    /// Its standard output and error are files in here: a pipe that nobody reads would hold it up.
    output: TempDir,
}

impl Program {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Self {
        let output = tempfile::tempdir().unwrap();
        let file = |name| File::create(output.path().join(name)).unwrap();
        let child = command.stdout(file("stdout")).stderr(file("stderr")).spawn().unwrap();
        Self { child, output }
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// What it has logged so far, and its last words.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.output.path().join(name)).unwrap()).into_owned()
    }

    /// Whether and how it has ended.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within `bound`.
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        until("the end of the program", bound, || self.ended())
    }

    /// Waits until it has done something that `look` sees.
    ///
    /// # Panics
    /// When it does not come, or the program ends first.
    pub fn until<T>(&mut self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        until(what, PATIENCE, || {
            let found = look(self);
            if let (None, Some(status)) = (&found, self.ended()) {
                panic!("the program ended ({status}) before {what}: {}", self.stderr());
            }
            found
        })
    }

    /// kill -9.
    ///
    /// # Panics
    /// When it had ended already.
    pub fn kill(&mut self) {
        assert!(self.ended().is_none(), "ended before it was killed: {}", self.stderr());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal, named as `kill` names it.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) {
        // The shell has the command built in; Debian's minimal systems have no other.
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Panics
    /// When it does not, or says it was not well.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let status = self.wait(STOPPING);
        assert!(status.success(), "after SIGTERM: {status}: {}", self.stderr());
    }

    /// Nothing that it printed or logged has any of these words in it.
    ///
    /// # Panics
    /// With what it said of them.
    pub fn said_nothing_of(&self, words: &[&str]) {
        for said in [self.stdout(), self.stderr()] {
            for line in said.lines() {
                assert!(!words.iter().any(|word| line.contains(word)), "said: {line}");
            }
        }
    }
}

impl Program {
    /// No line of its log, whatever its level, has in it what could link a packet that came in with one that went out:
    /// addresses, key ids, digests, sizes. Lines of the start, which say where it listens, are let through, and those on
    /// the directory server, which name it.
    ///
    /// # Panics
    /// With the line.
    pub fn logged_nothing_that_links(&self) {
        const HARMLESS: [&str; 5] = [
            "the node is up",
            "the directory server is up",
            "taking mail from",
            "no new directory",
            "the directory server did not take the descriptor",
        ];
        const SIZES: [&str; 4] = ["32768", "28672", "2048", "20000"];
        for line in self.stderr().lines().filter(|line| !HARMLESS.iter().any(|words| line.contains(words))) {
            // The time comes first, then the level.
            let said = line.split_once(' ').map_or(line, |(_, said)| said);
            let words = || said.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
            let is_digest = |word: &str| word.len() >= 16 && word.bytes().all(|c| c.is_ascii_hexdigit());
            let is_address = |word: &str| word.trim_matches('.').parse::<Ipv4Addr>().is_ok();
            assert!(!words().any(is_digest), "a digest in the log: {line}");
            assert!(!words().any(is_address), "an address in the log: {line}");
            assert!(!words().any(|word| SIZES.contains(&word)), "a size in the log: {line}");
            assert!(!said.contains('@'), "an address of mail in the log: {line}");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- what the program printed:\n{}--- and logged:\n{}", self.stdout(), self.stderr());
        }
    }
}

/// Ports that were free a moment ago, none twice.
///
/// # Panics
/// When there are none.
pub fn free_ports(count: usize) -> Vec<SocketAddr> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap()).collect()
}
