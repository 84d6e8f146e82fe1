//! Row-major order over a tensor whose elements are spread by strides.

use std::ops::Range;

use super::source::Source;
use crate::Result;

/// How many bytes are better read at once than one element by itself.
const WORTH_A_READ: usize = 4096;
const MAX_SPAN: usize = 256 << 20;

/// Reads elements `range` of the row-major order, of `size` bytes each, into `out`. The element at
/// storage position 0 starts at byte `start` of the file.
pub(crate) fn read(
    source: &Source,
    start: u64,
    shape: &[usize],
    strides: &[usize],
    range: Range<usize>,
    size: usize,
    out: &mut [u8],
) -> Result<()> {
    let (mut first, mut last) = (usize::MAX, 0);
    for_each_run(shape, strides, range.clone(), |at| (first, last) = (first.min(at), last.max(at)));
    if first > last {
        return Ok(());
    }
    let span = (last - first + 1) * size;
    let mut slots = out.chunks_exact_mut(size);
    if span <= MAX_SPAN && span / WORTH_A_READ <= range.len() {
        let mut storage = vec![0; span];
        source.read_exact_at(&mut storage, start + (first * size) as u64)?;
        for_each_run(shape, strides, range, |at| {
            if let Some(slot) = slots.next() {
                slot.copy_from_slice(&storage[(at - first) * size..][..size]);
            }
        });
        return Ok(());
    }
    // Far apart: what lies between may be larger than memory.
    let mut done = Ok(());
    for_each_run(shape, strides, range, |at| {
        if let (Some(slot), Ok(())) = (slots.next(), &done) {
            done = source.read_exact_at(slot, start + (at * size) as u64);
        }
    });
    done
}

/// Calls `visit` with the storage position of every element in `range` of the row-major order.
/// Strides and positions count elements.
pub(crate) fn for_each_run(shape: &[usize], strides: &[usize], range: Range<usize>, mut visit: impl FnMut(usize)) {
    if range.is_empty() {
        return;
    }
    let mut index = vec![0; shape.len()];
    let mut rest = range.start;
    let mut at = 0;
    for axis in (0..shape.len()).rev() {
        index[axis] = rest % shape[axis];
        rest /= shape[axis];
        at += index[axis] * strides[axis];
    }
    for _ in range {
        visit(at);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
}

/// Whether elements lie one after the other in row-major order. Axes of length 1 don't count.
pub(crate) fn is_contiguous(shape: &[usize], strides: &[u64]) -> bool {
    let mut expected = 1u64;
    for (&d, &stride) in shape.iter().zip(strides).rev() {
        if d != 1 && stride != expected {
            return false;
        }
        expected = expected.saturating_mul(d as u64);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(shape: &[usize], strides: &[usize], range: Range<usize>) -> Vec<usize> {
        let mut seen = Vec::new();
        for_each_run(shape, strides, range, |at| seen.push(at));
        seen
    }

    #[test]
    fn a_transposed_matrix_is_read_by_columns() {
        assert_eq!(positions(&[3, 2], &[1, 3], 0..6), [0, 3, 1, 4, 2, 5]);
        assert_eq!(positions(&[3, 2], &[1, 3], 3..5), [4, 2]);
    }

    #[test]
    fn an_expanded_axis_repeats() {
        assert_eq!(positions(&[2, 2], &[0, 1], 0..4), [0, 1, 0, 1]);
        assert_eq!(positions(&[], &[], 0..1), [0]);
    }

    #[test]
    fn contiguity_ignores_axes_of_length_one() {
        assert!(is_contiguous(&[2, 1, 3], &[3, 99, 1]));
        assert!(is_contiguous(&[], &[]));
        assert!(!is_contiguous(&[2, 3], &[1, 2]));
        assert!(!is_contiguous(&[2, 3], &[0, 1]));
    }
}
