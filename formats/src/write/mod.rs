//! Checkpoint files out: safetensors, and zip files that `torch.load(weights_only=True)` reads.
//!
//! A [`Writer`] knows every tensor's name, dtype and shape from the start, so each piece has its
//! place before its values exist. It writes a temporary file beside the target, which takes the
//! target's name in [`Writer::finish`]; until then an older file stays as it was.

mod atomic;
mod safetensors;
mod torch_zip;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

pub use atomic::{AtomicFile, TemporaryFolder, remove_unfinished, sync_folder, write_file, write_file_durably};

use crate::standard::{self, is_standard};
use crate::{Checkpoint, Error, Result, TensorInfo, parallel};

/// Text by key, kept in the file beside the tensors.
pub type Metadata = BTreeMap<String, String>;

/// Elements handed out at a time: 4 MiB of f32. Also the grain of content digests.
pub const PIECE: usize = 1 << 20;

/// The container an output gets, by its name's ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    Safetensors,
    TorchZip,
}

impl Container {
    /// `.safetensors`, and `-` for standard output; `.ckpt`, `.pth`, `.pt` and `.bin` for PyTorch.
    pub fn for_path(path: &Path) -> Result<Container> {
        if is_standard(path) {
            return Ok(Container::Safetensors);
        }
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("safetensors") => Ok(Container::Safetensors),
            Some("ckpt" | "pth" | "pt" | "bin") => Ok(Container::TorchZip),
            _ => Err(Error::file(
                path,
                "which format? name the output .safetensors, or .ckpt, .pth, .pt or .bin for PyTorch",
            )),
        }
    }
}

/// Refuses a target before any work is done: one that is read from, that exists without
/// `overwrite`, or that can't be written.
pub fn check_target(path: &Path, overwrite: bool, inputs: &[&Checkpoint]) -> Result<()> {
    Container::for_path(path)?;
    if is_standard(path) {
        return standard::check_output();
    }
    check_file_target(path, overwrite, inputs)
}

/// As [`check_target`], for a file that is no checkpoint.
pub fn check_file_target(path: &Path, overwrite: bool, inputs: &[&Checkpoint]) -> Result<()> {
    if is_standard(path) {
        return Err(Error::file(path, "this can't be written to standard output: name a file"));
    }
    if inputs.iter().any(|input| input.reads_from(path)) {
        return Err(Error::file(path, "this output is also an input: choose another name"));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Err(Error::file(path, "this is a folder")),
        Ok(_) if !overwrite => return Err(Error::file(path, "the file exists already; --force replaces it")),
        Ok(found) if !found.is_file() && !found.is_symlink() => {
            return Err(Error::file(path, "this is not a regular file"));
        }
        _ => {}
    }
    let folder = atomic::folder_of(path);
    if !folder.is_dir() {
        return Err(Error::file(path, format!("there is no folder {}", crate::show_path(folder))));
    }
    Ok(())
}

/// A checkpoint being written.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    place: Place,
    tensors: Vec<TensorInfo>,
    sink: Sink,
}

/// Where a checkpoint goes in the end.
#[derive(Debug)]
enum Place {
    Named(AtomicFile),
    /// To standard output.
    Standard(File),
}

#[derive(Debug)]
enum Sink {
    Safetensors(safetensors::Sink),
    TorchZip(Box<Mutex<torch_zip::Sink>>),
}

/// A run of one tensor's elements.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Position in [`Writer::tensors`].
    pub tensor: usize,
    pub elements: Range<usize>,
    /// Tensors that have the same bytes.
    also: Vec<usize>,
}

/// How a tensor's bytes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Production {
    /// In runs of [`PIECE`] elements.
    Runs,
    /// In one piece.
    Whole,
    /// Not at all: they are those of an earlier tensor of the same dtype and shape, which is produced whole.
    As(usize),
}

impl Piece {
    /// Tensors that its bytes are written to.
    pub fn copies(&self) -> usize {
        1 + self.also.len()
    }
}

impl Writer {
    /// Starts a file of `tensors`. The container follows from the path's ending; `-` is standard output, to which the
    /// file is copied when it is complete.
    ///
    /// `metadata` reserves the room that the final metadata, given to [`Writer::finish`], will
    /// need: the same keys with values as long.
    ///
    /// # Errors
    /// The folder can't be written to, or a dtype doesn't exist in the container.
    pub fn create(path: &Path, tensors: Vec<TensorInfo>, metadata: &Metadata) -> Result<Writer> {
        let container = Container::for_path(path)?;
        let name = standard::output_name(path);
        let fault = |e| Error::io(name, "write", e);
        let place = match is_standard(path) {
            // Tensors are written in any order, which a pipe can't take. The file has no name to be left behind.
            true => Place::Standard(tempfile::tempfile().map_err(fault)?),
            false => Place::Named(AtomicFile::create(path)?),
        };
        let handle = match &place {
            Place::Standard(file) => file.try_clone(),
            Place::Named(file) => file.file().try_clone(),
        };
        let (path, handle) = (name, handle.map_err(fault)?);
        let mut tensors = tensors;
        let sink = match container {
            Container::Safetensors => {
                Sink::Safetensors(safetensors::Sink::create(path, handle, &mut tensors, metadata)?)
            }
            Container::TorchZip => Sink::TorchZip(Box::new(Mutex::new(torch_zip::Sink::create(path, handle)))),
        };
        Ok(Writer { path: path.to_owned(), place, tensors, sink })
    }

    /// Puts the tensors of a PyTorch file under this key; without it they are under `state_dict`.
    pub fn under(mut self, root: &str) -> Writer {
        if let Sink::TorchZip(sink) = &mut self.sink {
            sink.get_mut().unwrap_or_else(PoisonError::into_inner).root = root.to_owned();
        }
        self
    }

    /// Has [`Writer::finish`] wait until the disk holds the file: for what can't be made again.
    pub fn durable(self) -> Writer {
        let place = match self.place {
            Place::Named(file) => Place::Named(file.durable()),
            standard => standard,
        };
        Writer { place, ..self }
    }

    /// The tensors in the order they are written, which may differ from the order they were given in.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Produces and writes every tensor, on `threads` threads.
    ///
    /// `whole` says which tensors must be produced in one piece; the others come in runs of
    /// [`PIECE`] elements. `produce` gets a piece and its thread's own `S`, which keeps buffers
    /// from one piece to the next, and returns the piece's bytes, row-major and little-endian.
    /// The file doesn't depend on the number of threads or their order.
    ///
    /// # Errors
    /// The first one `produce` returns, or the first failed write.
    pub fn fill<S: Default, E: From<Error> + Send>(
        &self,
        threads: usize,
        whole: impl Fn(usize) -> bool,
        produce: impl for<'s> Fn(&Piece, &'s mut S) -> Result<&'s [u8], E> + Sync,
    ) -> Result<(), E> {
        let production = |tensor| if whole(tensor) { Production::Whole } else { Production::Runs };
        self.fill_as(threads, production, produce)
    }

    /// As [`Writer::fill`], where tensors may have one another's bytes.
    ///
    /// # Errors
    /// As [`Writer::fill`].
    ///
    /// # Panics
    /// If [`Production::As`] names a tensor that isn't produced whole.
    pub fn fill_as<S: Default, E: From<Error> + Send>(
        &self,
        threads: usize,
        production: impl Fn(usize) -> Production,
        produce: impl for<'s> Fn(&Piece, &'s mut S) -> Result<&'s [u8], E> + Sync,
    ) -> Result<(), E> {
        let pieces = self.pieces(production);
        let turn = Turn::default();
        parallel::for_each(threads, pieces.len(), |number, state: &mut S| {
            let _guard = StopOnPanic(&turn);
            let piece = &pieces[number];
            let done = produce(piece, state).and_then(|bytes| self.write(&turn, number, piece, bytes).map_err(E::from));
            if number == 0 {
                crate::signals::pause_at("write");
            }
            done.inspect_err(|_| turn.stop())
        })
    }

    fn pieces(&self, production: impl Fn(usize) -> Production) -> Vec<Piece> {
        let mut whole: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut pieces = Vec::new();
        for (tensor, info) in self.tensors.iter().enumerate() {
            let elements = info.elements();
            let step = match production(tensor) {
                Production::Runs => PIECE,
                Production::Whole => {
                    whole.insert(tensor, Vec::new());
                    elements.max(1)
                }
                Production::As(other) => {
                    whole.get_mut(&other).expect("an earlier tensor that is produced whole").push(tensor);
                    continue;
                }
            };
            let mut start = 0;
            // An empty tensor is one empty piece: containers want to hear of it.
            loop {
                let end = elements.min(start + step);
                pieces.push(Piece { tensor, elements: start..end, also: Vec::new() });
                start = end;
                if start >= elements {
                    break;
                }
            }
        }
        if let Sink::Safetensors(_) = self.sink {
            // Any order will do here: with the big pieces first, no thread is left with one at the end.
            let size = |piece: &Piece| if whole.contains_key(&piece.tensor) { piece.elements.len() } else { 0 };
            pieces.sort_by_key(|piece| std::cmp::Reverse(size(piece)));
        }
        for piece in &mut pieces {
            piece.also = whole.remove(&piece.tensor).unwrap_or_default();
        }
        pieces
    }

    fn write(&self, turn: &Turn, number: usize, piece: &Piece, bytes: &[u8]) -> Result<()> {
        let tensors = || std::iter::once(piece.tensor).chain(piece.also.iter().copied());
        for info in tensors().map(|tensor| &self.tensors[tensor]) {
            let promised = piece.elements.len() * info.dtype.size();
            assert_eq!(bytes.len(), promised, "{}: piece of the promised size", info.name);
        }
        match &self.sink {
            Sink::Safetensors(sink) => {
                let at = (piece.elements.start * self.tensors[piece.tensor].dtype.size()) as u64;
                tensors().try_for_each(|tensor| sink.write_at(&self.path, tensor, at, bytes))
            }
            Sink::TorchZip(sink) => {
                // A zip is a stream: wait for the pieces before this one.
                if turn.wait_for(number) {
                    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                    let first = piece.elements.start == 0;
                    tensors().try_for_each(|tensor| sink.write(tensor, &self.tensors[tensor], first, bytes))?;
                    turn.written();
                }
                Ok(())
            }
        }
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// A failed write; or, in safetensors, metadata longer than what was reserved.
    pub fn finish(self, metadata: &Metadata) -> Result<()> {
        match self.sink {
            Sink::Safetensors(sink) => sink.finish(&self.path, &self.tensors, metadata)?,
            Sink::TorchZip(sink) => {
                sink.into_inner().unwrap_or_else(PoisonError::into_inner).finish(&self.tensors, metadata)?;
            }
        }
        match self.place {
            Place::Named(file) => file.finish(),
            Place::Standard(file) => standard::copy_out(file),
        }
    }
}

/// Whose turn it is to write, where pieces must be written in order.
struct Turn {
    /// The next piece, or `None` when work has stopped.
    next: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Default for Turn {
    fn default() -> Turn {
        Turn { next: Mutex::new(Some(0)), changed: Condvar::new() }
    }
}

impl Turn {
    /// Waits until all pieces before `number` are written; false when work has stopped.
    fn wait_for(&self, number: usize) -> bool {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |next: &mut Option<usize>| next.is_some_and(|next| next != number);
        let next = self.changed.wait_while(next, waits).unwrap_or_else(PoisonError::into_inner);
        next.is_some()
    }

    fn written(&self) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = next.map(|next| next + 1);
        self.changed.notify_all();
    }

    fn stop(&self) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.changed.notify_all();
    }
}

struct StopOnPanic<'a>(&'a Turn);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}
