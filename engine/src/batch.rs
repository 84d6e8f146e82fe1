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

impl Images {
    /// Keeps the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.count = self.count.min(count);
        self.pixels.truncate(self.count * 3 * self.size * self.size);
    }
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

impl Texts {
    /// Keeps the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.count = self.count.min(count);
        self.ids.truncate(self.count * self.len);
        self.mask.truncate(self.count * self.len);
    }
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

    /// Keeps the first `count` examples.
    pub fn truncate(&mut self, count: usize) {
        match self {
            TrainBatch::Irtr { texts, images } => {
                texts.truncate(count);
                images.truncate(count);
            }
            TrainBatch::Vqa { texts, images, targets } => {
                texts.truncate(count);
                images.truncate(count);
                targets.rows = targets.rows.min(count);
                targets.values.truncate(targets.rows * targets.columns);
            }
            TrainBatch::Nlvr2 { texts, left, right, labels } => {
                texts.truncate(count);
                left.truncate(count);
                right.truncate(count);
                labels.truncate(count);
            }
            TrainBatch::ImgCls { images, labels } => {
                images.truncate(count);
                labels.truncate(count);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_in_all_its_parts() {
        let images = || Images { count: 3, size: 2, pixels: (0..36).map(|i| i as f32).collect() };
        let texts = || Texts { count: 3, len: 2, ids: (0..6).collect(), mask: vec![1; 6] };
        let mut pairs = TrainBatch::Nlvr2 { texts: texts(), left: images(), right: images(), labels: vec![0, 1, 0] };
        pairs.truncate(2);
        let cut = Images { count: 2, size: 2, pixels: (0..24).map(|i| i as f32).collect() };
        let kept = Texts { count: 2, len: 2, ids: (0..4).collect(), mask: vec![1; 4] };
        let expected =
            TrainBatch::Nlvr2 { texts: kept.clone(), left: cut.clone(), right: cut.clone(), labels: vec![0, 1] };
        assert_eq!(pairs, expected);
        let targets = Matrix { rows: 3, columns: 2, values: (0..6).map(|i| i as f32).collect() };
        let mut asked = TrainBatch::Vqa { texts: texts(), images: images(), targets };
        asked.truncate(2);
        let targets = Matrix { rows: 2, columns: 2, values: (0..4).map(|i| i as f32).collect() };
        assert_eq!(asked, TrainBatch::Vqa { texts: kept, images: cut, targets });
        let before = asked.clone();
        asked.truncate(5);
        assert_eq!(asked, before);
    }
}
