#!/usr/bin/env bash
# Licences, duplicates and sources of all dependencies, by cargo-deny, which is built into the project's cache folder the first time.
#   deny.sh              what .deny.toml says of bans, licences and sources
#   deny.sh advisories   known vulnerabilities: needs a network, for the database of RustSec
set -euo pipefail

readonly DENY=0.20.2

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${KVCSR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvcsr}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
readonly repository cache deny=$cache/deny/bin/cargo-deny

# A minute of checks is not worth minutes of optimisation.
if [[ ! -x $deny ]] || ! grep -qs "cargo-deny $DENY " "$cache/deny/.crates.toml"; then
    echo "deny: building cargo-deny $DENY into $cache/deny (once)"
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_TARGET_DIR=$cache/deny-target RUSTFLAGS='' \
        cargo install --quiet --locked --root "$cache/deny" cargo-deny --version "$DENY"
    rm -rf "$cache/deny-target"
fi
cd "$repository"
if [[ $# -eq 0 ]]; then
    set -- bans licenses sources
fi
exec "$deny" --config .deny.toml --log-level warn check "$@"
