//! Classification by the class names in the prediction.
//!
//! Source: `classification_score` of LongBench's `metrics.py`.

/// If `answer` is one of the classes found in `prediction`, one divided by the number of these classes, otherwise 0.
///
/// Found classes that are proper substrings of the answer are discarded. The original removes them from the list while it
/// iterates over it, so it skips the class after a removed one. This function does the same. `list.remove` deletes the first
/// equal entry. With duplicate classes this may be an entry before the current one.
#[must_use]
pub fn classification(prediction: &str, answer: &str, classes: &[String]) -> f64 {
    let mut found: Vec<&str> = classes.iter().map(String::as_str).filter(|class| prediction.contains(class)).collect();
    let mut at = 0;
    while let Some(&class) = found.get(at) {
        if answer.contains(class) && class != answer {
            let first = found.iter().position(|&other| other == class).unwrap_or(at);
            found.remove(first);
        }
        at += 1;
    }
    if found.contains(&answer) { 1.0 / found.len() as f64 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_class_after_a_removed_one_is_skipped() {
        // "a" is removed, "ab" is skipped and stays, so two classes remain.
        assert_eq!(classification("a ab abc", "abc", &classes(&["a", "ab", "abc"])), 0.5);
        assert_eq!(classification("a x abc", "abc", &classes(&["a", "abc"])), 1.0);
    }

    #[test]
    fn other_classes_share_the_score() {
        let all = classes(&["Date", "Food", "City"]);
        assert_eq!(classification("Date or City", "City", &all), 0.5);
        assert_eq!(classification("Date", "City", &all), 0.0);
        assert_eq!(classification("city", "City", &all), 0.0);
    }
}
