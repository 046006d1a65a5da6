"""Writes `rope/`: one small Llama checkpoint, and the logits transformers computes from it in f32 under every way of
writing down rotary positions that is supported.

    pip install torch==2.13.0 transformers==5.24.0 safetensors numpy && python -P rope.py

`configs.json` holds the configurations by name, `expected.safetensors` the logits by the same names.
"""

import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "rope"
TOKENS, VOCAB = 48, 64
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 24}
CASES = {
    "default": {"rope_theta": 500.0},
    "linear": {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear beside parameters": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
                                 "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "yarn": {"rope_theta": 500.0, "rope_scaling": YARN},
    "yarn by its old name": {"rope_theta": 500.0, "rope_scaling": {"type": "yarn", "factor": 4.0,
                                                                   "original_max_position_embeddings": 16}},
    "yarn in parameters": {"rope_parameters": YARN | {"rope_theta": 500.0}},
    "yarn beside parameters": {"rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0},
                               "rope_theta": 500.0, "rope_scaling": YARN},
    "yarn with its own theta": {"rope_theta": 7.0, "rope_scaling": YARN | {"rope_theta": 500.0}},
    "yarn with betas": {"rope_theta": 500.0, "rope_scaling": YARN | {"beta_fast": 4.0, "beta_slow": 0.5}},
    "yarn not truncated": {"rope_theta": 500.0, "rope_scaling": YARN | {"truncate": False, "beta_fast": 3.0}},
    "yarn with mscales": {"rope_theta": 500.0, "rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
    "yarn with one mscale": {"rope_theta": 500.0, "rope_scaling": YARN | {"mscale": 0.7}},
    "yarn with an attention factor": {"rope_theta": 500.0, "rope_scaling": YARN | {"attention_factor": 1.5}},
    "yarn without the original length": {"rope_theta": 500.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    "yarn with a factor of null": {"rope_theta": 500.0, "rope_scaling": YARN | {"factor": None}},
    "yarn with the original length outside": {"rope_theta": 500.0, "original_max_position_embeddings": 8,
                                              "rope_scaling": YARN},
    "llama3": {"rope_theta": 500.0, "rope_scaling": LLAMA3},
    "llama3 in parameters": {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
}
COMMON = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": 32,
          "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
          "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": False,
          "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def main():
    transformers.logging.set_verbosity_error()
    HERE.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(VOCAB, (1, TOKENS), generator=generator)
    weights, expected = None, {"ids": ids[0].int()}
    for name, case in CASES.items():
        config = transformers.LlamaConfig.from_dict(json.loads(json.dumps(COMMON | case)))
        config._attn_implementation = "eager"
        model = transformers.LlamaForCausalLM(config).float().eval()
        if weights is None:
            weights = {
                key: ((0.3 if value.dim() > 1 else 0.2) * torch.randn(value.shape, generator=generator)
                      + (1 if "norm" in key else 0)).bfloat16()
                for key, value in model.state_dict().items()
            }
        model.load_state_dict({key: value.float() for key, value in weights.items()})
        with torch.no_grad():
            expected[name] = model(ids).logits[0].contiguous()
        print(name, model.model.rotary_emb.attention_scaling, model.model.rotary_emb.inv_freq.tolist())
    (HERE / "configs.json").write_text(json.dumps({name: COMMON | case for name, case in CASES.items()}, indent=1) + "\n")
    save_file(weights, HERE / "model.safetensors", metadata={"format": "pt"})
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    save_file(expected, HERE / "expected.safetensors", metadata=versions)


main()
