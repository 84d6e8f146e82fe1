//! A checkpoint for images of another size.

use formats::config::ModelConfig;
use formats::layout::{Buffer, Grid, Layout, PositionTable};
use formats::position::resize_table;
use formats::{Checkpoint, Error, Result, TensorInfo, encode_f64, show_name};

use crate::jobs::{Job, Source};

/// What resizing makes of a checkpoint.
#[derive(Clone, Debug)]
pub struct Resized {
    pub jobs: Vec<Job>,
    /// Every position table, resized or, at its own size already, not.
    pub tables: Vec<ResizedTable>,
    /// Index buffers that don't fit the new size; none where nothing was resized.
    pub dropped: Vec<String>,
    /// The checkpoint's configuration with the new size.
    pub config: ModelConfig,
}

/// One position table, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizedTable {
    pub name: String,
    /// Patches along the side of an image.
    pub patches: (usize, usize),
    pub shape: (Vec<usize>, Vec<usize>),
}

/// The jobs that make a checkpoint one for images of `image_size` × `image_size` pixels: grids in position tables
/// are resized as [`formats::position`] does, their other rows and all other tensors kept, index buffers that change
/// with the image size left out. At the checkpoint's own size everything is copied.
///
/// `text_len` is T0, where neither the file nor its buffers tell how many of a table's rows are for text.
///
/// # Errors
/// The patches don't tile such an image; the checkpoint has no position table, or one of a shape that is none; its record
/// of its model contradicts what else it shows.
pub fn resize(checkpoint: &Checkpoint, layout: &Layout, image_size: usize, text_len: Option<usize>) -> Result<Resized> {
    let path = checkpoint.path();
    let mut config = checkpoint.settled_config(layout)?.config;
    let to = patches(image_size, config.patch_size).map_err(|reason| Error::file(path, reason))?;
    let tensors = checkpoint.tensors();
    let mut tables = Vec::new();
    for (tensor, info) in tensors.iter().enumerate() {
        if let Some(kind) = layout.position_table(&info.name) {
            let table = Table::new(checkpoint, tensor, kind)?;
            let from = table.patches(&config, text_len).map_err(|reason| table.fault(reason))?;
            config.max_text_len_of_initckpt = kind.text_len(table.rows, from).or(config.max_text_len_of_initckpt);
            tables.push((table, from));
        }
    }
    if tables.is_empty() {
        let layout = show_name(layout.name());
        return Err(Error::file(path, format!("it has none of the position tables of layout '{layout}'")));
    }
    config.image_size = Some(image_size);
    config.image_grid = Some(to);

    let all_fit = tables.iter().all(|&(_, from)| from == to);
    let mut resized = Resized { jobs: Vec::new(), tables: Vec::new(), dropped: Vec::new(), config };
    let mut tables = tables.into_iter().peekable();
    for (tensor, info) in tensors.iter().enumerate() {
        let copy = || Job { info: info.clone(), source: Source::Copy { checkpoint: 0, tensor } };
        let job = match tables.next_if(|(table, _)| table.tensor == tensor) {
            Some((table, from)) => {
                let job = if from == to { copy() } else { table.resized(from, to)? };
                let shape = (info.shape.clone(), job.info.shape.clone());
                resized.tables.push(ResizedTable { name: info.name.clone(), patches: (from, to), shape });
                job
            }
            None if !all_fit && layout.buffer(&info.name) == Some(Buffer::Image) => {
                resized.dropped.push(info.name.clone());
                continue;
            }
            None => copy(),
        };
        resized.jobs.push(job);
    }
    Ok(resized)
}

/// Patches along the side of an image.
pub(crate) fn patches(image_size: usize, patch_size: Option<usize>) -> Result<usize, String> {
    let Some(patch) = patch_size.filter(|&patch| patch > 0) else {
        return Err("nothing in it tells the size of a patch (a layout's [shapes] patch_size says where it is)".into());
    };
    match image_size / patch {
        w if w > 0 && w * patch == image_size => Ok(w),
        0 => Err(format!("an image of {image_size} pixels is smaller than a patch of {patch}")),
        w => {
            let (below, above) = (w * patch, (w + 1) * patch);
            Err(format!("patches of {patch} pixels don't tile an image of {image_size}: {below} and {above} would do"))
        }
    }
}

/// A position table in a checkpoint: [rows, columns] or [1, rows, columns].
pub(crate) struct Table<'c> {
    pub checkpoint: &'c Checkpoint,
    pub tensor: usize,
    pub kind: PositionTable,
    pub rows: usize,
    pub columns: usize,
}

impl<'c> Table<'c> {
    pub fn new(checkpoint: &'c Checkpoint, tensor: usize, kind: PositionTable) -> Result<Table<'c>> {
        let info = &checkpoint.tensors()[tensor];
        let (rows, columns) = match info.shape[..] {
            [rows, columns] | [1, rows, columns] => (rows, columns),
            _ => (0, 0),
        };
        let table = Table { checkpoint, tensor, kind, rows, columns };
        if rows == 0 || columns == 0 {
            return Err(table.fault(format!("a position table is [rows, columns], this is {:?}", info.shape)));
        }
        if !info.dtype.is_float() {
            return Err(table.fault(format!("a position table of {} can't be resized", info.dtype)));
        }
        check_elements(rows, columns).map_err(|reason| table.fault(reason))?;
        Ok(table)
    }

    /// Patches along the side of the images that the table is for.
    fn patches(&self, config: &ModelConfig, text_len: Option<usize>) -> Result<usize, String> {
        let rows = self.rows;
        if !matches!(self.kind, PositionTable::Relative { text: true, .. }) {
            return self.kind.patches(rows, 0).ok_or_else(|| no_square(rows));
        }
        match text_len {
            Some(text_len) => self.kind.patches(rows, text_len).ok_or_else(|| {
                format!(
                    "of its {rows} rows, 2 × {text_len} + 5 for texts of {text_len} tokens leave none of a square image"
                )
            }),
            None => config.image_grid.filter(|&w| self.kind.text_len(rows, w).is_some()).ok_or_else(|| {
                format!(
                    "it has {rows} rows for image and text together, and nothing tells how many are the image's: \
                     give the longest text it has distances for (--max-text-len-of-initckpt)"
                )
            }),
        }
    }

    /// The table for images of `to` × `to` patches, from its grid for `from` × `from`.
    fn resized(&self, from: usize, to: usize) -> Result<Job> {
        let values = self.values(from, to)?;
        let mut shape = self.info().shape.clone();
        let rows = shape.len() - 2;
        shape[rows] = values.len() / self.columns;
        computed(self.checkpoint, TensorInfo { shape, ..self.info().clone() }, &values)
    }

    /// The resized values, [rows, columns].
    pub fn values(&self, from: usize, to: usize) -> Result<Vec<f64>> {
        let (Some(grid), Some(new)) = (self.kind.grid(from), self.kind.grid(to)) else {
            return Err(self.fault(format!("no table can be for {to} × {to} patches")));
        };
        let Grid { start, side } = grid;
        let cells = side * side;
        let others = self
            .rows
            .checked_sub(cells)
            .filter(|&others| start <= others)
            .ok_or_else(|| self.fault(format!("its {} rows are too few for {from} × {from} patches", self.rows)))?;
        let rows = (new.side * new.side).saturating_add(others);
        check_elements(rows, self.columns).map_err(|reason| self.fault(reason))?;
        let mut values = Vec::new();
        self.checkpoint.read_f64(self.tensor, 0..self.info().elements(), &mut values)?;
        Ok(resize_table(&values, self.columns, grid, new.side))
    }

    pub fn info(&self) -> &'c TensorInfo {
        &self.checkpoint.tensors()[self.tensor]
    }

    pub fn fault(&self, reason: impl Into<String>) -> Error {
        Error::tensor(self.checkpoint.path(), &self.info().name, reason)
    }
}

pub(crate) fn no_square(rows: usize) -> String {
    format!("it has {rows} rows, which no square image has")
}

/// Tables are worked on in memory: refuses what no model has.
pub(crate) fn check_elements(rows: usize, columns: usize) -> Result<(), String> {
    const MOST: usize = 1 << 26;
    match rows.checked_mul(columns) {
        Some(elements) if elements <= MOST => Ok(()),
        _ => Err(format!("a position table of [{rows}, {columns}] is too large")),
    }
}

/// The job of a tensor whose values are known.
pub(crate) fn computed(checkpoint: &Checkpoint, info: TensorInfo, values: &[f64]) -> Result<Job> {
    let mut bytes = Vec::new();
    if !encode_f64(values, info.dtype, &mut bytes) {
        let reason = format!("{} can't hold computed values", info.dtype);
        return Err(Error::tensor(checkpoint.path(), &info.name, reason));
    }
    Ok(Job { info, source: Source::Computed(bytes) })
}
