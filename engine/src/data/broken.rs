//! Rows that can't be used are counted and named, until there are too many.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use formats::show_name;
use serde::Serialize;

use super::{Error, Result};

/// One unusable row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrokenRow {
    pub file: String,
    /// From 0; in a JSONL file the line, from 0.
    pub row: usize,
    pub cause: String,
}

impl fmt::Display for BrokenRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} row {}: {}", show_name(&self.file), self.row, show_name(&self.cause))
    }
}

/// The unusable rows of a data set. Threads may share it.
#[derive(Debug)]
pub struct Broken {
    rows: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: HashSet<(String, usize)>,
    sample: Vec<BrokenRow>,
}

/// Broken rows that are kept with their cause; further ones are only counted.
const SAMPLE: usize = 20;

impl Broken {
    /// None yet, of `rows`.
    pub fn new(rows: usize) -> Broken {
        Broken { rows, state: Mutex::default() }
    }

    /// Counts a row, once.
    ///
    /// # Errors
    /// More than 1 % of the rows are broken.
    pub fn skip(&self, row: BrokenRow) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.known.insert((row.file.clone(), row.row)) && state.sample.len() < SAMPLE {
            state.sample.push(row);
        }
        match state.sample.first() {
            Some(first) if too_many(state.known.len(), self.rows) => {
                Err(Error::TooManyBroken { broken: state.known.len(), rows: self.rows, first: first.clone() })
            }
            _ => Ok(()),
        }
    }

    /// How many are broken.
    pub fn count(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).known.len()
    }

    /// For people: how many rows were skipped, and the first few of them. Empty where none was.
    pub fn lines(&self) -> Vec<String> {
        let sample = self.sample();
        let named = sample.iter().take(5).map(|row| format!("skipped {row}"));
        let more = self.count().saturating_sub(5);
        named.chain((more > 0).then(|| format!("skipped {more} more of {} rows", self.rows))).collect()
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

/// More than 1 %.
fn too_many(broken: usize, rows: usize) -> bool {
    broken.saturating_mul(100) > rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(row: usize) -> BrokenRow {
        BrokenRow { file: "a.arrow".into(), row, cause: "no image".into() }
    }

    #[test]
    fn one_percent_is_allowed_and_a_row_counts_once() {
        let broken = Broken::new(200);
        for number in [3, 3, 7, 3] {
            broken.skip(row(number)).unwrap();
        }
        assert_eq!(broken.count(), 2);
        let error = broken.skip(row(9)).unwrap_err().to_string();
        assert_eq!(error, "3 of 200 rows are broken, more than 1 %; a.arrow row 3: no image is the first");
    }

    #[test]
    fn a_small_set_allows_none() {
        assert!(Broken::new(99).skip(row(0)).is_err());
        assert!(Broken::new(100).skip(row(0)).is_ok());
    }
}
