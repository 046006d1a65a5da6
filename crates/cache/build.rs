//! With feature `cuda`: compiles the kernels of `src/tensor/fused` to PTX. Else nothing.
//!
//! As candle's own kernels: `nvcc` of `NVCC`, `PATH` or `CUDA_HOME`, for the capability that
//! `CUDA_COMPUTE_CAP` names or the machine's card has.

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
