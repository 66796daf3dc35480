//! What strangers write to make an exit say more than one mail to its server, or less than the mail.

use super::*;
use crate::payload::armor::messages_from_text;

/// The mail that a message becomes.
fn mail_of(body: &[u8]) -> Vec<u8> {
    let message = compress(&[b"\n", body].concat());
    let (to, world) = (Mailbox::parse("bob@example.org").unwrap(), World::real());
    write_mail(&smtp_way(100_000, 0), &to, Queued::Message(message), world.now(), &mut world.dice()).unwrap()
}

/// What is no text for everybody: other charsets than UTF-8, and line ends that some take for one and some do not.
const NO_TEXT: [&[u8]; 6] = [
    b"caf\xE9 in Latin-1\n",
    b"before\r.\r\nMAIL FROM:<eve@evil.example>\r\n",
    b"before\r\n.\rMAIL FROM:<eve@evil.example>\r\n",
    b"\r.\r",
    b"a page\x0Bbreak\n",
    b"all of it\0\xFF",
];

#[test]
fn what_a_mail_cannot_show_goes_out_whole_in_armour() {
    for body in NO_TEXT {
        let mail = mail_of(body);
        let found = messages_from_text(&mail).unwrap();
        let contents: Vec<&[u8]> = found.iter().map(|found| found.item.contents()).collect();
        assert_eq!(contents, [body], "{}", String::from_utf8_lossy(&mail));
    }
}

#[tokio::test]
async fn mail_for_a_mailbox_that_no_server_takes_is_dropped_and_counted() {
    let (exited, calls) = exit_to(Server::Takes).await;
    exited.queue(RoutingType::SMTP, &format!("{}@example.org", "x".repeat(243)), b"\ntext");
    exited.deliver_all().await;
    assert_eq!((exited.service.counters.snapshot().undeliverable, calls.load(Ordering::Relaxed)), (1, 0));
}

#[test]
fn no_text_brings_a_line_end_of_its_own_into_a_mail() {
    for body in NO_TEXT {
        let mail = String::from_utf8(mail_of(body)).unwrap();
        let bare = mail.replace("\r\n", "").contains(['\r', '\n']);
        assert!(!bare, "{mail:?}");
    }
}
