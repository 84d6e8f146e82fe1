//! What the tasks make of the transformer's output, and their losses; all in f32, whatever the transformer's precision.

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Int, Tensor};

use super::layers::{Pooler, Projection};
use super::transformer::VlModel;
use crate::device::Precision;
use crate::kernels::Backend;

/// Each row over its length.
pub fn unit<B: BurnBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = (x.clone() * x.clone()).sum_dim(1).sqrt();
    x / length
}

/// The first token of [batch, tokens, D].
pub fn first<B: BurnBackend>(x: Tensor<B, 3>) -> Tensor<B, 2> {
    let [batch, _, d] = x.dims();
    x.narrow(1, 0, 1).reshape([batch, d])
}

impl<B: Backend> VlModel<B> {
    /// A retrieval embedding of length 1 from hidden states before the final norm.
    ///
    /// - hidden: [batch, tokens, D]
    /// - output: [batch, D]
    pub fn embedding(&self, hidden: Tensor<B, 3>, projection: &Projection<B>) -> Tensor<B, 2> {
        let token = self.norm(first(hidden));
        unit(projection.fc.forward(token, Precision::F32))
    }

    /// What classifiers of a joint input take: tanh of a linear map of the first token, [batch, D].
    pub fn pooled(&self, hidden: Tensor<B, 3>, pooler: &Pooler<B>) -> Tensor<B, 2> {
        pooler.dense.forward(self.norm(first(hidden)), Precision::F32).tanh()
    }

    /// What the image classifier takes: the mean of all tokens, [batch, D].
    pub fn mean_token(&self, hidden: Tensor<B, 3>) -> Tensor<B, 2> {
        let [batch, _, d] = hidden.dims();
        self.norm(hidden).mean_dim(1).reshape([batch, d])
    }
}

/// Scores of every image for every text, exp(scale) · images · textsᵀ: [images, texts].
pub fn similarities<B: BurnBackend>(images: Tensor<B, 2>, texts: Tensor<B, 2>, scale: Tensor<B, 1>) -> Tensor<B, 2> {
    images.matmul(texts.transpose()) * scale.exp().unsqueeze()
}

/// Symmetric cross-entropy of scores whose diagonal is right.
pub fn contrastive<B: BurnBackend>(scores: Tensor<B, 2>) -> Tensor<B, 1> {
    let count = scores.dims()[0];
    let labels = Tensor::arange(0..count as i64, &scores.device());
    let rows = cross_entropy(scores.clone(), labels.clone());
    (rows + cross_entropy(scores.transpose(), labels)) / 2.0
}

/// Mean over rows of −log softmax at the label.
///
/// - logits: [rows, classes]; labels: [rows]
pub fn cross_entropy<B: BurnBackend>(logits: Tensor<B, 2>, labels: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let rows = logits.dims()[0];
    log_softmax(logits, 1).gather(1, labels.reshape([rows, 1])).mean().neg()
}

/// Binary cross-entropy with logits, the mean times the number of labels: the sum over labels, the mean over rows.
///
/// - logits, targets: [rows, labels]
pub fn binary_cross_entropy<B: BurnBackend>(logits: Tensor<B, 2>, targets: Tensor<B, 2>) -> Tensor<B, 1> {
    let labels = logits.dims()[1] as f64;
    // max(x, 0) − x·t + log(1 + exp(−|x|)): no overflow for any x.
    let softplus = logits.clone().abs().neg().exp().add_scalar(1.0).log();
    (logits.clone().clamp_min(0.0) - logits * targets + softplus).mean() * labels
}
