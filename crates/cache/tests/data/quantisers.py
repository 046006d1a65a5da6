"""Writes quantisers.json: what the published formulas of KIVI, GEAR and TurboQuant make of a few numbers.

    pip install numpy==2.4.6 && python quantisers.py

The formulas are restated here, in numpy and f64 where nothing else is said, after the papers and the released quantisers
of KIVI (jy-yuan/KIVI, quant/new_pack.py) and GEAR (opengear-project/GEAR, GEARLM/Simulated/compress_function.py, at
01d0a32), none of whose code is used. Where the released GEAR counts outliers of a key channel from the number of channels, and levels as
b^2 - 1, the paper's rule is taken: a share of the channel's tokens, and 2^b - 1.
"""

import json
import math
import pathlib

import numpy

HERE = pathlib.Path(__file__).parent


def ramp(seed, n):
    """Multiples of 1/256 that f16 holds exactly, one in 97 of them eight times as large."""
    out, state = [], seed
    for i in range(n):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        x = (state >> 16) % 2001 - 1000
        out.append(x / 32 if i % 97 == 96 else x / 256)
    return numpy.array(out)


def affine(x, axis, bits):
    """Codes, zero points and steps of groups along `axis`; zero points and steps are f16."""
    low, high = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
    zero, step = low.astype(numpy.float16), ((high - low) / (2**bits - 1)).astype(numpy.float16)
    zero, step = zero.astype(numpy.float32), step.astype(numpy.float32)
    codes = numpy.rint(numpy.clip((x.astype(numpy.float32) - zero) / step, 0, 2**bits - 1))
    return codes, zero, step


def described(codes, zero, step):
    digits = "".join(f"{int(c):x}" for c in codes.reshape(-1))
    return {"codes": digits, "zeros": zero.reshape(-1).tolist(), "steps": step.reshape(-1).tolist()}


def kivi(tokens=64, d=32, group=32):
    x = ramp(1, tokens * d).reshape(tokens, d)
    out = {}
    for bits in (2, 4):
        keys = affine(x.reshape(tokens // group, group, d), 1, bits)
        values = affine(x.reshape(tokens, d // group, group), 2, bits)
        out[str(bits)] = {"keys": described(*keys), "values": described(*values)}
    return out


def without_outliers(x, share):
    """Per row, the largest and the smallest entries, and the row with its mean in their place."""
    side = max(1, round(share / 2 * x.shape[1]))
    order = numpy.argsort(x, axis=1, kind="stable")
    taken = numpy.concatenate([order[:, :side], order[:, -side:]], axis=1)
    bulk = x.copy()
    numpy.put_along_axis(bulk, taken, numpy.repeat(x.mean(1, keepdims=True), 2 * side, 1), 1)
    return bulk, taken


def power_iteration(x, rank, start, loops=3):
    b = start
    for loop in range(loops):
        if loop == loops - 1:
            b = numpy.linalg.qr(b)[0]
        a = x @ b
        if loop == loops - 1:
            a = numpy.linalg.qr(a)[0]
        b = x.T @ a
    return a @ b.T


def gear(heads=2, tokens=64, d=32, share=0.05):
    """Keys and values `(heads, tokens, d)`. The restored bulk with outliers, and how much a factor of rank 4 leaves."""
    x = ramp(2, heads * tokens * d).reshape(heads, tokens, d)
    out = {}
    for kind in ("keys", "values"):
        for bits, group in ((4, None), (2, 32)):
            if kind == "keys":  # rows are channels over tokens
                vectors = x.transpose(0, 2, 1).reshape(heads * d, tokens)
            else:  # rows are tokens over the channels of all heads
                vectors = x.transpose(1, 0, 2).reshape(tokens, heads * d)
            bulk, taken = without_outliers(vectors, share)
            grouped = bulk.astype(numpy.float32).reshape(vectors.shape[0], -1, group or vectors.shape[1])
            codes, zero, step = affine(grouped, 2, bits)
            restored = (codes * step + zero).reshape(vectors.shape).astype(numpy.float64)
            numpy.put_along_axis(restored, taken, numpy.take_along_axis(vectors, taken, 1), 1)
            if kind == "keys":
                restored = restored.reshape(heads, d, tokens).transpose(0, 2, 1)
            else:
                restored = restored.reshape(tokens, heads, d).transpose(1, 0, 2)
            residual = x - restored
            rng = numpy.random.default_rng(0)
            left = []
            for _ in range(50):
                low = numpy.stack([power_iteration(r, 4, rng.random((d, 4))) for r in residual])
                left.append(((residual - low) ** 2).sum() / (residual**2).sum())
            out[f"{kind}-{bits}"] = {
                "restored": [round(v, 5) for v in restored[1, ::9].reshape(-1).tolist()],
                "left": [min(left), max(left)],
            }
    return out


def lloyd_max(bits):
    """Lloyd's iteration with the exact means of the normal distribution's cells."""
    density = lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0
    below = lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))
    levels = [4 * (i + 0.5) / 2**bits - 2 for i in range(2**bits)]
    for _ in range(20000):
        edges = [-math.inf] + [(a + b) / 2 for a, b in zip(levels, levels[1:])] + [math.inf]
        levels = [(density(a) - density(b)) / (below(b) - below(a)) for a, b in zip(edges, edges[1:])]
    return levels


def turboquant(d=32):
    """Rotated vectors as they are restored, without turning back: norm, codes and levels."""
    out = {}
    for bits in range(1, 6):
        levels = numpy.array(lloyd_max(bits))
        x = ramp(3, 3 * d).reshape(3, d)
        norm = numpy.sqrt((x**2).sum(1, keepdims=True))
        codes = numpy.abs((x / norm * math.sqrt(d))[:, :, None] - levels).argmin(2)
        digits = "".join(f"{int(c):02x}" for c in codes.reshape(-1))
        out[str(bits)] = {"levels": [round(v, 8) for v in levels.tolist()], "codes": digits}
    return out


if __name__ == "__main__":
    data = {"numpy": numpy.__version__, "kivi": kivi(), "gear": gear(), "turboquant": turboquant()}
    (HERE / "quantisers.json").write_text(json.dumps(data) + "\n")
