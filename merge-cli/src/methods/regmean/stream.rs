//! Gram matrices from the file, a band of rows at a time: checked, scaled and summed as they pass by.

use std::ops::Range;

use formats::grams::Storage;
use formats::layout::Modality;
use formats::{Checkpoint, Digester, Dtype, Error, Result, show_name};

/// Entries that mirror each other may differ by this much of the largest entry. Sums in f32 do by 10⁻⁷.
const ASYMMETRY: f64 = 1e-6;
/// Elements read at a time, about: half a MB stays in a core's cache through all passes over it.
const READ: usize = 1 << 16;
/// Rows handed on at a time, as many as make a matrix product efficient.
const BAND: usize = 256;

/// Where one modality's gram of one layer is.
#[derive(Clone, Copy, Debug)]
pub struct Gram {
    pub modality: Modality,
    /// Position in the gram file's tensors.
    pub tensor: usize,
    pub storage: Storage,
}

/// A gram file, read once in full by whoever merges with it.
pub struct GramFile<'c> {
    pub checkpoint: &'c Checkpoint,
    pub digester: Digester<'c>,
}

/// One thread's buffers for reading.
#[derive(Default)]
pub struct Buffers {
    bytes: Vec<u8>,
    /// As stored, where that isn't rows of f64.
    values: Vec<f64>,
    /// Rows in full.
    band: Vec<f64>,
    probe: Probe,
}

/// What is done with a gram besides adding it up.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Factor of all entries off the diagonal.
    pub non_diag_scale: f64,
    /// The first of a sum: it replaces what is there.
    pub first: bool,
    /// Whether the content digest takes note; once for each gram is enough.
    pub digest: bool,
}

/// Is given rows of a gram: their numbers, and their values.
pub type Visit<'v> = &'v mut dyn FnMut(Range<usize>, &[f64]);

impl GramFile<'_> {
    /// Adds a gram of width `d`, scaled, to the upper triangle of `sum` [d, d], row-major. The triangle below the
    /// diagonal may be used up.
    ///
    /// `visit`, if there is one, is given the scaled rows in order, a band at a time: their numbers, and all of their
    /// d columns.
    ///
    /// # Errors
    /// Reading fails; the gram has NaN, infinite, or negative diagonal entries, or isn't symmetric.
    pub fn add(
        &self,
        gram: &Gram,
        d: usize,
        pass: Pass,
        sum: &mut [f64],
        buffers: &mut Buffers,
        mut visit: Option<Visit<'_>>,
    ) -> Result<()> {
        let fault = |reason: String| {
            Error::tensor(self.checkpoint.path(), &self.checkpoint.tensors()[gram.tensor].name, reason)
        };
        let mut digest = pass.digest.then(|| self.digester.in_order(gram.tensor));
        let scale = pass.non_diag_scale;
        buffers.probe.start(d);
        for top in (0..d).step_by(BAND) {
            let bottom = d.min(top + BAND);
            for range in portions(top..bottom, d) {
                // Rows that nobody will visit needn't be kept.
                let kept = if visit.is_some() { top } else { range.start };
                let length = (range.end - kept) * d;
                if buffers.band.len() < length {
                    buffers.band.resize(length.max(if visit.is_some() { BAND.min(d) * d } else { 0 }), 0.0);
                }
                self.read(gram, d, &range, kept, sum, buffers, |bytes| {
                    if let Some(digest) = &mut digest {
                        digest.pass(bytes);
                    }
                })?;
                let Buffers { band, probe, .. } = &mut *buffers;
                let rows = &mut band[(range.start - kept) * d..length];
                for (i, row) in range.zip(rows.chunks_exact_mut(d)) {
                    if !probe.row(i, row) {
                        let at = row.iter().position(|x| !x.is_finite());
                        let entry = at.map_or(format!("row {i}"), |j| format!("entry ({}, {})", i.min(j), i.max(j)));
                        return Err(fault(format!("{entry} is NaN or infinite")));
                    }
                    if row[i] < 0.0 {
                        return Err(fault(format!("entry ({i}, {i}) is {:e}: no sum of squares is negative", row[i])));
                    }
                    add_row(row, i, scale, pass.first, &mut sum[i * d..(i + 1) * d]);
                    if visit.is_some() && scale != 1.0 {
                        let diagonal = row[i];
                        row.iter_mut().for_each(|x| *x *= scale);
                        row[i] = diagonal;
                    }
                }
            }
            if let Some(visit) = &mut visit {
                visit(top..bottom, &buffers.band[..(bottom - top) * d]);
            }
        }
        if buffers.probe.suspects() {
            let Asymmetry { most, at: (i, j), largest } = self.asymmetry(gram, d, sum, buffers)?;
            if most > ASYMMETRY * largest {
                let relative = most / largest;
                return Err(fault(format!(
                    "it is not symmetric: entries ({i}, {j}) and ({j}, {i}) differ by {most:.3e}, \
                     {relative:.1e} of the largest entry (up to {ASYMMETRY:e} is let pass)"
                )));
            }
        }
        Ok(())
    }

    /// Compares every entry with its mirror image. Uses up the triangle of `sum` below the diagonal.
    fn asymmetry(&self, gram: &Gram, d: usize, sum: &mut [f64], buffers: &mut Buffers) -> Result<Asymmetry> {
        let mut asymmetry = Asymmetry::default();
        for range in portions(0..d, d).filter(|_| gram.storage == Storage::Full) {
            self.read(gram, d, &range, range.start, sum, buffers, |_| ())?;
            let rows = &buffers.band[..range.len() * d];
            asymmetry.compare(rows, range.clone(), d, sum);
            mirror(rows, range, d, sum);
        }
        Ok(asymmetry)
    }

    /// Reads rows as f64 into the band, whose first row is number `top`; `pass` gets their bytes. What packed rows lack
    /// is found below the diagonal of `sum`, where later ones will find theirs.
    #[allow(clippy::too_many_arguments)]
    fn read(
        &self,
        gram: &Gram,
        d: usize,
        rows: &Range<usize>,
        top: usize,
        sum: &mut [f64],
        buffers: &mut Buffers,
        pass: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let Buffers { bytes, values, band, .. } = buffers;
        let band = &mut band[(rows.start - top) * d..(rows.end - top) * d];
        let tensor = gram.tensor;
        let info = &self.checkpoint.tensors()[tensor];
        let range = gram.storage.row_start(d, rows.start)..gram.storage.row_start(d, rows.end);
        if info.dtype == Dtype::F64 && gram.storage == Storage::Full && cfg!(target_endian = "little") {
            let bytes = bytemuck::cast_slice_mut(band);
            self.checkpoint.read_into(tensor, range, bytes)?;
            pass(bytes);
            return Ok(());
        }
        self.checkpoint.read(tensor, range, bytes)?;
        pass(bytes);
        if !formats::decode_f64(bytes, info.dtype, values) {
            return Err(not_real(self.checkpoint, tensor));
        }
        match gram.storage {
            Storage::Full => band.copy_from_slice(values),
            Storage::Packed => {
                unpack(values, rows.clone(), d, sum, band);
                mirror(band, rows.clone(), d, sum);
            }
        }
        Ok(())
    }

    /// The gram's name, for messages.
    pub fn name(&self, gram: &Gram) -> String {
        show_name(&self.checkpoint.tensors()[gram.tensor].name)
    }
}

/// A gram of integers, complex numbers, …
pub fn not_real(checkpoint: &Checkpoint, tensor: usize) -> Error {
    let info = &checkpoint.tensors()[tensor];
    Error::tensor(
        checkpoint.path(),
        &info.name,
        format!("it is {}: a gram matrix has floating-point values", info.dtype),
    )
}

/// Rows in portions of about [`READ`] elements.
fn portions(rows: Range<usize>, d: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (READ / d.max(1)).clamp(1, BAND);
    rows.clone().step_by(step).map(move |start| start..rows.end.min(start + step))
}

/// Sees in one pass whether a matrix G is finite and may not be symmetric: it compares G·x with Gᵀ·x for one vector x
/// between ½ and 1½ without any pattern. Asymmetry shows in both unless it cancels to within [`ASYMMETRY`] in
/// every row at once.
#[derive(Default)]
struct Probe {
    x: Vec<f64>,
    /// G·x
    rows: Vec<f64>,
    /// Gᵀ·x
    columns: Vec<f64>,
    /// The largest entry of the diagonal and so, if G is a gram, of all.
    largest: f64,
}

impl Probe {
    fn start(&mut self, d: usize) {
        self.x.clear();
        // Fractional parts of multiples of an irrational number.
        self.x.extend((1..=d).map(|i| 0.5 + (i as f64 * 0.618_033_988_749_894_9).fract()));
        self.rows.clear();
        self.columns.clear();
        self.columns.resize(d, 0.0);
        self.largest = 0.0;
    }

    /// Takes the next row. False if it isn't finite.
    fn row(&mut self, i: usize, row: &[f64]) -> bool {
        const LANES: usize = 8;
        let weight = self.x[i];
        let mut sums = [0.0; LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let (columns, columns_rest) = self.columns.as_chunks_mut::<LANES>();
        for ((row, x), column) in chunks.iter().zip(x).zip(columns) {
            for lane in 0..LANES {
                sums[lane] += row[lane] * x[lane];
                column[lane] += row[lane] * weight;
            }
        }
        for ((&row, x), column) in rest.iter().zip(x_rest).zip(columns_rest) {
            sums[0] += row * x;
            *column += row * weight;
        }
        let sum: f64 = sums.iter().sum();
        self.rows.push(sum);
        self.largest = self.largest.max(row[i].abs());
        sum.is_finite()
    }

    /// Whether the matrix, all of whose rows have been taken, must be looked at again.
    fn suspects(&self) -> bool {
        let limit = 0.5 * ASYMMETRY * self.largest;
        self.rows.iter().zip(&self.columns).any(|(row, column)| {
            let apart = (row - column).abs();
            apart > limit || apart.is_nan()
        })
    }
}

/// The largest difference between mirrored entries so far, and the largest entry.
#[derive(Default)]
struct Asymmetry {
    most: f64,
    at: (usize, usize),
    largest: f64,
}

impl Asymmetry {
    /// Compares rows `range` with the rows above them, which [`mirror`] has left below the diagonal of `sum`.
    fn compare(&mut self, rows: &[f64], range: Range<usize>, d: usize, sum: &[f64]) {
        for (i, row) in range.clone().zip(rows.chunks_exact(d)) {
            let above = &sum[i * d..i * d + range.start];
            let within = (range.start..i).map(|j| rows[(j - range.start) * d + i]);
            for (j, (&x, y)) in row.iter().zip(above.iter().copied().chain(within)).enumerate() {
                if (x - y).abs() > self.most {
                    (self.most, self.at) = ((x - y).abs(), (i, j));
                }
            }
            self.largest = row.iter().fold(self.largest, |most, x| most.max(x.abs()));
        }
    }
}

/// Copies what rows `range` have right of them to where it belongs by symmetry, below the diagonal of `sum`.
fn mirror(rows: &[f64], range: Range<usize>, d: usize, sum: &mut [f64]) {
    const TILE: usize = 8;
    let height = range.len();
    let mut tile = [0.0; TILE * BAND];
    for left in (range.end..d).step_by(TILE) {
        let width = TILE.min(d - left);
        // By whole cache lines: rows are a multiple of 4 KB apart, and columns of them share few cache sets.
        for (k, row) in rows.chunks_exact(d).enumerate() {
            for (column, &x) in row[left..left + width].iter().enumerate() {
                tile[column * height + k] = x;
            }
        }
        for (j, column) in (left..left + width).zip(tile.chunks_exact(height)) {
            sum[j * d + range.start..j * d + range.end].copy_from_slice(column);
        }
    }
}

/// Rows in full from their packed upper triangle and, below the diagonal, from what was mirrored there.
fn unpack(packed: &[f64], range: Range<usize>, d: usize, sum: &[f64], rows: &mut [f64]) {
    let mut rest = packed;
    for (k, i) in range.clone().enumerate() {
        let (upper, later) = rest.split_at(d - i);
        let (above, row) = rows.split_at_mut(k * d);
        row[..range.start].copy_from_slice(&sum[i * d..i * d + range.start]);
        for (j, value) in row[range.start..i].iter_mut().enumerate() {
            *value = above[j * d + i];
        }
        row[i..d].copy_from_slice(upper);
        rest = later;
    }
}

/// Adds the part of row `i` from the diagonal on.
fn add_row(row: &[f64], i: usize, scale: f64, first: bool, sum: &mut [f64]) {
    let (row, sum) = (&row[i..], &mut sum[i..]);
    let Some((&diagonal, _)) = row.split_first() else { return };
    let before = if first { 0.0 } else { sum[0] };
    match first {
        true => sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum = scale * x),
        false => sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += scale * x),
    }
    sum[0] = before + diagonal;
}
