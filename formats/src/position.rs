//! Position tables for another image size.
//!
//! A table of learned positions holds a square grid of rows, which follows the number of patches, among
//! rows that don't: see [`PositionTable`](crate::layout::PositionTable) for which rows those are.

use crate::layout::Grid;

/// A table for another image size: the rows of its grid resized, the others as they are.
///
/// - `table`: [rows, columns], row-major, with the grid `from` among its rows
/// - result: [rows − `from.side`² + `side`², columns]
///
/// # Panics
/// If the table has no such grid, or `side` is 0.
pub fn resize_table(table: &[f64], columns: usize, from: Grid, side: usize) -> Vec<f64> {
    let (before, rest) = table.split_at(from.start * columns);
    let (grid, after) = rest.split_at(from.side * from.side * columns);
    [before, &resize_grid(grid, from.side, side, columns), after].concat()
}

/// Bicubic resizing of a square grid, each column by itself: what
/// `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` computes without antialiasing, in f64.
/// At the same size it is the identity.
///
/// - `grid`: [from · from, columns], row-major
/// - result: [to · to, columns]
///
/// # Panics
/// If `grid` hasn't this length, or `from` or `to` is 0.
pub fn resize_grid(grid: &[f64], from: usize, to: usize, columns: usize) -> Vec<f64> {
    assert!(from > 0 && to > 0, "a grid has a side");
    assert_eq!(grid.len(), from * from * columns, "a grid of {from} × {from} × {columns}");
    let taps = taps(from, to);
    // [from, from, columns] → [from, to, columns] → [to, to, columns]
    let mut wide = vec![0.0; from * to * columns];
    for y in 0..from {
        for (x, taps) in taps.iter().enumerate() {
            let out = row_mut(&mut wide, y * to + x, columns);
            taps.iter().for_each(|&(x, weight)| add(out, weight, row(grid, y * from + x, columns)));
        }
    }
    let mut out = vec![0.0; to * to * columns];
    for (y, taps) in taps.iter().enumerate() {
        let out = row_mut(&mut out, y, to * columns);
        taps.iter().for_each(|&(y, weight)| add(out, weight, row(&wide, y, to * columns)));
    }
    out
}

/// For each of `to` positions, the four of `from` it is made of, and their weights, which sum to 1.
fn taps(from: usize, to: usize) -> Vec<[(usize, f64); 4]> {
    let scale = from as f64 / to as f64;
    let taps = |at: usize| {
        // Positions are those of the cells' centres.
        let source = scale * (at as f64 + 0.5) - 0.5;
        let below = source.floor();
        let weights = cubic(source - below);
        // Beyond the border stands the border's own value.
        [0, 1, 2, 3].map(|tap| ((below as isize + tap as isize - 1).clamp(0, from as isize - 1) as usize, weights[tap]))
    };
    (0..to).map(taps).collect()
}

/// Weights of the samples at −1, 0, 1 and 2 for a point at `t` in [0, 1]: cubic convolution (Keys, 1981).
fn cubic(t: f64) -> [f64; 4] {
    // PyTorch's free parameter; −0.5 is the more usual one.
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)]
}

fn row(values: &[f64], row: usize, width: usize) -> &[f64] {
    &values[row * width..(row + 1) * width]
}

fn row_mut(values: &mut [f64], row: usize, width: usize) -> &mut [f64] {
    &mut values[row * width..(row + 1) * width]
}

fn add(out: &mut [f64], weight: f64, values: &[f64]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_close(ours: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(ours.len(), expected.len());
        for (at, (a, b)) in ours.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= tolerance, "{at}: {a}, not {b}");
        }
    }

    #[test]
    fn weights_by_hand() {
        // Halfway: A/8 = −0.09375 outside, (4 − A)/8 = 0.59375 inside.
        assert_eq!(cubic(0.5), [-0.09375, 0.59375, 0.59375, -0.09375]);
        assert_eq!(cubic(0.0), [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(cubic(1.0), [0.0, 0.0, 1.0, 0.0]);
        // A quarter: far(1.25) = −0.75·(1.25³ − 5·1.25² + 8·1.25 − 4), near(0.25) = 1.25·0.25³ − 2.25·0.25² + 1.
        assert_eq!(cubic(0.25), [-0.10546875, 0.87890625, 0.26171875, -0.03515625]);
    }

    #[test]
    fn positions_by_hand() {
        // Two cells onto four: the centres stand at −0.25, 0.25, 0.75 and 1.25 of the two.
        let sources = |from, to| taps(from, to).into_iter().map(|taps| taps.map(|(at, _)| at)).collect::<Vec<_>>();
        assert_eq!(sources(2, 4), [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]);
        // Four onto two: between the first two and the last two.
        assert_eq!(sources(4, 2), [[0, 0, 1, 2], [1, 2, 3, 3]]);
        assert_eq!(taps(4, 2)[0].map(|(_, weight)| weight), cubic(0.5));
    }

    /// `torch.nn.functional.interpolate([[1, 2], [3, 4]], size=(4, 4), mode="bicubic")` of PyTorch 2.15.
    #[rustfmt::skip]
    const UP: [f64; 16] = [
        0.68359375, 1.015625, 1.5625, 1.89453125,
        1.34765625, 1.6796875, 2.2265625, 2.55859375,
        2.44140625, 2.7734375, 3.3203125, 3.65234375,
        3.10546875, 3.4375, 3.984375, 4.31640625,
    ];

    #[test]
    #[rustfmt::skip]
    fn what_pytorch_computes() {
        assert_close(&resize_grid(&[1.0, 2.0, 3.0, 4.0], 2, 4, 1), &UP, 1e-15);
        let three = [1.0, -2.0, 3.0, 0.0, 5.0, -1.0, 2.0, 2.0, -4.0];
        assert_close(&resize_grid(&three, 3, 5, 1), &[
            1.457728, -0.802016, -2.672, 0.762976, 3.965376,
            0.423456, 0.595328, 0.932, 1.413392, 1.734272,
            -0.48, 2.372, 5.0, 1.688, -1.576,
            0.910464, 2.617232, 3.668, -0.307552, -3.776032,
            2.23808, 2.43776, 1.712, -1.99456, -4.864,
        ], 1e-14);
        assert_close(&resize_grid(&three, 3, 2, 1), &[
            0.3857421875, 1.5954742431640625,
            2.0566253662109375, -1.9642333984375,
        ], 1e-15);
        let five = [
            -5.0, -2.0, 1.0, 4.0, -4.0,
            2.0, 5.0, -3.0, 0.0, 3.0,
            -2.0, 1.0, 4.0, -4.0, -1.0,
            5.0, -3.0, 0.0, 3.0, -5.0,
            1.0, 4.0, -4.0, -1.0, 2.0,
        ];
        assert_close(&resize_grid(&five, 5, 3, 1), &[
            -1.5699588477366235, -0.6481481481481495, 0.05486968449931279,
            -1.222222222222223, 4.0, -2.388888888888885,
            2.5620713305898484, -2.9629629629629615, 0.11282578875171216,
        ], 1e-14);
    }

    #[test]
    fn columns_are_resized_apart_and_other_rows_kept() {
        // One row before the grid, two after it; the second column is the first times −2.
        let table = [9.0, -18.0, 1.0, -2.0, 2.0, -4.0, 3.0, -6.0, 4.0, -8.0, 7.0, -14.0, 8.0, -16.0];
        let resized = resize_table(&table, 2, Grid { start: 1, side: 2 }, 4);
        assert_eq!(resized.len(), (1 + 16 + 2) * 2);
        assert_eq!((&resized[..2], &resized[34..]), (&table[..2], &table[10..]));
        for pair in resized.chunks_exact(2) {
            assert_eq!(pair[1], -2.0 * pair[0]);
        }
        assert_close(&resized[2..34].iter().step_by(2).copied().collect::<Vec<_>>(), &UP, 1e-6);
    }

    #[test]
    fn no_columns_are_no_values() {
        assert_eq!(resize_grid(&[], 3, 5, 0), Vec::<f64>::new());
    }

    proptest! {
        #[test]
        fn same_size_is_the_identity(side in 1usize..12, columns in 0usize..4, seed in any::<u32>()) {
            let grid: Vec<f64> = (0..side * side * columns).map(|i| ((i as f64) * 0.7 + seed as f64).sin()).collect();
            prop_assert_eq!(resize_grid(&grid, side, side, columns), grid);
        }

        #[test]
        fn a_constant_stays_and_a_transpose_commutes(from in 1usize..9, to in 1usize..20, value in -10.0..10.0f64) {
            assert_close(&resize_grid(&vec![value; from * from], from, to, 1), &vec![value; to * to], 1e-12);
            let grid: Vec<f64> = (0..from * from).map(|i| ((i * i) as f64).cos()).collect();
            let transpose = |grid: &[f64], side: usize| -> Vec<f64> {
                (0..side * side).map(|i| grid[i % side * side + i / side]).collect()
            };
            let there = resize_grid(&transpose(&grid, from), from, to, 1);
            assert_close(&there, &transpose(&resize_grid(&grid, from, to, 1), to), 1e-12);
        }
    }
}
