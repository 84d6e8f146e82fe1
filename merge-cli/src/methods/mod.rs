//! The merging methods. One file a method: tensors in, tensor out.

mod arithmetic;
mod interpolate;

pub use arithmetic::{Arithmetic, Lambda};
pub use interpolate::Interpolate;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::jobs::Merge;

/// The methods that a recipe can name.
pub const NAMES: &[&str] = &["interpolate", "arithmetic"];

/// Parameters of every merge, whatever its method: what is merged, and under which names.
pub const SHARED: &[&str] = &["experts", "task", "emit"];

/// Parameters that a method takes in a recipe, besides the shared ones.
pub fn parameter_names(method: &str) -> Option<&'static [&'static str]> {
    match method {
        "interpolate" => Some(&["ratio"]),
        "arithmetic" => Some(&["lambda", "sequential"]),
        _ => None,
    }
}

/// A method from a recipe's parameters; the shared ones are left to whoever plans the merge.
///
/// # Errors
/// No such method, a parameter missing, unknown or of the wrong type, in words.
pub fn build(method: &str, parameters: &Map<String, Value>) -> Result<Box<dyn Method>, String> {
    fn read<M: DeserializeOwned>(parameters: &Map<String, Value>) -> Result<M, String> {
        let mut own = parameters.clone();
        own.retain(|name, _| !SHARED.contains(&name.as_str()));
        serde_json::from_value(Value::Object(own)).map_err(|e| e.to_string())
    }
    Ok(match method {
        "interpolate" => Box::new(read::<Interpolate>(parameters)?),
        "arithmetic" => Box::new(read::<Arithmetic>(parameters)?),
        _ => return Err(format!("there is no method '{method}': it is {}", NAMES.join(", "))),
    })
}

/// A way to make one tensor out of several of its shape.
///
/// A method knows numbers and the roles they play, no files. It is called from several threads,
/// once for each piece of a tensor or, with [`Method::whole_tensors`], for each tensor.
pub trait Method: Sync {
    /// The name in recipes: `interpolate`.
    fn name(&self) -> &'static str;

    /// The parameters in recipes.
    fn parameters(&self) -> Map<String, Value>;

    /// Whether the method needs all of a tensor at once; else it is given runs of elements.
    fn whole_tensors(&self) -> bool {
        false
    }

    /// Whether the method can compute this merge, asked before anything is written. The error says
    /// in words what is in the way.
    fn check(&self, _merge: &Merge) -> Result<(), String> {
        Ok(())
    }

    /// Parameters that are allowed and unusual, in words.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Computes `out` from `inputs`, which stand in the order of `merge.inputs` and have its length.
    fn merge_f32(&self, merge: &Merge, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()>;

    /// The same in f64, for checkpoints stored in f64.
    fn merge_f64(&self, merge: &Merge, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()>;
}
