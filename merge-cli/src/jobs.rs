//! What each tensor of a result is made of.

use std::collections::HashMap;
use std::path::Path;

use formats::layout::{Experts, Layout, Modality, Part, Slot, group};
use formats::{Checkpoint, Dtype, Error, Result, TensorInfo, show_name};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::random::Stream;
use crate::selection::Selection;

/// One tensor of the result.
#[derive(Clone, Debug)]
pub struct Job {
    pub info: TensorInfo,
    pub source: Source,
}

/// Where a result's values come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Taken over, converted to the job's dtype if that differs.
    Copy { checkpoint: usize, tensor: usize },
    /// Computed by the method.
    Merge(Merge),
    /// Known before the run: the elements in the job's dtype, row-major and little-endian. For tables, which are small.
    Computed(Vec<u8>),
    /// As a new model starts.
    New(Fill),
}

/// The values of a new tensor.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal {
        deviation: f64,
        stream: Stream,
    },
}

impl Fill {
    /// Puts the elements from number `start` on into `out`.
    pub(crate) fn write(self, start: usize, out: &mut [f64]) {
        match self {
            Fill::Constant(value) => out.fill(value),
            Fill::Normal { deviation, stream } => {
                let places = start as u64..;
                out.iter_mut().zip(places).for_each(|(out, at)| *out = deviation * stream.normal(at));
            }
        }
    }
}

impl Source {
    /// What a merge is computed from; nothing for the others.
    pub fn inputs(&self) -> &[Input] {
        match self {
            Source::Copy { .. } | Source::Computed(_) | Source::New(_) => &[],
            Source::Merge(merge) => &merge.inputs,
        }
    }

    pub fn merge(&self) -> Option<&Merge> {
        match self {
            Source::Merge(merge) => Some(merge),
            Source::Copy { .. } | Source::Computed(_) | Source::New(_) => None,
        }
    }
}

/// The names that merged tensors get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Emit {
    /// Each its own, as in a model with one set of weights.
    #[default]
    Merged,
    /// Those of all the experts it was merged for, so that code that expects experts loads the result.
    Multiway,
}

impl Emit {
    /// From a recipe's parameters.
    pub fn from_parameters(parameters: &Map<String, Value>) -> Result<Emit, String> {
        match parameters.get("emit").map(|value| value.as_str()) {
            None | Some(Some("merged")) => Ok(Emit::Merged),
            Some(Some("multiway")) => Ok(Emit::Multiway),
            Some(_) => Err("emit is \"merged\" or \"multiway\"".into()),
        }
    }

    /// As it stands in recipes.
    pub fn parameters(self) -> Map<String, Value> {
        match self {
            Emit::Merged => Map::new(),
            Emit::Multiway => Map::from_iter([("emit".into(), json!(self))]),
        }
    }

    /// Gives merged tensors their names. Comes last: until then a merge's name is its slot's.
    ///
    /// With [`Emit::Multiway`] every merge becomes one for each expert `checkpoint` has of its slot, and the
    /// result has exactly the checkpoint's names, in its order.
    pub fn apply(self, jobs: Vec<Job>, checkpoint: &Checkpoint, layout: &Layout) -> Result<Vec<Job>> {
        if self == Emit::Merged {
            return Ok(jobs);
        }
        let experts = group(layout, checkpoint.tensors(), checkpoint.path())?;
        let slots: HashMap<&str, &Slot> = experts.slots.iter().map(|slot| (slot.slot.as_str(), slot)).collect();
        let mut named = Vec::new();
        for job in jobs {
            match slots.get(job.info.name.as_str()) {
                Some(slot) => named.extend(slot.experts.iter().map(|&(_, tensor)| {
                    let mut job = job.clone();
                    job.info.name.clone_from(&checkpoint.tensors()[tensor].name);
                    job
                })),
                None => named.push(job),
            }
        }
        named.sort_by_key(|job| checkpoint.position(&job.info.name).unwrap_or(usize::MAX));
        Ok(named)
    }
}

/// One tensor to be merged: its place in the model, and what it is merged from.
#[derive(Clone, Debug)]
pub struct Merge {
    /// The merged tensor's name.
    pub name: String,
    pub layer: Option<usize>,
    pub part: Part,
    pub inputs: Vec<Input>,
}

impl Merge {
    /// Whether one expert alone is merged, as where a task uses no other. It is the result, whatever the method: there
    /// is nothing to weigh it against, and it needs no base.
    pub fn is_one_expert(&self) -> bool {
        matches!(self.inputs.as_slice(), [Input { role: Role::Expert(_), .. }])
    }
}

/// One tensor that takes part in a merge.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Position among the checkpoints of the run.
    pub checkpoint: usize,
    /// Position in that checkpoint's tensors.
    pub tensor: usize,
    pub role: Role,
}

/// What an input is to the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// One modality's expert.
    Expert(Modality),
    /// What the experts or models were trained from.
    Base,
    /// What one modality's expert was trained from, where the base has experts itself.
    BaseExpert(Modality),
    /// One of several models, counted from 0.
    Model(usize),
}

/// The jobs that merge the experts inside one modality-specific checkpoint: every slot becomes
/// one tensor under its merged name, every other tensor is copied.
///
/// # Errors
/// There are no experts; an expert the selection needs is missing; experts of one slot differ in
/// shape or dtype, or aren't floating-point numbers.
pub fn merge_experts(checkpoint: &Checkpoint, layout: &Layout, selection: Selection) -> Result<Vec<Job>> {
    let tensors = checkpoint.tensors();
    let path = checkpoint.path();
    let experts = group(layout, tensors, path)?;
    if experts.is_empty() {
        return Err(Error::file(path, no_experts(layout, tensors)));
    }
    experts.check_shapes(tensors, path)?;
    let vl_start = experts.vl_start();
    let mut merges: Vec<Option<Job>> = tensors.iter().map(|_| None).collect();
    let mut is_expert = vec![false; tensors.len()];
    let mut missing = Vec::new();
    for slot in &experts.slots {
        slot.experts.iter().for_each(|&(_, tensor)| is_expert[tensor] = true);
        let mut inputs = Vec::new();
        for &modality in selection.modalities(slot.layer, vl_start) {
            match slot.expert(modality) {
                Some(tensor) => inputs.push(Input { checkpoint: 0, tensor, role: Role::Expert(modality) }),
                None => missing.push(layout.sibling(&tensors[slot.first].name, modality).unwrap_or_default()),
            }
        }
        if missing.is_empty() {
            let dtype = one_dtype(tensors, &inputs, path)?;
            let info = TensorInfo { name: slot.slot.clone(), dtype, shape: tensors[slot.first].shape.clone() };
            let source = Source::Merge(Merge { name: slot.slot.clone(), layer: slot.layer, part: slot.part, inputs });
            merges[slot.first] = Some(Job { info, source });
        }
    }
    if !missing.is_empty() {
        return Err(Error::file(path, missing_reason(&missing, &experts)));
    }
    let copies = tensors.iter().enumerate().map(|(tensor, info)| {
        (!is_expert[tensor]).then(|| Job { info: info.clone(), source: Source::Copy { checkpoint: 0, tensor } })
    });
    // A slot stands where its first expert stood; everything else keeps its place.
    Ok(copies.zip(merges).filter_map(|(copy, merge)| copy.or(merge)).collect())
}

/// Gives every merge its base: the tensor of the merged name in `base` or, if `base` has experts
/// itself, one for each expert that is merged. Bases come before the experts. A single expert gets none, because it
/// is taken as it is. `number` is the position of `base` among the checkpoints of the run.
///
/// # Errors
/// Names that `base` lacks, or has with another shape; all of them are listed.
pub fn add_base(jobs: &mut [Job], layout: &Layout, base: &Checkpoint, number: usize) -> Result<()> {
    let mut faults = Vec::new();
    for job in jobs {
        let Source::Merge(merge) = &mut job.source else { continue };
        if merge.is_one_expert() {
            continue;
        }
        let mut bases = Vec::new();
        let mut add = |name: &str, role: Role| match base.position(name) {
            Some(tensor) if base.tensors()[tensor].shape == job.info.shape => {
                bases.push(Input { checkpoint: number, tensor, role });
            }
            Some(tensor) => {
                let shape = &base.tensors()[tensor].shape;
                faults.push(format!("{} is {shape:?}, not {:?}", show_name(name), job.info.shape));
            }
            None => faults.push(format!("{} is missing", show_name(name))),
        };
        if base.get(&job.info.name).is_some() {
            add(&job.info.name, Role::Base);
        } else {
            // An expert's name if the base has any of this slot's, so that messages name what should be there.
            let names = |modality| layout.expert_name(&job.info.name, modality);
            let has_experts = Modality::ALL.into_iter().filter_map(names).any(|name| base.get(&name).is_some());
            for input in merge.inputs.iter().filter(|_| has_experts) {
                if let Role::Expert(modality) = input.role {
                    add(&names(modality).unwrap_or_default(), Role::BaseExpert(modality));
                }
            }
            if !has_experts {
                add(&job.info.name, Role::Base);
            }
        }
        bases.append(&mut merge.inputs);
        merge.inputs = bases;
    }
    match faults.as_slice() {
        [] => Ok(()),
        faults => Err(Error::file(base.path(), format!("as a base it doesn't fit: {}", listed(faults)))),
    }
}

/// Copies of every tensor, floating-point ones as `dtype` if one is given.
pub fn copy_all(checkpoint: &Checkpoint, dtype: Option<Dtype>) -> Vec<Job> {
    let copy = |(tensor, info): (usize, &TensorInfo)| {
        let mut info = info.clone();
        if info.dtype.is_float() {
            info.dtype = dtype.unwrap_or(info.dtype);
        }
        Job { info, source: Source::Copy { checkpoint: 0, tensor } }
    };
    checkpoint.tensors().iter().enumerate().map(copy).collect()
}

fn one_dtype(tensors: &[TensorInfo], inputs: &[Input], path: &Path) -> Result<Dtype> {
    let first = &tensors[inputs[0].tensor];
    if !first.dtype.is_float() {
        return Err(Error::tensor(
            path,
            &first.name,
            format!("{} values can't be merged: only f64, f32, f16 and bf16", first.dtype),
        ));
    }
    for other in inputs.iter().map(|input| &tensors[input.tensor]) {
        if other.dtype != first.dtype {
            let reason = format!(
                "it is {} and '{}' is {}: experts must have one dtype (vlmerge convert --dtype f32 gives them one)",
                other.dtype,
                show_name(&first.name),
                first.dtype
            );
            return Err(Error::tensor(path, &other.name, reason));
        }
    }
    Ok(first.dtype)
}

fn no_experts(layout: &Layout, tensors: &[TensorInfo]) -> String {
    let is_merged = |info: &TensorInfo| layout.parse_slot(&info.name).is_some();
    match tensors.first() {
        Some(_) if !layout.has_experts() => format!("layout '{}' has no experts to merge", show_name(layout.name())),
        Some(first) if !tensors.iter().any(is_merged) => {
            let (name, layout) = (show_name(&first.name), show_name(layout.name()));
            format!("its names, such as '{name}', are none that layout '{layout}' knows")
        }
        _ => "no experts found: this is already modality-agnostic".into(),
    }
}

fn missing_reason(missing: &[String], experts: &Experts) -> String {
    let names: Vec<String> = missing.iter().map(|name| show_name(name)).collect();
    let s = if missing.len() == 1 { "" } else { "s" };
    format!("{} expert{s} missing (of {} slots that need them): {}", missing.len(), experts.slots.len(), listed(&names))
}

/// The first few of a list on one line, and how many more there are.
pub(crate) fn listed(items: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = items.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match items.len() {
        n if n > SHOWN => format!("{shown} and {} more", n - SHOWN),
        _ => shown,
    }
}
