//! Tests every instruction set of this CPU against the portable implementation (same bits) and against definitions.

use half::{bf16, f16};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Isa, LANES, RotaryTables, Softmax, Stored};

fn portable() -> Isa {
    Isa::all()[0]
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// A list of numbers. Lengths near a whole number of registers are more frequent.
fn numbers(range: std::ops::Range<f32>) -> impl Strategy<Value = Vec<f32>> {
    let near = (0usize..5, 0usize..5).prop_map(|(registers, more)| (registers * LANES + more).saturating_sub(2));
    prop_oneof![near, 0usize..300].prop_flat_map(move |n| vec(range.clone(), n))
}

proptest! {
    /// Small integers make equal magnitudes frequent, so this tests the rule for ties.
    #[test]
    fn peak_agrees_and_takes_the_lowest_of_equals(
        p in vec((-3i8..=3).prop_map(f32::from), 0..300)
    ) {
        let top = p.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let expected = p.iter().position(|x| x.abs() == top).unwrap_or(0);
        for isa in Isa::all() {
            prop_assert_eq!(isa.peak(&p), expected, "{:?}", isa);
        }
    }

    #[test]
    fn subtract_then_peak_agrees(
        pairs in vec((-4.0f32..4.0, -1.0f32..1.0), 0..300), c in -4.0f32..4.0
    ) {
        let (p, g): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let expected: Vec<f32> = p.iter().zip(&g).map(|(p, g)| (-c).mul_add(*g, *p)).collect();
        let index = portable().peak(&expected);
        for isa in Isa::all() {
            let mut p = p.clone();
            prop_assert_eq!(isa.subtract_then_peak(&mut p, c, &g), index, "{:?}", isa);
            prop_assert_eq!(bits(&p), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn axpy_agrees(
        pairs in vec((-4.0f32..4.0, -1.0f32..1.0), 0..100), a in -4.0f32..4.0
    ) {
        let (y, x): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let expected: Vec<f32> = y.iter().zip(&x).map(|(y, x)| a.mul_add(*x, *y)).collect();
        for isa in Isa::all() {
            let mut y = y.clone();
            isa.axpy(&mut y, a, &x);
            prop_assert_eq!(bits(&y), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn combine_agrees_over_both_kinds_of_atoms(
        (width, atoms) in (1usize..150).prop_flat_map(|w| (Just(w), vec(-1.0f32..1.0, 7 * w))),
        offline in 1usize..=7,
        code in vec((0u16..7, -4.0f32..4.0), 0..9)
    ) {
        let (indices, coefficients): (Vec<_>, Vec<_>) = code.into_iter().unzip();
        let (offline, online) = atoms.split_at(offline * width);
        let online: Vec<f16> = online.iter().map(|&x| f16::from_f32(x)).collect();
        let all: Vec<f32> = offline.iter().copied().chain(online.iter().map(|x| x.to_f32())).collect();
        let mut expected = vec![0.0f32; width];
        for (&index, &c) in indices.iter().zip(&coefficients) {
            let atom = &all[usize::from(index) * width..][..width];
            expected.iter_mut().zip(atom).for_each(|(y, x)| *y = c.mul_add(*x, *y));
        }
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; width];
            isa.combine(&mut out, offline, &online, &indices, &coefficients);
            prop_assert_eq!(bits(&out), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn weighted_rows_agree(
        (width, out) in (1usize..100).prop_flat_map(|w| (Just(w), vec(-1.0f32..1.0, w))),
        weights in vec(-2.0f32..2.0, 0..11), numbers in vec(-1.0f32..1.0, 1100)
    ) {
        let rows = &numbers[..weights.len() * width];
        let mut expected = out.clone();
        for (weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
            expected.iter_mut().zip(row).for_each(|(out, x)| *out = weight.mul_add(*x, *out));
        }
        for isa in Isa::all() {
            let mut out = out.clone();
            isa.add_weighted(&weights, rows, &mut out);
            prop_assert_eq!(bits(&out), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn weighted_rows_summed_together_are_those_summed_alone(
        width in 1usize..100, sums in 0usize..10, n in 0usize..11, numbers in vec(-1.0f32..1.0, 1100), seed in 1usize..90
    ) {
        let rows = &numbers[..n * width];
        let take = |count: usize| -> Vec<f32> { numbers.iter().cycle().skip(seed).step_by(7).take(count).copied().collect() };
        let (weights, start) = (take(sums * n), take(sums * width));
        let mut expected = start.clone();
        for (sum, weights) in expected.chunks_exact_mut(width).zip(weights.chunks_exact(n.max(1))) {
            portable().add_weighted(weights, rows, sum);
        }
        for isa in Isa::all() {
            let mut out = start.clone();
            isa.add_weighted_together(&weights, rows, width, &mut out);
            prop_assert_eq!(bits(&out), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn dots_with_several_rows_are_those_with_one(width in 0usize..100, count in 0usize..10, numbers in vec(-1.0f32..1.0, 1100)) {
        let (a, b) = (&numbers[numbers.len() - width..], &numbers[..count * width]);
        let brain: Vec<bf16> = a.iter().map(|x| bf16::from_f32(*x)).collect();
        for isa in Isa::all() {
            let (mut out, mut of_brain) = (vec![f32::NAN; count], vec![f32::NAN; count]);
            isa.dots(a, b, &mut out);
            isa.dots(&brain, b, &mut of_brain);
            for row in 0..count {
                let b = &b[row * width..(row + 1) * width];
                prop_assert_eq!(out[row].to_bits(), portable().dot(a, b).to_bits(), "{:?}", isa);
                prop_assert_eq!(of_brain[row].to_bits(), portable().dot(&brain, b).to_bits(), "{:?}", isa);
            }
        }
    }

    #[test]
    fn dots_agree_in_every_type_and_are_the_definition(a in numbers(-1.0..1.0), seed in any::<u32>()) {
        let b: Vec<f32> = (0..a.len() as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0)
            .collect();
        let brain: Vec<bf16> = a.iter().map(|x| bf16::from_f32(*x)).collect();
        let half: Vec<f16> = a.iter().map(|x| f16::from_f32(*x)).collect();
        check_dot(&a, &b)?;
        check_dot(&brain, &b)?;
        check_dot(&half, &b)?;
    }

    #[test]
    fn exponentials_agree_and_the_largest_is_found(x in numbers(-40.0..40.0)) {
        let reference = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut expected = x.clone();
        let sum = portable().exponentials(&mut expected, reference);
        let total: f64 = x.iter().map(|x| f64::from(x - reference).exp()).sum();
        prop_assert!((f64::from(sum) - total).abs() <= 1e-6 * total);
        for isa in Isa::all() {
            prop_assert_eq!(isa.max(&x), reference, "{:?}", isa);
            let mut x = x.clone();
            prop_assert_eq!(isa.exponentials(&mut x, reference).to_bits(), sum.to_bits(), "{:?}", isa);
            prop_assert_eq!(bits(&x), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn attention_kernels_agree(
        (half, queries, tokens, chunks) in (1usize..70, 1usize..10, 0usize..20, 1usize..3), s in 1usize..5,
        values in vec(-2.0f32..2.0, 16_000)
    ) {
        let width = 2 * half;
        let take = |from: usize, n: usize| values[from..from + n].to_vec();
        let (keys, q) = (take(0, tokens * width), take(7, queries * width));
        let weights = take(11, tokens * queries);
        let coefficients = take(19, tokens * chunks * s);
        let indices: Vec<u16> = (0..tokens * chunks * s).map(|i| (i * 7 % 13) as u16).collect();
        let run = |isa: Isa| {
            let mut scores = vec![0.0; tokens * queries];
            isa.scores(&keys, &q, width, &mut scores);
            let mut sums = vec![0.0; chunks * 13 * queries];
            isa.scatter(&mut sums, queries, chunks, &indices, &coefficients, &weights);
            let mut looked_up = vec![0.0; tokens * queries];
            let products = &values[..chunks * 13 * queries];
            isa.score_codes(products, chunks, &indices, &coefficients, &mut looked_up, queries);
            let mut out = vec![0.0; queries * width];
            isa.gather(&mut out, width, &values[..13 * width], width, &sums[..13 * queries], queries);
            [bits(&scores), bits(&sums), bits(&looked_up), bits(&out)]
        };
        let expected = run(portable());
        for isa in Isa::all() {
            prop_assert_eq!(&run(isa), &expected, "{:?}", isa);
        }
        // Computed by definition, one number at a time.
        let mut sums = vec![0.0f32; chunks * 13 * queries];
        let mut looked_up = vec![0.0f32; tokens * queries];
        for (at, (&index, &c)) in indices.iter().zip(&coefficients).enumerate() {
            let (token, place) = (at / s / chunks, at / s % chunks * 13 + usize::from(index));
            for query in 0..queries {
                let sum = &mut sums[place * queries + query];
                *sum = c.mul_add(weights[token * queries + query], *sum);
                let score = &mut looked_up[token * queries + query];
                *score = c.mul_add(values[place * queries + query], *score);
            }
        }
        prop_assert_eq!(&expected[1], &bits(&sums));
        prop_assert_eq!(&expected[2], &bits(&looked_up));
    }

    #[test]
    fn rotation_turns_pairs(half in 1usize..70, tokens in 0usize..9, position in 0usize..4, seed in any::<u32>()) {
        let number = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let angles: Vec<f32> = (0..(13 * half) as u32).map(number).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|x| (x.cos(), x.sin())).unzip();
        let rows: Vec<f32> = (7..(7 + tokens * 2 * half) as u32).map(number).collect();
        let tables = RotaryTables { cos: &cos, sin: &sin };
        prop_assert_eq!(tables.positions(2 * half), 13);
        let mut turned = rows.clone();
        tables.rotate(&mut turned, 2 * half, position);
        for (t, (row, turned)) in rows.chunks_exact(2 * half).zip(turned.chunks_exact(2 * half)).enumerate() {
            for j in 0..half {
                let at = (position + t) * half + j;
                let (a, b) = (f64::from(row[j]), f64::from(row[half + j]));
                let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
                prop_assert!((f64::from(turned[j]) - (a * c - b * s)).abs() < 1e-6);
                prop_assert!((f64::from(turned[half + j]) - (b * c + a * s)).abs() < 1e-6);
            }
        }
    }

    /// For any split of the scores, any two joined parts and any slack, the result is the softmax of all scores at once.
    #[test]
    fn streaming_softmax_is_the_softmax(
        scores in vec(-60.0f32..60.0, 1..80), split in 0.0f64..1.0, slack in 0.0f32..20.0
    ) {
        let values: Vec<f32> = (0..scores.len()).map(|i| (i as f32).sin()).collect();
        let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |x: &f32| f64::from(x - top).exp();
        let total: f64 = scores.iter().map(weight).sum();
        let expected = scores.iter().zip(&values).map(|(x, v)| weight(x) * f64::from(*v)).sum::<f64>() / total;
        let cut = (split * scores.len() as f64) as usize;
        let sum = |weights: &[f32], values: &[f32]| weights.iter().zip(values).map(|(w, v)| w * v).sum::<f32>();
        let parts = [0..cut, cut..scores.len()];

        let (mut streamed, mut out) = (Softmax::default(), 0.0);
        let (mut slow, mut slow_out) = (Softmax::default(), 0.0);
        let mut apart = Vec::new();
        for part in parts {
            let values = &values[part.clone()];
            let mut weights = scores[part.clone()].to_vec();
            out = out * streamed.weigh(Isa::detect(), &mut weights) + sum(&weights, values);

            let mut weights = scores[part.clone()].to_vec();
            slow_out *= slow.raise(Isa::detect().max(&weights), slack);
            weights.iter_mut().for_each(|x| *x = (*x - slow.reference()).exp());
            weights.iter().for_each(|x| slow.add(*x));
            slow_out += sum(&weights, values);

            let (mut own, mut weights) = (Softmax::default(), scores[part].to_vec());
            own.weigh(Isa::detect(), &mut weights);
            apart.push((own, sum(&weights, values)));
        }
        let joined = Softmax::joined(apart.iter().map(|part| &part.0));
        let mut found = [out, slow_out, apart.iter().map(|(part, sum)| part.share(&joined) * sum).sum()];
        for (softmax, found) in [streamed, slow, joined].iter().zip(&mut found) {
            softmax.normalise(std::slice::from_mut(found));
        }
        for found in found {
            prop_assert!((f64::from(found) - expected).abs() < 1e-5, "{} {}", found, expected);
        }
    }
}

fn check_dot<T: Stored>(a: &[T], b: &[f32]) -> Result<(), TestCaseError> {
    let exact: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.widen()) * f64::from(*b)).sum();
    let expected = portable().dot(a, b);
    prop_assert!((f64::from(expected) - exact).abs() < 1e-4);
    for isa in Isa::all() {
        prop_assert_eq!(isa.dot(a, b).to_bits(), expected.to_bits(), "{:?}", isa);
        let mut wide = vec![f32::NAN; a.len()];
        isa.widen(a, &mut wide);
        prop_assert!(wide.iter().zip(a).all(|(wide, a)| *wide == a.widen()));
    }
    Ok(())
}

#[test]
fn nan_is_never_the_peak() {
    for isa in Isa::all() {
        let mut p = vec![f32::NAN; 200];
        assert_eq!(isa.peak(&p), 0);
        p[130] = -1e-30;
        assert_eq!(isa.peak(&p), 130, "{isa:?}");
    }
}

#[test]
fn nan_is_not_seen_by_max() {
    for isa in Isa::all() {
        let mut x = vec![f32::NAN; 40];
        assert_eq!(isa.max(&x), f32::NEG_INFINITY, "{isa:?}");
        for at in [0, 20, 39] {
            x[at] = at as f32 - 30.0;
            assert_eq!(isa.max(&x), at as f32 - 30.0, "{isa:?}");
        }
    }
}

#[test]
fn exponentials_are_close_to_those_of_f64() {
    let x: Vec<f32> = (0..200_000).map(|i| i as f32 * 5.3e-4 - 87.0).chain([0.0, -0.0]).collect();
    for isa in Isa::all() {
        let mut y = x.clone();
        isa.exponentials(&mut y, 0.0);
        for (&x, &y) in x.iter().zip(&y) {
            let exact = f64::from(x).exp();
            assert!((f64::from(y) / exact - 1.0).abs() < 3.0 * f64::from(f32::EPSILON), "{isa:?} {x}: {y}");
        }
        let mut edges = [f32::NEG_INFINITY, -1e30, f32::NAN, 16.0];
        assert!(isa.exponentials(&mut edges, 0.0).is_nan());
        assert!(
            edges[0] < 1e-37 && edges[1] < 1e-37 && edges[2].is_nan() && (edges[3] / 16f32.exp() - 1.0).abs() < 1e-6
        );
        let mut odd = [0.0, -200.0, f32::NEG_INFINITY, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0, f32::NAN];
        assert!(isa.exponentials(&mut odd, 0.0).is_nan());
        assert!(odd[0] == 1.0 && odd[1] < 2e-38 && odd[2] < 2e-38 && odd[3].is_nan() && odd[9].is_nan());
    }
}
