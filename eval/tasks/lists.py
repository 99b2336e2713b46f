"""Lists copied and summarised by a rule, and made-up rules to be seen from examples."""

from . import lexicon
from .sample import MARKUP_TOKENS, NoRoom, Room, Sample, Turn, fill_turns

_ITEMS = tuple(word for group in lexicon.GROUPS.values() for word in group)

# What is asked for -> the items of the reply.
_RULES = {
    "Copy the list.": lambda items: items,
    "Reverse the list.": lambda items: items[::-1],
    "Write the first half of the list.": lambda items: items[: len(items) // 2],
    "Write every second item of the list.": lambda items: items[1::2],
    "Write the list without its first item.": lambda items: items[1:],
    "Write the list without its last item.": lambda items: items[:-1],
    "Write the last item of the list, then the first.": lambda items: [items[-1], items[0]],
}


def _length(rng, room, share):
    """How many items make a list of which the room holds `share` (1 / share copies)."""
    most = int((room.left - 2 * MARKUP_TOKENS) * share / 2.2)
    if most < 3:
        raise NoRoom(f"{room.tokens} tokens")
    return rng.randint(3, min(most, 40)) if room.turns > 1 else min(most, 40)


def rewrite(rng, room):
    """Copying, reversing, cutting."""

    def turn():
        items = rng.sample(_ITEMS, _length(rng, room, 0.4))
        rule = rng.choice(sorted(_RULES))
        result = _RULES[rule](items)
        return Turn(f"{rule} List: {', '.join(items)}.", f"List: {', '.join(result)}.", tuple(result), "items")

    return Sample("lists", "rewrite", "", fill_turns(room, iter(turn, None)))


def choose(rng, room):
    """The items of one group, counted: `List: cow 1, hen 2. Total: 2.`"""

    def turn():
        group, other = rng.sample(sorted(lexicon.GROUPS), 2)
        size = min(_length(rng, room, 0.3), 30)
        wanted = rng.sample(lexicon.GROUPS[group], min(rng.randint(1, max(1, size * 2 // 3)), len(lexicon.GROUPS[group]), 20))
        items = wanted + rng.sample(lexicon.GROUPS[other], max(1, min(size - len(wanted), len(lexicon.GROUPS[other]))))
        rng.shuffle(items)
        counted = ", ".join(f"{item} {i + 1}" for i, item in enumerate(item for item in items if item in set(wanted)))
        question = f"Count the {group} in this list: {', '.join(items)}."
        return Turn(question, f"List: {counted}. Total: {len(wanted)}.", (str(len(wanted)),), "last")

    return Sample("lists", "choose", "", fill_turns(room, iter(turn, None)))


def _swap(rng):
    return lambda words: words[::-1]


def _first_twice(rng):
    return lambda words: [words[0], *words]


def _drop_first(rng):
    return lambda words: words[1:]


def _add_word(rng):
    added = rng.choice(_ITEMS)
    return lambda words: [*words, added]


def _rename(rng):
    """Each color stands for a town, as the examples say."""
    table = dict(zip(lexicon.COLORS, rng.sample(lexicon.TOWNS, len(lexicon.COLORS))))
    return lambda words: [table.get(word, word) for word in words]


_MADE_UP = (_swap, _first_twice, _drop_first, _add_word, _rename)


def few_shot(rng, room):
    """Examples of a made-up rule, then a case of it."""
    rule = rng.choice(_MADE_UP)(rng)
    others = lexicon.ANIMALS + lexicon.THINGS
    colors = rng.sample(lexicon.COLORS, rng.randint(2, 6))

    def case(color):
        words = [color, *rng.sample(others, rng.choice((1, 1, 2)))]
        return f"Input: {' '.join(words)}", rule(words)

    asked = [case(color) for color in rng.choices(colors, k=room.turns)]
    few = Room(room.tokens // 2, room.count, room.turns)
    turns = fill_turns(
        few, (Turn(text, f"Output: {' '.join(out)}", (" ".join(out),), "text", labelled=False) for text, out in asked)
    )
    room.left -= few.tokens - few.left
    shots = []
    while len(shots) < 60:
        # Every color is shown before any is shown twice: a renamed one cannot be guessed.
        text, result = case(colors[len(shots) % len(colors)])
        line = f"{text}\nOutput: {' '.join(result)}\n"
        if not room.take(line):
            break
        shots.append(line)
    if len(shots) < len(colors):
        raise NoRoom(f"{room.tokens} tokens")
    rng.shuffle(shots)
    return Sample("lists", "few_shot", "".join(shots), turns)


VARIANTS = {"rewrite": rewrite, "choose": choose, "few_shot": few_shot}
