//! `vlmerge inspect`

use std::fs;
use std::path::PathBuf;

use blackbox::{Folder, Ran, Tensor, write};
use fixtures::{LightningOptions, Variant};
use serde_json::{Value, json};

use crate::models::{files, nano, small};

/// Files under `fixtures` that are no checkpoints, or of a kind that is refused with a reason.
const REFUSED: [(&str, &str); 2] =
    [("tar.pt", "a tar file, as PyTorch wrote before"), ("zip_deflated.pt", "compressed")];

#[test]
fn everything_that_pytorch_saved_and_all_golden_files() {
    let folder = Folder::new();
    let all = [fixtures::torch(), fixtures::golden()].map(|path| fs::read_dir(path).expect("fixtures"));
    let all = all.into_iter().flatten().map(|entry| entry.unwrap().path());
    let is_checkpoint = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        [".pt", ".pth", ".ckpt", ".safetensors", ".index.json"].iter().any(|ending| name.ends_with(ending))
    };
    let mut seen = 0;
    for path in all.filter(is_checkpoint) {
        let run = |options: &[&str]| {
            let mut command = folder.command("inspect");
            command.arg(&path).args(options);
            Ran::of(command, &format!("vlmerge inspect {}", path.display()))
        };
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let message = run(&[]).failed();
            assert!(message.contains(reason), "{message}");
            continue;
        }
        let text = run(&["--scan"]).done();
        // The first line is the path.
        for line in text.lines().skip(1) {
            assert!(line.chars().count() <= 80, "{name}: more than 80 columns: {line}");
            assert!(!line.chars().any(char::is_control), "{name}: {line:?}");
        }
        let report: Value = serde_json::from_str(&run(&["--json"]).done()).unwrap();
        assert!(report["tensors"].is_array(), "{name}");
        seen += 1;
    }
    assert!(seen > 70, "{seen} files");
}

#[test]
fn json_has_everything() {
    let folder = Folder::with_golden(&["ms.ckpt", "config.json"]);
    let report = folder.json("inspect ms.ckpt");
    for key in ["format", "root", "layout", "config", "tensors", "metadata", "pickle_globals"] {
        assert!(report.get(key).is_some(), "{key}");
    }
    assert_eq!([&report["format"], &report["root"], &report["layout"]], ["pytorch-zip", "state_dict", "vl-merging"]);
    let golden: Value = serde_json::from_slice(&folder.read("config.json")).unwrap();
    for (ours, theirs) in [
        ("hidden_size", "hidden_size"),
        ("heads", "num_heads"),
        ("layers", "num_layers"),
        ("vl_start", "vl_start"),
        ("image_size", "image_size"),
        ("patch_size", "patch_size"),
        ("vocab_size", "vocab_size"),
        ("max_text_len", "max_text_len"),
        ("max_text_len_of_initckpt", "max_text_len_of_initckpt"),
    ] {
        assert_eq!(report["config"][ours], golden[theirs], "{ours}");
    }
    assert_eq!(report["config"]["variant"], "all_moe");
    let table =
        report["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == "token_type_embeddings.weight");
    let expected = json!({"name": "token_type_embeddings.weight", "dtype": "f32", "shape": [2, golden["hidden_size"]]});
    assert_eq!(table, Some(&expected));
    let globals = report["pickle_globals"].as_array().unwrap();
    assert!(globals.contains(&json!("vilt.moe.config.MOEConfig")), "{globals:?}");
    assert!(report["metadata"].as_object().unwrap().is_empty());
}

#[test]
fn text_for_people() {
    let folder = Folder::new();
    let spec = nano(Variant::AllMoe);
    fixtures::write_lightning(&folder.path("ms.ckpt"), &spec, &LightningOptions::default()).unwrap();
    let text = folder.vlmerge("inspect ms.ckpt").done();
    for part in [
        "ms.ckpt\n",
        "format    PyTorch zip, ",
        "root      state_dict  (beside it: epoch, ",
        "variant all_moe (modality-specific)",
        "layers    4, text and image together from layer 3 on",
        "optimizer state of",
        "attention vl",
        "vilt.moe.config.MOEConfig",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let listed = folder.vlmerge("inspect ms.ckpt --keys").done();
    assert!(listed.starts_with(&text), "--keys adds a list");
    let list: Vec<&str> = listed[text.len()..].lines().filter(|line| line.starts_with("  ")).collect();
    assert_eq!(list.len(), spec.tensors().len());
    assert!(list.iter().any(|line| line.contains("transformer.blocks.0.attn.v.qkv.weight")), "{listed}");
}

#[test]
fn values_that_are_no_numbers_are_found() {
    let mut tensors = small();
    let planted = |values: &[f32]| Tensor::f32(&[values.len()], values);
    tensors.insert("a.nan".into(), planted(&[1.0, f32::NAN, f32::NAN, 2.0]));
    tensors.insert("b.infinite".into(), planted(&[f32::NEG_INFINITY, 1.0, f32::INFINITY, f32::INFINITY]));
    let half = Tensor { dtype: safetensors::Dtype::F16, shape: vec![2], bytes: vec![0, 0x7c, 1, 0x7e] };
    tensors.insert("c.half".into(), half);
    let folder = Folder::new();
    write(&folder.path("odd.safetensors"), &tensors);
    write(&folder.path("fine.safetensors"), &small());
    let expected = json!([
        {"name": "a.nan", "nan": 2, "infinite": 0},
        {"name": "b.infinite", "nan": 0, "infinite": 3},
        {"name": "c.half", "nan": 1, "infinite": 1},
    ]);
    assert_eq!(folder.json("inspect odd.safetensors --scan")["scan"], expected);
    let text = folder.vlmerge("inspect odd.safetensors --scan").done();
    assert!(text.contains("'a.nan' has 2 NaN and 0 infinite values"), "{text}");
    let text = folder.vlmerge("inspect fine.safetensors --scan").done();
    assert!(text.contains("every floating-point value is finite"), "{text}");
    assert_eq!(folder.json("inspect fine.safetensors --scan")["scan"], json!([]));
    assert!(folder.json("inspect odd.safetensors").get("scan").is_none(), "values are read when asked for");
}

#[test]
fn roots() {
    let folder = Folder::with_golden(&["ms.ckpt"]);
    let count = |root: &str| {
        let report = folder.json(&format!("inspect ms.ckpt --root {root}"));
        assert_eq!(report["root"], root);
        report["tensors"].as_array().unwrap().len()
    };
    let (state, optimizer, all) = (count("state_dict"), count("optimizer_states"), count("."));
    assert!(optimizer > 0 && state + optimizer == all, "{state} + {optimizer}, {all}");
    assert_eq!(folder.json("inspect ms.ckpt")["root"], "state_dict");
    let refusal = folder.refuses("inspect ms.ckpt --root model.ema");
    assert!(refusal.contains("there is no root 'model") && refusal.contains("state_dict, "), "{refusal}");
    let folder = files(&[("a.safetensors", &[("a", Tensor::f32(&[1], &[1.0]))])]);
    folder.vlmerge("inspect a.safetensors --root .").done();
    let refusal = folder.refuses("inspect a.safetensors --root model");
    assert!(refusal.contains("no roots to choose from"), "{refusal}");
}

/// A digest follows the tensors, not the container.
#[test]
fn digests() {
    let folder = files(&[("a.safetensors", &[("a", Tensor::f32(&[1], &[1.0]))])]);
    folder.vlmerge("convert a.safetensors -o b.ckpt").done();
    let digest = folder.json("inspect a.safetensors --digest")["content_digest"].clone();
    assert_eq!(digest, folder.json("inspect b.ckpt --digest")["content_digest"]);
    let text = folder.vlmerge("inspect b.ckpt --digest").done();
    assert!(text.contains(digest.as_str().unwrap()), "{text}");
    write(&folder.path("a.safetensors"), &[("a".to_string(), Tensor::f32(&[1], &[2.0]))].into());
    assert_ne!(digest, folder.json("inspect a.safetensors --digest")["content_digest"]);
}

/// A file that merging refuses can be looked at, and inspect says what is odd.
#[test]
fn oddities() {
    let folder = Folder::new();
    let mut tensors = small();
    tensors.remove("transformer.blocks.0.attn.l.qkv.weight");
    write(&folder.path("missing.safetensors"), &tensors);
    let text = folder.vlmerge("inspect missing.safetensors").done();
    assert!(text.contains("1 expert missing though siblings are there"), "{text}");
    let mut tensors = small();
    tensors.insert("transformer.blocks.0.attn.l.qkv.weight".into(), Tensor::f32(&[1], &[0.0]));
    write(&folder.path("shapes.safetensors"), &tensors);
    let text = folder.vlmerge("inspect shapes.safetensors").done();
    assert!(text.contains("experts must have one shape"), "{text}");
}

/// Names that would play tricks on a terminal are escaped.
#[test]
fn hostile_names() {
    let name = "a\u{1b}[31m\nb\u{202e}c";
    let folder = files(&[("a.safetensors", &[(name, Tensor::f32(&[1], &[f32::NAN]))])]);
    let text = folder.vlmerge("inspect a.safetensors --keys --scan").done();
    assert!(text.contains(r"a\u{1b}[31m\nb\u{202e}c"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
    assert_eq!(folder.json("inspect a.safetensors")["tensors"][0]["name"], name);
}
