//! A model ready to run: the boundary between host code and burn.

use crate::batch::{Images, Matrix, Texts};

/// A loaded model on some device. Batches are whole: no splitting is done here.
///
/// # Errors
/// Every method fails, with a message for the user, when the checkpoint lacks the head that it needs, when an input's
/// shape doesn't fit the model, or when the device runs out of memory.
pub trait Runner: Send {
    /// Pixels along the side of the images that this model takes.
    fn image_size(&self) -> usize;
    /// Tokens of a text, padding included.
    fn text_len(&self) -> usize;
    /// Width of a retrieval embedding.
    fn embedding_size(&self) -> usize;
    /// Number of labels of a task's head, 0 for `irtr`; `None` where there is no such head.
    fn labels(&self, task: &str) -> Option<usize>;

    /// Retrieval embeddings [count, width], each of length 1. Text embeddings · image embeddingsᵀ are the similarities.
    fn embed_texts(&self, texts: &Texts) -> anyhow::Result<Matrix>;
    /// See [`Runner::embed_texts`].
    fn embed_images(&self, images: &Images) -> anyhow::Result<Matrix>;
    /// Scores of the answers before the sigmoid, [count, labels].
    fn vqa_logits(&self, texts: &Texts, images: &Images) -> anyhow::Result<Matrix>;
    /// Scores of false and true before the softmax, [count, 2].
    fn nlvr2_logits(&self, texts: &Texts, left: &Images, right: &Images) -> anyhow::Result<Matrix>;
    /// Scores of the classes before the softmax, [count, labels].
    fn class_logits(&self, images: &Images) -> anyhow::Result<Matrix>;
}
