//! `data/sources.toml` and the download cache: every input by package, version, file and sha256.

mod fetch;
mod parts;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use kvcsr_lab::documents::{Collection, Member};
use kvcsr_lab::places;
use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use self::fetch::{fetch, unpack};
pub use self::parts::append;
use crate::paths::Paths;

/// What an input is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    Model,
    Text,
    /// A text that the suite's records are made from.
    Tasks,
    /// One long document of a collection.
    Document,
}

/// How a text file is cut into documents.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Documents {
    /// One document per line.
    Lines,
    /// A document starts at each line that starts with this text.
    StartsWith(String),
    /// The file has no marks: it is cut at blank lines into pieces of at least this many bytes.
    BlocksOf(usize),
}

/// One input.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Listed")]
pub struct Source {
    pub id: String,
    pub kind: SourceKind,
    pub registry: String,
    pub origin: Origin,
    pub bytes: u64,
    pub sha256: String,
    pub licence: String,
    pub purpose: String,
    pub documents: Option<Documents>,
}

/// What an input is taken from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// One file of a package.
    Package { package: String, version: String, file: String },
    /// Several files of packages, joined in their order under the name `file`.
    Parts { file: String, parts: Vec<Part> },
}

/// A piece of an input: one file of a package.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub package: String,
    pub version: String,
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
}

/// What a name in the list denotes. All names become parts of paths. Package and version also become parts of a command of pip,
/// which would read `name @ address` as a place to download from.
#[derive(Debug, Clone, Copy)]
enum Named {
    Id,
    Package,
    Version,
    File,
}

impl Named {
    fn key(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Package => "package",
            Self::Version => "version",
            Self::File => "file",
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::File => "a path inside the package",
            _ => "letters, digits and `._+!-`, a letter or digit first",
        }
    }

    fn allows(self, name: &str) -> bool {
        match self {
            Self::File => !name.starts_with('-') && places::stays_inside(name),
            _ => {
                name.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || "._+!-".contains(c))
            }
        }
    }
}

/// One input as the file lists it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    id: String,
    kind: SourceKind,
    registry: String,
    package: Option<String>,
    version: Option<String>,
    file: String,
    parts: Option<Vec<Part>>,
    bytes: u64,
    sha256: String,
    licence: String,
    #[serde(rename = "use")]
    purpose: String,
    documents: Option<Documents>,
}

impl TryFrom<Listed> for Source {
    type Error = String;

    fn try_from(listed: Listed) -> Result<Self, String> {
        let Listed { id, kind, registry, package, version, file, parts, bytes, sha256, licence, purpose, documents } =
            listed;
        let origin = match (package, version, parts) {
            (Some(package), Some(version), None) => Origin::Package { package, version, file },
            (None, None, Some(parts)) if !parts.is_empty() => {
                let joined = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.bytes));
                if joined != Some(bytes) {
                    let joined = joined.map_or_else(|| "over 2^64".to_owned(), |joined| joined.to_string());
                    return Err(format!("source `{id}`: expected {bytes} bytes, its parts have {joined} together"));
                }
                Origin::Parts { file, parts }
            }
            _ => return Err(format!("source `{id}`: expected either `package` and `version`, or `parts`")),
        };
        Ok(Self { id, kind, registry, origin, bytes, sha256, licence, purpose, documents })
    }
}

/// All inputs of `data/sources.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    #[serde(rename = "source")]
    sources: Vec<Source>,
    #[serde(rename = "collection", default)]
    collections: Vec<Collection>,
}

impl Sources {
    /// Reads `data/sources.toml`.
    pub fn load(root: &Path) -> Result<Self> {
        let path = root.join("data/sources.toml");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let sources: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        for source in sources.sources.iter().chain(&sources.documents()) {
            if let Some((what, found)) = source.names().find(|(what, name)| !what.allows(name)) {
                bail!(
                    "{}: source `{}`: {} {found:?}: expected {}",
                    path.display(),
                    source.id,
                    what.key(),
                    what.expected()
                );
            }
        }
        Ok(sources)
    }

    /// The input called `id`, which must be of `kind`.
    pub fn get(&self, id: &str, kind: SourceKind) -> Result<&Source> {
        self.sources.iter().find(|s| s.id == id && s.kind == kind).ok_or_else(|| {
            let known: Vec<&str> = self.sources.iter().filter(|s| s.kind == kind).map(|s| s.id.as_str()).collect();
            anyhow!("data/sources.toml has no {kind:?} called `{id}`; it has {}", known.join(", "))
        })
    }

    /// All inputs except the long documents.
    pub fn all(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter()
    }

    /// The long documents, one input each.
    pub fn documents(&self) -> Vec<Source> {
        let of = |collection| move |member| Source::of_document(collection, member);
        self.collections.iter().flat_map(|collection| collection.files.iter().map(of(collection))).collect()
    }
}

impl Source {
    fn of_document(collection: &Collection, member: &Member) -> Self {
        Self {
            id: collection.name_of(member),
            kind: SourceKind::Document,
            registry: collection.registry.clone(),
            origin: Origin::Package {
                package: collection.package.clone(),
                version: collection.version.clone(),
                file: member.file.clone(),
            },
            bytes: member.bytes,
            sha256: member.sha256.clone(),
            licence: collection.licence.clone(),
            purpose: collection.purpose.clone(),
            documents: None,
        }
    }

    /// A source with only a file name, a size and a sha256, for tests of the readers.
    pub(crate) fn of_file(file: &str, bytes: u64, sha256: &str) -> Self {
        Self {
            id: file.to_owned(),
            kind: SourceKind::Text,
            registry: String::new(),
            origin: Origin::Package { package: String::new(), version: String::new(), file: file.to_owned() },
            bytes,
            sha256: sha256.to_owned(),
            licence: String::new(),
            purpose: String::new(),
            documents: None,
        }
    }

    /// Every name that becomes part of a path or of a command.
    fn names(&self) -> impl Iterator<Item = (Named, &str)> {
        let of_package =
            |package, version, file| [(Named::Package, package), (Named::Version, version), (Named::File, file)];
        let names: Vec<(Named, &str)> = match &self.origin {
            Origin::Package { package, version, file } => of_package(&**package, &**version, &**file).into(),
            Origin::Parts { file, parts } => {
                let names = parts.iter().flat_map(|part| of_package(&part.package, &part.version, &part.file));
                [(Named::Id, &*self.id), (Named::File, file)].into_iter().chain(names).collect()
            }
        };
        names.into_iter()
    }

    /// The packages it is taken from, in words.
    pub fn packages(&self) -> String {
        match &self.origin {
            Origin::Package { package, version, .. } => format!("{package} {version}"),
            Origin::Parts { parts, .. } => {
                let name = |part: &Part| format!("{} {}", part.package, part.version);
                let ends = [parts.first(), parts.last()].map(|part| part.map(name).unwrap_or_default());
                format!("{} parts, {}", parts.len(), ends.join(" to "))
            }
        }
    }

    /// The path of the file after it was fetched.
    pub fn path(&self, paths: &Paths) -> PathBuf {
        match &self.origin {
            Origin::Package { package, version, file } => places::in_package(&paths.cache, package, version, file),
            Origin::Parts { file, .. } => places::joined(&paths.cache, &self.id, file),
        }
    }

    /// The path of the file; if it was not fetched, an error that says what to do.
    pub fn fetched(&self, paths: &Paths) -> Result<PathBuf> {
        let path = self.path(paths);
        if path.is_file() {
            return Ok(path);
        }
        match &self.origin {
            Origin::Package { file, .. } => {
                bail!("{file} was not fetched yet: run `just fetch profile={}`", paths.profile())
            }
            Origin::Parts { .. } => {
                bail!("{} was not fetched yet: run `just fetch set=\"model={}\"`", path.display(), self.id)
            }
        }
    }

    /// A text that says that the file at `path` was not fetched, and how many of its parts are there.
    pub fn missing(&self, path: &Path) -> String {
        match &self.origin {
            Origin::Parts { parts, .. } => match parts::there(&parts::unfinished(path), parts) {
                0 => "not fetched".to_owned(),
                there => format!("not fetched ({there} of {} parts are there)", parts.len()),
            },
            Origin::Package { .. } => "not fetched".to_owned(),
        }
    }

    /// Checks the size and the sha256 of a file. For a file in parts, the error names the first wrong part.
    pub fn verify(&self, path: &Path) -> Result<()> {
        let whole = self.verify_whole(path);
        match (&self.origin, whole) {
            (Origin::Parts { parts, .. }, Err(error)) if path.is_file() => {
                Err(parts::first_wrong(path, parts)?.map_or(error, |wrong| anyhow!("{}: {wrong}", path.display())))
            }
            (_, whole) => whole,
        }
    }

    fn verify_whole(&self, path: &Path) -> Result<()> {
        let bytes = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
        if bytes != self.bytes {
            bail!("{}: expected {} bytes, found {bytes}", path.display(), self.bytes);
        }
        let found = sha256(path)?;
        if found != self.sha256 {
            bail!("{}: expected sha256 {}, found {found}", path.display(), self.sha256);
        }
        Ok(())
    }
}

/// sha256 of a file's contents, in hexadecimal.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hexadecimal(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// sha256 of some bytes, in hexadecimal.
#[cfg(any(feature = "hub", test))]
pub fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_committed_list_is_well_formed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let sources = Sources::load(&root).unwrap();
        assert!(sources.documents().len() >= 64, "{} long documents", sources.documents().len());
        for source in sources.all().chain(&sources.documents()) {
            assert_eq!(source.sha256.len(), 64, "{}", source.id);
            assert!(!source.licence.is_empty() && !source.purpose.is_empty(), "{}", source.id);
            assert_eq!(source.documents.is_some(), source.kind == SourceKind::Text, "{}", source.id);
            if let Origin::Parts { parts, .. } = &source.origin {
                assert!(parts.iter().all(|part| part.sha256.len() == 64), "{}", source.id);
            }
        }
        assert!(sources.get("nope", SourceKind::Model).unwrap_err().to_string().contains("smollm2"));
    }
    #[test]
    fn a_source_is_one_file_or_parts_that_make_up_its_size() {
        let listed = |origin: &str| {
            let rest = "id = 'x'\nkind = 'model'\nregistry = 'pypi'\nfile = 'x.gguf'\nbytes = 5\nsha256 = ''\nlicence = ''\nuse = ''";
            toml::from_str::<Source>(&format!("{rest}\n{origin}")).map_err(|error| error.to_string())
        };
        let part =
            |bytes: usize| format!("{{ package = 'p', version = '1', file = 'a', bytes = {bytes}, sha256 = '' }}");
        assert!(listed("package = 'p'\nversion = '1'").is_ok());
        let whole = listed(&format!("parts = [{}, {}]", part(2), part(3))).unwrap();
        assert_eq!(whole.packages(), "2 parts, p 1 to p 1");
        let short = listed(&format!("parts = [{}]", part(2))).unwrap_err();
        assert!(short.contains("source `x`: expected 5 bytes, its parts have 2 together"), "{short}");
        let both = format!("package = 'p'\nversion = '1'\nparts = [{}]", part(5));
        for wrong in ["", "package = 'p'", "parts = []", &both] {
            assert!(listed(wrong).unwrap_err().contains("either `package` and `version`, or `parts`"), "{wrong}");
        }
    }
}
