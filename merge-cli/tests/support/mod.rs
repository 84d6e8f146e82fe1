//! What the black-box tests of `init`, `resize` and layouts share.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use fixtures::{Init, StateDict, TensorSpec};
use formats::write::{Metadata, Piece, Writer};
use formats::{Checkpoint, Dtype, TensorInfo};
use serde_json::Value;
use tempfile::TempDir;

/// A folder of its own, and `vlmerge` run in it.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vlmerge"));
        command.current_dir(self.0.path()).args(arguments).output().unwrap()
    }

    /// Stdout of a run that must succeed without a warning.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// The one line on stderr of a run that must fail with status 1 and write nothing.
    pub fn error(&self, arguments: &[&str]) -> String {
        let before = self.files();
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert_eq!(self.files(), before);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        stderr.trim_end().strip_prefix("vlmerge: ").unwrap().to_string()
    }

    pub fn open(&self, name: &str) -> Checkpoint {
        formats::open(self.path(name)).unwrap()
    }

    pub fn zip(&self, name: &str, state_dict: &StateDict, root: Option<&str>) {
        fixtures::write_zip(&self.path(name), state_dict, root).unwrap();
    }

    /// A safetensors file of f32 tensors: name, shape, values.
    pub fn safetensors(&self, name: &str, tensors: &[(&str, &[usize], &[f32])]) {
        self.safetensors_saying(name, tensors, &[]);
    }

    /// The same with metadata.
    pub fn safetensors_saying(&self, name: &str, tensors: &[(&str, &[usize], &[f32])], metadata: &[(&str, &str)]) {
        let metadata: Metadata = metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let info = |&(name, shape, _): &(&str, &[usize], &[f32])| TensorInfo {
            name: name.to_string(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        };
        let infos = tensors.iter().map(info).collect();
        let writer = Writer::create(&self.path(name), infos, &metadata).unwrap();
        let order: Vec<String> = writer.tensors().iter().map(|info| info.name.clone()).collect();
        let produce = |piece: &Piece, bytes: &mut Vec<u8>| {
            let (.., values) = tensors.iter().find(|(name, ..)| *name == order[piece.tensor]).unwrap();
            *bytes = values[piece.elements.clone()].iter().flat_map(|value| value.to_le_bytes()).collect();
        };
        writer
            .fill(
                1,
                |_| false,
                |piece, bytes: &mut Vec<u8>| {
                    produce(piece, bytes);
                    Ok::<&[u8], formats::Error>(bytes)
                },
            )
            .unwrap();
        writer.finish(&metadata).unwrap();
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.0.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

pub fn golden(name: &str) -> String {
    fixtures::golden().join(name).to_str().unwrap().to_owned()
}

/// A size of the golden model.
pub fn golden_size(name: &str) -> usize {
    let text = std::fs::read_to_string(golden("config.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[name].as_u64().unwrap() as usize
}

pub fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().iter().map(|info| info.name.as_str()).collect()
}

pub fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f64> {
    let tensor = checkpoint.position(name).unwrap_or_else(|| panic!("{name} is missing"));
    let mut values = Vec::new();
    checkpoint.read_f64(tensor, 0..checkpoint.tensors()[tensor].elements(), &mut values).unwrap();
    values
}

pub fn all_values(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<f64>> {
    names(checkpoint).into_iter().map(|name| (name.to_string(), values(checkpoint, name))).collect()
}

pub fn shape(checkpoint: &Checkpoint, name: &str) -> Vec<usize> {
    checkpoint.get(name).unwrap_or_else(|| panic!("{name} is missing")).shape.clone()
}

/// The largest absolute difference.
///
/// # Panics
/// There is another number of values, or one that isn't finite.
#[track_caller]
pub fn furthest(a: &[f64], b: &[f64]) -> f64 {
    fixtures::compare::absolute_difference(b, a).unwrap()
}

/// A state dict of tensors with these names and shapes.
pub fn state_dict(tensors: &[(&str, &[usize])]) -> StateDict {
    let tensor = |&(name, shape): &(&str, &[usize])| TensorSpec {
        name: name.to_string(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        init: Init::Random { base: name.to_string(), mean: 0.0, std: 1.0 },
    };
    StateDict { tensors: tensors.iter().map(tensor).collect(), modules: Vec::new(), seed: 0 }
}

/// The file of the example layout in the documentation.
pub fn example_layout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/layout-example.toml"))
}
