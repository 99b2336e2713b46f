"""How long texts are in tokens, for any model, and samples made to fit."""

import json
import math
import os
import re
import subprocess
import tempfile

from tasks import sample

_PIECE = re.compile(r"[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_ATTEMPTS = 5
_ROUNDS = 6  # of making a sample again when its length was estimated badly
_SHORTEST = 0.9  # of the length asked for, below which a sample is made again with more room


class TokenizeError(Exception):
    """The program that tokenises failed."""


class PieceCounter:
    """Words, digits and marks: what witan-tiny makes of the generated tasks, token by token."""

    exact = True

    @staticmethod
    def estimate(text):
        return len(_PIECE.findall(text))


class WitanCounter:
    """A model's own tokens, by `witan tokenize`. Single texts are estimated by a ratio that is learned from batches."""

    exact = False

    def __init__(self, program, model):
        self._program, self._model, self._ratio = program, model, 1.0
        self.counts(["The quick fox jumps over 12 lazy dogs.\n"])  # fails early where the model has no tokenizer

    def estimate(self, text):
        return math.ceil(self._ratio * PieceCounter.estimate(text))

    def counts(self, texts):
        """The exact number of tokens of each text."""
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8", delete=False) as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        try:
            command = [self._program, "tokenize", "-m", self._model, "--jsonl", file.name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise TokenizeError(f"{self._program}: {error.strerror}") from error
        finally:
            os.unlink(file.name)
        if done.returncode != 0:
            raise TokenizeError(done.stderr.strip() or f"{self._program} failed")
        found = [len(json.loads(line)["ids"]) for line in done.stdout.splitlines()]
        pieces = sum(map(PieceCounter.estimate, texts))
        self._ratio = sum(found) / max(1, pieces)
        return found


def _text(made):
    return "".join(turn_text for given, reply in made.raw_parts() for turn_text in (given, reply))


def fit(generate, names, length, counter):
    """A sample for each of `names`, of at most `length` tokens with markup; raises NoRoom where none fits."""

    def make(name, tokens):
        for attempt in range(_ATTEMPTS):  # that one draw is too long does not mean that all are
            try:
                rng = sample.rng_of(sample.EVAL, *name, *([f"again {attempt}"] if attempt else []))
                return generate(rng, sample.Room(tokens, counter.estimate, 1))
            except sample.NoRoom:
                continue
        raise sample.NoRoom(f"{tokens} tokens")

    made = [make(name, length) for name in names]
    if counter.exact:
        return made
    sizes = [length] * len(names)
    limit = length - sample.MARKUP_TOKENS
    best = [None] * len(names)
    for _ in range(_ROUNDS):
        found = counter.counts([_text(one) for one in made])
        for i, (one, tokens) in enumerate(zip(made, found)):
            if tokens <= limit and (best[i] is None or tokens > best[i][0]):
                best[i] = (tokens, one)
            if tokens > limit or tokens < _SHORTEST * limit:
                # Making it again with room in proportion; tasks of a fixed size stay as they are.
                sizes[i] = max(32, int(sizes[i] * min(2.0, 0.98 * limit / tokens)))
        again = [i for i, tokens in enumerate(found) if tokens > limit or tokens < _SHORTEST * limit]
        if not again:
            break
        for i in again:
            made[i] = make(names[i], sizes[i])
    if None in best:
        raise sample.NoRoom(f"{length} tokens")
    return [one for _, one in best]
