//! Configuration as a tree that can be compared: names by namespace URI, text trimmed, prefixes of values resolved.
//!
//! Servers rewrite prefixes, quote differently and order children as they like; text comparison would show drift where
//! there is none. Attributes, comments and the order of children carry no meaning here, so lists ordered by the user are
//! not supported.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::elements::Change;

/// Namespace of NETCONF's own elements and of the `operation` attribute (RFC 6241 section 3.1).
pub const BASE: &str = "urn:ietf:params:xml:ns:netconf:base:1.0";

/// Deepest nesting read; real models stay below twenty.
const DEPTH: usize = 64;

/// Most nodes read from one document.
const NODES: u32 = 1_000_000;

/// Text that is no XML we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// Not well-formed.
    #[error("not well-formed XML: {0}")]
    Malformed(String),
    /// Nested too deeply.
    #[error("XML nested deeper than {DEPTH} elements")]
    TooDeep,
}

/// A qualified name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Namespace URI; empty: none.
    pub namespace: String,
    /// Local part.
    pub local: String,
}

/// What a leaf holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Anything but the next.
    Text(String),
    /// `prefix:word` where the prefix is declared in scope: an identity, or an instance's name.
    Qualified(Name),
}

impl Value {
    /// For people.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Qualified(name) => name.local.clone(),
        }
    }
}

/// An element: a container, a list entry or a leaf.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// Its text, where it is a leaf that holds some.
    pub value: Option<Value>,
    /// Its child elements.
    pub children: Vec<Node>,
}

/// What a tree alone does not tell: which elements are lists, and by what they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// Local name of a list -> local names of its keys.
    pub keys: BTreeMap<String, Vec<String>>,
    /// Local names of leaf-lists.
    pub leaf_lists: BTreeSet<String>,
}

/// The document's root element.
pub fn parse(document: &str) -> Result<Node, XmlError> {
    read(document, |root| Node::of(root, 0))
}

/// Elements without a common root, as a template writes them.
pub fn parse_fragment(fragment: &str) -> Result<Vec<Node>, XmlError> {
    // A root of our own; a fragment that closes it early leaves a document that is not well-formed.
    Ok(parse(&format!("<fragment>{fragment}</fragment>"))?.children)
}

/// Parses within bounds and hands the root element on.
pub(super) fn read<T>(
    document: &str,
    with: impl FnOnce(roxmltree::Node<'_, '_>) -> Result<T, XmlError>,
) -> Result<T, XmlError> {
    let options = roxmltree::ParsingOptions { nodes_limit: NODES, ..Default::default() };
    let parsed = roxmltree::Document::parse_with_options(document, options)
        .map_err(|error| XmlError::Malformed(error.to_string()))?;
    with(parsed.root_element())
}

impl Node {
    /// Reads an element and what is below it.
    pub(super) fn of(node: roxmltree::Node<'_, '_>, depth: usize) -> Result<Self, XmlError> {
        if depth > DEPTH {
            return Err(XmlError::TooDeep);
        }
        let name = Name {
            namespace: node.tag_name().namespace().unwrap_or_default().to_owned(),
            local: node.tag_name().name().to_owned(),
        };
        let children = node
            .children()
            .filter(roxmltree::Node::is_element)
            .map(|child| Self::of(child, depth + 1))
            .collect::<Result<Vec<_>, _>>()?;
        let value = if children.is_empty() { value_of(node) } else { None };
        Ok(Self { name, value, children })
    }

    /// The child of that local name.
    pub fn child(&self, local: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name.local == local)
    }

    /// Its text, whatever its kind.
    pub fn text(&self) -> Option<String> {
        self.value.as_ref().map(Value::shown)
    }

    fn identity<'a>(&'a self, shape: &Shape) -> Identity<'a> {
        let keys = shape.keys.get(&self.name.local).map(|keys| {
            keys.iter().map(|key| self.child(key).and_then(|child| child.value.as_ref())).collect::<Vec<_>>()
        });
        let value = if shape.leaf_lists.contains(&self.name.local) { self.value.as_ref() } else { None };
        Identity { name: &self.name, keys, value }
    }

    /// Itself with nothing but its keys: enough to name it.
    fn named_only(&self, shape: &Shape) -> Self {
        let keys = shape.keys.get(&self.name.local);
        let children = self
            .children
            .iter()
            .filter(|child| keys.is_some_and(|keys| keys.contains(&child.name.local)))
            .cloned()
            .collect();
        let value = if shape.leaf_lists.contains(&self.name.local) { self.value.clone() } else { None };
        Self { name: self.name.clone(), value, children }
    }

    /// As it stands in a path: `subscriber[id=line-1]`.
    fn step(&self, shape: &Shape) -> String {
        let mut step = self.name.local.clone();
        for key in shape.keys.get(&self.name.local).into_iter().flatten() {
            let value = self.child(key).and_then(Self::text).unwrap_or_default();
            let _ = write!(step, "[{key}={value}]");
        }
        step
    }
}

/// What makes two elements the same one.
#[derive(PartialEq, Eq)]
struct Identity<'a> {
    name: &'a Name,
    keys: Option<Vec<Option<&'a Value>>>,
    value: Option<&'a Value>,
}

fn value_of(node: roxmltree::Node<'_, '_>) -> Option<Value> {
    let text: String =
        node.children().filter_map(|child| if child.is_text() { child.text() } else { None }).collect();
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    if let Some((prefix, word)) = text.split_once(':')
        && !word.is_empty()
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && let Some(namespace) = node.lookup_namespace_uri(Some(prefix))
    {
        let name = Name { namespace: namespace.to_owned(), local: word.to_owned() };
        return Some(Value::Qualified(name));
    }
    Some(Value::Text(text.to_owned()))
}

/// Takes away containers with nothing in them, which a server may report or not as it likes. What is a container is
/// told by the filter: it is an element that has children there.
pub fn prune(nodes: &mut Vec<Node>, filter: &[Node]) {
    nodes.retain_mut(|node| {
        let Some(like) = filter.iter().find(|like| like.name == node.name && !like.children.is_empty())
        else {
            return true;
        };
        prune(&mut node.children, &like.children);
        !node.children.is_empty() || node.value.is_some()
    });
}

/// The way from one state to another: what to send, and the same for people. Both empty where they are equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    /// Content of edit-config's `config`, to be merged.
    pub xml: String,
    /// One line for each leaf.
    pub changes: Vec<Change>,
}

/// What turns `from` into `to`. Only what differs is named, and nothing is removed that is not there.
pub fn edit(from: &[Node], to: &[Node], shape: &Shape) -> Edit {
    let mut edit = Edit::default();
    edit_children(from, to, shape, "", "", &mut edit);
    edit
}

/// True where both hold the same, in whatever order.
pub fn same(left: &[Node], right: &[Node], shape: &Shape) -> bool {
    edit(left, right, shape).changes.is_empty()
}

fn edit_children(from: &[Node], to: &[Node], shape: &Shape, path: &str, around: &str, edit: &mut Edit) {
    for want in to {
        let here = format!("{path}/{}", want.step(shape));
        match from.iter().find(|have| have.identity(shape) == want.identity(shape)) {
            None => {
                write_node(want, around, None, &mut edit.xml);
                leaves(want, shape, &here, &mut |path, value| {
                    edit.changes.push(Change { path, from: None, to: Some(value) });
                });
            }
            Some(have) if have.children.is_empty() && want.children.is_empty() => {
                if have.value != want.value {
                    write_node(want, around, None, &mut edit.xml);
                    edit.changes.push(Change { path: here, from: have.text(), to: want.text() });
                }
            }
            Some(have) => {
                let mut inner = Edit::default();
                edit_children(&have.children, &want.children, shape, &here, &want.name.namespace, &mut inner);
                if !inner.changes.is_empty() {
                    open(&want.name, around, None, &mut edit.xml);
                    // The entry's keys name it; a change among them would have been another entry.
                    for key in want.named_only(shape).children {
                        write_node(&key, &want.name.namespace, None, &mut edit.xml);
                    }
                    edit.xml.push_str(&inner.xml);
                    let _ = write!(edit.xml, "</{}>", want.name.local);
                    edit.changes.append(&mut inner.changes);
                }
            }
        }
    }
    for have in from {
        if !to.iter().any(|want| want.identity(shape) == have.identity(shape)) {
            write_node(&have.named_only(shape), around, Some("remove"), &mut edit.xml);
            leaves(have, shape, &format!("{path}/{}", have.step(shape)), &mut |path, value| {
                edit.changes.push(Change { path, from: Some(value), to: None });
            });
        }
    }
}

fn leaves(node: &Node, shape: &Shape, path: &str, each: &mut impl FnMut(String, String)) {
    if node.children.is_empty() {
        each(path.to_owned(), node.text().unwrap_or_default());
    }
    for child in &node.children {
        leaves(child, shape, &format!("{path}/{}", child.step(shape)), each);
    }
}

/// The elements as text, every value escaped.
pub fn to_xml(nodes: &[Node]) -> String {
    let mut xml = String::new();
    for node in nodes {
        write_node(node, "", None, &mut xml);
    }
    xml
}

/// `around` is the default namespace where the element is put.
fn write_node(node: &Node, around: &str, operation: Option<&str>, xml: &mut String) {
    open(&node.name, around, operation, xml);
    match &node.value {
        None => {}
        Some(Value::Text(text)) => xml.push_str(&quick_xml::escape::escape(text.as_str())),
        Some(Value::Qualified(name)) => {
            // Declared on the leaf itself, so that the value means the same wherever the element is put.
            xml.pop();
            let _ = write!(
                xml,
                r#" xmlns:v="{}">v:{}"#,
                quick_xml::escape::escape(name.namespace.as_str()),
                name.local
            );
        }
    }
    for child in &node.children {
        write_node(child, &node.name.namespace, None, xml);
    }
    let _ = write!(xml, "</{}>", node.name.local);
}

fn open(name: &Name, around: &str, operation: Option<&str>, xml: &mut String) {
    let _ = write!(xml, "<{}", name.local);
    if name.namespace != around {
        let _ = write!(xml, r#" xmlns="{}""#, quick_xml::escape::escape(name.namespace.as_str()));
    }
    if let Some(operation) = operation {
        let _ = write!(xml, r#" xmlns:nc="{BASE}" nc:operation="{operation}""#);
    }
    xml.push('>');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape() -> Shape {
        Shape {
            keys: BTreeMap::from([("entry".to_owned(), vec!["id".to_owned()])]),
            leaf_lists: BTreeSet::from(["tag".to_owned()]),
        }
    }

    fn nodes(xml: &str) -> Vec<Node> {
        parse_fragment(xml).unwrap()
    }

    #[test]
    fn prefixes_white_space_and_order_make_no_difference() {
        let ours = nodes(r#"<t xmlns="urn:t"><a xmlns:i="urn:i">i:fast</a><b>1</b></t>"#);
        let theirs =
            nodes("<x:t xmlns:x='urn:t' xmlns:other='urn:i'>\n <x:b> 1 </x:b>\n<x:a>other:fast</x:a></x:t>");
        assert!(same(&ours, &theirs, &shape()));
        let drifted = nodes(r#"<t xmlns="urn:t"><a xmlns:i="urn:j">i:fast</a><b>1</b></t>"#);
        assert!(!same(&ours, &drifted, &shape()), "the same word of another module is another value");
    }

    #[test]
    fn a_diff_names_only_what_differs_and_removes_only_what_is_there() {
        let from = nodes(
            r#"<t xmlns="urn:t"><entry><id>1</id><q>sd</q><old>x</old></entry><entry><id>2</id></entry></t>"#,
        );
        let to = nodes(
            r#"<t xmlns="urn:t"><entry><id>1</id><q>hd</q></entry><entry><id>3</id><q>sd</q></entry></t>"#,
        );
        let edit = edit(&from, &to, &shape());
        let shown: Vec<String> = edit.changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "/t/entry[id=1]/q: sd -> hd",
                "/t/entry[id=1]/old: x -> -",
                "/t/entry[id=3]/id: - -> 3",
                "/t/entry[id=3]/q: - -> sd",
                "/t/entry[id=2]/id: 2 -> -",
            ]
        );
        assert_eq!(
            edit.xml,
            concat!(
                r#"<t xmlns="urn:t"><entry><id>1</id><q>hd</q>"#,
                r#"<old xmlns:nc="urn:ietf:params:xml:ns:netconf:base:1.0" nc:operation="remove"></old></entry>"#,
                r#"<entry><id>3</id><q>sd</q></entry>"#,
                r#"<entry xmlns:nc="urn:ietf:params:xml:ns:netconf:base:1.0" nc:operation="remove"><id>2</id></entry></t>"#,
            )
        );
    }

    #[test]
    fn leaf_lists_are_sets_of_values() {
        let edit = edit(&nodes("<tag>a</tag><tag>b</tag>"), &nodes("<tag>b</tag><tag>c</tag>"), &shape());
        assert_eq!(
            edit.xml,
            concat!(
                "<tag>c</tag>",
                r#"<tag xmlns:nc="urn:ietf:params:xml:ns:netconf:base:1.0" nc:operation="remove">a</tag>"#,
            )
        );
    }

    #[test]
    fn an_empty_container_is_as_good_as_none_but_an_empty_leaf_is_not() {
        let filter = nodes(r#"<t xmlns="urn:t"><entry><id>1</id><flag/></entry></t>"#);
        let mut empty = nodes(r#"<t xmlns="urn:t"/>"#);
        prune(&mut empty, &filter);
        assert!(empty.is_empty());
        let mut flagged = nodes(r#"<t xmlns="urn:t"><entry><id>1</id><flag/></entry></t>"#);
        prune(&mut flagged, &filter);
        assert_eq!(flagged, filter);
    }

    #[test]
    fn hostile_documents_are_refused() {
        for depth in [100, 400_000] {
            let deep = "<a>".repeat(depth) + &"</a>".repeat(depth);
            assert_eq!(parse(&deep), Err(XmlError::TooDeep));
        }
        assert!(parse(r#"<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>"#).is_err());
        assert!(parse_fragment("</fragment><fragment>").is_err());
    }

    proptest! {
        #[test]
        fn any_value_survives_being_written_and_read(value in "[ -~\u{e4}\u{20ac}]{1,40}") {
            let node = Node {
                name: Name { namespace: "urn:t".into(), local: "leaf".into() },
                value: Some(Value::Text(value.trim().to_owned())).filter(|_| !value.trim().is_empty()),
                children: Vec::new(),
            };
            prop_assert_eq!(parse_fragment(&to_xml(std::slice::from_ref(&node))).unwrap(), [node]);
        }

        #[test]
        fn reading_never_panics(text in ".{0,200}") {
            let _ = parse(&text);
            let _ = parse_fragment(&text);
        }

        #[test]
        fn nothing_is_sent_where_nothing_differs(ids in proptest::collection::btree_set(0_u8..20, 0..10)) {
            let entries = |ids: &mut dyn Iterator<Item = &u8>| {
                let entries: Vec<String> =
                    ids.map(|id| format!("<entry><id>{id}</id><q>{id}</q></entry>")).collect();
                entries.concat()
            };
            let forwards = nodes(&entries(&mut ids.iter()));
            let backwards = nodes(&entries(&mut ids.iter().rev()));
            prop_assert_eq!(edit(&forwards, &backwards, &shape()), Edit::default());
        }
    }
}
