//! Plain data of a pickle as JSON, for people and for configuration.

use serde_json::{Map, Number, Value, json};

use super::{Document, Id, Node};

/// Values that may be converted, how deep they may nest, and bytes of text they may hold, before
/// the rest is left out. One text may stand in a pickle once and be meant a million times.
const MAX_VALUES: usize = 50_000;
const MAX_DEPTH: usize = 40;
const MAX_TEXT: usize = 8 << 20;

impl Document {
    /// A value as JSON. Dicts keep their order; an object of a class becomes a JSON object with
    /// `__class__` and its attributes; tensors, functions and bytes are named, not shown. What
    /// nests deeper than 40 levels, or comes after 50,000 values or 8 MiB of text, becomes
    /// `{"__omitted__": …}`.
    pub fn to_json(&self, id: Id) -> Value {
        Conversion { doc: self, values: MAX_VALUES, text: MAX_TEXT }.json(id, 0)
    }
}

struct Conversion<'a> {
    doc: &'a Document,
    /// What is left of each limit.
    values: usize,
    text: usize,
}

impl Conversion<'_> {
    fn json(&mut self, id: Id, depth: usize) -> Value {
        if self.values == 0 {
            return omitted("too many values");
        }
        self.values -= 1;
        if depth > MAX_DEPTH {
            return omitted("nested too deep");
        }
        match self.doc.node(id) {
            Node::None => Value::Null,
            Node::Bool(value) => json!(value),
            Node::Int(value) => json!(value),
            Node::BigInt(_) => json!({"__class__": "int", "__omitted__": "beyond 64 bits"}),
            Node::Float(value) => float(*value),
            Node::Str(_) => self.string(self.doc.str(id).unwrap_or("")),
            Node::Bytes(span) => json!({"__class__": "bytes", "len": span.len}),
            Node::List(items) | Node::Tuple(items) | Node::Set(items) => self.array(items, depth),
            Node::Dict(entries) => {
                let mut map = Map::new();
                self.fill(&mut map, entries, depth);
                Value::Object(map)
            }
            Node::Global(..) => json!({"__global__": self.global_name(self.doc.global(id))}),
            Node::Persistent(_) => json!({"__class__": "torch.storage"}),
            Node::Object(_) => self.object(id, depth),
        }
    }

    fn string(&mut self, text: &str) -> Value {
        match self.spend(text) {
            true => json!(text),
            false => omitted("too much text"),
        }
    }

    /// Counts text about to be copied. Where there is no room for it, the conversion ends.
    fn spend(&mut self, text: &str) -> bool {
        match self.text.checked_sub(text.len()) {
            Some(left) => self.text = left,
            None => self.values = 0,
        }
        self.values > 0
    }

    fn array(&mut self, items: &[Id], depth: usize) -> Value {
        let mut array = Vec::new();
        for &item in items {
            let ends = self.values == 0;
            array.push(self.json(item, depth + 1));
            if ends {
                break;
            }
        }
        Value::Array(array)
    }

    fn fill(&mut self, map: &mut Map<String, Value>, entries: &[(Id, Id)], depth: usize) {
        for &(key, value) in entries {
            let name = self.doc.key_name(key).unwrap_or_else(|| "?".into());
            if !self.spend(&name) {
                map.insert("__omitted__".into(), json!("too many values"));
                break;
            }
            let value = self.json(value, depth + 1);
            map.insert(name, value);
        }
    }

    fn object(&mut self, id: Id, depth: usize) -> Value {
        let doc = self.doc;
        let Some(object) = doc.object(id) else { return Value::Null };
        if let Some(value) = doc.numpy_scalar(id) {
            return value;
        }
        let class = doc.class(id);
        let args = doc.tuple(object.args);
        let mut map = Map::new();
        match class {
            Some(("torch._utils" | "torch._tensor", name)) if name.starts_with("_rebuild") => {
                return json!({"__class__": "torch.Tensor"});
            }
            Some(("torch", "Size")) => return self.array(doc.sequence(id).unwrap_or(&[]), depth),
            Some(("torch", "device")) => {
                // A kind and a number.
                let parts: Vec<String> = args.iter().take(2).filter_map(|&part| doc.key_name(part)).collect();
                return self.string(&parts.join(":"));
            }
            Some(("collections", "OrderedDict" | "defaultdict")) => {
                self.fill(&mut map, &doc.entries(id).unwrap_or_default(), depth);
                return Value::Object(map);
            }
            _ => {}
        }
        map.insert("__class__".into(), self.global_name(class));
        // The first argument of a reconstructor is the class itself.
        if doc.global(object.callable) == class && !args.is_empty() {
            map.insert("__args__".into(), self.array(args, depth));
        }
        match (doc.attributes(id), object.state) {
            (Some(attributes), _) => self.fill(&mut map, &attributes, depth),
            (None, Some(state)) => {
                map.insert("__state__".into(), self.json(state, depth + 1));
            }
            (None, None) => {}
        }
        if !object.items.is_empty() {
            map.insert("__items__".into(), self.array(&object.items, depth));
        }
        self.fill(&mut map, &object.entries, depth);
        Value::Object(map)
    }

    fn global_name(&mut self, global: Option<(&str, &str)>) -> Value {
        match global {
            Some((module, name)) => self.string(&format!("{module}.{name}")),
            None => json!("?"),
        }
    }
}

impl Document {
    /// The value of `numpy.core.multiarray.scalar(dtype, bytes)`.
    fn numpy_scalar(&self, id: Id) -> Option<Value> {
        let (module, name) = self.class(id)?;
        if !module.starts_with("numpy") || name != "scalar" {
            return None;
        }
        let &[dtype, data] = self.tuple(self.object(id)?.args) else { return None };
        let (dtype, big_endian) = self.numpy_dtype(dtype)?;
        let mut bytes = self.numpy_bytes(data, dtype.size())?;
        if big_endian {
            bytes.reverse();
        }
        let mut out = Vec::new();
        if bytes.len() != dtype.size() || !crate::decode_f64(&bytes, dtype, &mut out) {
            return None;
        }
        let value = out.first().copied()?;
        Some(if dtype.is_float() { float(value) } else { json!(value as i64) })
    }
}

fn omitted(reason: &str) -> Value {
    json!({ "__omitted__": reason })
}

fn float(value: f64) -> Value {
    // JSON has no NaN and no infinities.
    Number::from_f64(value).map_or_else(|| json!(value.to_string()), Value::Number)
}
