//! One module a command: arguments in, a call of the library, a report out.

pub mod eval;
pub mod finetune;
pub mod grams;
pub mod info;
pub mod presets;
pub mod probe;
pub mod selftest;

use std::panic::{AssertUnwindSafe, UnwindSafe};
use std::sync::Mutex;

use anyhow::Result;
use engine::model::open::Opened;

use crate::Report;
use crate::cli::Command;

/// What holds for every command.
pub struct Context {
    pub quiet: bool,
}

impl Context {
    /// A line on stderr that is no error.
    pub fn note(&self, message: impl std::fmt::Display) {
        if !self.quiet {
            crate::say(format_args!("{message}"));
        }
    }

    /// Says on which device a checkpoint runs and how it fits.
    pub fn opened(&self, opened: &Opened) {
        for line in opened.lines() {
            self.note(line);
        }
    }
}

pub fn run(command: &Command, context: &Context) -> Result<Report> {
    match command {
        Command::Finetune(args) => finetune::run(args, context),
        Command::Eval(args) => eval::run(args, context),
        Command::Presets(args) => presets::run(args),
        Command::Grams(args) => grams::run(args, context),
        Command::Info(args) => info::run(args),
        Command::Probe(args) => probe::run(args, context),
        Command::Selftest(args) => selftest::run(args, context),
    }
}

/// Ends the program as clap does for wrong usage.
pub fn usage<T>(message: &str) -> Result<T> {
    use clap::CommandFactory;
    crate::cli::Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit()
}

static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs a command; a panic in it, as burn's when a device is out of memory, becomes an error of one line.
pub fn quietly(run: AssertUnwindSafe<impl FnOnce() -> Result<Report>>) -> Result<Report>
where
    AssertUnwindSafe<()>: UnwindSafe,
{
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("unknown").lines().next().unwrap_or_default();
        let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        if let Ok(mut panic) = PANIC.lock() {
            // The first says why; those that follow are its consequences.
            panic.get_or_insert(format!("{text}{place}"));
        }
    }));
    std::panic::catch_unwind(run).unwrap_or_else(|_| {
        let reason = PANIC.lock().ok().and_then(|mut panic| panic.take()).unwrap_or_default();
        let memory = ["memory", "alloc", "OOM"].iter().any(|word| reason.contains(word));
        if memory {
            anyhow::bail!("out of memory: lower --batch-size or --image-size, or use --precision bf16 ({reason})");
        }
        anyhow::bail!("it stopped at something that isn't foreseen, please report it: {reason}")
    })
}
