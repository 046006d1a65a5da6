"""Writes `gemma3-270m.json`: what other programs make of gemma-3-270m-q4_k_m.gguf, whose path is the argument.

    pip install torch==2.13.0 transformers==5.24.0 accelerate gguf==0.19.0 sentencepiece==0.2.3 && python -P gemma3.py FILE

Ids are sentencepiece's, from a model of the file's tokens, scores and types. Logits and greedy text are transformers' in
f32 from the file's weights, restored by gguf-py.
"""

import json
import pathlib
import sys

import gguf
import sentencepiece
import torch
import transformers
from sentencepiece import sentencepiece_model_pb2

HERE = pathlib.Path(__file__).parent
TEXTS = ["The three primary colours are", "Hello, world! 12345\n\n  def f(x):\n\treturn x**2\n", "Größe 日本語 😀 zażółć",
         " leading and  double   spaces ", "a\n\n\nb", "naïve café — “quotes” …", "<b>bold</b>", ""]
# Longer than the window of 512.
LONG = " ".join(f"Item {i} of the list weighs {i * 7 % 31} pounds and costs {i * 13 % 97} shillings." for i in range(1, 46))
STEP = 1024


def tokenizer(reader):
    field = lambda name: reader.fields[f"tokenizer.ggml.{name}"].contents()
    model = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(field("tokens"), field("scores"), field("token_type")):
        piece = model.pieces.add()
        # llama.cpp's converter writes the spaces of user-defined tokens (type 4) as such.
        piece.piece, piece.score, piece.type = token.replace(" ", "\u2581") if kind == 4 else token, score, kind
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 3, 2, 1
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def main():
    path = pathlib.Path(sys.argv[1])
    cut = tokenizer(gguf.GGUFReader(path))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = []
    for text, tokens in [(TEXTS[0], 24), (LONG, 8)]:
        ids = [2] + cut.encode(text)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
            greedy = model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)[0, len(ids):].tolist()
        prompts.append({"text": text, "tokens": len(ids), "every_1024th_logit": logits[::STEP].tolist(), "greedy": greedy,
                        "greedy_text": cut.decode(greedy)})
        print(len(ids), logits.max().item(), cut.decode(greedy))
    made = {"transformers": transformers.__version__, "torch": torch.__version__, "sentencepiece": sentencepiece.__version__}
    texts = [{"text": text, "ids": cut.encode(text)} for text in TEXTS]
    (HERE / "gemma3-270m.json").write_text(json.dumps({"made_by": made, "texts": texts, "prompts": prompts}, indent=1) + "\n")


main()
