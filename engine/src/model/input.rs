//! From host batches to the device.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::transformer::TextInput;
use crate::batch::{Images, Texts};

/// Each patch's pixels in a row, ready for the patch embedding.
///
/// - output: [count, w², 3·patch²], channel by channel within a patch, as the convolution's weight has them
pub fn patches<B: BurnBackend>(images: &Images, patch: usize, device: &B::Device) -> Tensor<B, 3> {
    let w = images.size / patch;
    let (area, width) = (images.size * images.size, 3 * patch * patch);
    let mut values = vec![0f32; images.count * w * w * width];
    // One row of patches at a time: its pixels lie together in the source.
    values.par_chunks_mut((w * width).max(1)).enumerate().for_each(|(row, out)| {
        let (image, down) = (row / w, row % w);
        for c in 0..3 {
            for y in 0..patch {
                let start = (image * 3 + c) * area + (down * patch + y) * images.size;
                let line = &images.pixels[start..start + w * patch];
                for (across, piece) in line.chunks_exact(patch).enumerate() {
                    let at = across * width + (c * patch + y) * patch;
                    out[at..at + patch].copy_from_slice(piece);
                }
            }
        }
    });
    Tensor::from_data(TensorData::new(values, [images.count, w * w, width]), device)
}

pub fn texts<B: BurnBackend>(texts: &Texts, device: &B::Device) -> TextInput<B> {
    let shape = [texts.count, texts.len];
    let mask: Vec<f32> = texts.mask.iter().map(|&m| f32::from(m)).collect();
    TextInput {
        ids: Tensor::from_data(TensorData::new(texts.ids.clone(), shape), device),
        mask: Tensor::from_data(TensorData::new(mask, shape), device),
    }
}
