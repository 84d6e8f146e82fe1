//! A scene as pixels.

use super::font;
use super::scene::{Anchor, Color, Scene, Shape};

/// A picture with more pixels than a PNG is made of here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the figure is too large for a PNG, {width} × {height} pixels: take SVG")]
pub struct Oversized {
    pub width: u64,
    pub height: u64,
}

/// Most pixels of a picture; it takes three bytes for each.
const PIXELS: u64 = 50_000_000;

impl Scene {
    /// A PNG of twice the size in pixels, for sharp text on paper and screens of today; of the size itself where
    /// twice would be too large.
    pub fn png(&self) -> Result<Vec<u8>, Oversized> {
        let size = |scale: f64| ((self.width * scale).ceil() as u64, (self.height * scale).ceil() as u64);
        let fits = |&scale: &f64| size(scale).0.saturating_mul(size(scale).1) <= PIXELS;
        let Some(scale) = [2.0, 1.0].into_iter().find(fits) else {
            let (width, height) = size(1.0);
            return Err(Oversized { width, height });
        };
        let (width, height) = size(scale);
        let mut canvas = Canvas { width: width as usize, height: height as usize, pixels: Vec::new() };
        canvas.pixels = [255; 3].repeat(canvas.width * canvas.height);
        for shape in &self.shapes {
            match shape {
                Shape::Rectangle { x, y, width, height, fill, .. } => {
                    canvas.rectangle([*x, *y, *x + *width, *y + *height].map(|edge| edge * scale), *fill);
                }
                Shape::Text { x, y, size, anchor, fill, text } => {
                    let width = font::width(text, *size);
                    let before = match anchor {
                        Anchor::Start => 0.0,
                        Anchor::Middle => width / 2.0,
                        Anchor::End => width,
                    };
                    // On a whole pixel lines of letters stay sharp.
                    let baseline = ((y + size * font::X_HEIGHT / 2.0) * scale).round();
                    let blend = |x, y, coverage| canvas.blend(x, y, coverage, *fill);
                    font::paint(text, size * scale, (x - before) * scale, baseline, blend);
                }
            }
        }
        Ok(canvas.encode())
    }
}

struct Canvas {
    width: usize,
    height: usize,
    /// Red, green, blue; row by row.
    pixels: Vec<u8>,
}

impl Canvas {
    /// Fills the pixels whose centre is inside.
    fn rectangle(&mut self, [left, top, right, bottom]: [f64; 4], fill: Color) {
        let pixel = |edge: f64, end: usize| (edge.round().max(0.0) as usize).min(end);
        let (left, right) = (pixel(left, self.width), pixel(right, self.width));
        for y in pixel(top, self.height)..pixel(bottom, self.height) {
            let row = &mut self.pixels[y * self.width * 3..][..self.width * 3];
            for x in left..right {
                row[x * 3..][..3].copy_from_slice(&fill.0);
            }
        }
    }

    fn blend(&mut self, x: i64, y: i64, coverage: f64, ink: Color) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return };
        if x < self.width && y < self.height {
            for (channel, ink) in self.pixels[(y * self.width + x) * 3..][..3].iter_mut().zip(ink.0) {
                *channel = (f64::from(*channel) * (1.0 - coverage) + f64::from(ink) * coverage).round() as u8;
            }
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        // Writing to memory pixels of the announced size can't fail.
        let written = encoder.write_header().and_then(|mut writer| {
            writer.write_image_data(&self.pixels)?;
            writer.finish()
        });
        debug_assert!(written.is_ok());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_have_their_place() {
        let mut scene = Scene::new("");
        (scene.width, scene.height) = (10.0, 5.0);
        scene.rectangle([2.0, 1.0, 3.0, 2.0], Color([1, 2, 3]), String::new());
        let mut reader = png::Decoder::new(std::io::Cursor::new(scene.png().unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (20, 10));
        let at = |x: usize, y: usize| &pixels[(y * 20 + x) * 3..][..3];
        assert_eq!((at(4, 2), at(9, 5)), (&[1, 2, 3][..], &[1, 2, 3][..]));
        assert_eq!((at(3, 2), at(10, 5), at(4, 6)), (&[255; 3][..], &[255; 3][..], &[255; 3][..]));
    }

    #[test]
    fn a_picture_too_large_is_refused() {
        let mut scene = Scene::new("");
        (scene.width, scene.height) = (1000.0, 1e6);
        assert_eq!(scene.png(), Err(Oversized { width: 1000, height: 1_000_000 }));
    }
}
