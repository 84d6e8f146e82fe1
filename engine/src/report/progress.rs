//! The line that moves while a model trains.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::terminal::{learning_rate, rate, stderr_width, wrapped};

/// What one update came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Update {
    /// Updates done, this one included.
    pub step: u64,
    /// Passes over the data.
    pub epoch: f64,
    pub loss: f64,
    pub lr: f64,
    pub examples: u64,
    pub seconds: f64,
    /// Of these, waiting for data.
    pub wait_seconds: f64,
}

/// On a terminal a bar that is redrawn; elsewhere a line every ten seconds, so that a log stays readable.
#[derive(Debug)]
pub struct Progress {
    steps: u64,
    pace: Pace,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Nothing,
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

/// Between lines in a log.
const EVERY: Duration = Duration::from_secs(10);

impl Progress {
    /// For a run of `steps` updates, on stderr. `quiet` shows nothing.
    pub fn new(steps: u64, quiet: bool) -> Progress {
        let shown = if quiet {
            Shown::Nothing
        } else if stderr_width().is_some() {
            let style = ProgressStyle::with_template("{wide_bar:.cyan/dim} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            Shown::Bar(ProgressBar::new(steps).with_style(style))
        } else {
            Shown::Lines { last: None }
        };
        Progress { steps, pace: Pace::default(), shown }
    }

    pub fn update(&mut self, update: &Update) {
        self.pace.add(update);
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_position(update.step);
                bar.set_message(line(update, self.steps, &self.pace, stderr_width().map(room)));
            }
            Shown::Lines { last } => {
                if last.is_none_or(|last| last.elapsed() >= EVERY) || update.step >= self.steps {
                    *last = Some(Instant::now());
                    say(&line(update, self.steps, &self.pace, None));
                }
            }
        }
    }

    /// A line of text, above the bar where there is one.
    pub fn say(&self, text: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.suspend(|| say(text)),
            Shown::Lines { .. } => say(text),
        }
    }

    /// Says lines as [`Progress::say`] does, from any thread.
    pub fn speaker(&self) -> impl Fn(&str) + Send + Sync + use<> {
        let (bar, quiet) = match &self.shown {
            Shown::Bar(bar) => (Some(bar.clone()), false),
            Shown::Lines { .. } => (None, false),
            Shown::Nothing => (None, true),
        };
        move |text| match &bar {
            Some(bar) => bar.suspend(|| say(text)),
            None if quiet => {}
            None => say(text),
        }
    }

    /// Leaves the last state on the screen and the cursor below it.
    pub fn finish(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.abandon();
        }
    }
}

/// Nobody may be left to read it: `eprintln!` would panic.
fn say(text: &str) {
    let text = stderr_width().map_or_else(|| text.to_owned(), |width| wrapped(text, 2, width));
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Loss and speed over the last updates: each counts for a little less than the one after it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    weight: f64,
    loss: f64,
    examples: f64,
    seconds: f64,
    wait_seconds: f64,
}

impl Pace {
    /// About the last fifty updates.
    const KEEP: f64 = 0.98;

    pub fn add(&mut self, update: &Update) {
        // A loss that isn't finite should not stay for fifty updates.
        let loss = if update.loss.is_finite() { update.loss } else { self.loss() };
        let sum = |sum: &mut f64, value: f64| *sum = *sum * Pace::KEEP + value;
        sum(&mut self.loss, if loss.is_finite() { loss } else { 0.0 });
        sum(&mut self.weight, 1.0);
        sum(&mut self.examples, update.examples as f64);
        sum(&mut self.seconds, update.seconds);
        sum(&mut self.wait_seconds, update.wait_seconds);
    }

    pub fn loss(&self) -> f64 {
        self.loss / self.weight
    }

    pub fn examples_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.examples / self.seconds } else { 0.0 }
    }

    /// 0 to 1.
    pub fn data_wait(&self) -> f64 {
        if self.seconds > 0.0 { self.wait_seconds / self.seconds } else { 0.0 }
    }

    /// An update's.
    pub fn seconds(&self) -> f64 {
        if self.weight > 0.0 { self.seconds / self.weight } else { 0.0 }
    }
}

/// Columns that a bar leaves for the text beside it.
fn room(width: usize) -> usize {
    const BAR: usize = 10;
    width.saturating_sub(BAR + 1)
}

/// `120/1000  epoch 1.20  loss 0.3456  lr 1.00e-5  123 images/s  data 1.2%  ETA 1h 03m`, without what matters least where
/// there is only `room` for less.
fn line(update: &Update, steps: u64, pace: &Pace, room: Option<usize>) -> String {
    let loss = if update.loss.is_finite() { pace.loss() } else { update.loss };
    let rest = steps.saturating_sub(update.step) as f64 * pace.seconds();
    // Each with its rank: the highest goes first.
    let mut parts = vec![
        (0, format!("{}/{steps}", update.step)),
        (4, format!("epoch {:.2}", update.epoch)),
        (0, format!("loss {loss:.4}")),
        (3, format!("lr {}", learning_rate(update.lr))),
        (2, rate(pace.examples_per_second(), "images")),
        (5, format!("data {:.1}%", 100.0 * pace.data_wait())),
        (1, format!("ETA {}", duration(rest))),
    ];
    for least in (1..=5).rev() {
        let width: usize = parts.iter().map(|(_, part)| part.chars().count() + 2).sum::<usize>() - 2;
        if room.is_none_or(|room| width <= room) {
            break;
        }
        parts.retain(|(rank, _)| *rank != least);
    }
    parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().join("  ")
}

/// `12s`, `3m 07s`, `1h 03m`, `2d 04h`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round().clamp(0.0, 1e12) as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    if days > 0 {
        format!("{days}d {:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {:02}s", whole % 60)
    } else {
        format!("{whole}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_by_hand() {
        let update =
            Update { step: 20, epoch: 0.5, loss: 2.0, lr: 1e-5, examples: 32, seconds: 2.0, wait_seconds: 0.05 };
        let mut pace = Pace::default();
        pace.add(&update);
        pace.add(&update);
        assert_eq!(
            line(&update, 80, &pace, None),
            "20/80  epoch 0.50  loss 2.0000  lr 1.00e-5  16.0 images/s  data 2.5%  ETA 2m 00s"
        );
        let broken = Update { loss: f64::NAN, ..update };
        pace.add(&broken);
        assert!(line(&broken, 80, &pace, None).contains("loss NaN"));
        assert!(line(&update, 80, &pace, None).contains("loss 2.0000"));
        assert!(line(&update, 10, &pace, None).ends_with("ETA 0s"));
    }

    #[test]
    fn the_training_bar_keeps_ten_cells_at_80_columns() {
        let update =
            Update { step: 123_456, epoch: 12.34, loss: 2.0, lr: 1e-5, examples: 32, seconds: 2.0, wait_seconds: 0.05 };
        let mut pace = Pace::default();
        pace.add(&update);
        let line = line(&update, 200_000, &pace, Some(room(80)));
        assert_eq!(line, "123456/200000  loss 2.0000  lr 1.00e-5  16.0 images/s  ETA 1d 18h");
        assert!(line.chars().count() + 11 <= 80);
        assert_eq!(super::line(&update, 200_000, &pace, Some(room(40))), "123456/200000  loss 2.0000");
    }

    #[test]
    fn recent_updates_count_for_more() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.add(&Update { loss: 1.0, examples: 1, seconds: 1.0, ..Update::default() });
        }
        for _ in 0..100 {
            pace.add(&Update { loss: 3.0, examples: 1, seconds: 0.1, ..Update::default() });
        }
        // 1 − 0.98¹⁰⁰ = 0.867 of the weight is the new ones'.
        assert!((pace.loss() - (3.0 * 0.867 + 0.133)).abs() < 1e-3, "{}", pace.loss());
        assert!((pace.seconds() - (0.1 * 0.867 + 0.133)).abs() < 1e-3);
    }

    #[test]
    fn durations() {
        let shown = [0.4, 59.6, 187.0, 3780.0, 187_200.0, f64::NAN, f64::INFINITY].map(duration);
        assert_eq!(shown[..5], ["0s", "1m 00s", "3m 07s", "1h 03m", "2d 04h"]);
        assert_eq!(shown[5], "0s");
    }
}
