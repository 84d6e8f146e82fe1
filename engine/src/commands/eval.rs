//! `engine eval`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use engine::batch::{Images, Matrix, Texts};
use engine::data::{self, Dataset};
use engine::eval::{JsonLines, Outcome};
use engine::model::open::{Opened, open_runner};
use engine::predict::read_labels;
use engine::runner::Runner;
use engine::tasks::{Evaluation, Found, Task, evaluate};
use engine::text::Tokenizer;
use engine::train::finetune::head_labels;
use formats::show_path;
use indexmap::IndexMap;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{Context, usage};
use crate::Report;
use crate::cli::{JsonArg, ModelArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine eval runs/coco --task irtr --data arrows/
  engine eval run/best.safetensors --task nlvr2 --data arrows/ --split val --split test
  engine eval run/best.safetensors --task vqa --data arrows/ --split test-dev --submission answers.json
  engine eval run/best.safetensors --task vqa --data toy --details details.jsonl --force

Retrieval ranks every image for each text and every text for each image. Splits that keep their answers
to themselves have no score; --submission writes what EvalAI takes.")]
pub struct Args {
    /// The checkpoint, fine-tuned for the task; or the folder of a run, whose best weights are taken, else its last.
    pub checkpoint: PathBuf,
    /// What it was trained for: irtr, vqa, nlvr2 or img_cls [default: what the checkpoint says, else what
    /// the data are for].
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
    /// The data set: a folder of Arrow files or of images beside JSONL files, easy-VQA's wheel, or toy.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Splits, each evaluated apart [default: test for irtr, val and test for nlvr2, val for the others].
    #[arg(long, value_name = "SPLIT")]
    pub split: Vec<String>,
    /// The names of the head's labels, where the checkpoint doesn't have them: one a line, a JSON array, or an object of
    /// names and numbers.
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
    /// Evaluate on so many examples at most.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub limit: Option<usize>,
    /// Examples a batch.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub batch_size: usize,
    /// Threads that prepare batches [default: all cores].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub workers: Option<usize>,
    /// Write what came of each example, a JSON object a line.
    #[arg(long, value_name = "FILE.jsonl")]
    pub details: Option<PathBuf>,
    /// Write the model's answers as EvalAI takes them (vqa, one split).
    #[arg(long, value_name = "FILE.json")]
    pub submission: Option<PathBuf>,
    /// Replace --details and --submission if they exist.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub json: JsonArg,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&value| value > 0).ok_or_else(|| "it must be at least 1".into())
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let checkpoint = &context.checkpoint(&args.checkpoint)?;
    let reads: Vec<&Path> = [checkpoint, &args.data].into_iter().chain(&args.answers).map(PathBuf::as_path).collect();
    for output in args.details.iter().chain(&args.submission) {
        super::check_output(output, args.force, &reads)?;
    }
    let place = |path: &PathBuf| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        (folder.canonicalize().ok(), path.file_name().map(ToOwned::to_owned))
    };
    if args.details.is_some() && args.details.as_ref().map(place) == args.submission.as_ref().map(place) {
        return usage("--details and --submission are one file: give them two");
    }
    let (runner, opened) = open_runner(checkpoint, &args.model.options())?;
    context.opened(&opened);
    let task = task(args, &opened)?;
    if args.submission.is_some() && (task != Task::Vqa || args.split.len() != 1) {
        return usage("--submission is for --task vqa and one --split");
    }
    let splits: Vec<&str> = match args.split.is_empty() {
        true => match task {
            Task::Irtr => vec!["test"],
            Task::Nlvr2 => vec!["val", "test"],
            Task::Vqa | Task::ImgCls => vec!["val"],
        },
        false => args.split.iter().map(String::as_str).collect(),
    };
    if runner.labels(task.name()).is_none() {
        bail!(
            "{}: this checkpoint has no head for {task}; 'engine finetune --task {task}' trains one",
            show_path(checkpoint)
        );
    }
    let mut runner = Watched { runner, bar: ProgressBar::hidden() };
    let splits: indexmap::IndexSet<&str> = splits.into_iter().collect();
    let tokenizer = Arc::new(Tokenizer::bert());
    let mut details = args.details.as_deref().map(JsonLines::create).transpose()?;
    let mut outcomes: IndexMap<&str, (String, Outcome)> = IndexMap::new();
    for split in splits {
        let set = open_split(args, task, split, &runner, &opened)?;
        let name = set.name().to_owned();
        let labels = set.labels().to_vec().into();
        let workers = args.workers.unwrap_or(0);
        let over =
            Evaluation { set: set.clone(), tokenizer: tokenizer.clone(), batch_size: args.batch_size, workers, labels };
        context.note(format_args!("evaluating on {name}, {} examples", set.len()));
        let several = args.split.len() != 1;
        // Retrieval embeds every image and every text; the other tasks run once an example.
        let passes = if task == Task::Irtr { set.len() + set.images() } else { set.len() };
        let bar = context.bar("evaluated", passes);
        runner.bar = bar.clone();
        let found = evaluate(&runner, &over, &mut |detail| {
            let Some(lines) = &mut details else { return Ok(()) };
            let mut line = serde_json::to_value(detail)?;
            if let (true, Value::Object(line)) = (several, &mut line) {
                line.shift_insert(0, "split".into(), split.into());
            }
            lines.write(&line)
        });
        bar.finish_and_clear();
        let Found { outcome, answers } = found?;
        if let Some(path) = &args.submission {
            formats::write::write_file(path, &serde_json::to_vec(&answers)?)?;
        }
        context.skipped(set.as_ref());
        outcomes.insert(split, (name, outcome));
    }
    if let Some(lines) = details {
        lines.finish()?;
    }
    if args.json.json {
        let splits = outcomes.iter().map(|(split, (name, outcome))| {
            let mut value = serde_json::to_value(outcome)?;
            if let Value::Object(value) = &mut value {
                value.shift_insert(0, "data".into(), name.as_str().into());
            }
            Ok(((*split).to_owned(), value))
        });
        let splits: serde_json::Map<String, Value> = splits.collect::<Result<_>>()?;
        let report = json!({ "checkpoint": show_path(checkpoint).to_string(), "task": task.name(), "splits": splits });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let tables = outcomes.values().map(|(name, outcome)| format!("{name}\n{}", outcome.table()));
    Ok(Report::done(tables.collect::<Vec<_>>().join("\n")))
}

/// A model that moves a bar with every batch.
struct Watched {
    runner: Box<dyn Runner>,
    bar: ProgressBar,
}

impl Watched {
    fn count(&self, examples: usize, found: Result<Matrix>) -> Result<Matrix> {
        self.bar.inc(examples as u64);
        found
    }
}

impl Runner for Watched {
    fn image_size(&self) -> usize {
        self.runner.image_size()
    }

    fn text_len(&self) -> usize {
        self.runner.text_len()
    }

    fn embedding_size(&self) -> usize {
        self.runner.embedding_size()
    }

    fn labels(&self, task: &str) -> Option<usize> {
        self.runner.labels(task)
    }

    fn embed_texts(&self, texts: &Texts) -> Result<Matrix> {
        self.count(texts.count, self.runner.embed_texts(texts))
    }

    fn embed_images(&self, images: &Images) -> Result<Matrix> {
        self.count(images.count, self.runner.embed_images(images))
    }

    fn vqa_logits(&self, texts: &Texts, images: &Images) -> Result<Matrix> {
        self.count(images.count, self.runner.vqa_logits(texts, images))
    }

    fn nlvr2_logits(&self, texts: &Texts, left: &Images, right: &Images) -> Result<Matrix> {
        self.count(left.count, self.runner.nlvr2_logits(texts, left, right))
    }

    fn class_logits(&self, images: &Images) -> Result<Matrix> {
        self.count(images.count, self.runner.class_logits(images))
    }
}

fn task(args: &Args, opened: &Opened) -> Result<Task> {
    if let Some(task) = args.task {
        return Ok(task);
    }
    match opened.metadata.get("engine.task").and_then(|task| task.parse().ok()) {
        Some(task) => Ok(task),
        None => super::task_of_data(&args.data, &Task::ALL),
    }
}

/// A split, its labels those of the head.
fn open_split(args: &Args, task: Task, split: &str, runner: &dyn Runner, opened: &Opened) -> Result<Arc<dyn Dataset>> {
    let named = match &args.answers {
        Some(path) => Some(read_labels(path)?),
        None => head_labels(&opened.metadata, task),
    };
    let set = data::open_with(&args.data, task, split, named.as_deref())?;
    let set = match args.limit {
        Some(limit) => set.truncated(limit),
        None => set,
    };
    if matches!(task, Task::Vqa | Task::ImgCls)
        && let Some(head) = runner.labels(task.name())
        && head != set.labels().len()
    {
        let from = match (&args.answers, named.is_some()) {
            (Some(path), _) => show_path(path).to_string(),
            (None, true) => "its own metadata".into(),
            (None, false) => set.name().to_owned(),
        };
        bail!(
            "{}: its head has {head} labels, and {from} names {}: --answers FILE names them",
            show_path(&args.checkpoint),
            set.labels().len()
        );
    }
    Ok(Arc::new(set))
}
