//! One module a command: arguments in, a call of the library, a report out.

pub mod bench;
pub mod data;
pub mod embed;
pub mod eval;
pub mod finetune;
pub mod grams;
pub mod info;
pub mod predict;
pub mod presets;
pub mod probe;
pub mod report;
pub mod search;
pub mod selftest;

use std::panic::{AssertUnwindSafe, UnwindSafe};
use std::sync::Mutex;

use anyhow::Result;
use engine::model::open::Opened;
use indicatif::{ProgressBar, ProgressStyle};

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

    /// A bar of `count` steps, drawn where someone watches.
    pub fn bar(&self, what: &'static str, count: usize) -> ProgressBar {
        // indicatif draws nothing by itself where stderr is no terminal.
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(count as u64) };
        match ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}") {
            Ok(style) => bar.with_style(style).with_message(what),
            Err(_) => bar,
        }
    }

    /// Says on which device a checkpoint runs and how it fits.
    pub fn opened(&self, opened: &Opened) {
        for line in opened.lines() {
            self.note(line);
        }
    }
}

/// As many threads as there are cores.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// An f32 as JSON shows it best: without the digits that it doesn't have.
pub fn rounded(value: f32) -> f64 {
    (f64::from(value) * 1e6).round() / 1e6
}

pub fn run(command: &Command, context: &Context) -> Result<Report> {
    match command {
        Command::Bench(command) => bench::run(command, context),
        Command::Embed(args) => embed::run(args, context),
        Command::Finetune(args) => finetune::run(args, context),
        Command::Eval(args) => eval::run(args, context),
        Command::Presets(args) => presets::run(args),
        Command::Grams(args) => grams::run(args, context),
        Command::Data(command) => data::run(command, &decodes, context.quiet).map(Report::done),
        Command::Report(args) => report::run(args),
        Command::Info(args) => info::run(args),
        Command::Predict(args) => predict::run(args, context),
        Command::Probe(args) => probe::run(args, context),
        Command::Search(args) => search::run(args, context),
        Command::Selftest(args) => selftest::run(args, context),
    }
}

/// Ends the program as clap does for wrong usage.
pub fn usage<T>(message: &str) -> Result<T> {
    use clap::CommandFactory;
    crate::cli::Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit()
}

/// What to do about it, for every command.
pub const OUT_OF_MEMORY: &str = "out of memory: lower --batch-size or --image-size, or use --precision bf16";

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
            anyhow::bail!("{OUT_OF_MEMORY} ({reason})");
        }
        anyhow::bail!("it stopped at something that isn't foreseen, please report it: {reason}")
    })
}

/// What is wrong with an encoded image, if it can't be decoded.
fn decodes(bytes: &[u8]) -> Result<(), String> {
    engine::image::decode(bytes).map(drop).map_err(|e| e.to_string())
}
