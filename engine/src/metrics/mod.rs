//! What evaluation measures. Counts and means only: no model, no files.

pub mod nlvr2;
pub mod recall;
pub mod top_k;
pub mod vqa;

/// How many of the scores come before the one at `index`, best first: those larger, and of those equal to it the
/// earlier ones, as a stable sort has it. 0 is the best.
///
/// No score may be NaN.
pub fn rank(scores: &[f32], index: usize) -> usize {
    let score = scores[index];
    // Two loops without branches, which the compiler makes SIMD of; counts in u32 are as wide as the scores.
    let not_less = scores[..index].iter().map(|&other| u32::from(other >= score)).sum::<u32>();
    let greater = scores[index..].iter().map(|&other| u32::from(other > score)).sum::<u32>();
    (not_less + greater) as usize
}
