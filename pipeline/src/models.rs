//! Models by name: an id of `data/sources.toml`, a path, or a repository of the hub at a commit.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use kvcsr_model::{Arch, ChatTemplate, Checkpoint, Decoder, Gguf, HfCheckpoint, Precision, Tokenizer, find_device};

use crate::atomic;
use crate::config::Config;
use crate::hub::{self, HubName};
use crate::paths::Paths;
use crate::sources::{SourceKind, Sources};

/// The name that stands for the embedded model.
const DEFAULT: &str = "default";

/// A model as profiles and the command line name it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    /// An id of `data/sources.toml`.
    Source(String),
    /// A GGUF file, or a folder with `config.json` and weights.
    Path(PathBuf),
    Hub(HubName),
}

impl Name {
    fn parse(text: &str) -> Result<Self> {
        if text.starts_with(hub::SCHEME) {
            return Ok(Self::Hub(HubName::parse(text)?));
        }
        let path = Path::new(text);
        let looks_like_one = text.contains(['/', '\\']) || text.starts_with('.') || text.ends_with(".gguf");
        Ok(if looks_like_one || path.exists() { Self::Path(path.to_owned()) } else { Self::Source(text.to_owned()) })
    }

    /// The file or folder, which must exist.
    fn locate(&self, paths: &Paths) -> Result<PathBuf> {
        match self {
            Self::Source(id) => source(id, paths)?.fetched(paths),
            Self::Path(path) if path.exists() => Ok(path.clone()),
            Self::Path(path) => bail!("model `{}`: no such file or folder; {}", path.display(), expected(paths)),
            Self::Hub(name) => name.fetched(),
        }
    }
}

fn expected(paths: &Paths) -> String {
    let known = Sources::load(&paths.root).map(|all| {
        let models = all.all().filter(|source| source.kind == SourceKind::Model);
        models.map(|source| source.id.as_str()).collect::<Vec<_>>().join(", ")
    });
    let known = known.unwrap_or_default();
    format!(
        "a model is an id of data/sources.toml (it has {known}), a GGUF file, a checkpoint folder, or hf:owner/name@commit"
    )
}

fn source(id: &str, paths: &Paths) -> Result<crate::sources::Source> {
    let sources = Sources::load(&paths.root)?;
    match sources.get(id, SourceKind::Model) {
        Ok(source) => Ok(source.clone()),
        Err(_) => bail!("model `{id}` is not known: {}", expected(paths)),
    }
}

/// Downloads the profile's model if it is a repository of the hub. For an id of `data/sources.toml`, returns the source, which
/// the caller fetches. A path must exist.
pub fn fetch(model: &str, paths: &Paths) -> Result<Option<crate::sources::Source>> {
    match Name::parse(model)? {
        Name::Source(id) => source(&id, paths).map(Some),
        Name::Hub(name) => name.fetch().map(|_| None),
        name => name.locate(paths).map(|_| None),
    }
}

/// The identity of the profile's model, for the keys of stages: the hash of its files or its commit.
pub fn digest(model: &str, paths: &Paths) -> Result<String> {
    let name = Name::parse(model)?;
    match &name {
        Name::Source(id) => Ok(source(id, paths)?.sha256),
        Name::Path(_) => content_hash(&name.locate(paths)?, &paths.cache.join("digests.json")),
        Name::Hub(hub) => Ok(hub.to_string()),
    }
}

/// blake3 of the files that a model is read from, in name order.
///
/// Hashing 14 GB takes a while, so the file `memory` remembers the hash of each file, as long as the size and the modification
/// time of that file stay the same.
fn content_hash(model: &Path, memory: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = if model.is_dir() {
        let read = |name: &str| {
            let ends = [".json", ".safetensors", ".bin", ".jinja"];
            name == "tokenizer.model" || ends.iter().any(|end| name.ends_with(end))
        };
        let entries = std::fs::read_dir(model).with_context(|| model.display().to_string())?.flatten();
        entries.filter(|e| e.file_name().to_str().is_some_and(read)).map(|e| e.path()).filter(|p| p.is_file()).collect()
    } else {
        // A split model consists of all of its parts.
        Gguf::open(model).map_or_else(|_| vec![model.to_owned()], |file| file.files())
    };
    files.sort();
    let known = std::fs::read_to_string(memory).ok().and_then(|text| serde_json::from_str(&text).ok());
    let mut known: serde_json::Map<String, serde_json::Value> = known.unwrap_or_default();
    let before = known.clone();
    let mut all = blake3::Hasher::new();
    for file in &files {
        let context = || file.display().to_string();
        let path = std::fs::canonicalize(file).with_context(context)?;
        let about = std::fs::metadata(&path).with_context(context)?;
        let changed = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let stamp = format!("{} {} {}", path.display(), about.len(), changed.map_or(0, |time| time.as_nanos()));
        let hash = match known.get(&stamp).and_then(|hash| hash.as_str()) {
            Some(hash) => hash.to_owned(),
            None => {
                let mut hasher = blake3::Hasher::new();
                hasher.update_reader(std::fs::File::open(&path).with_context(context)?).with_context(context)?;
                hasher.finalize().to_hex().to_string()
            }
        };
        // The names of a folder's files count. A single file may have any name.
        if model.is_dir() {
            all.update(file.file_name().unwrap_or_default().as_encoded_bytes()).update(b"\0");
        }
        all.update(hash.as_bytes());
        known.insert(stamp, hash.into());
    }
    if known != before {
        if let Some(folder) = memory.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        atomic::write_json(memory, &known)?;
    }
    Ok(all.finalize().to_hex().to_string())
}

/// A sentence about a setting of `generation_config.json` that is for greedy decoding and is not applied here, if there is one.
fn unapplied(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join("generation_config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_str(&text).ok()?;
    let penalty = config["repetition_penalty"].as_f64().filter(|&penalty| penalty != 1.0)?;
    Some(format!(
        "generation_config.json asks for repetition_penalty = {penalty}, which is not applied here; transformers applies it to greedy \
         decoding too, so answers may differ from its own"
    ))
}

/// An opened model.
pub struct Opened {
    name: String,
    path: PathBuf,
    /// The repository and commit, if it came from the hub.
    hub: Option<String>,
    files: Files,
}

enum Files {
    Gguf(Gguf),
    Folder(HfCheckpoint),
}

impl Opened {
    /// Opens the model that the command line names. A repository of the hub is downloaded, if this build can do that.
    pub fn named(name: &str) -> Result<Self> {
        if name == DEFAULT {
            let paths = Paths::find("smol")?;
            let config = Config::load(&paths.root.join("pipeline/profiles"), "smol", &[])?;
            return Self::at(name, &Name::parse(&config.model)?.locate(&paths)?, None);
        }
        let mut from = None;
        let path = match Name::parse(name)? {
            Name::Path(path) if path.exists() => path,
            Name::Hub(name) => {
                from = Some(name.to_string());
                // A complete download needs no network.
                name.fetched().or_else(|_| name.fetch())?
            }
            other => match Paths::find("smol") {
                Ok(paths) => other.locate(&paths)?,
                // Outside of a clone there are no ids.
                Err(_) => bail!(
                    "model `{name}`: no such file or folder; `{DEFAULT}` is the embedded model, inside a clone of the project"
                ),
            },
        };
        Self::at(name, &path, from)
    }

    /// Opens the profile's model, which must have been fetched.
    pub fn of(model: &str, paths: &Paths) -> Result<Self> {
        let name = Name::parse(model)?;
        let hub = if let Name::Hub(hub) = &name { Some(hub.to_string()) } else { None };
        Self::at(model, &name.locate(paths)?, hub)
    }

    fn at(name: &str, path: &Path, hub: Option<String>) -> Result<Self> {
        let open = || -> Result<Files, kvcsr_model::ModelError> {
            Ok(if path.is_dir() { Files::Folder(HfCheckpoint::open(path)?) } else { Files::Gguf(Gguf::open(path)?) })
        };
        let files = open().with_context(|| format!("model `{name}`"))?;
        Ok(Self { name: name.to_owned(), path: path.to_owned(), hub, files })
    }

    /// The identity of this model, as [`digest`] gives it for a profile, whatever name it was opened by: the path of a file of
    /// `data/sources.toml` is recognised too.
    pub fn content(&self, paths: &Paths) -> Result<String> {
        if let Some(hub) = &self.hub {
            return Ok(hub.clone());
        }
        let same = |path: PathBuf| std::fs::canonicalize(path).ok() == std::fs::canonicalize(&self.path).ok();
        let sources = Sources::load(&paths.root)?;
        let mut models = sources.all().filter(|source| source.kind == SourceKind::Model);
        match models.find(|source| source.fetched(paths).is_ok_and(same)) {
            Some(source) => Ok(source.sha256.clone()),
            None => content_hash(&self.path, &paths.cache.join("digests.json")),
        }
    }

    /// A sentence about a setting of the checkpoint that is for greedy decoding and is not applied here, if there is one.
    pub fn unapplied(&self) -> Option<String> {
        match &self.files {
            Files::Folder(_) => unapplied(&self.path),
            Files::Gguf(_) => None,
        }
    }

    /// The GGUF file that it is read from, if it is one; of a split model, the part that was named.
    pub fn gguf(&self) -> Option<&Path> {
        matches!(self.files, Files::Gguf(_)).then_some(self.path.as_path())
    }

    fn context(&self) -> String {
        format!("model `{}`", self.name)
    }

    /// The decoder on a device (`auto`, `cpu`, `cuda:N`), with its matrices in a dtype (`auto`, `f32`, `bf16`, `bf16-fast`, `f16`).
    pub fn decoder(&self, device: &str, dtype: &str) -> Result<Decoder> {
        let device = find_device(device)?;
        let precision: Precision = dtype.parse()?;
        let decoder = match &self.files {
            Files::Gguf(file) => file.checkpoint().and_then(|c| file.decoder_in(&device, precision.resolve(c.dtype()))),
            Files::Folder(folder) => folder.decoder_in(&device, precision.resolve(folder.dtype())),
        };
        decoder.with_context(|| self.context())
    }

    /// The dtype that is named; for `auto`, the one that it stands for.
    pub fn dtype(&self, dtype: &str) -> Result<String> {
        let precision: Precision = dtype.parse()?;
        let stored = match &self.files {
            Files::Gguf(file) => file.checkpoint().with_context(|| self.context())?.dtype(),
            Files::Folder(folder) => folder.dtype(),
        };
        Ok(precision.resolve(stored).to_string())
    }

    /// Its architecture, from its metadata or configuration, without reading the weights.
    pub fn arch(&self) -> Result<Arch> {
        match &self.files {
            Files::Gguf(file) => file.arch().with_context(|| self.context()),
            Files::Folder(folder) => Ok(folder.arch().clone()),
        }
    }

    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = match &self.files {
            Files::Gguf(file) => file.tokenizer(),
            Files::Folder(folder) => folder.tokenizer(),
        };
        tokenizer.with_context(|| self.context())
    }

    /// The checkpoint's chat template, if it has one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let template = match &self.files {
            Files::Gguf(file) => file.chat_template(),
            Files::Folder(folder) => folder.chat_template(),
        };
        template.with_context(|| self.context())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let path = |text: &str| Name::Path(PathBuf::from(text));
        assert_eq!(Name::parse("smollm2-135m-instruct").unwrap(), Name::Source("smollm2-135m-instruct".into()));
        for text in ["/models/llama", "./llama", "..", "models/llama", "llama.gguf"] {
            assert_eq!(Name::parse(text).unwrap(), path(text));
        }
        assert!(matches!(Name::parse(&format!("hf:a/b@{}", "0".repeat(40))).unwrap(), Name::Hub(_)));
        assert!(Name::parse("hf:a/b@main").is_err());
    }

    #[test]
    fn a_penalty_that_is_not_applied_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = |text: &str| {
            std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
            unapplied(folder.path())
        };
        assert!(told(r#"{"repetition_penalty": 1.05}"#).unwrap().contains("repetition_penalty = 1.05"));
        assert_eq!((told(r#"{"repetition_penalty": 1.0}"#), told("{}")), (None, None));
    }

    #[test]
    fn a_models_hash_follows_its_content_and_is_remembered() {
        let home = tempfile::tempdir().unwrap();
        let memory = home.path().join("cache/digests.json");
        let folder = home.path().join("model");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), "{}").unwrap();
        std::fs::write(folder.join("model.safetensors"), "weights").unwrap();
        let hash = |at: &Path| content_hash(at, &memory).unwrap();
        let first = hash(&folder);
        std::fs::write(folder.join("README.md"), "not read").unwrap();
        assert_eq!(hash(&folder), first);
        let moved = home.path().join("moved");
        std::fs::rename(&folder, &moved).unwrap();
        assert_eq!(hash(&moved), first);

        // The remembered hash is used: a false one shows in the result.
        let remembered = std::fs::read_to_string(&memory).unwrap();
        let known: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&remembered).unwrap();
        let false_memory: serde_json::Map<String, serde_json::Value> =
            known.into_iter().map(|(stamp, _)| (stamp, "0".into())).collect();
        std::fs::write(&memory, serde_json::to_string(&false_memory).unwrap()).unwrap();
        assert_ne!(hash(&moved), first);
        std::fs::write(&memory, "damaged").unwrap();
        assert_eq!(hash(&moved), first);

        std::fs::write(moved.join("model.safetensors"), "weights!").unwrap();
        let changed = hash(&moved);
        assert_ne!(changed, first);
        std::fs::write(moved.join("tokenizer.json"), "{}").unwrap();
        assert_ne!(hash(&moved), changed);
        let file = home.path().join("a.gguf");
        std::fs::write(&file, "x").unwrap();
        let single = hash(&file);
        std::fs::rename(&file, home.path().join("b.gguf")).unwrap();
        assert_eq!(hash(&home.path().join("b.gguf")), single);
    }
}
