//! Files of LongBench.

use kvcsr_eval::longbench::metrics::CodeSim;
use kvcsr_eval::longbench::predictions::Predictions;
use kvcsr_eval::longbench::record::read_each_record;
use kvcsr_eval::longbench::score::{score_file, score_file_by_length};
use kvcsr_eval::longbench::tasks::TaskTable;

use super::Verdict;
use crate::place::Place;

/// Tasks of every metric, except those for Chinese, whose segmenter must first load a dictionary.
const TASKS: [&str; 7] = ["qasper", "trec", "lcc", "gov_report", "passage_count", "passage_retrieval_en", "triviaqa"];

/// The records of a task with classes.
pub fn records(input: &[u8], place: &Place) -> Verdict {
    let task = TaskTable::embedded().get("trec").expect("a task of the table");
    let Ok(records) = read_each_record(task, &place.write("trec.jsonl", input)) else { return Verdict::Refused };
    let taken = records.iter().flatten().count();
    for record in records.iter().flatten() {
        assert!(!record.answers.is_empty());
    }
    if taken > 0 { Verdict::Taken } else { Verdict::Refused }
}

/// A file of predictions is scored as one of the tasks. The same file is also opened as a run's own file.
pub fn predictions(input: &[u8], place: &Place) -> Verdict {
    let task = TASKS[input.len() % TASKS.len()];
    let known = TaskTable::embedded().get(task).expect("a task of the table");
    let path = place.write("some.jsonl", input);
    let scored = score_file(known, &path, CodeSim::Difflib);
    let _ = score_file_by_length(known, &path, CodeSim::Difflib);
    let folder = place.path("predictions");
    if !folder.is_dir() {
        std::fs::create_dir_all(folder.join("dense")).expect("a folder");
    }
    place.write("predictions/dense/qasper.jsonl", input);
    let opened = Predictions::open(&folder);
    if let Ok(predictions) = &opened {
        assert!(predictions.rows().iter().all(|row| row.scheme == "dense" && row.task == "qasper"));
    }
    match scored {
        Ok(score) => {
            assert!((0.0..=100.0).contains(&score.score), "{}", score.score);
            Verdict::Taken
        }
        Err(_) if opened.is_ok_and(|predictions| !predictions.rows().is_empty()) => Verdict::Taken,
        Err(_) => Verdict::Refused,
    }
}
