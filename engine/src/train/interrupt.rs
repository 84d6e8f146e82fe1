//! A request to stop, from a signal's handler to the training loop.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Asked to stop.
static STOP: AtomicBool = AtomicBool::new(false);
/// By which signal; 0 for none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Somebody looks at [`STOP`].
static HEEDED: AtomicBool = AtomicBool::new(false);

/// For the handler of signals: whether this one was heard by a training run, which will save a checkpoint
/// and end. `false` where nobody listens, and from the second signal on: then the program should end at once.
///
/// - signal: its number, as 2 for SIGINT
pub fn heard(signal: i32) -> bool {
    if !HEEDED.load(Ordering::SeqCst) {
        return false;
    }
    let first = SIGNAL.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    STOP.store(true, Ordering::SeqCst);
    first
}

/// The flag that the first signal sets from now on.
pub fn stop_flag() -> &'static AtomicBool {
    HEEDED.store(true, Ordering::SeqCst);
    &STOP
}

/// The signal that a training run was stopped by.
pub fn signal() -> Option<i32> {
    Some(SIGNAL.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_is_heard_once_somebody_listens() {
        assert!(!heard(2));
        let stop = stop_flag();
        assert!(!stop.load(Ordering::SeqCst));
        assert_eq!(signal(), None);
        assert!(heard(15));
        assert!(stop.load(Ordering::SeqCst));
        assert!(!heard(2), "the second one ends the program");
        assert_eq!(signal(), Some(15), "the first one says why it ended");
    }
}
