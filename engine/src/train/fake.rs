//! A trainer for tests: it really learns, in microseconds, and saves and restores itself to the bit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use formats::write::{Metadata, Writer};
use formats::{Dtype, TensorInfo};

use crate::batch::{Images, Matrix, Texts, TrainBatch};
use crate::runner::Runner;
use crate::trainer::{Loss, Trainer, Update};

const FEATURES: usize = 4;

/// Softmax regression on an image's channel means (and 1), by gradient descent with momentum. Other inputs are ignored.
///
/// Its dropout is real enough: `stream` decides by how much features are scaled.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    /// [2, FEATURES]
    weights: Vec<f32>,
    momentum: Vec<f32>,
    gradients: Vec<f64>,
    updates: u64,
    /// From this update on the gradient is not finite.
    pub breaks_at: Option<u64>,
    /// From this update on the loss is not finite.
    pub loss_breaks_at: Option<u64>,
    /// Set once so many updates are done.
    pub stops_at: Option<(u64, Arc<AtomicBool>)>,
    disk_full: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Weights,
    Optimizer,
}

/// What it has learned, and will do next.
impl PartialEq for Fake {
    fn eq(&self, other: &Fake) -> bool {
        (&self.weights, &self.momentum, self.updates) == (&other.weights, &other.momentum, other.updates)
    }
}

impl Fake {
    pub fn new(seed: u32) -> Fake {
        let weights: Vec<f32> = (0..2 * FEATURES as u32).map(|i| ((seed * 31 + i * 17) % 13) as f32 / 130.0).collect();
        Fake {
            momentum: vec![0.0; weights.len()],
            gradients: vec![0.0; weights.len()],
            weights,
            updates: 0,
            breaks_at: None,
            loss_breaks_at: None,
            stops_at: None,
            disk_full: None,
        }
    }

    /// With the weights that one of these saved.
    pub fn open(weights: &Path) -> Result<Fake> {
        let (weights, updates) = read(weights)?;
        Ok(Fake { weights, updates, ..Fake::new(0) })
    }

    /// As when a run is resumed: with weights and optimizer that one of these saved.
    pub fn restored(weights: &Path, optimizer: &Path) -> Result<Fake> {
        let mut fake = Fake::open(weights)?;
        fake.restore_optimizer(optimizer)?;
        Ok(fake)
    }

    pub fn failing_weights(mut self) -> Fake {
        self.disk_full = Some(Part::Weights);
        self
    }

    pub fn failing_optimizer(mut self) -> Fake {
        self.disk_full = Some(Part::Optimizer);
        self
    }

    /// The bits of what it has learned.
    pub fn weights(&self) -> Vec<u32> {
        self.weights.iter().map(|w| w.to_bits()).collect()
    }

    fn write(&self, path: &Path, part: Part, values: &[f32], metadata: &[(String, String)]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if self.disk_full == Some(part) {
            // As it would be without the writer's rename: half of it is there.
            std::fs::write(path, &bytes[..bytes.len() / 2])?;
            bail!("No space left on device");
        }
        let mut metadata: Metadata = metadata.iter().cloned().collect();
        metadata.insert("updates".into(), self.updates.to_string());
        let tensor = TensorInfo { name: "values".into(), dtype: Dtype::F32, shape: vec![values.len()] };
        let writer = Writer::create(path, vec![tensor], &metadata)?.durable();
        writer.fill(
            1,
            |_| true,
            |_, buffer: &mut Vec<u8>| {
                buffer.clear();
                buffer.extend(bytes);
                Ok::<&[u8], formats::Error>(buffer)
            },
        )?;
        Ok(writer.finish(&metadata)?)
    }
}

fn read(path: &Path) -> Result<(Vec<f32>, u64)> {
    let file = formats::open(path)?;
    let mut values = Vec::new();
    let Some(at) = file.position("values") else { bail!("{}: no fake's weights", path.display()) };
    file.read_f32(at, 0..2 * FEATURES, &mut values)?;
    let Some(updates) = file.metadata().get("updates") else { bail!("{}: no updates", path.display()) };
    Ok((values, updates.parse()?))
}

/// [count, FEATURES]
fn features(images: &Images) -> Vec<f32> {
    let channel = images.size * images.size;
    let mut features = Vec::with_capacity(images.count * FEATURES);
    for image in images.pixels.chunks_exact(3 * channel) {
        features.extend(image.chunks_exact(channel).map(|c| c.iter().sum::<f32>() / channel as f32));
        features.push(1.0);
    }
    features
}

/// Scores [count, 2] of features [count, FEATURES].
fn logits(weights: &[f32], features: &[f32]) -> Vec<f32> {
    let score =
        |row: &[f32], label: usize| row.iter().zip(&weights[label * FEATURES..]).map(|(x, w)| x * w).sum::<f32>();
    features.chunks_exact(FEATURES).flat_map(|row| [score(row, 0), score(row, 1)]).collect()
}

fn images_and_labels(batch: &TrainBatch) -> (&Images, Vec<usize>) {
    match batch {
        TrainBatch::ImgCls { images, labels } | TrainBatch::Nlvr2 { left: images, labels, .. } => {
            (images, labels.iter().map(|&label| label as usize % 2).collect())
        }
        TrainBatch::Vqa { images, targets, .. } => {
            (images, (0..targets.rows).map(|row| usize::from(targets.row(row)[0] < 0.5)).collect())
        }
        TrainBatch::Irtr { images, .. } => (images, (0..images.count).map(|i| i % 2).collect()),
    }
}

impl Trainer for Fake {
    fn accumulate(&mut self, batch: &TrainBatch, weight: f64, stream: u64) -> Result<Loss> {
        let (images, labels) = images_and_labels(batch);
        let scale = 1.0 + (stream % 7) as f32 / 100.0;
        let features: Vec<f32> = features(images).iter().map(|x| x * scale).collect();
        let logits = logits(&self.weights, &features);
        let mut loss = 0.0;
        for ((row, scores), &label) in features.chunks_exact(FEATURES).zip(logits.chunks_exact(2)).zip(&labels) {
            let exps = [scores[0].exp(), scores[1].exp()];
            let sum = exps[0] + exps[1];
            loss -= f64::from((exps[label] / sum).ln());
            for (class, exp) in exps.iter().enumerate() {
                let error = exp / sum - f32::from(class == label);
                for (i, x) in row.iter().enumerate() {
                    self.gradients[class * FEATURES + i] += weight * f64::from(error * x) / labels.len() as f64;
                }
            }
        }
        if self.loss_breaks_at.is_some_and(|at| self.updates >= at) {
            return Ok(Loss { value: f64::NAN });
        }
        Ok(Loss { value: loss / labels.len() as f64 })
    }

    fn update(&mut self, lr: f64, max_norm: Option<f64>) -> Result<Update> {
        let mut norm = self.gradients.iter().map(|g| g * g).sum::<f64>().sqrt();
        if self.breaks_at.is_some_and(|at| self.updates >= at) {
            norm = f64::INFINITY;
        }
        let gradients = std::mem::replace(&mut self.gradients, vec![0.0; 2 * FEATURES]);
        if norm.is_finite() {
            let scale = max_norm.map_or(1.0, |max| (max / norm).min(1.0));
            for ((weight, momentum), gradient) in self.weights.iter_mut().zip(&mut self.momentum).zip(gradients) {
                *momentum = 0.9 * *momentum + (gradient * scale) as f32;
                *weight -= lr as f32 * *momentum;
            }
            self.updates += 1;
            if let Some((at, stop)) = &self.stops_at
                && self.updates >= *at
            {
                stop.store(true, Ordering::Relaxed);
            }
        }
        Ok(Update { gradient_norm: norm })
    }

    fn save_weights(&self, path: &Path, metadata: &[(String, String)]) -> Result<()> {
        self.write(path, Part::Weights, &self.weights, metadata)
    }

    fn save_optimizer(&self, path: &Path) -> Result<()> {
        self.write(path, Part::Optimizer, &self.momentum, &[])
    }

    fn restore_optimizer(&mut self, path: &Path) -> Result<()> {
        let (momentum, updates) = read(path)?;
        if updates != self.updates {
            bail!("weights after {} updates, and an optimizer after {updates}", self.updates);
        }
        self.momentum = momentum;
        Ok(())
    }

    fn runner(&self) -> Box<dyn Runner> {
        Box::new(FakeRunner(self.weights.clone()))
    }

    fn parameters(&self) -> usize {
        self.weights.len()
    }
}

/// [`Fake`] with these weights, [2, FEATURES].
pub(crate) struct FakeRunner(pub Vec<f32>);

impl FakeRunner {
    fn matrix(&self, images: &Images) -> Matrix {
        Matrix { rows: images.count, columns: 2, values: logits(&self.0, &features(images)) }
    }
}

impl Runner for FakeRunner {
    fn image_size(&self) -> usize {
        16
    }

    fn text_len(&self) -> usize {
        16
    }

    fn embedding_size(&self) -> usize {
        2
    }

    fn labels(&self, _: &str) -> Option<usize> {
        Some(2)
    }

    fn embed_texts(&self, texts: &Texts) -> Result<Matrix> {
        let values = (0..texts.count).flat_map(|row| {
            let sum: i32 = texts.ids[row * texts.len..(row + 1) * texts.len].iter().sum();
            let angle = sum as f32;
            [angle.cos(), angle.sin()]
        });
        Ok(Matrix { rows: texts.count, columns: 2, values: values.collect() })
    }

    fn embed_images(&self, images: &Images) -> Result<Matrix> {
        let mut matrix = self.matrix(images);
        for row in matrix.values.chunks_exact_mut(2) {
            let norm = (row[0] * row[0] + row[1] * row[1]).sqrt().max(1e-12);
            row.iter_mut().for_each(|x| *x /= norm);
        }
        Ok(matrix)
    }

    fn vqa_logits(&self, _: &Texts, images: &Images) -> Result<Matrix> {
        Ok(self.matrix(images))
    }

    fn nlvr2_logits(&self, _: &Texts, left: &Images, _: &Images) -> Result<Matrix> {
        Ok(self.matrix(left))
    }

    fn class_logits(&self, images: &Images) -> Result<Matrix> {
        Ok(self.matrix(images))
    }
}
