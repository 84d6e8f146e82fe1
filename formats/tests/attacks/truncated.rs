//! Good files cut off after every byte: an error that says so, never a wrong tensor.

use formats::Dtype;
use formats::pickle::Emitter;

use crate::files::{Zip, legacy, pickle, safetensors, state_dict};
use crate::harness::{Outcome, exercise, watched};

/// Cuts `whole` after each of its bytes. The whole opens; what opens of the others is the same.
fn cut_everywhere(name: &'static str, whole: Vec<u8>, may_open_from: usize) {
    watched(name, move || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostile.bin");
        std::fs::write(&path, &whole).unwrap();
        let expected = exercise(&path).opened().tensors;
        assert!(!expected.is_empty());
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            match exercise(&path) {
                Outcome::Refused(_) => {}
                Outcome::Opened(opened) => {
                    assert!(length >= may_open_from, "{name}: {length} of {} bytes opened", whole.len());
                    assert_eq!(opened.tensors, expected, "{name}: {length} of {} bytes", whole.len());
                }
            }
        }
    });
}

fn object(p: &mut Emitter) {
    p.str("a").tensor(Dtype::F32, "0", &[2, 2]).str("b").tensor(Dtype::I64, "1", &[1]);
    p.str("empty").tensor(Dtype::F16, "2", &[0]);
}

#[test]
fn zip() {
    let storages: [(&str, &[u8]); 3] = [("0", &[1; 16]), ("1", &[2; 8]), ("2", &[])];
    let whole = Zip::torch(&state_dict(object), &storages).build();
    cut_everywhere("zip", whole.clone(), whole.len());
}

#[test]
fn legacy_file() {
    let whole = legacy(&state_dict(object), &["2", "0", "1"], &[(0, &[]), (4, &[1; 16]), (1, &[2; 8])]);
    cut_everywhere("legacy", whole.clone(), whole.len());
}

#[test]
fn plain_pickle() {
    let whole = pickle(|p| {
        p.empty_dict().str("a").global("numpy.core.multiarray", "_reconstruct").empty_tuple().reduce();
        p.mark().int(1).mark().int(2).tuple();
        p.global("numpy", "dtype").mark().str("f4").tuple().reduce().bool(false);
        p.raw(b"B\x08\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08").tuple().build().raw(b"s");
    });
    cut_everywhere("pickle", whole.clone(), whole.len());
}

#[test]
fn safetensors_file() {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let whole = safetensors(header, &[1; 8]);
    cut_everywhere("safetensors", whole.clone(), whole.len());
}

#[test]
fn index_and_shards() {
    let folder = tempfile::tempdir().unwrap();
    let shard = safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[1; 8]);
    let index = "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"a\":\"one.safetensors\"}}";
    let (index_path, shard_path) = (folder.path().join("index.json"), folder.path().join("one.safetensors"));
    watched("shards", move || {
        std::fs::write(&index_path, index).unwrap();
        for length in 0..shard.len() {
            std::fs::write(&shard_path, &shard[..length]).unwrap();
            exercise(&index_path).refused(&["one.safetensors"]);
        }
        std::fs::write(&shard_path, &shard).unwrap();
        exercise(&index_path).opened();
        for length in 0..index.len() {
            std::fs::write(&index_path, &index[..length]).unwrap();
            exercise(&index_path).refused(&["index.json"]);
        }
        drop(folder);
    });
}

#[test]
fn a_file_that_shrinks_while_it_is_open_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.bin");
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    std::fs::write(&path, safetensors(header, &[1; 8])).unwrap();
    let checkpoint = formats::open(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(20).unwrap();
    let error = checkpoint.read(0, 0..2, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("became shorter"), "{error}");
}
