//! `vlmerge`: reads the command line, runs the command, prints its report.

mod cli;
mod commands;
mod progress;
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
    // A merge that is interrupted leaves no temporary file behind.
    let handler = ctrlc::set_handler(|| {
        formats::write::remove_unfinished();
        std::process::exit(130);
    });
    if let Err(e) = handler {
        eprintln!("vlmerge: Ctrl-C may leave a temporary file behind: {e}");
    }
    let context = commands::Context { quiet: args.quiet, threads: args.threads.map_or_else(all_cores, usize::from) };
    let report = match args.command {
        Command::Inspect(args) => commands::inspect::run(&args, &context),
        Command::Convert(args) => commands::convert::run(&args, &context),
        Command::Interpolate(args) => commands::interpolate::run(&args, &context),
        Command::Arithmetic(args) => commands::arithmetic::run(&args, &context),
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
                    eprintln!("vlmerge: cannot print: {e}");
                    ExitCode::FAILURE
                }
                _ if report.success => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            }
        }
        Err(e) => {
            eprintln!("vlmerge: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
