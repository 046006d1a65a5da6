//! Long runs: numbered inputs, in child processes that a parent watches.
//!
//! A reader may end its process (an allocation fails, or the stack overflows), or may never return. So inputs run in
//! child processes. Each child stores the current input in a small mapped file before it runs the input. If the parent
//! finds that the child has ended or does not progress, it saves that input and continues with the next one.

mod child;
mod counts;
mod parent;

pub use self::child::child;
pub use self::counts::{Counts, Find, State};
pub use self::parent::{Plan, run};
