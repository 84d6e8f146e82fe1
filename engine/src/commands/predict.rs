//! `engine predict`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use engine::data::{self, Dataset, Opening};
use engine::embed;
use engine::image::{self, Rgb};
use engine::model::open::{Opened, Source, open_runner_from};
use engine::model::{Heads, Want};
use engine::predict::{self, Guess, label_names};
use engine::report::terminal::count;
use engine::runner::Runner;
use engine::tasks::{self, Evaluation, Task};
use engine::text::Tokenizer;
use engine::train::run_dir::checkpoint_at;
use formats::{show_name, show_path};
use serde_json::{Value, json};

use super::Context;
use super::output::{self, Target};
use crate::Report;
use crate::cli::{JsonArg, ModelArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine predict vqa vqa.safetensors --image a.jpg \\
      --question \"what colour is the cat?\"
  engine predict nlvr2 nlvr2.safetensors --left a.png --right b.png \\
      --text \"both images show a dog\"
  engine predict img_cls imagenet.safetensors --image a.jpg")]
pub struct Args {
    #[command(subcommand)]
    pub task: Prediction,
}

#[derive(Debug, Subcommand)]
pub enum Prediction {
    /// Answer a question about an image, or all questions of a data set.
    Vqa(VqaArgs),
    /// Say whether a sentence about two images is true.
    Nlvr2(Nlvr2Args),
    /// Say what an image shows.
    #[command(name = "img_cls")]
    ImgCls(ImgClsArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine predict vqa vqa.safetensors --image a.jpg \\
      --question \"what colour is the cat?\"
  engine predict vqa runs/vqa --data arrows --split test \\
      -o submission.json

The second writes [{\"question_id\": …, \"answer\": …}, …], as EvalAI takes it.")]
pub struct VqaArgs {
    /// The checkpoint, with a head for vqa; or the folder of a run.
    pub checkpoint: PathBuf,
    /// The image; - for standard input.
    #[arg(long, value_name = "FILE", requires = "question", required_unless_present = "data", conflicts_with = "data")]
    pub image: Option<PathBuf>,
    /// The question.
    #[arg(long, value_name = "TEXT", requires = "image", conflicts_with = "data")]
    pub question: Option<String>,
    /// How many answers to show, the likeliest first.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub top: u32,
    /// A data set whose questions to answer, as for fine-tuning.
    #[arg(long, value_name = "DIR", requires = "output")]
    pub data: Option<PathBuf>,
    /// The split of the data set.
    #[arg(long, value_name = "S", default_value = "test", requires = "data")]
    pub split: String,
    /// The file to write the answers to a data set to; - for standard output.
    #[arg(long, short, value_name = "OUT", requires = "data", conflicts_with_all = ["image", "question"])]
    pub output: Option<PathBuf>,
    /// Replace the output if it exists.
    #[arg(long)]
    pub force: bool,
    /// The share of the data set's rows that may be broken, 0 to 1; they are skipped and named, and get no answer.
    #[arg(long, value_name = "SHARE", default_value_t = data::MAX_BROKEN, value_parser = super::share, requires = "data")]
    pub max_broken: f64,
    /// Questions per batch.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    /// A file of the answers that the head's labels stand for: one per line, a JSON array, or an object of answers and
    /// numbers; - for standard input [default: the checkpoint's].
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub json: JsonArg,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  engine predict nlvr2 nlvr2.safetensors --left a.png --right b.png \\
      --text \"both images show a dog\"")]
// clap doesn't wrap this line.
#[command(override_usage = "\
engine predict nlvr2 [OPTIONS] --left <FILE> --right <FILE>
                            --text <TEXT> <CHECKPOINT>")]
pub struct Nlvr2Args {
    /// The checkpoint, with a head for nlvr2; or the folder of a run.
    pub checkpoint: PathBuf,
    /// The left image; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub left: PathBuf,
    /// The right image; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub right: PathBuf,
    /// The sentence.
    #[arg(long, value_name = "TEXT")]
    pub text: String,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub json: JsonArg,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  engine predict img_cls imagenet.safetensors --image a.jpg --top 3")]
pub struct ImgClsArgs {
    /// The checkpoint, with a head for img_cls; or the folder of a run.
    pub checkpoint: PathBuf,
    /// The image; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub image: PathBuf,
    /// How many classes to show, the likeliest first.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub top: u32,
    /// A file of the classes that the head's labels stand for: one per line, a JSON array, or an object of classes and
    /// numbers; - for standard input [default: the checkpoint's].
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    match &args.task {
        Prediction::Vqa(args) => vqa(args, context),
        Prediction::Nlvr2(args) => nlvr2(args, context),
        Prediction::ImgCls(args) => img_cls(args, context),
    }
}

fn vqa(args: &VqaArgs, context: &Context) -> Result<Report> {
    if let (Some(data), Some(output)) = (&args.data, &args.output) {
        return submission(args, data, output, context);
    }
    let (Some(path), Some(question)) = (&args.image, &args.question) else {
        bail!("--image and --question, or --data and --output, are needed");
    };
    let question = not_empty("--question", question)?;
    let image = image::open(path)?;
    let model = Model::open(&args.checkpoint, Task::Vqa, &args.model, context)?;
    let names = model.names(args.answers.as_deref())?;
    let texts = model.texts(question, context)?;
    let guesses = predict::vqa(&*model.runner, &texts, &image, args.top as usize)?;
    let about = json!({"image": path, "question": question});
    Ok(ranked(about, "answers", "answer", &guesses, names.as_deref(), args.json.json, context))
}

/// Answers to all questions of a split, as EvalAI takes them.
fn submission(args: &VqaArgs, data: &Path, output: &Path, context: &Context) -> Result<Report> {
    let (checkpoint, _) = checkpoint_at(&args.checkpoint)?;
    let reads: Vec<&Path> = [checkpoint.as_path(), data].into_iter().chain(args.answers.as_deref()).collect();
    let target = Target::text(output, args.force, &reads)?;
    let model = Model::open(&args.checkpoint, Task::Vqa, &args.model, context)?;
    let Some(names) = model.names(args.answers.as_deref())? else {
        bail!(
            "{}: it doesn't name the answers that its labels stand for; name them with --answers FILE",
            show_path(&args.checkpoint)
        );
    };
    let opening = Opening { max_broken: args.max_broken, ..Opening::default() };
    let set: Arc<dyn Dataset> = Arc::new(data::open_as(data, Task::Vqa, &args.split, &opening)?.relabelled(&names)?);
    let over = Evaluation {
        set: set.clone(),
        tokenizer: Arc::new(Tokenizer::bert()),
        batch_size: args.batch_size.into(),
        workers: 0,
        labels: names.into(),
    };
    context.tell_broken_rows(set.as_ref());
    let bar = context.bar("questions", set.len());
    let found = tasks::evaluate(&*model.runner, &over, &mut |_| {
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    let answers = found?.answers;
    let lines: Vec<String> = answers.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    formats::write::write_file(target.path(), format!("[\n{}\n]\n", lines.join(",\n")).as_bytes())?;
    let missing = set.len().saturating_sub(answers.len());
    if args.json.json {
        let report = json!({
            "output": output, "data": set.name(), "answers": answers.len(), "without_answer": missing,
            "device": model.opened.device.to_string(),
        });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let without = match missing {
        0 => String::new(),
        1 => " (1 question has none: its row is broken)".into(),
        more => format!(" ({more} questions have none: their rows are broken)"),
    };
    let (answers, written) = (count(answers.len(), "answer", "answers"), output::shown(output));
    let (set, device) = (set.name(), model.opened.device);
    target.finish(context, format!("{answers} to {set}{without} written to {written}, computed on {device}\n"))
}

fn nlvr2(args: &Nlvr2Args, context: &Context) -> Result<Report> {
    let text = not_empty("--text", &args.text)?;
    let (left, right) = (image::open(&args.left)?, image::open(&args.right)?);
    let model = Model::open(&args.checkpoint, Task::Nlvr2, &args.model, context)?;
    let texts = model.texts(text, context)?;
    let truth = predict::nlvr2(&*model.runner, &texts, &left, &right)?;
    let answer = truth > 0.5;
    if args.json.json {
        let report = json!({
            "left": args.left, "right": args.right, "text": text, "answer": answer, "probability_true": super::rounded(truth),
        });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let sure = if answer { truth } else { 1.0 - truth };
    Ok(Report::done(format!("{answer}  {:.1} %\n", 100.0 * sure)))
}

fn img_cls(args: &ImgClsArgs, context: &Context) -> Result<Report> {
    let image: Rgb = image::open(&args.image)?;
    let model = Model::open(&args.checkpoint, Task::ImgCls, &args.model, context)?;
    let names = model.names(args.answers.as_deref())?;
    let guesses = predict::img_cls(&*model.runner, &image, args.top as usize)?;
    let about = json!({"image": args.image});
    Ok(ranked(about, "classes", "class", &guesses, names.as_deref(), args.json.json, context))
}

/// A checkpoint opened for one task.
struct Model {
    runner: Box<dyn Runner>,
    opened: Opened,
    task: Task,
    path: PathBuf,
}

impl Model {
    /// # Errors
    /// The checkpoint can't be opened, or has no head for the task.
    fn open(path: &Path, task: Task, args: &ModelArgs, context: &Context) -> Result<Model> {
        let path = &context.checkpoint(path)?;
        let only = |wanted: Task| if task == wanted { Want::IfPresent } else { Want::No };
        let heads =
            Heads { vqa: only(Task::Vqa), nlvr2: only(Task::Nlvr2), img_cls: only(Task::ImgCls), ..Heads::default() };
        let (runner, opened) = open_runner_from(&Source::Checkpoint(path), heads, &args.options())?;
        if runner.labels(task.name()).is_none() {
            bail!(
                "{}: this checkpoint has no head for {task}; 'engine finetune --task {task}' trains one",
                show_path(path)
            );
        }
        opened.notes.iter().for_each(|note| context.note(note));
        Ok(Model { runner, opened, task, path: path.to_owned() })
    }

    /// What the head's labels stand for, where anything says it.
    fn names(&self, file: Option<&Path>) -> Result<Option<Vec<String>>> {
        let count = self.runner.labels(self.task.name()).unwrap_or(0);
        label_names(file, &self.opened.metadata, self.task, count).with_context(|| show_path(&self.path))
    }

    fn texts(&self, text: &str, context: &Context) -> Result<engine::batch::Texts> {
        let len = self.runner.text_len();
        let (texts, cut) = embed::encode(&Tokenizer::bert(), &[text], len)?;
        if cut > 0 {
            context.note(format_args!("the text is longer than {len} tokens and is cut"));
        }
        Ok(texts)
    }
}

fn not_empty<'a>(option: &str, text: &'a str) -> Result<&'a str> {
    match text.trim().is_empty() {
        true => bail!("{option} is empty"),
        false => Ok(text),
    }
}

/// Guesses as lines, or as JSON: `about` with an array of them under `many`.
fn ranked(
    about: Value,
    many: &str,
    one: &str,
    guesses: &[Guess],
    names: Option<&[String]>,
    as_json: bool,
    context: &Context,
) -> Report {
    let name = |guess: &Guess| names.and_then(|names| names.get(guess.label));
    if as_json {
        let list: Vec<Value> = guesses
            .iter()
            .map(|guess| json!({one: name(guess), "label": guess.label, "probability": super::rounded(guess.probability)}))
            .collect();
        let mut report = about;
        report[many] = list.into();
        return Report::done(format!("{report:#}\n"));
    }
    if names.is_none() {
        context.note("the checkpoint doesn't name its labels, so their numbers are shown; --answers FILE names them");
    }
    let mut text = String::new();
    for guess in guesses {
        let name = name(guess).map_or_else(|| format!("label {}", guess.label), |name| show_name(name));
        text += &format!("{:>6.2} %  {name}\n", 100.0 * guess.probability);
    }
    Report::done(text)
}
