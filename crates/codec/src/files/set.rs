//! Dictionary sets: all offline dictionaries of one model, on disk and in memory.
//!
//! A set is a safetensors file. It has tensors `group.{g}.atoms`, f32 `(N, width)`, and one metadata string `kvcsr`: JSON
//! `{format: 1, head_dim, groups: [{kind, layers, chunks, sparsity}], provenance}`. Layers of one group share a
//! dictionary (paper section 3.2, observation 3).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::files::{Planned, Reader, Writer};
use crate::{CodecError, Dictionary, Kind};

const METADATA_KEY: &str = "kvcsr";
const FORMAT: u32 = 1;

/// One dictionary and the merged layers that share it.
#[derive(Clone, Debug, PartialEq)]
pub struct DictionaryGroup {
    /// Keys or values.
    pub kind: Kind,
    /// The layers that use the dictionary, at least one.
    pub layers: Vec<usize>,
    /// Number of chunks that a head vector is cut into, the paper's `s_n`. `chunks * width == head_dim`.
    pub chunks: usize,
    /// Atoms per vector that the dictionary was trained with, the paper's `s`.
    pub sparsity: usize,
    /// The atoms, shared by all chunks of all layers.
    pub dictionary: Arc<Dictionary>,
}

/// The dictionaries of a model. For each kind, at most one of them serves a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct DictionarySet {
    /// Channels per head, the paper's `d_h`.
    pub head_dim: usize,
    /// One group per dictionary.
    pub groups: Vec<DictionaryGroup>,
    /// Origin of the set: model, corpus, seeds and similar data.
    pub provenance: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    head_dim: usize,
    groups: Vec<ManifestGroup>,
    provenance: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestGroup {
    kind: Kind,
    layers: Vec<usize>,
    chunks: usize,
    sparsity: usize,
}

fn tensor_name(group: usize) -> String {
    format!("group.{group}.atoms")
}

impl DictionarySet {
    /// Writes the set under a temporary name, then renames it.
    ///
    /// # Errors
    /// If [`DictionarySet::load`] would refuse the set, or the disk refuses.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CodecError> {
        let path = path.as_ref();
        let manifest = Manifest {
            format: FORMAT,
            head_dim: self.head_dim,
            groups: self
                .groups
                .iter()
                .map(|group| ManifestGroup {
                    kind: group.kind,
                    layers: group.layers.clone(),
                    chunks: group.chunks,
                    sparsity: group.sparsity,
                })
                .collect(),
            provenance: self.provenance.clone(),
        };
        manifest.check(path)?;
        let mut planned = Vec::with_capacity(self.groups.len());
        for (g, group) in self.groups.iter().enumerate() {
            let dictionary = &group.dictionary;
            let shape = vec![dictionary.len(), dictionary.width()];
            manifest.check_shape(path, g, &shape)?;
            planned.push(Planned { name: tensor_name(g), dtype: "F32", shape, bytes: size_of_val(dictionary.atoms()) });
        }
        let json = serde_json::to_string(&manifest)
            .map_err(|e| CodecError::file(path, METADATA_KEY, "JSON", e.to_string()))?;
        let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), json)]);
        let mut file = Writer::create(path, &metadata, &planned)?;
        for group in &self.groups {
            for atom in group.dictionary.atoms() {
                file.write(&atom.to_le_bytes())?;
            }
        }
        file.finish()
    }

    /// Reads a set from an untrusted file. Checks the header length, group map, tensor names, dtypes, shapes, widths,
    /// finiteness and norms.
    ///
    /// # Errors
    /// If the file cannot be read or any check fails.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CodecError> {
        let path = path.as_ref();
        let file = Reader::open(path)?;
        let manifest: Manifest = serde_json::from_str(file.meta(METADATA_KEY)?)
            .map_err(|e| file.error(METADATA_KEY, "a dictionary manifest", e.to_string()))?;
        manifest.check(file.path())?;
        let tensors = file.names().len();
        if tensors != manifest.groups.len() {
            let expected = format!("{}, one per group", manifest.groups.len());
            return Err(file.error("tensors", expected, tensors.to_string()));
        }
        let mut dictionaries = Vec::with_capacity(tensors);
        for g in 0..manifest.groups.len() {
            let name = tensor_name(g);
            let (info, bytes) = file.tensor(&name)?;
            if info.dtype != Dtype::F32 {
                return Err(file.error(&name, "dtype F32", format!("{:?}", info.dtype)));
            }
            let width = manifest.check_shape(path, g, &info.shape)?;
            let atoms = bytes.as_chunks::<4>().0;
            let atoms = atoms.iter().map(|&b| f32::from_le_bytes(b)).collect();
            let dictionary = Dictionary::new(width, atoms).map_err(|e| CodecError::Atoms {
                path: path.to_owned(),
                tensor: name,
                source: Box::new(e),
            })?;
            dictionaries.push(Arc::new(dictionary));
        }
        let groups = manifest.groups.into_iter().zip(dictionaries);
        Ok(Self {
            head_dim: manifest.head_dim,
            groups: groups
                .map(|(group, dictionary)| DictionaryGroup {
                    kind: group.kind,
                    layers: group.layers,
                    chunks: group.chunks,
                    sparsity: group.sparsity,
                    dictionary,
                })
                .collect(),
            provenance: manifest.provenance,
        })
    }

    /// The group that serves `layer` for `kind`.
    #[must_use]
    pub fn group(&self, layer: usize, kind: Kind) -> Option<&DictionaryGroup> {
        self.groups.iter().find(|group| group.kind == kind && group.layers.contains(&layer))
    }

    /// Checks that the set matches a model of `layers` layers. The head width must be the same. Every layer must have a
    /// dictionary for keys and one for values. There must be none for layers that the model does not have.
    ///
    /// # Errors
    /// Names the first mismatch.
    pub fn validate_for(&self, layers: usize, head_dim: usize) -> Result<(), CodecError> {
        let mismatch =
            |subject: String, expected: String, found: String| Err(CodecError::Mismatch { subject, expected, found });
        if self.head_dim != head_dim {
            let (expected, found) = (head_dim.to_string(), self.head_dim.to_string());
            return mismatch("head_dim".into(), expected, found);
        }
        let served = self.groups.iter().flat_map(|group| &group.layers);
        if let Some(&layer) = served.max().filter(|&&layer| layer >= layers) {
            return mismatch("layers".into(), layers.to_string(), format!("layer {layer}"));
        }
        for layer in 0..layers {
            for kind in Kind::ALL {
                if self.group(layer, kind).is_none() {
                    let subject = format!("layer {layer}, {kind}");
                    return mismatch(subject, "a dictionary".into(), "none".into());
                }
            }
        }
        Ok(())
    }
}

impl Manifest {
    fn check(&self, path: &Path) -> Result<(), CodecError> {
        let bad =
            |subject: String, expected: &str, found: String| Err(CodecError::file(path, subject, expected, found));
        if self.format != FORMAT {
            return bad("format".into(), &FORMAT.to_string(), self.format.to_string());
        }
        if self.head_dim == 0 {
            return bad("head_dim".into(), "at least 1", "0".into());
        }
        let mut served = BTreeSet::new();
        for (g, group) in self.groups.iter().enumerate() {
            if group.layers.is_empty() {
                return bad(format!("group {g}"), "at least one layer", "none".into());
            }
            if group.sparsity == 0 {
                return bad(format!("group {g}"), "sparsity at least 1", "0".into());
            }
            if group.chunks == 0 || !self.head_dim.is_multiple_of(group.chunks) {
                let expected = format!("chunks that divide head_dim {}", self.head_dim);
                return bad(format!("group {g}"), &expected, group.chunks.to_string());
            }
            for &layer in &group.layers {
                if !served.insert((group.kind, layer)) {
                    let subject = format!("group {g}, {}", group.kind);
                    let found = format!("layer {layer} again");
                    return bad(subject, "each layer once per kind", found);
                }
            }
        }
        Ok(())
    }

    /// Checks the shape of a tensor against its group and returns the width.
    fn check_shape(&self, path: &Path, g: usize, shape: &[usize]) -> Result<usize, CodecError> {
        let width = self.head_dim / self.groups[g].chunks;
        match shape {
            &[_, found] if found == width => Ok(width),
            _ => Err(CodecError::file(path, tensor_name(g), format!("shape (N, {width})"), format!("{shape:?}"))),
        }
    }
}
