//! Checkpoint files in and out, and the names inside them.

mod dtype;
mod error;
pub mod pickle;
mod tensor;

pub use dtype::{Dtype, decode_f32, decode_f64, encode_f32, encode_f64};
pub use error::{Error, Result, show_name, show_path};
pub use tensor::TensorInfo;
