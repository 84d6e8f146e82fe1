//! What signals do: an interrupted command cleans up, and a file that grows too large is an error like others.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::say;

/// Whether a command handles interrupts itself, as training does.
static HANDLED: AtomicBool = AtomicBool::new(false);

/// To be called once, before any file is written.
pub fn prepare() {
    #[cfg(unix)]
    // SAFETY: SIG_IGN runs no code of ours. A write beyond `ulimit -f` shall fail, as on a full disk.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let handler = ctrlc::set_handler(|| {
        if HANDLED.load(Ordering::SeqCst) {
            return;
        }
        formats::write::remove_unfinished();
        std::process::exit(130);
    });
    if let Err(e) = handler {
        say(format_args!("Ctrl-C may leave a temporary file behind: {e}"));
    }
}
