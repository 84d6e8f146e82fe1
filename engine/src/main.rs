//! `engine`: reads the command line, runs the command, prints its report.

mod cli;
mod commands;
mod memory;
mod signals;

use std::io::Write;
use std::process::ExitCode;

use engine::report::terminal::{stderr_width, wrapped};

#[global_allocator]
static ALLOCATOR: memory::OrExit = memory::OrExit;

/// What a command has to say: the text for stdout, and whether it did what it was asked to: a training run that a
/// signal stopped did not.
pub struct Report {
    pub stdout: String,
    pub success: bool,
}

impl Report {
    pub fn done(stdout: impl Into<String>) -> Report {
        Report { stdout: stdout.into(), success: true }
    }
}

fn main() -> ExitCode {
    let args = cli::parse();
    signals::prepare(args.quiet);
    let context = commands::Context { quiet: args.quiet };
    let run = std::panic::AssertUnwindSafe(|| commands::run(&args.command, &context));
    let report = commands::quietly(run);
    match report {
        Ok(report) => {
            // A reader that has seen enough (`| head`) is no failure.
            let mut stdout = std::io::stdout().lock();
            match stdout.write_all(report.stdout.as_bytes()).and_then(|()| stdout.flush()) {
                Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                    say(format_args!("cannot print: {e}"));
                    ExitCode::FAILURE
                }
                _ if report.success => ExitCode::SUCCESS,
                _ => engine::train::interrupt::signal()
                    .map_or(ExitCode::FAILURE, |signal| ExitCode::from(formats::signals::exit_status(signal))),
            }
        }
        Err(e) => {
            say(format_args!("{e:#}"));
            let ended = e.downcast_ref::<engine::train::interrupt::Ended>();
            ended.map_or(ExitCode::FAILURE, |ended| ExitCode::from(formats::signals::exit_status(ended.signal)))
        }
    }
}

/// One line on stderr, broken between words where that is a terminal. If nobody is left to read it, it is lost:
/// `eprintln!` would panic.
fn say(message: std::fmt::Arguments) {
    let line = format!("engine: {message}");
    let line = stderr_width().map_or_else(|| line.clone(), |width| wrapped(&line, 2, width));
    let _ = writeln!(std::io::stderr(), "{line}");
}
