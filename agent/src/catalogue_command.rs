//! `usher-agent catalogue`: asks the catalogue about names, checks an operator's file, compiles it.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, process};

use crate::catalogue::{self, LoadError};
use crate::classify::{Catalogue, name};

const EXAMPLES: &str = "\
Examples:
  usher-agent catalogue look-up www.netflix.com 91.108.8.1        whose they are, and by which rule
  usher-agent catalogue look-up --catalogue own.yaml films.test   with an operator's rules on top
  usher-agent catalogue check own.yaml                            how many rules, or where the mistake is
  usher-agent catalogue compile own.txt own.catalogue             for a million rules: read as it lies";

/// Arguments of the sub-command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    ask: Ask,
}

#[derive(Debug, clap::Subcommand)]
enum Ask {
    /// Say which app and class names and addresses belong to, and why
    LookUp {
        /// Catalogue that adds to the built-in one
        #[arg(long, value_name = "FILE")]
        catalogue: Option<PathBuf>,
        /// Host names or addresses
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Say whether a file can be used, or what is wrong with it
    Check {
        /// YAML, a list (`.txt`, `.list`), or a compiled file
        file: PathBuf,
    },
    /// Write a file that is used as it lies, with nothing left to parse
    Compile {
        /// YAML, or a list (`.txt`, `.list`)
        file: PathBuf,
        /// What to write; replaced in one step, so that a running agent may have it open
        out: PathBuf,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueCommandError {
    /// The catalogue.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Neither a name nor an address.
    #[error("`{0}` is neither a host name nor an address")]
    Name(String),
    /// The compiled file.
    #[error("write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer.
    #[error("write the answer: {0}")]
    Output(#[from] io::Error),
}

/// Answers on `out`.
pub fn run(arguments: &Args, out: &mut impl Write) -> Result<(), CatalogueCommandError> {
    match &arguments.ask {
        Ask::LookUp { catalogue, names } => {
            let catalogue = catalogue::load(catalogue.as_deref())?;
            names.iter().try_for_each(|name| look_up(&catalogue, name, out))
        }
        Ask::Check { file } => {
            let catalogue = only(file)?;
            Ok(writeln!(out, "{}: {} rules, {} bytes", file.display(), catalogue.len(), catalogue.held())?)
        }
        Ask::Compile { file, out: compiled } => {
            let bytes = catalogue::compiled(file)?;
            write(compiled, &bytes)?;
            Ok(writeln!(
                out,
                "{}: {} rules, {} bytes",
                compiled.display(),
                only(compiled)?.len(),
                bytes.len()
            )?)
        }
    }
}

fn look_up(catalogue: &Catalogue, asked: &str, out: &mut impl Write) -> Result<(), CatalogueCommandError> {
    let answer = if let Ok(address) = asked.parse::<IpAddr>() {
        let found = catalogue.explain_address(address);
        found.map(|(source, entry)| format!("{} ({}), a prefix of {source}", entry.app, entry.class))
    } else {
        let name = name::canonical(asked.as_bytes());
        let name = name.ok_or_else(|| CatalogueCommandError::Name(asked.to_owned()))?;
        catalogue.explain(&name).map(|why| {
            let reach = if why.alone { "alone" } else { "and below" };
            format!("{} ({}), {} {reach}, {}", why.entry.app, why.entry.class, why.domain, why.source)
        })
    };
    writeln!(out, "{asked}: {}", answer.as_deref().unwrap_or("no rule"))?;
    Ok(())
}

/// The rules of one file, without the built-in ones.
fn only(file: &Path) -> Result<Catalogue, LoadError> {
    let mut catalogue = Catalogue::empty();
    catalogue.extend_compiled(&file.display().to_string(), catalogue::compiled(file)?)?;
    Ok(catalogue)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CatalogueCommandError> {
    let new = path.with_extension(format!("new-{}", process::id()));
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .map_err(|source| CatalogueCommandError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn said(words: &[&str]) -> Result<String, String> {
        let line =
            Line::try_parse_from([&["catalogue"], words].concat()).map_err(|error| error.to_string())?;
        let mut out = Vec::new();
        run(&line.args, &mut out).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_name_is_explained_by_its_rule_and_where_that_stands() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("own.yaml");
        fs::write(&own, "rules: [{host: films.test, app: films, class: video}]").unwrap();
        let own = own.to_str().unwrap();
        let expected = format!(
            "Films.test.: films (video), films.test alone, {own}\n\
             www.films.test: no rule\n\
             seg.streams.example: streams (video), streams.example and below, built-in catalogue\n\
             91.108.8.1: telegram (social), a prefix of built-in catalogue\n\
             192.0.2.1: no rule\n"
        );
        let names = ["Films.test.", "www.films.test", "seg.streams.example", "91.108.8.1", "192.0.2.1"];
        assert_eq!(said(&[&["look-up", "--catalogue", own], &names[..]].concat()), Ok(expected));
        assert!(said(&["look-up", "a b"]).unwrap_err().contains("`a b` is neither"));
    }

    #[test]
    fn what_was_compiled_is_what_was_checked() {
        let directory = tempfile::tempdir().unwrap();
        let (list, compiled) = (directory.path().join("own.txt"), directory.path().join("own"));
        fs::write(&list, ":films video\nfilms.test\n192.0.2.0/24\n").unwrap();
        let (list, compiled) = (list.to_str().unwrap(), compiled.to_str().unwrap());
        assert!(said(&["check", list]).unwrap().starts_with(&format!("{list}: 2 rules, ")));
        assert!(said(&["compile", list, compiled]).unwrap().starts_with(&format!("{compiled}: 2 rules, ")));
        let found = said(&["look-up", "--catalogue", compiled, "a.films.test"]).unwrap();
        assert_eq!(found, format!("a.films.test: films (video), films.test and below, {compiled}\n"));
        fs::write(list, "films.test\n").unwrap();
        assert!(said(&["check", list]).unwrap_err().starts_with(&format!("{list}:1:1: no app yet")));
    }
}
