#!/usr/bin/env bash
# Checks licences, duplicates and sources of all dependencies with cargo-deny. The first run builds cargo-deny into the project's
# cache folder.
#   deny.sh              check bans, licences and sources, as .deny.toml sets them
#   deny.sh advisories   check known vulnerabilities: needs a network, for the database of RustSec
set -euo pipefail

readonly DENY=0.20.2

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${KVCSR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvcsr}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
readonly repository cache deny=$cache/deny/bin/cargo-deny

# The checks take a minute. Optimising the program for them would take longer.
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
