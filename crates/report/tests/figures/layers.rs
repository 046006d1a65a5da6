//! Figures of a model's layers: key biases, logits, and what atoms leave.

use kvcsr_report::{
    EnergyRow, KeyBiasRow, Kind, LogitRow, ReportError,
    figures::{EnergyLeft, KeyBias, LogitCorrelation},
    save::{self, Figure},
};

use crate::{check, wobble};

#[test]
fn key_bias() {
    let row = |layer: usize| {
        let (without, bias) = (8.0 + 4.0 * wobble(layer, 1), if layer == 0 { 300.0 } else { 5.0 });
        KeyBiasRow { layer, keys: f64::hypot(without, bias), without, bias }
    };
    let rows: Vec<KeyBiasRow> = (0..28).map(row).collect();
    let svg = check::<KeyBias>(&rows, &["keys less bias", "root mean square length", "layer"]);
    // A dot for each layer on each of three lines.
    assert_eq!(svg.matches("<circle").count(), 3 * 28);
    let caption = KeyBias::caption(&rows);
    assert!(caption.contains("most in layer 0: keys are ") && caption.contains("times as long"), "{caption}");
    assert!(matches!(save::svg::<KeyBias>(&[]), Err(ReportError::Empty { .. })));
}

#[test]
fn logit_correlation() {
    let mut rows = Vec::new();
    for (at, scheme) in ["turboquant-4", "turboquant-4+centre", "q4_0", "q4_0+centre", "csr+@2"].into_iter().enumerate()
    {
        for layer in 0..28 {
            let lost = if layer == 3 && scheme == "turboquant-4" { 0.9 } else { 0.01 * (1.0 + wobble(layer, at)) };
            rows.push(LogitRow {
                scheme: scheme.to_owned(),
                layer,
                relative: 0.01 / (1 + layer) as f64,
                correlation: 1.0 - lost,
            });
        }
    }
    let words =
        ["Keys", "Logits", "1 - correlation", "relative squared error", "turboquant-4\n", "csr+@2\n", "+centre"];
    let svg = check::<LogitCorrelation>(&rows, &words);
    assert_eq!(svg.matches("q4_0\n").count(), 2, "both lines of a colour share a label in each panel");
    let caption = LogitCorrelation::caption(&rows);
    assert!(caption.contains("turboquant-4: correlation 0.9") && caption.contains("0.100 in layer 3."), "{caption}");
    // An exact cache has no place on a logarithmic axis, and is drawn at its lower end.
    rows.push(LogitRow { scheme: "dense".to_owned(), layer: 0, relative: 0.0, correlation: 1.0 });
    assert!(save::svg::<LogitCorrelation>(&rows).unwrap().contains("dense\n"));
    assert!(matches!(save::svg::<LogitCorrelation>(&[]), Err(ReportError::Empty { .. })));
}

#[test]
fn energy_left() {
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        for (by, factor) in [("atoms", 0.3), ("components", 0.5), ("mean and components", 0.1)] {
            for count in [0, 1, 2, 4, 8] {
                let left = factor / (1 + count) as f64;
                rows.push(EnergyRow { layer: 5, kind, by: by.to_owned(), count, left });
            }
        }
    }
    let words = [
        "layer 5",
        "Keys",
        "Values",
        "atoms\n",
        "mean and components\n",
        "share of the energy left",
        "of a head vector",
    ];
    let svg = check::<EnergyLeft>(&rows, &words);
    assert_eq!(svg.matches("<circle").count(), rows.len());
    assert!(EnergyLeft::caption(&rows).contains("layer 5's held-out vectors"));
    rows[0].layer = 6;
    assert!(matches!(save::svg::<EnergyLeft>(&rows), Err(ReportError::Mixed { field: "layer", .. })));
    assert!(matches!(save::svg::<EnergyLeft>(&[]), Err(ReportError::Empty { .. })));
}
