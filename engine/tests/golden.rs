//! The model against the values of the Python code; `VLMERGE_GOLDEN` names another set of the same shape.

use std::path::PathBuf;

use engine::batch::Matrix;
use engine::batch::TrainBatch;
use engine::device::{Choice, Precision};
use engine::grams::Grams;
use engine::model::open::Source;
use engine::model::open::{Inspector, Options, open_runner, open_trainer, read_probe_batch};
use engine::model::probe::ProbeBatch;
use engine::model::training::{Optimizer, Settings};
use engine::model::{Heads, Want};
use formats::layout::Layout;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    let folder = std::env::var_os("VLMERGE_GOLDEN").map(PathBuf::from);
    folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/golden")).join(name)
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap()
}

fn size(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap_or_else(|| panic!("config.json: {key}")) as usize
}

/// The batch with the targets that stand in config.json.
fn batch() -> ProbeBatch {
    let config = json("config.json");
    let mut batch = read_probe_batch(&golden("batch.safetensors")).unwrap();
    let (labels, scores) = (&config["batch"]["vqa_labels"], &config["batch"]["vqa_scores"]);
    let rows = labels.as_array().unwrap().len();
    let columns = size(&config, "vqa_labels");
    let mut values = vec![0f32; rows * columns];
    for row in 0..rows {
        for (label, score) in labels[row].as_array().unwrap().iter().zip(scores[row].as_array().unwrap()) {
            values[row * columns + label.as_u64().unwrap() as usize] = score.as_f64().unwrap() as f32;
        }
    }
    batch.vqa_targets = Some(Matrix { rows, columns, values });
    let answers = config["batch"]["nlvr2_answers"].as_array().unwrap();
    batch.nlvr2_labels = Some(answers.iter().map(|answer| answer.as_i64().unwrap() as i32).collect());
    batch
}

fn open(variant: &str, task: Option<&str>, precision: Precision) -> Box<dyn Inspector> {
    let config = json("config.json");
    let options = Options {
        device: Choice::Cpu,
        precision,
        image_size: Some(size(&config, "image_size")),
        heads_file: Some(golden(&format!("heads_{variant}.safetensors"))),
        heads_task: task.map(str::to_owned),
        ..Options::default()
    };
    let (runner, opened) = open_runner(&golden(&format!("model_{variant}.safetensors")), &options).unwrap();
    let a = &opened.architecture;
    assert_eq!(a.variant().map(|v| v.to_string()).as_deref(), Some(variant));
    assert_eq!(
        (a.vl_start, a.heads, a.image_size),
        (size(&config, "vl_start"), size(&config, "num_heads"), size(&config, "image_size"))
    );
    assert_eq!(opened.load.initialised, [""; 0], "everything is in the files");
    assert_eq!(opened.load.unexpected, [""; 0], "everything in the files is used");
    runner
}

/// The largest difference of each expected tensor, relative to its largest element.
fn differences(variant: &str, precision: Precision) -> Vec<(String, f64)> {
    // NLVR2 has token types of its own.
    let all = open(variant, None, precision).probe(&batch()).unwrap();
    let nlvr2 = open(variant, Some("nlvr2"), precision).probe(&batch()).unwrap();
    let expected = formats::open(golden(&format!("expect_forward_{variant}.safetensors"))).unwrap();
    let mut differences = Vec::new();
    for (at, info) in expected.tensors().iter().enumerate() {
        let mut wanted = Vec::new();
        expected.read_f32(at, 0..info.elements(), &mut wanted).unwrap();
        let found = if info.name.ends_with("nlvr2") { &nlvr2 } else { &all };
        let tensor = found.iter().find(|tensor| tensor.name == info.name);
        let tensor = tensor.unwrap_or_else(|| panic!("{variant}: no {}", info.name));
        assert_eq!(tensor.shape, info.shape, "{variant}: {}", info.name);
        let largest = wanted.iter().fold(0f32, |most, value| most.max(value.abs()));
        let pairs = wanted.iter().zip(&tensor.values);
        let difference = pairs.fold(0f32, |most, (a, b)| if b.is_nan() { f32::NAN } else { most.max((a - b).abs()) });
        differences.push((info.name.clone(), f64::from(difference / largest)));
    }
    assert!(differences.len() >= 20, "{variant}: the expected file has all forwards");
    differences
}

#[test]
fn forwards_in_f32() {
    for variant in ["ufo", "ln_moe", "attn_moe", "ffn_moe", "all_moe"] {
        let beyond: Vec<_> =
            differences(variant, Precision::F32).into_iter().filter(|(_, d)| d.is_nan() || *d > 2e-4).collect();
        assert!(beyond.is_empty(), "{variant}: {beyond:?}");
    }
}

#[test]
fn forwards_in_bf16() {
    for variant in ["ufo", "ln_moe", "attn_moe", "ffn_moe", "all_moe"] {
        let beyond: Vec<_> =
            differences(variant, Precision::Bf16).into_iter().filter(|(_, d)| d.is_nan() || *d > 2e-2).collect();
        assert!(beyond.is_empty(), "{variant}: {beyond:?}");
    }
}

#[test]
fn grams_of_one_batch() {
    let options = Options { device: Choice::Cpu, ..Options::default() };
    let (runner, _) = open_runner(&golden("ms.ckpt"), &options).unwrap();
    let batch = batch();
    let mut grams = Grams::new(Layout::by_name("vl-merging").unwrap());
    runner.watch_apart(&batch.texts.unwrap(), &batch.images.unwrap(), &mut |seen| grams.add(&seen)).unwrap();
    let expected = formats::open(golden("expect_grams_irtr_batch.safetensors")).unwrap();
    assert_eq!(grams.len(), expected.tensors().len());
    for (name, width, found) in grams.matrices() {
        let at = expected.position(name).unwrap_or_else(|| panic!("{name} isn't expected"));
        let mut wanted = Vec::new();
        expected.read_f64(at, 0..width * width, &mut wanted).unwrap();
        let norm = wanted.iter().map(|value| value * value).sum::<f64>().sqrt();
        let difference = wanted.iter().zip(&found).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        assert!(difference <= 1e-6 * norm, "{name} is off by {:e}", difference / norm);
    }
}

#[test]
fn ten_steps_of_training() {
    let expected = json("expect_train_irtr_ufo.json");
    let heads = Heads { irtr: Want::Make(0), ..Heads::default() };
    let settings = Settings {
        optimizer: Optimizer::default(),
        dropout: 0.0,
        drop_path: 0.0,
        precision: Precision::F32,
        activation_checkpointing: false,
        seed: 0,
    };
    let image_size = Some(size(&json("config.json"), "image_size"));
    let options = Options { device: Choice::Cpu, image_size, ..Options::default() };
    let path = golden("model_ufo.safetensors");
    let (mut trainer, _) = open_trainer(&Source::Checkpoint(&path), heads, settings, &options).unwrap();
    let batch = batch();
    let batch = TrainBatch::Irtr { texts: batch.texts.unwrap(), images: batch.images.unwrap() };
    let (rates, losses) = (expected["lr"].as_array().unwrap(), expected["loss"].as_array().unwrap());
    for (step, (lr, wanted)) in rates.iter().zip(losses).enumerate() {
        let (lr, wanted) = (lr.as_f64().unwrap(), wanted.as_f64().unwrap());
        let loss = trainer.accumulate(&batch, 1.0, step as u64).unwrap().value;
        trainer.update(lr, None).unwrap();
        let off = (loss - wanted).abs() / wanted;
        let allowed = if step < 5 { 1e-3 } else { 5e-2 };
        assert!(off <= allowed, "step {step}: {loss}, expected {wanted} (off by {off:e})");
    }
}
