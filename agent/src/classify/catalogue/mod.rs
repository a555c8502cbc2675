//! The catalogue: which app and class a host name belongs to.
//!
//! A rule names a domain; it holds for the domain itself and every name below it, or for a name alone, and the longest domain
//! that fits wins. Or it names a prefix of addresses, for flows that nothing else names.
//!
//! ```text
//!   lists, overlay -> build script -\
//!   operator's YAML or list -> builder -> flat form -> index (a layer) -> look_up: longest, then latest layer
//!   compiled by `usher-agent catalogue` -------/
//! ```
//!
//! Every agent starts with the lists of a public project and an overlay of rules they lack, compiled into the program and
//! used where the kernel maps it; an operator's file lies on top. Refuses to open files: text comes in as an argument.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use usher_models::Class;

use self::builder::Builder;
use self::index::{Found, Index};
use self::layout::Hash;
use super::name;
use crate::place::Place;

mod builder;
mod index;
mod layout;
mod list;
mod yaml;

pub use self::index::IndexError;

/// The lists and the overlay, by the build script.
static BUILT_IN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/catalogue"));

/// Most rules of one file, for domains and prefixes each.
pub const MAX_RULES: usize = builder::MAX_RULES;

/// A catalogue that cannot be used; nothing of it was taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// The text is not of the expected shape.
    #[error("{place}: {message}")]
    Shape {
        /// Where.
        place: Place,
        /// What is wrong there and what was expected.
        message: String,
    },
    /// Two rules of one file are for the same domain or prefix.
    #[error("{place}: `{rule}` has a rule already at {first}: remove one of the two")]
    Duplicate {
        /// The second rule.
        place: Place,
        /// The first rule.
        first: Place,
        /// The domain or prefix of both.
        rule: String,
    },
    /// A domain that no host name can end in.
    #[error("{place}: `{domain}` is not a domain: {}", name::DOMAIN_EXPECTED)]
    Domain {
        /// Where.
        place: Place,
        /// The text.
        domain: String,
    },
    /// An app id that could not stand in metrics and policies.
    #[error("{place}: `{app}` is not an app id: {}", name::APP_EXPECTED)]
    App {
        /// Where.
        place: Place,
        /// The text.
        app: String,
    },
    /// More than fits.
    #[error("{file}: {message}")]
    TooMany {
        /// The file.
        file: String,
        /// Of what, and how many fit.
        message: String,
    },
    /// A compiled file that is none.
    #[error("{file}: {error}")]
    Compiled {
        /// The file.
        file: String,
        /// Why.
        error: IndexError,
    },
}

/// What the catalogue says about a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The app's id.
    pub app: Arc<str>,
    /// The class of its traffic.
    pub class: Class,
}

/// How the rules of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `rules:` and `prefixes:`.
    Yaml,
    /// A domain a line, under its app.
    List,
}

/// Why a name belongs to what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation<'a> {
    /// The rule's domain.
    pub domain: &'a str,
    /// Whether the rule holds for the domain alone, not for the names below it.
    pub alone: bool,
    /// Where the rule comes from.
    pub source: &'a str,
    /// What the name belongs to.
    pub entry: &'a Entry,
}

/// Domains, prefixes, and what they belong to. A clone shares its rules.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// A later one has the last word.
    layers: Vec<Arc<Layer>>,
    /// Labels of the longest domain.
    most_labels: usize,
}

#[derive(Debug)]
struct Layer {
    source: Box<str>,
    index: Index,
}

impl Catalogue {
    /// A catalogue without a rule.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The rules that come with the agent.
    pub fn built_in() -> Self {
        static LAYER: LazyLock<Arc<Layer>> = LazyLock::new(|| {
            #[expect(clippy::expect_used, reason = "the bytes are part of the program; a test reads them")]
            let index = Index::read(BUILT_IN).expect("the built-in catalogue is well formed");
            Arc::new(Layer { source: "built-in catalogue".into(), index })
        });
        let mut catalogue = Self::empty();
        catalogue.put(Arc::clone(&LAYER));
        catalogue
    }

    /// The rules of a text, compiled. `file` is what it is called.
    pub fn compile(file: &str, text: &str, form: Form) -> Result<Vec<u8>, CatalogueError> {
        match form {
            Form::Yaml => yaml::compile(file, text),
            Form::List => {
                let mut builder = Builder::new();
                list::read(text, &mut builder, |word| word.parse::<Class>().is_ok()).map_err(|mistake| {
                    let (line, column) = (mistake.line as u64, mistake.column as u64);
                    CatalogueError::Shape {
                        place: Place { file: file.into(), line, column },
                        message: mistake.message,
                    }
                })?;
                Ok(builder.finish())
            }
        }
    }

    /// Whether a file's bytes are meant to be a compiled catalogue.
    pub fn is_compiled(bytes: &[u8]) -> bool {
        Index::is_meant_by(bytes)
    }

    /// Adds the rules of `text`, an operator's YAML, read from a file called `file`.
    ///
    /// A rule replaces one that another file gave for the same domain, so an operator's file has the last word over the
    /// built-in one; within one file a domain has one rule. On an error nothing is added.
    pub fn extend(&mut self, file: &str, text: &str) -> Result<(), CatalogueError> {
        self.extend_compiled(file, Self::compile(file, text, Form::Yaml)?)
    }

    /// Adds the rules that were compiled into `bytes`, read from a file called `file`, likewise.
    pub fn extend_compiled(&mut self, file: &str, bytes: Vec<u8>) -> Result<(), CatalogueError> {
        let index =
            Index::read(bytes).map_err(|error| CatalogueError::Compiled { file: file.to_owned(), error })?;
        self.put(Arc::new(Layer { source: file.into(), index }));
        Ok(())
    }

    fn put(&mut self, layer: Arc<Layer>) {
        self.most_labels = self.most_labels.max(layer.index.most_labels());
        self.layers.push(layer);
    }

    /// What a canonical name (see [`name::canonical`]) belongs to.
    pub fn look_up(&self, name: &str) -> Option<&Entry> {
        let (layer, found) = self.find(name.as_bytes())?;
        layer.index.entry(found)
    }

    /// What a canonical name belongs to, and by which rule.
    pub fn explain<'a>(&'a self, name: &'a str) -> Option<Explanation<'a>> {
        let (layer, found) = self.find(name.as_bytes())?;
        let domain = name.get(name.len() - found.length..)?;
        Some(Explanation {
            domain,
            alone: found.exact,
            source: &layer.source,
            entry: layer.index.entry(found)?,
        })
    }

    fn find(&self, name: &[u8]) -> Option<(&Layer, Found)> {
        let mut hash = Hash::EMPTY;
        let mut longest = None;
        let mut label = 0;
        for (at, byte) in name.iter().enumerate().rev() {
            hash = hash.then(*byte);
            if at > 0 && name[at - 1] != b'.' {
                continue;
            }
            label += 1;
            if label > self.most_labels {
                break;
            }
            let found = self.layers.iter().rev().find_map(|layer| {
                layer.index.find(&name[at..], hash, at == 0).map(|found| (&**layer, found))
            });
            longest = found.or(longest);
        }
        longest
    }

    /// What an address belongs to: the weakest proof there is, for networks carry more than they are published for.
    pub fn look_up_address(&self, address: IpAddr) -> Option<&Entry> {
        self.explain_address(address).map(|(_, entry)| entry)
    }

    /// What an address belongs to, and where the rule comes from.
    pub fn explain_address(&self, address: IpAddr) -> Option<(&str, &Entry)> {
        let found = self.layers.iter().filter_map(|layer| {
            let (length, entry) = layer.index.find_address(address)?;
            Some((length, &*layer.source, entry))
        });
        found.max_by_key(|(length, ..)| *length).map(|(_, source, entry)| (source, entry))
    }

    /// How many rules there are, for domains and prefixes, those that a later file replaces too.
    pub fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.index.domains() + layer.index.prefixes()).sum()
    }

    /// Bytes of the rules, wherever they lie; those of the built-in catalogue are the program's own pages.
    pub fn held(&self) -> usize {
        self.layers.iter().map(|layer| layer.index.bytes().len() + layer.index.held()).sum()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
