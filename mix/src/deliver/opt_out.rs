//! How whoever gets mail from an exit says that he wants no more: each mail carries a token of its recipient.
//!
//! A token is a keyed code of the recipient's mailbox, which is all that it is made of: nothing is kept for a mail, nobody
//! makes one for somebody else's mailbox, it is the same for all sub-addresses (`bob+x@example.org` is bob's), and it tells no two mails to one mailbox apart, nor who wrote them. It is the same
//! for ever, since the identity key of the node is. Who holds a mail for a mailbox holds its token: whoever forwards one, or
//! answers with all of it, hands it on.
//!
//! Who has opted out is `store::opt_outs`', and that he gets no mail `crate::node`'s to see to.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq as _;

use crate::crypto::Keyset;
use crate::crypto::mac::mac;
use crate::crypto::pk::PrivateKey;
use crate::path::Mailbox;
use crate::secret::Secret;

/// Octets of a token, which nobody guesses.
const TOKEN_LEN: usize = 16;
/// No line of a mail may be longer (RFC 5322 2.1.1).
const MAX_LINE_LEN: usize = 998;
/// What the subject of a mail that opts out begins with.
const WORD: &str = "opt-out";

/// What shows that somebody has a mail for a mailbox: 32 hexadecimal digits. `Debug` shows none.
#[derive(Clone, Copy)]
pub struct Token([u8; TOKEN_LEN]);

/// It is no token, or another mailbox's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not the token of that mailbox: it has 32 hexadecimal digits, and comes with each mail from this exit")]
pub struct InvalidToken;

impl Token {
    /// Reads one, in either case.
    ///
    /// # Errors
    /// [`InvalidToken`].
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let mut octets = [0; TOKEN_LEN];
        if text.len() != 2 * TOKEN_LEN {
            return Err(InvalidToken);
        }
        for (octet, digits) in octets.iter_mut().zip(text.as_bytes().chunks(2)) {
            for digit in digits {
                let digit = char::from(*digit).to_digit(16).ok_or(InvalidToken)?;
                *octet = *octet << 4 | u8::try_from(digit).map_err(|_| InvalidToken)?;
            }
        }
        Ok(Self(octets))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Makes the tokens of one exit.
#[derive(Clone, Debug)]
pub struct OptOutKey(Arc<Secret<Vec<u8>>>);

impl OptOutKey {
    /// That of the node with this identity key.
    pub fn of(identity: &PrivateKey) -> Self {
        Self::new(&Keyset::new(&identity.to_pkcs8_der()).purpose(b"OPT OUT").0)
    }

    fn new(secret: &[u8]) -> Self {
        Self(Arc::new(Secret::new(secret.to_vec())))
    }

    /// The token of a mailbox, however its letters are written, and of each sub-address of it.
    pub fn token(&self, of: &Mailbox) -> Token {
        let code = mac(self.0.expose(), normalised(of).as_bytes());
        let (token, _) = code.split_first_chunk().expect("32 octets: MAC_LEN");
        Token(*token)
    }

    /// Whether `token` is that of `of`; takes as long for one that almost is as for any other.
    ///
    /// # Errors
    /// [`InvalidToken`].
    pub fn check(&self, token: Token, of: &Mailbox) -> Result<(), InvalidToken> {
        if self.token(of).0.ct_eq(&token.0).into() { Ok(()) } else { Err(InvalidToken) }
    }
}

/// The mailbox as it is compared. Servers may tell letters of one case from those of the other, and none does.
///
/// What stands behind a `+` says, with nearly all of them, where in the mailbox of the name before it a mail goes (RFC 5233):
/// senders could write another for each mail, so it counts for nothing. Where it is part of the name, the two are one here.
pub fn normalised(mailbox: &Mailbox) -> String {
    let whole = mailbox.as_str().to_ascii_lowercase();
    let split = whole.split_once('@').and_then(|(local, domain)| Some((local.split_once('+')?.0, domain)));
    // A dot before the sign ends no name, and would be no mailbox.
    let split = split.map(|(name, domain)| (name.trim_end_matches('.'), domain));
    match split.filter(|(name, _)| !name.is_empty()) {
        Some((name, domain)) => format!("{name}@{domain}"),
        None => whole,
    }
}

/// The first token of a text and the mailbox behind it, as the subject of a mail that opts out has them. What is looked
/// through is the caller's to bound.
pub fn read(text: &str) -> Option<(Token, Mailbox)> {
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if let Ok(token) = Token::parse(word)
            && let Some(Ok(mailbox)) = words.peek().map(|next| Mailbox::parse(next))
        {
            return Some((token, mailbox));
        }
    }
    None
}

/// What each mail says of how to opt out: by a link, by a mail, or by either.
#[derive(Clone, Debug)]
pub struct Offer {
    key: OptOutKey,
    url: Option<String>,
    mail: Option<Mailbox>,
}

impl Offer {
    /// `None` where neither is set up.
    pub fn new(key: OptOutKey, url: Option<String>, mail: Option<Mailbox>) -> Option<Self> {
        (url.is_some() || mail.is_some()).then_some(Self { key, url, mail })
    }

    /// The headers for programs (RFC 2369 3.2; RFC 8058 3.1 for the link), each line with its end. Empty for a mailbox that
    /// is too long for one.
    pub fn headers(&self, to: &Mailbox) -> String {
        let links: Vec<_> = [self.link(to), self.mailto(to)].into_iter().flatten().collect();
        let header = format!("List-Unsubscribe: {}\r\n", links.join(",\r\n "));
        if header.split("\r\n").any(|line| line.len() > MAX_LINE_LEN) {
            return String::new();
        }
        let one_click = if self.url.is_some() { "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" } else { "" };
        header + one_click
    }

    /// The line for people.
    pub fn sentence(&self, to: &Mailbox) -> String {
        let how = match (&self.url, &self.mail) {
            (Some(_), _) => self.page(to).map(|page| format!("open {page}")),
            (None, Some(mail)) => Some(format!("write to {mail} with this subject: {}", self.subject(to))),
            (None, None) => None,
        };
        how.map(|how| format!("To get no more mail from this remailer, {how}")).unwrap_or_default()
    }

    fn page(&self, to: &Mailbox) -> Option<String> {
        let (url, token) = (self.url.as_ref()?, self.key.token(to));
        Some(format!("{url}?token={token}&address={}", encoded(&normalised(to))))
    }

    fn link(&self, to: &Mailbox) -> Option<String> {
        self.page(to).map(|page| format!("<{page}>"))
    }

    fn mailto(&self, to: &Mailbox) -> Option<String> {
        let mail = self.mail.as_ref()?;
        let (local, domain) = mail.as_str().split_once('@')?;
        Some(format!("<mailto:{}@{}?subject={}>", encoded(local), encoded(domain), encoded(&self.subject(to))))
    }

    fn subject(&self, to: &Mailbox) -> String {
        format!("{WORD} {} {}", self.key.token(to), normalised(to))
    }
}

/// All but letters, digits, `-`, `.`, `_` and `~` as `%XX` (RFC 3986 2.1, 2.3).
fn encoded(text: &str) -> String {
    let plain = |octet: u8| octet.is_ascii_alphanumeric() || b"-._~".contains(&octet);
    text.bytes()
        .map(|octet| if plain(octet) { char::from(octet).to_string() } else { format!("%{octet:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::address::MAX_MAILBOX_LEN;

    const URL: &str = "https://exit.example/opt-out";

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text).unwrap()
    }

    fn key() -> OptOutKey {
        OptOutKey::new(&[7; 20])
    }

    fn offer(url: bool, mail: bool) -> Offer {
        let mail = mail.then(|| mailbox("opt-out@exit.example"));
        Offer::new(key(), url.then(|| URL.to_owned()), mail).unwrap()
    }

    #[test]
    fn token_is_one_mailboxs_and_one_exits_however_the_mailbox_is_written() {
        let bob = mailbox("bob@example.org");
        let token = key().token(&bob);
        assert_eq!(token.to_string(), key().token(&mailbox("Bob@EXAMPLE.org")).to_string());
        key().check(token, &bob).unwrap();
        for other in ["bob@example.com", "bobb@example.org", "b.ob@example.org", "+bob@example.org"] {
            assert_eq!(key().check(token, &mailbox(other)), Err(InvalidToken), "{other}");
        }
        assert_eq!(OptOutKey::new(&[8; 20]).check(token, &bob), Err(InvalidToken));
        assert_eq!(format!("{token:?} {:?}", key()), "Token(..) OptOutKey(Secret(..))");
    }

    #[test]
    fn sub_address_is_its_mailbox_and_its_mail_brings_what_opts_out_the_mailbox() {
        let bob = mailbox("bob@example.org");
        for below in ["bob+@example.org", "Bob+x@Example.org", "bob+x+y@example.org", "bob.+x@example.org"] {
            let below = mailbox(below);
            assert_eq!(normalised(&below), "bob@example.org", "{below:?}");
            key().check(key().token(&below), &bob).unwrap();
            let (token, whose) = read(&offer(false, true).sentence(&below)).unwrap();
            assert_eq!(whose, bob);
            key().check(token, &bob).unwrap();
        }
        for whole in ["+x@example.org", "++@example.org", "+.x@example.org", "bob-x@example.org", "bob_x@a.example"] {
            assert_eq!(normalised(&mailbox(whole)), whole, "there is no mailbox before it");
        }
    }

    #[test]
    fn token_with_any_digit_changed_is_refused() {
        let bob = mailbox("bob@example.org");
        let text = key().token(&bob).to_string();
        key().check(Token::parse(&text.to_ascii_uppercase()).unwrap(), &bob).unwrap();
        for at in 0..text.len() {
            let mut digits = text.clone().into_bytes();
            digits[at] = if digits[at] == b'0' { b'1' } else { b'0' };
            let changed = Token::parse(std::str::from_utf8(&digits).unwrap()).unwrap();
            assert_eq!(key().check(changed, &bob), Err(InvalidToken), "{at}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let long = "0".repeat(33);
        for text in [
            "",
            "0",
            &long,
            "g0000000000000000000000000000000",
            "+0000000000000000000000000000000",
            "é000000000000000000000000000000",
        ] {
            assert_eq!(Token::parse(text).unwrap_err(), InvalidToken, "{text}");
        }
    }

    #[test]
    fn headers_are_those_of_the_rfcs_and_the_mail_brings_what_is_read() {
        let bob = mailbox("Bob@example.org");
        let token = key().token(&bob);
        assert_eq!(
            offer(true, true).headers(&bob),
            format!(
                "List-Unsubscribe: <{URL}?token={token}&address=bob%40example.org>,\r\n \
                 <mailto:opt-out@exit.example?subject=opt-out%20{token}%20bob%40example.org>\r\n\
                 List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
            )
        );
        let by_mail = offer(false, true);
        assert!(!by_mail.headers(&bob).contains("Post"), "one click is the link's");
        let sentence = by_mail.sentence(&bob);
        let subject = format!("opt-out {token} bob@example.org");
        assert_eq!(
            sentence,
            format!(
                "To get no more mail from this remailer, write to opt-out@exit.example with this subject: {subject}"
            )
        );
        for text in [subject.clone(), format!("Re: {subject}"), format!("> {sentence}\n>\n> text")] {
            let (read_token, whose) = read(&text).unwrap();
            key().check(read_token, &whose).unwrap();
            assert_eq!(whose, mailbox("bob@example.org"));
        }
        assert!(
            offer(true, true).sentence(&bob).ends_with(&format!("open {URL}?token={token}&address=bob%40example.org"))
        );
        for nothing in ["", "opt-out", &token.to_string(), "opt-out 00 bob@example.org", &format!("{token} bob")] {
            assert!(read(nothing).is_none(), "{nothing}");
        }
        assert!(Offer::new(key(), None, None).is_none());
    }

    #[test]
    fn no_character_of_a_mailbox_ends_a_link_or_a_line() {
        let odd = mailbox("+a!#$%&'*-/=?^_`{|}~b@x-y.example");
        let headers = offer(true, true).headers(&odd);
        let encoded = "%2Ba%21%23%24%25%26%27%2A-%2F%3D%3F%5E_%60%7B%7C%7D~b%40x-y.example";
        assert_eq!(headers.matches(encoded).count(), 2, "{headers}");
        assert_eq!((headers.matches('<').count(), headers.matches("\r\n").count()), (2, 3));
        let long = mailbox(&format!("{}@x.y", "#".repeat(MAX_MAILBOX_LEN - 4)));
        let far = Offer::new(key(), Some(format!("https://exit.example/{}", "x".repeat(179))), None).unwrap();
        assert_eq!(far.headers(&long), "");
    }
}
