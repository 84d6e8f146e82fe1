//! The training loop.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use formats::show_path;
use serde_json::{Map, Value};

use super::bad_batch;
use super::config::Config;
use super::run_dir::{BAD_BATCH, Best, RunDir, State};
use super::schedule::Schedule;
use crate::batch::{Images, Matrix, Texts, TrainBatch};
use crate::report::terminal::count;
use crate::runner::Runner;
use crate::trainer::Trainer;

/// Training batches, in an order that follows from the seed, the epoch and the place in it alone.
pub trait Batches {
    /// Training examples.
    fn examples(&self) -> u64;

    /// Batches of an epoch.
    fn per_epoch(&self) -> u64;

    /// Batches from one of an epoch on, both counted from 0; epoch follows epoch without end. Batches of which nothing
    /// is left, as their rows are broken, are left out.
    ///
    /// # Errors
    /// The data can't be read; the iterator's items say so too.
    fn from(&self, epoch: u64, batch: u64) -> Result<Box<dyn Iterator<Item = Result<Placed>> + '_>>;
}

/// A batch and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    pub epoch: u64,
    pub batch: u64,
    pub examples: TrainBatch,
}

/// What an evaluation found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// By name, as `recall_at_1`; shares from 0 to 1.
    pub metrics: Map<String, Value>,
    /// The metric that decides which weights are best: more is better.
    pub main: String,
}

impl Scores {
    pub fn new(main: &str, metrics: impl IntoIterator<Item = (String, f64)>) -> Scores {
        let metrics = metrics.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
        Scores { metrics, main: main.into() }
    }

    /// The deciding metric's value.
    pub fn value(&self) -> Option<f64> {
        self.metrics.get(&self.main).and_then(Value::as_f64).filter(|value| value.is_finite())
    }
}

/// One update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLine {
    /// Updates done, this one included.
    pub step: u64,
    /// Passes over the data, this update included.
    pub epoch: f64,
    pub loss: f64,
    pub lr: f64,
    pub gradient_norm: f64,
    pub examples: usize,
    pub seconds: f64,
    /// Of these, waiting for data.
    pub wait_seconds: f64,
    /// Whether it is one of every `log_every`, or the last.
    pub logged: bool,
}

/// Who is told of what happens.
pub trait Watch {
    fn step(&mut self, line: &StepLine) -> Result<()>;
    /// `best`: better than all before it.
    fn evaluation(&mut self, step: u64, scores: &Scores, best: bool) -> Result<()>;
    /// A checkpoint is on the disk.
    fn saved(&mut self, state: &State) -> Result<()>;
}

/// How a sitting ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Finished(State),
    /// Asked to stop; the state is saved.
    Interrupted(State),
}

/// An evaluation was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Scores a model on the validation split.
pub type Evaluate<'a> = dyn FnMut(&dyn Runner) -> Result<Scores> + 'a;

/// Everything a sitting needs beside the model.
pub struct Fit<'a> {
    pub config: &'a Config,
    pub schedule: Schedule,
    pub run: &'a RunDir,
    pub batches: &'a dyn Batches,
    /// Evaluates on the validation split, where there is one.
    pub evaluate: Option<&'a mut Evaluate<'a>>,
    pub watch: &'a mut dyn Watch,
    /// Set from outside to end the sitting with a checkpoint.
    pub stop: &'a AtomicBool,
    /// For every checkpoint, beside what is known here.
    pub metadata: Vec<(String, String)>,
}

/// Updates in `epochs` passes, as the Python code counts them: whole updates of all passes together.
pub fn steps_of(epochs: u64, batches_per_epoch: u64, accumulate: u64) -> u64 {
    (u128::from(epochs) * u128::from(batches_per_epoch) / u128::from(accumulate.max(1))).min(u128::from(u64::MAX))
        as u64
}

/// Whether a pass over the data ends with this update, the `step`th.
fn ends_epoch(step: u64, batches_per_epoch: u64, accumulate: u64) -> bool {
    let (step, per_epoch, accumulate) =
        (u128::from(step), u128::from(batches_per_epoch.max(1)), u128::from(accumulate));
    let epoch = (step * accumulate).div_ceil(per_epoch);
    step > 0 && epoch * per_epoch / accumulate == step
}

/// Trains from `state` to the end of the schedule.
///
/// An update goes over `accumulate` batches, whose gradients are averaged. `irtr`'s loss contrasts the pairs within one
/// of them: accumulation makes the gradient less noisy there and doesn't add negatives.
///
/// # Errors
/// A loss or gradient that isn't finite: no weight has changed, and the update's batches are in the run's folder. Data
/// that can't be read or of which too much is broken: a checkpoint is saved first. A checkpoint that can't be saved, a
/// device out of memory; earlier checkpoints stay usable.
pub fn fit(trainer: &mut dyn Trainer, state: State, fit: Fit) -> Result<Outcome> {
    let resumed = (state.step > 0 || state.evaluation_due).then_some(state.step);
    Sitting { fit, state, saved: resumed, began: Instant::now(), before: 0.0 }.run(trainer)
}

struct Sitting<'a> {
    fit: Fit<'a>,
    state: State,
    /// The step of the checkpoint that the folder holds, where nothing has happened since.
    saved: Option<u64>,
    began: Instant,
    /// Seconds of earlier sittings.
    before: f64,
}

impl Sitting<'_> {
    fn run(mut self, trainer: &mut dyn Trainer) -> Result<Outcome> {
        self.before = self.state.seconds;
        let batches = self.fit.batches;
        let per_epoch = batches.per_epoch();
        if per_epoch == 0 {
            bail!(
                "{} training examples don't fill a batch of {}: lower batch_size",
                batches.examples(),
                self.fit.config.part_size()
            );
        }
        let accumulate = self.fit.config.accumulate as u64;
        let mut source = Source::new(batches, self.state.epoch, self.state.batch)?;
        let evaluates = self.fit.evaluate.is_some();
        self.state.evaluation_due &= evaluates;
        loop {
            if self.state.evaluation_due
                && !self.stopping()
                && let Err(e) = self.evaluate(trainer)
            {
                return Err(self.saved_before(e, trainer));
            }
            let finished = self.state.step >= self.fit.schedule.steps;
            let checkpoint_due = match self.fit.config.checkpoint_every {
                Some(every) => self.state.step.is_multiple_of(every),
                None => ends_epoch(self.state.step, per_epoch, accumulate),
            };
            let stopping = self.stopping() && (!finished || self.state.evaluation_due);
            if finished || stopping || (checkpoint_due && self.state.step > 0) {
                self.save(trainer)?;
            }
            if stopping {
                return Ok(Outcome::Interrupted(self.state));
            }
            if finished {
                return Ok(Outcome::Finished(self.state));
            }
            match self.update(trainer, &mut source) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(e) => return Err(self.saved_before(e, trainer)),
            }
            let due = match self.fit.config.eval_every {
                Some(every) => self.state.step.is_multiple_of(every),
                None => ends_epoch(self.state.step, per_epoch, accumulate),
            };
            self.state.evaluation_due |= evaluates && (due || self.state.step >= self.fit.schedule.steps);
        }
    }

    fn stopping(&self) -> bool {
        self.fit.stop.load(Ordering::Relaxed)
    }

    /// One update; `false` where a stop was asked for in the middle of it.
    fn update(&mut self, trainer: &mut dyn Trainer, source: &mut Source) -> Result<bool> {
        let began = Instant::now();
        let first = (source.epoch, source.batch);
        let parts = self.fit.config.accumulate as u64;
        let mut wait = 0.0;
        let (mut loss, mut examples) = (0.0, 0);
        for part in 0..parts {
            if part > 0 && self.stopping() {
                // The gradients so far are lost with this sitting; the next one computes them again.
                return Ok(false);
            }
            let waiting = Instant::now();
            let batch = source.next()?;
            wait += waiting.elapsed().as_secs_f64();
            let stream = self.state.step * parts + part;
            let value = trainer.accumulate(&batch, 1.0 / parts as f64, stream)?.value;
            if !value.is_finite() {
                return Err(self.broken(&format!("the loss is {value}"), first, part + 1));
            }
            loss += value / parts as f64;
            examples += batch.len();
        }
        let lr = self.fit.schedule.at(self.state.step);
        let gradient_norm = trainer.update(lr, self.fit.config.max_norm())?.gradient_norm;
        if !gradient_norm.is_finite() {
            return Err(self.broken(&format!("the gradient's norm is {gradient_norm}"), first, parts));
        }
        self.state.step += 1;
        (self.state.epoch, self.state.batch) = (source.epoch, source.batch);
        self.saved = None;
        let step = self.state.step;
        formats::signals::pause_at(&format!("update {step}"));
        let per_epoch = self.fit.batches.per_epoch() as f64;
        self.fit.watch.step(&StepLine {
            step,
            epoch: source.epoch as f64 + source.batch as f64 / per_epoch,
            loss,
            lr,
            gradient_norm,
            examples,
            seconds: began.elapsed().as_secs_f64(),
            wait_seconds: wait,
            logged: step.is_multiple_of(self.fit.config.log_every) || step >= self.fit.schedule.steps,
        })?;
        Ok(true)
    }

    /// Where it is the data that fails, the weights are sound: they are saved before the run ends.
    fn saved_before(&mut self, error: anyhow::Error, trainer: &dyn Trainer) -> anyhow::Error {
        if !error.chain().any(|cause| cause.is::<crate::data::Error>()) {
            return error;
        }
        let after = format!("after {}", count(self.state.step, "update", "updates"));
        match self.save(trainer) {
            Ok(()) => error.context(format!("training stopped {after}, and a checkpoint of that is saved")),
            Err(e) => error.context(format!("training stopped {after}, and that could not be saved ({e:#})")),
        }
    }

    /// Writes the batches of the update that failed; they come from the loader once more, as they aren't kept.
    fn broken(&self, what: &str, (epoch, batch): (u64, u64), parts: u64) -> anyhow::Error {
        let step = self.state.step + 1;
        let path = self.fit.run.path(BAD_BATCH);
        let written = Source::new(self.fit.batches, epoch, batch)
            .and_then(|mut source| (0..parts).map(|_| source.next()).collect::<Result<Vec<_>>>())
            .and_then(|batches| bad_batch::write(&path, &batches));
        let batch = match written {
            Ok(()) => format!("its batch is in {}", show_path(&path)),
            Err(e) => format!("its batch could not be saved: {e:#}"),
        };
        anyhow::anyhow!(
            "update {step} at learning rate {:e}: {what}. No weight has changed, and {batch}. A lower lr, a longer \
             warmup, clip = 1.0 or precision = \"f32\" may help",
            self.fit.schedule.at(self.state.step)
        )
    }

    fn evaluate(&mut self, trainer: &mut dyn Trainer) -> Result<()> {
        let Some(evaluate) = &mut self.fit.evaluate else { return Ok(()) };
        let runner = Stoppable { runner: trainer.runner(), stop: self.fit.stop };
        let scores = match evaluate(&runner) {
            Ok(scores) => scores,
            Err(e) if e.chain().any(|cause| cause.is::<Interrupted>()) => return Ok(()),
            Err(e) => {
                let after = format!("evaluation after {}", count(self.state.step, "update", "updates"));
                return Err(match e.chain().any(|cause| cause.is::<crate::data::Error>()) {
                    true => e.context(format!("{after} (--no-validation goes on without)")),
                    false => e.context(after),
                });
            }
        };
        drop(runner);
        self.state.evaluation_due = false;
        self.state.metrics = Some(scores.metrics.clone());
        self.saved = None;
        let best = scores.value().is_some_and(|value| self.state.best.as_ref().is_none_or(|best| value > best.value));
        if let Some(value) = scores.value().filter(|_| best) {
            let found = Best { step: self.state.step, metric: scores.main.clone(), value };
            let mut metadata = self.metadata();
            metadata.push((format!("engine.{}", found.metric), value.to_string()));
            self.fit.run.save_best(trainer, &metadata)?;
            self.state.best = Some(found);
        }
        self.fit.watch.evaluation(self.state.step, &scores, best)
    }

    fn save(&mut self, trainer: &dyn Trainer) -> Result<()> {
        self.state.seconds = self.before + self.began.elapsed().as_secs_f64();
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        self.fit
            .run
            .save(trainer, &self.state, &self.metadata())
            .with_context(|| "make room and resume the run; training has stopped")?;
        self.saved = Some(self.state.step);
        self.fit.watch.saved(&self.state)
    }

    fn metadata(&self) -> Vec<(String, String)> {
        let mut metadata = self.fit.metadata.clone();
        metadata.push(("engine.step".into(), self.state.step.to_string()));
        metadata
    }
}

/// The batches to come.
struct Source<'a> {
    per_epoch: u64,
    /// Of the next batch.
    epoch: u64,
    batch: u64,
    iterator: Box<dyn Iterator<Item = Result<Placed>> + 'a>,
}

impl<'a> Source<'a> {
    fn new(batches: &'a dyn Batches, epoch: u64, batch: u64) -> Result<Source<'a>> {
        Ok(Source { per_epoch: batches.per_epoch(), epoch, batch, iterator: batches.from(epoch, batch)? })
    }

    fn next(&mut self) -> Result<TrainBatch> {
        let Some(found) = self.iterator.next() else { bail!("there are no more training batches") };
        let found = found?;
        (self.epoch, self.batch) = match found.batch + 1 >= self.per_epoch {
            true => (found.epoch + 1, 0),
            false => (found.epoch, found.batch + 1),
        };
        Ok(found.examples)
    }
}

/// Refuses to go on when a stop is asked for: an evaluation may take longer than anyone wants to wait.
struct Stoppable<'a> {
    runner: Box<dyn Runner>,
    stop: &'a AtomicBool,
}

impl Stoppable<'_> {
    fn go(&self) -> Result<&dyn Runner> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Interrupted.into()),
            false => Ok(self.runner.as_ref()),
        }
    }
}

impl Runner for Stoppable<'_> {
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
        self.go()?.embed_texts(texts)
    }

    fn embed_images(&self, images: &Images) -> Result<Matrix> {
        self.go()?.embed_images(images)
    }

    fn vqa_logits(&self, texts: &Texts, images: &Images) -> Result<Matrix> {
        self.go()?.vqa_logits(texts, images)
    }

    fn nlvr2_logits(&self, texts: &Texts, left: &Images, right: &Images) -> Result<Matrix> {
        self.go()?.nlvr2_logits(texts, left, right)
    }

    fn class_logits(&self, images: &Images) -> Result<Matrix> {
        self.go()?.class_logits(images)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::fake::Fake;
    use super::*;
    use crate::train::config::Warmup;

    /// Images dark or bright, the label says which; 3 channels of 2×2.
    struct Shades {
        examples: u64,
        part: u64,
        /// This batch of every epoch is left out, as when all its rows are broken.
        missing: Option<u64>,
        /// Too many rows are broken by the time that this batch, counted over all epochs, is asked for.
        broken: Option<u64>,
    }

    const SHADES: Shades = Shades { examples: 23, part: 4, missing: None, broken: None };

    fn too_many_broken() -> crate::data::Error {
        let first = crate::data::BrokenRow {
            file: "train.jsonl".into(),
            unit: crate::data::Unit::Line,
            row: 3,
            cause: "no JPEG".into(),
        };
        crate::data::Error::TooManyBroken { broken: 2, rows: 23, allowed: 0.01, first }
    }

    impl Shades {
        fn batch(&self, epoch: u64, batch: u64) -> TrainBatch {
            let mut images = Images { count: self.part as usize, size: 2, pixels: Vec::new() };
            let mut labels = Vec::new();
            for example in 0..self.part {
                // Any order that differs between epochs will do.
                let index = (batch * self.part + example + 5 * epoch) % self.examples;
                let bright = index.is_multiple_of(3);
                let shade = if bright { 0.5 } else { -0.4 } + index as f32 / 100.0;
                images.pixels.extend([shade; 12]);
                labels.push(i32::from(bright));
            }
            TrainBatch::ImgCls { images, labels }
        }
    }

    impl Batches for Shades {
        fn examples(&self) -> u64 {
            self.examples
        }

        fn per_epoch(&self) -> u64 {
            self.examples / self.part
        }

        fn from(&self, epoch: u64, batch: u64) -> Result<Box<dyn Iterator<Item = Result<Placed>> + '_>> {
            let places = (epoch * self.per_epoch() + batch..).map(|n| (n / self.per_epoch(), n % self.per_epoch()));
            let places = places.filter(|&(_, batch)| self.missing != Some(batch));
            Ok(Box::new(places.map(|(epoch, batch)| match self.broken {
                Some(broken) if epoch * self.per_epoch() + batch >= broken => Err(too_many_broken().into()),
                _ => Ok(Placed { epoch, batch, examples: self.batch(epoch, batch) }),
            })))
        }
    }

    /// All that is said, with what may differ between equal runs left out.
    #[derive(Default)]
    struct Heard {
        lines: Vec<(u64, u64, u64, u64)>,
        epochs: Vec<f64>,
        evaluations: Vec<(u64, Scores, bool)>,
        saved: Vec<u64>,
    }

    struct Listener<'a> {
        heard: &'a mut Heard,
        stop: &'a AtomicBool,
        stop_after: Option<u64>,
        crash_after: Option<u64>,
    }

    impl Watch for Listener<'_> {
        fn step(&mut self, line: &StepLine) -> Result<()> {
            let bits = f64::to_bits;
            self.heard.lines.push((line.step, bits(line.loss), bits(line.lr), bits(line.gradient_norm)));
            self.heard.epochs.push(line.epoch);
            if self.stop_after == Some(line.step) {
                self.stop.store(true, Ordering::Relaxed);
            }
            if self.crash_after == Some(line.step) {
                bail!("crash");
            }
            Ok(())
        }

        fn evaluation(&mut self, step: u64, scores: &Scores, best: bool) -> Result<()> {
            self.heard.evaluations.push((step, scores.clone(), best));
            Ok(())
        }

        fn saved(&mut self, state: &State) -> Result<()> {
            self.heard.saved.push(state.step);
            Ok(())
        }
    }

    fn config() -> Config {
        Config {
            batch_size: 8,
            accumulate: 2,
            steps: Some(17),
            epochs: None,
            lr: 0.5,
            warmup: Warmup::Steps(3),
            eval_every: Some(4),
            checkpoint_every: Some(5),
            ..Config::default()
        }
    }

    fn accuracy(runner: &dyn Runner) -> Result<Scores> {
        let mut right = 0;
        for batch in 0..SHADES.per_epoch() {
            let TrainBatch::ImgCls { images, labels } = SHADES.batch(0, batch) else { bail!("images") };
            let logits = runner.class_logits(&images)?;
            right += (0..logits.rows).filter(|&i| (logits.row(i)[1] > logits.row(i)[0]) == (labels[i] == 1)).count();
        }
        Ok(Scores::new("accuracy", [("accuracy".to_owned(), right as f64 / 20.0)]))
    }

    struct Bench {
        folder: tempfile::TempDir,
        config: Config,
        batches: Shades,
        stop_after: Option<u64>,
        crash_after: Option<u64>,
        /// The evaluation, by number over all sittings, in the middle of which a stop is asked for.
        stop_in_evaluation: Option<usize>,
        evaluations: RefCell<usize>,
        heard: Heard,
    }

    impl Bench {
        fn new() -> Bench {
            Bench {
                folder: tempfile::tempdir().expect("a folder"),
                config: config(),
                batches: SHADES,
                stop_after: None,
                crash_after: None,
                stop_in_evaluation: None,
                evaluations: RefCell::new(0),
                heard: Heard::default(),
            }
        }

        fn run(&self) -> RunDir {
            RunDir::create(self.folder.path(), true).expect("a run's folder")
        }

        fn sit(&mut self, run: &RunDir, trainer: &mut Fake, state: State) -> Result<Outcome> {
            let stop = AtomicBool::new(false);
            let mut evaluate = |runner: &dyn Runner| {
                *self.evaluations.borrow_mut() += 1;
                if self.stop_in_evaluation == Some(*self.evaluations.borrow()) {
                    stop.store(true, Ordering::Relaxed);
                }
                accuracy(runner)
            };
            let mut watch = Listener {
                heard: &mut self.heard,
                stop: &stop,
                stop_after: self.stop_after,
                crash_after: self.crash_after,
            };
            let steps = self.config.steps.expect("steps");
            let fit = Fit {
                config: &self.config,
                schedule: Schedule::new(&self.config, steps),
                run,
                batches: &self.batches,
                evaluate: Some(&mut evaluate),
                watch: &mut watch,
                stop: &stop,
                metadata: Vec::new(),
            };
            super::fit(trainer, state, fit)
        }

        /// As after a new start of the program: another trainer, restored from what is on the disk.
        fn resume(&mut self, run: &RunDir) -> (Result<Outcome>, Fake) {
            let saved = run.newest().expect("a readable checkpoint").expect("a checkpoint");
            let mut trainer = Fake::restored(&saved.weights, &saved.optimizer).expect("restored");
            self.heard.lines.retain(|line| line.0 <= saved.state.step);
            (self.sit(run, &mut trainer, saved.state), trainer)
        }
    }

    fn uninterrupted() -> (Bench, Fake) {
        let mut bench = Bench::new();
        let mut trainer = Fake::new(1);
        let run = bench.run();
        let outcome = bench.sit(&run, &mut trainer, State::default()).expect("a run");
        assert!(matches!(&outcome, Outcome::Finished(state) if state.step == 17), "{outcome:?}");
        (bench, trainer)
    }

    #[test]
    fn it_learns_evaluates_and_saves() {
        let (bench, trainer) = uninterrupted();
        let loss = |line: usize| f64::from_bits(bench.heard.lines[line].1);
        assert!(loss(16) < 0.5 * loss(0), "{} then {}", loss(0), loss(16));
        assert_eq!(bench.heard.lines.len(), 17);
        assert_eq!(f64::from_bits(bench.heard.lines[0].2), 0.0, "the first update has learning rate 0");
        let steps: Vec<u64> = bench.heard.evaluations.iter().map(|e| e.0).collect();
        assert_eq!(steps, [4, 8, 12, 16, 17]);
        assert_eq!(bench.heard.saved, [5, 10, 15, 17]);
        assert_eq!(bench.heard.epochs[..3], [0.4, 0.8, 1.2]);
        let best = bench.heard.evaluations.iter().filter(|e| e.2).map(|e| e.1.value().unwrap());
        assert_eq!(best.max_by(f64::total_cmp).unwrap(), accuracy(trainer.runner().as_ref()).unwrap().value().unwrap());
    }

    #[test]
    fn a_stopped_run_resumes_to_the_bit() {
        let (whole, expected) = uninterrupted();
        for stop_after in 1..=17 {
            let mut bench = Bench { stop_after: Some(stop_after), ..Bench::new() };
            let run = bench.run();
            let outcome = bench.sit(&run, &mut Fake::new(1), State::default()).expect("stopped");
            assert!(matches!(&outcome, Outcome::Interrupted(state) if state.step == stop_after), "{outcome:?}");
            bench.stop_after = None;
            let (outcome, trainer) = bench.resume(&run);
            assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
            assert_eq!(bench.heard.lines, whole.heard.lines, "stopped after {stop_after}");
            assert_eq!(bench.heard.evaluations, whole.heard.evaluations, "stopped after {stop_after}");
            assert_eq!(trainer.weights(), expected.weights());
        }
    }

    #[test]
    fn a_crashed_run_resumes_to_the_bit() {
        let (whole, expected) = uninterrupted();
        let mut bench = Bench { crash_after: Some(13), ..Bench::new() };
        let run = bench.run();
        bench.sit(&run, &mut Fake::new(1), State::default()).expect_err("crashed");
        assert_eq!(bench.heard.lines.len(), 13);
        bench.crash_after = None;
        bench.heard.evaluations.retain(|e| e.0 <= 10);
        let (outcome, trainer) = bench.resume(&run);
        assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
        assert_eq!(bench.heard.lines, whole.heard.lines);
        assert_eq!(bench.heard.evaluations, whole.heard.evaluations);
        assert_eq!(trainer.weights(), expected.weights());
    }

    #[test]
    fn an_evaluation_can_be_stopped_and_is_made_up_for() {
        let (whole, expected) = uninterrupted();
        for number in [1, 3, 5] {
            let mut bench = Bench { stop_in_evaluation: Some(number), ..Bench::new() };
            let run = bench.run();
            let outcome = bench.sit(&run, &mut Fake::new(1), State::default()).expect("stopped");
            assert!(matches!(&outcome, Outcome::Interrupted(state) if state.evaluation_due), "{outcome:?}");
            let (outcome, trainer) = bench.resume(&run);
            assert!(matches!(&outcome, Ok(Outcome::Finished(state)) if !state.evaluation_due), "{outcome:?}");
            assert_eq!(bench.heard.evaluations, whole.heard.evaluations, "evaluation {number}");
            assert_eq!(trainer.weights(), expected.weights());
        }
    }

    #[test]
    fn resuming_a_finished_run_does_nothing() {
        let (mut bench, expected) = uninterrupted();
        let run = RunDir::create(&bench.folder.path().join("again"), false).unwrap();
        let mut trainer = Fake::new(1);
        bench.heard = Heard::default();
        bench.sit(&run, &mut trainer, State::default()).unwrap();
        let evaluations = bench.heard.evaluations.len();
        let (outcome, trainer) = bench.resume(&run);
        assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
        assert_eq!((bench.heard.lines.len(), bench.heard.evaluations.len()), (17, evaluations));
        assert_eq!(trainer.weights(), expected.weights());
    }

    fn broken(change: impl FnOnce(&mut Fake)) -> (String, Fake, Bench) {
        let mut bench = Bench::new();
        let mut trainer = Fake::new(1);
        change(&mut trainer);
        let run = bench.run();
        let error = bench.sit(&run, &mut trainer, State::default()).expect_err("not finite");
        (format!("{error:#}"), trainer, bench)
    }

    #[test]
    fn a_gradient_that_is_not_finite_stops_the_run_and_saves_the_batch() {
        let (error, trainer, bench) = broken(|trainer| trainer.breaks_at = Some(6));
        assert!(error.starts_with("update 7 at learning rate "), "{error}");
        assert!(error.contains("the gradient's norm is inf. No weight has changed, and its batch is in "), "{error}");
        // The weights are those after six updates.
        let mut bench_of_six = Bench { stop_after: Some(6), ..Bench::new() };
        let run = bench_of_six.run();
        let mut six = Fake::new(1);
        bench_of_six.sit(&run, &mut six, State::default()).unwrap();
        assert_eq!(trainer.weights(), six.weights());
        // Update 7 starts at batch 12: of the third pass, after two of five batches.
        let read = formats::open(bench.folder.path().join(BAD_BATCH)).unwrap();
        for (name, batch) in [("image", 2), ("1.image", 3)] {
            let TrainBatch::ImgCls { images, .. } = SHADES.batch(2, batch) else { panic!("images") };
            let position = read.position(name).unwrap_or_else(|| panic!("no {name}"));
            let mut pixels = Vec::new();
            read.read_f32(position, 0..images.pixels.len(), &mut pixels).unwrap();
            assert_eq!(pixels, images.pixels);
        }
        assert_eq!(bench.heard.saved, [5]);
    }

    #[test]
    fn a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch() {
        let (error, _, bench) = broken(|trainer| trainer.loss_breaks_at = Some(0));
        assert!(error.contains("update 1 at learning rate 0e0: the loss is NaN."), "{error}");
        let read = formats::open(bench.folder.path().join(BAD_BATCH)).unwrap();
        assert!(read.get("image").is_some() && read.get("1.image").is_none(), "only what was computed");
    }

    /// Checkpoints are written every five updates; the data fails in the middle of the eighth, at batch 15.
    #[test]
    fn broken_data_does_not_cost_the_updates_before_it() {
        let (whole, expected) = uninterrupted();
        let mut bench = Bench { batches: Shades { broken: Some(15), ..SHADES }, ..Bench::new() };
        let run = bench.run();
        let error = format!("{:#}", bench.sit(&run, &mut Fake::new(1), State::default()).unwrap_err());
        let said = "training stopped after 7 updates, and a checkpoint of that is saved: train.jsonl line 3: no JPEG; 2 of \
                    23 rows are broken";
        assert!(error.starts_with(said), "{error}");
        assert_eq!(bench.heard.saved, [5, 7]);
        let mut early = Bench { batches: Shades { broken: Some(2), ..SHADES }, ..Bench::new() };
        let error = early.sit(&early.run(), &mut Fake::new(1), State::default()).unwrap_err().to_string();
        assert!(error.starts_with("training stopped after 1 update, and "), "{error}");
        // Once the data is repaired, the run goes on as if nothing had happened.
        bench.batches = SHADES;
        let (outcome, trainer) = bench.resume(&run);
        assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
        assert_eq!(bench.heard.lines, whole.heard.lines);
        assert_eq!(trainer.weights(), expected.weights());
    }

    #[test]
    fn a_full_disk_stops_the_run_with_the_checkpoint_before_it_usable() {
        let mut bench = Bench { stop_after: Some(5), ..Bench::new() };
        let run = bench.run();
        bench.sit(&run, &mut Fake::new(1), State::default()).unwrap();
        bench.stop_after = None;
        let saved = run.newest().unwrap().unwrap();
        let trainer = Fake::restored(&saved.weights, &saved.optimizer).unwrap();
        let error = format!("{:#}", bench.sit(&run, &mut trainer.failing_optimizer(), saved.state).unwrap_err());
        assert!(
            error.contains("cannot save the checkpoint of step 10 (the checkpoint of step 5 is still there)"),
            "{error}"
        );
        assert!(error.ends_with("No space left on device"), "{error}");
        let (whole, expected) = uninterrupted();
        bench.heard.evaluations.retain(|e| e.0 <= 5);
        let (outcome, trainer) = bench.resume(&run);
        assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
        assert_eq!(bench.heard.lines, whole.heard.lines);
        assert_eq!(trainer.weights(), expected.weights());
    }

    #[test]
    fn a_batch_that_is_left_out_counts_as_passed() {
        let run_to_end = |stop_after| {
            let mut bench = Bench { stop_after, batches: Shades { missing: Some(4), ..SHADES }, ..Bench::new() };
            let run = bench.run();
            let outcome = bench.sit(&run, &mut Fake::new(1), State::default()).unwrap();
            bench.stop_after = None;
            match outcome {
                Outcome::Finished(state) => (state, bench.heard.lines),
                Outcome::Interrupted(_) => match bench.resume(&run).0.unwrap() {
                    Outcome::Finished(state) => (state, bench.heard.lines),
                    other => panic!("{other:?}"),
                },
            }
        };
        // 34 batches, 4 in each epoch: 8 epochs and 2.
        let (state, lines) = run_to_end(None);
        assert_eq!((state.epoch, state.batch), (8, 2));
        assert_eq!(run_to_end(Some(2)).1, lines);
        assert_eq!(run_to_end(Some(9)).1, lines);
    }

    #[test]
    fn data_that_fill_no_batch_are_refused() {
        let mut bench = Bench { batches: Shades { examples: 3, ..SHADES }, ..Bench::new() };
        let run = bench.run();
        let error = bench.sit(&run, &mut Fake::new(1), State::default()).unwrap_err().to_string();
        assert_eq!(error, "3 training examples don't fill a batch of 4: lower batch_size");
    }

    #[test]
    fn updates_of_epochs_are_counted_over_all_of_them() {
        assert_eq!(steps_of(10, 5, 1), 50);
        assert_eq!(steps_of(10, 5, 4), 12);
        assert_eq!(steps_of(u64::MAX, u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn an_epoch_ends_with_the_last_whole_update_in_it() {
        let ends = |per_epoch, accumulate| -> Vec<u64> {
            (0..=12).filter(|&step| ends_epoch(step, per_epoch, accumulate)).collect()
        };
        assert_eq!(ends(4, 1), [4, 8, 12]);
        // Batches 5, 10, 15, … of updates of two.
        assert_eq!(ends(5, 2), [2, 5, 7, 10, 12]);
        // An update of three passes.
        assert_eq!(ends(1, 3), (1..=12).collect::<Vec<u64>>());
    }
}
