//! What to do when the system refuses something, by the number of its error.
//!
//! Errors of the system reach the user inside errors of several libraries. All of these keep the number in their text.

/// A sentence to print after an error, if the error contains one of these numbers.
pub fn of(error: &str) -> Option<&'static str> {
    let of_number = |(numbers, remedy): &(&[u32], &'static str)| {
        let found = numbers.iter().any(|number| error.contains(&format!("(os error {number})")));
        found.then_some(*remedy)
    };
    REMEDIES.iter().find_map(of_number)
}

/// Numbers of Linux errors, and what to do about them.
const REMEDIES: [(&[u32], &str); 6] = [
    // ENOSPC, EDQUOT
    (
        &[28, 122],
        "the disk or the quota is full: free some space, or put outputs (KVCSR_DATA) or downloads (KVCSR_CACHE) on another disk. \
         Finished outputs are untouched, and the same command continues where it stopped",
    ),
    // EFBIG
    (&[27], "a file is larger than this shell allows: raise `ulimit -f`. The same command continues where it stopped"),
    // EROFS
    (
        &[30],
        "the file system is read-only: mount it for writing, or set KVCSR_DATA (outputs) or KVCSR_CACHE (downloads) to a folder \
         that can be written",
    ),
    // EPERM, EACCES
    (
        &[1, 13],
        "the user who runs this may not do that: change owner or permissions of the path (ls -ld), or set KVCSR_DATA (outputs) or \
         KVCSR_CACHE (downloads) to a folder of their own",
    ),
    // ENOMEM
    (&[12], "memory has run out: end other programs, raise `ulimit -v`, or lower the stage's parameters"),
    // EMFILE
    (&[24], "too many files are open: raise `ulimit -n`"),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_number_of_the_systems_error_tells_the_way_out() {
        let text = |number| format!("stage `train`: x/y: {}", std::io::Error::from_raw_os_error(number));
        assert!(of(&text(28)).unwrap().contains("KVCSR_DATA"));
        assert!(of(&text(13)).unwrap().contains("permissions"));
        assert!(of(&text(30)).unwrap().contains("read-only"));
        assert_eq!(of(&text(2)), None);
        assert_eq!(of("train.atoms = 28"), None);
    }
}
