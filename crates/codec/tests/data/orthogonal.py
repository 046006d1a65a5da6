"""Vectors for tests/orthogonal.rs: orthogonal matching pursuit, restated from the description of Lexico's coder.

    pip install numpy==2.4.6 scikit-learn==1.9.1 && python orthogonal.py > orthogonal.json

Atoms and rows are small integers over 64, so that they are the same number in f32 and in f64; atoms are then brought to
unit length in f64. scikit-learn's `orthogonal_mp` is the second opinion: the supports must agree, and the coefficients
to 1e-9.
"""

import json

import numpy as np
import sklearn
from sklearn.linear_model import orthogonal_mp


def pursue(y, atoms, sparsity, tolerance):
    """Picks by largest correlation, the lowest index among equals, and solves least squares on what was picked."""
    picked, coefficients = [], np.zeros(0)
    residual = y.copy()
    while len(picked) < sparsity and np.linalg.norm(residual) > tolerance * np.linalg.norm(y):
        correlations = np.abs(atoms @ residual)
        correlations[picked] = -1.0
        picked.append(int(np.argmax(correlations)))
        coefficients = np.linalg.lstsq(atoms[picked].T, y, rcond=None)[0]
        residual = y - atoms[picked].T @ coefficients
    return picked, coefficients.tolist(), float(residual @ residual / (y @ y))


def main():
    rng = np.random.default_rng(20)
    cases = []
    for width, count, sparsity, tolerance in [(16, 48, 4, 0.0), (64, 120, 8, 0.0), (32, 90, 12, 0.45)]:
        raw = rng.integers(-64, 65, (count, width)) / 64.0
        atoms = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        rows = rng.integers(-64, 65, (6, width)) / 64.0
        codes = []
        for y in rows:
            picked, coefficients, left = pursue(y, atoms, sparsity, tolerance)
            second = orthogonal_mp(atoms.T, y, n_nonzero_coefs=len(picked))
            assert set(np.flatnonzero(second)) == set(picked)
            assert np.allclose(second[picked], coefficients, atol=1e-9)
            codes.append({"indices": picked, "coefficients": coefficients, "residual": left})
        cases.append({"width": width, "sparsity": sparsity, "tolerance": tolerance, "atoms": (raw * 64).astype(int).ravel().tolist(),
                      "rows": (rows * 64).astype(int).ravel().tolist(), "codes": codes})
    print(json.dumps({"numpy": np.__version__, "scikit-learn": sklearn.__version__, "cases": cases}))


main()
