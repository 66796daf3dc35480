//! What an operator does with mail that waits for delivery: looks at it without seeing it, holds, releases, drops and
//! flushes it, beside the node that runs and on the files of one that does not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use mix::packet::RoutingType;
use mix::payload::compress::compress;
use mix::store::queue::exit::insert_message;
use mix::store::{Db, NODE_SCHEMAS};
use mixgate_tests::program::{Program, binary, command, free_ports};
use mixgate_tests::sink::Sink;
use mixgate_tests::{PATIENCE, until};
use serde_json::Value;

/// An exit whose mail goes to a server that may be away.
struct Exit {
    folder: tempfile::TempDir,
}

impl Exit {
    fn new() -> Self {
        let exit = Self { folder: tempfile::tempdir().unwrap() };
        exit.send_to(free_ports(1)[0]);
        exit
    }

    fn send_to(&self, server: SocketAddr) {
        let config = format!(
            "[node]\nnickname = \"Alpha\"\nhome = \"Alpha\"\nlisten = \"{}\"\n[node.smtp]\nenabled = true\n\
             retry = [{{ every = \"7 hours\", for = \"6 days\" }}]\n\
             [node.smtp.server]\nhost = \"{}\"\nport = {}\n[node.smtp.mail]\nreturn_address = \"nobody@exit.example\"\n",
            free_ports(1)[0],
            server.ip(),
            server.port()
        );
        fs::write(self.folder.path().join("node.toml"), config).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command();
        command.current_dir(self.folder.path()).args(arguments).args(["--config", "node.toml"]);
        command
    }

    fn start(&self) -> Program {
        let mut program = Program::start(self.command(&["node", "start"]));
        let answers = |_: &Program| self.command(&["node", "status"]).output().unwrap().status.success().then_some(());
        program.until("an answer of the node", answers);
        program
    }

    /// A node that has run, with mail in its queue as its mixing leaves it there.
    fn with_mail(mails: &[(RoutingType, &'static [u8])]) -> Self {
        let exit = Self::new();
        exit.start().stop();
        let db = Db::open(&exit.folder.path().join("Alpha/node.db"), &NODE_SCHEMAS).unwrap();
        for &(exit_type, address) in mails {
            let message = compress(b"\nSecret words\n");
            db.write(move |tx| insert_message(tx, exit_type, address, &message)).unwrap();
        }
        exit
    }

    /// Runs `mixgate exit queue …` to its end: exit code, and all that it says.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(&[&["exit", "queue"], arguments].concat()).output().unwrap();
        let text = |octets| String::from_utf8(octets).unwrap();
        let said = text(output.stdout) + &text(output.stderr);
        assert!(!["bob", "frida", "example.org", "Secret"].iter().any(|word| said.contains(word)), "{said}");
        (output.status.code().unwrap(), said)
    }

    #[track_caller]
    fn done(&self, arguments: &[&str]) -> String {
        let (code, said) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
        said
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], with: i32, words: &str) {
        let (code, said) = self.run(arguments);
        assert_eq!(code, with, "{arguments:?}: {said}");
        assert!(said.contains(words), "{said}");
    }

    fn list(&self) -> Vec<Value> {
        let listed: Value = serde_json::from_str(&self.done(&["list", "--json"])).unwrap();
        assert_eq!(listed["more"], 0);
        listed["deliveries"].as_array().unwrap().clone()
    }

    /// Type, state and number, of all that waits.
    fn counts(&self) -> Vec<(String, String, u64)> {
        let counted: Value = serde_json::from_str(&self.done(&["show-counts", "--json"])).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let count = |it: &Value| (text(&it["type"]), text(&it["state"]), it["count"].as_u64().unwrap());
        counted["counts"].as_array().unwrap().iter().map(count).collect()
    }

    #[track_caller]
    fn assert_counts(&self, expected: &[(&str, &str, u64)]) {
        let counts = self.counts();
        let counts: Vec<_> =
            counts.iter().map(|(kind, state, count)| (kind.as_str(), state.as_str(), *count)).collect();
        assert_eq!(counts, expected);
    }
}

const BOB: (RoutingType, &[u8]) = (RoutingType::SMTP, b"bob@example.org");
const FRIDA: (RoutingType, &[u8]) = (RoutingType::MBOX, b"frida");

#[test]
fn queue_is_changed_on_the_files_of_a_node_that_does_not_run() {
    let exit = Exit::with_mail(&[BOB, BOB, FRIDA]);
    exit.assert_counts(&[("smtp", "due", 2), ("mbox", "due", 1)]);
    let listed = exit.list();
    assert_eq!(listed.len(), 3);
    for delivery in &listed {
        assert_eq!(delivery["id"].as_str().unwrap().len(), 16);
        assert_eq!((&delivery["size_kib"], &delivery["attempts"]), (&32.into(), &0.into()));
        assert_eq!((delivery["state"].as_str(), &delivery["next_minutes"]), (Some("due"), &Value::Null));
    }
    assert_eq!(exit.list(), listed, "the ids stay");
    assert_eq!(exit.done(&["hold", "smtp"]), "2 deliveries are held\n");
    assert_eq!(exit.done(&["hold", "0x0100"]), "no delivery is held that was not before\n");
    exit.assert_counts(&[("smtp", "held", 2), ("mbox", "due", 1)]);
    let text = exit.done(&["list"]);
    assert_eq!(text.lines().filter(|line| line.ends_with("  held")).count(), 2, "{text}");
    let id = exit.list().iter().find(|it| it["state"] == "held").unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(exit.done(&["release", &id]), "1 delivery is released\n");
    assert_eq!(exit.done(&["drop", &id, "--yes"]), "1 delivery is dropped\n");
    exit.fails(&["drop", &id, "--yes"], 1, "no delivery");
    exit.fails(&["hold", "0123456789abcdef"], 1, "no delivery 0123456789abcdef waits");
    exit.fails(&["hold", "everything"], 2, "expected `all`, an exit type");
    // The test has no terminal at which somebody could be asked.
    exit.fails(&["drop", "all"], 1, "nothing was dropped");
    exit.assert_counts(&[("smtp", "held", 1), ("mbox", "due", 1)]);
    assert_eq!(exit.done(&["drop", "all", "--yes"]), "2 deliveries are dropped\n");
    assert_eq!(exit.done(&["show-counts"]), "nothing waits for delivery\n");
    assert_eq!(exit.done(&["list"]), "nothing waits for delivery\n");
}

#[test]
fn what_is_held_is_not_tried_through_a_restart_and_flushed_mail_leaves_at_once() {
    let exit = Exit::with_mail(&[BOB, BOB]);
    let [first, second] = exit.list().try_into().unwrap();
    let id = |delivery: &Value| delivery["id"].as_str().unwrap().to_owned();
    exit.done(&["hold", &id(&first)]);
    // Nobody listens at the mail server's port.
    let mut program = exit.start();
    let states = || -> Vec<(String, u64)> {
        let state = |it: &Value| (it["state"].as_str().unwrap().to_owned(), it["attempts"].as_u64().unwrap());
        exit.list().iter().map(state).collect()
    };
    let as_expected = || {
        let states = states();
        let expected = [("held".to_owned(), 0), ("waiting".to_owned(), 1)];
        (states == expected).then_some(())
    };
    until("a try of the one that is not held", PATIENCE, as_expected);
    let listed = exit.list();
    assert_eq!(id(&listed[1]), id(&second));
    let minutes = listed[1]["next_minutes"].as_u64().unwrap();
    assert!((7 * 60 - 15..=7 * 60).contains(&minutes) && minutes.is_multiple_of(15), "{minutes}");
    program.stop();
    let sink = Sink::start();
    exit.send_to(sink.address);
    let mut program = exit.start();
    assert_eq!(exit.done(&["flush", "all"]), "1 delivery is to be tried now\n");
    until("the mail that was flushed", PATIENCE, || (sink.mails().len() == 1).then_some(()));
    until("its end", PATIENCE, || (exit.counts().len() == 1).then_some(()));
    exit.assert_counts(&[("smtp", "held", 1)]);
    assert_eq!(exit.done(&["release", &id(&first)]), "1 delivery is released\n");
    until("the mail that was held", PATIENCE, || (sink.mails().len() == 2).then_some(()));
    until("its end", PATIENCE, || exit.counts().is_empty().then_some(()));
    program.stop();
    program.said_nothing_of(&["bob", "example.org", "Secret", &id(&first), &id(&second)]);
}

#[test]
fn queue_of_a_node_that_runs_is_dropped_by_the_node() {
    let exit = Exit::with_mail(&[BOB, FRIDA]);
    let mut program = exit.start();
    // Users of the node have no mailbox here: their mail waits, as e-mail does for its server.
    until("a try of each", PATIENCE, || exit.counts().iter().all(|(_, state, _)| state == "waiting").then_some(()));
    exit.fails(&["drop", "mbox"], 1, "nothing was dropped");
    assert_eq!(exit.done(&["drop", "mbox", "--yes"]), "1 delivery is dropped\n");
    exit.assert_counts(&[("smtp", "waiting", 1)]);
    exit.fails(&["flush", "0123456789abcdef"], 1, "no delivery");
    program.stop();
    exit.assert_counts(&[("smtp", "waiting", 1)]);
}

/// Runs the program in its other arguments at a terminal, types its first one there, and ends as the program does.
const AT_A_TERMINAL: &str = "import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
os.write(terminal, sys.argv[1].encode() + b'\\n')
said = b''
try:
    while chunk := os.read(terminal, 1000):
        said += chunk
except OSError:
    pass
print(said.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

#[test]
fn drop_at_a_terminal_asks_first() {
    let exit = Exit::with_mail(&[BOB, BOB]);
    for (answer, code, left) in [("no", 1, 2), ("", 1, 2), ("yes", 0, 0)] {
        let mut python = Command::new("python3");
        python.current_dir(exit.folder.path()).args(["-c", AT_A_TERMINAL, answer]).arg(binary());
        let output = python.args(["exit", "queue", "drop", "all", "--config", "node.toml"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("Drop all? It cannot be undone."), "{said}");
        assert_eq!((output.status.code(), exit.list().len()), (Some(code), left), "{answer}: {said}");
    }
}

#[test]
fn queue_that_is_not_there_is_said_and_none_is_made() {
    let exit = Exit::new();
    exit.fails(&["list"], 1, "no node ran there yet");
    assert!(!exit.folder.path().join("Alpha").exists());
}

#[test]
fn each_command_shows_an_example() {
    for command in ["list", "show-counts", "hold", "release", "drop", "flush"] {
        let output = mixgate_tests::program::command().args(["exit", "queue", command, "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains(&format!("Example: mixgate exit queue {command} ")), "{help}");
    }
}
