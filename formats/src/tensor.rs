//! What a checkpoint says about one of its tensors.

use crate::Dtype;

/// Name, element type and shape of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a 0-d tensor (one element).
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements. Readers have checked that this and [`TensorInfo::bytes`] don't overflow.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size in bytes of the elements, row-major and contiguous.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}
