//! Layers of configuration: a profile overrides the defaults, and the command line overrides both.

use std::path::Path;

use anyhow::{Result, anyhow};
use toml::{Table, Value};

/// The section whose keys are names of other parameters.
const SWEEP: &str = "sweep";

/// The names of the profiles in a folder, separated by commas.
pub fn list(profiles: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(profiles)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str().and_then(|n| n.strip_suffix(".toml")).map(str::to_owned))
        .filter(|n| n != "defaults")
        .collect();
    names.sort();
    names.join(", ")
}

/// Replaces values of `base` by those of `over`. `base` has all known keys; any other key is an error.
pub fn merge(base: &mut Table, over: Table) -> Result<()> {
    for (key, value) in over {
        match (known(base, "", &key)?, value) {
            // Keys of the sweep are paths of other parameters.
            (Value::Table(section), Value::Table(over)) if key == SWEEP => section.extend(over),
            (Value::Table(section), Value::Table(over)) => {
                for (name, value) in over {
                    *known(section, &format!("{key}."), &name)? = value;
                }
            }
            (old, value) => *old = value,
        }
    }
    Ok(())
}

fn known<'t>(table: &'t mut Table, section: &str, key: &str) -> Result<&'t mut Value> {
    let all = table.keys().cloned().collect::<Vec<_>>().join(", ");
    table.get_mut(key).ok_or_else(|| anyhow!("unknown key `{section}{key}`. Known here: {all}"))
}

/// Applies an override such as `train.atoms=2048`. The value is read as TOML; a text that is no TOML is taken as a string.
pub fn apply(config: &mut Table, item: &str) -> Result<()> {
    let (path, text) = item.split_once('=').ok_or_else(|| anyhow!("override `{item}`: expected path=value"))?;
    let value = format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut table = config;
    for key in keys {
        table = table
            .get_mut(key)
            .and_then(Value::as_table_mut)
            .ok_or_else(|| anyhow!("override `{item}`: there is no section `{key}`"))?;
    }
    let old = table.get(last).ok_or_else(|| {
        let known: Vec<&str> = table.keys().map(String::as_str).collect();
        anyhow!("override `{item}`: unknown key `{last}`. Known here: {}", known.join(", "))
    })?;
    let value = match (old, value) {
        (Value::Float(_), Value::Integer(i)) => Value::Float(i as f64),
        (_, value) => value,
    };
    table.insert(last.to_owned(), value);
    Ok(())
}
