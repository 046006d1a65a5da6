//! What notebooks show of codes, and vectors as points in a plane.

use serde::{Deserialize, Serialize};

use crate::Kind;

/// One atom in one token's code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PatternRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// The key-value head.
    pub head: usize,
    /// The token's position.
    pub token: usize,
    /// The chunk of the head vector.
    pub chunk: usize,
    /// The atom.
    pub atom: usize,
    /// Atoms of the dictionary.
    pub atoms: usize,
    /// Its coefficient.
    pub coefficient: f32,
}

/// How often one atom is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UsageRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// The atom.
    pub atom: usize,
    /// Times that it was picked.
    pub uses: usize,
}

/// How often coefficients of a size are picked at one step of pursuit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoefficientRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// The step of pursuit that picked the atom, from 1.
    pub step: usize,
    /// Lower end of the bin: coefficient over the length of the vector that it codes, -1 to 1.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Share of the step's coefficients that lie in the bin.
    pub share: f64,
}

/// One vector's point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScatterRow {
    /// The panel it stands in, and that panel's heading.
    pub panel: String,
    /// What it is coloured by: the number of the prompt, or of the group of positions.
    pub group: usize,
    /// The group in words.
    pub label: String,
    /// Coordinate along the first principal component of the panel's vectors.
    pub x: f64,
    /// Along the second.
    pub y: f64,
    /// Share of the panel's variance that lies in the plane.
    pub variance: f64,
}
