//! Gram files: for each linear layer and modality, the matrix XᵀX of the inputs that the layer saw.
//!
//! A gram file is a checkpoint like any other, so [`crate::open`] reads it: a PyTorch file with a
//! dict of tensors at its top, or safetensors. Names come from
//! [`Layout::gram_name`](crate::layout::Layout::gram_name). A gram of an input of width d is stored
//!
//! - in full, as [d, d], or
//! - packed, as [d(d + 1)/2]: the upper triangle with the diagonal, row by row, so that element
//!   (i, j), i ≤ j, stands at i·d − i(i − 1)/2 + j − i. Half the size; the lower triangle is its
//!   mirror image.
//!
//! in f64 or any narrower floating-point type. [`GramRecord`] says in the metadata what the
//! matrices were recorded from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::TensorInfo;
use crate::layout::Modality;
use crate::write::Metadata;

/// Metadata key of the [`GramRecord`], as JSON.
pub const GRAMS_KEY: &str = "vlmerge.grams";

/// What a file of gram matrices was recorded from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GramRecord {
    /// The checkpoint's path as it was given: absolute, or relative to the folder of that run. Who looks
    /// for the file tries this, then the same file name beside the gram file.
    pub checkpoint: String,
    /// Where in the checkpoint the tensors are, as [`crate::open_root`] takes it; `None` for where
    /// it looks by itself.
    pub root: Option<String>,
    /// The checkpoint's content digest ([`crate::content_digest`]).
    pub content_digest: String,
    /// The task whose forward pass was run: `irtr`, `vqa`, `nlvr2`, …
    pub task: Option<String>,
    /// Samples (pairs of image and text) that were run.
    pub samples: u64,
    /// Tokens that each modality's grams sum over.
    pub tokens: BTreeMap<Modality, u64>,
}

impl GramRecord {
    /// The record in a file's metadata, if there is one.
    ///
    /// # Errors
    /// It is there and can't be read: the reason in words, on one line.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<GramRecord>, String> {
        let Some(text) = metadata.get(GRAMS_KEY) else { return Ok(None) };
        let fault = |e: serde_json::Error| format!("its record under '{GRAMS_KEY}' can't be read: {e}");
        serde_json::from_str(text).map(Some).map_err(fault)
    }

    /// Compact JSON for the metadata.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// How a gram matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// [d, d]
    Full,
    /// [d(d + 1)/2], the upper triangle row by row.
    Packed,
}

impl Storage {
    /// How the gram of an input of width `d` is stored in this tensor; `None` if it is no such gram.
    pub fn of(info: &TensorInfo, d: usize) -> Option<Storage> {
        match *info.shape.as_slice() {
            [rows, columns] if rows == d && columns == d => Some(Storage::Full),
            [length] if Some(length) == packed_len(d) => Some(Storage::Packed),
            _ => None,
        }
    }

    /// Elements before row `i`, 0 ≤ i ≤ d.
    pub fn row_start(self, d: usize, i: usize) -> usize {
        match self {
            Storage::Full => i * d,
            // Row 0 is d long, and each row one shorter than the one before.
            Storage::Packed => i * d - (i * i - i) / 2,
        }
    }
}

/// d(d + 1)/2
pub fn packed_len(d: usize) -> Option<usize> {
    Some(d.checked_mul(d.checked_add(1)?)? / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    fn stored(shape: &[usize], d: usize) -> Option<Storage> {
        Storage::of(&TensorInfo { name: "g".into(), dtype: Dtype::F64, shape: shape.to_vec() }, d)
    }

    #[test]
    fn the_shape_says_how_a_gram_is_stored() {
        assert_eq!(stored(&[3, 3], 3), Some(Storage::Full));
        assert_eq!(stored(&[6], 3), Some(Storage::Packed));
        assert_eq!(stored(&[1], 1), Some(Storage::Packed));
        for wrong in [&[3, 4][..], &[9], &[3], &[], &[2, 2], &[3, 3, 1]] {
            assert_eq!(stored(wrong, 3), None, "{wrong:?}");
        }
        assert_eq!(stored(&[6], usize::MAX), None);
    }

    #[test]
    fn packed_rows_grow_shorter() {
        let starts = |storage: Storage| [0, 1, 2, 3].map(|row| storage.row_start(3, row));
        assert_eq!(starts(Storage::Packed), [0, 3, 5, 6]);
        assert_eq!(starts(Storage::Full), [0, 3, 6, 9]);
    }

    #[test]
    fn a_record_survives_its_metadata() {
        let record = GramRecord {
            checkpoint: "ms.ckpt".into(),
            content_digest: "ab".into(),
            task: Some("irtr".into()),
            samples: 60,
            tokens: BTreeMap::from([(Modality::Vision, 600), (Modality::Language, 240)]),
            ..GramRecord::default()
        };
        let metadata = Metadata::from([(GRAMS_KEY.to_string(), record.to_json())]);
        assert_eq!(GramRecord::from_metadata(&metadata), Ok(Some(record)));
        assert_eq!(GramRecord::from_metadata(&Metadata::new()), Ok(None));
        let damaged = Metadata::from([(GRAMS_KEY.to_string(), "{".to_string())]);
        assert!(GramRecord::from_metadata(&damaged).unwrap_err().starts_with("its record under 'vlmerge.grams'"));
    }
}
