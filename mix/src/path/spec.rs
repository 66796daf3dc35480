//! Path specifications: what people write to say which mixes a packet goes through (path-spec 3).
//!
//! Grammar alone. Whether the mixes exist is `path::valid`'s, choosing them `path::select`'s, and reading the descriptor
//! files that an element may name is the caller's.

use std::fmt;

use crate::directory::Nickname;

/// Largest N of `*N` and `~N`. The two headers of a packet have room for fewer than 40 mixes together.
pub const MAX_HOPS: usize = 99;

/// What the path is for; decides how short it may be and whether it has one leg or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathKind {
    /// Two legs, from here to an exit.
    Forward,
    /// The first leg of a reply; the SURB is the second.
    Reply,
    /// The second leg of a packet that answers us.
    Surb,
}

/// One or more mixes of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathElement {
    /// The mix of this nickname.
    Named(Nickname),
    /// The mix whose descriptor is in this file. Whoever asks for a path reads it.
    File(String),
    /// Exactly so many mixes, any.
    Random(usize),
    /// About so many mixes, any: normally distributed, at least one.
    About(usize),
}

/// A path as people write it: `nickname`, `?`, `*N`, `~N`, descriptor file, joined by commas; a colon is the swap point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathSpec {
    kind: PathKind,
    legs: Legs,
}

/// How a specification divides a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Legs {
    /// All of a reply or SURB path.
    Whole(Vec<PathElement>),
    /// A forward path that is divided at its middle once its length is known.
    Middle(Vec<PathElement>),
    /// A forward path whose swap point was written.
    Swap(Vec<PathElement>, Vec<PathElement>),
}

/// Why a text is not a path specification. Blames whoever wrote it. Elements are counted from 1.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidPathSpec {
    /// Two separators with nothing between them, or one at the beginning.
    #[error("element {element} of the path is empty")]
    EmptyElement {
        /// Which.
        element: usize,
    },
    /// A quotation mark without its pair.
    #[error("the quotation mark of element {element} of the path is never closed")]
    OpenQuote {
        /// Which.
        element: usize,
    },
    /// After a closing quotation mark comes neither separator nor end.
    #[error("element {element} of the path goes on after its closing quotation mark")]
    AfterQuote {
        /// Which.
        element: usize,
    },
    /// Quotation marks, angle brackets or control characters in a word, or a word that begins like `?` but goes on.
    #[error("element {element} of the path is neither nickname, ?, *N, ~N nor a file name; odd file names need quotes")]
    Word {
        /// Which.
        element: usize,
    },
    /// `*` alone: it meant "fill up to the default length" once.
    #[error("element {element} of the path is * without a number, which is no longer supported")]
    BareStar {
        /// Which.
        element: usize,
    },
    /// After `*` or `~` come other characters than digits.
    #[error("element {element} of the path needs a number, of digits alone, behind its * or ~")]
    Number {
        /// Which.
        element: usize,
    },
    /// More mixes than any packet has room for.
    #[error("element {element} of the path asks for more than {MAX_HOPS} mixes")]
    TooMany {
        /// Which.
        element: usize,
    },
    /// `~0`: about no mixes, but at least one.
    #[error("element {element} of the path is ~0, but ~ stands for at least one mix")]
    AboutNone {
        /// Which.
        element: usize,
    },
    /// A path has one swap point.
    #[error("a second swap point (:) in the path, before element {element}")]
    SecondSwapPoint {
        /// The element after it.
        element: usize,
    },
    /// A reply's swap point is where the SURB begins; a SURB is all second leg.
    #[error("a path for replies or SURBs has no swap point (:)")]
    SwapPointInReply,
    /// A forward path needs a mix on either side of its swap point.
    #[error("the {leg} leg of the path is empty")]
    EmptyLeg {
        /// "first" or "second".
        leg: &'static str,
    },
    /// Fewer mixes than packets of this kind need.
    #[error("the path may be as short as {hops}, and must not be shorter than {needed}")]
    TooShort {
        /// Fewest mixes that the specification may give.
        hops: usize,
        /// Fewest mixes that the packet needs: 2 forward, 1 for replies and SURBs.
        needed: usize,
    },
}

/// What the text falls into.
enum Token {
    Element(PathElement),
    SwapPoint,
}

impl PathSpec {
    /// Reads a specification, as of path-spec 3.1. Beyond that grammar, as in the reference: a file name may stand for a
    /// mix, words may be quoted, one comma may trail, and `<swap>` is an element that means the swap point.
    ///
    /// # Errors
    /// [`InvalidPathSpec`], by what is wrong and where.
    pub fn parse(text: &str, kind: PathKind) -> Result<Self, InvalidPathSpec> {
        let mut first = Vec::new();
        let mut second: Option<Vec<_>> = None;
        for (index, token) in tokens(text)?.into_iter().enumerate() {
            match (token, &mut second) {
                (Token::Element(element), None) => first.push(element),
                (Token::Element(element), Some(leg)) => leg.push(element),
                (Token::SwapPoint, _) if kind != PathKind::Forward => return Err(InvalidPathSpec::SwapPointInReply),
                (Token::SwapPoint, None) => second = Some(Vec::new()),
                // One earlier token was no element but the first swap point, so the index counts the next from 1.
                (Token::SwapPoint, Some(_)) => return Err(InvalidPathSpec::SecondSwapPoint { element: index }),
            }
        }
        let legs = match (kind, second) {
            (_, Some(second)) => swapped(first, second)?,
            (PathKind::Forward, None) => middle(first)?,
            (PathKind::Reply | PathKind::Surb, None) => Legs::Whole(long_enough(first, 1)?),
        };
        Ok(Self { kind, legs })
    }

    /// What the path is for.
    pub fn kind(&self) -> PathKind {
        self.kind
    }

    /// The elements of the first and the second leg. All are in the first for a reply; in the second for a SURB, and for
    /// a forward path without a written swap point.
    pub fn elements(&self) -> (&[PathElement], &[PathElement]) {
        match &self.legs {
            Legs::Swap(first, second) => (first, second),
            Legs::Whole(all) if self.kind == PathKind::Reply => (all, &[]),
            Legs::Whole(all) | Legs::Middle(all) => (&[], all),
        }
    }

    /// Whether the path is divided at its middle, since no swap point was written.
    pub fn splits_at_middle(&self) -> bool {
        matches!(self.legs, Legs::Middle(_))
    }

    /// The descriptor files that the path names, which the caller must read.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let (first, second) = self.elements();
        first.iter().chain(second).filter_map(|element| match element {
            PathElement::File(name) => Some(name.as_str()),
            PathElement::Named(_) | PathElement::Random(_) | PathElement::About(_) => None,
        })
    }
}

impl PathElement {
    /// Fewest mixes that it can stand for.
    pub fn min_hops(&self) -> usize {
        match self {
            Self::Named(_) | Self::File(_) | Self::About(_) => 1,
            Self::Random(hops) => *hops,
        }
    }
}

/// Reads back to the same specification.
impl fmt::Display for PathSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.legs {
            Legs::Whole(all) | Legs::Middle(all) => write_joined(f, all),
            Legs::Swap(first, second) => {
                write_joined(f, first)?;
                f.write_str(":")?;
                write_joined(f, second)
            }
        }
    }
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(nickname) => write!(f, "{nickname}"),
            Self::File(name) if is_plain_word(name) => f.write_str(name),
            Self::File(name) if name.contains('"') => write!(f, "'{name}'"),
            Self::File(name) => write!(f, "\"{name}\""),
            Self::Random(1) => f.write_str("?"),
            Self::Random(hops) => write!(f, "*{hops}"),
            Self::About(hops) => write!(f, "~{hops}"),
        }
    }
}

fn write_joined(f: &mut fmt::Formatter<'_>, elements: &[PathElement]) -> fmt::Result {
    for (index, element) in elements.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(f, "{comma}{element}")?;
    }
    Ok(())
}

fn swapped(first: Vec<PathElement>, second: Vec<PathElement>) -> Result<Legs, InvalidPathSpec> {
    for (leg, elements) in [("first", &first), ("second", &second)] {
        // `*0` alone fills no leg. The reference lets it pass and puts a mix there that nobody asked for.
        if min_hops(elements) == 0 {
            return Err(InvalidPathSpec::EmptyLeg { leg });
        }
    }
    Ok(Legs::Swap(first, second))
}

fn middle(elements: Vec<PathElement>) -> Result<Legs, InvalidPathSpec> {
    // `~N` alone could come out as a single mix, which leaves a leg empty, so one of the N is certain (path-spec 3.4,
    // step 0). For `~1` the reference breaks down; about one mix is no forward path.
    let elements = match elements.as_slice() {
        [PathElement::About(hops @ 2..)] => vec![PathElement::Random(1), PathElement::About(hops - 1)],
        _ => elements,
    };
    long_enough(elements, 2).map(Legs::Middle)
}

fn long_enough(elements: Vec<PathElement>, needed: usize) -> Result<Vec<PathElement>, InvalidPathSpec> {
    match min_hops(&elements) {
        hops if hops < needed => Err(InvalidPathSpec::TooShort { hops, needed }),
        _ => Ok(elements),
    }
}

fn min_hops(elements: &[PathElement]) -> usize {
    elements.iter().map(PathElement::min_hops).sum()
}

fn tokens(text: &str) -> Result<Vec<Token>, InvalidPathSpec> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_matches(SPACE);
    for element in 1.. {
        if rest.is_empty() {
            break;
        }
        let mut characters = rest.chars();
        let (token, after) = match characters.next() {
            Some(quote @ ('"' | '\'')) => quoted(characters.as_str(), quote, element)?,
            _ => {
                let (word, after) = rest.split_at(rest.find(SEPARATORS).unwrap_or(rest.len()));
                (unquoted(word.trim_matches(SPACE), element)?, after)
            }
        };
        tokens.push(token);
        if after.starts_with(':') {
            tokens.push(Token::SwapPoint);
        }
        rest = after.strip_prefix(SEPARATORS).unwrap_or(after).trim_start_matches(SPACE);
    }
    Ok(tokens)
}

const SPACE: [char; 2] = [' ', '\t'];
const SEPARATORS: [char; 2] = [',', ':'];

/// The token of a word whose opening quotation mark is off already, and what follows it. There is no way to escape a
/// mark; use the other kind.
fn quoted(text: &str, quote: char, element: usize) -> Result<(Token, &str), InvalidPathSpec> {
    let (word, after) = text.split_once(quote).ok_or(InvalidPathSpec::OpenQuote { element })?;
    let after = after.trim_start_matches(SPACE);
    if !after.is_empty() && !after.starts_with(SEPARATORS) {
        return Err(InvalidPathSpec::AfterQuote { element });
    }
    if word.is_empty() {
        return Err(InvalidPathSpec::EmptyElement { element });
    }
    if word.contains(char::is_control) {
        return Err(InvalidPathSpec::Word { element });
    }
    Ok((Token::Element(mix(word)), after))
}

fn unquoted(word: &str, element: usize) -> Result<Token, InvalidPathSpec> {
    Ok(match word {
        "" => return Err(InvalidPathSpec::EmptyElement { element }),
        "?" => Token::Element(PathElement::Random(1)),
        "*" => return Err(InvalidPathSpec::BareStar { element }),
        "<swap>" => Token::SwapPoint,
        _ => Token::Element(if let Some(digits) = word.strip_prefix('*') {
            PathElement::Random(hops(digits, element)?)
        } else if let Some(digits) = word.strip_prefix('~') {
            match hops(digits, element)? {
                0 => return Err(InvalidPathSpec::AboutNone { element }),
                hops => PathElement::About(hops),
            }
        } else if is_plain_word(word) {
            mix(word)
        } else {
            return Err(InvalidPathSpec::Word { element });
        }),
    })
}

/// Whether the word means a mix without quotation marks around it.
fn is_plain_word(word: &str) -> bool {
    let odd = |c: char| c.is_control() || "'\"<>,:".contains(c);
    !word.starts_with(['?', '*', '~']) && !word.contains(odd) && word.trim_matches(SPACE) == word
}

/// What is no nickname can only be a file.
fn mix(word: &str) -> PathElement {
    word.parse().map_or_else(|_| PathElement::File(word.to_owned()), PathElement::Named)
}

/// The N of `*N` and `~N`.
fn hops(digits: &str, element: usize) -> Result<usize, InvalidPathSpec> {
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(InvalidPathSpec::Number { element });
    }
    // Nothing but digits fails to parse when it is too large alone.
    digits.parse().ok().filter(|&hops| hops <= MAX_HOPS).ok_or(InvalidPathSpec::TooMany { element })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forward(text: &str) -> Result<PathSpec, InvalidPathSpec> {
        PathSpec::parse(text, PathKind::Forward)
    }

    fn refused(text: &str) -> InvalidPathSpec {
        forward(text).expect_err(text)
    }

    fn named(nickname: &str) -> PathElement {
        PathElement::Named(nickname.parse().unwrap())
    }

    #[test]
    fn every_kind_of_element_is_read_and_shown_again() {
        let spec = forward("Foo, *3 ,?:~2,\t./desc/bar, 'my mix, new'").unwrap();
        let file = |name: &str| PathElement::File(name.to_owned());
        let first = [named("Foo"), PathElement::Random(3), PathElement::Random(1)];
        let second = [PathElement::About(2), file("./desc/bar"), file("my mix, new")];
        assert_eq!(spec.elements(), (&first[..], &second[..]));
        assert_eq!(spec.files().collect::<Vec<_>>(), ["./desc/bar", "my mix, new"]);
        assert_eq!(spec.to_string(), "Foo,*3,?:~2,./desc/bar,\"my mix, new\"");
        assert!(!spec.splits_at_middle());
    }

    #[test]
    fn lone_tilde_of_a_forward_path_has_one_certain_mix() {
        let spec = forward("~5").unwrap();
        assert_eq!(spec.elements().1, [PathElement::Random(1), PathElement::About(4)]);
        assert!(spec.splits_at_middle());
        let reply = PathSpec::parse("~5", PathKind::Reply).unwrap();
        assert_eq!(reply.elements(), (&[PathElement::About(5)][..], &[][..]));
    }

    #[test]
    fn empty_elements_are_refused_where_they_are() {
        assert_eq!(refused(",A"), InvalidPathSpec::EmptyElement { element: 1 });
        assert_eq!(refused("A,B,,C"), InvalidPathSpec::EmptyElement { element: 3 });
        assert_eq!(refused("A: :B"), InvalidPathSpec::EmptyElement { element: 2 });
        assert_eq!(refused("A,''"), InvalidPathSpec::EmptyElement { element: 2 });
    }

    #[test]
    fn quotation_marks_that_do_not_fit_are_refused() {
        assert_eq!(refused("A,'un"), InvalidPathSpec::OpenQuote { element: 2 });
        assert_eq!(refused("'A'B,C"), InvalidPathSpec::AfterQuote { element: 1 });
        assert_eq!(refused("A,B'C'"), InvalidPathSpec::Word { element: 2 });
    }

    #[test]
    fn words_that_are_nearly_something_else_are_refused() {
        assert_eq!(refused("A,?B"), InvalidPathSpec::Word { element: 2 });
        assert_eq!(refused("A,<swp>"), InvalidPathSpec::Word { element: 2 });
        assert_eq!(refused("A,B\n"), InvalidPathSpec::Word { element: 2 });
        assert_eq!(refused("A,'B\n'"), InvalidPathSpec::Word { element: 2 });
    }

    #[test]
    fn numbers_must_be_numbers_that_a_packet_has_room_for() {
        assert_eq!(refused("A,*"), InvalidPathSpec::BareStar { element: 2 });
        for text in ["A,*2x", "A,~", "A,~3z", "A,*-1", "A,*+1", "A,* 1"] {
            assert_eq!(refused(text), InvalidPathSpec::Number { element: 2 }, "{text}");
        }
        assert_eq!(refused("*100"), InvalidPathSpec::TooMany { element: 1 });
        assert_eq!(refused("A,~99999999999999999999999"), InvalidPathSpec::TooMany { element: 2 });
        assert_eq!(refused("A,~0"), InvalidPathSpec::AboutNone { element: 2 });
    }

    #[test]
    fn swap_points_are_refused_where_they_cannot_be() {
        assert_eq!(refused("A:B:C"), InvalidPathSpec::SecondSwapPoint { element: 3 });
        assert_eq!(refused("A:B,<swap>,C"), InvalidPathSpec::SecondSwapPoint { element: 3 });
        for kind in [PathKind::Reply, PathKind::Surb] {
            assert_eq!(PathSpec::parse("A:B", kind), Err(InvalidPathSpec::SwapPointInReply));
        }
        assert_eq!(refused("A:"), InvalidPathSpec::EmptyLeg { leg: "second" });
        assert_eq!(refused("*0:A,B"), InvalidPathSpec::EmptyLeg { leg: "first" });
    }

    #[test]
    fn paths_too_short_for_their_kind_are_refused() {
        for (text, hops) in [("", 0), ("*0", 0), ("A", 1), ("?,*0", 1), ("~1", 1)] {
            assert_eq!(refused(text), InvalidPathSpec::TooShort { hops, needed: 2 }, "{text}");
        }
        let refused = PathSpec::parse("*0", PathKind::Surb);
        assert_eq!(refused, Err(InvalidPathSpec::TooShort { hops: 0, needed: 1 }));
        assert!(PathSpec::parse("~1", PathKind::Surb).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_shown_reads_back_the_same(text in "[AB*~?0-9,:'\" ./<>\\n]{0,24}") {
            for kind in [PathKind::Forward, PathKind::Reply, PathKind::Surb] {
                if let Ok(spec) = PathSpec::parse(&text, kind) {
                    prop_assert_eq!(PathSpec::parse(&spec.to_string(), kind), Ok(spec));
                }
            }
        }
    }
}
