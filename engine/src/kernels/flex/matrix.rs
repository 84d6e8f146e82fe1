//! Matrix products between parts of slices, by strides.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use gemm::Parallelism;

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
    first: *mut f32,
    shape: [usize; 2],
    strides: [usize; 2],
    owner: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

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

/// `scale`·a·b, added to what the target holds if `keep`. In parallel over rows and columns, never over the sums'
/// terms, so that the result doesn't depend on the number of threads.
pub fn multiply(a: View, b: View, scale: f32, keep: bool, to: Target, parallelism: Parallelism) {
    let ([m, k], [_, n]) = (a.shape, b.shape);
    assert_eq!((a.shape[1], to.shape), (b.shape[0], [m, n]), "shapes of a matrix product");
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
