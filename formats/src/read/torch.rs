//! The tensors in a pickle of PyTorch's: which calls make a tensor, and which names reach it.

use std::collections::HashSet;

use crate::pickle::{Document, Id, Node};
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
const ROOTS: [&str; 5] = ["state_dict", "model", "module", "model_state_dict", "model_state"];
const MAX_VISITS: usize = 4_000_000;
const MAX_DEPTH: usize = 64;
const MAX_NAME: usize = 4096;

/// The values under a root, and the root's name (`.` for the whole file).
///
/// Without a wish: the first of the usual keys that holds a tensor, else the top level without
/// optimizer states and their like, else the whole file.
pub(crate) fn find(doc: &Document, wish: Option<&str>) -> Result<(Found, String), Refusal> {
    let top = doc.root();
    match wish {
        Some(".") => return Ok((walk(doc, top)?, ".".into())),
        Some(path) => {
            let id = resolve(doc, top, path, 0).ok_or_else(|| no_such_root(doc, path))?;
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

/// Follows `a.b.c` through dicts, lists and objects. Keys may hold dots themselves.
fn resolve(doc: &Document, id: Id, path: &str, depth: usize) -> Option<Id> {
    if depth > MAX_DEPTH {
        return None;
    }
    for (key, value) in children(doc, id) {
        if key == path {
            return Some(value);
        }
        if let Some(rest) = path.strip_prefix(key.as_str()).and_then(|rest| rest.strip_prefix('.'))
            && let Some(found) = resolve(doc, value, rest, depth + 1)
        {
            return Some(found);
        }
    }
    None
}

/// Named parts of a value: a dict's entries, a list's items, an object's attributes.
fn children(doc: &Document, id: Id) -> Vec<(String, Id)> {
    let mut parts: indexmap::IndexMap<String, Id> = indexmap::IndexMap::new();
    let mut add = |entries: Vec<(Id, Id)>| {
        for (key, value) in entries {
            if let Some(name) = doc.key_name(key) {
                parts.insert(name, value);
            }
        }
    };
    match doc.node(id) {
        Node::Dict(entries) => add(entries.clone()),
        Node::List(items) | Node::Tuple(items) => {
            parts.extend(items.iter().enumerate().map(|(index, &item)| (index.to_string(), item)));
        }
        Node::Object(object) => {
            // Attributes of a state dict (`_metadata`) aren't part of what it holds.
            match doc.entries(id) {
                Some(entries) => add(entries),
                None => add(doc.attributes(id).unwrap_or_default()),
            }
            parts.extend(object.items.iter().enumerate().map(|(index, &item)| (index.to_string(), item)));
        }
        _ => {}
    }
    parts.into_iter().collect()
}

fn is_module(doc: &Document, id: Id) -> bool {
    let Some(attributes) = doc.attributes(id) else { return false };
    let has = |name: &str| attributes.iter().any(|(key, _)| doc.str(*key) == Some(name));
    has("_parameters") && has("_modules")
}

/// A module's parameters, persistent buffers and submodules, in the order `state_dict()` gives them.
fn module_children(doc: &Document, id: Id) -> Vec<(String, Id)> {
    let attributes = doc.attributes(id).unwrap_or_default();
    let attribute = |name: &str| attributes.iter().rev().find(|(key, _)| doc.str(*key) == Some(name)).map(|(_, v)| *v);
    let transient: HashSet<String> = attribute("_non_persistent_buffers_set")
        .map(|set| match doc.node(set) {
            Node::Set(items) => items.clone(),
            // Protocol 2 spells set([…]) as a call.
            Node::Object(object) => {
                doc.tuple(object.args).first().and_then(|&arg| doc.sequence(arg)).unwrap_or(&[]).to_vec()
            }
            _ => Vec::new(),
        })
        .unwrap_or_default()
        .into_iter()
        .filter_map(|item| doc.str(item).map(str::to_owned))
        .collect();
    let mut parts = Vec::new();
    for group in ["_parameters", "_buffers", "_modules"] {
        let named = attribute(group).map(|id| children(doc, id)).unwrap_or_default();
        parts.extend(named.into_iter().filter(|(name, _)| group != "_buffers" || !transient.contains(name)));
    }
    parts
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
    for (name, value) in children(doc, top) {
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
    names: HashSet<String>,
    visits: usize,
}

impl<'a> Walk<'a> {
    fn new(doc: &'a Document) -> Walk<'a> {
        Walk { doc, found: Found::default(), path: HashSet::new(), names: HashSet::new(), visits: 0 }
    }

    fn visit(&mut self, id: Id, name: String, depth: usize) -> Result<(), Refusal> {
        self.visits += 1;
        if self.visits > MAX_VISITS {
            return Err(Refusal {
                name: String::new(),
                reason: format!("its parts, counted once for each way to reach them, are more than {MAX_VISITS}"),
            });
        }
        match tensor(self.doc, id, 0) {
            Reading::Tensor { dtype, shape, data } => {
                // A lone tensor, saved by itself, has no name.
                let name = if name.is_empty() { "tensor".to_owned() } else { name };
                if !self.names.insert(name.clone()) {
                    return Err(Refusal { name, reason: "two tensors have this name".into() });
                }
                self.found.tensors.push(TensorRecord { name, dtype, shape, data });
                return Ok(());
            }
            Reading::Unsupported(reason) => {
                self.found.skipped.push((name, reason));
                return Ok(());
            }
            Reading::Broken(reason) => return Err(Refusal { name, reason }),
            Reading::Other => {}
        }
        let parts = if is_module(self.doc, id) { module_children(self.doc, id) } else { children(self.doc, id) };
        if parts.is_empty() || !self.path.insert(id) {
            return Ok(());
        }
        if depth >= MAX_DEPTH {
            return Err(Refusal { name, reason: format!("nested deeper than {MAX_DEPTH} levels") });
        }
        for (part, value) in parts {
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
fn tensor(doc: &Document, id: Id, wrapped: usize) -> Reading {
    let Some(object) = doc.object(id) else { return Reading::Other };
    let Some((module, function)) = doc.global(object.callable) else { return Reading::Other };
    let args = doc.tuple(object.args);
    if module.starts_with("numpy") {
        return match function {
            "_reconstruct" | "_frombuffer" => numpy_array(doc, id, function),
            _ => Reading::Other,
        };
    }
    if !matches!(module, "torch._utils" | "torch._tensor" | "torch.nn.parameter" | "torch._weights_only_unpickler") {
        return Reading::Other;
    }
    match function {
        "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3" => view_reading(doc, args),
        "_rebuild_parameter" | "_rebuild_parameter_with_state" => match args.first() {
            Some(&inner) if wrapped < 4 => match tensor(doc, inner, wrapped + 1) {
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

fn view_reading(doc: &Document, args: &[Id]) -> Reading {
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
    let shape = counts(doc, size).ok_or("its shape is not a list of counts")?;
    let strides =
        counts(doc, stride).ok_or("its strides are not a list of counts: negative ones don't exist in PyTorch")?;
    if shape.len() != strides.len() {
        return Err(format!("it has {} dimensions and {} strides", shape.len(), strides.len()));
    }
    if shape.len() > 64 {
        return Err(format!("it has {} dimensions; PyTorch allows 64", shape.len()));
    }
    let shape =
        shape.into_iter().map(usize::try_from).collect::<Result<_, _>>().map_err(|_| "a dimension is too large")?;
    let element = if class_dtype.is_some() { dtype.size() } else { 1 };
    Ok((dtype, shape, Data::Storage { storage: StorageRef { element, ..storage }, offset, strides }))
}

fn counts(doc: &Document, id: Id) -> Option<Vec<u64>> {
    doc.sequence(id)?.iter().map(|&item| doc.int(item).and_then(|v| u64::try_from(v).ok())).collect()
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
    let key = doc.key_name(key).ok_or("its storage's key is not text")?;
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
fn numpy_array(doc: &Document, id: Id, function: &str) -> Reading {
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
    let Some(bytes) = doc.numpy_bytes(data) else {
        return Reading::Unsupported("a numpy array whose values are not in the file".into());
    };
    let Some(shape) =
        counts(doc, shape).and_then(|s| s.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>())
    else {
        return Reading::Broken("its shape is not a list of counts".into());
    };
    let size = shape.iter().try_fold(dtype.size(), |size, &d| size.checked_mul(d));
    if size != Some(bytes.len()) {
        return Reading::Broken(format!(
            "a numpy array of shape {shape:?} with {} bytes of {dtype} values",
            bytes.len()
        ));
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
        let code = self.str(*self.tuple(object.args).first()?)?;
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

    /// Bytes as numpy pickles them: themselves, or latin-1 text in `_codecs.encode`.
    pub(crate) fn numpy_bytes(&self, id: Id) -> Option<Vec<u8>> {
        match self.node(id) {
            Node::Bytes(_) | Node::Str(_) => self.bytes(id).map(<[u8]>::to_vec),
            Node::Object(object) => match self.global(object.callable)? {
                ("_codecs", "encode") => {
                    let text = self.str(*self.tuple(object.args).first()?)?;
                    text.chars().map(|c| u8::try_from(c as u32).ok()).collect()
                }
                ("builtins", "bytearray" | "bytes") => match self.tuple(object.args).first() {
                    Some(&inner) => self.bytes(inner).map(<[u8]>::to_vec),
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
