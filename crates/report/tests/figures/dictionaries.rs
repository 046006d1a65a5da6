//! Tests for figures of dictionaries: training, layers, planes.

use kvcsr_report::{
    DictionarySource, DivergenceRow, EpochRow, Kind, ReconstructionRow, ReportError, ScatterRow,
    figures::{LayerDivergence, LayerError, PromptScatter, RotaryScatter, TrainingLoss},
    save::{self, Figure},
};

use crate::{check, wobble};

fn by_layer() -> Vec<ReconstructionRow> {
    let mut rows = Vec::new();
    for layer in 0..30 {
        for (kind, chunks, base) in [(Kind::Key, 1, 0.12), (Kind::Value, 2, 0.45)] {
            for level in [4, 6, 8, 16] {
                for (dictionary, factor) in [(DictionarySource::NeuralDict, 1.0), (DictionarySource::KMeans, 1.15)] {
                    let relative = base * factor * (4.0 / level as f64).powf(0.8) * (0.8 + 0.4 * wobble(layer, chunks));
                    rows.push(ReconstructionRow {
                        layer,
                        kind,
                        dictionary,
                        sparsity: level / chunks,
                        chunks,
                        relative,
                        mse: relative,
                        vectors: 4096,
                    });
                }
            }
        }
    }
    rows
}

#[test]
fn layer_error() {
    let rows = by_layer();
    let svg = check::<LayerError>(
        &rows,
        &["Keys", "Values", "NeuralDict", "k-means only", "layer", "relative squared error"],
    );
    assert_eq!(svg.matches("CSR-16\n").count(), 2, "keys (16, 1) and values (8, 2) are one level");
    assert!(LayerError::caption(&rows).contains("240 of 240 pairs"));
}

fn epochs() -> Vec<EpochRow> {
    let mut rows = Vec::new();
    for (kind, base) in [(Kind::Key, 0.12), (Kind::Value, 0.42)] {
        for group in 0..12 {
            let start = base * (0.7 + 0.6 * wobble(group, 5));
            for epoch in 0..=20 {
                let heldout_relative = start * (0.8 + 0.2 * (-(epoch as f64) / 5.0).exp());
                rows.push(EpochRow {
                    group: format!("{kind}-{group}"),
                    kind,
                    layers: vec![2 * group, 2 * group + 1],
                    epoch,
                    mse: 1.0,
                    diversity: 0.01,
                    beta: 1.0,
                    train_relative: heldout_relative * 0.95,
                    heldout_relative,
                    dead_atoms: 3,
                    usage_entropy: 6.0,
                    seconds: 4.0,
                });
            }
        }
    }
    rows
}

#[test]
fn training_loss() {
    let rows = epochs();
    check::<TrainingLoss>(&rows, &["Keys, 12 groups", "Values, 12 groups", "median", "epoch"]);
    assert!(TrainingLoss::caption(&rows).contains("at epoch 20"));
}

#[test]
fn layer_divergence() {
    let rows: Vec<DivergenceRow> = Kind::ALL
        .into_iter()
        .flat_map(|kind| {
            (0..12).flat_map(move |layer| {
                (0..12).map(move |other| DivergenceRow {
                    kind,
                    layer,
                    other,
                    group: if kind == Kind::Key { layer / 3 } else { layer },
                    divergence: (layer.abs_diff(other) as f64 / 11.0).sqrt() * 0.69,
                })
            })
        })
        .collect();
    let svg = check::<LayerDivergence>(&rows, &["Keys: 4 groups", "Values: 12 groups", "nothing in common"]);
    // Only groups of several layers have boxes.
    assert_eq!(svg.matches("#D55E00").count(), 4);
    assert!(LayerDivergence::caption(&rows).contains("4 groups of keys, 12 of values"));
    assert!(matches!(save::svg::<LayerDivergence>(&[]), Err(ReportError::Empty { .. })));
}

fn scattered(panels: &[&str], groups: usize, label: &str) -> Vec<ScatterRow> {
    let mut rows = Vec::new();
    for (number, panel) in panels.iter().enumerate() {
        for group in 0..groups {
            for point in 0..60 {
                rows.push(ScatterRow {
                    panel: (*panel).to_owned(),
                    group,
                    label: format!("{label} {group}"),
                    x: wobble(point, group) + group as f64 * 0.2,
                    y: 40.0 * wobble(number, point),
                    variance: 0.25,
                });
            }
        }
    }
    rows
}

#[test]
fn prompt_scatter() {
    let panels = ["keys, layer 5", "values, layer 5", "keys, layer 28", "values, layer 28"];
    let svg = check::<PromptScatter>(&scattered(&panels, 6, "prompt"), &panels);
    // Six circles in the key, and sixty per group in each of four panels.
    assert_eq!(svg.matches("<circle").count(), 6 + 4 * 6 * 60);
    assert!(matches!(save::svg::<PromptScatter>(&[]), Err(ReportError::Empty { .. })));
}

#[test]
fn rotary_scatter() {
    let panels = ["before", "after"];
    let rows = scattered(&panels, 8, "positions");
    let svg = check::<RotaryScatter>(&rows, &["before", "after", "positions 7", "first component"]);
    assert_eq!(svg.matches("<circle").count(), 8 + 2 * 8 * 60);
    assert!(RotaryScatter::caption(&rows).contains("25 % (before), 25 % (after)"));
}
