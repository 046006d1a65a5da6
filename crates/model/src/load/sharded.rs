//! A checkpoint that is split over several files. An index (`*.index.json`) says which file has which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::Value;

use super::{Checkpoint, text};
use crate::error::{ModelError, Result};

/// The files of a sharded checkpoint as one checkpoint.
pub struct Sharded<C> {
    /// The path of the index.
    path: PathBuf,
    files: Vec<C>,
    /// From the name of a tensor to the position of its file in `files`.
    routes: BTreeMap<String, usize>,
    /// Tensors that a file contains although the index does not list them.
    unlisted: Vec<String>,
}

impl<C: Checkpoint> Sharded<C> {
    /// Reads the index, and opens every file that it names with `open`.
    ///
    /// # Errors
    /// [`ModelError::Malformed`] for an index without a valid `weight_map`. [`ModelError::MissingTensors`] if a file
    /// does not have the tensors that the index lists. Also the errors of `open`.
    pub fn open(index: impl Into<PathBuf>, open: impl Fn(PathBuf) -> Result<C>) -> Result<Self> {
        let path = index.into();
        let map = weight_map(&path)?;
        let names: Vec<&String> = map.values().collect::<BTreeSet<_>>().into_iter().collect();
        let folder = path.parent().unwrap_or(Path::new(""));
        let files = names.iter().map(|name| open(folder.join(name))).collect::<Result<Vec<C>>>()?;
        let routes: BTreeMap<String, usize> = map
            .iter()
            .map(|(tensor, file)| (tensor.clone(), names.binary_search(&file).expect("every file was collected")))
            .collect();
        for (at, file) in files.iter().enumerate() {
            let promised = routes.iter().filter(|(_, to)| **to == at).map(|(tensor, _)| tensor);
            let missing: Vec<String> = promised.filter(|tensor| file.shape(tensor).is_none()).cloned().collect();
            if !missing.is_empty() {
                return Err(ModelError::MissingTensors { path: file.path().to_owned(), tensors: missing });
            }
        }
        let unlisted = files.iter().flat_map(Checkpoint::names).filter(|name| !routes.contains_key(name)).collect();
        Ok(Self { path, files, routes, unlisted })
    }

    fn file(&self, name: &str) -> Option<&C> {
        self.routes.get(name).map(|&at| &self.files[at])
    }
}

/// From the name of a tensor to a file name. The file name has no folders.
fn weight_map(path: &Path) -> Result<BTreeMap<String, String>> {
    let malformed =
        |detail: String| ModelError::Malformed { path: path.to_owned(), format: "checkpoint index", detail };
    let index: Value = serde_json::from_str(&text::need(path)?).map_err(|e| malformed(e.to_string()))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("no object `weight_map` in it".to_owned()))?;
    map.iter()
        .map(|(tensor, file)| match file.as_str() {
            Some(file) if Path::new(file).file_name().is_some_and(|name| name == file) => {
                Ok((tensor.clone(), file.to_owned()))
            }
            _ => Err(malformed(format!("tensor `{tensor}` is in {file}, which is not a file name"))),
        })
        .collect()
}

impl<C: Checkpoint> Checkpoint for Sharded<C> {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.routes.keys().chain(&self.unlisted).cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file(name)?.shape(name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let missing = || ModelError::MissingTensors { path: self.path.clone(), tensors: vec![name.to_owned()] };
        self.file(name).ok_or_else(missing)?.tensor(name)
    }

    fn matrix_dtypes(&self) -> Vec<DType> {
        self.files.iter().flat_map(Checkpoint::matrix_dtypes).collect()
    }
}
