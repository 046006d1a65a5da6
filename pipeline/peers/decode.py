"""Decodes text with llama.cpp, when `kvcsr bench` asks for it.

decode.py FOLDER: the folder has job.json with model (a GGUF file), prompt (ids of tokens), tokens (how many are decoded), context
and threads. Each line of standard input is the type of a cache, f16 or q4_0. The answer is one JSON object on a line: type, and
tokens and seconds of decoding by llama.cpp's own clock. Where llama.cpp fails it has an error instead.

A cache type gets a server of its own, in this process, when it is asked for first. The prompt is prefilled then; later turns find
it in the cache, so that they only decode. No network is needed: the server listens on this machine only.
"""

import json
import sys
from pathlib import Path

import xllamacpp as llama

TYPES = {"f16": llama.ggml_type.GGML_TYPE_F16, "q4_0": llama.ggml_type.GGML_TYPE_Q4_0}
ERRORS_ONLY = 1

job = json.loads((Path(sys.argv[1]) / "job.json").read_text())
servers = {}


def server(name):
    """A server of one text, whose cache is all that it keeps of it."""
    params = llama.CommonParams()
    params.model.path = job["model"]
    params.n_ctx = job["context"]
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cache_type_k = params.cache_type_v = TYPES[name]
    # The context is as long as it is said to be, whatever memory is free.
    params.fit_params = False
    params.n_gpu_layers = 0
    # No copies of prompts beside the cache.
    params.cache_ram_mib = 0
    params.offline = True
    params.ui = False
    params.verbosity = ERRORS_ONLY
    return llama.Server(params)


def turn(name):
    if name not in servers:
        servers[name] = server(name)
    # Of the first token, the prefill computes the logits: one more is asked for than is decoded.
    wanted = job["tokens"] + 1
    request = {
        "prompt": job["prompt"],
        "max_tokens": wanted,
        "ignore_eos": True,
        "cache_prompt": True,
        # The cheapest way to choose a token: the most likely one.
        "samplers": ["top_k"],
        "top_k": 1,
    }
    answer = servers[name].handle_completions(request)
    if "timings" not in answer:
        return {"type": name, "error": json.dumps(answer)}
    timings = answer["timings"]
    if timings["predicted_n"] != wanted:
        return {"type": name, "error": f"{timings['predicted_n']} tokens instead of {wanted}"}
    # Its clock starts when the first token is chosen, and predicted_per_second does not count that one either.
    return {"type": name, "tokens": job["tokens"], "seconds": timings["predicted_ms"] / 1e3}


for line in sys.stdin:
    print(json.dumps(turn(line.strip())), flush=True)
