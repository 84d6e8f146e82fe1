//! Good files of every container, damaged at random: whatever comes of it, no panic, no endless
//! loop, no memory out of proportion, and errors of one line.
//!
//! `FORMATS_MUTATIONS` says how many files (4000 without it), `FORMATS_MUTATIONS_FROM` the number of
//! the first. A number stands for the same file each time, as long as the seeds stay as they are.

#[path = "attacks/files.rs"]
#[allow(dead_code, reason = "shared with the attacks")]
mod files;
#[path = "attacks/harness.rs"]
#[allow(dead_code, reason = "shared with the attacks")]
mod harness;

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use files::{Entry, View, Zip, legacy, pickle, safetensors, state_dict};
use formats::Dtype;
use formats::write::{Metadata, Piece, Writer};
use harness::{Outcome, PATIENCE};

#[global_allocator]
static ALLOCATOR: harness::CountingAllocator = harness::CountingAllocator;

/// Larger seeds are drawn once in a hundred, or they would take most of the time; the largest never.
const SMALL_SEED: usize = 50_000;
const MAX_SEED: u64 = 700_000;
const SHARD: &str = "one.safetensors";

#[test]
fn damaged_files_are_refused_or_read() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect(name));
    let first: u64 = number("FORMATS_MUTATIONS_FROM", 0);
    let count: u64 = number("FORMATS_MUTATIONS", 4000);
    let seeds = seeds();
    println!("{} seeds", seeds.len());
    let current = Arc::new(AtomicU64::new(first));
    let progress = current.clone();
    let worker = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let folder = memory_folder();
        let path = folder.path().join("hostile.bin");
        std::fs::write(folder.path().join(SHARD), shard()).unwrap();
        let (mut opened, mut failed) = (0, Vec::new());
        for case in first..first + count {
            progress.store(case, Ordering::Relaxed);
            let bytes = damaged(&seeds, case);
            std::fs::write(&path, &bytes).unwrap();
            match catch_unwind(AssertUnwindSafe(|| checked(&path, bytes.len()))) {
                Ok(Outcome::Opened(_)) => opened += 1,
                Ok(Outcome::Refused(_)) => continue,
                Err(_) => failed.push(kept(case, &bytes)),
            }
            // Writing is slower than reading.
            if case % 16 == 0 && catch_unwind(AssertUnwindSafe(|| rewritten(&path))).is_err() {
                failed.push(kept(case, &bytes));
            }
        }
        (opened, failed)
    });
    let worker = worker.unwrap();
    let start = Instant::now();
    let (mut last, mut since) = (first, start);
    while !worker.is_finished() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let now = current.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > PATIENCE {
            eprintln!("mutation {now}: not done after {PATIENCE:?}");
            std::process::abort();
        }
    }
    let (opened, failed) = worker.join().unwrap();
    println!("{count} files in {:?}: {opened} opened, {} refused", start.elapsed(), count - opened);
    assert!(failed.is_empty(), "{} files, kept as {failed:?}", failed.len());
}

/// Opens and reads a file, and checks what it took at its peak.
fn checked(path: &Path, len: usize) -> Outcome {
    harness::reset_peak();
    let before = harness::peak();
    let outcome = harness::exercise(path);
    let taken = (harness::peak() - before) as usize;
    assert!(taken <= (64 << 20) + 32 * len, "{} MiB at the peak", taken >> 20);
    outcome
}

/// What opens can be written as a new file, and reads the same there.
fn rewritten(path: &Path) {
    let checkpoint = formats::open(path).unwrap();
    let target = path.with_extension("ckpt");
    let writer = Writer::create(&target, checkpoint.tensors().to_vec(), &Metadata::new()).unwrap();
    let produce = |piece: &Piece, buffer: &mut Vec<u8>| -> formats::Result<()> {
        checkpoint.read(piece.tensor, piece.elements.clone(), buffer)
    };
    let filled = writer.fill(2, |_| false, |piece, buffer| produce(piece, buffer).map(|()| &buffer[..]));
    filled.unwrap();
    writer.finish(&Metadata::new()).unwrap();
    let again = formats::open(&target).unwrap();
    assert_eq!(again.tensors(), checkpoint.tensors());
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for (number, info) in again.tensors().iter().enumerate() {
        let range = 0..info.elements().min(1000);
        checkpoint.read(number, range.clone(), &mut left).unwrap();
        again.read(number, range, &mut right).unwrap();
        assert_eq!(left, right, "{}", info.name);
    }
    std::fs::remove_file(target).unwrap();
}

/// Writes a file that failed to where it can be looked at.
fn kept(case: u64, bytes: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("formats-mutation-{case}"));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A folder in memory where there is one: a hundred thousand files are written.
fn memory_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

struct Seed {
    bytes: Vec<u8>,
    /// Its entries, where it is a zip: rebuilt with correct checksums, damage reaches the pickle.
    entries: Vec<Entry>,
}

impl Seed {
    fn new(bytes: Vec<u8>) -> Seed {
        let entries = zip_entries(&bytes).unwrap_or_default();
        Seed { bytes, entries }
    }
}

fn zip_entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).ok()?;
    let mut entries = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).ok()?;
        let mut data = Vec::new();
        entry.read_to_end(&mut data).ok()?;
        entries.push(Entry { name: entry.name_raw().to_vec(), data, ..Entry::default() });
    }
    Some(entries)
}

fn shard() -> Vec<u8> {
    safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[1; 8])
}

/// Files made here, those that PyTorch made, and this project's golden ones.
fn seeds() -> Vec<Seed> {
    let object = state_dict(|p| {
        for (number, dtype) in [Dtype::F32, Dtype::F16, Dtype::I64, Dtype::F8E4M3].into_iter().enumerate() {
            p.str(&format!("layers.{number}.weight")).tensor(dtype, &number.to_string(), &[2, 3]);
        }
        p.str("view");
        View { storage: 6, offset: 1, shape: &[2, 2], strides: &[1, 2], ..View::default() }.push(p);
        p.str("hyper_parameters").global("argparse", "Namespace").empty_tuple().new_object().empty_dict().mark();
        p.str("lr").float(1e-4).str("names").empty_list().mark().str("a").int(70_000).none().appends();
        p.set_items().build();
    });
    let storages: [(&str, &[u8]); 4] = [("0", &[1; 24]), ("1", &[2; 12]), ("2", &[3; 48]), ("3", &[4; 6])];
    let mut zip = Zip::torch(&object, &storages);
    zip.entries.push(Entry::new("archive/byteorder", b"little"));
    let old = legacy(&object, &["3", "1", "0", "2"], &[(6, &[4; 6]), (6, &[2; 12]), (6, &[1; 24]), (6, &[3; 48])]);
    let array = pickle(|p| {
        p.empty_dict().str("a").global("numpy.core.multiarray", "_reconstruct").empty_tuple().reduce();
        p.mark().int(1).mark().int(2).int(1).tuple();
        p.global("numpy", "dtype").mark().str("f4").tuple().reduce().bool(true);
        p.raw(b"B\x08\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08").tuple().build().raw(b"s");
    });
    let two = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}"#;
    let index = format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{"a":"{SHARD}"}}}}"#);
    let built = [zip.build(), old, array, safetensors(two, &[5; 11]), shard(), index.into_bytes()];
    let mut seeds: Vec<Seed> = built.into_iter().map(Seed::new).collect();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    for folder in ["torch", "golden"] {
        let Ok(found) = std::fs::read_dir(fixtures.join(folder)) else { continue };
        let mut paths: Vec<PathBuf> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        let is_checkpoint = |path: &PathBuf| {
            matches!(path.extension().and_then(|e| e.to_str()), Some("pt" | "pth" | "ckpt" | "safetensors"))
        };
        let is_small = |path: &PathBuf| path.metadata().is_ok_and(|m| m.len() <= MAX_SEED);
        let wanted = paths.iter().filter(|path| is_checkpoint(path) && is_small(path));
        seeds.extend(wanted.map(|path| Seed::new(std::fs::read(path).unwrap())));
    }
    // Small ones first.
    seeds.sort_by_key(|seed| seed.bytes.len() > SMALL_SEED);
    seeds
}

/// The file that a number stands for.
fn damaged(seeds: &[Seed], case: u64) -> Vec<u8> {
    let mut random = Random(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
    let small = seeds.partition_point(|seed| seed.bytes.len() <= SMALL_SEED);
    let drawn_from = if random.below(100) == 0 { seeds.len() } else { small };
    let seed = &seeds[random.below(drawn_from)];
    let mut bytes = if !seed.entries.is_empty() && random.below(3) > 0 {
        let mut entries = seed.entries.clone();
        let pickle = entries.iter_mut().find(|entry| entry.name.ends_with(b"data.pkl"));
        if let Some(pickle) = pickle {
            damage_some(&mut random, &mut pickle.data, seeds);
        }
        Zip { entries, ..Zip::default() }.build()
    } else {
        let mut bytes = seed.bytes.clone();
        damage_some(&mut random, &mut bytes, seeds);
        bytes
    };
    // A header of another length, told truly.
    if bytes.get(8) == Some(&b'{') && random.below(2) == 0 {
        let data = bytes.windows(2).rposition(|pair| pair == b"}}").map_or(bytes.len(), |at| at + 2);
        let length = (data as u64).saturating_sub(8).to_le_bytes();
        bytes[..8].copy_from_slice(&length);
    }
    bytes
}

fn damage_some(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[Seed]) {
    let more = random.below(2) * random.below(4);
    for _ in 0..1 + more {
        damage(random, bytes, seeds);
    }
}

fn damage(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[Seed]) {
    if bytes.is_empty() {
        bytes.push(random.below(256) as u8);
        return;
    }
    let at = random.below(bytes.len());
    let end = (at + 1 + random.below(16)).min(bytes.len());
    match random.below(11) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.below(256) as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end)),
        4 => {
            // Again and again, up to a thousand times.
            let most = 1 << random.below(11);
            let piece = bytes[at..end].repeat(1 + random.below(most));
            bytes.splice(at..at, piece);
        }
        5 => {
            let other = &seeds[random.below(seeds.len())].bytes;
            let from = random.below(other.len());
            let to = (from + random.below(200)).min(other.len());
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        6 => {
            let from = random.below(bytes.len());
            let piece = bytes[from..(from + random.below(64)).min(bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        // A field of a length or a count.
        7 | 8 => {
            let width = [1, 2, 4, 8][random.below(4)];
            let value = random.telling(bytes.len()).to_le_bytes();
            overwrite(bytes, at, &value[..width]);
        }
        // The same in the records of a zip, which are few among many bytes.
        9 => {
            let records: Vec<usize> =
                bytes.windows(2).enumerate().filter(|(_, w)| w == b"PK").map(|(at, _)| at).collect();
            if !records.is_empty() {
                let at = records[random.below(records.len())] + random.below(56);
                let width = [1, 2, 4, 8][random.below(4)];
                let value = random.telling(bytes.len()).to_le_bytes();
                overwrite(bytes, at, &value[..width]);
            }
        }
        // An opcode for another, a digit for another.
        _ => {
            const OPCODES: &[u8] =
                b"()]}0129KMJXNRbcuestaodl.QqhjrP\x80\x81\x85\x86\x87\x88\x8a\x8b\x8c\x8d\x91\x92\x93\x94\x95";
            let alike = |b: &u8| OPCODES.contains(b);
            let places: Vec<usize> = (0..bytes.len()).filter(|&at| alike(&bytes[at])).collect();
            if !places.is_empty() {
                bytes[places[random.below(places.len())]] = OPCODES[random.below(OPCODES.len())];
            }
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes.iter_mut().skip(at).zip(value).for_each(|(byte, &new)| *byte = new);
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// A number that readers get wrong: around the file's length, around the ends of types.
    fn telling(&mut self, len: usize) -> u64 {
        let len = len as u64;
        let base = [0, 1, len, len / 2, 1 << 7, 1 << 8, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX];
        let base = base[self.below(base.len())];
        base.wrapping_add(self.below(5) as u64).wrapping_sub(2)
    }
}
