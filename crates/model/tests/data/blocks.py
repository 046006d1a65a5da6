"""Writes `blocks.safetensors`: random blocks of every block type of GGUF that is read, and what gguf-py restores from them.

    pip install gguf==0.19.0 safetensors numpy && python -P blocks.py
"""

import pathlib

import gguf
import numpy as np
from safetensors.numpy import save_file

# Where a type's block has its f16 scales, in bytes.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}
BLOCKS = 8


def main():
    random = np.random.default_rng(7)
    written = {}
    for name, scales in SCALES.items():
        kind = gguf.GGMLQuantizationType[name]
        _, size = gguf.constants.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for at in scales:
            scale = random.normal(0, 0.1, BLOCKS).astype(np.float16)
            blocks[:, at:at + 2] = scale[:, None].view(np.uint8)
        if name == "MXFP4":
            blocks[:, 0] = [0, 1, 2, 120, 127, 130, 140, 150]
        number = int(kind)
        written[f"{number}.{name}"] = blocks
        written[f"{number}.{name}.values"] = gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(-1)
    save_file(written, pathlib.Path(__file__).parent / "blocks.safetensors", metadata={"gguf": "0.19.0"})


main()
