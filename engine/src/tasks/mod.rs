//! What there is to train and evaluate: one file a task.

use serde::{Deserialize, Serialize};

/// `--task`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
pub enum Task {
    /// Image-text retrieval.
    #[serde(rename = "irtr")]
    #[value(name = "irtr")]
    Irtr,
    /// Visual question answering.
    #[serde(rename = "vqa")]
    #[value(name = "vqa")]
    Vqa,
    /// Whether a sentence about two images is true.
    #[serde(rename = "nlvr2")]
    #[value(name = "nlvr2")]
    Nlvr2,
    /// Image classification.
    #[serde(rename = "img_cls")]
    #[value(name = "img_cls")]
    ImgCls,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Task::Irtr => "irtr",
            Task::Vqa => "vqa",
            Task::Nlvr2 => "nlvr2",
            Task::ImgCls => "img_cls",
        })
    }
}
