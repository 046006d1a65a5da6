//! What a stage is: declared once, made once, recorded beside its outputs.

mod declaration;
mod lock;
mod makers;
mod making;
mod needs;
mod placing;
mod run;
mod slices;
mod start;

use anyhow::{Result, bail};
use serde_json::{Map, Value};

pub use self::declaration::{Artefact, CommandOption, Declaration, Need, Output, SchemeNames};
pub use self::lock::{Lock, lock, without_locks};
pub use self::makers::{codebook_file, folder, makers, needs, peer_codebooks, plans_folder, wanted};
pub use self::making::{is_made, run};
pub use self::needs::downloads;
pub use self::placing::{remove_dir, remove_file};
pub use self::run::{Run, Stage};
pub use self::slices::{Part, SHARD, Slice, Sliced};

/// The members of a serialisable section as named parameters.
pub fn parameters_of(section: &impl serde::Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(section)? {
        Value::Object(map) => Ok(map),
        other => bail!("parameters must be named, found {other}"),
    }
}
