//! Against Pillow and OpenCV: `fixtures/images/make.py` wrote what they make of the files there.

use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::Value;

use super::*;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/images")).join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

static EXPECTED: LazyLock<Value> = LazyLock::new(|| serde_json::from_slice(&bytes("expected.json")).unwrap());

/// Width, height, FNV-1a of the bytes, the pixels at the quarters of the diagonal.
fn digest(image: &Rgb) -> Value {
    let hash = image
        .pixels
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let samples: Vec<[u8; 3]> = (0..4).map(|q| image.pixel(image.width * q / 4, image.height * q / 4)).collect();
    serde_json::json!([image.width, image.height, format!("{hash:016x}"), samples])
}

fn largest_difference(a: &Rgb, b: &Rgb) -> u8 {
    assert_eq!((a.width, a.height), (b.width, b.height));
    a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

fn rows(key: &str) -> &'static [Value] {
    EXPECTED[key].as_array().unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

#[test]
fn decodes_as_pillow() {
    let files = EXPECTED["decode"].as_object().unwrap();
    assert!(files.len() >= 37);
    let mut wrong = Vec::new();
    for (name, expected) in files {
        let image = decode(&bytes(name)).unwrap();
        let tolerance = number(&expected["tolerance"]);
        if tolerance == 0 {
            if digest(&image) != expected["digest"] {
                wrong.push(format!("{name}: {} is {}", digest(&image), expected["digest"]));
            }
            continue;
        }
        let pillow = open(fixture(&format!("{name}.rgb.png"))).unwrap();
        assert_eq!(digest(&pillow), expected["digest"], "{name}");
        let difference = usize::from(largest_difference(&image, &pillow));
        if difference > tolerance {
            wrong.push(format!("{name}: off by {difference}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Data sets are decoded as the Python code decodes them, photographs that a user brings along as a viewer shows them.
#[test]
fn orientation_marks_turn_files_and_no_data() {
    let data = decode(&bytes("turned.jpg")).unwrap();
    let photo = open(fixture("turned.jpg")).unwrap();
    assert_eq!((photo.width, photo.height), (data.height, data.width));
    // Its mark is 6: to be turned by 90° clockwise, so that its first row becomes the last column.
    for x in 0..data.width {
        assert_eq!(photo.pixel(photo.width - 1, x), data.pixel(x, 0));
    }
    // A damaged mark is no reason to refuse the picture.
    let mut damaged = bytes("turned.jpg");
    let exif = damaged.windows(4).position(|four| four == b"Exif").unwrap();
    damaged[exif + 6..exif + 10].copy_from_slice(b"????");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.jpg");
    std::fs::write(&path, damaged).unwrap();
    assert_eq!(open(&path).unwrap(), data);
}

#[test]
fn resizes_as_pillow() {
    assert!(rows("resize").len() >= 37);
    for row in rows("resize") {
        let image = open(fixture(row[0].as_str().unwrap())).unwrap();
        let window = match &row[1] {
            Value::Null => Window::whole(&image),
            w => Window { x: number(&w[0]), y: number(&w[1]), width: number(&w[2]), height: number(&w[3]) },
        };
        let resized = resize_bicubic_window(&image, window, number(&row[2]), number(&row[3]));
        assert_eq!(digest(&resized), row[4], "{row}");
    }
}

#[test]
fn augments_as_pillow_and_opencv() {
    assert!(rows("operation").len() >= 360);
    let mut wrong = Vec::new();
    for row in rows("operation") {
        let image = open(fixture(row[0].as_str().unwrap())).unwrap();
        let name = row[1].as_str().unwrap();
        let operation = Operation::ALL.into_iter().find(|operation| format!("{operation:?}") == name).unwrap();
        let result = operation.apply(image, row[2].as_f64().unwrap(), row[3].as_bool().unwrap());
        if digest(&result) != row[4] {
            wrong.push(format!("{row}: {}", digest(&result)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn normalises_as_torch() {
    let expected: Vec<f32> = rows("normalise").iter().map(|value| value.as_f64().unwrap() as f32).collect();
    let image = Rgb { width: 256, height: 1, pixels: (0..=255).flat_map(|v| [v; 3]).collect() };
    let mut out = vec![0.0; 3 * 256];
    normalise_into(&image, &mut out);
    for channel in out.chunks_exact(256) {
        assert_eq!(channel, expected);
    }
}

#[test]
fn windows_beyond_the_image_are_cut() {
    let image = Rgb::filled(4, 4, [9, 8, 7]);
    let window = Window { x: 3, y: 3, width: 10, height: 10 };
    assert_eq!(resize_bicubic_window(&image, window, 2, 2), Rgb::filled(2, 2, [9, 8, 7]));
    let outside = Window { x: 4, y: 9, width: 1, height: 1 };
    assert_eq!(resize_bicubic_window(&image, outside, 2, 2), Rgb::filled(2, 2, [0; 3]));
    assert!(resize_bicubic(&image, 0, 5).pixels.is_empty());
}

#[test]
fn every_truncation_is_an_error() {
    let files =
        ["turned.jpg", "progressive.jpg", "palette.png", "still.gif", "grey.bmp", "lossless.webp", "lossy.webp"];
    for name in files {
        let whole = bytes(name);
        let whole_image = decode(&whole).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            match decode(&whole[..cut]) {
                Ok(image) => {
                    assert!(
                        image == whole_image && cut * 10 > whole.len() * 9,
                        "{name} cut to {cut} of {}",
                        whole.len()
                    )
                }
                Err(error) => assert!(!error.to_string().contains('\n'), "{name}: {error}"),
            }
        }
    }
}

#[test]
fn damage_never_panics() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let files = ["turned.jpg", "progressive.jpg", "cmyk.jpg", "palette.png", "moving.gif", "grey.bmp", "lossy.webp"];
    for name in files {
        let whole = bytes(name);
        for _ in 0..60 {
            let mut damaged = whole.clone();
            for _ in 0..rng.random_range(1..6) {
                // Headers are where sizes lie.
                let end = if rng.random() { damaged.len() } else { damaged.len().min(64) };
                let at = rng.random_range(0..end);
                damaged[at] = rng.random();
            }
            if let Ok(image) = decode(&damaged) {
                assert_eq!(image.pixels.len(), image.width * image.height * 3, "{name}");
            }
        }
    }
}

#[test]
fn what_is_no_image_is_said() {
    assert!(matches!(decode(b""), Err(Error::Empty)));
    assert!(matches!(decode(b"hello, world"), Err(Error::Unknown)));
    assert!(matches!(decode(b"%PDF-1.7 and so on"), Err(Error::Unknown)));
    let missing = open(fixture("missing.png")).unwrap_err().to_string();
    assert!(missing.contains("missing.png: cannot read"), "{missing}");
    let not = open(fixture("make.py")).unwrap_err().to_string();
    assert!(not.ends_with("make.py: not a JPEG, PNG, WebP, GIF or BMP image"), "{not}");
    let folder = open(fixture("")).unwrap_err().to_string();
    assert!(folder.contains("cannot read"), "{folder}");
    let cut = decode(&bytes("plain.jpg")[..4000]).unwrap_err().to_string();
    assert_eq!(cut, "broken JPEG image: cut short: no end-of-image mark");
}

#[test]
fn claimed_sizes_are_bounded() {
    // 60,000 × 60,000 pixels in the header of a small file.
    let mut bmp = bytes("plain.bmp");
    bmp[18..22].copy_from_slice(&60_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000u32.to_le_bytes());
    assert!(matches!(decode(&bmp), Err(Error::TooLarge { width: 60_000, height: 60_000 })));
    let strip = decode(&bytes("too_wide.png")).unwrap_err().to_string();
    assert!(strip.starts_with("2000000×1 pixels; at most 178956970 are read, 1048576 along a side"), "{strip}");
    // GIF: the logical screen.
    let mut gif = bytes("still.gif");
    gif[6..10].copy_from_slice(&[0xff; 4]);
    assert!(matches!(decode(&gif), Err(Error::TooLarge { width: 65_535, height: 65_535 })));
    gif[6..10].fill(0);
    assert_eq!(decode(&gif).unwrap_err().to_string(), "broken GIF image: no pixels");
    // JPEG: height and width in the start of frame.
    let mut jpeg = bytes("plain.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0, 0xff, 0]);
    assert!(matches!(decode(&jpeg), Err(Error::TooLarge { width: 65_280, height: 65_280 })));
}

#[test]
fn a_thumbnail_in_the_header_is_not_the_end() {
    let mut jpeg = bytes("plain.jpg");
    // An application segment that holds an end-of-image mark, then the image cut short.
    let segment = [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9];
    jpeg.splice(2..2, segment);
    assert!(decode(&jpeg).is_ok());
    jpeg.truncate(jpeg.len() - 2);
    assert!(matches!(decode(&jpeg), Err(Error::Broken { .. })));
}
