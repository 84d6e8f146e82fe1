//! A vision-language checkpoint from a vision one: where training starts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use formats::config::{ModelConfig, Positions, Variant};
use formats::layout::{Becomes, Buffer, Layout, Length, Modality, NewTensor, PositionTable, Start};
use formats::{Checkpoint, Dtype, Error, Result, TensorInfo, show_name};

use crate::jobs::{Fill, Job, Source, listed};
use crate::random::Stream;
use crate::resize::{Table, check_elements, computed, no_square, patches};

/// What a vision checkpoint is to become.
#[derive(Clone, Copy, Debug)]
pub struct Init {
    pub variant: Variant,
    /// Pixels along the side of an image.
    pub image_size: usize,
    /// First layer with a `vl` expert; without it, what published models of this depth have.
    pub vl_start: Option<usize>,
    /// Give the vision weights to the other modalities' experts too.
    pub share_vision: bool,
    /// T0, the longest text the position table shall have distances for; without it, what published models have.
    pub text_len: Option<usize>,
    /// The parts that a vision checkpoint has nothing for; `None` leaves them out.
    pub new: Option<NewParts>,
}

/// What decides the parts that are new.
#[derive(Clone, Copy, Debug)]
pub struct NewParts {
    pub seed: u64,
    /// Words.
    pub vocab_size: usize,
    /// Tokens of a text, padding included.
    pub max_text_len: usize,
}

impl Default for NewParts {
    /// BERT's words, and texts as long as the published models'.
    fn default() -> NewParts {
        NewParts { seed: 0, vocab_size: 30522, max_text_len: 40 }
    }
}

/// Standard deviation of new weights.
const DEVIATION: f64 = 0.02;

/// What initialising makes of a checkpoint.
#[derive(Clone, Debug)]
pub struct Initialised {
    pub jobs: Vec<Job>,
    /// Tensors that have no place in the new model.
    pub dropped: Vec<String>,
    /// Index buffers, which the new model computes.
    pub buffers: Vec<String>,
    /// Tensors that are new, by name.
    pub new: Vec<String>,
    /// The new position table.
    pub table: TensorInfo,
    /// Patches along the side of an image, before and after.
    pub patches: (usize, usize),
    pub config: ModelConfig,
}

/// The jobs that make a vision-language checkpoint of a vision one whose layout says what it becomes: names are
/// changed, vision weights of the parts that have experts become `v`'s and, shared, `l`'s and from vl start on `vl`'s.
/// One position table shared by all layers is repeated for each, tables of the layers are set side by side; its
/// image part is resized, its text rows are zero. What else the new model's layout lists starts as it says there, if
/// [`Init::new`] is given; then the result is a complete model.
///
/// # Errors
/// The layout becomes nothing, a text may be longer than the table has distances for, vl start or the longest text is neither given nor usual, the patches don't tile the
/// image, layers or position tables are missing, or a table has a shape that is none.
pub fn init(checkpoint: &Checkpoint, layout: &Layout, wish: &Init) -> Result<Initialised> {
    let path = checkpoint.path();
    let fault = |reason: String| Error::file(path, reason);
    let becomes = layout.becomes().ok_or_else(|| fault(no_beginning(layout)))?;
    let target = Layout::by_name(becomes.layout()).ok_or_else(|| {
        let (from, to) = (show_name(layout.name()), show_name(becomes.layout()));
        fault(format!("layout '{from}' becomes '{to}', which is no built-in layout"))
    })?;
    let source = checkpoint.settled_config(layout)?.config;
    let renamed = rename(checkpoint, layout, becomes)?;
    let layers = layers(target, &renamed, &source).map_err(fault)?;
    let vl_start = wish.vl_start.or_else(|| target.usual_vl_start(layers));
    match vl_start {
        Some(start) if start > layers => {
            return Err(fault(format!("vl start {start} is beyond its {layers} layers")));
        }
        None if wish.variant != Variant::Ufo && wish.share_vision => {
            return Err(fault(format!(
                "no published model has {layers} layers: give the first with a vl expert (--vl-start)"
            )));
        }
        _ => {}
    }
    let to = patches(wish.image_size, source.patch_size).map_err(fault)?;
    let text_len = wish.text_len.or_else(|| target.usual_text_len());
    let text_len = text_len.ok_or_else(|| fault("how long can a text be? (--max-text-len-of-initckpt)".into()))?;
    if let Some(NewParts { max_text_len, .. }) = wish.new
        && max_text_len > text_len
    {
        return Err(fault(format!(
            "texts of {max_text_len} tokens are longer than the {text_len} that the position table would have distances \
             for (--max-text-len-of-initckpt)"
        )));
    }
    let (table, from) = positions(checkpoint, layout, target, becomes, layers, (to, text_len))?;

    let mut made = Initialised {
        jobs: Vec::new(),
        dropped: Vec::new(),
        buffers: Vec::new(),
        new: Vec::new(),
        table: table.info.clone(),
        patches: (from, to),
        config: ModelConfig {
            layout: Some(target.name().to_string()),
            variant: Some(wish.variant),
            layers: Some(layers),
            vl_start,
            attends: target.usual_attends(wish.variant),
            positions: Some(Positions::Relative),
            image_size: Some(wish.image_size),
            image_grid: Some(to),
            max_text_len_of_initckpt: Some(text_len),
            tasks: BTreeMap::new(),
            ..source
        },
    };
    let dtype = table.info.dtype;
    let mut table = Some(table);
    for (tensor, info) in checkpoint.tensors().iter().enumerate() {
        match &renamed[tensor] {
            Fate::Table => made.jobs.extend(table.take()),
            Fate::Buffer => made.buffers.push(info.name.clone()),
            Fate::Dropped => made.dropped.push(info.name.clone()),
            Fate::Renamed(name) => made.jobs.extend(names(target, name, wish, vl_start).into_iter().map(|name| {
                let info = TensorInfo { name, ..info.clone() };
                Job { info, source: Source::Copy { checkpoint: 0, tensor } }
            })),
        }
    }
    if let Some(new) = &wish.new {
        let hidden_size = made.config.hidden_size;
        let hidden_size = hidden_size.ok_or_else(|| fault("nothing in it tells the model's width".into()))?;
        made.config.vocab_size = Some(new.vocab_size);
        made.config.max_text_len = Some(new.max_text_len);
        made.config.token_types = Some(2);
        for tensor in target.new_tensors() {
            let job = start(tensor, new, hidden_size, dtype);
            made.new.push(job.info.name.clone());
            made.jobs.push(job);
        }
    }
    // A name that is an expert's already would stand beside the expert made for it.
    let mut seen = BTreeSet::new();
    if let Some(twice) = made.jobs.iter().find(|job| !seen.insert(job.info.name.as_str())) {
        return Err(fault(format!("two of its tensors become '{}'", show_name(&twice.info.name))));
    }
    Ok(made)
}

/// The job of a tensor that is new.
fn start(tensor: &NewTensor, new: &NewParts, hidden_size: usize, dtype: Dtype) -> Job {
    let length = |length: &Length| match length {
        Length::Fixed(length) => *length,
        Length::HiddenSize => hidden_size,
        Length::VocabSize => new.vocab_size,
        Length::MaxTextLen => new.max_text_len,
    };
    let shape = tensor.shape.iter().map(length).collect();
    let fill = match tensor.start {
        Start::Constant(value) => Fill::Constant(value),
        Start::Normal => Fill::Normal { deviation: DEVIATION, stream: Stream::new(new.seed, 0, &tensor.name) },
    };
    Job { info: TensorInfo { name: tensor.name.clone(), dtype, shape }, source: Source::New(fill) }
}

/// What becomes of a tensor.
enum Fate {
    Table,
    Buffer,
    Renamed(String),
    Dropped,
}

fn rename(checkpoint: &Checkpoint, layout: &Layout, becomes: &Becomes) -> Result<Vec<Fate>> {
    let tensors = checkpoint.tensors();
    // By new name, the tensor that has it and its rank.
    let mut winners: HashMap<String, (usize, usize)> = HashMap::new();
    for (tensor, info) in tensors.iter().enumerate() {
        let Some((rank, name)) = becomes.rename(&info.name) else { continue };
        match winners.get(&name) {
            Some(&(best, other)) if best == rank => {
                let reason = format!("it and '{}' both become '{}'", show_name(&tensors[other].name), show_name(&name));
                return Err(Error::tensor(checkpoint.path(), &info.name, reason));
            }
            Some(&(best, _)) if best < rank => {}
            _ => {
                winners.insert(name, (rank, tensor));
            }
        }
    }
    let fate = |(tensor, info): (usize, &TensorInfo)| {
        if layout.position_table(&info.name).is_some() {
            return Fate::Table;
        }
        if layout.buffer(&info.name) == Some(Buffer::Image) {
            return Fate::Buffer;
        }
        match becomes.rename(&info.name) {
            Some((_, name)) if winners.get(&name).is_some_and(|&(_, winner)| winner == tensor) => Fate::Renamed(name),
            _ => Fate::Dropped,
        }
    };
    Ok(tensors.iter().enumerate().map(fate).collect())
}

/// How many layers there are: all of them, from 0 on.
fn layers(target: &Layout, renamed: &[Fate], config: &ModelConfig) -> Result<usize, String> {
    let layer = |fate: &Fate| match fate {
        Fate::Renamed(name) => target.parse_slot(name)?.layer,
        _ => None,
    };
    let found: BTreeSet<usize> = renamed.iter().filter_map(layer).collect();
    let count = config.layers.unwrap_or(0).max(found.last().map_or(0, |last| last + 1));
    let missing: Vec<String> =
        (0..count).filter(|layer| !found.contains(layer)).map(|layer| layer.to_string()).collect();
    match missing.as_slice() {
        [] if count > 0 => Ok(count),
        [] => Err("it has no layers".into()),
        missing => Err(format!("layers without weights: {}", listed(missing))),
    }
}

/// The names a tensor gets: its own or, where its part has experts, one for each that gets the vision weights.
fn names(target: &Layout, name: &str, wish: &Init, vl_start: Option<usize>) -> Vec<String> {
    let Some(place) = target.parse_slot(name).filter(|place| wish.variant.has_experts(place.part)) else {
        return vec![name.to_string()];
    };
    let is_deep = place.layer.zip(vl_start).is_some_and(|(layer, start)| layer >= start);
    let has = |modality: &Modality| match modality {
        Modality::Vision => true,
        Modality::Language => wish.share_vision,
        Modality::VisionLanguage => wish.share_vision && is_deep,
    };
    Modality::ALL.into_iter().filter(has).filter_map(|modality| target.expert_name(name, modality)).collect()
}

/// The new model's position table [(2w−1)² + 3 + 2·T0 + 2, layers · heads], and the patches its source was for.
fn positions(
    checkpoint: &Checkpoint,
    layout: &Layout,
    target: &Layout,
    becomes: &Becomes,
    layers: usize,
    (to, text_len): (usize, usize),
) -> Result<(Job, usize)> {
    let tables = source_tables(checkpoint, layout, layers)?;
    let first = &tables[0];
    let from = first.kind.patches(first.rows, 0).ok_or_else(|| first.fault(no_square(first.rows)))?;
    let kind = target.position_table(becomes.positions());
    let Some(kind @ PositionTable::Relative { per_layer: true, text: true }) = kind else {
        let name = show_name(becomes.positions());
        let reason = format!("'{name}' is no joint position table of layout '{}'", target.name());
        return Err(Error::file(checkpoint.path(), reason));
    };
    let heads = first.columns;
    let columns = heads.saturating_mul(layers);
    let rows = kind.rows(to, text_len).unwrap_or(usize::MAX);
    check_elements(rows, columns).map_err(|reason| first.fault(reason))?;

    let mut values = vec![0.0; rows * columns];
    let mut resized = Vec::new();
    for layer in 0..layers {
        // A shared table is its own for every layer.
        if let Some(table) = tables.get(layer) {
            resized = table.values(from, to)?;
        }
        for (row, heads_of_row) in values.chunks_exact_mut(columns).zip(resized.chunks_exact(heads)) {
            row[layer * heads..(layer + 1) * heads].copy_from_slice(heads_of_row);
        }
    }
    let info =
        TensorInfo { name: becomes.positions().to_string(), dtype: first.info().dtype, shape: vec![rows, columns] };
    Ok((computed(checkpoint, info, &values)?, from))
}

/// The checkpoint's one table, or one for each layer, all of one shape.
fn source_tables<'c>(checkpoint: &'c Checkpoint, layout: &Layout, layers: usize) -> Result<Vec<Table<'c>>> {
    let fault = |reason: String| Error::file(checkpoint.path(), reason);
    let mut shared = None;
    let mut by_layer: BTreeMap<usize, Table> = BTreeMap::new();
    for (tensor, info) in checkpoint.tensors().iter().enumerate() {
        let Some(kind) = layout.position_table(&info.name) else { continue };
        let table = Table::new(checkpoint, tensor, kind)?;
        if kind != (PositionTable::Relative { per_layer: false, text: false }) {
            return Err(table.fault("a vision-language model starts from relative positions of one layer's heads"));
        }
        let other = match layout.position_layer(&info.name) {
            Some(layer) => by_layer.insert(layer, table),
            None => shared.replace(table),
        };
        if let Some(other) = other {
            return Err(other.fault(format!("'{}' is the same table", show_name(&info.name))));
        }
    }
    match (shared, by_layer.is_empty()) {
        (Some(shared), true) => return Ok(vec![shared]),
        (Some(shared), false) => return Err(shared.fault("layers have position tables of their own beside this one")),
        (None, true) => return Err(fault("it has no relative position table to start from".into())),
        (None, false) => {}
    }
    let missing: Vec<String> =
        (0..layers).filter(|layer| !by_layer.contains_key(layer)).map(|layer| layer.to_string()).collect();
    if !missing.is_empty() {
        return Err(fault(format!("layers without a position table: {}", listed(&missing))));
    }
    let tables: Vec<Table> = by_layer.into_values().collect();
    let first = tables[0].info();
    if let Some(odd) =
        tables.iter().find(|table| (&table.info().shape, table.info().dtype) != (&first.shape, first.dtype))
    {
        let (own, dtype) = (&odd.info().shape, odd.info().dtype);
        let name = show_name(&first.name);
        return Err(odd.fault(format!("it is {dtype} {own:?}, '{name}' is {} {:?}", first.dtype, first.shape)));
    }
    Ok(tables)
}

fn no_beginning(layout: &Layout) -> String {
    let known = Layout::builtin().iter().filter(|layout| layout.becomes().is_some());
    let known: Vec<&str> = known.map(Layout::name).collect();
    format!(
        "layout '{}' says nothing of what it becomes: a vision-language model starts from one of layout {}, or from one \
         without experts of a layout that has them",
        show_name(layout.name()),
        known.join(", ")
    )
}
