//! A layout's TOML file: what may stand in it, and the checks that make it a [`Layout`].

use std::collections::BTreeMap;
use std::ops::Range;

use indexmap::IndexMap;
use serde::Deserialize;
use toml::Spanned;

use super::pattern::{LAYER, MODALITY, compile, is_placeholder, layer_expression};
use super::{
    Assume, Axis, Becomes, Layout, Length, Linear, Modality, NewTensor, Part, Pattern, PositionTable, Rule, Sizes,
    Start, Task,
};
use crate::config::{Attends, Variant};

/// Larger files are refused unread: a layout is a page of text.
const MAX_BYTES: usize = 1 << 20;
const MAX_AXIS: usize = 7;

/// Reads a layout; the error says on which line what is wrong.
pub fn read(text: &str) -> Result<Layout, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it has {} bytes: a layout has at most {MAX_BYTES}", text.len()));
    }
    let file: File = toml::from_str(text).map_err(|error| {
        let reason = error.message().lines().collect::<Vec<_>>().join(" ");
        Complaint { place: error.span(), reason }.at_line(text)
    })?;
    file.check().map_err(|complaint| complaint.at_line(text))
}

type Text = Spanned<String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Text,
    attends: Option<Attends>,
    #[serde(default)]
    recognise: Vec<Text>,
    #[serde(default)]
    modalities: BTreeMap<String, Text>,
    #[serde(default)]
    placeholders: BTreeMap<String, Text>,
    #[serde(default, rename = "rule")]
    rules: Vec<RawRule>,
    #[serde(default)]
    linear: Vec<RawLinear>,
    #[serde(default, rename = "position")]
    positions: Vec<RawPosition>,
    #[serde(default)]
    buffers: RawBuffers,
    becomes: Option<RawBecomes>,
    #[serde(default)]
    new: Vec<RawNew>,
    #[serde(default)]
    shapes: RawShapes,
    #[serde(default)]
    tasks: IndexMap<String, RawTask>,
    #[serde(default)]
    hyper_parameters: HyperKeys,
    #[serde(default)]
    assume: RawAssume,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    part: Part,
    expert: Text,
    slot: Text,
    #[serde(default)]
    exclude: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLinear {
    slot: Text,
    gram: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPosition {
    name: Text,
    kind: Kind,
    columns: Option<Columns>,
    text: Option<bool>,
    lead: Option<usize>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Relative,
    Absolute,
}

#[derive(Clone, Copy, Deserialize)]
enum Columns {
    #[serde(rename = "heads")]
    Heads,
    #[serde(rename = "layers*heads")]
    LayersHeads,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawBuffers {
    image: Vec<Text>,
    fixed: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBecomes {
    layout: Text,
    positions: Text,
    names: Vec<RawRename>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRename {
    from: Text,
    to: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNew {
    name: Text,
    shape: Vec<Spanned<RawLength>>,
    start: Spanned<RawStart>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawLength {
    Fixed(usize),
    Size(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawStart {
    Constant(f64),
    Named(String),
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawShapes {
    layers: Vec<Text>,
    hidden_size: Vec<RawAxis>,
    mlp_hidden: Vec<RawAxis>,
    patch_size: Vec<RawAxis>,
    image_tokens: Vec<RawAxis>,
    vocab_size: Vec<RawAxis>,
    max_text_len: Vec<RawAxis>,
    token_types: Vec<RawAxis>,
    layer_scale: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAxis {
    name: Text,
    axis: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTask {
    name: Text,
    axis: Option<usize>,
}

/// The keys that hold a model's sizes in a checkpoint's hyper-parameters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HyperKeys {
    pub layers: Option<String>,
    pub vl_start: Option<String>,
    pub hidden_size: Option<String>,
    pub heads: Option<String>,
    pub mlp_ratio: Option<String>,
    pub image_size: Option<String>,
    pub patch_size: Option<String>,
    pub vocab_size: Option<String>,
    pub max_text_len: Option<String>,
    pub max_text_len_of_initckpt: Option<String>,
    /// Tokens of a text that stands beside an image, where they aren't `max_text_len`.
    pub max_joint_text_len: Option<String>,
    /// Lists of keys, with `!` before those that must be false: below vl start text and image keep to themselves when one
    /// list holds, and attend to each other when none does.
    pub within_modality: Vec<Vec<String>>,
    /// By part, lists of keys: the part has experts when all keys of one list are true.
    pub experts: BTreeMap<Part, Vec<Vec<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawAssume {
    max_text_len_of_initckpt: Option<usize>,
    heads_by_hidden_size: BTreeMap<String, Spanned<usize>>,
    vl_start_by_layers: BTreeMap<String, Spanned<usize>>,
    attends: BTreeMap<Variant, Attends>,
}

/// What is wrong, and where in the text.
struct Complaint {
    place: Option<Range<usize>>,
    reason: String,
}

impl Complaint {
    fn new(place: Range<usize>, reason: impl Into<String>) -> Complaint {
        Complaint { place: Some(place), reason: reason.into() }
    }

    fn at_line(self, text: &str) -> String {
        match self.place.and_then(|place| text.as_bytes().get(..place.start)) {
            Some(before) => {
                format!("line {}: {}", before.iter().filter(|&&b| b == b'\n').count() + 1, self.reason)
            }
            None => self.reason,
        }
    }
}

impl File {
    fn check(self) -> Result<Layout, Complaint> {
        let name = self.name.get_ref();
        if name.trim().is_empty() {
            return Err(Complaint::new(self.name.span(), "a layout's name can't be empty"));
        }
        let spellings = spellings(&self.modalities)?;
        if spellings.is_empty() != self.rules.is_empty() {
            let reason = match self.rules.first() {
                Some(_) => "there are rules but no [modalities]",
                None => "there are [modalities] but no [[rule]]",
            };
            return Err(Complaint { place: None, reason: reason.to_string() });
        }
        let holes = Holes::new(&self.placeholders, &spellings)?;
        let rules = self.rules.into_iter().map(|rule| rule.check(&holes)).collect::<Result<_, _>>()?;
        let linear = self.linear.into_iter().map(|linear| linear.check(&holes)).collect::<Result<_, _>>()?;
        let positions = self.positions.into_iter().map(|table| table.check(&holes)).collect::<Result<_, _>>()?;
        Ok(Layout {
            name: name.clone(),
            attends: self.attends,
            rules,
            recognise: holes.plain_patterns(&self.recognise)?,
            linear,
            positions,
            image_buffers: holes.plain_patterns(&self.buffers.image)?,
            fixed_buffers: holes.plain_patterns(&self.buffers.fixed)?,
            becomes: self.becomes.map(|becomes| becomes.check(&holes)).transpose()?,
            new: self.new.into_iter().map(RawNew::check).collect::<Result<_, _>>()?,
            sizes: Sizes {
                layers: holes.layer_patterns(&self.shapes.layers)?,
                hidden_size: holes.axes(&self.shapes.hidden_size)?,
                mlp_hidden: holes.axes(&self.shapes.mlp_hidden)?,
                patch_size: holes.axes(&self.shapes.patch_size)?,
                image_tokens: holes.axes(&self.shapes.image_tokens)?,
                vocab_size: holes.axes(&self.shapes.vocab_size)?,
                max_text_len: holes.axes(&self.shapes.max_text_len)?,
                token_types: holes.axes(&self.shapes.token_types)?,
                layer_scale: holes.layer_patterns(&self.shapes.layer_scale)?,
                tasks: holes.tasks(self.tasks)?,
                hyper_parameters: self.hyper_parameters,
                assume: Assume {
                    max_text_len_of_initckpt: self.assume.max_text_len_of_initckpt,
                    heads_by_hidden_size: pairs(&self.assume.heads_by_hidden_size)?,
                    vl_start_by_layers: pairs(&self.assume.vl_start_by_layers)?,
                    attends: self.assume.attends,
                },
            },
            spellings,
        })
    }
}

impl RawRule {
    fn check(self, holes: &Holes) -> Result<Rule, Complaint> {
        let expert = holes.pattern(&self.expert)?;
        let slot = holes.plain_pattern(&self.slot)?;
        if !expert.has_hole(MODALITY) {
            return Err(Complaint::new(self.expert.span(), "an expert's template needs {modality}"));
        }
        if let Some(lost) = expert.holes().find(|hole| *hole != MODALITY && !slot.has_hole(hole)) {
            let reason = format!("{{{lost}}} of the expert is not in its slot: different experts would be merged");
            return Err(Complaint::new(self.slot.span(), reason));
        }
        if let Some(unknown) = slot.holes().find(|hole| !expert.has_hole(hole)) {
            let reason = format!("{{{unknown}}} of the slot is not in the expert's template");
            return Err(Complaint::new(self.slot.span(), reason));
        }
        Ok(Rule { part: self.part, expert, slot, exclude: holes.plain_patterns(&self.exclude)? })
    }
}

impl RawLinear {
    fn check(self, holes: &Holes) -> Result<Linear, Complaint> {
        let slot = holes.plain_pattern(&self.slot)?;
        let gram = holes.pattern(&self.gram)?;
        if !gram.has_hole(MODALITY) {
            return Err(Complaint::new(self.gram.span(), "a gram's template needs {modality}"));
        }
        if let Some(unknown) = gram.holes().find(|hole| *hole != MODALITY && !slot.has_hole(hole)) {
            let reason = format!("{{{unknown}}} of the gram is not in the slot's template");
            return Err(Complaint::new(self.gram.span(), reason));
        }
        Ok(Linear { slot, gram })
    }
}

impl RawPosition {
    fn check(self, holes: &Holes) -> Result<(Pattern, PositionTable), Complaint> {
        let pattern = holes.plain_pattern(&self.name)?;
        let table = match (self.kind, self.columns, self.text, self.lead) {
            (Kind::Relative, Some(columns), text, None) => PositionTable::Relative {
                per_layer: matches!(columns, Columns::LayersHeads),
                text: text.unwrap_or(false),
            },
            (Kind::Absolute, None, None, Some(lead)) => PositionTable::Absolute { lead },
            (Kind::Relative, ..) => {
                let reason = "a relative position table has `columns`, may have `text`, and has no `lead`";
                return Err(Complaint::new(self.name.span(), reason));
            }
            (Kind::Absolute, ..) => {
                let reason = "an absolute position table has `lead` and neither `columns` nor `text`";
                return Err(Complaint::new(self.name.span(), reason));
            }
        };
        Ok((pattern, table))
    }
}

impl RawBecomes {
    fn check(self, holes: &Holes) -> Result<Becomes, Complaint> {
        let rename = |rename: &RawRename| {
            let (from, to) = (holes.plain_pattern(&rename.from)?, holes.plain_pattern(&rename.to)?);
            if let Some(unknown) = to.holes().find(|hole| !from.has_hole(hole)) {
                return Err(Complaint::new(rename.to.span(), format!("{{{unknown}}} is not in `from`")));
            }
            Ok((from, to))
        };
        Ok(Becomes {
            names: self.names.iter().map(rename).collect::<Result<_, _>>()?,
            layout: self.layout.into_inner(),
            positions: self.positions.into_inner(),
        })
    }
}

impl RawNew {
    fn check(self) -> Result<NewTensor, Complaint> {
        let name = self.name.get_ref();
        if name.is_empty() || name.contains(['{', '}']) {
            return Err(Complaint::new(self.name.span(), "a new tensor has one name, without placeholders"));
        }
        let length = |length: &Spanned<RawLength>| match length.get_ref() {
            RawLength::Fixed(length) => Ok(Length::Fixed(*length)),
            RawLength::Size(size) => match size.as_str() {
                "hidden_size" => Ok(Length::HiddenSize),
                "vocab_size" => Ok(Length::VocabSize),
                "max_text_len" => Ok(Length::MaxTextLen),
                other => {
                    let reason = format!("no size '{other}': it is hidden_size, vocab_size, max_text_len or a number");
                    Err(Complaint::new(length.span(), reason))
                }
            },
        };
        let start = match self.start.get_ref() {
            RawStart::Constant(value) if value.is_finite() => Start::Constant(*value),
            RawStart::Named(name) if name == "normal" => Start::Normal,
            _ => {
                return Err(Complaint::new(self.start.span(), "a tensor starts as \"normal\" or with a finite number"));
            }
        };
        Ok(NewTensor { name: name.clone(), shape: self.shape.iter().map(length).collect::<Result<_, _>>()?, start })
    }
}

/// The placeholders templates can use.
struct Holes(BTreeMap<String, String>);

impl Holes {
    fn new(defined: &BTreeMap<String, Text>, spellings: &[(Modality, String)]) -> Result<Holes, Complaint> {
        let mut holes = BTreeMap::new();
        for (name, expression) in defined {
            let fault = |reason: String| Complaint::new(expression.span(), format!("placeholder '{name}': {reason}"));
            if !is_placeholder(name) {
                return Err(fault("use lower-case letters, digits and '_'".to_string()));
            }
            if name == LAYER || name == MODALITY {
                return Err(fault("it is built in".to_string()));
            }
            // On its own first, so that no bracket closes one that isn't its own.
            compile(expression.get_ref()).map_err(fault)?;
            holes.insert(name.clone(), expression.get_ref().clone());
        }
        holes.insert(LAYER.to_string(), layer_expression());
        if !spellings.is_empty() {
            let any: Vec<String> = spellings.iter().map(|(_, spelling)| regex::escape(spelling)).collect();
            holes.insert(MODALITY.to_string(), any.join("|"));
        }
        Ok(Holes(holes))
    }

    fn pattern(&self, template: &Text) -> Result<Pattern, Complaint> {
        let found = Pattern::new(template.get_ref(), &self.0);
        found.map_err(|reason| Complaint::new(template.span(), reason))
    }

    /// A template of names that belong to no modality.
    fn plain_pattern(&self, template: &Text) -> Result<Pattern, Complaint> {
        let pattern = self.pattern(template)?;
        match pattern.has_hole(MODALITY) {
            true => Err(Complaint::new(template.span(), "{modality} has no meaning here")),
            false => Ok(pattern),
        }
    }

    fn plain_patterns(&self, templates: &[Text]) -> Result<Vec<Pattern>, Complaint> {
        templates.iter().map(|template| self.plain_pattern(template)).collect()
    }

    fn layer_patterns(&self, templates: &[Text]) -> Result<Vec<Pattern>, Complaint> {
        let patterns = self.plain_patterns(templates)?;
        match patterns.iter().position(|pattern| !pattern.has_hole(LAYER)) {
            Some(index) => Err(Complaint::new(templates[index].span(), "it needs {layer}")),
            None => Ok(patterns),
        }
    }

    fn axes(&self, axes: &[RawAxis]) -> Result<Vec<Axis>, Complaint> {
        let checked = axes
            .iter()
            .map(|axis| Ok(Axis { name: self.plain_pattern(&axis.name)?, axis: check_axis(axis.axis, &axis.name)? }));
        checked.collect()
    }

    fn tasks(&self, tasks: IndexMap<String, RawTask>) -> Result<Vec<Task>, Complaint> {
        let checked = tasks.into_iter().map(|(task, head)| {
            let axis = head.axis.map(|axis| check_axis(axis, &head.name)).transpose()?;
            Ok(Task { task, name: self.plain_pattern(&head.name)?, axis })
        });
        checked.collect()
    }
}

fn check_axis(axis: usize, near: &Text) -> Result<usize, Complaint> {
    match axis <= MAX_AXIS {
        true => Ok(axis),
        false => Err(Complaint::new(near.span(), format!("axis {axis}: tensors have axes 0 to {MAX_AXIS}"))),
    }
}

/// The modalities in the order v, l, vl.
fn spellings(modalities: &BTreeMap<String, Text>) -> Result<Vec<(Modality, String)>, Complaint> {
    let mut spellings: Vec<(Modality, String)> = Vec::new();
    for (key, spelling) in modalities {
        let modality = key.parse().map_err(|reason: String| Complaint::new(spelling.span(), reason))?;
        let text = spelling.get_ref();
        if text.is_empty() {
            return Err(Complaint::new(spelling.span(), format!("modality {key} needs a spelling")));
        }
        if let Some((other, _)) = spellings.iter().find(|(_, known)| known == text) {
            let reason = format!("modalities {other} and {key} are both spelled '{text}'");
            return Err(Complaint::new(spelling.span(), reason));
        }
        spellings.push((modality, text.clone()));
    }
    spellings.sort_unstable();
    Ok(spellings)
}

fn pairs(table: &BTreeMap<String, Spanned<usize>>) -> Result<Vec<(usize, usize)>, Complaint> {
    let number = |key: &String, value: &Spanned<usize>| match key.parse() {
        Ok(key) => Ok((key, *value.get_ref())),
        Err(_) => Err(Complaint::new(value.span(), format!("'{key}' is no number"))),
    };
    table.iter().map(|(key, value)| number(key, value)).collect()
}
