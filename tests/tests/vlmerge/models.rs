//! Small models to merge.

use std::collections::BTreeMap;

use blackbox::{Folder, Tensor, Tensors, write};
use fixtures::{ModelSpec, Size, Variant};

/// Two layers, the second with a `vl` expert; attention and norm1 have experts, the rest is shared.
pub fn small() -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        let start = tensors.len() as f32;
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| (start + i as f32 / 8.0).sin()).collect();
        tensors.insert(name, Tensor::f32(shape, &values));
    };
    for (layer, modalities) in [(0, &["v", "l"][..]), (1, &["v", "l", "vl"])] {
        let block = format!("transformer.blocks.{layer}");
        for modality in modalities {
            add(format!("{block}.attn.{modality}.qkv.weight"), &[12, 4]);
            add(format!("{block}.norm1.{modality}.weight"), &[4]);
        }
        add(format!("{block}.mlp.fc1.weight"), &[16, 4]);
        add(format!("{block}.gamma_1"), &[4]);
    }
    tensors
}

/// A folder with `ms.safetensors`: [`small`] after an edit.
pub fn edited(edit: impl FnOnce(&mut Tensors)) -> Folder {
    let folder = Folder::new();
    let mut tensors = small();
    edit(&mut tensors);
    write(&folder.path("ms.safetensors"), &tensors);
    folder
}

/// A folder with a file of these tensors under each name.
pub fn files(files: &[(&str, &[(&str, Tensor)])]) -> Folder {
    let folder = Folder::new();
    for (name, tensors) in files {
        let tensors: BTreeMap<_, _> = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        write(&folder.path(name), &tensors);
    }
    folder
}

/// The smallest model of the real architecture.
pub fn nano(variant: Variant) -> ModelSpec {
    ModelSpec::preset(Size::Nano, variant)
}
