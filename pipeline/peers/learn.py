"""Learns dictionaries with scikit-learn and SPAMS, and measures them as this project measures its own.

learn.py VECTORS ROWS: VECTORS is the folder `peer-vectors` of the ablate stage; ROWS gets one JSON object per
dictionary, in the form of the stage's own rows. Both learners minimise an l1-penalised error. The penalty is chosen so
that a code has about s non-zeros. Then all dictionaries are used as the cache uses them: matching pursuit with s atoms,
coefficients rounded to f16. Each learner uses one thread. Both start from random training vectors and are online: SPAMS
makes as many passes over the vectors as this project's trainers by default; scikit-learn makes one, because a pass takes
minutes.
"""

import json
import os
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402  (after the number of threads)

SEED = 20


def shard(path):
    """The vectors of a calibration shard as f32 (n, width), and its metadata."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    tensor = header["vectors"]
    start, end = (8 + length + offset for offset in tensor["data_offsets"])
    rows = np.frombuffer(raw[start:end], dtype="<f2").astype(np.float32)
    return rows.reshape(-1, tensor["shape"][2]), header["__metadata__"]


def matching_pursuit_error(atoms, rows, sparsity):
    """Relative squared error and mean squared error of matching pursuit over unit-norm `atoms` (N, width)."""
    error = energy = 0.0
    for block in np.array_split(rows, max(1, len(rows) // 4096)):
        residual, restored = block.copy(), np.zeros_like(block)
        for _ in range(sparsity):
            scores = residual @ atoms.T
            picked = np.abs(scores).argmax(1)
            coefficient = np.take_along_axis(scores, picked[:, None], 1)
            residual -= coefficient * atoms[picked]
            restored += coefficient.astype(np.float16).astype(np.float32) * atoms[picked]
        error += float(((block - restored).astype(np.float64) ** 2).sum())
        energy += float((block.astype(np.float64) ** 2).sum())
    return error / energy, error / len(rows)


def unit(atoms, rng):
    """Atoms of unit length; those that the learner left at zero become random directions."""
    atoms = np.ascontiguousarray(atoms, dtype=np.float32)
    empty = np.linalg.norm(atoms, axis=1) < 1e-12
    atoms[empty] = rng.standard_normal((int(empty.sum()), atoms.shape[1]), dtype=np.float32)
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


def penalty(rows, start, sparsity):
    """The l1 penalty at which codes over the start have about `sparsity` non-zeros, by bisection."""
    import spams

    sample = np.asfortranarray(rows[:512].T, dtype=np.float64)
    atoms = np.asfortranarray(start.T, dtype=np.float64)
    low, high = 0.0, float(np.abs(sample.T @ atoms).max())
    for _ in range(12):
        middle = (low + high) / 2
        codes = spams.lasso(sample, D=atoms, lambda1=middle, mode=2, numThreads=1)
        if codes.nnz / sample.shape[1] > sparsity:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def scikit_learn(rows, start, lam, passes):
    from sklearn.decomposition import MiniBatchDictionaryLearning

    learner = MiniBatchDictionaryLearning(
        n_components=len(start), alpha=lam, dict_init=start.astype(np.float64), max_iter=passes, batch_size=256,
        fit_algorithm="lars", random_state=SEED, n_jobs=1, max_no_improvement=None, tol=0.0,
    )
    return learner.fit(rows.astype(np.float64)).components_


def spams_online(rows, start, lam, passes):
    import spams

    batch = 256
    learned = spams.trainDL(
        np.asfortranarray(rows.T, dtype=np.float64), D=np.asfortranarray(start.T, dtype=np.float64), lambda1=lam,
        mode=2, iter=passes * len(rows) // batch, batchsize=batch, numThreads=1, verbose=False,
    )
    return learned.T


# Name, learner, passes over the training vectors.
PEERS = [("scikit-learn MiniBatchDictionaryLearning", scikit_learn, 1), ("SPAMS trainDL", spams_online, 4)]


def main(folder, out):
    rows_out = []
    for kind in ("key", "value"):
        train, about = shard(folder / f"{kind}s-train.safetensors")
        heldout, _ = shard(folder / f"{kind}s-heldout.safetensors")
        atoms, sparsity = int(about["atoms"]), int(about["sparsity"])
        rng = np.random.default_rng(SEED)
        directions = train[np.linalg.norm(train, axis=1) > 0]
        start = unit(directions[rng.choice(len(directions), atoms, replace=False)], rng)
        lam = penalty(train, start, sparsity)
        for name, learn, passes in PEERS:
            print(f"peers: {name}, {kind}s of layer {about['layer']}: {len(train)} vectors, {atoms} atoms", flush=True)
            began = time.perf_counter()
            learned = unit(learn(train, start, lam, passes), rng)
            seconds = time.perf_counter() - began
            relative, mse = matching_pursuit_error(learned, heldout, sparsity)
            print(f"peers:   held-out relative error {relative:.4f} after {seconds:.0f} s", flush=True)
            rows_out.append({
                "section": "peers", "name": name, "layer": int(about["layer"]), "kind": kind, "atoms": atoms,
                "sparsity": sparsity, "chunks": int(about["chunks"]), "vectors": len(train), "epochs": passes,
                "relative": relative, "mse": mse, "weighted": None, "seconds": seconds,
            })
    temporary = out.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows_out))
    temporary.rename(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
