//! `vlmerge init`, as a user runs it.

mod support;

use std::collections::BTreeSet;

use fixtures::layouts::{BeitPositions, beit, beit3};
use fixtures::{ModelSpec, Size, StateDict, Variant};
use serde_json::Value;
use support::{Folder, all_values, furthest, golden, golden_size, names, shape, state_dict, values};

const TABLE: &str = "relative_position_bias_table";
const ARCHITECTURES: [&str; 5] = ["ufo", "ln_moe", "attn_moe", "ffn_moe", "all_moe"];

#[test]
fn golden_checkpoints_of_every_architecture() {
    let folder = Folder::new();
    let size = golden_size("image_size").to_string();
    let text_len = golden_size("max_text_len_of_initckpt").to_string();
    let mut compared = 0;
    for tables in ["shared", "perblock"] {
        for arch in ARCHITECTURES {
            let beit = golden(&format!("beit_{tables}.ckpt"));
            let start = golden_size("vl_start").to_string();
            let sizes = ["--image-size", &size, "--max-text-len-of-initckpt", &text_len, "--vl-start", &start];
            let arguments = [&["init", &beit, "--arch", arch][..], &sizes, &["-o", "vl.safetensors", "--force"]];
            folder.ok(&arguments.concat());
            let ours = folder.open("vl.safetensors");
            let expected = format!("expect_beit_{tables}_{arch}");
            // The set has each architecture for one kind of table at least.
            let Ok(text) = std::fs::read_to_string(golden(&format!("{expected}.json"))) else {
                assert_eq!((tables, ["ufo", "all_moe"].contains(&arch)), ("perblock", false), "{expected}");
                continue;
            };
            let rows: Vec<(String, Vec<usize>, f64)> = serde_json::from_str(&text).unwrap();
            let expected_names: BTreeSet<&str> = rows.iter().map(|(name, ..)| name.as_str()).collect();
            assert_eq!(names(&ours).into_iter().collect::<BTreeSet<_>>(), expected_names, "{expected}");
            for (name, expected_shape, sum) in &rows {
                assert_eq!(&shape(&ours, name), expected_shape, "{expected} {name}");
                let difference = (values(&ours, name).iter().sum::<f64>() - sum).abs();
                assert!(difference <= 1e-5, "{expected} {name}: {difference}");
            }
            let table = formats::open(golden(&format!("{expected}.safetensors"))).unwrap();
            let difference = furthest(&values(&ours, TABLE), &values(&table, TABLE));
            assert!(difference <= 1e-5, "{expected}: {difference}");
            compared += 1;
        }
    }
    assert!(compared >= 7);
}

/// As Microsoft publishes it: names bare, under `model`.
#[test]
fn published_beits_of_either_kind() {
    let folder = Folder::new();
    let spec = nano();
    for (positions, heads) in [
        (BeitPositions::Shared, ["lm_head.weight", "lm_head.bias"]),
        (BeitPositions::PerBlock, ["head.weight", "head.bias"]),
    ] {
        folder.zip("beit.pth", &beit(&spec, positions), Some("model"));
        let arguments = ["init", "beit.pth", "--arch", "all_moe", "--image-size", "48", "--vl-start", "3"];
        let report = folder.json(&[&arguments[..], &["-o", "vl.ckpt", "--force"]].concat());
        assert_eq!(report["dropped"], Value::from(heads.to_vec()));
        let (before, after) = (folder.open("beit.pth"), folder.open("vl.ckpt"));
        assert_eq!(after.root(), "state_dict");
        // 5² + 3 + 2 · 196 + 2 rows, 4 layers of 2 heads.
        assert_eq!(shape(&after, TABLE), [422, 8]);
        let table = values(&after, TABLE);
        assert!(table[..28 * 8].iter().all(|&value| value != 0.0) && table[28 * 8..].iter().all(|&value| value == 0.0));

        let block = "blocks.3.mlp.fc1.weight";
        for modality in ["v", "l", "vl"] {
            assert_eq!(
                values(&after, &format!("transformer.blocks.3.mlp.{modality}.fc1.weight")),
                values(&before, block)
            );
        }
        assert!(after.get("transformer.blocks.2.mlp.vl.fc1.weight").is_none());
        let norm = if positions == BeitPositions::Shared { "norm.bias" } else { "fc_norm.bias" };
        assert_eq!(values(&after, "transformer.norm.bias"), values(&before, norm));

        let inspected = folder.json(&["inspect", "vl.ckpt"]);
        let config = &inspected["config"];
        assert_eq!((&config["layout"], &config["variant"]), (&"vl-merging".into(), &"all_moe".into()));
        assert_eq!((&config["layers"], &config["vl_start"], &config["heads"]), (&4.into(), &3.into(), &2.into()));
        assert_eq!((&config["image_size"], &config["image_grid"]), (&48.into(), &3.into()));
        assert_eq!(inspected["warnings"].as_array().unwrap().len(), 0, "{:?}", inspected["warnings"]);
        assert_eq!(inspected["recipe"]["method"], "init");

        // It is an MS checkpoint like any other: v, l and vl are the same, so that merging gives the BEiT back.
        folder.ok(&["interpolate", "vl.ckpt", "--ratio", "0.25", "-o", "merged.ckpt", "--force"]);
        let merged = folder.open("merged.ckpt");
        assert!(furthest(&values(&merged, &format!("transformer.{block}")), &values(&before, block)) < 1e-6);
        let ufo = ["init", "beit.pth", "--arch", "ufo", "--image-size", "48", "-o", "ufo.ckpt", "--force"];
        folder.ok(&ufo);
        assert_eq!(
            names(&merged).into_iter().collect::<BTreeSet<_>>(),
            names(&folder.open("ufo.ckpt")).into_iter().collect()
        );
    }
}

/// Head h of layer i is column 2 i + h, whichever tables it comes from; at its own size the image part is untouched.
#[test]
fn columns_are_heads_of_layers() {
    let folder = Folder::new();
    for (positions, source) in [
        (BeitPositions::Shared, ["rel_pos_bias"; 4]),
        (BeitPositions::PerBlock, ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn", "blocks.3.attn"]),
    ] {
        folder.zip("beit.pth", &beit(&nano(), positions), Some("model"));
        folder.ok(&["init", "beit.pth", "--arch", "ufo", "--image-size", "32", "-o", "vl.safetensors", "--force"]);
        let (before, after) = (folder.open("beit.pth"), folder.open("vl.safetensors"));
        let table = values(&after, TABLE);
        for (layer, source) in source.into_iter().enumerate() {
            let own = values(&before, &format!("{source}.{TABLE}"));
            for (row, heads) in own.chunks_exact(2).enumerate() {
                assert_eq!(heads, &table[row * 8 + layer * 2..row * 8 + layer * 2 + 2], "row {row}, layer {layer}");
            }
        }
    }
}

#[test]
fn prefixes_roots_and_containers_make_no_difference() {
    let folder = Folder::new();
    let bare = beit(&nano(), BeitPositions::PerBlock);
    let prefixed = |prefix: &str| {
        let mut state_dict = bare.clone();
        state_dict.tensors.iter_mut().for_each(|tensor| tensor.name.insert_str(0, prefix));
        state_dict
    };
    folder.zip("bare.pth", &bare, Some("model"));
    folder.zip("lightning.ckpt", &prefixed("transformer."), Some("state_dict"));
    folder.zip("parallel.pth", &prefixed("module."), Some("module"));
    folder.ok(&["convert", "bare.pth", "-o", "bare.safetensors"]);
    let made = ["bare.pth", "lightning.ckpt", "parallel.pth", "bare.safetensors"].map(|file| {
        let out = format!("{file}.vl.safetensors");
        folder.ok(&["init", file, "--arch", "ffn_moe", "--vl-start", "2", "--image-size", "64", "-o", &out]);
        let made = folder.open(&out);
        (made.get("transformer.blocks.2.norm2.vl.weight").is_some(), made.tensors().len())
    });
    assert_eq!(made, [(true, made[0].1); 4]);
    let [a, b] =
        ["bare.pth.vl.safetensors", "bare.safetensors.vl.safetensors"].map(|file| all_values(&folder.open(file)));
    assert_eq!(a, b);
}

#[test]
fn vision_experts_alone() {
    let folder = Folder::new();
    folder.zip("beit.pth", &beit(&nano(), BeitPositions::Shared), Some("model"));
    let arguments = ["init", "beit.pth", "--arch", "attn_moe", "-o", "v.safetensors", "--force"];
    // 4 layers have no usual vl start; without sharing none is needed.
    let error = folder.error(&arguments);
    assert_eq!(error, "beit.pth: no published model has 4 layers: give the first with a vl expert (--vl-start)");
    for off in [&["--share-vision=false"][..], &["--share-vision", "false"]] {
        folder.ok(&[&arguments[..], off].concat());
        let made = folder.open("v.safetensors");
        let experts: Vec<&str> =
            names(&made).into_iter().filter(|name| name.contains(".attn.") || name.contains("norm1")).collect();
        assert!(experts.len() == 4 * 7 && experts.iter().all(|name| name.contains(".v.")), "{experts:?}");
    }
    for on in [&["--share-vision"][..], &["--share-vision=true"]] {
        folder.ok(&[&arguments[..], &["--vl-start", "4"], on].concat());
        let made = folder.open("v.safetensors");
        assert!(
            made.get("transformer.blocks.3.norm1.l.bias").is_some()
                && made.get("transformer.blocks.3.norm1.vl.bias").is_none()
        );
    }
}

#[test]
fn usual_sizes_are_the_published_ones() {
    let folder = Folder::new();
    for (layers, start) in [(12, 10), (24, 21)] {
        let spec = ModelSpec { layers, image_size: 224, ..nano() };
        folder.zip("beit.pth", &beit(&spec, BeitPositions::Shared), Some("model"));
        let report = folder.json(&["init", "beit.pth", "--arch", "all_moe", "-o", "vl.safetensors", "--force"]);
        let config = &report["config"];
        assert_eq!((&config["vl_start"], &config["image_size"]), (&start.into(), &224.into()));
        assert_eq!(config["max_text_len_of_initckpt"], 196);
        let made = folder.open("vl.safetensors");
        assert_eq!(shape(&made, TABLE), [1126, 2 * layers]);
        assert!(made.get(&format!("transformer.blocks.{start}.norm1.vl.bias")).is_some());
        assert!(made.get(&format!("transformer.blocks.{}.norm1.vl.bias", start - 1)).is_none());
    }
}

#[test]
fn what_is_no_beit_or_half_of_one() {
    let folder = Folder::new();
    let spec = nano();
    let error = |state_dict: &StateDict, more: &[&str]| {
        folder.zip("a.pth", state_dict, Some("model"));
        let arguments = ["init", "a.pth", "--arch", "all_moe", "--vl-start", "3", "-o", "b.pth"];
        let message = folder.error(&[&arguments[..], more].concat());
        message.strip_prefix("a.pth: ").unwrap_or(&message).to_string()
    };
    let without = |positions, gone: &str| {
        let mut state_dict = beit(&spec, positions);
        state_dict.tensors.retain(|tensor| !tensor.name.contains(gone));
        state_dict
    };
    use BeitPositions::{PerBlock, Shared};
    let whole = beit(&spec, PerBlock);

    for other in [spec.state_dict(), beit3(&spec)] {
        let message = error(&other, &[]);
        assert!(
            message
                .ends_with("says nothing of what it becomes: a vision-language model starts from one of layout beit"),
            "{message}"
        );
    }
    let message = error(&state_dict(&[("conv1.weight", &[4, 4])]), &[]);
    assert_eq!(
        message,
        "its names, such as 'conv1.weight', are of no known layout; --layout FILE.toml describes another"
    );
    assert_eq!(error(&without(PerBlock, "blocks.2."), &[]), "layers without weights: 2");
    let message = error(&without(PerBlock, "blocks.1.attn.relative_position_bias_table"), &[]);
    assert_eq!(message, "layers without a position table: 1");
    assert_eq!(error(&without(Shared, "rel_pos_bias"), &[]), "it has no relative position table to start from");
    let message = error(&without(Shared, "patch_embed.proj.weight"), &[]);
    assert!(message.starts_with("nothing in it tells the size of a patch"), "{message}");

    let mut absolute = without(Shared, "rel_pos_bias");
    absolute.tensors.extend(state_dict(&[("pos_embed", &[1, 5, 16])]).tensors);
    assert_eq!(
        error(&absolute, &[]),
        "tensor 'pos_embed': a vision-language model starts from relative positions of one layer's heads"
    );
    let mut both = beit(&spec, Shared);
    both.tensors.extend(whole.tensors.iter().filter(|tensor| tensor.name.ends_with(TABLE)).cloned());
    let message = error(&both, &[]);
    assert_eq!(
        message,
        format!("tensor 'rel_pos_bias.{TABLE}': layers have position tables of their own beside this one")
    );
    let mut twice = whole.clone();
    twice.tensors.extend(state_dict(&[("transformer.cls_token", &[1, 1, 16])]).tensors);
    assert_eq!(
        error(&twice, &[]),
        "tensor 'transformer.cls_token': it and 'cls_token' both become 'transformer.cls_token'"
    );

    let mut experts = whole.clone();
    experts.tensors.extend(state_dict(&[("blocks.0.norm1.l.weight", &[16])]).tensors);
    assert_eq!(error(&experts, &[]), "two of its tensors become 'transformer.blocks.0.norm1.l.weight'");

    let reshaped = |shape: &[usize]| {
        let mut odd = whole.clone();
        let table = odd.tensors.iter_mut().filter(|tensor| tensor.name.ends_with(TABLE)).nth(1).unwrap();
        table.shape = shape.to_vec();
        odd
    };
    let name = format!("blocks.1.attn.{TABLE}");
    let message = error(&reshaped(&[28, 2]), &[]);
    assert_eq!(message, format!("tensor '{name}': it is f32 [28, 2], 'blocks.0.attn.{TABLE}' is f32 [12, 2]"));
    for shape in [&[0, 2][..], &[12, 0], &[12], &[3, 4, 2]] {
        assert_eq!(
            error(&reshaped(shape), &[]),
            format!("tensor '{name}': a position table is [rows, columns], this is {shape:?}")
        );
    }
    let mut odd = beit(&spec, Shared);
    odd.tensors.iter_mut().filter(|tensor| tensor.name.ends_with(TABLE)).for_each(|table| table.shape = vec![13, 2]);
    assert_eq!(error(&odd, &[]), format!("tensor 'rel_pos_bias.{TABLE}': it has 13 rows, which no square image has"));

    assert_eq!(
        error(&whole, &["--image-size", "100"]),
        "patches of 16 pixels don't tile an image of 100: 96 and 112 would do"
    );
    assert!(error(&whole, &["--image-size", "65536"]).ends_with("is too large"));
    folder.zip("a.pth", &whole, Some("model"));
    assert_eq!(
        folder.error(&["init", "a.pth", "--arch", "ufo", "--vl-start", "5", "-o", "b.pth"]),
        "a.pth: vl start 5 is beyond its 4 layers"
    );
    for wrong in
        [&["--arch", "moe"][..], &["--arch", "ufo", "--vl-start", "-1"], &["--arch", "ufo", "--image-size", "0"], &[]]
    {
        assert_eq!(
            folder.run(&[&["init", "a.pth", "-o", "b.pth"], wrong].concat()).status.code(),
            Some(2),
            "{wrong:?}"
        );
    }
}

/// Hidden size 16, 2 heads, 4 layers, 2 × 2 patches of 16 pixels.
fn nano() -> ModelSpec {
    ModelSpec::preset(Size::Nano, Variant::AllMoe)
}
