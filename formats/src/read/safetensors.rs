//! safetensors, alone or in shards named by an index.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::source::Source;
use super::torch::MAX_DIMENSIONS;
use crate::error::show_reason;
use crate::tensor::bytes_of;
use crate::{Dtype, Error, Result, TensorInfo, show_name};

/// The format's own limit for a header.
const MAX_HEADER: u64 = 100_000_000;
const MAX_INDEX: u64 = 100_000_000;

/// Tensors of one file with the position of their first byte, and the file's metadata.
pub(crate) struct Header {
    pub tensors: Vec<(TensorInfo, u64)>,
    pub metadata: BTreeMap<String, String>,
}

/// Whether a file starts like safetensors: a length, then a JSON object.
pub(crate) fn looks_like(head: &[u8]) -> bool {
    head.get(8) == Some(&b'{') && head.len() >= 10
}

/// Whether a file starts like safetensors with a length that the format allows.
pub(crate) fn looks_certain(head: &[u8]) -> bool {
    let length = head.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    looks_like(head) && length.is_some_and(|length| length <= MAX_HEADER)
}

pub(crate) fn open(source: &Source) -> Result<Header> {
    let bad = |reason: String| Error::file(&source.path, reason);
    let mut length = [0; 8];
    if source.len < 8 {
        return Err(bad("cut short: a safetensors file starts with 8 bytes of header length".into()));
    }
    source.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(bad(format!("its header claims {length} bytes; the format allows {MAX_HEADER}")));
    }
    let data = 8 + length;
    if data > source.len {
        return Err(bad(format!(
            "its header claims {length} bytes and the file holds {}: cut short or damaged",
            source.len - 8
        )));
    }
    let mut text = vec![0; length as usize];
    source.read_exact_at(&mut text, 8)?;
    let text = std::str::from_utf8(&text).map_err(|_| bad("its header is not UTF-8 text".into()))?;
    let header: RawHeader = serde_json::from_str(text)
        .map_err(|e| bad(format!("its header can't be read: {}", show_reason(&e.to_string()))))?;

    let mut entries = Vec::with_capacity(header.tensors.len());
    for (name, raw) in header.tensors {
        let fault = |reason: String| Error::tensor(&source.path, &name, reason);
        let dtype = Dtype::from_safetensors_name(&raw.dtype)
            .ok_or_else(|| fault(format!("dtype {} is not known", show_name(&raw.dtype))))?;
        let (start, end) = raw.data_offsets;
        if raw.shape.len() > MAX_DIMENSIONS {
            return Err(fault(format!("it has {} dimensions; PyTorch allows {MAX_DIMENSIONS}", raw.shape.len())));
        }
        let shape = raw.shape.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| fault("a dimension is too large".into()))?;
        let size = bytes_of(&shape, dtype).ok_or_else(|| fault(format!("shape {shape:?} overflows")))?;
        if end.checked_sub(start) != Some(size as u64) {
            return Err(fault(format!(
                "shape {shape:?} of {dtype} needs {size} bytes, its offsets are {start} to {end}"
            )));
        }
        if end > source.len - data {
            return Err(fault(format!(
                "its offsets end at {end} and the file holds {} bytes of data: cut short or damaged",
                source.len - data
            )));
        }
        entries.push((TensorInfo { name, dtype, shape }, start, end));
    }
    // The format allows no overlap and no gap, so that no bytes can hide in a file.
    entries.sort_by_key(|(_, start, end)| (*start, *end));
    let mut expected = 0;
    for (info, start, end) in &entries {
        if *start != expected {
            let what = if *start < expected { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(Error::tensor(
                &source.path,
                &info.name,
                format!("its data {what} (starts at {start}, expected {expected})"),
            ));
        }
        expected = *end;
    }
    if expected != source.len - data {
        return Err(bad(format!("{} bytes follow the last tensor", source.len - data - expected)));
    }
    let tensors = entries.into_iter().map(|(info, start, _)| (info, data + start)).collect();
    Ok(Header { tensors, metadata: header.metadata })
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: IndexMap<String, RawTensor>,
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

// By hand, because a derived map would silently keep the last of two equal names.
impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a safetensors header")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { metadata: BTreeMap::new(), tensors: IndexMap::new() };
                let mut has_metadata = false;
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        if std::mem::replace(&mut has_metadata, true) {
                            return Err(serde::de::Error::custom("__metadata__ stands in it twice"));
                        }
                        header.metadata = map.next_value::<Unique<String>>()?.0.into_iter().collect();
                    } else {
                        let shown = show_name(&key);
                        let tensor =
                            map.next_value().map_err(|e| serde::de::Error::custom(format!("tensor '{shown}': {e}")))?;
                        if header.tensors.insert(key, tensor).is_some() {
                            return Err(serde::de::Error::custom(format!("tensor '{shown}' stands in it twice")));
                        }
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A JSON object in which no key stands twice.
struct Unique<V>(IndexMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique<V>, D::Error> {
        struct UniqueVisitor<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
                let mut entries = IndexMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    let shown = show_name(&key);
                    if entries.insert(key, value).is_some() {
                        return Err(serde::de::Error::custom(format!("'{shown}' stands in it twice")));
                    }
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(UniqueVisitor(std::marker::PhantomData))
    }
}

/// The shards an index names, each with the tensors it holds, in the index's order.
pub(crate) struct Index {
    pub shards: IndexMap<String, Vec<String>>,
    pub metadata: BTreeMap<String, String>,
}

/// Whether a file starts like JSON; `open_index` then says whether it is an index.
pub(crate) fn looks_like_index(head: &[u8]) -> bool {
    head.trim_ascii_start().first() == Some(&b'{')
}

pub(crate) fn open_index(source: &Source) -> Result<Index> {
    let bad = |reason: String| Error::file(&source.path, reason);
    if source.len > MAX_INDEX {
        return Err(bad(format!("a JSON file of {} bytes; an index of shards is at most {MAX_INDEX}", source.len)));
    }
    let text = source.head(source.len as usize)?;
    #[derive(serde::Deserialize)]
    struct RawIndex {
        #[serde(default)]
        metadata: BTreeMap<String, Scalar>,
        weight_map: Unique<String>,
    }
    let raw: RawIndex = serde_json::from_slice(&text).map_err(|e| {
        bad(format!("a JSON file that is no index of safetensors shards ({})", show_reason(&e.to_string())))
    })?;
    let mut shards: IndexMap<String, Vec<String>> = IndexMap::new();
    for (tensor, file) in raw.weight_map.0 {
        // A shard lies beside its index: anything else could read any file of the machine.
        let mut parts = Path::new(&file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(Error::tensor(
                &source.path,
                tensor,
                format!("shard '{}' is not a plain file name", show_name(&file)),
            ));
        }
        shards.entry(file).or_default().push(tensor);
    }
    let metadata = raw.metadata.into_iter().filter_map(|(key, value)| Some((key, value.0?)));
    Ok(Index { shards, metadata: metadata.collect() })
}

/// A JSON text, number or truth value as text. Lists and objects, whose values would take many times
/// the memory of their letters, are read over.
struct Scalar(Option<String>);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        struct ScalarVisitor;
        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(Some(text.to_owned())))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Scalar, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Scalar, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar(None))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}
