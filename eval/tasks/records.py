"""Records, `The price of lamp is 12.`, that several tasks state and ask about."""

import dataclasses

from . import lexicon

# What a record says about its key, and which values that can have.
WORD_VALUES = {"color": lexicon.COLORS, "town": lexicon.TOWNS, "animal": lexicon.ANIMALS, "food": lexicon.FOODS}
NUMBER_VALUES = lexicon.ATTRIBUTES


@dataclasses.dataclass(frozen=True)
class Record:
    attribute: str
    key: str
    value: str

    def statement(self):
        return f"The {self.attribute} of {self.key} is {self.value}."

    def question(self):
        return f"What is the {self.attribute} of {self.key}?"


def number(rng, digits):
    """A number of exactly `digits` digits, as text; its first digit is no zero."""
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def pick_value(rng, attribute, digits):
    return rng.choice(WORD_VALUES[attribute]) if attribute in WORD_VALUES else number(rng, digits)


def pairs(rng, attributes, keys):
    """Yields every (attribute, key) once, in random order, without making the whole list where few are taken."""
    taken = set()
    while len(taken) < len(attributes) * len(keys) * 3 // 4:
        pair = (rng.choice(attributes), rng.choice(keys))
        if pair not in taken:
            taken.add(pair)
            yield pair
    rest = [(a, k) for a in attributes for k in keys if (a, k) not in taken]
    rng.shuffle(rest)
    yield from rest
