//! The containers a checkpoint can come in, told apart by their first bytes.

pub(crate) mod legacy;
pub(crate) mod safetensors;
pub(crate) mod source;
pub(crate) mod strided;
pub(crate) mod torch;
pub(crate) mod zip;

use std::collections::HashMap;

use source::Source;

use crate::{Error, Result};

/// The container a checkpoint was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// PyTorch 1.6 and later: a zip file.
    TorchZip,
    /// PyTorch before 1.6: a stream of pickles.
    TorchLegacy,
    /// A plain pickle with numpy arrays in it.
    Pickle,
    Safetensors,
    /// An index and the safetensors files it names.
    ShardedSafetensors,
}

impl Format {
    /// The name used in `--json`.
    pub fn name(self) -> &'static str {
        match self {
            Format::TorchZip => "pytorch-zip",
            Format::TorchLegacy => "pytorch-legacy",
            Format::Pickle => "pickle",
            Format::Safetensors => "safetensors",
            Format::ShardedSafetensors => "sharded-safetensors",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::TorchZip => "PyTorch zip",
            Format::TorchLegacy => "PyTorch legacy (before 1.6)",
            Format::Pickle => "plain pickle",
            Format::Safetensors => "safetensors",
            Format::ShardedSafetensors => "sharded safetensors",
        })
    }
}

/// Where a storage's bytes lie in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StorageBytes {
    pub start: u64,
    pub len: u64,
}

/// Every storage of a PyTorch file by key.
#[derive(Debug, Default)]
pub(crate) struct Storages {
    pub big_endian: bool,
    pub bytes: HashMap<String, StorageBytes>,
}

/// Decides by content which container a file is.
pub(crate) fn sniff(source: &Source) -> Result<Format> {
    let head = source.head(512)?;
    let bad = |reason: &str| Err(Error::file(&source.path, reason));
    match head.as_slice() {
        [] => bad("the file is empty"),
        // First, because a header of 640 bytes starts with the bytes of a pickle: 80 02.
        head if safetensors::looks_certain(head) => Ok(Format::Safetensors),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Ok(Format::TorchZip),
        // First, because a header's length can look like a pickle's start: 640 is 0x80 0x02.
        head if head.get(4..8) == Some(&[0; 4]) && safetensors::looks_like(head) => Ok(Format::Safetensors),
        [0x80, 2..=5, ..] => Ok(Format::TorchLegacy),
        head if legacy::is_tar(head) => bad(
            "a tar file, as PyTorch wrote before version 0.1.10; load it with an old PyTorch and save it again with torch.save",
        ),
        head if safetensors::looks_like(head) => Ok(Format::Safetensors),
        head if safetensors::looks_like_index(head) => Ok(Format::ShardedSafetensors),
        [0x1f, 0x8b, ..] => bad("a gzip file: unpack it with gunzip first"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => bad("a Zstandard file: unpack it with zstd -d first"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => bad("an xz file: unpack it with unxz first"),
        [0x89, b'H', b'D', b'F', ..] => bad("an HDF5 file, not a PyTorch or safetensors checkpoint"),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => bad("a numpy array file, not a PyTorch or safetensors checkpoint"),
        head if head.starts_with(b"GGUF") => bad("a GGUF file, not a PyTorch or safetensors checkpoint"),
        head if head.starts_with(b"version https://git-lfs") => {
            bad("a Git LFS pointer, not the file it stands for: fetch it with git lfs pull")
        }
        head if head.trim_ascii_start().starts_with(b"<") => {
            bad("a web page, not a checkpoint: did the download fail?")
        }
        head if head.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => {
            bad("a text file, not a PyTorch or safetensors checkpoint")
        }
        _ => bad("neither a PyTorch nor a safetensors checkpoint (its first bytes are of no known format)"),
    }
}
