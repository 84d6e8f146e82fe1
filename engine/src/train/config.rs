//! A run's configuration: every value that decides what is computed, in one flat table.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::device::{Choice, Precision};
use crate::tasks::Task;

/// What `config.toml` in a run's folder holds and `--set` changes. The default is `presets/default.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The preset under these values; in a file, the one to start from.
    pub preset: Option<String>,
    #[serde(with = "task")]
    pub task: Option<Task>,
    /// The checkpoint to start from; without one, random weights in the shape of [`Config::model`].
    pub checkpoint: Option<PathBuf>,
    /// Where in the checkpoint's file the tensors are, such as `model.ema` [default: found].
    pub root: Option<String>,
    /// How to merge the checkpoint's experts on the way in, as `--merge` takes it.
    pub merge: Option<String>,
    /// What becomes of the task's head that the checkpoint has [default: it stays where its labels are the data's, else
    /// a new one takes its place].
    pub head: Option<Head>,

    /// The data set's folder or file; without one, the built-in toy data.
    pub data: Option<PathBuf>,
    /// Of several data sets in one folder, this one, as its files' names begin.
    pub data_set: Option<String>,
    /// Splits to train on and to validate on [default: the task's].
    pub train_split: Option<String>,
    pub val_split: Option<String>,
    /// Evaluate on the validation split. Without that a run has no best weights, only its last.
    pub validate: bool,
    /// Validate on so many examples at most.
    pub val_limit: Option<usize>,
    /// `paper` takes the splits that the Python code trains and validates on, where they are others.
    pub protocol: Option<Protocol>,
    /// The share of a split's rows that may be broken, 0 to 1.
    pub max_broken: f64,

    /// Pixels along the side of an image [default: the checkpoint's].
    pub image_size: Option<usize>,
    /// Tokens of a text, padding included [default: the checkpoint's].
    pub text_len: Option<usize>,
    pub augment: Augment,
    /// RandAugment: operations an image, and how strong, 0 to 10.
    pub randaugment_ops: usize,
    pub randaugment_magnitude: f64,
    /// RandomResizedCrop: the crop's share of the image's area.
    pub crop_scale: [f64; 2],
    /// Mirror every second image, by chance.
    pub flip: bool,

    /// Examples an update, over all its parts.
    pub batch_size: usize,
    /// Parts an update's batch is computed in, one after the other. For `irtr` a part is also where negatives come from.
    pub accumulate: usize,
    /// Examples a batch of the evaluation [default: batch_size / accumulate].
    pub eval_batch_size: Option<usize>,
    pub epochs: Option<u64>,
    /// Updates, instead of epochs.
    pub steps: Option<u64>,

    pub lr: f64,
    /// The heads' learning rate over the others'.
    pub lr_mult: f64,
    pub warmup: Warmup,
    pub decay: Decay,
    /// Of the polynomial decay.
    pub decay_power: f64,
    /// Where the polynomial decay ends.
    pub end_lr: f64,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Follow the numerics of the Python code where ours differ on purpose: its AdamW (ε added before the correction of
    /// the second moment, decay after the step), and its choice of what decays (experts' norms and the norms of heads
    /// too, and heads always at 0.01).
    pub reference: bool,
    /// The gradient's L2 norm is cut to this; 0 leaves it.
    pub clip: f64,
    /// Stochastic depth: the probability to skip the last layer, from 0 at the first on a line.
    pub drop_rate: f64,
    /// Dropout on text embeddings [default: drop_rate].
    pub text_dropout: Option<f64>,

    pub seed: u64,
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub device: Choice,
    #[serde(with = "precision")]
    pub precision: Precision,
    /// Recompute activations in the backward pass instead of keeping them: slower, with less memory.
    pub activation_checkpointing: bool,
    /// Threads that prepare batches [default: all cores].
    pub workers: Option<usize>,

    /// Updates between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Updates between evaluations [default: an epoch].
    pub eval_every: Option<u64>,
    /// Updates between checkpoints [default: an epoch].
    pub checkpoint_every: Option<u64>,
    /// Validation examples shown in the report.
    pub samples: usize,

    /// The model to start from scratch where no checkpoint is given.
    pub model: Option<ModelShape>,
    /// What pre-training computes. `engine finetune` refuses it.
    pub pretrain: Option<Pretrain>,
}

/// Every key of [`Config`], in its order.
pub const KEYS: &[&str] = &[
    "preset",
    "task",
    "checkpoint",
    "root",
    "merge",
    "head",
    "data",
    "data_set",
    "train_split",
    "val_split",
    "validate",
    "val_limit",
    "protocol",
    "max_broken",
    "image_size",
    "text_len",
    "augment",
    "randaugment_ops",
    "randaugment_magnitude",
    "crop_scale",
    "flip",
    "batch_size",
    "accumulate",
    "eval_batch_size",
    "epochs",
    "steps",
    "lr",
    "lr_mult",
    "warmup",
    "decay",
    "decay_power",
    "end_lr",
    "weight_decay",
    "beta1",
    "beta2",
    "epsilon",
    "reference",
    "clip",
    "drop_rate",
    "text_dropout",
    "seed",
    "device",
    "precision",
    "activation_checkpointing",
    "workers",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "samples",
    "model",
    "pretrain",
];

/// The shape of a model that starts from random weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelShape {
    /// `ufo`, `ln_moe`, `attn_moe`, `ffn_moe` or `all_moe`.
    pub variant: formats::config::Variant,
    pub layers: usize,
    /// First layer that sees text and image together.
    pub vl_start: usize,
    pub hidden_size: usize,
    pub heads: usize,
    pub mlp_ratio: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub text_len: usize,
    /// Standard deviation that weights start with. BEiT's 0.02 is for wide models: narrow ones learn sooner from
    /// about 1/√width.
    pub init_std: f64,
    /// What γ of layer scale starts with.
    pub layer_scale: f64,
}

/// Every key of [`ModelShape`].
pub const MODEL_KEYS: &[&str] = &[
    "variant",
    "layers",
    "vl_start",
    "hidden_size",
    "heads",
    "mlp_ratio",
    "image_size",
    "patch_size",
    "text_len",
    "init_std",
    "layer_scale",
];

/// What pre-training computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pretrain {
    /// `mlm`, `itm`, `ifm`, `mim`.
    pub objectives: Vec<String>,
    /// Share of the tokens to mask.
    pub mlm_probability: f64,
    /// Mask all pieces of a word together.
    pub whole_word: bool,
}

/// Every key of [`Pretrain`].
pub const PRETRAIN_KEYS: &[&str] = &["objectives", "mlm_probability", "whole_word"];

/// Whose splits a run uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Those of the Python code: on Flickr30k it trains on train and val and validates on test.
    Paper,
}

/// What becomes of the head that a checkpoint has for the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// It stays. All labels of the data must be among its own.
    Keep,
    /// A new one takes its place, as always in the Python code.
    New,
    /// Labels that the head and the data both name keep their rows; the other labels start anew.
    Match,
}

impl Head {
    pub fn name(self) -> &'static str {
        match self {
            Head::Keep => "keep",
            Head::New => "new",
            Head::Match => "match",
        }
    }
}

/// What training images go through before they are resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    /// What evaluation does.
    None,
    /// RandomResizedCrop and, with `flip`, mirroring.
    Crop,
    /// That, and RandAugment.
    RandAugment,
}

/// How long the learning rate rises.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a whole number of updates, or a fraction such as 0.1 of them")]
pub enum Warmup {
    Steps(u64),
    /// Of the run's updates.
    Fraction(f64),
}

/// How the learning rate falls after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    Polynomial,
    /// Half a cosine, to 0.
    Cosine,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            preset: None,
            task: None,
            checkpoint: None,
            root: None,
            merge: None,
            head: None,
            data: None,
            data_set: None,
            train_split: None,
            val_split: None,
            validate: true,
            val_limit: None,
            protocol: None,
            max_broken: crate::data::MAX_BROKEN,
            image_size: None,
            text_len: None,
            augment: Augment::RandAugment,
            randaugment_ops: 2,
            randaugment_magnitude: 7.0,
            crop_scale: [0.5, 1.0],
            flip: true,
            batch_size: 32,
            accumulate: 1,
            eval_batch_size: None,
            epochs: Some(10),
            steps: None,
            lr: 5e-5,
            lr_mult: 1.0,
            warmup: Warmup::Fraction(0.1),
            decay: Decay::Polynomial,
            decay_power: 1.0,
            end_lr: 0.0,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-8,
            reference: false,
            clip: 0.0,
            drop_rate: 0.1,
            text_dropout: None,
            seed: 1,
            device: Choice::Auto,
            precision: Precision::F32,
            activation_checkpointing: false,
            workers: None,
            log_every: 1,
            eval_every: None,
            checkpoint_every: None,
            samples: 8,
            model: None,
            pretrain: None,
        }
    }
}

impl Default for ModelShape {
    fn default() -> ModelShape {
        ModelShape {
            variant: formats::config::Variant::Ufo,
            layers: 12,
            vl_start: 10,
            hidden_size: 192,
            heads: 3,
            mlp_ratio: 4,
            image_size: 224,
            patch_size: 16,
            text_len: 40,
            init_std: 0.02,
            layer_scale: 0.1,
        }
    }
}

impl Default for Pretrain {
    fn default() -> Pretrain {
        let objectives = ["mlm", "itm", "ifm"].map(str::to_owned).to_vec();
        Pretrain { objectives, mlm_probability: 0.25, whole_word: true }
    }
}

impl Config {
    /// What no run can be made of, in words that name the key.
    pub fn check(&self) -> Result<(), String> {
        let at_least_one = |key: &str, value: usize| match value {
            0 => Err(format!("{key} is 0: it must be at least 1")),
            _ => Ok(()),
        };
        at_least_one("batch_size", self.batch_size)?;
        at_least_one("accumulate", self.accumulate)?;
        if !self.batch_size.is_multiple_of(self.accumulate) {
            return Err(format!(
                "batch_size {} can't be split into {} equal parts (accumulate)",
                self.batch_size, self.accumulate
            ));
        }
        for (key, value) in [
            ("eval_batch_size", self.eval_batch_size),
            ("val_limit", self.val_limit),
            ("workers", self.workers),
            ("image_size", self.image_size),
        ] {
            value.map_or(Ok(()), |value| at_least_one(key, value))?;
        }
        for (key, given) in [("val_split", self.val_split.is_some()), ("val_limit", self.val_limit.is_some())] {
            if given && !self.validate {
                return Err(format!(
                    "{key} is for the validation split, and a run with validate = false (--no-validation) has none: \
                     leave one of the two out"
                ));
            }
        }
        match (self.epochs, self.steps) {
            (Some(_), Some(_)) => return Err("epochs and steps are both given: keep one".into()),
            (None, None) => return Err("neither epochs nor steps says how long to train".into()),
            (Some(0), _) => return Err("epochs is 0: it must be at least 1".into()),
            (_, Some(0)) => return Err("steps is 0: it must be at least 1".into()),
            _ => {}
        }
        for (key, value) in [
            ("log_every", Some(self.log_every)),
            ("eval_every", self.eval_every),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            if value == Some(0) {
                return Err(format!("{key} is 0: it must be at least 1"));
            }
        }
        if let Some(len @ 0..=2) = self.text_len {
            return Err(format!("text_len is {len}: a text is at least [CLS], a word and [SEP]"));
        }
        let within = |key: &str, value: f64, range: std::ops::RangeInclusive<f64>| match range.contains(&value) {
            true => Ok(()),
            false => Err(format!("{key} is {value}: it must be from {} to {}", range.start(), range.end())),
        };
        let from_zero = |key: &str, value: f64| match value.is_finite() && value >= 0.0 {
            true => Ok(()),
            false => Err(format!("{key} is {value}: it must be a finite number from 0 on")),
        };
        let below_one = |key: &str, value: f64| match (0.0..1.0).contains(&value) {
            true => Ok(()),
            false => Err(format!("{key} is {value}: it must be at least 0 and less than 1")),
        };
        from_zero("lr", self.lr)?;
        from_zero("lr_mult", self.lr_mult)?;
        from_zero("end_lr", self.end_lr)?;
        if self.end_lr > self.lr {
            return Err(format!("end_lr {} is above lr {}", self.end_lr, self.lr));
        }
        from_zero("decay_power", self.decay_power)?;
        from_zero("weight_decay", self.weight_decay)?;
        from_zero("clip", self.clip)?;
        below_one("beta1", self.beta1)?;
        below_one("beta2", self.beta2)?;
        below_one("drop_rate", self.drop_rate)?;
        below_one("text_dropout", self.text_dropout())?;
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            return Err(format!("epsilon is {}: it must be more than 0", self.epsilon));
        }
        if let Warmup::Fraction(fraction) = self.warmup {
            within("warmup", fraction, 0.0..=1.0)?;
        }
        within("max_broken", self.max_broken, 0.0..=1.0)?;
        within("randaugment_magnitude", self.randaugment_magnitude, 0.0..=10.0)?;
        let [low, high] = self.crop_scale;
        if !(low > 0.0 && low <= high && high <= 1.0) {
            return Err(format!("crop_scale is [{low}, {high}]: two shares of the area, from above 0 to 1"));
        }
        self.model.as_ref().map_or(Ok(()), ModelShape::check)
    }

    /// Examples of one forward and backward pass.
    pub fn part_size(&self) -> usize {
        self.batch_size / self.accumulate.max(1)
    }

    /// Examples of a batch of the evaluation.
    pub fn eval_batch_size(&self) -> usize {
        self.eval_batch_size.unwrap_or_else(|| self.part_size()).max(1)
    }

    /// Dropout on text embeddings.
    pub fn text_dropout(&self) -> f64 {
        self.text_dropout.unwrap_or(self.drop_rate)
    }

    /// The gradient norm to clip to.
    pub fn max_norm(&self) -> Option<f64> {
        (self.clip > 0.0).then_some(self.clip)
    }

    pub fn workers(&self) -> usize {
        self.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// TOML that [`super::resolve::Layers`] reads back.
    ///
    /// # Errors
    /// A path that is no Unicode.
    pub fn to_toml(&self) -> Result<String, String> {
        toml::to_string(self).map_err(|e| format!("the configuration can't be written as TOML: {e}"))
    }
}

impl ModelShape {
    fn check(&self) -> Result<(), String> {
        for (key, value) in [
            ("layers", self.layers),
            ("hidden_size", self.hidden_size),
            ("heads", self.heads),
            ("mlp_ratio", self.mlp_ratio),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
        ] {
            if value == 0 {
                return Err(format!("model.{key} is 0: it must be at least 1"));
            }
        }
        if self.vl_start > self.layers {
            return Err(format!("model.vl_start {} is beyond the {} layers", self.vl_start, self.layers));
        }
        if !self.hidden_size.is_multiple_of(self.heads) {
            return Err(format!("model.hidden_size {} can't be split into {} heads", self.hidden_size, self.heads));
        }
        if self.text_len < 3 {
            return Err(format!("model.text_len is {}: a text is at least [CLS], a word and [SEP]", self.text_len));
        }
        for (key, value) in [("init_std", self.init_std), ("layer_scale", self.layer_scale)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("model.{key} is {value}: it must be more than 0"));
            }
        }
        patches("model.image_size", self.image_size, self.patch_size)
    }
}

/// Whether images of this size are whole patches.
pub fn patches(key: &str, image_size: usize, patch_size: usize) -> Result<(), String> {
    if patch_size > 0 && image_size.is_multiple_of(patch_size) && image_size > 0 {
        return Ok(());
    }
    let below = image_size / patch_size.max(1) * patch_size;
    let near = if below == 0 { patch_size.to_string() } else { format!("{below} or {}", below + patch_size) };
    Err(format!("{key} {image_size} is not a multiple of the patch size {patch_size}: try {near}"))
}

fn to_text<S: Serializer>(value: &Choice, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

fn from_text<'d, D: Deserializer<'d>>(from: D) -> Result<Choice, D::Error> {
    let text = String::deserialize(from)?;
    Choice::from_str(&text).map_err(|reason| serde::de::Error::custom(format!("'{text}' is no device: {reason}")))
}

mod task {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::tasks::Task;

    pub fn serialize<S: Serializer>(value: &Option<Task>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(task) => to.serialize_some(task.name()),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<Task>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

mod precision {
    use clap::ValueEnum;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::device::Precision;

    pub fn serialize<S: Serializer>(value: &Precision, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match value {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Precision, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = |_| serde::de::Error::custom(format!("'{text}' is no precision: it is f32 or bf16"));
        Precision::from_str(&text, false).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.check().expect_err("a configuration that no run can be made of")
    }

    #[test]
    fn the_default_is_sound() {
        assert_eq!(Config::default().check(), Ok(()));
        assert_eq!(ModelShape::default().check(), Ok(()));
    }

    #[test]
    fn what_no_run_can_be_made_of_is_named() {
        assert_eq!(refused(|c| c.batch_size = 0), "batch_size is 0: it must be at least 1");
        assert_eq!(refused(|c| c.lr = f64::NAN), "lr is NaN: it must be a finite number from 0 on");
        assert_eq!(refused(|c| c.lr = f64::INFINITY), "lr is inf: it must be a finite number from 0 on");
        assert_eq!(refused(|c| c.steps = Some(5)), "epochs and steps are both given: keep one");
        assert_eq!(refused(|c| c.epochs = None), "neither epochs nor steps says how long to train");
        assert_eq!(refused(|c| c.epochs = Some(0)), "epochs is 0: it must be at least 1");
        assert_eq!(refused(|c| c.accumulate = 5), "batch_size 32 can't be split into 5 equal parts (accumulate)");
        assert_eq!(refused(|c| c.beta2 = 1.0), "beta2 is 1: it must be at least 0 and less than 1");
        assert_eq!(refused(|c| c.warmup = Warmup::Fraction(1.5)), "warmup is 1.5: it must be from 0 to 1");
        assert_eq!(refused(|c| c.end_lr = 1.0), "end_lr 1 is above lr 0.00005");
        assert_eq!(refused(|c| c.log_every = 0), "log_every is 0: it must be at least 1");
        let unused = refused(|c| (c.validate, c.val_limit) = (false, Some(3)));
        assert!(
            unused.starts_with("val_limit is for the validation split, and a run with validate = false"),
            "{unused}"
        );
        let unused = refused(|c| (c.validate, c.val_split) = (false, Some("dev".into())));
        assert!(unused.starts_with("val_split is for the validation split"), "{unused}");
        assert_eq!(refused(|c| c.max_broken = 1.5), "max_broken is 1.5: it must be from 0 to 1");
        let shape = |change: fn(&mut ModelShape)| {
            refused(|config| {
                let mut model = ModelShape::default();
                change(&mut model);
                config.model = Some(model);
            })
        };
        assert_eq!(shape(|m| m.heads = 5), "model.hidden_size 192 can't be split into 5 heads");
        assert_eq!(
            shape(|m| m.image_size = 100),
            "model.image_size 100 is not a multiple of the patch size 16: try 96 or 112"
        );
    }

    #[test]
    fn sizes_that_would_do_are_offered() {
        assert_eq!(patches("image_size", 224, 16), Ok(()));
        let small = patches("image_size", 10, 16).expect_err("less than a patch");
        assert_eq!(small, "image_size 10 is not a multiple of the patch size 16: try 16");
    }

    /// Serde's list of the fields, as its message about an unknown one gives it.
    fn fields<T: for<'d> Deserialize<'d>>() -> Vec<String> {
        let Err(e) = toml::from_str::<T>("no_such_key = 1") else { panic!("an unknown key is refused") };
        let (_, list) = e.message().split_once("expected one of ").expect("serde lists the fields");
        list.split(", ").map(|field| field.trim_matches('`').to_owned()).collect()
    }

    #[test]
    fn the_lists_of_keys_are_whole() {
        assert_eq!(fields::<Config>(), KEYS);
        assert_eq!(fields::<ModelShape>(), MODEL_KEYS);
        assert_eq!(fields::<Pretrain>(), PRETRAIN_KEYS);
    }
}
