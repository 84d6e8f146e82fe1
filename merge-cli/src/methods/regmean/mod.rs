//! RegMean: linear layers by least squares on the inputs they saw.

mod linalg;
mod stream;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use formats::grams::Storage;
use formats::layout::{Layout, Modality, Part};
use formats::{Checkpoint, Digester, Error, Result, show_name};
use ndarray::ArrayView2;
use ndarray::linalg::general_mat_mul;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::stream::{Gram, GramFile, Pass};
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

/// The ridges tried on a singular layer. The first changes the objective by about a millionth of the inputs' energy
/// and leaves the solution ten digits in f64; beyond the last, what is summed can't have been gram matrices.
const RIDGES: [f64; 5] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2];

/// What a linear layer's merge came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// The merged tensor's name.
    pub slot: String,
    pub layer: Option<usize>,
    pub part: Part,
    /// Those that were merged.
    pub modalities: Vec<Modality>,
    /// Σₘ‖(W − Wₘ)Xₘ‖² for the plain mean, to about six digits; with scaled grams, and without ridge.
    pub mean_objective: f64,
    /// The same for the merged weight.
    pub objective: f64,
    /// Relative ridge λ that was used, the one that was asked for included.
    pub ridge: f64,
    /// Largest over smallest pivot of the Cholesky factor, squared: ΣG's condition number is at least this.
    pub condition: f64,
    /// Whether ΣG was not positive definite as it was.
    pub singular: bool,
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

/// One solver's memory, kept from layer to layer.
#[derive(Default)]
struct Workspace {
    reading: stream::Buffers,
    /// ΣG [d, d], then its factor.
    sum: Vec<f64>,
    /// Σ(Wₘ − Wₙ)Gₘ [out, d] by columns, then W − Wₙ.
    product: Vec<f64>,
    /// Columns of Wₘ − Wₙ.
    difference: Vec<f64>,
    /// The plain mean less Wₙ [out, d] by columns.
    mean: Vec<f32>,
    panel: Vec<f32>,
    panel_product: Vec<f32>,
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
            let reason = format!("{count} of {needed} gram matrices are missing: {}", listed(&missing));
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

    /// The report is `None` if the layer can't be solved and that fails the merge.
    fn solve<T: Real>(
        &self,
        linear: &Linear,
        experts: &[&[T]],
        out: &mut [T],
        workspace: &mut Workspace,
    ) -> Result<Option<LayerReport>> {
        let Options { ridge, on_singular, .. } = linear.options;
        let d = linear.d;
        let rows = out.len() / d.max(1);
        let mut report = linear.report(linear.grams.iter().map(|gram| gram.modality).collect());
        // Once a layer has failed the merge, only the names of the others that do are wanted.
        let last_wish = self.failed.load(Ordering::Relaxed);
        let crossed = match last_wish {
            true => self.sum(linear, workspace, true).map(|()| 0.0)?,
            false => self.sum_with_products(linear, experts, rows, workspace)?,
        };
        let unit = diagonal(&workspace.sum, d).sum::<f64>() / d.max(1) as f64;
        report.ridge = ridge;
        add_to_diagonal(&mut workspace.sum, d, ridge * unit);
        let mut factor = linalg::cholesky(linalg::view_mut(&mut workspace.sum, d, d));
        if factor.is_err() || unit == 0.0 {
            report.singular = true;
            if on_singular == OnSingular::Error {
                self.failed.store(true, Ordering::Relaxed);
                locked(&self.layers).push(report);
                return Ok(None);
            }
            if unit == 0.0 && on_singular == OnSingular::Ridge {
                let reason = "this gram and its siblings are zero throughout, and no ridge helps there".to_string();
                return Err(self.fault(linear, reason));
            }
            for attempt in RIDGES.into_iter().filter(|&attempt| attempt > ridge && unit > 0.0) {
                report.ridge = attempt;
                self.sum(linear, workspace, false)?;
                add_to_diagonal(&mut workspace.sum, d, attempt * unit);
                factor = linalg::cholesky(linalg::view_mut(&mut workspace.sum, d, d));
                if factor.is_ok() {
                    break;
                }
            }
            if unit > 0.0 && factor.is_err() && on_singular == OnSingular::Ridge {
                let reason =
                    format!("the sum with its siblings is not positive definite even with ridge {}", report.ridge);
                return Err(self.fault(linear, reason));
            }
        }
        if last_wish {
            return Ok(None);
        }
        let Workspace { sum, product, mean: centre, panel, panel_product, .. } = workspace;
        let l = linalg::view(sum, d, d);
        let (least, most) = l.diag().iter().fold((f64::INFINITY, 0f64), |(a, b), &x| (a.min(x), b.max(x)));
        report.condition = (most / least).powi(2);

        // With D = Wₘ − Wₙ, M the plain mean less Wₙ, P = ΣDG, S = ΣG and X = W − Wₙ, the objective
        // Σtr((X − D)G(X − D)ᵀ) is tr(XSXᵀ) − 2·tr(PXᵀ) + Σtr(DGDᵀ).
        let lambda = report.ridge * unit;
        centre.resize(rows * d, 0.0);
        centre_of(experts, centre, rows, d);
        let centre = linalg::view(centre, rows, d);
        let from_sum = linalg::norm2_of_product(centre, l, panel, panel_product) - lambda * norm2(centre);
        // tr(PMᵀ) is half of tr(DGDᵀ) where there is one D = 2M.
        let cross = match experts.len() {
            2 => crossed / 2.0,
            _ => inner(product, centre),
        };
        report.mean_objective = (from_sum - 2.0 * cross + crossed).max(0.0);

        if report.singular && on_singular == OnSingular::Mean {
            report.objective = report.mean_objective;
            report.ridge = ridge;
            mean(experts, out);
            return Ok(Some(report));
        }
        if lambda > 0.0 {
            add_centre(experts, lambda, product, rows, d);
        }
        // X·S' = P' with S' = S + λI and P' = P + λM, so that tr(PXᵀ) = tr(P'Xᵀ) − λ·tr(MXᵀ).
        let energy = linalg::divide(linalg::view_mut(product, rows, d), l);
        let pull = match lambda > 0.0 {
            true => lambda * (2.0 * inner(product, centre) - product.iter().map(|x| x * x).sum::<f64>()),
            false => 0.0,
        };
        report.objective = (crossed - energy + pull).max(0.0);
        if let Some(&last) = experts.last() {
            add_transposed(last, product, out, rows, d);
        }
        Ok(Some(report))
    }

    /// Adds up a layer's grams, in `workspace.sum`.
    fn sum(&self, linear: &Linear, workspace: &mut Workspace, digest: bool) -> Result<()> {
        let d = linear.d;
        workspace.sum.resize(d * d, 0.0);
        for (m, gram) in linear.grams.iter().enumerate() {
            let pass = Pass { non_diag_scale: linear.options.non_diag_scale, first: m == 0, digest };
            self.grams.add(gram, d, pass, &mut workspace.sum, &mut workspace.reading, None)?;
        }
        Ok(())
    }

    /// Adds up a layer's grams, and P = Σ_{m<n}(Wₘ − Wₙ)Gₘ in `workspace.product`. Returns Σtr((Wₘ − Wₙ)Gₘ(Wₘ − Wₙ)ᵀ).
    fn sum_with_products<T: Real>(
        &self,
        linear: &Linear,
        experts: &[&[T]],
        rows: usize,
        workspace: &mut Workspace,
    ) -> Result<f64> {
        let d = linear.d;
        let Workspace { reading, sum, product, difference, .. } = workspace;
        sum.resize(d * d, 0.0);
        product.resize(rows * d, 0.0);
        let Some((last, others)) = experts.split_last() else { return Ok(0.0) };
        let mut crossed = 0.0;
        for (m, gram) in linear.grams.iter().enumerate() {
            let pass = Pass { non_diag_scale: linear.options.non_diag_scale, first: m == 0, digest: true };
            let Some(expert) = others.get(m) else {
                self.grams.add(gram, d, pass, sum, reading, None)?;
                continue;
            };
            if m > 0 {
                crossed -= inner_difference(product, expert, last, rows, d);
            }
            let mut multiply = |band: Range<usize>, values: &[f64]| {
                difference.resize(rows * band.len(), 0.0);
                for (row, differences) in difference.chunks_exact_mut(band.len()).enumerate() {
                    let columns = row * d + band.start..row * d + band.end;
                    let pairs = expert[columns.clone()].iter().zip(&last[columns]);
                    differences.iter_mut().zip(pairs).for_each(|(out, (&a, &b))| *out = a.into() - b.into());
                }
                let keep = if m == 0 && band.start == 0 { 0.0 } else { 1.0 };
                let difference = row_major(difference, rows, band.len());
                let values = row_major(values, band.len(), d);
                general_mat_mul(1.0, &difference, &values, keep, &mut linalg::view_mut(product, rows, d));
            };
            self.grams.add(gram, d, pass, sum, reading, Some(&mut multiply))?;
            crossed += inner_difference(product, expert, last, rows, d);
        }
        Ok(crossed)
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
            let sum = &mut workspace.sum;
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
        }
    }
}

impl Workspace {
    /// What one needs for a weight [out, d], nearly.
    fn bytes(out: usize, d: usize) -> usize {
        d.saturating_mul(d).saturating_add(out.saturating_mul(d).saturating_mul(3) / 2).saturating_mul(8)
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

/// An element type that checkpoints are merged in.
trait Real: Copy + Into<f64> {
    fn rounded(value: f64) -> Self;
    /// In the type's own precision, as PyTorch does it.
    fn add(self, other: Self) -> Self;
    fn divide(self, by: f64) -> Self;
}

impl Real for f32 {
    fn rounded(value: f64) -> f32 {
        value as f32
    }

    fn add(self, other: f32) -> f32 {
        self + other
    }

    fn divide(self, by: f64) -> f32 {
        self / by as f32
    }
}

impl Real for f64 {
    fn rounded(value: f64) -> f64 {
        value
    }

    fn add(self, other: f64) -> f64 {
        self + other
    }

    fn divide(self, by: f64) -> f64 {
        self / by
    }
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

fn row_major(values: &[f64], rows: usize, columns: usize) -> ArrayView2<'_, f64> {
    linalg::view(values, columns, rows).reversed_axes()
}

fn diagonal(sum: &[f64], d: usize) -> impl Iterator<Item = f64> {
    sum.iter().step_by(d + 1).copied()
}

fn add_to_diagonal(sum: &mut [f64], d: usize, value: f64) {
    if value != 0.0 {
        sum.iter_mut().step_by(d + 1).for_each(|x| *x += value);
    }
}

/// Side of the tiles in which row-major and column-major matrices meet.
const TILE: usize = 32;

/// Calls `visit` with the row-major and the column-major position of each element of [rows, d], tile by tile.
fn for_each_tiled(rows: usize, d: usize, mut visit: impl FnMut(usize, usize)) {
    for top in (0..rows).step_by(TILE) {
        for left in (0..d).step_by(TILE) {
            for row in top..rows.min(top + TILE) {
                for column in left..d.min(left + TILE) {
                    visit(row * d + column, column * rows + row);
                }
            }
        }
    }
}

/// tr(P·(A − B)ᵀ), P by columns, A and B by rows.
fn inner_difference<T: Real>(p: &[f64], a: &[T], b: &[T], rows: usize, d: usize) -> f64 {
    let mut total = 0.0;
    for_each_tiled(rows, d, |by_row, by_column| total += p[by_column] * (a[by_row].into() - b[by_row].into()));
    total
}

/// The plain mean less the last expert, by columns.
fn centre_of<T: Real>(experts: &[&[T]], centre: &mut [f32], rows: usize, d: usize) {
    for_each_tiled(rows, d, |by_row, by_column| centre[by_column] = centre_at(experts, by_row) as f32);
}

/// Adds λ times the plain mean less the last expert.
fn add_centre<T: Real>(experts: &[&[T]], lambda: f64, product: &mut [f64], rows: usize, d: usize) {
    for_each_tiled(rows, d, |by_row, by_column| product[by_column] += lambda * centre_at(experts, by_row));
}

fn centre_at<T: Real>(experts: &[&[T]], at: usize) -> f64 {
    let Some((last, others)) = experts.split_last() else { return 0.0 };
    let last: f64 = last[at].into();
    others.iter().map(|expert| expert[at].into() - last).sum::<f64>() / experts.len() as f64
}

/// `out` = W + X, W and `out` by rows, X by columns.
fn add_transposed<T: Real>(w: &[T], x: &[f64], out: &mut [T], rows: usize, d: usize) {
    for_each_tiled(rows, d, |by_row, by_column| out[by_row] = T::rounded(w[by_row].into() + x[by_column]));
}

/// tr(P·Cᵀ)
fn inner(p: &[f64], c: ArrayView2<f32>) -> f64 {
    c.t().iter().zip(p).map(|(&c, &p)| f64::from(c) * p).sum()
}

fn norm2(c: ArrayView2<f32>) -> f64 {
    c.t().iter().map(|&c| f64::from(c) * f64::from(c)).sum()
}
