//! The merging methods. One file a method: tensors in, tensor out.

mod arithmetic;
mod dare;
mod interpolate;
mod regmean;
mod slerp;
mod soup;
mod ties;
mod vectors;

pub use arithmetic::{Arithmetic, Lambda};
pub use dare::Dare;
pub use interpolate::Interpolate;
pub use regmean::{LayerReport, OnSingular, Options as RegMeanOptions, RegMean, leave_out_absent};
pub use slerp::Slerp;
pub use soup::Soup;
pub use ties::Ties;

use formats::Digester;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::jobs::Merge;

/// The methods that a recipe can name.
pub const NAMES: &[&str] = &["interpolate", "arithmetic", "regmean", "soup", "slerp", "ties", "dare"];

/// Parameters of every merge, whatever its method: what is merged, and under which names.
pub const SHARED: &[&str] = &["experts", "task", "emit"];

/// Parameters that a method takes in a recipe, besides the shared ones.
pub fn parameter_names(method: &str) -> Option<&'static [&'static str]> {
    match method {
        "interpolate" => Some(&["ratio"]),
        "arithmetic" => Some(&["lambda", "sequential"]),
        "regmean" => Some(&["non_diag_scale", "ridge", "on_singular"]),
        "soup" => Some(&["weights", "normalize"]),
        "slerp" => Some(&["t"]),
        "ties" => Some(&["density", "lambda"]),
        "dare" => Some(&["density", "lambda", "seed", "ties"]),
        _ => None,
    }
}

/// Whether a method takes these parameters; the shared ones may be among them.
///
/// # Errors
/// No such method, a parameter missing, unknown or of the wrong type, in words.
pub fn check_parameters(method: &str, parameters: &Map<String, Value>) -> Result<(), String> {
    match method {
        "regmean" => read::<RegMeanOptions>(parameters).map(drop),
        _ => build(method, parameters).map(drop),
    }
}

/// A method from a recipe's parameters; the shared ones are left to whoever plans the merge, and RegMean to
/// [`RegMean::new`], which wants its grams.
///
/// # Errors
/// As [`check_parameters`].
pub fn build(method: &str, parameters: &Map<String, Value>) -> Result<Box<dyn Method>, String> {
    Ok(match method {
        "interpolate" => Box::new(read::<Interpolate>(parameters)?),
        "arithmetic" => Box::new(read::<Arithmetic>(parameters)?),
        "soup" => Box::new(read::<Soup>(parameters)?),
        "slerp" => Box::new(read::<Slerp>(parameters)?),
        "ties" => Box::new(read::<Ties>(parameters)?),
        "dare" => Box::new(read::<Dare>(parameters)?),
        _ => return Err(format!("there is no method '{method}': it is {}", NAMES.join(", "))),
    })
}

/// A method's own parameters, out of a recipe's.
///
/// # Errors
/// A parameter is missing, unknown or of the wrong type, in words.
pub fn read<M: DeserializeOwned>(parameters: &Map<String, Value>) -> Result<M, String> {
    let mut own = parameters.clone();
    own.retain(|name, _| !SHARED.contains(&name.as_str()));
    serde_json::from_value(Value::Object(own)).map_err(|e| e.to_string())
}

/// A way to make one tensor out of several of its shape.
///
/// A method knows numbers and the roles they play, no files. It is called from several threads,
/// once for each run of a tensor's elements or, with [`Method::whole_tensors`], for each tensor.
pub trait Method: Sync {
    /// The name in recipes: `interpolate`.
    fn name(&self) -> &'static str;

    /// The parameters in recipes.
    fn parameters(&self) -> Map<String, Value>;

    /// Whether the parameters are in range and fit what is to be merged. Asked for every merge
    /// before anything is written.
    ///
    /// # Errors
    /// The reason why not.
    fn check(&self, _merge: &Merge) -> Result<(), String> {
        Ok(())
    }

    /// Whether each parameter applies to one at least of all the merges.
    ///
    /// # Errors
    /// The parameter that applies to none, in words.
    fn check_all(&self, _merges: &[&Merge]) -> Result<(), String> {
        Ok(())
    }

    /// What the method must know of whole tensors before it can merge run by run: a few numbers,
    /// of its own choosing, that it finds again in [`Span::survey`]. They may depend on the
    /// values and the merge alone.
    ///
    /// # Errors
    /// The ones of `runs`.
    fn survey(&self, _merge: &Merge, _runs: &mut dyn Runs) -> formats::Result<Vec<f64>> {
        Ok(Vec::new())
    }

    /// Whether the method needs all of a tensor at once; else it is given runs of elements.
    fn whole_tensors(&self) -> bool {
        false
    }

    /// Parameters that are allowed and unusual, in words.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Computes `out` from `inputs`, which stand in the order of the merge's inputs and have its length.
    fn merge_f32(&self, span: &Span, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()>;

    /// The same in f64, for checkpoints stored in f64.
    fn merge_f64(&self, span: &Span, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()>;

    /// Inputs that the method reads by itself, with their roles in the recipe.
    fn own_inputs(&self) -> Vec<(&str, &Digester<'_>)> {
        Vec::new()
    }

    /// Called when every tensor is computed, before the file gets its name: an error leaves no file.
    fn finish(&self) -> formats::Result<()> {
        Ok(())
    }
}

/// The elements of a tensor that a method is to merge, and what it may want to know about them.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    pub merge: &'a Merge,
    /// Index in the tensor of the first element.
    pub start: usize,
    /// Elements of the whole tensor.
    pub elements: usize,
    /// What [`Method::survey`] returned.
    pub survey: &'a [f64],
}

#[cfg(test)]
impl<'a> Span<'a> {
    /// For methods that need to know nothing but the merge.
    fn whole(merge: &'a Merge) -> Span<'a> {
        Span { merge, start: 0, elements: 0, survey: &[] }
    }
}

/// The inputs of one merge, read from the first element to the last as often as a survey wants.
pub trait Runs {
    /// Elements of the whole tensor.
    fn elements(&self) -> usize;

    /// Calls `visit` with the index of each run's first element and the values of every input in
    /// it, in the order of the merge's inputs.
    ///
    /// # Errors
    /// Reading failed.
    fn for_each(&mut self, visit: &mut dyn FnMut(usize, &[&[f64]])) -> formats::Result<()>;
}

/// λ where a recipe gives none.
fn one() -> f64 {
    1.0
}

/// A warning of a λ that is no usual one.
fn unusual_lambda(lambda: f64) -> Option<String> {
    (!(0.0..=2.0).contains(&lambda)).then(|| format!("λ {lambda} is far from the usual 0 to 1"))
}

/// f32 or f64: methods that compute in f64 whatever a checkpoint stores.
trait Element: Copy + Into<f64> {
    /// To the nearest value of this type.
    fn round(value: f64) -> Self;
}

impl Element for f32 {
    fn round(value: f64) -> f32 {
        value as f32
    }
}

impl Element for f64 {
    fn round(value: f64) -> f64 {
        value
    }
}

/// A method's parameters as they stand in recipes.
fn to_map(parameters: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(parameters) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Running a method on tensors in memory, as [`crate::run`] does on files.
#[cfg(test)]
mod testing {
    use formats::layout::{Modality, Part};

    use super::{Method, Runs, Span};
    use crate::jobs::{Input, Merge, Role};

    pub fn merge_of(roles: &[Role]) -> Merge {
        let inputs = roles.iter().map(|&role| Input { checkpoint: 0, tensor: 0, role });
        Merge { name: "w".into(), layer: Some(0), part: Part::Mlp, inputs: inputs.collect() }
    }

    pub fn models(count: usize) -> Vec<Role> {
        (0..count).map(Role::Model).collect()
    }

    pub fn base_and_models(count: usize) -> Vec<Role> {
        std::iter::once(Role::Base).chain(models(count)).collect()
    }

    pub fn experts(modalities: &[Modality]) -> Vec<Role> {
        modalities.iter().map(|&modality| Role::Expert(modality)).collect()
    }

    /// Any magnitude from normal numbers far below to far above a weight's.
    pub fn finite_f32() -> impl proptest::strategy::Strategy<Value = f32> {
        use proptest::num::f32::{NEGATIVE, NORMAL, POSITIVE, ZERO};
        proptest::strategy::Strategy::prop_map(NORMAL | POSITIVE | NEGATIVE | ZERO, |x| x % 1e6)
    }

    /// Tensors in memory, in runs of `step`.
    struct Memory {
        inputs: Vec<Vec<f64>>,
        step: usize,
    }

    impl Runs for Memory {
        fn elements(&self) -> usize {
            self.inputs.first().map_or(0, Vec::len)
        }

        fn for_each(&mut self, visit: &mut dyn FnMut(usize, &[&[f64]])) -> formats::Result<()> {
            for start in (0..self.elements()).step_by(self.step) {
                let end = self.elements().min(start + self.step);
                let run: Vec<&[f64]> = self.inputs.iter().map(|input| &input[start..end]).collect();
                visit(start, &run);
            }
            Ok(())
        }
    }

    /// Merges in f32 under `name`, in runs of `step` elements.
    pub fn run_f32(method: &dyn Method, name: &str, roles: &[Role], inputs: &[&[f32]], step: usize) -> Vec<f32> {
        let merge = Merge { name: name.into(), ..merge_of(roles) };
        method.check(&merge).unwrap();
        let wide = inputs.iter().map(|input| input.iter().map(|&x| x as f64).collect()).collect();
        let survey = method.survey(&merge, &mut Memory { inputs: wide, step }).unwrap();
        let elements = inputs[0].len();
        let mut out = vec![f32::NAN; elements];
        for (number, out) in out.chunks_mut(step).enumerate() {
            let start = number * step;
            let run: Vec<&[f32]> = inputs.iter().map(|input| &input[start..start + out.len()]).collect();
            let span = Span { merge: &merge, start, elements, survey: &survey };
            method.merge_f32(&span, &run, out).unwrap();
        }
        out
    }

    /// Merges in f64, at once.
    pub fn run(method: &dyn Method, roles: &[Role], inputs: &[&[f64]]) -> Vec<f64> {
        let merge = merge_of(roles);
        method.check(&merge).unwrap();
        let wide = inputs.iter().map(|input| input.to_vec()).collect();
        let survey = method.survey(&merge, &mut Memory { inputs: wide, step: 2 }).unwrap();
        let elements = inputs[0].len();
        let mut out = vec![f64::NAN; elements];
        let span = Span { merge: &merge, start: 0, elements, survey: &survey };
        method.merge_f64(&span, inputs, &mut out).unwrap();
        out
    }
}
