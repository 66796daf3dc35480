use proptest::prelude::*;

use super::*;
use crate::path::address::MAX_MAILBOX_LEN;

/// Whom the lists below are asked about.
const ADDRESSES: [&str; 15] = [
    "bob@example.org",
    "Bob@EXAMPLE.org",
    "bob@mail.example.org",
    "eve@notexample.org",
    "eve@a.example",
    "eve@b.a.example",
    "spammer@x.y",
    "boob@x.y",
    "b{}@x.y",
    "a/b@x.y",
    "dr-bob@x.y",
    "zebra@x.y",
    "7@x.y",
    "eve@b.1",
    "o{1@x.y",
];

/// Lists, and whom of them the reference refuses: `#`. Its own parser has said so, under Python 2.7.18.
const REFERENCE: &[(&[u8], &str)] = &[
    (b"", "..............."),
    (b"# Deny user bob\n\n   \t# more\n", "..............."),
    (b"Deny address Bob@Example.ORG", "##............."),
    (b"dENY uSER Bob\n", "###............"),
    (b"deny onehost example.org\r\n", "##............."),
    (b"deny allhosts Example.org\r\n", "###............"),
    (b"deny onehost a.example\ndeny allhosts a.example\n deny onehost a.example", "....##........."),
    (b"deny pattern /spam/", "......#........"),
    (b"deny pattern    /b.b@/  ", "###.......#...."),
    (b"deny pattern /^(..)*$/", "..##...#..#...."),
    (b"deny pattern /", "###############"),
    (b"deny pattern //", "###############"),
    (b"deny pattern /a/b/", ".........#....."),
    (b"deny pattern /a b|bob/", "###.......#...."),
    (b"deny user |bob\ndeny address |a@b.c", "..............."),
    (b"\t deny user bob \x0b\x0c", "###............"),
    (b"#\xff\xfe\ndeny user bob", "###............"),
    (b"deny pattern /[^\xe9]ob/", "###....#..#...."),
    (b"deny pattern /g\\Z/", "####..........."),
    (b"deny pattern /\\zebra/", "...........#..."),
    (b"deny pattern /\\<bob/", "..............."),
    (b"deny pattern /^[a-z&&b]ob@/", "###............"),
    (b"deny pattern /^[[a-b]ob@/", "###............"),
    (b"deny pattern /^[]b]ob@/", "###............"),
    (b"deny pattern /^[a-]ob@|^[b-]ob@/", "###............"),
    (b"deny pattern /\\142\\157b/", "###.......#...."),
    (b"deny pattern /b\\0157/", "..............."),
    (b"deny pattern /\\x62\\x4fb/", "###.......#...."),
    (b"deny pattern /b{|o{,1}b@/", "###....####...."),
    (b"deny pattern /^bo{,2}b@/", "###....#......."),
    (b"deny pattern /b{}/", "........#......"),
    (b"deny pattern /o{2}/", ".......#......."),
    (b"deny pattern /(?x) b o b @ # nothing/", "###.......#...."),
    (b"deny pattern /b o b(?x)/", "###.......#...."),
    (b"deny pattern /b(?# an o)o*(?#)b/", "###....#..#...."),
    (b"deny pattern /bo(?#x)+b@/", "###....#..#...."),
    (b"deny pattern /(?P<a>b)ob/", "###.......#...."),
    (b"deny pattern /b.*?b@/", "###....#..#...."),
    (b"deny pattern /[\\b]/", "..............."),
    (b"deny pattern /[\\d-]@/", "............#.#"),
    (b"deny pattern /[\\142]ob/", "###.......#...."),
    (b"deny pattern /^[^B]ob@/", "..............."),
    (b"deny pattern /^[Z-c]ob@/", "###............"),
    (b"deny pattern /\\bbob\\b/", "###.......#...."),
    (b"deny pattern /b\\ob/", "###.......#...."),
    (b"deny pattern /\\pob/", "..............."),
    (b"deny pattern /(?iLmsu)^BOB@/", "###............"),
    (b"deny pattern /o{1@/", "..............#"),
    (b"deny pattern /bob]|}|bob/", "###.....#.#...."),
    (b"deny pattern /bob|/", "###############"),
    (b"deny onehost b.1", ".............#."),
];

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn refused_by(list: &[u8]) -> String {
    let list = Refusals::parse(list).unwrap();
    ADDRESSES.map(|address| if list.refuse(&mailbox(address)) { '#' } else { '.' }).iter().collect()
}

fn invalid(list: &str) -> InvalidRefusals {
    Refusals::parse(list.as_bytes()).expect_err(list)
}

#[test]
fn lists_of_the_reference_mean_the_same() {
    for (list, expected) in REFERENCE {
        assert_eq!(refused_by(list), *expected, "{}", String::from_utf8_lossy(list));
    }
}

#[test]
fn whoever_is_allowed_gets_mail_whatever_denies_it_and_wherever_that_stands() {
    let list = b"deny allhosts example.org\nALLOW Address BOB@example.org\ndeny user bob\n";
    assert_eq!(refused_by(list), "..#............");
    assert_eq!(refused_by(b"allow onehost a.example\ndeny pattern /eve/"), "...#.#.......#.");
    assert_eq!(refused_by(b"allow user bob\nallow allhosts a.example\ndeny pattern //"), "...#..#########");
    assert_eq!(refused_by(b"allow pattern /^.ob@|7/\ndeny pattern //"), "...#########.##");
    assert_eq!(refused_by(b"allow user bob"), "...............", "nobody is refused for it");
}

#[test]
fn line_that_does_not_have_three_parts_is_named() {
    for list in ["#\ndeny user", "\ndeny user \r\n", "\ndeny\tuser bob"] {
        assert_eq!(invalid(list), InvalidRefusals::Form { line: 2, found: 2 }, "{list}");
    }
    assert_eq!(invalid("bob@example.org"), InvalidRefusals::Form { line: 1, found: 1 });
}

#[test]
fn word_that_is_none_is_named_and_an_address_is_not_shown() {
    let unknown = |word: &str| Word::of(word.as_bytes());
    assert_eq!(invalid("\nRefuse user bob"), InvalidRefusals::Verb { line: 2, found: unknown("Refuse") });
    assert_eq!(invalid("deny hosts example.org"), InvalidRefusals::Kind { line: 1, found: unknown("hosts") });
    // Two spaces are a kind without a letter.
    assert_eq!(invalid("deny  user bob"), InvalidRefusals::Kind { line: 1, found: unknown("") });
    for list in ["bob@example.org is bad", "deny bob@example.org x", "deny user bob@example.org"] {
        let said = invalid(list).to_string();
        assert!(said.starts_with("line 1: found ") && said.contains(", expected ") && !said.contains("bob"), "{said}");
    }
}

#[test]
fn value_that_no_mailbox_has_is_refused() {
    for (list, expected) in [
        ("deny address bob", "user@host"),
        ("deny address bob@a@b", "user@host"),
        ("deny address a@7", "user@host"),
        ("deny user bob@x", "what may stand before the @"),
        ("deny user bob # a remark", "what may stand before the @"),
        ("deny user bob\rdeny user eve", "what may stand before the @"),
        ("allow user b\u{f6}b", "what may stand before the @"),
        ("deny onehost 10.0.0.1", "what may stand behind the @"),
        ("deny onehost a..b", "what may stand behind the @"),
        ("deny allhosts .example.org", "what may stand behind the @"),
    ] {
        assert_eq!(invalid(list), InvalidRefusals::Value { line: 1, expected }, "{list}");
    }
}

#[test]
fn pattern_without_its_slashes_is_refused() {
    for list in ["deny pattern bob", "deny pattern /bob", "deny pattern bob/", "deny pattern /bob/ # a remark"] {
        assert_eq!(invalid(list), InvalidRefusals::Slashes { line: 1 }, "{list}");
    }
}

#[test]
fn pattern_that_cannot_be_searched_for_is_refused_by_what_it_has() {
    use InvalidPattern::{
        BackReference, Class, Conditional, Escape, Group, LookAround, Numbers, Parenthesis, Range, Repetition, TooLarge,
    };
    for (pattern, source) in [
        (r"(b)\1", BackReference),
        (r"(b)\19", BackReference),
        ("(?P<a>b)(?P=a)", BackReference),
        ("(?=b)", LookAround),
        ("(?!b)", LookAround),
        ("(?<=b)", LookAround),
        ("(?<!b)", LookAround),
        ("(b)?(?(1)a|c)", Conditional),
        // The reference takes none of these either.
        ("*b", Repetition),
        ("b**", Repetition),
        ("^*", Repetition),
        ("b{2}{3}", Repetition),
        ("(|?)", Repetition),
        ("{2}", Repetition),
        ("b{3,2}", Numbers),
        ("b{99999999999}", Numbers),
        ("(b", Parenthesis),
        ("b)", Parenthesis),
        ("(?#b", Parenthesis),
        ("[b", Class),
        ("[]", Class),
        ("[b-", Class),
        ("[z-a]", Range),
        (r"[a-\d]", Range),
        (r"[\d-a]", Range),
        (r"b\", Escape),
        (r"\x1", Escape),
        (r"[\8]", Escape),
        ("(?z)", Group),
        ("(?i", Group),
        ("(?)", Group),
        ("(?", Group),
        ("(?P!b)", Group),
        ("(?P<1>b)", Group),
        // Short, and not small.
        ("((b{100}){100}){100}", TooLarge),
        (&"(".repeat(400).chars().chain(")".repeat(400).chars()).collect::<String>(), TooLarge),
    ] {
        let expected = InvalidRefusals::Pattern { line: 2, source };
        assert_eq!(invalid(&format!("# patterns\ndeny pattern /{pattern}/")), expected, "{pattern}");
    }
}

#[test]
fn list_and_patterns_have_a_size() {
    let (fits, too_long) = ("x".repeat(MAX_PATTERN_LEN), "x".repeat(MAX_PATTERN_LEN + 1));
    assert!(Refusals::parse(format!("deny pattern /{fits}/").as_bytes()).is_ok());
    let source = InvalidPattern::TooLong;
    assert_eq!(invalid(&format!("deny pattern /{too_long}/")), InvalidRefusals::Pattern { line: 1, source });
    let most = "deny pattern /a/\n".repeat(MAX_PATTERNS) + "allow pattern /a/\n";
    assert!(Refusals::parse(most.as_bytes()).is_ok());
    let line = MAX_PATTERNS + 2;
    assert_eq!(invalid(&(most + "deny pattern /a/")), InvalidRefusals::TooManyPatterns { line });
    let large = "deny pattern /(b{50}){50}/\n".repeat(MAX_PATTERNS);
    assert_eq!(invalid(&large), InvalidRefusals::Patterns);
    let long = "#".repeat(MAX_LEN);
    assert!(Refusals::parse(long.as_bytes()).is_ok());
    assert_eq!(invalid(&(long + "#")), InvalidRefusals::TooLong);
}

#[test]
fn pattern_that_makes_backtracking_run_for_ever_is_searched_for_at_once() {
    let list = Refusals::parse(b"deny pattern /^(a|a)*(aa|a)*(a*)*b$/").unwrap();
    let address = mailbox(&format!("{}@x.y", "a".repeat(MAX_MAILBOX_LEN - 4)));
    assert!(!list.refuse(&address));
}

#[test]
fn file_that_is_none_or_says_nonsense_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("refusals");
    assert!(matches!(Refusals::read(&file), Err(ListError::Unreadable { path, .. }) if path == file));
    assert!(matches!(Refusals::read(folder.path()), Err(ListError::NoFile { .. })));
    std::fs::write(&file, "deny user bob\n").unwrap();
    assert!(Refusals::read(&file).unwrap().refuse(&mailbox("bob@x.y")));
    std::fs::write(&file, "deny user bob\ndeny\n").unwrap();
    let expected = InvalidRefusals::Form { line: 2, found: 1 };
    assert!(
        matches!(Refusals::read(&file), Err(ListError::Invalid { path, source }) if path == file && source == expected)
    );
    std::fs::write(&file, vec![b'\n'; MAX_LEN + 10]).unwrap();
    let too_long = Refusals::read(&file);
    assert!(matches!(too_long, Err(ListError::Invalid { source: InvalidRefusals::TooLong, .. })));
}

#[test]
fn address_is_the_one_that_is_written_and_a_pattern_refuses_its_sub_addresses_too() {
    let refused = |list: &[u8], address| Refusals::parse(list).unwrap().refuse(&mailbox(address));
    let pattern = br"Deny pattern /^bob(\+.*)?@example\.org$/";
    for (address, by_address, by_pattern) in [
        ("Bob@example.org", true, true),
        ("bob+x@example.org", false, true),
        ("bobby@example.org", false, false),
        ("bob@example.org.example", false, false),
    ] {
        assert_eq!(refused(b"Deny address bob@example.org", address), by_address, "{address}");
        assert_eq!(refused(pattern, address), by_pattern, "{address}");
    }
}

#[test]
fn debug_shows_no_address() {
    let shown = format!("{:?}", Refusals::parse(b"deny user bob\nallow address a@bob.example").unwrap());
    assert_eq!(shown, "Refusals(2 lines, and patterns)");
}

proptest! {
    #[test]
    fn octets_of_any_kind_are_a_list_or_named_and_never_panic(octets in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Refusals::parse(&octets);
    }

    #[test]
    fn words_in_any_order_never_panic(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "deny", "ALLOW", "user", "onehost", "allhosts", "address", "pattern", "bob", "a@b.c", "/b/", " ", "\n", "#",
            ]),
            0..40,
        ),
    ) {
        let _ = Refusals::parse(words.join(" ").as_bytes());
    }

    #[test]
    fn each_pattern_is_refused_for_its_syntax_or_can_be_searched_for(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "a", "B", ".", "*", "+", "?", "{", "}", "2", ",", "[", "]", "^", "-", "&&", "(", ")", "(?:", "(?P<n>", "(?#",
                "|", "\\", "\\d", "\\W", "\\b", "\\Z", "\\x4", "\\0", "\\12", "$", "(?x)", " ", "#", "\u{e9}", "~", "<",
            ]),
            0..20,
        ),
    ) {
        let pattern = parts.concat();
        match Refusals::parse(format!("deny pattern /{pattern}/").as_bytes()) {
            // Whatever else `regex` might have found wrong with it would be called so.
            Err(InvalidRefusals::Pattern { source: InvalidPattern::TooLarge, .. }) => prop_assert!(false, "{pattern}"),
            Ok(list) => {
                let _ = list.refuse(&mailbox("ab@b.c"));
            }
            Err(_) => {}
        }
    }
}
