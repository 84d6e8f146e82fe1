//! RegMean: linear layers by least squares on the inputs they saw.

mod linalg;
mod solve;
mod stream;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use formats::grams::Storage;
use formats::layout::{Layout, Modality, Part};
use formats::{Checkpoint, Digester, Error, Result, show_name};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::solve::{Real, Workspace, add_to_diagonal, diagonal};
use self::stream::{Gram, GramFile};
use super::{Method, Span};
use crate::jobs::{Job, Merge, Role, Source, listed};

/// W = (Σₘ WₘGₘ)(Σₘ Gₘ)⁻¹ for the weights of linear layers, the minimiser of Σₘ‖(W − Wₘ)Xₘ‖² where Gₘ = XₘᵀXₘ
/// (Jin et al., 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models"); the plain mean for
/// everything else.
///
/// Computed in f64 as W = Wₙ + Σ_{m<n}(Wₘ − Wₙ)Gₘ·(ΣG)⁻¹ by Cholesky factorisation, nothing inverted, and rounded
/// once. Entries of Gₘ off the diagonal are multiplied by [`Options::non_diag_scale`] first. A layer with one
/// expert takes it over and needs no gram.
///
/// **Ridge.** λ·mean(diag ΣG)·I is added to ΣG, in equal shares to each Gₘ. λ so has no unit and means the same in a
/// layer of loud inputs and in one of quiet ones; and along directions in which no input was seen, where least squares
/// says nothing, W tends to the plain mean of the experts rather than to zero or to the last of them.
pub struct RegMean<'c> {
    options: Options,
    grams: GramFile<'c>,
    /// By the position of a slot's first expert in the checkpoint.
    linear: HashMap<usize, Linear>,
    workspaces: Pool,
    layers: Mutex<Vec<LayerReport>>,
    /// Whether a layer has failed that fails the merge.
    failed: AtomicBool,
}

/// RegMean's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Factor of the grams' entries off the diagonal, 0 to 1.
    pub non_diag_scale: f64,
    /// λ ≥ 0, see [`RegMean`].
    pub ridge: f64,
    pub on_singular: OnSingular,
}

impl Default for Options {
    fn default() -> Options {
        Options { non_diag_scale: 1.0, ridge: 0.0, on_singular: OnSingular::Error }
    }
}

impl Options {
    /// As they stand in recipes.
    pub fn parameters(self) -> Map<String, Value> {
        Map::from_iter([
            ("non_diag_scale".into(), json!(self.non_diag_scale)),
            ("ridge".into(), json!(self.ridge)),
            ("on_singular".into(), json!(self.on_singular)),
        ])
    }

    fn check(self) -> std::result::Result<(), String> {
        match (self.non_diag_scale, self.ridge) {
            (scale, _) if !(0.0..=1.0).contains(&scale) => {
                Err(format!("non_diag_scale is {scale}: it must be from 0 to 1"))
            }
            (_, ridge) if !(ridge >= 0.0 && ridge.is_finite()) => {
                Err(format!("ridge is {ridge}: it must be a number from 0 on"))
            }
            _ => Ok(()),
        }
    }
}

/// What becomes of a layer whose ΣG is not positive definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnSingular {
    /// The merge fails, and says which layers and why.
    Error,
    /// The first ridge λ of 1e-6, 1e-5, … 1e-2 that makes it positive definite.
    Ridge,
    /// The plain mean.
    Mean,
}

/// What a linear layer's merge came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// The merged tensor's name.
    pub slot: String,
    pub layer: Option<usize>,
    pub part: Part,
    /// Those that were merged.
    pub modalities: Vec<Modality>,
    /// Σₘ‖(W − Wₘ)Xₘ‖² for the plain mean; with scaled grams, and without ridge. To about six digits of the sum's
    /// largest part, as is the next.
    pub mean_objective: f64,
    /// The same for the merged weight.
    pub objective: f64,
    /// Relative ridge λ that was used, the one that was asked for included.
    pub ridge: f64,
    /// Largest over smallest pivot of the Cholesky factor, squared: ΣG's condition number, with the ridge, is at
    /// least this.
    pub condition: f64,
    /// Whether ΣG was not positive definite as it was.
    pub singular: bool,
    /// Whether the plain mean was taken for that reason.
    pub plain_mean: bool,
}

/// One linear layer.
struct Linear {
    slot: String,
    layer: Option<usize>,
    part: Part,
    /// Its place among the results.
    order: usize,
    /// Columns of the weight.
    d: usize,
    /// One for each expert merged, in the order of the inputs; none for a single expert.
    grams: Vec<Gram>,
    options: Options,
}

/// Bytes that solvers may use together, unless one needs more.
const MEMORY: usize = 448 << 20;

impl<'c> RegMean<'c> {
    /// Finds the grams for every linear layer among `jobs`, the merges of `checkpoint`'s experts under `layout`, and
    /// checks their shapes. `own` gives a layer's options where they aren't those of all.
    ///
    /// # Errors
    /// Grams that are missing, all of them listed, or of the wrong size or type; options out of range.
    pub fn new(
        grams: &'c Checkpoint,
        layout: &Layout,
        jobs: &[Job],
        options: Options,
        own: impl Fn(&Merge) -> Option<Options>,
    ) -> Result<RegMean<'c>> {
        linalg::use_one_thread();
        let mut linear = HashMap::new();
        let mut needed = 0;
        let mut missing = Vec::new();
        let mut largest = 0;
        for (order, job) in jobs.iter().enumerate() {
            let Source::Merge(merge) = &job.source else { continue };
            let (&[out, d], Some(first)) = (job.info.shape.as_slice(), merge.inputs.first()) else { continue };
            if !layout.is_linear(&job.info.name) {
                continue;
            }
            let mut found = Vec::new();
            for modality in modalities(merge) {
                if merge.inputs.len() == 1 {
                    break;
                }
                needed += 1;
                let Some(name) = layout.gram_name(&job.info.name, modality) else { continue };
                match grams.position(&name) {
                    Some(tensor) => {
                        found.push(Gram { modality, tensor, storage: storage(grams, tensor, d, &job.info.name)? })
                    }
                    None => missing.push(show_name(&name)),
                }
            }
            if !found.is_empty() {
                largest = largest.max(Workspace::bytes(out, d));
            }
            let options = own(merge).unwrap_or(options);
            options.check().map_err(|reason| Error::tensor(grams.path(), &job.info.name, reason))?;
            let layer = Linear {
                slot: job.info.name.clone(),
                layer: merge.layer,
                part: merge.part,
                order,
                d,
                grams: found,
                options,
            };
            linear.insert(first.tensor, layer);
        }
        if !missing.is_empty() {
            let count = missing.len();
            let are = if count == 1 { "is" } else { "are" };
            let reason = format!("{count} of {needed} gram matrices {are} missing: {}", listed(&missing));
            return Err(Error::file(grams.path(), reason));
        }
        Ok(RegMean {
            options,
            grams: GramFile { checkpoint: grams, digester: Digester::new(grams) },
            linear,
            workspaces: Pool::new((MEMORY / largest.max(1)).max(1)),
            layers: Mutex::new(Vec::new()),
            failed: AtomicBool::new(false),
        })
    }

    /// What became of each linear layer, in the order of the results.
    pub fn layers(&self) -> Vec<LayerReport> {
        let mut layers = locked(&self.layers).clone();
        let order: HashMap<&str, usize> = self.linear.values().map(|l| (l.slot.as_str(), l.order)).collect();
        layers.sort_by_key(|layer| order.get(layer.slot.as_str()).copied());
        layers
    }

    fn merge<T: Real>(&self, merge: &Merge, inputs: &[&[T]], out: &mut [T]) -> Result<()> {
        let linear = merge.inputs.first().and_then(|first| self.linear.get(&first.tensor));
        match linear {
            Some(linear) if !linear.grams.is_empty() => {
                let report = self.workspaces.with(|workspace| self.solve(linear, inputs, out, workspace))?;
                locked(&self.layers).extend(report);
            }
            Some(linear) => {
                mean(inputs, out);
                locked(&self.layers).push(linear.report(modalities(merge).collect()));
            }
            None => mean(inputs, out),
        }
        Ok(())
    }

    /// Why the layers in `failed` couldn't be solved.
    fn singular(&self, failed: &[LayerReport]) -> Result<Error> {
        let mut faults = Vec::new();
        for report in failed {
            let found = self.linear.values().find(|linear| linear.slot == report.slot);
            let diagnosed =
                found.filter(|_| faults.len() < DIAGNOSED).map(|linear| self.diagnose(linear)).transpose()?;
            let diagnosis = diagnosed.map(|diagnosis| format!(" ({diagnosis})")).unwrap_or_default();
            faults.push(format!("{}{diagnosis}", show_name(&report.slot)));
        }
        let layers = self.linear.values().filter(|linear| !linear.grams.is_empty()).count();
        Ok(Error::file(
            self.grams.checkpoint.path(),
            format!(
                "the summed grams of {} of {layers} layers are not positive definite: {}; record grams from more \
                 samples, or give --ridge 1e-6, --on-singular ridge or --on-singular mean",
                failed.len(),
                listed(&faults)
            ),
        ))
    }

    fn diagnose(&self, linear: &Linear) -> Result<String> {
        let d = linear.d;
        self.workspaces.with(|workspace| {
            self.sum(linear, workspace, false)?;
            let sum = &mut workspace.sum[..d * d];
            let unit = diagonal(sum, d).sum::<f64>() / d.max(1) as f64;
            if unit == 0.0 {
                return Ok("zero throughout".to_string());
            }
            add_to_diagonal(sum, d, linear.options.ridge * unit);
            let smallest = match linalg::smallest_eigenvalue(linalg::view(sum, d, d)) {
                Some(eigenvalue) => format!("smallest eigenvalue {eigenvalue:.1e} against a mean of {unit:.1e}"),
                None => format!("smallest eigenvalue below -{unit:.1e}"),
            };
            let rank = linalg::rank(linalg::view_mut(sum, d, d));
            Ok(format!("rank about {rank} of {d}, {smallest}"))
        })
    }

    fn fault(&self, linear: &Linear, reason: String) -> Error {
        let path = self.grams.checkpoint.path();
        match linear.grams.first() {
            Some(gram) => Error::tensor(path, self.grams.name(gram), reason),
            None => Error::file(path, reason),
        }
    }
}

/// Singular layers whose rank and smallest eigenvalue are found: about a second each where d is 3072.
const DIAGNOSED: usize = 5;

impl Method for RegMean<'_> {
    fn name(&self) -> &'static str {
        "regmean"
    }

    fn parameters(&self) -> Map<String, Value> {
        self.options.parameters()
    }

    fn whole_tensors(&self) -> bool {
        true
    }

    fn merge_f32(&self, span: &Span, inputs: &[&[f32]], out: &mut [f32]) -> Result<()> {
        self.merge(span.merge, inputs, out)
    }

    fn merge_f64(&self, span: &Span, inputs: &[&[f64]], out: &mut [f64]) -> Result<()> {
        self.merge(span.merge, inputs, out)
    }

    fn own_inputs(&self) -> Vec<(&str, &Digester<'_>)> {
        vec![("grams", &self.grams.digester)]
    }

    fn finish(&self) -> Result<()> {
        if !self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let failed: Vec<LayerReport> = self.layers().into_iter().filter(|layer| layer.singular).collect();
        Err(self.singular(&failed)?)
    }
}

impl Linear {
    fn report(&self, modalities: Vec<Modality>) -> LayerReport {
        LayerReport {
            slot: self.slot.clone(),
            layer: self.layer,
            part: self.part,
            modalities,
            mean_objective: 0.0,
            objective: 0.0,
            ridge: 0.0,
            condition: 1.0,
            singular: false,
            plain_mean: false,
        }
    }
}

/// Takes the experts whose gram is absent out of the merges of linear weights, and returns the names of these grams, as
/// the vl-merging code does it for tasks that use every expert (`vilt/modules/vilt_module.py`, `regmean`).
///
/// # Errors
/// A weight is left without any expert; all such weights' grams are listed.
pub fn leave_out_absent(grams: &Checkpoint, layout: &Layout, jobs: &mut [Job]) -> Result<Vec<String>> {
    let (mut absent, mut lost) = (Vec::new(), Vec::new());
    for job in jobs {
        let Source::Merge(merge) = &mut job.source else { continue };
        if merge.inputs.len() < 2 || !layout.is_linear(&merge.name) {
            continue;
        }
        let mut own = Vec::new();
        merge.inputs.retain(|input| {
            let Role::Expert(modality) = input.role else { return true };
            let Some(name) = layout.gram_name(&merge.name, modality) else { return true };
            let is_there = grams.position(&name).is_some();
            if !is_there {
                own.push(name);
            }
            is_there
        });
        match merge.inputs.is_empty() {
            true => lost.extend(own.iter().map(|name| show_name(name))),
            false => absent.extend(own),
        }
    }
    match lost.is_empty() {
        true => Ok(absent),
        false => {
            let reason =
                format!("weights would be left without any expert, because these grams are missing: {}", listed(&lost));
            Err(Error::file(grams.path(), reason))
        }
    }
}

/// Workspaces for as many solvers as may work at once.
struct Pool {
    free: Mutex<Vec<Workspace>>,
    returned: Condvar,
}

impl Pool {
    fn new(count: usize) -> Pool {
        // More than there are threads on any machine is no limit.
        let free = (0..count.min(1024)).map(|_| Workspace::default()).collect();
        Pool { free: Mutex::new(free), returned: Condvar::new() }
    }

    /// Waits for a workspace and lends it to `work`.
    fn with<R>(&self, work: impl FnOnce(&mut Workspace) -> R) -> R {
        let waiting = self.returned.wait_while(locked(&self.free), |free| free.is_empty());
        let workspace = waiting.unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let mut lent = Lent { pool: self, workspace };
        work(&mut lent.workspace)
    }
}

/// Returns a workspace even if its user panics, for whom others wait.
struct Lent<'p> {
    pool: &'p Pool,
    workspace: Workspace,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        locked(&self.pool.free).push(std::mem::take(&mut self.workspace));
        self.pool.returned.notify_one();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn modalities(merge: &Merge) -> impl Iterator<Item = Modality> {
    merge.inputs.iter().filter_map(|input| match input.role {
        Role::Expert(modality) => Some(modality),
        _ => None,
    })
}

fn storage(grams: &Checkpoint, tensor: usize, d: usize, slot: &str) -> Result<Storage> {
    let info = &grams.tensors()[tensor];
    if !info.dtype.is_float() {
        return Err(stream::not_real(grams, tensor));
    }
    Storage::of(info, d).ok_or_else(|| {
        let packed = formats::grams::packed_len(d).unwrap_or_default();
        let (slot, shape) = (show_name(slot), &info.shape);
        let reason =
            format!("it is {shape:?}, and '{slot}' has {d} columns: a gram for it is [{d}, {d}] or [{packed}]");
        Error::tensor(grams.path(), &info.name, reason)
    })
}

/// The plain mean; of one, itself.
fn mean<T: Real>(inputs: &[&[T]], out: &mut [T]) {
    let Some((first, others)) = inputs.split_first() else { return };
    out.copy_from_slice(first);
    for other in others {
        out.iter_mut().zip(*other).for_each(|(out, &x)| *out = out.add(x));
    }
    if !others.is_empty() {
        let count = inputs.len() as f64;
        out.iter_mut().for_each(|out| *out = out.divide(count));
    }
}
