//! Loops compiled for several instruction sets, and elementary functions that vectorise inside them.

use std::f32::consts::LOG2_E;

/// Values that the widest registers hold; sums and maxima run in so many lanes, whatever the CPU, so that results
/// don't depend on how far a loop was vectorised.
pub const LANES: usize = 16;

/// Defines a function in three versions: for AVX-512, for AVX2 with FMA, for any CPU; a call takes the best one that
/// the CPU has. The body's `FMA` says whether [`mul_add`] is one instruction; what it calls has to be
/// `#[inline(always)]` to be compiled with it.
macro_rules! multiversion {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident<const $fma:ident: bool>($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name($($argument: $type),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<const $fma: bool>($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($argument: $type),*) {
                    body::<true>($($argument),*)
                }

                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($argument: $type),*) {
                    body::<true>($($argument),*)
                }

                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("fma")
                {
                    // SAFETY: the CPU has every feature that this version is compiled for.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($argument),*) };
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($argument),*)
        }
    };
}
pub(super) use multiversion;

/// a·b + c, rounded once if the CPU does that in one instruction.
#[inline(always)]
pub fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// The nearest bf16's bits, in a word's upper half; ties go to the even one. NaN stays NaN.
#[inline(always)]
pub fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    if x.is_nan() { bits & 0xffff_0000 | 0x0040_0000 } else { nearest }
}

/// The sum of `lanes`, always in the same order.
#[inline(always)]
pub fn sum(lanes: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// eˣ for x ≤ 88, within 1 ulp or so; 0 below −87, where f32's normal numbers end. NaN stays NaN.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer, which the sum then holds in its lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; products of the first with integers under 2⁹ are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let small = x < -87.0;
    let x = if small { -87.0 } else { x };
    let rounded = mul_add::<FMA>(x, LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = mul_add::<FMA>(n, -LN_2_HIGH, x);
    let r = mul_add::<FMA>(n, -LN_2_LOW, r);
    // Cephes' polynomial for (eʳ − 1 − r)/r² on [−ln 2/2, ln 2/2]
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = mul_add::<FMA>(p, r, c);
    }
    let p = mul_add::<FMA>(p, r * r, r) + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if small { 0.0 } else { p * power }
}

/// Φ(x) and φ(x): the standard normal distribution function and density. Φ's error is at most 1.3e-7 and, relative to
/// min(Φ, 1 − Φ), 3e-7 where |x| is small, growing as x² does.
#[inline(always)]
pub fn normal<const FMA: bool>(x: f32) -> (f32, f32) {
    // 1 − Φ(z) = exp(−z²/2)·t·p(t) with t = 1/(1 + 0.35 z), z ≥ 0; p by Lawson's iteration, relative error 3e-8.
    const P: [f32; 9] = [
        0.139_621_4,
        0.139_861_9,
        0.119_832_71,
        0.105_508_65,
        -0.023_111_377,
        0.159_176_44,
        -0.255_716_26,
        0.143_972_68,
        -0.029_146_135,
    ];
    let z = x.abs();
    let e = exp::<FMA>(-0.5 * x * x);
    let t = 1.0 / mul_add::<FMA>(0.35, z, 1.0);
    let mut p = P[8];
    for i in (0..8).rev() {
        p = mul_add::<FMA>(p, t, P[i]);
    }
    let tail = e * (t * p);
    (if x < 0.0 { tail } else { 1.0 - tail }, e * 0.398_942_3)
}

#[cfg(test)]
mod tests {
    use super::bf16_bits;

    #[test]
    fn rounding_is_that_of_half() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-41, f32::NAN];
        // Ties, and what lies beside them, of both signs.
        let numbers = (0..1 << 16).map(|i: u32| f32::from_bits(i.wrapping_mul(2_654_435_761) ^ (i & 1) << 15));
        for x in numbers.chain([0x3f80_8000, 0x3f81_8000, 0xbf80_8001].map(f32::from_bits)).chain(special) {
            let expected = half::bf16::from_f32(x);
            let bits = bf16_bits(x);
            let found = half::bf16::from_bits((bits >> 16) as u16);
            assert_eq!(bits & 0xffff, 0);
            assert!(found == expected || (found.is_nan() && expected.is_nan()), "{x}: {found} for {expected}");
        }
    }
}
