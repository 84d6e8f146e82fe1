//! `vlmerge init`, as a user runs it.

mod support;

use std::collections::BTreeSet;

use fixtures::layouts::{BeitPositions, beit, beit3, vlmo};
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
            let complete = [arguments.concat(), vec!["--max-text-len", "2", "--vocab-size", "7"]].concat();
            folder.ok(&complete);
            let complete = all_values(&folder.open("vl.safetensors"));
            folder.ok(&[arguments.concat(), vec!["--bare"]].concat());
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
            // What a complete model has besides leaves the rest as it is.
            let bare = all_values(&ours);
            assert!(bare.len() < complete.len() && bare.iter().all(|(name, own)| &complete[name] == own), "{expected}");
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
        assert!(message.starts_with("it has experts already, such as '"), "{message}");
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

/// PRETRAINING 1: what a BEiT has nothing for is drawn from N(0, 0.02) by the seed, biases are 0, LayerNorm is 1 and 0.
#[test]
fn a_beit_does_not_stay_without_text_embeddings_and_pooler() {
    let folder = Folder::new();
    folder.zip("beit.pth", &beit(&nano(), BeitPositions::Shared), Some("model"));
    let run = |more: &str, out: &str| {
        let line = format!("init beit.pth --arch ufo --image-size 32 {more} -o {out}");
        folder.ok(&line.split_whitespace().collect::<Vec<_>>());
        folder.open(out)
    };
    let made = run("", "made.safetensors");
    let normal = [
        ("text_embeddings.word_embeddings.weight", vec![30522, 16]),
        ("text_embeddings.position_embeddings.weight", vec![40, 16]),
        ("text_embeddings.token_type_embeddings.weight", vec![2, 16]),
        ("token_type_embeddings.weight", vec![2, 16]),
        ("pooler.dense.weight", vec![16, 16]),
    ];
    for (name, expected) in &normal {
        assert_eq!(&shape(&made, name), expected, "{name}");
        let drawn = values(&made, name);
        let n = drawn.len() as f64;
        let (mean, square) = (drawn.iter().sum::<f64>() / n, drawn.iter().map(|x| x * x).sum::<f64>() / n);
        // Five standard errors.
        assert!(mean.abs() < 5.0 * 0.02 / n.sqrt(), "{name}: mean {mean}");
        assert!((square / 4e-4 - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{name}: deviation {}", square.sqrt());
    }
    let words = values(&made, "text_embeddings.word_embeddings.weight");
    assert!(words.iter().any(|x| x.abs() > 0.08), "it isn't truncated");
    for (name, expected) in [
        ("text_embeddings.LayerNorm.weight", vec![1.0; 16]),
        ("text_embeddings.LayerNorm.bias", vec![0.0; 16]),
        ("pooler.dense.bias", vec![0.0; 16]),
        ("logit_scale", vec![f64::from((1.0f64 / 0.07).ln() as f32)]),
        ("logit_vl_scale", vec![f64::from((1.0f64 / 0.07).ln() as f32)]),
    ] {
        assert_eq!(values(&made, name), expected, "{name}");
    }
    assert_eq!(shape(&made, "logit_scale"), [0usize; 0]);
    let inspected = folder.json(&["inspect", "made.safetensors"]);
    let config = &inspected["config"];
    assert_eq!((&config["vocab_size"], &config["max_text_len"]), (&30522.into(), &40.into()));
    assert_eq!(config["token_types"], 2);
    assert_eq!(inspected["recipe"]["parameters"]["seed"], 0);
    assert_eq!(inspected["warnings"], Value::Array(Vec::new()));

    // One seed, one file, on any number of threads; another seed changes these and nothing else.
    run("--seed 0 --threads 3", "again.safetensors");
    assert!(
        std::fs::read(folder.path("made.safetensors")).unwrap()
            == std::fs::read(folder.path("again.safetensors")).unwrap()
    );
    let other = run("--seed 1", "other.safetensors");
    for (name, own) in all_values(&made) {
        let is_drawn = normal.iter().any(|(drawn, _)| *drawn == name);
        assert_eq!(values(&other, &name) != own, is_drawn, "{name}");
    }
    let small = run("--vocab-size 100 --max-text-len 12", "small.safetensors");
    assert_eq!(shape(&small, "text_embeddings.word_embeddings.weight"), [100, 16]);
    assert_eq!(shape(&small, "text_embeddings.position_embeddings.weight"), [12, 16]);
    let bare = run("--bare", "bare.safetensors");
    assert!(normal.iter().all(|(name, _)| bare.get(name).is_none()) && bare.get("logit_scale").is_none());

    let short = ["init", "beit.pth", "--arch", "ufo", "--max-text-len-of-initckpt", "20", "-o", "x.safetensors"];
    let error = folder.error(&short);
    assert!(error.contains("texts of 40 tokens are longer than the 20 that the position table would have"), "{error}");
    let both = ["init", "beit.pth", "--arch", "ufo", "--bare", "--seed", "1", "-o", "x.safetensors"];
    assert_eq!(folder.run(&both).status.code(), Some(2));
}

/// PRETRAINING 1, stage 2: v and l in every layer and vl from its start on are the seed's weights; the rest is kept.
#[test]
fn a_seed_gets_experts_that_are_its_own_weights() {
    let folder = Folder::new();
    let spec = ModelSpec { variant: Variant::Ufo, ..nano() };
    folder.zip("seed.ckpt", &spec.state_dict(), Some("state_dict"));
    let seed = folder.open("seed.ckpt");
    let variants = [Variant::LnMoe, Variant::AttnMoe, Variant::FfnMoe, Variant::AllMoe];
    for variant in variants {
        let arch = variant.name();
        let line = format!("init seed.ckpt --arch {arch} --vl-start 3 -o ms.ckpt --force");
        folder.ok(&line.split(' ').collect::<Vec<_>>());
        let ms = folder.open("ms.ckpt");
        assert_eq!(ms.root(), "state_dict");
        let expected = ModelSpec { variant, vl_start: 3, ..spec.clone() }.state_dict();
        let expected: BTreeSet<&str> = expected.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names(&ms).into_iter().collect::<BTreeSet<_>>(), expected, "{arch}");
        for name in names(&ms) {
            let slot = [".v.", ".l.", ".vl."].iter().fold(name.to_string(), |name, part| name.replace(part, "."));
            assert_eq!(values(&ms, name), values(&seed, &slot), "{arch} {name}");
        }
        let config = &folder.json(&["inspect", "ms.ckpt"])["config"];
        assert_eq!((&config["variant"], &config["vl_start"]), (&arch.into(), &3.into()));
        // Every merge gives the seed back.
        folder.ok(&["interpolate", "ms.ckpt", "--ratio", "0.5", "-o", "merged.safetensors", "--force"]);
        let merged = folder.open("merged.safetensors");
        assert_eq!(names(&merged).into_iter().collect::<BTreeSet<_>>(), names(&seed).into_iter().collect());
        for name in names(&merged) {
            assert!(furthest(&values(&merged, name), &values(&seed, name)) <= 1e-6, "{arch} {name}");
        }
        // A merged file is a seed too, and remembers where vl starts.
        let again = format!("init merged.safetensors --arch {arch} -o again.safetensors --force");
        folder.ok(&again.split(' ').collect::<Vec<_>>());
        assert_eq!(names(&folder.open("again.safetensors")).into_iter().collect::<BTreeSet<_>>(), expected);
        let elsewhere = ["init", "merged.safetensors", "--arch", arch, "--vl-start", "2", "-o", "x.safetensors"];
        let error = folder.error(&elsewhere);
        assert!(error.contains("it processes text and image together from layer 3 on"), "{error}");
    }
    let error = |words: &[&str]| folder.error(&[&["init"], words, &["-o", "x.safetensors"]].concat());
    assert_eq!(
        error(&["seed.ckpt", "--arch", "ufo"]),
        "seed.ckpt: it has one set of weights already: --arch ufo would change nothing"
    );
    assert!(error(&["ms.ckpt", "--arch", "all_moe"]).starts_with("ms.ckpt: it has experts already, such as '"));
    let unknown = error(&["seed.ckpt", "--arch", "all_moe"]);
    assert_eq!(unknown, "seed.ckpt: no published model has 4 layers: give the first with a vl expert (--vl-start)");
    for option in
        ["--image-size=32", "--bare", "--seed=1", "--vocab-size=9", "--max-text-len=9", "--share-vision=false"]
    {
        let words = ["init", "seed.ckpt", "--arch", "all_moe", "--vl-start", "3", option, "-o", "x.safetensors"];
        let output = folder.run(&words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains("is for a BEiT: "), "{option}: {said}");
    }
}

/// VLMo's own names have experts for the feed-forward part; with others the file gets the names of vl-merging.
#[test]
fn a_merged_vlmo_gets_experts_too() {
    let folder = Folder::new();
    folder.zip("vlmo.pt", &vlmo(&nano()), None);
    folder.ok(&["interpolate", "vlmo.pt", "--ratio", "0.5", "-o", "seed.safetensors"]);
    let (before, seed) = (folder.open("vlmo.pt"), folder.open("seed.safetensors"));
    let start = folder.json(&["inspect", "vlmo.pt"])["config"]["vl_start"].to_string();
    folder.ok(&["init", "seed.safetensors", "--arch", "ffn_moe", "--vl-start", &start, "-o", "ffn.safetensors"]);
    let ffn = folder.open("ffn.safetensors");
    let experts = |names: Vec<&str>| -> BTreeSet<String> {
        names.into_iter().filter(|name| !name.contains("index")).map(String::from).collect()
    };
    assert_eq!(experts(names(&ffn)), experts(names(&before)));
    folder.ok(&["init", "seed.safetensors", "--arch", "all_moe", "--vl-start", &start, "-o", "all.safetensors"]);
    let all = folder.open("all.safetensors");
    assert!(all.get("transformer.blocks.0.attn.v.qkv.weight").is_some());
    assert!(names(&all).iter().all(|name| !name.starts_with("itc_")), "{:?}", names(&all));
    assert_eq!(folder.json(&["inspect", "all.safetensors"])["config"]["variant"], "all_moe");
    assert!(all.tensors().len() > seed.tensors().len());
}

/// Hidden size 16, 2 heads, 4 layers, 2 × 2 patches of 16 pixels.
fn nano() -> ModelSpec {
    ModelSpec::preset(Size::Nano, Variant::AllMoe)
}
