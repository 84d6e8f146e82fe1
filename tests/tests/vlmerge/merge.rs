//! Merging against the golden values of the Python code, and by hand.

use blackbox::{Folder, Tensors, read};
use fixtures::compare::absolute_difference;
use serde_json::{Value, json};

use crate::models::{edited, small};

const USED_IRTR: &str = "--experts used --task irtr";

/// Bit for bit what PyTorch computes, and the same file on any number of threads.
#[test]
fn interpolation_is_what_the_python_code_gives() {
    let folder = Folder::with_golden(&["ms.ckpt"]);
    let untouched = without_experts(&folder, "ms.ckpt");
    let cases = [
        ("0.5", "", "r0.5"),
        ("0.3", "", "r0.3"),
        ("0.3", USED_IRTR, "r0.3_used_irtr"),
        ("0.3", "--experts used --task vqa", "r0.3_used_vqa"),
        ("0.3", "--experts used --task nlvr2", "r0.3_used_vqa"),
    ];
    for (ratio, options, golden) in cases {
        let expected = read(&fixtures::golden().join(format!("expect_merge_interpolate_{golden}.safetensors")));
        for container in ["safetensors", "ckpt"] {
            let mut outputs = [1, 2, 5].map(|threads| {
                let output = format!("{threads}.{container}");
                folder
                    .vlmerge(&format!(
                        "interpolate ms.ckpt --ratio {ratio} {options} --threads {threads} -o {output} --force"
                    ))
                    .done();
                folder.read(&output)
            });
            outputs.sort();
            assert!(outputs[0] == outputs[2], "{golden}.{container}: one file on any number of threads");
        }
        folder.vlmerge("convert 1.ckpt -o converted.safetensors --force").done();
        for output in ["1.safetensors", "converted.safetensors"] {
            same_bits(&folder.tensors(output), &expected, &untouched, golden);
        }
    }
}

#[test]
fn arithmetic_is_the_formula_and_sequential_is_the_python_code() {
    let folder = Folder::with_golden(&["ms.ckpt", "seed.ckpt"]);
    let untouched = without_experts(&folder, "ms.ckpt");
    for (golden, options) in [
        ("l0.75_paper", String::new()),
        ("l0.75_inplace", "--sequential".into()),
        ("l0.75_used_irtr_paper", USED_IRTR.into()),
        ("l0.75_used_irtr_inplace", format!("{USED_IRTR} --sequential")),
    ] {
        let expected = read(&fixtures::golden().join(format!("expect_merge_arithmetic_{golden}.safetensors")));
        let mut outputs = [1, 2, 5].map(|threads| {
            let line = "arithmetic ms.ckpt --base seed.ckpt --lambda 0.75 -o out.safetensors --force";
            folder.vlmerge(&format!("{line} {options} --threads {threads}")).done();
            folder.read("out.safetensors")
        });
        outputs.sort();
        assert!(outputs[0] == outputs[2], "{golden}: one file on any number of threads");
        let ours = folder.tensors("out.safetensors");
        for (name, tensor) in &expected {
            assert_eq!(ours[name].shape, tensor.shape, "{golden}: {name}");
            let furthest = absolute_difference(&tensor.values(), &ours[name].values()).unwrap();
            assert!(furthest <= 1e-6, "{golden}: {name}: {furthest}");
        }
        let copied: Tensors = ours.into_iter().filter(|(name, _)| !expected.contains_key(name)).collect();
        assert!(copied == untouched, "{golden}: what isn't merged is copied");
    }
}

/// Small enough for a formula on each element.
#[test]
fn interpolation_by_hand() {
    let folder = edited(|_| ());
    folder.vlmerge("interpolate ms.safetensors --ratio 0.25 -o out.safetensors").done();
    let (ms, out) = (small(), folder.tensors("out.safetensors"));
    let [v, l, vl] =
        ["v", "l", "vl"].map(|m| ms.get(&format!("transformer.blocks.1.norm1.{m}.weight")).unwrap().values());
    let [share_v, share_l, share_vl] = [2.0 / 3.0 * 0.25, 2.0 / 3.0 * 0.75, 1.0 / 3.0].map(|share: f64| share as f32);
    let expected: Vec<f32> = (0..4).map(|i| share_v * v[i] + share_l * l[i] + share_vl * vl[i]).collect();
    assert_eq!(out["transformer.blocks.1.norm1.weight"].values(), expected);
    let [v, l] = ["v", "l"].map(|m| ms[&format!("transformer.blocks.0.norm1.{m}.weight")].values());
    let expected: Vec<f32> = (0..4).map(|i| 0.25 * v[i] + 0.75 * l[i]).collect();
    assert_eq!(out["transformer.blocks.0.norm1.weight"].values(), expected);
    assert_eq!(out["transformer.blocks.0.gamma_1"], ms["transformer.blocks.0.gamma_1"]);
    assert_eq!(out.len(), 8);
}

#[test]
fn a_ratio_outside_0_to_1_extrapolates_with_a_warning() {
    let folder = edited(|_| ());
    for (ratio, v_share) in [("1.5", 1.5f32), ("-0.5", -0.5)] {
        let line = format!("interpolate ms.safetensors --ratio {ratio} -o out.safetensors --force");
        let warning = folder.vlmerge(&line).warned();
        assert_eq!(warning, format!("ratio {ratio} is outside 0 to 1: this extrapolates"));
        folder.vlmerge(&format!("{line} --quiet")).done();
        let [v, l] = ["v", "l"].map(|m| small()[&format!("transformer.blocks.0.norm1.{m}.weight")].values());
        let expected: Vec<f32> = (0..4).map(|i| v_share * v[i] + (1.0 - v_share) * l[i]).collect();
        assert_eq!(folder.tensors("out.safetensors")["transformer.blocks.0.norm1.weight"].values(), expected);
    }
    for ratio in ["0", "1"] {
        folder.vlmerge(&format!("interpolate ms.safetensors --ratio {ratio} -o out.safetensors --force")).done();
    }
}

/// f16 and bf16 experts are merged in f32 and rounded once.
#[test]
fn narrow_experts_are_rounded_once() {
    let folder = edited(|_| ());
    for dtype in ["f16", "bf16"] {
        folder.vlmerge(&format!("convert ms.safetensors --dtype {dtype} -o narrow.safetensors --force")).done();
        folder.vlmerge("interpolate narrow.safetensors --ratio 0.3 -o out.safetensors --force").done();
        folder.vlmerge("convert narrow.safetensors --dtype f32 -o wide.safetensors --force").done();
        folder.vlmerge("interpolate wide.safetensors --ratio 0.3 -o wide_out.safetensors --force").done();
        folder.vlmerge(&format!("convert wide_out.safetensors --dtype {dtype} -o expected.safetensors --force")).done();
        assert!(folder.tensors("out.safetensors") == folder.tensors("expected.safetensors"), "{dtype}");
    }
}

/// λ = 1 for one modality and 0 for the others gives that modality's experts: base + (expert − base).
#[test]
fn arithmetic_takes_a_lambda_for_each_modality() {
    let folder = Folder::with_golden(&["ms.ckpt", "seed.ckpt"]);
    folder.vlmerge("convert ms.ckpt -o ms.safetensors").done();
    folder.vlmerge("convert seed.ckpt -o seed.safetensors").done();
    let line = "arithmetic ms.safetensors --base seed.safetensors --lambda v=1,l=0,vl=0 -o out.safetensors";
    folder.vlmerge(line).done();
    let (ms, out) = (folder.tensors("ms.safetensors"), folder.tensors("out.safetensors"));
    let mut compared = 0;
    for (name, tensor) in ms.iter().filter(|(name, _)| name.contains(".v.")) {
        let ours = &out[&name.replace(".v.", ".")];
        let furthest = absolute_difference(&tensor.values(), &ours.values()).unwrap();
        assert!(furthest <= 1e-6, "{name}: {furthest}");
        compared += 1;
    }
    assert!(compared > 0);
    let warning = folder.vlmerge("arithmetic ms.ckpt --base seed.ckpt --lambda v=0.5,l=1,vl=5 -o o.ckpt").warned();
    assert!(warning.starts_with('λ') && warning.contains("far from the usual 0 to 1"), "{warning}");
    let refusal = folder.refuses("arithmetic ms.ckpt --base seed.ckpt --lambda v=0.5,l=1 -o o2.ckpt");
    assert!(refusal.starts_with("ms.ckpt: ") && refusal.contains("lambda") && refusal.contains("vl"), "{refusal}");
    for lambda in ["x", "nan", "v=0.5,v=1", "q=1", "v=inf"] {
        folder.rejects(&format!("arithmetic ms.ckpt --base seed.ckpt --lambda {lambda} -o o2.ckpt"));
    }
}

/// A modality-specific base gives each expert its own base: here none of them differs, and the mean is left.
#[test]
fn arithmetic_on_a_base_with_experts() {
    let folder = edited(|_| ());
    folder.vlmerge("arithmetic ms.safetensors --base ms.safetensors --lambda 0.5 -o out.safetensors").done();
    let [v, l] = ["v", "l"].map(|m| small()[&format!("transformer.blocks.0.norm1.{m}.weight")].values());
    let mean: Vec<f32> = v.iter().zip(&l).map(|(v, l)| (v + l) / 2.0).collect();
    assert_eq!(folder.tensors("out.safetensors")["transformer.blocks.0.norm1.weight"].values(), mean);
    let refusal =
        folder.refuses("arithmetic ms.safetensors --base ms.safetensors --lambda 0.5 --sequential -o o.safetensors");
    assert!(refusal.contains("starts from one set of weights") && refusal.contains("base has experts"), "{refusal}");
}

#[test]
fn a_base_must_fit() {
    let folder = Folder::with_golden(&["ms.ckpt", "seed.ckpt"]);
    folder.vlmerge("convert seed.ckpt -o seed.safetensors").done();
    let mut seed = folder.tensors("seed.safetensors");
    seed.remove("transformer.blocks.0.attn.qkv.weight");
    let short = blackbox::Tensor::f32(&[1], &[0.0]);
    seed.insert("transformer.blocks.1.norm1.bias".into(), short);
    blackbox::write(&folder.path("base.safetensors"), &seed);
    let refusal = folder.refuses("arithmetic ms.ckpt --base base.safetensors --lambda 0.5 -o out.safetensors");
    for part in [
        "base.safetensors: as a base it doesn't fit: ",
        "transformer.blocks.0.attn.qkv.weight is missing",
        "transformer.blocks.1.norm1.bias is [1], not [",
    ] {
        assert!(refusal.contains(part), "{refusal}");
    }
    let refusal = folder.refuses("arithmetic ms.ckpt --base seed.ckpt --base-root nowhere --lambda 1 -o out.ckpt");
    assert!(refusal.contains("seed.ckpt: there is no root 'nowhere'"), "{refusal}");
    folder.vlmerge("arithmetic ms.ckpt --base seed.ckpt --base-root state_dict --lambda 1 -o out.ckpt").done();
}

#[test]
fn a_result_says_how_it_was_made() {
    let folder = Folder::with_golden(&["ms.ckpt", "seed.ckpt"]);
    let report = folder.json("interpolate ms.ckpt --ratio 0.3 --experts used --task vqa -o out.safetensors");
    let digest = folder.json("inspect ms.ckpt --digest")["content_digest"].clone();
    let recipe = json!({
        "tool": "vlmerge",
        "version": env!("CARGO_PKG_VERSION"),
        "method": "interpolate",
        "parameters": {"ratio": 0.3, "experts": "used", "task": "vqa"},
        "inputs": [{"role": "checkpoint", "name": "ms.ckpt", "root": "state_dict", "content_digest": digest}],
    });
    assert_eq!(report["recipe"], recipe);
    assert_eq!(report["output"], "out.safetensors");
    let expected = read(&fixtures::golden().join("expect_merge_interpolate_r0.3_used_vqa.safetensors")).len();
    assert_eq!(report["merged"], expected);
    assert_eq!(report["tensors"], folder.tensors("out.safetensors").len());
    assert_eq!(report["bytes"], folder.read("out.safetensors").len());
    let seen = folder.json("inspect out.safetensors");
    assert_eq!(seen["recipe"], recipe);
    assert_eq!(seen["config"]["variant"], "ufo");
    let own: Value = serde_json::from_str(seen["metadata"]["vlmerge.recipe"].as_str().unwrap()).unwrap();
    assert_eq!(own, recipe);

    folder.vlmerge("arithmetic ms.ckpt --base seed.ckpt --lambda 0.75 -o out.ckpt").done();
    let recipe = folder.json("inspect out.ckpt")["recipe"].clone();
    assert_eq!(recipe["method"], "arithmetic");
    assert_eq!(recipe["parameters"], json!({"lambda": 0.75, "sequential": false, "experts": "all"}));
    assert_eq!([&recipe["inputs"][0]["role"], &recipe["inputs"][1]["role"]], ["checkpoint", "base"]);
    let text = folder.vlmerge("inspect out.ckpt").done();
    assert!(text.contains("made by vlmerge") && text.contains("arithmetic"), "{text}");
}

/// Equal inputs give equal bytes, wherever they are and under whatever name the result goes.
#[test]
fn the_same_again_is_the_same_file() {
    let (here, there) = (Folder::with_golden(&["ms.ckpt"]), Folder::with_golden(&["ms.ckpt"]));
    for container in ["safetensors", "ckpt"] {
        here.vlmerge(&format!("interpolate ms.ckpt --ratio 0.5 -o a.{container}")).done();
        there.vlmerge(&format!("interpolate ./ms.ckpt --ratio 0.5 -o b.{container}")).done();
        assert!(here.read(&format!("a.{container}")) == there.read(&format!("b.{container}")), "{container}");
    }
}

/// The tensors that merging copies: those whose names have no expert's part.
fn without_experts(folder: &Folder, ms: &str) -> Tensors {
    folder.vlmerge(&format!("convert {ms} -o all.safetensors")).done();
    let is_expert = |name: &str| [".v.", ".l.", ".vl."].iter().any(|part| name.contains(part));
    folder.tensors("all.safetensors").into_iter().filter(|(name, _)| !is_expert(name)).collect()
}

fn same_bits(ours: &Tensors, merged: &Tensors, copied: &Tensors, what: &str) {
    let names: Vec<&String> = ours.keys().collect();
    let mut expected: Vec<&String> = merged.keys().chain(copied.keys()).collect();
    expected.sort();
    assert_eq!(names, expected, "{what}");
    for (name, tensor) in ours {
        let expected = merged.get(name).unwrap_or_else(|| &copied[name]);
        assert!(tensor == expected, "{what}: {name} {tensor:?} is not bit for bit {expected:?}");
    }
}
