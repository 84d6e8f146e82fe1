//! A request to stop, from a signal's handler to the training loop.

use std::sync::atomic::{AtomicBool, Ordering};

/// Asked to stop.
static STOP: AtomicBool = AtomicBool::new(false);
/// Somebody looks at [`STOP`].
static HEEDED: AtomicBool = AtomicBool::new(false);

/// For the handler of SIGINT and SIGTERM: whether the signal was heard by a training run, which will save a checkpoint
/// and end. `false` where nobody listens, and from the second signal on: then the program should end at once.
pub fn heard() -> bool {
    HEEDED.load(Ordering::SeqCst) && !STOP.swap(true, Ordering::SeqCst)
}

/// The flag that the first signal sets from now on.
pub fn stop_flag() -> &'static AtomicBool {
    HEEDED.store(true, Ordering::SeqCst);
    &STOP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_is_heard_once_somebody_listens() {
        assert!(!heard());
        let stop = stop_flag();
        assert!(!stop.load(Ordering::SeqCst));
        assert!(heard());
        assert!(stop.load(Ordering::SeqCst));
        assert!(!heard(), "the second one ends the program");
    }
}
