//! Whether a device computes what it should, and how fast: golden values of the Python code, bf16 against them, and
//! throughput of a model of full size.

use std::time::Instant;

use anyhow::{Context, Result};
use formats::config::Variant;
use formats::write::TemporaryFolder;
use serde::Serialize;

use crate::batch::{Images, Texts};
use crate::device::{Choice, Precision};
use crate::model::config::Size;
use crate::model::open::{Options, Source, open_runner, open_runner_from, read_probe_batch};
use crate::model::{Architecture, Heads, Start, Want};

/// How far a forward pass may be from the golden values, relative to a tensor's largest element: ten times what is
/// measured on CPUs.
pub const TOLERANCE_F32: f64 = 1e-5;
/// As [`TOLERANCE_F32`], with matrix products in bf16, where the error is the factors' rounding and hardly varies: twice
/// what is measured.
pub const TOLERANCE_BF16: f64 = 2e-2;

/// One architecture in one precision against golden values.
#[derive(Clone, Debug, Serialize)]
pub struct Parity {
    pub variant: String,
    pub precision: &'static str,
    pub tensors: usize,
    /// The tensor that is farthest off, and by how much, relative to its largest element.
    pub worst_tensor: String,
    pub worst: f64,
    pub tolerance: f64,
    pub passed: bool,
}

/// One measurement of speed.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    /// `image encoder` or `joint forward`.
    pub pass: &'static str,
    pub precision: &'static str,
    pub image_size: usize,
    pub batch: usize,
    /// Batches that were timed, after one that wasn't.
    pub batches: usize,
    pub seconds_per_batch: f64,
    pub images_per_second: f64,
    /// Of the transformer's matrix products.
    pub tflops: f64,
}

struct Golden {
    variant: &'static str,
    model: &'static [u8],
    heads: &'static [u8],
    expected: &'static [u8],
}

macro_rules! golden {
    ($variant:literal) => {
        Golden {
            variant: $variant,
            model: include_bytes!(concat!("../../fixtures/golden/model_", $variant, ".safetensors")),
            heads: include_bytes!(concat!("../../fixtures/golden/heads_", $variant, ".safetensors")),
            expected: include_bytes!(concat!("../../fixtures/golden/expect_forward_", $variant, ".safetensors")),
        }
    };
}

/// One set of weights, norms of their own (all tokens attend to all), and experts everywhere.
const GOLDEN: [Golden; 3] = [golden!("ufo"), golden!("ln_moe"), golden!("all_moe")];
const BATCH: &[u8] = include_bytes!("../../fixtures/golden/batch.safetensors");
/// The images' size that the golden values were made with.
const GOLDEN_IMAGE_SIZE: usize = 48;

/// Runs the golden batch on a device and compares.
///
/// # Errors
/// The device isn't there, or no temporary folder can be written.
pub fn parity(device: Choice, precision: Precision) -> Result<Vec<Parity>> {
    let folder = TemporaryFolder::create().context("a temporary folder for the golden values")?;
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        anyhow::Ok(path)
    };
    let batch = read_probe_batch(&put("batch.safetensors", BATCH)?)?;
    let (name, tolerance) = match precision {
        Precision::F32 => ("f32", TOLERANCE_F32),
        Precision::Bf16 => ("bf16", TOLERANCE_BF16),
    };
    let mut results = Vec::new();
    for golden in &GOLDEN {
        let model = put("model.safetensors", golden.model)?;
        let heads = put("heads.safetensors", golden.heads)?;
        let expected = formats::open(put("expected.safetensors", golden.expected)?)?;
        let options = Options {
            device,
            precision,
            image_size: Some(GOLDEN_IMAGE_SIZE),
            heads_file: Some(heads),
            ..Options::default()
        };
        let found = open_runner(&model, &options)?.0.probe(&batch)?;
        let mut parity = Parity {
            variant: golden.variant.into(),
            precision: name,
            tensors: 0,
            worst_tensor: String::new(),
            worst: 0.0,
            tolerance,
            passed: true,
        };
        for (at, info) in expected.tensors().iter().enumerate().filter(|(_, info)| compared(&info.name)) {
            let mut wanted = Vec::new();
            expected.read_f32(at, 0..info.elements(), &mut wanted)?;
            let found = found.iter().find(|tensor| tensor.name == info.name);
            let off = difference(&wanted, found.map_or(&[], |tensor| &tensor.values));
            parity.tensors += 1;
            if off > parity.worst {
                (parity.worst, parity.worst_tensor) = (off, info.name.clone());
            }
        }
        parity.passed = parity.worst <= tolerance && parity.tensors > 0;
        results.push(parity);
    }
    Ok(results)
}

/// NLVR2 has token types of its own, and VQA's targets aren't in the batch's file: the test suite compares these.
fn compared(name: &str) -> bool {
    !name.ends_with("nlvr2") && name != "loss.vqa"
}

/// The largest difference, relative to the largest element expected. Infinite where it says nothing: for values that
/// aren't finite, are missing or are too many.
fn difference(wanted: &[f32], found: &[f32]) -> f64 {
    let finite = wanted.iter().chain(found).all(|value| value.is_finite());
    if !finite || wanted.is_empty() || wanted.len() != found.len() {
        return f64::INFINITY;
    }
    let largest = wanted.iter().fold(0f32, |most, value| most.max(value.abs()));
    let most = wanted.iter().zip(found).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    f64::from(most) / f64::from(largest.max(f32::MIN_POSITIVE))
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Measure {
    pub device: Choice,
    pub precision: Precision,
    pub size: Size,
    pub image_size: usize,
    pub batch: usize,
    /// Goes on for at least so long, and at least three batches.
    pub seconds: f64,
}

/// Speed of the image encoder and of the joint forward pass of a model with random weights.
///
/// # Errors
/// The device isn't there or has too little memory.
pub fn throughput(measure: &Measure) -> Result<Vec<Throughput>> {
    let architecture = Architecture::sized(measure.size, Variant::Ufo, measure.image_size);
    architecture.check()?;
    let heads = Heads { irtr: Want::Make(0), vqa: Want::Make(2), ..Heads::default() };
    let options = Options { device: measure.device, precision: measure.precision, ..Options::default() };
    let (runner, opened) = open_runner_from(&Source::New(architecture, Start::default()), heads, &options)?;
    let a = opened.architecture;
    let (count, size, len) = (measure.batch, measure.image_size, a.text_len);
    let pixels = (0..count * 3 * size * size).map(|i| ((i % 511) as f32 - 255.0) / 255.0).collect();
    let images = Images { count, size, pixels };
    let ids = (0..count * len).map(|i| 1000 + (i % 1000) as i32).collect();
    let texts = Texts { count, len, ids, mask: vec![1; count * len] };
    let below = a.vl_start;
    let joint =
        a.flops(a.image_tokens(), below) + a.flops(len, below) + a.flops(a.image_tokens() + len, a.layers - below);
    let precision = match measure.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    type Run<'a> = &'a dyn Fn() -> Result<()>;
    let passes: [(&'static str, f64, Run); 2] = [
        ("image encoder", a.flops(a.image_tokens(), a.layers), &|| runner.embed_images(&images).map(drop)),
        ("joint forward", joint, &|| runner.vqa_logits(&texts, &images).map(drop)),
    ];
    let mut results = Vec::new();
    for (pass, flops, run) in passes {
        // The first batches compile kernels, tune them and fill caches.
        run()?;
        run()?;
        let start = Instant::now();
        let mut batches = 0;
        while batches < 3 || start.elapsed().as_secs_f64() < measure.seconds {
            run()?;
            batches += 1;
        }
        let seconds = start.elapsed().as_secs_f64() / batches as f64;
        results.push(Throughput {
            pass,
            precision,
            image_size: size,
            batch: count,
            batches,
            seconds_per_batch: seconds,
            images_per_second: count as f64 / seconds,
            tflops: flops * count as f64 / seconds / 1e12,
        });
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_missing_and_surplus_values_never_pass() {
        assert_eq!(difference(&[1.0, -4.0], &[1.0, -3.0]), 0.25);
        for found in [&[f32::NAN, 2.0][..], &[1.0], &[1.0, 2.0, 3.0], &[], &[f32::INFINITY, 2.0]] {
            assert_eq!(difference(&[1.0, 2.0], found), f64::INFINITY, "{found:?}");
        }
        assert_eq!(difference(&[f32::NAN], &[f32::NAN]), f64::INFINITY);
    }

    #[test]
    fn the_cpu_passes() {
        for parity in parity(Choice::Cpu, Precision::F32).unwrap() {
            let golden = GOLDEN.iter().find(|golden| golden.variant == parity.variant).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("expected.safetensors");
            std::fs::write(&path, golden.expected).unwrap();
            let expected = formats::open(path).unwrap();
            let count = expected.tensors().iter().filter(|info| compared(&info.name)).count();
            assert!(parity.passed && parity.tensors == count && count > 10, "{parity:?}");
        }
    }
}
