//! Images in folders.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::super::{Error, Result};

/// Images by file name, sorted by it.
pub(super) type Images = IndexMap<String, PathBuf>;

/// Adds the files with one of `endings` (any, where there is none) in `folder`, `depth` folders down.
///
/// # Errors
/// A folder can't be listed.
pub(super) fn list(folder: &Path, depth: usize, endings: &[&str], into: &mut Images) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, "list", e))?;
        // A symbolic link may stand for either.
        let kind = entry.file_type().map_err(|e| Error::io(folder, "list", e))?;
        let path = entry.path();
        let is_folder = kind.is_dir() || (kind.is_symlink() && path.is_dir());
        if is_folder == (depth > 0) {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        if depth > 0 {
            list(&path, depth - 1, endings, into)?;
            continue;
        }
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if (endings.is_empty() || endings.contains(&ending.as_str())) && !name.starts_with('.') {
            into.insert(name.to_string(), path.clone());
        }
    }
    Ok(())
}

pub(super) const JPEG: [&str; 2] = ["jpg", "jpeg"];
