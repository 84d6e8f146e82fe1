//! `engine grams` into `vlmerge regmean`, and `engine probe`.

use blackbox::Folder;
use fixtures::compare::assert_close;
use fixtures::{ModelSpec, Variant};

use crate::models::{draw, folder, spec, write};
use crate::{engine, failed};

#[test]
fn regmean_needs_nothing_but_the_gram_file() {
    let folder = folder();
    for (task, matrices) in [("irtr", 32), ("vqa", 28), ("nlvr2", 28)] {
        let line = format!("grams ms.ckpt --task {task} --samples 48 --device cpu -o {task}.safetensors");
        let (said, _) = engine(&folder, &line).noted();
        let wanted =
            format!("{matrices} gram matrices of 48 examples (toy train, {task}) written to {task}.safetensors");
        assert!(said.starts_with(&wanted), "{said}");
        let merged = folder.vlmerge(&format!("regmean --grams {task}.safetensors -o merged_{task}.safetensors")).done();
        assert!(merged.contains("merged by regmean"), "{merged}");
        let probed = engine(
            &folder,
            &format!("--quiet grams merged_{task}.safetensors --task {task} --samples 16 -o x.safetensors"),
        );
        assert!(probed.code == Some(1) && probed.stderr.contains("it has no experts in linear layers"), "{probed:?}");
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

#[test]
fn what_grams_cannot_be_had_of() {
    let folder = folder();
    write(&folder, "ma.ckpt", &ModelSpec { variant: Variant::Ufo, ..spec() });
    let none = failed(&folder, "--quiet grams ma.ckpt --task irtr --samples 4 -o out.safetensors");
    assert!(none.starts_with("ma.ckpt: it has no experts in linear layers"), "{none}");
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
