//! A submission session as a step machine (RFC 6409, 5321): octets in, replies and work out.
//!
//! The only file that names `smtp_proto`. It reads commands; lines, their ends and the mail itself are cut here and in
//! `data`, so that CRLF and nothing else ends anything. What is to be looked up or stored is a [`Step`] for `server`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use mix::path::address::ExitAddress;
use mix::secret::{Gathered, Secret};
use smtp_proto::{
    AUTH_LOGIN, AUTH_PLAIN, Error as SyntaxError, MAIL_BODY_7BIT, MAIL_BODY_8BITMIME, MAIL_SMTPUTF8, MailFrom, RcptTo,
    Request,
};

use crate::data::{BadData, Data};
use crate::error::{Refused, Reply};
use crate::policy::{Asked, Exits, Policy};
use crate::recipient;

/// Longest command line with its CRLF. RFC 5321 4.5.3.1.4 has 512, and extensions add to that.
pub const MAX_COMMAND_LEN: usize = 2048;
/// Longest line of an AUTH exchange (RFC 4954 4).
pub const MAX_AUTH_LEN: usize = 12288;
/// Wrong passwords before the connection is closed: guessing shall cost a connection for every three.
const MAX_GUESSES: u32 = 3;
/// Commands that are none before the connection is closed: whoever is there does not speak SMTP.
const MAX_ERRORS: u32 = 20;

/// How we call ourselves: the name of the machine is nobody's business, and clients only show it.
const OWN_NAME: &str = "localhost";

/// What the driver of a session does next.
pub enum Step {
    /// Send these octets.
    Send(Vec<u8>),
    /// Read, and call [`Session::receive`].
    Receive,
    /// Look the account up, and call [`Session::checked`].
    Check(Credentials),
    /// Make this mail durable, and call [`Session::taken`].
    Take(Submission),
    /// Close the connection.
    Close,
}

/// What a client says who it is.
pub struct Credentials {
    /// The account, which is also the pseudonym that mail is sent under.
    pub user: String,
    /// Its password.
    pub password: Secret<String>,
}

/// Prints nothing of either.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// What became of [`Step::Check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The password is that of the account.
    Right,
    /// It is not, or there is no such account.
    Wrong,
    /// Nobody could say.
    Unknown,
}

/// A mail as the client handed it in.
pub struct Submission {
    /// The account that it comes from.
    pub identity: String,
    /// Where it goes: at least one, none twice.
    pub recipients: Vec<ExitAddress>,
    /// The mail, dots unstuffed.
    pub octets: Vec<u8>,
}

/// Prints neither sender, recipients nor text.
impl fmt::Debug for Submission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Submission(..)")
    }
}

/// Why the server ends a session on its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// The client was silent for too long, or is here for too long.
    Timeout,
    /// The server stops.
    Shutdown,
    /// Too many clients are here already.
    Busy,
}

impl Goodbye {
    /// The last line to the client (RFC 5321 3.8).
    pub fn line(self) -> String {
        let (status, text) = match self {
            Self::Timeout => ("4.4.2", "waited too long, closing"),
            Self::Shutdown => ("4.3.2", "shutting down, try again later"),
            Self::Busy => ("4.3.2", "too many connections, try again later"),
        };
        Reply::new(421, status, text).line()
    }
}

/// A session with one client.
pub struct Session {
    policy: Policy,
    exits: Arc<dyn Exits>,
    input: Gathered,
    output: Vec<u8>,
    /// The step that waits for the output to be sent.
    next: Option<Step>,
    state: State,
    greeted: bool,
    identity: Option<String>,
    /// The mail that is being handed in; `None` before MAIL.
    envelope: Option<Envelope>,
    /// The line that is coming in is too long already.
    overlong: bool,
    guesses: u32,
    errors: u32,
}

enum State {
    Greeting,
    Command,
    AuthPlain,
    AuthLoginUser,
    AuthLoginPassword { user: String },
    Checking { user: String },
    Data { data: Data, envelope: Envelope },
    Taking,
    Closing,
}

/// What is known of a mail before it comes.
struct Envelope {
    identity: String,
    recipients: Vec<ExitAddress>,
}

/// A line off the input.
enum Line {
    Whole(Secret<Vec<u8>>),
    TooLong,
    BadEnd,
}

impl Session {
    /// A session with a client that has just connected.
    pub fn new(policy: Policy, exits: Arc<dyn Exits>) -> Self {
        Self {
            policy,
            exits,
            input: Gathered::default(),
            output: Vec::new(),
            next: None,
            state: State::Greeting,
            greeted: false,
            identity: None,
            envelope: None,
            overlong: false,
            guesses: 0,
            errors: 0,
        }
    }

    /// Whether the client has shown that it may send.
    pub fn is_authenticated(&self) -> bool {
        self.identity.is_some()
    }

    /// Takes what the client sent.
    pub fn receive(&mut self, octets: &[u8]) {
        self.input.extend(octets);
    }

    /// What to do next. Replies are gathered, so that a client that pipelines (RFC 2920) gets them together.
    pub fn step(&mut self) -> Step {
        let step = loop {
            if let Some(step) = self.next.take().or_else(|| self.advance()) {
                break step;
            }
        };
        if self.output.is_empty() {
            return step;
        }
        self.next = Some(step);
        Step::Send(std::mem::take(&mut self.output))
    }

    /// Says what became of [`Step::Check`]. Nothing happens when that was not the last step.
    pub fn checked(&mut self, verdict: Verdict) {
        let State::Checking { user } = &mut self.state else { return };
        let user = std::mem::take(user);
        self.state = State::Command;
        match verdict {
            Verdict::Right => {
                self.identity = Some(user);
                self.reply(235, "2.7.0", "welcome");
            }
            Verdict::Wrong => {
                self.guesses += 1;
                self.reply(535, "5.7.8", "user name or password is wrong");
                if self.guesses == MAX_GUESSES {
                    self.state = State::Closing;
                }
            }
            Verdict::Unknown => self.reply(454, "4.7.0", "accounts cannot be looked up, try again later"),
        }
    }

    /// Says what became of [`Step::Take`]. Nothing happens when that was not the last step.
    pub fn taken(&mut self, result: &Result<(), Refused>) {
        if !matches!(self.state, State::Taking) {
            return;
        }
        self.state = State::Command;
        match result {
            Ok(()) => self.reply(250, "2.0.0", "mail accepted"),
            Err(why) => self.push(&why.reply()),
        }
    }

    /// One move; `None` when the next can follow at once.
    fn advance(&mut self) -> Option<Step> {
        match &mut self.state {
            State::Greeting => {
                self.push(&Reply::bare(220, "localhost ESMTP mixgate"));
                self.state = State::Command;
                None
            }
            State::Data { data, .. } => {
                let (taken, ended) = data.take(self.input.octets());
                drop(self.input.take(taken));
                if ended { self.end_of_data() } else { Some(Step::Receive) }
            }
            // A driver that steps without an answer has none, and the client must not get one.
            State::Closing | State::Checking { .. } | State::Taking => Some(Step::Close),
            State::Command | State::AuthPlain | State::AuthLoginUser | State::AuthLoginPassword { .. } => {
                match self.take_line() {
                    None => Some(Step::Receive),
                    Some(Line::TooLong) => self.bad_line("line too long"),
                    Some(Line::BadEnd) => self.bad_line("lines end in CRLF and have no other CR"),
                    Some(Line::Whole(line)) => self.line(&line),
                }
            }
        }
    }

    /// Cuts a line off the input. Of one that is too long nothing is kept but that it was.
    fn take_line(&mut self) -> Option<Line> {
        let input = self.input.octets();
        let end = input.iter().position(|&octet| octet == b'\n');
        let len = end.map_or(input.len(), |lf| lf + 1);
        let in_auth = !matches!(self.state, State::Command);
        let is_auth = input.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH"));
        let limit = if in_auth || is_auth { MAX_AUTH_LEN } else { MAX_COMMAND_LEN };
        self.overlong |= len > limit;
        if end.is_none() {
            if self.overlong {
                self.input.clear();
            }
            return None;
        }
        let line = self.input.take(len);
        if std::mem::take(&mut self.overlong) {
            return Some(Line::TooLong);
        }
        match line.expose().strip_suffix(b"\r\n") {
            Some(content) if !content.contains(&b'\r') => Some(Line::Whole(line)),
            _ => Some(Line::BadEnd),
        }
    }

    /// Ends an AUTH exchange too.
    fn bad_line(&mut self, why: &'static str) -> Option<Step> {
        let status = if matches!(self.state, State::Command) { "5.5.2" } else { "5.5.6" };
        self.state = State::Command;
        self.error(500, status, why)
    }

    fn line(&mut self, line: &Secret<Vec<u8>>) -> Option<Step> {
        let content = || line.expose().strip_suffix(b"\r\n").unwrap_or_default();
        match std::mem::replace(&mut self.state, State::Command) {
            State::AuthPlain => self.auth_plain(content()),
            State::AuthLoginUser => self.auth_login_user(content()),
            State::AuthLoginPassword { user } => self.auth_login_password(user, content()),
            _ => self.command(line.expose()),
        }
    }

    fn command(&mut self, line: &[u8]) -> Option<Step> {
        match Request::parse(&mut with_countable_size(line).iter()) {
            Ok(request) => self.request(request),
            Err(SyntaxError::InvalidSenderAddress) => self.error(553, "5.1.7", "the sender is not an address"),
            Err(SyntaxError::InvalidRecipientAddress) => self.error(553, "5.1.3", "a recipient has the form user@host"),
            Err(SyntaxError::UnsupportedParameter { .. }) => self.error(555, "5.5.4", "unknown parameter"),
            Err(SyntaxError::InvalidParameter { .. }) => self.error(501, "5.5.4", "bad parameter"),
            Err(SyntaxError::SyntaxError { syntax }) => {
                self.push(&Reply::new(501, "5.5.2", format!("syntax: {syntax}")));
                self.count_error()
            }
            // A whole line is there, so more data would not help.
            Err(_) => self.error(500, "5.5.2", "this is not a command"),
        }
    }

    fn request(&mut self, request: Request<Cow<'_, str>>) -> Option<Step> {
        match request {
            Request::Ehlo { .. } => self.ehlo(),
            Request::Helo { .. } => {
                self.greet();
                self.push(&Reply::bare(250, OWN_NAME));
            }
            Request::Auth { mechanism, initial_response } => {
                let initial_response = Secret::new(initial_response.into_owned());
                return self.auth(mechanism, initial_response.expose());
            }
            Request::Mail { from } => return self.mail(&from),
            Request::Rcpt { to } => return self.rcpt(&to),
            Request::Data => return self.data(),
            Request::Rset => {
                self.envelope = None;
                self.reply(250, "2.0.0", "ok");
            }
            Request::Noop { .. } => self.reply(250, "2.0.0", "ok"),
            Request::Vrfy { .. } => self.reply(252, "2.0.0", "cannot tell, but will take mail"),
            Request::Help { .. } => {
                self.reply(
                    214,
                    "2.0.0",
                    "EHLO AUTH MAIL RCPT DATA RSET NOOP QUIT; a user of an exit is name@nickname.mbox.alt",
                );
            }
            Request::Quit => {
                self.reply(221, "2.0.0", "bye");
                self.state = State::Closing;
            }
            Request::Bdat { .. } => {
                // What follows is a part of a mail, and must not be taken for commands.
                self.reply(502, "5.5.1", "CHUNKING is not offered, closing");
                self.state = State::Closing;
            }
            Request::StartTls => return self.error(502, "5.5.1", "STARTTLS is not offered here"),
            Request::Lhlo { .. }
            | Request::Expn { .. }
            | Request::Etrn { .. }
            | Request::Atrn { .. }
            | Request::Burl { .. } => return self.error(502, "5.5.1", "command not offered"),
        }
        None
    }

    fn ehlo(&mut self) {
        self.greet();
        let size = format!("SIZE {}", self.policy.max_size);
        let lines = [OWN_NAME, "PIPELINING", "8BITMIME", "SMTPUTF8", &size, "ENHANCEDSTATUSCODES", "AUTH PLAIN LOGIN"];
        let (last, first) = lines.split_last().expect("seven lines");
        for line in first {
            self.output.extend_from_slice(format!("250-{line}\r\n").as_bytes());
        }
        self.output.extend_from_slice(format!("250 {last}\r\n").as_bytes());
    }

    /// A greeting is a reset too (RFC 5321 4.1.4).
    fn greet(&mut self) {
        self.greeted = true;
        self.envelope = None;
    }

    fn auth(&mut self, mechanism: u64, initial: &str) -> Option<Step> {
        if !self.greeted {
            return self.error(503, "5.5.1", "EHLO first");
        }
        if self.identity.is_some() {
            return self.error(503, "5.5.1", "authenticated already");
        }
        match (mechanism, initial) {
            (AUTH_PLAIN, "") => {
                self.state = State::AuthPlain;
                self.output.extend_from_slice(b"334 \r\n");
                None
            }
            (AUTH_PLAIN, response) => self.auth_plain(response.as_bytes()),
            (AUTH_LOGIN, "") => {
                self.state = State::AuthLoginUser;
                self.output.extend_from_slice(b"334 VXNlcm5hbWU6\r\n");
                None
            }
            (AUTH_LOGIN, response) => self.auth_login_user(response.as_bytes()),
            _ => self.error(504, "5.5.4", "PLAIN and LOGIN are the mechanisms known here"),
        }
    }

    /// Authorisation identity, NUL, user, NUL, password (RFC 4616 2).
    fn auth_plain(&mut self, response: &[u8]) -> Option<Step> {
        let Some(octets) = decode(response) else { return self.bad_response(response) };
        let mut fields = octets.expose().split(|&octet| octet == 0).map(std::str::from_utf8);
        let (Some(Ok(acts_for)), Some(Ok(user)), Some(Ok(password)), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return self.bad_response(response);
        };
        // Nobody may act for another: a pseudonym is an account, and they must not mix.
        if !acts_for.is_empty() && acts_for != user {
            return self.error(535, "5.7.8", "one account cannot act for another");
        }
        self.check(user.to_owned(), Secret::new(password.to_owned()))
    }

    fn auth_login_user(&mut self, response: &[u8]) -> Option<Step> {
        let user = decode(response).and_then(|octets| Some(std::str::from_utf8(octets.expose()).ok()?.to_owned()));
        let Some(user) = user else { return self.bad_response(response) };
        self.state = State::AuthLoginPassword { user };
        self.output.extend_from_slice(b"334 UGFzc3dvcmQ6\r\n");
        None
    }

    fn auth_login_password(&mut self, user: String, response: &[u8]) -> Option<Step> {
        let password = decode(response)
            .and_then(|octets| Some(Secret::new(std::str::from_utf8(octets.expose()).ok()?.to_owned())));
        match password {
            Some(password) => self.check(user, password),
            None => self.bad_response(response),
        }
    }

    fn bad_response(&mut self, response: &[u8]) -> Option<Step> {
        if response == b"*" {
            self.reply(501, "5.0.0", "authentication given up");
            return None;
        }
        self.error(501, "5.5.2", "the response is not what the mechanism asks for")
    }

    fn check(&mut self, user: String, password: Secret<String>) -> Option<Step> {
        self.state = State::Checking { user: user.clone() };
        Some(Step::Check(Credentials { user, password }))
    }

    fn mail(&mut self, from: &MailFrom<Cow<'_, str>>) -> Option<Step> {
        let identity = match self.sender() {
            Ok(identity) => identity,
            Err(refusal) => return self.refuse(&refusal),
        };
        if self.envelope.is_some() {
            return self.error(503, "5.5.1", "one mail at a time");
        }
        if !knows_all_of(from) {
            return self.error(555, "5.5.4", "a parameter of an extension that is not offered");
        }
        if from.size > self.policy.max_size {
            let text = format!("the mail is longer than {} octets", self.policy.max_size);
            self.push(&Reply::new(552, "5.3.4", text));
            return None;
        }
        // Who sends is the account's to say: the address, null or not, goes nowhere.
        self.envelope = Some(Envelope { identity, recipients: Vec::new() });
        self.reply(250, "2.1.0", "ok");
        None
    }

    fn rcpt(&mut self, to: &RcptTo<Cow<'_, str>>) -> Option<Step> {
        if let Err(refusal) = self.sender() {
            return self.refuse(&refusal);
        }
        let Some(Envelope { identity, recipients }) = &mut self.envelope else {
            return self.error(503, "5.5.1", "MAIL first");
        };
        if to.orcpt.is_some() || to.rrvs != 0 || to.flags != 0 {
            return self.error(555, "5.5.4", "a parameter of an extension that is not offered");
        }
        let address = match recipient::parse(&to.address) {
            Ok(address) => address,
            Err(why) => return self.refuse(&Reply::from(&why)),
        };
        // Named twice is still one recipient, who wants one message.
        if recipients.iter().any(|known| recipient::is_same(known, &address)) {
            self.reply(250, "2.1.5", "ok");
            return None;
        }
        if recipients.len() >= self.policy.max_recipients {
            let text = format!("a mail has at most {} recipients, send it to the others separately", recipients.len());
            self.push(&Reply::new(452, "4.5.3", text));
            return None;
        }
        if let Err(why) = self.exits.accepts(identity, &address, Asked::text(0)) {
            return self.refuse(&Reply::from(&why));
        }
        recipients.push(address);
        self.reply(250, "2.1.5", "ok");
        None
    }

    fn data(&mut self) -> Option<Step> {
        if let Err(refusal) = self.sender() {
            return self.refuse(&refusal);
        }
        let Some(envelope) = self.envelope.take() else { return self.error(503, "5.5.1", "MAIL first") };
        if envelope.recipients.is_empty() {
            self.envelope = Some(envelope);
            return self.refuse(&Reply::new(554, "5.5.1", "no valid recipients"));
        }
        self.push(&Reply::bare(354, "go ahead, end with a dot on a line of its own"));
        self.state = State::Data { data: Data::new(self.policy.max_size), envelope };
        None
    }

    fn end_of_data(&mut self) -> Option<Step> {
        let State::Data { data, envelope } = std::mem::replace(&mut self.state, State::Command) else { return None };
        let Envelope { identity, recipients } = envelope;
        match data.finish() {
            Ok(octets) => {
                self.state = State::Taking;
                Some(Step::Take(Submission { identity, recipients, octets }))
            }
            Err(why @ BadData::TooLarge { .. }) => self.refuse(&Reply::new(552, "5.3.4", why.to_string())),
            Err(why @ BadData::LineTooLong) => self.refuse(&Reply::new(554, "5.6.0", why.to_string())),
        }
    }

    /// Who sends, or what must come before that is known.
    fn sender(&self) -> Result<String, Reply> {
        if !self.greeted {
            return Err(Reply::new(503, "5.5.1", "EHLO first"));
        }
        self.identity.clone().ok_or_else(|| Reply::new(530, "5.7.0", "authentication required"))
    }

    fn reply(&mut self, code: u16, status: &'static str, text: &'static str) {
        self.push(&Reply::new(code, status, text));
    }

    fn push(&mut self, reply: &Reply) {
        self.output.extend_from_slice(reply.line().as_bytes());
    }

    fn refuse(&mut self, reply: &Reply) -> Option<Step> {
        self.push(reply);
        None
    }

    /// A reply to something that no sane client sends.
    fn error(&mut self, code: u16, status: &'static str, text: &'static str) -> Option<Step> {
        self.reply(code, status, text);
        self.count_error()
    }

    fn count_error(&mut self) -> Option<Step> {
        self.errors += 1;
        if self.errors == MAX_ERRORS {
            self.reply(421, "4.7.0", "too many errors, closing");
            self.state = State::Closing;
        }
        None
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(..)")
    }
}

/// The line with its SIZE cut to what a number can hold: smtp-proto begins anew there, and takes the largest mails for
/// small ones. What is left is more than any mail has.
fn with_countable_size(line: &[u8]) -> Cow<'_, [u8]> {
    const MAX_DIGITS: usize = 19;
    let is_size = |at: &usize| line.get(*at..at + 6).is_some_and(|name| name.eq_ignore_ascii_case(b" SIZE="));
    let parameters = line.iter().rposition(|&octet| octet == b'>').unwrap_or(line.len());
    let Some(start) = (parameters..line.len()).find(is_size).map(|at| at + 6) else { return line.into() };
    let (before, number) = line.split_at(start);
    let len = number.iter().position(|octet| !octet.is_ascii_digit()).unwrap_or(number.len());
    let (digits, after) = number.split_at(len);
    let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
    match digits.len() - zeros {
        len if len > MAX_DIGITS => [before, &[b'9'; MAX_DIGITS], after].concat().into(),
        _ => line.into(),
    }
}

/// Whether MAIL has parameters of announced extensions only: SIZE, BODY, SMTPUTF8, AUTH.
fn knows_all_of(from: &MailFrom<Cow<'_, str>>) -> bool {
    let announced = MAIL_BODY_7BIT | MAIL_BODY_8BITMIME | MAIL_SMTPUTF8;
    from.flags & !announced == 0
        && from.trans_id.is_none()
        && from.by == 0
        && from.env_id.is_none()
        && from.solicit.is_none()
        && from.mtrk.is_none()
        && from.hold_for == 0
        && from.hold_until == 0
        && from.mt_priority == 0
}

/// A response of an AUTH exchange: base64, or `=` for an empty one (RFC 4954 4).
fn decode(response: &[u8]) -> Option<Secret<Vec<u8>>> {
    // Some clients leave the padding out.
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let response = if response == b"=" { b"" } else { response };
    GeneralPurpose::new(&alphabet::STANDARD, config).decode(response).ok().map(Secret::new)
}
