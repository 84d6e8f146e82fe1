//! `vlmerge diff`

use blackbox::{Folder, Ran, Tensor};
use serde_json::json;

use crate::models::files;

fn pair(a: &[(&str, Tensor)], b: &[(&str, Tensor)]) -> Folder {
    files(&[("a.safetensors", a), ("b.safetensors", b)])
}

/// Output of a diff that must find the files different.
#[track_caller]
fn differs(ran: Ran) -> String {
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""), "{ran:#?}");
    ran.stdout
}

#[test]
fn equal_files() {
    let folder = pair(&[("a", Tensor::f32(&[2], &[1.0, f32::NAN]))], &[("a", Tensor::f32(&[2], &[1.0, f32::NAN]))]);
    let printed = folder.vlmerge("diff a.safetensors b.safetensors").done();
    assert_eq!(printed, "equal: 1 tensor with the same names, shapes, dtypes and values\n");
    let report = folder.json("diff a.safetensors b.safetensors");
    let expected = json!({
        "a": "a.safetensors", "b": "b.safetensors", "tolerance": 0.0,
        "compared": 1, "beyond": 0, "differences": [],
    });
    assert_eq!(report, expected);
}

#[test]
fn a_tolerance_is_the_largest_absolute_difference() {
    let folder = pair(&[("a", Tensor::f32(&[2], &[1.0, 2.0]))], &[("a", Tensor::f32(&[2], &[1.0, 2.25]))]);
    let printed = differs(folder.vlmerge("diff a.safetensors b.safetensors"));
    assert!(printed.ends_with("different: 1 tensor beyond tolerance 0, 1 tensor compared\n"), "{printed}");
    differs(folder.vlmerge("diff a.safetensors b.safetensors --tolerance 0.24"));
    for tolerance in ["0.25", "1e9", "inf"] {
        let printed = folder.vlmerge(&format!("diff a.safetensors b.safetensors --tolerance {tolerance}")).done();
        assert!(printed.contains("equal within"), "{printed}");
    }
    let report = folder.json("diff a.safetensors b.safetensors --tolerance 0.25");
    let expected = json!([{
        "name": "a", "kind": "values", "dtype_a": "f32", "dtype_b": "f32",
        "max_abs": 0.25, "max_rel": 0.25 / 2.25, "differing": 1, "elements": 2, "beyond": false,
    }]);
    assert_eq!(report["differences"], expected);
    for tolerance in ["nan", "x", "-1"] {
        folder.rejects(&format!("diff a.safetensors b.safetensors --tolerance={tolerance}"));
    }
}

#[test]
fn shapes_dtypes_and_missing_names_differ_at_any_tolerance() {
    let one = || Tensor::f32(&[1], &[1.0]);
    let half = Tensor { dtype: safetensors::Dtype::F16, shape: vec![1], bytes: vec![0, 0x3c] };
    let folder = pair(
        &[("dtype", one()), ("left", one()), ("shape", one())],
        &[("dtype", half), ("right", one()), ("shape", Tensor::f32(&[1, 1], &[1.0]))],
    );
    let ran = folder.vlmerge("diff a.safetensors b.safetensors --tolerance 1e9 --json");
    let report: serde_json::Value = serde_json::from_str(&differs(ran)).unwrap();
    let found = report["differences"].as_array().unwrap().iter();
    let found: Vec<_> = found.map(|d| (d["name"].as_str().unwrap(), d["kind"].as_str().unwrap())).collect();
    assert_eq!(found, [("dtype", "values"), ("left", "only_in_a"), ("shape", "shape"), ("right", "only_in_b")]);
    assert_eq!((&report["beyond"], &report["compared"]), (&json!(4), &json!(2)));
    let printed = differs(folder.vlmerge("diff a.safetensors b.safetensors --tolerance 1e9"));
    for part in ["f32 | f16", "only in A", "only in B", "shape [1] | [1, 1]"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
}

/// NaN against a number is infinitely far; 64-bit integers are compared as such.
#[test]
fn values_that_are_no_ordinary_numbers() {
    let folder = pair(&[("a", Tensor::f32(&[1], &[f32::NAN]))], &[("a", Tensor::f32(&[1], &[0.0]))]);
    differs(folder.vlmerge("diff a.safetensors b.safetensors --tolerance 1e300"));
    let folder = pair(&[("a", Tensor::i64(&[1 << 53, 3]))], &[("a", Tensor::i64(&[(1 << 53) + 1, 3]))]);
    let printed = differs(folder.vlmerge("diff a.safetensors b.safetensors"));
    assert!(printed.contains("1.000e0") && printed.contains("1 of 2"), "{printed}");
    folder.vlmerge("diff a.safetensors b.safetensors --tolerance 1").done();
}

#[test]
fn long_lists_are_cut_unless_all_is_asked_for() {
    let names: Vec<String> = (0..30).map(|i| format!("transformer.blocks.{i}.attn.proj.weight")).collect();
    let tensors = |value| -> Vec<(&str, Tensor)> {
        names.iter().map(|name| (name.as_str(), Tensor::f32(&[1000], &[value; 1000]))).collect()
    };
    let folder = pair(&tensors(1.0), &tensors(2.0));
    let printed = differs(folder.vlmerge("diff a.safetensors b.safetensors"));
    assert!(printed.contains("… and 10 more (--all lists them)"), "{printed}");
    // Rows too wide for 80 columns have two lines.
    assert_eq!(printed.lines().count(), 2 * 21 + 2);
    let printed = differs(folder.vlmerge("diff a.safetensors b.safetensors --all"));
    assert_eq!(printed.lines().count(), 2 * 31 + 1);
    assert!(printed.lines().all(|line| line.chars().count() <= 80), "{printed}");
    assert_eq!(folder.vlmerge("diff a.safetensors b.safetensors --quiet").stdout, "");
}

/// Two places of one file.
#[test]
fn roots_are_chosen_for_each_side() {
    let folder = Folder::with_golden(&["ms.ckpt"]);
    folder.vlmerge("convert ms.ckpt --root optimizer_states -o o.safetensors").done();
    folder.vlmerge("diff ms.ckpt o.safetensors --root-a optimizer_states").done();
    folder.vlmerge("diff o.safetensors ms.ckpt --root-b optimizer_states").done();
    differs(folder.vlmerge("diff ms.ckpt o.safetensors"));
    let refusal = folder.refuses("diff ms.ckpt nope.ckpt");
    assert_eq!(refusal, "nope.ckpt: cannot open: no such file or directory");
}
