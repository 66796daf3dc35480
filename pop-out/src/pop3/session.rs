//! A POP3 session as a step machine (RFC 1939; response codes from RFC 2449, section 6 and RFC 3206).
//!
//! Bytes in, steps out. What waits for a disk or a password check is a step too: it carries the session, and gives it
//! back for the answer. The socket is `crate::server`'s.

use std::fmt;

use mix::secret::{Gathered, Secret};

use super::command::{Command, InvalidCommand, MAX_LINE_LEN};
use super::letter::stuff;
use super::{Letter, Listed, Uidl};

/// Wrong passwords in one session before it ends.
const MAX_WRONG_PASSWORDS: u8 = 3;
/// Lines in one session that were no commands before it ends: whoever sends this many speaks another protocol.
const MAX_INVALID_COMMANDS: u8 = 20;

/// What we can do beyond RFC 1939 (RFC 2449, section 6).
///
/// EXPIRE NEVER because only the client's DELE removes mail. No IMPLEMENTATION: it would tell whoever connects which
/// program to attack. No LOGIN-DELAY: there is none. No UTF8 (RFC 6856): mails come out as they lie there, and no
/// command changes that. STLS and SASL belong in this list once they exist.
const CAPABILITIES: &[&str] = &["USER", "TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "EXPIRE NEVER"];

/// A session. Begins with the greeting.
pub struct Session {
    input: Gathered,
    output: Vec<u8>,
    state: State,
    wrong_passwords: u8,
    invalid_commands: u8,
}

enum State {
    /// Who is it? The name, once USER gave it.
    Authorization(Option<Secret<String>>),
    Transaction(Vec<Mail>),
    /// Nothing follows but what still has to be sent.
    Over,
}

struct Mail {
    listed: Listed,
    deleted: bool,
}

/// What the session wants done next.
pub enum Step {
    /// Send these octets, then step on.
    Send(Vec<u8>, Session),
    /// Get more octets for [`Session::receive`], then step on.
    Receive(Session),
    /// Check a password and open the maildrop.
    Login(Login),
    /// Fetch a mail.
    Fetch(Fetch),
    /// The client quits: remove these for good, and let others into the maildrop.
    Update(Update),
    /// Close the connection. What was marked for removal stays.
    Close,
}

/// Why nobody was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Unknown name or wrong password: which of them is not told.
    WrongPassword,
    /// Another session has the maildrop.
    InUse,
    /// The maildrop cannot be read now.
    Unavailable,
}

/// The wish to log in.
pub struct Login {
    user: Secret<String>,
    password: Secret<String>,
    session: Session,
}

/// The wish to see a mail.
pub struct Fetch {
    uidl: Uidl,
    /// How many lines of the body, when not all.
    lines: Option<usize>,
    mails: Vec<Mail>,
    session: Session,
}

/// The wish to quit.
pub struct Update {
    deleted: Vec<Uidl>,
    session: Session,
}

impl Session {
    /// A new one; its first step sends the greeting.
    pub fn new() -> Self {
        let mut session = Self {
            input: Gathered::default(),
            output: Vec::new(),
            state: State::Authorization(None),
            wrong_passwords: 0,
            invalid_commands: 0,
        };
        session.ok("POP3 server ready");
        session
    }

    /// Takes what the client sent. Call it when a step was [`Step::Receive`]: then no more than the beginning of a line
    /// lies here, and `octets` is the limit of what is kept.
    pub fn receive(&mut self, octets: &[u8]) {
        self.input.extend(octets);
    }

    /// What to do next.
    pub fn step(mut self) -> Step {
        loop {
            if !self.output.is_empty() {
                return Step::Send(std::mem::take(&mut self.output), self);
            }
            if matches!(self.state, State::Over) {
                return Step::Close;
            }
            let line = match self.line() {
                Ok(Some(line)) => line,
                Ok(None) => return Step::Receive(self),
                Err(LineTooLong) => {
                    self.end("line too long");
                    continue;
                }
            };
            match Command::parse(without_end(line.expose())) {
                Ok(command) => match self.obey(command) {
                    Next::Stay(session) => self = session,
                    Next::Leave(step) => return step,
                },
                Err(invalid) => self.refuse(invalid),
            }
        }
    }

    /// Takes the next line off the input, if it is whole. A line feed alone ends it as well: nothing is won by refusing
    /// whoever tries this by hand.
    fn line(&mut self) -> Result<Option<Secret<Vec<u8>>>, LineTooLong> {
        let input = self.input.octets();
        match input.iter().take(MAX_LINE_LEN).position(|octet| *octet == b'\n') {
            Some(end) => Ok(Some(self.input.take(end + 1))),
            None if input.len() < MAX_LINE_LEN => Ok(None),
            None => Err(LineTooLong),
        }
    }

    fn refuse(&mut self, invalid: InvalidCommand) {
        self.invalid_commands = self.invalid_commands.saturating_add(1);
        if self.invalid_commands >= MAX_INVALID_COMMANDS {
            self.end("too many errors");
        } else {
            self.err(&invalid.to_string());
        }
    }

    fn obey(mut self, command: Command) -> Next {
        match command {
            Command::Capa => {
                self.capabilities();
                Next::Stay(self)
            }
            command => match std::mem::replace(&mut self.state, State::Over) {
                State::Authorization(user) => self.identify(user, command),
                State::Transaction(mails) => self.transact(mails, command),
                // Unreachable through `step`, which closes first.
                State::Over => Next::Stay(self),
            },
        }
    }

    /// The AUTHORIZATION state (RFC 1939, section 4). Finds the state taken out and puts one back.
    fn identify(mut self, user: Option<Secret<String>>, command: Command) -> Next {
        let user = match command {
            Command::User(name) => {
                // The same answer for every name: who has a maildrop here is not for strangers.
                self.ok("send PASS");
                Some(name)
            }
            Command::Pass(password) => match user {
                Some(user) => return Next::Leave(Step::Login(Login { user, password, session: self })),
                None => {
                    self.err("send USER first");
                    None
                }
            },
            Command::Quit => {
                self.ok("bye");
                return Next::Stay(self);
            }
            _ => {
                self.err("log in first");
                user
            }
        };
        self.state = State::Authorization(user);
        Next::Stay(self)
    }

    /// The TRANSACTION state (RFC 1939, section 5). Finds the state taken out and puts one back.
    fn transact(mut self, mut mails: Vec<Mail>, command: Command) -> Next {
        match command {
            Command::Stat => {
                let (count, size) = totals(&mails);
                self.ok(&format!("{count} {size}"));
            }
            Command::List(None) => {
                let (count, size) = totals(&mails);
                self.list(&format!("{count} messages ({size} octets)"), &mails, |listed| listed.size.to_string());
            }
            Command::List(Some(number)) => self.list_one(&mails, number, |listed| listed.size.to_string()),
            Command::Uidl(None) => self.list("unique-ids follow", &mails, |listed| listed.uidl.to_string()),
            Command::Uidl(Some(number)) => self.list_one(&mails, number, |listed| listed.uidl.to_string()),
            Command::Retr(number) => return self.fetch(mails, number, None),
            Command::Top { message, lines } => return self.fetch(mails, message, Some(lines)),
            Command::Dele(number) => match present(&mut mails, number) {
                Some(mail) => {
                    mail.deleted = true;
                    self.ok(&format!("message {number} goes when you quit"));
                }
                None => self.no_such_message(),
            },
            Command::Rset => {
                mails.iter_mut().for_each(|mail| mail.deleted = false);
                let (count, size) = totals(&mails);
                self.ok(&format!("{count} messages ({size} octets)"));
            }
            Command::Noop => self.ok("here"),
            Command::Quit => {
                let deleted = mails.into_iter().filter(|mail| mail.deleted).map(|mail| mail.listed.uidl).collect();
                return Next::Leave(Step::Update(Update { deleted, session: self }));
            }
            // CAPA was answered before.
            Command::User(_) | Command::Pass(_) | Command::Capa => self.err("logged in already"),
        }
        self.state = State::Transaction(mails);
        Next::Stay(self)
    }

    fn fetch(mut self, mut mails: Vec<Mail>, number: usize, lines: Option<usize>) -> Next {
        let Some(mail) = present(&mut mails, number) else {
            self.no_such_message();
            self.state = State::Transaction(mails);
            return Next::Stay(self);
        };
        let uidl = mail.listed.uidl.clone();
        Next::Leave(Step::Fetch(Fetch { uidl, lines, mails, session: self }))
    }

    fn capabilities(&mut self) {
        self.ok("capabilities follow");
        let lines: String = CAPABILITIES.iter().map(|capability| format!("{capability}\r\n")).collect();
        stuff(lines.as_bytes(), &mut self.output);
    }

    fn list(&mut self, title: &str, mails: &[Mail], column: impl Fn(&Listed) -> String) {
        self.ok(title);
        let left = mails.iter().zip(1_usize..).filter(|(mail, _)| !mail.deleted);
        let lines: String = left.map(|(mail, number)| format!("{number} {}\r\n", column(&mail.listed))).collect();
        stuff(lines.as_bytes(), &mut self.output);
    }

    fn list_one(&mut self, mails: &[Mail], number: usize, column: impl Fn(&Listed) -> String) {
        let mail = number.checked_sub(1).and_then(|index| mails.get(index)).filter(|mail| !mail.deleted);
        match mail {
            Some(mail) => self.ok(&format!("{number} {}", column(&mail.listed))),
            None => self.no_such_message(),
        }
    }

    fn no_such_message(&mut self) {
        self.err("no such message");
    }

    fn ok(&mut self, text: &str) {
        self.output.extend_from_slice(format!("+OK {text}\r\n").as_bytes());
    }

    fn err(&mut self, text: &str) {
        self.output.extend_from_slice(format!("-ERR {text}\r\n").as_bytes());
    }

    /// Says why, and closes without removing anything.
    fn end(&mut self, why: &str) {
        self.err(why);
        self.input.clear();
        self.state = State::Over;
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

/// What a command comes to.
enum Next {
    Stay(Session),
    Leave(Step),
}

struct LineTooLong;

fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn totals(mails: &[Mail]) -> (usize, u64) {
    let left = mails.iter().filter(|mail| !mail.deleted);
    left.fold((0, 0), |(count, size), mail| (count + 1, size + mail.listed.size))
}

fn present(mails: &mut [Mail], number: usize) -> Option<&mut Mail> {
    mails.get_mut(number.checked_sub(1)?).filter(|mail| !mail.deleted)
}

impl Login {
    /// Who it claims to be.
    pub fn user(&self) -> &str {
        self.user.expose()
    }

    /// The proof.
    pub fn password(&self) -> &Secret<String> {
        &self.password
    }

    /// Goes on with what the maildrop holds, or with why not.
    pub fn done(self, outcome: Result<Vec<Listed>, Refusal>) -> Session {
        let mut session = self.session;
        session.state = State::Authorization(None);
        match outcome {
            Ok(listed) => {
                let mails: Vec<_> = listed.into_iter().map(|listed| Mail { listed, deleted: false }).collect();
                let (count, size) = totals(&mails);
                session.ok(&format!("{count} messages ({size} octets)"));
                session.state = State::Transaction(mails);
            }
            Err(Refusal::WrongPassword) => {
                session.wrong_passwords += 1;
                if session.wrong_passwords >= MAX_WRONG_PASSWORDS {
                    session.end("[AUTH] wrong name or password, too often");
                } else {
                    session.err("[AUTH] wrong name or password");
                }
            }
            Err(Refusal::InUse) => session.err("[IN-USE] another session has this maildrop"),
            Err(Refusal::Unavailable) => session.err("[SYS/TEMP] the maildrop cannot be read now"),
        }
        session
    }
}

impl Fetch {
    /// Which mail.
    pub fn uidl(&self) -> &Uidl {
        &self.uidl
    }

    /// Goes on with the mail, with none when it is gone, or with its being out of reach.
    pub fn done(self, outcome: Result<Option<Letter>, Refusal>) -> Session {
        let mut session = self.session;
        match outcome {
            Ok(Some(letter)) => {
                let lines = match self.lines {
                    None => {
                        session.ok(&format!("{} octets", letter.len()));
                        letter.as_bytes()
                    }
                    Some(lines) => {
                        session.ok("top of the message follows");
                        letter.top(lines)
                    }
                };
                stuff(lines, &mut session.output);
            }
            Ok(None) => session.err("somebody else removed this message"),
            Err(_) => session.err("[SYS/TEMP] the message cannot be read now"),
        }
        session.state = State::Transaction(self.mails);
        session
    }
}

impl Update {
    /// What to remove.
    pub fn deleted(&self) -> &[Uidl] {
        &self.deleted
    }

    /// Says good-bye: when all of it is gone for good, or because not all of it is.
    pub fn done(self, removed: bool) -> Session {
        let mut session = self.session;
        // What was sent after QUIT is nobody's.
        session.input.clear();
        if removed {
            session.ok("bye");
        } else {
            session.err("[SYS/TEMP] some deleted messages not removed");
        }
        session
    }
}

/// Prints no text, no names.
macro_rules! redacted {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )*};
}
redacted!(Session, Login, Fetch, Update);

/// Prints the kind of step.
impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send(..) => "Send",
            Self::Receive(_) => "Receive",
            Self::Login(_) => "Login",
            Self::Fetch(_) => "Fetch",
            Self::Update(_) => "Update",
            Self::Close => "Close",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Three mails with the sizes and tops that the transcripts below expect.
    const MAILS: [&str; 3] = ["A: 1\r\n\r\nbody\r\n", "B: 2\r\n\r\n.\r\n..x\r\nend\r\n", ""];

    /// A world for one session, and what it did there.
    struct World {
        refuse: Option<Refusal>,
        broken: bool,
        removed: Option<Vec<String>>,
    }

    fn listed() -> Vec<Listed> {
        let named = MAILS.iter().zip(["id-a", "id-b", "id-c"]);
        named
            .map(|(mail, uidl)| Listed { uidl: Uidl::parse(uidl).unwrap(), size: mail.len().try_into().unwrap() })
            .collect()
    }

    fn mail(uidl: &Uidl) -> Option<Letter> {
        let index = listed().iter().position(|listed| listed.uidl == *uidl)?;
        Some(Letter::new(MAILS[index].into()))
    }

    /// Feeds `input` and then nothing more; gives what was said, and whether the session closed by itself.
    fn run(world: &mut World, input: &[&[u8]]) -> (String, bool) {
        let mut said = Vec::new();
        let mut input = input.iter();
        let mut session = Session::new();
        loop {
            session = match session.step() {
                Step::Send(octets, session) => {
                    said.extend_from_slice(&octets);
                    session
                }
                Step::Receive(mut session) => match input.next() {
                    Some(octets) => {
                        session.receive(octets);
                        session
                    }
                    None => return (String::from_utf8(said).unwrap(), false),
                },
                Step::Login(login) => {
                    let right = login.user() == "alice" && login.password().expose() == "pass word";
                    let outcome = match world.refuse {
                        _ if !right => Err(Refusal::WrongPassword),
                        Some(refusal) => Err(refusal),
                        None => Ok(listed()),
                    };
                    login.done(outcome)
                }
                Step::Fetch(fetch) => {
                    let outcome = if world.broken { Err(Refusal::Unavailable) } else { Ok(mail(fetch.uidl())) };
                    fetch.done(outcome)
                }
                Step::Update(update) => {
                    world.removed = Some(update.deleted().iter().map(Uidl::to_string).collect());
                    update.done(!world.broken)
                }
                Step::Close => return (String::from_utf8(said).unwrap(), true),
            };
        }
    }

    fn world() -> World {
        World { refuse: None, broken: false, removed: None }
    }

    /// What is answered to these lines after greeting and login.
    fn logged_in(world: &mut World, lines: &str) -> (String, bool) {
        let hello = "+OK POP3 server ready\r\n+OK send PASS\r\n+OK 3 messages (35 octets)\r\n";
        let input = format!("USER alice\r\nPASS pass word\r\n{lines}");
        let (said, closed) = run(world, &[input.as_bytes()]);
        (said.strip_prefix(hello).unwrap_or_else(|| panic!("{said}")).to_owned(), closed)
    }

    fn transcript(lines: &str, answers: &str) {
        let (said, _) = logged_in(&mut world(), lines);
        assert_eq!(said, answers, "{lines}");
    }

    #[test]
    fn capabilities_are_the_same_before_and_after_login() {
        let capabilities = "+OK capabilities follow\r\nUSER\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\n\
             EXPIRE NEVER\r\n.\r\n";
        transcript("CAPA\r\n", capabilities);
        let (said, closed) = run(&mut world(), &[b"CAPA\r\n"]);
        assert_eq!((said, closed), (format!("+OK POP3 server ready\r\n{capabilities}"), false));
    }

    #[test]
    fn stat_counts_what_is_not_deleted() {
        transcript("STAT\r\nDELE 2\r\nSTAT\r\n", "+OK 3 35\r\n+OK message 2 goes when you quit\r\n+OK 2 14\r\n");
    }

    #[test]
    fn list_keeps_the_numbers_of_what_is_left() {
        transcript("LIST\r\n", "+OK 3 messages (35 octets)\r\n1 14\r\n2 21\r\n3 0\r\n.\r\n");
        transcript(
            "DELE 1\r\nLIST\r\nLIST 2\r\nLIST 1\r\nLIST 4\r\nLIST 0\r\n",
            "+OK message 1 goes when you quit\r\n+OK 2 messages (21 octets)\r\n2 21\r\n3 0\r\n.\r\n+OK 2 21\r\n\
             -ERR no such message\r\n-ERR no such message\r\n-ERR no such message\r\n",
        );
    }

    #[test]
    fn uidl_names_what_is_left() {
        transcript("UIDL\r\n", "+OK unique-ids follow\r\n1 id-a\r\n2 id-b\r\n3 id-c\r\n.\r\n");
        transcript(
            "DELE 2\r\nUIDL\r\nUIDL 3\r\nUIDL 2\r\n",
            "+OK message 2 goes when you quit\r\n+OK unique-ids follow\r\n1 id-a\r\n3 id-c\r\n.\r\n+OK 3 id-c\r\n\
             -ERR no such message\r\n",
        );
    }

    #[test]
    fn retr_stuffs_dots_and_announces_the_octets_before_that() {
        transcript("RETR 1\r\n", "+OK 14 octets\r\nA: 1\r\n\r\nbody\r\n.\r\n");
        transcript("RETR 2\r\n", "+OK 21 octets\r\nB: 2\r\n\r\n..\r\n...x\r\nend\r\n.\r\n");
        transcript("RETR 3\r\n", "+OK 0 octets\r\n.\r\n");
        transcript("RETR 4\r\nRETR 0\r\n", "-ERR no such message\r\n-ERR no such message\r\n");
    }

    #[test]
    fn top_past_the_end_gives_the_whole_mail() {
        transcript("TOP 2 0\r\n", "+OK top of the message follows\r\nB: 2\r\n\r\n.\r\n");
        transcript("TOP 2 2\r\n", "+OK top of the message follows\r\nB: 2\r\n\r\n..\r\n...x\r\n.\r\n");
        transcript("TOP 1 1000\r\n", "+OK top of the message follows\r\nA: 1\r\n\r\nbody\r\n.\r\n");
        transcript("TOP 3 1\r\n", "+OK top of the message follows\r\n.\r\n");
        transcript("TOP 9 1\r\n", "-ERR no such message\r\n");
    }

    #[test]
    fn deleted_mail_is_out_of_reach_until_rset() {
        transcript(
            "DELE 1\r\nRETR 1\r\nTOP 1 0\r\nDELE 1\r\nRSET\r\nRETR 1\r\n",
            "+OK message 1 goes when you quit\r\n-ERR no such message\r\n-ERR no such message\r\n-ERR no such message\r\n\
             +OK 3 messages (35 octets)\r\n+OK 14 octets\r\nA: 1\r\n\r\nbody\r\n.\r\n",
        );
    }

    #[test]
    fn quit_removes_what_was_marked_and_nothing_else() {
        let mut world = world();
        let (said, closed) = logged_in(&mut world, "DELE 1\r\nDELE 3\r\nNOOP\r\nQUIT\r\n");
        assert!(said.ends_with("+OK here\r\n+OK bye\r\n"), "{said}");
        assert!(closed);
        assert_eq!(world.removed, Some(vec!["id-a".to_owned(), "id-c".to_owned()]));
    }

    #[test]
    fn lost_connection_removes_nothing() {
        let mut world = world();
        let (_, closed) = logged_in(&mut world, "DELE 1\r\nDELE 2\r\nQUI");
        assert!(!closed);
        assert_eq!(world.removed, None);
    }

    #[test]
    fn rset_before_quit_removes_nothing() {
        let mut world = world();
        logged_in(&mut world, "DELE 1\r\nRSET\r\nQUIT\r\n");
        assert_eq!(world.removed, Some(Vec::new()));
    }

    #[test]
    fn commands_after_quit_are_not_obeyed() {
        let (said, closed) = logged_in(&mut world(), "QUIT\r\nSTAT\r\n");
        assert_eq!((said.as_str(), closed), ("+OK bye\r\n", true));
        let (said, closed) = run(&mut world(), &[b"QUIT\r\nCAPA\r\n"]);
        assert_eq!((said.as_str(), closed), ("+OK POP3 server ready\r\n+OK bye\r\n", true));
    }

    #[test]
    fn removal_that_failed_is_not_called_done() {
        let mut world = World { broken: true, ..world() };
        let (said, closed) = logged_in(&mut world, "DELE 1\r\nQUIT\r\n");
        assert!(said.ends_with("-ERR [SYS/TEMP] some deleted messages not removed\r\n"));
        assert!(closed);
    }

    #[test]
    fn mail_out_of_reach_is_a_temporary_error() {
        let mut world = World { broken: true, ..world() };
        let (said, _) = logged_in(&mut world, "RETR 1\r\nSTAT\r\n");
        assert_eq!(said, "-ERR [SYS/TEMP] the message cannot be read now\r\n+OK 3 35\r\n");
    }

    #[test]
    fn commands_in_the_wrong_state_are_refused() {
        for line in ["STAT", "LIST", "UIDL 1", "RETR 1", "TOP 1 1", "DELE 1", "RSET", "NOOP"] {
            let (said, closed) = run(&mut world(), &[line.as_bytes(), b"\r\n"]);
            assert_eq!((said.as_str(), closed), ("+OK POP3 server ready\r\n-ERR log in first\r\n", false), "{line}");
        }
        transcript("USER bob\r\nPASS x\r\n", "-ERR logged in already\r\n-ERR logged in already\r\n");
        let (said, _) = run(&mut world(), &[b"PASS x\r\n"]);
        assert!(said.ends_with("-ERR send USER first\r\n"));
    }

    #[test]
    fn unknown_names_and_wrong_passwords_sound_the_same_and_three_end_it() {
        let (said, closed) =
            run(&mut world(), &[b"USER alice\r\nPASS x\r\nUSER eve\r\nPASS pass word\r\nUSER alice\r\nPASS y\r\nUSER alice\r\nPASS pass word\r\n"]);
        let answers = "+OK POP3 server ready\r\n+OK send PASS\r\n-ERR [AUTH] wrong name or password\r\n+OK send PASS\r\n\
             -ERR [AUTH] wrong name or password\r\n+OK send PASS\r\n-ERR [AUTH] wrong name or password, too often\r\n";
        assert_eq!((said.as_str(), closed), (answers, true));
    }

    #[test]
    fn wrong_password_forgets_the_name() {
        let (said, _) = run(&mut world(), &[b"USER alice\r\nPASS x\r\nPASS pass word\r\n"]);
        assert!(said.ends_with("-ERR send USER first\r\n"));
    }

    #[test]
    fn maildrop_in_use_may_be_tried_again() {
        let mut world = World { refuse: Some(Refusal::InUse), ..world() };
        let (said, closed) = run(&mut world, &[b"USER alice\r\nPASS pass word\r\nQUIT\r\n"]);
        assert!(said.contains("-ERR [IN-USE] another session has this maildrop\r\n+OK bye\r\n"), "{said}");
        assert!(closed);
        assert_eq!(world.removed, None);
    }

    #[test]
    fn maildrop_out_of_reach_is_no_empty_maildrop() {
        let mut world = World { refuse: Some(Refusal::Unavailable), ..world() };
        let (said, _) = run(&mut world, &[b"USER alice\r\nPASS pass word\r\nSTAT\r\n"]);
        assert!(said.ends_with("-ERR [SYS/TEMP] the maildrop cannot be read now\r\n-ERR log in first\r\n"), "{said}");
    }

    #[test]
    fn line_over_the_limit_ends_the_session() {
        let longest = format!("USER {}\r\n", "x".repeat(MAX_LINE_LEN - 7));
        assert_eq!(longest.len(), MAX_LINE_LEN);
        let (said, closed) = run(&mut world(), &[longest.as_bytes()]);
        assert_eq!((said.as_str(), closed), ("+OK POP3 server ready\r\n+OK send PASS\r\n", false));
        let longer = format!("USER {}\r\n", "x".repeat(MAX_LINE_LEN - 6));
        for input in [longer.as_bytes(), &[b'x'; 100_000]] {
            let (said, closed) = run(&mut world(), &[input]);
            assert_eq!((said.as_str(), closed), ("+OK POP3 server ready\r\n-ERR line too long\r\n", true));
        }
    }

    #[test]
    fn endless_nonsense_ends_the_session() {
        let (said, closed) = run(&mut world(), &["GET / HTTP/1.1\r\n".repeat(100).as_bytes()]);
        assert!(closed);
        assert!(said.ends_with("-ERR unknown command\r\n-ERR too many errors\r\n"));
    }

    #[test]
    fn octets_may_arrive_one_by_one() {
        let input = b"USER alice\r\nPASS pass word\r\nSTAT\r\nQUIT\r\n";
        let single: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(run(&mut world(), &single), run(&mut world(), &[input]));
    }

    #[test]
    fn nothing_secret_prints() {
        let mut session = Session::new();
        session.receive(b"USER alice\r\nPASS hunter2\r\n");
        let mut step = session.step();
        while let Step::Send(_, session) = step {
            assert_eq!(format!("{session:?}"), "Session(..)");
            step = session.step();
        }
        let Step::Login(login) = step else { panic!("no login") };
        assert_eq!(format!("{login:?}"), "Login(..)");
    }

    proptest! {
        #[test]
        fn no_input_panics_and_strangers_remove_nothing(input in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut world = world();
            run(&mut world, &[&input]);
            prop_assert_eq!(world.removed, None);
        }

        #[test]
        fn no_order_of_commands_panics(lines in prop::collection::vec("(USER alice|PASS pass word|CAPA|STAT|LIST|UIDL|RSET|NOOP|QUIT|((RETR|DELE|LIST|UIDL|TOP)( [0-9]{1,22}){0,2}))", 0..40)) {
            let input = lines.join("\r\n");
            run(&mut world(), &[input.as_bytes()]);
        }
    }
}
