//! A training run, told as it goes: to `metrics.jsonl`, to TensorBoard and to the terminal.

use std::path::Path;

use anyhow::Result;

use super::metrics_log::{
    DATA_WAIT, EPOCH, GRADIENT_NORM, IMAGES_PER_SECOND, LOSS, LR, Line, METRICS, MetricsLog, VALIDATION,
};
use super::progress::{Progress, Update};
use super::tensorboard::TensorBoard;

/// The folder of event files in a run's folder.
pub const TENSORBOARD: &str = "tensorboard";

#[derive(Debug)]
pub struct RunLog {
    metrics: MetricsLog,
    board: TensorBoard,
    progress: Progress,
    /// Seconds of training, those before a resumption included.
    seconds: f64,
    /// Since the last line: examples, seconds, seconds of waiting.
    since: (u64, f64, f64),
}

impl RunLog {
    /// For a run of `steps` updates in `folder`. `resumed`: the updates done and the seconds of training so far; what
    /// the folder's files have beyond them is removed. `quiet`: nothing on stderr.
    ///
    /// # Errors
    /// A file can't be written, or the `metrics.jsonl` of the run is damaged.
    pub fn open(folder: &Path, steps: u64, resumed: Option<(u64, f64)>, quiet: bool) -> Result<RunLog> {
        let path = folder.join(METRICS);
        let metrics = match resumed {
            None => MetricsLog::create(&path)?,
            Some((step, _)) => MetricsLog::resume(&path, step)?,
        };
        let board = TensorBoard::create(&folder.join(TENSORBOARD), resumed.map(|(step, _)| step))?;
        let seconds = resumed.map_or(0.0, |(_, seconds)| seconds);
        Ok(RunLog { metrics, board, progress: Progress::new(steps, quiet), seconds, since: (0, 0.0, 0.0) })
    }

    /// Tells of an update; `logged` ones get a line, with this update's loss and the speed since the line before.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn update(&mut self, update: &Update, gradient_norm: f64, logged: bool) -> Result<()> {
        self.progress.update(update);
        self.seconds += update.seconds;
        let (examples, seconds, wait) = &mut self.since;
        *examples += update.examples;
        *seconds += update.seconds;
        *wait += update.wait_seconds;
        if !logged {
            return Ok(());
        }
        let over = |sum: f64| if *seconds > 0.0 { sum / *seconds } else { 0.0 };
        let line = Line::new(update.step, self.seconds)
            .with(EPOCH, update.epoch)
            .with(LOSS, update.loss)
            .with(LR, update.lr)
            .with(GRADIENT_NORM, gradient_norm)
            .with(IMAGES_PER_SECOND, over(*examples as f64))
            .with(DATA_WAIT, over(*wait));
        self.since = (0, 0.0, 0.0);
        self.append(&line)
    }

    /// Tells of an evaluation: metrics by name, the one that decides first; `best` if it surpassed those before it.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn evaluation<'a>(
        &mut self,
        step: u64,
        metrics: impl IntoIterator<Item = (&'a str, f64)>,
        best: bool,
    ) -> Result<()> {
        let mut line = Line::new(step, self.seconds);
        for (name, value) in metrics {
            line.values.insert(format!("{VALIDATION}{name}"), value);
        }
        let shown = line.values.iter().map(|(name, value)| format!("{} {value:.4}", &name[VALIDATION.len()..]));
        let shown = shown.collect::<Vec<_>>().join("  ");
        self.say(&format!("step {step}: {shown}{}", if best { "  (best so far)" } else { "" }));
        self.append(&line)
    }

    /// A line of text on stderr, above the bar.
    pub fn say(&self, text: &str) {
        self.progress.say(text);
    }

    /// Leaves the last state on the screen.
    pub fn finish(&mut self) {
        self.progress.finish();
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        self.metrics.append(line)?;
        self.board.append(line)
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics_log;
    use super::*;

    #[test]
    fn a_run_and_its_resumption() {
        let folder = tempfile::tempdir().unwrap();
        let update = |step| Update {
            step,
            epoch: step as f64 / 4.0,
            loss: step as f64,
            lr: 1e-3,
            examples: 8,
            seconds: 2.0,
            wait_seconds: 0.5,
        };
        let mut log = RunLog::open(folder.path(), 6, None, true).unwrap();
        for step in 1..=5 {
            log.update(&update(step), 1.5, step % 2 == 0).unwrap();
        }
        log.evaluation(5, [("vqa_score", 0.5)], true).unwrap();
        drop(log);
        let mut log = RunLog::open(folder.path(), 6, Some((3, 6.0)), true).unwrap();
        for step in 4..=6 {
            log.update(&update(step), 1.5, step % 2 == 0).unwrap();
        }
        log.finish();

        let lines = metrics_log::read(&folder.path().join(METRICS)).unwrap();
        let seen: Vec<(u64, f64, f64)> =
            lines.iter().map(|line| (line.step, line.seconds, line.values[LOSS])).collect();
        assert_eq!(seen, [(2, 4.0, 2.0), (4, 8.0, 4.0), (6, 12.0, 6.0)]);
        assert_eq!((lines[0].values[IMAGES_PER_SECOND], lines[0].values[DATA_WAIT]), (4.0, 0.25));
        assert_eq!(std::fs::read_dir(folder.path().join(TENSORBOARD)).unwrap().count(), 2);
    }
}
