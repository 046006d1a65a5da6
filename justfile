# kvcsr: sparse, learned compression of LLM key-value caches.
# `just reproduce` makes the results of CSR, `just compare` those of all schemes; `just` alone lists all commands.

set positional-arguments

# Features of the program: KVCSR_FEATURES=cuda, or hub, or both with a comma in between.
features := env('KVCSR_FEATURES', '')
kvcsr := "exec cargo run --release --locked --quiet --package kvcsr --features '" + features + "' --"
just := just_executable()
# What `just STAGE` runs: the command of `kvcsr` with the same name.
stage := kvcsr + ' "$0" "$@"'

[private]
default:
    @{{ just }} --list --unsorted

# Prepare libtorch (for the CPU, or LIBTORCH=<folder of a PyTorch>) and build the `kvcsr` command
[group('start')]
setup:
    @for tool in cc c++; do command -v $tool >/dev/null || { echo "setup: $tool was not found: install a C and C++ compiler (Debian: apt-get install build-essential)"; exit 1; }; done
    @command -v python3 >/dev/null || { echo "setup: Python 3 not found; install it with pip (Debian: apt-get install python3 python3-pip python3-venv)"; exit 1; }
    @python3 pipeline/setup/libtorch.py
    @cargo build --release --locked --package kvcsr --features '{{ features }}'

# Fetch, calibrate, train, evaluate CSR, and report (profile smol); executor=slurm submits the stages as jobs of a cluster
[group('start')]
reproduce *args: setup
    @{{ kvcsr }} reproduce "$@"

# Run the stages of `just reproduce` on a few thousand tokens (profile smoke), within 5 minutes on 2 cores after the build
[group('start')]
smoke *args: setup
    @{{ kvcsr }} reproduce profile=smoke "$@"

# Download the model and texts of a profile, checked against their sha256
[group('start')]
fetch *args: setup
    @{{ kvcsr }} fetch "$@"

# Record keys and values of every layer over calibration and held-out text
[group('stages')]
calibrate *args: setup
    @{{ stage }}

# Measure the fewest bits that keys and values can take, by what is transformed together
[group('stages')]
ceiling *args: setup
    @{{ stage }}

# Measure how alike the layers are, and group those that share a dictionary
[group('stages')]
merge *args: setup
    @{{ stage }}

# Learn one dictionary per layer group, for keys and for values
[group('stages')]
train *args: setup
    @{{ stage }}

# Learn one dictionary per layer group with options beyond the paper, for csr-S@best
[group('stages')]
train-best *args: setup
    @{{ stage }}

# Learn dictionaries of keys after position embedding, for csr-S+rope
[group('stages')]
train-rope *args: setup
    @{{ stage }}

# Measure what each layer's keys and values cost in KL, and spend atoms where they lower it most, for csr-S+budget
[group('stages')]
allocate *args: setup
    @{{ stage }}

# Learn atoms of whole tokens and the axes of what they leave, for csr+@B
[group('stages')]
train-plus *args: setup
    @{{ stage }}

# Learn what the calibrated peers need: Lexico's dictionaries, CQ's and CommVQ's codebooks, SVDq's basis
[group('stages')]
calibrate-peers *args: setup
    @{{ stage }}

# Train small dictionaries in many ways: the paper's Table 3, trainer options, merged layers, Figures 2a and 2b
[group('stages')]
ablate *args: setup
    @{{ stage }}

# Score CSR on single long documents by what deletion fails, and measure reconstruction error
[group('stages')]
evaluate *args: setup
    @{{ stage }}

# Compare every scheme on the same long documents: recovery, divergence, measured bits and time
[group('stages')]
compare *args: setup
    @{{ kvcsr }} reproduce --to compare --to report "$@"

# Keep prompts as small files: bytes, quality after restoring, and time against a prefill
[group('stages')]
at-rest *args: setup
    @{{ kvcsr }} reproduce --to at-rest --to report "$@"

# Answer our own tasks under every scheme: questions, summaries, notes, code, retrieval, arithmetic (not LongBench)
[group('stages')]
suite *args: setup
    @{{ stage }}

# Run LongBench under every scheme, one prefill per record (needs LongBench's own files: KVCSR_LONGBENCH)
[group('stages')]
longbench *args: setup
    @{{ stage }}

# Draw figures and tables; publish them to data/results and the docs if the profile says so
[group('stages')]
report *args: setup
    @{{ stage }}

# Learn dictionaries with scikit-learn and SPAMS on the vectors of `just ablate`, in a virtual environment of their own; then write the page of `just ablate` again
[group('runs')]
peers *args: setup
    @bash pipeline/peers/run.sh "$@"
    @{{ kvcsr }} ablate "$@"

# Show the state of the jobs of `just reproduce executor=slurm`, and the logs of failed ones: just status profile=smol
[group('runs')]
status *args: setup
    @{{ kvcsr }} status "$@"

# Cancel the jobs of `just reproduce executor=slurm`: just cancel profile=smol
[group('runs')]
cancel *args: setup
    @{{ kvcsr }} cancel "$@"

# Run the stages at every point of a profile's [sweep]: just sweep profile=smol set='sweep={"train.atoms"=[512,1024]}'
[group('runs')]
sweep *args: setup
    @{{ kvcsr }} sweep "$@"

# Show parameters and scores of two runs side by side: just diff-runs smol smol+atoms2048
[group('runs')]
diff-runs a b: setup
    @{{ kvcsr }} diff-runs "$1" "$2"

# Keep a profile's run under another name: just keep smol before
[group('runs')]
keep profile name: setup
    @{{ kvcsr }} keep "$1" "$2"

# Show the size of a cache for any published model shape, by formula: just footprint --shape llama2-7b-chat --tokens 1000..32000
[group('runs')]
footprint *args: setup
    @{{ kvcsr }} footprint "$@"

# Run the `kvcsr` command itself, for example: just kvcsr generate --scheme csr-8 --prompt "Once upon a time"
[group('runs')]
kvcsr *args: setup
    @{{ kvcsr }} "$@"

# Check every downloaded file against data/sources.toml again
[group('runs')]
data-verify: setup
    @{{ kvcsr }} data-verify

# Execute every notebook in place, without a browser (the first time this installs the Rust kernel for Jupyter: 10 to 25 CPU-minutes)
[group('notebooks')]
notebooks: setup
    @bash pipeline/setup/notebooks.sh run

# Open JupyterLab with the Rust kernel; options go to JupyterLab: just lab --no-browser
[group('notebooks')]
lab *args: setup
    @bash pipeline/setup/notebooks.sh lab "$@"

# Check everything: format, lints, docs, dependencies, smoke run, unit, integration and documentation tests
[group('develop')]
test: setup lint deny smoke
    #!/usr/bin/env bash
    set -euo pipefail
    log="$(mktemp)"
    # Tests whose files are missing note it here: see crates/fixtures.
    export KVCSR_SKIPPED="$(mktemp)"
    trap 'rm -f "$log" "$KVCSR_SKIPPED"' EXIT
    bash pipeline/setup/notebooks.sh smoke
    cargo test --release --locked --workspace 2>&1 | tee "$log"
    sort -u "$KVCSR_SKIPPED" | awk -F'\t' '{ printf "skipped: %s: %s\n", $1, $2 }'
    awk -v without="$(cut -f1 "$KVCSR_SKIPPED" | sort -u | wc -l)" \
        '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
         END { printf "%d passed, %d failed, %d skipped\n", passed - without, failed, skipped + without }' "$log"

# Inject faults into every stage: kills (kills=200 of them), signals, full disks, limits, broken downloads, tampered outputs; the next run must always end with the bytes of an undisturbed run
[group('develop')]
torture kills="200": setup
    @KVCSR_KILLS="${1#kills=}" cargo test --release --locked --workspace --test torture -- --nocapture

# Feed damaged bytes to every reader of files, until each target has had 10^7 inputs in total: just fuzz executions=100000 targets=gguf,wheel jobs=1 (also: corpus, publish, replay TARGET FILE)
[group('develop')]
fuzz *args: setup
    @cargo run --release --locked --quiet --package kvcsr-hostile -- "$@"

# Fuzz the same readers guided by coverage, each target for this many seconds (needs a nightly toolchain; the first build takes half an hour): just fuzz-guided 60 gguf pickle
[group('develop')]
fuzz-guided seconds +targets: setup
    @bash pipeline/setup/fuzz_guided.sh "$@"

# Run every stage of the paper's profiles on models of their shapes with two layers and random weights: just dry-run llama3-8b-instruct (all three profiles if none is named; `just test` runs a short form)
[group('develop')]
dry-run *profiles: setup
    @KVCSR_DRY_RUN="${*:-all}" cargo test --release --locked --workspace --test dry_runs -- --nocapture

# Run on a Slurm cluster of two nodes on this machine, one of which is killed in the middle: the results must be those of a local run (needs root; installs Debian's Slurm; takes about five minutes)
[group('develop')]
slurm-test: setup
    @{{ kvcsr }} fetch profile=smoke
    @python3 pipeline/setup/slurm_test.py "${CARGO_TARGET_DIR:-target}/release/kvcsr"

# Compare thirty answers of the uncompressed model with those of LongBench's own loop (needs LongBench's files and the reference answers; takes minutes)
[group('develop')]
golden-answers:
    @python3 pipeline/setup/libtorch.py
    cargo test --release --locked --package kvcsr-eval --test golden_answers -- --include-ignored --nocapture

# Check formatting, clippy and rustdoc, with all warnings as errors
[group('develop')]
lint:
    @python3 pipeline/setup/libtorch.py
    cargo fmt --all --check
    cargo clippy --release --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps --quiet

# Compile and link the CUDA build on a machine without a GPU: compiler and PyTorch's CUDA libraries come from PyPI (2.6 GB, once). With --tests, every test too; nothing runs on a GPU
[group('develop')]
check-cuda *args:
    @python3 pipeline/setup/cuda.py "$@"

# Run the tests of codec, cache and model for aarch64 under emulation (needs a cross-compiler and qemu-user; slow): just test-aarch64 [-p kvcsr-codec]
[group('develop')]
test-aarch64 *args:
    @bash pipeline/setup/aarch64.sh "$@"

# Check a GPU, planned for eight minutes: the contract of caches, agreement with the CPU, speed compared with PyTorch, training, two tasks of LongBench (--device cpu --quick: a rehearsal without a GPU)
[group('develop')]
gpu-check *args: setup
    @bash pipeline/setup/gpu_check.sh "$@"

# Fill a folder with everything that `just gpu-check` needs on a machine with a GPU and no network: just gpu-pack FOLDER
[group('develop')]
gpu-pack *args:
    @python3 pipeline/setup/gpu_pack.py "$@"

# Draw the README's two drawings into docs/drawings
[group('develop')]
drawings: setup
    @{{ kvcsr }} draw

# Write time, memory and disk use of the published stages into docs/REPRODUCING.md
[group('develop')]
stage-times: setup
    @{{ kvcsr }} stage-times

# Check licences, duplicates and sources of all dependencies with cargo-deny (built once); `just deny advisories` asks RustSec's database
[group('develop')]
deny *args:
    @bash pipeline/setup/deny.sh "$@"

# Compare our speed with PyTorch, SPAMS, scikit-learn, faiss and llama.cpp; writes data/results/bench.csv and docs/PERFORMANCE.md: just bench [encode attend compress decode threads]
[group('develop')]
bench *args: setup
    @{{ kvcsr }} bench --python "$(bash pipeline/peers/venv.sh)" "$@"

# Run benchmarks of single kernels, for those who change them
[group('develop')]
bench-kernels *args: setup
    cargo bench --locked --workspace --benches "$@"

# Remove the outputs of one profile's stages (default smol), keeping downloads and committed results
[group('develop')]
clean profile="smol":
    rm -rf "data/runs/{{ replace(profile, 'profile=', '') }}"
