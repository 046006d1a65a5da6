//! Lets the tests and binaries of this package, and those of its dependents, find libtorch at run
//! time.
//!
//! `torch-sys` tells where libtorch is (`DEP_TCH_LIBTORCH_LIB`), but only to packages that name it
//! as a direct dependency, and link arguments reach no further than the package that prints them.
//! So this script sets the run path of its own targets and hands the folder on: a dependent's build
//! script reads `DEP_KVCSR_NEURALDICT_LIBTORCH_LIB`.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB") else {
        // torch-sys is silent when it is only documented (docs builds) or statically linked
        // elsewhere.
        return;
    };
    let lib = lib.to_string_lossy();
    println!("cargo::metadata=libtorch_lib={lib}");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    if Path::new(lib.as_ref()).join("libtorch_cuda.so").exists() {
        // Nothing in the program names a symbol of the CUDA library: it registers its kernels when
        // it is loaded, so the linker must be told to keep it.
        println!("cargo::rustc-link-arg=-Wl,--push-state,--no-as-needed");
        println!("cargo::rustc-link-arg=-L{lib}");
        println!("cargo::rustc-link-arg=-ltorch_cuda");
        println!("cargo::rustc-link-arg=-ltorch");
        println!("cargo::rustc-link-arg=-Wl,--pop-state");
    }
}
