use formats::write::Metadata;

use super::super::fake::Fake;
use super::super::run_dir::{BEST, LAST};
use super::*;
use crate::model::save::{self, HostTensor};
use crate::report::metrics_log::{self, METRICS};
use crate::report::run_files::{CONFIG, RESULT, RunFiles};

/// A folder with data: dark and bright images, and whether they are bright.
struct Bench(tempfile::TempDir);

fn png(shade: u8) -> Vec<u8> {
    use ::image::ImageEncoder;
    let mut bytes = Vec::new();
    let encoder = ::image::codecs::png::PngEncoder::new(&mut bytes);
    encoder.write_image(&[shade; 12], 2, 2, ::image::ExtendedColorType::Rgb8).expect("a PNG");
    bytes
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench(tempfile::tempdir().expect("a folder"));
        std::fs::create_dir_all(bench.path("data/images")).expect("a folder");
        bench.split("train", 23);
        bench.split("val", 8);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn split(&self, split: &str, count: u8) {
        let mut lines = String::new();
        for number in 0..count {
            let bright = number % 2 == 0;
            let shade = if bright { 200 + number % 40 } else { 30 + number % 40 };
            let image = format!("images/{split}{number}.png");
            std::fs::write(self.path("data").join(&image), png(shade)).expect("an image");
            let answer = if bright { "yes" } else { "no" };
            lines += &format!("{{\"image\":\"{image}\",\"question\":\"is it bright?\",\"answers\":[\"{answer}\"]}}\n");
        }
        std::fs::write(self.path("data").join(format!("{split}.jsonl")), lines).expect("a data set");
    }

    fn config(&self) -> Config {
        Config {
            task: Some(Task::Vqa),
            data: Some(self.path("data")),
            batch_size: 8,
            accumulate: 2,
            steps: Some(25),
            epochs: None,
            lr: 0.5,
            eval_every: Some(10),
            checkpoint_every: Some(6),
            workers: Some(2),
            samples: 3,
            model: Some(ModelShape { image_size: 16, text_len: 16, ..ModelShape::default() }),
            ..Config::default()
        }
    }

    fn start(&self, config: Config, stop: &AtomicBool) -> Result<Finished> {
        let sitting = Sitting { quiet: true, stop, vlmerge: None };
        start(config, &self.path("run"), false, &sitting, &mut opening(1, None))
    }

    fn refused(&self, change: impl FnOnce(&mut Config)) -> String {
        let mut config = self.config();
        change(&mut config);
        let error = self.start(config, &AtomicBool::new(false)).expect_err("refused");
        assert!(!self.path("run").exists(), "nothing is left: {error:#}");
        format!("{error:#}")
    }
}

/// Opens fakes; from a checkpoint of theirs too.
fn opening<'a>(seed: u32, seen: Option<&'a mut Vec<Setup>>) -> impl FnMut(&Setup) -> Result<Ready> + 'a {
    let mut seen = seen;
    move |setup| {
        if let Some(seen) = &mut seen {
            seen.push(setup.clone());
        }
        Ok(ready(fake_for(setup, seed)?))
    }
}

/// What a checkpoint of a fake's holds, or a new one.
fn fake_for(setup: &Setup, seed: u32) -> Result<Fake> {
    match &setup.source {
        Source::Checkpoint { path, .. } => Fake::open(path),
        Source::Scratch { .. } => Ok(Fake::new(seed)),
    }
}

fn ready(fake: Fake) -> Ready {
    Ready { trainer: Box::new(fake), device: "fake".into(), notes: vec!["a head was made".into()] }
}

fn never() -> AtomicBool {
    AtomicBool::new(false)
}

/// What two equal runs have in common of each line.
fn curve(folder: &Path) -> Vec<(u64, Vec<(String, u64)>)> {
    let lines = metrics_log::read(&folder.join(METRICS)).expect("metrics");
    let timed = [metrics_log::IMAGES_PER_SECOND, metrics_log::DATA_WAIT];
    let values = |line: metrics_log::Line| -> Vec<(String, u64)> {
        let kept = line.values.into_iter().filter(|(name, _)| !timed.contains(&name.as_str()));
        kept.map(|(name, value)| (name, value.to_bits())).collect()
    };
    lines.into_iter().map(|line| (line.step, values(line))).collect()
}

#[test]
fn a_run_leaves_all_that_it_should() {
    let bench = Bench::new();
    let finished = bench.start(bench.config(), &never()).unwrap();
    assert!(matches!(&finished.outcome, Outcome::Finished(state) if state.step == 25));
    assert_eq!(finished.result.metrics["vqa_score"], 1.0, "dark and bright are easily told apart");
    assert!(!finished.toy);
    let run = RunFiles::read(&bench.path("run")).unwrap();
    assert_eq!(run.notes, [""; 0]);
    let result = run.result.as_ref().unwrap();
    assert_eq!((result.status, result.step, result.steps, result.train_examples), (Status::Finished, 25, 25, 23));
    assert_eq!((result.task.as_str(), result.device.as_str(), result.parameters), ("vqa", "fake", 8));
    assert_eq!(run.samples.len(), 3);
    assert!(run.samples.iter().all(|sample| sample.score == Some(1.0) && run.image(&sample.images[0]).is_some()));
    let steps: Vec<u64> = run.lines.iter().map(|line| line.step).collect();
    assert_eq!(steps.len(), 25 + 3, "each update and three evaluations");
    for file in [LAST, BEST] {
        let file = formats::open(bench.path("run").join(file)).unwrap();
        assert_eq!(file.metadata()["engine.labels.vqa"], r#"["yes","no"]"#);
        assert_eq!(file.metadata()["engine.task"], "vqa");
    }
    let saved = RunDir::open(&bench.path("run")).unwrap().config().unwrap();
    let expected = Config { data: Some(bench.path("data").canonicalize().unwrap()), ..bench.config() };
    assert_eq!(saved, expected);
}

#[test]
fn a_stopped_run_resumes_with_the_same_curve() {
    let whole = Bench::new();
    whole.start(whole.config(), &never()).unwrap();
    // The flag is set before the run begins, and again after every fourth update.
    let bench = Bench::new();
    let stop = AtomicBool::new(true);
    let stopped = bench.start(bench.config(), &stop).unwrap();
    assert!(matches!(&stopped.outcome, Outcome::Interrupted(state) if state.step == 0), "{:?}", stopped.outcome);
    let mut sittings = 0;
    loop {
        sittings += 1;
        let stop = Arc::new(never());
        let mut open = |setup: &Setup| {
            let mut fake = fake_for(setup, 50)?;
            fake.stops_at = Some((4 * sittings, stop.clone()));
            Ok(ready(fake))
        };
        let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
        let finished = resume(&bench.path("run"), &Changes::default(), &sitting, &mut open).unwrap();
        match finished.outcome {
            Outcome::Finished(_) => break,
            Outcome::Interrupted(state) => assert_eq!(state.step, 4 * sittings),
        }
    }
    assert_eq!(sittings, 7, "25 updates, four at a time");
    let without_time = |folder: PathBuf| curve(&folder);
    assert_eq!(without_time(bench.path("run")), without_time(whole.path("run")));
    let weights = |bench: &Bench| std::fs::read(bench.path("run").join(LAST)).unwrap();
    let tail = |bytes: Vec<u8>| bytes[bytes.len() - 32..].to_vec();
    assert_eq!(tail(weights(&bench)), tail(weights(&whole)));
}

#[test]
fn what_cannot_be_run_is_said_before_a_folder_is_made() {
    let bench = Bench::new();
    let nothing = bench.refused(|c| c.model = None);
    assert!(nothing.starts_with("give a checkpoint to start from, or a [model]"), "{nothing}");
    let size = bench.refused(|c| c.image_size = Some(50));
    assert_eq!(size, "image_size 50 is not a multiple of the patch size 16: try 48 or 64");
    let large = bench.refused(|c| c.batch_size = 64);
    assert!(large.ends_with("23 training examples don't fill a batch of 32: lower batch_size"), "{large}");
    let merge = bench.refused(|c| c.merge = Some("interpolate:0.5".into()));
    assert_eq!(merge, "--merge needs a checkpoint to merge");
    let split = bench.refused(|c| c.val_split = Some("dev".into()));
    assert!(split.contains("no split 'dev' for vqa"), "{split}");
    let checkpoint = bench.refused(|c| c.checkpoint = Some("no/such.ckpt".into()));
    assert!(checkpoint.starts_with("no/such.ckpt: "), "{checkpoint}");
    let pretrain = bench.refused(|c| c.pretrain = Some(Default::default()));
    assert!(pretrain.contains("pre-training"), "{pretrain}");
    let batch = bench.refused(|c| c.batch_size = 0);
    assert_eq!(batch, "batch_size is 0: it must be at least 1");
}

#[test]
fn one_file_is_not_both_training_and_validation_data() {
    let bench = Bench::new();
    std::fs::rename(bench.path("data/train.jsonl"), bench.path("data/pets.jsonl")).unwrap();
    let both = bench.refused(|c| c.data = Some(bench.path("data/pets.jsonl")));
    assert!(both.contains("pets.jsonl: this would be both the training and the validation data"), "{both}");
    assert!(both.contains("--no-validation"), "it says what to do: {both}");
    std::fs::rename(bench.path("data/pets.jsonl"), bench.path("data/pets_train.jsonl")).unwrap();
    let named = bench.refused(|c| c.data = Some(bench.path("data/pets_train.jsonl")));
    assert!(named.contains("pets_train.jsonl: no split 'val' for vqa; its name says that it is 'train'"), "{named}");
}

#[test]
fn training_on_the_validation_split_is_said() {
    let bench = Bench::new();
    let notes = |train: &str, val: &str| {
        let config = Config { train_split: Some(train.into()), val_split: Some(val.into()), ..bench.config() };
        Data::open(&config, Task::Vqa, HeadOf::Checkpoint(None)).unwrap().notes
    };
    assert_eq!(notes("train", "val"), [""; 0]);
    let shared = notes("train+val", "val");
    assert!(shared.len() == 1 && shared[0].starts_with("train+val and val share "), "{shared:?}");
    // What is not said for both splits is an oversight, which has another remedy than files of their own.
    let advice = "would share this file: take another split for validation (--set val_split=NAME), or train without \
                  validation (--no-validation)";
    let error = bench.refused(|c| c.train_split = Some("train+val".into()));
    assert!(error.contains("the training data (train+val) and the validation data (val) "), "{error}");
    assert!(error.ends_with(advice), "{error}");
    let error = bench.refused(|c| c.val_split = Some("train".into()));
    assert!(error.ends_with(advice), "{error}");
}

/// The Python code trains on Flickr30k's train and val and validates on its test split.
#[test]
fn flickr30k_is_split_as_the_code_does_only_where_that_is_asked_for() {
    let bench = Bench::new();
    for split in ["train", "val", "test"] {
        std::fs::write(bench.path("data").join(format!("{split}.png")), png(9)).unwrap();
        let line = format!("{{\"image\":\"{split}.png\",\"caption\":\"a {split}\"}}\n");
        std::fs::write(bench.path(&format!("data/f30k_caption_karpathy_{split}.jsonl")), line).unwrap();
        std::fs::remove_file(bench.path(&format!("data/{split}.jsonl"))).ok();
    }
    let config = Config { task: Some(Task::Irtr), ..bench.config() };
    let names = |config: &Config| {
        let data = Data::open(config, Task::Irtr, HeadOf::Checkpoint(None)).unwrap();
        (data.train.name().to_owned(), data.val.unwrap().name().to_owned(), data.protocol)
    };
    let set = |split: &str| format!("f30k_caption_karpathy {split}");
    assert_eq!(names(&config), (set("train"), set("val"), None));
    let paper = Config { protocol: Some(Protocol::Paper), ..config.clone() };
    let (train, val, said) = names(&paper);
    assert_eq!((train, val), (set("train+val"), set("test")));
    assert!(said.is_some_and(|said| said.contains("the best weights are those that score best on test data")));
    let refused = |config: Config| Data::open(&config, Task::Irtr, HeadOf::Checkpoint(None)).err().unwrap().to_string();
    let chosen = refused(Config { val_split: Some("val".into()), ..paper.clone() });
    assert!(chosen.contains("leave out train_split and val_split"), "{chosen}");
    let none = refused(Config { val_split: Some("none".into()), ..paper.clone() });
    assert!(none.contains("leave out train_split and val_split"), "{none}");
    let other = refused(Config { data: Some("toy".into()), ..paper });
    assert!(other.starts_with("toy: the paper has no protocol for irtr on this data set"), "{other}");
}

#[test]
fn a_broken_image_is_in_the_log_and_the_result() {
    let bench = Bench::new();
    bench.split("train", 120);
    std::fs::write(bench.path("data/images/train7.png"), b"\x89PNG\r\n\x1a\nand no more").unwrap();
    bench.start(bench.config(), &never()).unwrap();
    let run = RunFiles::read(&bench.path("run")).unwrap();
    let skipped = run.result.unwrap().skipped;
    assert!(skipped.len() == 1 && skipped[0].starts_with("train: train.jsonl line 8: "), "{skipped:?}");
    let mut counted = run.lines.iter().filter_map(|line| line.values.get(metrics_log::BROKEN_ROWS));
    assert_eq!(counted.next_back(), Some(&1.0));
}

#[test]
fn broken_images_beyond_the_limit_stop_the_run_with_a_checkpoint() {
    let bench = Bench::new();
    bench.split("train", 120);
    for number in [7, 70, 110] {
        std::fs::write(bench.path(&format!("data/images/train{number}.png")), b"no image").unwrap();
    }
    let error = format!("{:#}", bench.start(bench.config(), &never()).unwrap_err());
    assert!(error.starts_with("training stopped after ") && error.contains("a checkpoint of that is saved"), "{error}");
    assert!(error.contains("2 of 120 rows are broken, more than 1 %"), "{error}");
    assert!(bench.path("run").join(LAST).is_file());
    let result = RunFiles::read(&bench.path("run")).unwrap().result.unwrap();
    assert_eq!((result.status, result.skipped.len() >= 2), (Status::Failed, true));
    // More are allowed where that is said.
    let config = Config { max_broken: 0.05, ..bench.config() };
    let sitting = Sitting { quiet: true, stop: &never(), vlmerge: None };
    let finished = start(config, &bench.path("more"), false, &sitting, &mut opening(1, None)).unwrap();
    assert_eq!(finished.result.skipped.len(), 3);
}

/// Each resumption begins with the evaluation that failed.
#[test]
fn a_broken_validation_split_is_no_dead_end() {
    let more = Changes { max_broken: Some(0.5), ..Changes::default() };
    let without = Changes { no_validation: true, ..Changes::default() };
    for changes in [more, without] {
        let bench = Bench::new();
        std::fs::write(bench.path("data/images/val3.png"), b"no image").unwrap();
        let config = Config { val_limit: Some(7), ..bench.config() };
        let error = format!("{:#}", bench.start(config, &never()).unwrap_err());
        let wanted = "training stopped after 10 updates, and a checkpoint of that is saved: evaluation after 10 updates \
                      (--no-validation goes on without): ";
        assert!(error.starts_with(wanted) && error.ends_with("or allow more with --max-broken SHARE"), "{error}");
        let resume = |changes: &Changes| {
            let stop = never();
            let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
            resume(&bench.path("run"), changes, &sitting, &mut opening(1, None))
        };
        let saved = || RunDir::open(&bench.path("run")).unwrap().config().unwrap();
        let before = saved();
        resume(&Changes::default()).unwrap_err();
        assert_eq!(saved(), before, "the run is as it was");
        let finished = resume(&changes).unwrap();
        assert!(matches!(&finished.outcome, Outcome::Finished(state) if state.step == 25), "{changes:?}");
        // What it is now it stays.
        let wanted = match changes.max_broken {
            Some(max_broken) => Config { max_broken, ..before },
            None => Config { validate: false, val_limit: None, ..before },
        };
        assert_eq!(saved(), wanted);
        resume(&Changes::default()).unwrap();
    }
}

#[test]
fn one_update_is_no_plural() {
    let config = Config { steps: Some(1), ..Config::default() };
    let said = new_length(&config, &State { steps: 3, ..State::default() }, 1);
    assert!(
        said.starts_with("the run now has 1 update in all, not 3: the schedule is one over 1 update, so"),
        "{said}"
    );
}

#[test]
fn a_model_that_does_not_open_leaves_no_run() {
    let bench = Bench::new();
    let (stop, mut fails) = (never(), |_: &Setup| -> Result<Ready> { bail!("out of memory") });
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    let error = start(bench.config(), &bench.path("run"), false, &sitting, &mut fails).err().unwrap();
    assert_eq!(error.to_string(), "out of memory");
    assert!(!bench.path("run").exists());
}

#[test]
fn a_run_that_is_to_be_replaced_outlives_a_failed_attempt() {
    let bench = Bench::new();
    bench.start(bench.config(), &never()).unwrap();
    let before = std::fs::read(bench.path("run").join(BEST)).unwrap();
    let (stop, mut fails) = (never(), |_: &Setup| -> Result<Ready> { bail!("out of memory") });
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    start(bench.config(), &bench.path("run"), true, &sitting, &mut fails).unwrap_err();
    assert_eq!(std::fs::read(bench.path("run").join(BEST)).unwrap(), before);
    assert_eq!(RunFiles::read(&bench.path("run")).unwrap().result.unwrap().step, 25);
    // Nor can it be what its successor begins with.
    let config = Config { checkpoint: Some(bench.path("run").join(BEST)), ..bench.config() };
    let error = start(config, &bench.path("run"), true, &sitting, &mut opening(1, None)).unwrap_err().to_string();
    assert!(error.ends_with("best.safetensors: this file is of the run that --force would replace: choose another folder for the new run"), "{error}");
    assert_eq!(std::fs::read(bench.path("run").join(BEST)).unwrap(), before);
    start(bench.config(), &bench.path("run"), true, &sitting, &mut opening(1, None)).unwrap();
    assert!(!bench.path("run/.earlier-run").exists());
}

#[test]
fn a_folder_with_a_run_is_refused_and_a_run_of_other_data_not_resumed() {
    let bench = Bench::new();
    bench.start(bench.config(), &never()).unwrap();
    let error = bench.start(bench.config(), &never()).unwrap_err().to_string();
    assert!(error.contains("already holds a run"), "{error}");
    bench.split("train", 40);
    let stop = never();
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    let error =
        resume(&bench.path("run"), &Changes::default(), &sitting, &mut opening(1, None)).unwrap_err().to_string();
    assert!(error.ends_with("it has 40 training examples now, and had 23 when this run began"), "{error}");
}

#[test]
fn a_run_that_failed_says_why() {
    let bench = Bench::new();
    let stop = never();
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    let mut open = |_: &Setup| {
        let mut trainer = Fake::new(1);
        trainer.breaks_at = Some(7);
        Ok(Ready { trainer: Box::new(trainer), device: "fake".into(), notes: Vec::new() })
    };
    let error = start(bench.config(), &bench.path("run"), false, &sitting, &mut open).unwrap_err().to_string();
    assert!(error.starts_with("update 8 at learning rate ") && error.contains("bad_batch.safetensors"), "{error}");
    let text = std::fs::read_to_string(bench.path("run").join(RESULT)).unwrap();
    let result: RunResult = serde_json::from_str(&text).unwrap();
    assert_eq!((result.status, result.step, result.message.as_deref()), (Status::Failed, 7, Some(error.as_str())));
    let batch = formats::open(bench.path("run/bad_batch.safetensors")).unwrap();
    assert_eq!(batch.get("1.image").unwrap().shape, [4, 3, 16, 16]);
    assert_eq!(batch.get("vqa_targets").unwrap().shape, [4, 2]);
}

/// A fake's checkpoint, with a head for vqa of so many labels.
fn checkpoint(path: &Path, labels: usize, metadata: &[(&str, &str)]) {
    let metadata = metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
    let metadata: Metadata = metadata.chain([("updates".to_owned(), "0".to_owned())]).collect();
    let zeros = |name: &str, shape: Vec<usize>| {
        let values = vec![0.0; shape.iter().product()];
        HostTensor { name: name.into(), shape, values }
    };
    let mut tensors = vec![zeros("values", vec![8])];
    if labels > 0 {
        tensors.push(zeros("vqa_classifier.3.weight", vec![labels, 2]));
    }
    save::write(path, tensors, &metadata).unwrap();
}

fn start_from(bench: &Bench, config: Config, seen: &mut Vec<Setup>) -> Result<Finished> {
    let stop = never();
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    start(config, &bench.path("run"), true, &sitting, &mut opening(1, Some(seen)))
}

#[test]
fn a_checkpoints_head_keeps_its_labels_and_its_recipe() {
    let bench = Bench::new();
    let path = bench.path("before.safetensors");
    let recipe = ("vlmerge.recipe", r#"{"method":"interpolate"}"#);
    checkpoint(&path, 3, &[("engine.labels.vqa", r#"["maybe","no","yes"]"#), recipe]);
    let config = Config { checkpoint: Some(path.clone()), ..bench.config() };
    let mut seen = Vec::new();
    // Two labels are all that a fake has.
    let error = start_from(&bench, config, &mut seen).unwrap_err();
    assert!(format!("{error:#}").contains("the model answers with 2 labels, but 3 are named"), "{error:#}");
    assert_eq!((seen[0].labels, &seen[0].replaced_head), (3, &None));
    assert_eq!(seen[0].source, Source::Checkpoint { path: path.canonicalize().unwrap(), root: None });
    let text = std::fs::read_to_string(bench.path("run").join(RESULT)).unwrap();
    let result: RunResult = serde_json::from_str(&text).unwrap();
    assert_eq!(result.recipe.unwrap()["method"], "interpolate");
    let saved = RunDir::open(&bench.path("run")).unwrap().newest().unwrap().unwrap();
    let saved = formats::open(saved.weights).unwrap();
    assert_eq!(saved.metadata()["engine.labels.vqa"], r#"["maybe","no","yes"]"#);
    assert_eq!(saved.metadata()["vlmerge.recipe"], r#"{"method":"interpolate"}"#);
}

#[test]
fn a_head_of_other_labels_is_no_dead_end() {
    let bench = Bench::new();
    let path = bench.path("before.safetensors");
    let train = data::open(&bench.path("data"), Task::Vqa, "train").unwrap();
    assert_eq!(train.labels(), ["yes", "no"]);
    let names = |list: &'static str| [("engine.labels.vqa", list)];
    let found = |head, labels, metadata: &[(&str, &str)]| {
        checkpoint(&path, labels, metadata);
        let config = Config { head, ..bench.config() };
        let known = Checkpoint::read(&path, None).unwrap();
        starting_head(&config, Task::Vqa, Some(&known), &train)
    };
    let shown = path.display().to_string();
    let told = |start: StartingHead| -> (Vec<String>, Option<Vec<Option<usize>>>, String) {
        let rows = start.replaced.map(|head| {
            assert_eq!(head.name, "vqa_classifier");
            head.rows
        });
        (start.labels, rows, start.notes.concat().replace(&format!("{shown}: "), ""))
    };
    let own = || vec!["yes".to_owned(), "no".to_owned()];
    let refused =
        |head, labels, metadata: &[(&str, &str)]| format!("{:#}", found(head, labels, metadata).err().unwrap());

    // As many labels without names are the data's, one by one; that this is a guess is said.
    let note = "its vqa head has 2 labels without names: they are taken to be the labels of the data (train), in the same \
                order (--head new starts with a new head)";
    for head in [None, Some(Head::Keep), Some(Head::Match)] {
        assert_eq!(told(found(head, 2, &[]).unwrap()), (own(), None, note.into()), "{head:?}");
    }
    let note = "its vqa head has 3129 labels without names, and the data (train) have 2: a new head takes its place \
                (--head match keeps the rows of labels that both name)";
    assert_eq!(told(found(None, 3129, &[]).unwrap()), (own(), Some(vec![]), note.into()));
    let error = refused(Some(Head::Keep), 3129, &[]);
    assert!(
        error.contains("3129 labels without names") && error.contains("--head new starts with a new head"),
        "{error}"
    );

    let several = names(r#"["maybe","no","yes"]"#);
    let kept: Vec<String> = ["maybe", "no", "yes"].map(str::to_owned).into();
    for head in [None, Some(Head::Keep)] {
        assert_eq!(told(found(head, 3, &several).unwrap()), (kept.clone(), None, String::new()), "{head:?}");
    }
    let (labels, rows, note) = told(found(Some(Head::Match), 3, &several).unwrap());
    assert_eq!((labels, rows), (own(), Some(vec![Some(2), Some(1)])));
    assert_eq!(note, "2 of 2 labels keep their rows of its vqa head of 3, the others start anew");
    let (labels, rows, note) = told(found(Some(Head::New), 3, &several).unwrap());
    assert_eq!((labels, rows), (own(), Some(vec![])));
    assert_eq!(note, "a new vqa head of 2 labels takes the place of its 3");

    let other = names(r#"["red","yes"]"#);
    let (labels, rows, note) = told(found(None, 2, &other).unwrap());
    assert_eq!((labels, rows), (own(), Some(vec![])));
    assert!(
        note.starts_with("the label 'no' of the data (train) is none of the 2 of its vqa head: a new head"),
        "{note}"
    );
    assert!(
        refused(Some(Head::Keep), 2, &other).contains("the label 'no' of the data (train) is none of the 2 of its")
    );
    let (_, rows, _) = told(found(Some(Head::Match), 2, &other).unwrap());
    assert_eq!(rows, Some(vec![Some(1), None]));

    assert!(
        refused(None, 5, &other)
            .ends_with("its vqa head has 5 labels, and its metadata names 2: --head new starts with a new head")
    );
    assert!(found(Some(Head::New), 5, &other).is_ok());
    assert!(refused(Some(Head::Keep), 0, &[]).contains("it has no vqa head to keep"));
    let note = "it has no vqa head, of which --head match could keep rows: a new one is made";
    assert_eq!(told(found(Some(Head::Match), 0, &[]).unwrap()), (own(), None, note.into()));
    assert_eq!(told(found(None, 0, &[]).unwrap()), (own(), None, String::new()));

    // Retrieval has no labels.
    for head in [Head::Keep, Head::New, Head::Match] {
        let config = Config { head: Some(head), ..bench.config() };
        let error = starting_head(&config, Task::Irtr, None, &train).err().unwrap();
        assert!(matches!(error.downcast_ref(), Some(Error::Usage(_))), "{error:#}");
        assert!(error.to_string().starts_with(&format!("--head {} is for vqa, nlvr2 and", head.name())), "{error:#}");
    }
}

#[test]
fn a_replaced_head_is_trained_saved_and_resumed_as_the_runs_own() {
    let bench = Bench::new();
    let path = bench.path("before.safetensors");
    checkpoint(&path, 3129, &[]);
    let config = Config { checkpoint: Some(path.clone()), head: Some(Head::Match), ..bench.config() };
    let mut seen = Vec::new();
    start_from(&bench, config, &mut seen).unwrap();
    assert_eq!((seen[0].labels, seen[0].replaced_head.as_ref().unwrap().rows.len()), (2, 2));
    let last = formats::open(bench.path("run").join(LAST)).unwrap();
    assert_eq!(last.metadata()["engine.labels.vqa"], r#"["yes","no"]"#);
    let stop = never();
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    resume(&bench.path("run"), &Changes::default(), &sitting, &mut opening(1, Some(&mut seen))).unwrap();
    assert_eq!((seen[1].labels, &seen[1].replaced_head), (2, &None), "what the run saved is its own head");
}

#[test]
fn a_run_without_validation_is_possible() {
    let bench = Bench::new();
    std::fs::remove_file(bench.path("data/val.jsonl")).unwrap();
    let missing = bench.refused(|_| {});
    assert!(
        missing.ends_with(
            "no split 'val' for vqa; there are vqa (train): --no-validation trains without validation, \
             --set val_split=NAME takes another split for it"
        ),
        "{missing}"
    );
    let config = Config { validate: false, ..bench.config() };
    let finished = bench.start(config, &never()).unwrap();
    assert!(matches!(&finished.outcome, Outcome::Finished(state) if state.step == 25 && !state.evaluation_due));
    assert_eq!((finished.result.best.as_ref(), finished.result.metrics.len()), (None, 0));
    assert_eq!(finished.result.validation_data, "");
    assert!(bench.path("run").join(LAST).is_file() && !bench.path("run").join(BEST).exists());
    let files = RunFiles::read(&bench.path("run")).unwrap();
    assert_eq!((files.lines.len(), files.samples.len(), files.notes.len()), (25, 0, 0));
    let page = crate::report::report(&files);
    assert!(page.contains("finished") && !page.contains("NaN") && !page.contains("On the validation split"));
    // A run's folder stands for its weights all the same.
    assert_eq!(checkpoint_at(&bench.path("run")).unwrap().0, bench.path("run").join(LAST));
    let stop = never();
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    let again = resume(&bench.path("run"), &Changes::default(), &sitting, &mut opening(1, None)).unwrap();
    assert!(matches!(again.outcome, Outcome::Finished(_)));
}

#[test]
fn the_task_is_that_of_the_data_where_they_have_one() {
    let bench = Bench::new();
    let finished = bench.start(Config { task: None, ..bench.config() }, &never()).unwrap();
    assert_eq!(finished.result.task, "vqa");
    let caption = "{\"image\":\"images/train0.png\",\"caption\":\"bright\"}\n";
    std::fs::write(bench.path("data/irtr_train.jsonl"), caption).unwrap();
    let mut seen = Vec::new();
    let error = start_from(&bench, Config { task: None, ..bench.config() }, &mut seen).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Error::Usage(_))), "{error:#}");
    assert!(error.to_string().ends_with("data: there are data for irtr and vqa: say which with --task"), "{error:#}");
}

#[test]
fn a_runs_folder_can_be_started_from() {
    let bench = Bench::new();
    bench.start(bench.config(), &never()).unwrap();
    std::fs::rename(bench.path("run"), bench.path("before")).unwrap();
    let mut seen = Vec::new();
    let config = Config { checkpoint: Some(bench.path("before")), ..bench.config() };
    start_from(&bench, config, &mut seen).unwrap();
    let best = bench.path("before").canonicalize().unwrap().join(BEST);
    assert_eq!(seen[0].source, Source::Checkpoint { path: best.clone(), root: None });
    assert_eq!(RunDir::open(&bench.path("run")).unwrap().config().unwrap().checkpoint, Some(best));
    let error = bench.start(Config { checkpoint: Some(bench.path("data")), ..bench.config() }, &never()).unwrap_err();
    assert!(error.to_string().contains("this folder holds no run"), "{error:#}");
}

fn resumed_with(bench: &Bench, length: Length) -> Result<Finished> {
    let stop = never();
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    let changes = Changes { length: Some(length), ..Changes::default() };
    resume(&bench.path("run"), &changes, &sitting, &mut opening(1, None))
}

#[test]
fn a_finished_run_can_be_extended() {
    let bench = Bench::new();
    bench.start(bench.config(), &never()).unwrap();
    let saved = || RunDir::open(&bench.path("run")).unwrap().config().unwrap();
    let before = saved();
    for (length, wanted) in [
        (Length::Steps(24), "run: it shall have 24 updates in all, and 25 are done already"),
        (Length::Epochs(3), "run: 3 epochs are 7 updates, and 25 are done already"),
    ] {
        let error = resumed_with(&bench, length).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Error::Usage(_))), "{error:#}");
        assert!(error.to_string().ends_with(wanted), "{error:#}");
        assert_eq!(saved(), before, "the run is as it was");
    }
    let finished = resumed_with(&bench, Length::Steps(40)).unwrap();
    assert!(matches!(&finished.outcome, Outcome::Finished(state) if (state.step, state.steps) == (40, 40)));
    assert_eq!((finished.result.steps, finished.result.status), (40, Status::Finished));
    let files = RunFiles::read(&bench.path("run")).unwrap();
    let rates: Vec<f64> = files.lines.iter().filter_map(|line| line.values.get(metrics_log::LR).copied()).collect();
    assert_eq!(rates.len(), 40);
    let schedule = |steps| Schedule::new(&bench.config(), steps);
    assert_eq!(rates[24], schedule(25).at(24));
    assert_eq!(rates[25..], (25..40).map(|step| schedule(40).at(step)).collect::<Vec<f64>>());
    // What it is now it stays: a plain resume finds it finished.
    assert_eq!(saved(), Config { steps: Some(40), ..before });
    // In passes over the data: 5 batches in each, two an update.
    let finished = resumed_with(&bench, Length::Epochs(17)).unwrap();
    assert!(matches!(&finished.outcome, Outcome::Finished(state) if state.step == 42), "{:?}", finished.outcome);
}

#[test]
fn a_run_that_is_cut_short_is_evaluated_where_it_ends() {
    let bench = Bench::new();
    let stop = Arc::new(never());
    let mut open = |setup: &Setup| {
        let mut fake = fake_for(setup, 1)?;
        fake.stops_at = Some((7, stop.clone()));
        Ok(ready(fake))
    };
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    start(bench.config(), &bench.path("run"), false, &sitting, &mut open).unwrap();
    let finished = resumed_with(&bench, Length::Steps(7)).unwrap();
    assert!(matches!(&finished.outcome, Outcome::Finished(state) if state.step == 7));
    assert_eq!(finished.result.best.unwrap().step, 7);
}

#[test]
fn resuming_reads_the_weights_once() {
    let bench = Bench::new();
    let stop = Arc::new(never());
    let mut open = |setup: &Setup| {
        let mut fake = fake_for(setup, 1)?;
        fake.stops_at = Some((4, stop.clone()));
        Ok(ready(fake))
    };
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    start(bench.config(), &bench.path("run"), false, &sitting, &mut open).unwrap();
    // Once the model is open its file isn't needed any more.
    let mut open = |setup: &Setup| {
        let fake = fake_for(setup, 1)?;
        let Source::Checkpoint { path, .. } = &setup.source else { bail!("no checkpoint") };
        std::fs::remove_file(path)?;
        Ok(ready(fake))
    };
    let stop = never();
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    let finished = resume(&bench.path("run"), &Changes::default(), &sitting, &mut open).unwrap();
    assert!(matches!(finished.outcome, Outcome::Finished(_)));
}

#[test]
fn a_start_without_a_folder_makes_one_of_its_own() {
    let bench = Bench::new();
    let stop = never();
    let sitting = Sitting { quiet: true, stop: &stop, vlmerge: None };
    let begin = |config| start_in_new_folder(config, &bench.path(""), &sitting, &mut opening(1, None));
    let error = begin(Config { val_split: Some("dev".into()), ..bench.config() }).unwrap_err();
    assert!(error.to_string().contains("no split 'dev'"), "{error:#}");
    for name in ["run", "run-2"] {
        assert!(!bench.path(name).exists(), "{name}");
        assert_eq!(begin(bench.config()).unwrap().folder, bench.path(name));
    }
    let mut fails = |_: &Setup| -> Result<Ready> { bail!("out of memory") };
    start_in_new_folder(bench.config(), &bench.path(""), &sitting, &mut fails).unwrap_err();
    assert!(!bench.path("run-3").exists());
}

#[test]
fn options_for_a_checkpoint_need_one() {
    let bench = Bench::new();
    let root = bench.refused(|c| c.root = Some("model".into()));
    assert!(root.starts_with("--root says where in a checkpoint the tensors are"), "{root}");
    let head = bench.refused(|c| c.head = Some(Head::New));
    assert!(head.starts_with("--head says what becomes of a checkpoint's head"), "{head}");
}

#[test]
fn the_toy_data_need_nothing() {
    let bench = Bench::new();
    let config = Config { data: None, task: None, steps: Some(1), val_limit: Some(14), samples: 0, ..bench.config() };
    let finished = bench.start(config, &never());
    // A fake answers with two labels; the toy data have more.
    let error = format!("{:#}", finished.unwrap_err());
    assert!(error.contains("the model answers with 2 labels"), "{error}");
    let text = std::fs::read_to_string(bench.path("run").join(CONFIG)).unwrap();
    assert!(text.contains("task = \"vqa\""), "{text}");
}
