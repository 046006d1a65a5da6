//! Files of the codec and of caches.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use kvcsr_codec::{
    CodebookSet, Coder, Dictionary, DictionaryGroup, DictionarySet, Kind, Odds, RangeEncoder, ShardHeader, ShardWriter,
    Table,
};

use super::Made;
use crate::place::Place;
use crate::targets::written_prompt;

fn written(place: &Place, write: impl FnOnce(&Path) -> Result<()>) -> Result<Vec<u8>> {
    let path = place.path("seed");
    write(&path)?;
    Ok(fs::read(path)?)
}

fn waves(n: usize) -> Vec<f32> {
    (0..n).map(|at| (at as f32 * 0.7).sin() + 0.1).collect()
}

pub(super) fn dictionaries(place: &Place) -> Result<Vec<Made>> {
    let group = |kind, layers: &[usize], chunks: usize| -> Result<DictionaryGroup> {
        let dictionary = Arc::new(Dictionary::normalised(4 / chunks, waves(6 * 4 / chunks))?);
        Ok(DictionaryGroup { kind, layers: layers.to_vec(), chunks, sparsity: 2, dictionary })
    };
    let groups = vec![group(Kind::Key, &[0, 1], 1)?, group(Kind::Value, &[0], 2)?, group(Kind::Value, &[1], 2)?];
    let provenance = BTreeMap::from([("model".to_owned(), "m".to_owned())]);
    let set = DictionarySet { head_dim: 4, groups, provenance };
    let one = DictionarySet { groups: set.groups[..1].to_vec(), provenance: BTreeMap::new(), ..set.clone() };
    Ok(vec![
        ("three-groups", written(place, |path| Ok(set.save(path)?))?),
        ("one-group", written(place, |path| Ok(one.save(path)?))?),
    ])
}

pub(super) fn codebooks(place: &Place) -> Result<Vec<Made>> {
    let mut set = CodebookSet::new("cq-8c8b", 2, 1, 4);
    set.provenance.insert("seed".to_owned(), "3".to_owned());
    set.insert(0, Kind::Key, "centroids", Table::new(&[2, 4], &waves(8))?);
    set.insert(1, Kind::Value, "mean", Table::new(&[4], &waves(4))?);
    Ok(vec![("two-tables", written(place, |path| Ok(set.save(path)?))?)])
}

pub(super) fn shards(place: &Place) -> Result<Vec<Made>> {
    let header = |tokens| ShardHeader {
        layer: 1,
        kind: Kind::Key,
        tokens,
        heads: 2,
        head_dim: 4,
        extra: BTreeMap::from([("corpus".to_owned(), "wiki".to_owned())]),
    };
    let shard = |tokens: usize| {
        written(place, |path| {
            let mut writer = ShardWriter::create(path, header(tokens))?;
            writer.append(&waves(8 * tokens))?;
            Ok(writer.finish()?)
        })
    };
    Ok(vec![("five-tokens", shard(5)?), ("no-tokens", shard(0)?)])
}

/// A layout, followed by rows: see the body of the target.
pub(super) fn codes() -> Vec<Made> {
    let rows = |head: [u8; 4], count: usize| -> Vec<u8> {
        let row = |at: usize| [&[at as u8][..], &((at as f32 * 0.3).cos() * 3.0).to_le_bytes()].concat();
        head.into_iter().chain((0..count).flat_map(row)).collect()
    };
    let mut coded = vec![0, 255, 0, 7];
    {
        let (mut coder, mut odds) = (RangeEncoder::new(&mut coded), Odds::default());
        for at in 0..400u32 {
            coder.bit(at.is_multiple_of(3), &mut odds);
            coder.plain(at & 7, 3);
        }
        coder.finish();
    }
    vec![
        ("paper", rows([0, 99, 3, 3], 40)),
        ("bytes", rows([1, 255, 0, 0], 90)),
        ("packed-f16", rows([2, 30, 7, 15], 64)),
        ("packed-int8", rows([4, 200, 3, 7], 280)),
        ("packed-int4", rows([6, 0, 1, 8], 140)),
        ("range-code", coded),
    ]
}

pub(super) fn prompts(place: &Place) -> Vec<Made> {
    vec![("twelve-tokens", written_prompt(place))]
}
