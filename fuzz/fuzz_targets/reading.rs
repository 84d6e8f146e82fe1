//! Opens bytes as a file and reads all there is to read.

use std::cell::LazyCell;
use std::path::{Path, PathBuf};

use formats::write::PIECE;
use formats::{Checkpoint, Error};
use tempfile::TempDir;

thread_local! {
    /// In memory where there is such a folder: each run writes a file.
    static FOLDER: LazyCell<TempDir> = LazyCell::new(|| {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
    });
}

pub fn open(bytes: &[u8]) {
    let path = FOLDER.with(|folder| folder.path().join("fuzzed"));
    std::fs::write(&path, bytes).expect("a temporary file");
    for root in [None, Some(".")] {
        match formats::open_root(&path, root) {
            Ok(checkpoint) => read(&path, &checkpoint),
            Err(e) => check(&path, &e),
        }
    }
}

fn read(path: &Path, checkpoint: &Checkpoint) {
    let mut bytes = Vec::new();
    for (number, info) in checkpoint.tensors().iter().enumerate() {
        for start in (0..info.elements()).step_by(PIECE) {
            let end = info.elements().min(start + PIECE);
            if let Err(e) = checkpoint.read(number, start..end, &mut bytes) {
                check(path, &e);
            }
        }
    }
    if let Some(value) = checkpoint.hyper_parameters() {
        serde_json::from_str::<serde_json::Value>(&value.to_string()).expect("JSON that can be read back");
    }
    formats::config::detect(checkpoint.tensors(), None);
}

/// An error is one line that can be printed, and names a file of the folder.
fn check(path: &Path, error: &Error) {
    let message = error.to_string();
    let named: &PathBuf = match error {
        Error::Io { path, .. } | Error::File { path, .. } | Error::Tensor { path, .. } => path,
    };
    assert_eq!(named.parent(), path.parent(), "{message:?}");
    assert!(!message.contains(char::is_control), "{message:?}");
}
