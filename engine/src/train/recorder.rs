//! What a run leaves for people: `metrics.jsonl`, TensorBoard's files, `result.json`, a progress line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::fit::{Scores, StepLine, Watch};
use super::run_dir::{RunDir, State};
use crate::data::Dataset;
use crate::report::metrics_log::{self, Line, METRICS, MetricsLog};
use crate::report::progress::{Progress, Update};
use crate::report::run_files::{Best, RESULT, RunResult, Status};
use crate::report::tensorboard::TensorBoard;
use crate::report::terminal::count;

/// The folder of TensorBoard's files.
pub const TENSORBOARD: &str = "tensorboard";

/// [`Watch`] that writes it all down.
pub struct Recorder {
    log: MetricsLog,
    board: TensorBoard,
    progress: Progress,
    result: RunResult,
    path: PathBuf,
    began: Instant,
    /// Seconds of earlier sittings.
    before: f64,
    since: Since,
    /// Whose broken rows are told.
    sets: Vec<Arc<dyn Dataset>>,
    /// Broken rows that earlier sittings named.
    skipped_before: Vec<String>,
}

/// Added up since the last line.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    examples: usize,
    seconds: f64,
    wait_seconds: f64,
}

impl Recorder {
    /// For a run that stands at `state`: its files lose what lies beyond, as that is done again. `result` has what is
    /// known from the start.
    ///
    /// # Errors
    /// The files can't be written.
    pub fn new(run: &RunDir, state: &State, resumed: bool, result: RunResult, quiet: bool) -> Result<Recorder> {
        let metrics = run.path(METRICS);
        let log = match resumed {
            true => MetricsLog::resume(&metrics, state.step)?,
            false => MetricsLog::create(&metrics)?,
        };
        let mut result = result;
        if resumed && let Ok(before) = std::fs::read(run.path(RESULT)) {
            // Which rows can't be used is found out as they come up.
            result.skipped =
                serde_json::from_slice::<RunResult>(&before).map(|before| before.skipped).unwrap_or_default();
        }
        let board = TensorBoard::create(&run.path(TENSORBOARD), resumed.then_some(state.step))?;
        let mut recorder = Recorder {
            log,
            board,
            progress: Progress::new(result.steps, quiet),
            result,
            path: run.path(RESULT),
            began: Instant::now(),
            before: state.seconds,
            since: Since::default(),
            sets: Vec::new(),
            skipped_before: Vec::new(),
        };
        // A count of unnamed rows holds for the sitting that counted them.
        recorder.skipped_before = recorder.result.skipped.clone();
        recorder.skipped_before.retain(|line| !line.contains(" more of "));
        recorder.take(state);
        recorder.write()?;
        Ok(recorder)
    }

    /// Writes how the sitting ended.
    ///
    /// # Errors
    /// `result.json` can't be written.
    pub fn end(&mut self, state: Option<&State>, status: Status, message: Option<String>) -> Result<()> {
        self.progress.finish();
        if let Some(state) = state {
            self.take(state);
        }
        (self.result.status, self.result.message) = (status, message);
        self.write()
    }

    /// Tells of the broken rows of data sets: each at once on stderr, all in `result.json` and `metrics.jsonl`.
    pub fn tell_broken_rows(&mut self, sets: Vec<Arc<dyn Dataset>>) {
        for set in &sets {
            let (say, name) = (self.progress.speaker(), set.name().to_owned());
            set.broken().tell(move |row| say(&format!("skipped a broken row of {name}: {row}")));
        }
        self.sets = sets;
    }

    fn broken_rows(&self) -> usize {
        self.sets.iter().map(|set| set.broken().count()).sum()
    }

    /// What is known so far.
    pub fn result(&self) -> &RunResult {
        &self.result
    }

    /// A line on stderr, above the progress line.
    pub fn say(&self, text: &str) {
        self.progress.say(text);
    }

    fn take(&mut self, state: &State) {
        self.result.step = state.step;
        self.result.best =
            state.best.as_ref().map(|best| Best { step: best.step, metric: best.metric.clone(), value: best.value });
        if let Some(metrics) = &state.metrics {
            self.result.metrics =
                metrics.iter().filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
        }
    }

    fn seconds(&self) -> f64 {
        self.before + self.began.elapsed().as_secs_f64()
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        self.log.append(line)?;
        self.board.append(line)
    }

    fn write(&mut self) -> Result<()> {
        self.result.seconds = self.seconds();
        let now = self
            .sets
            .iter()
            .flat_map(|set| set.broken().lines().into_iter().map(|line| format!("{}: {line}", set.name())));
        let mut skipped = self.skipped_before.clone();
        for line in now {
            if !skipped.contains(&line) {
                skipped.push(line);
            }
        }
        self.result.skipped = skipped;
        let text = serde_json::to_string_pretty(&self.result)? + "\n";
        Ok(formats::write::write_file(&self.path, text.as_bytes())?)
    }
}

impl Watch for Recorder {
    fn step(&mut self, line: &StepLine) -> Result<()> {
        self.progress.update(&Update {
            step: line.step,
            epoch: line.epoch,
            loss: line.loss,
            lr: line.lr,
            examples: line.examples as u64,
            seconds: line.seconds,
            wait_seconds: line.wait_seconds,
        });
        self.result.step = line.step;
        self.since.examples += line.examples;
        self.since.seconds += line.seconds;
        self.since.wait_seconds += line.wait_seconds;
        if !line.logged {
            return Ok(());
        }
        let Since { examples, seconds, wait_seconds } = std::mem::take(&mut self.since);
        let share = |part: f64| if seconds > 0.0 { part / seconds } else { 0.0 };
        let broken = self.broken_rows();
        let mut entry = Line::new(line.step, self.seconds())
            .with(metrics_log::EPOCH, line.epoch)
            .with(metrics_log::LOSS, line.loss)
            .with(metrics_log::LR, line.lr)
            .with(metrics_log::GRADIENT_NORM, line.gradient_norm)
            .with(metrics_log::IMAGES_PER_SECOND, share(examples as f64))
            .with(metrics_log::DATA_WAIT, share(wait_seconds));
        if broken > 0 {
            entry = entry.with(metrics_log::BROKEN_ROWS, broken as f64);
        }
        self.append(&entry)
    }

    fn evaluation(&mut self, step: u64, scores: &Scores, best: bool) -> Result<()> {
        let mut line = Line::new(step, self.seconds());
        let mut shown = Vec::new();
        for (name, value) in &scores.metrics {
            let Some(value) = value.as_f64() else { continue };
            line = line.with(format!("{}{name}", metrics_log::VALIDATION), value);
            shown.push(format!("{name} {:.2}%", 100.0 * value));
        }
        let mark = if best { "  (best so far)" } else { "" };
        self.progress.say(&format!("after {}: {}{mark}", count(step, "update", "updates"), shown.join(", ")));
        self.append(&line)
    }

    fn saved(&mut self, state: &State) -> Result<()> {
        self.take(state);
        self.write()
    }
}

#[cfg(test)]
mod tests {
    use super::super::run_dir;
    use super::*;

    fn line(step: u64, seconds: f64, logged: bool) -> StepLine {
        StepLine {
            step,
            epoch: step as f64 / 10.0,
            loss: 0.5,
            lr: 1e-3,
            gradient_norm: 2.0,
            examples: 8,
            seconds,
            wait_seconds: seconds / 4.0,
            logged,
        }
    }

    #[test]
    fn lines_sum_up_what_lies_between_and_a_resumed_run_writes_them_again() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), false).unwrap();
        let start = RunResult { task: "vqa".into(), steps: 4, ..RunResult::default() };
        let mut recorder = Recorder::new(&run, &State::default(), false, start.clone(), true).unwrap();
        recorder.step(&line(1, 1.0, false)).unwrap();
        recorder.step(&line(2, 3.0, true)).unwrap();
        let scores = Scores::new("accuracy", [("accuracy".to_owned(), 0.25)]);
        recorder.evaluation(2, &scores, true).unwrap();
        let best = Some(run_dir::Best { step: 2, metric: "accuracy".into(), value: 0.25 });
        let state = State { step: 2, best, metrics: Some(scores.metrics), seconds: 4.0, ..State::default() };
        recorder.saved(&state).unwrap();
        recorder.step(&line(3, 1.0, false)).unwrap();
        recorder.step(&line(4, 1.0, true)).unwrap();
        let lines = metrics_log::read(&run.path(METRICS)).unwrap();
        assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [2, 2, 4]);
        assert_eq!((lines[0].values["images_per_second"], lines[0].values["data_wait"]), (4.0, 0.25));
        assert_eq!(lines[1].values["val/accuracy"], 0.25);

        let mut recorder = Recorder::new(&run, &state, true, start, true).unwrap();
        let lines = metrics_log::read(&run.path(METRICS)).unwrap();
        assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [2, 2]);
        recorder.step(&line(3, 1.0, true)).unwrap();
        recorder.end(None, Status::Failed, Some("disk full".into())).unwrap();
        let text = std::fs::read_to_string(run.path(RESULT)).unwrap();
        let result: RunResult = serde_json::from_str(&text).unwrap();
        assert_eq!((result.step, result.status, result.message.as_deref()), (3, Status::Failed, Some("disk full")));
        assert_eq!((result.best.unwrap().value, result.metrics["accuracy"]), (0.25, 0.25));
        assert!(result.seconds >= 4.0);
        assert_eq!(std::fs::read_dir(run.path(TENSORBOARD)).unwrap().count(), 2);
    }
}
