//! The page for operators about abuse says what a recipient really sees.

// Helpers of tests are outside clippy's leave for tests.
#![allow(clippy::unwrap_used)]

use std::time::SystemTime;

use mix::crypto::pk::PrivateKey;
use mix::deliver::mail::{Content, Heading, MailConfig, MailWriter};
use mix::deliver::opt_out::{Offer, OptOutKey};
use mix::path::Mailbox;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

const PAGE: &str = include_str!("../../docs/abuse.md");

/// The value of a key of the settings on the page.
fn setting(key: &str) -> Option<String> {
    let line = PAGE.lines().find_map(|line| line.trim_start().strip_prefix(key)?.strip_prefix(" = "))?;
    Some(line.trim_matches('"').to_owned())
}

#[test]
fn mail_on_the_page_is_the_one_that_its_settings_make() {
    let mut rng = StdRng::seed_from_u64(1);
    let mailbox = |text: &str| Mailbox::parse(text).unwrap();
    let config = MailConfig {
        return_address: setting("return_address").map(|text| mailbox(&text)),
        abuse: setting("abuse"),
        comments: setting("comments"),
        ..MailConfig::default()
    };
    let bob = mailbox("bob@example.org");
    let key = OptOutKey::of(&PrivateKey::generate(1024, &mut rng).unwrap());
    let token = key.token(&bob).to_string();
    let offer = Offer::new(key, setting("url"), setting("mail").map(|text| mailbox(&text)));
    let writer = MailWriter::new(config).unwrap().under(setting("notice")).offering(offer);
    let heading = Heading { from: Some("Frida"), ..Heading::default() };
    let mail = writer.write(&bob, heading, Content::Text("Hello Bob"), SystemTime::UNIX_EPOCH, &mut rng);
    let mail = String::from_utf8(mail).unwrap().replace(&token, "TOKEN");
    let id = mail.split_once("Message-ID: <").unwrap().1.split_once('@').unwrap().0;
    let expected = mail.replace(id, "ID");
    let on_the_page: Vec<_> = PAGE
        .lines()
        .skip_while(|line| !line.starts_with("    To: "))
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(|line| line.get(4..).unwrap_or_default())
        .collect();
    assert_eq!(on_the_page.join("\n").trim_end(), expected.replace("\r\n", "\n").trim_end());
}
