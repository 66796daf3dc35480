//! From a mail that a client handed in to what the outbox keeps: one message for each recipient.
//!
//! Pure but for what `Exits` knows. Making it durable is `server`'s.

use std::sync::Arc;
use std::time::SystemTime;

use mix::payload::armor::MAX_SURB_TEXT_LEN;
use mix::payload::compress::{compress, expansion_limit};
use mix::payload::headers::{self, InvalidHeader, MessageHeaders, encode_word};
use mix::store::outbox::{Mail, OutboxExit};

use crate::error::Refused;
use crate::policy::{Exits, NoExit, Policy};
use crate::scrub::{Letter, scrub};
use crate::session::Submission;

/// Octets of text, whatever the exits say: it is held in memory several times over. They take about 10 MB.
const MAX_TEXT_LEN: usize = 32 * 1024 * 1024;

/// The mails of a submission. All or none: a client that is told that one recipient failed sends to all of them again.
pub(crate) fn mails(
    submission: Submission,
    exits: &dyn Exits,
    policy: &Policy,
    now: SystemTime,
) -> Result<Vec<Mail>, Refused> {
    let Submission { identity, recipients, octets } = submission;
    let reply_blocks = policy.reply_blocks;
    // They travel with the text, and count for the exit as it does.
    let blocks = usize::from(reply_blocks) * MAX_SURB_TEXT_LEN;
    let for_text = |limit: u64| NoExit::TooLarge { limit: limit.saturating_sub(blocks as u64) };
    let limit = exits.largest();
    let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(blocks).min(MAX_TEXT_LEN);
    let message: Arc<[u8]> = message(scrub(&octets, room)?)?.into();
    drop(octets);
    let len = message.len() + blocks;
    if len as u64 > limit {
        return Err(for_text(limit).into());
    }
    let mut mails = Vec::with_capacity(recipients.len());
    for address in recipients {
        exits.accepts(&identity, &address, len).map_err(|why| match why {
            NoExit::TooLarge { limit } => for_text(limit),
            other => other,
        })?;
        let (routing_type, info) = address.routing();
        let via = address.server().map(|nickname| nickname.as_str().to_owned());
        mails.push(Mail {
            identity: identity.clone(),
            exit: OutboxExit { routing_type, info, via },
            message: Arc::clone(&message),
            reply_blocks,
            accepted: now,
        });
    }
    if message.len() > policy.inflate_max && message.len() > expansion_limit(compressed_len(&message)) {
        return Err(Refused::Overcompressed);
    }
    Ok(mails)
}

/// Octets of the message as it travels. Reply blocks would add to both sides; without them this is the worst that may come.
fn compressed_len(message: &[u8]) -> usize {
    // What is as short is never overcompressed, and most mail is.
    if message.len() <= expansion_limit(0) { message.len() } else { compress(message).len() }
}

/// The letter as messages are before compression: headers, an empty line, the text (E2E-spec 3.1.2).
fn message(letter: Letter) -> Result<Vec<u8>, InvalidHeader> {
    let Letter { subject, from_name, in_reply_to, references, text } = letter;
    let mut message = headers::encode(&MessageHeaders {
        content_type: None,
        subject: subject.as_deref().map(encode_word),
        from: from_name.as_deref().map(encode_word),
        in_reply_to,
        references,
    })?;
    message.extend_from_slice(text.as_bytes());
    Ok(message)
}

#[cfg(test)]
mod tests {
    use mix::path::address::ExitAddress;

    use super::*;

    struct UpTo(u64);

    impl Exits for UpTo {
        fn accepts(&self, _: &str, to: &ExitAddress, message_len: usize) -> Result<(), NoExit> {
            // An exit of the mbox kind takes half of what the others do.
            let limit = if to.server().is_some() { self.0 / 2 } else { self.0 };
            if message_len as u64 > limit { Err(NoExit::TooLarge { limit }) } else { Ok(()) }
        }

        fn largest(&self) -> u64 {
            self.0
        }
    }

    fn policy(reply_blocks: u8) -> Policy {
        Policy { reply_blocks, ..crate::SmtpConfig::default().policy().unwrap() }
    }

    fn submission(mail: &str) -> Submission {
        let recipients = ["bob@example.org", "mbox:frida@gamma"].map(|text| ExitAddress::parse(text).unwrap());
        Submission { identity: "alice".to_owned(), recipients: recipients.to_vec(), octets: mail.into() }
    }

    #[test]
    fn each_recipient_has_a_mail_of_its_own() {
        let mail =
            "Subject: caf\u{e9}\r\nFrom: Alice <alice@example.net>\r\nIn-Reply-To: <1@x>\r\nX-Mailer: x\r\n\r\nhi\r\n";
        let mails = mails(submission(mail), &UpTo(50_000), &policy(2), SystemTime::UNIX_EPOCH).unwrap();
        let [bob, frida] = &mails[..] else { panic!("two recipients") };
        assert_eq!(bob.exit.info, b"bob@example.org");
        assert_eq!((frida.exit.info.as_slice(), frida.exit.via.as_deref()), (&b"frida"[..], Some("gamma")));
        assert!(Arc::ptr_eq(&bob.message, &frida.message), "the text is held once");
        for mail in &mails {
            let message = "FROM:Alice\nIN-REPLY-TO:<1@x>\nSUBJECT:=?UTF-8?B?Y2Fmw6k=?=\n\nhi\n";
            assert_eq!(String::from_utf8_lossy(&mail.message), message);
            assert_eq!((mail.identity.as_str(), mail.reply_blocks), ("alice", 2));
        }
    }

    #[test]
    fn mail_that_only_its_reply_blocks_make_too_long_is_refused() {
        let mail = format!("\r\n{}\r\n", "x".repeat(600));
        let taken = |reply_blocks| mails(submission(&mail), &UpTo(8000), &policy(reply_blocks), SystemTime::UNIX_EPOCH);
        assert!(taken(0).is_ok());
        // Half of 8000 is what the smaller exit takes, 3500 is what a reply block may need of it.
        let refused = taken(1).unwrap_err();
        assert!(matches!(refused, Refused::Exit(NoExit::TooLarge { limit: 500 })), "{refused}");
    }

    #[test]
    fn mail_that_one_exit_cannot_take_is_refused_for_all() {
        let refused =
            mails(submission("\r\n0123456789\r\n"), &UpTo(20), &policy(0), SystemTime::UNIX_EPOCH).unwrap_err();
        assert!(matches!(refused, Refused::Exit(NoExit::TooLarge { limit: 10 })), "{refused}");
    }

    #[test]
    fn mail_that_no_exit_takes_is_refused() {
        let refused =
            mails(submission("\r\n0123456789\r\n"), &UpTo(5), &policy(0), SystemTime::UNIX_EPOCH).unwrap_err();
        assert!(matches!(refused, Refused::Exit(NoExit::TooLarge { limit: 5 })), "{refused}");
    }

    #[test]
    fn mail_that_exits_would_hand_over_compressed_is_refused_beyond_what_they_are_known_to_inflate() {
        let mail = format!("\r\n{}", "All work and no play makes Jack a dull boy.\r\n".repeat(2000));
        let taken = |inflate_max| {
            let policy = Policy { inflate_max, ..policy(0) };
            mails(submission(&mail), &UpTo(1 << 20), &policy, SystemTime::UNIX_EPOCH)
        };
        assert!(matches!(taken(0), Err(Refused::Overcompressed)));
        assert!(matches!(taken(50_000), Err(Refused::Overcompressed)));
        assert_eq!(taken(100_000).unwrap().len(), 2);
    }
}
