//! A model's configuration: read from names and shapes, buffers and hyper-parameters, with the
//! reason for every value; kept as JSON in the files we write.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::layout::{Axis, Layout, Modality, Part, Pattern, PositionTable};
use crate::{TensorInfo, show_name};

/// Which parts of a model have experts, in the terms of the vl-merging paper's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// One set of weights for everything: modality-agnostic.
    Ufo,
    LnMoe,
    AttnMoe,
    FfnMoe,
    /// Experts everywhere: modality-specific.
    AllMoe,
}

impl Variant {
    pub const ALL: [Variant; 5] = [Variant::Ufo, Variant::LnMoe, Variant::AttnMoe, Variant::FfnMoe, Variant::AllMoe];

    /// The parts that have experts.
    pub fn parts(self) -> &'static [Part] {
        match self {
            Variant::Ufo => &[],
            Variant::LnMoe => &[Part::Norm1, Part::Norm2],
            Variant::AttnMoe => &[Part::Attention, Part::Norm1],
            Variant::FfnMoe => &[Part::Mlp, Part::Norm2],
            Variant::AllMoe => &[Part::Attention, Part::Mlp, Part::Norm1, Part::Norm2],
        }
    }

    pub fn has_experts(self, part: Part) -> bool {
        self.parts().contains(&part)
    }

    /// The variant with experts in exactly these parts of its layers ([`Part::Other`] doesn't count).
    pub fn from_parts(parts: &BTreeSet<Part>) -> Option<Variant> {
        let parts: Vec<Part> = parts.iter().copied().filter(|&part| part != Part::Other).collect();
        Variant::ALL.into_iter().find(|variant| variant.parts() == parts)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Variant::Ufo => "ufo",
            Variant::LnMoe => "ln_moe",
            Variant::AttnMoe => "attn_moe",
            Variant::FfnMoe => "ffn_moe",
            Variant::AllMoe => "all_moe",
        })
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Variant, String> {
        let found = Variant::ALL.into_iter().find(|variant| variant.to_string() == text);
        found.ok_or_else(|| format!("no architecture '{text}': it is ufo, ln_moe, attn_moe, ffn_moe or all_moe"))
    }
}

/// Which tokens a token attends to in a joint forward pass, below vl start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attends {
    /// Text to text and image to image: two towers.
    WithinModality,
    /// All to all. Where attention has experts, each modality's expert runs over all tokens, for the outputs of its own.
    ToAll,
}

impl fmt::Display for Attends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Attends::WithinModality => "within-modality",
            Attends::ToAll => "to-all",
        })
    }
}

/// How a model knows the places of tokens and patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// A table of biases that are added to attention scores.
    Relative,
    /// Vectors that are added to the embeddings.
    Absolute,
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Positions::Relative => "relative",
            Positions::Absolute => "absolute",
        })
    }
}

/// The shape of a model, as far as it is known. As JSON, an unknown field is `null` or not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelConfig {
    /// The name of the [`Layout`].
    pub layout: Option<String>,
    pub variant: Option<Variant>,
    pub layers: Option<usize>,
    /// First layer that processes text and image together, with a `vl` expert where there are experts.
    pub vl_start: Option<usize>,
    /// Which tokens a token attends to in a joint forward pass, below `vl_start`.
    pub attends: Option<Attends>,
    pub hidden_size: Option<usize>,
    pub heads: Option<usize>,
    pub mlp_hidden: Option<usize>,
    /// Whether what attention and MLP add is scaled by a vector of its own in each layer (`gamma_1`, `gamma_2`).
    pub layer_scale: Option<bool>,
    pub positions: Option<Positions>,
    /// Pixels along the side of an image, and of a patch.
    pub image_size: Option<usize>,
    pub patch_size: Option<usize>,
    /// w: patches along the side of an image.
    pub image_grid: Option<usize>,
    pub vocab_size: Option<usize>,
    /// Tokens of a text, padding included.
    pub max_text_len: Option<usize>,
    /// T0: tokens of the longest text the relative position table has distances for.
    pub max_text_len_of_initckpt: Option<usize>,
    pub token_types: Option<usize>,
    /// The heads present, by task, with the number of labels where that is a choice.
    pub tasks: BTreeMap<String, Option<usize>>,
    /// Why its forward pass isn't the one this project describes, in words; empty where it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unusual: Vec<String>,
}

impl ModelConfig {
    /// Size of an MLP's hidden layer over the model's.
    pub fn mlp_ratio(&self) -> Option<f64> {
        let hidden = self.hidden_size.filter(|&hidden| hidden > 0)?;
        Some(self.mlp_hidden? as f64 / hidden as f64)
    }
}

/// Where one value of a configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// The field of [`ModelConfig`]; `tasks.vqa` for one head.
    pub field: String,
    pub value: String,
    /// In words, e.g. "relative_position_bias_table has 24 columns for 12 layers".
    pub from: String,
    /// Nothing in the file says so, it is only true of every published model.
    pub assumed: bool,
}

/// A configuration and how it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Detected {
    pub config: ModelConfig,
    /// In the order of the fields; one entry for each that is known.
    pub evidence: Vec<Evidence>,
    /// Contradictions between weights and hyper-parameters, and sizes that fit no model.
    pub warnings: Vec<String>,
    /// Contradictions between the file's record of its model and everything else: such a file can be looked at, but what
    /// its model computes isn't known.
    pub conflicts: Vec<String>,
    /// The parts that have experts, whether a [`Variant`] has a name for them or not.
    pub experts: BTreeSet<Part>,
}

impl Detected {
    /// Fills in what is unknown or only assumed from the configuration recorded in a file's metadata. A record that
    /// contradicts what the weights or hyper-parameters show is noted among the conflicts. The layout is left to
    /// [`crate::Checkpoint::config`].
    pub fn complete(&mut self, recorded: &ModelConfig) {
        let fields = |config: &ModelConfig| match serde_json::to_value(config) {
            Ok(Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let mut config = fields(&self.config);
        // The heads present are what the weights show, whatever was there when the record was written.
        let known = fields(recorded)
            .into_iter()
            .filter(|(field, value)| !["tasks", "layout", "unusual"].contains(&field.as_str()) && !value.is_null());
        for (field, value) in known {
            let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), show_name);
            let evidence = self.evidence.iter().position(|evidence| evidence.field == field);
            match evidence.map(|index| &mut self.evidence[index]) {
                // An image of 50 pixels has 3 patches of 16 too.
                Some(evidence) if !evidence.assumed && evidence.from != OF_GRID => {
                    if config.get(&field) != Some(&value) {
                        let (weights, from) = (&evidence.value, &evidence.from);
                        let recorded = shown(&value);
                        self.conflicts.push(format!("{field}: {weights} because {from}, but {recorded} in {RECORD}"));
                    }
                    continue;
                }
                Some(evidence) => {
                    evidence.value = shown(&value);
                    evidence.from = RECORD.to_string();
                    evidence.assumed = false;
                }
                None => {
                    // Why it couldn't be found no longer matters.
                    self.warnings.retain(|warning| !warning.starts_with(&format!("{field}: ")));
                    let value = shown(&value);
                    self.evidence.push(Evidence { field: field.clone(), value, from: RECORD.into(), assumed: false });
                }
            }
            config.insert(field, value);
        }
        if let Ok(config) = serde_json::from_value(Value::Object(config)) {
            self.config = config;
        }
        for reason in &recorded.unusual {
            if !self.config.unusual.contains(reason) {
                self.config.unusual.push(reason.clone());
            }
        }
        // The grid and the patch are each checked above, or taken from the record.
        let ModelConfig { image_size, patch_size, image_grid, .. } = self.config;
        if let (Some(size), Some(patch), Some(grid)) = (image_size, patch_size, image_grid)
            && size.checked_div(patch) != Some(grid)
            && self.conflicts.is_empty()
        {
            self.conflicts.push(format!(
                "image_size: {size} in {RECORD}, but its {grid} × {grid} patches of {patch} are an image of {}",
                grid.saturating_mul(patch)
            ));
        }
    }

    /// Everything that contradicts the file's record in one line, if anything does.
    pub fn conflict(&self) -> Option<String> {
        (!self.conflicts.is_empty()).then(|| self.conflicts.join("; "))
    }
}

pub(crate) const RECORD: &str = "the file's record of its model";

const OF_GRID: &str = "image_grid times patch_size";

/// Finds the configuration of a checkpoint of a built-in layout. Weights win over buffers and
/// hyper-parameters; contradictions are warned of. With no known layout everything is unknown.
///
/// `hyper_parameters` is a Lightning checkpoint's, as JSON: `{"config": {"num_heads": 12, …}, …}`;
/// other shapes of JSON are searched for what they hold.
pub fn detect(tensors: &[TensorInfo], hyper_parameters: Option<&Value>) -> Detected {
    match Layout::detect(tensors.iter().map(|tensor| tensor.name.as_str())) {
        Some(found) => detect_as(found.layout, tensors, hyper_parameters),
        None => Detected::default(),
    }
}

/// As [`detect`], by the rules of a given layout.
pub fn detect_as(layout: &Layout, tensors: &[TensorInfo], hyper_parameters: Option<&Value>) -> Detected {
    let mut search = Search::new(layout, tensors, hyper_parameters);
    search.layout_name();
    search.layers();
    search.variant();
    search.vl_start();
    search.attends();
    search.hidden_size();
    search.heads();
    search.mlp_hidden();
    search.layer_scale();
    search.positions();
    search.patch_size();
    search.vocab_size();
    search.max_text_len();
    search.image();
    search.token_types();
    search.tasks();
    search.found
}

/// One tensor, under the name it has in a model with one set of weights.
struct Named<'a> {
    name: Cow<'a, str>,
    tensor: &'a TensorInfo,
}

/// A value and its source in words.
#[derive(Clone, Debug)]
struct Known {
    value: usize,
    from: String,
    assumed: bool,
}

impl Known {
    fn new(value: usize, from: impl Into<String>) -> Known {
        Known { value, from: from.into(), assumed: false }
    }

    fn assumed(value: usize, from: impl Into<String>) -> Known {
        Known { value, from: from.into(), assumed: true }
    }
}

struct Search<'a> {
    layout: &'a Layout,
    tensors: Vec<Named<'a>>,
    hyper: Option<&'a Value>,
    /// Layers in which a part has experts, and in which a modality is among them.
    experts: BTreeMap<Part, BTreeSet<usize>>,
    modalities: BTreeMap<Modality, BTreeSet<usize>>,
    expert_names: Vec<&'a str>,
    found: Detected,
}

impl<'a> Search<'a> {
    fn new(layout: &'a Layout, tensors: &'a [TensorInfo], hyper: Option<&'a Value>) -> Search<'a> {
        let mut search = Search {
            layout,
            tensors: Vec::with_capacity(tensors.len()),
            hyper,
            experts: BTreeMap::new(),
            modalities: BTreeMap::new(),
            expert_names: Vec::new(),
            found: Detected::default(),
        };
        for tensor in tensors {
            let name = match layout.parse_name(&tensor.name) {
                Some(expert) => {
                    search.expert_names.push(&tensor.name);
                    let part = search.experts.entry(expert.part).or_default();
                    part.extend(expert.layer);
                    search.modalities.entry(expert.modality).or_default().extend(expert.layer);
                    Cow::Owned(expert.slot)
                }
                None => Cow::Borrowed(tensor.name.as_str()),
            };
            search.tensors.push(Named { name, tensor });
        }
        search
    }

    fn layout_name(&mut self) {
        let from = match self.expert_names.first() {
            Some(first) => format!("{} experts such as {}", self.expert_names.len(), show_name(first)),
            None => match self.tensors.iter().find(|named| self.layout.recognises(&named.name)) {
                Some(shown) => format!("names such as {}, no experts", show_name(&shown.name)),
                None => "it was chosen; no name shows it".to_string(),
            },
        };
        self.record("layout", self.layout.name().to_string(), from, false);
        self.found.config.layout = Some(self.layout.name().to_string());
    }

    fn layers(&mut self) {
        let mut layers: BTreeMap<usize, &str> = BTreeMap::new();
        for named in &self.tensors {
            for pattern in &self.layout.sizes.layers {
                if let Some(layer) = pattern.read(&named.name).and_then(|reading| reading.layer()) {
                    layers.entry(layer).or_insert(&named.tensor.name);
                }
            }
        }
        let weights = layers
            .last_key_value()
            .map(|(&last, name)| Known::new(last + 1, format!("{} is in the last layer", show_name(name))));
        if let Some(count) = &weights
            && count.value != layers.len()
        {
            let gaps: Vec<String> =
                (0..count.value).filter(|layer| !layers.contains_key(layer)).take(5).map(|l| l.to_string()).collect();
            let missing = count.value - layers.len();
            let more = if missing > gaps.len() { ", …" } else { "" };
            self.warn(format!("layers: {missing} of {} have no tensors: {}{more}", count.value, gaps.join(", ")));
        }
        let hyper = self.hyper_size(|keys| &keys.layers);
        self.found.config.layers = self.settle("layers", weights, hyper);
    }

    fn variant(&mut self) {
        if !self.layout.has_experts() {
            return;
        }
        let parts: BTreeSet<Part> = self.experts.keys().copied().collect();
        let variant = Variant::from_parts(&parts);
        let in_words = match parts.is_empty() {
            true => "no experts".to_string(),
            false => format!("experts in {}", list(&parts)),
        };
        match variant {
            Some(variant) => self.record("variant", variant.to_string(), in_words.clone(), false),
            None => self.warn(format!("variant: {in_words} is none of the known architectures")),
        }
        self.found.config.variant = variant;
        self.found.experts = parts.iter().copied().filter(|&part| part != Part::Other).collect();

        let layers = self.found.config.layers.unwrap_or(0);
        let partial: Vec<String> = self
            .experts
            .iter()
            .filter(|(part, in_layers)| **part != Part::Other && in_layers.len() < layers)
            .map(|(part, in_layers)| format!("variant: {part} has experts in {} of {layers} layers", in_layers.len()))
            .collect();
        self.found.warnings.extend(partial);

        if let Some(claimed) = self.claimed_parts() {
            let main: BTreeSet<Part> = parts.into_iter().filter(|&part| part != Part::Other).collect();
            if claimed != main {
                let claimed = match claimed.is_empty() {
                    true => "none".to_string(),
                    false => list(&claimed),
                };
                self.warn(format!(
                    "variant: the weights have {in_words}, the hyper-parameters say {claimed}; the weights win"
                ));
            }
        }
    }

    /// The parts that have experts according to the hyper-parameters, if these speak of it.
    fn claimed_parts(&self) -> Option<BTreeSet<Part>> {
        let rules = &self.layout.sizes.hyper_parameters.experts;
        let truth = |key: &String| self.hyper_value(key).map(|(value, _)| is_true(value));
        rules.values().flatten().flatten().any(|key| truth(key).is_some()).then(|| {
            let holds = |keys: &Vec<String>| keys.iter().all(|key| truth(key) == Some(true));
            rules.iter().filter(|(_, lists)| lists.iter().any(holds)).map(|(&part, _)| part).collect()
        })
    }

    fn vl_start(&mut self) {
        if !self.layout.modalities().any(|modality| modality == Modality::VisionLanguage) {
            return;
        }
        let layers = self.found.config.layers;
        // The Python code's default, −1, gives every layer a `vl` expert.
        let hyper = self.hyper_key(|keys| &keys.vl_start).and_then(|(value, from)| match value.as_i64() {
            Some(start) if start < 0 => Some(Known::new(0, format!("{from} is {start}"))),
            _ => as_size(value).map(|start| Known::new(start, from)),
        });
        let deep = self.modalities.get(&Modality::VisionLanguage).cloned().unwrap_or_default();
        if let Some(&first) = deep.first() {
            let lacking = layers.unwrap_or(0).saturating_sub(first).saturating_sub(deep.len());
            if lacking > 0 {
                self.warn(format!("vl_start: {lacking} layers after layer {first} have no vl expert"));
            }
            let weights = Known::new(first, format!("layer {first} is the first with a vl expert"));
            self.found.config.vl_start = self.settle("vl_start", Some(weights), hyper);
        } else if !self.expert_names.is_empty() {
            if let Some(claim) = hyper.filter(|claim| layers.is_some_and(|layers| claim.value < layers)) {
                self.warn(format!("vl_start: {} says {}, but no layer has a vl expert", claim.from, claim.value));
            }
        } else {
            let assumed = layers.and_then(|layers| {
                let start = lookup(&self.layout.sizes.assume.vl_start_by_layers, layers)?;
                Some(Known::assumed(start, format!("what published models of {layers} layers have")))
            });
            self.found.config.vl_start = self.settle("vl_start", None, hyper.or(assumed));
        }
    }

    /// Every model of the layout has one pattern, or the hyper-parameters tell, or it is the variant's usual one.
    fn attends(&mut self) {
        let layout = self.layout.name();
        let known = match self.layout.attends {
            Some(attends) => Some((attends, format!("every model of layout {} does", show_name(layout)), false)),
            None => self.claimed_attends().map(|(attends, from)| (attends, from, false)).or_else(|| {
                let variant = self.found.config.variant?;
                let attends = self.layout.usual_attends(variant)?;
                Some((attends, format!("what published models of variant {variant} do"), true))
            }),
        };
        if let Some((attends, from, assumed)) = known {
            self.record("attends", attends.to_string(), from, assumed);
            self.found.config.attends = Some(attends);
        }
        // Blocks of the Python code split a joint input after max_text_len tokens, however long the text in it is.
        let keys = &self.layout.sizes.hyper_parameters;
        let length = |key: &Option<String>| {
            let (value, from) = self.hyper_value(key.as_deref()?)?;
            Some((as_size(value)?, from))
        };
        if let (Some((joint, joint_key)), Some((text, text_key))) =
            (length(&keys.max_joint_text_len), length(&keys.max_text_len))
            && joint != text
            && (self.found.config.attends == Some(Attends::WithinModality) || !self.found.experts.is_empty())
        {
            self.found.config.unusual.push(format!(
                "{joint_key} is {joint} and {text_key} is {text}: it was trained with parts of the image taken for text"
            ));
        }
    }

    /// The pattern that the hyper-parameters tell, if they are of these weights and speak of it.
    fn claimed_attends(&self) -> Option<(Attends, String)> {
        let rules = &self.layout.sizes.hyper_parameters.within_modality;
        if rules.is_empty() || self.claimed_parts().is_some_and(|claimed| claimed != self.found.experts) {
            return None;
        }
        // Whether a condition holds, and in words why; `None` where the key isn't there.
        let holds = |condition: &String| {
            let (key, wanted) = condition.strip_prefix('!').map_or((condition.as_str(), true), |key| (key, false));
            let (value, from) = self.hyper_value(key)?;
            let is = is_true(value);
            Some((is == wanted, format!("{from} is {is}")))
        };
        let mut against: Vec<String> = Vec::new();
        let mut is_open = false;
        for rule in rules {
            let found: Vec<Option<(bool, String)>> = rule.iter().map(holds).collect();
            if let Some((_, why)) = found.iter().flatten().find(|(holds, _)| !holds) {
                if !against.contains(why) {
                    against.push(why.clone());
                }
                continue;
            }
            match found.into_iter().collect::<Option<Vec<_>>>() {
                Some(all) => {
                    let why: Vec<String> = all.into_iter().map(|(_, why)| why).collect();
                    return Some((Attends::WithinModality, why.join(", ")));
                }
                None => is_open = true,
            }
        }
        (!is_open).then(|| (Attends::ToAll, against.join(", ")))
    }

    fn hidden_size(&mut self) {
        let weights = self.measure("hidden_size", &self.layout.sizes.hidden_size);
        let hyper = self.hyper_size(|keys| &keys.hidden_size);
        self.found.config.hidden_size = self.settle("hidden_size", weights, hyper);
    }

    fn heads(&mut self) {
        let (layers, hidden) = (self.found.config.layers, self.found.config.hidden_size);
        let mut weights = None;
        for table in self.tables() {
            let PositionTable::Relative { per_layer, .. } = table.kind else { continue };
            let Table { name, columns, .. } = table;
            if !per_layer {
                weights = Some(Known::new(columns, format!("{name} has {columns} columns")));
            } else if let Some(layers) = layers.filter(|&layers| layers > 0) {
                if columns > 0 && columns % layers == 0 {
                    let from = format!("{name} has {columns} columns for {layers} layers");
                    weights = Some(Known::new(columns / layers, from));
                } else {
                    self.warn(format!("heads: {name} has {columns} columns, no multiple of {layers} layers"));
                }
            }
            break;
        }
        let hyper = self.hyper_size(|keys| &keys.heads);
        let assumed = hidden.and_then(|hidden| {
            let heads = lookup(&self.layout.sizes.assume.heads_by_hidden_size, hidden)?;
            Some(Known::assumed(heads, format!("what published models of hidden size {hidden} have")))
        });
        let weights = weights.filter(|known| known.value > 0);
        let or_else = if weights.is_some() { hyper } else { hyper.or(assumed) };
        let heads = self.settle("heads", weights, or_else);
        if let (Some(heads), Some(hidden)) = (heads, hidden)
            && (heads == 0 || hidden % heads != 0)
        {
            self.warn(format!("heads: hidden size {hidden} is no multiple of {heads} heads"));
        }
        self.found.config.heads = heads;
    }

    fn mlp_hidden(&mut self) {
        let weights = self.measure("mlp_hidden", &self.layout.sizes.mlp_hidden);
        let hidden = self.found.config.hidden_size;
        let hyper = self.hyper_key(|keys| &keys.mlp_ratio).and_then(|(value, from)| {
            let size = value.as_f64().filter(|ratio| (0.0..=1000.0).contains(ratio))? * hidden? as f64;
            // Python's int(): towards zero.
            (1.0..1e15).contains(&size).then(|| Known::new(size as usize, format!("hidden_size times {from}")))
        });
        self.found.config.mlp_hidden = self.settle("mlp_hidden", weights, hyper);
    }

    fn layer_scale(&mut self) {
        let patterns = &self.layout.sizes.layer_scale;
        if patterns.is_empty() || self.found.config.layers.is_none() {
            return;
        }
        let there = patterns.iter().find_map(|pattern| self.matching(pattern).next());
        let from = match there {
            Some(tensor) => format!("{} is there", show_name(&tensor.name)),
            None => "no layer has vectors to scale by".to_string(),
        };
        self.record("layer_scale", there.is_some().to_string(), from, false);
        self.found.config.layer_scale = Some(there.is_some());
    }

    fn positions(&mut self) {
        let tables = self.tables();
        let kind = |table: &Table| match table.kind {
            PositionTable::Relative { .. } => Positions::Relative,
            PositionTable::Absolute { .. } => Positions::Absolute,
        };
        let Some(first) = tables.first() else { return };
        let positions = kind(first);
        self.record("positions", positions.to_string(), format!("{} is there", first.name), false);
        self.found.config.positions = Some(positions);
        if let Some(other) = tables.iter().find(|table| kind(table) != positions) {
            self.warn(format!("positions: {} is there, and {} too", first.name, other.name));
        }
    }

    fn patch_size(&mut self) {
        let weights = self.measure("patch_size", &self.layout.sizes.patch_size);
        let hyper = self.hyper_size(|keys| &keys.patch_size);
        self.found.config.patch_size = self.settle("patch_size", weights, hyper);
    }

    fn vocab_size(&mut self) {
        let weights = self.measure("vocab_size", &self.layout.sizes.vocab_size);
        let hyper = self.hyper_size(|keys| &keys.vocab_size);
        self.found.config.vocab_size = self.settle("vocab_size", weights, hyper);
    }

    fn max_text_len(&mut self) {
        let weights = self.measure("max_text_len", &self.layout.sizes.max_text_len);
        let hyper = self.hyper_size(|keys| &keys.max_text_len);
        self.found.config.max_text_len = self.settle("max_text_len", weights, hyper);
    }

    /// Image grid, longest text of the position table and image size, which depend on each other: a
    /// relative table's rows are (2w−1)² + 3 + 2·T0 + 2.
    fn image(&mut self) {
        let patch = self.found.config.patch_size;
        let hyper_size = self.hyper_size(|keys| &keys.image_size);
        let hyper_grid = hyper_size.as_ref().and_then(|size| {
            let w = size.value.checked_div(patch?)?;
            (w > 0).then(|| Known::new(w, format!("{} over patch_size", size.from)))
        });
        let hyper_text = self.hyper_size(|keys| &keys.max_text_len_of_initckpt);

        let tables = self.tables();
        if let Some(odd) = tables.iter().find(|table| table.rows != tables[0].rows) {
            let reason = format!("{} has {} rows, {} has {}", tables[0].name, tables[0].rows, odd.name, odd.rows);
            self.warn(format!("image_grid: {reason}"));
        }
        let table = tables.into_iter().next();
        let fits = |grid: &Known| table.as_ref().is_none_or(|table| table.fits(grid.value));
        let buffer = self.measure("image_grid", &self.layout.sizes.image_tokens).and_then(|tokens| {
            let w = tokens.value.checked_sub(1)?.isqrt();
            if w == 0 || w.checked_mul(w) != Some(tokens.value - 1) {
                self.warn(format!("image_grid: {}: not 1 + a square number of patches", tokens.from));
                return None;
            }
            Some(Known::new(w, tokens.from))
        });
        if let (Some(buffer), Some(table)) = (&buffer, &table)
            && !fits(buffer)
        {
            self.warn(format!("image_grid: {} doesn't fit {} with {} rows", buffer.from, table.name, table.rows));
        }
        let weights = buffer.filter(fits).or_else(|| self.grid_of(table.as_ref()?, hyper_text.as_ref()));
        let guess = match (&weights, &table) {
            (Some(_), _) => None,
            (None, None) => hyper_grid.clone(),
            (None, Some(_)) if hyper_grid.as_ref().is_some_and(fits) => hyper_grid.clone(),
            (None, Some(table)) => {
                if let Some(claim) = &hyper_grid {
                    let Known { value, from, .. } = claim;
                    self.warn(format!(
                        "image_grid: {value} because of {from} doesn't fit {} with {} rows",
                        table.name, table.rows
                    ));
                }
                self.guess_grid(table)
            }
        };
        let grid = match weights {
            Some(weights) => self.settle("image_grid", Some(weights), hyper_grid),
            None => self.settle("image_grid", None, guess.clone()),
        };
        self.found.config.image_grid = grid;

        let text = match (&table, grid) {
            (Some(table), Some(w)) if table.has_text() => {
                let text = table.kind.text_len(table.rows, w);
                if text.is_none() {
                    self.warn(format!(
                        "max_text_len_of_initckpt: {} has {} rows, which {w} × {w} patches don't fit",
                        table.name, table.rows
                    ));
                }
                let from = format!("{} has {} rows, {w} × {w} patches", table.name, table.rows);
                let assumed = guess.as_ref().is_some_and(|guess| guess.assumed);
                text.map(|value| Known { value, from, assumed })
            }
            _ => None,
        };
        let hyper_text = hyper_text.filter(|_| table.as_ref().is_none_or(Table::has_text));
        self.found.config.max_text_len_of_initckpt = self.settle("max_text_len_of_initckpt", text, hyper_text);

        let product = grid.zip(patch).and_then(|(grid, patch)| grid.checked_mul(patch));
        let size = match (product, hyper_size) {
            (Some(size), Some(claim)) if claim.value.checked_div(patch.unwrap_or(0)) != grid => {
                Some(Known::new(size, format!("image_grid times patch_size ({} says {})", claim.from, claim.value)))
            }
            (Some(size), None) => Some(Known::new(size, OF_GRID)),
            (_, claim) => claim,
        };
        self.found.config.image_size = self.settle("image_size", size, None);
    }

    /// The grid a table tells by itself, or with the text length that the hyper-parameters give.
    fn grid_of(&self, table: &Table, text: Option<&Known>) -> Option<Known> {
        let Table { kind, name, rows, .. } = table;
        if !table.has_text() {
            return Some(Known::new(kind.patches(*rows, 0)?, format!("{name} has {rows} rows")));
        }
        let text = text?;
        let w = kind.patches(*rows, text.value)?;
        Some(Known::new(w, format!("{name} has {rows} rows, {} is {}", text.from, text.value)))
    }

    /// The grid a table with text rows is likely to have, when nothing else tells.
    fn guess_grid(&mut self, table: &Table) -> Option<Known> {
        let Table { kind, name, rows, .. } = table;
        if !table.has_text() {
            self.warn(format!("image_grid: {name} has {rows} rows, which no square image has"));
            return None;
        }
        let text_len = self.found.config.max_text_len.unwrap_or(2).max(2);
        if let Some(assumed) = self.layout.sizes.assume.max_text_len_of_initckpt
            && assumed >= text_len
            && let Some(w) = kind.patches(*rows, assumed)
        {
            return Some(Known::assumed(
                w,
                format!("{name} has {rows} rows, if 2 × {assumed} + 5 are not for the image"),
            ));
        }
        // Every smaller grid leaves an even number of rows for a longer text: only the smallest that
        // is one, 2 × 2, can be the only one.
        let most = rows.checked_sub(kind.rows(1, text_len)?.saturating_sub(1)).unwrap_or(0).isqrt();
        if (3..5).contains(&most) && kind.text_len(*rows, 2).is_some() {
            return Some(Known::assumed(2, format!("{name} has {rows} rows, too few for any other")));
        }
        self.warn(format!(
            "image_grid: {name} has {rows} rows for image and text together, and neither the image size nor the \
             longest text is known"
        ));
        None
    }

    fn token_types(&mut self) {
        let weights = self.measure("token_types", &self.layout.sizes.token_types);
        self.found.config.token_types = self.settle("token_types", weights, None);
    }

    fn tasks(&mut self) {
        for task in &self.layout.sizes.tasks {
            let Some(head) = self.tensors.iter().find(|named| task.name.matches(&named.name)) else { continue };
            let labels = task.axis.and_then(|axis| head.tensor.shape.get(axis).copied());
            let from = shape_in_words(head.tensor);
            let value = labels.map_or("present".to_string(), |labels| format!("{labels} labels"));
            self.record(&format!("tasks.{}", show_name(&task.task)), value, from, false);
            self.found.config.tasks.insert(task.task.clone(), labels);
        }
    }

    /// The position tables with a shape that a position table has.
    fn tables(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        for named in &self.tensors {
            let Some(kind) = self.layout.position_table(&named.name) else { continue };
            let (rows, columns) = match named.tensor.shape[..] {
                [rows, columns] | [1, rows, columns] => (rows, columns),
                _ => continue,
            };
            tables.push(Table { kind, name: show_name(&named.tensor.name), rows, columns });
        }
        tables
    }

    /// The length that the axes of a size agree on: the first one's. Disagreement is warned of, and
    /// lengths of 0 are passed over.
    fn measure(&mut self, field: &str, axes: &[Axis]) -> Option<Known> {
        let mut first: Option<(usize, &TensorInfo)> = None;
        let mut other: Option<(usize, &TensorInfo)> = None;
        for Axis { name, axis } in axes {
            for tensor in self.matching(name) {
                let Some(&length) = tensor.shape.get(*axis).filter(|&&length| length > 0) else { continue };
                match first {
                    None => first = Some((length, tensor)),
                    Some((known, _)) if known != length => other = other.or(Some((length, tensor))),
                    Some(_) => {}
                }
            }
        }
        let (length, tensor) = first?;
        let warning = other.map(|(different, by)| {
            let (by, tensor) = (shape_in_words(by), shape_in_words(tensor));
            format!("{field}: {length} because {tensor}, but {different} because {by}")
        });
        let known = Known::new(length, shape_in_words(tensor));
        self.found.warnings.extend(warning);
        Some(known)
    }

    fn matching(&self, pattern: &Pattern) -> impl Iterator<Item = &'a TensorInfo> {
        self.tensors.iter().filter(|named| pattern.matches(&named.name)).map(|named| named.tensor)
    }

    fn hyper_size(&self, key: impl Fn(&crate::layout::HyperKeys) -> &Option<String>) -> Option<Known> {
        let (value, from) = self.hyper_key(key)?;
        Some(Known::new(as_size(value).filter(|&size| size > 0)?, from))
    }

    fn hyper_key(&self, key: impl Fn(&crate::layout::HyperKeys) -> &Option<String>) -> Option<(&'a Value, String)> {
        self.hyper_value(key(&self.layout.sizes.hyper_parameters).as_ref()?)
    }

    /// A hyper-parameter, and where it stands.
    fn hyper_value(&self, key: &str) -> Option<(&'a Value, String)> {
        let top = self.hyper?;
        let groups = ["config", "args"].map(|group| (Some(group), top.get(group)));
        groups.into_iter().chain([(None, Some(top))]).find_map(|(group, values)| {
            let value = values?.get(key).filter(|value| !value.is_null())?;
            let group = group.map(|group| format!("{group}.")).unwrap_or_default();
            Some((value, format!("hyper_parameters.{group}{key}")))
        })
    }

    /// Chooses between the weights' and the hyper-parameters' value, and writes down why.
    fn settle(&mut self, field: &str, weights: Option<Known>, hyper: Option<Known>) -> Option<usize> {
        if let Some(weights) = &weights {
            self.contradiction(field, weights, hyper.as_ref(), "the weights win");
        }
        let known = weights.or(hyper)?;
        self.record(field, known.value.to_string(), known.from, known.assumed);
        Some(known.value)
    }

    fn contradiction(&mut self, field: &str, winner: &Known, other: Option<&Known>, outcome: &str) {
        if let Some(other) = other.filter(|other| other.value != winner.value) {
            self.warn(format!(
                "{field}: {} because {}, but {} because of {}; {outcome}",
                winner.value, winner.from, other.value, other.from
            ));
        }
    }

    fn record(&mut self, field: &str, value: String, from: String, assumed: bool) {
        self.found.evidence.push(Evidence { field: field.to_string(), value, from, assumed });
    }

    fn warn(&mut self, warning: String) {
        self.found.warnings.push(warning);
    }
}

/// A position table's shape.
struct Table {
    kind: PositionTable,
    name: String,
    rows: usize,
    columns: usize,
}

impl Table {
    fn has_text(&self) -> bool {
        matches!(self.kind, PositionTable::Relative { text: true, .. })
    }

    /// Whether the table can be one for images of `w` × `w` patches.
    fn fits(&self, w: usize) -> bool {
        match self.has_text() {
            true => self.kind.text_len(self.rows, w).is_some(),
            false => self.kind.rows(w, 0) == Some(self.rows),
        }
    }
}

fn shape_in_words(tensor: &TensorInfo) -> String {
    let mut shape: Vec<String> = tensor.shape.iter().take(8).map(|length| length.to_string()).collect();
    if tensor.shape.len() > 8 {
        shape.push("…".to_string());
    }
    format!("{} is [{}]", show_name(&tensor.name), shape.join(", "))
}

fn list(parts: &BTreeSet<Part>) -> String {
    parts.iter().map(|part| part.to_string()).collect::<Vec<_>>().join(", ")
}

fn lookup(table: &[(usize, usize)], key: usize) -> Option<usize> {
    table.iter().find(|&&(known, _)| known == key).map(|&(_, value)| value)
}

/// A whole number that can be a size; 4.0 counts as 4.
fn as_size(value: &Value) -> Option<usize> {
    let whole = |number: &f64| number.fract() == 0.0 && (0.0..1e15).contains(number);
    match value.as_u64() {
        Some(size) => usize::try_from(size).ok().filter(|&size| (size as u64) < 1_000_000_000_000_000),
        None => value.as_f64().filter(whole).map(|size| size as usize),
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::Dtype;

    type Shapes = Vec<(String, Vec<usize>)>;

    fn infos(shapes: &Shapes) -> Vec<TensorInfo> {
        let info = |(name, shape): &(String, Vec<usize>)| TensorInfo {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: shape.clone(),
        };
        shapes.iter().map(info).collect()
    }

    fn add(shapes: &mut Shapes, name: &str, shape: &[usize]) {
        shapes.push((name.to_string(), shape.to_vec()));
    }

    /// A vl-merging checkpoint of hidden size 24, 2 heads, 12 layers, 3 × 3 patches of 16, T0 = 16, 10 tokens.
    fn vl_merging(variant: Variant, vl_start: usize) -> Shapes {
        let mut shapes = Shapes::new();
        add(&mut shapes, "relative_position_bias_table", &[5 * 5 + 3 + 2 * 16 + 2, 24]);
        add(&mut shapes, "text_embeddings.word_embeddings.weight", &[256, 24]);
        add(&mut shapes, "text_embeddings.position_embeddings.weight", &[10, 24]);
        add(&mut shapes, "token_type_embeddings.weight", &[2, 24]);
        add(&mut shapes, "transformer.patch_embed.proj.weight", &[24, 3, 16, 16]);
        add(&mut shapes, "transformer.norm.weight", &[24]);
        add(&mut shapes, "pooler.dense.weight", &[24, 24]);
        for layer in 0..12 {
            for (part, module, leaf, shape) in [
                (Part::Attention, "attn", "qkv.weight", &[72, 24][..]),
                (Part::Attention, "attn", "q_bias", &[24]),
                (Part::Mlp, "mlp", "fc1.weight", &[96, 24]),
                (Part::Mlp, "mlp", "fc2.weight", &[24, 96]),
                (Part::Norm1, "norm1", "weight", &[24]),
                (Part::Norm2, "norm2", "weight", &[24]),
            ] {
                let modalities = match (variant.has_experts(part), layer >= vl_start) {
                    (false, _) => &[""][..],
                    (true, false) => &["v.", "l."],
                    (true, true) => &["v.", "l.", "vl."],
                };
                for modality in modalities {
                    add(&mut shapes, &format!("transformer.blocks.{layer}.{module}.{modality}{leaf}"), shape);
                }
            }
            add(&mut shapes, &format!("transformer.blocks.{layer}.gamma_1"), &[24]);
        }
        shapes
    }

    fn with_buffers(mut shapes: Shapes) -> Shapes {
        add(&mut shapes, "relative_position_index", &[10, 10]);
        add(&mut shapes, "text_relative_position_index", &[10, 10]);
        add(&mut shapes, "text_imag_relative_position_index", &[20, 20]);
        shapes
    }

    /// VLMo as microsoft/unilm builds it: (hidden size, layers, vl start) of base, base_plus or large.
    fn vlmo(prefix: &str, hidden: usize, layers: usize, vl_start: usize) -> Shapes {
        let mut shapes = Shapes::new();
        let d = hidden;
        add(&mut shapes, "text_embeddings.word_embeddings.weight", &[30522, d]);
        add(&mut shapes, "text_embeddings.position_embeddings.weight", &[40, d]);
        add(&mut shapes, "token_type_embeddings.weight", &[2, d]);
        add(&mut shapes, &format!("{prefix}cls_token"), &[1, 1, d]);
        add(&mut shapes, &format!("{prefix}patch_embed.proj.weight"), &[d, 3, 16, 16]);
        for layer in 0..layers {
            let block = format!("{prefix}blocks.{layer}");
            add(&mut shapes, &format!("{block}.attn.qkv.weight"), &[3 * d, d]);
            add(&mut shapes, &format!("{block}.norm1.weight"), &[d]);
            let modalities = if layer < vl_start { &["text", "imag"][..] } else { &["text", "imag", "vl"] };
            for modality in modalities {
                add(&mut shapes, &format!("{block}.norm2_{modality}.weight"), &[d]);
                add(&mut shapes, &format!("{block}.mlp_{modality}.fc1.weight"), &[4 * d, d]);
                add(&mut shapes, &format!("{block}.mlp_{modality}.fc2.weight"), &[d, 4 * d]);
            }
        }
        shapes
    }

    /// BEiT-3 as torchscale builds it; `modalities` without B is its image classifier.
    fn beit3(prefix: &str, hidden: usize, layers: usize, w: usize, modalities: &[&str]) -> Shapes {
        let mut shapes = Shapes::new();
        let d = hidden;
        add(&mut shapes, &format!("{prefix}text_embed.weight"), &[64010, d]);
        add(&mut shapes, &format!("{prefix}vision_embed.cls_token"), &[1, 1, d]);
        add(&mut shapes, &format!("{prefix}vision_embed.proj.weight"), &[d, 3, 16, 16]);
        add(&mut shapes, &format!("{prefix}encoder.embed_positions.A.weight"), &[w * w + 3, d]);
        add(&mut shapes, &format!("{prefix}encoder.embed_positions.B.weight"), &[1024, d]);
        for way in modalities {
            for layer in 0..layers {
                let layer = format!("{prefix}encoder.layers.{layer}");
                for projection in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                    add(&mut shapes, &format!("{layer}.self_attn.{projection}.{way}.weight"), &[d, d]);
                }
                add(&mut shapes, &format!("{layer}.self_attn.inner_attn_ln.{way}.weight"), &[d]);
                add(&mut shapes, &format!("{layer}.self_attn_layer_norm.{way}.weight"), &[d]);
                add(&mut shapes, &format!("{layer}.ffn.{way}.fc1.weight"), &[4 * d, d]);
                add(&mut shapes, &format!("{layer}.ffn.{way}.fc2.weight"), &[d, 4 * d]);
                add(&mut shapes, &format!("{layer}.ffn.{way}.ffn_layernorm.weight"), &[4 * d]);
                add(&mut shapes, &format!("{layer}.final_layer_norm.{way}.weight"), &[d]);
            }
            add(&mut shapes, &format!("{prefix}encoder.layer_norm.{way}.weight"), &[d]);
        }
        shapes
    }

    fn hyper() -> Value {
        json!({
            "config": {
                "num_layers": 12, "num_heads": 2, "hidden_size": 24, "mlp_ratio": 4, "image_size": 48, "patch_size": 16,
                "vocab_size": 256, "max_text_len": 10, "max_text_len_of_initckpt": 16, "vlffn_start_layer_index": 10,
                "use_moe": true, "in_attn": true, "in_ffn": true, "use_custom_ln_attn": true, "use_custom_ln_ffn": true,
                "use_ufo": false, "self_attn_for_single_mode": true, "separate_inference": true
            },
            "moe_config": { "__class__": "vilt.moe.config.MOEConfig", "in_attn": true }
        })
    }

    fn from<'d>(found: &'d Detected, field: &str) -> &'d str {
        found.evidence.iter().find(|evidence| evidence.field == field).map_or("", |evidence| &evidence.from)
    }

    fn assumed(found: &Detected) -> Vec<&str> {
        found.evidence.iter().filter(|evidence| evidence.assumed).map(|evidence| evidence.field.as_str()).collect()
    }

    #[test]
    fn every_variant_is_known_by_its_parts() {
        for variant in Variant::ALL {
            let found = detect(&infos(&vl_merging(variant, 10)), None);
            assert_eq!(found.config.variant, Some(variant));
            assert_eq!(found.config.vl_start, Some(10));
            assert_eq!(assumed(&found).contains(&"vl_start"), variant == Variant::Ufo);
            assert_eq!(variant.to_string().parse(), Ok(variant));
            assert_eq!(serde_json::to_value(variant).unwrap(), json!(variant.to_string()));
        }
        assert_eq!(Variant::from_parts(&[Part::Mlp].into()), None);
        assert_eq!(Variant::from_parts(&[Part::Other].into()), Some(Variant::Ufo));
        assert!("moe".parse::<Variant>().is_err());
    }

    #[test]
    fn a_lightning_checkpoint_is_known_completely_and_without_warning() {
        let mut shapes = with_buffers(vl_merging(Variant::AllMoe, 10));
        add(&mut shapes, "mlm_score.bias", &[256]);
        add(&mut shapes, "vqa_classifier.3.weight", &[3129, 48]);
        let found = detect(&infos(&shapes), Some(&hyper()));
        let expected = ModelConfig {
            layout: Some("vl-merging".to_string()),
            variant: Some(Variant::AllMoe),
            layers: Some(12),
            vl_start: Some(10),
            attends: Some(Attends::WithinModality),
            hidden_size: Some(24),
            heads: Some(2),
            mlp_hidden: Some(96),
            layer_scale: Some(true),
            positions: Some(Positions::Relative),
            image_size: Some(48),
            patch_size: Some(16),
            image_grid: Some(3),
            vocab_size: Some(256),
            max_text_len: Some(10),
            max_text_len_of_initckpt: Some(16),
            token_types: Some(2),
            tasks: [("mlm".to_string(), None), ("vqa".to_string(), Some(3129))].into(),
            unusual: Vec::new(),
        };
        assert_eq!(found.config, expected);
        assert_eq!(found.warnings, Vec::<String>::new());
        assert_eq!(from(&found, "heads"), "relative_position_bias_table has 24 columns for 12 layers");
        assert_eq!(from(&found, "image_grid"), "relative_position_index is [10, 10]");
        assert_eq!(from(&found, "image_size"), "hyper_parameters.config.image_size");
        assert_eq!(from(&found, "tasks.vqa"), "vqa_classifier.3.weight is [3129, 48]");
        assert_eq!(assumed(&found), Vec::<&str>::new());
        assert_eq!(expected.mlp_ratio(), Some(4.0));

        // The same from weights and buffers alone, and through a `module.` prefix.
        assert_eq!(detect(&infos(&shapes), None).config, expected);
        shapes.iter_mut().for_each(|(name, _)| name.insert_str(0, "module."));
        assert_eq!(detect(&infos(&shapes), None).config, expected);
    }

    #[test]
    fn a_config_is_json() {
        let config = detect(&infos(&with_buffers(vl_merging(Variant::FfnMoe, 10))), None).config;
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""variant":"ffn_moe","layers":12"#), "{text}");
        assert_eq!(serde_json::from_str::<ModelConfig>(&text).unwrap(), config);
        let part: ModelConfig =
            serde_json::from_str(r#"{"layers": 3, "heads": null, "of_a_later_version": 1}"#).unwrap();
        assert_eq!(part, ModelConfig { layers: Some(3), ..ModelConfig::default() });
    }

    #[test]
    fn the_weights_win_over_hyper_parameters_and_say_so() {
        let shapes = with_buffers(vl_merging(Variant::Ufo, 10));
        let mut hyper = hyper();
        for (key, value) in [
            ("num_heads", 3),
            ("hidden_size", 48),
            ("num_layers", 6),
            ("mlp_ratio", 2),
            ("image_size", 96),
            ("vocab_size", 9),
            ("max_text_len", 11),
            ("max_text_len_of_initckpt", 17),
        ] {
            hyper["config"][key] = json!(value);
        }
        let found = detect(&infos(&shapes), Some(&hyper));
        let bare = detect(&infos(&shapes), None).config;
        assert_eq!(found.config, bare);
        let expected = [
            "layers: 12 because transformer.blocks.11.attn.qkv.weight is in the last layer, but 6 because of \
             hyper_parameters.config.num_layers; the weights win",
            "variant: the weights have no experts, the hyper-parameters say attention, mlp, norm1, norm2; \
             the weights win",
            "hidden_size: 24 because transformer.patch_embed.proj.weight is [24, 3, 16, 16], but 48 because of \
             hyper_parameters.config.hidden_size; the weights win",
            "heads: 2 because relative_position_bias_table has 24 columns for 12 layers, but 3 because of \
             hyper_parameters.config.num_heads; the weights win",
            "mlp_hidden: 96 because transformer.blocks.0.mlp.fc1.weight is [96, 24], but 48 because of \
             hidden_size times hyper_parameters.config.mlp_ratio; the weights win",
            "vocab_size: 256 because text_embeddings.word_embeddings.weight is [256, 24], but 9 because of \
             hyper_parameters.config.vocab_size; the weights win",
            "max_text_len: 10 because text_relative_position_index is [10, 10], but 11 because of \
             hyper_parameters.config.max_text_len; the weights win",
            "image_grid: 3 because relative_position_index is [10, 10], but 6 because of \
             hyper_parameters.config.image_size over patch_size; the weights win",
            "max_text_len_of_initckpt: 16 because relative_position_bias_table has 62 rows, 3 × 3 patches, but 17 \
             because of hyper_parameters.config.max_text_len_of_initckpt; the weights win",
        ];
        assert_eq!(found.warnings, expected);
        assert_eq!(found.config.image_size, Some(48));
        assert_eq!(
            from(&found, "image_size"),
            "image_grid times patch_size (hyper_parameters.config.image_size says 96)"
        );
    }

    #[test]
    fn vl_start_from_weights_hyper_parameters_or_nothing() {
        let start = |variant, in_weights, in_hyper: Value| {
            let hyper = json!({"config": {"vlffn_start_layer_index": in_hyper}});
            let found = detect(&infos(&vl_merging(variant, in_weights)), Some(&hyper));
            let warned = found.warnings.iter().find(|warning| warning.starts_with("vl_start")).cloned();
            (found.config.vl_start, warned.unwrap_or_default())
        };
        assert_eq!(start(Variant::AllMoe, 9, json!(9)), (Some(9), String::new()));
        assert_eq!(start(Variant::Ufo, 0, json!(7)), (Some(7), String::new()));
        assert_eq!(start(Variant::Ufo, 0, json!(-1)), (Some(0), String::new()));
        assert_eq!(start(Variant::Ufo, 0, json!("x")), (Some(10), String::new()));
        // Experts, but none for vl: a model before joint training, which sets the start to its depth.
        assert_eq!(start(Variant::FfnMoe, 12, json!(12)), (None, String::new()));
        let (found, warned) = start(Variant::FfnMoe, 12, json!(10));
        assert_eq!(found, None);
        assert_eq!(
            warned,
            "vl_start: hyper_parameters.config.vlffn_start_layer_index says 10, but no layer has a vl expert"
        );
        let (found, warned) = start(Variant::AllMoe, 10, json!(8));
        assert_eq!(found, Some(10));
        assert!(warned.ends_with("but 8 because of hyper_parameters.config.vlffn_start_layer_index; the weights win"));
    }

    #[test]
    fn layers_that_lack_something_are_warned_of() {
        let mut shapes = vl_merging(Variant::AllMoe, 10);
        shapes.retain(|(name, _)| !name.contains("blocks.3.") && !name.contains("blocks.11.mlp"));
        let found = detect(&infos(&shapes), Some(&hyper()));
        assert_eq!(
            found.warnings,
            [
                "layers: 1 of 12 have no tensors: 3",
                "variant: attention has experts in 11 of 12 layers",
                "variant: mlp has experts in 10 of 12 layers",
                "variant: norm1 has experts in 11 of 12 layers",
                "variant: norm2 has experts in 11 of 12 layers",
            ]
        );
        let mut shapes = vl_merging(Variant::LnMoe, 8);
        shapes.retain(|(name, _)| !name.contains("blocks.11.norm1.vl") && !name.contains("blocks.11.norm2.vl"));
        let found = detect(&infos(&shapes), None);
        assert_eq!(found.warnings[0], "vl_start: 1 layers after layer 8 have no vl expert");
    }

    fn with_table(rows: usize, columns: usize) -> Vec<TensorInfo> {
        let mut shapes = vl_merging(Variant::Ufo, 10);
        shapes[0].1 = vec![rows, columns];
        infos(&shapes)
    }

    fn image(found: &Detected) -> (Option<usize>, Option<usize>, Option<usize>) {
        (found.config.image_grid, found.config.max_text_len_of_initckpt, found.config.image_size)
    }

    #[test]
    fn a_table_alone_is_read_with_the_familys_text_length() {
        // 384 pixels: 47² + 3 + 392 + 2.
        let found = detect(&with_table(2606, 24), None);
        assert_eq!(image(&found), (Some(24), Some(196), Some(384)));
        assert_eq!(assumed(&found), ["vl_start", "attends", "image_grid", "max_text_len_of_initckpt"]);
        assert_eq!(
            from(&found, "image_grid"),
            "relative_position_bias_table has 2606 rows, if 2 × 196 + 5 are not for the image"
        );
        assert_eq!(found.warnings, Vec::<String>::new());
        // 62 = 5² + 5 + 2·16, but also 3² + 5 + 2·24.
        let found = detect(&with_table(62, 24), None);
        assert_eq!(image(&found), (None, None, None));
        assert_eq!(
            found.warnings,
            ["image_grid: relative_position_bias_table has 62 rows for image and text together, and neither the \
              image size nor the longest text is known"]
        );
        // Texts have at least the 10 tokens of the embeddings: 3² + 5 + 2·12 leaves no room for 5².
        let found = detect(&with_table(38, 24), None);
        assert_eq!(image(&found), (Some(2), Some(12), Some(32)));
        assert_eq!(from(&found, "image_grid"), "relative_position_bias_table has 38 rows, too few for any other");
    }

    #[test]
    fn a_table_with_hyper_parameters() {
        let with = |rows, config: Value| detect(&with_table(rows, 24), Some(&json!({ "config": config })));
        // The image size alone leaves the text length to the table, and the other way round.
        let found = with(62, json!({"image_size": 48}));
        assert_eq!((image(&found), found.warnings.len()), ((Some(3), Some(16), Some(48)), 0));
        let found = with(62, json!({"max_text_len_of_initckpt": 16}));
        assert_eq!((image(&found), found.warnings.len()), ((Some(3), Some(16), Some(48)), 0));
        // A resized table with the old image size beside it.
        let found = with(11 * 11 + 37, json!({"image_size": 48, "max_text_len_of_initckpt": 16}));
        assert_eq!(image(&found), (Some(6), Some(16), Some(96)));
        assert_eq!(
            found.warnings,
            ["image_grid: 6 because relative_position_bias_table has 158 rows, \
              hyper_parameters.config.max_text_len_of_initckpt is 16, but 3 because of \
              hyper_parameters.config.image_size over patch_size; the weights win"]
        );
        // 50 pixels are 3 patches of 16 and two to spare.
        let found = with(62, json!({"image_size": 50}));
        assert_eq!((image(&found), found.warnings.len()), ((Some(3), Some(16), Some(50)), 0));
        // Nothing fits.
        let found = with(62, json!({"image_size": 480}));
        assert_eq!(image(&found), (None, None, Some(480)));
        assert_eq!(
            found.warnings[0],
            "image_grid: 30 because of hyper_parameters.config.image_size over patch_size doesn't fit \
             relative_position_bias_table with 62 rows"
        );
    }

    #[test]
    fn a_buffer_that_contradicts_the_table() {
        let mut shapes = vl_merging(Variant::Ufo, 10);
        add(&mut shapes, "relative_position_index", &[50, 50]);
        let found = detect(&infos(&shapes), Some(&hyper()));
        assert_eq!(image(&found), (Some(3), Some(16), Some(48)));
        let expected =
            "image_grid: relative_position_index is [50, 50] doesn't fit relative_position_bias_table with 62 rows";
        assert!(found.warnings.contains(&expected.to_string()), "{:?}", found.warnings);
        shapes.last_mut().unwrap().1 = vec![11, 11];
        let found = detect(&infos(&shapes), None);
        assert_eq!(
            found.warnings[0],
            "image_grid: relative_position_index is [11, 11]: not 1 + a square number of patches"
        );
    }

    #[test]
    fn vlmo_base_plus_and_large() {
        let config = json!({"config": {
            "model_arch": "vlmo_large_patch16", "image_size": 384, "vocab_size": 30522, "max_text_len": 40,
            "max_text_len_of_initckpt": 196, "loss_names": {"irtr": 1.0}
        }});
        let mut large = vlmo("transformer.", 1024, 24, 21);
        add(&mut large, "relative_position_bias_table", &[2606, 24 * 16]);
        add(&mut large, "itc_text_proj.fc.weight", &[1024, 1024]);
        let found = detect(&infos(&large), Some(&config));
        let expected = ModelConfig {
            layout: Some("vlmo".to_string()),
            variant: Some(Variant::FfnMoe),
            layers: Some(24),
            vl_start: Some(21),
            attends: Some(Attends::ToAll),
            hidden_size: Some(1024),
            heads: Some(16),
            mlp_hidden: Some(4096),
            layer_scale: Some(false),
            positions: Some(Positions::Relative),
            image_size: Some(384),
            patch_size: Some(16),
            image_grid: Some(24),
            vocab_size: Some(30522),
            max_text_len: Some(40),
            max_text_len_of_initckpt: Some(196),
            token_types: Some(2),
            tasks: [("irtr".to_string(), None)].into(),
            unusual: Vec::new(),
        };
        assert_eq!((found.config, found.warnings), (expected, vec![]));

        // Absolute positions: [1, 1 + 14², 544], and no table to tell the heads.
        let mut base_plus = vlmo("", 544, 24, 21);
        add(&mut base_plus, "pos_embed", &[1, 197, 544]);
        let found = detect(&infos(&base_plus), None);
        assert_eq!((found.config.image_grid, found.config.image_size), (Some(14), Some(224)));
        assert_eq!((found.config.heads, found.config.max_text_len_of_initckpt), (Some(16), None));
        assert_eq!(assumed(&found), ["heads"]);
        assert_eq!(found.warnings, Vec::<String>::new());
    }

    #[test]
    fn beit3_base_and_its_image_classifier() {
        for prefix in ["", "beit3."] {
            let mut shapes = beit3(prefix, 768, 12, 30, &["A", "B"]);
            add(&mut shapes, "head.3.weight", &[3129, 1536]);
            let found = detect(&infos(&shapes), None);
            let expected = ModelConfig {
                layout: Some("beit3".to_string()),
                variant: Some(Variant::AllMoe),
                layers: Some(12),
                hidden_size: Some(768),
                heads: Some(12),
                mlp_hidden: Some(3072),
                positions: Some(Positions::Absolute),
                image_size: Some(480),
                patch_size: Some(16),
                image_grid: Some(30),
                vocab_size: Some(64010),
                tasks: [("vqa".to_string(), Some(3129))].into(),
                ..ModelConfig::default()
            };
            assert_eq!((&found.config, found.warnings.len()), (&expected, 0));
            assert_eq!(assumed(&found), ["heads"]);
            assert_eq!(from(&found, "heads"), "what published models of hidden size 768 have");
            assert_eq!(from(&found, "image_grid"), format!("{prefix}encoder.embed_positions.A.weight has 903 rows"));
        }
        let mut shapes = beit3("beit3.", 1024, 24, 14, &["A"]);
        add(&mut shapes, "head.weight", &[1000, 1024]);
        let found = detect(&infos(&shapes), None).config;
        assert_eq!((found.variant, found.heads), (Some(Variant::AllMoe), Some(16)));
        assert_eq!(found.tasks, [("img_cls".to_string(), Some(1000))].into());
        // Merged: torchscale's names without A and B.
        let mut shapes = beit3("beit3.", 96, 2, 14, &["A"]);
        shapes.iter_mut().skip(5).for_each(|(name, _)| *name = name.replace(".A.", "."));
        let found = detect(&infos(&shapes), None).config;
        assert_eq!((found.variant, found.heads, found.mlp_hidden), (Some(Variant::Ufo), None, Some(384)));
    }

    #[test]
    fn beit_with_a_shared_table_or_one_for_each_layer() {
        for per_layer in [false, true] {
            let mut shapes = Shapes::new();
            add(&mut shapes, "patch_embed.proj.weight", &[768, 3, 16, 16]);
            for layer in 0..12 {
                add(&mut shapes, &format!("blocks.{layer}.attn.qkv.weight"), &[2304, 768]);
                add(&mut shapes, &format!("blocks.{layer}.mlp.fc1.weight"), &[3072, 768]);
                if per_layer {
                    add(&mut shapes, &format!("blocks.{layer}.attn.relative_position_bias_table"), &[732, 12]);
                }
            }
            if !per_layer {
                add(&mut shapes, "rel_pos_bias.relative_position_bias_table", &[732, 12]);
            }
            let found = detect(&infos(&shapes), None);
            let config = &found.config;
            assert_eq!((config.layout.as_deref(), config.variant, config.vl_start), (Some("beit"), None, None));
            assert_eq!((config.layers, config.heads, config.image_grid), (Some(12), Some(12), Some(14)));
            assert_eq!(found.warnings, Vec::<String>::new());
        }
    }

    #[test]
    fn a_record_fills_in_what_the_weights_leave_open() {
        let tensors = infos(&vl_merging(Variant::Ufo, 10));
        let recorded = ModelConfig {
            layout: Some("vl-merging".to_string()),
            vl_start: Some(9),
            attends: Some(Attends::ToAll),
            image_grid: Some(3),
            tasks: [("vqa".to_string(), Some(3))].into(),
            ..ModelConfig::default()
        };
        let mut found = detect(&tensors, None);
        found.complete(&recorded);
        assert_eq!((found.config.layers, found.config.vl_start, found.config.image_grid), (Some(12), Some(9), Some(3)));
        assert_eq!(found.config.attends, Some(Attends::ToAll), "for a model of this variant that isn't usual");
        assert_eq!(found.config.tasks, BTreeMap::new());
        assert_eq!(from(&found, "vl_start"), RECORD);
        assert_eq!(assumed(&found), Vec::<&str>::new());
        assert_eq!(found.conflict(), None);
    }

    #[test]
    fn a_record_that_the_weights_contradict_is_a_conflict() {
        let tensors = infos(&vl_merging(Variant::AllMoe, 10));
        let conflict = |recorded: ModelConfig| {
            let mut found = detect(&tensors, Some(&hyper()));
            found.complete(&recorded);
            found.conflict()
        };
        let layers = ModelConfig { layers: Some(13), ..ModelConfig::default() };
        assert_eq!(
            conflict(layers).unwrap(),
            "layers: 12 because transformer.blocks.11.attn.v.qkv.weight is in the last layer, but 13 in the file's record \
             of its model"
        );
        for (recorded, field) in [
            (ModelConfig { variant: Some(Variant::Ufo), ..ModelConfig::default() }, "variant"),
            (ModelConfig { vl_start: Some(9), ..ModelConfig::default() }, "vl_start"),
            (ModelConfig { attends: Some(Attends::ToAll), ..ModelConfig::default() }, "attends"),
            (ModelConfig { heads: Some(3), ..ModelConfig::default() }, "heads"),
            (ModelConfig { layer_scale: Some(false), ..ModelConfig::default() }, "layer_scale"),
            (ModelConfig { positions: Some(Positions::Absolute), ..ModelConfig::default() }, "positions"),
            (ModelConfig { image_size: Some(96), ..ModelConfig::default() }, "image_size"),
            (ModelConfig { max_text_len: Some(40), ..ModelConfig::default() }, "max_text_len"),
        ] {
            let said = conflict(recorded).unwrap_or_else(|| panic!("{field}: no conflict"));
            assert!(said.starts_with(&format!("{field}: ")) && said.ends_with(RECORD), "{said}");
        }
        // An image of 50 pixels has 3 patches of 16, as the weights have; one of 96 has 6.
        let bare = |recorded: ModelConfig| {
            let mut found = detect(&infos(&with_buffers(vl_merging(Variant::Ufo, 10))), None);
            found.complete(&recorded);
            (found.config.image_size, found.conflict().is_some())
        };
        let of = |size| ModelConfig { image_size: Some(size), ..ModelConfig::default() };
        assert_eq!((bare(of(50)), bare(of(96)).1), ((Some(50), false), true));
    }

    /// What the vl-merging code computes, flag by flag (`Block.forward` of its vision_transformer.py).
    #[test]
    fn flags_of_the_hyper_parameters_tell_what_tokens_attend_to() {
        use Attends::{ToAll, WithinModality};
        let attends = |variant, flags: Value| {
            let found = detect(&infos(&vl_merging(variant, 10)), Some(&json!({ "config": flags })));
            let assumed = found.evidence.iter().any(|evidence| evidence.field == "attends" && evidence.assumed);
            (found.config.attends, assumed, from(&found, "attends").to_string())
        };
        let flags = |on: &[&str]| {
            let keys = [
                "use_ufo",
                "use_moe",
                "in_attn",
                "in_ffn",
                "use_custom_ln_attn",
                "use_custom_ln_ffn",
                "separate_inference",
                "self_attn_for_single_mode",
            ];
            json!(keys.map(|key| (key, on.contains(&key))).into_iter().collect::<BTreeMap<_, _>>())
        };
        let norms = ["use_custom_ln_attn", "use_custom_ln_ffn"];
        let ffn = ["use_moe", "in_ffn", "use_custom_ln_ffn"];
        let attn = ["use_moe", "in_attn", "use_custom_ln_attn"];
        let all = [&attn[..], &ffn[1..]].concat();
        let with = |flags: &[&'static str], more: &[&'static str]| [flags, more].concat();
        for (variant, on, expected) in [
            (Variant::Ufo, vec!["use_ufo", "separate_inference"], WithinModality),
            (Variant::Ufo, vec!["use_ufo"], ToAll),
            // No architecture flag at all: nothing is kept apart, whatever separate_inference says.
            (Variant::Ufo, vec!["separate_inference"], ToAll),
            (Variant::Ufo, vec![], ToAll),
            (Variant::LnMoe, with(&norms, &["separate_inference"]), ToAll),
            (Variant::LnMoe, with(&norms, &["use_ufo", "separate_inference"]), WithinModality),
            (Variant::FfnMoe, with(&ffn, &["separate_inference"]), WithinModality),
            (Variant::FfnMoe, ffn.to_vec(), ToAll),
            (Variant::AttnMoe, with(&attn, &["self_attn_for_single_mode"]), WithinModality),
            (Variant::AttnMoe, with(&attn, &["separate_inference"]), ToAll),
            (Variant::AllMoe, with(&all, &["self_attn_for_single_mode"]), WithinModality),
            (Variant::AllMoe, with(&all, &["separate_inference"]), ToAll),
        ] {
            let (found, assumed, from) = attends(variant, flags(&on));
            assert_eq!((found, assumed), (Some(expected), false), "{variant} with {on:?}: {from}");
        }
        let (.., from) = attends(Variant::Ufo, flags(&["use_ufo"]));
        assert_eq!(
            from,
            "hyper_parameters.config.use_moe is false, hyper_parameters.config.separate_inference is false"
        );
        // Flags that say nothing, or are another model's.
        let usual = |variant, flags| attends(variant, flags) == attends(variant, json!({}));
        assert!(usual(Variant::Ufo, json!({"use_ufo": true})) && usual(Variant::AllMoe, flags(&["use_ufo"])));
        assert_eq!(attends(Variant::LnMoe, json!({})).0, Some(ToAll));
        assert_eq!(attends(Variant::AllMoe, json!({})).0, Some(WithinModality));
    }

    #[test]
    fn texts_of_two_lengths_are_unusual() {
        let unusual = |variant, joint: usize| {
            let mut hyper = hyper();
            hyper["config"]["max_vl_text_len"] = json!(joint);
            detect(&infos(&vl_merging(variant, 10)), Some(&hyper)).config.unusual
        };
        assert_eq!(
            unusual(Variant::AllMoe, 8),
            [
                "hyper_parameters.config.max_vl_text_len is 8 and hyper_parameters.config.max_text_len is 10: it was trained \
              with parts of the image taken for text"
            ]
        );
        assert_eq!(unusual(Variant::AllMoe, 10), [""; 0]);
    }

    #[test]
    fn what_is_unusual_is_known_from_the_record_alone() {
        let mut other = hyper();
        other["config"]["max_vl_text_len"] = json!(8);
        let tensors = infos(&vl_merging(Variant::AllMoe, 10));
        let config = detect(&tensors, Some(&other)).config;
        assert_eq!(config.unusual.len(), 1);
        let record: ModelConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        // Without the hyper-parameters, and beside them.
        for hyper in [None, Some(&other)] {
            let mut found = detect(&tensors, hyper);
            found.complete(&record);
            assert_eq!((found.conflict(), &found.config.unusual), (None, &config.unusual));
        }
        // Records of models that aren't unusual stay as they always were.
        let usual = detect(&tensors, Some(&hyper())).config;
        assert!(!serde_json::to_string(&usual).unwrap().contains("unusual"));
        let older: ModelConfig = serde_json::from_str(r#"{"layers": 12}"#).unwrap();
        assert_eq!(older.unusual, [""; 0]);
    }

    #[test]
    fn an_unknown_layout_is_nothing_known() {
        let tensors = infos(&vec![("conv1.weight".to_string(), vec![64, 3, 7, 7])]);
        assert_eq!(detect(&tensors, Some(&hyper())), Detected::default());
        assert_eq!(detect(&[], None), Detected::default());
    }

    #[test]
    fn any_json_will_do() {
        let tensors = infos(&vl_merging(Variant::AllMoe, 10));
        let bare = detect(&tensors, None);
        let with = |hyper: Value| detect(&tensors, Some(&hyper));
        for hyper in [
            json!(null),
            json!([1, 2]),
            json!("config"),
            json!({"config": null}),
            json!({"config": [{"num_heads": 3}]}),
            json!({"config": {"num_heads": "12", "image_size": [48, 48], "num_layers": {"a": 1}, "mlp_ratio": "nan"}}),
            json!({"config": {"num_heads": -3, "image_size": 0, "num_layers": 1e300, "mlp_ratio": -1.0}}),
            json!({"config": {"num_heads": 2.5, "image_size": u64::MAX, "vlffn_start_layer_index": []}}),
        ] {
            assert_eq!(with(hyper.clone()), bare, "{hyper}");
        }
        // Without `config`, or under a script's `args`; 48.0 is 48.
        for hyper in [json!({"image_size": 48.0}), json!({"args": {"image_size": 48}})] {
            assert_eq!(with(hyper).config.image_grid, Some(3));
        }
    }

    #[test]
    fn hostile_shapes_are_survived() {
        let sizes = [0, 1, 2, 3, 5, 62, 1 << 31, 1 << 32, 1 << 62, usize::MAX - 1, usize::MAX];
        let base = with_buffers(vl_merging(Variant::AllMoe, 10));
        for &size in &sizes {
            for shape in
                [vec![], vec![size], vec![size; 2], vec![1, size, size], vec![size, 1, size, 3], vec![size; 40]]
            {
                let mut shapes = base.clone();
                shapes.iter_mut().for_each(|(_, old)| old.clone_from(&shape));
                let found = detect(&infos(&shapes), Some(&hyper()));
                assert_eq!(found.config.layers, Some(12));
            }
            let found = detect(&with_table(size, size), None);
            assert!(found.config.heads.is_none_or(|heads| heads > 0));
            let found = detect(&with_table(size, 24), Some(&hyper()));
            assert!(found.config.image_grid.is_none_or(|w| w > 0));
        }
        let found = detect(&with_table(62, 25), None);
        assert_eq!(found.warnings[0], "heads: relative_position_bias_table has 25 columns, no multiple of 12 layers");
        let found = detect(&with_table(62, 60), None);
        assert_eq!(found.warnings[0], "heads: hidden size 24 is no multiple of 5 heads");
        let mut shapes = vl_merging(Variant::Ufo, 10);
        add(&mut shapes, "transformer.blocks.4\n.x", &[1]);
        add(&mut shapes, "transformer.blocks.9999.x", &[1]);
        add(&mut shapes, "transformer.blocks.9998.x\u{1b}[2J", &[1]);
        let found = detect(&infos(&shapes), None);
        assert_eq!(found.config.layers, Some(10_000));
        assert_eq!(found.warnings[0], "layers: 9987 of 10000 have no tensors: 12, 13, 14, 15, 16, …");
        assert!(found.evidence.iter().all(|evidence| !evidence.from.contains('\u{1b}')));
    }

    proptest! {
        #[test]
        fn any_shapes_and_sizes_are_survived(
            changes in prop::collection::vec((0usize..60, prop::collection::vec(any::<usize>(), 0..5)), 0..20),
            sizes in prop::collection::vec(any::<i64>(), 10),
        ) {
            let mut shapes = with_buffers(vl_merging(Variant::AllMoe, 10));
            let count = shapes.len();
            for (at, shape) in changes {
                // Most of the sizes that matter stand at the beginning and at the end.
                let at = if at < 30 { at } else { count - (at - 29) };
                shapes[at].1 = shape;
            }
            let mut hyper = hyper();
            for (value, size) in hyper["config"].as_object_mut().unwrap().values_mut().zip(&sizes) {
                *value = json!(size);
            }
            let found = detect(&infos(&shapes), Some(&hyper));
            prop_assert_eq!(found.config.layout.as_deref(), Some("vl-merging"));
        }

        #[test]
        fn whole_models_are_read_back(
            layers in 1usize..30, heads in 1usize..20, w in 1usize..40, text in 1usize..300, patch in 1usize..40
        ) {
            let hidden = heads * 8;
            let mut shapes = Shapes::new();
            add(&mut shapes, "transformer.patch_embed.proj.weight", &[hidden, 3, patch, patch]);
            add(&mut shapes, "relative_position_index", &[w * w + 1, w * w + 1]);
            let rows = (2 * w - 1).pow(2) + 3 + 2 * text + 2;
            add(&mut shapes, "relative_position_bias_table", &[rows, layers * heads]);
            for layer in 0..layers {
                add(&mut shapes, &format!("transformer.blocks.{layer}.mlp.fc1.weight"), &[4 * hidden, hidden]);
            }
            let found = detect(&infos(&shapes), None);
            let config = &found.config;
            prop_assert_eq!((config.layers, config.heads), (Some(layers), Some(heads)));
            prop_assert_eq!((config.image_grid, config.image_size), (Some(w), Some(w * patch)));
            prop_assert_eq!(config.max_text_len_of_initckpt, Some(text));
            prop_assert_eq!(&found.warnings, &Vec::<String>::new());
        }
    }
}
