//! Compares both kernels with plain loops in f64. The tests need a GPU and have never run. The command is
//! `cargo test --release --package kvcsr-cache --features cuda fused:: -- --ignored`.

use super::{pursue, scores};
use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn numbers(rng: &mut impl Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// `count` atoms of norm 1, one after the other.
fn dictionary(rng: &mut impl Rng, count: usize, width: usize) -> Vec<f32> {
    let mut atoms = numbers(rng, count * width);
    for atom in atoms.chunks_mut(width) {
        let norm = atom.iter().map(|x| x * x).sum::<f32>().sqrt();
        atom.iter_mut().for_each(|x| *x /= norm);
    }
    atoms
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

fn vectors<T: candle_core::WithDType>(tensor: &Tensor) -> Vec<Vec<T>> {
    tensor.to_vec2().expect("a matrix")
}

/// Repeats the kernel's choices, and checks at each step that no atom is better than the chosen one.
#[test]
#[ignore = "needs a CUDA device"]
fn pursuit_takes_the_best_atom_at_every_step() -> Result<()> {
    let device = Device::new_cuda(0)?;
    for (n, count, width, sparsity) in [(5, 300, 64, 4), (1027, 1024, 128, 8), (3, 5, 4, 2), (70, 65_535, 256, 3)] {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (rows, atoms) = (numbers(&mut rng, n * width), dictionary(&mut rng, count, width));
        // One number is placed in front, so that the rows begin where four floats cannot be read at once.
        let shifted = Tensor::from_vec([&[0.0][..], &rows[..]].concat(), 1 + n * width, &device)?;
        let on_device = shifted.narrow(0, 1, n * width)?.reshape((n, width))?;
        let (indices, coefficients) =
            pursue(&on_device, &Tensor::from_slice(&atoms, (count, width), &device)?, sparsity)?;
        let (indices, coefficients) = (vectors::<u32>(&indices), vectors::<f32>(&coefficients));
        for (row, (indices, coefficients)) in rows.chunks(width).zip(indices.iter().zip(&coefficients)) {
            let mut residual: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
            for (&index, &coefficient) in indices.iter().zip(coefficients) {
                let best = atoms.chunks(width).map(|atom| dot(&residual, atom).abs()).fold(0.0, f64::max);
                let atom = &atoms[index as usize * width..][..width];
                let product = dot(&residual, atom);
                assert!((product - f64::from(coefficient)).abs() < 1e-4, "{product} and {coefficient}");
                assert!(product.abs() > best - 1e-4, "{product}, and the best is {best}");
                residual.iter_mut().zip(atom).for_each(|(r, &a)| *r -= f64::from(coefficient) * f64::from(a));
            }
        }
    }
    Ok(())
}

/// Equal atoms, at distances where they are in the same thread, warp and block, and in different ones.
#[test]
#[ignore = "needs a CUDA device"]
fn a_tie_goes_to_the_lowest_index() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let (count, width) = (1024, 64);
    for (one, other) in [(3, 4), (40, 3 + 256), (255, 256), (511, 767), (100, 1023)] {
        let mut atoms = vec![0.0f32; count * width];
        atoms.chunks_mut(width).for_each(|atom| atom[1] = 1.0);
        atoms[one * width..][..2].copy_from_slice(&[-1.0, 0.0]);
        atoms[other * width..][..2].copy_from_slice(&[1.0, 0.0]);
        let row: Vec<f32> = (0..width).map(|j| if j == 0 { 2.0 } else { 0.0 }).collect();
        let (row, atoms) =
            (Tensor::from_vec(row, (1, width), &device)?, Tensor::from_vec(atoms, (count, width), &device)?);
        let (indices, coefficients) = pursue(&row, &atoms, 1)?;
        assert_eq!(
            (vectors::<u32>(&indices), vectors::<f32>(&coefficients)),
            (vec![vec![one as u32]], vec![vec![-2.0]])
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs a CUDA device"]
fn scores_are_products_with_restored_and_rotated_keys() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let shapes = [(2, 33, 8, 300, 64, 1), (8, 100, 16, 1024, 128, 9), (1, 1, 1, 3, 96, 4), (3, 65, 4, 77, 256, 40)];
    for (heads, tokens, sparsity, count, width, asked) in shapes {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let atoms = dictionary(&mut rng, count, width);
        let coefficients = numbers(&mut rng, heads * tokens * sparsity);
        let indices: Vec<u32> =
            (0..coefficients.len()).map(|_| rng.random_range(0..u32::try_from(count).expect("few atoms"))).collect();
        let queries = numbers(&mut rng, heads * asked * width);
        let angles: Vec<f32> = (0..tokens * width / 2).map(|_| rng.random_range(0.0f32..6.3)).collect();
        let codes = (heads, tokens, sparsity);
        let on_device = (
            Tensor::from_slice(&indices, codes, &device)?,
            Tensor::from_slice(&coefficients, codes, &device)?,
            Tensor::from_slice(&atoms, (count, width), &device)?,
            Tensor::from_slice(&queries, (heads, asked, width), &device)?,
        );
        let angle = Tensor::from_slice(&angles, (tokens, width / 2), &device)?;
        let tables = (angle.cos()?, angle.sin()?);
        for rotated in [false, true] {
            let tables = rotated.then_some((&tables.0, &tables.1));
            let found = scores(&on_device.0, &on_device.1, &on_device.2, tables, &on_device.3)?;
            assert_eq!((found.dims(), found.dtype()), (&[heads, asked, tokens][..], DType::F32));
            let found = found.to_vec3::<f32>()?;
            for (head, token) in (0..heads).flat_map(|h| (0..tokens).map(move |t| (h, t))) {
                let mut key = vec![0.0f64; width];
                for i in (head * tokens + token) * sparsity..(head * tokens + token + 1) * sparsity {
                    let atom = &atoms[indices[i] as usize * width..][..width];
                    key.iter_mut().zip(atom).for_each(|(k, &a)| *k += f64::from(coefficients[i]) * f64::from(a));
                }
                if rotated {
                    for j in 0..width / 2 {
                        let (sin, cos) = f64::from(angles[token * width / 2 + j]).sin_cos();
                        let (a, b) = (key[j], key[j + width / 2]);
                        (key[j], key[j + width / 2]) = (a * cos - b * sin, b * cos + a * sin);
                    }
                }
                for r in 0..asked {
                    let product = dot(&key, &queries[(head * asked + r) * width..][..width]);
                    let difference = (product - f64::from(found[head][r][token])).abs();
                    assert!(difference < 1e-3, "head {head}, query {r}, token {token}: {difference}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn tensors_on_the_cpu_are_an_error() -> Result<()> {
    let rows = Tensor::ones((2, 8), DType::F32, &Device::Cpu)?;
    let error = pursue(&rows, &rows, 1).expect_err("a CPU tensor").to_string();
    assert!(error.contains("rows must be on a CUDA device"), "{error}");
    Ok(())
}

#[test]
#[ignore = "needs a CUDA device"]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let floats = |shape: &[usize]| Tensor::ones(shape, DType::F32, &device);
    let codes = Tensor::zeros((2, 3, 4), DType::U32, &device)?;
    let (parts, atoms, queries) = (floats(&[2, 3, 4])?, floats(&[9, 8])?, floats(&[2, 1, 8])?);
    let wrong = floats(&[3, 8])?;
    for (result, part) in [
        (pursue(&floats(&[2, 8])?, &floats(&[9, 4])?, 1), "rows have 8 channels and atoms 4"),
        (pursue(&floats(&[2, 6])?, &floats(&[9, 6])?, 1), "a multiple of 4"),
        (pursue(&atoms, &atoms, 0), "a sparsity of 0"),
        (pursue(&atoms.to_dtype(DType::F16)?, &atoms, 1), "rows must be f32, and are f16"),
        (pursue(&atoms, &atoms.to_device(&Device::Cpu)?, 1), "atoms are on Cpu"),
    ] {
        let error = result.expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
    for (result, part) in [
        (scores(&parts, &parts, &atoms, None, &queries), "indices must be u32"),
        (scores(&codes, &floats(&[2, 3, 5])?, &atoms, None, &queries), "coefficients [2, 3, 5]"),
        (scores(&codes, &parts, &atoms, None, &floats(&[1, 1, 8])?), "2 heads of 8 channels are coded"),
        (scores(&codes, &parts, &atoms, Some((&wrong, &wrong)), &queries), "3 tokens need [3, 4]"),
    ] {
        let error = result.expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
    Ok(())
}
