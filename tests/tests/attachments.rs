//! A mail with attachments through an exit that states that it delivers them, and through one that does not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mixgate_tests::letter::{Letter, letter};
use mixgate_tests::mails::{dice, noise};
use mixgate_tests::program::{Program, free_ports};
use mixgate_tests::roles::{directory, directory_key, gateway, login, network, node, run};
use mixgate_tests::sink::Sink;
use mixgate_tests::{PATIENCE, until};

/// What is in every place of the mail that must not travel.
const CANARY: &str = "kan4rek";
const TEXT: &str = "Žluťoučký kůň přiletěl.\n漢字 = 🦆\n";
const TABLE: &str = "jméno;kůň\r\n";

/// A mail whose every name, header and boundary tells of its author.
fn mail(to: &str, picture: &[u8]) -> Vec<u8> {
    let lines = |octets: &[u8]| {
        let digits = STANDARD.encode(octets);
        let lines: Vec<_> =
            digits.as_bytes().chunks(60).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
        lines.join("\n")
    };
    let (picture, table) = (lines(picture), lines(TABLE.as_bytes()));
    format!(
        "Date: Tue, 24 Nov 2026 02:03:04 +0100\nMessage-ID: <{CANARY}@laptop.home>\nUser-Agent: {CANARY}\n\
         From: Žofie <{CANARY}@example.net>\nTo: {to}\nSubject: =?utf-8?q?p=C5=99=C3=ADloha?=\nMIME-Version: 1.0\n\
         Content-Type: multipart/mixed; boundary=\"=_{CANARY}\"; x-{CANARY}=1\n\n{CANARY} preamble\n--=_{CANARY}\n\
         Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\nContent-Description: {CANARY}\n\n\
         {TEXT}--=_{CANARY}\nContent-Type: IMAGE/jpeg; name=\"{CANARY}.jpg\"\nContent-ID: <{CANARY}@laptop.home>\n\
         Content-Transfer-Encoding: base64\nX-Attachment-Id: {CANARY}\nContent-Location: file:///home/{CANARY}\n\
         Content-Disposition: attachment; filename=\"{CANARY}.jpg\";\n creation-date=\"Mon, 23 Nov 2026 11:12:13 +0100\"\n\
         \n{picture}\n--=_{CANARY}\nContent-Type: text/csv; charset=utf-8\n\
         Content-Disposition: attachment; filename*=utf-8''{CANARY}.csv\nContent-Transfer-Encoding: base64\n\n{table}\n\
         --=_{CANARY}\nContent-Type: text/vcard; name={CANARY}.vcf\nContent-Disposition: attachment\n\n\
         BEGIN:VCARD\nFN:{CANARY}\nEND:VCARD\n--=_{CANARY}--\n{CANARY} epilogue\n"
    )
    .replace('\n', "\r\n")
    .into_bytes()
}

/// Hands the mail in at that gateway as soon as it knows its exit, and waits for it outside.
fn sent(smtp: SocketAddr, to: &str, mail: &[u8], sink: &Sink) -> (Vec<u8>, Letter) {
    let submit = || {
        let reply = login(smtp)?.mail("<me@example.net>", &[to], mail);
        assert!([250, 451, 550].contains(&reply.code), "{reply}");
        (reply.code == 250).then_some(())
    };
    until("a mail that is taken", PATIENCE, submit);
    until("the mail in the world outside", PATIENCE, || {
        sink.mails()
            .into_iter()
            .map(|octets| (letter(&octets), octets))
            .find_map(|(letter, octets)| (letter.to == to).then_some((octets, letter)))
    })
}

/// A gateway of its own folder, by that path.
fn gateway_in(folder: &Path, name: &str, net: &str, ports: (SocketAddr, SocketAddr), path: &str) -> Program {
    let folder = folder.join(name);
    fs::create_dir(&folder).unwrap();
    run(&folder, name, &format!("{net}{}", gateway(ports.0, ports.1, path)))
}

#[test]
fn attachments_arrive_intact_where_the_exit_says_so_and_elsewhere_the_text_says_that_they_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start();
    let ports = free_ports(8);
    let [dir, alpha, beta, gamma, smtp, pop3, other_smtp, other_pop3] = ports[..] else { panic!("eight ports") };
    let mut first = run(folder.path(), "first", &directory(dir));
    let key = directory_key(&mut first);
    first.stop();
    let net = network(dir, &key);
    let exit = |nickname, address| node(nickname, address, Some(sink.address));
    let with_mime = exit("Beta", beta).replace("[node.smtp]\n", "[node.smtp]\nmime_max_size = 1048576\n");
    let mut programs = vec![
        run(folder.path(), "first", &format!("{net}{}{}", directory(dir), node("Alpha", alpha, None))),
        run(folder.path(), "beta", &format!("{net}{with_mime}")),
        run(folder.path(), "gamma", &format!("{net}{}", exit("Gamma", gamma))),
        gateway_in(folder.path(), "one", &net, (smtp, pop3), "Alpha,Beta"),
        gateway_in(folder.path(), "other", &net, (other_smtp, other_pop3), "Alpha,Gamma"),
    ];
    let descriptor =
        until("the descriptor", PATIENCE, || fs::read_to_string(folder.path().join("Beta/descriptor")).ok());
    assert!(
        descriptor.contains("[Delivery/SMTP]\n") && descriptor.contains("\nMIME-Maximum-Size: 1024\n"),
        "{descriptor}"
    );
    // More than one packet.
    let picture = noise(60_000, &mut dice("attachments"));

    let (octets, whole) = sent(smtp, "bob@example.org", &mail("bob@example.org", &picture), &sink);
    assert_eq!(whole.body(), format!("{TEXT}\n[1 attachment was left out.]\n"));
    assert_eq!((whole.subject.as_str(), whole.from.as_str()), ("příloha", "\"[Anon] Žofie\" <nobody@exit.example>"));
    assert_eq!(whole.content_type, ("multipart/mixed".into(), None));
    let [photo, table] = &whole.files[..] else { panic!("two files: {:?}", whole.files) };
    assert!(photo.base64 == STANDARD.encode(&picture), "not what went in: {} digits", photo.base64.len());
    assert_eq!((photo.name.as_str(), photo.content_type.0.as_str()), ("attachment-1.jpg", "image/jpeg"));
    assert_eq!(table.base64, STANDARD.encode(TABLE));
    assert_eq!(
        (table.name.as_str(), &table.content_type),
        ("attachment-2.csv", &("text/csv".into(), Some("utf-8".into())))
    );
    for file in &whole.files {
        assert_eq!(file.headers, ["Content-Type", "Content-Transfer-Encoding", "Content-Disposition"]);
    }

    let (other, text) = sent(other_smtp, "eve@example.org", &mail("eve@example.org", &picture), &sink);
    assert_eq!(text.body(), format!("{TEXT}\n[3 attachments were left out.]\n"));
    assert_eq!((text.subject.as_str(), &text.content_type), ("příloha", &("text/plain".into(), Some("utf-8".into()))));
    assert_eq!(text.files, []);

    for octets in [octets, other] {
        let mail = String::from_utf8(octets).unwrap();
        for tells in [CANARY, "creation-date", "+0100", "User-Agent", "Content-ID", "Content-Description", "laptop"] {
            assert!(!mail.contains(tells), "{tells} has arrived: {mail}");
        }
    }
    for program in &mut programs {
        program.stop();
        program.said_nothing_of(&[CANARY, "example.org", "attachment-"]);
        program.logged_nothing_that_links();
    }
}
