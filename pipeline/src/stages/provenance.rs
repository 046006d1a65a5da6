//! Where a dictionary set came from: written with it, checked when it is loaded.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kvcsr_codec::{DictionarySet, Kind};

use crate::stage::Run;
use crate::stages::{text_and_model_inputs, train::train_config};

/// Entries that every set of the train stage has.
const REQUIRED: [&str; 10] = [
    "method",
    "kvcsr",
    "model",
    "model_sha256",
    "corpora",
    "corpora_sha256",
    "calibration",
    "seed",
    "train",
    "heldout_relative",
];

/// The entries for a set of this run whose groups ended with the held-out relative errors `losses`.
pub fn of(run: &Run, method: &str, losses: Vec<f64>) -> Result<BTreeMap<String, String>> {
    let hashes = text_and_model_inputs(run)?;
    let hash = |id: &str| hashes.get(id).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let corpora: Vec<String> = run.config.corpora.iter().map(|id| hash(id)).collect();
    let effective = Kind::ALL
        .into_iter()
        .map(|kind| {
            let config = train_config(&run.config.train, kind, run.config.seed, &run.config.device)?;
            Ok((kind.to_string(), serde_json::to_value(config)?))
        })
        .collect::<Result<serde_json::Map<_, _>>>()?;
    let entries = [
        ("method", method.to_owned()),
        ("kvcsr", env!("CARGO_PKG_VERSION").to_owned()),
        ("model", run.config.model.clone()),
        ("model_sha256", hash("model")),
        ("corpora", run.config.corpora.join(" ")),
        ("corpora_sha256", corpora.join(" ")),
        ("calibration", run.finished("calibrate")?.digest),
        ("seed", run.config.seed.to_string()),
        ("weighting", serde_json::to_string(&run.config.train.weighting)?.trim_matches('"').to_owned()),
        ("train", serde_json::to_string(&effective)?),
        ("heldout_relative", serde_json::to_string(&losses)?),
    ];
    Ok(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A set of the train stage, with its provenance checked against this run.
///
/// # Errors
/// The file does not load, lacks an entry, or was trained for another model.
pub fn load(run: &Run, path: &Path) -> Result<DictionarySet> {
    let set = DictionarySet::load(path)?;
    let model_sha256 = text_and_model_inputs(run)?.get("model").and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    check(&set, &run.config.model, &model_sha256).with_context(|| path.display().to_string())?;
    Ok(set)
}

fn check(set: &DictionarySet, model: &str, model_sha256: &str) -> Result<()> {
    let entry = |key: &str| set.provenance.get(key).map_or("", String::as_str);
    for key in REQUIRED {
        ensure!(!entry(key).is_empty(), "provenance has no `{key}`: train again");
    }
    for (key, expected) in [("model", model), ("model_sha256", model_sha256)] {
        if entry(key) != expected {
            bail!(
                "provenance `{key}` is `{}`, expected `{expected}`: the dictionaries are another model's",
                entry(key)
            );
        }
    }
    let losses: Vec<f64> = serde_json::from_str(entry("heldout_relative")).context("provenance `heldout_relative`")?;
    ensure!(
        losses.len() == set.groups.len() && losses.iter().all(|l| l.is_finite() && *l >= 0.0),
        "provenance `heldout_relative` has {} errors for {} groups",
        losses.len(),
        set.groups.len()
    );
    serde_json::from_str::<BTreeMap<Kind, kvcsr_neuraldict::TrainConfig>>(entry("train"))
        .context("provenance `train`")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use kvcsr_codec::{Dictionary, DictionaryGroup};

    use super::*;

    #[test]
    fn what_is_missing_or_another_models_is_named() {
        let dictionary = Arc::new(Dictionary::new(1, vec![1.0]).unwrap());
        let group = DictionaryGroup { kind: Kind::Key, layers: vec![0], chunks: 1, sparsity: 1, dictionary };
        let config = serde_json::to_string(&kvcsr_neuraldict::TrainConfig::default()).unwrap();
        let mut provenance: BTreeMap<String, String> =
            REQUIRED.into_iter().map(|key| (key.to_owned(), "x".to_owned())).collect();
        provenance.insert("heldout_relative".into(), "[0.5]".into());
        provenance.insert("train".into(), format!("{{\"key\": {config}}}"));
        let set = DictionarySet { head_dim: 1, groups: vec![group], provenance };
        check(&set, "x", "x").unwrap();

        let message = |change: &dyn Fn(&mut BTreeMap<String, String>)| {
            let mut changed = set.clone();
            change(&mut changed.provenance);
            format!("{:#}", check(&changed, "x", "x").unwrap_err())
        };
        for key in REQUIRED {
            let found = message(&|p| {
                p.remove(key);
            });
            assert!(found.contains(&format!("`{key}`")), "{found}");
        }
        let found = message(&|p| drop(p.insert("model_sha256".into(), "y".into())));
        assert!(found.contains("another model's"), "{found}");
        let found = message(&|p| drop(p.insert("heldout_relative".into(), "[0.5, 0.1]".into())));
        assert!(found.contains("2 errors for 1 groups"), "{found}");
        let found = message(&|p| drop(p.insert("train".into(), "{\"key\": {\"atms\": 3}}".into())));
        assert!(found.contains("`train`"), "{found}");
    }
}
