#!/usr/bin/env python3
"""Makes unigram.json beside it: small unigram vocabularies and what SentencePiece makes of texts with them.

Needs Debian's python3-sentencepiece and python3-protobuf. The corpus is invented words of syllables and the texts below.
"""

import base64
import json
import pathlib
import random
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2

# The normalization rules: hexadecimal code points, tab, what replaces them.
RULES = ["FB01\t66 69", "FF21\t41", "FF22\t42", "2460\t31", "65 301\tE9", "65 301 323\t45", "9\t20", "A0\t20",
         "3000\t20", "AD\t", "2026\t2E 2E 2E"]
TEXTS = [
    "", " ", "the cat", " the  cat ", "The lighthouse keeper's lamp", "a\u0301e\u0301 cafe\u0301 e\u0301\u0323x",
    "\uff21\uff22\u2460 \ufb01sh \ufb01", "tab\there\u00a0and\u3000there", "so\u00adft\u2026", "aaaaaaaaaaaaaaaa",
    "unseen: \u4e2d\u6587 \U0001f999\U0001f999 x\u4e2dy", "line\nbreak", "\u2581already\u2581marked", "1234567890 3.14",
    "keeperkeeper thethethe", "na\u00efve \u00fcber", "q", "\u2026", "the\u4e2dthe", "zzzz the xqj",
]


def corpus():
    random.seed(7)
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    words = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(300)]
    words += "the cat keeper lighthouse lamp light fish is here and there cafe naive uber a x y".split() * 8
    for _ in range(4000):
        yield " ".join(random.choices(words, k=8))


def model(byte_fallback, folder):
    rules = folder / "rules.tsv"
    rules.write_text("\n".join(RULES) + "\n", encoding="utf-8")
    prefix = folder / f"model{byte_fallback}"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(), model_prefix=str(prefix), model_type="unigram",
        vocab_size=556 if byte_fallback else 300, byte_fallback=byte_fallback, normalization_rule_tsv=str(rules),
        character_coverage=1.0, minloglevel=2, num_threads=1)
    proto = model_pb2.ModelProto()
    proto.ParseFromString((folder / f"model{byte_fallback}.model").read_bytes())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(prefix) + ".model")
    return {
        "pieces": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "types": [piece.type for piece in proto.pieces],
        "charsmap": base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode(),
        "cases": [{"text": text, "ids": processor.encode(text)} for text in TEXTS],
    }


def main():
    with tempfile.TemporaryDirectory() as folder:
        models = {name: model(fallback, pathlib.Path(folder))
                  for name, fallback in [("unknown", False), ("byte_fallback", True)]}
    path = pathlib.Path(__file__).with_name("unigram.json")
    path.write_text(json.dumps(models, ensure_ascii=True, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
