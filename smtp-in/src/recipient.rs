//! Which exit address a recipient of a mail stands for.
//!
//! `user@host` leaves the network as e-mail. `name@nickname.mbox.alt` is the user `name` of the exit `nickname`
//! (path-spec's `mbox:name@nickname`): mail clients send to domains only, and `alt` is the top-level domain kept for
//! names outside the DNS (RFC 9476), so that no mail meant for one of these can ever go to somebody's real mail server.

use mix::path::address::{ExitAddress, InvalidAddress, Mailbox};

/// The domain of exits: in front of it is the exit's nickname.
pub const MBOX_DOMAIN: &str = "mbox.alt";

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
    Ok(ExitAddress::Smtp(mailbox))
}

#[cfg(test)]
mod tests {
    use mix::directory::nickname::InvalidNickname;

    use super::*;

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
