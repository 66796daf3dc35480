//! What an operator does with a node: start, ask, change, stop; and what the service manager hears of it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use mixgate_tests::pop3::Pop3;
use mixgate_tests::program::{Program, STOPPING, binary, command, free_ports};
use mixgate_tests::{PATIENCE, until};
use serde_json::Value;

/// A node that a test may start, with the file that says how.
struct Node {
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Node {
    fn new() -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap(), address: free_ports(1)[0] };
        node.write(&node.config());
        node
    }

    /// Line 4 is the nickname, line 9 the interval.
    fn config(&self) -> String {
        format!(
            "[log]\nlevel = \"info\"\n[node]\nnickname = \"Alpha\"\nhome = \"Alpha\"\nlisten = \"{}\"\nhost = \"mix.example\"\n\
             [node.mixing]\ninterval = \"20 minutes\"\n",
            self.address
        )
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("node.toml")
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("Alpha")
    }

    fn write(&self, config: &str) {
        fs::write(self.file(), config).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command();
        command.current_dir(self.folder.path()).args(arguments).arg("--config").arg(self.file());
        command
    }

    fn start(&self) -> Program {
        let mut program = Program::start(self.command(&["node", "start"]));
        program.until("an answer of the node", |_| (self.run(&["node", "status"]).0 == 0).then_some(()));
        program
    }

    /// Runs a command to its end: exit code, standard output, standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |octets| String::from_utf8(octets).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn done(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {stdout}{stderr}");
        stdout
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], with: i32, words: &[&str]) {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!(code, with, "{arguments:?}: {stdout}{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr} lacks one of {words:?}");
    }
}

#[test]
fn node_is_started_asked_and_stopped() {
    let node = Node::new();
    node.fails(&["node", "status"], 3, &["no process runs", "Alpha"]);
    let mut program = node.start();
    let status: Value = serde_json::from_str(&node.done(&["node", "status", "--json"])).unwrap();
    assert_eq!(status["nickname"], "Alpha");
    assert_eq!(status["listen"][0], node.address.to_string());
    assert_eq!(status["published"], format!("mix.example:{}", node.address.port()));
    assert_eq!(status["fingerprint"].as_str().unwrap().len(), 40);
    assert_eq!(status["publication"], "nowhere");
    assert_eq!(status["queues"]["pool"], 1000, "an empty pool is said as up to a thousand");
    assert_eq!(status["packet_keys"].as_array().unwrap().len(), 1);
    let warnings = status["warnings"].as_array().unwrap();
    assert!(
        warnings.iter().any(|warning| warning.as_str().unwrap().starts_with("network.directory: ")),
        "{warnings:?}"
    );
    let text = node.done(&["node", "status"]);
    assert!(text.contains("nickname        Alpha\n") && text.contains("warning         network.directory: "), "{text}");

    let stats: Value = serde_json::from_str(&node.done(&["node", "stats", "--json"])).unwrap();
    let figures = stats["figures"].as_array().unwrap();
    assert!(figures.iter().all(|figure| figure[1] == 1000), "{figures:?}");
    assert!(node.done(&["node", "stats"]).contains("\n  received: 1000\n"));
    node.fails(&["node", "republish"], 1, &["network.directory is empty"]);

    assert_eq!(node.done(&["node", "stop"]), "the process has ended\n");
    assert_eq!(program.wait(STOPPING).code(), Some(0), "{}", program.stderr());
    node.fails(&["node", "stop"], 3, &["no process runs"]);
    assert!(node.home().join("statistics.state").exists(), "kept at the end");
}

#[test]
fn second_process_is_refused_and_the_first_goes_on() {
    let node = Node::new();
    let mut program = node.start();
    node.fails(&["node", "start"], 4, &["a process runs in", "Alpha", "already"]);
    // Neither its socket nor its lock was touched.
    node.done(&["node", "status"]);
    program.stop();
    // Roles without a node have locks too.
    let ports = free_ports(2);
    let directory = |address: SocketAddr| {
        format!(
            "[directory]\nenabled = true\nhome = \"directory\"\nlisten = \"{address}\"\nurl = \"http://{address}/\"\n"
        )
    };
    node.write(&directory(ports[0]));
    let mut first = Program::start(node.command(&["run"]));
    first.until("the directory", |_| TcpStream::connect(ports[0]).ok());
    node.write(&directory(ports[1]));
    node.fails(&["run"], 4, &["a process runs in", "directory"]);
    first.stop();
}

#[test]
fn what_a_killed_process_left_is_replaced() {
    let node = Node::new();
    node.start().kill();
    assert!(fs::metadata(node.home().join("control")).unwrap().file_type().is_socket());
    node.fails(&["node", "status"], 3, &["no process runs"]);
    let mut again = node.start();
    node.done(&["node", "stop"]);
    assert!(again.wait(STOPPING).success());
}

#[test]
fn processes_that_cannot_be_asked_are_told_apart() {
    let node = Node::new();
    fs::create_dir(node.home()).unwrap();
    fs::set_permissions(node.home(), Permissions::from_mode(0o700)).unwrap();
    // Another release.
    let socket = UnixListener::bind(node.home().join("control")).unwrap();
    let answers = ["{\"mixgate\":2,\"done\":[]}\n", "", "nonsense\n", "{\"mixgate\":1}\n"];
    let peer = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = socket.accept().unwrap();
            let mut request = [0; 100];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    node.fails(&["node", "status"], 6, &["version 2", "restart it"]);
    for _ in 1..answers.len() {
        node.fails(&["node", "status"], 5, &["did not answer"]);
    }
    peer.join().unwrap();
    fs::set_permissions(node.home(), Permissions::from_mode(0o755)).unwrap();
    node.fails(&["node", "status"], 7, &["not ours"]);
}

#[test]
fn reload_changes_what_can_change_and_says_what_cannot() {
    let node = Node::new();
    let mut program = node.start();
    assert_eq!(node.done(&["node", "reload"]), "nothing has changed\n");
    let other = free_ports(1)[0];
    let changed = node.config().replace("\"info\"", "\"debug\"").replace("20 minutes", "25 minutes");
    node.write(&changed.replace(&node.address.to_string(), &other.to_string()));
    assert_eq!(
        node.done(&["node", "reload"]),
        "changed: log.level, node.mixing.interval\nwaits for a restart: node.listen\n"
    );
    assert!(TcpStream::connect(node.address).is_ok() && TcpStream::connect(other).is_err());
    program.until("the keys in the log", |program| {
        let log = program.stderr();
        (log.contains("changed=\"log.level node.mixing.interval\"") && log.contains("keys=\"node.listen\""))
            .then_some(())
    });
    // What waits is said again, and nothing twice.
    assert_eq!(node.done(&["node", "reload"]), "nothing has changed\nwaits for a restart: node.listen\n");
    program.stop();
}

/// Whether somebody who connects there is let in: whoever is not is hung up on at once.
fn is_let_in(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.read(&mut [0]).is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

#[test]
fn rules_for_connections_hold_from_sighup_on_and_for_those_that_are_there_too() {
    let node = Node::new();
    let mut program = node.start();
    let mut there = TcpStream::connect(node.address).unwrap();
    there.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(is_let_in(node.address));
    let deny = "[node.incoming]\naccess = [\"deny 127.0.0.1\", \"allow * 1-65535\"]\n";
    node.write(&(node.config() + deny));
    program.signal("HUP");
    program.until("the rule in the log", |program| {
        program.stderr().contains("changed=\"node.incoming.access\"").then_some(())
    });
    assert!(!is_let_in(node.address));
    assert_eq!(there.read(&mut [0]).unwrap_or(0), 0, "whoever was there is hung up on");
    node.write(&node.config());
    assert_eq!(node.done(&["node", "reload"]), "changed: node.incoming.access\n");
    assert!(is_let_in(node.address));
    assert!(!program.stderr().contains("wait for a restart"), "{}", program.stderr());
    program.stop();
}

#[test]
fn reload_returns_when_what_the_descriptor_states_is_signed_anew() {
    let node = Node::new();
    let mut program = node.start();
    for port in [99, 98, 97] {
        node.write(&node.config().replace("host = ", &format!("port = {port}\nhost = ")));
        assert_eq!(node.done(&["node", "reload"]), "changed: node.port\n");
        let descriptor = node.done(&["node", "descriptor"]);
        assert!(descriptor.contains(&format!("Port: {port}\n")), "{descriptor}");
        assert!(node.done(&["node", "status"]).contains(&format!("mix.example:{port}\n")));
    }
    program.stop();
}

#[test]
fn wrong_configuration_changes_nothing_and_is_named() {
    let node = Node::new();
    let mut program = node.start();
    let file = node.file();
    for (wrong, line, words) in [
        ("interval = \"soon\"", 9, &["node.mixing.interval", "soon"][..]),
        ("interval = \"0s\"", 9, &["node.mixing.interval"]),
        ("intervall = \"20 minutes\"", 9, &["node.mixing.intervall", "did you mean `node.mixing.interval`"]),
        ("rate = 2.0", 9, &["node.mixing"]),
    ] {
        node.write(&node.config().replace("interval = \"20 minutes\"", wrong).replace("\"info\"", "\"debug\""));
        let place = format!("{}:{line}", file.display());
        // By the signal: the process finds it, says it, and lives.
        program.signal("HUP");
        program.until("the place in the log", |program| {
            let log = program.stderr();
            let said = log.lines().any(|it| it.contains("not taken") && it.contains(&place));
            said.then_some(())
        });
        // By the command: it is found before anybody is asked, or by the process.
        let words: Vec<&str> = words.iter().copied().chain([place.as_str()]).collect();
        node.fails(&["node", "reload"], 78, &words);
        assert!(!program.stderr().contains("was read again"), "nothing of it was taken");
    }
    node.write(&node.config());
    assert_eq!(node.done(&["node", "reload"]), "nothing has changed\n", "the old one is in force");
    program.stop();
}

#[test]
fn identities_come_and_go_with_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let ports = free_ports(2);
    let config = |identities: &[&str]| {
        let mut config = format!(
            "[network]\ndirectory = \"http://127.0.0.1:9/\"\ndirectory_key = \"{}\"\n[gateway]\nenabled = true\nhome = \"gateway\"\n\
             [gateway.smtp]\nlisten = \"{}\"\n[gateway.pop]\nlisten = \"{}\"\n",
            "ab".repeat(20),
            ports[0],
            ports[1]
        );
        for name in identities {
            config += &format!("[[gateway.identities]]\nname = \"{name}\"\npassword = \"open {name}\"\n");
        }
        config
    };
    let file = folder.path().join("gateway.toml");
    fs::write(&file, config(&["alice"])).unwrap();
    let mut command = command();
    command.current_dir(folder.path()).args(["run", "--config"]).arg(&file);
    let mut program = Program::start(command);
    let login = |name: &str| Pop3::open(ports[1], name, &format!("open {name}")).is_ok();
    program.until("the account of alice", |_| login("alice").then_some(()));
    assert!(!login("bob"));
    fs::write(&file, config(&["bob"])).unwrap();
    program.signal("HUP");
    program.until("the account of bob", |_| login("bob").then_some(()));
    assert!(!login("alice"));
    program.stop();
    program.said_nothing_of(&["alice", "bob", "open "]);
}

#[test]
fn password_of_the_mail_server_changes_with_a_reload_and_is_not_said() {
    let node = Node::new();
    let config = |password: &str| {
        node.config() + &format!("[node.smtp.server]\nuser = \"exit\"\npassword = \"open {password}\"\n")
    };
    node.write(&config("sesame"));
    let mut program = node.start();
    node.write(&config("barley"));
    assert_eq!(node.done(&["node", "reload"]), "changed: node.smtp.server.password\n");
    assert_eq!(node.done(&["node", "reload"]), "nothing has changed\n");
    program.stop();
    program.said_nothing_of(&["sesame", "barley"]);
}

#[test]
fn check_names_what_must_be_mended_and_what_is_unwise() {
    let node = Node::new();
    let file = node.file();
    let said = node.done(&["node", "check"]);
    assert!(said.contains("warning: default: network.directory: ") && said.contains("can be used"), "{said}");
    let sound = node.config()
        + "[node.outgoing]\nretry = [{ every = \"1 hour\", for = \"2 days\" }]\n[network]\ndirectory = \"http://d.example/\"\n\
           directory_key = \"0123456789ABCDEF0123456789ABCDEF01234567\"\n";
    node.write(&sound);
    assert_eq!(node.done(&["node", "check"]), "the configuration is sound\n");
    node.write(&sound.replace("2 days", "3 hours"));
    let said = node.done(&["node", "check"]);
    for doubt in ["gives up in less than a day", "fewer than 5 attempts"] {
        let line = format!("warning: {}:11: node.outgoing.retry: {doubt}\n", file.display());
        assert!(said.contains(&line), "{said}");
    }
    node.write(&sound.replace("20 minutes", "0s"));
    let place = format!("{}:9: ", file.display());
    node.fails(&["node", "check"], 78, &[&place, "node.mixing.interval", "longer than nothing"]);
    // What the file itself does not show is named by its place too.
    node.write(&sound.replace("\"Alpha\"\nhome", "\"7 of 9\"\nhome"));
    let place = format!("{}:4: ", file.display());
    node.fails(&["node", "check"], 78, &[&place, "node.nickname"]);
    assert!(!node.home().exists(), "nothing was made");
}

#[test]
fn switch_of_the_wrong_type_is_refused_by_a_start_too() {
    let node = Node::new();
    node.write(&node.config().replace("[node]\n", "[node]\nenabled = \"yes\"\n"));
    for command in ["check", "start"] {
        node.fails(&["node", command], 78, &["node.toml:4", "node.enabled", "`true` or `false`"]);
    }
    node.write(&node.config().replace("[node]\n", "[node]\nenabled = false\n"));
    let mut program = node.start();
    node.write(&node.config().replace("[node]\n", "[node]\nenabled = \"yes\"\n"));
    node.fails(&["node", "reload"], 78, &["node.toml:4", "node.enabled"]);
    node.write(&node.config().replace("[node]\n", "[node]\nenabled = false\n"));
    assert_eq!(node.done(&["node", "reload"]), "nothing has changed\n");
    program.stop();
}

#[test]
fn what_is_unwise_is_said_once_and_of_a_reload_only_what_is_new() {
    let node = Node::new();
    let two = free_ports(1)[0];
    let listen = format!("listen = [\"{}\", \"{two}\"]", node.address);
    let config = node.config().replace(&format!("listen = \"{}\"", node.address), &listen);
    node.write(&config.replace("[node.mixing]", "[node.mixing]\nrule = \"timed\""));
    let mut program = node.start();
    let log = program.stderr();
    let count = |log: &str, words: &str| log.matches(words).count();
    assert_eq!(count(&log, "Mix algorithm is not secure"), 1, "{log}");
    assert_eq!(count(&log, "no directory server is named"), 1, "{log}");
    let up = log.lines().find(|line| line.contains("the node is up")).unwrap();
    assert!(up.contains(&node.address.to_string()) && up.contains(&two.to_string()), "{up}");
    node.done(&["node", "reload"]);
    assert_eq!(count(&program.stderr(), "WARN"), count(&log, "WARN"), "{}", program.stderr());
    node.write(&config.replace("[node.mixing]", "[node.mixing]\nrule = \"timed\"\nminimum = 7"));
    node.done(&["node", "reload"]);
    let log = program.stderr();
    assert_eq!(count(&log, "node.mixing.minimum"), 2, "as changed, and as a warning: {log}");
    assert_eq!(count(&log, "Mix algorithm is not secure"), 1, "{log}");
    // One form of the fingerprint, the reference's, wherever it stands.
    let keys: Value = serde_json::from_str(&node.done(&["node", "keys", "--json"])).unwrap();
    let fingerprint = keys["identity"].as_str().unwrap();
    assert_eq!(fingerprint, fingerprint.to_uppercase());
    let status = node.done(&["node", "status"]);
    assert!(up.contains(fingerprint) && status.contains(fingerprint), "{up}, {status}");
    program.stop();
}

#[test]
fn unknown_keys_are_answered_with_all_that_may_be_meant() {
    let node = Node::new();
    for (section, key, meant) in [
        ("[node]\nintervall = 1\n", "node.intervall", &["`node.mixing.interval` or `node.stats.interval`?"][..]),
        ("[node]\nmix_interval = 1\n", "node.mix_interval", &["did you mean `node.mixing.interval`?"]),
        (
            "interval = 1\n",
            "interval",
            &["`gateway.sender.interval`, `node.mixing.interval` or `node.stats.interval`?"],
        ),
        ("[node]\naccess = 1\n", "node.access", &["`node.incoming.access` or `node.outgoing.access`?"]),
        (
            "[node.mixing]\nmax_connections = 1\n",
            "node.mixing.max_connections",
            &["did you mean `node.incoming.max_connections`?"],
        ),
        ("[nod]\nport = 1\n", "nod", &["did you mean `node`?"]),
        ("[node]\nxylophone = 1\n", "node.xylophone", &[]),
    ] {
        node.write(section);
        let (code, _, said) = node.run(&["node", "check"]);
        assert_eq!(code, 78, "{said}");
        assert!(said.contains(&format!("unknown key `{key}`")) && meant.iter().all(|it| said.contains(it)), "{said}");
        assert_eq!(said.contains("did you mean"), !meant.is_empty(), "{said}");
    }
    node.write("");
    let output = node.command(&["node", "check"]).env("MIXGATE_NODE_NICKNAME", "Beta").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let meant = "variable MIXGATE_NODE_NICKNAME: no such key `node_nickname`; did you mean `MIXGATE_NODE__NICKNAME`?";
    assert!(said.contains(meant), "{said}");
    // A number where a time is meant says how times are written.
    node.write("[node.mixing]\ninterval = 900\n");
    node.fails(&["node", "check"], 78, &["node.toml:2", "the number 900", "a time such as \"15 minutes\""]);
}

#[test]
fn passwords_in_urls_are_not_shown() {
    let node = Node::new();
    node.write("[network]\ndirectory = \"http://user:secretpw@directory.example/\"\n");
    let shown = node.done(&["config", "show"]) + &node.done(&["config", "show", "--json"]);
    assert!(!shown.contains("secretpw") && shown.contains("http://********@directory.example/"), "{shown}");
    // Nor in an error about them.
    node.write("[network]\ndirectory = \"http://user:secretpw@directory.example\"\n");
    let (code, _, said) = node.run(&["config", "show"]);
    assert!(code == 78 && !said.contains("secretpw") && said.contains("directory.example"), "{said}");
}

#[test]
fn node_is_stopped_though_its_configuration_is_wrong_elsewhere() {
    let node = Node::new();
    let stops = |arguments: &[&str]| {
        let mut program = node.start();
        node.write(&node.config().replace("interval", "intervall"));
        let (code, stdout, stderr) = node.run(arguments);
        assert_eq!((code, stdout.as_str()), (0, "the process has ended\n"), "{stderr}");
        assert!(program.wait(STOPPING).success());
        node.write(&node.config());
        stderr
    };
    let said = stops(&["node", "stop"]);
    assert!(said.contains(":9: unknown key `node.mixing.intervall`") && said.contains("Alpha"), "{said}");

    // Where the home cannot be known, nobody guesses: another node may live there.
    let mut program = node.start();
    for wrong in ["[node", "[node]\nhome = 5\n", &node.config().replace("home", "hom")] {
        node.write(wrong);
        node.fails(&["node", "stop"], 78, &["node.toml:", "--set node.home="]);
    }
    node.write("[node");
    assert_eq!(node.run(&["node", "stop", "--set", "node.home=Alpha"]).0, 0);
    assert!(program.wait(STOPPING).success());
}

#[test]
fn configuration_with_passwords_that_others_can_read_is_warned_of_by_check_and_at_the_start() {
    let node = Node::new();
    node.write(&(node.config() + "[[gateway.identities]]\nname = \"alice\"\npassword = \"open sesame\"\n"));
    let mode = |mode| fs::set_permissions(node.file(), Permissions::from_mode(mode)).unwrap();
    let words = format!(
        "{0} holds passwords and has mode 0640, which lets others read it: chmod 600 {0}",
        node.file().display()
    );
    mode(0o640);
    let said = node.done(&["node", "check"]);
    assert!(said.contains(&format!("{}:10: gateway.identities: {words}\n", node.file().display())), "{said}");
    let mut program = node.start();
    program.until("the warning in the log", |program| program.stderr().contains(&words).then_some(()));
    program.stop();
    mode(0o600);
    assert!(!node.done(&["node", "check"]).contains("passwords"));
    node.write(&(node.config() + "[node.smtp.server]\npassword = \"open sesame\"\n"));
    mode(0o640);
    let said = node.done(&["node", "check"]);
    assert!(said.contains(&format!("{}:11: node.smtp.server.password: {words}\n", node.file().display())), "{said}");
    // Without passwords it may be anybody's to read.
    node.write(&node.config());
    mode(0o644);
    assert!(!node.done(&["node", "check"]).contains("passwords"));
}

#[test]
fn check_says_what_becomes_of_mail_whose_delivery_is_switched_off() {
    let node = Node::new();
    let mail = node.folder.path().join("mail");
    let exit = format!(
        "[node.smtp]\nenabled = true\nway = \"maildir\"\nmaildir.path = {mail:?}\n\
         [node.smtp.mail]\nreturn_address = \"nobody@exit.example\"\n"
    );
    node.write(&(node.config() + &exit));
    let off = "node.smtp.enabled: false, and the descriptor of the node offers it";
    node.start().stop();
    assert!(!node.done(&["node", "check"]).contains(off));
    node.write(&(node.config() + &exit.replace("enabled = true", "enabled = false")));
    let said = node.done(&["node", "check"]);
    assert!(said.contains(&format!("warning: {}:11: {off}", node.file().display())), "{said}");
    // A start publishes that it delivers nothing: from then on nobody need be told.
    node.start().stop();
    assert!(!node.done(&["node", "check"]).contains(off));
}

#[test]
fn opt_outs_are_listed_and_undone_beside_a_node_and_without_one_and_a_mail_waits_for_it() {
    let node = Node::new();
    let opt_out = |arguments: &[&str]| {
        let mut command = node.command(&[&["exit", "opt-out"], arguments].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let ended = |arguments: &[&str]| opt_out(arguments).output().unwrap();
    let take = |mail: &str| {
        let mut child = opt_out(&["mail"]).spawn().unwrap();
        child.stdin.take().unwrap().write_all(mail.as_bytes()).unwrap();
        child.wait_with_output().unwrap().status.code()
    };
    let token = "0123456789abcdef0123456789abcdef";
    let wish = format!("Subject: opt-out {token} bob@example.org\n\n");
    assert_eq!(ended(&["list"]).status.code(), Some(1), "it has never run");
    let mut program = node.start();
    let listed = ended(&["list"]);
    assert!(listed.status.success() && listed.stdout.is_empty(), "{listed:?}");
    let refused = ended(&["add", token, "bob@example.org"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && said.contains("not the token of that mailbox"), "{said}");
    let known = ended(&["remove", "bob@example.org"]);
    assert!(known.status.code() == Some(1) && String::from_utf8_lossy(&known.stderr).contains("has not opted out"));
    assert_eq!(take(&wish), Some(0), "its sender may be invented, and is told nothing");
    program.stop();
    assert!(ended(&["list"]).status.success());
    assert_eq!(ended(&["remove", "bob@example.org"]).status.code(), Some(1));
    assert_eq!(ended(&["add", token, "bob@example.org"]).status.code(), Some(3));
    assert_eq!(take(&wish), Some(75));
    assert_eq!(take("Subject: no token\n\n"), Some(0));
}

#[test]
fn configuration_that_nobody_names_is_looked_for_where_it_usually_lies() {
    let node = Node::new();
    let show = || {
        let mut command = command();
        command.current_dir("/").env("HOME", node.folder.path()).env_remove("XDG_CONFIG_HOME");
        command.args(["config", "show"]).output().unwrap()
    };
    let missing = show();
    let said = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(missing.status.code(), Some(78), "{said}");
    let usual = node.folder.path().join(".config/mixgate/mixgate.toml");
    let named = format!("neither {} nor /etc/mixgate/mixgate.toml", usual.display());
    assert!(said.contains(&named) && said.contains("--config"), "{said}");
    fs::create_dir_all(usual.parent().unwrap()).unwrap();
    fs::copy(node.file(), &usual).unwrap();
    let found = show();
    let shown = String::from_utf8(found.stdout).unwrap();
    assert!(found.status.success() && shown.contains("nickname = \"Alpha\""), "{shown}");
}

#[test]
fn configuration_is_shown_with_where_each_value_came_from() {
    let node = Node::new();
    let file = node.file();
    let passwords = "[node.smtp.server]\npassword = \"open sesame\"\n\
                     [[gateway.identities]]\nname = \"alice\"\npassword = \"open sesame\"\n";
    node.write(&(node.config() + passwords));
    let show = |more: &[&str]| {
        let mut command = node.command(&["config", "show", "--set", "node.contact=me@mix.example"]);
        let output = command.env("MIXGATE_NODE__PORT", "99").args(more).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = show(&[]);
    for line in [
        format!("nickname = \"Alpha\"  # {}:4", file.display()),
        format!("interval = \"20m\"  # {}:9", file.display()),
        "port = 99  # environment variable MIXGATE_NODE__PORT".into(),
        "contact = \"me@mix.example\"  # command line".into(),
        "rule = \"binomial\"  # default".into(),
        "rate = 0.65  # default".into(),
    ] {
        assert!(shown.lines().any(|it| it == line), "{line} is not in {shown}");
    }
    assert!(!shown.contains("sesame") && shown.contains("password = \"********\""), "{shown}");
    // It can be read again, and says the same then.
    node.write(&shown);
    let again = node.done(&["config", "show"]);
    let values = |text: &str| {
        let value = |line: &str| line.split("  # ").next().unwrap().to_owned();
        text.lines().map(value).collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&shown));
    let json: Value = serde_json::from_str(&show(&["--json"])).unwrap();
    assert_eq!(json["node.port"]["value"], 99);
    assert_eq!(json["node.port"]["from"], "environment variable MIXGATE_NODE__PORT");
    assert_eq!(json["gateway.identities"]["value"][0]["password"], "********");
    assert_eq!(json["node.smtp.server.password"]["value"], "********");
}

#[test]
fn service_manager_hears_of_ready_reload_life_and_stop() {
    let node = Node::new();
    let path = node.folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut news = [0; 1000];
        let len = manager.recv(&mut news).unwrap();
        String::from_utf8(news[..len].to_vec()).unwrap()
    };
    let hear_of = |what: &str| {
        let mut news = hear();
        // It says that it lives at any time.
        while news == "WATCHDOG=1\n" && what != news {
            news = hear();
        }
        assert!(news.starts_with(what), "{news} is not {what}");
        news
    };
    let mut command = node.command(&["node", "start"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let mut program = Program::start(command);
    hear_of("READY=1\n");
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1\n");
    }
    program.signal("HUP");
    let news = hear_of("RELOADING=1\n");
    assert!(news.contains("MONOTONIC_USEC="), "{news}");
    hear_of("READY=1\n");
    // A configuration that is not taken ends the reload all the same.
    node.write("nonsense");
    program.signal("HUP");
    hear_of("RELOADING=1\n");
    hear_of("READY=1\n");
    program.signal("TERM");
    hear_of("STOPPING=1\n");
    assert!(program.wait(STOPPING).success());
}

/// Opens a socket at the address in its first argument, as number 3, and becomes the program in the others.
const ACTIVATE: &str = "import os, socket, sys
host, port = sys.argv[1].rsplit(':', 1)
opened = socket.create_server((host, int(port)))
os.dup2(opened.fileno(), 3)
os.set_inheritable(3, True)
os.environ['LISTEN_FDS'] = '1'
os.environ['LISTEN_PID'] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
";

fn activated(node: &Node, at: SocketAddr) -> Program {
    let mut python = Command::new("python3");
    python.current_dir(node.folder.path()).args(["-c", ACTIVATE, &at.to_string()]).arg(binary());
    python.args(["node", "start", "--config"]).arg(node.file()).stdin(Stdio::null());
    Program::start(python)
}

#[test]
fn socket_of_the_service_manager_is_taken_over() {
    let node = Node::new();
    let mut program = activated(&node, node.address);
    program.until("an answer of the node", |_| (node.run(&["node", "status"]).0 == 0).then_some(()));
    assert!(TcpStream::connect(node.address).is_ok());
    program.stop();
}

#[test]
fn socket_that_fits_no_door_is_an_error() {
    let node = Node::new();
    let other = free_ports(1)[0];
    let mut program = activated(&node, other);
    assert_eq!(program.wait(PATIENCE).code(), Some(78));
    assert!(program.stderr().contains(&other.to_string()), "{}", program.stderr());
}

/// The program with so many file descriptors, as a shell's `ulimit` sets them.
fn with_descriptors(node: &Node, limit: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.current_dir(node.folder.path()).stdin(Stdio::null());
    shell.args(["-c", &format!("ulimit {limit}; exec \"$@\""), "sh"]).arg(binary());
    shell.args(["node", "start", "--config"]).arg(node.file());
    shell
}

#[test]
fn descriptors_are_taken_up_to_the_hard_limit_and_no_more_connections_are_promised() {
    let node = Node::new();
    let mut program = Program::start(with_descriptors(&node, "-Sn 64"));
    program.until("an answer of the node", |_| (node.run(&["node", "status"]).0 == 0).then_some(()));
    let limits = fs::read_to_string(format!("/proc/{}/limits", program.id())).unwrap();
    let open_files: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(open_files[3], open_files[4], "soft and hard: {open_files:?}");
    program.stop();

    node.write(&(node.config() + "[node.incoming]\nmax_connections = 9000\n"));
    let mut program = Program::start(with_descriptors(&node, "-n 2000"));
    assert_eq!(program.wait(PATIENCE).code(), Some(78), "{}", program.stderr());
    let said = program.stderr();
    for words in ["node.toml:11", "node.incoming.max_connections", "2000", "LimitNOFILE"] {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn node_that_can_accept_nobody_says_so_once() {
    let node = Node::new();
    let mut program = node.start();
    let id = program.id().to_string();
    let limit = |files: &str| {
        assert!(Command::new("prlimit").args(["--pid", &id, files]).status().unwrap().success());
    };
    limit("--nofile=1:");
    let kept: Vec<_> = (0..3).map(|_| TcpStream::connect(node.address).unwrap()).collect();
    program.until("a warning", |program| program.stderr().contains("no connection can be accepted").then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(program.stderr().matches("no connection can be accepted").count(), 1, "{}", program.stderr());
    drop(kept);
    limit("--nofile=1000:");
    assert!(is_let_in(node.address));
    program.stop();
}

#[test]
fn metrics_are_rounded_and_for_this_machine_alone() {
    let node = Node::new();
    let address = free_ports(1)[0];
    node.write(&format!("{}[metrics]\nlisten = \"{address}\"\n", node.config()));
    let mut program = node.start();
    let get = |host: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = get(&address.to_string());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\nmixgate_node_received 1000\n"), "{answer}");
    assert!(get("evil.example").starts_with("HTTP/1.1 403"));
    program.stop();
    node.write(&format!("{}[metrics]\nlisten = \"0.0.0.0:{}\"\n", node.config(), address.port()));
    node.fails(&["node", "start"], 78, &["metrics.listen", "loopback"]);
}

#[test]
fn statistics_survive_a_kill() {
    let node = Node::new();
    // Slices of a tenth of a second.
    node.write(&(node.config() + "[node.stats]\ninterval = \"9600ms\"\n"));
    let state = node.home().join("statistics.state");
    let mut program = node.start();
    until("the first slice", PATIENCE, || state.exists().then_some(()));
    // As a day of traffic would have left it.
    program.kill();
    let busy = fs::read_to_string(&state).unwrap().replace("received 1000", "received 57000");
    fs::write(&state, busy).unwrap();
    node.write(&node.config());
    let mut program = node.start();
    assert!(node.done(&["node", "stats"]).contains("  received: 57000\n"));
    program.kill();
    let mut program = node.start();
    assert!(node.done(&["node", "stats"]).contains("  received: 57000\n"));
    program.stop();
}

#[test]
fn help_fits_a_screen_and_each_command_shows_an_example() {
    let help = |arguments: &[&str]| {
        let output = command().args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(help(&["--help"]).lines().count() <= 24, "{}", help(&["--help"]));
    assert!(help(&["node", "--help"]).lines().count() <= 24, "{}", help(&["node", "--help"]));
    for command in [&["run"][..], &["demo"], &["config", "show"]] {
        let help = help(&[command, &["--help"]].concat());
        assert!(help.contains("Example: mixgate "), "{help}");
    }
    for command in ["start", "stop", "reload", "status", "stats", "republish", "check"] {
        let help = help(&["node", command, "--help"]);
        assert!(help.contains(&format!("Example: mixgate node {command} ")), "{help}");
    }
}
