//! One error type for everything that can be wrong with a file.

use std::path::{Path, PathBuf};

/// What went wrong, with the file, the tensor where there is one, and the reason.
/// Every message is one line: names taken from a file are escaped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused: not found, permission, disk full, …
    #[error("{}: cannot {action}: {}", show_path(path), io_reason(error))]
    Io { path: PathBuf, action: &'static str, error: std::io::Error },
    /// The file as a whole is not what it should be.
    #[error("{}: {reason}", show_path(path))]
    File { path: PathBuf, reason: String },
    /// One tensor of the file is not what it should be.
    #[error("{}: tensor '{}': {reason}", show_path(path), show_name(tensor))]
    Tensor { path: PathBuf, tensor: String, reason: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn io(path: impl Into<PathBuf>, action: &'static str, error: std::io::Error) -> Error {
        // Not called `source`: the message has it, and a chain of causes would show it twice.
        Error::Io { path: path.into(), action, error }
    }

    pub fn file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Error {
        Error::File { path: path.into(), reason: reason.into() }
    }

    pub fn tensor(path: impl Into<PathBuf>, tensor: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Tensor { path: path.into(), tensor: tensor.into(), reason: reason.into() }
    }
}

/// A name from a file, safe to print on one line: control characters are escaped, and a name
/// of more than 200 characters is cut.
pub fn show_name(name: &str) -> String {
    let mut shown = String::with_capacity(name.len());
    for (count, c) in name.chars().enumerate() {
        if count == 200 {
            shown.push('…');
            break;
        }
        // Beyond control characters: marks that reorder or hide text in a terminal.
        let hidden =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || hidden {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A path, safe to print on one line.
pub fn show_path(path: &Path) -> String {
    show_name(&path.to_string_lossy())
}

fn io_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}
