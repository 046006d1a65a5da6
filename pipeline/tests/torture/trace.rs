//! The system calls of a command, from strace.

use std::path::{Path, PathBuf};

/// A call that makes something durable or gives it a name, in the order of the calls.
#[derive(Debug, PartialEq)]
pub enum Call {
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
}

/// Arguments of strace that print these calls, with the paths of open files, to `log`.
pub fn arguments(log: &Path) -> Vec<String> {
    let calls = "trace=fsync,fdatasync,rename,renameat,renameat2";
    ["strace", "-f", "-qq", "-y", "-s", "4096", "-e", calls, "-o", log.to_str().unwrap()].map(str::to_owned).to_vec()
}

/// The calls in a log.
pub fn parse(log: &str) -> Vec<Call> {
    log.lines().filter_map(call).collect()
}

/// `17 fsync(5</tmp/a>) = 0`, `17 rename("/tmp/a", "/tmp/b") = 0`; a call that takes two lines counts at its first line.
fn call(line: &str) -> Option<Call> {
    let (_, call) = line.split_once(' ')?;
    let call = call.trim_start();
    if call.starts_with("fsync(") || call.starts_with("fdatasync(") {
        let (_, rest) = call.split_once('<')?;
        let (path, _) = rest.split_once('>')?;
        return Some(Call::Sync(path.into()));
    }
    if !call.starts_with("rename") {
        return None;
    }
    let mut quoted = call.split('"').skip(1).step_by(2);
    Some(Call::Rename(quoted.next()?.into(), quoted.next()?.into()))
}

#[test]
fn lines_of_strace_are_read() {
    let log = "12 fsync(5</a/b>)  = 0\n13 rename(\"/a/b\", \"/a/c\") = 0\n12 fdatasync(3</d> <unfinished ...>\n12 <... fdatasync resumed>) = 0\n";
    let expected = [Call::Sync("/a/b".into()), Call::Rename("/a/b".into(), "/a/c".into()), Call::Sync("/d".into())];
    assert_eq!(parse(log), expected);
}
