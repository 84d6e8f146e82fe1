//! What a model is fed and what it answers with, on the host.

/// Normalised images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Images {
    pub count: usize,
    /// Pixels along a side.
    pub size: usize,
    /// [count, 3, size, size], red, green, blue, each in [−1, 1].
    pub pixels: Vec<f32>,
}

/// Tokenised texts, padded to one length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    pub count: usize,
    /// Tokens of a text, padding included.
    pub len: usize,
    /// [count, len], word-piece ids; padding is 0.
    pub ids: Vec<i32>,
    /// [count, len], 1 for a token, 0 for padding.
    pub mask: Vec<u8>,
}

/// A matrix of results, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    /// [rows, columns]
    pub values: Vec<f32>,
}

impl Matrix {
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }
}

/// One training step's examples.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainBatch {
    /// Pairs: text i belongs to image i.
    Irtr {
        texts: Texts,
        images: Images,
    },
    /// Soft targets [count, labels].
    Vqa {
        texts: Texts,
        images: Images,
        targets: Matrix,
    },
    /// A sentence about two images; 1 is true.
    Nlvr2 {
        texts: Texts,
        left: Images,
        right: Images,
        labels: Vec<i32>,
    },
    ImgCls {
        images: Images,
        labels: Vec<i32>,
    },
}

impl TrainBatch {
    /// Examples in the batch.
    pub fn len(&self) -> usize {
        match self {
            TrainBatch::Irtr { images, .. } | TrainBatch::Vqa { images, .. } | TrainBatch::ImgCls { images, .. } => {
                images.count
            }
            TrainBatch::Nlvr2 { left, .. } => left.count,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
