//! The patterns of a list of refusals; the only file that names regex.
//!
//! The reference compiles them with Python 2's `re`, which backtracks: a pattern or an address can make it run for ever.
//! `regex` needs time in proportion to the address, whatever the pattern. Both write most things the same way, and some of
//! those mean something else (`\<`, `\Z`, `[a&&b]`), so each pattern is read as Python reads it and written anew.

use std::fmt::Write as _;

use regex::bytes::{RegexBuilder, RegexSet, RegexSetBuilder};

/// Octets of one pattern. People write some dozens.
pub const MAX_PATTERN_LEN: usize = 1000;
/// Patterns of one kind in a list: each costs at each mail.
pub const MAX_PATTERNS: usize = 1000;
/// Memory of one pattern that is compiled: `(x{100}){100}` is short and not small.
const MAX_COMPILED: usize = 256 * 1024;
/// Memory of all patterns of one kind.
const MAX_ALL_COMPILED: usize = 16 * 1024 * 1024;
/// Memory of what a search remembers, in place of two megabytes for each thread.
const MAX_REMEMBERED: usize = 512 * 1024;

/// Why a pattern was refused. Blames whoever wrote it. Holds none of it, since it may name somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// It costs memory.
    #[error("found more than {MAX_PATTERN_LEN} octets, expected a shorter pattern")]
    TooLong,
    /// It is short and becomes long.
    #[error("found repetitions or groups that make it too large, expected a smaller pattern")]
    TooLarge,
    /// `\1`, `(?P=name)`.
    #[error("found a reference to a group, expected none: it could make a search run for ever")]
    BackReference,
    /// `(?=`, `(?!`, `(?<=`, `(?<!`.
    #[error("found (?=, (?!, (?<= or (?<!, expected none: it could make a search run for ever")]
    LookAround,
    /// `(?(1)`.
    #[error("found (?(, a group that depends on another, expected none: it could make a search run for ever")]
    Conditional,
    /// `(?` and a letter or sign that means nothing.
    #[error("found an unknown group, expected (?:, (?P<name>, (?# or flags of iLmsux after (?")]
    Group,
    /// A parenthesis without the other.
    #[error("found a parenthesis alone, expected ( and )")]
    Parenthesis,
    /// `[` without `]`.
    #[error("found [ alone, expected [ and ]")]
    Class,
    /// `[z-a]`, `[a-\d]`.
    #[error("found a range that ends before it begins or at no letter, expected one such as a-z")]
    Range,
    /// `\x1`, `[\8]`, `\` at the end.
    #[error("found \\ with nothing or no number behind it, expected such as \\., \\x2e or \\056")]
    Escape,
    /// `*a`, `a**`.
    #[error("found a repetition of nothing or of another, expected something before it that can be repeated")]
    Repetition,
    /// `a{2,1}`, `a{99999999999}`.
    #[error("found {{m,n}} whose numbers are the wrong way round or too large, expected small ones in order")]
    Numbers,
}

/// Patterns of which one is to be found in an address, in either case.
#[derive(Default)]
pub(super) struct Patterns(Option<RegexSet>);

impl Patterns {
    /// Those that [`translate`] has made.
    ///
    /// # Errors
    /// [`InvalidPattern::TooLarge`], all of them together.
    pub(super) fn new(translated: &[String]) -> Result<Self, InvalidPattern> {
        if translated.is_empty() {
            return Ok(Self(None));
        }
        let mut set = RegexSetBuilder::new(translated);
        set.case_insensitive(true).unicode(false).size_limit(MAX_ALL_COMPILED).dfa_size_limit(MAX_REMEMBERED);
        set.build().map(|set| Self(Some(set))).map_err(|_| InvalidPattern::TooLarge)
    }

    /// Whether one of them is to be found there.
    pub(super) fn find(&self, address: &str) -> bool {
        self.0.as_ref().is_some_and(|set| set.is_match(address.as_bytes()))
    }
}

/// The pattern as `regex` writes it. Tried, so that it can be blamed for its size.
///
/// # Errors
/// [`InvalidPattern`].
pub(super) fn translate(pattern: &[u8]) -> Result<String, InvalidPattern> {
    if pattern.len() > MAX_PATTERN_LEN {
        return Err(InvalidPattern::TooLong);
    }
    let tokens = tokens(pattern)?;
    let mut reader = Reader::new(&tokens, false);
    reader.read()?;
    // Flags are of the whole pattern, wherever they stand; this one changes how it is read.
    if reader.verbose {
        reader = Reader::new(&tokens, true);
        reader.read()?;
    }
    let mut alone = RegexBuilder::new(&reader.written);
    alone.case_insensitive(true).unicode(false).size_limit(MAX_COMPILED).dfa_size_limit(MAX_REMEMBERED);
    // What is wrong with the syntax has been found by now: what remains is size, and depth of groups.
    alone.build().map_err(|_| InvalidPattern::TooLarge)?;
    Ok(reader.written)
}

/// One octet of a pattern, or one behind a backslash: that never ends or opens anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Plain(u8),
    Escaped(u8),
}

fn tokens(pattern: &[u8]) -> Result<Vec<Token>, InvalidPattern> {
    let (mut tokens, mut octets) = (Vec::new(), pattern.iter());
    while let Some(&octet) = octets.next() {
        tokens.push(match octet {
            b'\\' => Token::Escaped(*octets.next().ok_or(InvalidPattern::Escape)?),
            octet => Token::Plain(octet),
        });
    }
    Ok(tokens)
}

/// What stands before a repetition.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// A place and no text: Python repeats none.
    Place,
    Something,
    Repetition,
}

/// What a backslash makes of the letter behind it.
enum Escape {
    Octet(u8),
    /// `\d` and the like: the same letter in both.
    Kind(u8),
    Place(&'static str),
}

/// Reads as `sre_parse` of Python 2.7.
struct Reader<'t> {
    rest: &'t [Token],
    verbose: bool,
    before: Before,
    /// Groups that are open.
    open: usize,
    written: String,
}

impl<'t> Reader<'t> {
    fn new(tokens: &'t [Token], verbose: bool) -> Self {
        Self { rest: tokens, verbose, before: Before::Nothing, open: 0, written: String::new() }
    }

    fn read(&mut self) -> Result<(), InvalidPattern> {
        while let Some(token) = self.step() {
            match token {
                Token::Plain(b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C) if self.verbose => {}
                Token::Plain(b'#') if self.verbose => while self.step().is_some_and(|it| it != Token::Plain(b'\n')) {},
                Token::Plain(b'[') => self.class()?,
                Token::Plain(octet @ (b'*' | b'+' | b'?')) => self.repetition(char::from(octet).to_string())?,
                Token::Plain(b'{') => self.braces()?,
                Token::Plain(b'.') => self.write(".", Before::Something),
                Token::Plain(b'^') => self.write("^", Before::Place),
                Token::Plain(b'$') => self.write("$", Before::Place),
                Token::Plain(b'|') => self.write("|", Before::Nothing),
                Token::Plain(b'(') => self.group()?,
                Token::Plain(b')') => {
                    self.open = self.open.checked_sub(1).ok_or(InvalidPattern::Parenthesis)?;
                    self.write(")", Before::Something);
                }
                Token::Plain(octet) => self.octet(octet),
                Token::Escaped(letter) => match self.escape(letter)? {
                    Escape::Octet(octet) => self.octet(octet),
                    Escape::Kind(letter) => {
                        self.written.push('\\');
                        self.written.push(char::from(letter));
                        self.before = Before::Something;
                    }
                    Escape::Place(place) => self.write(place, Before::Place),
                },
            }
        }
        if self.open == 0 { Ok(()) } else { Err(InvalidPattern::Parenthesis) }
    }

    fn step(&mut self) -> Option<Token> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn take(&mut self, octet: u8) -> bool {
        let is_next = self.rest.first() == Some(&Token::Plain(octet));
        if is_next {
            self.step();
        }
        is_next
    }

    /// Up to `most` octets that `is` is true of.
    fn digits(&mut self, most: usize, is: impl Fn(&u8) -> bool) -> String {
        let mut digits = String::new();
        while digits.len() < most
            && let Some(Token::Plain(octet)) = self.rest.first()
            && is(octet)
        {
            digits.push(char::from(*octet));
            self.step();
        }
        digits
    }

    fn write(&mut self, text: &str, before: Before) {
        self.written.push_str(text);
        self.before = before;
    }

    /// In hexadecimal, always: so it stands for itself and nothing else.
    fn octet(&mut self, octet: u8) {
        // Writing to a string does not fail.
        let _ = write!(self.written, "\\x{octet:02X}");
        self.before = Before::Something;
    }

    fn escape(&mut self, letter: u8) -> Result<Escape, InvalidPattern> {
        Ok(match letter {
            b'A' => Escape::Place("\\A"),
            b'Z' => Escape::Place("\\z"),
            b'b' => Escape::Place("\\b"),
            b'B' => Escape::Place("\\B"),
            b'1'..=b'9' => Escape::Octet(self.octal_or_reference(letter)?),
            other => self.escape_anywhere(other)?,
        })
    }

    /// What means the same within brackets.
    fn escape_anywhere(&mut self, letter: u8) -> Result<Escape, InvalidPattern> {
        let octet = match letter {
            b'd' | b'D' | b's' | b'S' | b'w' | b'W' => return Ok(Escape::Kind(letter)),
            b'a' => 0x07,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0B,
            b'x' => {
                let digits = self.digits(2, u8::is_ascii_hexdigit);
                if digits.len() != 2 {
                    return Err(InvalidPattern::Escape);
                }
                u8::from_str_radix(&digits, 16).map_err(|_| InvalidPattern::Escape)?
            }
            b'0' => self.octal("0", 2)?,
            other => other,
        };
        Ok(Escape::Octet(octet))
    }

    /// An octet of octal digits, of which some have been read. Of more than eight bits the lowest count.
    fn octal(&mut self, read: &str, most: usize) -> Result<u8, InvalidPattern> {
        let digits = read.to_owned() + &self.digits(most, |octet| (b'0'..=b'7').contains(octet));
        let number = u16::from_str_radix(&digits, 8).map_err(|_| InvalidPattern::Escape)?;
        Ok(number.to_le_bytes()[0])
    }

    /// Three octal digits are an octet, anything else is the number of a group.
    fn octal_or_reference(&mut self, first: u8) -> Result<u8, InvalidPattern> {
        let is_octal = |octet: &u8| (b'0'..=b'7').contains(octet);
        if let [Token::Plain(second), Token::Plain(third), ..] = self.rest
            && [first, *second, *third].iter().all(is_octal)
        {
            return self.octal(&char::from(first).to_string(), 2);
        }
        Err(InvalidPattern::BackReference)
    }

    /// Behind `[`.
    fn class(&mut self) -> Result<(), InvalidPattern> {
        self.written.push('[');
        if self.take(b'^') {
            self.written.push('^');
        }
        let mut is_first = true;
        loop {
            let token = self.step().ok_or(InvalidPattern::Class)?;
            if token == Token::Plain(b']') && !is_first {
                break;
            }
            is_first = false;
            let from = self.member(token)?;
            if !self.take(b'-') {
                self.member_written(&from);
                continue;
            }
            let token = self.step().ok_or(InvalidPattern::Class)?;
            if token == Token::Plain(b']') {
                self.member_written(&from);
                self.octet(b'-');
                break;
            }
            match (from, self.member(token)?) {
                (Escape::Octet(from), Escape::Octet(to)) if from <= to => {
                    self.octet(from);
                    self.written.push('-');
                    self.octet(to);
                }
                _ => return Err(InvalidPattern::Range),
            }
        }
        self.write("]", Before::Something);
        Ok(())
    }

    fn member(&mut self, token: Token) -> Result<Escape, InvalidPattern> {
        match token {
            Token::Plain(octet) => Ok(Escape::Octet(octet)),
            Token::Escaped(b'b') => Ok(Escape::Octet(0x08)),
            Token::Escaped(digit @ b'1'..=b'7') => self.octal(&char::from(digit).to_string(), 2).map(Escape::Octet),
            Token::Escaped(b'8' | b'9') => Err(InvalidPattern::Escape),
            Token::Escaped(letter) => self.escape_anywhere(letter),
        }
    }

    fn member_written(&mut self, member: &Escape) {
        match member {
            Escape::Octet(octet) => self.octet(*octet),
            Escape::Kind(letter) => {
                self.written.push('\\');
                self.written.push(char::from(*letter));
            }
            Escape::Place(_) => {}
        }
    }

    /// Behind `{`: a repetition if it has the form of one, else itself.
    fn braces(&mut self) -> Result<(), InvalidPattern> {
        let here = self.rest;
        if here.first() == Some(&Token::Plain(b'}')) {
            self.octet(b'{');
            return Ok(());
        }
        let least = self.digits(usize::MAX, u8::is_ascii_digit);
        let most = if self.take(b',') { self.digits(usize::MAX, u8::is_ascii_digit) } else { least.clone() };
        if !self.take(b'}') {
            self.rest = here;
            self.octet(b'{');
            return Ok(());
        }
        let number = |digits: &str| digits.parse::<u32>().map_err(|_| InvalidPattern::Numbers);
        let least = if least.is_empty() { 0 } else { number(&least)? };
        if most.is_empty() {
            return self.repetition(format!("{{{least},}}"));
        }
        let most = number(&most)?;
        if most < least {
            return Err(InvalidPattern::Numbers);
        }
        self.repetition(format!("{{{least},{most}}}"))
    }

    fn repetition(&mut self, times: String) -> Result<(), InvalidPattern> {
        if self.before != Before::Something {
            return Err(InvalidPattern::Repetition);
        }
        self.write(&times, Before::Repetition);
        // As few as possible or as many: it is found or not all the same.
        self.take(b'?');
        Ok(())
    }

    /// Behind `(`.
    fn group(&mut self) -> Result<(), InvalidPattern> {
        if self.take(b'?') {
            match self.step() {
                Some(Token::Plain(b':')) => {}
                Some(Token::Plain(b'P')) => self.name()?,
                Some(Token::Plain(b'#')) => {
                    return loop {
                        match self.step() {
                            Some(Token::Plain(b')')) => break Ok(()),
                            Some(_) => {}
                            None => break Err(InvalidPattern::Parenthesis),
                        }
                    };
                }
                Some(Token::Plain(b'=' | b'!' | b'<')) => return Err(InvalidPattern::LookAround),
                Some(Token::Plain(b'(')) => return Err(InvalidPattern::Conditional),
                Some(flag) => return self.flags(flag),
                None => return Err(InvalidPattern::Group),
            }
        }
        self.open += 1;
        self.write("(?:", Before::Nothing);
        Ok(())
    }

    /// Behind `(?P`. What a group is called is of no use here.
    fn name(&mut self) -> Result<(), InvalidPattern> {
        if self.take(b'=') {
            return Err(InvalidPattern::BackReference);
        }
        if !self.take(b'<') {
            return Err(InvalidPattern::Group);
        }
        let name = self.digits(usize::MAX, |octet| octet.is_ascii_alphanumeric() || *octet == b'_');
        let is_name = !name.is_empty() && !name.starts_with(|first: char| first.is_ascii_digit());
        if is_name && self.take(b'>') { Ok(()) } else { Err(InvalidPattern::Group) }
    }

    /// Of all but `x` nothing follows: case never counts, and an address is one line of ASCII.
    fn flags(&mut self, first: Token) -> Result<(), InvalidPattern> {
        let mut flag = Some(first);
        loop {
            match flag {
                Some(Token::Plain(b'i' | b'L' | b'm' | b's' | b'u' | b't')) => {}
                Some(Token::Plain(b'x')) => self.verbose = true,
                _ => return Err(InvalidPattern::Group),
            }
            if self.take(b')') {
                return Ok(());
            }
            flag = self.step();
        }
    }
}
