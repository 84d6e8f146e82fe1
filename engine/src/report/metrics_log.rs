//! `metrics.jsonl`: what a run measured, one JSON object a line.
//!
//! ```json
//! {"step":100,"seconds":61.2,"epoch":0.4,"loss":3.1,"lr":5e-6,"gradient_norm":1.9,"images_per_second":13.1,"data_wait":0.01}
//! {"step":250,"seconds":170.0,"val/recall_mean":0.61,"val/ir_recall_at_1":0.4}
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::show_path;
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The file's name in a run's folder.
pub const METRICS: &str = "metrics.jsonl";

/// What is measured in training: passes over the data so far.
pub const EPOCH: &str = "epoch";
pub const LOSS: &str = "loss";
pub const LR: &str = "lr";
/// Before clipping.
pub const GRADIENT_NORM: &str = "gradient_norm";
/// Examples, for tasks with two images an example.
pub const IMAGES_PER_SECOND: &str = "images_per_second";
/// The share of time that was spent waiting for data, 0 to 1.
pub const DATA_WAIT: &str = "data_wait";
/// Rows of the data that could not be used, of those prepared so far: it runs ahead of the updates, and counts from
/// where the run was last resumed. Left out where there is none.
pub const BROKEN_ROWS: &str = "broken_rows";
/// What an evaluation's metrics start with; [`crate::eval::Metric::name`] follows.
pub const VALIDATION: &str = "val/";

/// What was measured at one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Updates done.
    pub step: u64,
    /// Seconds of training so far, those before a resumption included.
    pub seconds: f64,
    /// Values by name. What is not finite is `null` in the file and NaN when read; text and the like is passed over.
    #[serde(flatten, deserialize_with = "numbers")]
    pub values: IndexMap<String, f64>,
}

impl Line {
    pub fn new(step: u64, seconds: f64) -> Line {
        Line { step, seconds, values: IndexMap::new() }
    }

    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Line {
        self.values.insert(name.into(), value);
        self
    }
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IndexMap<String, f64>, D::Error> {
    let values = IndexMap::<String, Value>::deserialize(deserializer)?;
    let number = |(name, value)| match value {
        Value::Null => Some((name, f64::NAN)),
        other => Some((name, other.as_f64()?)),
    };
    Ok(values.into_iter().filter_map(number).collect())
}

/// The file, open for adding lines.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Starts a new file, in place of one that may be there.
    ///
    /// # Errors
    /// It can't be written.
    pub fn create(path: &Path) -> Result<MetricsLog> {
        formats::write::write_file(path, b"")?;
        MetricsLog::open(path)
    }

    /// Goes on with the file of a run that stands at `step`: lines beyond it, and a last line that was cut short, are
    /// removed, since the run will write them again. No file is an empty one.
    ///
    /// # Errors
    /// It can't be read or written, or a line other than the last is damaged.
    pub fn resume(path: &Path, step: u64) -> Result<MetricsLog> {
        let old = match std::fs::read(path) {
            Ok(old) => old,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return MetricsLog::create(path),
            Err(e) => return Err(e).with_context(|| format!("{}: cannot be read", show_path(path))),
        };
        let mut kept = Vec::with_capacity(old.len());
        for (text, line) in parse(path, &old)? {
            if line.step <= step {
                kept.extend_from_slice(text);
                kept.push(b'\n');
            }
        }
        if kept != old {
            formats::write::write_file(path, &kept)?;
        }
        MetricsLog::open(path)
    }

    fn open(path: &Path) -> Result<MetricsLog> {
        let file = OpenOptions::new().append(true).open(path);
        Ok(MetricsLog { path: path.to_owned(), file: file.with_context(|| cannot_write(path))? })
    }

    /// Adds a line, in one write.
    ///
    /// # Errors
    /// It can't be written, the disk being full, say; then the file ends with the line before.
    pub fn append(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let before = self.file.metadata().with_context(|| cannot_write(&self.path))?.len();
        self.file.write_all(&text).with_context(|| {
            // Part of a line would spoil the next one.
            let _ = self.file.set_len(before);
            cannot_write(&self.path)
        })
    }
}

/// All lines. A last line that was cut short, by a crash, is left out.
///
/// # Errors
/// The file can't be read, or a line other than the last is damaged.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot be read", show_path(path)))?;
    Ok(parse(path, &bytes)?.into_iter().map(|(_, line)| line).collect())
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<(&'a [u8], Line)>> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    let mut number = 0;
    while !rest.is_empty() {
        number += 1;
        let end = rest.iter().position(|&byte| byte == b'\n');
        let text = &rest[..end.unwrap_or(rest.len())];
        rest = end.map_or(&[], |end| &rest[end + 1..]);
        match serde_json::from_slice(text) {
            Ok(line) => lines.push((text, line)),
            // A crash leaves a part of a line or, on some file systems, zeros.
            Err(_) if rest.is_empty() => {}
            Err(e) => bail!("{}: line {number}: {e}", show_path(path)),
        }
    }
    Ok(lines)
}

fn cannot_write(path: &Path) -> String {
    format!("{}: cannot be written", show_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS);
        (folder, path)
    }

    #[test]
    fn what_is_written_reads_back() {
        let (_folder, path) = folder();
        let mut log = MetricsLog::create(&path).unwrap();
        let first = Line::new(1, 0.5).with(LOSS, 0.1 + 0.2).with(LR, 1e-30);
        log.append(&first).unwrap();
        log.append(&Line::new(2, 1.0).with(LOSS, f64::NAN).with("val/vqa_score", 1.0)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":1,\"seconds\":0.5,\"loss\":0.30000000000000004,\"lr\":1e-30}\n\
             {\"step\":2,\"seconds\":1.0,\"loss\":null,\"val/vqa_score\":1.0}\n"
        );
        let lines = read(&path).unwrap();
        assert_eq!(lines[0], first);
        assert!(lines[1].values[LOSS].is_nan());
        assert_eq!(lines[1].values["val/vqa_score"], 1.0);
    }

    #[test]
    fn resuming_removes_what_will_be_written_again() {
        let (_folder, path) = folder();
        let mut log = MetricsLog::create(&path).unwrap();
        for step in [10, 20, 20, 30] {
            log.append(&Line::new(step, 0.0).with(LOSS, step as f64)).unwrap();
        }
        log.file.write_all(b"{\"step\":40,\"sec").unwrap();
        drop(log);
        assert_eq!(read(&path).unwrap().len(), 4);
        let mut log = MetricsLog::resume(&path, 20).unwrap();
        log.append(&Line::new(30, 1.0)).unwrap();
        let steps: Vec<u64> = read(&path).unwrap().iter().map(|line| line.step).collect();
        assert_eq!(steps, [10, 20, 20, 30]);
        assert_eq!(read(&path).unwrap()[3].values.len(), 0);
    }

    #[test]
    fn text_in_a_line_does_not_damage_it() {
        let (_folder, path) = folder();
        std::fs::write(&path, "{\"step\":1,\"seconds\":0.5,\"broken\":\"a.jsonl line 3\",\"loss\":2}\n").unwrap();
        assert_eq!(read(&path).unwrap(), [Line::new(1, 0.5).with(LOSS, 2.0)]);
    }

    #[test]
    fn a_whole_last_line_without_its_end_is_kept_and_ended() {
        let (_folder, path) = folder();
        std::fs::write(&path, "{\"step\":1,\"seconds\":0.0}").unwrap();
        let mut log = MetricsLog::resume(&path, 1).unwrap();
        log.append(&Line::new(2, 0.0)).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
    }

    #[test]
    fn a_missing_file_is_an_empty_one_and_a_damaged_line_is_named() {
        let (_folder, path) = folder();
        MetricsLog::resume(&path, 5).unwrap();
        assert!(read(&path).unwrap().is_empty());
        std::fs::write(&path, "{\"step\":1,\"seconds\":0}\n{\"step\":\n{\"step\":3,\"seconds\":0}\n").unwrap();
        for error in [read(&path).unwrap_err(), MetricsLog::resume(&path, 9).unwrap_err()] {
            assert!(error.to_string().contains("metrics.jsonl: line 2: "), "{error}");
        }
        std::fs::write(&path, b"{\"step\":1,\"seconds\":0}\n\0\0\0\0").unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
    }
}
