//! Mail servers that people run, as smart hosts of an exit and (`mx`) as servers of a domain: the whole way from a mail client
//! through a network of single processes into a mailbox of theirs, in each mode, and however badly they behave.
//!
//! Debian lets one of them be installed at a time: `tests/peers.sh` has all three, one after the other. What each of them
//! logged is printed (`--nocapture`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod house;
mod mx;
mod smuggling;

use std::time::Duration;

use house::House;
use mixgate_tests::peers::{DOMAIN, Door, GREY, Kind, PASSWORD, Peer, REFUSED, USER};
use mixgate_tests::roles::exit;
use mixgate_tests::{PATIENCE, until};

/// Said of a server that does not answer.
const AWAY: &str = "the mail server is away";
/// Said of a mail that nobody takes.
const DROPPED: &str = "could not be delivered and was dropped";
/// Of a mail server that says nothing.
const IMPATIENT: Duration = Duration::from_secs(2);

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

/// What has the exit hand mail to a door, with these lines of `[node.smtp.server]`.
fn at(peer: &Peer, door: Door, settings: &str) -> String {
    let address = peer.address(door);
    exit(&format!("host = \"{}\"\nport = {}\n{settings}", address.ip(), address.port()))
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
        house.delivers_by(&at(peer, mode.door, &mode.settings));
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
        house.delivers_by(&at(peer, *door, wrong));
        house.sends(&address(name));
        house.says(key, before);
        assert!(mails_to(peer, &address(name)).is_empty(), "{name}");
        house.delivers_by(&at(peer, *right_door, right));
        arrives(peer, &address(name));
    }
}

/// What is refused for now comes later, what is refused for good is dropped, and neither holds up others.
fn refusals(peer: &Peer, house: &mut House) {
    let before = house.said(DROPPED);
    house.sends(GREY);
    until("a refusal for now", PATIENCE, || (peer.refusals("451", GREY) > 0).then_some(()));
    house.sends(REFUSED);
    until("a refusal", PATIENCE, || (peer.refusals("550", REFUSED) > 0).then_some(()));
    house.says(DROPPED, before);
    house.sends(&address("another"));
    arrives(peer, &address("another"));
    assert!(mails_to(peer, GREY).is_empty());
    peer.lets_grey_in();
    arrives(peer, GREY);
}

fn silence(peer: &Peer, house: &mut House) {
    let timeout = format!("timeout = \"{}s\"\n", IMPATIENT.as_secs());
    house.delivers_by(&at(peer, Door::Plain, &timeout));
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
    let mut house = House::start(&at(&peer, Door::Plain, "tls = \"opportunistic\"\n"));
    let (modes, disagreements) = (modes(&peer), disagreements(&peer));
    all_modes(&peer, &house, &modes);
    what_must_be_mended(&peer, &mut house, &disagreements);
    house.delivers_by(&at(&peer, Door::Plain, "tls = \"opportunistic\"\n"));
    refusals(&peer, &mut house);
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
