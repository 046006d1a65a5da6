"""Writes the small SentencePiece models in this folder, and what sentencepiece 0.2.3 makes of some texts.

    pip install sentencepiece==0.2.3 && python sentencepiece.py
"""

import io
import json
import pathlib
import random

import sentencepiece

HERE = pathlib.Path(__file__).parent
TEXT = """The cache of a language model holds keys and values of every token it has read. Its size grows with the text.
A dictionary holds atoms; each vector is coded as a sum of few atoms, with one coefficient each. The first atom is the
one nearest to the vector, the second the one nearest to what is left, and so on until as many as wanted are found.
Das Gedächtnis wächst mit der Länge des Textes; größere Wörterbücher geben kleinere Fehler. Être ou ne pas être.
def encode(vector, atoms):\n    residual = vector.copy()\n    for step in range(16):\n        best = max(atoms, key=dot)
0 1 2 3 10 20 2048 4096 1.5 3.14159 2024-01-31 aaa aaaa aaaaa bababa ababab     spaces   and\ttabs
"""
LETTERS = list("abcde  \n\t.ÄößÉ中文🙂0123thein▁") + ["the ", "atom", "aa", "ab", "ing", "<", "0x0A>"]

COMMON = dict(vocab_size=420, character_coverage=0.98, normalization_rule_name="identity", bos_id=1, eos_id=2, unk_id=0,
              remove_extra_whitespaces=False, byte_fallback=True, split_digits=True, num_threads=1, minloglevel=2)
MODELS = {
    "llama-bpe": dict(COMMON, model_type="bpe", allow_whitespace_only_pieces=True),
    "baichuan-bpe": dict(COMMON, model_type="bpe", add_dummy_prefix=False),
    "unigram": dict(COMMON, model_type="unigram", byte_fallback=False, vocab_size=110),
}

expected = {}
for name, options in MODELS.items():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.split("\n")), model_writer=model, **options)
    (HERE / f"{name}.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    generator = random.Random(7)
    texts = ["", " ", "  two  spaces ", "The atoms of a vector.", "größere Wörterbücher", "aaaaaaa", "new\nline\n\n", "🙂中文"]
    texts += ["".join(generator.choices(LETTERS, k=generator.randint(1, 24))) for _ in range(200)]
    expected[name] = [{"text": text, "ids": (ids := processor.encode(text)), "decoded": processor.decode(ids)}
                      for text in texts]
(HERE / "sentencepiece.json").write_text(json.dumps(expected, ensure_ascii=False))
