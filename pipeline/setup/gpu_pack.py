#!/usr/bin/env python3
"""Fill a folder with everything that `just gpu-check` needs on a machine with a GPU and no network.

    gpu_pack.py FOLDER [--capability 80] [--longbench FOLDER]

The folder gets the program, its libraries, profiles, the weights and texts of the profile `smoke`, and
LongBench's records if their folder is named. The program is built for one compute capability: newer GPUs
run 80 and 89 too; 90 is only for GPUs of capability 9.0. On the other machine, run `./gpu-check`. That
machine needs only the driver.
"""

import os
import pathlib
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
import cuda  # noqa: E402
import cuda_view  # noqa: E402

ROOT = cuda.ROOT
# Tasks of LongBench that the check answers.
TASKS = ["trec", "samsum"]
# Libraries that are left out: those that only compile or profile, and those of the driver.
UNWANTED = ("libcuda.so", "libnvvm", "libnvptxcompiler")


def fail(message):
    sys.exit(f"gpu-pack: {message}")


def options(words):
    """The folder, the capability and LongBench's folder."""
    found = {"--capability": "80", "--longbench": os.environ.get("KVCSR_LONGBENCH", "")}
    folders = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word in found:
            if not words:
                fail(f"{word}: a value is expected")
            found[word] = words.pop(0)
        elif word.startswith("-"):
            fail(f"{word}: unknown; there are {', '.join(found)}")
        else:
            folders.append(word)
    if len(folders) != 1:
        fail("one folder is expected: just gpu-pack FOLDER")
    if not found["--capability"].isdigit():
        fail(f"--capability {found['--capability']}: a number such as 80, 89 or 90 is expected")
    return pathlib.Path(folders[0]).resolve(), found["--capability"], found["--longbench"]


def libraries(view):
    """Every shared library of the packages, each file once."""
    for path in sorted(view.rglob("*.so*")):
        if "stubs" not in path.parts and not path.name.startswith(UNWANTED) and path.is_file():
            yield path


def fill(folder, program, view, env, longbench):
    for name in ("bin", "lib", "data", "cache", "pipeline"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2(program, folder / "bin/kvcsr")
    for library in libraries(view):
        shutil.copy2(library, folder / "lib" / library.name)
    for table in (ROOT / "data").glob("*.toml"):
        shutil.copy2(table, folder / "data")
    shutil.copytree(ROOT / "pipeline/profiles", folder / "pipeline/profiles", dirs_exist_ok=True)
    shutil.copy2(ROOT / "pipeline/setup/gpu_check.sh", folder / "gpu-check")
    # The program fetches its inputs itself. There may be no driver here: a stub lets it start.
    lib = view / cuda_view.CU13 / "lib"
    fetch = env | {"KVCSR_CACHE": str(folder / "cache"), "LD_LIBRARY_PATH": f"{folder / 'lib'}:{lib / 'stubs'}"}
    if subprocess.run([folder / "bin/kvcsr", "fetch", "profile=smoke"], cwd=folder, env=fetch).returncode != 0:
        fail("the weights and texts could not be fetched; the messages stand above")
    if not longbench:
        print("gpu-pack: no LongBench folder (KVCSR_LONGBENCH or --longbench): the check will leave its tasks out")
        return
    source = pathlib.Path(longbench)
    if not source.is_dir():
        fail(f"{source}: no such folder")
    for path in source.rglob("*"):
        keep = path.suffix == ".json" or path.stem.split("_e")[0] in TASKS
        if path.is_file() and keep and "golden" not in path.parts:
            target = folder / "longbench" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def main():
    folder, capability, longbench = options(sys.argv[1:])
    target = cuda.check_tools(False)
    view = cuda_view.folder()
    if not cuda_view.is_ready(view):
        cuda_view.build(view)
    env = cuda.environment(view, target) | {"CUDA_COMPUTE_CAP": capability}
    cuda.check_compiler(env)
    program = next((p for p in cuda.binaries(env, False) if pathlib.Path(p).name == "kvcsr"), None)
    if program is None:
        fail("cargo built no program called kvcsr")
    fill(folder, program, view, env, longbench)
    size = cuda_view.size_on_disk(folder) / 1e9
    print(f"gpu-pack: {folder}: {size:.1f} GB for compute capability {capability}. There: ./gpu-check")


if __name__ == "__main__":
    main()
