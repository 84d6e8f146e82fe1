//! One module a command: arguments in, a call of the library, a report out.

pub mod bench;
pub mod completions;
pub mod data;
pub mod embed;
pub mod eval;
pub mod finetune;
pub mod grams;
pub mod info;
pub mod output;
pub mod predict;
pub mod presets;
pub mod probe;
pub mod report;
pub mod search;
pub mod selftest;

use std::panic::{AssertUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Result, bail};
use engine::data::Dataset;
use engine::model::open::Opened;
use engine::report::terminal::bar_style;
use engine::tasks::Task;
use formats::show_path;
use indicatif::ProgressBar;

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

    /// The checkpoint file that an argument names. Where that is a run's folder, says which file of it is taken.
    pub fn checkpoint(&self, path: &Path) -> Result<PathBuf> {
        let (file, note) = engine::train::run_dir::checkpoint_at(path)?;
        if let Some(note) = note {
            self.note(note);
        }
        Ok(file)
    }

    /// Names rows of a data set that can't be used, each as soon as it is found.
    pub fn tell_broken_rows(&self, set: &dyn Dataset) {
        if !self.quiet {
            let name = set.name().to_owned();
            set.broken().tell(move |row| crate::say(format_args!("skipped a broken row of {name}: {row}")));
        }
    }

    /// Says how many rows of a data set could not be used, where there are any.
    pub fn skipped(&self, set: &dyn Dataset) {
        let (broken, rows) = (set.broken().count(), set.broken().rows());
        if broken > 0 {
            self.note(format_args!("{}: {broken} of {rows} rows were broken and skipped", set.name()));
        }
    }

    /// A bar over `count` things called `what`, drawn where someone watches.
    pub fn bar(&self, what: &'static str, count: usize) -> ProgressBar {
        // indicatif draws nothing by itself where stderr is no terminal.
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(count as u64) };
        bar.with_style(bar_style(what)).with_message(what)
    }

    /// The report of a command whose result is a file, or another command's next step: what it says, unless --quiet.
    pub fn summary(&self, text: impl Into<String>) -> Report {
        Report::done(if self.quiet { String::new() } else { text.into() })
    }

    /// Says on which device a checkpoint runs and how it fits.
    pub fn opened(&self, opened: &Opened) {
        for line in opened.lines() {
            self.note(line);
        }
    }
}

/// A share of something, as clap parses it.
pub fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "it must be from 0 to 1".into())
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
        Command::Report(args) => report::run(args, context),
        Command::Info(args) => info::run(args),
        Command::Predict(args) => predict::run(args, context),
        Command::Probe(args) => probe::run(args, context),
        Command::Search(args) => search::run(args, context),
        Command::Selftest(args) => selftest::run(args, context),
        Command::Completions { shell } => completions::run(*shell),
    }
}

/// The task that the data at `path` are for, where `--task` isn't given.
pub fn task_of_data(path: &Path, among: &[Task]) -> Result<Task> {
    match engine::data::only_task(path, None, among) {
        Err(e @ engine::data::Error::SeveralTasks { .. }) => usage(&e.to_string()),
        found => Ok(found?),
    }
}

/// Ends the program as clap does for wrong usage.
pub fn usage<T>(message: &str) -> Result<T> {
    use clap::CommandFactory;
    let mut command = crate::cli::Cli::command();
    command.build();
    // The usage to show is that of what was called.
    let mut called = &command;
    for argument in std::env::args_os().skip(1) {
        if argument.to_str().is_some_and(|argument| argument.starts_with('-')) {
            continue;
        }
        let Some(inner) = called.find_subcommand(&argument) else { break };
        called = inner;
    }
    // The program ends without dropping what has made them.
    formats::write::remove_unfinished();
    called.clone().error(clap::error::ErrorKind::ValueValidation, message).exit()
}

/// Refuses an output before any work is done: one that exists without `force`, that can't be written, or that is, or is
/// a part of, what the command reads.
///
/// - reads: files, or folders whose data and images are read
pub fn check_output(output: &Path, force: bool, reads: &[&Path]) -> Result<()> {
    formats::write::check_file_target(output, force, &[])?;
    let Ok(there) = output.canonicalize() else { return Ok(()) };
    let shown = show_path(output);
    for input in reads {
        let Ok(input_there) = input.canonicalize() else { continue };
        if there == input_there || formats::open(input).is_ok_and(|checkpoint| checkpoint.reads_from(output)) {
            bail!("{shown}: this output is also an input: choose another name");
        }
        let ending = there.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        if input_there.is_dir() && there.starts_with(&input_there) && READ_IN_FOLDERS.contains(&&*ending) {
            bail!("{shown}: this file may be one that is read from {}: choose another place", show_path(input));
        }
    }
    Ok(())
}

/// Endings of files that are read where a folder is given.
const READ_IN_FOLDERS: [&str; 11] =
    ["arrow", "feather", "jsonl", "json", "jpg", "jpeg", "png", "webp", "gif", "bmp", "txt"];

/// What to do about it, for every command.
pub const OUT_OF_MEMORY: &str = "out of memory: lower --batch-size or --image-size (on a GPU --precision bf16 \
                                 helps too, in finetune --set activation_checkpointing=true)";

static PANIC: Mutex<Option<Panic>> = Mutex::new(None);

/// What is known of a panic.
#[derive(Debug)]
struct Panic {
    /// The first line of its message.
    message: String,
    /// File and line of the source.
    place: Option<String>,
}

impl Panic {
    /// An error of one line. Only the message tells what happened: a path may have any word in it.
    fn into_error(self) -> anyhow::Error {
        let Panic { message, place } = self;
        let lower = message.to_lowercase();
        let of_memory = ["out of memory", "out_of_memory", "outofmemory", "allocat"];
        let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
        if of_memory.iter().any(|word| lower.contains(word)) {
            return anyhow::anyhow!("{OUT_OF_MEMORY}: {message}{place}");
        }
        anyhow::anyhow!("an internal error stopped the command; please report it: {message}{place}")
    }
}

/// Runs a command; a panic in it, as burn's when a device is out of memory, becomes an error of one line.
pub fn quietly(run: AssertUnwindSafe<impl FnOnce() -> Result<Report>>) -> Result<Report>
where
    AssertUnwindSafe<()>: UnwindSafe,
{
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let message = text.and_then(|text| text.lines().next()).unwrap_or("it left no message").to_owned();
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
        if let Ok(mut panic) = PANIC.lock() {
            // The first says why; those that follow are its consequences.
            panic.get_or_insert(Panic { message, place });
        }
    }));
    std::panic::catch_unwind(run).unwrap_or_else(|_| {
        let panic = PANIC.lock().ok().and_then(|mut panic| panic.take());
        let unknown = || Panic { message: "it left no message".into(), place: None };
        Err(panic.unwrap_or_else(unknown).into_error())
    })
}

/// What is wrong with an encoded image, if it can't be decoded.
fn decodes(bytes: &[u8]) -> Result<(), String> {
    engine::image::decode(bytes).map(drop).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(message: &str, place: &str) -> String {
        Panic { message: message.into(), place: Some(place.into()) }.into_error().to_string()
    }

    #[test]
    fn a_panic_is_told_by_its_message_and_not_by_the_path_of_its_source() {
        let place = "cubecl-runtime/src/memory_management/memory_pool/allocator.rs:12";
        assert_eq!(
            said("index out of bounds", place),
            format!("an internal error stopped the command; please report it: index out of bounds ({place})")
        );
        for message in [
            "can't allocate buffer of size: 123",
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "memory allocation of 5 bytes failed",
        ] {
            assert!(said(message, "src/ops.rs:1").starts_with("out of memory: lower --batch-size"), "{message}");
        }
        // No allocation has failed here.
        assert!(said("index 5 of the memory map is missing", "src/ops.rs:1").starts_with("an internal error"));
    }
}
