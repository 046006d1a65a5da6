//! SVDq: the singular vectors of a layer's keys before position embedding, all heads together.

use anyhow::Result;
use kvcsr_cache::schemes::svdq;
use kvcsr_codec::{CodebookSet, Kind, Table};
use kvcsr_neuraldict::peers::svdq::singular_basis;

use super::layer::Layer;

/// SVDq: mean, basis and deviations of a layer's keys.
pub(super) fn of_keys(cx: &Layer<'_>, set: &mut CodebookSet) -> Result<()> {
    let (rows, heads, d) = cx.vectors(Kind::Key)?;
    let n = heads * d;
    let basis = singular_basis(&rows, n)?;
    set.insert(cx.layer, Kind::Key, svdq::MEAN, Table::new(&[n], &basis.mean)?);
    set.insert(cx.layer, Kind::Key, svdq::BASIS, Table::new(&[n, n], &basis.vectors)?);
    set.insert(cx.layer, Kind::Key, svdq::DEVIATIONS, Table::new(&[n], &basis.deviations)?);
    Ok(())
}
