"""Writes byte_level.json, a small byte-level BPE vocabulary whose merges cross words, numbers and lines, and
pre_tokenizers.json: what a plain BPE in Python (`regex` for the cuts) makes of texts under every pre-tokenizer of GGUF.

    pip install tokenizers==0.23.3 regex==2026.11.19 && python pre_tokenizers.py
"""

import json
import pathlib

import regex
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent

LETTERS = r"[^\r\n\p{L}\p{N}]?"
CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cl100k(digits, words=rf"{LETTERS}\p{{L}}+", symbols=r" ?[^\s\p{L}\p{N}]+[\r\n]*"):
    return rf"{CONTRACTIONS}|{words}|{digits}|{symbols}|{REST}"


def o200k(digits, contractions=""):
    words = rf"{LETTERS}{UPPER}*{LOWER}+{contractions}|{LETTERS}{UPPER}+{LOWER}*{contractions}"
    return rf"{words}|{digits}|" + r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + REST


THREE = "[0-9][0-9][0-9]"
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|""" + REST
)
HAN = "[一-龥ࠀ-一가-\ud7ff]+"

# Names of the same cuts, the patterns one after another, and whether a whole piece goes before merges.
CUTS = [
    (["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
     [cl100k(r"\p{N}{1,3}")], True),
    (["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], [cl100k(r"\p{N}{1,3}")], False),
    (["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
     [cl100k(r"\p{N}")], False),
    (["qwen35"], [cl100k(r"\p{N}", rf"{LETTERS}[\p{{L}}\p{{M}}]+", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")], False),
    (["gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum",
      "modern-bert", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling"], [GPT2], False),
    (["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
     [r"\p{N}", GPT2], False),
    (["default"], [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", THREE], False),
    (["falcon"], [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE], False),
    (["tekken"], [o200k(r"\p{N}")], True),
    (["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], [o200k(r"\p{N}{1,3}", CONTRACTIONS + "?")], False),
    (["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
     [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK_V3], False),
    (["deepseek-coder"], [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, r"\p{N}"], False),
    (["seed-coder"], [cl100k(r"\p{N}", symbols=r" ?[^\s\p{L}\p{N}\r\n]+")], False),
    (["bailingmoe", "bailingmoe2", "llada-moe"],
     [r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
      r"|\s*[\r\n]|\s+(?!\S)|\s+"], False),
]

TEXTS = [
    "Hello world", " Hello  world ", "I'll pay 12345 € at 9:30.", "we'VE they'D he's IT'S don't", "1234567890 12 345",
    "a1b22c333d4444", "line\n\nline\r\n\r\n  line\n", "\t\ttabs and   spaces   ", "x = [1, 2, 3]; y += x**2",
    "for i in range(10):\n    print(i)\n", "CamelCaseWords and snake_case_words", "MiXeD cAsE HTTPServer",
    "100% $5.00 #tag @user <b>bold</b>", "naïve café Ångström", "Привет, мир! Как дела?", "你好世界，今天是2026年。",
    "こんにちは世界 カタカナ", "한국어 문장입니다", "e\u0301 combining", "मानक हिन्दी", "👍🏽 emoji 🇩🇪", "½ Ⅳ ² ٣٤",
    "path/to/file.txt http://a.b/c?d=e", "``quotes'' \"and\" 'more'", "a\u00a0b\u2003c", "...!!!???", "", "\n", " \n ", "word\n",
]


def train():
    lines = []
    words = "the cat and a dog pay at of in to is it we he she they have will line word code for range print".split()
    for a in words:
        for b in words:
            lines += [f"{a} {b}", f" {a}  {b}\n\n", f"{a}'s {b} 123{len(a)}45 12 1234"]
    for n in range(0, 400, 7):
        lines += [f"x = {n * 37}; y[{n}] += {n}\n    z", f"{n}{n}{n} 12345 2026", f"({n})!!! ... ??? <b>{n}</b>"]
    lines += [t for t in TEXTS for _ in range(12) if t.strip()]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def byte_characters():
    """GPT-2's printable character of every byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + at) for at, byte in enumerate(others)}


CHARACTER = byte_characters()


def cut(text, patterns):
    pieces = [text] if text else []
    for pattern in patterns:
        found = []
        for piece in pieces:
            at = 0
            for match in regex.finditer(pattern, piece):
                if match.start() > at:
                    found.append(piece[at:match.start()])
                if match.group():
                    found.append(match.group())
                at = match.end()
            if at < len(piece):
                found.append(piece[at:])
        pieces = found
    return pieces


def encode(text, patterns, whole, vocab, ranks):
    ids = []
    for piece in cut(text, patterns):
        symbols = [CHARACTER[byte] for byte in piece.encode()]
        if whole and "".join(symbols) in vocab:
            symbols = ["".join(symbols)]
        while len(symbols) > 1:
            pairs = [(ranks.get((a, b), 1 << 60), at) for at, (a, b) in enumerate(zip(symbols, symbols[1:]))]
            rank, at = min(pairs)
            if rank == 1 << 60:
                break
            symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
        ids += [vocab[symbol] for symbol in symbols]
    return ids


def main():
    vocab, merges = train()
    # Tokens that no merge makes: only a whole piece can be one.
    for token in ["CamelCaseWords", "\u0120snake"]:
        vocab.setdefault(token, len(vocab))
    merges = [(a, b) for a, b in merges if a + b not in ("CamelCaseWords", "\u0120snake")]
    merges = [pair for pair in merges if all(half in vocab for half in pair)]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    tokens = sorted(vocab, key=vocab.get)
    (HERE / "byte_level.json").write_text(
        json.dumps({"tokens": tokens, "merges": [" ".join(pair) for pair in merges]}, ensure_ascii=False) + "\n")
    cuts = [{"names": names, "ids": [encode(text, patterns, whole, vocab, ranks) for text in TEXTS]}
            for names, patterns, whole in CUTS]
    written = {"written_by": f"pre_tokenizers.py, tokenizers {tokenizers.__version__}, regex {regex.__version__}",
               "texts": TEXTS, "cuts": cuts}
    (HERE / "pre_tokenizers.json").write_text(json.dumps(written, ensure_ascii=False) + "\n")


main()
