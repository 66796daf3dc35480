//! Recipients of an exit ask for no more mail by what stands in the mail that they got, by its link and by a mail; and the
//! operator undoes it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Output, Stdio};

use mixgate_tests::letter::letter;
use mixgate_tests::mails::plain;
use mixgate_tests::program::{command, free_ports};
use mixgate_tests::roles::{directory, directory_key, gateway, login, network, node, run};
use mixgate_tests::sink::Sink;
use mixgate_tests::{PATIENCE, until};

/// Runs `mixgate exit opt-out …` beside the exit, with this on its standard input.
fn opt_out(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = command();
    command.current_dir(folder).args(["exit", "opt-out"]).args(arguments).args(["--config", "beta.toml"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn listed(folder: &Path) -> String {
    let output = opt_out(folder, &["list"], "");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Asks the page as a mail program does whose user has pressed its button (RFC 8058 3.2), and returns the status.
fn press(page: SocketAddr, link: &str) -> String {
    let query = link.strip_prefix("https://exit.example").unwrap();
    let body = "List-Unsubscribe=One-Click";
    let mut stream = TcpStream::connect(page).unwrap();
    let head = format!(
        "POST {query} HTTP/1.1\r\nHost: exit.example\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().to_owned()
}

/// The link and the mailto of a delivered mail.
fn ways_out(mail: &[u8]) -> (String, String) {
    let mail = String::from_utf8(mail.to_vec()).unwrap().replace("\r\n ", " ");
    let header = mail.lines().find_map(|line| line.strip_prefix("List-Unsubscribe: ")).unwrap();
    let mut links = header.split(',').map(|link| link.trim().trim_matches(['<', '>']).to_owned());
    (links.next().unwrap(), links.next().unwrap())
}

/// The mail that a mail program writes for a mailto: its subject, with the octets that stand as `%XX`.
fn written_by(mailto: &str) -> String {
    let (_, subject) = mailto.strip_prefix("mailto:opt-out@exit.example?").unwrap().split_once('=').unwrap();
    let subject = subject.replace("%20", " ").replace("%40", "@");
    assert!(!subject.contains('%'), "{subject}");
    format!("From: somebody@example.org\nTo: opt-out@exit.example\nSubject: {subject}\n\nNo more, please.\n")
}

#[test]
fn recipient_who_presses_the_link_or_answers_gets_no_more_mail_until_the_operator_undoes_it() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start();
    let ports = free_ports(6);
    let [dir, alpha, beta, page, smtp, pop3] = ports[..] else { panic!("six ports") };
    let mut server = run(folder.path(), "directory", &directory(dir));
    let net = network(dir, &directory_key(&mut server));
    let offer = format!(
        "[node.smtp.opt_out]\nmail = \"opt-out@exit.example\"\nurl = \"https://exit.example/opt-out\"\nlisten = \"{page}\"\n"
    );
    let relay = run(folder.path(), "alpha", &format!("{net}{}", node("Alpha", alpha, None)));
    let exit = run(folder.path(), "beta", &format!("{net}{}{offer}", node("Beta", beta, Some(sink.address))));
    let door = run(folder.path(), "gateway", &format!("{net}{}", gateway(smtp, pop3, "Alpha,Beta")));
    let send = |to: &str, subject: &str| {
        let take = || {
            let code = login(smtp)?.mail("<me@example.net>", &[to], &plain(to, subject, "Words.\n")).code;
            (code == 250).then_some(())
        };
        until("a mail that is taken", PATIENCE, take);
    };
    let arrived = |subject: &str| sink.mails().into_iter().find(|mail| letter(mail).subject == subject);
    let arrives = |subject: &str| until(subject, PATIENCE, || arrived(subject));

    send("bob@example.org", "first for bob");
    send("eve@example.org", "first for eve");
    let (link, _) = ways_out(&arrives("first for bob"));
    let (other_link, mailto) = ways_out(&arrives("first for eve"));
    let swapped = link.replace("bob", "eve");
    assert_ne!(swapped, other_link, "the token is of one mailbox");
    assert_eq!(press(page, &swapped), "404");
    assert_eq!(listed(folder.path()), "", "nobody opts another one out");
    assert_eq!(press(page, &link), "200");
    let taken = opt_out(folder.path(), &["mail"], &written_by(&mailto));
    assert!(taken.status.success(), "{taken:?}");
    assert_eq!(listed(folder.path()), "bob@example.org\neve@example.org\n");

    for to in ["bob", "eve", "ann"] {
        send(&format!("{to}@example.org"), &format!("second for {to}"));
    }
    arrives("second for ann");
    // What is dropped is counted at the same place.
    let dropped = || exit.stderr().matches("a message could not be delivered and was dropped").count();
    until("both are dropped", PATIENCE, || (dropped() == 2).then_some(()));
    assert!(arrived("second for bob").is_none() && arrived("second for eve").is_none());

    let undone = opt_out(folder.path(), &["remove", "Bob@example.org"], "");
    assert!(undone.status.success(), "{undone:?}");
    assert_eq!(listed(folder.path()), "eve@example.org\n");
    send("bob@example.org", "third for bob");
    arrives("third for bob");
    assert_eq!((dropped(), sink.mails().len()), (2, 4));
    for mut program in [relay, exit, door, server] {
        program.stop();
        program.said_nothing_of(&["bob", "eve@", "ann@", "for eve"]);
        program.logged_nothing_that_links();
    }
}
