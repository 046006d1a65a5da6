//! Long documents: the collections in `data/sources.toml`.

use std::path::Path;

use kvcsr_eval::heldout::TextForm;
use serde::Deserialize;

use crate::error::Result;
use crate::{LabError, places};

/// The purpose of the documents of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// They are scored, and used for nothing else.
    Scored,
    /// They are used to choose the threshold of far tokens.
    Threshold,
}

/// Files of one package. Each file is one whole text.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collection {
    /// Its name in `data/sources.toml`.
    pub id: String,
    /// The kind of text. It is the stratum in the statistics.
    pub domain: String,
    /// The purpose of the documents.
    pub side: Side,
    /// The registry of the package, for example `pypi`.
    pub registry: String,
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The licence of package and texts.
    pub licence: String,
    /// A sentence for readers that says what the collection is used for.
    #[serde(rename = "use")]
    pub purpose: String,
    /// How a file holds its text.
    pub text: TextForm,
    /// The files.
    pub files: Vec<Member>,
}

/// One file of a collection.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The file inside the package.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its sha256, in hexadecimal.
    pub sha256: String,
}

/// A document's name and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// `collection/file`.
    pub name: String,
    /// The kind of text.
    pub domain: String,
    /// The text.
    pub text: String,
}

impl Collection {
    /// The name of one of its documents: `collection/file`. The file has its folders, but not its extension.
    pub fn name_of(&self, member: &Member) -> String {
        format!("{}/{}", self.id, Path::new(&member.file).with_extension("").display())
    }

    /// Reads its documents from a folder of downloads.
    ///
    /// # Errors
    /// [`LabError::NotFetched`] if a file does not exist. Also an error if a file does not have the form that
    /// [`Collection::text`] describes.
    pub fn documents(&self, cache: &Path) -> Result<Vec<Document>> {
        let read = |member: &Member| {
            let path = places::in_package(cache, &self.package, &self.version, &member.file);
            if !path.is_file() {
                return Err(LabError::NotFetched(path));
            }
            let file = std::fs::read_to_string(&path).map_err(|source| LabError::Io { path: path.clone(), source })?;
            let text = self.text.of(&file).map_err(|error| LabError::Document { path, reason: error.to_string() })?;
            Ok(Document { name: self.name_of(member), domain: self.domain.clone(), text })
        };
        self.files.iter().map(read).collect()
    }
}

/// The collections of the project that contains the folder `here`.
///
/// # Errors
/// If `data/sources.toml` is not found or not well formed.
pub fn collections(here: &Path) -> Result<Vec<Collection>> {
    #[derive(Deserialize)]
    struct Sources {
        collection: Vec<Collection>,
    }
    let (path, text) = places::sources(here)?;
    let sources: Sources =
        toml::from_str(&text).map_err(|error| LabError::Sources { path: path.clone(), reason: error.to_string() })?;
    for collection in &sources.collection {
        let files = collection.files.iter().map(|member| &member.file);
        let mut names = files.chain([&collection.package, &collection.version]);
        if let Some(outside) = names.find(|name| !places::stays_inside(name)) {
            let reason =
                format!("collection `{}`: `{outside}` is no path inside the folder of downloads", collection.id);
            return Err(LabError::Sources { path, reason });
        }
    }
    Ok(sources.collection)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn documents_are_scored_or_set_the_threshold_never_both() {
        let mut domains = BTreeMap::<String, [usize; 2]>::new();
        let (mut names, mut texts) = (BTreeSet::new(), BTreeSet::new());
        for collection in collections(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap() {
            for member in &collection.files {
                let name = collection.name_of(member);
                assert!(names.insert(name.clone()), "{name} is named twice");
                assert!(texts.insert(member.sha256.clone()), "{name} is another document");
                domains.entry(collection.domain.clone()).or_default()[collection.side as usize] += 1;
            }
        }
        assert_eq!(domains.len(), 4, "{domains:?}");
        for (domain, [scored, threshold]) in domains {
            assert!(scored >= 16 && threshold >= 2, "{domain}: {scored} scored, {threshold} for the threshold");
        }
    }

    #[test]
    fn a_document_is_its_whole_file_and_nothing_else() {
        let collections = collections(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let collection = collections.iter().find(|c| c.text == TextForm::Whole).unwrap();
        let cache = tempfile::tempdir().unwrap();
        assert!(matches!(collection.documents(cache.path()), Err(LabError::NotFetched(_))));
        for (at, member) in collection.files.iter().enumerate() {
            let path = places::in_package(cache.path(), &collection.package, &collection.version, &member.file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("text {at}\n")).unwrap();
        }
        let documents = collection.documents(cache.path()).unwrap();
        assert_eq!(documents.len(), collection.files.len());
        assert_eq!(
            (documents[1].text.as_str(), documents[1].domain.as_str()),
            ("text 1\n", collection.domain.as_str())
        );
        assert_eq!(documents[1].name, collection.name_of(&collection.files[1]));
    }
}
