//! `vlmerge regmean` as a user runs it: by hand, by its definition, on the golden values, and on bad input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use fixtures::compare::assert_close;
use formats::grams::{GRAMS_KEY, GramRecord};
use formats::layout::{Layout, Modality};
use formats::write::{Metadata, Writer};
use formats::{Checkpoint, Dtype, TensorInfo};
use ndarray::{Array1, Array2};
use ndarray_linalg::{EigValsh, UPLO};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with an `ms.safetensors`, a `grams.safetensors` and what is made of them.
struct Case {
    folder: TempDir,
    /// Extra arguments, after `regmean ms.safetensors --grams grams.safetensors`.
    args: Vec<String>,
}

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    values: Vec<f64>,
}

fn tensor(name: impl Into<String>, shape: &[usize], values: &[f64]) -> Tensor {
    Tensor { name: name.into(), dtype: Dtype::F64, shape: shape.to_vec(), values: values.to_vec() }
}

/// A weight of layer 0's `mlp.fc1`, the only linear layer of most of these models.
fn weight(modality: &str, shape: &[usize], values: &[f64]) -> Tensor {
    tensor(format!("transformer.blocks.0.mlp.{modality}.fc1.weight"), shape, values)
}

fn gram(modality: &str, shape: &[usize], values: &[f64]) -> Tensor {
    tensor(format!("transformer.blocks.0.mlp.{modality}.fc1"), shape, values)
}

const FC1: &str = "transformer.blocks.0.mlp.fc1.weight";

fn write(path: &Path, tensors: &[Tensor], metadata: &Metadata) {
    let info = |t: &Tensor| TensorInfo { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() };
    let writer = Writer::create(path, tensors.iter().map(info).collect(), metadata).unwrap();
    let order: Vec<&Tensor> =
        writer.tensors().iter().map(|info| tensors.iter().find(|t| t.name == info.name).unwrap()).collect();
    writer
        .fill(
            1,
            |_| false,
            |piece, bytes: &mut Vec<u8>| -> formats::Result<&[u8]> {
                bytes.clear();
                let tensor = order[piece.tensor];
                match tensor.dtype {
                    Dtype::I64 => tensor.values.iter().for_each(|&x| bytes.extend((x as i64).to_le_bytes())),
                    dtype => assert!(formats::encode_f64(&tensor.values[piece.elements.clone()], dtype, bytes)),
                }
                Ok(bytes)
            },
        )
        .unwrap();
    writer.finish(metadata).unwrap();
}

impl Case {
    fn new(ms: &[Tensor], grams: &[Tensor], args: &str) -> Case {
        let folder = tempfile::tempdir().unwrap();
        let case = Case { folder, args: args.split_whitespace().map(String::from).collect() };
        write(&case.path("ms.safetensors"), ms, &Metadata::new());
        write(&case.path("grams.safetensors"), grams, &Metadata::new());
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = vlmerge();
        command.current_dir(self.folder.path()).args(args);
        command
    }

    /// Merges with `args` and `more`, and returns the report.
    fn merge_with(&self, more: &[&str]) -> Value {
        let mut command = self.command(&["regmean", "ms.safetensors", "--grams", "grams.safetensors", "--json"]);
        let output = command.args(&self.args).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The merged `name`, and the report on its layer.
    fn merge(&self, name: &str) -> (Vec<f64>, Value) {
        let report = self.merge_with(&["--force"]);
        let layers = report["layers"].as_array().unwrap();
        let layer = layers.iter().find(|layer| layer["slot"] == name).cloned().unwrap_or_default();
        (values(&formats::open(self.path("merged.safetensors")).unwrap(), name), layer)
    }

    /// The one line on stderr of a merge that fails and leaves nothing behind.
    fn refusal(&self) -> String {
        let mut command = self.command(&["regmean", "ms.safetensors", "--grams", "grams.safetensors"]);
        refusal(command.args(&self.args), self.folder.path())
    }
}

fn refusal(command: &mut Command, folder: &Path) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!((stderr.lines().count(), output.stdout.len()), (1, 0), "{stderr}");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains("merged"), "{name} is left");
    }
    stderr.trim_end().to_string()
}

fn vlmerge() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vlmerge"))
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f64> {
    let tensor = checkpoint.position(name).unwrap_or_else(|| panic!("{name} is missing"));
    let mut values = Vec::new();
    checkpoint.read_f64(tensor, 0..checkpoint.tensors()[tensor].elements(), &mut values).unwrap();
    values
}

fn matrix(checkpoint: &Checkpoint, name: &str) -> Array2<f64> {
    let shape = &checkpoint.get(name).unwrap_or_else(|| panic!("{name} is missing")).shape;
    Array2::from_shape_vec((shape[0], shape[1]), values(checkpoint, name)).unwrap()
}

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1e-300)
}

/// Numbers between −½ and ½ without any pattern.
fn entries(count: usize, seed: usize) -> Vec<f64> {
    let value = |i: usize| {
        let mix = (i + 1) as f64 * 0.618_033_988_749_894_9 + seed as f64 * 0.324_717_957_244_746;
        (mix * (1.0 + mix.fract())).fract() - 0.5
    };
    (0..count).map(value).collect()
}

fn random(rows: usize, columns: usize, seed: usize) -> Array2<f64> {
    Array2::from_shape_vec((rows, columns), entries(rows * columns, seed)).unwrap()
}

/// XᵀX, symmetric to the last bit.
fn random_gram(samples: usize, d: usize, seed: usize) -> Array2<f64> {
    let x = random(samples, d, seed);
    let gram = x.t().dot(&x);
    Array2::from_shape_fn((d, d), |(i, j)| gram[(i.min(j), i.max(j))])
}

fn objective(w: &Array2<f64>, experts: &[Array2<f64>], grams: &[Array2<f64>]) -> f64 {
    experts.iter().zip(grams).map(|(expert, gram)| (w - expert).dot(gram) * (w - expert)).map(|p| p.sum()).sum()
}

mod by_hand {
    use super::*;

    #[test]
    fn numbers() {
        let ms = [weight("v", &[1, 1], &[2.0]), weight("l", &[1, 1], &[6.0])];
        let grams = [gram("v", &[1, 1], &[3.0]), gram("l", &[1, 1], &[1.0])];
        // (2·3 + 6·1)/4; the mean is 4: (4 − 2)²·3 + (4 − 6)²·1 = 16; (3 − 2)²·3 + (3 − 6)²·1 = 12.
        let (merged, layer) = Case::new(&ms, &grams, "--task irtr").merge(FC1);
        assert_eq!(merged, [3.0]);
        assert_eq!((&layer["mean_objective"], &layer["objective"]), (&16.0.into(), &12.0.into()));
        assert_eq!(layer["modalities"], serde_json::json!(["v", "l"]));

        // The ridge is half of the mean diagonal 4, in equal shares: (2·(3 + 1) + 6·(1 + 1))/6.
        let (merged, layer) = Case::new(&ms, &grams, "--task irtr --ridge 0.5").merge(FC1);
        assert!(close(merged[0], 20.0 / 6.0, 1e-15), "{merged:?}");
        // (4/3)²·3 + (8/3)²·1
        assert!(close(layer["objective"].as_f64().unwrap(), 112.0 / 9.0, 1e-12), "{layer}");
        assert!(close(layer["mean_objective"].as_f64().unwrap(), 16.0, 1e-6), "{layer}");
    }

    #[test]
    fn diagonal_grams_weigh_each_column() {
        let ms = [weight("v", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), weight("l", &[2, 2], &[5.0, 6.0, 7.0, 8.0])];
        let grams = [gram("v", &[2, 2], &[1.0, 0.0, 0.0, 3.0]), gram("l", &[2, 2], &[1.0, 0.0, 0.0, 1.0])];
        let check = |merged: Vec<f64>| assert_close("merged", &[3.0, 3.0, 5.0, 5.0], &merged, 1e-15);
        check(Case::new(&ms, &grams, "--task irtr").merge(FC1).0);
        // Entries off the diagonal don't count with scale 0.
        let grams = [gram("v", &[2, 2], &[1.0, 0.9, 0.9, 3.0]), gram("l", &[2, 2], &[1.0, -0.2, -0.2, 1.0])];
        check(Case::new(&ms, &grams, "--task irtr --non-diag-scale 0").merge(FC1).0);
    }

    #[test]
    fn equal_grams_give_the_mean() {
        let ms = [weight("v", &[1, 2], &[1.0, 2.0]), weight("l", &[1, 2], &[5.0, -2.0])];
        let grams = ["v", "l"].map(|m| gram(m, &[2, 2], &[2.0, 1.0, 1.0, 2.0]));
        let (merged, layer) = Case::new(&ms, &grams, "--task irtr").merge(FC1);
        assert!(close(merged[0], 3.0, 1e-15) && merged[1].abs() < 1e-15, "{merged:?}");
        assert!(close(layer["objective"].as_f64().unwrap(), layer["mean_objective"].as_f64().unwrap(), 1e-6));
    }

    #[test]
    fn three_experts() {
        let ms = [("v", 3.0), ("l", 6.0), ("vl", 9.0)].map(|(modality, value)| weight(modality, &[1, 1], &[value]));
        let grams = [("v", 1.0), ("l", 2.0), ("vl", 3.0)].map(|(modality, value)| gram(modality, &[1, 1], &[value]));
        let (merged, layer) = Case::new(&ms, &grams, "--experts all").merge(FC1);
        assert_eq!(merged, [7.0]);
        // 4²·1 + 1²·2 + 2²·3, and from the mean 6: 3²·1 + 0 + 3²·3
        assert!(close(layer["objective"].as_f64().unwrap(), 30.0, 1e-12), "{layer}");
        assert!(close(layer["mean_objective"].as_f64().unwrap(), 36.0, 1e-6), "{layer}");
    }

    #[test]
    fn what_is_not_linear_becomes_the_mean() {
        let name = |modality: &str| format!("transformer.blocks.0.mlp.{modality}.fc1.bias");
        let ms = [
            weight("v", &[1, 1], &[2.0]),
            weight("l", &[1, 1], &[6.0]),
            tensor(name("v"), &[2], &[1.0, 2.0]),
            tensor(name("l"), &[2], &[2.0, 4.0]),
            tensor("logit_scale", &[], &[7.0]),
        ];
        let grams = [gram("v", &[1, 1], &[3.0]), gram("l", &[1, 1], &[1.0])];
        let case = Case::new(&ms, &grams, "--task irtr");
        assert_eq!(case.merge("transformer.blocks.0.mlp.fc1.bias").0, [1.5, 3.0]);
        assert_eq!(case.merge("logit_scale").0, [7.0]);
    }

    /// A layer that the task uses one expert of takes it over, bit for bit, and needs no gram.
    #[test]
    fn one_expert_is_taken_over() {
        let ms = [("v", 3.0), ("l", 6.0), ("vl", 0.1)].map(|(modality, value)| weight(modality, &[1, 1], &[value]));
        let (merged, layer) = Case::new(&ms, &[tensor("unused", &[1], &[0.0])], "--task vqa").merge(FC1);
        assert_eq!(merged, [0.1]);
        assert_eq!(layer["modalities"], serde_json::json!(["vl"]));
    }

    #[test]
    fn the_checkpoints_dtype_is_kept() {
        let grams = [gram("v", &[1, 1], &[2.0]), gram("l", &[1, 1], &[1.0])];
        for (dtype, expected) in [(Dtype::F32, f64::from(5.0f32 / 3.0)), (Dtype::Bf16, 1.664_062_5)] {
            let mut ms = [weight("v", &[1, 1], &[1.0]), weight("l", &[1, 1], &[3.0])];
            ms.iter_mut().for_each(|tensor| tensor.dtype = dtype);
            let case = Case::new(&ms, &grams, "--task irtr");
            assert_eq!(case.merge(FC1).0, [expected]);
            assert_eq!(formats::open(case.path("merged.safetensors")).unwrap().get(FC1).unwrap().dtype, dtype);
        }
    }
}

mod by_definition {
    use super::*;

    /// Sizes around those of blocks and bands, more and fewer rows than columns.
    const SIZES: [(usize, usize); 7] = [(1, 1), (5, 2), (3, 64), (70, 65), (40, 130), (300, 130), (20, 300)];

    fn case(out: usize, d: usize, modalities: &[&str], args: &str) -> (Case, Vec<Array2<f64>>, Vec<Array2<f64>>) {
        let numbered = || modalities.iter().enumerate();
        let experts: Vec<Array2<f64>> = numbered().map(|(m, _)| random(out, d, m)).collect();
        let grams: Vec<Array2<f64>> = numbered().map(|(m, _)| random_gram(2 * d + 3, d, 10 + m)).collect();
        let flat = |a: &Array2<f64>| a.iter().copied().collect::<Vec<f64>>();
        let weights: Vec<Tensor> = numbered().map(|(m, name)| weight(name, &[out, d], &flat(&experts[m]))).collect();
        let stored: Vec<Tensor> = numbered().map(|(m, name)| gram(name, &[d, d], &flat(&grams[m]))).collect();
        (Case::new(&weights, &stored, args), experts, grams)
    }

    fn scaled(gram: &Array2<f64>, scale: f64) -> Array2<f64> {
        Array2::from_shape_fn(gram.dim(), |(i, j)| if i == j { gram[(i, j)] } else { scale * gram[(i, j)] })
    }

    #[test]
    fn the_solution_solves_and_the_report_tells_the_truth() {
        for (out, d) in SIZES {
            for (modalities, scale, args) in [
                (&["v", "l"][..], 1.0, "--task irtr"),
                (&["v", "l", "vl"], 1.0, "--experts all"),
                (&["v", "l"], 0.7, "--task irtr --non-diag-scale 0.7"),
            ] {
                let (case, experts, grams) = case(out, d, modalities, args);
                let grams: Vec<Array2<f64>> = grams.iter().map(|gram| scaled(gram, scale)).collect();
                let (merged, layer) = case.merge(FC1);
                let merged = Array2::from_shape_vec((out, d), merged).unwrap();
                let sum = grams.iter().fold(Array2::zeros((d, d)), |sum, gram| sum + gram);
                let wanted = experts.iter().zip(&grams).fold(Array2::zeros((out, d)), |s, (w, g)| s + w.dot(g));
                let residual = norm(&(merged.dot(&sum) - &wanted)) / norm(&wanted);
                assert!(residual < 1e-13, "{out} {d} {args}: {residual:e}");

                let mean = experts.iter().fold(Array2::zeros((out, d)), |sum, w| sum + w) / experts.len() as f64;
                for (what, w) in [("objective", &merged), ("mean_objective", &mean)] {
                    let (expected, got) = (objective(w, &experts, &grams), layer[what].as_f64().unwrap());
                    assert!(close(got, expected, 1e-5), "{out} {d} {args} {what}: {got} {expected}");
                }
            }
        }
    }

    /// With a ridge λ, W minimises the objective with λ/n of the mean diagonal more in each gram.
    #[test]
    fn a_ridge_pulls_towards_the_mean() {
        for (out, d) in SIZES {
            let (case, experts, grams) = case(out, d, &["v", "l"], "--task irtr --ridge 0.3");
            let (merged, layer) = case.merge(FC1);
            let merged = Array2::from_shape_vec((out, d), merged).unwrap();
            let sum = &grams[0] + &grams[1];
            let share = 0.3 * sum.diag().mean().unwrap() / 2.0;
            let ridged = grams.iter().map(|gram| gram + Array2::<f64>::eye(d) * share);
            let (wanted, sum) = experts
                .iter()
                .zip(ridged)
                .fold((Array2::zeros((out, d)), Array2::zeros((d, d))), |(p, s), (w, g)| (p + w.dot(&g), s + g));
            let residual = norm(&(merged.dot(&sum) - &wanted)) / norm(&wanted);
            assert!(residual < 1e-13, "{out} {d}: {residual:e}");
            let (expected, got) = (objective(&merged, &experts, &grams), layer["objective"].as_f64().unwrap());
            assert!(close(got, expected, 1e-5), "{out} {d}: {got} {expected}");
        }
    }

    /// However the grams are stored, and whatever the number of threads and the output's container.
    #[test]
    fn the_same_bytes() {
        for (out, d) in [(5, 2), (20, 300)] {
            let (case, _, grams) = case(out, d, &["v", "l"], "--task irtr --quiet");
            let bits = |(merged, _): (Vec<f64>, Value)| merged.into_iter().map(f64::to_bits).collect::<Vec<_>>();
            let expected = bits(case.merge(FC1));
            let upper = |gram: &Array2<f64>| -> Vec<f64> {
                gram.indexed_iter().filter(|((i, j), _)| i <= j).map(|(_, &x)| x).collect()
            };
            let packed: Vec<Tensor> = ["v", "l"]
                .iter()
                .zip(&grams)
                .map(|(name, matrix)| gram(name, &[d * (d + 1) / 2], &upper(matrix)))
                .collect();
            write(&case.path("grams.safetensors"), &packed, &Metadata::new());
            assert!(bits(case.merge(FC1)) == expected, "packed");
        }
        let folder = tempfile::tempdir().unwrap();
        let golden = fixtures::golden();
        let merge = |threads: &str, name: &str| {
            let out = folder.path().join(name);
            let mut command = vlmerge();
            command.arg("regmean").arg(golden.join("ms.ckpt")).arg("--grams").arg(golden.join("grams_irtr.pth"));
            command.args(["--task", "irtr", "--threads", threads, "-o"]).arg(&out).assert().success();
            out
        };
        let one = std::fs::read(merge("1", "one.safetensors")).unwrap();
        assert!(one == std::fs::read(merge("3", "three.safetensors")).unwrap());
        let zip = formats::open(merge("3", "zip.ckpt")).unwrap();
        let one = formats::open(folder.path().join("one.safetensors")).unwrap();
        assert_eq!(formats::content_digest(&zip, 1).unwrap(), formats::content_digest(&one, 1).unwrap());
    }

    #[test]
    fn one_solution_under_every_experts_name() {
        let (case, ..) = case(7, 5, &["v", "l"], "--experts all");
        for file in ["merged.safetensors", "merged.pth"] {
            let merged = case.merge_with(&["-o", file, "--force"]);
            let solved = values(&formats::open(case.path(file)).unwrap(), FC1);
            let report = case.merge_with(&["-o", file, "--force", "--emit", "multiway"]);
            assert_eq!(report["layers"], merged["layers"]);
            let both = formats::open(case.path(file)).unwrap();
            for modality in ["v", "l"] {
                let name = format!("transformer.blocks.0.mlp.{modality}.fc1.weight");
                assert_eq!(values(&both, &name), solved, "{file} {name}");
            }
        }
    }

    #[test]
    fn f32_grams_are_taken_as_they_are() {
        let (case, experts, grams) = case(30, 40, &["v", "l"], "--task irtr");
        let mut rounded: Vec<Tensor> = Vec::new();
        for (name, matrix) in ["v", "l"].iter().zip(&grams) {
            rounded.push(gram(name, &[40, 40], &matrix.iter().copied().collect::<Vec<f64>>()));
        }
        rounded.iter_mut().for_each(|tensor| tensor.dtype = Dtype::F32);
        write(&case.path("grams.safetensors"), &rounded, &Metadata::new());
        let merged = Array2::from_shape_vec((30, 40), case.merge(FC1).0).unwrap();
        let grams: Vec<Array2<f64>> = grams.iter().map(|gram| gram.mapv(|x| f64::from(x as f32))).collect();
        let sum = &grams[0] + &grams[1];
        let wanted = experts[0].dot(&grams[0]) + experts[1].dot(&grams[1]);
        assert!(norm(&(merged.dot(&sum) - &wanted)) < 1e-13 * norm(&wanted));
    }
}

fn norm(a: &Array2<f64>) -> f64 {
    a.iter().map(|x| x * x).sum::<f64>().sqrt()
}

mod golden {
    use super::*;

    /// The reference's solutions, which it stores in f64, against ours in f64: a copy of the checkpoint in f64 gives
    /// them unrounded. Rounding to f32 alone would cost more than all else together.
    #[test]
    fn residuals_are_not_above_the_reference_and_weights_agree() {
        let golden = fixtures::golden();
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = formats::open(golden.join("ms.ckpt")).unwrap();
        let wide = folder.path().join("ms64.safetensors");
        let tensors: Vec<Tensor> = checkpoint
            .tensors()
            .iter()
            .filter(|info| info.dtype == Dtype::F32)
            .map(|info| tensor(&info.name, &info.shape, &values(&checkpoint, &info.name)))
            .collect();
        write(&wide, &tensors, &Metadata::new());
        let (mut solved, mut worst) = (0, 0f64);
        for task in ["irtr", "vqa"] {
            for scale in ["0.9", "1.0"] {
                let grams = golden.join(format!("grams_{task}.pth"));
                let merge = |ms: &Path, name: &str| {
                    let out = folder.path().join(name);
                    let mut command = vlmerge();
                    command.arg("regmean").arg(ms).arg("--grams").arg(&grams).args(["--task", task]);
                    command.args(["--non-diag-scale", scale, "--force", "-o"]).arg(&out).assert().success();
                    formats::open(out).unwrap()
                };
                let ours = merge(&wide, "ours64.safetensors");
                let stored = merge(&golden.join("ms.ckpt"), "ours32.safetensors");
                let expected = golden.join(format!("expect_merge_regmean_{task}_s{scale}.safetensors"));
                let expected = formats::open(expected).unwrap();
                let grams = formats::open(&grams).unwrap();
                for info in expected.tensors() {
                    let (name, reference) = (&info.name, values(&expected, &info.name));
                    let (ours64, ours32) = (values(&ours, name), values(&stored, name));
                    assert_eq!((ours64.len(), ours32.len()), (reference.len(), reference.len()), "{name}");
                    // What we store is our solution, rounded once.
                    assert!(ours64.iter().zip(&ours32).all(|(&a, &b)| f64::from(a as f32) == b), "{name}");
                    let Some(system) = System::of(name, &checkpoint, &grams, scale.parse().unwrap(), task) else {
                        let same = ours64.iter().zip(&reference).all(|(&a, &b)| close(a, b, 1e-6));
                        assert!(same, "{task} {scale} {name}");
                        continue;
                    };
                    let (ours, reference) = (system.residual(ours64), system.residual(reference));
                    assert!(ours.0 <= reference.0, "{task} {scale} {name}: {:e} {:e}", ours.0, reference.0);
                    worst = worst.max(ours.0 / reference.0);
                    solved += 1;
                    if system.condition() < 1e6 {
                        let apart = norm(&(&ours.1 - &reference.1)) / norm(&reference.1);
                        assert!(apart < 1e-6, "{task} {scale} {name}: {apart:e}");
                    }
                }
            }
        }
        println!("{solved} systems solved, residuals at most {worst:.2} of the reference's");
        assert!(solved > 0);
    }

    /// What a merged weight should solve.
    struct System {
        sum: Array2<f64>,
        wanted: Array2<f64>,
    }

    impl System {
        /// `None` for names that aren't the weights of linear layers.
        fn of(name: &str, ms: &Checkpoint, grams: &Checkpoint, scale: f64, task: &str) -> Option<System> {
            let layout = Layout::by_name("vl-merging").unwrap();
            if !layout.is_linear(name) {
                return None;
            }
            let expert = |modality| layout.expert_name(name, modality).unwrap();
            let joint = ms.get(&expert(Modality::VisionLanguage)).is_some() && task == "vqa";
            let apart = [Modality::Vision, Modality::Language];
            let modalities: &[Modality] = if joint { &[Modality::VisionLanguage] } else { &apart };
            let d = ms.get(&expert(modalities[0])).unwrap().shape[1];
            let rows = ms.get(&expert(modalities[0])).unwrap().shape[0];
            let mut system = System { sum: Array2::zeros((d, d)), wanted: Array2::zeros((rows, d)) };
            for &modality in modalities {
                let mut gram = matrix(grams, &layout.gram_name(name, modality).unwrap());
                let diagonal: Array1<f64> = gram.diag().to_owned();
                gram *= scale;
                gram.diag_mut().assign(&diagonal);
                system.wanted += &matrix(ms, &expert(modality)).dot(&gram);
                system.sum += &gram;
            }
            Some(system)
        }

        /// ‖W·ΣG − ΣWₘGₘ‖, and W.
        fn residual(&self, w: Vec<f64>) -> (f64, Array2<f64>) {
            let w = Array2::from_shape_vec(self.wanted.dim(), w).unwrap();
            (norm(&(w.dot(&self.sum) - &self.wanted)), w)
        }

        fn condition(&self) -> f64 {
            let eigenvalues = self.sum.eigvalsh(UPLO::Lower).unwrap();
            eigenvalues[eigenvalues.len() - 1] / eigenvalues[0].max(f64::MIN_POSITIVE)
        }
    }
}

/// `--experts all --task T`, as the Python code merges for NLVR2.
mod absent_grams {
    use super::*;

    const LAYERS: [&str; 2] = [FC1, "transformer.blocks.1.mlp.fc1.weight"];

    /// Layer 0 has v and l, layer 1 all three, with a bias; there is no gram of `absent`.
    fn case(absent: &[&str], args: &str) -> Case {
        let deep = |modality: &str, part: &str| format!("transformer.blocks.1.mlp.{modality}.fc1.{part}");
        let mut ms = vec![weight("v", &[1, 2], &[1.0, 2.0]), weight("l", &[1, 2], &[5.0, 6.0])];
        let mut grams = vec![gram("v", &[2, 2], &[1.0, 0.0, 0.0, 3.0]), gram("l", &[2, 2], &[3.0, 0.0, 0.0, 1.0])];
        for (modality, w, b, g) in [("v", 1.0, 3.0, 1.0), ("l", 2.0, 6.0, 3.0), ("vl", 4.0, 9.0, 4.0)] {
            ms.push(tensor(deep(modality, "weight"), &[1, 2], &[w, w]));
            ms.push(tensor(deep(modality, "bias"), &[1], &[b]));
            grams.push(tensor(format!("transformer.blocks.1.mlp.{modality}.fc1"), &[2, 2], &[g, 0.0, 0.0, g]));
        }
        grams.retain(|gram| !absent.iter().any(|name| gram.name.ends_with(name)));
        Case::new(&ms, &grams, args)
    }

    #[test]
    fn are_an_error_unless_the_grams_of_a_task_are_named() {
        let case = case(&["1.mlp.v.fc1", "1.mlp.l.fc1"], "--experts all");
        assert!(case.refusal().contains("2 of 5 gram matrices are missing"), "{}", case.refusal());
    }

    #[test]
    fn leave_their_experts_out_of_the_weight_alone_and_are_listed() {
        for (absent, expected) in [
            (&["1.mlp.v.fc1", "1.mlp.l.fc1"][..], 4.0),
            (&["1.mlp.vl.fc1"], (1.0 + 2.0 * 3.0) / 4.0),
            (&["1.mlp.l.fc1"], (1.0 + 4.0 * 4.0) / 5.0),
            (&[], (1.0 + 2.0 * 3.0 + 4.0 * 4.0) / 8.0),
        ] {
            let case = case(absent, "--experts all --task nlvr2");
            let report = case.merge_with(&[]);
            let merged = formats::open(case.path("merged.safetensors")).unwrap();
            // The gram's weights, column by column, where both are there.
            assert_eq!(values(&merged, LAYERS[0]), [4.0, 3.0]);
            assert_eq!(values(&merged, LAYERS[1]), [expected; 2], "{absent:?}");
            // Biases are the mean of all three whatever grams there are.
            assert_eq!(values(&merged, "transformer.blocks.1.mlp.fc1.bias"), [6.0]);
            let listed: Vec<&str> =
                report["absent_grams"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
            assert_eq!(listed.len(), absent.len(), "{listed:?}");
            assert!(absent.iter().all(|name| listed.iter().any(|listed| listed.ends_with(name))), "{listed:?}");
            let parameters = &report["recipe"]["parameters"];
            assert_eq!((&parameters["experts"], &parameters["task"]), (&"all".into(), &"nlvr2".into()));
        }
        let case = case(&["0.mlp.v.fc1", "0.mlp.l.fc1"], "--experts all --task nlvr2");
        let refusal = case.refusal();
        assert!(
            refusal.contains("weights would be left without any expert") && refusal.contains("0.mlp.l.fc1"),
            "{refusal}"
        );
    }

    /// What a recipe leaves out is what the command line's default is, and what a result records makes it again.
    #[test]
    fn a_recipe_means_what_the_same_command_line_does() {
        let recipe = |case: &Case, parameters: &str| {
            let text = format!(
                "method = \"regmean\"\n[[input]]\nrole = \"checkpoint\"\nfile = \"ms.safetensors\"\n\
                 [[input]]\nrole = \"grams\"\nfile = \"grams.safetensors\"\n[parameters]\n{parameters}"
            );
            std::fs::write(case.path("recipe.toml"), text).unwrap();
            case.command(&["merge", "--recipe", "recipe.toml", "-o", "merged.safetensors", "--force"])
        };
        let read = |case: &Case| std::fs::read(case.path("merged.safetensors")).unwrap();
        let (all_there, absent): (&[&str], &[&str]) = (&[], &["1.mlp.vl.fc1"]);
        for (grams, args, parameters) in [
            (all_there, "--task vqa", "task = \"vqa\"\n"),
            (all_there, "--task vqa", "experts = \"used\"\ntask = \"vqa\"\n"),
            (absent, "--task irtr", "task = \"irtr\"\n"),
            (all_there, "--experts all", "experts = \"all\"\n"),
            (absent, "--experts all --task nlvr2", "experts = \"all\"\ntask = \"nlvr2\"\n"),
        ] {
            let case = case(grams, args);
            case.merge_with(&[]);
            let expected = read(&case);
            recipe(&case, parameters).assert().success();
            assert!(read(&case) == expected, "{parameters}");
            let shown = case.command(&["recipe", "merged.safetensors"]).output().unwrap();
            std::fs::write(case.path("again.toml"), shown.stdout).unwrap();
            case.command(&["merge", "--recipe", "again.toml", "-o", "merged.safetensors", "--force"])
                .assert()
                .success();
            assert!(read(&case) == expected, "{parameters}");
        }
        // All experts, or a weight from the grams there are, only where that is written out.
        for (grams, parameters, expected) in [
            (&["0.mlp.v.fc1"][..], "task = \"vqa\"\n", "1 of 2 gram matrices"),
            (absent, "experts = \"all\"\n", "1 of 5 gram matrices"),
            (all_there, "", "it doesn't say for which task it was recorded"),
            (all_there, "experts = \"used\"\n", "it doesn't say for which task it was recorded"),
            (all_there, "experts = \"some\"\n", "no experts \"some\": it is all or used"),
            (all_there, "task = \"mlm\"\n", "no task \"mlm\": it is irtr, vqa or nlvr2"),
        ] {
            let case = case(grams, "");
            let line = refusal(&mut recipe(&case, parameters), case.folder.path());
            assert!(line.contains(expected), "{parameters}: {line}");
        }
    }

    /// The golden grams for VQA have v and l below vl start, and vl above, as those for NLVR2.
    #[test]
    fn golden_grams_of_joint_passes() {
        let (golden, folder) = (fixtures::golden(), tempfile::tempdir().unwrap());
        let merge = |args: &[&str], name: &str| {
            let out = folder.path().join(name);
            let mut command = vlmerge();
            command.arg("regmean").arg(golden.join("ms.ckpt")).arg("--grams").arg(golden.join("grams_vqa.pth"));
            command.args(args).arg("-o").arg(&out).assert().success();
            formats::open(out).unwrap()
        };
        let all = merge(&["--experts", "all", "--task", "nlvr2"], "all.safetensors");
        let used = merge(&["--task", "vqa"], "used.safetensors");
        let ms = formats::open(golden.join("ms.ckpt")).unwrap();
        let layout = Layout::by_name("vl-merging").unwrap();
        let mut means = 0;
        for info in all.tensors() {
            let [v, l, vl] =
                Modality::ALL.map(|m| layout.expert_name(&info.name, m).filter(|name| ms.get(name).is_some()));
            let (Some(v), Some(l), Some(vl), false) = (v, l, vl, layout.is_linear(&info.name)) else {
                assert_eq!(values(&all, &info.name), values(&used, &info.name), "{}", info.name);
                continue;
            };
            let [v, l, vl] = [v, l, vl].map(|name| values(&ms, &name));
            for (at, found) in values(&all, &info.name).into_iter().enumerate() {
                let mean = (v[at] + l[at] + vl[at]) / 3.0;
                assert!((found - mean).abs() < 1e-6, "{}: {found} {mean}", info.name);
            }
            means += 1;
        }
        assert!(means > 0);
    }
}

mod the_record {
    use super::*;

    fn case(change: impl FnOnce(&mut GramRecord)) -> Case {
        let ms = [weight("v", &[1, 1], &[2.0]), weight("l", &[1, 1], &[6.0])];
        let grams = [gram("v", &[1, 1], &[3.0]), gram("l", &[1, 1], &[1.0])];
        let case = Case::new(&ms, &grams, "");
        let digest = formats::content_digest(&formats::open(case.path("ms.safetensors")).unwrap(), 1).unwrap();
        let mut record = GramRecord {
            checkpoint: "ms.safetensors".into(),
            content_digest: digest,
            task: Some("irtr".into()),
            samples: 60,
            tokens: BTreeMap::from([(Modality::Vision, 3)]),
            ..GramRecord::default()
        };
        change(&mut record);
        let metadata = Metadata::from([(GRAMS_KEY.to_string(), record.to_json())]);
        write(&case.path("grams.safetensors"), &grams, &metadata);
        case
    }

    #[test]
    fn makes_the_gram_file_enough() {
        let case = case(|_| {});
        let output = case.command(&["regmean", "--grams", "grams.safetensors"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.starts_with("merged.safetensors: 1 tensor, 1 of them merged by regmean"), "{stdout}");
        assert!(stdout.contains("  layer         fc1\n      0") || stdout.contains("mlp.fc1"), "{stdout}");
        assert!(stdout.contains("1.6e1  75.0%"), "{stdout}");
        let merged = formats::open(case.path("merged.safetensors")).unwrap();
        assert_eq!(values(&merged, FC1), [3.0]);

        let recipe = merge_cli::Recipe::history(merged.metadata()).unwrap();
        let roles: Vec<(&str, &str)> = recipe.inputs.iter().map(|i| (i.role.as_str(), i.name.as_str())).collect();
        assert_eq!(roles, [("checkpoint", "ms.safetensors"), ("grams", "grams.safetensors")]);
        let grams = formats::open(case.path("grams.safetensors")).unwrap();
        assert_eq!(recipe.inputs[1].content_digest, formats::content_digest(&grams, 1).unwrap());
        assert_eq!(recipe.parameters["task"], "irtr");
    }

    /// Also from another folder: the checkpoint lies beside the gram file.
    #[test]
    fn finds_the_checkpoint_beside_the_grams() {
        let case = case(|record| record.checkpoint = "/nowhere/ms.safetensors".into());
        let folder = tempfile::tempdir().unwrap();
        let mut command = vlmerge();
        command.current_dir(folder.path()).args(["regmean", "--grams"]).arg(case.path("grams.safetensors"));
        command.assert().success();
        assert!(folder.path().join("merged.safetensors").is_file());
    }

    #[test]
    fn of_a_checkpoint_that_is_gone() {
        let case = case(|record| record.checkpoint = "/nowhere/gone.ckpt".into());
        assert_eq!(
            refusal(&mut case.command(&["regmean", "--grams", "grams.safetensors"]), case.folder.path()),
            "vlmerge: grams.safetensors: it was recorded from /nowhere/gone.ckpt, which is not there and not beside \
             it: give the checkpoint before --grams"
        );
    }

    #[test]
    fn of_another_checkpoint() {
        let case = case(|record| record.content_digest = "ab".repeat(32));
        let line = case.refusal();
        assert!(
            line.starts_with(
                "vlmerge: grams.safetensors: grams of another checkpoint: recorded from ms.safetensors with content \
                 digest abababababababab…, and ms.safetensors has "
            ),
            "{line}"
        );
        assert!(line.ends_with("(--allow-mismatch uses them anyway)"), "{line}");
        case.merge_with(&["--allow-mismatch"]);
    }

    #[test]
    fn of_another_task_is_warned_of() {
        let case = case(|_| {});
        let mut command = case.command(&["regmean", "--grams", "grams.safetensors", "--task", "vqa"]);
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr, "vlmerge: warning: grams.safetensors: these grams were recorded for 'irtr'\n");
    }

    #[test]
    fn without_a_usable_task() {
        let line = case(|record| record.task = Some("mlm".into())).refusal();
        assert!(line.contains("it was recorded for 'mlm', which doesn't tell the experts to merge"), "{line}");
        let line = case(|record| record.task = None).refusal();
        assert!(line.contains("it doesn't say for which task it was recorded: give --task T"), "{line}");
    }

    #[test]
    fn that_can_not_be_read() {
        let case = case(|_| {});
        let metadata = Metadata::from([(GRAMS_KEY.to_string(), "{\"samples\": \"many\"}".to_string())]);
        write(&case.path("grams.safetensors"), &[gram("v", &[1, 1], &[3.0])], &metadata);
        assert!(case.refusal().contains("its record under 'vlmerge.grams' can't be read"));
    }

    /// Files of the Python code have none.
    #[test]
    fn absent() {
        let golden = fixtures::golden();
        let folder = tempfile::tempdir().unwrap();
        let mut command = vlmerge();
        command.current_dir(folder.path()).arg("regmean").arg("--grams").arg(golden.join("grams_irtr.pth"));
        let line = refusal(command.args(["--task", "irtr"]), folder.path());
        assert!(
            line.ends_with("it doesn't say which checkpoint it was recorded from: give the checkpoint before --grams")
        );
    }
}

mod bad_grams {
    use super::*;

    fn with(grams: &[Tensor]) -> Case {
        let ms = ["v", "l"].map(|modality| weight(modality, &[1, 2], &[1.0, 2.0]));
        Case::new(&ms, grams, "--task irtr")
    }

    fn pair(v: &[f64; 4]) -> [Tensor; 2] {
        [gram("v", &[2, 2], v), gram("l", &[2, 2], &[1.0, 0.0, 0.0, 1.0])]
    }

    #[test]
    fn missing() {
        assert_eq!(
            with(&[gram("l", &[2, 2], &[1.0, 0.0, 0.0, 1.0])]).refusal(),
            "vlmerge: grams.safetensors: 1 of 2 gram matrices is missing: transformer.blocks.0.mlp.v.fc1"
        );
        // A modality that the task's forward pass didn't use.
        let golden = fixtures::golden();
        let folder = tempfile::tempdir().unwrap();
        let mut command = vlmerge();
        command.current_dir(folder.path()).arg("regmean").arg(golden.join("ms.ckpt"));
        command.arg("--grams").arg(golden.join("grams_vqa.pth")).args(["--task", "irtr"]);
        let line = refusal(&mut command, folder.path());
        assert!(line.contains("gram matrices are missing: transformer.blocks."), "{line}");
        assert!(line.contains(" and ") && line.ends_with(" more"), "{line}");
    }

    #[test]
    fn of_the_wrong_size_or_type() {
        let line = with(&[gram("v", &[3, 3], &[0.0; 9]), gram("l", &[2, 2], &[0.0; 4])]).refusal();
        let tensor = "vlmerge: grams.safetensors: tensor 'transformer.blocks.0.mlp.v.fc1': ";
        assert_eq!(line, format!("{tensor}it is [3, 3], and '{FC1}' has 2 columns: a gram for it is [2, 2] or [3]"));
        let mut integers = pair(&[1.0, 0.0, 0.0, 1.0]);
        integers[0].dtype = Dtype::I64;
        assert_eq!(with(&integers).refusal(), format!("{tensor}it is i64: a gram matrix has floating-point values"));
    }

    #[test]
    fn with_values_no_gram_has() {
        let tensor = "vlmerge: grams.safetensors: tensor 'transformer.blocks.0.mlp.v.fc1': ";
        for (values, reason) in [
            ([1.0, f64::NAN, 0.0, 1.0], "entry (0, 1) is NaN or infinite"),
            ([1.0, 0.0, 0.0, f64::INFINITY], "entry (1, 1) is NaN or infinite"),
            ([1.0, 0.0, 0.0, -2.0], "entry (1, 1) is -2e0: no sum of squares is negative"),
            (
                [4.0, 1.0, 1.5, 4.0],
                "it is not symmetric: entries (1, 0) and (0, 1) differ by 5.000e-1, 1.2e-1 of the largest entry \
                 (up to 1e-6 is let pass)",
            ),
        ] {
            assert_eq!(with(&pair(&values)).refusal(), format!("{tensor}{reason}"));
        }
        // Rounding in f32 is no asymmetry.
        with(&pair(&[4.0, 1.0, 1.0 + 1e-7, 4.0])).merge(FC1);
    }

    /// Far from the diagonal too, wherever bands of rows meet.
    #[test]
    fn asymmetric_anywhere() {
        let d = 300;
        for (i, j) in [(1, 0), (0, 299), (299, 0), (255, 256), (299, 298), (290, 130)] {
            let mut matrix = random_gram(400, d, 1);
            matrix[(i, j)] += 1.0;
            let flat: Vec<f64> = matrix.iter().copied().collect();
            let ms = ["v", "l"].map(|modality| weight(modality, &[1, d], &vec![1.0; d]));
            let line = Case::new(&ms, &["v", "l"].map(|m| gram(m, &[d, d], &flat)), "--task irtr").refusal();
            let (low, high) = (i.min(j), i.max(j));
            let entries = format!("it is not symmetric: entries ({high}, {low}) and ({low}, {high}) differ by 1.000e0");
            assert!(line.contains(&entries), "{line}");
        }
    }

    #[test]
    fn all_zero() {
        let zero = ["v", "l"].map(|modality| gram(modality, &[2, 2], &[0.0; 4]));
        let line = with(&zero).refusal();
        assert!(line.contains(&format!("not positive definite: {FC1} (zero throughout)")), "{line}");
        let mut case = with(&zero);
        case.args.extend(["--on-singular".to_string(), "ridge".to_string()]);
        let line = case.refusal();
        assert!(line.ends_with("this gram and its siblings are zero throughout, and no ridge helps there"), "{line}");
        case.args[3] = "mean".to_string();
        assert_eq!(case.merge(FC1).0, [1.0, 2.0]);
    }
}

mod singular {
    use super::*;

    /// Inputs that only ever lie along (1, 1), but for the third column.
    fn case(args: &str) -> Case {
        let ms = [weight("v", &[1, 3], &[1.0, 2.0, 3.0]), weight("l", &[1, 3], &[3.0, 2.0, 6.0])];
        let along = |scale: f64| [scale, scale, 0.0, scale, scale, 0.0, 0.0, 0.0, 1.0];
        let grams = [gram("v", &[3, 3], &along(3.0)), gram("l", &[3, 3], &along(1.0))];
        Case::new(&ms, &grams, &format!("--task irtr {args}"))
    }

    #[test]
    fn is_an_error_that_says_how_bad_and_what_to_do() {
        let line = case("").refusal();
        let start = format!(
            "vlmerge: grams.safetensors: the summed grams of 1 of 1 layers are not positive definite: {FC1} \
             (rank about 2 of 3, smallest eigenvalue "
        );
        assert!(line.starts_with(&start), "{line}");
        let value: f64 = line[start.len()..].split_once(' ').unwrap().0.parse().unwrap();
        assert!(value.abs() < 1e-10, "{line}");
        assert!(
            line.ends_with(
                "against a mean of 3.3e0); record grams from more samples, or give --ridge 1e-6, --on-singular ridge \
                 or --on-singular mean"
            ),
            "{line}"
        );
    }

    /// Along (1, 1) least squares: 3/4·(1 + 2) + 1/4·(3 + 2) = 3.5 in sum; across it the mean, 2 and 2: (1.75, 1.75).
    #[test]
    fn with_a_ridge_is_the_mean_where_no_input_was_seen() {
        for args in ["--on-singular ridge", "--ridge 1e-6"] {
            let (merged, layer) = case(args).merge(FC1);
            assert_close(args, &[1.75, 1.75, 4.5], &merged, 1e-6);
            assert_eq!(layer["ridge"], 1e-6);
            assert_eq!(layer["singular"], args == "--on-singular ridge");
        }
    }

    #[test]
    fn can_be_the_plain_mean() {
        let case = case("--on-singular mean");
        let (merged, layer) = case.merge(FC1);
        assert_eq!(merged, [2.0, 2.0, 4.5]);
        assert_eq!(layer["singular"], true);
        // (1, 0, 1.5)·G·(1, 0, 1.5)ᵀ summed over both
        assert!(close(layer["objective"].as_f64().unwrap(), 4.0 + 2.0 * 2.25, 1e-5), "{layer}");
        let mut command = case.command(&["regmean", "ms.safetensors", "--grams", "grams.safetensors", "--force"]);
        let output = command.args(&case.args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("100.0%*")
                && text.contains("* summed grams not positive definite: 1 layer took the plain mean")
        );
        let warning = String::from_utf8(output.stderr).unwrap();
        assert!(warning.contains("summed grams are not positive definite: 1 layer took the plain mean"));
    }

    /// No ridge makes up for a matrix that is no gram at all.
    #[test]
    fn indefinite_is_refused_even_with_a_ridge() {
        let ms = ["v", "l"].map(|modality| weight(modality, &[1, 2], &[1.0, 2.0]));
        let grams = ["v", "l"].map(|modality| gram(modality, &[2, 2], &[1.0, 2.0, 2.0, 1.0]));
        let line = Case::new(&ms, &grams, "--task irtr --on-singular ridge").refusal();
        assert!(line.ends_with("the sum with its siblings is not positive definite even with ridge 0.01"), "{line}");
    }
}

mod usage {
    use super::*;

    fn wrong(args: &[&str]) -> String {
        let output = vlmerge().args(["regmean", "--grams", "g.pth"]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    #[test]
    fn out_of_range() {
        assert!(wrong(&["--non-diag-scale", "1.5"]).contains("it must be from 0 to 1"));
        assert!(wrong(&["--non-diag-scale", "-0.5"]).contains("it must be from 0 to 1"));
        assert!(wrong(&["--ridge", "-1"]).contains("it must be a number from 0 on"));
        assert!(wrong(&["--ridge", "nan"]).contains("it must be a number from 0 on"));
        assert!(wrong(&["--on-singular", "ignore"]).contains("ridge"));
        assert!(wrong(&["--task", "mlm"]).contains("irtr"));
        let output = vlmerge().arg("regmean").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
    }

    #[test]
    fn the_output_is_no_input_and_is_not_replaced_unasked() {
        let ms = [weight("v", &[1, 1], &[2.0]), weight("l", &[1, 1], &[6.0])];
        let grams = [gram("v", &[1, 1], &[3.0]), gram("l", &[1, 1], &[1.0])];
        let case = Case::new(&ms, &grams, "--task irtr");
        for input in ["grams.safetensors", "ms.safetensors"] {
            let mut command = case.command(&["regmean", "ms.safetensors", "--grams", "grams.safetensors"]);
            let line = refusal(command.args(&case.args).args(["--force", "-o", input]), case.folder.path());
            assert_eq!(line, format!("vlmerge: {input}: this output is also an input: choose another name"));
        }
        case.merge_with(&[]);
        let mut command = case.command(&["regmean", "ms.safetensors", "--grams", "grams.safetensors"]);
        let output = command.args(&case.args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8(output.stderr).unwrap().contains("exists already; --force replaces it"));
    }
}
