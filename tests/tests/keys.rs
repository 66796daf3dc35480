//! `mixgate node init`, `descriptor` and `keys`, and keys that are sealed: as an operator meets them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mixgate_tests::PATIENCE;
use mixgate_tests::program::{Program, binary, command, free_ports};
use serde_json::Value;

fn ran(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = command();
    command.current_dir(folder).args(arguments);
    command.output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs it to its good end, and returns what it printed.
fn good(folder: &Path, arguments: &[&str]) -> String {
    let output = ran(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    out(&output)
}

/// Runs it to its bad end, and returns its exit code and its last words.
fn bad(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output = ran(folder, arguments);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// All files below a folder, with their content.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

const INIT: [&str; 10] =
    ["node", "init", "--home", "alpha", "--nickname", "Alpha", "--host", "127.0.0.1", "--contact", "alpha@example.org"];

/// The command that runs the node of `init`, but for its directory server and its port.
fn run(folder: &Path, listen: &str) -> Command {
    let mut command = command();
    command.current_dir(folder).args(["run", "--config", "alpha/node.toml"]);
    command.args(["--set", "network.directory=\"\"", "--set", &format!("node.listen={listen}")]);
    command
}

#[test]
fn node_is_prepared_once_and_its_descriptor_and_keys_are_shown_whether_it_runs_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let said = good(folder, &INIT);
    let home = folder.join("alpha");
    assert_eq!(fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o700);
    for (path, _) in files(&home) {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    let (_, fingerprint) = said.split_once("Fingerprint of Alpha: ").unwrap();
    let fingerprint = fingerprint.get(..40).unwrap();
    assert!(said.contains("mixgate run --config"), "{said}");

    // A second time changes nothing, and says so.
    let before = files(&home);
    let said = good(folder, &INIT);
    assert!(said.contains("node.toml exists") && said.contains("identity.key exists"), "{said}");
    assert_eq!(files(&home), before);

    let descriptor = good(folder, &["node", "descriptor", "--config", "alpha/node.toml"]);
    assert!(descriptor.starts_with("[Server]\n") && descriptor.contains("Nickname: Alpha\n"), "{descriptor}");
    assert_eq!(fs::read_to_string(home.join("descriptor")).unwrap(), descriptor);
    let json = good(folder, &["node", "keys", "--json", "--config", "alpha/node.toml"]);
    let keys: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(keys["identity"], fingerprint);
    assert_eq!(keys["nickname"], "Alpha");
    assert_eq!((&keys["keys"][0]["use"], &keys["keys"][0]["published"]), (&"current".into(), &"no".into()), "{json}");
    let table = good(folder, &["node", "keys", "--config", "alpha/node.toml"]);
    assert!(table.contains(fingerprint) && table.contains("current"), "{table}");

    // While it runs: the same keys, the same words.
    let port = free_ports(1)[0];
    let mut node = Program::start(run(folder, &port.to_string()));
    node.until("the port of the node", |_| TcpStream::connect(port).ok());
    let json = good(folder, &["node", "keys", "--json", "--config", "alpha/node.toml"]);
    let running: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(running["keys"][0]["valid_after"], keys["keys"][0]["valid_after"]);
    assert_eq!(running["identity"], fingerprint);
    // The port is another one than that of the file, and the descriptor says so.
    let descriptor = good(folder, &["node", "descriptor", "--all", "--config", "alpha/node.toml"]);
    assert!(descriptor.contains(&format!("Port: {}\n", port.port())), "{descriptor}");
    node.stop();
}

#[test]
fn keys_of_a_lifetime_that_was_a_mistake_are_discarded_whether_the_node_runs_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    good(folder, &INIT);
    let file = folder.join("alpha/node.toml");
    let config = fs::read_to_string(&file).unwrap().replace("0000000000000000000000000000000000000000", "");
    let with = |lifetime: &str| {
        fs::write(&file, format!("{config}\n[node.keys]\nlifetime = \"{lifetime}\"\n")).unwrap();
    };
    let port = free_ports(1)[0].to_string();
    let start = || {
        let mut node = Program::start(run(folder, &port));
        node.until("the node", |_| {
            ran(folder, &["node", "status", "--config", "alpha/node.toml"]).status.success().then_some(())
        });
        node
    };
    let keys = || {
        let json = good(folder, &["node", "keys", "--json", "--config", "alpha/node.toml"]);
        serde_json::from_str::<Value>(&json).unwrap()["keys"].as_array().unwrap().len()
    };
    let discard = ["node", "keys", "--discard-ahead", "--config", "alpha/node.toml"];
    // By the process that runs, which makes others at once.
    with("4 days");
    let mut node = start();
    let mistaken = keys();
    assert!(mistaken > 5, "{mistaken}");
    with("30 days");
    good(folder, &["node", "reload", "--config", "alpha/node.toml"]);
    let said = good(folder, &discard);
    assert_eq!(said.lines().filter(|line| line.starts_with("discarded: 20")).count(), mistaken - 1, "{said}");
    assert!(said.contains("made: 20") || said.contains("the next key is made"), "{said}");
    let left = keys();
    assert!(left < mistaken, "{left}");
    node.stop();
    // Without a process.
    with("4 days");
    start().stop();
    let said = good(folder, &discard);
    assert!(said.contains("discarded: 20") && said.ends_with("the next start of the node makes others\n"), "{said}");
    assert_eq!(keys(), 1);
    assert_eq!(good(folder, &discard), "no key waited for its time\n");
    // With one that holds the home and does not answer.
    let lock = fs::OpenOptions::new().write(true).open(folder.join("alpha/lock")).unwrap();
    lock.lock().unwrap();
    let (code, said) = bad(folder, &discard);
    assert!(code == 5 && said.contains("did not answer"), "{code}: {said}");
}

#[test]
fn node_without_keys_and_settings_that_no_node_has_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (code, said) = bad(folder, &["node", "init"]);
    assert_eq!(code, 2, "{said}");
    let (code, said) = bad(folder, &["node", "init", "--home", "alpha", "--nickname", "7 of 9"]);
    assert_eq!(code, 2, "{said}");
    let (code, said) = bad(folder, &["node", "init", "--home", "alpha", "--host", "no host"]);
    assert!(code == 1 && said.contains("--host no host"), "{code}: {said}");
    assert!(!folder.join("alpha").exists(), "nothing is left behind");
    fs::write(folder.join("empty.toml"), "[node]\nhome = \"nowhere\"\n").unwrap();
    for what in ["descriptor", "keys"] {
        let (code, said) = bad(folder, &["node", what, "--config", "empty.toml"]);
        assert!(code == 1 && said.contains("nowhere has no keys yet"), "{code}: {said}");
    }
    // Others could look into it.
    fs::create_dir(folder.join("open")).unwrap();
    fs::set_permissions(folder.join("open"), Permissions::from_mode(0o755)).unwrap();
    let (code, said) = bad(folder, &["node", "init", "--home", "open"]);
    assert!(code == 1 && said.contains("chmod 700") && said.contains("0755"), "{code}: {said}");
    assert_eq!(files(&folder.join("open")), []);
}

/// A file with a passphrase, for its owner alone.
fn passphrase(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

#[test]
fn sealed_keys_open_with_their_passphrase_from_file_descriptor_or_environment_and_not_without() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let right = passphrase(folder, "right", "open sesame\n");
    let wrong = passphrase(folder, "wrong", "open barley\n");
    let init = [&INIT[..], &["--sealed"]].concat();
    // Nobody is asked where no terminal is.
    let (code, said) = bad(folder, &init);
    assert!(code == 78 && said.contains("there is no passphrase"), "{code}: {said}");
    good(folder, &[&init[..], &["--passphrase-file", &right]].concat());
    for (path, content) in files(&folder.join("alpha/keys")) {
        if path.extension().is_some_and(|it| it == "key") {
            assert!(content.starts_with(b"MIXGSEAL"), "{}", path.display());
        }
    }
    // What needs no private key needs no passphrase.
    good(folder, &["node", "keys", "--config", "alpha/node.toml"]);

    let starts = |mut command: Command, port: std::net::SocketAddr| {
        command.stdin(std::process::Stdio::null());
        let mut node = Program::start(command);
        node.until("the port of the node", |_| TcpStream::connect(port).ok());
        node.said_nothing_of(&["sesame"]);
        node.stop();
    };
    let ports = free_ports(3);
    let mut by_file = run(folder, &ports[0].to_string());
    by_file.args(["--passphrase-file", &right]);
    starts(by_file, ports[0]);
    let mut by_environment = run(folder, &ports[1].to_string());
    by_environment.env("MIXGATE_PASSPHRASE", "open sesame");
    starts(by_environment, ports[1]);
    // The shell opens the descriptor; what it runs has it open.
    let mut by_descriptor = run(folder, &ports[2].to_string());
    by_descriptor.args(["--passphrase-fd", "3"]);
    let mut shell = Command::new("sh");
    shell.current_dir(folder).args(["-c", "exec \"$@\" 3<right", "sh"]);
    shell.arg(by_descriptor.get_program()).args(by_descriptor.get_args());
    starts(shell, ports[2]);

    let refused = |arguments: &[&str]| {
        let mut command = run(folder, "127.0.0.1:0");
        command.args(arguments);
        let mut node = Program::start(command);
        let code = node.wait(PATIENCE).code().unwrap();
        (code, node.stderr())
    };
    let (code, said) = refused(&[]);
    assert!(code == 78 && said.contains("--passphrase-fd"), "{code}: {said}");
    let (code, said) = refused(&["--passphrase-file", &wrong]);
    assert!(code == 78 && said.contains("the passphrase is wrong") && said.contains("identity.key"), "{code}: {said}");
    assert!(!said.contains("barley"), "{said}");
    let (code, said) = refused(&["--passphrase-file", &right, "--set", "node.keys.sealed=false"]);
    assert!(code == 78 && said.contains("node.keys.sealed is false"), "{code}: {said}");
    let (code, said) = refused(&["--set", "node.keys.sealed=false"]);
    assert!(code == 78 && said.contains("node.keys.sealed"), "{code}: {said}");
    fs::set_permissions(&right, Permissions::from_mode(0o644)).unwrap();
    let (code, said) = refused(&["--passphrase-file", &right]);
    assert!(code == 78 && said.contains("can be read by others"), "{code}: {said}");
    // In the environment too it would be for nothing, and nobody would know.
    let mut command = run(folder, "127.0.0.1:0");
    command.env("MIXGATE_PASSPHRASE", "open sesame").args(["--set", "node.keys.sealed=false"]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(78) && said.contains("node.keys.sealed is false"), "{said}");
    let (code, said) = bad(folder, &["node", "init", "--home", "beta", "--passphrase-file", &right]);
    assert!(code == 78 && said.contains("node.keys.sealed is false"), "{code}: {said}");
    assert!(!folder.join("beta").exists());
    let (code, _) = refused(&["--passphrase", "open sesame"]);
    assert_eq!(code, 2, "no passphrase on the command line");
}

#[test]
fn keys_are_sealed_when_the_setting_comes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    good(folder, &INIT);
    let port = free_ports(1)[0];
    let mut command = run(folder, &port.to_string());
    command.env("MIXGATE_PASSPHRASE", "open sesame").args(["--set", "node.keys.sealed=true"]);
    let mut node = Program::start(command);
    node.until("the port of the node", |_| TcpStream::connect(port).ok());
    assert!(node.stderr().contains("is sealed from now on"), "{}", node.stderr());
    node.stop();
    assert!(fs::read(folder.join("alpha/keys/identity.key")).unwrap().starts_with(b"MIXGSEAL"));
}

/// Runs the command of its arguments on a terminal of its own, and types what is asked for.
const TERMINAL: &str = r#"
import os, pty, sys, termios, time
answers = sys.argv[1].split(",")
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
shown = b""
while True:
    try:
        piece = os.read(terminal, 4096)
    except OSError:
        break
    if not piece:
        break
    shown += piece
    # Nobody types before the question is there; the echo goes off a moment after.
    if answers and (shown.endswith(b"keys: ") or shown.endswith(b"more: ")):
        patience = time.monotonic() + 60
        while termios.tcgetattr(terminal)[3] & termios.ECHO and time.monotonic() < patience:
            time.sleep(0.01)
        os.write(terminal, answers.pop(0).encode() + b"\n")
sys.stdout.buffer.write(shown)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"#;

#[test]
fn new_passphrase_is_asked_for_twice_on_a_terminal_and_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let on_terminal = |answers: &str| {
        let mut python = Command::new("python3");
        python.current_dir(folder.path()).args(["-c", TERMINAL, answers]).arg(binary()).args(INIT).arg("--sealed");
        python.env_remove("MIXGATE_PASSPHRASE").env_remove("MIXGATE_CONFIG");
        python.output().unwrap()
    };
    let differ = on_terminal("open sesame,open barley");
    assert_eq!(differ.status.code(), Some(78), "{differ:?}");
    assert!(out(&differ).contains("the two passphrases differ"), "{differ:?}");
    let made = on_terminal("open sesame,open sesame");
    assert!(made.status.success(), "{made:?}");
    assert!(!out(&made).contains("sesame"), "{made:?}");
    assert!(fs::read(folder.path().join("alpha/keys/identity.key")).unwrap().starts_with(b"MIXGSEAL"));
}
