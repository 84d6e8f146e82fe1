//! From a file's bytes to [`Rgb`], as Pillow's `Image.open(…).convert("RGB")` does it.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::error::ImageError;
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::Rgb;

/// More pixels than this are refused, as Pillow does (twice its `MAX_IMAGE_PIXELS`): a file of a few bytes may claim
/// any size.
pub const MAX_PIXELS: u64 = 2 * 89_478_485;

/// Nor a side longer than this: resizing needs room in proportion to it.
pub const MAX_SIDE: u32 = 1 << 20;

/// A file longer than this is no image: uncompressed, [`MAX_PIXELS`] fit in it.
const MAX_FILE: u64 = 1 << 30;

/// What a decoder may allocate beside the pixels (and, for 16-bit images, for them).
const MAX_ALLOCATION: u64 = 1 << 30;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] formats::Error),
    /// What is wrong with the file at `path`.
    #[error("{}: {error}", formats::show_path(path))]
    File { path: PathBuf, error: Box<Error> },
    #[error("no image: empty")]
    Empty,
    #[error("not a JPEG, PNG, WebP, GIF or BMP image")]
    Unknown,
    #[error("{width}×{height} pixels; at most {MAX_PIXELS} are read, {MAX_SIDE} along a side; make the image smaller")]
    TooLarge { width: u32, height: u32 },
    #[error("longer than {} MiB; make the image smaller", MAX_FILE >> 20)]
    TooLong,
    #[error("the image needs more memory than {} MiB; make it smaller", MAX_ALLOCATION >> 20)]
    TooMuchMemory,
    #[error("broken {format} image: {}", formats::show_name(reason))]
    Broken { format: &'static str, reason: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The image in a file, or on standard input for `-`, as its viewer shows it: as [`decode`], with the camera's orientation
/// mark (EXIF) applied. For photographs that a user brings along; data sets go through [`decode`], as models are trained
/// on them without it.
pub fn open(path: impl AsRef<Path>) -> Result<Rgb> {
    let path = path.as_ref();
    let bytes = formats::standard::read_bytes(path, MAX_FILE + 1)?;
    let image = if bytes.len() as u64 > MAX_FILE { Err(Error::TooLong) } else { decode_as(&bytes, true) };
    image.map_err(|error| Error::File { path: path.into(), error: Box::new(error) })
}

/// The image in a file's bytes: JPEG, PNG, WebP, GIF or BMP, told apart by content.
///
/// As Pillow does: transparency is dropped, not blended; of an animation it's the first frame; a camera's orientation
/// mark is not applied; of 16 bits a sample the upper 8 are kept, save in grey images without transparency, whose
/// values are cut off at 255; CMYK is naïve, (1 − c)(1 − k), without colour profiles. PNG, WebP, GIF and BMP give Pillow's
/// bytes; JPEG differs by a rounding here and there, and by more where halved colour meets the right and lower edges.
///
/// # Errors
/// [`Error`] when the bytes are no such image, broken, cut short, or too large ([`MAX_PIXELS`], [`MAX_SIDE`]). As in Pillow, damage
/// that leaves a JPEG's structure whole isn't seen.
pub fn decode(bytes: &[u8]) -> Result<Rgb> {
    decode_as(bytes, false)
}

/// As [`decode`]; `upright` applies the orientation mark.
fn decode_as(bytes: &[u8], upright: bool) -> Result<Rgb> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    let format = image::guess_format(bytes).map_err(|_| Error::Unknown)?;
    let name = match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        _ => return Err(Error::Unknown),
    };
    // The decoder paints what is missing grey.
    if format == ImageFormat::Jpeg && !has_end(bytes) {
        return Err(Error::Broken { format: name, reason: "cut short: no end-of-image mark".into() });
    }
    pixels(bytes, format, upright).map_err(|failure| match failure {
        Failure::TooLarge { width, height } => Error::TooLarge { width, height },
        Failure::NoPixels => Error::Broken { format: name, reason: "no pixels".into() },
        Failure::Decoder(ImageError::Limits(_)) => Error::TooMuchMemory,
        Failure::Decoder(ImageError::Decoding(error)) => {
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            // The decoder's own words for that are Rust's.
            let reason = if reason.contains("CRC") { "a checksum is wrong".into() } else { reason };
            Error::Broken { format: name, reason }
        }
        Failure::Decoder(ImageError::IoError(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::Broken { format: name, reason: "cut short".into() }
        }
        Failure::Decoder(error) => Error::Broken { format: name, reason: error.to_string() },
    })
}

enum Failure {
    TooLarge { width: u32, height: u32 },
    NoPixels,
    Decoder(ImageError),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Failure {
        Failure::Decoder(error)
    }
}

fn pixels(bytes: &[u8], format: ImageFormat, upright: bool) -> Result<Rgb, Failure> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_ALLOCATION);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    let count = u64::from(width) * u64::from(height);
    if count > MAX_PIXELS || width.max(height) > MAX_SIDE {
        return Err(Failure::TooLarge { width, height });
    }
    if count == 0 {
        return Err(Failure::NoPixels);
    }
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    // A damaged mark says nothing, and is no reason to refuse the pixels.
    let orientation = match upright {
        true => decoder.orientation().unwrap_or(Orientation::NoTransforms),
        false => Orientation::NoTransforms,
    };
    let colour = decoder.color_type();
    let mut samples = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut samples)?;
    let pixels = match colour {
        ColorType::Rgb8 => samples,
        ColorType::Rgba8 => {
            keep_three_of_four(&mut samples);
            samples
        }
        ColorType::L8 => samples.iter().flat_map(|&v| [v; 3]).collect(),
        ColorType::La8 => samples.chunks_exact(2).flat_map(|v| [v[0]; 3]).collect(),
        // Pillow holds grey of 16 bits as integers, and cuts them off on the way to 8.
        ColorType::L16 => sixteen(&samples, 1).flat_map(|v| [v[0].min(255) as u8; 3]).collect(),
        ColorType::La16 => sixteen(&samples, 2).flat_map(|v| [(v[0] >> 8) as u8; 3]).collect(),
        ColorType::Rgb16 => sixteen(&samples, 3).flat_map(|v| [v[0], v[1], v[2]].map(|v| (v >> 8) as u8)).collect(),
        ColorType::Rgba16 => sixteen(&samples, 4).flat_map(|v| [v[0], v[1], v[2]].map(|v| (v >> 8) as u8)).collect(),
        other => {
            let reason = std::io::Error::other(format!("samples of type {other:?} are not supported"));
            return Err(Failure::Decoder(ImageError::IoError(reason)));
        }
    };
    Ok(turned(Rgb { width: width as usize, height: height as usize, pixels }, orientation))
}

/// An image, turned and mirrored as its orientation mark says.
fn turned(image: Rgb, orientation: Orientation) -> Rgb {
    let (w, h) = (image.width, image.height);
    // Where the pixel in column x of row y of the result comes from.
    type From = fn(usize, usize, usize, usize) -> (usize, usize);
    let (from, swaps): (From, bool) = match orientation {
        Orientation::NoTransforms => return image,
        Orientation::FlipHorizontal => (|x, y, w, _| (w - 1 - x, y), false),
        Orientation::Rotate180 => (|x, y, w, h| (w - 1 - x, h - 1 - y), false),
        Orientation::FlipVertical => (|x, y, _, h| (x, h - 1 - y), false),
        Orientation::Rotate90FlipH => (|x, y, _, _| (y, x), true),
        Orientation::Rotate90 => (|x, y, _, h| (y, h - 1 - x), true),
        Orientation::Rotate270FlipH => (|x, y, w, h| (w - 1 - y, h - 1 - x), true),
        Orientation::Rotate270 => (|x, y, w, _| (w - 1 - y, x), true),
    };
    let (width, height) = if swaps { (h, w) } else { (w, h) };
    let mut pixels = Vec::with_capacity(image.pixels.len());
    for y in 0..height {
        for x in 0..width {
            let (x, y) = from(x, y, w, h);
            pixels.extend(image.pixel(x, y));
        }
    }
    Rgb { width, height, pixels }
}

/// Pixels of `channels` 16-bit samples in the machine's byte order.
fn sixteen(samples: &[u8], channels: usize) -> impl Iterator<Item = [u16; 4]> {
    samples.chunks_exact(2 * channels).map(|pixel| {
        let mut values = [0; 4];
        for (value, bytes) in values.iter_mut().zip(pixel.chunks_exact(2)) {
            *value = u16::from_ne_bytes([bytes[0], bytes[1]]);
        }
        values
    })
}

/// Red, green, blue, alpha to red, green, blue, in place: a large image isn't held twice.
fn keep_three_of_four(samples: &mut Vec<u8>) {
    let count = samples.len() / 4;
    for pixel in 1..count {
        samples.copy_within(4 * pixel..4 * pixel + 3, 3 * pixel);
    }
    samples.truncate(3 * count);
}

/// Whether a JPEG goes on to its end-of-image mark (ITU T.81, annex B: a chain of segments, each with its length, and
/// entropy-coded data after a start of scan, in which a mark is told from data by the byte after 0xFF).
fn has_end(bytes: &[u8]) -> bool {
    const SOI: u8 = 0xd8;
    const EOI: u8 = 0xd9;
    const SOS: u8 = 0xda;
    let mut rest = bytes;
    loop {
        let Some(at) = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff)) else {
            return false;
        };
        let mark = rest[at + 1];
        rest = &rest[at + 2..];
        match mark {
            EOI => return true,
            // No length: start of image, restarts, and the reserved 0x01.
            SOI | 0xd0..=0xd7 | 0x01 => {}
            _ => {
                let [high, low, ..] = *rest else { return false };
                let length = usize::from(u16::from_be_bytes([high, low]));
                let Some(after) = rest.get(length..) else { return false };
                rest = after;
                if mark == SOS && rest.is_empty() {
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_orientation_is_turned_as_the_image_crate_turns_it() {
        let pixels: Vec<u8> = (0..2 * 3 * 3).collect();
        for mark in 1..=8 {
            let orientation = Orientation::from_exif(mark).expect("a mark");
            let ours = turned(Rgb { width: 2, height: 3, pixels: pixels.clone() }, orientation);
            let theirs = image::RgbImage::from_raw(2, 3, pixels.clone()).expect("an image");
            let mut theirs = image::DynamicImage::from(theirs);
            theirs.apply_orientation(orientation);
            let (width, height) = (theirs.width() as usize, theirs.height() as usize);
            assert_eq!(ours, Rgb { width, height, pixels: theirs.into_rgb8().into_raw() }, "{mark}");
        }
    }
}
