//! Reads the operator's catalogue file; the catalogue itself lives in [`crate::classify`], which opens no file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::classify::{Catalogue, CatalogueError};

/// Largest catalogue file that is read.
const MAX_FILE: u64 = 64 * 1024 * 1024;

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
    /// Its text is no catalogue.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

/// The built-in catalogue, extended by the operator's file where there is one.
pub fn load(path: Option<&Path>) -> Result<Catalogue, LoadError> {
    let mut catalogue = Catalogue::built_in();
    if let Some(path) = path {
        catalogue.extend(&path.display().to_string(), &read(path)?)?;
    }
    Ok(catalogue)
}

fn read(path: &Path) -> Result<String, LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_file_extends_the_built_in_catalogue() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("own.yaml");
        std::fs::write(&path, "rules: [{domain: films.test, app: films, class: video}]").unwrap();
        let catalogue = load(Some(&path)).unwrap();
        assert!(catalogue.look_up("www.films.test").is_some());
        assert!(catalogue.look_up("seg.streams.example").is_some());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.yaml");
        let message = load(Some(&path)).unwrap_err().to_string();
        assert!(message.contains("none.yaml") && message.contains("No such file"), "{message}");
        std::fs::write(&path, "rules: 1").unwrap();
        let message = load(Some(&path)).unwrap_err().to_string();
        assert!(message.contains("none.yaml:1:8"), "{message}");
    }
}
