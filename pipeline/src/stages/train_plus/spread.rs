//! How far the tokens of a text lie apart. Errors of `allocate` are relative to this.

use kvcsr_cache::schemes::csr_plus::AROUND;

/// The mean over tokens of the squared distance from the mean of their text, with weighted channels. `rows` `(n, width)` are
/// texts of `length` tokens each. The first tokens of a text do not count: schemes keep them exact, and they can lie far from the
/// others.
pub fn of_texts(rows: &[f32], weights: &[f64], length: usize) -> f64 {
    let width = weights.len();
    let (mut sum, mut count) = (0.0, 0);
    for text in rows.chunks(length * width) {
        let tokens = text.len() / width;
        let skipped = if tokens > 2 * AROUND.sinks { AROUND.sinks } else { 0 };
        let coded = || text[skipped * width..].chunks_exact(width);
        let mut mean = vec![0f64; width];
        for token in coded() {
            mean.iter_mut().zip(token).for_each(|(mean, &x)| *mean += f64::from(x));
        }
        mean.iter_mut().for_each(|mean| *mean /= (tokens - skipped) as f64);
        for token in coded() {
            let squares = token.iter().zip(&mean).map(|(&x, mean)| (f64::from(x) - mean).powi(2));
            sum += squares.zip(weights).map(|(square, weight)| weight * square).sum::<f64>();
        }
        count += tokens - skipped;
    }
    sum / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_tokens_and_what_texts_have_in_common_do_not_count() {
        // Two texts of ten tokens with different means; the first four tokens lie far from the others.
        let mut rows = Vec::new();
        for mean in [100.0, -50.0] {
            rows.extend([1e4; 8]);
            for sign in [1.0, -1.0, 1.0, -1.0, 1.0, -1.0] {
                rows.extend([mean + sign, mean - 2.0 * sign]);
            }
        }
        let spread = of_texts(&rows, &[1.0, 0.5], 10);
        assert!((spread - (1.0 + 0.5 * 4.0)).abs() < 1e-9, "{spread}");
        // A text that is hardly longer than the first tokens counts whole; the last text may be cut.
        assert!((of_texts(&rows[8..14], &[1.0, 0.0], 10) - 8.0 / 9.0).abs() < 1e-6);
    }
}
