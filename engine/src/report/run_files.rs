//! The files of a run's folder that its report is made from.
//!
//! | file | written | here |
//! |---|---|---|
//! | `config.toml` | at the start | shown as it is |
//! | `metrics.jsonl` | all along | [`metrics_log::Line`] |
//! | `result.json` | with each checkpoint and at the end | [`RunResult`] |
//! | `samples.json`, images in `samples/` | with each evaluation | [`Sample`] |
//!
//! Any of them may be missing.

use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};
use formats::show_path;
use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::metrics_log::{self, Line, METRICS};
use crate::train::run_dir;

pub const CONFIG: &str = "config.toml";
pub const RESULT: &str = "result.json";
pub const SAMPLES: &str = "samples.json";
/// The folder of the samples' images.
pub const SAMPLE_IMAGES: &str = "samples";

/// `result.json`: where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunResult {
    /// Of the program that wrote it.
    pub version: String,
    pub task: String,
    pub status: Status,
    /// Why it stopped, where it failed.
    pub message: Option<String>,
    /// Updates done, and in all.
    pub step: u64,
    pub steps: u64,
    /// Seconds of training, those before a resumption included.
    pub seconds: f64,
    /// The data sets' names, such as `easy-VQA train`.
    pub train_data: String,
    pub train_examples: u64,
    pub validation_data: String,
    /// Why the splits are others than usual, where they are.
    pub protocol: Option<String>,
    /// Rows of both that could not be used, the first few with the reason.
    pub skipped: Vec<String>,
    /// Trained parameters.
    pub parameters: u64,
    /// In words, with the precision.
    pub device: String,
    /// The evaluation that `best.safetensors` is from.
    pub best: Option<Best>,
    /// The last evaluation, by [`crate::eval::Metric::name`]; shares, 0 to 1.
    pub metrics: IndexMap<String, f64>,
    /// How the checkpoint that training started from was merged: its `vlmerge.recipe`, parsed.
    pub recipe: Option<serde_json::Value>,
}

impl RunResult {
    /// Writes `result.json`, in one go.
    ///
    /// # Errors
    /// It can't be written; then an earlier one is as it was.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(RESULT), self)
    }
}

/// Writes `samples.json`, in one go; the images are the caller's to write, before.
///
/// # Errors
/// It can't be written; then an earlier one is as it was.
pub fn write_samples(folder: &Path, samples: &[Sample]) -> Result<()> {
    write_json(&folder.join(SAMPLES), samples)
}

fn write_json(path: &Path, value: &(impl Serialize + ?Sized)) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    Ok(formats::write::write_file(path, text.as_bytes())?)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Or killed, so that nothing could be written about the end; [`RunFiles::training`] tells which.
    #[default]
    Running,
    Finished,
    /// It can be resumed.
    Interrupted,
    Failed,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub metric: String,
    pub value: f64,
}

/// One of `samples.json`'s array: an example of the validation split as the model sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// The example's image, NLVR2's two, or the images that retrieval found for the text, best first.
    pub images: Vec<SampleImage>,
    /// Question, sentence or query; empty for classification.
    pub text: String,
    /// The model's answers, best first; empty for retrieval.
    pub predictions: Vec<Prediction>,
    /// The right answers.
    pub truth: Vec<String>,
    /// How right the first answer is, 0 to 1, where that is known.
    pub score: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SampleImage {
    /// Relative to the run's folder: `samples/0001.jpg`. JPEG, PNG, WebP or GIF.
    pub file: String,
    /// What stands below it: `left`, a similarity, …
    pub caption: String,
    /// Whether it is the one that was sought.
    pub right: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prediction {
    pub answer: String,
    /// A probability.
    pub score: f64,
}

/// What there is in a run's folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunFiles {
    pub folder: PathBuf,
    /// The folder's name.
    pub name: String,
    /// The text of `config.toml`.
    pub config: Option<String>,
    pub lines: Vec<Line>,
    pub result: Option<RunResult>,
    pub samples: Vec<Sample>,
    /// Whether a process is training in the folder now; `None` where that can't be told.
    pub training: Option<bool>,
    /// What is missing or damaged, a sentence each.
    pub notes: Vec<String>,
}

impl RunFiles {
    /// Reads what there is.
    ///
    /// # Errors
    /// There is no such folder, or it has none of these files. A damaged file is a note.
    pub fn read(folder: &Path) -> Result<RunFiles> {
        let shown = show_path(folder);
        if !folder.is_dir() {
            bail!("{shown}: there is no such folder");
        }
        if ![CONFIG, METRICS, RESULT, SAMPLES].iter().any(|file| folder.join(file).exists()) {
            bail!("{shown}: no run in this folder: it has neither {CONFIG} nor {METRICS}");
        }
        let full = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = full.file_name().map_or_else(|| shown.to_string(), |name| name.to_string_lossy().into_owned());
        let mut run = RunFiles { folder: folder.to_owned(), name, ..RunFiles::default() };
        run.training = run_dir::is_training(folder);
        run.config = run.text(CONFIG);
        if folder.join(METRICS).exists() {
            run.lines = metrics_log::read(&folder.join(METRICS)).unwrap_or_else(|e| {
                run.notes.push(format!("{e:#}"));
                Vec::new()
            });
        } else {
            run.notes.push(missing(METRICS));
        }
        run.result = run.json(RESULT);
        // What samples are taken from isn't missing where there is no validation split.
        let validated =
            run.result.as_ref().is_none_or(|result| !result.validation_data.is_empty() || result.train_data.is_empty());
        if validated || folder.join(SAMPLES).exists() {
            run.samples = run.json(SAMPLES).unwrap_or_default();
        }
        Ok(run)
    }

    /// Whether the run has ended before its last update.
    pub fn can_be_resumed(&self) -> bool {
        let status = self.result.as_ref().map(|result| result.status);
        self.training == Some(false) && status.is_some_and(|status| status != Status::Finished)
    }

    /// The bytes of a sample's image; `None` where it isn't there, or isn't a file of this folder.
    pub fn image(&self, image: &SampleImage) -> Option<Vec<u8>> {
        let path = Path::new(&image.file);
        // The file may come from someone else: nothing outside the folder gets into the page.
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        std::fs::read(self.folder.join(path)).ok()
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match std::fs::read_to_string(self.folder.join(name)) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.notes.push(missing(name));
                None
            }
            Err(e) => {
                self.notes.push(format!("{name} cannot be read: {e}."));
                None
            }
        }
    }

    fn json<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        serde_json::from_str(&text).map_err(|e| self.notes.push(format!("{name} is damaged: {e}."))).ok()
    }
}

fn missing(name: &str) -> String {
    format!("There is no {name}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_damaged_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let error = RunFiles::read(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("it has neither config.toml nor metrics.jsonl"), "{error}");
        let error = RunFiles::read(&folder.path().join("none")).unwrap_err().to_string();
        assert!(error.ends_with("none: there is no such folder"), "{error}");

        std::fs::write(folder.path().join(RESULT), "{\"step\": \"x\"}").unwrap();
        std::fs::write(folder.path().join(METRICS), "{\"step\":1,\"seconds\":0}\n").unwrap();
        let run = RunFiles::read(folder.path()).unwrap();
        assert_eq!((run.lines.len(), run.config, run.result), (1, None, None));
        assert_eq!(run.notes.len(), 3);
        assert!(run.notes[1].starts_with("result.json is damaged: invalid type"), "{:?}", run.notes);
    }

    #[test]
    fn results_may_lack_fields_and_read_back() {
        let result: RunResult = serde_json::from_str(r#"{"step": 3, "status": "interrupted"}"#).unwrap();
        assert_eq!((result.step, result.status, result.best), (3, Status::Interrupted, None));
        let full = RunResult {
            metrics: IndexMap::from([("vqa_score".into(), 0.5)]),
            best: Some(Best { step: 2, metric: "vqa_score".into(), value: 0.5 }),
            ..result
        };
        let folder = tempfile::tempdir().unwrap();
        full.write(folder.path()).unwrap();
        let samples = [Sample { text: "a?".into(), score: Some(0.3), ..Sample::default() }];
        write_samples(folder.path(), &samples).unwrap();
        let run = RunFiles::read(folder.path()).unwrap();
        assert_eq!((run.result.unwrap(), run.samples), (full, samples.to_vec()));
    }

    #[test]
    fn a_run_is_being_trained_while_its_lock_is_held() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(RESULT), "{\"status\": \"running\"}").unwrap();
        let read = || RunFiles::read(folder.path()).unwrap();
        // Of a copy without hidden files.
        assert_eq!((read().training, read().can_be_resumed()), (Some(false), true));
        let run = run_dir::RunDir::check(folder.path(), true).unwrap();
        let lock = run.lock().unwrap();
        assert_eq!((read().training, read().can_be_resumed()), (Some(true), false));
        drop(lock);
        assert_eq!((read().training, read().can_be_resumed()), (Some(false), true));
        // Asking leaves the lock to those who train.
        run.lock().unwrap();
    }

    #[test]
    fn images_outside_the_folder_are_not_read() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("run");
        std::fs::create_dir_all(folder.join(SAMPLE_IMAGES)).unwrap();
        std::fs::write(outer.path().join("secret.png"), "secret").unwrap();
        std::fs::write(folder.join("samples/1.png"), "image").unwrap();
        let run = RunFiles { folder, ..RunFiles::default() };
        let read = |file: &str| run.image(&SampleImage { file: file.into(), ..SampleImage::default() });
        assert_eq!(read("samples/1.png").as_deref(), Some(&b"image"[..]));
        assert_eq!(read("../secret.png"), None);
        assert_eq!(read("samples/../../secret.png"), None);
        assert_eq!(read(outer.path().join("secret.png").to_str().unwrap()), None);
        assert_eq!(read(""), None);
    }
}
