//! `mixgate run`: roles from files, one process each, as operators run them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use mixgate_tests::letter::letter;
use mixgate_tests::mails::plain;
use mixgate_tests::pop3::Pop3;
use mixgate_tests::program::{Program, command, free_ports};
use mixgate_tests::roles::{directory, directory_key, gateway, login, network, node, run};
use mixgate_tests::sink::Sink;
use mixgate_tests::{PATIENCE, until};

/// What no line of any process may have in it.
const SECRETS: [&str; 5] = ["kanárek", "bob@example.org", "me@example.net", "open sesame", "Žofie"];

/// Runs it to its end, and returns its exit code and its last words.
fn refused(folder: &Path, config: &str) -> (i32, String) {
    let mut program = run(folder, "refused", config);
    let status = program.wait(PATIENCE);
    (status.code().unwrap(), program.stderr())
}

/// The directory that is served, as a client gets it.
fn get(address: SocketAddr, path: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(answer)
}

/// What the node whose home is `Alpha` says of itself.
fn descriptor(node: &mut Program, folder: &Path) -> String {
    node.until("the descriptor", |_| fs::read_to_string(folder.join("Alpha/descriptor")).ok())
}

#[test]
fn wrong_settings_are_named_by_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("refused.toml");
    for (config, line, words) in [
        ("[node]\nenabled = true\nnicknam = \"Alpha\"\n", 3, &["node.nicknam", "nickname"][..]),
        ("[node]\n\n[node.mixing]\ninterval = \"soon\"\n", 4, &["node.mixing.interval"]),
        ("[gateway.smtp]\nlisten = \"0.0.0.0:25\"\n", 2, &["gateway.smtp.listen", "loopback"]),
        ("[node]\nlisten = [\"[::]:48099\", \"here\"]\n", 2, &["node.listen", "here", "an address and port"]),
        ("[node.incoming]\naccess = [\"deny 10.0.0.0/8\"]\n", 2, &["node.incoming.access", "deny everybody"]),
        ("[node.outgoing]\naccess = [\"allow here\"]\n", 2, &["node.outgoing.access", "allow here"]),
        ("[log]\nlevel = \"loud\"\n", 2, &["log.level", "debug"]),
        ("[gatway]\nenabled = true\n", 1, &["gatway", "gateway"]),
        ("[node\n", 1, &[]),
    ] {
        let (code, said) = refused(folder.path(), config);
        assert_eq!(code, 78, "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let place = format!("mixgate: {}:{line}: ", file.display());
        assert!(said.starts_with(&place), "{said} is not about {place}");
        assert!(words.iter().all(|word| said.contains(word)), "{said} lacks one of {words:?}");
    }
}

#[test]
fn settings_that_cannot_work_are_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    for (config, words) in [
        ("", &["no role is enabled", "gateway.enabled"][..]),
        ("[gateway]\nenabled = true\n", &["network.directory"]),
        ("[node]\nenabled = true\nnickname = \"7 of 9\"\nlisten = \"127.0.0.1:0\"\n", &["nickname"]),
        ("[node]\nenabled = true\n[node.bandwidth]\naverage = 1000\n", &["node.bandwidth", "272 connections"]),
    ] {
        let (code, said) = refused(folder.path(), config);
        assert_eq!(code, 78, "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("mixgate: ") && words.iter().all(|word| last.contains(word)), "{said}");
    }
    let mut command = command();
    command.args(["run", "--config", "/nowhere/mixgate.toml"]);
    let mut program = Program::start(command);
    assert_eq!(program.wait(PATIENCE).code(), Some(78));
    assert!(program.stderr().contains("/nowhere/mixgate.toml"), "{}", program.stderr());
}

#[test]
fn port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = refused(folder.path(), &directory(address));
    assert_ne!(code, 0);
    assert!(said.lines().last().unwrap().contains(&address.to_string()), "{said}");
}

#[test]
fn directory_alone_serves_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_ports(1)[0];
    let mut program = run(folder.path(), "directory", &directory(address));
    let key = directory_key(&mut program);
    until("an answer of the directory", PATIENCE, || {
        get(address, "/").filter(|answer| answer.starts_with(b"HTTP/1.1"))
    });
    program.stop();
    // The key is who the directory is: it stays.
    let mut again = run(folder.path(), "directory", &directory(address));
    assert_eq!(directory_key(&mut again), key);
    again.stop();
}

#[test]
fn node_alone_shows_its_descriptor_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_ports(1)[0];
    let config = format!("[log]\nlevel = \"debug\"\n{}", node("Alpha", address, None));
    let mut program = run(folder.path(), "node", &config);
    until("the port of the node", PATIENCE, || TcpStream::connect(address).ok());
    let descriptor = descriptor(&mut program, folder.path());
    assert!(descriptor.contains("Nickname: Alpha"), "{descriptor}");
    // What weakens it is published, and said to its operator in the same words.
    let why = "Log is too verbose, Dummies are not sent, MixPoolMinSize is too small, Mix interval under 15 minutes";
    assert!(descriptor.contains(&format!("Why-Insecure: {why}\n")), "{descriptor}");
    assert!(descriptor.contains("Secure-Configuration: no\n"), "{descriptor}");
    assert!(program.stderr().contains(why), "{}", program.stderr());
    assert!(program.stderr().contains("sends no dummies"), "{}", program.stderr());
    program.stop();
}

#[test]
fn network_of_single_processes_delivers_mail_from_end_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start();
    let ports = free_ports(6);
    let [dir, alpha, beta, gamma, smtp, pop3] = ports[..] else { panic!("six ports") };
    // The first process is directory and mix. Its own key is known only once it has been up.
    let mut first = run(folder.path(), "first", &directory(dir));
    let key = directory_key(&mut first);
    first.stop();
    let net = network(dir, &key);
    let files = [
        ("first", format!("{net}{}{}", directory(dir), node("Alpha", alpha, None))),
        ("beta", format!("{net}{}", node("Beta", beta, None))),
        ("gamma", format!("{net}{}", node("Gamma", gamma, Some(sink.address)))),
        ("gateway", format!("{net}{}", gateway(smtp, pop3, "~3"))),
    ];
    let start = |(name, config): &(&str, String)| run(folder.path(), name, config);
    let mut programs: Vec<_> = files.iter().map(start).collect();
    programs[3].until("the SMTP door", |_| login(smtp));
    // Until the gateway knows an exit, it says so.
    let text = "kanárek: z jednoho procesu do druhého\n";
    let submit = |subject| {
        let reply =
            login(smtp)?.mail("<me@example.net>", &["bob@example.org"], &plain("bob@example.org", subject, text));
        assert!([250, 451, 550].contains(&reply.code), "{reply}");
        (reply.code == 250).then_some(())
    };
    until("a mail that is taken", PATIENCE, || submit("kanárek"));
    let mails =
        until("the mail in the world outside", PATIENCE, || Some(sink.mails()).filter(|mails| !mails.is_empty()));
    let delivered = letter(&mails[0]);
    assert_eq!((delivered.body(), delivered.subject.as_str()), (text, "kanárek"));
    assert!(!delivered.has_reply_block(), "an identity without reply_to gives none");
    assert_eq!(Pop3::open(pop3, "alice", "open sesame").unwrap().count(), 0);
    // One mail more makes nobody say anything that an operator sees.
    let said = |programs: &[Program]| {
        let lines = |program: &Program| program.stderr().lines().filter(|line| !line.contains("DEBUG")).count();
        programs.iter().map(lines).collect::<Vec<_>>()
    };
    let before = said(&programs);
    submit("one more").unwrap();
    until("the mail more", PATIENCE, || Some(()).filter(|()| sink.mails().len() == 2));
    assert_eq!(said(&programs), before, "a line at info or above is caused by one mail");
    // Its operator has a mix tell the directory server about itself once more.
    let ask = |arguments: &[&str]| {
        let mut command = command();
        command.current_dir(folder.path()).args(arguments).arg("--config").arg(folder.path().join("beta.toml"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ask(&["node", "republish"]), "the directory server lists this node\n");
    assert!(ask(&["node", "status", "--json"]).contains("\"publication\": \"listed\""));
    // The gateway is off while a mail is on its way, then a mix is.
    programs[1].stop();
    submit("last").unwrap();
    programs[3].stop();
    programs[3] = start(&files[3]);
    programs[1] = start(&files[1]);
    until("the last mail", PATIENCE, || Some(()).filter(|()| sink.mails().len() >= 3));
    for program in &mut programs {
        program.stop();
        program.said_nothing_of(&SECRETS);
        program.logged_nothing_that_links();
    }
    assert_eq!(sink.mails().len(), 3, "each once");
}

#[test]
fn environment_and_command_line_come_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let ports = free_ports(3);
    let file = folder.path().join("layers.toml");
    fs::write(&file, node("Alpha", ports[0], None)).unwrap();
    let mut command = command();
    command.current_dir(folder.path()).args(["run", "--config"]).arg(&file);
    command.env("MIXGATE_NODE__LISTEN", ports[1].to_string()).env("MIXGATE_NODE__NICKNAME", "Beta");
    command.args(["--set", "node.nickname=Gamma"]);
    let mut program = Program::start(command);
    program.until("the port of the environment", |_| TcpStream::connect(ports[1]).ok());
    let descriptor = descriptor(&mut program, folder.path());
    assert!(descriptor.contains("Nickname: Gamma"), "{descriptor}");
    assert!(TcpStream::connect_timeout(&ports[0], Duration::from_secs(1)).is_err());
    program.stop();
}
