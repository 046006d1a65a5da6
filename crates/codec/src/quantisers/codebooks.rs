//! Codebook sets: files with what calibrated methods other than sparse coding learn.
//!
//! A set is a safetensors file with f16 tensors `layer.{l}.{kind}.{name}` and one metadata string `kvcsr`: JSON
//! `{format: 1, method, layers, kv_heads, head_dim, provenance}`. Each method defines the names and the meaning of its
//! tables. The file defines their number and sizes, and all values are finite.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::files::{Planned, Reader, Writer};
use crate::{CodecError, Kind};

const METADATA_KEY: &str = "kvcsr";
const FORMAT: u32 = 1;

/// One array of numbers, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    shape: Vec<usize>,
    values: Arc<[f16]>,
}

impl Table {
    /// Rounds `values` to f16.
    ///
    /// # Errors
    /// If the number of values differs from that of the shape, or a value is not finite in f16.
    pub fn new(shape: &[usize], values: &[f32]) -> Result<Self, CodecError> {
        let mut halves = vec![f16::ZERO; values.len()];
        halves.convert_from_f32_slice(values);
        Self::of(shape.to_vec(), halves.into())
    }

    fn of(shape: Vec<usize>, values: Arc<[f16]>) -> Result<Self, CodecError> {
        let expected = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX);
        CodecError::length("table", expected, values.len())?;
        let row = shape.last().copied().unwrap_or(1).max(1);
        match values.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(CodecError::NonFiniteRow { row: at / row }),
            None => Ok(Self { shape, values }),
        }
    }

    /// Size of each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values in f16, as stored.
    #[must_use]
    pub fn values(&self) -> &[f16] {
        &self.values
    }

    /// The values in f32.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        self.values.to_f32_vec()
    }

    /// Bytes of the values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val::<[f16]>(&self.values)
    }
}

/// The tables of one method for one model. Cloning does not copy the values.
#[derive(Clone, Debug, PartialEq)]
pub struct CodebookSet {
    /// The method, for example `cq-8c8b`.
    pub method: String,
    /// Number of layers of the model.
    pub layers: usize,
    /// Key-value heads, `Hkv`.
    pub kv_heads: usize,
    /// Channels per head, `D`.
    pub head_dim: usize,
    /// Origin of the set: model, corpus, seeds and similar data.
    pub provenance: BTreeMap<String, String>,
    tables: BTreeMap<String, Table>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    method: String,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    provenance: BTreeMap<String, String>,
}

fn key(layer: usize, kind: Kind, name: &str) -> String {
    format!("layer.{layer}.{kind}.{name}")
}

impl CodebookSet {
    /// A set without tables.
    #[must_use]
    pub fn new(method: &str, layers: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            method: method.to_owned(),
            layers,
            kv_heads,
            head_dim,
            provenance: BTreeMap::new(),
            tables: BTreeMap::new(),
        }
    }

    /// Adds or replaces the table `name` of a layer.
    pub fn insert(&mut self, layer: usize, kind: Kind, name: &str, table: Table) {
        self.tables.insert(key(layer, kind, name), table);
    }

    /// Moves all tables of `other` into this set.
    pub fn extend(&mut self, other: Self) {
        self.tables.extend(other.tables);
    }

    /// The table `name` of a layer, if it exists.
    #[must_use]
    pub fn get(&self, layer: usize, kind: Kind, name: &str) -> Option<&Table> {
        self.tables.get(&key(layer, kind, name))
    }

    /// The table `name` of a layer. It must have the shape `shape`.
    ///
    /// # Errors
    /// [`CodecError::Mismatch`] if the table is missing or has another shape.
    pub fn table(&self, layer: usize, kind: Kind, name: &str, shape: &[usize]) -> Result<&Table, CodecError> {
        let mismatch = |found: String| CodecError::Mismatch {
            subject: format!("{}, layer {layer}, {kind}, `{name}`", self.method),
            expected: format!("a table of shape {shape:?}"),
            found,
        };
        let table = self.get(layer, kind, name).ok_or_else(|| mismatch("none".into()))?;
        if table.shape == shape { Ok(table) } else { Err(mismatch(format!("{:?}", table.shape))) }
    }

    /// Checks that the set was made for a model of this shape.
    ///
    /// # Errors
    /// [`CodecError::Mismatch`] that names the difference.
    pub fn validate_for(&self, layers: usize, kv_heads: usize, head_dim: usize) -> Result<(), CodecError> {
        for (subject, expected, found) in [
            ("layers", layers, self.layers),
            ("kv_heads", kv_heads, self.kv_heads),
            ("head_dim", head_dim, self.head_dim),
        ] {
            if expected != found {
                return Err(CodecError::Mismatch {
                    subject: format!("{}, {subject}", self.method),
                    expected: expected.to_string(),
                    found: found.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Bytes of all tables.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.tables.values().map(Table::bytes).sum()
    }

    /// Writes the set under a temporary name, then renames it.
    ///
    /// # Errors
    /// If the disk refuses, or the header with the names of all tables is too long.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CodecError> {
        let path = path.as_ref();
        let manifest = Manifest {
            format: FORMAT,
            method: self.method.clone(),
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            provenance: self.provenance.clone(),
        };
        let json = serde_json::to_string(&manifest)
            .map_err(|e| CodecError::file(path, METADATA_KEY, "JSON", e.to_string()))?;
        let planned: Vec<Planned> = self
            .tables
            .iter()
            .map(|(name, t)| Planned { name: name.clone(), dtype: "F16", shape: t.shape.clone(), bytes: t.bytes() })
            .collect();
        let mut file = Writer::create(path, &BTreeMap::from([(METADATA_KEY.to_owned(), json)]), &planned)?;
        for table in self.tables.values() {
            for value in table.values.iter() {
                file.write(&value.to_le_bytes())?;
            }
        }
        file.finish()
    }

    /// Reads a set from an untrusted file. Checks the header length, manifest, tensor names, dtypes, sizes and finiteness. The
    /// caller checks the shape of a table when it requests the table.
    ///
    /// # Errors
    /// If the file cannot be read or a check fails.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CodecError> {
        let path = path.as_ref();
        let file = Reader::open(path)?;
        let manifest: Manifest = serde_json::from_str(file.meta(METADATA_KEY)?)
            .map_err(|e| file.error(METADATA_KEY, "a codebook manifest", e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(file.error("format", FORMAT.to_string(), manifest.format.to_string()));
        }
        let mut set = Self::new(&manifest.method, manifest.layers, manifest.kv_heads, manifest.head_dim);
        set.provenance = manifest.provenance;
        for name in file.names() {
            check_name(&name, manifest.layers)
                .ok_or_else(|| file.error(&name, "a tensor `layer.{l}.{kind}.{name}` of the model's layers", "none"))?;
            let (info, bytes) = file.tensor(&name)?;
            if info.dtype != Dtype::F16 {
                return Err(file.error(&name, "dtype F16", format!("{:?}", info.dtype)));
            }
            let values = bytes.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b)).collect();
            let table =
                Table::of(info.shape.clone(), values).map_err(|e| file.error(&name, "numbers", e.to_string()))?;
            set.tables.insert(name, table);
        }
        Ok(set)
    }
}

fn check_name(name: &str, layers: usize) -> Option<()> {
    let (layer, rest) = name.strip_prefix("layer.")?.split_once('.')?;
    let (kind, table) = rest.split_once('.')?;
    let known = Kind::ALL.iter().any(|k| k.as_str() == kind);
    (layer.parse::<usize>().ok()? < layers && known && !table.is_empty()).then_some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set() -> CodebookSet {
        let mut set = CodebookSet::new("test", 2, 1, 4);
        set.provenance.insert("seed".into(), "3".into());
        set.insert(0, Kind::Key, "centroids", Table::new(&[2, 2], &[1.0, 2.0, -0.5, 0.0]).unwrap());
        set.insert(1, Kind::Value, "mean", Table::new(&[3], &[0.25, 0.5, 4.0]).unwrap());
        set
    }

    #[test]
    fn a_set_comes_back_and_tables_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set.safetensors");
        set().save(&path).unwrap();
        let back = CodebookSet::load(&path).unwrap();
        assert_eq!(back, set());
        assert_eq!(back.bytes(), 14);
        assert_eq!(back.table(1, Kind::Value, "mean", &[3]).unwrap().to_f32(), [0.25, 0.5, 4.0]);
        assert!(back.table(1, Kind::Value, "mean", &[2]).unwrap_err().to_string().contains("[3]"));
        assert!(back.table(1, Kind::Key, "mean", &[3]).is_err());
        assert!(back.validate_for(2, 1, 4).is_ok());
        assert!(back.validate_for(2, 2, 4).unwrap_err().to_string().contains("kv_heads"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_table_is_refused() {
        assert!(Table::new(&[2, 2], &[1.0]).is_err());
        assert!(matches!(Table::new(&[2, 1], &[1.0, 1e9]), Err(CodecError::NonFiniteRow { row: 1 })));
        assert!(Table::new(&[usize::MAX, 2], &[]).is_err());
        for name in ["layer.2.key.x", "layer.0.keys.x", "layer.0.key", "layer.x.key.y", "layer.0.key."] {
            assert!(check_name(name, 2).is_none(), "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set.safetensors");
        let mut wrong = set();
        wrong.layers = 1;
        wrong.save(&path).unwrap();
        assert!(CodebookSet::load(&path).unwrap_err().to_string().contains("layer.1.value.mean"));
    }
}
