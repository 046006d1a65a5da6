//! `kvcsr fetch longbench`: fetches LongBench from its publishers. Downloading needs the cargo feature `hub`.
//!
//! The records are `data.zip` of the dataset repository at one commit. The file `source.json` beside them names it. The first
//! time it is the newest commit, which `source.json` then pins. Prompts and limits are LongBench's own config files at a commit
//! that is named here, checked against their sha256. Every task must have as many records as LongBench says.

use std::path::Path;

use anyhow::{Result, bail};

use crate::paths::Paths;

/// The word after `fetch` on the command line.
pub const WORD: &str = "longbench";
/// The folder in the download cache.
pub const FOLDER: &str = "longbench";

/// Downloads LongBench into the cache, where the stage `longbench` finds it.
pub fn fetch(paths: &Paths) -> Result<()> {
    let folder = paths.cache.join(FOLDER);
    if cfg!(not(feature = "hub")) {
        bail!(
            "this build cannot download LongBench: build it with `cargo build --release --locked --package kvcsr --features hub`; or unpack data.zip \
             of https://huggingface.co/datasets/THUDM/LongBench and LongBench/config of https://github.com/THUDM/LongBench into one folder, \
             as data/ and config/, and set KVCSR_LONGBENCH to it"
        );
    }
    download(&folder)?;
    crate::ui::line("fetch", &format!("LongBench is in {}; `just longbench` finds it there", folder.display()));
    Ok(())
}

#[cfg(not(feature = "hub"))]
fn download(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(feature = "hub")]
fn download(folder: &Path) -> Result<()> {
    use anyhow::Context;
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Repo, RepoType};

    let pinned = unpacked::Origin::read(folder)?;
    for (name, sha256) in unpacked::CONFIG {
        unpacked::keep_config(folder, name, sha256, || unpacked::config_file(name))?;
    }
    let api = ApiBuilder::from_env().with_progress(true).build()?;
    let at =
        |revision: &str| api.repo(Repo::with_revision(unpacked::DATASET.into(), RepoType::Dataset, revision.into()));
    let revision = match pinned {
        Some(origin) => origin.revision,
        None => at("main").info().with_context(|| format!("datasets/{}", unpacked::DATASET))?.sha,
    };
    let archive = at(&revision)
        .get(unpacked::ARCHIVE)
        .with_context(|| format!("datasets/{} at {revision}", unpacked::DATASET))?;
    unpacked::unpack(&archive, folder, &revision, kvcsr_eval::longbench::tasks::TaskTable::embedded().tasks())
}

/// Everything except the network.
#[cfg(any(feature = "hub", test))]
mod unpacked {
    use std::fs::File;
    use std::io::Read;
    use std::path::Path;

    use anyhow::{Context, Result, bail};
    use kvcsr_codec::atomic::AtomicFile;
    use kvcsr_eval::longbench::record::read_records;
    use kvcsr_eval::longbench::tasks::Task;
    use serde::{Deserialize, Serialize};

    use crate::atomic;
    use crate::sources::{sha256, sha256_of};

    /// The dataset repository, and its file with the records.
    pub const DATASET: &str = "THUDM/LongBench";
    pub const ARCHIVE: &str = "data.zip";
    /// The config files of THUDM/LongBench at this commit, by sha256.
    pub const CONFIG_COMMIT: &str = "2e00731f8d0bff23dc4325161044d0ed8af94c1e";
    pub const CONFIG: [(&str, &str); 3] = [
        ("dataset2maxlen.json", "72966b3c0933e214591637fb085798c5e687ebff4ddaab5d99bbc31120532022"),
        ("dataset2prompt.json", "56d22ad4f382169c2b8a11ff4c982a4a1bea096c8152b0f0b85b64686b157c30"),
        ("model2maxlen.json", "2405c0b85b215a504fb6a8f69c4982db7e2be2d53d177c69891cdcf0fe78f3ce"),
    ];
    /// The largest unpacked file, in bytes. No file of LongBench comes near it: an archive with a larger one is not LongBench.
    const LARGEST: u64 = 1 << 28;
    const ORIGIN: &str = "source.json";

    /// Where the records came from.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Origin {
        pub dataset: String,
        /// A commit of the dataset repository.
        pub revision: String,
        pub archive_sha256: String,
    }

    impl Origin {
        /// What an earlier download pinned.
        pub fn read(folder: &Path) -> Result<Option<Self>> {
            let path = folder.join(ORIGIN);
            if !path.is_file() {
                return Ok(None);
            }
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let origin: Self = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            if origin.revision.len() != 40 || !origin.revision.chars().all(|c| c.is_ascii_hexdigit()) {
                bail!("{}: revision `{}` is no commit of 40 hexadecimal digits", path.display(), origin.revision);
            }
            Ok(Some(origin))
        }
    }

    /// Downloads one config file of LongBench's repository with Python, which fetching needs in any case.
    #[cfg(feature = "hub")]
    pub fn config_file(name: &str) -> Result<Vec<u8>> {
        let url = format!("https://raw.githubusercontent.com/{DATASET}/{CONFIG_COMMIT}/LongBench/config/{name}");
        let read = "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())";
        let out = std::process::Command::new("python3").args(["-c", read, &url]).output().context("python3")?;
        if !out.status.success() {
            bail!("{url}: {}", String::from_utf8_lossy(&out.stderr).trim().lines().last().unwrap_or_default());
        }
        Ok(out.stdout)
    }

    /// Makes sure that a config file is there and has the expected sha256.
    pub fn keep_config(folder: &Path, name: &str, expected: &str, get: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
        let path = folder.join("config").join(name);
        if path.is_file() && sha256(&path)? == expected {
            return Ok(());
        }
        std::fs::create_dir_all(folder.join("config")).with_context(|| folder.display().to_string())?;
        let bytes = get()?;
        let found = sha256_of(&bytes);
        if found != expected {
            bail!("{name} of commit {CONFIG_COMMIT}: expected sha256 {expected}, found {found}; nothing was kept");
        }
        atomic::write(&path, &bytes)
    }

    /// Unpacks the records of `tasks` from the archive, and those of LongBench-E if the archive has them. The origin is written
    /// last: it means that the records are complete.
    pub fn unpack(archive: &Path, folder: &Path, revision: &str, tasks: &[Task]) -> Result<()> {
        let name = || archive.display().to_string();
        let mut zip = zip::ZipArchive::new(File::open(archive).with_context(name)?).with_context(name)?;
        std::fs::create_dir_all(folder.join("data")).with_context(|| folder.display().to_string())?;
        for task in tasks {
            for (suffix, needed) in [("", true), ("_e", false)] {
                let member = format!("data/{}{suffix}.jsonl", task.name);
                let file = match zip.by_name(&member) {
                    Ok(file) => file,
                    Err(_) if !needed => continue,
                    Err(error) => return Err(error).with_context(|| format!("{}: {member}", name())),
                };
                if file.size() > LARGEST {
                    bail!("{}: {member} has {} bytes, expected at most {LARGEST}", name(), file.size());
                }
                let target = folder.join(&member);
                let at = || target.display().to_string();
                let mut out = AtomicFile::create(&target).with_context(at)?;
                std::io::copy(&mut file.take(LARGEST), &mut out).with_context(at)?;
                out.persist().with_context(at)?;
                let records = read_records(task, &target)?;
                if needed && records.len() != task.samples {
                    bail!("{}: {} records, LongBench has {}", target.display(), records.len(), task.samples);
                }
            }
        }
        let origin = Origin { dataset: DATASET.into(), revision: revision.into(), archive_sha256: sha256(archive)? };
        atomic::write_json(&folder.join(ORIGIN), &origin)
    }

    #[cfg(test)]
    mod tests {
        #![allow(clippy::unwrap_used)]
        use std::io::Write;

        use kvcsr_eval::longbench::tasks::TaskTable;

        use super::*;

        const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

        fn archive(folder: &Path, files: &[(&str, usize)]) -> std::path::PathBuf {
            let path = folder.join(ARCHIVE);
            let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
            for (name, records) in files {
                zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
                for id in 0..*records {
                    let record = serde_json::json!({
                        "input": "", "context": "c", "answers": ["a"], "length": 1, "dataset": "lcc", "language": "code",
                        "all_classes": null, "_id": id.to_string()
                    });
                    writeln!(zip, "{record}").unwrap();
                }
            }
            zip.finish().unwrap();
            path
        }

        #[test]
        fn complete_records_are_kept_and_pinned() {
            let dir = tempfile::tempdir().unwrap();
            let lcc = std::slice::from_ref(TaskTable::embedded().get("lcc").unwrap());
            let folder = dir.path().join("kept");
            let good = archive(dir.path(), &[("data/lcc.jsonl", 500), ("data/lcc_e.jsonl", 3), ("data/../x", 1)]);
            assert_eq!(Origin::read(&folder).unwrap(), None);
            unpack(&good, &folder, COMMIT, lcc).unwrap();
            let origin = Origin::read(&folder).unwrap().unwrap();
            assert_eq!((origin.revision.as_str(), origin.archive_sha256), (COMMIT, sha256(&good).unwrap()));
            assert_eq!(std::fs::read_dir(folder.join("data")).unwrap().count(), 2);
        }

        #[test]
        fn what_is_not_longbench_is_refused_and_not_pinned() {
            let dir = tempfile::tempdir().unwrap();
            let lcc = std::slice::from_ref(TaskTable::embedded().get("lcc").unwrap());
            for (files, message) in [
                (&[("data/lcc.jsonl", 499)][..], "499 records, LongBench has 500"),
                (&[("data/trec.jsonl", 500)][..], "data/lcc.jsonl"),
            ] {
                let folder = dir.path().join("kept");
                let bad = archive(dir.path(), files);
                let error = format!("{:#}", unpack(&bad, &folder, COMMIT, lcc).unwrap_err());
                assert!(error.contains(message), "{error}");
                assert_eq!(Origin::read(&folder).unwrap(), None);
            }
            std::fs::write(dir.path().join(ORIGIN), r#"{"dataset": "d", "revision": "main", "archive_sha256": ""}"#)
                .unwrap();
            assert!(Origin::read(dir.path()).unwrap_err().to_string().contains("no commit"));
        }

        #[test]
        fn config_files_are_checked() {
            assert!(CONFIG.iter().all(|(_, sha256)| sha256.len() == 64));
            let dir = tempfile::tempdir().unwrap();
            let (name, hello) = ("x.json", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
            let bad = keep_config(dir.path(), name, hello, || Ok(b"hullo".to_vec())).unwrap_err().to_string();
            assert!(bad.contains(hello) && bad.contains("nothing was kept"), "{bad}");
            assert_eq!(std::fs::read_dir(dir.path().join("config")).unwrap().count(), 0);
            keep_config(dir.path(), name, hello, || Ok(b"hello".to_vec())).unwrap();
            keep_config(dir.path(), name, hello, || panic!("it is there already")).unwrap();
        }
    }
}
