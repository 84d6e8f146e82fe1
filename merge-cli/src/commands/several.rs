//! What soup, slerp, ties and dare share: one way to name checkpoints, and to choose experts instead.

use std::path::{Path, PathBuf};

use anyhow::Result;
use formats::Checkpoint;
use formats::layout::Layout;
use merge_cli::methods::Method;
use merge_cli::{Recipe, Role, Run, Selection, Task, jobs, several};

use super::{Context, config_json, kept_metadata, layout_for, usage};
use crate::Report;
use crate::cli::{ExpertsChoice, JsonArg, LayoutArg, OutputArgs};

#[derive(Debug, clap::Args)]
pub struct SeveralArgs {
    /// Merge the experts inside one checkpoint: all, or those that a task's forward pass uses.
    #[arg(long, value_name = "WHICH", num_args = 0..=1, default_missing_value = "all", requires_if("used", "task"))]
    pub experts: Option<ExpertsChoice>,
    /// The task, for --experts used.
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
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

/// Merges `files` by `method`: with `--experts` the experts of the only one, else all of them. With `base`, this comes
/// before them.
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
    let paths: Vec<&Path> = base.into_iter().chain(files.iter().map(PathBuf::as_path)).collect();
    let checkpoints = open(&paths, &args.root)?;
    let run = match selection {
        Some(selection) => merge_experts(method, &checkpoints, selection, base.is_some(), args)?,
        None => merge_checkpoints(method, &checkpoints, base.is_some(), args, context)?,
    };
    super::write(Run { threads: context.threads, ..run }, &args.output, args.json.json, context)
}

pub fn warn_of_lambda(lambda: f64, context: &Context) {
    if !(0.0..=2.0).contains(&lambda) {
        context.warn(format!("λ {lambda} is far from the usual 0 to 1"));
    }
}

fn open(paths: &[&Path], roots: &[String]) -> Result<Vec<Checkpoint>> {
    if roots.len() > 1 && roots.len() != paths.len() {
        usage(&format!("--root is given {} times for {} files", roots.len(), paths.len()))?
    }
    let open = |(number, path): (usize, &&Path)| {
        let root = if roots.len() > 1 { roots.get(number) } else { roots.first() };
        Ok(formats::open_root(path, root.map(String::as_str))?)
    };
    paths.iter().enumerate().map(open).collect()
}

fn merge_experts<'a>(
    method: &'a dyn Method,
    checkpoints: &'a [Checkpoint],
    selection: Selection,
    has_base: bool,
    args: &SeveralArgs,
) -> Result<Run<'a>> {
    let (base, checkpoint) = match (checkpoints, has_base) {
        ([base, checkpoint], true) => (Some(base), checkpoint),
        _ => (None, &checkpoints[0]),
    };
    let layout = layout_for(&args.layout, checkpoint)?;
    let mut jobs = jobs::merge_experts(checkpoint, &layout, selection)?;
    let mut inputs = vec![("checkpoint", checkpoint)];
    if let Some(base) = base {
        jobs::add_base(&mut jobs, &layout, base, 1)?;
        inputs.push(("base", base));
    }
    let mut parameters = method.parameters();
    parameters.extend(selection.parameters());
    Ok(Run {
        jobs,
        method: Some(method),
        recipe: Recipe::new(method.name(), parameters),
        config: config_json(checkpoint, &layout, true),
        metadata: kept_metadata(checkpoint),
        threads: 1,
        checkpoints: inputs,
    })
}

fn merge_checkpoints<'a>(
    method: &'a dyn Method,
    checkpoints: &'a [Checkpoint],
    has_base: bool,
    args: &SeveralArgs,
    context: &Context,
) -> Result<Run<'a>> {
    let first = &checkpoints[0];
    // Names that mean nothing to us match as well as others.
    let names = || first.tensors().iter().map(|info| info.name.as_str());
    let layout = match args.layout.layout.is_some() || Layout::detect(names()).is_some() {
        true => Some(layout_for(&args.layout, first)?),
        false => None,
    };
    let bases = usize::from(has_base);
    let roles: Vec<Role> =
        (0..checkpoints.len()).map(|n| if n < bases { Role::Base } else { Role::Model(n - bases) }).collect();
    let inputs: Vec<&Checkpoint> = checkpoints.iter().collect();
    let matched = several::merge_checkpoints(&inputs, &roles, layout.as_ref())?;
    matched.notes.iter().for_each(|note| context.warn(note));
    let in_recipe = |role: &Role| if *role == Role::Base { "base" } else { "model" };
    Ok(Run {
        jobs: matched.jobs,
        method: Some(method),
        recipe: Recipe::new(method.name(), method.parameters()),
        config: layout.as_ref().and_then(|layout| config_json(first, layout, false)),
        metadata: kept_metadata(first),
        threads: 1,
        checkpoints: roles.iter().map(in_recipe).zip(checkpoints).collect(),
    })
}
