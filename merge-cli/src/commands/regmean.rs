//! `vlmerge regmean`

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use formats::grams::GramRecord;
use formats::{Checkpoint, show_name, show_path};
use merge_cli::methods::{self, LayerReport, Method, OnSingular, RegMean, RegMeanOptions, leave_out_absent};
use merge_cli::ruled::{check_rules, parameters_of};
use merge_cli::{Emit, Merge, Recipe, Run, Selection, Task, jobs};
use serde_json::{Value, json};

use super::merge::{InputFile, Merging, check_roles};
use super::{Context, Note, config_json, kept_metadata, one_standard_input, recorded_layout, write_noting};
use crate::cli::{EmitArgs, ExpertsChoice, JsonArg, LayoutArg, OutputArgs, RootArg, finite};
use crate::{Report, text};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge regmean --grams grams.safetensors
  vlmerge regmean ms.ckpt --grams grams_irtr.pth --task irtr \\
      --non-diag-scale 0.9 -o merged.safetensors
  vlmerge regmean ms.ckpt --grams grams_vqa.pth --task vqa \\
      --on-singular ridge -o merged.ckpt

Gram files come from `engine grams` or from the Python code (a dict of [d, d]
matrices saved with torch.save); f32 matrices and packed upper triangles,
[d(d+1)/2] row by row, do as well. Biases and norms become the plain mean. The
report shows the objective Σ‖(W − Wₘ)Xₘ‖² of the plain mean and how much of it
RegMean leaves.

A missing gram is an error. With --experts all and a --task, an expert whose
gram is missing is left out of the weight instead, as in the Python code for
NLVR2, and the report lists it.")]
pub struct Args {
    /// The modality-specific checkpoint [default: the one the gram file was recorded from].
    pub ms: Option<PathBuf>,
    /// The gram matrices of its linear layers' inputs.
    #[arg(long, value_name = "FILE")]
    pub grams: PathBuf,
    /// The task whose experts are merged, or with --experts all the one that the grams are of
    /// [default: the one the gram file was recorded for].
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
    /// Experts to merge: those that the task's forward pass uses, or all there are.
    #[arg(long, value_name = "WHICH", default_value = "used")]
    pub experts: ExpertsChoice,
    /// Factor of the grams' entries off the diagonal, 0 to 1.
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = fraction, allow_negative_numbers = true)]
    pub non_diag_scale: f64,
    /// Add λ times the mean of its diagonal to each diagonal of summed grams; pulls towards the plain mean.
    #[arg(long, value_name = "λ", default_value_t = 0.0, value_parser = ridge, allow_negative_numbers = true)]
    pub ridge: f64,
    /// Where summed grams are not positive definite: fail, add the first ridge of 1e-6, 1e-5, …
    /// that helps, or take the plain mean.
    #[arg(long, value_name = "WHAT", default_value = "error")]
    pub on_singular: OnSingular,
    /// Use the grams even if they were recorded from another checkpoint.
    #[arg(long)]
    pub allow_mismatch: bool,
    /// Where to write: .safetensors, or .ckpt, .pth, .pt, .bin for a PyTorch file.
    #[arg(long, short, value_name = "OUT", default_value = "merged.safetensors")]
    pub output: PathBuf,
    /// Replace the output if it exists.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub emit: EmitArgs,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let grams = formats::open(&args.grams)?;
    let record = record(&grams)?;
    selection(args.experts, args.task, record.as_ref(), &args.grams)?;
    let checkpoint = checkpoint(args, record.as_ref())?;
    let path = args.ms.as_deref().unwrap_or(checkpoint.path());
    let recorded_root = record.filter(|_| args.ms.is_none()).and_then(|record| record.root);
    let options =
        RegMeanOptions { non_diag_scale: args.non_diag_scale, ridge: args.ridge, on_singular: args.on_singular };
    let mut parameters = options.parameters();
    // Carried out as the recipe of the same words is.
    let experts = match args.experts {
        ExpertsChoice::All => "all",
        ExpertsChoice::Used => "used",
    };
    parameters.insert("experts".into(), json!(experts));
    parameters.extend(args.task.map(|task| ("task".into(), json!(task))));
    parameters.extend(args.emit.emit.parameters());
    let merging = Merging {
        recipe: Recipe::new("regmean", parameters),
        inputs: vec![
            InputFile::new("checkpoint", path, &args.root.root.clone().or(recorded_root)),
            InputFile::new("grams", &args.grams, &None),
        ],
        layout: &args.layout,
        output: &OutputArgs { output: args.output.clone(), force: args.force },
        json: args.json.json,
    };
    execute(merging, args.allow_mismatch, context).map(|(report, _)| report)
}

/// Carries a RegMean merge out; also returns the recipe as it stands in the result.
pub fn execute(merging: Merging, allow_mismatch: bool, context: &Context) -> Result<(Report, Recipe)> {
    let mut recipe = merging.recipe;
    let given: Vec<&str> = merging.inputs.iter().map(|input| input.role.as_str()).collect();
    check_roles(&recipe.method, true, &given)?;
    one_standard_input(merging.inputs.iter().map(|input| input.path.as_path()))?;
    let open = |input: &InputFile| formats::open_root(&input.path, input.root.as_deref());
    let (checkpoint, grams) = (open(&merging.inputs[0])?, open(&merging.inputs[1])?);
    let in_words = |reason: String| anyhow!(reason);
    let (experts, task) = experts_of(&recipe).map_err(in_words)?;
    let record = record(&grams)?;
    let (selection, partial) = selection(experts, task, record.as_ref(), grams.path())?;
    warn_of_another_task(selection, partial, record.as_ref(), grams.path(), context);
    let emit = Emit::from_parameters(&recipe.parameters).map_err(in_words)?;
    let options: RegMeanOptions = methods::read(&recipe.parameters).map_err(in_words)?;
    let layout = recorded_layout(merging.layout, &checkpoint, &mut recipe, context)?;
    let mut jobs = jobs::merge_experts(&checkpoint, &layout, selection)?;
    let absent = match partial {
        Some(_) => leave_out_absent(&grams, &layout, &mut jobs)?,
        None => Vec::new(),
    };
    let merges = jobs.iter().filter_map(|job| job.source.merge());
    check_rules(&recipe.rules, merges.filter(|merge| layout.is_linear(&merge.name))).map_err(in_words)?;
    // What a rule says was checked when the recipe was read.
    let own = |merge: &Merge| methods::read(&parameters_of(merge, &recipe.parameters, &recipe.rules)).ok();
    let method = RegMean::new(&grams, &layout, &jobs, options, own)?;
    if !allow_mismatch && let Some(record) = record {
        same_checkpoint(&record, &grams, &checkpoint, context)?;
    }
    formats::write::check_target(&merging.output.output, merging.output.force, &[&grams])?;
    recipe.parameters = method.parameters();
    recipe.parameters.extend(selection.parameters());
    recipe.parameters.extend(partial.map(|task| ("task".into(), json!(task))));
    recipe.parameters.extend(emit.parameters());
    let run = Run {
        jobs: emit.apply(jobs, &checkpoint, &layout)?,
        method: Some(&method),
        recipe,
        config: Some(config_json(&checkpoint, &layout, emit == Emit::Merged, Vec::new())?),
        metadata: kept_metadata(&checkpoint),
        threads: context.threads,
        checkpoints: vec![("checkpoint", &checkpoint)],
    };
    let root = run.usual_root();
    let notes = || {
        let layers = method.layers();
        if let Some(what) = in_singular_layers(&layers) {
            context.warn(format!("summed grams are not positive definite: {what}"));
        }
        vec![
            Note { key: "layers", value: json!(layers), text: summary(&layers) },
            Note { key: "absent_grams", text: absent_text(&absent), value: json!(absent) },
        ]
    };
    write_noting(run, root, notes, merging.output, merging.json, context)
}

/// The experts and the task that a recipe asks for; what it leaves out is what the command line's default is.
fn experts_of(recipe: &Recipe) -> Result<(ExpertsChoice, Option<Task>), String> {
    let experts = match recipe.parameters.get("experts") {
        None | Some(Value::Null) => ExpertsChoice::Used,
        Some(experts) if experts == "used" => ExpertsChoice::Used,
        Some(experts) if experts == "all" => ExpertsChoice::All,
        Some(other) => return Err(format!("no experts {other}: it is all or used")),
    };
    Ok((experts, Task::from_parameters(&recipe.parameters)?))
}

fn record(grams: &Checkpoint) -> formats::Result<Option<GramRecord>> {
    GramRecord::from_metadata(grams.metadata()).map_err(|reason| formats::Error::file(grams.path(), show_name(&reason)))
}

/// The experts to merge and, where these are all there are, the task that was given for them: then a weight is solved
/// from the grams there are.
fn selection(
    experts: ExpertsChoice,
    task: Option<Task>,
    record: Option<&GramRecord>,
    grams: &Path,
) -> Result<(Selection, Option<Task>)> {
    let recorded = record.and_then(|record| record.task.as_deref());
    match (experts, task) {
        (ExpertsChoice::All, task) => Ok((Selection::All, task)),
        (ExpertsChoice::Used, Some(task)) => Ok((Selection::Used(task), None)),
        (ExpertsChoice::Used, None) => match recorded {
            None => bail!(
                "{}: it doesn't say for which task it was recorded: give --task T, or --experts all",
                show_path(grams)
            ),
            Some(recorded) => match Task::from_str(recorded, false) {
                Ok(task) => Ok((Selection::Used(task), None)),
                Err(_) => bail!(
                    "{}: it was recorded for '{}', which doesn't tell the experts to merge: give --task T, or \
                     --experts all",
                    show_path(grams),
                    show_name(recorded)
                ),
            },
        },
    }
}

fn warn_of_another_task(
    selection: Selection,
    partial: Option<Task>,
    record: Option<&GramRecord>,
    grams: &Path,
    context: &Context,
) {
    let task = match selection {
        Selection::Used(task) => Some(task),
        Selection::All => partial,
    };
    let recorded = record.and_then(|record| record.task.as_deref());
    if let (Some(task), Some(recorded)) = (task, recorded)
        && Task::from_str(recorded, false) != Ok(task)
    {
        context.warn(format!("{}: these grams were recorded for '{}'", show_path(grams), show_name(recorded)));
    }
}

/// The checkpoint that was given, or the one the grams were recorded from.
fn checkpoint(args: &Args, record: Option<&GramRecord>) -> Result<Checkpoint> {
    let root = args.root.root.as_deref();
    if let Some(ms) = &args.ms {
        return Ok(formats::open_root(ms, root)?);
    }
    let Some(record) = record.filter(|record| !record.checkpoint.is_empty()) else {
        let grams = show_path(&args.grams);
        bail!("{grams}: it doesn't say which checkpoint it was recorded from: give the checkpoint before --grams");
    };
    let path = Path::new(&record.checkpoint);
    let beside = args.grams.with_file_name(path.file_name().unwrap_or_default());
    let path = match (path.is_file(), beside.is_file()) {
        (true, _) => path,
        (false, true) => &beside,
        (false, false) => bail!(
            "{}: it was recorded from {}, which is not there and not beside it: give the checkpoint before --grams",
            show_path(&args.grams),
            show_path(path)
        ),
    };
    Ok(formats::open_root(path, root.or(record.root.as_deref()))?)
}

fn same_checkpoint(
    record: &GramRecord,
    grams: &Checkpoint,
    checkpoint: &Checkpoint,
    context: &Context,
) -> formats::Result<()> {
    let digest = formats::content_digest(checkpoint, context.threads)?;
    if digest == record.content_digest {
        return Ok(());
    }
    let short = |digest: &str| show_name(digest.get(..16).unwrap_or(digest));
    let reason = format!(
        "grams of another checkpoint: recorded from {} with content digest {}…, and {} has {}… \
         (--allow-mismatch uses them anyway)",
        show_name(&record.checkpoint),
        short(&record.content_digest),
        show_path(checkpoint.path()),
        short(&digest)
    );
    Err(formats::Error::file(grams.path(), reason))
}

/// A table of layers by kinds of linear layer: the objective of the mean, and RegMean's as a part of it.
fn summary(layers: &[LayerReport]) -> String {
    let solved = || layers.iter().filter(|layer| layer.modalities.len() > 1);
    let (before, after) =
        solved().fold((0.0, 0.0), |(before, after), layer| (before + layer.mean_objective, after + layer.objective));
    if solved().next().is_none() {
        return String::new();
    }
    let mut kinds: Vec<&str> = Vec::new();
    let mut rows: Vec<(Option<usize>, Vec<&LayerReport>)> = Vec::new();
    for report in layers {
        let kind = kind(report);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
        match rows.iter_mut().find(|(layer, _)| *layer == report.layer) {
            Some((_, reports)) => reports.push(report),
            None => rows.push((report.layer, vec![report])),
        }
    }
    rows.sort_by_key(|&(layer, _)| layer);
    let labels = rows.iter().map(|(layer, _)| layer.map_or_else(|| "–".to_string(), |layer| layer.to_string()));
    let labels: Vec<String> = labels.collect();
    let columns = kinds.iter().map(|&wanted| {
        let cell = |(_, reports): &(Option<usize>, Vec<&LayerReport>)| {
            reports.iter().find(|report| kind(report) == wanted).map_or_else(String::new, |report| cell(report))
        };
        let column = text::Column { heading: wanted.into(), cells: rows.iter().map(cell).collect() };
        text::Columns { title: String::new(), columns: vec![column] }
    });
    let columns: Vec<text::Columns> = columns.collect();
    let mut out = "Σ‖(W − Wₘ)Xₘ‖² of the plain mean, and what RegMean leaves of it:\n".to_string();
    out.push_str(&text::grouped("layer", &labels, &columns, text::WIDTH - 2));
    out.push_str(&format!("all layers: {before:.3e}, {} left\n", percent(after, before)));
    if let Some(what) = in_singular_layers(layers) {
        out.push_str(&format!("* summed grams not positive definite: {what}\n"));
    }
    out
}

/// What became of the layers whose summed grams aren't positive definite; `None` without such layers.
fn in_singular_layers(layers: &[LayerReport]) -> Option<String> {
    let singular = || layers.iter().filter(|layer| layer.singular);
    let ridges: Vec<f64> = singular().filter(|layer| !layer.plain_mean).map(|layer| layer.ridge).collect();
    let means = singular().filter(|layer| layer.plain_mean).count() as u64;
    let with_ridge = ridges.iter().copied().max_by(f64::total_cmp).map(|most| {
        let up_to = if ridges.len() > 1 { "up to " } else { "" };
        format!("{} got a ridge of {up_to}{most:e}", text::count(ridges.len() as u64, "layer"))
    });
    let with_mean = (means > 0).then(|| format!("{} took the plain mean", text::count(means, "layer")));
    let what: Vec<String> = with_ridge.into_iter().chain(with_mean).collect();
    (!what.is_empty()).then(|| what.join(" and "))
}

/// The grams that were not there, by name.
fn absent_text(absent: &[String]) -> String {
    if absent.is_empty() {
        return String::new();
    }
    let names = absent.iter().enumerate().map(|(number, name)| match number + 1 == absent.len() {
        true => show_name(name),
        false => show_name(name) + ",",
    });
    let heading =
        format!("{} absent, whose experts have no part in these weights:", text::count(absent.len() as u64, "gram"));
    format!("{heading}\n    {}", text::wrap(names, 4, text::WIDTH))
}

/// What kind of linear layer a slot is: its name after the layer's number, without the last part.
fn kind(report: &LayerReport) -> &str {
    let slot = report.slot.as_str();
    let tail = report.layer.and_then(|layer| {
        let number = format!(".{layer}.");
        slot.find(&number).map(|at| &slot[at + number.len()..])
    });
    let tail = tail.unwrap_or(slot);
    tail.rsplit_once('.').map_or(tail, |(kind, _)| kind)
}

fn cell(report: &LayerReport) -> String {
    if let [only] = report.modalities.as_slice() {
        return format!("{only} alone");
    }
    let mark = if report.singular { "*" } else { "" };
    format!("{:.1e} {:>6}{mark}", report.mean_objective, percent(report.objective, report.mean_objective))
}

fn percent(part: f64, whole: f64) -> String {
    if whole.is_nan() || whole <= 0.0 {
        return "–".to_string();
    }
    let percent = 100.0 * part / whole;
    if percent < 0.995 { format!("{percent:.2}%") } else { format!("{percent:.1}%") }
}

fn fraction(text: &str) -> Result<f64, String> {
    finite(text).ok().filter(|value| (0.0..=1.0).contains(value)).ok_or_else(|| "it must be from 0 to 1".into())
}

fn ridge(text: &str) -> Result<f64, String> {
    finite(text).ok().filter(|&value| value >= 0.0).ok_or_else(|| "it must be a number from 0 on".into())
}

#[cfg(test)]
mod tests {
    use formats::layout::Part;

    use super::*;

    fn layer(ridge: f64, plain_mean: bool, singular: bool) -> LayerReport {
        LayerReport {
            slot: "w".into(),
            layer: Some(0),
            part: Part::Mlp,
            modalities: Vec::new(),
            mean_objective: 0.0,
            objective: 0.0,
            ridge,
            condition: 1.0,
            singular,
            plain_mean,
        }
    }

    #[test]
    fn ridges_are_not_compared_as_text() {
        let ridge = |ridge| layer(ridge, false, true);
        let said = |layers: &[LayerReport]| in_singular_layers(layers);
        assert_eq!(said(&[ridge(1e-6), ridge(1e-5)]).as_deref(), Some("2 layers got a ridge of up to 1e-5"));
        assert_eq!(said(&[ridge(0.002), ridge(0.1)]).as_deref(), Some("2 layers got a ridge of up to 1e-1"));
        assert_eq!(said(&[ridge(1e-6), layer(0.5, false, false)]).as_deref(), Some("1 layer got a ridge of 1e-6"));
        // A ridge that was asked for and not used, because the plain mean was taken, is none.
        let mixed = [ridge(1e-4), layer(1e-3, true, true), layer(1e-3, true, true)];
        let expected = "1 layer got a ridge of 1e-4 and 2 layers took the plain mean";
        assert_eq!(said(&mixed).as_deref(), Some(expected));
        assert_eq!(said(&[layer(0.0, false, false)]), None);
    }
}
