#!/usr/bin/env bash
# Cross-compiles the crates that need no libtorch for aarch64, and runs their tests under user-mode emulation.
#   aarch64.sh [cargo's arguments]    for example: aarch64.sh -p kvcsr-codec kernels::
set -euo pipefail

readonly TARGET=aarch64-unknown-linux-gnu

fail() { echo "aarch64: $*" >&2; exit 1; }

for tool in aarch64-linux-gnu-gcc aarch64-linux-gnu-g++ qemu-aarch64; do
    command -v $tool >/dev/null ||
        fail "\`$tool\` was not found (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)"
done
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
rustup target list --installed | grep -qx $TARGET || rustup target add $TARGET

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
# The libraries of this machine are not those of the other.
unset LD_LIBRARY_PATH
if [[ $# -eq 0 || $1 != -p ]]; then
    set -- -p kvcsr-codec -p kvcsr-cache -p kvcsr-model "$@"
fi
exec cargo test --release --locked --target $TARGET --no-fail-fast "$@"
