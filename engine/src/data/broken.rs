//! Rows that can't be used are counted and named, until there are too many.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use formats::show_name;
use serde::Serialize;

use super::{Error, Result};

/// The share of a split's rows that may be broken where nothing else is said: 1 %.
pub const MAX_BROKEN: f64 = 0.01;

/// What a row is in its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Of a table, such as an Arrow file.
    #[default]
    Row,
    /// Of a text file.
    Line,
    /// A file in a folder: its name says it all.
    File,
}

/// One unusable row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrokenRow {
    pub file: String,
    pub unit: Unit,
    /// Counted from 1.
    pub row: usize,
    pub cause: String,
}

impl BrokenRow {
    /// Where it is, such as `train.jsonl line 3`.
    pub fn place(&self) -> String {
        let file = show_name(&self.file);
        match self.unit {
            Unit::Row => format!("{file} row {}", self.row),
            Unit::Line => format!("{file} line {}", self.row),
            Unit::File => file,
        }
    }
}

impl fmt::Display for BrokenRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.place(), show_name(&self.cause))
    }
}

/// Hears of broken rows as they are found.
pub type Listener = Box<dyn Fn(&BrokenRow) + Send + Sync>;

/// The unusable rows of a data set. Threads may share it.
pub struct Broken {
    rows: usize,
    /// The share of the rows that may be broken, 0 to 1.
    allowed: f64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashSet<(String, usize)>,
    sample: Vec<BrokenRow>,
    listener: Option<Listener>,
}

/// Broken rows that are kept with their cause; further ones are only counted.
const SAMPLE: usize = 20;

impl Broken {
    /// None yet, of `rows`; the share `allowed` of them may be.
    pub fn new(rows: usize, allowed: f64) -> Broken {
        Broken { rows, allowed, state: Mutex::default() }
    }

    /// Counts a row, once.
    ///
    /// # Errors
    /// A larger share of the rows is broken than allowed.
    pub fn skip(&self, row: BrokenRow) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.known.insert((row.file.clone(), row.row)) && state.sample.len() < SAMPLE {
            if let Some(listener) = &state.listener {
                listener(&row);
            }
            state.sample.push(row);
        }
        match state.sample.first() {
            Some(first) if state.known.len() as f64 > self.allowed * self.rows as f64 => {
                Err(self.too_many(state.known.len(), first.clone()))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn too_many(&self, broken: usize, first: BrokenRow) -> Error {
        Error::TooManyBroken { broken, rows: self.rows, allowed: self.allowed, first }
    }

    /// Tells `listener` of the broken rows known so far, then of each new one at once: of the first twenty in all, as
    /// thousands would hide everything else. It is called while others may wait, and mustn't ask for this count.
    pub fn tell(&self, listener: impl Fn(&BrokenRow) + Send + Sync + 'static) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sample.iter().for_each(&listener);
        state.listener = Some(Box::new(listener));
    }

    /// How many are broken.
    pub fn count(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).known.len()
    }

    /// The share of the rows that may be broken, 0 to 1.
    pub fn allowed(&self) -> f64 {
        self.allowed
    }

    /// For people: the first twenty broken rows, and how many there are beyond those. Empty where there is none.
    pub fn lines(&self) -> Vec<String> {
        let sample = self.sample();
        let more = self.count().saturating_sub(sample.len());
        let named = sample.iter().map(BrokenRow::to_string);
        named.chain((more > 0).then(|| format!("{more} more of {} rows", self.rows))).collect()
    }

    /// Out of how many.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The first twenty, as they were found.
    pub fn sample(&self) -> Vec<BrokenRow> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).sample.clone()
    }
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Broken").field("rows", &self.rows).field("count", &self.count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn row(row: usize) -> BrokenRow {
        BrokenRow { file: "a.arrow".into(), unit: Unit::Row, row, cause: "no image".into() }
    }

    #[test]
    fn one_percent_is_allowed_and_a_row_counts_once() {
        let broken = Broken::new(200, MAX_BROKEN);
        for number in [3, 3, 7, 3] {
            broken.skip(row(number)).unwrap();
        }
        assert_eq!(broken.count(), 2);
        let error = broken.skip(row(9)).unwrap_err().to_string();
        assert_eq!(
            error,
            "a.arrow row 3: no image; 3 of 200 rows are broken, more than 1 %: repair them, or allow more with \
             --max-broken SHARE"
        );
    }

    #[test]
    fn a_small_set_allows_none() {
        assert!(Broken::new(99, MAX_BROKEN).skip(row(1)).is_err());
        assert!(Broken::new(100, MAX_BROKEN).skip(row(1)).is_ok());
    }

    #[test]
    fn the_limit_is_the_callers() {
        let some = Broken::new(10, 0.25);
        assert!(some.skip(row(1)).is_ok() && some.skip(row(2)).is_ok());
        assert!(some.skip(row(3)).unwrap_err().to_string().contains("3 of 10 rows are broken, more than 25 %"));
        assert!(Broken::new(1, 1.0).skip(row(1)).is_ok());
        assert!(Broken::new(1000, 0.0).skip(row(1)).is_err());
    }

    #[test]
    fn a_broken_row_is_told_at_once_and_only_once() {
        let broken = Broken::new(10_000, MAX_BROKEN);
        broken.skip(row(5)).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let told = heard.clone();
        broken.tell(move |row| told.lock().unwrap().push(row.row));
        assert_eq!(*heard.lock().unwrap(), [5], "what was found before");
        broken.skip(row(6)).unwrap();
        broken.skip(row(6)).unwrap();
        assert_eq!(*heard.lock().unwrap(), [5, 6]);
        (7..60).for_each(|number| broken.skip(row(number)).unwrap());
        assert_eq!(heard.lock().unwrap().len(), SAMPLE, "thousands would hide everything else");
        assert_eq!(broken.lines().last().unwrap(), "35 more of 10000 rows");
    }
}
