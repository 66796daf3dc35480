//! Mail servers that people run, as smart hosts of an exit: the whole way from a mail client through a network of single
//! processes into a mailbox of theirs, in each mode, and however badly they behave.
//!
//! Debian lets one of them be installed at a time: `tests/peers.sh` has all three, one after the other. What each of them
//! logged is printed (`--nocapture`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod smuggling;

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use mix::store::queue::exit as queue;
use mix::store::{Db, NODE_SCHEMAS};
use mixgate_tests::mails::plain;
use mixgate_tests::peers::{DOMAIN, Door, GREY, Kind, PASSWORD, Peer, REFUSED, USER};
use mixgate_tests::program::{Program, command, free_ports};
use mixgate_tests::roles::{directory, directory_key, exit, gateway, login, network, node, run};
use mixgate_tests::{PATIENCE, until};
use tempfile::TempDir;

/// What no process of ours may say.
const SECRETS: [&str; 3] = ["example.org", "kanárek", PASSWORD];
/// Of a mail server that says nothing.
const IMPATIENT: Duration = Duration::from_secs(2);

/// A mix, an exit and a gateway, each a process of its own.
struct House {
    folder: TempDir,
    smtp: SocketAddr,
    /// The configuration of the exit, but for its mail server.
    exit_config: String,
    exit: Program,
    others: [Program; 2],
}

impl House {
    /// The exit hands mail to this server.
    fn start(server: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports(5);
        let [dir, alpha, gamma, smtp, pop3] = ports[..] else { panic!("five ports") };
        // The first process is directory and mix. Its own key is known only once it has been up.
        let mut first = run(folder.path(), "first", &directory(dir));
        let net = network(dir, &directory_key(&mut first));
        first.stop();
        let first = run(folder.path(), "first", &format!("{net}{}{}", directory(dir), node("Alpha", alpha, None)));
        let exit_config = format!("{net}{}", node("Gamma", gamma, None));
        let mut exit = run(folder.path(), "gamma", &format!("{exit_config}{}", exit(server)));
        exit.until("the node that may be asked", |exit| exit.stderr().contains("the node is up").then_some(()));
        let mut door = run(folder.path(), "gateway", &format!("{net}{}", gateway(smtp, pop3, "Alpha,Gamma")));
        door.until("the SMTP door", |_| login(smtp));
        Self { folder, smtp, exit_config, exit, others: [first, door] }
    }

    /// From now on the exit hands mail to this one.
    fn delivers_to(&self, server: &str) {
        let file = self.folder.path().join("gamma.toml");
        fs::write(&file, format!("{}{}", self.exit_config, exit(server))).unwrap();
        let mut command = command();
        let output = command.current_dir(self.folder.path()).args(["node", "reload", "--config"]).arg(&file).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.starts_with("changed: node.smtp.server.") && !said.contains("restart"), "{said}");
    }

    /// Hands in a mail to this recipient.
    fn sends(&self, to: &str) {
        let mail = plain(to, "kanárek", "Ještě zpívá.\n.\nA dál.\n");
        // Until the gateway knows the exit, it says so.
        until("a mail that is taken", PATIENCE, || {
            let reply = login(self.smtp)?.mail("<me@example.net>", &[to], &mail);
            assert!([250, 451, 550].contains(&reply.code), "{reply}");
            (reply.code == 250).then_some(())
        });
    }

    /// How often the exit has logged this.
    fn said(&self, words: &str) -> usize {
        self.exit.stderr().matches(words).count()
    }

    /// Until the exit logs this once more than it had `before`.
    fn says(&mut self, words: &str, before: usize) {
        self.exit.until(words, |exit| (exit.stderr().matches(words).count() > before).then_some(()));
    }

    /// Ends all of it, and looks at what is left.
    fn ends(mut self) {
        for program in self.others.iter_mut().chain([&mut self.exit]) {
            program.stop();
            program.said_nothing_of(&SECRETS);
            program.logged_nothing_that_links();
        }
        let db = Db::open(&self.folder.path().join("Gamma/node.db"), &NODE_SCHEMAS).unwrap();
        assert_eq!(db.read(queue::count).unwrap(), 0, "all was delivered or refused");
    }
}

/// A way to hand mail over.
struct Mode {
    /// The local part of the recipient.
    name: &'static str,
    door: Door,
    /// Lines of `[node.smtp.server]`.
    settings: String,
    /// As the server names it in its Received line (RFC 3848).
    with: &'static str,
}

/// Each with a good end.
fn modes(peer: &Peer) -> Vec<Mode> {
    let trusted = format!("ca_file = \"{}\"\n", peer.authority().display());
    let required = format!("tls = \"required\"\n{trusted}");
    let login = format!("{required}user = \"{USER}\"\npassword = \"{PASSWORD}\"\n");
    let modes = [
        ("none", Door::Plain, "tls = \"none\"\n".into(), "esmtp"),
        ("not-offered", Door::Plain, "tls = \"opportunistic\"\n".into(), "esmtp"),
        ("opportunistic", Door::StartTls, "tls = \"opportunistic\"\n".into(), "esmtps"),
        ("required", Door::WantsTls, required.clone(), "esmtps"),
        ("implicit", Door::Implicit, format!("tls = \"implicit\"\n{trusted}"), "esmtps"),
        ("plain-login", Door::LoginPlain, login.clone(), "esmtpsa"),
        ("login-login", Door::LoginLogin, login, "esmtpsa"),
    ];
    let modes = modes.into_iter().map(|(name, door, settings, with)| Mode { name, door, settings, with });
    modes.filter(|mode| peer.kind.has(mode.door)).collect()
}

fn address(name: &str) -> String {
    format!("{name}@{DOMAIN}")
}

/// The lines of `[node.smtp.server]` for a door.
fn server(peer: &Peer, door: Door, settings: &str) -> String {
    let address = peer.address(door);
    format!("host = \"{}\"\nport = {}\n{settings}", address.ip(), address.port())
}

/// The headers of a mail.
fn head(mail: &[u8]) -> String {
    let text = String::from_utf8_lossy(mail).replace("\r\n", "\n");
    text.split("\n\n").next().unwrap().to_owned()
}

/// The mails for this recipient.
fn mails_to(peer: &Peer, to: &str) -> Vec<String> {
    let line = format!("To: {to}");
    let heads = peer.mails().iter().map(|mail| head(mail)).collect::<Vec<_>>();
    heads.into_iter().filter(|head| head.lines().any(|it| it == line)).collect()
}

/// Waits for the mail, and shows what the server says of it.
fn arrives(peer: &Peer, to: &str) -> String {
    let head = until(&format!("the mail to {to}"), PATIENCE, || mails_to(peer, to).pop());
    peer.logs_delivery(to);
    head
}

/// By what protocol a mail came, as its topmost Received line has it.
fn came_with(head: &str) -> String {
    let (_, received) = head.split_once("Received: ").unwrap_or_else(|| panic!("no Received line: {head}"));
    // There may be other things before that it came with, such as a cipher.
    let protocol = received.split_whitespace().map(str::to_ascii_lowercase).find(|word| word.starts_with("esmtp"));
    protocol.unwrap_or_default()
}

fn all_modes(peer: &Peer, house: &House, modes: &[Mode]) {
    for mode in modes {
        house.delivers_to(&server(peer, mode.door, &mode.settings));
        let to = address(mode.name);
        house.sends(&to);
        assert_eq!(came_with(&arrives(peer, &to)), mode.with, "{}", mode.name);
    }
}

/// What the exit and its server do not agree on.
struct Disagreement {
    /// The local part of the recipient.
    name: &'static str,
    door: Door,
    /// Lines of `[node.smtp.server]` that are wrong there.
    wrong: String,
    /// What the operator is told to mend.
    key: &'static str,
    /// The door and the lines that are right.
    right: (Door, String),
}

fn disagreements(peer: &Peer) -> Vec<Disagreement> {
    let trusted = format!("tls = \"required\"\nca_file = \"{}\"\n", peer.authority().display());
    let login = |password: &str| format!("{trusted}user = \"{USER}\"\npassword = \"{password}\"\n");
    let (tls, plain) = ("node.smtp.server.tls", String::from("tls = \"none\"\n"));
    let of = |name, door, wrong, key, right| Disagreement { name, door, wrong, key, right };
    let untrusted = String::from("tls = \"required\"\n");
    let (wrong, right) = (login("barley"), (Door::LoginPlain, login(PASSWORD)));
    vec![
        of("no-tls", Door::Plain, trusted.clone(), tls, (Door::Plain, plain.clone())),
        of("closed", Door::Closed, plain.clone(), "node.smtp.mail.return_address", (Door::Plain, plain)),
        of("certificate", Door::WantsTls, untrusted, tls, (Door::WantsTls, trusted.clone())),
        of("password", Door::LoginPlain, wrong, "node.smtp.server.password", right),
    ]
}

/// All mail waits, the operator hears of it, and none is lost.
fn what_must_be_mended(peer: &Peer, house: &mut House, disagreements: &[Disagreement]) {
    for Disagreement { name, door, wrong, key, right: (right_door, right) } in disagreements {
        let before = house.said(key);
        house.delivers_to(&server(peer, *door, wrong));
        house.sends(&address(name));
        house.says(key, before);
        assert!(mails_to(peer, &address(name)).is_empty(), "{name}");
        house.delivers_to(&server(peer, *right_door, right));
        arrives(peer, &address(name));
    }
}

fn refusals(peer: &Peer, house: &House) {
    house.delivers_to(&server(peer, Door::Plain, "tls = \"opportunistic\"\n"));
    house.sends(GREY);
    until("a refusal for now", PATIENCE, || (peer.refusals("451", GREY) > 0).then_some(()));
    house.sends(REFUSED);
    until("a refusal", PATIENCE, || (peer.refusals("550", REFUSED) > 0).then_some(()));
    // Neither holds up others.
    house.sends(&address("another"));
    arrives(peer, &address("another"));
    assert!(mails_to(peer, GREY).is_empty());
    peer.lets_grey_in();
    arrives(peer, GREY);
}

fn silence(peer: &Peer, house: &mut House) {
    const AWAY: &str = "the mail server is away";
    let timeout = format!("timeout = \"{}s\"\n", IMPATIENT.as_secs());
    house.delivers_to(&server(peer, Door::Plain, &timeout));
    let before = house.said(AWAY);
    peer.hangs();
    house.sends(&address("patient"));
    house.says(AWAY, before);
    peer.goes_on();
    arrives(peer, &address("patient"));
}

fn story(kind: Kind) {
    if !kind.is_here() {
        return;
    }
    let peer = Peer::start(kind);
    let mut house = House::start(&server(&peer, Door::Plain, "tls = \"opportunistic\"\n"));
    let (modes, disagreements) = (modes(&peer), disagreements(&peer));
    all_modes(&peer, &house, &modes);
    what_must_be_mended(&peer, &mut house, &disagreements);
    refusals(&peer, &house);
    silence(&peer, &mut house);
    house.ends();
    // In the time of all that, whoever tries again would have.
    assert_eq!(peer.refusals("550", REFUSED), 1, "what was refused is not tried again: {}", peer.log());
    let names = modes.iter().map(|mode| mode.name).chain(disagreements.iter().map(|it| it.name));
    let names: Vec<&str> = names.chain(["grey", "another", "patient"]).collect();
    for name in &names {
        assert_eq!(mails_to(&peer, &address(name)).len(), 1, "{name}: each once");
    }
    assert_eq!(peer.mails().len(), names.len(), "and no other");
    println!("--- what {kind:?} logged, before the hostile mails:\n{}", peer.log());
    smuggling::each_is_one_mail_for(&peer);
}

#[test]
fn postfix_takes_mail_in_each_mode_and_loses_none_when_it_misbehaves() {
    story(Kind::Postfix);
}

#[test]
fn exim_takes_mail_in_each_mode_and_loses_none_when_it_misbehaves() {
    story(Kind::Exim);
}

#[test]
fn opensmtpd_takes_mail_in_each_mode_and_loses_none_when_it_misbehaves() {
    story(Kind::OpenSmtpd);
}
