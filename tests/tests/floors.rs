//! Arrows point downwards (ARCHITECTURE.md): between crates, between the floors of `mix`, and from each dependency to the
//! one file that names it.
//!
//! Reads the sources as text: comments, strings and tests do not count.

// Helpers of tests are outside clippy's leave for tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of `mix`: name, floor, and on floor 0 the modules beside it that it may name. Above, all lower floors.
const MODULES: &[(&str, u8, &[&str])] = &[
    ("secret", 0, &[]),
    ("batch", 0, &[]),
    ("crypto", 0, &["secret"]),
    ("packet", 0, &["crypto", "secret"]),
    ("payload", 0, &["packet", "crypto", "secret"]),
    ("directory", 0, &["packet", "crypto", "secret"]),
    ("path", 0, &["directory", "packet", "crypto", "secret"]),
    ("mmtp", 0, &["packet", "crypto", "secret"]),
    ("settings", 1, &[]),
    ("store", 1, &[]),
    ("net", 2, &[]),
    ("deliver", 2, &[]),
    ("node", 3, &[]),
];

/// What no module may name up to this floor.
const FORBIDDEN: &[(u8, &str)] = &[
    (0, "std::fs"),
    (0, "rusqlite"),
    (1, "tokio"),
    (1, "rustls"),
    (1, "reqwest"),
    (1, "axum"),
    (1, "std::net::TcpStream"),
    (1, "std::net::TcpListener"),
    (1, "std::net::UdpSocket"),
    (1, "std::net::ToSocketAddrs"),
    (1, "std::os::unix::net"),
    (1, "SystemTime::now"),
    (1, "Instant::now"),
    (1, "Timestamp::now"),
    (1, "Zoned::now"),
    (1, "rand::rng"),
    (1, "rand::random"),
    (1, "rand::rngs::SysRng"),
    (1, "rand::rngs::ThreadRng"),
];

/// Files that may name one of these all the same.
const EXCEPTIONS: &[(&str, &str)] = &[
    // Blinding of the private operation: it changes no result, so it need not be repeatable.
    ("crypto/pk.rs", "rand::rngs::SysRng"),
];

/// Crate, dependency, the only files that may name it.
const ONE_FILE: &[(&str, &str, &[&str])] = &[
    ("conf", "figment", &["load.rs"]),
    // The second reads the values in quotes that figment's own reader panics on.
    ("conf", "toml_edit", &["place.rs", "load.rs"]),
    ("mix", "rsa", &["crypto/pk.rs", "net/tls.rs"]),
    ("mix", "aws_lc_rs", &["crypto/pk.rs", "net/tls.rs"]),
    ("mix", "rusqlite", &["store/db.rs"]),
    // Sockets and their options, the limit of descriptors, locks, room on the disk, and the end of programs: each is a call
    // of the system.
    (
        "mix",
        "rustix",
        &[
            "deliver/sendmail.rs",
            "net/descriptors.rs",
            "net/listen.rs",
            "net/sockets.rs",
            "store/db.rs",
            "store/disk.rs",
        ],
    ),
    ("mix", "hmac", &["crypto/mac.rs"]),
    ("mix", "sha2", &["crypto/mac.rs", "crypto/pk.rs"]),
    ("mix", "argon2", &["crypto/sealed.rs"]),
    ("mix", "chacha20poly1305", &["crypto/sealed.rs"]),
    // The second plays the mail server of tests.
    ("mix", "rustls", &["net/tls.rs", "deliver/smtp/tests.rs"]),
    ("mix", "tokio_rustls", &["net/tls.rs", "deliver/smtp/tests.rs"]),
    ("mix", "lettre", &["deliver/smtp.rs", "deliver/smtp/transport.rs"]),
    ("mix", "tokio_socks", &["deliver/socks.rs"]),
    // The second plays the name service of tests.
    ("mix", "hickory_resolver", &["deliver/mx/dns.rs", "deliver/mx/testing.rs"]),
    ("mix", "regex", &["deliver/refusals/pattern.rs"]),
    ("smtp-in", "smtp_proto", &["session.rs", "session/mod.rs"]),
    ("pop-out", "async_imap", &["fetch.rs"]),
    ("gateway", "rpassword", &["passphrase.rs"]),
    // Takes a descriptor over by its number, which the standard library does in unsafe code alone.
    ("gateway", "rustix", &["passphrase.rs"]),
    ("gateway", "listenfd", &["systemd.rs"]),
    ("gateway", "sd_notify", &["systemd.rs"]),
];

/// Folder, package, the packages of this workspace that it may depend on.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("conf", "mixgate-conf", &[]),
    ("mix", "mix", &[]),
    ("smtp-in", "smtp-in", &["mix"]),
    ("pop-out", "pop-out", &["mix"]),
    ("gateway", "mixgate", &["mixgate-conf", "mix", "smtp-in", "pop-out"]),
    ("tests", "mixgate-tests", &["mixgate-conf", "mix", "smtp-in", "pop-out", "mixgate"]),
];

#[test]
fn modules_of_mix_point_downwards() {
    let mut wrong = Vec::new();
    for (file, source) in sources("mix") {
        wrong.extend(check_module(&file, &source));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_dependency_is_named_in_one_file() {
    let mut wrong = Vec::new();
    for (folder, ..) in CRATES {
        for (file, source) in sources(folder) {
            wrong.extend(check_dependencies(folder, &file, &source));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn crates_point_downwards() {
    let mut wrong = Vec::new();
    for (folder, package, allowed) in CRATES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("name = \"{package}\"")), "{folder} is not {package}");
        wrong.extend(check_manifest(package, allowed, &manifest));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn upward_arrow_between_modules_is_found_however_it_is_written() {
    for (file, source) in [
        ("packet/build.rs", "use crate::payload::encode;"),
        ("packet/build.rs", "use crate::{crypto::sha1, path::{select, spec}};"),
        ("packet/build.rs", "fn f() { let x = crate::node::Node::start(); }"),
        ("crypto/pk.rs", "use crate :: packet;"),
        ("crypto/pk.rs", "pub(crate) use super::super::packet::Packet;"),
        ("store/db.rs", "use crate::{\n    net::listen,\n};"),
        ("net/tls.rs", "use crate::deliver::smtp;"),
        ("batch.rs", "use crate::crypto as c;"),
        ("deliver/smtp.rs", "fn f(c: char) { if c == '\"' { crate::node::go() } }"),
        ("strange/mod.rs", ""),
    ] {
        assert_eq!(check_module(file, source).len(), 1, "{file}: {source}");
    }
}

#[test]
fn clock_dice_files_and_sockets_on_the_lower_floors_are_found() {
    for (file, source) in [
        ("packet/build.rs", "fn f() { std::time::SystemTime::now() }"),
        ("batch.rs", "use std::time::Instant; fn f() { Instant::now() }"),
        ("batch.rs", "use std::{fmt, fs::File};"),
        ("payload/encode.rs", "let mut rng = rand::rng();"),
        ("crypto/keyset.rs", "use rand::rngs::SysRng;"),
        ("store/queue.rs", "use tokio::sync::Mutex;"),
        ("store/queue.rs", "use std::net::{IpAddr, TcpStream};"),
    ] {
        assert_eq!(check_module(file, source).len(), 1, "{file}: {source}");
    }
}

#[test]
fn downward_arrows_comments_strings_and_tests_are_let_through() {
    for (file, source) in [
        ("packet/build.rs", "use crate::crypto::sha1; use crate::packet::routing; use super::Packet;"),
        ("crypto/mod.rs", "//! Not `crate::packet`'s.\n/* crate::node */ fn f() -> &'static str { \"crate::node\" }"),
        ("crypto/mod.rs", "const S: &str = r#\"crate::node \"tokio::x\" \"#;"),
        ("crypto/pk.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::store::Db;\n}"),
        ("store/db.rs", "use std::fs; use crate::payload::x; use rusqlite::Connection; use std::net::IpAddr;"),
        ("node/sender.rs", "use crate::{net, store, path}; fn f() { SystemTime::now(); tokio::spawn(x); }"),
        ("lib.rs", "pub mod node; pub use crate::node::Node;"),
        ("crypto/pk.rs", "use rand::rngs::SysRng;"),
        ("batch.rs", "fn f<'a>(x: &'a str) -> &'a str { x }"),
    ] {
        assert_eq!(check_module(file, source), Vec::<String>::new(), "{file}: {source}");
    }
}

#[test]
fn dependency_named_elsewhere_is_found() {
    assert_eq!(check_dependencies("mix", "node/exit.rs", "use lettre::Address;").len(), 1);
    assert_eq!(check_dependencies("mix", "packet/x.rs", "fn f() { rsa::RsaPublicKey::new() }").len(), 1);
    assert_eq!(check_dependencies("conf", "lib.rs", "pub use {std::fmt, figment::Figment};").len(), 1);
    assert!(check_dependencies("mix", "deliver/smtp.rs", "use lettre::Address;").is_empty());
    assert!(check_dependencies("gateway", "demo.rs", "use lettre::Address;").is_empty());
    assert!(check_dependencies("mix", "net/x.rs", "use crate::rsa::x; use x::rusqlite;").is_empty());
}

#[test]
fn crate_that_points_upwards_is_found() {
    let manifest = "[package]\nname = \"mix\"\n[dependencies]\nserde = \"1\"\nsmtp-in.workspace = true\n";
    assert_eq!(check_manifest("mix", &[], manifest), ["mix depends on smtp-in"]);
    let manifest = "[dev-dependencies]\nmixgate-conf = { path = \"../conf\" }\n[features]\npop-out = []\n";
    assert_eq!(check_manifest("mix", &[], manifest), ["mix depends on mixgate-conf"]);
    let manifest = "[dependencies.mix]\nworkspace = true\n";
    assert_eq!(check_manifest("mixgate-conf", &[], manifest), ["mixgate-conf depends on mix"]);
    assert!(check_manifest("smtp-in", &["mix"], "[dependencies]\nmix.workspace = true\n").is_empty());
}

/// Arrows of one file of `mix` that do not point downwards, and what its floor may not name.
fn check_module(file: &str, source: &str) -> Vec<String> {
    let name = file.split('/').next().unwrap().trim_end_matches(".rs");
    if name == "lib" {
        return Vec::new();
    }
    let Some((_, floor, beside)) = MODULES.iter().find(|(module, ..)| *module == name) else {
        return vec![format!("{file}: the module has no floor")];
    };
    let paths = paths(source);
    let mut wrong = BTreeSet::new();
    for path in &paths {
        let target = path.strip_prefix("crate::").or_else(|| path.strip_prefix("super::super::"));
        let target =
            target.and_then(|rest| MODULES.iter().find(|(module, ..)| Some(*module) == rest.split("::").next()));
        if let Some((target, target_floor, _)) = target {
            let allowed = target == &name || target_floor < floor || (*floor == 0 && beside.contains(target));
            if !allowed {
                wrong.insert(format!("{file}: floor {floor} names {target} of floor {target_floor}"));
            }
        }
        for (up_to, forbidden) in FORBIDDEN {
            if floor <= up_to && names(path, forbidden) && !EXCEPTIONS.contains(&(file, forbidden)) {
                wrong.insert(format!("{file}: floor {floor} names {forbidden}"));
            }
        }
    }
    wrong.into_iter().collect()
}

fn check_dependencies(folder: &str, file: &str, source: &str) -> Vec<String> {
    let mut wrong = BTreeSet::new();
    for path in paths(source) {
        for (in_folder, dependency, allowed) in ONE_FILE {
            let named = path.split("::").next() == Some(dependency);
            if in_folder == &folder && named && !allowed.contains(&file) {
                wrong.insert(format!("{folder}/src/{file} names {dependency}: that is {}'s", allowed.join(", ")));
            }
        }
    }
    wrong.into_iter().collect()
}

fn check_manifest(package: &str, allowed: &[&str], manifest: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut among_dependencies = false;
    for line in manifest.lines() {
        let mut name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if line.starts_with('[') {
            let section = line.trim_matches(['[', ']']);
            among_dependencies = section.ends_with("dependencies");
            name = section.split_once("dependencies.").map_or("", |(_, name)| name);
        } else if !among_dependencies {
            continue;
        }
        let of_this_workspace = CRATES.iter().any(|(_, other, _)| *other == name);
        if of_this_workspace && !allowed.contains(&name) {
            wrong.push(format!("{package} depends on {name}"));
        }
    }
    wrong
}

/// Whether a path is the forbidden one, or below it, or ends in it (`time::SystemTime::now`).
fn names(path: &str, forbidden: &str) -> bool {
    let path = format!("::{path}::");
    // A crate counts at the beginning alone: a module of ours may be called as one.
    if forbidden.contains("::") {
        path.contains(&format!("::{forbidden}::"))
    } else {
        path.starts_with(&format!("::{forbidden}::"))
    }
}

/// All paths of two names and more in the code, `use` groups spelled out; single names of `use` too.
fn paths(source: &str) -> Vec<String> {
    let code = without_tests(&bare_code(source));
    let tokens = tokens(&code);
    let mut found = Vec::new();
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        if token == "use" {
            index = expand_use(&tokens, index + 1, "", &mut found);
        } else if is_name(token) {
            let mut path = token.clone();
            while tokens.get(index + 1).is_some_and(|it| it == "::")
                && let Some(next) = tokens.get(index + 2).filter(|it| is_name(it))
            {
                path = path + "::" + next;
                index += 2;
            }
            if path.contains("::") {
                found.push(path);
            }
        }
        index += 1;
    }
    found
}

/// Reads one tree of a `use` that begins at `index`; returns where it ends.
fn expand_use(tokens: &[String], mut index: usize, above: &str, found: &mut Vec<String>) -> usize {
    let mut path = above.to_owned();
    while let Some(token) = tokens.get(index) {
        match token.as_str() {
            "{" => {
                index += 1;
                while tokens.get(index).is_some_and(|it| it != "}") {
                    index = expand_use(tokens, index, &path, found);
                    if tokens.get(index).is_some_and(|it| it == ",") {
                        index += 1;
                    }
                }
                return index + 1;
            }
            "::" => {}
            "as" => index += 1,
            name if is_name(name) || name == "*" => {
                path = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
            }
            _ => break,
        }
        index += 1;
    }
    found.push(path);
    index
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::`, and single other characters.
fn tokens(code: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = code.chars().peekable();
    while let Some(c) = rest.next() {
        if c.is_alphanumeric() || c == '_' {
            let mut name = String::from(c);
            while let Some(c) = rest.next_if(|c| c.is_alphanumeric() || *c == '_') {
                name.push(c);
            }
            tokens.push(name);
        } else if c == ':' && rest.next_if_eq(&':').is_some() {
            tokens.push("::".into());
        } else if !c.is_whitespace() {
            tokens.push(c.into());
        }
    }
    tokens
}

/// Tests come last in a file.
fn without_tests(code: &str) -> String {
    code.split_once("#[cfg(test)]\nmod ").map_or(code, |(before, _)| before).to_owned()
}

/// The code without comments, strings and characters.
fn bare_code(source: &str) -> String {
    let mut bare = String::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            string_len(rest)
        } else if c == 'r' && !bare.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            raw_string_len(rest).unwrap_or(0)
        } else if c == '\'' {
            character_len(rest)
        } else {
            0
        };
        if skipped == 0 {
            bare.push(c);
            rest = rest.get(c.len_utf8()..).unwrap();
        } else {
            bare.push(' ');
            rest = rest.get(skipped..).unwrap();
        }
    }
    bare
}

fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return index + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn raw_string_len(text: &str) -> Option<usize> {
    let hashes = text.chars().skip(1).take_while(|c| *c == '#').count();
    let inner = text.get(1 + hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(inner.find(&end).map_or(text.len(), |at| 1 + hashes + 1 + at + end.len()))
}

/// A character, or nothing where the quote begins a lifetime.
fn character_len(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escaped, c))) => {
            let after = escaped + c.len_utf8();
            text.get(after..).and_then(|rest| rest.find('\'')).map_or(0, |end| after + end + 1)
        }
        (Some(_), Some((end, '\''))) => end + 1,
        _ => 0,
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The files below `src` of a crate, by their names from there.
fn sources(folder: &str) -> Vec<(String, String)> {
    let src = root().join(folder).join("src");
    let mut folders = vec![src.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {}", src.display());
    found
}
