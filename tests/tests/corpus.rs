//! The mails of CPython's own test suite: whatever its authors had seen go wrong. Each is delivered readable or refused
//! for good, with a reason; none hangs, and none is taken and lost.
//!
//! `MIXGATE_CORPUS` names further folders of mails, separated by colons.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mixgate_tests::demo::Demo;
use mixgate_tests::says_what_is_missing;

/// CPython's mails, so that a Python without its tests is noticed.
const LEAST: usize = 40;
/// Until the last of the corpus has arrived.
const BOUND: Duration = Duration::from_secs(180);

/// Where the machine's Pythons keep their tests. Debian has them in a package of their own, and the first Python on the
/// path need not be Debian's. None where no Python here has them.
fn cpython() -> Vec<PathBuf> {
    let script = "import os, test; print(os.path.join(list(test.__path__)[0], 'test_email', 'data'))";
    let folders = ["python3", "/usr/bin/python3"].into_iter().filter_map(|python| {
        let output = Command::new(python).args(["-c", script]).output().ok()?;
        Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
    });
    let found = folders.filter_map(|folder| mails(&folder)).find(|mails| !mails.is_empty()).unwrap_or_default();
    if found.is_empty() {
        says_what_is_missing("the tests of Python 3: in Debian, the package libpython3.x-testsuite");
    } else {
        assert!(found.len() >= LEAST, "only {} mails", found.len());
    }
    found
}

fn mails(folder: &Path) -> Option<Vec<PathBuf>> {
    let files = fs::read_dir(folder).ok()?.map(|entry| entry.unwrap().path());
    let is_mail = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "txt" || extension == "eml");
    let mut mails: Vec<_> = files.filter(is_mail).collect();
    mails.sort();
    Some(mails)
}

#[test]
fn every_mail_is_delivered_or_refused_with_a_reason() {
    let mut files = cpython();
    for folder in std::env::var("MIXGATE_CORPUS").iter().flat_map(|folders| folders.split(':')) {
        files.extend(mails(Path::new(folder)).unwrap_or_else(|| panic!("no folder {folder}")));
    }
    let demo = Demo::start(None);
    let mut accepted = Vec::new();
    let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let to = format!("corpus-{i}@example.org");
        let reply = demo.submit(&[&to], &fs::read(file).unwrap());
        match reply.code {
            250 => accepted.push((name, to)),
            500..=599 => refused.entry(reply.to_string()).or_default().push(name),
            _ => panic!("{name}: neither yes nor no: {reply}"),
        }
    }
    let recipients: Vec<&str> = accepted.iter().map(|(_, to)| to.as_str()).collect();
    let letters = demo.delivered(&recipients, BOUND);
    println!("{} mails, {} delivered", files.len(), accepted.len());
    for (reason, names) in &refused {
        println!("{} refused: {reason}: {}", names.len(), names.join(" "));
    }
    for ((name, _), letter) in accepted.iter().zip(&letters) {
        let expected = if letter.files.is_empty() { ("text/plain", Some("utf-8")) } else { ("multipart/mixed", None) };
        assert_eq!((&*letter.content_type.0, letter.content_type.1.as_deref()), expected, "{name}");
        assert!(!letter.body().trim().is_empty() || !letter.files.is_empty(), "{name} arrived empty");
        for (number, file) in letter.files.iter().enumerate() {
            assert!(file.name.starts_with(&format!("attachment-{}.", number + 1)), "{name}: {}", file.name);
            assert_eq!(file.headers, ["Content-Type", "Content-Transfer-Encoding", "Content-Disposition"], "{name}");
        }
        assert!(!letter.text.contains('\u{fffd}'), "{name} arrived garbled: {}", letter.body());
        assert!(!letter.text.contains("comes in Base64"), "{name} arrived in armour");
    }
    assert_eq!(demo.arrived().len(), accepted.len(), "each once, and nothing else");
    demo.serves("after-the-corpus@example.org");
    demo.said_nothing_of(&["corpus-", "example.org"]);
}
