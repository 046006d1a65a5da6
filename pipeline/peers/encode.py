"""Codes vectors with SPAMS, scikit-learn and faiss, when `kvcsr bench` asks for it.

encode.py FOLDER: the folder has atoms.f32 (N, width) of unit length, vectors.f32 (rows, width), and job.json with width,
atoms, sparsity, rows and threads. Each line of standard input is the name of a peer. The answer is one JSON object on a
line: how many vectors were coded, in how many seconds, and the relative squared error of the vectors restored from the
codes. SPAMS and faiss get all vectors, so that their work once per call hardly counts. scikit-learn would take minutes
for all. It gets fewer, at least 64: as many as it codes in about half a second.
"""

import json
import os
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
# A BLAS that is told to use the kernels of an old processor would not be a fair peer.
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(job["threads"])
# SPAMS has threads of its own. It brings an OpenBLAS of 2021, whose AVX-512 kernels take twice as long here as its AVX2 kernels: the
# name of those is "Haswell".
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")

import faiss  # noqa: E402  (after the number of threads)
import numpy as np  # noqa: E402
import spams  # noqa: E402
from sklearn.linear_model import orthogonal_mp_gram  # noqa: E402

FIRST, ENOUGH = 64, 0.5
STAGES, BITS = 8, 10

atoms = np.fromfile(folder / "atoms.f32", dtype="<f4").reshape(-1, job["width"])
vectors = np.fromfile(folder / "vectors.f32", dtype="<f4").reshape(-1, job["width"])
sparsity = job["sparsity"]
by_column = np.asfortranarray(atoms.T)
gram = (atoms @ atoms.T).astype(np.float64)
faiss.omp_set_num_threads(job["threads"])
quantiser = None


def spams_omp(rows):
    codes = spams.omp(np.asfortranarray(rows.T), by_column, L=sparsity, eps=0.0, return_reg_path=False, numThreads=job["threads"])
    return lambda: (by_column @ codes).T


def scikit_learn(rows):
    codes = orthogonal_mp_gram(gram, atoms.astype(np.float64) @ rows.T, n_nonzero_coefs=sparsity)
    return lambda: np.atleast_2d(codes.T) @ atoms


def faiss_residual(rows):
    codes = quantiser.compute_codes(rows)
    return lambda: quantiser.decode(codes)


def trained():
    """A residual quantiser trained on the vectors that it codes, which is in its favour."""
    bits = min(BITS, max(1, int(np.log2(len(vectors) / 2))))
    made = faiss.ResidualQuantizer(job["width"], STAGES, bits)
    made.train(vectors)
    return made


PEERS = {
    "SPAMS omp": spams_omp,
    "scikit-learn orthogonal_mp_gram": scikit_learn,
    "faiss ResidualQuantizer 8 x 10 bits": faiss_residual,
}
counts = {}


def turn(name):
    global quantiser
    if PEERS[name] is faiss_residual and quantiser is None:
        quantiser = trained()
    first = FIRST if PEERS[name] is scikit_learn else len(vectors)
    count = counts.get(name, min(first, len(vectors)))
    while True:
        rows = np.ascontiguousarray(vectors[:count])
        begun = time.perf_counter()
        restore = PEERS[name](rows)
        seconds = time.perf_counter() - begun
        if name in counts or seconds >= ENOUGH or count == len(vectors):
            break
        count = min(4 * count, len(vectors))
    counts[name] = count
    error = float(((rows - restore()).astype(np.float64) ** 2).sum() / (rows.astype(np.float64) ** 2).sum())
    answer = {"rows": count, "seconds": seconds, "error": error}
    if PEERS[name] is faiss_residual:
        answer["bytes"] = quantiser.code_size
    return answer


for line in sys.stdin:
    print(json.dumps(turn(line.strip())), flush=True)
