//! Attention straight from the joint projection of queries, keys and values, a block of scores at a time.

use std::cell::Cell;

use burn::backend::Autodiff;
use burn::tensor::ops::FloatTensor;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::matrix::{Shared, Start, Target, View, multiply};
use super::memory::{Unwritten, contiguous, tensor, update, values};
use super::simd::{LANES, exp, mul_add, multiversion, sum};
use super::{pending, register};

/// Scores that one task works on at a time: they stay in the second-level cache.
const BLOCK: usize = 1 << 17;

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with `len` values of this thread's own memory, whatever they hold.
fn with_scratch(len: usize, work: impl FnOnce(&mut [f32])) {
    let mut scratch = SCRATCH.take();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    work(&mut scratch[..len]);
    SCRATCH.set(scratch);
}

/// qkv: [batch, tokens, 3·heads·d]
#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: usize,
    tokens: usize,
    heads: usize,
    d: usize,
}

impl Shape {
    fn of(qkv: &FlexTensor, heads: usize) -> Shape {
        let shape = qkv.layout().shape();
        Shape { batch: shape[0], tokens: shape[1], heads, d: shape[2] / 3 / heads }
    }

    /// heads·d
    fn width(&self) -> usize {
        self.heads * self.d
    }

    fn scale(&self) -> f32 {
        (self.d as f64).powf(-0.5) as f32
    }

    /// The distance between rows of scores in scratch memory: whole vectors.
    fn stride(&self) -> usize {
        self.tokens.next_multiple_of(LANES)
    }

    /// Query rows per block, blocks about equally large.
    fn rows(&self) -> usize {
        let blocks = self.tokens.div_ceil((BLOCK / self.stride().max(1)).max(1)).max(1);
        self.tokens.div_ceil(blocks).max(1)
    }

    /// The first of a head's values in row `row` of sample `sample`; `part` is 0 for queries, 1 for keys, 2 for values.
    fn start(&self, sample: usize, row: usize, part: usize, head: usize) -> usize {
        (sample * self.tokens + row) * 3 * self.width() + part * self.width() + head * self.d
    }

    /// Rows `first..first + rows` of a head's queries, keys or values.
    fn part<'a>(&self, qkv: &'a [f32], [sample, first, part, head]: [usize; 4], rows: usize) -> View<'a> {
        let start = self.start(sample, first, part, head);
        View::new(&qkv[start..], [rows, self.d], [3 * self.width(), 1])
    }

    /// The same rows of a head in a [batch, tokens, heads·d] slice.
    fn head<'a>(&self, out: &'a [f32], [sample, first, head]: [usize; 3], rows: usize) -> View<'a> {
        let start = (sample * self.tokens + first) * self.width() + head * self.d;
        View::new(&out[start..], [rows, self.d], [self.width(), 1])
    }
}

/// Adds the bias to a row of scores, and −∞ where the mask has 0 and beyond the tokens; returns the maximum.
#[inline(always)]
fn biased(row: &mut [f32], bias: &[f32], mask: Option<&[f32]>) -> f32 {
    let tokens = bias.len();
    let (scores, padding) = row.split_at_mut(tokens);
    for (score, bias) in scores.iter_mut().zip(bias) {
        *score += bias;
    }
    if let Some(mask) = mask {
        for (score, mask) in scores.iter_mut().zip(mask) {
            *score = if *mask == 0.0 { f32::NEG_INFINITY } else { *score };
        }
    }
    padding.fill(f32::NEG_INFINITY);
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for part in row.as_chunks::<LANES>().0 {
        for (maximum, score) in maxima.iter_mut().zip(part) {
            *maximum = if *score > *maximum { *score } else { *maximum };
        }
    }
    maxima.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

multiversion! {
    /// Scores, row by row, to weights; ln Σ exp(score) of each row goes to `log_sums`.
    fn softmax<const FMA: bool>(
        scores: &mut [f32],
        stride: usize,
        bias: &[f32],
        mask: Option<&[f32]>,
        tokens: usize,
        log_sums: &mut [f32],
    ) {
        let rows = scores.chunks_exact_mut(stride).zip(bias.chunks_exact(tokens));
        for ((row, bias), log_sum) in rows.zip(log_sums) {
            let maximum = biased(row, bias, mask);
            let mut sums = [0.0; LANES];
            let (parts, _) = row.as_chunks_mut::<LANES>();
            for part in &mut *parts {
                for (sum, score) in sums.iter_mut().zip(part) {
                    *score = exp::<FMA>(*score - maximum);
                    *sum += *score;
                }
            }
            let sum = sum(sums);
            let inverse = 1.0 / sum;
            for part in parts {
                for weight in part {
                    *weight *= inverse;
                }
            }
            *log_sum = maximum + sum.ln();
        }
    }
}

multiversion! {
    /// Scores to weights w by the rows' `log_sums`; gradients g of the weights to those of the scores,
    /// w·(g − delta), which are added to `bias_gradient` too if it isn't empty.
    fn softmax_backward<const FMA: bool>(
        scores: &mut [f32],
        gradients: &mut [f32],
        stride: usize,
        bias: &[f32],
        mask: Option<&[f32]>,
        tokens: usize,
        log_sums: &[f32],
        deltas: &[f32],
        bias_gradient: &mut [f32],
    ) {
        let rows = scores.chunks_exact_mut(stride).zip(gradients.chunks_exact_mut(stride)).zip(bias.chunks_exact(tokens));
        for (i, (((row, gradients), bias), (log_sum, delta))) in rows.zip(log_sums.iter().zip(deltas)).enumerate() {
            biased(row, bias, mask);
            gradients[tokens..].fill(0.0);
            let parts = row.as_chunks_mut::<LANES>().0.iter_mut().zip(gradients.as_chunks_mut::<LANES>().0);
            for (scores, gradients) in parts {
                for (score, gradient) in scores.iter_mut().zip(gradients) {
                    *score = exp::<FMA>(*score - log_sum);
                    *gradient = *score * (*gradient - delta);
                }
            }
            if !bias_gradient.is_empty() {
                let sums = &mut bias_gradient[i * tokens..(i + 1) * tokens];
                for (sum, gradient) in sums.iter_mut().zip(&*gradients) {
                    *sum += gradient;
                }
            }
        }
    }
}

/// The heads' outputs [batch, tokens, heads·d], and ln Σ exp(score) [heads, batch, tokens].
fn forward(qkv: &FlexTensor, bias: &FlexTensor, mask: Option<&FlexTensor>, heads: usize) -> (FlexTensor, Vec<f32>) {
    let shape = Shape::of(qkv, heads);
    let Shape { batch, tokens, d, .. } = shape;
    let (qkv, bias, mask) = (contiguous(qkv.clone()), contiguous(bias.clone()), mask.cloned().map(contiguous));
    let (qkv, bias, mask) = (values(&qkv), values(&bias), mask.as_ref().map(values));
    let (width, stride, rows) = (shape.width(), shape.stride(), shape.rows());
    let mut out = Unwritten::new(batch * tokens * width);
    let mut log_sums = vec![0.0; heads * batch * tokens];
    let shared = Shared::new(out.slots());
    // A head's bias serves the samples one after another.
    let pairs = log_sums.par_chunks_mut(tokens.max(1)).enumerate();
    pairs
        .flat_map(|(pair, log_sums)| log_sums.par_chunks_mut(rows).enumerate().map(move |block| (pair, block)))
        .for_each(|(pair, (block, log_sums))| {
            let (head, sample, first) = (pair / batch, pair % batch, block * rows);
            let rows = log_sums.len();
            let mask = mask.map(|mask| &mask[sample * tokens..(sample + 1) * tokens]);
            let bias = &bias[(head * tokens + first) * tokens..(head * tokens + first + rows) * tokens];
            with_scratch(rows * stride, |scores| {
                let queries = shape.part(qkv, [sample, first, 0, head], rows);
                let keys = shape.part(qkv, [sample, 0, 1, head], tokens);
                let to = Target::new(scores, [rows, tokens], [stride, 1]);
                multiply(queries, keys.transposed(), shape.scale(), Start::Nothing, to);
                softmax(scores, stride, bias, mask, tokens, log_sums);
                let weights = View::new(scores, [rows, tokens], [stride, 1]);
                let start = (sample * tokens + first) * width + head * d;
                // SAFETY: a head's columns of these rows belong to this task alone, and nothing of them is kept.
                let to = unsafe { shared.target(start, [rows, d], [width, 1]) };
                multiply(weights, shape.part(qkv, [sample, 0, 2, head], tokens), 1.0, Start::Nothing, to);
            });
        });
    // SAFETY: samples, blocks of rows and heads cover every element.
    (tensor(unsafe { out.written() }, [batch, tokens, width]), log_sums)
}

pub fn untracked(qkv: FlexTensor, bias: FlexTensor, mask: Option<FlexTensor>, heads: usize) -> FlexTensor {
    forward(&qkv, &bias, mask.as_ref(), heads).0
}

/// What the backward pass needs besides qkv, from which it computes the weights again.
#[derive(Clone, Debug)]
struct Saved {
    qkv: NodeId,
    bias: NodeId,
    mask: Option<FlexTensor>,
    heads: usize,
    out: FlexTensor,
    log_sums: Vec<f32>,
}

/// The gradient of qkv and, added to `bias_sum` if that is given, the one of the bias. Heads in parallel; samples,
/// which share the bias, one after another.
fn backward(
    qkv: FlexTensor,
    bias: FlexTensor,
    saved: Saved,
    gradient: FlexTensor,
    bias_sum: Option<FlexTensor>,
) -> (FlexTensor, Option<FlexTensor>) {
    let shape = Shape::of(&qkv, saved.heads);
    let Shape { batch, tokens, heads, d } = shape;
    let (qkv, bias, mask) = (contiguous(qkv), contiguous(bias), saved.mask.map(contiguous));
    let (qkv, bias, mask) = (values(&qkv), values(&bias), mask.as_ref().map(values));
    let gradient = contiguous(gradient);
    let (out, gradient) = (values(&saved.out), values(&gradient));
    let (width, stride, block) = (shape.width(), shape.stride(), shape.rows());
    let mut to = Unwritten::new(qkv.len());
    let shared = Shared::new(to.slots());
    let pair = |head: usize, sample: usize, bias_gradient: &mut [f32]| {
        let mask = mask.map(|mask| &mask[sample * tokens..(sample + 1) * tokens]);
        // SAFETY: a head's columns of a sample are written by one call, and `multiply` keeps them only once written.
        let target = |first: usize, part: usize, rows: usize| unsafe {
            shared.target(shape.start(sample, first, part, head), [rows, d], [3 * width, 1])
        };
        let product = |a: View, b: View, scale: f32, keep: bool, to: Target| {
            multiply(a, b, scale, if keep { Start::Kept } else { Start::Nothing }, to)
        };
        let [keys, content] = [1, 2].map(|part| shape.part(qkv, [sample, 0, part, head], tokens));
        with_scratch(2 * block * stride + block, |scratch| {
            for first in (0..tokens).step_by(block) {
                let rows = block.min(tokens - first);
                let (scores, rest) = scratch.split_at_mut(block * stride);
                let (gradients, deltas) = rest.split_at_mut(block * stride);
                let (scores, gradients, deltas) =
                    (&mut scores[..rows * stride], &mut gradients[..rows * stride], &mut deltas[..rows]);
                let queries = shape.part(qkv, [sample, first, 0, head], rows);
                let out_gradient = shape.head(gradient, [sample, first, head], rows);
                let rectangle = [rows, tokens];
                product(queries, keys.transposed(), shape.scale(), false, Target::new(scores, rectangle, [stride, 1]));
                product(out_gradient, content.transposed(), 1.0, false, Target::new(gradients, rectangle, [stride, 1]));
                for (row, delta) in deltas.iter_mut().enumerate() {
                    let start = (sample * tokens + first + row) * width + head * d;
                    *delta = dot(&gradient[start..start + d], &out[start..start + d]);
                }
                let biases = &bias[(head * tokens + first) * tokens..(head * tokens + first + rows) * tokens];
                let log_sums = &saved.log_sums[(head * batch + sample) * tokens + first..][..rows];
                let bias_gradient = match &mut *bias_gradient {
                    [] => &mut [],
                    all => &mut all[first * tokens..(first + rows) * tokens],
                };
                softmax_backward(scores, gradients, stride, biases, mask, tokens, log_sums, deltas, bias_gradient);
                let weights = View::new(scores, rectangle, [stride, 1]);
                let score_gradients = View::new(gradients, rectangle, [stride, 1]);
                product(score_gradients, keys, shape.scale(), false, target(first, 0, rows));
                product(score_gradients.transposed(), queries, shape.scale(), first > 0, target(0, 1, tokens));
                product(weights.transposed(), out_gradient, 1.0, first > 0, target(0, 2, tokens));
            }
        });
    };
    let bias_gradient = match bias_sum {
        Some(sum) => {
            let kernel = |start: usize, part: &mut [f32]| {
                for sample in 0..batch {
                    pair(start / (tokens * tokens), sample, part);
                }
            };
            Some(update(sum, (tokens * tokens).max(1), kernel).0)
        }
        None => {
            (0..heads * batch).into_par_iter().for_each(|i| pair(i / batch, i % batch, &mut []));
            None
        }
    };
    // SAFETY: heads, samples and their three parts cover every element.
    (tensor(unsafe { to.written() }, [batch, tokens, 3 * width]), bias_gradient)
}

/// Σ a·b in lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = mul_add::<false>(*a, *b, *sum);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += a * b;
    }
    sum(sums)
}

#[derive(Debug)]
struct Attention;

impl Backward<Flex, 2> for Attention {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let saved = ops.state;
        let qkv = checkpointer.retrieve_node_output::<FlexTensor>(saved.qkv);
        let bias = checkpointer.retrieve_node_output::<FlexTensor>(saved.bias);
        let gradient = grads.consume::<Flex>(&ops.node);
        let [qkv_node, bias_node] = ops.parents;
        let bias_sum = bias_node.as_ref().map(|node| {
            let shape = bias.layout().shape().clone();
            pending!(grads, node).unwrap_or_else(|| FlexTensor::zeros(shape, bias.dtype()))
        });
        let (qkv_gradient, bias_gradient) = backward(qkv, bias, saved, gradient, bias_sum);
        if let Some(node) = qkv_node {
            register!(grads, node, qkv_gradient);
        }
        if let (Some(node), Some(gradient)) = (bias_node, bias_gradient) {
            register!(grads, node, gradient);
        }
    }
}

pub fn tracked<C: CheckpointStrategy>(
    qkv: FloatTensor<Autodiff<Flex, C>>,
    bias: FloatTensor<Autodiff<Flex, C>>,
    mask: Option<FlexTensor>,
    heads: usize,
) -> FloatTensor<Autodiff<Flex, C>> {
    match Attention.prepare::<C>([qkv.node.clone(), bias.node.clone()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let (qkv_id, bias_id) = (prepared.checkpoint(&qkv), prepared.checkpoint(&bias));
            let (out, log_sums) = forward(&qkv.primitive, &bias.primitive, mask.as_ref(), heads);
            let saved = Saved { qkv: qkv_id, bias: bias_id, mask, heads, out: out.clone(), log_sums };
            prepared.finish(saved, out)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(untracked(qkv.primitive, bias.primitive, mask, heads)),
    }
}
