//! Joins the code cells of each notebook into a function.

use std::{env, error::Error, fmt::Write as _, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new("..");
    println!("cargo::rerun-if-changed=..");
    let mut notebooks: Vec<_> = fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ipynb"))
        .collect();
    notebooks.sort();
    let mut code = String::new();
    for path in &notebooks {
        println!("cargo::rerun-if-changed={}", path.display());
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        writeln!(code, "pub fn notebook_{}() {{", stem.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))?;
        code += &cells(path).map_err(|error| format!("{}: {error}", path.display()))?;
        code += "}\n";
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("notebooks.rs"), code)?;
    Ok(())
}

/// The code of a notebook, a semicolon after each cell so that its last value is dropped. The kernel's own commands (`:dep`) are left out.
fn cells(path: &Path) -> Result<String, Box<dyn Error>> {
    let notebook: serde_json::Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let mut code = String::new();
    for cell in notebook["cells"].as_array().ok_or("no cells")? {
        if cell["cell_type"] != "code" {
            continue;
        }
        for line in cell["source"].as_array().ok_or("a cell without source lines")? {
            let line = line.as_str().ok_or("a source line that is no text")?;
            if !line.starts_with(':') {
                code += line;
            }
        }
        code += "\n;\n";
    }
    Ok(code)
}
