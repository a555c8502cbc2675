//! Reads the operator's catalogue file; the catalogue itself lives in [`crate::classify`], which opens no file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::classify::catalogue::Form;
use crate::classify::{Catalogue, CatalogueError};

/// Largest catalogue file that is read.
const MAX_FILE: u64 = 256 * 1024 * 1024;

/// A catalogue file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read catalogue {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than any catalogue.
    #[error("read catalogue {path}: larger than {MAX_FILE} bytes", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A text that is none.
    #[error("read catalogue {path}: byte {at} is not UTF-8: save it as UTF-8", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where, from 0.
        at: usize,
    },
    /// Its text is no catalogue.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

/// The built-in catalogue, extended by the operator's file where there is one.
pub fn load(path: Option<&Path>) -> Result<Catalogue, LoadError> {
    let mut catalogue = Catalogue::built_in();
    if let Some(path) = path {
        catalogue.extend_compiled(&path.display().to_string(), compiled(path)?)?;
    }
    Ok(catalogue)
}

/// An operator's file in its compiled form: YAML, a list (`.txt`, `.list`), or what was compiled before.
///
/// Compiled files are read and not mapped: the forty megabytes of a million rules take some 20 ms, and a mapping whose file
/// somebody cuts short would kill the agent.
pub fn compiled(path: &Path) -> Result<Vec<u8>, LoadError> {
    let bytes = read(path)?;
    if Catalogue::is_compiled(&bytes) {
        return Ok(bytes);
    }
    let is_list = path.extension().is_some_and(|extension| extension == "txt" || extension == "list");
    let text = String::from_utf8(bytes).map_err(|error| LoadError::NotText {
        path: path.to_owned(),
        at: error.utf8_error().valid_up_to(),
    })?;
    let form = if is_list { Form::List } else { Form::Yaml };
    Ok(Catalogue::compile(&path.display().to_string(), &text, form)?)
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_file_extends_the_built_in_catalogue_in_every_form() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        std::fs::write(path("own.yaml"), "rules: [{domain: films.test, app: films, class: video}]").unwrap();
        std::fs::write(path("own.txt"), ":films video\nfilms.test\n").unwrap();
        std::fs::write(path("own"), compiled(&path("own.txt")).unwrap()).unwrap();
        for name in ["own.yaml", "own.txt", "own"] {
            let catalogue = load(Some(&path(name))).unwrap();
            assert_eq!(&*catalogue.look_up("www.films.test").unwrap().app, "films", "{name}");
            assert!(catalogue.look_up("seg.streams.example").is_some());
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.yaml");
        let message = load(Some(&path)).unwrap_err().to_string();
        assert!(message.contains("none.yaml") && message.contains("No such file"), "{message}");
        for (bytes, expected) in [
            (&b"rules: 1"[..], "none.yaml:1:8"),
            (b"rules:\n\xff", "none.yaml: byte 7 is not UTF-8"),
            (b"usher-c1 cut short", "none.yaml: not a compiled catalogue"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let message = load(Some(&path)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
