//! What signals do: the first Ctrl-C asks a training run for a checkpoint, everything else ends the program at once.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asked to stop.
static STOP: AtomicBool = AtomicBool::new(false);
/// Somebody looks at [`STOP`].
static HEEDED: AtomicBool = AtomicBool::new(false);

/// To be called once at the start of the program, before any file is written; later calls do nothing.
///
/// SIGINT, SIGTERM and SIGHUP set the flag of [`stop_flag`] where that has been asked for, and a second one ends the
/// program; so does the first where it hasn't. Temporary files are removed in any case. A write beyond `ulimit -f`
/// becomes an error like a full disk's.
pub fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        let ignored = Ignored::now();
        // Without a handler Ctrl-C ends the program as it always does, and the last checkpoint is there.
        let _ = ctrlc::set_handler(|| {
            if HEEDED.load(Ordering::SeqCst) && !STOP.swap(true, Ordering::SeqCst) {
                return;
            }
            formats::write::remove_unfinished();
            std::process::exit(130);
        });
        ignored.restore();
    });
}

/// The flag that the first signal sets from now on.
pub fn stop_flag() -> &'static AtomicBool {
    prepare();
    HEEDED.store(true, Ordering::SeqCst);
    &STOP
}

/// Signals that we were started to ignore, as under `nohup`: the handler must not change that.
#[cfg(unix)]
struct Ignored(Vec<libc::c_int>);

#[cfg(unix)]
impl Ignored {
    fn now() -> Ignored {
        ignore(libc::SIGXFSZ);
        let mut signals = vec![libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
        signals.retain(|&signal| is_ignored(signal));
        Ignored(signals)
    }

    fn restore(self) {
        self.0.into_iter().for_each(ignore);
    }
}

#[cfg(unix)]
fn ignore(signal: libc::c_int) {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: zeroes are a valid `sigaction`; the call only reads the disposition into it.
    unsafe {
        let mut found: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut found) == 0 && found.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
struct Ignored;

#[cfg(not(unix))]
impl Ignored {
    fn now() -> Ignored {
        Ignored
    }

    fn restore(self) {}
}
