//! One linear layer, from grams to weight.
//!
//! With D = Wₘ − Wₙ for m < n, S = ΣG, P = ΣDG and X = W − Wₙ, the solution is X·S = P, and the objective
//! Σtr((X − D)G(X − D)ᵀ) of any X is tr(XSXᵀ) − 2·tr(PXᵀ) + Σtr(DGDᵀ). For the plain mean X is C, the mean of the D
//! and of a zero for the last expert. A ridge turns S into S + λI and P into P + λC.
//!
//! Weights [out, d] lie in memory row by row, and so are their transposes [d, out] by columns, which is how they appear
//! here: Pᵀ = ΣG·Dᵀ, S·Xᵀ = Pᵀ.

use std::ops::Range;
use std::sync::atomic::Ordering;

use formats::Result;
use ndarray::s;

use super::linalg::{self, dot};
use super::stream::{self, Pass, Visit};
use super::{LayerReport, Linear, OnSingular, RegMean, locked, mean};

/// The ridges tried on a singular layer. The first changes the objective by about a millionth of the inputs' energy
/// and leaves the solution ten digits in f64; beyond the last, what is summed can't have been gram matrices.
const RIDGES: [f64; 5] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2];

/// One solver's memory, kept from layer to layer: fresh memory costs more than it seems.
#[derive(Default)]
pub(super) struct Workspace {
    reading: stream::Buffers,
    /// S [d, d], then its factor.
    pub(super) sum: Vec<f64>,
    /// The right-hand side: Pᵀ [d, out], or G of the first expert. Then what solves it.
    product: Vec<f64>,
    /// Dᵀ [d, out].
    difference: Vec<f64>,
    /// Cᵀ [d, out] in f32, for what only the report needs.
    centre: Vec<f32>,
    /// CᵀC [d, d], and products on the way to a norm.
    square: Vec<f32>,
    panel: Vec<f32>,
    /// How much of an expert's part the solution leaves [d, d], and Xᵀ.
    left: Vec<f64>,
    solution: Vec<f64>,
}

impl Workspace {
    /// What one needs for a weight [out, d], nearly.
    pub(super) fn bytes(out: usize, d: usize) -> usize {
        d.saturating_mul(d).saturating_add(out.saturating_mul(d).saturating_mul(5) / 2).saturating_mul(8)
    }
}

/// The first `length` elements, more of which are made if need be. They hold anything.
fn sized<T: Copy + Default>(values: &mut Vec<T>, length: usize) -> &mut [T] {
    if values.len() < length {
        values.resize(length, T::default());
    }
    &mut values[..length]
}

/// Which way is less work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Pᵀ by a product and Xᵀ by two triangular solves, each of out·d² multiplications.
    Rows,
    /// With two experts Xᵀ = (S⁻¹G₁)·Dᵀ: solves of d³ only, and then a product. Less when out > d.
    Operator,
}

/// What is known before S is factorised.
struct Begun {
    /// Σtr(DGDᵀ)
    crossed: f64,
    /// The objective of the plain mean.
    mean_objective: Option<f64>,
}

enum Factor {
    Done,
    /// This fails the merge, and is noted.
    Failed,
    /// No ridge helps, and the plain mean will do.
    Hopeless,
}

impl RegMean<'_> {
    /// Computes a layer's merged weight. The report is `None` if the layer can't be solved and that fails the merge.
    pub(super) fn solve<T: Real>(
        &self,
        linear: &Linear,
        experts: &[&[T]],
        out: &mut [T],
        workspace: &mut Workspace,
    ) -> Result<Option<LayerReport>> {
        let d = linear.d;
        let rows = out.len() / d.max(1);
        let way = if experts.len() == 2 && rows > d { Way::Operator } else { Way::Rows };
        let mut report = linear.report(linear.grams.iter().map(|gram| gram.modality).collect());
        // Once a layer has failed the merge, only the names of the others that do are wanted.
        let begun = match way {
            _ if self.failed.load(Ordering::Relaxed) => self.sum(linear, workspace, true).map(|()| None)?,
            Way::Rows => Some(self.begin_rows(linear, experts, rows, workspace)?),
            Way::Operator => Some(self.begin_operator(linear, experts, rows, workspace)?),
        };
        let unit = diagonal(&workspace.sum[..d * d], d).sum::<f64>() / d.max(1) as f64;
        let factor = self.factorise(linear, unit, workspace, &mut report)?;
        let Some(begun) = begun else { return Ok(None) };
        match factor {
            Factor::Failed => return Ok(None),
            Factor::Hopeless => {
                let unknown = if unit == 0.0 { 0.0 } else { f64::NAN };
                report.mean_objective = begun.mean_objective.unwrap_or(unknown);
                report.condition = f64::INFINITY;
            }
            Factor::Done => {
                let l = linalg::view(&workspace.sum, d, d);
                let (least, most) = l.diag().iter().fold((f64::INFINITY, 0f64), |(a, b), &x| (a.min(x), b.max(x)));
                report.condition = (most / least).powi(2);
                let known = begun.mean_objective;
                let lambda = report.ridge * unit;
                report.mean_objective =
                    known.unwrap_or_else(|| mean_objective(&begun, lambda, rows, d, experts.len(), workspace));
            }
        }
        if report.singular && linear.options.on_singular == OnSingular::Mean {
            (report.objective, report.ridge) = (report.mean_objective, linear.options.ridge);
            report.plain_mean = true;
            mean(experts, out);
            return Ok(Some(report));
        }
        let lambda = report.ridge * unit;
        let objective = match way {
            Way::Rows => finish_rows(&begun, lambda, experts, out, d, workspace),
            Way::Operator => finish_operator(lambda, experts, out, d, workspace),
        };
        report.objective = objective.max(0.0);
        Ok(Some(report))
    }

    /// Adds up a layer's grams, in `workspace.sum`.
    pub(super) fn sum(&self, linear: &Linear, workspace: &mut Workspace, digest: bool) -> Result<()> {
        let sum = sized(&mut workspace.sum, linear.d * linear.d);
        for (m, gram) in linear.grams.iter().enumerate() {
            let pass = Pass { non_diag_scale: linear.options.non_diag_scale, first: m == 0, digest };
            self.grams.add(gram, linear.d, pass, sum, &mut workspace.reading, None)?;
        }
        Ok(())
    }

    /// Replaces `workspace.sum` by its Cholesky factor, with the ridge that was asked for or a larger one.
    fn factorise(
        &self,
        linear: &Linear,
        unit: f64,
        workspace: &mut Workspace,
        report: &mut LayerReport,
    ) -> Result<Factor> {
        let d = linear.d;
        let try_ridge = |ridge: f64, workspace: &mut Workspace| {
            let sum = &mut workspace.sum[..d * d];
            add_to_diagonal(sum, d, ridge * unit);
            linalg::cholesky(linalg::view_mut(sum, d, d)).is_ok()
        };
        report.ridge = linear.options.ridge;
        if try_ridge(report.ridge, workspace) && unit > 0.0 {
            return Ok(Factor::Done);
        }
        report.singular = true;
        if linear.options.on_singular == OnSingular::Error {
            self.failed.store(true, Ordering::Relaxed);
            locked(&self.layers).push(report.clone());
            return Ok(Factor::Failed);
        }
        for ridge in RIDGES.into_iter().filter(|&ridge| ridge > linear.options.ridge && unit > 0.0) {
            self.sum(linear, workspace, false)?;
            report.ridge = ridge;
            if try_ridge(ridge, workspace) {
                return Ok(Factor::Done);
            }
        }
        let reason = match unit > 0.0 {
            _ if linear.options.on_singular == OnSingular::Mean => return Ok(Factor::Hopeless),
            true => format!("the sum with its siblings is not positive definite even with ridge {}", report.ridge),
            false => "this gram and its siblings are zero throughout, and no ridge helps there".to_string(),
        };
        Err(self.fault(linear, reason))
    }

    /// S in `workspace.sum`, Pᵀ in `workspace.product` and Cᵀ in `workspace.centre`.
    fn begin_rows<T: Real>(
        &self,
        linear: &Linear,
        experts: &[&[T]],
        rows: usize,
        workspace: &mut Workspace,
    ) -> Result<Begun> {
        let d = linear.d;
        let sum = sized(&mut workspace.sum, d * d);
        let product = sized(&mut workspace.product, rows * d);
        let difference = sized(&mut workspace.difference, rows * d);
        let centre = sized(&mut workspace.centre, rows * d);
        let reading = &mut workspace.reading;
        let share = 1.0 / experts.len() as f64;
        let mut crossed = 0.0;
        for (m, gram) in linear.grams.iter().enumerate() {
            let pass = Pass { non_diag_scale: linear.options.non_diag_scale, first: m == 0, digest: true };
            let (Some((last, others)), true) = (experts.split_last(), m + 1 < experts.len()) else {
                self.grams.add(gram, d, pass, sum, reading, None)?;
                continue;
            };
            for (difference, (&a, &b)) in difference.iter_mut().zip(others[m].iter().zip(*last)) {
                *difference = a.into() - b.into();
            }
            let before = if m > 0 { dot(product, difference) } else { 0.0 };
            for (centre, &difference) in centre.iter_mut().zip(&*difference) {
                let rest = if m > 0 { *centre } else { 0.0 };
                *centre = rest + (share * difference) as f32;
            }
            let columns = linalg::view(difference, d, rows);
            let keep = if m == 0 { 0.0 } else { 1.0 };
            let mut multiply = |band: Range<usize>, values: &[f64]| {
                let values = linalg::view(values, d, band.len()).reversed_axes();
                let mut product = linalg::view_mut(product, d, rows);
                linalg::multiply(1.0, values, columns, keep, product.slice_mut(s![band, ..]));
            };
            self.grams.add(gram, d, pass, sum, reading, Some(&mut multiply))?;
            crossed += dot(product, difference) - before;
        }
        Ok(Begun { crossed, mean_objective: None })
    }

    /// S in `workspace.sum`, G₁ in `workspace.product`, Dᵀ in `workspace.difference` and CᵀC in `workspace.square`.
    /// There are two experts, and so C is half of D.
    fn begin_operator<T: Real>(
        &self,
        linear: &Linear,
        experts: &[&[T]],
        rows: usize,
        workspace: &mut Workspace,
    ) -> Result<Begun> {
        let d = linear.d;
        let sum = sized(&mut workspace.sum, d * d);
        let first = sized(&mut workspace.product, d * d);
        let difference = sized(&mut workspace.difference, rows * d);
        let centre = sized(&mut workspace.centre, rows * d);
        for ((difference, centre), (&a, &b)) in
            difference.iter_mut().zip(&mut *centre).zip(experts[0].iter().zip(experts[1]))
        {
            *difference = a.into() - b.into();
            *centre = (0.5 * *difference) as f32;
        }
        let square = sized(&mut workspace.square, d * d);
        square.fill(0.0);
        linalg::add_square(1.0, linalg::view_mut(square, d, d), linalg::view(centre, d, rows));
        for (m, gram) in linear.grams.iter().enumerate() {
            let pass = Pass { non_diag_scale: linear.options.non_diag_scale, first: m == 0, digest: true };
            let mut keep = |band: Range<usize>, values: &[f64]| {
                first[band.start * d..band.end * d].copy_from_slice(values);
            };
            let visit: Option<Visit<'_>> = if m == 0 { Some(&mut keep) } else { None };
            self.grams.add(gram, d, pass, sum, &mut workspace.reading, visit)?;
        }
        // tr(CSCᵀ), and with D = 2C the rest cancels.
        Ok(Begun { crossed: 4.0 * inner(square, first, d), mean_objective: Some(inner(square, sum, d)) })
    }
}

/// The objective of the plain mean, where S + λI is factorised, and Pᵀ and Cᵀ are known.
fn mean_objective(begun: &Begun, lambda: f64, rows: usize, d: usize, experts: usize, workspace: &mut Workspace) -> f64 {
    let Workspace { sum, product, centre, panel, square, .. } = workspace;
    let centre = &centre[..rows * d];
    let energy = linalg::norm2_of_product(linalg::view(sum, d, d), linalg::view(centre, d, rows), panel, square);
    let from_sum = energy - lambda * dot(centre, centre);
    // tr(PCᵀ) is half of tr(DGDᵀ) where there is one D = 2C.
    let across = if experts == 2 { begun.crossed / 2.0 } else { dot(&product[..rows * d], centre) };
    (from_sum - 2.0 * across + begun.crossed).max(0.0)
}

/// Solves for X and adds it to the last expert. Returns the objective.
fn finish_rows<T: Real>(
    begun: &Begun,
    lambda: f64,
    experts: &[&[T]],
    out: &mut [T],
    d: usize,
    workspace: &mut Workspace,
) -> f64 {
    let rows = out.len() / d.max(1);
    let product = &mut workspace.product[..rows * d];
    if lambda > 0.0 {
        add_centre(experts, lambda, product);
    }
    // With P' = P + λC and X(S + λI) = P', tr(PXᵀ) is tr(P'Xᵀ) − λ·tr(CXᵀ), and tr(XSXᵀ) is tr(P'Xᵀ) − λ‖X‖².
    let l = linalg::view(&workspace.sum, d, d);
    linalg::solve_lower(l, linalg::view_mut(product, d, rows));
    let energy = dot(product, product);
    linalg::solve_upper(l, linalg::view_mut(product, d, rows));
    let pull = match lambda > 0.0 {
        true => lambda * (2.0 * dot(product, &workspace.centre[..rows * d]) - dot(product, product)),
        false => 0.0,
    };
    add_to_last(experts, product, out);
    begun.crossed - energy + pull
}

/// Solves for N = (S + λI)⁻¹(G₁ + λ/2·I), multiplies and adds Xᵀ = N·Dᵀ to the last expert. Returns the objective.
fn finish_operator<T: Real>(lambda: f64, experts: &[&[T]], out: &mut [T], d: usize, workspace: &mut Workspace) -> f64 {
    let rows = out.len() / d.max(1);
    let l = linalg::view(&workspace.sum, d, d);
    let product = &mut workspace.product[..d * d];
    // What is left of tr(DGDᵀ) is tr(D·K·Dᵀ) with K = G₁ − Zᵀ·Z, L·Z = G₁: the parallel sum of both grams. A ridge adds
    // λ/2·(N + Nᵀ) − λ·Nᵀ·N.
    let left = sized(&mut workspace.left, d * d);
    left.copy_from_slice(product);
    add_to_diagonal(product, d, lambda / 2.0);
    linalg::solve_lower(l, linalg::view_mut(product, d, d));
    linalg::add_square(-1.0, linalg::view_mut(left, d, d), linalg::view(product, d, d).reversed_axes());
    linalg::solve_upper(l, linalg::view_mut(product, d, d));
    let operator = linalg::view(product, d, d);
    if lambda > 0.0 {
        let mut left = linalg::view_mut(left, d, d);
        left.scaled_add(lambda / 2.0, &operator);
        left.scaled_add(lambda / 2.0, &operator.t());
        linalg::add_square(-lambda, left, operator.t());
    }
    let solution = sized(&mut workspace.solution, rows * d);
    let difference = linalg::view(&workspace.difference, d, rows);
    linalg::multiply(1.0, operator, difference, 0.0, linalg::view_mut(solution, d, rows));
    add_to_last(experts, solution, out);
    4.0 * inner(&workspace.square, left, d)
}

/// An element type that checkpoints are merged in.
pub(super) trait Real: Copy + Into<f64> {
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

pub(super) fn diagonal(sum: &[f64], d: usize) -> impl Iterator<Item = f64> {
    sum.iter().step_by(d + 1).copied()
}

pub(super) fn add_to_diagonal(sum: &mut [f64], d: usize, value: f64) {
    if value != 0.0 {
        sum.iter_mut().step_by(d + 1).for_each(|x| *x += value);
    }
}

/// tr(A·B) of symmetric matrices [d, d] of which the lower triangles count, by columns.
fn inner(a: &[f32], b: &[f64], d: usize) -> f64 {
    let column = |j: usize| {
        let (below, end) = (j * d + j + 1, (j + 1) * d);
        f64::from(a[j * d + j]) * b[j * d + j] + 2.0 * dot(&a[below..end], &b[below..end])
    };
    (0..d).map(column).sum()
}

/// `out` = Wₙ + X.
fn add_to_last<T: Real>(experts: &[&[T]], x: &[f64], out: &mut [T]) {
    let Some(last) = experts.last() else { return };
    for (out, (&w, &x)) in out.iter_mut().zip(last.iter().zip(x)) {
        *out = T::rounded(w.into() + x);
    }
}

/// Adds λ times the plain mean less the last expert.
fn add_centre<T: Real>(experts: &[&[T]], lambda: f64, product: &mut [f64]) {
    let Some((last, others)) = experts.split_last() else { return };
    let share = lambda / experts.len() as f64;
    for (at, (product, &last)) in product.iter_mut().zip(*last).enumerate() {
        let last: f64 = last.into();
        *product += share * others.iter().map(|expert| expert[at].into() - last).sum::<f64>();
    }
}
