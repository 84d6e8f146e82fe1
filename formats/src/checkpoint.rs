//! A checkpoint: its tensors by name, in any container, read one piece at a time.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::config::{self, Detected, Evidence, ModelConfig, RECORD};
use crate::layout::Layout as NameLayout;
use crate::pickle::{Document, Id};
use crate::read::source::Source;
use crate::read::torch::{Data, Found, MAX_NAME, TensorRecord};
use crate::read::{Format, Storages, legacy, safetensors, sniff, strided, torch, zip};
use crate::standard::is_standard;
use crate::tensor::bytes_of;
use crate::{Dtype, Error, Result, TensorInfo, decode_f32, decode_f64};

/// Opens a checkpoint with the root that [`open_root`] finds by itself.
pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
    open_root(path, None)
}

/// Opens a checkpoint file of any container, or with `-` what comes in on standard input: names, shapes and positions are read and checked,
/// values are not.
///
/// `root` says where in a PyTorch file the tensors sit: `state_dict`, `model.ema`, or `.` for
/// the whole file. Without it: the first of `state_dict`, `model`, `module`,
/// `model_state_dict`, `model_state` that holds tensors, else the top level without optimizer states
/// and their like, else the whole file.
///
/// # Errors
/// The file can't be opened, is of no known format, is damaged, or holds a tensor whose
/// description contradicts itself or the file.
pub fn open_root(path: impl AsRef<Path>, root: Option<&str>) -> Result<Checkpoint> {
    let path = path.as_ref();
    let source = if is_standard(path) { Source::standard()? } else { Source::open(path)? };
    match sniff(&source)? {
        Format::Safetensors => {
            no_root(&source, root)?;
            let header = safetensors::open(&source)?;
            let mut checkpoint = Checkpoint::new(source, Format::Safetensors, ".".into());
            checkpoint.metadata = header.metadata;
            for (info, start) in header.tensors {
                checkpoint.push(info, Place::File { file: 0, start, layout: Layout::Contiguous, swap: false })?;
            }
            Ok(checkpoint)
        }
        Format::ShardedSafetensors => {
            no_root(&source, root)?;
            if source.is_standard {
                let reason = "an index names files beside it, which standard input has not: give the index as a file";
                return Err(Error::file(&source.path, reason));
            }
            open_sharded(source)
        }
        Format::TorchZip => {
            let (document, storages) = zip::open(&source)?;
            let (found, root) = find(&source, &document, root)?;
            Checkpoint::from_torch(source, Format::TorchZip, document, found, root, storages)
        }
        Format::TorchLegacy | Format::Pickle => {
            let legacy = legacy::open(&source)?;
            let (found, root) = find(&source, &legacy.document, root)?;
            let storages = legacy.storages(&source, &found)?;
            Checkpoint::from_torch(source, legacy.format, legacy.document, found, root, storages)
        }
    }
}

fn no_root(source: &Source, root: Option<&str>) -> Result<()> {
    match root {
        None | Some(".") => Ok(()),
        Some(_) => Err(Error::file(&source.path, "a safetensors file has no roots to choose from: leave --root out")),
    }
}

fn find(source: &Source, document: &Document, root: Option<&str>) -> Result<(Found, String)> {
    torch::find(document, root).map_err(|refusal| {
        if refusal.name.is_empty() {
            Error::file(&source.path, refusal.reason)
        } else {
            Error::tensor(&source.path, refusal.name, refusal.reason)
        }
    })
}

fn open_sharded(index_source: Source) -> Result<Checkpoint> {
    let index = safetensors::open_index(&index_source)?;
    let folder = index_source.path.parent().map(Path::to_owned).unwrap_or_default();
    let index_path = index_source.path.clone();
    let mut checkpoint = Checkpoint::new(index_source, Format::ShardedSafetensors, ".".into());
    checkpoint.metadata = index.metadata;
    for (file, wanted) in index.shards {
        let shard = Source::open(&folder.join(&file))?;
        if !safetensors::looks_like(&shard.head(16)?) {
            return Err(Error::file(&shard.path, "named as a shard, and not a safetensors file"));
        }
        let header = safetensors::open(&shard)?;
        let mut held: HashMap<String, (TensorInfo, u64)> =
            header.tensors.into_iter().map(|(info, start)| (info.name.clone(), (info, start))).collect();
        let number = checkpoint.files.len();
        for name in wanted {
            let (info, start) = held.remove(&name).ok_or_else(|| {
                Error::tensor(
                    &index_path,
                    &name,
                    format!("the index places it in {}, which doesn't hold it", crate::show_path(&shard.path)),
                )
            })?;
            checkpoint.push(info, Place::File { file: number, start, layout: Layout::Contiguous, swap: false })?;
        }
        for (key, value) in header.metadata {
            checkpoint.metadata.entry(key).or_insert(value);
        }
        checkpoint.files.push(shard);
    }
    Ok(checkpoint)
}

/// An open checkpoint. Values are read from the file when asked for, from any thread.
#[derive(Debug)]
pub struct Checkpoint {
    format: Format,
    root: String,
    tensors: Vec<TensorInfo>,
    places: Vec<Place>,
    index: HashMap<String, usize>,
    /// The file that was opened, then its shards.
    files: Vec<Source>,
    metadata: BTreeMap<String, String>,
    document: Option<Document>,
    skipped: Vec<(String, String)>,
}

/// Where a tensor's elements are. Checked when the file was opened.
#[derive(Debug)]
enum Place {
    /// `start`: the first element's byte. `swap`: the bytes are big-endian.
    File {
        file: usize,
        start: u64,
        layout: Layout,
        swap: bool,
    },
    Inline(Vec<u8>),
}

#[derive(Debug)]
enum Layout {
    Contiguous,
    /// In elements.
    Strided {
        strides: Vec<usize>,
    },
}

/// Metadata key of the model configuration, as JSON, in files that this project writes.
pub const CONFIG_KEY: &str = "vlmerge.config";

/// The key under which our own PyTorch files keep their metadata.
pub(crate) const METADATA_KEY: &str = "vlmerge_metadata";

impl Checkpoint {
    fn new(source: Source, format: Format, root: String) -> Checkpoint {
        Checkpoint {
            format,
            root,
            tensors: Vec::new(),
            places: Vec::new(),
            index: HashMap::new(),
            files: vec![source],
            metadata: BTreeMap::new(),
            document: None,
            skipped: Vec::new(),
        }
    }

    fn from_torch(
        source: Source,
        format: Format,
        document: Document,
        found: Found,
        root: String,
        storages: Storages,
    ) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::new(source, format, root);
        checkpoint.skipped = found.skipped;
        let mut total = 0u64;
        // Views may repeat elements; a small file that claims a huge sum of them is an attack.
        let limit = checkpoint.files[0].len.saturating_mul(16).saturating_add(64 << 20);
        for record in found.tensors {
            let name = record.name.clone();
            let (info, place) = locate(record, &checkpoint.files[0], &storages)
                .map_err(|reason| Error::tensor(checkpoint.path(), &name, reason))?;
            total = total.saturating_add(info.bytes() as u64);
            if total > limit {
                let reason = format!(
                    "its views repeat so much that the tensors add up to over {limit} bytes, 16 times the file"
                );
                return Err(Error::tensor(checkpoint.path(), &name, reason));
            }
            checkpoint.push(info, place)?;
        }
        if let Some(own) = document.get(document.root(), METADATA_KEY) {
            // We write each text in full; shared ones could add up to anything.
            let mut room = document.pickle_len();
            for &(key, value) in document.entries(own).unwrap_or_default().iter() {
                if let (Some(key), Some(value)) = (document.str(key), document.str(value)) {
                    room = room.checked_sub((key.len() + value.len()) as u64).ok_or_else(|| {
                        Error::file(checkpoint.path(), format!("its {METADATA_KEY} is longer than the pickle it is in"))
                    })?;
                    checkpoint.metadata.insert(key.to_owned(), value.to_owned());
                }
            }
        }
        checkpoint.document = Some(document);
        Ok(checkpoint)
    }

    fn push(&mut self, info: TensorInfo, place: Place) -> Result<()> {
        if info.name.len() > MAX_NAME {
            return Err(Error::tensor(self.path(), &info.name, format!("a name of more than {MAX_NAME} bytes")));
        }
        if self.index.insert(info.name.clone(), self.tensors.len()).is_some() {
            return Err(Error::tensor(self.path(), &info.name, "two tensors have this name"));
        }
        self.tensors.push(info);
        self.places.push(place);
        Ok(())
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.files[0].path
    }

    /// Every file behind this checkpoint: one, or an index and its shards.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Bytes on disk, over all files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Where in the file the tensors were found: a path of keys, `top level`, or `.`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The key that code which loads this file looks under, for files that take its place: the first of
    /// `state_dict`, `model`, … that the file has. `None` where it has none, or is taken as a whole.
    pub fn usual_root(&self) -> Option<&'static str> {
        let is_there = |key: &&str| self.root != "." && self.top_level(key).is_some();
        torch::ROOTS.into_iter().find(is_there)
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Position in [`Checkpoint::tensors`] of a name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.position(name).map(|index| &self.tensors[index])
    }

    /// Text by key: a safetensors header's `__metadata__`, or what this project wrote in a PyTorch file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The pickle of a PyTorch file.
    pub fn document(&self) -> Option<&Document> {
        self.document.as_ref()
    }

    /// Names under the root that are tensors of kinds that aren't read (sparse, quantised, …), with the reason.
    pub fn skipped(&self) -> &[(String, String)] {
        &self.skipped
    }

    /// A value at the top of a PyTorch file, e.g. `epoch`.
    pub fn top_level(&self, key: &str) -> Option<(&Document, Id)> {
        let document = self.document.as_ref()?;
        document.get(document.root(), key).map(|id| (document, id))
    }

    /// Lightning's `hyper_parameters` as JSON; classes become objects with `__class__`.
    pub fn hyper_parameters(&self) -> Option<serde_json::Value> {
        self.top_level("hyper_parameters").map(|(document, id)| document.to_json(id))
    }

    /// The built-in layout that the names show. Names without experts can be of several: then it is the one that the
    /// file's record of its model names, if they can be of that.
    pub fn layout(&self) -> Option<&'static NameLayout> {
        let found = NameLayout::detect(self.names());
        let shown = found.as_ref().map(|found| found.layout);
        if found.is_some_and(|found| found.experts > 0) {
            return shown;
        }
        let recorded = self.recorded().and_then(Result::ok).and_then(|recorded| NameLayout::by_name(&recorded.layout?));
        recorded.filter(|recorded| self.names().any(|name| recorded.admits(name))).or(shown)
    }

    /// The model's configuration by the rules of a layout: from the weights, from hyper-parameters, and
    /// from the record in files that this project wrote.
    pub fn config(&self, layout: &NameLayout) -> Detected {
        let mut detected = config::detect_as(layout, &self.tensors, self.hyper_parameters().as_ref());
        match self.recorded() {
            Some(Ok(recorded)) => {
                detected.complete(&recorded);
                let of = recorded.layout.filter(|name| name != layout.name() && NameLayout::by_name(name).is_some());
                // A layout that was chosen in spite of the names is taken as it is.
                let is_shown = self.layout().is_some_and(|shown| shown.name() == layout.name());
                let evidence = detected.evidence.iter().find(|evidence| evidence.field == "layout");
                if let (Some(recorded), true, Some(evidence)) = (of, is_shown, evidence) {
                    let Evidence { value, from, .. } = evidence;
                    let conflict = format!("layout: {value} because of {from}, but {recorded} in {RECORD}");
                    detected.conflicts.push(conflict);
                }
            }
            Some(Err(e)) => detected.conflicts.push(format!("{RECORD} ({CONFIG_KEY}) can't be read: {e}")),
            None => {}
        }
        detected
    }

    /// As [`Checkpoint::config`], for what builds or merges on it.
    ///
    /// # Errors
    /// The file's record of its model contradicts what its names, weights or hyper-parameters show.
    pub fn settled_config(&self, layout: &NameLayout) -> Result<Detected> {
        let detected = self.config(layout);
        match detected.conflict() {
            Some(conflict) => Err(Error::file(self.path(), conflict)),
            None => Ok(detected),
        }
    }

    fn recorded(&self) -> Option<serde_json::Result<ModelConfig>> {
        self.metadata.get(CONFIG_KEY).map(|text| serde_json::from_str(text))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|info| info.name.as_str())
    }

    /// Reads elements `range` of a tensor, row-major and little-endian, replacing what `out` holds.
    ///
    /// # Panics
    /// If `tensor` or `range` is out of bounds.
    pub fn read(&self, tensor: usize, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let size = self.tensors[tensor].dtype.size();
        // Stale contents are overwritten below; growing alone is what costs.
        out.resize(range.len() * size, 0);
        self.read_into(tensor, range, out)
    }

    /// As [`Checkpoint::read`], into memory of just that length.
    ///
    /// # Panics
    /// If `tensor` or `range` is out of bounds, or `out` of another length.
    pub fn read_into(&self, tensor: usize, range: Range<usize>, out: &mut [u8]) -> Result<()> {
        let info = &self.tensors[tensor];
        let size = info.dtype.size();
        assert!(range.start <= range.end && range.end <= info.elements(), "range within the tensor");
        assert_eq!(out.len(), range.len() * size);
        if range.is_empty() {
            return Ok(());
        }
        match &self.places[tensor] {
            Place::Inline(bytes) => out.copy_from_slice(&bytes[range.start * size..range.end * size]),
            Place::File { file, start, layout, swap } => {
                let source = &self.files[*file];
                match layout {
                    Layout::Contiguous => source.read_exact_at(out, start + (range.start * size) as u64)?,
                    Layout::Strided { strides } => {
                        strided::read(source, *start, &info.shape, strides, range, size, out)?;
                    }
                }
                if *swap {
                    out.chunks_exact_mut(info.dtype.swap_width()).for_each(|element| element.reverse());
                }
            }
        }
        Ok(())
    }

    /// Where a tensor lies in a file just as [`Checkpoint::read`] gives it, for readers that map files: the file, and the
    /// byte at which the tensor starts. `None` for a tensor whose elements are reordered or lie elsewhere, and on standard
    /// input.
    pub fn span(&self, tensor: usize) -> Option<(&Path, u64)> {
        match &self.places[tensor] {
            Place::File { file, start, layout: Layout::Contiguous, swap: false } => {
                let source = &self.files[*file];
                (!source.is_standard).then_some((source.path.as_path(), *start))
            }
            _ => None,
        }
    }

    /// Reads elements `range` of a tensor as f32, converting where the tensor isn't.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], and for dtypes that aren't real numbers.
    pub fn read_f32(&self, tensor: usize, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        if self.tensors[tensor].dtype == Dtype::F32 && cfg!(target_endian = "little") {
            out.resize(range.len(), 0.0);
            return self.read_into(tensor, range, bytemuck::cast_slice_mut(out));
        }
        let mut bytes = Vec::new();
        self.read(tensor, range, &mut bytes)?;
        self.decoded(tensor, decode_f32(&bytes, self.tensors[tensor].dtype, out))
    }

    /// Reads elements `range` of a tensor as f64; otherwise as [`Checkpoint::read_f32`].
    pub fn read_f64(&self, tensor: usize, range: Range<usize>, out: &mut Vec<f64>) -> Result<()> {
        if self.tensors[tensor].dtype == Dtype::F64 && cfg!(target_endian = "little") {
            out.resize(range.len(), 0.0);
            return self.read_into(tensor, range, bytemuck::cast_slice_mut(out));
        }
        let mut bytes = Vec::new();
        self.read(tensor, range, &mut bytes)?;
        self.decoded(tensor, decode_f64(&bytes, self.tensors[tensor].dtype, out))
    }

    fn decoded(&self, tensor: usize, done: bool) -> Result<()> {
        let info = &self.tensors[tensor];
        match done {
            true => Ok(()),
            false => {
                Err(Error::tensor(self.path(), &info.name, format!("{} values can't be computed with", info.dtype)))
            }
        }
    }

    /// Whether `path` names one of the files this checkpoint reads from, under any spelling.
    pub fn reads_from(&self, path: &Path) -> bool {
        let Ok(wanted) = path.canonicalize() else { return false };
        let mut files = self.files.iter().filter(|file| !file.is_standard).map(|file| file.path.as_path());
        files.any(|own| own.canonicalize().is_ok_and(|own| own == wanted || same_file(&own, &wanted)))
    }

    /// The paths of all files, owned; for messages after the checkpoint is gone.
    pub fn owned_paths(&self) -> Vec<PathBuf> {
        self.paths().map(Path::to_owned).collect()
    }
}

/// Two names of one file: hard links.
fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        id(a).is_some() && id(a) == id(b)
    }
    #[cfg(not(unix))]
    {
        a == b
    }
}

/// Checks a record against the storages and the file, and says where its elements are.
fn locate(record: TensorRecord, source: &Source, storages: &Storages) -> Result<(TensorInfo, Place), String> {
    let TensorRecord { name, dtype, shape, data } = record;
    let is_empty = bytes_of(&shape, dtype).ok_or_else(|| format!("shape {shape:?} overflows"))? == 0;
    let (storage, offset, strides) = match data {
        Data::Inline(bytes) => return Ok((TensorInfo { name, dtype, shape }, Place::Inline(bytes))),
        Data::Storage { storage, offset, strides } => (storage, offset, strides),
    };
    let shown = crate::show_name(&storage.key);
    let held = storages.bytes.get(&storage.key);
    let held = match held {
        Some(held) => *held,
        None if is_empty => crate::read::StorageBytes { start: 0, len: 0 },
        None => return Err(format!("its storage '{shown}' is not in the file")),
    };
    let size = dtype.size() as u64;
    let end = storage.start.checked_add(storage.bytes).filter(|&end| end <= held.len || is_empty);
    end.ok_or_else(|| {
        format!("its storage '{shown}' should have {} bytes and has {}: cut short or damaged", storage.bytes, held.len)
    })?;
    // The last element a view reaches, in elements of the storage.
    let reach = shape
        .iter()
        .zip(&strides)
        .try_fold(0u64, |reach, (&d, &stride)| reach.checked_add((d as u64).saturating_sub(1).checked_mul(stride)?));
    let last =
        reach.and_then(|reach| reach.checked_add(offset)).and_then(|last| last.checked_add(1)?.checked_mul(size));
    if !is_empty && last.is_none_or(|last| last > storage.bytes) {
        return Err(format!(
            "shape {shape:?}, strides {strides:?}, offset {offset} reach past its storage '{shown}' of {} elements",
            storage.bytes / size
        ));
    }
    let layout = if is_empty || strided::is_contiguous(&shape, &strides) {
        Layout::Contiguous
    } else {
        // In bounds by the check above, except on axes of length 1, along which nothing moves.
        let strides = shape.iter().zip(&strides).map(|(&d, &stride)| if d == 1 { 0 } else { stride as usize });
        Layout::Strided { strides: strides.collect() }
    };
    // An empty tensor may claim to start anywhere.
    let start = if is_empty { 0 } else { held.start + storage.start + offset * size };
    debug_assert!(is_empty || start < source.len);
    let swap = storages.big_endian && dtype.swap_width() > 1;
    Ok((TensorInfo { name, dtype, shape }, Place::File { file: 0, start, layout, swap }))
}
