//! `engine eval`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use engine::batch::{Images, Matrix, Texts};
use engine::data::{self, Dataset, Numbering, Opening, Outside};
use engine::eval::{JsonLines, Outcome};
use engine::model::open::{Opened, open_runner};
use engine::predict::read_labels;
use engine::report::terminal::count;
use engine::runner::Runner;
use engine::tasks::{Evaluation, Found, Task, evaluate};
use engine::text::Tokenizer;
use engine::train::finetune::head_labels;
use formats::show_path;
use indexmap::IndexMap;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::output::Target;
use super::{Context, usage};
use crate::Report;
use crate::cli::{JsonArg, ModelArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine eval runs/coco --task irtr --data arrows/
  engine eval run/best.safetensors --task nlvr2 --data arrows/ \\
      --split val --split test
  engine eval run/best.safetensors --task vqa --data arrows/ --split test-dev \\
      --submission answers.json
  engine eval run/best.safetensors --task vqa --data toy \\
      --details details.jsonl --force

Retrieval ranks every image for each text and every text for each image. A split without public answers has no score; \
--submission writes the file that EvalAI takes. A head whose labels the checkpoint doesn't name is compared with the data set's numbered labels.")]
pub struct Args {
    /// The checkpoint, fine-tuned for the task; or the folder of a run, whose best weights are taken, else its last.
    pub checkpoint: PathBuf,
    /// What it was trained for: irtr, vqa, nlvr2 or img_cls [default: what the checkpoint says, else what
    /// the data are for].
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
    /// The data set: a folder of Arrow files, of images beside JSONL files or of one folder of images for each class; a
    /// single Arrow or JSONL file; easy-VQA's wheel; or toy.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Splits, each evaluated by itself [default: test for irtr, val and test for nlvr2, val for the others; of a single
    /// file the one that its name says].
    #[arg(long, value_name = "SPLIT")]
    pub split: Vec<String>,
    /// The names of the head's labels, where the checkpoint doesn't have them: one per line, a JSON array, or an object of
    /// names and numbers; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
    /// The share of the rows that may be broken, 0 to 1; they are skipped and named.
    #[arg(long, value_name = "SHARE", default_value_t = data::MAX_BROKEN, value_parser = super::share)]
    pub max_broken: f64,
    /// Evaluate on at most this many examples.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub limit: Option<usize>,
    /// Examples per batch.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub batch_size: usize,
    /// Threads that prepare batches [default: all cores].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub workers: Option<usize>,
    /// Write the outcome of each example, one JSON object per line; - for standard output.
    #[arg(long, value_name = "FILE.jsonl")]
    pub details: Option<PathBuf>,
    /// Write the model's answers as EvalAI takes them (vqa, one split); - for standard output.
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
    let target = |output: &PathBuf| Target::text(output, args.force, &reads);
    let details_to = args.details.as_ref().map(target).transpose()?;
    let submission_to = args.submission.as_ref().map(target).transpose()?;
    let place = |path: &PathBuf| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        (folder.canonicalize().ok(), path.file_name().map(ToOwned::to_owned))
    };
    if args.details.is_some() && args.details.as_ref().map(place) == args.submission.as_ref().map(place) {
        return usage("--details and --submission name the same file: give each its own");
    }
    let (runner, opened) = open_runner(checkpoint, &args.model.options())?;
    context.opened(&opened);
    let task = task(args, &opened)?;
    if args.submission.is_some() && (task != Task::Vqa || args.split.len() != 1) {
        return usage("--submission is for --task vqa and one --split");
    }
    let own = data::own_split(&args.data);
    let splits: Vec<&str> = match (args.split.is_empty(), &own) {
        (true, Some(own)) => vec![own.as_str()],
        (true, None) => match task {
            Task::Irtr => vec!["test"],
            Task::Nlvr2 => vec!["val", "test"],
            Task::Vqa | Task::ImgCls => vec!["val"],
        },
        (false, _) => args.split.iter().map(String::as_str).collect(),
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
    let mut details = details_to.as_ref().map(|target| JsonLines::create(target.path())).transpose()?;
    let mut outcomes: IndexMap<&str, Evaluated> = IndexMap::new();
    let named = match &args.answers {
        Some(path) => Some(read_labels(path)?),
        None => head_labels(&opened.metadata, task),
    };
    for split in splits {
        let set = open_split(args, task, split, &runner, named.as_deref(), context)?;
        context.tell_broken_rows(set.as_ref());
        let name = set.name().to_owned();
        let labels = set.labels().to_vec().into();
        let workers = args.workers.unwrap_or(0);
        let over =
            Evaluation { set: set.clone(), tokenizer: tokenizer.clone(), batch_size: args.batch_size, workers, labels };
        context.note(format_args!("evaluating on {name}, {}", count(set.len(), "example", "examples")));
        let several = args.split.len() != 1;
        // Retrieval embeds every image and every text; the other tasks run once an example.
        let passes = if task == Task::Irtr { set.len() + set.images() } else { set.len() };
        let bar = context.bar("examples", passes);
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
        if let Some(target) = &submission_to {
            formats::write::write_file(target.path(), &serde_json::to_vec(&answers)?)?;
        }
        context.skipped(set.as_ref());
        outcomes.insert(split, Evaluated { name, outcome, outside: set.outside() });
    }
    if let Some(lines) = details {
        lines.finish()?;
    }
    if args.json.json {
        let splits = outcomes.iter().map(|(split, Evaluated { name, outcome, outside })| {
            let mut value = serde_json::to_value(outcome)?;
            if let Value::Object(value) = &mut value {
                value.shift_insert(0, "data".into(), name.as_str().into());
                if outside.answers > 0 {
                    value.insert("true_answers".into(), outside.answers.into());
                    value.insert("true_answers_outside_labels".into(), outside.outside.into());
                    value.insert("questions_without_answer_in_labels".into(), outside.unanswerable.into());
                }
            }
            Ok(((*split).to_owned(), value))
        });
        let splits: serde_json::Map<String, Value> = splits.collect::<Result<_>>()?;
        let report = json!({ "checkpoint": show_path(checkpoint).to_string(), "task": task.name(), "splits": splits });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let tables = outcomes
        .values()
        .map(|Evaluated { name, outcome, outside }| format!("{name}\n{}{}", outcome.table(), beyond_labels(outside)));
    let tables = tables.collect::<Vec<_>>().join("\n");
    let mut sent = false;
    for target in details_to.iter().chain(&submission_to) {
        sent |= target.send()?;
    }
    if sent {
        // Standard output has what was asked for there.
        tables.lines().for_each(|line| context.note(line));
        return Ok(Report::done(""));
    }
    Ok(Report::done(tables))
}

/// A split after the model saw it.
struct Evaluated {
    name: String,
    outcome: Outcome,
    outside: Outside,
}

/// How many of the true answers the head can't give, whatever it has learned; empty where it can give all.
fn beyond_labels(outside: &Outside) -> String {
    let Outside { questions, unanswerable, answers, outside } = *outside;
    if outside == 0 {
        return String::new();
    }
    let share = |part: usize, of: usize| format!("{:.1} %", 100.0 * part as f64 / of.max(1) as f64);
    format!(
        "{} of the true answers ({outside} of {answers}) are none of the head's labels; {} of the questions ({unanswerable} of \
         {questions}) have no true answer among them.\n",
        share(outside, answers),
        share(unanswerable, questions)
    )
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

/// A split, its labels those of the head, which are `named` where anything names them.
fn open_split(
    args: &Args,
    task: Task,
    split: &str,
    runner: &dyn Runner,
    named: Option<&[String]>,
    context: &Context,
) -> Result<Arc<dyn Dataset>> {
    let opening = Opening { max_broken: args.max_broken, ..Opening::default() };
    let set = data::open_as(&args.data, task, split, &opening)?;
    let head = runner.labels(task.name()).filter(|_| matches!(task, Task::Vqa | Task::ImgCls));
    let set = match (named, head) {
        (Some(named), _) => set.relabelled(named)?,
        // Numbers mean the same in the head and in the data; the highest ones need not occur in this split.
        (None, Some(head)) if set.numbering() == Numbering::Data => set.padded(head),
        (None, _) => set,
    };
    let set = match args.limit {
        Some(limit) => set.truncated(limit),
        None => set,
    };
    let (checkpoint, count) = (show_path(&args.checkpoint), set.labels().len());
    match head {
        Some(head) if head != count => {
            let from = match (&args.answers, named.is_some()) {
                (Some(path), _) => show_path(path).to_string(),
                (None, true) => "its own metadata".into(),
                (None, false) => set.name().to_owned(),
            };
            bail!("{checkpoint}: its head has {head} labels, and {from} names {count}: --answers FILE names them");
        }
        Some(head) if named.is_none() => {
            let order = match set.numbering() {
                Numbering::Counted => ", the most frequent first, which may not be the order it was trained with",
                Numbering::Data | Numbering::Listed => "",
            };
            context.note(format_args!(
                "{checkpoint}: it doesn't name the {head} labels of its head; they are taken to be those of {}{order} \
                 (--answers FILE names others)",
                set.name()
            ));
        }
        _ => {}
    }
    Ok(Arc::new(set))
}
