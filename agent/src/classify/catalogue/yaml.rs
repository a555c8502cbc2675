//! The catalogue's YAML, as operators write it: every mistake with its line and column.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use usher_models::Class;

use super::builder::{Builder, Refused};
use super::{CatalogueError, MAX_RULES, list, name};
use crate::place::{self, Place};

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
struct Rule {
    app: Spanned<String>,
    class: Class,
    /// With all names below it.
    domain: Option<Spanned<String>>,
    #[serde(default)]
    domains: Vec<Spanned<String>>,
    /// Alone.
    host: Option<Spanned<String>>,
    #[serde(default)]
    hosts: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixRule {
    prefix: Spanned<IpNet>,
    app: Spanned<String>,
    class: Class,
}

impl Rule {
    /// The domains it is for, and whether for each alone.
    fn domains(&self) -> impl Iterator<Item = (&Spanned<String>, bool)> {
        let below = self.domain.iter().chain(&self.domains).map(|domain| (domain, false));
        below.chain(self.host.iter().chain(&self.hosts).map(|host| (host, true)))
    }
}

/// The flat form of a text.
pub(super) fn compile(file: &str, text: &str) -> Result<Vec<u8>, CatalogueError> {
    if let Some(builder) = plain(text) {
        return Ok(builder.finish());
    }
    let file: Arc<str> = file.into();
    let read: File = serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let (place, message) = place::of_error(&file, &error);
        CatalogueError::Shape { place, message }
    })?;
    let mut builder = Builder::new();
    let at = |location: Location| Place::of(&file, location);
    let too_many = |message| CatalogueError::TooMany { file: file.to_string(), message };
    let entry = |app: &Spanned<String>, class: Class, builder: &mut Builder| {
        if !name::is_app(&app.value) {
            return Err(CatalogueError::App { place: at(app.referenced), app: app.value.clone() });
        }
        builder.entry(&app.value, class.name()).ok_or_else(|| too_many(list::too_many_apps()))
    };
    for rule in &read.rules {
        let entry = entry(&rule.app, rule.class, &mut builder)?;
        if rule.domains().next().is_none() {
            let message =
                "the rule is for nothing: expected `domain`, `domains`, `host` or `hosts`".to_owned();
            return Err(CatalogueError::Shape { place: at(rule.app.referenced), message });
        }
        for (domain, alone) in rule.domains() {
            let Some(canonical) = name::canonical(domain.value.as_bytes()) else {
                let place = at(domain.referenced);
                return Err(CatalogueError::Domain { place, domain: domain.value.clone() });
            };
            builder.domain(&canonical, alone, entry).map_err(|refused| match refused {
                Refused::TooMany => too_many(list::too_many_rules()),
                Refused::Twice => CatalogueError::Duplicate {
                    place: at(domain.referenced),
                    first: at(first(&read.rules, &canonical, alone).unwrap_or(domain.referenced)),
                    rule: canonical.into(),
                },
            })?;
        }
    }
    let mut seen: HashMap<IpNet, Location> = HashMap::new();
    for rule in &read.prefixes {
        let entry = entry(&rule.app, rule.class, &mut builder)?;
        let prefix = rule.prefix.value.trunc();
        builder.prefix(prefix.addr(), prefix.prefix_len(), entry).map_err(|refused| match refused {
            Refused::TooMany => too_many(list::too_many_rules()),
            Refused::Twice => CatalogueError::Duplicate {
                place: at(rule.prefix.referenced),
                first: at(seen.get(&prefix).copied().unwrap_or(rule.prefix.referenced)),
                rule: prefix.to_string(),
            },
        })?;
        seen.insert(prefix, rule.prefix.referenced);
    }
    Ok(builder.finish())
}

/// Where the first rule for a canonical domain stands.
fn first(rules: &[Rule], canonical: &str, alone: bool) -> Option<Location> {
    let mut domains = rules.iter().flat_map(Rule::domains);
    let (first, _) = domains.find(|(domain, is_alone)| {
        *is_alone == alone && name::canonical(domain.value.as_bytes()).as_deref() == Some(canonical)
    })?;
    Some(first.referenced)
}

/// Room for [`MAX_RULES`] rules of seven nodes each; no aliases, for they are how YAML bombs are built.
fn options() -> serde_saphyr::Options {
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

/// The rules of a text that holds nothing but one list of them in the plainest YAML, as programs write it: one of a million
/// rules is read in a tenth of the time. `None` for any other text, and for any mistake in it: the YAML reader decides then.
///
/// ```yaml
/// rules:
///   - {domain: films.example, app: films, class: video}
///   - {"domain": "songs.example", "app": "songs", "class": "video"}
///   - domain: 'pages.example'
///     app: pages
///     class: web
/// ```
fn plain(text: &str) -> Option<Builder> {
    let mut builder = Builder::new();
    let mut lines = text.lines().filter(|line| !is_blank(line)).peekable();
    if lines.next()? != "rules:" {
        return None;
    }
    let indent = indent_of(lines.peek()?);
    let mut last: Option<([&str; 2], u16)> = None;
    while let Some(line) = lines.next() {
        let item = line.get(indent..)?.strip_prefix("- ").filter(|_| indent_of(line) == indent)?;
        let mut words = Words::default();
        if let Some(pairs) = item.strip_prefix('{') {
            pairs.trim_end().strip_suffix('}')?.split(',').try_for_each(|pair| words.take(pair))?;
        } else {
            words.take(item)?;
            while let Some(line) = lines.next_if(|line| indent_of(line) == indent + 2) {
                words.take(line)?;
            }
        }
        let (domain, pair) = (words.domain?, [words.app?, words.class?]);
        let entry = match last {
            Some((same, entry)) if same == pair => entry,
            _ if name::is_app(pair[0]) && pair[1].parse::<Class>().is_ok() => {
                builder.entry(pair[0], pair[1])?
            }
            _ => return None,
        };
        last = Some((pair, entry));
        builder.domain(&name::canonical(domain.as_bytes())?, false, entry).ok()?;
    }
    Some(builder)
}

fn is_blank(line: &str) -> bool {
    let rest = line.trim_start_matches(' ');
    rest.is_empty() || rest.starts_with('#')
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

#[derive(Default)]
struct Words<'a> {
    domain: Option<&'a str>,
    app: Option<&'a str>,
    class: Option<&'a str>,
}

impl<'a> Words<'a> {
    /// Takes `key: value`. Of values, only those that are the same text to every YAML reader.
    fn take(&mut self, pair: &'a str) -> Option<()> {
        let (key, value) = pair.trim_matches(' ').split_once(": ")?;
        let place = match word(key)? {
            "domain" => &mut self.domain,
            "app" => &mut self.app,
            "class" => &mut self.class,
            _ => return None,
        };
        place.replace(word(value.trim_start_matches(' '))?).is_none().then_some(())
    }
}

/// A word of letters, digits and marks that need no escape, in quotes or in none.
fn word(scalar: &str) -> Option<&str> {
    let quoted = ['\'', '"'].into_iter().find_map(|quote| scalar.strip_prefix(quote)?.strip_suffix(quote));
    let word = quoted.unwrap_or(scalar);
    let is_plain =
        word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    (is_plain && (quoted.is_some() || is_text(word))).then_some(word)
}

/// Whether no YAML reader takes the word for a truth value, a number or nothing.
fn is_text(word: &str) -> bool {
    const RESERVED: [&str; 11] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
    let letter_of_no_number =
        |byte: u8| matches!(byte.to_ascii_lowercase(), b'g'..=b'm' | b'p'..=b'w' | b'y' | b'z');
    match word.bytes().next() {
        Some(first) if first.is_ascii_alphabetic() => {
            !RESERVED.iter().any(|reserved| word.eq_ignore_ascii_case(reserved))
        }
        Some(first) if first.is_ascii_digit() => word.bytes().any(letter_of_no_number),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As [`compile`] without its short cut.
    fn by_yaml_alone(text: &str) -> Result<Vec<u8>, CatalogueError> {
        compile("test.yaml", &format!("{text}\nprefixes: []\n"))
    }

    fn spaces() -> impl Strategy<Value = String> {
        " {0,2}"
    }

    /// A word as it is, or in quotes of one kind or the other.
    fn quoted(word: &str, quote: char) -> String {
        if quote == ' ' { word.to_owned() } else { format!("{quote}{word}{quote}") }
    }

    proptest! {
        #[test]
        fn the_short_cut_reads_what_yaml_reads_or_nothing(
            rules in proptest::collection::vec(
                (
                    "[a-zA-Z0-9_.~-]{1,6}|[0-9]{1,3}[.x][a-z0-9]{1,3}",
                    "[a-z0-9-]{1,4}|null|yes|1e3|0x[0-9a-f]|it''s",
                    "video|web|no|",
                    spaces(),
                    any::<bool>(),
                    proptest::array::uniform4(prop_oneof![3 => Just(' '), 1 => Just('\''), 1 => Just('"')]),
                ),
                1..8,
            ),
            indent in 0_usize..3,
            comment in "|# x\n| # y\n|\n| \n|\t\n",
        ) {
            let indent = " ".repeat(indent);
            let mut text = "rules:\n".to_owned();
            for (domain, app, class, space, in_one_line, quotes) in &rules {
                let key = quoted("domain", quotes[0]);
                let [domain, app, class] = [(domain, quotes[1]), (app, quotes[2]), (class, quotes[3])]
                    .map(|(word, quote)| quoted(word, quote));
                let lines = if *in_one_line {
                    format!("{indent}- {{{key}: {space}{domain}, {space}app: {app},{space} class: {class}{space}}}\n")
                } else {
                    format!("{indent}- {key}: {space}{domain}\n{indent}  app: {app}\n{indent}  class: {class}\n")
                };
                text.push_str(&lines);
                text += &comment;
            }
            if let Some(builder) = plain(&text) {
                prop_assert_eq!(by_yaml_alone(&text), Ok(builder.finish()), "{}", text);
            }
        }
    }

    #[test]
    fn the_short_cut_takes_plain_and_quoted_words_and_leaves_the_rest_to_yaml() {
        for (text, taken) in [
            ("rules:\n- {domain: a.example, app: a, class: web}\n", true),
            (
                "# mine\nrules:\n\n  - class: web\n    domain: A.example.\n    app: a\n  - {app: a, domain: b.example, class: web}\n",
                true,
            ),
            ("rules:\n- {domain: a.example, app: a, class: web}\nprefixes: []\n", false),
            ("rules:\n- {domain: 'a.example', \"app\": 'yes', class: \"web\"}\n", true),
            ("rules:\n- {domain: 163.example, app: 9gag, class: web}\n", true),
            ("rules:\n- {domain: 163.ec, app: a, class: web}\n", false),
            ("rules:\n- {domain: \"\\x61.example\", app: a, class: web}\n", false),
            ("rules:\n- {domain: a.example, app: 'a\", class: web}\n", false),
            ("rules:\n- {domain: a.example, app: yes, class: web}\n", false),
            ("rules:\n- {domain: a.example, app: a, class: films}\n", false),
            (
                "rules:\n- {domain: a.example, app: a, class: web}\n- {domain: a.example, app: b, class: web}\n",
                false,
            ),
            ("rules:\n- {domain: a.example, app: a, class: web, class: web}\n", false),
            ("rules:\n- {domain: a.example, app: a, class: web} # mine\n", false),
            ("rules: []\n", false),
            ("", false),
        ] {
            assert_eq!(plain(text).is_some(), taken, "{text}");
            if taken {
                assert_eq!(compile("test.yaml", text), by_yaml_alone(text));
            }
        }
    }
}
