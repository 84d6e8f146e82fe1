//! What signals do: an interrupted merge cleans up, and a file that grows too large is an error like others.

use crate::say;

/// To be called once, before any file is written.
pub fn prepare() {
    let ignored = Ignored::now();
    let handler = ctrlc::set_handler(|| {
        formats::write::remove_unfinished();
        std::process::exit(130);
    });
    if let Err(e) = handler {
        say(format_args!("Ctrl-C may leave a temporary file behind: {e}"));
    }
    ignored.restore();
}

/// Signals that we were started to ignore, as under `nohup`: the handler must not change that.
#[cfg(unix)]
struct Ignored(Vec<libc::c_int>);

#[cfg(unix)]
impl Ignored {
    fn now() -> Ignored {
        // A write beyond `ulimit -f` shall fail, as on a full disk, and not end the program.
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
