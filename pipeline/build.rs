//! Lets the `kvcsr` binary and its tests find libtorch at run time: see
//! `crates/neuraldict/build.rs`, which passes on the folder.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Every manifest names the compiler.
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version =
        Command::new(rustc).arg("--version").output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    println!("cargo::rustc-env=KVCSR_RUSTC={}", version.unwrap_or_default().trim());
    let Some(lib) = env::var_os("DEP_KVCSR_NEURALDICT_LIBTORCH_LIB") else {
        return;
    };
    let lib = lib.to_string_lossy();
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    if Path::new(lib.as_ref()).join("libtorch_cuda.so").exists() {
        // The program names no symbol of the CUDA library: keep it linked nevertheless.
        println!("cargo::rustc-link-arg=-Wl,--push-state,--no-as-needed");
        println!("cargo::rustc-link-arg=-L{lib}");
        println!("cargo::rustc-link-arg=-ltorch_cuda");
        println!("cargo::rustc-link-arg=-ltorch");
        println!("cargo::rustc-link-arg=-Wl,--pop-state");
    }
}
