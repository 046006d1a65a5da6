//! The long documents of `data/sources.toml`: the documents of a domain, their files and their digests.

use std::path::Path;

use anyhow::{Result, bail};
use kvcsr_lab::documents::{self, Collection};
use serde_json::{Map, Value};

use crate::sources::{Source, Sources};

/// The collections of these domains.
pub fn collections(root: &Path, domains: &[String]) -> Result<Vec<Collection>> {
    let all = documents::collections(root)?;
    if let Some(unknown) = domains.iter().find(|domain| all.iter().all(|c| c.domain != **domain)) {
        let known: std::collections::BTreeSet<&str> = all.iter().map(|c| c.domain.as_str()).collect();
        bail!(
            "heldout.domains: data/sources.toml has no documents of domain `{unknown}`; it has {}",
            known.into_iter().collect::<Vec<_>>().join(", ")
        );
    }
    Ok(all.into_iter().filter(|collection| domains.contains(&collection.domain)).collect())
}

/// The files of these domains' documents.
pub fn sources(root: &Path, domains: &[String]) -> Result<Vec<Source>> {
    let wanted: Vec<String> =
        collections(root, domains)?.iter().flat_map(|c| c.files.iter().map(|member| c.name_of(member))).collect();
    let all = Sources::load(root)?.documents();
    Ok(all.into_iter().filter(|source| wanted.contains(&source.id)).collect())
}

/// A digest of each domain's documents, by name: inputs of the stages that score them.
pub fn digests(root: &Path, domains: &[String]) -> Result<Map<String, Value>> {
    let collections = collections(root, domains)?;
    let mut digests = Map::new();
    for domain in domains {
        let mut hasher = blake3::Hasher::new();
        for collection in collections.iter().filter(|collection| collection.domain == *domain) {
            for member in &collection.files {
                hasher.update(member.sha256.as_bytes());
            }
        }
        digests.insert(format!("documents of {domain}"), hasher.finalize().to_hex().to_string().into());
    }
    Ok(digests)
}
