//! Relative position biases, gathered from their table.

use burn::backend::Autodiff;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::memory::{Unwritten, contiguous, exclusive, tensor, unique, values};
use super::{pending, register};

/// Columns `first..first + heads` of a table [rows, columns], at the rows that `index` says.
#[derive(Clone, Debug)]
struct Gather {
    shape: [usize; 2],
    index: FlexTensor,
    tokens: usize,
    first: usize,
    heads: usize,
}

impl Gather {
    fn new(table: &FlexTensor, index: FlexTensor, tokens: usize, first: usize, heads: usize) -> Gather {
        let shape = table.layout().shape();
        Gather { shape: [shape[0], shape[1]], index: contiguous(index), tokens, first, heads }
    }

    fn index(&self) -> &[i64] {
        self.index.as_slice().expect("flex keeps indices as i64, and these are contiguous")
    }

    /// [heads, tokens, tokens]
    fn forward(&self, table: FlexTensor) -> FlexTensor {
        let table = contiguous(table);
        let (table, index) = (values(&table), self.index());
        let pairs = self.tokens * self.tokens;
        let mut out = Unwritten::new(self.heads * pairs);
        out.slots().par_chunks_mut(pairs.max(1)).enumerate().for_each(|(head, slots)| {
            for (slot, row) in slots.iter_mut().zip(index) {
                slot.write(table[*row as usize * self.shape[1] + self.first + head]);
            }
        });
        assert_eq!(index.len(), pairs, "an index for each pair of tokens");
        // SAFETY: there are as many indices as a head has slots, so every slot was written.
        tensor(unsafe { out.written() }, [self.heads, self.tokens, self.tokens])
    }

    /// The table's gradient, added to `sum`: a head's pairs one after another, heads in parallel.
    fn backward(&self, gradient: FlexTensor, sum: FlexTensor) -> FlexTensor {
        let gradient = contiguous(gradient);
        let [rows, columns] = self.shape;
        let heads = values(&gradient).par_chunks((self.tokens * self.tokens).max(1));
        let sums = heads.map(|gradient| {
            let mut sums = vec![0.0; rows];
            for (row, value) in self.index().iter().zip(gradient) {
                sums[*row as usize] += value;
            }
            sums
        });
        let sums = sums.collect::<Vec<Vec<f32>>>();
        let mut sum = exclusive(sum);
        let table = unique(&mut sum).expect("exclusive");
        for (row, table) in table.chunks_exact_mut(columns).enumerate() {
            for (value, sums) in table[self.first..].iter_mut().zip(&sums) {
                *value += sums[row];
            }
        }
        sum
    }
}

impl Backward<Flex, 1> for Gather {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<Flex>(&ops.node);
        let [node] = ops.parents;
        if let Some(node) = node {
            let sum = pending!(grads, node).unwrap_or_else(|| FlexTensor::zeros(self.shape.into(), gradient.dtype()));
            register!(grads, node, Gather::backward(&self, gradient, sum));
        }
    }
}

pub fn untracked(table: FlexTensor, index: IntTensor<Flex>, tokens: usize, first: usize, heads: usize) -> FlexTensor {
    Gather::new(&table, index, tokens, first, heads).forward(table)
}

pub fn tracked<C: CheckpointStrategy>(
    table: FloatTensor<Autodiff<Flex, C>>,
    index: IntTensor<Flex>,
    tokens: usize,
    first: usize,
    heads: usize,
) -> FloatTensor<Autodiff<Flex, C>> {
    let gather = Gather::new(&table.primitive, index, tokens, first, heads);
    let out = gather.forward(table.primitive);
    match gather.prepare::<C>([table.node]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish((), out),
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    }
}
