//! `vlmerge merge`, and what every merging command comes down to: a recipe, carried out.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use formats::layout::Layout;
use formats::standard::{input_name, is_standard, read_text};
use formats::{Checkpoint, show_path};
use merge_cli::ruled::Ruled;
use merge_cli::{Emit, Job, Method, Recipe, Role, Run, Selection, jobs, recipe_file, several};

use super::{Context, config_json, kept_metadata, one_standard_input, recorded_layout};
use crate::Report;
use crate::cli::{JsonArg, LayoutArg, OutputArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge merge --recipe mine.toml
  vlmerge merge --recipe mine.toml -o merged.safetensors --force
  vlmerge recipe merged.safetensors > again.toml
  vlmerge merge --recipe again.toml -o again.safetensors

A recipe:
  method = \"interpolate\"
  output = \"merged.safetensors\"
  # As --layout, if the names are of no known one; or the rules themselves.
  layout = \"own.toml\"

  [[input]]
  role = \"checkpoint\"
  # Beside the recipe, unless it is an absolute path.
  file = \"ms.ckpt\"

  [parameters]
  ratio = 0.5

  # Other parameters for some tensors; of two rules that match, the later wins.
  # A rule, layer or part that matches nothing is an error.
  [[rule]]
  layers = \"6-11\"    # 6, 6-11, 6-, or a list: 0, 3, 8-
  parts = [\"mlp\"]    # attention, mlp, norm1, norm2, other
  names = \"fc1\"      # a regular expression on the merged tensor's name
  ratio = 0.3")]
pub struct Args {
    /// The recipe, a TOML file.
    #[arg(long, value_name = "FILE.toml")]
    pub recipe: PathBuf,
    /// Where to write [default: the recipe's output].
    #[arg(long, short, value_name = "OUT")]
    pub output: Option<PathBuf>,
    /// Replace the output if it exists.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    // One byte more than a recipe may have, so that a longer one is refused.
    let text = read_text(&args.recipe, recipe_file::MAX_BYTES as u64 + 1, "read")?;
    let shown = input_name(&args.recipe);
    let file = recipe_file::read(&text, shown)?;
    let folder = args.recipe.parent().unwrap_or(Path::new(""));
    let output = match (&args.output, &file.output) {
        (Some(output), _) => output.clone(),
        (None, Some(output)) => beside(folder, output),
        (None, None) => bail!("{}: it names no output: give one with -o OUT", show_path(shown)),
    };
    let inputs = file.recipe.inputs.iter().map(|input| InputFile {
        role: input.role.clone(),
        path: beside(folder, &input.name),
        // What was found by itself once is found again; only a root that was chosen must be said.
        root: Some(input.root.clone()).filter(|root| !["", ".", "top level"].contains(&root.as_str())),
    });
    let wanted = file.recipe.inputs.clone();
    // A file beside the recipe, unless it is rules or a name.
    let found = |layout: String| match layout.contains('\n') || Layout::by_name(&layout).is_some() {
        true => layout,
        false => beside(folder, &layout).to_string_lossy().into_owned(),
    };
    let layout = LayoutArg { layout: args.layout.layout.clone().or(file.recipe.layout.clone().map(found)) };
    one_standard_input(
        [args.recipe.as_path()].into_iter().chain(file.recipe.inputs.iter().map(|i| Path::new(&i.name))),
    )?;
    let task = Merging {
        recipe: file.recipe.clone(),
        inputs: inputs.collect(),
        layout: &layout,
        output: &OutputArgs { output, force: args.force },
        json: args.json.json,
    };
    let (report, made) = task.execute(context).with_context(|| show_path(shown))?;
    for (wanted, found) in wanted.iter().zip(&made.inputs) {
        if !wanted.content_digest.is_empty() && wanted.content_digest != found.content_digest {
            context.warn(format!(
                "{} holds other tensors than when the recipe was made",
                formats::show_name(&wanted.name)
            ));
        }
    }
    Ok(report)
}

/// A file that a recipe names: in the recipe's folder, or standard input or output.
fn beside(folder: &Path, name: &str) -> PathBuf {
    if is_standard(Path::new(name)) { name.into() } else { folder.join(name) }
}

/// A file that goes into a merge.
pub struct InputFile {
    pub role: String,
    pub path: PathBuf,
    pub root: Option<String>,
}

impl InputFile {
    pub fn new(role: &str, path: &Path, root: &Option<String>) -> InputFile {
        InputFile { role: role.into(), path: path.into(), root: root.clone() }
    }
}

/// A merge to be carried out.
pub struct Merging<'a> {
    /// Method, parameters and rules; the inputs are filled in.
    pub recipe: Recipe,
    /// In the order the method wants: the checkpoint with the experts, then its base; or the base, then the models.
    pub inputs: Vec<InputFile>,
    pub layout: &'a LayoutArg,
    pub output: &'a OutputArgs,
    pub json: bool,
}

impl Merging<'_> {
    /// Every file that is read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.inputs.iter().map(|input| input.path.as_path()).chain(self.layout.path())
    }

    /// Carries the merge out; also returns the recipe as it stands in the result.
    pub fn execute(self, context: &Context) -> Result<(Report, Recipe)> {
        if self.recipe.method == "regmean" {
            return super::regmean::execute(self, false, context);
        }
        let selection = selection(&self.recipe)?;
        let given: Vec<&str> = self.inputs.iter().map(|input| input.role.as_str()).collect();
        check_roles(&self.recipe.method, selection.is_some(), &given)?;
        one_standard_input(self.files())?;
        let mut recipe = self.recipe.clone();
        let open = |input: &InputFile| formats::open_root(&input.path, input.root.as_deref());
        let checkpoints = self.inputs.iter().map(open).collect::<Result<Vec<Checkpoint>, _>>()?;
        let first = checkpoints.first().context("there is no input")?;
        let emit = Emit::from_parameters(&recipe.parameters).map_err(|reason| anyhow!(reason))?;
        let (jobs, layout) = match selection {
            Some(selection) => {
                let layout = recorded_layout(self.layout, first, &mut recipe, context)?;
                let mut jobs = jobs::merge_experts(first, &layout, selection)?;
                if let Some(base) = checkpoints.get(1) {
                    jobs::add_base(&mut jobs, &layout, base, 1)?;
                }
                (jobs, Some(layout))
            }
            None => whole_checkpoints(&checkpoints, &given, self.layout, &mut recipe, context)?,
        };
        let mut unusual = Vec::new();
        for (role, other) in given.iter().zip(&checkpoints).skip(1) {
            let Some(layout) = other.layout() else { continue };
            let config = other.settled_config(layout)?.config;
            // What a result is like is what its models are like, not their base.
            if *role != "base" {
                unusual.extend(config.unusual);
            }
        }
        let method =
            Ruled::new(&recipe.method, &recipe.parameters, &recipe.rules, &jobs).map_err(|reason| anyhow!(reason))?;
        method.warnings().iter().for_each(|warning| context.warn(warning));
        // One spelling and order, however they were given.
        recipe.parameters = method.parameters();
        recipe.parameters.extend(selection.map(Selection::parameters).unwrap_or_default());
        recipe.parameters.extend(emit.parameters());
        let is_merged = selection.is_some() && emit == Emit::Merged;
        let run = Run {
            config: layout.as_ref().map(|layout| config_json(first, layout, is_merged, unusual)).transpose()?,
            metadata: kept_metadata(first),
            checkpoints: given.iter().copied().zip(&checkpoints).collect(),
            jobs: match &layout {
                Some(layout) => emit.apply(jobs, first, layout)?,
                None => jobs,
            },
            method: Some(&method),
            recipe,
            threads: context.threads,
        };
        let root = run.usual_root();
        super::write_noting(run, root, Vec::new, self.output, self.json, context)
    }
}

/// Which experts are merged; `None` where whole checkpoints are.
fn selection(recipe: &Recipe) -> Result<Option<Selection>> {
    let experts_alone = matches!(recipe.method.as_str(), "interpolate" | "arithmetic");
    match experts_alone || recipe.parameters.contains_key("experts") || recipe.parameters.contains_key("task") {
        true => Selection::from_parameters(&recipe.parameters).map(Some).map_err(|reason| anyhow!(reason)),
        false => Ok(None),
    }
}

/// Whether a method has the inputs it needs, in the order it needs them.
pub fn check_roles(method: &str, in_one: bool, given: &[&str]) -> Result<()> {
    let has_base = matches!(method, "arithmetic" | "ties" | "dare");
    let (fits, wanted) = match (in_one, has_base) {
        _ if method == "regmean" => (given == ["checkpoint", "grams"], "a checkpoint, then its grams"),
        (true, false) => (given == ["checkpoint"], "one checkpoint"),
        (true, true) => (given == ["checkpoint", "base"], "a checkpoint, then its base"),
        (false, true) => {
            let (base, models) = given.split_at(given.len().min(1));
            (
                base == ["base"] && !models.is_empty() && models.iter().all(|role| *role == "model"),
                "a base, then its models",
            )
        }
        (false, false) if method == "slerp" => (given == ["model", "model"], "two models"),
        (false, false) => (given.len() > 1 && given.iter().all(|role| *role == "model"), "two models or more"),
    };
    if !fits {
        bail!(
            "{method} needs {wanted} as its inputs, and has: {}",
            if given.is_empty() { "none".into() } else { given.join(", ") }
        );
    }
    Ok(())
}

fn whole_checkpoints(
    checkpoints: &[Checkpoint],
    given: &[&str],
    layout: &LayoutArg,
    recipe: &mut Recipe,
    context: &Context,
) -> Result<(Vec<Job>, Option<Layout>)> {
    // Names that mean nothing to us match as well as others.
    let is_known = |first: &&Checkpoint| layout.layout.is_some() || first.layout().is_some();
    let layout = checkpoints
        .first()
        .filter(is_known)
        .map(|first| recorded_layout(layout, first, recipe, context))
        .transpose()?;
    let bases = given.iter().filter(|role| **role == "base").count();
    let roles: Vec<Role> =
        (0..given.len()).map(|n| if n < bases { Role::Base } else { Role::Model(n - bases) }).collect();
    let inputs: Vec<&Checkpoint> = checkpoints.iter().collect();
    several::check_labels(checkpoints)?;
    checkpoints[1..].iter().try_for_each(|other| several::check_alike(&checkpoints[0], other))?;
    let matched = several::merge_checkpoints(&inputs, &roles, layout.as_ref())?;
    matched.notes.iter().for_each(|note| context.warn(note));
    Ok((matched.jobs, layout))
}
