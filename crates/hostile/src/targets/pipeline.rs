//! Files that the `kvcsr` command reads.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Component, Path};

use kvcsr::readers::{self, Wanted};

use super::Verdict;
use crate::place::Place;

/// An accepted profile can be written and read again, and is then the same.
pub fn profile(input: &[u8], place: &Place) -> Verdict {
    place.write("own.toml", input);
    let Ok(config) = readers::profile(place.folder(), "own", &[]) else { return Verdict::Refused };
    place.write("again.toml", config.as_bytes());
    let again = readers::profile(place.folder(), "again", &[]).expect("a configuration that was written");
    assert!(again == config || config.contains("nan"), "another configuration comes back");
    Verdict::Taken
}

/// Each line is one `path=value`.
pub fn set(input: &[u8], place: &Place) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
    if !place.path("own.toml").is_file() {
        place.write("own.toml", b"corpora = ['wiki']\n");
    }
    let overrides: Vec<String> = text.split('\n').map(str::to_owned).collect();
    match readers::profile(place.folder(), "own", &overrides) {
        Ok(_) => Verdict::Taken,
        Err(_) => Verdict::Refused,
    }
}

/// All inputs in the list must be inside the folder of downloads.
pub fn sources(input: &[u8], place: &Place) -> Verdict {
    let data = place.path("data");
    if !data.is_dir() {
        fs::create_dir(&data).expect("a folder");
    }
    place.write("data/sources.toml", input);
    let cache = Path::new("/cache");
    let Ok(paths) = readers::sources(place.folder(), cache) else { return Verdict::Refused };
    for path in paths {
        let inside = path.strip_prefix("/cache/sources").expect("a path in the folder of downloads");
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        assert!(inside.components().count() >= 2 && inside.components().all(plain), "{}", path.display());
    }
    Verdict::Taken
}

/// The content of the wheels in the corpus: a file name, its text, and the sha256 of the text.
pub const MEMBER: (&str, &[u8], &str) =
    ("pkg/x.utf8", b"hello", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");

/// Only the requested file may appear, and only if it is the right one.
pub fn wheel(input: &[u8], place: &Place) -> Verdict {
    let wheel = place.write("x.whl", input);
    let (name, text, sha256) = MEMBER;
    let wanted = |file| Wanted { file, bytes: text.len() as u64, sha256 };
    let inside = place.path("inside");
    let target = inside.join("kept/x.utf8");
    let mut verdict = Verdict::Refused;
    for file in [name, "../x.utf8", "/x.utf8", "link"] {
        if readers::unpack(&wheel, &wanted(file), &target).is_ok() {
            verdict = Verdict::Taken;
            assert_eq!(fs::read(&target).expect("what was unpacked"), text);
            assert!(!target.is_symlink(), "a link was unpacked");
            fs::remove_file(&target).expect("a file of ours");
        }
    }
    let left = Place::names(&inside.join("kept"));
    assert!(left.is_empty(), "{left:?} is left");
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(place.path("whole"));
    let file = file.as_mut().expect("a file");
    if readers::append(&wheel, &wanted(name), 3, file).is_ok() {
        let mut all = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut all)).expect("what was appended");
        assert_eq!(all, [&[0; 3], text].concat());
    }
    assert!(
        file.metadata().expect("a file").len() <= 3 + text.len() as u64 + 1,
        "more was written than one byte too many"
    );
    let names = Place::names(place.folder());
    assert!(names.iter().all(|name| ["x.whl", "inside", "whole"].contains(&name.as_str())), "{names:?}");
    let inside = Place::names(&inside);
    assert!(inside.iter().all(|name| name == "kept"), "{inside:?}");
    verdict
}
