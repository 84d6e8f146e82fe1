//! Gram matrices, XᵀX of the inputs that each expert's linear layers saw: what RegMean merges by.

use std::collections::BTreeMap;
use std::path::Path;

use formats::grams::{GRAMS_KEY, GramRecord};
use formats::layout::{Layout, Modality};
use formats::write::{Metadata, Writer};
use formats::{Dtype, TensorInfo};
use indexmap::IndexMap;
use rayon::prelude::*;

use crate::model::layers::Expert;
use crate::model::open::Seen;
use crate::model::transformer::Site;

/// Sums over everything added so far, in f64.
pub struct Grams {
    /// Names the matrices; `None` where all modalities share the weights.
    layout: Option<&'static Layout>,
    matrices: IndexMap<String, Gram>,
    tokens: BTreeMap<Modality, u64>,
    /// The first layer whose input isn't finite.
    not_finite: Option<String>,
}

/// The upper triangle of a [width, width] matrix, in blocks of [`BLOCK`] rows; what is below is not filled in.
struct Gram {
    width: usize,
    values: Vec<f64>,
}

/// Rows of a gram that one thread computes at a time.
const BLOCK: usize = 96;

impl Grams {
    /// Of the linear layers with experts, others are passed over; `layout` names the matrices.
    pub fn new(layout: &'static Layout) -> Grams {
        Grams::named_by(Some(layout))
    }

    /// Of linear layers that all modalities share. The matrices are named as in PyTorch, without a modality:
    /// `transformer.blocks.3.attn` (the input of qkv), `.attn.proj`, `.mlp.fc1`, `.mlp.fc2`.
    pub fn of_shared_weights() -> Grams {
        Grams::named_by(None)
    }

    fn named_by(layout: Option<&'static Layout>) -> Grams {
        Grams { layout, matrices: IndexMap::new(), tokens: BTreeMap::new(), not_finite: None }
    }

    /// Adds the inputs that one linear layer saw.
    pub fn add(&mut self, seen: &Seen) {
        let linear = match seen.site {
            Site::Qkv => "attn.qkv",
            Site::Proj => "attn.proj",
            Site::Fc1 => "mlp.fc1",
            Site::Fc2 => "mlp.fc2",
        };
        let slot = format!("transformer.blocks.{}.{linear}.weight", seen.layer);
        let name = match (self.layout, seen.expert) {
            (Some(layout), Some(expert)) => layout.gram_name(&slot, modality(expert)),
            (None, None) => {
                let module = slot.trim_end_matches(".weight");
                Some(module.trim_end_matches(".qkv").to_owned())
            }
            _ => None,
        };
        let Some(name) = name else { return };
        if self.not_finite.is_none() && !seen.values.iter().all(|value| value.is_finite()) {
            self.not_finite = Some(slot);
        }
        let rows = seen.values.len() / seen.width.max(1);
        let gram = self.matrices.entry(name).or_insert_with(|| Gram::zeros(seen.width));
        gram.add(&seen.values, rows);
    }

    /// The first linear layer that saw a NaN or an infinity: no matrix is of any use then.
    pub fn not_finite(&self) -> Option<&str> {
        self.not_finite.as_deref()
    }

    /// Counts tokens that a modality's matrices sum over.
    pub fn count(&mut self, modality: Modality, tokens: usize) {
        *self.tokens.entry(modality).or_default() += tokens as u64;
    }

    pub fn is_empty(&self) -> bool {
        self.matrices.is_empty()
    }

    pub fn len(&self) -> usize {
        self.matrices.len()
    }

    /// Names and whole matrices, row by row.
    pub fn matrices(&self) -> impl Iterator<Item = (&str, usize, Vec<f64>)> {
        self.matrices.iter().map(|(name, gram)| (name.as_str(), gram.width, gram.whole()))
    }

    /// Writes [width, width] matrices of f64, with what they were recorded from.
    ///
    /// # Errors
    /// The folder can't be written to or the disk is full; what stood there before is still there.
    pub fn write(&self, path: &Path, record: GramRecord) -> formats::Result<()> {
        let record = GramRecord { tokens: self.tokens.clone(), ..record };
        let metadata: Metadata = [(GRAMS_KEY.to_owned(), record.to_json())].into_iter().collect();
        let infos = self.matrices.iter().map(|(name, gram)| TensorInfo {
            name: name.clone(),
            dtype: Dtype::F64,
            shape: vec![gram.width, gram.width],
        });
        let writer = Writer::create(path, infos.collect(), &metadata)?;
        let order: Vec<&Gram> = writer.tensors().iter().map(|info| &self.matrices[info.name.as_str()]).collect();
        writer.fill(
            2,
            |_| false,
            |piece, bytes: &mut Vec<u8>| -> formats::Result<&[u8]> {
                let gram = order[piece.tensor];
                bytes.clear();
                let values = piece.elements.clone().map(|at| gram.at(at / gram.width, at % gram.width));
                bytes.extend(values.flat_map(f64::to_le_bytes));
                Ok(bytes)
            },
        )?;
        writer.finish(&metadata)
    }
}

fn modality(expert: Expert) -> Modality {
    match expert {
        Expert::V => Modality::Vision,
        Expert::L => Modality::Language,
        Expert::Vl => Modality::VisionLanguage,
    }
}

impl Gram {
    fn zeros(width: usize) -> Gram {
        Gram { width, values: vec![0.0; width * width] }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        let (row, column) = (row.min(column), row.max(column));
        self.values[row * self.width + column]
    }

    fn whole(&self) -> Vec<f64> {
        (0..self.width * self.width).map(|at| self.at(at / self.width, at % self.width)).collect()
    }

    /// Adds XᵀX of [rows, width] inputs, products and sums in f64.
    fn add(&mut self, values: &[f32], rows: usize) {
        let width = self.width;
        let x: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        self.values.par_chunks_mut(BLOCK * width).enumerate().for_each(|(block, out)| {
            let start = block * BLOCK;
            let count = out.len() / width;
            let columns = width - start;
            // out[start.., start..] += X[:, start..start+count]ᵀ · X[:, start..]
            // SAFETY: the left matrix is [count, rows], the right one [rows, columns], both within `x`, which holds
            // rows·width elements; the result is [count, columns] within this thread's own rows.
            unsafe {
                gemm::gemm(
                    count,
                    columns,
                    rows,
                    out.as_mut_ptr().add(start),
                    1,
                    width as isize,
                    true,
                    x.as_ptr().add(start),
                    width as isize,
                    1,
                    x.as_ptr().add(start),
                    1,
                    width as isize,
                    1.0f64,
                    1.0f64,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(values: Vec<f32>, width: usize) -> Seen {
        Seen { layer: 2, expert: Some(Expert::V), site: Site::Proj, width, values }
    }

    #[test]
    fn a_small_gram_by_hand() {
        let layout = Layout::by_name("vl-merging").expect("a built-in layout");
        let mut grams = Grams::new(layout);
        // X = [[1, 2], [3, 4]], then [[1, −1]]: XᵀX = [[10, 14], [14, 20]] + [[1, −1], [−1, 1]].
        grams.add(&seen(vec![1.0, 2.0, 3.0, 4.0], 2));
        grams.add(&seen(vec![1.0, -1.0], 2));
        let found: Vec<_> = grams.matrices().collect();
        assert_eq!(found, [("transformer.blocks.2.attn.v.proj", 2, vec![11.0, 13.0, 13.0, 21.0])]);
    }

    #[test]
    fn shared_weights_have_names_without_a_modality() {
        let mut grams = Grams::of_shared_weights();
        for site in [Site::Qkv, Site::Proj, Site::Fc1, Site::Fc2] {
            grams.add(&Seen { expert: None, site, ..seen(vec![1.0, 2.0], 2) });
        }
        let names: Vec<&str> = grams.matrices().map(|(name, ..)| name).collect();
        let expected = ["attn", "attn.proj", "mlp.fc1", "mlp.fc2"].map(|name| format!("transformer.blocks.2.{name}"));
        assert_eq!(names, expected);
        // Beside experts, what is shared isn't merged, and needs none.
        let mut grams = Grams::new(Layout::by_name("vl-merging").expect("a built-in layout"));
        grams.add(&Seen { expert: None, ..seen(vec![1.0, 2.0], 2) });
        assert!(grams.is_empty());
    }

    #[test]
    fn blocks_make_one_matrix() {
        let layout = Layout::by_name("vl-merging").expect("a built-in layout");
        let (rows, width) = (5, 2 * BLOCK + 7);
        let values: Vec<f32> = (0..rows * width).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let mut grams = Grams::new(layout);
        grams.add(&seen(values.clone(), width));
        let (_, _, whole) = grams.matrices().next().expect("one matrix");
        for i in [0, 1, BLOCK - 1, BLOCK, width - 1] {
            for j in [0, BLOCK, 2 * BLOCK, width - 1] {
                let sum: f64 =
                    (0..rows).map(|r| f64::from(values[r * width + i]) * f64::from(values[r * width + j])).sum();
                assert!((whole[i * width + j] - sum).abs() < 1e-12, "{i}, {j}");
            }
        }
    }
}
