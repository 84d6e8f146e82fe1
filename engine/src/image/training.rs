//! What the model is shown in training.

use rand::Rng;

use super::{RandAugment, Rgb, Window, normalise_into, resize_bicubic_window};

/// A random part of the image, resized, perhaps mirrored, augmented.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Pixels along a side of the result.
    pub size: usize,
    /// The part's share of the image's area, from and to.
    pub scale: (f64, f64),
    /// The part's width over its height, from and to.
    pub ratio: (f64, f64),
    /// Mirror left and right half the time. Off where a text speaks of left and right.
    pub flip: bool,
    pub augment: Option<RandAugment>,
}

impl Training {
    /// At least half of the image, proportions from 3:4 to 4:3, mirrored, with the default [`RandAugment`].
    pub fn new(size: usize) -> Training {
        let augment = Some(RandAugment::default());
        Training { size, scale: (0.5, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0), flip: true, augment }
    }

    /// Writes the normalised result to `out`, [3, size, size]. The same state of `rng` gives the same result on every
    /// machine.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn apply(&self, image: &Rgb, rng: &mut impl Rng, out: &mut [f32]) {
        normalise_into(&self.apply_rgb(image, rng), out);
    }

    /// The result before it is normalised.
    pub fn apply_rgb(&self, image: &Rgb, rng: &mut impl Rng) -> Rgb {
        let window = random_window(image.width, image.height, self.scale, self.ratio, rng);
        let mut out = resize_bicubic_window(image, window, self.size, self.size);
        if self.flip && rng.random::<f64>() < 0.5 {
            mirror(&mut out);
        }
        match &self.augment {
            Some(augment) => augment.apply(out, rng),
            None => out,
        }
    }
}

/// A part of random area and proportions (torchvision's `RandomResizedCrop`): area uniform, proportions uniform in
/// their logarithm; when ten draws don't fit in the image, its middle with the nearest proportions allowed.
fn random_window(width: usize, height: usize, scale: (f64, f64), ratio: (f64, f64), rng: &mut impl Rng) -> Window {
    let area = width as f64 * height as f64;
    let mut uniform = |(from, to): (f64, f64)| from + (to - from) * rng.random::<f64>();
    for _ in 0..10 {
        let target = area * uniform(scale);
        let proportion = uniform((ratio.0.ln(), ratio.1.ln())).exp();
        let w = (target * proportion).sqrt().round_ties_even() as usize;
        let h = (target / proportion).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let mut position = |room: usize| ((room + 1) as f64 * uniform((0.0, 1.0))) as usize;
            let y = position(height - h).min(height - h);
            let x = position(width - w).min(width - w);
            return Window { x, y, width: w, height: h };
        }
    }
    let proportion = width as f64 / height as f64;
    let (w, h) = if proportion < ratio.0 {
        (width, (width as f64 / ratio.0).round_ties_even() as usize)
    } else if proportion > ratio.1 {
        ((height as f64 * ratio.1).round_ties_even() as usize, height)
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width.max(1)), h.clamp(1, height.max(1)));
    Window { x: width.saturating_sub(w) / 2, y: height.saturating_sub(h) / 2, width: w, height: h }
}

fn mirror(image: &mut Rgb) {
    if image.width == 0 {
        return;
    }
    for row in image.pixels.chunks_exact_mut(image.width * 3) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn plain(size: usize) -> Training {
        Training { flip: false, augment: None, ..Training::new(size) }
    }

    #[test]
    fn windows_have_the_area_and_proportions_asked_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (mut areas, mut proportions) = (Vec::new(), Vec::new());
        for _ in 0..2000 {
            let window = random_window(640, 480, (0.5, 1.0), (0.75, 4.0 / 3.0), &mut rng);
            assert!(window.x + window.width <= 640 && window.y + window.height <= 480, "{window:?}");
            areas.push((window.width * window.height) as f64 / (640.0 * 480.0));
            proportions.push(window.width as f64 / window.height as f64);
        }
        assert!(areas.iter().all(|area| (0.49..=1.0).contains(area)));
        assert!(proportions.iter().all(|proportion| (0.74..1.35).contains(proportion)));
        assert!(areas.iter().any(|&area| area < 0.55) && areas.iter().any(|&area| area > 0.9));
        assert!(proportions.iter().any(|&p| p < 0.9) && proportions.iter().any(|&p| p > 1.2));
    }

    #[test]
    fn what_fits_nowhere_takes_the_middle() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        // Half the area of a strip 100 wide and 10 high, at most 4:3, would be 26 wide and 19 high.
        let window = random_window(100, 10, (0.5, 1.0), (0.75, 4.0 / 3.0), &mut rng);
        assert_eq!(window, Window { x: 43, y: 0, width: 13, height: 10 });
        let window = random_window(10, 100, (0.5, 1.0), (0.75, 4.0 / 3.0), &mut rng);
        assert_eq!(window, Window { x: 0, y: 43, width: 10, height: 13 });
        let window = random_window(1, 1, (0.5, 1.0), (0.75, 4.0 / 3.0), &mut rng);
        assert_eq!(window, Window { x: 0, y: 0, width: 1, height: 1 });
    }

    #[test]
    fn flips_half_the_time_and_never_when_off() {
        let image = Rgb { width: 2, height: 1, pixels: vec![10, 10, 10, 200, 200, 200] };
        let whole = |flip| Training { scale: (1.0, 1.0), ratio: (2.0, 2.0), flip, augment: None, size: 2 };
        let flipped = |flip| {
            let dark_right = |seed| {
                let out = whole(flip).apply_rgb(&image, &mut ChaCha8Rng::seed_from_u64(seed));
                out.pixel(0, 0) > out.pixel(1, 0)
            };
            (0..200).filter(|&seed| dark_right(seed)).count()
        };
        assert_eq!(flipped(false), 0);
        assert!((70..130).contains(&flipped(true)), "{}", flipped(true));
    }

    #[test]
    fn a_seed_is_an_image() {
        let pixels = (0..40 * 30 * 3).map(|at| (at * 7 % 256) as u8).collect();
        let image = Rgb { width: 40, height: 30, pixels };
        let draw = |seed| {
            let mut out = vec![0.0; 3 * 16 * 16];
            Training::new(16).apply(&image, &mut ChaCha8Rng::seed_from_u64(seed), &mut out);
            out
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert!(draw(3).iter().all(|value| (-1.0..=1.0).contains(value)));
    }

    #[test]
    fn without_extras_it_is_a_crop() {
        let image = Rgb::filled(9, 5, [1, 2, 3]);
        let out = plain(4).apply_rgb(&image, &mut ChaCha8Rng::seed_from_u64(0));
        assert_eq!(out, Rgb::filled(4, 4, [1, 2, 3]));
    }
}
