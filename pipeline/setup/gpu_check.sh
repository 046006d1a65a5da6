#!/usr/bin/env bash
# Runs the checks for a machine with one GPU, in about eight minutes: `just gpu-check`, or `./gpu-check` in a folder that
# `just gpu-pack` has filled. Arguments are passed to `kvcsr gpu-check` (--device cpu --quick: a rehearsal without a GPU).
set -euo pipefail

device=auto
for ((i = 1; i < $#; i++)); do
    [ "${!i}" = --device ] && next=$((i + 1)) && device=${!next}
done
# A rehearsal needs no CUDA toolkit.
features=cuda
[ "$device" = cpu ] && features=

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -x "$root/bin/kvcsr" ]; then
    # A filled folder: everything is in it, and nothing is downloaded.
    export LD_LIBRARY_PATH="$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" KVCSR_CACHE="$root/cache"
    [ -d "$root/longbench" ] && export KVCSR_LONGBENCH="$root/longbench"
    kvcsr=("$root/bin/kvcsr")
else
    root=$(cd "$root/../.." && pwd)
    kvcsr=(cargo run --release --locked --quiet --package kvcsr --features "${KVCSR_FEATURES-$features}" --)
fi
cd "$root"
out="${KVCSR_DATA:-$root/data}/gpu-check"
mkdir -p "$out"

failed=0
"${kvcsr[@]}" gpu-check "$@" --out "$out/rows.csv" || failed=1

# From text to scores on the device: calibrate, train and answer two tasks of LongBench with SmolLM2.
if [ -n "${KVCSR_LONGBENCH:-}" ]; then
    export KVCSR_DATA="$out"
    attention=auto limit=3 tokens=1500
    # A rehearsal on the CPU runs the code that a GPU would run, with tensors, on fewer and shorter prompts.
    [ "$device" = cpu ] && attention=tensor limit=1 tokens=300
    "${kvcsr[@]}" reproduce --to longbench profile=smoke set="device=$device" set="attention=$attention" \
        set='longbench.tasks=["trec","samsum"]' set=longbench.limit="$limit" set=longbench.max_prompt_tokens="$tokens" \
        set='longbench.schemes=["dense","csr-8","csr-8+online","kivi-2","gear-4"]' || failed=1
else
    echo "gpu-check: the slice of LongBench was left out: KVCSR_LONGBENCH names no folder"
fi
[ "$failed" = 0 ] && echo "gpu-check: all passed; rows are in $out/rows.csv" || echo "gpu-check: FAILED, see above"
exit "$failed"
