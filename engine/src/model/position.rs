//! Which row of the relative position table belongs to a pair of tokens.
//!
//! The table's rows: the (2w − 1)² offsets of a patch from another, then class token → patch, patch → class token, class
//! token → itself; text → image and image → text; the 2·T0 − 3 distances between words, and for the first token of a
//! text the same three as for the class token.

/// Rows for every pair of an image's tokens, [w² + 1, w² + 1], class token first.
pub fn image_index(w: usize) -> Vec<i32> {
    let n = w * w + 1;
    let side = 2 * w - 1;
    let mut index = vec![0; n * n];
    for i in 0..w * w {
        for j in 0..w * w {
            let (down, across) = (i / w + w - 1 - j / w, i % w + w - 1 - j % w);
            index[(i + 1) * n + j + 1] = (down * side + across) as i32;
        }
    }
    first_token(&mut index, n, side * side);
    index
}

/// Rows for every pair of a text's tokens, [length, length]. `t0`: T0.
pub fn text_index(length: usize, w: usize, t0: usize) -> Vec<i32> {
    let words = image_rows(w) + 2;
    let mut index = vec![0; length * length];
    for i in 1..length {
        for j in 1..length {
            index[i * length + j] = (words + t0 - 2 + j - i) as i32;
        }
    }
    first_token(&mut index, length, words + 2 * t0 - 3);
    index
}

/// Rows for every pair of tokens of a text followed by an image, [length + w² + 1, length + w² + 1].
pub fn joint_index(length: usize, w: usize, t0: usize) -> Vec<i32> {
    let image = w * w + 1;
    let n = length + image;
    let (text_rows, image_part) = (text_index(length, w, t0), image_index(w));
    let (to_image, to_text) = (image_rows(w) as i32, image_rows(w) as i32 + 1);
    let mut index = Vec::with_capacity(n * n);
    for row in text_rows.chunks_exact(length) {
        index.extend_from_slice(row);
        index.extend(std::iter::repeat_n(to_image, image));
    }
    for row in image_part.chunks_exact(image) {
        index.extend(std::iter::repeat_n(to_text, length));
        index.extend_from_slice(row);
    }
    index
}

/// Rows of the table that are about pairs within an image.
fn image_rows(w: usize) -> usize {
    (2 * w - 1) * (2 * w - 1) + 3
}

/// The first token's row, column and corner, which stand in `start` and after it.
fn first_token(index: &mut [i32], n: usize, start: usize) {
    index[..n].fill(start as i32);
    for k in 0..n {
        index[k * n] = start as i32 + 1;
    }
    index[0] = start as i32 + 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_by_two_patches() {
        // Offsets of 2x2 patches: 3x3 of them, rows 0 to 8; 9 is class → patch, 10 patch → class, 11 class → class.
        assert_eq!(image_index(2), [11, 9, 9, 9, 9, 10, 4, 3, 1, 0, 10, 5, 4, 2, 1, 10, 7, 6, 4, 3, 10, 8, 7, 5, 4]);
    }

    #[test]
    fn three_words_of_at_most_four() {
        // w = 2: 12 rows for the image, 2 between text and image, so distance d stands in row 14 + 4 − 2 + d; then three.
        assert_eq!(text_index(3, 2, 4), [21, 19, 19, 20, 16, 17, 20, 15, 16]);
    }

    #[test]
    fn a_joint_index_is_made_of_both() {
        let (length, w, t0) = (3, 2, 4);
        let index = joint_index(length, w, t0);
        let n = length + w * w + 1;
        assert_eq!(index.len(), n * n);
        assert_eq!(index[..length], text_index(length, w, t0)[..length]);
        assert!(index[length..n].iter().all(|&row| row == 12));
        assert!(index[length * n..length * n + length].iter().all(|&row| row == 13));
        assert_eq!(index[length * n + length..(length + 1) * n], image_index(w)[..w * w + 1]);
        let rows = (2 * w - 1) * (2 * w - 1) + 3 + 2 * t0 + 2;
        assert_eq!(index.iter().copied().max(), Some(rows as i32 - 1), "the last row is used");
    }
}
