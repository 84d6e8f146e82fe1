//! Other families' names, and names that a user describes.

use std::fs;
use std::path::Path;

use blackbox::{Folder, Tensors, write};
use fixtures::{StateDict, Variant};

use crate::models::{edited, nano, small};

fn model(state: &StateDict) -> Folder {
    let folder = Folder::new();
    fixtures::write_safetensors(&folder.path("ms.safetensors"), state).unwrap();
    folder
}

/// Checks one merged tensor as the mean of two.
fn is_mean(out: &Tensors, ms: &Tensors, merged: &str, v: &str, l: &str) {
    let (v, l) = (ms[v].values(), ms[l].values());
    assert_eq!(v.len(), l.len(), "{merged}");
    let expected: Vec<f32> = v.iter().zip(&l).map(|(v, l)| 0.5 * v + 0.5 * l).collect();
    assert_eq!(out[merged].values(), expected, "{merged}");
}

#[test]
fn vlmo() {
    let folder = model(&fixtures::layouts::vlmo(&nano(Variant::FfnMoe)));
    assert_eq!(folder.json("inspect ms.safetensors")["layout"], "vlmo");
    folder.vlmerge("interpolate ms.safetensors --ratio 0.5 -o out.safetensors").done();
    let (ms, out) = (folder.tensors("ms.safetensors"), folder.tensors("out.safetensors"));
    let prefix = if ms.contains_key("blocks.0.mlp_imag.fc1.weight") { "" } else { "transformer." };
    let name = |part: &str| format!("{prefix}blocks.0.{part}.fc1.weight");
    is_mean(&out, &ms, &name("mlp"), &name("mlp_imag"), &name("mlp_text"));
    assert!(!out.keys().any(|name| name.contains("_imag.") || name.contains("_text.")), "{:?}", out.keys());
}

/// Positions of image and text are different things and stay apart.
#[test]
fn beit3() {
    let folder = model(&fixtures::layouts::beit3(&nano(Variant::AllMoe)));
    assert_eq!(folder.json("inspect ms.safetensors")["layout"], "beit3");
    folder.vlmerge("interpolate ms.safetensors --ratio 0.5 -o out.safetensors").done();
    let (ms, out) = (folder.tensors("ms.safetensors"), folder.tensors("out.safetensors"));
    let name = |modality: &str| format!("beit3.encoder.layers.0.ffn{modality}.fc1.weight");
    is_mean(&out, &ms, &name(""), &name(".A"), &name(".B"));
    let kept = out.keys().filter(|name| name.contains(".A.") || name.contains(".B."));
    let positions = ["A", "B"].map(|modality| format!("beit3.encoder.embed_positions.{modality}.weight"));
    assert_eq!(kept.collect::<Vec<_>>(), positions.iter().collect::<Vec<_>>());
}

#[test]
fn every_variant_of_vl_merging() {
    for variant in Variant::ALL {
        let folder = model(&nano(variant).state_dict());
        assert_eq!(folder.json("inspect ms.safetensors")["config"]["variant"], variant.name());
        let line = "interpolate ms.safetensors --ratio 0.5 -o out.safetensors";
        if variant == Variant::Ufo {
            let refusal = folder.refuses(line);
            assert_eq!(refusal, "ms.safetensors: no experts found: this is already modality-agnostic");
            continue;
        }
        folder.vlmerge(line).done();
        // Merged, every variant has the names and shapes of the modality-agnostic one.
        let ufo = model(&nano(Variant::Ufo).state_dict()).tensors("ms.safetensors");
        let described = |tensors: Tensors| tensors.into_iter().map(|(name, t)| (name, t.shape)).collect::<Vec<_>>();
        assert_eq!(described(folder.tensors("out.safetensors")), described(ufo), "{}", variant.name());
    }
}

#[test]
fn a_layout_by_name_or_from_a_file() {
    let folder = edited(|_| ());
    let line = "interpolate ms.safetensors --ratio 0.5 --force -o out.safetensors";
    folder.vlmerge(line).done();
    let expected = folder.tensors("out.safetensors");
    folder.vlmerge(&format!("{line} --layout vl-merging")).done();
    assert!(folder.tensors("out.safetensors") == expected);

    // The same rules for names of another code.
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/src/layouts/vl-merging.toml");
    let rules = fs::read_to_string(&builtin).unwrap();
    folder.write("own.toml", rules.replace("name = \"vl-merging\"", "name = \"own\"").replace("blocks.", "stages."));
    let renamed = |tensors: Tensors| -> Tensors {
        tensors.into_iter().map(|(name, tensor)| (name.replace("blocks.", "stages."), tensor)).collect()
    };
    write(&folder.path("ms.safetensors"), &renamed(small()));
    let refusal = folder.refuses(line);
    assert!(refusal.contains("of no known layout; --layout FILE.toml describes another"), "{refusal}");
    let warning = folder.vlmerge(&format!("{line} --layout own.toml")).warned();
    assert!(
        warning.starts_with("own.toml: the rule of norm2 for '") && warning.contains("matches no tensor"),
        "{warning}"
    );
    assert!(folder.tensors("out.safetensors") == renamed(expected));
    assert_eq!(folder.json("inspect ms.safetensors --layout own.toml --quiet")["layout"], "own");
}

#[test]
fn layouts_that_cannot_be_used() {
    let folder = edited(|_| ());
    folder.write("broken.toml", "name = ");
    folder.write("other.toml", "flavour = \"salt\"");
    for (layout, part) in [
        ("nonsense", "there is no layout 'nonsense': give vl-merging, "),
        ("nope.toml", "nope.toml: cannot read the layout: no such file"),
        ("broken.toml", "broken.toml: "),
        ("other.toml", "other.toml: "),
    ] {
        for command in ["interpolate ms.safetensors --ratio 0.5 -o out.safetensors", "inspect ms.safetensors"] {
            let refusal = folder.refuses(&format!("{command} --layout {layout}"));
            assert!(refusal.contains(part), "{refusal}");
        }
    }
}
