//! PyTorch's zip container: one stored entry a tensor, then the pickle that names them.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
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
    zip: ZipWriter<Target>,
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
        Sink { path: path.to_owned(), zip: ZipWriter::new(Target::new(file)), root: DEFAULT_ROOT.into() }
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
        let target = zip.finish().map_err(|e| fault(&path, e))?;
        target.check().map_err(|e| Error::io(&path, "write", e))
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
        self.zip
            .write_all(bytes)
            .and_then(|()| self.zip.get_ref().map_or(Ok(()), Target::check))
            .map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// The file under a [`ZipWriter`], which never hears of a failed write: it would try to finish the archive
/// when it is dropped, and say on stderr by itself that it can't. The failure is kept for [`Target::check`];
/// from then on nothing is written.
struct Target {
    file: File,
    position: u64,
    end: u64,
    failed: bool,
    fault: Cell<Option<io::Error>>,
}

impl Target {
    fn new(file: File) -> Target {
        Target { file, position: 0, end: 0, failed: false, fault: Cell::new(None) }
    }

    fn check(&self) -> io::Result<()> {
        self.fault.take().map_or(Ok(()), Err)
    }

    fn attempt(&mut self, action: impl FnOnce(&mut File) -> io::Result<()>) {
        if self.failed {
            return;
        }
        if let Err(e) = action(&mut self.file) {
            self.failed = true;
            self.fault.set(Some(e));
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(|file| file.write_all(bytes));
        self.position += bytes.len() as u64;
        self.end = self.end.max(self.position);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Target {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        let at = SeekFrom::Start(self.position);
        self.attempt(|file| file.seek(at).map(drop));
        Ok(self.position)
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
