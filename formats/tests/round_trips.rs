//! What the writer writes, `open` reads: every dtype, every shape, any name, any number of threads.

use std::collections::BTreeMap;
use std::path::Path;

use formats::write::{Metadata, PIECE, Piece, Production, Writer};
use formats::{Dtype, Error, TensorInfo};
use proptest::prelude::*;

const DTYPES: [Dtype; 21] = [
    Dtype::F64,
    Dtype::F32,
    Dtype::F16,
    Dtype::Bf16,
    Dtype::I64,
    Dtype::I32,
    Dtype::I16,
    Dtype::I8,
    Dtype::U64,
    Dtype::U32,
    Dtype::U16,
    Dtype::U8,
    Dtype::Bool,
    Dtype::Complex32,
    Dtype::Complex64,
    Dtype::Complex128,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
    Dtype::F8E4M3Fnuz,
    Dtype::F8E5M2Fnuz,
    Dtype::F8E8M0,
];

/// Tensors by name: dtype, shape, and a number that their bytes follow from.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, u64)>;

fn any_tensors() -> impl Strategy<Value = Tensors> {
    let name = prop_oneof!["[a-z0-9_.]{0,40}", "\\PC{0,20}", ".{0,20}"];
    let name = name.prop_filter("a name of the container's own", |name| name != "__metadata__");
    let shape = prop::collection::vec(0usize..5, 0..5);
    let tensor = (prop::sample::select(DTYPES.to_vec()), shape, any::<u64>());
    prop::collection::btree_map(name, tensor, 0..12)
}

fn any_metadata() -> impl Strategy<Value = Metadata> {
    prop::collection::btree_map(".{0,20}", ".{0,100}", 0..5)
}

fn info(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

fn byte(seed: u64, at: usize) -> u8 {
    (seed.wrapping_add(at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn write(path: &Path, tensors: &Tensors, metadata: &Metadata, threads: usize) -> Result<Vec<u8>, Error> {
    let infos = tensors.iter().map(|(name, (dtype, shape, _))| info(name, *dtype, shape)).collect();
    let writer = Writer::create(path, infos, metadata)?;
    writer.fill(
        threads,
        |_| false,
        |piece: &Piece, buffer: &mut Vec<u8>| -> Result<&[u8], Error> {
            let info = &writer.tensors()[piece.tensor];
            let (_, _, seed) = tensors[&info.name];
            let size = info.dtype.size();
            buffer.clear();
            buffer.extend((piece.elements.start * size..piece.elements.end * size).map(|at| byte(seed, at)));
            Ok(buffer)
        },
    )?;
    writer.finish(metadata)?;
    Ok(std::fs::read(path).unwrap())
}

/// Writes on one, two and five threads, and reads the result.
fn round_trip(file: &str, tensors: &Tensors, metadata: &Metadata) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file);
    let bytes = write(&path, tensors, metadata, 1).unwrap();
    for threads in [2, 5] {
        assert!(write(&path, tensors, metadata, threads).unwrap() == bytes, "{threads} threads");
    }
    let checkpoint = formats::open(&path).unwrap();
    assert_eq!(checkpoint.tensors().len(), tensors.len());
    for (number, info) in checkpoint.tensors().iter().enumerate() {
        let (dtype, shape, seed) = &tensors[&info.name];
        assert_eq!((info.dtype, &info.shape), (*dtype, shape), "{}", info.name);
        let mut out = Vec::new();
        checkpoint.read(number, 0..info.elements(), &mut out).unwrap();
        let expected: Vec<u8> = (0..info.bytes()).map(|at| byte(*seed, at)).collect();
        assert!(out == expected, "{}", info.name);
    }
    for (key, value) in metadata {
        assert_eq!(checkpoint.metadata().get(key), Some(value), "{key:?}");
    }
    // Nothing is left beside the file.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_zip_comes_back(tensors in any_tensors(), metadata in any_metadata()) {
        round_trip("model.ckpt", &tensors, &metadata);
    }

    #[test]
    fn a_safetensors_file_comes_back(mut tensors in any_tensors(), metadata in any_metadata()) {
        tensors.retain(|_, (dtype, ..)| dtype.safetensors_name().is_some());
        round_trip("model.safetensors", &tensors, &metadata);
    }
}

#[test]
fn tensors_with_one_anothers_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["model.ckpt", "model.safetensors"] {
        let path = folder.path().join(file);
        let infos = ["a", "b", "c", "d"].map(|name| info(name, Dtype::U8, &[2])).to_vec();
        let writer = Writer::create(&path, infos, &Metadata::new()).unwrap();
        // b and d are a.
        let production = |tensor| [Production::Whole, Production::As(0), Production::Runs, Production::As(0)][tensor];
        let produced = std::sync::Mutex::new(Vec::new());
        writer
            .fill_as(2, production, |piece: &Piece, bytes: &mut Vec<u8>| -> Result<&[u8], Error> {
                produced.lock().unwrap().push((piece.tensor, piece.copies()));
                *bytes = vec![piece.tensor as u8; 2];
                Ok(bytes)
            })
            .unwrap();
        writer.finish(&Metadata::new()).unwrap();
        let mut produced = produced.into_inner().unwrap();
        produced.sort_unstable();
        assert_eq!(produced, [(0, 3), (2, 1)]);
        let checkpoint = formats::open(&path).unwrap();
        for (name, value) in [("a", 0), ("b", 0), ("c", 2), ("d", 0)] {
            let mut bytes = Vec::new();
            checkpoint.read(checkpoint.position(name).unwrap(), 0..2, &mut bytes).unwrap();
            assert_eq!(bytes, [value; 2], "{file} {name}");
        }
    }
}

#[test]
fn every_dtype_comes_back_empty_scalar_and_full() {
    let shapes: [&[usize]; 4] = [&[], &[0], &[3, 0, 2], &[2, 1, 3]];
    let mut tensors = Tensors::new();
    for dtype in DTYPES {
        for shape in shapes {
            tensors.insert(format!("{dtype} {shape:?}"), (dtype, shape.to_vec(), 7));
        }
    }
    round_trip("model.pth", &tensors, &Metadata::new());
    tensors.retain(|_, (dtype, ..)| dtype.safetensors_name().is_some());
    round_trip("model.safetensors", &tensors, &Metadata::new());
}

#[test]
fn tensors_of_several_pieces_come_back() {
    let tensors = Tensors::from([
        ("one".to_owned(), (Dtype::U8, vec![PIECE], 1)),
        ("three".to_owned(), (Dtype::U8, vec![2, PIECE + 1], 2)),
        ("small".to_owned(), (Dtype::F32, vec![3], 3)),
    ]);
    for file in ["model.ckpt", "model.safetensors"] {
        round_trip(file, &tensors, &Metadata::from([("recipe".to_owned(), "{}".to_owned())]));
    }
}

#[test]
fn a_dtype_that_the_container_lacks_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = Tensors::from([("c".to_owned(), (Dtype::Complex128, vec![1], 0))]);
    let message = write(&path, &tensors, &Metadata::new(), 1).unwrap_err().to_string();
    assert!(message.contains("tensor 'c': safetensors has no complex128 values"), "{message}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
