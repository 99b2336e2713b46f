"""Arithmetic worked step by step, alone and with the operands spread over the context. Results are 0 to 999."""

import itertools

from . import lexicon, records
from .records import Record
from .sample import MARKUP_TOKENS, Sample, Turn, ask_about, fill_turns


def step(rng, left, limit=99):
    """A random operation on `left` that stays within 0 to `limit`: (sign, right, result)."""
    signs = ["+"] * (left < limit) + ["-"] * (left > 0) + ["*"] * (2 <= left <= 9)
    sign = rng.choice(signs)
    if sign == "+":
        right = rng.randint(1, min(limit - left, rng.choice((9, 30, limit))))
        return sign, right, left + right
    if sign == "-":
        right = rng.randint(1, min(left, rng.choice((9, 30, limit))))
        return sign, right, left - right
    right = rng.randint(2, 9)
    return sign, right, left * right


def _fill_turns(rng, room, variant, make_turn):
    return Sample("arithmetic", variant, "", fill_turns(room, (make_turn(rng) for _ in itertools.count())))


def _running_turn(rng):
    left = rng.randint(1, 40)
    expression, steps = str(left), []
    for _ in range(rng.randint(1, 4)):
        sign, right, result = step(rng, left)
        expression += f" {sign} {right}"
        steps.append(f"{left} {sign} {right} = {result}.")
        left = result
    return Turn(f"Compute {expression}.", "Step: " + " ".join(steps), (str(left),), "last")


def _columns_turn(rng):
    a, b = rng.randint(10, 999), rng.randint(10, 999)
    steps, carry, x, y = [], 0, a, b
    while x or y or carry:
        terms = [x % 10, y % 10] + [1] * carry
        steps.append(f"{' + '.join(map(str, terms))} = {sum(terms)}.")
        carry = sum(terms) // 10
        x, y = x // 10, y // 10
    answer = f"Add: {' '.join(steps)} {a} + {b} = {a + b}."
    return Turn(f"Add {a} and {b}.", answer, (str(a + b),), "last")


def running(rng, room):
    """`7 + 12 - 3`, worked from the left with one result a step."""
    return _fill_turns(rng, room, "running", _running_turn)


def columns(rng, room):
    """Sums of numbers of two or three digits, column by column from the right, carries written out."""
    return _fill_turns(rng, room, "columns", _columns_turn)


def sum_of_records(chosen):
    """The reply that looks up records one after another and adds their values up."""
    total = int(chosen[0].value)
    steps = [chosen[0].statement()]
    for record in chosen[1:]:
        steps.append(record.statement())
        steps.append(f"{total} + {record.value} = {total + int(record.value)}.")
        total += int(record.value)
    return " ".join(steps), str(total)


def spread(rng, room):
    """The operands are records all over the document."""
    attribute = rng.choice(records.NUMBER_VALUES)
    operands = 2 if room.tokens < 128 else rng.randint(2, 4)
    made = []
    reserve = room.reserve(MARKUP_TOKENS + 12 + operands * 26)
    for _, key in records.pairs(rng, [attribute], lexicon.KEYS):
        record = Record(attribute, key, str(rng.randint(1, 99 // operands)))
        line = record.statement() + "\n"
        if len(made) >= operands and room.left - room.count(line) < reserve:
            break
        room.need(line)
        made.append(record)
    place = {record: i / len(made) for i, record in enumerate(made)}

    def turn(_):
        chosen = rng.sample(made, operands)
        answer, total = sum_of_records(chosen)
        keys = f"{', '.join(record.key for record in chosen[:-1])} and {chosen[-1].key}"
        first = min(place[record] for record in chosen)
        return Turn(f"What is the total {attribute} of {keys}?", answer, (total,), "last", (first,))

    document = "".join(record.statement() + "\n" for record in made)
    return Sample("arithmetic", "spread", document, ask_about(rng, room, turn, range(room.turns)))


VARIANTS = {"running": running, "columns": columns, "spread": spread}
