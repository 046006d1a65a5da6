#!/usr/bin/env bash
# Fuzzes targets of crates/hostile, guided by coverage, with cargo-fuzz on a nightly toolchain (rustup toolchain install nightly).
# The first run builds cargo-fuzz into the project's cache folder. The first build takes about half an hour on two cores.
#   fuzz_guided.sh SECONDS TARGET...    runs each target for SECONDS, starting from its corpus and from what earlier runs found
set -euo pipefail

readonly CARGO_FUZZ=0.13.2

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${KVCSR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvcsr}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
readonly repository cache fuzz=$cache/cargo-fuzz/bin/cargo-fuzz kept=$repository/data/runs/hostile/guided

if [[ $# -lt 2 || ! $1 =~ ^[0-9]+$ ]]; then
    echo "fuzz-guided: expected seconds and targets, as in: just fuzz-guided 60 gguf pickle" >&2
    exit 2
fi
readonly seconds=$1
shift
for target in "$@"; do
    if [[ ! -f $repository/crates/hostile/fuzz/fuzz_targets/$target.rs ]]; then
        echo "fuzz-guided: no target \`$target\`; there are $(cd "$repository/crates/hostile/fuzz/fuzz_targets" && echo *.rs | sed 's/\.rs//g')" >&2
        exit 2
    fi
done
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz-guided: no nightly toolchain here (rustup toolchain install nightly); just fuzz needs none" >&2
    exit 1
fi
if [[ ! -x $fuzz ]] || ! grep -qs "cargo-fuzz $CARGO_FUZZ " "$cache/cargo-fuzz/.crates.toml"; then
    echo "fuzz-guided: building cargo-fuzz $CARGO_FUZZ into $cache/cargo-fuzz (once)"
    CARGO_TARGET_DIR=$cache/cargo-fuzz-target RUSTFLAGS='' \
        cargo install --quiet --locked --root "$cache/cargo-fuzz" cargo-fuzz --version "$CARGO_FUZZ"
    rm -rf "$cache/cargo-fuzz-target"
fi

cd "$repository/crates/hostile"
# The targets are a workspace of their own. They take the versions of this workspace for packages that both have.
cp "$repository/Cargo.lock" fuzz/Cargo.lock
libtorch=${LIBTORCH:-$(sed -n 's/^LIBTORCH = "\(.*\)"$/\1/p' "$repository/.cargo/config.toml")}
export LIBTORCH=$libtorch LD_LIBRARY_PATH=$libtorch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# A target folder of its own, because other builds have other flags.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repository/target}/fuzz
# Leaks are not reported: libtorch leaks when it starts.
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0${ASAN_OPTIONS:+:$ASAN_OPTIONS} RUST_BACKTRACE=0 RAYON_NUM_THREADS=1 RUSTUP_TOOLCHAIN=nightly
# The program is ended without a chance to remove its files, so they lie in a folder that this script removes.
KVCSR_HOSTILE_PLACE=$(mktemp -d -p /dev/shm)
export KVCSR_HOSTILE_PLACE
trap 'rm -rf "$KVCSR_HOSTILE_PLACE"' EXIT
for target in "$@"; do
    mkdir -p "$kept/$target"
    "$fuzz" run --fuzz-dir fuzz "$target" "$kept/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=16384 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1
done
