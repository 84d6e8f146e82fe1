//! Pickles, read as data and never run, and written for PyTorch.
//!
//! A pickle is a program for a small stack machine whose `GLOBAL` and `REDUCE` opcodes import
//! and call anything. [`read`] is such a machine with these opcodes turned into records: a
//! global becomes its two names, a call becomes an [`Object`] holding what would have been
//! called with what. Nothing is imported, called or looked up.
//!
//! Values live in one arena, [`Document`], and refer to each other by [`Id`]. Sharing and
//! cycles are therefore free, no drop or traversal recurses by itself, and memory is linear in
//! the bytes read. Whoever follows the references must count the steps: a few hundred bytes can
//! refer to one value in a billion ways.

mod emit;
mod json;
mod machine;

use std::borrow::Cow;

pub use emit::Emitter;
pub use machine::{Fault, Limits, read};

/// Arguments that a subclass of dict is looked through for entries: `defaultdict` has two.
const MAX_ARGUMENTS: usize = 4;
/// The longest key that becomes part of a tensor's name.
const MAX_KEY: usize = 4096;

/// Index of a value in its [`Document`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u32);

/// A stretch of the document's text or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// One value of a pickle.
#[derive(Clone, Debug)]
pub enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond i64: little-endian two's complement bytes, or decimal text.
    BigInt(Span),
    Float(f64),
    Str(Span),
    Bytes(Span),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    /// Keys and values in the order they were set; a key may stand more than once, the last counts.
    Dict(Vec<(Id, Id)>),
    /// A class or function, by module and name.
    Global(Span, Span),
    /// What PyTorch uses to refer to a storage: `("storage", class, key, location, elements)`.
    Persistent(Id),
    Object(Box<Object>),
}

/// A call that was recorded instead of made, and what was done to its result.
#[derive(Clone, Debug)]
pub struct Object {
    pub callable: Id,
    /// A tuple, for well-formed pickles.
    pub args: Id,
    /// Made by `NEWOBJ`: `callable` is a class, not a function.
    pub is_new: bool,
    /// What `BUILD` gave it, usually its `__dict__`.
    pub state: Option<Id>,
    /// What was appended to it, for subclasses of list.
    pub items: Vec<Id>,
    /// What was set in it, for subclasses of dict such as `OrderedDict`.
    pub entries: Vec<(Id, Id)>,
}

/// A pickle's values.
#[derive(Clone, Debug, Default)]
pub struct Document {
    nodes: Vec<Node>,
    /// What `Str` and `Global` refer to. Checked when it was read, so that looking is free.
    text: String,
    /// What `Bytes` and `BigInt` refer to.
    bytes: Vec<u8>,
    root: u32,
    len: u64,
}

impl Document {
    /// What the pickle's `STOP` returned.
    pub fn root(&self) -> Id {
        Id(self.root)
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Length of the pickle in bytes: a measure for what may be spent on it.
    pub(crate) fn pickle_len(&self) -> u64 {
        self.len
    }

    fn text(&self, span: Span) -> &str {
        &self.text[span.range()]
    }

    /// The text of a `Str`. Lone surrogates and other broken text were replaced by U+FFFD.
    pub fn str(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Str(span) => Some(self.text(*span)),
            _ => None,
        }
    }

    /// The bytes of a `Bytes` or of the text of a `Str`.
    pub fn bytes(&self, id: Id) -> Option<&[u8]> {
        match self.node(id) {
            Node::Bytes(span) => Some(&self.bytes[span.range()]),
            Node::Str(span) => Some(self.text(*span).as_bytes()),
            _ => None,
        }
    }

    /// Every value of the pickle, in the order they were made.
    pub fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        (0..self.nodes.len() as u32).map(Id)
    }

    /// The little-endian bytes of an integer beyond i64, for those written in binary.
    pub fn big_int(&self, id: Id) -> Option<&[u8]> {
        match self.node(id) {
            Node::BigInt(span) => Some(&self.bytes[span.range()]),
            _ => None,
        }
    }

    pub fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(value) => Some(*value),
            Node::Bool(value) => Some(*value as i64),
            _ => None,
        }
    }

    /// The elements of a list or tuple; also of `torch.Size`, and of subclasses of list.
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::List(items) | Node::Tuple(items) => Some(items),
            Node::Object(object) => match self.global(object.callable)? {
                ("torch", "Size") => self.tuple(object.args).first().and_then(|&inner| self.sequence_plain(inner)),
                _ if !object.items.is_empty() => Some(&object.items),
                _ => None,
            },
            _ => None,
        }
    }

    fn sequence_plain(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::List(items) | Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The elements of a tuple, or none where `id` is something else.
    pub fn tuple(&self, id: Id) -> &[Id] {
        match self.node(id) {
            Node::Tuple(items) => items,
            _ => &[],
        }
    }

    /// Module and name of a class or function. Python 2's names of built-ins read as Python 3's.
    pub fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global(module, name) => {
                let module = match self.text(*module) {
                    "__builtin__" => "builtins",
                    "copy_reg" => "copyreg",
                    other => other,
                };
                Some((module, self.text(*name)))
            }
            _ => None,
        }
    }

    pub fn object(&self, id: Id) -> Option<&Object> {
        match self.node(id) {
            Node::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The class an object is an instance of, however its pickle spells the construction.
    pub fn class(&self, id: Id) -> Option<(&str, &str)> {
        let object = self.object(id)?;
        match self.global(object.callable)? {
            ("copyreg", "_reconstructor" | "__newobj__" | "__newobj_ex__") => {
                self.global(*self.tuple(object.args).first()?)
            }
            class => Some(class),
        }
    }

    /// Keys and values of a dict, `OrderedDict`, `defaultdict` or other subclass of dict.
    pub fn entries(&self, id: Id) -> Option<Cow<'_, [(Id, Id)]>> {
        match self.node(id) {
            Node::Dict(entries) => Some(entries.into()),
            Node::Object(object) => {
                let dict_like = matches!(
                    self.class(id),
                    Some(("collections", "OrderedDict" | "defaultdict" | "Counter") | ("builtins", "dict"))
                );
                let mut given = Vec::new();
                if dict_like {
                    // Python 2 wrote OrderedDict([[key, value], …]).
                    for &arg in self.tuple(object.args).iter().take(MAX_ARGUMENTS) {
                        for &pair in self.sequence_plain(arg).unwrap_or(&[]) {
                            if let Some(&[key, value]) = self.sequence_plain(pair) {
                                given.push((key, value));
                            }
                        }
                        if let Node::Dict(entries) = self.node(arg) {
                            given.extend_from_slice(entries);
                        }
                    }
                }
                if given.is_empty() {
                    return (dict_like || !object.entries.is_empty()).then_some(object.entries.as_slice().into());
                }
                given.extend_from_slice(&object.entries);
                Some(given.into())
            }
            _ => None,
        }
    }

    /// An object's attributes: its state where that is a dict, or a pair of a dict and slots.
    pub fn attributes(&self, id: Id) -> Option<Cow<'_, [(Id, Id)]>> {
        let state = self.object(id)?.state?;
        match self.node(state) {
            Node::Tuple(parts) => {
                let found: Vec<_> =
                    parts.iter().take(2).filter_map(|&part| self.entries(part)).flat_map(Cow::into_owned).collect();
                (!found.is_empty()).then_some(found.into())
            }
            _ => self.entries(state),
        }
    }

    /// How many values [`Document::entries`] and [`Document::attributes`] look at: what they cost.
    pub(crate) fn width(&self, id: Id) -> u64 {
        let own = |id| match self.node(id) {
            Node::List(items) | Node::Tuple(items) | Node::Set(items) => items.len(),
            Node::Dict(entries) => entries.len(),
            Node::Object(object) => object.items.len() + object.entries.len(),
            _ => 0,
        };
        let with_arguments = |id| match self.object(id) {
            Some(object) => {
                own(id) + self.tuple(object.args).iter().take(MAX_ARGUMENTS).map(|&arg| own(arg)).sum::<usize>()
            }
            None => own(id),
        };
        let state = self.object(id).and_then(|object| object.state);
        let parts = state.map_or(&[][..], |state| self.tuple(state));
        let below = state.iter().chain(parts.iter().take(2)).map(|&part| with_arguments(part)).sum::<usize>();
        (with_arguments(id) + below) as u64
    }

    /// The value of a text key: the last one set, as Python has it.
    pub fn get(&self, id: Id, key: &str) -> Option<Id> {
        let entries = self.entries(id)?;
        entries.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|(_, value)| *value)
    }

    /// Every class and function the pickle names, as `module.name`, each once, in order of appearance.
    pub fn globals(&self) -> Vec<String> {
        let mut seen = indexmap::IndexSet::new();
        for id in self.ids() {
            if let Some((module, name)) = self.global(id) {
                seen.insert(format!("{module}.{name}"));
            }
        }
        seen.into_iter().collect()
    }

    /// A mapping key as part of a tensor's name: text as it is, integers in decimal. None for
    /// keys of other types and for text of more than 4096 bytes.
    pub fn key_name(&self, id: Id) -> Option<String> {
        match self.node(id) {
            Node::Str(span) => (span.len as usize <= MAX_KEY).then(|| self.text(*span).to_owned()),
            Node::Int(value) => Some(value.to_string()),
            Node::Bool(value) => Some(if *value { "True" } else { "False" }.to_owned()),
            Node::None => Some("None".to_owned()),
            Node::Tuple(items) => {
                let parts: Option<Vec<String>> = items.iter().take(8).map(|&item| self.scalar_name(item)).collect();
                parts.map(|parts| format!("({})", parts.join(", ")))
            }
            _ => None,
        }
    }

    fn scalar_name(&self, id: Id) -> Option<String> {
        match self.node(id) {
            Node::Tuple(_) => None,
            _ => self.key_name(id),
        }
    }
}
