//! Sessions as transcripts: what a client says, and the codes it hears.

use std::sync::Arc;

use mix::node::sender::NoWay;
use mix::path::address::ExitAddress;
use mix::path::select::NoPath;
use proptest::prelude::*;
use smtp_in::error::Refused;
use smtp_in::scrub::NoLetter;
use smtp_in::session::{Goodbye, MAX_AUTH_LEN, MAX_COMMAND_LEN, Session, Step, Submission, Verdict};
use smtp_in::{Asked, Exits, NoExit, Policy, SmtpConfig};

struct Network;

fn no_way() -> NoExit {
    NoWay::Reply(NoPath::NoMixes).into()
}

impl Exits for Network {
    fn accepts(&self, _: &str, to: &ExitAddress, _: Asked) -> Result<(), NoExit> {
        match to {
            ExitAddress::Smtp(mailbox) if mailbox.domain() == "nonet.example" => Err(NoExit::NoNetwork),
            ExitAddress::Smtp(mailbox) if mailbox.domain() == "nopath.example" => Err(no_way()),
            ExitAddress::Smtp(_) => Ok(()),
            _ => Err(NoExit::Unsupported),
        }
    }

    fn largest(&self) -> u64 {
        1 << 20
    }
}

/// A session, what it said and what it took.
struct Talk {
    session: Session,
    heard: Vec<u8>,
    taken: Vec<Submission>,
    refuse: Option<fn() -> Refused>,
    closed: bool,
}

impl Talk {
    fn new() -> Self {
        Self::with(SmtpConfig::default().policy().expect("defaults"))
    }

    fn with(policy: Policy) -> Self {
        let session = Session::new(policy, Arc::new(Network));
        let mut talk = Self { session, heard: Vec::new(), taken: Vec::new(), refuse: None, closed: false };
        talk.run();
        assert_eq!(talk.hear(), "220 localhost ESMTP mixgate\r\n");
        talk
    }

    /// Greeted and authenticated.
    fn welcome() -> Self {
        let mut talk = Self::new();
        talk.say("EHLO client\r\nAUTH PLAIN AGFsaWNlAHNlc2FtZQ==\r\n");
        assert!(talk.hear().ends_with("235 2.7.0 welcome\r\n"));
        talk
    }

    /// In the middle of a mail.
    fn in_data() -> Self {
        let mut talk = Self::welcome();
        talk.say("MAIL FROM:<>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n");
        assert_eq!(talk.codes(), "250 250 354");
        talk
    }

    fn say(&mut self, octets: impl AsRef<[u8]>) {
        self.session.receive(octets.as_ref());
        self.run();
    }

    fn run(&mut self) {
        loop {
            match self.session.step() {
                Step::Send(octets) => self.heard.extend_from_slice(&octets),
                Step::Receive => return,
                Step::Check(credentials) => {
                    let known = credentials.user == "alice" && credentials.password.expose() == "sesame";
                    self.session.checked(match credentials.user.as_str() {
                        "nobody-knows" => Verdict::Unknown,
                        _ if known => Verdict::Right,
                        _ => Verdict::Wrong,
                    });
                }
                Step::Take(submission) => {
                    self.taken.push(submission);
                    let result = self.refuse.map_or(Ok(()), |refuse| Err(refuse()));
                    self.session.taken(&result);
                }
                Step::Close => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    fn hear(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.heard)).expect("ASCII")
    }

    /// The codes of the replies since the last look; of a reply in several lines its last.
    fn codes(&mut self) -> String {
        let heard = self.hear();
        let last_lines = heard.split_terminator("\r\n").filter(|line| line.get(3..4) == Some(" "));
        last_lines.map(|line| line.get(..3).expect("a code")).collect::<Vec<_>>().join(" ")
    }

    /// The one reply to one line.
    fn reply(&mut self, line: &str) -> String {
        self.say(format!("{line}\r\n"));
        self.hear().trim_end().to_owned()
    }

    #[track_caller]
    fn expect(&mut self, line: &str, code: &str) {
        let reply = self.reply(line);
        assert!(reply.starts_with(code), "{line}: {reply}");
        assert!(!reply.contains('\n'), "{line}: {reply}");
    }
}

#[test]
fn ehlo_announces_what_there_is() {
    let mut talk = Talk::new();
    let lines = "250-localhost\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-SIZE 20000000\r\n\
        250-ENHANCEDSTATUSCODES\r\n250 AUTH PLAIN LOGIN";
    assert_eq!(talk.reply("EHLO client.example"), lines);
    talk.expect("HELO client", "250 localhost");
}

#[test]
fn both_mechanisms_lead_in_with_and_without_initial_response() {
    for lines in [
        &["AUTH PLAIN AGFsaWNlAHNlc2FtZQ=="][..],
        &["auth plain YWxpY2UAYWxpY2UAc2VzYW1l"],
        &["AUTH PLAIN", "AGFsaWNlAHNlc2FtZQ=="],
        &["AUTH LOGIN", "YWxpY2U=", "c2VzYW1l"],
        &["AUTH LOGIN YWxpY2U=", "c2VzYW1l"],
        &["AUTH LOGIN YWxpY2U", "c2VzYW1l"],
    ] {
        let mut talk = Talk::new();
        talk.reply("EHLO client");
        for (i, line) in lines.iter().enumerate() {
            talk.expect(line, if i + 1 == lines.len() { "235 2.7.0" } else { "334" });
        }
        talk.expect("MAIL FROM:<a@b.example>", "250 2.1.0");
    }
}

#[test]
fn mail_is_taken_with_all_that_clients_put_around_it() {
    let mut talk = Talk::welcome();
    for line in [
        "MAIL FROM:<>",
        "MAIL FROM:<> SIZE=100 BODY=8BITMIME SMTPUTF8",
        "MAIL FROM: <alice@example.net> size=100 AUTH=<>",
        "mail from:<j\u{fc}rgen@example.net> SMTPUTF8 BODY=7BIT",
        "MAIL FROM:<\"a b\"@example.net>",
    ] {
        talk.expect(line, "250 2.1.0");
        talk.expect("RCPT TO:<bob@example.org>", "250 2.1.5");
        talk.expect("RCPT TO: <carol@example.org>", "250 2.1.5");
        talk.expect("rcpt to:<bob@example.org>", "250 2.1.5");
        talk.expect("DATA", "354 ");
        talk.expect("Subject: x\r\n\r\n..\r\n.", "250 2.0.0");
    }
    let recipients = ["bob@example.org", "carol@example.org"].map(|text| ExitAddress::parse(text).unwrap());
    assert_eq!(talk.taken.len(), 5);
    for Submission { identity, recipients: to, octets } in &talk.taken {
        assert_eq!((identity.as_str(), &to[..]), ("alice", &recipients[..]), "nobody is sent a mail twice");
        assert_eq!(octets, b"Subject: x\r\n\r\n.\r\n");
    }
}

/// What a client sends that pipelines all it can, and more.
const PIPELINE: &str = "EHLO c\r\nAUTH PLAIN AGFsaWNlAHNlc2FtZQ==\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.org>\r\n\
    RCPT TO:<bad@[192.0.2.1]>\r\nDATA\r\nhi\r\n..\r\n.\r\nNOOP\r\nMAIL FROM:<>\r\nRSET\r\nMAIL FROM:<>\r\n\
    RCPT TO:<bob@example.org>\r\nDATA\r\n.\r\nQUIT\r\n";
const PIPELINE_CODES: &str = "250 235 250 250 553 354 250 250 250 250 250 250 354 250 221";

#[test]
fn pipelined_commands_and_mails_are_answered_in_order() {
    let mut talk = Talk::new();
    talk.say(PIPELINE);
    assert_eq!(talk.codes(), PIPELINE_CODES);
    assert!(talk.closed);
    assert_eq!(talk.taken.iter().map(|mail| mail.octets.as_slice()).collect::<Vec<_>>(), [&b"hi\r\n.\r\n"[..], b""]);
}

#[test]
fn octets_may_come_one_by_one() {
    let mut talk = Talk::new();
    for octet in PIPELINE.bytes() {
        talk.say([octet]);
    }
    assert_eq!(talk.codes(), PIPELINE_CODES);
    assert_eq!(talk.taken.len(), 2);
}

#[test]
fn everything_has_its_place() {
    let mut talk = Talk::new();
    talk.expect("MAIL FROM:<>", "503 5.5.1");
    talk.expect("AUTH PLAIN AGFsaWNlAHNlc2FtZQ==", "503 5.5.1");
    talk.reply("EHLO client");
    talk.expect("MAIL FROM:<>", "530 5.7.0");
    talk.expect("RCPT TO:<bob@example.org>", "530 5.7.0");
    talk.expect("DATA", "530 5.7.0");
    talk.expect("AUTH PLAIN AGFsaWNlAHNlc2FtZQ==", "235 2.7.0");
    talk.expect("AUTH PLAIN AGFsaWNlAHNlc2FtZQ==", "503 5.5.1");
    talk.expect("RCPT TO:<bob@example.org>", "503 5.5.1");
    talk.expect("DATA", "503 5.5.1");
    talk.expect("MAIL FROM:<>", "250 2.1.0");
    talk.expect("MAIL FROM:<>", "503 5.5.1");
    talk.expect("DATA", "554 5.5.1");
    talk.expect("RCPT TO:<bob@example.org>", "250 2.1.5");
    talk.expect("RSET", "250 2.0.0");
    talk.expect("DATA", "503 5.5.1");
    talk.expect("MAIL FROM:<>", "250 2.1.0");
    talk.reply("EHLO again");
    talk.expect("DATA", "503 5.5.1");
    talk.expect("MAIL FROM:<>", "250 2.1.0");
}

#[test]
fn third_wrong_password_ends_the_session() {
    let mut talk = Talk::new();
    talk.reply("EHLO client");
    talk.expect("AUTH PLAIN AGFsaWNlAHdyb25n", "535 5.7.8");
    talk.expect("AUTH LOGIN Ym9i", "334");
    talk.expect("c2VzYW1l", "535 5.7.8");
    assert!(!talk.closed);
    talk.expect("AUTH PLAIN AGFsaWNlAHdyb25n", "535 5.7.8");
    assert!(talk.closed);
}

#[test]
fn authentication_that_cannot_be_is_refused() {
    let mut talk = Talk::new();
    talk.reply("EHLO client");
    talk.expect("AUTH CRAM-MD5", "504 5.5.4");
    talk.expect("AUTH", "501 5.5.2");
    talk.expect("AUTH PLAIN ***", "501 5.5.2");
    talk.expect("AUTH PLAIN =", "501 5.5.2");
    talk.expect("AUTH PLAIN YWxpY2U=", "501 5.5.2");
    talk.expect("AUTH PLAIN /////w==", "501 5.5.2");
    talk.expect("AUTH PLAIN Ym9iAGFsaWNlAHNlc2FtZQ==", "535 5.7.8");
    talk.expect("AUTH PLAIN", "334");
    talk.expect("*", "501 5.0.0");
    talk.expect("AUTH LOGIN", "334");
    talk.expect("*", "501 5.0.0");
    talk.expect("AUTH PLAIN AG5vYm9keS1rbm93cwB4", "454 4.7.0");
    talk.expect("AUTH PLAIN AGFsaWNlAHNlc2FtZQ==", "235 2.7.0");
}

#[test]
fn recipient_that_cannot_be_reached_is_refused_at_once() {
    let mut talk = Talk::welcome();
    talk.reply("MAIL FROM:<>");
    talk.expect("RCPT TO:<>", "553 5.1.3");
    talk.expect("RCPT TO:<postmaster>", "553 5.1.3");
    talk.expect("RCPT TO:<bob>", "553 5.1.3");
    talk.expect("RCPT TO:<bob@[192.0.2.1]>", "553 5.1.3");
    talk.expect("RCPT TO:<bob@192.0.2.1>", "553 5.1.3");
    talk.expect("RCPT TO:<\"bob@evil\"@example.org>", "553 5.1.3");
    talk.expect("RCPT TO:<\"bob smith\"@example.org>", "553 5.1.3");
    talk.expect("RCPT TO:<bob@b\u{fc}cher.example>", "553 5.6.7");
    talk.expect("RCPT TO:<frida@mbox.alt>", "553 5.1.2");
    talk.expect("RCPT TO:<frida@7.mbox.alt>", "553 5.1.2");
    talk.expect("RCPT TO:<bob@example.alt>", "553 5.1.2");
    talk.expect("RCPT TO:<frida@gamma.mbox.alt>", "550 5.4.4");
    talk.expect("RCPT TO:<bob@nonet.example>", "451 4.4.0");
    talk.expect("RCPT TO:<bob@nopath.example>", "451 4.4.4");
    talk.expect("RCPT TO:bob@example.org", "501 5.5.2");
    talk.expect("RCPT TO:<bob@example.org> NOTIFY=NEVER", "555 5.5.4");
    talk.expect("RCPT TO:<bob@example.org> X-Y=Z", "555 5.5.4");
    talk.expect("DATA", "554 5.5.1");
}

#[test]
fn sender_that_is_no_address_or_asks_for_more_than_is_offered_is_refused() {
    let mut talk = Talk::welcome();
    talk.expect("MAIL FROM:<alice>", "553 5.1.7");
    talk.expect("MAIL FROM:alice@example.net", "501 5.5.2");
    talk.expect("MAIL FROM:<> BODY=BINARYMIME", "555 5.5.4");
    talk.expect("MAIL FROM:<> RET=HDRS", "555 5.5.4");
    talk.expect("MAIL FROM:<> REQUIRETLS", "555 5.5.4");
    talk.expect("MAIL FROM:<> X-Y=Z", "555 5.5.4");
    talk.expect("MAIL FROM:<> SIZE=x", "501 5.5.4");
    talk.expect("MAIL FROM:<> SIZE=20000000", "250 2.1.0");
}

#[test]
fn mail_that_will_be_too_large_is_refused_before_it_comes() {
    let mut talk = Talk::welcome();
    talk.expect("MAIL FROM:<> SIZE=20000001", "552 5.3.4");
    talk.expect("MAIL FROM:<> SIZE=9999999999999999", "552 5.3.4");
    // Numbers that smtp-proto does not count to.
    talk.expect("MAIL FROM:<> SIZE=99999999999999999999", "552 5.3.4");
    talk.expect("MAIL FROM:<> SIZE=184467440737095516150", "552 5.3.4");
    talk.expect("MAIL FROM:<a@b.c> size=100000000000000000000000000 BODY=8BITMIME", "552 5.3.4");
    talk.expect("MAIL FROM:<> SIZE=99999999999999999999x", "501 5.5.4");
    talk.expect("MAIL FROM:<> SIZE=0000000000000000000000100", "250 2.1.0");
    talk.expect("RSET", "250 2.0.0");
    talk.expect("RCPT TO:<bob@example.org>", "503 5.5.1");
}

#[test]
fn mail_that_grows_too_large_is_refused_at_its_end() {
    let policy = Policy { max_size: 1000, ..SmtpConfig::default().policy().unwrap() };
    let mut talk = Talk::with(policy);
    talk.say("EHLO c\r\nAUTH PLAIN AGFsaWNlAHNlc2FtZQ==\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n");
    assert_eq!(talk.codes(), "250 235 250 250 354");
    talk.say("x\r\n".repeat(1000));
    assert_eq!(talk.hear(), "");
    talk.expect(".", "552 5.3.4");
    talk.expect("DATA", "503 5.5.1");
    assert!(talk.taken.is_empty());
}

#[test]
fn line_of_a_mail_that_is_too_long_is_refused_at_its_end() {
    let mut talk = Talk::in_data();
    talk.say("x".repeat(100_000));
    talk.expect("\r\n.", "554 5.6.0");
}

#[test]
fn one_recipient_too_many_is_told_to_come_again() {
    let policy = Policy { max_recipients: 2, ..SmtpConfig::default().policy().unwrap() };
    let mut talk = Talk::with(policy);
    talk.say("EHLO c\r\nAUTH PLAIN AGFsaWNlAHNlc2FtZQ==\r\nMAIL FROM:<>\r\n");
    talk.hear();
    talk.expect("RCPT TO:<a@example.org>", "250 2.1.5");
    talk.expect("RCPT TO:<b@example.org>", "250 2.1.5");
    talk.expect("RCPT TO:<c@example.org>", "452 4.5.3");
    talk.expect("RCPT TO:<b@EXAMPLE.org>", "250 2.1.5");
    talk.expect("DATA", "354 ");
}

#[test]
fn mail_that_is_refused_leaves_the_session_in_order() {
    for (refuse, reply) in [
        ((|| Refused::Letter(NoLetter::NoText)) as fn() -> Refused, "554 5.6.1"),
        (|| Refused::Letter(NoLetter::Encrypted), "554 5.6.1"),
        (|| Refused::Letter(NoLetter::TransferEncoding), "554 5.6.0"),
        (|| Refused::Exit(NoExit::TooLarge { limit: 7 }), "552 5.3.4"),
        (|| Refused::Exit(NoExit::NoNetwork), "451 4.4.0"),
        (|| Refused::Exit(no_way()), "451 4.4.4 no path leads back for the reply block: no recommended mix"),
        (|| Refused::Store(mix::store::StoreError::Full), "452 4.3.1"),
        (|| Refused::Store(mix::store::StoreError::Busy), "451 4.3.0"),
        (|| Refused::Crashed, "554 5.3.0"),
        (|| Refused::StoreCrashed, "451 4.3.0"),
    ] {
        let mut talk = Talk::in_data();
        talk.refuse = Some(refuse);
        talk.expect("x\r\n.", reply);
        talk.expect("RCPT TO:<bob@example.org>", "503 5.5.1");
        talk.expect("MAIL FROM:<>", "250 2.1.0");
    }
}

#[test]
fn nothing_but_crlf_dot_crlf_ends_a_mail() {
    for no_end in
        ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\r\n.\r\r\n", "\r\n.\0\r\n", "\r\n. \r\n"]
    {
        let mut talk = Talk::in_data();
        talk.say(format!("text{no_end}MAIL FROM:<>\r\nRCPT TO:<evil@example.org>\r\nDATA\r\nsmuggled\r\n"));
        assert_eq!(talk.hear(), "", "{no_end:?}");
        talk.say(".\r\nNOOP\r\n");
        assert_eq!(talk.codes(), "250 250", "{no_end:?}");
        assert_eq!(talk.taken.len(), 1, "{no_end:?}");
    }
}

#[test]
fn command_line_that_does_not_end_in_crlf_is_refused() {
    let mut talk = Talk::welcome();
    talk.say("NOOP\nMAIL FROM:<>\n");
    assert_eq!(talk.codes(), "500 500");
    talk.say("NOOP\rMAIL FROM:<>\r\n");
    assert_eq!(talk.codes(), "500");
    talk.expect("RCPT TO:<bob@example.org>", "503 5.5.1");
}

#[test]
fn long_lines_are_refused_and_what_follows_is_understood() {
    let mut talk = Talk::new();
    talk.reply("EHLO client");
    talk.expect(&format!("NOOP {}", "x".repeat(MAX_COMMAND_LEN - 7)), "250 2.0.0");
    talk.expect(&format!("NOOP {}", "x".repeat(MAX_COMMAND_LEN - 6)), "500 5.5.2");
    talk.expect(&format!("AUTH PLAIN {}", "A".repeat(MAX_AUTH_LEN - 13)), "501 5.5.2");
    talk.expect(&format!("AUTH PLAIN {}", "A".repeat(MAX_AUTH_LEN)), "500 5.5.2");
    talk.expect("AUTH LOGIN", "334");
    talk.expect(&"A".repeat(MAX_AUTH_LEN), "500 5.5.6");
    for _ in 0..1000 {
        talk.say("x".repeat(10_000));
    }
    assert_eq!(talk.hear(), "");
    talk.expect("", "500 5.5.2");
    talk.expect("NOOP", "250 2.0.0");
}

#[test]
fn what_is_not_offered_is_refused() {
    let mut talk = Talk::welcome();
    for line in ["STARTTLS", "EXPN x", "ETRN x", "LHLO x"] {
        talk.expect(line, "502 5.5.1");
    }
    for line in ["", "HELLO", "GET / HTTP/1.1", "\0", "EHLOx", "DATAx"] {
        talk.expect(line, "500 5.5.2");
    }
    talk.expect("EHLO", "501 5.5.2");
    talk.expect("NOOP whatever", "250 2.0.0");
    talk.expect("VRFY bob", "252 2.0.0");
    talk.expect("HELP", "214 2.0.0");
    talk.expect("QUIT", "221 2.0.0");
    assert!(talk.closed);
}

#[test]
fn mail_in_chunks_is_not_taken_for_commands() {
    let mut talk = Talk::welcome();
    talk.reply("MAIL FROM:<>");
    talk.say("BDAT 6 LAST\r\nQUIT\r\n");
    assert_eq!(talk.codes(), "502");
    assert!(talk.closed);
}

#[test]
fn whoever_speaks_no_smtp_is_sent_away() {
    let mut talk = Talk::new();
    for _ in 0..19 {
        talk.expect("GET / HTTP/1.1", "500 5.5.2");
    }
    talk.say("GET / HTTP/1.1\r\nQUIT\r\n");
    assert_eq!(talk.codes(), "500 421");
    assert!(talk.closed);
}

#[test]
fn last_words_say_why() {
    let codes = [Goodbye::Timeout, Goodbye::Shutdown, Goodbye::Busy].map(Goodbye::line);
    assert!(
        codes[0].starts_with("421 4.4.2 ") && codes[1].starts_with("421 4.3.2 ") && codes[2].starts_with("421 4.3.2 ")
    );
}

#[test]
fn nothing_of_a_client_is_printed() {
    let mut talk = Talk::in_data();
    talk.say("secret\r\n.\r\n");
    assert_eq!(format!("{:?} {:?}", talk.taken[0], talk.session), "Submission(..) Session(..)");
}

proptest! {
    #[test]
    fn random_octets_never_confuse_the_session(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let mut talk = Talk::new();
        for chunk in chunks {
            if !talk.closed {
                talk.say(chunk);
            }
        }
        prop_assert!(talk.taken.is_empty());
        prop_assert!(talk.heard.is_empty() || talk.heard.ends_with(b"\r\n"));
    }

    #[test]
    fn truncated_and_garbled_sessions_never_confuse_it(
        cut in 0..PIPELINE.len(), at in 0..PIPELINE.len(), octet in any::<u8>(), chunk in 1..50usize,
    ) {
        let mut octets = PIPELINE.as_bytes().to_vec();
        octets[at] = octet;
        octets.truncate(cut);
        let mut talk = Talk::new();
        for chunk in octets.chunks(chunk) {
            if !talk.closed {
                talk.say(chunk);
            }
        }
        prop_assert!(talk.heard.is_empty() || talk.heard.ends_with(b"\r\n"));
        prop_assert!(talk.taken.len() <= 2);
    }
}
