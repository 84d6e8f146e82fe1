//! What there is to train and evaluate: from a data set's examples to a training batch, and to a result.
//!
//! Each task is a file with one implementation of [`Kind`]. What they have in common is here: images are decoded and
//! transformed on worker threads ahead of the model, texts become word pieces, an example that can't be used is counted
//! and skipped.

mod img_cls;
mod irtr;
mod nlvr2;
mod samples;
mod vqa;

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::batch::{Images, Texts, TrainBatch};
pub use crate::data::Task;
use crate::data::{self, Dataset, Example, Loader, LoaderOptions, Position};
use crate::eval::{self, Outcome};
use crate::image::{self, Training};
use crate::runner::Runner;
use crate::text::Tokenizer;
use crate::train::fit::{Batches, Placed};
pub use samples::{Shown, samples};

/// A task: what of an example the model sees, what it is to learn, how well it has.
trait Kind: 'static {
    /// What is known of an example beside its images and its text.
    type About: Send + 'static;

    /// The example's images, its text, and the rest.
    ///
    /// # Errors
    /// It is of another task.
    fn parts(example: Example<'_>) -> Result<Parts<'_, Self::About>>;

    /// Says why an example can't be learned from: it has no label, or one beyond the head's `labels`.
    ///
    /// # Errors
    /// The reason in words.
    fn learnable(_about: &Self::About, _labels: usize) -> std::result::Result<(), String> {
        Ok(())
    }

    /// One training step's batch of examples that are [`Kind::learnable`]. `labels`: of the head.
    ///
    /// # Errors
    /// An example isn't.
    fn train_batch(inputs: Inputs, about: Vec<Self::About>, labels: usize) -> Result<TrainBatch>;

    /// Runs the model over the examples.
    ///
    /// # Errors
    /// The model's, the data's.
    fn evaluate(runner: &dyn Runner, over: &Evaluation, details: &mut dyn FnMut(Detail) -> Result<()>)
    -> Result<Found>;
}

/// An example, taken apart.
struct Parts<'a, A> {
    images: Vec<Cow<'a, [u8]>>,
    text: Option<&'a str>,
    about: A,
}

/// What the model sees of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
struct Inputs {
    /// One, or two for NLVR2.
    images: Vec<Images>,
    texts: Texts,
}

impl Inputs {
    fn image(self) -> (Texts, Images) {
        (self.texts, self.images.into_iter().next().unwrap_or_default())
    }

    fn pair(self) -> (Texts, Images, Images) {
        let mut images = self.images.into_iter();
        (self.texts, images.next().unwrap_or_default(), images.next().unwrap_or_default())
    }
}

/// The sizes that a model takes its inputs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Pixels along a side.
    pub image: usize,
    /// Tokens of a text.
    pub text: usize,
}

impl Sizes {
    pub fn of(runner: &dyn Runner) -> Sizes {
        Sizes { image: runner.image_size(), text: runner.text_len() }
    }
}

/// What becomes of an image on its way to the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Transform {
    Evaluation,
    Training(Training),
}

/// Training batches of a data set, shuffled by seed and epoch.
pub struct TrainData {
    pub set: Arc<dyn Dataset>,
    pub tokenizer: Arc<Tokenizer>,
    pub sizes: Sizes,
    pub transform: Transform,
    pub batch_size: usize,
    /// Labels of the head.
    pub labels: usize,
    pub seed: u64,
    /// Worker threads; 0 for one a core.
    pub workers: usize,
    /// Through the examples once, the last batch being what remains; else for ever, in whole batches.
    pub once: bool,
}

impl Batches for TrainData {
    fn examples(&self) -> u64 {
        self.set.len() as u64
    }

    fn per_epoch(&self) -> u64 {
        (self.set.len() / self.batch_size.max(1)) as u64
    }

    fn from(&self, epoch: u64, batch: u64) -> Result<Box<dyn Iterator<Item = Result<Placed>> + '_>> {
        match self.set.task() {
            Task::Irtr => self.batches::<irtr::Irtr>(epoch, batch),
            Task::Vqa => self.batches::<vqa::Vqa>(epoch, batch),
            Task::Nlvr2 => self.batches::<nlvr2::Nlvr2>(epoch, batch),
            Task::ImgCls => self.batches::<img_cls::ImgCls>(epoch, batch),
        }
    }
}

impl TrainData {
    fn batches<K: Kind>(&self, epoch: u64, batch: u64) -> Result<Box<dyn Iterator<Item = Result<Placed>> + '_>> {
        let options = LoaderOptions {
            batch_size: self.batch_size,
            drop_last: !self.once,
            shuffle: true,
            seed: self.seed,
            threads: self.workers,
            start: Position { epoch, batch },
            end_epoch: self.once.then_some(epoch + 1),
            ..LoaderOptions::default()
        };
        let loader = prepared::<K>(&self.set, &self.tokenizer, self.sizes, self.transform.clone(), options)?;
        let labels = self.labels;
        Ok(Box::new(loader.map(move |found| {
            let Prepared { position, inputs, about, indices } = found?;
            for (about, index) in about.iter().zip(indices) {
                if let Err(reason) = K::learnable(about, labels) {
                    bail!("{}: {reason}", self.set.origin(index));
                }
            }
            let examples = K::train_batch(inputs, about, labels)?;
            Ok(Placed { epoch: position.epoch, batch: position.batch, examples })
        })))
    }
}

/// A split to evaluate on.
#[derive(Clone)]
pub struct Evaluation {
    pub set: Arc<dyn Dataset>,
    pub tokenizer: Arc<Tokenizer>,
    pub batch_size: usize,
    /// Worker threads; 0 for one a core.
    pub workers: usize,
    /// The names of the head's labels, for `vqa` and `img_cls`.
    pub labels: Arc<[String]>,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub outcome: Outcome,
    /// The model's answers, for EvalAI; `vqa` only.
    pub answers: Vec<eval::vqa::Answer>,
}

/// One example after the model saw it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Detail {
    Irtr(eval::irtr::Detail),
    Vqa(eval::vqa::Detail),
    Nlvr2(eval::nlvr2::Detail),
    ImgCls(eval::img_cls::Detail),
}

/// Runs a model over a split. `details` hears of every example.
///
/// # Errors
/// The model lacks the task's head, the data can't be read, too many of its rows are broken, or `details` fails.
pub fn evaluate(
    runner: &dyn Runner,
    over: &Evaluation,
    details: &mut dyn FnMut(Detail) -> Result<()>,
) -> Result<Found> {
    match over.set.task() {
        Task::Irtr => irtr::Irtr::evaluate(runner, over, details),
        Task::Vqa => vqa::Vqa::evaluate(runner, over, details),
        Task::Nlvr2 => nlvr2::Nlvr2::evaluate(runner, over, details),
        Task::ImgCls => img_cls::ImgCls::evaluate(runner, over, details),
    }
}

impl Evaluation {
    /// Batches of the split, in order.
    fn batches<K: Kind>(&self, runner: &dyn Runner) -> Result<impl Iterator<Item = Result<(Inputs, Vec<K::About>)>>> {
        let options = self.options();
        let loader = prepared::<K>(&self.set, &self.tokenizer, Sizes::of(runner), Transform::Evaluation, options)?;
        Ok(loader.map(|found| found.map(|batch| (batch.inputs, batch.about))))
    }

    fn options(&self) -> LoaderOptions {
        LoaderOptions { batch_size: self.batch_size, threads: self.workers, ..LoaderOptions::default() }
    }
}

/// A batch and its place.
struct Prepared<A> {
    position: Position,
    inputs: Inputs,
    about: Vec<A>,
    /// Positions in the data set.
    indices: Vec<usize>,
}

/// Batches as the loader makes them of examples that are prepared on its threads.
fn prepared<K: Kind>(
    set: &Arc<dyn Dataset>,
    tokenizer: &Arc<Tokenizer>,
    sizes: Sizes,
    transform: Transform,
    options: LoaderOptions,
) -> Result<impl Iterator<Item = Result<Prepared<K::About>>> + use<K>> {
    let (source, tokenizer) = (set.clone(), tokenizer.clone());
    let load = move |index: usize, rng: &mut ChaCha8Rng| {
        // A file that can't be read is as bad as one that can't be decoded.
        let parts = match source.example(index) {
            Ok(example) => K::parts(example)?,
            Err(e) => return source.skip(index, &e.cause()).map(|()| None).map_err(Into::into),
        };
        let mut images = Vec::with_capacity(parts.images.len());
        for bytes in &parts.images {
            match pixels(bytes, sizes.image, &transform, rng) {
                Ok(pixels) => images.push(pixels),
                Err(cause) => return source.skip(index, &cause.to_string()).map(|()| None).map_err(Into::into),
            }
        }
        let text = parts.text.map(|text| tokenizer.encode(&[text], sizes.text)).transpose()?;
        Ok(Some((images, text, parts.about, index)))
    };
    let loader = Loader::start(set.len(), options, load)?;
    let set = set.clone();
    Ok(loader.map(move |batch| {
        let batch = batch.map_err(|e| match (e.downcast_ref(), set.broken().sample().first()) {
            (Some(data::Error::NoExample(_)), Some(first)) => anyhow!("{}: {e}: {first}", set.name()),
            _ => e,
        })?;
        let mut inputs = Inputs { images: Vec::new(), texts: Texts { len: sizes.text, ..Texts::default() } };
        let mut about = Vec::with_capacity(batch.items.len());
        let mut indices = Vec::with_capacity(batch.items.len());
        for (images, text, rest, index) in batch.items {
            indices.push(index);
            for (slot, pixels) in images.into_iter().enumerate() {
                if inputs.images.len() <= slot {
                    inputs.images.push(Images { count: 0, size: sizes.image, pixels: Vec::new() });
                }
                let into = &mut inputs.images[slot];
                into.count += 1;
                into.pixels.extend(pixels);
            }
            if let Some(text) = text {
                inputs.texts.count += 1;
                inputs.texts.ids.extend(text.ids);
                inputs.texts.mask.extend(text.mask);
            }
            about.push(rest);
        }
        Ok(Prepared { position: batch.position, inputs, about, indices })
    }))
}

/// An encoded image as the model takes it, [3, size, size].
fn pixels(bytes: &[u8], size: usize, transform: &Transform, rng: &mut ChaCha8Rng) -> image::Result<Vec<f32>> {
    let image = image::decode(bytes)?;
    let mut pixels = vec![0.0; 3 * size * size];
    match transform {
        Transform::Evaluation => image::evaluation(&image, size, &mut pixels),
        Transform::Training(training) => training.apply(&image, rng, &mut pixels),
    }
    Ok(pixels)
}

fn other_task<T>(wanted: Task) -> Result<T> {
    bail!("an example of another task than {wanted} in the data set")
}

#[cfg(test)]
mod tests;
