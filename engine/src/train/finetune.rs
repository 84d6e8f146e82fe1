//! A whole run: from a configuration to a folder with trained weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use formats::config::ModelConfig;
use formats::history::{self, RECIPE_KEY};
use formats::{CONFIG_KEY, show_name, show_path};

use super::config::{Augment, Config, Head, ModelShape, Protocol, patches};
use super::fit::{self, Fit, Outcome, Scores, steps_of};
use super::interrupt::{self, Undo, Undoable};
use super::merge_in::Merge;
use super::recorder::Recorder;
use super::resolve::Error;
use super::run_dir::{LOCK, MERGED, RunDir, Saved, State, checkpoint_at, make_free};
use super::schedule::Schedule;
use crate::data::{self, Dataset, Opening, Published, Records};
use crate::device::Choice;
use crate::image::{RandAugment, Training};
use crate::model::ReplacedHead;
use crate::report::run_files::{RunResult, SAMPLE_IMAGES, SAMPLES, Status};
use crate::report::terminal::count;
use crate::runner::Runner;
use crate::tasks::{self, Evaluation, Sizes, Task, TrainData, Transform};
use crate::text::Tokenizer;
use crate::trainer::Trainer;

/// The metadata key of a head's label names, a JSON array in the head's order.
pub fn labels_key(task: Task) -> String {
    format!("engine.labels.{task}")
}

/// What a trainer is to be opened for.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// Device, precision, optimizer, dropout, seed.
    pub config: Config,
    pub task: Task,
    pub source: Source,
    /// Pixels along a side, where another than the checkpoint's is wanted.
    pub image_size: Option<usize>,
    /// Tokens of a text, where fewer than the checkpoint's are wanted.
    pub text_len: Option<usize>,
    /// Labels of the task's head: 2 for `nlvr2`, 0 for `irtr`.
    pub labels: usize,
    /// The checkpoint's head for the task, where it isn't to be loaded as it is.
    pub replaced_head: Option<ReplacedHead>,
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Checkpoint {
        path: PathBuf,
        /// Where in the file the tensors are [default: found].
        root: Option<String>,
    },
    /// Random weights; the vocabulary is the tokenizer's.
    Scratch { shape: ModelShape, vocab_size: usize },
}

/// A trainer that was opened for a [`Setup`].
pub struct Ready {
    pub trainer: Box<dyn Trainer>,
    /// Where it runs, in words.
    pub device: String,
    /// What there is to be told: heads newly initialised, tensors not used.
    pub notes: Vec<String>,
}

/// What holds for a sitting beside the configuration.
pub struct Sitting<'a> {
    pub quiet: bool,
    /// Set from outside to end the sitting with a checkpoint.
    pub stop: &'a AtomicBool,
    /// The program that `--merge` runs [default: found].
    pub vlmerge: Option<PathBuf>,
}

/// How a sitting ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    pub folder: PathBuf,
    pub outcome: Outcome,
    pub result: RunResult,
    /// On the built-in toy data.
    pub toy: bool,
}

/// Starts a run in a new folder.
///
/// # Errors
/// [`Error::Usage`] where what was asked for can't be; a folder that holds a run, without `force`; a checkpoint or data
/// that can't be read; all that [`fit::fit`] names. Where training hasn't begun, the folder is left as it was.
pub fn start(
    config: Config,
    folder: &Path,
    force: bool,
    sitting: &Sitting,
    open: &mut dyn FnMut(&Setup) -> Result<Ready>,
) -> Result<Finished> {
    begin(config, Place::Folder { path: folder, force }, sitting, open)
}

/// As [`start`], in the first of the folders `run`, `run-2`, … within another that isn't there yet.
///
/// # Errors
/// As [`start`].
pub fn start_in_new_folder(
    config: Config,
    within: &Path,
    sitting: &Sitting,
    open: &mut dyn FnMut(&Setup) -> Result<Ready>,
) -> Result<Finished> {
    begin(config, Place::New { within }, sitting, open)
}

/// Where a new run goes.
#[derive(Clone, Copy)]
enum Place<'a> {
    Folder { path: &'a Path, force: bool },
    New { within: &'a Path },
}

fn begin(
    config: Config,
    place: Place,
    sitting: &Sitting,
    open: &mut dyn FnMut(&Setup) -> Result<Ready>,
) -> Result<Finished> {
    let (config, task, mut notes) = complete(config)?;
    let merge = config.merge.as_deref().map(parse_merge).transpose()?;
    if let Place::Folder { path, force } = place {
        let taken = RunDir::check(path, force)?;
        for input in inputs(&config, merge.as_ref()) {
            if taken.would_replace(&input) {
                bail!(
                    "{}: this file is of the run that --force would replace: choose another folder for the new run",
                    show_path(&input)
                );
            }
        }
    }
    let root = config.root.as_deref();
    let checkpoint = config.checkpoint.as_deref().map(|path| Checkpoint::read(path, root)).transpose()?;
    if let (Some(merge), Some(checkpoint)) = (&merge, &checkpoint) {
        merge.check(&checkpoint.path, root, task)?;
    }
    let asked = sizes(&config, checkpoint.as_ref())?;
    let known = checkpoint.as_ref().map(|checkpoint| &checkpoint.metadata);
    let data = Data::open(&config, task, HeadOf::Checkpoint(checkpoint.as_ref()))?;
    let steps = planned(&config, &data)?;
    let (folder, force, was_there) = match place {
        Place::Folder { path, force } => {
            let was_there = path.exists();
            let made = std::fs::create_dir_all(path);
            made.with_context(|| format!("{}: cannot make the run's folder", show_path(path)))?;
            (path.to_owned(), force, was_there)
        }
        Place::New { within } => (make_free(within)?, false, false),
    };
    let _lock = RunDir::check(&folder, force)?.lock()?;
    let (run, unbegun) = interrupt::undoable(|| {
        let run = RunDir::create(&folder, force)?;
        let (unbegun, folder) = (run.clone(), folder.clone());
        let undo: Undo = Box::new(move || {
            // Nothing was trained: the folder is left as it was.
            let left = unbegun.give_up();
            if !was_there {
                let _ = std::fs::remove_file(unbegun.path(LOCK)).and_then(|()| std::fs::remove_dir(&folder));
            }
            left
        });
        Ok((run, undo))
    })?;
    notes.extend(asked.notes);
    let mut prepare = || -> Result<(Setup, BTreeMap<String, String>)> {
        run.save_config(&config)?;
        let mut metadata = known.cloned().unwrap_or_default();
        let source = match (&config.checkpoint, &merge) {
            (Some(checkpoint), None) => Source::Checkpoint { path: checkpoint.clone(), root: config.root.clone() },
            (Some(checkpoint), Some(merge)) => {
                let merged = run.path(MERGED);
                let vlmerge = sitting.vlmerge.as_deref();
                notes.extend(merge.run(vlmerge, checkpoint, config.root.as_deref(), task, &merged)?);
                metadata = Checkpoint::read(&merged, None)?.metadata;
                Source::Checkpoint { path: merged, root: None }
            }
            (None, _) => scratch(&config)?,
        };
        let setup = Setup {
            config: config.clone(),
            task,
            source,
            image_size: asked.image_size,
            text_len: asked.text_len,
            labels: data.head_labels(task),
            replaced_head: data.replaced_head.clone(),
        };
        Ok((setup, metadata))
    };
    let prepared = prepare().and_then(|(setup, metadata)| Ok((open(&setup)?, setup, metadata)));
    let (ready, setup, metadata) = match prepared {
        Ok(prepared) => prepared,
        Err(e) => {
            return Err(match (unbegun.undo(), run.earlier()) {
                (Err(_), Some(earlier)) => e.context(format!("the earlier run is in {}", show_path(&earlier))),
                _ => e,
            });
        }
    };
    let metadata = history::for_training(metadata);
    Run { run, setup, data, steps, metadata, sitting, notes }.train(ready, None, Some(unbegun))
}

/// What may be another than the run's configuration says when it is resumed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Changes {
    /// For this sitting.
    pub device: Option<Choice>,
    /// From now on: a finished run goes on, the schedule is one of the new length.
    pub length: Option<Length>,
    /// From now on: the share of a split's rows that may be broken, 0 to 1.
    pub max_broken: Option<f64>,
    /// From now on there is no validation.
    pub no_validation: bool,
}

/// How long a run is in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Epochs(u64),
    Steps(u64),
}

/// Goes on with a run.
///
/// # Errors
/// There is no run in the folder, its data has changed, it is already longer than it shall be, and as [`start`].
pub fn resume(
    folder: &Path,
    changes: &Changes,
    sitting: &Sitting,
    open: &mut dyn FnMut(&Setup) -> Result<Ready>,
) -> Result<Finished> {
    let run = RunDir::open(folder)?;
    let _lock = run.lock()?;
    let (mut config, task, _) = complete(run.config()?)?;
    match changes.length {
        Some(Length::Epochs(epochs)) => (config.epochs, config.steps) = (Some(epochs), None),
        Some(Length::Steps(steps)) => (config.epochs, config.steps) = (None, Some(steps)),
        None => {}
    }
    config.max_broken = changes.max_broken.unwrap_or(config.max_broken);
    if changes.no_validation {
        (config.validate, config.val_split, config.val_limit) = (false, None, None);
    }
    config.check().map_err(Error::Usage)?;
    let lasting = config.clone();
    config.device = changes.device.unwrap_or(config.device);
    let mut saved = run.newest()?;
    let merged = Some(run.path(MERGED)).filter(|merged| config.merge.is_some() && merged.is_file());
    let source = match (&saved, merged, &config.checkpoint) {
        (Some(saved), _, _) => Source::Checkpoint { path: saved.weights.clone(), root: None },
        (None, Some(merged), _) => Source::Checkpoint { path: merged, root: None },
        (None, None, Some(_)) if config.merge.is_some() => {
            bail!("{}: this run never began: start it anew, with --force", show_path(folder))
        }
        (None, None, Some(checkpoint)) => Source::Checkpoint { path: checkpoint.clone(), root: config.root.clone() },
        (None, None, None) => scratch(&config)?,
    };
    let checkpoint = match &source {
        Source::Checkpoint { path, root } => Some(Checkpoint::read(path, root.as_deref())?),
        Source::Scratch { .. } => None,
    };
    // A checkpoint of this run has its sizes already.
    let Asked { image_size, text_len, mut notes } = match saved {
        Some(_) => Asked::default(),
        None => sizes(&config, checkpoint.as_ref())?,
    };
    let head_of = match (&saved, &checkpoint) {
        (Some(_), Some(checkpoint)) => HeadOf::Run(&checkpoint.metadata),
        (_, checkpoint) => HeadOf::Checkpoint(checkpoint.as_ref()),
    };
    let data = Data::open(&config, task, head_of)?;
    let metadata = checkpoint.map(|checkpoint| checkpoint.metadata).unwrap_or_default();
    let steps = planned(&config, &data)?;
    if let Some(Saved { state, .. }) = &mut saved {
        let (then, now) = (state.examples, data.train.len() as u64);
        if then != now {
            bail!("{}: it has {now} training examples now, and had {then} when this run began", data.train.name());
        }
        let done = state.step;
        if steps < done {
            let asked = match changes.length {
                Some(Length::Epochs(epochs)) => format!(
                    "{} {} {}",
                    count(epochs, "epoch", "epochs"),
                    if epochs == 1 { "is" } else { "are" },
                    count(steps, "update", "updates")
                ),
                _ => format!("it shall have {} in all", count(steps, "update", "updates")),
            };
            return Err(Error::Usage(format!("{}: {asked}, and {done} are done already", show_path(folder))).into());
        }
        if steps != state.steps {
            notes.push(new_length(&config, state, steps));
            // That this would be the end wasn't known when the update was made.
            state.evaluation_due |= steps == done;
        }
    }
    let labels = data.head_labels(task);
    let replaced_head = data.replaced_head.clone();
    let setup = Setup { config, task, source, image_size, text_len, labels, replaced_head };
    let ready = open(&setup)?;
    // A checkpoint of this run names what the run started from already.
    let metadata = if saved.is_some() { metadata } else { history::for_training(metadata) };
    if (Changes { device: None, ..*changes }) != Changes::default() {
        run.save_config(&lasting)?;
    }
    Run { run, setup, data, steps, metadata, sitting, notes }.train(ready, saved, None)
}

/// What a resumed run of another length does from now on.
fn new_length(config: &Config, state: &State, steps: u64) -> String {
    let (had, step) = (state.steps, state.step);
    let updates = count(steps, "update", "updates");
    let rate = |steps| match Schedule::new(config, steps).at(step) {
        0.0 => "0".to_owned(),
        rate => format!("{rate:.2e}"),
    };
    format!(
        "the run now has {updates} in all, not {had}: the schedule is one over {updates}, so that the learning rate goes \
         on at {} instead of {}",
        rate(steps),
        rate(had)
    )
}

/// Settles what is left open: the task, the file of a checkpoint, and absolute paths, so that the run can be resumed from
/// anywhere. With it, what is to be told about that.
fn complete(mut config: Config) -> Result<(Config, Task, Vec<String>)> {
    let usage = |reason: String| Error::Usage(reason);
    let mut notes = Vec::new();
    if config.pretrain.is_some() {
        return Err(usage("this configuration is for pre-training, which engine finetune doesn't do".into()).into());
    }
    let on_toy = config.data.as_deref().is_none_or(is_toy);
    let task = match (config.task, config.data.as_deref()) {
        (Some(task), _) => task,
        (None, Some(path)) if !on_toy => {
            data::only_task(path, config.data_set.as_deref(), &Task::ALL).map_err(|e| match e {
                data::Error::SeveralTasks { .. } => usage(e.to_string()).into(),
                e => anyhow::Error::from(e),
            })?
        }
        _ => Task::Vqa,
    };
    config.task = Some(task);
    if let Some(merge) = &mut config.merge {
        let (parsed, taken) = parse_merge(merge)?.with_files_of_runs()?;
        notes.extend(taken);
        let parsed = parsed.absolute();
        if config.checkpoint.is_none() {
            config.checkpoint = parsed.own_checkpoint()?;
        }
        *merge = parsed.to_string();
    }
    if config.merge.is_some() && config.checkpoint.is_none() {
        return Err(usage("--merge needs a checkpoint to merge".into()).into());
    }
    if let Some(checkpoint) = &mut config.checkpoint {
        let (file, note) = checkpoint_at(checkpoint)?;
        notes.extend(note);
        *checkpoint = file;
    }
    if config.root.is_some() && config.checkpoint.is_none() {
        return Err(
            usage("--root says where in a checkpoint the tensors are, and there is no checkpoint".into()).into()
        );
    }
    if config.head.is_some() && config.checkpoint.is_none() {
        return Err(usage("--head says what becomes of a checkpoint's head, and there is no checkpoint".into()).into());
    }
    if config.checkpoint.is_none() && config.model.is_none() {
        return Err(usage(
            "give a checkpoint to start from, or a [model] to start from scratch, as the presets toy and easy-vqa have"
                .into(),
        )
        .into());
    }
    let absolute = |path: &mut Option<PathBuf>| {
        if let Some(path) = path
            && let Ok(full) = path.canonicalize()
        {
            *path = full;
        }
    };
    absolute(&mut config.checkpoint);
    if !on_toy {
        absolute(&mut config.data);
    }
    if config.checkpoint.is_some() {
        // It says its own shape.
        config.model = None;
    }
    config.check().map_err(usage)?;
    Ok((config, task, notes))
}

fn parse_merge(text: &str) -> Result<Merge, Error> {
    text.parse().map_err(|e| Error::Usage(format!("--merge {text}: {e}")))
}

/// The files that a run begins with.
fn inputs(config: &Config, merge: Option<&Merge>) -> Vec<PathBuf> {
    config.checkpoint.iter().cloned().chain(merge.into_iter().flat_map(Merge::files)).collect()
}

fn is_toy(path: &Path) -> bool {
    path == Path::new(data::TOY) && !path.exists()
}

fn scratch(config: &Config) -> Result<Source> {
    let Some(shape) = config.model.clone() else { bail!("neither a checkpoint nor a [model] to start from") };
    Ok(Source::Scratch { shape, vocab_size: Tokenizer::bert().vocabulary_len() })
}

/// What can be known of a checkpoint without reading its tensors.
struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    metadata: BTreeMap<String, String>,
    /// Labels of the heads that it has.
    heads: BTreeMap<Task, usize>,
}

impl Checkpoint {
    fn read(path: &Path, root: Option<&str>) -> Result<Checkpoint> {
        let file = formats::open_root(path, root)?;
        let settled = file.layout().map(|layout| file.settled_config(layout)).transpose()?;
        let config = settled.map(|detected| detected.config).unwrap_or_default();
        let labels = |name: &str| {
            let is_it = |tensor: &&str| tensor.strip_prefix("module.").unwrap_or(tensor) == name;
            let found = file.tensors().iter().find(|info| is_it(&info.name.as_str()))?;
            found.shape.first().copied()
        };
        let last_layer = |task| match task {
            Task::Irtr => None,
            Task::Vqa => Some("vqa_classifier.3.weight"),
            Task::Nlvr2 => Some("nlvr2_classifier.3.weight"),
            Task::ImgCls => Some("img_cls_classifier.weight"),
        };
        let heads = Task::ALL.into_iter().filter_map(|task| Some((task, labels(last_layer(task)?)?))).collect();
        Ok(Checkpoint { path: path.to_owned(), config, metadata: file.metadata().clone(), heads })
    }
}

/// Image size and text length to open a model with, where they differ from its own, and what to tell about that.
#[derive(Default)]
struct Asked {
    image_size: Option<usize>,
    text_len: Option<usize>,
    notes: Vec<String>,
}

fn sizes(config: &Config, checkpoint: Option<&Checkpoint>) -> Result<Asked> {
    let mut notes = Vec::new();
    let words = Tokenizer::bert().vocabulary_len();
    if let Some(checkpoint) = checkpoint
        && let Some(known) = checkpoint.config.vocab_size.filter(|&known| known < words)
        && config.task != Some(Task::ImgCls)
    {
        bail!(
            "{}: its vocabulary has {known} word pieces, and texts are encoded with BERT's {words}",
            show_path(&checkpoint.path)
        );
    }
    let patch = match (checkpoint, &config.model) {
        (Some(checkpoint), _) => checkpoint.config.patch_size,
        (None, shape) => shape.as_ref().map(|shape| shape.patch_size),
    };
    if let (Some(size), Some(patch)) = (config.image_size, patch) {
        patches("image_size", size, patch).map_err(Error::Usage)?;
    }
    let longest = match (checkpoint, &config.model) {
        (Some(checkpoint), _) => checkpoint.config.max_text_len,
        (None, shape) => shape.as_ref().map(|shape| shape.text_len),
    };
    let text_len = match (config.text_len, longest) {
        (Some(wanted), Some(longest)) if wanted > longest => {
            let of = checkpoint.map_or("the model".into(), |checkpoint| show_path(&checkpoint.path).to_string());
            notes.push(format!("{of}: texts are cut to {longest} tokens, which it was made for, not {wanted}"));
            None
        }
        (wanted, _) => wanted,
    };
    Ok(Asked { image_size: config.image_size, text_len, notes })
}

/// Training and validation split.
struct Data {
    train: Arc<dyn Dataset>,
    /// `None` for a run without validation.
    val: Option<Arc<dyn Dataset>>,
    /// Of the head.
    labels: Arc<[String]>,
    replaced_head: Option<ReplacedHead>,
    toy: bool,
    /// Why the splits are others than usual, where they are.
    protocol: Option<String>,
    /// What there is to be told about the splits.
    notes: Vec<String>,
}

/// The splits of the configuration's `protocol = "paper"`.
fn papers_splits(config: &Config, path: &Path, task: Task) -> Result<Published, Error> {
    let usage = |reason: String| Err(Error::Usage(reason));
    if config.train_split.is_some() || config.val_split.is_some() {
        return usage(
            "protocol \"paper\" says which splits to use: leave out train_split and val_split, or protocol".into(),
        );
    }
    match data::published(path, task, config.data_set.as_deref()) {
        Some(splits) => Ok(splits),
        None => usage(format!(
            "{}: the paper has no protocol for {task} on this data set: leave out protocol \"paper\"",
            show_path(path)
        )),
    }
}

/// Whose head is trained.
#[derive(Clone, Copy)]
enum HeadOf<'a> {
    /// That of the checkpoint that a run starts from, if it has one.
    Checkpoint(Option<&'a Checkpoint>),
    /// That of the run itself, whose checkpoint has this metadata.
    Run(&'a BTreeMap<String, String>),
}

impl Data {
    /// Opens both splits, with the labels in the order of the head.
    fn open(config: &Config, task: Task, head_of: HeadOf) -> Result<Data> {
        let toy = config.data.as_deref().is_none_or(is_toy);
        let path = config.data.as_deref().unwrap_or(Path::new(data::TOY));
        let opening = Opening { preferred: config.data_set.as_deref(), max_broken: config.max_broken };
        let protocol = config.protocol.map(|Protocol::Paper| papers_splits(config, path, task)).transpose()?;
        let open = |split: &Option<String>, usual: &str| {
            data::open_as(path, task, split.as_deref().unwrap_or(usual), &opening)
        };
        let train = open(&config.train_split, protocol.map_or("train", |splits| splits.train))?;
        let StartingHead { labels, replaced, mut notes } = match head_of {
            HeadOf::Checkpoint(checkpoint) => starting_head(config, task, checkpoint, &train)?,
            HeadOf::Run(metadata) => {
                let labels = head_labels(metadata, task).unwrap_or_else(|| train.labels().to_vec());
                if let Some(other) = first_unknown(&train, &labels) {
                    let (name, count) = (train.name(), labels.len());
                    bail!("{name}: its answer '{other}' is not among the {count} labels that this run began with");
                }
                StartingHead { labels, ..StartingHead::default() }
            }
        };
        if matches!(task, Task::Vqa | Task::ImgCls) && labels.is_empty() {
            bail!("{}: it names no labels to learn", train.name());
        }
        let train = train.relabelled(&labels)?;
        let val = match config.validate {
            true => Some(open(&config.val_split, protocol.map_or("val", |splits| splits.val)).map_err(|e| match e {
                data::Error::Missing { .. } => anyhow::anyhow!(
                    "{e}: --no-validation trains without validation, --set val_split=NAME takes another split for it"
                ),
                e => e.into(),
            })?),
            false => None,
        };
        if let Some(val) = &val
            && let Some(file) = train.sources().iter().find(|file| val.sources().contains(file))
        {
            if config.train_split.is_some() != config.val_split.is_some() {
                bail!(
                    "{}: the training data ({}) and the validation data ({}) would share this file: take another split \
                     for validation (--set val_split=NAME), or train without validation (--no-validation)",
                    show_path(file),
                    train.name(),
                    val.name()
                );
            }
            if config.train_split.is_none() {
                bail!(
                    "{}: this would be both the training and the validation data: put each in a file of its own, named \
                     after its split as in pets_train and pets_val, and give the folder, or train without validation \
                     (--no-validation)",
                    show_path(file)
                );
            }
            notes.push(format!(
                "{} and {} share {}: the validation says how well the model remembers, not how well it generalises",
                train.name(),
                val.name(),
                show_path(file)
            ));
        }
        let val = val.map(|val| val.relabelled(&labels)).transpose()?;
        let val = val.map(|val| match config.val_limit {
            Some(limit) => val.truncated(limit),
            None => val,
        });
        let protocol = protocol.map(|_| match &val {
            Some(val) => format!(
                "protocol paper: trained on {} and validated on {}, as the Python code does{}",
                train.name(),
                val.name(),
                if val.name().contains("test") {
                    "; the best weights are those that score best on test data"
                } else {
                    ""
                }
            ),
            None => format!("protocol paper: trained on {}, as the Python code does", train.name()),
        });
        notes.extend(protocol.clone());
        let val = val.map(|val| Arc::new(val) as Arc<dyn Dataset>);
        let labels = labels.into();
        Ok(Data { train: Arc::new(train), val, labels, replaced_head: replaced, toy, protocol, notes })
    }

    fn head_labels(&self, task: Task) -> usize {
        match task {
            Task::Irtr => 0,
            Task::Nlvr2 => 2,
            Task::Vqa | Task::ImgCls => self.labels.len(),
        }
    }
}

/// What a head starts as.
#[derive(Default)]
struct StartingHead {
    /// In its order.
    labels: Vec<String>,
    /// Where it isn't the checkpoint's as it is.
    replaced: Option<ReplacedHead>,
    notes: Vec<String>,
}

/// What becomes of the checkpoint's head, by `head` in the configuration and by the labels that both sides have. A head
/// whose labels have no names counts them.
fn starting_head(
    config: &Config,
    task: Task,
    checkpoint: Option<&Checkpoint>,
    train: &Records,
) -> Result<StartingHead> {
    let data_labels = train.labels().to_vec();
    if let (Task::Irtr, Some(head)) = (task, config.head) {
        return Err(Error::Usage(format!(
            "--head {} is for vqa, nlvr2 and img_cls: retrieval has no labels, and its projections are always kept",
            head.name()
        ))
        .into());
    }
    let (Some(checkpoint), Some(name)) = (checkpoint, head_name(task)) else {
        return Ok(StartingHead { labels: data_labels, ..StartingHead::default() });
    };
    let shown = show_path(&checkpoint.path);
    let Some(&had) = checkpoint.heads.get(&task) else {
        if config.head == Some(Head::Keep) {
            bail!("{shown}: it has no {task} head to keep: leave --head out, or give --head new");
        }
        let note = format!("{shown}: it has no {task} head, of which --head match could keep rows: a new one is made");
        let notes = if config.head == Some(Head::Match) { vec![note] } else { Vec::new() };
        return Ok(StartingHead { labels: data_labels, notes, ..StartingHead::default() });
    };
    // NLVR2's two labels, false and true, are the same everywhere.
    let wanted = if task == Task::Nlvr2 { 2 } else { data_labels.len() };
    let named = head_labels(&checkpoint.metadata, task);
    if let Some(names) = named.as_ref().filter(|names| names.len() != had && config.head != Some(Head::New)) {
        bail!(
            "{shown}: its {task} head has {had} labels, and its metadata names {}: --head new starts with a new head",
            names.len()
        );
    }
    let unknown = named.as_ref().and_then(|names| first_unknown(train, names));
    let fits = match &named {
        Some(_) => unknown.is_none(),
        None => had == wanted,
    };
    let differ = match &unknown {
        Some(label) => {
            format!("the label '{label}' of the data ({}) is none of the {had} of its {task} head", train.name())
        }
        None => {
            format!("its {task} head has {had} labels without names, and the data ({}) have {wanted}", train.name())
        }
    };
    let replaced = |rows: Vec<Option<usize>>, note: String| StartingHead {
        labels: data_labels.clone(),
        replaced: Some(ReplacedHead { name, rows }),
        notes: vec![format!("{shown}: {note}")],
    };
    let kept = || {
        let unnamed = named.is_none() && task != Task::Nlvr2;
        let note = || {
            format!(
                "{shown}: its {task} head has {had} labels without names: they are taken to be the labels of the data \
                 ({}), in the same order (--head new starts with a new head)",
                train.name()
            )
        };
        StartingHead {
            labels: named.clone().unwrap_or(data_labels.clone()),
            replaced: None,
            notes: unnamed.then(note).into_iter().collect(),
        }
    };
    match config.head {
        Some(Head::Keep) | None if fits => Ok(kept()),
        Some(Head::Keep) => bail!(
            "{shown}: {differ}: --head match keeps the rows of labels that both name, --head new starts with a new head"
        ),
        None => Ok(replaced(
            Vec::new(),
            format!("{differ}: a new head takes its place (--head match keeps the rows of labels that both name)"),
        )),
        Some(Head::New) => {
            Ok(replaced(Vec::new(), format!("a new {task} head of {wanted} labels takes the place of its {had}")))
        }
        Some(Head::Match) if named.is_none() && fits || named.as_ref() == Some(&data_labels) => Ok(kept()),
        Some(Head::Match) => {
            let names = named.clone().unwrap_or_else(|| (0..had).map(|label| label.to_string()).collect());
            let rows: Vec<Option<usize>> =
                data_labels.iter().map(|label| names.iter().position(|name| name == label)).collect();
            let count = rows.iter().flatten().count();
            let note = format!(
                "{count} of {wanted} labels keep their rows of its {task} head of {had}, the others start anew"
            );
            Ok(replaced(rows, note))
        }
    }
}

/// The first label of the data that is none of `labels`.
fn first_unknown(data: &Records, labels: &[String]) -> Option<String> {
    let known: std::collections::HashSet<&str> = labels.iter().map(String::as_str).collect();
    data.labels().iter().find(|label| !known.contains(label.as_str())).map(|label| show_name(label))
}

/// How the tensors' names begin of the head that a task's labels belong to.
fn head_name(task: Task) -> Option<&'static str> {
    match task {
        Task::Irtr => None,
        Task::Vqa => Some("vqa_classifier"),
        Task::Nlvr2 => Some("nlvr2_classifier"),
        Task::ImgCls => Some("img_cls_classifier"),
    }
}

/// The label names that a checkpoint's metadata gives for the task's head.
pub fn head_labels(metadata: &BTreeMap<String, String>, task: Task) -> Option<Vec<String>> {
    serde_json::from_str(metadata.get(&labels_key(task))?).ok()
}

/// Updates of the run.
fn planned(config: &Config, data: &Data) -> Result<u64, Error> {
    let (examples, part) = (data.train.len(), config.part_size());
    if examples < part {
        let name = data.train.name();
        return Err(Error::Usage(format!(
            "{name}: {examples} training examples don't fill a batch of {part}: lower batch_size"
        )));
    }
    let steps = match (config.steps, config.epochs) {
        (Some(steps), _) => steps,
        (None, epochs) => steps_of(epochs.unwrap_or(1), (examples / part) as u64, config.accumulate as u64),
    };
    match steps {
        0 => Err(Error::Usage(format!(
            "{examples} training examples, {} times, don't fill a batch of {}: lower batch_size",
            config.epochs.unwrap_or(1),
            config.batch_size
        ))),
        steps => Ok(steps),
    }
}

/// A run about to train.
struct Run<'a> {
    run: RunDir,
    setup: Setup,
    data: Data,
    steps: u64,
    /// Of the checkpoint that it starts from.
    metadata: BTreeMap<String, String>,
    sitting: &'a Sitting<'a>,
    notes: Vec<String>,
}

impl Run<'_> {
    /// `unbegun`: how to leave the folder as it was, until training begins.
    fn train(self, ready: Ready, saved: Option<Saved>, unbegun: Option<Undoable>) -> Result<Finished> {
        let Ready { mut trainer, device, notes } = ready;
        let config = &self.setup.config;
        let resumed = saved.is_some();
        let state = match saved {
            Some(saved) => {
                // It was opened with the weights that were saved beside this.
                trainer.restore_optimizer(&saved.optimizer)?;
                State { steps: self.steps, ..saved.state }
            }
            None => State {
                steps: self.steps,
                seed: config.seed,
                examples: self.data.train.len() as u64,
                ..State::default()
            },
        };
        let sizes = Sizes::of(trainer.runner().as_ref());
        let tokenizer = Arc::new(Tokenizer::bert());
        let batches = TrainData {
            set: self.data.train.clone(),
            tokenizer: tokenizer.clone(),
            sizes,
            transform: transform(config, sizes.image),
            batch_size: config.part_size(),
            labels: self.data.head_labels(self.setup.task),
            seed: config.seed,
            workers: config.workers(),
            once: false,
        };
        let over = self.data.val.clone().map(|set| Evaluation {
            set,
            tokenizer,
            batch_size: config.eval_batch_size(),
            workers: config.workers(),
            labels: self.data.labels.clone(),
        });
        let result = self.facts(trainer.as_ref(), &device);
        let mut recorder = Recorder::new(&self.run, &state, resumed, result, self.sitting.quiet)?;
        recorder.tell_broken_rows(std::iter::once(&self.data.train).chain(&self.data.val).cloned().collect());
        for note in
            self.introduction(trainer.as_ref(), &device, &state).into_iter().chain(self.notes.clone()).chain(notes)
        {
            recorder.say(&note);
        }
        let mut evaluate = over.as_ref().map(|over| {
            move |runner: &dyn Runner| -> Result<Scores> {
                let outcome = tasks::evaluate(runner, over, &mut |_| Ok(()))?.outcome;
                let main = outcome.headline().map(|metric| metric.name).unwrap_or_default();
                let metrics = outcome.metrics().into_iter().map(|metric| (metric.name.to_owned(), metric.value));
                Ok(Scores::new(main, metrics))
            }
        });
        let fit = Fit {
            config,
            schedule: Schedule::new(config, self.steps),
            run: &self.run,
            batches: &batches,
            evaluate: evaluate.as_mut().map(|evaluate| evaluate as _),
            watch: &mut recorder,
            stop: self.sitting.stop,
            metadata: self.carried(),
        };
        // From here on a signal lets the loop save a checkpoint; outside it, there is nothing that would.
        let heeding = interrupt::heed();
        drop(unbegun);
        let outcome = fit::fit(trainer.as_mut(), state, fit);
        drop(heeding);
        for set in std::iter::once(&self.data.train).chain(&self.data.val) {
            let (broken, rows) = (set.broken().count(), set.broken().rows());
            if broken > 0 {
                recorder.say(&format!("{}: {broken} of {rows} rows were broken and skipped", set.name()));
            }
        }
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(e) => {
                // The error itself is what the user must see.
                let _ = recorder.end(None, Status::Failed, Some(format!("{e:#}")));
                return Err(match self.run.earlier() {
                    Some(earlier) => e.context(format!("the earlier run is still in {}", show_path(&earlier))),
                    None => e,
                });
            }
        };
        let (status, state) = match &outcome {
            Outcome::Finished(state) => (Status::Finished, state),
            Outcome::Interrupted(state) => (Status::Interrupted, state),
        };
        recorder.end(Some(state), status, None)?;
        if let Some(over) = over.filter(|_| status == Status::Finished && config.samples > 0) {
            formats::signals::pause_at("samples");
            let shown = tasks::samples(trainer.runner().as_ref(), &over, config.samples)?;
            write_samples(&self.run, shown).context("sample predictions")?;
        }
        let result = recorder.result().clone();
        Ok(Finished { folder: self.run.folder().to_owned(), outcome, result, toy: self.data.toy })
    }

    fn facts(&self, trainer: &dyn Trainer, device: &str) -> RunResult {
        RunResult {
            version: env!("CARGO_PKG_VERSION").into(),
            task: self.setup.task.to_string(),
            steps: self.steps,
            train_data: self.data.train.name().into(),
            train_examples: self.data.train.len() as u64,
            validation_data: self.data.val.as_ref().map(|val| val.name().to_owned()).unwrap_or_default(),
            protocol: self.data.protocol.clone(),
            parameters: trainer.parameters() as u64,
            device: device.into(),
            recipe: self.metadata.get(RECIPE_KEY).and_then(|text| serde_json::from_str(text).ok()),
            ..RunResult::default()
        }
    }

    fn introduction(&self, trainer: &dyn Trainer, device: &str, state: &State) -> Vec<String> {
        let config = &self.setup.config;
        let mut lines = Vec::new();
        if self.data.toy {
            lines.push("training on the built-in toy data set; --data DIR takes another".into());
        }
        lines.extend(self.data.notes.iter().cloned());
        let parts = match config.accumulate {
            1 => String::new(),
            parts => format!(" in {parts} parts"),
        };
        lines.push(format!(
            "{}: {:.1} M parameters on {device}; {} of {}, {} with batches of {}{parts}",
            self.setup.task,
            trainer.parameters() as f64 / 1e6,
            count(self.data.train.len(), "example", "examples"),
            self.data.train.name(),
            count(self.steps, "update", "updates"),
            config.batch_size
        ));
        if self.setup.task == Task::Irtr && config.accumulate > 1 {
            lines.push(format!("each pair is contrasted with the {} others of its part", config.part_size() - 1));
        }
        if self.data.val.is_none() {
            lines.push("without validation: only the last weights are kept".into());
        }
        if state.step > 0 {
            lines.push(format!("resumed after {}", count(state.step, "update", "updates")));
        }
        lines
    }

    /// What a checkpoint of this run says of itself beside its step: all that the first one said, the configuration, the
    /// head's labels.
    fn carried(&self) -> Vec<(String, String)> {
        let mut metadata = self.metadata.clone();
        metadata.retain(|key, _| {
            key != CONFIG_KEY && key != "format" && !["engine.step", "engine.run"].contains(&key.as_str())
        });
        if let Ok(config) = self.setup.config.to_toml() {
            metadata.insert("engine.run".into(), config);
        }
        metadata.insert("engine.version".into(), env!("CARGO_PKG_VERSION").into());
        metadata.insert("engine.task".into(), self.setup.task.to_string());
        if !self.data.labels.is_empty() {
            let labels = serde_json::to_string(&*self.data.labels).unwrap_or_default();
            metadata.insert(labels_key(self.setup.task), labels);
        }
        metadata.into_iter().collect()
    }
}

/// What training images go through.
fn transform(config: &Config, size: usize) -> Transform {
    let [low, high] = config.crop_scale;
    let plain = Training { flip: config.flip, scale: (low, high), augment: None, ..Training::new(size) };
    match config.augment {
        Augment::None => Transform::Evaluation,
        Augment::Crop => Transform::Training(plain),
        Augment::RandAugment => {
            let augment = RandAugment {
                count: config.randaugment_ops,
                strength: config.randaugment_magnitude,
                ..RandAugment::default()
            };
            Transform::Training(Training { augment: Some(augment), ..plain })
        }
    }
}

/// Writes `samples.json` and its images.
fn write_samples(run: &RunDir, shown: Vec<tasks::Shown>) -> Result<()> {
    let folder = run.path(SAMPLE_IMAGES);
    std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", show_path(&folder)))?;
    let mut samples = Vec::with_capacity(shown.len());
    let mut number = 0;
    for tasks::Shown { mut sample, images } in shown {
        for (image, bytes) in sample.images.iter_mut().zip(&images) {
            number += 1;
            image.file = format!("{SAMPLE_IMAGES}/{number:04}.jpg");
            formats::write::write_file(&run.path(&image.file), bytes)?;
        }
        samples.push(sample);
    }
    let text = serde_json::to_string_pretty(&samples)? + "\n";
    Ok(formats::write::write_file(&run.path(SAMPLES), text.as_bytes())?)
}

#[cfg(test)]
mod tests;
