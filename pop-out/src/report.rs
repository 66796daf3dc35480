//! Makes mail of what the program has to tell the user: notices, and delivery reports (RFC 3464) of mail that came to nothing.

use mail_builder::MessageBuilder;
use mail_builder::headers::address::Address;
use mail_builder::headers::content_type::ContentType;
use mail_builder::headers::date::Date;
use mail_builder::headers::message_id::MessageId;
use mail_builder::headers::raw::Raw;
use mail_builder::mime::MimePart;
use mix::payload::words::is_message_ids;
use mix::store::keyring::LOCAL_DOMAIN;
use mix::store::notices::{Notice, Undelivered};
use rand::CryptoRng;

use crate::pop3::Letter;
use crate::render::{Envelope, clean, finish, random_name, recipient, rounded, unstructured, wrapped};

/// Who writes it. Nobody reads what is sent there, and no mail client can send there.
const SENDER: (&str, &str) = ("Mixgate", "mailer-daemon");

/// The mail that tells it.
pub fn report(envelope: &Envelope<'_>, notice: &Notice, rng: &mut impl CryptoRng) -> Letter {
    let (name, local_part) = SENDER;
    let builder = MessageBuilder::new()
        .header("From", Address::new_address(Some(name), format!("{local_part}@{LOCAL_DOMAIN}")))
        .header("To", recipient(envelope.identity))
        .header("Subject", unstructured(&clean(&notice.subject)))
        .header("Date", Date::new(rounded(envelope.date)))
        .header("Message-ID", MessageId::new(format!("{}@{LOCAL_DOMAIN}", random_name(rng))))
        // No program answers it (RFC 3834 5).
        .header("Auto-Submitted", Raw::new("auto-generated"));
    let paragraphs = notice.text.split('\n').map(|paragraph| wrapped(&clean(paragraph)));
    let text = format!("{}\n", paragraphs.collect::<Vec<_>>().join("\n"));
    let Some(about) = &notice.undelivered else { return finish(builder.body(MimePart::new("text/plain", text))) };
    let message_id = about.message_id.as_deref().map(clean).filter(|id| is_message_ids(id));
    let builder = match &message_id {
        // The mail client shows it beside the mail that it is about.
        Some(id) => builder.header("In-Reply-To", Raw::new(id.clone())).header("References", Raw::new(id.clone())),
        None => builder,
    };
    // The boundary is made here: the one that mail-builder makes tells the nanosecond.
    let content_type = ContentType::new("multipart/report")
        .attribute("report-type", "delivery-status")
        .attribute("boundary", format!("={}=", random_name(rng)));
    let parts = vec![
        MimePart::new("text/plain", text),
        MimePart::new("message/delivery-status", delivery_status(about)),
        MimePart::new("text/rfc822-headers", original_headers(about, message_id.as_deref())),
    ];
    finish(builder.body(MimePart::new(content_type, parts)))
}

/// The fields of RFC 3464 2.
fn delivery_status(about: &Undelivered) -> String {
    let action = if about.status.starts_with('4') { "delayed" } else { "failed" };
    let to = clean(&about.recipient);
    let kind = if to.is_ascii() { "rfc822" } else { "utf-8" };
    let arrived = Date::new(rounded(about.accepted)).to_rfc822();
    format!(
        "Reporting-MTA: dns; {LOCAL_DOMAIN}\nArrival-Date: {arrived}\n\nFinal-Recipient: {kind}; {}\nAction: {action}\n\
         Status: {}\n",
        escaped(&to),
        clean(&about.status),
    )
}

/// Characters that are none of ASCII as RFC 6533 3 writes them there.
fn escaped(address: &str) -> String {
    let escape = |c: char| if c.is_ascii() { c.to_string() } else { format!("\\x{{{:X}}}", u32::from(c)) };
    address.chars().map(escape).collect()
}

/// What of the mail its sender can know it by.
fn original_headers(about: &Undelivered, message_id: Option<&str>) -> String {
    let subject = about.subject.as_deref().map(clean).unwrap_or_default();
    let id = message_id.map(|id| format!("Message-ID: {id}\n")).unwrap_or_default();
    format!("Subject: {subject}\n{id}")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use mail_parser::{MessageParser, MimeHeaders as _};
    use mix::crypto::CounterRng;
    use mix::crypto::stream::StreamKey;

    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn rendered(notice: &Notice) -> String {
        let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
        let envelope = Envelope { identity: "alice", astray: None, date: now() };
        String::from_utf8(report(&envelope, notice, &mut rng).as_bytes().to_vec()).unwrap().replace("\r\n", "\n")
    }

    fn undelivered(recipient: &str) -> Undelivered {
        Undelivered {
            recipient: recipient.into(),
            status: "5.4.7".into(),
            accepted: now(),
            message_id: Some("<1.2@client>".into()),
            subject: Some("Grüße".into()),
        }
    }

    fn failure(recipient: &str) -> Notice {
        let undelivered = Some(undelivered(recipient));
        Notice { subject: "Undelivered".into(), text: "It was given up.\nNobody has it.".into(), undelivered }
    }

    #[test]
    fn notice_is_a_short_mail_from_the_program() {
        let text = "word ".repeat(30) + "\nsecond";
        let mail = rendered(&Notice { subject: "A\nB".into(), text, undelivered: None });
        assert!(mail.starts_with("From: \"Mixgate\" <mailer-daemon@mixgate.alt>\nTo: \"alice\" <alice@mixgate.alt>\n"));
        assert!(mail.contains("\nSubject: A B\n") && mail.contains("\nAuto-Submitted: auto-generated\n"), "{mail}");
        assert!(!mail.contains("X-Anonymous"), "it came from nowhere: {mail}");
        let (_, body) = mail.split_once("\n\n").unwrap();
        assert!(body.lines().all(|line| line.len() <= 72) && body.ends_with("\nsecond\n"), "{body}");
    }

    #[test]
    fn report_is_one_that_programs_read() {
        let mail = rendered(&failure("bob@example.org"));
        let parsed = MessageParser::new().parse(mail.as_bytes()).unwrap();
        let content_type = parsed.content_type().unwrap();
        assert_eq!((content_type.ctype(), content_type.subtype()), ("multipart", Some("report")));
        assert_eq!(content_type.attribute("report-type"), Some("delivery-status"));
        assert_eq!(parsed.in_reply_to().as_text(), Some("1.2@client"));
        let types: Vec<_> = parsed.parts[1..].iter().map(|part| part.content_type().unwrap().subtype()).collect();
        assert_eq!(types, [Some("plain"), Some("delivery-status"), Some("rfc822-headers")]);
        assert!(mail.contains(
            "\nReporting-MTA: dns; mixgate.alt\nArrival-Date: Tue, 14 Nov 2023 22:00:00 +0000\n\n\
             Final-Recipient: rfc822; bob@example.org\nAction: failed\nStatus: 5.4.7\n"
        ));
        assert!(mail.contains("Message-ID: <1.2@client>"));
    }

    #[test]
    fn what_strangers_wrote_makes_no_fields() {
        let mut notice = failure("bob@example.org\nAction: delivered");
        let about = notice.undelivered.as_mut().unwrap();
        about.message_id = Some("<1>\nX-Evil: yes".into());
        about.subject = Some("a\r\nX-Evil: yes".into());
        let mail = rendered(&notice);
        assert!(!mail.contains("\nX-Evil") && !mail.contains("\nAction: delivered"), "{mail}");
        assert!(!mail.contains("In-Reply-To"), "{mail}");
    }

    #[test]
    fn recipient_outside_ascii_is_written_in_it_and_a_delay_is_no_failure() {
        let mut notice = failure("frída@example.org");
        notice.undelivered.as_mut().unwrap().status = "4.4.7".into();
        let mail = rendered(&notice);
        assert!(mail.contains("Final-Recipient: utf-8; fr\\x{ED}da@example.org\nAction: delayed\n"), "{mail}");
    }
}
