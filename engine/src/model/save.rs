//! Tensors of a model to a file.

use std::collections::HashMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use formats::write::{Metadata, Writer};
use formats::{CONFIG_KEY, Dtype, TensorInfo};

use super::config::Architecture;
use super::names::{Path as NamePath, stored_shape};
use super::transformer::VlModel;

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub name: String,
    pub shape: Vec<usize>,
    /// Row by row.
    pub values: Vec<f32>,
}

/// Copies every parameter to the host, in the model's order.
pub fn to_host<B: BurnBackend>(model: &VlModel<B>) -> Vec<HostTensor> {
    struct Walk {
        path: NamePath,
        tensors: Vec<HostTensor>,
    }
    impl<B: BurnBackend> ModuleVisitor<B> for Walk {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let name = self.path.name();
            let tensor = param.val();
            let shape = stored_shape(&name, &tensor.dims());
            self.tensors.push(HostTensor { name, shape, values: values(tensor) });
        }
    }
    let mut walk = Walk { path: NamePath::default(), tensors: Vec::new() };
    model.visit(&mut walk);
    walk.tensors
}

/// A tensor's values on the host, as f32.
pub fn values<B: BurnBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.into_vec().unwrap_or_default()
}

/// Writes tensors as safetensors (or a PyTorch file, by the path's ending), under a temporary name first.
///
/// # Errors
/// The folder can't be written to or the disk is full; what stood there before is still there.
pub fn write(path: &Path, tensors: Vec<HostTensor>, metadata: &Metadata) -> formats::Result<()> {
    fill(|infos| Writer::create(path, infos, metadata), tensors, metadata)
}

/// As [`write`], and waits until the disk holds the file: nothing can make a run's weights again.
///
/// # Errors
/// As [`write`].
pub fn write_durably(path: &Path, tensors: Vec<HostTensor>, metadata: &Metadata) -> formats::Result<()> {
    fill(|infos| Ok(Writer::create(path, infos, metadata)?.durable()), tensors, metadata)
}

fn fill(
    create: impl FnOnce(Vec<TensorInfo>) -> formats::Result<Writer>,
    tensors: Vec<HostTensor>,
    metadata: &Metadata,
) -> formats::Result<()> {
    let infos = tensors
        .iter()
        .map(|tensor| TensorInfo { name: tensor.name.clone(), dtype: Dtype::F32, shape: tensor.shape.clone() })
        .collect();
    let writer = create(infos)?;
    let by_name: HashMap<&str, &[f32]> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.values.as_slice())).collect();
    let order: Vec<&[f32]> = writer.tensors().iter().map(|info| by_name[info.name.as_str()]).collect();
    writer.fill(
        2,
        |_| false,
        |piece, bytes: &mut Vec<u8>| -> formats::Result<&[u8]> {
            bytes.clear();
            bytes.extend(order[piece.tensor][piece.elements.clone()].iter().flat_map(|value| value.to_le_bytes()));
            Ok(bytes)
        },
    )?;
    writer.finish(metadata)
}

/// What every checkpoint of ours says of its model.
pub fn metadata(architecture: &Architecture, more: &[(String, String)]) -> Metadata {
    let mut metadata: Metadata = more.iter().cloned().collect();
    let config = serde_json::to_string(&architecture.record()).unwrap_or_default();
    metadata.insert(CONFIG_KEY.into(), config);
    metadata.insert("format".into(), "pt".into());
    metadata
}

/// A tensor on the host, without a name.
pub fn stored<B: BurnBackend, const D: usize>(tensor: Tensor<B, D>) -> HostTensor {
    HostTensor { name: String::new(), shape: tensor.dims().to_vec(), values: values(tensor) }
}
