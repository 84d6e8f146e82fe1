//! RandAugment (Cubuk et al. 2020): a few operations drawn at random, all of one strength.
//!
//! The operations, their strengths, and grey for what comes in from outside are the Python code's (vl-merging,
//! `transforms/randaugment.py`). Those on colours compute what Pillow's `ImageOps` and `ImageEnhance` do, the geometric
//! ones what OpenCV's `warpAffine` does.

use rand::Rng;

use super::Rgb;

/// What [`RandAugment`] chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Identity,
    AutoContrast,
    Equalize,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
}

impl Operation {
    pub const ALL: [Operation; 10] = [
        Operation::Identity,
        Operation::AutoContrast,
        Operation::Equalize,
        Operation::Brightness,
        Operation::Sharpness,
        Operation::ShearX,
        Operation::ShearY,
        Operation::TranslateX,
        Operation::TranslateY,
        Operation::Rotate,
    ];

    /// Whether it goes one way or the other, as drawn.
    fn has_direction(self) -> bool {
        use Operation::*;
        matches!(self, ShearX | ShearY | TranslateX | TranslateY | Rotate)
    }

    /// Applies it with a strength in 0..=10: at 10 brightness and sharpness are multiplied by 1.9 (at 0 by 0.1), a
    /// shear is 0.3, a shift 10 pixels, a rotation 30 degrees. `backwards` turns the last three round.
    pub fn apply(self, image: Rgb, strength: f64, backwards: bool) -> Rgb {
        let share = strength / 10.0;
        let directed = |full: f64| if backwards { -full * share } else { full * share };
        match self {
            Operation::Identity => image,
            Operation::AutoContrast => autocontrast(image),
            Operation::Equalize => equalize(image),
            Operation::Brightness => brightness(image, (share * 1.8 + 0.1) as f32),
            Operation::Sharpness => sharpness(&image, (share * 1.8 + 0.1) as f32),
            Operation::ShearX => affine(&image, [1.0, single(directed(0.3)), 0.0, 0.0, 1.0, 0.0]),
            Operation::ShearY => affine(&image, [1.0, 0.0, 0.0, single(directed(0.3)), 1.0, 0.0]),
            Operation::TranslateX => affine(&image, [1.0, 0.0, single(-directed(10.0)), 0.0, 1.0, 0.0]),
            Operation::TranslateY => affine(&image, [1.0, 0.0, 0.0, 0.0, 1.0, single(-directed(10.0))]),
            Operation::Rotate => rotate(&image, directed(30.0)),
        }
    }
}

/// Which operations, how many, how strong.
#[derive(Clone, Debug, PartialEq)]
pub struct RandAugment {
    /// Drawn independently, with repetition.
    pub operations: Vec<Operation>,
    /// Operations drawn for an image.
    pub count: usize,
    /// 0..=10, for all operations.
    pub strength: f64,
    /// That an operation drawn is applied.
    pub probability: f64,
}

impl Default for RandAugment {
    /// Two operations of all ten, strength 7, each applied half the time.
    fn default() -> RandAugment {
        RandAugment { operations: Operation::ALL.to_vec(), count: 2, strength: 7.0, probability: 0.5 }
    }
}

impl RandAugment {
    pub fn apply(&self, mut image: Rgb, rng: &mut impl Rng) -> Rgb {
        if self.operations.is_empty() {
            return image;
        }
        for _ in 0..self.count {
            let operation = self.operations[rng.random_range(0..self.operations.len())];
            if rng.random::<f64>() > self.probability {
                continue;
            }
            let backwards = operation.has_direction() && rng.random::<f64>() < 0.5;
            image = operation.apply(image, self.strength, backwards);
        }
        image
    }
}

/// Replaces the values of each channel by those of its table.
fn map_channels(mut image: Rgb, tables: [[u8; 256]; 3]) -> Rgb {
    for pixel in image.pixels.chunks_exact_mut(3) {
        for (value, table) in pixel.iter_mut().zip(&tables) {
            *value = table[usize::from(*value)];
        }
    }
    image
}

/// How often each channel has each value.
fn histograms(image: &Rgb) -> [[u64; 256]; 3] {
    let mut counts = [[0; 256]; 3];
    for pixel in image.pixels.chunks_exact(3) {
        for (&value, counts) in pixel.iter().zip(&mut counts) {
            counts[usize::from(value)] += 1;
        }
    }
    counts
}

fn unchanged() -> [u8; 256] {
    std::array::from_fn(|value| value as u8)
}

/// Each channel stretched to 0..=255 (`ImageOps.autocontrast`).
fn autocontrast(image: Rgb) -> Rgb {
    let tables = histograms(&image).map(|counts| {
        let low = counts.iter().position(|&count| count > 0).unwrap_or(0);
        let high = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
        if high <= low {
            return unchanged();
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        // The conversion cuts off below 0 and above 255, and drops the fraction.
        std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
    });
    map_channels(image, tables)
}

/// Each channel's values spread to equal frequency (`ImageOps.equalize`).
fn equalize(image: Rgb) -> Rgb {
    let tables = histograms(&image).map(|counts| {
        let total: u64 = counts.iter().sum();
        let largest = counts.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
        let step = (total - largest) / 255;
        if step == 0 {
            return unchanged();
        }
        let mut below = step / 2;
        counts.map(|count| {
            let value = (below / step).min(255) as u8;
            below += count;
            value
        })
    });
    map_channels(image, tables)
}

/// `from` + `factor`·(`to` − `from`), cut off at the ends, the fraction dropped (`Image.blend`).
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}

/// Every value times `factor` (`ImageEnhance.Brightness`).
fn brightness(image: Rgb, factor: f32) -> Rgb {
    let table = std::array::from_fn(|value| blend(0, value as u8, factor));
    map_channels(image, [table; 3])
}

/// Away from the smoothed image for a `factor` above 1, towards it below (`ImageEnhance.Sharpness`): smoothing weighs
/// a pixel 5 and its eight neighbours 1 each; the outermost pixels stay.
fn sharpness(image: &Rgb, factor: f32) -> Rgb {
    let mut out = image.clone();
    let stride = image.width * 3;
    for y in 1..image.height.saturating_sub(1) {
        let rows = [y - 1, y, y + 1].map(|y| &image.pixels[y * stride..(y + 1) * stride]);
        let inner = 3..stride.saturating_sub(3).max(3);
        for at in inner {
            let around = |row: &[u8]| u32::from(row[at - 3]) + u32::from(row[at]) + u32::from(row[at + 3]);
            let centre = rows[1][at];
            let sum = rows.iter().map(|row| around(row)).sum::<u32>() + 4 * u32::from(centre);
            // Over 13, rounded.
            let smooth = (2 * sum + 13) / 26;
            out.pixels[y * stride + at] = blend(smooth as u8, centre, factor);
        }
    }
    out
}

/// What comes in from outside the image.
const FILL: [u8; 3] = [128; 3];

/// The Python code keeps the matrices of shears and shifts in f32.
fn single(value: f64) -> f64 {
    f64::from(value as f32)
}

/// The pixel at (x, y) goes to (ax + by + c, dx + ey + f), counted between the centres of pixels; between them the four
/// neighbours are weighted (`cv2.warpAffine` with `INTER_LINEAR`). Bit for bit as OpenCV before 4.11, which steps along
/// a row in 1/1024 of a pixel and weights in 1/32.
fn affine(image: &Rgb, [a, b, c, d, e, f]: [f64; 6]) -> Rgb {
    const STEP_BITS: u32 = 10;
    const WEIGHT_BITS: u32 = 5;
    const WEIGHTS: i64 = 1 << WEIGHT_BITS;
    let determinant = a * e - b * d;
    let scale = if determinant == 0.0 { 0.0 } else { 1.0 / determinant };
    // The inverse: where a pixel comes from.
    let (a, b, d, e) = (e * scale, -b * scale, -d * scale, a * scale);
    let (c, f) = (-a * c - b * f, -d * c - e * f);
    let fixed = |value: f64| (value * f64::from(1 << STEP_BITS)).round_ties_even() as i64;
    let weighted = |fixed: i64| {
        let at = fixed >> (STEP_BITS - WEIGHT_BITS);
        (at >> WEIGHT_BITS, at & (WEIGHTS - 1))
    };
    // To the nearest weight, not the one below.
    let half = 1 << (STEP_BITS - WEIGHT_BITS - 1);
    let at = |x: i64, y: i64| match (usize::try_from(x), usize::try_from(y)) {
        (Ok(x), Ok(y)) if x < image.width && y < image.height => image.pixel(x, y),
        _ => FILL,
    };
    let mut out = Rgb::filled(image.width, image.height, FILL);
    if image.pixels.is_empty() {
        return out;
    }
    for (y, row) in out.pixels.chunks_exact_mut(image.width * 3).enumerate() {
        let y = y as f64;
        let start = (fixed(b * y + c) + half, fixed(e * y + f) + half);
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let x = x as f64;
            let (left, right) = weighted(start.0 + fixed(a * x));
            let (above, below) = weighted(start.1 + fixed(d * x));
            let corners = [at(left, above), at(left + 1, above), at(left, above + 1), at(left + 1, above + 1)];
            let weights = [
                (WEIGHTS - right) * (WEIGHTS - below),
                right * (WEIGHTS - below),
                (WEIGHTS - right) * below,
                right * below,
            ];
            for (channel, value) in pixel.iter_mut().enumerate() {
                let sum: i64 =
                    weights.iter().zip(&corners).map(|(weight, corner)| weight * i64::from(corner[channel])).sum();
                *value = ((sum + WEIGHTS * WEIGHTS / 2) >> (2 * WEIGHT_BITS)) as u8;
            }
        }
    }
    out
}

/// Turned counter-clockwise about the centre (`cv2.getRotationMatrix2D`).
fn rotate(image: &Rgb, degrees: f64) -> Rgb {
    let (sine, cosine) = degrees.to_radians().sin_cos();
    let (x, y) = (image.width as f64 / 2.0, image.height as f64 / 2.0);
    let c = (1.0 - cosine) * x - sine * y;
    let f = sine * x + (1.0 - cosine) * y;
    affine(image, [cosine, sine, c, -sine, cosine, f])
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// A grey image, a row a slice.
    fn grey(rows: &[&[u8]]) -> Rgb {
        let pixels = rows.iter().flat_map(|row| row.iter().flat_map(|&v| [v; 3])).collect();
        Rgb { width: rows[0].len(), height: rows.len(), pixels }
    }

    #[test]
    fn autocontrast_stretches() {
        assert_eq!(autocontrast(grey(&[&[50, 100, 150]])), grey(&[&[0, 127, 255]]));
        assert_eq!(autocontrast(grey(&[&[9, 9]])), grey(&[&[9, 9]]), "one value has nothing to stretch");
    }

    #[test]
    fn equalize_leaves_few_pixels_alone() {
        // With fewer than 255 pixels beside those of the largest value, Pillow's step is 0.
        assert_eq!(equalize(grey(&[&[1, 2, 3, 4]])), grey(&[&[1, 2, 3, 4]]));
        let half: Vec<u8> = (0..1020).map(|at| if at < 510 { 10 } else { 20 }).collect();
        let spread: Vec<u8> = half.iter().map(|&v| if v == 10 { 0 } else { 255 }).collect();
        assert_eq!(equalize(grey(&[&half])), grey(&[&spread]));
    }

    #[test]
    fn brightness_cuts_off() {
        assert_eq!(brightness(grey(&[&[0, 10, 100, 250]]), 1.5), grey(&[&[0, 15, 150, 255]]));
    }

    #[test]
    fn sharpness_exaggerates_inside_only() {
        let image = grey(&[&[0, 0, 0], &[0, 130, 0], &[0, 0, 0]]);
        // Smoothed: 5·130/13 = 50.
        assert_eq!(sharpness(&image, 1.5), grey(&[&[0, 0, 0], &[0, 170, 0], &[0, 0, 0]]));
        assert_eq!(sharpness(&image, 0.5), grey(&[&[0, 0, 0], &[0, 90, 0], &[0, 0, 0]]));
        let line = grey(&[&[0, 130, 0]]);
        assert_eq!(sharpness(&line, 1.5), line, "all of it is border");
    }

    #[test]
    fn geometry_moves_pixels() {
        let image = grey(&[&[1, 2, 3], &[4, 5, 6], &[7, 8, 9]]);
        assert_eq!(
            affine(&image, [1.0, 0.0, -1.0, 0.0, 1.0, 0.0]),
            grey(&[&[2, 3, 128], &[5, 6, 128], &[8, 9, 128]]),
            "shifted left"
        );
        assert_eq!(
            affine(&image, [1.0, -1.0, 0.0, 0.0, 1.0, 0.0]),
            grey(&[&[1, 2, 3], &[5, 6, 128], &[9, 128, 128]]),
            "sheared: a row by as much as its number"
        );
        assert_eq!(rotate(&image, 0.0), image);
    }

    /// By hand: a quarter of a pixel to the right takes 3/4 of a pixel and 1/4 of its left neighbour, which is 128
    /// outside. The nearest pixel alone would leave the image as it is.
    #[test]
    fn geometry_never_takes_the_nearest_pixel_alone() {
        let image = grey(&[&[0, 100, 200, 40]]);
        assert_eq!(affine(&image, [1.0, 0.0, 0.25, 0.0, 1.0, 0.0]), grey(&[&[32, 75, 175, 80]]));
        // Half a pixel to the left and down: a fourth of each of four, (8 + 16 + 2·128)/4 first.
        let image = grey(&[&[8, 16], &[24, 32]]);
        let moved = affine(&image, [1.0, 0.0, -0.5, 0.0, 1.0, 0.5]);
        assert_eq!(moved, grey(&[&[70, 100], &[20, 76]]));
        // Sheared by 0.5: every second row moves by half a pixel.
        let image = grey(&[&[10, 20], &[10, 20], &[10, 20]]);
        let sheared = affine(&image, [1.0, 0.5, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(sheared, grey(&[&[10, 20], &[69, 15], &[128, 10]]));
    }

    #[test]
    fn every_operation_takes_any_size() {
        for (width, height) in [(0, 0), (1, 1), (1, 7), (7, 1), (2, 2)] {
            let image = Rgb::filled(width, height, [1, 2, 3]);
            for operation in Operation::ALL {
                let out = operation.apply(image.clone(), 7.0, true);
                assert_eq!((out.width, out.height, out.pixels.len()), (width, height, width * height * 3));
            }
        }
    }

    #[test]
    fn draws_depend_on_the_seed_alone() {
        let image = grey(&[&[1, 2, 3], &[4, 5, 6], &[7, 8, 250]]);
        let draw = |seed| RandAugment::default().apply(image.clone(), &mut ChaCha8Rng::seed_from_u64(seed));
        let first: Vec<Rgb> = (0..40).map(draw).collect();
        assert_eq!(first, (0..40).map(draw).collect::<Vec<_>>());
        let kept = first.iter().filter(|&out| *out == image).count();
        assert!((5..35).contains(&kept), "about a quarter and more stay as they are: {kept} of 40");
    }
}
