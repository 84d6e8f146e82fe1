//! A request to stop, from a signal's handler to the training loop; and what has to be undone where a signal ends the
//! program at once.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;

/// That of this process.
static REQUEST: Request = Request::new();

struct Request {
    /// Asked to stop.
    stop: AtomicBool,
    /// By which signal; 0 for none.
    signal: AtomicI32,
    /// Training loops that look at `stop`.
    heeding: AtomicUsize,
}

impl Request {
    const fn new() -> Request {
        Request { stop: AtomicBool::new(false), signal: AtomicI32::new(0), heeding: AtomicUsize::new(0) }
    }

    fn heard(&self, signal: i32) -> bool {
        if self.heeding.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let first = self.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        self.stop.store(true, Ordering::SeqCst);
        first
    }

    fn heed(&'static self) -> Heeding {
        self.heeding.fetch_add(1, Ordering::SeqCst);
        Heeding(self)
    }

    fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
    }
}

/// For the handler of signals: whether this one was heard by a training loop, which will save a checkpoint
/// and end. `false` where none runs, and from the second signal on: then the program should end at once, after
/// [`undo_all`].
///
/// - signal: its number, as 2 for SIGINT
pub fn heard(signal: i32) -> bool {
    REQUEST.heard(signal)
}

/// The flag that the first signal sets while somebody heeds it.
pub fn stop_flag() -> &'static AtomicBool {
    &REQUEST.stop
}

/// From now on, as long as this lives, somebody looks at [`stop_flag`].
#[must_use]
pub fn heed() -> Heeding {
    REQUEST.heed()
}

/// Of [`heed`].
pub struct Heeding(&'static Request);

impl Drop for Heeding {
    fn drop(&mut self) {
        self.0.heeding.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The signal that a training run was stopped by.
pub fn signal() -> Option<i32> {
    REQUEST.signal()
}

/// Another program that this one waited for was ended by a signal, which most often was meant for both: Ctrl-C in a
/// terminal goes to all that run there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub signal: i32,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "interrupted by signal {}", self.signal)
    }
}

impl std::error::Error for Ended {}

impl Ended {
    /// By an exit status: of a program that a signal ended, or that says so as shells do.
    pub fn by(status: std::process::ExitStatus) -> Option<Ended> {
        #[cfg(unix)]
        let killed = std::os::unix::process::ExitStatusExt::signal(&status);
        #[cfg(not(unix))]
        let killed = None;
        // SIGHUP, SIGINT, SIGTERM. Others, such as the SIGKILL of a system out of memory, nobody asked for.
        let signal = killed.or_else(|| status.code().and_then(|code| code.checked_sub(128)));
        signal.filter(|signal| [1, 2, 15].contains(signal)).map(|signal| Ended { signal })
    }
}

/// How something is undone.
pub type Undo = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// What is to be undone where a signal ends the program, the last of it first.
static UNDOS: Mutex<BTreeMap<u64, Undo>> = Mutex::new(BTreeMap::new());

/// How many were ever begun: a number is never given twice.
static BEGUN: AtomicU64 = AtomicU64::new(0);

fn undos() -> MutexGuard<'static, BTreeMap<u64, Undo>> {
    UNDOS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that is undone where a signal ends the program, as long as this lives.
#[must_use]
pub struct Undoable(u64);

/// Begins something that a signal must not leave half done. `begin` returns what came of it and how to undo it; no
/// signal ends the program before it has returned.
///
/// # Errors
/// Those of `begin`.
pub fn undoable<T>(begin: impl FnOnce() -> Result<(T, Undo)>) -> Result<(T, Undoable)> {
    let mut undos = undos();
    let (made, undo) = begin()?;
    let number = BEGUN.fetch_add(1, Ordering::SeqCst);
    undos.insert(number, undo);
    Ok((made, Undoable(number)))
}

impl Undoable {
    /// Undoes it now; no signal ends the program before that is done.
    ///
    /// # Errors
    /// Those of the undoing.
    pub fn undo(self) -> io::Result<()> {
        let mut undos = undos();
        let undo = undos.remove(&self.0);
        let undone = undo.map_or(Ok(()), |undo| undo());
        drop(undos);
        // It has to live until here, or its end would wait for the lock that is held.
        drop(self);
        undone
    }
}

impl Drop for Undoable {
    fn drop(&mut self) {
        undos().remove(&self.0);
    }
}

/// For the handler of signals, right before it ends the program. Whoever then still wants to begin or to undo something
/// waits for that end.
pub fn undo_all() {
    let mut undos = undos();
    while let Some((_, undo)) = undos.pop_last() {
        // There is nobody left to tell.
        let _ = undo();
    }
    std::mem::forget(undos);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_heard_only_while_a_training_loop_runs() {
        static REQUEST: Request = Request::new();
        assert!(!REQUEST.heard(2), "before it");
        drop(REQUEST.heed());
        assert!(!REQUEST.heard(2), "after it");
        assert_eq!((REQUEST.stop.load(Ordering::SeqCst), REQUEST.signal()), (false, None));
        let heeding = REQUEST.heed();
        assert!(REQUEST.heard(15));
        assert!(REQUEST.stop.load(Ordering::SeqCst));
        assert!(!REQUEST.heard(2), "the second one ends the program");
        assert_eq!(REQUEST.signal(), Some(15), "the first one says why it ended");
        drop(heeding);
        assert!(!REQUEST.heard(2));
    }

    #[test]
    fn what_is_done_is_not_undone() {
        let undone = std::sync::Arc::new(AtomicUsize::new(0));
        let begin = || {
            let undone = undone.clone();
            let undo: Undo = Box::new(move || {
                undone.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
            undoable(|| Ok(((), undo))).unwrap().1
        };
        drop(begin());
        assert_eq!(undone.load(Ordering::SeqCst), 0);
        begin().undo().unwrap();
        assert_eq!(undone.load(Ordering::SeqCst), 1);
    }

    #[cfg(unix)]
    #[test]
    fn only_an_interrupt_counts_as_one() {
        use std::os::unix::process::ExitStatusExt;
        use std::process::ExitStatus;
        let exited = |code: i32| Ended::by(ExitStatus::from_raw(code << 8));
        assert_eq!([130, 143, 129].map(|code| exited(code).map(|ended| ended.signal)), [Some(2), Some(15), Some(1)]);
        assert_eq!([0, 1, 2, 101, 137].map(exited), [None; 5]);
        assert_eq!(Ended::by(ExitStatus::from_raw(2)), Some(Ended { signal: 2 }));
        assert_eq!(Ended::by(ExitStatus::from_raw(9)), None);
    }
}
