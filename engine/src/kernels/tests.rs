//! The CPU's kernels against the composed definitions, their gradients included.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::{BalancedCheckpointing, NoCheckpointing};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use burn_flex::Flex;
use fixtures::compare::{absolute_difference, assert_close, relative_difference};

use super::{Adamw, Backend, compose, float, lean, prim};
use crate::device::Precision;

fn linear<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    super::linear(x, weight, bias, Precision::F32)
}

fn composed<B: Backend>(x: Tensor<B, 2>, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    compose::linear(x, weight, bias, Precision::F32)
}

type Tracked = Autodiff<Flex>;
type Sparing = Autodiff<Flex, BalancedCheckpointing>;

/// Numbers between −1 and 1, the same for a seed on every machine.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn tensor<B: BurnBackend, const D: usize>(shape: [usize; D], seed: u64) -> Tensor<B, D> {
    let values = numbers(shape.iter().product(), seed);
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn flat<B: BurnBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().expect("f32")
}

/// The largest difference, relative to the largest expected value. Of nothing where nothing is expected it is 0.
fn error(actual: &[f32], expected: &[f32]) -> f64 {
    if (actual, expected) == (&[], &[]) {
        return 0.0;
    }
    let difference = absolute_difference(expected, actual).unwrap_or_else(|reason| panic!("{reason}: {actual:?}"));
    difference / expected.iter().fold(1e-6, |largest: f64, value| largest.max(f64::from(value.abs())))
}

/// One input of a function: how many values, whether it is tracked.
type Input = (usize, bool);

/// The function's values, then the gradients of a weighted sum of them for every tracked input. Inputs come flat.
fn evaluate<B: AutodiffBackend, const D: usize>(
    inputs: &[Input],
    function: impl Fn(&[Tensor<B, 1>]) -> Tensor<B, D>,
) -> Vec<Vec<f32>> {
    let leaves = inputs.iter().enumerate().map(|(i, (n, tracked))| {
        let leaf: Tensor<B, 1> = tensor([*n], 10 + i as u64);
        if *tracked { leaf.require_grad() } else { leaf }
    });
    let leaves = leaves.collect::<Vec<_>>();
    let out = function(&leaves);
    let mut all = vec![flat(out.clone())];
    if inputs.iter().any(|(_, tracked)| *tracked) {
        let weights: Tensor<B, D> = tensor(out.dims(), 5);
        let gradients = (out * weights).sum().backward();
        for (leaf, (_, tracked)) in leaves.iter().zip(inputs) {
            assert_eq!(leaf.grad(&gradients).is_some(), *tracked);
            all.extend(leaf.grad(&gradients).map(flat));
        }
    }
    all
}

/// Both functions agree on values and gradients to `tolerance`, as [`error`] counts.
fn agree<const D: usize>(
    inputs: &[Input],
    tolerance: f64,
    ours: impl Fn(&[Tensor<Tracked, 1>]) -> Tensor<Tracked, D>,
    composed: impl Fn(&[Tensor<Tracked, 1>]) -> Tensor<Tracked, D>,
) {
    let (actual, expected) = (evaluate(inputs, ours), evaluate(inputs, composed));
    assert_eq!(actual.len(), expected.len());
    for (i, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        let error = error(actual, expected);
        assert!(error <= tolerance, "{inputs:?}: output {i} is off by {error:e}");
    }
}

/// Every choice of tracked inputs among `n`.
fn choices(n: usize) -> impl Iterator<Item = Vec<bool>> {
    (0..1 << n).map(move |bits| (0..n).map(|i| bits >> i & 1 == 1).collect())
}

#[test]
fn linear_agrees() {
    for [rows, input, output] in [[1, 1, 1], [3, 5, 7], [65, 48, 33], [150, 64, 96], [0, 4, 3]] {
        for tracked in choices(3) {
            let inputs = [(rows * input, tracked[0]), (output * input, tracked[1]), (output, tracked[2])];
            if rows == 0 && tracked.contains(&true) {
                continue;
            }
            let arguments = |leaves: &[Tensor<Tracked, 1>]| {
                let [x, weight, bias] = [0, 1, 2].map(|i| leaves[i].clone());
                (x.reshape([rows, input]), weight.reshape([output, input]), bias)
            };
            agree(
                &inputs,
                2e-6,
                |leaves| {
                    let (x, weight, bias) = arguments(leaves);
                    linear(x, weight, Some(bias))
                },
                |leaves| {
                    let (x, weight, bias) = arguments(leaves);
                    composed(x, weight, Some(bias))
                },
            );
            agree(
                &inputs[..2],
                2e-6,
                |leaves| {
                    linear(leaves[0].clone().reshape([rows, input]), leaves[1].clone().reshape([output, input]), None)
                },
                |leaves| {
                    composed(leaves[0].clone().reshape([rows, input]), leaves[1].clone().reshape([output, input]), None)
                },
            );
        }
    }
}

#[test]
fn linear_takes_strides_and_adds_up_uses() {
    let (rows, width) = (37, 20);
    let inputs = [(rows * width, true), (width * width, true), (width, true)];
    // Transposed x, weight and gradient; weight, bias and x used twice.
    let function =
        |leaves: &[Tensor<Tracked, 1>],
         linear: &dyn Fn(Tensor<Tracked, 2>, Tensor<Tracked, 2>, Tensor<Tracked, 1>) -> Tensor<Tracked, 2>| {
            let x = leaves[0].clone().reshape([width, rows]).transpose();
            let weight = leaves[1].clone().reshape([width, width]);
            let once = linear(x.clone(), weight.clone().transpose(), leaves[2].clone());
            let part = x.clone().slice([2..rows, 0..width]);
            let twice = linear(once.clone(), weight.clone(), leaves[2].clone());
            let sliced = linear(part, weight, leaves[2].clone());
            (twice.transpose() * 2.0).slice([0..width, 2..rows])
                + sliced.transpose()
                + once.transpose().slice([0..width, 2..rows])
        };
    agree(
        &inputs,
        3e-6,
        |leaves| function(leaves, &|x, weight, bias| linear(x, weight, Some(bias))),
        |leaves| function(leaves, &|x, weight, bias| composed(x, weight, Some(bias))),
    );
}

/// Small products, and such as a CPU with units for bf16 gives to those.
#[test]
fn linear_bf16_agrees() {
    for [rows, input, output] in [[3, 5, 7], [65, 48, 33], [200, 160, 96], [257, 130, 161]] {
        let inputs = [(rows * input, true), (output * input, true), (output, true)];
        let arguments = |leaves: &[Tensor<Tracked, 1>]| {
            let [x, weight, bias] = [0, 1, 2].map(|i| leaves[i].clone());
            (x.reshape([rows, input]), weight.reshape([output, input]), bias)
        };
        let ours = |leaves: &[Tensor<Tracked, 1>]| {
            let (x, weight, bias) = arguments(leaves);
            super::linear(x, weight, Some(bias), Precision::Bf16)
        };
        agree(&inputs, 2e-2, ours, |leaves| {
            let (x, weight, bias) = arguments(leaves);
            compose::linear(x, weight, Some(bias), Precision::Bf16).cast(FloatDType::F32)
        });
        let exact = evaluate(&inputs, |leaves| {
            let (x, weight, bias) = arguments(leaves);
            linear(x, weight, Some(bias))
        });
        for (ours, exact) in evaluate(&inputs, ours).iter().zip(&exact).take(3) {
            assert!((1e-5..1e-2).contains(&error(ours, exact)), "factors are rounded, sums aren't");
        }
    }
}

/// Products that run in parallel, in every order of the factors' strides.
#[test]
fn large_products_agree() {
    let (rows, input, output) = (197, 331, 270);
    let inputs = [(rows * input, true), (output * input, true), (output, true)];
    for x_first in [true, false] {
        for weight_first in [true, false] {
            let arguments = |leaves: &[Tensor<Tracked, 1>]| {
                let x = leaves[0].clone();
                let x = if x_first { x.reshape([rows, input]) } else { x.reshape([input, rows]).transpose() };
                let weight = leaves[1].clone();
                let weight = if weight_first {
                    weight.reshape([output, input])
                } else {
                    weight.reshape([input, output]).transpose()
                };
                (x, weight, leaves[2].clone())
            };
            agree(
                &inputs,
                2e-6,
                |leaves| {
                    let (x, weight, bias) = arguments(leaves);
                    let out = linear(x.clone(), weight.clone(), Some(bias));
                    out + linear(x, weight, None) * 0.5
                },
                |leaves| {
                    let (x, weight, bias) = arguments(leaves);
                    let out = composed(x.clone(), weight.clone(), Some(bias));
                    out + composed(x, weight, None) * 0.5
                },
            );
        }
    }
}

/// In f64, to the accuracy that f32's own products have.
#[test]
fn large_products_are_as_exact_as_f32() {
    let (rows, input, output) = (130, 700, 100);
    let x: Tensor<Flex, 2> = tensor([rows, input], 1);
    let weight: Tensor<Flex, 2> = tensor([output, input], 2);
    let (a, b) = (flat(x.clone()), flat(weight.clone()));
    let ours = flat(linear(x, weight, None));
    for i in 0..rows {
        for j in 0..output {
            let terms = || (0..input).map(|k| f64::from(a[i * input + k]) * f64::from(b[j * input + k]));
            let (exact, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let error = (f64::from(ours[i * output + j]) - exact).abs();
            assert!(error <= 1e-6 * size, "({i}, {j}) is off by {error:e} of {size}");
        }
    }
}

fn attention_agrees(shape: [usize; 4], tracked: [bool; 2], masked: bool) {
    let [batch, tokens, heads, d] = shape;
    let mask = masked.then(|| {
        let ones = (0..batch * tokens).map(|i| if i % tokens == 0 || (i * 7) % 3 != 0 { 1.0f32 } else { 0.0 });
        Tensor::<Tracked, 2>::from_data(TensorData::new(ones.collect(), [batch, tokens]), &Default::default())
    });
    let inputs = [(batch * tokens * 3 * heads * d, tracked[0]), (heads * tokens * tokens, tracked[1])];
    let arguments = |leaves: &[Tensor<Tracked, 1>]| {
        let qkv = leaves[0].clone().reshape([batch, tokens, 3 * heads * d]) * 3.0;
        (qkv, leaves[1].clone().reshape([heads, tokens, tokens]))
    };
    // The bias serves two layers, as in the model.
    let twice = |leaves: &[Tensor<Tracked, 1>],
                 attention: &dyn Fn(Tensor<Tracked, 3>, Tensor<Tracked, 3>) -> Tensor<Tracked, 3>| {
        let (qkv, bias) = arguments(leaves);
        let out = attention(qkv.clone(), bias.clone());
        attention(Tensor::cat(vec![out.clone(), qkv.slice([0..batch, 0..tokens, 0..heads * d]), out], 2), bias)
    };
    agree(
        &inputs,
        1e-5,
        |leaves| twice(leaves, &|qkv, bias| super::attention(qkv, bias, mask.clone(), heads)),
        |leaves| twice(leaves, &|qkv, bias| compose::attention(qkv, bias, mask.clone(), heads)),
    );
}

#[test]
fn attention_agrees_on_odd_shapes() {
    for shape in [[1, 1, 1, 4], [2, 5, 3, 8], [3, 17, 2, 16], [2, 40, 2, 64], [1, 16, 2, 5]] {
        for tracked in [[true, true], [true, false], [false, true], [false, false]] {
            for masked in [false, true] {
                attention_agrees(shape, tracked, masked);
            }
        }
    }
}

#[test]
fn attention_agrees_in_blocks_of_rows() {
    attention_agrees([2, 401, 1, 8], [true, true], true);
    attention_agrees([1, 530, 2, 4], [true, false], false);
}

#[test]
fn attention_leaves_masked_keys_out() {
    let qkv: Tensor<Flex, 3> = tensor([1, 6, 3 * 8], 1) * 10.0;
    let bias: Tensor<Flex, 3> = tensor([2, 6, 6], 2);
    let mask = Tensor::from_data([[1.0f32, 1.0, 1.0, 0.0, 0.0, 0.0]], &Default::default());
    let whole = super::attention(qkv.clone(), bias.clone(), Some(mask), 2);
    let part = super::attention(qkv.slice([0..1, 0..3, 0..24]), bias.slice([0..2, 0..3, 0..3]), None, 2);
    assert!(error(&flat(whole.slice([0..1, 0..3, 0..8])), &flat(part)) < 1e-6);
}

#[test]
fn layer_norm_agrees() {
    for [rows, d] in [[3, 2], [5, 16], [70, 33], [33, 256], [40, 7]] {
        for tracked in choices(3) {
            let inputs = [(rows * d, tracked[0]), (d, tracked[1]), (d, tracked[2])];
            // x is used after the norm too, as in a residual connection, which has left a gradient by then.
            agree(
                &inputs,
                1e-5,
                |leaves| {
                    let x = leaves[0].clone().reshape([rows, d]);
                    super::layer_norm(x.clone() + 3.0, leaves[1].clone(), leaves[2].clone(), 1e-6) + x
                },
                |leaves| {
                    let x = leaves[0].clone().reshape([rows, d]);
                    compose::layer_norm(x.clone() + 3.0, leaves[1].clone(), leaves[2].clone(), 1e-6) + x
                },
            );
        }
    }
}

/// What CUDA runs, here over the CPU's operations.
#[test]
fn lean_gradients_agree() {
    for [batch, tokens, heads, d] in [[1, 1, 1, 4], [2, 5, 3, 8], [3, 17, 2, 16]] {
        for tracked in [[true, true], [true, false], [false, true], [false, false]] {
            for (masked, dtype, tolerance) in
                [(false, FloatDType::F32, 5e-6), (true, FloatDType::F32, 5e-6), (true, FloatDType::BF16, 3e-2)]
            {
                let width = heads * d;
                let inputs = [(batch * tokens * 3 * width, tracked[0]), (heads * tokens * tokens, tracked[1])];
                let arguments = |leaves: &[Tensor<Tracked, 1>]| {
                    let qkv = leaves[0].clone().reshape([batch, tokens, 3 * width]).cast(dtype);
                    (qkv, leaves[1].clone().reshape([heads, tokens, tokens]))
                };
                let mask = |at: usize| if masked && at % tokens > tokens / 2 { 0.0 } else { 1.0 };
                let mask: Vec<f32> = (0..batch * tokens).map(mask).collect();
                let mask = TensorData::new(mask, [batch, tokens]);
                agree(
                    &inputs,
                    tolerance,
                    |leaves| {
                        let (qkv, bias) = arguments(leaves);
                        let mask = prim(Tensor::<Flex, 2>::from_data(mask.clone(), &Default::default()));
                        let out = lean::attention::<Flex, NoCheckpointing>(prim(qkv), prim(bias), Some(mask), heads);
                        float::<Tracked, 3>(out).cast(FloatDType::F32)
                    },
                    |leaves| {
                        let (qkv, bias) = arguments(leaves);
                        compose::attention(qkv, bias, Some(Tensor::from_data(mask.clone(), &Default::default())), heads)
                            .cast(FloatDType::F32)
                    },
                );
            }
        }
    }
    for [rows, d] in [[3, 2], [5, 16], [70, 33]] {
        for tracked in choices(3) {
            let inputs = [(rows * d, tracked[0]), (d, tracked[1]), (d, tracked[2])];
            agree(
                &inputs,
                1e-5,
                |leaves| {
                    let x = leaves[0].clone().reshape([rows, d]) + 3.0;
                    let (gamma, beta) = (leaves[1].clone(), leaves[2].clone());
                    float::<Tracked, 2>(lean::layer_norm::<Flex, NoCheckpointing>(
                        prim(x),
                        prim(gamma),
                        prim(beta),
                        1e-6,
                    ))
                },
                |leaves| {
                    let x = leaves[0].clone().reshape([rows, d]) + 3.0;
                    compose::layer_norm(x, leaves[1].clone(), leaves[2].clone(), 1e-6)
                },
            );
        }
    }
}

#[test]
fn gelu_agrees() {
    for [rows, d] in [[1, 1], [3, 5], [70, 133]] {
        for tracked in [true, false] {
            agree(
                &[(rows * d, tracked)],
                1e-6,
                |leaves| super::gelu(leaves[0].clone().reshape([rows, d]) * 5.0),
                |leaves| compose::gelu(leaves[0].clone().reshape([rows, d]) * 5.0),
            );
        }
    }
}

/// erfc in f64: its series where that converges well, its continued fraction elsewhere.
fn erfc(z: f64) -> f64 {
    if z < 0.0 {
        return 2.0 - erfc(-z);
    }
    if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..100 {
            term *= -z * z / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        return 1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..200).rev().fold(z, |fraction, n| z + n as f64 / 2.0 / fraction);
    (-z * z).exp() / fraction * std::f64::consts::FRAC_2_SQRT_PI / 2.0
}

#[test]
fn gelu_is_as_exact_as_f32() {
    assert!(
        (erfc(0.5) - 0.479_500_122_186_953_5).abs() < 1e-15
            && (erfc(3.0) / 2.209_049_699_858_544e-5 - 1.0).abs() < 1e-13
    );
    let x = (-1200..=1200).map(|i| i as f32 / 80.0).collect::<Vec<_>>();
    let n = x.len();
    let leaf = Tensor::<Tracked, 2>::from_data(TensorData::new(x.clone(), [1, n]), &Default::default()).require_grad();
    let out = super::gelu(leaf.clone());
    let gradients = out.clone().sum().backward();
    let slopes = flat(leaf.grad(&gradients).expect("tracked"));
    for ((x, value), slope) in x.iter().zip(flat(out)).zip(slopes) {
        let x = *x as f64;
        let distribution = 0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        assert!((value as f64 - x * distribution).abs() <= 1.5e-7 * (x.abs() + 1e-3), "gelu({x}) is {value}");
        assert!((slope as f64 - distribution - x * density).abs() <= 4e-7, "gelu'({x}) is {slope}");
    }
}

#[test]
fn add_scaled_agrees() {
    let [batch, tokens, d] = [3, 15, 21];
    let keep = Tensor::<Tracked, 1>::from_data([0.0f32, 1.25, 1.25], &Default::default());
    for keep in [None, Some(keep)] {
        for tracked in choices(3) {
            let inputs = [(batch * tokens * d, tracked[0]), (d, tracked[1]), (batch * tokens * d, tracked[2])];
            let shape = [batch, tokens, d];
            agree(
                &inputs,
                2e-6,
                |leaves| {
                    let [x, branch] = [0, 2].map(|i| leaves[i].clone().reshape(shape));
                    super::add_scaled(x, leaves[1].clone(), branch, keep.clone())
                },
                |leaves| {
                    let [x, branch] = [0, 2].map(|i| leaves[i].clone().reshape(shape));
                    compose::add_scaled(x, leaves[1].clone(), branch, keep.clone())
                },
            );
        }
    }
}

#[test]
fn position_bias_agrees() {
    let (rows, columns, tokens) = (13, 6, 5);
    let index = (0..tokens * tokens).map(|i| (i * i + 3) as i64 % rows as i64).collect::<Vec<_>>();
    let index = Tensor::<Tracked, 1, Int>::from_data(TensorData::new(index, [tokens * tokens]), &Default::default());
    for tracked in [true, false] {
        // Two layers' columns of one table.
        agree(
            &[(rows * columns, tracked)],
            1e-6,
            |leaves| {
                let table = leaves[0].clone().reshape([rows, columns]);
                let second = super::position_bias(table.clone(), index.clone(), tokens, 4, 2);
                super::position_bias(table, index.clone(), tokens, 1, 2) + second * 0.5
            },
            |leaves| {
                let table = leaves[0].clone().reshape([rows, columns]);
                let second = compose::position_bias(table.clone(), index.clone(), tokens, 4, 2);
                compose::position_bias(table, index.clone(), tokens, 1, 2) + second * 0.5
            },
        );
    }
}

#[test]
fn sum_of_squares_agrees() {
    for shape in [[1, 1], [3, 7], [300, 133]] {
        let x: Tensor<Flex, 2> = tensor(shape, 1);
        let exact = flat(x.clone()).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let ours = flat(super::sum_of_squares::<Flex>(prim(x)));
        assert!((f64::from(ours[0]) - exact).abs() <= 1e-6 * exact);
    }
}

#[test]
fn shared_inputs_stay_as_they_were() {
    let x: Tensor<Flex, 3> = tensor([2, 3, 8], 1);
    let [gamma, beta]: [Tensor<Flex, 1>; 2] = [tensor([8], 2), tensor([8], 3)];
    let before = flat(x.clone());
    super::gelu(x.clone());
    super::layer_norm(x.clone(), gamma.clone(), beta, 1e-6);
    super::add_scaled(x.clone(), gamma, x.clone(), None);
    assert_eq!(flat(x), before);
}

/// A layer's worth of operations on 6 tokens of width 8; inputs: x, gamma and beta, two weights, two biases, layer scale,
/// the joint projection's weight, the relative position bias.
fn layer<B: Backend>(leaves: &[Tensor<B, 1>]) -> Tensor<B, 3> {
    let x = leaves[0].clone().reshape([2, 6, 8]);
    let normal = super::layer_norm(x.clone(), leaves[1].clone(), leaves[2].clone(), 1e-6);
    let qkv = linear(normal, leaves[8].clone().reshape([24, 8]), None);
    let x = super::add_scaled(
        x,
        leaves[7].clone(),
        super::attention(qkv, leaves[9].clone().reshape([2, 6, 6]), None, 2),
        None,
    );
    let normal = super::layer_norm(x.clone(), leaves[1].clone(), leaves[2].clone(), 1e-6);
    let wide = super::gelu(linear(normal, leaves[3].clone().reshape([16, 8]), Some(leaves[5].clone())));
    super::add_scaled(
        x,
        leaves[7].clone(),
        linear(wide, leaves[4].clone().reshape([8, 16]), Some(leaves[6].clone())),
        None,
    )
}

const LAYER: [Input; 10] = [
    (96, true),
    (8, true),
    (8, true),
    (128, true),
    (128, true),
    (16, true),
    (8, true),
    (8, true),
    (192, true),
    (72, true),
];

#[test]
fn checkpointing_changes_nothing() {
    assert_eq!(evaluate::<Tracked, 3>(&LAYER, layer), evaluate::<Sparing, 3>(&LAYER, layer));
    let frozen = LAYER.map(|(n, _)| n).map(|n| (n, n == 96 || n == 8));
    assert_eq!(evaluate::<Tracked, 3>(&frozen, layer), evaluate::<Sparing, 3>(&frozen, layer));
}

#[test]
fn threads_change_nothing() {
    let inputs = [(4 * 70 * 96, true), (2 * 70 * 70, true), (96 * 32, true), (32, true)];
    let function = |leaves: &[Tensor<Tracked, 1>]| {
        let bias = leaves[1].clone().reshape([2, 70, 70]);
        let out = super::attention(leaves[0].clone().reshape([4, 70, 96]), bias, None, 2);
        let out = super::layer_norm(out, leaves[3].clone(), leaves[3].clone(), 1e-6);
        super::gelu(linear(out, leaves[2].clone().reshape([96, 32]), None))
    };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| evaluate::<Tracked, 3>(&inputs, function))
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(5), one);
}

#[test]
fn not_a_number_shows() {
    let mut values = numbers(2 * 6 * 24, 1);
    values[30] = f32::NAN;
    let qkv = Tensor::<Flex, 3>::from_data(TensorData::new(values, [2, 6, 24]), &Default::default());
    let out = flat(super::attention(qkv.clone(), tensor([2, 6, 6], 2), None, 2));
    assert!(out[..48].iter().any(|value| value.is_nan()) && out[48..].iter().all(|value| value.is_finite()));
    assert!(flat(super::gelu(qkv.clone()))[30].is_nan());
    let normal = super::layer_norm(qkv, tensor([24], 1), tensor([24], 2), 1e-6);
    assert!(flat(normal)[24..48].iter().all(|value| value.is_nan()));
}

fn adamw_steps(threads: usize, decay_last: bool) -> [Vec<f32>; 3] {
    let n = 40_000;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let mut state = [
        prim::<Flex, 1>(tensor([n], 1)),
        prim(tensor::<Flex, 1>([n], 2) * 0.01),
        prim(tensor::<Flex, 1>([n], 3).abs()),
    ];
    for step in 1..=3 {
        let options = Adamw {
            lr: 1e-3,
            beta_1: 0.9,
            beta_2: 0.98,
            epsilon: 1e-8,
            weight_decay: 100.0,
            decay_last,
            step,
            gradient_scale: 0.5,
        };
        let [p, m, v] = state;
        state = pool.install(|| Flex::adamw(p, prim(tensor::<Flex, 1>([n], 10 + step)), m, v, &options));
    }
    state.map(|state| flat(float::<Flex, 1>(state)))
}

#[test]
fn adamw_agrees() {
    for decay_last in [false, true] {
        let ours = adamw_steps(2, decay_last);
        assert_eq!(ours, adamw_steps(1, decay_last));
        let n = 40_000;
        let mut state = [
            prim::<Flex, 1>(tensor([n], 1)),
            prim(tensor::<Flex, 1>([n], 2) * 0.01),
            prim(tensor::<Flex, 1>([n], 3).abs()),
        ];
        for step in 1..=3 {
            let options = Adamw {
                lr: 1e-3,
                beta_1: 0.9,
                beta_2: 0.98,
                epsilon: 1e-8,
                // So much that its order shows.
                weight_decay: 100.0,
                decay_last,
                step,
                gradient_scale: 0.5,
            };
            let [p, m, v] = state;
            state = compose::adamw::<Flex>(p, prim(tensor::<Flex, 1>([n], 10 + step)), m, v, &options);
        }
        for (ours, composed) in ours.iter().zip(state) {
            assert_close("AdamW", &flat(float::<Flex, 1>(composed)), ours, 1e-6);
        }
    }
    let [first, last] = [false, true].map(|decay_last| adamw_steps(1, decay_last)[0].clone());
    assert!(relative_difference(&first, &last).unwrap() > 1e-4, "the order of decay shows");
}

#[test]
fn adamw_is_pytorchs() {
    let row = |values: [f32; 4]| prim(Tensor::<Flex, 1>::from_data(values, &Default::default()));
    let gradients = [[0.1, -2.0, 1e-4, 0.0], [0.3, 1.0, -1e-4, 5.0], [-0.2, 0.5, 3e-4, -1.0]];
    // torch.optim.AdamW(lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01) after these three gradients, torch 2.15
    let expected = [
        [0.478_136_33, -1.236_338, 2.984_062_7, -0.010_791_108],
        [0.015_100_003, -0.022, 2.910_000_3e-5, 0.35],
        [0.002_756_08, 0.101_432_03, 2.188_080_2e-9, 0.51],
    ];
    let mut state = [row([0.5, -1.25, 3.0, 1e-3]), row([0.0; 4]), row([0.0; 4])];
    for (i, gradient) in gradients.into_iter().enumerate() {
        let step = i as u64 + 1;
        let options = Adamw {
            lr: 1e-2,
            beta_1: 0.9,
            beta_2: 0.98,
            epsilon: 1e-8,
            weight_decay: 0.01,
            decay_last: false,
            step,
            gradient_scale: 1.0,
        };
        let [p, m, v] = state;
        state = Flex::adamw(p, row(gradient), m, v, &options);
    }
    for (actual, expected) in state.map(|state| flat(float::<Flex, 1>(state))).iter().zip(expected) {
        for (actual, expected) in actual.iter().zip(expected) {
            assert_close("a value of AdamW", &[expected], &[*actual], 1e-6);
        }
    }
}

#[test]
fn bf16_is_composed() {
    fn run<B: Backend>(dtype: FloatDType) -> Vec<f32> {
        let half = |t: Tensor<B, 2>| t.cast(dtype);
        let x = half(tensor([10, 32], 1));
        let out = linear(x, half(tensor([96, 32], 2)), Some(tensor::<B, 1>([96], 3).cast(dtype)));
        assert_eq!(FloatDType::from(out.dtype()), dtype);
        let out = super::attention(out.reshape([2, 5, 96]), tensor([4, 5, 5], 4), None, 4);
        let out = super::layer_norm(super::gelu(out), tensor([32], 5), tensor([32], 6), 1e-6);
        assert_eq!(FloatDType::from(out.dtype()), dtype);
        let x = tensor([2, 5, 32], 7);
        let out = super::add_scaled(x, tensor([32], 8), out, Some(tensor([2], 9)));
        flat(out.cast(FloatDType::F32))
    }
    let exact = run::<Flex>(FloatDType::F32);
    assert!(error(&run::<Flex>(FloatDType::BF16), &exact) < 2e-2);
    assert!(error(&run::<Tracked>(FloatDType::BF16), &exact) < 2e-2);
}
