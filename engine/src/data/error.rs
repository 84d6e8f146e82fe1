//! What can be wrong with a data set.

use std::path::{Path, PathBuf};

use formats::{show_name, show_path};

use super::{BrokenRow, Task};

/// Every message is one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}: {error}", show_path(path))]
    Io { path: PathBuf, action: &'static str, error: std::io::Error },
    /// A file or folder is not what it should be.
    #[error("{}: {}", show_path(path), show_name(reason))]
    File { path: PathBuf, reason: String },
    /// There is no such split, or nothing for the task.
    #[error("{}: no {wanted}; {found}", show_path(path))]
    Missing { path: PathBuf, wanted: String, found: String },
    /// Data of a kind that isn't read, but can be converted.
    #[error("{}: {what}; this makes it readable: {command}{note}", show_path(path))]
    Convert {
        path: PathBuf,
        what: String,
        /// What to type or to do.
        command: String,
        /// What else there is to say, beginning with a semicolon.
        note: String,
    },
    /// A task has to be chosen.
    #[error("{}: there are data for {}: say which with --task", show_path(path), names(tasks))]
    SeveralTasks { path: PathBuf, tasks: Vec<Task> },
    /// Too much of the data is unusable.
    #[error(
        "{first}; {broken} of {rows} rows are broken, more than {} %: repair them, or allow more with --max-broken SHARE",
        percent(*allowed)
    )]
    TooManyBroken {
        broken: usize,
        rows: usize,
        /// The share of the rows that may be broken, 0 to 1.
        allowed: f64,
        first: BrokenRow,
    },
    /// Nothing of the data is usable, whatever share of it may be broken.
    #[error("none of its {0} examples can be used")]
    NoExample(usize),
    /// One row can't be used.
    #[error("{0}")]
    Row(BrokenRow),
    /// A wrong call, such as an index beyond the end.
    #[error("{0}")]
    Argument(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// In percent, without the digits that only arise from counting in twos.
fn percent(share: f64) -> f64 {
    (share * 1e6).round() / 1e4
}

/// `irtr, vqa and nlvr2`
fn names(tasks: &[Task]) -> String {
    let names: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
    match names.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => names.concat(),
    }
}

impl Error {
    pub fn io(path: impl AsRef<Path>, action: &'static str, error: std::io::Error) -> Error {
        Error::Io { path: path.as_ref().into(), action, error }
    }

    /// What is wrong with a row, without the place of it.
    pub fn cause(self) -> String {
        match self {
            Error::Row(row) => row.cause,
            other => other.to_string(),
        }
    }

    pub fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().into(), reason: reason.into() }
    }
}
