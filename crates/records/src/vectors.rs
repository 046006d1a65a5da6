//! Data about codes and layers for notebooks, and vectors as points in a plane.

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
    /// Number of atoms of the dictionary.
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
    /// How often the atom was picked.
    pub uses: usize,
}

/// How often coefficients of a size are picked in one step of matching pursuit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoefficientRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// The step of matching pursuit that picked the atom, from 1.
    pub step: usize,
    /// Lower end of the bin, from -1 to 1. Values are coefficients divided by the length of the encoded vector.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Fraction of the step's coefficients that are in the bin.
    pub share: f64,
}

/// A vector as a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScatterRow {
    /// The panel that shows the point, and the heading of that panel.
    pub panel: String,
    /// The group that sets the colour: the number of the prompt, or of the group of positions.
    pub group: usize,
    /// The name of the group.
    pub label: String,
    /// Coordinate along the first principal component of the panel's vectors.
    pub x: f64,
    /// Coordinate along the second principal component.
    pub y: f64,
    /// Fraction of the panel's variance that is in the plane.
    pub variance: f64,
}

/// How long one layer's keys are before position embedding, with and without the bias of their projection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyBiasRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Root mean square of the lengths of its keys, over tokens and heads.
    pub keys: f64,
    /// The same of the keys less the bias of their head.
    pub without: f64,
    /// The same of the biases, over heads.
    pub bias: f64,
}

/// What a scheme does to the keys and to the logits of attention of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogitRow {
    /// The scheme.
    pub scheme: String,
    /// The layer, counted from 0.
    pub layer: usize,
    /// `sum |k - k'|^2 / sum |k|^2` over keys.
    pub relative: f64,
    /// Mean over queries of the correlation, -1 to 1, between the logits of a query with exact keys and with the scheme's.
    pub correlation: f64,
}

/// What some numbers for each vector leave of the energy of one layer's vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnergyRow {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// What vectors are made of, in words.
    pub by: String,
    /// How many of them each head vector has.
    pub count: usize,
    /// `sum |x - x'|^2 / sum |x|^2`.
    pub left: f64,
}
