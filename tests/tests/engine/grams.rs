//! `engine grams` into `vlmerge regmean`, and `engine probe`.

use blackbox::{Folder, Tensor};
use fixtures::compare::assert_close;

use crate::models::{draw, folder};
use crate::{engine, failed};

#[test]
fn regmean_needs_nothing_but_the_gram_file() {
    let folder = folder();
    for (task, matrices) in [("irtr", 32), ("vqa", 28), ("nlvr2", 28)] {
        let line = format!("grams ms.ckpt --task {task} --samples 48 --device cpu -o {task}.safetensors");
        let (said, _) = engine(&folder, &line).noted();
        let wanted = format!("{matrices} gram matrices of 48 examples (toy val, {task}) written to {task}.safetensors");
        assert!(said.starts_with(&wanted), "{said}");
        let merged = folder.vlmerge(&format!("regmean --grams {task}.safetensors -o merged_{task}.safetensors")).done();
        assert!(merged.contains("merged by regmean"), "{merged}");
        // What was merged has one matrix for each of four linear layers in four layers, its name without a modality.
        let line = format!("grams merged_{task}.safetensors --task {task} --samples 16 -o ma_{task}.safetensors");
        let (said, _) = engine(&folder, &line).noted();
        assert!(said.starts_with("16 gram matrices of 16 examples"), "{said}");
        let names: Vec<String> = folder.tensors(&format!("ma_{task}.safetensors")).into_keys().collect();
        assert!(names.contains(&"transformer.blocks.3.attn".into()), "{names:?}");
        assert!(names.contains(&"transformer.blocks.0.mlp.fc2".into()), "{names:?}");
    }
    // Other tasks see other inputs.
    assert_ne!(folder.read("irtr.safetensors"), folder.read("vqa.safetensors"));
    // The same examples give the same file.
    let again = "--quiet grams ms.ckpt --task irtr --samples 48 --device cpu -o again.safetensors";
    engine(&folder, again).done();
    assert_eq!(folder.read("irtr.safetensors"), folder.read("again.safetensors"));
}

/// Whatever the size of a batch: of a last one only what is missing counts.
#[test]
fn so_many_examples_as_asked_for() {
    let folder = folder();
    for (samples, batch) in [(20, 16), (7, 16), (9, 2)] {
        let line = format!(
            "grams ms.ckpt --task vqa --samples {samples} --batch-size {batch} --device cpu -o g.safetensors --force"
        );
        let (said, _) = engine(&folder, &line).noted();
        assert!(said.contains(&format!(" of {samples} examples ")), "{said}");
    }
    let rows: String = (0..5)
        .map(|i| format!("{{\"image\":\"p/{i}.png\",\"question\":\"is it {i}?\",\"answers\":[\"a\"]}}\n"))
        .collect();
    (0..5).for_each(|i| draw(&folder, &format!("set/p/{i}.png"), i));
    folder.write("set/train.jsonl", rows);
    let (said, _) = engine(&folder, "grams ms.ckpt --task vqa --data set --batch-size 4 -o all.safetensors").noted();
    assert!(said.contains(" of 5 examples "), "{said}");
}

/// A model whose experts are equal computes what the one with shared weights does, so that its matrices add up.
#[test]
fn shared_weights_see_what_all_experts_see() {
    let folder = folder();
    folder.vlmerge("interpolate ms.ckpt --ratio 0.5 -o merged.safetensors").done();
    folder.vlmerge("interpolate ms.ckpt --ratio 0.5 --emit multiway -o equal.safetensors").done();
    for name in ["merged", "equal"] {
        let line = format!(
            "--quiet grams {name}.safetensors --task irtr --samples 8 --device cpu -o {name}_grams.safetensors"
        );
        engine(&folder, &line).done();
    }
    let (shared, experts) = (folder.tensors("merged_grams.safetensors"), folder.tensors("equal_grams.safetensors"));
    for (name, by) in [
        ("transformer.blocks.0.attn", ["attn.v", "attn.l"]),
        ("transformer.blocks.3.mlp.fc2", ["mlp.v.fc2", "mlp.l.fc2"]),
    ] {
        let block = name.split_inclusive('.').take(3).collect::<String>();
        let [v, l] = by.map(|expert| numbers(&experts[&format!("{block}{expert}")]));
        let largest = v.iter().chain(&l).fold(0f64, |most, value| most.max(value.abs()));
        let sum: Vec<f64> = v.iter().zip(&l).map(|(v, l)| v + l).collect();
        let found = numbers(&shared[name]);
        assert_eq!(found.len(), sum.len());
        assert!(found.iter().zip(&sum).all(|(a, b)| (a - b).abs() <= 1e-5 * largest), "{name}");
    }
}

/// The values of a gram matrix, f64.
fn numbers(gram: &Tensor) -> Vec<f64> {
    gram.bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
}

#[test]
fn grams_are_of_the_whole_split_that_the_python_code_uses() {
    let folder = folder();
    let rows: String = (0..3).map(|i| format!("{{\"image\":\"{i}.png\",\"caption\":\"number {i}\"}}\n")).collect();
    for (set, splits) in
        [("f30k_caption_karpathy", ["train", "val", "test"]), ("coco_caption_karpathy", ["train", "val", "test"])]
    {
        (0..3).for_each(|i| draw(&folder, &format!("{set}/{i}.png"), i));
        splits.iter().for_each(|split| folder.write(&format!("{set}/{set}_{split}.jsonl"), &rows));
    }
    let grams = |line: &str| {
        let (said, notes) =
            engine(&folder, &format!("grams ms.ckpt --task irtr --device cpu {line} -o g.safetensors --force")).noted();
        (said, notes.into_iter().find(|note| note.starts_with("gram matrices of")).expect("it says what it uses"))
    };
    let (said, note) = grams("--data f30k_caption_karpathy");
    assert!(said.contains(" of 3 examples (f30k_caption_karpathy test, irtr)"), "{said}");
    assert_eq!(note, "gram matrices of f30k_caption_karpathy test, all 3 examples, as in the Python code");
    let (said, note) = grams("--data coco_caption_karpathy --samples 2");
    assert!(said.contains(" of 2 examples (coco_caption_karpathy val, irtr)"), "{said}");
    assert_eq!(note, "gram matrices of coco_caption_karpathy val, 2 of 3 examples, as in the Python code");
    let (said, _) = grams("--data coco_caption_karpathy --split train");
    assert!(said.contains("coco_caption_karpathy train"), "{said}");
}

#[test]
fn what_grams_cannot_be_had_of() {
    let folder = folder();
    let split = failed(&folder, "--quiet grams ms.ckpt --task irtr --split tset -o out.safetensors");
    assert!(split.contains("tset") && split.contains("train"), "{split}");
    let itself = failed(&folder, "--quiet grams ms.ckpt --task irtr -o ms.ckpt --force");
    assert!(itself.contains("this output is also an input"), "{itself}");
    assert!(!folder.path("out.safetensors").exists());
}

#[test]
fn a_probe_equals_the_python_code() {
    let files = [
        "model_ln_moe.safetensors",
        "heads_ln_moe.safetensors",
        "batch.safetensors",
        "expect_forward_ln_moe.safetensors",
    ];
    let folder = Folder::with_golden(&files);
    let [model, heads, batch, expected] = files;
    let line = format!("probe {model} --heads {heads} --batch {batch} --device cpu -o out.safetensors");
    let (said, _) = engine(&folder, &line).noted();
    assert!(said.contains("written to out.safetensors, computed on cpu") && said.contains("loss.irtr"), "{said}");
    let (found, wanted) = (folder.tensors("out.safetensors"), folder.tensors(expected));
    let mut compared = 0;
    for (name, wanted) in &wanted {
        // NLVR2 has token types of its own, and targets stand in config.json.
        if name.ends_with("nlvr2") || name == "loss.vqa" {
            continue;
        }
        let found = found.get(name).unwrap_or_else(|| panic!("{name} isn't there"));
        assert_eq!(found.shape, wanted.shape, "{name}");
        assert_close(name, &wanted.values(), &found.values(), 1e-5);
        compared += 1;
    }
    assert!(compared >= 16, "{compared} tensors of the two files have one name");
    let missing = failed(&folder, &format!("--quiet probe {model} --batch {heads} -o other.safetensors"));
    assert!(missing.contains("it has none of the tensors image, text_ids, image_0"), "{missing}");
}
