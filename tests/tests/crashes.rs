//! kill -9 and SIGTERM: a mail that was answered 250 is on disk, and goes on from there.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mixgate_tests::demo::{Demo, arrived};
use mixgate_tests::letter::letters;
use mixgate_tests::mails::plain;
use mixgate_tests::{PATIENCE, until};

/// Mails of a burst.
const BURST: usize = 50;
/// The two exits deliver eight mails each at a time: so many may lie between the hand-over and the note of it.
const IN_HAND_OVER: usize = 2 * 8;
/// Until all of a burst has arrived, most of it in batches of a mix that was killed.
const BOUND: Duration = Duration::from_secs(120);
/// No further copy comes after so long: ten mix intervals.
const QUIET: Duration = Duration::from_secs(5);

fn subject(i: usize) -> String {
    format!("burst {i:02}")
}

/// Hands in the mails `from..BURST` over one connection, as a busy client does; `after` sees each that was answered 250
/// and may end the program. Returns how many were.
fn submit(demo: &mut Demo, from: usize, mut after: impl FnMut(usize, &mut Demo)) -> usize {
    let mut smtp = demo.smtp();
    for i in from..BURST {
        let mail = plain("bob@example.org", &subject(i), &format!("Mail number {i}.\n{}", "Text. ".repeat(100)));
        match smtp.try_mail("<me@example.net>", &["bob@example.org"], &mail) {
            Ok(reply) => assert_eq!(reply.code, 250, "{reply}"),
            Err(_) => return i,
        }
        after(i + 1, demo);
    }
    BURST
}

/// The files in which each subject has arrived, oldest first.
fn tally(maildir: &Path) -> BTreeMap<String, Vec<PathBuf>> {
    let mut tally: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let files: Vec<_> = arrived(maildir).into_iter().collect();
    for (letter, file) in letters(&files).into_iter().zip(files) {
        tally.entry(letter.subject).or_default().push(file);
    }
    tally
}

/// How many mails the process that got `file` got after it. The name has the process before the last dot.
fn arrived_after(file: &Path, maildir: &Path) -> usize {
    let process = |file: &Path| file.to_string_lossy().rsplit('.').nth(1).unwrap().to_owned();
    arrived(maildir).iter().filter(|other| *other > file && process(other) == process(file)).count()
}

/// Waits until the whole burst has come and nothing else comes after it.
fn complete(demo: &Demo, accepted: usize, moment: &str) {
    let maildir = &demo.ready.outside.maildir;
    let wanted: BTreeSet<String> = (0..accepted).map(subject).collect();
    until(&format!("the rest of the burst, {moment}"), BOUND, || {
        (arrived(maildir).len() >= accepted && wanted.iter().all(|subject| tally(maildir).contains_key(subject)))
            .then_some(())
    });
    let (mut files, mut since) = (arrived(maildir).len(), Instant::now());
    until("an end of the deliveries", BOUND, || {
        let now = arrived(maildir).len();
        if now != files {
            (files, since) = (now, Instant::now());
        }
        (since.elapsed() >= QUIET).then_some(())
    });
    let tally = tally(maildir);
    let surplus: usize = tally.values().map(|copies| copies.len() - 1).sum();
    println!("killed {moment}: {accepted} accepted, {} arrived, {surplus} surplus copies", tally.len());
    // What came twice was being handed over when the program was killed: it was among the last.
    for earlier in tally.values().flat_map(|copies| copies.split_last().unwrap().1) {
        let after = arrived_after(earlier, maildir);
        assert!(after < IN_HAND_OVER, "came again, though {after} others came after it: {}", earlier.display());
    }
}

#[test]
fn burst_survives_kill_right_after_the_twentieth_250() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut demo = Demo::start(Some(&home));
    let accepted = submit(&mut demo, 0, |count, demo| {
        if count == 20 {
            demo.kill();
        }
    });
    assert_eq!(accepted, 20);
    drop(demo);
    let mut demo = Demo::start(Some(&home));
    // The client tries those that it got no 250 for again.
    assert_eq!(submit(&mut demo, accepted, |_, _| ()), BURST);
    complete(&demo, BURST, "right after the 20th 250");
}

#[test]
fn burst_survives_kill_when_the_first_are_delivered() {
    killed_when_delivered(5);
}

#[test]
fn burst_survives_kill_when_most_are_delivered() {
    killed_when_delivered(30);
}

/// Kills it as soon as so many of the burst have arrived.
fn killed_when_delivered(count: usize) {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut demo = Demo::start(Some(&home));
    assert_eq!(submit(&mut demo, 0, |_, _| ()), BURST);
    let maildir = demo.ready.outside.maildir.clone();
    until("the first deliveries", PATIENCE, || (arrived(&maildir).len() >= count).then_some(()));
    demo.kill();
    let before = arrived(&maildir).len();
    drop(demo);
    let demo = Demo::start(Some(&home));
    complete(&demo, BURST, &format!("after {before} of 50 were delivered"));
}

#[test]
fn burst_survives_one_kill_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let (mut accepted, mut kills) = (0, 0);
    while accepted < BURST {
        let mut demo = Demo::start(Some(&home));
        // In the middle of the next mail, not just after one.
        accepted = submit(&mut demo, accepted, |count, demo| {
            if count % 20 == 0 {
                demo.kill();
                kills += 1;
            }
        });
    }
    let demo = Demo::start(Some(&home));
    complete(&demo, BURST, &format!("{kills} times on the way in, and once after it"));
}

#[test]
fn sigterm_ends_it_and_the_next_start_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut first = Demo::start_with(Some(&home), &["--interval", "1h"]);
    let reply = first.submit(&["bob@example.org"], &plain("bob@example.org", "pending", "It waits in the pool.\n"));
    assert_eq!(reply.code, 250, "{reply}");
    let own = first.ready.address.clone();
    let reply = first.submit(&[&own], &plain(&own, "pending too", "So does this.\n"));
    assert_eq!(reply.code, 250, "{reply}");
    // Clients that stay, and one that says nothing, hold nothing up.
    let (_smtp, _pop3) = (first.smtp(), first.pop3());
    let _silent: Vec<_> = first.ready.nodes.iter().map(|node| TcpStream::connect(node.mmtp).unwrap()).collect();
    let _browser = TcpStream::connect(first.ready.directory.trim_matches(|c: char| !c.is_ascii_digit())).unwrap();
    first.stop();
    assert_eq!(first.arrived().len(), 0);
    assert_eq!(first.stderr(), "");

    let second = Demo::start(Some(&home));
    let (before, after) = (&first.ready, &second.ready);
    assert_eq!((&before.user, &before.password, &before.address), (&after.user, &after.password, &after.address));
    assert_eq!((&before.nodes, &before.directory), (&after.nodes, &after.directory));
    assert_eq!(before.outside.maildir, after.outside.maildir);
    assert_eq!((&before.outside.smtp, &before.outside.password), (&after.outside.smtp, &after.outside.password));
    assert_eq!(second.delivered(&["bob@example.org"], PATIENCE)[0].subject, "pending");
    until("the own mail", PATIENCE, || (second.pop3().count() == 1).then_some(()));
    second.said_nothing_of(&["pending", "example.org", "pool."]);
    assert!(home.join("outside").exists(), "a folder that was given is kept");
}

#[test]
fn temporary_folder_is_gone_after_sigterm_and_after_ctrl_c() {
    for signal in ["TERM", "INT"] {
        let mut demo = Demo::start(None);
        let home = demo.ready.outside.maildir.clone();
        assert!(home.starts_with(std::env::temp_dir()) && home.exists());
        let folder = home.ancestors().find(|folder| folder.parent() == Some(&std::env::temp_dir())).unwrap();
        demo.signal(signal);
        let status = demo.wait(mixgate_tests::program::STOPPING);
        assert!(status.success(), "SIG{signal}: {status}");
        assert!(!folder.exists(), "SIG{signal} leaves {}", folder.display());
    }
}
