//! Symmetric positive definite systems, solved in place on one thread.
//!
//! Cholesky and the triangular solves are recursive: two halves and a matrix product between them, down to blocks
//! of [`BLOCK`] that LAPACK and BLAS take over. Nearly all arithmetic is then the product's; OpenBLAS's own dpotrf and dtrsm run
//! at half to three quarters of the speed of its dgemm. The product is the gemm crate's: on one core its speed depends
//! less on shapes and transposes than OpenBLAS's, and is up to a third higher.
//!
//! Matrices are column-major views. Of a symmetric matrix only the lower triangle counts; the other may hold
//! anything and is overwritten. (A row-major matrix and its upper triangle are the same memory.)

use std::ffi::{c_char, c_int};
use std::sync::Once;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, LinalgScalar, ShapeBuilder, s};
// Links LAPACK and BLAS.
use ndarray_linalg as _;

/// Rows and columns below which recursion isn't worth it.
const BLOCK: usize = 32;
/// Right-hand sides that meet a diagonal block at a time: they stay in a core's first cache.
const STRIP: usize = 48;
/// Columns of a triangle that are rounded to f32 at a time.
const PANEL: usize = 128;

/// Makes OpenBLAS compute on the calling thread alone, for the rest of the process.
///
/// Callers work on several matrices at once instead. It is faster, and results then don't depend on how
/// many threads there are.
pub fn use_one_thread() {
    unsafe extern "C" {
        fn openblas_set_num_threads(threads: c_int);
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| unsafe { openblas_set_num_threads(1) });
}

/// C = α·A·B + β·C, for matrices of f32 or f64. With β = 0, C may hold anything before.
pub fn multiply<T: LinalgScalar + PartialEq>(
    alpha: T,
    a: ArrayView2<T>,
    b: ArrayView2<T>,
    beta: T,
    mut c: ArrayViewMut2<T>,
) {
    let (m, k) = a.dim();
    let n = b.ncols();
    assert!(b.nrows() == k && c.dim() == (m, n), "shapes fit");
    let (&[a_row, a_column], &[b_row, b_column]) = (a.strides(), b.strides()) else { unreachable!("two axes") };
    let &[c_row, c_column] = c.strides() else { unreachable!("two axes") };
    // SAFETY: every element that these pointers, shapes and strides name is inside the views they were taken from.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_column,
            c_row,
            beta != T::zero(),
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Replaces the lower triangle of a symmetric matrix A [d, d] by L, with A = L·Lᵀ.
///
/// # Errors
/// A is not positive definite: the number of the pivot that shows it.
pub fn cholesky(mut a: ArrayViewMut2<f64>) -> Result<(), usize> {
    let d = a.nrows();
    if d <= BLOCK {
        return cholesky_block(a);
    }
    let middle = middle(d);
    let (left, mut bottom_right) = a.view_mut().split_at(Axis(1), middle);
    let (mut top, mut below) = left.split_at(Axis(0), middle);
    cholesky(top.view_mut())?;
    divide_by_transpose(below.view_mut(), top.view());
    let mut rest = bottom_right.slice_mut(s![middle.., ..]);
    add_square(-1.0, rest.view_mut(), below.view());
    cholesky(rest).map_err(|pivot| pivot + middle)
}

/// Replaces P [n, d] by X, the solution of X·Lᵀ = P.
fn divide_by_transpose(p: ArrayViewMut2<f64>, l: ArrayView2<f64>) {
    let d = l.nrows();
    if d <= BLOCK {
        return divide_by_block(p, l);
    }
    let middle = middle(d);
    let (mut left, mut right) = p.split_at(Axis(1), middle);
    let (top, bottom) = l.split_at(Axis(0), middle);
    let (below, last) = bottom.split_at(Axis(1), middle);
    divide_by_transpose(left.view_mut(), top.slice(s![.., ..middle]));
    multiply(-1.0, left.view(), below.t(), 1.0, right.view_mut());
    divide_by_transpose(right, last);
}

/// Replaces B [d, n] by X, the solution of L·X = B.
pub fn solve_lower(l: ArrayView2<f64>, b: ArrayViewMut2<f64>) {
    let d = l.nrows();
    if d <= BLOCK {
        return with_inverse(l, |inverse| times_block(inverse, b));
    }
    let middle = middle(d);
    let (mut upper, mut lower) = b.split_at(Axis(0), middle);
    let (top, bottom) = l.split_at(Axis(0), middle);
    let (below, last) = bottom.split_at(Axis(1), middle);
    solve_lower(top.slice(s![.., ..middle]), upper.view_mut());
    multiply(-1.0, below, upper.view(), 1.0, lower.view_mut());
    solve_lower(last, lower);
}

/// Replaces B [d, n] by X, the solution of Lᵀ·X = B.
pub fn solve_upper(l: ArrayView2<f64>, b: ArrayViewMut2<f64>) {
    let d = l.nrows();
    if d <= BLOCK {
        return with_inverse(l, |inverse| times_block(inverse.reversed_axes(), b));
    }
    let middle = middle(d);
    let (mut upper, mut lower) = b.split_at(Axis(0), middle);
    let (top, bottom) = l.split_at(Axis(0), middle);
    let (below, last) = bottom.split_at(Axis(1), middle);
    solve_upper(last, lower.view_mut());
    multiply(-1.0, below.t(), lower.view(), 1.0, upper.view_mut());
    solve_upper(top.slice(s![.., ..middle]), upper);
}

/// Adds α·B·Bᵀ to the lower triangle of A [n, n], for B [n, k].
pub fn add_square<T: LinalgScalar + PartialEq>(alpha: T, mut a: ArrayViewMut2<T>, b: ArrayView2<T>) {
    let n = a.nrows();
    if n <= 2 * BLOCK {
        // The whole square: half the work is for nothing, and still faster than a routine for triangles.
        return multiply(alpha, b, b.t(), T::one(), a);
    }
    let middle = middle(n);
    let (top, bottom) = b.split_at(Axis(0), middle);
    let (left, mut right) = a.view_mut().split_at(Axis(1), middle);
    let (first, below) = left.split_at(Axis(0), middle);
    add_square(alpha, first, top);
    multiply(alpha, bottom, top.t(), T::one(), below);
    add_square(alpha, right.slice_mut(s![middle.., ..]), bottom);
}

/// ‖Lᵀ·A‖² for a lower triangle L [d, d] and A [d, n], the product in f32: good to about six digits.
pub fn norm2_of_product(l: ArrayView2<f64>, a: ArrayView2<f32>, panel: &mut Vec<f32>, out: &mut Vec<f32>) -> f64 {
    let (d, n) = a.dim();
    let mut total = 0.0;
    for start in (0..d).step_by(PANEL) {
        let columns = start..d.min(start + PANEL);
        let (height, width) = (d - start, columns.len());
        panel.resize(height * width, 0.0);
        for (column, values) in columns.zip(panel.chunks_exact_mut(height)) {
            let (above, triangle) = values.split_at_mut(column - start);
            above.fill(0.0);
            for (value, &l) in triangle.iter_mut().zip(l.column(column).slice(s![column..])) {
                *value = l as f32;
            }
        }
        out.resize(width * n, 0.0);
        multiply(1.0, view(panel, height, width).t(), a.slice(s![start.., ..]), 0.0, view_mut(out, width, n));
        total += dot(out, out);
    }
    total
}

/// Σ aᵢbᵢ in f64. In lanes, so that the compiler vectorises it; always summed in the same order.
pub fn dot<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane].into() * b[lane].into();
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| a.into() * b.into()).sum();
    sums.iter().sum::<f64>() + rest
}

/// The rank of a symmetric positive semidefinite matrix, by Cholesky factorisation with pivots (LAPACK's dpstrf, with
/// its tolerance d·ε·max aᵢᵢ). Overwrites the matrix.
pub fn rank(mut a: ArrayViewMut2<f64>) -> usize {
    let (d, leading) = (a.nrows() as c_int, leading(&a.view()));
    let mut pivots = vec![0; a.nrows()];
    let mut work = vec![0.0; 2 * a.nrows()];
    let (mut rank, mut info) = (0, 0);
    if d > 0 {
        // SAFETY: `a` is [d, d] with columns `leading` apart, and the workspaces have LAPACK's sizes.
        unsafe {
            lapack_sys::dpstrf_(
                &LOWER,
                &d,
                a.as_mut_ptr(),
                &leading,
                pivots.as_mut_ptr(),
                &mut rank,
                &-1.0,
                work.as_mut_ptr(),
                &mut info,
            );
        }
    }
    usize::try_from(rank).unwrap_or(0)
}

/// The smallest eigenvalue of a symmetric matrix that is all but positive definite, to within about 10⁻¹² of its
/// mean diagonal: inverse iteration on A + σ·I, with the first σ of 10⁻¹², 10⁻¹⁰, … of the mean diagonal for which
/// that has a Cholesky factor. (Of a matrix far from singular only the order of magnitude is right.) `None` when
/// there is none up to the mean diagonal itself.
pub fn smallest_eigenvalue(a: ArrayView2<f64>) -> Option<f64> {
    let d = a.nrows();
    let unit = a.diag().mean().filter(|&mean| mean > 0.0)?;
    let (shift, l) = (0..7).find_map(|step| {
        let shift = unit * 1e-12 * 100f64.powi(step);
        let mut l = Array2::zeros((d, d).f());
        l.assign(&a);
        l.diag_mut().iter_mut().for_each(|value| *value += shift);
        cholesky(l.view_mut()).ok().map(|()| (shift, l))
    })?;
    // Any start will do that is orthogonal to no eigenvector one is likely to meet.
    let mut x: Vec<f64> = (1..=d).map(|i| (i as f64 * 0.754_877_666_246_692_7).fract() - 0.5).collect();
    let mut eigenvalue = f64::NAN;
    for _ in 0..ITERATIONS {
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter_mut().for_each(|x| *x /= norm);
        let mut y = x.clone();
        solve_lower(l.view(), view_mut(&mut y, d, 1));
        solve_upper(l.view(), view_mut(&mut y, d, 1));
        let (xy, yy) = x.iter().zip(&y).fold((0.0, 0.0), |(xy, yy), (x, y)| (xy + x * y, yy + y * y));
        eigenvalue = xy / yy - shift;
        x = y;
    }
    Some(eigenvalue)
}

const ITERATIONS: usize = 16;
const LOWER: c_char = b'L' as c_char;

/// A column-major view of `values` as [rows, columns].
///
/// # Panics
/// If there are fewer values.
pub fn view<T>(values: &[T], rows: usize, columns: usize) -> ArrayView2<'_, T> {
    ArrayView2::from_shape((rows, columns).f(), &values[..rows * columns]).expect("as many values as elements")
}

/// As [`view`], to write to.
pub fn view_mut<T>(values: &mut [T], rows: usize, columns: usize) -> ArrayViewMut2<'_, T> {
    ArrayViewMut2::from_shape((rows, columns).f(), &mut values[..rows * columns]).expect("as many values as elements")
}

/// Where a matrix of `d` > [`BLOCK`] rows is halved: after a whole number of blocks.
fn middle(d: usize) -> usize {
    d.div_ceil(2 * BLOCK) * BLOCK
}

fn cholesky_block(mut a: ArrayViewMut2<f64>) -> Result<(), usize> {
    let (d, leading) = (a.nrows() as c_int, leading(&a.view()));
    assert!(a.is_square());
    let mut info = 0;
    // SAFETY: `a` is [d, d] with columns `leading` apart.
    unsafe { lapack_sys::dpotrf_(&LOWER, &d, a.as_mut_ptr(), &leading, &mut info) };
    match usize::try_from(info) {
        Ok(0) => Ok(()),
        // dpotrf counts from 1 and lets NaN pass as no failure, which callers have ruled out.
        Ok(pivot) => Err(pivot - 1),
        Err(_) => unreachable!("arguments are valid"),
    }
}

/// Replaces P [n, d] by X, the solution of X·Lᵀ = P, for a small L.
fn divide_by_block(mut p: ArrayViewMut2<f64>, l: ArrayView2<f64>) {
    let (n, d) = p.dim();
    assert!(l.is_square() && l.nrows() == d);
    if p.is_empty() {
        return;
    }
    let (p_leading, l_leading) = (leading(&p.view()), leading(&l));
    // SAFETY: both views lie in columns `leading` apart, P is [n, d] and L [d, d].
    unsafe {
        cblas_sys::cblas_dtrsm(
            cblas_sys::CblasColMajor,
            cblas_sys::CblasRight,
            cblas_sys::CblasLower,
            cblas_sys::CblasTrans,
            cblas_sys::CblasNonUnit,
            n as c_int,
            d as c_int,
            1.0,
            l.as_ptr(),
            l_leading,
            p.as_mut_ptr(),
            p_leading,
        );
    }
}

/// Hands on the inverse of a small L. Of blocks this small it is as good as a solve, and many times as fast; the whole
/// triangle's would be neither.
fn with_inverse(l: ArrayView2<f64>, work: impl FnOnce(ArrayView2<f64>)) {
    let d = l.nrows();
    let mut inverse = [0.0; BLOCK * BLOCK];
    for (j, column) in inverse.chunks_exact_mut(d.max(1)).take(d).enumerate() {
        column[j] = 1.0;
        for k in j..d {
            let (solved, rest) = column[k..].split_at_mut(1);
            solved[0] /= l[(k, k)];
            for (value, &below) in rest.iter_mut().zip(l.column(k).slice(s![k + 1..])) {
                *value -= below * solved[0];
            }
        }
    }
    work(view(&inverse, d, d));
}

/// Replaces B [d, n] by A·B for a small A.
fn times_block(a: ArrayView2<f64>, mut b: ArrayViewMut2<f64>) {
    let d = a.nrows();
    let mut strip = [0.0; BLOCK * STRIP];
    for mut columns in b.axis_chunks_iter_mut(Axis(1), STRIP) {
        let mut before = view_mut(&mut strip, d, columns.ncols());
        before.assign(&columns);
        multiply(1.0, a, before.view(), 0.0, columns.view_mut());
    }
}

/// The distance between columns of a column-major view, as BLAS wants it.
///
/// # Panics
/// If the view is not column-major, or too large for BLAS.
fn leading<T>(a: &ArrayView2<T>) -> c_int {
    let (rows, columns) = a.dim();
    assert!(rows <= 1 || a.strides()[0] == 1, "columns are contiguous");
    let distance = if columns <= 1 { rows.max(1) } else { usize::try_from(a.strides()[1]).unwrap_or(0) };
    assert!(distance >= rows.max(1), "columns don't overlap");
    c_int::try_from(distance).expect("matrices are small enough for BLAS")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;
    use ndarray_linalg::{EigValsh, UPLO};

    /// Entries between −½ and ½ without any pattern.
    fn entries(rows: usize, columns: usize, seed: usize) -> Array2<f64> {
        let value = |(i, j): (usize, usize)| {
            let mix = (i * columns + j + 1) as f64 * 0.618_033_988_749_894_9 + seed as f64 * 0.324_717_957_244_746;
            (mix * (1.0 + mix.fract())).fract() - 0.5
        };
        Array2::from_shape_fn((rows, columns).f(), value)
    }

    fn gram(samples: usize, d: usize) -> Array2<f64> {
        let x = entries(samples, d, 7);
        let mut gram = Array2::from_elem((d, d).f(), f64::NAN);
        multiply(1.0, x.t(), x.view(), 0.0, gram.view_mut());
        gram
    }

    fn lower(a: &Array2<f64>) -> Array2<f64> {
        Array2::from_shape_fn(a.dim(), |(i, j)| if i >= j { a[(i, j)] } else { 0.0 })
    }

    fn largest(a: &Array2<f64>) -> f64 {
        a.iter().fold(0.0, |most, x| most.max(x.abs()))
    }

    #[test]
    fn a_factor_one_can_check_by_hand() {
        // The upper triangle doesn't count.
        let mut a = vec![4.0, 2.0, f64::NAN, 5.0];
        cholesky(view_mut(&mut a, 2, 2)).unwrap();
        assert_eq!((a[0], a[1], a[3]), (2.0, 1.0, 2.0));
        let mut b = vec![8.0, 14.0];
        solve_lower(view(&a, 2, 2), view_mut(&mut b, 2, 1));
        assert_eq!(b, [4.0, 5.0]);
        solve_upper(view(&a, 2, 2), view_mut(&mut b, 2, 1));
        // 4·0.75 + 2·2.5 = 8, 2·0.75 + 5·2.5 = 14
        assert_eq!(b, [0.75, 2.5]);
    }

    #[test]
    fn solves_systems_of_every_size_around_a_block() {
        for d in [1, 2, 63, 64, 65, 127, 128, 129, 200, 321] {
            let a = gram(2 * d, d);
            let mut factor = a.clone();
            cholesky(factor.view_mut()).unwrap();
            let l = lower(&factor);
            assert!(largest(&(l.dot(&l.t()) - &a)) < 1e-13 * d as f64, "{d}");
            for n in [1, 3, 70] {
                let b = entries(d, n, 1);
                let mut x = b.clone();
                solve_lower(factor.view(), x.view_mut());
                solve_upper(factor.view(), x.view_mut());
                assert!(largest(&(a.dot(&x) - &b)) < 1e-11, "{d} {n}");
            }
        }
    }

    #[test]
    fn nothing_to_solve() {
        let mut empty = Vec::new();
        let mut a = gram(9, 3);
        cholesky(a.view_mut()).unwrap();
        solve_lower(a.view(), view_mut(&mut empty, 3, 0));
        solve_upper(a.view(), view_mut(&mut empty, 3, 0));
        cholesky(view_mut(&mut empty, 0, 0)).unwrap();
    }

    #[test]
    fn products_of_any_stride() {
        let (a, b, c) = (entries(5, 7, 1), entries(7, 3, 2), entries(5, 3, 3));
        let expected = a.dot(&b) * 2.0 + &c * 0.5;
        let mut out = c.clone();
        multiply(2.0, a.view(), b.view(), 0.5, out.view_mut());
        assert!(largest(&(&out - &expected)) < 1e-15);
        let (a_rows, b_rows) = (a.as_standard_layout(), b.as_standard_layout());
        let mut out = c.as_standard_layout().into_owned();
        multiply(2.0, a_rows.view(), b_rows.view(), 0.5, out.view_mut());
        assert!(largest(&(&out - &expected)) < 1e-15);
    }

    #[test]
    fn names_the_pivot_that_fails() {
        for (d, bad) in [(3, 2), (200, 0), (200, 199), (200, 130)] {
            let mut a = Array2::eye(d).reversed_axes();
            a[(bad, bad)] = -1.0;
            assert_eq!(cholesky(a.view_mut()), Err(bad));
        }
    }

    #[test]
    fn squares_of_every_size_around_a_block() {
        for n in [1, 64, 128, 129, 300] {
            let (mut a, b) = (entries(n, n, 5), entries(n, 9, 6));
            let expected = lower(&(&a - b.dot(&b.t())));
            add_square(-1.0, a.view_mut(), b.view());
            assert!(largest(&(lower(&a) - expected)) < 1e-14, "{n}");
        }
    }

    #[test]
    fn norm_of_a_product_to_f32() {
        for (n, d) in [(1, 1), (5, 300), (40, 64)] {
            let l = lower(&entries(d, d, 3)).t().to_owned().reversed_axes();
            let a = entries(d, n, 4).mapv(|x| x as f32);
            let expected = l.t().dot(&a.mapv(f64::from)).mapv(|x| x * x).sum();
            let got = norm2_of_product(l.view(), a.view(), &mut Vec::new(), &mut Vec::new());
            assert!((got - expected).abs() < 1e-5 * expected, "{got} {expected}");
        }
    }

    #[test]
    fn rank_and_smallest_eigenvalue() {
        for (samples, d) in [(40, 80), (150, 80), (2, 3)] {
            let a = gram(samples, d);
            assert_eq!(rank(a.clone().view_mut()), samples.min(d));
            let all = a.eigvalsh(UPLO::Lower).unwrap();
            let found = smallest_eigenvalue(a.view()).unwrap();
            let unit = a.diag().mean().unwrap();
            assert!((found - all[0]).abs() < 1e-11 * unit + 0.1 * all[0].abs(), "{found} {}", all[0]);
        }
        let indefinite = arr2(&[[1.0, 0.0], [0.0, -0.25]]);
        assert!((smallest_eigenvalue(indefinite.view()).unwrap() + 0.25).abs() < 1e-3);
        assert_eq!(smallest_eigenvalue(arr2(&[[0.0]]).view()), None);
    }
}
