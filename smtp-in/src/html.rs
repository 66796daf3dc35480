//! HTML as plain text: what a reader would see, and where links lead. Nothing is fetched and nothing is styled.
//!
//! Not a browser's parser: mail is made by a few editors, and what they agree on is enough. Each octet is looked at a
//! fixed number of times, whatever is open or unclosed.

use mail_parser::decoders::html::add_html_token;

/// Elements whose content nobody reads.
const UNSEEN: [&str; 6] = ["script", "style", "title", "template", "noframes", "object"];
/// Elements that begin and end a line.
const BLOCKS: [&str; 19] = [
    "address", "article", "aside", "body", "caption", "center", "dd", "div", "dt", "footer", "form", "header", "html",
    "main", "nav", "section", "table", "tr", "li",
];
/// Elements with a blank line around them.
const PARAGRAPHS: [&str; 11] = ["p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "pre"];
/// How deep lists and quotations are shown; deeper ones look like this.
const MAX_DEPTH: usize = 16;
/// Line ends in a row.
const MAX_BREAKS: usize = 4;
/// The longest name of an entity has 31 characters.
const MAX_ENTITY_LEN: usize = 32;

/// Where a page says its charset, if anywhere (HTML 4.2.5.4).
const CHARSET_WITHIN: usize = 1024;

/// The text of `html`, or nothing when it has more than `room` octets.
pub(crate) fn to_text(html: &str, room: usize) -> Option<String> {
    let mut writer = Writer::default();
    let mut rest = html;
    let mut ends = Ends::Unquoted;
    while let Some((text, markup)) = split_at_octet(rest, b'<') {
        writer.text(text);
        if writer.out.len() > room {
            return None;
        }
        rest = match Markup::read(markup, &mut ends) {
            Markup::None => {
                writer.text("<");
                markup.get(1..).unwrap_or_default()
            }
            Markup::Skip(rest) => rest,
            Markup::Tag { tag, rest } => writer.tag(&tag, rest),
        };
    }
    writer.text(rest);
    (writer.out.len() <= room).then_some(writer.out)
}

/// The charset that a page says it is in. One that says UTF-16 is not, or this could not be read (HTML 13.2.3.2).
pub(crate) fn charset(html: &[u8]) -> Option<String> {
    let start = html.get(..CHARSET_WITHIN).unwrap_or(html);
    let start: String = start.iter().map(|&octet| char::from(octet.to_ascii_lowercase())).collect();
    let named = start.split("<meta").skip(1).find_map(|tag| {
        let (tag, _) = tag.split_once('>')?;
        let (_, value) = tag.split_once("charset")?;
        let value = value.trim_start().strip_prefix('=')?.trim_start().trim_start_matches(['"', '\'']);
        let len = value.find(|c: char| c.is_whitespace() || "\"';/".contains(c)).unwrap_or(value.len());
        value.get(..len).filter(|name| !name.is_empty()).map(str::to_owned)
    });
    named.filter(|name| !name.starts_with("utf-16"))
}

/// What is known of the ends of the tags to come, so that none is searched for in vain twice.
#[derive(PartialEq, Eq)]
enum Ends {
    /// A `>` in quotes is a part of a value.
    Unquoted,
    /// A quote was not closed: the next `>` it is.
    Next,
    /// There is no `>` any more.
    Gone,
}

/// What a `<` may begin.
enum Markup<'h> {
    /// Text after all.
    None,
    /// A comment or declaration; here is what follows.
    Skip(&'h str),
    /// A tag, and what follows.
    Tag { tag: Tag<'h>, rest: &'h str },
}

struct Tag<'h> {
    name: String,
    closes: bool,
    attributes: &'h str,
}

impl<'h> Markup<'h> {
    fn read(markup: &'h str, ends: &mut Ends) -> Self {
        let inside = markup.get(1..).unwrap_or_default();
        if let Some(comment) = inside.strip_prefix("!--") {
            return Self::Skip(comment.split_once("-->").map_or("", |(_, rest)| rest));
        }
        if inside.starts_with(['!', '?']) {
            return Self::Skip(split_at_octet(inside, b'>').map_or("", |(_, rest)| rest.get(1..).unwrap_or_default()));
        }
        let (closes, inside) = match inside.strip_prefix('/') {
            Some(inside) => (true, inside),
            None => (false, inside),
        };
        if !inside.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Self::None;
        }
        let Some(end) = ends.find(inside) else { return Self::None };
        let (content, rest) = (inside.get(..end).unwrap_or_default(), inside.get(end + 1..).unwrap_or_default());
        let name_len = content.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(content.len());
        let (name, attributes) = content.split_at_checked(name_len).unwrap_or_default();
        Self::Tag { tag: Tag { name: name.to_ascii_lowercase(), closes, attributes }, rest }
    }
}

impl Ends {
    fn find(&mut self, inside: &str) -> Option<usize> {
        if *self == Self::Unquoted {
            if let Some(end) = end_outside_quotes(inside) {
                return Some(end);
            }
            *self = Self::Next;
        }
        let end = if *self == Self::Next { inside.find('>') } else { None };
        if end.is_none() {
            *self = Self::Gone;
        }
        end
    }
}

/// Where a tag ends, quoted values left aside.
fn end_outside_quotes(inside: &str) -> Option<usize> {
    let mut quote = None;
    for (i, octet) in inside.bytes().enumerate() {
        match (quote, octet) {
            (None, b'>') => return Some(i),
            (None, b'"' | b'\'') => quote = Some(octet),
            (Some(open), octet) if open == octet => quote = None,
            _ => {}
        }
    }
    None
}

impl Tag<'_> {
    /// The value of an attribute, its entities resolved.
    fn attribute(&self, name: &str) -> Option<String> {
        let mut rest = self.attributes;
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '/');
            let name_len = rest.find(|c: char| c.is_ascii_whitespace() || c == '=' || c == '/').unwrap_or(rest.len());
            let (key, after) = rest.split_at_checked(name_len)?;
            let after = after.trim_start();
            let (value, next) = match after.strip_prefix('=') {
                Some(value) => attribute_value(value.trim_start()),
                None => ("", after),
            };
            if key.eq_ignore_ascii_case(name) {
                let mut resolved = String::new();
                resolve(value, |piece| resolved.push_str(piece));
                return Some(resolved);
            }
            if next.len() == rest.len() || next.is_empty() {
                return None;
            }
            rest = next;
        }
    }
}

fn attribute_value(text: &str) -> (&str, &str) {
    for quote in ['"', '\''] {
        if let Some(quoted) = text.strip_prefix(quote) {
            return quoted.split_once(quote).unwrap_or((quoted, ""));
        }
    }
    let len = text.find(|c: char| c.is_ascii_whitespace()).unwrap_or(text.len());
    text.split_at_checked(len).unwrap_or_default()
}

/// Gives out `text` piece by piece, entities as what they stand for.
fn resolve(text: &str, mut give: impl FnMut(&str)) {
    let mut rest = text;
    while let Some((before, entity)) = split_at_octet(rest, b'&') {
        give(before);
        let end = entity.bytes().take(MAX_ENTITY_LEN + 2).position(|octet| octet == b';');
        let token = end.and_then(|end| entity.get(..=end)).filter(|token| {
            token.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'&' | b'#' | b';'))
        });
        let mut resolved = String::new();
        let token = token.unwrap_or("&");
        add_html_token(&mut resolved, token.as_bytes(), false);
        give(&resolved);
        rest = entity.get(token.len()..).unwrap_or_default();
    }
    give(rest);
}

/// What comes before the first such ASCII octet, and what begins with it.
fn split_at_octet(text: &str, octet: u8) -> Option<(&str, &str)> {
    text.find(char::from(octet)).and_then(|at| text.split_at_checked(at))
}

/// The text as it grows.
#[derive(Default)]
struct Writer {
    out: String,
    /// Line ends due before the next word.
    breaks: usize,
    /// A space is due before the next word.
    space: bool,
    /// Stands in front of the first word of a list item.
    marker: Option<String>,
    /// The open lists: the number of the last item, where they are numbered.
    lists: Vec<Option<usize>>,
    quotes: usize,
    /// The same for the line written last.
    quotes_above: usize,
    preformatted: usize,
    /// The target of the open link, and where its text begins.
    link: Option<(String, usize)>,
}

impl Writer {
    fn text(&mut self, text: &str) {
        resolve(text, |piece| piece.chars().for_each(|c| self.character(c)));
    }

    fn character(&mut self, c: char) {
        match c {
            '\n' if self.preformatted > 0 => self.line_end(),
            ' ' | '\t' if self.preformatted > 0 => self.word_character(c),
            ' ' | '\t' | '\n' | '\r' | '\u{c}' => self.space = true,
            // A space that only keeps words together.
            '\u{a0}' => self.word_character(' '),
            c => self.word_character(c),
        }
    }

    fn word_character(&mut self, c: char) {
        let begins = self.out.is_empty();
        if begins || self.breaks > 0 {
            if !begins {
                let between = quote_marks(self.quotes.min(self.quotes_above));
                let blank = format!("\n{}", between.trim_end());
                self.out.push_str(&blank.repeat(self.breaks - 1));
                self.out.push('\n');
            }
            self.out.push_str(&quote_marks(self.quotes));
            self.out.push_str(&"  ".repeat(self.lists.len().saturating_sub(1).min(MAX_DEPTH)));
            self.out.push_str(&self.marker.take().unwrap_or_default());
            self.quotes_above = self.quotes;
        } else if self.space {
            self.out.push(' ');
        }
        self.breaks = 0;
        self.space = false;
        self.out.push(c);
    }

    fn line_end(&mut self) {
        self.breaks = (self.breaks + 1).min(MAX_BREAKS);
    }

    fn at_least(&mut self, breaks: usize) {
        self.breaks = self.breaks.max(breaks);
    }

    /// Acts on a tag, and says what follows: less than `rest` after an element that nobody reads.
    fn tag<'h>(&mut self, tag: &Tag<'_>, rest: &'h str) -> &'h str {
        let name = tag.name.as_str();
        if UNSEEN.contains(&name) {
            return if tag.closes { rest } else { behind_end_of(name, rest) };
        }
        if PARAGRAPHS.contains(&name) {
            // A list within a list is a part of its item.
            self.at_least(if self.lists.is_empty() { 2 } else { 1 });
        } else if BLOCKS.contains(&name) {
            self.at_least(1);
        }
        match (name, tag.closes) {
            ("br", _) => self.line_end(),
            ("hr", false) => {
                self.at_least(1);
                "----".chars().for_each(|c| self.word_character(c));
                self.at_least(1);
            }
            ("td" | "th", false) => self.space = true,
            ("pre", false) => self.preformatted += 1,
            ("pre", true) => self.preformatted = self.preformatted.saturating_sub(1),
            ("blockquote", closes) => self.quote(closes),
            ("ul", false) => self.lists.push(None),
            ("ol", false) => self.lists.push(Some(0)),
            ("ul" | "ol", true) => self.end_of_list(),
            ("li", false) => self.item(),
            ("a", false) => self.link = tag.attribute("href").map(|target| (target, self.out.len())),
            ("a", true) => self.end_of_link(),
            ("img", false) => self.image(tag),
            _ => {}
        }
        rest
    }

    fn quote(&mut self, closes: bool) {
        self.at_least(2);
        if closes {
            self.quotes = self.quotes.saturating_sub(1);
        } else {
            self.quotes += 1;
        }
    }

    fn item(&mut self) {
        self.marker = Some(match self.lists.last_mut() {
            Some(Some(number)) => {
                *number += 1;
                format!("{number}. ")
            }
            _ => "- ".to_owned(),
        });
    }

    fn end_of_list(&mut self) {
        self.lists.pop();
        self.marker = None;
        if self.lists.is_empty() {
            self.at_least(2);
        }
    }

    /// Says where a link leads, unless its text does.
    fn end_of_link(&mut self) {
        let Some((target, start)) = self.link.take() else { return };
        let target = target.trim();
        let text = self.out.get(start..).unwrap_or_default();
        let bare = target.strip_prefix("mailto:").unwrap_or(target).trim_end_matches('/');
        let leads_out = ["http:", "https:", "mailto:", "ftp:"].iter().any(|scheme| target.starts_with(scheme));
        if leads_out && !text.contains(bare) {
            self.space = true;
            format!("<{target}>").chars().filter(|c| !c.is_whitespace()).for_each(|c| self.word_character(c));
        }
    }

    fn image(&mut self, tag: &Tag<'_>) {
        if let Some(alt) = tag.attribute("alt").filter(|alt| !alt.trim().is_empty()) {
            format!("[{}]", alt.trim()).chars().for_each(|c| self.character(c));
        }
    }
}

fn quote_marks(depth: usize) -> String {
    "> ".repeat(depth.min(MAX_DEPTH))
}

/// What follows the end tag of `name`; nothing when there is none.
fn behind_end_of<'h>(name: &str, html: &'h str) -> &'h str {
    let mut rest = html;
    while let Some((_, end)) = rest.split_once("</") {
        if end.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name)) {
            return end.split_once('>').map_or("", |(_, behind)| behind);
        }
        rest = end;
    }
    ""
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::charset;

    fn to_text(html: &str) -> String {
        super::to_text(html, 1 << 20).expect("room enough")
    }

    #[test]
    fn paragraphs_line_breaks_and_spaces_look_as_they_are_read() {
        let html =
            "<html><head><title>x</title></head><body>\n <p>One\n  two</p><p>three<br>four</p><div>five</div>six";
        assert_eq!(to_text(html), "One two\n\nthree\nfour\n\nfive\nsix");
    }

    #[test]
    fn scripts_styles_and_comments_are_not_text() {
        let html =
            "a<style>p { color: red }</style><SCRIPT>if (a < b) alert('</p>')</Script >b<!-- c > d -->e<![if x]>f";
        assert_eq!(to_text(html), "abef");
    }

    #[test]
    fn entities_are_resolved_once() {
        assert_eq!(
            to_text("a &lt;b&gt; &amp;amp; &#8364;&#x20AC; &auml;&nbsp;x &unknown; AT&T; 1 & 2"),
            "a <b> &amp; \u{20ac}\u{20ac} \u{e4} x &unknown; AT&T; 1 & 2"
        );
    }

    #[test]
    fn links_keep_their_target_unless_it_is_their_text() {
        assert_eq!(
            to_text("<a class=x href=\"https://example.org/?a=1&amp;b=2\">here</a>."),
            "here <https://example.org/?a=1&b=2>."
        );
        assert_eq!(to_text("<a href='https://example.org/'>https://example.org</a>"), "https://example.org");
        assert_eq!(to_text("<a href=mailto:bob@example.org>bob@example.org</a>"), "bob@example.org");
        assert_eq!(to_text("<a href='#top'>top</a>"), "top");
    }

    #[test]
    fn lists_have_markers_and_depth() {
        let html = "<p>x</p><ul><li>a<ol><li>b</li><li>c</li></ol></li><li>d</li></ul>y";
        assert_eq!(to_text(html), "x\n\n- a\n  1. b\n  2. c\n- d\n\ny");
    }

    #[test]
    fn quotations_are_marked() {
        let html = "a<blockquote>b<br><br>c<blockquote>d</blockquote></blockquote>e";
        assert_eq!(to_text(html), "a\n\n> b\n>\n> c\n>\n> > d\n\ne");
    }

    #[test]
    fn preformatted_text_keeps_its_lines() {
        assert_eq!(to_text("<pre>a  b\n  c</pre>d"), "a  b\n  c\n\nd");
    }

    #[test]
    fn pictures_are_what_they_are_called() {
        assert_eq!(to_text("<img src=x.png alt='a cat'><img src=pixel.gif>"), "[a cat]");
    }

    #[test]
    fn what_is_no_tag_is_text() {
        assert_eq!(to_text("a < b, 1<2, <3 and <"), "a < b, 1<2, <3 and <");
        assert_eq!(to_text("<p title=\"a>b\">c</p>"), "c");
        assert_eq!(to_text("<p title=\"a>b</p>c"), "b\n\nc");
        assert_eq!(to_text("x<p"), "x<p");
    }

    #[test]
    fn endless_nesting_and_unclosed_tags_take_no_longer_than_others() {
        for piece in
            ["<", "<a ", "<a href=\"", "<!--", "<blockquote>x", "<ul><li>x", "</", "<script>", "&", "&#x", "<b '"]
        {
            let _ = super::to_text(&piece.repeat(200_000), 1 << 30);
        }
    }

    #[test]
    fn few_octets_that_become_many_are_too_long() {
        let bomb = format!("{}{}", "<blockquote>".repeat(16) + &"<ul>".repeat(16), "x<br>".repeat(1000));
        assert_eq!(super::to_text(&bomb, 50_000), None);
        assert!(super::to_text(&bomb, 100_000).is_some_and(|text| text.len() > 50_000));
        assert_eq!(super::to_text("<p>12345", 5).as_deref(), Some("12345"));
        assert_eq!(super::to_text("<p>123456", 5), None);
    }

    #[test]
    fn charset_is_where_the_page_says_it() {
        assert_eq!(charset(b"<html><META charset=Koi8-R><p>").as_deref(), Some("koi8-r"));
        let old = b"<meta name=x><meta http-equiv='Content-Type' content='text/html; charset=windows-1251' >";
        assert_eq!(charset(old).as_deref(), Some("windows-1251"));
        assert_eq!(charset(b"<meta charset = \"gbk\"/>").as_deref(), Some("gbk"));
        for none in [&b"<p>charset=x"[..], b"<meta charset=utf-16>", b"<meta charset=", b"<meta charset=''>", b""] {
            assert_eq!(charset(none), None);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(html in "([a-z<>/!&;#\"'= \u{e4}-]|<p>|<br|<li>|</a>|<a href=|<!--|-->|<pre>|<script>){0,60}") {
            to_text(&html);
        }
    }
}
