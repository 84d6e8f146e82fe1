//! Matrix products between parts of slices, by strides.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use gemm::Parallelism;
use rayon::prelude::*;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;

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

// SAFETY: a target is an exclusive borrow, and whoever writes through its pointer keeps the parts apart.
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

/// `scale`·a·b, added to `start`. In parallel over rows and columns, never over the sums' terms, so that the result
/// doesn't depend on the number of threads.
pub fn multiply(a: View, b: View, scale: f32, start: Start, to: Target, parallelism: Parallelism) {
    let ([m, k], [_, n]) = (a.shape, b.shape);
    assert_eq!((a.shape[1], to.shape), (b.shape[0], [m, n]), "shapes of a matrix product");
    if let Start::Row(values) = start {
        assert_eq!(values.len(), n, "a value for each column");
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if !matches!(parallelism, Parallelism::None)
        && to.strides[1] == 1
        && a.strides.contains(&1)
        && b.strides.contains(&1)
        && amx::pays([m, k, n])
        && amx::available()
    {
        let [outer_stride, k_stride] = a.strides;
        let left = amx::Factor { values: a.values, outer: m, k, outer_stride, k_stride };
        let [k_stride, outer_stride] = b.strides;
        let right = amx::Factor { values: b.values, outer: n, k, outer_stride, k_stride };
        // SAFETY: `Target` checked that its elements lie within its slice, which is exclusively borrowed, and whoever
        // made it vouches for the values to keep.
        return unsafe { amx::multiply(left, right, scale, start, &to) };
    }
    let keep = match start {
        Start::Nothing => false,
        Start::Kept => true,
        Start::Row(values) => {
            fill(values, &to);
            true
        }
    };
    let [a_rows, a_columns] = a.strides.map(|stride| stride as isize);
    let [b_rows, b_columns] = b.strides.map(|stride| stride as isize);
    let [to_rows, to_columns] = to.strides.map(|stride| stride as isize);
    // SAFETY: `View` and `Target` checked that their elements lie within their slices; the target's slice is
    // exclusively borrowed, so it overlaps neither factor; values that may be unwritten are not read unless `keep`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to.first,
            to_columns,
            to_rows,
            keep,
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
            parallelism,
        );
    }
}

/// Writes `values` to every row.
fn fill(values: &[f32], to: &Target) {
    (0..to.shape[0]).into_par_iter().with_min_len(64).for_each(|row| {
        for (column, value) in values.iter().enumerate() {
            // SAFETY: an element of the target, which checked that they all lie within its slice; a task has its rows.
            unsafe { to.first.add(row * to.strides[0] + column * to.strides[1]).write(*value) };
        }
    });
}
