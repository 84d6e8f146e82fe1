//! The tensors in a pickle of PyTorch's: which calls make a tensor, and which names reach it.

use std::collections::HashSet;

use indexmap::IndexMap;

use crate::pickle::{Document, Id, Node};
use crate::tensor::bytes_of;
use crate::{Dtype, show_name};

/// A tensor as its pickle describes it, before anyone has looked whether its storage is there.
#[derive(Debug)]
pub(crate) struct TensorRecord {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Data,
}

#[derive(Debug)]
pub(crate) enum Data {
    /// A view of a storage; offset and strides in elements.
    Storage { storage: StorageRef, offset: u64, strides: Vec<u64> },
    /// The elements stand in the pickle itself (numpy arrays), little-endian and row-major.
    Inline(Vec<u8>),
}

/// A persistent id: which storage, how long.
#[derive(Clone, Debug)]
pub(crate) struct StorageRef {
    pub key: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Size of one element as the storage was saved: big-endian files swap by it.
    pub element: usize,
    /// Old files: where in storage `key` this one starts, in bytes.
    pub start: u64,
}

/// Why one value can't be taken as a tensor.
pub(crate) struct Refusal {
    pub name: String,
    pub reason: String,
}

/// What a walk found under a root.
#[derive(Default)]
pub(crate) struct Found {
    pub tensors: Vec<TensorRecord>,
    /// Tensors of kinds this reader lists but doesn't read, as (name, reason).
    pub skipped: Vec<(String, String)>,
}

/// Keys that hold the state dict, in the order they are tried.
pub const ROOTS: [&str; 5] = ["state_dict", "model", "module", "model_state_dict", "model_state"];
const MAX_DEPTH: usize = 64;
pub(crate) const MAX_DIMENSIONS: usize = 64;
/// The longest name of a tensor, in any container: one that is longer couldn't be written to another.
pub(crate) const MAX_NAME: usize = 4096;
const MAX_STORAGE_KEY: usize = 128;

/// The values under a root, and the root's name (`.` for the whole file).
///
/// Without a wish: the first of the usual keys that holds a tensor, else the top level without
/// optimizer states and their like, else the whole file.
pub(crate) fn find(doc: &Document, wish: Option<&str>) -> Result<(Found, String), Refusal> {
    let top = doc.root();
    match wish {
        Some(".") => return Ok((walk(doc, top)?, ".".into())),
        Some(path) => {
            let mut seen = HashSet::new();
            let id = resolve(doc, &mut Work::new(doc), &mut seen, top, path)?.ok_or_else(|| no_such_root(doc, path))?;
            let found = walk(doc, id)?;
            if found.tensors.is_empty() && found.skipped.is_empty() {
                return Err(Refusal {
                    name: String::new(),
                    reason: format!("there are no tensors under root '{}'", show_name(path)),
                });
            }
            return Ok((found, path.into()));
        }
        None => {}
    }
    if doc.entries(top).is_some() && !is_module(doc, top) {
        for key in ROOTS {
            if let Some(id) = doc.get(top, key)
                && (doc.entries(id).is_some() || is_module(doc, id))
            {
                let found = walk(doc, id)?;
                if !found.tensors.is_empty() {
                    return Ok((found, key.into()));
                }
            }
        }
        let found = walk_top_level(doc, top)?;
        if !found.tensors.is_empty() {
            return Ok((found, "top level".into()));
        }
    }
    Ok((walk(doc, top)?, ".".into()))
}

fn no_such_root(doc: &Document, path: &str) -> Refusal {
    let keys: Vec<String> = doc
        .entries(doc.root())
        .unwrap_or_default()
        .iter()
        .take(12)
        .filter_map(|(key, _)| doc.key_name(*key))
        .map(|k| show_name(&k))
        .collect();
    let reason = if keys.is_empty() {
        format!("there is no root '{}': the file holds no named parts", show_name(path))
    } else {
        format!("there is no root '{}'; the file's top level holds {}", show_name(path), keys.join(", "))
    };
    Refusal { name: String::new(), reason }
}

/// What looking through a pickle may cost, in bytes: of names, of elements, eight for each value
/// looked at. An honest pickle is looked through about once. One of a few hundred bytes can hold a
/// billion ways to the same tensor, each with a name of its own.
struct Work {
    left: u64,
}

impl Work {
    fn new(doc: &Document) -> Work {
        Work { left: (16 << 20) + 16 * doc.pickle_len() }
    }

    fn spend(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| Refusal {
            name: String::new(),
            reason: "its parts refer to each other in too many ways to list them all".into(),
        })?;
        Ok(())
    }

    /// For looking at a value's entries, items or attributes once.
    fn look(&mut self, doc: &Document, id: Id) -> Result<(), Refusal> {
        self.spend(8 + 8 * doc.width(id))
    }
}

/// Follows `a.b.c` through dicts, lists and objects. Keys may hold dots themselves, so that there
/// can be many ways to one place: `seen` holds the places and rests that led nowhere.
fn resolve(
    doc: &Document,
    work: &mut Work,
    seen: &mut HashSet<(Id, usize)>,
    id: Id,
    path: &str,
) -> Result<Option<Id>, Refusal> {
    if !seen.insert((id, path.len())) || path.split('.').count() > MAX_DEPTH {
        return Ok(None);
    }
    for (key, value) in children(doc, work, id)? {
        if key == path {
            return Ok(Some(value));
        }
        if let Some(rest) = path.strip_prefix(key.as_str()).and_then(|rest| rest.strip_prefix('.'))
            && let Some(found) = resolve(doc, work, seen, value, rest)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Named parts of a value: a dict's entries, a list's items, an object's attributes.
fn children(doc: &Document, work: &mut Work, id: Id) -> Result<Vec<(String, Id)>, Refusal> {
    work.look(doc, id)?;
    let (entries, items) = match doc.node(id) {
        Node::Dict(entries) => (entries.into(), &[][..]),
        Node::List(items) | Node::Tuple(items) => (Default::default(), &items[..]),
        // Attributes of a state dict (`_metadata`) aren't part of what it holds.
        Node::Object(object) => (doc.entries(id).or_else(|| doc.attributes(id)).unwrap_or_default(), &object.items[..]),
        _ => return Ok(Vec::new()),
    };
    // A key that is set twice counts once, the last time; 1 and "1" are two keys with one name.
    let mut parts: IndexMap<(bool, String), Id> = IndexMap::new();
    for &(key, value) in entries.iter() {
        let text = doc.str(key);
        if text.is_some_and(|text| text.len() > MAX_NAME) && is_container(doc, value) {
            return Err(Refusal {
                name: text.unwrap_or_default().to_owned(),
                reason: format!("a name of more than {MAX_NAME} bytes"),
            });
        }
        if let Some(name) = doc.key_name(key) {
            work.spend(16 + name.len() as u64)?;
            parts.insert((text.is_some(), name), value);
        }
    }
    let mut named: Vec<(String, Id)> = parts.into_iter().map(|((_, name), value)| (name, value)).collect();
    let items = items.iter().enumerate().filter(|&(_, &item)| is_container(doc, item));
    named.extend(items.map(|(index, &item)| (index.to_string(), item)));
    Ok(named)
}

/// Whether a value can be a tensor or hold one.
fn is_container(doc: &Document, id: Id) -> bool {
    matches!(doc.node(id), Node::List(_) | Node::Tuple(_) | Node::Dict(_) | Node::Object(_))
}

fn is_module(doc: &Document, id: Id) -> bool {
    let Some(attributes) = doc.attributes(id) else { return false };
    let has = |name: &str| attributes.iter().any(|(key, _)| doc.str(*key) == Some(name));
    has("_parameters") && has("_modules")
}

/// A module's parameters, persistent buffers and submodules, in the order `state_dict()` gives them.
fn module_children(doc: &Document, work: &mut Work, id: Id) -> Result<Vec<(String, Id)>, Refusal> {
    work.look(doc, id)?;
    let attributes = doc.attributes(id).unwrap_or_default();
    let attribute = |name: &str| attributes.iter().rev().find(|(key, _)| doc.str(*key) == Some(name)).map(|(_, v)| *v);
    let transient = match attribute("_non_persistent_buffers_set").map(|set| doc.node(set)) {
        Some(Node::Set(items)) => &items[..],
        // Protocol 2 spells set([…]) as a call.
        Some(Node::Object(object)) => doc.tuple(object.args).first().and_then(|&arg| doc.sequence(arg)).unwrap_or(&[]),
        _ => &[],
    };
    work.spend(8 * transient.len() as u64)?;
    let transient: HashSet<&str> =
        transient.iter().filter_map(|&item| doc.str(item)).filter(|s| s.len() <= MAX_NAME).collect();
    let mut parts = Vec::new();
    for group in ["_parameters", "_buffers", "_modules"] {
        let named = attribute(group).map(|id| children(doc, work, id)).transpose()?.unwrap_or_default();
        parts.extend(named.into_iter().filter(|(name, _)| group != "_buffers" || !transient.contains(name.as_str())));
    }
    Ok(parts)
}

/// Collects the tensors under `start`.
fn walk(doc: &Document, start: Id) -> Result<Found, Refusal> {
    let mut walk = Walk::new(doc);
    walk.visit(start, String::new(), 0)?;
    Ok(walk.found)
}

/// Collects the tensors of a file that is itself the state dict, without what training keeps beside it.
fn walk_top_level(doc: &Document, top: Id) -> Result<Found, Refusal> {
    const TRAINING: [&str; 8] = ["optim", "lr_scheduler", "scheduler", "callbacks", "loops", "amp", "scaler", "rng"];
    let mut walk = Walk::new(doc);
    for (name, value) in children(doc, &mut walk.work, top)? {
        if !TRAINING.iter().any(|prefix| name.starts_with(prefix)) {
            walk.visit(value, name, 1)?;
        }
    }
    Ok(walk.found)
}

struct Walk<'a> {
    doc: &'a Document,
    found: Found,
    /// The containers between the root and here: meeting one again is a cycle.
    path: HashSet<Id>,
    work: Work,
}

impl<'a> Walk<'a> {
    fn new(doc: &'a Document) -> Walk<'a> {
        Walk { doc, found: Found::default(), path: HashSet::new(), work: Work::new(doc) }
    }

    fn visit(&mut self, id: Id, name: String, depth: usize) -> Result<(), Refusal> {
        // What a tensor takes in lists of tensors, besides its name.
        const RECORD: u64 = 256;
        match tensor(self.doc, &mut self.work, id, 0) {
            Reading::Tensor { dtype, shape, data } => {
                self.work.spend(RECORD + 2 * name.len() as u64 + 32 * shape.len() as u64)?;
                // A lone tensor, saved by itself, has no name.
                let name = if depth == 0 { "tensor".to_owned() } else { name };
                self.found.tensors.push(TensorRecord { name, dtype, shape, data });
                return Ok(());
            }
            Reading::Unsupported(reason) => {
                self.work.spend(RECORD + name.len() as u64)?;
                self.found.skipped.push((name, reason));
                return Ok(());
            }
            Reading::Broken(reason) => return Err(Refusal { name, reason }),
            Reading::Other => {}
        }
        if !is_container(self.doc, id) || self.path.contains(&id) {
            return Ok(());
        }
        self.work.look(self.doc, id)?;
        let parts = match is_module(self.doc, id) {
            true => module_children(self.doc, &mut self.work, id)?,
            false => children(self.doc, &mut self.work, id)?,
        };
        if parts.is_empty() {
            return Ok(());
        }
        if depth >= MAX_DEPTH {
            return Err(Refusal { name, reason: format!("nested deeper than {MAX_DEPTH} levels") });
        }
        self.path.insert(id);
        for (part, value) in parts.into_iter().filter(|&(_, value)| is_container(self.doc, value)) {
            let full = if name.is_empty() { part } else { format!("{name}.{part}") };
            if full.len() > MAX_NAME {
                return Err(Refusal { name: full, reason: format!("a name of more than {MAX_NAME} bytes") });
            }
            self.visit(value, full, depth + 1)?;
        }
        self.path.remove(&id);
        Ok(())
    }
}

enum Reading {
    Tensor {
        dtype: Dtype,
        shape: Vec<usize>,
        data: Data,
    },
    /// A tensor of a kind that has no plain elements (sparse, quantised, …).
    Unsupported(String),
    /// A call that should make a tensor, with arguments that can't.
    Broken(String),
    Other,
}

/// Reads the calls that make a tensor. `wrapped` counts parameters and subclasses around it.
fn tensor(doc: &Document, work: &mut Work, id: Id, wrapped: usize) -> Reading {
    let Some(object) = doc.object(id) else { return Reading::Other };
    let Some((module, function)) = doc.global(object.callable) else { return Reading::Other };
    let args = doc.tuple(object.args);
    if module.starts_with("numpy") {
        return match function {
            "_reconstruct" | "_frombuffer" => numpy_array(doc, work, id, function),
            _ => Reading::Other,
        };
    }
    if !matches!(module, "torch._utils" | "torch._tensor" | "torch.nn.parameter" | "torch._weights_only_unpickler") {
        return Reading::Other;
    }
    match function {
        "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3" => view_reading(doc, work, args),
        "_rebuild_parameter" | "_rebuild_parameter_with_state" => match args.first() {
            Some(&inner) if wrapped < 4 => match tensor(doc, work, inner, wrapped + 1) {
                Reading::Other => Reading::Broken("a parameter around something that is no tensor".into()),
                reading => reading,
            },
            _ => Reading::Broken("a parameter around something that is no tensor".into()),
        },
        // Subclasses of Tensor: (function, type, its arguments, state).
        "_rebuild_from_type" | "_rebuild_from_type_v2" => {
            match (args.first().and_then(|&f| doc.global(f)), args.get(2)) {
                (Some((_, "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3")), Some(&inner)) => {
                    match view(doc, doc.tuple(inner)) {
                        Ok((dtype, shape, data)) => Reading::Tensor { dtype, shape, data },
                        Err(reason) => Reading::Broken(reason),
                    }
                }
                _ => Reading::Unsupported("a tensor subclass with its own layout".into()),
            }
        }
        "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor" => Reading::Unsupported("a sparse tensor".into()),
        "_rebuild_qtensor" => Reading::Unsupported("a quantised tensor".into()),
        "_rebuild_nested_tensor" => Reading::Unsupported("a nested tensor".into()),
        "_rebuild_meta_tensor_no_storage" => Reading::Unsupported("a meta tensor, which has no values".into()),
        name if name.starts_with("_rebuild") => Reading::Unsupported(format!("made by torch's {}", show_name(name))),
        _ => Reading::Other,
    }
}

fn view_reading(doc: &Document, work: &mut Work, args: &[Id]) -> Reading {
    if let Some(Err(refusal)) = args.last().map(|&last| work.look(doc, last)) {
        return Reading::Broken(refusal.reason);
    }
    // The last argument may say that the values are to be conjugated or negated when read.
    let is_set = |&id: &Id, bit: &str| doc.get(id, bit).and_then(|value| doc.int(value)) == Some(1);
    if args.last().is_some_and(|last| is_set(last, "conj") || is_set(last, "neg")) {
        return Reading::Unsupported(
            "a view that PyTorch conjugates or negates; save it after resolve_conj() or resolve_neg()".into(),
        );
    }
    match view(doc, args) {
        Ok((dtype, shape, data)) => Reading::Tensor { dtype, shape, data },
        Err(reason) => Reading::Broken(reason),
    }
}

/// `(storage, offset, size, stride, requires_grad, hooks[, dtype])`
fn view(doc: &Document, args: &[Id]) -> Result<(Dtype, Vec<usize>, Data), String> {
    let &[storage, offset, size, stride, ..] = args else {
        return Err("its description has fewer than four parts".into());
    };
    let (storage, class_dtype) = storage_ref(doc, storage)?;
    let dtype = match class_dtype {
        Some(dtype) => dtype,
        None => {
            let name = args.get(6).and_then(|&arg| doc.global(arg)).map(|(_, name)| name);
            name.and_then(Dtype::from_torch_name)
                .ok_or_else(|| format!("its dtype {} is not known", show_name(name.unwrap_or("(none given)"))))?
        }
    };
    let offset = doc.int(offset).and_then(|v| u64::try_from(v).ok()).ok_or("its storage offset is not a count")?;
    let shape = counts(doc, size, "shape")?;
    let strides = counts(doc, stride, "strides")?;
    if shape.len() != strides.len() {
        return Err(format!("it has {} dimensions and {} strides", shape.len(), strides.len()));
    }
    let shape = dimensions(shape)?;
    let element = if class_dtype.is_some() { dtype.size() } else { 1 };
    Ok((dtype, shape, Data::Storage { storage: StorageRef { element, ..storage }, offset, strides }))
}

fn counts(doc: &Document, id: Id, what: &str) -> Result<Vec<u64>, String> {
    let wrong = || format!("its {what} is not a list of counts");
    let items = doc.sequence(id).ok_or_else(wrong)?;
    if items.len() > MAX_DIMENSIONS {
        return Err(format!("it has {} dimensions; PyTorch allows {MAX_DIMENSIONS}", items.len()));
    }
    items.iter().map(|&item| doc.int(item).and_then(|v| u64::try_from(v).ok())).collect::<Option<_>>().ok_or_else(wrong)
}

fn dimensions(counts: Vec<u64>) -> Result<Vec<usize>, &'static str> {
    counts.into_iter().map(usize::try_from).collect::<Result<_, _>>().map_err(|_| "a dimension is too large")
}

/// The name of a storage: PyTorch uses short numbers.
pub(crate) fn storage_key(doc: &Document, id: Id) -> Option<String> {
    match doc.node(id) {
        Node::Str(_) => doc.str(id).filter(|key| key.len() <= MAX_STORAGE_KEY).map(str::to_owned),
        Node::Int(key) => Some(key.to_string()),
        _ => None,
    }
}

/// `("storage", class, key, location, elements[, view])`, and the dtype its class fixes.
fn storage_ref(doc: &Document, id: Id) -> Result<(StorageRef, Option<Dtype>), String> {
    let Node::Persistent(pid) = doc.node(id) else {
        return Err("its storage is not in the file".into());
    };
    let parts = doc.tuple(*pid);
    let (Some(&class), Some(&key), Some(&elements)) = (parts.get(1), parts.get(2), parts.get(4)) else {
        return Err("its storage is described by too few parts".into());
    };
    if parts.first().and_then(|&tag| doc.str(tag)) != Some("storage") {
        return Err("its storage is described by something that is no storage".into());
    }
    let (_, class) = doc.global(class).ok_or("its storage's class is not a name")?;
    let dtype = match class {
        "UntypedStorage" | "_UntypedStorage" => None,
        name => Some(
            Dtype::from_torch_storage(name).ok_or_else(|| format!("storage class {} is not known", show_name(name)))?,
        ),
    };
    let key = storage_key(doc, key).ok_or("its storage's key is not a short text")?;
    let element = dtype.map_or(1, Dtype::size);
    let to_bytes =
        |count: Option<i64>| count.and_then(|v| u64::try_from(v).ok()).and_then(|v| v.checked_mul(element as u64));
    let bytes = to_bytes(doc.int(elements)).ok_or("its storage's length is not a count")?;
    let mut storage = StorageRef { key, bytes, element, start: 0 };
    // Old files: a storage can be a view (key, offset, length) of another one.
    if let Some(&[_, offset, length]) = parts.get(5).map(|&view| doc.tuple(view)) {
        storage.start = to_bytes(doc.int(offset)).ok_or("its storage view's offset is not a count")?;
        storage.bytes = to_bytes(doc.int(length)).ok_or("its storage view's length is not a count")?;
    }
    Ok((storage, dtype))
}

/// `_reconstruct(…)` with state `(version, shape, dtype, fortran, data)`, or protocol 5's
/// `_frombuffer(data, dtype, shape, order)`.
fn numpy_array(doc: &Document, work: &mut Work, id: Id, function: &str) -> Reading {
    let Some(object) = doc.object(id) else { return Reading::Other };
    let (shape, dtype, fortran, data) = if function == "_frombuffer" {
        let &[data, dtype, shape, order] = doc.tuple(object.args) else { return Reading::Other };
        (shape, dtype, doc.str(order) == Some("F"), data)
    } else {
        let Some(state) = object.state else { return Reading::Other };
        let &[_, shape, dtype, fortran, data] = doc.tuple(state) else { return Reading::Other };
        (shape, dtype, doc.int(fortran) == Some(1), data)
    };
    let Some((dtype, big_endian)) = doc.numpy_dtype(dtype) else {
        return Reading::Unsupported("a numpy array of objects, text or records".into());
    };
    let shape = match counts(doc, shape, "shape").and_then(|shape| Ok(dimensions(shape)?)) {
        Ok(shape) => shape,
        Err(reason) => return Reading::Broken(reason),
    };
    let Some(size) = bytes_of(&shape, dtype) else {
        return Reading::Broken(format!("shape {shape:?} overflows"));
    };
    // Shared arrays are copied for each name. No more is there to copy than the pickle is long.
    if let Err(refusal) = work.spend((size as u64).min(doc.pickle_len())) {
        return Reading::Broken(refusal.reason);
    }
    let Some(bytes) = doc.numpy_bytes(data, size) else {
        return Reading::Unsupported("a numpy array whose values are not in the file".into());
    };
    if bytes.len() != size {
        return Reading::Broken(format!("a numpy array of shape {shape:?} with more or less than its {size} bytes"));
    }
    let mut bytes = if fortran { row_major(&bytes, &shape, dtype.size()) } else { bytes };
    if big_endian {
        bytes.chunks_exact_mut(dtype.swap_width()).for_each(|chunk| chunk.reverse());
    }
    Reading::Tensor { dtype, shape, data: Data::Inline(bytes) }
}

/// Reorders column-major elements.
fn row_major(bytes: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &d in shape {
        strides.push(stride);
        stride *= d.max(1);
    }
    let mut out = Vec::with_capacity(bytes.len());
    super::strided::for_each_run(shape, &strides, 0..bytes.len() / size.max(1), |at| {
        out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
    });
    out
}

impl Document {
    /// The dtype of a `numpy.dtype('f4')`, and whether it is big-endian.
    pub(crate) fn numpy_dtype(&self, id: Id) -> Option<(Dtype, bool)> {
        let object = self.object(id)?;
        if self.global(object.callable)? != ("numpy", "dtype") {
            return None;
        }
        // `f4`, `>c16`: a longer one is no number's.
        let code = self.str(*self.tuple(object.args).first()?).filter(|code| code.len() <= 4)?;
        let order = object.state.and_then(|state| self.tuple(state).get(1).copied()).and_then(|order| self.str(order));
        let big_endian = order == Some(">") || code.starts_with('>');
        let dtype = match code.trim_start_matches(['<', '>', '=', '|']) {
            "f8" => Dtype::F64,
            "f4" => Dtype::F32,
            "f2" => Dtype::F16,
            "i8" => Dtype::I64,
            "i4" => Dtype::I32,
            "i2" => Dtype::I16,
            "i1" => Dtype::I8,
            "u8" => Dtype::U64,
            "u4" => Dtype::U32,
            "u2" => Dtype::U16,
            "u1" => Dtype::U8,
            "b1" => Dtype::Bool,
            "c8" => Dtype::Complex64,
            "c16" => Dtype::Complex128,
            _ => return None,
        };
        Some((dtype, big_endian))
    }

    /// Bytes as numpy pickles them: themselves, or latin-1 text in `_codecs.encode`. Copies no
    /// more than `expected` of them: what comes back shorter than that, or empty, wasn't as long.
    pub(crate) fn numpy_bytes(&self, id: Id, expected: usize) -> Option<Vec<u8>> {
        let exactly = |bytes: &[u8]| if bytes.len() == expected { bytes.to_vec() } else { Vec::new() };
        match self.node(id) {
            Node::Bytes(_) | Node::Str(_) => self.bytes(id).map(exactly),
            Node::Object(object) => match self.global(object.callable)? {
                ("_codecs", "encode") => {
                    let text = self.str(*self.tuple(object.args).first()?)?;
                    text.chars().take(expected.saturating_add(1)).map(|c| u8::try_from(c as u32).ok()).collect()
                }
                ("builtins", "bytearray" | "bytes") => match self.tuple(object.args).first() {
                    Some(&inner) => self.bytes(inner).map(exactly),
                    None => Some(Vec::new()),
                },
                _ => None,
            },
            _ => None,
        }
    }
}

impl Document {
    /// Element size of every storage the pickle refers to, by key.
    pub(crate) fn storage_elements(&self) -> std::collections::HashMap<String, usize> {
        let mut elements = std::collections::HashMap::new();
        for id in self.ids().filter(|&id| matches!(self.node(id), Node::Persistent(_))) {
            if let Ok((storage, _)) = storage_ref(self, id) {
                elements.insert(storage.key, storage.element);
            }
        }
        elements
    }
}
