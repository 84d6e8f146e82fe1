//! VLMo's, BEiT-3's and a user's own names, through the commands that work on any layout.

mod support;

use std::collections::BTreeSet;

use fixtures::layouts::{Beit3Head, VlmoPositions, beit3, beit3_for, vlmo_with};
use fixtures::{ModelSpec, Size, StateDict, Variant};
use support::{Folder, all_values, example_layout, furthest, names, shape, state_dict, values};

/// The published sizes' depths, narrow: hidden size 16, 2 × 2 patches.
fn spec(layers: usize, vl_start: usize) -> ModelSpec {
    ModelSpec { layers, vl_start, ..ModelSpec::preset(Size::Nano, Variant::FfnMoe) }
}

#[test]
fn vlmo_base_base_plus_and_large() {
    use VlmoPositions::{Absolute, Relative};
    let folder = Folder::new();
    for (layers, start, positions) in [(12, 10, Relative), (24, 21, Absolute), (24, 21, Relative)] {
        folder.zip("vlmo.pth", &vlmo_with(&spec(layers, start), positions), Some("module"));
        let inspected = folder.json(&["inspect", "vlmo.pth"]);
        let config = &inspected["config"];
        assert_eq!((&inspected["layout"], &config["variant"]), (&"vlmo".into(), &"ffn_moe".into()));
        assert_eq!(
            (&config["layers"], &config["vl_start"], &config["image_grid"]),
            (&layers.into(), &start.into(), &2.into())
        );
        assert_eq!(inspected["warnings"].as_array().unwrap().len(), 0, "{:?}", inspected["warnings"]);

        let before = folder.open("vlmo.pth");
        folder.ok(&["interpolate", "vlmo.pth", "--ratio", "0.25", "-o", "merged.safetensors", "--force"]);
        let merged = folder.open("merged.safetensors");
        let expert =
            |layer, modality: &str| values(&before, &format!("transformer.blocks.{layer}.mlp_{modality}.fc1.weight"));
        let slot = |layer| values(&merged, &format!("transformer.blocks.{layer}.mlp.fc1.weight"));
        let shallow: Vec<f64> = mixed(&[(0.25, expert(0, "imag")), (0.75, expert(0, "text"))]);
        assert!(furthest(&slot(0), &shallow) < 1e-7);
        let third = 1.0 / 3.0;
        let deep = mixed(&[
            (0.5 * third, expert(start, "imag")),
            (1.5 * third, expert(start, "text")),
            (third, expert(start, "vl")),
        ]);
        assert!(furthest(&slot(start), &deep) < 1e-7);
        // Shared tensors, heads and positions pass through.
        for name in names(&before).into_iter().filter(|name| !name.contains("mlp_") && !name.contains("norm2_")) {
            assert_eq!(values(&merged, name), values(&before, name), "{name}");
        }
        assert!(!names(&merged).into_iter().any(|name| name.contains("mlp_") || name.contains("norm2_")));

        // Arithmetic over its own merge: base + Σ (expert − base).
        let arithmetic =
            ["arithmetic", "vlmo.pth", "--base", "merged.safetensors", "--lambda", "1", "-o", "sum.safetensors"];
        folder.ok(&[&arithmetic[..], &["--force"]].concat());
        let sum = mixed(&[(-1.0, slot(0)), (1.0, expert(0, "imag")), (1.0, expert(0, "text"))]);
        let summed = values(&folder.open("sum.safetensors"), "transformer.blocks.0.mlp.fc1.weight");
        assert!(furthest(&summed, &sum) < 1e-6);

        folder.ok(&["resize", "merged.safetensors", "--image-size", "64", "-o", "resized.safetensors", "--force"]);
        let resized = folder.open("resized.safetensors");
        match positions {
            Relative => assert_eq!(shape(&resized, "relative_position_bias_table"), [86, 2 * layers]),
            Absolute => assert_eq!(shape(&resized, "transformer.pos_embed"), [1, 17, 16]),
        }
    }
}

#[test]
fn beit3_base_and_large_with_any_head() {
    use Beit3Head::{Nlvr2, Retrieval, Vqa};
    let folder = Folder::new();
    let heads: [(Beit3Head, &str, &[&str]); 3] = [
        (Retrieval, "irtr", &["language_head.weight", "vision_head.weight", "logit_scale"]),
        (Vqa, "vqa", &["pooler.norm.weight", "pooler.dense.bias", "head.0.weight", "head.1.bias", "head.3.weight"]),
        (Nlvr2, "nlvr2", &["head.norm1.weight", "head.dense1.weight", "head.norm2.bias", "head.dense2.weight"]),
    ];
    for (layers, (head, task, kept)) in [12, 24].into_iter().flat_map(|layers| heads.map(|head| (layers, head))) {
        folder.zip("beit3.pth", &beit3_for(&spec(layers, 0), head), Some("model"));
        let before = folder.open("beit3.pth");
        folder.ok(&["interpolate", "beit3.pth", "--ratio", "0.25", "-o", "merged.safetensors", "--force"]);
        let merged = folder.open("merged.safetensors");
        for name in kept.iter().copied().chain(["A", "B"].map(|way| match way {
            "A" => "beit3.encoder.embed_positions.A.weight",
            _ => "beit3.encoder.embed_positions.B.weight",
        })) {
            assert_eq!(values(&merged, name), values(&before, name), "{name}");
        }
        let last = layers - 1;
        for part in [
            "self_attn.q_proj.#.weight",
            "self_attn.inner_attn_ln.#.bias",
            "ffn.#.fc2.weight",
            "ffn.#.ffn_layernorm.weight",
            "final_layer_norm.#.bias",
        ] {
            let name = |way: &str| format!("beit3.encoder.layers.{last}.{}", part.replace("#.", way));
            let expected = mixed(&[(0.25, values(&before, &name("A."))), (0.75, values(&before, &name("B.")))]);
            assert!(furthest(&values(&merged, &name("")), &expected) < 1e-6, "{part}");
        }
        for (file, variant) in [("beit3.pth", "all_moe"), ("merged.safetensors", "ufo")] {
            let inspected = folder.json(&["inspect", file]);
            let config = &inspected["config"];
            assert_eq!(
                (&inspected["layout"], &config["variant"], &config["layers"]),
                (&"beit3".into(), &variant.into(), &layers.into())
            );
            assert!(config["tasks"].as_object().unwrap().contains_key(task), "{config}");
            assert_eq!(inspected["warnings"].as_array().unwrap().len(), 0, "{:?}", inspected["warnings"]);
        }
        folder.ok(&["resize", "merged.safetensors", "--image-size", "48", "-o", "resized.safetensors", "--force"]);
        assert_eq!(shape(&folder.open("resized.safetensors"), "beit3.encoder.embed_positions.A.weight"), [12, 16]);
    }
}

#[test]
fn multiway_writes_a_merge_under_every_experts_name() {
    let folder = Folder::new();
    let cases: [(&str, StateDict, &[&str]); 3] = [
        ("beit3", beit3(&spec(2, 0)), &["A", "B"]),
        ("vlmo", vlmo_with(&spec(2, 1), VlmoPositions::Relative), &["imag", "text", "vl"]),
        ("vl-merging", spec(2, 1).state_dict(), &["v", "l", "vl"]),
    ];
    for (layout, state_dict, spellings) in cases {
        folder.zip("ms.pth", &state_dict, Some("model"));
        folder.ok(&["interpolate", "ms.pth", "--ratio", "0.25", "-o", "merged.pth", "--force"]);
        folder.ok(&["interpolate", "ms.pth", "--ratio", "0.25", "--emit", "multiway", "-o", "multiway.pth", "--force"]);
        let [before, merged, multiway] = ["ms.pth", "merged.pth", "multiway.pth"].map(|file| folder.open(file));
        // The same file to code that loads it: names, order, shapes, and the key the tensors are under.
        assert_eq!(names(&multiway), names(&before));
        assert_eq!((multiway.root(), merged.root()), ("model", "model"));
        let inspected = folder.json(&["inspect", "multiway.pth"]);
        assert_eq!(inspected["warnings"].as_array().unwrap().len(), 0, "{:?}", inspected["warnings"]);
        assert_eq!(inspected["recipe"]["parameters"]["emit"], "multiway");

        let rules = formats::layout::Layout::by_name(layout).unwrap();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for name in names(&before) {
            assert_eq!(shape(&multiway, name), shape(&before, name));
            let expert = rules.parse_name(name);
            let slot = expert.as_ref().map_or(name, |expert| &expert.slot);
            assert_eq!(values(&multiway, name), values(&merged, slot), "{name}");
            if expert.is_some() {
                seen.extend(spellings.iter().copied().filter(|spelling| name.contains(*spelling)));
            }
        }
        assert_eq!(seen.len(), spellings.len());

        // The experts are one another's equals now: merging again changes nothing, whatever the ratio.
        folder.ok(&["interpolate", "multiway.pth", "--ratio", "1", "-o", "again.pth", "--force"]);
        let again = folder.open("again.pth");
        for (name, merged) in all_values(&merged) {
            assert!(furthest(&values(&again, &name), &merged) < 1e-6, "{name}");
        }
        let arithmetic = ["arithmetic", "ms.pth", "--base", "merged.pth", "--lambda", "0", "--emit", "multiway"];
        folder.ok(&[&arithmetic[..], &["-o", "base.pth", "--force"]].concat());
        assert!(folder.ok(&["diff", "base.pth", "multiway.pth", "--tolerance", "1e-9"]).starts_with("equal"));
    }
    assert_eq!(
        folder.run(&["interpolate", "ms.pth", "--ratio", "1", "--emit", "both", "-o", "x.pth"]).status.code(),
        Some(2)
    );
}

/// The example in the documentation, on a small model of that family.
#[test]
fn a_users_own_layout() {
    let folder = Folder::new();
    let layout = example_layout().to_str().unwrap();
    folder.zip("cogvlm.bin", &cogvlm(), None);
    let inspected = folder.json(&["inspect", "cogvlm.bin", "--layout", layout]);
    let config = &inspected["config"];
    assert_eq!(
        (&inspected["layout"], &config["layers"], &config["hidden_size"]),
        (&"cogvlm".into(), &2.into(), &8.into())
    );
    assert_eq!((&config["image_grid"], &config["image_size"]), (&3.into(), &42.into()));

    folder.ok(&["interpolate", "cogvlm.bin", "--layout", layout, "--ratio", "0.75", "-o", "merged.safetensors"]);
    let (before, merged) = (folder.open("cogvlm.bin"), folder.open("merged.safetensors"));
    let attention = "model.layers.1.self_attn";
    let expected = mixed(&[
        (0.75, values(&before, &format!("{attention}.vision_expert_dense.weight"))),
        (0.25, values(&before, &format!("{attention}.language_expert_dense.weight"))),
    ]);
    assert!(furthest(&values(&merged, &format!("{attention}.dense.weight")), &expected) < 1e-6);
    assert_eq!(merged.tensors().len(), before.tensors().len() - 2 * 5);

    folder.ok(&[
        "arithmetic",
        "cogvlm.bin",
        "--base",
        "merged.safetensors",
        "--layout",
        layout,
        "--lambda",
        "1",
        "-o",
        "sum.safetensors",
    ]);
    folder.ok(&[
        "interpolate",
        "cogvlm.bin",
        "--layout",
        layout,
        "--ratio",
        "0.75",
        "--emit",
        "multiway",
        "-o",
        "multiway.bin",
    ]);
    assert_eq!(names(&folder.open("multiway.bin")), names(&before));
    folder.ok(&["resize", "merged.safetensors", "--layout", layout, "--image-size", "70", "-o", "resized.safetensors"]);
    let table = "model.vision.patch_embedding.position_embedding.weight";
    let resized = folder.open("resized.safetensors");
    assert_eq!(shape(&resized, table), [26, 6]);
    assert_eq!(values(&resized, table)[..6], values(&before, table)[..6]);
    assert!(resized.get("model.vision.patch_embedding.position_ids").is_none());
}

/// A recipe needs neither the layout's file nor the option again.
#[test]
fn recipes_keep_the_layout() {
    let folder = Folder::new();
    folder.zip("cogvlm.bin", &cogvlm(), None);
    let own = std::fs::read_to_string(example_layout()).unwrap();
    std::fs::write(folder.path("own.toml"), &own).unwrap();
    folder.ok(&["interpolate", "cogvlm.bin", "--layout", "own.toml", "--ratio", "0.75", "-o", "merged.bin"]);
    std::fs::remove_file(folder.path("own.toml")).unwrap();
    assert_eq!(folder.json(&["recipe", "merged.bin"])["layout"], own.as_str());
    std::fs::write(folder.path("again.toml"), folder.ok(&["recipe", "merged.bin"])).unwrap();
    folder.ok(&["merge", "--recipe", "again.toml", "-o", "again.bin"]);
    let bytes = |name| std::fs::read(folder.path(name)).unwrap();
    assert!(bytes("again.bin") == bytes("merged.bin"));

    // Written by hand: a file beside the recipe, wherever one is.
    std::fs::create_dir(folder.path("below")).unwrap();
    std::fs::write(folder.path("below/own.toml"), &own).unwrap();
    let recipe = "method = \"interpolate\"\nlayout = \"own.toml\"\n[parameters]\nratio = 0.75\n\
                  [[input]]\nrole = \"checkpoint\"\nfile = \"../cogvlm.bin\"\n";
    std::fs::write(folder.path("below/hand.toml"), recipe).unwrap();
    folder.ok(&["merge", "--recipe", "below/hand.toml", "-o", "hand.bin"]);
    assert!(bytes("hand.bin") == bytes("merged.bin"));

    // A built-in layout by its name, and nothing where it was found.
    folder.zip("beit3.pth", &beit3(&spec(2, 0)), Some("model"));
    folder.ok(&["interpolate", "beit3.pth", "--layout", "beit3", "--ratio", "0.5", "-o", "named.pth"]);
    assert_eq!(folder.json(&["recipe", "named.pth"])["layout"], "beit3");
    folder.ok(&["interpolate", "beit3.pth", "--ratio", "0.5", "-o", "found.pth"]);
    assert!(folder.json(&["recipe", "found.pth"]).get("layout").is_none());

    let wrong = recipe.replace("\"own.toml\"", "\"\"\"\nname = 3\n\"\"\"");
    std::fs::write(folder.path("wrong.toml"), wrong.replace("../", "")).unwrap();
    let message = folder.error(&["merge", "--recipe", "wrong.toml", "-o", "x.bin"]);
    assert!(message.starts_with("wrong.toml: the recipe's layout: line 1: "), "{message}");
}

#[test]
fn layouts_that_are_none() {
    let folder = Folder::new();
    folder.zip("cogvlm.bin", &cogvlm(), None);
    let error = |layout: &str| {
        folder.error(&["interpolate", "cogvlm.bin", "--layout", layout, "--ratio", "0.5", "-o", "x.bin"])
    };
    assert_eq!(error("beit4"), "there is no layout 'beit4': give vl-merging, beit, vlmo, beit3 or a TOML file");
    assert!(error("none.toml").starts_with("none.toml: cannot read the layout: no such file or directory"));
    assert_eq!(
        error("beit3"),
        "cogvlm.bin: its names, such as 'model.embed_tokens.weight', are none that layout 'beit3' knows"
    );
    assert_eq!(error("beit"), "cogvlm.bin: layout 'beit' has no experts to merge");
    let message = folder.error(&["interpolate", "cogvlm.bin", "--ratio", "0.5", "-o", "x.bin"]);
    assert!(message.contains("of no known layout; --layout FILE.toml describes another"), "{message}");

    // A typo in the file: which line.
    let text = std::fs::read_to_string(example_layout()).unwrap();
    for (from, to, said) in [
        ("[modalities]", "[modalitys]", "unknown field `modalitys`"),
        ("slot = \"model.layers.{layer}.mlp", "slotte = \"model.layers.{layer}.mlp", "unknown field `slotte`"),
        ("part = \"mlp\"", "part = \"mpl\"", "unknown variant `mpl`"),
        ("{modality}_mlp.{mlp}.weight", "{modality}_mlp.{mpl}.weight", "placeholder {mpl} is not defined"),
        ("v = \"vision\"", "w = \"vision\"", "no modality 'w': it is v, l or vl"),
        ("kind = \"absolute\"\nlead", "kind = \"absolut\"\nlead", "unknown variant `absolut`"),
        ("axis = 2", "axis = -2", "invalid value"),
    ] {
        let line = text[..text.find(from).unwrap()].matches('\n').count() + 1;
        std::fs::write(folder.path("own.toml"), text.replacen(from, to, 1)).unwrap();
        let message = error("own.toml");
        let place = message.strip_prefix("own.toml: line ").unwrap();
        assert!(place.contains(said), "{from}: {message}");
        assert_eq!(place.split(':').next(), Some(line.to_string().as_str()), "{from}: {message}");
    }
    std::fs::write(folder.path("own.toml"), b"name = \"\xff\"").unwrap();
    assert!(error("own.toml").starts_with("own.toml: cannot read the layout: stream did not contain valid UTF-8"));
}

/// CogVLM's names: 2 layers of width 8, images of 3 × 3 patches of 14.
fn cogvlm() -> StateDict {
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: &str, shape: &[usize]| tensors.push((format!("model.{name}"), shape.to_vec()));
    add("embed_tokens.weight", &[32, 8]);
    for layer in 0..2 {
        add(&format!("layers.{layer}.input_layernorm.weight"), &[8]);
        for modality in ["language", "vision"] {
            add(&format!("layers.{layer}.self_attn.{modality}_expert_query_key_value.weight"), &[24, 8]);
            add(&format!("layers.{layer}.self_attn.{modality}_expert_dense.weight"), &[8, 8]);
            for projection in ["gate_proj", "up_proj"] {
                add(&format!("layers.{layer}.mlp.{modality}_mlp.{projection}.weight"), &[20, 8]);
            }
            add(&format!("layers.{layer}.mlp.{modality}_mlp.down_proj.weight"), &[8, 20]);
        }
    }
    add("norm.weight", &[8]);
    add("vision.patch_embedding.cls_embedding", &[1, 6]);
    add("vision.patch_embedding.proj.weight", &[6, 3, 14, 14]);
    add("vision.patch_embedding.position_embedding.weight", &[10, 6]);
    add("vision.patch_embedding.position_ids", &[1, 10]);
    let tensors: Vec<(&str, &[usize])> = tensors.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
    state_dict(&tensors)
}

/// Σ weight · values.
fn mixed(parts: &[(f64, Vec<f64>)]) -> Vec<f64> {
    (0..parts[0].1.len()).map(|at| parts.iter().map(|(weight, values)| weight * values[at]).sum()).collect()
}
