//! The batch scripts. Every value that comes from outside is quoted.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A job, or an array of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The name of its script and of its logs.
    pub name: String,
    /// The command of `kvcsr` with its arguments.
    pub command: Vec<String>,
    pub tasks: Tasks,
    /// The folders of the run that its tasks make, one for each task; empty if a task makes several.
    pub makes: Vec<String>,
    /// The names of the jobs that must succeed before it.
    pub after: Vec<String>,
}

/// The tasks of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Tasks {
    /// One task; the job is no array.
    One,
    /// This many tasks, one for each slice of the stage.
    Slices(usize),
    /// One task for each of these lists of further arguments.
    Each(Vec<Vec<String>>),
}

impl Tasks {
    /// The number of tasks.
    pub fn count(&self) -> usize {
        match self {
            Self::One => 1,
            Self::Slices(count) => *count,
            Self::Each(arguments) => arguments.len(),
        }
    }
}

/// What the scripts of a submission share.
#[derive(Debug)]
pub struct Place {
    /// The folder of scripts and logs.
    pub folder: PathBuf,
    /// The contents of the file [`TOKEN`] in that folder.
    pub token: String,
    /// The program.
    pub program: PathBuf,
    /// The folder in which it was called.
    pub current: PathBuf,
    /// Variables of the environment that it needs.
    pub environment: Vec<(String, String)>,
    /// How often a command that failed is run again.
    pub retries: usize,
}

/// The file by which a job checks that its node sees the same folder as the submitting machine.
pub const TOKEN: &str = "token";

/// The folder of the logs and of the exit status of each task.
pub const LOGS: &str = "logs";

/// The path of a task's log (`ending` is `log`) or of its exit status (`status`), relative to the folder of scripts.
pub fn task_file(job: &str, task: usize, ending: &str) -> PathBuf {
    Path::new(LOGS).join(format!("{job}-{task}.{ending}"))
}

/// Quotes a word, so that the shell takes it literally.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn words(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// The text of a job's script.
pub fn text(job: &Job, place: &Place) -> String {
    let Place { folder, token, program, current, environment, retries } = place;
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let mut text = String::from("#!/bin/bash\n# Written by kvcsr; the jobs are in jobs.json beside it.\n");
    // Writing to a string does not fail.
    let _ = writeln!(text, "cd {} || exit 1", path(current));
    for (name, value) in environment {
        let _ = writeln!(text, "export {name}={}", quoted(value));
    }
    let _ = write!(
        text,
        r#"folder={folder}
task="${{SLURM_ARRAY_TASK_ID:-1}}"
state="$folder/{LOGS}/"{name}"-$task.status"

# The folder must be the one that the submitting machine wrote to; a file system may show it a little late.
for wait in 0 1 2 4 8; do
    sleep "$wait"
    [ "$(cat "$folder/{TOKEN}" 2>/dev/null)" = {token} ] && break
done
if [ "$(cat "$folder/{TOKEN}" 2>/dev/null)" != {token} ] || ! echo running > "$state"; then
    echo "error: $folder on $(hostname) is not the folder that the jobs were submitted from, or cannot be written: runs must lie on a file system that all nodes share (KVCSR_DATA says where)" >&2
    exit 1
fi

command=({program} {command})
"#,
        folder = path(folder),
        name = quoted(&job.name),
        token = quoted(token),
        program = path(program),
        command = words(&job.command),
    );
    match &job.tasks {
        Tasks::One => {}
        Tasks::Slices(count) => drop(writeln!(text, "command+=('--shard' \"$task/{count}\")")),
        Tasks::Each(arguments) => {
            text += "case \"$task\" in\n";
            for (at, arguments) in arguments.iter().enumerate() {
                let _ = writeln!(text, "{}) command+=({}) ;;", at + 1, words(arguments));
            }
            text += "esac\n";
        }
    }
    let _ = write!(
        text,
        r#"
for attempt in $(seq {attempts}); do
    "${{command[@]}}"
    status=$?
    [ "$status" -eq 0 ] && break
    echo "attempt $attempt of {attempts} ended with status $status" >&2
    [ "$attempt" -lt {attempts} ] && sleep $((5 * attempt))
done
echo "$status" > "$state"
exit "$status"
"#,
        attempts = retries + 1,
    );
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn place() -> Place {
        Place {
            folder: "/data/it's/slurm".into(),
            token: "f00".into(),
            program: "/bin/kvcsr".into(),
            current: "/home/me".into(),
            environment: vec![("KVCSR_DATA".into(), "/data/$x".into())],
            retries: 1,
        }
    }

    fn job(tasks: Tasks) -> Job {
        let command = ["train", "--set", "train.trainer=\"mod\"; rm -rf '$HOME'"].map(str::to_owned).into();
        Job { name: "train".into(), command, tasks, makes: Vec::new(), after: Vec::new() }
    }

    const SLICES: &str = r#"#!/bin/bash
# Written by kvcsr; the jobs are in jobs.json beside it.
cd '/home/me' || exit 1
export KVCSR_DATA='/data/$x'
folder='/data/it'\''s/slurm'
task="${SLURM_ARRAY_TASK_ID:-1}"
state="$folder/logs/"'train'"-$task.status"

# The folder must be the one that the submitting machine wrote to; a file system may show it a little late.
for wait in 0 1 2 4 8; do
    sleep "$wait"
    [ "$(cat "$folder/token" 2>/dev/null)" = 'f00' ] && break
done
if [ "$(cat "$folder/token" 2>/dev/null)" != 'f00' ] || ! echo running > "$state"; then
    echo "error: $folder on $(hostname) is not the folder that the jobs were submitted from, or cannot be written: runs must lie on a file system that all nodes share (KVCSR_DATA says where)" >&2
    exit 1
fi

command=('/bin/kvcsr' 'train' '--set' 'train.trainer="mod"; rm -rf '\''$HOME'\''')
command+=('--shard' "$task/3")

for attempt in $(seq 2); do
    "${command[@]}"
    status=$?
    [ "$status" -eq 0 ] && break
    echo "attempt $attempt of 2 ended with status $status" >&2
    [ "$attempt" -lt 2 ] && sleep $((5 * attempt))
done
echo "$status" > "$state"
exit "$status"
"#;

    #[test]
    fn the_script_of_an_array_is_as_it_stands_here() {
        assert_eq!(text(&job(Tasks::Slices(3)), &place()), SLICES);
        let one = text(&job(Tasks::One), &place());
        assert_eq!(one, SLICES.replace("command+=('--shard' \"$task/3\")\n", ""));
        let each = vec![vec!["--run".to_owned(), "a".to_owned()], vec!["--run".to_owned(), "it's".to_owned()]];
        let each = text(&job(Tasks::Each(each)), &place());
        assert!(
            each.contains(
                "case \"$task\" in\n1) command+=('--run' 'a') ;;\n2) command+=('--run' 'it'\\''s') ;;\nesac\n"
            )
        );
    }

    #[test]
    fn the_shell_hands_on_what_was_given_and_retries_as_often_as_told() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("it's $(here)");
        std::fs::create_dir_all(folder.join(LOGS)).unwrap();
        std::fs::write(folder.join(TOKEN), "f00\n").unwrap();
        // A program that notes its arguments and fails the first time.
        let program = home.path().join("program");
        let noted = home.path().join("noted");
        let body = format!(
            "#!/bin/bash\nprintf '%s|' \"$@\" >> {0}\necho >> {0}\n[ \"$(wc -l < {0})\" -gt 1 ]\n",
            noted.display()
        );
        std::fs::write(&program, body).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let place = Place { folder: folder.clone(), program, current: home.path().into(), ..place() };
        let run = |place: &Place| {
            let script =
                text(&job(Tasks::Slices(3)), place).replace("sleep $((5 * attempt))", ":").replace("0 1 2 4 8", "0");
            std::process::Command::new("bash").args(["-c", &script]).env("SLURM_ARRAY_TASK_ID", "2").output().unwrap()
        };
        let out = run(&place);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && said.contains("attempt 1 of 2 ended with status 1"), "{said}");
        let line = "train|--set|train.trainer=\"mod\"; rm -rf '$HOME'|--shard|2/3|\n";
        assert_eq!(std::fs::read_to_string(&noted).unwrap(), line.repeat(2));
        assert_eq!(std::fs::read_to_string(folder.join(task_file("train", 2, "status"))).unwrap(), "0\n");
        // A node that sees another folder says so and runs nothing.
        let out = run(&Place { token: "other".into(), ..place });
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("all nodes share"), "{said}");
        assert_eq!(std::fs::read_to_string(&noted).unwrap(), line.repeat(2));
    }
}
