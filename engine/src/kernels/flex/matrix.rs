//! Matrix products between parts of slices, by strides.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use gemm::Parallelism;
use rayon::prelude::*;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::simd::{bf16_bits, multiversion};
use crate::device::Precision;

/// A matrix in a slice: element (i, j) lies at i·strides[0] + j·strides[1].
#[derive(Clone, Copy)]
pub struct View<'a> {
    values: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    pub fn new(values: &'a [f32], shape: [usize; 2], strides: [usize; 2]) -> View<'a> {
        assert!(extent(shape, strides) <= values.len(), "a {shape:?} matrix by {strides:?} exceeds its slice");
        View { values, shape, strides }
    }

    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Rows `rows[0]..rows[1]`, columns `columns[0]..columns[1]`.
    fn part(self, rows: [usize; 2], columns: [usize; 2]) -> View<'a> {
        let start = rows[0] * self.strides[0] + columns[0] * self.strides[1];
        View::new(&self.values[start..], [rows[1] - rows[0], columns[1] - columns[0]], self.strides)
    }

    pub fn transposed(self) -> View<'a> {
        let ([m, n], [row, column]) = (self.shape, self.strides);
        View { shape: [n, m], strides: [column, row], ..self }
    }
}

/// A matrix that a product is written to.
pub struct Target<'a> {
    pub(super) first: *mut f32,
    shape: [usize; 2],
    pub(super) strides: [usize; 2],
    owner: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

// SAFETY: a target is an exclusive borrow; several threads write to it by `block` or its pointer, and
// whoever has them do so keeps them apart.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    /// A part of `values`; [`multiply`] may keep them.
    pub fn new(values: &'a mut [f32], shape: [usize; 2], strides: [usize; 2]) -> Target<'a> {
        assert!(extent(shape, strides) <= values.len(), "a {shape:?} matrix by {strides:?} exceeds its slice");
        Target { first: values.as_mut_ptr(), shape, strides, owner: PhantomData }
    }

    /// All of a slice, row by row.
    pub fn rows(values: &'a mut [f32], shape: [usize; 2]) -> Target<'a> {
        Target::new(values, shape, [shape[1], 1])
    }
}

impl Target<'_> {
    /// Rows `rows[0]..rows[1]`, columns `columns[0]..columns[1]`.
    ///
    /// # Safety
    ///
    /// Nothing else reads or writes these elements during the block's life.
    unsafe fn block(&self, rows: [usize; 2], columns: [usize; 2]) -> Target<'_> {
        assert!(rows[1] <= self.shape[0] && columns[1] <= self.shape[1]);
        let offset = rows[0] * self.strides[0] + columns[0] * self.strides[1];
        // SAFETY: the block's first element lies within the slice, by the line above.
        let first = unsafe { self.first.add(offset) };
        Target { first, shape: [rows[1] - rows[0], columns[1] - columns[0]], strides: self.strides, owner: PhantomData }
    }
}

/// A slice of which several threads write a part each.
pub struct Shared<'a> {
    first: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

// SAFETY: it gives access to the values by an unsafe function only, whose callers keep the parts apart.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(slots: &'a mut [MaybeUninit<f32>]) -> Shared<'a> {
        Shared { first: slots.as_mut_ptr().cast(), len: slots.len(), owner: PhantomData }
    }

    /// The matrix whose first element is at `start`.
    ///
    /// # Safety
    ///
    /// Nothing else reads or writes its elements during the target's life, and [`multiply`] is told to keep them only
    /// where they have been written.
    pub unsafe fn target(&self, start: usize, shape: [usize; 2], strides: [usize; 2]) -> Target<'_> {
        assert!(start + extent(shape, strides) <= self.len, "a {shape:?} matrix by {strides:?} exceeds its slice");
        // SAFETY: `start` lies within the slice, by the line above.
        Target { first: unsafe { self.first.add(start) }, shape, strides, owner: PhantomData }
    }
}

/// The number of values from the first to the last element.
fn extent(shape: [usize; 2], strides: [usize; 2]) -> usize {
    if shape.contains(&0) { 0 } else { (shape[0] - 1) * strides[0] + (shape[1] - 1) * strides[1] + 1 }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Nothing,
    /// What the target holds.
    Kept,
    /// The same values in every row.
    Row(&'a [f32]),
}

/// `scale`·a·b, added to `start`, on one thread.
pub fn multiply(a: View, b: View, scale: f32, start: Start, to: Target) {
    let ([m, k], [_, n]) = (a.shape, b.shape);
    assert_eq!((a.shape[1], to.shape), (b.shape[0], [m, n]), "shapes of a matrix product");
    let [a_rows, a_columns] = a.strides.map(|stride| stride as isize);
    let [b_rows, b_columns] = b.strides.map(|stride| stride as isize);
    let [to_rows, to_columns] = to.strides.map(|stride| stride as isize);
    if let Start::Row(values) = start {
        assert_eq!(values.len(), n, "a value for each column");
        for row in 0..m {
            for (column, value) in values.iter().enumerate() {
                // SAFETY: an element of the target, which checked that they all lie within its slice.
                unsafe { to.first.add(row * to.strides[0] + column * to.strides[1]).write(*value) };
            }
        }
    }
    // SAFETY: `View` and `Target` checked that their elements lie within their slices; the target's slice is
    // exclusively borrowed, so it overlaps neither factor; values that may be unwritten are not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to.first,
            to_columns,
            to_rows,
            !matches!(start, Start::Nothing),
            a.values.as_ptr(),
            a_columns,
            a_rows,
            b.values.as_ptr(),
            b_columns,
            b_rows,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// [`multiply`] on all threads, of factors rounded to the precision; sums are f32 in any case. Each thread takes blocks of the target. A block's size doesn't depend on the number of
/// threads, nor do the results. Blocks of a size that suits the caches beat `gemm`'s own parallelism, which packs a
/// factor on one thread and has threads wait for each other several times a product.
pub fn multiply_parallel(a: View, b: View, scale: f32, start: Start, to: Target, precision: Precision) {
    let ([m, k], [_, n]) = (a.shape, b.shape);
    assert_eq!((a.shape[1], to.shape), (b.shape[0], [m, n]), "shapes of a matrix product");
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if precision == Precision::Bf16
        && to.strides[1] == 1
        && a.strides.contains(&1)
        && b.strides.contains(&1)
        && amx::pays([m, k, n])
        && amx::available()
    {
        if let Start::Row(values) = start {
            assert_eq!(values.len(), n, "a value for each column");
        }
        let [outer_stride, k_stride] = a.strides;
        let left = amx::Factor { values: a.values, outer: m, k, outer_stride, k_stride };
        let [k_stride, outer_stride] = b.strides;
        let right = amx::Factor { values: b.values, outer: n, k, outer_stride, k_stride };
        // SAFETY: `Target` checked that its elements lie within its slice, which is exclusively borrowed, and whoever
        // made it vouches for the values to keep.
        return unsafe { amx::multiply(left, right, scale, start, &to) };
    }
    if precision == Precision::Bf16 {
        // Without such units bf16 is no faster, and computed all the same.
        let (a_values, b_values) = (rounded(a, scale), rounded(b, 1.0));
        let (a, b) = (View { values: &a_values, ..a }, View { values: &b_values, ..b });
        return multiply_parallel(a, b, 1.0, start, to, Precision::F32);
    }
    // Measured on AVX-512 with factors of 768 to 3072: what is packed again for each block differs with the strides.
    let [rows, columns] = if a.strides[0] == 1 && m > 1 { [576, 1536] } else { [800, 384] };
    let (rows, columns) = (Chunks::new(m, rows), Chunks::new(n, columns));
    (0..rows.count * columns.count).into_par_iter().for_each(|block| {
        let (rows, columns) = (rows.get(block / columns.count), columns.get(block % columns.count));
        // SAFETY: no two blocks overlap.
        let to = unsafe { to.block(rows, columns) };
        let start = match start {
            Start::Row(values) => Start::Row(&values[columns[0]..columns[1]]),
            other => other,
        };
        multiply(a.part(rows, [0, k]), b.part([0, k], columns), scale, start, to);
    });
}

/// The values from a factor's first to its last, times `scale`, rounded to bf16.
fn rounded(factor: View, scale: f32) -> Vec<f32> {
    let values = &factor.values[..extent(factor.shape, factor.strides)];
    let mut rounded = vec![0.0; values.len()];
    rounded
        .par_chunks_mut(1 << 14)
        .zip(values.par_chunks(1 << 14))
        .for_each(|(to, from)| round_to_bf16(from, scale, to));
    rounded
}

multiversion! {
    fn round_to_bf16<const FMA: bool>(from: &[f32], scale: f32, to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(bf16_bits(*from * scale));
        }
    }
}

/// A length in parts of nearly one size.
#[derive(Clone, Copy)]
struct Chunks {
    len: usize,
    size: usize,
    count: usize,
}

impl Chunks {
    /// As few as possible of at most `largest`, a multiple of 16 in size.
    fn new(len: usize, largest: usize) -> Chunks {
        let size = len.div_ceil(len.div_ceil(largest).max(1)).next_multiple_of(16);
        Chunks { len, size, count: len.div_ceil(size.max(1)) }
    }

    fn get(&self, i: usize) -> [usize; 2] {
        [i * self.size, ((i + 1) * self.size).min(self.len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    #[test]
    fn products_of_rounded_factors() {
        for ([m, k, n], transposed) in [
            ([64, 64, 512], [false, false]),
            ([97, 130, 201], [false, true]),
            ([200, 77, 160], [true, false]),
            ([300, 800, 33], [true, true]),
            ([33, 1000, 417], [false, true]),
            ([5, 9, 7], [false, true]),
        ] {
            let (a, b, bias) = (values(m * k, 1), values(k * n, 2), values(n, 3));
            let view = |values, rows, columns, transposed| match transposed {
                true => View::new(values, [columns, rows], [rows, 1]).transposed(),
                false => View::new(values, [rows, columns], [columns, 1]),
            };
            let (left, right) = (view(&a, m, k, transposed[0]), view(&b, k, n, transposed[1]));
            for start in ["nothing", "kept", "row"] {
                let mut found = values(m * n, 4);
                let before = found.clone();
                let begin = match start {
                    "nothing" => Start::Nothing,
                    "kept" => Start::Kept,
                    _ => Start::Row(&bias),
                };
                multiply_parallel(left, right, 0.7, begin, Target::rows(&mut found, [m, n]), Precision::Bf16);
                let bf16 = |x: f32| half::bf16::from_f32(x).to_f64();
                for row in (0..m).step_by(7) {
                    for column in 0..n {
                        let of = |values: &[f32], i, j, rows, columns, transposed| -> f32 {
                            if transposed { values[j * rows + i] } else { values[i * columns + j] }
                        };
                        let sum: f64 = (0..k)
                            .map(|t| {
                                let (x, y) =
                                    (of(&a, row, t, m, k, transposed[0]), of(&b, t, column, k, n, transposed[1]));
                                bf16(x * 0.7) * bf16(y)
                            })
                            .sum();
                        let expected = sum
                            + match start {
                                "nothing" => 0.0,
                                "kept" => f64::from(before[row * n + column]),
                                _ => f64::from(bias[column]),
                            };
                        let found = f64::from(found[row * n + column]);
                        assert!((found - expected).abs() < 1e-4, "{m}×{k}×{n} {start} at {row}, {column}");
                    }
                }
            }
        }
    }
}
