//! One error type for everything that can be wrong with a file.

use std::path::{Path, PathBuf};

/// What went wrong, with the file, the tensor where there is one, and the reason.
/// Every message is one line: what it quotes from a file is escaped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused: not found, permission, disk full, …
    #[error("{}: cannot {action}: {}", show_path(path), io_reason(error))]
    Io { path: PathBuf, action: &'static str, error: std::io::Error },
    /// The file as a whole is not what it should be.
    #[error("{}: {}", show_path(path), show_reason(reason))]
    File { path: PathBuf, reason: String },
    /// One tensor of the file is not what it should be.
    #[error("{}: tensor '{}': {}", show_path(path), show_name(tensor), show_reason(reason))]
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

/// A name from a file, safe to print on one line: control characters and marks that reorder or
/// hide text are escaped, and what is longer than 200 characters is cut.
pub fn show_name(name: &str) -> String {
    show(name, 200)
}

/// A message that quotes from a file, safe to print on one line; cut at 1000 characters.
pub(crate) fn show_reason(reason: &str) -> String {
    show(reason, 1000)
}

fn show(text: &str, limit: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(limit));
    let mut count = 0;
    for c in text.chars() {
        let before = shown.len();
        if c.is_control() || is_mark(c) {
            shown.extend(c.escape_default());
            count += shown.len() - before;
        } else {
            shown.push(c);
            count += 1;
        }
        if count > limit {
            shown.truncate(before);
            shown.push('…');
            break;
        }
    }
    shown
}

/// Characters that a terminal doesn't show, or that change how it shows others: joiners, marks of
/// writing direction, fillers, tags.
pub(crate) fn is_mark(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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
