//! Which layers share a dictionary: the paper's partitions `M_K` and `M_V` (section 2, observation
//! 3).

use kvcsr_codec::Kind;
use serde::{Deserialize, Serialize};

use crate::error::{NeuralDictError, Result};

/// A partition of a model's layers into groups of adjacent layers, one for keys and one for values.
///
/// Every layer is in exactly one group of each kind; groups follow the order of the layers. Reading
/// a partition from a file checks that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Partition")]
pub struct LayerGroups {
    key: Vec<Vec<usize>>,
    value: Vec<Vec<usize>>,
}

/// The serialised form, before it is checked.
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
    /// [`NeuralDictError::Groups`] if the layers of a partition, read in order, are not `0, 1, 2,
    /// ..`, a group is empty, or keys and values cover a different number of layers.
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

    /// No merging: each of `layers` layers is a group of its own.
    #[must_use]
    pub fn per_layer(layers: usize) -> Self {
        let singles: Vec<Vec<usize>> = (0..layers).map(|layer| vec![layer]).collect();
        Self { key: singles.clone(), value: singles }
    }

    /// The groups of one kind, each a run of adjacent layers.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &[Vec<usize>] {
        match kind {
            Kind::Key => &self.key,
            Kind::Value => &self.value,
        }
    }

    /// All groups, keys first: one dictionary is trained for each.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &[usize])> {
        [Kind::Key, Kind::Value]
            .into_iter()
            .flat_map(|kind| self.of(kind).iter().map(move |layers| (kind, layers.as_slice())))
    }

    /// Number of the group that `layer` belongs to, among the groups of `kind`.
    #[must_use]
    pub fn group_of(&self, layer: usize, kind: Kind) -> Option<usize> {
        self.of(kind).iter().position(|layers| layers.contains(&layer))
    }

    /// Number of layers covered.
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
}
