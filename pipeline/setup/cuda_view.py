"""A CUDA compiler and PyTorch's CUDA libraries in one folder, from pinned PyPI packages.

The folder has the layout of a `site-packages`, so that every library finds the others by the run
path it came with. `torch` in it serves as LIBTORCH, `nvidia/cu13` as CUDA_HOME. The packages are
those that the wheel of PyTorch names (`cuda-toolkit` 13.0.3) and the compiler of the same toolkit.

Only the Python 3 standard library, pip and a C compiler are used.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import libtorch
from libtorch import fail

CUDA = "13.0"
TOOLKIT = "13.0.3"
# Bytes of the unpacked folder and the largest wheel beside it, rounded up.
DISK_NEEDED = 5_000_000_000
# The tags of NVIDIA's wheels. Version and sha256 are pinned, so a longer list does not change which wheel is chosen.
PLATFORMS = [f"{tag}_x86_64" for tag in (
    "manylinux_2_28", "manylinux_2_27", "manylinux_2_25", "manylinux_2_18", "manylinux_2_17", "manylinux2014",
    "manylinux_2_12", "manylinux2010", "manylinux_2_5", "manylinux1")]

CU13 = "nvidia/cu13"


def parts(*names, root=CU13):
    """Members of a wheel that are unpacked to the same path."""
    return {f"{root}/{n}": f"{root}/{n}" if n.endswith("/") else f"{root}/{n}".rpartition("/")[0] for n in names}


# NVIDIA's packages are pinned for this machine only.
MACHINE = ("Linux", "x86_64")
TORCH_SHA256 = next(digest for package, _, digest, _ in libtorch.MACHINES[MACHINE][1] if package == "torch")
TORCH_LIBS = ["c10", "c10_cuda", "caffe2_nvrtc", "torch", "torch_cpu", "torch_cuda", "torch_cuda_linalg", "torch_nvshmem"]
# package, version, sha256 of the wheel, members to unpack, what it is for
WHEELS = [
    ("nvidia-cuda-nvcc", "13.0.88", "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
     parts("bin/", "include/"), "compiler"),
    ("nvidia-nvvm", "13.0.88", "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0",
     parts("nvvm/"), "compiler"),
    ("nvidia-cuda-crt", "13.0.88", "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
     parts("include/"), "headers"),
    ("nvidia-cuda-cccl", "13.0.85", "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
     parts("include/"), "headers"),
    ("nvidia-cuda-runtime", "13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
     parts("include/", "lib/"), "headers, linked by candle and libtorch"),
    ("nvidia-cublas", "13.1.1.3", "37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436",
     parts("include/", "lib/libcublas.so.13", "lib/libcublasLt.so.13"), "linked by candle and libtorch"),
    ("nvidia-curand", "10.4.0.35", "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
     parts("include/", "lib/"), "linked by candle and libtorch"),
    ("nvidia-cuda-nvrtc", "13.0.88", "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
     parts("lib/libnvrtc.so.13", "lib/libnvrtc-builtins.so.13.0"), "linked by candle and libtorch"),
    ("nvidia-cuda-cupti", "13.0.85", "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
     parts("lib/libcupti.so.13"), "linked by libtorch"),
    ("nvidia-cufft", "12.0.0.61", "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
     parts("lib/libcufft.so.12"), "linked by libtorch"),
    ("nvidia-cufile", "1.15.1.6", "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
     parts("lib/libcufile.so.0"), "linked by libtorch"),
    ("nvidia-cusolver", "12.0.4.66", "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
     parts("lib/libcusolver.so.12"), "opened by libtorch for linear algebra"),
    ("nvidia-cusparse", "12.6.3.3", "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
     parts("lib/libcusparse.so.12"), "linked by libtorch"),
    ("nvidia-nvjitlink", "13.0.88", "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
     parts("lib/libnvJitLink.so.13"), "linked by cuSPARSE"),
    ("nvidia-cudnn-cu13", "9.20.0.48", "0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304",
     parts("lib/", root="nvidia/cudnn"), "linked by libtorch"),
    ("nvidia-cusparselt-cu13", "0.8.1", "786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0",
     parts("lib/", root="nvidia/cusparselt"), "linked by libtorch"),
    ("nvidia-nccl-cu13", "2.29.7", "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d",
     parts("lib/", root="nvidia/nccl"), "linked by libtorch"),
    ("nvidia-nvshmem-cu13", "3.4.5", "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
     parts("lib/libnvshmem_host.so.3", root="nvidia/nvshmem"), "linked by libtorch"),
    ("torch", libtorch.VERSION, TORCH_SHA256,
     parts("include/", "lib/libgomp.so.1", *(f"lib/lib{name}.so" for name in TORCH_LIBS), root="torch"), "libtorch"),
]


def folder():
    return libtorch.cache_dir() / f"cuda-{TOOLKIT}-torch-{libtorch.VERSION}"


def is_ready(view):
    return (view / "torch/build-version").is_file()


def size_on_disk(path):
    return sum(f.stat().st_blocks * 512 for f in path.rglob("*") if f.is_file() and not f.is_symlink())


def link_names(lib):
    """The names that a linker looks for (`libcublas.so`), which the wheels leave out."""
    for library in sorted(lib.glob("lib*.so.*")):
        plain = library.with_name(library.name.partition(".so.")[0] + ".so")
        if not plain.exists():
            plain.symlink_to(library.name)


def build_stub(cu13):
    """A libcuda without a driver: every function of cuda.h, answering CUDA_ERROR_STUB_LIBRARY.

    The packages have no libcuda. The real library comes with NVIDIA's driver. `lib/stubs` is where
    the toolkit of NVIDIA has its own stub: for linking only, and on no run path.
    """
    header = (cu13 / "include/cuda.h").read_text()
    names = set(re.findall(r"\bCUDAAPI\s+(cu[A-Z]\w*)\s*\(", header))
    names |= set(re.findall(r"^\s*#\s*define\s+cu[A-Z]\w*\s+(cu[A-Z]\w*)\s*$", header, re.M))
    # Names that a macro of the header makes by pasting: cuMemcpy -> cuMemcpy_ptds, ..._ptsz.
    names |= {f"{name}{suffix}" for name in list(names) for suffix in ("_ptds", "_ptsz")}
    stubs = cu13 / "lib/stubs"
    stubs.mkdir(parents=True)
    source = "".join(f"int {name}(void) {{ return 34; }}\n" for name in sorted(names))
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", "libcuda.so.1", "-Wl,-soname,libcuda.so.1"],
                   cwd=stubs, input=source.encode(), check=True)
    (stubs / "libcuda.so").symlink_to("libcuda.so.1")


def check_disk(cache):
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < DISK_NEEDED:
        fail(f"{cache} has {free / 1e9:.1f} GB free; the CUDA packages need {DISK_NEEDED / 1e9:.1f} GB. "
             "Free some, or set KVCSR_CACHE to a folder on a larger disk")


def build(target):
    """Download, check and unpack every wheel. `target` does not exist until everything is there."""
    libtorch.check_machine(target.parent, [MACHINE])
    check_disk(target.parent)
    for left in target.parent.glob("cuda-tmp-*"):
        # Left by a killed run. The folder of a run that still works is left alone.
        if not pathlib.Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"cuda-tmp-{os.getpid()}-") as tmp:
        tmp = pathlib.Path(tmp)
        view = tmp / "view"
        for package, version, digest, members, _ in WHEELS:
            wheel = libtorch.download(package, version, digest, tmp, PLATFORMS)
            libtorch.unpack(wheel, members, view)
            wheel.unlink()
        cu13 = view / CU13
        for tool in [*(cu13 / "bin").iterdir(), *(cu13 / "nvvm/bin").iterdir()]:
            if tool.is_file():
                tool.chmod(0o755)
        link_names(cu13 / "lib")
        (cu13 / "lib64").symlink_to("lib")
        build_stub(cu13)
        (view / "torch/lib/libgomp.so").symlink_to("libgomp.so.1")
        (view / "torch/build-version").write_text(f"{libtorch.VERSION}+cu{CUDA.replace('.', '')}\n")
        if target.exists():
            shutil.rmtree(target)
        view.rename(target)
