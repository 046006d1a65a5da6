//! Figures of codes: errors, patterns, usage, coefficients.

use kvcsr_report::{
    CoefficientRow, DictionarySource, Kind, PatternRow, ReconstructionRow, ReportError, UsageRow,
    figures::{AtomUsage, CoefficientHistogram, SparsityError, SparsityPattern},
    save::{self, Figure},
};

use crate::{check, wobble};

fn by_sparsity() -> Vec<ReconstructionRow> {
    let mut rows = Vec::new();
    for (kind, chunks, base) in [(Kind::Key, 1, 0.4), (Kind::Value, 2, 0.8)] {
        for sparsity in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32] {
            for (dictionary, power) in [(DictionarySource::NeuralDict, 0.9), (DictionarySource::KMeans, 0.8)] {
                let relative = base * (sparsity as f64).powf(-power);
                rows.push(ReconstructionRow {
                    layer: 12,
                    kind,
                    dictionary,
                    sparsity,
                    chunks,
                    relative,
                    mse: relative,
                    vectors: 4096,
                });
            }
        }
    }
    rows
}

#[test]
fn sparsity_error() {
    let mut rows = by_sparsity();
    check::<SparsityError>(
        &rows,
        &["layer 12", "Keys", "Values, 2 chunks", "NeuralDict", "k-means", "non-zeros per chunk"],
    );
    rows.retain(|row| row.kind == Kind::Key);
    assert!(!save::svg::<SparsityError>(&rows).unwrap().contains("Values"));
    rows[0].layer = 3;
    assert!(matches!(save::svg::<SparsityError>(&rows), Err(ReportError::Mixed { field: "layer", .. })));
}

#[test]
fn sparsity_pattern() {
    let mut rows = Vec::new();
    for (kind, chunks) in [(Kind::Key, 1), (Kind::Value, 2)] {
        for token in 0..96 {
            for rank in 0..8 {
                rows.push(PatternRow {
                    layer: 15,
                    kind,
                    head: 1,
                    token,
                    chunk: rank % chunks,
                    atom: (wobble(token * chunks, rank) * 512.0) as usize / 4 * 2,
                    atoms: 512,
                    coefficient: (8.0 - rank as f32) * if rank % 3 == 0 { -1.0 } else { 1.0 },
                });
            }
        }
    }
    let svg = check::<SparsityPattern>(&rows, &["layer 15, head 1", "Keys", "Values", "token", "atom"]);
    assert_eq!(svg.matches("#D55E00").count(), 2 * 96 * 3, "one dot for each negative coefficient");
    let caption = SparsityPattern::caption(&rows);
    assert!(
        caption.contains("96 tokens") && caption.contains("of 512 atoms") && caption.contains("Chunks"),
        "{caption}"
    );
    rows[0].head = 0;
    assert!(matches!(save::svg::<SparsityPattern>(&rows), Err(ReportError::Mixed { field: "head", .. })));
}

#[test]
fn atom_usage() {
    let row =
        |kind, layer, atom: usize| UsageRow { kind, layer, atom, uses: if atom < 250 { 4000 / (atom + 1) } else { 0 } };
    let rows: Vec<UsageRow> = Kind::ALL
        .into_iter()
        .flat_map(|kind| [3, 20].into_iter().flat_map(move |layer| (0..256).map(move |atom| row(kind, layer, atom))))
        .collect();
    check::<AtomUsage>(&rows, &["layer 3", "layer 20", "share of all picks", "Keys", "Values"]);
    let caption = AtomUsage::caption(&rows);
    assert!(caption.contains("6 of 256 atoms unused") && caption.contains("of 5.5"), "{caption}");
    assert!(matches!(save::svg::<AtomUsage>(&[]), Err(ReportError::Empty { .. })));
}

#[test]
fn coefficient_histogram() {
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        for step in 1..=8 {
            for bin in 0..40 {
                let low = bin as f64 / 20.0 - 1.0;
                let size = (low + 0.025).abs();
                let share = (-(size - 0.6 / step as f64).powi(2) * 40.0).exp() / 10.0;
                rows.push(CoefficientRow { layer: 3, kind, step, low, high: low + 0.05, share });
            }
        }
    }
    check::<CoefficientHistogram>(&rows, &["step 1", "step 8", "Keys", "Values", "share of coefficients"]);
    assert!(CoefficientHistogram::caption(&rows).contains("(keys, step 4)"));
    assert!(matches!(save::svg::<CoefficientHistogram>(&[]), Err(ReportError::Empty { .. })));
}
