//! Small pictures for pages.

use ::image::ExtendedColorType;
use ::image::codecs::jpeg::JpegEncoder;

use super::{Rgb, resize_bicubic};

/// The image as a JPEG whose longer side has at most `longest` pixels. `None` where JPEG can't hold it: an empty image.
pub fn thumbnail(image: &Rgb, longest: usize) -> Option<Vec<u8>> {
    let longer = image.width.max(image.height).max(1);
    let side = |side: usize| (side * longest.min(longer) / longer).max(1);
    let small = resize_bicubic(image, side(image.width), side(image.height));
    let mut bytes = Vec::new();
    let (width, height) = (u32::try_from(small.width).ok()?, u32::try_from(small.height).ok()?);
    JpegEncoder::new_with_quality(&mut bytes, 88).encode(&small.pixels, width, height, ExtendedColorType::Rgb8).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fits_and_is_never_enlarged() {
        for (size, small) in [((400, 100), (40, 10)), ((10, 800), (1, 40)), ((20, 12), (20, 12)), ((1, 1), (1, 1))] {
            let bytes = thumbnail(&Rgb::filled(size.0, size.1, [200, 10, 10]), 40).unwrap();
            let back = super::super::decode(&bytes).unwrap();
            assert_eq!((back.width, back.height), small);
        }
    }
}
