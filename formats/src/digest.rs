//! Content digests: which tensors a file holds, whatever its container.

use std::sync::{Mutex, PoisonError};

use crate::write::PIECE;
use crate::{Checkpoint, Result, parallel};

/// Gathers a checkpoint's content digest from pieces as they pass by, on any thread.
///
/// The digest is BLAKE3 over the tensors in order of name, each as: length of the name (u64,
/// little-endian like all numbers here), name, length of the dtype's name, dtype's name, number
/// of dimensions, dimensions, and the BLAKE3 hash of every run of [`PIECE`] elements, row-major
/// and little-endian. A `.ckpt` and the `.safetensors` converted from it have the same digest;
/// optimizer states and other things outside the root don't count.
#[derive(Debug)]
pub struct Digester<'c> {
    checkpoint: &'c Checkpoint,
    /// For each tensor, the hash of each of its runs.
    runs: Vec<Mutex<Vec<Option<blake3::Hash>>>>,
}

impl<'c> Digester<'c> {
    pub fn new(checkpoint: &'c Checkpoint) -> Digester<'c> {
        let runs = checkpoint.tensors().iter();
        let runs = runs.map(|info| Mutex::new(vec![None; info.elements().div_ceil(PIECE)])).collect();
        Digester { checkpoint, runs }
    }

    /// Takes note of a tensor's bytes from element `start`, a multiple of [`PIECE`], to the end of
    /// a run.
    pub fn record(&self, tensor: usize, start: usize, bytes: &[u8]) {
        let size = self.checkpoint.tensors()[tensor].dtype.size();
        debug_assert_eq!(start % PIECE, 0);
        for (number, run) in bytes.chunks(PIECE * size).enumerate() {
            let hash = blake3::hash(run);
            let mut runs = self.runs[tensor].lock().unwrap_or_else(PoisonError::into_inner);
            runs[start / PIECE + number] = Some(hash);
        }
    }

    /// Takes note of one tensor's bytes as they pass by in order, in portions of any length.
    pub fn in_order(&self, tensor: usize) -> InOrder<'_, 'c> {
        InOrder { digester: self, tensor, position: 0, hasher: blake3::Hasher::new() }
    }

    /// The checkpoint whose digest this is.
    pub fn checkpoint(&self) -> &'c Checkpoint {
        self.checkpoint
    }

    /// The digest as 64 hexadecimal digits. Runs that didn't pass by are read now, on `threads` threads.
    pub fn finish(&self, threads: usize) -> Result<String> {
        let missing: Vec<(usize, usize)> = self
            .runs
            .iter()
            .enumerate()
            .flat_map(|(tensor, runs)| {
                let runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
                let open: Vec<_> =
                    (0..runs.len()).filter(|&run| runs[run].is_none()).map(|run| (tensor, run)).collect();
                open
            })
            .collect();
        parallel::for_each(threads, missing.len(), |number, bytes: &mut Vec<u8>| {
            let (tensor, run) = missing[number];
            let elements = self.checkpoint.tensors()[tensor].elements();
            self.checkpoint.read(tensor, run * PIECE..elements.min((run + 1) * PIECE), bytes)?;
            self.record(tensor, run * PIECE, bytes);
            Ok(())
        })?;
        Ok(self.combine())
    }

    fn combine(&self) -> String {
        let tensors = self.checkpoint.tensors();
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_unstable_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
        let mut hasher = blake3::Hasher::new();
        for index in order {
            let info = &tensors[index];
            for text in [info.name.as_str(), info.dtype.name()] {
                hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
            }
            hasher.update(&(info.shape.len() as u64).to_le_bytes());
            for &dimension in &info.shape {
                hasher.update(&(dimension as u64).to_le_bytes());
            }
            let runs = self.runs[index].lock().unwrap_or_else(PoisonError::into_inner);
            for hash in runs.iter().flatten() {
                hasher.update(hash.as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// One tensor's bytes on their way past a [`Digester`], from the first to the last.
#[derive(Debug)]
pub struct InOrder<'d, 'c> {
    digester: &'d Digester<'c>,
    tensor: usize,
    /// Bytes that have passed.
    position: usize,
    hasher: blake3::Hasher,
}

impl InOrder<'_, '_> {
    /// Takes note of the next bytes.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        let info = &self.digester.checkpoint.tensors()[self.tensor];
        let (run, total) = (PIECE * info.dtype.size(), info.bytes());
        while !bytes.is_empty() && self.position < total {
            let end = total.min((self.position / run + 1) * run);
            let (now, later) = bytes.split_at(bytes.len().min(end - self.position));
            self.hasher.update(now);
            self.position += now.len();
            if self.position == end {
                let mut runs = self.digester.runs[self.tensor].lock().unwrap_or_else(PoisonError::into_inner);
                runs[(end - 1) / run] = Some(self.hasher.finalize());
                self.hasher.reset();
            }
            bytes = later;
        }
    }
}

/// The content digest of a checkpoint, read in full on `threads` threads.
pub fn content_digest(checkpoint: &Checkpoint, threads: usize) -> Result<String> {
    Digester::new(checkpoint).finish(threads)
}
