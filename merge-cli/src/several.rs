//! The jobs that merge several checkpoints of one model, name by name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use formats::config::Detected;
use formats::history::LABELS;
use formats::layout::{Layout, Part};
use formats::{Checkpoint, Dtype, Error, Result, TensorInfo, show_name, show_path};

use crate::diff;
use crate::jobs::{Input, Job, Merge, Role, Source, listed};

/// What several checkpoints become.
#[derive(Debug)]
pub struct Matched {
    /// A tensor for each of the first checkpoint's, in its order and its dtype.
    pub jobs: Vec<Job>,
    /// What was decided without being asked, a line each.
    pub notes: Vec<String>,
}

/// The jobs that merge checkpoints tensor by tensor; `roles` are theirs, in order.
///
/// Tensors that aren't floating-point numbers, and buffers by the layout, are copied from the first.
/// A note says where another differs in one of these, and where a buffer is in one of two only.
///
/// # Errors
/// A checkpoint's names, shapes or kinds of numbers aren't those of the first, all of which are listed; values that
/// can't be computed with differ; there is nothing to merge.
///
/// # Panics
/// Without checkpoints.
pub fn merge_checkpoints(checkpoints: &[&Checkpoint], roles: &[Role], layout: Option<&Layout>) -> Result<Matched> {
    let (first, others) = checkpoints.split_first().expect("checkpoints to merge");
    let names = Names { layout };
    let jobs: Vec<Job> = first
        .tensors()
        .iter()
        .enumerate()
        .map(|(tensor, info)| {
            let source = match info.dtype.is_float() && !names.is_buffer(&info.name) {
                true => Source::Merge(names.merge(checkpoints, roles, &info.name)),
                false => Source::Copy { checkpoint: 0, tensor },
            };
            Job { info: info.clone(), source }
        })
        .collect();
    let mut notes = Vec::new();
    for other in others {
        names.check(first, other)?;
        notes.extend(names.buffers_apart(first, other));
        notes.extend(copies_apart(&jobs, first, other)?);
    }
    match jobs.iter().any(|job| matches!(job.source, Source::Merge(_))) {
        true => Ok(Matched { jobs, notes }),
        false => Err(Error::file(first.path(), "there are no floating-point tensors to merge")),
    }
}

/// Refuses checkpoints whose tensors have the same names and shapes but don't compute the same with them.
///
/// # Errors
/// What tokens attend to, the number of heads or the first layer with a `vl` expert differ, as far as both are known; a
/// checkpoint's record contradicts its weights.
pub fn check_alike(first: &Checkpoint, other: &Checkpoint) -> Result<()> {
    let (Some(layout), Some(others)) = (first.layout(), other.layout()) else { return Ok(()) };
    let (own, found) = (first.settled_config(layout)?, other.settled_config(others)?);
    let (a, b) = (&own.config, &found.config);
    let fields = [
        ("attends", a.attends.zip(b.attends).is_some_and(|(a, b)| a != b)),
        ("heads", a.heads.zip(b.heads).is_some_and(|(a, b)| a != b)),
        ("vl_start", a.vl_start.zip(b.vl_start).is_some_and(|(a, b)| a != b)),
    ];
    let Some((field, _)) = fields.into_iter().find(|&(_, differs)| differs) else { return Ok(()) };
    let shown = |detected: &Detected| {
        let evidence = detected.evidence.iter().find(|evidence| evidence.field == field);
        evidence.map_or_else(String::new, |found| format!("{} ({})", show_name(&found.value), show_name(&found.from)))
    };
    Err(Error::file(
        other.path(),
        format!(
            "{field} is {}, but {} in {}: these models don't compute the same with equal weights",
            shown(&found),
            shown(&own),
            show_path(first.path())
        ),
    ))
}

/// Refuses checkpoints whose heads name their labels in different orders: a row would be merged with another label's.
///
/// # Errors
/// The first label that differs, or a list of labels that can't be read.
pub fn check_labels(checkpoints: &[Checkpoint]) -> Result<()> {
    let mut named: BTreeMap<&str, &Checkpoint> = BTreeMap::new();
    for other in checkpoints {
        for key in other.metadata().keys().filter(|key| key.starts_with(LABELS)) {
            match named.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(other);
                }
                Entry::Occupied(entry) => check_labels_of(key, entry.get(), other)?,
            }
        }
    }
    Ok(())
}

fn check_labels_of(key: &str, first: &Checkpoint, other: &Checkpoint) -> Result<()> {
    let read = |checkpoint: &Checkpoint| -> Result<Vec<String>> {
        serde_json::from_str(&checkpoint.metadata()[key])
            .map_err(|e| Error::file(checkpoint.path(), format!("{} is no list of labels: {e}", show_name(key))))
    };
    let (own, found) = (read(first)?, read(other)?);
    let Some(number) = (0..own.len().max(found.len())).find(|&number| own.get(number) != found.get(number)) else {
        return Ok(());
    };
    let shown = |labels: &[String]| match labels.get(number) {
        Some(label) => format!("'{}'", show_name(label)),
        None => "missing".to_string(),
    };
    let reason = format!(
        "label {} of its {} head is {}, but {} in {}: rows of different labels can't be merged",
        number + 1,
        show_name(key.strip_prefix(LABELS).unwrap_or(key)),
        shown(&found),
        shown(&own),
        show_path(first.path())
    );
    Err(Error::file(other.path(), reason))
}

/// What names mean, where that is known.
#[derive(Clone, Copy)]
struct Names<'l> {
    layout: Option<&'l Layout>,
}

impl Names<'_> {
    fn is_buffer(self, name: &str) -> bool {
        self.layout.is_some_and(|layout| layout.buffer(name).is_some())
    }

    fn has_experts(self, checkpoint: &Checkpoint) -> bool {
        let is_expert = |info: &TensorInfo| self.layout.is_some_and(|layout| layout.parse_name(&info.name).is_some());
        checkpoint.tensors().iter().any(is_expert)
    }

    fn merge(self, checkpoints: &[&Checkpoint], roles: &[Role], name: &str) -> Merge {
        let held = checkpoints.iter().zip(roles).enumerate();
        let inputs = held.filter_map(|(checkpoint, (held, &role))| {
            held.position(name).map(|tensor| Input { checkpoint, tensor, role })
        });
        let expert = self.layout.and_then(|layout| layout.parse_name(name)).map(|expert| (expert.layer, expert.part));
        let slot = self.layout.and_then(|layout| layout.parse_slot(name)).map(|slot| (slot.layer, slot.part));
        let (layer, part) = expert.or(slot).unwrap_or((None, Part::Other));
        Merge { name: name.into(), layer, part, inputs: inputs.collect() }
    }

    /// Whether two checkpoints hold the same parameters.
    fn check(self, first: &Checkpoint, other: &Checkpoint) -> Result<()> {
        let (mut missing, mut unlike) = (Vec::new(), Vec::new());
        for info in first.tensors() {
            let (name, is_buffer) = (show_name(&info.name), self.is_buffer(&info.name));
            match other.get(&info.name) {
                None if is_buffer => {}
                None => missing.push(name),
                Some(found) if found.shape != info.shape => {
                    unlike.push(format!("{name} is {:?}, not {:?}", found.shape, info.shape));
                }
                Some(found) if found.dtype.is_float() != info.dtype.is_float() && !is_buffer => {
                    unlike.push(format!("{name} is {}, not {}", found.dtype, info.dtype));
                }
                Some(_) => {}
            }
        }
        let is_extra = |info: &&TensorInfo| first.get(&info.name).is_none() && !self.is_buffer(&info.name);
        let extra: Vec<String> = other.tensors().iter().filter(is_extra).map(|info| show_name(&info.name)).collect();
        let faults: Vec<String> = [(missing, "missing"), (extra, "only here"), (unlike, "different")]
            .into_iter()
            .filter(|(names, _)| !names.is_empty())
            .map(|(names, what)| format!("{} {what} ({})", names.len(), listed(&names)))
            .collect();
        if faults.is_empty() {
            return Ok(());
        }
        let hint = match self.has_experts(first) != self.has_experts(other) {
            true => "; only one of the two has experts: --experts merges those inside one checkpoint",
            false => "",
        };
        let reason = format!("its tensors aren't those of {}: {}{hint}", show_path(first.path()), faults.join("; "));
        Err(Error::file(other.path(), reason))
    }

    /// Buffers that only one of two checkpoints has: code saves them or not, from version to version.
    fn buffers_apart(self, first: &Checkpoint, other: &Checkpoint) -> Vec<String> {
        let only_in = |a: &Checkpoint, b: &Checkpoint| -> Vec<String> {
            let names = a.tensors().iter().map(|info| info.name.as_str());
            names.filter(|name| self.is_buffer(name) && b.get(name).is_none()).map(show_name).collect()
        };
        let path = show_path(other.path());
        let mut notes = Vec::new();
        match only_in(first, other).as_slice() {
            [] => {}
            kept => notes
                .push(format!("{path}: it lacks buffers that the first has and the result keeps: {}", listed(kept))),
        }
        match only_in(other, first).as_slice() {
            [] => {}
            dropped => {
                notes.push(format!("{path}: the first lacks buffers that it has, left out: {}", listed(dropped)))
            }
        }
        notes
    }
}

/// A note on the tensors that are copied from the first though another's are different.
fn copies_apart(jobs: &[Job], first: &Checkpoint, other: &Checkpoint) -> Result<Option<String>> {
    let mut buffers = diff::Buffers::default();
    let mut apart = Vec::new();
    for job in jobs {
        let Source::Copy { tensor, .. } = job.source else { continue };
        let info = &first.tensors()[tensor];
        if other.get(&info.name).is_none() || diff::compare(first, tensor, other, &mut buffers)?.is_none() {
            continue;
        }
        if !is_number(info.dtype) {
            let reason = format!("{} values can't be merged: only f64, f32, f16 and bf16", info.dtype);
            return Err(Error::tensor(first.path(), &info.name, reason));
        }
        apart.push(show_name(&info.name));
    }
    Ok((!apart.is_empty()).then(|| {
        format!("{}: it differs where the result copies the first: {}", show_path(other.path()), listed(&apart))
    }))
}

/// Whether values are plain numbers. The others could be weights that should have been merged.
fn is_number(dtype: Dtype) -> bool {
    use Dtype::{Bool, I8, I16, I32, I64, U8, U16, U32, U64};
    dtype.is_float() || matches!(dtype, I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8 | Bool)
}
