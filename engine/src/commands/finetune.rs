//! `engine finetune`

use std::path::{Path, PathBuf};

use anyhow::Result;
use engine::device::{Choice, Precision};
use engine::tasks::Task;
use engine::train::config::{Config, Protocol};
use engine::train::finetune::{Finished, Sitting, resume, start};
use engine::train::fit::Outcome;
use engine::train::interrupt::stop_flag;
use engine::train::open;
use engine::train::resolve::{Error, Layers};
use engine::train::run_dir::{BEST, LAST};
use formats::{shell_path, show_path};
use toml::Value;

use super::{Context, usage};
use crate::Report;
use crate::cli::JsonArg;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine finetune merged.safetensors
  engine finetune merged.safetensors --preset vqa-base-480 --data arrows/ \\
      --accumulate 16 -o runs/vqa
  engine finetune ms.ckpt --merge interpolate:0.5 --preset irtr-f30k-base-384 \\
      --data arrows/ -o runs/f30k
  engine finetune --preset easy-vqa --task irtr --data easy_vqa.whl \\
      -o runs/captions
  engine finetune --resume runs/vqa

Later values replace earlier ones: preset, --config, options, --set; `engine presets NAME` shows all keys. Without \
--data it trains on the built-in toy data set. Ctrl-C writes a checkpoint and ends the run.

The batch of an update (--batch-size) is computed in --accumulate parts whose gradients are averaged. For irtr, the \
negatives of a pair are the other pairs of its part: more parts mean fewer negatives, not only less memory.")]
pub struct Args {
    /// The checkpoint to start from; without one, a new model in the configuration's shape.
    #[arg(conflicts_with = "resume")]
    pub checkpoint: Option<PathBuf>,
    /// Continue the run in this folder from its last checkpoint.
    #[arg(long, value_name = "RUN_DIR", conflicts_with_all = NEW)]
    pub resume: Option<PathBuf>,
    /// A preset configuration; `engine presets` lists them.
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// A configuration file, such as a run's config.toml.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// What to learn: irtr, vqa, nlvr2 or img_cls.
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
    /// The data set: a folder of Arrow files, of images beside JSONL files or of one folder of images for each class; a
    /// single Arrow or JSONL file; easy-VQA's wheel; or toy.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Whose splits to use: paper trains on Flickr30k's train and val and validates on its test, as the Python code does
    /// [default: train and val of every data set].
    #[arg(long, value_name = "NAME")]
    pub protocol: Option<Protocol>,
    /// Resize images to this many pixels a side, and the position tables to match [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<u32>,
    /// Examples per update.
    #[arg(long, value_name = "N")]
    pub batch_size: Option<u32>,
    /// Compute each update in this many parts.
    #[arg(long, value_name = "N")]
    pub accumulate: Option<u32>,
    /// The highest learning rate.
    #[arg(long, value_name = "LR", allow_negative_numbers = true)]
    pub lr: Option<f64>,
    /// Passes over the training split.
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    pub epochs: Option<u32>,
    /// Updates of the weights.
    #[arg(long, value_name = "N")]
    pub steps: Option<u32>,
    /// Precision of the matrix products, f32 or bf16; weights, softmax, norms and losses are always f32.
    #[arg(long, value_name = "P")]
    pub precision: Option<Precision>,
    /// Where to run: auto (CUDA if there is a driver and a card), cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<Choice>,
    /// Seed of the order of examples, augmentation, dropout and new weights.
    #[arg(long, value_name = "N")]
    pub seed: Option<u32>,
    /// Merge the checkpoint's experts first, as vlmerge does: interpolate:RATIO, arithmetic:LAMBDA:SEED or
    /// regmean:GRAMS.
    #[arg(long, value_name = "HOW", requires = "checkpoint")]
    pub merge: Option<String>,
    /// Any value of the configuration, e.g. --set clip=1.0 --set model.layers=6.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The run's folder [default: run, run-2, …].
    #[arg(long, short, value_name = "RUN_DIR")]
    pub output: Option<PathBuf>,
    /// Replace a run that is in the folder.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub json: JsonArg,
}

/// What makes a new run: all but where to run it.
const NEW: &[&str] = &[
    "preset",
    "config",
    "task",
    "data",
    "protocol",
    "image_size",
    "batch_size",
    "accumulate",
    "lr",
    "epochs",
    "steps",
    "precision",
    "seed",
    "merge",
    "set",
    "output",
    "force",
];

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let sitting = Sitting { quiet: context.quiet, stop: stop_flag(), vlmerge: None };
    let finished = match &args.resume {
        Some(folder) => resume(folder, args.device, &sitting, &mut open::trainer),
        None => configuration(args).map_err(anyhow::Error::from).and_then(|config| {
            let folder = args.output.clone().unwrap_or_else(free_folder);
            start(config, &folder, args.force, &sitting, &mut open::trainer)
        }),
    };
    match finished {
        Ok(finished) => {
            let success = matches!(finished.outcome, Outcome::Finished(_));
            let report = match args.json.json {
                true => Report::done(format!("{:#}\n", serde_json::to_value(&finished.result)?)),
                false => context.summary(summary(&finished)),
            };
            Ok(Report { success, ..report })
        }
        Err(e) => match e.downcast_ref() {
            Some(Error::Usage(reason)) => usage(reason),
            _ => Err(e),
        },
    }
}

/// All layers, the later ones over the earlier.
fn configuration(args: &Args) -> Result<Config, Error> {
    let mut layers = Layers::default();
    match &args.preset {
        Some(preset) => layers.preset(preset)?,
        // Nothing said of the data: the built-in ones, with values that suit them.
        None if args.config.is_none() && args.data.is_none() => layers.preset("toy")?,
        None => {}
    }
    if let Some(file) = &args.config {
        layers.file(file, args.preset.is_some())?;
    }
    let path = |key: &str, path: &Path| match path.to_str() {
        Some(path) => Ok(Value::from(path)),
        None => Err(Error::Usage(format!("{key}: {}: a path that is no Unicode", show_path(path)))),
    };
    let integer = |value: u32| Value::from(i64::from(value));
    let values = [
        ("checkpoint", args.checkpoint.as_deref().map(|at| path("checkpoint", at)).transpose()?),
        ("data", args.data.as_deref().map(|at| path("data", at)).transpose()?),
        ("task", args.task.map(|task| task.name().into())),
        ("merge", args.merge.as_deref().map(Value::from)),
        ("protocol", args.protocol.map(|Protocol::Paper| "paper".into())),
        ("image_size", args.image_size.map(integer)),
        ("batch_size", args.batch_size.map(integer)),
        ("accumulate", args.accumulate.map(integer)),
        ("lr", args.lr.map(Value::from)),
        ("epochs", args.epochs.map(integer)),
        ("steps", args.steps.map(integer)),
        ("precision", args.precision.map(|p| if p == Precision::Bf16 { "bf16" } else { "f32" }.into())),
        ("device", args.device.map(|device| device.to_string().into())),
        ("seed", args.seed.map(integer)),
    ];
    for (key, value) in values {
        if let Some(value) = value {
            layers.value(key, value);
        }
    }
    for assignment in &args.set {
        layers.set(assignment)?;
    }
    layers.config()
}

/// `run`, or the first of `run-2`, `run-3`, … that is not there.
fn free_folder() -> PathBuf {
    let names = std::iter::once("run".to_owned()).chain((2..).map(|number| format!("run-{number}")));
    names.map(PathBuf::from).find(|path| !path.exists()).unwrap_or_else(|| "run".into())
}

fn summary(finished: &Finished) -> String {
    let folder = show_path(&finished.folder);
    let typed = shell_path(&finished.folder);
    let result = &finished.result;
    let mut text = match &finished.outcome {
        Outcome::Finished(state) => format!("{} done\n", updates(state.step)),
        Outcome::Interrupted(state) => {
            return format!(
                "stopped after {} of {}; all is saved in {folder}. Continue with:\n  engine finetune --resume {typed}\n",
                state.step,
                updates(state.steps)
            );
        }
    };
    for (name, value) in &result.metrics {
        text += &format!("{name:<16} {:6.2}%\n", 100.0 * value);
    }
    if let Some(best) = &result.best {
        text +=
            &format!("best {} {:.2}% after {}: {folder}/{BEST}\n", best.metric, 100.0 * best.value, updates(best.step));
    }
    text += &format!("last weights: {folder}/{LAST}\nreport on one page: engine report {typed} -o report.html\n");
    text
}

fn updates(count: u64) -> String {
    engine::report::terminal::count(count, "update", "updates")
}
