//! `vlmerge`: reads the command line, runs the command, prints its report.

mod cli;
mod commands;
mod progress;
mod signals;
mod text;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

/// What a command has to say: the text for stdout, and whether it found what it looked for.
pub struct Report {
    pub stdout: String,
    pub success: bool,
}

fn main() -> ExitCode {
    let args = Cli::parse();
    signals::prepare();
    let context = commands::Context { quiet: args.quiet, threads: args.threads.map_or_else(all_cores, usize::from) };
    let report = match args.command {
        Command::Inspect(args) => commands::inspect::run(&args, &context),
        Command::Convert(args) => commands::convert::run(&args, &context),
        Command::Interpolate(args) => commands::interpolate::run(&args, &context),
        Command::Arithmetic(args) => commands::arithmetic::run(&args, &context),
        Command::Soup(args) => commands::soup::run(&args, &context),
        Command::Slerp(args) => commands::slerp::run(&args, &context),
        Command::Ties(args) => commands::ties::run(&args, &context),
        Command::Dare(args) => commands::dare::run(&args, &context),
        Command::Merge(args) => commands::merge::run(&args, &context),
        Command::Recipe(args) => commands::recipe::run(&args),
        Command::Init(args) => commands::init::run(&args, &context),
        Command::Resize(args) => commands::resize::run(&args, &context),
        Command::Regmean(args) => commands::regmean::run(&args, &context),
        Command::Diff(args) => commands::diff::run(&args, &context),
        Command::Distance(args) => commands::distance::run(&args, &context),
        Command::Completions { shell } => commands::completions::run(shell),
    };
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
                _ => ExitCode::FAILURE,
            }
        }
        Err(e) => {
            say(format_args!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}

/// One line on stderr. If nobody is left to read it, it is lost: `eprintln!` would panic.
fn say(message: std::fmt::Arguments) {
    let _ = writeln!(std::io::stderr(), "vlmerge: {message}");
}

fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
