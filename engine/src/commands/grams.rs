//! `engine grams`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use engine::batch::TrainBatch;
use engine::data::{self, Dataset};
use engine::grams::Grams;
use engine::model::open::{Source, open_runner_from};
use engine::model::{Heads, Want};
use engine::runner::Runner;
use engine::tasks::{Sizes, Task, TrainData, Transform};
use engine::text::Tokenizer;
use engine::train::fit::Batches;
use formats::grams::GramRecord;
use formats::layout::Modality;
use formats::show_path;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Context;
use crate::Report;
use crate::cli::{JsonArg, ModelArgs, OutputArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine grams ms.ckpt --task irtr --data arrows/ --samples 1000 -o grams.safetensors
  engine grams ms.safetensors --task vqa -o grams.safetensors      (on the built-in toy data)
  vlmerge regmean --grams grams.safetensors -o merged.safetensors

Images are only resized, examples are drawn by --seed. Every token counts, padding too, as in the Python code.")]
pub struct Args {
    /// The modality-specific checkpoint, or the folder of a run.
    pub checkpoint: PathBuf,
    /// Whose forward passes: irtr runs texts and images apart, vqa and nlvr2 together [default: what the data are for,
    /// where that is one of these].
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
    /// The data set: a folder of Arrow files or of images beside JSONL files, easy-VQA's wheel, or toy.
    #[arg(long, value_name = "DIR", default_value = data::TOY)]
    pub data: PathBuf,
    /// Which part of it.
    #[arg(long, value_name = "S", default_value = "train")]
    pub split: String,
    /// Examples to run [default: all of the split].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub samples: Option<u64>,
    /// Examples at a time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    /// Chooses the examples.
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
    formats::write::Container::for_path(output)?;
    super::check_output(output, args.output.force, &[path, &args.data])?;
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
    if !a.attention_experts && !a.mlp_experts {
        let path = show_path(path);
        bail!("{path}: it has no experts in linear layers: RegMean has nothing to merge");
    }
    let layout = opened.layout.context("a checkpoint's layout")?;
    let set: Arc<dyn Dataset> = Arc::new(data::open(&args.data, task, &args.split)?);
    let count = args.samples.unwrap_or(set.len() as u64).min(set.len() as u64);
    if let Some(wanted) = args.samples.filter(|&wanted| wanted > count) {
        context.note(format_args!("{} has {count} examples: fewer than the {wanted} asked for", set.name()));
    }
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
    let bar = if context.quiet { ProgressBar::hidden() } else { ProgressBar::new(count) };
    if let Ok(style) = ProgressStyle::with_template("grams {wide_bar} {pos}/{len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    let start = Instant::now();
    let mut grams = Grams::new(layout);
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
    grams.write(output, record)?;
    let seconds = start.elapsed().as_secs_f64();
    let (name, count, device) = (set.name(), grams.len(), opened.device);
    if args.json.json {
        let report = json!({
            "output": output, "matrices": count, "task": task.to_string(), "data": name, "samples": samples,
            "device": device.to_string(), "seconds": seconds,
        });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    Ok(Report::done(format!(
        "{count} gram matrices of {samples} examples ({name}, {}) written to {} in {seconds:.1} s on {device}\n\
         next: vlmerge regmean --grams {} -o merged.safetensors\n",
        task,
        output.display(),
        output.display()
    )))
}

/// Tokens of a joint pass: apart below vl start, together from there on.
fn joint(grams: &mut Grams, image: usize, text: usize) {
    grams.count(Modality::Vision, image);
    grams.count(Modality::Language, text);
    grams.count(Modality::VisionLanguage, image + text);
}
