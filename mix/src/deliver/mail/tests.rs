use std::time::{Duration, UNIX_EPOCH};

use mail_parser::{HeaderValue, MessageParser};

use super::lines::FOLD_AT;
use super::text::QUOTED_PRINTABLE_LINE_LEN;
use super::*;
use crate::crypto::CounterRng;
use crate::crypto::pk::PrivateKey;
use crate::crypto::stream::StreamKey;
use crate::deliver::opt_out::OptOutKey;

fn config() -> MailConfig {
    let return_address = Some(Mailbox::parse("nobody@exit.example").unwrap());
    MailConfig { return_address, ..MailConfig::default() }
}

fn write_with(config: MailConfig, heading: Heading, content: Content) -> String {
    write_by(MailWriter::new(config).unwrap(), heading, content)
}

fn write_by(writer: MailWriter, heading: Heading, content: Content) -> String {
    let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
    let to = Mailbox::parse("bob@example.org").unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(1_795_395_600);
    let mail = writer.write(&to, heading, content, now, &mut rng);
    let mail = String::from_utf8(mail).unwrap();
    assert!(mail.is_ascii());
    assert!(!mail.replace("\r\n", "").contains(['\r', '\n']), "{mail:?}");
    assert!(mail.split("\r\n").all(|line| line.len() <= MAX_LINE_LEN), "{mail}");
    mail
}

fn write(heading: Heading, content: Content) -> String {
    write_with(config(), heading, content)
}

fn body_of(mail: &str) -> String {
    let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
    parsed.body_text(0).unwrap().into_owned()
}

fn subject_of(subject: &str) -> (String, String) {
    let mail = write(Heading { subject: Some(subject), ..Heading::default() }, Content::Text("x"));
    let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
    (parsed.subject().unwrap().to_owned(), mail)
}

fn from_of(name: &str) -> (Option<String>, String) {
    let mail = write(Heading { from: Some(name), ..Heading::default() }, Content::Text("x"));
    let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
    let from = parsed.from().unwrap().first().unwrap();
    assert_eq!(parsed.from().unwrap().iter().count(), 1);
    assert_eq!(from.address(), Some("nobody@exit.example"));
    let line = mail.split("\r\n").find(|line| line.starts_with("From: ")).unwrap();
    (from.name().map(str::to_owned), line.to_owned())
}

#[test]
fn ascii_text_goes_out_as_it_is_under_the_headers_of_the_reference() {
    let heading = Heading {
        subject: Some("A subject"),
        from: Some("Some Body"),
        in_reply_to: Some("<a@b>"),
        references: Some("<a@b> <c@d>"),
    };
    let config = MailConfig {
        abuse: Some("abuse@exit.example".into()),
        comments: Some("See https://exit.example".into()),
        ..config()
    };
    let writer = MailWriter::new(config).unwrap().under(Some("Nobody knows the sender.\n".into()));
    let mail = write_by(writer, heading, Content::Text("Hello\n.\nFrom me\n"));
    let (before, after) = mail.split_once("Message-ID: <").unwrap();
    let (id, after) = after.split_once('>').unwrap();
    assert_eq!(
        before,
        "To: bob@example.org\r\nFrom: \"[Anon] Some Body\" <nobody@exit.example>\r\nSubject: A subject\r\n\
         In-Reply-To: <a@b>\r\nReferences: <a@b> <c@d>\r\nX-Anonymous: yes\r\nX-Abuse: abuse@exit.example\r\n\
         Comments: See https://exit.example\r\nDate: Mon, 23 Nov 2026 01:00:00 +0000\r\n"
    );
    assert_eq!((id.len(), id.split_once('@').unwrap().1), (32 + 1 + "exit.example".len(), "exit.example"));
    assert_eq!(
        after,
        "\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
         Nobody knows the sender.\r\n\r\nHello\r\n.\r\nFrom me\r\n"
    );
}

#[test]
fn mail_says_how_to_get_no_more_of_them_above_the_message_and_to_programs() {
    let key = OptOutKey::of(&PrivateKey::generate(1024, &mut rand::rng()).unwrap());
    let to = Mailbox::parse("bob@example.org").unwrap();
    let offer = Offer::new(key, Some("https://exit.example/o".into()), None).unwrap();
    let (headers, sentence) = (offer.headers(&to), offer.sentence(&to));
    let notice = Some("Nobody knows the sender.".into());
    let writer = MailWriter::new(config()).unwrap().under(notice).offering(Some(offer));
    let mut rng = CounterRng::new(&StreamKey::new([7; 16]));
    let mail = writer.write(&to, Heading::default(), Content::Text("Hello\n"), UNIX_EPOCH, &mut rng);
    let mail = String::from_utf8(mail).unwrap();
    assert!(mail.contains(&format!("\r\nX-Anonymous: yes\r\n{headers}Date: ")), "{mail}");
    assert!(mail.ends_with(&format!("\r\n\r\nNobody knows the sender.\r\n\r\n{sentence}\r\n\r\nHello\r\n")), "{mail}");
    let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
    let url = format!("https://exit.example/o?token={}", &sentence.split_once("token=").unwrap().1);
    assert!(
        matches!(parsed.header("List-Unsubscribe"), Some(HeaderValue::Address(found))
        if found.first().and_then(|link| link.address.as_deref()) == Some(url.as_str())),
        "{mail}"
    );
}

#[test]
fn message_without_headers_gets_the_defaults() {
    let mail = write(Heading::default(), Content::Text("x\n"));
    let expected = "To: bob@example.org\r\nFrom: nobody@exit.example\r\nSubject: Type III Anonymous Message\r\n\
                    X-Anonymous: yes\r\nDate: ";
    assert!(mail.starts_with(expected), "{mail}");
    let (subject, _) = subject_of(" \t ");
    assert_eq!(subject, "Type III Anonymous Message");
}

#[test]
fn utf8_text_arrives_byte_for_byte() {
    let texts = [
        "Grüße aus Köln = \u{20ac} 5\n\n  indented\t\ntrailing blanks  \n.\n..\nFrom x\n",
        "没有名字的信\n",
        &format!("{}\n{}\n", "é".repeat(3000), "a ".repeat(500)),
        &format!("{}\n", "x".repeat(999)),
    ];
    for text in texts {
        let mail = write(Heading::default(), Content::Text(text));
        assert!(mail.contains("Content-Transfer-Encoding: quoted-printable\r\n"));
        let (_, body) = mail.split_once("\r\n\r\n").unwrap();
        assert!(body.split("\r\n").all(|line| line.len() <= QUOTED_PRINTABLE_LINE_LEN));
        assert_eq!(body_of(&mail).replace("\r\n", "\n"), text);
    }
}

#[test]
fn line_ends_of_either_kind_become_one_kind() {
    let mail = write(Heading::default(), Content::Text("a\r\nb\nc"));
    assert!(mail.ends_with("\r\n\r\na\r\nb\r\nc\r\n"));
}

#[test]
fn only_what_a_mail_can_show_is_text() {
    assert_eq!(as_text("Grüße\r\n\ttab\n".as_bytes()), Some("Grüße\r\n\ttab\n"));
    assert_eq!(as_text(b""), Some(""));
    for octets in [&b"caf\xe9"[..], b"a\0b", b"bell\x07", b"lone\rcr", b"cr at end\r", b"\x1b[2J", b"\xc2\x85"] {
        assert_eq!(as_text(octets), None, "{octets:?}");
    }
}

#[test]
fn armour_comes_with_a_sentence_that_says_why() {
    let armour = "-----BEGIN TYPE III ANONYMOUS MESSAGE-----\n";
    for (content, words) in [
        (Content::Binary { armour }, "is not text"),
        (Content::Fragment { armour }, "one of several parts"),
        (Content::Encrypted { armour }, "with a key only"),
        (Content::Overcompressed { armour }, "compressed"),
    ] {
        let mail = write(Heading::default(), content);
        let (explanation, rest) =
            body_of(&mail).split_once("\r\n\r\n").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert!(explanation.contains(words), "{explanation}");
        assert_eq!(rest.replace("\r\n", "\n"), armour);
    }
}

#[test]
fn notice_that_says_nothing_leaves_no_room_for_itself() {
    for notice in ["", "\n \n"] {
        let writer = MailWriter::new(config()).unwrap().under(Some(notice.into()));
        assert!(write_by(writer, Heading::default(), Content::Text("x\n")).ends_with("7bit\r\n\r\nx\r\n"));
    }
}

#[test]
fn armour_is_lines_of_the_mail_whatever_stands_above_it() {
    let armour = "-----BEGIN TYPE III ANONYMOUS MESSAGE-----\nMessage-type: binary\n\nYQ==\n                  -----END TYPE III ANONYMOUS MESSAGE-----\n";
    let lines = armour.replace('\n', "\r\n");
    for notice in ["Grüße", &"x".repeat(MAX_LINE_LEN + 1)] {
        for content in [
            Content::Binary { armour },
            Content::Fragment { armour },
            Content::Encrypted { armour },
            Content::Overcompressed { armour },
        ] {
            let writer = MailWriter::new(config()).unwrap().under(Some(notice.into()));
            let mail = write_by(writer, Heading::default(), content);
            assert!(mail.contains(&format!("us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n\r\n{lines}")), "{mail}");
            let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
            let text = parsed.body_text(0).unwrap().replace("\r\n", "\n");
            assert!(text.starts_with(&format!("{notice}\n\nThe message below ")), "{text}");
            assert_eq!(parsed.body_text(1).unwrap().trim_end(), lines.trim_end());
        }
    }
}

#[test]
fn non_ascii_subject_goes_out_in_encoded_words_and_comes_back_whole() {
    let subject = "Grüße, ".repeat(40) + "Ende 没有 \u{1f980}";
    let (back, mail) = subject_of(&subject);
    assert_eq!(back, subject);
    assert!(mail.split("\r\n").all(|line| line.len() <= FOLD_AT));
}

#[test]
fn long_subject_is_folded_and_unfolds_to_itself() {
    let subject = "word  and ".repeat(60).trim_end().to_owned();
    let (_, mail) = subject_of(&subject);
    let (_, rest) = mail.split_once("Subject: ").unwrap();
    let (folded, _) = rest.split_once("\r\nX-Anonymous").unwrap();
    assert!(folded.split("\r\n").all(|line| line.len() <= FOLD_AT && !line.trim().is_empty()));
    assert_eq!(folded.replace("\r\n", ""), subject);
    // A word longer than any line has no place to fold.
    let (back, _) = subject_of(&"x".repeat(1500));
    assert_eq!(back, "x".repeat(1500));
}

#[test]
fn encoded_words_of_the_sender_are_read_and_written_anew() {
    let (back, mail) = subject_of("Re: =?iso-8859-1?Q?Gr=FC=DFe?= =?utf-8?B?w7w=?=");
    assert!(!mail.contains("iso-8859-1"), "{mail}");
    assert_eq!(back, "Re: Grüßeü");
    let (name, line) = from_of("Dr. =?iso-8859-1?Q?J=F6rg?= X");
    assert_eq!(line, "From: \"[Anon]\" =?utf-8?B?RHIuIErDtnJnIFg=?= <nobody@exit.example>");
    assert_eq!(name.unwrap(), "[Anon] Dr. Jörg X");
    let (name, line) = from_of("=?utf-8?Q?Joe?=");
    assert_eq!((name.as_deref(), line.as_str()), (Some("[Anon] Joe"), "From: \"[Anon] Joe\" <nobody@exit.example>"));
}

#[test]
fn words_that_say_nothing_are_shown_as_they_are() {
    for hidden in ["=?utf-8?Q?=FF=FE?=", "=?us-ascii?Q?=FC?=", "=?utf-8?X?a?=", "=?utf-8?Q?a?b?=", "=?"] {
        let (back, mail) = subject_of(hidden);
        assert_eq!(back, hidden);
        assert!(!mail.contains(&format!("Subject: {hidden}\r\n")), "{mail}");
        assert_eq!(from_of(hidden).0.unwrap().replace("[Anon] ", ""), hidden);
    }
}

#[test]
fn words_that_hide_a_line_end_or_a_direction_show_neither() {
    for hidden in ["=?utf-8?Q?a=0D=0ABcc:x?=", "=?utf-8?B?YQ0KQmNjOng=?=", "=?utf-8?Q?=E2=80=AEa=08=1BBcc:x?="] {
        let (back, mail) = subject_of(hidden);
        assert_eq!(back, "a  Bcc:x");
        assert!(mail.contains("\r\nSubject: a  Bcc:x\r\n"), "{mail}");
    }
    assert_eq!(from_of("=?utf-8?Q?Bob_=E2=80=AEmoc?=").1, "From: \"[Anon] Bob moc\" <nobody@exit.example>");
}

#[test]
fn names_are_tagged_quoted_and_encoded() {
    assert_eq!(from_of("Jörg Müller").0.unwrap(), "[Anon] Jörg Müller");
    assert_eq!(from_of(" a  b\\c\t").1, "From: \"[Anon] a b\\\\c\" <nobody@exit.example>");
    assert_eq!(from_of("bob@example.com <x>").0.unwrap(), "[Anon] bob@example.com <x>");
    assert!(from_of(&"n".repeat(1200)).0.unwrap().ends_with("nnn"));
    let config_without_tag = MailConfig { from_tag: String::new(), ..config() };
    for (name, shown) in [("Joe", "From: \"Joe\" <"), ("=?utf-8?Q?J=C3=B6rg?=", "From: =?utf-8?B?SsO2cmc=?= <")] {
        let heading = Heading { from: Some(name), ..Heading::default() };
        assert!(write_with(config_without_tag.clone(), heading, Content::Text("x")).contains(shown));
    }
    let config = MailConfig { allow_from: false, ..config() };
    let mail = write_with(config, Heading { from: Some("Joe"), ..Heading::default() }, Content::Text("x"));
    assert!(mail.contains("\r\nFrom: nobody@exit.example\r\n"));
}

#[test]
fn name_with_a_forbidden_character_is_left_out() {
    for name in [
        "Bob\" <bob@example.com>",
        "x]",
        "[Friend]",
        "a: b",
        " ",
        "=?utf-8?Q?=5BFriend=5D?=",
        "=?utf-8?Q?=22_=3Cceo=40bank.example=3E=3A?=",
        "=?utf-8?B?YTpi?=",
    ] {
        assert_eq!(from_of(name).1, "From: nobody@exit.example", "{name}");
    }
}

#[test]
fn no_value_begins_a_header_of_its_own() {
    let evil = "x\r\nBcc: eve@example.com\r\n\r\nbody\nX: y\u{85}\0";
    let heading = Heading { subject: Some(evil), from: Some(evil), in_reply_to: Some(evil), references: Some(evil) };
    let mail = write(heading, Content::Text("text\n"));
    let parsed = MessageParser::default().parse(mail.as_bytes()).unwrap();
    assert_eq!(parsed.bcc().map(|_| ()), None);
    assert!(matches!(parsed.header("X"), None | Some(HeaderValue::Empty)));
    assert_eq!(parsed.body_text(0).unwrap(), "text\r\n");
    assert!(mail.split("\r\n").all(|line| !line.starts_with("Bcc") && !line.starts_with("body")));
}

#[test]
fn line_end_of_half_a_kind_is_encoded() {
    for text in ["a\r.\r\nb\n", "a\r", "\0"] {
        let mail = write(Heading::default(), Content::Text(text));
        assert!(!mail.replace("\r\n", "").contains(['\r', '\n', '\0']), "{mail:?}");
    }
}

#[test]
fn message_ids_that_are_none_are_left_out() {
    let long = format!("<{}@x>", "y".repeat(1000));
    for none in ["<é@x>", &long, "not an id (", "<a@b>, <c@d>", "<a@b>\r\nBcc: c@d"] {
        let heading = Heading { in_reply_to: Some(none), references: Some(none), ..Heading::default() };
        let mail = write(heading, Content::Text("x"));
        assert!(!mail.contains("In-Reply-To") && !mail.contains("References"), "{mail}");
    }
}

#[test]
fn writer_without_return_address_is_refused() {
    assert_eq!(MailWriter::new(MailConfig::default()).unwrap_err(), NoReturnAddress);
}

#[test]
fn settings_are_read_as_an_operator_writes_them() {
    let json = r#"{"return_address": "nobody@exit.example", "abuse": "x", "from_tag": "[A]"}"#;
    let read: MailConfig = serde_json::from_str(json).unwrap();
    let expected = MailConfig { abuse: Some("x".into()), from_tag: "[A]".into(), ..config() };
    assert_eq!(read, expected);
    assert_eq!(serde_json::from_str::<MailConfig>(&serde_json::to_string(&expected).unwrap()).unwrap(), expected);
    assert!(serde_json::from_str::<MailConfig>(r#"{"return_address": "nobody"}"#).is_err());
    assert!(serde_json::from_str::<MailConfig>(r#"{"subjet": "x"}"#).is_err());
}

#[test]
fn nothing_of_a_message_is_printed() {
    assert_eq!(format!("{:?}", Content::Text("secret")), "Text(..)");
}
