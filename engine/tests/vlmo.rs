//! VLMo against the reference, and what must hold for every family and variant: a model that is saved is the model that it
//! was. `VLMERGE_GOLDEN` names another set of golden values of the same shape.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::batch::{Images, Matrix, Texts, TrainBatch};
use engine::device::{Choice, Precision};
use engine::model::Heads;
use engine::model::config::{Architecture, Attends};
use engine::model::open::{Inspector, Opened, Options, Source, open_runner, open_trainer, read_probe_batch};
use engine::model::probe::ProbeBatch;
use engine::model::save::{self, HostTensor};
use engine::model::training::{Optimizer, Settings};
use engine::runner::Runner;
use engine::trainer::Trainer;
use fixtures::compare::difference;
use fixtures::{LightningOptions, ModelSpec, Py, Size};
use formats::Checkpoint;
use formats::layout::{Layout, Modality, Part};

/// Relative to a tensor's largest element.
const TOLERANCE: f64 = 1e-5;

const VLMO: [&str; 3] = ["base", "large", "base_plus"];

fn vlmo(name: &str) -> PathBuf {
    fixtures::golden().join("vlmo").join(name)
}

/// The published file of a size, whose name says its image size too.
fn published(size: &str) -> PathBuf {
    let start = format!("vlmo_{size}_patch");
    let found = std::fs::read_dir(vlmo("")).expect("golden/vlmo").map(|entry| entry.expect("an entry").file_name());
    let mut found = found.filter(|name| name.to_string_lossy().starts_with(&start));
    let name = found.next().unwrap_or_else(|| panic!("golden/vlmo has no {start}*"));
    vlmo(&name.to_string_lossy())
}

fn expected(name: &str) -> Checkpoint {
    formats::open(vlmo(name)).unwrap_or_else(|e| panic!("{e}"))
}

fn read(file: &Checkpoint, name: &str) -> (Vec<usize>, Vec<f32>) {
    let at = file.position(name).unwrap_or_else(|| panic!("{name} is not in {}", file.path().display()));
    let mut values = Vec::new();
    file.read_f32(at, 0..file.tensors()[at].elements(), &mut values).unwrap();
    (file.tensors()[at].shape.clone(), values)
}

/// The integers of a tensor of them.
fn integers(file: &Checkpoint, name: &str) -> Vec<usize> {
    let at = file.position(name).unwrap_or_else(|| panic!("{name} is not in {}", file.path().display()));
    let mut values = Vec::new();
    file.read_f64(at, 0..file.tensors()[at].elements(), &mut values).unwrap();
    values.into_iter().map(|value| value as usize).collect()
}

fn options(heads: Option<PathBuf>, task: Option<&str>) -> Options {
    Options { device: Choice::Cpu, heads_file: heads, heads_task: task.map(str::to_owned), ..Options::default() }
}

fn probed(path: &Path, options: &Options, batch: &ProbeBatch) -> BTreeMap<String, HostTensor> {
    let (runner, _) = open_runner(path, options).unwrap_or_else(|e| panic!("{e:#}"));
    by_name(runner.probe(batch).unwrap())
}

fn by_name(tensors: Vec<HostTensor>) -> BTreeMap<String, HostTensor> {
    tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
}

/// Every tensor of `wanted` under its name, or `alias` for it, within the tolerance.
fn assert_as_expected(
    what: &str,
    found: &BTreeMap<String, HostTensor>,
    wanted: &Checkpoint,
    is_wanted: impl Fn(&str) -> bool,
) {
    let mut beyond = Vec::new();
    let mut compared = 0;
    for info in wanted.tensors().iter().filter(|info| is_wanted(&info.name)) {
        let (shape, values) = read(wanted, &info.name);
        // VLMo's contrastive logits of pre-training are those of retrieval.
        let name = if info.name == "logits.itc" { "logits.irtr" } else { &info.name };
        let tensor = found.get(name).map(|tensor| (tensor.shape.as_slice(), tensor.values.as_slice()));
        match difference(tensor, (&shape, &values)) {
            Ok(far) if far <= TOLERANCE => {}
            other => beyond.push((info.name.clone(), other)),
        }
        compared += 1;
    }
    assert!(compared > 0, "{what}: nothing was compared");
    assert!(beyond.is_empty(), "{what}: {beyond:?}");
}

fn assert_close(what: &str, found: f64, wanted: f64) {
    assert!((found - wanted).abs() <= TOLERANCE * wanted.abs(), "{what}: {found}, expected {wanted}");
}

fn assert_the_reference(path: &Path, size: &str) {
    let batch = read_probe_batch(&vlmo("batch.safetensors")).unwrap();
    let heads = vlmo(&format!("heads_{size}.safetensors"));
    let wanted = expected(&format!("expect_{size}.safetensors"));
    let (runner, opened) = open_runner(path, &options(Some(heads.clone()), None)).unwrap();
    assert_eq!((opened.load.initialised, opened.load.unexpected), (vec![], vec![]), "{size}");
    assert_eq!(opened.architecture.attends, Attends::ToAll);
    let all = by_name(runner.probe(&batch).unwrap());
    let is_other =
        |name: &str| name.ends_with(".nlvr2") || name.starts_with("hardneg.") || name.starts_with("weighted_");
    assert_as_expected(size, &all, &wanted, |name| !is_other(name));
    // NLVR2 has token types of its own.
    let nlvr2 = probed(path, &options(Some(heads), Some("nlvr2")), &batch);
    assert_as_expected(size, &nlvr2, &wanted, |name| name.ends_with(".nlvr2"));
    // As pre-training counts it.
    let weighted = f64::from(read(&wanted, "weighted_loss.mlm").1[0]);
    assert_close(size, 0.25 * f64::from(all["loss.mlm"].values[0]), weighted);
    assert_hard_negatives(size, &*runner, &batch, &all["logits.irtr"], &wanted);
}

/// Image-text matching of true pairs, of each text with its hardest image and of each image with its hardest text.
fn assert_hard_negatives(
    size: &str,
    runner: &dyn Inspector,
    batch: &ProbeBatch,
    similar: &HostTensor,
    wanted: &Checkpoint,
) {
    let (texts, images) = (batch.texts.as_ref().unwrap(), batch.images.as_ref().unwrap());
    let n = texts.count;
    // Images × texts.
    let at = |image: usize, text: usize| similar.values[image * n + text];
    let hardest = |score: &dyn Fn(usize) -> f32, own: usize| {
        (0..n).filter(|&other| other != own).max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap()
    };
    let image_of_text: Vec<usize> = (0..n).map(|text| hardest(&|image| at(image, text), text)).collect();
    let text_of_image: Vec<usize> = (0..n).map(|image| hardest(&|text| at(image, text), image)).collect();
    assert_eq!(image_of_text, integers(wanted, "hardneg.image_of_text"), "{size}");
    assert_eq!(text_of_image, integers(wanted, "hardneg.text_of_image"), "{size}");

    let own: Vec<usize> = (0..n).collect();
    let mut logits = Vec::new();
    for (text, image) in [(&own, &own), (&own, &image_of_text), (&text_of_image, &own)] {
        let pairs = ProbeBatch {
            texts: Some(texts_at(texts, text)),
            images: Some(images_at(images, image)),
            ..ProbeBatch::default()
        };
        logits.extend(by_name(runner.probe(&pairs).unwrap()).remove("logits.itm").unwrap().values);
    }
    let (shape, values) = read(wanted, "hardneg.logits");
    let far = difference(Some((&[3 * n, 2], &logits)), (&shape, &values)).unwrap();
    assert!(far <= TOLERANCE, "{size}: hardneg.logits differ by {far}");
    let labels = integers(wanted, "hardneg.labels");
    assert_eq!(labels.len(), 3 * n);
    let losses = logits.chunks_exact(2).zip(labels).map(|(row, label)| {
        let row = [f64::from(row[0]), f64::from(row[1])];
        row.map(f64::exp).iter().sum::<f64>().ln() - row[label]
    });
    let loss = losses.sum::<f64>() / (3 * n) as f64;
    assert_close(size, loss, f64::from(read(wanted, "hardneg.loss").1[0]));
}

fn texts_at(texts: &Texts, rows: &[usize]) -> Texts {
    let of = |row: &usize| row * texts.len..(row + 1) * texts.len;
    Texts {
        count: rows.len(),
        len: texts.len,
        ids: rows.iter().flat_map(|row| texts.ids[of(row)].to_vec()).collect(),
        mask: rows.iter().flat_map(|row| texts.mask[of(row)].to_vec()).collect(),
    }
}

fn images_at(images: &Images, rows: &[usize]) -> Images {
    let one = images.pixels.len() / images.count;
    let pixels = rows.iter().flat_map(|row| images.pixels[row * one..(row + 1) * one].to_vec()).collect();
    Images { count: rows.len(), size: images.size, pixels }
}

#[test]
fn vlmo_computes_what_the_reference_does() {
    for size in VLMO {
        assert_the_reference(&published(size), size);
    }
}

#[test]
fn a_pretraining_checkpoint_is_the_same_model() {
    assert_the_reference(&vlmo("vlmo_base_pretrain.ckpt"), "base");
}

#[test]
fn absolute_positions_are_resized_as_the_reference_does() {
    let found = std::fs::read_dir(vlmo("")).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<String> = found.map(|name| name.to_string_lossy().into_owned()).collect();
    let sizes: Vec<&str> =
        names.iter().filter_map(|name| name.strip_prefix("batch_base_plus_")?.strip_suffix(".safetensors")).collect();
    assert!(!sizes.is_empty(), "golden/vlmo has no batch_base_plus_*");
    for size in sizes {
        let batch = read_probe_batch(&vlmo(&format!("batch_base_plus_{size}.safetensors"))).unwrap();
        let options = Options { image_size: batch.images.as_ref().map(|images| images.size), ..options(None, None) };
        let mut found = probed(&published("base_plus"), &options, &batch);
        let folder = tempfile::tempdir().unwrap();
        let saved = folder.path().join("saved.safetensors");
        trainer(&published("base_plus"), &options).0.save_weights(&saved, &[]).unwrap();
        let (shape, values) = read(&formats::open(&saved).unwrap(), "transformer.pos_embed");
        let name = "transformer.pos_embed".to_string();
        found.insert(name.clone(), HostTensor { name, shape, values });
        assert_as_expected(size, &found, &expected(&format!("expect_base_plus_{size}.safetensors")), |_| true);
    }
}

/// A model with all heads, and a batch for it.
struct Case {
    name: String,
    path: PathBuf,
    options: Options,
    batch: ProbeBatch,
}

/// Every family and variant.
fn cases() -> Vec<Case> {
    let golden = |name: &str| fixtures::golden().join(name);
    let mut cases = Vec::new();
    for variant in ["ufo", "ln_moe", "attn_moe", "ffn_moe", "all_moe"] {
        let batch = batch(&golden("batch.safetensors"), &golden(&format!("heads_{variant}.safetensors")));
        cases.push(Case {
            name: variant.into(),
            path: golden(&format!("model_{variant}.safetensors")),
            options: Options {
                image_size: batch.images.as_ref().map(|images| images.size),
                ..options(Some(golden(&format!("heads_{variant}.safetensors"))), None)
            },
            batch,
        });
    }
    for size in VLMO {
        let heads = vlmo(&format!("heads_{size}.safetensors"));
        cases.push(Case {
            name: format!("VLMo {size}"),
            path: published(size),
            options: options(Some(heads.clone()), None),
            batch: batch(&vlmo("batch.safetensors"), &heads),
        });
    }
    cases
}

/// A file's batch, with targets for as many answers as the head has where the file has none.
fn batch(path: &Path, heads: &Path) -> ProbeBatch {
    let mut batch = read_probe_batch(path).unwrap();
    let count = batch.images.as_ref().unwrap().count;
    let answers = read(&formats::open(heads).unwrap(), "vqa:vqa_classifier.3.bias").0[0];
    batch.vqa_targets.get_or_insert_with(|| Matrix {
        rows: count,
        columns: answers,
        values: (0..count * answers).map(|i| f32::from(u8::from(i % 5 == 0))).collect(),
    });
    batch.nlvr2_labels.get_or_insert_with(|| (0..count).map(|i| (i % 2) as i32).collect());
    batch
}

fn trainer(path: &Path, options: &Options) -> (Box<dyn Trainer>, Opened) {
    let settings = Settings {
        optimizer: Optimizer::default(),
        dropout: 0.1,
        drop_path: 0.1,
        precision: Precision::F32,
        activation_checkpointing: false,
        seed: 0,
    };
    open_trainer(&Source::Checkpoint(path), Heads::PRESENT, settings, options).unwrap_or_else(|e| panic!("{e:#}"))
}

/// The logits that the tasks' scores are made of, by task.
fn logits(runner: &dyn Runner, batch: &ProbeBatch) -> BTreeMap<&'static str, Matrix> {
    let (texts, images) = (batch.texts.as_ref().unwrap(), batch.images.as_ref().unwrap());
    let (left, right) = batch.pair.as_ref().unwrap();
    BTreeMap::from([
        ("texts", runner.embed_texts(texts).unwrap()),
        ("images", runner.embed_images(images).unwrap()),
        ("vqa", runner.vqa_logits(texts, images).unwrap()),
        ("nlvr2", runner.nlvr2_logits(texts, left, right).unwrap()),
    ])
}

/// The same architecture, as far as files of two layouts have one: NLVR2's head brings a third token type.
fn same_architecture(a: &Architecture, b: &Architecture) -> bool {
    Architecture { token_types: 0, ..a.clone() } == Architecture { token_types: 0, ..b.clone() }
}

#[test]
fn a_saved_model_computes_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    for Case { name, path, options, batch } in cases() {
        let before = probed(&path, &options, &batch);
        let (trainer, opened) = trainer(&path, &options);
        for (nth, file) in ["once.safetensors", "again.ckpt"].into_iter().enumerate() {
            let saved = folder.path().join(file);
            match nth {
                0 => trainer.save_weights(&saved, &[]).unwrap(),
                _ => self::trainer(&folder.path().join("once.safetensors"), &self::options(None, None))
                    .0
                    .save_weights(&saved, &[])
                    .unwrap(),
            }
            let (runner, again) = open_runner(&saved, &self::options(None, None)).unwrap();
            assert!(same_architecture(&opened.architecture, &again.architecture), "{name}: {:?}", again.architecture);
            assert_eq!((again.load.initialised, again.load.unexpected), (vec![], vec![]), "{name}");
            let after = by_name(runner.probe(&batch).unwrap());
            assert!(before.contains_key("logits.vqa") && before.contains_key("logits.nlvr2"), "{name}");
            for (tensor, wanted) in &before {
                assert_eq!(after.get(tensor), Some(wanted), "{name}, saved in {file}: {tensor}");
            }
        }
    }
}

#[test]
fn a_step_at_learning_rate_0_changes_no_score() {
    let folder = tempfile::tempdir().unwrap();
    let (weights, optimizer) = (folder.path().join("last.safetensors"), folder.path().join("optimizer.safetensors"));
    for Case { name, path, options, batch } in cases() {
        let (mut trainer, _) = trainer(&path, &options);
        let before = logits(&*trainer.runner(), &batch);
        let (texts, images) = (batch.texts.clone().unwrap(), batch.images.clone().unwrap());
        let (left, right) = batch.pair.clone().unwrap();
        let steps = [
            TrainBatch::Irtr { texts: texts.clone(), images: images.clone() },
            TrainBatch::Vqa { texts: texts.clone(), images, targets: batch.vqa_targets.clone().unwrap() },
            TrainBatch::Nlvr2 { texts, left, right, labels: batch.nlvr2_labels.clone().unwrap() },
        ];
        for (stream, step) in steps.iter().enumerate() {
            trainer.accumulate(step, 1.0, stream as u64).unwrap();
        }
        trainer.update(0.0, None).unwrap();
        trainer.save_weights(&weights, &[]).unwrap();
        trainer.save_optimizer(&optimizer).unwrap();

        // `engine eval` of the file, and `--resume`.
        let (evaluated, _) = open_runner(&weights, &self::options(None, None)).unwrap();
        assert_eq!(logits(&*evaluated, &batch), before, "{name}");
        let (mut resumed, _) = self::trainer(&weights, &self::options(None, None));
        resumed.restore_optimizer(&optimizer).unwrap();
        assert_eq!(logits(&*resumed.runner(), &batch), before, "{name}");
        assert_eq!(resumed.parameters(), trainer.parameters(), "{name}");
    }
}

#[test]
fn a_model_without_layer_scale_stays_without() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved.safetensors");
    let Case { path, options, batch, .. } = cases().pop().expect("base_plus");
    let (mut trainer, opened) = trainer(&path, &options);
    assert!(!opened.architecture.layer_scale);
    let (texts, images) = (batch.texts.clone().unwrap(), batch.images.clone().unwrap());
    trainer.accumulate(&TrainBatch::Irtr { texts, images }, 1.0, 0).unwrap();
    trainer.update(0.1, None).unwrap();
    trainer.save_weights(&saved, &[]).unwrap();
    let file = formats::open(&saved).unwrap();
    assert!(!file.tensors().iter().any(|info| info.name.contains("gamma")));
    assert!(!open_runner(&saved, &self::options(None, None)).unwrap().1.architecture.layer_scale);
}

/// Writes the golden modality-agnostic model with experts for everything in every layer, each a copy of its weights, or
/// of what `change` makes of them; no layer has a `vl` expert.
fn write_experts(to: &Path, attends: Attends, change: impl Fn(usize, Part, Modality, &mut [f32])) {
    let model = formats::open(fixtures::golden().join("model_ufo.safetensors")).unwrap();
    let layout = Layout::by_name("vl-merging").unwrap();
    let layers = model.config(layout).config.layers.unwrap();
    let mut tensors = Vec::new();
    for info in model.tensors() {
        let (shape, values) = read(&model, &info.name);
        let Some(place) = layout.parse_slot(&info.name) else {
            tensors.push(HostTensor { name: info.name.clone(), shape, values });
            continue;
        };
        for modality in [Modality::Vision, Modality::Language] {
            let mut values = values.clone();
            change(place.layer.unwrap(), place.part, modality, &mut values);
            let name = layout.expert_name(&info.name, modality).unwrap();
            tensors.push(HostTensor { name, shape: shape.clone(), values });
        }
    }
    save::write(to, tensors, &record(attends, layers)).unwrap();
}

fn record(attends: Attends, vl_start: usize) -> BTreeMap<String, String> {
    let record = format!(r#"{{"attends": "{attends}", "vl_start": {vl_start}}}"#);
    BTreeMap::from([(formats::CONFIG_KEY.to_string(), record)])
}

#[test]
fn experts_over_all_tokens_attend_for_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let batch = read_probe_batch(&fixtures::golden().join("batch.safetensors")).unwrap();
    let options = Options { image_size: batch.images.as_ref().map(|images| images.size), ..options(None, None) };
    let joint = |name: &str| {
        let found = probed(&path(name), &options, &batch);
        (found["vl.text_feats"].clone(), found["vl.image_feats"].clone())
    };
    let ufo = formats::open(fixtures::golden().join("model_ufo.safetensors")).unwrap();
    let layers = ufo.config(Layout::by_name("vl-merging").unwrap()).config.layers.unwrap();
    for (name, attends) in [("ufo.safetensors", Attends::ToAll), ("towers.safetensors", Attends::WithinModality)] {
        let tensors = ufo.tensors().iter().map(|info| {
            let (shape, values) = read(&ufo, &info.name);
            HostTensor { name: info.name.clone(), shape, values }
        });
        save::write(&path(name), tensors.collect(), &record(attends, layers)).unwrap();
    }
    write_experts(&path("experts.safetensors"), Attends::ToAll, |_, _, _, _| {});
    let (shared, towers, experts) =
        (joint("ufo.safetensors"), joint("towers.safetensors"), joint("experts.safetensors"));
    for (found, wanted) in [(&experts.0, &shared.0), (&experts.1, &shared.1)] {
        let far = difference(Some((&found.shape, &found.values)), (&wanted.shape, &wanted.values)).unwrap();
        assert!(far <= TOLERANCE, "experts that are copies differ from the shared weights by {far}");
    }
    assert!(shared.0.values != towers.0.values && shared.1.values != towers.1.values, "what is attended to matters");

    // Of the last layer, one modality's attention concerns that modality's tokens alone.
    let change = |of: Modality| {
        move |layer: usize, part: Part, modality: Modality, values: &mut [f32]| {
            if layer + 1 == layers && part == Part::Attention && modality == of {
                values.iter_mut().for_each(|value| *value *= 1.5);
            }
        }
    };
    write_experts(&path("v.safetensors"), Attends::ToAll, change(Modality::Vision));
    write_experts(&path("l.safetensors"), Attends::ToAll, change(Modality::Language));
    let (v, l) = (joint("v.safetensors"), joint("l.safetensors"));
    assert!(v.0 == experts.0 && v.1 != experts.1, "the image's attention changes the image's tokens");
    assert!(l.0 != experts.0 && l.1 == experts.1, "the text's attention changes the text's tokens");
}

#[test]
fn flags_in_hyper_parameters_choose_what_tokens_attend_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.ckpt");
    let open = |variant: fixtures::Variant, config: Vec<(&'static str, Py)>| {
        let spec = ModelSpec::preset(Size::Nano, variant);
        let options = LightningOptions { config, ..LightningOptions::default() };
        fixtures::write_lightning(&path, &spec, &options).unwrap();
        open_runner(&path, &self::options(None, None)).map(|(_, opened)| opened.architecture.attends)
    };
    use fixtures::Variant::{AllMoe, FfnMoe, Ufo};
    for (variant, key, attends) in [
        (Ufo, "none", Attends::WithinModality),
        (Ufo, "separate_inference", Attends::ToAll),
        (Ufo, "use_ufo", Attends::ToAll),
        (FfnMoe, "separate_inference", Attends::ToAll),
        (AllMoe, "separate_inference", Attends::WithinModality),
        (AllMoe, "self_attn_for_single_mode", Attends::ToAll),
    ] {
        assert_eq!(open(variant, vec![(key, false.into())]).unwrap(), attends, "{variant:?} without {key}");
    }
    let error = open(AllMoe, vec![("max_vl_text_len", 4.into())]).unwrap_err().to_string();
    assert!(
        error.contains("model.ckpt: models like this aren't run: hyper_parameters.config.max_vl_text_len is 4"),
        "{error}"
    );
}
