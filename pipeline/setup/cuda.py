#!/usr/bin/env python3
"""Compile and link the CUDA build on a machine without a GPU: `just check-cuda`.

The compiler, the headers and PyTorch's CUDA libraries come from pinned PyPI packages
(`cuda_view.py`). Everything is compiled in a target folder of its own, so that the ordinary build
does not change. Nothing runs on a GPU: this shows that the code compiles for the capabilities
below and links, not that its results are correct.

    cuda.py            packages, kernels, workspace, binary
    cuda.py --tests    the same, and every test and example: linked but not run
"""

import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
import cuda_view  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
FEATURES = "kvcsr/cuda"
# candle compiles for one capability at a time. The first one is that of the workspace.
CAPABILITIES = ["90", "89", "80"]
# Size of the target folder in GB: after the workspace (measured: 1.7), and after all tests (estimated).
DISK_BUILD, DISK_TESTS = 3, 14
# Libraries that the program must need: libtorch's CUDA kernels, and those that candle links.
NEEDED = ["libtorch_cuda.so", "libcuda.so.1", "libcudart.so.13", "libcublas.so.13", "libcurand.so.10"]
# Variables that are removed from the environment: they would add folders of another PyTorch or CUDA to the build.
UNWANTED = ["LIBTORCH_USE_PYTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB", "LIBTORCH_STATIC", "CUDA_PATH", "CUDA_ROOT",
            "CUDA_TOOLKIT_ROOT_DIR", "CUDNN_LIB", "CUDARC_CUDA_VERSION", "NVCC", "LD_LIBRARY_PATH"]

started = time.monotonic()
table = []


def fail(message):
    sys.exit(f"check-cuda: {message}")


def say(message):
    print(f"check-cuda: {message}", flush=True)


def row(what, value):
    table.append((what, value))


class Step:
    """One step. It is announced, and its time goes into the table."""

    def __init__(self, title):
        self.title = title

    def __enter__(self):
        self.start = time.monotonic()
        say(f"{self.title} ...")

    def __exit__(self, kind, *_):
        if kind is None:
            seconds = time.monotonic() - self.start
            say(f"{self.title}: done in {seconds:.0f} s")
            row(self.title, f"{seconds:.0f} s")


def run(command, env, out=None):
    """Runs a command of the check. The user sees its output. If it fails, the check ends."""
    done = subprocess.run([str(c) for c in command], cwd=ROOT, env=env, stdout=out)
    if done.returncode != 0:
        fail(f"`{' '.join(str(c) for c in command)}` failed ({done.returncode}); its messages stand above")


def output(command, env=None):
    return subprocess.run([str(c) for c in command], cwd=ROOT, env=env, capture_output=True, text=True)


def check_tools(tests):
    for tool, package in [("cargo", "Rust, see rust-toolchain.toml"), ("cc", "build-essential"), ("c++", "build-essential"),
                          ("ar", "binutils"), ("readelf", "binutils")]:
        if shutil.which(tool) is None:
            fail(f"`{tool}` was not found: install it ({package})")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve() / "check-cuda"
    target.mkdir(parents=True, exist_ok=True)
    there, free = cuda_view.size_on_disk(target), shutil.disk_usage(target).free
    wanted = (DISK_TESTS if tests else DISK_BUILD) * 1e9 - there
    if free < wanted:
        fail(f"{target} has {free / 1e9:.1f} GB free; the build needs {wanted / 1e9:.1f} GB. "
             "Free some, or set CARGO_TARGET_DIR to a folder on a larger disk")
    return target


def environment(view, target):
    cu13 = view / cuda_view.CU13
    env = {k: v for k, v in os.environ.items() if k not in UNWANTED}
    env.update(LIBTORCH=str(view / "torch"), CUDA_HOME=str(cu13), CUDA_COMPUTE_CAP=CAPABILITIES[0],
               CARGO_TARGET_DIR=str(target), PATH=f"{cu13 / 'bin'}:{env['PATH']}")
    return env


def check_compiler(env):
    """Compiles an empty kernel, to see whether nvcc accepts the C++ compiler of the machine."""
    version = re.search(r"release [\d.]+, V([\d.]+)", output(["nvcc", "--version"], env).stdout)
    host = output([env.get("NVCC_CCBIN", "c++"), "--version"]).stdout.partition("\n")[0]
    with tempfile.TemporaryDirectory() as tmp:
        kernel = pathlib.Path(tmp) / "empty.cu"
        kernel.write_text("__global__ void empty() {}\n")
        compile_it = ["nvcc", "-c", kernel, "-o", kernel.with_suffix(".o")]
        tried = output(compile_it, env)
        if "unsupported GNU version" in tried.stderr or "unsupported clang version" in tried.stderr:
            say(f"nvcc does not know {host}; going on with -allow-unsupported-compiler")
            env["NVCC_APPEND_FLAGS"] = "-allow-unsupported-compiler"
            tried = output(compile_it, env)
    if tried.returncode != 0 or version is None:
        fail(f"nvcc cannot compile an empty kernel with {host}:\n{tried.stderr.strip()}\n"
             "Set NVCC_CCBIN to an older C++ compiler (Debian: apt-get install g++-12, NVCC_CCBIN=g++-12)")
    row("compiler", f"nvcc {version[1]}, {host}")


def locked(name):
    """The version of a package in Cargo.lock."""
    text = (ROOT / "Cargo.lock").read_text()
    return re.search(rf'name = "{name}"\nversion = "([^"]+)"', text)[1]


def architecture(capability):
    """The architecture as candle's build script spells it: from 90 on, with the instructions of that GPU alone."""
    return f"{capability}a" if int(capability) >= 90 else capability


def newest(target, package):
    """The folder that a package's build script filled last."""
    found = [d for d in (target / "release/build").glob(f"{package}-*/out") if any(d.glob("*.ptx"))]
    if not found:
        fail(f"no kernels of {package} below {target}")
    return max(found, key=lambda d: max(f.stat().st_mtime for f in d.glob("*.ptx")))


def assemble(folder, arch, env):
    """Compiles PTX to the code of a GPU. Without this, the driver would do it when the program runs."""
    files = sorted(folder.glob("*.ptx"))
    for ptx in files:
        run(["ptxas", f"-arch=sm_{arch}", ptx, "-o", os.devnull], env)
    return len(files)


def build_candle_kernels(capability, env, apart):
    """Builds candle's kernels alone. Cargo builds a dependency only for a package that depends on it, so one is made."""
    probe = apart / "probe"
    (probe / "src").mkdir(parents=True, exist_ok=True)
    (probe / "src/lib.rs").write_text("")
    shutil.copy(ROOT / "Cargo.lock", probe)
    (probe / "Cargo.toml").write_text(
        '[package]\nname = "probe"\nversion = "0.0.0"\nedition = "2024"\n\n[workspace]\n\n'
        f'[dependencies]\ncandle-kernels = "={locked("candle-kernels")}"\n')
    run(["cargo", "build", "--quiet", "--release", "--manifest-path", probe / "Cargo.toml"],
        env | {"CUDA_COMPUTE_CAP": capability, "CARGO_TARGET_DIR": str(apart), "CUDAFORGE_THREADS": str(os.cpu_count())})


def check_kernels(capability, env, target):
    """Compiles candle's kernels and ours for one capability. For the workspace's own, candle's are there already."""
    arch = architecture(capability)
    of_workspace = capability == CAPABILITIES[0]
    if not of_workspace:
        build_candle_kernels(capability, env, target / f"sm_{capability}")
    of_candle = assemble(newest(target if of_workspace else target / f"sm_{capability}", "candle-kernels"), arch, env)
    ours = sorted((ROOT / "crates/cache/src").rglob("*.cu"))
    for kernel in ours:
        run(["nvcc", "-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin", kernel,
             "-o", os.devnull], env)
    if of_workspace:
        assemble(newest(target, "kvcsr-cache"), arch, env)
    row(f"compiled for sm_{arch}", f"{of_candle} PTX files and a library of candle, {len(ours)} files of this project")


def binaries(env, tests):
    """Compiles the workspace. Returns the paths of the executables, sorted."""
    command = ["cargo", "test", "--no-run"] if tests else ["cargo", "build"]
    command += ["--release", "--locked", "--workspace", "--features", FEATURES]
    with tempfile.TemporaryFile() as messages:
        run([*command, "--message-format=json-render-diagnostics"], env, messages)
        messages.seek(0)
        lines = [json.loads(line) for line in messages if line.startswith(b"{")]
    return sorted({line["executable"] for line in lines if line.get("executable")})


def needed(program):
    dynamic = output(["readelf", "--dynamic", "--wide", program]).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)


def check_binary(program, view, env):
    missing = [name for name in NEEDED if name not in needed(program)]
    if missing:
        fail(f"{program} does not need {', '.join(missing)}; the CUDA build is not linked as it should be")
    row("kvcsr needs", ", ".join(NEEDED))
    lib = view / cuda_view.CU13 / "lib"
    # First as on a machine without a driver, then with the stub in the driver's place.
    without = output([program, "--help"], env | {"LD_LIBRARY_PATH": str(lib)})
    absent = re.search(r"libcuda\.so\.1: cannot open shared object file", without.stderr)
    if without.returncode == 0:
        row("kvcsr --help without libcuda", "starts")
    elif absent:
        row("kvcsr --help without libcuda", "does not start: the loader asks for libcuda.so.1")
    else:
        fail(f"{program} --help does not start without a driver, and not for want of libcuda:\n{without.stderr}")
    stub = env | {"LD_LIBRARY_PATH": f"{lib}:{lib / 'stubs'}"}
    helped = output([program, "--help"], stub)
    if helped.returncode != 0 or "Usage: kvcsr" not in helped.stdout:
        fail(f"{program} --help does not start with a stub of libcuda:\n{helped.stderr}")
    row("kvcsr --help with a stub of libcuda", "starts; every library is found and loads")


def gigabytes(path):
    return f"{cuda_view.size_on_disk(path) / 1e9:.1f} GB"


def main():
    if sys.argv[1:] not in ([], ["--tests"]):
        fail(f"expected --tests or nothing, not {' '.join(sys.argv[1:])}")
    tests = sys.argv[1:] == ["--tests"]
    # Ends in the ordinary way, so that temporary folders are removed.
    signal.signal(signal.SIGTERM, lambda *_: fail("ended by a signal"))
    target = check_tools(tests)
    view = cuda_view.folder()
    with Step("packages"):
        if not cuda_view.is_ready(view):
            cuda_view.build(view)
    say(f"the packages are in {view}")
    env = environment(view, target)
    check_compiler(env)
    with Step("workspace, all binaries"):
        programs = binaries(env, False)
    program = next((p for p in programs if pathlib.Path(p).name == "kvcsr"), None)
    if program is None:
        fail("cargo built no program called kvcsr")
    check_binary(program, view, env)
    for capability in CAPABILITIES:
        with Step(f"kernels for sm_{architecture(capability)}"):
            check_kernels(capability, env, target)
    if tests:
        with Step("tests and examples, linked and not run"):
            linked = binaries(env, True)
        row("linked", f"{len(linked)} programs, {sum('libtorch_cuda.so' in needed(p) for p in linked)} with libtorch_cuda")
    versions = ", ".join(f"{name} {locked(name)}" for name in ("candle-core", "cudarc", "candle-kernels", "tch"))
    row("packages from PyPI", f"CUDA {cuda_view.TOOLKIT}, PyTorch {cuda_view.libtorch.VERSION}: {gigabytes(view)}")
    row("crates", versions)
    row("target folder", gigabytes(target))
    row("never run on a card", "all of it")
    row("in all", f"{(time.monotonic() - started) / 60:.1f} minutes, {datetime.date.today()}")
    width = max(len(what) for what, _ in table)
    print("\n".join(f"{what:<{width}}  {value}" for what, value in table))


if __name__ == "__main__":
    main()
