//! What signals do to a program that writes files.
//!
//! Ctrl-C, SIGTERM and a closed terminal end it with 128 + the signal's number, as shells expect it of a
//! program that a signal ended, and no temporary file stays behind. A signal that the program was started
//! to ignore stays ignored: SIGHUP under `nohup`, SIGINT for a job that a script runs in the background.

use std::io;

/// The exit status of a program that a signal ended.
///
/// - signal: its number, as 2 for SIGINT
pub fn exit_status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Sets up what signals do, before the first file is written.
///
/// `heeded` is told of each SIGINT, SIGTERM and SIGHUP, on a thread of its own, and returns whether the program
/// will end by itself soon; otherwise it ends here and now. A write beyond the size that `ulimit -f` allows
/// becomes an error like a full disk's.
///
/// # Errors
/// The system refuses to deliver signals; then they end the program as if nothing had been set up.
pub fn prepare(heeded: impl Fn(i32) -> bool + Send + 'static) -> io::Result<()> {
    let end = move |signal| {
        if !heeded(signal) {
            crate::write::remove_unfinished();
            std::process::exit(exit_status(signal).into());
        }
    };
    listen(end)
}

#[cfg(unix)]
fn listen(told: impl Fn(i32) + Send + 'static) -> io::Result<()> {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    use signal_hook::iterator::Signals;

    // With any handler the write fails; without one the signal would end the program.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    let ignored = ignored();
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| ignored >> (signal - 1) & 1 == 0))?;
    std::thread::Builder::new().name("signals".into()).spawn(move || signals.forever().for_each(told))?;
    Ok(())
}

/// The signals that are ignored now, the lowest bit for signal 1.
#[cfg(unix)]
fn ignored() -> u64 {
    // Linux only. Elsewhere nothing says it without unsafe code, and no signal counts as ignored.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(not(unix))]
fn listen(told: impl Fn(i32) + Send + 'static) -> io::Result<()> {
    const SIGINT: i32 = 2;
    ctrlc::set_handler(move || told(SIGINT)).map_err(io::Error::other)
}

/// The environment variable that names a point for [`pause_at`].
pub const PAUSE_VARIABLE: &str = "VLMERGE_PAUSE_AT";

/// Waits here if the environment's [`PAUSE_VARIABLE`] names this point: says so on stderr, and goes on when its
/// standard input ends.
///
/// This is how tests do something in the middle of a program's work, such as sending it a signal, however fast or
/// slow the machine is.
pub fn pause_at(point: &str) {
    if std::env::var_os(PAUSE_VARIABLE).is_some_and(|wanted| wanted == point) {
        // Where nobody reads or writes any more, there is nothing to wait for.
        let _ = io::Write::write_all(&mut io::stderr(), format!("paused at {point}\n").as_bytes());
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_the_one_that_shells_give() {
        assert_eq!([1, 2, 15].map(exit_status), [129, 130, 143]);
    }
}
