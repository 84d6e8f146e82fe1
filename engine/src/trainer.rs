//! A model in training: the boundary between the training loop and burn.

use std::path::Path;

use crate::batch::TrainBatch;
use crate::runner::Runner;

/// What one accumulation of gradients came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// The mean loss over the batch.
    pub value: f64,
}

/// What one update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The gradient's L2 norm over all parameters, before clipping.
    pub gradient_norm: f64,
}

/// A model, its gradients and its optimizer on some device.
///
/// A step of the loop is one or more [`Trainer::accumulate`] and one [`Trainer::update`]. Everything random in a
/// forward pass (dropout, stochastic depth) is a function of the seed given at the start and the `stream` passed to
/// `accumulate`, so that a resumed run repeats what an uninterrupted one does.
pub trait Trainer: Send {
    /// Forward and backward pass; adds `weight` times the mean loss's gradients to those held.
    ///
    /// # Errors
    /// The batch doesn't fit the model or the task, or the device runs out of memory.
    fn accumulate(&mut self, batch: &TrainBatch, weight: f64, stream: u64) -> anyhow::Result<Loss>;

    /// The gradients' norm; then, if it is finite, clips them to `max_norm` where given and takes one AdamW step at
    /// learning rate `lr` (times the multiplier for heads). The gradients are dropped in any case: where the norm is
    /// not finite no weight has changed.
    fn update(&mut self, lr: f64, max_norm: Option<f64>) -> anyhow::Result<Update>;

    /// Writes the weights as a safetensors checkpoint that `vlmerge` and `engine` open, atomically. `metadata` is
    /// added to what every checkpoint of ours has (configuration, recipe).
    fn save_weights(&self, path: &Path, metadata: &[(String, String)]) -> anyhow::Result<()>;
    /// Writes the optimizer's moments and step count as safetensors, atomically.
    fn save_optimizer(&self, path: &Path) -> anyhow::Result<()>;
    /// Takes up what [`Trainer::save_optimizer`] wrote. Of a trainer that was opened with the weights saved beside it,
    /// it makes the one that an uninterrupted run would have, bit for bit.
    fn restore_optimizer(&mut self, path: &Path) -> anyhow::Result<()>;

    /// The model as it stands, for evaluation: no dropout, no gradients.
    fn runner(&self) -> Box<dyn Runner>;
    /// Number of trained parameters.
    fn parameters(&self) -> usize;
}
