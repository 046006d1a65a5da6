//! CommVQ: residual codebooks that commute with position embedding.

use anyhow::Result;
use kvcsr_cache::schemes::commvq;
use kvcsr_codec::{CodebookSet, Kind, Table};
use kvcsr_neuraldict::peers::commvq::{Annealing, train};

use super::layer::Layer;

/// CommVQ: learns codebooks for every head, from tokens that are evenly spread over the sample. The first tokens of texts are not
/// left out: they must be coded like any other.
pub(super) fn codebooks(cx: &Layer<'_>, set: &mut CodebookSet) -> Result<()> {
    let settings = cx.settings();
    let (rows, heads, d) = cx.vectors(Kind::Key)?;
    let all: Vec<&[f32]> = rows.chunks_exact(heads * d).collect();
    let wanted = settings.commvq_vectors.min(all.len());
    let steps = commvq::steps(2, d);
    let annealing =
        Annealing { rows: commvq::ROWS_PER_STEP, iterations: settings.commvq_iterations, ..Annealing::default() };
    let mut tables = Vec::with_capacity(heads * steps * commvq::ROWS_PER_STEP * d);
    for head in 0..heads {
        let (mut vectors, mut norms) = (Vec::with_capacity(wanted * d), Vec::with_capacity(wanted));
        for i in 0..wanted {
            let row = all[i * all.len() / wanted];
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            vectors.extend(row[head * d..(head + 1) * d].iter().map(|x| x / norm));
            norms.push(norm);
        }
        let rng = &mut cx.rng((1 << 20) + head as u64);
        for step in train(&mut vectors, &norms, d, steps, &annealing, rng)? {
            tables.extend_from_slice(step.codebook.rows());
        }
    }
    set.insert(cx.layer, Kind::Key, commvq::ROWS, Table::new(&[heads, steps, commvq::ROWS_PER_STEP, d], &tables)?);
    Ok(())
}
