use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::crypto::CounterRng;
use crate::crypto::stream::StreamKey;
use crate::deliver::mail::{Content, Heading, MailConfig, MailWriter};
use crate::path::Mailbox;

/// Checks the mail on standard input with the record that it is given; the name of the record must be asked for.
const VERIFIER: &str = "import dkim, sys\n\
    name, record = sys.argv[1].encode() + b'.', sys.argv[2].encode()\n\
    answers = lambda asked, timeout=5: record if asked == name else None\n\
    sys.exit(0 if dkim.verify(sys.stdin.buffer.read(), dnsfunc=answers) else 1)";

fn dice() -> CounterRng {
    CounterRng::new(&StreamKey::new([7; 16]))
}

fn pem_of(label: &str, der: &[u8]) -> String {
    let base64 = BASE64.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn config(path: &Path) -> DkimConfig {
    DkimConfig { domain: Some("exit.example".into()), selector: Some("mix1".into()), key_file: Some(path.to_owned()) }
}

/// A signer with a new key, whose file is gone.
fn signer() -> Signer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dkim.pem");
    let key = PrivateKey::generate(2048, &mut rand::rng()).unwrap();
    fs::write(&path, pem_of("PRIVATE KEY", &key.to_pkcs8_der())).unwrap();
    Signer::new(&config(&path)).unwrap().unwrap()
}

fn mail(subject: &str, text: &str) -> Vec<u8> {
    let return_address = Mailbox::parse("nobody@exit.example").ok();
    let writer = MailWriter::new(MailConfig { return_address, ..MailConfig::default() }).unwrap();
    let heading = Heading { subject: Some(subject), from: Some("Jörg"), in_reply_to: Some("<a@b>"), references: None };
    let now = UNIX_EPOCH + Duration::from_secs(1_795_395_600);
    writer.write(&Mailbox::parse("bob@example.org").unwrap(), heading, Content::Text(text), now, &mut dice())
}

/// What Debian's python3-dkim says of the mail.
fn verifies(signer: &Signer, mail: &[u8]) -> bool {
    let (name, record) = signer.record();
    let has_it = |python: &&&str| {
        Command::new(python).args(["-c", "import dkim"]).stderr(Stdio::null()).status().is_ok_and(|it| it.success())
    };
    let python = ["python3", "/usr/bin/python3"];
    let python = python.iter().find(has_it).expect("python3-dkim must be there");
    let mut command = Command::new(python);
    command.args(["-c", VERIFIER, &name, &record]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(mail).unwrap();
    child.wait().unwrap().success()
}

#[test]
fn signature_is_good_for_another_program_and_covers_headers_and_text() {
    let signer = signer();
    let subjects = ["A subject", "Grüße, ".repeat(30).leak(), "two  blanks and a\ttab"];
    let texts = ["Hello\n", "", "\n\n\n", "Grüße \t aus  Köln \n\n.\n..\n trailing  \n\n\n", "From me\n--  \n\tx"];
    for subject in subjects {
        for text in texts {
            let signed = signer.sign(mail(subject, text), &mut dice());
            assert!(
                signed
                    .starts_with(b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=exit.example; s=mix1;\r\n")
            );
            assert!(lines(&signed).iter().all(|line| line.len() <= 998 && line.is_ascii()));
            assert!(verifies(&signer, &signed), "{subject:?} {text:?}: {}", String::from_utf8_lossy(&signed));
        }
    }
    let signed = String::from_utf8(signer.sign(mail("A subject", "Hello\n"), &mut dice())).unwrap();
    for (from, to) in [
        ("Hello", "Hallo"),
        ("To: bob@", "To: eve@"),
        ("Subject: A", "Subject: No"),
        ("\r\nX-Anonymous: yes", ""),
        ("From: ", "From: eve@example.org\r\nFrom: "),
        ("\r\nDate: Mon", "\r\nDate: Tue"),
    ] {
        let forged = signed.replacen(from, to, 1);
        assert_ne!(forged, signed);
        assert!(!verifies(&signer, forged.as_bytes()), "{from:?} {to:?}");
    }
    // What servers on the way may do to it.
    let passed_on =
        format!("Received: by mx.example\r\n{}", signed.replace("Subject: A subject", "Subject:  A\r\n subject"));
    assert!(verifies(&signer, passed_on.as_bytes()));
}

#[test]
fn relaxed_forms_are_those_of_the_rfc() {
    // RFC 6376 3.4.5.
    let fields = fields(b"A: X\r\nB : Y\t\r\n\tZ  \r\n");
    let relaxed: Vec<_> = fields.iter().map(|field| relaxed_field(field)).collect();
    assert_eq!(relaxed, [b"a:X".to_vec(), b"b:Y Z".to_vec()]);
    assert_eq!(relaxed_body(b" C \r\nD \t E\r\n\r\n\r\n"), b" C\r\nD E\r\n");
    assert_eq!(relaxed_body(b"\r\n\r\n"), b"");
}

#[test]
fn key_of_either_form_is_read_and_what_is_none_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dkim.pem");
    let bad = |text: &[u8]| {
        fs::write(&path, text).unwrap();
        match Signer::new(&config(&path)).map(|signer| signer.is_some()).unwrap_err() {
            InvalidDkim::KeyFile { path: named, source } if named == path => source,
            other => panic!("{other:?}"),
        }
    };
    let key = PrivateKey::generate(2048, &mut rand::rng()).unwrap();
    for (label, der) in [("PRIVATE KEY", key.to_pkcs8_der()), ("RSA PRIVATE KEY", key.to_pkcs1_der())] {
        fs::write(&path, format!("a note\n{}", pem_of(label, &der))).unwrap();
        let (name, record) = Signer::new(&config(&path)).unwrap().unwrap().record();
        assert_eq!(name, "mix1._domainkey.exit.example");
        assert_eq!(record, format!("v=DKIM1; k=rsa; p={}", BASE64.encode(key.public_key().to_spki_der())));
    }
    assert!(matches!(bad(b""), BadKeyFile::NoKey));
    assert!(matches!(bad(b"\xff"), BadKeyFile::NoKey));
    assert!(matches!(bad(b"-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n"), BadKeyFile::NoKey));
    assert!(matches!(bad(pem_of("ENCRYPTED PRIVATE KEY", b"x").as_bytes()), BadKeyFile::NoKey));
    assert!(matches!(bad(pem_of("PRIVATE KEY", b"x").as_bytes()), BadKeyFile::Key(InvalidKey::Encoding)));
    assert!(matches!(bad(&vec![b'x'; 40_000]), BadKeyFile::TooLong));
    fs::remove_file(&path).unwrap();
    let missing = Signer::new(&config(&path)).map(drop).unwrap_err();
    assert!(matches!(missing, InvalidDkim::KeyFile { source: BadKeyFile::Missing, .. }), "{missing:?}");
    let folder = Signer::new(&config(folder.path())).map(drop).unwrap_err();
    assert!(matches!(folder, InvalidDkim::KeyFile { source: BadKeyFile::Read(_), .. }), "{folder:?}");
}

#[test]
fn key_is_made_once_for_its_owner_alone_and_never_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dkim.pem");
    let (signer, made) = Signer::make(&config(&path), &mut rand::rng()).unwrap();
    assert!(made);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read(&path).unwrap();
    assert!(text.split(|octet| *octet == b'\n').all(|line| line.len() <= 64));
    assert!(verifies(&signer, &signer.sign(mail("A subject", "Hello\n"), &mut dice())));
    let (again, made) = Signer::make(&config(&path), &mut rand::rng()).unwrap();
    assert!(!made && again.record() == signer.record());
    assert_eq!(fs::read(&path).unwrap(), text);
    fs::write(&path, "something else").unwrap();
    let refused = Signer::make(&config(&path), &mut rand::rng()).map(drop).unwrap_err();
    assert!(matches!(refused, InvalidDkim::KeyFile { source: BadKeyFile::NoKey, .. }), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), b"something else");
    let nowhere = Signer::make(&config(&folder.path().join("no/dkim.pem")), &mut rand::rng()).map(drop).unwrap_err();
    assert!(matches!(nowhere, InvalidDkim::KeyFile { source: BadKeyFile::Make(_), .. }), "{nowhere:?}");
    let unset = Signer::make(&DkimConfig::default(), &mut rand::rng()).map(drop).unwrap_err();
    assert!(matches!(unset, InvalidDkim::NoKey), "{unset:?}");
}

#[test]
fn half_a_setting_and_names_that_are_none_are_refused() {
    let whole = config(Path::new("/nowhere"));
    type Change = fn(&mut DkimConfig);
    let parts: [Change; 3] = [|it| it.domain = None, |it| it.selector = None, |it| it.key_file = None];
    for (which, change) in parts.into_iter().enumerate() {
        let mut part = whole.clone();
        change(&mut part);
        let refused = Signer::new(&part).map(drop).unwrap_err();
        assert!(matches!(refused, InvalidDkim::Part), "{which}: {refused:?}");
    }
    let named: [(Change, &str); 2] =
        [(|it| it.domain = Some("no name".into()), "domain"), (|it| it.selector = Some("a;b".into()), "selector")];
    for (change, expected) in named {
        let mut wrong = whole.clone();
        change(&mut wrong);
        let refused = Signer::new(&wrong).map(drop).unwrap_err();
        assert!(matches!(refused, InvalidDkim::Name { key } if key == expected), "{refused:?}");
    }
    assert!(Signer::new(&DkimConfig::default()).unwrap().is_none());
}
