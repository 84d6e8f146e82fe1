//! What a model computes is the same whichever program wrote its file: the attention pattern, positions, layer scale and
//! heads go from file to file, in either container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use blackbox::{Folder, Tensor, Tensors, write, write_recorded};
use fixtures::compare::difference;
use fixtures::layouts::vlmo;
use fixtures::{LightningOptions, Optimizer, write_lightning};
use serde_json::{Value, json};

use crate::{engine, failed, models};

/// Relative to a tensor's largest element.
const TOLERANCE: f64 = 1e-5;

/// The golden files of VLMo with this beginning and end, which have sizes and ratios between.
fn golden(start: &str, end: &str) -> Vec<(String, PathBuf)> {
    let folder = fixtures::golden().join("vlmo");
    let names = std::fs::read_dir(&folder).expect("golden/vlmo").map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let found =
        names.filter_map(|name| Some((name.strip_prefix(start)?.strip_suffix(end)?.to_owned(), folder.join(&name))));
    let found: Vec<_> = found.collect();
    assert!(!found.is_empty(), "golden/vlmo has no {start}*{end}");
    found
}

/// A folder with `base.pt`, `base_plus.safetensors`, `heads.safetensors` of base and `batch.safetensors`.
fn folder() -> Folder {
    let folder = Folder::new();
    for (start, end, name) in [
        ("vlmo_base_patch", ".pt", "base.pt"),
        ("vlmo_base_plus_patch", ".safetensors", "base_plus.safetensors"),
        ("heads_base", ".safetensors", "heads.safetensors"),
        ("batch", ".safetensors", "batch.safetensors"),
    ] {
        let found = golden(start, end);
        // `heads_base_plus` begins as `heads_base` does.
        let (_, path) = found.iter().min_by_key(|(between, _)| between.len()).expect("a file");
        std::fs::copy(path, folder.path(name)).expect("a copy");
    }
    folder
}

/// Every expected tensor under its name is among those found.
fn assert_as_expected(what: &str, found: &Tensors, expected: &Tensors, is_wanted: impl Fn(&str) -> bool) {
    let wanted: Vec<_> = expected.iter().filter(|(name, _)| is_wanted(name)).collect();
    assert!(!wanted.is_empty(), "{what}: nothing to compare");
    for (name, tensor) in wanted {
        let own = found.get(name).map(|own| (own.shape.clone(), own.values()));
        let own = own.as_ref().map(|(shape, values)| (shape.as_slice(), values.as_slice()));
        match difference(own, (&tensor.shape, &tensor.values())) {
            Ok(far) if far <= TOLERANCE => {}
            other => panic!("{what}: {name}: {other:?}"),
        }
    }
}

fn probe(folder: &Folder, checkpoint: &str, more: &str) -> Tensors {
    let line = format!("--quiet probe {checkpoint} {more} -o probed.safetensors --force --device cpu");
    engine(folder, &line).done();
    folder.tensors("probed.safetensors")
}

fn recorded(folder: &Folder, file: &str) -> Value {
    folder.json(&format!("inspect {file}"))["config"].clone()
}

#[test]
fn a_merged_vlmo_is_what_the_reference_makes_of_it() {
    let folder = folder();
    for (ratio, path) in golden("expect_base_merged_", ".safetensors") {
        let expected = blackbox::read(&path);
        for out in ["merged.safetensors", "merged.ckpt"] {
            folder.vlmerge(&format!("interpolate base.pt --ratio {ratio} -o {out}")).done();
            let config = recorded(&folder, out);
            assert_eq!((&config["layout"], &config["attends"]), (&"vlmo".into(), &"to-all".into()), "{config}");
            let heads = "--heads heads.safetensors --batch batch.safetensors";
            let found = probe(&folder, out, heads);
            assert_as_expected(out, &found, &expected, |name| name != "logits.nlvr2");
            let found = probe(&folder, out, &format!("{heads} --task nlvr2"));
            assert_as_expected(out, &found, &expected, |name| name == "logits.nlvr2");
        }
    }
}

/// The mean of each part's experts, under the name of a model without.
fn merged_by_hand(tensors: &Tensors) -> Tensors {
    let mut experts: BTreeMap<String, Vec<&Tensor>> = BTreeMap::new();
    for (name, tensor) in tensors {
        let is_modality = |piece: &&str| ["v", "l", "vl"].contains(piece);
        let slot: Vec<&str> = name.split('.').filter(|piece| !is_modality(piece)).collect();
        experts.entry(slot.join(".")).or_default().push(tensor);
    }
    let mean = |experts: Vec<&Tensor>| match experts[..] {
        [alone] => alone.clone(),
        _ => {
            let mut sum = vec![0f32; experts[0].values().len()];
            experts.iter().for_each(|expert| sum.iter_mut().zip(expert.values()).for_each(|(sum, x)| *sum += x));
            sum.iter_mut().for_each(|x| *x /= experts.len() as f32);
            Tensor::f32(&experts[0].shape, &sum)
        }
    };
    experts.into_iter().map(|(slot, experts)| (slot, mean(experts))).collect()
}

/// What tokens attend to is the modality-specific model's, not what models without experts usually do.
#[test]
fn a_merged_model_is_the_model_merged() {
    let folder = Folder::with_golden(&["batch.safetensors"]);
    for (variant, attends) in [
        ("ufo", "within-modality"),
        ("ln_moe", "to-all"),
        ("attn_moe", "within-modality"),
        ("ffn_moe", "within-modality"),
        ("all_moe", "within-modality"),
    ] {
        let model = fixtures::golden().join(format!("model_{variant}.safetensors"));
        std::fs::copy(model, folder.path("model.safetensors")).expect("a copy");
        let by_hand = merged_by_hand(&folder.tensors("model.safetensors"));
        write_recorded(&folder.path("by_hand.safetensors"), &by_hand, &json!({"attends": attends}));
        let expected = probe(&folder, "by_hand.safetensors", "--batch batch.safetensors");
        let how = match variant {
            "ufo" => "convert model.safetensors",
            _ => "interpolate model.safetensors --ratio 0.5",
        };
        for out in ["merged.safetensors", "merged.ckpt"] {
            folder.vlmerge(&format!("{how} -o {out} --force")).done();
            let found = probe(&folder, out, "--batch batch.safetensors");
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{variant}");
            assert_as_expected(variant, &found, &expected, |_| true);
        }
    }
}

/// Bit for bit, as `init` copies the merged weights.
#[test]
fn a_merged_vlmo_with_new_experts_computes_what_it_did() {
    let folder = folder();
    folder.vlmerge("interpolate base.pt --ratio 0.4 -o merged.safetensors").done();
    let heads = "--heads heads.safetensors --batch batch.safetensors";
    let wanted = probe(&folder, "merged.safetensors", heads);
    assert!(wanted.contains_key("vl.cls_feats") && wanted.contains_key("logits.vqa"), "{:?}", wanted.keys());
    for arch in ["ffn_moe", "all_moe"] {
        folder.vlmerge(&format!("init merged.safetensors --arch {arch} -o ms.safetensors --force")).done();
        assert_eq!(recorded(&folder, "ms.safetensors")["variant"], arch);
        let found = probe(&folder, "ms.safetensors", heads);
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{arch}");
        for (name, wanted) in &wanted {
            assert_eq!(found[name].values(), wanted.values(), "{arch}: {name}");
        }
    }
}

/// Without the heads of pre-training nothing in a merged file's names is VLMo's own.
#[test]
fn a_merged_vlmo_with_nothing_but_a_vqa_head_stays_a_vlmo() {
    let folder = folder();
    folder.vlmerge("convert base.pt -o base.safetensors").done();
    let mut tensors = folder.tensors("base.safetensors");
    tensors.retain(|name, _| !["itc_", "itm_", "mlm_", "logit_"].iter().any(|head| name.starts_with(head)));
    let heads = folder.tensors("heads.safetensors").into_iter();
    tensors.extend(heads.filter_map(|(name, tensor)| Some((name.strip_prefix("vqa:")?.to_owned(), tensor))));
    write(&folder.path("vqa.safetensors"), &tensors);
    for (ratio, path) in golden("expect_base_merged_", ".safetensors") {
        let expected = blackbox::read(&path);
        let merged = ["merged.safetensors", "merged.ckpt"];
        for out in merged {
            folder.vlmerge(&format!("interpolate vqa.safetensors --ratio {ratio} -o {out} --force")).done();
        }
        // What is made of a merged file is one too.
        folder.vlmerge("convert merged.ckpt -o converted.safetensors --force").done();
        folder.vlmerge("soup merged.safetensors converted.safetensors -o soup.ckpt --force").done();
        for file in merged.into_iter().chain(["converted.safetensors", "soup.ckpt"]) {
            assert_eq!(recorded(&folder, file)["attends"], "to-all", "{file}");
            let found = probe(&folder, file, "--batch batch.safetensors");
            assert_as_expected(file, &found, &expected, |name| name.starts_with("vl.") || name == "logits.vqa");
        }
    }
}

#[test]
fn a_trained_base_plus_is_resized_as_the_published_one() {
    let folder = folder();
    let line = "--quiet finetune base_plus.safetensors --task img_cls --lr 0 --steps 1 --batch-size 4 --device cpu \
                --set val_limit=4 --set samples=0 -o run";
    engine(&folder, line).done();
    assert!(!folder.tensors("run/last.safetensors").keys().any(|name| name.contains("gamma")), "it has no layer scale");
    let config = recorded(&folder, "run/last.safetensors");
    assert_eq!((&config["positions"], &config["layer_scale"]), (&"absolute".into(), &false.into()), "{config}");
    folder.vlmerge("interpolate run/last.safetensors --ratio 0.5 -o merged.safetensors").done();
    for (size, path) in golden("expect_base_plus_", ".safetensors") {
        let expected = blackbox::read(&path);
        for file in ["base_plus.safetensors", "run/last.safetensors", "merged.safetensors"] {
            let line = format!("resize {file} --image-size {size} -o resized.safetensors --force");
            folder.vlmerge(&line).done();
            let resized = folder.tensors("resized.safetensors");
            assert_as_expected(file, &resized, &expected, |name| name == "transformer.pos_embed");
        }
        folder
            .vlmerge(&format!("resize run/last.safetensors --image-size {size} -o resized.safetensors --force"))
            .done();
        let batch = golden(&format!("batch_base_plus_{size}"), ".safetensors").remove(0).1;
        std::fs::copy(batch, folder.path("batch.safetensors")).expect("a copy");
        let found = probe(&folder, "resized.safetensors", "--batch batch.safetensors");
        assert_as_expected("resized", &found, &expected, |name| name == "image.raw_cls_feats");
    }
}

#[test]
fn a_trained_vlmo_evaluates_to_what_its_run_reported() {
    let folder = Folder::new();
    fixtures::write_zip(&folder.path("vlmo.pt"), &vlmo(&models::spec()), None).expect("written");
    let line = "--quiet finetune vlmo.pt --task vqa --lr 0.001 --steps 3 --batch-size 4 --device cpu --image-size 48 \
                --set val_limit=30 --set samples=0 -o run";
    engine(&folder, line).done();
    let result: Value = serde_json::from_slice(&folder.read("run/result.json")).expect("JSON");
    let line = "--quiet eval run/best.safetensors --data toy --task vqa --split val --limit 30 --device cpu --json";
    let report: Value = serde_json::from_str(&engine(&folder, line).done()).expect("JSON");
    let score = &report["splits"]["val"]["score"];
    assert!(score.is_f64(), "{report}");
    assert_eq!(score, &result["metrics"]["vqa_score"], "{report} {result}");
    assert_eq!(recorded(&folder, "run/last.safetensors")["attends"], "to-all");
}

/// What a refusal rests on is in hyper-parameters, which files that are made of this one don't have.
#[test]
fn a_model_that_is_not_run_is_not_run_after_conversion() {
    let folder = Folder::with_golden(&["batch.safetensors"]);
    models::write(&folder, "usual.ckpt", &models::spec());
    let options = LightningOptions {
        optimizer: Optimizer::None,
        config: vec![("max_vl_text_len", 8.into())],
        ..LightningOptions::default()
    };
    write_lightning(&folder.path("ms.ckpt"), &models::spec(), &options).expect("written");
    let wanted = "models like this aren't run: hyper_parameters.config.max_vl_text_len is 8 and \
                  hyper_parameters.config.max_text_len is 12: ";
    let refusal = |file: &str| failed(&folder, &format!("probe {file} --batch batch.safetensors -o out.safetensors"));
    assert!(refusal("ms.ckpt").starts_with(&format!("ms.ckpt: {wanted}")), "{}", refusal("ms.ckpt"));
    for (file, line) in [
        ("converted.safetensors", "convert ms.ckpt"),
        ("again.ckpt", "convert converted.safetensors"),
        ("resized.safetensors", "resize again.ckpt --image-size 96"),
        ("merged.ckpt", "interpolate converted.safetensors --ratio 0.5"),
        ("experts.safetensors", "init merged.ckpt --arch all_moe"),
        ("soup.safetensors", "soup usual.ckpt again.ckpt"),
    ] {
        folder.vlmerge(&format!("{line} -o {file}")).done();
        assert!(refusal(file).starts_with(&format!("{file}: {wanted}")), "{}", refusal(file));
        let text = folder.vlmerge(&format!("inspect {file}")).done();
        assert!(text.contains("max_vl_text_len is 8"), "{text}");
    }
}

#[test]
fn a_record_that_contradicts_the_weights_stops_all_but_inspect() {
    let folder = folder();
    folder.vlmerge("convert base.pt -o base.safetensors").done();
    let tensors = folder.tensors("base.safetensors");
    let files = [
        (
            json!({"attends": "within-modality"}),
            "attends: to-all because every model of layout vlmo does, but within-modality in",
        ),
        (json!({"layout": "vl-merging"}), "layout: vlmo because of "),
        (json!({"vl_start": 3}), "vl_start: 10 because layer 10 is the first with a vl expert, but 3 in"),
        (json!({"variant": "ufo"}), "variant: ffn_moe because "),
        (json!({"layer_scale": false}), "layer_scale: true because "),
        (
            json!({"positions": "absolute"}),
            "positions: relative because relative_position_bias_table is there, but absolute in",
        ),
        (json!({"heads": "two"}), "the file's record of its model (vlmerge.config) can't be read: "),
    ];
    for (record, wanted) in files {
        write_recorded(&folder.path("odd.safetensors"), &tensors, &record);
        for line in [
            "interpolate odd.safetensors --ratio 0.5 -o out.safetensors",
            "slerp odd.safetensors base.safetensors --t 0.5 -o out.safetensors",
            "soup base.safetensors odd.safetensors -o out.safetensors",
            "convert odd.safetensors -o out.safetensors",
            "resize odd.safetensors --image-size 96 -o out.safetensors",
            "init odd.safetensors --arch all_moe -o out.safetensors",
            "distance odd.safetensors",
            "distance base.safetensors --base odd.safetensors",
        ] {
            let said = folder.refuses(line);
            let start = format!("odd.safetensors: {wanted}");
            assert!(said.starts_with(&start), "{line}: {said}");
        }
        for line in [
            "probe odd.safetensors --batch batch.safetensors -o out.safetensors",
            "finetune odd.safetensors --task img_cls -o run",
            "eval odd.safetensors --data toy",
        ] {
            let said = failed(&folder, line);
            assert!(said.contains(wanted) && said.contains("odd.safetensors"), "{line}: {said}");
        }
        let shown = folder.json("inspect odd.safetensors");
        let conflict = shown["conflicts"][0].as_str().expect("a conflict").to_owned();
        assert!(conflict.starts_with(wanted), "{conflict}");
        let text = folder.vlmerge("inspect odd.safetensors").done();
        assert!(text.contains("conflict (commands that build on it refuse the file)"), "{text}");
    }
    // A model without experts, which `init` would give some.
    folder.vlmerge("interpolate base.safetensors --ratio 0.5 -o merged.safetensors").done();
    write_recorded(
        &folder.path("odd.safetensors"),
        &folder.tensors("merged.safetensors"),
        &json!({"layer_scale": false}),
    );
    let said = folder.refuses("init odd.safetensors --arch ffn_moe -o out.safetensors");
    assert!(said.starts_with("odd.safetensors: layer_scale: true because "), "{said}");
}
