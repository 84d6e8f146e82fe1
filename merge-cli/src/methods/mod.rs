//! The merging methods. One file a method: tensors in, tensor out.

mod arithmetic;
mod interpolate;
mod regmean;

pub use arithmetic::{Arithmetic, Lambda};
pub use interpolate::Interpolate;
pub use regmean::{LayerReport, OnSingular, Options as RegMeanOptions, RegMean};

use formats::Digester;

use crate::jobs::Merge;

/// A way to make one tensor out of several of its shape.
///
/// A method knows numbers and the roles they play, no files. It is called from several threads,
/// once for each piece of a tensor or, with [`Method::whole_tensors`], for each tensor.
pub trait Method: Sync {
    /// The name in recipes: `interpolate`.
    fn name(&self) -> &'static str;

    /// The parameters in recipes.
    fn parameters(&self) -> serde_json::Map<String, serde_json::Value>;

    /// Whether the method needs all of a tensor at once; else it is given runs of elements.
    fn whole_tensors(&self) -> bool {
        false
    }

    /// Computes `out` from `inputs`, which stand in the order of `merge.inputs` and have its length.
    fn merge_f32(&self, merge: &Merge, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()>;

    /// The same in f64, for checkpoints stored in f64.
    fn merge_f64(&self, merge: &Merge, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()>;

    /// Inputs that the method reads by itself, with their roles in the recipe.
    fn own_inputs(&self) -> Vec<(&str, &Digester<'_>)> {
        Vec::new()
    }

    /// Called when every tensor is computed, before the file gets its name: an error leaves no file.
    fn finish(&self) -> formats::Result<()> {
        Ok(())
    }
}
