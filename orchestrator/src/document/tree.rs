//! Text -> tree. The parser is the YAML library's; what it finds is kept with its place.

use std::fmt::Write as _;

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle};

use super::Issue;

/// Deepest nesting read: four levels are in use.
const MAX_DEPTH: usize = 32;
/// Most nodes read: a profiles file of 200,000 subscribers has about 4 million.
const MAX_NODES: usize = 16_000_000;

/// Where a node stands. Lines and columns count from 1, columns in characters; offset and length are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Span {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// Bytes before it.
    pub offset: usize,
    /// Bytes it takes.
    pub length: usize,
}

impl Span {
    const START: Self = Self { line: 1, column: 1, offset: 0, length: 0 };

    fn of(span: &granit_parser::Span) -> Self {
        let offset = span.start.byte_offset().unwrap_or_default();
        let end = span.end.byte_offset().unwrap_or(offset);
        Self {
            line: span.start.line().max(1),
            column: span.start.col() + 1,
            offset,
            length: end.saturating_sub(offset),
        }
    }
}

/// A piece of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it stands.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
}

/// What a piece of a document is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A word, number or text.
    Scalar {
        /// Unquoted and unescaped.
        text: String,
        /// It stood in quotes.
        quoted: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file. Keys are words, each once.
    Map(Vec<(String, Span, Node)>),
}

impl Node {
    /// `a mapping`, `a list` or the scalar itself, for messages.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Scalar { text, .. } if text.is_empty() => "nothing".to_owned(),
            Kind::Scalar { text, .. } => {
                let short: String = text.chars().take(60).collect();
                format!("`{short}`")
            }
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
        }
    }

    /// The same for two texts that say the same: without comments, layout and the order of keys.
    pub fn canonical(&self) -> String {
        let mut out = String::new();
        self.write_canonical(&mut out);
        out
    }

    fn write_canonical(&self, out: &mut String) {
        match &self.kind {
            // Writing to a String cannot fail.
            Kind::Scalar { text, .. } => {
                let _ = write!(out, "{text:?}");
            }
            Kind::List(items) => {
                out.push('[');
                for item in items {
                    item.write_canonical(out);
                    out.push(',');
                }
                out.push(']');
            }
            Kind::Map(entries) => {
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_by(|a, b| a.0.cmp(&b.0));
                out.push('{');
                for (key, _, value) in sorted {
                    let _ = write!(out, "{key:?}:");
                    value.write_canonical(out);
                    out.push(',');
                }
                out.push('}');
            }
        }
    }
}

/// A mapping or list being read.
struct Open {
    span: Span,
    key: Option<(String, Span)>,
    items: Items,
}

enum Items {
    List(Vec<Node>),
    Map(Vec<(String, Span, Node)>, std::collections::HashMap<String, usize>),
}

/// Reads one document. Duplicate keys are all reported; a syntax error ends the reading.
pub fn parse(text: &str) -> Result<Node, Vec<Issue>> {
    let mut issues = Vec::new();
    match build(text, &mut issues) {
        Ok(Some(node)) if issues.is_empty() => Ok(node),
        Ok(Some(_)) => Err(issues),
        Ok(None) => {
            issues.push(Issue::new(Span::START, "the file is empty: expected a mapping"));
            Err(issues)
        }
        Err(issue) => {
            issues.push(issue);
            Err(issues)
        }
    }
}

fn build(text: &str, issues: &mut Vec<Issue>) -> Result<Option<Node>, Issue> {
    let mut stack: Vec<Open> = Vec::new();
    let mut root = None;
    let mut nodes = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let mark = error.marker();
            let offset = mark.byte_offset().unwrap_or(text.len()).min(text.len());
            let span = Span { line: mark.line().max(1), column: mark.col() + 1, offset, length: 0 };
            Issue::new(span, format!("not YAML: {}", error.info()))
        })?;
        let place = Span::of(&span);
        if event.tag().is_some() {
            return Err(Issue::new(place, "tags (`!name`) are not read here: write the plain value"));
        }
        let node = match event {
            Event::Scalar(value, style, anchor, _) => {
                refuse_anchor(anchor, place)?;
                let quoted = style != ScalarStyle::Plain;
                Node { span: place, kind: Kind::Scalar { text: value.into_owned(), quoted } }
            }
            Event::SequenceStart(_, anchor, _) => {
                refuse_anchor(anchor, place)?;
                open(&mut stack, place, Items::List(Vec::new()))?;
                continue;
            }
            Event::MappingStart(_, anchor, _) => {
                refuse_anchor(anchor, place)?;
                open(&mut stack, place, Items::Map(Vec::new(), std::collections::HashMap::new()))?;
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some(done) => Node {
                    span: done.span,
                    kind: match done.items {
                        Items::List(items) => Kind::List(items),
                        Items::Map(entries, _) => Kind::Map(entries),
                    },
                },
                None => return Err(Issue::new(place, "not YAML: an end without a start")),
            },
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                return Err(Issue::new(place, "aliases (`*name`) are not read here: write the value out"));
            }
            _ => continue,
        };
        nodes += 1;
        if nodes > MAX_NODES {
            return Err(Issue::new(place, format!("more than {MAX_NODES} entries: split the file")));
        }
        match stack.last_mut() {
            Some(parent) => put(parent, node, issues)?,
            None if root.is_none() => root = Some(node),
            None => return Err(Issue::new(place, "a second document: a file holds one")),
        }
    }
    Ok(root)
}

fn refuse_anchor(anchor: usize, place: Span) -> Result<(), Issue> {
    if anchor == 0 {
        return Ok(());
    }
    Err(Issue::new(place, "anchors (`&name`) are not read here: write the value out"))
}

fn open(stack: &mut Vec<Open>, span: Span, items: Items) -> Result<(), Issue> {
    if stack.len() >= MAX_DEPTH {
        return Err(Issue::new(span, format!("nested deeper than {MAX_DEPTH} levels")));
    }
    // Only a value can be a collection: a mapping as a key is found here, where its place is known.
    if let Some(Open { key: None, items: Items::Map(..), .. }) = stack.last() {
        return Err(Issue::new(span, "a key must be a word, not a list or a mapping"));
    }
    stack.push(Open { span, key: None, items });
    Ok(())
}

fn put(parent: &mut Open, node: Node, issues: &mut Vec<Issue>) -> Result<(), Issue> {
    match (&mut parent.items, parent.key.take()) {
        (Items::List(items), _) => items.push(node),
        (Items::Map(..), None) => match node.kind {
            Kind::Scalar { text, .. } => parent.key = Some((text, node.span)),
            _ => return Err(Issue::new(node.span, "a key must be a word, not a list or a mapping")),
        },
        (Items::Map(entries, lines), Some((key, span))) => {
            if let Some(line) = lines.get(&key) {
                issues.push(Issue::new(span, format!("`{key}` stands here twice: first on line {line}")));
            } else {
                lines.insert(key.clone(), span.line);
                entries.push((key, span, node));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complaint(text: &str) -> String {
        parse(text).unwrap_err()[0].to_string()
    }

    #[test]
    fn places_are_kept() {
        let root = parse("a:\n  b: [1, \"zw\u{f6}lf\"]\n").unwrap();
        let Kind::Map(entries) = &root.kind else { panic!("{root:?}") };
        let Kind::Map(inner) = &entries[0].2.kind else { panic!("{root:?}") };
        assert_eq!((inner[0].1.line, inner[0].1.column), (2, 3));
        let Kind::List(items) = &inner[0].2.kind else { panic!("{root:?}") };
        assert_eq!((items[1].span.line, items[1].span.column, items[1].span.offset), (2, 10, 12));
    }

    #[test]
    fn what_is_not_read_is_refused_with_its_place() {
        assert_eq!(complaint("a: 1\na: 2\n"), "2:1: `a` stands here twice: first on line 1");
        assert!(complaint("a: &x 1\n").starts_with("1:"), "{}", complaint("a: &x 1\n"));
        assert!(complaint("a: !x 1\n").contains("tags"));
        assert!(complaint("a: 1\n---\nb: 2\n").contains("second document"));
        assert!(complaint("? [a]\n: 1\n").contains("key must be a word"));
        assert!(complaint("").contains("empty"));
        assert_eq!(complaint("a: [1\n"), "1:4: not YAML: unclosed bracket '['");
        for deep in ["[", "{a: ", "- ", "? "] {
            let issues = parse(&deep.repeat(100_000)).unwrap_err();
            assert_eq!(issues.len(), 1, "{deep}");
        }
        assert!(complaint(&("[".repeat(100) + &"]".repeat(100))).contains("nested deeper"));
    }

    #[test]
    fn canonical_text_ignores_layout_and_order() {
        let a = parse("a: 1 # one\nb: {c: x, d: [y, z]}\n").unwrap().canonical();
        let b = parse("b:\n  d:\n    - 'y'\n    - z\n  c: x\na: 1\n").unwrap().canonical();
        assert_eq!(a, b);
        assert_ne!(a, parse("a: 1\nb: {c: x, d: [z, y]}\n").unwrap().canonical());
    }

    proptest! {
        #[test]
        fn any_text_is_a_tree_or_an_error_with_a_place(text in "[ -~\\n\u{e9}]{0,200}") {
            if let Err(issues) = parse(&text) {
                prop_assert!(!issues.is_empty());
                for issue in issues {
                    prop_assert!(issue.span.line >= 1 && issue.span.column >= 1);
                    prop_assert!(issue.span.offset <= text.len());
                }
            }
        }
    }
}
