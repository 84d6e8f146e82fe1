//! Gram matrices from the file, a band of rows at a time: checked, scaled and summed as they pass by.

use std::ops::Range;

use formats::grams::Storage;
use formats::layout::Modality;
use formats::{Checkpoint, Digester, Dtype, Error, Result, show_name};

/// Entries that mirror each other may differ by this much of the largest entry. Sums in f32 do by 10⁻⁷.
const ASYMMETRY: f64 = 1e-6;
/// Elements read at a time: half a MB stays in a core's cache through all passes over it.
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
    values: Vec<f64>,
    rows: Vec<f64>,
    band: Vec<f64>,
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
    /// diagonal is used up.
    ///
    /// `visit`, if there is one, is given the scaled rows in order: their numbers, and all of their d columns.
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
        let Buffers { bytes, values, rows, band } = buffers;
        let step = (READ / d.max(1)).max(1).next_power_of_two().min(BAND);
        let mut digest = pass.digest.then(|| self.digester.in_order(gram.tensor));
        let mut largest: f64 = 0.0;
        let mut asymmetry = Asymmetry::default();
        if visit.is_some() {
            band.resize(BAND.min(d) * d, 0.0);
        }
        for top in (0..d).step_by(BAND) {
            let bottom = d.min(top + BAND);
            for start in (top..bottom).step_by(step) {
                let end = bottom.min(start + step);
                let range = gram.storage.row_start(d, start)..gram.storage.row_start(d, end);
                self.read(gram.tensor, range, bytes, values, |bytes| {
                    if let Some(digest) = &mut digest {
                        digest.pass(bytes);
                    }
                })?;
                let extremes = extremes(values);
                largest = largest.max(extremes.largest);
                if !extremes.finite {
                    let (i, j) = position(values, gram.storage, d, start, |x| !x.is_finite());
                    return Err(fault(format!("entry ({i}, {j}) is NaN or infinite")));
                }
                let rows: &[f64] = match gram.storage {
                    Storage::Full => {
                        asymmetry.compare(values, start..end, d, sum);
                        values
                    }
                    Storage::Packed => {
                        unpack(values, start..end, d, sum, rows);
                        rows
                    }
                };
                mirror(rows, start..end, d, sum);
                for (i, row) in (start..end).zip(rows.chunks_exact(d)) {
                    if row[i] < 0.0 {
                        return Err(fault(format!("entry ({i}, {i}) is {:e}: no sum of squares is negative", row[i])));
                    }
                    let scale = pass.non_diag_scale;
                    add_row(row, i, scale, pass.first, &mut sum[i * d..(i + 1) * d]);
                    if visit.is_some() {
                        let scaled = &mut band[(i - top) * d..(i - top + 1) * d];
                        scaled.iter_mut().zip(row).for_each(|(scaled, &x)| *scaled = scale * x);
                        scaled[i] = row[i];
                    }
                }
            }
            if let Some(visit) = &mut visit {
                visit(top..bottom, &band[..(bottom - top) * d]);
            }
        }
        if asymmetry.most > ASYMMETRY * largest {
            let Asymmetry { most, at: (i, j) } = asymmetry;
            let relative = most / largest;
            return Err(fault(format!(
                "it is not symmetric: entries ({i}, {j}) and ({j}, {i}) differ by {most:.3e}, \
                 {relative:.1e} of the largest entry (up to {ASYMMETRY:e} is let pass)"
            )));
        }
        Ok(())
    }

    /// Reads elements as f64; `pass` gets their bytes.
    fn read(
        &self,
        tensor: usize,
        range: Range<usize>,
        bytes: &mut Vec<u8>,
        values: &mut Vec<f64>,
        pass: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let info = &self.checkpoint.tensors()[tensor];
        if info.dtype == Dtype::F64 && cfg!(target_endian = "little") {
            self.checkpoint.read_f64(tensor, range, values)?;
            pass(bytemuck::cast_slice(values));
            return Ok(());
        }
        self.checkpoint.read(tensor, range, bytes)?;
        pass(bytes);
        match formats::decode_f64(bytes, info.dtype, values) {
            true => Ok(()),
            false => Err(not_real(self.checkpoint, tensor)),
        }
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

struct Extremes {
    largest: f64,
    finite: bool,
}

/// The largest magnitude, and whether all values are finite. In lanes, so that the compiler vectorises it.
fn extremes(values: &[f64]) -> Extremes {
    const LANES: usize = 8;
    let mut largest = [0f64; LANES];
    let mut poison = [0f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut take = |lane: usize, x: f64| {
        largest[lane] = if x.abs() > largest[lane] { x.abs() } else { largest[lane] };
        // 0 for a finite number, else NaN.
        poison[lane] += x * 0.0;
    };
    for chunk in chunks {
        (0..LANES).for_each(|lane| take(lane, chunk[lane]));
    }
    rest.iter().for_each(|&x| take(0, x));
    Extremes { largest: largest.into_iter().fold(0.0, f64::max), finite: poison.iter().all(|x| !x.is_nan()) }
}

/// The first entry that `wanted` holds for, as row and column.
fn position(values: &[f64], storage: Storage, d: usize, start: usize, wanted: impl Fn(f64) -> bool) -> (usize, usize) {
    let mut rest = values;
    for i in start..d {
        let first = if storage == Storage::Packed { i } else { 0 };
        let (row, later) = rest.split_at(rest.len().min(d - first));
        if let Some(j) = row.iter().position(|&x| wanted(x)) {
            return (i, first + j);
        }
        rest = later;
    }
    (start, 0)
}

/// The largest difference between mirrored entries so far.
#[derive(Default)]
struct Asymmetry {
    most: f64,
    at: (usize, usize),
}

impl Asymmetry {
    /// Compares rows `range` with the rows above them, which [`mirror`] has left below the diagonal of `sum`.
    fn compare(&mut self, rows: &[f64], range: Range<usize>, d: usize, sum: &[f64]) {
        for (i, row) in range.clone().zip(rows.chunks_exact(d)) {
            let above = &sum[i * d..i * d + range.start];
            let most = furthest(&row[..range.start], above);
            if most > self.most {
                let j = row.iter().zip(above).position(|(a, b)| (a - b).abs() == most).unwrap_or(0);
                *self = Asymmetry { most, at: (i, j) };
            }
            for (j, &x) in row.iter().enumerate().take(i).skip(range.start) {
                let difference = (x - rows[(j - range.start) * d + i]).abs();
                if difference > self.most {
                    *self = Asymmetry { most: difference, at: (i, j) };
                }
            }
        }
    }
}

/// The largest |a − b|.
fn furthest(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut most = [0f64; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut take = |lane: usize, difference: f64| {
        most[lane] = if difference.abs() > most[lane] { difference.abs() } else { most[lane] };
    };
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        (0..LANES).for_each(|lane| take(lane, a[lane] - b[lane]));
    }
    a_rest.iter().zip(b_rest).for_each(|(a, b)| take(0, a - b));
    most.into_iter().fold(0.0, f64::max)
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
fn unpack(packed: &[f64], range: Range<usize>, d: usize, sum: &[f64], rows: &mut Vec<f64>) {
    rows.resize(range.len() * d, 0.0);
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
