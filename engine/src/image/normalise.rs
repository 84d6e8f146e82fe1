//! Pixels to what the model takes.

use std::sync::LazyLock;

use super::{Rgb, resize_bicubic};

/// What each of the 256 values becomes: v/255, less ½, over ½, each rounded to f32, as torchvision's `ToTensor` and
/// `Normalize(0.5, 0.5)` compute it.
static NORMALISED: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|value| (value as f32 / 255.0 - 0.5) / 0.5));

/// Scales an image to [−1, 1]; `out` is [3, height, width].
///
/// # Panics
/// When `out` has another length.
pub fn normalise_into(image: &Rgb, out: &mut [f32]) {
    let count = image.width * image.height;
    assert_eq!(out.len(), 3 * count, "room for {}×{} pixels", image.width, image.height);
    let table = &*NORMALISED;
    let (red, rest) = out.split_at_mut(count);
    let (green, blue) = rest.split_at_mut(count);
    for (((pixel, red), green), blue) in image.pixels.chunks_exact(3).zip(red).zip(green).zip(blue) {
        *red = table[usize::from(pixel[0])];
        *green = table[usize::from(pixel[1])];
        *blue = table[usize::from(pixel[2])];
    }
}

/// What the model is shown in evaluation: the whole image squashed to a square, its proportions not kept, normalised.
/// `out` is [3, size, size].
///
/// # Panics
/// When `out` has another length.
pub fn evaluation(image: &Rgb, size: usize, out: &mut [f32]) {
    normalise_into(&resize_bicubic(image, size, size), out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_planes() {
        let image = Rgb { width: 2, height: 1, pixels: vec![0, 51, 255, 255, 204, 0] };
        let mut out = [0.0; 6];
        normalise_into(&image, &mut out);
        assert_eq!([out[0], out[1], out[4], out[5]], [-1.0, 1.0, 1.0, -1.0]);
        assert!((out[2] + 0.6).abs() < 1e-6 && (out[3] - 0.6).abs() < 1e-6, "{out:?}");
    }

    #[test]
    fn evaluation_squashes() {
        let mut image = Rgb::filled(40, 10, [255, 0, 0]);
        image.pixels[..600].fill(255);
        let mut out = [9.0; 3 * 64];
        evaluation(&image, 8, &mut out);
        assert!(out[..64].iter().all(|&v| v == 1.0), "red is full everywhere");
        assert_eq!((out[64], out[64 + 63]), (1.0, -1.0), "green above, none below");
    }
}
