//! A model's answers for single examples, and the names of its labels.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use formats::show_path;

use crate::batch::{Images, Texts};
use crate::data::answers;
use crate::embed::read_text;
use crate::image::{self, Rgb};
use crate::metrics::top_k;
use crate::runner::Runner;
use crate::tasks::Task;
use crate::train::finetune::head_labels;

/// A label and how likely the model holds it, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    pub label: usize,
    pub probability: f32,
}

/// The `top` likeliest answers to a question about an image, best first. Probabilities are the sigmoid's, each answer's
/// by itself, as the model was trained.
///
/// # Errors
/// The model has no head for VQA, the text is of another length, or the model's scores are no numbers.
pub fn vqa(runner: &dyn Runner, question: &Texts, image: &Rgb, top: usize) -> Result<Vec<Guess>> {
    let logits = numbers(runner.vqa_logits(question, &one(runner, image))?.values)?;
    let guess = |label: usize| Guess { label, probability: sigmoid(logits[label]) };
    Ok(top_k::largest(&logits, top).into_iter().map(guess).collect())
}

/// How likely a sentence about two images is true, 0 to 1.
///
/// # Errors
/// As [`vqa`].
pub fn nlvr2(runner: &dyn Runner, sentence: &Texts, left: &Rgb, right: &Rgb) -> Result<f32> {
    let logits = numbers(runner.nlvr2_logits(sentence, &one(runner, left), &one(runner, right))?.values)?;
    match logits[..] {
        [no, yes] => Ok(sigmoid(yes - no)),
        _ => bail!("the model gave {} scores for a sentence, not 2", logits.len()),
    }
}

/// The `top` likeliest classes of an image, best first.
///
/// # Errors
/// As [`vqa`].
pub fn img_cls(runner: &dyn Runner, image: &Rgb, top: usize) -> Result<Vec<Guess>> {
    let logits = numbers(runner.class_logits(&one(runner, image))?.values)?;
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
    let guess = |label: usize| Guess { label, probability: (logits[label] - most).exp() / sum };
    Ok(top_k::largest(&logits, top).into_iter().map(guess).collect())
}

fn one(runner: &dyn Runner, image: &Rgb) -> Images {
    let size = runner.image_size();
    let mut pixels = vec![0.0; 3 * size * size];
    image::evaluation(image, size, &mut pixels);
    Images { count: 1, size, pixels }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn numbers(logits: Vec<f32>) -> Result<Vec<f32>> {
    match logits.iter().all(|logit| logit.is_finite()) {
        true => Ok(logits),
        false => bail!(
            "the model's scores are not numbers (NaN or infinite): its weights may be damaged; try --precision f32"
        ),
    }
}

/// The names of a head's `count` labels: those of `file`, else those in the checkpoint's metadata; `None` where neither
/// has any.
///
/// # Errors
/// The file can't be read, or the number of names is another than `count`.
pub fn label_names(
    file: Option<&Path>,
    metadata: &BTreeMap<String, String>,
    task: Task,
    count: usize,
) -> Result<Option<Vec<String>>> {
    let (names, of) = match file {
        Some(file) => (read_labels(file)?, show_path(file)),
        None => match head_labels(metadata, task) {
            Some(names) => (names, "the checkpoint's metadata".into()),
            None => return Ok(None),
        },
    };
    if names.len() != count {
        bail!("{of}: it names {} labels, but the checkpoint's head for {task} has {count}", names.len());
    }
    Ok(Some(names))
}

/// Label names from a file, or from standard input for `-`: JSON as [`answers::read`] takes it, else one per line.
///
/// # Errors
/// It can't be read, or has no names.
pub fn read_labels(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path)?;
    if text.trim_start().starts_with(['[', '{']) {
        return Ok(answers::from_json(path, text.as_bytes())?);
    }
    let names: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    if names.is_empty() {
        bail!("{}: it has no labels", show_path(path));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::fake::{Fake, texts};
    use crate::train::finetune::labels_key;

    /// Its first numbers are what the fake model answers with.
    fn picture(values: [u8; 4]) -> Rgb {
        Rgb { width: 2, height: 2, pixels: values.iter().flat_map(|&value| [value; 3]).collect() }
    }

    #[test]
    fn guesses_by_hand() {
        let runner = Fake { width: 3 };
        // Pixels 0, 255 and 51 are −1, 1 and −0.6; the text adds 0, 0 and 1.
        let guesses = vqa(&runner, &texts(&[vec![0, 0, 1]]), &picture([0, 255, 51, 0]), 2).unwrap();
        assert_eq!(guesses.iter().map(|guess| guess.label).collect::<Vec<_>>(), [1, 2]);
        assert!((guesses[0].probability - 0.731_058_6).abs() < 1e-6, "{guesses:?}");
        assert!((guesses[1].probability - 0.598_687_7).abs() < 1e-6, "{guesses:?}");
        let classes = img_cls(&runner, &picture([0, 255, 51, 0]), 9).unwrap();
        assert_eq!(classes.iter().map(|guess| guess.label).collect::<Vec<_>>(), [1, 2, 0]);
        assert!((classes.iter().map(|guess| guess.probability).sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn two_images_and_a_sentence() {
        let runner = Fake { width: 2 };
        let sentence = texts(&[vec![0, 2]]);
        // Left −1, 1; right 1, −1: together 0, 0; the text adds 2 to "true".
        let truth = nlvr2(&runner, &sentence, &picture([0, 255, 0, 0]), &picture([255, 0, 0, 0])).unwrap();
        assert!((truth - 0.880_797_1).abs() < 1e-6, "{truth}");
    }

    #[test]
    fn names_from_everywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names");
        let none = BTreeMap::new();
        for text in [r#"["yes", "no"]"#, r#"{"no": 1, "yes": 0}"#, r#"{"0": "yes", "1": "no"}"#, "yes\r\nno\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(label_names(Some(&path), &none, Task::Vqa, 2).unwrap().unwrap(), ["yes", "no"], "{text}");
        }
        let error = label_names(Some(&path), &none, Task::Vqa, 3129).unwrap_err().to_string();
        assert!(error.ends_with("it names 2 labels, but the checkpoint's head for vqa has 3129"), "{error}");
        let metadata = BTreeMap::from([(labels_key(Task::Vqa), r#"["a", "b"]"#.to_string())]);
        assert_eq!(label_names(None, &metadata, Task::Vqa, 2).unwrap().unwrap(), ["a", "b"]);
        assert!(label_names(None, &metadata, Task::Vqa, 3).is_err());
        assert_eq!(label_names(None, &none, Task::Vqa, 2).unwrap(), None);
        assert_eq!(label_names(None, &metadata, Task::ImgCls, 2).unwrap(), None);
    }
}
