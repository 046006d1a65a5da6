//! Matching pursuit and the scores of coded keys, each as one CUDA kernel (feature `cuda`).
//!
//! Both are compiled for sm_80, sm_89 and sm_90. They have never run on a GPU: `just check-cuda` compiles and links
//! them, and the tests here need a CUDA device.
//!
//! | function | instead of | kernel |
//! |---|---|---|
//! | [`pursue`] | a matrix product, a search and an update per step | `pursue.cu`: residuals stay in shared memory for all steps |
//! | [`scores`] | restoring, rotating, storing keys, then a product | `scores.cu`: keys are only in registers and shared memory |

mod input;
#[cfg(test)]
mod tests;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{DType, Result, Tensor, bail};
use input::{aligned, check, int, output, view};

mod ptx {
    include!(concat!(env!("OUT_DIR"), "/fused.rs"));
}

/// Threads of a block, in both kernels.
const THREADS: u32 = 256;
/// Rows that a block of `pursue_4` codes together. If there are too few rows to fill a GPU, each row gets its own
/// block.
const ROWS: usize = 4;
const ROWS_TO_SHARE: usize = 1024;
/// The largest number of channels that `pursue` supports: `ROWS` residuals of this size are in shared memory.
const PURSUE_WIDTH: usize = 1024;
/// The largest number of channels that `scores` supports: the registers of a warp hold them.
const SCORES_WIDTH: usize = 256;
/// Tokens per block of `scores`.
const TOKENS: usize = 32;
/// The largest number of blocks along the second axis of a grid.
const HEADS: usize = 65_535;

/// Matching pursuit of `rows`, `(n, D)` f32, over `atoms`, `(N, D)` f32 of norm 1.
///
/// Each of the `sparsity` steps takes the atom with the largest absolute product with the residual. On a tie it takes
/// the lowest index. The product is the coefficient. The coefficient times the atom is subtracted from the residual.
/// Returns indices `(n, sparsity)` u32 and coefficients `(n, sparsity)` f32. If a row contains NaN, its coefficients
/// are NaN.
///
/// # Errors
/// If shapes, types or devices do not fit, if `D` is not a multiple of 4 or is more than 1024, or if the launch fails.
pub(crate) fn pursue(rows: &Tensor, atoms: &Tensor, sparsity: usize) -> Result<(Tensor, Tensor)> {
    let device = check("pursue", &[("rows", rows, DType::F32), ("atoms", atoms, DType::F32)])?;
    let ((n, width), (count, of_atoms)) = (rows.dims2()?, atoms.dims2()?);
    if width != of_atoms {
        bail!("pursue: rows have {width} channels and atoms {of_atoms}");
    }
    if !width.is_multiple_of(4) || width > PURSUE_WIDTH {
        bail!("pursue: {width} channels; a multiple of 4, at most {PURSUE_WIDTH}, is supported");
    }
    if sparsity == 0 {
        bail!("pursue: a sparsity of 0; each row takes at least one atom");
    }
    let (kernel, shared) = if n < ROWS_TO_SHARE { ("pursue_1", 1) } else { ("pursue_4", ROWS) };
    let (blocks, memory) = (n.div_ceil(shared), shared * width * size_of::<f32>());
    let sizes = [int("rows", n)?, int("atoms", count)?, int("channels", width)?, int("sparsity", sparsity)?];

    let (rows, atoms) = (aligned(rows)?, aligned(atoms)?);
    let ((rows, at_rows), (atoms, at_atoms)) = (rows.storage_and_layout(), atoms.storage_and_layout());
    let (rows, atoms) = (view::<f32>(&rows, at_rows)?, view::<f32>(&atoms, at_atoms)?);
    // SAFETY: the kernel writes every element of both outputs.
    let (mut indices, mut coefficients) =
        unsafe { (device.alloc::<u32>(n * sparsity)?, device.alloc::<f32>(n * sparsity)?) };
    let function = device.get_or_load_custom_func(kernel, "kvcsr-pursue", ptx::PURSUE)?;
    let mut launch = function.builder();
    launch.arg(&rows).arg(&atoms).arg(&mut indices).arg(&mut coefficients);
    for size in &sizes {
        launch.arg(size);
    }
    // SAFETY: these are the kernel's arguments, in its order. The shapes were checked above.
    unsafe { launch.launch(grid(blocks, 1, memory)?) }.w()?;
    Ok((output(indices, &device, (n, sparsity)), output(coefficients, &device, (n, sparsity))))
}

/// Products of `queries`, `(H, R, D)` f32, with coded keys. The keys are given by `indices`, `(H, T, s)` u32, and
/// `coefficients`, `(H, T, s)` f32: a key is the sum of its coefficients times `atoms`, `(N, D)` f32.
///
/// `tables` are the cosines and sines of the `T` positions, `(T, D / 2)` f32 each. With them, a key is rotated before
/// the product: channel `j` pairs with `j + D / 2`, and a pair `(a, b)` becomes `(a cos - b sin, b cos + a sin)`.
/// Returns `(H, R, T)` f32. If an index of a key is beyond the atoms, the scores of this key are NaN.
///
/// # Errors
/// If shapes, types or devices do not fit, if `D` is odd or more than 256, if there are more than 65,535 heads, or if
/// the launch fails.
pub(crate) fn scores(
    indices: &Tensor,
    coefficients: &Tensor,
    atoms: &Tensor,
    tables: Option<(&Tensor, &Tensor)>,
    queries: &Tensor,
) -> Result<Tensor> {
    let mut inputs = vec![
        ("indices", indices, DType::U32),
        ("coefficients", coefficients, DType::F32),
        ("atoms", atoms, DType::F32),
        ("queries", queries, DType::F32),
    ];
    inputs.extend(tables.iter().flat_map(|&(c, s)| [("cosines", c, DType::F32), ("sines", s, DType::F32)]));
    let device = check("scores", &inputs)?;
    let (heads, tokens, sparsity) = indices.dims3()?;
    let ((count, width), (of_queries, asked, channels)) = (atoms.dims2()?, queries.dims3()?);
    if coefficients.dims() != indices.dims() {
        bail!("scores: indices are {:?} and coefficients {:?}", indices.dims(), coefficients.dims());
    }
    if (of_queries, channels) != (heads, width) {
        bail!("scores: queries are {:?}; {heads} heads of {width} channels are coded", queries.dims());
    }
    if !width.is_multiple_of(2) || width > SCORES_WIDTH || heads > HEADS {
        bail!(
            "scores: {heads} heads of {width} channels; an even number of at most {SCORES_WIDTH} channels and at most \
             {HEADS} heads are supported"
        );
    }
    if let Some((cosines, sines)) = tables
        && (cosines.dims() != [tokens, width / 2] || sines.dims() != [tokens, width / 2])
    {
        let (c, s) = (cosines.dims(), sines.dims());
        bail!("scores: cosines are {c:?} and sines {s:?}; {tokens} tokens need [{tokens}, {}]", width / 2);
    }
    let (blocks, memory) = (tokens.div_ceil(TOKENS), TOKENS * (width + 1) * size_of::<f32>());
    let sizes = [
        int("tokens", tokens)?,
        int("atoms of a token", sparsity)?,
        int("atoms", count)?,
        int("channels", width)?,
        int("queries", asked)?,
        i32::from(tables.is_some()),
    ];

    // Without rotation the kernel does not read the tables, so any pointer can be passed.
    let (cosines, sines) = tables.unwrap_or((atoms, atoms));
    let (indices, coefficients, queries) = (indices.contiguous()?, coefficients.contiguous()?, queries.contiguous()?);
    let (atoms, cosines, sines) = (atoms.contiguous()?, cosines.contiguous()?, sines.contiguous()?);
    let (indices, at) = indices.storage_and_layout();
    let indices = view::<u32>(&indices, at)?;
    let floats = [&coefficients, &atoms, &cosines, &sines, &queries].map(Tensor::storage_and_layout);
    let floats: Vec<_> = floats.iter().map(|(storage, layout)| view::<f32>(storage, layout)).collect::<Result<_>>()?;
    // SAFETY: the kernel writes every element.
    let mut out = unsafe { device.alloc::<f32>(heads * asked * tokens)? };
    let function = device.get_or_load_custom_func("scores", "kvcsr-scores", ptx::SCORES)?;
    let mut launch = function.builder();
    launch.arg(&indices);
    for input in &floats {
        launch.arg(input);
    }
    launch.arg(&mut out);
    for size in &sizes {
        launch.arg(size);
    }
    // SAFETY: these are the kernel's arguments, in its order. The shapes were checked above.
    unsafe { launch.launch(grid(blocks, heads, memory)?) }.w()?;
    Ok(output(out, &device, (heads, asked, tokens)))
}

fn grid(x: usize, y: usize, memory: usize) -> Result<LaunchConfig> {
    Ok(LaunchConfig {
        grid_dim: (int("blocks", x)?.unsigned_abs(), int("blocks", y)?.unsigned_abs(), 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: int("bytes of shared memory", memory)?.unsigned_abs(),
    })
}
