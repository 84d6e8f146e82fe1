//! x·weightᵀ + bias. A transposed factor is only a change of strides, and the bias is what a block's product is added to.

use burn::backend::Autodiff;
use burn::tensor::ops::FloatTensor;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::matrix::{Shared, Start, Target, View, multiply_parallel};
use super::memory::{Unwritten, contiguous, tensor, total, unique, values};
use super::simd::multiversion;
use super::{pending, register};
use crate::device::Precision;

/// Rows that one task takes.
const ROWS: usize = 64;

pub fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, precision: Precision) -> FlexTensor {
    let (x, weight) = (strided(x), strided(weight));
    let (x, weight) = (view(&x), view(&weight).transposed());
    let [rows, output] = [x.shape()[0], weight.shape()[1]];
    let mut out = Unwritten::new(rows * output);
    let bias = bias.map(contiguous);
    let start = bias.as_ref().map_or(Start::Nothing, |bias| Start::Row(values(bias)));
    let shared = Shared::new(out.slots());
    // SAFETY: the target is the only one, and nothing of it is kept.
    let to = unsafe { shared.target(0, [rows, output], [output, 1]) };
    multiply_parallel(x, weight, 1.0, start, to, precision);
    // SAFETY: the product covers every element.
    tensor(unsafe { out.written() }, [rows, output])
}

/// The product of two matrices, added to `sum` in place where that is possible.
fn product(a: View, b: View, sum: Option<FlexTensor>, precision: Precision) -> FlexTensor {
    let shape = [a.shape()[0], b.shape()[1]];
    if let Some(mut sum) = sum {
        if let Some(values) = unique(&mut sum) {
            multiply_parallel(a, b, 1.0, Start::Kept, Target::rows(values, shape), precision);
            return sum;
        }
        let mut values = values(&contiguous(sum)).to_vec();
        multiply_parallel(a, b, 1.0, Start::Kept, Target::rows(&mut values, shape), precision);
        return tensor(values, shape);
    }
    let mut out = Unwritten::new(shape[0] * shape[1]);
    let shared = Shared::new(out.slots());
    // SAFETY: the target is the only one, and nothing of it is kept.
    let to = unsafe { shared.target(0, shape, [shape[1], 1]) };
    multiply_parallel(a, b, 1.0, Start::Nothing, to, precision);
    // SAFETY: the product covers every element.
    tensor(unsafe { out.written() }, shape)
}

multiversion! {
    /// Adds every row of `rows` to `sum`.
    fn add_rows<const FMA: bool>(rows: &[f32], sum: &mut [f32]) {
        for row in rows.chunks_exact(sum.len()) {
            for (sum, value) in sum.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}

/// The sum of the rows of `matrix`, in chunks of a fixed size and those in order.
fn column_sums(matrix: &[f32], columns: usize) -> Vec<f32> {
    let sums = matrix.par_chunks((ROWS * columns).max(1)).map(|rows| {
        let mut sum = vec![0.0; columns];
        add_rows(rows, &mut sum);
        sum
    });
    total(sums.collect(), columns)
}

/// `tensor`, unless its strides run backwards.
fn strided(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().has_positive_strides() { tensor } else { tensor.to_contiguous() }
}

fn view(tensor: &FlexTensor) -> View<'_> {
    let layout = tensor.layout();
    let (shape, strides) = (layout.shape(), layout.strides());
    let values = &tensor.storage::<f32>()[layout.start_offset()..];
    View::new(values, [shape[0], shape[1]], [strides[0] as usize, strides[1] as usize])
}

/// Gradients of x and the weight; those of the bias where there is one.
#[derive(Debug)]
struct Linear(Precision);

/// What the backward pass asks the checkpointer for: x if the weight is tracked, the weight if x is.
type Saved = [Option<NodeId>; 2];

/// The gradients of tracked parents, in place of those that other uses of the same tensor have left so far.
macro_rules! backward {
    ($x:ident, $weight:ident, $saved:expr, $grad:ident, $grads:ident, $checkpointer:ident, $precision:expr) => {
        let [x, weight] = $saved.map(|id| id.map(|id| $checkpointer.retrieve_node_output::<FlexTensor>(id)));
        if let (Some(node), Some(weight)) = ($x, weight) {
            let weight = strided(weight);
            let gradient = product(view(&$grad), view(&weight), pending!($grads, node), $precision);
            register!($grads, node, gradient);
        }
        if let (Some(node), Some(x)) = ($weight, x) {
            let x = strided(x);
            let gradient = product(view(&$grad).transposed(), view(&x), pending!($grads, node), $precision);
            register!($grads, node, gradient);
        }
    };
}

impl Backward<Flex, 3> for Linear {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [x, weight, bias] = ops.parents;
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        if let Some(node) = bias {
            let columns = grad.layout().shape()[1];
            let sums = column_sums(values(&grad), columns);
            register!(grads, node, tensor(sums, [columns]));
        }
        backward!(x, weight, ops.state, grad, grads, checkpointer, self.0);
    }
}

impl Backward<Flex, 2> for Linear {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [x, weight] = ops.parents;
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        backward!(x, weight, ops.state, grad, grads, checkpointer, self.0);
    }
}

pub fn tracked<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    weight: FloatTensor<Autodiff<Flex, C>>,
    bias: Option<FloatTensor<Autodiff<Flex, C>>>,
    precision: Precision,
) -> FloatTensor<Autodiff<Flex, C>> {
    let (x_tracked, weight_tracked) = (x.is_tracked(), weight.is_tracked());
    macro_rules! finish {
        ($prepared:expr, $bias:expr) => {
            match $prepared.compute_bound().stateful() {
                OpsKind::Tracked(mut prepared) => {
                    let x_id = weight_tracked.then(|| prepared.checkpoint(&x));
                    let weight_id = x_tracked.then(|| prepared.checkpoint(&weight));
                    prepared.finish([x_id, weight_id], forward(x.primitive, weight.primitive, $bias, precision))
                }
                OpsKind::UnTracked(prepared) => {
                    prepared.finish(forward(x.primitive, weight.primitive, $bias, precision))
                }
            }
        };
    }
    match bias {
        Some(bias) => {
            let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
            finish!(Backward::<Flex, 3>::prepare::<C>(Linear(precision), nodes), Some(bias.primitive))
        }
        None => {
            let nodes = [x.node.clone(), weight.node.clone()];
            finish!(Backward::<Flex, 2>::prepare::<C>(Linear(precision), nodes), None)
        }
    }
}
