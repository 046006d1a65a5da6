//! What notebooks share: finding a run, its dictionaries and held-out vectors, coding them, and showing results under a cell.
//!
//! `use kvcsr_report::notebook::*;` brings [`Shown`] into scope, so that the last value of a cell is shown as HTML.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use kvcsr_codec::{Dictionary, DictionarySet, Encoder, Footprint, Kind, Shard, SparseCodes};

use crate::{
    html,
    page::escaped,
    records::{DivergenceRow, PatternRow, UsageRow},
};

/// The error of a notebook's cell: anything, shown as text.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The run that notebooks read: that of profile `$KVCSR_PROFILE`, else the full run `smol` if it is there, else `smoke`.
///
/// # Errors
/// If there is no run with trained dictionaries, with the command that makes one.
pub fn run_folder() -> Outcome<PathBuf> {
    find_run(Path::new("../data/runs"), env::var("KVCSR_PROFILE").ok().as_deref())
}

fn find_run(runs: &Path, asked: Option<&str>) -> Outcome<PathBuf> {
    let needed = ["train/dictionaries.safetensors", "train/kmeans.safetensors", "calibrate/heldout"];
    let whole = |profile: &str| needed.iter().all(|file| runs.join(profile).join(file).exists());
    match asked {
        Some(profile) if whole(profile) => Ok(runs.join(profile)),
        Some(profile) => Err(format!(
            "profile `{profile}` has no trained dictionaries in {}; make them with `just train profile={profile}`",
            runs.join(profile).display()
        )
        .into()),
        None => match ["smol", "smoke"].into_iter().find(|profile| whole(profile)) {
            Some(profile) => Ok(runs.join(profile)),
            None => Err("no trained dictionaries yet; make them with `just smoke` or `just reproduce`".into()),
        },
    }
}

/// The trained dictionaries of a run.
///
/// # Errors
/// If the file is missing or damaged.
pub fn neuraldict(run: &Path) -> Outcome<DictionarySet> {
    Ok(DictionarySet::load(run.join("train/dictionaries.safetensors"))?)
}

/// The k-means centroids that training started from.
///
/// # Errors
/// If the file is missing or damaged.
pub fn kmeans(run: &Path) -> Outcome<DictionarySet> {
    Ok(DictionarySet::load(run.join("train/kmeans.safetensors"))?)
}

/// One layer's vectors of text that training never saw.
///
/// # Errors
/// If the file is missing or damaged.
pub fn heldout(run: &Path, layer: usize, kind: Kind) -> Outcome<Shard> {
    Ok(Shard::open(run.join(format!("calibrate/heldout/layer-{layer:02}-{kind}s.safetensors")))?)
}

/// Codes of the first `tokens` held-out tokens of one layer, all heads, at the given level (keys `level`, values `level / chunks` per chunk).
pub struct Coded {
    /// The layer.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// Tokens coded.
    pub tokens: usize,
    /// Key-value heads.
    pub heads: usize,
    /// Chunks per head vector.
    pub chunks: usize,
    /// Rows in the order token, head, chunk.
    pub codes: SparseCodes,
    /// What the indices point at.
    pub dictionary: Arc<Dictionary>,
}

/// Codes held-out vectors of one layer and kind.
///
/// # Errors
/// If the set has no dictionary for the layer, or files are missing.
pub fn code(run: &Path, set: &DictionarySet, layer: usize, kind: Kind, level: usize, tokens: usize) -> Outcome<Coded> {
    let group = set.group(layer, kind).ok_or_else(|| format!("layer {layer} has no dictionary of {kind}s"))?;
    let shard = heldout(run, layer, kind)?;
    let (width, tokens) = (group.dictionary.width(), tokens.min(shard.tokens()));
    let rows = tokens * shard.heads() * group.chunks;
    let mut vectors = vec![0.0; rows * width];
    shard.read(width, 0..rows, &mut vectors)?;
    let mut codes = SparseCodes::new((level / group.chunks).max(1));
    codes.encode_append(&Encoder::new(group.dictionary.clone()), &vectors)?;
    let (heads, chunks, dictionary) = (shard.heads(), group.chunks, group.dictionary.clone());
    Ok(Coded { layer, kind, tokens, heads, chunks, codes, dictionary })
}

impl Coded {
    /// The atoms of one head, token by token: the rows of [`crate::figures::SparsityPattern`].
    pub fn pattern(&self, head: usize) -> Vec<PatternRow> {
        let mut rows = Vec::new();
        for token in 0..self.tokens {
            for chunk in 0..self.chunks {
                let (atoms, coefficients) = self.codes.row((token * self.heads + head) * self.chunks + chunk);
                rows.extend(atoms.iter().zip(coefficients).map(|(&atom, coefficient)| PatternRow {
                    layer: self.layer,
                    kind: self.kind,
                    head,
                    token,
                    chunk,
                    atom: usize::from(atom),
                    atoms: self.dictionary.len(),
                    coefficient: coefficient.to_f32(),
                }));
            }
        }
        rows
    }

    /// How often each atom is used, all heads together: the rows of [`crate::figures::AtomUsage`].
    pub fn usage(&self) -> Vec<UsageRow> {
        let mut uses = vec![0; self.dictionary.len()];
        for &atom in self.codes.indices() {
            uses[usize::from(atom)] += 1;
        }
        let (layer, kind) = (self.layer, self.kind);
        uses.into_iter().enumerate().map(|(atom, uses)| UsageRow { layer, kind, atom, uses }).collect()
    }

    /// The pairs of atoms that most often serve one vector together: both atoms, and the number of vectors. At most `count` pairs.
    pub fn pairs(&self, count: usize) -> Vec<(usize, usize, usize)> {
        let mut seen = std::collections::BTreeMap::<(u16, u16), usize>::new();
        for row in self.codes.indices().chunks(self.codes.sparsity()) {
            let mut atoms = row.to_vec();
            atoms.sort_unstable();
            atoms.dedup();
            for (i, &a) in atoms.iter().enumerate() {
                for &b in &atoms[i + 1..] {
                    *seen.entry((a, b)).or_default() += 1;
                }
            }
        }
        let mut pairs: Vec<_> = seen.into_iter().map(|((a, b), n)| (usize::from(a), usize::from(b), n)).collect();
        pairs.sort_by(|x, y| y.2.cmp(&x.2).then(x.cmp(y)));
        pairs.truncate(count);
        pairs
    }

    /// Mean share of a vector's atoms that the vector `lag` tokens earlier, of the same head and chunk, also uses.
    pub fn reuse(&self, lag: usize) -> f64 {
        let step = lag * self.heads * self.chunks;
        let rows = self.codes.rows();
        if rows <= step {
            return 0.0;
        }
        let shared: f64 = (step..rows)
            .map(|row| {
                let (now, before) = (self.codes.row(row).0, self.codes.row(row - step).0);
                now.iter().filter(|atom| before.contains(atom)).count() as f64 / now.len() as f64
            })
            .sum();
        shared / (rows - step) as f64
    }
}

/// The same divergences with other groups: greedy from layer 0 upward, as long as every pair within a group differs by at most `delta_1` and the
/// divergences of neighbours add up to at most `delta_2` (paper, section 3.2). What `just merge` does with these thresholds.
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

/// Shown as HTML under a notebook's cell when it is the last value of the cell.
pub trait Shown {
    /// The HTML.
    fn html(&self) -> String;

    /// Called by the evcxr kernel.
    fn evcxr_display(&self) {
        println!("EVCXR_BEGIN_CONTENT text/html\n{}\nEVCXR_END_CONTENT", self.html());
    }
}

/// A Markdown table or text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Markdown(String);

impl Markdown {
    /// Shows `text`. It is only borrowed: the kernel shows nothing of a cell whose last value consumes a variable.
    pub fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Shown for Markdown {
    fn html(&self) -> String {
        html::markdown(&self.0)
    }
}

impl Shown for DictionarySet {
    fn html(&self) -> String {
        let mut text = format!(
            "{} dictionaries for heads of {} channels\n\n| kind | layers | atoms | width | chunks | trained at | bytes |\n|---|---|--:|--:|--:|--:|--:|\n",
            self.groups.len(),
            self.head_dim
        );
        for group in &self.groups {
            let d = &group.dictionary;
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | s = {} | {} |",
                group.kind,
                crate::csv::spaced(&group.layers),
                d.len(),
                d.width(),
                group.chunks,
                group.sparsity,
                d.bytes()
            );
        }
        html::markdown(&text)
    }
}

impl Shown for Footprint {
    fn html(&self) -> String {
        let mut text = String::from("| part | bytes | share |\n|---|--:|--:|\n");
        for (part, bytes) in self.parts().filter(|(_, bytes)| *bytes > 0) {
            let _ = writeln!(text, "| {part} | {bytes} | {:.1} % |", 100.0 * bytes as f64 / self.total() as f64);
        }
        let _ = writeln!(text, "| **all** | {} | |", self.total());
        html::markdown(&text)
    }
}

impl Shown for SparseCodes {
    fn html(&self) -> String {
        const ROWS: usize = 8;
        let mut text =
            format!("{} rows of {} atoms\n\n| row | coefficient × atom |\n|--:|---|\n", self.rows(), self.sparsity());
        for row in 0..self.rows().min(ROWS) {
            let (atoms, coefficients) = self.row(row);
            let terms: Vec<String> =
                atoms.iter().zip(coefficients).map(|(atom, c)| format!("{:+.3} × {atom}", c.to_f32())).collect();
            let _ = writeln!(text, "| {row} | {} |", terms.join(", "));
        }
        html::markdown(&text)
    }
}

/// Both figures and tables of a report's page, under a cell.
impl Shown for crate::page::Page {
    fn html(&self) -> String {
        format!(
            "<iframe style=\"width:100%;height:40rem;border:0\" srcdoc=\"{}\"></iframe>",
            escaped(&html::html(self))
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn coded(indices: &[u16], coefficients: &[f32], heads: usize) -> Coded {
        let mut codes = SparseCodes::new(2);
        codes.append(indices, coefficients);
        let dictionary = Arc::new(Dictionary::normalised(2, vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, -1.0]).unwrap());
        let tokens = codes.rows() / heads;
        Coded { layer: 3, kind: Kind::Key, tokens, heads, chunks: 1, codes, dictionary }
    }

    #[test]
    fn patterns_usage_pairs_and_reuse_by_hand() {
        // Two tokens of two heads. Head 0: atoms {0, 1} then {1, 2}; head 1: {3, 3} then {0, 1}.
        let coded = coded(&[0, 1, 3, 3, 1, 2, 0, 1], &[1.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 2);
        let head: Vec<(usize, usize, f32)> =
            coded.pattern(0).iter().map(|r| (r.token, r.atom, r.coefficient)).collect();
        assert_eq!(head, [(0, 0, 1.0), (0, 1, -2.0), (1, 1, 5.0), (1, 2, 6.0)]);
        let uses: Vec<usize> = coded.usage().iter().map(|r| r.uses).collect();
        assert_eq!(uses, [2, 3, 1, 2]);
        assert_eq!(coded.pairs(5), [(0, 1, 2), (1, 2, 1)]);
        // Head 0 shares one of two atoms with the token before, head 1 none.
        assert_eq!(coded.reuse(1), 0.25);
        assert_eq!(coded.reuse(9), 0.0);
    }

    #[test]
    fn groups_obey_both_thresholds() {
        // Layers on a line: 0 and 1 are near, 2 is near 1 but not 0.
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
    fn values_are_shown_as_tables() {
        let coded = coded(&[0, 1], &[1.0, -2.0], 1);
        let html = coded.codes.html();
        assert!(html.contains("<table>") && html.contains("-2.000 × 1"), "{html}");
        let footprint = Footprint { indices: 30, coefficients: 10, ..Footprint::default() };
        assert!(footprint.html().contains("75.0 %"), "{}", footprint.html());
    }

    #[test]
    fn a_missing_run_says_how_to_make_it() {
        let runs = tempfile::tempdir().unwrap();
        let error = |asked| find_run(runs.path(), asked).unwrap_err().to_string();
        assert!(error(None).contains("just smoke"));
        assert!(error(Some("mine")).contains("just train profile=mine"));
    }
}
