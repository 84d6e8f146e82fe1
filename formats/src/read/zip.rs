//! PyTorch's zip container (PyTorch 1.6 and later): `<top>/data.pkl` and one stored entry
//! `<top>/data/<key>` for each storage.

use std::collections::HashMap;
use std::io::{BufReader, Read};

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::source::Source;
use super::{StorageBytes, Storages};
use crate::pickle::{self, Document};
use crate::{Error, Result, show_name};

/// The zip crate makes room for all entries that a zip64 record claims before it looks for them. A
/// file can be long enough for billions without taking space on disk.
const MAX_ENTRIES: u64 = 1 << 18;

/// A zip's pickle and where its storages lie.
pub(crate) fn open(source: &Source) -> Result<(Document, Storages)> {
    let bad = |reason: String| Error::file(&source.path, reason);
    if let Some(count) = claimed_entries(source)?.filter(|&count| count > MAX_ENTRIES) {
        return Err(bad(format!("its zip directory claims {count} entries; at most {MAX_ENTRIES} are read")));
    }
    let file = source.file.try_clone().map_err(|e| Error::io(&source.path, "open", e))?;
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, BufReader::new(file))
        .map_err(|e| bad(format!("damaged or cut short: its zip directory can't be read ({e})")))?;
    if archive.has_duplicate_names() {
        return Err(bad("two of its zip entries have the same name".into()));
    }

    let names: Vec<String> = archive.file_names_raw().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let top = match names.iter().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).collect::<Vec<_>>()[..]
    {
        [name] => name.strip_suffix("data.pkl").unwrap_or_default().to_owned(),
        [] => return Err(bad("a zip file without a data.pkl in it: not a PyTorch checkpoint".into())),
        _ => return Err(bad("a zip file with more than one data.pkl in it".into())),
    };

    let mut document = None;
    let mut big_endian = false;
    let mut bytes = HashMap::new();
    // Where each entry lies with its header, and the zip's own directory, which follows them.
    let mut taken = vec![(archive.central_directory_start(), source.len, "the zip's directory")];
    for (index, name) in names.iter().enumerate() {
        let Some(inner) = name.strip_prefix(top.as_str()) else { continue };
        let key = inner.strip_prefix("data/");
        if key.is_none() && !matches!(inner, "data.pkl" | "byteorder") {
            continue;
        }
        let entry_fault = |reason: String| bad(format!("zip entry '{}': {reason}", show_name(name)));
        let mut entry = archive.by_index_raw(index).map_err(|e| entry_fault(format!("can't be read ({e})")))?;
        if entry.encrypted() {
            return Err(entry_fault("it is encrypted".into()));
        }
        if entry.compression() != CompressionMethod::Stored {
            let how = entry.compression().to_string().to_lowercase();
            return Err(entry_fault(format!(
                "it is compressed ({how}), and PyTorch only stores; unpack the file and pack it again with 'zip -0 -r'"
            )));
        }
        let start = entry.data_start().unwrap_or(u64::MAX);
        let size = entry.size();
        if size != entry.compressed_size() || start.checked_add(size).is_none_or(|end| end > source.len) {
            return Err(entry_fault(format!(
                "it should hold {size} bytes and the file ends before that: cut short or damaged"
            )));
        }
        taken.push((entry.header_start(), start + size, name));
        match key {
            Some(key) => {
                // Names of broken text can be equal as text only.
                if bytes.insert(key.to_owned(), StorageBytes { start, len: size }).is_some() {
                    return Err(entry_fault("another entry has the same name".into()));
                }
            }
            None if inner == "byteorder" => {
                let mut order = String::new();
                let read = entry.by_ref().take(16).read_to_string(&mut order);
                big_endian = match (read, order.trim()) {
                    (Ok(_), "little") => false,
                    (Ok(_), "big") => true,
                    _ => return Err(entry_fault("neither 'little' nor 'big'".into())),
                };
            }
            None => {
                let limits = pickle::Limits::default();
                if size > limits.bytes {
                    return Err(entry_fault(format!("a pickle of {size} bytes; at most {} are read", limits.bytes)));
                }
                drop(entry);
                // Read to its end through the archive, which then checks the entry's checksum.
                let mut data = Vec::new();
                let read = archive.by_index(index).map_err(|e| e.to_string());
                read.and_then(|mut entry| entry.read_to_end(&mut data).map_err(|e| e.to_string()))
                    .map_err(|e| entry_fault(format!("can't be read ({e})")))?;
                let (found, _) = pickle::read(&mut data.as_slice(), data.len() as u64, limits)
                    .map_err(|fault| bad(fault.to_string()))?;
                document = Some(found);
            }
        }
    }
    // Entries on top of each other make a small file claim any size, and mean two things at once.
    taken.sort_unstable();
    if let Some(pair) = taken.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        let (first, second) = (show_name(pair[0].2), show_name(pair[1].2));
        return Err(bad(format!("its zip entries overlap: '{first}' and '{second}' share bytes")));
    }
    let document = document.ok_or_else(|| bad("a zip file without a data.pkl in it".into()))?;
    Ok((document, Storages { big_endian, bytes }))
}

/// The most entries that any zip64 record claims to which a locator near the file's end points.
fn claimed_entries(source: &Source) -> Result<Option<u64>> {
    // An end record of 22 bytes with a comment of up to 64 KiB, and the locator before it.
    let start = source.len.saturating_sub(20 + 22 + (1 << 16));
    let mut tail = vec![0; (source.len - start) as usize];
    source.read_exact_at(&mut tail, start)?;
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let mut most = None;
    for locator in tail.windows(16).filter(|window| window.starts_with(b"PK\x06\x07")) {
        // Each record's count stands 32 bytes into it.
        let at = number(&locator[8..]).and_then(|record| record.checked_add(32));
        if let Some(at) = at.filter(|at| at.checked_add(8).is_some_and(|end| end <= source.len)) {
            let mut count = [0; 8];
            source.read_exact_at(&mut count, at)?;
            most = most.max(number(&count));
        }
    }
    Ok(most)
}
