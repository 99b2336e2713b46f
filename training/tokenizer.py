"""The tokenizer of witan-tiny: byte-level BPE (as in GPT-2) with the cutting rule of Qwen2, so that engines know it.

build() makes it from the lexicon of eval/tasks alone: every word there, with a space before it, is one token, and so are
the words that begin lines. Digits are cut apart by Qwen2's rule. The encoder here is for text that the generators make:
plain ASCII, where Python's `re` can spell that rule.
"""

import collections
import functools
import json
import re

import paths  # noqa: F401
from tasks import lexicon

END_OF_TEXT, IM_START, IM_END = SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MULTIPLE = 64  # the vocabulary is filled up to a multiple of this with tokens that nothing uses

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PIECES = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What the generators write between words.
_PUNCTUATION = (". , : ; ? ! ( ) \" = + - * / # -> | ' ' .\n ,\n :\n ;\n ?\n !\n \n \n\n .\n\n :\n\n ?\n\n _").split(" ")
_SPACED = ("=", "+", "-", "*", "/", "->", "|", "(", "\"", "#")


def _byte_alphabet():
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_TO_CHARACTER = _byte_alphabet()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def _spell(text):
    return "".join(BYTE_TO_CHARACTER[byte] for byte in text.encode())


def single_tokens():
    """The texts that build() makes one token of: no digit, no special token."""
    words = [f" {word}" for word in lexicon.all_words()]
    opening = [*lexicon.OPENING]
    punctuation = [p for p in dict.fromkeys(_PUNCTUATION) if p] + [f" {p}" for p in _SPACED]
    return tuple(dict.fromkeys(words + opening + punctuation))


def _merge(symbols, pair):
    merged, i = [], 0
    while i < len(symbols):
        if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == pair:
            merged.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged


def _learn_merges(texts):
    """Byte-pair merges, commonest pair first (ties: first in the alphabet), until each of `texts` is one symbol."""
    words = [list(_spell(text)) for text in texts]
    merges = []
    while True:
        counts = collections.Counter()
        for symbols in words:
            counts.update(zip(symbols, symbols[1:]))
        if not counts:
            return merges
        pair = min(counts, key=lambda p: (-counts[p], p))
        merges.append(pair)
        words = [_merge(symbols, pair) if pair[0] in symbols else symbols for symbols in words]


class Tokenizer:
    """Encodes ASCII text without special tokens; decodes any ids."""

    def __init__(self, tokens, merges):
        self.tokens = tuple(tokens)  # the spelled token of every id
        self.merges = tuple(merges)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.end_of_text, self.im_start, self.im_end = (self._ids[token] for token in SPECIALS)
        self._piece_ids = functools.lru_cache(maxsize=1 << 16)(self._encode_piece)

    def __len__(self):
        return len(self.tokens)

    def _encode_piece(self, piece):
        symbols = list(_spell(piece))
        while len(symbols) > 1:
            pair = min(zip(symbols, symbols[1:]), key=lambda p: self._ranks.get(p, len(self._ranks)))
            if pair not in self._ranks:
                break
            symbols = _merge(symbols, pair)
        return tuple(self._ids[symbol] for symbol in symbols)

    def encode(self, text):
        if not text.isascii():
            raise ValueError(f"this encoder is for ASCII text: {text[:60]!r}")
        ids = []
        for piece in _PIECES.findall(text):
            ids += self._piece_ids(piece)
        return ids

    def count(self, text):
        return len(self.encode(text))

    def decode(self, ids):
        parts = []
        for i in ids:
            token = self.tokens[i]
            special = token in SPECIALS
            parts.append(token.encode() if special else bytes(CHARACTER_TO_BYTE[character] for character in token))
        return b"".join(parts).decode("utf-8", "replace")

    def to_json(self):
        """The text of a tokenizer.json."""
        count = len(self.tokens)
        added = [
            {"id": i, "content": self.tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i in range(count - len(SPECIALS), count)
        ]  # fmt: skip
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
        return json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": added,
                "normalizer": {"type": "NFC"},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
                "post_processor": byte_level,
                "decoder": byte_level,
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "continuing_subword_prefix": "",
                    "end_of_word_suffix": "",
                    "fuse_unk": False,
                    "byte_fallback": False,
                    "ignore_merges": False,
                    "vocab": {token: i for i, token in enumerate(self.tokens[: count - len(SPECIALS)])},
                    "merges": [f"{left} {right}" for left, right in self.merges],
                },
            },
            ensure_ascii=False,
            indent=1,
        )


@functools.cache
def build():
    """The tokenizer; the same at every call."""
    merges = _learn_merges(single_tokens())
    tokens = [BYTE_TO_CHARACTER[byte] for byte in range(256)]
    tokens += [left + right for left, right in merges]
    assert len(set(tokens)) == len(tokens)
    filler = -(len(tokens) + len(SPECIALS)) % MULTIPLE
    # Filler is spelled like what no text of ours holds, so that it decodes to something and nothing encodes to it.
    tokens += [_spell(f"<|unused_{i}|>") for i in range(filler)]
    return Tokenizer([*tokens, *SPECIALS], merges)
