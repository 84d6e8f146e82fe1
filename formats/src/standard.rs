//! `-`: standard input and output where a file is wanted.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// What messages and recipes call standard input.
pub const INPUT: &str = "standard input";
/// What messages call standard output.
pub const OUTPUT: &str = "standard output";

/// Whether a path stands for standard input or output. A file of this name is `./-`.
pub fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The path for messages and recipes where it is read from.
pub fn input_name(path: &Path) -> &Path {
    if is_standard(path) { Path::new(INPUT) } else { path }
}

/// The path for messages where it is written to.
pub fn output_name(path: &Path) -> &Path {
    if is_standard(path) { Path::new(OUTPUT) } else { path }
}

/// Reads a text file, or standard input for `-`, up to `most` bytes. `action` is for messages: "read the layout".
///
/// # Errors
/// It can't be read, or isn't UTF-8.
pub fn read_text(path: &Path, most: u64, action: &'static str) -> Result<String> {
    let fault = |e| Error::io(input_name(path), action, e);
    let mut text = String::new();
    let read = match is_standard(path) {
        true => input()?.take(most).read_to_string(&mut text),
        false => File::open(path).map_err(fault)?.take(most).read_to_string(&mut text),
    };
    read.map_err(fault)?;
    Ok(text)
}

/// Reads a file, or standard input for `-`, up to `most` bytes.
///
/// # Errors
/// It can't be read.
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let fault = |e| Error::io(input_name(path), "read", e);
    let file = match is_standard(path) {
        true => input()?,
        false => File::open(path).map_err(fault)?,
    };
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(fault)?;
    Ok(bytes)
}

/// Everything on standard input as a file that can be read at any position, from its start. What comes through a
/// pipe is copied to a temporary file first, which has no name and so is gone when the program ends. Every call gives
/// the same contents.
///
/// # Errors
/// Standard input is a terminal, where nobody can type a checkpoint or an image; reading or copying fails.
pub(crate) fn input() -> Result<File> {
    static INPUT_FILE: Mutex<Option<File>> = Mutex::new(None);
    let fault = |e| Error::io(INPUT, "read", e);
    let mut kept = INPUT_FILE.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.is_none() {
        *kept = Some(spool()?);
    }
    let own = kept.as_ref().map(File::try_clone).transpose().map_err(fault)?;
    let mut own = own.ok_or_else(|| Error::file(INPUT, "it can't be read"))?;
    own.seek(SeekFrom::Start(0)).map_err(fault)?;
    Ok(own)
}

fn spool() -> Result<File> {
    let fault = |e| Error::io(INPUT, "read", e);
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(Error::file(INPUT, "it is a terminal: pipe or redirect a file into the program"));
    }
    if let Some(file) = redirected() {
        return Ok(file);
    }
    let mut file = tempfile::tempfile().map_err(|e| Error::io(INPUT, "make a temporary copy", e))?;
    std::io::copy(&mut stdin.lock(), &mut file).map_err(fault)?;
    Ok(file)
}

/// The file that standard input is redirected from, if it stands at that file's start.
#[cfg(unix)]
fn redirected() -> Option<File> {
    use std::os::fd::AsFd;
    let mut file = File::from(std::io::stdin().as_fd().try_clone_to_owned().ok()?);
    let is_whole = file.metadata().ok()?.is_file() && file.stream_position().ok()? == 0;
    is_whole.then_some(file)
}

#[cfg(not(unix))]
fn redirected() -> Option<File> {
    None
}

/// Refuses to write a checkpoint to a terminal.
pub(crate) fn check_output() -> Result<()> {
    match std::io::stdout().is_terminal() {
        true => Err(Error::file(OUTPUT, "it is a terminal: redirect it into a file or another program")),
        false => Ok(()),
    }
}

/// Copies a whole file to standard output.
pub(crate) fn copy_out(mut file: File) -> Result<()> {
    use std::io::Write;
    let fault = |e| Error::io(OUTPUT, "write", e);
    file.seek(SeekFrom::Start(0)).map_err(fault)?;
    let mut stdout = std::io::stdout().lock();
    std::io::copy(&mut file, &mut stdout).map_err(fault)?;
    stdout.flush().map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"four").unwrap();
        assert_eq!(read_bytes(&path, 3).unwrap(), b"fou");
        assert_eq!(read_bytes(&path, 5).unwrap(), b"four");
        let error = read_bytes(&folder.path().join("none"), 5).unwrap_err().to_string();
        assert!(error.ends_with("none: cannot read: no such file or directory"), "{error}");
    }
}
