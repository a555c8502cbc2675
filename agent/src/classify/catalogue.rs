//! The catalogue: which app and class a host name belongs to.
//!
//! A rule names a domain; it holds for the domain itself and every name below it, and the longest domain that fits wins.
//! All rules are compiled into one hash table, asked once for each label of a name, longest suffix first. Refuses to
//! open files: text comes in as an argument.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use usher_models::Class;

use super::name;
use crate::place::{self, Place};

/// The rules every agent starts with.
const BUILT_IN: &str = include_str!("../../catalogue.yaml");

/// Most rules a catalogue holds, all files together.
pub const MAX_RULES: usize = 1_000_000;

/// A catalogue text that cannot be used; nothing of it was taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// The text is not YAML of the expected shape.
    #[error("{place}: {message}")]
    Shape {
        /// Where.
        place: Place,
        /// What is wrong there and what was expected.
        message: String,
    },
    /// Two rules of one file name the same domain.
    #[error("{place}: domain `{domain}` has a rule already at {first}: remove one of the two")]
    Duplicate {
        /// The second rule.
        place: Place,
        /// The first rule.
        first: Place,
        /// The domain of both.
        domain: String,
    },
    /// A domain that no host name can end in.
    #[error(
        "{place}: `{domain}` is not a domain: expected labels of letters, digits, `-` and `_`, as in `video.example`; names below it are included without `*.`"
    )]
    Domain {
        /// Where.
        place: Place,
        /// The text.
        domain: String,
    },
    /// An app id that could not stand in metrics and policies.
    #[error(
        "{place}: `{app}` is not an app id: expected up to 64 lower-case letters, digits and `-`, as in `my-video`"
    )]
    App {
        /// Where.
        place: Place,
        /// The text.
        app: String,
    },
    /// More rules than fit.
    #[error("{file}: more than {MAX_RULES} rules together with those of other files: remove some")]
    TooMany {
        /// The file that brought the last straw.
        file: String,
    },
}

/// What the catalogue says about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The app's id.
    pub app: Arc<str>,
    /// The class of its traffic.
    pub class: Class,
}

/// Domains and what they belong to.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    rules: HashMap<Box<str>, Entry>,
    /// Labels of the longest domain: suffixes of more labels need no look-up.
    most_labels: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    domain: Spanned<String>,
    app: Spanned<String>,
    class: Class,
}

impl Catalogue {
    /// A catalogue without a rule.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The rules that come with the agent.
    pub fn built_in() -> Self {
        let mut catalogue = Self::empty();
        #[expect(clippy::expect_used, reason = "the text is part of the program; a test reads it")]
        catalogue.extend("built-in catalogue", BUILT_IN).expect("the built-in catalogue is well formed");
        catalogue
    }

    /// Adds the rules of `text`, read from a file called `file`.
    ///
    /// A rule replaces one that another file gave for the same domain, so an operator's file has the last word over the
    /// built-in one; within one file a domain has one rule. On an error nothing is added.
    pub fn extend(&mut self, file: &str, text: &str) -> Result<(), CatalogueError> {
        let file: Arc<str> = file.into();
        let read: File = serde_saphyr::from_str_with_options(text, yaml_options()).map_err(|error| {
            let (place, message) = place::of_error(&file, &error);
            CatalogueError::Shape { place, message }
        })?;
        let mut added: HashMap<Box<str>, (Entry, Location)> = HashMap::with_capacity(read.rules.len());
        let mut apps: HashMap<Box<str>, Arc<str>> = HashMap::new();
        for rule in read.rules {
            let at = |location| Place::of(&file, location);
            let Some(domain) = name::canonical(rule.domain.value.as_bytes()) else {
                return Err(CatalogueError::Domain {
                    place: at(rule.domain.referenced),
                    domain: rule.domain.value,
                });
            };
            if !is_app_id(&rule.app.value) {
                return Err(CatalogueError::App { place: at(rule.app.referenced), app: rule.app.value });
            }
            let app = apps.entry(rule.app.value.as_str().into()).or_insert_with(|| rule.app.value.into());
            let entry = Entry { app: Arc::clone(app), class: rule.class };
            if let Some((_, first)) = added.get(&domain) {
                return Err(CatalogueError::Duplicate {
                    place: at(rule.domain.referenced),
                    first: at(*first),
                    domain: domain.into(),
                });
            }
            added.insert(domain, (entry, rule.domain.referenced));
        }
        if self.rules.len().saturating_add(added.len()) > MAX_RULES {
            return Err(CatalogueError::TooMany { file: file.to_string() });
        }
        for (domain, (entry, _)) in added {
            self.most_labels = self.most_labels.max(domain.split('.').count());
            self.rules.insert(domain, entry);
        }
        Ok(())
    }

    /// What a canonical name (see [`name::canonical`]) belongs to.
    pub fn look_up(&self, name: &str) -> Option<&Entry> {
        let labels = name.split('.').count();
        let mut suffix = name;
        for left in (1..=labels).rev() {
            if left <= self.most_labels
                && let Some(entry) = self.rules.get(suffix)
            {
                return Some(entry);
            }
            suffix = suffix.split_once('.')?.1;
        }
        None
    }

    /// How many domains have a rule.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether no domain has a rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

fn is_app_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Room for [`MAX_RULES`] rules of seven nodes each; no aliases, for they are how YAML bombs are built.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_nodes: MAX_RULES * 8,
            max_events: MAX_RULES * 12,
            max_total_scalar_bytes: MAX_RULES * 256,
            max_aliases: 0,
            max_anchors: 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(text: &str) -> Catalogue {
        let mut catalogue = Catalogue::empty();
        catalogue.extend("test.yaml", text).unwrap();
        catalogue
    }

    fn error(text: &str) -> String {
        Catalogue::empty().extend("test.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_built_in_catalogue_is_well_formed() {
        let catalogue = Catalogue::built_in();
        let segment = catalogue.look_up("seg.streams.example").unwrap();
        assert_eq!((&*segment.app, segment.class), ("streams", Class::Video));
        assert_eq!(catalogue.look_up("pages.example").unwrap().class, Class::Web);
    }

    #[test]
    fn suffixes_match_at_label_boundaries_and_the_longest_wins() {
        let catalogue = catalogue(
            "rules:\n\
             - {domain: example.com, app: pages, class: web}\n\
             - {domain: Video.Example.COM, app: films, class: video}\n\
             - {domain: test, app: tests, class: other}\n",
        );
        let app = |name| catalogue.look_up(name).map(|entry| &*entry.app);
        assert_eq!(app("example.com"), Some("pages"));
        assert_eq!(app("www.example.com"), Some("pages"));
        assert_eq!(app("video.example.com"), Some("films"));
        assert_eq!(app("a.b.c.video.example.com"), Some("films"));
        assert_eq!(app("notexample.com"), None);
        assert_eq!(app("myvideo.example.com"), Some("pages"));
        assert_eq!(app("com"), None);
        assert_eq!(app("example.com.evil"), None);
        assert_eq!(app("a.test"), Some("tests"));
        assert_eq!(Catalogue::empty().look_up("example.com"), None);
    }

    #[test]
    fn an_operators_file_has_the_last_word_over_the_built_in_one() {
        let mut catalogue = Catalogue::built_in();
        let before = catalogue.len();
        catalogue.extend("own.yaml", "rules: [{domain: streams.example, app: mine, class: bulk}]").unwrap();
        assert_eq!(catalogue.len(), before);
        assert_eq!(catalogue.look_up("seg.streams.example").unwrap().class, Class::Bulk);
    }

    #[test]
    fn a_domain_with_two_rules_is_refused_naming_both_lines() {
        let text = "rules:\n\
                    - {domain: a.example, app: a, class: web}\n\
                    - {domain: b.example, app: a, class: web}\n\
                    - {domain: A.example., app: a, class: video}\n";
        let message = error(text);
        assert!(message.starts_with("test.yaml:4:12:") && message.contains("test.yaml:2:12"), "{message}");
    }

    #[test]
    fn every_error_says_where_and_what_was_expected() {
        for (text, place, expected) in [
            ("rules:\n- {domain: a.example, app: a, class: films}\n", "test.yaml:2:", "video"),
            ("rules:\n- {domain: a.example, app: a, kind: web}\n", "test.yaml:2:", "kind"),
            ("rules:\n- {domain: a.example, app: a}\n", "test.yaml:2:", "class"),
            ("rules:\n- {domain: '*.a.example', app: a, class: web}\n", "test.yaml:2:12", "without `*.`"),
            ("rules:\n- {domain: a.example, app: My App, class: web}\n", "test.yaml:2:28", "my-video"),
            ("rules: 7\n", "test.yaml:1:", "sequence"),
            ("rule: []\n", "test.yaml:1:", "rules"),
            ("rules: [\n", "test.yaml:", ""),
        ] {
            let message = error(text);
            assert!(message.starts_with(place) && message.contains(expected), "{text:?} gave: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    #[test]
    fn a_refused_file_changes_nothing() {
        let mut catalogue = Catalogue::built_in();
        let before = catalogue.len();
        let text = "rules: [{domain: new.example, app: a, class: web}, {domain: '', app: a, class: web}]";
        assert!(catalogue.extend("own.yaml", text).is_err());
        assert_eq!(catalogue.len(), before);
        assert_eq!(catalogue.look_up("new.example"), None);
    }
}
