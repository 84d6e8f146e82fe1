//! Safetensors files through the format's own crate, to look at results and to make and edit inputs.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// One tensor with its bytes, little-endian and row-major.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn f32(shape: &[usize], values: &[f32]) -> Tensor {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    pub fn i64(values: &[i64]) -> Tensor {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { dtype: Dtype::I64, shape: vec![values.len()], bytes }
    }

    /// The values of an f32 tensor.
    #[track_caller]
    pub fn values(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.dtype, self.shape)
    }
}

/// The tensors of a safetensors file.
pub fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensor =
        |view: TensorView| Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
    file.iter().map(|(name, view)| (name.to_owned(), tensor(view))).collect()
}

/// Writes a safetensors file.
pub fn write(path: &Path, tensors: &Tensors) {
    write_with(path, tensors, None);
}

/// Writes a safetensors file that says of its model what `record` does.
pub fn write_recorded(path: &Path, tensors: &Tensors, record: &Value) {
    let metadata = [("vlmerge.config".to_owned(), record.to_string())];
    write_with(path, tensors, Some(metadata.into_iter().collect()));
}

fn write_with(path: &Path, tensors: &Tensors, metadata: Option<HashMap<String, String>>) {
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("a tensor of its size"))
    });
    let bytes = safetensors::serialize(views, metadata).expect("tensors that fit the format");
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Writes two shards and their index, `model.safetensors.index.json`, into a folder.
pub fn write_sharded(folder: &Path, tensors: &Tensors) {
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut index = Map::new();
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        let shard = number % 2;
        index.insert(name.clone(), Value::from(shard_name(shard)));
        shards[shard].insert(name.clone(), tensor.clone());
    }
    for (shard, tensors) in shards.iter().enumerate() {
        write(&folder.join(shard_name(shard)), tensors);
    }
    let index = json!({"metadata": {}, "weight_map": index});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("the index");
}

fn shard_name(shard: usize) -> String {
    format!("model-{:05}-of-00002.safetensors", shard + 1)
}
