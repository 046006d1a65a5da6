//! Every instruction set of this machine against the scalar twin: the same bits.

use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;

use super::Isa;

fn scalar() -> Isa {
    Isa::all()[0]
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    /// Small integers, so that equal magnitudes are common and the tie rule is at work.
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
        let mut expected = p.clone();
        let index = scalar().subtract_then_peak(&mut expected, c, &g);
        prop_assert_eq!(index, scalar().peak(&expected));
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
        let mut expected = y.clone();
        scalar().axpy(&mut expected, a, &x);
        for isa in Isa::all() {
            let mut y = y.clone();
            isa.axpy(&mut y, a, &x);
            prop_assert_eq!(bits(&y), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn combine_agrees(
        (width, atoms) in (1usize..150).prop_flat_map(|w| (Just(w), vec(-1.0f32..1.0, 5 * w))),
        code in vec((0u16..5, -4.0f32..4.0), 0..9)
    ) {
        let (indices, coefficients): (Vec<_>, Vec<_>) = code.into_iter().unzip();
        let mut expected = vec![f32::NAN; width];
        scalar().combine(&mut expected, &atoms, &indices, &coefficients);
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; width];
            isa.combine(&mut out, &atoms, &indices, &coefficients);
            prop_assert_eq!(bits(&out), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn combine_union_agrees_and_is_combine_over_all_atoms(
        (width, atoms) in (1usize..150).prop_flat_map(|w| (Just(w), vec(-1.0f32..1.0, 7 * w))),
        code in vec((0u16..7, -4.0f32..4.0), 0..9)
    ) {
        let (indices, coefficients): (Vec<_>, Vec<_>) = code.into_iter().unzip();
        let (offline, online) = atoms.split_at(4 * width);
        let online: Vec<f16> = online.iter().map(|&x| f16::from_f32(x)).collect();
        let all: Vec<f32> = offline.iter().copied().chain(online.iter().map(|x| x.to_f32())).collect();
        let mut expected = vec![f32::NAN; width];
        scalar().combine(&mut expected, &all, &indices, &coefficients);
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; width];
            isa.combine_union(&mut out, offline, &online, &indices, &coefficients);
            prop_assert_eq!(bits(&out), bits(&expected), "{:?}", isa);
        }
    }

    #[test]
    fn attention_kernels_agree(
        (half, queries, tokens, chunks) in (1usize..70, 1usize..10, 0usize..20, 1usize..3), s in 1usize..5,
        values in vec(-2.0f32..2.0, 16_000)
    ) {
        let width = 2 * half;
        let take = |from: usize, n: usize| values[from..from + n].to_vec();
        let (keys, q, angles) = (take(0, tokens * width), take(7, queries * width), take(300, tokens * half));
        let weights = take(11, tokens * queries);
        let coefficients = take(19, tokens * chunks * s);
        let indices: Vec<u16> = (0..tokens * chunks * s).map(|i| (i * 7 % 13) as u16).collect();
        let run = |isa: Isa| {
            let (mut rotated, mut scores) = (keys.clone(), vec![0.0; tokens * queries]);
            isa.rotate(&mut rotated, &angles, &angles, half);
            isa.scores(&rotated, &q, width, &mut scores);
            isa.exponentials(&mut scores, &values[40..40 + queries]);
            let mut sums = vec![0.0; chunks * 13 * queries];
            isa.scatter(&mut sums, queries, chunks, &indices, &coefficients, &weights);
            let mut looked_up = vec![0.0; tokens * queries];
            isa.score_codes(
                &values[..chunks * 13 * queries], chunks, &indices, &coefficients, &mut looked_up, queries
            );
            let mut out = vec![0.0; queries * width];
            isa.gather(&mut out, width, &values[..13 * width], width, &sums[..13 * queries], queries);
            [bits(&rotated), bits(&scores), bits(&sums), bits(&looked_up), bits(&out)]
        };
        let expected = run(scalar());
        for isa in Isa::all() {
            prop_assert_eq!(&run(isa), &expected, "{:?}", isa);
        }
    }
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
fn exponentials_are_close_to_those_of_f64() {
    let x: Vec<f32> = (0..200_000).map(|i| i as f32 * 5.3e-4 - 87.0).chain([0.0, -0.0]).collect();
    for isa in Isa::all() {
        let mut y = x.clone();
        isa.exponentials(&mut y, &[0.0]);
        for (&x, &y) in x.iter().zip(&y) {
            let exact = f64::from(x).exp();
            assert!((f64::from(y) / exact - 1.0).abs() < 3.0 * f64::from(f32::EPSILON), "{isa:?} {x}: {y}");
        }
        let mut edges = [f32::NEG_INFINITY, -1e30, f32::NAN, 16.0];
        isa.exponentials(&mut edges, &[0.0]);
        assert!(
            edges[0] < 1e-37 && edges[1] < 1e-37 && edges[2].is_nan() && (edges[3] / 16f32.exp() - 1.0).abs() < 1e-6
        );
    }
}
