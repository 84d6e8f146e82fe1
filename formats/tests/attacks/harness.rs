//! Opens a hostile file as a user of the library would, and holds the library to its promises:
//! no panic, no endless loop, memory in proportion to the file, errors of one clean line.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use formats::config;
use formats::write::PIECE;
use formats::{Checkpoint, Error};
use serde_json::Value;

/// Longer than any case takes on a slow machine, far shorter than what an attack aims at.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Memory a case may take at its peak, besides [`FILE_MULTIPLE`] times its files.
const BASE_MEMORY: u64 = 64 << 20;
const FILE_MULTIPLE: u64 = 32;
/// Where the allocator refuses, so that a failing case can't take the machine down.
const HARD_LIMIT: isize = 2 << 30;

/// Counts the bytes that each thread holds.
pub struct CountingAllocator;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// False where the thread would hold more than the hard limit.
fn count(change: isize) -> bool {
    let live = LIVE.get() + change;
    if live > HARD_LIMIT {
        return false;
    }
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
    true
}

// SAFETY: every call is passed on to the system's allocator unchanged, or answered with null,
// which stands for "out of memory".
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if count(layout.size() as isize) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if count(layout.size() as isize) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if count(size as isize - layout.size() as isize) {
            unsafe { System.realloc(block, layout, size) }
        } else {
            std::ptr::null_mut()
        }
    }
}

/// What came of opening a file.
#[derive(Debug)]
pub enum Outcome {
    Refused(String),
    Opened(Opened),
}

/// What an opened file turned out to hold, after everything in it has been read.
#[derive(Debug)]
pub struct Opened {
    /// Name, shape and bytes (the first thousand) of every tensor.
    pub tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
    pub globals: Vec<String>,
    pub hyper_parameters: Option<Value>,
    pub skipped: Vec<(String, String)>,
}

impl Outcome {
    /// The reason of the refusal, which must hold each of `parts`.
    #[track_caller]
    pub fn refused(self, parts: &[&str]) -> String {
        match self {
            Outcome::Refused(message) => {
                for part in parts {
                    assert!(message.contains(part), "'{part}' is not in: {message}");
                }
                message
            }
            Outcome::Opened(opened) => panic!("opened, and should have been refused: {opened:?}"),
        }
    }

    #[track_caller]
    pub fn opened(self) -> Opened {
        match self {
            Outcome::Refused(message) => panic!("refused, and should have been opened: {message}"),
            Outcome::Opened(opened) => opened,
        }
    }
}

/// Writes `bytes` to a file and opens it.
#[track_caller]
pub fn open(bytes: &[u8]) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.bin");
    std::fs::write(&path, bytes).unwrap();
    open_path(&path)
}

/// Opens the file at `path` in a thread of its own and reads all there is to read.
#[track_caller]
pub fn open_path(path: &Path) -> Outcome {
    let folder = path.parent().unwrap();
    let files = std::fs::read_dir(folder).unwrap().filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
    let limit = BASE_MEMORY + FILE_MULTIPLE * files.sum::<u64>();
    let name = std::thread::current().name().unwrap_or("a case").to_owned();
    let path = path.to_owned();
    let peak = watched(&name, move || {
        let outcome = exercise(&path);
        (outcome, PEAK.get())
    });
    let (outcome, peak) = peak;
    assert!(peak as u64 <= limit, "{} MiB at the peak, {} MiB allowed", peak >> 20, limit >> 20);
    outcome
}

/// Runs `work` in a thread with the stack that threads have by default; aborts if it never ends.
#[track_caller]
pub fn watched<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let worker = std::thread::Builder::new().name(name.to_owned()).stack_size(2 << 20).spawn(move || {
        let _ = sender.send(work());
    });
    let worker = worker.unwrap();
    match receiver.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(RecvTimeoutError::Disconnected) => panic!("{name}: {:?}", worker.join().err().map(panic_text)),
        Err(RecvTimeoutError::Timeout) => {
            // The thread can't be stopped from outside, and would go on taking memory.
            eprintln!("{name}: not done after {PATIENCE:?}");
            std::process::abort();
        }
    }
}

fn panic_text(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}

/// Opens a file with every kind of root, and reads everything.
pub fn exercise(path: &Path) -> Outcome {
    let outcome = match formats::open(path).and_then(|checkpoint| read_everything(&checkpoint)) {
        Ok(opened) => Outcome::Opened(opened),
        Err(e) => Outcome::Refused(check_error(path, &e)),
    };
    let roots: &[&str] = match outcome {
        Outcome::Refused(_) => &["."],
        Outcome::Opened(_) => &[".", "state_dict", "hyper_parameters.a"],
    };
    for root in roots {
        if let Err(e) = formats::open_root(path, Some(root)).and_then(|checkpoint| read_everything(&checkpoint)) {
            check_error(path, &e);
        }
    }
    outcome
}

fn read_everything(checkpoint: &Checkpoint) -> formats::Result<Opened> {
    let mut tensors = Vec::new();
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for (number, info) in checkpoint.tensors().iter().enumerate() {
        let elements = info.elements();
        let mut first = Vec::new();
        let mut start = 0;
        while start < elements {
            let end = elements.min(start + PIECE);
            checkpoint.read(number, start..end, &mut bytes)?;
            assert_eq!(bytes.len(), (end - start) * info.dtype.size());
            if start == 0 {
                first = bytes[..bytes.len().min(1000)].to_vec();
            }
            start = end;
        }
        // Complex numbers and the like are refused here; that is no fault of the file.
        let _ = checkpoint.read_f64(number, 0..elements.min(100), &mut values);
        if tensors.len() < 1000 {
            tensors.push((info.name.clone(), info.shape.clone(), first));
        }
    }
    drop(config::detect(checkpoint.tensors(), checkpoint.hyper_parameters().as_ref()));
    let mut globals = Vec::new();
    if let Some(document) = checkpoint.document() {
        drop(document.to_json(document.root()));
        globals = document.globals();
        globals.truncate(1000);
    }
    let hyper_parameters = checkpoint.hyper_parameters();
    // JSON that a reader with the usual limits can't take back would be of no use.
    if let Some(value) = &hyper_parameters {
        let text = serde_json::to_string(value).unwrap();
        serde_json::from_str::<serde::de::IgnoredAny>(&text).unwrap();
    }
    let skipped = checkpoint.skipped().iter().take(1000).cloned().collect();
    Ok(Opened { tensors, globals, hyper_parameters, skipped })
}

/// An error is one line that can be printed, and names the file or another in its folder.
fn check_error(path: &Path, error: &Error) -> String {
    let message = error.to_string();
    let named: &PathBuf = match error {
        Error::Io { path, .. } | Error::File { path, .. } | Error::Tensor { path, .. } => path,
    };
    assert_eq!(named.parent(), path.parent(), "{message:?}");
    assert!(message.contains(&formats::show_path(named)), "{message:?}");
    assert!(message.chars().all(|c| !c.is_control() && !is_mark(c)), "{message:?}");
    assert!(message.chars().count() < 2000, "{} characters", message.chars().count());
    message
}

/// Marks that reorder or hide text: a subset that every message is checked for.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The most bytes this thread has held since [`reset_peak`].
pub fn peak() -> isize {
    PEAK.get()
}

pub fn reset_peak() {
    PEAK.set(LIVE.get());
}
