//! A whole run: from a configuration to a folder with trained weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use formats::config::ModelConfig;
use formats::history::{self, RECIPE_KEY};
use formats::{CONFIG_KEY, show_name, show_path};

use super::config::{Augment, Config, ModelShape, Protocol, patches};
use super::fit::{self, Fit, Outcome, Scores, steps_of};
use super::merge_in::Merge;
use super::recorder::Recorder;
use super::resolve::Error;
use super::run_dir::{LOCK, MERGED, RunDir, Saved, State};
use super::schedule::Schedule;
use crate::data::{self, Dataset, Opening, Published};
use crate::image::{RandAugment, Training};
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
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Checkpoint(PathBuf),
    /// Random weights; the vocabulary is the tokenizer's.
    Scratch {
        shape: ModelShape,
        vocab_size: usize,
    },
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
    let (config, task) = complete(config)?;
    let taken = RunDir::check(folder, force)?;
    for input in inputs(&config) {
        if taken.would_replace(&input) {
            bail!(
                "{}: this file is of the run that --force would replace: choose another folder for the new run",
                show_path(&input)
            );
        }
    }
    let checkpoint = config.checkpoint.as_deref().map(Checkpoint::read).transpose()?;
    let Asked { image_size, text_len, mut notes } = sizes(&config, checkpoint.as_ref())?;
    let known = checkpoint.as_ref().map(|checkpoint| &checkpoint.metadata);
    let data = Data::open(&config, task, known)?;
    let steps = planned(&config, &data)?;
    let was_there = folder.exists();
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the run's folder", show_path(folder)))?;
    let _lock = taken.lock()?;
    let run = RunDir::create(folder, force)?;
    let mut prepare = || -> Result<(Setup, BTreeMap<String, String>)> {
        run.save_config(&config)?;
        let mut metadata = known.cloned().unwrap_or_default();
        let source = match (&config.checkpoint, &config.merge) {
            (Some(checkpoint), None) => Source::Checkpoint(checkpoint.clone()),
            (Some(checkpoint), Some(merge)) => {
                let merge: Merge = merge.parse().map_err(|e| Error::Usage(format!("--merge {merge}: {e}")))?;
                let merged = run.path(MERGED);
                notes.extend(merge.run(sitting.vlmerge.as_deref(), checkpoint, task, &merged)?);
                metadata = Checkpoint::read(&merged)?.metadata;
                Source::Checkpoint(merged)
            }
            (None, _) => scratch(&config)?,
        };
        let labels = data.head_labels(task);
        Ok((Setup { config: config.clone(), task, source, image_size, text_len, labels }, metadata))
    };
    let prepared = prepare().and_then(|(setup, metadata)| Ok((open(&setup)?, setup, metadata)));
    let (ready, setup, metadata) = prepared.map_err(|e| {
        // Nothing was trained: the folder is left as it was.
        let left = run.give_up();
        if !was_there {
            let _ = std::fs::remove_file(run.path(LOCK)).and_then(|()| std::fs::remove_dir(folder));
        }
        match (left, run.earlier()) {
            (Err(_), Some(earlier)) => e.context(format!("the earlier run is in {}", show_path(&earlier))),
            _ => e,
        }
    })?;
    let metadata = history::for_training(metadata);
    Run { run, setup, data, steps, metadata, sitting, notes }.train(ready, None)
}

/// Goes on with a run. `device` replaces the one in its configuration.
///
/// # Errors
/// There is no run in the folder, its data has changed, and as [`start`].
pub fn resume(
    folder: &Path,
    device: Option<crate::device::Choice>,
    sitting: &Sitting,
    open: &mut dyn FnMut(&Setup) -> Result<Ready>,
) -> Result<Finished> {
    let run = RunDir::open(folder)?;
    let _lock = run.lock()?;
    let (mut config, task) = complete(run.config()?)?;
    config.device = device.unwrap_or(config.device);
    let saved = run.newest()?;
    let merged = Some(run.path(MERGED)).filter(|merged| config.merge.is_some() && merged.is_file());
    let source = match (&saved, merged, &config.checkpoint) {
        (Some(saved), _, _) => Source::Checkpoint(saved.weights.clone()),
        (None, Some(merged), _) => Source::Checkpoint(merged),
        (None, None, Some(_)) if config.merge.is_some() => {
            bail!("{}: this run never began: start it anew, with --force", show_path(folder))
        }
        (None, None, Some(checkpoint)) => Source::Checkpoint(checkpoint.clone()),
        (None, None, None) => scratch(&config)?,
    };
    let checkpoint = match &source {
        Source::Checkpoint(path) => Some(Checkpoint::read(path)?),
        Source::Scratch { .. } => None,
    };
    // A checkpoint of this run has its sizes already.
    let Asked { image_size, text_len, notes } = match saved {
        Some(_) => Asked::default(),
        None => sizes(&config, checkpoint.as_ref())?,
    };
    let metadata = checkpoint.map(|checkpoint| checkpoint.metadata).unwrap_or_default();
    let data = Data::open(&config, task, Some(&metadata))?;
    let steps = planned(&config, &data)?;
    if let Some(saved) = &saved {
        let (then, now) = (saved.state.examples, data.train.len() as u64);
        if then != now {
            bail!("{}: it has {now} training examples now, and had {then} when this run began", data.train.name());
        }
    }
    let labels = data.head_labels(task);
    let setup = Setup { config, task, source, image_size, text_len, labels };
    let ready = open(&setup)?;
    // A checkpoint of this run names what the run started from already.
    let metadata = if saved.is_some() { metadata } else { history::for_training(metadata) };
    Run { run, setup, data, steps, metadata, sitting, notes }.train(ready, saved)
}

/// Settles what is left open: the task, and absolute paths, so that the run can be resumed from anywhere.
fn complete(mut config: Config) -> Result<(Config, Task), Error> {
    let usage = |reason: String| Error::Usage(reason);
    if config.pretrain.is_some() {
        return Err(usage("this configuration is for pre-training, which engine finetune doesn't do".into()));
    }
    let on_toy = config.data.as_deref().is_none_or(is_toy);
    let task = match config.task {
        Some(task) => task,
        None if on_toy => Task::Vqa,
        None => return Err(usage("which task? give --task irtr, vqa, nlvr2 or img_cls, or a --preset".into())),
    };
    config.task = Some(task);
    if config.merge.is_some() && config.checkpoint.is_none() {
        return Err(usage("--merge needs a checkpoint to merge".into()));
    }
    if let Some(merge) = &mut config.merge {
        let parsed = merge.parse::<Merge>().map_err(|e| usage(format!("--merge {merge}: {e}")))?;
        *merge = parsed.absolute().to_string();
    }
    if config.checkpoint.is_none() && config.model.is_none() {
        return Err(usage(
            "give a checkpoint to start from, or a [model] to start from scratch, as the presets toy and easy-vqa have"
                .into(),
        ));
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
    Ok((config, task))
}

/// The files that a run begins with.
fn inputs(config: &Config) -> Vec<PathBuf> {
    let merged_with = match config.merge.as_ref().map(|merge| merge.parse()) {
        Some(Ok(Merge::Arithmetic { base: file, .. } | Merge::RegMean { grams: file })) => Some(file),
        _ => None,
    };
    config.checkpoint.iter().cloned().chain(merged_with).collect()
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
}

impl Checkpoint {
    fn read(path: &Path) -> Result<Checkpoint> {
        let file = formats::open(path)?;
        let settled = file.layout().map(|layout| file.settled_config(layout)).transpose()?;
        let config = settled.map(|detected| detected.config).unwrap_or_default();
        Ok(Checkpoint { path: path.to_owned(), config, metadata: file.metadata().clone() })
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
    val: Arc<dyn Dataset>,
    /// Of the head.
    labels: Arc<[String]>,
    toy: bool,
    /// Why the splits are others than usual, where they are.
    protocol: Option<String>,
    /// What there is to be told about the splits.
    notes: Vec<String>,
}

/// The splits of the configuration's `protocol = "paper"`.
fn papers_splits(config: &Config, path: &Path, task: Task) -> Result<Published, Error> {
    let usage = |reason: String| Err(Error::Usage(reason));
    if config.train_split.is_some() || config.val_split.as_deref().is_some_and(|split| split != "none") {
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

impl Data {
    /// Opens both splits, with the labels in the order of the head of the checkpoint, whose metadata these are.
    fn open(config: &Config, task: Task, metadata: Option<&BTreeMap<String, String>>) -> Result<Data> {
        let toy = config.data.as_deref().is_none_or(is_toy);
        let path = config.data.as_deref().unwrap_or(Path::new(data::TOY));
        let opening = Opening { preferred: config.data_set.as_deref(), max_broken: config.max_broken };
        let protocol = config.protocol.map(|Protocol::Paper| papers_splits(config, path, task)).transpose()?;
        let open = |split: &Option<String>, usual: &str| {
            data::open_as(path, task, split.as_deref().unwrap_or(usual), &opening)
        };
        let train = open(&config.train_split, protocol.map_or("train", |splits| splits.train))?;
        let kept = metadata.and_then(|metadata| head_labels(metadata, task));
        let labels: Vec<String> = match kept {
            Some(kept) => {
                if let Some(other) = train.labels().iter().find(|label| !kept.contains(label)) {
                    bail!(
                        "{}: its answer '{}' is not among the {} that the checkpoint's head stands for: start from a \
                         checkpoint without a {task} head",
                        train.name(),
                        show_name(other),
                        kept.len()
                    );
                }
                kept
            }
            None => train.labels().to_vec(),
        };
        if matches!(task, Task::Vqa | Task::ImgCls) && labels.is_empty() {
            bail!("{}: it names no labels to learn", train.name());
        }
        let train = train.relabelled(&labels)?;
        let val = open(&config.val_split, protocol.map_or("val", |splits| splits.val))?;
        let mut notes = Vec::new();
        if let Some(file) = train.sources().iter().find(|file| val.sources().contains(file)) {
            if config.train_split.is_none() || config.val_split.is_none() {
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
        let val = val.relabelled(&labels)?;
        let val = match config.val_limit {
            Some(limit) => val.truncated(limit),
            None => val,
        };
        let protocol = protocol.map(|_| {
            format!(
                "protocol paper: trained on {} and validated on {}, as the Python code does{}",
                train.name(),
                val.name(),
                if val.name().contains("test") {
                    "; the best weights are those that score best on test data"
                } else {
                    ""
                }
            )
        });
        notes.extend(protocol.clone());
        Ok(Data { train: Arc::new(train), val: Arc::new(val), labels: labels.into(), toy, protocol, notes })
    }

    fn head_labels(&self, task: Task) -> usize {
        match task {
            Task::Irtr => 0,
            Task::Nlvr2 => 2,
            Task::Vqa | Task::ImgCls => self.labels.len(),
        }
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
    fn train(self, ready: Ready, saved: Option<Saved>) -> Result<Finished> {
        let Ready { mut trainer, device, notes } = ready;
        let config = &self.setup.config;
        let resumed = saved.is_some();
        let state = match saved {
            Some(saved) => {
                trainer.restore(&saved.weights, &saved.optimizer)?;
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
        let over = Evaluation {
            set: self.data.val.clone(),
            tokenizer,
            batch_size: config.eval_batch_size(),
            workers: config.workers(),
            labels: self.data.labels.clone(),
        };
        let result = self.facts(trainer.as_ref(), &device);
        let mut recorder = Recorder::new(&self.run, &state, resumed, result, self.sitting.quiet)?;
        recorder.tell_broken_rows(vec![self.data.train.clone(), self.data.val.clone()]);
        for note in
            self.introduction(trainer.as_ref(), &device, &state).into_iter().chain(self.notes.clone()).chain(notes)
        {
            recorder.say(&note);
        }
        let mut evaluate = |runner: &dyn Runner| -> Result<Scores> {
            let outcome = tasks::evaluate(runner, &over, &mut |_| Ok(()))?.outcome;
            let main = outcome.headline().map(|metric| metric.name).unwrap_or_default();
            let metrics = outcome.metrics().into_iter().map(|metric| (metric.name.to_owned(), metric.value));
            Ok(Scores::new(main, metrics))
        };
        let fit = Fit {
            config,
            schedule: Schedule::new(config, self.steps),
            run: &self.run,
            batches: &batches,
            evaluate: &mut evaluate,
            watch: &mut recorder,
            stop: self.sitting.stop,
            metadata: self.carried(),
        };
        let outcome = fit::fit(trainer.as_mut(), state, fit);
        for set in [&self.data.train, &self.data.val] {
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
        if status == Status::Finished && config.samples > 0 {
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
            validation_data: self.data.val.name().into(),
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
