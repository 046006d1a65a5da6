//! Next-token distributions, and the divergence between two of them.

/// The comparison of two next-token distributions at one position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// `-ln q(next token)`.
    pub nll: f64,
    /// `KL(p || q)` in nats.
    pub kl: f64,
    /// Whether both have the same most likely token.
    pub agree: bool,
}

/// `ln softmax(x)`. The normaliser is summed in f64.
pub(super) fn log_softmax(mut row: Vec<f32>) -> Vec<f32> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    let shift = f64::from(max) + sum.ln();
    for x in &mut row {
        *x = (f64::from(*x) - shift) as f32;
    }
    row
}

/// Compares `q` with `p`, both `ln` probabilities `(V)`. `next` is the token that follows.
pub(super) fn compare(p: &[f32], q: &[f32], next: usize) -> Position {
    let kl = p.iter().zip(q).map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q))).sum::<f64>();
    // NaN stays NaN, because it must not look like a perfect score.
    Position { nll: -f64::from(q[next]), kl: if kl < 0.0 { 0.0 } else { kl }, agree: argmax(p) == argmax(q) }
}

fn argmax(x: &[f32]) -> usize {
    x.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_that_are_no_numbers_are_no_perfect_score() {
        let p = log_softmax(vec![1.0, 2.0]);
        let q = log_softmax(vec![f32::NAN, 2.0]);
        assert!(compare(&p, &q, 0).kl.is_nan());
    }

    #[test]
    fn comparison_of_two_distributions_by_hand() {
        let p = log_softmax(vec![0.0, (3f32).ln()]); // 1/4, 3/4
        let q = log_softmax(vec![(3f32).ln(), 0.0]); // 3/4, 1/4
        let c = compare(&p, &q, 1);
        assert!((c.nll - 4f64.ln()).abs() < 1e-6);
        assert!((c.kl - 0.5 * 3f64.ln()).abs() < 1e-6); // (3/4 - 1/4) ln 3
        assert!(!c.agree);
        let same = compare(&p, &p, 0);
        assert!(same.kl == 0.0 && same.agree);
    }
}
