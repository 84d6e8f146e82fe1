//! Arrow files as the Python code writes them: record-batch files with encoded images in a binary column.
//!
//! A file is memory-mapped; images are handed out as slices of the map. Everything that a file claims is checked when
//! it is opened or its columns are taken: a malformed one is an error. A file must not be cut short while it is in
//! use, as with any memory map.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_array::types::{UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::FileDecoder;
use arrow_ipc::{Block, MessageHeader, MetadataVersion, root_as_footer, root_as_message};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use memmap2::Mmap;

use super::broken::Unit;
use super::records::{At, Builder, Pictures, Question, Texts};
use super::{Error, Result, Target, Task, convert};

/// An Arrow file, opened: its schema and where its record batches are.
#[derive(Debug)]
pub struct ArrowFile {
    path: PathBuf,
    schema: SchemaRef,
    version: MetadataVersion,
    map: Buffer,
    dictionaries: Vec<Block>,
    batches: Vec<Block>,
    rows: usize,
    compressed: bool,
}

const MAGIC: &[u8; 6] = b"ARROW1";

/// LZ4 can't make data smaller than by this factor, nearly: a file that claims more is lying about its size.
const LZ4_LIMIT: u64 = 256;

impl ArrowFile {
    /// Maps a file and checks its structure: footer, schema, and that every buffer lies within it.
    ///
    /// # Errors
    /// It can't be read, is no Arrow file, is cut short or malformed.
    pub fn open(path: &Path) -> Result<ArrowFile> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let length = file.metadata().map_err(|e| Error::io(path, "read", e))?;
        if !length.is_file() {
            return Err(Error::file(path, "this is not a regular file"));
        }
        if length.len() < 18 {
            return Err(Error::file(path, "too short for an Arrow file"));
        }
        // SAFETY: the map is read-only; that nobody cuts the file short meanwhile is the caller's part.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        let map = Arc::new(map);
        let start = NonNull::new(map.as_ptr().cast_mut()).ok_or_else(|| Error::file(path, "it can't be mapped"))?;
        let len = map.len();
        // SAFETY: `start` and `len` are those of the map, which the buffer keeps.
        let map = unsafe { Buffer::from_custom_allocation(start, len, map) };
        guarded(path, || ArrowFile::parse(path, map))
    }

    fn parse(path: &Path, map: Buffer) -> Result<ArrowFile> {
        let wrong = |reason: String| Error::file(path, reason);
        if map[..6] != MAGIC[..] {
            if map[..4] == [0xff; 4] {
                return Err(convert::stream(path));
            }
            return Err(wrong(match &map[..4] {
                b"FEA1" => "a Feather version 1 file; expected an Arrow file".into(),
                b"PAR1" => "a Parquet file; expected an Arrow file".into(),
                _ => "this is no Arrow file".into(),
            }));
        }
        if map[map.len() - 6..] != MAGIC[..] {
            return Err(wrong("cut short: an Arrow file ends with its index, this one doesn't".into()));
        }
        let trailer = map.len() - 10;
        let footer_len = i32::from_le_bytes([map[trailer], map[trailer + 1], map[trailer + 2], map[trailer + 3]]);
        let footer_start = usize::try_from(footer_len)
            .ok()
            .and_then(|len| trailer.checked_sub(len))
            .filter(|start| *start >= 8)
            .ok_or_else(|| wrong(format!("damaged: its index can't be {footer_len} bytes long")))?;
        let footer = root_as_footer(&map[footer_start..trailer]).map_err(|e| wrong(format!("damaged index: {e}")))?;
        let schema = footer.schema().ok_or_else(|| wrong("damaged index: no schema".into()))?;
        let schema = try_fb_to_schema(schema).map_err(|e| wrong(format!("damaged schema: {e}")))?;
        let dictionaries: Vec<Block> = footer.dictionaries().into_iter().flatten().copied().collect();
        let batches: Vec<Block> = footer.recordBatches().into_iter().flatten().copied().collect();
        let mut file = ArrowFile {
            path: path.into(),
            schema: Arc::new(schema),
            version: footer.version(),
            map: map.clone(),
            dictionaries,
            batches,
            rows: 0,
            compressed: false,
        };
        for (number, block) in file.dictionaries.iter().enumerate() {
            check_block(&map, footer_start, block).map_err(|e| wrong(format!("dictionary {number}: {e}")))?;
        }
        let (mut rows, mut compressed) = (0usize, false);
        for (number, block) in file.batches.iter().enumerate() {
            let shape =
                check_block(&map, footer_start, block).map_err(|e| wrong(format!("record batch {number}: {e}")))?;
            rows = rows.checked_add(shape.rows).ok_or_else(|| wrong("damaged: too many rows".into()))?;
            compressed |= shape.compressed;
        }
        file.rows = rows;
        file.compressed = compressed;
        Ok(file)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows, as the record batches say.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn batches(&self) -> usize {
        self.batches.len()
    }

    /// Whether record batches are compressed: then their images are held in memory once taken.
    pub fn compressed(&self) -> bool {
        self.compressed
    }

    /// Takes columns, batch by batch; the values of a record batch are in the order of `columns`.
    ///
    /// # Errors
    /// A column isn't there, or the file's data is malformed.
    pub fn columns(&self, columns: &[&str]) -> Result<Vec<RecordBatch>> {
        let indices = columns.iter().map(|column| self.column(column)).collect::<Result<Vec<_>>>()?;
        guarded(&self.path, || {
            let mut decoder = FileDecoder::new(self.schema.clone(), self.version).with_projection(indices);
            let wrong = |what: &str, number: usize, e: ArrowError| match e {
                ArrowError::InvalidArgumentError(reason) if self.compressed && reason.contains("feature") => {
                    Error::file(
                        &self.path,
                        "its columns are compressed with zstd, which isn't read: write it uncompressed or with lz4",
                    )
                }
                e => Error::file(&self.path, format!("damaged: {what} {number}: {e}")),
            };
            for (number, block) in self.dictionaries.iter().enumerate() {
                decoder.read_dictionary(block, &self.block(block)).map_err(|e| wrong("dictionary", number, e))?;
            }
            let mut batches = Vec::with_capacity(self.batches.len());
            for (number, block) in self.batches.iter().enumerate() {
                match decoder.read_record_batch(block, &self.block(block)) {
                    Ok(Some(batch)) => batches.push(batch),
                    Ok(None) => {}
                    Err(e) => return Err(wrong("record batch", number, e)),
                }
            }
            Ok(batches)
        })
    }

    fn column(&self, name: &str) -> Result<usize> {
        let names = || self.schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
        self.schema
            .index_of(name)
            .map_err(|_| Error::file(&self.path, format!("no column '{name}'; its columns are {}", names())))
    }

    fn has(&self, column: &str) -> bool {
        self.schema.index_of(column).is_ok()
    }

    fn block(&self, block: &Block) -> Buffer {
        self.map.slice_with_length(block.offset() as usize, block_len(block))
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }
}

/// Only for blocks that [`check_block`] has seen.
fn block_len(block: &Block) -> usize {
    block.metaDataLength() as usize + block.bodyLength() as usize
}

struct Shape {
    rows: usize,
    compressed: bool,
}

/// That a block and every buffer of its batch lie before the footer, and that it claims no absurd size.
fn check_block(map: &[u8], end: usize, block: &Block) -> std::result::Result<Shape, String> {
    let offset = usize::try_from(block.offset()).map_err(|_| "damaged: it begins before the file")?;
    let metadata = usize::try_from(block.metaDataLength()).map_err(|_| "damaged: negative length")?;
    let body = usize::try_from(block.bodyLength()).map_err(|_| "damaged: negative length")?;
    let whole = metadata
        .checked_add(body)
        .and_then(|length| offset.checked_add(length))
        .filter(|block_end| *block_end <= end && metadata >= 16)
        .map(|block_end| &map[offset..block_end])
        .ok_or("damaged or cut short: it ends beyond the file's data")?;
    let (head, body) = whole.split_at(metadata);
    let message = if head[..4] == [0xff; 4] { &head[8..] } else { &head[4..] };
    let message = root_as_message(message).map_err(|e| format!("damaged: {e}"))?;
    let batch = match message.header_type() {
        MessageHeader::RecordBatch => message.header_as_record_batch(),
        MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|batch| batch.data()),
        _ => None,
    }
    .ok_or("damaged: it is no batch")?;
    let negative = |_| "damaged: negative length".to_string();
    let rows = usize::try_from(batch.length()).map_err(negative)?;
    for node in batch.nodes().into_iter().flatten() {
        let (length, nulls) = (node.length(), node.null_count());
        // A node of n values needs at least a bit for each where it has buffers, but a null column has none.
        if length < 0 || nulls < 0 || nulls > length || length > i64::from(u32::MAX) {
            return Err(format!("damaged: {nulls} of {length} values are null"));
        }
    }
    let compressed = batch.compression().is_some();
    for buffer in batch.buffers().into_iter().flatten() {
        let start = usize::try_from(buffer.offset()).map_err(negative)?;
        let length = usize::try_from(buffer.length()).map_err(negative)?;
        let bytes = start
            .checked_add(length)
            .and_then(|end| body.get(start..end))
            .ok_or("damaged: a buffer ends beyond its batch")?;
        if compressed && !bytes.is_empty() {
            let claimed = bytes.first_chunk::<8>().map(|bytes| i64::from_le_bytes(*bytes));
            let allowed = (bytes.len() as u64).saturating_mul(LZ4_LIMIT);
            match claimed {
                Some(-1) => {}
                Some(claimed) if u64::try_from(claimed).is_ok_and(|claimed| claimed <= allowed) => {}
                _ => return Err("damaged: a compressed buffer claims an impossible size".into()),
            }
        }
    }
    Ok(Shape { rows, compressed })
}

/// Runs `work` on a file; a panic in it, as malformed input may still cause deep in a library, is an error.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::file(path, "damaged: its data make no sense")))
}

/// The task that a file's columns are for; `None` where it is none of ours.
pub fn task_of(file: &ArrowFile) -> Option<Task> {
    match () {
        () if file.has("image_0") && file.has("image_1") => Some(Task::Nlvr2),
        () if !file.has("image") => None,
        () if file.has("questions") => Some(Task::Vqa),
        () if file.has("caption") || file.has("captions") => Some(Task::Irtr),
        () if file.has("label") => Some(Task::ImgCls),
        // Hugging Face's name for the caption of an image.
        () if file.has("text") => Some(Task::Irtr),
        () => None,
    }
}

/// Adds a file's rows to a split.
///
/// `labels` is the number of labels that there are; a row with one beyond is broken.
///
/// # Errors
/// A column is missing or of another type, or the data is malformed.
pub(super) fn read(file: &ArrowFile, task: Task, labels: usize, into: &mut Builder) -> Result<()> {
    into.file(file.name(), Unit::Row);
    into.source(&file.path);
    match task {
        Task::Irtr => captions(file, into),
        Task::Vqa => questions(file, labels, into),
        Task::Nlvr2 => pairs(file, into),
        Task::ImgCls => classes(file, labels, into),
    }
}

fn captions(file: &ArrowFile, into: &mut Builder) -> Result<()> {
    const TEXTS: &str = "a string or a list of strings";
    let column = ["caption", "captions", "text"].into_iter().find(|column| file.has(column)).unwrap_or("caption");
    each_batch(file, &["image", column], &["image_id"], |columns, first| {
        let images = Blobs::of(columns.array(0), |found| columns.wrong(0, "binary", found))?;
        // Plain strings are lists of one.
        let single = TextColumn::of(columns.array(1), |found| columns.wrong(1, TEXTS, found)).ok();
        let captions = match &single {
            Some(_) => None,
            None => Some(Lists::of(columns.array(1), |found| columns.wrong(1, TEXTS, found))?),
        };
        let texts = match (single, &captions) {
            (None, Some(lists)) => TextColumn::of(&lists.values, |found| columns.wrong(1, TEXTS, found))?,
            (single, _) => single.ok_or_else(|| columns.wrong(1, TEXTS, columns.array(1).data_type()))?,
        };
        let ids = columns.optional(2).map(Ids::of).transpose().map_err(|e| columns.wrong(2, "string or integer", e))?;
        let blank = images.blank();
        let source = into.pictures(Box::new(images));
        for row in 0..columns.rows() {
            let result = blank(row).and_then(|()| {
                let mut unique: Vec<&str> = Vec::new();
                let range = captions.as_ref().map_or(Some(row..row + 1), |captions| captions.range(row));
                for index in range.ok_or("no caption")? {
                    let text = texts.get(index).ok_or("a caption is missing")?;
                    // As the Python code does: the same words twice are one caption.
                    if !unique.contains(&text) {
                        unique.push(text);
                    }
                }
                Ok(unique)
            });
            let at = At { source, index: row as u32 };
            match result {
                Ok(texts) => into.row(first + row, &[at], &id(&ids, row, first), Texts::Captions(texts))?,
                Err(cause) => into.broken(first + row, cause),
            }
        }
        Ok(())
    })
}

/// Answer labels may lie this high where no vocabulary says how many there are.
const MOST_LABELS: usize = 1_000_000;

fn questions(file: &ArrowFile, labels: usize, into: &mut Builder) -> Result<()> {
    let required = ["image", "questions", "question_id", "answer_labels", "answer_scores"];
    each_batch(file, &required, &["image_id"], |columns, first| {
        const NUMBERS: &str = "a list of lists of numbers";
        let images = Blobs::of(columns.array(0), |found| columns.wrong(0, "binary", found))?;
        let questions = Lists::of(columns.array(1), |found| columns.wrong(1, "a list of strings", found))?;
        let texts = TextColumn::of(&questions.values, |found| columns.wrong(1, "a list of strings", found))?;
        let numbers = Lists::of(columns.array(2), |found| columns.wrong(2, "a list of integers", found))?;
        let question_ids = Numbers::of(&numbers.values, |found| columns.wrong(2, "a list of integers", found))?;
        let label_lists = Lists::of(columns.array(3), |found| columns.wrong(3, NUMBERS, found))?;
        let label_inner = Lists::of(&label_lists.values, |found| columns.wrong(3, NUMBERS, found))?;
        let label_values = Numbers::of(&label_inner.values, |found| columns.wrong(3, NUMBERS, found))?;
        let score_lists = Lists::of(columns.array(4), |found| columns.wrong(4, NUMBERS, found))?;
        let score_inner = Lists::of(&score_lists.values, |found| columns.wrong(4, NUMBERS, found))?;
        let score_values = Numbers::of(&score_inner.values, |found| columns.wrong(4, NUMBERS, found))?;
        let ids = columns.optional(5).map(Ids::of).transpose().map_err(|e| columns.wrong(5, "string or integer", e))?;
        let blank = images.blank();
        let source = into.pictures(Box::new(images));
        let row_questions = |row: usize| -> std::result::Result<Vec<Question<'_>>, String> {
            let asked = questions.range(row).ok_or("no question")?;
            let ids = numbers.range(row).ok_or("no question_id")?;
            if ids.len() != asked.len() {
                return Err(format!("{} questions have {} ids", asked.len(), ids.len()));
            }
            // A test split has no answers: nothing, or an empty list, for the row as a whole.
            let answers = label_lists.range(row).unwrap_or(0..0);
            let scores = score_lists.range(row).unwrap_or(0..0);
            let answered = !answers.is_empty();
            if answered && (answers.len() != asked.len() || scores.len() != asked.len()) {
                let (labels, scores) = (answers.len(), scores.len());
                return Err(format!("{} questions have {labels} answer_labels, {scores} answer_scores", asked.len()));
            }
            let mut found = Vec::with_capacity(asked.len());
            for (position, (text, id)) in asked.zip(ids).enumerate() {
                let text = texts.get(text).ok_or("a question is missing")?;
                let id = question_ids.integer(id).ok_or("a question_id is missing")?;
                let mut targets = Vec::new();
                if answered {
                    let labels_of = label_inner.range(answers.start + position).unwrap_or(0..0);
                    let scores_of = score_inner.range(scores.start + position).unwrap_or(0..0);
                    if labels_of.len() != scores_of.len() {
                        return Err(format!("{} labels have {} scores", labels_of.len(), scores_of.len()));
                    }
                    for (label, score) in labels_of.zip(scores_of) {
                        let label = label_values.integer(label).ok_or("an answer label is missing")?;
                        let score = score_values.float(score).ok_or("an answer score is missing")?;
                        let label = u32::try_from(label)
                            .ok()
                            .filter(|label| (*label as usize) < labels.min(MOST_LABELS))
                            .ok_or_else(|| match labels {
                                usize::MAX => format!("answer label {label} is out of range"),
                                labels => format!("answer label {label} is beyond the vocabulary's {labels}"),
                            })?;
                        if !(0.0..=1.0).contains(&score) {
                            return Err(format!("answer score {score} is not between 0 and 1"));
                        }
                        targets.push(Target { label, score: score as f32 });
                    }
                }
                // The Python code's files name an answer only if it has a label.
                let outside = usize::from(answered && targets.is_empty());
                found.push(Question { text, id, targets, outside, answered });
            }
            Ok(found)
        };
        for row in 0..columns.rows() {
            let at = At { source, index: row as u32 };
            match blank(row).and_then(|()| row_questions(row)) {
                Ok(questions) => into.row(first + row, &[at], &id(&ids, row, first), Texts::Questions(questions))?,
                Err(cause) => into.broken(first + row, cause),
            }
        }
        Ok(())
    })
}

fn pairs(file: &ArrowFile, into: &mut Builder) -> Result<()> {
    each_batch(file, &["image_0", "image_1", "questions", "answers"], &["identifier"], |columns, first| {
        let left = Blobs::of(columns.array(0), |found| columns.wrong(0, "binary", found))?;
        let right = Blobs::of(columns.array(1), |found| columns.wrong(1, "binary", found))?;
        let sentences = Lists::of(columns.array(2), |found| columns.wrong(2, "a list of strings", found))?;
        let texts = TextColumn::of(&sentences.values, |found| columns.wrong(2, "a list of strings", found))?;
        let answers = Lists::of(columns.array(3), |found| columns.wrong(3, "a list of strings", found))?;
        let truths = TextColumn::of(&answers.values, |found| columns.wrong(3, "a list of strings", found))?;
        let ids = columns.optional(4).map(Ids::of).transpose().map_err(|e| columns.wrong(4, "string or integer", e))?;
        let (no_left, no_right) = (left.blank(), right.blank());
        let (left, right) = (into.pictures(Box::new(left)), into.pictures(Box::new(right)));
        for row in 0..columns.rows() {
            let result = no_left(row).and_then(|()| no_right(row)).and_then(|()| {
                let said = sentences.range(row).ok_or("no sentence")?;
                let labels = answers.range(row).unwrap_or(0..0);
                if !labels.is_empty() && labels.len() != said.len() {
                    return Err(format!("{} sentences have {} answers", said.len(), labels.len()));
                }
                let mut found = Vec::with_capacity(said.len());
                for (position, text) in said.enumerate() {
                    let text = texts.get(text).ok_or("a sentence is missing")?;
                    let label = match labels.is_empty() {
                        true => None,
                        false => truth(truths.get(labels.start + position).ok_or("an answer is missing")?)?,
                    };
                    found.push((text, label));
                }
                Ok(found)
            });
            let images = [left, right].map(|source| At { source, index: row as u32 });
            match result {
                Ok(found) => into.row(first + row, &images, &id(&ids, row, first), Texts::Sentences(found))?,
                Err(cause) => into.broken(first + row, cause),
            }
        }
        Ok(())
    })
}

/// `True` and `False` as Python and JSON spell them; nothing where the label is hidden.
pub(super) fn truth(text: &str) -> std::result::Result<Option<bool>, String> {
    match text {
        "True" | "true" | "1" => Ok(Some(true)),
        "False" | "false" | "0" => Ok(Some(false)),
        "" => Ok(None),
        other => Err(format!("label '{other}' is neither True nor False")),
    }
}

fn classes(file: &ArrowFile, labels: usize, into: &mut Builder) -> Result<()> {
    each_batch(file, &["image", "label"], &["image_id"], |columns, first| {
        let images = Blobs::of(columns.array(0), |found| columns.wrong(0, "binary", found))?;
        let values = Numbers::of(columns.array(1), |found| columns.wrong(1, "integer", found))?;
        let ids = columns.optional(2).map(Ids::of).transpose().map_err(|e| columns.wrong(2, "string or integer", e))?;
        let blank = images.blank();
        let source = into.pictures(Box::new(images));
        for row in 0..columns.rows() {
            let label = blank(row).and_then(|()| {
                let label = values.integer(row).ok_or("no label")?;
                let below = u32::try_from(label).ok().filter(|label| (*label as usize) < labels.min(MOST_LABELS));
                below.ok_or(match labels {
                    usize::MAX => format!("label {label} is out of range"),
                    labels => format!("label {label} is beyond the {labels} classes"),
                })
            });
            let at = At { source, index: row as u32 };
            match label {
                Ok(label) => into.row(first + row, &[at], &id(&ids, row, first), Texts::Class(label))?,
                Err(cause) => into.broken(first + row, cause),
            }
        }
        Ok(())
    })
}

/// The answers that a VQA file names, with their labels.
///
/// # Errors
/// As [`read`].
pub(super) fn named_answers(file: &ArrowFile, found: &mut Vec<(usize, String)>) -> Result<()> {
    each_batch(file, &["answers", "answer_labels"], &[], |columns, _| {
        const NAMES: &str = "a list of lists of strings";
        let outer = Lists::of(columns.array(0), |found| columns.wrong(0, NAMES, found))?;
        let inner = Lists::of(&outer.values, |found| columns.wrong(0, NAMES, found))?;
        let names = TextColumn::of(&inner.values, |found| columns.wrong(0, NAMES, found))?;
        let label_outer = Lists::of(columns.array(1), |found| columns.wrong(1, "a list of lists of integers", found))?;
        let label_inner =
            Lists::of(&label_outer.values, |found| columns.wrong(1, "a list of lists of integers", found))?;
        let labels = Numbers::of(&label_inner.values, |found| columns.wrong(1, "a list of lists of integers", found))?;
        for row in 0..columns.rows() {
            let questions = outer.range(row).unwrap_or(0..0).zip(label_outer.range(row).unwrap_or(0..0));
            for (name_list, label_list) in questions {
                let pairs = inner.range(name_list).unwrap_or(0..0).zip(label_inner.range(label_list).unwrap_or(0..0));
                for (name, label) in pairs {
                    let label = labels.integer(label).and_then(|label| usize::try_from(label).ok());
                    if let (Some(name), Some(label)) = (names.get(name), label.filter(|label| *label < MOST_LABELS)) {
                        found.push((label, name.into()));
                    }
                }
            }
        }
        found.sort();
        found.dedup();
        Ok(())
    })
}

/// The highest label of a classification file.
///
/// # Errors
/// As [`read`].
pub(super) fn highest_label(file: &ArrowFile) -> Result<Option<usize>> {
    let mut highest = None;
    each_batch(file, &["label"], &[], |columns, _| {
        let values = Numbers::of(columns.array(0), |found| columns.wrong(0, "integer", found))?;
        let labels = (0..columns.rows()).filter_map(|row| usize::try_from(values.integer(row)?).ok());
        highest = highest.max(labels.filter(|label| *label < MOST_LABELS).max());
        Ok(())
    })?;
    Ok(highest)
}

/// Columns of one record batch.
struct Columns<'a> {
    file: &'a ArrowFile,
    batch: &'a RecordBatch,
    names: &'a [&'a str],
}

impl Columns<'_> {
    fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    fn array(&self, column: usize) -> &ArrayRef {
        self.batch.column(column)
    }

    fn optional(&self, column: usize) -> Option<&ArrayRef> {
        self.batch.columns().get(column)
    }

    fn wrong(&self, column: usize, expected: &str, found: &DataType) -> Error {
        let name = self.names.get(column).copied().unwrap_or_default();
        Error::file(&self.file.path, format!("column '{name}' is {found}, expected {expected}"))
    }
}

/// Calls `work` for each record batch with the required columns, then those optional ones that are there, and the
/// number of the batch's first row.
fn each_batch(
    file: &ArrowFile,
    required: &[&str],
    optional: &[&str],
    mut work: impl FnMut(&Columns, usize) -> Result<()>,
) -> Result<()> {
    let names: Vec<&str> = required.iter().chain(optional.iter().filter(|column| file.has(column))).copied().collect();
    let batches = file.columns(&names)?;
    let mut first = 0;
    for batch in &batches {
        guarded(&file.path, || work(&Columns { file, batch, names: &names }, first))?;
        first += batch.num_rows();
    }
    Ok(())
}

fn id(ids: &Option<Ids>, row: usize, first: usize) -> String {
    ids.as_ref().and_then(|ids| ids.get(row)).unwrap_or_else(|| (first + row).to_string())
}

/// A column of byte strings.
struct Blobs {
    values: ArrayRef,
    keys: Option<Vec<u32>>,
}

const NO_KEY: u32 = u32::MAX;

impl Blobs {
    fn of(array: &ArrayRef, wrong: impl Fn(&DataType) -> Error) -> Result<Blobs> {
        let (values, keys) = without_dictionary(array);
        // Hugging Face's image column: the bytes beside a file name.
        let values = match values.data_type() {
            DataType::Struct(_) => values.as_struct().column_by_name("bytes").cloned().unwrap_or(values),
            _ => values,
        };
        match values.data_type() {
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Ok(Blobs { values, keys }),
            other => Err(wrong(other)),
        }
    }

    fn value(&self, row: usize) -> Option<&[u8]> {
        let row = key(&self.keys, row)?;
        if row >= self.values.len() || self.values.is_null(row) {
            return None;
        }
        match self.values.data_type() {
            DataType::Binary => Some(self.values.as_binary::<i32>().value(row)),
            DataType::LargeBinary => Some(self.values.as_binary::<i64>().value(row)),
            DataType::BinaryView => Some(self.values.as_binary_view().value(row)),
            _ => None,
        }
    }

    /// Says for each row whether it has an image; a closure, as the column itself is given away before it is asked.
    fn blank(&self) -> impl Fn(usize) -> std::result::Result<(), String> + use<> {
        let copy = Blobs { values: self.values.clone(), keys: self.keys.clone() };
        move |row| match copy.value(row) {
            None => Err("no image".into()),
            Some([]) => Err("the image is empty".into()),
            Some(_) => Ok(()),
        }
    }
}

impl Pictures for Blobs {
    fn get(&self, index: usize) -> std::result::Result<Cow<'_, [u8]>, String> {
        self.value(index).map(Cow::Borrowed).ok_or("no image".into())
    }
}

/// A dictionary's values with each row's key; other columns as they are.
fn without_dictionary(array: &ArrayRef) -> (ArrayRef, Option<Vec<u32>>) {
    let Some(dictionary) = array.as_any_dictionary_opt() else { return (array.clone(), None) };
    let values = dictionary.values().clone();
    if values.is_empty() {
        return (values, Some(vec![NO_KEY; array.len()]));
    }
    let keys = dictionary.normalized_keys();
    let keys = keys.into_iter().enumerate().map(|(row, key)| match array.is_null(row) {
        true => NO_KEY,
        false => u32::try_from(key).unwrap_or(NO_KEY),
    });
    (values, Some(keys.collect()))
}

fn key(keys: &Option<Vec<u32>>, row: usize) -> Option<usize> {
    match keys {
        None => Some(row),
        Some(keys) => keys.get(row).filter(|key| **key != NO_KEY).map(|key| *key as usize),
    }
}

/// A column of texts.
struct TextColumn {
    values: ArrayRef,
    keys: Option<Vec<u32>>,
}

impl TextColumn {
    fn of(array: &ArrayRef, wrong: impl Fn(&DataType) -> Error) -> Result<TextColumn> {
        let (values, keys) = without_dictionary(array);
        match values.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => {
                Ok(TextColumn { values, keys })
            }
            other => Err(wrong(other)),
        }
    }

    fn get(&self, row: usize) -> Option<&str> {
        let row = key(&self.keys, row)?;
        if row >= self.values.len() || self.values.is_null(row) {
            return None;
        }
        match self.values.data_type() {
            DataType::Utf8 => Some(self.values.as_string::<i32>().value(row)),
            DataType::LargeUtf8 => Some(self.values.as_string::<i64>().value(row)),
            DataType::Utf8View => Some(self.values.as_string_view().value(row)),
            _ => None,
        }
    }
}

/// A column of lists: their values, and which of them are a row's.
struct Lists {
    array: ArrayRef,
    values: ArrayRef,
}

impl Lists {
    fn of(array: &ArrayRef, wrong: impl Fn(&DataType) -> Error) -> Result<Lists> {
        let values = match array.data_type() {
            DataType::List(_) => array.as_list::<i32>().values().clone(),
            DataType::LargeList(_) => array.as_list::<i64>().values().clone(),
            DataType::ListView(_) => array.as_list_view::<i32>().values().clone(),
            DataType::LargeListView(_) => array.as_list_view::<i64>().values().clone(),
            DataType::FixedSizeList(_, _) => array.as_fixed_size_list().values().clone(),
            // A column in which pandas saw no value.
            DataType::Null => array.clone(),
            other => return Err(wrong(other)),
        };
        Ok(Lists { array: array.clone(), values })
    }

    fn range(&self, row: usize) -> Option<Range<usize>> {
        if row >= self.array.len() || self.array.is_null(row) {
            return None;
        }
        let range = match self.array.data_type() {
            DataType::List(_) => {
                let offsets = self.array.as_list::<i32>().value_offsets();
                offsets[row] as usize..offsets[row + 1] as usize
            }
            DataType::LargeList(_) => {
                let offsets = self.array.as_list::<i64>().value_offsets();
                offsets[row] as usize..offsets[row + 1] as usize
            }
            DataType::ListView(_) => {
                let list = self.array.as_list_view::<i32>();
                let start = list.value_offset(row) as usize;
                start..start + list.value_size(row) as usize
            }
            DataType::LargeListView(_) => {
                let list = self.array.as_list_view::<i64>();
                let start = list.value_offset(row) as usize;
                start..start + list.value_size(row) as usize
            }
            DataType::FixedSizeList(_, _) => {
                let length = self.array.as_fixed_size_list().value_length() as usize;
                row * length..(row + 1) * length
            }
            _ => return None,
        };
        (range.end <= self.values.len()).then_some(range)
    }
}

/// A column of numbers.
struct Numbers {
    array: ArrayRef,
}

impl Numbers {
    fn of(array: &ArrayRef, wrong: impl Fn(&DataType) -> Error) -> Result<Numbers> {
        match array.data_type() {
            t if t.is_integer() => {}
            DataType::Float32 | DataType::Float64 | DataType::Null => {}
            other => return Err(wrong(other)),
        }
        Ok(Numbers { array: array.clone() })
    }

    fn there(&self, row: usize) -> Option<()> {
        (row < self.array.len() && !self.array.is_null(row)).then_some(())
    }

    /// A whole number; pandas turns integers into floats where one is missing.
    fn integer(&self, row: usize) -> Option<i64> {
        self.there(row)?;
        let array = &self.array;
        match array.data_type() {
            DataType::Int8 => Some(array.as_primitive::<Int8Type>().value(row).into()),
            DataType::Int16 => Some(array.as_primitive::<Int16Type>().value(row).into()),
            DataType::Int32 => Some(array.as_primitive::<Int32Type>().value(row).into()),
            DataType::Int64 => Some(array.as_primitive::<Int64Type>().value(row)),
            DataType::UInt8 => Some(array.as_primitive::<UInt8Type>().value(row).into()),
            DataType::UInt16 => Some(array.as_primitive::<UInt16Type>().value(row).into()),
            DataType::UInt32 => Some(array.as_primitive::<UInt32Type>().value(row).into()),
            DataType::UInt64 => i64::try_from(array.as_primitive::<UInt64Type>().value(row)).ok(),
            _ => self.float(row).filter(|value| value.fract() == 0.0 && value.abs() < 9e15).map(|value| value as i64),
        }
    }

    fn float(&self, row: usize) -> Option<f64> {
        self.there(row)?;
        match self.array.data_type() {
            DataType::Float32 => {
                let value = self.array.as_primitive::<Float32Type>().value(row);
                // 0.3 in either precision is 0.3.
                value.to_string().parse().ok()
            }
            DataType::Float64 => Some(self.array.as_primitive::<Float64Type>().value(row)),
            DataType::Null => None,
            _ => self.integer(row).map(|value| value as f64),
        }
    }
}

/// A column of ids: texts or numbers.
enum Ids {
    Texts(TextColumn),
    Numbers(Numbers),
}

impl Ids {
    fn of(array: &ArrayRef) -> std::result::Result<Ids, &DataType> {
        // The type is what the caller reports.
        let unused = |_: &DataType| Error::Argument(String::new());
        match TextColumn::of(array, unused) {
            Ok(texts) => Ok(Ids::Texts(texts)),
            Err(_) => Numbers::of(array, unused).map(Ids::Numbers).map_err(|_| array.data_type()),
        }
    }

    fn get(&self, row: usize) -> Option<String> {
        match self {
            Ids::Texts(texts) => texts.get(row).map(str::to_string),
            Ids::Numbers(numbers) => numbers.integer(row).map(|id| id.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::super::{Dataset, Example, open};
    use super::*;

    /// Written by pyarrow, the first ones with the steps of the Python code.
    const COCO: &[u8] = include_bytes!("../../tests/fixtures/data/coco_caption_karpathy_test.arrow");
    const VQA: &[u8] = include_bytes!("../../tests/fixtures/data/vqav2_train.arrow");
    const VQA_TEST: &[u8] = include_bytes!("../../tests/fixtures/data/vqav2_test.arrow");
    const NLVR2: &[u8] = include_bytes!("../../tests/fixtures/data/nlvr2_dev.arrow");
    const LARGE: &[u8] = include_bytes!("../../tests/fixtures/data/large.arrow");
    const DICTIONARY: &[u8] = include_bytes!("../../tests/fixtures/data/dictionary.arrow");
    const VIEWS: &[u8] = include_bytes!("../../tests/fixtures/data/views.arrow");

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn colour(image: &[u8]) -> [u8; 3] {
        image::load_from_memory(image).unwrap().into_rgb8().get_pixel(0, 0).0
    }

    #[test]
    fn captions_as_python_writes_them() {
        let folder = folder(&[("coco_caption_karpathy_test.arrow", COCO)]);
        let set = open(folder.path(), Task::Irtr, "test").unwrap();
        assert_eq!((set.name(), set.len(), set.images()), ("coco_caption_karpathy test", 3, 2));
        let first = set.image(0).unwrap();
        assert_eq!(first.captions, ["a red dot", "red"], "the caption that is there twice counts once");
        assert_eq!((colour(&first.image), first.image_id), ([255, 0, 0], "COCO_val2014_000000000001.jpg"));
        let Example::Irtr { image, caption, image_index } = set.example(2).unwrap() else { panic!() };
        assert_eq!((colour(&image), caption, image_index), ([0, 255, 0], "a green dot", 1));
    }

    #[test]
    fn images_are_not_copied() {
        let folder = folder(&[("coco_caption_karpathy_test.arrow", COCO)]);
        let path = folder.path().join("coco_caption_karpathy_test.arrow");
        let file = ArrowFile::open(&path).unwrap();
        let mut into = Builder::new("", Task::Irtr);
        read(&file, Task::Irtr, 0, &mut into).unwrap();
        let set = into.finish(Vec::new(), Default::default()).unwrap();
        let image = set.image(1).unwrap().image;
        assert!(matches!(image, Cow::Borrowed(_)));
        assert!(file.map.as_slice().as_ptr_range().contains(&image.as_ptr()));
    }

    #[test]
    fn questions_as_python_writes_them() {
        let folder = folder(&[("vqav2_train.arrow", VQA), ("vqav2_test.arrow", VQA_TEST)]);
        let set = open(folder.path(), Task::Vqa, "train").unwrap();
        assert_eq!(set.labels(), ["yes", "blue", "red", "pink"]);
        let Example::Vqa { image, question, targets, answered, question_id, image_id } = set.example(0).unwrap() else {
            panic!()
        };
        assert_eq!((colour(&image), question, answered, question_id), ([255, 0, 0], "what color?", true, 7000));
        assert_eq!(targets, [Target { label: 2, score: 1.0 }, Target { label: 3, score: 0.3 }]);
        assert_eq!(image_id, "7");
        let Example::Vqa { question, targets, question_id, .. } = set.example(2).unwrap() else { panic!() };
        assert_eq!((question, question_id, targets), ("what color?", 8000, &[Target { label: 1, score: 0.6 }][..]));

        let set = open(folder.path(), Task::Vqa, "test").unwrap();
        let Example::Vqa { targets, answered, question_id, .. } = set.example(1).unwrap() else { panic!() };
        assert!((targets.is_empty(), answered, question_id) == (true, false, 9001));
        assert_eq!(set.labels().len(), 4, "the training file's");
    }

    #[test]
    fn a_list_of_answers_beside_it_is_the_vocabulary() {
        let files: [(&str, &[u8]); 2] =
            [("vqav2_train.arrow", VQA), ("vqav2_answers.json", br#"["yes", "blue", "red", "pink", "green"]"#)];
        let set = open(folder(&files).path(), Task::Vqa, "train").unwrap();
        assert_eq!(set.labels().len(), 5);
        let error =
            open(folder(&[files[0], ("answers.json", br#"["yes", "blue", "red"]"#)]).path(), Task::Vqa, "train");
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("1 of 2 rows")
                && error.contains("vqav2_train.arrow row 1: answer label 3 is beyond the vocabulary's 3"),
            "{error}"
        );
    }

    #[test]
    fn pairs_as_python_writes_them() {
        let set = open(folder(&[("nlvr2_dev.arrow", NLVR2)]).path(), Task::Nlvr2, "val").unwrap();
        assert_eq!((set.len(), set.images()), (2, 1));
        let Example::Nlvr2 { left, right, sentence, label, identifier } = set.example(1).unwrap() else { panic!() };
        assert_eq!((colour(&left), colour(&right)), ([255, 0, 0], [0, 0, 255]));
        assert_eq!((sentence, label, identifier), ("both are red.", Some(false), "dev-1-0"));
    }

    #[test]
    fn other_types_and_encodings() {
        for (name, bytes, captions, red) in
            [("large", LARGE, 5, vec![0, 3]), ("dictionary", DICTIONARY, 4, vec![0, 2]), ("views", VIEWS, 2, vec![0])]
        {
            let folder = folder(&[("any.arrow", bytes)]);
            let set = open(&folder.path().join("any.arrow"), Task::Irtr, "test").unwrap();
            assert_eq!(set.len(), captions, "{name}");
            for index in red {
                assert_eq!(colour(&set.image(index).unwrap().image), [255, 0, 0], "{name}");
            }
        }
        let folder = folder(&[("large.arrow", LARGE)]);
        let file = ArrowFile::open(&folder.path().join("large.arrow")).unwrap();
        assert!(file.compressed());
        assert_eq!(file.rows(), 4);
    }

    #[test]
    fn several_files_are_one_split() {
        let folder = folder(&[
            ("coco_caption_karpathy_train.arrow", COCO),
            ("coco_caption_karpathy_restval.arrow", COCO),
            ("coco_caption_karpathy_val.arrow", COCO),
        ]);
        assert_eq!(open(folder.path(), Task::Irtr, "train").unwrap().name(), "coco_caption_karpathy train");
        let set = open(folder.path(), Task::Irtr, "train+restval").unwrap();
        assert_eq!((set.len(), set.images()), (6, 4));
        assert_eq!(colour(&set.image(3).unwrap().image), [0, 255, 0]);
        assert_eq!(open(folder.path(), Task::Irtr, "train+restval+val").unwrap().images(), 6);
        assert_eq!(open(folder.path(), Task::Irtr, "restval").unwrap().images(), 2);
    }

    #[test]
    fn missing_splits_and_tasks_say_what_is_there() {
        let folder = folder(&[("vqav2_train.arrow", VQA), ("vqav2_test.arrow", VQA_TEST)]);
        let error = |task, split| open(folder.path(), task, split).unwrap_err().to_string();
        assert!(error(Task::Vqa, "val").ends_with("no split 'val' for vqa; there are vqav2 (test, train)"));
        assert!(error(Task::Irtr, "val").ends_with("no examples for irtr; there is vqav2 (vqa)"));
        fs::write(folder.path().join("other_train.arrow"), VQA).unwrap();
        assert!(error(Task::Vqa, "train").contains("other:train or vqav2:train"));
        assert_eq!(open(folder.path(), Task::Vqa, "vqav2:train").unwrap().len(), 3);
        // A preset's set is taken where there are several; a set that isn't there, and a name in full, change nothing.
        let prefer = |split, set| {
            let opening = crate::data::Opening { preferred: Some(set), ..Default::default() };
            let found = crate::data::open_as(folder.path(), Task::Vqa, split, &opening);
            found.map(|set| set.name().to_owned()).map_err(|e| e.to_string())
        };
        assert_eq!(prefer("train", "vqav2").unwrap(), "vqav2 train");
        assert_eq!(prefer("other:train", "vqav2").unwrap(), "other train");
        assert!(prefer("train", "gqa").unwrap_err().contains("other:train or vqav2:train"));
    }

    #[test]
    fn damaged_files_are_named_and_do_not_block_others() {
        let folder = folder(&[("vqav2_train.arrow", VQA), ("vqav2_test.arrow", &VQA_TEST[..2000])]);
        let error = open(folder.path(), Task::Vqa, "test").unwrap_err().to_string();
        assert!(error.contains("vqav2_test.arrow: cut short"), "{error}");
        assert_eq!(open(folder.path(), Task::Vqa, "train").unwrap().len(), 3);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let folder = folder(&[]);
        let path = folder.path().join("a.arrow");
        for len in (0..COCO.len()).step_by(37).chain([COCO.len() - 1]) {
            fs::write(&path, &COCO[..len]).unwrap();
            assert!(open(&path, Task::Irtr, "test").is_err(), "{len}");
        }
        fs::write(&path, b"PAR1 and some more, but no Arrow at all").unwrap();
        assert!(open(&path, Task::Irtr, "test").unwrap_err().to_string().contains("Parquet"));
    }

    fn written(name: &str, columns: Vec<(&str, ArrayRef)>) -> (tempfile::TempDir, PathBuf) {
        let folder = folder(&[]);
        let path = folder.path().join(name);
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer = arrow_ipc::writer::FileWriter::try_new(File::create(&path).unwrap(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        (folder, path)
    }

    #[test]
    fn plain_strings_are_captions() {
        use arrow_array::{BinaryArray, StringArray};
        for column in ["caption", "captions", "text"] {
            let images: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"A", b"B"]));
            let texts: ArrayRef = Arc::new(StringArray::from(vec!["a dog", "a cat"]));
            let (_folder, path) = written("pets.arrow", vec![("image", images), (column, texts)]);
            let set = open(&path, Task::Irtr, "train").unwrap();
            assert_eq!((set.len(), set.image(1).unwrap().captions), (2, vec!["a cat"]), "{column}");
        }
    }

    #[test]
    fn a_stream_says_what_converts_it() {
        let folder = folder(&[]);
        let path = folder.path().join("pets_train.arrow");
        fs::write(&path, [0xff; 64]).unwrap();
        let error = open(&path, Task::Irtr, "train").unwrap_err().to_string();
        assert!(error.contains("an Arrow stream isn't read") && error.contains("pa.ipc.open_stream"), "{error}");
        assert!(error.contains("file_pets_train.arrow"), "its name still says the split: {error}");
    }

    #[test]
    fn columns_of_a_wrong_type_are_named() {
        use arrow_array::{Int64Array, StringArray};
        let write = |name: &str, columns: Vec<(&str, ArrayRef)>| {
            let folder = folder(&[]);
            let path = folder.path().join(name);
            let batch = RecordBatch::try_from_iter(columns).unwrap();
            let mut writer =
                arrow_ipc::writer::FileWriter::try_new(File::create(&path).unwrap(), &batch.schema()).unwrap();
            writer.write(&batch).unwrap();
            writer.finish().unwrap();
            (folder, path)
        };
        let text: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let (_folder, path) = write("a.arrow", vec![("image", text.clone()), ("caption", text.clone())]);
        let error = open(&path, Task::Irtr, "test").unwrap_err().to_string();
        assert!(error.ends_with("a.arrow: column 'image' is Utf8, expected binary"), "{error}");
        let (_folder, path) = write("a.arrow", vec![("image", text.clone()), ("questions", number)]);
        let error = open(&path, Task::Vqa, "test").unwrap_err().to_string();
        assert!(error.contains("no column 'question_id'") || error.contains("no column 'answers'"), "{error}");
        let (_folder, path) = write("a.arrow", vec![("picture", text)]);
        let error = open(&path, Task::Vqa, "test").unwrap_err().to_string();
        assert!(error.contains("no task has its columns: picture"), "{error}");
    }

    #[test]
    fn broken_rows_are_skipped_and_named() {
        use arrow_array::builder::{BinaryBuilder, ListBuilder, StringBuilder};
        let mut images = BinaryBuilder::new();
        let mut captions = ListBuilder::new(StringBuilder::new());
        for row in 0..300 {
            match row {
                5 => images.append_null(),
                _ => images.append_value([row as u8]),
            }
            match row {
                7 => captions.append(false),
                9 => captions.append(true),
                _ => captions.append_value([Some(row.to_string())]),
            }
        }
        let columns: Vec<(&str, ArrayRef)> =
            vec![("image", Arc::new(images.finish())), ("caption", Arc::new(captions.finish()))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let folder = folder(&[]);
        let path = folder.path().join("some_train.arrow");
        let mut writer = arrow_ipc::writer::FileWriter::try_new(File::create(&path).unwrap(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        drop(writer);
        let set = open(folder.path(), Task::Irtr, "train").unwrap();
        assert_eq!((set.len(), set.broken().count(), set.broken().rows()), (297, 3, 300));
        let named: Vec<String> = set.broken().sample().iter().map(|row| row.to_string()).collect();
        assert_eq!(
            named,
            [
                "some_train.arrow row 6: no image",
                "some_train.arrow row 8: no caption",
                "some_train.arrow row 10: no caption"
            ]
        );
        // The row after the first broken one is the sixth example, and is named by its place in the file.
        assert_eq!(&set.image(5).unwrap().image[..], [6]);
        let error = set.skip(5, "no JPEG").unwrap_err().to_string();
        assert!(error.contains("; 4 of 300 rows are broken, more than 1 %"), "{error}");
        assert!(set.broken().sample()[3].to_string().contains("row 7: no JPEG"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
        /// Whatever bytes are changed: an error or some data, never a panic.
        #[test]
        fn mutated_files(
            which in 0usize..7,
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
        ) {
            let (bytes, task) = [
                (COCO, Task::Irtr), (VQA, Task::Vqa), (VQA_TEST, Task::Vqa), (NLVR2, Task::Nlvr2),
                (LARGE, Task::Irtr), (DICTIONARY, Task::Irtr), (VIEWS, Task::Irtr),
            ][which];
            let mut bytes = bytes.to_vec();
            for (place, value, how) in places {
                let place = place.index(bytes.len());
                match how {
                    0 => bytes[place] = value,
                    1 => bytes[place] ^= 1 << (value % 8),
                    _ => bytes[place] = if value % 2 == 0 { 0xff } else { 0x7f },
                }
            }
            let folder = folder(&[("a.arrow", &bytes)]);
            if let Ok(set) = open(&folder.path().join("a.arrow"), task, "test") {
                for index in 0..set.len() {
                    let _ = set.example(index);
                }
            }
        }
    }
}
