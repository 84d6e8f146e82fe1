//! `engine grams`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use engine::batch::TrainBatch;
use engine::data::{self, Dataset, Opening, Records};
use engine::grams::Grams;
use engine::model::open::{Source, open_runner_from};
use engine::model::{Heads, Want};
use engine::report::terminal;
use engine::runner::Runner;
use engine::tasks::{Sizes, Task, TrainData, Transform};
use engine::text::Tokenizer;
use engine::train::fit::Batches;
use formats::grams::GramRecord;
use formats::layout::Modality;
use formats::show_path;
use serde_json::json;

use super::Context;
use super::output::{self, Target};
use crate::Report;
use crate::cli::{JsonArg, ModelArgs, OutputArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine grams ms.ckpt --task irtr --data arrows/ -o grams.safetensors
  engine grams ms.ckpt --task irtr --data arrows/ --split train \\
      --samples 1000 -o grams.safetensors
  engine grams ms.safetensors --task vqa -o grams.safetensors  # on toy data
  vlmerge regmean --grams grams.safetensors -o merged.safetensors

Without --split the matrices are of the data that the Python code validates on: COCO's val, Flickr30k's test, \
VQAv2's rest_val, NLVR2's dev and test1; of other data sets val, or train where there is no val. Images are only \
resized; with --samples, --seed draws the examples. Every token counts, padding too, as in the Python code. A \
modality-agnostic checkpoint gives one matrix for each linear layer, named without a modality.")]
pub struct Args {
    /// The checkpoint, or the folder of a run.
    pub checkpoint: PathBuf,
    /// The task whose forward passes are recorded: irtr runs texts and images apart, vqa and nlvr2 together [default: what
    /// the data are for, where that is one of these].
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
    /// The data set: a folder of Arrow files, of images beside JSONL files or of one folder of images for each class; a
    /// single Arrow or JSONL file; easy-VQA's wheel; or toy.
    #[arg(long, value_name = "DIR", default_value = data::TOY)]
    pub data: PathBuf,
    /// The split of the data set [default: what the Python code validates on].
    #[arg(long, value_name = "S")]
    pub split: Option<String>,
    /// The share of the rows that may be broken, 0 to 1; they are skipped and named.
    #[arg(long, value_name = "SHARE", default_value_t = data::MAX_BROKEN, value_parser = super::share)]
    pub max_broken: f64,
    /// Run at most this many examples [default: all of the split].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub samples: Option<u64>,
    /// Examples per batch.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    /// Seed for the choice of examples.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let output = &args.output.output;
    let path = &context.checkpoint(&args.checkpoint)?;
    let checkpoint = formats::open_root(path, args.model.root.as_deref())?;
    let target = Target::tensors(output, args.output.force, &[path, &args.data])?;
    let task = match args.task {
        Some(task) => task,
        None => super::task_of_data(&args.data, &[Task::Irtr, Task::Vqa, Task::Nlvr2])?,
    };
    if task == Task::ImgCls {
        bail!("--task img_cls: RegMean merges for irtr, vqa or nlvr2");
    }
    // NLVR2's second image has a token type of its own.
    let nlvr2 = if task == Task::Nlvr2 { Want::Make(2) } else { Want::No };
    let heads = Heads { nlvr2, ..Heads::default() };
    let (runner, opened) = open_runner_from(&Source::Checkpoint(path), heads, &args.model.options())?;
    for note in &opened.notes {
        context.note(note);
    }
    let a = &opened.architecture;
    let mut grams = match a.attention_experts || a.mlp_experts {
        true => Grams::new(opened.layout.context("a checkpoint's layout")?),
        false => Grams::of_shared_weights(),
    };
    let (records, why) = open_split(args, task)?;
    let set: Arc<dyn Dataset> = Arc::new(records);
    context.tell_broken_rows(set.as_ref());
    let count = args.samples.unwrap_or(set.len() as u64).min(set.len() as u64);
    if let Some(wanted) = args.samples.filter(|&wanted| wanted > count) {
        context.note(format_args!("{} has {count} examples: fewer than the {wanted} asked for", set.name()));
    }
    let examples = match args.samples {
        Some(_) => format!("{count} of {} examples", set.len()),
        None => format!("all {count} examples"),
    };
    context.note(format_args!("gram matrices of {}, {examples}{why}", set.name()));
    let labels = set.labels().len();
    let batches = TrainData {
        tokenizer: Arc::new(Tokenizer::bert()),
        sizes: Sizes::of(&*runner as &dyn Runner),
        transform: Transform::Evaluation,
        batch_size: args.batch_size.into(),
        labels,
        seed: args.seed,
        workers: 0,
        once: true,
        set: set.clone(),
    };
    let bar = context.bar("examples", count as usize);
    let start = Instant::now();
    let mut samples = 0u64;
    for batch in batches.from(0, 0)? {
        let mut examples = batch?.examples;
        examples.truncate((count - samples) as usize);
        let n = examples.len();
        let (image, text) = (n * a.image_tokens(), n * a.text_len);
        match &examples {
            TrainBatch::Irtr { texts, images } => {
                runner.watch_apart(texts, images, &mut |seen| grams.add(&seen))?;
                grams.count(Modality::Vision, image);
                grams.count(Modality::Language, text);
            }
            TrainBatch::Vqa { texts, images, .. } => {
                runner.watch_joint(texts, images, 1, &mut |seen| grams.add(&seen))?;
                joint(&mut grams, image, text);
            }
            TrainBatch::Nlvr2 { texts, left, right, .. } => {
                for (images, image_type) in [(left, 1), (right, 2)] {
                    runner.watch_joint(texts, images, image_type, &mut |seen| grams.add(&seen))?;
                    joint(&mut grams, image, text);
                }
            }
            TrainBatch::ImgCls { .. } => {}
        }
        if let Some(layer) = grams.not_finite() {
            bail!(
                "{}: what {layer} is applied to isn't a finite number: look for NaN with vlmerge inspect --scan",
                show_path(path)
            );
        }
        samples += n as u64;
        bar.set_position(samples);
        if samples >= count {
            break;
        }
    }
    bar.finish_and_clear();
    context.skipped(set.as_ref());
    if grams.is_empty() {
        let path = show_path(path);
        bail!("{path}: no example was read");
    }
    let record = GramRecord {
        checkpoint: path.display().to_string(),
        root: args.model.root.clone(),
        content_digest: formats::content_digest(&checkpoint, 2)?,
        task: Some(task.to_string()),
        samples,
        tokens: Default::default(),
    };
    grams.write(target.path(), record)?;
    let seconds = start.elapsed().as_secs_f64();
    let (name, count, device) = (set.name(), grams.len(), opened.device);
    if args.json.json {
        let report = json!({
            "output": output, "matrices": count, "task": task.to_string(), "data": name, "samples": samples,
            "device": device.to_string(), "seconds": seconds,
        });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let matrices = terminal::count(count, "gram matrix", "gram matrices");
    let (of, written) = (terminal::count(samples, "example", "examples"), output::shown(output));
    let mut summary =
        format!("{matrices} of {of} ({name}, {task}) written to {written} in {seconds:.1} s on {device}\n");
    if !output::is_standard(output) {
        summary += &format!("next: vlmerge regmean --grams {} -o merged.safetensors\n", formats::shell_path(output));
    }
    target.finish(context, summary)
}

/// The split asked for, else the one that the Python code records gram matrices on, and why it is that one.
fn open_split(args: &Args, task: Task) -> Result<(Records, &'static str)> {
    let opening = Opening { max_broken: args.max_broken, ..Opening::default() };
    let open = |split: &str| data::open_as(&args.data, task, split, &opening);
    if let Some(split) = &args.split {
        return Ok((open(split)?, ""));
    }
    if let Some(own) = data::own_split(&args.data) {
        return Ok((open(&own)?, ""));
    }
    let published = data::published(&args.data, task, None).map(|splits| splits.grams);
    let tries =
        published.into_iter().map(|split| (split, ", as in the Python code")).chain([("val", ""), ("train", "")]);
    let mut first = None;
    for (split, why) in tries {
        match open(split) {
            Ok(records) => return Ok((records, why)),
            Err(e @ data::Error::Missing { .. }) => first = first.or(Some(e)),
            Err(e) => return Err(e.into()),
        }
    }
    match first {
        Some(e) => Err(e.into()),
        None => bail!("{}: there is no split to run", show_path(&args.data)),
    }
}

/// Tokens of a joint pass: apart below vl start, together from there on.
fn joint(grams: &mut Grams, image: usize, text: usize) {
    grams.count(Modality::Vision, image);
    grams.count(Modality::Language, text);
    grams.count(Modality::VisionLanguage, image + text);
}
