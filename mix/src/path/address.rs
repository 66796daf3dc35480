//! Exit addresses: where the last mix delivers to (minion-spec 3.2.3, path-spec 2.4).
//!
//! Reads what people write (`user@host`, `mbox:name@server`, `drop`, `0x1234:data`) and gives what packets carry. Which
//! mix can deliver there is `path::valid`'s to say; delivering is `deliver`'s.

use std::fmt;

use crate::directory::Nickname;
use crate::directory::nickname::InvalidNickname;
use crate::packet::{HANDLE_LEN, HEADER_LEN, RoutingType};

/// Longest routing info that an exit address may have: a header of a single hop, less its RSA overhead (42 octets), the
/// fixed part of its subheader (42) and the decoding handle. A longer one fits no packet.
pub const MAX_EXIT_INFO_LEN: usize = HEADER_LEN - 42 - 42 - HANDLE_LEN;

/// Octets of a mailbox, at most: a path of 256, less its angle brackets (RFC 5321 4.5.3.1.3). With a longer one, lines of the
/// mail and of the talk with its server would be longer than either may be.
pub const MAX_MAILBOX_LEN: usize = 254;

/// Recipients of one message by SMTP, at most (E2E-spec 3.3.1).
pub const MAX_RECIPIENTS: usize = 8;
/// What stands between them.
const BETWEEN_RECIPIENTS: char = '\0';

/// The exit type of a message that some exits deliver to nowhere but their log.
const TEST: RoutingType = RoutingType(0xFFFE);

/// Where a message leaves the network to. Whoever sees one knows a recipient, so `Debug` shows the kind alone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum ExitAddress {
    /// By e-mail.
    Smtp(Mailbox),
    /// To one of the exit's own users.
    Mbox {
        /// What the exit knows the user by.
        name: String,
        /// The exit; without it, the last mix of the path specification.
        server: Option<Nickname>,
    },
    /// To nobody: the last mix discards it.
    Drop,
    /// Any other exit type. SMTP, MBOX and DROP are never in here when [`ExitAddress::parse`] made it.
    Raw {
        /// The exit type.
        routing_type: RoutingType,
        /// The routing info, without the decoding handle.
        info: Vec<u8>,
    },
}

/// A mailbox that mail software of every kind takes for no more than a mailbox: `local@domain`, atoms and dots only. No
/// quotes, comments, brackets, or domains of nothing but numbers, since not every mail server and delivery command can be
/// trusted with them, and block lists would have to know every spelling.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Mailbox(String);

/// Why a text is not an exit address. Blames whoever wrote it. Holds none of it, so that it may be logged.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidAddress {
    /// Neither `local@domain` nor any of the known forms.
    #[error("an address is user@host, smtp:user@host, mbox:name@server, drop or 0xHHHH:data")]
    Form,
    /// Not `local@domain` of dot-separated atoms.
    #[error("a mailbox is user@host; both are words joined by dots, of printable ASCII without ()<>[]@,;:\\\"")]
    Mailbox,
    /// An IP address, or a domain that looks like one.
    #[error("the domain of a mailbox must be a name, not an IP address")]
    NumericDomain,
    /// Mail software may run the rest as a command.
    #[error("a mailbox must not begin with a pipe sign")]
    LeadingPipe,
    /// No mail server takes it (RFC 5321 4.5.3.1.3).
    #[error("{len} octets of mailbox; mail servers take at most {MAX_MAILBOX_LEN}")]
    LongMailbox {
        /// Octets found.
        len: usize,
    },
    /// `mbox:` and no name.
    #[error("mbox: needs the name of a user")]
    EmptyName,
    /// No user is called so, and files and logs would suffer.
    #[error("the name of an mbox: user has no control characters")]
    ControlCharacter,
    /// The server of `mbox:name@server` is no nickname.
    #[error("the server of an mbox: address")]
    Server(#[source] InvalidNickname),
    /// After `0x` there are not four digits and then a colon or the end.
    #[error("a numbered exit type is 0x, four hexadecimal digits, and a colon before its data")]
    Number,
    /// Types below 0x0100 relay, and 0xFFFF is never used.
    #[error("{0} is not an exit type")]
    ExitType(RoutingType),
    /// DROP delivers nothing to nobody.
    #[error("exit type 0x0000 takes no data")]
    DropData,
    /// `word:` of a kind nobody knows.
    #[error("the kind of address before the colon is unknown")]
    Kind,
    /// More than one message may have.
    #[error("more than {MAX_RECIPIENTS} recipients of one message")]
    TooManyRecipients,
    /// An order of its own tells one sender from another.
    #[error("recipients are out of order, or one is there twice")]
    RecipientOrder,
    /// No header has room for it.
    #[error("{len} octets of address; a packet holds at most {MAX_EXIT_INFO_LEN}")]
    TooLong {
        /// Octets found.
        len: usize,
    },
}

impl ExitAddress {
    /// Reads an address as people write it: `user@host`, `smtp:user@host`, `mbox:name@server`, `mbox:name`, `drop`,
    /// `test`, `test:data`, `0xHHHH`, `0xHHHH:data`. Words and digits in either case.
    ///
    /// # Errors
    /// [`InvalidAddress`], by what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        if let Some(numbered) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            return Self::parse_numbered(numbered);
        }
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind.to_ascii_lowercase(), Some(rest)),
            None => (text.to_ascii_lowercase(), None),
        };
        match (kind.as_str(), rest) {
            ("drop", None) => Ok(Self::Drop),
            ("test", info) => Self::raw(TEST, info.unwrap_or_default()),
            ("smtp", Some(mailbox)) => Mailbox::parse(mailbox).map(Self::Smtp),
            ("mbox", Some(user)) => Self::parse_mbox(user),
            (_, Some(_)) => Err(InvalidAddress::Kind),
            (_, None) if text.contains('@') => Mailbox::parse(text).map(Self::Smtp),
            (_, None) => Err(InvalidAddress::Form),
        }
    }

    /// The routing type, and the routing info without its decoding handle.
    pub fn routing(&self) -> (RoutingType, Vec<u8>) {
        match self {
            Self::Smtp(mailbox) => (RoutingType::SMTP, mailbox.as_str().as_bytes().to_vec()),
            Self::Mbox { name, .. } => (RoutingType::MBOX, name.as_bytes().to_vec()),
            Self::Drop => (RoutingType::DROP, Vec::new()),
            Self::Raw { routing_type, info } => (*routing_type, info.clone()),
        }
    }

    /// The mix that must be the exit, where the address names one.
    pub fn server(&self) -> Option<&Nickname> {
        match self {
            Self::Mbox { server, .. } => server.as_ref(),
            Self::Smtp(_) | Self::Drop | Self::Raw { .. } => None,
        }
    }

    /// What stands before a message that the exit reassembles: type (2 octets) | size of the info (2) | info. E2E-spec
    /// 2.2.2.1 has the size first; the network does not.
    ///
    /// # Panics
    /// When the address was not made by [`ExitAddress::parse`] and has more than 65535 octets.
    pub fn fragment_prefix(&self) -> Vec<u8> {
        let (routing_type, info) = self.routing();
        let len = u16::try_from(info.len()).expect("at most MAX_EXIT_INFO_LEN octets: parse refuses more");
        [&routing_type.0.to_be_bytes()[..], &len.to_be_bytes(), &info].concat()
    }

    /// `0x` is off already.
    fn parse_numbered(text: &str) -> Result<Self, InvalidAddress> {
        let (digits, data) = match text.split_once(':') {
            Some((digits, data)) => (digits, Some(data)),
            None => (text, None),
        };
        if digits.len() != 4 || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(InvalidAddress::Number);
        }
        let routing_type = RoutingType(u16::from_str_radix(digits, 16).expect("four hexadecimal digits"));
        let data = data.unwrap_or_default();
        // One meaning, one value: whoever matches on the kind must not miss it for its spelling.
        match routing_type {
            RoutingType::SMTP => Mailbox::parse(data).map(Self::Smtp),
            RoutingType::MBOX => Self::mbox(data, None),
            RoutingType::DROP if data.is_empty() => Ok(Self::Drop),
            RoutingType::DROP => Err(InvalidAddress::DropData),
            other => Self::raw(other, data),
        }
    }

    fn parse_mbox(user: &str) -> Result<Self, InvalidAddress> {
        match user.split_once('@') {
            Some(("", _)) => Err(InvalidAddress::EmptyName),
            Some((name, server)) => Self::mbox(name, Some(server.parse().map_err(InvalidAddress::Server)?)),
            None => Self::mbox(user, None),
        }
    }

    fn mbox(name: &str, server: Option<Nickname>) -> Result<Self, InvalidAddress> {
        if name.is_empty() {
            return Err(InvalidAddress::EmptyName);
        }
        if name.chars().any(char::is_control) {
            return Err(InvalidAddress::ControlCharacter);
        }
        fits(name)?;
        Ok(Self::Mbox { name: name.to_owned(), server })
    }

    fn raw(routing_type: RoutingType, info: &str) -> Result<Self, InvalidAddress> {
        if !routing_type.is_exit() || routing_type.0 == u16::MAX {
            return Err(InvalidAddress::ExitType(routing_type));
        }
        fits(info)?;
        Ok(Self::Raw { routing_type, info: info.as_bytes().to_vec() })
    }
}

impl fmt::Debug for ExitAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Smtp(_) => "Smtp(..)",
            Self::Mbox { .. } => "Mbox(..)",
            Self::Drop => "Drop",
            Self::Raw { .. } => "Raw(..)",
        })
    }
}

impl Mailbox {
    /// Reads `local@domain`.
    ///
    /// # Errors
    /// [`InvalidAddress::Mailbox`], [`InvalidAddress::NumericDomain`], [`InvalidAddress::LeadingPipe`],
    /// [`InvalidAddress::LongMailbox`].
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        if text.len() > MAX_MAILBOX_LEN {
            return Err(InvalidAddress::LongMailbox { len: text.len() });
        }
        let (local, domain) = text.split_once('@').ok_or(InvalidAddress::Mailbox)?;
        if !is_dotted_atoms(local) || !is_dotted_atoms(domain) {
            return Err(InvalidAddress::Mailbox);
        }
        if domain.bytes().all(|c| c.is_ascii_digit() || c == b'.') {
            return Err(InvalidAddress::NumericDomain);
        }
        // The reference lets it through; sendmail and its aliases take `|word` for a program to run.
        if local.starts_with('|') {
            return Err(InvalidAddress::LeadingPipe);
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads whom a packet of exit type SMTP is for (E2E-spec 3.3.1): one to eight mailboxes with an octet 0 between two,
    /// each once, in the order of their octets.
    ///
    /// # Errors
    /// As [`Mailbox::parse`], of any of them; [`InvalidAddress::TooManyRecipients`], [`InvalidAddress::RecipientOrder`].
    pub fn parse_list(octets: &[u8]) -> Result<Vec<Self>, InvalidAddress> {
        let text = std::str::from_utf8(octets).map_err(|_| InvalidAddress::Mailbox)?;
        if text.split(BETWEEN_RECIPIENTS).count() > MAX_RECIPIENTS {
            return Err(InvalidAddress::TooManyRecipients);
        }
        let mailboxes = text.split(BETWEEN_RECIPIENTS).map(Self::parse).collect::<Result<Vec<_>, _>>()?;
        if mailboxes.is_sorted_by(|one, next| one.0 < next.0) {
            Ok(mailboxes)
        } else {
            Err(InvalidAddress::RecipientOrder)
        }
    }

    /// The mailbox as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is behind the `@`.
    pub fn domain(&self) -> &str {
        self.0.split_once('@').expect("local@domain: Mailbox").1
    }
}

/// The whole mailbox, for the envelope of a mail.
impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mailbox(..)")
    }
}

fn fits(info: &str) -> Result<(), InvalidAddress> {
    if info.len() > MAX_EXIT_INFO_LEN { Err(InvalidAddress::TooLong { len: info.len() }) } else { Ok(()) }
}

/// Words joined by single dots: what either side of a mailbox is.
pub(crate) fn is_dotted_atoms(text: &str) -> bool {
    let in_atom = |c: u8| c.is_ascii_graphic() && !b"()[]<>@,;:\\\".".contains(&c);
    text.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(in_atom))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> InvalidAddress {
        ExitAddress::parse(text).expect_err("refused")
    }

    #[test]
    fn kinds_are_read_in_either_case_and_give_what_packets_carry() {
        let smtp = (RoutingType::SMTP, b"Bob@example.com".to_vec());
        for text in ["Bob@example.com", "smtp:Bob@example.com", "SMTP:Bob@example.com", "0X0100:Bob@example.com"] {
            assert_eq!(ExitAddress::parse(text).unwrap().routing(), smtp, "{text}");
        }
        let mbox = ExitAddress::parse("Mbox:frida@Gamma").unwrap();
        assert_eq!(mbox.routing(), (RoutingType::MBOX, b"frida".to_vec()));
        assert_eq!(mbox.server().unwrap().as_str(), "Gamma");
        assert_eq!(ExitAddress::parse("0x0000"), Ok(ExitAddress::Drop));
        assert_eq!(ExitAddress::parse("0xaBcD:x:y").unwrap().routing(), (RoutingType(0xABCD), b"x:y".to_vec()));
    }

    #[test]
    fn address_of_unknown_form_is_refused() {
        assert_eq!(refused("bob"), InvalidAddress::Form);
        assert_eq!(refused(""), InvalidAddress::Form);
        assert_eq!(refused("smtp"), InvalidAddress::Form);
    }

    #[test]
    fn mailbox_with_anything_but_dotted_atoms_is_refused() {
        for text in
            ["bob@", "@b.c", "a b@c.d", "a@b@c", "a..b@c", "a@b.", "\"a\"@b.c", "a@[1.2.3.4]", "é@b.c", "a@b.c\r\nX: y"]
        {
            assert_eq!(Mailbox::parse(text), Err(InvalidAddress::Mailbox), "{text}");
        }
        assert_eq!(refused("smtp:bob"), InvalidAddress::Mailbox);
    }

    #[test]
    fn mailbox_on_a_number_is_refused() {
        assert_eq!(refused("bob@10.0.0.1"), InvalidAddress::NumericDomain);
        assert_eq!(refused("bob@7"), InvalidAddress::NumericDomain);
        assert!(Mailbox::parse("bob@b.1").is_ok());
    }

    #[test]
    fn mailbox_that_could_be_a_command_is_refused() {
        assert_eq!(refused("|a@b.c"), InvalidAddress::LeadingPipe);
        assert_eq!(refused("0x0100:|a@b.c"), InvalidAddress::LeadingPipe);
    }

    #[test]
    fn one_to_eight_mailboxes_are_read_in_their_order() {
        let list = |text: &str| Mailbox::parse_list(text.as_bytes());
        let written = |text| list(text).unwrap().iter().map(|mailbox| mailbox.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(written("bob@b.c"), ["bob@b.c"]);
        assert_eq!(written("Bob@b.c\0ann@b.c\0bob@b.c"), ["Bob@b.c", "ann@b.c", "bob@b.c"]);
        let eight = (0..8).map(|i| format!("{i}@b.c")).collect::<Vec<_>>().join("\0");
        assert_eq!(list(&eight).unwrap().len(), 8);
        assert_eq!(list(&format!("{eight}\x009@b.c")), Err(InvalidAddress::TooManyRecipients));
    }

    #[test]
    fn list_of_anything_but_mailboxes_in_order_is_refused() {
        let list = |text: &[u8]| Mailbox::parse_list(text);
        for text in
            [&b""[..], b"\0", b"a@b.c\0", b"\0a@b.c", b"a@b.c\0\0b@b.c", b"a@b.c,b@b.c", b"a@b.c b@b.c", b"\xff@b.c"]
        {
            assert_eq!(list(text), Err(InvalidAddress::Mailbox), "{text:?}");
        }
        assert_eq!(list(b"b@b.c\0a@b.c"), Err(InvalidAddress::RecipientOrder));
        assert_eq!(list(b"a@b.c\0a@b.c"), Err(InvalidAddress::RecipientOrder), "twice");
        assert_eq!(list(b"a@b.c\0|x@b.c"), Err(InvalidAddress::LeadingPipe));
        assert_eq!(list(b"a@b.c\0b@10.0.0.1"), Err(InvalidAddress::NumericDomain));
    }

    #[test]
    fn mbox_without_a_proper_name_or_server_is_refused() {
        assert_eq!(refused("mbox:"), InvalidAddress::EmptyName);
        assert_eq!(refused("mbox:@x"), InvalidAddress::EmptyName);
        assert_eq!(refused("mbox:a\nb"), InvalidAddress::ControlCharacter);
        assert_eq!(refused("mbox:frida@no.nickname"), InvalidAddress::Server(InvalidNickname::Character));
    }

    #[test]
    fn number_that_is_no_exit_type_is_refused() {
        for text in ["0x", "0x123", "0x12345", "0x1234a", "0xZZZZ:a", "0x+123"] {
            assert_eq!(refused(text), InvalidAddress::Number, "{text}");
        }
        assert_eq!(refused("0xffff:x"), InvalidAddress::ExitType(RoutingType(0xFFFF)));
        assert_eq!(refused("0x0003:x"), InvalidAddress::ExitType(RoutingType::FWD_HOST));
        assert_eq!(refused("0x0000:x"), InvalidAddress::DropData);
    }

    #[test]
    fn unknown_kind_is_refused() {
        assert_eq!(refused("news:alt.test"), InvalidAddress::Kind);
        assert_eq!(refused("drop:x"), InvalidAddress::Kind);
    }

    #[test]
    fn address_that_no_header_can_hold_is_refused() {
        let longest = "x".repeat(MAX_EXIT_INFO_LEN);
        assert!(ExitAddress::parse(&format!("mbox:{longest}")).is_ok());
        let too_long = InvalidAddress::TooLong { len: MAX_EXIT_INFO_LEN + 1 };
        assert_eq!(refused(&format!("mbox:{longest}x")), too_long);
        assert_eq!(refused(&format!("0x1234:{longest}x")), too_long);
    }

    #[test]
    fn mailbox_that_no_mail_server_takes_is_refused() {
        let mailbox = |len: usize| format!("{}@b.c", "x".repeat(len - 4));
        assert!(ExitAddress::parse(&mailbox(254)).is_ok());
        for len in [255, MAX_EXIT_INFO_LEN] {
            assert_eq!(refused(&mailbox(len)), InvalidAddress::LongMailbox { len });
            let list = format!("a@b.c\0{}", mailbox(len));
            assert_eq!(Mailbox::parse_list(list.as_bytes()), Err(InvalidAddress::LongMailbox { len }));
        }
    }

    #[test]
    fn debug_shows_no_recipient() {
        for text in ["bob@example.com", "mbox:bob@example", "0x1234:bob", "test:bob"] {
            let shown = format!("{:?}", ExitAddress::parse(text).unwrap());
            assert!(!shown.contains("bob"), "{shown}");
        }
        let mailbox = Mailbox::parse("bob@example.com").unwrap();
        assert_eq!(format!("{mailbox:?} {mailbox}"), "Mailbox(..) bob@example.com");
        assert_eq!(mailbox.domain(), "example.com");
    }
}
