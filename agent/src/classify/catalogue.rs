//! The catalogue: which app and class a host name belongs to.
//!
//! A rule names a domain; it holds for the domain itself and every name below it, and the longest domain that fits wins.
//! Or it names a prefix of addresses, for flows that nothing else names.
//! Every agent starts with the lists of a public project and an overlay of rules they lack; an operator's file
//! comes on top. All are one index, by its suffixes. Refuses to open files: text comes in as an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use usher_models::Class;

use super::name;
use super::suffixes::Suffixes;
use crate::place::{self, Place};

/// Domains of v2fly/domain-list-community by app; the form is told in its first lines.
const LISTS: &str = include_str!("../../catalogue/domains.txt");
/// What those lists lack.
const OVERLAY: &str = include_str!("../../catalogue/overlay.yaml");

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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The app's id.
    pub app: Arc<str>,
    /// The class of its traffic.
    pub class: Class,
}

/// Domains and what they belong to.
///
/// A clone shares its rules until one of the two is extended.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    rules: Arc<Suffixes>,
    /// Of addresses that belong to one app, by the index's values too.
    prefixes: Arc<JointPrefixMap<IpNet, u32>>,
    /// By the index's values.
    entries: Arc<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    prefixes: Vec<PrefixRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixRule {
    prefix: IpNet,
    app: Spanned<String>,
    class: Class,
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
        static BUILT_IN: LazyLock<Catalogue> = LazyLock::new(|| {
            let mut catalogue = Catalogue::of_lists(LISTS);
            #[expect(clippy::expect_used, reason = "the text is part of the program; a test reads it")]
            catalogue.extend("built-in catalogue", OVERLAY).expect("the built-in catalogue is well formed");
            catalogue
        });
        BUILT_IN.clone()
    }

    /// The rules of derived lists, which a test has seen to be well formed.
    fn of_lists(text: &str) -> Self {
        let mut rules = Suffixes::default();
        let mut entries: Vec<Entry> = Vec::new();
        rules.reserve(text.bytes().filter(|byte| *byte == b'\n').count(), text.len());
        for line in text.lines() {
            match line.as_bytes().first() {
                None | Some(b'#') => {}
                Some(b':') => {
                    let (app, class) = line[1..].split_once(' ').unwrap_or((&line[1..], ""));
                    entries.push(Entry { app: app.into(), class: class.parse().unwrap_or(Class::Other) });
                }
                Some(first) => {
                    let exact = *first == b'=';
                    let value = u32::try_from(entries.len().saturating_sub(1)).unwrap_or(u32::MAX);
                    rules.insert(&line[usize::from(exact)..], exact, value);
                }
            }
        }
        Self { rules: rules.into(), prefixes: Arc::default(), entries: entries.into() }
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
        for rule in &read.prefixes {
            if !is_app_id(&rule.app.value) {
                let place = Place::of(&file, rule.app.referenced);
                return Err(CatalogueError::App { place, app: rule.app.value.clone() });
            }
        }
        if self.len().saturating_add(added.len() + read.prefixes.len()) > MAX_RULES {
            return Err(CatalogueError::TooMany { file: file.to_string() });
        }
        let rules = Arc::make_mut(&mut self.rules);
        let entries = Arc::make_mut(&mut self.entries);
        rules.reserve(added.len(), added.keys().map(|domain| domain.len()).sum());
        let mut values: HashMap<Entry, u32> = HashMap::new();
        let mut value_of = |entry| {
            *values.entry(entry).or_insert_with_key(|entry| {
                entries.push(entry.clone());
                u32::try_from(entries.len() - 1).unwrap_or(u32::MAX)
            })
        };
        for (domain, (entry, _)) in added {
            rules.insert(&domain, false, value_of(entry));
        }
        for rule in read.prefixes {
            let entry = Entry { app: rule.app.value.into(), class: rule.class };
            Arc::make_mut(&mut self.prefixes).insert(rule.prefix.trunc(), value_of(entry));
        }
        Ok(())
    }

    /// What a canonical name (see [`name::canonical`]) belongs to.
    pub fn look_up(&self, name: &str) -> Option<&Entry> {
        self.entries.get(usize::try_from(self.rules.look_up(name)?).ok()?)
    }

    /// What an address belongs to: the weakest proof there is, for networks carry more than they are published for.
    pub fn look_up_address(&self, address: IpAddr) -> Option<&Entry> {
        let (_, value) = self.prefixes.get_lpm(&IpNet::from(address))?;
        self.entries.get(usize::try_from(*value).ok()?)
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len() + self.prefixes.len()
    }

    /// Memory in use by the rules for domains.
    pub fn held(&self) -> usize {
        self.rules.held() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
    fn the_derived_lists_are_well_formed_small_and_fast_to_load() {
        let began = std::time::Instant::now();
        let catalogue = Catalogue::of_lists(LISTS);
        let took = began.elapsed();
        println!("{} rules: {} bytes, loaded in {took:?}", catalogue.len(), catalogue.held());
        assert!(catalogue.len() > 30_000);
        assert!(catalogue.held() < 3_000_000);
        // A debug build on a busy machine is no measure.
        assert!(cfg!(debug_assertions) || took < std::time::Duration::from_millis(50));
        let mut seen = std::collections::HashSet::new();
        for line in LISTS.lines().filter(|line| !line.starts_with('#')) {
            if let Some((app, class)) = line.strip_prefix(':').and_then(|header| header.split_once(' ')) {
                assert!(is_app_id(app) && class.parse::<Class>().is_ok(), "{line}");
            } else {
                let domain = line.strip_prefix('=').unwrap_or(line);
                assert_eq!(name::canonical(domain.as_bytes()).as_deref(), Some(domain));
                assert!(seen.insert(line), "{line} twice");
            }
        }
        let app = |name| catalogue.look_up(name).map(|entry| (&*entry.app, entry.class));
        assert_eq!(app("rr3---sn-4g5e6nez.googlevideo.com"), Some(("youtube", Class::Video)));
        assert_eq!(app("scontent.cdninstagram.com"), Some(("instagram", Class::Social)));
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
    fn the_longest_prefix_of_an_address_wins_and_a_later_file_over_an_earlier() {
        let text = "prefixes:\n\
                    - {prefix: 192.0.2.0/24, app: wide, class: web}\n\
                    - {prefix: 192.0.2.64/26, app: narrow, class: video}\n\
                    - {prefix: '2001:db8::/32', app: six, class: call}\n";
        let mut catalogue = catalogue(text);
        assert_eq!(catalogue.len(), 3);
        catalogue.extend("own.yaml", "prefixes: [{prefix: 192.0.2.9/24, app: mine, class: web}]").unwrap();
        assert_eq!(catalogue.len(), 3);
        let app =
            |address: &str| catalogue.look_up_address(address.parse().unwrap()).map(|entry| &*entry.app);
        assert_eq!(app("192.0.2.1"), Some("mine"));
        assert_eq!(app("192.0.2.65"), Some("narrow"));
        assert_eq!(app("2001:db8::1"), Some("six"));
        assert_eq!(app("198.51.100.1"), None);
        assert!(Catalogue::built_in().look_up_address([91, 108, 8, 1].into()).is_some());
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
            ("prefixes:\n- {prefix: a.b, app: a, class: web}\n", "test.yaml:2:", "IP"),
            ("prefixes:\n- {prefix: 192.0.2.0/24, app: A, class: web}\n", "test.yaml:2:31", "my-video"),
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
