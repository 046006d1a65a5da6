//! Makes libtorch available at run time to the tests and binaries of this package and of its dependents.
//!
//! `torch-sys` gives the folder of libtorch (`DEP_TCH_LIBTORCH_LIB`) only to packages with a direct dependency on it. Link
//! arguments apply only to the package that prints them. This script therefore sets the run path of its own targets and
//! passes the folder on. The build script of a dependent reads `DEP_KVCSR_NEURALDICT_LIBTORCH_LIB`.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB") else {
        // torch-sys does not give the folder if it is only documented (docs builds) or statically linked elsewhere.
        return;
    };
    let lib = lib.to_string_lossy();
    println!("cargo::metadata=libtorch_lib={lib}");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    if Path::new(lib.as_ref()).join("libtorch_cuda.so").exists() {
        // The program uses no symbol of the CUDA library, which registers its kernels when it is loaded. The linker must
        // therefore be told to keep it.
        println!("cargo::rustc-link-arg=-Wl,--push-state,--no-as-needed");
        println!("cargo::rustc-link-arg=-L{lib}");
        println!("cargo::rustc-link-arg=-ltorch_cuda");
        println!("cargo::rustc-link-arg=-ltorch");
        println!("cargo::rustc-link-arg=-Wl,--pop-state");
    }
}
