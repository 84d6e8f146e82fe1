//! The model against the values of the Python code; `VLMERGE_GOLDEN` names another set of the same shape.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use engine::batch::Matrix;
use engine::batch::TrainBatch;
use engine::device::{Choice, Precision};
use engine::grams::Grams;
use engine::model::open::Source;
use engine::model::open::{Inspector, Options, open_runner, open_trainer, read_probe_batch};
use engine::model::probe::ProbeBatch;
use engine::model::training::{Optimizer, Settings};
use engine::model::{Heads, Want};
use engine::selftest::{TOLERANCE_BF16, TOLERANCE_F32};
use engine::trainer::Trainer;
use fixtures::compare::{assert_close, relative_difference};
use formats::layout::Layout;
use serde_json::Value;

const VARIANTS: [&str; 5] = ["ufo", "ln_moe", "attn_moe", "ffn_moe", "all_moe"];

fn golden(name: &str) -> PathBuf {
    fixtures::golden().join(name)
}

fn json(folder: &Path, name: &str) -> Value {
    let text = std::fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap()
}

fn size(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap_or_else(|| panic!("config.json: {key}")) as usize
}

/// The batch with the targets that stand in config.json.
fn batch(folder: &Path) -> ProbeBatch {
    let config = json(folder, "config.json");
    let mut batch = read_probe_batch(&folder.join("batch.safetensors")).unwrap();
    let (labels, scores) = (&config["batch"]["vqa_labels"], &config["batch"]["vqa_scores"]);
    let rows = labels.as_array().unwrap().len();
    let columns = size(&config, "vqa_labels");
    let mut values = vec![0f32; rows * columns];
    for row in 0..rows {
        assert_eq!(labels[row].as_array().unwrap().len(), scores[row].as_array().unwrap().len());
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
    let config = json(&fixtures::golden(), "config.json");
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
    let all = open(variant, None, precision).probe(&batch(&fixtures::golden())).unwrap();
    let nlvr2 = open(variant, Some("nlvr2"), precision).probe(&batch(&fixtures::golden())).unwrap();
    let expected = formats::open(golden(&format!("expect_forward_{variant}.safetensors"))).unwrap();
    let mut differences = Vec::new();
    for (at, info) in expected.tensors().iter().enumerate() {
        let mut wanted = Vec::new();
        expected.read_f32(at, 0..info.elements(), &mut wanted).unwrap();
        let found = if info.name.ends_with("nlvr2") { &nlvr2 } else { &all };
        let tensor = found.iter().find(|tensor| tensor.name == info.name);
        let tensor = tensor.unwrap_or_else(|| panic!("{variant}: no {}", info.name));
        assert_eq!(tensor.shape, info.shape, "{variant}: {}", info.name);
        let difference = relative_difference(&wanted, &tensor.values);
        let difference = difference.unwrap_or_else(|reason| panic!("{variant}: {}: {reason}", info.name));
        differences.push((info.name.clone(), difference));
    }
    assert!(differences.len() >= 20, "{variant}: the expected file has all forwards");
    differences
}

fn forwards(precision: Precision, tolerance: f64) {
    for variant in VARIANTS {
        let differences = differences(variant, precision);
        let (name, worst) = differences.iter().max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap();
        println!("{variant} in {precision:?}: at most {worst:.1e}, in {name}");
        let beyond: Vec<_> = differences.iter().filter(|(_, difference)| *difference > tolerance).collect();
        assert!(beyond.is_empty(), "{variant}: {beyond:?}");
    }
}

#[test]
fn forwards_in_f32() {
    forwards(Precision::F32, TOLERANCE_F32);
}

#[test]
fn forwards_in_bf16() {
    forwards(Precision::Bf16, TOLERANCE_BF16);
}

#[test]
fn grams_of_one_batch() {
    let options = Options { device: Choice::Cpu, ..Options::default() };
    let (runner, _) = open_runner(&golden("ms.ckpt"), &options).unwrap();
    let batch = batch(&fixtures::golden());
    let mut grams = Grams::new(Layout::by_name("vl-merging").unwrap());
    runner.watch_apart(&batch.texts.unwrap(), &batch.images.unwrap(), &mut |seen| grams.add(&seen)).unwrap();
    let expected = formats::open(golden("expect_grams_irtr_batch.safetensors")).unwrap();
    assert_eq!(grams.len(), expected.tensors().len());
    for (name, width, found) in grams.matrices() {
        let at = expected.position(name).unwrap_or_else(|| panic!("{name} isn't expected"));
        let mut wanted = Vec::new();
        expected.read_f64(at, 0..width * width, &mut wanted).unwrap();
        assert_eq!(wanted.len(), found.len(), "{name}");
        let norm = wanted.iter().map(|value| value * value).sum::<f64>().sqrt();
        let difference = wanted.iter().zip(&found).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        assert!(difference <= 1e-6 * norm, "{name} is off by {:e}", difference / norm);
    }
}

const TASKS: [&str; 4] = ["irtr", "vqa", "nlvr2", "img_cls"];

/// No dropout, no stochastic depth.
fn settings(optimizer: Optimizer) -> Settings {
    Settings {
        optimizer,
        dropout: 0.0,
        drop_path: 0.0,
        precision: Precision::F32,
        activation_checkpointing: false,
        seed: 0,
    }
}

/// A model of a folder of golden values with a task's head, in training, and the task's batch.
fn training(folder: &Path, variant: &str, task: &str, optimizer: Optimizer) -> (Box<dyn Trainer>, TrainBatch) {
    let (make, none) = (Want::Make(0), Heads::default());
    let ProbeBatch { texts, images, pair, class_labels, vqa_targets, nlvr2_labels, .. } = batch(folder);
    let (texts, images) = (texts.unwrap(), images.unwrap());
    let (heads, batch) = match task {
        "irtr" => (Heads { irtr: make, ..none }, TrainBatch::Irtr { texts, images }),
        "vqa" => (Heads { vqa: make, ..none }, TrainBatch::Vqa { texts, images, targets: vqa_targets.unwrap() }),
        "nlvr2" => {
            let ((left, right), labels) = (pair.unwrap(), nlvr2_labels.unwrap());
            (Heads { nlvr2: make, ..none }, TrainBatch::Nlvr2 { texts, left, right, labels })
        }
        _ => (Heads { img_cls: make, ..none }, TrainBatch::ImgCls { images, labels: class_labels.unwrap() }),
    };
    let options = Options {
        device: Choice::Cpu,
        image_size: Some(size(&json(folder, "config.json"), "image_size")),
        // Retrieval's head is in the model's file.
        heads_file: (task != "irtr").then(|| folder.join(format!("heads_{variant}.safetensors"))),
        heads_task: Some(task.to_owned()),
        ..Options::default()
    };
    let path = folder.join(format!("model_{variant}.safetensors"));
    let (trainer, opened) = open_trainer(&Source::Checkpoint(&path), heads, settings(optimizer), &options).unwrap();
    assert_eq!(opened.load.initialised, [""; 0], "everything is in the files");
    (trainer, batch)
}

fn read(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let file = formats::open(path).unwrap();
    let read = |(at, info): (usize, &formats::TensorInfo)| {
        let mut values = Vec::new();
        file.read_f32(at, 0..info.elements(), &mut values).unwrap();
        (info.name.clone(), values)
    };
    file.tensors().iter().enumerate().map(read).collect()
}

/// What one update did.
struct Updated {
    loss: f64,
    before: BTreeMap<String, Vec<f32>>,
    after: BTreeMap<String, Vec<f32>>,
    /// Of the parameters that have one: after the first update the first moment is (1 − β₁)·gradient.
    gradients: BTreeMap<String, Vec<f64>>,
}

fn one_update(folder: &Path, variant: &str, task: &str, optimizer: Optimizer, lr: f64) -> Updated {
    let (mut trainer, batch) = training(folder, variant, task, optimizer);
    let out = tempfile::tempdir().unwrap();
    let [before, after, state] =
        ["before", "after", "state"].map(|name| out.path().join(format!("{name}.safetensors")));
    trainer.save_weights(&before, &[]).unwrap();
    let loss = trainer.accumulate(&batch, 1.0, 0).unwrap().value;
    trainer.update(lr, None).unwrap();
    trainer.save_weights(&after, &[]).unwrap();
    trainer.save_optimizer(&state).unwrap();
    let gradient = |(name, moment): (String, Vec<f32>)| {
        let name = name.strip_suffix(".exp_avg")?.to_owned();
        Some((name, moment.into_iter().map(|m| f64::from(m) / (1.0 - optimizer.beta_1)).collect()))
    };
    let gradients = read(&state).into_iter().filter_map(gradient).collect();
    Updated { loss, before: read(&before), after: read(&after), gradients }
}

#[test]
fn training_losses_of_every_task() {
    for variant in VARIANTS {
        let expected = read(&golden(&format!("expect_forward_{variant}.safetensors")));
        for task in TASKS {
            let (mut trainer, batch) = training(&fixtures::golden(), variant, task, Optimizer::default());
            let loss = trainer.accumulate(&batch, 1.0, 0).unwrap().value;
            assert_close(format!("{variant}, {task}"), &expected[&format!("loss.{task}")], &[loss], TOLERANCE_F32);
        }
    }
}

/// Against a model written in PyTorch for this (`fixtures/training/make.py`): gradients, and what both kinds of AdamW
/// make of them. Its values belong to the golden set of this checkout.
#[test]
fn one_update_changes_every_parameter_as_pytorch_does() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let expected = json(&here.join("training"), "one_update.json");
    let number = |key: &str| expected["settings"][key].as_f64().unwrap();
    let optimizer = Optimizer {
        beta_1: number("beta_1"),
        beta_2: number("beta_2"),
        epsilon: number("epsilon"),
        weight_decay: number("weight_decay"),
        head_lr_multiplier: number("head_lr_multiplier"),
        reference: false,
    };
    let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
    for task in TASKS {
        let rows = &expected["tasks"][task]["parameters"].as_object().unwrap();
        for (column, reference) in [(1, false), (3, true)] {
            let optimizer = Optimizer { reference, ..optimizer };
            let updated = one_update(&here.join("golden"), "all_moe", task, optimizer, number("lr"));
            assert_close(task, &[expected["tasks"][task]["loss"].as_f64().unwrap()], &[updated.loss], 1e-6);
            let names: BTreeSet<&String> = updated.gradients.keys().collect();
            assert_eq!(names, rows.keys().collect(), "{task}: what has a gradient");
            for (name, before) in &updated.before {
                let after = &updated.after[name];
                let Some(row) = rows.get(name) else {
                    assert_eq!(before, after, "{task}: {name} has no gradient: it neither moves nor decays");
                    continue;
                };
                let row: Vec<f64> = row.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
                assert_eq!((row.len(), after.len()), (5, before.len()), "{name}");
                let change: Vec<f64> = after.iter().zip(before).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
                let what = format!("{task}, reference {reference}, {name}");
                assert!(row[0] > 0.0 && row[column] > 0.0, "{what}: nothing to compare");
                assert_close(&what, &[row[0]], &[norm(&updated.gradients[name])], 1e-4);
                // The new values are rounded to f32.
                let rounding = 1.2e-7 * norm(&before.iter().map(|&value| f64::from(value)).collect::<Vec<_>>());
                let allowed = 1e-4 * row[column] + rounding;
                let off = (norm(&change) - row[column]).abs();
                assert!(off <= allowed, "{what}: the change is off by {off:e}");
                let off = (change.iter().sum::<f64>() - row[column + 1]).abs();
                assert!(off <= allowed * (change.len() as f64).sqrt(), "{what}: the sum is off by {off:e}");
            }
        }
    }
}

/// AdamW in f64 from the gradients, for every parameter of whatever set is tested.
#[test]
fn one_update_is_adamw() {
    let lr = 0.01;
    for variant in ["ufo", "all_moe"] {
        for task in TASKS {
            for reference in [false, true] {
                let optimizer =
                    Optimizer { weight_decay: 0.5, head_lr_multiplier: 10.0, reference, ..Optimizer::default() };
                let updated = one_update(&fixtures::golden(), variant, task, optimizer, lr);
                assert!(updated.gradients.len() > 50, "{variant}, {task}: {}", updated.gradients.len());
                for (name, before) in &updated.before {
                    let what = format!("{variant}, {task}, reference {reference}, {name}");
                    let Some(gradient) = updated.gradients.get(name) else {
                        assert_eq!(before, &updated.after[name], "{what}: no gradient, no change");
                        continue;
                    };
                    assert_eq!(gradient.len(), before.len(), "{what}");
                    let head = name.contains("_classifier");
                    let lr = if head { 10.0 * lr } else { lr };
                    let norm = name.contains("norm") || name.contains("LayerNorm") || name.contains("_classifier.1.");
                    let own = name.contains(".v.") || name.contains(".l.") || name.contains(".vl.");
                    let spared = name.contains("bias") || if reference { norm && !own && !head } else { norm };
                    let decay = lr
                        * if spared {
                            0.0
                        } else if reference && head {
                            0.01
                        } else {
                            0.5
                        };
                    let step = |(&w, &g): (&f32, &f64)| {
                        let w = f64::from(w);
                        if reference {
                            // Both corrections as they stand in transformers: √0.02 and 0.1 after one step.
                            let (first, second) = (0.1 * g, 0.02 * g * g);
                            let new = w - lr * 0.02f64.sqrt() / 0.1 * first / (second.sqrt() + 1e-8);
                            new - decay * new
                        } else {
                            w - decay * w - lr * g / (g.abs() + 1e-8)
                        }
                    };
                    let expected: Vec<f64> = before.iter().zip(gradient).map(step).collect();
                    assert_close(what, &expected, &updated.after[name], 2e-6);
                }
            }
        }
    }
}

/// Losses of ten steps, and how far each is off.
fn ten_steps(reference: bool) -> Vec<f64> {
    let expected = json(&fixtures::golden(), "expect_train_irtr_ufo.json");
    let optimizer = Optimizer { reference, ..Optimizer::default() };
    let (mut trainer, batch) = training(&fixtures::golden(), "ufo", "irtr", optimizer);
    let (rates, losses) = (expected["lr"].as_array().unwrap(), expected["loss"].as_array().unwrap());
    assert_eq!((rates.len(), losses.len()), (size(&expected, "steps"), size(&expected, "steps")));
    let step = |(step, (lr, wanted)): (usize, (&Value, &Value))| {
        let loss = trainer.accumulate(&batch, 1.0, step as u64).unwrap().value;
        trainer.update(lr.as_f64().unwrap(), None).unwrap();
        relative_difference(&[wanted.as_f64().unwrap()], &[loss]).unwrap()
    };
    rates.iter().zip(losses).enumerate().map(step).collect()
}

#[test]
fn ten_steps_of_training_follow_the_python_code_with_reference() {
    let off = ten_steps(true);
    println!("with reference, off by {off:?}");
    assert!(off.iter().all(|&off| off <= 1e-4), "{off:?}");
}

/// Decay before the step, and ε after the correction: by default the losses part a little.
#[test]
fn ten_steps_of_training_stay_near_the_python_code_by_default() {
    let off = ten_steps(false);
    println!("by default, off by {off:?}");
    assert!(off[..2].iter().all(|&off| off <= TOLERANCE_F32), "before the first change: {off:?}");
    assert!(off.iter().all(|&off| off <= 1e-4), "{off:?}");
}
