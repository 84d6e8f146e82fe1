//! From a preset, a file, options and `--set` to one [`Config`]: each overrides what came before it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use formats::show_path;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::config::{Config, KEYS, MODEL_KEYS, PRETRAIN_KEYS};
use super::presets::preset;

/// Values given so far.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    values: Table,
    /// Who gave `model` beside a preset: a file's name, or `--set model.layers=6`.
    shape_from: Option<String>,
    /// Those of [`OF_VALIDATION`] that `--set` has given.
    validation_set: Vec<&'static str>,
}

/// Keys that say something of the validation alone.
const OF_VALIDATION: [&str; 2] = ["val_split", "val_limit"];

/// A layer that can't be used: where, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// What was typed or written is wrong: the user's to correct.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    File(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Files beyond this are refused unread: a configuration is a page of text.
const MAX_BYTES: u64 = 1 << 20;

impl Layers {
    /// A built-in preset.
    pub fn preset(&mut self, name: &str) -> Result<()> {
        let preset = preset(name).map_err(Error::Usage)?;
        self.text(preset.text, &format!("preset {name}"))?;
        self.values.insert("preset".into(), name.into());
        Ok(())
    }

    /// A TOML file; the preset that it names comes beneath it, unless `preset_given` says that there is one already.
    pub fn file(&mut self, path: &Path, preset_given: bool) -> Result<()> {
        let shown = show_path(path).to_string();
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
        read.map_err(|e| Error::File(format!("{shown}: cannot read the configuration: {e}")))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::Usage(format!("{shown}: over {MAX_BYTES} bytes are no configuration")));
        }
        let own = parse(&text, &shown)?;
        match own.get("preset").and_then(Value::as_str) {
            Some(name) if !preset_given => self.preset(name).map_err(|e| Error::Usage(format!("{shown}: {e}")))?,
            _ => {}
        }
        let kept = self.values.get("preset").cloned();
        if own.contains_key("model") {
            self.shape_from = Some(shown);
        }
        self.overlay(own);
        if let Some(kept) = kept.filter(|_| preset_given) {
            self.values.insert("preset".into(), kept);
        }
        Ok(())
    }

    /// TOML from elsewhere, `origin` in messages.
    pub fn text(&mut self, text: &str, origin: &str) -> Result<()> {
        let table = parse(text, origin)?;
        self.overlay(table);
        Ok(())
    }

    /// A value that an option gave; the caller vouches for key and type.
    pub fn value(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        self.overlay(Table::from_iter([(key.to_owned(), value)]));
    }

    /// `key=value`: the value is TOML, or text that needs no quotes; `model.layers=6` reaches into a table.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let wrong = |reason: String| Error::Usage(format!("--set {assignment}: {reason}"));
        let Some((key, value)) = assignment.split_once('=') else {
            return Err(wrong("it must be key=value".into()));
        };
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c)) {
            return Err(wrong(format!("'{key}' is no key")));
        }
        let as_toml = check(&format!("{key} = {value}"));
        let table = match as_toml {
            Ok(table) => table,
            Err(first) => {
                let quoted = Value::String(value.to_owned());
                // Where text doesn't do either, the complaint about what was typed is the better one, unless it
                // couldn't be read at all.
                let is_toml = format!("{key} = {value}").parse::<Table>().is_ok();
                check(&format!("{key} = {quoted}"))
                    .map_err(|second| wrong(if is_toml { first.reason } else { second.reason }))?
            }
        };
        if table.contains_key("model") {
            self.shape_from = Some(format!("--set {assignment}"));
        }
        self.validation_set.extend(OF_VALIDATION.into_iter().filter(|&key| table.contains_key(key)));
        self.overlay(table);
        Ok(())
    }

    /// Whether a key has a value.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// All layers as one, with defaults for the rest, checked.
    pub fn config(mut self) -> Result<Config> {
        // The default's epochs are for those who say nothing.
        let steps_alone = self.has("steps") && !self.has("epochs");
        if self.has("checkpoint") || self.has("merge") {
            if let Some(origin) = self.shape_from {
                return Err(Error::Usage(format!(
                    "{origin}: model settings are for a model that starts from scratch, and the checkpoint has its own \
                     shape: leave them out"
                )));
            }
            // A preset's shape is for those who give no checkpoint.
            self.values.remove("model");
        }
        let mut config: Config =
            Value::Table(self.values).try_into().map_err(|e: toml::de::Error| Error::Usage(one_line(e.message())))?;
        if steps_alone {
            config.epochs = None;
        }
        config.check().map_err(Error::Usage)?;
        Ok(config)
    }

    fn overlay(&mut self, table: Table) {
        // How long to train is one choice with two names.
        for (one, other) in [("steps", "epochs"), ("epochs", "steps")] {
            if table.contains_key(one) && !table.contains_key(other) {
                self.values.remove(other);
            }
        }
        // Without validation, what an earlier layer says of it is of no use; what was typed with it is a mistake.
        if table.get("validate") == Some(&Value::Boolean(false)) {
            for key in OF_VALIDATION.into_iter().filter(|key| !self.validation_set.contains(key)) {
                self.values.remove(key);
            }
        }
        overlay(&mut self.values, table);
    }
}

/// Puts values over others, tables key by key.
fn overlay(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => overlay(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn parse(text: &str, origin: &str) -> Result<Table> {
    check(text).map_err(|complaint| {
        let before = &text.as_bytes()[..complaint.at.min(text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        Error::Usage(format!("{origin}: line {line}: {}", complaint.reason))
    })
}

struct Complaint {
    at: usize,
    reason: String,
}

/// TOML whose keys are known and whose values have the right types.
fn check(text: &str) -> Result<Table, Complaint> {
    let complaint =
        |e: &toml::de::Error| Complaint { at: e.span().map_or(0, |span| span.start), reason: one_line(e.message()) };
    let document = DeTable::parse(text).map_err(|e| complaint(&e))?;
    known_keys(document.get_ref(), "", KEYS)?;
    toml::from_str::<Config>(text).map_err(|e| complaint(&e))?;
    text.parse().map_err(|e| complaint(&e))
}

fn known_keys(table: &DeTable, prefix: &str, known: &[&str]) -> Result<(), Complaint> {
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        if !known.contains(&name) {
            return Err(Complaint { at: key.span().start, reason: unknown(&format!("{prefix}key"), name, known) });
        }
        let inner = match (prefix, name) {
            ("", "model") => MODEL_KEYS,
            ("", "pretrain") => PRETRAIN_KEYS,
            _ => continue,
        };
        if let DeValue::Table(table) = value.get_ref() {
            known_keys(table, &format!("{name} "), inner)?;
        }
    }
    Ok(())
}

/// "unknown key 'lrr': did you mean 'lr'?"
pub(crate) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let likeness = |known: &str| strsim::jaro_winkler(known, name);
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let name = formats::show_name(name);
    match nearest {
        Some(near) if likeness(near) > 0.8 => format!("unknown {what} '{name}': did you mean '{near}'?"),
        _ => format!("unknown {what} '{name}': it is one of {}", known.join(", ")),
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::config::{Decay, Warmup};
    use super::*;
    use crate::device::{Choice, Precision};
    use crate::tasks::Task;

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.toml");
        std::fs::write(&path, text).expect("a file");
        (folder, path)
    }

    fn file_error(text: &str) -> String {
        let (folder, path) = file(text);
        let error = Layers::default().file(&path, false).expect_err("refused").to_string();
        error.strip_prefix(&format!("{}/", folder.path().display())).expect("the file is named").to_owned()
    }

    fn set_error(assignment: &str) -> String {
        Layers::default().set(assignment).expect_err("refused").to_string()
    }

    #[test]
    fn later_layers_override_earlier_ones() {
        let (_folder, path) = file("lr = 1e-3\nweight_decay = 0.2\nclip = 1\n[model]\nlayers = 20\n");
        let mut layers = Layers::default();
        layers.preset("easy-vqa").unwrap();
        layers.file(&path, true).unwrap();
        layers.value("lr", 2e-3);
        layers.set("lr=4e-3").unwrap();
        layers.set("model.heads = 8").unwrap();
        let config = layers.config().unwrap();
        assert_eq!((config.lr, config.weight_decay, config.clip), (4e-3, 0.2, 1.0));
        assert_eq!(config.preset.as_deref(), Some("easy-vqa"));
        let model = config.model.unwrap();
        assert_eq!((model.layers, model.heads, model.hidden_size), (20, 8, 128));
    }

    #[test]
    fn a_file_may_name_its_preset() {
        let (_folder, path) = file("preset = 'vqa-base-480'\nlr = 1e-3\n");
        let mut layers = Layers::default();
        layers.file(&path, false).unwrap();
        let config = layers.config().unwrap();
        assert_eq!((config.lr, config.lr_mult, config.task), (1e-3, 10.0, Some(Task::Vqa)));

        let mut layers = Layers::default();
        layers.preset("nlvr2-base-384").unwrap();
        layers.file(&path, true).unwrap();
        let config = layers.config().unwrap();
        assert_eq!(
            (config.preset.as_deref(), config.task, config.lr_mult),
            (Some("nlvr2-base-384"), Some(Task::Nlvr2), 1.0)
        );
    }

    #[test]
    fn steps_replace_epochs_of_an_earlier_layer() {
        let mut layers = Layers::default();
        layers.preset("vqa-base-480").unwrap();
        layers.value("steps", 100);
        let config = layers.config().unwrap();
        assert_eq!((config.steps, config.epochs), (Some(100), None));

        let mut layers = Layers::default();
        layers.set("steps=7").unwrap();
        layers.set("epochs=3").unwrap();
        let config = layers.config().unwrap();
        assert_eq!((config.steps, config.epochs), (None, Some(3)));

        let mut layers = Layers::default();
        layers.text("steps = 7\nepochs = 3", "a file").unwrap();
        let error = layers.config().unwrap_err();
        assert_eq!(error, Error::Usage("epochs and steps are both given: keep one".into()));
    }

    #[test]
    fn what_is_said_of_a_validation_that_is_left_out_is_a_mistake_unless_a_preset_says_it() {
        let preset = || {
            let mut layers = Layers::default();
            layers.preset("easy-vqa").unwrap();
            layers
        };
        let mut layers = preset();
        assert!(layers.clone().config().unwrap().val_limit.is_some(), "or this test is about nothing");
        layers.value("validate", false);
        assert_eq!(layers.config().unwrap().val_limit, None);
        for typed in [["validate=false", "val_limit=3"], ["val_limit=3", "validate=false"]] {
            let mut layers = preset();
            typed.iter().for_each(|typed| layers.set(typed).unwrap());
            let error = layers.config().unwrap_err();
            assert!(matches!(&error, Error::Usage(text) if text.starts_with("val_limit is for the")), "{error}");
        }
        let mut layers = Layers::default();
        layers.text("validate = false\nval_split = 'dev'", "a file").unwrap();
        assert!(layers.config().unwrap_err().to_string().starts_with("val_split is for the validation split"));
    }

    #[test]
    fn a_typo_is_named_with_file_and_line() {
        assert_eq!(
            file_error("lr = 1\nbatch_sise = 3\n"),
            "run.toml: line 2: unknown key 'batch_sise': did you mean 'batch_size'?"
        );
        assert_eq!(
            file_error("[model]\nlayers = 3\nhaeds = 2\n"),
            "run.toml: line 3: unknown model key 'haeds': did you mean 'heads'?"
        );
        let far = file_error("qqq = 1");
        assert!(far.starts_with("run.toml: line 1: unknown key 'qqq': it is one of preset, task, "), "{far}");
    }

    #[test]
    fn a_wrong_value_is_named_with_file_and_line() {
        let wrong = file_error("lr = 1\n\nbatch_size = 'many'\n");
        assert!(wrong.starts_with("run.toml: line 3: ") && wrong.contains("expected usize"), "{wrong}");
        let wrong = file_error("batch_size = -4");
        assert!(wrong.starts_with("run.toml: line 1: "), "{wrong}");
        let wrong = file_error("task = 'vqaa'");
        assert!(wrong.starts_with("run.toml: line 1: ") && wrong.contains("vqa"), "{wrong}");
        let wrong = file_error("warmup = 'long'");
        assert!(wrong.contains("a whole number of updates, or a fraction such as 0.1 of them"), "{wrong}");
        let wrong = file_error("lr = = 2");
        assert!(wrong.starts_with("run.toml: line 1: ") && !wrong.contains('\n'), "{wrong}");
        let wrong = file_error("device = 'gpu'");
        assert!(wrong.ends_with("'gpu' is no device: it is auto, cpu, cuda or cuda:N"), "{wrong}");
    }

    #[test]
    fn set_takes_text_without_quotes() {
        let mut layers = Layers::default();
        for assignment in [
            "task=img_cls",
            "device=cuda:1",
            "precision=bf16",
            "decay=cosine",
            "warmup=20",
            "data=some dir/x",
            "crop_scale=[0.25, 1]",
            "train_split=3",
        ] {
            layers.set(assignment).unwrap_or_else(|e| panic!("{e}"));
        }
        let config = layers.config().unwrap();
        assert_eq!(
            (config.task, config.device, config.precision),
            (Some(Task::ImgCls), Choice::Cuda(1), Precision::Bf16)
        );
        assert_eq!((config.decay, config.warmup, config.crop_scale), (Decay::Cosine, Warmup::Steps(20), [0.25, 1.0]));
        assert_eq!(config.data.as_deref(), Some(Path::new("some dir/x")));
        assert_eq!(config.train_split.as_deref(), Some("3"));
    }

    #[test]
    fn set_names_what_is_wrong() {
        assert_eq!(set_error("lrr=3"), "--set lrr=3: unknown key 'lrr': did you mean 'lr'?");
        assert_eq!(set_error("lr"), "--set lr: it must be key=value");
        assert_eq!(set_error("l r=2"), "--set l r=2: 'l r' is no key");
        let wrong = set_error("batch_size=many");
        assert!(wrong.starts_with("--set batch_size=many: ") && wrong.contains("string"), "{wrong}");
        let wrong = set_error("batch_size=-1");
        assert!(wrong.starts_with("--set batch_size=-1: ") && wrong.contains("-1"), "{wrong}");
        let mut layers = Layers::default();
        layers.set("lr=nan").unwrap();
        assert_eq!(layers.config().unwrap_err().to_string(), "lr is NaN: it must be a finite number from 0 on");
    }

    #[test]
    fn model_settings_are_not_dropped_where_a_checkpoint_is_given() {
        let mut layers = Layers::default();
        layers.preset("easy-vqa").unwrap();
        layers.value("checkpoint", "some.safetensors");
        // The preset's own shape is for those who give no checkpoint.
        assert_eq!(layers.clone().config().unwrap().model, None);
        layers.set("model.layers=6").unwrap();
        let error = layers.config().unwrap_err().to_string();
        assert!(error.starts_with("--set model.layers=6: model settings are for a model that starts from"), "{error}");
        let (_folder, path) = file("[model]\nlayers = 20\n");
        let mut layers = Layers::default();
        layers.file(&path, false).unwrap();
        assert!(layers.clone().config().is_ok());
        layers.set("checkpoint=some.safetensors").unwrap();
        let error = layers.config().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: model settings are for", path.display())), "{error}");
    }

    #[test]
    fn what_is_saved_reads_back() {
        let mut layers = Layers::default();
        layers.preset("easy-vqa").unwrap();
        layers.value("checkpoint", "some/where.safetensors");
        layers.set("seed=7").unwrap();
        let config = layers.config().unwrap();
        let (_folder, path) = file(&config.to_toml().unwrap());
        let mut layers = Layers::default();
        layers.file(&path, false).unwrap();
        assert_eq!(layers.config().unwrap(), config);
    }

    #[test]
    fn a_missing_file_is_no_usage_error() {
        let error = Layers::default().file(Path::new("no/such.toml"), false).unwrap_err();
        assert!(
            matches!(&error, Error::File(text) if text.starts_with("no/such.toml: cannot read the configuration: "))
        );
    }
}
