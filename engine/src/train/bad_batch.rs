//! A batch as a file, for whoever wants to know why it broke the training.

use std::borrow::Cow;
use std::path::Path;

use anyhow::Result;
use formats::write::{Metadata, Writer};
use formats::{Dtype, TensorInfo};

use crate::batch::{Images, Matrix, Texts, TrainBatch};

/// Writes batches as safetensors, under the names that `engine probe --batch` reads: `image` (`image_0` and `image_1`
/// for pairs), `text_ids`, `text_masks`, `vqa_targets`, `nlvr2_labels`, `class_label`. Of several batches, the second one's names begin
/// with `1.`, and so on.
///
/// # Errors
/// The file can't be written.
pub fn write(path: &Path, batches: &[TrainBatch]) -> Result<()> {
    let mut tensors: Vec<(TensorInfo, Cow<[u8]>)> = Vec::new();
    for (number, batch) in batches.iter().enumerate() {
        let prefix = if number == 0 { String::new() } else { format!("{number}.") };
        for (name, dtype, shape, bytes) in parts(batch) {
            tensors.push((TensorInfo { name: format!("{prefix}{name}"), dtype, shape }, bytes));
        }
    }
    let metadata = Metadata::new();
    let writer = Writer::create(path, tensors.iter().map(|(info, _)| info.clone()).collect(), &metadata)?;
    let bytes: Vec<&[u8]> = writer
        .tensors()
        .iter()
        .map(|info| tensors.iter().find(|(own, _)| own.name == info.name).map_or(&[][..], |(_, bytes)| bytes))
        .collect();
    let in_pieces = |_| false;
    writer.fill(1, in_pieces, |piece, buffer: &mut Vec<u8>| {
        let size = writer.tensors()[piece.tensor].dtype.size();
        buffer.clear();
        buffer.extend(&bytes[piece.tensor][piece.elements.start * size..piece.elements.end * size]);
        Ok::<&[u8], formats::Error>(buffer)
    })?;
    Ok(writer.finish(&metadata)?)
}

type Part<'a> = (&'static str, Dtype, Vec<usize>, Cow<'a, [u8]>);

fn parts(batch: &TrainBatch) -> Vec<Part<'_>> {
    match batch {
        TrainBatch::Irtr { texts, images } => [text(texts).to_vec(), vec![image("image", images)]].concat(),
        TrainBatch::Vqa { texts, images, targets } => {
            [text(texts).to_vec(), vec![image("image", images), matrix("vqa_targets", targets)]].concat()
        }
        TrainBatch::Nlvr2 { texts, left, right, labels } => [
            text(texts).to_vec(),
            vec![image("image_0", left), image("image_1", right), integers("nlvr2_labels", labels)],
        ]
        .concat(),
        TrainBatch::ImgCls { images, labels } => vec![image("image", images), integers("class_label", labels)],
    }
}

fn image<'a>(name: &'static str, images: &'a Images) -> Part<'a> {
    let shape = vec![images.count, 3, images.size, images.size];
    (name, Dtype::F32, shape, Cow::Borrowed(bytemuck::cast_slice(&images.pixels)))
}

fn matrix<'a>(name: &'static str, matrix: &'a Matrix) -> Part<'a> {
    (name, Dtype::F32, vec![matrix.rows, matrix.columns], Cow::Borrowed(bytemuck::cast_slice(&matrix.values)))
}

fn text(texts: &Texts) -> [Part<'_>; 2] {
    let shape = vec![texts.count, texts.len];
    let ids = longs(texts.ids.iter().map(|&id| i64::from(id)));
    let mask = longs(texts.mask.iter().map(|&bit| i64::from(bit)));
    [("text_ids", Dtype::I64, shape.clone(), ids), ("text_masks", Dtype::I64, shape, mask)]
}

fn integers<'a>(name: &'static str, values: &[i32]) -> Part<'a> {
    (name, Dtype::I64, vec![values.len()], longs(values.iter().map(|&value| i64::from(value))))
}

fn longs<'a>(values: impl Iterator<Item = i64>) -> Cow<'a, [u8]> {
    Cow::Owned(values.flat_map(i64::to_le_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.safetensors");
        let batch = |first: f32| TrainBatch::Vqa {
            texts: Texts { count: 1, len: 3, ids: vec![101, 7, 102], mask: vec![1, 1, 0] },
            images: Images { count: 1, size: 1, pixels: vec![first, f32::NAN, 0.5] },
            targets: Matrix { rows: 1, columns: 2, values: vec![0.3, 1.0] },
        };
        write(&path, &[batch(-1.0), batch(2.0)]).unwrap();
        let read = formats::open(&path).unwrap();
        let values = |name: &str| {
            let position = read.position(name).unwrap_or_else(|| panic!("no {name}"));
            let info = &read.tensors()[position];
            let mut bytes = Vec::new();
            read.read(position, 0..info.elements(), &mut bytes).unwrap();
            (info.dtype, info.shape.clone(), bytes)
        };
        let (dtype, shape, bytes) = values("image");
        assert_eq!((dtype, shape), (Dtype::F32, vec![1, 3, 1, 1]));
        let pixels: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        assert!(pixels[0] == -1.0 && pixels[1].is_nan() && pixels[2] == 0.5);
        let longs: Vec<i64> = bytemuck::pod_collect_to_vec(&values("text_ids").2);
        assert_eq!(longs, [101, 7, 102]);
        let masks: Vec<i64> = bytemuck::pod_collect_to_vec(&values("1.text_masks").2);
        assert_eq!(masks, [1, 1, 0]);
        assert_eq!(values("vqa_targets").1, [1, 2]);
        let pixels: Vec<f32> = bytemuck::pod_collect_to_vec(&values("1.image").2);
        assert_eq!(pixels[0], 2.0);
    }
}
