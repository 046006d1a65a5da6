//! Positions of ticks, and the format of numbers.

/// Ticks with a round step (1, 2, 2.5 or 5 times a power of ten) that give between `about / 2` and `about` intervals.
pub(crate) fn linear_ticks(low: f64, high: f64, about: f64) -> Vec<(f64, String)> {
    let rough = (high - low) / about;
    let power = 10.0_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough * 0.99).unwrap_or(rough);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|k| k as f64 * step).map(|at| (at, number(at))).collect()
}

/// Uses the pattern per decade with the fewest ticks that still gives at least four. On a narrow range the ticks are linear. On a
/// wide range they are every n-th power of ten.
pub(crate) fn log_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let whole: Vec<f64> = decades.clone().map(|k| 10.0_f64.powi(k)).filter(|at| (low..=high).contains(at)).collect();
    let patterns: [&[f64]; 4] = [&[1.0], &[1.0, 3.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0]];
    let mut ticks = whole;
    for pattern in patterns {
        if ticks.len() >= 4 {
            break;
        }
        ticks = decades
            .clone()
            .flat_map(|k| pattern.iter().map(move |m| m * 10.0_f64.powi(k)))
            .filter(|at| (low..=high).contains(at))
            .collect();
    }
    if ticks.len() < 4 {
        return linear_ticks(low, high, 7.0);
    }
    let every = ticks.len().div_ceil(8);
    ticks.into_iter().step_by(every.max(1)).map(|at| (at, number(at))).collect()
}

/// Formats a number for readers: `0.05`, `2.5`, `30 000`, `1e−4`, `3e−5`.
pub fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs();
    if magnitude < 1e-3 {
        let mut power = magnitude.log10().floor() as i32;
        let mut leading = (value / 10.0_f64.powi(power) * 10.0).round() / 10.0;
        if leading.abs() >= 10.0 {
            (leading, power) = (leading / 10.0, power + 1);
        }
        // The included font has no superscript minus sign.
        return format!("{leading}e\u{2212}{}", -power);
    }
    if magnitude >= 10_000.0 {
        return grouped(value.round() as i64);
    }
    let decimals = (3 - magnitude.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Groups of three digits, separated by thin spaces.
fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = if value < 0 { "\u{2212}".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{2009}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_short_and_exact() {
        let shown: Vec<String> =
            [0.0, 0.05, 2.5, 16.0, 1000.0, 30_000.0, 1e-4, 3e-5, 0.999_999e-4].into_iter().map(number).collect();
        assert_eq!(
            shown,
            ["0", "0.05", "2.5", "16", "1000", "30\u{2009}000", "1e\u{2212}4", "3e\u{2212}5", "1e\u{2212}4"]
        );
    }
}
