"""Writes the small checkpoints in this folder, and the logits PyTorch computes from them in f32.

    pip install torch==2.13.0 transformers==5.24.0 safetensors numpy && python -P tiny.py [NAME..]

Only those named are written, or all. `-P` keeps `sentencepiece.py` here from being taken for the package. The versions that made the logits are in the metadata of each `expected.safetensors`.
Weights are drawn from a seed and stored in bf16, norm weights among them, so that nothing is hidden by ones and zeros.
All are transformers' own models with eager attention, but transformers has no Baichuan: `tiny-baichuan2-13b` is computed below from plain tensor operations, its ALiBi by transformers' BLOOM.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import normalize, silu
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

HERE = pathlib.Path(__file__).parent
TOKENS, VOCAB = 48, 64
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}


def draw(shapes, seed):
    """Weights by name, exactly representable in bf16: matrices around 0, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: ((0.3 if len(shape) > 1 else 0.2) * torch.randn(shape, generator=generator) + (1 if "norm" in name else 0)).bfloat16()
        for name, shape in shapes.items()
    }


def save(name, config, weights, ids, logits):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({"ids": ids.int(), "logits": logits.float().contiguous()}, folder / "expected.safetensors", metadata=VERSIONS)
    print(name, sum(w.numel() for w in weights.values()), "weights; logits within", logits.abs().max().item())


def from_transformers(name, config, seed):
    config._attn_implementation = "eager"
    # Made in f32 from the start: Gemma rounds its embedding scale to the dtype it is made in.
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    weights = draw({key: value.shape for key, value in model.state_dict().items()}, seed)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    ids = torch.randint(VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = model(ids).logits[0]
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    save(name, json.loads(config.to_json_string()), weights, ids[0], logits)


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def baichuan2_13b(seed):
    heads, width, inner, eps = 40, 2, 24, 1e-6
    hidden = heads * width
    layer = "model.layers.0."
    stored = draw({
        "model.embed_tokens.weight": (VOCAB, hidden),
        layer + "input_layernorm.weight": (hidden,),
        layer + "self_attn.W_pack.weight": (3 * hidden, hidden),
        layer + "self_attn.o_proj.weight": (hidden, hidden),
        layer + "post_attention_layernorm.weight": (hidden,),
        layer + "mlp.gate_proj.weight": (inner, hidden),
        layer + "mlp.up_proj.weight": (inner, hidden),
        layer + "mlp.down_proj.weight": (hidden, inner),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCAB, hidden),
    }, seed)
    w = {key: value.float() for key, value in stored.items()}
    ids = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(seed))
    x = w["model.embed_tokens.weight"][ids]
    normed = rms_norm(x, w[layer + "input_layernorm.weight"], eps)
    q, k, v = (normed @ w[layer + "self_attn.W_pack.weight"].T).view(TOKENS, 3, heads, width).permute(1, 2, 0, 3)
    scores = q @ k.transpose(1, 2) / width**0.5
    scores += build_alibi_tensor(torch.ones(1, TOKENS), heads, torch.float32).view(heads, 1, TOKENS)
    scores += torch.full((TOKENS, TOKENS), float("-inf")).triu(1)
    attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(TOKENS, hidden)
    x = x + attended @ w[layer + "self_attn.o_proj.weight"].T
    normed = rms_norm(x, w[layer + "post_attention_layernorm.weight"], eps)
    inside = silu(normed @ w[layer + "mlp.gate_proj.weight"].T) * (normed @ w[layer + "mlp.up_proj.weight"].T)
    x = x + inside @ w[layer + "mlp.down_proj.weight"].T
    logits = rms_norm(x, w["model.norm.weight"], eps) @ normalize(w["lm_head.weight"]).T
    config = dict(architectures=["BaichuanForCausalLM"], model_type="baichuan", hidden_act="silu", hidden_size=hidden,
                  intermediate_size=inner, num_attention_heads=heads, num_hidden_layers=1, rms_norm_eps=eps,
                  model_max_length=128, vocab_size=VOCAB, z_loss_weight=0, tie_word_embeddings=False,
                  torch_dtype="bfloat16")
    save("tiny-baichuan2-13b", config, stored, ids, logits)


common = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, head_dim=16, max_position_embeddings=128, dtype="bfloat16",
              bos_token_id=None, eos_token_id=None, pad_token_id=None)
plain = {key: value for key, value in common.items() if key != "head_dim"}
MADE = {
    "tiny-mistral": lambda name: from_transformers(
        name, transformers.MistralConfig(**common, sliding_window=7, tie_word_embeddings=False), 11),
    "tiny-qwen3": lambda name: from_transformers(
        name, transformers.Qwen3Config(**common, rope_theta=1e6, tie_word_embeddings=True), 12),
    "tiny-baichuan2-13b": lambda name: baichuan2_13b(13),
    # Layer 1 of three sees everything; the full layers are scaled, and the score scale is not that of the head.
    "tiny-gemma3": lambda name: from_transformers(
        name,
        transformers.Gemma3TextConfig(
            **(common | dict(num_hidden_layers=3, num_key_value_heads=1)), sliding_window=7, query_pre_attn_scalar=24, hidden_activation="gelu_pytorch_tanh",
            layer_types=["sliding_attention", "full_attention", "sliding_attention"], tie_word_embeddings=True,
            rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}),
        14),
    "tiny-olmo2": lambda name: from_transformers(
        name, transformers.Olmo2Config(**plain, rope_theta=5e5, tie_word_embeddings=False), 15),
    "tiny-olmo3": lambda name: from_transformers(
        name,
        transformers.Olmo3Config(
            **plain, sliding_window=7, layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=False,
            rope_parameters={"full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e2,
                                                "original_max_position_embeddings": 32},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 5e2}}),
        16),
    "tiny-phi3": lambda name: from_transformers(
        name, transformers.Phi3Config(**plain, sliding_window=9, rope_theta=1e4, tie_word_embeddings=False), 17),
}

for name in sys.argv[1:] or MADE:
    MADE[name](name)
