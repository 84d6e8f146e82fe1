//! Inputs that can't be merged: one line, exit status 1, and nothing is written.

use std::fs;

use blackbox::{Folder, Tensor};
use safetensors::Dtype;

use crate::models::edited;

const V: &str = "transformer.blocks.0.attn.v.qkv.weight";
const L: &str = "transformer.blocks.0.attn.l.qkv.weight";

/// The commands that read one checkpoint and write one.
fn lines(input: &str) -> [String; 3] {
    [
        format!("inspect {input}"),
        format!("convert {input} -o out.safetensors"),
        format!("interpolate {input} --ratio 0.5 -o out.safetensors"),
    ]
}

#[test]
fn things_that_are_no_checkpoints() {
    let folder = Folder::new();
    fs::create_dir(folder.path("folder")).unwrap();
    folder.write("empty.ckpt", "");
    folder.write("text.ckpt", "Dear reader,\nthis is no checkpoint.\n");
    folder.write("page.ckpt", "<!DOCTYPE html><html><body>404</body></html>");
    folder.write("other.json", "{\"a\": 1}");
    folder.write("noise.ckpt", [0x93u8, 0x4e, 0x55, 0x00, 0xff].repeat(100));
    for (input, reason) in [
        ("nope.ckpt", "cannot open: no such file or directory"),
        ("no/folder.ckpt", "cannot open: no such file or directory"),
        ("folder", "this is a folder, not a checkpoint file"),
        ("empty.ckpt", "the file is empty"),
        ("text.ckpt", "a text file, not a PyTorch or safetensors checkpoint"),
        ("page.ckpt", ""),
        ("other.json", "a JSON file that is no index of safetensors shards"),
        ("noise.ckpt", ""),
    ] {
        for line in lines(input) {
            let refusal = folder.refuses(&line);
            assert!(refusal.starts_with(&format!("{input}: {reason}")), "{line}: {refusal}");
        }
    }
}

#[cfg(unix)]
#[test]
fn devices() {
    let folder = Folder::new();
    for line in lines("/dev/null") {
        assert_eq!(folder.refuses(&line), "/dev/null: this is not a regular file");
    }
}

/// A download that stopped: at any length, it is refused or (within the last entries of a zip) never misread.
#[test]
fn files_that_were_cut_short() {
    let folder = Folder::with_golden(&["ms.ckpt", "model_all_moe.safetensors"]);
    for name in ["ms.ckpt", "model_all_moe.safetensors"] {
        let whole = folder.read(name);
        for share in [1, 10, 50, 90, 99] {
            folder.write("cut.ckpt", &whole[..whole.len() * share / 100]);
            let refusal = folder.refuses("interpolate cut.ckpt --ratio 0.5 -o out.safetensors");
            assert!(refusal.starts_with("cut.ckpt: "), "{refusal}");
        }
        folder.write("cut.ckpt", &whole[..whole.len() - 1]);
        folder.refuses("interpolate cut.ckpt --ratio 0.5 -o out.safetensors");
    }
}

#[test]
fn a_modality_agnostic_checkpoint() {
    let folder = Folder::with_golden(&["seed.ckpt", "ms.ckpt"]);
    folder.vlmerge("interpolate ms.ckpt --ratio 0.5 -o merged.ckpt").done();
    for input in ["seed.ckpt", "merged.ckpt"] {
        let expected = format!("{input}: no experts found: this is already modality-agnostic");
        assert_eq!(folder.refuses(&format!("interpolate {input} --ratio 0.5 -o out.ckpt")), expected);
        assert_eq!(folder.refuses(&format!("arithmetic {input} --base seed.ckpt --lambda 1 -o out.ckpt")), expected);
    }
}

#[test]
fn a_checkpoint_of_something_else() {
    let folder = Folder::with_golden(&["grams_irtr.pth"]);
    let refusal = folder.refuses("interpolate grams_irtr.pth --ratio 0.5 -o out.ckpt");
    assert!(refusal.contains("of no known layout") || refusal.contains("no experts found"), "{refusal}");
}

#[test]
fn experts_that_do_not_match() {
    let line = "interpolate ms.safetensors --ratio 0.5 -o out.safetensors";
    let refused = |edit: &dyn Fn(&mut blackbox::Tensors)| edited(edit).refuses(line);

    let refusal = refused(&|tensors| drop(tensors.insert(V.into(), Tensor::f32(&[6, 4], &[0.0; 24]))));
    let shapes = format!("layer 0: {L} is [12, 4], {V} is [6, 4]: experts must have one shape");
    assert_eq!(refusal, format!("ms.safetensors: {shapes}"));

    let refusal = refused(&|tensors| drop(tensors.remove(L)));
    assert_eq!(refusal, format!("ms.safetensors: 1 expert missing (of 4 slots that need them): {L}"));

    let half = || Tensor { dtype: Dtype::F16, shape: vec![12, 4], bytes: vec![0; 96] };
    let refusal = refused(&|tensors| drop(tensors.insert(V.into(), half())));
    assert!(refusal.contains("experts must have one dtype (vlmerge convert --dtype f32 gives them one)"), "{refusal}");

    let integers = || Tensor { dtype: Dtype::I32, shape: vec![12, 4], bytes: vec![0; 192] };
    let refusal = refused(&|tensors| {
        for name in [V, L] {
            tensors.insert(name.into(), integers());
        }
    });
    assert!(refusal.contains("i32 values can't be merged: only f64, f32, f16 and bf16"), "{refusal}");

    let merged = "transformer.blocks.0.norm1.weight";
    let refusal = refused(&|tensors| drop(tensors.insert(merged.into(), Tensor::f32(&[4], &[0.0; 4]))));
    assert!(refusal.contains(merged) && refusal.contains("it has the name that"), "{refusal}");
}

/// The way out that the message about dtypes names.
#[test]
fn mixed_dtypes_after_conversion() {
    let half = Tensor { dtype: Dtype::F16, shape: vec![12, 4], bytes: vec![0; 96] };
    let folder = edited(|tensors| drop(tensors.insert(V.into(), half)));
    folder.vlmerge("convert ms.safetensors --dtype f32 -o one.safetensors").done();
    folder.vlmerge("interpolate one.safetensors --ratio 0.5 -o out.safetensors").done();
}

/// A `vl` expert that only the last layers have is not missed where `used` doesn't need it, and is where it does.
#[test]
fn a_missing_vl_expert_matters_where_it_is_used() {
    let folder = edited(|tensors| drop(tensors.remove("transformer.blocks.1.norm1.vl.weight")));
    let line = "interpolate ms.safetensors --ratio 0.5 -o out.safetensors --force";
    folder.vlmerge(&format!("{line} --experts used --task irtr")).done();
    for options in ["", "--experts used --task vqa", "--experts used --task nlvr2"] {
        let refusal = folder.refuses(&format!("{line} {options}"));
        assert!(refusal.ends_with("transformer.blocks.1.norm1.vl.weight"), "{refusal}");
    }
}
