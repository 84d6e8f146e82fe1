//! Files from before PyTorch 1.6: five pickles in a row (magic number, protocol, system,
//! the object, the storage keys), then each storage as a count and its elements. Also plain
//! pickles, which start the same way and may hold numpy arrays.

use std::collections::HashMap;
use std::io::{BufReader, Seek, SeekFrom};

use super::source::Source;
use super::torch::{Data, Found, storage_key};
use super::{Format, StorageBytes, Storages};
use crate::pickle::{self, Document, Fault, Node};
use crate::{Error, Result, show_name};

/// 0x1950a86a20f9469cfc6c, little-endian, as the first pickle holds it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

/// The pickles at the start of the file.
pub(crate) struct Legacy {
    pub format: Format,
    pub document: Document,
    big_endian: bool,
    keys: Vec<String>,
    /// Where the first storage's count stands.
    data: u64,
}

pub(crate) fn open(source: &Source) -> Result<Legacy> {
    let file = source.file.try_clone().map_err(|e| Error::io(&source.path, "open", e))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    reader.seek(SeekFrom::Start(0)).map_err(|e| Error::io(&source.path, "read", e))?;
    let mut at = 0;
    let mut next = |what: &str| -> Result<Document> {
        let limits = pickle::Limits::default();
        let (document, length) =
            pickle::read(&mut reader, source.len - at, limits).map_err(|Fault { position, reason }| {
                let fault = Fault { position: at + position, reason };
                Error::file(&source.path, format!("{what}{fault}"))
            })?;
        at += length;
        Ok(document)
    };

    let first = next("")?;
    let is_magic = match first.node(first.root()) {
        Node::BigInt(_) => first.big_int(first.root()) == Some(&MAGIC),
        _ => false,
    };
    if !is_magic {
        // Not PyTorch's: a pickle by itself, which can hold numpy arrays.
        return Ok(Legacy {
            format: Format::Pickle,
            document: first,
            big_endian: false,
            keys: Vec::new(),
            data: source.len,
        });
    }
    let protocol = next("protocol version: ")?;
    if protocol.int(protocol.root()) != Some(PROTOCOL) {
        return Err(Error::file(&source.path, "an old PyTorch file of an unknown protocol version (1001 is known)"));
    }
    let system = next("system description: ")?;
    let little = system.get(system.root(), "little_endian").and_then(|id| system.int(id));
    let document = next("")?;
    let keys = next("storage keys: ")?;
    let items = keys.sequence(keys.root());
    // Each storage has a count of eight bytes behind the list.
    if items.is_some_and(|items| items.len() as u64 > (source.len - at) / 8) {
        return Err(Error::file(
            &source.path,
            "it lists more storages than the file has room for: cut short or damaged",
        ));
    }
    let keys = items
        .and_then(|items| items.iter().map(|&item| storage_key(&keys, item)).collect::<Option<Vec<_>>>())
        .ok_or_else(|| Error::file(&source.path, "its list of storage keys is not a list of names"))?;
    Ok(Legacy { format: Format::TorchLegacy, document, big_endian: little == Some(0), keys, data: at })
}

impl Legacy {
    /// Where each storage lies. Their sizes follow from the dtypes the pickle gives them.
    pub(crate) fn storages(&self, source: &Source, found: &Found) -> Result<Storages> {
        let bad = |reason: String| Error::file(&source.path, reason);
        let mut elements: HashMap<&str, usize> = HashMap::new();
        for tensor in &found.tensors {
            if let Data::Storage { storage, .. } = &tensor.data {
                elements.insert(&storage.key, storage.element);
            }
        }
        // Storages that the chosen root doesn't reach lie between the others and count too.
        let everywhere = self.document.storage_elements();
        let mut at = self.data;
        let mut bytes = HashMap::new();
        for key in &self.keys {
            let element = elements.get(key.as_str()).or_else(|| everywhere.get(key)).copied().ok_or_else(|| {
                bad(format!("storage '{}' is listed, and nothing says of which dtype it is", show_name(key)))
            })?;
            let cut = || bad(format!("the file ends before storage '{}': cut short or damaged", show_name(key)));
            if source.len.saturating_sub(at) < 8 {
                return Err(cut());
            }
            let mut count = [0; 8];
            source.read_exact_at(&mut count, at)?;
            let count = if self.big_endian { u64::from_be_bytes(count) } else { u64::from_le_bytes(count) };
            at += 8;
            let len = count.checked_mul(element as u64).filter(|&len| len <= source.len - at).ok_or_else(cut)?;
            if bytes.insert(key.clone(), StorageBytes { start: at, len }).is_some() {
                return Err(bad(format!("storage '{}' is listed twice", show_name(key))));
            }
            at += len;
        }
        Ok(Storages { big_endian: self.big_endian, bytes })
    }
}

/// What the tar files of PyTorch before 0.1.10 hold first.
pub(crate) fn is_tar(head: &[u8]) -> bool {
    let name = head.iter().position(|&b| b == 0).map(|end| &head[..end]);
    head.get(257..262) == Some(b"ustar")
        || matches!(name, Some(b"sys_info" | b"pickle" | b"storages" | b"tensors")) && head.len() >= 512
}
