//! `vlmerge convert`

use blackbox::{Folder, Tensor, read, write};
use fixtures::Variant;
use half::{bf16, f16};
use serde_json::json;

use crate::models::{files, nano};

#[test]
fn there_and_back_is_equal() {
    let folder = Folder::with_golden(&["ms.ckpt"]);
    folder.vlmerge("convert ms.ckpt -o one.safetensors").done();
    folder.vlmerge("convert one.safetensors -o two.ckpt").done();
    folder.vlmerge("convert two.ckpt -o three.safetensors").done();
    for (a, b) in [("ms.ckpt", "one.safetensors"), ("ms.ckpt", "two.ckpt"), ("two.ckpt", "three.safetensors")] {
        let printed = folder.vlmerge(&format!("diff {a} {b}")).done();
        assert!(printed.starts_with("equal: "), "{a} {b}: {printed}");
    }
    assert!(folder.tensors("one.safetensors") == folder.tensors("three.safetensors"));
}

/// Every ending that PyTorch's files go by.
#[test]
fn the_ending_decides_what_is_written() {
    let folder = Folder::with_golden(&["model_ufo.safetensors"]);
    for (ending, format) in [
        ("safetensors", "safetensors"),
        ("ckpt", "pytorch-zip"),
        ("pth", "pytorch-zip"),
        ("pt", "pytorch-zip"),
        ("bin", "pytorch-zip"),
        ("CKPT", "pytorch-zip"),
    ] {
        folder.vlmerge(&format!("convert model_ufo.safetensors -o out.{ending}")).done();
        assert_eq!(folder.json(&format!("inspect out.{ending}"))["format"], format, "{ending}");
    }
}

#[test]
fn f16_and_bf16_as_the_half_crate_rounds() {
    let folder = Folder::new();
    fixtures::write_safetensors(&folder.path("ms.safetensors"), &nano(Variant::AllMoe).state_dict()).unwrap();
    let wide = folder.tensors("ms.safetensors");
    let f16_bytes = |value: f32| f16::from_f32(value).to_le_bytes();
    let bf16_bytes = |value: f32| bf16::from_f32(value).to_le_bytes();
    let rounded = |dtype: &str, value: f32| if dtype == "f16" { f16_bytes(value) } else { bf16_bytes(value) };
    for dtype in ["f16", "bf16"] {
        for container in ["safetensors", "ckpt"] {
            folder.vlmerge(&format!("convert ms.safetensors --dtype {dtype} -o narrow.{container} --force")).done();
        }
        folder.vlmerge("diff narrow.safetensors narrow.ckpt").done();
        let narrow = folder.tensors("narrow.safetensors");
        for (name, tensor) in &wide {
            if tensor.dtype == safetensors::Dtype::I64 {
                assert!(narrow[name] == *tensor, "{name}: integers stay");
                continue;
            }
            let expected: Vec<u8> = tensor.values().into_iter().flat_map(|value| rounded(dtype, value)).collect();
            assert!(narrow[name].bytes == expected, "{dtype}: {name}");
        }
        // Widening again loses nothing.
        folder.vlmerge("convert narrow.ckpt --dtype f32 -o wide.safetensors --force").done();
        folder.vlmerge(&format!("convert wide.safetensors --dtype {dtype} -o again.safetensors --force")).done();
        folder.vlmerge("diff narrow.ckpt again.safetensors").done();
    }
}

#[test]
fn values_beyond_the_range_are_counted() {
    let a = Tensor::f32(&[5], &[70_000.0, -1e30, 65_504.0, f32::INFINITY, f32::NAN]);
    let folder = files(&[("a.safetensors", &[("a", a)])]);
    let line = "convert a.safetensors --dtype f16 -o b.safetensors --force";
    assert_eq!(folder.vlmerge(line).warned(), "2 values beyond the dtype's range became infinite");
    folder.vlmerge(&format!("{line} --quiet")).done();
    let report = folder.json(&format!("{line} --quiet"));
    assert_eq!(report["overflowed"], 2);
    folder.vlmerge("convert a.safetensors --dtype bf16 -o b.safetensors --force").done();

    let wide = Tensor { dtype: safetensors::Dtype::F64, shape: vec![1], bytes: 1e300f64.to_le_bytes().into() };
    let folder = files(&[("a.safetensors", &[("a", wide)])]);
    let warning = folder.vlmerge("convert a.safetensors --dtype f32 -o b.safetensors").warned();
    assert_eq!(warning, "1 value beyond the dtype's range became infinite");
}

/// What `--root .` finds in a Lightning file, optimizer states included.
#[test]
fn another_root() {
    let folder = Folder::with_golden(&["ms.ckpt"]);
    folder.vlmerge("convert ms.ckpt --root . -o all.safetensors").done();
    folder.vlmerge("convert ms.ckpt --root optimizer_states -o optimizer.safetensors").done();
    folder.vlmerge("convert ms.ckpt -o state.safetensors").done();
    let [all, optimizer, state] =
        ["all", "optimizer", "state"].map(|name| folder.tensors(&format!("{name}.safetensors")));
    assert_eq!(all.len(), optimizer.len() + state.len());
    for (prefix, part) in [("optimizer_states", optimizer), ("state_dict", state)] {
        for (name, tensor) in part {
            assert!(all[&format!("{prefix}.{name}")] == tensor, "{prefix}.{name}");
        }
    }
}

/// Metadata that others wrote stays, and a converted merge still says how it was merged.
#[test]
fn metadata_is_kept() {
    let folder = Folder::with_golden(&["ms.ckpt"]);
    folder.vlmerge("interpolate ms.ckpt --ratio 0.5 -o merged.ckpt").done();
    folder.vlmerge("convert merged.ckpt --dtype bf16 -o merged.safetensors").done();
    let recipe = folder.json("inspect merged.safetensors")["recipe"].clone();
    assert_eq!(recipe["method"], "convert");
    assert_eq!(recipe["parameters"]["dtype"], "bf16");
    assert_eq!(recipe["parameters"]["of"]["method"], "interpolate");
    let text = folder.vlmerge("inspect merged.safetensors").done();
    assert!(text.contains("\nmade by vlmerge") && text.contains("\nfrom a file made by vlmerge"), "{text}");

    let metadata = [("author".to_string(), "someone".to_string())].into();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![1], &[7]).unwrap();
    folder.write("a.safetensors", safetensors::serialize([("a", view)], Some(metadata)).unwrap());
    folder.vlmerge("convert a.safetensors -o b.pt").done();
    folder.vlmerge("convert b.pt -o c.safetensors").done();
    assert_eq!(folder.json("inspect c.safetensors")["metadata"]["author"], "someone");
}

/// What safetensors can't hold is refused with the way out.
#[test]
fn dtypes_that_only_pytorch_has() {
    let folder = Folder::new();
    std::fs::copy(fixtures::torch().join("zip_dtypes.pt"), folder.path("dtypes.pt")).unwrap();
    let refusal = folder.refuses("convert dtypes.pt -o out.safetensors");
    let expected = "out.safetensors: tensor 'complex128': safetensors has no complex128 values; write a .ckpt instead";
    assert_eq!(refusal, expected);
    folder.vlmerge("convert dtypes.pt -o out.ckpt").done();
    folder.vlmerge("diff dtypes.pt out.ckpt").done();
}

/// Tensors of no elements, of no dimensions, and none at all.
#[test]
fn empty_things() {
    let folder = Folder::new();
    let tensors = [("empty", Tensor::f32(&[0, 3], &[])), ("scalar", Tensor::f32(&[], &[2.0]))];
    write(&folder.path("a.safetensors"), &tensors.map(|(name, tensor)| (name.to_string(), tensor)).into());
    write(&folder.path("none.safetensors"), &Default::default());
    for name in ["a", "none"] {
        folder.vlmerge(&format!("convert {name}.safetensors -o {name}.ckpt")).done();
        folder.vlmerge(&format!("convert {name}.ckpt -o {name}.back.safetensors")).done();
        assert!(
            folder.tensors(&format!("{name}.back.safetensors")) == read(&folder.path(format!("{name}.safetensors")))
        );
        folder.vlmerge(&format!("inspect {name}.ckpt")).done();
    }
    assert_eq!(folder.json("inspect a.ckpt")["tensors"][1], json!({"name": "scalar", "dtype": "f32", "shape": []}));
}
