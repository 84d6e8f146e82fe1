//! One module a command: arguments in, a call of the library, a report out.

pub mod arithmetic;
pub mod completions;
pub mod convert;
pub mod dare;
pub mod diff;
pub mod distance;
pub mod init;
pub mod inspect;
pub mod interpolate;
pub mod merge;
pub mod recipe;
pub mod regmean;
pub mod resize;
pub mod several;
pub mod slerp;
pub mod soup;
pub mod ties;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use formats::layout::Layout;
use formats::standard::{input_name, is_standard, output_name};
use formats::write::check_target;
use formats::{Checkpoint, config};
use merge_cli::{Recipe, Run, Selection, Summary};
use serde_json::json;

use crate::cli::{ExpertsArgs, ExpertsChoice, LayoutArg, OutputArgs};
use crate::{Report, progress, text};

/// What holds for every command.
pub struct Context {
    pub quiet: bool,
    pub threads: usize,
}

impl Context {
    /// One line on stderr that is no error.
    pub fn warn(&self, message: impl std::fmt::Display) {
        if !self.quiet {
            crate::say(format_args!("warning: {message}"));
        }
    }
}

/// The layout that was asked for, or the one the names show.
pub fn layout_for(args: &LayoutArg, checkpoint: &Checkpoint, context: &Context) -> Result<Layout> {
    if let Some(wish) = &args.layout {
        if let Some(layout) = Layout::by_name(wish) {
            return Ok(layout.clone());
        }
        if wish.contains('\n') {
            return Ok(Layout::from_toml(wish, "the recipe's layout")?);
        }
        if !Path::new(wish).is_file() && !wish.contains(['/', '.']) && wish != "-" {
            let known: Vec<&str> = Layout::builtin().iter().map(Layout::name).collect();
            anyhow::bail!("there is no layout '{wish}': give {} or a TOML file", known.join(", "));
        }
        let name = input_name(Path::new(wish));
        let layout = Layout::from_toml(&layout_text(wish)?, &name.to_string_lossy())?;
        warn_of_idle_rules(&layout, name, checkpoint, context);
        return Ok(layout);
    }
    match checkpoint.layout() {
        Some(layout) => Ok(layout.clone()),
        None => {
            let example = checkpoint.tensors().first().map(|info| formats::show_name(&info.name));
            let example = example.map(|name| format!(", such as '{name}',")).unwrap_or_default();
            anyhow::bail!(
                "{}: its names{example} are of no known layout; --layout FILE.toml describes another",
                formats::show_path(checkpoint.path())
            )
        }
    }
}

/// Warns of rules in a layout file that no tensor is named by, while others are: one of them may be misspelt.
fn warn_of_idle_rules(layout: &Layout, file: &Path, checkpoint: &Checkpoint, context: &Context) {
    let names = || checkpoint.tensors().iter().map(|info| info.name.as_str());
    if !names().any(|name| layout.parse_name(name).is_some() || layout.parse_slot(name).is_some()) {
        return;
    }
    for (part, template) in layout.idle_rules(names()) {
        context.warn(format!(
            "{}: the rule of {part} for '{}' matches no tensor of {}",
            formats::show_path(file),
            formats::show_name(&template),
            formats::show_path(checkpoint.path())
        ));
    }
}

/// As [`layout_for`], and notes in the recipe which layout was asked for, a file's in full.
pub fn recorded_layout(
    args: &LayoutArg,
    checkpoint: &Checkpoint,
    recipe: &mut Recipe,
    context: &Context,
) -> Result<Layout> {
    let layout = layout_for(args, checkpoint, context)?;
    recipe.layout = match &args.layout {
        Some(wish) if Layout::by_name(wish).is_none() && !wish.contains('\n') => {
            let mut text = layout_text(wish)?;
            if !text.contains('\n') {
                text.push('\n');
            }
            Some(text)
        }
        wish => wish.clone(),
    };
    Ok(layout)
}

fn layout_text(path: &str) -> formats::Result<String> {
    // Beyond what a layout may have, so that `from_toml` refuses it, and not all of a device.
    const MOST: u64 = 2 << 20;
    formats::standard::read_text(Path::new(path), MOST, "read the layout")
}

/// Refuses more than one `-` among the files that a command reads.
pub fn one_standard_input<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Result<()> {
    match paths.into_iter().filter(|path| is_standard(path)).count() {
        0 | 1 => Ok(()),
        _ => usage("only one of the files can be standard input ('-')"),
    }
}

pub fn selection(args: &ExpertsArgs) -> Result<Selection> {
    match (args.experts, args.task) {
        (ExpertsChoice::All, None) => Ok(Selection::All),
        (ExpertsChoice::Used, Some(task)) => Ok(Selection::Used(task)),
        // clap has asked for the task; the other way round is for us to say.
        _ => usage("--task says which experts are used: give --experts used with it"),
    }
}

/// Ends the program as clap does for wrong usage.
pub fn usage<T>(message: &str) -> Result<T> {
    use clap::CommandFactory;
    crate::Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message).exit()
}

/// A finding of a command that belongs in the report of what it wrote.
pub struct Note {
    /// Its key in JSON.
    pub key: &'static str,
    pub value: serde_json::Value,
    /// A line for people; empty for what only machines are told.
    pub text: String,
}

/// Runs jobs into the output and reports on them.
pub fn write(run: Run, output: &OutputArgs, json: bool, context: &Context) -> Result<Report> {
    let root = run.usual_root();
    write_noting(run, root, Vec::new, output, json, context).map(|(report, _)| report)
}

/// As [`write`], with findings in the report, and a PyTorch file's tensors under `root` or else `state_dict`. Also
/// returns the recipe as it stands in the file. The findings are asked for when the file is written.
pub fn write_noting(
    run: Run,
    root: Option<&str>,
    notes: impl FnOnce() -> Vec<Note>,
    output: &OutputArgs,
    json: bool,
    context: &Context,
) -> Result<(Report, Recipe)> {
    let inputs: Vec<&Checkpoint> = run.checkpoints.iter().map(|&(_, checkpoint)| checkpoint).collect();
    for input in &inputs {
        for (name, reason) in input.skipped() {
            context.warn(format!(
                "{}: '{}' is left out: {reason}",
                formats::show_path(input.path()),
                formats::show_name(name)
            ));
        }
    }
    check_target(&output.output, output.force, &inputs)?;
    if json && is_standard(&output.output) {
        usage("-o - writes the checkpoint to standard output, where --json would print too")?
    }
    let started = Instant::now();
    let method = run.recipe.method.clone();
    let bar = progress::bar(context, "writing", run.jobs.iter().map(|job| job.info.bytes() as u64).sum());
    let summary = merge_cli::run::run_under(root, run, &output.output, |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let summary = summary?;
    if summary.overflowed > 0 {
        let values = text::count(summary.overflowed, "value");
        context.warn(format!("{values} beyond the dtype's range became infinite"));
    }
    let mut said = report(&method, &summary, notes(), output, started, json)?;
    if is_standard(&output.output) {
        if !context.quiet {
            let _ = std::io::stderr().write_all(said.as_bytes());
        }
        said.clear();
    }
    if context.quiet && !json {
        said.clear();
    }
    Ok((Report { stdout: said, success: true }, summary.recipe))
}

fn report(
    method: &str,
    summary: &Summary,
    notes: Vec<Note>,
    output: &OutputArgs,
    started: Instant,
    json: bool,
) -> Result<String> {
    let seconds = started.elapsed().as_secs_f64();
    let size = std::fs::metadata(&output.output).map_or(summary.bytes, |found| found.len());
    if json {
        let mut report = json!({
            "output": output.output.to_string_lossy(),
            "bytes": size,
            "tensors": summary.tensors,
            "merged": summary.merged,
            "parameters": summary.elements,
            "overflowed": summary.overflowed,
            "seconds": seconds,
            "recipe": summary.recipe,
        });
        notes.into_iter().for_each(|note| report[note.key] = note.value);
        return Ok(serde_json::to_string_pretty(&report)? + "\n");
    }
    let merged = match summary.merged {
        0 => String::new(),
        n => format!(", {} of them merged by {method}", text::thousands(n as u64)),
    };
    let notes = notes.iter().filter(|note| !note.text.is_empty()).map(|note| format!("  {}\n", note.text.trim_end()));
    Ok(format!(
        "{}: {}{merged}, {} in {seconds:.2} s\n{}",
        formats::show_path(output_name(&output.output)),
        text::count(summary.tensors as u64, "tensor"),
        text::bytes(size),
        notes.collect::<String>()
    ))
}

/// The configuration of a result, as JSON for its metadata: the input's own, with what merging changes.
///
/// - unusual: reasons why other models that go in aren't usual ones
///
/// # Errors
/// The input's record of its model contradicts what else it shows.
pub fn config_json(checkpoint: &Checkpoint, layout: &Layout, merged: bool, unusual: Vec<String>) -> Result<String> {
    let mut config = checkpoint.settled_config(layout)?.config;
    if merged {
        config.variant = Some(config::Variant::Ufo);
    }
    for reason in unusual {
        if !config.unusual.contains(&reason) {
            config.unusual.push(reason);
        }
    }
    Ok(serde_json::to_string(&config)?)
}

/// Metadata that goes with the tensors into a new file, without what the new file says itself: its configuration, and
/// in its recipe how the checkpoint was made and trained.
pub fn kept_metadata(checkpoint: &Checkpoint) -> formats::write::Metadata {
    let own = [merge_cli::recipe::RECIPE_KEY, formats::CONFIG_KEY];
    checkpoint
        .metadata()
        .iter()
        .filter(|(key, _)| !own.contains(&key.as_str()) && !formats::history::is_training(key))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// A recipe of the running version for what isn't merging: it keeps the recipe that made its input.
pub fn derived_recipe(method: &str, parameters: serde_json::Value, input: &Checkpoint) -> Result<Recipe> {
    let mut recipe = recipe(method, parameters);
    if let Some(made_by) = Recipe::history(input.metadata()) {
        recipe.parameters.insert("of".into(), serde_json::to_value(made_by)?);
    }
    Ok(recipe)
}

/// A recipe of the running version.
pub fn recipe(method: &str, parameters: serde_json::Value) -> Recipe {
    Recipe::new(method, parameters.as_object().cloned().unwrap_or_default())
}
