//! Where a dictionary set came from: written with it, checked when it is loaded.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kvcsr_cache::Geometry;
use kvcsr_codec::{DictionarySet, Kind};
use kvcsr_neuraldict::TrainConfig;

use crate::models::{self, Opened};
use crate::paths::Paths;
use crate::sources::{SourceKind, Sources};
use crate::stage::Run;

/// Entry that identifies the model.
const MODEL_SHA256: &str = "model_sha256";
/// Entries that every set of the train stages has.
const REQUIRED: [&str; 10] = [
    "method",
    "kvcsr",
    "model",
    MODEL_SHA256,
    "corpora",
    "corpora_sha256",
    "calibration",
    "seed",
    "train",
    "heldout_relative",
];

/// How the vectors of one kind were trained.
pub struct Training<'c> {
    pub kind: Kind,
    pub config: &'c TrainConfig,
    /// Whether vectors counted by the attention they get.
    pub weighted: bool,
}

/// The entries for a set of this run. `trained` says how its keys and its values were trained; `losses` are the final held-out
/// relative errors of its groups.
pub fn of(run: &Run, trained: [Training<'_>; 2], method: &str, losses: Vec<f64>) -> Result<BTreeMap<String, String>> {
    let sources = Sources::load(&run.paths.root)?;
    let hash = |id: &String| Ok(sources.get(id, SourceKind::Text)?.sha256.clone());
    let corpora = run.config.corpora.iter().map(hash).collect::<Result<Vec<String>>>()?;
    let effective = trained
        .iter()
        .map(|Training { kind, config, .. }| Ok((kind.to_string(), serde_json::to_value(config)?)))
        .collect::<Result<serde_json::Map<_, _>>>()?;
    let entries = [
        ("method", method.to_owned()),
        ("kvcsr", env!("CARGO_PKG_VERSION").to_owned()),
        ("model", run.config.model.clone()),
        (MODEL_SHA256, models::digest(&run.config.model, &run.paths)?),
        ("corpora", run.config.corpora.join(" ")),
        ("corpora_sha256", corpora.join(" ")),
        ("calibration", run.finished("calibrate")?.digest),
        ("seed", run.config.seed.to_string()),
        ("weighting", weighting(&trained)),
        ("train", serde_json::to_string(&effective)?),
        ("heldout_relative", serde_json::to_string(&losses)?),
    ];
    Ok(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// How vectors were weighted: one word if it is the same for both kinds, else both are named.
fn weighting(trained: &[Training<'_>; 2]) -> String {
    let [keys, values] = trained.each_ref().map(|trained| if trained.weighted { "attention" } else { "none" });
    if keys == values { keys.to_owned() } else { format!("keys {keys}, values {values}") }
}

/// The model that dictionaries must belong to.
pub struct Owner {
    content: String,
    geometry: Geometry,
}

impl Owner {
    /// The model of a run.
    pub fn of(run: &Run, geometry: Geometry) -> Result<Self> {
        Ok(Self { content: models::digest(&run.config.model, &run.paths)?, geometry })
    }

    /// A model opened by name.
    pub fn opened(model: &Opened, paths: &Paths, geometry: Geometry) -> Result<Self> {
        Ok(Self { content: model.content(paths)?, geometry })
    }

    /// The model's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A set that a stage made.
    ///
    /// # Errors
    /// If the file does not load, lacks an entry, does not serve every layer, or was trained for another model. The error names
    /// the file.
    pub fn load(&self, path: &Path) -> Result<DictionarySet> {
        let set = DictionarySet::load(path)?;
        check(&set).with_context(|| path.display().to_string())?;
        if let Some(problem) = self.others(&set) {
            bail!("{}: {problem}", path.display());
        }
        covers(&set, self.geometry, path)?;
        Ok(set)
    }

    /// If the set names another model, a sentence that says so.
    pub fn others(&self, set: &DictionarySet) -> Option<String> {
        let found = set.provenance.get(MODEL_SHA256)?;
        let model = set.provenance.get("model").map_or("", String::as_str);
        (*found != self.content).then(|| {
            format!(
                "provenance `{MODEL_SHA256}` is `{found}` (model `{model}`), expected `{}`: the dictionaries are another model's",
                self.content
            )
        })
    }
}

/// Checks that `set`, read from `path`, has a dictionary for the keys and for the values of every layer.
pub fn covers(set: &DictionarySet, geometry: Geometry, path: &Path) -> Result<()> {
    set.validate_for(geometry.layers, geometry.head_dim)
        .with_context(|| format!("{} does not serve a model of {} layers", path.display(), geometry.layers))
}

fn check(set: &DictionarySet) -> Result<()> {
    let entry = |key: &str| set.provenance.get(key).map_or("", String::as_str);
    for key in REQUIRED {
        ensure!(!entry(key).is_empty(), "provenance has no `{key}`: train again");
    }
    let losses: Vec<f64> = serde_json::from_str(entry("heldout_relative")).context("provenance `heldout_relative`")?;
    ensure!(
        losses.len() == set.groups.len() && losses.iter().all(|l| l.is_finite() && *l >= 0.0),
        "provenance `heldout_relative` has {} errors for {} groups",
        losses.len(),
        set.groups.len()
    );
    serde_json::from_str::<BTreeMap<Kind, TrainConfig>>(entry("train")).context("provenance `train`")?;
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
        let config = serde_json::to_string(&TrainConfig::default()).unwrap();
        let mut provenance: BTreeMap<String, String> =
            REQUIRED.into_iter().map(|key| (key.to_owned(), "x".to_owned())).collect();
        provenance.insert("heldout_relative".into(), "[0.5]".into());
        provenance.insert("train".into(), format!("{{\"key\": {config}}}"));
        let set = DictionarySet { head_dim: 1, groups: vec![group], provenance };
        check(&set).unwrap();

        let message = |change: &dyn Fn(&mut BTreeMap<String, String>)| {
            let mut changed = set.clone();
            change(&mut changed.provenance);
            format!("{:#}", check(&changed).unwrap_err())
        };
        for key in REQUIRED {
            let found = message(&|p| {
                p.remove(key);
            });
            assert!(found.contains(&format!("`{key}`")), "{found}");
        }
        let found = message(&|p| drop(p.insert("heldout_relative".into(), "[0.5, 0.1]".into())));
        assert!(found.contains("2 errors for 1 groups"), "{found}");
        let found = message(&|p| drop(p.insert("train".into(), "{\"key\": {\"atms\": 3}}".into())));
        assert!(found.contains("`train`"), "{found}");
    }
    #[test]
    fn another_models_set_and_one_that_lacks_a_layer_are_refused_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set.safetensors");
        let dictionary = Arc::new(Dictionary::new(1, vec![1.0]).unwrap());
        let group = |kind, layer| DictionaryGroup {
            kind,
            layers: vec![layer],
            chunks: 1,
            sparsity: 1,
            dictionary: dictionary.clone(),
        };
        let config = serde_json::to_string(&TrainConfig::default()).unwrap();
        let mut provenance: BTreeMap<String, String> =
            REQUIRED.into_iter().map(|key| (key.to_owned(), "x".to_owned())).collect();
        provenance.insert("train".into(), format!("{{\"key\": {config}}}"));
        let owner = |content: &str| Owner {
            content: content.to_owned(),
            geometry: Geometry { layers: 2, kv_heads: 1, head_dim: 1 },
        };
        let mut saved = |groups: Vec<DictionaryGroup>| {
            provenance.insert("heldout_relative".into(), format!("{:?}", vec![0.5; groups.len()]));
            DictionarySet { head_dim: 1, groups, provenance: provenance.clone() }.save(&path).unwrap();
        };
        let whole = || [Kind::Key, Kind::Value].into_iter().flat_map(|kind| [group(kind, 0), group(kind, 1)]);
        saved(whole().collect());
        owner("x").load(&path).unwrap();
        let other = format!("{:#}", owner("y").load(&path).unwrap_err());
        assert!(other.contains("another model's") && other.contains("set.safetensors"), "{other}");
        saved(whole().take(3).collect());
        let gap = format!("{:#}", owner("x").load(&path).unwrap_err());
        for part in ["set.safetensors", "layer 1, value", "expected a dictionary, found none"] {
            assert!(gap.contains(part), "{gap}");
        }
        saved(whole().chain([group(Kind::Key, 2)]).collect());
        let beyond = format!("{:#}", owner("x").load(&path).unwrap_err());
        assert!(beyond.contains("set.safetensors") && beyond.contains("layer 2"), "{beyond}");
    }
}
