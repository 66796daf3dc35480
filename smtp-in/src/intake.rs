//! From a mail that a client handed in to what the outbox keeps: one message for each recipient.
//!
//! Pure but for what `Exits` knows. Making it durable is `server`'s.

use std::mem;
use std::sync::Arc;
use std::time::SystemTime;

use mix::payload::armor::MAX_SURB_TEXT_LEN;
use mix::payload::compress::{compress, expansion_limit};
use mix::payload::entity::Entity;
use mix::payload::headers::{self, MessageHeaders, encode_word};
use mix::store::StoreError;
use mix::store::outbox::{Mail, OutboxExit};

use crate::error::Refused;
use crate::policy::{Asked, Attachments, Exits, NoExit, Outbox, Policy};
use crate::scrub::{Letter, NoLetter, scrub};
use crate::session::Submission;

/// Octets of text, whatever the exits say: it is held in memory several times over. They take about 10 MB.
const MAX_TEXT_LEN: usize = 32 * 1024 * 1024;

/// The mails of a submission. All or none: a client that is told that one recipient failed sends to all of them again.
pub(crate) fn mails(
    submission: Submission,
    exits: &dyn Exits,
    outbox: &dyn Outbox,
    policy: &Policy,
    now: SystemTime,
) -> Result<Vec<Mail>, Refused> {
    let Submission { identity, recipients, octets } = submission;
    // They travel with the text, and count for the exit as it does.
    let blocks = usize::from(policy.reply_blocks) * MAX_SURB_TEXT_LEN;
    let limit = exits.largest();
    let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(blocks).min(MAX_TEXT_LEN);
    let mut letter = scrub(&octets, room)?;
    drop(octets);
    leave_own_ids_out(&mut letter, outbox).map_err(Refused::Store)?;
    let message_id = letter.message_id.take();
    let forms = Forms::new(letter, policy.attachments)?;
    let mut mails = Vec::with_capacity(recipients.len());
    for address in recipients {
        let ask = |message: &Arc<[u8]>, attachments| {
            let len = message.len() + blocks;
            let asked = Asked { len, attachments };
            let too_long = (!attachments && len as u64 > limit).then_some(NoExit::TooLarge { limit });
            too_long.map_or_else(|| exits.accepts(&identity, &address, asked), Err).map_err(|why| without(blocks, why))
        };
        let message = Arc::clone(forms.choose(ask, policy.attachments)?);
        let (routing_type, info) = address.routing();
        let via = address.server().map(|nickname| nickname.as_str().to_owned());
        mails.push(Mail {
            identity: identity.clone(),
            exit: OutboxExit { routing_type, info, via },
            message,
            reply_blocks: policy.reply_blocks,
            accepted: now,
            message_id: message_id.clone(),
        });
    }
    let used = |form: &&Arc<[u8]>| mails.iter().any(|mail| Arc::ptr_eq(&mail.message, form));
    if forms.all().filter(used).any(|message| is_overcompressed(message, policy.inflate_max)) {
        return Err(Refused::Overcompressed);
    }
    Ok(mails)
}

/// Whoever follows up a mail of his own names it, and its Message-ID may hold his host or domain; or it is the mail of another of
/// his identities.
fn leave_own_ids_out(letter: &mut Letter, outbox: &dyn Outbox) -> Result<(), StoreError> {
    for ids in [&mut letter.in_reply_to, &mut letter.references] {
        let mut others = Vec::new();
        for id in ids.iter().flat_map(|ids| ids.split(' ')) {
            if !outbox.is_own(id)? {
                others.push(id);
            }
        }
        *ids = (!others.is_empty()).then(|| others.join(" "));
    }
    Ok(())
}

/// The ways in which one mail may travel. Which of them does, the exits for each recipient decide.
struct Forms {
    /// With its attachments, if it has some and they may travel.
    whole: Option<Arc<[u8]>>,
    /// With a note in their place; without a text there is no such form.
    text: Option<Arc<[u8]>>,
}

impl Forms {
    fn new(mut letter: Letter, attachments: Attachments) -> Result<Self, Refused> {
        if attachments == Attachments::Refuse && letter.left_out > 0 {
            return Err(Refused::Attachment);
        }
        let files = mem::take(&mut letter.files);
        let (all, left_out) = (files.len() + letter.left_out, letter.left_out);
        let whole = if files.is_empty() || attachments == Attachments::Drop {
            None
        } else {
            let entity = Entity::new(with_note(&letter.text, left_out), files)?;
            Some(entity.message(message_headers(&letter))?.into())
        };
        let text = if letter.text.is_empty() {
            None
        } else {
            let mut message = headers::encode(&message_headers(&letter))?;
            message.extend_from_slice(with_note(&letter.text, all).as_bytes());
            Some(message.into())
        };
        Ok(Self { whole, text })
    }

    fn all(&self) -> impl Iterator<Item = &Arc<[u8]>> {
        self.whole.iter().chain(&self.text)
    }

    /// The fullest form that exits take, as `ask` says of each. Attachments are left out only where there is no exit for
    /// them at all: what is too long, or has no way just now, its sender shall hear of.
    fn choose(
        &self,
        ask: impl Fn(&Arc<[u8]>, bool) -> Result<(), NoExit>,
        attachments: Attachments,
    ) -> Result<&Arc<[u8]>, Refused> {
        if let Some(whole) = &self.whole {
            match ask(whole, true) {
                Ok(()) => return Ok(whole),
                Err(NoExit::Attachments) if attachments == Attachments::Send => {}
                Err(why) => return Err(why.into()),
            }
        }
        let text = self.text.as_ref().ok_or(NoLetter::NoText)?;
        ask(text, false)?;
        Ok(text)
    }
}

/// As its sender hears it: what is left for him beside the reply blocks.
fn without(blocks: usize, why: NoExit) -> NoExit {
    let left = |limit: u64| limit.saturating_sub(blocks as u64);
    match why {
        NoExit::TooLarge { limit } => NoExit::TooLarge { limit: left(limit) },
        NoExit::AttachmentsTooLarge { limit } => NoExit::AttachmentsTooLarge { limit: left(limit) },
        other => other,
    }
}

/// Whether exits hand it over compressed (E2E-spec 2.3.2). Reply blocks would add to both sides; without them this is the
/// worst that may come.
fn is_overcompressed(message: &[u8], inflate_max: usize) -> bool {
    message.len() > inflate_max && message.len() > expansion_limit(compressed_len(message))
}

/// Octets of the message as it travels.
fn compressed_len(message: &[u8]) -> usize {
    // What is as short is never overcompressed, and most mail is.
    if message.len() <= expansion_limit(0) { message.len() } else { compress(message).len() }
}

/// The text, and how many attachments are missing there. Their recipient could take it for a whole mail.
fn with_note(text: &str, left_out: usize) -> String {
    let note = match left_out {
        0 => return text.to_owned(),
        1 => "[1 attachment was left out.]\n".to_owned(),
        more => format!("[{more} attachments were left out.]\n"),
    };
    if text.is_empty() { note } else { format!("{text}\n{note}") }
}

/// The headers of a letter as messages have them (E2E-spec 3.1.2).
fn message_headers(letter: &Letter) -> MessageHeaders {
    MessageHeaders {
        content_type: None,
        subject: letter.subject.as_deref().map(encode_word),
        from: letter.from_name.as_deref().map(encode_word),
        in_reply_to: letter.in_reply_to.clone(),
        references: letter.references.clone(),
    }
}

#[cfg(test)]
mod tests {
    use mix::path::address::ExitAddress;
    use mix::payload::headers::parse;

    use super::*;

    /// Knows a mail of its own.
    struct Knows(&'static str);

    impl Outbox for Knows {
        fn keep(&self, _: Vec<Mail>) -> Result<(), StoreError> {
            Err(StoreError::Closed)
        }

        fn is_own(&self, message_id: &str) -> Result<bool, StoreError> {
            Ok(message_id == self.0)
        }
    }

    const NONE: Knows = Knows("");

    /// Exits that take so much, none of which delivers attachments.
    struct UpTo(u64);

    impl Exits for UpTo {
        fn accepts(&self, _: &str, to: &ExitAddress, asked: Asked) -> Result<(), NoExit> {
            if asked.attachments {
                return Err(NoExit::Attachments);
            }
            // An exit of the mbox kind takes half of what the others do.
            let limit = if to.server().is_some() { self.0 / 2 } else { self.0 };
            if asked.len as u64 > limit { Err(NoExit::TooLarge { limit }) } else { Ok(()) }
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
        let mails = mails(submission(mail), &UpTo(50_000), &NONE, &policy(2), SystemTime::UNIX_EPOCH).unwrap();
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
    fn ids_of_own_mail_do_not_travel_and_the_one_of_this_mail_is_kept_for_its_sender() {
        let mail = "Message-ID: <5@Laptop>\r\nIn-Reply-To: <4@old.laptop>\r\n\
            References: <1@list> <2@laptop> <4@old.laptop>\r\n\r\nhi\r\n";
        let knows = Knows("<4@old.laptop>");
        let mails = mails(submission(mail), &UpTo(50_000), &knows, &policy(0), SystemTime::UNIX_EPOCH).unwrap();
        for mail in mails {
            assert_eq!(String::from_utf8_lossy(&mail.message), "REFERENCES:<1@list>\n\nhi\n");
            assert_eq!(mail.message_id.as_deref(), Some("<5@Laptop>"));
        }
    }

    #[test]
    fn mail_that_only_its_reply_blocks_make_too_long_is_refused() {
        let mail = format!("\r\n{}\r\n", "x".repeat(600));
        let taken =
            |reply_blocks| mails(submission(&mail), &UpTo(8000), &NONE, &policy(reply_blocks), SystemTime::UNIX_EPOCH);
        assert!(taken(0).is_ok());
        // Half of 8000 is what the smaller exit takes, 3500 is what a reply block may need of it.
        let refused = taken(1).unwrap_err();
        assert!(matches!(refused, Refused::Exit(NoExit::TooLarge { limit: 500 })), "{refused}");
    }

    #[test]
    fn mail_that_one_exit_cannot_take_is_refused_for_all() {
        let refused =
            mails(submission("\r\n0123456789\r\n"), &UpTo(20), &NONE, &policy(0), SystemTime::UNIX_EPOCH).unwrap_err();
        assert!(matches!(refused, Refused::Exit(NoExit::TooLarge { limit: 10 })), "{refused}");
    }

    #[test]
    fn mail_that_no_exit_takes_is_refused() {
        let refused =
            mails(submission("\r\n0123456789\r\n"), &UpTo(5), &NONE, &policy(0), SystemTime::UNIX_EPOCH).unwrap_err();
        assert!(matches!(refused, Refused::Exit(NoExit::TooLarge { limit: 5 })), "{refused}");
    }

    #[test]
    fn mail_that_exits_would_hand_over_compressed_is_refused_beyond_what_they_are_known_to_inflate() {
        let mail = format!("\r\n{}", "All work and no play makes Jack a dull boy.\r\n".repeat(2000));
        let taken = |inflate_max| {
            let policy = Policy { inflate_max, ..policy(0) };
            mails(submission(&mail), &UpTo(1 << 20), &NONE, &policy, SystemTime::UNIX_EPOCH)
        };
        assert!(matches!(taken(0), Err(Refused::Overcompressed)));
        assert!(matches!(taken(50_000), Err(Refused::Overcompressed)));
        assert_eq!(taken(100_000).unwrap().len(), 2);
    }

    /// Exits that take 2000 octets of text, and with attachments so much by e-mail.
    struct Attaching(u64);

    impl Exits for Attaching {
        fn accepts(&self, _: &str, to: &ExitAddress, Asked { len, attachments }: Asked) -> Result<(), NoExit> {
            match (attachments, to.server()) {
                (true, Some(_)) => Err(NoExit::Attachments),
                (true, None) if len as u64 > self.0 => Err(NoExit::AttachmentsTooLarge { limit: self.0 }),
                (true, None) => Ok(()),
                (false, _) => UpTo(2000).accepts("", to, Asked::text(len)),
            }
        }

        fn largest(&self) -> u64 {
            2000
        }
    }

    /// What becomes of a mail by that setting: the messages for bob and for frida.
    fn sent(mail: &str, exits: &dyn Exits, attachments: Attachments) -> Result<[Vec<u8>; 2], Refused> {
        let policy = Policy { attachments, ..policy(0) };
        let mails = mails(submission(&mail.replace('\n', "\r\n")), exits, &NONE, &policy, SystemTime::UNIX_EPOCH)?;
        Ok([0, 1].map(|index: usize| mails[index].message.to_vec()))
    }

    const ATTACHED: &str = "Subject: two\nContent-Type: multipart/mixed; boundary=x\n\n--x\n\ntext\n--x\n\
        Content-Type: image/png; name=canary.png\nContent-Transfer-Encoding: base64\n\nAAAA\n--x--\n";
    const WITH_CARD: &str = "Content-Type: multipart/mixed; boundary=x\n\n--x\n\ntext\n--x\n\
        Content-Type: text/vcard; name=me.vcf\n\nBEGIN:VCARD\n--x\nContent-Type: image/png\n\nx\n--x--\n";

    #[test]
    fn attachments_travel_where_an_exit_delivers_them_and_elsewhere_the_text_says_that_they_are_missing() {
        let [bob, frida] = sent(ATTACHED, &Attaching(5000), Attachments::Send).unwrap();
        let (headers, body) = parse(&bob);
        let entity = Entity::parse(headers.content_type.as_deref().unwrap(), body).unwrap();
        assert_eq!((entity.text(), entity.files()[0].octets()), ("text\n", &[0, 0, 0][..]));
        assert_eq!(headers.subject.as_deref(), Some("two"));
        assert!(!String::from_utf8_lossy(&bob).contains("canary"));
        let noted = "SUBJECT:two\n\ntext\n\n[1 attachment was left out.]\n";
        assert_eq!(String::from_utf8_lossy(&frida), noted);
        let none = sent(ATTACHED, &UpTo(2000), Attachments::Send).unwrap();
        assert_eq!(none.map(|message| String::from_utf8(message).unwrap()), [noted, noted]);
        let dropped = sent(ATTACHED, &Attaching(5000), Attachments::Drop).unwrap();
        assert_eq!(dropped.map(|message| String::from_utf8(message).unwrap()), [noted, noted]);
    }

    #[test]
    fn attachments_that_cannot_travel_are_refused_where_their_sender_wants_that() {
        let refused = |mail, exits: &dyn Exits| sent(mail, exits, Attachments::Refuse).unwrap_err();
        let nowhere = refused(ATTACHED, &UpTo(2000));
        assert!(matches!(nowhere, Refused::Exit(NoExit::Attachments)), "{nowhere}");
        assert_eq!(nowhere.reply().code, 554);
        // Bob's exit would take them; frida's does not.
        assert!(matches!(refused(ATTACHED, &Attaching(5000)), Refused::Exit(NoExit::Attachments)));
        let card = refused(WITH_CARD, &Attaching(5000));
        assert!(matches!(card, Refused::Attachment) && card.reply().code == 554, "{card}");
        assert!(sent("Subject: x\n\ntext\n", &UpTo(2000), Attachments::Refuse).is_ok());
    }

    #[test]
    fn card_never_travels_and_the_text_beside_other_attachments_says_so() {
        let [bob, frida] = sent(WITH_CARD, &Attaching(5000), Attachments::Send).unwrap();
        let (headers, body) = parse(&bob);
        let entity = Entity::parse(headers.content_type.as_deref().unwrap(), body).unwrap();
        assert_eq!((entity.text(), entity.files().len()), ("text\n\n[1 attachment was left out.]\n", 1));
        assert_eq!(frida, b"\ntext\n\n[2 attachments were left out.]\n");
    }

    #[test]
    fn attachments_that_are_too_long_for_all_exits_are_refused_and_not_left_out() {
        let refused = sent(ATTACHED, &Attaching(300), Attachments::Send).unwrap_err();
        assert!(matches!(refused, Refused::Exit(NoExit::AttachmentsTooLarge { limit: 300 })), "{refused}");
        assert_eq!(refused.reply().code, 552);
        let with_blocks = mails(
            submission(&ATTACHED.replace('\n', "\r\n")),
            &Attaching(3600),
            &NONE,
            &policy(1),
            SystemTime::UNIX_EPOCH,
        );
        let left = 3600 - MAX_SURB_TEXT_LEN as u64;
        let why = with_blocks.unwrap_err();
        assert!(matches!(why, Refused::Exit(NoExit::AttachmentsTooLarge { limit }) if limit == left), "{why}");
    }

    #[test]
    fn mail_of_attachments_alone_travels_where_they_do() {
        let mail = "Content-Type: image/png\n\nx\n";
        let to_bob = |exits: &dyn Exits| {
            let recipients = vec![ExitAddress::parse("bob@example.org").unwrap()];
            let submission =
                Submission { identity: "alice".to_owned(), recipients, octets: mail.replace('\n', "\r\n").into() };
            mails(submission, exits, &NONE, &policy(0), SystemTime::UNIX_EPOCH)
        };
        let sent = to_bob(&Attaching(5000)).unwrap();
        let (headers, body) = parse(&sent[0].message);
        let entity = Entity::parse(headers.content_type.as_deref().unwrap(), body).unwrap();
        assert_eq!((entity.text(), entity.files().len()), ("", 1));
        assert!(matches!(to_bob(&UpTo(2000)), Err(Refused::Letter(NoLetter::NoText))));
    }
}
