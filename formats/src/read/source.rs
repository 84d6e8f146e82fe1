//! An open file that is read at positions, from any thread.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{Error, Result, standard};

/// A regular file and its length when it was opened.
#[derive(Debug)]
pub(crate) struct Source {
    pub path: PathBuf,
    pub file: File,
    pub len: u64,
    /// Whether it is standard input, whose contents no path leads to.
    pub is_standard: bool,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let fault = |e| Error::io(path, "open", e);
        // Opening a named pipe would wait for its writer, so look before opening.
        let kind = std::fs::metadata(path).map_err(fault)?.file_type();
        if kind.is_dir() {
            return Err(Error::file(path, directory_reason(path)));
        }
        if !kind.is_file() {
            return Err(Error::file(path, "this is not a regular file"));
        }
        let file = File::open(path).map_err(fault)?;
        let len = file.metadata().map_err(fault)?.len();
        Ok(Source { path: path.to_owned(), file, len, is_standard: false })
    }

    /// What comes in on standard input.
    pub(crate) fn standard() -> Result<Source> {
        let (path, file) = (PathBuf::from(standard::INPUT), standard::input()?);
        let len = file.metadata().map_err(|e| Error::io(&path, "read", e))?.len();
        Ok(Source { path, file, len, is_standard: true })
    }

    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        read_exact_at(&self.file, buffer, at).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::file(&self.path, "the file became shorter while it was read"),
            _ => Error::io(&self.path, "read", e),
        })
    }

    /// The first bytes of the file, up to `count`.
    pub(crate) fn head(&self, count: usize) -> Result<Vec<u8>> {
        let mut head = vec![0; count.min(usize::try_from(self.len).unwrap_or(usize::MAX))];
        self.read_exact_at(&mut head, 0)?;
        Ok(head)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => {
                buffer = &mut buffer[count..];
                at += count as u64;
            }
        }
    }
    Ok(())
}

/// A folder is often the one that holds the checkpoint: name what to open instead.
fn directory_reason(path: &Path) -> String {
    for name in ["model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"] {
        if path.join(name).is_file() {
            return format!("this is a folder; open {name} inside it");
        }
    }
    "this is a folder, not a checkpoint file".into()
}
