//! What an agent has pinned, as others find it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::links::{FdLink, PinnedLink};

/// The pinned links' numbers, by which the kernel tells one from another, by the names of their pins.
pub fn links(pins: &Path) -> Result<BTreeMap<String, u32>> {
    let mut links = BTreeMap::new();
    for entry in fs::read_dir(pins).with_context(|| format!("list {}", pins.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("link_") || name.starts_with("xdp_") {
            let link = PinnedLink::from_pin(entry.path()).with_context(|| format!("open the link {name}"))?;
            links.insert(name, FdLink::from(link).info()?.id());
        }
    }
    Ok(links)
}
