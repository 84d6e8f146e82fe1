//! Recall@k of retrieval, texts to images and images to texts.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::batch::Matrix;

/// Recall in both directions, each a fraction 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// IR: the share of texts whose image is among the k images most like the text.
    pub image_retrieval: RecallAt,
    /// TR: the share of images with one of their texts among the k texts most like the image.
    pub text_retrieval: RecallAt,
}

impl Recall {
    /// The mean of the six.
    pub fn mean(&self) -> f64 {
        let sum = |of: &RecallAt| of.recall_at_1 + of.recall_at_5 + of.recall_at_10;
        (sum(&self.image_retrieval) + sum(&self.text_retrieval)) / 6.0
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecallAt {
    pub recall_at_1: f64,
    pub recall_at_5: f64,
    pub recall_at_10: f64,
}

impl RecallAt {
    /// Of ranks that count from 0. No ranks: 0.
    pub fn of(ranks: impl Iterator<Item = u32> + Clone) -> RecallAt {
        let total = ranks.clone().count().max(1) as f64;
        let at = |k: u32| ranks.clone().filter(|&rank| rank < k).count() as f64 / total;
        RecallAt { recall_at_1: at(1), recall_at_5: at(5), recall_at_10: at(10) }
    }
}

/// Where what was sought came, counted from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranks {
    /// For each text, the rank of its image among all images.
    pub images: Vec<u32>,
    /// For each image, the best rank of its texts among all texts; `None` for an image without texts, which is there
    /// to be confused with others only.
    pub texts: Vec<Option<u32>>,
}

impl Ranks {
    pub fn recall(&self) -> Recall {
        Recall {
            image_retrieval: RecallAt::of(self.images.iter().copied()),
            text_retrieval: RecallAt::of(self.texts.iter().copied().flatten()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("text embeddings are {texts} wide, image embeddings {images}")]
    Widths { texts: usize, images: usize },
    #[error("{texts} texts, but the images of {mapped}")]
    TextCount { texts: usize, mapped: usize },
    #[error("text {text} belongs to image {image}, but there are {images} images")]
    NoSuchImage { text: usize, image: usize, images: usize },
    #[error("the embedding of {side} {index} is not finite")]
    NotFinite { side: &'static str, index: usize },
}

/// Ranks by the products of embeddings, texts [n, width] and images [m, width]; text i belongs to image
/// `image_of_text[i]`, an image may have any number of texts.
///
/// Among equal scores the earlier in the data set comes first, so that results are the same everywhere; a model that
/// gives all inputs one embedding therefore comes out at chance. Memory beyond the embeddings: at most
/// 64 MiB of scores (more only where a single row is longer).
///
/// # Errors
/// Shapes that don't fit, and embeddings that are not finite (or whose length overflows f32).
pub fn ranks(texts: &Matrix, images: &Matrix, image_of_text: &[usize]) -> Result<Ranks, Error> {
    if texts.columns != images.columns {
        return Err(Error::Widths { texts: texts.columns, images: images.columns });
    }
    if texts.rows != image_of_text.len() {
        return Err(Error::TextCount { texts: texts.rows, mapped: image_of_text.len() });
    }
    if let Some((text, &image)) = image_of_text.iter().enumerate().find(|&(_, &image)| image >= images.rows) {
        return Err(Error::NoSuchImage { text, image, images: images.rows });
    }
    finite(texts, "text")?;
    finite(images, "image")?;

    let mut texts_of_image: Vec<Vec<u32>> = vec![Vec::new(); images.rows];
    let mut image_only: Vec<[u32; 1]> = Vec::with_capacity(texts.rows);
    for (text, &image) in image_of_text.iter().enumerate() {
        texts_of_image[image].push(text as u32);
        image_only.push([image as u32]);
    }
    let found = best_ranks(texts, images, &image_only);
    Ok(Ranks {
        // Every text has an image.
        images: found.into_iter().flatten().collect(),
        texts: best_ranks(images, texts, &texts_of_image),
    })
}

/// The `k` candidates most like each query, best first, with their scores; equal scores in the order of the candidates.
///
/// # Errors
/// As [`ranks`].
pub fn nearest(queries: &Matrix, candidates: &Matrix, k: usize) -> Result<Vec<Vec<(usize, f32)>>, Error> {
    if queries.columns != candidates.columns {
        return Err(Error::Widths { texts: queries.columns, images: candidates.columns });
    }
    finite(queries, "query")?;
    finite(candidates, "candidate")?;
    let mut found = Vec::with_capacity(queries.rows);
    for_each_block(queries, candidates, |_, scores| {
        let best = |scores: &[f32]| {
            super::top_k::largest(scores, k).into_iter().map(|place| (place, scores[place])).collect::<Vec<_>>()
        };
        found.par_extend(scores.par_chunks(candidates.rows).map(best));
    });
    // Without candidates there are no blocks.
    found.resize(queries.rows, Vec::new());
    Ok(found)
}

/// By Cauchy and Schwarz, squared lengths that are finite make every product finite, and so every score.
fn finite(embeddings: &Matrix, side: &'static str) -> Result<(), Error> {
    let square = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>();
    match (0..embeddings.rows).into_par_iter().find_first(|&row| !square(embeddings.row(row)).is_finite()) {
        Some(index) => Err(Error::NotFinite { side, index }),
        None => Ok(()),
    }
}

/// Scores held at a time: 64 MiB.
const SCORES: usize = 16 << 20;

/// For each query the best rank of those candidates that are `relevant` to it.
fn best_ranks<R: AsRef<[u32]> + Sync>(queries: &Matrix, candidates: &Matrix, relevant: &[R]) -> Vec<Option<u32>> {
    let mut ranks = Vec::with_capacity(queries.rows);
    for_each_block(queries, candidates, |range, scores| {
        let of_query = scores.par_chunks(candidates.rows).zip(&relevant[range]).map(|(scores, relevant)| {
            // The best of them is the first among those with the largest score.
            let better = |best: u32, other: u32| match scores[other as usize] > scores[best as usize] {
                true => other,
                false => best,
            };
            let best = relevant.as_ref().iter().copied().reduce(better)?;
            Some(super::rank(scores, best as usize) as u32)
        });
        ranks.par_extend(of_query);
    });
    ranks.resize(queries.rows, None);
    ranks
}

/// Calls `take` with a range of queries and their scores [range, candidates], range after range.
fn for_each_block(queries: &Matrix, candidates: &Matrix, mut take: impl FnMut(Range<usize>, &[f32])) {
    if candidates.rows == 0 {
        return;
    }
    let block = (SCORES / candidates.rows).clamp(1, queries.rows.max(1));
    let mut scores = vec![0.0f32; block * candidates.rows];
    for start in (0..queries.rows).step_by(block) {
        let range = start..queries.rows.min(start + block);
        let scores = &mut scores[..range.len() * candidates.rows];
        products(queries, range.clone(), candidates, scores);
        take(range, scores);
    }
}

/// Rows `range` of a times bᵀ: [range, b.rows].
fn products(a: &Matrix, range: Range<usize>, b: &Matrix, out: &mut [f32]) {
    let (rows, columns, depth) = (range.len(), b.rows, a.columns);
    let a = &a.values[range.start * depth..range.end * depth];
    assert!(b.values.len() == columns * depth && out.len() == rows * columns);
    let strides = (depth as isize, columns as isize);
    // SAFETY: the three slices have as many elements as their shapes and strides reach, which was just checked; `out`
    // is borrowed mutably, so it overlaps neither of the others.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            out.as_mut_ptr(),
            1,
            strides.1,
            false,
            a.as_ptr(),
            1,
            strides.0,
            b.values.as_ptr(),
            strides.0,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matrix(columns: usize, values: &[f32]) -> Matrix {
        Matrix { rows: values.len() / columns, columns, values: values.to_vec() }
    }

    #[test]
    fn by_hand() {
        // Three images along the axes; the third has no text. Scores of the four texts:
        let texts = matrix(3, &[0.9, 0.1, 0.0, 0.2, 0.8, 0.3, 0.5, 0.4, 0.6, 0.1, 0.7, 0.8]);
        let images = matrix(3, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let found = ranks(&texts, &images, &[0, 0, 1, 1]).unwrap();
        // Text 0: 0.9 is first. Text 1: 0.2 is last of 0.2 0.8 0.3. Text 2: 0.4 of 0.5 0.4 0.6. Text 3: 0.7 < 0.8.
        assert_eq!(found.images, [0, 2, 2, 1]);
        // Image 0 sees 0.9 0.2 0.5 0.1 and wants one of the first two; image 1 sees 0.1 0.8 0.4 0.7 and wants the others.
        assert_eq!(found.texts, [Some(0), Some(1), None]);
        let recall = found.recall();
        assert_eq!(recall.image_retrieval, RecallAt { recall_at_1: 0.25, recall_at_5: 1.0, recall_at_10: 1.0 });
        assert_eq!(recall.text_retrieval, RecallAt { recall_at_1: 0.5, recall_at_5: 1.0, recall_at_10: 1.0 });
        assert!((recall.mean() - (0.25 + 0.5 + 4.0) / 6.0).abs() < 1e-12);
    }

    #[test]
    fn equal_scores_keep_the_order_of_the_data_set() {
        let texts = matrix(2, &[1.0, 0.0].repeat(24));
        let images = matrix(2, &[1.0, 0.0].repeat(12));
        let image_of_text: Vec<usize> = (0..24).map(|text| text / 2).collect();
        let found = ranks(&texts, &images, &image_of_text).unwrap();
        assert_eq!(found.images.len(), image_of_text.len());
        assert!(found.images.iter().zip(&image_of_text).all(|(&rank, &image)| rank as usize == image));
        assert!(found.texts.iter().enumerate().all(|(image, &rank)| rank == Some(2 * image as u32)));
        assert_eq!(found.recall().image_retrieval.recall_at_1, 1.0 / 12.0);
    }

    #[test]
    fn bad_embeddings_are_refused() {
        let (good, mut bad) = (matrix(2, &[1.0; 8]), matrix(2, &[1.0; 8]));
        bad.values[5] = f32::NAN;
        assert_eq!(ranks(&good, &bad, &[0; 4]), Err(Error::NotFinite { side: "image", index: 2 }));
        assert_eq!(ranks(&bad, &good, &[0; 4]), Err(Error::NotFinite { side: "text", index: 2 }));
        bad.values[5] = 1e30;
        assert!(ranks(&bad, &good, &[0; 4]).is_err());
        assert_eq!(ranks(&good, &good, &[0; 3]), Err(Error::TextCount { texts: 4, mapped: 3 }));
        assert_eq!(ranks(&good, &good, &[0, 1, 2, 4]), Err(Error::NoSuchImage { text: 3, image: 4, images: 4 }));
        assert_eq!(ranks(&good, &matrix(4, &[1.0; 8]), &[0; 4]), Err(Error::Widths { texts: 2, images: 4 }));
    }

    #[test]
    fn the_nearest_by_hand() {
        let (queries, candidates) = (matrix(2, &[1.0, 0.0, 0.0, 2.0]), matrix(2, &[0.5, 1.0, 0.5, 0.0, 3.0, 0.5]));
        let found = nearest(&queries, &candidates, 2).unwrap();
        assert_eq!(found, [[(2, 3.0), (0, 0.5)], [(0, 2.0), (2, 1.0)]]);
        let none = Matrix { rows: 0, columns: 2, values: vec![] };
        assert_eq!(nearest(&queries, &none, 2).unwrap(), [[], []] as [[(usize, f32); 0]; 2]);
        assert!(nearest(&none, &candidates, 2).unwrap().is_empty());
    }

    #[test]
    fn nothing_at_all() {
        let empty = Matrix { rows: 0, columns: 3, values: vec![] };
        let found = ranks(&empty, &empty, &[]).unwrap();
        assert_eq!(found.recall(), Recall::default());
        let found = ranks(&empty, &matrix(3, &[1.0; 6]), &[]).unwrap();
        assert_eq!(found.texts, [None, None]);
    }

    proptest! {
        /// Against sorting. Small integers: exact products, many of them equal.
        #[test]
        fn as_a_stable_sort_has_it(
            (images, texts, mapping) in (1usize..20, 0usize..40).prop_flat_map(|(m, n)| {
                let values = |rows: usize| prop::collection::vec((-2i8..3).prop_map(f32::from), rows * 3);
                (values(m), values(n), prop::collection::vec(0..m, n))
            })
        ) {
            let (images, texts) = (matrix(3, &images), matrix(3, &texts));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let order = |query: &[f32], candidates: &Matrix| {
                let mut order: Vec<usize> = (0..candidates.rows).collect();
                order.sort_by(|&a, &b| dot(query, candidates.row(b)).partial_cmp(&dot(query, candidates.row(a))).unwrap());
                order
            };
            let found = ranks(&texts, &images, &mapping).unwrap();
            for (text, &image) in mapping.iter().enumerate() {
                let rank = order(texts.row(text), &images).iter().position(|&other| other == image).unwrap();
                prop_assert_eq!(found.images[text] as usize, rank);
            }
            for image in 0..images.rows {
                let rank = order(images.row(image), &texts).iter().position(|&text| mapping[text] == image);
                prop_assert_eq!(found.texts[image].map(|rank| rank as usize), rank);
            }
        }
    }
}
