//! Checkpoints of the Hugging Face hub, pinned to a commit: `hf:owner/name@commit`.
//!
//! Files lie in the hub's own cache, which other programs of the hub share. Files that they have downloaded are found here
//! without a network. Downloading itself needs the cargo feature `hub`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The beginning of the name of a repository.
pub const SCHEME: &str = "hf:";

/// Files that are read besides the weights, if a repository has them. The first is required.
const BESIDES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// Files of [`BESIDES`] that nearly every repository has. They are missing if another program has fetched the weights alone, so
/// they are asked for.
const ASKED: [&str; 2] = ["generation_config.json", "tokenizer_config.json"];

/// Weights, in the order in which a checkpoint folder is searched for them: a whole file, or an index with the beginning and the
/// end of the names of its files.
const WEIGHTS: [(&str, Option<(&str, &str)>); 4] = [
    ("model.safetensors", None),
    ("model.safetensors.index.json", Some(("model-", ".safetensors"))),
    ("pytorch_model.bin", None),
    ("pytorch_model.bin.index.json", Some(("pytorch_model-", ".bin"))),
];

/// A repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    owner: String,
    name: String,
    commit: String,
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}@{}", self.owner, self.name, self.commit)
    }
}

impl HubName {
    /// Reads `hf:owner/name@commit`. Branches and tags can move, and then results would change: only a commit is accepted.
    pub fn parse(text: &str) -> Result<Self> {
        let shape = || format!("model `{text}`: expected {SCHEME}owner/name@commit");
        let rest = text.strip_prefix(SCHEME).with_context(shape)?;
        let (repository, commit) = rest.split_once('@').with_context(|| {
            format!(
                "{}: without a commit the model could change; the repository's page lists them under History",
                shape()
            )
        })?;
        let (owner, name) = repository.split_once('/').with_context(shape)?;
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if !plain(owner) || !plain(name) {
            bail!("{}, both of letters, digits, dots, dashes and underscores", shape());
        }
        if commit.len() != 40 || !commit.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
            bail!("{}: `{commit}` is not a commit of 40 hexadecimal digits (a branch or tag can move)", shape());
        }
        Ok(Self { owner: owner.to_owned(), name: name.to_owned(), commit: commit.to_owned() })
    }

    /// The folder of its files in the hub's cache.
    fn folder(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}--{}", self.owner, self.name)).join("snapshots").join(&self.commit)
    }

    /// The folder of the repository, if all of its files are there.
    pub fn fetched(&self) -> Result<PathBuf> {
        self.fetched_in(&cache_dir()?)
    }

    fn fetched_in(&self, cache: &Path) -> Result<PathBuf> {
        let folder = self.folder(cache);
        match missing(&folder) {
            Ok(names) if names.is_empty() => Ok(folder),
            Ok(names) => {
                bail!("{self} is not complete in {}: {} missing; {}", folder.display(), names.join(", "), remedy())
            }
            Err(error) if folder.is_dir() => {
                Err(error
                    .context(format!("{self} is damaged in {}: remove the file and fetch again", folder.display())))
            }
            Err(_) => bail!("{self} was not downloaded yet; {}", remedy()),
        }
    }

    /// Downloads what is missing and returns the folder.
    pub fn fetch(&self) -> Result<PathBuf> {
        let cache = cache_dir()?;
        let folder = self.folder(&cache);
        let complete = matches!(missing(&folder).as_deref(), Ok([]));
        if complete && (!cfg!(feature = "hub") || ASKED.iter().all(|name| folder.join(name).is_file())) {
            return Ok(folder);
        }
        match self.download(&cache) {
            // Without a network, the files that are there must be enough.
            Err(_) if complete => Ok(folder),
            Err(error) => Err(error),
            Ok(()) => self.fetched_in(&cache),
        }
    }

    #[cfg(not(feature = "hub"))]
    fn download(&self, cache: &Path) -> Result<()> {
        self.fetched_in(cache).map(drop)
    }

    #[cfg(feature = "hub")]
    fn download(&self, cache: &Path) -> Result<()> {
        use hf_hub::api::sync::ApiBuilder;
        use hf_hub::{Cache, Repo, RepoType};

        let mut builder = ApiBuilder::from_cache(Cache::new(cache.to_owned())).with_progress(true);
        let endpoint = std::env::var("HF_ENDPOINT").ok().map(|of| of.trim().trim_end_matches('/').to_owned());
        if let Some(endpoint) = endpoint.filter(|of| !of.is_empty()) {
            builder = builder.with_endpoint(endpoint);
        }
        // A cache in another place has no token beside it: the token of the login is in the user's own cache.
        let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty());
        if let Some(token) = token.or_else(|| Cache::from_env().token()) {
            builder = builder.with_token(Some(token.trim().to_owned()));
        }
        let api = builder.build()?;
        let repository = format!("{}/{}", self.owner, self.name);
        let repository = api.repo(Repo::with_revision(repository, RepoType::Model, self.commit.clone()));
        let info = repository.info().with_context(|| {
            format!("{self}: the hub did not answer for it (a gated model needs the access token of an account that was granted it, as `huggingface-cli login` keeps it or HF_TOKEN holds it)")
        })?;
        let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        for name in select(&names).with_context(|| self.to_string())? {
            repository.get(&name).with_context(|| format!("{self}: {name}"))?;
        }
        Ok(())
    }
}

/// What to do about a repository that was not downloaded.
fn remedy() -> &'static str {
    if cfg!(feature = "hub") {
        "run `just fetch` for the profile, or `kvcsr generate --model` with its name"
    } else {
        "this build cannot download it: build with `cargo build --release --package kvcsr --features hub`, or download the repository with another program and name the folder"
    }
}

/// The hub's cache: `$HF_HUB_CACHE`, `$HF_HOME/hub`, or `huggingface/hub` in the user's cache folder, `$XDG_CACHE_HOME` or `~/.cache`.
fn cache_dir() -> Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(cache) = folder("HF_HUB_CACHE") {
        return Ok(cache);
    }
    let user = || folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    let home = folder("HF_HOME").or_else(|| user().map(|cache| cache.join("huggingface")));
    home.map(|home| home.join("hub"))
        .context("neither HF_HUB_CACHE, HF_HOME nor HOME is set: set HF_HOME to a folder for models")
}

/// Selects the files that a checkpoint is read from, among all file `names` of a repository.
fn select(names: &[String]) -> Result<Vec<String>> {
    let has = |name: &str| names.iter().any(|n| n == name);
    if !has(BESIDES[0]) {
        let other = if names.iter().any(|name| name.ends_with(".gguf")) {
            "it holds GGUF files: download one of them and name its path"
        } else {
            "it is no checkpoint in Hugging Face's format"
        };
        bail!("the repository has no config.json: {other}");
    }
    if !has("tokenizer.json") && !has("tokenizer.model") {
        bail!("the repository has neither tokenizer.json nor tokenizer.model");
    }
    let Some((first, shards)) = WEIGHTS.iter().find(|(name, _)| has(name)) else {
        let expected: Vec<&str> = WEIGHTS.iter().map(|(name, _)| *name).collect();
        bail!("the repository has no weights: expected one of {}", expected.join(", "));
    };
    let mut selected: Vec<String> = BESIDES.iter().filter(|name| has(name)).map(|name| (*name).to_owned()).collect();
    selected.push((*first).to_owned());
    if let Some((start, end)) = shards {
        let shard = |name: &&String| name.starts_with(start) && name.ends_with(end) && !name.contains('/');
        let found: Vec<&String> = names.iter().filter(shard).collect();
        if found.is_empty() {
            bail!("the repository has {first} but none of the files it names");
        }
        selected.extend(found.into_iter().cloned());
    }
    Ok(selected)
}

/// The files that the checkpoint in `folder` lacks; an error if the folder or its index cannot be read.
fn missing(folder: &Path) -> Result<Vec<String>> {
    let names: Vec<String> = std::fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .flatten()
        // Entries are links into the cache: a link that leads nowhere is a missing file.
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let Ok(selected) = select(&names) else { return Ok(vec!["the configuration, tokenizer or weights".to_owned()]) };
    let Some(index) = selected.iter().find(|name| name.ends_with(".index.json")) else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(folder.join(index)).with_context(|| index.clone())?;
    let json: serde_json::Value = serde_json::from_str(&text).with_context(|| index.clone())?;
    let files = json["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str());
    let needed: BTreeSet<&str> = files.collect();
    Ok(needed.into_iter().filter(|file| !names.iter().any(|name| name == file)).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_are_read_and_written_and_need_a_commit() {
        let text = format!("hf:meta-llama/Llama-2-7b-chat-hf@{COMMIT}");
        let name = HubName::parse(&text).unwrap();
        assert_eq!(name.to_string(), text);
        let folder = name.folder(Path::new("/c"));
        assert_eq!(folder, Path::new("/c/models--meta-llama--Llama-2-7b-chat-hf/snapshots").join(COMMIT));
        let refused = |text: &str| format!("{:#}", HubName::parse(text).unwrap_err());
        assert!(refused("hf:a/b").contains("without a commit"));
        assert!(refused("hf:a/b@main").contains("a branch or tag can move"));
        assert!(refused(&format!("hf:a/b@{}", COMMIT.to_uppercase())).contains("40 hexadecimal digits"));
        for wrong in ["hf:b@", "hf:../b@", "hf:a/b/c@", "hf:a/@", "hf:/b@", "hf:a/.b@", "hf:a b/c@"] {
            assert!(refused(&format!("{wrong}{COMMIT}")).contains("expected hf:owner/name@commit"), "{wrong}");
        }
    }

    #[test]
    fn the_files_of_one_checkpoint_are_selected() {
        let all = names(&[
            "README.md",
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "generation_config.json",
            "LICENSE",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            "original/model-1.safetensors",
        ]);
        let selected = select(&all).unwrap();
        assert_eq!(
            selected,
            [
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer.model",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ]
        );
        let pickle = names(&["config.json", "tokenizer.model", "pytorch_model.bin", "modeling_baichuan.py"]);
        assert_eq!(select(&pickle).unwrap(), ["config.json", "tokenizer.model", "pytorch_model.bin"]);
        let refused = |list: &[&str]| select(&names(list)).unwrap_err().to_string();
        assert!(refused(&["model.Q4_K_M.gguf"]).contains("GGUF"));
        assert!(refused(&["config.json", "model.safetensors"]).contains("tokenizer.json"));
        assert!(refused(&["config.json", "tokenizer.json"]).contains("pytorch_model.bin.index.json"));
        assert!(
            refused(&["config.json", "tokenizer.json", "model.safetensors.index.json"]).contains("none of the files")
        );
    }

    #[test]
    fn what_is_in_the_cache_is_found_and_what_is_missing_is_named() {
        let cache = tempfile::tempdir().unwrap();
        let name = HubName::parse(&format!("hf:a/b@{COMMIT}")).unwrap();
        let refused = || format!("{:#}", name.fetched_in(cache.path()).unwrap_err());
        assert!(refused().contains("not downloaded yet"), "{}", refused());
        if !cfg!(feature = "hub") {
            assert!(refused().contains("--features hub"), "{}", refused());
        }
        let folder = name.folder(cache.path());
        std::fs::create_dir_all(&folder).unwrap();
        assert!(refused().contains("not complete"));
        let write = |file: &str, text: &str| std::fs::write(folder.join(file), text).unwrap();
        for file in ["config.json", "tokenizer.json", "model-1.safetensors"] {
            write(file, "");
        }
        write(
            "model.safetensors.index.json",
            r#"{"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}}"#,
        );
        assert!(refused().contains("model-2.safetensors missing"), "{}", refused());
        write("model-2.safetensors", "");
        assert_eq!(name.fetched_in(cache.path()).unwrap(), folder);
        let index = folder.join("model.safetensors.index.json");
        let whole = std::fs::read_to_string(&index).unwrap();
        write("model.safetensors.index.json", "{\"weight_map\": {");
        assert!(refused().contains("is damaged") && refused().contains("index.json"), "{}", refused());
        std::fs::write(index, whole).unwrap();
        // A link that leads nowhere is an interrupted download.
        std::fs::remove_file(folder.join("model-1.safetensors")).unwrap();
        std::os::unix::fs::symlink("../../blobs/none", folder.join("model-1.safetensors")).unwrap();
        assert!(refused().contains("model-1.safetensors missing"));
    }
}
