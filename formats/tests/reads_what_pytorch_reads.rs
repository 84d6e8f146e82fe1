//! Every file under `fixtures/torch` was saved by PyTorch, and `expected.json` says what PyTorch
//! reads in it; `fixtures/golden-sums.json` says the same of the golden checkpoints.

use std::collections::BTreeMap;
use std::path::PathBuf;

use formats::{Checkpoint, Dtype};
use serde_json::Value;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fn json(path: PathBuf) -> Value {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// A tensor's elements as numbers; a complex element is two.
fn numbers(checkpoint: &Checkpoint, index: usize) -> Option<Vec<f64>> {
    let info = &checkpoint.tensors()[index];
    let mut bytes = Vec::new();
    checkpoint.read(index, 0..info.elements(), &mut bytes).unwrap_or_else(|e| panic!("{e}"));
    let part = match info.dtype {
        Dtype::Complex32 => Dtype::F16,
        Dtype::Complex64 => Dtype::F32,
        Dtype::Complex128 => Dtype::F64,
        other => other,
    };
    let mut values = Vec::new();
    formats::decode_f64(&bytes, part, &mut values).then_some(values)
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// Checks one tensor against a record with `dtype`, `shape`, `sum`, `abs_sum` and maybe `first` and `last`.
fn check(file: &str, checkpoint: &Checkpoint, record: &Value) {
    let name = record["name"].as_str().expect("name");
    let index = checkpoint.position(name).unwrap_or_else(|| panic!("{file}: no tensor '{name}'"));
    let info = &checkpoint.tensors()[index];
    assert_eq!(info.dtype.torch_name(), record["dtype"].as_str().expect("dtype"), "{file}: {name}");
    let shape: Vec<usize> = floats(&record["shape"]).into_iter().map(|d| d as usize).collect();
    assert_eq!(info.shape, shape, "{file}: {name}");
    let Some(values) = numbers(checkpoint, index) else {
        assert!(info.dtype.name().starts_with("f8"), "{file}: {name}: {} should be readable", info.dtype);
        return;
    };
    let close = |ours: f64, key: &str| {
        let theirs = record[key].as_f64().expect("a number");
        assert!((ours - theirs).abs() <= 1e-9 * theirs.abs().max(1.0), "{file}: {name}: {key} is {ours}, not {theirs}");
    };
    close(values.iter().sum(), "sum");
    close(values.iter().map(|v| v.abs()).sum(), "abs_sum");
    if let Some(first) = record.get("first") {
        let first = floats(first);
        assert_eq!(values[..first.len()], first, "{file}: {name}: first elements");
        let last = floats(&record["last"]);
        assert_eq!(values[values.len() - last.len()..], last, "{file}: {name}: last elements");
    }
}

#[test]
fn files_saved_by_pytorch() {
    let folder = fixtures().join("torch");
    let expected = json(folder.join("expected.json"));
    // Files that PyTorch reads, or once read, and this library refuses with a reason.
    let refused = BTreeMap::from([("zip_deflated.pt", "compressed"), ("tar.pt", "before version 0.1.10")]);
    let mut seen = 0;
    for (file, expectation) in expected.as_object().expect("an object") {
        let opened = formats::open(folder.join(file));
        if let Some(reason) = refused.get(file.as_str()) {
            let message = opened.expect_err(file).to_string();
            assert!(message.contains(reason), "{message}");
            continue;
        }
        if expectation.get("error").is_some() {
            continue;
        }
        let checkpoint = opened.unwrap_or_else(|e| panic!("{e}"));
        let root = match expectation["root"].as_str() {
            Some("") => ["top level", "."].contains(&checkpoint.root()),
            root => root == Some(checkpoint.root()),
        };
        assert!(root, "{file}: root {}", checkpoint.root());
        let skipped: Vec<&str> = checkpoint.skipped().iter().map(|(name, _)| name.as_str()).collect();
        for record in expectation["tensors"].as_array().expect("a list") {
            if file.ends_with("conjugate.pt") && record["name"] != "plain" {
                assert!(skipped.contains(&record["name"].as_str().expect("name")), "{file}: {skipped:?}");
                continue;
            }
            check(file, &checkpoint, record);
            seen += 1;
        }
        for record in expectation["arrays"].as_array().map_or(&[][..], Vec::as_slice) {
            check(file, &checkpoint, record);
            seen += 1;
        }
        if file.ends_with("sparse.pt") {
            assert_eq!(checkpoint.skipped().len(), 1, "{file}");
        }
    }
    assert!(seen > 300, "only {seen} tensors were compared");
}

#[test]
fn golden_checkpoints() {
    let golden = fixtures().join("golden");
    let expected = json(fixtures().join("golden-sums.json"));
    let mut seen = 0;
    for (file, expectation) in expected.as_object().expect("an object") {
        let checkpoint = formats::open(golden.join(file)).unwrap_or_else(|e| panic!("{e}"));
        let records = expectation["tensors"].as_array().expect("a list");
        let ours: Vec<&str> = checkpoint.tensors().iter().map(|info| info.name.as_str()).collect();
        let theirs: Vec<&str> = records.iter().map(|record| record["name"].as_str().expect("name")).collect();
        assert_eq!(ours, theirs, "{file}: names in order");
        for record in records {
            check(file, &checkpoint, record);
            seen += 1;
        }
    }
    assert!(seen > 1000, "only {seen} tensors were compared");
}
