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

/// What an exit delivers as armour: of each kind one, and how its mail says so.
fn of_each_kind() -> [(Queued, &'static str); 4] {
    let mut dice = World::real().dice();
    let (payload, handle) = (Payload::random(&mut dice), Some(Handle([5; 20])));
    let long = prng(&StreamKey::new([3; 16]), 60_000);
    let fragment = encode::encode(&long, Capacity::Plain, None, &mut dice).unwrap().remove(0);
    let fragment = Payload::from_bytes(fragment.as_bytes()).unwrap();
    [
        (Queued::Message(compress(b"\n\xFF")), "is not text"),
        (Queued::Message(compress(&[b' '; 50_000])), "compressed"),
        (Queued::Payload { handle, payload }, "with a key only"),
        (Queued::Payload { handle: None, payload: fragment }, "one of several parts"),
    ]
}

#[test]
fn armour_of_each_kind_comes_whole_under_a_notice_in_any_language() {
    let (to, world) = (Mailbox::parse("bob@example.org").unwrap(), World::real());
    for notice in ["None of us knows.", "Gr\u{fc}\u{df}e"] {
        for (content, explanation) in of_each_kind() {
            let way = smtp_way(100_000, 0);
            let way = SmtpWay { writer: way.writer.under(Some(notice.into())), ..way };
            let sent = match way.content(content.clone()).unwrap() {
                ExitContent::Plain { body, .. } => body,
                ExitContent::Overcompressed { compressed } => compressed,
                ExitContent::Encrypted { payload, .. } | ExitContent::Fragment { payload } => {
                    payload.as_bytes().to_vec()
                }
            };
            let mail = write_mail(&way, &to, content, world.now(), &mut world.dice()).unwrap();
            let found = messages_from_text(&mail).unwrap();
            let contents: Vec<&[u8]> = found.iter().map(|found| found.item.contents()).collect();
            assert_eq!(contents, [&sent[..]], "{notice} {explanation}");
            let mail = String::from_utf8(mail).unwrap().replace("=\r\n", "");
            assert!(mail.contains(explanation), "{mail}");
        }
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
