//! Gradients of every task's loss against finite differences, through the same trait that training uses.

use std::path::{Path, PathBuf};

use engine::batch::{Matrix, TrainBatch};
use engine::device::{Choice, Precision};
use engine::model::open::{Options, Source, open_trainer, read_probe_batch};
use engine::model::save::{HostTensor, write};
use engine::model::training::{Optimizer, Settings};
use engine::model::{Heads, Want};
use engine::trainer::Trainer;
use fixtures::compare::assert_close;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/golden").join(name)
}

const SETTINGS: Settings = Settings {
    optimizer: Optimizer {
        beta_1: 0.9,
        beta_2: 0.98,
        epsilon: 1e-8,
        weight_decay: 0.0,
        head_lr_multiplier: 1.0,
        reference: false,
    },
    dropout: 0.0,
    drop_path: 0.0,
    precision: Precision::F32,
    activation_checkpointing: false,
    seed: 7,
};

fn open(path: &Path, heads: Heads, settings: Settings) -> Box<dyn Trainer> {
    let options = Options { device: Choice::Cpu, image_size: Some(48), ..Options::default() };
    open_trainer(&Source::Checkpoint(path), heads, settings, &options).unwrap().0
}

/// Every task's batch and heads, on the golden batch.
fn tasks() -> Vec<(&'static str, Heads, TrainBatch)> {
    let batch = read_probe_batch(&golden("batch.safetensors")).unwrap();
    let (texts, images) = (batch.texts.unwrap(), batch.images.unwrap());
    let (left, right) = batch.pair.unwrap();
    let rows = images.count;
    let targets = Matrix { rows, columns: 5, values: (0..rows * 5).map(|i| (i % 4) as f32 / 4.0).collect() };
    let none = Heads::default();
    vec![
        (
            "irtr",
            Heads { irtr: Want::Make(0), ..none },
            TrainBatch::Irtr { texts: texts.clone(), images: images.clone() },
        ),
        (
            "vqa",
            Heads { vqa: Want::Make(5), ..none },
            TrainBatch::Vqa { texts: texts.clone(), images: images.clone(), targets },
        ),
        (
            "nlvr2",
            Heads { nlvr2: Want::Make(2), ..none },
            TrainBatch::Nlvr2 { texts, left, right, labels: vec![0, 1, 1, 0] },
        ),
        ("img_cls", Heads { img_cls: Want::Make(7), ..none }, TrainBatch::ImgCls { images, labels: vec![0, 6, 3, 2] }),
    ]
}

fn read(path: &Path) -> Vec<HostTensor> {
    let file = formats::open(path).unwrap();
    let read = |(at, info): (usize, &formats::TensorInfo)| {
        let mut values = Vec::new();
        file.read_f32(at, 0..info.elements(), &mut values).unwrap();
        HostTensor { name: info.name.clone(), shape: info.shape.clone(), values }
    };
    file.tensors().iter().enumerate().map(read).collect()
}

/// Weights and their gradients: after one update from nothing the first moment is (1 − β₁)·gradient.
fn gradients(trainer: &mut dyn Trainer, batch: &TrainBatch, folder: &Path) -> (Vec<HostTensor>, Vec<Vec<f32>>, f64) {
    trainer.accumulate(batch, 1.0, 0).unwrap();
    let norm = trainer.update(0.0, None).unwrap().gradient_norm;
    let (weights, optimizer) = (folder.join("weights.safetensors"), folder.join("optimizer.safetensors"));
    trainer.save_weights(&weights, &[]).unwrap();
    trainer.save_optimizer(&optimizer).unwrap();
    let (weights, moments) = (read(&weights), read(&optimizer));
    let of = |weight: &HostTensor| {
        let name = format!("{}.exp_avg", weight.name);
        let moment = moments.iter().find(|moment| moment.name == name);
        moment.map_or(vec![0.0; weight.values.len()], |m| m.values.iter().map(|value| value / 0.1).collect())
    };
    let gradients = weights.iter().map(of).collect();
    (weights, gradients, norm)
}

#[test]
fn derivatives_along_directions() {
    let folder = tempfile::tempdir().unwrap();
    for (variant, file) in [("all_moe", "model_all_moe.safetensors"), ("ln_moe", "model_ln_moe.safetensors")] {
        for (task, heads, batch) in tasks() {
            let mut trainer = open(&golden(file), heads, SETTINGS);
            let (weights, gradients, norm) = gradients(&mut *trainer, &batch, folder.path());
            let squares = gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
            assert!((squares.sqrt() / norm - 1.0).abs() < 1e-4, "{variant}, {task}: the norm is that of the gradients");
            let mut compared = 0;
            // Along the gradient, and along each kind of parameter's own share of it.
            for part in ["", "qkv.weight", "proj", "fc1", "fc2", "norm", "bias", "table", "gamma", "embed", "token"] {
                let inside = |weight: &HostTensor| if weight.name.contains(part) { 1.0 } else { 0.0 };
                let direction: Vec<Vec<f64>> = (weights.iter().zip(&gradients))
                    .map(|(weight, gradient)| gradient.iter().map(|&g| f64::from(g) * inside(weight)).collect())
                    .collect();
                let length = direction.iter().flatten().map(|d| d * d).sum::<f64>().sqrt();
                assert!(length.is_finite() && length > 0.0, "{variant}, {task}, '{part}': its gradient is {length}");
                // f32 doesn't show the slope along a part whose gradient is this small.
                if length < 1e-3 * norm {
                    println!("{variant}, {task}: '{part}' is too small a part of the gradient: {:.1e}", length / norm);
                    continue;
                }
                compared += 1;
                // Small enough for the slope not to change, large enough for f32 to show it.
                let step = (1e-3 / length).min(4e-3);
                let loss = |sign: f64| {
                    let moved = weights.iter().zip(&direction).map(|(w, d)| {
                        let at = w.values.iter().zip(d).map(|(&w, d)| (f64::from(w) + sign * step * d / length) as f32);
                        HostTensor { values: at.collect(), ..w.clone() }
                    });
                    let path = folder.path().join("moved.safetensors");
                    let metadata = formats::open(folder.path().join("weights.safetensors")).unwrap().metadata().clone();
                    write(&path, moved.collect(), &metadata).unwrap();
                    open(&path, heads, SETTINGS).accumulate(&batch, 1.0, 0).unwrap().value
                };
                let found = (loss(1.0) - loss(-1.0)) / (2.0 * step);
                let off = (found - length).abs() / length;
                assert!(off < 0.02, "{variant}, {task}, '{part}': slope {found}, gradient {length}");
            }
            assert!(compared >= 9, "{variant}, {task}: {compared} of 11 directions were compared");
        }
    }
}

/// The same sums, some in another order: what several layers add to the position table, say. All variants, as `ln_moe`'s
/// layers mix the modalities in a way of their own.
#[test]
fn checkpointed_activations_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for variant in ["ufo", "ln_moe", "all_moe"] {
        for (task, heads, batch) in tasks() {
            let run = |activation_checkpointing| {
                let settings = Settings { activation_checkpointing, drop_path: 0.3, dropout: 0.1, ..SETTINGS };
                let mut trainer = open(&golden(&format!("model_{variant}.safetensors")), heads, settings);
                let (weights, gradients, _) = gradients(&mut *trainer, &batch, folder.path());
                (weights.into_iter().map(|weight| weight.name).collect::<Vec<_>>(), gradients)
            };
            let ((names, kept), (same_names, recomputed)) = (run(false), run(true));
            assert_eq!(names, same_names, "{variant}, {task}");
            assert_eq!((kept.len(), recomputed.len()), (names.len(), names.len()), "{variant}, {task}");
            for ((name, kept), recomputed) in names.iter().zip(&kept).zip(&recomputed) {
                assert_close(format!("{variant}, {task}, {name}"), kept, recomputed, 2e-6);
            }
        }
    }
}

#[test]
fn a_model_without_layer_scale_stays_one() {
    let folder = tempfile::tempdir().unwrap();
    let (bare, saved) = (folder.path().join("bare.safetensors"), folder.path().join("saved.safetensors"));
    let file = formats::open(golden("model_ufo.safetensors")).unwrap();
    let mut tensors = read(&golden("model_ufo.safetensors"));
    tensors.retain(|tensor| !tensor.name.contains(".gamma_"));
    let names: Vec<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
    write(&bare, tensors, file.metadata()).unwrap();
    let (_, heads, batch) = tasks().swap_remove(0);
    let mut trainer = open(&bare, heads, SETTINGS);
    trainer.accumulate(&batch, 1.0, 0).unwrap();
    trainer.update(1e-3, None).unwrap();
    trainer.save_weights(&saved, &[]).unwrap();
    let kept = read(&saved);
    assert!(kept.iter().all(|tensor| !tensor.name.contains(".gamma_")));
    assert!(kept.iter().any(|tensor| names.contains(&tensor.name) && tensor.name.contains("attn.proj")));
}

#[test]
fn a_restored_trainer_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (weights, optimizer) = (folder.path().join("w.safetensors"), folder.path().join("o.safetensors"));
    let settings = Settings { drop_path: 0.2, dropout: 0.1, ..SETTINGS };
    for (task, heads, batch) in tasks() {
        let fresh = || open(&golden("model_all_moe.safetensors"), heads, settings);
        let step = |trainer: &mut dyn Trainer, number: u64| {
            let loss = trainer.accumulate(&batch, 1.0, number).unwrap().value;
            (loss.to_bits(), trainer.update(1e-3, Some(1.0)).unwrap().gradient_norm.to_bits())
        };
        let mut whole = fresh();
        let uninterrupted: Vec<_> = (0..4).map(|number| step(&mut *whole, number)).collect();
        let mut first = fresh();
        for number in 0..2 {
            step(&mut *first, number);
        }
        first.save_weights(&weights, &[]).unwrap();
        first.save_optimizer(&optimizer).unwrap();
        let mut second = open(&weights, heads, settings);
        second.restore_optimizer(&optimizer).unwrap();
        let resumed: Vec<_> = (2..4).map(|number| step(&mut *second, number)).collect();
        assert_eq!(resumed, uninterrupted[2..], "{task}");
    }
}
