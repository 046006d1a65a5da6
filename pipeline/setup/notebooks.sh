#!/usr/bin/env bash
# Jupyter with the Rust kernel (evcxr), in a cache folder of this project: nothing is installed for the user or the system.
#   notebooks.sh        set up only; a second run does nothing
#   notebooks.sh run    set up, then execute every notebook in place; stops at the first cell that fails. 07 needs a run of its own
#                       profile and is skipped without it
#   notebooks.sh smoke  execute 01 and 03 on the profile smoke, if kernel and dependencies are ready; the notebooks do not change
#   notebooks.sh lab    set up, then open JupyterLab (further arguments go to it)
set -euo pipefail

readonly JUPYTERLAB=4.6.6 NBCONVERT=7.17.2 NBCLIENT=0.11.0 EVCXR=0.22.0

readonly action=${1:-setup}
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${KVCSR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvcsr}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
readonly repository cache
readonly venv=$cache/notebooks-venv kernel=$cache/evcxr/bin/evcxr_jupyter scratch=$cache/evcxr-crates

say() { echo "notebooks: $*"; }

case $action in setup | run | smoke | lab) ;; *)
    say "unknown action '$action'; expected run, smoke, lab or nothing" >&2
    exit 2
    ;;
esac

# Cells are compiled in the cache folder, where rust-toolchain.toml has no effect. They must be built by the compiler that it names.
RUSTUP_TOOLCHAIN=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$repository/rust-toolchain.toml")
export RUSTUP_TOOLCHAIN

install_jupyter() {
    local wanted="jupyterlab==$JUPYTERLAB nbconvert==$NBCONVERT nbclient==$NBCLIENT"
    if [[ -f $venv/complete && $(<"$venv/complete") == "$wanted" ]]; then return; fi
    say "installing Jupyter into $venv"
    rm -rf "$venv"
    if ! python3 -m venv "$venv"; then
        say "Python cannot make virtual environments (Debian: apt-get install python3-venv)" >&2
        exit 1
    fi
    # shellcheck disable=SC2086 # one argument per package
    "$venv/bin/pip" install --quiet --disable-pip-version-check $wanted
    echo "$wanted" >"$venv/complete"
}

install_kernel() {
    # The kernel cannot print its version, but cargo's record of the folder has it.
    if [[ -x $kernel ]] && grep -qs "evcxr_jupyter $EVCXR " "$cache/evcxr/.crates.toml"; then return; fi
    say "building the Rust kernel evcxr_jupyter $EVCXR into $cache/evcxr (once; 10 to 25 CPU-minutes)"
    # The kernel compiles cells in other processes, so its own speed matters little and a light optimisation halves the build.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_TARGET_DIR=$cache/evcxr-target RUSTFLAGS='' \
        cargo install --quiet --locked --root "$cache/evcxr" evcxr_jupyter --version "$EVCXR"
    rm -rf "$cache/evcxr-target"
}

# Cargo removes the packages that a notebook does not depend on from the lock file beside its cells. It would then choose other
# versions for the next notebook. So every kernel starts from the workspace's lock file, one folder above the notebooks.
register_kernel() {
    JUPYTER_PATH=$venv/share/jupyter "$kernel" --install >/dev/null
    "$venv/bin/python" - "$venv/share/jupyter/kernels/rust/kernel.json" "$kernel" "$scratch" <<'PYTHON'
import json, os, sys
path, kernel, scratch = sys.argv[1:]
with open(path) as file:
    spec = json.load(file)
start = 'if [ -f ../Cargo.lock ]; then cp ../Cargo.lock "$1/Cargo.lock"; fi; exec "$0" --control_file "$2"'
spec["argv"] = ["sh", "-c", start, kernel, scratch, "{connection_file}"]
with open(path + ".tmp", "w") as file:
    json.dump(spec, file, indent=2)
os.replace(path + ".tmp", path)
PYTHON
}

# The kernel reads evcxr.toml from its working directory, the notebooks' folder.
configure_kernel() {
    mkdir -p "$scratch"
    cat >"$repository/notebooks/evcxr.toml.tmp" <<TOML
# Written by pipeline/setup/notebooks.sh; specific to this machine.
[evcxr]
tmpdir = "$scratch"
opt_level = "2"
offline_mode = true
preserve_vars_on_panic = false
TOML
    mv "$repository/notebooks/evcxr.toml.tmp" "$repository/notebooks/evcxr.toml"
    cargo fetch --quiet --locked --manifest-path "$repository/Cargo.toml"
}

# A digest of what the kernel compiles once: the compiler, and the packages from the registry.
dependencies() {
    { echo "$RUSTUP_TOOLCHAIN"; grep '^checksum' "$repository/Cargo.lock"; } | sha256sum | cut -d ' ' -f 1
}

# Setting up a kernel takes too long for a test. notebooks/check tests without a kernel that the code compiles.
if [[ $action == smoke ]]; then
    if [[ ! ( -x $kernel && -f $venv/complete ) ]]; then
        say "SKIPPED execution: the Rust kernel is not installed here (just notebooks installs it)"
        exit 0
    fi
    if [[ ! -f $scratch/compiled || $(<"$scratch/compiled") != "$(dependencies)" ]]; then
        say "SKIPPED execution: the notebooks' dependencies are not compiled here as Cargo.lock has them (just notebooks does it)"
        exit 0
    fi
fi

install_jupyter
install_kernel
register_kernel
configure_kernel
export JUPYTER_PATH=$venv/share/jupyter PATH=$venv/bin:$PATH
# Cells link Rust's standard library dynamically. Their run path to it is relative to target/debug/deps, one folder below the
# folder that evcxr loads them from. So it is wrong whenever cache and toolchain share a parent folder such as $HOME.
libraries=$(rustc --print target-libdir)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

case $action in
run)
    cd "$repository/notebooks"
    shopt -s nullglob
    for notebook in *.ipynb; do
        if [[ $notebook == 07-* && ! -d ../data/runs/qwen-coder-1.5b/train-plus ]]; then
            say "SKIPPED $notebook: profile qwen-coder-1.5b has no finished train-plus in data/runs (its first cell has the command)"
            continue
        fi
        say "executing $notebook"
        # Without times, so that equal results do not change the file.
        jupyter nbconvert --log-level=WARN --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
            --ExecutePreprocessor.timeout=-1 --ExecutePreprocessor.startup_timeout=300 "$notebook"
        # The kernel sends each printed line as a separate output. This joins them.
        jupyter nbconvert --log-level=WARN --coalesce-streams "$notebook"
    done
    dependencies >"$scratch/compiled"
    ;;
smoke)
    cd "$repository/notebooks"
    executed=$(mktemp -d)
    trap 'rm -rf "$executed"' EXIT
    for notebook in 01-*.ipynb 03-*.ipynb; do
        say "executing $notebook on the profile smoke"
        KVCSR_PROFILE=smoke jupyter nbconvert --log-level=WARN --to notebook --execute --output-dir "$executed" \
            --ExecutePreprocessor.timeout=-1 --ExecutePreprocessor.startup_timeout=300 "$notebook"
    done
    ;;
lab)
    shift
    exec jupyter lab --notebook-dir "$repository/notebooks" "$@"
    ;;
setup) say "ready: $0 run, or $0 lab" ;;
esac
