//! Template files: what one vendor's model calls things, kept out of the code.
//!
//! A template is a YAML file:
//!
//! ```yaml
//! version: 1
//! name: usher-subscriber-services
//! requires: [urn:usher:yang:subscriber-services]   # capabilities or module namespaces the device must announce
//! keys: {subscriber: [id]}                         # lists in the payload, and their keys
//! leaf_lists: []                                   # leaf-lists in the payload
//! filter: |                                        # subtree filter (RFC 6241 section 6) that selects what is ours, and no more
//!   <subscribers xmlns="..."><subscriber><id>{{ subscriber }}</id><video-quality/></subscriber></subscribers>
//! desired: |                                       # all that shall be there of what the filter selects
//!   <subscribers xmlns="..."><subscriber><id>{{ subscriber }}</id>...</subscriber></subscribers>
//! ```
//!
//! There is no separate payload for removal: what the device holds of the filter's selection and `desired` does not say
//! is removed, entry by entry, and only where it is there. `desired` sees `subscriber`, and each setting the element
//! accepts by its name: `video.value` is the value itself, `video.X` what the element's configuration gives as `X` for
//! that value; a setting the subscriber does not have is undefined, to be asked for with `if video is defined`. Filters:
//! `bits_per_second` and `bytes_per_second` turn a rate with its unit into the number the model wants.
//!
//! Every value is escaped. A template is tried with each configured value when it is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use usher_models::units::{BitsPerSecond, SubscriberId};

use super::netconf::tree::{Node, Shape, parse_fragment};

/// What an element accepts: setting name -> value -> what the template calls things by.
pub type Accepted = BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>;

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file cannot be read.
    #[error("template {path} cannot be read: {source}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no template.
    #[error("template {path}: {why}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What and where.
        why: String,
    },
    /// A version this build does not know.
    #[error("template {path} has version {found}: this build knows version 1")]
    Version {
        /// Which file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// A part cannot be rendered, or does not render to XML.
    #[error("template {name}, `{part}`: {why}")]
    Render {
        /// The template's name.
        name: String,
        /// `filter` or `desired`.
        part: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A value of a setting the element's configuration does not know.
    #[error("setting `{setting}` has no value `{value}` here: the element's configuration knows {known}")]
    UnknownValue {
        /// Which setting.
        setting: String,
        /// The value desired.
        value: String,
        /// The values known.
        known: String,
    },
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    name: String,
    #[serde(default)]
    requires: Vec<String>,
    #[serde(default)]
    keys: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    leaf_lists: BTreeSet<String>,
    filter: String,
    desired: String,
}

/// A template with the values of one element.
#[derive(Debug)]
pub struct Template {
    name: String,
    /// Capabilities or module namespaces the device must announce.
    pub requires: Vec<String>,
    /// Lists and leaf-lists of the payload.
    pub shape: Shape,
    filter: String,
    desired: String,
    accepted: Accepted,
    environment: Environment<'static>,
}

/// What a template says for one subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Selects what is ours.
    pub filter: Vec<Node>,
    /// All that shall be there of it.
    pub desired: Vec<Node>,
}

impl Template {
    /// Reads the file and tries it with each value the element accepts.
    pub fn load(path: &Path, accepted: Accepted) -> Result<Self, TemplateError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TemplateError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &text, accepted)
    }

    fn parse(path: &Path, text: &str, accepted: Accepted) -> Result<Self, TemplateError> {
        let file: File = serde_saphyr::from_str(text)
            .map_err(|error| TemplateError::Malformed { path: path.to_owned(), why: error.to_string() })?;
        if file.version != 1 {
            return Err(TemplateError::Version { path: path.to_owned(), found: file.version });
        }
        let template = Self {
            name: file.name,
            requires: file.requires,
            shape: Shape { keys: file.keys, leaf_lists: file.leaf_lists },
            filter: file.filter,
            desired: file.desired,
            accepted,
            environment: environment(),
        };
        template.try_all()?;
        Ok(template)
    }

    /// The element has a use for this setting.
    pub fn accepts(&self, setting: &str) -> bool {
        self.accepted.contains_key(setting)
    }

    /// What the device is to hold for `subscriber` with these values of settings; those it does not accept are left out.
    pub fn render<'a>(
        &self,
        subscriber: &SubscriberId,
        values: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Rendered, TemplateError> {
        let mut context = BTreeMap::new();
        for (setting, value) in values {
            let Some(known) = self.accepted.get(setting) else { continue };
            let mut given = known
                .get(value)
                .ok_or_else(|| TemplateError::UnknownValue {
                    setting: setting.to_owned(),
                    value: value.to_owned(),
                    known: known.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", "),
                })?
                .clone();
            given.insert("value".to_owned(), value.to_owned());
            context.insert(setting, minijinja::Value::from_pairs(given));
        }
        context.insert("subscriber", minijinja::Value::from(subscriber.0.as_str()));
        let desired = self.part("desired", &self.desired, &context)?;
        let filter = self.part("filter", &self.filter, &context)?;
        Ok(Rendered { filter, desired })
    }

    fn part(
        &self,
        part: &'static str,
        source: &str,
        context: &BTreeMap<&str, minijinja::Value>,
    ) -> Result<Vec<Node>, TemplateError> {
        let failed = |why: String| TemplateError::Render { name: self.name.clone(), part, why };
        let text = self.environment.render_named_str(part, source, context).map_err(|error| {
            let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
            failed(format!("{error}{line}"))
        })?;
        parse_fragment(&text).map_err(|error| failed(error.to_string()))
    }

    /// Every value once, and each setting missing once, so that a mistake shows when the process starts.
    fn try_all(&self) -> Result<(), TemplateError> {
        let somebody = SubscriberId("somebody".to_owned());
        self.render(&somebody, std::iter::empty())?;
        for (setting, known) in &self.accepted {
            for value in known.keys() {
                self.render(&somebody, std::iter::once((setting.as_str(), value.as_str())))?;
            }
        }
        let longest = self.accepted.values().map(BTreeMap::len).max().unwrap_or(0);
        for round in 0..longest {
            let all = self.accepted.iter().filter_map(|(setting, known)| {
                let value = known.keys().cycle().nth(round)?;
                Some((setting.as_str(), value.as_str()))
            });
            self.render(&somebody, all)?;
        }
        Ok(())
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_recursion_limit(50);
    environment.add_filter("bits_per_second", |rate: String| parse_rate(&rate).map(|rate| rate.0));
    environment.add_filter("bytes_per_second", |rate: String| parse_rate(&rate).map(|rate| rate.0 / 8));
    environment
}

fn parse_rate(text: &str) -> Result<BitsPerSecond, minijinja::Error> {
    text.parse().map_err(|error: usher_models::units::NotARate| {
        minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::elements::netconf::tree::to_xml;

    const TEMPLATE: &str = include_str!("../../templates/usher-subscriber-services.yaml");

    fn accepted() -> Accepted {
        let video = |quality: &str, down: &str| {
            BTreeMap::from([("quality".to_owned(), quality.to_owned()), ("down".to_owned(), down.to_owned())])
        };
        BTreeMap::from([
            (
                "video".to_owned(),
                BTreeMap::from([
                    ("sd".to_owned(), video("sd", "1.5 Mbit/s")),
                    ("hd".to_owned(), video("hd", "8 Mbit/s")),
                ]),
            ),
            (
                "roam_pass".to_owned(),
                BTreeMap::from([
                    ("none".to_owned(), BTreeMap::from([("pass".to_owned(), "none".to_owned())])),
                    ("day".to_owned(), BTreeMap::from([("pass".to_owned(), "day".to_owned())])),
                ]),
            ),
        ])
    }

    fn template() -> Template {
        Template::parse(Path::new("t.yaml"), TEMPLATE, accepted()).unwrap()
    }

    fn render(settings: &[(&str, &str)]) -> Result<Rendered, TemplateError> {
        template().render(&SubscriberId("line-1".into()), settings.iter().copied())
    }

    #[test]
    fn rates_are_written_in_the_models_unit() {
        let xml = to_xml(&render(&[("video", "hd"), ("qos_up", "interactive")]).unwrap().desired);
        assert!(
            xml.contains("<video-quality>hd</video-quality><down-rate-bps>8000000</down-rate-bps>"),
            "{xml}"
        );
        assert!(!xml.contains("roaming-pass"), "{xml}");
    }

    #[test]
    fn a_value_the_element_does_not_know_is_named_with_those_it_does() {
        let error = render(&[("video", "uhd")]).unwrap_err().to_string();
        assert_eq!(
            error,
            "setting `video` has no value `uhd` here: the element's configuration knows `hd`, `sd`"
        );
    }

    #[test]
    fn mistakes_show_when_the_template_is_loaded() {
        let load = |text: &str, accepted| {
            Template::parse(Path::new("t.yaml"), text, accepted).unwrap_err().to_string()
        };
        let mut no_rate = accepted();
        no_rate.get_mut("video").unwrap().get_mut("hd").unwrap().insert("down".into(), "fast".into());
        assert!(load(TEMPLATE, no_rate).contains("`fast` is not a rate"));
        let mut no_quality = accepted();
        no_quality.get_mut("video").unwrap().get_mut("hd").unwrap().remove("quality");
        assert!(load(TEMPLATE, no_quality).contains("undefined"));
        assert!(load(&TEMPLATE.replace("</subscribers>", ""), accepted()).contains("not well-formed"));
        assert!(load(&TEMPLATE.replace("version: 1", "version: 2"), accepted()).contains("version 2"));
        assert!(load(&TEMPLATE.replace("filter:", "filtre:"), accepted()).contains("filtre"));
    }

    proptest! {
        #[test]
        fn no_name_of_a_subscriber_breaks_out_of_its_leaf(name in "[ -~]{1,60}") {
            let rendered = template().render(&SubscriberId(name.clone()), std::iter::once(("video", "hd"))).unwrap();
            let id = rendered.desired[0].children[0].child("id").unwrap().text().unwrap_or_default();
            prop_assert_eq!(id, name.trim());
        }
    }
}
