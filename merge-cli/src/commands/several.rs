//! What soup, slerp, ties and dare share: one way to name checkpoints, and to choose experts instead.

use std::path::{Path, PathBuf};

use anyhow::Result;
use merge_cli::methods::Method;
use merge_cli::{Emit, Recipe, Selection, Task};

use super::merge::{InputFile, Merging};
use super::{Context, usage};
use crate::Report;
use crate::cli::{EmitArgs, ExpertsChoice, JsonArg, LayoutArg, OutputArgs};

#[derive(Debug, clap::Args)]
pub struct SeveralArgs {
    /// Merge the experts inside one checkpoint: all, or those that a task's forward pass uses.
    #[arg(long, value_name = "WHICH", num_args = 0..=1, default_missing_value = "all", requires_if("used", "task"))]
    pub experts: Option<ExpertsChoice>,
    /// The task, for --experts used.
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
    #[command(flatten)]
    pub emit: EmitArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Where in the files the tensors are: once for all of them, or once for each in turn.
    #[arg(long, value_name = "KEY.KEY")]
    pub root: Vec<String>,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

impl SeveralArgs {
    fn selection(&self) -> Result<Option<Selection>> {
        match (self.experts, self.task) {
            (None, None) => Ok(None),
            (Some(ExpertsChoice::All), None) => Ok(Some(Selection::All)),
            (Some(ExpertsChoice::Used), Some(task)) => Ok(Some(Selection::Used(task))),
            // clap has asked for the task; the other way round is for us to say.
            _ => usage("--task says which experts are used: give --experts used with it"),
        }
    }
}

/// Merges `files` by `method`: with `--experts` the experts of the only one, else all of them, which `base` comes
/// before.
pub fn merge(
    method: &dyn Method,
    base: Option<&Path>,
    files: &[PathBuf],
    args: &SeveralArgs,
    context: &Context,
) -> Result<Report> {
    let selection = args.selection()?;
    let name = method.name();
    match (files.len(), selection, base) {
        (1, Some(_), _) => {}
        (n, Some(_), _) => usage(&format!("--experts merges the experts inside one checkpoint, and here are {n}"))?,
        (1, None, None) => {
            usage(&format!("{name} merges two checkpoints or more; --experts merges the experts inside one"))?
        }
        _ => {}
    }
    // As typed: the base first. The roots go with the files in this order.
    let role = if selection.is_some() { "checkpoint" } else { "model" };
    let paths = base.map(|base| ("base", base)).into_iter().chain(files.iter().map(|file| (role, file.as_path())));
    let paths: Vec<(&str, &Path)> = paths.collect();
    if args.root.len() > 1 && args.root.len() != paths.len() {
        usage(&format!("--root is given {} times for {} files", args.root.len(), paths.len()))?
    }
    let root = |number: usize| if args.root.len() > 1 { args.root.get(number) } else { args.root.first() };
    let inputs = paths.iter().enumerate().map(|(n, (role, path))| InputFile::new(role, path, &root(n).cloned()));
    let mut inputs: Vec<InputFile> = inputs.collect();
    let mut parameters = method.parameters();
    if let Some(selection) = selection {
        parameters.extend(selection.parameters());
        parameters.extend(args.emit.emit.parameters());
        // Where experts are merged, the checkpoint that has them comes first.
        inputs.sort_by_key(|input| input.role == "base");
    } else if args.emit.emit != Emit::Merged {
        usage("--emit is for --experts: whole checkpoints keep their names")?
    }
    let merging = Merging {
        recipe: Recipe::new(name, parameters),
        inputs,
        layout: &args.layout,
        output: &args.output,
        json: args.json.json,
    };
    merging.execute(context).map(|(report, _)| report)
}
