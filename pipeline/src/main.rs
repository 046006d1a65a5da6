//! The `kvcsr` command. Everything is in the library beside it, so that its readers of files can be tested from outside.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvcsr::main()
}
