//! Long runs: inputs by number, in child processes that are watched.
//!
//! A reader may end its process (an allocation that fails, a stack that overflows) or never return. So inputs run in children: each
//! keeps the input at hand in a small mapped file before it runs it, and the parent, which finds the child dead or standing still,
//! saves that input and goes on with the next.

mod child;
mod counts;
mod parent;

pub use self::child::child;
pub use self::counts::{Counts, Find, State};
pub use self::parent::{Plan, run};
