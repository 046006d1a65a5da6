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

# Cased letters, as DeepSeek LLM's tokenizer.json lists them.
CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
CASCADE = r"\s*[\r\n]+|" + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"

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
    (["deepseek-llm"],
     [r"[\r\n]", rf"\s?[{CASED}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$", HAN, r"\p{N}+"],
     False),
    (["bloom", "poro-chat", "gpt3-finnish"], [BLOOM], False),
    (["viking"], [BLOOM, r"\p{N}"], False),
    (["chameleon"],
     ["<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}",
      r"[\p{P}!-/:-@\[-`{-~]", GPT2], False),
    (["youtu"],
     ["[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
      "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", o200k(r"\p{N}", CONTRACTIONS + "?")], True),
    (["superbpe"], [r"\p{N}+", r"(?=(\d{3})+(?!\d))"], False),
    (["tiny_aya", "cohere2moe"], [r"\d{1,3}(?=(?:\d{3})*\b)", o200k(r"\p{N}{1,3}", CONTRACTIONS + "?")], False),
    (["exaone-moe"],
     [rf"{CONTRACTIONS}|{LETTERS}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}" r"| ?[^\s\p{L}\p{N}]+[\r\n/]?"
      r"|\s*[\r\n]|\s+(?!\S)|\s+"], False),
    (["minicpm5"], [r"\p{N}{1,3}", cl100k(r"\p{N}+")], True),
    (["ufakzeka"], [rf"{LETTERS}\p{{L}}+|\p{{N}}" r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + REST], False),
    (["laguna"], [r"[^\n]+|[\n]+", cl100k(r"\p{N}")], False),
    (["jais-2"],
     [rf"{CONTRACTIONS}|{LETTERS}\p{{L}}+|\p{{N}}{{1,3}}" r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + CASCADE], False),
    (["spark2_5"],
     [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
      DEEPSEEK_V3.replace(r"[\p{P}\p{S}]+[\r\n]*", r"[\p{P}\p{S}]+").replace(r"\s*[\r\n]+", r"[\r\n]"), r"\p{N}"], False),
]

KIMI = rf"[{UPPER[1:-1]}--\p{{Han}}]", rf"[{LOWER[1:-1]}--\p{{Han}}]"


def threes(text):
    """Numbers in threes of digits, counted from their ends."""
    for run in regex.finditer(r"\p{N}+", text):
        at = run.start()
        while at < run.end():
            digits = (run.end() - at) % 3 or 3
            yield at, at + digits
            at += digits


CUTS += [
    # Set differences are of the version 1 of `regex`.
    (["kimi-k2"],
     [r"(?V1)\p{Han}+|" + rf"{LETTERS}{KIMI[0]}*{KIMI[1]}+{CONTRACTIONS}?|{LETTERS}{KIMI[0]}+{KIMI[1]}*{CONTRACTIONS}?|"
      r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + REST], False),
    (["afmoe"],
     [threes,
      "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff"
      "\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+", DEEPSEEK_V3], False),
]

TEXTS = [
    "Hello world", " Hello  world ", "I'll pay 12345 € at 9:30.", "we'VE they'D he's IT'S don't", "1234567890 12 345",
    "a1b22c333d4444", "line\n\nline\r\n\r\n  line\n", "\t\ttabs and   spaces   ", "x = [1, 2, 3]; y += x**2",
    "for i in range(10):\n    print(i)\n", "CamelCaseWords and snake_case_words", "MiXeD cAsE HTTPServer",
    "100% $5.00 #tag @user <b>bold</b>", "naïve café Ångström", "Привет, мир! Как дела?", "你好世界，今天是2026年。",
    "こんにちは世界 カタカナ", "한국어 문장입니다", "e\u0301 combining", "मानक हिन्दी", "👍🏽 emoji 🇩🇪", "½ Ⅳ ² ٣٤",
    "path/to/file.txt http://a.b/c?d=e", "``quotes'' \"and\" 'more'", "a\u00a0b\u2003c", "...!!!???", "", "\n", " \n ", "word\n",
]


# Texts that the vocabulary is not made from.
MORE = ["Kimi你好World's 3456789九", "ไทย ລາວ ខ្មែរ မြန်မာ ﾊﾝｶｸ 1234567 12345 123456", "漢字Kanji漢 É你é", "12345678٣٤٥٦ Ⅳ½"]


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


def spans(pattern, text):
    return pattern(text) if callable(pattern) else (match.span() for match in regex.finditer(pattern, text))


def cut(text, patterns):
    pieces = [text] if text else []
    for pattern in patterns:
        found = []
        for piece in pieces:
            at = 0
            for start, end in spans(pattern, piece):
                if start > at:
                    found.append(piece[at:start])
                if end > start:
                    found.append(piece[start:end])
                at = end
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
    cuts = [{"names": names, "ids": [encode(text, patterns, whole, vocab, ranks) for text in TEXTS + MORE]}
            for names, patterns, whole in CUTS]
    written = {"written_by": f"pre_tokenizers.py, tokenizers {tokenizers.__version__}, regex {regex.__version__}",
               "texts": TEXTS + MORE, "cuts": cuts}
    (HERE / "pre_tokenizers.json").write_text(json.dumps(written, ensure_ascii=False) + "\n")


main()
