//! Buffers for results, and tensors around them.

use std::mem::MaybeUninit;

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

/// Memory for f32 values of which none is written yet. Zeroing it first would cost as much as filling it.
pub struct Unwritten {
    values: Vec<f32>,
    len: usize,
}

impl Unwritten {
    pub fn new(len: usize) -> Unwritten {
        Unwritten { values: Vec::with_capacity(len), len }
    }

    pub fn slots(&mut self) -> &mut [MaybeUninit<f32>] {
        &mut self.values.spare_capacity_mut()[..self.len]
    }

    /// # Safety
    ///
    /// Every slot has been written.
    pub unsafe fn written(mut self) -> Vec<f32> {
        // SAFETY: `len` is within the capacity, and the caller has written so many values.
        unsafe { self.values.set_len(self.len) };
        self.values
    }
}

/// Writes `values` to as many slots, and returns those.
pub fn copied<'a>(slots: &'a mut [MaybeUninit<f32>], values: &[f32]) -> &'a mut [f32] {
    assert_eq!(slots.len(), values.len());
    for (slot, value) in slots.iter_mut().zip(values) {
        slot.write(*value);
    }
    // SAFETY: every slot was written just now, and MaybeUninit<f32> is laid out as f32.
    unsafe { &mut *(std::ptr::from_mut(slots) as *mut [f32]) }
}

pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}

pub fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The values of a contiguous f32 tensor.
pub fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("callers ask for f32 and make tensors contiguous")
}

/// The values of a contiguous f32 tensor that nothing else holds.
pub fn unique(tensor: &mut FlexTensor) -> Option<&mut [f32]> {
    let (start, end) = tensor.layout().contiguous_offsets()?;
    tensor.try_storage_mut().map(|storage| &mut storage[start..end])
}

/// `tensor`, contiguous and held by nothing else: itself if it is so, else a copy.
pub fn exclusive(tensor: FlexTensor) -> FlexTensor {
    let mut tensor = contiguous(tensor);
    if unique(&mut tensor).is_some() {
        return tensor;
    }
    let shape = tensor.layout().shape().clone();
    self::tensor(values(&tensor).to_vec(), shape)
}

/// Runs `kernel` over chunks of `target`'s values, in parallel: in place if nothing else holds them, else on a copy.
/// The kernel gets the index of the chunk's first value; its results come back in order.
pub fn update<R: Send>(
    target: FlexTensor,
    chunk: usize,
    kernel: impl Fn(usize, &mut [f32]) -> R + Sync,
) -> (FlexTensor, Vec<R>) {
    let mut target = contiguous(target);
    if let Some(values) = unique(&mut target) {
        let results =
            values.par_chunks_mut(chunk).enumerate().map(|(i, part)| kernel(i * chunk, part)).collect::<Vec<_>>();
        return (target, results);
    }
    let shape = target.layout().shape().clone();
    let from = values(&target);
    let mut to = Unwritten::new(from.len());
    let parts = to.slots().par_chunks_mut(chunk).zip(from.par_chunks(chunk)).enumerate();
    let results = parts.map(|(i, (slots, part))| kernel(i * chunk, copied(slots, part))).collect::<Vec<_>>();
    // SAFETY: the chunks cover all slots, and each was copied to.
    (tensor(unsafe { to.written() }, shape), results)
}

/// The sum of vectors of one length, in their order.
pub fn total(vectors: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut total = vec![0.0; len];
    for vector in vectors {
        for (sum, value) in total.iter_mut().zip(vector) {
            *sum += value;
        }
    }
    total
}
