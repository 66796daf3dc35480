//! A thousand mails through five mixes, each a process of its own, while one is killed and another's key has run out.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mixgate_tests::letter::letter;
use mixgate_tests::mails::plain;
use mixgate_tests::program::{Program, command, free_ports};
use mixgate_tests::roles::{directory, directory_key, gateway, login, network, node, run};
use mixgate_tests::sink::Sink;
use mixgate_tests::{PATIENCE, until};

/// Mails of the burst.
const MAILS: usize = 1000;
/// Mails in one connection of the client.
const TOGETHER: usize = 100;
/// Until all have arrived. Each passes five pools, and some wait for mixes that are away.
const BOUND: Duration = Duration::from_secs(300);
/// No further copy comes after so long: ten mix intervals.
const QUIET: Duration = Duration::from_secs(5);

/// Hands in the mails `from..to`, one connection for each hundred.
fn submit(smtp: std::net::SocketAddr, from: usize, to: usize) {
    for first in (from..to).step_by(TOGETHER) {
        let mut client = login(smtp).unwrap();
        for i in first..to.min(first + TOGETHER) {
            let mail = plain("bob@example.org", &format!("mail {i}"), &format!("Number {i}.\n"));
            let reply = client.mail("<me@example.net>", &["bob@example.org"], &mail);
            assert_eq!(reply.code, 250, "{i}: {reply}");
        }
    }
}

/// How often each subject has arrived.
fn tally(sink: &Sink) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for mail in sink.mails() {
        *tally.entry(subject(&mail)).or_default() += 1;
    }
    tally
}

/// Without Python, which would be asked a thousand times.
fn subject(mail: &[u8]) -> String {
    let text = String::from_utf8_lossy(mail);
    text.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap().to_owned()
}

/// The packet keys of a mix, as `node keys` lists them.
fn keys(folder: &Path, name: &str) -> String {
    let mut keys = command();
    keys.current_dir(folder).args(["node", "keys", "--config"]).arg(folder.join(format!("{name}.toml")));
    String::from_utf8(keys.output().unwrap().stdout).unwrap()
}

/// Dates the packet keys of a mix back, so that the last day of the one in use was yesterday: it opens packets for one
/// more day, and a new one is made. What was made ahead is taken away.
fn run_out(home: &Path) {
    let folder = home.join("keys");
    let today = Command::new("date").args(["-u", "+%F"]).output().unwrap();
    let today = String::from_utf8(today.stdout).unwrap().trim().to_owned();
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("packet-"));
    files.sort();
    let used = files.iter().find(|path| path.extension().unwrap() == "key").unwrap().clone();
    fs::rename(&used, folder.join(format!("packet-2020-01-01-{today}.key"))).unwrap();
    files.iter().filter(|path| **path != used).for_each(|path| fs::remove_file(path).unwrap());
}

#[test]
fn thousand_mails_arrive_once_though_a_mix_is_killed_and_a_key_runs_out() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start();
    let ports = free_ports(8);
    let [dir, smtp, pop3, mixes @ ..] = &ports[..] else { panic!("eight ports") };
    let mut server = run(folder.path(), "directory", &directory(*dir));
    let net = network(*dir, &directory_key(&mut server));
    let names = ["Alpha", "Beta", "Gamma", "Delta", "Epsilon"];
    let files: Vec<(&str, String)> = names
        .into_iter()
        .zip(mixes)
        .map(|(name, port)| {
            let exit = ["Delta", "Epsilon"].contains(&name).then_some(sink.address);
            (name, format!("{net}{}", node(name, *port, exit)))
        })
        .collect();
    let start = |i: usize| run(folder.path(), files[i].0, &files[i].1);
    let mut nodes: Vec<Program> = (0..files.len()).map(start).collect();
    let mut door = run(folder.path(), "gateway", &format!("{net}{}", gateway(*smtp, *pop3, "~5")));
    door.until("the SMTP door", |_| login(*smtp));
    let first = plain("bob@example.org", "first", "Is there a way?\n");
    until("a mail that is taken", PATIENCE, || {
        let reply = login(*smtp)?.mail("<me@example.net>", &["bob@example.org"], &first);
        (reply.code == 250).then_some(())
    });
    until("the first mail", PATIENCE, || (sink.mails().len() == 1).then_some(()));
    assert_eq!(letter(&sink.mails()[0]).body(), "Is there a way?\n");

    let began = Instant::now();
    submit(*smtp, 0, MAILS / 2);
    println!("half of them are in after {:?}, {} have arrived", began.elapsed(), sink.mails().len() - 1);
    // Beta is killed in the middle of it all.
    nodes[1].kill();
    // Gamma stops, and when it is back the days of its key are over.
    nodes[2].stop();
    let before = keys(folder.path(), "Gamma");
    run_out(&folder.path().join("Gamma"));
    submit(*smtp, MAILS / 2, MAILS);
    println!("all are in after {:?}, {} have arrived", began.elapsed(), sink.mails().len() - 1);
    nodes[1] = start(1);
    nodes[2] = start(2);
    until("a new key of Gamma", PATIENCE, || (keys(folder.path(), "Gamma") != before).then_some(()));

    until("all mails", BOUND, || {
        let arrived = sink.mails().len() - 1;
        (arrived >= MAILS).then_some(())
    });
    let (mut arrived, mut since) = (sink.mails().len(), Instant::now());
    until("an end of the deliveries", BOUND, || {
        if sink.mails().len() != arrived {
            (arrived, since) = (sink.mails().len(), Instant::now());
        }
        (since.elapsed() >= QUIET).then_some(())
    });
    println!("all have arrived after {:?}", began.elapsed() - QUIET);
    println!("Gamma's keys before:\n{before}and after:\n{}", keys(folder.path(), "Gamma"));
    let tally = tally(&sink);
    assert_eq!(tally.len(), MAILS + 1);
    let again: Vec<_> = tally.iter().filter(|(_, count)| **count != 1).collect();
    assert!(again.is_empty(), "not once: {again:?}");
    for program in nodes.iter_mut().chain([&mut door, &mut server]) {
        program.stop();
        program.said_nothing_of(&["bob@example.org", "mail 7", "Number 7", "open sesame"]);
        program.logged_nothing_that_links();
    }
}
