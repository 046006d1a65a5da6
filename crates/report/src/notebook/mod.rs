//! Common functions of notebooks: find a run, read its dictionaries and held-out vectors, encode them, and show results under a
//! cell.
//!
//! `use kvcsr_report::notebook::*;` brings [`Shown`] into scope. The last value of a cell is then shown as HTML.

mod coded;
mod shown;

use std::{
    env,
    path::{Path, PathBuf},
};

use kvcsr_codec::{CodecError, DictionarySet, Kind, Shard};

pub use self::{
    coded::{Coded, code, code_with, reconstruction},
    shown::{Html, Markdown, Shown},
};
use crate::{
    aggregate::{self, Statistics},
    records::{DivergenceRow, HeldoutRow, SchemeSummary, csv},
};

/// The result type of a notebook cell. Any error is possible and is shown as text.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The run that notebooks read. If `$KVCSR_PROFILE` is set, this is the run of that profile. Otherwise it is the full run `smol`
/// if it exists, else `smoke`.
///
/// # Errors
/// If there is no run with trained dictionaries. The error names the command that makes one.
pub fn run_folder() -> Outcome<PathBuf> {
    find_run(Path::new("../data/runs"), env::var("KVCSR_PROFILE").ok().as_deref())
}

/// The run of one profile, or a named run of it (`smol+big`), for notebooks that are about its model.
///
/// # Errors
/// As [`run_folder`].
pub fn run_of(profile: &str) -> Outcome<PathBuf> {
    find_run(Path::new("../data/runs"), Some(profile))
}

fn find_run(runs: &Path, asked: Option<&str>) -> Outcome<PathBuf> {
    let needed = ["train/dictionaries.safetensors", "train/kmeans.safetensors", "calibrate/heldout"];
    let whole = |profile: &str| needed.iter().all(|file| file_of(&runs.join(profile), file).exists());
    match asked {
        Some(profile) if whole(profile) => Ok(runs.join(profile)),
        Some(profile) => Err(format!(
            "profile `{profile}` has no trained dictionaries in {}; make them with `just train profile={}`",
            runs.join(profile).display(),
            profile.replacen('+', " run=", 1),
        )
        .into()),
        None => match ["smol", "smoke"].into_iter().find(|profile| whole(profile)) {
            Some(profile) => Ok(runs.join(profile)),
            None => Err("no trained dictionaries yet; make them with `just smoke` or `just reproduce`".into()),
        },
    }
}

/// The path of a file or folder of a run. If a named run (`smol+big`) does not have it, this is the path in the run of its
/// profile (`smol`).
pub fn file_of(run: &Path, file: &str) -> PathBuf {
    let own = run.join(file);
    let label = run.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('+'));
    match label {
        Some((profile, _)) if !own.exists() => run.with_file_name(profile).join(file),
        _ => own,
    }
}

/// The trained dictionaries of a run.
///
/// # Errors
/// If the file is missing or damaged.
pub fn neuraldict(run: &Path) -> Result<DictionarySet, CodecError> {
    DictionarySet::load(file_of(run, "train/dictionaries.safetensors"))
}

/// The k-means centroids from which training started.
///
/// # Errors
/// If the file is missing or damaged.
pub fn kmeans(run: &Path) -> Result<DictionarySet, CodecError> {
    DictionarySet::load(file_of(run, "train/kmeans.safetensors"))
}

/// One layer's vectors of text that was not used for training.
///
/// # Errors
/// If the file is missing or damaged.
pub fn heldout(run: &Path, layer: usize, kind: Kind) -> Result<Shard, CodecError> {
    Shard::open(file_of(run, &format!("calibrate/heldout/layer-{layer:02}-{kind}s.safetensors")))
}

/// The first `tokens` held-out tokens of one layer, `(T, Hkv, D)`, and the number of tokens read.
///
/// # Errors
/// If the file is missing or damaged.
pub fn heldout_vectors(run: &Path, layer: usize, kind: Kind, tokens: usize) -> Result<(Vec<f32>, usize), CodecError> {
    let shard = heldout(run, layer, kind)?;
    let (width, rows) = (shard.head_dim(), tokens.min(shard.tokens()) * shard.heads());
    let mut vectors = vec![0.0; rows * width];
    shard.read(width, 0..rows, &mut vectors)?;
    Ok((vectors, rows / shard.heads()))
}

/// The comparison of schemes.
pub struct Compared {
    /// One row per scheme, context and domain. `all` is one of the domains.
    pub rows: Vec<SchemeSummary>,
    /// Where the rows come from, as a sentence.
    pub source: String,
}

/// The rows of `just compare`: the published ones, or those of the first run that has them. If it was never run, the published
/// results of `just evaluate`. Those contain CSR and uncompressed caches only, and no times of decoding.
///
/// # Errors
/// If files are missing or damaged.
pub fn compared() -> Outcome<Compared> {
    comparison(Path::new("../data"))
}

fn comparison(data: &Path) -> Outcome<Compared> {
    let places = ["results/smol/compare.csv", "runs/smol/report/compare.csv", "runs/smoke/report/compare.csv"];
    if let Some(path) = places.into_iter().map(|place| data.join(place)).find(|path| path.is_file()) {
        let source = format!("reading {}", path.display());
        return Ok(Compared { rows: csv::read(&path)?, source });
    }
    let documents: Vec<HeldoutRow> = csv::read(&data.join("results/smol/documents.csv"))?;
    let rows = aggregate::summarise(&documents, Statistics::MEANS)?;
    let source = "`just compare` has not been run: these are the results of `just evaluate`, CSR and exact caches only";
    Ok(Compared { rows, source: source.to_owned() })
}

/// Number of tokens of each text in a run's calibration vectors. The texts follow each other in the shards.
///
/// # Errors
/// If the run's record is missing or not valid.
pub fn sequence_length(run: &Path) -> Outcome<usize> {
    let path = file_of(run, "calibrate/manifest.json");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let record: serde_json::Value = serde_json::from_str(&text)?;
    let length = record.pointer("/recipe/parameters/sequence").or_else(|| record.pointer("/parameters/sequence"));
    let length = length.and_then(serde_json::Value::as_u64).filter(|&length| length > 0);
    Ok(length.ok_or_else(|| format!("{}: no parameter `sequence`", path.display()))? as usize)
}

/// The same divergences with other groups. Layers are merged greedily from layer 0 upward, as long as every pair within a group
/// differs by at most `delta_1` and the divergences of neighbours sum to at most `delta_2` (paper, section 3.2). `just merge`
/// does this with these thresholds.
pub fn regrouped(rows: &[DivergenceRow], delta_1: f64, delta_2: f64) -> Vec<DivergenceRow> {
    let mut rows = rows.to_vec();
    for kind in Kind::ALL {
        let divergence: std::collections::HashMap<(usize, usize), f64> =
            rows.iter().filter(|row| row.kind == kind).map(|row| ((row.layer, row.other), row.divergence)).collect();
        let between = |a: usize, b: usize| divergence.get(&(a, b)).copied().unwrap_or(f64::INFINITY);
        let layers = divergence.keys().map(|(layer, _)| layer + 1).max().unwrap_or(0);
        let mut group_of = Vec::with_capacity(layers);
        let (mut group, mut first, mut sum) = (0, 0, 0.0);
        for layer in 0..layers {
            let step = if layer == first { 0.0 } else { between(layer - 1, layer) };
            if (first..layer).all(|member| between(member, layer) <= delta_1) && sum + step <= delta_2 {
                sum += step;
            } else {
                (group, first, sum) = (group + 1, layer, 0.0);
            }
            group_of.push(group);
        }
        for row in rows.iter_mut().filter(|row| row.kind == kind) {
            row.group = group_of[row.layer];
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::records::DictionarySource;

    #[test]
    fn groups_obey_both_thresholds() {
        // Layers on a line: 0 and 1 are near each other, 2 is near 1 but not near 0.
        let at = [0.0, 0.2, 0.4, 2.0_f64];
        let mut rows = Vec::new();
        for layer in 0..4 {
            rows.extend((0..4).map(|other| DivergenceRow {
                kind: Kind::Key,
                layer,
                other,
                group: layer,
                divergence: (at[layer] - at[other]).abs(),
            }));
        }
        let groups = |delta_1, delta_2| {
            let of = regrouped(&rows, delta_1, delta_2);
            (0..4).map(|layer| of[4 * layer].group).collect::<Vec<_>>()
        };
        assert_eq!(groups(0.3, 9.0), [0, 0, 1, 2]);
        assert_eq!(groups(0.5, 9.0), [0, 0, 0, 1]);
        assert_eq!(groups(0.5, 0.3), [0, 0, 1, 2]);
        assert_eq!(groups(0.0, 0.0), [0, 1, 2, 3]);
    }

    #[test]
    fn a_missing_run_says_how_to_make_it() {
        let runs = tempfile::tempdir().unwrap();
        let error = |asked| find_run(runs.path(), asked).unwrap_err().to_string();
        assert!(error(None).contains("just smoke"));
        assert!(error(Some("mine")).contains("just train profile=mine"));
        assert!(error(Some("mine+big")).contains("just train profile=mine run=big"));
    }

    #[test]
    fn a_named_run_has_the_files_of_its_profile_and_its_own_first() {
        let runs = tempfile::tempdir().unwrap();
        for file in ["smol/calibrate/heldout", "smol/train", "smol+big/train"] {
            std::fs::create_dir_all(runs.path().join(file)).unwrap();
        }
        for file in ["smol+big/train/dictionaries.safetensors", "smol+big/train/kmeans.safetensors"] {
            std::fs::write(runs.path().join(file), "").unwrap();
        }
        let run = find_run(runs.path(), Some("smol+big")).unwrap();
        assert_eq!(run, runs.path().join("smol+big"));
        assert_eq!(file_of(&run, "train"), run.join("train"));
        assert_eq!(file_of(&run, "calibrate/heldout"), runs.path().join("smol/calibrate/heldout"));
        assert!(find_run(runs.path(), Some("smol")).is_err());
    }

    #[test]
    fn comparisons_come_first_and_evaluations_stand_in() {
        let data = tempfile::tempdir().unwrap();
        let document = HeldoutRow {
            id: "wiki-0".to_owned(),
            domain: "wiki".to_owned(),
            scheme: "csr-8".to_owned(),
            dictionary: DictionarySource::KMeans,
            context: 100,
            windows: 1,
            scored: 10,
            nll_sum: 20.0,
            kl_sum: 2.5,
            kl_tail: 1.0,
            top1_agree: 9,
            far: 3,
            far_kl_sum: 0.5,
            hidden_kl_sum: 2.0,
            nominal_bits: 4.0,
            measured_bits: 4.5,
            shared_bytes: 5,
            stored_bytes: 4,
            channels: 8,
            encode_ms: 1.5,
            decode_ms_per_token: None,
        };
        let exact = HeldoutRow {
            scheme: "dense".to_owned(),
            dictionary: DictionarySource::None,
            kl_sum: 0.0,
            ..document.clone()
        };
        csv::write(&data.path().join("results/smol/documents.csv"), &[document, exact]).unwrap();
        let stand_in = comparison(data.path()).unwrap();
        assert!(stand_in.source.contains("has not been run"), "{}", stand_in.source);
        let row = &stand_in.rows[0];
        assert_eq!(
            (row.label().as_str(), row.domain.as_str(), row.kl, row.measured_bits),
            ("csr-8@kmeans", "all", 0.25, 4.5)
        );
        csv::write(&data.path().join("results/smol/compare.csv"), &stand_in.rows[..1]).unwrap();
        let own = comparison(data.path()).unwrap();
        assert!(own.source.ends_with("results/smol/compare.csv"), "{}", own.source);
        assert_eq!((own.rows.len(), own.rows[0].kl, own.rows[0].kl_low), (1, 0.25, None));
    }

    #[test]
    fn the_length_of_sequences_is_in_the_record() {
        let run = tempfile::tempdir().unwrap();
        let file = run.path().join("calibrate/manifest.json");
        assert!(sequence_length(run.path()).unwrap_err().to_string().contains("manifest.json"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, r#"{"recipe": {"parameters": {"sequence": 512}}}"#).unwrap();
        assert_eq!(sequence_length(run.path()).unwrap(), 512);
        std::fs::write(&file, "{}").unwrap();
        assert!(sequence_length(run.path()).unwrap_err().to_string().contains("`sequence`"));
    }
}
