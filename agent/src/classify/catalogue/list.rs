//! The catalogue's plain text, for lists of many domains:
//!
//! ```text
//! # a comment
//! :films video            an app, and the class of its traffic; what follows is of it
//! films.example           a domain and all names below it
//! =www.films.example      a name alone
//! 192.0.2.0/24            addresses, for flows that nothing else names
//! ```
//!
//! The build script shares this file.

use std::net::IpAddr;

use super::builder::{Builder, Refused};
use super::name;

/// A line that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// From 1.
    pub(super) line: usize,
    /// From 1.
    pub(super) column: usize,
    /// What is wrong, and what was expected.
    pub(super) message: String,
}

/// Adds the rules of a text to a catalogue. Which words are classes the caller knows.
pub(super) fn read(
    text: &str,
    builder: &mut Builder,
    is_class: impl Fn(&str) -> bool,
) -> Result<(), Mistake> {
    let mut app = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        let mistake = |column, message| Mistake { line: number + 1, column, message };
        match line.as_bytes().first() {
            None | Some(b'#') => {}
            Some(b':') => {
                app = Some(self::app(&line[1..], builder, &is_class).map_err(|(at, why)| mistake(at, why))?);
            }
            Some(_) => {
                let entry = app.ok_or_else(|| {
                    mistake(1, "no app yet: expected `:APP CLASS` before the first rule".into())
                })?;
                rule(line, builder, entry).map_err(|why| mistake(1, why))?;
            }
        }
    }
    Ok(())
}

/// The entry of `APP CLASS`; else the column at fault, and why.
fn app(text: &str, builder: &mut Builder, is_class: impl Fn(&str) -> bool) -> Result<u16, (usize, String)> {
    let (app, class) = text.split_once(' ').unwrap_or((text, ""));
    if !name::is_app(app) {
        return Err((2, format!("`{app}` is not an app id: {}", name::APP_EXPECTED)));
    }
    if !is_class(class) {
        let words = "expected video, call, game, web, social, bulk, system or other";
        return Err((app.len() + 3, format!("unknown class `{class}`: {words}")));
    }
    builder.entry(app, class).ok_or_else(|| (2, too_many_apps()))
}

fn rule(line: &str, builder: &mut Builder, entry: u16) -> Result<(), String> {
    let taken = if let Some((address, length)) = line.split_once('/') {
        let (address, length) = prefix(address, length).ok_or_else(|| {
            format!("`{line}` is not a prefix: expected one as in `192.0.2.0/24` or `2001:db8::/32`")
        })?;
        builder.prefix(address, length, entry)
    } else {
        let domain = line.strip_prefix('=').unwrap_or(line);
        let canonical = name::canonical(domain.as_bytes())
            .ok_or_else(|| format!("`{domain}` is not a domain: {}", name::DOMAIN_EXPECTED))?;
        builder.domain(&canonical, domain.len() < line.len(), entry)
    };
    taken.map_err(|refused| match refused {
        Refused::Twice => format!("`{line}` has a rule already in this file: remove one of the two"),
        Refused::TooMany => too_many_rules(),
    })
}

fn prefix(address: &str, length: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

pub(super) fn too_many_apps() -> String {
    format!("more than {} apps: give some of the rules one app", super::builder::MAX_ENTRIES)
}

pub(super) fn too_many_rules() -> String {
    format!("more than {} rules: remove some", super::builder::MAX_RULES)
}
