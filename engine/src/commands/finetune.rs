//! `engine finetune`

use std::path::{Path, PathBuf};

use anyhow::Result;
use engine::device::{Choice, Precision};
use engine::tasks::Task;
use engine::train::config::{Config, Head, Protocol};
use engine::train::finetune::{Changes, Finished, Length, Sitting, resume, start, start_in_new_folder};
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
  engine finetune ms.ckpt --data arrows/ \\
      --merge \"arithmetic --lambda 0.75 --base seed.ckpt --sequential\"
  engine finetune ms.ckpt --merge recipe.toml --data arrows/ --no-validation
  engine finetune runs/vqa --data mine/ --head match -o runs/mine
  engine finetune lightning.ckpt --root ema.model --task vqa --data arrows/
  engine finetune --preset easy-vqa --task irtr --data easy_vqa.whl \\
      -o runs/captions
  engine finetune --resume runs/vqa
  engine finetune --resume runs/vqa --epochs 20
  engine finetune --resume runs/vqa --max-broken 0.05

Later values replace earlier ones: preset, --config, options, --set; `engine presets NAME` shows all keys. Without \
--data it trains on the built-in toy data set. Ctrl-C during training writes a checkpoint and ends the run.

The task is that of the data where they are for one task alone. A checkpoint's head for it is kept where it has all \
labels of the data; otherwise a new head takes its place, and a note says so (--head decides).

The batch of an update (--batch-size) is computed in --accumulate parts whose gradients are averaged. For irtr, the \
negatives of a pair are the other pairs of its part: more parts mean fewer negatives, not only less memory.")]
pub struct Args {
    /// The checkpoint to start from, or the folder of a run (its best weights, else its last); without one, a new model
    /// in the configuration's shape.
    #[arg(conflicts_with = "resume")]
    pub checkpoint: Option<PathBuf>,
    /// Continue the run in this folder from its last checkpoint. With --epochs or --steps, this becomes its whole length,
    /// and its schedule follows; --max-broken and --no-validation hold from then on.
    #[arg(long, value_name = "RUN_DIR", conflicts_with_all = NEW)]
    pub resume: Option<PathBuf>,
    /// A preset configuration; `engine presets` lists them.
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// A configuration file, such as a run's config.toml.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// What to learn: irtr, vqa, nlvr2 or img_cls [default: what the data are for, where that is one task].
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
    /// The data set: a folder of Arrow files, of images beside JSONL files or of one folder of images for each class; a
    /// single Arrow or JSONL file; easy-VQA's wheel; or toy.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Train without a validation split. The run then has no best weights, only its last.
    #[arg(long)]
    pub no_validation: bool,
    /// The share of a split's rows that may be broken, 0 to 1 [default: 0.01]; they are skipped and named.
    #[arg(long, value_name = "SHARE", value_parser = super::share)]
    pub max_broken: Option<f64>,
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
    /// Where in the checkpoint's file the tensors are, e.g. model.ema [default: found].
    #[arg(long, value_name = "KEY.KEY")]
    pub root: Option<String>,
    /// What becomes of the checkpoint's head for the task: keep it; start with a new one; or match, where labels that
    /// the head and the data both name keep their rows [default: keep where it has all labels of the data, else new].
    #[arg(long, value_name = "HEAD")]
    pub head: Option<Head>,
    /// Merge the checkpoint's experts first, as vlmerge does: interpolate:RATIO, arithmetic:LAMBDA:SEED or
    /// regmean:GRAMS; a whole command of vlmerge in quotes, without the checkpoint (or with {} in its place) and without
    /// -o; or a recipe file that ends in .toml, in which the checkpoint stands for the input with that role. Without {} the
    /// checkpoint is the first file of the command, and for ties and dare the first after the base. SEED and the files of
    /// a command may be folders of runs.
    #[arg(long, value_name = "HOW")]
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

/// What makes a new run: all but where to run it, how long, and what to do without.
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
    "precision",
    "seed",
    "root",
    "head",
    "merge",
    "set",
    "output",
    "force",
];

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let sitting = Sitting { quiet: context.quiet, stop: stop_flag(), vlmerge: None };
    let finished = match &args.resume {
        Some(folder) => {
            let steps = args.steps.map(|steps| Length::Steps(steps.into()));
            let length = args.epochs.map(|epochs| Length::Epochs(epochs.into())).or(steps);
            let (max_broken, no_validation) = (args.max_broken, args.no_validation);
            let changes = Changes { device: args.device, length, max_broken, no_validation };
            resume(folder, &changes, &sitting, &mut open::trainer)
        }
        None => configuration(args).map_err(anyhow::Error::from).and_then(|config| match &args.output {
            Some(folder) => start(config, folder, args.force, &sitting, &mut open::trainer),
            None => start_in_new_folder(config, Path::new(""), &sitting, &mut open::trainer),
        }),
    };
    match finished {
        Ok(finished) => {
            let success = matches!(finished.outcome, Outcome::Finished(_));
            let report = if args.json.json {
                let mut report = serde_json::to_value(&finished.result)?;
                if let serde_json::Value::Object(report) = &mut report {
                    report.shift_insert(0, "run".into(), finished.folder.to_string_lossy().into());
                }
                Report::done(format!("{report:#}\n"))
            } else {
                context.summary(summary(&finished))
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
        ("validate", args.no_validation.then_some(false.into())),
        ("max_broken", args.max_broken.map(Value::from)),
        ("root", args.root.as_deref().map(Value::from)),
        ("head", args.head.map(|head| head.name().into())),
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
