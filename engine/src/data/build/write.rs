//! Rows into an Arrow file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema};
use formats::write::AtomicFile;
use rayon::prelude::*;

use super::super::arrow::ArrowFile;
use super::super::{Error, Result};
use super::{BuiltFile, Check, PlannedFile, Progress};

/// A row to be written: images to read, then values for the other columns, in their order.
#[derive(Clone)]
pub(super) struct Row {
    pub images: Vec<Image>,
    pub values: Vec<Value>,
}

/// An encoded image.
#[derive(Clone)]
pub(super) enum Image {
    File(PathBuf),
    Bytes(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Texts(Vec<String>),
    TextLists(Vec<Vec<String>>),
    Int(i64),
    Ints(Vec<i64>),
    IntLists(Vec<Vec<i64>>),
    FloatLists(Vec<Vec<f64>>),
}

/// A column's name and type.
pub(super) type Column = (&'static str, Kind);

/// The types that pyarrow gives the columns of the Python code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Image,
    Text,
    Texts,
    TextLists,
    Int,
    Ints,
    IntLists,
    FloatLists,
}

impl Kind {
    fn data_type(self) -> DataType {
        let list = |inner| DataType::List(Arc::new(Field::new("item", inner, true)));
        match self {
            Kind::Image => DataType::Binary,
            Kind::Text => DataType::Utf8,
            Kind::Texts => list(DataType::Utf8),
            Kind::TextLists => list(list(DataType::Utf8)),
            Kind::Int => DataType::Int64,
            Kind::Ints => list(DataType::Int64),
            Kind::IntLists => list(list(DataType::Int64)),
            Kind::FloatLists => list(list(DataType::Float64)),
        }
    }
}

/// Rows whose images are in memory at once, and that make up a record batch.
const BATCH: usize = 256;

/// Where a file's metadata says what it was planned to hold.
const PLAN: &str = "engine.plan";

/// Writes a file of a plan, or keeps the one that is there.
pub(super) fn write(
    file: &PlannedFile,
    out: &Path,
    force: bool,
    progress: Progress,
    unreadable: &mut Check,
) -> Result<BuiltFile> {
    let name = format!("{}.arrow", file.name);
    let path = out.join(&name);
    let digest = digest(file);
    let texts = file.rows.iter().map(|row| texts(&row.values)).sum();
    if !force && path.exists() {
        let other = |reason: &str| Error::file(&path, format!("{reason}; --force builds it again"));
        let there = ArrowFile::open(&path).map_err(|e| other(&format!("it can't be kept: {e}")))?;
        if there.schema().metadata().get(PLAN) != Some(&digest) {
            return Err(other("it is there already, and was made of other images or annotations"));
        }
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, "read", e))?.len();
        return Ok(BuiltFile { file: name, rows: there.rows(), texts, bytes, kept: true });
    }
    let fields: Vec<Field> =
        file.columns.iter().map(|(name, kind)| Field::new(*name, kind.data_type(), true)).collect();
    let schema = Arc::new(Schema::new(fields).with_metadata(HashMap::from([(PLAN.to_string(), digest)])));
    let partial = AtomicFile::exclusive(&path).map_err(|e| Error::Argument(e.to_string()))?.durable();
    let fail = |e: ArrowError| match e {
        ArrowError::IoError(_, e) => Error::io(&path, "write", e),
        other => Error::file(&path, format!("it can't be written: {other}")),
    };
    let mut writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, partial.file()), &schema).map_err(fail)?;
    let (mut rows, mut written_texts) = (0, 0);
    for (number, chunk) in file.rows.chunks(BATCH).enumerate() {
        progress(&name, number * BATCH, file.rows.len());
        let images: Vec<std::result::Result<Vec<Cow<[u8]>>, String>> =
            chunk.par_iter().map(|row| row.images.iter().map(read).collect()).collect();
        let mut kept = Vec::with_capacity(chunk.len());
        for (row, images) in chunk.iter().zip(images) {
            match images {
                Ok(images) => {
                    unreadable.matched += 1;
                    written_texts += self::texts(&row.values);
                    kept.push((images, &row.values[..]));
                }
                Err(cause) => unreadable.miss(cause),
            }
        }
        let columns = columns(file, &kept)?;
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(fail)?;
        rows += batch.num_rows();
        writer.write(&batch).map_err(fail)?;
    }
    writer.finish().map_err(fail)?;
    drop(writer);
    partial.finish().map_err(|e| Error::Argument(e.to_string()))?;
    progress(&name, file.rows.len(), file.rows.len());
    let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, "read", e))?.len();
    Ok(BuiltFile { file: name, rows, texts: written_texts, bytes, kept: false })
}

/// Writes a list of labels as JSON.
pub(super) fn labels(path: &Path, labels: &[String], force: bool) -> Result<BuiltFile> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = serde_json::to_vec_pretty(labels).map_err(|e| Error::file(path, e.to_string()))?;
    let built = |kept| BuiltFile { file: name, rows: labels.len(), texts: 0, bytes: text.len() as u64, kept };
    match std::fs::read(path) {
        Ok(there) if there == text => return Ok(built(true)),
        Ok(_) if !force => {
            return Err(Error::file(path, "it is there already, with other labels; --force replaces it"));
        }
        _ => {}
    }
    formats::write::write_file(path, &text).map_err(|e| Error::Argument(e.to_string()))?;
    Ok(built(false))
}

fn read(image: &Image) -> std::result::Result<Cow<'_, [u8]>, String> {
    match image {
        Image::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
        Image::File(path) => match std::fs::read(path) {
            Ok(bytes) if bytes.is_empty() => Err(format!("{} (it is empty)", formats::show_path(path))),
            Ok(bytes) => Ok(Cow::Owned(bytes)),
            Err(e) => Err(format!("{} ({e})", formats::show_path(path))),
        },
    }
}

/// Texts in a row, as its first list of them counts them.
fn texts(values: &[Value]) -> usize {
    values.iter().find_map(|value| if let Value::Texts(texts) = value { Some(texts.len()) } else { None }).unwrap_or(0)
}

/// A digest of what a file is planned to hold, but for the images' bytes.
fn digest(file: &PlannedFile) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (name, kind) in file.columns {
        add(format!("{name} {kind:?}").as_bytes());
    }
    for row in &file.rows {
        for image in &row.images {
            match image {
                Image::File(path) => add(path.file_name().unwrap_or_default().as_encoded_bytes()),
                Image::Bytes(bytes) => add(bytes),
            }
        }
        for value in &row.values {
            add(format!("{value:?}").as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// A row with its images read.
type Ready<'a> = (Vec<Cow<'a, [u8]>>, &'a [Value]);

/// The columns of a record batch.
fn columns(file: &PlannedFile, rows: &[Ready]) -> Result<Vec<ArrayRef>> {
    let (mut image, mut value) = (0, 0);
    let mut arrays = Vec::with_capacity(file.columns.len());
    for (name, kind) in file.columns {
        let array: Option<ArrayRef> = match kind {
            Kind::Image => {
                image += 1;
                images(rows.iter().map(|(images, _)| images.get(image - 1)))
            }
            other => {
                value += 1;
                values(*other, rows.iter().map(|(_, values)| values.get(value - 1)))
            }
        };
        arrays.push(array.ok_or_else(|| Error::Argument(format!("{}: a row doesn't fit column {name}", file.name)))?);
    }
    Ok(arrays)
}

fn images<'a>(images: impl Iterator<Item = Option<&'a Cow<'a, [u8]>>>) -> Option<ArrayRef> {
    let mut builder = BinaryBuilder::new();
    for image in images {
        builder.append_value(image?);
    }
    Some(Arc::new(builder.finish()))
}

/// `None` where a row has no value or one of another kind.
fn values<'a>(kind: Kind, values: impl Iterator<Item = Option<&'a Value>>) -> Option<ArrayRef> {
    macro_rules! lists {
        ($builder:expr, $variant:path, |$lists:ident, $list:ident| $append:expr) => {{
            let mut $lists = ListBuilder::new($builder);
            for value in values {
                let Some($variant($list)) = value else { return None };
                $append;
                $lists.append(true);
            }
            Arc::new($lists.finish()) as ArrayRef
        }};
    }
    Some(match kind {
        Kind::Image => return None,
        Kind::Text => {
            let texts = values.map(|value| if let Some(Value::Text(text)) = value { Some(text) } else { None });
            Arc::new(StringArray::from_iter_values(texts.collect::<Option<Vec<_>>>()?))
        }
        Kind::Int => {
            let ints = values.map(|value| if let Some(Value::Int(int)) = value { Some(*int) } else { None });
            Arc::new(Int64Array::from_iter_values(ints.collect::<Option<Vec<_>>>()?))
        }
        Kind::Texts => lists!(StringBuilder::new(), Value::Texts, |lists, list| {
            list.iter().for_each(|text| lists.values().append_value(text))
        }),
        Kind::Ints => lists!(Int64Builder::new(), Value::Ints, |lists, list| { lists.values().append_slice(list) }),
        Kind::TextLists => lists!(ListBuilder::new(StringBuilder::new()), Value::TextLists, |lists, list| {
            for inner in list {
                inner.iter().for_each(|text| lists.values().values().append_value(text));
                lists.values().append(true);
            }
        }),
        Kind::IntLists => lists!(ListBuilder::new(Int64Builder::new()), Value::IntLists, |lists, list| {
            for inner in list {
                lists.values().values().append_slice(inner);
                lists.values().append(true);
            }
        }),
        Kind::FloatLists => lists!(ListBuilder::new(Float64Builder::new()), Value::FloatLists, |lists, list| {
            for inner in list {
                lists.values().values().append_slice(inner);
                lists.values().append(true);
            }
        }),
    })
}
