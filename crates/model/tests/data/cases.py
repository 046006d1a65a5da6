"""Writes `cases/expected.safetensors`: what other programs make of the files in `cases/`, which are made by hand.

    pip install torch==2.13.0 transformers==5.24.0 gguf==0.19.0 safetensors numpy && python -P cases.py

Logits of `ids` are transformers' in f32. Weights of quantised tensors are gguf-py's. `iq4_xs` are the bytes of random
blocks and `iq4_xs.values` what gguf-py restores from them.
"""

import pathlib

import gguf
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent / "cases"
IDS = [5, 77, 259, 100, 33, 8, 8, 200, 14, 99]


def logits(folder):
    config = transformers.AutoConfig.from_pretrained(HERE / folder, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    weights = {}
    for shard in (HERE / folder).glob("*.safetensors"):
        weights |= load_file(shard)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0].numpy()


def quantised(name, expected):
    reader = gguf.GGUFReader(HERE / "quantised-gguf" / f"{name}.gguf")
    for tensor in reader.tensors:
        if tensor.tensor_type.name.lower() == name:
            restored = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            expected[f"{name}.{tensor.name}"] = np.ascontiguousarray(restored)
    print(name, [key for key in expected if key.startswith(name)])


def main():
    expected = {"ids": np.array(IDS, dtype=np.int32)}
    expected["rope-scaling-beside-parameters"] = logits("rope-scaling-beside-parameters")
    expected["mixed-dtypes"] = logits("mixed-dtypes")
    quantised("iq4_nl", expected)
    quantised("mxfp4", expected)
    blocks = np.random.default_rng(4).integers(0, 256, (4, 136), dtype=np.uint8)
    blocks[:, :2] = np.array([0.5, -0.01, 3.0, 1e-3], dtype=np.float16)[:, None].view(np.uint8)
    expected["iq4_xs"] = blocks
    expected["iq4_xs.values"] = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.IQ4_XS)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "gguf": "0.19.0"}
    save_file(expected, HERE / "expected.safetensors", metadata=versions)


main()
