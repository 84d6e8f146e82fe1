//! What a checkpoint says about one of its tensors.

use crate::Dtype;

/// Bytes of a tensor's elements, if they can be counted at all. Dimensions of 0 don't excuse the
/// others: whoever computes strides from a shape, as every writer does, multiplies those alone.
pub(crate) fn bytes_of(shape: &[usize], dtype: Dtype) -> Option<usize> {
    let whole = shape.iter().try_fold(dtype.size(), |bytes, &d| bytes.checked_mul(d.max(1)))?;
    match isize::try_from(whole) {
        Ok(_) if shape.contains(&0) => Some(0),
        Ok(_) => Some(whole),
        Err(_) => None,
    }
}

/// Name, element type and shape of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a 0-d tensor (one element).
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements. Readers have checked that neither this nor [`TensorInfo::bytes`] overflows.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size in bytes of the elements, row-major and contiguous.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}
