//! Which exit address a recipient of a mail stands for.
//!
//! `user@host` leaves the network as e-mail. `name@nickname.mbox.alt` is the user `name` of the exit `nickname`
//! (path-spec's `mbox:name@nickname`): mail clients send to domains only, and `alt` is the top-level domain kept for
//! names outside the DNS (RFC 9476), so that no mail meant for one of these can ever go to somebody's real mail server.

use mix::path::address::{ExitAddress, InvalidAddress, Mailbox};

/// The domain of exits: in front of it is the exit's nickname.
pub const MBOX_DOMAIN: &str = "mbox.alt";

/// Characters before the `@` (RFC 5321 4.5.3.1.1).
const MAX_LOCAL_LEN: usize = 64;
/// Characters of a label of a domain (RFC 1035 2.3.1).
const MAX_LABEL_LEN: usize = 63;

/// Why a recipient is none. Blames the mail client's user. Holds nothing of the address.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidRecipient {
    /// `<>`, or a name without a domain.
    #[error("a recipient has the form user@host")]
    Empty,
    /// The network carries no other than ASCII addresses (minion-spec 3.2.3).
    #[error("the network carries ASCII addresses only; write the domain in its xn-- form")]
    NotAscii,
    /// Not a mailbox that may leave an exit.
    #[error("{0}")]
    Form(InvalidAddress),
    /// No mail server takes it (RFC 5321 4.5.3.1.1).
    #[error("what is before the @ has at most {MAX_LOCAL_LEN} characters")]
    LocalTooLong,
    /// No name of the DNS has such a label (RFC 1035 2.3.1).
    #[error("between the dots of a domain are at most {MAX_LABEL_LEN} characters, the first and last not hyphens")]
    Label,
    /// `name@mbox.alt`.
    #[error("which exit? A user of an exit is written name@nickname.{MBOX_DOMAIN}")]
    NoServer,
    /// `name@nickname.mbox.alt` where the name or the nickname cannot be one.
    #[error("a user of an exit is written name@nickname.{MBOX_DOMAIN}: {0}")]
    Server(InvalidAddress),
    /// Any other domain below `alt`: there is no mail server for it.
    #[error("domains below alt are not mail domains; the only ones known here end in {MBOX_DOMAIN}")]
    Alt,
}

/// Reads the address of RCPT TO, without its angle brackets.
///
/// # Errors
/// [`InvalidRecipient`], by what is wrong.
pub fn parse(address: &str) -> Result<ExitAddress, InvalidRecipient> {
    if address.is_empty() {
        return Err(InvalidRecipient::Empty);
    }
    if !address.is_ascii() {
        return Err(InvalidRecipient::NotAscii);
    }
    // The whole address first: nothing that is no mailbox, quoted or otherwise, shall get as far as a name.
    let mailbox = Mailbox::parse(address).map_err(InvalidRecipient::Form)?;
    let domain = mailbox.domain().to_ascii_lowercase();
    if domain == MBOX_DOMAIN {
        return Err(InvalidRecipient::NoServer);
    }
    if let Some(nickname) = domain.strip_suffix(MBOX_DOMAIN).and_then(|rest| rest.strip_suffix('.')) {
        let (name, _) = address.split_once('@').expect("local@domain: Mailbox");
        return ExitAddress::parse(&format!("mbox:{name}@{nickname}")).map_err(InvalidRecipient::Server);
    }
    if domain == "alt" || domain.ends_with(".alt") {
        return Err(InvalidRecipient::Alt);
    }
    can_exist(address.len() - domain.len() - 1, &domain)?;
    Ok(ExitAddress::Smtp(mailbox))
}

/// What no mail server can have would be accepted here and dropped by the exit, where nobody is told.
fn can_exist(local_len: usize, domain: &str) -> Result<(), InvalidRecipient> {
    if local_len > MAX_LOCAL_LEN {
        return Err(InvalidRecipient::LocalTooLong);
    }
    let is_label = |label: &str| label.len() <= MAX_LABEL_LEN && !label.starts_with('-') && !label.ends_with('-');
    if domain.split('.').all(is_label) { Ok(()) } else { Err(InvalidRecipient::Label) }
}

/// Whether two addresses are one recipient: domains are the same in capitals, what is before the `@` need not be.
pub fn is_same(one: &ExitAddress, other: &ExitAddress) -> bool {
    match (one, other) {
        (ExitAddress::Smtp(one), ExitAddress::Smtp(other)) => {
            let local = |mailbox: &Mailbox| mailbox.as_str().split_once('@').map(|(local, _)| local.to_owned());
            one.domain().eq_ignore_ascii_case(other.domain()) && local(one) == local(other)
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use mix::directory::nickname::InvalidNickname;

    use super::*;
    use crate::error::Reply;

    fn refused(address: &str) -> InvalidRecipient {
        parse(address).expect_err("refused")
    }

    #[test]
    fn mailbox_leaves_as_e_mail() {
        let address = parse("Bob+list@Example.org").unwrap();
        assert_eq!(address, ExitAddress::Smtp(Mailbox::parse("Bob+list@Example.org").unwrap()));
    }

    #[test]
    fn user_of_an_exit_is_found_below_mbox_alt() {
        let frida = ExitAddress::parse("mbox:Frida.K@gamma").unwrap();
        assert_eq!(parse("Frida.K@gamma.mbox.alt"), Ok(frida.clone()));
        assert_eq!(parse("Frida.K@Gamma.MBOX.Alt"), Ok(frida));
    }

    #[test]
    fn user_of_no_exit_in_particular_is_refused() {
        assert_eq!(refused("frida@mbox.alt"), InvalidRecipient::NoServer);
    }

    #[test]
    fn exit_with_an_impossible_nickname_is_refused() {
        let character = InvalidRecipient::Server(InvalidAddress::Server(InvalidNickname::Character));
        assert_eq!(refused("frida@a.b.mbox.alt"), character);
        assert_eq!(refused("frida@7.mbox.alt"), character);
    }

    #[test]
    fn other_names_outside_the_dns_are_refused() {
        assert_eq!(refused("bob@example.alt"), InvalidRecipient::Alt);
        assert_eq!(refused("bob@alt"), InvalidRecipient::Alt);
        assert_eq!(refused("bob@xmbox.alt"), InvalidRecipient::Alt);
        assert!(parse("bob@alt.example").is_ok());
    }

    #[test]
    fn address_that_no_mail_server_can_have_is_refused() {
        let long = |len| "x".repeat(len);
        assert_eq!(refused(&format!("{}@example.org", long(65))), InvalidRecipient::LocalTooLong);
        assert!(parse(&format!("{}@{}.org", long(64), long(63))).is_ok());
        assert_eq!(refused(&format!("bob@{}.org", long(64))), InvalidRecipient::Label);
        assert_eq!(refused("bob@-x.org"), InvalidRecipient::Label);
        assert_eq!(refused("bob@x-.org"), InvalidRecipient::Label);
        assert!(parse("bob@x-y.org").is_ok());
        let domain = |last| format!("bob@{}{}", format!("{}.", long(60)).repeat(4), long(last));
        assert!(parse(&domain(6)).is_ok());
        let too_long = InvalidRecipient::Form(InvalidAddress::LongMailbox { len: 255 });
        assert_eq!(refused(&domain(7)), too_long);
        assert_eq!(Reply::from(&too_long).line().get(..10), Some("553 5.1.3 "));
    }

    #[test]
    fn recipient_is_the_same_whatever_the_case_of_its_domain() {
        let same = |one, other| is_same(&parse(one).unwrap(), &parse(other).unwrap());
        assert!(same("Bob@EXAMPLE.org", "Bob@example.org"));
        assert!(!same("bob@example.org", "Bob@example.org"));
        assert!(!same("bob@example.org", "bob@gamma.mbox.alt"));
        assert!(same("bob@Gamma.mbox.alt", "bob@gamma.MBOX.alt"));
    }

    #[test]
    fn address_that_is_not_ascii_is_refused() {
        assert_eq!(refused("bob@b\u{fc}cher.example"), InvalidRecipient::NotAscii);
        assert_eq!(refused("j\u{fc}rgen@example.org"), InvalidRecipient::NotAscii);
    }

    #[test]
    fn address_literals_and_quoting_tricks_are_refused() {
        assert_eq!(refused(""), InvalidRecipient::Empty);
        assert_eq!(refused("bob@10.0.0.1"), InvalidRecipient::Form(InvalidAddress::NumericDomain));
        assert_eq!(refused("|sh@example.org"), InvalidRecipient::Form(InvalidAddress::LeadingPipe));
        for address in [
            "bob@[192.0.2.1]",
            "a@b@c.org",
            "a b@c.org",
            "@c.org",
            "bob",
            "a@c.org,b@d.org",
            "a%00@",
            "a@c.org\r\nX: y",
        ] {
            assert_eq!(refused(address), InvalidRecipient::Form(InvalidAddress::Mailbox), "{address}");
        }
    }
}
