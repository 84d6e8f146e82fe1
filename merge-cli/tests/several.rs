//! `vlmerge soup`, `slerp`, `ties` and `dare`, run as a user would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use fixtures::compare::absolute_difference;
use fixtures::{LightningOptions, ModelSpec, Size, Variant};
use formats::write::{Metadata, Piece, Writer};
use formats::{Dtype, TensorInfo, encode_f64};
use serde_json::{Value, json};
use tempfile::TempDir;

mod whole_checkpoints {
    use super::*;

    #[test]
    fn a_soup_is_the_mean() {
        let folder = Folder::new();
        folder.write("a.safetensors", &[("w", &[2], &[1.0, 2.0]), ("scale", &[], &[4.0])]);
        folder.write("b.ckpt", &[("w", &[2], &[3.0, -2.0]), ("scale", &[], &[6.0])]);
        folder.write("c.pt", &[("w", &[2], &[8.0, 3.0]), ("scale", &[], &[2.0])]);
        let soup = folder.run(&["soup", "a.safetensors", "b.ckpt", "c.pt"]);
        assert_eq!((&soup["w"], &soup["scale"]), (&vec![4.0, 1.0], &vec![4.0]));
        let soup = folder.run(&["soup", "a.safetensors", "b.ckpt", "c.pt", "--weights", "0.5,0.25,0.25"]);
        assert_eq!((&soup["w"], &soup["scale"]), (&vec![3.25, 1.25], &vec![4.0]));
        // Shares, unless told otherwise.
        let soup = folder.run(&["soup", "a.safetensors", "b.ckpt", "--weights", "3,1"]);
        assert_eq!(soup["w"], [1.5, 1.0]);
        let soup = folder.run(&["soup", "a.safetensors", "b.ckpt", "--weights", "-1,2", "--no-normalize"]);
        assert_eq!(soup["w"], [5.0, -6.0]);
    }

    #[test]
    fn slerp_goes_along_the_arc() {
        let folder = Folder::new();
        folder.write("a.safetensors", &[("w", &[2], &[3.0, 0.0]), ("scale", &[], &[4.0]), ("zero", &[1], &[0.0])]);
        folder.write("b.safetensors", &[("w", &[2], &[0.0, 4.0]), ("scale", &[], &[6.0]), ("zero", &[1], &[2.0])]);
        let third = folder.run(&["slerp", "a.safetensors", "b.safetensors", "--t", "0.3333333333333333"]);
        assert_eq!(third["w"], single([3.0 * 0.75f64.sqrt(), 2.0]));
        // Linear, without an angle.
        assert_eq!((&third["scale"][..], &third["zero"][..]), (&single([14.0 / 3.0])[..], &single([2.0 / 3.0])[..]));
        for (t, end) in [("0", "a.safetensors"), ("1", "b.safetensors")] {
            assert_eq!(folder.run(&["slerp", "a.safetensors", "b.safetensors", "--t", t]), folder.read(end));
        }
    }

    #[test]
    fn ties_trims_elects_and_merges() {
        let folder = Folder::new();
        folder.write("base.safetensors", &[("w", &[5], &[1.0; 5]), ("scale", &[], &[4.0])]);
        folder.write("a.safetensors", &[("w", &[5], &[5.0, 0.0, 3.0, 1.5, -2.0]), ("scale", &[], &[5.0])]);
        folder.write("b.safetensors", &[("w", &[5], &[0.0, -3.0, 4.0, 1.25, 3.0]), ("scale", &[], &[7.0])]);
        let args = ["ties", "base.safetensors", "a.safetensors", "b.safetensors"];
        // Vectors (4, −1, 2, 0.5, −3) and (−1, −4, 3, 0.25, 2), of which three stay.
        let out = folder.run(&[&args[..], &["--density", "0.6"]].concat());
        assert_eq!((&out["w"], &out["scale"]), (&vec![5.0, -3.0, 3.5, 1.0, -2.0], &vec![6.0]));
        let out = folder.run(&[&args[..], &["--density", "0.6", "--lambda", "0.5"]].concat());
        assert_eq!((&out["w"], &out["scale"]), (&vec![3.0, -1.0, 2.25, 1.0, -0.5], &vec![5.0]));
        // The default is the paper's: a fifth stays, λ is 1.
        let out = folder.run(&args);
        assert_eq!(out["w"], [5.0, -3.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn dare_drops_and_rescales() {
        let folder = Folder::new();
        let n = 20_000;
        folder.write("base.safetensors", &[("w", &[n], &vec![1.0; n]), ("scale", &[], &[4.0])]);
        folder.write("a.safetensors", &[("w", &[n], &vec![2.0; n]), ("scale", &[], &[5.0])]);
        folder.write("b.safetensors", &[("w", &[n], &vec![-1.0; n]), ("scale", &[], &[6.0])]);
        let args =
            ["dare", "base.safetensors", "a.safetensors", "b.safetensors", "--density", "0.25", "--lambda", "0.5"];
        let run = |more: &[&str]| folder.run(&[&args[..], more].concat());
        let out = run(&["--seed", "7"]);
        // 1 + ½(4, or 0, + −8 or 0)
        assert!(out["w"].iter().all(|x| [1.0, 3.0, -3.0, -1.0].contains(x)));
        let share = |value: f64| out["w"].iter().filter(|&&x| x == value).count() as f64 / n as f64;
        for (value, expected) in [(1.0, 0.5625), (3.0, 0.1875), (-3.0, 0.1875), (-1.0, 0.0625)] {
            let spread = 4.0 * (expected * (1.0 - expected) / n as f64).sqrt();
            assert!((share(value) - expected).abs() < spread, "{value}: {}", share(value));
        }
        // A single number is never dropped.
        assert_eq!(out["scale"], [5.5]);
        assert_eq!(run(&["--seed", "7"]), out);
        assert_ne!(run(&["--seed", "8"]), out);
        assert_ne!(run(&[]), out);
        // Where both stay, −8 outvotes 4.
        let out = run(&["--seed", "7", "--ties"]);
        assert!(out["w"].iter().all(|x| [1.0, 3.0, -3.0].contains(x)));
    }

    #[test]
    fn one_model_in_whole_is_itself() {
        let folder = Folder::new();
        let base = ModelSpec::preset(Size::Nano, Variant::AllMoe);
        let model = ModelSpec { seed: 1, ..base.clone() };
        folder.lightning("base.ckpt", &base);
        folder.lightning("model.ckpt", &model);
        let expected = folder.read("model.ckpt");
        assert_eq!(folder.run(&["soup", "model.ckpt", "model.ckpt", "model.ckpt"]), expected);
        assert_eq!(folder.run(&["slerp", "model.ckpt", "model.ckpt", "--t", "0.3"]), expected);
        assert_eq!(folder.run(&["ties", "base.ckpt", "model.ckpt", "--density", "1"]), expected);
        assert_eq!(folder.run(&["dare", "base.ckpt", "model.ckpt", "--density", "1"]), expected);
        let still = folder.read("base.ckpt");
        assert_eq!(folder.run(&["ties", "base.ckpt", "model.ckpt", "--lambda", "0"]), still);
        assert_eq!(folder.run(&["dare", "base.ckpt", "model.ckpt", "--density", "0.5", "--lambda", "0"]), still);
    }

    const METHODS: [&[&str]; 4] = [
        &["soup", "--weights", "3,2,1"],
        &["slerp", "--t", "0.4"],
        &["ties", "--density", "0.3"],
        &["dare", "--density", "0.5", "--seed", "3"],
    ];

    /// A method's command for as many of the files as it takes.
    fn command_for<'a>(method: &[&'a str], files: &'a [String; 3]) -> Vec<&'a str> {
        let count = if method[0] == "slerp" { 2 } else { 3 };
        method.iter().copied().chain(files.iter().take(count).map(String::as_str)).collect()
    }

    #[test]
    fn threads_make_no_difference() {
        let folder = Folder::new();
        let files = ["a", "b", "c"].map(|letter| format!("{letter}.safetensors"));
        for (seed, file) in files.iter().enumerate() {
            // One tensor is more than one piece.
            let spec =
                ModelSpec { vocab_size: 66_000, seed: seed as u64, ..ModelSpec::preset(Size::Nano, Variant::Ufo) };
            let mut state_dict = spec.state_dict();
            state_dict.tensors.retain(|tensor| !tensor.name.starts_with("mlm_score"));
            fixtures::write_safetensors(&folder.path(file), &state_dict).unwrap();
        }
        for method in METHODS {
            let [one, three] = ["1", "3"].map(|threads| {
                let out = format!("{threads}.safetensors");
                let args = [&command_for(method, &files)[..], &["--threads", threads, "-o", &out, "--force"]].concat();
                folder.command(&args).assert().success();
                std::fs::read(folder.path(&out)).unwrap()
            });
            assert!(one == three, "{method:?}");
        }
    }

    #[test]
    fn containers_make_no_difference() {
        let folder = Folder::new();
        for (seed, letter) in ["a", "b", "c"].into_iter().enumerate() {
            let spec = ModelSpec { seed: seed as u64, ..ModelSpec::preset(Size::Nano, Variant::AllMoe) };
            folder.lightning(&format!("{letter}.ckpt"), &spec);
            let state_dict = spec.state_dict();
            fixtures::write_legacy(&folder.path(&format!("{letter}.pth")), &state_dict, Some("model")).unwrap();
            fixtures::write_zip(&folder.path(&format!("{letter}.pt")), &state_dict, None).unwrap();
            fixtures::write_safetensors(&folder.path(&format!("{letter}.safetensors")), &state_dict).unwrap();
        }
        for method in METHODS {
            let run = |ending: &str, out: &str| {
                let files = ["a", "b", "c"].map(|letter| format!("{letter}.{ending}"));
                folder.run_to(&command_for(method, &files), out)
            };
            let reference = run("ckpt", "out.safetensors");
            for ending in ["pth", "pt", "safetensors"] {
                assert!(run(ending, "out.ckpt") == reference, "{method:?} of .{ending}");
            }
        }
    }

    #[test]
    fn the_first_decides_on_order_and_dtype() {
        let folder = Folder::new();
        let write = |name: &str, dtype: Dtype, values: [&[f64]; 2]| {
            folder.write_as(name, &[("z", dtype, &[1], values[0]), ("a", dtype, &[1], values[1])]);
        };
        write("half.ckpt", Dtype::F16, [&[1.0], &[2.0]]);
        write("double.ckpt", Dtype::F64, [&[1.0 + 1e-12], &[2.0]]);
        let out = |files: &[&str]| {
            folder.run_to(&[&["soup"], files].concat(), "out.ckpt");
            let out = formats::open(folder.path("out.ckpt")).unwrap();
            out.tensors().iter().map(|info| (info.name.clone(), info.dtype)).collect::<Vec<_>>()
        };
        assert_eq!(out(&["half.ckpt", "double.ckpt"]), [("z".into(), Dtype::F16), ("a".into(), Dtype::F16)]);
        assert_eq!(out(&["double.ckpt", "half.ckpt"]), [("z".into(), Dtype::F64), ("a".into(), Dtype::F64)]);
        assert_eq!(folder.read("out.ckpt")["z"], [1.0 + 0.5e-12]);
    }

    #[test]
    fn what_is_no_parameter_is_copied() {
        let folder = Folder::new();
        let file = |name: &str, value: f64, steps: f64| {
            folder.write_as(name, &[("w", Dtype::F32, &[1], &[value]), ("steps", Dtype::I64, &[], &[steps])]);
        };
        file("a.ckpt", 1.0, 10.0);
        file("b.ckpt", 3.0, 10.0);
        file("c.ckpt", 5.0, 20.0);
        let (out, stderr) = folder.run_saying(&["soup", "a.ckpt", "b.ckpt"]);
        assert_eq!((out["steps"][0], stderr.as_str()), (10.0, ""));
        let (out, stderr) = folder.run_saying(&["soup", "a.ckpt", "c.ckpt"]);
        assert_eq!((out["w"][0], out["steps"][0]), (3.0, 10.0));
        assert_eq!(stderr, "vlmerge: warning: c.ckpt: it differs where the result copies the first: steps\n");
    }

    #[test]
    fn buffers_may_be_missing() {
        let folder = Folder::new();
        let with = ModelSpec::preset(Size::Nano, Variant::AllMoe);
        folder.lightning("with.ckpt", &with);
        folder.lightning("without.ckpt", &ModelSpec { position_ids: false, ..with });
        let (out, stderr) = folder.run_saying(&["soup", "with.ckpt", "without.ckpt"]);
        assert_eq!(out, folder.read("with.ckpt"));
        assert!(stderr.contains("lacks buffers that the first has and the result keeps: text_embeddings.position_ids"));
        let (out, stderr) = folder.run_saying(&["soup", "without.ckpt", "with.ckpt"]);
        assert_eq!(out, folder.read("without.ckpt"));
        assert!(stderr.contains("the first lacks buffers that it has, left out: text_embeddings.position_ids"));
    }

    #[test]
    fn nan_spreads_no_further() {
        let folder = Folder::new();
        folder.write("a.ckpt", &[("w", &[3], &[f64::NAN, 2.0, 1.0])]);
        folder.write("b.ckpt", &[("w", &[3], &[1.0, 4.0, 3.0])]);
        folder.write("base.ckpt", &[("w", &[3], &[0.0, 0.0, 0.0])]);
        let commands: [(&[&str], [f64; 2]); 4] = [
            (&["soup", "a.ckpt", "b.ckpt"], [3.0, 2.0]),
            (&["slerp", "a.ckpt", "b.ckpt", "--t", "0.5"], [3.0, 2.0]),
            (&["ties", "base.ckpt", "a.ckpt", "b.ckpt", "--density", "1"], [3.0, 2.0]),
            (&["dare", "base.ckpt", "a.ckpt", "b.ckpt", "--density", "1"], [6.0, 4.0]),
        ];
        for (command, rest) in commands {
            let out = &folder.run(command)["w"];
            assert!(out[0].is_nan(), "{command:?}");
            assert_eq!(out[1..], rest, "{command:?}");
        }
    }

    #[test]
    fn the_recipe_and_the_configuration_go_along() {
        let folder = Folder::new();
        let spec = ModelSpec::preset(Size::Nano, Variant::AllMoe);
        folder.lightning("base.ckpt", &spec);
        folder.lightning("a.ckpt", &ModelSpec { seed: 1, ..spec.clone() });
        folder.run_to(&["dare", "base.ckpt", "a.ckpt", "a.ckpt", "--density", "0.5", "--seed", "4"], "out.safetensors");
        let recipe = folder.metadata("out.safetensors", "vlmerge.recipe");
        assert_eq!(recipe["method"], "dare");
        assert_eq!(recipe["parameters"], json!({"density": 0.5, "lambda": 1.0, "seed": 4, "ties": false}));
        let inputs: Vec<[&Value; 2]> =
            recipe["inputs"].as_array().unwrap().iter().map(|input| [&input["role"], &input["name"]]).collect();
        assert_eq!(inputs, [["base", "base.ckpt"], ["model", "a.ckpt"], ["model", "a.ckpt"]]);
        let digest = |name: &str| {
            let checkpoint = formats::open(folder.path(name)).unwrap();
            formats::content_digest(&checkpoint, 1).unwrap()
        };
        assert_eq!(recipe["inputs"][0]["content_digest"], digest("base.ckpt"));
        assert_eq!(recipe["inputs"][1]["content_digest"], digest("a.ckpt"));
        assert_eq!(recipe["inputs"][2]["content_digest"], digest("a.ckpt"));
        let config = folder.metadata("out.safetensors", "vlmerge.config");
        assert_eq!((&config["variant"], &config["heads"]), (&json!("all_moe"), &json!(2)));

        folder.run_to(&["soup", "base.ckpt", "a.ckpt", "--weights", "3,1"], "out.safetensors");
        let recipe = folder.metadata("out.safetensors", "vlmerge.recipe");
        assert_eq!(recipe["parameters"], json!({"weights": [3.0, 1.0], "normalize": true}));
    }

    #[test]
    fn roots_are_for_all_files_or_one_each() {
        let folder = Folder::new();
        let spec = ModelSpec::preset(Size::Nano, Variant::Ufo);
        fixtures::write_zip(&folder.path("a.pt"), &spec.state_dict(), Some("ema")).unwrap();
        let other = ModelSpec { seed: 1, ..spec }.state_dict();
        fixtures::write_zip(&folder.path("b.pt"), &other, Some("ema")).unwrap();
        fixtures::write_zip(&folder.path("c.pt"), &other, Some("net")).unwrap();
        let both = folder.run(&["soup", "a.pt", "b.pt", "--root", "ema"]);
        assert_eq!(folder.run(&["soup", "a.pt", "c.pt", "--root", "ema", "--root", "net"]), both);
    }
}

mod experts {
    use super::*;

    /// Layer 0 has v and l, layer 1 all three; `other` is no expert.
    fn small(folder: &Folder) {
        let v = "transformer.blocks.0.mlp.v.fc1.weight";
        folder.write(
            "ms.ckpt",
            &[
                ("other", &[1], &[9.0]),
                (v, &[2], &[3.0, 0.0]),
                ("transformer.blocks.0.mlp.l.fc1.weight", &[2], &[0.0, 4.0]),
                ("transformer.blocks.1.mlp.v.fc1.weight", &[2], &[3.0, 0.0]),
                ("transformer.blocks.1.mlp.l.fc1.weight", &[2], &[0.0, 6.0]),
                ("transformer.blocks.1.mlp.vl.fc1.weight", &[2], &[-6.0, 3.0]),
            ],
        );
        folder.write(
            "seed.ckpt",
            &[
                ("other", &[1], &[7.0]),
                ("transformer.blocks.0.mlp.fc1.weight", &[2], &[1.0, 1.0]),
                ("transformer.blocks.1.mlp.fc1.weight", &[2], &[0.0, 1.0]),
            ],
        );
    }

    fn layers(out: &Tensors) -> [&[f64]; 2] {
        assert_eq!(out.len(), 3);
        assert_eq!(out["other"], [9.0]);
        [0, 1].map(|layer| out[&format!("transformer.blocks.{layer}.mlp.fc1.weight")].as_slice())
    }

    #[test]
    fn by_hand() {
        let folder = Folder::new();
        small(&folder);
        let out = folder.run(&["soup", "ms.ckpt", "--experts"]);
        assert_eq!(layers(&out), [&[1.5, 2.0], &[-1.0, 3.0]]);
        // 3 : 1 without vl, 3 : 1 : 4 with it.
        let out = folder.run(&["soup", "ms.ckpt", "--experts", "--weights", "l=1,v=3,vl=4"]);
        assert_eq!(layers(&out), [&[2.25, 1.0], &[-1.875, 2.25]]);
        assert_eq!(folder.run(&["soup", "ms.ckpt", "--experts", "all", "--weights", "3,1,4"]), out);
        let out = folder.run(&["soup", "ms.ckpt", "--experts", "used", "--task", "vqa"]);
        assert_eq!(layers(&out), [&[1.5, 2.0], &[-6.0, 3.0]]);

        let half = std::f64::consts::FRAC_1_SQRT_2;
        let out = folder.run(&["slerp", "ms.ckpt", "--experts=used", "--task", "irtr", "--t", "0.5"]);
        assert_eq!(layers(&out), [&single([3.0 * half, 4.0 * half]), &single([3.0 * half, 6.0 * half])]);
        // Towards vl (−6, 3) a third of the way, from v = (3, 0).
        let out = folder.run(&["slerp", "ms.ckpt", "--experts", "--t", "0"]);
        let angle = (-18.0f64 / (3.0 * 45f64.sqrt())).acos();
        let (a, b) = ((angle * 2.0 / 3.0).sin() / angle.sin(), (angle / 3.0).sin() / angle.sin());
        assert_eq!(layers(&out), [&[3.0, 0.0], &single([3.0 * a - 6.0 * b, 3.0 * b])]);

        // Vectors (2, −1), (−1, 3); and (3, −1), (0, 5), (−6, 2).
        let out = folder.run(&["ties", "seed.ckpt", "ms.ckpt", "--experts", "--density", "0.5"]);
        assert_eq!(layers(&out), [&[3.0, 4.0], &[-6.0, 6.0]]);
        let out = folder.run(&["ties", "seed.ckpt", "ms.ckpt", "--experts", "--density", "1", "--lambda", "2"]);
        assert_eq!(layers(&out), [&[5.0, 7.0], &[-12.0, 8.0]]);
        let out = folder.run(&["dare", "seed.ckpt", "ms.ckpt", "--experts", "--density", "1"]);
        assert_eq!(layers(&out), [&[2.0, 3.0], &[-3.0, 7.0]]);
    }

    #[test]
    fn every_layout_agrees_with_interpolate_and_arithmetic() {
        let folder = Folder::new();
        let ms = ModelSpec::preset(Size::Nano, Variant::AllMoe);
        let seed = ModelSpec { variant: Variant::Ufo, ..ms.clone() };
        folder.lightning("ms.ckpt", &ms);
        folder.lightning("seed.ckpt", &seed);
        for (name, state_dict) in [("vlmo", fixtures::layouts::vlmo(&ms)), ("beit3", fixtures::layouts::beit3(&ms))] {
            fixtures::write_zip(&folder.path(&format!("{name}.pth")), &state_dict, Some("model")).unwrap();
            let file = format!("{name}.pth");
            // A base in the merged names: the experts' mean.
            folder.run_to(&["interpolate", &file, "--ratio", "0.5"], &format!("{name}.safetensors"));
        }
        for [file, base] in
            [["ms.ckpt", "seed.ckpt"], ["vlmo.pth", "vlmo.safetensors"], ["beit3.pth", "beit3.safetensors"]]
        {
            let mean = folder.run(&["interpolate", file, "--ratio", "0.5"]);
            assert_close(&folder.run(&["soup", file, "--experts"]), &mean, 3e-7);
            let sum = folder.run(&["arithmetic", file, "--base", base, "--lambda", "0.75"]);
            let args = ["dare", base, file, "--experts", "--density", "1", "--lambda", "0.75"];
            assert_close(&folder.run(&args), &sum, 3e-7);
            let ends = folder.run(&["interpolate", file, "--ratio", "1", "--experts", "used", "--task", "irtr"]);
            let args = ["slerp", file, "--experts", "used", "--task", "irtr", "--t", "0"];
            assert_close(&folder.run(&args), &ends, 0.0);
            assert_eq!(folder.run(&["ties", base, file, "--experts"]).len(), mean.len());
        }
    }

    #[test]
    fn the_result_is_modality_agnostic() {
        let folder = Folder::new();
        let ms = ModelSpec::preset(Size::Nano, Variant::AllMoe);
        folder.lightning("ms.ckpt", &ms);
        folder.lightning("seed.ckpt", &ModelSpec { variant: Variant::Ufo, ..ms });
        folder.run_to(&["ties", "seed.ckpt", "ms.ckpt", "--experts", "used", "--task", "vqa"], "out.safetensors");
        let recipe = folder.metadata("out.safetensors", "vlmerge.recipe");
        let expected = json!({"density": 0.2, "lambda": 1.0, "experts": "used", "task": "vqa"});
        assert_eq!(recipe["parameters"], expected);
        let inputs = [["checkpoint", "ms.ckpt"], ["base", "seed.ckpt"]];
        let found = recipe["inputs"].as_array().unwrap().iter().map(|input| [&input["role"], &input["name"]]);
        assert_eq!(found.collect::<Vec<_>>(), inputs);
        assert_eq!(folder.metadata("out.safetensors", "vlmerge.config")["variant"], "ufo");
        let names: Vec<String> = folder.read("out.safetensors").into_keys().collect();
        let seed: Vec<String> = folder.read("seed.ckpt").into_keys().collect();
        assert_eq!(names, seed);
    }

    #[test]
    fn a_base_with_experts_gives_each_its_own() {
        let folder = Folder::new();
        small(&folder);
        let at = |layer: usize, modality: &str| format!("transformer.blocks.{layer}.mlp.{modality}.fc1.weight");
        let names = [at(0, "v"), at(0, "l"), at(1, "v"), at(1, "l"), at(1, "vl")];
        let tensors: Vec<(&str, &[usize], &[f64])> = names
            .iter()
            .map(|name| (name.as_str(), &[2][..], if name.contains(".v.") { &[2.0, 0.0] } else { &[0.0, 4.0][..] }))
            .collect();
        folder.write("base.ckpt", &tensors);
        let out = folder.run(&["dare", "base.ckpt", "ms.ckpt", "--experts", "--density", "1"]);
        // Layer 0: mean of (2, 0), (0, 4) and vectors (1, 0), (0, 0).
        assert_eq!(layers(&out)[0], [2.0, 2.0]);
    }
}

mod refusals {
    use super::*;

    fn folder() -> Folder {
        let folder = Folder::new();
        folder.write("a.ckpt", &[("w", &[2], &[1.0, 2.0]), ("x", &[1], &[1.0]), ("y", &[1], &[1.0])]);
        folder.write("b.ckpt", &[("w", &[2], &[1.0, 2.0]), ("x", &[1], &[1.0]), ("y", &[1], &[1.0])]);
        folder.write("c.ckpt", &[("w", &[1, 2], &[1.0, 2.0]), ("y", &[1], &[1.0]), ("z", &[1], &[1.0])]);
        folder
    }

    #[test]
    fn names_and_shapes_that_dont_match_are_listed() {
        let folder = folder();
        let reason = "c.ckpt: its tensors aren't those of a.ckpt: 1 missing (x); 1 only here (z); 1 different (w is [1, 2], not [2])";
        for command in [&["soup", "a.ckpt", "b.ckpt", "c.ckpt"][..], &["slerp", "a.ckpt", "c.ckpt", "--t", "0.5"]] {
            folder.fail(command, &[reason]);
        }
        for command in [&["ties", "a.ckpt", "b.ckpt", "c.ckpt"][..], &["dare", "a.ckpt", "c.ckpt", "--density", "1"]] {
            folder.fail(command, &[reason]);
        }
        folder.write_as(
            "i.ckpt",
            &[("w", Dtype::I64, &[2], &[1.0; 2]), ("x", Dtype::F32, &[1], &[1.0]), ("y", Dtype::F32, &[1], &[1.0])],
        );
        folder.fail(&["soup", "a.ckpt", "i.ckpt"], &["1 different (w is i64, not f32)"]);
    }

    #[test]
    fn heads_with_labels_in_another_order() {
        let folder = Folder::new();
        for (name, labels) in [
            ("a.safetensors", r#"["yes","no","maybe"]"#),
            ("again.ckpt", r#"["yes", "no", "maybe"]"#),
            ("turned.safetensors", r#"["yes","maybe","no"]"#),
            ("short.safetensors", r#"["yes","no"]"#),
            ("odd.safetensors", "yes, no"),
        ] {
            let metadata = Metadata::from([("engine.labels.vqa".to_string(), labels.to_string())]);
            folder.write_with(name, &[("head", Dtype::F32, &[3], &[1.0, 2.0, 3.0])], &metadata);
        }
        folder.write("bare.safetensors", &[("head", &[3], &[1.0, 2.0, 3.0])]);
        let turned =
            ["turned.safetensors: label 2 of its vqa head is 'maybe', but 'no' in a.safetensors: rows of different"];
        folder.fail(&["soup", "a.safetensors", "again.ckpt", "turned.safetensors"], &turned);
        folder.fail(&["slerp", "a.safetensors", "turned.safetensors", "--t", "0.5"], &turned);
        // Whichever two of them it is.
        folder.fail(&["ties", "bare.safetensors", "a.safetensors", "turned.safetensors"], &turned);
        folder.fail(&["dare", "a.safetensors", "turned.safetensors", "--density", "0.5"], &turned);
        let short = "short.safetensors: label 3 of its vqa head is missing, but 'maybe' in a.safetensors";
        folder.fail(&["soup", "a.safetensors", "short.safetensors"], &[short]);
        folder.fail(
            &["soup", "a.safetensors", "odd.safetensors"],
            &["odd.safetensors: engine.labels.vqa is no list of labels"],
        );
        folder.run(&["soup", "a.safetensors", "again.ckpt", "bare.safetensors"]);
    }

    #[test]
    fn experts_against_none() {
        let folder = folder();
        let ms = ModelSpec::preset(Size::Nano, Variant::AllMoe);
        folder.lightning("ms.ckpt", &ms);
        folder.lightning("seed.ckpt", &ModelSpec { variant: Variant::Ufo, ..ms.clone() });
        folder.lightning("wide.ckpt", &ModelSpec { variant: Variant::Ufo, hidden_size: 32, ..ms });
        folder.fail(&["ties", "seed.ckpt", "ms.ckpt"], &["--experts merges those inside one checkpoint"]);
        folder.fail(&["soup", "seed.ckpt", "--experts"], &["seed.ckpt: no experts found"]);
        folder.fail(&["soup", "a.ckpt", "--experts"], &["a.ckpt: ", "no known layout"]);
        let reason = "wide.ckpt: as a base it doesn't fit: transformer.blocks.0.attn.q_bias is [32], not [16]";
        folder.fail(&["ties", "wide.ckpt", "ms.ckpt", "--experts"], &[reason]);
        folder.fail(&["dare", "wide.ckpt", "ms.ckpt", "--experts", "--density", "1"], &[reason]);
        folder.fail(
            &["soup", "ms.ckpt", "--experts", "--weights", "0.5,0.5"],
            &["ms.ckpt: ", "no weight for the vl expert"],
        );
        let zero = ["soup", "ms.ckpt", "--experts", "--weights", "1,-1,3", "--quiet"];
        folder.fail(&zero, &["ms.ckpt: ", "weights that add up to 0 can't be normalised"]);
    }

    #[test]
    fn weights_of_other_dtypes_must_be_equal() {
        let folder = Folder::new();
        let file = |name: &str, value: f64| {
            let tensors: [(&str, Dtype, &[usize], &[f64]); 2] =
                [("w", Dtype::F32, &[1], &[1.0]), ("q", Dtype::F8E4M3, &[1], &[value])];
            folder.write_as(name, &tensors);
        };
        file("a.safetensors", 1.0);
        file("b.safetensors", 1.0);
        file("c.safetensors", 2.0);
        folder.command(&["soup", "a.safetensors", "b.safetensors", "-o", "same.safetensors"]).assert().success();
        let reason = "a.safetensors: tensor 'q': f8_e4m3 values can't be merged";
        folder.fail(&["soup", "a.safetensors", "c.safetensors"], &[reason]);
    }

    #[test]
    fn nothing_to_merge() {
        let folder = folder();
        folder.write_as("i.ckpt", &[("w", Dtype::I64, &[2], &[1.0; 2])]);
        folder.fail(&["soup", "i.ckpt", "i.ckpt"], &["i.ckpt: there are no floating-point tensors to merge"]);
    }

    #[test]
    fn outputs_are_safe() {
        let folder = folder();
        let output = |name: &str| folder.command(&["soup", "a.ckpt", "b.ckpt", "-o", name]).assert().code(1);
        let stderr = |name: &str| String::from_utf8(output(name).get_output().stderr.clone()).unwrap();
        assert_eq!(stderr("b.ckpt"), "vlmerge: b.ckpt: this output is also an input: choose another name\n");
        assert!(stderr("c.ckpt").contains("exists already"));
        assert!(stderr("out.txt").contains("which format?"));
        folder.fail(&["soup", "a.ckpt", "none.ckpt"], &["none.ckpt: cannot"]);
        let left: Vec<_> =
            std::fs::read_dir(folder.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    }

    #[test]
    fn wrong_usage() {
        let folder = folder();
        let cases: [(&[&str], &str); 22] = [
            (&["soup", "a.ckpt"], "--experts merges the experts inside one"),
            (&["soup"], "<FILE>"),
            (&["slerp", "a.ckpt", "--t", "0.5"], "--experts merges the experts inside one"),
            (&["slerp", "a.ckpt", "b.ckpt"], "--t"),
            (&["slerp", "a.ckpt", "b.ckpt", "b.ckpt", "--t", "0.5"], "here are 3"),
            (&["slerp", "a.ckpt", "b.ckpt", "--t", "nan"], "finite"),
            (&["ties", "a.ckpt"], "<FILE>"),
            (&["soup", "a.ckpt", "b.ckpt", "--experts"], "here are 2"),
            (&["ties", "a.ckpt", "a.ckpt", "b.ckpt", "--experts"], "here are 2"),
            (&["soup", "a.ckpt", "b.ckpt", "--task", "vqa"], "--experts used"),
            (&["soup", "a.ckpt", "--experts", "used"], "--task"),
            (&["soup", "a.ckpt", "b.ckpt", "--weights", "1,2,3"], "3 numbers for 2 checkpoints"),
            (&["soup", "a.ckpt", "b.ckpt", "--weights", "1,-1"], "can't be normalised"),
            (&["soup", "a.ckpt", "b.ckpt", "--weights", "1,inf"], "finite"),
            (&["soup", "a.ckpt", "b.ckpt", "--weights", "v=1,l=2"], "is for --experts"),
            (&["soup", "a.ckpt", "--experts", "--weights", "v=1"], "both v=… and l=…"),
            (&["soup", "a.ckpt", "b.ckpt", "--no-normalize"], "--weights"),
            (&["ties", "a.ckpt", "b.ckpt", "--density", "0"], "more than 0"),
            (&["ties", "a.ckpt", "b.ckpt", "--density", "1.5"], "at most 1"),
            (&["dare", "a.ckpt", "b.ckpt", "--density", "-0.5"], "more than 0"),
            (&["dare", "a.ckpt", "b.ckpt", "--density", "0.5", "--lambda", "inf"], "finite"),
            (&["soup", "a.ckpt", "b.ckpt", "a.ckpt", "--root", "x", "--root", "y"], "2 times for 3 files"),
        ];
        for (args, reason) in cases {
            let assert = folder.command(&[args, &["-o", "out.ckpt"]].concat()).assert().code(2);
            let stderr = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
            assert!(stderr.starts_with("error: ") && stderr.contains(reason), "{args:?}: {stderr}");
        }
    }

    #[test]
    fn extrapolation_is_warned_of() {
        let folder = folder();
        let cases: [(&[&str], &str); 4] = [
            (&["slerp", "a.ckpt", "b.ckpt", "--t", "1.5"], "t 1.5 is outside 0 to 1"),
            (&["soup", "a.ckpt", "b.ckpt", "--weights", "2,-1"], "below 0"),
            (&["ties", "a.ckpt", "b.ckpt", "--lambda", "-3"], "λ -3 is far from"),
            (&["dare", "a.ckpt", "b.ckpt", "--density", "1", "--lambda", "5"], "λ 5 is far from"),
        ];
        for (args, warning) in cases {
            let (_, stderr) = folder.run_saying(args);
            assert!(stderr.starts_with("vlmerge: warning: ") && stderr.contains(warning), "{args:?}: {stderr}");
        }
    }
}

/// Rounded to f32, as files hold it.
fn single<const N: usize>(values: [f64; N]) -> [f64; N] {
    values.map(|x| x as f32 as f64)
}

/// Values by name.
type Tensors = BTreeMap<String, Vec<f64>>;

fn assert_close(found: &Tensors, expected: &Tensors, tolerance: f64) {
    assert!(found.keys().eq(expected.keys()));
    for (name, expected) in expected {
        let difference = absolute_difference(expected, &found[name]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(difference <= tolerance, "{name}: off by {difference:e}");
    }
}

/// A folder of checkpoints, in which commands run.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn lightning(&self, name: &str, spec: &ModelSpec) {
        fixtures::write_lightning(&self.path(name), spec, &LightningOptions::default()).unwrap();
    }

    fn write(&self, name: &str, tensors: &[(&str, &[usize], &[f64])]) {
        let tensors: Vec<_> = tensors.iter().map(|&(name, shape, values)| (name, Dtype::F32, shape, values)).collect();
        self.write_as(name, &tensors);
    }

    fn write_as(&self, name: &str, tensors: &[(&str, Dtype, &[usize], &[f64])]) {
        self.write_with(name, tensors, &Metadata::new());
    }

    fn write_with(&self, name: &str, tensors: &[(&str, Dtype, &[usize], &[f64])], metadata: &Metadata) {
        let encoded: BTreeMap<&str, Vec<u8>> = tensors
            .iter()
            .map(|&(name, dtype, _, values)| {
                let mut bytes = Vec::new();
                if !encode_f64(values, dtype, &mut bytes) {
                    values.iter().for_each(|&value| bytes.extend(&(value as i64).to_le_bytes()[..dtype.size()]));
                }
                (name, bytes)
            })
            .collect();
        let infos =
            tensors.iter().map(|&(name, dtype, shape, _)| TensorInfo { name: name.into(), dtype, shape: shape.into() });
        let writer = Writer::create(&self.path(name), infos.collect(), metadata).unwrap();
        let names: Vec<&str> = writer.tensors().iter().map(|info| info.name.as_str()).collect();
        let filled = writer.fill(
            1,
            |_| true,
            |piece: &Piece, bytes: &mut Vec<u8>| -> formats::Result<&[u8]> {
                bytes.clone_from(&encoded[names[piece.tensor]]);
                Ok(bytes)
            },
        );
        filled.unwrap();
        writer.finish(metadata).unwrap();
    }

    fn read(&self, name: &str) -> Tensors {
        let checkpoint = formats::open(self.path(name)).unwrap();
        let read = |(index, info): (usize, &TensorInfo)| {
            let mut values = Vec::new();
            checkpoint.read_f64(index, 0..info.elements(), &mut values).unwrap();
            (info.name.clone(), values)
        };
        checkpoint.tensors().iter().enumerate().map(read).collect()
    }

    fn metadata(&self, name: &str, key: &str) -> Value {
        let checkpoint = formats::open(self.path(name)).unwrap();
        serde_json::from_str(&checkpoint.metadata()[key]).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_vlmerge")));
        command.current_dir(self.0.path()).args(args);
        command
    }

    /// What a merge gives.
    fn run(&self, args: &[&str]) -> Tensors {
        self.run_to(args, "out.safetensors")
    }

    fn run_to(&self, args: &[&str], output: &str) -> Tensors {
        self.command(&[args, &["-o", output, "--force"]].concat()).assert().success();
        self.read(output)
    }

    /// What a merge gives, and says on stderr.
    fn run_saying(&self, args: &[&str]) -> (Tensors, String) {
        let assert = self.command(&[args, &["-o", "out.safetensors", "--force"]].concat()).assert().success();
        let stderr = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        (self.read("out.safetensors"), stderr)
    }

    /// Expects a failure that one line on stderr explains.
    fn fail(&self, args: &[&str], reasons: &[&str]) {
        let assert = self.command(&[args, &["-o", "out.safetensors"]].concat()).assert().code(1);
        let stderr = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert!(stderr.starts_with("vlmerge: ") && stderr.trim_end().lines().count() == 1, "{args:?}: {stderr}");
        for reason in reasons {
            assert!(stderr.contains(reason), "{args:?}: {stderr}");
        }
        assert!(!self.path("out.safetensors").exists());
    }
}
