//! Decoding, resizing, normalising and augmenting images, with Pillow's and torchvision's results.
//!
//! Weights are trained on what Pillow makes of a file; a resize or a conversion that differs shifts every feature.

mod augment;
mod decode;
mod normalise;
mod resize;
mod thumbnail;
mod training;

#[cfg(test)]
mod tests;

pub use augment::{Operation, RandAugment};
pub use decode::{Error, MAX_PIXELS, MAX_SIDE, Result, decode, open};
pub use normalise::{evaluation, normalise_into};
pub use resize::{Window, resize_bicubic, resize_bicubic_window};
pub use thumbnail::thumbnail;
pub use training::Training;

/// An image of 8-bit red, green and blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    pub width: usize,
    pub height: usize,
    /// [height, width, 3]
    pub pixels: Vec<u8>,
}

impl Rgb {
    /// An image of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Rgb {
        Rgb { width, height, pixels: colour.repeat(width * height) }
    }

    /// The pixel in column `x` of row `y`.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }
}
