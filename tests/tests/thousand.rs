//! A thousand mails through five mixes, each a process of its own, while one is killed, and another replaces its key without
//! a restart. They all live at an invented date shortly before midnight, when keys begin and end.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use mix::crypto::Digest;
use mix::directory::date::format_date;
use mix::node::describe::{KeyReport, report};
use mix::store::replay::ReplayLog;
use mix::store::{Db, NODE_SCHEMAS};
use mixgate_tests::clock::Clock;
use mixgate_tests::letter::letter;
use mixgate_tests::mails::plain;
use mixgate_tests::program::{Program, command, free_ports};
use mixgate_tests::roles::{directory, directory_key, gateway, login, network, node, run_by};
use mixgate_tests::sink::Sink;
use mixgate_tests::{PATIENCE, until};

/// Mails of the burst.
const MAILS: usize = 1000;
/// Mails in one connection of the client.
const TOGETHER: usize = 100;
/// Mails each second until midnight.
const FLOW: usize = 7;
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
            // At midnight the directory of the new day is fetched, and mail clients are told to come again.
            until("a mail that is taken", PATIENCE, || {
                let reply = client.mail("<me@example.net>", &["bob@example.org"], &mail);
                assert!([250, 451].contains(&reply.code), "{i}: {reply}");
                if reply.code == 451 {
                    // What it had begun ends with the connection.
                    client = login(smtp).unwrap();
                }
                (reply.code == 250).then_some(())
            });
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

/// Midnight of the day on which the key of one mix is replaced: 1 March 2031. Its keys live for six days, and the next
/// begins every three. The first of them was made nine days before. It is erased at this midnight, six days of life, one of
/// overlap and two of margin later, which a clock must go evenly for a day to be spared; the fourth begins in the same second.
const MIDNIGHT: Duration = Duration::from_secs(1_930_089_600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const LIFETIME: &str = "[node.keys]\nlifetime = \"6 days\"\n";
/// How long before midnight the burst begins. A node looks at the clock once a minute, and then knows the second.
const BEFORE_MIDNIGHT: Duration = Duration::from_secs(65);

fn midnight() -> SystemTime {
    SystemTime::UNIX_EPOCH + MIDNIGHT
}

/// A command on the keys of a mix, and what it prints.
fn node_command(clock: &Clock, folder: &Path, command_and_name: [&str; 2]) -> String {
    let [what, name] = command_and_name;
    let mut command = command();
    clock.shown_to(command.current_dir(folder).args(["node", what, "--config"]).arg(format!("{name}.toml")));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The days of the packet keys that a mix has, and how many packets it has opened with each. It must not run.
fn opened(home: &Path) -> Vec<(String, u64)> {
    let db = Db::open(&home.join("node.db"), &NODE_SCHEMAS).unwrap();
    let log = ReplayLog::open(&db).unwrap();
    let count = |report: KeyReport| {
        let key = Digest(report.descriptor.unwrap().packet_key().key_id().0);
        let days = [report.valid_after, report.valid_until].map(|day| format_date(day).unwrap());
        (days.join(" to "), log.count(&key).unwrap())
    };
    let opened: Vec<_> = report(home).unwrap().into_iter().map(count).collect();
    let known = opened.iter().filter(|(_, count)| *count > 0).count();
    assert_eq!(log.packet_keys().unwrap().len(), known, "packets of a key that is gone are remembered");
    opened
}

#[test]
fn thousand_mails_arrive_once_though_a_mix_is_killed_and_another_replaces_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start();
    let ports = free_ports(8);
    let [dir, smtp, pop3, mixes @ ..] = &ports[..] else { panic!("eight ports") };
    let what = "a key that is replaced while its node runs; the mails go without it";
    let clock = Clock::set_to(midnight() - 9 * DAY + DAY / 2, folder.path(), what);
    if let Some(clock) = &clock {
        // The keys of one mix are older than the network.
        fs::write(folder.path().join("Gamma.toml"), node("Gamma", mixes[2], None) + LIFETIME).unwrap();
        node_command(clock, folder.path(), ["init", "Gamma"]);
        clock.set(midnight() - DAY / 2);
    }
    let start_role = |name: &str, config: &str| run_by(clock.as_ref(), folder.path(), name, config);
    let mut server = start_role("directory", &directory(*dir));
    let net = network(*dir, &directory_key(&mut server));
    let names = ["Alpha", "Beta", "Gamma", "Delta", "Epsilon"];
    let files: Vec<(&str, String)> = names
        .into_iter()
        .zip(mixes)
        .map(|(name, port)| {
            let exit = ["Delta", "Epsilon"].contains(&name).then_some(sink.address);
            let keys = if name == "Gamma" { LIFETIME } else { "" };
            (name, format!("{net}{}{keys}", node(name, *port, exit)))
        })
        .collect();
    let start = |i: usize| start_role(files[i].0, &files[i].1);
    let mut nodes: Vec<Program> = (0..files.len()).map(start).collect();
    let mut door = start_role("gateway", &format!("{net}{}", gateway(*smtp, *pop3, "~5")));
    door.until("the SMTP door", |_| login(*smtp));
    let first = plain("bob@example.org", "first", "Is there a way?\n");
    until("a mail that is taken", PATIENCE, || {
        let reply = login(*smtp)?.mail("<me@example.net>", &["bob@example.org"], &first);
        (reply.code == 250).then_some(())
    });
    until("the first mail", PATIENCE, || (sink.mails().len() == 1).then_some(()));
    assert_eq!(letter(&sink.mails()[0]).body(), "Is there a way?\n");

    let before = clock.as_ref().map(|clock| {
        clock.set(midnight() - BEFORE_MIDNIGHT);
        node_command(clock, folder.path(), ["keys", "Gamma"])
    });
    let began = Instant::now();
    let say = |what: &str| println!("{what} after {:?}, {} have arrived", began.elapsed(), sink.mails().len() - 1);
    let mut sent = MAILS / 4;
    submit(*smtp, 0, sent);
    say("a quarter of them is in");
    // Beta is killed in the middle of it all.
    nodes[1].kill();
    // Gamma goes on, and mails come until its key is another. By then Beta is back, so that packets flow at midnight.
    let mut beta_is_away = true;
    let another = |gamma: &Program| {
        let log = gamma.stderr();
        log.contains("another packet key is in use") && log.contains("a packet key whose time was over is erased")
    };
    while clock.is_some() && !another(&nodes[2]) {
        assert!(began.elapsed() < 2 * BEFORE_MIDNIGHT, "no new key of Gamma: {}", nodes[2].stderr());
        let more = (sent + FLOW).min(3 * MAILS / 4);
        submit(*smtp, sent, more);
        sent = more;
        if beta_is_away && began.elapsed() > BEFORE_MIDNIGHT / 4 {
            nodes[1] = start(1);
            beta_is_away = false;
            say("Beta is back");
        }
        sleep(Duration::from_secs(1));
    }
    if clock.is_some() {
        say(&format!("Gamma has another key, {sent} are in"));
    }
    submit(*smtp, sent, MAILS);
    say("all are in");
    if beta_is_away {
        nodes[1] = start(1);
    }

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
    let tally = tally(&sink);
    assert_eq!(tally.len(), MAILS + 1);
    let again: Vec<_> = tally.iter().filter(|(_, count)| **count != 1).collect();
    assert!(again.is_empty(), "not once: {again:?}");
    let after = clock.as_ref().map(|clock| node_command(clock, folder.path(), ["keys", "Gamma"]));
    for program in nodes.iter_mut().chain([&mut door, &mut server]) {
        program.stop();
        program.said_nothing_of(&["bob@example.org", "mail 7", "Number 7", "open sesame"]);
        program.logged_nothing_that_links();
    }
    if let (Some(before), Some(after)) = (before, after) {
        println!("Gamma's keys before:\n{before}and after:\n{after}");
        let opened = opened(&folder.path().join("Gamma"));
        println!("packets that Gamma has opened with each of them: {opened:#?}");
        let days = |days: &str| opened.iter().find(|(key, _)| key == days).map(|(_, count)| *count);
        assert!(before.contains("2031-02-20") && !after.contains("2031-02-20"), "the first is erased");
        assert_eq!(days("2031-02-20 to 2031-02-26"), None);
        assert!(days("2031-02-26 to 2031-03-04").unwrap() > 0, "packets made before");
        assert!(days("2031-03-01 to 2031-03-07").unwrap() > 0, "packets made after");
    }
}
