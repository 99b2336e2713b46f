"""Tasks for any model, after RULER (Hsieh et al., arXiv 2404.06654): needles, variable tracking, aggregation.

The kinds and their measures are RULER's, the texts our own. A value counts where it appears anywhere in the reply.
"""

import itertools
import string

from . import language, lexicon
from .sample import MARKUP_TOKENS, NoRoom, Sample, Turn, insert_anywhere


def _name(rng):
    return f"{rng.choice(lexicon.ADJECTIVES)}-{rng.choice(lexicon.ANIMALS + lexicon.THINGS)}"


def _number(rng):
    return str(rng.randrange(10**6, 10**7))


def _distinct(make, count):
    made = {}
    while len(made) < count:
        made[make()] = None
    return list(made)


def _fact(key, value):
    return f"One of the special numbers for {key} is {value}."


def _needles(variant, keys, per_key, asked, distractors=False):
    """A generator of needle tasks: `keys` keys of `per_key` values each, of which `asked` keys are asked for."""

    def generate(rng, room):
        names = _distinct(lambda: _name(rng), keys)
        numbers = iter(_distinct(lambda: _number(rng), keys * per_key))
        facts = [(name, next(numbers)) for name in names for _ in range(per_key)]
        rng.shuffle(facts)
        chosen = names[:asked]
        question = (
            f"What are all the special numbers for {', '.join(chosen)} in the text above? Answer with the numbers only."
        )
        values = tuple(value for name in chosen for key, value in facts if key == name)
        answer = ", ".join(values)
        lines = [_fact(key, value) for key, value in facts]
        room.need("Some special numbers are hidden in this text. Remember them.\n", question, answer, markup=MARKUP_TOKENS)
        room.need(*(line + " " for line in lines))
        if distractors:
            sentences = []
            while room.take(line := _fact(_name(rng), _number(rng)) + " "):
                if not any(name in line for name in names):
                    sentences.append(line.strip())
        else:
            sentences = language.filler(rng, room, 0)
        sentences, where = insert_anywhere(rng, sentences, lines)
        place = {value: i / len(sentences) for (_, value), i in zip(facts, where)}
        document = "Some special numbers are hidden in this text. Remember them.\n" + language.join(rng, sentences)
        turn = Turn(question, answer, values, "contains", tuple(place[value] for value in values))
        return Sample("ruler", variant, document, (turn,))

    generate.__doc__ = f"{keys} keys of {per_key} values, {asked} asked for{', among other needles' * distractors}."
    return generate


def variable_tracking(rng, room):
    """Chains of assignments in filler text: which variables have a given value?"""
    hops, chains = 4, 3
    names = iter(_distinct(lambda: "".join(rng.choices(string.ascii_uppercase, k=5)), chains * (hops + 1)))
    values = _distinct(lambda: str(rng.randrange(10**4, 10**5)), chains)
    lines, tracked = [], None
    for value in values:
        chain = [next(names) for _ in range(hops + 1)]
        tracked = tracked or chain
        lines.append([f"VAR {chain[0]} = {value}."] + [f"VAR {b} = VAR {a}." for a, b in itertools.pairwise(chain)])
    queues = [iter(chain) for chain in lines]
    order = [i for i in range(chains) for _ in range(hops + 1)]
    rng.shuffle(order)
    extra = [next(queues[i]) for i in order]
    question = f"Which {hops + 1} variables have the value {values[0]} in the text above? Answer with their names only."
    answer = ", ".join(tracked)
    room.need(question, answer, markup=MARKUP_TOKENS)
    room.need(*(line + " " for line in extra))
    sentences, where = insert_anywhere(rng, language.filler(rng, room, 0), extra)
    place = {line: i / len(sentences) for line, i in zip(extra, where)}
    turn = Turn(question, answer, tuple(tracked), "contains", tuple(place[line] for line in lines[0]))
    return Sample("ruler", "variable_tracking", language.join(rng, sentences), (turn,))


def _counted(rng, room, variant, words, weights, wanted, question):
    """A numbered list of words drawn by weight; the `wanted` most frequent ones are asked for."""
    answer = ", ".join(words[:wanted])
    room.need(question, answer, markup=MARKUP_TOKENS)
    longest = max(words, key=room.count)
    num_lines = 0
    while room.take(f"{num_lines + 1}. {longest}\n"):
        num_lines += 1
    counts = [num_lines * weight // sum(weights) for weight in weights]
    if min(counts) == 0 or counts[wanted - 1] <= counts[wanted]:
        raise NoRoom(f"{room.tokens} tokens")
    drawn = [word for word, count in zip(words, counts) for _ in range(count)]
    rng.shuffle(drawn)
    document = "".join(f"{i + 1}. {word}\n" for i, word in enumerate(drawn))
    return Sample("ruler", variant, document, (Turn(question, answer, tuple(words[:wanted]), "contains"),))


def common_words(rng, room):
    """Ten words come often, the others seldom: which ten?"""
    words = rng.sample(lexicon.THINGS + lexicon.FOODS + lexicon.PLACES, 10 + max(10, min(60, room.tokens // 60)))
    weights = [10] * 10 + [2] * (len(words) - 10)
    question = "What are the 10 most common words in the list above? Answer with the words only."
    return _counted(rng, room, "common_words", words, weights, 10, question)


def frequent_words(rng, room):
    """Made-up words with frequencies that fall off slowly: which three are the most frequent?"""
    words = _distinct(lambda: "".join(rng.choices(string.ascii_lowercase, k=6)), min(40, 8 + room.tokens // 256))
    weights = [int(1000 / (rank + 1) ** 1.2) for rank in range(len(words))]
    question = "What are the 3 most frequent words in the list above? Answer with the words only."
    return _counted(rng, room, "frequent_words", words, weights, 3, question)


VARIANTS = {
    "single": _needles("single", 1, 1, 1),
    "multi_key": _needles("multi_key", 4, 1, 1),
    "multi_key_only": _needles("multi_key_only", 1, 1, 1, distractors=True),
    "multi_value": _needles("multi_value", 1, 4, 1),
    "multi_query": _needles("multi_query", 4, 1, 4),
    "variable_tracking": variable_tracking,
    "common_words": common_words,
    "frequent_words": frequent_words,
}
