//! Bicubic resizing with exactly Pillow's arithmetic.
//!
//! Pillow's `BICUBIC`: the cubic kernel with a = −½, widened by the factor of reduction (antialiasing), weights in
//! fixed point with 22 fractional bits, first along rows, rounded to 8 bits, then along columns. Pillow 13 takes columns
//! first where that is less work, which moves a result by a rounding, or more beside hard edges; weights are trained
//! with what came before it.

use super::Rgb;

/// A part of an image, in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
}

impl Window {
    pub fn whole(image: &Rgb) -> Window {
        Window { x: 0, y: 0, width: image.width, height: image.height }
    }
}

/// The image at `width`×`height`, as Pillow's `resize((width, height), Image.BICUBIC)`, byte for byte.
pub fn resize_bicubic(image: &Rgb, width: usize, height: usize) -> Rgb {
    resize_bicubic_window(image, Window::whole(image), width, height)
}

/// A part of the image at `width`×`height`, as Pillow's `crop(…)` and then `resize(…)`: pixels beyond the part have
/// no influence. What of the window lies outside the image is left away; nothing at all gives black.
pub fn resize_bicubic_window(image: &Rgb, window: Window, width: usize, height: usize) -> Rgb {
    let (x, y) = (window.x.min(image.width), window.y.min(image.height));
    let window = Window { x, y, width: window.width.min(image.width - x), height: window.height.min(image.height - y) };
    if window.width == 0 || window.height == 0 || width == 0 || height == 0 {
        return Rgb::filled(width, height, [0; 3]);
    }
    let row = |y: usize| {
        let start = (y * image.width + window.x) * 3;
        &image.pixels[start..start + window.width * 3]
    };
    let rows: Vec<&[u8]> = (window.y..window.y + window.height).map(row).collect();
    if width == window.width {
        return to_height(&rows, height);
    }
    // As Pillow: the other order for a thin strip, which would become a huge image in between.
    if rows.len() > 100 * window.width && height < rows.len() {
        return resize_bicubic(&to_height(&rows, height), width, height);
    }
    let mut narrowed = vec![0; width * 3 * rows.len()];
    along_rows(&rows, &Weights::new(window.width, width), &mut narrowed);
    if height == rows.len() {
        return Rgb { width, height, pixels: narrowed };
    }
    let rows: Vec<&[u8]> = narrowed.chunks_exact(width * 3).collect();
    to_height(&rows, height)
}

/// The second pass, or a copy where there's nothing to do.
fn to_height(rows: &[&[u8]], height: usize) -> Rgb {
    let width = rows[0].len() / 3;
    if height == rows.len() {
        return Rgb { width, height, pixels: rows.concat() };
    }
    let mut pixels = vec![0; width * 3 * height];
    along_columns(rows, &Weights::new(rows.len(), height), &mut pixels);
    Rgb { width, height, pixels }
}

/// Fractional bits of a weight: 32, less 8 for a sample, less 2 for sums beyond 1.
const PRECISION: u32 = 22;

/// Of what each output sample is the sum.
struct Weights {
    /// For each output sample, the first input sample and the range of its weights.
    spans: Vec<(usize, std::ops::Range<usize>)>,
    values: Vec<i32>,
}

impl Weights {
    fn new(input: usize, output: usize) -> Weights {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let mut spans = Vec::with_capacity(output);
        let mut values = Vec::new();
        let mut exact = Vec::new();
        for sample in 0..output {
            let centre = (sample as f64 + 0.5) * scale;
            // A negative number becomes 0.
            let first = (centre - support + 0.5) as usize;
            let last = ((centre + support + 0.5) as usize).min(input);
            exact.clear();
            // Multiplied by the reciprocal as Pillow does, not divided: weights agree to the last bit.
            let narrowing = 1.0 / filter_scale;
            exact.extend((first..last).map(|at| cubic((at as f64 - centre + 0.5) * narrowing)));
            let sum: f64 = exact.iter().sum();
            let start = values.len();
            values.extend(exact.iter().map(|&weight| {
                let weight = if sum == 0.0 { weight } else { weight / sum };
                (weight * f64::from(1 << PRECISION) + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
            spans.push((first, start..values.len()));
        }
        Weights { spans, values }
    }

    /// For each output sample, the first input sample and the weights of those from there on.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.spans.iter().map(|(first, range)| (*first, &self.values[range.clone()]))
    }
}

/// The cubic convolution kernel with a = −½ (Keys 1981).
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

const HALF: i32 = 1 << (PRECISION - 1);

#[inline(always)]
fn to_sample(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Samples summed at a time, in vector registers.
const BLOCK: usize = 32;

/// The weighted sum of as many blocks as there are weights: of each of `rows` the [`BLOCK`] samples from `at` on.
///
/// Rows behind pointers, in both passes: were blocks neighbours in memory, the compiler would take several of them at
/// a time and transpose.
#[inline(always)]
fn sum(rows: &[&[u8]], at: usize, weights: &[i32]) -> [u8; BLOCK] {
    let mut sums = [HALF; BLOCK];
    for (row, &weight) in rows.iter().zip(weights) {
        for (sum, &sample) in sums.iter_mut().zip(&row[at..at + BLOCK]) {
            *sum += i32::from(sample) * weight;
        }
    }
    let mut samples = [0; BLOCK];
    for (sample, sum) in samples.iter_mut().zip(sums) {
        *sample = to_sample(sum);
    }
    samples
}

/// Runs `$body` compiled for AVX2 where the CPU has it: the same arithmetic, twice the lanes and a 32-bit product.
macro_rules! with_avx2 {
    ($name:ident, $body:ident) => {
        fn $name(rows: &[&[u8]], weights: &Weights, out: &mut [u8]) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2(rows: &[&[u8]], weights: &Weights, out: &mut [u8]) {
                    $body(rows, weights, out);
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the CPU has AVX2.
                    return unsafe { avx2(rows, weights, out) };
                }
            }
            $body(rows, weights, out);
        }
    };
}

with_avx2!(along_rows, along_rows_generic);
with_avx2!(along_columns, along_columns_generic);

/// Rows resized together: a block is one pixel of each, padded to four bytes.
const ROWS: usize = BLOCK / 4;

/// Resizes each of `rows` (RGB, all of one length) to the weights' length; `out` is [rows, output, 3].
#[inline(always)]
fn along_rows_generic(rows: &[&[u8]], weights: &Weights, out: &mut [u8]) {
    let stride = weights.spans.len() * 3;
    let mut pixels = vec![[0; BLOCK]; rows[0].len() / 3];
    let mut resized = vec![[0; BLOCK]; weights.spans.len()];
    for (rows, out) in rows.chunks(ROWS).zip(out.chunks_mut(ROWS * stride)) {
        for (at, row) in rows.iter().enumerate() {
            for (block, pixel) in pixels.iter_mut().zip(row.as_chunks::<3>().0) {
                block[4 * at..4 * at + 3].copy_from_slice(pixel);
            }
        }
        let blocks: Vec<&[u8]> = pixels.iter().map(|block| block.as_slice()).collect();
        for (block, (first, weights)) in resized.iter_mut().zip(weights.iter()) {
            *block = sum(&blocks[first..first + weights.len()], 0, weights);
        }
        for (at, row) in out.chunks_exact_mut(stride).enumerate() {
            for (block, pixel) in resized.iter().zip(row.as_chunks_mut::<3>().0) {
                pixel.copy_from_slice(&block[4 * at..4 * at + 3]);
            }
        }
    }
}

/// Resizes along columns: each output row is a weighted sum of `rows`.
#[inline(always)]
fn along_columns_generic(rows: &[&[u8]], weights: &Weights, out: &mut [u8]) {
    let stride = rows[0].len();
    for (out, (first, weights)) in out.chunks_exact_mut(stride).zip(weights.iter()) {
        let rows = &rows[first..first + weights.len()];
        let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
        let start = blocks.len() * BLOCK;
        for (index, block) in blocks.iter_mut().enumerate() {
            *block = sum(rows, index * BLOCK, weights);
        }
        for (at, out) in rest.iter_mut().enumerate() {
            let sum = rows.iter().zip(weights).fold(HALF, |sum, (row, &w)| sum + i32::from(row[start + at]) * w);
            *out = to_sample(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_checked() {
        let pair = Rgb { width: 2, height: 1, pixels: vec![0, 10, 255, 255, 30, 255] };
        assert_eq!(resize_bicubic(&pair, 1, 1).pixels, [128, 20, 255], "the mean, ½ rounded up");
        assert_eq!(resize_bicubic(&pair, 2, 1), pair, "nothing to do");
        assert_eq!(resize_bicubic(&Rgb::filled(7, 5, [0, 77, 255]), 31, 2), Rgb::filled(31, 2, [0, 77, 255]));
    }

    #[test]
    fn weights_sum_to_one() {
        for (input, output) in [(1, 9), (9, 1), (640, 224), (3, 224), (20_000, 7)] {
            for (first, weights) in Weights::new(input, output).iter() {
                assert!(!weights.is_empty() && first + weights.len() <= input, "{input} to {output}");
                let sum: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
                assert!((sum - (1 << PRECISION)).abs() <= weights.len() as i64, "{input} to {output}: {sum}");
            }
        }
    }

    /// What a CPU without AVX2 computes; on one with it, nothing else runs this.
    #[test]
    fn both_instruction_sets_agree() {
        let rows: Vec<Vec<u8>> = (0..11).map(|y| (0..57).map(|x| (x * x * 7 + y * 91) as u8).collect()).collect();
        let rows: Vec<&[u8]> = rows.iter().map(|row| row.as_slice()).collect();
        for size in [1, 6, 19, 40] {
            let weights = Weights::new(19, size);
            let mut out = [vec![0; 11 * size * 3], vec![0; 11 * size * 3]];
            along_rows(&rows, &weights, &mut out[0]);
            along_rows_generic(&rows, &weights, &mut out[1]);
            assert_eq!(out[0], out[1]);
            let weights = Weights::new(11, size);
            let mut out = [vec![0; size * 57], vec![0; size * 57]];
            along_columns(&rows, &weights, &mut out[0]);
            along_columns_generic(&rows, &weights, &mut out[1]);
            assert_eq!(out[0], out[1]);
        }
    }
}
