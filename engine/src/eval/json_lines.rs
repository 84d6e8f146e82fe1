//! One JSON value a line, in a file that is there whole or not at all.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use formats::write::AtomicFile;
use serde::Serialize;

/// A file being written, under a temporary name until [`JsonLines::finish`].
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: BufWriter<AtomicFile>,
}

impl JsonLines {
    /// # Errors
    /// The folder isn't there or can't be written to.
    pub fn create(path: &Path) -> Result<JsonLines> {
        Ok(JsonLines { path: path.to_owned(), file: BufWriter::new(AtomicFile::create(path)?) })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text).with_context(|| cannot_write(&self.path))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// As [`JsonLines::write`]; then no file is left.
    pub fn finish(self) -> Result<()> {
        let file = self.file.into_inner().map_err(|e| e.into_error()).with_context(|| cannot_write(&self.path))?;
        Ok(file.finish()?)
    }
}

fn cannot_write(path: &Path) -> String {
    format!("{}: cannot be written", formats::show_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("details.jsonl");
        let mut lines = JsonLines::create(&path).unwrap();
        lines.write(&["a\nb"]).unwrap();
        lines.write(&1).unwrap();
        assert!(!path.exists());
        lines.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[\"a\\nb\"]\n1\n");

        let mut lines = JsonLines::create(&path).unwrap();
        lines.write(&2).unwrap();
        drop(lines);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = format!("{:#}", JsonLines::create(&folder.path().join("none/d.jsonl")).unwrap_err());
        assert!(error.contains("none/d.jsonl: cannot write"), "{error}");
    }
}
