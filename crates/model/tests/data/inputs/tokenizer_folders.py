"""Writes tokenizer_folders.json: tokenizer files as folders have them, and the ids transformers gives for texts.

    pip install transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf && python tokenizer_folders.py

Needs byte_level.json (pre_tokenizers.py) and ../llama-bpe.model (../sentencepiece.py).
"""

import json
import pathlib
import shutil
import tempfile

import tokenizers
import transformers
from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
VOCABULARY = json.loads((HERE / "byte_level.json").read_text())
SIZE = len(VOCABULARY["tokens"])
PIECES = 420
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
TEXTS = ["hello world", " hello  world ", "", "<s>the cat</s>the cat", "<|im_start|>user hello<|im_end|>\nhi",
         "a <t> b", "a<t>b", "the <T> cat", "x <t><t>  y\n", "<|im_start|> user", "hello hello hello world and more of it",
         "café 12345 \u4f60\u597d"]


def token(text, **flags):
    return {"content": text, **FLAGS, **flags}


def byte_level(**settings):
    """Top-level entries of a tokenizer.json over byte_level.json; its vocabulary is put in by the reader."""
    added = [{"id": SIZE + at, **token(text)} for at, text in enumerate(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
        **settings}


def template(bos=True, eos=False):
    single = [{"Sequence": {"id": "A", "type_id": 0}}]
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * bos + single
    single += [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * eos
    special = {"<s>": SIZE, "</s>": SIZE + 1}
    special = {text: {"id": text, "ids": [id], "tokens": [text]} for text, id in special.items()}
    pair = single + [{"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
         "add_bos_token": True}
TRUNCATES = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADS = {"strategy": {"Fixed": 32}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!"}
NEXT = SIZE + 4


def decoder(*tokens, start=NEXT):
    return {"added_tokens_decoder": {str(start + at): value for at, value in enumerate(tokens)}}


# Name, tokenizer.json (None: llama-bpe.model), other files.
FOLDERS = [
    ("plain", byte_level(), {"tokenizer_config.json": FAST}),
    ("no configuration", byte_level(), {}),
    ("truncates", byte_level(truncation=TRUNCATES), {"tokenizer_config.json": FAST}),
    ("pads", byte_level(padding=PADS), {"tokenizer_config.json": FAST}),
    ("truncates and pads, with a BOS", byte_level(truncation=TRUNCATES, padding=PADS, post_processor=template()),
     {"tokenizer_config.json": FAST}),
    ("post-processor: BOS", byte_level(post_processor=template()), {"tokenizer_config.json": FAST}),
    ("post-processor: BOS and EOS", byte_level(post_processor=template(eos=True)), {"tokenizer_config.json": FAST}),
    ("add_bos_token true", byte_level(), {"tokenizer_config.json": {**FAST, "add_bos_token": True}}),
    ("add_bos_token false over a post-processor", byte_level(post_processor=template()),
     {"tokenizer_config.json": {**FAST, "add_bos_token": False}}),
    ("add_eos_token true over a post-processor", byte_level(post_processor=template()),
     {"tokenizer_config.json": {**FAST, "add_eos_token": True}}),
    ("add_bos_token and add_eos_token", byte_level(),
     {"tokenizer_config.json": {**FAST, "add_bos_token": True, "add_eos_token": True}}),
    ("add_bos_token true without a BOS", byte_level(), {"tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}}),
    ("added_tokens.json", byte_level(), {"tokenizer_config.json": FAST, "added_tokens.json": {"<t>": NEXT}}),
    ("added_tokens.json, special by special_tokens_map.json", byte_level(), {
        "tokenizer_config.json": FAST, "added_tokens.json": {"<t>": NEXT},
        "special_tokens_map.json": {"additional_special_tokens": ["<t>"], "bos_token": "<s>", "eos_token": "</s>"}}),
    ("lstrip", byte_level(), {"tokenizer_config.json": {**FAST, **decoder(token("<t>", lstrip=True))}}),
    ("rstrip", byte_level(), {"tokenizer_config.json": {**FAST, **decoder(token("<t>", rstrip=True))}}),
    ("lstrip and rstrip", byte_level(),
     {"tokenizer_config.json": {**FAST, **decoder(token("<t>", lstrip=True, rstrip=True, special=False))}}),
    ("single_word", byte_level(), {"tokenizer_config.json": {**FAST, **decoder(token("<t>", single_word=True))}}),
    ("normalized under a lowercasing normaliser", byte_level(normalizer={"type": "Lowercase"}),
     {"tokenizer_config.json": {**FAST, **decoder(token("<t>", normalized=True, special=False))}}),
    ("not normalized under a lowercasing normaliser", byte_level(normalizer={"type": "Lowercase"}),
     {"tokenizer_config.json": {**FAST, **decoder(token("<t>", special=False))}}),
    ("a pad token that only the configuration names", byte_level(),
     {"tokenizer_config.json": {**FAST, "pad_token": "<t>"}}),
    ("additional_special_tokens", byte_level(),
     {"tokenizer_config.json": {**FAST, "additional_special_tokens": ["<t>", "<T>"]}}),
    ("special_tokens_map.json with flags", byte_level(), {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map.json": {"bos_token": token("<s>"), "mask_token": token("<t>", lstrip=True)}}),
    ("tokenizer.model, legacy true", None, {"tokenizer_config.json": {**LLAMA, "legacy": True}}),
    ("tokenizer.model, legacy false", None, {"tokenizer_config.json": {**LLAMA, "legacy": False}}),
    ("tokenizer.model, legacy absent", None, {"tokenizer_config.json": LLAMA}),
    ("tokenizer.model, LlamaTokenizerFast", None,
     {"tokenizer_config.json": {**LLAMA, "tokenizer_class": "LlamaTokenizerFast", "legacy": False}}),
    ("tokenizer.model, add_prefix_space false", None,
     {"tokenizer_config.json": {**LLAMA, "legacy": False, "add_prefix_space": False}}),
    ("tokenizer.model, add_bos_token false", None,
     {"tokenizer_config.json": {**LLAMA, "legacy": False, "add_bos_token": False}}),
    ("tokenizer.model alone", None, {}),
    ("tokenizer.model, LlamaTokenizer without add_bos_token", None, {"tokenizer_config.json": {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": False}}),
    ("tokenizer.model, add_eos_token true", None,
     {"tokenizer_config.json": {**LLAMA, "legacy": False, "add_eos_token": True}}),
    ("tokenizer.model, added_tokens.json", None, {
        "tokenizer_config.json": {**LLAMA, "legacy": True},
        "added_tokens.json": {"<|im_start|>": PIECES, "<|im_end|>": PIECES + 1, "<t>": PIECES + 2}}),
    ("tokenizer.model, added_tokens_decoder", None, {"tokenizer_config.json": {
        **LLAMA, "legacy": False,
        **decoder(token("<|im_start|>"), token("<|im_end|>"), token("<t>", rstrip=True), start=PIECES)}}),
    ("tokenizer.model of another class", None, {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "add_bos_token": True},
        "added_tokens.json": {"<t>": PIECES}}),
]
CONFIG = {"model_type": "llama", "vocab_size": 2000, "hidden_size": 8, "num_attention_heads": 2}


def main():
    folders = []
    for name, tokenizer, files in FOLDERS:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for file, content in {"config.json": CONFIG, **files}.items():
                (folder / file).write_text(json.dumps(content))
            if tokenizer is None:
                shutil.copy(HERE.parent / "llama-bpe.model", folder / "tokenizer.model")
            else:
                vocab = {text: id for id, text in enumerate(VOCABULARY["tokens"])}
                model = {**tokenizer["model"], "vocab": vocab, "merges": VOCABULARY["merges"]}
                (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "model": model}))
            read = AutoTokenizer.from_pretrained(folder)
            ids = [read(text).input_ids for text in TEXTS]
            plain = [read(text, add_special_tokens=False).input_ids for text in TEXTS]
            folders.append({"name": name, "tokenizer.json": tokenizer, "files": files, "ids": ids, "plain": plain})
    versions = f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}"
    written = {"written_by": f"tokenizer_folders.py, {versions}", "texts": TEXTS, "folders": folders}
    (HERE / "tokenizer_folders.json").write_text(json.dumps(written, ensure_ascii=False) + "\n")


main()
