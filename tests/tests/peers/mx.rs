//! The same servers as those of the recipients' domains, which the exit finds by the name service.

use std::net::Ipv4Addr;

use mixgate_tests::names::{Names, Record, Zone};
use mixgate_tests::peers::{DOMAIN, Door, HOST, Kind, Peer, REFUSED};
use mixgate_tests::roles::exit_by_mx;
use mixgate_tests::sink::Sink;
use mixgate_tests::{PATIENCE, until};

use super::house::House;
use super::{AWAY, DROPPED, address, arrives, came_with, head, mails_to, refusals};

/// A domain that names nobody for its mail, and has an address.
const BARE: &str = "bare.example.org";
/// A domain whose preferred server is not there.
const BACKUP: &str = "backup.example.org";
/// A domain with more servers than a message by UDP has room for.
const MANY: &str = "many.example.org";
/// A domain that takes no mail (RFC 7505).
const NONE: &str = "none.example.org";
/// A domain that is not there.
const GONE: &str = "gone.example.org";
/// The domain of somebody else, with a server of its own.
const ELSEWHERE: &str = "example.com";

/// The address of the server that is tested.
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Of the one of [`ELSEWHERE`].
const THERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Where nobody listens.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

fn zone() -> Zone {
    let address = |name: &str, address| (name.to_owned(), Record::Address(address));
    let mx = |name: &str, preference, host| (name.to_owned(), Record::Mx(preference, host));
    let mut zone = vec![
        address(HOST, HERE),
        address("down.example.org", NOWHERE),
        address("mx.example.com", THERE),
        mx(DOMAIN, 10, HOST),
        address(BARE, HERE),
        // In the order that is wrong.
        mx(BACKUP, 20, HOST),
        mx(BACKUP, 10, "down.example.org"),
        mx(NONE, 0, "."),
        mx(ELSEWHERE, 10, "mx.example.com"),
        mx(MANY, 10, HOST),
    ];
    zone.extend((11..40).map(|preference| mx(MANY, preference, "down.example.org")));
    zone
}

/// The exit finds servers there and calls them at the port of that door.
fn by_mx(names: &Names, peer: &Peer, door: Door) -> String {
    let port = peer.address(door).port();
    exit_by_mx(&format!(
        "name_servers = [\"{}\"]\nport = {port}\ntimeout = \"4s\"\ninside = [\"{HERE}\", \"{THERE}\", \"{NOWHERE}\"]\n",
        names.address
    ))
}

/// Each domain's server is found as RFC 5321 5.1 says, and a domain without one takes no mail.
fn servers_are_found(peer: &Peer, house: &mut House, names: &Names) -> Vec<String> {
    let found = [address("plain"), format!("bob@{BARE}"), format!("bob@{BACKUP}"), format!("bob@{MANY}")];
    for to in &found {
        house.sends(to);
        assert_eq!(came_with(&arrives(peer, to)), "esmtp", "{to}");
    }
    assert!(names.asked_by_tcp() > 0, "{MANY} has no room in a message by UDP");
    for domain in [NONE, GONE] {
        let before = house.said(DROPPED);
        house.sends(&format!("bob@{domain}"));
        house.says(DROPPED, before);
    }
    found.into()
}

/// TLS is spoken with a server that offers it and with one that wants it, though nobody vouches for either.
fn tls_is_spoken_where_it_is_offered(peer: &Peer, house: &House, names: &Names) -> Vec<String> {
    let doors = [(Door::StartTls, address("offered")), (Door::WantsTls, address("wanted"))];
    for (door, to) in &doors {
        house.delivers_by(&by_mx(names, peer, *door));
        house.sends(to);
        assert_eq!(came_with(&arrives(peer, to)), "esmtps", "{to}");
    }
    doors.map(|(_, to)| to).into()
}

/// A message for several, in two domains: each has a mail that names no other, whatever becomes of the others'.
fn several_have_a_mail_each(peer: &Peer, house: &mut House) -> Vec<String> {
    let all = [address("ann"), format!("bill@{BARE}"), address("eve")];
    let [ann, bill, eve] = &all;
    house.finds_after_a_restart(&[ann, bill, eve, REFUSED]);
    for to in &all {
        let head = arrives(peer, to);
        let named: Vec<_> = all.iter().filter(|it| head.contains(it.as_str())).collect();
        assert_eq!(named, [to], "{head}");
    }
    house.says(DROPPED, 0);
    all.into()
}

/// While one server is silent mail for another domain arrives, and its own waits.
fn silence(peer: &Peer, house: &mut House, elsewhere: &Sink) -> Vec<String> {
    let waits = ["patient", "meek"].map(address);
    let before = house.said(AWAY);
    peer.hangs();
    for to in &waits {
        house.sends(to);
    }
    house.sends(&format!("bob@{ELSEWHERE}"));
    until("mail for another domain", PATIENCE, || (elsewhere.mails().len() == 1).then_some(()));
    house.says(AWAY, before);
    assert!(waits.iter().all(|to| mails_to(peer, to).is_empty()), "the server hangs");
    peer.goes_on();
    for to in &waits {
        arrives(peer, to);
    }
    waits.into()
}

fn story(kind: Kind) {
    if !kind.is_here() {
        return;
    }
    let (peer, names) = (Peer::start(kind), Names::start(zone()));
    let plain = by_mx(&names, &peer, Door::Plain);
    let elsewhere = Sink::start_at((THERE, peer.address(Door::Plain).port()).into());
    let mut house = House::start(&plain);
    let mut all = servers_are_found(&peer, &mut house, &names);
    all.extend(tls_is_spoken_where_it_is_offered(&peer, &house, &names));
    house.delivers_by(&plain);
    refusals(&peer, &mut house);
    all.extend(["grey", "another"].map(address));
    all.extend(silence(&peer, &mut house, &elsewhere));
    all.extend(several_have_a_mail_each(&peer, &mut house));
    house.ends();
    // Once alone, and once among several.
    assert_eq!(peer.refusals("550", REFUSED), 2, "what was refused is not tried again: {}", peer.log());
    for to in &all {
        assert_eq!(mails_to(&peer, to).len(), 1, "{to}: each once");
    }
    // Nor does the proof of the way: what Exim and Postfix say of a mail that breaks off.
    for words in ["lost while reading message data", "lost connection after DATA"] {
        assert!(!peer.log().contains(words), "no mail breaks off: {}", peer.log());
    }
    assert_eq!((peer.mails().len(), elsewhere.mails().len()), (all.len(), 1), "and no other");
    let to = head(&elsewhere.mails()[0]).lines().find(|line| line.starts_with("To: ")).map(str::to_owned);
    assert_eq!(to, Some(format!("To: bob@{ELSEWHERE}")));
    println!("--- what {kind:?} logged as the server of a domain:\n{}", peer.log());
}

#[test]
fn postfix_as_server_of_a_domain_is_found_and_takes_mail() {
    story(Kind::Postfix);
}

#[test]
fn exim_as_server_of_a_domain_is_found_and_takes_mail() {
    story(Kind::Exim);
}

#[test]
fn opensmtpd_as_server_of_a_domain_is_found_and_takes_mail() {
    story(Kind::OpenSmtpd);
}
