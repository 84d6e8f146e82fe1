//! Checkpoint files in and out, and the names inside them.
//!
//! [`open`] reads every container this family of models comes in: PyTorch's zip files and the
//! pickle streams before them, safetensors, sharded safetensors. Opening reads names, shapes and
//! positions, and checks them all; values are read when asked for, a piece at a time.
//!
//! ```no_run
//! let checkpoint = formats::open("ms.ckpt")?;
//! for tensor in checkpoint.tensors() {
//!     println!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
//! }
//! # Ok::<(), formats::Error>(())
//! ```

mod checkpoint;
pub mod config;
mod digest;
mod dtype;
mod error;
pub mod grams;
pub mod history;
pub mod layout;
pub mod parallel;
pub mod pickle;
pub mod position;
mod read;
mod shell;
pub mod signals;
pub mod standard;
mod tensor;
pub mod write;

pub use checkpoint::{CONFIG_KEY, Checkpoint, open, open_root};
pub use digest::{Digester, content_digest};
pub use dtype::{Dtype, decode_f32, decode_f64, encode_f32, encode_f64};
pub use error::{Error, Result, show_name, show_path};
pub use read::Format;
pub use shell::shell_path;
pub use tensor::TensorInfo;
