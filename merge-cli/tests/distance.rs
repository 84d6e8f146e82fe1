//! `vlmerge distance`, run as a user would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use fixtures::layouts::{beit3, vlmo};
use fixtures::{LightningOptions, ModelSpec, Size, Variant};
use formats::layout::{Layout, Modality, Part, group};
use formats::{Checkpoint, Dtype};
use serde_json::Value;
use tempfile::TempDir;

fn vlmerge(folder: &Path, args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_vlmerge")).current_dir(folder).arg("distance").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The report of a run that succeeds.
fn stdout(folder: &Path, args: &[&str]) -> String {
    let output = vlmerge(folder, args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

fn json(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&stdout(folder, &[args, &["--json"]].concat())).unwrap()
}

/// The one line of a run that fails.
fn refusal(folder: &Path, args: &[&str]) -> String {
    let output = vlmerge(folder, args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    let stderr = text(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

fn nano() -> ModelSpec {
    ModelSpec::preset(Size::Nano, Variant::AllMoe)
}

/// `ms.ckpt`, its `seed.ckpt`, and `other.ckpt`, modality-specific with other values.
fn folder(spec: &ModelSpec) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let seed = ModelSpec { variant: Variant::Ufo, ..spec.clone() };
    let other = ModelSpec { seed: 1, ..spec.clone() };
    for (name, spec) in [("ms.ckpt", spec), ("seed.ckpt", &seed), ("other.ckpt", &other)] {
        fixtures::write_lightning(&folder.path().join(name), spec, &LightningOptions::default()).unwrap();
    }
    folder
}

/// Writes f32 tensors of one dimension as safetensors.
fn write(path: PathBuf, tensors: &[(&str, &[f32])]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": [values.len()], "data_offsets": [start, data.len()]});
        header.insert(name.to_string(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

/// What the definitions say, straight from them: L2, cosine, SSD, TSSD.
fn by_definition(x: &[f64], y: &[f64], top_k: f64) -> [f64; 4] {
    assert_eq!(x.len(), y.len());
    let sum = |of: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(&x, &y)| of(x, y)).sum::<f64>();
    let cosine = sum(&|x, y| x * y) / (sum(&|x, _| x * x).sqrt() * sum(&|_, y| y * y).sqrt());
    let ssd = |x: &[f64], y: &[f64]| {
        let term = |(&x, &y): (&f64, &f64)| match x.abs() + y.abs() {
            0.0 => 0.0,
            size => 1.0 - (x + y).abs() / size,
        };
        x.iter().zip(y).map(term).sum::<f64>() / x.len() as f64
    };
    let truncated = |values: &[f64]| -> Vec<f64> {
        let mut sizes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
        sizes.sort_by(|a, b| b.total_cmp(a));
        let least = sizes[(top_k * values.len() as f64 / 100.0).ceil() as usize - 1];
        values.iter().map(|&value| if value.abs() >= least { value } else { 0.0 }).collect()
    };
    [sum(&|x, y| (x - y) * (x - y)).sqrt(), cosine, ssd(x, y), ssd(&truncated(x), &truncated(y))]
}

fn values(checkpoint: &Checkpoint, tensor: usize) -> Vec<f64> {
    let mut values = Vec::new();
    checkpoint.read_f64(tensor, 0..checkpoint.tensors()[tensor].elements(), &mut values).unwrap();
    values
}

/// Every row of the report against the definitions, over concatenated tensors. Modality vectors are compared
/// when the base is modality-agnostic and the dtype f32 or wider.
fn check(folder: &Path, ms: &str, base: Option<&str>, top_k: f64) {
    let k = top_k.to_string();
    let mut args = vec![ms, "--top-k", &k];
    args.extend(base.iter().flat_map(|base| ["--base", base]));
    let report = json(folder, &args);
    let checkpoint = formats::open(folder.join(ms)).unwrap();
    let base = base.map(|base| formats::open(folder.join(base)).unwrap());
    let names = checkpoint.tensors().iter().map(|info| info.name.as_str());
    let layout = Layout::detect(names).unwrap().layout;
    assert_eq!(report["layout"], layout.name());
    let experts = group(layout, checkpoint.tensors(), checkpoint.path()).unwrap();
    let wide = checkpoint.tensors().iter().any(|info| info.dtype == Dtype::F64);

    let mut wanted = BTreeMap::new();
    let spaces: &[&str] = if base.is_some() { &["weights", "modality_vectors"] } else { &["weights"] };
    for space in spaces {
        for (a, b) in [("v", "l"), ("v", "vl"), ("l", "vl")] {
            for slot in &experts.slots {
                let expert = |name: &str| slot.expert(name.parse::<Modality>().unwrap());
                let (Some(x), Some(y)) = (expert(a), expert(b)) else { continue };
                let part = match slot.part {
                    Part::Norm1 | Part::Norm2 => "norms".to_string(),
                    part => part.to_string(),
                };
                let vector = |tensor| {
                    let mut values = values(&checkpoint, tensor);
                    if *space == "modality_vectors" {
                        let base = base.as_ref().unwrap();
                        let base = self::values(base, base.position(&slot.slot).unwrap());
                        assert_eq!(base.len(), values.len());
                        for (value, base) in values.iter_mut().zip(base) {
                            *value = if wide { *value - base } else { f64::from(*value as f32 - base as f32) };
                        }
                    }
                    values
                };
                let (x, y) = (vector(x), vector(y));
                let layer = slot.layer.map(|layer| layer as u64);
                for key in [
                    ("overall", None, String::new()),
                    ("part", None, part.clone()),
                    ("layer", layer, String::new()),
                    ("layer_part", layer, part),
                ] {
                    let row: &mut (Vec<f64>, Vec<f64>) = wanted.entry((*space, a, b, key)).or_default();
                    row.0.extend(&x);
                    row.1.extend(&y);
                }
            }
        }
    }

    let rows = report["distances"].as_array().unwrap();
    assert_eq!(rows.len(), wanted.len());
    for row in rows {
        let field = |key: &str| row[key].as_str().unwrap_or("");
        let pair = |side: usize| row["pair"][side].as_str().unwrap();
        let key = (field("scope"), row["layer"].as_u64(), field("part").to_string());
        let (x, y) = &wanted[&(field("space"), pair(0), pair(1), key)];
        assert_eq!(row["elements"], x.len(), "{row}");
        let metrics = by_definition(x, y, top_k);
        for (name, wanted) in ["l2", "cosine", "ssd", "tssd"].into_iter().zip(metrics) {
            let found = row[name].as_f64().unwrap();
            assert!((found - wanted).abs() <= 1e-12 * wanted.abs().max(1.0), "{name} {wanted} {row}");
        }
    }
}

#[test]
fn by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let fc1 = |modality: &str| format!("transformer.blocks.0.mlp.{modality}.fc1.weight");
    let (v, l) = ([3.0f32, -1.0, 0.0, 4.0, 1.0], [4.0f32, 3.0, 0.0, 0.0, -1.0]);
    write(folder.path().join("ms.safetensors"), &[(&fc1("v"), &v), (&fc1("l"), &l)]);
    write(folder.path().join("seed.safetensors"), &[("transformer.blocks.0.mlp.fc1.weight", &[3.0; 5])]);
    let report = json(folder.path(), &["ms.safetensors", "--base", "seed.safetensors", "--top-k", "60"]);
    assert_eq!((&report["top_k"], &report["checkpoint"]), (&60.0.into(), &"ms.safetensors".into()));
    let overall = |space: &str| {
        let rows = report["distances"].as_array().unwrap();
        rows.iter().find(|row| row["space"] == space && row["scope"] == "overall").unwrap().clone()
    };
    // |x+y|/(|x|+|y|) is 7/7, 2/4, 0/0, 4/4, 0/2. The top 3 of x are 4, 3 and, tied, −1 and 1; of y 4, 3, −1.
    let weights = overall("weights");
    assert_eq!(weights["l2"], 37f64.sqrt());
    assert_eq!(weights["cosine"], 8.0 / f64::sqrt(27.0 * 26.0));
    assert_eq!((&weights["ssd"], &weights["tssd"]), (&0.3.into(), &0.3.into()));
    // x − 3 = 0 −4 −3 1 −2 and y − 3 = 1 0 −3 −3 −4: only the fourth differ in sign, 1 − 2/4. Of x the top
    // three are −4, −3, −2, which leaves the 1 out.
    let vectors = overall("modality_vectors");
    assert_eq!(vectors["l2"], 37f64.sqrt());
    assert_eq!(vectors["cosine"], (9.0 - 3.0 + 8.0) / f64::sqrt(30.0 * 35.0));
    assert_eq!((&vectors["ssd"], &vectors["tssd"]), (&0.1.into(), &0.0.into()));
}

#[test]
fn every_row_is_what_the_definitions_say() {
    let folder = folder(&nano());
    check(folder.path(), "ms.ckpt", Some("seed.ckpt"), 20.0);
    check(folder.path(), "ms.ckpt", Some("seed.ckpt"), 100.0);
    check(folder.path(), "ms.ckpt", None, 0.01);
}

#[test]
fn on_any_precision() {
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F64] {
        let folder = folder(&ModelSpec { dtype, ..nano() });
        check(folder.path(), "ms.ckpt", Some("seed.ckpt"), 35.5);
    }
}

#[test]
fn on_other_layouts() {
    let folder = tempfile::tempdir().unwrap();
    fixtures::write_zip(&folder.path().join("vlmo.ckpt"), &vlmo(&nano()), Some("state_dict")).unwrap();
    fixtures::write_zip(&folder.path().join("beit3.pth"), &beit3(&nano()), Some("model")).unwrap();
    check(folder.path(), "vlmo.ckpt", None, 20.0);
    check(folder.path(), "beit3.pth", None, 20.0);
    // BEiT-3's last norm stands outside the layers.
    let report = json(folder.path(), &["beit3.pth"]);
    let rows = report["distances"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["scope"] == "layer" && row["layer"].is_null()), "{report}");
    assert!(stdout(folder.path(), &["beit3.pth", "--plot", "a.svg"]).contains("other"));
    assert!(!stdout(folder.path(), &["vlmo.ckpt", "--layout", "vlmo"]).contains("attn"));
}

#[test]
fn tensors_of_several_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let n = (1 << 20) + 70_000;
    let value = |i: usize, seed: usize| ((i * seed) % 1009) as f32 / 504.0 - 1.0;
    let (v, l): (Vec<f32>, Vec<f32>) = (0..n).map(|i| (value(i, 31), value(i, 57))).unzip();
    let name = |modality: &str| format!("transformer.blocks.0.attn.{modality}.proj.weight");
    write(folder.path().join("ms.safetensors"), &[(&name("v"), &v), (&name("l"), &l)]);
    check(folder.path(), "ms.safetensors", None, 20.0);
}

#[test]
fn the_report_does_not_depend_on_threads() {
    let folder = folder(&nano());
    let report = |threads| stdout(folder.path(), &["ms.ckpt", "--base", "seed.ckpt", "--json", "--threads", threads]);
    assert_eq!(report("1"), report("5"));
}

#[test]
fn a_base_may_be_modality_specific() {
    let folder = folder(&nano());
    let report = json(folder.path(), &["ms.ckpt", "--base", "other.ckpt"]);
    assert_eq!(report["distances"].as_array().unwrap().len(), 72);
    // Each expert against itself: no vectors, no angle.
    let report = json(folder.path(), &["ms.ckpt", "--base", "ms.ckpt"]);
    let vectors = report["distances"].as_array().unwrap().iter().filter(|row| row["space"] == "modality_vectors");
    for row in vectors {
        assert_eq!((&row["l2"], &row["ssd"], &row["tssd"]), (&0.0.into(), &0.0.into(), &0.0.into()));
        assert!(row["cosine"].is_null());
    }
    assert!(stdout(folder.path(), &["ms.ckpt", "--base", "ms.ckpt"]).contains('–'));
}

#[test]
fn tables_fit_100_columns() {
    let folder = folder(&ModelSpec { layers: 24, vl_start: 21, ..nano() });
    let report = stdout(folder.path(), &["ms.ckpt", "--base", "seed.ckpt"]);
    for line in report.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for wanted in ["v–l", "v–vl", "l–vl", "attn", "norms", "L2", "Cosine", "TSSD", "better merge"] {
        assert!(report.contains(wanted), "{wanted}");
    }
}

#[test]
fn plots() {
    let folder = folder(&nano());
    let run = |args: &[&str]| stdout(folder.path(), &[&["ms.ckpt", "--base", "seed.ckpt"], args].concat());
    assert!(run(&["--plot", "a.svg"]).contains("a.svg"));
    run(&["--plot", "a.PNG"]);
    let svg = std::fs::read_to_string(folder.path().join("a.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    // 4 distances × 2 spaces; layers × parts of v–l, and of one layer for the other two pairs.
    assert_eq!(svg.matches("</title></rect>").count(), 8 * (12 + 3 + 3));
    for label in ["ms.ckpt", "seed.ckpt", "v–l", "attention", "mlp", "norms", "layer", "part", "TSSD", "cosine"] {
        assert!(svg.contains(label), "{label}");
    }
    assert!(std::fs::read(folder.path().join("a.PNG")).unwrap().starts_with(b"\x89PNG\r\n"));

    let args = ["ms.ckpt", "--plot", "a.svg"];
    assert!(refusal(folder.path(), &args).contains("a.svg: the file exists already; --force replaces it"));
    stdout(folder.path(), &[&args[..], &["--force"]].concat());
    assert_ne!(std::fs::read_to_string(folder.path().join("a.svg")).unwrap(), svg);
    let left: Vec<String> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.contains("tmp")), "{left:?}");
}

#[test]
fn plots_that_cannot_be() {
    let folder = folder(&nano());
    let refused = |plot: &str| refusal(folder.path(), &["ms.ckpt", "--force", "--plot", plot]);
    assert!(refused("a.pdf").contains("a.pdf: which format? name the plot .svg or .png"));
    assert!(refused("plot").contains("which format?"));
    assert!(refused("nowhere/a.svg").contains("nowhere/a.svg: there is no folder nowhere"));
    std::fs::create_dir(folder.path().join("b.svg")).unwrap();
    assert!(refused("b.svg").contains("this is a folder"));
    std::fs::copy(folder.path().join("ms.ckpt"), folder.path().join("ms.png")).unwrap();
    let reason = refusal(folder.path(), &["ms.png", "--force", "--plot", "ms.png"]);
    assert!(reason.contains("this output is also an input"), "{reason}");
}

#[test]
fn nothing_to_compare() {
    let folder = folder(&nano());
    let reason = refusal(folder.path(), &["seed.ckpt", "--plot", "a.svg"]);
    assert!(reason.contains("seed.ckpt: no experts found: this is already modality-agnostic"), "{reason}");
    assert!(!folder.path().join("a.svg").exists());
}

#[test]
fn a_base_that_does_not_fit() {
    let folder = folder(&nano());
    let wide = ModelSpec { hidden_size: 32, variant: Variant::Ufo, ..nano() };
    fixtures::write_lightning(&folder.path().join("wide.ckpt"), &wide, &LightningOptions::default()).unwrap();
    let reason = refusal(folder.path(), &["ms.ckpt", "--base", "wide.ckpt"]);
    assert!(reason.contains("wide.ckpt: as a base it doesn't fit: "), "{reason}");
    assert!(reason.contains("transformer.blocks.0.attn.q_bias is [32], not [16]"), "{reason}");
    fixtures::write_zip(&folder.path().join("beit3.pth"), &beit3(&nano()), None).unwrap();
    let reason = refusal(folder.path(), &["ms.ckpt", "--base", "beit3.pth"]);
    assert!(reason.contains("transformer.blocks.0.attn.q_bias is missing") && reason.contains("more"), "{reason}");
}

#[test]
fn values_that_have_no_distance() {
    let folder = tempfile::tempdir().unwrap();
    let name = |modality: &str| format!("transformer.blocks.0.attn.{modality}.proj.weight");
    for (file, bad) in [("nan.safetensors", f32::NAN), ("inf.safetensors", f32::NEG_INFINITY)] {
        write(folder.path().join(file), &[(&name("v"), &[1.0, 2.0]), (&name("l"), &[1.0, bad])]);
        let reason = refusal(folder.path(), &[file]);
        let wanted = format!("{file}: tensor '{}': it holds NaN or infinity", name("l"));
        assert!(reason.contains(&wanted), "{reason}");
    }
    write(folder.path().join("ms.safetensors"), &[(&name("v"), &[1.0, 2.0]), (&name("l"), &[1.0, 3.0])]);
    write(folder.path().join("seed.safetensors"), &[("transformer.blocks.0.attn.proj.weight", &[f32::NAN, 0.0])]);
    let reason = refusal(folder.path(), &["ms.safetensors", "--base", "seed.safetensors"]);
    assert!(reason.contains("seed.safetensors: tensor 'transformer.blocks.0.attn.proj.weight'"), "{reason}");
}

#[test]
fn empty_tensors_are_no_distance_apart() {
    let folder = tempfile::tempdir().unwrap();
    let name = |modality: &str| format!("transformer.blocks.0.attn.{modality}.proj.weight");
    write(folder.path().join("ms.safetensors"), &[(&name("v"), &[]), (&name("l"), &[])]);
    let report = json(folder.path(), &["ms.safetensors", "--plot", "a.png"]);
    assert_eq!(report["distances"][0]["l2"], 0.0);
    assert!(report["distances"][0]["cosine"].is_null());
}

#[test]
fn usage() {
    let folder = folder(&nano());
    for top_k in ["0", "-5", "100.5", "nan", "inf", "many", ""] {
        let output = vlmerge(folder.path(), &["ms.ckpt", "--top-k", top_k]);
        assert_eq!(output.status.code(), Some(2), "{top_k}");
        assert!(text(&output.stderr).contains("--top-k"), "{}", text(&output.stderr));
    }
    for args in [&["ms.ckpt", "--force"][..], &["ms.ckpt", "--base-root", "model"], &[]] {
        assert_eq!(vlmerge(folder.path(), args).status.code(), Some(2));
    }
    let reason = refusal(folder.path(), &["ms.ckpt", "--layout", "nonesuch"]);
    assert!(reason.contains("there is no layout 'nonesuch'"), "{reason}");
}
