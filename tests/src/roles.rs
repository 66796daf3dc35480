//! Roles in processes of their own, from configuration files, as operators run them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::clock::Clock;
use crate::program::{Program, command};
use crate::smtp::Smtp;

/// Starts `mixgate run` with this configuration, from a file in `folder`.
///
/// # Panics
/// When it cannot be started.
pub fn run(folder: &Path, name: &str, config: &str) -> Program {
    run_by(None, folder, name, config)
}

/// As [`run`], by a date of the test's own, if there is one.
///
/// # Panics
/// When it cannot be started.
pub fn run_by(clock: Option<&Clock>, folder: &Path, name: &str, config: &str) -> Program {
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, config).unwrap();
    let mut command = command();
    command.current_dir(folder).args(["run", "--config"]).arg(&file);
    if let Some(clock) = clock {
        clock.shown_to(&mut command);
    }
    Program::start(command)
}

/// The key that a directory server says it has.
///
/// # Panics
/// When it does not say.
pub fn directory_key(directory: &mut Program) -> String {
    directory.until("the directory's key in its log", |directory| {
        let log = directory.stderr();
        let (_, rest) = log.split_once("key=")?;
        rest.get(..40).map(str::to_owned)
    })
}

/// A session of alice at the SMTP door; none while the door is closed.
///
/// # Panics
/// When she is not let in.
pub fn login(smtp: SocketAddr) -> Option<Smtp> {
    let mut client = Smtp::connect(smtp).ok()?;
    assert_eq!(client.command("EHLO client.example").code, 250);
    assert_eq!(client.login("alice", "open sesame").code, 235);
    Some(client)
}

/// Where the directory is, and who signs it.
pub fn network(directory: SocketAddr, key: &str) -> String {
    format!(
        "[log]\nlevel = \"debug\"\n[network]\ndirectory = \"http://{directory}/\"\ndirectory_key = \"{key}\"\nrefresh = \"1s\"\nretry = \"1s\"\n"
    )
}

/// A directory server that lists every mix.
pub fn directory(address: SocketAddr) -> String {
    format!(
        "[directory]\nenabled = true\nhome = \"directory\"\nlisten = \"{address}\"\nurl = \"http://{address}/\"\n\
         accept_unknown = true\n"
    )
}

/// A mix with an interval of half a second, and an exit to that server if there is one.
pub fn node(nickname: &str, address: SocketAddr, exit_to: Option<SocketAddr>) -> String {
    let schedule = "[{ every = \"1s\", for = \"1h\" }]";
    let mut config = format!(
        "[node]\nenabled = true\nnickname = \"{nickname}\"\nhome = \"{nickname}\"\nlisten = \"{address}\"\n\
         host = \"127.0.0.1\"\n\
         [node.mixing]\ninterval = \"500ms\"\nminimum = 0\n\
         [node.dummies]\ndrop_mean = 1.0\njunk_period = \"2s\"\n\
         [node.outgoing]\nretry = {schedule}\n\
         [node.fragments]\nenabled = true\n"
    );
    if let Some(server) = exit_to {
        config += &exit(&format!("host = \"{}\"\nport = {}\n", server.ip(), server.port()));
    }
    config
}

/// What makes a [`node`] an exit by e-mail through one mail server, with these lines of `[node.smtp.server]`.
pub fn exit(server: &str) -> String {
    exit_by("smarthost", &format!("[node.smtp.server]\n{server}"))
}

/// What makes a [`node`] an exit by e-mail to the servers of each domain, with these lines of `[node.smtp.mx]`.
pub fn exit_by_mx(servers: &str) -> String {
    exit_by("mx", &format!("[node.smtp.mx]\n{servers}"))
}

fn exit_by(way: &str, section: &str) -> String {
    format!(
        "[node.smtp]\nenabled = true\nway = \"{way}\"\nretry = [{{ every = \"1s\", for = \"1h\" }}]\n\
         limits.per_recipient.mails = 0\nproof_address = \"postmaster@example.org\"\n\
         [node.smtp.mail]\nreturn_address = \"nobody@exit.example\"\n\
         {section}"
    )
}

/// A gateway for alice, which sends by that path and asks for no answers.
pub fn gateway(smtp: SocketAddr, pop3: SocketAddr, path: &str) -> String {
    format!(
        "[gateway]\nenabled = true\nhome = \"gateway\"\n\
         [[gateway.identities]]\nname = \"alice\"\npassword = \"open sesame\"\n\
         [gateway.smtp]\nlisten = \"{smtp}\"\n\
         [gateway.pop]\nlisten = \"{pop3}\"\n\
         [gateway.sender]\npath = \"{path}\"\ninterval = \"500ms\"\n\
         [gateway.sender.outgoing]\nretry = [{{ every = \"1s\", for = \"1h\" }}]\n"
    )
}
