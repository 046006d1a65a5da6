//! With the feature `cuda`, compiles the kernels of `src/tensor/fused` to PTX. Without it, does nothing.
//!
//! It works like the build of candle's own kernels: it takes `nvcc` from `NVCC`, `PATH` or `CUDA_HOME`, and compiles
//! for the compute capability in `CUDA_COMPUTE_CAP` or for that of the installed GPU.

#[cfg(feature = "cuda")]
fn main() -> cudaforge::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    cudaforge::KernelBuilder::new()
        .source_files(["src/tensor/fused/pursue.cu", "src/tensor/fused/scores.cu"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?
        .write(std::path::Path::new(&out).join("fused.rs"))
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
