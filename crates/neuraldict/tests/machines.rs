//! The bits are the same on CPUs with other instruction sets. Each run is a process that may not use some of them.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::sparse_vectors;
use kvcsr_codec::{Kind, Shard, ShardHeader, ShardWriter, kernels};
use kvcsr_neuraldict::config::{GradientPath, Trainer};
use kvcsr_neuraldict::device::SAME_EVERYWHERE;
use kvcsr_neuraldict::{TrainConfig, train_group};

/// This variable is set in the processes that train.
const CHILD: &str = "KVCSR_TEST_CHILD";
/// The widest instructions that our kernels may use.
const WIDEST: &str = "KVCSR_TEST_WIDEST";
const MARK: &str = "digest ";

/// The simulated CPUs: the widest instructions for our kernels, for libtorch and for MKL. MKL chooses by the maker of the CPU too,
/// which no variable simulates: training must not use it at all.
const MACHINES: [(&str, [Option<&str>; 3]); 5] = [
    ("all that is there", [None, None, None]),
    ("AVX2", [Some("avx2"), Some("avx2"), Some("AVX2")]),
    ("neither", [Some("portable"), Some("default"), Some("COMPATIBLE")]),
    ("AVX2 in our kernels alone", [Some("avx2"), None, None]),
    ("as programs set it", [None, Some(SAME_EVERYWHERE[1].1), Some(SAME_EVERYWHERE[0].1)]),
];

/// Number of channels. It is large enough that a BLAS adds up in another order with wider instructions.
const WIDTH: usize = 128;

fn shard(folder: &Path, seed: u64, tokens: usize) -> Shard {
    let path = folder.join(format!("{tokens}.safetensors"));
    let header = ShardHeader { layer: 0, kind: Kind::Key, tokens, heads: 1, head_dim: WIDTH, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(&path, header).unwrap();
    writer.append(&sparse_vectors(seed, tokens * WIDTH / common::HEAD_DIM)).unwrap();
    writer.finish().unwrap();
    Shard::open(&path).unwrap()
}

/// A digest (FNV-1a) of the dictionaries of all configurations.
fn train() -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let (vectors, heldout) = (shard(folder.path(), 1, 3000), shard(folder.path(), 2, 100));
    let small = TrainConfig { epochs: 2, ..common::small() };
    let trainers = [
        small.clone(),
        TrainConfig { gradient: GradientPath::Atoms, ..small.clone() },
        TrainConfig { atoms: 12, ..small.clone() },
        TrainConfig { atoms: 700, kmeans_sample: 3000, ..small },
    ];
    let mut digest = 0xcbf2_9ce4_8422_2325u64;
    for config in trainers {
        assert_eq!(config.trainer, Trainer::NeuralDict);
        let found = train_group(&config, &[&vectors], &[&heldout], &mut |_| {}).unwrap();
        for atom in found.dictionary.atoms() {
            digest = (digest ^ u64::from(atom.to_bits())).wrapping_mul(0x0100_0000_01b3);
        }
    }
    digest
}

#[test]
fn child() {
    if std::env::var_os(CHILD).is_some() {
        if let Ok(width) = std::env::var(WIDEST) {
            kernels::limit_to(width.parse().unwrap());
        }
        println!("{MARK}{:016x}", train());
    }
}

#[test]
fn dictionaries_have_the_same_bits_on_machines_with_other_instructions() {
    let of = |(name, [ours, torch, mkl]): (&str, [Option<&str>; 3])| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]).env(CHILD, "1");
        let variables = [(WIDEST, ours), ("ATEN_CPU_CAPABILITY", torch), ("MKL_CBWR", mkl)];
        for (variable, value) in variables {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        let out = command.output().unwrap();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let digest = said.split(MARK).nth(1).unwrap_or_else(|| panic!("{name}: {said}"));
        digest[..16].to_owned()
    };
    let found = MACHINES.map(|machine| (machine.0, of(machine)));
    for (name, digest) in &found {
        assert_eq!(digest, &found[0].1, "{name}: {found:?}");
    }
    assert_eq!(SAME_EVERYWHERE.map(|(name, _)| name), ["MKL_CBWR", "ATEN_CPU_CAPABILITY"]);
}
