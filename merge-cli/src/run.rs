//! Streaming a list of jobs into a file.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use formats::write::{Metadata, PIECE, Piece, Production, Writer};
use formats::{CONFIG_KEY, Checkpoint, Digester, Dtype, Error, Result, encode_f32, encode_f64};

use crate::jobs::{Job, Merge, Source};
use crate::methods::{Method, Runs, Span};
use crate::recipe::{RECIPE_KEY, Recipe, RecipeInput};

/// A result to be written.
pub struct Run<'a> {
    /// The inputs, each with its role in the recipe.
    pub checkpoints: Vec<(&'a str, &'a Checkpoint)>,
    pub jobs: Vec<Job>,
    /// `None` when every job is a copy.
    pub method: Option<&'a dyn Method>,
    /// How the file is made; its inputs are filled in here.
    pub recipe: Recipe,
    /// The result's model configuration as JSON.
    pub config: Option<String>,
    /// More metadata, kept from the input.
    pub metadata: Metadata,
    pub threads: usize,
}

impl Run<'_> {
    /// The key that the first input has its tensors under, if it is a PyTorch file.
    pub fn usual_root(&self) -> Option<&'static str> {
        self.checkpoints.first()?.1.usual_root()
    }
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Summary {
    pub tensors: usize,
    /// Tensors that the method computed.
    pub merged: usize,
    pub elements: u64,
    /// Of all tensors together.
    pub bytes: u64,
    /// Finite values that became infinite in a narrower dtype.
    pub overflowed: u64,
    /// The recipe with its inputs, as it stands in the file.
    pub recipe: Recipe,
}

/// Writes the result to `path`. `progress` is told the bytes of each piece written.
///
/// A PyTorch file has the tensors under the key that the first input has them under, so that the same code
/// loads it. The file holds the recipe and configuration as metadata. Its bytes depend on the inputs and
/// the recipe alone.
///
/// # Errors
/// Whatever reading, the method or writing runs into; then no file is left.
pub fn run(run: Run, path: &Path, progress: impl Fn(u64) + Sync) -> Result<Summary> {
    run_under(run.usual_root(), run, path, progress)
}

/// As [`run`], for a result that other code loads than loads its input: its tensors are under `root`, or without
/// it under `state_dict`.
pub fn run_under(root: Option<&str>, run: Run, path: &Path, progress: impl Fn(u64) + Sync) -> Result<Summary> {
    let Run { checkpoints, mut jobs, method, mut recipe, config, mut metadata, threads } = run;
    let inputs: Vec<&Checkpoint> = checkpoints.iter().map(|&(_, checkpoint)| checkpoint).collect();
    if let Some(method) = method {
        check(method, &jobs, &inputs)?;
    }
    let digesters: Vec<Digester> = checkpoints.iter().map(|(_, checkpoint)| Digester::new(checkpoint)).collect();
    let own = method.map(|method| method.own_inputs()).unwrap_or_default();
    let roles = checkpoints.iter().map(|&(role, checkpoint)| (role, checkpoint));
    // A file that is made of one other already holds how that was made.
    let is_of_one = recipe.parameters.contains_key("of");
    recipe.inputs = roles
        .chain(own.iter().map(|&(role, digester)| (role, digester.checkpoint())))
        .map(|(role, checkpoint)| RecipeInput {
            role: role.to_string(),
            name: checkpoint.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            root: checkpoint.root().into(),
            content_digest: "0".repeat(64),
            made_by: Recipe::history(checkpoint.metadata()).filter(|_| !is_of_one).map(Box::new),
        })
        .collect();
    metadata.insert(RECIPE_KEY.into(), recipe.to_json());
    metadata.extend(config.map(|config| (CONFIG_KEY.into(), config)));

    let infos = jobs.iter().map(|job| job.info.clone()).collect();
    let mut writer = Writer::create(path, infos, &metadata)?;
    if let Some(root) = root {
        writer = writer.under(root);
    }
    // The container may order tensors its own way.
    let mut order: HashMap<String, Job> = jobs.drain(..).map(|job| (job.info.name.clone(), job)).collect();
    let jobs: Vec<Job> = writer.tensors().iter().filter_map(|info| order.remove(&info.name)).collect();
    let surveys = match method {
        Some(method) => survey(method, &jobs, &inputs, threads)?,
        None => Vec::new(),
    };
    let producer = Producer { inputs, digesters: &digesters, method, overflowed: AtomicU64::new(0) };
    let production = productions(&jobs, method.is_some_and(|method| method.whole_tensors()));
    writer.fill_as(
        threads,
        |tensor| production[tensor],
        |piece: &Piece, buffers: &mut Buffers| -> Result<&[u8]> {
            let job = &jobs[piece.tensor];
            let survey = surveys.get(piece.tensor).map_or(&[][..], Vec::as_slice);
            let bytes = producer.produce(job, survey, piece, buffers)?;
            progress((bytes.len() * piece.copies()) as u64);
            Ok(bytes)
        },
    )?;
    if let Some(method) = method {
        method.finish()?;
    }
    let overflowed = producer.overflowed.into_inner();
    for (input, digester) in recipe.inputs.iter_mut().zip(digesters.iter().chain(own.iter().map(|&(_, own)| own))) {
        input.content_digest = digester.finish(threads)?;
    }
    metadata.insert(RECIPE_KEY.into(), recipe.to_json());
    writer.finish(&metadata)?;
    Ok(Summary {
        tensors: jobs.len(),
        merged: jobs.iter().filter(|job| matches!(job.source, Source::Merge(_))).count(),
        elements: jobs.iter().map(|job| job.info.elements() as u64).sum(),
        bytes: jobs.iter().map(|job| job.info.bytes() as u64).sum(),
        overflowed,
        recipe,
    })
}

/// How each job's tensor is produced. Merges of `whole` tensors that go by several names are computed once.
fn productions(jobs: &[Job], whole: bool) -> Vec<Production> {
    let mut first: HashMap<&str, usize> = HashMap::new();
    let numbered = jobs.iter().enumerate();
    let production = numbered.map(|(number, job)| match &job.source {
        Source::Merge(merge) if whole => match *first.entry(merge.name.as_str()).or_insert(number) {
            earlier if earlier < number => Production::As(earlier),
            _ => Production::Whole,
        },
        _ => Production::Runs,
    });
    production.collect()
}

/// Whether the method takes every merge there is.
fn check(method: &dyn Method, jobs: &[Job], inputs: &[&Checkpoint]) -> Result<()> {
    for job in jobs {
        if let Source::Merge(merge) = &job.source {
            method.check(merge).map_err(|reason| Error::tensor(inputs[0].path(), &job.info.name, reason))?;
        }
    }
    Ok(())
}

/// What the method finds out about each job's tensors: one thread to a tensor, so that sums over its runs
/// are added in one order.
fn survey(method: &dyn Method, jobs: &[Job], inputs: &[&Checkpoint], threads: usize) -> Result<Vec<Vec<f64>>> {
    let surveys: Vec<OnceLock<Vec<f64>>> = jobs.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut buffers = Buffers::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(number) else { return Ok(()) };
            if let Source::Merge(merge) = &job.source {
                let mut runs = FileRuns { inputs, merge, elements: job.info.elements(), buffers: &mut buffers };
                let _ = surveys[number].set(method.survey(merge, &mut runs)?);
            }
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut outcome = work();
        for other in others {
            outcome = outcome.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        outcome
    })?;
    Ok(surveys.into_iter().map(|survey| survey.into_inner().unwrap_or_default()).collect())
}

/// A merge's inputs, read from their files.
struct FileRuns<'a> {
    inputs: &'a [&'a Checkpoint],
    merge: &'a Merge,
    elements: usize,
    buffers: &'a mut Buffers,
}

impl Runs for FileRuns<'_> {
    fn elements(&self) -> usize {
        self.elements
    }

    fn for_each(&mut self, visit: &mut dyn FnMut(usize, &[&[f64]])) -> Result<()> {
        let Buffers { survey, f64s, .. } = &mut *self.buffers;
        let count = self.merge.inputs.len();
        survey.resize_with(count.max(survey.len()), Vec::new);
        f64s.resize_with(count.max(f64s.len()), Vec::new);
        for start in (0..self.elements).step_by(PIECE) {
            let range = start..self.elements.min(start + PIECE);
            for (input, bytes) in self.merge.inputs.iter().zip(survey.iter_mut()) {
                self.inputs[input.checkpoint].read(input.tensor, range.clone(), bytes)?;
            }
            for at in (0..range.len()).step_by(VISIT) {
                let elements = at..range.len().min(at + VISIT);
                for ((input, bytes), values) in self.merge.inputs.iter().zip(&*survey).zip(f64s.iter_mut()) {
                    let checkpoint = self.inputs[input.checkpoint];
                    let dtype = checkpoint.tensors()[input.tensor].dtype;
                    let bytes = &bytes[elements.start * dtype.size()..elements.end * dtype.size()];
                    if !formats::decode_f64(bytes, dtype, values) {
                        return Err(not_real(checkpoint, input.tensor));
                    }
                }
                let values: Vec<&[f64]> = f64s.iter().take(count).map(Vec::as_slice).collect();
                visit(start + at, &values);
            }
        }
        Ok(())
    }
}

/// Elements decoded for a survey at a time: they stay in cache.
const VISIT: usize = 1 << 13;

/// One thread's buffers, kept from piece to piece: fresh memory costs more than the arithmetic.
#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    encoded: Vec<u8>,
    f32s: Vec<Vec<f32>>,
    f64s: Vec<Vec<f64>>,
    out_f32: Vec<f32>,
    out_f64: Vec<f64>,
    decoded: Vec<f64>,
    /// Each input's bytes.
    survey: Vec<Vec<u8>>,
}

struct Producer<'a> {
    inputs: Vec<&'a Checkpoint>,
    digesters: &'a [Digester<'a>],
    method: Option<&'a dyn Method>,
    overflowed: AtomicU64,
}

impl Producer<'_> {
    fn produce<'b>(&self, job: &Job, survey: &[f64], piece: &Piece, buffers: &'b mut Buffers) -> Result<&'b [u8]> {
        match &job.source {
            Source::Copy { checkpoint, tensor } => self.copy(job, *checkpoint, *tensor, piece, buffers),
            Source::Merge(merge) => {
                let span = Span { merge, start: piece.elements.start, elements: job.info.elements(), survey };
                match job.info.dtype {
                    Dtype::F64 => self.merge_f64(job, &span, piece, buffers),
                    _ => self.merge_f32(job, &span, piece, buffers),
                }
            }
            Source::Computed(bytes) => {
                let size = job.info.dtype.size();
                buffers.bytes.clear();
                buffers.bytes.extend_from_slice(&bytes[piece.elements.start * size..piece.elements.end * size]);
                Ok(&buffers.bytes)
            }
            Source::New(fill) => {
                let Buffers { encoded, out_f64, .. } = buffers;
                out_f64.resize(piece.elements.len(), 0.0);
                fill.write(piece.elements.start, out_f64);
                encoded.clear();
                match encode_f64(out_f64, job.info.dtype, encoded) {
                    true => Ok(encoded),
                    false => {
                        Err(Error::tensor(self.inputs[0].path(), &job.info.name, "its dtype can't start a tensor"))
                    }
                }
            }
        }
    }

    fn copy<'b>(
        &self,
        job: &Job,
        checkpoint: usize,
        tensor: usize,
        piece: &Piece,
        buffers: &'b mut Buffers,
    ) -> Result<&'b [u8]> {
        let input = self.inputs[checkpoint];
        let Buffers { bytes, encoded, out_f64, decoded, .. } = buffers;
        input.read(tensor, piece.elements.clone(), bytes)?;
        self.digesters[checkpoint].record(tensor, piece.elements.start, bytes);
        let from = input.tensors()[tensor].dtype;
        if from == job.info.dtype {
            return Ok(bytes);
        }
        // Through f64, which holds every narrower value: one rounding.
        encoded.clear();
        if !formats::decode_f64(bytes, from, out_f64) || !encode_f64(out_f64, job.info.dtype, encoded) {
            let reason = format!("{from} values can't be converted to {}", job.info.dtype);
            return Err(Error::tensor(input.path(), &job.info.name, reason));
        }
        let narrows = job.info.dtype.size() < from.size() || job.info.dtype == Dtype::F16;
        if narrows && formats::decode_f64(encoded, job.info.dtype, decoded) {
            let lost =
                out_f64.iter().zip(&*decoded).filter(|(before, after)| before.is_finite() && after.is_infinite());
            self.overflowed.fetch_add(lost.count() as u64, Ordering::Relaxed);
        }
        Ok(encoded)
    }

    fn merge_f32<'b>(&self, job: &Job, span: &Span, piece: &Piece, buffers: &'b mut Buffers) -> Result<&'b [u8]> {
        let merge = span.merge;
        let Buffers { bytes, encoded, f32s, out_f32, .. } = buffers;
        f32s.resize_with(merge.inputs.len().max(f32s.len()), Vec::new);
        for (input, values) in merge.inputs.iter().zip(f32s.iter_mut()) {
            let checkpoint = self.inputs[input.checkpoint];
            let digester = &self.digesters[input.checkpoint];
            if checkpoint.tensors()[input.tensor].dtype == Dtype::F32 {
                checkpoint.read_f32(input.tensor, piece.elements.clone(), values)?;
                record_f32(digester, input.tensor, piece, values);
            } else {
                checkpoint.read(input.tensor, piece.elements.clone(), bytes)?;
                digester.record(input.tensor, piece.elements.start, bytes);
                if !formats::decode_f32(bytes, checkpoint.tensors()[input.tensor].dtype, values) {
                    return Err(not_real(checkpoint, input.tensor));
                }
            }
        }
        let values: Vec<&[f32]> = f32s.iter().take(merge.inputs.len()).map(Vec::as_slice).collect();
        out_f32.resize(piece.elements.len(), 0.0);
        self.method()?.merge_f32(span, &values, out_f32)?;
        if job.info.dtype == Dtype::F32 && cfg!(target_endian = "little") {
            return Ok(bytemuck::cast_slice(out_f32));
        }
        encoded.clear();
        match encode_f32(out_f32, job.info.dtype, encoded) {
            true => Ok(encoded),
            false => Err(Error::tensor(self.inputs[0].path(), &job.info.name, "its dtype can't be merged")),
        }
    }

    fn merge_f64<'b>(&self, job: &Job, span: &Span, piece: &Piece, buffers: &'b mut Buffers) -> Result<&'b [u8]> {
        let merge = span.merge;
        let Buffers { bytes, encoded, f64s, out_f64, .. } = buffers;
        f64s.resize_with(merge.inputs.len().max(f64s.len()), Vec::new);
        for (input, values) in merge.inputs.iter().zip(f64s.iter_mut()) {
            let checkpoint = self.inputs[input.checkpoint];
            checkpoint.read(input.tensor, piece.elements.clone(), bytes)?;
            self.digesters[input.checkpoint].record(input.tensor, piece.elements.start, bytes);
            if !formats::decode_f64(bytes, checkpoint.tensors()[input.tensor].dtype, values) {
                return Err(not_real(checkpoint, input.tensor));
            }
        }
        let values: Vec<&[f64]> = f64s.iter().take(merge.inputs.len()).map(Vec::as_slice).collect();
        out_f64.resize(piece.elements.len(), 0.0);
        self.method()?.merge_f64(span, &values, out_f64)?;
        encoded.clear();
        match encode_f64(out_f64, job.info.dtype, encoded) {
            true => Ok(encoded),
            false => Err(Error::tensor(self.inputs[0].path(), &job.info.name, "its dtype can't be merged")),
        }
    }

    fn method(&self) -> Result<&dyn Method> {
        self.method.ok_or_else(|| Error::file(self.inputs[0].path(), "a merge without a method"))
    }
}

fn record_f32(digester: &Digester, tensor: usize, piece: &Piece, values: &[f32]) {
    debug_assert_eq!(piece.elements.start % PIECE, 0);
    if cfg!(target_endian = "little") {
        digester.record(tensor, piece.elements.start, bytemuck::cast_slice(values));
    }
}

fn not_real(checkpoint: &Checkpoint, tensor: usize) -> Error {
    let info = &checkpoint.tensors()[tensor];
    Error::tensor(checkpoint.path(), &info.name, format!("{} values can't be computed with", info.dtype))
}
