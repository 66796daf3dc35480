//! The corpus of SMTP smuggling, through the exit's own writer and its conversation with a mail server: each message is one
//! mail, whoever takes it.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use mix::deliver::mail::{Content, Heading, MailConfig, MailWriter, as_text};
use mix::deliver::smtp::{DeliverError, SmtpExit, SmtpExitConfig};
use mix::path::Mailbox;
use mix::payload::armor::{ArmoredMessage, messages_from_text};
use mixgate_tests::hostile::{bodies, values};
use mixgate_tests::letter::letters;
use mixgate_tests::mails::dice;
use mixgate_tests::peers::{DOMAIN, Door, Peer};
use mixgate_tests::strict::Strict;
use mixgate_tests::{PATIENCE, until};
use tokio::runtime::Runtime;

/// All that a mail of an exit may have in its headers here, and each once.
const HEADERS: [&str; 11] = [
    "To",
    "From",
    "Subject",
    "In-Reply-To",
    "References",
    "X-Anonymous",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
];

/// What a mail that smuggles has in it.
const COMMAND: &[u8] = b"RCPT TO:";

/// A message of a stranger, as it leaves an exit.
struct Hostile {
    to: Mailbox,
    body: Vec<u8>,
    mail: Vec<u8>,
    /// Whether it smuggles: what a server would do then.
    has_commands: bool,
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn return_address() -> Mailbox {
    mailbox("nobody@exit.example")
}

/// The whole corpus, each message to a recipient of its own.
fn corpus() -> Vec<Hostile> {
    let config = MailConfig { return_address: Some(return_address()), ..MailConfig::default() };
    let (writer, mut dice) = (MailWriter::new(config).unwrap(), dice("smuggling"));
    let values = values().into_iter().map(|value| (b"text\n".to_vec(), Some(value)));
    let messages = bodies().into_iter().map(|body| (body, None)).chain(values);
    let write = |(number, (body, value)): (usize, (Vec<u8>, Option<String>))| {
        let value = value.as_deref();
        let heading = Heading { subject: value, from: value, in_reply_to: value, references: value };
        let to = mailbox(&format!("smuggling-{number}@{DOMAIN}"));
        let armour = String::from_utf8(ArmoredMessage::Binary(body.clone()).to_text()).unwrap();
        let content = as_text(&body).map_or(Content::Binary { armour: &armour }, Content::Text);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_930_089_600);
        let mail = writer.write(&to, heading, content, now, &mut dice);
        let has_commands = [&body[..], value.unwrap_or_default().as_bytes()]
            .iter()
            .any(|text| text.windows(COMMAND.len()).any(|octets| octets == COMMAND));
        Hostile { to, body, mail, has_commands }
    };
    messages.enumerate().map(write).collect()
}

/// Hands a mail to the server there, as an exit does.
async fn hand_over(server: SocketAddr, to: &Mailbox, mail: &[u8]) -> Result<(), DeliverError> {
    let config = SmtpExitConfig { host: server.ip().to_string(), port: server.port(), ..SmtpExitConfig::default() };
    let mut conversation = SmtpExit::new(&config, &return_address()).unwrap().call(&return_address()).await?;
    conversation.offer(to).await?;
    conversation.hand_over(mail).await
}

/// The text or the armour says what the message said.
fn says(text: &str, body: &[u8]) -> bool {
    match as_text(body) {
        Some(body) => text.trim_end_matches('\n') == body.replace("\r\n", "\n").trim_end_matches('\n'),
        None => {
            let found = messages_from_text(text.as_bytes()).unwrap();
            found.len() == 1 && found.iter().all(|found| found.item.contents() == body)
        }
    }
}

/// What each of the mails in these files says, by recipient.
fn all_say_what_was_sent(files: &[PathBuf], corpus: &[Hostile]) {
    let letters = letters(files);
    for Hostile { to, body, .. } in corpus {
        let mut mine = letters.iter().filter(|letter| letter.to == to.as_str());
        let (Some(letter), None) = (mine.next(), mine.next()) else { panic!("{to}: not one mail") };
        assert!(says(&letter.text, body), "{to}: {:?} became {:?}", String::from_utf8_lossy(body), letter.text);
    }
    assert_eq!(letters.len(), corpus.len(), "and no other");
}

/// The names of the headers of a mail, and whether each line of them is one.
fn header_names(mail: &str) -> Vec<&str> {
    let (head, _) = mail.split_once("\r\n\r\n").unwrap();
    let lines = head.split("\r\n").filter(|line| !line.starts_with([' ', '\t']));
    lines.map(|line| line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}")).0).collect()
}

#[test]
fn each_hostile_message_is_one_mail_of_whole_lines() {
    let (corpus, strict, runtime) = (corpus(), Strict::start(), Runtime::new().unwrap());
    for Hostile { to, mail, .. } in &corpus {
        runtime.block_on(hand_over(strict.address, to, mail)).unwrap();
    }
    let heard =
        until("all conversations", PATIENCE, || Some(strict.heard()).filter(|heard| heard.len() >= corpus.len()));
    assert_eq!(heard.len(), corpus.len());
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (number, (said, Hostile { to, mail, .. })) in heard.iter().zip(&corpus).enumerate() {
        let commands: Vec<_> = said.commands.iter().map(|command| String::from_utf8_lossy(command)).collect();
        let expected =
            ["EHLO exit.example", "MAIL FROM:<nobody@exit.example>", &format!("RCPT TO:<{to}>"), "DATA", "QUIT"];
        assert_eq!(commands, expected);
        let [arrived] = &said.mails[..] else { panic!("{} mails for {to}", said.mails.len()) };
        let lines = std::str::from_utf8(arrived).unwrap();
        for line in lines.split_terminator("\r\n") {
            // The dot in front of a dot does not count (RFC 5321 4.5.3.1.6).
            let len = line.strip_prefix('.').unwrap_or(line).len();
            let is_whole = len <= 998 && !line.contains(['\r', '\n', '\0']) && line.is_ascii();
            assert!(is_whole && line != ".", "{to}: {line:?}");
        }
        let names = header_names(lines);
        let once: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(once.len(), names.len(), "{to}: a header twice: {names:?}");
        assert!(names.iter().all(|name| HEADERS.contains(name)), "{to}: {names:?}");
        let undotted: Vec<&str> = lines.split("\r\n").map(|line| line.strip_prefix('.').unwrap_or(line)).collect();
        assert_eq!(undotted.join("\r\n").as_bytes(), mail.as_slice(), "{to}: as it was written");
        let file = folder.path().join(number.to_string());
        fs::write(&file, undotted.join("\r\n")).unwrap();
        files.push(file);
    }
    all_say_what_was_sent(&files, &corpus);
}

/// Hands what has commands in it to a server of others, and waits until that has delivered it.
pub(super) fn each_is_one_mail_for(peer: &Peer) {
    let (mut corpus, runtime, server) = (corpus(), Runtime::new().unwrap(), peer.address(Door::Plain));
    corpus.retain(|message| message.has_commands);
    let before: BTreeSet<PathBuf> = peer.files();
    for Hostile { to, mail, .. } in &corpus {
        runtime.block_on(hand_over(server, to, mail)).unwrap_or_else(|e| panic!("{to}: {e}"));
    }
    let new = || peer.files().difference(&before).cloned().collect::<Vec<_>>();
    let files = until("the hostile mails", PATIENCE, || Some(new()).filter(|new| new.len() >= corpus.len()));
    all_say_what_was_sent(&files, &corpus);
    // What was smuggled behind them would have been delivered before what comes now.
    let last = mailbox(&format!("last@{DOMAIN}"));
    runtime.block_on(hand_over(server, &last, b"To: last\r\n\r\n")).unwrap();
    peer.logs_delivery(last.as_str());
    assert_eq!(new().len(), corpus.len() + 1, "{:?} delivered more than was sent", peer.kind);
    assert!(!peer.log().contains("smuggled@"), "{}", peer.log());
}

/// Octets at each place of an address.
fn addresses(octet: u8) -> [Vec<u8>; 6] {
    let with = |before: &str, after: &str| [before.as_bytes(), &[octet], after.as_bytes()].concat();
    [
        with("", "a@b.example"),
        with("a", "a@b.example"),
        with("a", "@b.example"),
        with("a@", "b.example"),
        with("a@b", "b.example"),
        with("a@b.example", ""),
    ]
}

/// What atoms are made of (RFC 5322 3.2.3).
fn is_atom(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&octet)
}

#[test]
fn each_octet_at_each_place_of_an_address_is_refused_or_carried_as_it_is() {
    let (strict, runtime) = (Strict::start(), Runtime::new().unwrap());
    let mut carried = Vec::new();
    for octet in 0..=255 {
        for (place, address) in addresses(octet).into_iter().enumerate() {
            let read = std::str::from_utf8(&address).ok().and_then(|text| Mailbox::parse(text).ok());
            // A dot is one between two words alone; what begins with a pipe is a command to some.
            let is_good = is_atom(octet) && (place, octet) != (0, b'|') || octet == b'.' && [1, 4].contains(&place);
            assert_eq!(read.is_some(), is_good, "{:?}", String::from_utf8_lossy(&address));
            carried.extend(read);
        }
    }
    for to in &carried {
        runtime.block_on(hand_over(strict.address, to, b"\r\n")).unwrap();
    }
    let heard =
        until("all conversations", PATIENCE, || Some(strict.heard()).filter(|heard| heard.len() >= carried.len()));
    for (said, to) in heard.iter().zip(&carried) {
        assert_eq!(said.commands[2], format!("RCPT TO:<{to}>").into_bytes());
        assert_eq!(said.commands.len(), 5, "{to}");
    }
}

#[test]
fn addresses_that_mean_something_else_to_somebody_are_refused() {
    for address in [
        "\"a b\"@b.example",
        "\"a\\\"\"@b.example",
        "a@b.example,c@d.example",
        "a@b.example>\r\nRCPT TO:<c@d.example",
        "a@b.example\r\nDATA",
        "a@b.example\n",
        "a@b.example\r",
        "a@b.example\0",
        "<a@b.example>",
        "@c.example:a@b.example",
        "@c.example,@d.example:a@b.example",
        "a(comment)@b.example",
        "a@b.example(comment)",
        "a@[127.0.0.1]",
        "a@[IPv6:::1]",
        "a@127.0.0.1",
        "a@2130706433",
        "a@b@c.example",
        "a@",
        "@b.example",
        "@",
        "",
        "a",
        ".a@b.example",
        "a.@b.example",
        "a..a@b.example",
        "a@.b.example",
        "a@b..example",
        "a@b.example.",
        "a @b.example",
        "a@b.example SIZE=1",
        "é@b.example",
        "a@bé.example",
        "a\u{202E}@b.example",
        "|sh@b.example",
    ] {
        assert!(Mailbox::parse(address).is_err(), "{address:?}");
    }
}

#[test]
fn long_addresses_fit_a_packet_or_are_refused() {
    let of = |local: usize, domain: usize| Mailbox::parse(&format!("{}@{}", "a".repeat(local), "b".repeat(domain)));
    assert!(of(64, 189).is_ok() && of(64, 190).is_err());
    assert!(of(10_000, 10).is_err() && of(10, 10_000).is_err());
}
