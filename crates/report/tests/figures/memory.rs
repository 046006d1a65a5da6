//! Figures of bytes by length.

use kvcsr_codec::Footprint;
use kvcsr_report::{
    FootprintRow, ReportError,
    figures::{FootprintLength, MemoryLength},
    memory,
    save::{self},
};

use crate::check;

#[test]
fn memory_length() {
    let rows = memory::paper_points();
    check::<MemoryLength>(
        &rows,
        &["Llama2-7B", "Llama3-8B", "SmolLM2-135M", "FP16", "CSR-4", "GB (log)", "30\u{2009}000"],
    );
}

#[test]
fn footprint_length() {
    let mut rows = Vec::new();
    for (model, bytes) in [("llama2-7b-chat", 524_288), ("llama3-8b-instruct", 131_072)] {
        for (scheme, share, dictionaries) in [("dense-f16", 16, 0), ("kivi-2", 3, 0), ("csr-4", 1, 100_663_296)] {
            rows.extend((1..=30).map(|thousand| {
                let footprint = Footprint { dense: bytes * thousand * 1000 * share / 16, ..Footprint::default() };
                FootprintRow {
                    tokens: thousand * 1000,
                    batch: 1,
                    nominal_bits: share as f64,
                    measured_bits: share as f64,
                    dictionaries,
                    ..FootprintRow::of(model, scheme, &footprint)
                }
            }));
        }
    }
    check::<FootprintLength>(&rows, &["llama2-7b-chat", "llama3-8b-instruct", "kivi-2", "csr-4", "GB", "tokens"]);
    assert!(matches!(save::svg::<FootprintLength>(&[]), Err(ReportError::Empty { .. })));
}
