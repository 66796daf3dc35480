//! What the DNS must say of the key of an exit, as `mixgate exit dkim-record` prints it, and the key that `dkim-key` makes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use mixgate_tests::program::command;

/// With `dkim` behind the settings of a node.
fn record(folder: &Path, dkim: &str) -> Output {
    asked("dkim-record", folder, dkim)
}

/// The same, of this command.
fn asked(what: &str, folder: &Path, dkim: &str) -> Output {
    fs::write(folder.join("node.toml"), format!("[node]\nnickname = \"Alpha\"\nhome = \"Alpha\"\n{dkim}")).unwrap();
    let mut command = command();
    command.current_dir(folder).args(["exit", what, "--config", "node.toml"]).output().unwrap()
}

#[test]
fn record_for_the_dns_has_the_key_that_openssl_made() {
    let folder = tempfile::tempdir().unwrap();
    let without = record(folder.path(), "");
    let said = String::from_utf8(without.stderr).unwrap();
    assert!(without.status.code() == Some(78) && said.contains("no key is set"), "{said}");
    let key = folder.path().join("dkim.pem");
    let openssl = |arguments: &[&str]| Command::new("openssl").args(arguments).arg(&key).output().unwrap();
    assert!(openssl(&["genrsa", "-out"]).status.success());
    let dkim = format!("[node.smtp.dkim]\ndomain = \"exit.example\"\nselector = \"m\"\nkey_file = {key:?}\n");
    let printed = record(folder.path(), &dkim);
    assert!(printed.status.success(), "{printed:?}");
    let said = String::from_utf8(printed.stdout).unwrap();
    let (name, text) = said.split_once(" IN TXT ").unwrap();
    assert_eq!(name, "m._domainkey.exit.example.");
    assert!(text.contains("\" \"") && text.split('"').all(|string| string.len() <= 255), "{text}");
    let text = text.trim().trim_matches('"').replace("\" \"", "");
    let public = String::from_utf8(openssl(&["rsa", "-pubout", "-in"]).stdout).unwrap();
    let base64: String = public.lines().filter(|line| !line.starts_with('-')).collect();
    assert_eq!(text, format!("v=DKIM1; k=rsa; p={base64}"));
}

#[test]
fn key_that_is_missing_is_made_and_one_that_is_there_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let unset = asked("dkim-key", folder.path(), "");
    let said = String::from_utf8(unset.stderr).unwrap();
    assert!(unset.status.code() == Some(78) && said.contains("set domain, selector and key_file"), "{said}");
    let dkim =
        |file: &str| format!("[node.smtp.dkim]\ndomain = \"exit.example\"\nselector = \"m\"\nkey_file = {file:?}\n");
    let nowhere = asked("dkim-key", folder.path(), &dkim("no/dkim.pem"));
    let said = String::from_utf8(nowhere.stderr).unwrap();
    assert!(nowhere.status.code() == Some(1) && said.contains("no/dkim.pem"), "{said}");
    let made = asked("dkim-key", folder.path(), &dkim("dkim.pem"));
    assert!(made.status.success(), "{made:?}");
    assert!(String::from_utf8(made.stderr).unwrap().starts_with("made dkim.pem"));
    let key = fs::read(folder.path().join("dkim.pem")).unwrap();
    let again = asked("dkim-key", folder.path(), &dkim("dkim.pem"));
    assert!(again.status.success() && again.stderr.is_empty(), "{again:?}");
    let printed = record(folder.path(), &dkim("dkim.pem"));
    assert!(printed.status.success(), "{printed:?}");
    assert_eq!((&again.stdout, &printed.stdout), (&made.stdout, &made.stdout));
    assert_eq!(fs::read(folder.path().join("dkim.pem")).unwrap(), key);
    let public = Command::new("openssl").args(["rsa", "-pubout", "-in"]).arg(folder.path().join("dkim.pem")).output();
    let public = String::from_utf8(public.unwrap().stdout).unwrap();
    let base64: String = public.lines().filter(|line| !line.starts_with('-')).collect();
    let text = String::from_utf8(made.stdout).unwrap().replace("\" \"", "");
    assert_eq!(text.trim(), format!("m._domainkey.exit.example. IN TXT \"v=DKIM1; k=rsa; p={base64}\""));
}
