"""A task's text cut into documents, which other tasks have in other orders: what KV entries can be reused of."""

import dataclasses
import itertools
import re

from .sample import NoRoom, Sample

# Variants whose answers are right in whatever order the lines and sentences of their text come.
_ANY_ORDER = {
    "retrieval": ("one_key", "two_keys", "many_keys", "needle"),
    "following": ("hops",),
    "arithmetic": ("spread",),
    "ruler": ("single", "multi_key", "multi_key_only", "multi_value", "multi_query"),
}
_NO_TEXT, _ASSIGNS = "has no text before its question", "has assignments, in the order in which a program would run them"
_NUMBERED, _NOT_ASKED = "has a list with numbers", "asks for nothing that its text says"
_WHY_NOT = {
    ("retrieval", "many_values"): "asks for values in the order of the text",
    ("following", "variables"): _ASSIGNS,
    ("arithmetic", "running"): _NO_TEXT,
    ("arithmetic", "columns"): _NO_TEXT,
    ("long_answer", "k20"): "has an instruction at its start",
    ("long_answer", "any_k"): "has an instruction at its start",
    ("lists", "rewrite"): _NO_TEXT,
    ("lists", "choose"): _NO_TEXT,
    ("lists", "few_shot"): "has examples of two lines, which would be cut apart",
    ("knowledge", "capitals"): _NOT_ASKED,
    ("knowledge", "elements"): _NOT_ASKED,
    ("ruler", "variable_tracking"): _ASSIGNS,
    ("ruler", "common_words"): _NUMBERED,
    ("ruler", "frequent_words"): _NUMBERED,
}

_LINES = 8  # per document, so that those of whole lines are about equally long
_SENTENCE = re.compile(r"[^\n]*?(?:[.!?] +|\n+)|[^\n]+")


def why_not(task, variant):
    """Why a variant's text cannot be cut and put in another order; None where it can."""
    if variant in _ANY_ORDER.get(task, ()):
        return None
    return _WHY_NOT.get((task, variant), "is not known to have the same answers in any order of its text")


@dataclasses.dataclass(frozen=True)
class _Document:
    text: str  # ends with a newline
    begin: int  # its first sentence, of those of the whole text
    end: int


def _cut(text, count):
    """The text as `count` documents that end where lines do, or sentences where lines are too few for equal lengths."""
    sentences = _SENTENCE.findall(text)
    ends = list(itertools.accumulate(map(len, sentences)))
    places = [i for i in range(1, len(sentences)) if sentences[i - 1].endswith("\n")]  # sentences before a cut
    if len(places) < _LINES * count:
        places = list(range(1, len(sentences)))
    if len(places) < count - 1:
        raise NoRoom(f"{len(sentences)} sentences")
    cuts = [0]
    for i in range(1, count):
        left = [place for place in places if place > cuts[-1]]
        left = left[: len(left) - (count - 1 - i)]  # each of the others needs one
        cuts.append(min(left, key=lambda place: abs(ends[place - 1] - i * len(text) / count)))
    cuts.append(len(sentences))
    return [_Document("".join(sentences[a:b]).rstrip() + "\n", a, b) for a, b in itertools.pairwise(cuts)]


def _orders(rng, count, number):
    """Different orders of `count` documents: the first as they are, and the next each with another one at its beginning, as
    long as there are, so that no two prompts begin alike."""
    found = [tuple(range(count))]
    while len(found) < number:
        first = len(found) % count
        rest = [i for i in range(count) if i != first]
        rng.shuffle(rest)
        if (first, *rest) not in found:
            found.append((first, *rest))
    return found


def in_orders(rng, made: Sample, count, number):
    """[(documents, evidence)] of the sample's text cut in `count`, in `number` different orders, of which there must be so
    many; evidence as Turn has it. Raises NoRoom where the text is too short."""
    documents = _cut(made.document, count)
    num_sentences = documents[-1].end
    where = [min(round(place * num_sentences), num_sentences - 1) for place in made.turns[0].evidence]
    lines = []
    for order in _orders(rng, count, number):
        new_place, at = {}, 0
        for i in order:
            for sentence in range(documents[i].begin, documents[i].end):
                new_place[sentence] = at / num_sentences
                at += 1
        lines.append(([documents[i].text for i in order], tuple(new_place[sentence] for sentence in where)))
    return lines
