//! What the DNS must say of the key of an exit, as `mixgate exit dkim-record` prints it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use mixgate_tests::program::command;

/// With `dkim` behind the settings of a node.
fn record(folder: &Path, dkim: &str) -> Output {
    fs::write(folder.join("node.toml"), format!("[node]\nnickname = \"Alpha\"\nhome = \"Alpha\"\n{dkim}")).unwrap();
    let mut command = command();
    command.current_dir(folder).args(["exit", "dkim-record", "--config", "node.toml"]).output().unwrap()
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
