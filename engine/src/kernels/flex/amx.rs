//! Matrix products of bf16 factors on AMX, the matrix units of Intel's server CPUs since 2023.
//!
//! The units multiply bf16 and add in f32, sixteen times as fast as AVX-512 multiplies f32. Factors come in f32, are
//! rounded as they are packed, and the sums stay f32.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::matrix::{Start, Target};
use super::simd::{LANES, bf16_bits, multiversion};

/// Rows of a tile, and words in its rows.
const TILE: usize = 16;
const TILE_WORDS: usize = TILE * TILE;
/// Rows of the left, columns of the right factor in a panel: two tiles.
const PANEL: usize = 2 * TILE;
/// Terms of the sums in a tile: two bf16 a word.
const DEPTH: usize = 2 * TILE;
/// Words of a panel for one depth: two tiles.
const SLICE: usize = 2 * TILE_WORDS;
/// Depths at a time: 16 KB of a panel, so that one of each factor stays in the first-level cache.
const DEPTHS: usize = 8;
/// Panels of either factor in one task: what it works on stays in the second-level cache.
const PANELS: [usize; 2] = [8, 12];

/// A tile configuration: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

static CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Configuration(bytes)
};

/// Whether the CPU has AMX for bf16 and the kernel lets this process use it.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const TILES_AND_BF16: u32 = 1 << 24 | 1 << 22;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILEDATA: libc::c_long = 18;
        let features = __cpuid_count(7, 0);
        // What packs the operands is only quick with AVX-512, which every CPU with AMX has.
        if features.edx & TILES_AND_BF16 != TILES_AND_BF16 || !is_x86_feature_detected!("avx512f") {
            return false;
        }
        // SAFETY: asks the kernel for the permission to use the tiles; touches no memory.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
    })
}

/// Whether packing both factors pays for itself.
pub fn pays([m, k, n]: [usize; 3]) -> bool {
    m.min(n) >= 32 && k >= 32 && m * n * k >= 1 << 21
}

/// One factor: `outer` rows (of the left) or columns (of the right) of `k` terms; one of the strides is 1.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    pub values: &'a [f32],
    pub outer: usize,
    pub k: usize,
    pub outer_stride: usize,
    pub k_stride: usize,
}

multiversion! {
    /// Packs panel `panel` of a factor. A tile has a row for each of 16 rows of the left factor, with 16 pairs of
    /// terms, or for each of 16 pairs, with 16 columns of the right factor.
    fn pack<const FMA: bool>(factor: &Factor, panel: usize, left: bool, scale: f32, to: &mut [u32]) {
        let Factor { values, outer, k, outer_stride, k_stride } = *factor;
        for (depth, slice) in to.chunks_exact_mut(SLICE).enumerate() {
            let first_k = depth * DEPTH;
            for (half, to) in slice.chunks_exact_mut(TILE_WORDS).enumerate() {
                let first = panel * PANEL + half * TILE;
                let there = TILE.min(outer.saturating_sub(first));
                let mut tile = [0u32; TILE_WORDS];
                if k_stride == 1 {
                    let terms = DEPTH.min(k - first_k);
                    for row in 0..there {
                        let start = (first + row) * outer_stride + first_k;
                        let x = &values[start..start + terms];
                        let words = &mut tile[row * TILE..][..TILE];
                        if let Ok(x) = <&[f32; DEPTH]>::try_from(x) {
                            for (word, pair) in words.iter_mut().zip(x.as_chunks::<2>().0) {
                                *word = bf16_bits(pair[0] * scale) >> 16 | bf16_bits(pair[1] * scale);
                            }
                        } else {
                            for (word, pair) in words.iter_mut().zip(x.chunks(2)) {
                                let high = pair.get(1).map_or(0, |x| bf16_bits(x * scale));
                                *word = bf16_bits(pair[0] * scale) >> 16 | high;
                            }
                        }
                    }
                } else {
                    for pair in 0..TILE {
                        let mut x = [[0.0; LANES]; 2];
                        for (i, x) in x.iter_mut().enumerate() {
                            let term = first_k + 2 * pair + i;
                            if term < k && there > 0 {
                                let start = term * k_stride + first;
                                x[..there].copy_from_slice(&values[start..start + there]);
                            }
                        }
                        for column in 0..TILE {
                            let [low, high] = x.map(|x| bf16_bits(x[column] * scale));
                            tile[pair * TILE + column] = low >> 16 | high;
                        }
                    }
                }
                if left == (k_stride == 1) {
                    to.copy_from_slice(&tile);
                } else {
                    for row in 0..TILE {
                        for column in 0..TILE {
                            to[row * TILE + column] = tile[column * TILE + row];
                        }
                    }
                }
            }
        }
    }
}

/// c ← c + a·b, or a·b if `fresh`, for a panel of the left and one of the right factor.
///
/// # Safety
///
/// The thread's tiles are configured by [`CONFIGURATION`]; `a` and `b` point to `depths` slices, `c` to four tiles.
unsafe fn add_product(a: *const u32, b: *const u32, depths: usize, c: *mut f32, fresh: bool) {
    // Tiles 0 to 3 hold c, 4 and 5 a slice of a, 6 and 7 one of b.
    // SAFETY: reads and writes what the caller vouches for.
    unsafe {
        asm!(
            "test {fresh}, {fresh}",
            "jnz 2f",
            "tileloadd tmm0, [{c} + {row}*1]",
            "tileloadd tmm1, [{c} + {row}*1 + 1024]",
            "tileloadd tmm2, [{c} + {row}*1 + 2048]",
            "tileloadd tmm3, [{c} + {row}*1 + 3072]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloadd tmm6, [{b} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {row}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {row}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, {slice}",
            "add {b}, {slice}",
            "dec {depths}",
            "jnz 3b",
            "tilestored [{c} + {row}*1], tmm0",
            "tilestored [{c} + {row}*1 + 1024], tmm1",
            "tilestored [{c} + {row}*1 + 2048], tmm2",
            "tilestored [{c} + {row}*1 + 3072], tmm3",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            c = in(reg) c,
            depths = inout(reg) depths => _,
            fresh = in(reg) usize::from(fresh),
            row = in(reg) TILE * size_of::<u32>(),
            slice = const SLICE * size_of::<u32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Where the sums of the `i`-th 16 columns of a row begin, from those of the first.
#[inline(always)]
fn tile(i: usize) -> usize {
    (i / 2 * 4 + i % 2) * TILE_WORDS
}

multiversion! {
    /// One row of a block's sums, after `bias`.
    fn write_row<const FMA: bool>(sums: &[f32], to: &mut [MaybeUninit<f32>], bias: Option<&[f32]>) {
        for (i, to) in to.chunks_mut(TILE).enumerate() {
            let sums = &sums[tile(i)..][..TILE];
            match bias {
                Some(bias) => {
                    for ((to, sum), bias) in to.iter_mut().zip(sums).zip(&bias[i * TILE..]) {
                        to.write(bias + sum);
                    }
                }
                None => {
                    for (to, sum) in to.iter_mut().zip(sums) {
                        to.write(*sum);
                    }
                }
            }
        }
    }
}

multiversion! {
    /// One row of a block's sums, added to what is there.
    fn add_row<const FMA: bool>(sums: &[f32], to: &mut [f32]) {
        for (i, to) in to.chunks_mut(TILE).enumerate() {
            for (to, sum) in to.iter_mut().zip(&sums[tile(i)..][..TILE]) {
                *to += sum;
            }
        }
    }
}

thread_local! {
    static PACKED: Cell<[Vec<u32>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `scale`·a·b, added to what `start` says. Results don't depend on the number of threads.
///
/// # Safety
///
/// [`available`] said yes, and `to` has the product's shape, contiguous rows, and values if `start` is
/// [`Start::Kept`].
pub unsafe fn multiply(a: Factor, b: Factor, scale: f32, start: Start, to: &Target) {
    let depths = a.k.div_ceil(DEPTH);
    let panels = [a.outer.div_ceil(PANEL), b.outer.div_ceil(PANEL)];
    let mut packed = PACKED.take();
    for (i, (factor, packed)) in [(a, scale), (b, 1.0)].into_iter().zip(&mut packed).enumerate() {
        let len = panels[i] * depths * SLICE;
        if packed.len() < len {
            packed.resize(len, 0);
        }
        let (factor, scale) = factor;
        let parts = packed[..len].par_chunks_mut(depths * SLICE).enumerate();
        parts.for_each(|(panel, to)| pack(&factor, panel, i == 0, scale, to));
    }
    let blocks = [panels[0].div_ceil(PANELS[0]), panels[1].div_ceil(PANELS[1])];
    let [left, right] = &packed;
    (0..blocks[0] * blocks[1]).into_par_iter().for_each(|block| {
        // Neighbours share the columns' panels, the larger part.
        let [i, j] = [block % blocks[0] * PANELS[0], block / blocks[0] * PANELS[1]];
        let [rows, columns] = [PANELS[0].min(panels[0] - i), PANELS[1].min(panels[1] - j)];
        let mut sums = SUMS.take();
        sums.resize(PANELS[0] * PANELS[1] * 4 * TILE_WORDS, 0.0);
        // SAFETY: the CPU has tiles, and the configuration is 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly)) };
        for depth in (0..depths).step_by(DEPTHS) {
            let count = DEPTHS.min(depths - depth);
            for column in 0..columns {
                let b = &right[((j + column) * depths + depth) * SLICE..][..count * SLICE];
                for row in 0..rows {
                    let a = &left[((i + row) * depths + depth) * SLICE..][..count * SLICE];
                    let c = &mut sums[(row * columns + column) * 4 * TILE_WORDS..][..4 * TILE_WORDS];
                    // SAFETY: the slices have the lengths that are asked for, and the tiles were configured above.
                    unsafe { add_product(a.as_ptr(), b.as_ptr(), count, c.as_mut_ptr(), depth == 0) };
                }
            }
        }
        // SAFETY: gives the tiles back, so that switching threads needn't save them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
        for row in i * PANEL..((i + rows) * PANEL).min(a.outer) {
            let (panel, half) = (row / PANEL - i, row / TILE % 2);
            let first = (panel * columns * 4 + 2 * half) * TILE_WORDS + row % TILE * TILE;
            let [left, right] = [j * PANEL, ((j + columns) * PANEL).min(b.outer)];
            // SAFETY: the block's part of a row, within what the caller vouches for; nothing but this task has it.
            let first_slot = unsafe { to.first.add(row * to.strides[0] + left) };
            // SAFETY: as above; a slot may be unwritten.
            let slots = || unsafe { std::slice::from_raw_parts_mut(first_slot.cast(), right - left) };
            match start {
                Start::Nothing => write_row(&sums[first..], slots(), None),
                Start::Row(values) => write_row(&sums[first..], slots(), Some(&values[left..right])),
                // SAFETY: as above; values to keep were written before.
                Start::Kept => {
                    add_row(&sums[first..], unsafe { std::slice::from_raw_parts_mut(first_slot, right - left) })
                }
            }
        }
        SUMS.set(sums);
    });
    PACKED.set(packed);
}
