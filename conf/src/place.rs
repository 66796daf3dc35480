//! Where in a TOML file a key stands.

use std::collections::BTreeMap;
use std::ops::Range;

use toml_edit::{ImDocument, Item, TableLike, TomlError};

/// A TOML file that remembers its lines.
pub(crate) struct Places<'a> {
    text: &'a str,
    document: ImDocument<&'a str>,
}

impl<'a> Places<'a> {
    /// Reads `text`; an error is a line and what is wrong there.
    pub(crate) fn parse(text: &'a str) -> Result<Self, (usize, String)> {
        let document = ImDocument::parse(text).map_err(|error: TomlError| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            (line, error.message().trim().replace('\n', "; "))
        })?;
        Ok(Self { text, document })
    }

    /// The line, from 1, of `path`; where the file stops before its end, the line of the deepest part that is there.
    /// The flag says whether the whole path was found.
    pub(crate) fn find(&self, path: &[String]) -> Option<(usize, bool)> {
        let mut item = self.document.as_item();
        let mut line = None;
        for (depth, part) in path.iter().enumerate() {
            match step(item, part) {
                Step::Into(span, next) => {
                    line = span.map(|span| line_of(self.text, span.start)).or(line);
                    item = next;
                }
                Step::Element(span) => {
                    line = span.map(|span| line_of(self.text, span.start)).or(line);
                    return line.map(|line| (line, depth + 1 == path.len()));
                }
                Step::Table(span, table) => {
                    line = span.map(|span| line_of(self.text, span.start)).or(line);
                    // An element of `[[array]]` is a table without an item of its own.
                    return match path.get(depth + 1).and_then(|key| table.get_key_value(key)) {
                        Some((key, _)) => {
                            key.span().map(|span| (line_of(self.text, span.start), depth + 2 == path.len()))
                        }
                        None => line.map(|line| (line, depth + 1 == path.len())),
                    };
                }
                Step::Nowhere => return line.map(|line| (line, false)),
            }
        }
        line.map(|line| (line, true))
    }
}

impl Places<'_> {
    /// All keys and their lines, from 1. Elements of lists are keys by their number.
    pub(crate) fn lines(&self) -> BTreeMap<Vec<String>, usize> {
        let mut found = BTreeMap::new();
        self.collect(self.document.as_item(), &mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, item: &Item, above: &mut Vec<String>, found: &mut BTreeMap<Vec<String>, usize>) {
        if let Some(table) = item.as_table_like() {
            self.collect_table(table, above, found);
        }
        let elements = item.as_array_of_tables().into_iter().flat_map(|tables| tables.iter());
        for (index, table) in elements.enumerate() {
            above.push(index.to_string());
            self.collect_table(table, above, found);
            above.pop();
        }
    }

    fn collect_table(&self, table: &dyn TableLike, above: &mut Vec<String>, found: &mut BTreeMap<Vec<String>, usize>) {
        for (name, item) in table.iter() {
            above.push(name.to_owned());
            let span = table.get_key_value(name).and_then(|(key, _)| key.span());
            if let Some(span) = span {
                found.insert(above.clone(), line_of(self.text, span.start));
            }
            self.collect(item, above, found);
            above.pop();
        }
    }
}

enum Step<'a> {
    Into(Option<Range<usize>>, &'a Item),
    Element(Option<Range<usize>>),
    Table(Option<Range<usize>>, &'a toml_edit::Table),
    Nowhere,
}

fn step<'a>(item: &'a Item, part: &str) -> Step<'a> {
    if let Some((key, next)) = item.as_table_like().and_then(|table| table.get_key_value(part)) {
        return Step::Into(key.span(), next);
    }
    let Ok(index) = part.parse::<usize>() else { return Step::Nowhere };
    if let Some(element) = item.as_array().and_then(|array| array.get(index)) {
        return Step::Element(element.span());
    }
    match item.as_array_of_tables().and_then(|tables| tables.get(index)) {
        Some(table) => Step::Table(table.span(), table),
        None => Step::Nowhere,
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&octet| octet == b'\n').count() + 1
}
