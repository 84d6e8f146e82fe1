//! Layouts: what the names inside a checkpoint mean.
//!
//! A layout is data, a TOML file of rules from a tensor's name to the *slot* it fills, its layer
//! and its modality, with everything else that merging, grams, distances and resizing need to
//! know about names. Code that works on a checkpoint asks the layout and knows no name itself.
//!
//! A **slot** is a place for one tensor in a model with one set of weights, under the name it has
//! there: `transformer.blocks.3.mlp.fc1.weight`. An **expert** is one modality's tensor for a
//! slot: `transformer.blocks.3.mlp.v.fc1.weight`.

mod experts;
mod file;
mod pattern;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::config::{Attends, Variant};
use crate::{Error, Result};

pub use experts::{Experts, Slot, group};
pub(crate) use file::HyperKeys;
pub use pattern::MAX_LAYERS;
pub(crate) use pattern::{Pattern, Reading};

/// A kind of input that a modality-specific model keeps separate weights for.
/// The order v, l, vl is the order in which experts are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Modality {
    #[serde(rename = "v")]
    Vision,
    #[serde(rename = "l")]
    Language,
    #[serde(rename = "vl")]
    VisionLanguage,
}

impl Modality {
    pub const ALL: [Modality; 3] = [Modality::Vision, Modality::Language, Modality::VisionLanguage];
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Modality::Vision => "v",
            Modality::Language => "l",
            Modality::VisionLanguage => "vl",
        })
    }
}

impl FromStr for Modality {
    type Err = String;

    fn from_str(text: &str) -> Result<Modality, String> {
        let found = Modality::ALL.into_iter().find(|modality| modality.to_string() == text);
        found.ok_or_else(|| format!("no modality '{text}': it is v, l or vl"))
    }
}

/// What a slot belongs to in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    Attention,
    Mlp,
    /// The norm before attention.
    Norm1,
    /// The norm before the MLP.
    Norm2,
    Other,
}

impl Part {
    pub const ALL: [Part; 5] = [Part::Attention, Part::Mlp, Part::Norm1, Part::Norm2, Part::Other];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Part::Attention => "attention",
            Part::Mlp => "mlp",
            Part::Norm1 => "norm1",
            Part::Norm2 => "norm2",
            Part::Other => "other",
        })
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        let found = Part::ALL.into_iter().find(|part| part.to_string() == text);
        found.ok_or_else(|| format!("no part '{text}': it is attention, mlp, norm1, norm2 or other"))
    }
}

/// The naming scheme of one family of checkpoints.
#[derive(Clone, Debug)]
pub struct Layout {
    name: String,
    /// What every model of the layout attends to below vl start.
    pub(crate) attends: Option<Attends>,
    /// How the layout spells each modality it has, in the order v, l, vl.
    spellings: Vec<(Modality, String)>,
    rules: Vec<Rule>,
    recognise: Vec<Pattern>,
    linear: Vec<Linear>,
    positions: Vec<(Pattern, PositionTable)>,
    image_buffers: Vec<Pattern>,
    fixed_buffers: Vec<Pattern>,
    becomes: Option<Becomes>,
    new: Vec<NewTensor>,
    /// Where [`crate::config`] reads the model's sizes.
    pub(crate) sizes: Sizes,
}

#[derive(Clone, Debug)]
struct Rule {
    part: Part,
    expert: Pattern,
    slot: Pattern,
    exclude: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Linear {
    slot: Pattern,
    gram: Pattern,
}

/// How a checkpoint of one layout becomes the beginning of a vision-language one of another.
#[derive(Clone, Debug)]
pub struct Becomes {
    layout: String,
    positions: String,
    /// From, to.
    names: Vec<(Pattern, Pattern)>,
}

impl Becomes {
    /// The name of the other layout, a built-in one.
    pub fn layout(&self) -> &str {
        &self.layout
    }

    /// The other layout's relative position table, which takes the place of all of this one's.
    pub fn positions(&self) -> &str {
        &self.positions
    }

    /// A tensor's name in the other layout, as in a model with one set of weights, and its rank: of several tensors
    /// that would get one name, the one of the lowest rank has it. `None` for tensors without a place there.
    pub fn rename(&self, name: &str) -> Option<(usize, String)> {
        self.names.iter().enumerate().find_map(|(rank, (from, to))| {
            let reading = from.read(name)?;
            Some((rank, to.write(|hole| reading.get(hole))?))
        })
    }
}

/// A tensor of a complete model that a vision checkpoint has nothing for.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTensor {
    pub name: String,
    pub shape: Vec<Length>,
    pub start: Start,
}

/// The length of a new tensor's axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Fixed(usize),
    HiddenSize,
    VocabSize,
    MaxTextLen,
}

/// The values that a new tensor starts with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    Constant(f64),
    /// Normal with mean 0 and standard deviation 0.02.
    Normal,
}

/// What a layout says about finding a model's configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sizes {
    /// Names whose `{layer}` numbers the layers.
    pub layers: Vec<Pattern>,
    pub hidden_size: Vec<Axis>,
    pub mlp_hidden: Vec<Axis>,
    pub patch_size: Vec<Axis>,
    /// Axes of length w² + 1, for images of w × w patches.
    pub image_tokens: Vec<Axis>,
    pub vocab_size: Vec<Axis>,
    pub max_text_len: Vec<Axis>,
    pub token_types: Vec<Axis>,
    /// Vectors that a layer's outputs are scaled by; none of them is there in a model without layer scale.
    pub layer_scale: Vec<Pattern>,
    pub tasks: Vec<Task>,
    pub hyper_parameters: HyperKeys,
    pub assume: Assume,
}

/// An axis of a tensor, whose length is some size of the model.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub name: Pattern,
    pub axis: usize,
}

/// The tensor that shows that a task's head is present, and the axis that counts its labels.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub task: String,
    pub name: Pattern,
    pub axis: Option<usize>,
}

/// Values that hold for every published model of a family.
#[derive(Clone, Debug, Default)]
pub(crate) struct Assume {
    pub max_text_len_of_initckpt: Option<usize>,
    pub heads_by_hidden_size: Vec<(usize, usize)>,
    pub vl_start_by_layers: Vec<(usize, usize)>,
    pub attends: BTreeMap<Variant, Attends>,
}

/// A tensor's name taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertName {
    /// The tensor's name in a model with one set of weights.
    pub slot: String,
    /// The layer, counted from 0; `None` for parts outside the layers.
    pub layer: Option<usize>,
    pub part: Part,
    pub modality: Modality,
}

/// Where a slot is in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPlace {
    pub layer: Option<usize>,
    pub part: Part,
}

/// A table of learned positions, which follows the image size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionTable {
    /// Relative position bias, [rows, columns]: the (2w−1)² distances of w × w patches first, then
    /// rows that are no distances in the image: three for the class token and, with `text`, two
    /// between text and image and 2·T0 for distances in a text of at most T0 tokens.
    /// Columns are heads, or with `per_layer` layers·heads.
    Relative { per_layer: bool, text: bool },
    /// Absolute positions, [rows, D] or [1, rows, D]: `lead` rows that are no patches, then w².
    Absolute { lead: usize },
}

/// The rows of a position table that form a square, row-major grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// The first row that belongs to the grid; rows before it and from `start + side²` on are others.
    pub start: usize,
    pub side: usize,
}

impl PositionTable {
    /// The grid in a table for images of `w` × `w` patches; `None` for w = 0 or beyond any memory.
    pub fn grid(self, w: usize) -> Option<Grid> {
        let (start, side) = match self {
            PositionTable::Relative { .. } => (0, w.checked_mul(2)?.checked_sub(1)?),
            PositionTable::Absolute { lead } => (lead, w),
        };
        start.checked_add(side.checked_mul(side)?)?;
        (side > 0).then_some(Grid { start, side })
    }

    /// Rows of the table for images of `w` × `w` patches and, where it has text rows, texts of at most
    /// `t0` tokens.
    pub fn rows(self, w: usize, t0: usize) -> Option<usize> {
        let Grid { start, side } = self.grid(w)?;
        start.checked_add(side.checked_mul(side)?)?.checked_add(self.other_rows(t0)?)
    }

    /// Patches along an image's side, for a table of `rows` rows; the inverse of [`PositionTable::rows`].
    pub fn patches(self, rows: usize, t0: usize) -> Option<usize> {
        let lead = if let PositionTable::Absolute { lead } = self { lead } else { 0 };
        let cells = rows.checked_sub(self.other_rows(t0)?)?.checked_sub(lead)?;
        let side = cells.isqrt();
        let w = match self {
            PositionTable::Relative { .. } => (side / 2).checked_add(side % 2)?,
            PositionTable::Absolute { .. } => side,
        };
        (self.rows(w, t0) == Some(rows)).then_some(w)
    }

    /// T0, the longest text that a table with text rows has distances for, from its rows and `w`.
    pub fn text_len(self, rows: usize, w: usize) -> Option<usize> {
        let PositionTable::Relative { text: true, .. } = self else { return None };
        let text = rows.checked_sub(self.rows(w, 0)?)?;
        (text > 0 && text % 2 == 0).then_some(text / 2)
    }

    /// Rows after the grid.
    fn other_rows(self, t0: usize) -> Option<usize> {
        match self {
            PositionTable::Relative { text: true, .. } => t0.checked_mul(2)?.checked_add(5),
            PositionTable::Relative { text: false, .. } => Some(3),
            PositionTable::Absolute { .. } => Some(0),
        }
    }
}

/// A tensor that follows from the configuration and is no parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// It changes with the image size, so resizing drops it.
    Image,
    Fixed,
}

/// A layout recognised from names.
#[derive(Clone, Debug)]
pub struct Detection {
    pub layout: &'static Layout,
    /// How many names are experts; 0 for a modality-agnostic checkpoint of a known layout.
    pub experts: usize,
    /// A name that shows the layout.
    pub example: String,
}

static BUILTIN: LazyLock<Vec<Layout>> = LazyLock::new(|| {
    let files = [
        ("vl-merging.toml", include_str!("../layouts/vl-merging.toml")),
        ("beit.toml", include_str!("../layouts/beit.toml")),
        ("vlmo.toml", include_str!("../layouts/vlmo.toml")),
        ("beit3.toml", include_str!("../layouts/beit3.toml")),
    ];
    files.map(|(file, text)| Layout::from_toml(text, file).expect("the built-in layouts are tested")).into()
});

impl Layout {
    /// The layouts this library knows: `vl-merging`, `beit`, which has no experts, `vlmo` and `beit3`.
    pub fn builtin() -> &'static [Layout] {
        &BUILTIN
    }

    pub fn by_name(name: &str) -> Option<&'static Layout> {
        Layout::builtin().iter().find(|layout| layout.name == name)
    }

    /// Reads a layout from TOML. `source_name` is the file named in errors, which also name the line.
    pub fn from_toml(text: &str, source_name: &str) -> Result<Layout> {
        file::read(text).map_err(|reason| Error::file(source_name, reason))
    }

    /// Recognises a built-in layout: the one with the most experts or, where no layout finds any, the
    /// most particular one that recognises a name. `None` is an unknown layout.
    pub fn detect<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<Detection> {
        let layouts = Layout::builtin();
        let mut experts: Vec<(usize, &str)> = vec![(0, ""); layouts.len()];
        let mut recognised: Vec<Option<&str>> = vec![None; layouts.len()];
        for name in names {
            for (index, layout) in layouts.iter().enumerate() {
                if layout.parse_name(name).is_some() {
                    let (count, example) = &mut experts[index];
                    if *count == 0 {
                        *example = name;
                    }
                    *count += 1;
                } else if recognised[index].is_none() && layout.recognises(name) {
                    recognised[index] = Some(name);
                }
            }
        }
        let most = experts.iter().map(|&(count, _)| count).max().unwrap_or(0);
        if most > 0 {
            let index = experts.iter().position(|&(count, _)| count == most)?;
            return Some(Detection { layout: &layouts[index], experts: most, example: experts[index].1.to_string() });
        }
        // Later layouts in the built-in list share names with earlier ones, and have names that these lack.
        let index = recognised.iter().rposition(|name| name.is_some())?;
        Some(Detection { layout: &layouts[index], experts: 0, example: recognised[index]?.to_string() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The modalities this layout can have experts for, in the order v, l, vl.
    pub fn modalities(&self) -> impl Iterator<Item = Modality> {
        self.spellings.iter().map(|&(modality, _)| modality)
    }

    /// Whether the layout has rules for experts at all.
    pub fn has_experts(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Takes an expert's name apart; `None` for every other tensor.
    pub fn parse_name(&self, name: &str) -> Option<ExpertName> {
        let (expert, _) = self.read_expert(name)?;
        // A slot that is an expert again (`attn.v.v.weight`) would make merging its own input.
        self.read_expert(&expert.slot).is_none().then_some(expert)
    }

    /// Where a tensor of a model with one set of weights stands; `None` when no rule makes such a slot.
    pub fn parse_slot(&self, name: &str) -> Option<SlotPlace> {
        let (rule, reading) = self.read_slot(name)?;
        Some(SlotPlace { layer: reading.layer(), part: rule.part })
    }

    /// The name that a slot's expert has: `parse_name` backwards. `None` for names that are no slot and
    /// for modalities the layout lacks.
    pub fn expert_name(&self, slot: &str, modality: Modality) -> Option<String> {
        let spelling = self.spelling(modality)?;
        let (rule, reading) = self.read_slot(slot)?;
        let name =
            rule.expert.write(|hole| if hole == pattern::MODALITY { Some(spelling) } else { reading.get(hole) })?;
        let back = self.parse_name(&name)?;
        (back.slot == slot && back.modality == modality).then_some(name)
    }

    /// The name of the same slot's expert of another modality.
    pub fn sibling(&self, expert: &str, modality: Modality) -> Option<String> {
        let spelling = self.spelling(modality)?;
        self.parse_name(expert)?;
        let (_, span) = self.read_expert(expert)?;
        Some(format!("{}{spelling}{}", &expert[..span.start], &expert[span.end..]))
    }

    /// The name, in a gram file, of the gram matrix [d, d] of the inputs that a modality's expert of this
    /// slot saw, if the slot is the weight [out, d] of a linear layer.
    pub fn gram_name(&self, slot: &str, modality: Modality) -> Option<String> {
        let spelling = self.spelling(modality)?;
        self.linear.iter().find_map(|linear| {
            let reading = linear.slot.read(slot)?;
            linear.gram.write(|hole| if hole == pattern::MODALITY { Some(spelling) } else { reading.get(hole) })
        })
    }

    /// Whether a slot is the weight of a linear layer.
    pub fn is_linear(&self, slot: &str) -> bool {
        self.linear.iter().any(|linear| linear.slot.matches(slot))
    }

    /// The kind of position table a tensor is, if it is one.
    pub fn position_table(&self, name: &str) -> Option<PositionTable> {
        self.positions.iter().find(|(pattern, _)| pattern.matches(name)).map(|&(_, table)| table)
    }

    /// The layer that a position table belongs to; `None` for one that stands outside the layers, and for other tensors.
    pub fn position_layer(&self, name: &str) -> Option<usize> {
        self.positions.iter().find_map(|(pattern, _)| pattern.read(name))?.layer()
    }

    /// Whether, and how, a tensor follows from the configuration.
    pub fn buffer(&self, name: &str) -> Option<Buffer> {
        if self.image_buffers.iter().any(|pattern| pattern.matches(name)) {
            return Some(Buffer::Image);
        }
        self.fixed_buffers.iter().any(|pattern| pattern.matches(name)).then_some(Buffer::Fixed)
    }

    /// What a vision-language model is initialised with from a checkpoint of this layout.
    pub fn becomes(&self) -> Option<&Becomes> {
        self.becomes.as_ref()
    }

    /// What a complete model of this layout has beside the parts of a vision model. Heads of tasks aren't among it.
    pub fn new_tensors(&self) -> &[NewTensor] {
        &self.new
    }

    /// Whether the layout has names for experts of a part.
    pub fn has_experts_in(&self, part: Part) -> bool {
        self.rules.iter().any(|rule| rule.part == part)
    }

    /// The rules that none of these names is an expert or a slot by: their part, and the template of their experts.
    pub fn idle_rules<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Vec<(Part, String)> {
        let mut idle: Vec<bool> = vec![true; self.rules.len()];
        for name in names {
            for (idle, rule) in idle.iter_mut().zip(&self.rules).filter(|(idle, _)| **idle) {
                *idle = rule.expert.read(name).is_none() && rule.slot.read(name).is_none();
            }
        }
        let idle = self.rules.iter().zip(idle).filter(|(_, idle)| *idle);
        idle.map(|(rule, _)| (rule.part, rule.expert.template())).collect()
    }

    /// First layer with a `vl` expert in published models of this layout and depth.
    pub fn usual_vl_start(&self, layers: usize) -> Option<usize> {
        let starts = &self.sizes.assume.vl_start_by_layers;
        starts.iter().find(|&&(depth, _)| depth == layers).map(|&(_, start)| start)
    }

    /// What a token attends to below vl start in published models of this layout.
    pub fn usual_attends(&self, variant: Variant) -> Option<Attends> {
        self.attends.or_else(|| self.sizes.assume.attends.get(&variant).copied())
    }

    /// T0, the longest text that published models' relative position tables have distances for.
    pub fn usual_text_len(&self) -> Option<usize> {
        self.sizes.assume.max_text_len_of_initckpt
    }

    /// Whether a checkpoint with a tensor of this name can be of this layout: it shows the layout, or fills a slot of it.
    pub fn admits(&self, name: &str) -> bool {
        self.recognises(name) || self.parse_name(name).is_some() || self.parse_slot(name).is_some()
    }

    /// Whether a name shows that a checkpoint without experts is of this layout.
    pub fn recognises(&self, name: &str) -> bool {
        self.recognise.iter().any(|pattern| pattern.matches(name))
    }

    fn spelling(&self, modality: Modality) -> Option<&str> {
        self.spellings.iter().find(|&&(known, _)| known == modality).map(|(_, spelling)| spelling.as_str())
    }

    fn read_expert(&self, name: &str) -> Option<(ExpertName, std::ops::Range<usize>)> {
        self.rules.iter().find_map(|rule| {
            let reading = rule.expert.read(name)?;
            if rule.exclude.iter().any(|pattern| pattern.matches(name)) {
                return None;
            }
            let spelled = reading.get(pattern::MODALITY)?;
            let modality = self.spellings.iter().find(|(_, spelling)| spelling == spelled)?.0;
            let slot = rule.slot.write(|hole| reading.get(hole))?;
            let span = reading.span(pattern::MODALITY)?;
            Some((ExpertName { slot, layer: reading.layer(), part: rule.part, modality }, span))
        })
    }

    fn read_slot<'n>(&self, name: &'n str) -> Option<(&Rule, Reading<'n>)> {
        if self.read_expert(name).is_some() {
            return None;
        }
        self.rules.iter().find_map(|rule| {
            let reading = rule.slot.read(name)?;
            (!rule.exclude.iter().any(|pattern| pattern.matches(name))).then_some((rule, reading))
        })
    }
}

#[cfg(test)]
mod tests;
