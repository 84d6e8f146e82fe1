//! A program that waits in the middle of its work, so that a test can do something there, whatever is faster.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};

use crate::Ran;

/// A running program that has reached a point and waits there.
pub struct Paused {
    line: String,
    running: Child,
    stderr: BufReader<ChildStderr>,
    /// What it has said so far.
    said: String,
}

impl Paused {
    /// Starts a program and waits until it has reached a point of its work (`formats::signals::pause_at`).
    /// It starts with the usual handling of signals, but for those that are to be `ignored`, whatever this
    /// test was started with: a shell has its background jobs ignore SIGINT.
    #[track_caller]
    pub fn at(point: &str, mut command: Command, ignored: &[Signal]) -> Paused {
        let line = format!("{command:?}");
        command.env("VLMERGE_PAUSE_AT", point);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ignored = ignored.to_vec();
        // SAFETY: `signal` is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for signal in [Signal::Int, Signal::Term, Signal::Hup] {
                    let handling = if ignored.contains(&signal) { libc::SIG_IGN } else { libc::SIG_DFL };
                    libc::signal(signal.number(), handling);
                }
                Ok(())
            });
        }
        let mut running = command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
        let stderr = BufReader::new(running.stderr.take().expect("a pipe"));
        let mut paused = Paused { line, running, stderr, said: String::new() };
        paused.wait_for(&format!("paused at {point}\n"));
        paused
    }

    /// Waits until it says this on stderr.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str) {
        loop {
            let mut line = String::new();
            let read = self.stderr.read_line(&mut line).expect("text");
            self.said += &line;
            if line.ends_with(words) {
                return;
            }
            assert!(read > 0, "{}: it ended before it said '{words}': {}", self.line, self.said);
        }
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let id = libc::pid_t::try_from(self.running.id()).expect("a process id");
        // SAFETY: the process is our child and hasn't been waited for, so that the id is its own.
        assert_eq!(unsafe { libc::kill(id, signal.number()) }, 0, "{}", self.line);
    }

    /// Lets it go on.
    pub fn go_on(&mut self) {
        self.running.stdin = None;
    }

    /// Waits for its end, without letting it go on.
    #[track_caller]
    pub fn end(mut self) -> Ran {
        let (mut stdout, mut stderr) = (String::new(), std::mem::take(&mut self.said));
        // Kept open, or what is paused would go on.
        let stdin = self.running.stdin.take();
        self.running.stdout.take().expect("a pipe").read_to_string(&mut stdout).expect("text");
        self.stderr.read_to_string(&mut stderr).expect("text");
        let code = self.running.wait().expect("an end").code();
        drop(stdin);
        Ran { line: self.line, code, stdout, stderr }
    }
}

/// A signal that ends a program unless it does something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Int,
    Term,
    Hup,
    /// Nothing can be done about this one.
    Kill,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Signal::Int => libc::SIGINT,
            Signal::Term => libc::SIGTERM,
            Signal::Hup => libc::SIGHUP,
            Signal::Kill => libc::SIGKILL,
        }
    }
}
