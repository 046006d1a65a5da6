//! Lets the program and the tests find libtorch at run time. See `crates/neuraldict/build.rs`, which passes the folder
//! on.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(lib) = env::var_os("DEP_KVCSR_NEURALDICT_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.to_string_lossy());
    }
}
