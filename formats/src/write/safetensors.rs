//! The safetensors container: header first, then each tensor at its offset.

use std::cmp::Reverse;
use std::fs::File;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Metadata;
use crate::{Error, Result, TensorInfo};

#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// Bytes before the tensors: the length and the header.
    data: u64,
    /// Where each tensor starts, after `data`.
    offsets: Vec<u64>,
}

impl Sink {
    pub(super) fn create(path: &Path, file: File, tensors: &mut [TensorInfo], metadata: &Metadata) -> Result<Sink> {
        // Wide elements first, as the format's own writer does, so that every tensor is aligned.
        tensors.sort_by_key(|info| Reverse(info.dtype.size()));
        let mut offsets = Vec::with_capacity(tensors.len());
        let mut end = 0;
        for info in tensors.iter() {
            if info.dtype.safetensors_name().is_none() {
                let reason = format!("safetensors has no {} values; write a .ckpt instead", info.dtype);
                return Err(Error::tensor(path, &info.name, reason));
            }
            if info.name == "__metadata__" {
                return Err(Error::tensor(
                    path,
                    &info.name,
                    "safetensors keeps this name for itself; write a .ckpt instead",
                ));
            }
            offsets.push(end);
            end += info.bytes() as u64;
        }
        let header = header(tensors, &offsets, metadata);
        let data = 8 + header.len() as u64;
        file.set_len(data + end).map_err(|e| Error::io(path, "write", e))?;
        Ok(Sink { file, data, offsets })
    }

    pub(super) fn write_at(&self, path: &Path, tensor: usize, at: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, bytes, self.data + self.offsets[tensor] + at).map_err(|e| Error::io(path, "write", e))
    }

    pub(super) fn finish(&self, path: &Path, tensors: &[TensorInfo], metadata: &Metadata) -> Result<()> {
        let mut header = header(tensors, &self.offsets, metadata);
        let room = (self.data - 8) as usize;
        if header.len() > room {
            return Err(Error::file(path, format!("its metadata grew to {} bytes of {room} reserved", header.len())));
        }
        header.resize(room, b' ');
        let mut bytes = (room as u64).to_le_bytes().to_vec();
        bytes.append(&mut header);
        write_all_at(&self.file, &bytes, 0).map_err(|e| Error::io(path, "write", e))
    }
}

/// The header's JSON, metadata first and in order of its keys: equal inputs give equal bytes.
fn header(tensors: &[TensorInfo], offsets: &[u64], metadata: &Metadata) -> Vec<u8> {
    let mut map = Map::new();
    let mut texts: Metadata = metadata.clone();
    // Without it, loaders built on PyTorch refuse the file.
    texts.entry("format".into()).or_insert_with(|| "pt".into());
    map.insert("__metadata__".into(), json!(texts));
    for (info, offset) in tensors.iter().zip(offsets) {
        let entry = json!({
            "dtype": info.dtype.safetensors_name(),
            "shape": info.shape,
            "data_offsets": [offset, offset + info.bytes() as u64],
        });
        map.insert(info.name.clone(), entry);
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        bytes = &bytes[count..];
        at += count as u64;
    }
    Ok(())
}
