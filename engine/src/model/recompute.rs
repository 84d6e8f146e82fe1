//! Activation checkpointing by layers: of each layer a forward pass keeps the input alone, and the backward pass computes
//! the layer once more, from the last to the first: one more forward pass.
//!
//! burn's own checkpointing recomputes single operations, such as norms, and can't run a part of the graph again from
//! within a backward pass. So the backward pass is one for the losses, then one for each layer: a layer's output is a leaf
//! of the graph above it, and what reaches that leaf goes on to the layer's own small graph.

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use super::transformer::{Block, BlockInput, Pass, Tape};
use crate::device::Precision;
use crate::kernels::Backend;

/// The layers of one forward pass, in their order.
pub struct Recompute<B: AutodiffBackend>(Vec<Layer<B>>);

struct Layer<B: AutodiffBackend> {
    block: Block<B>,
    input: BlockInput<B>,
    precision: Precision,
    output: Tensor<B, 3>,
    /// What has reached the output.
    gradient: Option<Tensor<B::InnerBackend, 3>>,
}

impl<B: AutodiffBackend + Backend> Tape<B> for Recompute<B>
where
    B::InnerBackend: Backend,
{
    fn apply(&mut self, block: &Block<B>, input: BlockInput<B>, precision: Precision) -> Tensor<B, 3> {
        // What is random in a layer was drawn with its input, so that both passes through it are the same.
        let output = block.valid().forward(input.inner(), &mut Pass::evaluation(precision));
        let output = Tensor::from_inner(output).require_grad();
        self.0.push(Layer { block: block.clone(), input, precision, output: output.clone(), gradient: None });
        output
    }
}

impl<B: AutodiffBackend + Backend> Recompute<B>
where
    B::InnerBackend: Backend,
{
    pub fn new() -> Recompute<B> {
        Recompute(Vec::new())
    }

    /// The backward pass of a loss. `collect` is given the gradients several times, and takes those of the parameters: a
    /// parameter's gradient is the sum of what it finds.
    pub fn backward(mut self, loss: Tensor<B, 1>, mut collect: impl FnMut(&mut B::Gradients)) {
        let mut gradients = loss.backward();
        loop {
            collect(&mut gradients);
            for layer in &mut self.0 {
                if let Some(gradient) = layer.output.grad_remove(&mut gradients) {
                    layer.gradient = Some(match layer.gradient.take() {
                        Some(sum) => sum + gradient,
                        None => gradient,
                    });
                }
            }
            let Some(Layer { block, input, precision, gradient, .. }) = self.0.pop() else { return };
            let Some(gradient) = gradient else { continue };
            let output = block.forward(input, &mut Pass::evaluation(precision));
            gradients = (output * Tensor::from_inner(gradient)).sum().backward();
        }
    }
}
