//! Plain data of a pickle as JSON, for people and for configuration.

use serde_json::{Map, Number, Value, json};

use super::{Document, Id, Node};

/// Values that may be converted, and how deep they may nest, before the rest is left out.
const MAX_VALUES: usize = 200_000;
const MAX_DEPTH: usize = 40;

impl Document {
    /// A value as JSON. Dicts keep their order; an object of a class becomes a JSON object with
    /// `__class__` and its attributes; tensors, functions and bytes are named, not shown. What
    /// nests deeper than 40 levels, or comes after 200,000 values, becomes `{"__omitted__": …}`.
    pub fn to_json(&self, id: Id) -> Value {
        let mut budget = MAX_VALUES;
        self.json(id, 0, &mut budget)
    }

    fn json(&self, id: Id, depth: usize, budget: &mut usize) -> Value {
        if *budget == 0 || depth > MAX_DEPTH {
            return json!({"__omitted__": if *budget == 0 { "too many values" } else { "nested too deep" }});
        }
        *budget -= 1;
        match self.node(id) {
            Node::None => Value::Null,
            Node::Bool(value) => json!(value),
            Node::Int(value) => json!(value),
            Node::BigInt(_) => json!({"__class__": "int", "__omitted__": "beyond 64 bits"}),
            Node::Float(value) => float(*value),
            Node::Str(_) => json!(self.str(id).unwrap_or("")),
            Node::Bytes(span) => json!({"__class__": "bytes", "len": span.len}),
            Node::List(items) | Node::Tuple(items) | Node::Set(items) => {
                Value::Array(items.iter().map(|&item| self.json(item, depth + 1, budget)).collect())
            }
            Node::Dict(entries) => Value::Object(self.map(entries, depth, budget)),
            Node::Global(..) => json!({"__global__": self.global_name(id)}),
            Node::Persistent(_) => json!({"__class__": "torch.storage"}),
            Node::Object(_) => self.object_json(id, depth, budget),
        }
    }

    fn map(&self, entries: &[(Id, Id)], depth: usize, budget: &mut usize) -> Map<String, Value> {
        let mut map = Map::new();
        for &(key, value) in entries {
            if *budget == 0 {
                map.insert("__omitted__".into(), json!("too many values"));
                break;
            }
            let name = self.key_name(key).unwrap_or_else(|| "?".into());
            map.insert(name, self.json(value, depth + 1, budget));
        }
        map
    }

    fn object_json(&self, id: Id, depth: usize, budget: &mut usize) -> Value {
        let Some(object) = self.object(id) else { return Value::Null };
        if let Some(value) = self.numpy_scalar(id) {
            return value;
        }
        let class = self.class(id);
        match class {
            Some(("torch._utils" | "torch._tensor", name)) if name.starts_with("_rebuild") => {
                return json!({"__class__": "torch.Tensor"});
            }
            Some(("torch", "Size")) => {
                let items = self.sequence(id).unwrap_or(&[]);
                return Value::Array(items.iter().map(|&item| self.json(item, depth + 1, budget)).collect());
            }
            Some(("torch", "device")) => {
                let parts = self.tuple(object.args).iter().filter_map(|&part| self.key_name(part));
                return json!(parts.collect::<Vec<_>>().join(":"));
            }
            Some(("collections", "OrderedDict" | "defaultdict")) => {
                return Value::Object(self.map(&self.entries(id).unwrap_or_default(), depth, budget));
            }
            _ => {}
        }
        let mut map = Map::new();
        map.insert("__class__".into(), json!(self.global_name_of(class)));
        let args = self.tuple(object.args);
        // The first argument of a reconstructor is the class itself.
        let args = if self.global(object.callable) == class { args } else { &[] };
        if !args.is_empty() {
            let args = args.iter().map(|&arg| self.json(arg, depth + 1, budget)).collect();
            map.insert("__args__".into(), Value::Array(args));
        }
        if let Some(attributes) = self.attributes(id) {
            map.extend(self.map(&attributes, depth, budget));
        } else if let Some(state) = object.state {
            map.insert("__state__".into(), self.json(state, depth + 1, budget));
        }
        if !object.items.is_empty() {
            let items = object.items.iter().map(|&item| self.json(item, depth + 1, budget)).collect();
            map.insert("__items__".into(), Value::Array(items));
        }
        if !object.entries.is_empty() {
            map.extend(self.map(&object.entries, depth, budget));
        }
        Value::Object(map)
    }

    fn global_name(&self, id: Id) -> String {
        self.global_name_of(self.global(id))
    }

    fn global_name_of(&self, global: Option<(&str, &str)>) -> String {
        match global {
            Some((module, name)) => format!("{module}.{name}"),
            None => "?".into(),
        }
    }

    /// The value of `numpy.core.multiarray.scalar(dtype, bytes)`, for little-endian numbers.
    fn numpy_scalar(&self, id: Id) -> Option<Value> {
        let (module, name) = self.class(id)?;
        if !module.starts_with("numpy") || name != "scalar" {
            return None;
        }
        let &[dtype, data] = self.tuple(self.object(id)?.args) else { return None };
        let (dtype, big_endian) = self.numpy_dtype(dtype)?;
        let mut bytes = self.numpy_bytes(data)?;
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

fn float(value: f64) -> Value {
    // JSON has no NaN and no infinities.
    Number::from_f64(value).map_or_else(|| json!(value.to_string()), Value::Number)
}
