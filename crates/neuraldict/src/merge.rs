//! Which layers share a dictionary: the paper's partitions `M_K` and `M_V` (section 3.2, observation 3).

use kvcsr_codec::Kind;
use serde::{Deserialize, Serialize};

use crate::error::{NeuralDictError, Result};

/// A partition of a model's layers into groups of adjacent layers, one for keys and one for values.
///
/// Every layer is in exactly one group of each kind, and the groups are in the order of the layers. A partition that is
/// read from a file is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Partition")]
pub struct LayerGroups {
    key: Vec<Vec<usize>>,
    value: Vec<Vec<usize>>,
}

/// The serialised form, which is not checked yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Partition {
    key: Vec<Vec<usize>>,
    value: Vec<Vec<usize>>,
}

impl TryFrom<Partition> for LayerGroups {
    type Error = NeuralDictError;

    fn try_from(partition: Partition) -> Result<Self> {
        Self::new(partition.key, partition.value)
    }
}

impl LayerGroups {
    /// Takes both partitions and checks them.
    ///
    /// # Errors
    /// [`NeuralDictError::Groups`] if the layers of a partition, read in order, are not `0, 1, 2, ..`, a group is empty, or
    /// keys and values have different numbers of layers.
    pub fn new(key: Vec<Vec<usize>>, value: Vec<Vec<usize>>) -> Result<Self> {
        for (kind, groups) in [(Kind::Key, &key), (Kind::Value, &value)] {
            if let Some(at) = groups.iter().position(Vec::is_empty) {
                return Err(NeuralDictError::Groups { kind, reason: format!("group {at} has no layers") });
            }
            for (expected, &found) in groups.iter().flatten().enumerate() {
                if found != expected {
                    return Err(NeuralDictError::Groups {
                        kind,
                        reason: format!(
                            "expected layer {expected}, found {found}: groups hold adjacent layers in order"
                        ),
                    });
                }
            }
        }
        let groups = Self { key, value };
        let (keys, values) = (groups.count(Kind::Key), groups.count(Kind::Value));
        if keys != values {
            let reason = format!("{values} layers, but the key groups cover {keys}");
            return Err(NeuralDictError::Groups { kind: Kind::Value, reason });
        }
        Ok(groups)
    }

    /// Does not merge: each of the `layers` layers is a group.
    #[must_use]
    pub fn per_layer(layers: usize) -> Self {
        let singles: Vec<Vec<usize>> = (0..layers).map(|layer| vec![layer]).collect();
        Self { key: singles.clone(), value: singles }
    }

    /// Greedy merging from layer 0 upward. A layer joins the previous group if two conditions then hold: every pair of layers
    /// in the group has a divergence of at most `delta_1`, and the divergences of neighbouring layers in the group sum to at
    /// most `delta_2`. Otherwise the layer starts a new group. `divergence` is `(layers, layers)` row-major.
    #[must_use]
    pub fn greedy(divergence: &[f64], layers: usize, delta_1: f64, delta_2: f64) -> Vec<Vec<usize>> {
        let between = |a: usize, b: usize| divergence[a * layers + b];
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut sum = 0.0;
        for layer in 0..layers {
            if let Some(group) = groups.last_mut() {
                let grown = sum + between(layer - 1, layer);
                if grown <= delta_2 && group.iter().all(|&other| between(other, layer) <= delta_1) {
                    group.push(layer);
                    sum = grown;
                    continue;
                }
            }
            groups.push(vec![layer]);
            sum = 0.0;
        }
        groups
    }

    /// The smallest `delta_1` for which [`LayerGroups::greedy`] gives at most `groups` groups, without a limit on the sum.
    #[must_use]
    pub fn threshold_for(divergence: &[f64], layers: usize, groups: usize) -> f64 {
        let mut candidates = divergence.to_vec();
        candidates.sort_by(f64::total_cmp);
        candidates.dedup();
        let enough = |delta: f64| Self::greedy(divergence, layers, delta, f64::INFINITY).len() <= groups.max(1);
        candidates.into_iter().find(|&delta| enough(delta)).unwrap_or(0.0)
    }

    /// The smallest `delta_2` for which [`LayerGroups::greedy`] gives at most `groups` groups, without a limit on single pairs.
    /// The groups have more similar sizes than those of [`LayerGroups::threshold_for`].
    #[must_use]
    pub fn sum_threshold_for(divergence: &[f64], layers: usize, groups: usize) -> f64 {
        let mut candidates = vec![0.0];
        for first in 0..layers {
            // Add up in the same order as `greedy`, so that equal sums compare equal.
            let mut sum = 0.0;
            for layer in first + 1..layers {
                sum += divergence[(layer - 1) * layers + layer];
                candidates.push(sum);
            }
        }
        candidates.sort_by(f64::total_cmp);
        candidates.dedup();
        let enough = |delta: f64| Self::greedy(divergence, layers, f64::INFINITY, delta).len() <= groups.max(1);
        candidates.into_iter().find(|&delta| enough(delta)).unwrap_or(0.0)
    }

    /// The groups of one kind. Each is a sequence of adjacent layers.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &[Vec<usize>] {
        match kind {
            Kind::Key => &self.key,
            Kind::Value => &self.value,
        }
    }

    /// All groups, keys first. One dictionary is trained for each group.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &[usize])> {
        [Kind::Key, Kind::Value]
            .into_iter()
            .flat_map(|kind| self.of(kind).iter().map(move |layers| (kind, layers.as_slice())))
    }

    /// Number of the group of `layer` among the groups of `kind`.
    #[must_use]
    pub fn group_of(&self, layer: usize, kind: Kind) -> Option<usize> {
        self.of(kind).iter().position(|layers| layers.contains(&layer))
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.count(Kind::Key)
    }

    fn count(&self, kind: Kind) -> usize {
        self.of(kind).iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn per_layer_has_one_group_for_each_layer_and_kind() {
        let groups = LayerGroups::per_layer(3);
        assert_eq!(groups.layers(), 3);
        let all: Vec<(Kind, Vec<usize>)> = groups.iter().map(|(kind, layers)| (kind, layers.to_vec())).collect();
        assert_eq!(all.len(), 6);
        assert_eq!(all[1], (Kind::Key, vec![1]));
        assert_eq!(all[5], (Kind::Value, vec![2]));
    }

    #[test]
    fn kinds_may_be_partitioned_differently() {
        let groups = LayerGroups::new(vec![vec![0, 1], vec![2]], vec![vec![0], vec![1, 2]]).unwrap();
        assert_eq!(groups.group_of(1, Kind::Key), Some(0));
        assert_eq!(groups.group_of(1, Kind::Value), Some(1));
        assert_eq!(groups.group_of(3, Kind::Key), None);
        let json = serde_json::to_string(&groups).unwrap();
        assert_eq!(json, r#"{"key":[[0,1],[2]],"value":[[0],[1,2]]}"#);
        assert_eq!(serde_json::from_str::<LayerGroups>(&json).unwrap(), groups);
    }

    #[test]
    fn gaps_overlaps_empty_groups_and_unequal_covers_are_errors() {
        for (json, hint) in [
            (r#"{"key":[[0],[2]],"value":[[0],[1]]}"#, "expected layer 1, found 2"),
            (r#"{"key":[[0,1],[1]],"value":[[0],[1]]}"#, "expected layer 2, found 1"),
            (r#"{"key":[[0],[]],"value":[[0]]}"#, "group 1 has no layers"),
            (r#"{"key":[[0,1]],"value":[[0]]}"#, "1 layers, but the key groups cover 2"),
        ] {
            let message = serde_json::from_str::<LayerGroups>(json).unwrap_err().to_string();
            assert!(message.contains(hint), "{message}");
        }
    }

    /// Four layers. Layers 0, 1 and 2 are close to their neighbours, 0 and 2 are farther apart, and 3 is far from all others.
    const FOUR: [f64; 16] = [0.0, 0.1, 0.25, 0.6, 0.1, 0.0, 0.1, 0.6, 0.25, 0.1, 0.0, 0.6, 0.6, 0.6, 0.6, 0.0];

    #[test]
    fn greedy_merging_obeys_both_thresholds() {
        let greedy = |d1, d2| LayerGroups::greedy(&FOUR, 4, d1, d2);
        assert_eq!(greedy(0.0, 9.0), [vec![0], vec![1], vec![2], vec![3]]);
        assert_eq!(greedy(0.2, 9.0), [vec![0, 1], vec![2], vec![3]], "0 and 2 are further apart than 0.2");
        assert_eq!(greedy(0.3, 9.0), [vec![0, 1, 2], vec![3]]);
        assert_eq!(greedy(0.3, 0.15), [vec![0, 1], vec![2], vec![3]], "0.1 + 0.1 is more than 0.15");
        assert_eq!(greedy(0.6, 9.0), [vec![0, 1, 2, 3]]);
    }

    #[test]
    fn a_target_number_finds_the_smallest_threshold() {
        assert_eq!(LayerGroups::threshold_for(&FOUR, 4, 4), 0.0);
        assert_eq!(LayerGroups::threshold_for(&FOUR, 4, 3), 0.1);
        assert_eq!(LayerGroups::threshold_for(&FOUR, 4, 2), 0.25);
        assert_eq!(LayerGroups::threshold_for(&FOUR, 4, 1), 0.6);
    }

    #[test]
    fn a_target_number_by_the_sum_gives_even_groups() {
        // Six layers. Neighbours have a divergence of 0.3, except the first two, which have 0.2.
        let mut matrix = [0.6; 36];
        for layer in 0..5 {
            let near = if layer == 0 { 0.2 } else { 0.3 };
            (matrix[layer * 6 + layer + 1], matrix[(layer + 1) * 6 + layer]) = (near, near);
        }
        let delta = LayerGroups::sum_threshold_for(&matrix, 6, 3);
        assert_eq!(delta, 0.3);
        let groups = LayerGroups::greedy(&matrix, 6, f64::INFINITY, delta);
        assert_eq!(groups, [vec![0, 1], vec![2, 3], vec![4, 5]]);
        assert_eq!(LayerGroups::sum_threshold_for(&matrix, 6, 6), 0.0);
        let all = LayerGroups::sum_threshold_for(&matrix, 6, 1);
        assert_eq!(LayerGroups::greedy(&matrix, 6, f64::INFINITY, all).len(), 1);
    }
}
