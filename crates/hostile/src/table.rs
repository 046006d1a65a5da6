//! The counts, as the table in docs/RELIABILITY.md.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::campaign::State;
use crate::targets::ALL;

/// The file with the committed counts.
#[must_use]
pub fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("executions.json")
}

/// The document that contains the table, and the name of the table's markers.
#[must_use]
pub fn document() -> (PathBuf, &'static str) {
    (Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/RELIABILITY.md"), "hostile")
}

/// One row per target.
#[must_use]
pub fn markdown(state: &State) -> String {
    let mut out = "| target | what is read | executions | taken | bound on memory | most of it used | panics of libraries caught | finds open |\n\
                   |---|---|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    let mut all = 0;
    for target in ALL {
        let counts = state.targets.get(target.name).cloned().unwrap_or_default();
        all += counts.executions;
        let taken = 100.0 * counts.taken as f64 / counts.executions.max(1) as f64;
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {taken:.1} % | {} x + {} KiB | {:.0} % | {} | {} |",
            target.name,
            target.what,
            grouped(counts.executions),
            target.multiple,
            target.constant >> 10,
            100.0 * counts.share,
            counts.caught.values().sum::<u64>(),
            counts.finds.len(),
        );
    }
    let _ = writeln!(out, "| all | | {} | | | | | |", grouped(all));
    out
}

/// A number with spaces between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!([0, 999, 1000, 12_345_678].map(grouped), ["0", "999", "1 000", "12 345 678"]);
    }
}
