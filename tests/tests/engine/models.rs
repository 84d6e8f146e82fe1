//! Small checkpoints and pictures.

use std::path::{Path, PathBuf};

use blackbox::Folder;
use fixtures::{LightningOptions, ModelSpec, Optimizer, Size, TaskHeads, Variant, write_lightning};

/// A model that reads real text: the smallest, with BERT's vocabulary, pictures of 48 pixels and all heads.
pub fn spec() -> ModelSpec {
    ModelSpec {
        hidden_size: 24,
        heads: 3,
        image_size: 48,
        vocab_size: 30522,
        max_text_len: 12,
        task_heads: TaskHeads { vqa: Some(5), nlvr2: true, img_cls: Some(4) },
        ..ModelSpec::preset(Size::Nano, Variant::AllMoe)
    }
}

/// A folder with `ms.ckpt`.
pub fn folder() -> Folder {
    let folder = Folder::new();
    write(&folder, "ms.ckpt", &spec());
    folder
}

pub fn write(folder: &Folder, name: &str, spec: &ModelSpec) {
    let options = LightningOptions { optimizer: Optimizer::None, ..LightningOptions::default() };
    write_lightning(&folder.path(name), spec, &options).unwrap();
}

/// The repository's pictures of every kind.
pub fn picture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/images").join(name)
}

/// Puts one of them into a folder.
pub fn copy(folder: &Folder, name: &str, to: &str) {
    let path = folder.path(to);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::copy(picture(name), path).unwrap();
}

/// Writes a picture that differs with `seed`.
pub fn draw(folder: &Folder, name: &str, seed: u32) {
    let path = folder.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let colour = |x: u32, y: u32| [x * (seed % 7) * 9, y * (seed % 11) * 5, seed * 37].map(|value| (value % 256) as u8);
    image::RgbImage::from_fn(20, 16, |x, y| image::Rgb(colour(x, y))).save(path).unwrap();
}

/// The head of a picture of 20,000 × 20,000 pixels, as it stands in a BMP of 1.2 GB.
pub fn huge() -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    for number in [1_200_000_054u32, 0, 54, 40, 20_000, 20_000, 1 | 24 << 16, 0, 1_200_000_000, 2835, 2835, 0, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}
