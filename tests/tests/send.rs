//! `demo --send`: the whole story without hands, and what it says when it has none to tell.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use mixgate_tests::letter::{Letter, letter};
use mixgate_tests::mails::{dice, incompressible, plain};
use mixgate_tests::program::{Program, STOPPING, command};

/// What the correspondent answers.
const ANSWER: &str = "Přišlo to. It has come.\n";

/// The mail that was delivered and the answer that came back, as `--send` printed them.
fn sent(name: &str, mail: &[u8]) -> (Letter, Letter) {
    sent_and_answered(name, mail, ANSWER)
}

/// As [`sent`], with this answer.
fn sent_and_answered(name: &str, mail: &[u8], answer: &str) -> (Letter, Letter) {
    let folder = tempfile::tempdir().unwrap();
    let (eml, reply) = (folder.path().join("mail.eml"), folder.path().join("reply.txt"));
    fs::write(&eml, mail).unwrap();
    fs::write(&reply, answer).unwrap();
    let output = send(&eml).arg("--reply").arg(&reply).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}: {errors}", output.status);
    assert_eq!(errors, "", "{name}");
    (letter(between(&output, "delivered message")), letter(between(&output, "answer")))
}

fn send(eml: &PathBuf) -> Command {
    let mut command = command();
    command.args(["demo", "--smtp", "0", "--pop", "0", "--interval", "500ms", "--send"]).arg(eml);
    command
}

/// What stands between two marker lines.
fn between<'a>(output: &'a Output, what: &str) -> &'a [u8] {
    let (begin, end) = (format!("----- begin {what} -----\n"), format!("----- end {what} -----\n"));
    let find = |text: &str| output.stdout.windows(text.len()).position(|window| window == text.as_bytes());
    let (Some(start), Some(stop)) = (find(&begin), find(&end)) else {
        panic!("no markers of {what}: {}", String::from_utf8_lossy(&output.stdout))
    };
    &output.stdout[start + begin.len()..stop]
}

#[test]
fn utf8_mail_is_delivered_and_answered() {
    let text = "Grüße aus dem Mischnetz.\n.\n..\nŽluťoučký kůň, 漢字, 🦆 and = signs\tand a very long line: \
                ŽluťoučkýkůňŽluťoučkýkůňŽluťoučkýkůňŽluťoučkýkůňŽluťoučkýkůňŽluťoučkýkůň\n\nlast\n";
    let (delivered, answer) = sent("utf-8", &plain("bob@example.org", "=?utf-8?q?Gr=C3=BC=C3=9Fe?=", text));
    assert_eq!(delivered.body(), text);
    assert_eq!((delivered.subject.as_str(), delivered.to.as_str()), ("Grüße", "bob@example.org"));
    assert_eq!(delivered.from, "\"[Anon] Žofie\" <nobody@exit.example>");
    assert_eq!(delivered.content_type, ("text/plain".into(), Some("utf-8".into())));
    assert!(delivered.has_reply_block());
    assert_eq!(answer.text, ANSWER);
    assert_eq!(answer.subject, "Re: your message");
}

#[test]
fn multipart_mail_arrives_as_its_text_with_the_attachment_and_is_answered() {
    let mail = "From: Alice <alice@example.net>\nTo: bob@example.org\nSubject: two faces\nMIME-Version: 1.0\n\
        Content-Type: multipart/mixed; boundary=outer\n\n\
        --outer\nContent-Type: multipart/alternative; boundary=inner\n\n\
        --inner\nContent-Type: text/plain; charset=iso-8859-2\nContent-Transfer-Encoding: quoted-printable\n\n\
        P=F8=EDli=B9 =BElu=BBou=E8k=FD k=F9=F2.\n\
        --inner\nContent-Type: text/html; charset=utf-8\n\n<p>the other face</p>\n--inner--\n\
        --outer\nContent-Type: image/png; name=a.png\nContent-Transfer-Encoding: base64\n\
        Content-Disposition: attachment; filename=secret.png\n\niVBORw0KGgo=\n--outer--\n";
    let (delivered, answer) = sent("multipart", mail.as_bytes());
    assert_eq!(delivered.body(), "Příliš žluťoučký kůň.\n");
    assert_eq!(delivered.subject, "two faces");
    assert!(!delivered.text.contains("other face") && !delivered.text.contains("iVBOR"), "{}", delivered.text);
    let files: Vec<_> = delivered.files.iter().map(|file| (file.name.as_str(), file.base64.as_str())).collect();
    assert_eq!(files, [("attachment-1.png", "iVBORw0KGgo=")]);
    assert!(delivered.has_reply_block(), "it stands in the text");
    assert_eq!(answer.text, ANSWER);
}

#[test]
fn mail_that_needs_fragments_is_delivered_whole_and_answered() {
    let text = incompressible(200_000, &mut dice("a mail in fragments"));
    let (delivered, answer) = sent("fragments", &plain("bob@example.org", "much", &text));
    assert!(delivered.body() == text, "not what went in: {} octets", delivered.body().len());
    assert_eq!(answer.text, ANSWER);
}

#[test]
fn text_that_repeats_itself_arrives_and_so_does_such_an_answer() {
    let text = "All work and no play makes Jack a dull boy.\n".repeat(2000);
    let answer = "Here is nothing new.\n".repeat(3000);
    let (delivered, answered) = sent_and_answered("repetition", &plain("bob@example.org", "dull", &text), &answer);
    assert!(delivered.body() == text, "not what went in: {} octets", delivered.body().len());
    assert!(answered.text == answer, "not what was answered: {}", answered.text);
}

#[test]
fn line_that_looks_like_a_reply_block_does_not_hide_the_real_one() {
    let text = "Look:\n-----BEGIN TYPE III REPLY BLOCK-----\nVersion: 0.2\n\nAAAA\n-----END TYPE III REPLY BLOCK-----\n\
                -----BEGIN TYPE III REPLY BLOCK-----\nand no end\n";
    let (_, answer) = sent("a false reply block", &plain("bob@example.org", "look", text));
    assert_eq!(answer.text, ANSWER);
}

#[test]
fn story_that_is_interrupted_fails_and_names_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let (eml, ready) = (folder.path().join("mail.eml"), folder.path().join("ready.json"));
    fs::write(&eml, plain("bob@example.org", "late", "late\n")).unwrap();
    let mut late = command();
    late.args(["demo", "--smtp", "0", "--pop", "0", "--interval", "1h", "--send"]).arg(&eml).arg("--ready").arg(&ready);
    let mut program = Program::start(late);
    program.until("the file of --ready", |_| ready.exists().then_some(()));
    program.signal("INT");
    assert_eq!(program.wait(STOPPING).code(), Some(1));
    let last_words = program.stderr();
    assert!(last_words.starts_with("mixgate: interrupted during this step: "), "{last_words}");
}

#[test]
fn recipient_inside_the_network_is_refused_however_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let eml = folder.path().join("mail.eml");
    fs::write(&eml, plain("bob@example.org", "inside", "inside\n")).unwrap();
    let output = send(&eml).args(["--to", "alice@aurora.MBOX.alt"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("does not come to the outside world"), "{errors}");
}

#[test]
fn step_that_does_not_come_ends_the_story_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let eml = folder.path().join("mail.eml");
    fs::write(&eml, plain("bob@example.org", "late", "late\n")).unwrap();
    let mut late = command();
    late.args(["demo", "--smtp", "0", "--pop", "0", "--interval", "1h", "--timeout", "1s", "--send"]).arg(&eml);
    let output = late.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors, "mixgate: step did not come within 1s: delivery to the outside world\n");
}

#[test]
fn mail_that_is_refused_ends_the_story_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let eml = folder.path().join("mail.eml");
    fs::write(&eml, "To: bob@example.org\nContent-Type: text/vcard\n\nBEGIN:VCARD\n").unwrap();
    let output = send(&eml).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.starts_with("mixgate: step failed: handing the mail in over SMTP: "), "{errors}");
    assert!(errors.contains("554"), "{errors}");
}
