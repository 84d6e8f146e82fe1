//! How fast a fine-tuning step is, on a model of full size with random weights and random data.

use std::time::Instant;

use anyhow::{Result, bail};
use formats::config::Variant;
use serde::Serialize;

use crate::batch::{Images, Matrix, Texts, TrainBatch};
use crate::device::{Device, Precision, cards};
use crate::model::config::Size;
use crate::model::open::{Options, Source, open_trainer};
use crate::model::{Architecture, Start};
use crate::tasks::Task;
use crate::train::config::Config;
use crate::train::open::{heads, settings};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Measure {
    /// Task, image size, optimizer, stochastic depth, device, precision.
    pub config: Config,
    pub size: Size,
    /// Examples in a step.
    pub batch: usize,
    /// Steps that are timed, after two that aren't.
    pub steps: usize,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Training {
    pub task: String,
    pub image_size: usize,
    pub precision: &'static str,
    pub batch: usize,
    pub parameters: usize,
    pub device: String,
    /// The card's name.
    pub card: Option<String>,
    /// The median step.
    pub step_s: f64,
    pub images_per_s: f64,
    /// Of the transformer's matrix products, three forward passes' a step.
    pub tflop_per_s: f64,
    /// Share of what the card's data sheet promises for this precision, where it is known.
    pub share_of_peak: Option<f64>,
    /// The process's largest resident size.
    pub peak_host_memory_gb: Option<f64>,
    /// What the process holds on the card at the end, as nvidia-smi shows it.
    pub card_memory_gb: Option<f64>,
}

/// VQAv2's.
const ANSWERS: usize = 3129;
const CLASSES: usize = 1000;

/// Takes steps on one batch: forward, backward, AdamW.
///
/// # Errors
/// The device isn't there or has too little memory.
pub fn training(measure: &Measure) -> Result<Training> {
    let config = &measure.config;
    let Some(task) = config.task else { bail!("this preset names no task to measure") };
    let image_size = config.image_size.unwrap_or(224);
    let mut architecture = Architecture::sized(measure.size, Variant::Ufo, image_size);
    if let Some(text_len) = config.text_len {
        architecture.text_len = text_len;
    }
    architecture.check()?;
    let labels = match task {
        Task::Irtr => 0,
        Task::Vqa => ANSWERS,
        Task::Nlvr2 => 2,
        Task::ImgCls => CLASSES,
    };
    let options = Options { device: config.device, precision: config.precision, ..Options::default() };
    let source = Source::New(architecture, Start::default());
    let (mut trainer, opened) = open_trainer(&source, heads(task, labels), settings(config), &options)?;
    let a = &opened.architecture;
    let batch = random(task, measure.batch, a);
    let mut seconds = Vec::new();
    for step in 0..measure.steps.max(1) + 2 {
        let start = Instant::now();
        // Reading the loss and the norm waits for the device.
        trainer.accumulate(&batch, 1.0, step as u64)?;
        trainer.update(1e-5, (config.clip > 0.0).then_some(config.clip))?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut seconds = seconds.split_off(2);
    seconds.sort_by(f64::total_cmp);
    let step_s = seconds[seconds.len() / 2];
    let card = match opened.device {
        Device::Cuda(index) => cards().ok().and_then(|cards| cards.into_iter().nth(index)).map(|card| card.name),
        Device::Cpu => None,
    };
    let tflop_per_s = 3.0 * measure.batch as f64 * forward_flops(task, a) / step_s / 1e12;
    let peak = card.as_deref().and_then(|name| peak_tflops(name, config.precision));
    Ok(Training {
        task: task.to_string(),
        image_size,
        precision: match config.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        },
        batch: measure.batch,
        parameters: trainer.parameters(),
        device: opened.device.to_string(),
        card,
        step_s,
        images_per_s: images(task) * measure.batch as f64 / step_s,
        tflop_per_s,
        share_of_peak: peak.map(|peak| tflop_per_s / peak),
        peak_host_memory_gb: peak_host_memory(),
        card_memory_gb: matches!(opened.device, Device::Cuda(_)).then(card_memory).flatten(),
    })
}

/// Images of one example.
fn images(task: Task) -> f64 {
    if task == Task::Nlvr2 { 2.0 } else { 1.0 }
}

fn forward_flops(task: Task, a: &Architecture) -> f64 {
    let (image, text) = (a.image_tokens(), a.text_len);
    let joint = a.flops(image, a.vl_start) + a.flops(text, a.vl_start) + a.flops(image + text, a.layers - a.vl_start);
    match task {
        Task::Irtr => a.flops(image, a.layers) + a.flops(text, a.layers),
        Task::Vqa => joint,
        Task::Nlvr2 => 2.0 * joint,
        Task::ImgCls => a.flops(image, a.layers),
    }
}

fn random(task: Task, count: usize, a: &Architecture) -> TrainBatch {
    let pictures = |shift: usize| {
        let pixels =
            (0..count * 3 * a.image_size * a.image_size).map(|i| ((i * 31 + shift) % 511) as f32 / 255.5 - 1.0);
        Images { count, size: a.image_size, pixels: pixels.collect() }
    };
    let words = 14.min(a.text_len);
    let texts = Texts {
        count,
        len: a.text_len,
        ids: (0..count * a.text_len).map(|i| ((i * 97) % (a.vocab_size - 1)) as i32 + 1).collect(),
        mask: (0..count * a.text_len).map(|i| u8::from(i % a.text_len < words)).collect(),
    };
    match task {
        Task::Irtr => TrainBatch::Irtr { texts, images: pictures(0) },
        Task::Vqa => {
            let values = (0..count * ANSWERS).map(|i| f32::from(i % ANSWERS == (i / ANSWERS * 7) % ANSWERS)).collect();
            TrainBatch::Vqa { texts, images: pictures(0), targets: Matrix { rows: count, columns: ANSWERS, values } }
        }
        Task::Nlvr2 => {
            let labels = (0..count as i32).map(|i| i % 2).collect();
            TrainBatch::Nlvr2 { texts, left: pictures(0), right: pictures(100), labels }
        }
        Task::ImgCls => {
            TrainBatch::ImgCls { images: pictures(0), labels: (0..count as i32).map(|i| i % CLASSES as i32).collect() }
        }
    }
}

/// Dense matrix products in TFLOP/s, from NVIDIA's data sheets; f32 as TF32 on tensor cores isn't what burn computes,
/// so its peak is that of plain f32.
fn peak_tflops(card: &str, precision: Precision) -> Option<f64> {
    let (bf16, f32) = match card {
        name if name.contains("H200") || name.contains("H100 80GB HBM3") || name.contains("H100 SXM") => (989.0, 67.0),
        name if name.contains("H100") => (756.0, 51.0),
        name if name.contains("A100") => (312.0, 19.5),
        name if name.contains("L40S") => (362.0, 91.6),
        name if name.contains("RTX 4090") => (165.2, 82.6),
        _ => return None,
    };
    Some(match precision {
        Precision::F32 => f32,
        Precision::Bf16 => bf16,
    })
}

fn peak_host_memory() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e9)
}

fn card_memory() -> Option<f64> {
    let query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"];
    let output = std::process::Command::new("nvidia-smi").args(query).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let own = std::process::id().to_string();
    let mib = text.lines().find_map(|line| {
        let (pid, mib) = line.split_once(',')?;
        (pid.trim() == own).then(|| mib.trim().parse::<f64>().ok()).flatten()
    })?;
    Some(mib * 1024.0 * 1024.0 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flops_of_base_are_the_usual_ones() {
        // ViT-B/16 at 224 pixels: 17.5 GMAC an image with its patch embedding and head, which aren't counted here.
        let a = Architecture::sized(Size::Base, Variant::Ufo, 224);
        let gflop = forward_flops(Task::ImgCls, &a) / 1e9;
        assert!((34.0..36.0).contains(&gflop), "{gflop}");
        assert_eq!(forward_flops(Task::Nlvr2, &a), 2.0 * forward_flops(Task::Vqa, &a));
    }
}
