//! The tensors of a checkpoint under the names that the model has for them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn_backend::{AllocationProperty, Bytes};
use formats::layout::{Buffer, Layout, Modality, PositionTable};
use formats::position::resize_table;
use formats::{Checkpoint, show_name, show_path};
use indexmap::IndexMap;
use rayon::prelude::*;
use thiserror::Error;

use super::build::ReplacedHead;
use super::config::{Architecture, ArchitectureError};

/// A checkpoint that can't be loaded into a model.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    File(#[from] formats::Error),
    #[error("{path}: {reason}")]
    Architecture { path: String, reason: ArchitectureError },
    #[error("{path}: {reason}")]
    Unfit { path: String, reason: String },
}

enum Entry {
    File { tensor: usize, shape: Vec<usize> },
    Memory { shape: Vec<usize>, values: Vec<f32> },
}

/// Tensors by the model's names (those of the vl-merging layout).
pub struct Weights {
    path: String,
    layout: Option<&'static Layout>,
    checkpoint: Option<Checkpoint>,
    entries: IndexMap<String, Entry>,
    /// Values that [`Weights::preload`] has read, by position in the checkpoint.
    ready: Mutex<HashMap<usize, Vec<f32>>>,
    /// Files that [`Weights::map`] has mapped.
    maps: HashMap<PathBuf, bytes::Bytes>,
    /// Text of the metadata that goes along: configuration, recipe, labels.
    metadata: std::collections::BTreeMap<String, String>,
    /// See [`Weights::replace_head`].
    replaced: Option<ReplacedHead>,
}

/// VLMo's names for what vl-merging renamed.
const VLMO_NAMES: [(&str, &str); 4] = [
    ("itc_text_proj.", "ifm_text_proj."),
    ("itc_image_proj.", "ifm_image_proj."),
    ("itc_vl_text_proj.", "ifm_vl_text_proj."),
    ("itc_vl_image_proj.", "ifm_vl_image_proj."),
];

impl Weights {
    /// Opens any checkpoint whose layout this model can run. `image_size` is for one that doesn't say its own.
    ///
    /// # Errors
    /// The file can't be read, its names are of no known layout, or of one that isn't run (BEiT-3), its sizes aren't
    /// known, or its record of its model contradicts what else it shows.
    pub fn open(
        path: &Path,
        root: Option<&str>,
        image_size: Option<usize>,
    ) -> Result<(Weights, Architecture), LoadError> {
        let checkpoint = formats::open_root(path, root)?;
        let shown = show_path(path).to_string();
        let unfit = |reason: String| LoadError::Unfit { path: shown.clone(), reason };
        let Some(layout) = checkpoint.layout() else {
            return Err(unfit("its names are of no known layout; 'vlmerge inspect' shows what is in it".into()));
        };
        match layout.name() {
            "vl-merging" | "vlmo" => {}
            "beit" => {
                return Err(unfit("this is a BEiT: 'vlmerge init' makes a vision-language checkpoint of it".into()));
            }
            other => return Err(unfit(format!("models of layout '{other}' can be merged, but not run"))),
        }
        let detected = checkpoint.settled_config(layout)?;
        let is_table =
            |name: &str| matches!(layout.position_table(name), Some(PositionTable::Relative { per_layer: true, .. }));
        let table = checkpoint.tensors().iter().find(|info| is_table(&info.name));
        let rows = table.map(|info| info.shape.first().copied().unwrap_or(0));
        let architecture = Architecture::of(&detected, rows, image_size)
            .map_err(|reason| LoadError::Architecture { path: shown.clone(), reason })?;
        let mut entries = IndexMap::new();
        for (tensor, info) in checkpoint.tensors().iter().enumerate() {
            if layout.buffer(&info.name) == Some(Buffer::Image) || !info.dtype.is_float() {
                continue;
            }
            let name = model_name(layout, &info.name);
            let entry = Entry::File { tensor, shape: info.shape.clone() };
            if entries.insert(name.clone(), entry).is_some() {
                return Err(unfit(format!("two of its tensors are {}", show_name(&name))));
            }
        }
        let metadata = checkpoint.metadata().clone();
        let (layout, ready) = (Some(layout), Mutex::default());
        Ok((
            Weights {
                path: shown,
                layout,
                checkpoint: Some(checkpoint),
                entries,
                ready,
                maps: HashMap::new(),
                metadata,
                replaced: None,
            },
            architecture,
        ))
    }

    /// No tensors at all: for a model from scratch.
    pub fn none() -> Weights {
        Weights {
            path: "a new model".into(),
            layout: None,
            checkpoint: None,
            entries: IndexMap::new(),
            ready: Mutex::default(),
            maps: HashMap::new(),
            metadata: Default::default(),
            replaced: None,
        }
    }

    /// The file's name for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The names that the file has; `None` for a model from scratch.
    pub fn layout(&self) -> Option<&'static Layout> {
        self.layout
    }

    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    pub fn metadata(&self) -> &std::collections::BTreeMap<String, String> {
        &self.metadata
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| match entry {
            Entry::File { shape, .. } | Entry::Memory { shape, .. } => shape.as_slice(),
        })
    }

    /// The values, row by row. `None` if there is no such tensor.
    pub fn read(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        match (entry, &self.checkpoint) {
            (Entry::Memory { values, .. }, _) => Ok(Some(values.clone())),
            (Entry::File { tensor, .. }, Some(checkpoint)) => {
                if let Some(values) = self.ready.lock().unwrap_or_else(PoisonError::into_inner).remove(tensor) {
                    return Ok(Some(values));
                }
                let mut values = Vec::new();
                checkpoint.read_f32(*tensor, 0..checkpoint.tensors()[*tensor].elements(), &mut values)?;
                Ok(Some(values))
            }
            (Entry::File { .. }, None) => Ok(None),
        }
    }

    /// Reads tensors on all cores, to be handed out by [`Weights::read`], each once.
    ///
    /// # Errors
    /// A tensor can't be read.
    pub fn preload(&self, wanted: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        let tensors: Vec<usize> = self
            .entries
            .iter()
            .filter_map(|(name, entry)| match entry {
                Entry::File { tensor, .. } if wanted(name) => Some(*tensor),
                _ => None,
            })
            .collect();
        tensors.into_par_iter().try_for_each(|tensor| {
            let mut values = Vec::new();
            checkpoint.read_f32(tensor, 0..checkpoint.tensors()[tensor].elements(), &mut values)?;
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).insert(tensor, values);
            Ok(())
        })
    }

    /// Maps the checkpoint's files into memory, for [`Weights::mapped`]; those that can't be are read as ever.
    ///
    /// For a model that is gone in an instant: if a file is cut while it is mapped the program dies.
    pub fn map(&mut self) {
        let Some(checkpoint) = &self.checkpoint else { return };
        for path in checkpoint.paths() {
            // SAFETY: the mapping is only read. Who changes the file meanwhile changes the weights, as with any reader.
            let map = std::fs::File::open(path).and_then(|file| unsafe { memmap2::Mmap::map(&file) });
            if let Ok(map) = map {
                self.maps.insert(path.to_owned(), bytes::Bytes::from_owner(map));
            }
        }
    }

    /// An f32 tensor's bytes where they lie in a mapped file. `None` where they must be read.
    pub fn mapped(&self, name: &str) -> Option<Bytes> {
        let (Some(Entry::File { tensor, .. }), Some(checkpoint)) = (self.entries.get(name), &self.checkpoint) else {
            return None;
        };
        let info = &checkpoint.tensors()[*tensor];
        let (path, start) = checkpoint.span(*tensor)?;
        let map = self.maps.get(path)?;
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(info.bytes())?;
        let fits = info.dtype == formats::Dtype::F32 && cfg!(target_endian = "little") && end <= map.len();
        if !fits || !map[start..].as_ptr().cast::<f32>().is_aligned() {
            return None;
        }
        Some(Bytes::from_shared(map.slice(start..end), AllocationProperty::File))
    }

    /// Some rows of a matrix, one after another; rows may repeat.
    ///
    /// # Errors
    /// There is no such matrix, a row is beyond its end, or it can't be read.
    pub fn rows(&self, name: &str, rows: &[usize]) -> Result<Vec<f32>, LoadError> {
        let unfit = |reason: String| LoadError::Unfit { path: self.path.clone(), reason };
        let Some(&[count, width]) = self.shape(name) else {
            return Err(unfit(format!("{name} is missing or no matrix")));
        };
        if let Some(row) = rows.iter().find(|row| **row >= count) {
            return Err(unfit(format!("{name} has {count} rows, there is no row {row}")));
        }
        let pick = |values: &[f32]| rows.iter().flat_map(|row| &values[row * width..][..width]).copied().collect();
        match (self.entries.get(name), &self.checkpoint) {
            (Some(Entry::Memory { values, .. }), _) => Ok(pick(values)),
            // Many rows are quicker read as one.
            (Some(Entry::File { .. }), _) if rows.len() > count / 8 => Ok(pick(&self.read(name)?.unwrap_or_default())),
            (Some(Entry::File { tensor, .. }), Some(checkpoint)) => {
                let (mut out, mut one) = (Vec::with_capacity(rows.len() * width), Vec::new());
                for row in rows {
                    checkpoint.read_f32(*tensor, row * width..(row + 1) * width, &mut one)?;
                    out.extend_from_slice(&one);
                }
                Ok(out)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// From now on this head's tensors are not there, or only the rows of them that are kept.
    pub fn replace_head(&mut self, head: ReplacedHead) {
        if head.rows.iter().all(Option::is_none) {
            self.entries.retain(|name, _| !is_of(name, head.name));
        }
        self.replaced = Some(head);
    }

    /// Whether a tensor is of a head that was replaced.
    pub fn is_replaced(&self, name: &str) -> bool {
        self.replaced.as_ref().is_some_and(|head| is_of(name, head.name))
    }

    /// For each row of a tensor, the row of the file's that it is; `None` where the file's tensor is taken as a whole.
    pub fn kept_rows(&self, name: &str) -> Option<&[Option<usize>]> {
        let head = self.replaced.as_ref()?;
        (head.is_last_layer(name) && self.entries.contains_key(name)).then_some(&*head.rows)
    }

    /// Adds or replaces a tensor.
    pub fn put(&mut self, name: impl Into<String>, shape: Vec<usize>, values: Vec<f32>) {
        self.entries.insert(name.into(), Entry::Memory { shape, values });
    }

    /// Fits the weights to other images or shorter texts: position tables are resized as `vlmerge resize` does.
    /// Returns what was done, in words.
    ///
    /// # Errors
    /// Sizes that can't be had.
    pub fn fit(
        &mut self,
        a: &mut Architecture,
        image_size: Option<usize>,
        text_len: Option<usize>,
    ) -> Result<Vec<String>, LoadError> {
        let mut done = Vec::new();
        let mut wanted = a.clone();
        wanted.image_size = image_size.unwrap_or(a.image_size);
        wanted.text_len = text_len.unwrap_or(a.text_len);
        let path = self.path.clone();
        wanted.check().map_err(|reason| LoadError::Architecture { path, reason })?;
        if wanted.image_size != a.image_size {
            let (from, to) = (a.grid(), wanted.grid());
            if a.relative_positions {
                let grid = formats::layout::Grid { start: 0, side: 2 * from - 1 };
                self.resize("relative_position_bias_table", grid, 2 * to - 1, wanted.table_rows())?;
            } else {
                let grid = formats::layout::Grid { start: 1, side: from };
                self.resize("transformer.pos_embed", grid, to, 1 + to * to)?;
            }
            done.push(format!("position table resized from {} to {} pixels", a.image_size, wanted.image_size));
        }
        let positions = "text_embeddings.position_embeddings.weight";
        if let Some(&[rows, width]) = self.shape(positions) {
            if rows > wanted.text_len {
                let mut values = self.read(positions)?.unwrap_or_default();
                values.truncate(wanted.text_len * width);
                self.put(positions, vec![wanted.text_len, width], values);
                done.push(format!("text positions cut from {rows} to {} tokens", wanted.text_len));
            } else if rows < wanted.text_len {
                return Err(LoadError::Unfit {
                    path: self.path.clone(),
                    reason: format!("it was trained on texts of {rows} tokens; {} is beyond that", wanted.text_len),
                });
            }
        }
        *a = wanted;
        Ok(done)
    }

    fn resize(&mut self, name: &str, grid: formats::layout::Grid, side: usize, rows: usize) -> Result<(), LoadError> {
        let Some(values) = self.read(name)? else { return Ok(()) };
        let shape = self.shape(name).unwrap_or_default().to_vec();
        let columns = shape.last().copied().unwrap_or(0);
        let had = values.len().checked_div(columns).unwrap_or(0);
        if had + side * side != rows + grid.side * grid.side {
            let reason = format!("{name}: its {had} rows don't hold a grid of {0}x{0}", grid.side);
            return Err(LoadError::Unfit { path: self.path.clone(), reason });
        }
        let table: Vec<f64> = values.into_iter().map(f64::from).collect();
        let resized = resize_table(&table, columns, grid, side);
        let mut shape = shape;
        let axis = shape.len() - 2;
        shape[axis] = rows;
        self.put(name, shape, resized.into_iter().map(|value| value as f32).collect());
        Ok(())
    }
}

/// Whether a tensor is of a head whose name this is.
fn is_of(tensor: &str, head: &str) -> bool {
    tensor.strip_prefix(head).is_some_and(|inner| inner.starts_with('.'))
}

/// The model's name for a checkpoint's.
fn model_name(layout: &Layout, name: &str) -> String {
    let own = Layout::by_name("vl-merging");
    let name = match layout.parse_name(name) {
        Some(expert) => {
            let modality = expert.modality;
            own.and_then(|own| own.expert_name(&expert.slot, modality))
                .unwrap_or_else(|| spelled(&expert.slot, modality))
        }
        None => name.to_owned(),
    };
    let name = name.strip_prefix("module.").unwrap_or(&name);
    for (theirs, ours) in VLMO_NAMES {
        if let Some(rest) = name.strip_prefix(theirs) {
            return format!("{ours}{rest}");
        }
    }
    name.to_owned()
}

fn spelled(slot: &str, modality: Modality) -> String {
    format!("{slot}.{modality}")
}
