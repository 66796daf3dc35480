//! What a mail client may do at the doors of one network: own address, several recipients, limits, refusals.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use mixgate_tests::demo::Demo;
use mixgate_tests::letter::letter;
use mixgate_tests::mails::{dice, incompressible, plain};
use mixgate_tests::smtp::Smtp;
use mixgate_tests::{PATIENCE, until};

/// What is told to no one but the recipient.
const CANARY: &str = "kanárek-4711";

#[test]
fn mail_to_the_own_address_comes_back_small_and_in_fragments() {
    let demo = Demo::start(None);
    let own = demo.ready.address.clone();
    let small = format!("Sobě samému: {CANARY} 漢字\n.\n");
    let large = incompressible(60_000, &mut dice("own address"));
    assert_eq!(demo.submit(&[&own], &plain(&own, CANARY, &small)).code, 250);
    assert_eq!(demo.submit(&[&own], &plain(&own, "large", &large)).code, 250);
    until("both mails in the maildrop", PATIENCE, || (demo.pop3().count() == 2).then_some(()));
    let mut letters: Vec<_> = demo.pop3().all().iter().map(|octets| letter(octets)).collect();
    letters.sort_by_key(|letter| letter.text.len());
    let subjects: Vec<_> = letters.iter().map(|letter| letter.subject.as_str()).collect();
    assert_eq!(subjects, [CANARY, "large"]);
    assert_eq!(letters[0].body(), small);
    assert!(letters[1].body() == large, "not what went in: {} octets", letters[1].body().len());
    // UIDL is the same to the next session, and what is deleted stays deleted.
    let ids = demo.pop3().lines("UIDL").unwrap();
    assert_eq!(demo.pop3().lines("UIDL").unwrap(), ids);
    demo.pop3().empty();
    assert_eq!(demo.pop3().count(), 0);
    assert_eq!(demo.arrived().len(), 0, "nothing of it went outside");
    demo.said_nothing_of(&[CANARY]);
}

#[test]
fn refusals_come_at_the_right_moment_and_honest_mail_still_passes() {
    let demo = Demo::start(None);
    several_recipients_each_get_their_own(&demo);
    recipients_that_are_none_are_refused(&demo);
    too_much_is_refused(&demo);
    wrong_password_opens_no_door(&demo);
    nobody_sends_without_a_password(&demo);
    one_session_per_maildrop(&demo);
    demo.serves("after-refusals@example.org");
    demo.said_nothing_of(&[CANARY, "example.org", "wrong password"]);
}

fn several_recipients_each_get_their_own(demo: &Demo) {
    let names = ["one@example.org", "two@example.org", "three@example.org"];
    let mail = plain("undisclosed@example.org", "to several", CANARY);
    let mut recipients = names.to_vec();
    recipients.extend([names[0], &demo.ready.address]);
    let reply = demo.submit(&recipients, &mail);
    assert_eq!(reply.code, 250, "{reply}");
    let letters = demo.delivered(&names, PATIENCE);
    for (letter, name) in letters.iter().zip(names) {
        assert!(letter.text.starts_with(CANARY) && letter.subject == "to several", "{letter:?}");
        for other in names.iter().filter(|other| **other != name) {
            assert!(!format!("{letter:?}").contains(other), "{name} reads of {other}");
        }
    }
    until("the copy to the own address", PATIENCE, || (demo.pop3().count() == 1).then_some(()));
    assert_eq!(demo.arrived().len(), names.len(), "who is named twice gets one");
}

fn recipients_that_are_none_are_refused(demo: &Demo) {
    for (recipient, code) in [
        ("<nobody>", 553),
        ("<>", 553),
        ("<bob@[192.0.2.1]>", 553),
        ("<bob@ex\u{e4}mple.org>", 553),
        ("<alice@mbox.alt>", 553),
        ("<alice@no-such-exit.mbox.alt>", 550),
        ("<bob@something.alt>", 553),
    ] {
        let mut smtp = demo.smtp();
        assert_eq!(smtp.command("MAIL FROM:<me@example.net>").code, 250);
        let reply = smtp.command(&format!("RCPT TO:{recipient}"));
        assert!((500..600).contains(&reply.code), "{recipient}: {reply}");
        assert_eq!(reply.code, code, "{recipient}: {reply}");
        let reply = smtp.command("DATA");
        assert!((500..600).contains(&reply.code), "DATA after {recipient}: {reply}");
    }
}

fn too_much_is_refused(demo: &Demo) {
    let mut smtp = demo.smtp();
    let reply = smtp.command("MAIL FROM:<me@example.net> SIZE=100000000");
    assert_eq!(reply.code, 552, "{reply}");
    // Less than the door takes, more than any exit does: told after DATA, when the text is known.
    let line = [b"x".repeat(98), b"\r\n".to_vec()].concat();
    let text = line.repeat(11 * 1024 * 1024 / line.len());
    let mail = [&b"Subject: too much\r\n\r\n"[..], &text].concat();
    let reply = smtp.mail("<me@example.net>", &["bob@example.org"], &mail);
    assert_eq!(reply.code, 552, "{reply}");
    // More than the door takes.
    let mail = [&mail[..], &text].concat();
    let reply = smtp.mail("<me@example.net>", &["bob@example.org"], &mail);
    assert_eq!(reply.code, 552, "{reply}");
    assert_eq!(smtp.command("NOOP").code, 250, "the session goes on");
}

fn wrong_password_opens_no_door(demo: &Demo) {
    let ready = &demo.ready;
    for (user, password) in [(ready.user.as_str(), "wrong password"), ("nobody", ready.password.as_str())] {
        let mut smtp = Smtp::connect(ready.smtp).unwrap();
        assert_eq!(smtp.command("EHLO client.example").code, 250);
        let reply = smtp.login(user, password);
        assert_eq!(reply.code, 535, "{reply}");
        let refused = mixgate_tests::pop3::Pop3::open(ready.pop3, user, password).unwrap_err();
        assert!(refused.to_string().starts_with("-ERR"), "{refused}");
    }
}

fn nobody_sends_without_a_password(demo: &Demo) {
    let mut smtp = Smtp::connect(demo.ready.smtp).unwrap();
    assert_eq!(smtp.command("EHLO client.example").code, 250);
    assert_eq!(smtp.command("MAIL FROM:<me@example.net>").code, 530);
}

fn one_session_per_maildrop(demo: &Demo) {
    let first = demo.pop3();
    let ready = &demo.ready;
    let mut second = BufReader::new(TcpStream::connect(ready.pop3).unwrap());
    second.get_mut().set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let login = format!("USER {}\r\nPASS {}\r\n", ready.user, ready.password);
    second.get_mut().write_all(login.as_bytes()).unwrap();
    let mut answers = String::new();
    for _ in 0..3 {
        second.read_line(&mut answers).unwrap();
    }
    assert!(answers.contains("-ERR [IN-USE]"), "{answers}");
    drop(first);
    // Free again, though nobody said goodbye.
    drop(demo.pop3());
}
