//! PyTorch's zip container: one stored entry a tensor, then the pickle that names them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use zip::write::{FullFileOptions, SimpleFileOptions, ZipWriter};
use zip::{CompressionMethod, DateTime};

use super::Metadata;
use crate::checkpoint::METADATA_KEY;
use crate::pickle::Emitter;
use crate::{Error, Result, TensorInfo};

/// The folder every entry lies in. PyTorch uses the file's name; any will do.
const TOP: &str = "archive";
/// PyTorch aligns storages so that a file can be mapped.
const ALIGNMENT: u16 = 64;

const DEFAULT_ROOT: &str = "state_dict";

pub(super) struct Sink {
    path: PathBuf,
    zip: ZipWriter<File>,
    /// The key that the tensors are under.
    pub(super) root: String,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Sink {
    pub(super) fn create(path: &Path, file: File) -> Sink {
        Sink { path: path.to_owned(), zip: ZipWriter::new(file), root: DEFAULT_ROOT.into() }
    }

    /// Appends bytes to a tensor's entry, which `first` opens.
    pub(super) fn write(&mut self, tensor: usize, info: &TensorInfo, first: bool, bytes: &[u8]) -> Result<()> {
        if first {
            self.start(&format!("data/{tensor}"), info.bytes() as u64)?;
        }
        self.append(bytes)
    }

    pub(super) fn finish(mut self, tensors: &[TensorInfo], metadata: &Metadata) -> Result<()> {
        for (name, bytes) in
            [("data.pkl", &pickle(&self.root, tensors, metadata)[..]), ("byteorder", b"little"), ("version", b"3\n")]
        {
            self.start(name, bytes.len() as u64)?;
            self.append(bytes)?;
        }
        let Sink { path, zip, .. } = self;
        zip.finish().map_err(|e| fault(&path, e)).map(drop)
    }

    fn start(&mut self, name: &str, size: u64) -> Result<()> {
        let options: FullFileOptions = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(size >= u32::MAX.into())
            .with_alignment(ALIGNMENT)
            .into_full_options();
        self.zip.start_file(format!("{TOP}/{name}"), options).map_err(|e| fault(&self.path, e))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.zip.write_all(bytes).map_err(|e| Error::io(&self.path, "write", e))
    }
}

fn fault(path: &Path, error: zip::result::ZipError) -> Error {
    match error {
        zip::result::ZipError::Io(e) => Error::io(path, "write", e),
        other => Error::file(path, format!("can't be written as a zip file: {other}")),
    }
}

/// `{root: OrderedDict of tensors, "vlmerge_metadata": {…}}`
fn pickle(root: &str, tensors: &[TensorInfo], metadata: &Metadata) -> Vec<u8> {
    let mut p = Emitter::new();
    p.empty_dict().mark();
    p.str(root).ordered_dict().mark();
    for (number, info) in tensors.iter().enumerate() {
        p.str(&info.name).tensor(info.dtype, &number.to_string(), &info.shape);
    }
    p.set_items();
    p.str(METADATA_KEY).empty_dict().mark();
    for (key, value) in metadata {
        p.str(key).str(value);
    }
    p.set_items().set_items();
    p.finish()
}
