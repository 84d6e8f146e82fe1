//! What signals do: an interrupted command cleans up, and a file that grows too large is an error like others.

use crate::say;

/// To be called once, before any file is written.
pub fn prepare() {
    #[cfg(unix)]
    // SAFETY: SIG_IGN runs no code of ours. A write beyond `ulimit -f` shall fail, as on a full disk.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let handler = ctrlc::set_handler(|| {
        if engine::train::interrupt::heard() {
            return;
        }
        formats::write::remove_unfinished();
        std::process::exit(130);
    });
    if let Err(e) = handler {
        say(format_args!("Ctrl-C may leave a temporary file behind: {e}"));
    }
}
